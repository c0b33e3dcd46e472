"""The rare-event archive: point in time, stratified, and the same on every call."""

import importlib
import shutil
import warnings
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mltrader import archive, memory, quality, reports
from mltrader import store as db
from mltrader.archive import KEYS, RareEventArchive
from mltrader.config import EventDefinition, Settings
from mltrader.core import REGIMES, TASKS, Clock, ConfigError, DataError
from mltrader.store import Store

HORIZON = 14
DAYS = pd.bdate_range("2006-01-02", "2012-12-31").as_unit("us")
SYMBOLS = ["AAA", "BBB", "CCC", "DDD"]
MARKET = pd.DataFrame({"session": DAYS, "regime": "normal", "vix": 20.0})


def make_labels() -> pd.DataFrame:
    frame = pd.MultiIndex.from_product([DAYS[: -HORIZON - 2], SYMBOLS], names=["session", "symbol"]).to_frame(
        index=False
    )
    at = np.searchsorted(DAYS, frame["session"])
    rng = np.random.default_rng(1)
    return frame.assign(
        label=rng.integers(0, 3, len(frame)).astype("int8"),
        label_end=DAYS[at + 1 + rng.integers(1, HORIZON + 1, len(frame))],
        label_known_at=DAYS[at + HORIZON + 2],
    )


LABELS = make_labels()
MOOD = LABELS[["session", "symbol"]].assign(regime="crash")
RNG = np.random.default_rng(5)
WARM_UP = 30
FULL = LABELS.assign(return_pct=RNG.normal(0, 5, len(LABELS)), forward_log_return=RNG.normal(0, 0.05, len(LABELS)))
INPUTS = {
    "labels": {"labels": FULL},
    "regimes": {"market_regimes": MARKET, "symbol_regimes": MOOD.assign(regime=RNG.choice(REGIMES[1:], len(MOOD)))},
    "features": {
        "features": MOOD[["session", "symbol"]].assign(a=RNG.normal(size=len(MOOD)).astype("f4"), b=np.float32("nan")),
        "feature_set": {"version": "v1", "names": ["a", "b"], "warm_up": WARM_UP},
    },
    "market": {
        "panel": MOOD[["session", "symbol"]].assign(adj_close=RNG.uniform(10, 20, len(MOOD)), volume=np.nan),
        "sectors": pd.DataFrame({"symbol": SYMBOLS[:3], "sector": "Energy"}),
    },
}


def since(start: str, inputs: dict = INPUTS) -> dict:
    """The inputs of a panel that begins on `start`."""
    cut = {task: {k: v[v["session"] >= start] if hasattr(v, "columns") and "session" in v else v for k, v in part.items()} for task, part in inputs.items()}
    return {task: {k: v.reset_index(drop=True) if hasattr(v, "columns") else v for k, v in part.items()} for task, part in cut.items()}


def version(name: str, inputs: dict = INPUTS) -> dict:
    """The inputs under another feature set."""
    return {**inputs, "features": {**inputs["features"], "feature_set": {**inputs["features"]["feature_set"], "version": name}}}


def definition(name: str, first: int, length: int, weight: float) -> EventDefinition:
    end = DAYS[min(first + length, len(DAYS) - 1)]
    return EventDefinition(name=name, start=DAYS[first].date(), end=end.date(), regime="crash", weight=weight)


event_lists = st.lists(
    st.tuples(st.integers(0, len(DAYS) - 2), st.integers(0, 200), st.floats(0.01, 1.0)), min_size=1, max_size=5
).map(lambda parts: [definition(f"e{i}", *part) for i, part in enumerate(parts)])
sessions = st.integers(0, len(DAYS) - 1).map(lambda i: DAYS[i])


