"""A model of one's own: the frame keeps its promises, its file runs nothing and forgets nothing, and its explanation adds up."""
import numpy as np
import pandas as pd
import pytest
import shap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mltrader import artifacts, explain, forest, reports
from mltrader.checks import check_model
from mltrader.config import ForestSettings, Settings, own_estimators
from mltrader.core import ConfigError, DataError, IntegrityError, MltraderError
from mltrader.estimators import REGISTERED, OwnModel, find, origin, register

NAMES = list("abcd")


@register("shares", libraries=("numpy",))
class Shares:
    """Weighted shares of the classes below and above zero of each feature, averaged: additive in the features."""

    def __init__(self, seed, floor=1.0):
        self.floor = floor

    def fit(self, X, y, weight):
        side, classes = np.nan_to_num(X.to_numpy()) > 0, np.unique(y)
        each = np.array([[[weight[(side[:, j] == s) & (y == k)].sum() for k in classes] for s in (0, 1)] for j in range(X.shape[1])])
        self.table = (each + self.floor) / (each + self.floor).sum(axis=2, keepdims=True)
        return self

    def predict_proba(self, X):
        side = (np.nan_to_num(X.to_numpy()) > 0).astype(int)
        return np.mean([self.table[j][side[:, j]] for j in range(side.shape[1])], axis=0)

    def state(self):
        return {"table": self.table, "floor": self.floor, "note": ["two", None, 3]}

    @classmethod
    def restore(cls, state):
        assert state["note"] == ["two", None, 3]
        made = cls(0, state["floor"])
        made.table = state["table"]
        return made


class Crossed(Shares):
    """Not additive: one feature counts only where another is above zero."""

    def predict_proba(self, X):
        said = super().predict_proba(X)
        x = np.nan_to_num(X.to_numpy(dtype=float))
        tilt = 0.3 * np.tanh(x[:, 0] * (x[:, 1] > 0)) * said[:, 0] * said[:, 2]
        return said + np.column_stack([tilt, np.zeros(len(said)), -tilt])


register("crossed")(Crossed)
MINE, CROSSED = ForestSettings(estimator="test_estimators.shares"), ForestSettings(estimator="test_estimators.crossed")


