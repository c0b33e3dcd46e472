"""A whole cycle on six real stocks, through the README's own command, and all that must hold after it."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from conftest import ROOT, Project, copy_built

from mltrader import reports
from mltrader import store as db
from mltrader.core import TASKS
from mltrader.store import Store


@pytest.fixture(scope="module")
def project(built, tmp_path_factory) -> Project:
    """The project after one `make run`."""
    made = copy_built(built, tmp_path_factory.mktemp("cycle") / "mltrader")
    made.run_id = re.search(r"run_\w+", made.output)[0]
    return made


def store_of(project: Project) -> Store:
    return Store(f"sqlite:///{project.home / 'mltrader.db'}", create=False)


def outputs(home: Path) -> dict[str, dict]:
    return {task: json.loads((home / "products" / task / "outputs.json").read_bytes()) for task in TASKS}


def test_run_leaves_every_report(project):
    folder = project.root / "reports" / project.run_id
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["status"] == "success" and manifest["verdict"] in db.VERDICTS
    assert {name: task["status"] for name, task in manifest["tasks"].items()} == dict.fromkeys(TASKS, "ran")
    for task in TASKS:
        notebook = json.loads((folder / f"{task}.ipynb").read_text())
        kinds = [o["output_type"] for c in notebook["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
        assert "error" not in kinds and "execute_result" in kinds, task
        assert any("image/png" in o.get("data", {}) for c in notebook["cells"] if c["cell_type"] == "code" for o in c["outputs"]), f"{task} shows no picture"
        text = (folder / f"{task}.html").read_text()
        assert "How it was done" in text and "<script" not in text and len(text) < 5_000_000, task
        assert not re.search(r"(?:src|href)\s*=\s*[\"']?https?://", re.sub(r"<a\b[^>]*>", "", text)), task
    assert project.run_id in (project.root / "reports" / "index.html").read_text()
    assert f"/reports/{project.run_id}/summary.html" in project.output


def test_build_opens_no_socket_beyond_loopback(project):
    assert project.sockets == ""


def test_socket_guard_would_notice(project, tmp_path):
    """Red team: a process that tries to reach out is written down."""
    log = tmp_path / "log"
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), timeout=0.01)\nexcept OSError: pass"
    project.call(sys.executable, "-c", code, SOCKET_LOG=str(log), PYTHONPATH=str(project.root / "tests" / "socket_guard"))
    assert "192.0.2.1" in log.read_text()


def test_second_run_does_nothing(project):
    before = outputs(project.home)
    done = project.call("make", "run")
    assert done.returncode == 0 and "Nothing to do" in done.stdout, done.stdout + done.stderr
    assert outputs(project.home) == before
    assert len(list((project.root / "reports").glob("run_*"))) == 1


def test_store_has_this_runs_rows(project):
    store = store_of(project)
    with store.read() as conn:
        assert conn.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall() == []
        counts = db.count_rows(conn, project.run_id)
        run = db.runs(conn, run_id=project.run_id)[0]
        gate = db.gate_row(conn, project.run_id)
        tasks = db.tasks_of(conn, project.run_id)
    assert set(counts) == set(db.SEED_TABLES)
    assert counts["dynamic_events"] == 0  # nothing was under way at the end of the data
    assert all(n > 0 for name, n in counts.items() if name != "dynamic_events"), counts
    assert counts["price_data"] == counts["feature_store"] == 6
    assert run["status"] == "success" and run["verdict"] == gate["verdict"] and run["as_of"].isoformat() == "2022-12-28"
    assert gate["trials"] >= 1 and gate["rules"]
    ran = [t["task"] for t in tasks if t["status"] == "ran"]  # of tasks that do not wait for each other, either may come first
    assert sorted(ran) == sorted(TASKS) and all(ran.index(above) < ran.index(name) for name, spec in reports.PIPELINE.items() for above in spec.upstream)


def test_metrics_are_honest(project):
    """On this panel a rank IC of 0.05 or an accuracy of 0.9 would be a leak; every model stands beside its baselines."""
    frame = reports.Upstream("backtest", outputs(project.home)["backtest"]["entries"], reports.ArtifactStore(project.home / "artifacts"))["metrics"]
    overall = frame[frame["scope"] == "all"].pivot(index="model", columns="metric", values="value")
    assert {"stack", "forest", "boosting", "prior", "majority", "logit"} <= set(overall.index)
    assert overall.loc["stack", "accuracy"] < 0.9 and abs(overall.loc["stack", "ic"]) < 0.1
    ic = frame[(frame["metric"] == "ic") & (frame["model"] == "stack") & (frame["scope"] == "all")].iloc[0]
    assert ic["low"] < ic["value"] < ic["high"] and ic["n_sessions"] > 250


def test_run_verifies_and_a_flipped_byte_is_named(project):
    assert project.call("mltrader", "verify").returncode == 0
    page = project.root / "reports" / project.run_id / "meta.html"
    good = page.read_bytes()
    page.write_bytes(good[:-1] + b"!")
    found = project.call("mltrader", "verify", project.run_id)
    page.write_bytes(good)
    assert found.returncode == 1 and "meta.html is changed" in found.stdout
    entry = outputs(project.home)["meta"]["entries"]["model"]["sha256"]
    path = project.home / "artifacts" / entry[:2] / entry
    good = path.read_bytes()
    path.write_bytes(good[:10] + b"#" + good[11:])
    found = project.call("mltrader", "verify")
    path.write_bytes(good)
    assert found.returncode == 1 and "meta.model" in found.stdout
    assert project.call("mltrader", "verify").returncode == 0


EXAMPLES = '''
from mltrader.orchestrator import TrainingOrchestrator
orchestrator = TrainingOrchestrator()
should_run, reason = orchestrator.should_run_training()
print(f"Should run: {should_run}"); print(f"Reason: {reason}")
result = orchestrator.run_training_cycle(trigger="manual")
if result['success']:
    print(f"Training complete! Promoted: {result['promoted']}"); print(f"Duration: {result['duration_minutes']:.1f} minutes")
else:
    print(f"Training failed: {result['error']}")
for run in orchestrator.get_training_history(limit=10):
    print(f"{run['run_id']}: {run['status']} ({run['trigger']})")
    print(f"  Accuracy: {run['overall_accuracy']:.1%}"); print(f"  Promoted: {run['promoted']}")
assert {"run_id", "promoted", "duration_minutes", "metrics", "report"} <= set(result) or "error" in result
'''


def test_usage_examples_run_as_written(project):
    done = project.call(sys.executable, "-c", EXAMPLES)
    assert done.returncode == 0, done.stderr
    assert "Should run: False" in done.stdout and "Training complete!" in done.stdout and f"{project.run_id}: success (manual)" in done.stdout


def test_reading_commands(project):
    for command, expected in ((["status"], project.run_id), (["history"], project.run_id), (["champion"], "hampion"), (["champion", "--as-of", "2001-01-01"], "No champion"),
                              (["config", "show"], 'symbols = ["AAPL"'), (["doctor"], "telemetry"), (["data", "check"], "as of 2022-12-28")):
        plain = project.call("mltrader", *command)
        assert plain.returncode == 0 and (expected in plain.stdout or "production_v1" in plain.stdout), (command, plain.stdout, plain.stderr)
        json.loads(project.call("mltrader", *command, "--json").stdout)
    assert project.call("mltrader", "verify", "no_such_run").returncode == 2


def test_readme_commands_run(project):
    """Every line of the README's command blocks works as it is written there."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    lines = [line.split("#")[0].split() for block in blocks for line in block.splitlines() if line.strip()]
    assert ["make", "run"] in lines and ["make", "test"] in lines and sum(line[0] == "mltrader" for line in lines) >= 6
    days = pd.bdate_range("2024-01-02", "2024-03-01").strftime("%Y-%m-%d")
    pd.DataFrame({"symbol": "XYZ", "date": days, "close": [10 + i / 8 for i in range(len(days))]}).to_parquet(project.root / "bars.parquet")  # a user's own file
    for line in lines:
        if line == ["make", "test"]:  # which is what runs this test: see that it still does
            line = [*line, "--dry-run"]
        done = project.call(*line)
        nobody = "predict" in line and re.search("no champion yet|no model version", done.stderr)  # six stocks and a few years need not convince the gate
        assert done.returncode == 0 or nobody and "No champion" in project.call("mltrader", "champion").stdout, (line, done.stdout, done.stderr)
    (project.root / "bars.parquet").unlink()
    assert "pytest" in project.call("make", "test", "--dry-run").stdout


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    line = re.search(r"^command=.*$", script, re.M)[0]
    found = subprocess.run(["bash", "-c", f'{line}; printf "[%s]" $command'], cwd=ROOT, capture_output=True, text=True).stdout
    assert found == "[make][test]"  # the comment behind the command is no argument
    assert script.index("\n$command") < script.index("\nmake run")


