"""The rare-event archive: point in time, stratified, and the same on every call."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import archive
from mltrader.config import EventDefinition, Settings
from mltrader.core import DataError

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


def definition(name: str, first: int, length: int, weight: float) -> EventDefinition:
    end = DAYS[min(first + length, len(DAYS) - 1)]
    return EventDefinition(name=name, start=DAYS[first].date(), end=end.date(), regime="crash", weight=weight)


event_lists = st.lists(
    st.tuples(st.integers(0, len(DAYS) - 2), st.integers(0, 200), st.floats(0.01, 1.0)), min_size=1, max_size=5
).map(lambda parts: [definition(f"e{i}", *part) for i, part in enumerate(parts)])
sessions = st.integers(0, len(DAYS) - 1).map(lambda i: DAYS[i])


@settings(max_examples=40, deadline=None)
@given(event_lists, sessions, sessions)
def test_nothing_after_the_cut_off_and_no_row_twice(events, as_of, later):
    as_of, later = min(as_of, later), max(as_of, later)
    table = archive.event_table(events, [], MARKET, HORIZON)
    now, then = archive.cut(LABELS, MOOD, table, as_of), archive.cut(LABELS, MOOD, table, later)
    assert not now.duplicated(["session", "symbol"]).any()
    assert (now["label_known_at"] <= as_of).all() and (now["known_from"] <= as_of).all()
    by_name = {e.name: e for e in events}
    ends = now["event"].map(lambda name: pd.Timestamp(by_name[name].end))
    assert (now["session"] <= ends).all() and (ends < as_of).all()
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
    inputs = {
        "labels": {"labels": LABELS},
        "regimes": {"market_regimes": MARKET, "symbol_regimes": MOOD},
        "state": {"captured_events": captured},
    }
    output = archive.run(inputs, Settings(events={"canonical": [before]}), DAYS[-1])
    covered = output.frames["coverage"].set_index("event")
    assert covered["samples"].to_dict() == {"seen": 84, "open": 0, "1987": 0}
    assert covered.loc["open", "note"] == "still open" and "no labelled bars" in covered.loc["1987", "note"]
    assert set(output.frames["archive"]["reason"]) == {"captured event"}
    assert output.frames["archive"]["event_regime"].eq("normal").all()  # the market's regime at the time
    archive.figure(output)
    assert len(archive.table(output)) == 3


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
