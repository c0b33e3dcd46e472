"""The expressions of the features in plain pandas, one symbol at a time: an independent implementation, and the benchmark's peer.

Every operation of the language is written again with what pandas offers (rolling, ewm, shift, rank), state machines as plain loops; common
sub-expressions are computed once, as a careful author would. Nothing of `mltrader.kernels` is used.
"""
import math

import numpy as np
import pandas as pd


def sar(high, low, step, limit):
    """Wilder's parabolic stop and reverse, bar by bar."""
    out = [math.nan] * len(high)
    rising = high[1] - high[0] >= low[0] - low[1]
    stop, extreme, speed = (low[0], high[1], step) if rising else (high[0], low[1], step)
    for t in range(1, len(high)):
        if rising and low[t] <= stop:
            rising, stop, extreme, speed = False, max(extreme, high[t - 1], high[t]), low[t], step
            out[t] = stop
        elif not rising and high[t] >= stop:
            rising, stop, extreme, speed = True, min(extreme, low[t - 1], low[t]), high[t], step
            out[t] = stop
        else:
            out[t] = stop
            if rising and high[t] > extreme:
                extreme, speed = high[t], min(speed + step, limit)
            elif not rising and low[t] < extreme:
                extreme, speed = low[t], min(speed + step, limit)
        stop = stop + speed * (extreme - stop)
        stop = min(stop, low[t - 1], low[t]) if rising else max(stop, high[t - 1], high[t])
    return out


def supertrend(middle, band, close):
    """The band that the close has not crossed, bar by bar."""
    out, rising, lower, upper, before = [], True, None, None, None
    for m, width, c in zip(middle, band, close, strict=True):
        if math.isnan(m) or math.isnan(width):
            out.append(math.nan)
            continue
        low, high = m - width, m + width
        if lower is not None:
            low = max(low, lower) if before > lower else low
            high = min(high, upper) if before < upper else high
        lower, upper, before = low, high, c
        rising = c >= lower if rising else c > upper
        out.append(lower if rising else upper)
    return out


def swing(high, which):
    """Latest (0) and previous (1) 5-bar fractal, and bars since the latest (2), known two bars later."""
    out, peaks = [], []
    for t in range(len(high)):
        if t >= 4 and high[t - 2] > max(high[t - 4], high[t - 3]) and high[t - 2] >= max(high[t - 1], high[t]):
            peaks.append(t - 2)
        top = int(np.argmax(high[: t + 1])) if not peaks else 0  # before the first swing: the highest so far
        last = peaks[-1] if peaks else top
        older = peaks[-2] if len(peaks) > 1 else (peaks[0] if peaks else top)
        out.append(math.nan if t < 4 else (high[last], high[older], min(t - last, 60))[which])
    return out


def run_length(sign, longest):
    """Signed length of the run of equal signs, vectorised."""
    new = sign != sign.shift()
    length = sign.groupby(new.cumsum()).cumcount() + 1
    known = sign.notna().rolling(longest).sum() == longest
    return (length * sign).clip(-longest, longest).where(known)


def moment(x, n, power):
    """Population skewness or excess kurtosis from pandas' sample versions."""
    if power == 3:
        return x.rolling(n).skew() * (n - 2) / math.sqrt(n * (n - 1))
    return (x.rolling(n).kurt() * (n - 2) * (n - 3) / (n - 1) - 6) / (n + 1)


def recursion(x, alpha, least, step):
    """Exponential mean of every `step`-th known bar."""
    def smooth(part):
        return part.ewm(alpha=alpha, adjust=False, ignore_na=True, min_periods=least).mean().where(part.notna())

    return smooth(x) if step == 1 else x.groupby(np.arange(len(x)) % step, group_keys=False).apply(smooth).sort_index()


TIME = {}


def slope(x, n):
    """Least-squares slope as a covariance with time."""
    time = TIME.setdefault(len(x), pd.Series(np.arange(len(x), dtype=float)))
    return x.rolling(n).cov(time) / (n * (n + 1) / 12)


OPERATIONS = {
    "add": lambda a, p: a[0] + a[1], "subtract": lambda a, p: a[0] - a[1], "multiply": lambda a, p: a[0] * a[1],
    "maximum": lambda a, p: np.maximum(a[0], a[1]), "minimum": lambda a, p: np.minimum(a[0], a[1]), "log": lambda a, p: np.log(a[0]),
    "sqrt": lambda a, p: np.sqrt(a[0]), "absolute": lambda a, p: a[0].abs(), "sign": lambda a, p: np.sign(a[0]),
    "above": lambda a, p: (a[0] > a[1]).astype(float).where((a[0] - a[1]).notna()), "quotient": lambda a, p: (a[0] / a[1]).where(a[1] > 0),
    "lag": lambda a, p: a[0].shift(p[0]), "total": lambda a, p: a[0].rolling(p[0]).sum(), "var": lambda a, p: a[0].rolling(p[0]).var(),
    "cov": lambda a, p: a[0].rolling(p[0]).cov(a[1]),
    "corr": lambda a, p: (a[0] / np.sqrt(a[1] * a[2])).clip(-1, 1).where(a[1] * a[2] > 0),
    "moment": lambda a, p: moment(a[0], *p), "slope": lambda a, p: slope(a[0], *p),
    "highest": lambda a, p: a[0].rolling(p[0]).max() if p[1] > 0 else a[0].rolling(p[0]).min(),
    "age": lambda a, p: a[0].rolling(p[0]).apply(lambda w: w[::-1].argmax() / (len(w) - 1), raw=True),
    "percentile": lambda a, p: (a[0].rolling(p[0]).rank() - 1) / (p[0] - 1),
    "quantile": lambda a, p: a[0].rolling(p[0]).quantile(p[1]),
    "deviation": lambda a, p: a[0].rolling(p[0]).apply(lambda w: np.abs(w - w.mean()).mean(), raw=True),
    "recursion": lambda a, p: recursion(a[0], *p), "streak": lambda a, p: run_length(a[0], *p),
    "sar": lambda a, p: pd.Series(sar(a[0].tolist(), a[1].tolist(), *p)), "swing": lambda a, p: pd.Series(swing(a[0].to_numpy(), *p)),
    "supertrend": lambda a, p: pd.Series(supertrend(*(x.tolist() for x in a))),
}


def evaluate(node, bars, known):
    """A node over the bars of one symbol (columns of floats, default index); `known` remembers what was computed."""
    if node not in known:
        if node.op == "number":
            known[node] = node.params[0]
        elif node.op == "column":
            known[node] = bars[node.params[0]].shift(node.params[1])
        else:
            known[node] = OPERATIONS[node.op]([evaluate(arg, bars, known) for arg in node.args], node.params)
    return known[node]


def features(expressions, bars):
    """All expressions over the bars of one symbol; a DataFrame with one column each."""
    known = {}
    with np.errstate(all="ignore"):
        return pd.concat([evaluate(e, bars, known) for e in expressions], axis=1, keys=range(len(expressions)))
