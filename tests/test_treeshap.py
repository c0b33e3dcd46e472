"""Shapley values of trees equal the definition, XGBoost's and shap's, with missing values, at any depth, on any number of threads."""
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier

from mltrader import treeshap
from mltrader.boosting import XGBoostModel
from mltrader.config import BoostingSettings, ForestSettings
from mltrader.core import DataError
from mltrader.forest import RandomForestModel
from mltrader.treeshap import FEW, OWN, Nodes, explainer_of, leaves_of, nodes_of_booster, shapley, shapley_pairs


def world(n=400, features=6, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, features)).astype("f4")
    X[:, 1] = X[:, 1].round()  # values that lie on cuts
    y = np.digitize(X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(0, 0.3, n), [-0.6, 0.6])
    X[rng.random(X.shape) < 0.15] = np.nan
    return X, y


X, Y = world()
NAMES = [f"feature {i}" for i in range(6)]


def booster(rounds=8, **parameters):
    data = xgboost.DMatrix(X, Y if parameters.get("objective") is None else Y > 0)
    return xgboost.train({"objective": "multi:softprob", "num_class": 3, "nthread": 1, "max_depth": 4} | parameters, data, rounds)


def theirs(model, what="pred_contribs", rows=X, **options):
    return np.moveaxis(model.predict(xgboost.DMatrix(rows), strict_shape=True, **{what: True}, **options), 1, -1)


# ---- the definition

def random_tree(seed, features=4, size=7):
    """A tree of `size` splits on any feature, often the same twice on a way, with any covers (some leaves 0) and any direction for missing values."""
    rng = np.random.default_rng(seed)
    feature, left, right = [-1], [0], [0]
    for _ in range(size):
        node = rng.choice([i for i, f in enumerate(feature) if f < 0])
        feature[node], left[node], right[node] = int(rng.integers(features)), len(feature), len(feature) + 1
        feature, left, right = feature + [-1, -1], left + [0, 0], right + [0, 0]
    n, cover = len(feature), np.zeros(len(feature))
    cover[0] = 100.0
    for node in range(n):  # parents come before their children
        if feature[node] >= 0:
            part = rng.random()
            if rng.random() < 0.2 and feature[left[node]] < 0:
                part = 0.0
            cover[left[node]], cover[right[node]] = part * cover[node], (1 - part) * cover[node]
    return Nodes(np.array([0]), np.array(feature), np.array(left), np.array(right), rng.normal(size=n).round(1).astype("f4"), rng.random(n) < 0.5, cover,
                 np.zeros(n, dtype=int), rng.normal(size=(n, 1)))


def answer(tree, x, known, node=0):
    """What the tree says when only the features in `known` are known."""
    if tree.feature[node] < 0:
        return tree.values[node, 0]
    j, sides = tree.feature[node], (tree.left[node], tree.right[node])
    if j in known:
        goes_left = tree.nan_left[node] if np.isnan(x[j]) else x[j] < tree.cut[node]
        return answer(tree, x, known, sides[0 if goes_left else 1])
    return sum(tree.cover[side] / tree.cover[node] * answer(tree, x, known, side) for side in sides)


def by_enumeration(say, n):
    """Values and interactions (halves, own effects on the diagonal) of the game `say(known)`, over all sets of n features."""
    worth = {known: say(known) for size in range(n + 1) for known in combinations(range(n), size)}
    values, pairs = np.zeros(n), np.zeros((n, n))

    def of(*known):
        return worth[tuple(sorted(known))]

    for i in range(n):
        for known in (k for k in worth if i not in k):
            values[i] += math.factorial(len(known)) * math.factorial(n - len(known) - 1) / math.factorial(n) * (of(*known, i) - of(*known))
        for j in range(n):
            for known in (k for k in worth if i != j and i not in k and j not in k):
                weight = math.factorial(len(known)) * math.factorial(n - len(known) - 2) / (2 * math.factorial(n - 1))
                pairs[i, j] += weight * (of(*known, i, j) - of(*known, i) - of(*known, j) + of(*known))
    pairs[np.diag_indices(n)] = values - pairs.sum(axis=1)
    return values, pairs


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_any_tree_by_enumerating_all_coalitions(seed):
    tree, x = random_tree(seed), np.random.default_rng(seed + 1).normal(size=(3, 4)).round(1).astype("f4")
    x[np.random.default_rng(seed).random(x.shape) < 0.25] = np.nan
    leaves = leaves_of(tree)
    values, pairs = shapley(leaves, 1, x)[..., 0], shapley_pairs(leaves, 1, x)[..., 0]
    for row, one in enumerate(x):
        expected, effects = by_enumeration(lambda known, one=one: answer(tree, one, known), 4)
        np.testing.assert_allclose(values[row], expected, atol=2e-6)
        np.testing.assert_allclose(pairs[row], effects, atol=2e-6)
        np.testing.assert_allclose(leaves.base(1) + values[row].sum(), answer(tree, one, range(4)), atol=2e-6)
    many = np.repeat(x, 5, axis=0)  # the kernel for many rows
    np.testing.assert_allclose(shapley(leaves, 1, many)[::5, :, 0], values, atol=1e-6)
    np.testing.assert_array_equal(pairs, pairs.swapaxes(1, 2))
    np.testing.assert_allclose(pairs.sum(axis=2), values, atol=2e-6)


