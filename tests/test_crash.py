"""Killed at any instant, with a disk that fails at any write, eight at once, or waking up too late: the champion serves, and the next cycle mends it.

The cycles run without kernels on a made-up panel (`crash.py` says how); `benchmarks/chaos.py` does the same many times more, and
what takes long: kernels, full disks, whole loops. Cycles through notebooks that are killed are in `test_cycle.py`. Most is shown on SQLite; what depends on the
database (kills around commits, races, who wakes up too late, readers) also on a PostgreSQL server, whose results must be those of SQLite.
"""
import ast
import errno
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import crash
import pytest
from conftest import ROOT

from mltrader import orchestrator, predict, reports
from mltrader import store as db
from mltrader.artifacts import ArtifactStore
from mltrader.core import FAIL_POINTS, Clock, ConfigError, IntegrityError, LeaseError, failpoint
from mltrader.store import Store

KILLS = 30
OFTEN = ("write:before", "flush:before", "rename:before", "rename:after", "commit:before", "commit:after", "files:after", "product:before", "product:after")


@pytest.fixture(scope="module")
def stage():
    """On a file system in memory, if there is one: kill -9 leaves what was written to the kernel, so that slow flushes would prove nothing more."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30 else None))
    made = crash.Stage(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


class Elsewhere:
    """The stage, with the stores of its homes on a PostgreSQL server."""

    def __init__(self, stage: crash.Stage, postgres) -> None:
        self.stage, self.postgres, self.moved = stage, postgres, {}

    def __getattr__(self, name: str):
        return getattr(self.stage, name)

    def home(self, source: str = "base") -> Path:
        """A home as the stage's, its store moved to the server."""
        home = self.stage.home(source)
        if source not in self.moved:
            self.moved[source] = self.postgres.database(like=None)
            held = crash.store_of(home)
            db.copy_store(held, self.moved[source])
            held.engine.dispose()
        for path in home.glob("mltrader.db*"):
            path.unlink()
        (home / "database").write_text(self.postgres.database(like=db.sa.make_url(self.moved[source]).database))
        return home


@pytest.fixture(scope="module")
def elsewhere(stage, postgres):
    return Elsewhere(stage, postgres)


def mended(stage, home: Path, killed: bool = True) -> dict:
    """What the next cycle leaves: the results of an unbroken one, one promotion, no run that hangs; the fault is on record."""
    before = crash.state(home)["runs"]
    if len(before) == 2 and before[0]["status"] == "success":  # killed when all was done: the next cycle is another one, with nothing to mend
        assert before[0]["results_digest"] == stage.whole["results"] and stage.run(home)[0] == 0 and crash.faults(home) == []
        return crash.state(home)
    code, told = stage.run(home)
    after = crash.state(home)
    assert code == 0 and told["results"] == stage.whole["results"] and told["computed"] == [], told
    assert crash.faults(home) == [] and crash.left_over(home) == []
    assert (after["champion"]["name"], after["moves"], after["lease"]["holder"]) == ("production_v2", 2, None)
    assert after["runs"][0]["status"] == "success" and after["runs"][0]["promoted"] and "running" not in [run["status"] for run in after["runs"]]
    if killed and len(before) == 2 and before[0]["status"] == "running":
        assert after["runs"][1]["id"] == before[0]["id"] and after["runs"][1]["status"] == "lost" and "without a word" in after["runs"][1]["error_message"]
    return after


def broken(home: Path) -> dict:
    """What a killed cycle leaves: nothing inconsistent, and a champion; returns the state."""
    found = crash.state(home)
    assert crash.faults(home) == [] and found["champion"]["name"] in ("production_v1", "production_v2")
    return found


def serves(home: Path, monkeypatch) -> None:
    """The champion in force answers, from whatever products there are."""
    monkeypatch.setenv("MLTRADER_HOME", str(home))
    made = predict.predict(crash.store_of(home))
    assert made.name == crash.state(home)["champion"]["name"] and len(made.frame) == 6
    monkeypatch.undo()


def tasks_of(home: Path, run: dict | None) -> int:
    """How many tasks of a run are on record."""
    with crash.store_of(home).read() as conn:
        return len(db.tasks_of(conn, run["id"])) if run else 0


# --- kill -9 ---------------------------------------------------------------------------------------------------------

