"""Regimes: the rule session by session, nothing from the future, nothing from labels."""
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis, norm, skew
from sklearn.metrics import cohen_kappa_score

from mltrader import regimes as R
from mltrader.config import RegimeSettings, Settings, load_settings
from mltrader.core import REGIMES, ConfigError, DataError

START = "2003-01-01"


def market_frame(n=900, seed=0, hidden=()):
    """An index with crashes and rebounds in it, and a VIX that follows its volatility."""
    draw = np.random.default_rng(seed)
    volatility = 0.008 * np.exp(np.cumsum(draw.normal(0, 0.08, n)) - 0.02 * np.cumsum(np.cumsum(draw.normal(0, 0.001, n))))
    volatility = np.clip(volatility, 0.003, 0.045)
    returns = draw.standard_t(4, n) * volatility / 1.4
    for crash in draw.choice(np.arange(60, n - 60), 5, replace=False) if n > 200 else ():
        returns[crash: crash + 9] -= 0.025
        returns[crash + 9: crash + 20] += 0.018
    vix = 100 * volatility * 16 * np.exp(draw.normal(0.1, 0.08, n))
    vix[list(hidden)] = np.nan
    return pd.DataFrame({"session": pd.bdate_range(START, periods=n).as_unit("us"),
                         "index_close": 1000 * np.exp(np.cumsum(returns)), "vix_close": vix})


def panel_frame(index, symbols=6, seed=3):
    """Symbols around the index: one listed late, one with holes."""
    draw = np.random.default_rng(seed)
    n = len(index)
    own = np.cumsum(draw.normal(0, 0.012, (n, symbols)), axis=0)
    close = 40 * np.exp(np.log(index["index_close"].to_numpy() / 1000)[:, None] * draw.uniform(0.6, 1.6, symbols) + own)
    panel = pd.DataFrame({"session": np.repeat(index["session"].to_numpy(), symbols),
                          "symbol": [f"S{i}" for i in range(symbols)] * n, "adj_close": close.ravel()})
    number = np.repeat(np.arange(n), symbols)
    drop = ((panel["symbol"] == "S1") & (number < 70)) | ((panel["symbol"] == "S4") & (number % 31 == 7))
    return panel[~drop].reset_index(drop=True)


# ---- an independent implementation, one session at a time -------------------------------------------------------------

def slow_level(t, vix, close, s):
    """What volatility alone says at session t, from what was known then."""
    def realised(u):
        known = [c for c in close[: u + 1] if not math.isnan(c)]
        if math.isnan(close[u]) or len(known) <= s.volatility_sessions:
            return math.nan
        steps = np.diff(np.log(known[-s.volatility_sessions - 1:]))
        return math.sqrt(252) * float(np.std(steps, ddof=1))

    bounds = ((s.vix_crash, lambda v: v > s.vix_crash, "crash"), (s.vix_high, lambda v: v >= s.vix_high, "high_volatility"),
              (s.vix_low, lambda v: v >= s.vix_low, "normal"))
    if not math.isnan(vix[t]):
        return next((name for _, over, name in bounds if over(vix[t])), "low_volatility")
    now = realised(t)
    if math.isnan(now):
        return "normal"
    past = [(vix[u], realised(u)) for u in range(t)]
    past = [(v, r) for v, r in past if not math.isnan(v) and not math.isnan(r)]
    for _, over, name in bounds:
        below = sum(not over(v) for v, _ in past)
        if len(past) >= s.quantile_sessions and 0 < below < len(past):
            above = sum(r < now for _, r in past) >= below
        else:
            above = over(100 * s.volatility_premium * now)
        if above:
            return name
    return "low_volatility"


def slow_regimes(close, levels, s):
    """Regimes of one series of closes without gaps; `levels` are names."""
    in_crash, yes, no, out = False, 0, 0, []
    def fell(u):
        return u >= s.fall_sessions and close[u] / close[u - s.fall_sessions] - 1 <= s.fall
    for t in range(len(close)):
        window = list(range(max(0, t - s.low_sessions), t))
        recovered = False
        if window:
            low = min(window, key=lambda u: (close[u], -u))
            recovered = fell(low) and close[t] >= (1 + s.rise) * close[low]
        crash = fell(t) or (not recovered and levels[t] == "crash")
        yes, no = (yes + 1, 0) if crash else (0, no + 1)
        if yes >= s.enter_sessions:
            in_crash = True
        if no >= s.leave_sessions:
            in_crash = False
        calm = "recovery" if recovered else ("high_volatility" if levels[t] == "crash" else levels[t])
        out.append("crash" if in_crash else calm)
    return out