@settings(max_examples=60, deadline=None)
@given(event_lists, sessions, sessions, st.sampled_from([0, 7, 60, 400]))
def test_nothing_after_the_cut_off_and_no_row_twice(events, as_of, later, aftermath):
    as_of, later = min(as_of, later), max(as_of, later)
    table = archive.event_table(events, [], MARKET, HORIZON, aftermath)
    now, then = archive.cut(LABELS, MOOD, table, as_of), archive.cut(LABELS, MOOD, table, later)
    assert not now.duplicated(["session", "symbol"]).any()
    assert (now["label_known_at"] <= as_of).all() and (now["known_from"] <= as_of).all()
    by_name = {e.name: e for e in events}
    ends = now["event"].map(lambda name: pd.Timestamp(by_name[name].end))
    over = now["session"] > ends
    assert (now["reason"].str.startswith("aftermath") == over).all() and (ends < as_of).all()
    assert (np.searchsorted(DAYS, now["session"]) - np.searchsorted(DAYS, ends) <= aftermath).all()
    for event in events:  # no aftermath lies within another event's own dates
        assert not now.loc[over, "session"].between(pd.Timestamp(event.start), pd.Timestamp(event.end)).any()
    # What was remembered then is remembered now, in the same words: a later event takes no row from an earlier one.
    visible = then[(then["known_from"] <= as_of) & (then["label_known_at"] <= as_of)].reset_index(drop=True)
    pd.testing.assert_frame_equal(now, visible)


@settings(max_examples=40, deadline=None)
@given(event_lists, sessions, st.integers(0, 800), st.integers(0, 2**32 - 1))
def test_draw_is_deterministic_bounded_and_nested(events, as_of, total, seed):
    held = archive.cut(LABELS, MOOD, archive.event_table(events, [], MARKET, HORIZON), DAYS[-1])
    positions = archive.draw(held, as_of, total, seed)
    usable = (held["known_from"] <= as_of) & (held["label_known_at"] <= as_of)
    assert len(positions) == min(total, int(usable.sum())) == len(np.unique(positions))
    assert usable.to_numpy()[positions].all()
    np.testing.assert_array_equal(positions, archive.draw(held, as_of, total, seed))
    shuffled = held.sample(frac=1, random_state=3)
    again = shuffled.iloc[archive.draw(shuffled.reset_index(drop=True), as_of, total, seed)].index
    assert set(again) == set(positions)


def test_draw_is_stratified_by_weight():
    table = archive.event_table([definition("a", 50, 100, 0.3), definition("b", 300, 100, 0.1)], [], MARKET, HORIZON)
    held = archive.cut(LABELS, MOOD, table, DAYS[-1])
    counts = held["event"].iloc[archive.draw(held, DAYS[-1], 200, 1)].value_counts()
    assert counts.to_dict() == {"a": 150, "b": 50}
    assert set(archive.draw(held, DAYS[-1], 200, 1)) != set(archive.draw(held, DAYS[-1], 200, 2))
    part = held.iloc[archive.draw(held, DAYS[-1], 200, 1)]
    assert part["symbol"].nunique() == 4 and part["session"].nunique() > 60  # spread over the event, not its first rows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 1), st.integers(0, 50)), min_size=1, max_size=8), st.integers(0, 300))
def test_allocation_is_exact_and_gives_spare_shares_away(parts, total):
    weights, available = np.array([w for w, _ in parts]), np.array([n for _, n in parts])
    counts = archive.allocate(weights, available, total)
    assert counts.sum() == min(total, available.sum()) and (counts <= available).all() and (counts >= 0).all()
    open_ = counts < available  # those not exhausted share in proportion, up to rounding
    if open_.sum() > 1:
        ideal = counts[open_].sum() * weights[open_] / weights[open_].sum()
        assert np.abs(counts[open_] - ideal).max() <= 2


def test_an_event_is_unknown_until_its_labels_are():
    table = archive.event_table([definition("a", 100, 20, 0.3)], [], MARKET, HORIZON)
    assert table["known_from"][0] == DAYS[120 + HORIZON + 1]
    assert len(archive.cut(LABELS, MOOD, table, DAYS[120 + HORIZON])) == 0
    assert (
        len(archive.cut(LABELS, MOOD, table, DAYS[120 + HORIZON + 1])) == 20 * 4
    )  # the last session matures one later
    assert len(archive.cut(LABELS, MOOD, table, DAYS[120 + HORIZON + 2])) == 21 * 4


def test_captured_events_join_and_missing_data_is_a_note():
    captured = [
        {"event_name": "seen", "start_date": str(DAYS[200].date()), "end_date": DAYS[220].date(), "weight": 0.4},
        {"event_name": "open", "start_date": str(DAYS[-5].date()), "end_date": None},
    ]
    before = EventDefinition(name="1987", start="1987-10-01", end="1987-10-30", regime="crash", weight=0.2)
    output = archive.run({**INPUTS, "state": {"captured_events": captured}}, Settings(events={"aftermath_sessions": 0, "canonical": [before]}), DAYS[-1])
    covered = output.frames["coverage"].set_index("event")
    assert covered["samples"].to_dict() == {"seen": 84, "open": 0, "1987": 0}
    assert covered.loc["open", "note"] == "still open" and "no labelled bars" in covered.loc["1987", "note"]
    assert set(output.frames["archive"]["reason"]) == {"captured event"}
    assert output.frames["archive"]["event_regime"].eq("normal").all()  # the market's regime at the time
    archive.figure(output)
    assert len(archive.table(output)) == 3


