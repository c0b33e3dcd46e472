"""The base models: estimators like any other, the same in every process, and nothing foreign is opened."""
import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from mltrader import artifacts, boosting, forest, trees
from mltrader.boosting import XGBoostModel, validation_tail
from mltrader.checks import check_model
from mltrader.config import BoostingSettings, ForestSettings, Settings
from mltrader.core import CLASSES, DataError, IntegrityError
from mltrader.forest import RandomForestModel

FOREST = ForestSettings(n_estimators=12, min_samples_leaf=3, max_samples=0.8)
BOOSTING = BoostingSettings(rounds=12, learning_rate=0.3, min_child_weight=1.0, max_samples=0.8, colsample_bytree=0.7)
MODELS = {"forest": lambda **k: RandomForestModel(FOREST, **k), "boosting": lambda **k: XGBoostModel(BOOSTING, **k)}


def world(n: int = 600, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 5)), columns=list("abcde")).astype("float32")
    score = X["a"] * np.abs(rng.normal(size=n)) * rng.choice([-1, 1], n) + 0.3 * X["b"]
    return X, np.select([score < -0.5, score > 0.5], [0, 2], 1)


# scikit-learn's own checks

CLASSES_FIXED = "the classes are the three of core.CLASSES, in the training labels or not; other labels are refused"
ROWS_DRAWN = "rows are drawn at random in proportion to their weight, so a weight of 2 equals two rows in expectation only"
OUR_WORDS = "columns are compared by name and order; the refusal names the first column out of place in other words than scikit-learn's"
REASONS = {
    "check_classifiers_classes": CLASSES_FIXED, "check_classifiers_train": CLASSES_FIXED, "check_dtype_object": CLASSES_FIXED,
    "check_dataframe_column_names_consistency": OUR_WORDS, "check_sample_weight_equivalence_on_dense_data": ROWS_DRAWN,
}


@parametrize_with_checks([RandomForestModel(FOREST), XGBoostModel(BOOSTING)], expected_failed_checks=lambda estimator: REASONS, xfail_strict=True)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", MODELS)
def test_parameters_are_read_set_and_searched(kind):
    X, y = world(300)
    model = MODELS[kind](seed=3)
    assert clone(model).get_params()["seed"] == 3 and clone(model).settings == model.settings
    model.set_params(settings__max_bin=16, threads=2)
    assert model.settings.max_bin == 16 and model.threads == 2
    with pytest.raises(ValueError, match="max_bin"):
        model.set_params(settings__max_bin=0)
    name = {"forest": "settings__n_estimators", "boosting": "settings__rounds"}[kind]
    found = GridSearchCV(MODELS[kind](), {name: [1, 12]}, scoring="neg_log_loss", cv=2).fit(X, y)
    assert found.best_params_ == {name: 12} and found.best_estimator_.predict(X).shape == (300,)


@pytest.mark.parametrize("kind", MODELS)
def test_the_contract_of_every_model(kind):
    assert len(check_model(MODELS[kind], *world(400))) >= 12


@pytest.mark.parametrize("kind", MODELS)
def test_the_first_column_out_of_place_is_named(kind):
    X, y = world(200)
    model = MODELS[kind]().fit(X, y)
    with pytest.raises(DataError, match="column 1 is `c`, not `b`"):
        model.predict_proba(X[["a", "c", "b", "d", "e"]])
    with pytest.raises(DataError, match="takes a DataFrame"):
        model.predict_proba(X.to_numpy())
    unnamed = MODELS[kind]().fit(X.to_numpy(), y)
    np.testing.assert_array_equal(unnamed.predict_proba(X.to_numpy()), model.predict_proba(X))
    assert not hasattr(unnamed, "feature_names_in_") and unnamed.n_features_in_ == 5
    again = type(model).from_bytes(unnamed.to_bytes())
    np.testing.assert_array_equal(again.predict_proba(X.to_numpy()), model.predict_proba(X))