VARIANTS = [RegimeSettings(), RegimeSettings(leave_sessions=1), RegimeSettings(enter_sessions=2, leave_sessions=4),
            RegimeSettings(fall=-0.08, rise=0.04, low_sessions=7, fall_sessions=5, quantile_sessions=60)]


@pytest.mark.parametrize("rule", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_same_as_one_session_at_a_time(rule, seed):
    hidden = [3, 40, 250, *range(300, 320), 520]
    index = market_frame(560, seed, hidden)
    panel = panel_frame(index)
    index.loc[[120, 121, 411], "index_close"] = np.nan
    market = R.RegimeLabeler(rule).market(index)
    close, vix = index["index_close"].tolist(), index["vix_close"].tolist()
    levels = [slow_level(t, vix, close, rule) for t in range(len(index))]
    assert market["level"].tolist() == levels
    own = R.RegimeLabeler(rule).symbols(panel, market)
    by_session = dict(zip(index["session"], levels, strict=True))
    for symbol, bars in panel.groupby("symbol"):
        expected = slow_regimes(bars["adj_close"].tolist(), [by_session[s] for s in bars["session"]], rule)
        assert own.loc[bars.index, "regime"].tolist() == expected, symbol


@pytest.mark.parametrize("rule", VARIANTS)
def test_market_same_as_one_session_at_a_time(rule):
    index = market_frame(700, 4, [10, 11, 333])
    market = R.RegimeLabeler(rule).market(index)
    assert market["regime"].tolist() == slow_regimes(index["index_close"].tolist(), market["level"].tolist(), rule)
    assert set(market["regime"]) == set(REGIMES)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.12, 0.12), min_size=1, max_size=70), st.lists(st.sampled_from([0, 12.0, 20, 30, 50]), min_size=70, max_size=70),
       st.integers(1, 3), st.integers(1, 3))
def test_random_paths(steps, vix, enter, leave):
    n = len(steps)
    index = pd.DataFrame({"session": pd.bdate_range(START, periods=n).as_unit("us"),
                          "index_close": 100 * np.exp(np.cumsum(steps)), "vix_close": [v or math.nan for v in vix[:n]]})
    rule = RegimeSettings(enter_sessions=enter, leave_sessions=leave)
    market = R.RegimeLabeler(rule).market(index)
    assert market["regime"].tolist() == slow_regimes(index["index_close"].tolist(), market["level"].tolist(), rule)
    assert market["session"].equals(index["session"])


# ---- the future -------------------------------------------------------------------------------------------------------

def changed(frame, last, how, draw):
    if how == "cut":
        return frame[frame["session"] <= last].reset_index(drop=True)
    frame, after = frame.copy(), frame["session"] > last
    columns = [c for c in frame.columns if c not in ("session", "symbol")]
    noise = {"x1000": 1000.0, "nan": np.nan, "noise": np.exp(draw.normal(0, 1, (int(after.sum()), len(columns))))}[how]
    frame.loc[after, columns] = frame.loc[after, columns] * noise
    return frame


def leaks(labeler, index, panel, cuts):
    """How many cuts change a regime at or before them, for the market and for the symbols."""
    market, draw = labeler.market(index), np.random.default_rng(9)
    own, found = labeler.symbols(panel, market), [0, 0]
    for number, cut in enumerate(cuts):
        last, how = index["session"].iloc[cut], ("cut", "x1000", "nan", "noise")[number % 4]
        again = labeler.market(changed(index, last, how, draw))
        other = labeler.symbols(changed(panel, last, how, draw), again)
        rows = int((panel["session"] <= last).sum())
        columns = [c for c in market.columns]
        found[0] += not again[columns].iloc[: cut + 1].equals(market[columns].iloc[: cut + 1])
        found[1] += not other.iloc[:rows].equals(own.iloc[:rows])
    return found


CUTS = sorted(np.random.default_rng(2).choice(np.arange(30, 890), 40, replace=False))