def test_killed_at_random_moments(stage, monkeypatch, record_property):
    """30 cycles that end in a promotion, each killed at a moment of its own between its first and its last."""
    whole = stage.home()
    length, draw, log = stage.run(whole)[1]["seconds"], random.Random(6), []
    for number in range(KILLS):
        home = stage.home()
        pid, moment = stage.start(home), (number + draw.random()) / KILLS * length * 0.95
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        code, found = stage.wait(pid), broken(home)
        length = min(length, moment) if code == 0 else length  # it had ended by then: the first cycle, by which it was measured, was a slow one
        run = found["runs"][0] if len(found["runs"]) == 2 else None
        log.append({"at": round(moment, 3), "code": code, "status": run and run["status"], "promoted": bool(run and run["promoted"]),
                    "tasks": tasks_of(home, run)})
        if number % 10 == 5:
            serves(home, monkeypatch)
        mended(stage, home)
        shutil.rmtree(home)
    record_property("kills", log)
    between = [kill for kill in log if kill["status"] == "running"]  # after the first durable write (lease and run), before the end was committed
    print(f"{KILLS} kills in a cycle of {length:.2f} s, {len(between)} between first durable write and last commit, {sum(k['promoted'] for k in between)} of these after the promotion:")
    print(json.dumps(log))
    assert len(between) >= 20, log


@pytest.mark.parametrize("name", FAIL_POINTS)
def test_killed_at_each_fail_point(stage, name):
    home, draw = stage.home(), random.Random(name)
    number = draw.randint(1, 16) if name in OFTEN else 1
    code, _ = stage.run(home, f"{name}#{number}")
    found = broken(home)
    assert code == -signal.SIGKILL
    if name == "promote:after":
        assert found["champion"]["name"] == "production_v2" and found["runs"][0]["promoted"]  # on record, though its run is not at its end
    mended(stage, home)
    shutil.rmtree(home)


def test_each_fail_point_is_passed_in_a_cycle_and_none_is_missing(stage):
    """The list has neither dead names nor gaps: what the modules call is what it says, and a cycle comes by all of it."""
    called = set()
    for path in (ROOT / "mltrader").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint":
                called.add(node.args[0].value)
    code, told = stage.run(stage.home())
    assert called == set(FAIL_POINTS) == set(told["passed"]) and code == 0
    assert told["passed"]["write:before"] > 50 and told["passed"]["commit:after"] > 30


def test_without_memory_the_results_are_the_same(stage):
    """What the stage remembers is what is computed: a killed cycle is mended by one that fits its folds and does all the rest for real."""
    home = stage.home()
    shutil.rmtree(home / "folds")
    assert stage.run(home, "product:before#12")[0] == -signal.SIGKILL
    code, told = stage.run(home, real=True)
    assert code == 0 and told["results"] == stage.whole["results"] and len(told["computed"]) == 16
    assert crash.faults(home) == [] and crash.left_over(home) == []


def test_killed_twice_on_the_way_and_once_after_the_promotion(stage):
    """A run that repeats a run that repeats a run: one promotion, one look, the same results."""
    home = stage.home()
    for point in ("promote:after", "promote:after", "manifest:after"):
        assert stage.run(home, point)[0] == -signal.SIGKILL
        broken(home)
    after = mended(stage, home)
    assert [run["status"] for run in after["runs"]] == ["success", "lost", "lost", "lost", "success"]
    with crash.store_of(home).read() as conn:
        assert db.count_trials(conn) == 2 and {db.gate_row(conn, run["id"])["look"] for run in after["runs"][:4]} == {1}


def test_a_crash_that_did_leave_something_is_seen(stage):
    """Red team: the promotion torn in two. The alias has moved, but its run and gate row are gone: `faults` must say so, and the digest too."""
    home = stage.home("whole")
    with crash.store_of(home).write() as conn:
        conn.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        conn.execute(db.training_runs.update().where(db.training_runs.c.promoted.is_(True)).values(manifest_digest=None))
    assert len(crash.faults(home)) == 2
    home = stage.home()
    with crash.store_of(home).write() as conn:
        db.record_trial(conn, None or crash.state(home)["runs"][0]["id"], "another", datetime(2021, 1, 1, tzinfo=UTC).date(), "data", 0.5)
    assert stage.run(home)[1]["computed"] != []


