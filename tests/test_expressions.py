"""The language of features: look-back derived right, parts shared, the same as pandas and as TA-Lib."""
import numpy as np
import pandas as pd
import pytest
import slow_features as slow
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import expressions as E
from mltrader import features as F
from mltrader.core import ConfigError


def walk(bars=900, symbols=3, seed=0):
    draw = np.random.default_rng(seed)
    close = 50 * np.exp(np.cumsum(draw.standard_t(4, (bars, symbols)) * 0.01, axis=0))
    open_ = close * np.exp(draw.normal(0, 0.004, close.shape))
    high = np.maximum(open_, close) * (1 + np.abs(draw.normal(0, 0.005, close.shape)) + 1e-4)
    low = np.minimum(open_, close) * (1 - np.abs(draw.normal(0, 0.005, close.shape)) - 1e-4)
    volume = np.exp(draw.normal(13, 0.5, close.shape))
    names = {"open": open_, "high": high, "low": low, "close": close, "adj_close": close, "volume": volume,
             "index_close": 1000 * np.exp(np.cumsum(draw.normal(0, 0.01, close.shape), axis=0)), "vix_close": 20 * np.exp(draw.normal(0, 0.1, close.shape))}
    return {(name, 0): np.ascontiguousarray(values) for name, values in names.items()}


def values_of(expressions, columns):
    out = {}
    E.evaluate(E.plan(tuple(expressions)), columns, lambda i, values: out.update({i: np.array(values)}))
    return [out[i] for i in range(len(expressions))]


# ---- random formulas ------------------------------------------------------------------------------------------------

X = E.column("adj_close")
LEAVES = st.sampled_from([X, E.log(X), E.column("volume"), E.log(X) - E.lag(E.log(X), 1)])


def grown(children):
    n = st.integers(2, 12)
    one = st.builds(lambda f, x, m: f(x, m), st.sampled_from([E.lag, E.mean, E.std, E.highest, E.lowest, E.slope, E.age_of_highest, E.percentile, lambda x, m: E.quantile(x, m, 0.2),
                                                             E.wilder, E.ema, E.skewness]), children, n)
    two = st.builds(lambda f, x, z: f(x, z), st.sampled_from([lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a - b, lambda a, b: a / b, E.maximum, E.above]),
                    children, children)
    return one | two | st.builds(lambda x, z, m: E.corr(x, z, m), children, children, n)


@settings(max_examples=120, deadline=None)
@given(st.recursive(LEAVES, grown, max_leaves=5))
def test_a_formula_has_no_value_before_its_periods(formula):
    """And where it has values they do not depend on what comes later, bit for bit."""
    columns = walk(140, 2)
    values, = values_of([formula], columns)
    assert np.isnan(values[: formula.periods - 1]).all()
    cut, = values_of([formula], {key: np.ascontiguousarray(v[:90]) for key, v in columns.items()})
    np.testing.assert_array_equal(cut, values[:90])
    assert formula.settled >= formula.periods and formula.inputs <= {"adj_close", "volume"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.recursive(LEAVES, grown, max_leaves=4), min_size=1, max_size=6))
def test_sharing_and_reused_memory_change_nothing(formulas):
    columns = walk(120, 2)
    together = values_of(formulas, columns)
    for formula, values in zip(formulas, together, strict=True):
        np.testing.assert_array_equal(values_of([formula], columns)[0], values)


# ---- all features against pandas ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def both():
    """All expressions of one symbol: kernels and pandas, float64."""
    columns = walk(1500, 1, seed=3)
    own = [f for f in F.FEATURES if f.scope == "symbol"]
    bars = pd.DataFrame({name: values[:, 0] for (name, _), values in columns.items()})
    return own, values_of([f.expression for f in own], columns), slow.features([f.expression for f in own], bars).to_numpy()


def test_every_feature_equals_pandas(both):
    """To 1e-5, after warm-up; pandas' running sums are the less exact side."""
    own, fast, expected = both
    for feature, ours, theirs in zip(own, fast, expected.T, strict=True):
        ours, theirs = ours[feature.warm_up:, 0], theirs[feature.warm_up:]
        known = ~np.isnan(theirs)
        assert known.mean() > 0.95 or "shadow" in feature.name, feature.name
        np.testing.assert_array_equal(np.isnan(ours), ~known, err_msg=feature.name)
        scale = np.maximum(np.abs(theirs[known]), np.std(theirs[known]))
        assert np.max(np.abs(ours[known] - theirs[known]) / scale) < 1e-5, feature.name