def test_a_captured_event_counts_from_the_day_it_had_matured_and_an_open_one_keeps_its_rows():
    """Until it has matured nothing of it is in the archive, not even as the aftermath of another event."""
    seen = {"event_name": "seen", "start_date": str(DAYS[300].date()), "end_date": str(DAYS[320].date()), "matured_on": str(DAYS[345].date()), "state": "matured"}
    first = definition("first", 250, 20, 0.2)
    for event, held in (({**seen}, 84), ({**seen, "state": "closed", "matured_on": None}, 0), ({**seen, "state": "open", "end_date": None, "matured_on": None}, 0)):
        output = archive.run({**INPUTS, "state": {"captured_events": [event]}}, Settings(events={"aftermath_sessions": 60, "canonical": [first]}), DAYS[-1])
        rows = output.frames["archive"]
        assert (rows["session"].between(DAYS[300], DAYS[320]) & (rows["event"] == "first")).sum() == 0
        own = rows[(rows["event"] == "seen") & (rows["reason"] == "captured event")]
        assert len(own) == held and (own["known_from"] == DAYS[345]).all()
        merged = output.rows["dynamic_events"]
        assert [(row["state"], row["sha256"]) for row in merged] == [("merged", row["sha256"]) for row in output.rows["archive_events"] if row["event"] == "seen"]
    early = archive.run({**INPUTS, "state": {"captured_events": [seen]}}, Settings(events={"canonical": []}), DAYS[344])
    assert len(early.frames["archive"]) == 0 and early.rows["dynamic_events"] == []
    again = archive.run({**INPUTS, "state": {"captured_events": [{**seen, "state": "merged"}]}}, Settings(events={"canonical": []}), DAYS[-1])
    assert len(again.frames["archive"]) and again.rows["dynamic_events"] == []              # merged once


def test_duplicated_labels_and_broken_captured_events_are_refused():
    table = archive.event_table([definition("a", 100, 20, 0.3)], [], MARKET, HORIZON)
    with pytest.raises(DataError, match="twice"):
        archive.cut(pd.concat([LABELS, LABELS]), MOOD, table, DAYS[-1])
    with pytest.raises(DataError, match="before its start"):
        archive.event_table(
            [], [{"event_name": "x", "start_date": "2010-02-01", "end_date": "2010-01-01"}], MARKET, HORIZON
        )


def test_inputs_are_left_alone():
    labels, mood = LABELS.copy(), MOOD.copy()
    archive.cut(labels, mood, archive.event_table([definition("a", 100, 20, 0.3)], [], MARKET, HORIZON), DAYS[-1])
    pd.testing.assert_frame_equal(labels, LABELS)
    pd.testing.assert_frame_equal(mood, MOOD)


# What is kept: payloads in files, their manifest in the store.

TWO = Settings(events={"aftermath_sessions": 0, "canonical": [definition("early", 600, 60, 0.3), definition("late", 1300, 60, 0.1)]})
AS_OF = DAYS[-1]


def open_archive(folder) -> RareEventArchive:
    return RareEventArchive(Store(f"sqlite:///{folder}/t.db"), folder / "artifacts")


@pytest.fixture
def held(tmp_path) -> RareEventArchive:
    made = open_archive(tmp_path)
    assert set(made.update(INPUTS, TWO, AS_OF)) == {"early", "late"}
    return made


def rows_of(held: RareEventArchive) -> list[dict]:
    with held.store.read() as conn:
        return db.archived_events(conn)


def files_of(held: RareEventArchive) -> set:
    return {path for path in held.artifacts.folder.rglob("*") if path.is_file()}


