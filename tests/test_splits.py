"""Splits and judges: nothing is judged on what it learned from; measures agree with slow or independent ones."""

import dataclasses
import sys
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import purgedcv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import spearmanr
from skfolio.model_selection import CombinatorialPurgedCV as SkfolioCombinatorial
from skfolio.model_selection import WalkForward as SkfolioWalkForward
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

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


def test_the_models_of_folds_are_kept_and_fitted_again_if_lost():
    cache, counter, kept = {}, Counter(), {}
    made = predict(model=lambda *learn: (counter(*learn[:4]), learn[4] or f"model {len(learn[0])}"), cache=cache, models=kept)
    fits = counter.fits
    assert set(kept) == set(made.frame["fold"]) and all(cache[key].startswith("model") for key in kept.values())
    plain = predict(cache=cache)                                             # without asking for models the same predictions are found
    pd.testing.assert_frame_equal(plain.frame, made.frame)
    del cache[kept[min(kept)]]
    again = predict(model=lambda *learn: (counter(*learn[:4]), learn[4] or "again"), cache=cache, models={})
    assert counter.fits == fits + 1 and cache[kept[min(kept)]] == "again"
    pd.testing.assert_frame_equal(again.frame, made.frame)


def test_a_fold_that_has_grown_is_heard_from_the_model_it_has():
    cache, fitted = {}, []

    def model(X, y, rows, X_test, known=None):
        if known is None:
            fitted.append(len(X))
        return Counter()(X, y, rows, X_test), known or "model"

    begun = FOLDS.assign(test_end=FOLDS["test_end"].where(FOLDS["fold"] < FOLDS["fold"].max(), FOLDS["test_start"].max() + pd.Timedelta(days=60)))
    short, whole = (predict(folds=folds, model=model, cache=cache, models={}).frame for folds in (begun, FOLDS))
    assert len(short) < len(whole) and len(fitted) == whole["fold"].nunique()
    pd.testing.assert_frame_equal(whole[whole["row"].isin(short["row"])].reset_index(drop=True), short)


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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 10**6))
def test_a_feature_that_names_the_symbol_is_told_from_one_that_does_not(n_symbols, n_rows, seed):
    """Against a slow reading: refused exactly if constant (a missing value counts as one) in every symbol with 20 rows, and not in all alike."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"symbol": rng.choice(list("ABCD")[:n_symbols], n_rows * n_symbols)})
    tag = frame["symbol"].map(dict(zip("ABCD", rng.choice([0.0, 1.0, np.nan], 4), strict=True)))
    frame["f"] = np.where(rng.random(len(frame)) < rng.choice([0, 0, 0.05]), 7.0, tag)
    groups = {s: g["f"].to_numpy() for s, g in frame.groupby("symbol") if len(g) >= 20}
    still = all(len(pd.unique(values)) == 1 for values in groups.values())
    names = still and len({str(values[0]) for values in groups.values()}) > 1
    frame["session"] = DAYS[np.arange(len(frame))]
    if names:
        with pytest.raises(DataError, match="`f` never changes within a symbol"):
            splits.check_features(frame, ["f"])
    else:
        splits.check_features(frame, ["f"])


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


def spans_frame(session, known, symbols=1):
    """Rows of DAYS by position, each repeated for `symbols` names."""
    frame = pd.DataFrame({"session": DAYS[np.asarray(session)], "label_known_at": DAYS[np.asarray(known)]})
    return frame.loc[frame.index.repeat(symbols)].reset_index(drop=True)


@st.composite
def panels(draw, least=12, most=80):
    """A panel with holes, one to three symbols and labels of any length, in shuffled order."""
    n = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    session = np.sort(rng.choice(2 * n, n, replace=False))
    frame = spans_frame(session, session, draw(st.integers(1, 3)))
    at = np.searchsorted(DAYS, frame["session"])
    frame["label_known_at"] = DAYS[at + rng.integers(0, draw(st.integers(1, 12)), len(frame))]
    return frame.sample(frac=1, random_state=1, ignore_index=True)


def splitters(frame, size, embargo):
    start, end = frame["session"].min(), frame["session"].max()
    middle = start + (end - start) / 2
    events = pd.DataFrame({"event": ["a", "b"], "start": [start, middle], "end": [start + (end - start) / 5, middle + (end - start) / 9]})
    yield splits.PurgedWalkForward(frame["session"].nunique() // 2, size), False
    yield splits.PurgedWalkForward(frame["session"].nunique() // 2, size, expanding=True), False
    yield splits.CombinatorialPurgedCV(4, 2, embargo), True
    yield splits.LeaveOneEventOut(events, embargo), True


@settings(max_examples=120, deadline=None)
@given(panels(), st.integers(2, 9), st.integers(0, 6))
def test_no_training_span_meets_a_tested_one_by_a_slow_reading(frame, size, embargo):
    """Row by row: a candidate is in the training set exactly if it meets no tested span and lies in no embargo."""
    calendar = np.unique(frame["session"])
    s, k = frame["session"].to_numpy(), frame["label_known_at"].to_numpy()
    for splitter, looks_ahead in splitters(frame, size, embargo):
        held = embargo if looks_ahead else 0
        try:
            found = list(splitter.split(frame))
        except DataError as error:
            assert "no row is left" in str(error)
            continue
        assert len(found) == splitter.get_n_splits(frame)
        for train, test in found:
            end = {j: calendar[min(np.searchsorted(calendar, k[j], side="right") - 1 + held, len(calendar) - 1)] for j in test}
            free = [i for i in range(len(frame)) if all(k[i] < s[j] or (s[i] > k[j] and s[i] > end[j]) for j in test)]
            if isinstance(splitter, splits.PurgedWalkForward):
                first = np.searchsorted(calendar, s[test].min())
                begin = calendar[0 if splitter.expanding else first - splitter.train_sessions]
                free = [i for i in free if begin <= s[i] < s[test].min()]
            assert train.tolist() == free
            assert not set(s[train]) & set(s[test])  # all symbols of a session are on one side
        if isinstance(splitter, splits.PurgedWalkForward):
            tested = np.concatenate([test for _, test in found])
            assert sorted(tested) == np.flatnonzero(s >= calendar[splitter.train_sessions]).tolist()


@settings(max_examples=250, deadline=None)
@given(st.integers(30, 150), st.integers(1, 8), st.integers(1, 12), st.integers(3, 25), st.booleans())
def test_walk_forward_equals_skfolio_for_a_fixed_horizon(n, horizon, size, train, expanding):
    frame = spans_frame(np.arange(n), np.arange(n) + horizon)
    peer = SkfolioWalkForward(test_size=size, train_size=train, expand_train=expanding, reduce_test=True, purged_size=horizon)
    if n <= train + horizon:
        with pytest.raises(ValueError):
            list(peer.split(frame))
        with pytest.raises(DataError, match="nothing is left to test"):
            list(splits.PurgedWalkForward(train + horizon, size).split(frame))
        return
    ours = splits.PurgedWalkForward(train + horizon, size, expanding)  # ours counts the window before purging
    assert same(ours.split(frame), peer.split(frame)) == ours.get_n_splits(frame) == peer.get_n_splits(frame)


@settings(max_examples=250, deadline=None)
@given(st.integers(3, 7), st.data())
def test_combinatorial_equals_skfolio_for_a_fixed_horizon(n_groups, data):
    n_test = data.draw(st.integers(2, n_groups - 1))
    length = data.draw(st.integers(3, 20))
    horizon = data.draw(st.integers(0, length - 2))
    embargo = data.draw(st.integers(0, length - 2 - horizon))
    n = n_groups * length  # an uneven division differs: skfolio's last group takes the whole remainder
    frame = spans_frame(np.arange(n), np.arange(n) + horizon)
    ours = splits.CombinatorialPurgedCV(n_groups, n_test, embargo)
    peer = SkfolioCombinatorial(n_groups, n_test, purged_size=horizon, embargo_size=embargo)
    np.testing.assert_array_equal(ours.paths(), peer.recombined_paths.T)
    theirs = [(train, np.concatenate(tests)) for train, tests in peer.split(frame)]
    if any(not len(train) for train, _ in theirs):
        with pytest.raises(DataError, match="no row is left"):
            list(ours.split(frame))
        return
    assert same(ours.split(frame), theirs) == ours.get_n_splits() == peer.n_splits


@settings(max_examples=250, deadline=None)
@given(panels(20), st.integers(3, 6), st.data())
def test_combinatorial_equals_purgedcv_for_labels_of_any_length(frame, n_groups, data):
    frame = frame.drop_duplicates("session").sort_values("session", ignore_index=True)
    n_test = data.draw(st.integers(1, n_groups - 1))
    peer = purgedcv.CombinatorialPurgedCV(n_groups, n_test, **half_open(frame))
    ours, theirs = splits.CombinatorialPurgedCV(n_groups, n_test), list(peer.split(frame))
    if any(not len(train) for train, _ in theirs):
        with pytest.raises(DataError, match="no row is left"):
            list(ours.split(frame))
        return
    same(ours.split(frame), theirs)
    members = [np.flatnonzero(ours.group_of(frame) == g) for g in range(n_groups)]
    split_numbers = [np.full(len(test), float(i)) for i, (_, test) in enumerate(theirs)]
    by_row = peer.reconstruct_paths(split_numbers)
    np.testing.assert_array_equal(ours.paths(), np.stack([by_row[:, rows[0]] for rows in members], axis=1))
    longer = frame.assign(label_known_at=frame["label_known_at"] + pd.Timedelta(1, "D"))  # no label without length: half-open, it is empty
    s, k = longer["session"].to_numpy(), longer["label_known_at"].to_numpy()
    loose = purgedcv.CombinatorialPurgedCV(n_groups, n_test, **half_open(longer, tick=0))
    for number, (train, test) in enumerate(loose.split(longer)):
        tested = np.isin(ours.group_of(longer), list(combinations(range(n_groups), n_test))[number])
        strict = np.flatnonzero(splits.LabelSpans.of(longer).clear_of(tested))
        more = np.setdiff1d(train, strict)  # what half-open spans keep: spans that meet a tested one in its first or last day alone
        assert np.isin(strict, train).all() and (np.isin(k[more], s[test]) | np.isin(s[more], k[test])).all()


@settings(max_examples=250, deadline=None)
@given(st.integers(24, 120), st.integers(2, 6), st.integers(1, 3), st.integers(0, 10), st.integers(0, 8), st.integers(1, 3))
def test_embargo_equals_purgedcv_counted_from_the_end_of_the_labels(n, n_groups, n_test, horizon, embargo, symbols):
    """On a calendar without week-ends a duration is a number of sessions; on the day of the label's end the purge already holds."""
    if n_test >= n_groups:
        return
    n -= n % n_groups  # purgedcv cuts groups by rows, so that with several symbols an uneven division would cut a session
    days = pd.date_range("2001-01-01", periods=200).as_unit("us")
    frame = pd.DataFrame({"session": days[:n], "label_known_at": days[horizon : n + horizon]}).loc[lambda x: x.index.repeat(symbols)]
    peer = purgedcv.CombinatorialPurgedCV(n_groups, n_test, embargo=pd.Timedelta(days=embargo), **half_open(frame))
    theirs = list(peer.split(frame))
    ours = splits.CombinatorialPurgedCV(n_groups, n_test, embargo)
    if any(not len(train) for train, _ in theirs):
        with pytest.raises(DataError, match="no row is left"):
            list(ours.split(frame))
        return
    same(ours.split(frame), theirs)


