"""Hybrid memory and replay: what is learned from, with which weight, and never from the future."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import archive, memory
from mltrader.config import EventDefinition, MemorySettings, Settings
from mltrader.core import REGIMES, ConfigError, DataError

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
    market = pd.DataFrame({"session": DAYS, "regime": rng.choice(REGIMES[:3], len(DAYS)), "vix": rng.uniform(10, 60, len(DAYS))})
    path = pd.DataFrame({"session": DAYS, "index_close": 100 * np.exp(np.cumsum(rng.normal(0, 0.01, len(DAYS))))})
    symbol = grid.merge(market[["session", "regime"]])
    inputs = {
        "features": {"features": features, "feature_set": {"version": "v1", "names": ["a", "b"], "warm_up": 60}},
        "labels": {"labels": labels},
        "regimes": {"market_regimes": market, "symbol_regimes": symbol, "index_path": path},
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
STATE = memory.market_state(INPUTS["regimes"]["market_regimes"], INPUTS["regimes"]["index_path"])
MIXES = ("fixed", "coverage", "likeness")
sessions = st.integers(0, len(DAYS) - 1).map(lambda i: DAYS[i])


@settings(max_examples=90, deadline=None)
@given(sessions, st.floats(0.3, 9), st.floats(0, 0.6), st.sampled_from(MIXES), st.integers(100, 3000))
def test_a_training_set_knows_nothing_after_its_cut_off(as_of, years, share, mix, capacity):
    chosen = Settings(memory={"window_years": years, "archive_share": share, "mix": mix, "capacity": capacity})
    rows = memory.training_rows(SAMPLES, ARCHIVE, as_of, chosen, state=STATE)
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
    assert len(rows) <= capacity
    if len(rows) < capacity:
        assert old.sum() <= round((~old).sum() * share / (1 - share))
    # The future may be anything: cut it off and replace it, and nothing changes.
    past = SAMPLES[SAMPLES["session"] <= as_of]
    blind = past.assign(label=past["label"].where(past["label_known_at"] <= as_of, 0))
    visible = ARCHIVE[ARCHIVE["known_from"] <= as_of].reset_index(drop=True)
    if len(rows):
        assert abs(rows["weight"].mean() - 1) < 1e-4 and (rows["weight"] > 0).all()
        later = STATE["session"] > as_of
        other = STATE.assign(log_vix=STATE["log_vix"].where(~later, 9.0), drawdown=STATE["drawdown"].where(~later))
        pd.testing.assert_frame_equal(rows, memory.training_rows(blind, visible, as_of, chosen, state=other))


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


def rows_of(as_of: str, judged=None, **memory_settings) -> pd.DataFrame:
    chosen = Settings(memory={"window_years": 2.0, "archive_share": 0.07, **memory_settings})
    return memory.training_rows(SAMPLES, ARCHIVE, as_of, chosen, state=STATE, judged=judged)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(DAYS) - 40), st.integers(0, 60), st.sampled_from(MIXES))
def test_nothing_that_touches_the_judged_window_is_learned_from(start, length, mix):
    judged = SAMPLES[SAMPLES["session"].between(DAYS[start], DAYS[min(start + length, len(DAYS) - 1)])]
    rows = rows_of("2010-12-31", judged, archive_share=0.3, window_years=4.0, mix=mix)
    if not len(judged):
        return
    first, last = judged["session"].min(), judged["label_known_at"].max()
    learned = SAMPLES.loc[rows["row"]]
    assert not ((learned["session"] <= last) & (learned["label_known_at"] >= first)).any()
    spoiled = ARCHIVE[(ARCHIVE["session"] <= last) & (ARCHIVE["label_known_at"] >= first)]["event"]
    assert not set(rows["event"]) & set(spoiled)  # an event that overlaps the window is out as a whole


def test_a_missing_purge_is_seen(monkeypatch):
    judged = SAMPLES[SAMPLES["session"].between("2006-05-01", "2006-06-30")]
    assert "second" not in set(rows_of("2010-12-31", judged)["event"])
    monkeypatch.setattr(memory, "touches", lambda rows, judged: np.zeros(len(rows), bool))
    assert "second" in set(rows_of("2010-12-31", judged)["event"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=300), st.integers(1, 300), st.integers(0, 2**31))
def test_eviction_keeps_the_capacity_and_never_lightens_a_row(weights, capacity, seed):
    weights = np.array(weights)
    kept, new = memory.evict(weights, np.random.default_rng(seed).uniform(0.001, 0.999, len(weights)), capacity)
    assert len(kept) == min(capacity, len(weights)) and (np.diff(kept) > 0).all()
    assert (new >= weights[kept]).all()
    if capacity >= len(weights):
        np.testing.assert_array_equal(new, weights)


def test_eviction_is_unbiased_for_any_group():
    rng = np.random.default_rng(0)
    weights, group = rng.lognormal(0, 1, 2000), rng.integers(0, 4, 2000)
    sums = np.zeros((400, 4))
    for i in range(400):
        kept, new = memory.evict(weights, rng.uniform(size=2000), 300)
        sums[i] = np.bincount(group[kept], new, minlength=4)
    true = np.bincount(group, weights)
    assert (np.abs(sums.mean(axis=0) - true) < 4 * sums.std(axis=0) / np.sqrt(400)).all()


def test_memory_grows_with_the_capacity_and_not_with_history():
    sizes = [len(rows_of(day, window_years=years, archive_share=0.4, capacity=800)) for day in ("2004-12-31", "2010-12-31") for years in (1.5, 9.0)]
    assert max(sizes) == 800
    whole, small = (rows_of("2010-12-31", window_years=9.0, capacity=c) for c in (100_000, 800))
    shares = [SAMPLES.loc[r["row"]].groupby("regime").size().index.tolist() for r in (whole, small)]
    assert shares[0] == shares[1]  # no regime is lost
    assert set(small["row"]) <= set(whole["row"])


def slow_need(day, recent, chosen) -> float:
    state, scales = STATE.set_index("session"), chosen.coverage_scales
    like = 0
    for other in recent:
        gaps = [(state.at[day, n] - state.at[other, n]) / s for n, s in scales.items()]
        gaps = [g for g in gaps if np.isfinite(g)]
        like += bool(gaps) and np.sqrt(np.sum(np.square(gaps)) * len(scales) / len(gaps)) <= chosen.coverage_radius
    return max(0.0, 1 - like / chosen.coverage_sessions)


def test_need_equals_a_slow_count():
    chosen = MemorySettings(coverage_sessions=30, coverage_radius=2.0)
    some, recent = DAYS[[5, 25, 400, 900, 1500]], DAYS[600:900]
    slow = [slow_need(day, recent, chosen) for day in some]
    np.testing.assert_allclose(memory.need_of(some, recent, STATE, chosen), slow)
    assert 0 < sum(slow[2:]) < 3
    shuffled = np.random.default_rng(0).permutation(recent.to_numpy())
    np.testing.assert_allclose(memory.need_of(some, shuffled, STATE, chosen), slow)


def test_a_window_that_holds_the_crisis_asks_for_none_of_it():
    rng = np.random.default_rng(1)
    wild = (DAYS >= "2002-07-01") & (DAYS <= "2002-10-15")
    state = pd.DataFrame({"session": DAYS, "log_vix": np.where(wild, 4.0, 2.7) + rng.normal(0, 0.02, len(DAYS)),
                          "log_volatility": np.where(wild, -0.7, -2.0), "drawdown": np.where(wild, -0.4, -0.02)})
    chosen = Settings(memory={"window_years": 2.0, "mix": "coverage", "archive_share": 0.4, "coverage_sessions": 40})
    calm = memory.training_rows(SAMPLES, ARCHIVE, "2005-12-30", chosen, state=state)
    assert (calm["event"] == "first").sum() > 100
    storm = state.assign(log_vix=state["log_vix"].mask((DAYS >= "2005-01-01") & (DAYS <= "2005-06-30"), 4.0),
                         log_volatility=state["log_volatility"].mask((DAYS >= "2005-01-01") & (DAYS <= "2005-06-30"), -0.7),
                         drawdown=state["drawdown"].mask((DAYS >= "2005-01-01") & (DAYS <= "2005-06-30"), -0.4))
    full = memory.training_rows(SAMPLES, ARCHIVE, "2005-12-30", chosen, state=storm)
    assert (full["event"] == "first").sum() == 0


def test_a_mix_by_state_without_a_state_is_refused():
    with pytest.raises(ConfigError, match=r"coverage.*market_state"):
        memory.training_rows(SAMPLES, ARCHIVE, DAYS[-1], Settings(memory={"mix": "coverage"}))


def test_kept_samples_join_and_the_panel_wins():
    late = INPUTS | {"features": INPUTS["features"] | {"features": INPUTS["features"]["features"].query("session >= '2005-01-01'")},
                     "labels": {"labels": INPUTS["labels"]["labels"].query("session >= '2005-01-01'")}}
    of_first = SAMPLES[SAMPLES["session"].between("2002-07-01", "2002-10-15")]
    assert len(of_first) > 100
    kept = pd.concat([of_first, SAMPLES[SAMPLES["session"] == "2006-05-02"].assign(label=2)], ignore_index=True).assign(event="first", known_from=DAYS[500])
    output = memory.run(late | {"archive": {"archive": ARCHIVE, "kept": kept}}, SETTINGS, DAYS[-1])
    made = output.frames["samples"]
    assert not made.duplicated(["session", "symbol"]).any() and made["session"].min() >= pd.Timestamp("2002-07-01")
    pd.testing.assert_frame_equal(made[made["session"] < "2005-01-01"].reset_index(drop=True), of_first.reset_index(drop=True))
    pd.testing.assert_frame_equal(made[made["session"] == "2006-05-02"].reset_index(drop=True), SAMPLES[SAMPLES["session"] == "2006-05-02"].reset_index(drop=True))
    refit = output.frames["plan"].query("fold == -1 and event == 'first'")
    assert len(refit) and (made.loc[refit["row"], "session"] < pd.Timestamp("2005-01-01")).all()
    with pytest.raises(DataError, match="kept rows"):
        memory.run(late | {"archive": {"archive": ARCHIVE, "kept": kept.drop(columns="a")}}, SETTINGS, DAYS[-1])


def test_kept_samples_are_never_recent_and_never_judged():
    """A panel that begins in 2005, an index from 2001, and what the archive kept of 2002."""
    late = INPUTS | {"features": INPUTS["features"] | {"features": INPUTS["features"]["features"].query("session >= '2005-01-01'")},
                     "labels": {"labels": INPUTS["labels"]["labels"].query("session >= '2005-01-01'")}}
    kept = SAMPLES[SAMPLES["session"].between("2002-07-01", "2002-10-15")].reset_index(drop=True).assign(event="first", known_from=DAYS[500])
    chosen = Settings(memory={"window_years": 9.0}, splits={"first_test_year": 2002}, training={"min_samples_for_training": 100})
    output = memory.run(late | {"archive": {"archive": ARCHIVE, "kept": kept}}, chosen, DAYS[-1])
    assert output.frames["folds"]["test_start"].min() >= pd.Timestamp("2006-01-01")
    plan = output.frames["plan"]
    old = output.frames["samples"]["session"].iloc[plan["row"]].to_numpy() < np.datetime64("2005-01-01")
    assert not (plan["origin"][old] == "recent").any()


def test_kept_samples_from_before_the_calendar_have_their_own_spans():
    only = DAYS[DAYS >= "2005-01-01"]
    chosen = Settings(memory={"window_years": 2.0, "archive_share": 0.4}, training={"min_samples_for_training": 100})
    short, whole = (memory.training_rows(SAMPLES, ARCHIVE, DAYS[-1], chosen, calendar=days) for days in (only, DAYS))
    old = (whole["event"] == "first").to_numpy()
    assert old.sum() > 50 and short["row"].equals(whole["row"])
    assert (short["uniqueness"][old] > 0).all()  # on the sessions at hand: not equal to the whole calendar's, but defined
    np.testing.assert_array_equal(short["uniqueness"][~old], whole["uniqueness"][~old])


def test_hybrid_memory_is_the_functions_bound():
    hybrid = memory.HybridMemory(SAMPLES, ARCHIVE, SETTINGS, DAYS, STATE)
    pd.testing.assert_frame_equal(hybrid.rows("2009-12-31"), memory.training_rows(SAMPLES, ARCHIVE, "2009-12-31", SETTINGS, None, DAYS, STATE))
    made = hybrid.training_set("2009-12-31")
    assert hybrid.feature_names == ["a", "b"] and list(made.columns[-2:]) == ["a", "b"]

    factor = pd.Series({hybrid.rows("2009-12-31")["row"][0]: 2.0})
    again = hybrid.training_set("2009-12-31", replay=factor)
    assert again["replay_weight"].tolist() == [2.0] + [1.0] * (len(again) - 1) and (made["replay_weight"] == 1).all()
    assert again["weight"][0] / again["weight"][1] == pytest.approx(2 * made["weight"][0] / made["weight"][1], rel=1e-5)


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
    assert list(plan.columns) == ["fold", "row", "weight", "uniqueness", "origin", "event"]
    assert (plan.dtypes[["weight", "uniqueness"]] == "float32").all() and plan["uniqueness"].between(0, 1, inclusive="right").all()
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