SMALL = {"min_sessions": 250, "window_sessions": 400, "refit_months": 3, "choice_sessions": 200, "penalties": (5, 20, 60), "starts": 4}
STATEFUL = {name: RegimeSettings(method=name, quantile_sessions=200, **SMALL) for name in ("jump", "hmm")}


@pytest.mark.parametrize("method", ["rule", "jump", "hmm"])
@pytest.mark.parametrize("hidden", [(), range(400, 900, 3), range(0, 900)], ids=["vix", "partly", "no vix"])
def test_no_regime_knows_the_future(hidden, method):
    index = market_frame(hidden=list(hidden))
    labeler = R.RegimeLabeler(STATEFUL.get(method, RegimeSettings(quantile_sessions=200)))
    assert leaks(labeler, index, panel_frame(index), CUTS) == [0, 0]


def test_planted_leaks_are_seen(monkeypatch):
    index = market_frame(hidden=range(400, 900, 3))
    panel, labeler = panel_frame(index), R.RegimeLabeler(RegimeSettings(quantile_sessions=200))
    honest = R.realised_volatility

    def centred(close, n):
        return pd.Series(honest(close, n)).shift(-n // 2).to_numpy()

    with monkeypatch.context() as patch:
        patch.setattr(R, "realised_volatility", centred)
        assert min(leaks(labeler, index, panel, CUTS)) > 0
    above = R._above

    def whole_sample(bound, strict, vix, realised, settings):
        filled = np.where(np.isnan(vix), 100 * realised * np.nanmedian(vix) / (100 * np.nanmedian(realised)), vix)
        return above(bound, strict, filled, realised, settings)

    with monkeypatch.context() as patch:
        patch.setattr(R, "_above", whole_sample)
        assert min(leaks(labeler, index, panel, CUTS)) > 0


@pytest.mark.parametrize("method", ["jump", "hmm"])
def test_a_state_that_looks_back_from_the_end_is_seen(monkeypatch, method):
    """Smoothed in place of online states: the best path of the whole window, or probabilities that know its end."""
    from mltrader import switching

    def smoothed(returns, *model):
        ahead, _ = honest(returns, *model)
        back, _ = honest(returns[::-1].copy(), *model)
        return ahead * back[::-1], 0.0

    honest = switching.hmm_filter
    monkeypatch.setattr(switching, "hmm_filter", smoothed)
    monkeypatch.setattr(switching, "online_path", lambda loss, penalty: switching.best_path(loss, penalty)[0])
    index = market_frame()
    assert min(leaks(R.RegimeLabeler(STATEFUL[method]), index, panel_frame(index), CUTS)) > 0


# ---- state models behind the labeler ------------------------------------------------------------------------------------

@pytest.mark.parametrize("rule", STATEFUL.values(), ids=STATEFUL)
def test_same_columns_and_only_the_level_differs(rule):
    index = market_frame()
    panel = panel_frame(index)
    plain, market = R.RegimeLabeler().market(index), R.RegimeLabeler(rule).market(index)
    assert list(market.columns) == list(plain.columns) and (market.dtypes == plain.dtypes).all()
    has_state = (market["source"] == rule.method).to_numpy()
    assert not has_state[:300].any() and has_state[320:].all()
    assert market["level"][~has_state].equals(plain["level"][~has_state])
    assert set(market["level"][has_state]) == {"normal", "high_volatility"}         # two states: crash and recovery come from prices
    assert market["regime"].tolist() == slow_regimes(index["index_close"].tolist(), market["level"].tolist(), rule)
    assert {"crash", "recovery"} <= set(market["regime"][has_state]) and "low_volatility" not in set(market["regime"][has_state])
    own = R.RegimeLabeler(rule).symbols(panel, market)
    levels = dict(zip(index["session"], market["level"], strict=True))
    bars = panel[panel["symbol"] == "S4"]
    assert own.loc[bars.index, "regime"].tolist() == slow_regimes(bars["adj_close"].tolist(), [levels[s] for s in bars["session"]], rule)


@pytest.mark.parametrize("states", [2, 3, 4])
@pytest.mark.parametrize("method", ["jump", "hmm"])
def test_more_states_are_ordered_by_stress(method, states):
    index = market_frame(seed=5)
    market = R.RegimeLabeler(STATEFUL[method].model_copy(update={"states": states})).market(index)
    got = market[market["source"] == method]
    names = [REGIMES[code] for code in R.STATE_LEVELS[states]]
    assert set(got["level"]) <= set(names)
    realised = pd.Series(R.realised_volatility(index["index_close"].to_numpy(), 21))[got.index]
    means = realised.groupby(got["level"]).mean().reindex([n for n in names if n in set(got["level"])])
    assert means.iloc[-1] > means.iloc[0]


@pytest.mark.parametrize("rule", STATEFUL.values(), ids=STATEFUL)
def test_states_need_no_vix_and_survive_holes_in_the_index(rule):
    index = market_frame(hidden=range(900))
    index.loc[[500, 501, 640], "index_close"] = np.nan
    market = R.RegimeLabeler(rule).market(index)
    assert set(market["source"][320:].drop([500, 501, 640])) == {rule.method}
    assert set(market["source"].loc[[500, 501, 640]]) == {"none"} and set(market["level"].loc[[500, 501, 640]]) == {"normal"}
    assert market["regime"].notna().all()


@pytest.mark.parametrize("rule", STATEFUL.values(), ids=STATEFUL)
def test_without_a_model_the_rule_stands_in(rule):
    """Histories that are empty, one session long, without any close, or shorter than the first fit."""
    for index in (market_frame(0), market_frame(1), market_frame(200), market_frame(400).assign(index_close=np.nan)):
        plain, market = R.RegimeLabeler(RegimeSettings(quantile_sessions=200)).market(index), R.RegimeLabeler(rule).market(index)
        assert market.equals(plain) and rule.method not in set(market["source"])
    flat = market_frame(600).assign(index_close=1000.0)
    assert R.RegimeLabeler(rule).market(flat)["regime"].isin(REGIMES).all()


@pytest.mark.parametrize("rule", STATEFUL.values(), ids=STATEFUL)
def test_bad_input_of_state_models_is_refused_by_name(rule):
    index, labeler = market_frame(400), R.RegimeLabeler(rule)
    with pytest.raises(DataError, match="index_close"):
        labeler.market(index.drop(columns="index_close"))
    with pytest.raises(DataError, match="not sorted"):
        labeler.market(index[::-1])
    with pytest.raises(DataError, match="not among the market's regimes"):
        labeler.symbols(panel_frame(index), labeler.market(index[:50]))


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "garch"}, "rule"), ({"states": 5}, "states"), ({"penalties": "50, 20"}, "must rise"), ({"penalties": ""}, "penalties"),
    ({"min_sessions": "3001"}, "must not exceed"), ({"half_lives": "10, 20"}, "half_lives"), ({"refit_months": "0"}, "refit_months"),
])
def test_bad_settings_are_named(changes, message):
    name, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=message):
        load_settings(None, {f"MLTRADER_REGIMES__{name.upper()}": str(value)})