@settings(max_examples=250, deadline=None)
@given(panels(20), st.integers(2, 6), st.integers(1, 4), st.integers(1, 15))
def test_walk_forward_equals_purgedcv_for_labels_of_any_length(frame, size, n_splits, rolling):
    frame = frame.drop_duplicates("session").sort_values("session", ignore_index=True)
    start = len(frame) - n_splits * size
    if start < 1:
        return
    peer = purgedcv.WalkForwardSplit(n_splits, size, **half_open(frame))
    theirs = list(peer.split(frame))
    ours = splits.PurgedWalkForward(start, size, expanding=True)
    if any(not len(train) for train, _ in theirs):
        with pytest.raises(DataError, match="no row is left"):
            list(ours.split(frame))
        return
    assert same(ours.split(frame), theirs) == n_splits
    window = purgedcv.WalkForwardSplit(n_splits, size, window="sliding", train_size=rolling, **half_open(frame))
    for (train, _), (last, _) in zip(ours.split(frame), window.split(frame), strict=True):
        np.testing.assert_array_equal(train[-rolling:], last)  # theirs counts the window in rows that were kept


def half_open(frame, tick=1):
    """Times for purgedcv, whose spans are half-open: one microsecond more makes them end with the day they are known on."""
    return {"prediction_times": frame["session"].to_numpy(), "evaluation_times": (frame["label_known_at"] + pd.Timedelta(tick, "us")).to_numpy()}


