"""Explanations add up to the prediction, on the right axis, through the whole stack, and are measured on rows that the models have not seen."""

import re
import subprocess
import sys
from datetime import UTC, date, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from mltrader import attribution as A
from mltrader import explain, meta
from mltrader import store as db
from mltrader.boosting import XGBoostModel
from mltrader.config import BoostingSettings, ForestSettings, MetaSettings, Settings
from mltrader.core import CLASSES, PROBABILITIES, REGIMES, Clock, ConfigError, DataError
from mltrader.explain import SHAPAnalyzer, Stack
from mltrader.forest import RandomForestModel
from mltrader.meta import INPUTS, Blend, Said, fit_blend, pass_through, regime_codes, soften
from mltrader.splits import Interval, session_interval

NAMES = ["signal", "other", "noise_1", "noise_2"]
CLOCK = Clock(datetime(2022, 1, 1, tzinfo=UTC))


def world(n: int = 900, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 4)), columns=NAMES)
    y = np.digitize(X["signal"] + 0.4 * X["other"] + rng.normal(0, 0.3, n), [-0.6, 0.6])
    return X.mask(rng.random(X.shape) < 0.15).astype("float32"), y


X, Y = world()
FOREST = RandomForestModel(ForestSettings(n_estimators=25, max_samples=0.5, min_samples_leaf=8)).fit(X[:600], Y[:600])
BOOSTING = XGBoostModel(BoostingSettings(rounds=20, max_depth=3, learning_rate=0.2, colsample_bytree=1.0, max_samples=1.0)).fit(X[:600], Y[:600])
ROWS = X[600:].reset_index(drop=True)
REGIME = np.resize(["normal", "normal", "crash", "high_volatility", None], 300)


class Learner:
    """As much of a MetaLearner as an explanation reads."""

    def __init__(self, blend: Blend, temperature: float = 1.2) -> None:
        self.blend_, self.temperature_, self.settings = blend, temperature, None

    def predict_proba(self, frame: pd.DataFrame, regime=None) -> np.ndarray:
        code = np.full(len(frame), -1) if regime is None else regime_codes(regime)
        return soften(self.blend_.predict(Said.of(frame.to_numpy(), code)), self.temperature_)


def blends() -> dict[str, Blend]:
    rng = np.random.default_rng(1)
    told = np.c_[rng.normal(0.5, 0.4, (3, 4)), rng.normal(0, 0.2, (3, 5)), rng.normal(0, 0.1, 3)]
    plain = told.copy()
    plain[:, 4:-1] = 0
    absent = plain.copy()
    absent[2, -1] = -20.0                                                             # a class that the training rows lacked
    return {"logistic with regimes": Blend("logistic", told), "logistic": Blend("logistic", plain), "absent class": Blend("logistic", absent),
            "nnls with regimes": Blend("nnls", rng.dirichlet([1, 1], 6)), "nnls": Blend("nnls", np.tile([0.3, 0.7], (6, 1))),
            "nnls of one": Blend("nnls", np.tile([1.0, 0.0], (6, 1))), "forest": pass_through("forest"), "boosting": pass_through("boosting")}


BLENDS = blends()
STACK = Stack(FOREST, BOOSTING, Learner(BLENDS["logistic with regimes"]))


# --- additivity ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", BLENDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_contributions_add_up_to_the_final_log_odds(kind, temperature):
    model = Stack(FOREST, BOOSTING, Learner(BLENDS[kind], temperature))
    found = explain.explain_rows(model, ROWS, REGIME)
    said = np.log(model.predict_proba(ROWS, REGIME))
    added = found.base + found.values.sum(axis=1)
    np.testing.assert_allclose(added, said - said.mean(axis=1, keepdims=True), atol=1e-5, rtol=0)
    np.testing.assert_allclose(added[:, 2] - added[:, 1], said[:, 2] - said[:, 1], atol=1e-5, rtol=0)        # so against hold too
    np.testing.assert_allclose(found.values.sum(axis=2), 0, atol=1e-8)
    assert ("regime_term" in found.names) == ("regimes" in kind)
    points, proba, prior = A.in_points(found.values, found.base)
    np.testing.assert_allclose(points.sum(axis=1), proba - prior, atol=1e-9)
    np.testing.assert_allclose(proba, model.predict_proba(ROWS, REGIME), atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(BLENDS)), st.integers(0, 10**6), st.floats(0.25, 4.0), st.booleans())
