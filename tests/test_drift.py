"""Drift: exact against scipy, quiet without drift, loud with it, blind to the future. Events: every criterion at its edge."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import lfilter
from scipy.stats import chi2, ks_2samp, ttest_ind, wasserstein_distance

from mltrader import drift, market, packaged
from mltrader import features as F
from mltrader.artifacts import decode, encode
from mltrader.config import DriftSettings, Settings, home
from mltrader.core import REGIMES, DataError, to_session

DAYS = pd.bdate_range("2010-01-04", periods=1400).as_unit("us")
SYMBOLS = ["A", "B", "C", "D", "E", "F", "G", "H"]
ONSETS = ("2008-09-15", "2011-08-04", "2020-02-24")


def frame_of(values: np.ndarray) -> pd.DataFrame:
    """Values of shape (sessions, symbols, features) as a features frame."""
    keys = pd.MultiIndex.from_product([DAYS[: len(values)], SYMBOLS[: values.shape[1]]], names=["session", "symbol"])
    wide = pd.DataFrame(values.reshape(-1, values.shape[2]).astype("float32")).add_prefix("f")
    return pd.concat([keys.to_frame(index=False), wide], axis=1)


def common(paths: np.ndarray) -> np.ndarray:
    """Paths of which half of the variance is that of the first symbol, for all others: rows are far from independent."""
    return (paths[:, 1:] + paths[:, :1]) / np.sqrt(2)


def autoregressive(seed: int, keep: float = 0.8, names: int = 5, sessions: int = 700, symbols: int = 4) -> pd.DataFrame:
    """Stationary paths whose values keep the share `keep` of the day before."""
    noise = np.random.default_rng(seed).normal(size=(sessions + 400, symbols + 1, names))
    return frame_of(common(lfilter([np.sqrt(1 - keep**2)], [1, -keep], noise, axis=0)[400:]))


def garch(seed: int, names: int = 5, sessions: int = 700, symbols: int = 4, smooth: float = 0.0) -> pd.DataFrame:
    """GARCH(1, 1) returns with fat tails; with `smooth`, an exponential mean of their sizes (a volatility)."""
    noise = np.random.default_rng(seed).standard_t(6, size=(sessions + 400, symbols + 1, names)) / np.sqrt(1.5)
    variance, last, paths = np.ones(noise.shape[1:]), np.zeros(noise.shape[1:]), np.empty(noise.shape)
    for t, draw in enumerate(noise):
        variance = 0.02 + 0.08 * last**2 + 0.90 * variance
        last = paths[t] = np.sqrt(variance) * draw
    paths = common(paths)
    return frame_of((lfilter([1 - smooth], [1, -smooth], np.abs(paths), axis=0) if smooth else paths)[400:])


def bootstrapped(panel: np.ndarray, seed: int, names: int, sessions: int, block: int = 60) -> pd.DataFrame:
    """Blocks of whole sessions of a real panel (sessions, symbols, features), in random order: its dependence, without its history."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(panel) - block, -(-sessions // block) + 1)
    rows = (starts[:, None] + np.arange(block)).ravel()[rng.integers(0, block):][:sessions]
    return frame_of(panel[rows][:, :, rng.choice(panel.shape[2], names, replace=False)])


def split(frame: pd.DataFrame, window: int = 60) -> tuple[pd.DataFrame, pd.DataFrame]:
    cut = frame["session"].unique()[-window]
    return tuple(frame[part].reset_index(drop=True) for part in (frame["session"] < cut, frame["session"] >= cut))


def compare(frame: pd.DataFrame, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    past, now = split(frame)
    return drift.DriftDetector(DriftSettings(**options)).fit(past).compare(now)


def regimes_of(frame: pd.DataFrame, regime: str = "normal") -> pd.DataFrame:
    return frame[["session", "symbol"]].assign(regime=regime)


def inputs_of(frame: pd.DataFrame, **more) -> dict:
    return {"features": {"features": frame}, "regimes": {"symbol_regimes": regimes_of(frame)}, **more}


QUICK = Settings(drift={"permutations": 20})
VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 0.5000001, 1.0, 3.0, np.nan, np.inf])


@settings(max_examples=100, deadline=None)
@given(arrays(float, st.integers(5, 40), elements=VALUES), arrays(float, st.integers(1, 20), elements=VALUES))
def test_distances_are_scipys_with_ties_and_gaps(reference, sample):
    reference = np.append(reference, 1.0)
    then, now = (x[np.isfinite(x)] for x in (reference, sample))
    edges = np.quantile(then, np.arange(1, 10) / 10, method="inverted_cdf")
    found = drift.distances(drift.sorted_columns(reference[:, None]), sample[:, None], edges[None])[0]
    if len(now) == 0:
        assert np.isnan(found).all()
        return
    p, q = ((np.bincount(np.searchsorted(edges, x), minlength=10) + 0.5) / (len(x) + 5) for x in (then, now))
    expected = ks_2samp(now, then, method="asymp").statistic, wasserstein_distance(now, then), ((q - p) * np.log(q / p)).sum()
    assert np.abs(found[:3] - expected).max() < 1e-12
    assert found[3] == pytest.approx(((now < then.min()) | (now > then.max())).mean(), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3000), st.integers(1, 400), st.sampled_from([None, 0, 1, 3]))
