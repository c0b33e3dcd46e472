"""Several machines and one store: who may write, what readers see, whose clock counts, and what a move to another database leaves.

What both databases promise is asked of both. The same for tables, rows and decisions is in `test_store.py`, for kills and races of whole cycles in `test_crash.py`.
"""
import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from datetime import date, timedelta

import pytest
import sqlalchemy as sa
from conftest import ROOT
from typer.testing import CliRunner

from mltrader import cli, dashboard, notify, orchestrator
from mltrader import store as db
from mltrader.config import Settings
from mltrader.core import Clock, ConfigError, IntegrityError, LeaseError
from mltrader.store import Store

DAY = date(2024, 1, 2)


@pytest.fixture
def store(database):
    made = Store(database, patience=20)
    yield made
    made.close()


@pytest.fixture
def on_server(postgres):
    url = postgres.database()
    made = Store(url)
    yield made
    made.close()
    postgres.drop(url)


def another(store: Store, **more) -> Store:
    """The same store, as another machine opens it."""
    return Store(store.url.render_as_string(hide_password=False), create=False, **more)


def begin(store: Store, run_id: str, seconds: float = 60, clock: Clock | None = None) -> int:
    with store.write() as conn:
        token = db.take_lease(conn, run_id, seconds, clock or Clock())
        db.start_run(conn, run_id, "cycle", "test", token, {}, "d", clock or Clock())
    return token


# --- writers and readers ---------------------------------------------------------------------------------------------

def test_no_update_is_lost(store):
    """Four who read a number, think, and write the next one: the lock is taken before the reading. Without it, or with an older snapshot, some would write the same."""
    with store.write() as conn:
        conn.execute(db.leases.insert().values(name="n", token=0))

    def count():
        mine = another(store, patience=20)
        for _ in range(10):
            with mine.write() as conn:
                seen = conn.execute(sa.select(db.leases.c.token).where(db.leases.c.name == "n")).scalar_one()
                time.sleep(0.001)
                conn.execute(db.leases.update().where(db.leases.c.name == "n").values(token=seen + 1))
        mine.close()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    with store.read() as conn:
        assert conn.execute(sa.select(db.leases.c.token).where(db.leases.c.name == "n")).scalar_one() == 40


def test_readers_and_the_writer_do_not_wait_for_each_other(store):
    """A reader sees one moment to its end, before, while and after somebody writes; neither waits. And what it would write, a server refuses."""
    writer = another(store, patience=3)
    begin(store, "a")
    with store.read() as old:
        assert [run["id"] for run in db.runs(old)] == ["a"]
        with writer.write() as conn:
            db.start_run(conn, "b", "cycle", "test", 0, {}, "d", Clock())
            with another(store).read() as third:
                assert len(db.runs(third)) == 1  # not yet there
        assert len(db.runs(old)) == 1 and db.count_rows(old)["training_runs"] == 1
    with store.read() as new:
        assert len(db.runs(new)) == 2
        if new.dialect.name == "postgresql":
            with pytest.raises(sa.exc.DBAPIError, match="read-only"):
                new.execute(db.leases.delete())


def test_a_writer_that_waits_too_long_says_so(store):
    other = another(store, patience=0.1)
    with store.write():
        began = time.monotonic()
        with pytest.raises(IntegrityError, match=r"cannot be used: .*lock"), other.write():
            pass
        assert time.monotonic() - began < 5


def test_a_writer_that_falls_silent_does_not_keep_the_others_out(on_server, monkeypatch):
    """A machine that stops in the middle of a transaction: the server ends it, and its commit is refused. (A file's lock ends with its process.)"""
    monkeypatch.setattr(db, "SILENCE", 0.2)
    with pytest.raises(IntegrityError, match="cannot be used"), on_server.write() as conn:
        db.start_run(conn, "silent", "cycle", "test", 0, {}, "d", Clock())
        time.sleep(0.5)
        begin(another(on_server, patience=2), "other")
        db.set_as_of(conn, "silent", DAY)
    with on_server.read() as conn:
        assert [run["id"] for run in db.runs(conn)] == ["other"]