@pytest.mark.parametrize("method", ["jump", "hmm"])
def test_after_its_warm_up_a_state_does_not_depend_on_where_history_begins(method):
    rule = STATEFUL[method].model_copy(update={"half_lives": (4, 7, 10)})
    index = market_frame(1400, seed=8)
    whole, begin = R.RegimeLabeler(rule).market(index), 213
    later = R.RegimeLabeler(rule).market(index[begin:].reset_index(drop=True))
    settled = R.state_warm_up(rule) + 60
    assert settled < 1000 and later["level"][settled:].tolist() == whole["level"][begin + settled:].tolist()
    assert R.state_warm_up(RegimeSettings()) == 0


def test_run_reports_the_trials_and_the_fits():
    index = market_frame(700)
    inputs = {"market": {"panel": panel_frame(index), "index": index}}
    for method, trials in (("rule", 1), ("jump", 3), ("hmm", 1)):
        rule = STATEFUL.get(method, RegimeSettings())
        document = R.run(inputs, Settings(regimes=rule), index["session"].iloc[-1]).documents["rule"]
        assert document["trials"] == trials and document["method"] == method and document["volatility_premium"] == 1.2
        assert (document["fits"] == []) == (method == "rule")
        assert all(fit["penalty"] in (5.0, 20.0, 60.0) for fit in document["fits"]) or method != "jump"
        assert json.loads(json.dumps(document, allow_nan=False)) == document


# ---- the comparison -----------------------------------------------------------------------------------------------------

