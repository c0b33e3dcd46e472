"""Windows and recursions: only the window, missing stays missing, bit for bit, and the same as slow code."""
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import kernels as k

FLOATS = st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(math.nan), st.sampled_from([0.0, 1.0])), min_size=1, max_size=50)


def called(kernel, *arguments):
    out = np.empty_like(arguments[0])
    kernel(*arguments, out)
    return out


def column(values):
    return np.array(values, dtype=float)[:, None]


def naive(x, n, statistic):
    """`statistic` of each full window without a NaN, NaN elsewhere."""
    x = x[:, 0]
    return np.array([statistic(x[t - n + 1: t + 1]) if t >= n - 1 and not np.isnan(x[t - n + 1: t + 1]).any() else np.nan for t in range(len(x))])


def straight(w):
    time = np.arange(len(w)) - (len(w) - 1) / 2
    return (time * w).sum() / (time * time).sum()


@settings(max_examples=150, deadline=None)
@given(FLOATS, st.integers(2, 55))
def test_windows_equal_naive_ones(values, n):
    x = column(values)
    size = np.nanmax(np.abs(x)) + 1 if not np.isnan(x).all() else 1
    cases = {
        "sum": (called(k.window_sum, x, n), np.sum, 1e-9 * size), "max": (called(k.window_max, x, n, 1.0), np.max, 0), "min": (called(k.window_max, x, n, -1.0), np.min, 0),
        "var": (called(k.window_var, x, n), lambda w: w.var(ddof=1), 1e-9 * size**2), "slope": (called(k.window_slope, x, n), straight, 1e-8 * size),
        "age": (called(k.window_age, x, n), lambda w: w[::-1].argmax() / (n - 1), 0),
        "percentile": (called(k.window_percentile, x, n), lambda w: ((w[:-1] < w[-1]) + 0.5 * (w[:-1] == w[-1])).mean(), 1e-12),
        "quantile": (called(k.window_quantile, x, n, 0.3), lambda w: np.quantile(w, 0.3), 1e-12 * size),
        "deviation": (called(k.window_deviation, x, called(k.window_sum, x, n) / n, n), lambda w: np.abs(w - w.mean()).mean(), 1e-9 * size),
    }
    for name, (ours, statistic, atol) in cases.items():
        np.testing.assert_allclose(ours[:, 0], naive(x, n, statistic), rtol=1e-9, atol=atol, err_msg=name)


@settings(max_examples=100, deadline=None)
@given(FLOATS, FLOATS, st.integers(2, 30))
def test_covariance_equals_naive_one(a, b, n):
    size = min(len(a), len(b))
    x, z = column(a[:size]), column(b[:size])
    both = np.hstack([x, z])
    ours = called(k.window_cov, x, z, n)[:, 0]
    expected = [np.cov(w.T)[0, 1] if len(w) == n and not np.isnan(w).any() else np.nan for w in (both[max(t - n + 1, 0): t + 1] for t in range(size))]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-6 * 1e3)
    correlation = called(k.correlation, called(k.window_cov, x, z, n), called(k.window_var, x, n), called(k.window_var, z, n))
    assert np.nanmax(np.abs(correlation), initial=0) <= 1


