"""The walk through history: nothing of the future is seen, a look is the monitor's evening, a stopped walk goes on, and any decision can be made again."""
import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import own_home
from typer.testing import CliRunner

from mltrader import orchestrator, registry, rehearsal
from mltrader import store as db
from mltrader import timemachine as tm
from mltrader.backtest import HistoricalBacktest
from mltrader.config import Settings, home, load_settings
from mltrader.core import CLASSES, PROBABILITIES, REGIMES, ConfigError, DataError, LeaseError, MltraderError
from mltrader.store import Store

# Wide margins: here it matters that champions come and go, not how the six stocks fare.
EASY = {"promotion": {"margin": 10.0, "regime_margin": 10.0, "max_calibration_error": 1.0}, "universe": {"symbols": ["AMD", "RRC", "BBY", "BAC", "KO", "PG"], "start": "2010-01-01"},
        "timemachine": {"interval_days": 80}}
START, STOP, END = "2020-01-15", "2020-03-04", "2020-04-17"  # the crash of 2020 is met on the way


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A walk through the first half of 2020 that was stopped once."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        own_home(patch, folder)
        settings, main, task = load_settings(**EASY), tm.ARMS["main"], orchestrator.run_task

        def cut_off(run, name):
            if name == "meta":
                raise KeyboardInterrupt
            return task(run, name)

        with pytest.MonkeyPatch.context() as inner, pytest.raises(KeyboardInterrupt):
            inner.setattr(orchestrator, "run_task", cut_off)
            list(tm.walk(main, START, STOP, settings))
        steps = list(tm.walk(main, START, STOP, settings))                                      # the cycle that was cut off is made up for, on its own evening
        assert os.environ["MLTRADER_HOME"] == str(folder)
        assert not list(tm.walk(main, START, STOP, settings))                                   # nothing is done twice
        steps += list(tm.walk(main, START, END, settings))
        own = tm.arm_folder("main")
        yield SimpleNamespace(folder=own, settings=settings, main=main, steps=steps, store=Store(f"sqlite:///{own / 'mltrader.db'}"), chosen=tm.settings_of(main, settings, own))


def rows(store, query, *values):
    with sqlite3.connect(store.url.database) as conn:
        return conn.execute(query, values).fetchall()


@pytest.mark.parametrize(("start", "end", "words"), [("2020-06-01", "2020-07-01", "would skip"), ("2019-06-03", END, "cannot begin on 2019-06-03")])
def test_a_walk_that_goes_on_elsewhere_is_refused(walked, monkeypatch, start, end, words):
    """Neither are years skipped, nor is an earlier beginning forgotten: nothing is done at all."""
    monkeypatch.setenv("MLTRADER_HOME", str(walked.folder.parents[1]))
    before = rows(walked.store, "select count(*) from training_runs")
    with pytest.raises(ConfigError, match=f"began on {walked.steps[0].session:%Y-%m-%d} and has come to {walked.steps[-1].session:%Y-%m-%d}.*{words}"):
        next(tm.walk(walked.main, start, end, walked.settings))
    assert rows(walked.store, "select count(*) from training_runs") == before


@pytest.mark.parametrize("first", [0, 250])
def test_an_input_that_becomes_known_on_the_way_is_refused_at_the_start(tmp_path, monkeypatch, first):
    """A volume from the second year on is known in enough rows of thirty years, and in too few of the first ten."""
    days = pd.bdate_range("1990-01-01", periods=7500).as_unit("us")
    panel = pd.MultiIndex.from_product([days, list("ABCDEFGHIJ")], names=["session", "symbol"]).to_frame(index=False).assign(close=1.0, adj_close=1.0, open=np.nan, high=np.nan, low=np.nan, volume=1.0)
    panel.loc[panel["session"] < days[first], "volume"] = np.nan
    index = pd.DataFrame({"session": days, "index_close": 1.0, **dict.fromkeys(("vix_open", "vix_high", "vix_low", "vix_close", "rate_3m", "rate_2y", "rate_10y"), 1.0)})
    settings = load_settings()
    chosen = tm.features.select(panel, index, settings.features)[0]
    world = tm.World({"market": {"panel": panel, "index": index}, "features": {"feature_set": {"version": tm.features.version(chosen), "names": [one.name for one in chosen]}}}, days.to_numpy(), np.ones(len(panel)))
    assert any("volume" in one.inputs for one in chosen)
    if first == 0:
        return tm.check_features_stay(world, settings, "1995-01-01")
    own_home(monkeypatch, tmp_path)
    monkeypatch.setattr(tm, "the_world", lambda settings: world)
    with pytest.raises(ConfigError, match=f"A cycle of 1995-01-02.*`volume` is known from {days[250]:%Y-%m-%d} on"):
        next(tm.walk(tm.ARMS["main"], "1995-01-01", "2018-01-01", settings))


