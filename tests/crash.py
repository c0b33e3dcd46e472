"""A stage on which cycles die: a process that has run one cycle, remembers what each task gave, and forks children that are killed on the way.

What is tried is what a cycle leaves behind at each instant, not how it computes. So a child takes the result of a task from memory, *if* it
has the very inputs of the unbroken cycle: the same artifacts, decisions of earlier runs, champion, ledger and settings. Whatever a crash
had changed there would be computed anew, and the digest of the results would show it. With `real=True` a child computes everything.

A home with a file `database` keeps its decisions in the database that the file names, such as one on a PostgreSQL server.
"""
import dataclasses
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DAYS = ("2021-06-30", "2021-12-31")  # of the first champion's cycle, and of the one that is killed
LIGHT = {"universe": {"start": "2017-01-01"}, "splits": {"first_test_year": 2020, "bootstrap": 200}, "forest": {"n_estimators": 3}, "boosting": {"rounds": 3},
         "meta": {"min_folds": 1}, "explain": {"bootstrap": 20, "interaction_rows": 4}, "drift": {"permutations": 20}, "run": {"threads": 1}}


# --- the stage itself: runs in a process of its own ------------------------------------------------------------------

def made_up_panel(path: Path) -> None:
    """Bars of six symbols that never were, in which volatility comes in spells."""
    import numpy as np
    import pandas as pd

    draw, days, frames = np.random.default_rng(7), pd.bdate_range("2017-01-02", "2021-12-31"), []
    spell = 0.008 + 0.012 * (np.sin(np.arange(len(days)) / 40) > 0)
    for symbol in ("AAA", "BBB", "CCC", "DDD", "EEE", "FFF"):
        close = 50 * (1 + draw.normal(3e-4, 1, len(days)) * spell).cumprod()
        reach = close * draw.uniform(0.001, 0.01, len(days))
        frames.append(pd.DataFrame({"symbol": symbol, "date": days, "open": close, "high": close + reach, "low": close - reach, "close": close, "adj_close": close, "volume": 1e6}))
    pd.concat(frames).to_parquet(path, index=False)


def settings_of(folder: Path, day: str, **more: Any) -> Any:
    from mltrader.config import load_settings

    return load_settings(**{**LIGHT, "run": {"threads": 1, "as_of": day}, "market": {"provider": "parquet", "path": str(folder / "bars.parquet"), "calendar": ""}, **more})


def go_home(folder: Path) -> None:
    os.environ["MLTRADER_HOME"], os.environ["MLTRADER_RUN__REPORTS"], os.environ["MLTRADER_DATABASE_URL"] = str(folder), str(folder / "reports"), url_of(folder)


COMPUTED: list[str] = []  # tasks that were not answered from memory


def remember() -> dict[str, Any]:
    """Have each task remember what it gave for its inputs; and have the gate say yes, so that each cycle ends in a promotion."""
    from mltrader import artifacts, reports
    from mltrader.core import digest_json

    memory: dict[str, Any] = {}

    def known(task: str, real: Any) -> Any:
        def run(inputs: Any, settings: Any, as_of: Any) -> Any:
            given = {name: {key: entry["content_digest"] if "content_digest" in entry else entry["sha256"] for key, entry in part._entries.items()}
                     for name, part in inputs.items() if isinstance(part, reports.Upstream)}
            champion = (inputs.get("champion") or {}).get("record") or {}
            key = digest_json([task, given, inputs["state"], champion.get("id"), champion.get("move_id"), inputs.get("ledger"), settings._settings.model_dump(mode="json", exclude={"run": {"reports"}}), str(as_of)])
            if task == "features":
                time.sleep(float(os.environ.get("CRASH_SLOW", 0)))
            if key not in memory or os.environ.get("CRASH_REAL"):
                COMPUTED.append(task)
                made = real(inputs, settings, as_of)
                if task == "promotion":
                    made = dataclasses.replace(made, documents={**made.documents, "decision": {**made.documents["decision"], "verdict": "PROMOTE"}})
                memory[key] = made
            return memory[key]

        return run

    for task, spec in reports.PIPELINE.items():
        module = importlib.import_module(f"mltrader.{spec.module}")
        module.run = known(task, module.run)
    written: dict[int, tuple[Any, Any]] = {}  # the bytes of what was remembered; the value beside them keeps its id from being given away
    encode = artifacts.encode
    artifacts.encode = lambda value: written.setdefault(id(value), (value, encode(value)))[1] if id(value) not in written else written[id(value)][1]
    return memory


