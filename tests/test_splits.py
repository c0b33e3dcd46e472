"""Splits and judges: nothing is judged on what it learned from; measures agree with slow or independent ones."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import spearmanr
from sklearn.metrics import log_loss

from mltrader import splits
from mltrader.core import PROBABILITIES, ConfigError, DataError

DAYS = pd.bdate_range("2000-01-03", "2004-12-31").as_unit("us")
FOLDS = splits.walk_forward(DAYS, 2001, DAYS[-1])


def make_samples() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    frame = pd.MultiIndex.from_product([DAYS[:-17], ["A", "B", "C"]], names=["session", "symbol"]).to_frame(index=False)
    return frame.assign(
        label=rng.integers(0, 3, len(frame)).astype("int8"),
        x=rng.normal(size=len(frame)).astype("f4"),
        label_known_at=DAYS[np.searchsorted(DAYS, frame["session"]) + 16],
    )


def make_plan(samples: pd.DataFrame) -> pd.DataFrame:
    known = [(f.fold, np.flatnonzero(samples["label_known_at"] <= f.cutoff)) for f in FOLDS.itertuples()]
    return pd.concat(
        [pd.DataFrame({"fold": k, "row": r, "weight": np.float32(1)}) for k, r in known], ignore_index=True
    )


SAMPLES = make_samples()
PLAN = make_plan(SAMPLES)
RECIPE = {"name": "test"}


class Counter:
    """A deterministic model that counts its fits; its probabilities have no short decimal form."""

    def __init__(self):
        self.fits = 0

    def __call__(self, X, y, rows, X_test):
        self.fits += 1
        scores = np.exp(
            np.outer(X_test["x"].to_numpy(dtype=float), [0.1, 0.2, 0.3]) * rows["weight"].mean() + np.bincount(y)[:3] / len(y)
        )
        return scores / scores.sum(axis=1, keepdims=True)


def predict(samples=SAMPLES, plan=PLAN, folds=FOLDS, model=None, cache=None, recipe=RECIPE, **kwargs):
    return splits.out_of_fold(samples, ["x"], plan, folds, model or Counter(), recipe, cache, **kwargs)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(DAYS) - 1), st.integers(1999, 2006))
def test_folds_are_disjoint_years_after_their_cut_off(i, first_year):
    folds = splits.walk_forward(DAYS[::-1], first_year, DAYS[i])
    assert (folds["fold"] >= first_year).all() and (folds["test_end"] <= DAYS[i]).all()
    for fold in folds.itertuples():
        assert DAYS[DAYS < fold.test_start][-1] == fold.cutoff
        assert fold.test_start.year == fold.test_end.year == fold.fold
    assert (folds["test_start"].iloc[1:].to_numpy() > folds["test_end"].iloc[:-1].to_numpy()).all()


def test_predictions_cover_each_test_row_once():
    frame = predict().frame
    tested = np.flatnonzero(SAMPLES["session"] >= FOLDS["test_start"].min())
    np.testing.assert_array_equal(frame["row"], tested)
    assert (SAMPLES.loc[frame["row"], "session"].dt.year.to_numpy() == frame["fold"]).all()


def test_a_planted_training_row_from_the_future_is_refused():
    for fold in FOLDS.itertuples():
        late = SAMPLES.index[SAMPLES["label_known_at"] > fold.cutoff][0]  # one session too late is enough
        leak = pd.concat([PLAN, pd.DataFrame({"fold": [fold.fold], "row": [late], "weight": [np.float32(1)]})])
        with pytest.raises(DataError, match=f"Fold {fold.fold}: training row {late} "):
            predict(plan=leak)
        with pytest.raises(DataError, match=f"training row {late} "):
            splits.reopen(predict().frame, RECIPE, SAMPLES, leak, FOLDS)
    unknown = SAMPLES.assign(label_known_at=SAMPLES["label_known_at"].where(SAMPLES.index != PLAN["row"][0]))
    with pytest.raises(DataError, match="training row"):
        predict(samples=unknown)


def test_other_spoiled_folds_are_refused():
    with pytest.raises(DataError, match="at or before the cut-off"):
        predict(folds=FOLDS.assign(test_start=FOLDS["cutoff"]))
    with pytest.raises(DataError, match="twice"):
        predict(plan=pd.concat([PLAN, PLAN.iloc[[0]]]))
    with pytest.raises(DataError, match="weights"):
        predict(plan=PLAN.assign(weight=np.float32("nan")))
    for bad in (
        lambda *a: np.full((len(a[3]), 3), np.nan),
        lambda *a: np.ones((len(a[3]), 2)) / 2,
        lambda *a: np.tile([1.5, -0.5, 0.0], (len(a[3]), 1)),
    ):
        with pytest.raises(DataError, match="predictions"):
            predict(model=bad)


def test_out_of_fold_cannot_be_made_by_hand():
    real = predict()
    with pytest.raises(DataError, match="made by splits"):
        splits.OutOfFold(real.frame, RECIPE)
    with pytest.raises(DataError, match="made by splits"):
        dataclasses.replace(real, frame=real.frame.assign(proba_buy=1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        real.frame = real.frame


def test_reopened_predictions_are_the_same_and_foreign_ones_are_refused():
    real = predict()
    pd.testing.assert_frame_equal(
        splits.reopen(real.frame, RECIPE, SAMPLES, PLAN, FOLDS).frame, real.frame, check_exact=True
    )
    for spoiled in (
        real.frame.assign(fold=real.frame["fold"] - 1),
        pd.concat([real.frame, real.frame.iloc[[3]]]),
        real.frame.assign(row=real.frame["row"] - 400),
        real.frame.assign(row=10**7),
    ):
        with pytest.raises(DataError, match="outside the test window|is there twice"):
            splits.reopen(spoiled, RECIPE, SAMPLES, PLAN, FOLDS)


def test_the_cache_gives_the_same_bits_and_misses_on_any_change():
    model, cache = Counter(), {}
    first = predict(model=model, cache=cache)
    assert model.fits == len(FOLDS) == len(cache)
    pd.testing.assert_frame_equal(predict(model=model, cache=cache).frame, first.frame, check_exact=True)
    assert model.fits == len(FOLDS)
    changes = [
        {"recipe": {"name": "other"}},
        {"samples": SAMPLES.assign(x=SAMPLES["x"].where(SAMPLES.index != 0, 9.0))},
        {"samples": SAMPLES.assign(label=SAMPLES["label"].where(SAMPLES.index != 0, 2 - SAMPLES["label"][0] // 2))},
        {"plan": PLAN.assign(weight=PLAN["weight"].where(PLAN["row"] != 0, 2.0).astype("f4"))},
        {"plan": PLAN[PLAN["row"] != 0]},
        {"plan": PLAN.assign(uniqueness=np.float32(0.5))},
    ]
    for change in changes:
        fits = model.fits
        predict(model=model, cache=cache, **change)
        assert model.fits == fits + len(FOLDS), change.keys()
    last = SAMPLES.index[-1]  # a test row of the last fold alone
    fits = model.fits
    predict(samples=SAMPLES.assign(x=SAMPLES["x"].where(SAMPLES.index != last, 9.0)), model=model, cache=cache)
    assert model.fits == fits + 1


def test_the_cache_survives_other_row_ids_and_parquet_but_not_other_rows(tmp_path):
    model, cache = Counter(), {}
    first = predict(model=model, cache=cache)
    for i, (key, frame) in enumerate(list(cache.items())):
        frame.to_parquet(tmp_path / f"{i}.parquet")
        cache[key] = pd.read_parquet(tmp_path / f"{i}.parquet")
    moved = SAMPLES[SAMPLES["session"] >= DAYS[1]].reset_index(drop=True)  # ids shift; fold 1 loses its first rows
    plan = make_plan(moved)
    keep = FOLDS[FOLDS["fold"] > 2001]
    same = plan[plan["fold"] > 2001]
    predict(samples=moved, plan=same, folds=keep, model=model, cache=cache)
    old = PLAN[PLAN["row"] >= 3]
    a = predict(plan=old, folds=keep, model=model, cache=cache)
    assert model.fits == 2 * len(FOLDS) - 1  # the second call found the first one's entries
    b = predict(samples=moved, plan=same, folds=keep, model=model, cache=cache)
    np.testing.assert_array_equal(a.frame["row"] - 3, b.frame["row"])
    np.testing.assert_array_equal(a.frame[list(PROBABILITIES)], b.frame[list(PROBABILITIES)])
    for key in cache:
        cache[key] = cache[key].assign(symbol="Z")  # an entry for other rows is not believed
    fits = model.fits
    pd.testing.assert_frame_equal(predict(model=model, cache=cache).frame, first.frame, check_exact=True)
    assert model.fits == fits + len(FOLDS)


def slow_interval(frame: pd.DataFrame, horizon: int, n_boot: int, level: float, seed: int) -> tuple[float, float]:
    groups = [g.to_numpy() for _, g in frame.groupby("session")["v"]]
    n, length = len(groups), 2 * horizon
    means = []
    for starts in splits.block_starts(n, length, n_boot, seed):
        picked = [(s + i) % n for s in starts for i in range(length)][:n]
        means.append(np.concatenate([groups[p] for p in picked]).mean())
    return tuple(np.quantile(means, [level / 2, 1 - level / 2]))


@settings(max_examples=15, deadline=None)
@given(st.integers(12, 90), st.integers(1, 6), st.integers(0, 1000))
def test_interval_equals_a_slow_bootstrap(n_sessions, horizon, seed):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"session": DAYS[np.sort(rng.integers(0, n_sessions, 4 * n_sessions))]})
    frame["v"] = rng.normal(size=len(frame))
    got = splits.session_interval(frame.sample(frac=1, random_state=1), "v", horizon, 200, 0.1, seed)
    present = frame["session"].nunique()
    assert (got.n_rows, got.n_sessions, got.n_blocks) == (len(frame), present, present // (2 * horizon))
    assert got.estimate == pytest.approx(frame["v"].mean())
    if got.n_blocks >= 2:
        wider = stats.t.ppf(0.95, got.n_blocks - 1) / stats.norm.ppf(0.95)
        expected = [got.estimate + wider * (end - got.estimate) for end in slow_interval(frame, horizon, 200, 0.1, seed)]
        assert (got.low, got.high) == pytest.approx(tuple(expected))
    else:
        assert np.isnan(got.low) and np.isnan(got.high)


def test_interval_has_the_analytic_width_and_coverage_on_independent_sessions():
    rng = np.random.default_rng(6)
    hits, widths = 0, []
    for seed in range(200):
        frame = pd.DataFrame({"session": DAYS[:600], "v": rng.normal(size=600)})
        got = splits.session_interval(frame, "v", 2, 400, 0.1, seed)
        hits += got.low <= 0 <= got.high
        widths.append(got.high - got.low)
    assert np.mean(widths) == pytest.approx(2 * 1.645 / 600**0.5, rel=0.05)
    assert 0.83 <= hits / 200 <= 0.95


@pytest.mark.parametrize(("blocks", "most"), [(6, 0.065), (20, 0.055)])
def test_few_blocks_do_not_make_a_narrow_interval(blocks, most):
    """No effect and dependence over the horizon: a gain is seen by mistake not much more often than at the nominal 2.5 %."""
    rng, horizon = np.random.default_rng(11), 14
    n, mistakes = blocks * 2 * horizon, 0
    for seed in range(400):
        noise = np.convolve(rng.normal(size=n + horizon), np.ones(horizon + 1), "valid")
        got = splits.session_interval(pd.DataFrame({"session": DAYS[:n], "v": noise}), "v", horizon, 200, 0.05, seed)
        mistakes += got.low > 0
    assert mistakes / 400 <= most, mistakes / 400


def test_interval_admits_that_rows_of_a_session_are_one_unit():
    rng = np.random.default_rng(7)
    day = rng.normal(size=500)
    once = pd.DataFrame({"session": DAYS[:500], "v": day})
    often = once.loc[once.index.repeat(20)]
    a, b = (splits.session_interval(frame, "v", 3, 500, 0.05, 1) for frame in (once, often))
    assert (a.low, a.high) == pytest.approx((b.low, b.high)) and b.n_rows == 20 * a.n_rows


def test_interval_weights_missing_values_and_bad_levels():
    frame = pd.DataFrame(
        {"session": DAYS[:100].repeat(2), "v": np.tile([1.0, 3.0], 100), "w": np.tile([3.0, 1.0], 100)}
    )
    assert splits.session_interval(frame, "v", 2, 50, 0.05, 1, weight="w").estimate == pytest.approx(1.5)
    holes = frame.assign(v=frame["v"].where(frame["v"] < 2))
    assert splits.session_interval(holes, "v", 2, 50, 0.05, 1).n_rows == 100
    for level in (0.95, 0.0, 1.0):
        with pytest.raises(ConfigError, match="error probability"):
            splits.session_interval(frame, "v", 2, 50, level, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_rank_ic_equals_scipy_session_by_session(seed, levels):
    rng = np.random.default_rng(seed)
    code = np.sort(rng.integers(0, 20, 200))
    frame = pd.DataFrame(
        {"session": DAYS[code], "s": rng.integers(0, levels, 200).astype(float), "t": rng.normal(size=200)}
    )
    frame.loc[rng.random(200) < 0.1, "t"] = np.nan
    got = splits.rank_ic(frame.sample(frac=1, random_state=1), "s", "t").set_index("session")
    for session, group in frame.groupby("session"):
        group = group.dropna()
        assert got.at[session, "n"] == len(group)
        if len(group) < 5 or group["s"].nunique() < 2:
            assert np.isnan(got.at[session, "ic"])
        else:
            assert got.at[session, "ic"] == pytest.approx(spearmanr(group["s"], group["t"]).statistic, abs=1e-12)


def test_log_loss_equals_sklearn_and_is_clipped():
    rng = np.random.default_rng(8)
    proba, y = rng.dirichlet([1, 1, 1], 500), rng.integers(0, 3, 500)
    assert splits.log_loss_rows(y, proba).mean() == pytest.approx(log_loss(y, proba, labels=[0, 1, 2]), rel=1e-6)
    assert splits.log_loss_rows([0], [[0.0, 1.0, 0.0]])[0] == pytest.approx(-np.log(1e-6))
    with pytest.raises(DataError):
        splits.log_loss_rows([0, 1], proba[:2, :2])


def test_calibration_error_equals_a_slow_count():
    rng = np.random.default_rng(9)
    proba, y = rng.dirichlet([1, 2, 1], 1000), rng.integers(0, 3, 1000)
    gaps = []
    for k in range(3):
        order = np.argsort(proba[:, k])
        parts = np.array_split(order, 10)
        gaps.append(sum(len(p) * abs(proba[p, k].mean() - (y[p] == k).mean()) for p in parts) / 1000)
    assert splits.calibration_error(y, proba) == pytest.approx(np.mean(gaps))
    order = rng.permutation(1000)
    coarse = proba.round(1)
    assert splits.calibration_error(y, coarse) == pytest.approx(splits.calibration_error(y[order], coarse[order]))
    assert np.isnan(splits.calibration_error([], np.empty((0, 3))))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 60), st.lists(st.integers(1, 30), min_size=5, max_size=300))
def test_leaving_an_event_out_purges_by_the_labels_spans(start, length, spans):
    """Against a slow reading of the definition: no training label's span meets that of the judged rows."""
    days = pd.bdate_range("2001-01-01", periods=400).as_unit("us")
    frame = pd.DataFrame({"session": days[: len(spans)], "label_known_at": days[np.arange(len(spans)) + spans]})
    event = pd.DataFrame({"event": ["e"], "start": [days[start]], "end": [days[min(start + length, 399)]]})
    inside = [i for i in range(len(spans)) if event["start"][0] <= frame["session"][i] <= event["end"][0]]
    if not inside:
        assert list(splits.leave_one_event_out(frame, event)) == []
        return
    first, last = frame["session"][inside].min(), frame["label_known_at"][inside].max()
    free = [i for i in range(len(spans)) if frame["label_known_at"][i] < first or frame["session"][i] > last]
    if not free:
        with pytest.raises(DataError, match="no row is left"):
            list(splits.leave_one_event_out(frame, event))
        return
    [(_, train, test)] = splits.leave_one_event_out(frame, event)
    assert train.tolist() == free and test.tolist() == inside