# the same everywhere

PRINTS = """
import sys, hashlib; sys.path.insert(0, sys.argv[1])
from test_models import MODELS, world
X, y = world(500)
holes = X.mask(X > 1.5)
for kind in MODELS:
    model = MODELS[kind](threads=int(sys.argv[2])).fit(holes, y, abs(X["c"]) + 0.1)
    print(model.content_digest(), hashlib.sha256(model.to_bytes()).hexdigest(), hashlib.sha256(model.predict_proba(holes).tobytes()).hexdigest())
"""


def test_other_processes_and_threads_make_the_same_model():
    """Digest, file and probabilities, bit by bit, with another hash seed and another number of threads."""
    said = {subprocess.run([sys.executable, "-c", PRINTS, str(ROOT / "tests"), threads], capture_output=True, text=True, check=True, cwd=ROOT,
                           env={"PYTHONHASHSEED": threads, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": threads}).stdout for threads in ("1", "2")}
    X, y = world(500)
    holes, here = X.mask(X > 1.5), ""
    for kind in MODELS:
        model = MODELS[kind](threads=2).fit(holes, y, abs(X["c"]) + 0.1)
        here += f"{model.content_digest()} {hashlib.sha256(model.to_bytes()).hexdigest()} {hashlib.sha256(model.predict_proba(holes).tobytes()).hexdigest()}\n"
    assert said == {here}


# trees, against a brute force and against scikit-learn

def brute_force(x: np.ndarray, y: np.ndarray, leaf: int) -> float:
    """The best criterion over all cuts of one feature, NaN on either side, and known against unknown."""
    best, known = -1.0, ~np.isnan(x)
    for cut in [*np.unique(x[known]), np.inf]:
        for nan_left in (False, True):
            left = np.where(known, x <= cut, nan_left)
            if min(left.sum(), (~left).sum()) >= leaf:
                best = max(best, sum((np.bincount(y[side], minlength=3) ** 2).sum() / side.sum() for side in (left, ~left)))
    return best


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 8), st.floats(0, 0.5))
def test_the_first_cut_is_the_best_there_is(seed, n, leaf, holes):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 12, (n, 3)).astype("float32")
    values[rng.random((n, 3)) < holes] = np.nan
    y = rng.integers(0, 3, n)
    grown = trees.grow_forest(values, y, np.ones(n), 1, 0, leaf, 3, 255, seed)
    best = max(brute_force(values[:, j], y, leaf) for j in range(3))
    if grown.feature[0] < 0:
        assert best < 0 or n < 2 * leaf or len(np.unique(y)) == 1
        return
    sides = grown.table[[grown.left[0], grown.left[0] + 1]]
    assert np.isclose(sum((side[:3] ** 2).sum() / side[:3].sum() for side in sides.astype(float)), best)
    down = np.where(np.isnan(values[:, grown.feature[0]]), grown.nan_left[0] == 1, values[:, grown.feature[0]] <= grown.threshold[0])
    assert down.sum() == sides[0, 3] >= leaf and (~down).sum() == sides[1, 3] >= leaf


@pytest.mark.parametrize("seed", (0, 1, 2, 3, 5))  # worlds in which no two cuts are equally good: scikit-learn takes either then
def test_a_whole_tree_is_scikit_learns(seed):
    X, y = world(255, seed)
    ours = trees.grow_forest(X.to_numpy(), y, np.ones(255), 1, 0, 25, 5, 255, seed)
    theirs = DecisionTreeClassifier(min_samples_leaf=25, random_state=seed).fit(X.to_numpy(), y)
    np.testing.assert_allclose(ours.predict(X.to_numpy()), theirs.predict_proba(X.to_numpy()), atol=1e-12)