# --- the same on a server --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("point", ["lease:after", "commit:before#12", "alias:after", "promote:after", "close:after"])
def test_killed_with_the_store_on_a_server(elsewhere, point):
    home = elsewhere.home()
    assert elsewhere.run(home, point)[0] == -signal.SIGKILL
    found = broken(home)
    assert found["champion"]["name"] == ("production_v2" if point in ("promote:after", "close:after") else "production_v1")
    mended(elsewhere, home)


def test_a_history_on_a_server_is_that_of_sqlite(elsewhere, monkeypatch):
    """From the first cycle on: the results, to the last digit, and all that a task is given; then back to the first champion, and all of it verifies."""
    home = elsewhere.empty_home(elsewhere.postgres.database())
    for day, results in zip(crash.DAYS, (elsewhere.whole["first"], elsewhere.whole["results"]), strict=True):
        code, told = elsewhere.run(home, day=day)
        assert code == 0 and told["results"] == results and told["computed"] in ([], ["archive"]), told  # its manifest names the runs that cut the samples
    serves(home, monkeypatch)
    for name, value in (("HOME", home), ("RUN__REPORTS", home / "reports"), ("DATABASE_URL", crash.url_of(home))):
        monkeypatch.setenv(f"MLTRADER_{name}", str(value))
    assert orchestrator.roll_back(crash.store_of(home), crash.settings_of(elsewhere.folder, crash.DAYS[1])) == "production_v1"
    found = crash.state(home)
    assert found["champion"]["name"] == "production_v1" and [run["kind"] for run in found["runs"]] == ["rollback", "cycle", "cycle"] and crash.faults(home) == []


def test_two_machines_share_a_server_and_a_bucket(elsewhere, bucket, monkeypatch):
    """The first has made the champion; the second, whose home is empty, makes the next one from what it finds there."""
    url, place = elsewhere.postgres.database(), {"MLTRADER_ARTIFACTS": "s3://payloads/two", **{name: value for name, value in os.environ.items() if name.startswith("AWS_")}}
    one, two = elsewhere.empty_home(url), elsewhere.empty_home(url)
    (one / "reports").mkdir()
    (two / "reports").symlink_to(one / "reports")
    assert elsewhere.run(one, day=crash.DAYS[0], env=place)[1]["results"] == elsewhere.whole["first"]
    code, told = elsewhere.run(two, env=place)
    assert code == 0 and told["results"] == elsewhere.whole["results"] and told["computed"] in ([], ["archive"])
    for name, value in (("MLTRADER_HOME", str(two)), ("MLTRADER_ARTIFACTS", place["MLTRADER_ARTIFACTS"])):
        monkeypatch.setenv(name, value)
    assert crash.faults(two) == [] and [run["status"] for run in crash.state(two)["runs"]] == ["success", "success"]


# --- a disk that fails -----------------------------------------------------------------------------------------------

def test_the_nth_write_fails(stage):
    """Of the durable steps of a cycle every 61st, until one goes through; `benchmarks/chaos.py` fails every one, with both errors."""
    total = sum(stage.run(stage.home())[1]["passed"].values())
    for number in [*range(11, total, 61), total + 1]:
        home, name = stage.home(), "ENOSPC" if number % 2 else "EIO"
        code, told = stage.run(home, f"*#{number}={name}")
        broken(home)
        assert crash.left_over(home) == [] and (code == 0) == (number > total)
        if code:
            assert os.strerror(getattr(errno, name)) in told["error"] and str(home) in told["error"], (number, told)
            if number % 3 == 0:
                mended(stage, home, killed=False)
        shutil.rmtree(home)


@pytest.mark.parametrize("point", FAIL_POINTS)
def test_a_failing_disk_at_each_step_is_named(stage, point):
    """EIO at each fail-point: the error says which file, nothing half-written stays, the invariants hold."""
    home = stage.home()
    code, told = stage.run(home, f"{point}=EIO")
    broken(home)
    assert code == 1 and "Input/output error" in told["error"] and str(home) in told["error"], told
    assert crash.left_over(home) == []
    shutil.rmtree(home)