def test_the_sketch_errs_by_less_than_it_says(seed, n, m, decimals):
    rng = np.random.default_rng(seed)
    then, now = rng.normal(size=n), rng.normal(rng.uniform(-2, 2), rng.uniform(0.1, 3), m)
    if decimals is not None:                                            # atoms, large ones at 0 decimals
        then, now = then.round(decimals), np.where(rng.random(m) < 0.5, now.round(decimals), now.round(decimals) - 1e-9)
    edges = drift.quantile_edges(np.sort(then))
    shares = [np.cumsum(np.bincount(drift.cells_of(x, edges), minlength=drift.CELLS + 1)) / len(x) for x in (then, now)]
    slack = ks_2samp(now, then, method="asymp").statistic - np.abs(shares[0] - shares[1]).max()
    assert -1e-12 <= slack < 2 / drift.CELLS + 1e-12


def test_windows_are_compared_with_the_reference_beyond_their_margin():
    rng = np.random.default_rng(1)
    counts = rng.integers(2, 6, 80)                                    # a changing number of symbols a session
    first, values = np.append(0, counts.cumsum()), rng.normal(size=counts.sum()).round(1)
    values[rng.random(len(values)) < 0.1] = np.nan
    values[first[40]:first[47]] = np.nan                                # a week of nothing
    values[first[44]] = 1.0
    inside = np.arange(80) < 60
    theirs = np.where(np.repeat(inside, counts), values, np.nan)
    edges = drift.quantile_edges(np.sort(theirs[np.isfinite(theirs)]))
    cells, own = drift.cells_of(values, edges), drift.cells_of(theirs, edges)
    total, margin = np.bincount(own[own >= 0], minlength=drift.CELLS + 1), 12
    ends = np.arange(6, 80)
    found = drift.window_distances(cells, first, inside, total, np.array([3, 7]), ends, margin, 0.5)
    per_bin = np.array([*range(49, 499, 50)])
    for k, t in enumerate(ends):
        near = np.zeros(len(values), bool)
        near[first[max(t - margin + 1, 0)]:first[min(t + margin, 79) + 1]] = True
        rest = theirs[~near & np.isfinite(theirs)]
        for w, window in enumerate((3, 7)):
            block = values[first[t + 1 - window]:first[t + 1]]
            known = block[np.isfinite(block)]
            if len(known) < len(block) / 2:
                assert np.isnan(found[k, w]).all()
                continue
            exact = ks_2samp(known, rest).statistic
            assert -1e-12 <= exact - found[k, w, 0] < 2 / drift.CELLS
            p, q = ((np.bincount(np.searchsorted(edges[per_bin], x), minlength=10) + 0.5) / (len(x) + 5) for x in (rest, known))
            assert found[k, w, 1] == pytest.approx(((q - p) * np.log(q / p)).sum(), abs=1e-9)
    assert np.isnan(found[np.flatnonzero(ends == 46)[0], 1]).all()


def test_the_detectors_table_is_scipys():
    frame, window = autoregressive(11, sessions=300), 20
    past, now = split(frame)
    found = drift.DriftDetector(DriftSettings(windows=(window,))).fit(past).compare(now)[0].set_index("feature").loc["f3"]
    values, sessions = past["f3"].to_numpy(), 240
    block = frame.loc[frame["session"] >= DAYS[280], "f3"].to_numpy()
    null = [ks_2samp(values[4 * (t + 1 - window):4 * (t + 1)], np.delete(values, slice(max(4 * (t + 1 - window), 0), min(4 * (t + 1 + window), 960)))).statistic
            for t in range(window - 1, sessions)]
    observed, error = ks_2samp(block, values).statistic, 2 / drift.CELLS
    assert found["ks"] == pytest.approx(observed, abs=1e-12)
    assert 0 <= np.median(null) - found["null_median"] + 1e-12 < error and 0 <= np.quantile(null, 0.95) - found["null_high"] + 1e-12 < error
    assert found["score"] == pytest.approx(max(0, observed - np.median(null)) / (1 - np.median(null)), abs=2 * error)
    wide = np.diff(np.quantile(values.astype(float), [0.25, 0.75], method="inverted_cdf"))[0]
    assert found["wasserstein"] == pytest.approx(wasserstein_distance(block, values) / wide, rel=1e-6)
    assert found["psi_chi2"] == pytest.approx(chi2.ppf(0.95, 9) * (1 / 80 + 1 / 960)) and found["psi_limit"] > found["psi_chi2"]