def test_a_forest_is_as_good_as_scikit_learns():
    from sklearn.ensemble import RandomForestClassifier

    from mltrader.splits import log_loss_rows

    X, y = world(6000)
    ours = RandomForestModel(ForestSettings(n_estimators=100, max_samples=0.2), 1).fit(X[:3000], y[:3000])
    theirs = RandomForestClassifier(100, min_samples_leaf=20, max_samples=0.2, random_state=1).fit(X[:3000].to_numpy(), y[:3000])
    losses = [log_loss_rows(y[3000:], p) for p in (ours.predict_proba(X[3000:]), theirs.predict_proba(X[3000:].to_numpy()))]
    gap = losses[0] - losses[1]
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5 + 0.002
    np.testing.assert_allclose(ours.forest_.predict_proba(X[3000:].to_numpy()), ours.predict_proba(X[3000:]), atol=1e-12)


def test_scikit_learn_sends_nan_where_we_do():
    X, y = world(800)
    holes = X.mask(np.random.default_rng(1).random(X.shape) < 0.2)
    model = RandomForestModel(FOREST, 1).fit(holes, y)
    fresh = world(300, 9)[0]
    fresh = fresh.mask(np.random.default_rng(2).random(fresh.shape) < 0.3)
    np.testing.assert_allclose(model.forest_.predict_proba(fresh.to_numpy()), model.predict_proba(fresh), atol=1e-12)


# out of the bag

def test_out_of_bag_votes_come_from_trees_that_did_not_draw_the_row():
    X, y = world(300)
    weight = np.linspace(0.0, 2.0, 300)
    model = RandomForestModel(ForestSettings(n_estimators=8, min_samples_leaf=2, max_samples=0.6), 5).fit(X, y, weight)
    share, votes, asked = model.trees_.share(), np.zeros((300, 3)), np.zeros(300)
    draws = round(0.6 * 300)
    for tree, root in enumerate(model.trees_.roots[:-1]):
        out = trees.drawn(5, tree, np.cumsum(weight), draws) == 0
        node = root + model.forest_.estimators_[tree].apply(X.to_numpy())
        votes[out] += share[node[out]]
        asked += out
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(model.out_of_bag(X), votes / asked[:, None], atol=1e-12)
    assert asked[0] == 8                                                  # a row of no weight is drawn by no tree
    everything = RandomForestModel(ForestSettings(n_estimators=1, max_samples=1.0), 5).fit(X, y, np.where(np.arange(300) < 3, 1.0, 0.0))
    assert np.isnan(everything.out_of_bag(X)[:3]).all() and np.isfinite(everything.out_of_bag(X)[3:]).all()
    curve = model.loss_curve(X, y, 4)
    assert curve.shape == (300, 4) and np.isfinite(curve).all()
    with pytest.raises(DataError, match="for the 300 rows"):
        model.out_of_bag(X[:10])
    with pytest.raises(Exception, match="from a file"):
        RandomForestModel.from_bytes(model.to_bytes()).out_of_bag(X)


def test_out_of_bag_notices_what_was_learned_by_heart():
    """Noise labels: the forest knows its own rows, and out of the bag it does not."""
    X, _ = world(400)
    y = np.random.default_rng(3).integers(0, 3, 400)
    model = RandomForestModel(ForestSettings(n_estimators=60, min_samples_leaf=1, max_samples=0.5), 1).fit(X, y)
    own = -np.log(np.clip(model.predict_proba(X)[np.arange(400), y], 1e-6, 1)).mean()
    out = -np.log(np.clip(model.out_of_bag(X)[np.arange(400), y], 1e-6, 1)).mean()
    assert own < 0.7 < 1.05 < out


# files

def rewritten(data: bytes, **columns) -> bytes:
    """The forest's file with other columns."""
    start = len(forest.MAGIC) + 8
    stop = start + int.from_bytes(data[len(forest.MAGIC):start], "little")
    n, parts, at = json.loads(data[start:stop])["n_nodes"], [], stop
    for name, kind in forest.COLUMNS.items():
        column = np.frombuffer(data, kind, n, at).copy()
        at += column.nbytes
        parts.append(columns.get(name, lambda c: c)(column).tobytes())
    return data[:stop] + b"".join(parts)


