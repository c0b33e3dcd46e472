"""The store refuses what must never happen, whatever the code above it does."""
from datetime import UTC, date, datetime

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import registry
from mltrader import store as db
from mltrader.artifacts import ArtifactStore
from mltrader.core import Clock, ConfigError, LeaseError
from mltrader.store import Store

START = Clock(datetime(2024, 1, 2, tzinfo=UTC))
DAY = date(2024, 1, 2)


@pytest.fixture
def store(database):
    made = Store(database)
    yield made
    made.engine.dispose()


def url_of(store: Store) -> str:
    return store.url.render_as_string(hide_password=False)


def begin(store: Store, run_id: str, clock: Clock = START, seconds: float = 3600) -> int:
    with store.write() as conn:
        token = db.take_lease(conn, run_id, seconds, clock)
        db.start_run(conn, run_id, "cycle", "test", token, {}, "d", clock)
    return token


def test_migrated_schema_is_the_declared_one(store):
    """Independent check by alembic: migrations and metadata agree."""
    with store.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), db.metadata) == []
    assert store.version() == len(db.MIGRATIONS)


def test_thirteen_tables_with_foreign_keys_to_a_run(store):
    with store.read() as conn:
        inspector = sa.inspect(conn)
        for name in db.SEED_TABLES:
            assert inspector.has_table(name)
            if name != "training_runs":
                assert "training_runs" in {key["referred_table"] for key in inspector.get_foreign_keys(name)}, name
        if conn.dialect.name == "sqlite":
            assert conn.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
            assert conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall() == []


def test_newer_store_is_refused(store):
    with store.write() as conn:
        conn.execute(db.store_facts.update().where(db.store_facts.c.key == "version").values(value="99"))
    with pytest.raises(ConfigError, match="The address given is no SQLAlchemy URL"):
        Store("foo")
    for create in (True, False):  # what only looks might write later
        with pytest.raises(ConfigError, match="version 99.*install a newer mltrader"):
            Store(url_of(store), create=create)


def test_migration_resumes_where_it_stopped(store, monkeypatch):
    """A store gets exactly the missing steps; a step that fails leaves the version before it."""
    known = db.MIGRATIONS
    monkeypatch.setattr(db, "MIGRATIONS", (*known, ("fails", lambda conn: conn.exec_driver_sql("CREATE TABLE half (x INTEGER)") and 1 / 0)))
    with pytest.raises(ZeroDivisionError):
        store.migrate()
    assert store.version() == len(known)
    with store.read() as conn:
        assert not sa.inspect(conn).has_table("half")
    monkeypatch.setattr(db, "MIGRATIONS", (*known, ("works", lambda conn: conn.exec_driver_sql("CREATE TABLE half (x INTEGER)"))))
    assert store.migrate() == len(known) + 1


def test_a_store_of_version_3_gets_the_gates_columns_and_keeps_its_decisions(store):
    old, url = store, url_of(store)
    begin(old, "a")
    with old.write() as conn:
        trial = db.record_trial(conn, "a", "r", DAY, "d", 0.1)
        db.add_version(conn, "a", "v" * 64, "r", DAY, "f", {}, Clock())
        db.add_gate_row(conn, "a", dict(model_version="v" * 64, trial_id=trial, trials=1, kind="first", verdict="HOLD", as_of=DAY, promoted_to_production=False),
                        [dict(rule="beats_prior", scope="all", status="failed", blocks=True)], Clock())
        for table, column in (("model_promotion_history", "look"), ("model_promotion_history", "alpha"), ("gate_verdicts", "p")):
            conn.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        conn.execute(db.store_facts.update().where(db.store_facts.c.key == "version").values(value="3"))
    new = Store(url)
    assert new.version() == len(db.MIGRATIONS)
    with new.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), db.metadata) == []
        gate = db.gate_row(conn, "a")
    assert (gate["verdict"], gate["look"], gate["rules"][0]["p"]) == ("HOLD", None, None)


def test_the_ledger_keeps_what_was_tried_whoever_tries_again(store):
    for run in ("a", "b"):
        started(store, run)
        with store.write() as conn:
            db.set_as_of(conn, run, DAY if run == "a" else date(2024, 3, 1))
            tried = [dict(recipe_digest=f"r{k}", window_end=DAY, data_digest="d", score=0.1) for k in range(3)]
            assert db.write_rows(conn, run, {"trials": tried}) == {"trials": 3}
            db.finish_run(conn, run, "success", Clock())
    with store.write() as conn:
        assert db.count_trials(conn) == 3 and db.count_trials(conn, before=DAY) == 0 and db.count_trials(conn, before=date(2024, 2, 1)) == 3
        assert db.write_rows(conn, "b", {"trials": []}) == {"trials": 0} and db.count_trials(conn) == 3  # nothing is taken back


