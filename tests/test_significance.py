"""The budget of a reign, bounds from few blocks, and the bootstrap beneath them, against independent ones."""
import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import StationaryBootstrap
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t
from statsmodels.stats.multitest import multipletests

from mltrader import significance
from mltrader.core import ConfigError, DataError
from mltrader.splits import Interval, session_interval


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(1e-4, 0.2), st.integers(1, 60))
def test_no_reign_spends_more_than_twice_its_budget(alpha, horizon):
    spent = np.array([significance.spent(look, alpha, horizon) for look in range(1, 2000)])
    assert (np.diff(spent) <= 0).all() and (spent > 0).all()
    assert spent[:horizon].sum() == pytest.approx(alpha)
    rest = alpha / horizon * horizon**2 / 1999  # what all looks after the 1,999th may spend, at most
    assert spent[horizon:].sum() + rest <= alpha * (1 + 1e-9)


@pytest.mark.parametrize(("look", "horizon"), [(0, 24), (-1, 24), (1, 0)])
def test_a_look_that_nobody_counted_is_refused(look, horizon):
    with pytest.raises(ConfigError, match="begin at 1"):
        significance.spent(look, 0.025, horizon)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.floats(-0.1, 0.1), st.floats(1e-4, 0.1), st.integers(2, 300), st.floats(-0.05, 0.05), st.floats(1e-4, 0.4))
def test_bound_and_p_value_are_one_statement(estimate, half, blocks, limit, alpha):
    found = Interval(estimate, estimate - half, estimate + half, 900, 300, blocks)
    low, p = significance.lower_bound(found, alpha, 0.05), significance.p_above(found, limit, 0.05)
    assert 0 <= p <= 1
    if abs(low - limit) > 1e-9 and abs(p - alpha) > 1e-9:
        assert (low > limit) == (p < alpha)
    assert significance.lower_bound(found, 0.025, 0.05) == pytest.approx(found.low)  # the interval's own bound
    assert low == pytest.approx(estimate - t.ppf(1 - alpha, blocks - 1) * half / t.ppf(0.975, blocks - 1))


def test_what_was_not_measured_shows_nothing():
    nan = float("nan")
    for found in (Interval(nan, nan, nan, 0, 0, 0), Interval(0.1, nan, nan, 9, 3, 1), Interval(nan, 0.1, 0.2, 9, 3, 8)):
        assert significance.p_above(found, 0.0, 0.05) == 1.0
        assert not significance.lower_bound(found, 0.01, 0.05) > 0


@settings(max_examples=20, deadline=None, derandomize=True)  # the peer collects garbage in each call
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_holm_against_statsmodels(p):
    np.testing.assert_allclose(significance.holm(p), multipletests(p, method="holm")[1], atol=1e-12)


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_the_session_bootstrap_agrees_with_the_stationary_one(memory):
    """Whole sessions of a paired difference, with and without memory; the interval of arch's stationary bootstrap of session means, widened alike."""
    rng, sessions, names, horizon = np.random.default_rng(5), 1500, 6, 5
    shock, mean = rng.normal(0, 0.02, sessions), np.zeros(sessions)
    for i in range(1, sessions):
        mean[i] = memory * mean[i - 1] + shock[i]
    rows = pd.DataFrame({"session": np.repeat(pd.bdate_range("2015-01-01", periods=sessions), names), "value": np.repeat(mean, names) + rng.normal(0, 0.05, sessions * names)})
    ours = session_interval(rows, "value", horizon, 2000, 0.05, 1)
    by_session = rows.groupby("session")["value"].mean().to_numpy()
    low, high = StationaryBootstrap(2 * horizon, by_session, seed=3).conf_int(np.mean, reps=2000, method="percentile", size=0.95).ravel()
    wider = t.ppf(0.975, ours.n_blocks - 1) / 1.959964
    assert ours.estimate == pytest.approx(by_session.mean())
    assert (ours.high - ours.low) == pytest.approx((high - low) * wider, rel=0.12)


def test_coverage_of_a_bound_from_few_blocks():
    """Eight blocks, labels of five sessions that overlap: a bound at 2.5 % lies above the truth about as often as it says, not four times as often."""
    rng, above = np.random.default_rng(8), 0
    for world in range(400):
        steps = rng.normal(0, 1, 8 * 10 + 4)
        value = np.convolve(steps, np.ones(5), "valid")
        rows = pd.DataFrame({"session": pd.bdate_range("2015-01-01", periods=len(value)), "value": value})
        found = session_interval(rows, "value", 5, 400, 0.05, world)
        above += significance.lower_bound(found, 0.025, 0.05) > 0
    assert above / 400 < 0.07


def test_superior_needs_enough_sessions_and_passes_over_copies():
    rng = np.random.default_rng(1)
    base = pd.Series(rng.normal(1, 0.1, 300))
    with pytest.raises(DataError, match="at least one"):
        significance.superior(pd.DataFrame({"champion": base}), "champion", 5, 200, 0.05, 0)
    with pytest.raises(DataError, match="over 19 whole sessions"):
        significance.superior(pd.DataFrame({"champion": base[:19], "a": base[:19] - 1}), "champion", 5, 200, 0.05, 0)
    frame = pd.DataFrame({"champion": base, "copy": base, "better": base - 0.05 + rng.normal(0, 0.01, 300)})
    frame.loc[5, "better"] = np.nan
    found = significance.superior(frame, "champion", 5, 200, 0.05, 0)
    assert (found["better"], found["challengers"], found["n_sessions"]) == (["better"], 2, 299)
    assert found == significance.superior(frame, "champion", 5, 200, 0.05, 0)
