"""The bookkeeping against a clerk who writes down every order, against the engine `bt`, and the ratios against empyrical."""
import bt
import empyrical
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import portfolio
from mltrader.config import BacktestSettings
from mltrader.core import DataError
from mltrader.portfolio import Bars, simulate

FREE = BacktestSettings(cost_bps=0, slippage_bps=0, borrow_bps=0, max_weight=10, max_exposure=10)
ASK = {"horizon": 14, "n_boot": 200, "level": 0.05, "seed": 1}


def clerk(weights, close, fill, rate, give_up, s):
    """Event by event, in shares and money: carry, orders, fills, the cash after each; shares nothing with the module.

    Returns
    -------
    equity : list of float, one a session
    fills : list of (session, symbol, shares, price, cost)
    """
    n, cost_rate = close.shape[1], (s.cost_bps + s.slippage_bps) / 1e4
    shares, mark, away, cash, equity, fills = [0.0] * n, [None] * n, [0] * n, 1.0, [], []
    for t in range(len(close)):
        borrowed = sum(max(-shares[i] * mark[i], 0.0) for i in range(n) if shares[i])
        cash += cash * rate[t] - borrowed * s.borrow_bps / 1e4 / 252
        price, free, bar = list(mark), [False] * n, [False] * n
        for i in range(n):
            if close[t, i] == close[t, i]:
                away[i] = 0
                bar[i] = free[i] = fill[t, i] == fill[t, i]
                price[i] = fill[t, i] if bar[i] else close[t, i]
            elif mark[i] is not None:
                away[i] += 1
                if away[i] == give_up:
                    price[i], free[i] = mark[i] * (1 + s.delisting_return), True
        before = cash + sum(shares[i] * price[i] for i in range(n) if shares[i])
        if before <= 0 or (equity and equity[-1] == 0):
            equity.append(0.0)
            shares, cash = [0.0] * n, 0.0
            continue
        asked = [min(max(weights[t - 1, i], -s.max_weight), s.max_weight) if t and bar[i] else 0.0 for i in range(n)]
        total = sum(map(abs, asked))
        if total > s.max_exposure:
            asked = [w * s.max_exposure / total for w in asked]
        stuck = sum(abs(shares[i] * price[i]) for i in range(n) if shares[i] and not free[i]) / before
        total, room = sum(map(abs, asked)), max(s.max_exposure - stuck, 0.0)
        if total > room:
            asked = [w * room / total for w in asked]

        def bill(after, asked=asked, free=free, price=price, shares=shares):
            return cost_rate * sum(abs(asked[i] * after - shares[i] * (price[i] or 0.0)) for i in range(n) if free[i])

        low, high = 0.0, before
        for _ in range(200):                                                               # what is left when all is paid
            middle = (low + high) / 2
            low, high = (middle, high) if middle + bill(middle) < before else (low, middle)
        for i in range(n):
            if free[i] and price[i] and (order := asked[i] * low / price[i] - shares[i]):
                paid = cost_rate * abs(order) * price[i]
                shares[i] += order
                cash -= order * price[i] + paid
                fills.append((t, i, order, price[i], paid))
            elif free[i] and price[i] == 0:                                                # worth nothing: struck off
                shares[i] = 0.0
        for i in range(n):
            mark[i] = close[t, i] if close[t, i] == close[t, i] else mark[i]
        worth = cash + sum(shares[i] * mark[i] for i in range(n) if shares[i])
        equity.append(max(worth, 0.0))
    return equity, fills


@st.composite
def cases(draw):
    """Panels with gaps, names that go and come back, shorts, leverage, caps and costs."""
    seed, n_sessions, n_symbols = draw(st.integers(0, 10**6)), draw(st.integers(3, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(seed)
    wild = draw(st.sampled_from([0.01, 0.05, 0.4]))
    shape = n_sessions, n_symbols
    close = 50 * np.exp(rng.normal(0, wild, shape).cumsum(axis=0))
    fill = close * np.exp(rng.normal(0, wild / 2, shape)) if draw(st.booleans()) else close.copy()
    missing = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.6]))
    if draw(st.booleans()):
        missing[rng.integers(1, n_sessions):, rng.integers(n_symbols)] = True              # stops trading for good
    close[missing] = fill[missing] = np.nan
    fill[rng.random(shape) < draw(st.sampled_from([0.0, 0.2]))] = np.nan                   # a bar without an open
    weights = rng.normal(0, 1, shape) if draw(st.booleans()) else rng.dirichlet(np.ones(n_symbols), n_sessions)
    weights[rng.random(shape) < 0.3] = 0.0
    s = BacktestSettings(cost_bps=draw(st.floats(0, 300)), slippage_bps=draw(st.floats(0, 300)), borrow_bps=draw(st.floats(0, 2000)),
                         max_weight=draw(st.floats(0.05, 2)), max_exposure=draw(st.floats(0.2, 3)),
                         delisting_return=draw(st.sampled_from([0.0, -0.3, -1.0])))
    rate = rng.uniform(0, 0.001, n_sessions) if draw(st.booleans()) else np.zeros(n_sessions)
    return weights, close, fill, rate, draw(st.integers(0, 5)), s