WINDOWS = {
    "sum": lambda x: called(k.window_sum, x, 7), "max": lambda x: called(k.window_max, x, 7, 1.0), "var": lambda x: called(k.window_var, x, 7),
    "cov": lambda x: called(k.window_cov, x, x**2, 7), "moment": lambda x: called(k.window_moment, x, 7, 4), "slope": lambda x: called(k.window_slope, x, 7),
    "quantile": lambda x: called(k.window_quantile, x, 7, 0.8), "age": lambda x: called(k.window_age, x, 7), "percentile": lambda x: called(k.window_percentile, x, 7), "lag": lambda x: called(k.shift, x, 6),
}
OTHERS = {
    "recursion": lambda x: called(k.recursive_mean, x, 0.3, 3, 1), "weekly": lambda x: called(k.recursive_mean, x, 0.3, 2, 5),
    "run": lambda x: called(k.run_length, np.sign(x - 1), 4), "sar": lambda x: called(k.parabolic_sar, x * 1.01, x * 0.99, 0.02, 0.2),
    "supertrend": lambda x: called(k.supertrend, x, np.full_like(x, 0.03), x), "swing": lambda x: called(k.swing, x, 0),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_depends_on_its_bars_alone_to_the_last_bit(name):
    """Huge values and NaN before the window change nothing, unlike with running sums."""
    x = np.exp(np.random.default_rng(0).normal(0, 0.01, (120, 5)).cumsum(axis=0))
    clean = WINDOWS[name](x)
    for dirt in (1e12, np.nan, -1e-9):
        dirty = x.copy()
        dirty[:63] = dirt
        np.testing.assert_array_equal(WINDOWS[name](dirty)[69:], clean[69:])


@pytest.mark.parametrize("name", [*WINDOWS, *OTHERS])
def test_nothing_after_t_and_no_other_symbol_matters(name):
    kernel = {**WINDOWS, **OTHERS}[name]
    draw = np.random.default_rng(1)
    x = np.exp(draw.normal(0, 0.01, (150, 19)).cumsum(axis=0))
    x[draw.random(x.shape) < 0.02] = np.nan
    whole = kernel(x)
    for cut in (3, 40, 77, 149):
        np.testing.assert_array_equal(kernel(x[:cut].copy()), whole[:cut])
        later = x.copy()
        later[cut:] = draw.normal(5, 2, later[cut:].shape)
        np.testing.assert_array_equal(kernel(later)[:cut], whole[:cut])
    for b in (0, 7, 18):
        np.testing.assert_array_equal(kernel(x[:, b:b + 1].copy())[:, 0], whole[:, b])


def test_a_test_that_cannot_fail_is_none():
    """The two tests above see a running sum and a centred window."""
    x = np.exp(np.random.default_rng(0).normal(0, 0.01, (120, 5)).cumsum(axis=0))
    dirty = x.copy()
    dirty[:63] = 1e12
    running = [np.cumsum(v, axis=0)[69:] - np.cumsum(v, axis=0)[62:-7] for v in (x, dirty)]
    assert (running[0] != running[1]).any()
    centred = pd.DataFrame(x).rolling(5, center=True).mean().to_numpy()
    assert not np.array_equal(pd.DataFrame(x[:77]).rolling(5, center=True).mean().to_numpy()[-2:], centred[75:77], equal_nan=True)


def test_missing_bars_hold_a_recursion_and_leave_a_window():
    x = np.random.default_rng(2).normal(size=(60, 1))
    holes = x.copy()
    holes[[10, 11, 30]] = np.nan
    packed = called(k.recursive_mean, np.delete(x, [10, 11, 30], axis=0), 0.2, 4, 1)
    with_holes = called(k.recursive_mean, holes, 0.2, 4, 1)
    np.testing.assert_array_equal(np.delete(with_holes, [10, 11, 30], axis=0), packed)
    assert np.isnan(with_holes[[10, 11, 30]]).all()
    assert np.flatnonzero(np.isnan(called(k.window_sum, holes, 5)[4:, 0])).tolist() == [*range(6, 12), *range(26, 31)]


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 0)])
def test_empty_and_tiny_blocks(shape):
    x = np.ones(shape)
    for kernel in (*WINDOWS.values(), *OTHERS.values()):
        assert kernel(x).shape == shape


def test_constant_series_have_no_variance_and_no_shape():
    x = np.full((40, 2), 0.1)
    assert (called(k.window_var, x, 20)[19:] == 0).all() and np.isnan(called(k.window_moment, x, 20, 3)).all()
    assert (called(k.window_age, x, 20)[19:] == 0).all() and (called(k.window_percentile, x, 20)[19:] == 0.5).all()