def test_comparison_adds_up():
    index = market_frame()
    rule = RegimeSettings(quantile_sessions=200, **SMALL)
    compared = R.compare(index, rule, index["session"].iloc[-1], start="2004-01-01")
    for name in ("rule", "jump", "hmm"):
        alone = R.RegimeLabeler(rule.model_copy(update={"method": name})).market(index)
        assert compared.regimes[name].tolist() == alone["regime"].tolist()
    cut = index["session"].iloc[700]
    assert R.compare(index, rule, cut).regimes.equals(compared.regimes[:701])
    timing = compared.timing
    assert compared.trials == 3 + len(timing) - 1                                     # penalties, and every row but buy-and-hold
    first = R.RegimeLabeler(STATEFUL["hmm"]).market(index)["source"].eq("hmm").idxmax()
    held = index["index_close"].iloc[-1] / index["index_close"].iloc[first - 1]
    assert compared.growth.index[0] == index["session"].iloc[first] and compared.growth["buy and hold"].iloc[-1] == pytest.approx(held)
    assert np.diag(compared.kappa).tolist() == [1.0] * 4 and (compared.kappa <= 1).all(axis=None)
    calm = [compared.regimes[name].isin(R.STRESSED)[first:] for name in ("rule", "jump")]
    assert compared.kappa.loc["jump", "rule"] == pytest.approx(cohen_kappa_score(*calm))
    assert compared.kappa.loc["rule", "hmm"] == pytest.approx(cohen_kappa_score(compared.regimes["rule"][first:], compared.regimes["hmm"][first:]))
    assert R.compare_figure(compared).axes and list(R.compare_table(compared).index) == list(timing.index)


def test_comparison_of_a_short_history_claims_nothing():
    index = market_frame(120)
    compared = R.compare(index, RegimeSettings(), index["session"].iloc[-1])
    assert compared.regimes["jump"].equals(compared.regimes["rule"]) and "no claim" in R.verdict(compared)
    assert R.compare_figure(compared).axes and len(R.compare_table(compared)) == 7
    with pytest.raises(DataError, match="nothing to compare"):
        R.compare(index, RegimeSettings(), "1990-01-01")


def test_an_edge_is_found_and_deflated_by_its_trials():
    """Switching off exactly the wild stretches is an edge; the more trials, the less of it is believed."""
    draw = np.random.default_rng(0)
    net = draw.normal(0.0006, 0.01, (2, 2520))
    net[0] -= np.where(np.arange(2520) % 500 < 120, 0.003, 0)
    gaps = np.quantile(np.diff(R.block_sharpes(net), axis=0), 0.05)
    assert gaps > 0
    few, many = (R.deflated_sharpe(net[1], draw.normal(0, 0.5, n)) for n in (3, 300))
    assert 0 < many < few < R.deflated_sharpe(net[1], np.zeros(1)) <= 1
    ratio, trials = net[1].mean() / net[1].std(ddof=1), np.array([0.1, 0.5, -0.2, 0.3])
    best = trials.std(ddof=1) / np.sqrt(252) * ((1 - np.euler_gamma) * norm.ppf(3 / 4) + np.euler_gamma * norm.ppf(1 - 1 / (4 * np.e)))
    wide = np.sqrt(1 - skew(net[1]) * ratio + (kurtosis(net[1], fisher=False) - 1) / 4 * ratio**2)
    assert R.deflated_sharpe(net[1], trials) == pytest.approx(norm.cdf((ratio - best) * np.sqrt(2519) / wide))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.06, 0.06), min_size=2, max_size=150))
def test_drawdowns_are_deep_and_apart(steps):
    close = 100 * np.exp(np.cumsum(steps))
    index = pd.DataFrame({"session": pd.bdate_range(START, periods=len(steps)).as_unit("us"), "index_close": close})
    path, found = index.set_index("session")["index_close"], R.drawdown_episodes(index)
    worst = min(close[t] / close[max(0, t - 59):t + 1].max() - 1 for t in range(len(close)))
    assert (len(found) > 0) == (worst <= -0.12)
    for episode in found.itertuples():
        inside = path[episode.start:episode.end]
        assert inside.iloc[-1] / inside.iloc[0] - 1 <= -0.12 and inside.iloc[0] == inside.max() and len(inside) <= 60
    assert found["end"].is_monotonic_increasing


# ---- single properties ------------------------------------------------------------------------------------------------