def test_additivity_holds_for_extreme_parts(kind, seed, temperature, still):
    """Probabilities of zero, margins beyond the clip, features that move nothing."""
    rng = np.random.default_rng(seed)
    p0, m0 = rng.dirichlet([2, 2, 2]), rng.normal(size=3)
    p = np.where(rng.random((6, 3)) < 0.3, 0.0, rng.dirichlet([0.3] * 3, 6)) + [0.0, 1e-9, 0.0]
    p, m, code = p / p.sum(axis=1, keepdims=True), m0 + rng.normal(size=(6, 3)) * 8, rng.integers(-1, 5, 6)
    if still:
        p[:3], m[2:5] = p0, m0
    split = rng.dirichlet(np.ones(4), 6)[:, :, None]
    values = split * (p - p0)[:, None, :], split[:, ::-1] * (m - m0)[:, None, :]
    chain = A.propagate(BLENDS[kind], temperature, p, p0, m, m0, code)
    final = soften(BLENDS[kind].predict(Said.of(np.c_[p, np.exp(A.log_softmax(m))], code)), temperature)
    np.testing.assert_allclose(np.exp(A.log_softmax(chain.total)), final, atol=1e-5)
    np.testing.assert_allclose(chain.base + chain.carry(*values).sum(axis=1) + chain.regime, chain.total, atol=1e-6, rtol=1e-6)


def test_passing_through_changes_nothing_but_the_temperature():
    alone, through = explain.explain_rows(BOOSTING, ROWS), explain.explain_rows(Stack(FOREST, BOOSTING, Learner(BLENDS["boosting"], 2.0)), ROWS)
    np.testing.assert_allclose(through.values, A.centred(alone.values) / 2, atol=1e-6)


def test_engine_agrees_with_the_shap_library():
    shap = pytest.importorskip("shap")
    boosted = shap.TreeExplainer(BOOSTING.booster_).shap_values(ROWS.to_numpy()[:50])
    np.testing.assert_allclose(explain.explain_rows(BOOSTING, ROWS[:50]).values, boosted, atol=1e-5)
    grown = shap.TreeExplainer(FOREST.forest_).shap_values(ROWS.to_numpy()[:50], check_additivity=False)
    np.testing.assert_allclose(explain.explain_rows(FOREST, ROWS[:50]).values, grown, atol=1e-6)


def test_a_background_makes_it_interventional():
    known = ROWS.dropna()[:30].reset_index(drop=True)
    for model in (FOREST, BOOSTING, STACK):
        plain, other = explain.explain_rows(model, known), explain.explain_rows(model, known, background=X.dropna()[:40])
        assert (plain.kind, other.kind) == ("path-dependent", "interventional")
        np.testing.assert_allclose(other.base + other.values.sum(axis=1), plain.total, atol=1e-5)
        assert np.abs(plain.values - other.values).max() > 1e-3
    np.testing.assert_allclose(explain.explain_rows(FOREST, known, background=X.dropna()[:40]).base, FOREST.predict_proba(X.dropna()[:40]).mean(axis=0), atol=1e-6)


# --- planted faults --------------------------------------------------------------------------------------------------

def spoiled(monkeypatch, change):
    """All explainers give contributions with a fault in them."""
    real = explain.explainer_of

    def faulty(model, background=None):
        inner = real(model, background)
        return SimpleNamespace(values=lambda rows, threads=1: change(np.array(inner.values(rows, threads))), base=inner.base, unit=inner.unit, kind=inner.kind, engine=inner.engine)

    monkeypatch.setattr(explain, "explainer_of", faulty)


@pytest.mark.parametrize("change", [
    lambda v: v[:, :, ::-1],                                             # classes in another order
    lambda v: np.concatenate([np.zeros_like(v[:, :1]), v[:, 1:]], axis=1),          # a contribution lost
    lambda v: v * np.where(np.arange(len(v)) == 7, 1.001, 1.0)[:, None, None],      # one row slightly wrong
    lambda v: v * np.nan,
], ids=["class axis", "lost", "one row", "nan"])
@pytest.mark.parametrize("model", [FOREST, BOOSTING, STACK], ids=["forest", "boosting", "stack"])
def test_a_fault_in_the_contributions_is_caught(monkeypatch, change, model):
    spoiled(monkeypatch, change)
    with pytest.raises(DataError, match="miss the prediction"):
        explain.explain_rows(model, ROWS, REGIME)


def test_another_models_explanation_is_caught(monkeypatch):
    other = XGBoostModel(BoostingSettings(rounds=5, max_depth=2)).fit(X[:600], Y[:600])
    real = explain.explainer_of
    monkeypatch.setattr(explain, "explainer_of", lambda model, background=None: real(other))
    with pytest.raises(DataError, match="another model"):
        explain.explain_rows(BOOSTING, ROWS)


def test_a_model_that_is_fitted_again_is_explained_anew():
    model = XGBoostModel(BoostingSettings(rounds=5, max_depth=2)).fit(X[:600], Y[:600])
    first = explain.explain_rows(model, ROWS[:20])
    assert explain.explainer_of(model) is explain.explainer_of(model)
    model.fit(X[:600], 2 - Y[:600])
    assert not np.allclose(explain.explain_rows(model, ROWS[:20]).values, first.values)


def test_classes_on_another_axis_are_refused_not_guessed(monkeypatch):
    """Red team: a version of shap that puts the classes first."""
    shap = pytest.importorskip("shap")
    real = shap.TreeExplainer.shap_values
    monkeypatch.setattr(shap.TreeExplainer, "shap_values", lambda self, *args, **more: np.moveaxis(real(self, *args, **more), 2, 0))
    with pytest.raises(DataError, match="in that order"):
        explain.explain_rows(FOREST, ROWS[:5], background=X.dropna()[:10])