def test_a_full_database_is_one_error(tmp_path):
    """SQLite's own limit on pages, raised one by one: each transaction happens, or leaves nothing; the message names the file."""
    store, refused = Store(f"sqlite:///{tmp_path}/t.db"), 0
    with store.write() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar()

    @db.sa.event.listens_for(store.engine, "connect")
    def limit(connection, _):
        connection.execute(f"PRAGMA max_page_count={pages + 40}")

    store.engine.dispose()
    for number in range(400):
        try:
            with store.write() as conn:
                db.start_run(conn, f"r{number}", "cycle", "t", number, {"text": "x" * 2000}, "d", Clock())
                db.record_task(conn, f"r{number}", "market", "ran", outputs={"text": "y" * 2000})
        except IntegrityError as error:
            assert "disk is full" in str(error) and "t.db" in str(error)
            refused += 1
    with store.read() as conn:
        assert conn.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok" and conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall() == []
        kept = db.runs(conn)
        assert all(db.tasks_of(conn, run["id"]) for run in kept) and len(kept) + refused == 400 and refused > 300


# --- several at once, and too late -----------------------------------------------------------------------------------

def a_race(stage) -> None:
    """Eight orchestrators begin at the same moment."""
    home = stage.home()
    at = time.monotonic() + 0.2
    children = [stage.start(home, at=at, linger=1.0) for _ in range(8)]
    codes = [stage.wait(pid) for pid in children]
    assert sorted(codes) == [0] + [75] * 7, [stage.told(home, pid) for pid in children]
    winner = stage.told(home, children[codes.index(0)])
    assert all("is in progress (process " in stage.told(home, pid)["error"] for pid, code in zip(children, codes, strict=True) if code)
    assert winner["results"] == stage.whole["results"] and broken(home)["runs"][0]["status"] == "success"
    shutil.rmtree(home)


def test_of_eight_at_once_one_runs(stage):
    for _ in range(2):
        a_race(stage)


def test_of_eight_at_once_one_runs_on_a_server(elsewhere):
    a_race(elsewhere)


def stopped(pid: int) -> None:
    """Wait until a process is stopped."""
    for _ in range(600):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.05)
    raise AssertionError("it did not stop")


def wakes_up_too_late(stage, point: str) -> None:
    """A cycle stopped at `point`, taken over after its lease ran out, and let go again: nothing of it appears any more."""
    home = stage.home()
    late = stage.start(home, f"{point}=STOP")
    stopped(late)
    code, told = stage.run(home)
    assert code == 75 and "is in progress" in told["error"]  # stopped is not dead: nobody takes its lease before it ran out
    with crash.store_of(home).write() as conn:
        conn.execute(db.leases.update().values(expires_at=datetime(2000, 1, 1, tzinfo=UTC)))
    after = mended(stage, home)
    products = {path: path.read_bytes() for path in home.glob("products/*/outputs.json")}
    os.kill(late, signal.SIGCONT)
    assert stage.wait(late) == 75 and "was taken over" in stage.told(home, late)["error"]
    assert {path: path.read_bytes() for path in products} == products and crash.faults(home) == []
    assert [(run["id"], run["status"]) for run in crash.state(home)["runs"]] == [(run["id"], run["status"]) for run in after["runs"]]
    shutil.rmtree(home)


@pytest.mark.parametrize("point", ["files:after#9", "product:before#9", "promote:before", "manifest:before"])
def test_who_wakes_up_too_late_is_refused(stage, point):
    wakes_up_too_late(stage, point)


def test_who_wakes_up_too_late_is_refused_by_a_server(elsewhere):
    wakes_up_too_late(elsewhere, "promote:before")


@pytest.mark.parametrize("where", ["in a task", "between two"])
def test_a_terminated_cycle_says_so(stage, where):
    home = stage.home()
    pid = stage.start(home, **{"slow" if where == "in a task" else "linger": 30.0})
    for _ in range(200):
        if (home / "products" / "market" / "outputs.json").read_bytes() != (stage.folder / "base" / "products" / "market" / "outputs.json").read_bytes():
            break
        time.sleep(0.05)
    time.sleep(0.2)
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert stage.wait(pid) == 130 and time.monotonic() - began < 10
    found = broken(home)
    assert (found["runs"][0]["status"], found["lease"]["holder"]) == ("interrupted", None)
    mended(stage, home)


# --- leases and clocks -----------------------------------------------------------------------------------------------

@pytest.fixture
def leased(database):
    """A lease of 60 seconds that this process holds."""
    store = Store(database)
    with store.write() as conn:
        db.take_lease(conn, "a", 60, Clock())
        db.start_run(conn, "a", "cycle", "t", 1, {}, "d", Clock())
    return store