def damage(held: RareEventArchive, row: dict) -> None:
    path = held.artifacts.path(row["sha256"])
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@settings(max_examples=25, deadline=None)
@given(event_lists, sessions, st.integers(0, 600), st.booleans(), st.integers(0, 99))
def test_load_never_knows_more_than_its_session(tmp_path_factory, events, as_of, total, stratified, seed):
    """Whatever the events and however they overlap: no label and no event from after `as_of`, no (session, symbol) twice."""
    folder = tmp_path_factory.mktemp("archive")
    held, chosen = open_archive(folder), Settings(events={"aftermath_sessions": 0, "canonical": events})
    if not held.update(INPUTS, chosen, AS_OF):
        return
    found = held.load(as_of, total, stratified, seed)
    assert (found["label_known_at"] <= as_of).all() and (found["label_end"] <= as_of).all() and (found["known_from"] <= as_of).all()
    assert not found.duplicated(KEYS).any()
    everything = held.load(as_of)
    assert len(found) == min(total, len(everything)) and not everything.duplicated(KEYS).any()
    expected = archive.run(INPUTS, chosen, as_of).frames["archive"]  # the archive as a run at `as_of` would have cut it
    pd.testing.assert_frame_equal(everything[KEYS + ["event", "label"]], expected[KEYS + ["event", "label"]])
    pd.testing.assert_frame_equal(found, held.load(as_of, total, stratified, seed))
    shutil.rmtree(folder)


def test_the_property_would_notice_a_missing_purge(held, monkeypatch):
    """Red team: without the purge by `label_known_at`, a load at an early session does hold labels of its future."""
    as_of = rows_of(held)[0]["known_from"] if rows_of(held)[0]["event"] == "early" else rows_of(held)[1]["known_from"]
    assert (held.load(as_of)["label_known_at"] <= pd.Timestamp(as_of)).all()
    monkeypatch.setattr(archive, "usable_at", lambda frame, _: pd.Series(True, index=frame.index))
    assert (held.load(as_of)["label_known_at"] > pd.Timestamp(as_of)).any()


def test_load_is_stratified_by_weight_or_uniform(held):
    counts = held.load(AS_OF, 80)["event"].value_counts()
    assert counts.to_dict() == {"early": 60, "late": 20}
    even = held.load(AS_OF, 80, stratified=False)["event"].value_counts()
    assert 25 <= even["late"] <= 55 and even.sum() == 80  # 244 rows each
    assert not held.load(AS_OF, 80, seed=1).equals(held.load(AS_OF, 80, seed=2))
    with pytest.raises(ConfigError, match="at least 0"):
        held.load(AS_OF, -1)


def test_samples_are_those_that_memory_would_build(held):
    """One definition of a sample: an archived row equals the row that `24_memory` makes of the same panel."""
    assert archive.SAMPLE_FACTS == memory.SAMPLE_COLUMNS
    features, regimes = INPUTS["features"], INPUTS["regimes"]
    built = memory.build_samples(features["features"], ["a", "b"], WARM_UP, FULL, regimes["market_regimes"], regimes["symbol_regimes"], INPUTS["market"]["sectors"])
    mine = held.load(AS_OF)
    theirs = mine[KEYS].merge(built, how="left", on=KEYS)
    pd.testing.assert_frame_equal(mine[theirs.columns], theirs)
    assert set(mine["sector"]) == {"Energy", "Unknown"}  # a symbol that the sector table does not know


def test_a_rerun_adds_nothing_and_later_data_only_what_is_new(tmp_path):
    held = open_archive(tmp_path)
    middle = DAYS[1000]
    assert held.update(INPUTS, TWO, middle) == ["early"]
    before, files = rows_of(held), files_of(held)
    assert held.update(INPUTS, TWO, middle) == [] and (rows_of(held), files_of(held)) == (before, files)
    assert held.update(INPUTS, TWO, AS_OF) == ["late"]  # `early` is the same as before
    assert len(rows_of(held)) == 2
    heavier = [e.model_copy(update={"weight": 0.5}) if e.name == "late" else e for e in TWO.events.canonical]
    assert held.update(INPUTS, Settings(events={"aftermath_sessions": 0, "canonical": heavier}), AS_OF) == ["late"]
    assert held.load(AS_OF).groupby("event")["event_weight"].first().to_dict() == {"early": 0.3, "late": 0.5}


