"""The state models against independent implementations, and against the future."""
import warnings

import numpy as np
import pandas as pd
import pytest
from hmmlearn.hmm import GaussianHMM
from hypothesis import given, settings
from hypothesis import strategies as st
from jumpmodels.jump import JumpModel

from mltrader import switching as S
from mltrader.core import DataError


def two_markets(n=1600, seed=0):
    """Log returns that are calm and rising, or wild and falling, in spells."""
    draw = np.random.default_rng(seed)
    wild = np.zeros(n, bool)
    for start in range(150, n, 330):
        wild[start:start + int(draw.integers(30, 120))] = True
    return draw.standard_t(5, n) * np.where(wild, 0.019, 0.007) / 1.29 + np.where(wild, -0.0015, 0.0006)


def scaled(returns):
    x = S.downside_features(returns)
    x = x[np.isfinite(x).all(axis=1)]
    return np.clip((x - x.mean(axis=0)) / x.std(axis=0), -3, 3)


def peer(model_states, start, transition, mean, variance):
    """hmmlearn with given parameters; its priors switched off, so that its EM is maximum likelihood."""
    model = GaussianHMM(model_states, covariance_type="diag", init_params="", n_iter=1, tol=-np.inf, min_covar=0.0, covars_prior=0.0,
                        covars_weight=1.0, means_weight=0.0, startprob_prior=1.0, transmat_prior=1.0, implementation="scaling")
    model.startprob_, model.transmat_, model.means_ = start.copy(), transition.copy(), mean[:, None].copy()
    model.covars_ = variance[:, None].copy()
    return model


def parameters(n_states, seed):
    draw = np.random.default_rng(seed)
    transition = draw.dirichlet(np.ones(n_states), n_states) * 0.2 + 0.8 * np.eye(n_states)
    return draw.dirichlet(np.ones(n_states)), transition, draw.normal(0, 0.001, n_states), np.sort(draw.uniform(3e-5, 6e-4, n_states))


# ---- hidden Markov model ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n_states", [2, 3, 4])
def test_filter_and_likelihood_as_hmmlearn(n_states):
    returns, model = two_markets(700, n_states), parameters(n_states, n_states)
    other = peer(n_states, *model)
    filtered, likelihood = S.hmm_filter(returns, *model)
    assert likelihood == pytest.approx(other.score(returns[:, None]), rel=1e-11)
    for t in (0, 1, 2, 57, 311, 699):  # the posterior of a sample's last session is the filtered probability of it
        assert filtered[t] == pytest.approx(other.predict_proba(returns[:t + 1, None])[-1], abs=1e-10)


@pytest.mark.parametrize("n_states", [2, 3])
def test_em_steps_as_hmmlearn(n_states):
    returns, model = two_markets(900, 5), parameters(n_states, 7)
    other = peer(n_states, *model)
    for _ in range(25):
        S.em_step(returns, *model, 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other.fit(returns[:, None])
    start, transition, mean, variance = model
    assert start == pytest.approx(other.startprob_, abs=1e-9)
    assert transition == pytest.approx(other.transmat_, abs=1e-9)
    assert mean == pytest.approx(other.means_[:, 0], rel=1e-7, abs=1e-10)
    assert variance == pytest.approx(other.covars_[:, 0, 0], rel=1e-8)


def test_fit_is_as_likely_as_hmmlearn_from_many_starts():
    returns = two_markets(1600, 1)
    _, ours = S.fit_hmm(returns, 2)
    best = -np.inf
    for seed in range(8):
        other = peer(2, *parameters(2, seed))
        other.n_iter, other.tol = 400, 1e-4
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = max(best, other.fit(returns[:, None]).score(returns[:, None]))
    assert ours >= best - 0.05


def test_em_never_goes_down_and_states_are_sorted():
    returns = two_markets(800, 3)
    for n_states in (2, 3, 4):
        reached, model = [], S._begin(returns, n_states, 4.0)
        for _ in range(60):
            reached.append(S.em_step(returns, *model, 0.0))
        assert np.diff(reached).min() > -1e-8
        (start, transition, _, variance), _ = S.fit_hmm(returns, n_states)
        assert (np.diff(variance) >= 0).all() and start.sum() == pytest.approx(1) and transition.sum(axis=1) == pytest.approx(1)


# ---- jump model -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("penalty", "n_states"), [(0.0, 2), (5.0, 2), (50.0, 2), (20.0, 3), (10.0, 4)])
def test_jump_model_as_jumpmodels(penalty, n_states):
    x = scaled(two_markets(1000, 2))
    other = JumpModel(n_components=n_states, jump_penalty=penalty, n_init=40, random_state=0).fit(x, sort_by=None)
    starts = S.spread_rows(x, np.random.default_rng(0).random((40, n_states)))
    centroids, states, cost = S.fit_jump(x, penalty, starts)
    assert cost <= other.val_ * (1 + 1e-3) + 1e-9
    order = np.argsort(other.centers_[:, 0])
    path, value = S.best_path(S.squared_loss(x, other.centers_[order]), penalty)
    assert value == pytest.approx(other.val_, rel=1e-10)
    assert (order[path] == np.asarray(other.predict(x))).mean() == 1
    assert (order[S.online_path(S.squared_loss(x, other.centers_[order]), penalty)] == np.asarray(other.predict_online(x))).mean() == 1
    if n_states == 2 and abs(cost - other.val_) < 1e-8:
        assert centroids == pytest.approx(other.centers_[order], abs=1e-8)
        assert (order[states] == np.asarray(other.labels_)).all() or (states == np.asarray(other.labels_)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0, 9), min_size=3, max_size=3), min_size=1, max_size=7), st.floats(0, 8))
