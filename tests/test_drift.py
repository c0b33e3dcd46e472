"""Drift: exact against scipy, quiet without drift, loud with it, blind to the future."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import lfilter
from scipy.stats import ks_2samp

from mltrader import drift
from mltrader.config import DriftSettings, Settings
from mltrader.core import DataError

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