def test_a_server_that_was_restarted_is_connected_to_again(on_server, postgres):
    begin(on_server, "a")
    postgres.say(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{on_server.url.database}'")
    with on_server.read() as conn:
        assert len(db.runs(conn)) == 1


def test_texts_sort_by_their_bytes_and_times_are_utc(on_server):
    """The server of the tests lives in another zone and begins transactions at another level: neither shows."""
    with on_server.write() as conn:
        columns = conn.exec_driver_sql("SELECT table_name, column_name, collation_name FROM information_schema.columns WHERE table_schema = 'public' AND data_type = 'character varying'").all()
        assert len(columns) > 100 and {row[2] for row in columns} == {"C"}
        assert conn.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed" and conn.exec_driver_sql("SHOW default_transaction_isolation").scalar() == "serializable"
    begin(on_server, "a")
    with on_server.read() as conn:
        assert conn.exec_driver_sql("SHOW transaction_isolation").scalar() == "repeatable read"
        assert conn.execute(sa.select(db.training_runs.c.started_at)).scalar_one().utcoffset() == timedelta(0)


# --- whose clock, whose process --------------------------------------------------------------------------------------

@contextmanager
def a_clock_that_is_wrong(monkeypatch, hours: float):
    """All clocks of this process are wrong by so much, as those of another machine may be."""
    with monkeypatch.context() as patch:
        right = Clock.now
        patch.setattr(Clock, "now", lambda self: right(self) + timedelta(hours=hours))
        yield


@pytest.mark.parametrize("hours", [-1, 1])
def test_machines_whose_clocks_disagree_agree_on_the_lease(on_server, monkeypatch, hours):
    """The server's clock counts; what is shown to each is in its own time. Whose process it was, is not believed of another host."""
    token = begin(on_server, "a", seconds=60)
    with on_server.write() as conn:
        conn.execute(db.leases.update().values(host="another", pid=2**22 + 1))  # no such process here; and if it were, not ours
    there = another(on_server)
    with a_clock_that_is_wrong(monkeypatch, hours):
        with there.read() as conn:
            seen = db.current_lease(conn)
            assert seen["holder"] == "a" and 50 < (seen["expires_at"] - Clock().now()).total_seconds() <= 60
        with pytest.raises(LeaseError, match="Run a is in progress"):
            begin(there, "b")
        assert orchestrator.TrainingOrchestrator(there, settings=Settings()).should_run_training() == (False, "already running: a")
        with there.write() as conn:
            assert db.reap_lost_runs(conn, Clock()) == []
            conn.execute(db.leases.update().values(expires_at=sa.func.clock_timestamp() - sa.text("interval '1 second'")))
        assert begin(there, "b", seconds=60) == token + 1
    with on_server.write() as conn:
        assert db.current_lease(conn)["holder"] == "b" and abs((db.now(conn, Clock()) - Clock().now()).total_seconds()) < 30
        assert [run["id"] for run in db.runs(conn)] == ["b", "a"] and abs((db.runs(conn)[0]["started_at"] - Clock().now()).total_seconds()) < 30
        assert not db.renew_lease(conn, token, 60, Clock())
        with pytest.raises(LeaseError, match="taken over"):
            db.check_token(conn, token)


def test_a_simulated_clock_is_the_only_one(on_server):
    then = Clock(Clock().now() - timedelta(days=3000))
    begin(on_server, "a", seconds=60, clock=then)
    with on_server.write() as conn:
        assert db.runs(conn)[0]["started_at"] == then.now() == db.now(conn, then)
        assert db.current_lease(conn, then)["expires_at"] == then.after(seconds=60)


def test_a_message_is_due_for_all_machines_at_once(on_server, monkeypatch):
    """Put by one whose clock is fast, sent by another: not an hour late, and not twice."""
    row = {"kind": "test", "severity": "info", "title": "t", "body": "b", "channel": "log", "dedup_key": "k"}
    with a_clock_that_is_wrong(monkeypatch, 1), on_server.write() as conn:
        assert db.add_message(conn, row, Clock()) and not db.add_message(conn, row, Clock())
    with on_server.read() as conn:
        assert len(db.messages(conn, due=db.now(conn, Clock()))) == 1
    notify.deliver(another(on_server), Settings())
    with on_server.read() as conn:
        assert db.messages(conn)[0]["attempts"] == 1


def test_who_waited_for_the_lock_sees_who_took_over(store):
    """A stale writer that checked nothing yet when its successor wrote: its own transaction begins after that, and its token is refused."""
    late, successor = begin(store, "a", seconds=0), another(store)
    refused = []

    def write_late():
        with pytest.raises(LeaseError, match="taken over"), store.write() as conn:
            db.check_token(conn, late)
            db.finish_run(conn, "a", "success", Clock())
        refused.append(True)

    thread = threading.Thread(target=write_late)
    with successor.write() as conn:
        conn.execute(db.leases.update().values(expires_at=Clock().after(days=-1), process=None))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()  # it waits
        db.take_lease(conn, "b", 60, Clock())
    thread.join(timeout=60)
    assert refused
    with store.read() as conn:
        assert db.runs(conn, run_id="a")[0]["status"] == "running"


def test_the_dashboard_reads_a_server_and_records_what_is_pressed(on_server, postgres):
    begin(on_server, "a")
    source = dashboard.Source(Settings(), url=on_server.url.render_as_string(hide_password=False))
    assert source.exists and source.read(db.runs)[0]["id"] == "a" and source.read(db.current_lease, source.clock)["holder"] == "a"
    with pytest.raises(IntegrityError, match="read-only"):
        source.read(lambda conn: conn.execute(db.leases.delete()))
    before = source.key()
    row = dashboard.record(source, "cycle", {}, "test")
    dashboard.settle(source, row, "done", "it ran", "a")
    assert source.read(db.actions)[0]["outcome"] == "done" and source.key() != before
    assert not dashboard.Source(Settings(), url=postgres.database(like=None)).exists


# --- errors ----------------------------------------------------------------------------------------------------------

def test_what_cannot_be_opened_is_one_error_without_secrets(postgres):
    for url, kind, words in (("postgresql+psycopg://me:hunter2@127.0.0.1:1/none?connect_timeout=2", IntegrityError, "refused|cannot be used"),
                             ("postgresql+psycopg://127.0.0.1:1/none?connect_timeout=2&user=me&password=hunter2", IntegrityError, "cannot be used"),
                             ("postgresql+psycopg://me:hunter2@host:port/none", ConfigError, "no SQLAlchemy URL"), ("mysql+pymysql://me:hunter2@host/none", ConfigError, "not with mysql"),
                             ("postgresql+psycopg2://me:hunter2@host/none", ConfigError, "postgresql\\+psycopg"), (postgres.database(like=None), ConfigError, "There is no store")):
        with pytest.raises(kind, match=words) as caught:
            Store(url, create=False)
        assert "hunter2" not in str(caught.value)


def test_a_value_that_does_not_fit_is_refused(on_server):
    with pytest.raises(IntegrityError, match="refused a value.*too long"), on_server.write() as conn:
        db.start_run(conn, "x" * 65, "cycle", "test", 0, {}, "d", Clock())
    begin(on_server, "a")
    with on_server.write() as conn:  # the character 0 comes as another
        db.finish_run(conn, "a", "failed", Clock(), error_message="a\0b", metrics={"x": float("nan")})
        assert (db.runs(conn)[0]["error_message"], db.runs(conn)[0]["metrics"]) == ("a\ufffdb", {"x": None})


# --- a store moves ---------------------------------------------------------------------------------------------------

def contents(store: Store) -> dict[str, list[dict]]:
    """All rows of all tables, by value; independent of what the move itself compares."""
    with store.read() as conn:
        return {table.name: sorted(json.dumps({key: str(db._utc(value)) if hasattr(value, "tzinfo") else value for key, value in row.items()}, default=str, sort_keys=True)
                                    for row in conn.execute(sa.select(table)).mappings()) for table in db.metadata.sorted_tables}


@pytest.fixture
def filled(tmp_path):
    """A store in a file, with a champion that was rolled back to, and rows of many kinds."""
    store, clock = Store(f"sqlite:///{tmp_path}/old.db"), Clock()
    token, seen = begin(store, "r1"), None
    for number, version in enumerate(("1" * 64, "2" * 64), 1):
        with store.write() as conn:
            if number > 1:
                db.start_run(conn, f"r{number}", "cycle", "ä\nb", token, {"a": [1, None, 0.1]}, "d", clock)
            trial = db.record_trial(conn, f"r{number}", version, DAY, "d", float("nan"))
            db.add_version(conn, f"r{number}", version, version, DAY, "f", {"components": {"m": {"sha256": "a" * 64}}}, clock)
            gate = db.add_gate_row(conn, f"r{number}", dict(model_version=version, trial_id=trial, trials=1, kind="first", verdict="PROMOTE", as_of=DAY, promoted_to_production=True, alpha=0.1),
                                   [dict(rule="beats_prior", status="passed", blocks=True, observed=1 / 3)], clock)
            db.move_alias(conn, f"r{number}", "champion", version, seen, token, DAY, clock, gate_id=gate)
            db.write_rows(conn, f"r{number}", {"model_predictions": [dict(session=DAY, symbol=f"S{i}", proba_buy=0.1 + 0.2 * (i % 3), abstain=i % 2 == 0) for i in range(50)],
                                               "drift_monitoring": [dict(session=DAY, drift_type="retrain", window=5, score=0.3, detected=True, details={"x": None})]})
            db.record_task(conn, f"r{number}", "market", "ran", outputs={"frame": {"n": 1}})
            db.add_message(conn, {"kind": "test", "severity": "info", "title": "t", "body": "b", "channel": "c", "dedup_key": str(number)}, clock)
        seen = version
    with store.write() as conn:
        db.move_alias(conn, "r2", "champion", "1" * 64, "2" * 64, token, DAY, clock, rollback_to=1)
        db.finish_run(conn, "r2", "success", clock, metrics={"a": 1.5})
        db.release_lease(conn, token)
    return store


def test_a_store_moves_to_a_server_and_back(filled, postgres, tmp_path, monkeypatch):
    """Nothing is lost on either way, the identity stays, and ids go on where they were; in between the command, with what it only says."""
    monkeypatch.setattr(db, "BATCH", 7)
    there, back = postgres.database(like=None), f"sqlite:///{tmp_path}/deeper/back.db"
    monkeypatch.setenv("MLTRADER_DATABASE_URL", str(filled.url))
    for dry in (["--dry-run"], []):
        said = CliRunner().invoke(cli.app, ["store", "migrate", "--to", there, "--json", *dry])
        assert said.exit_code == 0, said
        told = json.loads(said.stdout)
        assert (told["written"], told["tables"]["model_predictions"]["rows"], "digest" in told["tables"]["trials"]) == (not dry, 100, not dry)
        assert told["to"].startswith("postgresql+psycopg://postgres:***@") and told["uuid"] == filled.uuid()
    moved = Store(there, create=False)
    assert contents(moved) == contents(filled) and moved.uuid() == filled.uuid() and moved.version() == len(db.MIGRATIONS)
    with pytest.raises(ConfigError, match="not empty: it holds a store with"):
        db.copy_store(filled, there)
    token = begin(moved, "r3")
    with moved.write() as conn:
        db.write_rows(conn, "r3", {"feature_store": [dict(symbol="A", feature_set="f", n_rows=1)], "model_predictions": [dict(session=DAY, symbol="A")]})
        assert conn.execute(sa.select(sa.func.max(db.model_predictions.c.id))).scalar_one() == 101
    with pytest.raises(LeaseError, match="between two runs"):
        db.copy_store(moved, back)
    with moved.write() as conn:
        db.release_lease(conn, token)
    db.copy_store(moved, back)
    assert contents(Store(back, create=False)) == contents(moved)
    moved.close()
    text = CliRunner().invoke(cli.app, ["store", "migrate", "--to", f"sqlite:///{tmp_path}/third.db", "--dry-run"])
    assert text.exit_code == 0 and "Nothing was written" in text.stdout and not (tmp_path / "third.db").exists()


def tables_in(url: str) -> list[str]:
    engine = sa.create_engine(url)
    found = sa.inspect(engine).get_table_names()
    engine.dispose()
    return found


def test_a_move_that_is_killed_leaves_nothing(filled, postgres, tmp_path, monkeypatch):
    """Killed when all rows are there and only the commit is missing; then the same target takes the store."""
    monkeypatch.setenv("MLTRADER_FAILPOINT", "commit:before")
    for url in (postgres.database(like=None), f"sqlite:///{tmp_path}/new.db"):
        child = os.fork()
        if child == 0:
            db.failpoint.__globals__["passed"].clear()
            try:
                db.copy_store(Store(str(filled.url), create=False), url)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert tables_in(url) == []
    monkeypatch.delenv("MLTRADER_FAILPOINT")
    assert db.copy_store(filled, url)["tables"]["model_predictions"]["rows"] == 100


def test_a_row_that_arrives_changed_stops_the_move(filled, postgres):
    """Red team: a trigger on the server rounds what is inserted. The store that was there, made and never used, is as it was."""
    target = Store(postgres.database())
    with target.write() as conn:
        conn.exec_driver_sql("CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.proba_buy := round(NEW.proba_buy::numeric, 1); RETURN NEW; END $$")
        conn.exec_driver_sql("CREATE TRIGGER spoil BEFORE INSERT ON model_predictions FOR EACH ROW EXECUTE FUNCTION spoil()")
    before = contents(target)
    with pytest.raises(IntegrityError, match="`model_predictions` did not arrive as it was sent: 100 rows went, 100 came"):
        db.copy_store(filled, target.url.render_as_string(hide_password=False))
    assert contents(target) == before and target.uuid() != filled.uuid()
    target.close()


def test_the_how_to_works(filled, postgres, monkeypatch):
    """The commands of the page, with its address put for ours."""
    page = (ROOT / "docs" / "how-to" / "postgresql.md").read_text(encoding="utf-8")
    block = next(part.split("```")[0] for part in page.split("```bash\n") if part.startswith("mltrader store migrate --to"))
    there = postgres.database(like=None)
    monkeypatch.setenv("MLTRADER_DATABASE_URL", str(filled.url))
    called = []
    for words in (line.replace("postgresql+psycopg://me@localhost/mltrader", there).split() for line in block.splitlines()):
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("=", 1))
        else:
            said = CliRunner().invoke(cli.app, words[1:])
            assert said.exit_code == 0, (words, said)
            called.append(said.stdout)
    assert len(called) == 5 and "All rows verified" in called[1] and "production_v1" in called[3] and "production_v1" in called[4]