# ---- XGBoost

@pytest.mark.parametrize("parameters", [
    {}, {"max_depth": 1}, {"max_depth": 7, "min_child_weight": 0}, {"grow_policy": "lossguide", "max_depth": 0, "max_leaves": 40},
    {"tree_method": "exact", "gamma": 1.0}, {"booster": "dart", "rate_drop": 0.5}, {"num_parallel_tree": 3, "subsample": 0.6}, {"base_score": 0.7},
    {"objective": "binary:logistic", "num_class": 0}], ids=lambda p: "-".join(map(str, p)) or "plain")
def test_boosting_equals_xgboost(parameters):
    model = booster(**parameters)
    explainer, expected, rows = explainer_of(model), theirs(model), X[:40]
    values = explainer.values(X)
    assert explainer.engine == OWN and explainer.unit == "log-odds" and explainer.names[:2] == ("f0", "f1")
    np.testing.assert_allclose(values, expected[:, :-1], atol=1e-5)
    np.testing.assert_allclose(explainer.base, expected[0, -1], atol=1e-6)
    np.testing.assert_allclose(explainer.base + values.sum(axis=1), model.predict(xgboost.DMatrix(X), output_margin=True).reshape(len(X), -1), atol=1e-5)
    np.testing.assert_allclose(explainer.interactions(rows), theirs(model, "pred_interactions", rows)[:, :-1, :-1], atol=1e-5)


def test_a_classifier_is_explained_up_to_its_best_round_and_a_bare_booster_in_whole():
    model = xgboost.XGBClassifier(n_estimators=60, learning_rate=0.9, early_stopping_rounds=3, n_jobs=1).fit(X[:250], Y[:250], eval_set=[(X[250:], Y[250:])], verbose=False)
    best, whole = model.best_iteration + 1, model.get_booster()
    assert best < whole.num_boosted_rounds()
    np.testing.assert_allclose(explainer_of(model).values(X), theirs(whole, iteration_range=(0, best))[:, :-1], atol=1e-5)
    np.testing.assert_allclose(explainer_of(whole).values(X), theirs(whole)[:, :-1], atol=1e-5)
    assert np.abs(theirs(whole) - theirs(whole, iteration_range=(0, best))).max() > 1e-3


@pytest.mark.parametrize("parameters", [{"booster": "gblinear"}, {"categories": True}], ids=["linear", "categories"])
def test_what_is_no_numeric_tree_is_left_to_xgboost(parameters):
    if parameters.get("categories"):
        coded = np.nan_to_num(np.abs(X)).round()
        data = xgboost.DMatrix(coded, Y, feature_types=["c"] * 6, enable_categorical=True)
        model, rows = xgboost.train({"objective": "multi:softprob", "num_class": 3, "max_cat_to_onehot": 1}, data, 3), coded
    else:
        model, rows = booster(**parameters), np.nan_to_num(X)
    explainer = explainer_of(model)
    assert explainer.engine.startswith("XGBoost pred_contribs, since")
    values = explainer.values(rows)
    data = xgboost.DMatrix(rows, feature_types=model.feature_types)
    np.testing.assert_allclose(explainer.base + values.sum(axis=1), model.predict(data, output_margin=True), atol=1e-5)
    if parameters.get("categories"):
        np.testing.assert_allclose(explainer.interactions(rows[:9]).sum(axis=2), values[:9], atol=1e-4)
    else:
        with pytest.raises(DataError, match="XGBoost has no `pred_interactions`"):
            explainer.interactions(rows[:9])