def test_python_read_api(project):
    code = "import mltrader; r = mltrader.runs()[0]; e = mltrader.load_product(r['id'], 'meta')['evaluation']; print(len(e), mltrader.champion() is None)"
    done = project.call(sys.executable, "-c", code)
    assert done.returncode == 0 and int(done.stdout.split()[0]) > 1000, done.stderr


def test_fast_path_gives_the_same_digests(project):
    """Without kernels, in a new home: the same results as the notebooks, and the same records."""
    home = project.fresh_home("fast_home")
    done = project.call("mltrader", "cycle", "--no-kernels", "--json", MLTRADER_HOME=str(home), MLTRADER_RUN__REPORTS=str(home / "reports"))
    assert done.returncode in (0, 3), done.stderr
    mine, theirs = outputs(home), outputs(project.home)
    assert {t: d["digest"] for t, d in mine.items()} == {t: d["digest"] for t, d in theirs.items()}
    assert {t: d["rows"] for t, d in mine.items()} == {t: d["rows"] for t, d in theirs.items()}
    assert json.loads(done.stdout)["success"]
    with Store(f"sqlite:///{home / 'mltrader.db'}", create=False).read() as a, store_of(project).read() as b:
        assert db.runs(a, kind="cycle")[0]["results_digest"] == db.runs(b, kind="cycle")[0]["results_digest"]  # two runs, the same inputs
        assert [r["status"] for r in db.gate_row(a, db.runs(a)[0]["id"])["rules"]] == [r["status"] for r in db.gate_row(b, project.run_id)["rules"]]