def perform(job: dict[str, Any]) -> int:
    """One cycle in a child, as `job` says; returns the exit code."""
    from mltrader import orchestrator

    home = Path(job["home"])
    os.environ.update(job["env"])
    go_home(home)
    if "act" in job:
        return {"read": read, "promote": promote}[job["act"]](home, job)
    if job.get("real"):
        os.environ["CRASH_REAL"] = "1"
    os.environ["CRASH_SLOW"] = str(job.get("slow", 0.0))
    settings = settings_of(Path(job["folder"]), job["day"], **job.get("settings", {}))
    clock, linger = orchestrator.Clock(), job.get("linger", 0.0)

    def on_task(name: str) -> None:
        if job.get("stop_at") == name:
            os.kill(os.getpid(), signal.SIGSTOP)
        if linger and name == "features":
            time.sleep(linger)

    time.sleep(max(0.0, job.get("at", 0.0) - time.monotonic()))
    began = time.monotonic()
    try:
        made = orchestrator.run_inline(job.get("trigger", "test"), settings=settings, clock=clock, on_task=on_task)
        told, code = {"results": made["results"], "run_id": made["run_id"]}, 0
    except BaseException as error:
        told, code = {"error": f"{type(error).__name__}: {error}"}, 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
    from mltrader.core import passed

    told |= {"seconds": time.monotonic() - began, "passed": dict(passed), "computed": COMPUTED}
    (home / f"told_{os.getpid()}.json").write_text(json.dumps(told))
    return code


def read(home: Path, job: dict[str, Any]) -> int:
    """Ask for the champion, and check its files, again and again."""
    from mltrader import registry
    from mltrader.artifacts import ArtifactStore

    store, files, names, faults, asked = store_of(home), ArtifactStore(home / "artifacts"), [], [], 0
    while not Path(job["until"]).exists():
        asked += 1
        found = registry.champion(store)
        if found["name"] not in names[-1:]:
            names.append(found["name"])
        faults += [fault for entry in found["manifest"]["components"].values() if (fault := files.verify(entry["sha256"]))]
    (home / f"told_{os.getpid()}.json").write_text(json.dumps({"names": names, "faults": faults, "asked": asked}))
    return 0


def promote(home: Path, job: dict[str, Any]) -> int:
    """Promote a new version, of components made for it, again and again."""
    from mltrader import orchestrator, registry
    from mltrader.artifacts import ArtifactStore

    store, files, clock = store_of(home), ArtifactStore(home / "artifacts"), orchestrator.Clock()
    with orchestrator.open_run("cycle", "test", store, settings_of(Path(job["home"]), DAYS[1]), clock) as first:
        token = first.token
        for number in range(job["times"]):
            with store.write() as conn:
                orchestrator.db.start_run(conn, f"one_{number}", "cycle", "test", token, {}, "d", clock)
            made, seen = files.put({"version": number}).as_dict(), registry.champion(store)["id"]
            decision = {"verdict": "PROMOTE", "model_version": made["sha256"], "recipe_digest": str(number), "kind": "refresh", "as_of": DAYS[1], "feature_set": "f",
                        "data_digest": made["sha256"], "trials": 1, "look": 1, "alpha": 0.001}
            registry.register_decision(store, files, f"one_{number}", token, decision, [], {"components": {"model": made}}, seen, clock)
            with store.write() as conn:
                orchestrator.db.finish_run(conn, f"one_{number}", "success", clock)
    return 0