def test_vector_leaves_are_refused():
    """XGBoost 3.2 explains none; a later version that does would be asked, never read as plain trees."""
    model = booster(multi_strategy="multi_output_tree")
    with pytest.raises(treeshap._Unread, match="several classes"):
        nodes_of_booster(model)
    with pytest.raises(DataError, match="XGBoost has no `pred_contribs`"):
        explainer_of(model)


# ---- forests

@pytest.mark.parametrize("kind", ["ours", "sklearn", "extra", "two classes"])
def test_forest_equals_shap(kind):
    import shap

    labels = Y > 0 if kind == "two classes" else Y
    if kind == "ours":
        model = RandomForestModel(ForestSettings(n_estimators=12, min_samples_leaf=3)).fit(pd.DataFrame(X, columns=NAMES), labels)
        oracle, rows = shap.TreeExplainer(model.forest_), pd.DataFrame(X, columns=NAMES)
    else:
        model = (ExtraTreesClassifier if kind == "extra" else RandomForestClassifier)(12, random_state=0).fit(X, labels)
        oracle, rows = shap.TreeExplainer(model), X
    explainer = explainer_of(model)
    values = explainer.values(rows)
    assert (explainer.engine, explainer.unit, explainer.kind) == (OWN, "probability", "path-dependent")
    np.testing.assert_allclose(values[:60], oracle.shap_values(X[:60], check_additivity=False), atol=1e-5)
    np.testing.assert_allclose(explainer.base, oracle.expected_value, atol=1e-6)
    np.testing.assert_allclose(explainer.base + values.sum(axis=1), model.predict_proba(rows), atol=1e-5)
    np.testing.assert_allclose(explainer.interactions(rows[:2]), oracle.shap_interaction_values(X[:2]), atol=1e-5)


def test_leaves_of_many_features():
    """Twenty quadrature nodes and more, in single precision; the forest is grown to single rows."""
    import shap

    wide, labels = world(500, 60, seed=4)
    model = ExtraTreesClassifier(4, max_features=1, random_state=0).fit(wide, labels)
    leaves = leaves_of(treeshap.nodes_of_sklearn(model))
    assert np.diff(leaves.starts).max() >= 15
    np.testing.assert_allclose(explainer_of(model).values(wide[:30]), shap.TreeExplainer(model).shap_values(wide[:30], check_additivity=False), atol=1e-5)
    chain = np.arange(80)  # one leaf under 80 features, of which the row has every second: the others' share is a half
    inner = np.r_[chain, np.full(81, -1)]
    tree = Nodes(np.array([0]), inner, np.r_[chain + 80, np.zeros(81, int)], np.r_[chain[1:], 160, np.zeros(81, int)], np.zeros(161, "f4"), np.zeros(161, bool),
                 np.r_[0.5 ** chain, 0.5 ** (chain + 1), 0.5**80], np.zeros(161, int), np.r_[np.zeros(160), 1.0][:, None])
    x = np.where(chain % 2 == 0, 1.0, -1.0)[None].astype("f4")
    degree = 39  # phi of a feature inside: 0.5 * integral of (t + (1 - t) / 2)^39 ((1 - t) / 2)^40
    at, weight = np.polynomial.legendre.leggauss(60)
    t = (at + 1) / 2
    expected = 0.5 * (weight / 2 * (t + (1 - t) / 2) ** degree * ((1 - t) / 2) ** 40).sum()
    np.testing.assert_allclose(shapley(leaves_of(tree), 1, x)[0, ::2, 0], expected, rtol=1e-4)


# ---- the same on any number of threads, alone or among others

def test_threads_and_neighbours_change_nothing():
    explainer = explainer_of(booster(20))
    values, pairs = explainer.values(X), explainer.interactions(X[:50])
    np.testing.assert_array_equal(values, explainer.values(X, threads=4))
    np.testing.assert_array_equal(pairs, explainer.interactions(X[:50], threads=3))
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_array_equal(values[order], explainer.values(X[order]))
    np.testing.assert_array_equal(values[100:100 + FEW + 1], explainer.values(X[100:100 + FEW + 1]))
    np.testing.assert_array_equal(pairs[33:36], explainer.interactions(X[33:36]))
    for n in (1, FEW):
        np.testing.assert_allclose(values[:n], explainer.values(X[:n]), atol=1e-6)
    assert explainer.values(X[:0]).shape == (0, 6, 3) and explainer.interactions(X[:0]).shape == (0, 6, 6, 3)


