"""Cycles after the first, without kernels: what a second candidate is compared with, and what the past still answers."""
import itertools
import json
import shutil
import signal
import sqlite3
import sys
import time
from datetime import UTC, date, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import own_home
from typer.testing import CliRunner

from mltrader import orchestrator, predict, refits, registry, reports
from mltrader import store as db
from mltrader.artifacts import ArtifactStore
from mltrader.cli import app
from mltrader.config import home, load_settings
from mltrader.core import PROBABILITIES, Clock, ConfigError, DataError, IntegrityError, LeaseError, MltraderError
from mltrader.monitor import heal, keep_watch, monitor
from mltrader.orchestrator import TrainingOrchestrator, run_inline
from mltrader.store import Store

# Wide margins: here it matters what is compared, not how the six stocks fare.
EASY = {"promotion": {"margin": 10.0, "regime_margin": 10.0, "max_calibration_error": 1.0},
        "universe": {"symbols": ["AMD", "RRC", "BBY", "BAC", "KO", "PG"]}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three cycles: a first champion, another recipe on the same day, and the champion's recipe, whichever it is, a quarter later."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        own_home(patch, folder)
        fits = [0]

        def cycle(day, **more):
            made = run_inline(settings=load_settings(run={"as_of": day}, **EASY, **more))
            fits.append(len(list((folder / "folds").glob("*.json"))))
            return made

        other = {"boosting": {"rounds": 40}, "tuning": {"boosting": [{"learning_rate": 0.2}], "min_folds": 1}}  # two candidates compete
        runs = [cycle("2021-12-31"), cycle("2021-12-31", **other)]
        second = registry.champion(Store(), "2021-12-31")["name"] == "production_v2"
        runs.append(cycle("2022-03-31", **(other if second else {})))
        yield SimpleNamespace(folder=folder, runs=runs, store=Store(), fitted=[b - a for a, b in itertools.pairwise(fits)])


def rules(world, number: int) -> dict[str, dict]:
    with world.store.read() as conn:
        gate = db.gate_row(conn, world.runs[number]["run_id"])
    return {rule["rule"]: rule for rule in gate["rules"]} | {"gate": gate}


def test_the_first_champion_is_compared_with_the_baselines_alone(world):
    found = rules(world, 0)
    assert found["gate"]["kind"] == "first" and found["gate"]["verdict"] == "PROMOTE"
    assert found["champion"]["status"] == found["drift"]["status"] == "not applicable"


def test_another_recipe_is_decided_against_the_champion(world):
    """Nothing is missing for the decision: paired on the rows that both predicted, and with a drift score of both."""
    found = rules(world, 1)
    assert found["gate"]["kind"] == "new_recipe" and found["champion"]["n"] > 1000
    assert {found["champion"]["status"], found["drift"]["status"]} <= {"passed", "failed"}
    assert found["gate"]["champion_before"] and found["gate"]["trials"] == 4  # the first, two candidates, and this one
    several = found["champion:several:boosting"]
    assert several["status"] in ("passed", "failed", "insufficient") and several["n"] > 500 and "none of the 2 candidates" in several["note"]
    assert (found["gate"]["look"], found["gate"]["alpha"]) == (1, pytest.approx(0.025 / 24))  # the first of the first champion's reign
    memory = {name: rule for name, rule in found.items() if name.split(":")[0] == "memory"}
    assert memory["memory"]["n"] > 300 and memory["memory"]["status"] in ("passed", "failed", "insufficient") and len(memory) > 2  # by event, and pooled
    assert {name.split(":")[1] for name in found if name.startswith("champion:")} == {"regime", "sector", "several"}


def test_the_same_recipe_on_newer_data_is_judged_by_what_a_fresh_fit_gains(world):
    found = rules(world, 2)
    assert found["gate"]["kind"] == "refresh" and found["gate"]["verdict"] in ("PROMOTE", "HOLD") and found["memory"]["note"] == "the champion's own recipe"
    assert found["champion"]["status"] in ("passed", "failed") and found["drift"]["status"] in ("passed", "failed")
    assert found["champion"]["n"] > 1000 and "over one 63 sessions older" in found["champion"]["note"]
    assert 0 < abs(found["champion"]["observed"]) < 0.1  # the recipe against itself would be exactly 0
    document = reports.load_product(world.runs[2]["run_id"], "drift", world.store)["drift"]
    assert document["reference"] == "champion" and document["reference_end"] < document["current_start"]


def test_the_past_still_answers(world):
    first, last = registry.champion(world.store, "2021-12-30"), registry.champion(world.store, "2022-03-30")
    assert first is None and last["name"] == ("production_v2" if rules(world, 1)["gate"]["verdict"] == "PROMOTE" else "production_v1")
    assert registry.champion(world.store, "2021-12-31")["id"] == last["id"]
    newest, judged = registry.champion(world.store), registry.challenger(world.store)
    assert newest["as_of"] > last["as_of"] if rules(world, 2)["gate"]["verdict"] == "PROMOTE" else judged["judged_by"] == world.runs[2]["run_id"]
    end = last["manifest"]["reference"]
    assert end == {"reference_start": "2016-12-30", "reference_end": "2021-12-31"}
    folder = world.folder / "reports"
    assert [reports.verify_run(world.store, run["run_id"], folder, reports.ArtifactStore(world.folder / "artifacts")) for run in world.runs] == [[], [], []]
    assert [run["previous"] and run["previous"]["run_id"] for run in world.runs] == [None, world.runs[0]["run_id"], world.runs[1]["run_id"]]


def test_unchanged_folds_come_from_the_cache(world):
    """The second cycle changed boosting alone: none of the forest's folds was fitted, so none was stored, again."""
    tables = {"forest": "out_of_fold", "boosting": "out_of_fold", "meta": "evaluation"}
    folds = {task: reports.load_product(world.runs[1]["run_id"], task, world.store)[table]["fold"].nunique() for task, table in tables.items()}
    events = reports.load_product(world.runs[1]["run_id"], "promotion", world.store)["without_event"]["event"].nunique()
    paths = folds["meta"] + 1  # on which the stack earns its place, at every cut-off and at the end
    boosted, explained = 2 * 2 * folds["boosting"], folds["boosting"]  # two candidates, each with predictions and model; all folds' explanations, as half of each is boosting's
    assert events > 2 and world.fitted[1] == boosted + folds["meta"] + paths + events + explained + 1  # and the refit of boosting
    first, second = (reports.load_product(run["run_id"], "forest", world.store)["out_of_fold"] for run in world.runs[:2])
    assert first.equals(second)


def test_explanations_are_compared_with_the_champions_and_told(world):
    from mltrader import cli
    from mltrader.explain import SHAPAnalyzer

    assert rules(world, 0)["attribution"]["status"] == "not applicable"
    for number in (1, 2):
        found = rules(world, number)["attribution"]
        assert found["status"] != "not applicable" and 0 <= found["observed"] <= 1 and not found["blocks"]
    made = reports.load_product(world.runs[2]["run_id"], "explain", world.store)
    assert made["drift"]["regime"].iloc[0] == "all" and made["summary"]["champion"].startswith("production_v") and made["history"]["name"].nunique() >= 2
    assert SHAPAnalyzer(world.store).get_top_features_by_regime("production_v1", None, 3)[0][2] == 1
    symbol = made["texts"]["symbol"].iloc[0]
    told = cli._one_call(world.store, symbol, None, None)
    assert sum(part["contribution"] for part in told["parts"] if part["class"] == told["call"]) == pytest.approx(told["proba"] - told["prior"], abs=1e-6)
    with pytest.raises(ConfigError, match=f"there are .*{symbol}"):
        cli._one_call(world.store, symbol + "X", None, None)


def test_a_leap_day_is_a_session_like_any_other():
    """Five years before 29 February there is no such day."""
    class Inputs(dict):
        _entries = {name: {"content_digest": "d"} for name in ("model", "evaluation", "panel", "samples")}

    inputs = {name: Inputs() for name in ("market", "forest", "boosting", "meta", "features", "memory", "drift", "explain")}
    inputs["features"]["feature_set"], inputs["memory"]["composition"] = {"version": "v", "names": []}, {}
    inputs["explain"]["summary"] = {"prior": {"sell": 0.3, "hold": 0.5, "buy": 0.2}}
    task = SimpleNamespace(inputs=inputs, settings=load_settings(), as_of="2012-02-29", entries={})
    decision = {"recipe": {}, "trials": 1, "look": 1, "alpha": 0.001, "gate": {}}
    assert reports.candidate_manifest(task, decision)["reference"] == {"reference_start": "2007-02-28", "reference_end": "2012-02-29"}


def test_a_busy_database_does_not_cost_the_lease(tmp_path, monkeypatch):
    """The heartbeat meets a locked database once, and goes on."""
    store, tried = Store(f"sqlite:///{tmp_path}/t.db"), []
    real = db.renew_lease

    def busy(*arguments):
        tried.append(1)
        if len(tried) == 1:
            raise RuntimeError("database is locked")
        return real(*arguments)

    monkeypatch.setattr(db, "renew_lease", busy)
    settings = load_settings(training={"lease_seconds": 5})
    with orchestrator.open_run("cycle", "test", store, settings, Clock()) as run:
        for _ in range(80):
            if len(tried) >= 2:
                break
            __import__("time").sleep(0.1)
        with store.read() as conn:
            db.check_token(conn, run.token)
    assert len(tried) >= 2


def test_the_user_sees_the_error_of_the_task():
    """Our own errors keep message and exit code on their way out of a kernel; others keep their kind."""
    def from_kernel(name: str) -> Exception:
        error = RuntimeError("papermill")
        error.ename, error.evalue = name, "own.csv, row 7"
        return error

    assert orchestrator.papermill_error(from_kernel("RefusedData")) == ("own.csv, row 7", 4)
    assert orchestrator.papermill_error(from_kernel("VendorError")) == ("own.csv, row 7", 5)
    assert orchestrator.papermill_error(from_kernel("KeyError")) == ("KeyError: own.csv, row 7", 1)


def test_triggers_in_their_order(tmp_path):
    start = Clock(datetime(2024, 1, 2, tzinfo=UTC))
    boss = TrainingOrchestrator(Store(f"sqlite:///{tmp_path}/t.db"), start, load_settings())
    assert boss.should_run_training() == (True, "never trained")
    with orchestrator.open_run("cycle", "t", boss.store, boss.settings, start) as run, boss.store.write() as conn:
        db.finish_run(conn, run.run_id, "success", start)
    later = Clock(start.after(days=1))
    boss = TrainingOrchestrator(boss.store, later, boss.settings)
    assert boss.should_run_training()[0] is False
    with boss.store.write() as conn:
        token = db.take_lease(conn, "m", 60, later)
        db.start_run(conn, "m", "monitor", "t", token, {}, "d", later)
        rows = [{"session": later.now().date(), "drift_type": "retrain", "window": 60, "score": 0.15, "p_value": 0.01, "detected": True}]
        db.write_rows(conn, "m", {"drift_monitoring": rows})
        db.release_lease(conn, token)
    assert boss.should_run_training()[0] is False  # at the limit is not above it
    with boss.store.write() as conn:
        db.write_rows(conn, "m", {"drift_monitoring": [{**rows[0], "score": 0.1501}]})
    assert boss.should_run_training() == (True, "drift: score 0.1501 above 0.15, and the loss has risen")
    with boss.store.write() as conn:
        db.write_rows(conn, "m", {"drift_monitoring": [], "dynamic_events": [{"event_name": "dynamic_20240101", "state": "merged", "triggered_retraining": True}]})
    assert boss.should_run_training() == (True, "new event: dynamic_20240101")
    boss = TrainingOrchestrator(boss.store, Clock(start.after(days=7)), boss.settings)
    assert boss.should_run_training() == (True, "scheduled: last training 7.0 days ago")
    with boss.store.write() as conn:
        db.take_lease(conn, "busy", 60, boss.clock)
    assert boss.should_run_training() == (False, "already running: busy")


def test_settings_that_name_other_bars_ask_for_a_cycle_and_let_no_champion_speak(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    clock, own = Clock(datetime(2024, 1, 2, tzinfo=UTC)), load_settings(market={"provider": "parquet", "path": "bars.parquet"})
    store = Store()
    orchestrator.refuse_other_data(store, own)  # nothing is on record
    with orchestrator.open_run("cycle", "t", store, load_settings(), clock) as run, store.write() as conn:
        db.finish_run(conn, run.run_id, "success", clock)
    orchestrator.refuse_other_data(store, load_settings())
    assert TrainingOrchestrator(store, clock, load_settings()).should_run_training()[0] is False
    assert TrainingOrchestrator(store, clock, own).should_run_training() == (True, "other data: [market] provider was packaged in the last cycle, and is parquet")
    with pytest.raises(ConfigError, match=f"provider was packaged.*and is parquet.*set MLTRADER_HOME.*now {tmp_path}.*mltrader cycle"):
        orchestrator.refuse_other_data(store, own)


def test_a_failed_cycle_is_recorded_and_raises_its_own_code(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    monkeypatch.setenv("MLTRADER_RUN__REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("MLTRADER_RUN__RETRIES_DATA", "1")  # each further one waits longer
    result = TrainingOrchestrator().run_training_cycle(kernels=False)  # no data in the cache
    assert (result["success"], result["exit_code"]) == (False, 5) and "data sync" in result["error"]
    with Store().read() as conn:
        run = db.runs(conn)[0]
    assert run["status"] == "failed" and "market" in run["error_message"]
    with pytest.raises(MltraderError, match="task `market` failed"):
        run_inline()


# --- predictions of a version ----------------------------------------------------------------------------------------

def test_the_champion_says_again_what_the_cycle_said(world):
    made = predict.predict(world.store, artifacts=ArtifactStore(world.folder / "artifacts"), name=registry.find_version(world.store, "challenger")["id"]
                           if registry.challenger(world.store) else None)
    said = reports.load_product(world.runs[2]["run_id"], "meta", world.store)["predictions"]
    assert not made.in_hindsight and made.frame[["symbol", "prediction", "abstain"]].equals(said[["symbol", "prediction", "abstain"]])
    assert np.allclose(made.frame[list(PROBABILITIES)], said[list(PROBABILITIES)], atol=1e-12)


def test_a_past_session_is_answered_by_the_champion_of_then(world):
    first = registry.champion(world.store, "2022-02-15")
    made = predict.predict(world.store, "2022-02-15", symbols=("KO", "BAC"))
    assert (made.version, made.in_hindsight) == (first["id"], False) and made.frame["symbol"].tolist() == ["BAC", "KO"]
    assert (made.frame["session"] == pd.Timestamp("2022-02-15")).all() and made.frame[list(PROBABILITIES)].sum(axis=1).round(6).eq(1).all()
    run = orchestrator.keep_predictions(world.store, load_settings(), made)
    with world.store.read() as conn:
        assert db.count_rows(conn, run)["model_predictions"] == 2
        kept = db.runs(conn, run_id=run)[0]
    assert (kept["kind"], kept["status"], str(kept["as_of"])) == ("predict", "success", "2022-02-15")


def test_hindsight_is_named_and_never_recorded(world):
    with pytest.raises(ConfigError, match="No champion was in force on 2015-06-01. Name a version to hear it in hindsight: --version production_v"):
        predict.predict(world.store, "2015-06-01")
    made = predict.predict(world.store, "2015-06-01", "production_v1")
    assert made.in_hindsight and len(made.frame) == 6
    with pytest.raises(ConfigError, match="not recorded"):
        orchestrator.keep_predictions(world.store, load_settings(), made)
    with world.store.read() as conn:
        assert db.runs(conn)[0]["status"] == "failed" and db.count_rows(conn, db.runs(conn)[0]["id"])["model_predictions"] == 0


@pytest.mark.parametrize(("session", "symbols", "error", "words"), [
    ("2022-04-15", (), DataError, "no bars of 2022-04-15"), (None, ("ZZZ",), ConfigError, "ZZZ: no bar on 2022-03-31; there are AMD, BAC")])
def test_what_was_not_observed_is_not_predicted(world, session, symbols, error, words):
    with pytest.raises(error, match=words):
        predict.predict(world.store, session, symbols=symbols)


def test_symbols_are_named_as_one_writes_them(world):
    """In capitals or not, before or after the options; one that is not there is wrong usage."""
    said = json.loads(CliRunner().invoke(app, ["predict", "ko", "--symbol", "bac", "--dry-run", "--json"]).stdout)
    assert [row["symbol"] for row in said["predictions"]] == ["BAC", "KO"]
    told = json.loads(CliRunner().invoke(app, ["explain", "ko", "--as-of", "2022-03-30", "--json"]).stdout)
    assert (told["symbol"], told["session"]) == ("KO", "2022-03-30")
    for command in (["explain", "ZZZ"], ["predict", "ZZZ"]):
        assert CliRunner().invoke(app, command).exception.exit_code == 2


def test_the_gates_word_on_trading_stands_beside_the_champion(world, monkeypatch):
    best = registry.champion(world.store)
    found = reports.tradable_of(world.store, best["id"])
    assert found["verdict"] in ("tradable", "not shown", "refuted")
    words = reports.tradable_words(found)
    assert words.startswith(found["verdict"])
    for command in ("status", "champion"):
        assert words in CliRunner().invoke(app, [command]).stdout
        document = json.loads(CliRunner().invoke(app, [command, "--json"]).stdout)
        assert document.get("champion", document)["tradable"]["verdict"] == found["verdict"]
    assert reports.tradable_words({"verdict": "refuted", "edge_ann": -0.046, "low": -0.08, "high": -0.015}) == "refuted, -4.6 % a year [-8.0, -1.5]"
    monkeypatch.setattr(reports, "load_product", lambda *_: {"decision": {}})  # of a version that judged otherwise
    assert reports.tradable_of(world.store, best["id"]) is None and reports.tradable_words(None) == "not on record"


def test_what_could_not_be_judged_is_not_called_no(world):
    text = CliRunner().invoke(app, ["drift"]).stdout
    with world.store.read() as conn:
        silent = sum(row["score"] is None for row in db.last_drift(conn))
    assert silent and text.count("insufficient") == silent and f"{silent} more could not judge" in text


def test_without_an_event_of_its_own_the_archives_are_counted(world, monkeypatch):
    from mltrader.events import DynamicArchiveUpdater

    monkeypatch.setattr(DynamicArchiveUpdater, "get_captured_events", lambda self: [])
    known = sum(name.startswith("event_") for name in reports.load_product(world.runs[2]["run_id"], "archive", world.store)._entries)
    assert known and f"the archive holds {known} canonical ones" in CliRunner().invoke(app, ["events"]).stdout


def test_a_version_on_other_features_or_with_other_bytes_is_refused(world):
    files = ArtifactStore(world.folder / "artifacts")
    inputs = {task: reports.Upstream(task, reports.read_outputs(reports.products_folder() / task / "outputs.json")["entries"], files) for task in ("features", "regimes")}
    other = {"feature_set": {**inputs["features"]["feature_set"], "version": "f" * 64}, "latest": inputs["features"]["latest"]}
    with pytest.raises(IntegrityError, match="a definition has changed"):
        predict.predict(world.store, inputs={"features": other, "regimes": inputs["regimes"]})
    entry = registry.champion(world.store)["manifest"]["components"]["meta"]
    path = files.path(entry["sha256"])
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + b" ")
        with pytest.raises(IntegrityError, match="was changed"):
            predict.predict(world.store)
    finally:
        path.write_bytes(whole)


def promoted_again(world, folder) -> tuple[Store, str, str]:
    """A copy of the store in which, on 25 March 2022, a version of the last December took the champion's place; the versions of champion and rival."""
    source, target = (sqlite3.connect(path) for path in (world.folder / "mltrader.db", folder / "copy.db"))
    source.backup(target)
    source.close(), target.close()
    store, clock, day = Store(f"sqlite:///{folder}/copy.db"), Clock(), date(2022, 3, 25)
    with store.write() as conn:
        before = db.alias_target(conn, registry.CHAMPION)["id"]
        version = next(v["id"] for v in db.known_versions(conn) if v["id"] != before and v["as_of"] < day)
        token = db.take_lease(conn, "by hand", 10**6, clock)
        db.start_run(conn, "by hand", "monitor", "test", token, {}, "d", clock)
        gate = db.add_gate_row(conn, "by hand", {"model_version": version, "trial_id": 1, "trials": 1, "kind": "refresh", "verdict": "PROMOTE", "as_of": day, "promoted_to_production": True}, [], clock)
        db.move_alias(conn, "by hand", registry.CHAMPION, version, before, token, day, clock, gate_id=gate)
    return store, version, before


def test_the_version_that_was_replaced_goes_on_predicting_in_the_shadow(world, tmp_path):
    """Champion and rival say of a session what each says alone; days that were missed are made up for, once, and never what a version has learned from."""
    (store, champion, rival), files = promoted_again(world, tmp_path), ArtifactStore(world.folder / "artifacts")
    found = predict.shadow(store, artifacts=files)
    days = ["2022-03-25", "2022-03-28", "2022-03-29", "2022-03-30", "2022-03-31"]
    with store.read() as conn:
        learned = str(db.version_row(conn, rival)["as_of"])
        token = db.current_lease(conn)["token"]
    assert (found.champion.version, found.rival.version, found.rival.in_hindsight) == (champion, rival, False) and "is watched against production_v" in found.words
    assert found.champion.frame["session"].dt.strftime("%Y-%m-%d").unique().tolist() == days
    assert found.rival.frame["session"].dt.strftime("%Y-%m-%d").unique().tolist() == [day for day in days if day >= learned]
    for one in (found.champion, found.rival):
        alone = predict.predict(store, "2022-03-31", one.version, artifacts=files).frame
        assert one.frame[one.frame["session"] == "2022-03-31"].reset_index(drop=True).equals(alone)
    written = predict.record(store, "by hand", token, found.champion, found.rival)
    assert written == len(found.champion.frame) + len(found.rival.frame)
    told = predict.recorded(store, since=days[0])  # another test may have recorded an older day
    assert list(told.columns) == list(predict.SAID) and len(told) == written and told["label"].isna().all() and set(told["version"]) == {champion, rival}
    last = told[(told["session"] == "2022-03-31") & (told["version"] == champion)].sort_values("symbol")
    said = found.champion.frame[found.champion.frame["session"] == "2022-03-31"].sort_values("symbol")
    assert last["symbol"].tolist() == said["symbol"].tolist() and np.array_equal(last[list(PROBABILITIES)], said[list(PROBABILITIES)])
    assert len(predict.recorded(store, since=days[0], until="2022-03-28")) == int((told["session"] <= "2022-03-28").sum()) > 0 == len(predict.recorded(store, since="2022-04-01"))
    again = predict.shadow(store, artifacts=files)
    assert all((one.frame["session"] == "2022-03-31").all() for one in (again.champion, again.rival))
    with store.write() as conn:
        manifest = db.version_row(conn, rival)["manifest"]
        conn.execute(db.model_versions.update().where(db.model_versions.c.id == rival).values(manifest=manifest | {"feature_set": "f" * 64}))
    alone = predict.shadow(store, artifacts=files)
    assert alone.rival is None and "There is no rival" in alone.words and "was trained on the feature set ffffffffffff" in alone.words


def test_rolling_back_restores_the_exact_version_and_is_on_record(world):
    with world.store.read() as conn:
        moves = db.promotions(conn, registry.CHAMPION)
    if len(moves) == 1:
        with pytest.raises(ConfigError, match="nothing to roll back to"):
            orchestrator.roll_back(world.store, load_settings())
        return
    now = registry.champion(world.store)
    assert orchestrator.roll_back(world.store, load_settings()) == moves[-2]["name"]
    assert registry.champion(world.store)["id"] == moves[-2]["model_version"]
    with world.store.read() as conn:
        assert (db.runs(conn)[0]["kind"], db.runs(conn)[0]["status"]) == ("rollback", "success") and db.looks_of_reign(conn, registry.CHAMPION)[0] >= 1  # the earlier reign goes on
    assert orchestrator.roll_back(world.store, load_settings(), now["name"]) == now["name"]  # and forth again, by name


def test_a_signal_that_a_finalizer_swallows_is_heard_all_the_same():
    """Python reports what is raised in `__del__` and goes on; a run told to stop in that moment has to stop."""
    swallowed = []

    class Freed:
        def __del__(self):
            swallowed.append(signal.getsignal(signal.SIGTERM))
            signal.raise_signal(signal.SIGTERM)
            swallowed.append("not raised here")

    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), orchestrator.terminable():
        thing = Freed()
        del thing
        assert len(swallowed) == 1  # the signal came, and its exception ended no more than the finalizer
        time.sleep(5)
        swallowed.append("nor later")
    assert len(swallowed) == 1 and sys.unraisablehook is before and signal.getsignal(signal.SIGTERM) is not swallowed[0]


def test_a_notebook_is_saved_at_its_end_however_it_ends(tmp_path, monkeypatch):
    """Not twice a cell, and yet what was said before the kernel died is in the file."""
    import nbformat
    import papermill
    from papermill import engines

    notebook, saves, write = tmp_path / "in.ipynb", [], engines.write_ipynb
    monkeypatch.setattr(engines, "write_ipynb", lambda nb, path: (saves.append(path), write(nb, path)))
    cells = [nbformat.v4.new_code_cell(f"print('cell {number}')") for number in range(9)] + [nbformat.v4.new_code_cell("import os; os._exit(1)")]
    cells.insert(4, nbformat.v4.new_code_cell("print('an example, which a build leaves out')", metadata={"tags": ["example"]}))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    with pytest.raises(Exception, match="[Kk]ernel died"):
        papermill.execute_notebook(notebook, tmp_path / "out.ipynb", engine_name=orchestrator._engine(), kernel_name="python3", progress_bar=False)
    made = nbformat.read(tmp_path / "out.ipynb", 4)
    assert [cell.outputs[0].text for cell in made.cells[:9]] == [f"cell {number}\n" for number in range(9)]
    assert 1 <= len(saves) <= 6  # papermill's own engine saves twice a cell


# --- the fits that the gate makes for itself -------------------------------------------------------------------------

def products(world, number: int) -> dict:
    return {task: reports.load_product(world.runs[number]["run_id"], task, world.store) for task in ("features", "regimes", "archive", "memory", "forest", "boosting", "meta")}


def test_the_same_base_predictions_give_the_same_evaluation(world):
    """`refits.restack` repeats what meta did: stacks, choices and temperatures of every fold, each from what was known at its cut-off."""
    inputs, evaluation = products(world, 2), reports.load_product(world.runs[2]["run_id"], "meta", world.store)["evaluation"]
    fresh = refits.joined([inputs[base]["out_of_fold"] for base in ("forest", "boosting")])
    both = evaluation[["row", *PROBABILITIES]].merge(refits.restack(inputs, load_settings(**EASY), fresh), on="row", suffixes=("", "_again"))
    assert len(both) == len(evaluation)
    assert np.allclose(both[list(PROBABILITIES)], both[[f"{name}_again" for name in PROBABILITIES]], atol=1e-6)


def test_a_fit_without_an_event_has_not_seen_it(world, monkeypatch):
    """The rows given to the models, caught on their way: none overlaps the event, and what touches it is gone from the archive, too."""
    inputs, settings, given = products(world, 0), load_settings(run={"as_of": "2021-12-31"}, **EASY), []
    events = refits.events_of(inputs, settings)
    real = refits.learned_from

    def spy(rows, samples):
        given.append(samples[["session", "label_known_at"]].iloc[rows["row"].to_numpy()])
        return real(rows, samples)

    monkeypatch.setattr(refits, "learned_from", spy)
    made = refits.without_events({**inputs, "fold_cache": {}}, settings, "2021-12-31")
    found = [name for name in events["event"] if name in set(made["event"])]
    assert len(found) > 2 and len(given) == len(found)
    for name, rows in zip(found, given, strict=True):
        judged = made[made["event"] == name]["session"]
        assert not ((rows["session"] <= judged.max()) & (rows["label_known_at"] >= judged.min())).any(), name
    again = refits.without_events({**inputs, "fold_cache": {}}, settings.model_copy(update={"run": settings.run.model_copy(update={"threads": 2})}), "2021-12-31")
    assert again.equals(made)  # threads change the time only


def seen(world, day: str) -> dict:
    """A monitor run on the session `day`."""
    return monitor(settings=load_settings(run={"as_of": day}, **EASY), store=world.store, fetch=False)


@pytest.fixture(scope="module")
def april(world):
    """Three monitor runs after the last cycle: two sessions, one of them twice, and a session three weeks later."""
    before = {path: path.read_bytes() for path in reports.products_folder().rglob("outputs.json")}
    found = [seen(world, day) for day in ("2022-04-01", "2022-04-04", "2022-04-04", "2022-04-26")]
    assert before == {path: path.read_bytes() for path in reports.products_folder().rglob("outputs.json")}  # a build finds its products as it left them
    return found


def test_each_day_is_looked_at_once_and_recorded(world, april):
    assert [(found["success"], found["faults"]) for found in april] == [(True, [])] * 4
    with world.store.read() as conn:
        made = [db.runs(conn, run_id=found["run_id"])[0] for found in april]
        counts = [db.count_rows(conn, found["run_id"]) for found in april]
    assert [(run["kind"], run["status"], str(run["as_of"])) for run in made] == [("monitor", "success", day) for day in ("2022-04-01", "2022-04-04", "2022-04-04", "2022-04-26")]
    assert "Nothing new: 2022-04-04" in april[2]["findings"][0] and counts[2]["model_predictions"] == counts[2]["drift_monitoring"] == 0
    assert counts[0]["model_predictions"] >= 6 and counts[0]["drift_monitoring"] >= 6


def test_predictions_meet_their_labels_when_those_are_known_and_never_before(world, april):
    """Recomputed from the stored probabilities and the day's own labels."""
    champion = registry.champion(world.store, "2022-04-26")["id"]
    with world.store.read() as conn:
        said, became = reports.live_rows(conn, champion, pd.Timestamp("2022-04-27").date()).values()
    assert became and {row["known_at"] for row in became} <= {pd.Timestamp("2022-04-26").date()} | {day.date() for day in pd.bdate_range("2022-04-01", "2022-04-26")}
    sessions = {str(row["session"]) for row in became}
    assert "2022-04-01" in sessions and max(sessions) <= "2022-04-04"  # entry a session later, 14 sessions, one more to be known
    with_labels = reports.Upstream("labels", reports.read_outputs(home() / "monitor" / "labels" / "outputs.json")["entries"], ArtifactStore(home() / "artifacts"))["labels"]
    truth = {(str(row.session.date()), row.symbol): row.label for row in with_labels[with_labels["session"] >= "2022-03-01"].itertuples()}
    proba = {(str(row["session"]), row["symbol"]): [row[name] for name in PROBABILITIES] for row in said}
    for row in became:
        key = str(row["session"]), row["symbol"]
        assert row["label"] == truth[key] and row["log_loss"] == pytest.approx(-np.log(proba[key][row["label"]]), rel=1e-6)


def test_a_monitor_run_is_in_the_chain_and_on_the_index(world, april):
    folder = reports.reports_folder(load_settings())
    for found in april:
        assert reports.verify_run(world.store, found["run_id"], folder, ArtifactStore(home() / "artifacts")) == []
    page = (folder / "index.html").read_text()
    assert "Daily checks" in page and april[0]["run_id"] in page and "Drift score" in page
    with world.store.read() as conn:
        rows = db.last_drift(conn)
    assert {row["drift_type"] for row in rows} >= {"feature", "regime"} and {str(row["session"]) for row in rows} == {"2022-04-26"}


def test_a_champion_that_cannot_be_heard_is_a_fault_and_the_rest_of_the_day_is_done(world, april, monkeypatch):
    def damaged(*_, **__):
        raise IntegrityError("forest.skops: the file was changed")

    monkeypatch.setattr(predict, "say", damaged)
    found = seen(world, "2022-04-27")
    assert (found["success"], found["exit_code"]) == (False, 1) and [step for step, _ in found["faults"]] == ["predict"]
    assert any(text.startswith("Drift score") for text in found["findings"])
    with world.store.read() as conn:
        run = db.runs(conn, run_id=found["run_id"])[0]
    assert run["status"] == "failed" and "predict: forest.skops" in run["error_message"]
    monkeypatch.undo()
    assert seen(world, "2022-04-27")["success"]  # not looked at well before: done again


def test_a_damaged_champion_gives_way_to_the_last_whole_one_or_the_fault_is_said(world, april):
    best = registry.champion(world.store)
    with world.store.read() as conn:
        earlier = [move["name"] for move in db.promotions(conn, "champion") if move["model_version"] != best["id"]]
    path = ArtifactStore(home() / "artifacts").path(best["manifest"]["components"]["meta"]["sha256"])
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    try:
        found = seen(world, "2022-04-28")
        if earlier:
            assert found["success"] and any(f"{earlier[-1]} is the champion again" in text for text in found["findings"])
            assert registry.champion(world.store)["name"] == earlier[-1]
        else:
            assert [step for step, _ in found["faults"]] == ["champion", "predict"] and "no earlier champion is whole" in found["faults"][0][1]
    finally:
        path.write_bytes(whole)


def test_a_damaged_result_is_made_again_and_never_read(world):
    product = reports.products_folder() / "regimes" / "outputs.json"
    marks = [product.with_name(name) for name in (".outputs.json.metadata", ".regimes.ipynb.metadata")]
    for mark in marks:
        mark.write_text("{}")
    assert orchestrator.drop_damaged() == [] and all(mark.is_file() for mark in marks)
    path = ArtifactStore(home() / "artifacts").path(reports.read_outputs(product)["entries"]["symbol_regimes"]["sha256"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    try:
        assert orchestrator.drop_damaged() == ["regimes"] and not any(mark.exists() for mark in marks)  # Ploomber takes the task as never done
    finally:
        path.write_bytes(whole)


def test_a_look_back_at_an_earlier_reign_moves_nothing(world, april, monkeypatch):
    """An alarm about a pair that is not in force any more is a finding, no rollback."""
    before = registry.champion(world.store)["id"]
    monkeypatch.setattr(predict, "watch", lambda *_: {"alarm": True, "champion": "0" * 64, "rival": before, "words": "A bet on the past was won."})
    with orchestrator.open_run("monitor", "test", world.store, load_settings(), Clock()) as run:
        assert keep_watch(run, "2022-04-28") == "A bet on the past was won." and registry.champion(world.store)["id"] == before


def test_healing_never_brings_back_what_was_sent_back(world, april, monkeypatch):
    """Of three promotions the second is in force again after a rollback; when it is damaged, the first takes over, not the third."""
    moves = [{"id": n, "name": f"production_v{n}", "model_version": f"m{n}"} for n in (1, 2, 3)]
    manifest = {"components": {"meta": {"sha256": "0" * 64}}}
    monkeypatch.setattr(registry, "champion", lambda *_: {"id": "m2", "name": "production_v2", "manifest": manifest, "rollback_to": 2, "move_id": 4})
    monkeypatch.setattr(db, "promotions", lambda *_: moves)
    monkeypatch.setattr(db, "version_row", lambda *_: {"manifest": {"components": {}}})
    monkeypatch.setattr(registry, "rollback", lambda *arguments: arguments[-1])
    with orchestrator.open_run("monitor", "test", world.store, load_settings(), Clock()) as run:
        assert "so production_v1 is the champion again" in heal(run)


@pytest.mark.parametrize("name", ["evaluation", "drift_reference"])
def test_a_damaged_file_of_the_champions_evidence_does_not_stop_the_days_work(world, april, name):
    best = registry.champion(world.store)
    path = ArtifactStore(home() / "artifacts").path(best["manifest"][name]["sha256"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    try:
        inputs = reports.watched_champion(world.store, ArtifactStore(home() / "artifacts"), "2022-04-29")["champion"]
        assert inputs["record"]["id"] == best["id"] and inputs[name] is None
        again = reports.live_champion(world.store, ArtifactStore(home() / "artifacts"), None, "d")["champion"]
        assert again["record"]["id"] == best["id"] and (again.get(name) is None)
    finally:
        path.write_bytes(whole)


def test_room_is_made_and_nothing_that_counts_is_lost(world, tmp_path, monkeypatch):
    shutil.copytree(world.folder, tmp_path / "home", ignore=shutil.ignore_patterns("cache"))
    own_home(monkeypatch, tmp_path / "home")
    store, artifacts, ids = Store(), ArtifactStore(home() / "artifacts"), [run["run_id"] for run in world.runs]

    def there() -> set[str]:
        return {path.name for path in artifacts.folder.glob("??/*")}

    def faults() -> list[str]:
        return [fault for run_id in ids for fault in reports.verify_run(store, run_id, world.folder / "reports", artifacts)]

    with store.read() as conn:
        names = {move["name"] for move in db.alias_history(conn, registry.CHAMPION)}
    before = there()
    told = reports.make_room(store, 1, dry_run=True)
    assert there() == before and 0 < told["files"] < len(before) and told["bytes"] > 1e6
    assert reports.make_room(store, 1) == told and len(there()) == len(before) - told["files"] == told["kept"]
    assert faults() == [] and reports.make_room(store, 1)["files"] == 0
    assert all(registry.damage(artifacts, registry.find_version(store, name)["manifest"]) is None for name in names)
    with pytest.raises(ConfigError, match="removed by `mltrader gc` on"):
        reports.load_product(ids[0], "features", store)
    assert len(reports.load_product(ids[2], "features", store)["features"]) > 1000
    assert len(predict.predict(store, artifacts=artifacts).frame) == 6
    with store.read() as conn:
        gone = db.collected(conn)
        lost = next(entry for entry in db.version_row(conn, registry.champion(store)["id"])["manifest"]["components"].values())
    artifacts.path(lost["sha256"]).unlink()  # nobody said that it may go
    assert any("is missing" in fault for fault in faults())
    with store.write() as conn:
        db.record_artifacts(conn, ids[2], [{"sha256": next(iter(gone))}])
    with store.read() as conn:
        assert len(db.collected(conn)) == len(gone) - 1
    with store.write() as conn:
        db.take_lease(conn, "somebody", 60, Clock())
    with pytest.raises(LeaseError, match="in progress"):
        reports.make_room(store, 1)


def test_a_day_that_is_none_of_the_panels_is_no_session_of_a_run(world):
    """The future is refused before anything is predicted; a weekend is recorded as the session before it."""
    found = seen(world, "2099-01-01")
    assert found["exit_code"] == 2 and [step for step, _ in found["faults"]] == ["market"] and "last session" in found["faults"][0][1]
    weekend = seen(world, "2022-04-24")
    with world.store.read() as conn:
        run, counts = db.runs(conn, run_id=weekend["run_id"])[0], db.count_rows(conn, found["run_id"])
    assert str(run["as_of"]) == "2022-04-22" and not counts["model_predictions"]
    assert orchestrator.effective_as_of(load_settings(run={"as_of": "2022-04-24"}, **EASY)) == "2022-04-22"


def test_what_an_interrupted_cycle_left_is_not_read(world):
    """A prediction, and an explanation, are of the last cycle that got through."""
    def stop(task: str) -> None:
        if task == "labels":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_inline(settings=load_settings(run={"as_of": "2021-06-30"}, **EASY), on_task=stop)
    assert reports.read_outputs(reports.products_folder() / "features" / "outputs.json")["as_of"] == "2021-06-30"
    assert set(predict.predict(world.store).frame["session"]) == {pd.Timestamp("2022-03-31")}
    assert CliRunner().invoke(app, ["explain", "KO", "--json"]).stdout.count('"session": "2022-03-31"') == 1


def test_a_build_into_another_home_is_refused(tmp_path, monkeypatch, capsys):
    """Ploomber's home is in env.yaml; with another MLTRADER_HOME, decisions and products would not belong together."""
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path / "mine"))
    monkeypatch.setattr(orchestrator, "prepare", lambda: [])
    executor = orchestrator.BuildExecutor()

    def dag(folder):
        product = SimpleNamespace(to_json_serializable=lambda: {"out": f"{folder}/products/market/outputs.json"})
        return {"market": SimpleNamespace(product=product, exec_status=SimpleNamespace(name="Skipped"))}

    with pytest.raises(SystemExit) as end:
        executor(dag(".mltrader"))
    assert end.value.code == 2 and "ploomber build --env--home" in capsys.readouterr().err
    assert executor(dag(tmp_path / "mine")) == []


def test_without_a_cycle_that_got_through_it_is_said_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="No cycle has got through yet.*mltrader cycle"):
        reports.last_products(("features",), Store(f"sqlite:///{tmp_path}/none.db"))


def test_the_summary_gives_ic_with_its_interval_and_says_what_p_is_of(world):
    """A single year's IC is far from 0 by chance, which only its interval shows."""
    source = {"performance": reports.load_product(world.runs[2]["run_id"], "backtest", world.store)["metrics"]}
    shown = orchestrator.table(SimpleNamespace(frames=source))
    assert shown.columns.get_loc("IC high") == shown.columns.get_loc("IC") + 2 == shown.columns.get_loc("IC low") + 1
    inside = shown.loc[("all", "stack")]  # a year that has just begun has no interval
    assert inside["IC low"] <= inside["IC"] <= inside["IC high"]
    overview = reports.load_product(world.runs[2]["run_id"], "summary", world.store)["overview"]
    assert "(p: over all windows)" in orchestrator.verdict_html(SimpleNamespace(documents={"overview": overview}))