def test_the_walk_trains_when_it_is_due_and_meets_the_crash(walked):
    cycles = [step for step in walked.steps if step.cycle]
    assert cycles[0].trigger == "never trained" and cycles[0].session == walked.steps[0].session <= pd.Timestamp(START) + pd.Timedelta(days=7) and all(step.cycle["error"] is None for step in cycles) and len(cycles) >= 2
    assert any(step.trigger.startswith(("scheduled", "new event", "drift")) for step in cycles[1:])
    days = [step.session for step in walked.steps]
    assert days == sorted(set(days)) and days[-1] >= pd.Timestamp(END) - pd.Timedelta(days=9)
    with walked.store.read() as conn:
        events = db.captured_events(conn)
        assert [run["kind"] for run in db.runs(conn) if run["status"] != "success"] == ["cycle"]     # the one that was cut off
        assert db.alias_target(conn, registry.CHAMPION) is not None
    caught = next(event for event in events if "2020-02-15" <= f"{event['start_date']}" <= "2020-03-05")
    assert f"{caught['detected_on']}" <= "2020-03-05"


def test_no_crisis_was_known_from_the_start(walked):
    assert walked.chosen.events.canonical == ()
    with walked.store.read() as conn:
        archived = {row["event"] for row in db.archived_events(conn)}
    assert not archived & {event.name for event in load_settings().events.canonical}


def test_predictions_are_made_before_their_sessions_are_over_and_never_in_hindsight(walked):
    said = rows(walked.store, "select p.session, r.as_of, v.as_of from model_predictions p join training_runs r on r.id = p.run_id join model_versions v on v.id = p.model_version where p.role = 'champion'")
    assert len(said) > 300 and all(made <= session <= run for session, run, made in said)
    spoken = pd.to_datetime(pd.Series(sorted({session for session, _, _ in said})))
    missing = pd.bdate_range(spoken.min(), spoken.max()).difference(spoken)
    assert len(missing) <= 4                                                                    # holidays alone: sessions between two looks are made up for


def test_a_session_is_not_shown_what_came_after(walked):
    with tm.at_home(walked.folder):
        world = tm.the_world(walked.chosen)
    for day in world.sessions[[700, 1500, 2500]]:
        for frames in world.known_at(day).values():
            for frame in frames.values():
                for dated in {"session", "label_known_at"} & set(frame if isinstance(frame, pd.DataFrame) else ()):
                    assert frame[dated].max() <= pd.Timestamp(day)
        latest = world.known_at(day)["features"]["latest"]
        whole = world.made["features"]["features"]
        counts = whole[whole["session"] <= pd.Timestamp(day)].groupby("symbol").size()
        last = latest[latest["session"] == pd.Timestamp(day)].set_index("symbol")["bars"]
        assert (last == counts.reindex(last.index)).all()


SAME = {
    "drift_monitoring": ("session, drift_type, window, round(score, 9), round(p_value, 9), detected", "drift_type in ('feature', 'performance', 'retrain')"),
    "model_predictions": ("model_version, session, symbol, role, round(proba_sell, 9), round(proba_buy, 9), prediction, abstain", "1"),
    "prediction_outcomes": ("model_version, session, symbol, label, round(log_loss, 9), round(prior_loss, 9)", "1"),
    "dynamic_events": ("event_name, state, start_date, end_date, detected_on, round(vix_peak, 6), round(drift_score, 9)", "1"),
    "live_watch": ("champion, rival, session, n_sessions, round(log_wealth, 9), alarm", "1"),
}


def evening_of(walked, folder, day, whole):
    """What an evening writes, looked at by the walk or by the monitor, from what is on record before it."""
    before = max((walked.folder / "snapshots").glob("*.gz"))
    with tm.at_home(folder):
        (folder / "mltrader.db").write_bytes(gzip.decompress(before.read_bytes()))
        (folder / "artifacts").symlink_to((walked.folder / "artifacts").resolve())
        chosen = tm.settings_of(walked.main, walked.settings, folder)
        man = tm.Watchman(tm.the_world(chosen), chosen, Store(), tm.Recalled(home() / "artifacts"))
        if whole:
            found = tm.whole_look(man, day)
        else:
            found = tm.look(man, day, True)
        return {table: sorted(rows(man.store, f"select {columns} from {table} where run_id = ? and {where}", found["run_id"]), key=str) for table, (columns, where) in SAME.items()}