def same(ours, theirs):
    """Assert equal splits; how many there were."""
    count = 0
    for (train, test), (their_train, their_test) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(train, their_train)
        np.testing.assert_array_equal(test, np.sort(their_test))
        count += 1
    return count


@pytest.mark.parametrize(("n_groups", "n_test"), [(2, 1), (5, 2), (6, 3), (10, 2), (7, 6)])
def test_every_path_goes_through_every_group_once_and_uses_every_prediction_once(n_groups, n_test):
    cv = splits.CombinatorialPurgedCV(n_groups, n_test)
    paths = cv.paths()
    assert paths.shape == (comb(n_groups, n_test) * n_test // n_groups, n_groups)
    used = set(zip(paths.ravel(), np.tile(np.arange(n_groups), len(paths)), strict=True))
    frame = spans_frame(np.arange(50 * n_groups), np.arange(50 * n_groups))
    group = cv.group_of(frame)
    tested = {(number, g) for number, (_, test) in enumerate(cv.split(frame)) for g in np.unique(group[test])}
    assert used == tested and len(used) == paths.size


def test_the_splitters_work_with_scikit_learn():
    frame = SAMPLES.assign(z=np.random.default_rng(1).normal(size=len(SAMPLES)))
    model = make_pipeline(make_column_transformer(("passthrough", ["x", "z"])), LogisticRegression(C=1.0))
    events = pd.DataFrame({"event": ["e"], "start": [DAYS[400]], "end": [DAYS[460]]})
    for cv in (splits.PurgedWalkForward(500, 250), splits.CombinatorialPurgedCV(4, 2, 5), splits.LeaveOneEventOut(events)):
        scores = cross_val_score(model, frame, frame["label"], cv=cv, scoring="neg_log_loss")
        assert len(scores) == cv.get_n_splits(frame) and abs(scores.mean() + np.log(3)) < 0.02
        search = GridSearchCV(model, {"logisticregression__C": [0.1, 1.0]}, cv=cv, scoring="neg_log_loss").fit(frame, frame["label"])
        assert clone(search).cv.get_n_splits(frame) == search.n_splits_ == len(scores)


def test_an_unpurged_split_rewards_memory_and_a_purged_one_does_not():
    """The mean of overlapping noise: its neighbours know it. Nearest in time wins without purging, and is worth nothing with it."""
    rng = np.random.default_rng(2)
    n, horizon = 900, 15
    outcome = np.convolve(rng.normal(size=n + horizon), np.ones(horizon + 1), "valid") > 0
    frame = spans_frame(np.arange(n), np.arange(n) + horizon)
    frame["t"] = np.arange(float(n))
    model = make_pipeline(make_column_transformer(("passthrough", ["t"])), KNeighborsClassifier(1))
    leaky = cross_val_score(model, frame, outcome, cv=KFold(10, shuffle=True, random_state=0)).mean()
    purged = cross_val_score(model, frame, outcome, cv=splits.CombinatorialPurgedCV(10, 2, embargo=horizon)).mean()
    assert leaky > 0.8 and abs(purged - 0.5) < 0.1


def test_purging_a_hundred_thousand_rows_takes_no_loop_over_them():
    """45 splits cost a few passes each: less than sorting the rows 300 times, far below one step of Python a row and split."""
    rng = np.random.default_rng(3)
    session = np.sort(rng.integers(0, 1200, 100_000))
    frame = spans_frame(session, session + rng.integers(1, 16, 100_000))
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        sizes = [len(train) for train, _ in splits.CombinatorialPurgedCV(10, 2, 5).split(frame)]
    finally:
        sys.setprofile(None)
    assert len(sizes) == 45 and min(sizes) > 50_000 and calls < 20_000


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: splits.PurgedWalkForward(10, 0), ConfigError, "`test_sessions`"),
        (lambda: splits.PurgedWalkForward(10.5, 1), ConfigError, "`train_sessions`"),
        (lambda: splits.CombinatorialPurgedCV(5, 5), ConfigError, "below `n_groups`=5"),
        (lambda: splits.CombinatorialPurgedCV(5, 2, -1), ConfigError, "`embargo`"),
        (lambda: splits.CombinatorialPurgedCV(True, 1), ConfigError, "`n_groups`"),
        (lambda: splits.LeaveOneEventOut(pd.DataFrame({"event": []})), DataError, "the events lacks"),
        (lambda: list(splits.CombinatorialPurgedCV(5, 2).split(np.ones((9, 2)))), DataError, "`X` is a ndarray"),
        (lambda: list(splits.CombinatorialPurgedCV(5, 2).split(SAMPLES.drop(columns="label_known_at"))), DataError, "label_known_at"),
        (lambda: list(splits.CombinatorialPurgedCV(5, 2).split(SAMPLES.assign(session="2020"))), DataError, "make it a date"),
        (lambda: list(splits.CombinatorialPurgedCV(5, 2).split(SAMPLES.assign(label_known_at=pd.NaT))), DataError, "Row 0"),
        (lambda: list(splits.PurgedWalkForward(10**6, 1).split(SAMPLES)), DataError, "nothing is left to test"),
        (lambda: list(splits.CombinatorialPurgedCV(5, 2).split(SAMPLES.head(9))), DataError, "too few"),
    ],
)
def test_splitters_refuse_bad_input_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