# ---- planted faults

FAULTS = {"cover": lambda nodes: nodes._replace(cover=np.where(nodes.feature < 0, nodes.cover * 0.9, nodes.cover)),
          "missing values": lambda nodes: nodes._replace(nan_left=~nodes.nan_left),
          "classes": lambda nodes: nodes._replace(first=(nodes.first + 1) % 3),
          "cut": lambda nodes: nodes._replace(cut=np.where(nodes.feature >= 0, nodes.cut + 0.2, nodes.cut)),
          "sides": lambda nodes: nodes._replace(left=nodes.right, right=nodes.left)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_misread_booster_is_noticed(fault, monkeypatch):
    """The oracle's comparison fails by far, and the explainer itself leaves the work to XGBoost."""
    model = booster(20)
    read = nodes_of_booster(model)
    assert np.abs(shapley(leaves_of(FAULTS[fault](read)), 3, X) - theirs(model)[:, :-1]).max() > 1e-3
    monkeypatch.setattr(treeshap, "nodes_of_booster", lambda booster: FAULTS[fault](read))
    explainer = explainer_of(model)
    assert explainer.engine.startswith("XGBoost pred_contribs, since read as usual")
    np.testing.assert_allclose(explainer.values(X), theirs(model)[:, :-1], atol=1e-6)


def test_a_split_that_no_row_reached_is_refused():
    tree = random_tree(3)
    with pytest.raises(DataError, match="splits, but its cover is"):
        leaves_of(tree._replace(cover=np.where(tree.feature >= 0, 0.0, tree.cover)))


# ---- models and rows that cannot be explained

def test_refusals():
    for model in (RandomForestModel(), XGBoostModel(), RandomForestClassifier(), xgboost.XGBClassifier()):
        with pytest.raises(DataError, match="has not been fitted"):
            explainer_of(model)
    with pytest.raises(DataError, match="GradientBoostingClassifier cannot be explained"):
        explainer_of(GradientBoostingClassifier())
    with pytest.raises(DataError, match="2 questions at once"):
        explainer_of(RandomForestClassifier(2).fit(X, np.c_[Y, Y]))
    with pytest.raises(DataError, match="takes 0 for missing"):
        explainer_of(xgboost.XGBClassifier(n_estimators=2, missing=0).fit(X, Y))
    frame = pd.DataFrame(X, columns=NAMES)
    explainer = explainer_of(XGBoostModel(BoostingSettings(rounds=3)).fit(frame, Y))
    assert explainer.names == tuple(NAMES)
    np.testing.assert_array_equal(explainer.values(frame), explainer.values(X))
    for wrong in (frame[NAMES[::-1]], frame[NAMES[:5]], frame.assign(**{NAMES[0]: np.inf}), X[:, :5]):
        with pytest.raises(DataError):
            explainer.values(wrong)


# ---- against a background

@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_interventional_by_enumerating_all_coalitions(kind):
    """Three features; a coalition's worth is the model's mean answer with the other features taken from the background."""
    few = np.nan_to_num(X[:, :3])
    if kind == "forest":
        model = RandomForestModel(ForestSettings(n_estimators=5)).fit(few, Y)
        say = model.predict_proba
    else:
        model = XGBoostModel(BoostingSettings(rounds=5, colsample_bytree=1.0)).fit(few, Y)
        say = lambda rows: model.booster_.inplace_predict(rows, predict_type="margin")  # noqa: E731
    past = few[100:120]

    def worth(known):
        rows = past.copy()
        rows[:, list(known)] = few[0, list(known)]
        return say(rows).mean(axis=0)[2]

    np.testing.assert_allclose(treeshap.interventional(model, few[:1], past)[0, :, 2], by_enumeration(worth, 3)[0], atol=1e-5)
    with pytest.raises(DataError, match="`background` 0"):
        treeshap.interventional(model, few[:1], past[:0])