@settings(max_examples=300, deadline=None)
@given(cases())
def test_agrees_with_a_clerk(case):
    weights, close, fill, rate, give_up, s = case
    fast = simulate(weights, Bars.of(close, fill, rate, give_up), s)
    slow, fills = clerk(*case)
    assert np.abs(fast["equity"] - slow).max() < 1e-9 * max(1.0, max(slow))
    paid, equity = np.zeros(len(close)), np.r_[1.0, slow[:-1]]
    for t, _, _, _, cost in fills:
        paid[t] += cost
    alive = np.array(slow) > 0
    growth = (1 + fast["gross"]) / (1 + fast["stocks_after"])                              # of capital until the trade
    assert np.abs((fast["cost"] * growth * equity - paid)[alive]).max(initial=0) < 1e-9 * max(1.0, max(slow))
    assert not any(t == 0 for t, *_ in fills)                                              # nothing is traded at the bar of the decision


def test_the_clerk_by_hand():
    """The twin itself: the notebook's four bars, order by order."""
    price, s = np.array([[100.0], [100], [110], [110]]), FREE.model_copy(update={"cost_bps": 2500.0})
    equity, fills = clerk(np.array([[1.0], [0], [0], [0]]), price, price, np.zeros(4), 0, s)
    assert equity == pytest.approx([1, 0.8, 0.66, 0.66], abs=1e-12)
    assert [(t, i) for t, i, *_ in fills] == [(1, 0), (2, 0)]
    assert [x for _, _, *rest in fills for x in rest] == pytest.approx([0.008, 100, 0.2, -0.008, 110, 0.22], abs=1e-12)


# ------------------------------------------------------------------------------------------------ an engine that others wrote


class Follow(bt.Algo):
    """Trade at each date to the weights of the session before, in quantities that `bt` is told, or sizes itself."""

    def __init__(self, weights: pd.DataFrame, quantities: bool, cost: float = 0.0) -> None:
        super().__init__()
        self.weights, self.quantities, self.cost = weights.shift().fillna(0.0), quantities, cost

    def __call__(self, target) -> bool:
        wanted = self.weights.loc[target.now]
        if not self.quantities:
            for name, weight in wanted.items():
                if weight == 0 and name in target.children:
                    target.close(name)
            for name, weight in wanted[wanted != 0].items():
                target.rebalance(weight, name, base=target.value)
            return True
        held = {name: target.children[name].value if name in target.children else 0.0 for name in wanted.index}
        low, high = 0.0, target.value
        for _ in range(200):
            middle = (low + high) / 2
            bill = self.cost * sum(abs(w * middle - held[name]) for name, w in wanted.items())
            low, high = (middle, high) if middle + bill < target.value else (low, middle)
        for name, weight in wanted.items():
            quantity = (weight * low - held[name]) / target.universe.loc[target.now, name]
            if quantity:
                target.transact(quantity, name)
        return True


def in_bt(weights: np.ndarray, price: np.ndarray, cost: float, quantities: bool) -> np.ndarray:
    days, names = pd.bdate_range("2020-01-01", periods=len(price)), [f"S{i}" for i in range(price.shape[1])]
    frame, wanted = pd.DataFrame(price, days, names), pd.DataFrame(weights, days, names)
    strategy = bt.Strategy("ours", [Follow(wanted, quantities, cost)], children=names)
    test = bt.Backtest(strategy, frame, integer_positions=False, initial_capital=1e6, commissions=lambda q, p: cost * abs(q) * p)
    test.run()
    return test.strategy.values.loc[days].to_numpy() / 1e6