def test_one_p_value_for_all_windows():
    """The overall p-value against a plain loop over the null's sessions."""
    rng = np.random.default_rng(3)
    values = np.cumsum(rng.normal(size=(200, 3)), axis=0)
    null, seen = drift.Null((5, 20, 60), 259, values), np.array([[3.0, 9.0, -2.0], [1e9, 1e9, 1e9], [values[50, 0], values[50, 1], values[50, 2]]])
    full = np.column_stack([values, values[:, 0] - values[:, 1]])

    def combined(row, own):
        reached = (full >= row - 1e-12).sum(axis=0)
        return (((reached if own else 1 + reached) / (200 if own else 201)) ** -0.5).sum()

    reference = np.array([combined(row, True) for row in full])
    for row, p in zip(seen, null.overall(seen), strict=True):
        share = (reference >= combined(np.append(row, row[0] - row[1]), False) - 1e-9).mean()
        assert p == pytest.approx((1 + 259 / (85 / 3) * share) / (1 + 259 / (85 / 3)), abs=1e-12)
    assert null.overall(seen)[1] == pytest.approx(1 / (1 + 259 / (85 / 3)))


def test_the_list_of_features_holds_for_all_of_them():
    """Each p-value against a plain loop; where nothing moved, hardly any check names anything; what moved is named."""
    past, now = split(autoregressive(21, 0.8, 12, 1320, symbols=8))
    now.loc[now["session"] >= DAYS[1300], ["f3", "f7"]] += 2.5
    detector = drift.DriftDetector().fit(past)
    found = detector.compare(now)[0]
    reference = detector.reference_
    assert np.allclose(detector.compare(now)[1]["score"], found.groupby("window")["score"].mean(), atol=1e-12)
    z = (found["ks"].to_numpy() - found["null_median"]) / (found["null_high"] - found["null_median"])
    share = np.array([(reference.peaks >= x).mean() for x in z])
    worth = reference.null.n_sessions / 60
    assert np.abs(found["p_value"] - (1 + worth * share) / (1 + worth)).max() < 0.02           # the grid's distances, to within its error
    assert set(found.loc[found["p_value"] < 0.05, "feature"]) == {"f3", "f7"}
    named = sum((compare(autoregressive(s, 0.8, 12, 1320))[0]["p_value"] < 0.05).any() for s in range(6))
    assert named <= 1


WORLDS = {"ar 0.5": lambda s: autoregressive(s, 0.5, 8, 1000), "ar 0.9": lambda s: autoregressive(s, 0.9, 8, 1000),
          "garch": lambda s: garch(s, 8, 1000), "volatility": lambda s: garch(s, 8, 1000, smooth=0.8)}