def test_paths_by_enumeration(rows, penalty):
    """The best of all paths, and online: the end of the best path of each beginning."""
    loss = np.array(rows)
    states, cost = S.best_path(loss, penalty)

    def price(path):
        return loss[np.arange(len(path)), path].sum() + penalty * np.count_nonzero(np.diff(path))

    every = np.array(np.meshgrid(*[range(3)] * len(loss))).reshape(len(loss), -1).T
    assert cost == pytest.approx(min(price(p) for p in every)) and price(states) == pytest.approx(cost)
    for t, state in enumerate(S.online_path(loss, penalty)):
        beginnings = np.unique(every[:, :t + 1], axis=0)
        ends = [min(price(p) for p in beginnings if p[-1] == k) for k in range(3)]
        assert ends[state] == pytest.approx(min(ends))


def test_a_fit_is_a_function_of_its_arguments():
    x = scaled(two_markets(600, 4))
    starts = S.spread_rows(x, np.random.default_rng(1).random((5, 2)))
    before = x.copy(), starts.copy()
    first, second = S.fit_jump(x, 20.0, starts), S.fit_jump(x, 20.0, starts)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(x, before[0]) and np.array_equal(starts, before[1])


def test_constant_and_tiny_series():
    flat = np.zeros(400)
    x = S.downside_features(flat)[60:]
    refits = np.array([100, 200])
    jump = S.jump_states(x, refits, 300, np.array([0.0, 10.0]), np.random.default_rng(0).random((3, 2)))
    hmm, filtered = S.hmm_states(flat, refits, 300, 2)
    assert (jump[:, :100] == -1).all() and (jump[:, 100:] >= 0).all() and (hmm[100:] >= 0).all() and np.isfinite(filtered[100:]).all()
    assert len(S.downside_features(np.zeros(0))) == 0 and len(S.refit_rows(pd.Series(pd.to_datetime([])), 6, 10)) == 0


def test_gaps_are_refused():
    returns = two_markets(300)
    returns[7] = np.nan
    with pytest.raises(DataError, match="returns hold 1 missing or infinite values, the first in row 7"):
        S.hmm_states(returns, np.array([100]), 200, 2)
    with pytest.raises(DataError, match="features hold"):
        S.jump_states(S.downside_features(two_markets(300)), np.array([100]), 200, np.array([5.0]), np.full((1, 2), 0.5))
    for refits in ([300], [0, 50], [90, 80]):
        with pytest.raises(DataError, match="rising row numbers"):
            S.hmm_states(two_markets(300), np.array(refits), 200, 2)


# ---- the future -------------------------------------------------------------------------------------------------------

DAYS = pd.Series(pd.bdate_range("2004-01-05", periods=1200).as_unit("us"))