def started(store: Store, run_id: str) -> None:
    """A run on record that holds no lease."""
    with store.write() as conn:
        db.start_run(conn, run_id, "cycle", "test", 0, {}, "d", START)


def decide_for(store: Store, run: str, verdict: str, champion: str | None) -> str:
    """One decision of the gate on a new version; returns its id."""
    started(store, run)
    with store.write() as conn:
        version = run.ljust(64, "0")
        trial = db.record_trial(conn, run, f"recipe {run}", DAY, "d", 0.1)
        db.add_version(conn, run, version, f"recipe {run}", DAY, "f", {}, Clock())
        gate = db.add_gate_row(conn, run, dict(model_version=version, trial_id=trial, trials=1, kind="first", verdict=verdict, as_of=DAY,
                                               promoted_to_production=verdict == "PROMOTE", look=1, alpha=0.001), [], Clock())
        if verdict == "PROMOTE":
            db.move_alias(conn, run, "champion", version, champion, 0, DAY, Clock(), gate_id=gate)
    return version


def test_looks_are_counted_in_a_reign_and_a_rollback_begins_none(store):
    def looks(**more):
        with store.read() as conn:
            return db.looks_of_reign(conn, "champion", **more)[0]

    assert looks() == 0
    decide_for(store, "a", "REJECT", None)
    assert looks() == 1 and looks(leave_out=["a"]) == 0
    with store.read() as conn:
        assert db.looks_of_reign(conn, "champion") == (1, pytest.approx(0.001)) and db.looks_of_reign(conn, "champion", ["a"]) == (0, 0.0)
    first = decide_for(store, "b", "PROMOTE", None)
    assert looks() == 0
    decide_for(store, "c", "HOLD", first)
    second = decide_for(store, "d", "PROMOTE", first)
    decide_for(store, "e", "HOLD", second)
    assert looks() == 1
    started(store, "back")
    with store.write() as conn:
        move = next(m["id"] for m in db.promotions(conn, "champion") if m["model_version"] == first)
        db.move_alias(conn, "back", "champion", first, second, 0, DAY, Clock(), rollback_to=move)
    assert looks() == 3  # the first's reign goes on: its own look, the one at which it was replaced, and the second's


def test_a_store_of_version_1_gets_the_archives_manifest_and_keeps_its_rows(store):
    """What a home of the first release holds stays; the new table is there, and equals the declared one."""
    old, url = store, url_of(store)
    begin(old, "a")
    with old.write() as conn:
        db.archive_events.drop(conn)
        db.write_rows(conn, "a", {"feature_store": [dict(symbol="JPM", feature_set="f", n_rows=1)]})
        conn.execute(db.store_facts.update().where(db.store_facts.c.key == "version").values(value="1"))
    identity = old.uuid()
    assert old.version() == 1
    new = Store(url)
    assert new.version() == len(db.MIGRATIONS) and new.uuid() == identity
    with new.write() as conn:
        assert compare_metadata(MigrationContext.configure(conn), db.metadata) == []
        assert db.count_rows(conn, "a")["feature_store"] == 1
        assert db.add_archived(conn, "a", [ARCHIVED]) == ["crisis"]