def test_a_user_adds_an_event_that_overlaps_and_corrects_another(held):
    """The newcomer was known first and takes rows over; corrected dates leave the rest out; nothing is there twice or lost."""
    user = definition("user", 590, 40, 0.2)
    assert set(held.update(INPUTS, Settings(events={"aftermath_sessions": 0, "canonical": TWO.events.canonical, "extra": [user]}), AS_OF)) == {"user", "early"}
    found = held.load(AS_OF)
    assert found["event"].value_counts().to_dict() == {"late": 244, "user": 164, "early": 120} and not found.duplicated(KEYS).any()
    assert held.coverage().set_index("event")["samples"].to_dict() == {"user": 164, "early": 120, "late": 244}
    shorter = [definition("early", 640, 20, 0.3), definition("late", 1310, 50, 0.1), user]
    assert set(held.update(INPUTS, Settings(events={"aftermath_sessions": 0, "canonical": shorter}), AS_OF)) == {"early", "late"}
    assert held.load(AS_OF)["event"].value_counts().to_dict() == {"late": 204, "user": 164, "early": 84}
    captured = {**INPUTS, "state": {"captured_events": [{"event_name": "dynamic_1", "start_date": DAYS[1400], "end_date": DAYS[1420]}]}}
    assert held.update(captured, Settings(events={"aftermath_sessions": 0, "canonical": shorter}), AS_OF) == ["dynamic_1"]
    assert set(held.load(AS_OF).query("event == 'dynamic_1'")["reason"]) == {"captured event"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_killed_between_payload_and_manifest_it_resumes(tmp_path, monkeypatch, error):
    held = open_archive(tmp_path)

    def die(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(archive.db, "add_archived", die)
        with pytest.raises(error):
            held.update(INPUTS, TWO, AS_OF)
    files = files_of(held)
    assert len(files) == 2 and rows_of(held) == []  # files that nobody names: not half an archive
    assert set(held.update(INPUTS, TWO, AS_OF)) == {"early", "late"} and files_of(held) == files
    assert held.verify() == []


def test_the_manifest_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """The second row is refused: the first is not there either."""
    held, good = open_archive(tmp_path), archive.assemble

    def with_a_bad_row(*args):
        output = good(*args)
        output.rows["archive_events"][1]["n_rows"] = 0
        return output

    with monkeypatch.context() as patch:
        patch.setattr(archive, "assemble", with_a_bad_row)
        with pytest.raises(Exception, match="n_rows"):
            held.update(INPUTS, TWO, AS_OF)
    assert rows_of(held) == []


def test_a_new_feature_set_cuts_all_events_again(held):
    assert set(held.update(version("v2"), TWO, AS_OF)) == {"early", "late"}
    assert set(held.load(AS_OF)["feature_set"]) == {"v2"} and set(held.load(AS_OF, feature_set="v1")["feature_set"]) == {"v1"}
    with pytest.raises(ConfigError, match=r"no samples of feature set 'v3', but of \['v1', 'v2'\]"):
        held.load(AS_OF, feature_set="v3")


def test_an_event_under_another_feature_set_is_left_out_and_said_so(held):
    """The panel begins after `early`, so that only `late` can be cut under the new version."""
    assert held.update(version("v2", since("2009-06-01")), TWO, AS_OF) == ["late"]
    with pytest.warns(UserWarning, match="early: archived under feature set v1 only, now it is v2"):
        assert set(held.load(AS_OF)["event"]) == {"late"}
    covered = held.coverage().set_index("event")
    assert covered["samples"].to_dict() == {"early": 0, "late": 244} and "v1 only" in covered.loc["early", "note"]
    assert set(held.load(AS_OF, feature_set="v1")["event"]) == {"early", "late"}  # nothing is lost


def test_other_label_settings_are_not_mixed_in(held):
    other = Settings(events=TWO.events, labels={"take_profit": 0.2})
    assert held.update(since("2009-06-01"), other, AS_OF) == ["late"]
    with pytest.warns(UserWarning, match="early: archived under other label settings only"):
        assert set(held.load(AS_OF)["event"]) == {"late"}


def test_a_damaged_file_is_passed_over_for_the_last_good_one(held):
    first = {row["event"]: row for row in rows_of(held)}
    revised = {**INPUTS, "labels": {"labels": FULL.assign(return_pct=FULL["return_pct"] + 1)}}
    assert set(held.update(revised, TWO, DAYS[-1])) == {"early", "late"}
    newest = next(row for row in rows_of(held) if row["event"] == "early")
    damage(held, newest)
    with pytest.warns(UserWarning, match="early, archived as of 2012-12-31, cannot be used: .*was changed"):
        found = held.load(AS_OF)
    old = held._read(first["early"]["sha256"])
    np.testing.assert_array_equal(found.loc[found["event"] == "early", "return_pct"], old["return_pct"])
    assert len(found[found["event"] == "late"]) == 244 and len(held.verify()) == 1 and "early" in held.verify()[0]
    damage(held, first["early"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert set(held.load(AS_OF)["event"]) == {"late"}
    assert len(said) == 2
    assert held.coverage().set_index("event").loc["early", "samples"] == 0 and len(held.verify()) == 2
    held.artifacts.path(newest["sha256"]).unlink()
    held.update(revised, TWO, AS_OF)  # cutting again brings the file back
    assert len(held.verify()) == 1 and len(held.load(AS_OF)) == 488


def test_an_old_file_that_is_not_needed_is_not_read(held):
    """Damage to a cut that a newer one replaces is for `verify` to tell, and no reason to warn who loads."""
    old = {row["event"]: row for row in rows_of(held)}["early"]
    held.update({**INPUTS, "labels": {"labels": FULL.assign(return_pct=0.0)}}, TWO, AS_OF)
    damage(held, old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(held.load(AS_OF)) == 488
    assert len(held.verify()) == 1


def test_a_file_that_is_whole_but_something_else_is_refused(held):
    """A manifest row that points at another artifact: right hash, wrong samples."""
    rows = {row["event"]: row for row in rows_of(held)}
    document = held.artifacts.put({"no": "frame"})
    with held.store.write() as conn:
        t = db.archive_events
        conn.execute(t.update().where(t.c.id == rows["early"]["id"]).values(sha256=rows["late"]["sha256"]))
        conn.execute(t.update().where(t.c.id == rows["late"]["id"]).values(sha256=document.sha256))
    assert len(held.verify()) == 2
    with pytest.warns(UserWarning) as said, pytest.raises(DataError, match="cannot be read as a frame"):
        held.load(AS_OF)
    assert len(said) == 2 and any("does not hold the 244 samples of early" in str(one.message) for one in said)


def test_a_row_that_names_another_number_of_samples_is_noticed(held):
    with held.store.write() as conn:
        conn.execute(db.archive_events.update().where(db.archive_events.c.event == "late").values(n_rows=243))
    assert len(held.verify()) == 1 and "does not hold the 243 samples of late" in held.verify()[0]


def test_bad_definitions_and_inputs_name_what_is_wrong(held):
    with pytest.raises(ValidationError, match="event `x` ends on 2010-01-01, before its start 2010-02-01"):
        EventDefinition(name="x", start="2010-02-01", end="2010-01-01", regime="crash", weight=0.1)
    bare = {**INPUTS, "regimes": {**INPUTS["regimes"], "symbol_regimes": INPUTS["regimes"]["symbol_regimes"].query("symbol != 'BBB'")}}
    with pytest.raises(DataError, match="BBB on 20.* has no regime"):
        held.update(bare, TWO, AS_OF)
    with pytest.raises(DataError, match=r"features lacks the column\(s\) \['a'\]"):
        held.update({**INPUTS, "features": {**INPUTS["features"], "features": MOOD[KEYS].assign(b=1.0)}}, TWO, AS_OF)
    assert len(rows_of(held)) == 2 and held.verify() == []  # nothing half-written
    with pytest.raises(ConfigError, match="is not a date"):
        held.load("soon")


def test_unknown_symbols_windows_without_data_and_absent_regimes_are_no_error(tmp_path):
    """A labelled symbol without features gives no samples; an event without bars is a line that says so; a regime may be empty."""
    held, before = open_archive(tmp_path), EventDefinition(name="1987", start="1987-10-01", end="1987-10-30", regime="crash", weight=0.2)
    stranger = pd.concat([FULL, FULL[FULL["symbol"] == "AAA"].assign(symbol="ZZZ")])
    inputs = {**INPUTS, "labels": {"labels": stranger}}
    output = archive.run(inputs, Settings(events={"aftermath_sessions": 0, "canonical": [before, *TWO.events.canonical]}), AS_OF)
    assert "ZZZ" not in set(output.frames["archive"]["symbol"])
    note = output.frames["coverage"].set_index("event").loc["early", "note"]
    assert note == "61 labelled rows have no settled features (no features at all: ZZZ)"
    line = output.frames["coverage"].set_index("event").loc["1987"]
    assert (line["samples"], line["source"]) == (0, "missing") and "no labelled bars" in line["note"]
    assert held.update(inputs, Settings(events={"aftermath_sessions": 0, "canonical": [before]}), AS_OF) == []
    with pytest.raises(ConfigError, match="archive is empty"):
        held.load(AS_OF)
    held.update(inputs, TWO, AS_OF)
    assert (held.coverage()["low_volatility"] == 0).all() and (held.coverage()["crash"] > 0).all()
    archive.figure(output)


@settings(max_examples=25, deadline=None)
@given(event_lists, st.integers(0, len(DAYS) - 200))
def test_kept_and_cut_now_are_the_whole_and_overlap_nowhere(events, start):
    """However short the present panel: what it does not reach comes from the earlier run, row by row the same, and nothing twice."""
    chosen = Settings(events={"aftermath_sessions": 0, "canonical": events})
    whole = archive.run(INPUTS, chosen, AS_OF)
    files = {row["sha256"]: whole.frames[f"event_{row['event']}"] for row in whole.rows["archive_events"]}
    short = {**since(str(DAYS[start].date())), "state": {"archived_events": whole.rows["archive_events"]}, "archived": files}
    again = archive.run(short, chosen, AS_OF)
    now = pd.concat([whole.frames["kept"], *(f for n, f in again.frames.items() if n.startswith("event_"))])
    assert now.merge(again.frames["kept"], on=KEYS).empty
    known = ["session", "symbol", "event", "event_weight", "label", "label_known_at"]
    pd.testing.assert_frame_equal(again.frames["archive"][known], whole.frames["archive"][known])
    assert again.frames["kept"].dtypes.equals(whole.frames["kept"].dtypes)
    if len(again.frames["archive"]):
        archive.figure(again)


@pytest.mark.parametrize(("inputs", "label", "said"), [
    (version("v2"), {}, "archived under feature set v1 only, now it is v2"),
    (INPUTS, {"take_profit": 0.2}, "archived under other label settings only"),
])
def test_a_run_mixes_in_no_other_feature_set_and_no_other_label(inputs, label, said):
    first = archive.run(INPUTS, TWO, AS_OF)
    files = {row["sha256"]: first.frames[f"event_{row['event']}"] for row in first.rows["archive_events"]}
    short = {**since("2009-06-01", inputs), "state": {"archived_events": first.rows["archive_events"]}, "archived": files}
    again = archive.run(short, Settings(events=TWO.events, labels=label), AS_OF)
    line = again.frames["coverage"].set_index("event").loc["early"]
    assert len(again.frames["kept"]) == 0 and (line["source"], line["samples"]) == ("missing", 0) and said in line["note"]


def test_a_short_panel_does_not_hide_what_an_earlier_run_had():
    """Three runs: a long panel, a short one that reaches only the end of the event, and one that reaches nothing of it."""
    first = archive.run(INPUTS, TWO, AS_OF)
    files = {row["sha256"]: first.frames[f"event_{row['event']}"] for row in first.rows["archive_events"]}
    middle = str(DAYS[590].date())
    second = archive.run({**since(middle), "state": {"archived_events": first.rows["archive_events"]}, "archived": files}, TWO, AS_OF)
    files |= {row["sha256"]: second.frames[f"event_{row['event']}"] for row in second.rows["archive_events"]}
    assert 0 < len(second.frames["event_early"]) < 244 == second.frames["archive"]["event"].eq("early").sum()
    assert "cut now; kept, as of 2012-12-31" in second.frames["coverage"].set_index("event").loc["early", "source"]
    ledger = [*second.rows["archive_events"], *first.rows["archive_events"]]  # newest first
    third = archive.run({**since("2009-06-01"), "state": {"archived_events": ledger}, "archived": files}, TWO, AS_OF)
    pd.testing.assert_frame_equal(third.frames["kept"][KEYS], first.frames["event_early"][KEYS])


# With a store and the tasks' own machinery: two cycles, the second on a panel that begins after 2008.

CYCLE = TASKS[: TASKS.index("archive") + 1]


def write_bars(path, start: str, end: str) -> None:
    days, rng = quality.sessions("XNYS", "2004-01-02", "2016-12-30"), np.random.default_rng(11)
    close = pd.DataFrame(50 * np.exp(rng.normal(0, 0.02, (len(days), 4)).cumsum(axis=0)), index=days, columns=["AAA", "BBB", "CCC", "DDD"])
    bars = close.loc[start:end].rename_axis("date").reset_index().melt("date", var_name="symbol", value_name="close")
    bars.to_parquet(path, index=False)


def cycle(store: Store, run_id: str, chosen: Settings, clock: Clock) -> dict[str, reports.Task]:
    """The tasks up to the archive, as a cycle without kernels runs them."""
    with store.write() as conn:
        token = db.take_lease(conn, run_id, 3600, clock)
        db.start_run(conn, run_id, "cycle", "test", token, {}, chosen.digest(), clock)
    done = {}
    for name in CYCLE:
        product = {"out": str(reports.products_folder() / name / "outputs.json")}
        task = reports.open_task(name, None, product, store=store, clock=clock, settings=chosen, run=(run_id, token))
        output = importlib.import_module(f"mltrader.{reports.PIPELINE[name].module}").run(task.inputs, task.settings, task.as_of)
        task.save(output)
        done[name] = (task, output)
    with store.write() as conn:
        db.finish_run(conn, run_id, "success", clock)
        db.release_lease(conn, token)
    return done


def test_a_second_cycle_on_a_panel_that_begins_later_still_has_2008(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path / "home"))
    store, clock, path = Store(f"sqlite:///{tmp_path}/home/mltrader.db"), Clock(datetime(2026, 1, 2, tzinfo=UTC)), tmp_path / "bars.parquet"
    write_bars(path, "2004-01-02", "2013-12-31")
    chosen = Settings(market={"provider": "parquet", "path": str(path)}, features={"groups": ["momentum"]}, drift={"permutations": 20})
    before = reports.input_document("archive", chosen, store, "2013-12-31")
    task, output = cycle(store, "first", chosen, clock)["archive"]
    crisis = output.frames["event_2008_financial_crisis"]
    assert len(crisis) == (146 + 60) * 4 and len(output.frames["kept"]) == 0
    assert set(task.inputs["state"]["archived_events"]) == set()
    with store.read() as conn:
        manifest = {row["event"]: row for row in db.archived_events(conn)}
        assert conn.exec_driver_sql("SELECT count(*) FROM artifacts WHERE sha256 = ?", (manifest["2008_financial_crisis"]["sha256"],)).scalar() == 1
    assert set(manifest) == {"2008_financial_crisis", "2011_debt_ceiling"}
    assert all(row["run_id"] == "first" and row["as_of"] == date(2013, 12, 31) for row in manifest.values())
    # The same data again: the task has the same inputs (a build does nothing), and a forced run adds nothing.
    assert reports.input_document("archive", chosen, store, "2013-12-31") == before
    _, repeated = cycle(store, "forced", chosen, clock)["archive"]
    with store.read() as conn:
        assert len(db.archived_events(conn)) == 2
    assert reports.read_outputs(reports.products_folder() / "archive" / "outputs.json")["rows"] == {"archive_events": 0, "dynamic_events": 0}
    pd.testing.assert_frame_equal(repeated.frames["archive"], output.frames["archive"])
    # Three years later, and four years of bars less.
    write_bars(path, "2010-01-04", "2016-12-30")
    done = cycle(store, "second", chosen, clock)
    task, output = done["archive"]
    pd.testing.assert_frame_equal(output.frames["kept"].drop(columns="vintage"), crisis.drop(columns="vintage"))
    covered = output.frames["coverage"].set_index("event")
    assert covered.loc["2008_financial_crisis", "source"].startswith("kept, as of 2013-12-31 (vintage ")
    assert covered.loc["2011_debt_ceiling", "source"] == "cut now"
    held = RareEventArchive(store, tmp_path / "home" / "artifacts")
    assert held.verify() == [] and set(held.load("2016-12-30")["event"]) == {"2008_financial_crisis", "2011_debt_ceiling", "2015_china_devaluation"}
    # Its file is damaged: the run goes on without it, and says so.
    damage(held, manifest["2008_financial_crisis"])
    with store.write() as conn:
        token = db.take_lease(conn, "third", 3600, clock)
        db.start_run(conn, "third", "cycle", "test", token, {}, chosen.digest(), clock)
    task = reports.open_task("archive", None, {"out": str(tmp_path / "out.json")}, store=store, clock=clock, settings=chosen, run=("third", token))
    output = archive.run(task.inputs, task.settings, task.as_of)
    line = output.frames["coverage"].set_index("event").loc["2008_financial_crisis"]
    assert (line["source"], line["samples"]) == ("missing", 0) and "cannot be used" in line["note"] and "was changed" in line["note"]
    assert len(output.frames["kept"]) == 0 and output.metrics["archive_faults"] == 1