def states_of(returns, days):
    """Chosen jump states and HMM states of a whole history, as the labeler makes them."""
    x = S.downside_features(returns)
    keep = np.isfinite(x).all(axis=1)
    days, returns, x = days[keep], returns[keep], x[keep]
    refits = S.refit_rows(days, 3, 250)
    jump = S.jump_states(x, refits, 500, np.array([5.0, 20.0, 60.0]), np.random.default_rng(0).random((4, 2)))
    net, _ = S.timed_returns(np.expm1(returns), jump == 0, 10.0)
    return S.spliced(jump, S.choose_by_past(net, refits, 400, 100), refits), S.hmm_states(returns, refits, 500, 2)[0]


def leaks(cuts=(300, 333, 400, 555, 640, 641, 800, 1000, 1100)):
    """Cuts at which the future changes a state of the past, for each model."""
    returns, found = two_markets(1200, 6), [0, 0]
    whole, draw = states_of(returns, DAYS), np.random.default_rng(3)
    for number, cut in enumerate(cuts):
        if number % 2:
            changed = states_of(np.r_[returns[:cut], draw.normal(0, 0.05, 1200 - cut)], DAYS)
        else:
            changed = states_of(returns[:cut], DAYS[:cut])
        for i in range(2):
            n = len(whole[i]) - (1200 - cut)
            found[i] += not np.array_equal(changed[i][:n], whole[i][:n])
    return found


def test_no_state_knows_the_future():
    assert leaks() == [0, 0]


def hindsight_path(loss, penalty):
    return S.best_path(loss, penalty)[0]


def smoothed(returns, *model):
    """Posterior instead of filtered probabilities."""
    return peer(len(model[0]), *model).predict_proba(returns[:, None]), 0.0


def best_of_all_time(net, refits, lookback, least):
    return np.full(len(refits), S.sharpe(net[:, refits[:1].sum():]).argmax())


@pytest.mark.parametrize(("name", "leak", "model"), [
    ("online_path", hindsight_path, 0), ("hmm_filter", smoothed, 1), ("choose_by_past", best_of_all_time, 0),
], ids=["Viterbi path", "smoothed probabilities", "penalty chosen in hindsight"])
def test_planted_leaks_are_caught(monkeypatch, name, leak, model):
    monkeypatch.setattr(S, name, leak)
    assert leaks()[model] > 0


def test_a_fit_that_sees_past_its_refit_is_caught(monkeypatch):
    """Each window ends a month after the session in which it is said to be fitted."""
    honest = S.fit_hmm
    returns = two_markets(1200, 6)
    returns = returns[np.isfinite(S.downside_features(returns)).all(axis=1)]

    def late(seen, n_states):
        at = len(seen) + np.flatnonzero(returns == seen[0])[0] if seen[0] in returns else len(seen)
        return honest(np.r_[seen, returns[at:at + 21]], n_states)

    monkeypatch.setattr(S, "fit_hmm", late)
    draw, whole = np.random.default_rng(1), S.hmm_states(returns, np.array([300, 500, 700]), 400, 2)[0]
    returns = np.r_[returns[:510], draw.normal(0, 0.05, len(returns) - 510)]
    assert not np.array_equal(S.hmm_states(returns, np.array([300, 500, 700]), 400, 2)[0][:510], whole[:510])


def test_states_do_not_depend_on_where_an_old_history_begins():
    returns = two_markets(1200, 8)
    whole = S.hmm_states(returns, S.refit_rows(DAYS, 3, 250), 400, 2)[0]
    refits = S.refit_rows(DAYS[200:], 3, 250)
    later = S.hmm_states(returns[200:], refits, 400, 2)[0]
    assert np.array_equal(later[700:], whole[900:])


# ---- timing -----------------------------------------------------------------------------------------------------------

@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-0.2, 0.2), st.booleans()), min_size=4, max_size=30), st.floats(0, 50))
def test_timing_one_session_at_a_time(rows, cost):
    simple, invested = np.array([r for r, _ in rows]), np.array([i for _, i in rows])
    net, position = S.timed_returns(simple, invested, cost)
    for t in range(2, len(rows)):
        held, before = float(invested[t - 2]), float(invested[t - 3]) if t > 2 else float(invested[0])
        assert position[t] == held and net[t] == pytest.approx(held * simple[t] - cost / 1e4 * abs(held - before), abs=1e-12)
    assert (net[:2] == 0).all()