def walk(seed: int, n_sessions: int = 120, n_symbols: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    price = 80 * np.exp(rng.normal(0, 0.02, (n_sessions, n_symbols)).cumsum(axis=0))
    weights = rng.dirichlet(np.ones(n_symbols), n_sessions) * rng.random((n_sessions, 1))
    weights[rng.random(weights.shape) < 0.2] = 0.0
    return weights, price


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_bt_sizing_by_itself_without_costs(seed):
    """bt's own `rebalance` and `close`; long and short."""
    weights, price = walk(seed)
    sign = np.random.default_rng(seed).choice([-1, 1], weights.shape) if seed else 1
    ours = simulate(sign * weights, Bars.of(price), FREE)["equity"]
    assert np.abs(ours - in_bt(sign * weights, price, 0.0, False)).max() < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_bt_sizing_by_itself_all_in_or_out(seed):
    """With a commission `bt` sizes a buy so that the fee is inside the amount: for one stock, all in or all out, that is our rule."""
    weights, price = walk(seed, n_symbols=1)
    weights = (weights > 0.4).astype(float)
    s = FREE.model_copy(update={"cost_bps": 30.0, "slippage_bps": 20.0})
    flips = np.abs(np.diff(weights[:, 0])).sum()
    trades = np.vstack([weights[:1], np.where(np.diff(weights, axis=0) != 0, weights[1:], weights[:-1])])
    ours, theirs = simulate(trades, Bars.of(price), s)["equity"], in_bt(weights, price, 0.005, False)
    assert flips > 20 and np.abs(ours - theirs).max() < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_bt_keeping_the_books_with_costs(seed):
    """Several stocks and a commission: bt is told the quantities, and keeps cash, fees and values. (Left to itself it pays fees of a
    rebalancing out of cash that is then missing, so that weights sum to more than one: there the definitions differ.)"""
    weights, price = walk(10 + seed)
    sign = np.random.default_rng(seed).choice([-1, 1], weights.shape) if seed > 1 else 1
    s = FREE.model_copy(update={"cost_bps": 12.0, "slippage_bps": 8.0})
    ours = simulate(sign * weights, Bars.of(price), s)["equity"]
    assert np.abs(ours - in_bt(sign * weights, price, 0.002, True)).max() < 1e-6


# ------------------------------------------------------------------------------------------------ what must hold


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 200), st.integers(3, 60))
def test_invariants(seed, cost, cut):
    rng = np.random.default_rng(seed)
    price = 50 * np.exp(np.clip(rng.normal(0, 0.03, (60, 4)), -0.5, None).cumsum(axis=0))
    price[rng.random(price.shape) < 0.1] = np.nan
    weights = rng.dirichlet(np.ones(4), 60) * rng.random((60, 1))
    s, dear = (FREE.model_copy(update={"cost_bps": c}) for c in (cost, 2 * cost))
    plain = simulate(weights, Bars.of(price), s)
    assert simulate(weights, Bars.of(price), dear)["equity"][-1] <= plain["equity"][-1] + 1e-12
    assert (plain["equity"] <= simulate(weights, Bars.of(price), FREE)["equity"] + 1e-12).all()
    assert simulate(0 * weights, Bars.of(price), s)["equity"].tolist() == [1.0] * 60
    later = np.concatenate([price[:cut], rng.permutation(price[cut:])])
    assert simulate(weights, Bars.of(later), s)["equity"][:cut].tolist() == plain["equity"][:cut].tolist()
    ahead = np.concatenate([weights[:cut], rng.permutation(weights[cut:])])
    assert simulate(ahead, Bars.of(price), s)["equity"][:cut + 1].tolist() == plain["equity"][:cut + 1].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_no_bit_depends_on_later_sessions_or_on_names_that_list_later(seed):
    rng = np.random.default_rng(seed)
    price, weights = 50 * np.exp(rng.normal(0, 0.02, (200, 12)).cumsum(axis=0)), rng.dirichlet(np.ones(12), 200) * rng.random((200, 1))
    price[rng.random(price.shape) < 0.02] = np.nan
    cut, at = int(rng.integers(40, 160)), int(rng.integers(13))
    weights[:cut] *= 0.01  # small trades know their costs in fewer steps than those that come later
    known = simulate(weights[:cut], Bars.of(price[:cut]), BacktestSettings())
    more = np.insert(price, at, 50.0, axis=1)
    more[:cut, at] = np.nan
    later = simulate(np.insert(weights, at, 0.0, axis=1), Bars.of(more), BacktestSettings())
    assert {name: values[:cut].tobytes() for name, values in later.items()} == {name: values.tobytes() for name, values in known.items()}


def test_a_long_portfolio_is_never_in_debt():
    """Fully invested with high costs: exposure after the trade is 1, and not more."""
    weights, price = walk(1)
    weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    found = simulate(weights, Bars.of(price), FREE.model_copy(update={"cost_bps": 500.0}))
    assert found["exposure_after"].max() < 1 + 1e-12


