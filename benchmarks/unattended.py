"""Half a year alone: `mltrader schedule --run` on a feed that arrives session by session, through the crash of 2020, with a fault every other week.

    python benchmarks/unattended.py                       # 26 weeks from 2020-02-03, 7,200 times as fast: about 40 minutes
    python benchmarks/unattended.py --weeks 4 --speed 20000   # the first faults only
    python benchmarks/unattended.py --json

The clock of all processes of mltrader is libfaketime's (`apt-get install faketime`, or `python -m venv .venv-faketime && .venv-faketime/bin/pip install libfaketime`), so that what runs is the command
itself, with its real scheduler, processes, database and files. The feed is the packaged history of six stocks as a Parquet file, renewed after each simulated close. The script plays the world: the vendor, a
sink for messages, the supervisor that starts the scheduler again when it is gone (as systemd's `Restart=always` does), and the faults. Nothing is mended by hand; the two files that are spoilt for good
(a model, and a result of a day that is past) have to be what `mltrader verify` names at the end. A run takes a simulated day at this speed, so a week between trainings is eight or nine days. Exits with 1
if anything has not recovered.
"""
import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
COMMAND = [sys.executable, "-c", "from mltrader.cli import main; main()"]
LIBRARIES = ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
             *map(str, ROOT.glob(".venv-faketime/lib/python*/site-packages/libfaketime/vendor/libfaketime/src/libfaketime.so.1"))]


KEEPS_PACE = 0.5  # simulated days that a monitor run may take; slower, and the machine is measured, not the scheduler
SYMBOLS = ["AMD", "RRC", "BBY", "BAC", "KO", "PG"]