def test_pandas_has_its_first_values_where_the_graph_says(both):
    own, _, expected = both
    for feature, theirs in zip(own, expected.T, strict=True):
        assert np.flatnonzero(~np.isnan(theirs))[0] + 1 == feature.min_periods, feature.name


# ---- against TA-Lib -------------------------------------------------------------------------------------------------

def indicators():
    """(name, our expression, TA-Lib's call on open high low close volume), for what both have."""
    c, h, low_, v = F.CLOSE, F.HIGH, F.LOW, F.VOLUME
    plus, minus = F.directional(14)
    return [
        ("SMA 50", E.mean(c, 50), lambda o, h, lo, c, v: talib.SMA(c, 50)), ("EMA 26", E.ema(c, 26), lambda o, h, lo, c, v: talib.EMA(c, 26)),
        ("RSI 14", 100 * F.rsi(14), lambda o, h, lo, c, v: talib.RSI(c, 14)), ("ATR 14", F.ATR, lambda o, h, lo, c, v: talib.ATR(h, lo, c, 14)),
        ("NATR 14", 100 * F.ATR / c, lambda o, h, lo, c, v: talib.NATR(h, lo, c, 14)), ("TRANGE", F.TRUE_RANGE, lambda o, h, lo, c, v: talib.TRANGE(h, lo, c)),
        ("PLUS_DI 14", 100 * plus, lambda o, h, lo, c, v: talib.PLUS_DI(h, lo, c, 14)), ("MINUS_DI 14", 100 * minus, lambda o, h, lo, c, v: talib.MINUS_DI(h, lo, c, 14)),
        ("DX 14", 100 * E.absolute(F.dx(14)), lambda o, h, lo, c, v: talib.DX(h, lo, c, 14)),
        ("ADX 14", 100 * E.wilder(E.absolute(F.dx(14)), 14), lambda o, h, lo, c, v: talib.ADX(h, lo, c, 14)),
        ("CCI 20", 100 * F.cci(20), lambda o, h, lo, c, v: talib.CCI(h, lo, c, 20)), ("MFI 14", 100 * F.money_flow(14), lambda o, h, lo, c, v: talib.MFI(h, lo, c, v, 14)),
        ("STOCHF K 14", 100 * F.channel(14, h, low_), lambda o, h, lo, c, v: talib.STOCHF(h, lo, c, 14, 3)[0]),
        ("STOCHF D 14 3", 100 * E.mean(F.channel(14, h, low_), 3), lambda o, h, lo, c, v: talib.STOCHF(h, lo, c, 14, 3)[1]),
        ("WILLR 14", 100 * (F.channel(14, h, low_) - 1), lambda o, h, lo, c, v: talib.WILLR(h, lo, c, 14)),
        ("ULTOSC", 100 * (4 * F.pressure(7) + 2 * F.pressure(14) + F.pressure(28)) / 7, lambda o, h, lo, c, v: talib.ULTOSC(h, lo, c)),
        ("SAR", E.parabolic_sar(h, low_), lambda o, h, lo, c, v: talib.SAR(h, lo, 0.02, 0.2)),
        ("AROON up 25", 100 * (1 - E.age_of_highest(h, 26)), lambda o, h, lo, c, v: talib.AROON(h, lo, 25)[1]),
        ("AROON down 25", 100 * (1 - E.age_of_highest(-low_, 26)), lambda o, h, lo, c, v: talib.AROON(h, lo, 25)[0]),
        ("MACD", E.ema(c, 12) - E.ema(c, 26), lambda o, h, lo, c, v: talib.MACD(c)[0]),
        ("MACD signal", E.ema(E.ema(c, 12) - E.ema(c, 26), 9), lambda o, h, lo, c, v: talib.MACD(c)[1]),
        ("TRIX 10", 100 * (E.ema(E.ema(E.ema(c, 10), 10), 10) / E.lag(E.ema(E.ema(E.ema(c, 10), 10), 10), 1) - 1), lambda o, h, lo, c, v: talib.TRIX(c, 10)),
        ("VAR 20", E.var(c, 20) * (19 / 20), lambda o, h, lo, c, v: talib.VAR(c, 20)), ("STDDEV 60", E.std(c, 60) * (59 / 60) ** 0.5, lambda o, h, lo, c, v: talib.STDDEV(c, 60)),
        ("LINEARREG_SLOPE 20", E.slope(c, 20), lambda o, h, lo, c, v: talib.LINEARREG_SLOPE(c, 20)), ("CORREL 60", E.corr(h, v, 60), lambda o, h, lo, c, v: talib.CORREL(h, v, 60)),
        ("MAX 20", E.highest(h, 20), lambda o, h, lo, c, v: talib.MAX(h, 20)), ("MIN 20", E.lowest(low_, 20), lambda o, h, lo, c, v: talib.MIN(lo, 20)),
        ("ROCP 20", c / E.lag(c, 20) - 1, lambda o, h, lo, c, v: talib.ROCP(c, 20)), ("BOP", F.BODY / F.SPAN, lambda o, h, lo, c, v: talib.BOP(o, h, lo, c)),
        ("BBANDS upper 20", E.mean(c, 20) + E.std(c, 20) * (2 * (19 / 20) ** 0.5), lambda o, h, lo, c, v: talib.BBANDS(c, 20)[0]),
        ("SUM 30", E.total(v, 30), lambda o, h, lo, c, v: talib.SUM(v, 30)),
    ]


