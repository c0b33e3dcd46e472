"""What every run is held to: its limits, its further attempts, and that nothing it wrote is changed later without being noticed."""
import json
import time
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from mltrader import orchestrator, reports
from mltrader import store as db
from mltrader.artifacts import ArtifactStore
from mltrader.cli import app
from mltrader.config import Settings
from mltrader.core import Clock, DataError, VendorError
from mltrader.orchestrator import CycleError, TrainingOrchestrator, close_run, open_run, persist
from mltrader.store import Store

NOON = Clock(datetime(2024, 1, 2, 12, tzinfo=UTC))


class DeadKernelError(RuntimeError):
    """As nbclient names it."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    monkeypatch.setenv("MLTRADER_RUN__REPORTS", str(tmp_path / "reports"))
    return tmp_path


@pytest.fixture
def store(home):
    return Store()


def settings_for(home, **sections) -> Settings:
    return Settings(**{**sections, "run": {"reports": str(home / "reports"), **sections.get("run", {})}})


@pytest.mark.parametrize(("raised", "attempts"), [(VendorError, 4), (DeadKernelError, 2), (DataError, 1), (ValueError, 1)])
def test_a_step_is_tried_again_only_where_that_can_help(store, home, raised, attempts):
    waits, calls = [], []

    def work():
        calls.append(1)
        raise raised("out of order")

    with open_run("monitor", "test", store, settings_for(home), NOON) as run, pytest.raises(raised):
        persist(run, "market", work, waits.append)
    assert len(calls) == attempts == run.attempts["market"]
    assert waits == ([2.0, 4.0, 8.0] if raised is VendorError else [0.0] * (attempts - 1))  # a vendor is given time


def test_a_cause_underneath_counts_and_success_ends_the_attempts(store, home):
    calls = []

    def work():
        calls.append(1)
        if len(calls) == 1:
            try:
                raise DeadKernelError("gone")
            except DeadKernelError as error:
                raise RuntimeError("task failed") from error
        return "done"

    with open_run("cycle", "test", store, settings_for(home), NOON) as run:
        assert persist(run, "market", work) == "done" and run.attempts == {"market": 2}


def test_a_run_past_its_limit_is_stopped_within_a_task_and_recorded(store, home, monkeypatch):
    def endless(run, name):
        time.sleep(30)

    monkeypatch.setattr(orchestrator, "run_task", endless)
    began = time.monotonic()
    with pytest.raises(CycleError, match="passed its limit of 5e-05 hours"):
        orchestrator.run_inline("test", settings=settings_for(home, training={"max_training_time_hours": 0.00005}), store=store)
    assert time.monotonic() - began < 10
    with store.read() as conn:
        run = db.runs(conn)[0]
    assert run["status"] == "failed" and "passed its limit" in run["error_message"] and json.loads((home / "reports" / run["id"] / "manifest.json").read_text())["status"] == "failed"
    assert TrainingOrchestrator(store, settings=settings_for(home)).should_run_training() == (True, "never trained")  # nothing blocks the next one


def test_time_spent_counts_also_between_two_tasks(store, home):
    with open_run("cycle", "test", store, settings_for(home, training={"max_training_time_hours": 1.0}), NOON) as run:
        object.__setattr__(run, "clock", Clock(NOON.now() + timedelta(minutes=59)))
        assert persist(run, "market", lambda: "in time") == "in time"
        object.__setattr__(run, "clock", Clock(NOON.now() + timedelta(minutes=60)))
        with pytest.raises(CycleError, match="passed its limit of 1 hours"):
            persist(run, "features", lambda: "too late")


def test_drift_asks_for_a_cycle_only_above_its_threshold_and_confirmed_by_harm(store, home):
    boss = TrainingOrchestrator(store, NOON, settings_for(home))
    with open_run("cycle", "test", store, boss.settings, NOON) as run, store.write() as conn:
        db.finish_run(conn, run.run_id, "success", NOON)
    later = Clock(NOON.after(hours=1))
    boss.clock = Clock(NOON.after(hours=2))
    asked = []
    with store.write() as conn:
        db.start_run(conn, "m", "monitor", "test", run.token + 1, {}, "d", later)
    for kind, score, detected in (("feature", 0.9, True), ("performance", 0.9, True), ("retrain", 0.9, False), ("retrain", 0.15, True), ("retrain", 0.1501, True)):
        with store.write() as conn:
            db.write_rows(conn, "m", {"drift_monitoring": [dict(session=date(2024, 1, 2), drift_type=kind, window=60, score=score, detected=detected)]})
        asked.append(boss.should_run_training()[0])
    assert asked == [False, False, False, False, True]


def tampered(store: Store, statement: str) -> None:
    with store.engine.connect() as conn:
        conn.exec_driver_sql(statement)
        conn.commit()


@pytest.mark.parametrize(("table", "statement"), [
    ("drift_monitoring", "UPDATE drift_monitoring SET score = score + 1e-9"),
    ("dynamic_events", "UPDATE dynamic_events SET state = 'trained'"),
    ("model_promotion_history", "UPDATE gate_verdicts SET status = 'passed'"),
    ("model_promotion_history", "UPDATE model_promotion_history SET notes = 'fine'"),
    ("alias_moves", "UPDATE alias_moves SET as_of = '2020-01-01'"),
    ("model_predictions", "UPDATE model_predictions SET proba_buy = 0.9"),
    ("trials", "UPDATE trials SET score = 9"),
])
def test_a_changed_row_is_named_by_verify(store, home, table, statement):
    day, settings = date(2024, 1, 2), settings_for(home)
    with open_run("cycle", "test", store, settings, NOON) as run:
        with store.write() as conn:
            db.write_rows(conn, run.run_id, {"drift_monitoring": [dict(session=day, drift_type="feature", window=5, score=0.2)], "dynamic_events": [dict(event_name="e", state="open")],
                                             "model_predictions": [dict(session=day, symbol="KO", proba_buy=0.2)]})
            trial = db.record_trial(conn, run.run_id, "r", day, "d", 0.1)
            db.add_version(conn, run.run_id, "v" * 64, "r", day, "f", {}, NOON)
            gate = db.add_gate_row(conn, run.run_id, dict(model_version="v" * 64, trial_id=trial, trials=1, kind="first", verdict="PROMOTE", as_of=day, promoted_to_production=True),
                                   [dict(rule="calibration", scope="all", status="failed", blocks=False)], NOON)
            db.move_alias(conn, run.run_id, "champion", "v" * 64, None, run.token, day, NOON, gate_id=gate)
        close_run(run, "success", {}, {})
    check = (store, run.run_id, home / "reports", ArtifactStore(home / "artifacts"))
    assert reports.verify_run(*check) == []
    with store.write() as conn:  # a version's name is written later, by design
        conn.execute(db.model_predictions.update().values(model_version="v" * 64))
    assert reports.verify_run(*check) == []
    tampered(store, statement)
    assert reports.verify_run(*check) == [f"{run.run_id}: the rows that it wrote into the table {table} were changed"]


@pytest.mark.parametrize(("table", "statement"), [
    ("dynamic_events", "INSERT INTO dynamic_events (run_id, event_name, state) VALUES ('{run}', 'forged', 'trained')"),
    ("drift_monitoring", "INSERT INTO drift_monitoring (run_id, session, drift_type, score, detected) VALUES ('{run}', '2024-01-02', 'retrain', 0.9, 1)"),
])
def test_a_forged_row_is_named_too(store, home, table, statement):
    with open_run("monitor", "test", store, settings_for(home), NOON) as run:
        close_run(run, "success", {}, {})
    check = (store, run.run_id, home / "reports", ArtifactStore(home / "artifacts"))
    assert reports.verify_run(*check) == []
    tampered(store, statement.format(run=run.run_id))
    assert reports.verify_run(*check) == [f"{run.run_id}: the rows that it wrote into the table {table} were changed"]


def test_an_event_that_the_training_set_leaves_out_is_asked_for_once(store, home):
    day = date(2024, 1, 2)

    def merged(asked):
        return dict(event_name="dynamic_20231002", state="merged", added_to_archive=True, triggered_retraining=asked, start_date=day)

    boss = TrainingOrchestrator(store, NOON, settings_for(home))
    with open_run("monitor", "test", store, boss.settings, NOON) as run, store.write() as conn:
        db.set_as_of(conn, run.run_id, day)
        db.write_rows(conn, run.run_id, {"dynamic_events": [merged(True)]})
        db.finish_run(conn, run.run_id, "success", NOON)
        assert db.untrained_events(conn) == ["dynamic_20231002"]
    later = Clock(NOON.after(hours=1))
    with open_run("cycle", "test", store, boss.settings, later) as run, store.write() as conn:
        db.set_as_of(conn, run.run_id, date(2024, 1, 3))
        assert db.mark_trained(conn, run.run_id, []) == []
        db.finish_run(conn, run.run_id, "success", later)
    with store.read() as conn:
        assert db.untrained_events(conn) == [] and db.captured_events(conn)[0]["state"] == "merged"  # it waits, but asks no more
    boss.clock = Clock(NOON.after(hours=2))
    assert boss.should_run_training()[0] is False


def test_what_breaks_before_any_task_is_a_result_not_a_traceback(store, home, monkeypatch):
    def broken(*_):
        raise RuntimeError("DAG render failed: invalid syntax in 12_regimes")

    monkeypatch.setattr(orchestrator, "_build_with_ploomber", broken)
    found = TrainingOrchestrator(store, settings=settings_for(home)).run_training_cycle(trigger="manual")
    assert found["success"] is False and "invalid syntax in 12_regimes" in found["error"] and found["exit_code"] == 1


def test_an_outdated_store_says_what_to_do(store, home):
    with store.write() as conn:
        conn.execute(db.store_facts.update().where(db.store_facts.c.key == "version").values(value="5"))
    result = CliRunner().invoke(app, ["history"])
    assert "run `mltrader store migrate`" in str(result.exception)
    assert json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)["state"] == "outdated"


def test_each_run_keeps_its_settings_and_two_can_be_compared(store, home):
    for number, settings in enumerate((settings_for(home), settings_for(home, forest={"n_estimators": 7}, events={"vix": 35.0}))):
        with open_run("cycle", "test", store, settings, Clock(NOON.after(hours=number))):
            pass
    with store.read() as conn:
        second, first = [run["id"] for run in db.runs(conn)]
    found = json.loads(CliRunner().invoke(app, ["config", "diff", first, second, "--json"]).stdout)
    assert found == [{"setting": "[events] vix", "before": 40.0, "after": 35.0}, {"setting": "[forest] n_estimators", "before": 200, "after": 7}]
    assert "have the same settings" in CliRunner().invoke(app, ["config", "diff", first, first]).stdout
    wrong = CliRunner().invoke(app, ["config", "diff", first, "run_1"])
    assert "There is no run 'run_1'" in str(wrong.exception)


def test_the_steps_of_a_run_are_listed_with_time_memory_and_attempts(store, home):
    with open_run("cycle", "test", store, settings_for(home), NOON) as run:
        with store.write() as conn:
            db.record_task(conn, run.run_id, "market", "ran", seconds=1.25, peak_mb=210.4)
        run.attempts["market"] = 2
        close_run(run, "failed", {"market": "ran", "features": "failed"}, {}, "features: no")
    rows = json.loads(CliRunner().invoke(app, ["history", run.run_id, "--json"]).stdout)
    assert [(r["task"], r["status"], r["seconds"], r["peak_mb"], r["attempts"]) for r in rows][:2] == [("market", "ran", 1.25, 210.4, 2), ("features", "failed", None, None, None)]
    with store.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(db.run_tasks)).scalar() == 16
    assert reports.peak_memory() is None or reports.peak_memory() > 10
