"""Markets of which the truth is known: what can be predicted in them, and what cannot.

Each function is pure: the same kind, seed, size and path give the same market. A *path* is another draw of the same world: its constants (betas, volatilities of the names) stay, its shocks are
new; so a long second path says what a model is worth there. All prices are closes; the volume says nothing, but for the kinds in which something is planted.

iid          returns of all names are independent, and alike over names and time; the VIX is independent of them. Nothing can be predicted.
iid common   the same with a common factor, which makes names move together (correlation 0.2), and a drift: sessions count, not rows.
garch        GARCH(1,1) for a common factor and for each name, each with a level that switches between a calm and a stormy state, and a VIX that knows the factor's volatility. Volatility can be predicted;
             direction cannot.
garch drift  the same, with a drift in proportion to each name's beta: who holds more beta earns more, which is no edge.
bootstrap    blocks of the packaged stocks' real sessions, whole cross-sections with the VIX of the day. Every session's returns bear a random sign, the same for all names: volatility, tails and
             correlations are real; direction is a coin, also within a block.
planted      iid, and each name's next return has a mean in proportion to the trend of its volume (`SIGNAL`), which says nothing else. What the trend's rank correlation with the h-session return
             is (the IC), can be chosen.
break        garch; from one session on, the mean return of a name over a label's horizon is higher by one standard deviation of that return, which no feature has ever told.
"""
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

DAY, YEAR = "datetime64[us]", 252
SIGNAL, SHORT, LONG = "volume_trend_20_120", 20, 120  # the feature ln(mean(v, 20) / mean(v, 120)) carries what is planted
PERSISTENCE = 0.80  # of the signal over the sessions of a label, on average: with it an IC is turned into a coefficient, roughly; the IC attained is measured
KINDS = ("iid", "iid common", "garch", "garch drift", "bootstrap", "planted", "break")


@dataclass(frozen=True)
class Spec:
    """What is drawn.

    Attributes
    ----------
    kind : one of KINDS
    seed : int
    symbols, sessions : int
    path : int
        0 is the history that the loop walks through; others are fresh draws of the same world.
    ic : float
        Of `planted`: the rank correlation aimed at.
    horizon : int
        Of the labels: of `planted` and `break`.
    broken : int
        Of `break`: the number of the first session after the break; -1: never.
    """

    kind: str
    seed: int
    symbols: int
    sessions: int
    path: int = 0
    ic: float = 0.0
    horizon: int = 14
    broken: int = -1


@dataclass(frozen=True, eq=False)
class World:
    """A market in the form in which the `market` task gives it, and `returns` and `signal` of shape (n_sessions, n_symbols); `signal` is None where nothing is planted."""

    spec: Spec
    panel: pd.DataFrame
    index: pd.DataFrame
    sectors: pd.DataFrame
    returns: np.ndarray
    signal: np.ndarray | None = None


def _draws(spec: Spec, what: str) -> np.random.Generator:
    """The random numbers for one thing; for `constants` the same on every path."""
    return np.random.default_rng([spec.seed, KINDS.index(spec.kind), 0 if what == "constants" else spec.path + 1, *what.encode()])


def heavy(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Student's t with 5 degrees of freedom, scaled to variance 1."""
    return rng.standard_t(5, size=shape) / math.sqrt(5 / 3)


def slow_vix(spec: Spec) -> np.ndarray:
    """A VIX around 18 that knows nothing of the returns: shape (n_sessions,)."""
    shocks, x = _draws(spec, "vix").standard_normal(spec.sessions), np.empty(spec.sessions)
    x[0] = shocks[0]
    for t in range(1, spec.sessions):
        x[t] = 0.97 * x[t - 1] + math.sqrt(1 - 0.97**2) * shocks[t]
    return 18 * np.exp(0.30 * x)


def iid(spec: Spec, share: float = 0.0, drift: float = 0.0, sigma: float = 0.012) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n_sessions, n_symbols) and VIX; `share` of the variance is common to all names, `drift` is the yearly mean return."""
    rng = _draws(spec, "returns")
    shocks = math.sqrt(1 - share) * heavy(rng, spec.sessions, spec.symbols) + math.sqrt(share) * heavy(rng, spec.sessions, 1)
    return sigma * shocks + drift / YEAR, slow_vix(spec)


def garch(spec: Spec, drift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns and VIX; `drift` is the yearly mean return of a name of beta 1."""
    constants, rng, n = _draws(spec, "constants"), _draws(spec, "returns"), spec.sessions
    beta, scale = constants.uniform(0.5, 1.5, spec.symbols), np.exp(constants.normal(0, 0.3, spec.symbols))
    common, own, turn = heavy(rng, n), heavy(rng, n, spec.symbols), rng.random((n, spec.symbols + 1))
    a, b, state = 0.15, 0.80, np.zeros(spec.symbols + 1, dtype=int)                # the last is the factor's
    out, vix, levels = np.empty((n, spec.symbols)), np.empty(n), np.array([[0.008**2, 0.020**2]] * spec.symbols + [[0.004**2, 0.009**2]])
    levels[:-1] *= scale[:, None] ** 2
    variance = levels[:, 0].copy()
    for t in range(n):
        state = np.where(turn[t] < np.where(state == 0, 1 / 90, 1 / 45), 1 - state, state)
        shock = np.sqrt(variance) * np.append(own[t], common[t])
        out[t] = beta * shock[-1] + shock[:-1]
        variance = (1 - a - b) * levels[np.arange(len(state)), state] + a * shock**2 + b * variance
        vix[t] = 100 * math.sqrt(YEAR * variance[-1])                              # of the next session's variance
    return out + drift / YEAR * beta, 2.0 * vix * np.exp(0.05 * rng.standard_normal(n))


