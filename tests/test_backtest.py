"""The backtest against a slow loop that knows nothing of arrays, and against the ways a backtest lies."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss
from test_portfolio import clerk

from mltrader import backtest, labels, luck
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


def slow_weights(evaluation: pd.DataFrame, days: list, horizon: int, top: float) -> np.ndarray:
    """What is decided at each close, one session after another with dicts: nothing shared with the module."""
    by_day, history, weights = {day: g for day, g in evaluation.groupby("session")}, [], np.zeros((len(days), len(SYMBOLS)))
    for t, day in enumerate(days):
        choice = {}
        if day in by_day:
            g = by_day[day]
            score = dict(zip(g["symbol"], g["proba_buy"] - g["proba_sell"], strict=True))
            middle, slots = float(np.median(list(score.values()))), int(np.ceil(top * len(score) - 1e-9))
            good = [s for s, a in zip(g["symbol"], g["abstain"], strict=True) if not a and score[s] > middle]
            choice = {s: 1 / slots for s in sorted(good, key=lambda s: (-score[s], s))[:slots]}
        history.append(choice)
        for past in history[-horizon:]:
            for s, w in past.items():
                weights[t, SYMBOLS.index(s)] += w / horizon
    return weights


@pytest.mark.parametrize(("seed", "horizon", "top", "cost"), [(0, 14, 0.3, 10), (1, 1, 0.5, 0), (2, 5, 1.0, 50), (3, 14, 0.1, 200)])
def test_agrees_with_an_event_by_event_loop(seed, horizon, top, cost):
    """From predictions to equity: decided with dicts, and kept in shares and money by the clerk of test_portfolio."""
    data = make(seed)
    panel, evaluation = data["market"]["panel"].copy(), data["meta"]["evaluation"]
    panel.loc[panel.sample(40, random_state=seed).index, "adj_close"] = np.nan             # days without a bar
    panel.loc[(panel["symbol"] == "S2") & (panel["session"] > DAYS[200]), "adj_close"] = np.nan      # one stops trading
    known = panel[panel["adj_close"].notna()]
    evaluation = evaluation.merge(known[["session", "symbol"]], on=["session", "symbol"]) if seed else evaluation
    index = data["market"]["index"].assign(rate_3m=np.random.default_rng(seed).uniform(0, 5, len(DAYS)))
    s = BacktestSettings(cost_bps=cost, slippage_bps=cost / 2, top_share=top, max_weight=0.2)
    fast = backtest.HistoricalBacktest(s, horizon).run_backtest(evaluation, panel, index)
    close = panel.pivot(index="session", columns="symbol", values="adj_close").to_numpy()
    rate = np.r_[0.0, index["rate_3m"].to_numpy()[:-1]] / 100 / 252                        # that of the session before
    slow, _ = clerk(slow_weights(evaluation, list(DAYS), horizon, top), close, close, rate, horizon + 2, s)
    assert np.abs(fast["strategy"].to_numpy() - slow).max() < 1e-9


def test_trades_at_the_open_if_the_labels_enter_there():
    """The same loop with fills at the open; and the matched difference is exact for a portfolio that holds everything alike."""
    data = make(3)
    rng = np.random.default_rng(3)
    panel = data["market"]["panel"].assign(close=lambda f: 2 * f["adj_close"])             # as before a split: opens are adjusted like closes
    panel["open"] = panel["close"] * np.exp(rng.normal(0, 0.01, len(panel)))
    panel.loc[rng.random(len(panel)) < 0.02, "open"] = np.nan
    s = BacktestSettings(top_share=0.5)
    fast = backtest.HistoricalBacktest(s, 5, "open").run_backtest(data["meta"]["evaluation"], panel, data["market"]["index"])
    close, fill = (panel.assign(open=panel["open"] / 2).pivot(index="session", columns="symbol", values=n).to_numpy() for n in ("adj_close", "open"))
    slow, _ = clerk(slow_weights(data["meta"]["evaluation"], list(DAYS), 5, 0.5), close, fill, np.zeros(len(DAYS)), 7, s)
    assert np.abs(fast["strategy"].to_numpy() - slow).max() < 1e-9
    at_close = backtest.HistoricalBacktest(s, 5).run_backtest(data["meta"]["evaluation"], panel, data["market"]["index"])
    assert np.abs(fast["strategy"] - at_close["strategy"]).max() > 1e-3
    output = backtest.run(data | {"market": data["market"] | {"panel": panel}, "labels": {"labels": data["labels"]["labels"].assign(entry_source="open")}},
                          QUICK, DAYS[-1])
    assert output.documents["summary"]["entry"] == "open"


def test_an_equal_weight_portfolio_has_no_edge_at_the_open_either():
    data = make(14)
    panel = data["market"]["panel"].assign(close=lambda f: f["adj_close"])
    panel["open"] = panel["close"] * np.exp(np.random.default_rng(0).normal(0, 0.01, len(panel)))
    free = BacktestSettings(cost_bps=0, slippage_bps=0, max_weight=1)
    index = data["market"]["index"].assign(rate_3m=4.0)
    on = backtest.HistoricalBacktest(free, 14, "open").arena(data["meta"]["evaluation"], panel, index)
    path = backtest.simulate(np.full(on.close.shape, 0.6 / len(SYMBOLS)), on.bars, free)
    difference = path["net"] - backtest.matched(path, backtest.equal_weight(on, free), on.bars.rate)
    assert np.abs(difference).max() < 1e-12 and path["equity"][-1] != 1


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
    free = BacktestSettings(cost_bps=0, slippage_bps=0)
    equity = backtest.HistoricalBacktest(free).run_backtest(evaluation, panel, data["market"]["index"])
    assert equity["strategy"].iloc[-1] > 1.1 and equity["difference"].abs().max() < 1e-12


def test_curves_that_cost_no_skill():
    data = make(7)
    panel = data["market"]["panel"]
    free = BacktestSettings(cost_bps=0, slippage_bps=0)
    equity = backtest.HistoricalBacktest(free).run_backtest(data["meta"]["evaluation"], panel, data["market"]["index"])
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


def test_labeled_data_is_the_label_function():
    """One definition: the samples of a symbol are the rows that the labels task writes for it."""
    panel = make(13)["market"]["panel"].assign(close=lambda f: f["adj_close"], open=np.nan, high=np.nan, low=np.nan)
    whole = labels.triple_barrier(panel, Settings().labels)
    engine = backtest.HistoricalBacktest()
    for symbol in ("S0", "S6"):
        mine = engine.generate_labeled_data(symbol, panel[panel["symbol"] == symbol].drop(columns=["symbol", "adj_close"]))
        theirs = whole[whole["symbol"] == symbol].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine.drop(columns="label_name"), theirs[mine.columns.drop("label_name")], check_dtype=False)
        assert (mine["label_name"] == np.array(CLASSES)[mine["label"]]).all()
    with pytest.raises(DataError, match="the bars of AAPL"):
        engine.generate_labeled_data("AAPL", panel[["close"]])


def test_the_family_is_simulated_like_the_strategy():
    """Each variant equals a backtest with its settings, its model's probabilities and its holding period."""
    data = make(15)
    args = data["market"]["panel"], data["market"]["index"].assign(rate_3m=3.0)
    evaluation = data["meta"]["evaluation"]
    kin = backtest.family(backtest.HistoricalBacktest(), evaluation, *args)
    assert len(kin.variants) == 48 and sorted(set(kin.variants["holding"])) == [7, 14, 28]
    for k in (4, 17, 30, 47):
        model, share, holding = kin.variants.iloc[k]
        names = backtest.columns_of(model)
        own = evaluation.assign(proba_sell=evaluation[names[0]], proba_buy=evaluation[names[2]], abstain=evaluation["abstain"] & (model == "stack"))
        equity = backtest.HistoricalBacktest(BacktestSettings(top_share=share), holding).run_backtest(own, *args)
        assert np.abs(equity["difference"].to_numpy() - kin.edge[k]).max() < 1e-15
        assert np.abs((equity["net"] - equity["cash"]).to_numpy() - kin.above_cash[k]).max() < 1e-15