INDICATORS = indicators()


@pytest.fixture(scope="module")
def long_walk():
    columns = walk(3000, 1, seed=9)
    return columns, [np.ascontiguousarray(columns[name, 0][:, 0]) for name in ("open", "high", "low", "close", "volume")]


@pytest.mark.parametrize("name", [name for name, *_ in INDICATORS])
def test_equals_talib(name, long_walk):
    """To 1e-8 (relative), float64, once both have forgotten their different starts."""
    columns, arrays = long_walk
    expression, theirs = next((ours, call) for n, ours, call in INDICATORS if n == name)
    ours, = values_of([expression], columns)
    np.testing.assert_allclose(ours[1500:, 0], theirs(*arrays)[1500:], rtol=1e-8, atol=1e-8 if "CORREL" in name or "SLOPE" in name else 1e-9)


# ---- state machines forget their start ------------------------------------------------------------------------------

def test_turning_lines_forget_their_start():
    """200 starts on calm and wild walks: after TURNS bars no line of the three still knows where it began."""
    lines = [E.parabolic_sar(F.HIGH, F.LOW), E.supertrend((F.HIGH + F.LOW) / 2, (F.HIGH - F.LOW) * 3, F.CLOSE), *[E.swing_high(F.HIGH, w) for w in (0, 1, 2)]]
    columns = walk(1700, 40, seed=5)
    whole, longest = values_of(lines, columns), 0
    for start in (101, 222, 333, 444, 555):
        again = values_of(lines, {key: np.ascontiguousarray(v[start:]) for key, v in columns.items()})
        for full, part in zip(whole, again, strict=True):
            apart = ~((np.abs(part - full[start:]) <= 1e-9) | np.isnan(part))
            longest = max(longest, int(np.flatnonzero(apart.any(axis=1)).max(initial=0)) + 1)
    assert 10 < longest < E.TURNS, longest


# ---- errors and identity --------------------------------------------------------------------------------------------

def test_equal_formulas_are_one_node_and_different_ones_are_not():
    r = E.log(X) - E.lag(E.log(X), 1)
    assert E.std(r, 20) is E.std(E.log(X) - E.lag(E.log(X), 1), 20)
    different = [E.std(r, 20), E.std(r, 21), E.std(X, 20), E.mean(r, 20), E.wilder(r, 20), E.ema(r, 20), E.wilder(r, 20, 5), E.corr(r, X, 20), E.corr(X, r, 20),
                 E.highest(r, 20), E.lowest(r, 20), r + 1, r + 2, 1 - r, E.column("adj_close", 1), E.apply(np.abs, r), E.apply(np.exp, r)]
    assert len({node.digest for node in different}) == len(different)


def test_missing_column_is_named():
    with pytest.raises(ConfigError, match="`volume`"):
        values_of([E.mean(E.column("volume"), 5)], {("adj_close", 0): np.ones((9, 1))})


def test_apply_brings_any_function():
    doubled = E.apply(lambda a, b: a + b, X, E.lag(X, 2), longer=1)
    assert (doubled.periods, doubled.inputs) == (4, {"adj_close"})
    values, = values_of([doubled], {("adj_close", 0): np.arange(6.0)[:, None]})
    assert values[2:, 0].tolist() == [2, 4, 6, 8]