def world(n: int = 300, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    draw = np.random.default_rng(seed)
    X = pd.DataFrame(draw.normal(size=(n, len(NAMES))), columns=NAMES).astype("float32")
    return X, np.digitize(X["a"] + draw.normal(size=n) / 2, [-0.5, 0.5])


X, Y = world()
MODEL = OwnModel(MINE, seed=1).fit(X, Y)
FILE = MODEL.to_bytes()


def test_it_passes_the_checks_that_every_model_passes():
    assert len(check_model(lambda: OwnModel(MINE, seed=1), X, Y)) == 12


def test_it_is_an_artifact_like_any_other(tmp_path):
    store = artifacts.ArtifactStore(tmp_path)
    entry = store.put(MODEL)
    assert entry.kind == "own" and entry.content_digest == MODEL.content_digest()
    assert np.array_equal(store.get(entry.as_dict()).predict_proba(X), MODEL.predict_proba(X))


@given(value=hnp.arrays(st.sampled_from(["<f4", ">f8", "<i2", "|b1", "<u8"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
       plain=st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_any_state_comes_back_as_it_was(value, plain):
    kept = {}

    class Keeper(Shares):
        def state(self):
            return super().state() | {"value": value, "plain": plain}

        @classmethod
        def restore(cls, state):
            kept.update(state)
            return super().restore(state)

    REGISTERED["test_estimators.keeper"] = Keeper, ()
    model = OwnModel(ForestSettings(estimator="test_estimators.keeper")).fit(X[:40], Y[:40])
    again = OwnModel.from_bytes(model.to_bytes())
    assert kept["value"].shape == value.shape and kept["value"].dtype == value.dtype.newbyteorder("=") and np.array_equal(kept["value"], value, equal_nan=value.dtype.kind == "f")
    assert kept["plain"] == plain and type(kept["plain"]) is type(plain) and again.content_digest() == model.content_digest()


@given(at=st.integers(0, len(FILE) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_nothing(at, bit):
    data = bytearray(FILE)
    data[at] ^= 1 << bit
    try:
        again = OwnModel.from_bytes(bytes(data))
    except MltraderError:
        return
    assert np.abs(again.predict_proba(X.set_axis(again.feature_names_in_, axis=1)) - MODEL.predict_proba(X)).max() < 1e-4  # a name may have changed: the hash of the file is for that


def test_a_class_that_has_changed_since_is_refused_and_a_comment_is_no_change(monkeypatch):
    whole = Shares.predict_proba
    monkeypatch.setattr(Shares, "predict_proba", lambda self, X: np.asarray(whole(self, X)))
    assert np.array_equal(OwnModel.from_bytes(FILE).predict_proba(X), MODEL.predict_proba(X))
    monkeypatch.setattr(Shares, "predict_proba", lambda self, X: whole(self, X)[:, [1, 0, 2]])
    with pytest.raises(IntegrityError, match=r"test_estimators.shares no longer says what it said .* run a cycle"):
        OwnModel.from_bytes(FILE)
    monkeypatch.setattr(Shares, "restore", lambda state: state["gone"])
    with pytest.raises(IntegrityError, match="cannot be restored .KeyError"):
        OwnModel.from_bytes(FILE)
    monkeypatch.delitem(REGISTERED, "test_estimators.shares")
    with pytest.raises(ConfigError, match="there is no module mltrader.test_estimators"):
        OwnModel.from_bytes(FILE)


@pytest.mark.parametrize(("answer", "words"), [
    (lambda n: np.full((n, 3), np.nan), "no probabilities"), (lambda n: np.full((n, 3), 0.5), "no probabilities"), (lambda n: np.tile([1.2, -0.2, 0.0], (n, 1)), "no probabilities"),
    (lambda n: np.full((n, 2), 0.5), r"shape \(300, 2\) for 300 rows and the classes \[0, 1, 2\]"), (lambda n: np.full(n, 1.0), r"shape \(300,\)"),
])
def test_what_are_no_probabilities_is_refused(monkeypatch, answer, words):
    monkeypatch.setattr(Shares, "predict_proba", lambda self, X: answer(len(X)))
    with pytest.raises(DataError, match=words):
        MODEL.predict_proba(X)


@pytest.mark.parametrize(("changes", "words"), [
    ({"estimator": "core.logit"}, "mltrader.core registers nothing"), ({"estimator": "nowhere.logit"}, "no module mltrader.nowhere; give it a notebook"),
    ({"estimator": "test_estimators.shares", "parameters": {"depth": 3}}, r"\[forest\] parameters do not fit test_estimators.shares"),
])
def test_settings_that_name_nothing_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        OwnModel(ForestSettings(**changes)).fit(X, Y)


@pytest.mark.parametrize("name", ["../os.system", "os", "a.b.c", "Mine.x", "mine."])
def test_a_name_is_a_module_of_the_package_and_a_word(name):
    with pytest.raises(ValueError, match="estimator"):
        ForestSettings(estimator=name)
    with pytest.raises(ConfigError, match=r"no `module.name`"):
        find(name)


def test_a_module_that_cannot_be_imported_says_why(monkeypatch):
    def fail(name):
        raise ImportError("No module named 'lightgbm'")

    monkeypatch.setattr("mltrader.estimators.importlib.import_module", fail)
    with pytest.raises(ConfigError, match=r"mltrader.core cannot be imported \(ImportError: No module named 'lightgbm'\)"):
        find("core.other")


def test_the_recipe_knows_code_libraries_and_candidates(tmp_path):
    """A changed module, library or parameter is another recipe; the tasks that read [forest] are out of date with the module's file."""
    plain = Settings()
    mine = Settings(forest={"estimator": "test_estimators.shares"})
    grid = Settings(tuning={"forest": [{"estimator": "test_estimators.shares", "parameters": {"floor": 2.0}}]})
    assert (own_estimators(plain), own_estimators(mine), own_estimators(grid)) == ((), ("test_estimators.shares",), ("test_estimators.shares",))
    recipes = [forest.component_recipe(one) for one in (plain, mine, grid)]
    assert "estimators" not in recipes[0] and recipes[1]["component"] == "test_estimators.shares" and recipes[2]["component"] == "forest"
    assert recipes[1]["estimators"] == recipes[2]["estimators"] == {"test_estimators.shares": origin("test_estimators.shares")} and origin("test_estimators.shares")["libraries"] == {"numpy": np.__version__}
    reports.write_inputs(plain, None, None, tmp_path)
    assert set(reports.write_inputs(mine, None, None, tmp_path)) == {"forest", "promotion"}
    assert reports.input_document("forest", Settings(forest={"estimator": "core.x"}), None, None)["estimators"]["core.x"] and "estimators" not in reports.input_document("explain", mine, None, None)
    with pytest.raises(ConfigError, match="double_ensemble"):
        forest.fitter(mine.forest, Settings(forest={"estimator": "test_estimators.shares"}, replay={"mode": "double_ensemble"}))


# --- its explanation -------------------------------------------------------------------------------------------------

def exact(model: OwnModel, rows: pd.DataFrame, background: np.ndarray) -> np.ndarray:
    """By shap, over all coalitions."""
    explainer = shap.explainers.ExactExplainer(lambda values: model.predict_proba(pd.DataFrame(values, columns=NAMES)), shap.maskers.Independent(background, max_samples=len(background)))
    return explainer(rows.to_numpy(dtype=np.float32)).values


def test_an_additive_model_is_explained_exactly():
    found = explain.explain_rows(MODEL, X[:20])
    assert (found.unit, found.kind) == ("probability", "interventional") and "8 background rows" in found.engine
    np.testing.assert_allclose(found.values, exact(MODEL, X[:20], MODEL.background_), atol=1e-9)
    np.testing.assert_allclose(found.base + found.values.sum(axis=1), MODEL.predict_proba(X[:20]), atol=1e-12)


def test_a_model_with_interactions_is_estimated_and_adds_up_exactly():
    model = OwnModel(CROSSED).fit(X, Y)
    found = explain.explain_rows(model, X[:60], background=X[100:116])
    known = exact(model, X[:60], X[100:116].to_numpy())
    assert np.abs(found.values - known).max() < 0.03 < np.abs(known).max() and np.corrcoef(found.values.ravel(), known.ravel())[0, 1] > 0.99
    np.testing.assert_allclose(found.base + found.values.sum(axis=1), model.predict_proba(X[:60]), atol=1e-12)
    assert np.array_equal(found.values, explain.explain_rows(model, X[:60], background=X[100:116]).values)  # drawn from a fixed seed
    with pytest.raises(DataError, match=r"not known for test_estimators.crossed"):
        explain.explainer_of(model).interactions(X[:2])
    with pytest.raises(DataError, match="no rows"):
        explain.explainer_of(model, X[:0])