def real_returns() -> tuple[np.ndarray, np.ndarray]:
    """Log returns of the packaged stocks over the sessions that all of them have, less each stock's mean, and the VIX of these sessions."""
    from mltrader import market
    from mltrader.config import Settings, home

    made = market.run({"cache": {"folder": home() / "cache"}}, Settings(), None).frames
    closes = made["panel"].pivot(index="session", columns="symbol", values="adj_close")
    closes = closes[closes.columns[closes.notna().mean() > 0.95]].dropna()
    vix = made["index"].set_index("session")["vix_close"].reindex(closes.index).ffill().bfill()
    returns = np.diff(np.log(closes.to_numpy()), axis=0)
    return returns - returns.mean(axis=0), vix.to_numpy()[1:]


def bootstrap(spec: Spec, real: tuple[np.ndarray, np.ndarray], block: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Returns and VIX from blocks of real sessions; the names are drawn once for the world."""
    returns, vix = real
    rng, names = _draws(spec, "returns"), _draws(spec, "constants").choice(returns.shape[1], spec.symbols, replace=False)
    starts = rng.integers(0, len(returns) - block, -(-spec.sessions // block))
    at = (starts[:, None] + np.arange(block)).ravel()[: spec.sessions]
    return returns[np.ix_(at, names)] * rng.choice([-1.0, 1.0], spec.sessions)[:, None], vix[at]


def trailing_mean(x: np.ndarray, n: int) -> np.ndarray:
    """Mean of the last `n` rows up to each row; NaN before there are so many."""
    sums = np.cumsum(x, axis=0)
    out = np.full(x.shape, np.nan)
    out[n - 1:] = (sums[n - 1:] - np.concatenate([np.zeros((1, x.shape[1])), sums[:-n]])) / n
    return out


def volumes(spec: Spec) -> np.ndarray:
    """Independent from session to session, shape (n_sessions, n_symbols)."""
    return 1e6 * np.exp(0.5 * _draws(spec, "volume").standard_normal((spec.sessions, spec.symbols)))


def signal_of(volume: np.ndarray) -> np.ndarray:
    """The trend of the volume, scaled to standard deviation 1; NaN before it is known."""
    trend = np.log(trailing_mean(volume, SHORT) / trailing_mean(volume, LONG))
    return trend / np.nanstd(trend)


def plant(returns: np.ndarray, signal: np.ndarray, ic: float, horizon: int) -> np.ndarray:
    """Returns whose mean follows the signal of the session before, so strongly that its correlation with the h-session return is about `ic`."""
    strength = ic / (PERSISTENCE * math.sqrt(horizon)) * returns.std()
    return returns + strength * np.vstack([np.zeros((1, returns.shape[1])), np.nan_to_num(signal[:-1])])


def draw(spec: Spec, real: tuple[np.ndarray, np.ndarray] | None = None) -> World:
    """The market of `spec`; `real` are `real_returns()`, which the kind `bootstrap` needs."""
    volume, signal = volumes(spec), None
    if spec.kind in ("iid", "iid common", "planted"):
        returns, vix = iid(spec, 0.2, 0.08) if spec.kind == "iid common" else iid(spec)
        if spec.kind == "planted":
            signal = signal_of(volume)
            returns = plant(returns, signal, spec.ic, spec.horizon)
    elif spec.kind == "bootstrap":
        returns, vix = bootstrap(spec, real or real_returns())
    else:
        returns, vix = garch(spec, 0.08 if spec.kind == "garch drift" else 0.0)
        if spec.kind == "break" and spec.broken >= 0:
            returns[spec.broken:] += returns[: spec.broken or None].std() / math.sqrt(spec.horizon)
    return framed(spec, returns, vix, volume, signal)


def framed(spec: Spec, returns: np.ndarray, vix: np.ndarray, volume: np.ndarray, signal: np.ndarray | None = None) -> World:
    """The frames of a market: weekdays from 2001 on, closes alone, an index of equal weights, two sectors."""
    n, k = returns.shape
    sessions = pd.bdate_range("2001-01-01", periods=n).to_numpy().astype(DAY)
    names = np.array([f"S{number:03d}" for number in range(k)])
    close = 50 * np.exp(np.cumsum(returns, axis=0))
    nothing, row = np.full(n * k, np.nan), np.repeat(np.arange(n), k)
    panel = pd.DataFrame({
        "session": sessions[row], "symbol": pd.array(np.tile(names, n), dtype="str"), "open": nothing, "high": nothing, "low": nothing, "close": close.ravel(), "adj_close": close.ravel(),
        "volume": volume.ravel(), "source": pd.array(["simulated"], dtype="str").take(np.zeros(n * k, dtype=int)), "available_at": pd.to_datetime(sessions[row]).tz_localize("UTC")})
    index = pd.DataFrame({"session": sessions, "index_close": 100 * np.cumprod(1 + np.expm1(returns).mean(axis=1)),
                          **dict.fromkeys(("vix_open", "vix_high", "vix_low", "vix_close"), vix), **dict.fromkeys(("rate_3m", "rate_2y", "rate_10y"), np.full(n, np.nan))})
    sectors = pd.DataFrame({"symbol": pd.array(names, dtype="str"), "sector": pd.array(["Energy" if i % 2 else "Financials" for i in range(k)], dtype="str")})
    return World(spec, panel, index, sectors, returns, signal)


def another_path(world: World, sessions: int, path: int = 1, real: tuple[np.ndarray, np.ndarray] | None = None) -> World:
    """A fresh draw of the same world, without its break."""
    return draw(replace(world.spec, sessions=sessions, path=path, broken=-1), real)
