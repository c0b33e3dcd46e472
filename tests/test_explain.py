"""Explanations add up to the prediction, on the right axis, on rows the model has not seen."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from mltrader import explain
from mltrader.config import BoostingSettings, ForestSettings, Settings
from mltrader.core import CLASSES, REGIMES, DataError

NAMES = ["signal", "other", "noise_1", "noise_2"]


class Small:
    """A model as the pipeline's: it knows its features and holds the library's own object."""

    def __init__(self, inner, X, y):
        self.model_, self.feature_names_in_ = inner.fit(np.array(X), y), np.array(X.columns)

    def predict_proba(self, X):
        return self.model_.predict_proba(np.array(X))


def world(n: int = 900, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 4)), columns=NAMES)
    y = np.digitize(X["signal"] + 0.4 * X["other"] + rng.normal(0, 0.3, n), [-0.6, 0.6])
    return X.mask(rng.random(X.shape) < 0.15).astype("float32"), y


X, Y = world()
SEEN, NEW = slice(0, 600), slice(600, 900)
FOREST = Small(RandomForestClassifier(25, min_samples_leaf=8, random_state=0), X[SEEN], Y[SEEN])
BOOSTING = Small(xgboost.XGBClassifier(n_estimators=20, max_depth=3, n_jobs=1), X[SEEN], Y[SEEN])
ROWS = X[NEW]


def test_rows_hold_missing_values():
    assert ROWS.isna().any(axis=1).mean() > 0.3


def test_forest_adds_up_to_the_probability():
    values, base = explain.shap_forest(FOREST, ROWS)
    assert values.shape == (300, 4, 3) and base.shape == (3,)
    np.testing.assert_allclose(base + values.sum(axis=1), FOREST.predict_proba(ROWS), atol=1e-10)


def test_boosting_adds_up_to_the_margin_and_the_probability():
    values, base = explain.shap_boosting(BOOSTING, ROWS)
    margin = BOOSTING.model_.predict(np.array(ROWS), output_margin=True)
    np.testing.assert_allclose(base + values.sum(axis=1), margin, atol=1e-5)
    gaps = explain.additivity(BOOSTING, ROWS, values, base, "boosting")
    assert gaps["margin"] < 1e-5 and gaps["probability"] < 1e-5


def test_boosting_equals_the_shap_library():
    shap = pytest.importorskip("shap")
    values, base = explain.shap_boosting(BOOSTING, ROWS)
    oracle = shap.TreeExplainer(BOOSTING.model_)
    np.testing.assert_allclose(values, oracle.shap_values(np.array(ROWS)), atol=1e-5)
    np.testing.assert_allclose(base, oracle.expected_value, atol=1e-5)


def test_forest_equals_the_shap_library_class_by_class():
    shap = pytest.importorskip("shap")
    values, _ = explain.shap_forest(FOREST, ROWS)
    oracle = shap.TreeExplainer(FOREST.model_)(np.array(ROWS), check_additivity=False)
    for k in range(3):
        np.testing.assert_allclose(values[:, :, k], oracle[:, :, k].values, atol=1e-12)


def test_shapley_values_by_enumeration():
    """One tree with two features, all coalitions by hand: path-dependent expectations over the training rows."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.random((200, 2)), columns=["a", "b"])
    y = np.where(frame["a"] < 0.5, np.where(frame["b"] < 0.3, 0, 1), 2)
    forest = RandomForestClassifier(1, bootstrap=False, max_features=None, max_depth=2, random_state=0)
    model = Small(forest, frame, y)
    tree = model.model_.estimators_[0].tree_

    def expectation(x, known, node=0):
        if tree.children_left[node] < 0:
            return tree.value[node][0]
        left, right, j = tree.children_left[node], tree.children_right[node], tree.feature[node]
        if j in known:
            return expectation(x, known, left if x[j] <= tree.threshold[node] else right)
        share = tree.n_node_samples[left] / tree.n_node_samples[node]
        return share * expectation(x, known, left) + (1 - share) * expectation(x, known, right)

    values, base = explain.shap_forest(model, frame[:20])
    for i, x in enumerate(frame[:20].to_numpy(dtype=np.float32)):
        none, a, b, both = (expectation(x, known) for known in (set(), {0}, {1}, {0, 1}))
        np.testing.assert_allclose(values[i, 0], ((a - none) + (both - b)) / 2, atol=1e-9)
        np.testing.assert_allclose(values[i, 1], ((b - none) + (both - a)) / 2, atol=1e-9)
        np.testing.assert_allclose(base, none, atol=1e-9)