def with_iid_null(past: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The reference with its rows shuffled: what a null looks like that takes rows for independent."""
    shuffled, order = past.copy(), np.random.default_rng(seed).permutation(len(past))
    shuffled.iloc[:, 2:] = past.iloc[:, 2:].to_numpy()[order]
    return shuffled


def test_false_alarms_are_rare_and_with_an_iid_null_they_are_not():
    """Overall a check, windows and features together. The red team: the same detector believes that rows are exchangeable."""
    alarms = believed = 0
    for world in WORLDS.values():
        for seed in range(6):
            past, now = split(world(seed))
            alarms += drift.DriftDetector().fit(past).compare(now)[1]["detected"].any()
            if seed < 2:
                believed += drift.DriftDetector().fit(with_iid_null(past, seed)).compare(now)[1]["detected"].any()
    assert alarms <= 3, f"{alarms} of 24 worlds without drift raised an alarm"
    assert believed >= 4, f"only {believed} of 8: the null no longer matters"


def test_shifts_are_seen():
    """1 sd in all features within 20 sessions, in 5 of 6 worlds."""
    seen = 0
    for seed in range(6):
        frame = autoregressive(seed, 0.8, 8, 1000)
        frame.loc[frame["session"] >= DAYS[980], [f"f{i}" for i in range(8)]] += 1.0
        seen += compare(frame)[1]["detected"].any()
    assert seen >= 5


def test_a_vix_that_jumps_by_half_is_seen():
    """By the features of the VIX alone, within five sessions."""
    alarms = {1.0: 0, 1.5: 0}
    for seed in range(10):
        path = 18 * np.exp(0.25 * lfilter([np.sqrt(1 - 0.95**2)], [1, -0.95], np.random.default_rng(seed).normal(size=1720))[400:])
        for lift in alarms:
            vix = np.log(np.append(path[:-5], path[-5:] * lift))
            values = np.column_stack([vix[20:], *(vix[20:] - vix[20 - k:-k] for k in (1, 5, 20))])
            alarms[lift] += compare(frame_of(values[:, None, :]))[1]["detected"].any()
    assert alarms[1.5] >= 6 and alarms[1.0] <= 1, alarms


@pytest.fixture(scope="module")
def packaged_years():
    """Panel and index of the packaged data."""
    packaged.sync(home() / "cache")
    found = market.run({"cache": {"folder": str(home() / "cache")}}, Settings())
    names = found.frames["panel"], found.frames["index"]
    return (*names, [f for f in F.FEATURES if f.scope == "market" or "volume" not in f.inputs])


@pytest.mark.parametrize("onset", ONSETS)
def test_crashes_are_seen_within_five_sessions(packaged_years, onset):
    """With information up to that session only; the reference is the five years before the window."""
    panel, index, chosen = packaged_years
    sessions = np.sort(panel["session"].unique())
    day = int(np.searchsorted(sessions, np.datetime64(onset))) + 5
    some = panel[panel["session"].between(sessions[day - 1600], sessions[day])].reset_index(drop=True)
    frame = F.compute(some, index[index["session"].between(sessions[day - 1600], sessions[day])], chosen)
    period = drift.reference_period(sessions[:day + 1], rule := DriftSettings())
    reference = drift.Reference.of(drift.between(frame, period["reference_start"], period["reference_end"]), rule.windows)
    scores = reference.score(reference.measure(frame[frame["session"] > period["reference_end"]].reset_index(drop=True), 6)[..., 0])
    p = reference.null.overall(scores)                                  # of each session from the onset on, windows that end there
    assert ((scores.max(axis=1) > rule.threshold) & (p <= rule.level)).any(), (scores, p)


def test_disjoint_is_one_and_a_growing_shift_never_scores_less():
    calm, scores = autoregressive(3), []
    for shift in (0.0, 1.0, 2.0, 50.0):
        moved = calm.copy()
        moved.loc[moved["session"] >= DAYS[640], [f"f{i}" for i in range(5)]] += shift
        scores.append(compare(moved)[1]["score"].to_numpy())
    assert (np.diff(scores, axis=0) >= -1e-12).all()
    assert np.abs(scores[-1] - 1).max() < 1e-6 and (compare(moved)[1]["detected"]).all()
    assert compare(moved)[0]["outside"].min() > 0.99


def test_a_change_of_missingness_is_no_drift():
    calm = autoregressive(5)
    holes = calm.copy()
    late = holes["session"] >= DAYS[640]
    holes.loc[late & (holes["symbol"] == "A"), "f0"] = np.nan            # a quarter goes missing: compared without
    holes.loc[late, "f1"] = np.nan                                       # all goes missing: left out and named
    holes["f2"] = np.nan                                                 # never known
    found = drift.run(inputs_of(holes), QUICK, DAYS[699]).documents["drift"]
    assert found["left_out"] == ["f1", "f2"] and found["n_features"] == 3 and not found["alarm"]


def test_what_comes_after_as_of_does_not_count():
    frame = autoregressive(7)
    shares = regimes_of(frame)
    shares.loc[::3, "regime"] = "crash"
    future = frame.copy()
    future.loc[future["session"] > DAYS[650], ["f0", "f1", "f2"]] = 99.0
    live, labelled = live_of(frame["session"].unique()[600:], 1.0), evaluation_of(frame["session"].unique()[:600])
    later = {"predictions": live["predictions"], "outcomes": live["outcomes"].assign(log_loss=live["outcomes"]["log_loss"].where(live["outcomes"]["known_at"] <= DAYS[650].date(), 99.0))}
    both = {"champion": {"evaluation": labelled}, "state": {}}
    inputs = [{"features": {"features": f}, "regimes": {"symbol_regimes": shares}, "live": x, **both} for f, x in ((frame, live), (future, later))]
    known = {"predictions": live["predictions"].query("session <= @DAYS[650]"), "outcomes": live["outcomes"][live["outcomes"]["known_at"] <= DAYS[650].date()]}
    cut = {"features": {"features": frame[frame["session"] <= DAYS[650]]}, "regimes": {"symbol_regimes": shares[shares["session"] <= DAYS[650]]}, "live": known, **both}
    outputs = [drift.run(i, QUICK, DAYS[650]) for i in (*inputs, cut)]
    for other in outputs[1:]:
        assert str(other.documents) == str(outputs[0].documents) and str(other.rows) == str(outputs[0].rows)
        for name in ("scores", "trace", "reference"):
            pd.testing.assert_frame_equal(other.frames[name], outputs[0].frames[name])
    assert outputs[0].documents["drift"]["current_end"] == f"{DAYS[650]:%Y-%m-%d}"


def test_the_champions_reference_is_used_and_never_overlaps_the_window():
    frame = autoregressive(9)
    champion = {"name": "production_v1", "reference_start": "2010-06-01", "reference_end": str(DAYS[695].date())}
    found = drift.run(inputs_of(frame, state={"champion": champion}), QUICK, DAYS[699]).documents["drift"]
    assert (found["reference"], found["reference_start"]) == ("champion", "2010-06-01")
    assert found["reference_end"] < found["current_start"]
    alone = drift.run(inputs_of(frame), QUICK, DAYS[699]).documents["drift"]
    assert found["challenger_score"] == alone["score"] == alone["challenger_score"] != found["score"]


def test_a_stored_reference_says_the_same_when_its_rows_are_gone():
    frame = autoregressive(9, sessions=900)
    shares = regimes_of(frame)
    shares.loc[::3, "regime"] = "crash"
    inputs = {"features": {"features": frame}, "regimes": {"symbol_regimes": shares}}
    stored = drift.run(inputs, QUICK, DAYS[699]).frames["reference"]
    data = encode(stored)[0]
    assert len(data) < 2_000_000
    stored = decode(data, "frame")
    reference, _ = drift.from_frame(stored)
    for whole, part in zip(drift.to_frame(*drift.from_frame(stored)).items(), stored.items(), strict=True):
        pd.testing.assert_series_equal(whole[1], part[1])
    champion = {"reference_start": str(reference.start.date()), "reference_end": str(DAYS[699].date())}
    cut = {name: {key: value[value["session"] > DAYS[500]].reset_index(drop=True) for key, value in one.items()} for name, one in inputs.items()}
    found = drift.run({**cut, "state": {"champion": champion}, "champion": {"drift_reference": stored}}, QUICK, DAYS[780])
    document = found.documents["drift"]
    assert (document["reference"], document["source"], document["reference_end"]) == ("champion", "stored", str(reference.end.date()))
    rows = drift.DriftDetector(DriftSettings()).fit(drift.between(frame, reference.start, reference.end))
    fresh = rows.compare(drift.between(frame, DAYS[721], DAYS[780]))
    assert document["by_window"] == {str(int(w)): s for w, s in zip(fresh[1]["window"], fresh[1]["score"], strict=True)}
    assert document["p_value"] == fresh[1]["p_value"][0] and document["regime"]["20"]["change"] >= 0 and not document["joint"]
    near = (found.frames["scores"][["ks", "wasserstein", "psi", "outside"]] - fresh[0][["ks", "wasserstein", "psi", "outside"]]).abs().max()
    assert near["ks"] < 2 / drift.CELLS and near["psi"] < 1e-12 and near["wasserstein"] < 0.02 and near["outside"] < 2 / drift.CELLS
    soon = drift.run({**cut, "state": {"champion": champion}, "champion": {"drift_reference": stored}}, QUICK, DAYS[650]).documents["drift"]
    assert np.isfinite(soon["by_window"]["5"]) and np.isnan(soon["by_window"]["60"])          # eleven sessions after its end
    assert all(rows.reference_.counts.sum(axis=1) == reference.counts.sum(axis=1))


def test_a_damaged_reference_is_refused():
    frame = drift.to_frame(drift.Reference.of(autoregressive(1, sessions=200), (5, 20)))
    for broken in (frame[frame["part"] != "span"], frame[frame["part"] != "edge"], frame.iloc[3:]):
        with pytest.raises(DataError, match="fit it again"):
            drift.from_frame(broken)
    with pytest.raises(DataError, match="share"):
        drift.from_frame(frame.drop(columns="share"))


def test_too_short_a_reference_is_no_claim():
    short = autoregressive(2, sessions=200)
    found = drift.run(inputs_of(short), QUICK, DAYS[199])
    by_window = found.documents["drift"]["by_window"]
    assert np.isnan(by_window["60"]) and np.isfinite(by_window["20"])
    rows = [row for row in found.rows["drift_monitoring"] if row["window"] == 60 and row["drift_type"] in ("feature", "regime")]
    assert [row["detected"] for row in rows] == [False, False] and all(row["details"]["verdict"] == "insufficient" for row in rows)
    moved = short.assign(f0=short["f0"].where(short["session"] < DAYS[190], 99), f1=short["f1"].where(short["session"] < DAYS[190], 99))
    document = drift.run(inputs_of(moved), QUICK, DAYS[199]).documents["drift"]
    assert document["smallest_p"] > 0.05 and not document["alarm"]       # 140 sessions cannot attest the level, and say so
    with pytest.raises(DataError, match="leave no reference"):
        drift.run(inputs_of(autoregressive(2, sessions=60)), QUICK, DAYS[59])


def test_inputs_stay_as_they_are_and_a_run_repeats():
    frame = autoregressive(4)
    before = frame.copy()
    first, second = (drift.run(inputs_of(frame), QUICK.model_copy(update={"run": QUICK.run.model_copy(update={"threads": n})}), DAYS[699]) for n in (1, 2))
    assert str(first.documents) == str(second.documents) and first.metrics == second.metrics
    for name in first.frames:
        pd.testing.assert_frame_equal(first.frames[name], second.frames[name])
    pd.testing.assert_frame_equal(frame, before)


def test_the_trace_ends_at_the_check():
    frame = autoregressive(6)
    output = drift.run(inputs_of(frame), QUICK, DAYS[699])
    last = output.frames["trace"].query("session == @DAYS[699] and feature == ''").set_index("window")["score"]
    assert np.allclose(last, output.frames["windows"].set_index("window")["score"], atol=1e-6)
    assert output.frames["trace"]["session"].nunique() == drift.TRACED


def test_regime_shares():
    rng, names = np.random.default_rng(0), np.array(REGIMES)
    frame = autoregressive(0, sessions=360)[["session", "symbol"]]
    frame["regime"] = names[rng.integers(0, 3, len(frame))]
    past, now = (drift.between(frame, DAYS[a], DAYS[b]) for a, b in ((0, 299), (300, 359)))
    reference = drift.RegimeReference.of(past, (5, 20, 60))
    found = drift.regime_drift(reference, now, DriftSettings()).set_index("window")
    share = [x["regime"].value_counts(normalize=True).reindex(names, fill_value=0) for x in (past, drift.between(now, DAYS[340], DAYS[359]))]
    assert found.loc[20, "score"] == pytest.approx(np.abs(share[0] - share[1]).max(), abs=1e-12) and not found["detected"].any()
    t = 150                                                                                  # one window of the null, slowly
    rest = past.loc[~past["session"].between(DAYS[t - 59], DAYS[t + 60]), "regime"].value_counts(normalize=True).reindex(names, fill_value=0)
    block = drift.between(past, DAYS[t - 19], DAYS[t])["regime"].value_counts(normalize=True).reindex(names, fill_value=0)
    assert reference.null.values[t - 59, 1] == pytest.approx(np.abs(block - rest).max(), abs=1e-12)
    assert not drift.regime_drift(reference, now.assign(regime="crash"), DriftSettings())["detected"].any()    # ten windows attest nothing
    assert drift.regime_drift(drift.RegimeReference.of(past, (5, 20)), now.assign(regime="crash"), DriftSettings(windows=(5, 20)))["detected"].all()
    unknown = past.assign(regime=past["regime"].where(np.arange(len(past)) % 9 > 0))          # a regime that nobody could tell
    assert drift.RegimeReference.of(unknown, (5,)).counts.sum() == unknown["regime"].notna().sum()
    assert drift.regime_drift(reference, now.assign(regime=None), DriftSettings())["score"].isna().all()


def test_a_change_of_correlation_is_seen_by_the_joint_test_alone():
    frame = autoregressive(9, 0.8, 5, 1000, symbols=8)
    turned = frame.copy()
    late = turned["session"] >= DAYS[940]
    turned.loc[late, "f1"] = (turned.loc[late, "f0"] + 0.1 * turned.loc[late, "f1"]).astype("float32")
    for one, seen in ((turned, True), (frame, False)):
        past, now = split(one)
        detector = drift.DriftDetector().fit(past)
        found = drift.joint_drift(detector.reference_, past, now, 40, seed=1)
        assert (found["score"] > 0.4 and found["p_value"] < 0.065) == seen
        assert not detector.compare(now)[1]["detected"].any()
    assert np.isnan(drift.joint_drift(detector.reference_, past, now[now["session"] > DAYS[960]], 40, seed=1)["auc"])


def test_what_a_fit_keeps_is_what_a_fresh_look_finds():
    """Cells and sorted values that `fit` keeps serve the joint test and the distances to the last digit, also beside a feature that is mostly unknown."""
    frame = autoregressive(3, 0.5, 5, 420)
    frame.loc[frame.index[: len(frame) * 3 // 4], "f2"] = np.nan
    frame.loc[frame.index[::11], "f4"] = np.inf
    past, now = split(frame, 61)
    detector = drift.DriftDetector().fit(past)
    names = drift.features_of(past)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(detector.sorted_, drift.sorted_columns(past[names].to_numpy()), strict=True))
    assert (detector.cells_[:, names.index("f2")] == -1).all() and (detector.cells_[::11, names.index("f4")] == -1).all()
    fresh = drift.joint_drift(detector.reference_, past, now, 20, seed=1)
    assert drift.joint_drift(detector.reference_, past, now, 20, 1, detector.cells_) == fresh and fresh["auc"] > 0
    assert drift.joint_drift(detector.reference_, past, now, 20, 1, detector.cells_[::-1].copy()) != fresh


# -- predictions and losses -----------------------------------------------------------------------------------------------


def evaluation_of(sessions: np.ndarray, sharp: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Calibrated out-of-fold predictions: labels drawn from the probabilities."""
    rng, names = np.random.default_rng(seed), SYMBOLS[:4]
    weight = np.exp(sharp * rng.normal(size=(len(sessions) * 4, 3)))
    proba = weight / weight.sum(axis=1, keepdims=True)
    label = (proba.cumsum(axis=1) < rng.random((len(proba), 1))).sum(axis=1).clip(0, 2)
    keys = pd.DataFrame({"session": np.repeat(sessions, 4), "symbol": names * len(sessions), "label": label})
    return keys.assign(**dict(zip(drift.PROBABILITIES, proba.T, strict=True)))


def live_of(sessions: np.ndarray, extra: float, sharp: float = 1.0, seed: int = 1) -> dict:
    """Forward predictions of a champion that is as good as it was, but for `extra` nats."""
    rows = evaluation_of(sessions, sharp, seed)
    losses = -np.log(rows[list(drift.PROBABILITIES)].to_numpy()[np.arange(len(rows)), rows["label"]])
    known = (rows["session"] + pd.tseries.offsets.BusinessDay(15)).dt.date
    return {"predictions": rows.drop(columns="label"), "outcomes": rows[["session", "symbol", "label"]].assign(log_loss=losses + extra, prior_loss=np.log(3), known_at=known)}


def test_harm_is_welchs_test_over_blocks():
    past, live = evaluation_of(DAYS[:600]), live_of(DAYS[600:745], 0.3)["outcomes"]
    found = drift.harm_test(past, live, DAYS[759], DriftSettings(block_sessions=30, harm_blocks=3))
    losses = drift.own_losses(past)
    def blocks(frame, ends):
        return [frame.loc[frame["session"].isin(DAYS[e - 30:e]), "log_loss"].mean() for e in ends]
    now, then = blocks(live, (685, 715, 745)), blocks(losses, range(30, 601, 30))
    expected = ttest_ind(now, then, equal_var=False, alternative="greater")
    assert found["p_value"] == pytest.approx(expected.pvalue, abs=1e-12) and found["rise"] == pytest.approx(np.mean(now) - np.mean(then), abs=1e-12)
    assert (found["live_blocks"], found["reference_blocks"], found["verdict"]) == (3, 20, "harm")
    assert drift.harm_test(past, live_of(DAYS[600:745], 0.0)["outcomes"], DAYS[759], DriftSettings())["verdict"] == "no harm"
    later = pd.concat([past, evaluation_of(DAYS[600:700], seed=7)])                             # out-of-fold rows of the live time do not count
    assert drift.harm_test(later, live, DAYS[759], DriftSettings(block_sessions=30, harm_blocks=3)) == found


@pytest.mark.parametrize(("evaluation", "outcomes"), [
    (None, "all"), ("all", None), ("all", "few"), ("all", "none"), ("empty", "all"), ("few", "all"),
])
def test_what_is_not_known_is_no_harm_and_no_absence_of_it(evaluation, outcomes):
    whole = evaluation_of(DAYS[:600])
    past = {"all": whole, "empty": whole.head(0), "few": evaluation_of(DAYS[550:600])}.get(evaluation)
    live = live_of(DAYS[600:745], 5.0)["outcomes"]
    seen = {"all": live, "few": live[live["session"] < DAYS[650]], "none": live.head(0)}.get(outcomes)
    found = drift.harm_test(past, seen, DAYS[759], DriftSettings())
    assert found["verdict"] == "insufficient" and np.isnan(found["p_value"]) and np.isnan(found["rise"])


def test_harm_errs_as_often_as_it_says():
    """Studentised over blocks: losses that cluster by session do not raise it."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(100):
        mood = np.repeat(lfilter([0.3], [1, -0.9], rng.normal(size=1400))[400:], 4)
        losses = pd.DataFrame({"session": np.repeat(DAYS[:1000], 4), "log_loss": 1 + mood + rng.normal(size=4000), "known_at": DAYS[0].date()})
        then, now = drift.block_means(losses[losses["session"] < DAYS[850]], 30), drift.block_means(losses[losses["session"] >= DAYS[850]], 30)
        wrong += ttest_ind(now, then, equal_var=False, alternative="greater").pvalue <= 0.05
    assert wrong <= 10


def test_predictions_and_the_loss_they_expect():
    past, now = evaluation_of(DAYS[:900]), DAYS[900:960]
    alike, loss = drift.prediction_drift(past, live_of(now, 0)["predictions"], DriftSettings())
    assert not alike["detected"].any() and not loss["detected"].any()
    timid, more = drift.prediction_drift(past, live_of(now, 0, sharp=0.3)["predictions"], DriftSettings())
    assert timid["detected"].any() and more["detected"].all()
    bold, less = drift.prediction_drift(past, live_of(now, 0, sharp=3.0)["predictions"], DriftSettings())
    assert bold["detected"].any() and not less["detected"].any()                                # sure of itself: no rise expected
    rows = live_of(now, 0)["predictions"]
    entropy = -(rows[list(drift.PROBABILITIES)] * np.log(rows[list(drift.PROBABILITIES)])).sum(axis=1)
    assert loss["score"].iloc[-1] == pytest.approx(entropy.mean() - drift.expected_loss(past).mean(), abs=1e-12)
    short = drift.prediction_drift(past, live_of(now[:7], 0)["predictions"], DriftSettings())
    assert all(one["score"].isna().tolist() == [False, True, True] for one in short)


# -- the decision ---------------------------------------------------------------------------------------------------------


def checks(*found) -> list[dict]:
    return [{"drift_type": "retrain", "session": DAYS[day].date(), "score": score, "detected": asked} for day, score, asked in found]


HARM = {"verdict": "harm", "rise": 0.2, "p_value": 0.01, "live_blocks": 4}


@pytest.mark.parametrize(("alarm", "verdict", "score", "expected"), [
    (True, "harm", 0.3, True), (False, "harm", 0.3, False), (True, "no harm", 0.3, False), (True, "insufficient", 0.3, False), (True, "harm", float("nan"), False),
])
def test_retraining_needs_alarm_and_harm(alarm, verdict, score, expected):
    found, why = drift.retrain_decision(score, alarm, {**HARM, "verdict": verdict}, [], DAYS[:500].to_numpy(), DriftSettings())
    assert found == expected and len(why) > 20


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from([0.05, 0.149, 0.15, 0.4, float("nan")])), min_size=1, max_size=40), st.integers(1, 30))
def test_at_most_one_retraining_an_episode(steps, cooldown):
    """Walked forward with the decision's own rows as history: between two retrainings lies a calm of `cooldown` sessions."""
    rule, rows, day, asked = DriftSettings(cooldown_sessions=cooldown), [], 100, []
    for gap, score in steps:
        day += gap
        wanted, _ = drift.retrain_decision(score, score > 0.15, HARM, rows, DAYS[:day + 1].to_numpy(), rule)
        rows = [*rows, *checks((day, score, wanted))]
        asked += [day] if wanted else []
    for first, second in zip(asked[:-1], asked[1:], strict=True):
        run, longest = None, 0
        for row in [r for r in rows if to_session(DAYS[first]) <= to_session(r["session"]) <= to_session(DAYS[second])]:
            at = DAYS.get_loc(pd.Timestamp(row["session"]))
            longest = max(longest, at - run if run is not None else 0)
            run = (run if run is not None else at) if row["score"] < 0.15 else None
        assert longest >= cooldown
    assert asked or not any(score > 0.15 for _, score in steps)                                 # the first alarm with harm is answered


def test_the_task_retrains_once_for_drift_that_costs():
    frame = autoregressive(13, sessions=1000)
    frame.loc[frame["session"] >= DAYS[900], ["f0", "f1", "f2"]] += 3.0
    evaluation, history = evaluation_of(DAYS[:850]), []
    decided = {}
    for name, extra, state in (("costs", 0.6, {}), ("harmless", 0.0, {}), ("answered", 0.6, {"drift_history": history})):
        inputs = inputs_of(frame, live=live_of(DAYS[850:985], extra), champion={"record": {}, "evaluation": evaluation, "drift_reference": None}, state=state)
        output = drift.run(inputs, QUICK, DAYS[999])
        rows = {(row["drift_type"], row["window"]): row for row in output.rows["drift_monitoring"]}
        decided[name] = rows["retrain", 0]
        assert output.documents["drift"]["retrain"] == decided[name]["detected"] and rows["performance", 0]["detected"] == (extra > 0)
        assert {kind for kind, _ in rows} == {"feature", "joint", "regime", "prediction", "performance", "estimated", "retrain"}
        assert drift.table(output).shape[0] == len(rows)
        if name == "costs":
            history += [{key: row[key] for key in ("score", "p_value", "detected", "details")} | {"session": str(date(2013, 10, 1))} for row in output.rows["drift_monitoring"][-1:]]
    assert [decided[x]["detected"] for x in ("costs", "harmless", "answered")] == [True, False, False]
    assert "risen by" in decided["costs"]["details"]["words"] and "been answered" in decided["answered"]["details"]["words"]
    assert decided["costs"]["p_value"] <= 0.05 < decided["harmless"]["p_value"]
    bare = drift.run(inputs_of(frame), QUICK, DAYS[999]).documents["drift"]
    assert bare["alarm"] and not bare["retrain"] and "too few labels" in bare["why"]