def test_a_decision_earns_from_the_next_bar_on():
    """Red team: who sees today's close and buys at it would be rich; here the order is filled a bar later."""
    price = np.r_[np.ones(5), np.full(5, 1.5)][:, None]                                    # a jump at session 5
    late, early = np.zeros((10, 1)), np.zeros((10, 1))
    late[4], early[3] = 1.0, 1.0                                                           # filled at the close of 5, of 4
    assert simulate(late, Bars.of(price), FREE)["equity"][-1] == 1.0
    assert simulate(early, Bars.of(price), FREE)["equity"][-1] == 1.5
    at_open = Bars.of(price, fill=np.r_[price[:1], price[:-1]])                            # opens at the last close, jumps during the day
    assert simulate(late, at_open, FREE)["equity"][-1] == 1.5


def test_a_suspended_bar_fills_nothing():
    price = np.array([[10.0, 10], [10, 10], [np.nan, 11], [12, 12], [12, 12]])
    buy = np.zeros((5, 2))
    buy[1] = [0.5, 0.5]                                                                    # the first has no bar at session 2
    found = simulate(buy, Bars.of(price), FREE)
    assert found["turnover"].tolist() == pytest.approx([0, 0, 0.5, 0.5 * 12 / 11 / (1 + 0.5 / 11), 0])
    assert found["equity"][-1] == pytest.approx(1 + 0.5 / 11)                              # the order did not wait for the bar


def test_a_delisted_name_is_paid_out_once():
    price = np.full((12, 2), 10.0)
    price[4:, 0] = np.nan
    weights = np.tile([0.5, 0.0], (12, 1))
    for loss, end in ((0.0, 1.0), (-0.4, 0.8), (-1.0, 0.5)):
        found = simulate(weights, Bars.of(price, give_up=3), FREE.model_copy(update={"delisting_return": loss}))
        assert found["equity"][5] == 1 and found["equity"][-1] == pytest.approx(end)       # last bar 3; given up at 6
        assert found["exposure"][6] == 0.5 and (found["exposure"][7:] == 0).all()
    never = simulate(weights, Bars.of(price), FREE)
    assert (never["exposure"][2:] == 0.5).all()                                            # carried for ever, if nobody gives up


def test_a_stuck_name_leaves_no_room():
    """Half is stuck: what else is bought must fit into the other half, so that nothing is bought on credit."""
    price = np.full((6, 2), 10.0)
    price[3:, 0] = np.nan
    weights = np.array([[0.5, 0], [0.5, 0.5], [0, 1], [0, 1], [0, 1], [0, 1]])
    found = simulate(weights, Bars.of(price), FREE.model_copy(update={"max_exposure": 1.0}))
    assert found["exposure_after"].max() <= 1 + 1e-12 and found["exposure_after"][-1] == 1.0
    assert found["turnover"][3] == 0.0


def test_caps_bind():
    weights, price = walk(2)
    found = simulate(3 * weights, Bars.of(price), FREE.model_copy(update={"max_weight": 0.2, "max_exposure": 0.5}))
    assert found["exposure_after"].max() == pytest.approx(0.5)
    small = simulate(3 * weights, Bars.of(price), FREE.model_copy(update={"max_weight": 0.05}))
    assert small["exposure_after"].max() <= 4 * 0.05 + 1e-12


def test_nothing_left():
    """A short of the whole capital and a price that triples: lost, and nothing is traded after."""
    price = np.array([[1.0], [1], [3], [1], [1]])
    found = simulate(np.full((5, 1), -1.0), Bars.of(price), FREE)
    assert found["equity"].tolist() == [1, 1, 0, 0, 0] and found["net"].tolist() == [0, 0, -1, 0, 0]
    assert not found["turnover"][3:].any() and not found["exposure"][3:].any()
    table = portfolio.performance(found["net"], 0.0, **ASK)
    assert table["total_return"] == -1 and table["max_drawdown"] == -1


def test_cash_and_borrow():
    price, rate = np.full((300, 1), 10.0), np.full(300, 0.04 / 252)
    idle = simulate(np.zeros((300, 1)), Bars.of(price, rate=rate), BacktestSettings())
    assert idle["equity"][-1] == pytest.approx((1 + 0.04 / 252) ** 300)
    half = simulate(np.full((300, 1), 0.5), Bars.of(price, rate=rate), FREE)
    assert half["carry"][2:] == pytest.approx(0.5 * 0.04 / 252, rel=1e-3)
    short = simulate(np.full((300, 1), -0.5), Bars.of(price), FREE.model_copy(update={"borrow_bps": 100.0}))
    assert short["carry"][2:] == pytest.approx(-0.5 * 0.01 / 252, rel=1e-9)
    gaps = simulate(np.zeros((300, 1)), Bars.of(price, rate=np.full(300, np.nan)), BacktestSettings())
    assert gaps["equity"][-1] == 1.0                                                       # no rate known: none earned