def test_odds_are_the_statistics_of_luck():
    """Skill-less series: PSR is uniform, and what is deflated by many trials is hardly ever above 0.95."""
    rng = np.random.default_rng(16)
    others = rng.normal(0, 0.01, (30, 1500))
    found = [backtest.odds("edge", rng.normal(0, 0.01, 1500), others, 30, ASK) for _ in range(120)]
    frame = pd.DataFrame(found)
    assert 0.35 < (frame["psr"] < 0.5).mean() < 0.65 and (frame["deflated_sharpe"] > 0.95).mean() < 0.02
    assert (frame["if_chosen"] <= frame["deflated_sharpe"] + 0.02).all() and (frame["deflated_sharpe"] < frame["psr"]).all()
    one = found[0]
    spread = np.std([luck.Track.of(x).ratio for x in others], ddof=1)
    assert one["spread_ann"] == pytest.approx(spread * np.sqrt(252)) and one["n_variants"] == 30
    still = backtest.odds("edge", np.zeros(1500), others, 3, ASK)
    assert all(np.isnan(still[name]) for name in ("sharpe", "psr", "deflated_sharpe", "min_track_record_years"))


def test_a_planted_edge_is_found_and_noise_is_not():
    """Red team from end to end: predictions that know the next weeks pass every statistic of luck; the same predictions, shuffled, pass none."""
    data = make(17)
    panel, evaluation = data["market"]["panel"], data["meta"]["evaluation"]
    wide = np.log(panel.pivot(index="session", columns="symbol", values="adj_close"))
    ahead = (wide.shift(-15) - wide.shift(-1)).stack(future_stack=True).rename("ahead").reset_index()
    ahead = evaluation[["session", "symbol"]].merge(ahead, on=["session", "symbol"], how="left")["ahead"].fillna(0).to_numpy()
    summaries = {}
    for name, tilt in (("seer", ahead), ("shuffled", np.random.default_rng(0).permutation(ahead))):
        said = evaluation.copy()
        for model in ("proba", "forest", "boosting"):
            said[f"{model}_sell"], said[f"{model}_hold"], said[f"{model}_buy"] = 0.3 - 0.2 * np.tanh(5 * tilt), 0.4, 0.3 + 0.2 * np.tanh(5 * tilt)
        summaries[name] = backtest.run(data | {"meta": {"evaluation": said}, "ledger": {"trials": 20}}, QUICK, DAYS[-1]).documents["summary"]
    seer, shuffled = summaries["seer"], summaries["shuffled"]
    assert seer["low"] > 0 and seer["deflated_sharpe"] > 0.95 and seer["min_track_record_years"] < seer["track_record_years"] and seer["pbo"] < 0.2
    assert not (shuffled["low"] > 0 and shuffled["deflated_sharpe"] > 0.95)
    assert shuffled["deflated_sharpe"] < 0.5 and shuffled["min_track_record_years"] > shuffled["track_record_years"]


