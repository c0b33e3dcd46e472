"""A blend from out-of-fold predictions that has to earn its place, knows nothing of the future, and falls silent where it should."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from mltrader import meta, splits
from mltrader.config import MetaSettings, Settings
from mltrader.core import CLASSES, PROBABILITIES, REGIMES, DataError, IntegrityError
from mltrader.meta import BASES, INPUTS, Blend, MetaLearner, Said

SESSIONS = pd.bdate_range("2001-01-01", "2008-12-31").as_unit("us")
YEARS = pd.DataFrame([{"fold": y, "cutoff": SESSIONS[SESSIONS.year < y][-1], "test_start": SESSIONS[SESSIONS.year == y][0],
                       "test_end": SESSIONS[SESSIONS.year == y][-1]} for y in range(2002, 2009)])
QUICK = Settings(splits={"bootstrap": 200})


def market(seed: int = 8) -> pd.DataFrame:
    """Samples whose labels depend on x, the volatility's logarithm among other things."""
    rng = np.random.default_rng(seed)
    frame = pd.MultiIndex.from_product([SESSIONS[:-20], list("ABCD")], names=["session", "symbol"]).to_frame(index=False)
    frame["sector"], frame["regime"] = "Tech", np.array(REGIMES)[np.arange(len(frame)) // 400 % 3]
    frame["market_regime"] = frame["regime"]
    x = rng.normal(size=len(frame)) + 0.7 * np.sin(np.arange(len(frame)) / 700)
    true = meta.softmax(np.c_[1.5 * x, np.ones(len(frame)), 0.5 * x - 1])
    frame["label"] = (rng.random(len(frame))[:, None] > true.cumsum(axis=1)).sum(axis=1).clip(0, 2).astype("int8")
    frame["label_known_at"] = SESSIONS[np.searchsorted(SESSIONS, frame["session"]) + 16]
    frame["return_pct"], frame["forward_log_return"] = 0.0, rng.normal(size=len(frame))
    return frame.assign(vix=20.0, x=x.astype("float32"), volatility_20=np.exp(x / 2).astype("float32"))


def plan_of(samples: pd.DataFrame) -> pd.DataFrame:
    known = [(k, np.flatnonzero(samples["label_known_at"] <= c)) for k, c in YEARS[["fold", "cutoff"]].itertuples(index=False)]
    return pd.concat([pd.DataFrame({"fold": k, "row": r, "weight": np.float32(1), "origin": "recent"}) for k, r in known])


def honest(X, y, rows, X_test):
    return meta.apply_logit(meta.fit_logit(X[["x"]].to_numpy(), y, 1.0), X_test[["x"]].to_numpy())


def too_sure(X, y, rows, X_test):
    return meta.soften(honest(X, y, rows, X_test), 0.5)


def bases_of(samples: pd.DataFrame, first=honest, second=too_sure) -> dict:
    plan = plan_of(samples)
    return {name: splits.out_of_fold(samples, ["x"], plan, YEARS, model, {"name": name}) for name, model in zip(BASES, (first, second), strict=True)}


class Steady:
    """Always the same probabilities, for the columns it was fitted on."""

    feature_names_in_ = np.array(["x", "volatility_20"])

    def predict_proba(self, X):
        assert list(X.columns) == ["x", "volatility_20"]
        return np.tile([0.3, 0.5, 0.2], (len(X), 1))


def inputs_of(samples: pd.DataFrame, bases: dict) -> dict:
    today = pd.DataFrame({"session": SESSIONS[-1], "symbol": ["A", "B"], "noise": 1.0, "volatility_20": [1.0, np.nan], "x": 0.0})
    parts = {name: {"out_of_fold": found.frame, "recipe": found.recipe, "model": Steady()} for name, found in bases.items()}
    return {"memory": {"samples": samples, "plan": plan_of(samples), "folds": YEARS}, **parts,
            "features": {"features": today, "feature_set": {"version": "v1", "warm_up": 0}}, "regimes": {"symbol_regimes": today.assign(regime="normal")}}


SAMPLES = market()
BASE_PREDICTIONS = bases_of(SAMPLES)
OUTPUT = meta.run(inputs_of(SAMPLES, BASE_PREDICTIONS), QUICK, SESSIONS[-1])


# --- the parts, against independent libraries ---------------------------------------------------------------------------

@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.01, 1.0, 100.0]), st.sampled_from([(0, 1, 2), (0, 2), (1, 2)]), st.floats(0.1, 4))
def test_logit_equals_scikit_learn(seed, d, penalty, classes, size):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(400, d)) * size
    y = np.array(classes)[(X[:, 0] + rng.logistic(size=400) > np.arange(len(classes) - 1)[:, None]).sum(axis=0)]
    ours = meta.fit_logit(X, y, penalty)
    peer = LogisticRegression(C=penalty, solver="newton-cholesky", tol=1e-13, max_iter=200).fit(X, y)
    np.testing.assert_allclose(meta.apply_logit(ours, X)[:, sorted(set(y))], peer.predict_proba(X), atol=1e-8)
    if len(classes) == 3:
        np.testing.assert_allclose(ours[:, :-1], peer.coef_, atol=1e-8 * max(1, np.abs(peer.coef_).max()))
    near = meta.fit_logit(X, y, penalty, start=ours + rng.normal(size=ours.shape), tolerance=1e-3)
    np.testing.assert_allclose(meta.apply_logit(near, X), meta.apply_logit(ours, X), atol=1e-5)


