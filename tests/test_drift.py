"""Drift: exact against scipy, quiet without drift, loud with it, blind to the future. Events: every criterion at its edge."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import lfilter
from scipy.stats import ks_2samp

from mltrader import drift, events
from mltrader.config import DriftSettings, EventSettings, Settings
from mltrader.core import REGIMES, DataError

DAYS = pd.bdate_range("2010-01-04", periods=700).as_unit("us")
SYMBOLS = ["A", "B", "C", "D"]


def frame_of(values: np.ndarray) -> pd.DataFrame:
    """Values of shape (sessions, symbols, features) as a features frame."""
    keys = pd.MultiIndex.from_product([DAYS[: len(values)], SYMBOLS[: values.shape[1]]], names=["session", "symbol"])
    wide = pd.DataFrame(values.reshape(-1, values.shape[2]).astype("float32")).add_prefix("f")
    return pd.concat([keys.to_frame(index=False), wide], axis=1)


def autoregressive(seed: int, keep: float = 0.8, names: int = 5, sessions: int = 700) -> pd.DataFrame:
    """Stationary paths, half of them common to all symbols: rows are far from independent."""
    noise = np.random.default_rng(seed).normal(size=(sessions + 100, len(SYMBOLS) + 1, names))
    path = lfilter([np.sqrt(1 - keep**2)], [1, -keep], noise, axis=0)[100:]
    return frame_of((path[:, 1:] + path[:, :1]) / np.sqrt(2))


def compare(frame: pd.DataFrame, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    cut = frame["session"].unique()[-60]
    detector = drift.DriftDetector(DriftSettings(**options)).fit(frame[frame["session"] < cut].reset_index(drop=True))
    return detector.compare(frame[frame["session"] >= cut].reset_index(drop=True))


def regimes_of(frame: pd.DataFrame, regime: str = "normal") -> pd.DataFrame:
    return frame[["session", "symbol"]].assign(regime=regime)


VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 0.5000001, 1.0, 3.0, np.nan, np.inf])


@settings(max_examples=150, deadline=None)
@given(arrays(float, st.integers(5, 40), elements=VALUES), arrays(float, st.integers(1, 20), elements=VALUES))
def test_ks_is_scipys_with_ties_and_gaps(reference, sample):
    reference, kept = np.append(reference, 1.0), sample[np.isfinite(sample)]
    found = drift.ks_rows(*drift.reference_shares(reference, sample), np.arange(len(sample))[None], min_finite=0.0)[0]
    if len(kept) == 0:
        assert np.isnan(found)
    else:
        assert abs(found - ks_2samp(kept, reference[np.isfinite(reference)], method="asymp").statistic) < 1e-12


def test_blocks_are_compared_with_the_rest_of_the_reference():
    rng = np.random.default_rng(1)
    counts = rng.integers(2, 6, 80)                                    # a changing number of symbols a session
    first, values = np.append(0, counts.cumsum()), rng.normal(size=counts.sum()).round(1)
    values[rng.random(len(values)) < 0.1] = np.nan
    rows = drift.session_rows(first, drift.draw_blocks(80, 7, 30, seed=3), 7)
    found = drift.block_ks(values, *drift.reference_shares(values, values), rows)
    for block, distance in zip(rows, found, strict=True):
        inside, rest = values[block[block >= 0]], np.delete(values, block[block >= 0])
        assert abs(distance - ks_2samp(inside[~np.isnan(inside)], rest[~np.isnan(rest)]).statistic) < 1e-12


def test_the_detectors_table_is_scipys():
    frame, window = autoregressive(11, sessions=300), 20
    past, now = frame[frame["session"] < DAYS[240]].reset_index(drop=True), frame[frame["session"] >= DAYS[240]]
    detector = drift.DriftDetector(DriftSettings(windows=(window,))).fit(past)
    found = detector.compare(now.reset_index(drop=True))[0].set_index("feature").loc["f3"]
    values = past["f3"].to_numpy()
    null = [ks_2samp(values[block], np.delete(values, block)).statistic for block in detector.blocks(window)]
    observed = ks_2samp(now.loc[now["session"] >= DAYS[280], "f3"], values).statistic
    assert found["ks"] == pytest.approx(observed, abs=1e-12) and len(null) == 60
    assert found["null_median"] == pytest.approx(np.median(null), abs=1e-12)
    assert found["score"] == pytest.approx(max(0, observed - np.median(null)) / (1 - np.median(null)), abs=1e-12)
    assert found["p_value"] == (1 + sum(k >= observed - 1e-12 for k in null)) / 61


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_false_alarms_are_rare(keep):
    alarms = [compare(autoregressive(seed, keep))[1]["detected"].any() for seed in range(40)]
    assert sum(alarms) <= 4, f"{sum(alarms)} of 40 series without drift raised an alarm"


def test_the_textbook_p_value_would_alarm_always():
    wrong = 0
    for seed in range(20):
        frame = autoregressive(seed)
        parts = [frame.loc[part, "f0"] for part in (frame["session"] >= DAYS[680], frame["session"] < DAYS[640])]
        wrong += ks_2samp(*parts).pvalue < 0.05
    assert wrong >= 10


def test_disjoint_is_one_and_a_growing_shift_never_scores_less():
    calm, scores = autoregressive(3), []
    for shift in (0.0, 1.0, 2.0, 50.0):
        moved = calm.copy()
        moved.loc[moved["session"] >= DAYS[640], [f"f{i}" for i in range(5)]] += shift
        scores.append(compare(moved)[1]["score"].to_numpy())
    assert (np.diff(scores, axis=0) >= -1e-12).all()
    assert np.abs(scores[-1] - 1).max() < 1e-6 and (compare(moved)[1]["detected"]).all()


def test_a_change_of_missingness_is_no_drift():
    calm = autoregressive(5)
    holes = calm.copy()
    late = holes["session"] >= DAYS[640]
    holes.loc[late & (holes["symbol"] == "A"), "f0"] = np.nan            # a quarter goes missing: compared without
    holes.loc[late, "f1"] = np.nan                                       # all goes missing: left out and named
    holes["f2"] = np.nan                                                 # never known
    found = drift.run({"features": {"features": holes}, "regimes": {"symbol_regimes": regimes_of(holes)}}, Settings(),
                      DAYS[699]).documents["drift"]
    assert found["left_out"] == ["f1", "f2"] and found["n_features"] == 3 and not found["detected"]


def test_what_comes_after_as_of_does_not_count():
    frame = autoregressive(7)
    shares = regimes_of(frame)
    shares.loc[::3, "regime"] = "crash"
    future = frame.copy()
    future.loc[future["session"] > DAYS[650], ["f0", "f1", "f2"]] = 99.0
    inputs = [{"features": {"features": f}, "regimes": {"symbol_regimes": shares}} for f in (frame, future)]
    cut = {"features": {"features": frame[frame["session"] <= DAYS[650]]},
           "regimes": {"symbol_regimes": shares[shares["session"] <= DAYS[650]]}}
    outputs = [drift.run(i, Settings(), DAYS[650]) for i in (*inputs, cut)]
    for other in outputs[1:]:
        assert other.documents == outputs[0].documents and other.rows == outputs[0].rows
        pd.testing.assert_frame_equal(other.frames["scores"], outputs[0].frames["scores"])
    assert outputs[0].documents["drift"]["current_end"] == f"{DAYS[650]:%Y-%m-%d}"


def test_the_champions_reference_is_used_and_never_overlaps_the_window():
    frame = autoregressive(9)
    champion = {"name": "production_v1", "reference_start": "2010-06-01", "reference_end": str(DAYS[695].date())}
    found = drift.run({"features": {"features": frame}, "regimes": {"symbol_regimes": regimes_of(frame)},
                       "state": {"champion": champion}}, Settings(), DAYS[699]).documents["drift"]
    assert (found["reference"], found["reference_start"]) == ("champion", "2010-06-01")
    assert found["reference_end"] < found["current_start"]
    alone = drift.run({"features": {"features": frame}, "regimes": {"symbol_regimes": regimes_of(frame)}}, Settings(), DAYS[699]).documents["drift"]
    assert found["challenger_score"] == alone["score"] == alone["challenger_score"] != found["score"]


def test_too_short_a_reference_is_no_claim():
    found = drift.run({"features": {"features": autoregressive(2, sessions=200)},
                       "regimes": {"symbol_regimes": regimes_of(autoregressive(2, sessions=200))}}, Settings(), DAYS[199])
    by_window = found.documents["drift"]["by_window"]
    assert np.isnan(by_window["60"]) and np.isfinite(by_window["20"])
    assert [row["detected"] for row in found.rows["drift_monitoring"] if row["window"] == 60] == [False, False]
    with pytest.raises(DataError, match="leave no reference"):
        drift.run({"features": {"features": autoregressive(2, sessions=60)},
                   "regimes": {"symbol_regimes": regimes_of(autoregressive(2, sessions=60))}}, Settings(), DAYS[59])


def test_inputs_stay_as_they_are_and_a_run_repeats():
    frame = autoregressive(4)
    before = frame.copy()
    inputs = {"features": {"features": frame}, "regimes": {"symbol_regimes": regimes_of(frame)}}
    first, second = (drift.run(inputs, Settings(), DAYS[699]) for _ in range(2))
    assert first.documents == second.documents and first.metrics == second.metrics
    pd.testing.assert_frame_equal(frame, before)
    other = Settings(run={"seed": 7})
    assert drift.run(inputs, other, DAYS[699]).documents["drift"]["p_by_window"] is not None


def test_regime_shares():
    rng = np.random.default_rng(0)
    rows = drift.session_rows(np.arange(0, 401, 4), drift.draw_blocks(100, 10, 60, seed=1), 10)
    codes = rng.integers(0, 3, 400)
    change, _, p = drift.regime_drift(codes, rows, codes[:40])
    expected = np.abs(np.bincount(codes, minlength=5) / 400 - np.bincount(codes[:40], minlength=5) / 40).max()
    assert abs(change - expected) < 1e-12 and p > 0.05
    unknown = np.where(np.arange(400) % 9 == 0, 5, codes)                 # a regime that nobody could tell
    assert 0 < drift.regime_drift(unknown, rows, codes[:40])[0] < 0.3
    assert np.isnan(drift.regime_drift(np.full(400, 5), rows, codes[:40])[0])
    assert drift.regime_drift(codes, rows, np.full(40, 4))[0] == 1.0
    assert np.isnan(drift.regime_drift(codes, rows, np.array([], int))[0])


# -- events ---------------------------------------------------------------------------------------------------------------


def crisis(vix: list[float], crash: float = 1.0, score: float = 0.3, captured=(), canonical=()) -> dict:
    """Run the task on a calm year that ends with the given VIX values."""
    path = np.r_[np.full(60, 20.0), vix]
    sessions = DAYS[: len(path)]
    keys = pd.MultiIndex.from_product([sessions, [f"S{i}" for i in range(10)]], names=["session", "symbol"])
    moods = keys.to_frame(index=False)
    moods["regime"] = np.where(moods["symbol"].str[1:].astype(int) < round(10 * crash), "crash", "normal")
    inputs = {"market": {"index": pd.DataFrame({"session": sessions, "vix_close": path})},
              "regimes": {"symbol_regimes": moods}, "drift": {"drift": {"by_window": {"5": score, "20": float("nan")}}},
              "state": {"captured_events": list(captured)}}
    output = events.run(inputs, Settings(events={"canonical": canonical}), sessions[-1])
    return {"rows": output.rows["dynamic_events"], **output.documents["decision"]}


def test_all_four_criteria_open_an_event():
    found = crisis([41, 45, 42])
    assert found["rows"][0]["event_name"] == f"dynamic_{DAYS[60]:%Y%m%d}" == found["open_event"]["event_name"]
    assert found["rows"][0]["vix_peak"] == 45 and found["rows"][0]["sample_count"] == 30
    assert set(found["rows"][0]["regime_distribution"]) == set(REGIMES)


@pytest.mark.parametrize(
    ("vix", "sessions"),
    [([41, 45], 2.0), ([41, 40.0, 41, 41], 2.0), ([41, 41, 41, 40.0], 0.0), ([41, 39, 41, 41], 2.0),
     ([41, np.nan, 41], 2.0), ([41, np.nan, np.nan, 41, 41], 2.0), ([41, 41, 41, np.nan, np.nan], np.nan)],
)
def test_three_in_a_row_means_three(vix, sessions):
    found = crisis(vix)
    observed = found["criteria"]["vix_sessions"]["observed"]
    assert found["rows"] == [] and found["open_event"] is None
    assert observed == sessions or (np.isnan(observed) and np.isnan(sessions))


@pytest.mark.parametrize("vix", [[41, np.nan, 41, 41], [41, 41, 41, np.nan]])
def test_one_missing_vix_day_is_bridged(vix):
    assert crisis(vix)["criteria"]["vix_sessions"] == {"observed": 3.0, "limit": 3, "met": True}


@pytest.mark.parametrize("other", [{"crash": 0.5}, {"score": 0.25}, {"score": float("nan")}, {"crash": 0.0}])
def test_at_the_limit_is_not_above_it(other):
    assert crisis([41, 45, 42], **other)["rows"] == []


def test_one_crisis_is_one_event():
    opened = crisis([41, 45, 42])["rows"]
    later = crisis([41, 45, 42, 50, 44], captured=opened)
    assert [(r["event_name"], r["state"], r["vix_peak"]) for r in later["rows"]] == [(opened[0]["event_name"], "open", 50)]
    assert not later["criteria"]["duplicate"]["met"]
    again = crisis([41, 45, 42, *[30] * 10, 44, 44, 44], captured=opened)              # back within 20 sessions
    assert [r["event_name"] for r in again["rows"]] == [opened[0]["event_name"]]
    closed = crisis([41, 45, 42, *[30] * 20], captured=opened)
    assert [(r["state"], r["end_date"]) for r in closed["rows"]] == [("closed", DAYS[62].date())]
    assert crisis([41, 45, 42, *[30] * 30], captured=closed["rows"])["rows"] == []     # written once


def test_a_second_crisis_closes_the_first_even_if_nobody_looked_in_between():
    opened = crisis([41, 45, 42])["rows"]
    found = crisis([41, 45, 42, *[30] * 40, 48, 49, 50], captured=opened)
    assert [(r["state"], r["vix_peak"]) for r in found["rows"]] == [("closed", 45), ("open", 50)]
    assert found["rows"][0]["end_date"] == DAYS[62].date()


def test_a_known_canonical_event_is_a_duplicate_but_an_unknown_one_is_not():
    spell = [41.0] * 20
    def event(first, last):
        return [{"name": "known", "start": DAYS[first].date(), "end": DAYS[last].date(), "regime": "crash", "weight": 0.1}]

    assert crisis(spell, canonical=event(55, 61))["criteria"]["duplicate"]["observed"] == "known"
    assert crisis(spell, canonical=event(55, 79))["criteria"]["duplicate"]["met"]       # still running: nobody knows yet
    assert crisis(spell, canonical=event(40, 50))["criteria"]["duplicate"]["met"]       # over before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([20.0, 40.0, 41.0, 60.0, np.nan]), min_size=1, max_size=40))
def test_runs_agree_with_a_plain_loop(vix):
    index = pd.DataFrame({"session": DAYS[: len(vix)], "vix_close": vix})
    runs, run, missing = [], [], 0
    for value in vix:                                                                   # slow twin
        if np.isnan(value):
            missing += 1
            continue
        if run and (missing > events.MAX_GAP or value <= 40):
            runs.append(len(run))
            run = []
        missing, run = 0, [*run, value] if value > 40 else []
    runs += [len(run)] if run else []
    found = events.vix_runs(index, 40.0)
    assert found["sessions"].tolist() == runs
    episodes = events.vix_episodes(index, EventSettings())
    assert episodes["sessions"].sum() == sum(runs)


def test_updater_agrees_with_the_task():
    updater = events.DynamicArchiveUpdater(EventSettings(canonical=()))
    vix = pd.Series([20.0] * 60 + [41, 45, 42], index=DAYS[:63])
    assert updater.check_for_new_event({"by_window": {"5": 0.3}}, vix, {"crash": 1.0}) == f"dynamic_{DAYS[60]:%Y%m%d}"
    assert updater.check_for_new_event({"by_window": {"5": 0.3}}, vix, {}) is None