def test_a_store_without_symbols_in_sector_performance_gets_them_and_keeps_its_rows(store):
    """The table is made anew, as its key grew; each old row stays and is about all symbols, and a symbol's row fits beside it."""
    old, url = store, url_of(store)
    begin(old, "a")
    before = next(i for i, (name, _) in enumerate(db.MIGRATIONS) if name.startswith("symbols beside"))
    with old.write() as conn:
        db.sector_performance.drop(conn)
        conn.exec_driver_sql("CREATE TABLE sector_performance (id INTEGER PRIMARY KEY, run_id VARCHAR(64) NOT NULL, sector VARCHAR(64) NOT NULL, "
                             "regime VARCHAR(32) NOT NULL, n_rows INTEGER, gain FLOAT, verdict VARCHAR(16), UNIQUE (run_id, sector, regime))")
        conn.exec_driver_sql("INSERT INTO sector_performance VALUES (7, 'a', 'Energy', 'all', 5, 0.25, 'better'), (8, 'a', 'Energy', 'crash', 2, NULL, 'insufficient')")
        conn.execute(db.store_facts.update().where(db.store_facts.c.key == "version").values(value=str(before)))
    new = Store(url)
    with new.write() as conn:
        assert compare_metadata(MigrationContext.configure(conn), db.metadata) == []
        rows = db.sector_cells(conn)
        assert [(r["regime"], r["symbol"], r["n_rows"], r["gain"], r["verdict"]) for r in rows] == [("all", "all", 5, 0.25, "better"), ("crash", "all", 2, None, "insufficient")]
        conn.execute(db.sector_performance.insert().values(run_id="a", sector="Energy", regime="all", symbol="XOM"))
    with pytest.raises(sa.exc.IntegrityError), new.write() as conn:
        conn.execute(db.sector_performance.insert().values(run_id="a", sector="Energy", regime="all", symbol="XOM"))


ARCHIVED = dict(event="crisis", as_of=DAY, start_date=date(2008, 9, 1), end_date=date(2009, 3, 31), feature_set="f", label_digest="l", vintage="v",
                sha256="a" * 64, n_rows=3)


def test_the_archives_manifest_is_written_with_the_tasks_rows_and_only_grows(store):
    begin(store, "a")
    with store.write() as conn:
        db.set_as_of(conn, "a", DAY)
        assert db.write_rows(conn, "a", {"archive_events": [ARCHIVED]}) == {"archive_events": 1}
        assert db.write_rows(conn, "a", {"archive_events": [ARCHIVED]}) == {"archive_events": 0}  # the task ran again in the same run
        assert db.write_rows(conn, "a", {"archive_events": []}) == {"archive_events": 0} and len(db.archived_events(conn)) == 1  # nothing is lost
        assert len(db.archived_events(conn)) == 1
        assert db.archived_events(conn, before=DAY) == []
        changed = {**ARCHIVED, "as_of": date(2024, 2, 1), "sha256": "b" * 64}
        assert db.add_archived(conn, None, [changed]) == ["crisis"] and db.add_archived(conn, None, [changed]) == []
        assert db.add_archived(conn, None, [{**ARCHIVED, "as_of": date(2024, 3, 1)}]) == ["crisis"]  # revised, and revised back
        assert [row["sha256"][0] for row in db.archived_events(conn)] == ["a", "b", "a"]
    for bad in ({"n_rows": 0}, {"end_date": date(2008, 1, 1)}, {"sha256": None}):
        with pytest.raises(sa.exc.IntegrityError), store.write() as conn:
            db.add_archived(conn, None, [{**ARCHIVED, "event": "other", **bad}])


def test_a_stale_holder_cannot_write(store):
    """Fencing: a run whose lease ran out and was taken over is refused, even though it never noticed."""
    old = begin(store, "a", seconds=5)
    later = Clock(START.after(seconds=60))
    new = begin(store, "b", later)
    with store.read() as conn, pytest.raises(LeaseError, match="taken over"):
        db.check_token(conn, old)
    with store.write() as conn:
        assert not db.renew_lease(conn, old, 60, later)
        db.release_lease(conn, old)  # no effect
        db.check_token(conn, new)


def test_null_heartbeat_is_reaped(store):
    """A run that was recorded and died before its first heartbeat does not stay `running` for ever."""
    with store.write() as conn:
        db.start_run(conn, "ghost", "cycle", "test", 0, {}, "d", START)
        assert db.reap_lost_runs(conn, START) == ["ghost"]
        assert db.runs(conn)[0]["status"] == "lost"


def test_runs_are_found_by_their_end_and_the_latest_session_by_all_of_them(store):
    with store.read() as conn:
        assert db.last_session(conn) is None and db.runs(conn, status="success") == []
    for run_id, status, day in (("a", "success", DAY), ("b", "failed", date(2024, 1, 3)), ("c", "success", date(2024, 1, 1))):
        token = begin(store, run_id)
        with store.write() as conn:
            db.finish_run(conn, run_id, status, START, as_of=day)
            db.release_lease(conn, token)
    with store.read() as conn:
        assert db.last_session(conn) == date(2024, 1, 3)
        assert [row["id"] for row in db.runs(conn, status="success")] == ["c", "a"] and [row["id"] for row in db.runs(conn, 1, kind="cycle", status="failed")] == ["b"]