def put(at, value):
    def change(column):
        column[at] = value
        return column
    return change


PLANTED = {
    "a child before its parent": {"left": put(0, 0)}, "a child outside its tree": {"left": put(0, 10**6)}, "the last node as a left child": {"left": put(0, -1)},
    "a feature that is not there": {"feature": put(0, 99)}, "a negative feature": {"feature": put(0, -2)}, "no rows": {"sell": lambda c: c * 0, "hold": lambda c: c * 0, "buy": lambda c: c * 0},
    "trees out of order": {"tree": lambda c: c[::-1].copy()}, "a tree too few": {"tree": lambda c: np.maximum(c - 1, 0)}, "a negative tree": {"tree": put(0, -1)},
    "another type": {"left": lambda c: c.astype("int64")}, "a huge tree number": {"tree": put(-1, 2**31 - 1)}, "threshold NaN": {"threshold": put(0, np.nan)},
}


@pytest.mark.parametrize("what", PLANTED)
def test_nodes_that_lead_nowhere_are_refused(what):
    X, y = world(200)
    good = RandomForestModel(FOREST, 1).fit(X, y).to_bytes()
    assert RandomForestModel.from_bytes(rewritten(good)).content_digest() == RandomForestModel.from_bytes(good).content_digest()
    with pytest.raises(IntegrityError, match="no RandomForestModel"):
        RandomForestModel.from_bytes(rewritten(good, **PLANTED[what]))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_predict(data):
    """A flipped byte that slips past the format (the hash would have caught it) still gives a model that stays inside its own nodes."""
    X, good = DAMAGED
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        model = RandomForestModel.from_bytes(bytes(bad))
    except IntegrityError:
        return
    assert model.trees_.predict(np.zeros((4, model.n_features_in_), dtype="f4")).shape == (4, 3)


DAMAGED = (world(60)[0], RandomForestModel(ForestSettings(n_estimators=2, max_samples=0.9, min_samples_leaf=5), 1).fit(*world(60)).to_bytes())


@pytest.mark.parametrize("kind", MODELS)
def test_foreign_files_are_refused(kind, tmp_path):
    import pickle

    X, y = world(200)
    model, other = MODELS[kind]().fit(X, y), MODELS[{"forest": "boosting", "boosting": "forest"}[kind]]().fit(X, y)
    frame = io.BytesIO()
    X.to_parquet(frame)
    for data in (pickle.dumps({"a": 1}), other.to_bytes(), frame.getvalue(), b"", b"{", json.dumps({"learner": {}}).encode(), model.to_bytes()[:-1]):
        with pytest.raises(IntegrityError, match="are no"):
            type(model).from_bytes(data)
    store = artifacts.ArtifactStore(tmp_path)
    entry = store.put(model)
    store.path(entry.sha256).write_bytes(other.to_bytes())                  # a whole, readable model, but not the one that was asked for
    with pytest.raises(IntegrityError, match="was changed"):
        store.get(entry)


# early stopping

def dated(n_sessions: int = 400, symbols: int = 4, seed: int = 0):
    X, y = world(n_sessions * symbols, seed)
    days = pd.bdate_range("2015-01-01", periods=n_sessions + 20).as_unit("us")
    at = np.repeat(np.arange(n_sessions), symbols)
    return X, y, days[at], days[at + 15]