def taken(store: Store, clock: Clock | None = None, **row) -> bool:
    """Whether another may take the lease, if its row were so; nothing is changed."""
    class Undo(Exception):
        pass

    try:
        with store.write() as conn:
            if row:
                conn.execute(db.leases.update().values(**row))
            db.take_lease(conn, "b", 60, clock or Clock())
            lost = db.reap_lost_runs(conn, clock or Clock())
            assert lost == ["a"]
            raise Undo
    except Undo:
        return True
    except LeaseError as error:
        assert "Run a is in progress" in str(error)
        return False


def test_only_a_provably_dead_holder_loses_its_lease_at_once(leased):
    with leased.read() as conn:
        boot, space, start = db.current_lease(conn)["process"].split()
    child = os.fork()
    if child == 0:
        os._exit(0)
    time.sleep(0.05)
    assert not taken(leased)
    assert taken(leased, process=f"{boot} {space} {int(start) - 1}")  # our process id, given away again
    assert taken(leased, pid=child)  # it has ended, though nobody has reaped it
    os.waitpid(child, 0)
    assert taken(leased, pid=child)  # there is no such process
    for elsewhere in (f"{boot[::-1]} {space} {start}", f"{boot} pid:[1] {start}", None):  # another machine or boot, another container, unknown
        assert not taken(leased, pid=child, process=elsewhere)
        assert taken(leased, pid=child, process=elsewhere, expires_at=datetime(2000, 1, 1, tzinfo=UTC))
    assert not taken(leased, pid=child, host="another")  # even where all else is the same, as in copies of one virtual machine


class Set(Clock):
    """A clock that somebody has set, while the machine went on."""

    def now(self):
        return self.fixed

    def steady(self):
        return time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize("hours", [-24 * 366, -1, 1, 24 * 366])
def test_a_clock_that_is_set_neither_ends_a_lease_nor_prolongs_it(leased, hours):
    with leased.read() as conn:
        beat = db.current_lease(conn)["beat"]
    other = Set(Clock().after(hours=hours))
    assert not taken(leased, other) and not taken(leased, other, beat=beat - 55)
    assert taken(leased, other, beat=beat - 61)  # as if it had been taken a minute earlier