def test_rows_are_written_together_or_not_at_all(store):
    begin(store, "a")
    good = dict(symbol="JPM", feature_set="f", n_rows=1)
    with pytest.raises(sa.exc.IntegrityError), store.write() as conn:
        db.write_rows(conn, "a", {"feature_store": [good], "model_predictions": [dict(session=DAY, symbol="JPM", proba_buy=1.5)]})
    with store.read() as conn:
        assert db.count_rows(conn)["feature_store"] == 0


@pytest.mark.parametrize("bad", [
    {"session": DAY, "symbol": "X", "feature_set": "f", "true_label": 1, "predicted_label": 1},  # not an error
    {"session": DAY, "symbol": None, "feature_set": "f", "true_label": 1, "predicted_label": 0},
])
def test_replay_buffer_holds_errors_only(store, bad):
    begin(store, "a")
    with pytest.raises(sa.exc.IntegrityError), store.write() as conn:
        db.write_rows(conn, "a", {"error_replay_buffer": [bad]})


@settings(max_examples=15, deadline=None)
@given(verdicts=st.lists(st.sampled_from(db.VERDICTS), min_size=1, max_size=8), when=st.integers(0, 9))
def test_champion_as_of_is_exact(tmp_path_factory, verdicts, when):
    """For any history of verdicts, the champion of a session is the last model promoted by then."""
    folder = tmp_path_factory.mktemp("history")
    store, files = Store(f"sqlite:///{folder}/t.db"), ArtifactStore(folder)
    entry = files.put({"x": 1}).as_dict()
    token, seen, expected = None, None, None
    for month, verdict in enumerate(verdicts, 1):
        run_id, model = f"r{month}", f"{month:064d}"
        if token is None:
            token = begin(store, run_id)
        else:
            with store.write() as conn:
                db.start_run(conn, run_id, "cycle", "test", token, {}, "d", START)
        decision = dict(verdict=verdict, model_version=model, recipe_digest=model, kind="first", as_of=f"2020-{month:02d}-28", data_digest="d", feature_set="f", trials=month, look=1, alpha=0.001)
        name = registry.register_decision(store, files, run_id, token, decision, [], {"components": {"m": entry}}, seen, START)
        assert (name is not None) == (verdict == "PROMOTE")
        if verdict == "PROMOTE":
            seen = model
            if month <= when:
                expected = model
    found = registry.champion(store, as_of=f"2020-{when:02d}-28" if when else "2019-12-31")
    assert (found and found["id"]) == expected
    store.engine.dispose()


def promoted(store: Store, files: ArtifactStore, token: int, run_id: str, model: str, seen: str | None) -> str | None:
    decision = dict(verdict="PROMOTE", model_version=model, recipe_digest=model, kind="first", as_of=DAY, data_digest="d", feature_set="f", trials=1, look=1, alpha=0.001)
    return registry.register_decision(store, files, run_id, token, decision, [], {"components": {"m": files.put({"x": 1}).as_dict()}}, seen, START)


def test_rollback_goes_back_and_never_forth(store, tmp_path):
    """From v3 to v2 to v1; what was rolled back is not what the next rollback restores."""
    files, token, models = ArtifactStore(tmp_path), begin(store, "r1"), ["1" * 64, "2" * 64, "3" * 64]
    for number, model in enumerate(models, 1):
        if number > 1:
            with store.write() as conn:
                db.start_run(conn, f"r{number}", "cycle", "test", token, {}, "d", START)
        promoted(store, files, token, f"r{number}", model, models[number - 2] if number > 1 else None)
    assert [registry.rollback(store, files, "r3", token, DAY, START) for _ in range(2)] == ["production_v2", "production_v1"]
    with pytest.raises(ConfigError, match="nothing to roll back to"):
        registry.rollback(store, files, "r3", token, DAY, START)
    assert registry.rollback(store, files, "r3", token, DAY, START, "production_v3") == "production_v3"
    assert registry.rollback(store, files, "r3", token, DAY, START) == "production_v2"


def test_the_database_ties_a_move_to_the_version_that_was_judged(store, tmp_path):
    files, token = ArtifactStore(tmp_path), begin(store, "r1")
    promoted(store, files, token, "r1", "1" * 64, None)
    with store.write() as conn:
        assert db.runs(conn, run_id="r1")[0]["promoted"] is True
        db.add_version(conn, "r1", "e" * 64, "r", DAY, "f", {}, START)
        gate = db.gate_row(conn, "r1")["id"]
    for way in ({"gate_id": gate}, {"rollback_to": 1}):
        with pytest.raises(sa.exc.IntegrityError), store.write() as conn:
            db.move_alias(conn, "r1", "champion", "e" * 64, "1" * 64, token, DAY, START, **way)
    assert registry.champion(store)["id"] == "1" * 64