def test_users_own_panel_and_bad_data(project):
    """Two settings bring other symbols; a fault in the file stops at the door, and the last good state stays."""
    home, rng = project.fresh_home("own_home"), __import__("numpy").random.default_rng(7)
    days = pd.bdate_range("2012-01-02", "2021-12-31")
    frames = []
    for symbol in ("NA", "TRUE", "XYZ", "B.A", "Q-1", "1E5"):
        close = 50 * (1 + rng.normal(3e-4, 0.015, len(days))).cumprod()
        spread = close * rng.uniform(0.001, 0.01, len(days))
        frames.append(pd.DataFrame({"symbol": symbol, "date": days, "open": close, "high": close + spread, "low": close - spread, "close": close, "adj_close": close, "volume": 1e6}))
    panel = pd.concat(frames)
    path = project.root / "own.parquet"
    panel.to_parquet(path, index=False)
    env = {"MLTRADER_HOME": str(home), "MLTRADER_MARKET__PROVIDER": "parquet", "MLTRADER_MARKET__PATH": str(path), "MLTRADER_UNIVERSE__SYMBOLS": "",
           "MLTRADER_RUN__REPORTS": str(home / "reports")}
    done = project.call("mltrader", "cycle", "--no-kernels", **env)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    before = (home / "products" / "market" / "outputs.json").read_bytes()
    with Store(f"sqlite:///{home / 'mltrader.db'}", create=False).read() as conn:
        assert {row["symbol"] for row in conn.execute(sa.select(db.price_data)).mappings()} == {"NA", "TRUE", "XYZ", "B.A", "Q-1", "1E5"}

    broken = panel.copy()
    broken.iloc[100, broken.columns.get_loc("close")] = -1.0
    broken.to_parquet(path, index=False)
    done = project.call("mltrader", "cycle", **env)  # with kernels: the partial notebook is kept
    assert done.returncode == 4, done.stdout + done.stderr
    assert "own.parquet" in done.stderr and "NA" in done.stderr and "Traceback" not in done.stderr
    assert (home / "products" / "market" / "outputs.json").read_bytes() == before
    failed = sorted((home / "reports").glob("run_*"))[-1]
    assert (failed / "market.FAILED.ipynb").is_file() and "This task failed" in (failed / "market.FAILED.html").read_text()
    assert json.loads((failed / "manifest.json").read_bytes())["status"] == "failed"
    assert not (failed / "features.html").exists()
    examples = project.call(sys.executable, "-c", EXAMPLES, **env)  # they run after a failed run too
    assert examples.returncode == 0 and "Training failed:" in examples.stdout and "failed (manual)" in examples.stdout and "nan%" in examples.stdout, examples.stderr