class Sink(ThreadingHTTPServer):
    """Takes messages, unless it is `down`."""

    def __init__(self) -> None:
        self.down, self.got = False, []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if not sink.down:
                    sink.got.append(json.loads(body).get("title", ""))
                self.send_response(500 if sink.down else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Feed:
    """The packaged history as files that grow."""

    def __init__(self, folder: Path, symbols: list[str]) -> None:
        from mltrader import market, packaged
        from mltrader.config import Settings, home

        packaged.sync(home() / "cache")
        frames = market.run({"cache": {"folder": home() / "cache"}}, Settings(universe={"symbols": symbols, "start": "2010-01-01"}), None).frames
        self.folder, self.panel, self.index = folder, frames["panel"], frames["index"]
        self.sessions = self.index["session"]
        pd.DataFrame(frames["sectors"])[["symbol", "sector"]].to_csv(folder / "sectors.csv", index=False)

    def publish(self, until: pd.Timestamp, symbols: list[str] | None = None) -> None:
        """All bars up to a session; with `symbols`, only theirs on the last one."""
        bars = self.panel[self.panel["session"] <= until]
        if symbols is not None:
            bars = bars[(bars["session"] < until) | bars["symbol"].isin(symbols)]
        columns = ["symbol", "date", "open", "high", "low", "close", "adj_close", "volume"]
        index = self.index[self.index["session"] <= until].rename(columns={"session": "date"})
        index[["date", "index_close"]].rename(columns={"index_close": "close"}).to_csv(self.folder / "index.csv.new", index=False)
        index[["date", "vix_close"]].rename(columns={"vix_close": "close"}).to_csv(self.folder / "vix.csv.new", index=False)
        bars.rename(columns={"session": "date"})[columns].to_parquet(self.folder / "bars.parquet.new")
        for name in ("index.csv", "vix.csv", "bars.parquet"):
            os.replace(self.folder / f"{name}.new", self.folder / name)


class World:
    """The scheduler's process, its clock, and what is done to it."""

    def __init__(self, folder: Path, start: datetime, speed: float, library: str) -> None:
        self.folder, self.start, self.speed, self.library = folder, start, speed, library
        self.home, self.sink, self.began = folder / "home", Sink(), time.monotonic()
        self.process: subprocess.Popen | None = None
        self.starts, self.log, self.spoilt = 0, (folder / "scheduler.log").open("w"), []

    def now(self) -> datetime:
        return self.start + timedelta(seconds=(time.monotonic() - self.began) * self.speed)

    def environment(self, fake: bool) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MLTRADER_")}
        ours = {"MLTRADER_HOME": self.home, "MLTRADER_SETTINGS": ROOT / "tests" / "smoke.toml", "MLTRADER_RUN__REPORTS": self.folder / "reports", "MLTRADER_MARKET__PROVIDER": "parquet",
                "MLTRADER_MARKET__PATH": self.folder / "bars.parquet", "MLTRADER_MARKET__INDEX_PATH": self.folder / "index.csv", "MLTRADER_MARKET__VIX_PATH": self.folder / "vix.csv",
                "MLTRADER_MARKET__SECTORS_PATH": self.folder / "sectors.csv", "MLTRADER_NOTIFY__CHANNELS": "ops", "MLTRADER_NOTIFY_URL_OPS": f"json://127.0.0.1:{self.sink.server_port}/",
                "MLTRADER_TRAINING__MAX_TRAINING_TIME_HOURS": "5000", "MLTRADER_TRAINING__LEASE_SECONDS": "1000000",  # simulated ones: an hour lasts half a second
                "MLTRADER_UNIVERSE__SYMBOLS": ",".join(SYMBOLS), "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1",
                **{f"MLTRADER_PROMOTION__{name}": value for name, value in (("MARGIN", 10), ("REGIME_MARGIN", 10), ("MAX_CALIBRATION_ERROR", 1))}}  # six stocks have to make a champion
        faked = {"LD_PRELOAD": self.library, "FAKETIME": f"@{self.now():%Y-%m-%d %H:%M:%S} x{self.speed:g}", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1", "TZ": "UTC"}
        return {**clean, **{k: str(v) for k, v in ours.items()}, **(faked if fake else {})}

    def keep_running(self) -> None:
        """Start the scheduler, if it is gone."""
        if self.process is None or self.process.poll() is not None:
            self.starts += 1
            self.process = subprocess.Popen([*COMMAND, "schedule", "--run", "--beat", "0.5", "--no-kernels"], env=self.environment(True), cwd=ROOT, stdout=self.log, stderr=self.log, start_new_session=True)

    def children(self, word: str) -> list[int]:
        """Processes of the scheduler that run the command `word`."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                if word.encode() in words and f"MLTRADER_HOME={self.home}".encode() in (path.parent / "environ").read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def query(self, statement: str) -> list[tuple]:
        try:
            with sqlite3.connect(f"file:{self.home / 'mltrader.db'}?mode=ro", uri=True, timeout=30) as conn:
                return conn.execute(statement).fetchall()
        except sqlite3.OperationalError:
            return []

    def strike(self, word: str, number: int, least: float) -> bool:
        """Signal a run in progress of the command `word` that has worked for `least` seconds; False if there is none now."""
        running = self.query(f"SELECT id FROM training_runs WHERE status = 'running' AND kind = '{word}'")
        if not running or not self.children(word):
            self.__dict__.pop("seen", None)
            return False
        self.seen = getattr(self, "seen", time.monotonic())
        if time.monotonic() - self.seen < least:
            return False
        for pid in self.children(word):
            os.kill(pid, number)
        del self.seen
        return True

    def spoil(self, what: str) -> str | bool:
        """Flip a bit of a file of the champion's, or of a product; returns its hash, or False if there is none yet."""
        if what == "champion":
            found = self.query("SELECT v.manifest FROM model_aliases a JOIN model_versions v ON v.id = a.model_version WHERE a.alias = 'champion'")
            sha = json.loads(found[0][0])["components"]["meta"]["sha256"] if found else None
        else:
            found = self.query("SELECT outputs FROM run_tasks WHERE task = 'labels' AND outputs IS NOT NULL ORDER BY id DESC LIMIT 1")
            sha = json.loads(found[0][0])["labels"]["sha256"] if found else None
        if sha is None:
            return False
        path = self.home / "artifacts" / sha[:2] / sha
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
        self.spoilt.append(sha)
        return sha


def lock_database(world: World, seconds: float) -> None:
    """Hold the write lock for a while, as a forgotten shell would."""
    def hold() -> None:
        with sqlite3.connect(world.home / "mltrader.db", timeout=60, isolation_level=None) as conn:
            conn.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            conn.execute("ROLLBACK")
    threading.Thread(target=hold, daemon=True).start()


def faults_of(world: World, feed: Feed) -> list[dict]:
    """What goes wrong: in which week, for how many days, how it begins (returns False: not yet) and ends."""
    def truncate() -> None:
        path = world.folder / "bars.parquet"
        path.write_bytes(path.read_bytes()[:-1000])

    def down(state: bool) -> None:
        world.sink.down = state

    def kill_scheduler() -> None:
        if world.process is not None:
            os.killpg(world.process.pid, signal.SIGKILL)

    return [
        {"name": "feed gone for two days", "week": 2, "days": 2, "feed": lambda last: (world.folder / "bars.parquet").unlink(missing_ok=True)},
        {"name": "monitor killed (-9)", "week": 3, "days": 0, "begin": lambda: world.strike("monitor", signal.SIGKILL, 0.7)},
        {"name": "cycle killed (-9)", "week": 4, "days": 0, "begin": lambda: world.strike("cycle", signal.SIGKILL, 4)},
        {"name": "feed cut off in the middle", "week": 6, "days": 1, "feed": lambda last: truncate()},
        {"name": "messages refused for ten days", "week": 7, "days": 10, "begin": lambda: down(True), "end": lambda: down(False)},
        {"name": "scheduler and its jobs killed (-9)", "week": 9, "days": 0, "begin": kill_scheduler},
        {"name": "half of the symbols missing", "week": 10, "days": 2, "feed": lambda last: feed.publish(last, SYMBOLS[:3])},
        {"name": "a product's file damaged", "week": 12, "days": 0, "begin": lambda: world.spoil("product")},
        {"name": "cycle told to stop (SIGTERM)", "week": 13, "days": 0, "begin": lambda: world.strike("cycle", signal.SIGTERM, 3)},
        {"name": "database locked for 20 s", "week": 15, "days": 0, "begin": lambda: lock_database(world, 20)},
        {"name": "yesterday's feed for three days", "week": 16, "days": 3, "feed": lambda last: None},
        {"name": "the champion's file damaged", "week": 18, "days": 0, "begin": lambda: world.spoil("champion")},
        {"name": "cycle killed (-9) again", "week": 20, "days": 0, "begin": lambda: world.strike("cycle", signal.SIGKILL, 8)},
        {"name": "feed gone for a day", "week": 21, "days": 1, "feed": lambda last: (world.folder / "bars.parquet").unlink(missing_ok=True)},
    ]


def recovered_at(world: World, after: datetime) -> str | None:
    """When the first monitor run after an instant began that succeeded."""
    found = world.query(f"SELECT min(started_at) FROM training_runs WHERE kind = 'monitor' AND status = 'success' AND started_at > '{after:%Y-%m-%d %H:%M:%S}'")
    return found[0][0] if found and found[0][0] else None


def live(world: World, feed: Feed, weeks: float, say) -> list[dict]:
    """Let time pass; returns the faults with what became of them."""
    faults, published = faults_of(world, feed), pd.Timestamp(0)
    end = world.start + timedelta(weeks=weeks)
    faults = [fault for fault in faults if fault["week"] < weeks - 0.5]
    while (now := world.now()) < end:
        world.keep_running()
        today = pd.Timestamp(now.replace(tzinfo=None) - timedelta(hours=22)).normalize()  # the bar of a day is there at 22:00 UTC
        last = feed.sessions[feed.sessions <= today].iloc[-1]
        active = [f for f in faults if "begun" in f and "ended" not in f]
        spoiler = next((f for f in active if f.get("feed")), None)
        if last > published:
            if spoiler is None:
                feed.publish(last)
            else:
                spoiler["feed"](last)
            published = last
        for fault in faults:
            due = world.start + timedelta(weeks=fault["week"])
            if "begun" not in fault and now >= due and fault.get("begin", lambda: True)() is not False:
                fault["begun"] = now
                say(f"{now:%Y-%m-%d %H:%M}  {fault['name']}")
                if fault.get("feed"):
                    fault["feed"](last)
            if "begun" in fault and "ended" not in fault and now >= fault["begun"] + timedelta(days=fault["days"]):
                fault["ended"] = now
                fault.get("end", lambda: None)()
                if fault.get("feed"):
                    feed.publish(last)
        time.sleep(0.1)
    return faults


def check(world: World, faults: list[dict], weeks: float) -> list[dict]:
    """The claims: each with `ok` and what was found."""
    began = time.monotonic()
    world.process.send_signal(signal.SIGTERM)
    try:
        world.process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(world.process.pid, signal.SIGKILL)
    stopped = time.monotonic() - began
    claims = []
    for fault in faults:
        ended = fault.get("ended") or fault.get("begun")
        back = ended and recovered_at(world, ended)
        days = None if back is None else (datetime.fromisoformat(back[:19]).replace(tzinfo=UTC) - ended).total_seconds() / 86400
        claims.append({"claim": fault["name"], "ok": days is not None and days <= 5, "found": "never struck" if ended is None else "not recovered" if days is None else f"next good day after {days:.1f} days"})
    cycles = [datetime.fromisoformat(row[0][:19]) for row in world.query("SELECT started_at FROM training_runs WHERE kind = 'cycle' AND status = 'success' ORDER BY started_at")]
    gaps = [(b - a).total_seconds() / 86400 for a, b in zip(cycles, cycles[1:], strict=False)]
    took = [(datetime.fromisoformat(b[:19]) - datetime.fromisoformat(a[:19])).total_seconds() / 86400
            for a, b in world.query("SELECT started_at, completed_at FROM training_runs WHERE kind = 'monitor' AND status = 'success'")]
    pace = statistics.median(took) if took else 0.0  # none succeeded: that is judged, and fails
    slow = "" if pace <= KEEPS_PACE else f"; not judged: a monitor run takes {24 * pace:.0f} simulated hours on this machine at this speed"
    claims.append({"claim": "cycles that succeeded", "ok": bool(slow) or len(cycles) >= 0.6 * weeks and max(gaps, default=99) <= 14,
                   "found": f"{len(cycles)} in {weeks:g} weeks, at most {max(gaps, default=float('nan')):.1f} days apart{slow}"})
    kinds = world.query("SELECT kind, status, count(*) FROM training_runs GROUP BY kind, status ORDER BY kind, status")
    claims.append({"claim": "no run left running", "ok": not any(status == "running" for _, status, _ in kinds), "found": ", ".join(f"{n} {kind} {status}" for kind, status, n in kinds)})
    spans = world.query("SELECT started_at, completed_at FROM training_runs WHERE status IN ('success', 'failed') ORDER BY started_at")
    overlaps = sum(a[1] > b[0] for a, b in zip(spans, spans[1:], strict=False))
    claims.append({"claim": "one run at a time", "ok": overlaps == 0, "found": f"{overlaps} of {len(spans)} overlap the next"})
    every = [(datetime.fromisoformat(a[:19]), b and datetime.fromisoformat(b[:19])) for a, b in world.query("SELECT started_at, completed_at FROM training_runs ORDER BY token")]
    idle = max(((after[0] - before[1]).total_seconds() / 86400 for before, after in zip(every, every[1:], strict=False) if before[1]), default=99.0)
    claims.append({"claim": "it never stands still", "ok": idle <= 5, "found": f"at most {idle:.1f} days between two runs, weekends and faults included"})
    days = len(world.query("SELECT DISTINCT as_of FROM training_runs WHERE kind = 'monitor' AND status = 'success'"))
    claims.append({"claim": "sessions looked at", "ok": bool(slow) or days >= 0.6 * 5 * weeks, "found": f"{days} of about {4.8 * weeks:.0f}{slow}"})
    events = world.query("SELECT event_name, state, trained_by FROM dynamic_events WHERE id IN (SELECT max(id) FROM dynamic_events GROUP BY event_name)")
    crash = [row for row in events if row[0].startswith("dynamic_2020")]
    claims.append({"claim": "the crash of 2020 is found", "ok": bool(crash) or weeks < 5, "found": ", ".join(f"{name} {state}" for name, state, _ in events) or "no event"})
    if weeks >= 26 and not slow:
        claims.append({"claim": "and a model has learned from it", "ok": any(row[1] == "trained" for row in crash), "found": ", ".join(str(row[2]) for row in crash)})
    waiting = world.query("SELECT count(*) FROM outbox WHERE sent_at IS NULL")[0][0]
    sent = world.query("SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL")[0][0]
    claims.append({"claim": "messages delivered", "ok": sent > 0 and waiting <= 3 and len(world.sink.got) >= sent, "found": f"{sent} sent, {waiting} wait, {len(world.sink.got)} came in"})
    done = subprocess.run([*COMMAND, "verify", "--json"], env=world.environment(False), cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)["faults"] if done.stdout else [done.stderr[-300:]]
    strange = [fault for fault in found if not any(sha[:12] in fault for sha in world.spoilt)]
    champions = [row[0] for row in world.query("SELECT name FROM alias_moves ORDER BY id")]
    claims.append({"claim": "a champion serves", "ok": bool(champions), "found": ", ".join(champions)})
    claims.append({"claim": "verify", "ok": not strange, "found": f"{len(found) - len(strange)} name the {len(world.spoilt)} files spoilt for good, {len(strange)} others: {strange[:2]}"})
    claims.append({"claim": "the scheduler stops when told", "ok": stopped < 10, "found": f"{stopped:.1f} s; it was started {world.starts} times"})
    return claims


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weeks", type=float, default=26)
    parser.add_argument("--speed", type=float, default=7200)
    parser.add_argument("--folder", type=Path, help="where to work and leave everything; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    library = next((path for path in LIBRARIES if Path(path).is_file()), None)
    if library is None:
        print("libfaketime is not installed; the docstring says how.", file=sys.stderr)
        return 2
    folder = options.folder or Path(tempfile.mkdtemp(prefix="unattended-"))
    folder.mkdir(parents=True, exist_ok=True)
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if options.json else (lambda text: print(text, flush=True))
    say(f"Everything is in {folder}")
    feed = Feed(folder, SYMBOLS)
    feed.publish(pd.Timestamp("2020-01-31"))
    world = World(folder, datetime(2020, 2, 3, 12, tzinfo=UTC), options.speed, library)
    faults = live(world, feed, options.weeks, say)
    claims = check(world, faults, options.weeks)
    if options.json:
        print(json.dumps({"weeks": options.weeks, "speed": options.speed, "claims": claims}, indent=1))
    else:
        for claim in claims:
            print(f"{'ok ' if claim['ok'] else 'NO '} {claim['claim']:<36} {claim['found']}")
    return 0 if all(claim["ok"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
