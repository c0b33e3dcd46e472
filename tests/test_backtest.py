"""The backtest against a slow loop that knows nothing of arrays, and against the ways a backtest lies."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from mltrader import backtest
from mltrader.config import BacktestSettings, Settings
from mltrader.core import CLASSES, DataError

DAYS = pd.bdate_range("2018-01-01", periods=420).as_unit("us")
SYMBOLS = [f"S{i}" for i in range(7)]
QUICK = Settings(splits={"bootstrap": 200})
ASK = {"horizon": 14, "n_boot": 200, "level": 0.05, "seed": 1}


def make(seed: int = 0, lean: float = 0.1) -> dict:
    """Random predictions on a random panel, two evaluation years, some abstentions."""
    rng = np.random.default_rng(seed)
    daily = rng.normal(0.0004, 0.01, (len(DAYS), 1)) + rng.normal(0, 0.012, (len(DAYS), len(SYMBOLS)))
    panel = pd.MultiIndex.from_product([DAYS, SYMBOLS], names=["session", "symbol"]).to_frame(index=False)
    panel["adj_close"] = (50 * np.exp(daily.cumsum(axis=0))).ravel()
    frame = panel[["session", "symbol"]].assign(fold=panel["session"].dt.year)
    frame["forward_log_return"] = rng.normal(0, 0.05, len(frame))
    frame["label"] = rng.integers(0, 3, len(frame)).astype("int8")
    for model in ("proba", "forest", "boosting", "logit"):
        raw = rng.dirichlet(np.ones(3) / lean, len(frame))
        frame[[f"{model}_{name}" for name in CLASSES]] = raw
    frame[[f"prior_{name}" for name in CLASSES]] = np.tile([0.3, 0.4, 0.3], (len(frame), 1))
    frame["regime"] = np.where(frame["symbol"] < "S3", "crash", "normal")
    frame["market_regime"], frame["abstain"] = "normal", rng.random(len(frame)) < 0.2
    frame = frame[frame["session"] < DAYS[-15]].reset_index(drop=True)
    labels = frame[["session", "symbol"]].assign(return_pct=1.5, exit_reason="time", entry_session=frame["session"],
                                                 label_end=frame["session"] + pd.Timedelta(days=20))
    index = pd.DataFrame({"session": DAYS, "index_close": 1000 * np.exp(daily.mean(axis=1).cumsum())})
    return {"meta": {"evaluation": frame}, "labels": {"labels": labels}, "market": {"panel": panel, "index": index}}


def slow_equity(evaluation: pd.DataFrame, panel: pd.DataFrame, horizon: int, top: float, cost_bps: float) -> list[float]:
    """Event by event, with positions in money: nothing shared with the module."""
    start = evaluation["session"].min()
    prices = {day: dict(zip(g["symbol"], g["adj_close"], strict=True)) for day, g in panel.groupby("session") if day >= start}
    days, history, equity, money, cash = sorted(prices), [], [], {}, 1.0
    by_day = {day: g for day, g in evaluation.groupby("session")}
    planned, yesterday = None, {}
    for day in days:
        today = {**yesterday, **{s: p for s, p in prices[day].items() if p == p}}
        money = {s: m * today[s] / yesterday[s] for s, m in money.items()}
        total = cash + sum(money.values())
        if planned is not None:
            want = {s: w * total for s, w in planned.items()}
            traded = sum(abs(want.get(s, 0.0) - money.get(s, 0.0)) for s in set(want) | set(money))
            keep = 1 - cost_bps / 1e4 * traded / total
            money, cash = {s: m * keep for s, m in want.items()}, (total - sum(want.values())) * keep
            total = cash + sum(money.values())
        equity.append(total)
        choice = {}
        if day in by_day:
            g = by_day[day]
            score = dict(zip(g["symbol"], g["proba_buy"] - g["proba_sell"], strict=True))
            middle, slots = float(np.median(list(score.values()))), int(np.ceil(top * len(score) - 1e-9))
            good = [s for s, a in zip(g["symbol"], g["abstain"], strict=True) if not a and score[s] > middle]
            choice = {s: 1 / slots for s in sorted(good, key=lambda s: (-score[s], s))[:slots]}
        history.append(choice)
        planned = {}
        for past in history[-horizon:]:
            for s, w in past.items():
                planned[s] = planned.get(s, 0.0) + w / horizon
        yesterday = today
    return equity


@pytest.mark.parametrize(("seed", "horizon", "top", "cost"), [(0, 14, 0.3, 10), (1, 1, 0.5, 0), (2, 5, 1.0, 50), (3, 14, 0.1, 200)])
def test_agrees_with_an_event_by_event_loop(seed, horizon, top, cost):
    data = make(seed)
    panel = data["market"]["panel"].copy()
    panel.loc[panel.sample(40, random_state=seed).index, "adj_close"] = np.nan             # days without a bar
    panel.loc[panel["session"] == data["meta"]["evaluation"]["session"].min(), "adj_close"] = 50.0
    engine = backtest.HistoricalBacktest(BacktestSettings(cost_bps=cost, top_share=top), horizon)
    fast = engine.run_backtest(data["meta"]["evaluation"], panel, data["market"]["index"])["strategy"].to_numpy()
    slow = slow_equity(data["meta"]["evaluation"], panel, horizon, top, cost)
    assert np.abs(fast - slow).max() < 1e-9


def test_four_bars_by_hand():
    prices = np.array([[100.0, 10], [100, 10], [110, 9], [110, 9]])
    returns = np.vstack([[[np.nan] * 2], prices[1:] / prices[:-1] - 1])
    half = backtest.simulate(np.array([[0.5, 0.5], [0, 0], [0, 0], [0, 0]]), returns, cost_bps=100)
    assert half["equity"].tolist() == pytest.approx([1, 0.99, 0.99 * 1.0 * 0.99, 0.9801], abs=1e-15)   # +10 % and -10 %
    one = backtest.simulate(np.array([[1.0, 0], [0, 1], [0, 0], [0, 0]]), returns, cost_bps=100)
    assert one["turnover"].tolist() == pytest.approx([0, 1, 2, 1])                         # sells one, buys the other: 2
    assert one["equity"][2] == pytest.approx(0.99 * 1.1 * 0.98)


WEIGHTS = st.integers(0, 10_000)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.floats(0, 200), st.integers(3, 60))
def test_invariants(seed, cost, cut):
    rng = np.random.default_rng(seed)
    returns = np.clip(rng.normal(0, 0.03, (60, 4)), -0.5, None)
    weights = rng.dirichlet(np.ones(4), 60) * rng.random((60, 1))
    plain, dear = (backtest.simulate(weights, returns, c) for c in (cost, 2 * cost))
    assert (dear["net"] <= plain["net"] + 1e-12).all()
    assert (plain["equity"] <= backtest.simulate(weights, returns, 0)["equity"] + 1e-12).all()
    assert backtest.simulate(0 * weights, returns, cost)["equity"].tolist() == [1.0] * 60
    later = np.concatenate([returns[:cut], rng.permutation(returns[cut:])])
    assert backtest.simulate(weights, later, cost)["equity"][:cut].tolist() == plain["equity"][:cut].tolist()
    ahead = np.concatenate([weights[:cut], rng.permutation(weights[cut:])])
    assert backtest.simulate(ahead, returns, cost)["equity"][:cut + 1].tolist() == plain["equity"][:cut + 1].tolist()


def test_a_decision_earns_from_the_second_close_on():
    """A trader who sees today's return and buys at the same close would be rich; here the signal comes a session late."""
    returns = np.zeros((10, 1))
    returns[5] = 0.5
    known_too_late = np.zeros((10, 1))
    known_too_late[4] = 1.0                                            # decided at 4, traded at 5: misses the jump at 5
    assert backtest.simulate(known_too_late, returns, 0)["equity"][-1] == 1.0
    known_too_late[3] = 1.0                                            # decided at 3, traded at 4: has it
    assert backtest.simulate(known_too_late, returns, 0)["equity"][-1] == 1.5