# --- axes ------------------------------------------------------------------------------------------------------------

def test_class_axis_of_each_layout():
    array = np.random.default_rng(0).normal(size=(7, 4, 3))
    np.testing.assert_array_equal(explain.class_axis_last(array, 4), array)
    np.testing.assert_array_equal(explain.class_axis_last([array[:, :, k] for k in range(3)], 4), array)


@pytest.mark.parametrize("shape", [(7, 3, 4), (7, 4), (7, 4, 2), (4, 7, 3)])
def test_other_layouts_are_refused_not_guessed(shape):
    with pytest.raises(DataError, match="expected"):
        explain.class_axis_last(np.zeros(shape), 4)


def test_swapped_axes_are_caught_even_with_three_features():
    """With as many features as classes a shape cannot tell the axes apart: the sum does."""
    model = Small(RandomForestClassifier(10, min_samples_leaf=8, random_state=0), X[NAMES[:3]][SEEN], Y[SEEN])
    values, base = explain.shap_forest(model, ROWS[NAMES[:3]])
    with pytest.raises(DataError, match="miss the prediction"):
        explain.additivity(model, ROWS[NAMES[:3]], values.swapaxes(1, 2), base, "forest")


def test_another_models_explanation_is_caught():
    values, base = explain.shap_boosting(BOOSTING, ROWS)
    other = Small(xgboost.XGBClassifier(n_estimators=5, max_depth=2, n_jobs=1), X[SEEN], Y[SEEN])
    with pytest.raises(DataError, match="another model"):
        explain.additivity(other, ROWS, values, base, "boosting")
    with pytest.raises(DataError):
        explain.additivity(BOOSTING, ROWS, values * np.nan, base, "boosting")


def test_columns_in_another_order_are_refused():
    for function, model in ((explain.shap_forest, FOREST), (explain.shap_boosting, BOOSTING)):
        with pytest.raises(DataError, match="'noise_2' instead of 'signal'"):
            function(model, ROWS[NAMES[::-1]])
        with pytest.raises(DataError, match="3 features, the model was fitted on 4"):
            function(model, ROWS[NAMES[:3]])


# --- sampling and importance -----------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(REGIMES), min_size=1, max_size=300), st.integers(1, 200), st.integers(0, 99))
def test_sample_stands_for_all_rows(regimes, limit, seed):
    drawn = explain.sample_rows(pd.Series(regimes), limit, seed)
    counts = pd.Series(regimes).value_counts()
    assert len(drawn) == min(limit, len(regimes))
    assert drawn["position"].is_unique and drawn["position"].is_monotonic_increasing
    assert [regimes[i] for i in drawn["position"]] == drawn["regime"].tolist()
    stands_for = drawn.groupby("regime")["weight"].sum()
    np.testing.assert_allclose(stands_for, counts[stands_for.index])
    taken = drawn["regime"].value_counts().reindex(counts.index, fill_value=0)
    assert (taken[taken < counts] >= taken.max() - 1).all()            # no regime is short while another is ample


def table(values: np.ndarray, regimes: list[str]):
    return explain.importance_table(values, NAMES, explain.sample_rows(pd.Series(regimes), len(regimes), 0), "boosting")


def test_shares_sum_to_one_and_few_rows_claim_nothing():
    values, _ = explain.shap_boosting(BOOSTING, ROWS)
    importance, classes = table(values, ["normal"] * 230 + ["crash"] * 51 + ["recovery"] * 19)
    np.testing.assert_allclose(importance.groupby("regime")["importance"].sum(), 1)
    assert set(importance["regime"]) == {"all", "normal", "crash"}
    assert classes[list(CLASSES)].to_numpy().sum() == pytest.approx(1)
    top = importance[importance["rank"] == 1]
    assert (top["feature"] == "signal").all()
    for _, part in importance.groupby("regime"):
        assert part["rank"].tolist() == [1, 2, 3, 4] and part["importance"].is_monotonic_decreasing
    direct = np.abs(values).mean(axis=(0, 2))
    found = importance.query("regime == 'all'").set_index("feature")["mean_abs_shap"]
    np.testing.assert_allclose(found[NAMES], direct)