def test_what_the_summary_says_of_luck():
    """The keys that the tradable verdict reads, and where the number of trials comes from."""
    data = make(18)
    plain = backtest.run(data, QUICK, DAYS[-1]).documents["summary"]
    assert (plain["n_trials"], plain["trials_from"]) == (1, "nobody") and plain["deflated_sharpe"] == plain["psr"]
    state = backtest.run(data | {"state": {"trials": 7}}, QUICK, DAYS[-1]).documents["summary"]
    ledger = backtest.run(data | {"state": {"trials": 7}, "ledger": {"trials": 9}}, QUICK, DAYS[-1]).documents["summary"]
    assert (state["n_trials"], state["trials_from"]) == (7, "state") and (ledger["n_trials"], ledger["trials_from"]) == (9, "ledger")
    assert ledger["deflated_sharpe"] < state["deflated_sharpe"] < plain["deflated_sharpe"]
    for name in ("deflated_sharpe", "psr", "pbo", "pbo_loss", "if_chosen"):
        assert 0 <= ledger[name] <= 1, name
    assert ledger["n_configurations"] == 48 and ledger["track_record_years"] == pytest.approx((len(DAYS) - 2) / 252)
    assert ledger["pbo_blocks"] == 6                                                       # 418 sessions; at most 28 are held
    assert all(type(value) in (float, int, str, dict) for value in ledger.values())


def test_the_table_of_regimes():
    data = make(19)
    frame = data["meta"]["evaluation"]
    frame["market_regime"] = np.where(frame["session"] < DAYS[150], "low_volatility", np.where(frame["session"] < DAYS[380], "normal", "crash"))
    data["labels"]["labels"]["return_pct"] = np.random.default_rng(0).normal(0.2, 5, len(frame))
    output = backtest.run(data, QUICK, DAYS[-1])
    table, trades = output.frames["regimes"].set_index("regime"), output.frames["trades"]
    assert list(table.index) == ["all", "low_volatility", "normal", "crash"]
    early = trades[trades["signal_session"] < DAYS[150]]
    assert table.loc["low_volatility", "n_trades"] == len(early) and table.loc["low_volatility", "hit_rate"] == pytest.approx((early["return_pct"] > 0).mean())
    assert table["n_trades"].iloc[1:].sum() == table.loc["all", "n_trades"] == len(trades)
    hit = frame[[f"proba_{name}" for name in CLASSES]].to_numpy().argmax(1) == frame["label"]
    assert table.loc["normal", "accuracy"] == pytest.approx(hit[frame["market_regime"] == "normal"].mean())
    assert np.isnan(table.loc["crash", "edge_low"]) and table.loc["crash", "n_blocks"] < 2  # 25 sessions: no interval, and none is made up
    assert (table.loc[["all", "normal"], "hit_low"] < table.loc[["all", "normal"], "hit_rate"]).all()


def test_never_a_sharpe_without_its_interval():
    """In every frame and in the summary, a ratio stands beside its bounds, and the bounds hold it."""
    output = backtest.run(make(20), QUICK, DAYS[-1])
    for name, frame in output.frames.items():
        for ratio in (column for column in frame if str(column).endswith("sharpe") and column != "deflated_sharpe"):
            low, high = frame[f"{ratio}_low"], frame[f"{ratio}_high"]
            assert (low < frame[ratio]).all() and (frame[ratio] < high).all(), name
    summary = output.documents["summary"]
    assert summary["sharpe_low"] < summary["sharpe"] < summary["sharpe_high"] and {"sharpe_low", "sharpe_high"} <= set(output.metrics)
    assert summary["edge_sharpe_low"] < summary["edge_sharpe"] < summary["edge_sharpe_high"]
    assert all("(" in text for text in backtest.luck_table(output).loc["annual ratio, interval"])