def test_price_rules_come_before_vix():
    index = market_frame(60)
    index["index_close"] = [100.0] * 40 + [80.0] * 3 + [92.0] * 17
    index["vix_close"] = 12.0
    regime = R.RegimeLabeler(RegimeSettings(leave_sessions=1)).market(index)["regime"].tolist()
    assert regime[39:46] == ["low_volatility", "crash", "crash", "crash", "recovery", "recovery", "recovery"]
    index["vix_close"] = 80.0
    regime = R.RegimeLabeler(RegimeSettings(leave_sessions=1)).market(index)["regime"].tolist()
    assert regime[45] == "recovery" and regime[39] == "crash"


def test_a_missing_vix_uses_realised_volatility_and_stays_missing():
    index = market_frame(500, hidden=[450])
    market = R.RegimeLabeler(RegimeSettings(quantile_sessions=100)).market(index)
    assert market["source"].tolist() == ["vix"] * 450 + ["realised"] + ["vix"] * 49
    assert math.isnan(market["vix"].iloc[450]) and market["regime"].notna().all()
    wild = index.copy()
    wild.loc[430:449, "index_close"] *= np.where(np.arange(20) % 2, 1.06, 1.0)
    assert R.RegimeLabeler(RegimeSettings(quantile_sessions=100)).market(wild)["level"].iloc[450] == "crash"


def test_without_vix_the_fixed_bounds_hold():
    index = market_frame(500, hidden=range(500))
    market = R.RegimeLabeler().market(index)
    realised = 100 * RegimeSettings().volatility_premium * R.realised_volatility(index["index_close"].to_numpy(), 21)
    expected = pd.cut(realised, [-1, 15, 25, 35, 1e9], right=False, labels=list(REGIMES[:4]))
    known = ~np.isnan(realised)
    assert market["level"][known].tolist() == list(expected[known])
    assert set(market["source"][~known]) == {"none"} and set(market["level"][~known]) == {"normal"}


def test_symbols_do_not_depend_on_each_other_or_on_order():
    index = market_frame(400)
    panel, labeler = panel_frame(index), R.RegimeLabeler()
    market = labeler.market(index)
    own = labeler.symbols(panel, market)
    for symbol in ("S1", "S4"):
        alone = labeler.symbols(panel[panel["symbol"] == symbol].reset_index(drop=True), market)
        assert alone["regime"].tolist() == own.loc[own["symbol"] == symbol, "regime"].tolist()
    assert labeler.symbols(panel.assign(adj_close=panel["adj_close"] * 4), market).equals(own)   # a split changes nothing


def test_no_regime_depends_on_labels():
    index = market_frame(300)
    panel = panel_frame(index)
    plain = R.run({"market": {"panel": panel, "index": index}}, Settings(), index["session"].iloc[-1])
    more = R.run({"market": {"panel": panel.assign(label=1), "index": index}, "labels": {"labels": None}}, Settings(), index["session"].iloc[-1])
    assert plain.frames["symbol_regimes"].equals(more.frames["symbol_regimes"])


def test_bad_input_is_refused_by_name():
    index, labeler = market_frame(100), R.RegimeLabeler()
    panel = panel_frame(index)
    with pytest.raises(DataError, match="vix_close"):
        labeler.market(index.drop(columns="vix_close"))
    with pytest.raises(DataError, match="not sorted"):
        labeler.market(pd.concat([index, index.tail(1)]))
    with pytest.raises(DataError, match="not sorted"):
        labeler.symbols(panel[::-1], labeler.market(index))
    with pytest.raises(DataError, match="not among the market's regimes"):
        labeler.symbols(panel, labeler.market(index[:50]))


def test_run_leaves_its_input_alone_and_adds_up():
    index = market_frame(400)
    panel = panel_frame(index)
    before = panel.copy(), index.copy()
    output = R.run({"market": {"panel": panel, "index": index}}, Settings(), index["session"].iloc[350])
    assert panel.equals(before[0]) and index.equals(before[1])
    own = output.frames["symbol_regimes"]
    assert own["session"].max() == index["session"].iloc[350] and set(own["regime"]) <= set(REGIMES)
    assert sum(output.metrics[f"share_{name}"] for name in REGIMES) == pytest.approx(1)
    assert R.table(output).loc["market"]["rows"].sum() == 351 and R.figure(output).axes