def test_inputs_that_do_not_fit_are_one_clear_error():
    for model in (FOREST, STACK):
        with pytest.raises(DataError, match="'noise_2' instead of 'signal'"):
            explain.rows_of(model, ROWS[NAMES[::-1]], NAMES[::-1])
        with pytest.raises(DataError, match="3 features, the model was fitted on 4"):
            explain.rows_of(model, ROWS[NAMES[:3]], NAMES[:3])
    words = RandomForestClassifier(5, random_state=0).fit(X[:600].fillna(0), np.array(CLASSES)[Y[:600]])      # buy, hold, sell: the order of the alphabet
    with pytest.raises(DataError, match="must predict 0, 1, 2"):
        SHAPAnalyzer().explain_prediction(words, ROWS.iloc[0].fillna(0), NAMES)
    with pytest.raises(DataError, match="hold text"):
        SHAPAnalyzer().explain_prediction(FOREST, ["a", "b", "c", "d"], NAMES)
    with pytest.raises(DataError, match="has no rows"):
        SHAPAnalyzer().explain_prediction(FOREST, ROWS.iloc[0], NAMES, ROWS[:0])
    with pytest.raises(DataError, match="2 entries for 300 rows"):
        explain.explain_rows(STACK, ROWS, ["normal"] * 2)
    with pytest.raises(DataError, match="`signal` is infinite"):
        explain.rows_of(FOREST, ROWS.assign(signal=np.inf), NAMES)
    with pytest.raises(DataError, match="other features"):
        Stack(FOREST, XGBoostModel(BoostingSettings(rounds=2)).fit(X[NAMES[:2]][:600], Y[:600]), None)


# --- shares and intervals --------------------------------------------------------------------------------------------

