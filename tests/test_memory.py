"""Hybrid memory and replay: what is learned from, with which weight, and never from the future."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import archive, memory, replay
from mltrader.config import EventDefinition, MemorySettings, Settings
from mltrader.core import PROBABILITIES, REGIMES, DataError

HORIZON = 14
DAYS = pd.bdate_range("2001-01-01", "2010-12-31").as_unit("us")
SYMBOLS = ["AAA", "BBB", "CCC"]
EVENTS = [
    EventDefinition(name="first", start="2002-07-01", end="2002-10-15", regime="crash", weight=0.2),
    EventDefinition(name="second", start="2006-05-01", end="2006-06-30", regime="high_volatility", weight=0.1),
]
OFF = {f"use_{name}": False for name in ("uniqueness", "event_weight", "regime_target", "regime_weight")}


def make_inputs() -> dict:
    rng = np.random.default_rng(2)
    grid = pd.MultiIndex.from_product([DAYS, SYMBOLS], names=["session", "symbol"]).to_frame(index=False)
    grid = grid[~((grid["symbol"] == "CCC") & (grid["session"] < "2003-01-01"))].reset_index(drop=True)
    features = grid.assign(a=rng.normal(size=len(grid)).astype("f4"), b=np.float32("nan"))
    at = np.searchsorted(DAYS, grid["session"])
    inside = at + HORIZON + 2 < len(DAYS)
    labels, at = grid[inside].copy(), at[inside]
    labels = labels.assign(
        label=rng.integers(0, 3, len(at)).astype("int8"),
        label_end=DAYS[at + 1 + rng.integers(1, 15, len(at))],
        label_known_at=DAYS[at + HORIZON + 2],
        return_pct=0.0,
        forward_log_return=rng.normal(size=len(at)),
    )
    market = pd.DataFrame({"session": DAYS, "regime": rng.choice(REGIMES[:3], len(DAYS)), "vix": 20.0})
    symbol = grid.merge(market[["session", "regime"]])
    inputs = {
        "features": {"features": features, "feature_set": {"version": "v1", "names": ["a", "b"], "warm_up": 60}},
        "labels": {"labels": labels},
        "regimes": {"market_regimes": market, "symbol_regimes": symbol},
        "state": {},
        "market": {"panel": grid.assign(adj_close=1.0), "sectors": pd.DataFrame({"symbol": SYMBOLS[:2], "sector": "Energy"})},
    }
    inputs["archive"] = archive.run(inputs, Settings(events={"canonical": EVENTS}), DAYS[-1]).frames
    return inputs


INPUTS = make_inputs()
SETTINGS = Settings(
    memory={"window_years": 2.0}, splits={"first_test_year": 2002}, training={"min_samples_for_training": 100}
)
OUTPUT = memory.run(INPUTS, SETTINGS, DAYS[-1])
SAMPLES, ARCHIVE = OUTPUT.frames["samples"], INPUTS["archive"]["archive"]
sessions = st.integers(0, len(DAYS) - 1).map(lambda i: DAYS[i])


@settings(max_examples=60, deadline=None)
@given(sessions, st.floats(0.3, 9), st.floats(0, 0.6))
def test_a_training_set_knows_nothing_after_its_cut_off(as_of, years, share):
    chosen = Settings(memory={"window_years": years, "archive_share": share})
    rows = memory.training_rows(SAMPLES, ARCHIVE, as_of, chosen)
    picked = SAMPLES.loc[rows["row"]]
    assert rows["row"].is_unique and (picked["label_known_at"] <= as_of).all()
    old = rows["origin"] == "archive"
    known = archive.event_table(EVENTS, [], INPUTS["regimes"]["market_regimes"], HORIZON).set_index("event")[
        "known_from"
    ]
    assert (rows.loc[old, "event"].map(known) <= as_of).all() and (rows.loc[~old, "event"] == "").all()
    start = as_of - pd.Timedelta(days=365.25 * years)
    assert (picked["session"][~old.to_numpy()] > start.normalize()).all()
    assert (picked["session"][old.to_numpy()] <= start).all()
    wanted = round((~old).sum() * share / (1 - share))
    assert old.sum() <= wanted
    # The future may be anything: cut it off and replace it, and nothing changes.
    past = SAMPLES[SAMPLES["session"] <= as_of]
    blind = past.assign(label=past["label"].where(past["label_known_at"] <= as_of, 0))
    visible = ARCHIVE[ARCHIVE["known_from"] <= as_of].reset_index(drop=True)
    if len(rows):
        assert abs(rows["weight"].mean() - 1) < 1e-4 and (rows["weight"] > 0).all()
        pd.testing.assert_frame_equal(rows, memory.training_rows(blind, visible, as_of, chosen))


@pytest.mark.parametrize("age", [17, 20, 25, 31, 60])
def test_a_young_training_set_weighs_the_same_later(age):
    """The calendar does not come from the samples: the latest of them have no label yet at the cut-off, and have one later."""
    as_of = np.unique(SAMPLES["session"])[age]
    known = SAMPLES[SAMPLES["label_known_at"] <= as_of].reset_index(drop=True)
    then, later = (memory.training_rows(part, ARCHIVE, as_of, SETTINGS, calendar=DAYS) for part in (known, SAMPLES))
    pd.testing.assert_frame_equal(then, later)


@settings(max_examples=60, deadline=None)
@given(sessions, st.integers(2001, 2011))
def test_no_training_label_reaches_into_a_test_window(as_of, first_year):
    folds = memory.cutoffs(DAYS, first_year, as_of)
    assert (folds["cutoff"] < folds["test_start"]).all() and (folds["test_end"] <= as_of).all()
    for fold in folds.itertuples():
        rows = memory.training_rows(SAMPLES, ARCHIVE, fold.cutoff, SETTINGS)["row"]
        assert (SAMPLES.loc[rows, "label_known_at"] < fold.test_start).all()
        assert (SAMPLES.loc[rows, "label_end"] < fold.test_start).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(2, 12)), min_size=1, max_size=60))
def test_uniqueness_equals_a_slow_count(spans):
    spans = list(dict.fromkeys(spans))
    symbol = [SYMBOLS[s] for s, _, _ in spans]
    known = [(s, a + 1, a + 1 + n) for s, a, n in spans]  # entry session, first session after the span
    alive: dict[tuple[int, int], int] = {}
    for s, a, b in known:
        for t in range(a, b - 1 + 1):
            alive[s, t] = alive.get((s, t), 0) + 1
    slow = [np.mean([1 / alive[s, t] for t in range(a, b)]) for s, a, b in known]
    fast = memory.average_uniqueness(symbol, DAYS[[a for _, a, _ in spans]], DAYS[[b for _, _, b in known]], DAYS)
    np.testing.assert_allclose(fast, slow, rtol=1e-9)


def rows_of(as_of: str, **memory_settings) -> pd.DataFrame:
    return memory.training_rows(SAMPLES, ARCHIVE, as_of, Settings(memory={"window_years": 2.0, **memory_settings}))


def test_every_switch_moves_the_weights_and_none_leaves_ones():
    assert (rows_of("2009-12-31", **OFF)["weight"] == 1).all()
    for name in ("uniqueness", "regime_target", "regime_weight"):
        only = rows_of("2009-12-31", **(OFF | {f"use_{name}": True}))
        assert only["weight"].nunique() > 1, name
        assert abs(only["weight"].mean() - 1) < 1e-5
    weights = rows_of("2009-12-31", **(OFF | {"use_regime_weight": True}))
    regime = SAMPLES.loc[weights["row"], "regime"].to_numpy()
    ratio = weights["weight"][regime == "high_volatility"].mean() / weights["weight"][regime == "low_volatility"].mean()
    assert ratio == pytest.approx(1.3 / 0.8, rel=1e-5)


def test_event_weight_makes_up_for_a_short_event():
    plain, weighed = (
        rows_of("2009-12-31", **(OFF | {"archive_share": 0.3, "use_event_weight": on})) for on in (False, True)
    )
    counts = plain[plain["origin"] == "archive"]["event"].value_counts()
    assert counts["first"] < 2 * counts["second"]  # `first` ran out of rows (weights are 2 : 1)
    mass = weighed[weighed["origin"] == "archive"].groupby("event")["weight"].sum()
    assert mass["first"] / mass["second"] == pytest.approx(2, rel=1e-4)


def test_an_empty_regime_loses_its_target_and_is_reported():
    made = OUTPUT.documents["composition"]["refit"]
    assert made["regimes_missing"] == {"crash": 0.1, "recovery": 0.1} and made["target_mass_moved"] == pytest.approx(
        0.2
    )
    code = pd.Series(["normal"] * 30 + ["low_volatility"] * 10)
    factor = memory.share_factor(code, MemorySettings().regime_targets, (0.01, 100))
    assert factor.groupby(code).sum().div(40).to_dict() == pytest.approx({"normal": 2 / 3, "low_volatility": 1 / 3})


def test_samples_start_after_each_symbols_own_warm_up():
    first = SAMPLES.groupby("symbol")["session"].min()
    assert first["AAA"] == DAYS[60] and first["CCC"] == DAYS[DAYS >= "2003-01-01"][60]
    assert SAMPLES["b"].isna().all() and (SAMPLES.loc[SAMPLES["symbol"] == "CCC", "sector"] == "Unknown").all()
    assert list(SAMPLES.columns[:11]) == list(memory.SAMPLE_COLUMNS)


def test_run_gives_the_frames_of_the_contract_and_repeats():
    again = memory.run(INPUTS, SETTINGS, DAYS[-1])
    for name, frame in OUTPUT.frames.items():
        pd.testing.assert_frame_equal(frame, again.frames[name], check_exact=True)
    plan, training = OUTPUT.frames["plan"], OUTPUT.frames["training_set"]
    refit = plan[plan["fold"] == memory.REFIT].reset_index(drop=True)
    assert list(plan.columns) == ["fold", "row", "weight", "origin", "event"] and plan["weight"].dtype == "float32"
    assert set(plan["fold"]) == {*OUTPUT.frames["folds"]["fold"], memory.REFIT}
    keys = SAMPLES.loc[refit["row"], ["session", "symbol", "label", "a"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(training[["session", "symbol", "label", "a"]], keys)
    assert len(memory.table(OUTPUT)) == 9 and memory.figure(OUTPUT) is not None


def test_too_few_samples_are_refused_and_poor_folds_left_out():
    with pytest.raises(DataError, match=r"Only \d+ training samples at 2010-12-31, 1000000 needed"):
        memory.run(INPUTS, Settings(training={"min_samples_for_training": 10**6}), DAYS[-1])
    few = Settings(memory={"window_years": 2.0}, splits={"first_test_year": 2002, "min_train_rows": 1000})
    output = memory.run(INPUTS, few, DAYS[-1])
    left_out = output.documents["composition"]["left_out"]
    assert "2002" in left_out and 2002 not in set(output.frames["plan"]["fold"])


def evaluation(n: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    frame = pd.MultiIndex.from_product([DAYS[-n // 3 :], SYMBOLS], names=["session", "symbol"]).to_frame(index=False)
    frame = frame.assign(
        fold=frame["session"].dt.year, regime=rng.choice(REGIMES, len(frame)), label=rng.integers(0, 3, len(frame))
    )
    frame[list(PROBABILITIES)] = rng.dirichlet([2, 2, 2], len(frame))
    return frame


def test_replay_ranks_wrong_calls_and_refuses_rows_that_were_seen():
    frame, weights = evaluation(), MemorySettings().regime_weights
    worst = replay.candidates(frame, "v1", weights, limit=50)
    proba = frame[list(PROBABILITIES)].to_numpy()
    priority = np.where(proba.argmax(1) != frame["label"], proba.max(1) * frame["regime"].map(weights), -1)
    np.testing.assert_allclose(worst["priority"], np.sort(priority)[::-1][:50])
    assert not worst.duplicated(["session", "symbol", "feature_set"]).any()
    for planted in (np.nan, -1, 2011):
        spoiled = frame.astype({"fold": float})
        spoiled.loc[7, "fold"] = planted
        with pytest.raises(DataError, match="not out of fold"):
            replay.candidates(spoiled, "v1", weights)


def test_replay_weights_reach_the_training_rows_and_are_capped():
    weights = MemorySettings().regime_weights
    errors = replay.candidates(evaluation(), "v1", weights)
    factor = replay.replay_weights(SAMPLES, errors, "v1", weights)
    assert factor.between(1, 3).all() and (factor > 1).any()
    off = Settings(memory={"window_years": 2.0} | OFF)
    plain = memory.training_rows(SAMPLES, ARCHIVE, DAYS[-1], off)
    again = memory.training_rows(SAMPLES, ARCHIVE, DAYS[-1], off, factor * 100)
    assert again["row"].equals(plain["row"]) and again["weight"].max() / again["weight"].min() <= 3.0001