@pytest.mark.parametrize(("change", "words"), [
    (lambda p: np.where(p > 85, 0.0, p), "is 0.0"), (lambda p: np.where(p > 85, np.inf, p), "is inf"), (lambda p: p[0], "not of the same"),
])
def test_bad_prices(change, words):
    with pytest.raises(DataError, match=words):
        Bars.of(change(walk(3)[1]))


def test_bad_weights():
    weights, price = walk(3)
    for bad in (weights[:-1], weights * np.nan):
        with pytest.raises(DataError, match="must match, and weights be finite"):
            simulate(bad, Bars.of(price), FREE)


def test_one_session_and_none():
    for n in (0, 1):
        found = simulate(np.ones((n, 2)), Bars.of(np.ones((n, 2))), FREE)
        assert len(found["equity"]) == n
    assert portfolio.hold(np.ones((1, 2)), np.ones((1, 2)), FREE).tolist() == [1.0]


# ------------------------------------------------------------------------------------------------ ratios


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 900), st.floats(-0.002, 0.002))
def test_ratios_equal_empyrical(seed, n, mean):
    net = mean + 0.01 * np.random.default_rng(seed).standard_t(4, n).clip(-20, 20)
    ours = portfolio.performance(net, 0.0, **ASK)
    theirs = {"return_ann": empyrical.annual_return(net), "volatility_ann": empyrical.annual_volatility(net), "sharpe": empyrical.sharpe_ratio(net),
              "max_drawdown": empyrical.max_drawdown(net), "total_return": empyrical.cum_returns_final(net),
              "calmar": empyrical.calmar_ratio(net), "sortino": empyrical.sortino_ratio(net)}
    for name, value in theirs.items():
        value = np.nan if np.isinf(value) else value                                       # never a loss: theirs is infinite, ours unknown
        assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name


def test_ratios_above_cash():
    """The Sharpe and Sortino ratios are of the return above cash; return, volatility and drawdown are of the equity."""
    rng = np.random.default_rng(3)
    net, rate = rng.normal(0.0006, 0.01, 800), rng.uniform(0, 0.0003, 800)
    ours, plain = portfolio.performance(net, rate, **ASK), portfolio.performance(net, 0.0, **ASK)
    assert ours["sharpe"] == pytest.approx(empyrical.sharpe_ratio(net - rate), rel=1e-9)
    assert ours["sortino"] == pytest.approx(empyrical.sortino_ratio(net - rate), rel=1e-9)
    assert ours["sharpe"] < plain["sharpe"] and ours["return_ann"] == plain["return_ann"]


def test_sharpe_interval_covers():
    """Independent returns with an annual ratio of 1: about 95 % of the intervals hold it."""
    draw, hits = np.random.default_rng(0), 0
    for seed in range(200):
        net = draw.normal(0.01 / np.sqrt(252), 0.01, 2000)
        _, low, high = portfolio.sharpe_interval(net, 14, 400, 0.05, seed)
        hits += low <= 1 <= high
    assert 180 <= hits <= 200


def test_sharpe_interval_of_few_blocks_covers():
    """Five blocks of dependent returns: covered because the interval is widened as all others are, and not covered without it."""
    draw, hits, bare = np.random.default_rng(1), 0, 0
    factor = portfolio.few_blocks_factor(5, 0.05)
    for seed in range(300):
        net = np.convolve(draw.normal(0, 0.01, 140 + 13), np.ones(14) / 14, "valid")
        value, low, high = portfolio.sharpe_interval(net, 14, 300, 0.05, seed)
        hits += low <= 0 <= high
        bare += value + (low - value) / factor <= 0 <= value + (high - value) / factor
    assert hits / 300 > 0.88 > bare / 300 + 0.05


def test_sharpe_interval_narrows_and_is_nan_where_there_is_none():
    rng = np.random.default_rng(0)
    wide, narrow = (np.diff(portfolio.sharpe_interval(rng.normal(0, 1, n), 14, 400, 0.05, 0)[1:])[0] for n in (500, 5000))
    assert narrow < 0.5 * wide
    assert np.isnan(portfolio.sharpe_interval(rng.normal(0, 1, 40), 14, 400, 0.05, 0)[1])      # not two blocks: no interval
    assert np.isnan(portfolio.sharpe_interval(np.zeros(400), 14, 400, 0.05, 0)[0])