@pytest.mark.parametrize("moment", ["2024-03-10T06:59:30", "2024-11-03T05:59:30", "2024-02-29T23:59:30", "2024-12-31T23:59:30"])
@pytest.mark.parametrize("zone", ["America/New_York", "Pacific/Kiritimati"])
def test_summer_time_and_leap_days_change_no_lease_and_no_order(tmp_path, monkeypatch, moment, zone):
    """All times are UTC: a minute is a minute, also when the wall clock jumps by an hour in it."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        start, store = Clock(datetime.fromisoformat(moment).replace(tzinfo=UTC)), Store(f"sqlite:///{tmp_path}/t.db")
        with store.write() as conn:
            db.take_lease(conn, "a", 60, start)
            db.start_run(conn, "a", "cycle", "t", 1, {}, "d", start)
        assert not taken(store, Clock(start.after(seconds=59))) and taken(store, Clock(start.after(seconds=61)))
        with store.write() as conn:
            db.start_run(conn, "b", "cycle", "t", 2, {}, "d", Clock(start.after(hours=-1)))  # the clock was set back in between
            assert [run["id"] for run in db.runs(conn)] == ["b", "a"]
    finally:
        monkeypatch.undo()
        time.tzset()


# --- files ----------------------------------------------------------------------------------------------------------

def opened_by(path: Path, home: Path) -> Exception | None:
    """The error on reading a file of a home as its readers do; None if it is taken for whole."""
    files = ArtifactStore(home / "artifacts")
    try:
        if path.name == "outputs.json":
            reports.read_outputs(path)
        elif path.name == "manifest.json":
            reports.read_manifest(path)
        else:
            files.get({"sha256": path.name, "kind": "frame"})
    except IntegrityError as error:
        return error
    return None


def a_home_to_spoil(stage) -> tuple[Path, list[list[Path]]]:
    """A home after two cycles, and its files by kind: models, other artifacts, product files, manifests."""
    home = stage.folder / "flipped"
    shutil.copytree(stage.folder / "whole", home)
    with crash.store_of(home).read() as conn:
        components = [entry["sha256"] for entry in db.alias_target(conn, "champion")["manifest"]["components"].values()]
    models = [home / "artifacts" / sha[:2] / sha for sha in components]
    kinds = [models, [path for path in home.glob("artifacts/*/*") if path not in models], [*home.glob("products/*/outputs.json")], [*home.glob("reports/*/manifest.json")]]
    assert all(kinds) and all(opened_by(path, home) is None for path in [*kinds[2], *kinds[3]])
    return home, [sorted(paths) for paths in kinds]


def flip(draw: random.Random, paths: list[Path], home: Path) -> None:
    """Change a random byte of a random one of `paths`: it must be found, by name, and no parser see it."""
    path, parsed = draw.choice(paths), []
    whole = path.read_bytes()
    at = draw.randrange(len(whole))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ draw.randrange(1, 256)]) + whole[at + 1:])
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (("mltrader.artifacts", "decode"), ("json", "loads")):
            patch.setattr(f"{module}.{name}", lambda *a, **k: parsed.append(1))
        error = opened_by(path, home)
    path.write_bytes(whole)
    assert error is not None and path.name in str(error) and not parsed, (path, at)


def test_flipped_bytes_are_found_before_anything_is_parsed(stage):
    """300 random flips in artifacts, models, product files and manifests; each kind has its share."""
    home, kinds = a_home_to_spoil(stage)
    draw = random.Random(15)
    for number in range(300):
        flip(draw, kinds[number % 4], home)


def read_while_promoting(stage, times: int, readers: int) -> None:
    """Processes ask for the champion while another promotes: its name never goes back, its files are whole, no error."""
    home = stage.home("whole")
    asking = [stage.ask(do="start", home=str(home), act="read", until=str(home / "stop"), env={}) for _ in range(readers)]
    writer = stage.ask(do="start", home=str(home), act="promote", times=times, env={})
    assert stage.wait(writer) == 0, (home / f"log_{writer}").read_text()
    (home / "stop").touch()
    for pid in asking:
        assert stage.wait(pid) == 0, (home / f"log_{pid}").read_text()
        told = stage.told(home, pid)
        numbers = [int(name.removeprefix("production_v")) for name in told["names"]]
        assert numbers == sorted(set(numbers)) and len(numbers) > 5 and told["asked"] > times and told["faults"] == [], told
    assert crash.state(home)["champion"]["name"] == f"production_v{times + 2}"
    shutil.rmtree(home)


def test_readers_see_the_old_champion_or_the_new_one(stage):
    read_while_promoting(stage, times=120, readers=2)


def test_readers_of_a_server_see_the_old_champion_or_the_new_one(elsewhere):
    read_while_promoting(elsewhere, times=40, readers=2)


# --- kernels ---------------------------------------------------------------------------------------------------------

def notebook_task(folder: Path, source: str):
    """A Ploomber task of one cell, its product from an earlier run in place."""
    import nbformat
    from ploomber import DAG
    from ploomber.products import File
    from ploomber.tasks import NotebookRunner

    path = folder / "one.ipynb"
    cells = [nbformat.v4.new_code_cell("upstream = None\nproduct = None", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("print('so far')"), nbformat.v4.new_code_cell(source)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(notebook, path)
    product = {"nb": File(folder / "out.ipynb"), "out": File(folder / "outputs.json")}
    dag = DAG()
    (folder / "out.ipynb").write_text("the last good one")
    task = NotebookRunner(path, product, dag, name="one", nb_product_key="nb", static_analysis="disable",
                          executor_params={"progress_bar": False, "log_output": False})
    dag.render()
    return task


@pytest.mark.parametrize(("source", "seconds", "words"), [
    ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", 60, "[Dd]ied"), ("import time\ntime.sleep(600)", 2, "[Tt]imed out|Timeout")])
def test_a_kernel_that_dies_or_hangs_leaves_its_partial_notebook(tmp_path, source, seconds, words):
    """One that raises: `test_cycle.py`."""
    from mltrader import orchestrator

    task = notebook_task(tmp_path, source)
    with pytest.raises(Exception) as caught:
        orchestrator._execute(task, seconds)
    assert re.search(words, orchestrator.papermill_error(caught.value)[0]), orchestrator.papermill_error(caught.value)
    assert (tmp_path / "out.ipynb").read_text() == "the last good one"
    assert "so far" in (tmp_path / "out.FAILED.ipynb").read_text()


def test_a_fail_point_that_is_none_is_refused(monkeypatch):
    for wrong in ("lunch", "write:before#x", "write:before=LUNCH"):
        monkeypatch.setenv("MLTRADER_FAILPOINT", wrong)
        with pytest.raises(ConfigError, match="is no NAME"):
            failpoint("commit:after")