def test_a_look_is_the_evening_of_the_monitor(walked, tmp_path):
    last = [step.session for step in walked.steps if step.cycle][-1]
    day = f"{next(step.session for step in walked.steps if step.session > last):%Y-%m-%d}"      # the first champion has spoken for a quarter by then
    ours, theirs = (evening_of(walked, tmp_path / name, day, whole) for name, whole in (("look", False), ("monitor", True)))
    for table in SAME:
        assert ours[table] == theirs[table], table
    assert ours["model_predictions"] and ours["drift_monitoring"] and ours["prediction_outcomes"]


HOLDER = """
import sys
from pathlib import Path
from mltrader.timemachine import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_an_arm_belongs_to_one_process(walked, monkeypatch):
    """A lease of simulated time has expired on the next evening: what keeps a second process out is a lock of the arm."""
    monkeypatch.setenv("MLTRADER_HOME", str(walked.folder.parents[1]))
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(walked.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for refused in (lambda: next(tm.walk(walked.main, START, "2020-05-15", walked.settings)), lambda: tm.explained(walked.main, END)):
            with pytest.raises(LeaseError, match="Another process walks the arm 'main'.*the same command goes on later"):
                refused()
        other.communicate()
    with tm.alone(walked.folder), tm.alone(walked.folder):                                     # its own walk may make a cycle again
        pass


def test_looks_that_failed_do_not_make_a_walk_forget_how_far_it_came(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    settings, store = load_settings(), Store()

    def look(day, fails):
        with orchestrator.open_run("monitor", "time machine", store, settings, tm.evening(day)) as run:
            with store.write() as conn:
                db.set_as_of(conn, run.run_id, pd.Timestamp(day).date())
            if fails:
                raise OSError("the disk is full")
            with store.write() as conn:
                db.finish_run(conn, run.run_id, "success", tm.evening(day))

    look("2008-10-01", False)
    for day in pd.bdate_range("2008-10-02", periods=6):
        with pytest.raises(OSError, match="disk"):
            look(day, True)
    assert tm.last_evening(store) == pd.Timestamp("2008-10-01")


def test_crises_of_ones_own_are_hindsight_too(tmp_path):
    own = load_settings(events={"extra": [{"name": "my_crisis", "start": "1998-07-20", "end": "1998-10-15", "regime": "crash", "weight": 0.1}]})
    for arm in tm.ARMS.values():
        named = {event.name for event in tm.settings_of(arm, own, tmp_path).events.named}
        assert ("my_crisis" in named) == bool(named) == (arm.name == "hindsight"), arm.name


@pytest.mark.parametrize(("trigger", "code", "error", "young"), [
    ("never trained", DataError.exit_code, "task `meta` failed: No fold has 3 known folds before it", True),
    ("never trained", 1, "task `memory` failed: OSError: No space left on device", False),
    ("scheduled: last training 91.0 days ago", DataError.exit_code, "task `meta` failed: No fold has 3 known folds before it", False),
    ("never trained", DataError.exit_code, "task `labels` failed: a bar is negative", False),
])
def test_only_a_history_that_is_too_short_lets_a_walk_go_on(monkeypatch, trigger, code, error, young):
    monkeypatch.setattr(orchestrator.TrainingOrchestrator, "run_training_cycle", lambda *a, **k: {"success": False, "error": error, "exit_code": code, "run_id": "r", "promoted": False})
    monkeypatch.setattr(orchestrator.TrainingOrchestrator, "__init__", lambda *a: None)
    if young:
        assert tm.cycle(None, load_settings(), "2008-10-01", trigger)["error"] == error
    else:
        with pytest.raises(MltraderError, match="the walk ends here: task.*the same command goes on"):
            tm.cycle(None, load_settings(), "2008-10-01", trigger)


def test_a_home_that_was_moved_goes_on(tmp_path, monkeypatch):
    for name in ("before", "after"):
        if name == "after":
            (tmp_path / "before").rename(tmp_path / "after")
        monkeypatch.setenv("MLTRADER_HOME", str(tmp_path / name))
        with tm.at_home(tm.arm_folder("main")) as folder:
            assert (folder / "folds").resolve() == (tmp_path / name / "folds").resolve() and (folder / "cache").is_dir()


def test_a_torn_line_of_the_book_of_times_costs_that_line_alone(tmp_path):
    step = tm.Step(pd.Timestamp("2008-10-01"), {"events": []}, None, None, 0.5)
    tm.noted(tmp_path, step)
    (tmp_path / "steps.jsonl").open("a").write('{"session": "2008-10-0')
    tm.noted(tmp_path, replace(step, session=pd.Timestamp("2008-10-03")))
    assert tm.steps_of(tmp_path)["session"].tolist() == [pd.Timestamp("2008-10-01"), pd.Timestamp("2008-10-03")]


def test_a_portfolio_buys_where_the_labels_enter(told):
    """At the open, where the labels say so; the panel is given opens a little above the close before."""
    made = told.world.made
    panel = made["market"]["panel"].assign(open=lambda p: p.groupby("symbol")["close"].shift().fillna(p["close"]) * 1.01)
    at_open = replace(told.world, made={**made, "market": {**made["market"], "panel": panel}, "labels": {**made["labels"], "labels": made["labels"]["labels"].assign(entry_source="open")}})
    words = told.frame[["session", "symbol"]].assign(abstain=told.frame["champion_abstain"].astype(bool), **{f"proba_{one}": told.frame[f"champion_{one}"] for one in CLASSES})
    until, index = told.frame["session"].max(), made["market"]["index"]
    expected, close = (HistoricalBacktest(told.settings.backtest, told.settings.labels.horizon, entry, told.settings.labels).run_backtest(words, panel[panel["session"] <= until], index[index["session"] <= until])["strategy"]
                       for entry in ("open", "close"))
    found = tm.money(told.frame, at_open, told.settings)[0]["champion"]
    np.testing.assert_array_equal(found, expected)
    assert not np.allclose(expected, close)


def test_a_decision_can_be_made_again_and_a_changed_past_is_seen(walked, tmp_path):
    assert load_settings().digest() != walked.settings.digest()                                # the settings of the walk count, not those in force now
    told = tm.explained(walked.main, END)
    assert told["equal"] and told["same_code"] and {"market", "meta", "promotion", "verdict", "rules"} <= set(told["again"])
    assert told["verdict"] in tm.in_words(told) and "all equal" in tm.in_words(told)
    path = walked.folder / "snapshots" / f"{told['session']}.db.gz"
    kept = path.read_bytes()
    copy = tmp_path / "changed.db"
    copy.write_bytes(gzip.decompress(kept))
    with closing(sqlite3.connect(copy)) as conn:                                               # a trial less was made, they say
        conn.execute("pragma journal_mode = delete")
        conn.execute("delete from trials")
        conn.commit()
    try:
        path.write_bytes(gzip.compress(copy.read_bytes()))
        again = tm.explained(walked.main, END)
        assert not again["equal"] and not again["again"]["promotion"] and again["again"]["features"]
        assert "DIFFERENT: " in tm.in_words(again)
    finally:
        path.write_bytes(kept)
    assert told["walked_until"] == f"{walked.steps[-1].session:%Y-%m-%d}" and "lies after it" not in tm.in_words(told | {"asked": told["walked_until"]})
    assert f"has come to {told['walked_until']}, and 2022-06-01 lies after it" in tm.in_words(told | {"asked": "2022-06-01"})
    with pytest.raises(ConfigError, match=f"had decided nothing by 2019-01-02: the walk began on {told['walked_from']} and has come to {told['walked_until']}"):
        tm.explained(walked.main, "2019-01-02")
    with pytest.raises(ConfigError, match="has not been walked"):
        tm.explained(tm.ARMS["replay"], END)


@pytest.fixture(scope="module")
def told(walked):
    return tm.journey("main", walked.settings)


def test_the_report_compares_on_the_same_rows(walked, told):
    assert told.champions >= 1 and told.scores is not None
    everything = told.scores[told.scores["scope"] == "all"].set_index("rival")
    assert set(everything.index) == {"champion", "newest", "never", "prior"} and everything["rows"].nunique() == 1
    with walked.store.read() as conn:
        said = pd.DataFrame(db.champions_words(conn))
    said["session"] = pd.to_datetime(said["session"])
    both = told.frame.merge(said, on=["session", "symbol"], suffixes=("", "_stored"))
    assert len(both) == len(told.frame)
    np.testing.assert_allclose(both[[f"champion_{one}" for one in ("sell", "hold", "buy")]], both[list(PROBABILITIES)], atol=1e-12)
    for figure in (tm.timeline, tm.gains_figure, tm.equity_figure):
        assert figure(told).axes
    assert len(tm.decisions_table(told)) == len(told.decisions) and tm.money_table(told)["portfolio"].tolist()[0] == "champion"
    assert "crises" in tm.verdict(told) and "No walk" in tm.verdict(None)


def made_up_report(seed: int) -> tuple[pd.DataFrame, list]:
    """A history in which nobody is better than anybody: champion and rivals are equally noisy."""
    rng, days = np.random.default_rng(seed), pd.bdate_range("1997-01-01", periods=900).to_numpy()
    frame = pd.MultiIndex.from_product([days, list("ABCD")], names=["session", "symbol"]).to_frame(index=False)
    frame = frame.assign(label=rng.integers(0, 3, len(frame)), forward_log_return=rng.normal(size=len(frame)), market_regime=np.repeat(np.array(REGIMES)[np.arange(len(days)) // 60 % 3], 4))
    for who in ("champion", "newest", "never", "window", "prior"):
        proba = np.exp(0.3 * rng.normal(size=(len(frame), 3)))
        frame = frame.assign(**dict(zip((f"{who}_{one}" for one in CLASSES), (proba / proba.sum(axis=1, keepdims=True)).T, strict=True)))
    return frame, [(f"crisis {k}", str(pd.Timestamp(days[k * 200]).date()), str(pd.Timestamp(days[k * 200 + 190]).date())) for k in range(4)]


def test_where_nobody_is_better_a_report_claims_nothing():
    """Of 20 reports of four rivals in eight scopes at most two claim something (5 % are one); each comparison by itself, many would."""
    settings, claimed, alone = Settings(splits={"bootstrap": 200}), 0, 0
    with pytest.MonkeyPatch.context() as patch:
        for seed in range(20):
            made = made_up_report(seed)
            count, better, worse = tm.claims(tm.score(made[0], settings, made[1]))
            claimed += better + worse > 0
            assert count == 4 * 8
            if seed < 8:
                patch.setattr(tm, "jointly", lambda found, settings: list(found))
                alone += sum(tm.claims(tm.score(made[0], settings, made[1]))[1:]) > 0
                patch.undo()
    assert claimed <= 2 and alone >= 4, (claimed, alone)


def test_intervals_hold_together_and_what_is_identical_is_no_comparison():
    one, settings = tm.Interval(1.0, 0.2, 1.8, 900, 900, 30), Settings()
    same, few = tm.Interval(0.0, 0.0, 0.0, 900, 900, 30), tm.Interval(1.0, 0.2, 1.8, 90, 90, settings.promotion.min_blocks - 1)
    alone, wide = tm.jointly([one, same, few], settings), tm.jointly([one] * 20, settings)
    assert (alone[0].low, alone[0].high) == pytest.approx((0.2, 1.8)) and alone[1] == same and np.isnan(alone[2].low)
    assert all(found.low < 0.0 < 2.0 < found.high and found.estimate == 1.0 for found in wide) and tm.jointly([few], settings)[0].n_blocks == few.n_blocks


def arm_on_record(folder, evenings, gates) -> Path:
    """A walk of an arm as far as the report asks: evenings of the monitor, and days of judged cycles."""
    folder.mkdir(parents=True)
    store = Store(f"sqlite:///{folder / 'mltrader.db'}")
    for number, (kind, day) in enumerate([*(("monitor", day) for day in evenings), *(("cycle", day) for day in gates)]):
        clock = tm.evening(day)
        with store.write() as conn:
            db.start_run(conn, f"{kind}_{number}", kind, "test", number, {}, "", clock)
            db.set_as_of(conn, f"{kind}_{number}", pd.Timestamp(day).date())
            db.finish_run(conn, f"{kind}_{number}", "success", clock, as_of=pd.Timestamp(day).date())
    store.engine.dispose()
    return folder


@pytest.mark.parametrize(("until", "first", "words"), [("2020-03-31", "2020-01-15", ""), ("2020-03-27", "2020-01-15", ""), ("2020-02-28", "2020-01-15", "has come to 2020-02-28, this walk to 2020-03-31"),
                                                       ("2020-03-31", None, "no judged cycle; it has come to 2020-03-31"), ("2020-03-31", "2020-02-03", "first model of the arm no_archive is of 2020-02-03"), (None, None, "was not walked")])
def test_a_rolling_window_speaks_only_where_it_was_followed(tmp_path, monkeypatch, until, first, words):
    """A stale arm, one without a judged cycle, or one that began later is named, not compared."""
    folder, days = tmp_path / "no_archive", pd.bdate_range("2020-01-02", "2020-03-31").to_numpy()
    if until is not None:
        arm_on_record(folder, ["2020-01-02", until], [])
    monkeypatch.setattr(db, "gate_history", lambda conn: [{"as_of": pd.Timestamp(first).date(), "model_version": "v"}] if first else [])
    pair, why = tm.rolling_window(folder, days, "2020-01-20", pd.Timestamp("2020-03-31"), 5)
    assert (pair is not None) == (not words) and words in why


def test_a_walk_that_began_inside_a_fall_has_no_false_event_for_it():
    path = pd.DataFrame({"session": pd.bdate_range("2008-01-01", periods=300)})
    path["index_close"] = np.interp(np.arange(300), [0, 100, 140, 200, 299], [100, 110, 80, 85, 120])
    caught = {"event_name": "a", "start_date": path["session"][101].date(), "end_date": path["session"][150].date(), "detected_on": path["session"][125].date(), "state": "trained", "trigger": "drawdown", "sample_count": 10}
    met, found = tm.crises_met(path, [caught], path["session"][110], path["session"][299])
    assert met.empty and found["false"].tolist() == [False]


def test_a_long_fall_is_told_whole_and_its_delay_counts_from_where_it_began():
    """Down 20 %, and, with no end in between, on to -50 %: the top of the last 60 sessions lies inside the fall."""
    path = pd.DataFrame({"session": pd.bdate_range("2008-01-01", periods=400)})
    path["index_close"] = np.interp(np.arange(400), [0, 100, 130, 250, 399], [100, 110, 88, 55, 110])
    day = path["session"]
    seen = int(np.flatnonzero(path["index_close"] <= 0.88 * 110)[0])
    caught = {"event_name": "a", "start_date": day[101].date(), "end_date": day[280].date(), "detected_on": day[seen + 2].date(), "state": "trained", "trigger": "drawdown", "sample_count": 10}
    met, found = tm.crises_met(path, [caught], day[0], day[399])
    assert met["crisis"].tolist() == [f"{day[250]:%Y-%m-%d} -50%"] and met["since"].tolist() == [day[seen]] and met["top"][0] > day[seen] and met["delay"].tolist() == [2.0]
    assert found["false"].tolist() == [False]


def test_the_headline_tells_of_money_too(told):
    """Whoever reads the first sentences alone learns what the portfolio was worth, and against whom."""
    said, rows = tm.verdict(told), told.portfolios[1].set_index("rival")
    assert f"A champion speaks from {told.frame['session'].min().date()} on" in said
    assert f"its portfolio made {tm._percent(*rows.loc['champion', ['edge_ann', 'edge_low', 'edge_high']])} a year against the same exposure" in said
    assert f"{tm._percent(*rows.loc['never', ['gain_ann', 'gain_low', 'gain_high']])} a year against {tm.RIVALS['never']}" in said and "class shares known at the time (+" in said and "a year against class" not in said


def test_the_report_counts_cycles_and_times_of_every_arm_and_what_was_earned_where(told, walked, monkeypatch):
    back = told.decisions.iloc[[0]].assign(verdict="ROLLBACK", kind="rollback")
    with_rollback = replace(told, decisions=pd.concat([told.decisions, back], ignore_index=True))
    assert with_rollback.cycles == told.cycles == len(told.decisions) and tm.arms_table(with_rollback)["cycles"].tolist() == [told.cycles, told.cycles]
    short = replace(told, arm=tm.ARMS["replay"], last=told.last - pd.Timedelta(days=9), frame=None)
    with monkeypatch.context() as other:
        other.setattr(tm, "journey", lambda name, settings=None: short if name == "replay" else None)
        assert tm.arms_table(told).set_index("arm").loc["replay", "what"].endswith(f"; it has come to {short.last.date()}")
    assert not told.drift["retrain"].any() and "the same walk" in tm.arms_table(told).set_index("arm").loc["calendar", "what"]
    assert tm.arms_table(replace(told, drift=told.drift.assign(retrain=True)))["arm"].tolist() == ["main"]
    assert "A rolling window is not compared: the arm no_archive was not walked." in tm.verdict(told)
    count = tm.claims(told.scores)[0]
    assert (f"adjusted for all {count} comparisons" in tm.verdict(told)) == bool(count)
    other = walked.folder.parent / "calendar"
    other.mkdir()
    try:
        (other / "steps.jsonl").write_text((walked.folder / "steps.jsonl").read_text().splitlines()[0] + "\n")
        costs = tm.costs_table().set_index(["arm", "what"])["number"]
        assert costs["main", "cycles"] == sum(step.cycle is not None for step in walked.steps) and costs["calendar", "evenings looked at"] == 1
    finally:
        shutil.rmtree(other)
    equity, nets = told.portfolios[0], tm.earned(told.frame, told.portfolios[0], tm.known_crises()).set_index(["scope", "rival"])["net_return"]
    assert nets["all", "champion"] == pytest.approx(equity["champion"].iloc[-1] - 1)
    regimes = [1 + nets[scope, "champion"] for scope in nets.index.get_level_values("scope").unique() if scope.startswith("regime")]
    assert np.prod(regimes) == pytest.approx(1 + nets["all", "champion"]) and "crisis: 2020 covid crash" in nets.index
    table = tm.scores_table(told)
    assert table.loc[table["rival"] == "prior", "net return"].eq("–").all() and table.loc[(table["rival"] == "champion") & (table["scope"] == "all"), "net return"].item() == f"{nets['all', 'champion']:+.1%}"


def test_a_walk_that_ends_before_its_champions_first_outcome_is_told(walked, told):
    """Days after the first promotion no label is known: there is nothing to compare, and the page says so."""
    made = told.world.made
    young = replace(told.world, made={**made, "labels": {**made["labels"], "labels": made["labels"]["labels"].query("session < '2019-01-01'")}})
    with pytest.raises(ConfigError, match="No outcome of what the champion said is known yet"), tm.at_home(walked.folder):
        tm.heard(young, walked.store, tm.Recalled(home() / "artifacts"))
    assert tm.verdict(replace(told, frame=None)).endswith("No outcome of what its champion said is known yet, so there is nothing to compare.")
    assert "ever in force" in tm.verdict(replace(told, frame=None, decisions=told.decisions.iloc[:0]))


def test_the_page_is_about_an_arm_that_was_walked(told, monkeypatch):
    """Without a walk of main, the first arm that was walked is told, and named."""
    asked = []
    monkeypatch.setattr(tm, "journey", lambda name, settings=None: asked.append(name) or (replace(told, arm=tm.ARMS[name], silent="") if name == "replay" else None))
    found = tm.told()
    assert found.arm.name == "replay" and asked == ["main", "no_archive", "replay"]
    assert tm.verdict(found).startswith("The arm replay (") and tm.arms_table(found)["arm"].tolist() == ["replay"]
    monkeypatch.setattr(tm, "journey", lambda name, settings=None: None)
    assert tm.told() is None and tm.arms_table(None).empty


def test_a_rival_without_a_word_on_some_rows_is_not_dropped_in_silence(walked, told, monkeypatch):
    real = tm.say_all
    monkeypatch.setattr(tm, "say_all", lambda *a: real(*a).iloc[5:])
    with pytest.raises(DataError, match=f"newest.*has no word on 5 of the {len(told.frame)} rows"), tm.at_home(walked.folder):
        tm.heard(told.world, walked.store, tm.Recalled(home() / "artifacts"))


def test_an_account_is_rehearsed_by_the_champions_of_a_walk(walked, monkeypatch):
    """Orders come from what the champion in force had said, and from nobody before there was one."""
    given, real = [], rehearsal.rehearse
    monkeypatch.setattr(rehearsal, "rehearse", lambda market, predictions, *more, **options: (given.append(predictions), real(market, predictions, *more, **options))[1])
    with walked.store.read() as conn:
        said = pd.DataFrame(db.champions_words(conn))
    found = rehearsal.leave_rehearsal(walked.settings, "2020-01-02", END, "main")
    assert "SHADOW" in found["watermark"] and f"{said['model_version'].nunique()} versions spoke" in (page := Path(found["page"]).read_text()) and "by the champions of a walk" in page
    assert np.array_equal(given[0][list(PROBABILITIES)], said[list(PROBABILITIES)]) and given[0]["session"].dt.date.tolist() == said["session"].tolist()
    assert f"from {said['session'].min()} to" in found["control"]["verdict"], "the account begins with the first champion"
    with pytest.raises(ConfigError, match="no walk 'calendar'.*--arm calendar"):
        rehearsal.leave_rehearsal(walked.settings, "2020-01-02", END, "calendar")


def test_the_first_champion_says_again_what_it_said_live(told):
    """The words of rivals are computed afterwards: for a model that did speak they are the words on record."""
    first = told.frame["model_version"].iloc[0]
    own = told.frame[told.frame["model_version"] == first]
    for one in ("sell", "hold", "buy"):
        np.testing.assert_allclose(own[f"champion_{one}"], own[f"never_{one}"], atol=1e-7)
    assert (own["champion_abstain"].astype(bool) == own["never_abstain"]).all()


def test_the_years_of_a_walk_can_be_fitted_ahead(walked):
    """What would be fitted ahead of the walk is what its cycles have fitted, name by name; and the events it met are those that were to come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLTRADER_HOME", str(walked.folder.parents[1]))
        assert tm.years_ahead(walked.main, START, END, walked.settings) == {"fits": 2 * 5, "made": 0}
    assert not (walked.folder / "ahead").exists()
    with tm.at_home(walked.folder):
        world = tm.the_world(walked.chosen)
    to_come = tm.events_to_come(world, walked.chosen, START, END)
    with walked.store.read() as conn:
        met = db.captured_events(conn)
    assert met and [(event["event_name"], f"{event['start_date']}") for event in met] == [(event["event_name"], f"{event['start_date']}") for event in to_come]