def test_weighted_sample_estimates_the_importance_of_all_rows():
    rng = np.random.default_rng(0)
    regimes = pd.Series(["normal"] * 5000 + ["crash"] * 100)
    values = np.abs(rng.normal(size=(5100, 4, 3)))
    values[5000:, 0] *= 20                                       # one feature matters in crashes alone
    drawn = explain.sample_rows(regimes, 1000, 0)
    got = explain.importance_table(values[drawn["position"]], NAMES, drawn, "forest")[0].query("regime == 'all'")
    want = values.mean(axis=(0, 2))
    np.testing.assert_allclose(got.set_index("feature")["mean_abs_shap"][NAMES], want, rtol=0.06)


def test_constant_model_is_refused():
    with pytest.raises(DataError, match="constant"):
        table(np.zeros((30, 4, 3)), ["normal"] * 30)


# --- the whole run ---------------------------------------------------------------------------------------------------

def inputs() -> dict:
    rng = np.random.default_rng(3)
    samples = X.assign(session=np.repeat(pd.bdate_range("2019-01-01", periods=450), 2), symbol=["A", "B"] * 450,
                       regime=rng.choice(REGIMES, 900, p=[0.3, 0.4, 0.2, 0.08, 0.02]))
    folds = pd.DataFrame({"fold": [2019, 2020], "cutoff": samples["session"].iloc[[10, 599]].to_numpy()})
    oof = pd.DataFrame({"row": range(500, 900), "fold": [2019] * 100 + [2020] * 300})
    return {"memory": {"samples": samples, "folds": folds},
            "features": {"feature_set": {"definitions": [{"name": n, "group": n[:5]} for n in NAMES[:3]]}},
            "forest": {"last_fold": FOREST, "out_of_fold": oof}, "boosting": {"last_fold": BOOSTING, "out_of_fold": oof}}


ASK = Settings(explain={"forest_rows": 120, "boosting_rows": 200})


def test_run_is_deterministic_pure_and_complete():
    given_inputs, before = inputs(), inputs()
    first, again = (explain.run(given_inputs, ASK, pd.Timestamp("2020-12-31")) for _ in range(2))
    pd.testing.assert_frame_equal(given_inputs["memory"]["samples"], before["memory"]["samples"])
    for name in ("importance", "classes", "groups"):
        pd.testing.assert_frame_equal(first.frames[name], again.frames[name])
    summary = first.documents["summary"]["components"]
    assert summary["forest"]["rows"] == 120 and summary["boosting"]["rows"] == 200
    assert summary["forest"]["first_session"] > "2020-02-20"                          # the last fold only
    claimed = set(first.frames["importance"].query("component == 'forest'")["regime"])
    assert set(summary["forest"]["no_claim"]) | claimed == {"all", *REGIMES}
    rows = pd.DataFrame(first.rows["shap_analysis"])
    assert list(rows) == ["component", "regime", "feature", "importance", "rank", "sample_count"]
    assert not rows.duplicated(["component", "regime", "feature"]).any() and rows["rank"].max() <= 20
    assert {type(v) for row in first.rows["shap_analysis"] for v in row.values()} == {str, float, int}
    np.testing.assert_allclose(first.frames["groups"].groupby(["component", "regime"])["importance"].sum(), 1)
    assert "other" in set(first.frames["groups"]["group"])                            # a feature without a definition
    assert len(explain.figure(first).axes) == 2 and list(explain.table(first).columns)[0] == "all"


def test_rows_that_may_have_been_learned_are_refused():
    planted = inputs()
    planted["memory"]["folds"].loc[1, "cutoff"] = planted["memory"]["samples"]["session"].iloc[700]
    with pytest.raises(DataError, match="not after its cut-off"):
        explain.run(planted, ASK, pd.Timestamp("2020-12-31"))


def test_the_pipelines_own_models_can_be_explained():
    boosting = pytest.importorskip("mltrader.boosting")
    forest = pytest.importorskip("mltrader.forest")
    for component, model, function in (
        ("forest", forest.RandomForestModel(ForestSettings(n_estimators=10, max_samples=0.5)), explain.shap_forest),
        ("boosting", boosting.XGBoostModel(BoostingSettings(rounds=10)), explain.shap_boosting),
    ):
        model.fit(X[SEEN].reset_index(drop=True), Y[SEEN])
        for one in (model, type(model).from_bytes(model.to_bytes())):
            values, base = function(one, ROWS)
            assert explain.additivity(one, ROWS, values, base, component)["probability"] < 1e-5


def test_shap_is_not_imported_before_it_is_needed():
    heavy = ("shap", "xgboost", "sklearn", "matplotlib")
    code = f"import sys, mltrader.explain; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