def test_doubling_costs_never_raises_what_the_whole_strategy_earns():
    data = make(4)
    args = (data["meta"]["evaluation"], data["market"]["panel"], data["market"]["index"])
    ends = [backtest.HistoricalBacktest(BacktestSettings(cost_bps=c)).run_backtest(*args)["strategy"].iloc[-1] for c in (0, 10, 20, 40)]
    assert (np.diff(ends) < 0).all()


def test_future_bars_leave_the_past_alone():
    data, cut = make(5), DAYS[300]
    panel = data["market"]["panel"]
    future = panel.copy()
    after = future["session"] > cut
    future.loc[after, "adj_close"] = np.random.default_rng(0).permutation(future.loc[after, "adj_close"].to_numpy())
    curves = [backtest.HistoricalBacktest().run_backtest(data["meta"]["evaluation"], p, data["market"]["index"]) for p in (panel, future)]
    inside = (curves[0]["session"] <= cut).to_numpy()
    pd.testing.assert_frame_equal(curves[0][inside].drop(columns="index"), curves[1][inside].drop(columns="index"))


def test_beta_is_no_edge():
    """Half invested in everything: earns half the market, and the matched difference is only the cost."""
    data = make(6)
    evaluation = data["meta"]["evaluation"].assign(abstain=False)
    panel = data["market"]["panel"].assign(adj_close=lambda f: np.exp(0.0004 * np.searchsorted(DAYS, f["session"])))   # all alike
    equity = backtest.HistoricalBacktest(BacktestSettings(cost_bps=0)).run_backtest(evaluation, panel, data["market"]["index"])
    assert equity["strategy"].iloc[-1] > 1.1 and equity["difference"].abs().max() < 1e-12