def test_logit_of_separable_rows_ends():
    X = np.r_[np.full(50, -3.0), np.zeros(50), np.full(50, 3.0)][:, None]
    y = np.repeat([0, 1, 2], 50)
    ours = meta.fit_logit(X, y, 1e4)
    peer = LogisticRegression(C=1e4, solver="newton-cholesky", tol=1e-12, max_iter=500).fit(X, y)
    np.testing.assert_allclose(meta.apply_logit(ours, X), peer.predict_proba(X), atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.1, 8))
def test_temperature_equals_scipy(seed, heat):
    rng = np.random.default_rng(seed)
    true = rng.dirichlet([1, 2, 1], 300)
    y = (rng.random(300)[:, None] > true.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    said = meta.soften(true, 1 / heat)
    found = meta.best_temperature(said, y)
    peer = minimize_scalar(lambda t: splits.log_loss_rows(y, meta.soften(said, np.exp(t)), clip=1e-300).mean(), method="bounded",
                           bounds=(np.log(meta.COLDEST), np.log(meta.HOTTEST)), options={"xatol": 1e-9})
    ours, theirs = (splits.log_loss_rows(y, meta.soften(said, t), clip=1e-300).mean() for t in (found, np.exp(peer.x)))
    assert ours <= theirs + 1e-9 and meta.COLDEST <= found <= meta.HOTTEST


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_nnls_shares_are_the_best_on_a_grid(seed, share):
    rng = np.random.default_rng(seed)
    parts = np.concatenate([rng.dirichlet([1, 2, 1], 400), rng.dirichlet([2, 1, 1], 400)], axis=1)
    true = share * parts[:, :3] + (1 - share) * parts[:, 3:]
    y = (rng.random(400)[:, None] > true.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    found = meta.nnls_shares(parts, y)
    assert (found >= 0).all() and found.sum() == pytest.approx(1)
    A, b = np.column_stack([parts[:, :3].ravel(), parts[:, 3:].ravel()]), np.eye(3)[y].ravel()
    grid = np.array([(u, v) for u in np.linspace(0, 1.2, 61) for v in np.linspace(0, 1.2, 61)])
    best = grid[((grid @ A.T - b) ** 2).sum(axis=1).argmin()]
    np.testing.assert_allclose(found, best / best.sum(), atol=0.04)


def test_the_regime_as_context_helps_where_it_should_and_falls_back():
    rng = np.random.default_rng(0)
    said = Said.of(np.concatenate([rng.dirichlet([3, 3, 3], 6000)] * 2, axis=1), rng.integers(0, 2, 6000))
    true = np.where(said.code[:, None] == 1, [0.7, 0.2, 0.1], [0.1, 0.2, 0.7])
    y = (rng.random(6000)[:, None] > true.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    with_it, without = (meta.fit_blend(said, y, MetaSettings(context=c)) for c in ("regime", "none"))
    assert splits.log_loss_rows(y, with_it.predict(said)).mean() < splits.log_loss_rows(y, without.predict(said)).mean() - 0.1
    elsewhere = [Said(said.parts[:50], said.odds[:50], np.full(50, code)) for code in (-1, 3)]     # unknown, and known but never seen
    np.testing.assert_array_equal(*(with_it.predict(s) for s in elsewhere))
    shares = meta.fit_blend(said, y, MetaSettings(blend="nnls", context="regime")).weights
    np.testing.assert_array_equal(shares[3], shares[-1])


# --- the stack's place ------------------------------------------------------------------------------------------------

def test_the_model_used_is_the_one_that_earned_it():
    evaluation, chosen = OUTPUT.frames["evaluation"], OUTPUT.documents["summary"]["chosen"]
    assert (evaluation["chosen"] == evaluation["fold"].map(chosen)).all()
    joined = meta.with_regimes(meta.join_bases(BASE_PREDICTIONS), SAMPLES)
    for fold in chosen:
        known = joined[(SAMPLES["label_known_at"] <= YEARS.set_index("fold").loc[fold, "cutoff"]).to_numpy()[joined["row"]]]
        place = meta.earn_place(known, SAMPLES, MetaSettings())
        assert chosen[fold] == place.model and place.n_paths == 7
        assert (place.model == "stack") == (place.share >= 0.6)


def test_paths_cover_every_row_once_and_learn_from_no_neighbour(monkeypatch):
    """Each split's training labels end before its tested spans or begin after them; a path's loss is the mean over all rows."""
    joined = meta.with_regimes(meta.join_bases(BASE_PREDICTIONS), SAMPLES).iloc[:3000]
    seen = []
    monkeypatch.setattr(meta, "fit_blend", lambda said, y, *rest: seen.append(len(y)) or meta.pass_through("forest"))
    losses = meta.path_losses(joined, SAMPLES, MetaSettings())
    y = SAMPLES["label"].to_numpy(dtype=int)[joined["row"]]
    passed = splits.log_loss_rows(y, meta.pass_through("forest").predict(meta._said(joined))).mean()
    np.testing.assert_allclose(losses, np.full(7, passed), atol=1e-12)        # whatever the split, the same forecast: so each row counts once
    assert seen[0] == 3000 and len(seen) == 29 and max(seen[1:]) < 3000 * 6 / 8


def test_a_broken_blend_is_noticed_and_the_base_model_is_used(monkeypatch):
    """Red team: a blend that swaps sell and buy. It must not reach the evaluation."""
    right = meta.fit_blend
    monkeypatch.setattr(meta, "fit_blend", lambda *a, **k: Blend("logistic", right(*a, **k).weights[::-1]))
    output = meta.run(inputs_of(SAMPLES, BASE_PREDICTIONS), QUICK, SESSIONS[-1])
    assert set(output.documents["summary"]["chosen"].values()) == {"forest"} and output.models["model"].place_.share == 0
    assert meta.verdict(output).startswith("The stack does not earn its place, so the forest is used")
    frame = output.frames["evaluation"]
    assert splits.log_loss_rows(frame["label"], frame[list(PROBABILITIES)]).mean() < splits.log_loss_rows(frame["label"], frame[[f"forest_{c}" for c in CLASSES]]).mean() + 0.01
    assert output.frames["gains"].set_index("over").at["stack in every year", "gain"] > 0.1


@pytest.mark.parametrize("base", BASES)
def test_a_base_model_passes_through_to_1e_5(base):
    """Log-odds of the learner are those of the base model, over the temperature: what explains the base explains the learner."""
    rng = np.random.default_rng(1)
    parts = pd.DataFrame(np.concatenate([rng.dirichlet([1, 2, 1], 500), rng.dirichlet([1, 2, 1], 500)], axis=1).clip(2e-4, 1), columns=list(INPUTS))
    learner = MetaLearner()
    learner.blend_, learner.temperature_ = meta.pass_through(base), 1.7
    learner.feature_names_in_ = np.array(INPUTS)
    own = parts[[f"{base}_{c}" for c in CLASSES]]
    np.testing.assert_allclose(meta.log_odds(learner.predict_proba(parts)), meta.log_odds(own) / 1.7, atol=1e-5)


def test_too_few_sessions_are_no_evidence():
    joined = meta.with_regimes(meta.join_bases(BASE_PREDICTIONS), SAMPLES).head(12)
    place = meta.earn_place(joined, SAMPLES, MetaSettings())
    assert place.model in BASES and np.isnan(place.share) and place.n_paths == 0


# --- time ----------------------------------------------------------------------------------------------------------------

@settings(max_examples=3, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([2006, 2007, 2008]))
def test_nothing_after_a_cut_off_changes_what_was_said_up_to_it(seed, fold):
    """Labels known later, and features, volatilities and base predictions of later sessions: replaced by noise."""
    rng, cut = np.random.default_rng(seed), YEARS.set_index("fold").loc[fold, "cutoff"]
    late, unknown = (SAMPLES["session"] > cut).to_numpy(), (SAMPLES["label_known_at"] > cut).to_numpy()
    changed = SAMPLES.assign(label=np.where(unknown, rng.integers(0, 3, len(SAMPLES)), SAMPLES["label"]).astype("int8"),
                             x=np.where(late, rng.normal(size=len(SAMPLES)), SAMPLES["x"]).astype("float32"),
                             volatility_20=np.where(late, rng.random(len(SAMPLES)) + 0.1, SAMPLES["volatility_20"]).astype("float32"))
    again = meta.run(inputs_of(changed, bases_of(changed)), QUICK, SESSIONS[-1])
    columns = ["session", "symbol", "fold", *PROBABILITIES, "chosen", "volatility_tercile", *meta.SET_COLUMNS, "abstain"]
    before, after = (o.frames["evaluation"][lambda f: f["session"] <= cut][columns].reset_index(drop=True) for o in (OUTPUT, again))
    pd.testing.assert_frame_equal(before, after)
    assert len(before) and not OUTPUT.frames["evaluation"][columns].equals(again.frames["evaluation"][columns])
    state = [_as_of(s, cut) for s in (SAMPLES, changed)]
    assert state[0] == state[1]


def _as_of(samples: pd.DataFrame, cut: pd.Timestamp) -> str:
    """Digest of the learner, thresholds included, that would have been deployed at `cut`."""
    bases = bases_of(samples)
    raw = meta.stack_out_of_fold(bases, samples, YEARS, MetaSettings())
    joined = meta.with_regimes(meta.join_bases(bases), samples)
    tested = [fold for fold in sorted(raw.frame["fold"].unique()) if YEARS.set_index("fold").loc[fold, "test_start"] <= cut]
    chosen = meta.chosen_forecasts(joined, raw, samples, YEARS, meta.places(joined, samples, YEARS, tested, MetaSettings()))
    if chosen.empty:
        return ""
    _, tracked = meta.evaluate(samples, plan_of(samples), joined, chosen, meta.rule_of(MetaSettings()), cut)
    return MetaLearner().fit(bases, samples, cut, raw, tracked.state).content_digest()


def test_in_sample_predictions_are_refused():
    with pytest.raises(DataError, match="OutOfFold alone"):
        MetaLearner().fit({"forest": BASE_PREDICTIONS["forest"].frame, "boosting": BASE_PREDICTIONS["boosting"]}, SAMPLES, SESSIONS[-1])


# --- silence ----------------------------------------------------------------------------------------------------------------

def test_silence_is_the_set_that_holds_both_directions():
    frame = OUTPUT.frames["evaluation"]
    sets = frame[list(meta.SET_COLUMNS)].to_numpy()
    assert (frame["abstain"] == ((sets[:, 0] & sets[:, 2]) | ~sets.any(axis=1))).all()
    unready = frame["volatility_tercile"] == -1
    assert unready.any() and frame.loc[unready, "abstain"].all() and unready.mean() < 0.1
    held = frame.loc[~unready]
    hit = held[list(meta.SET_COLUMNS)].to_numpy()[np.arange(len(held)), held["label"]]
    assert abs(hit.mean() - 0.9) < 0.02
    assert OUTPUT.frames["coverage"]["coverage"].iloc[0] == pytest.approx(hit.mean())


def test_less_coverage_is_less_silence():
    frame = OUTPUT.frames["evaluation"]
    joined = meta.with_regimes(meta.join_bases(BASE_PREDICTIONS), SAMPLES)
    chosen = frame[["row", "fold", *PROBABILITIES, "chosen"]].sort_values("row", ignore_index=True)
    rule = meta.rule_of(MetaSettings(coverage=0.75))
    other, _ = meta.evaluate(SAMPLES, plan_of(SAMPLES), joined, chosen, rule, SESSIONS[-1])
    assert other["abstain"].mean() < frame["abstain"].mean()


def test_a_session_is_predicted_from_inputs_made_by_hand():
    """No samples, no history: names come from the models, thresholds from the learner."""
    learner = MetaLearner.from_bytes(OUTPUT.models["model"].to_bytes())
    inputs = inputs_of(SAMPLES, BASE_PREDICTIONS)
    del inputs["memory"]
    inputs["forest"], inputs["boosting"] = {"model": Steady()}, {"model": Steady()}
    found = meta.predict_session(inputs, learner, SESSIONS[-1])
    pd.testing.assert_frame_equal(found, OUTPUT.frames["predictions"])
    assert found["abstain"].iloc[1] and found["volatility_tercile"].iloc[1] == -1          # its volatility is not known
    assert not found["set_sell"].iloc[0] or not found["set_buy"].iloc[0] or found["abstain"].iloc[0]
    young = inputs | {"features": inputs["features"] | {"feature_set": {"warm_up": 3}}}
    assert meta.predict_session(young, learner, SESSIONS[-1])["abstain"].all()
    with pytest.raises(DataError, match=r"x.*forest|forest.*x"):
        meta.predict_session(inputs | {"features": inputs["features"] | {"features": inputs["features"]["features"].drop(columns="x")}}, learner, SESSIONS[-1])


# --- bytes ------------------------------------------------------------------------------------------------------------------

def test_thresholds_are_part_of_the_model():
    learner = OUTPUT.models["model"]
    document = json.loads(learner.to_bytes())
    assert document["conformal"]["levels"] == [0.9] and len(document["conformal"]["bounds"]) == 2
    document["conformal"]["thresholds"][0][0] += 1e-6
    assert MetaLearner.from_bytes(json.dumps(document).encode()).content_digest() != learner.content_digest()


@pytest.mark.parametrize("change", [
    {"weights": [[1.0]]}, {"blend": "average"}, {"temperature": -1.0}, {"temperature": None}, {"conformal": {}}, {"conformal": {"levels": [0.5], "bounds": [1, 2], "thresholds": [[0, 0, 0]]}},
    {"conformal": {"levels": [0.9], "bounds": [2, 1], "thresholds": [[0, 0, 0]]}}, {"place": None}, {"inputs": ["a"]}, {"kind": "forest"}, {"settings": {"coverage": 2}}])
def test_other_bytes_are_refused(change):
    document = json.loads(OUTPUT.models["model"].to_bytes()) | change
    with pytest.raises(IntegrityError, match="no MetaLearner"):
        MetaLearner.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("choice", [{"blend": "nnls"}, {"context": "regime"}, {"blend": "nnls", "context": "regime"}])
def test_every_blend_runs_and_survives_its_bytes(choice):
    output = meta.run(inputs_of(SAMPLES, BASE_PREDICTIONS), Settings(splits={"bootstrap": 200}, meta=choice), SESSIONS[-1])
    learner = output.models["model"]
    again = MetaLearner.from_bytes(learner.to_bytes())
    X, regime = pd.DataFrame(np.tile([0.2, 0.5, 0.3], (3, 2)), columns=list(INPUTS)), ["normal", "crash", None]
    np.testing.assert_array_equal(again.predict_proba(X, regime), learner.predict_proba(X, regime))
    assert again.content_digest() == learner.content_digest()
    with pytest.raises(DataError, match="2 entries for 3 rows"):
        learner.predict_proba(X, ["normal", "crash"])