def swinging(n: int, seed: int, true=(0.5, 0.3, 0.2), names="abc", lean: float = 0.0) -> pd.DataFrame:
    """Sums of a world in which |phi| swings slowly around known shares, and each year's model leans its own way."""
    rng, swing = np.random.default_rng(seed), np.zeros((n, len(true)))
    for t in range(1, n):
        swing[t] = 0.9 * swing[t - 1] + rng.normal(0, 0.1, len(true))
    swing += rng.normal(0, lean, (n // 252 + 1, len(true))).repeat(252, axis=0)[:n]
    frame = pd.DataFrame(10 * np.array(true) * np.exp(swing), columns=list(names))
    return pd.concat([pd.DataFrame({"session": pd.bdate_range("2010-01-01", periods=n), "regime": "normal", "n_rows": 10}), frame], axis=1)


def test_intervals_cover_the_true_shares():
    assert coverage() >= 0.8                                                           # 0.95 promised; the blocks are few


def coverage(seeds: int = 20) -> float:
    """Share of the true shares that their intervals hold, where the models of 12 years lean their own ways."""
    found = (A.importance_table(swinging(3024, seed, lean=0.2), "x", 14, 100, seed=seed).query("regime == 'all'").set_index("feature").loc[list("abc")] for seed in range(seeds))
    return float(np.mean([(one["importance_low"] < [0.5, 0.3, 0.2]) & (one["importance_high"] > [0.5, 0.3, 0.2]) for one in found]))


def test_an_interval_of_blocks_within_a_fold_would_not_cover(monkeypatch):
    """Red team: with blocks shorter than what one model explains the interval is far too narrow, and the test above would see it."""
    monkeypatch.setattr(A, "FOLD_SESSIONS", 1)
    assert coverage() < 0.7


def test_block_weights_are_the_blocks_of_the_splits():
    """Independent check: the mean of a column, resampled by weights, has the interval that `splits.session_interval` gives."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"session": pd.bdate_range("2015-01-01", periods=500), "value": rng.normal(size=500).cumsum()})
    found = session_interval(frame, "value", 14, 300, 0.05, 7)
    means = A.block_weights(500, 28, 300, 7) @ frame["value"].to_numpy() / 500
    low, high = found.estimate + (np.quantile(means, [0.025, 0.975]) - found.estimate) * A.few_blocks_factor(500 // 28, 0.05)
    assert isinstance(found, Interval)
    np.testing.assert_allclose([low, high], [found.low, found.high], rtol=1e-6)


def test_shares_are_those_of_all_rows():
    found = explain.explain_rows(BOOSTING, ROWS)
    days, regimes = np.repeat(np.arange(100), 3), np.array(["normal"] * 230 + ["crash"] * 51 + ["recovery"] * 19)
    table = A.importance_table(A.session_sums(found.values, NAMES, days, regimes), "boosting", 14, 30)
    np.testing.assert_allclose(table.groupby("regime")["importance"].sum(), 1)
    assert set(table["regime"]) == {"all", "normal", "crash"}                          # 19 rows claim nothing
    direct = np.abs(found.values).mean(axis=(0, 2))
    np.testing.assert_allclose(table.query("regime == 'all'").set_index("feature")["mean_abs_shap"][NAMES], direct, rtol=1e-5)
    crash = np.abs(found.values[230:281]).mean(axis=(0, 2))
    np.testing.assert_allclose(table.query("regime == 'crash'").set_index("feature")["importance"][NAMES], crash / crash.sum(), rtol=1e-5)
    for _, part in table.groupby("regime"):
        assert part["rank"].tolist() == [1, 2, 3, 4] and part["importance"].is_monotonic_decreasing
    with pytest.raises(DataError, match="constant"):
        A.importance_table(A.session_sums(np.zeros((30, 4, 3)), NAMES, range(30), ["normal"] * 30), "boosting", 14)
    with pytest.raises(DataError, match="do not fit"):
        A.session_sums(found.values.swapaxes(1, 2), NAMES, days, regimes)


# --- drift, pruning, words -------------------------------------------------------------------------------------------

def test_distance_of_explanations():
    before = swinging(3000, 1)
    same = A.attribution_drift(before, before, 14, 60)
    assert (same[["distance", "low", "high"]].to_numpy() == 0).all()
    moved = A.attribution_drift(swinging(3000, 2, (0.2, 0.3, 0.5)), before, 14, 60).set_index("regime").loc["all"]
    assert moved["low"] < 0.3 < moved["high"] and moved["low"] > 0.15
    shorter = A.attribution_drift(before, before[:1500].assign(b=lambda frame: frame["b"]), 14, 60).set_index("regime").loc["all"]
    assert (shorter[["distance", "high"]] == 0).all() and shorter["n_sessions"] == 1500    # what only one of them explains is no difference
    assert A.attribution_drift(before[1500:], before[:1500], 14, 60).empty             # nothing in common: nothing is said
    crash = before.assign(regime=np.where(np.arange(3000) % 250 < 20, "crash", "normal"))
    once = crash.assign(regime=np.where(np.arange(3000) < 20, "crash", "normal"))      # the champion saw one crash only
    assert np.isnan(A.attribution_drift(crash, once, 14, 60).set_index("regime").at["crash", "low"])
    few = A.attribution_drift(before[:60], before[:60].assign(a=1.0), 14, 60)
    assert np.isfinite(few["distance"]).all() and few["low"].isna().all()              # one block: no interval
    assert A.attribution_drift(None, before, 14).empty and list(A.attribution_drift(before, None, 14)) == list(A.DRIFT)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.001, 1), min_size=3, max_size=60), st.integers(1, 20), st.integers(20, 40))
def test_the_smallest_set(raw, least, most):
    shares = pd.DataFrame({"component": "stack", "regime": "all", "feature": [f"f{i}" for i in range(len(raw))], "importance": np.array(raw) / sum(raw)})
    found = A.pruning(shares, least=least, most=most)
    kept = int(found["keep"].sum())
    assert found["importance"].is_monotonic_decreasing and kept >= min(least, len(raw)) and kept <= most
    if least < kept < most:
        assert found["cumulative"][kept - 1] >= 0.92 - 1e-9 and found["cumulative"][kept - 2] < 0.92


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=9), st.floats(0.2, 0.5))
def test_the_printed_numbers_add_up(parts, prior):
    points = np.array(parts)
    text = A.sentence("buy", prior + points.sum(), prior, points, [f"x_{i}" for i in range(len(points))], None, {})
    said = [float(word) for word in text.replace("(", " ").replace(")", " ").replace(",", " ").replace(":", " ").split() if word.lstrip("+-").replace(".", "", 1).isdigit() and "." in word]
    proba, printed, *shown = said
    assert printed + sum(shown) == pytest.approx(proba, abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=9), st.floats(0.2, 0.5), st.floats(-0.15, 0.15))
def test_what_is_the_same_for_everybody_is_in_the_start(parts, prior, weights):
    """However large the part of the weights is, it does not lead; the start with it, and the parts, add up as printed."""
    points = np.array([*parts, weights])
    text = A.sentence("buy", prior + points.sum(), prior, points, [*(f"x_{i}" for i in range(len(parts))), A.WEIGHTS_TERM], None, {})
    head, why = text.split("): ")
    begin = float(re.findall(r"-?\d\.\d\d", head)[-1])
    shown = [float(word) for word in re.findall(r"[+-]\d\.\d\d", why)]
    assert "weights" not in why and ("training rows' weights" in head) == (round(prior + weights, 2) != round(prior, 2))
    assert begin + sum(shown) == pytest.approx(float(head.split()[1]), abs=1e-9)


# --- the task --------------------------------------------------------------------------------------------------------

def inputs(stacked: bool = False) -> dict:
    """Two folds, of which the stack speaks in the second: the forest passed through, or a blend of its own that knows regimes."""
    samples = X.assign(session=np.repeat(pd.bdate_range("2019-01-01", periods=450), 2), symbol=["A", "B"] * 450, label=Y, regime=np.resize(["normal", "crash", "normal", "recovery"], 900))
    samples["label_known_at"] = samples["session"] + pd.Timedelta(days=1)
    held = np.arange(600, 900)
    fold = np.where(held < 700, 2020, 2021)
    said = np.c_[FOREST.predict_proba(ROWS), BOOSTING.predict_proba(ROWS)]
    frames = {name: pd.DataFrame({"row": held, "fold": fold, **dict(zip(PROBABILITIES, said[:, at:at + 3].T, strict=True))}) for name, at in (("forest", 0), ("boosting", 3))}
    final = Learner(pass_through("forest"), 1.1).predict_proba(pd.DataFrame(said, columns=list(INPUTS)))
    ask = MetaSettings(context="regime") if stacked else None
    if stacked:
        code, known = regime_codes(samples["regime"])[held], samples["label_known_at"].to_numpy()[held] <= samples["session"].to_numpy()[699]
        final = soften(fit_blend(Said.of(said[known], code[known]), Y[held][known], ask).predict(Said.of(said, code)), 1.1)
    meta = {"evaluation": pd.DataFrame({"row": held, "fold": fold, **dict(zip(PROBABILITIES, final.T, strict=True))})[100:],
            "summary": {"chosen": {"2021": "stack" if stacked else "forest"}, "temperatures": {"2021": 1.1}}, "model": STACK.meta}
    meta["model"] = SimpleNamespace(blend_=STACK.meta.blend_, temperature_=STACK.meta.temperature_, predict_proba=STACK.meta.predict_proba, settings=ask)
    last = samples.tail(2).reset_index(drop=True)
    meta["predictions"] = last[["session", "symbol", "regime"]].assign(**dict(zip(PROBABILITIES, STACK.predict_proba(last[NAMES], last["regime"]).T, strict=True)))
    folds = pd.DataFrame({"fold": [2020, 2021], "cutoff": samples["session"].iloc[[599, 699]].to_numpy()})
    plan = pd.DataFrame({"fold": [2020] * 500 + [2021] * 500 + [-1] * 900, "row": [*range(500), *range(500), *range(900)]})
    bases = {name: {"out_of_fold": frames[name], "model": model, "fold_models": {"2020": name, "2021": name}} for name, model in (("forest", FOREST), ("boosting", BOOSTING))}
    return {"memory": {"samples": samples, "folds": folds, "plan": plan}, "meta": meta, **bases, "fold_cache": {"forest": FOREST, "boosting": BOOSTING},
            "features": {"feature_set": {"version": "v1", "definitions": [{"name": n, "group": n[:5]} for n in NAMES[:3]]}, "latest": last}}


QUICK, DAY = Settings(explain={"bootstrap": 30, "interaction_rows": 10}), pd.Timestamp("2020-12-31")


@pytest.fixture(scope="module")
def made():
    return explain.run(inputs(), QUICK, DAY)


def test_every_out_of_sample_row_is_explained(made):
    facts = made.documents["summary"]["components"]
    assert {name: one["rows"] for name, one in facts.items()} == {"forest": 300, "boosting": 300, "stack": 200}
    assert max(one["largest_gap"] for one in facts.values()) < 1e-5
    whole = explain.explain_rows(Stack(FOREST, BOOSTING, Learner(pass_through("forest"), 1.1)), ROWS[100:])
    direct = np.abs(whole.values).mean(axis=(0, 2))
    found = made.frames["importance"].query("component == 'stack' and regime == 'all'").set_index("feature")["importance"]
    np.testing.assert_allclose(found[NAMES], direct / direct.sum(), rtol=1e-4)
    assert set(facts["stack"]["no_claim"]) == {"low_volatility", "high_volatility"}


def test_the_run_is_deterministic_and_the_cache_gives_the_same(made):
    given_inputs = inputs()
    first, size = explain.run(given_inputs, QUICK, DAY), len(given_inputs["fold_cache"])
    again = explain.run(given_inputs, QUICK, DAY)
    assert len(given_inputs["fold_cache"]) == size == 4                                # two models, two folds' sums
    for name, frame in made.frames.items():
        pd.testing.assert_frame_equal(frame, first.frames[name])
        pd.testing.assert_frame_equal(frame, again.frames[name])
    rows = pd.DataFrame(made.rows["shap_analysis"])
    assert not rows.duplicated(["component", "regime", "feature"]).any() and rows["rank"].max() <= 40
    assert {"unit", "kind", "engine", "feature_set"} <= set(rows) and set(rows) <= set(db.shap_analysis.c.keys())


def test_a_blend_that_knows_regimes_has_a_part_for_them(monkeypatch):
    monkeypatch.setattr(meta, "CONTEXT_ROWS", 10)
    found = explain.run(inputs(stacked=True), QUICK, DAY)
    assert found.documents["summary"]["components"]["stack"]["largest_gap"] < 1e-5
    part = found.frames["importance"].query("component == 'stack' and regime == 'all'")
    assert set(part["feature"]) == {*NAMES, A.REGIME_TERM}
    assert A.REGIME_TERM not in set(found.frames["importance"].query("component != 'stack'")["feature"]) | set(found.frames["pruning"]["feature"]) | set(found.frames["quantiles"])


@pytest.mark.parametrize("where", ["boosting", "meta"])
def test_a_warm_cache_does_not_hide_a_changed_prediction(where):
    given_inputs = inputs()
    explain.run(given_inputs, QUICK, DAY)
    frame = given_inputs[where]["out_of_fold" if where == "boosting" else "evaluation"]
    frame.loc[frame.index[-1], ["proba_sell", "proba_buy"]] = frame.loc[frame.index[-1], ["proba_buy", "proba_sell"]].to_numpy()
    with pytest.raises(DataError, match="miss the prediction"):
        explain.run(given_inputs, QUICK, DAY)


def test_a_feature_may_be_called_gap_but_not_what_explanations_use():
    for name, taken in (("gap", False), ("n_rows", True)):
        forest, boosting = (type(model)(model.settings).fit(X[:600].set_axis([name, *NAMES[1:]], axis=1), Y[:600]) for model in (FOREST, BOOSTING))
        given_inputs = inputs()
        given_inputs["memory"]["samples"] = given_inputs["memory"]["samples"].rename(columns={"signal": name})
        given_inputs["features"]["latest"] = given_inputs["features"]["latest"].rename(columns={"signal": name})
        given_inputs["fold_cache"] = {"forest": forest, "boosting": boosting}
        given_inputs["forest"]["model"], given_inputs["boosting"]["model"] = forest, boosting
        if taken:
            with pytest.raises(DataError, match="`n_rows`"):
                explain.run(given_inputs, QUICK, DAY)
        else:
            assert "gap" in set(explain.run(given_inputs, QUICK, DAY).frames["importance"]["feature"])


def test_percentiles_do_not_depend_on_the_order_of_symbols():
    """Red team: rows of 20 symbols session by session; every fifth row would be four symbols only."""
    level = pd.DataFrame({"x": np.tile(np.arange(20), 5000).astype("float32")})
    table = A.quantile_table(level)
    assert A.percentiles(np.array([[10.0]]), table, ["x"])[0, 0] == pytest.approx(52, abs=3) and table["x"].iloc[-1] == 19


def test_rounding_of_boosting_is_no_reason_to_stop():
    steep = XGBoostModel(BoostingSettings(rounds=300, max_depth=6, learning_rate=0.1, min_child_weight=1.0, colsample_bytree=1.0, max_samples=1.0)).fit(X[:600], Y[:600])
    found = explain.explain_rows(Stack(FOREST, steep, Learner(BLENDS["boosting"], 0.25)), ROWS)
    np.testing.assert_allclose(A.centred(np.log(found.proba)), found.base + found.values.sum(axis=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("p", "p0"), [(1e-6, 1.09e-6), (2e-8, 8e-8), (1e-4, 1.0009e-4)])
def test_small_probabilities_that_moved_have_moved(p, p0):
    for least in (1e-12, 1e-4):
        steep = A.log_slopes(np.array([p]), np.array([p0]), least)
        assert steep[0] * (p - p0) == pytest.approx(np.log(max(p, least)) - np.log(max(p0, least)), abs=1e-9)


def test_outputs_are_the_ones_promised(made):
    columns = {"importance": list(A.IMPORTANCE), "interactions": ["component", "feature", "other", "strength", "share"], "history": list(explain.HISTORY),
               "latest": ["session", "symbol", "class", "feature", "words", "value", "percentile", "contribution"], "drift": list(A.DRIFT)}
    for name, wanted in columns.items():
        assert list(made.frames[name]) == wanted, name
    added = made.frames["latest"].groupby(["symbol", "class"])["contribution"].sum().unstack()[list(CLASSES)]
    prior = np.bincount(Y) / len(Y)                                                    # shares of the learned rows; the weights' part leads from there to the base
    assert (made.frames["latest"].groupby("symbol")["feature"].agg(set).map(lambda found: A.WEIGHTS_TERM in found)).all()
    for _, part in made.frames["latest"].groupby(["symbol", "class"], sort=False):     # they are the same for everybody: named after what moved this one
        sizes = part["contribution"].abs().tolist()
        assert part["feature"].tolist()[-2:] == [A.WEIGHTS_TERM, "other"] and sizes[:-2] == sorted(sizes[:-2], reverse=True)
    assert not made.frames["texts"]["text"].str.contains("_term|_weights").any()       # a reader is told in words
    said = inputs()["meta"]["predictions"].set_index("symbol")[list(PROBABILITIES)]
    np.testing.assert_allclose(added, said - prior, atol=1e-6)
    np.testing.assert_allclose(made.frames["groups"].groupby(["component", "regime"])["importance"].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(made.frames["classes"].set_index("component")[list(CLASSES)].sum(axis=1).groupby("component").sum(), 1, rtol=1e-5)
    assert explain.history_figure(made) is None and len(explain.figure(made).axes) == 2 and explain.call_figure(made).axes
    assert "adds up" in explain.finding(made) or "add up within" in explain.finding(made)
    assert len(explain.table(made)) and len(explain.stability(made)) and len(explain.calls(made)) == 2 and explain.distances(made).empty


@pytest.mark.parametrize("plant", ["plan", "cutoff"])
def test_a_row_that_may_have_been_learned_is_refused(plant):
    planted = inputs()
    if plant == "plan":
        planted["memory"]["plan"].loc[0, "row"] = 650
    else:
        planted["memory"]["folds"].loc[1, "cutoff"] = planted["memory"]["samples"]["session"].iloc[750]
    with pytest.raises(DataError, match="may have been learned"):
        explain.run(planted, QUICK, DAY)


@pytest.mark.parametrize(("where", "words"), [("evaluation", "fold 2021, stack"), ("out_of_fold", "fold 2020, boosting"), ("predictions", "the last session")])
def test_what_is_explained_is_what_was_predicted(where, words):
    """Red team: one stored probability differs from what the models say."""
    planted = inputs()
    frame = planted["boosting"]["out_of_fold"] if where == "out_of_fold" else planted["meta"][where]
    row = frame.index[0]
    frame.loc[row, ["proba_sell", "proba_hold"]] = frame.loc[row, ["proba_hold", "proba_sell"]].to_numpy()
    with pytest.raises(DataError, match=f"{words}.*miss the prediction"):
        explain.run(planted, QUICK, DAY)


def test_distance_from_the_champion_and_history_over_two_versions(made):
    earlier = [{**{name: row[name] for name in ("component", "regime", "feature", "importance", "rank")}, "model_version": "b" * 64, "name": "production_v1", "as_of": date(2020, 11, 30)}
               for row in made.frames["history"].to_dict("records")]
    champion = {"name": "production_v1", "sessions": made.frames["sessions"]}
    output = explain.run({**inputs(), "explained": {"history": earlier, "champion": champion}}, QUICK, DAY)
    assert (output.frames["drift"]["distance"] == 0).all() and output.metrics["drift"] == 0
    assert output.frames["history"]["name"].unique().tolist() == ["production_v1", "this run"]
    assert explain.history_figure(output) is not None and "production_v1" in explain.finding(output)


# --- by hand ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def store(tmp_path):
    store = db.Store(f"sqlite:///{tmp_path / 'store.db'}")
    with store.write() as conn:
        for number, (run_id, version, share) in enumerate((("run_1", "a" * 64, 0.5), ("run_2", "b" * 64, 0.7)), 1):
            db.start_run(conn, run_id, "cycle", "test", number, {}, "s", CLOCK)
            db.set_as_of(conn, run_id, date(2021, number, 1))
            db.add_version(conn, run_id, version, "r", date(2021, number, 1), "f", {}, CLOCK)
            rows = [{"component": c, "regime": r, "feature": f, "importance": s, "rank": k, "sample_count": 100, "model_version": version}
                    for c in ("boosting", "stack") for r in ("all", "crash") for k, (f, s) in enumerate((("signal", share), ("other", 1 - share)), 1)]
            db.write_rows(conn, run_id, {"shap_analysis": rows})
        trial = db.record_trial(conn, "run_1", "r", date(2021, 1, 1), "d", 1.0)
        gate = db.add_gate_row(conn, "run_1", {"model_version": "a" * 64, "trial_id": trial, "trials": 1, "kind": "first", "verdict": "PROMOTE", "as_of": date(2021, 1, 1),
                                               "promoted_to_production": True}, [], CLOCK)
        db.move_alias(conn, "run_1", "champion", "a" * 64, None, 1, date(2021, 1, 1), CLOCK, gate_id=gate)
    return store


def test_usage_example_4_as_written(store, monkeypatch, capsys):
    monkeypatch.setenv("MLTRADER_DATABASE_URL", str(store.url))
    code = """
from mltrader.explain import SHAPAnalyzer
analyzer = SHAPAnalyzer()
for feature, importance, rank in analyzer.get_top_features_by_regime(model_version="production_v1", regime="crash", limit=10):
    print(f"{rank}. {feature}: {importance:.6f}")
"""
    exec(compile(code, "example 4", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == "1. signal: 0.500000\n2. other: 0.500000\n"


def test_versions_by_name_alias_and_digest(store):
    analyzer = SHAPAnalyzer(store)
    for name in ("production_v1", "champion", "a" * 64, "aaaaaa"):
        assert analyzer.get_top_features_by_regime(name, "crash", 1) == [("signal", 0.5, 1)]
    with pytest.raises(ConfigError, match="known are: bbbbbbbbbbbb, production_v1"):
        analyzer.get_top_features_by_regime("production_v7", "crash", 10)
    with pytest.raises(ConfigError, match="there are all, crash"):
        analyzer.get_top_features_by_regime("production_v1", "recovery", 10)


def test_history_over_two_versions(store):
    found = SHAPAnalyzer(store).get_importance_history("signal", "crash").query("component == 'stack'")
    assert found[["name", "importance", "rank"]].to_numpy().tolist() == [["production_v1", 0.5, 1], ["bbbbbbbbbbbb", 0.7, 1]]
    with pytest.raises(ConfigError, match="there are other, signal"):
        SHAPAnalyzer(store).get_importance_history("nothing")
    with store.read() as conn:
        assert {row["name"] for row in db.importance_history(conn, date(2021, 2, 1))} == {"production_v1"}   # only what earlier runs know


@pytest.mark.parametrize("model", [FOREST, BOOSTING, STACK], ids=["forest", "boosting", "stack"])
def test_by_hand_for_three_classes(store, model):
    analyzer = SHAPAnalyzer(store, Settings())
    one = analyzer.explain_prediction(model, ROWS.iloc[0], NAMES)
    assert one["shap_values"].shape[1] == 3 and one["base_value"].shape == (3,) and one["prediction"] in CLASSES
    assert one["text"].startswith(one["prediction"].upper()) and len(one["positive"]) <= 5 and all(size < 0 for _, size in one["negative"])
    before = {table: count for table, count in db_digest(store, "run_1").items()}
    regimes = np.resize(np.array(["normal", "crash", "normal"], dtype=object), 300)
    regimes[:5] = "recovery"
    found = analyzer.analyze_by_regime(model, ROWS, Y[600:], regimes, NAMES, "production_v1")
    assert found["recovery"]["note"] == "no claim: 5 rows, 20 needed" and found["crash"]["sample_count"] == (regimes == "crash").sum()
    inside = regimes == "crash"
    said = model.predict_proba(ROWS[inside], regimes[inside]) if model is STACK else model.predict_proba(ROWS[inside])
    assert found["crash"]["accuracy"] == pytest.approx((said.argmax(axis=1) == Y[600:][inside]).mean())
    assert list(found["normal"]["importance"])[0] == "signal"
    again = analyzer.get_feature_importance(model, ROWS, NAMES, "production_v1", "crash")
    with store.read() as conn:
        mine = [dict(row) for row in conn.execute(db.shap_analysis.select()).mappings() if row["run_id"].startswith("explain_")]
        assert not any(row["run_id"].startswith("explain_") for row in db.importance_rows(conn, "a" * 64) if row["component"] == "stack" and row["regime"] == "crash")  # cycles come first
        hand = [row for row in db.runs(conn) if row["id"].startswith("explain_")]
    assert len(hand) == 1 and (hand[0]["kind"], hand[0]["status"]) == ("predict", "success")
    crash = {row["feature"]: row["importance"] for row in mine if row["regime"] == "crash"}
    assert crash == pytest.approx(again)                                               # replaced, not added
    assert db_digest(store, "run_1") == before                                         # the cycle's own rows are as they were: it verifies
    wide = analyzer.compare_regime_features("production_v1", 2)
    assert set(wide.columns) >= {"all", "crash"} and "signal" in wide.index
    assert "## Crash" in analyzer.generate_report("production_v1")
    pairs = analyzer.get_interactions(model, ROWS[:10], NAMES, "production_v1", limit=3)
    assert len(pairs) == 3 and pairs["strength"].is_monotonic_decreasing


def db_digest(store, run_id: str) -> dict[str, str]:
    with store.read() as conn:
        return db.rows_digest(conn, run_id)


def test_what_is_wrong_by_hand_is_said(store):
    analyzer = SHAPAnalyzer(store, Settings())
    with pytest.raises(DataError, match="19 rows of regime crash; below 20"):
        analyzer.get_feature_importance(FOREST, ROWS[:19], NAMES, "production_v1", "crash")
    with pytest.raises(ConfigError, match="There is no regime 'calm'"):
        analyzer.get_feature_importance(FOREST, ROWS, NAMES, "production_v1", "calm")
    with pytest.raises(ConfigError, match="no model version"):
        analyzer.get_feature_importance(FOREST, ROWS, NAMES, "production_v9")
    with pytest.raises(DataError, match="y_test 3"):
        analyzer.analyze_by_regime(FOREST, ROWS, Y[:3], ["crash"] * 300, NAMES, "production_v1")
    with pytest.raises(DataError, match="'boom'"):
        analyzer.analyze_by_regime(FOREST, ROWS, Y[600:], ["boom"] * 300, NAMES, "production_v1")
    with pytest.raises(DataError, match="2 rows; explain_prediction takes one"):
        analyzer.explain_prediction(FOREST, ROWS[:2], NAMES)


def test_heavy_libraries_are_not_imported_before_they_are_needed():
    code = "import sys, mltrader.explain; print([m for m in ('shap', 'xgboost', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_regimes_are_in_their_order(made):
    order = made.frames["importance"]["regime"].drop_duplicates().tolist()
    assert order == ["all", *[name for name in REGIMES if name in order]]