MINE = """
import numpy as np
from mltrader.estimators import register

@register("stump", libraries=("scikit-learn",))
class Stump:
    def __init__(self, seed, depth=2):
        self.depth = depth
    def fit(self, X, y, weight):
        from sklearn.tree import DecisionTreeClassifier
        tree = DecisionTreeClassifier(max_depth=self.depth, min_samples_leaf=50).fit(np.nan_to_num(X), y, weight).tree_
        self.left, self.right, self.feature, self.threshold = tree.children_left, tree.children_right, tree.feature, tree.threshold
        self.shares = tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True)
        return self
    def predict_proba(self, X):
        values, at = np.nan_to_num(X.to_numpy()), np.zeros(len(X), dtype=int)
        for _ in range(self.depth):
            inner = self.left[at] >= 0
            below = values[np.arange(len(at)), np.maximum(self.feature[at], 0)] <= self.threshold[at]
            at = np.where(inner, np.where(below, self.left[at], self.right[at]), at)
        return self.shares[at]
    def state(self):
        return {name: getattr(self, name) for name in ("depth", "left", "right", "feature", "threshold", "shares")}
    @classmethod
    def restore(cls, state):
        made = cls(0, state["depth"])
        vars(made).update(state)
        return made
"""


def test_a_model_of_ones_own_takes_part_by_name(project):
    """A notebook registers it, the settings name it: it is fitted fold by fold, stacked, explained, judged as a new recipe and read back in another process; a changed class is another run."""
    home, notebook, module = project.fresh_home("mine_home"), project.root / "nbs" / "32a_mine.ipynb", project.root / "mltrader" / "mine.py"
    cells = [{"cell_type": "code", "id": f"c{n}", "metadata": {}, "outputs": [], "execution_count": None, "source": text} for n, text in enumerate(("#| default_exp mine", "#| export\n" + MINE.strip()))]
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# What does one split say?\n\n> A stump.\n"}
    notebook.write_text(json.dumps({"cells": [title, *cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    env = {"MLTRADER_HOME": str(home), "MLTRADER_RUN__REPORTS": str(home / "reports"), "MLTRADER_FOREST__ESTIMATOR": "mine.stump"}
    try:
        early = project.call("mltrader", "cycle", "--no-kernels", **env)
        assert early.returncode != 0 and "nbdev_export" in early.stderr, early.stderr
        assert project.call("nbdev_export").returncode == 0
        done = project.call("mltrader", "cycle", "--no-kernels", "--json", **env)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        code = ("import mltrader; run = mltrader.runs()[0]['id']; made = mltrader.load_product(run, 'forest'); said = mltrader.load_product(run, 'explain')['summary']['components']; "
                "print(made['recipe']['component'], type(made['model']).__name__, made['model'].estimator_.depth, said['forest']['engine'], said['stack']['kind'], sep='|')")
        told = project.call(sys.executable, "-c", code, **env)
        assert told.stdout.strip() == "mine.stump|OwnModel|2|sampled orders of features, 8 background rows|mixed", told.stdout + told.stderr
        with Store(f"sqlite:///{home / 'mltrader.db'}", create=False).read() as conn:
            gate = db.gate_row(conn, json.loads(done.stdout)["run_id"])
        assert gate["kind"] == "first" and {"beats_prior", "calibrated"} <= {row["rule"] for row in gate["rules"]}
        module.write_text(module.read_text().replace("depth=2", "depth=1"))  # somebody has changed the class
        changed = project.call(sys.executable, "-c", "from mltrader.config import load_settings; from mltrader.reports import write_inputs; print(sorted(write_inputs(load_settings(), None, None)))", **env)
        assert {"forest", "promotion"} <= set(changed.stdout.strip("[]\n").replace("'", "").split(", ")), changed.stdout + changed.stderr
    finally:
        notebook.unlink()
        module.unlink(missing_ok=True)
        project.call("nbdev_export")


def test_a_killed_task_is_not_taken_for_done(project, tmp_path):
    """Kill -9 in mid-task, put the source back: Ploomber alone would call the task up to date (`Skipped`). The next build waits for no lease."""
    source = project.root / "nbs" / "40_backtest.ipynb"
    good = project.sabotage("40_backtest", "import time", f"open({str(tmp_path / 'started')!r}, 'w').close()", "time.sleep(60)")
    try:
        child = subprocess.Popen(["ploomber", "build"], cwd=project.root, env=project.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for _ in range(600):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.1)
        assert (tmp_path / "started").exists()
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    finally:
        source.write_text(good)
    outdated = project.outdated()
    assert {"backtest", "promotion", "summary"} <= outdated and {"market", "features", "meta"}.isdisjoint(outdated), outdated
    done = project.call("ploomber", "build")
    assert done.returncode == 0 and "] backtest" in done.stderr, done.stdout + done.stderr
    with store_of(project).read() as conn:
        states = [run["status"] for run in db.runs(conn)]
    assert "lost" in states and states[0] == "success" and "running" not in states
    assert "Nothing to do" in project.call("ploomber", "build").stdout


def test_a_failed_task_is_repeated_after_the_source_is_put_back(project):
    """Ploomber's other stale-product bug: a failed task keeps its old mark of success."""
    source = project.root / "nbs" / "41_sectors.ipynb"
    good = project.sabotage("41_sectors", "raise RuntimeError('planted')")
    try:
        failed = project.call("ploomber", "build")
    finally:
        source.write_text(good)
    assert failed.returncode == 1 and "planted" in failed.stderr
    kept = project.home / "products" / "sectors" / "sectors.ipynb"
    assert kept.is_file() and "planted" not in kept.read_text()
    done = project.call("ploomber", "build")
    assert done.returncode == 0 and "] sectors" in done.stderr, done.stdout + done.stderr
    with store_of(project).read() as conn:
        assert [run["status"] for run in db.runs(conn)][:2] == ["success", "failed"]


def test_a_new_database_is_not_skipped_into_emptiness(project):
    moved = project.home / "mltrader.db"
    aside = {p: p.with_name(p.name + ".aside") for p in project.home.glob("mltrader.db*")}
    for path, other in aside.items():
        path.rename(other)
    try:
        assert project.outdated() == set(TASKS)
    finally:
        for leftover in project.home.glob("mltrader.db*"):
            if not leftover.name.endswith(".aside"):
                leftover.unlink()
        for path, other in aside.items():
            other.rename(path)
    assert moved.is_file()
    assert "Nothing to do" in project.call("ploomber", "build").stdout


def test_a_run_killed_at_the_very_end_is_recorded_by_the_next_build(project):
    """All products are there, the record is not: as if the process had died between the last task and the end."""
    with store_of(project).write() as conn:
        newest = db.runs(conn, 1)[0]
        made = json.loads((project.home / "products" / "summary" / "outputs.json").read_bytes())["run_id"]
        conn.execute(db.training_runs.update().where(db.training_runs.c.id == made).values(status="running", completed_at=None, manifest_digest=None))
        conn.execute(db.training_runs.delete().where(db.training_runs.c.id.not_in([made]), db.training_runs.c.started_at > newest["started_at"]))
    done = project.call("ploomber", "build")
    assert done.returncode == 0 and "Verdict:" in done.stdout, done.stdout + done.stderr
    with store_of(project).read() as conn:
        first, second = db.runs(conn, 2)
        tasks = {row["task"]: row["status"] for row in db.tasks_of(conn, first["id"])}
    assert (first["status"], second["id"], second["status"]) == ("success", made, "lost") and set(tasks.values()) == {"reused"}
    assert "Nothing to do" in project.call("ploomber", "build").stdout


def test_a_change_during_a_task_is_not_taken_for_its_input(project):
    """Somebody edits a module while a task runs: Ploomber would mark the task with the edited file."""
    module = project.root / "mltrader" / "explain.py"
    good, notebook = module.read_text(), project.root / "nbs" / "42_explain.ipynb"
    source = project.sabotage("42_explain", f"open({str(module)!r}, 'a').write('# edited')")
    try:
        done = project.call("ploomber", "build")
    finally:
        notebook.write_text(source)
        module.write_text(good)
    assert done.returncode == 2 and "explain.py changed while the task was running" in done.stderr, done.stdout + done.stderr
    assert {"explain", "summary"} <= project.outdated()


@pytest.mark.parametrize("way", ["--kernels", "--no-kernels"])
def test_a_stopped_cycle_is_recorded_as_interrupted(project, way):
    """SIGTERM, as a scheduler sends it: the run is closed, its lease given back, and the next one may start at once."""
    home = project.fresh_home(f"stopped{way}")
    env = project.environment(MLTRADER_HOME=str(home), MLTRADER_RUN__REPORTS=str(home / "reports"))
    child = subprocess.Popen(["mltrader", "cycle", way], cwd=project.root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    for _ in range(900):
        if (home / "products" / "market" / "outputs.json").exists():
            break
        time.sleep(0.1)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    errors = child.communicate(timeout=60)[1].decode()
    assert child.returncode == 130 and "interrupted" in errors.lower() and "Traceback" not in errors, errors
    assert time.monotonic() - began < 10
    with Store(f"sqlite:///{home / 'mltrader.db'}", create=False).read() as conn:
        run, lease = db.runs(conn)[0], db.current_lease(conn)
    assert run["status"] == "interrupted" and lease["holder"] is None
    assert json.loads((home / "reports" / run["id"] / "manifest.json").read_bytes())["status"] == "interrupted"


def test_damaged_products_are_named_and_made_again(project):
    """A product file that is no JSON, and a note that is none: one clear error, or none at all."""
    home = project.fresh_home("damaged")
    env = {"MLTRADER_HOME": str(home), "MLTRADER_RUN__REPORTS": str(home / "reports")}
    assert project.call("mltrader", "cycle", "--no-kernels", **env).returncode in (0, 3)
    (home / "inputs" / "as_of.json").parent.mkdir(exist_ok=True)
    (home / "inputs" / "as_of.json").write_text("{")
    (home / "products" / "market" / "outputs.json").write_text("garbage")
    code = "from mltrader.reports import open_task\nfrom mltrader.core import IntegrityError\ntry: open_task('features')\nexcept IntegrityError as e: print(e)"
    assert "was damaged" in project.call(sys.executable, "-c", code, **env).stdout
    assert project.call("mltrader", "cycle", "--no-kernels", **env).returncode in (0, 3)


def test_bare_ploomber_commands_write_no_run(project):
    with store_of(project).read() as conn:
        before = db.count_rows(conn)
    assert project.call("ploomber", "status").returncode == 0
    with store_of(project).read() as conn:
        assert db.count_rows(conn) == before


def test_chromium_shows_the_summary_without_a_request(project):
    """A real browser: no console error, no outside request, the verdict on the page."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None and "CI" not in os.environ:
        pytest.skip("not run: Chromium is missing; `apt-get install chromium` brings it")
    assert browser_path, "Chromium is missing"
    folder = project.root / "reports"
    requests, problems = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
        tab = browser.new_page()
        tab.on("request", lambda r: requests.append(r.url))
        tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda e: problems.append(str(e)))
        for page in [folder / "index.html", folder / project.run_id / "index.html", *[folder / project.run_id / f"{task}.html" for task in TASKS]]:
            tab.goto(page.as_uri())
        tab.goto((folder / project.run_id / "summary.html").as_uri())
        text, pictures = tab.inner_text("body"), tab.eval_on_selector_all("img", "all => all.filter(i => i.naturalWidth > 100).length")
        browser.close()
    assert problems == [] and all(url.startswith(("file://", "data:")) for url in requests)
    assert any(word in text for word in db.VERDICTS) and pictures >= 4