@settings(max_examples=80, deadline=None)
@given(st.integers(30, 200), st.integers(1, 40), st.integers(1, 120), st.integers(0, 10**6))
def test_no_inner_row_is_known_after_the_tail_begins(n_sessions, horizon, sessions, seed):
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2015-01-01", periods=n_sessions + horizon + 2).as_unit("us")
    at = rng.integers(0, n_sessions, 300)
    session, known = days[at], days[at + horizon + 1]
    inner, tail = validation_tail(session, known, sessions)
    assert len(np.unique(session[tail])) == min(sessions, len(np.unique(session)))
    assert not len(inner) or known[inner].max() < session[tail].min()
    assert not set(inner) & set(tail)
    left_out = np.setdiff1d(np.arange(300), np.concatenate([inner, tail]))
    assert (known[left_out] >= session[tail].min()).all() and (session[left_out] < session[tail].min()).all()


def test_early_stopping_finds_few_rounds_and_fits_on_all_rows():
    X, y, session, known = dated()
    hasty = BoostingSettings(rounds=200, learning_rate=0.3, min_child_weight=1, early_stopping=10, tail_sessions=100)
    model = XGBoostModel(hasty, 1).fit(X, y, None, session, known)
    rounds = model.booster_.num_boosted_rounds()
    assert 1 <= rounds < 100
    plain = XGBoostModel(hasty.model_copy(update={"rounds": rounds, "early_stopping": 0}), 1).fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))      # all rows, the rounds found
    with pytest.raises(DataError, match="`known_at`"):
        XGBoostModel(hasty, 1).fit(X, y)


def test_labels_of_the_purged_gap_cannot_choose_the_rounds():
    """Red team: rows between the inner fit and the tail are given labels that would change the number of rounds if they were seen."""
    X, y, session, known = dated()
    hasty = BoostingSettings(rounds=120, learning_rate=0.3, min_child_weight=1, early_stopping=10, tail_sessions=100, max_samples=1.0)
    inner, tail = validation_tail(session, known, 100)
    gap = np.setdiff1d(np.arange(len(y)), np.concatenate([inner, tail]))
    assert len(gap) == 15 * 4
    other = y.copy()
    other[gap] = (other[gap] + 1) % 3
    count = [XGBoostModel(hasty, 1).fit(X, labels, None, session, known).booster_.num_boosted_rounds() for labels in (y, other)]
    assert count[0] == count[1]


def test_too_short_a_history_keeps_the_setting():
    X, y, session, known = dated(60)
    model = XGBoostModel(BoostingSettings(rounds=9, min_child_weight=1, early_stopping=2, tail_sessions=50), 1).fit(X, y, None, session, known)
    assert model.booster_.num_boosted_rounds() == 9


def test_a_share_of_the_rows_keeps_the_total_weight():
    X, y = world(900)
    seen = {}
    real = boosting._native
    boosting._native = lambda model, total: seen.setdefault("total", total) and real(model, total)
    try:
        XGBoostModel(BOOSTING.model_copy(update={"max_samples": 0.3}), 1).fit(X, y, np.linspace(0.5, 1.5, 900))
    finally:
        boosting._native = real
    assert np.isclose(seen["total"], 900)


# the task

def task(years: int = 3):
    X, y, session, known = dated(260 * years, 3, 4)
    samples = pd.DataFrame({"session": session, "symbol": np.tile(list("ABC"), 260 * years), "label": y, "label_known_at": known, "vix": 20.0}).join(X)
    days = pd.DatetimeIndex(np.unique(samples["session"]))
    tested = [2016, 2017]
    folds = pd.DataFrame({"fold": tested, "cutoff": [days[days.year < k][-1] for k in tested], "test_start": [days[days.year == k][0] for k in tested],
                          "test_end": [days[days.year == k][-1] for k in tested]})
    plan = pd.concat([pd.DataFrame({"fold": k, "row": samples.index[samples["label_known_at"] <= c], "weight": np.float32(1), "uniqueness": np.float32(0.3), "origin": "recent"})
                      for k, c in [*zip(tested, folds["cutoff"], strict=True), (-1, days[-1])]], ignore_index=True)
    return {"memory": {"samples": samples, "plan": plan, "folds": folds}, "fold_cache": {}}, days[-1]