def test_with_workers_the_years_are_fitted_before_the_walk_and_the_walk_goes_by_itself(walked, monkeypatch):
    from mltrader import blocks
    from mltrader.cli import app

    said = []
    for name, answer in {"years_ahead": {"fits": 10, "made": 3}, "walk": (), "journey": None, "leave_page": "page", "walked_until": None}.items():
        monkeypatch.setattr(tm, name, lambda *a, name=name, answer=answer, **k: said.append((name, blocks.engine())) or answer)
    monkeypatch.setenv(blocks.ENGINE, "dask")
    made = CliRunner().invoke(app, ["timemachine", "--start", "2020", "--end", "2021"])
    assert made.exit_code == 0 and said[:2] == [("years_ahead", "dask"), ("walk", "threads")] and "3 of 10" in made.stderr


def test_cycles_to_be_checked_are_counted_over_all_calls(walked, monkeypatch):
    """A walk made in pieces of one cycle each has its N-th cycle made again as well."""
    from mltrader.cli import app

    step, asked = next(step for step in walked.steps if step.cycle), []
    with walked.store.read() as conn:
        count = len(db.gate_history(conn))
    again = pd.DataFrame({"what": ["meta"], "equal": [False]})
    for name, answer in {"walk": [step], "journey": None, "leave_page": "page"}.items():
        monkeypatch.setattr(tm, name, lambda *a, answer=answer, **k: answer)
    monkeypatch.setattr(tm, "reproduce", lambda arm, run_id, kernels: asked.append((run_id, kernels)) or again)
    made = [CliRunner().invoke(app, ["timemachine", "--every", f"{every}"]).exit_code for every in (count + 1, 0, count)]
    assert made == [0, 0, 1] and asked == [(step.cycle["run_id"], True)]


def test_command_line(walked):
    from mltrader.cli import app

    def call(*arguments):
        return CliRunner().invoke(app, ["timemachine", *arguments])

    assert call("--arm", "nobody").exit_code == 2
    planned = json.loads(call("--dry-run", "--json", "--start", "2020", "--end", "2021").stdout)
    assert planned["start"] == "2020-01-01" and planned["walked_until"] == f"{walked.steps[-1].session:%Y-%m-%d}"
    assert isinstance(call("--arm", "replay", "--explain", "2020-03-01").exception, ConfigError)


def test_a_walk_does_not_touch_the_everyday_home(walked):
    outer = walked.folder.parents[1]
    assert not (outer / "mltrader.db").exists() and not (outer / "products").exists()
    assert (walked.folder / "folds").is_symlink() and (outer / "folds").is_dir() and not (outer / "artifacts").exists()