def test_a_run_that_was_given_up_cannot_come_back(store):
    """The machine slept; somebody looked at the history, which marked the run as lost; it wakes up and wants to write."""
    token = begin(store, "a", seconds=5)
    later = Clock(START.after(seconds=60))
    with store.write() as conn:
        assert db.reap_lost_runs(conn, later) == ["a"]
        assert not db.renew_lease(conn, token, 60, later)
        with pytest.raises(LeaseError):
            db.check_token(conn, token)


def test_what_a_killed_run_captured_is_known_to_later_ones(store):
    begin(store, "a", seconds=5)
    with store.write() as conn:
        db.set_as_of(conn, "a", DAY)
        db.write_rows(conn, "a", {"dynamic_events": [{"event_name": "dynamic_20240102", "start_date": DAY, "state": "open"}]})
        db.reap_lost_runs(conn, Clock(START.after(days=1)))
        assert [e["event_name"] for e in db.captured_events(conn, date(2024, 2, 1))] == ["dynamic_20240102"]
        assert db.captured_events(conn, DAY) == []


def test_promotion_without_a_trial_is_refused(store):
    """The ledger is law: a gate row must point at a trial."""
    begin(store, "a")
    with store.write() as conn:
        db.add_version(conn, "a", "m" * 64, "r", DAY, "f", {}, START)
    row = dict(model_version="m" * 64, trial_id=12345, trials=1, kind="first", verdict="PROMOTE", as_of=DAY, promoted_to_production=True)
    with pytest.raises(sa.exc.IntegrityError), store.write() as conn:
        db.add_gate_row(conn, "a", row, [], START)


def test_a_store_of_version_5_keeps_its_predictions_and_learns_whose_they_were(store):
    """The table is made anew, as a run may hold predictions of several versions; the watch and the messages get their tables."""
    old, url = store, url_of(store)
    begin(old, "a")
    with old.write() as conn:
        db.start_run(conn, "p", "predict", "test", 0, {}, "d", START)
        for table in (db.model_predictions, db.prediction_outcomes, db.live_watch, db.outbox):
            table.drop(conn)
        conn.exec_driver_sql("CREATE TABLE model_predictions (id INTEGER PRIMARY KEY, run_id VARCHAR(64) NOT NULL, model_version VARCHAR(64), session DATE NOT NULL, symbol VARCHAR(32) "
                             "NOT NULL, regime VARCHAR(32), proba_sell FLOAT, proba_hold FLOAT, proba_buy FLOAT, prediction VARCHAR(8), abstain BOOLEAN, UNIQUE (run_id, session, symbol))")
        conn.exec_driver_sql("INSERT INTO model_predictions VALUES (3, 'a', NULL, '2024-01-02', 'JPM', 'crash', 0.2, 0.5, 0.3, 'hold', FALSE), "
                             "(4, 'p', NULL, '2024-01-02', 'JPM', NULL, 0.1, 0.6, 0.3, 'hold', TRUE)")
        for table, columns in (("leases", ("host", "pid", "process")), ("run_tasks", ("peak_mb", "attempts")), ("dynamic_events", ("trigger", "sha256", "added_to_archive"))):
            for column in columns:
                conn.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        conn.execute(db.store_facts.update().where(db.store_facts.c.key == "version").values(value="5"))
    new = Store(url)
    with new.write() as conn:
        assert compare_metadata(MigrationContext.configure(conn), db.metadata) == []
        rows = [dict(row) for row in conn.execute(sa.select(db.model_predictions).order_by(db.model_predictions.c.id)).mappings()]
        assert [(r["id"], r["role"], r["session"], r["proba_buy"], r["abstain"]) for r in rows] == [(1, "candidate", DAY, 0.3, False), (2, "champion", DAY, 0.3, True)]
        conn.execute(db.model_predictions.insert().values(run_id="p", role="rival", session=DAY, symbol="JPM", proba_buy=0.2))
    with pytest.raises(sa.exc.IntegrityError), new.write() as conn:
        conn.execute(db.model_predictions.insert().values(run_id="p", role="rival", session=DAY, symbol="JPM", proba_buy=0.2))