def test_curves_that_cost_no_skill():
    data = make(7)
    panel = data["market"]["panel"]
    equity = backtest.HistoricalBacktest(BacktestSettings(cost_bps=0)).run_backtest(data["meta"]["evaluation"], panel, data["market"]["index"])
    wide = panel.pivot(index="session", columns="symbol", values="adj_close")
    held = (wide / wide.iloc[1]).mean(axis=1).to_numpy()
    assert np.abs(equity["buy_and_hold"].to_numpy()[1:] - held[1:]).max() < 1e-12
    daily = wide.pct_change().mean(axis=1).to_numpy()
    assert np.abs(equity["equal_weight"].to_numpy()[2:] - np.cumprod(1 + daily[2:])).max() < 1e-12
    level = data["market"]["index"]["index_close"].to_numpy()
    assert equity["index"].iloc[-1] == pytest.approx(level[-1] / level[1])


def test_metrics_agree_with_scipy_and_sklearn():
    frame = make(8)["meta"]["evaluation"]
    found = backtest.score_models(frame, ASK).query("scope == 'all'").set_index(["model", "metric"])["value"]
    ics = [spearmanr(g["proba_buy"] - g["proba_sell"], g["forward_log_return"]).statistic for _, g in frame.groupby("session")]
    assert found["stack", "ic"] == pytest.approx(np.mean(ics), abs=1e-12)
    proba = frame[["forest_sell", "forest_hold", "forest_buy"]].to_numpy()
    assert found["forest", "log_loss"] == pytest.approx(log_loss(frame["label"], proba), abs=1e-9)
    assert found["forest", "balanced_accuracy"] == pytest.approx(balanced_accuracy_score(frame["label"], proba.argmax(1)))
    assert found["forest", "macro_f1"] == pytest.approx(f1_score(frame["label"], proba.argmax(1), average="macro"))
    prior = log_loss(frame["label"], np.tile([0.3, 0.4, 0.3], (len(frame), 1)))
    assert found["forest", "gain_prior"] == pytest.approx(prior - found["forest", "log_loss"], abs=1e-9)
    assert found["majority", "accuracy"] == pytest.approx((frame["label"] == 1).mean())
    assert ("majority", "log_loss") not in found and ("prior", "ic") not in found


def test_scopes_count_their_rows_and_an_absent_regime_makes_no_claim():
    frame = make(9)["meta"]["evaluation"]
    table = backtest.score_models(frame, ASK)
    counts = table[table["model"] == "stack"].groupby("scope")["n_rows"].first()
    assert counts["all"] == len(frame) == counts["regime:crash"] + counts["regime:normal"]
    assert counts["last_year"] == (frame["fold"] == 2019).sum()
    assert set(counts.index) == {"all", "last_year", "regime:crash", "regime:normal"}


def test_intervals_hold_the_truth_and_shrink():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(60):
        net = rng.normal(0.05 / np.sqrt(252), 1, 1500) / 100
        _, low, high = backtest.sharpe_interval(net, 14, 400, 0.05, seed)
        hits += low < 0.05 < high
    assert hits >= 52
    wide, narrow = (np.diff(backtest.sharpe_interval(rng.normal(0, 1, n), 14, 400, 0.05, 0)[1:])[0] for n in (500, 5000))
    assert narrow < 0.5 * wide
    assert np.isnan(backtest.sharpe_interval(rng.normal(0, 1, 40), 14, 400, 0.05, 0)[1])       # not two blocks: no interval


def test_run_writes_plain_rows_and_repeats():
    data = make(10)
    first, second = (backtest.run(data, QUICK, DAYS[-1]) for _ in range(2))
    assert first.metrics == second.metrics and first.documents == second.documents and first.rows == second.rows
    last = first.frames["trades"][first.frames["trades"]["fold"] == 2019]
    assert len(first.rows["trades"]) == len(last) > 0
    assert not pd.DataFrame(first.rows["trades"]).duplicated(["symbol", "signal_session", "side"]).any()
    for row in [*first.rows["trades"][:3], *first.rows["backtest_results"]]:
        assert not any(isinstance(value, np.generic) for value in row.values())
    summary = first.documents["summary"]
    assert summary["low"] < summary["tradable_edge_ann"] < summary["high"] and summary["n_blocks"] >= 10


def test_what_does_not_fit_is_refused():
    data = make(11)
    with pytest.raises(DataError, match="after 2018-06-01"):
        backtest.run(data, QUICK, pd.Timestamp("2018-06-01"))
    strange = data["meta"]["evaluation"].assign(symbol="ZZZ")
    with pytest.raises(DataError, match="no bar in the panel"):
        backtest.run(data | {"meta": {"evaluation": strange}}, QUICK, DAYS[-1])
    with pytest.raises(DataError, match="logit_sell"):
        backtest.run(data | {"meta": {"evaluation": data["meta"]["evaluation"].drop(columns="logit_sell")}}, QUICK, DAYS[-1])
    with pytest.raises(DataError, match="has no label"):
        backtest.run(data | {"labels": {"labels": data["labels"]["labels"].iloc[:100]}}, QUICK, DAYS[-1])


def test_few_symbols_have_no_ic_and_still_a_report():
    data = make(12)
    few = data["meta"]["evaluation"].query("symbol < 'S3'").reset_index(drop=True)
    output = backtest.run(data | {"meta": {"evaluation": few}}, QUICK, DAYS[-1])
    assert np.isnan(output.metrics["stack_ic"])
    assert len(backtest.scores(output)) and backtest.figure(output) is not None