def serve(folder: Path) -> None:
    """Run the first two cycles, then fork a child for each line on stdin, and reap it when asked."""
    from mltrader import core, orchestrator

    made_up_panel(folder / "bars.parquet")
    memory, base, whole = remember(), folder / "base", folder / "whole"
    base.mkdir()
    out, sys.stdout = sys.stdout, sys.stderr
    go_home(base)
    first = orchestrator.run_inline(settings=settings_of(folder, DAYS[0]))
    copy_home(base, whole)
    go_home(whole)
    done = orchestrator.run_inline(settings=settings_of(folder, DAYS[1]))
    print(json.dumps({"results": done["results"], "run_id": done["run_id"], "tasks": len(memory), "first": first["results"]}), file=out, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "wait":
            status = os.waitpid(job["pid"], 0)[1]
            print(json.dumps(os.waitstatus_to_exitcode(status)), file=out, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            core.passed.clear()
            COMPUTED.clear()
            log = os.open(f"{job['home']}/log_{os.getpid()}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            for number in (1, 2):
                os.dup2(log, number)
            sys.stdout = sys.__stdout__
            code = 70
            try:
                code = perform(job)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(code)
        print(json.dumps(pid), file=out, flush=True)


# --- what a test holds in its hand -----------------------------------------------------------------------------------

def copy_home(source: Path, target: Path) -> Path:
    """A copy of a home; files that are only ever replaced, never changed, are linked."""
    shutil.copytree(source, target, copy_function=lambda a, b: shutil.copy2(a, b) if "mltrader.db" in Path(a).name else os.link(a, b))
    return target


class Stage:
    """The process of `serve`, and homes for its children."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLTRADER_")}
        env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MLTRADER_SETTINGS": str(ROOT / "tests" / "smoke.toml"), "MLTRADER_UNIVERSE__SYMBOLS": ""}
        with open(folder / "stage.log", "w") as log:
            self.process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env, cwd=ROOT)
        self.whole = self.answer()

    def answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError((self.folder / "stage.log").read_text()[-3000:])
        return json.loads(line)

    def ask(self, **job: Any) -> Any:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def home(self, source: str = "base") -> Path:
        """A fresh home with a champion (`base`), or with the unbroken second cycle too (`whole`)."""
        self.count += 1
        return copy_home(self.folder / source, self.folder / f"home_{self.count}")

    def empty_home(self, url: str) -> Path:
        """A home in which nothing has happened yet, with its store elsewhere."""
        self.count += 1
        made = self.folder / f"home_{self.count}"
        made.mkdir()
        (made / "database").write_text(url)
        return made

    def start(self, home: Path, failpoint: str = "", **job: Any) -> int:
        """Begin a cycle in `home`; returns its process id."""
        env = job.pop("env", {}) | ({"MLTRADER_FAILPOINT": failpoint} if failpoint else {})
        return self.ask(do="start", home=str(home), folder=str(self.folder), env=env, **{"day": DAYS[1], **job})

    def wait(self, pid: int) -> int:
        return self.ask(do="wait", pid=pid)

    def told(self, home: Path, pid: int) -> dict[str, Any]:
        return json.loads((home / f"told_{pid}.json").read_bytes())

    def run(self, home: Path, failpoint: str = "", **job: Any) -> tuple[int, dict[str, Any]]:
        """A cycle from beginning to end: exit code (negative: the signal), and what it told."""
        pid = self.start(home, failpoint, **job)
        code = self.wait(pid)
        return code, self.told(home, pid) if code >= 0 else {}


# --- what must hold after any crash ----------------------------------------------------------------------------------

def url_of(home: Path) -> str:
    """The store of a home: a file in it, or the database that `database` names."""
    named = home / "database"
    return named.read_text() if named.is_file() else f"sqlite:///{home / 'mltrader.db'}"


def store_of(home: Path) -> Any:
    from mltrader.store import Store

    return Store(url_of(home), create=False)


def faults(home: Path) -> list[str]:
    """All that is inconsistent in a home, whatever has happened to it: database, hash chains, champion."""
    from mltrader import reports
    from mltrader import store as db
    from mltrader.artifacts import ArtifactStore

    store, files, found = store_of(home), ArtifactStore(home / "artifacts"), []
    files.verify = functools.cache(files.verify)  # several tables name the same file
    with store.read() as conn:
        if conn.dialect.name == "sqlite":  # PostgreSQL checks each foreign key when it is written, and nobody can switch that off unseen
            if (said := conn.exec_driver_sql("PRAGMA integrity_check").scalar()) != "ok":
                found.append(f"integrity_check: {said}")
            found += [f"foreign key: {row}" for row in conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall()]
        runs, champion = db.runs(conn), db.alias_target(conn, "champion")
        alias = conn.execute(db.sa.select(db.model_aliases)).mappings().one()
        known = conn.execute(db.sa.select(db.artifacts.c.sha256)).scalars().all()
        gates = {run["id"]: db.gate_row(conn, run["id"]) for run in runs}
    if (alias["move_id"], alias["model_version"]) != (champion["move_id"], champion["id"]):
        found.append("the alias is not where its last move put it")
    found += [f"champion's {name}: {fault}" for name, entry in champion["manifest"]["components"].items() if (fault := files.verify(entry["sha256"]))]
    found += [f"artifact on record: {fault}" for sha256 in known if (fault := files.verify(sha256))]
    for run in runs:
        if run["manifest_digest"]:
            found += reports.verify_run(store, run["id"], home / "reports", files)
        if run["promoted"] and not (gates[run["id"]] and gates[run["id"]]["verdict"] == "PROMOTE"):
            found.append(f"{run['id']} promoted without a verdict")
        if run["status"] == "success" and run["kind"] == "cycle" and not run["manifest_digest"]:
            found.append(f"{run['id']} succeeded without a manifest")
    for path in [*home.glob("products/*/outputs.json"), *home.glob("reports/*/manifest.json"), *home.glob("folds/*.json")]:
        try:
            {"outputs.json": reports.read_outputs, "manifest.json": reports.read_manifest}.get(path.name, lambda p: json.loads(p.read_bytes()))(path)
        except Exception as error:
            found.append(f"{path}: {error}")
    store.engine.dispose()
    return found


def state(home: Path) -> dict[str, Any]:
    """Runs (newest first), champion's name and lease of a home."""
    from mltrader import store as db

    store = store_of(home)
    with store.read() as conn:
        found = {"runs": db.runs(conn), "champion": db.alias_target(conn, "champion"), "lease": db.current_lease(conn), "moves": len(db.promotions(conn, "champion"))}
    store.engine.dispose()
    return found


def left_over(home: Path) -> list[Path]:
    """Temporary files."""
    return [*home.rglob(".*.tmp")]


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