@pytest.mark.parametrize("module", [forest, boosting], ids=["forest", "boosting"])
def test_threads_and_cache_change_nothing(module):
    inputs, as_of = task()
    small = {"forest": {"n_estimators": 10}, "boosting": {"rounds": 10, "learning_rate": 0.3, "early_stopping": 3, "tail_sessions": 60}}
    outputs = [module.run({**inputs, "fold_cache": {}}, Settings(run={"threads": threads}, **small), as_of) for threads in (1, 2)]
    outputs.append(module.run({**inputs, "fold_cache": (cache := {})}, Settings(**small), as_of))
    outputs.append(module.run({**inputs, "fold_cache": cache}, Settings(**small), as_of))
    for other in outputs[1:]:
        pd.testing.assert_frame_equal(other.frames["out_of_fold"], outputs[0].frames["out_of_fold"], check_exact=True)
        assert {k: m.content_digest() for k, m in other.models.items()} == {k: m.content_digest() for k, m in outputs[0].models.items()}
    assert set(outputs[0].frames) == {"out_of_fold", "by_fold"} and not outputs[0].rows           # nothing of tuning without candidates


def test_the_dates_are_part_of_the_fold_key():
    """Early stopping depends on when labels were known, so a fold with other dates is another fold."""
    inputs, as_of = task()
    chosen = Settings(boosting={"rounds": 5, "early_stopping": 2, "tail_sessions": 60})
    boosting.run(inputs, chosen, as_of)
    before = set(inputs["fold_cache"])
    samples = inputs["memory"]["samples"]
    samples.loc[0, "label_known_at"] += pd.Timedelta(days=1)
    boosting.run(inputs, chosen, as_of)
    assert len(set(inputs["fold_cache"]) - before) == 5  # predictions and model of two folds, and the refit


def test_every_class_column_is_there():
    X, y = world(200)
    for kind in MODELS:
        model = MODELS[kind]().fit(X[y != 2], y[y != 2])
        assert model.predict_proba(X).shape[1] == len(CLASSES) and list(model.classes_) == [0, 1, 2]


# no pickle: the guard of conftest.py

PLANTED_READER = """
def read(data):
    import io, joblib, pickle
    return {reader}
"""


@pytest.mark.parametrize("reader", ["pickle.loads(data)", "pickle.load(io.BytesIO(data))", "pickle._loads(data)", "joblib.load(io.BytesIO(data))"])
def test_a_planted_pickle_is_caught(reader, unpickled):
    """Red team: a module of ours that opens a pickle, which would run code, is stopped before the class is looked up."""
    import pickle

    names: dict = {}
    exec(compile(PLANTED_READER.format(reader=reader), str(ROOT / "mltrader" / "planted.py"), "exec"), names)
    with pytest.raises(RuntimeError, match="planted.py"):
        names["read"](pickle.dumps(pd.Timestamp("2020-01-01")))
    assert len(unpickled) == 1 and "timestamp" in unpickled.pop()
    assert pickle.loads(pickle.dumps(pd.Timestamp("2020-01-01"))) == pd.Timestamp("2020-01-01")       # what is not ours may


def test_what_is_caught_cannot_be_swallowed(unpickled):
    """A reader that catches everything is still on the list, and the list fails its test."""
    import pickle

    names: dict = {}
    code = "def read(data):\n    import pickle\n    try:\n        return pickle.loads(data)\n    except Exception:\n        return None\n"
    exec(compile(code, str(ROOT / "mltrader" / "planted.py"), "exec"), names)
    assert names["read"](pickle.dumps(pd.Timestamp("2020-01-01"))) is None and len(unpickled) == 1
    unpickled.clear()


@pytest.mark.parametrize("kind", MODELS)
def test_models_are_read_without_pickle(kind, tmp_path, unpickled):
    X, y = world(200)
    model, store = MODELS[kind]().fit(X, y), artifacts.ArtifactStore(tmp_path)
    again = store.get(store.put(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert not unpickled
