"""Labels: against a slow implementation, one trade at a time; maturity; nothing from before or after its window."""
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import labels as L
from mltrader.config import LabelSettings, Settings
from mltrader.core import CLASSES, DataError, usable_at

PRICES = ("open", "high", "low", "close")


def make_panel(n=260, symbols=4, seed=0, scale=0.02):
    """Complete bars with gaps; one symbol listed late, one with holes; adjusted closes drift against closes."""
    draw = np.random.default_rng(seed)
    close = 50 * np.exp(np.cumsum(draw.standard_t(4, (n, symbols)) * scale, axis=0)).ravel()
    open_ = close * np.exp(draw.normal(0, scale, close.size))
    panel = pd.DataFrame({
        "session": np.repeat(pd.bdate_range("2010-01-04", periods=n).as_unit("us"), symbols),
        "symbol": [f"S{i}" for i in range(symbols)] * n, "open": open_,
        "high": np.maximum(open_, close) * (1 + np.abs(draw.normal(0, scale / 2, close.size))),
        "low": np.minimum(open_, close) * (1 - np.abs(draw.normal(0, scale / 2, close.size))),
        "close": close, "adj_close": close * np.repeat(np.linspace(0.5, 1, n), symbols)})
    number = np.repeat(np.arange(n), symbols)
    drop = ((panel["symbol"] == "S1") & (number < 40)) | ((panel["symbol"] == "S2") & (number % 17 == 3))
    return panel[~drop].reset_index(drop=True)


def variant(panel, touch, entry):
    """The panel with only the columns that lead to a mode."""
    return panel.drop(columns=[c for c, on in (("open", entry == "open"), ("high", touch == "high_low"), ("low", touch == "high_low")) if not on])


# ---- one trade at a time ------------------------------------------------------------------------------------------------

def slow_labels(panel, s, touch, entry):
    rows = []
    for symbol, bars in panel.groupby("symbol"):
        bars = bars.reset_index(drop=True)
        factor = bars["adj_close"] / bars["close"]
        p = {c: (bars[c] * factor if c in bars else pd.Series(np.nan, index=bars.index)).tolist() for c in PRICES}
        p["close"] = bars["adj_close"].tolist()
        for t in range(len(bars)):
            e = t + 1
            if e + s.horizon + 1 >= len(bars):
                continue
            price = p[entry][e]
            if s.preset == "seed":
                upper, lower = price * (1 + s.take_profit), price * (1 - s.stop_loss)
            else:
                if t < s.volatility_sessions:
                    continue
                steps = np.diff(np.log(p["close"][t - s.volatility_sessions: t + 1]))
                width = s.volatility_multiple * float(np.std(steps, ddof=1)) * math.sqrt(s.horizon)
                if width < 1e-9:
                    continue
                upper, lower = price * math.exp(width), price * math.exp(-width)
            rows.append((bars["session"][t], symbol, *slow_trade(p, e, upper, lower, s.horizon, touch, entry), price))
            label, end, out, reason, _ = rows[-1][2:]
            rows[-1] = (bars["session"][t], symbol, label, bars["session"][e], bars["session"][end], bars["session"][e + s.horizon + 1],
                        100 * (out / price - 1) - s.cost_bps / 100, math.log(p["close"][e + s.horizon] / price), reason)
    return pd.DataFrame(rows, columns=["session", "symbol", "label", "entry_session", "label_end", "label_known_at", "return_pct",
                                       "forward_log_return", "exit_reason"]).sort_values(["session", "symbol"], ignore_index=True)


def slow_trade(p, e, upper, lower, horizon, touch, entry):
    for j in range(e if entry == "open" else e + 1, e + horizon + 1):
        if touch == "close":
            if p["close"][j] <= lower:
                return 0, j, p["close"][j], "stop"
            if p["close"][j] >= upper:
                return 2, j, p["close"][j], "target"
            continue
        if entry == "open" and j > e and p["open"][j] <= lower:
            return 0, j, p["open"][j], "stop"
        if entry == "open" and j > e and p["open"][j] >= upper:
            return 2, j, p["open"][j], "target"
        if p["low"][j] <= lower:
            return 0, j, lower, "stop"
        if p["high"][j] >= upper:
            return 2, j, upper, "target"
    return 1, e + horizon, p["close"][e + horizon], "time"


def same(fast, slow):
    assert len(fast) == len(slow)
    for column in slow.columns:
        if column in ("return_pct", "forward_log_return"):
            np.testing.assert_allclose(fast[column], slow[column], rtol=1e-9, atol=1e-9)
        else:
            assert fast[column].tolist() == slow[column].tolist(), column


MODES = [(t, e) for t in ("close", "high_low") for e in ("close", "open")]


@pytest.mark.parametrize("touch, entry", MODES)
@pytest.mark.parametrize("preset", ["seed", "volatility"])
@pytest.mark.parametrize("horizon", [1, 5, 14])
def test_same_as_one_trade_at_a_time(touch, entry, preset, horizon):
    rule = LabelSettings(preset=preset, horizon=horizon, cost_bps=7)
    panel = variant(make_panel(seed=horizon), touch, entry)
    fast = L.triple_barrier(panel, rule)
    assert set(fast["touch_source"]) == {touch} and set(fast["entry_source"]) == {entry}
    assert fast["label"].dtype == np.int8 and set(fast["label"]) == {0, 1, 2}
    same(fast, slow_labels(panel, rule, touch, entry))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-12, 12)] * 4), min_size=1, max_size=40), st.integers(1, 6), st.sampled_from(MODES),
       st.sampled_from(["seed", "volatility"]))
def test_random_paths(steps, horizon, mode, preset):
    """Coarse prices, so that barriers are hit exactly, gapped through and hit on both sides."""
    body = 100 + np.cumsum([s[0] for s in steps]) * 0.5
    body = np.maximum(body, 20)
    open_ = np.maximum(body + [s[1] * 0.5 for s in steps], 15)
    panel = pd.DataFrame({"session": pd.bdate_range("2020-01-01", periods=len(steps)).as_unit("us"), "symbol": "X", "open": open_,
                          "high": np.maximum(open_, body) + [abs(s[2]) * 0.5 for s in steps],
                          "low": np.minimum(open_, body) - [abs(s[3]) * 0.5 for s in steps], "close": body, "adj_close": body})
    rule = LabelSettings(preset=preset, horizon=horizon, volatility_sessions=5, take_profit=0.05, stop_loss=0.05, volatility_multiple=0.7)
    panel = variant(panel, *mode)
    fast, slow = L.triple_barrier(panel, rule), slow_labels(panel, rule, *mode)
    assert len(fast) == len(slow)
    if len(slow):
        same(fast, slow)


# ---- maturity -----------------------------------------------------------------------------------------------------------

def test_a_symbol_that_disappears_is_labelled_to_its_end():
    """Red team: labels that need bars after them would let a portfolio leave every failing company in good time."""
    panel = make_panel(200).drop(columns=["open", "high", "low"])
    days = np.unique(panel["session"])
    last = days[120]
    panel = panel[(panel["symbol"] != "S3") | (panel["session"] <= last)].reset_index(drop=True)
    rule = LabelSettings(horizon=5)
    full = L.triple_barrier(panel, rule)
    gone = full[full["symbol"] == "S3"]
    assert gone["session"].max() == days[119] and gone["entry_session"].max() == last  # no decision on, and no entry after, the last bar
    late = gone[gone["session"] > days[113]]
    assert len(late) == 6 and (late["label_known_at"] == days[120 + 7]).all() and (late["label_end"] <= late["label_known_at"]).all()
    final = panel.loc[(panel["symbol"] == "S3") & (panel["session"] == last), "adj_close"].item()
    entry = panel.loc[(panel["symbol"] == "S3") & (panel["session"] == days[119]), "adj_close"].item()
    row = gone[gone["session"] == days[118]].iloc[0]
    assert row["forward_log_return"] == pytest.approx(math.log(final / entry))
    for cut in (days[121], days[126], days[127], days[150]):  # what is said to be known at a session was known then
        then = L.triple_barrier(panel[panel["session"] <= cut].reset_index(drop=True), rule)
        pd.testing.assert_frame_equal(then, full[full["label_known_at"] <= cut].reset_index(drop=True))


def test_all_rows_mature_by_the_vertical_barrier():
    panel, rule = make_panel(), LabelSettings(horizon=10)
    labels = L.triple_barrier(panel, rule)
    bar = panel.groupby("symbol").cumcount()
    number = pd.Series(bar.to_numpy(), index=pd.MultiIndex.from_frame(panel[["session", "symbol"]]))

    def at(column):
        return number.reindex(pd.MultiIndex.from_arrays([labels[column], labels["symbol"]])).to_numpy()

    assert (at("entry_session") - at("session") == 1).all()
    assert (at("label_known_at") - at("entry_session") == rule.horizon + 1).all()      # whatever was touched first
    assert (labels["label_end"] < labels["label_known_at"]).all() and (labels["label_end"] >= labels["entry_session"]).all()
    held = at("label_end") - at("entry_session")
    assert (held[labels["exit_reason"] == "time"] == rule.horizon).all()
    for symbol, bars in panel.groupby("symbol"):
        assert (labels["symbol"] == symbol).sum() == len(bars) - rule.horizon - 2
    as_of = panel["session"].iloc[-200]
    early = L.triple_barrier(panel[panel["session"] <= as_of], rule)
    assert usable_at(early, as_of).all() and len(early) == int(usable_at(labels, as_of).sum())
    hits = labels[usable_at(labels, as_of)].tail(8)["exit_reason"].eq("time").mean()
    fast_only = labels[labels["label_end"] <= as_of].tail(8)["exit_reason"].eq("time").mean()
    assert hits >= fast_only                                                            # the bias that the rule avoids


@pytest.mark.parametrize("preset", ["seed", "volatility"])
@pytest.mark.parametrize("touch, entry", MODES)
def test_prices_outside_the_window_do_not_matter(preset, touch, entry):
    """30 cuts: labels known at the cut do not change with what comes after it, bit for bit."""
    panel = variant(make_panel(seed=5), touch, entry)
    rule, draw = LabelSettings(preset=preset, horizon=6), np.random.default_rng(0)
    labels, sessions = L.triple_barrier(panel, rule), panel["session"].unique()
    for number, cut in enumerate(draw.choice(np.arange(60, 250), 30, replace=False)):
        known = labels[usable_at(labels, sessions[cut])].reset_index(drop=True)
        if number % 2:
            again = L.triple_barrier(panel[panel["session"] <= sessions[cut]].reset_index(drop=True), rule)
        else:
            noisy, after = panel.copy(), panel["session"] > sessions[cut]
            columns = [c for c in panel.columns if c not in ("session", "symbol")]
            noisy.loc[after, columns] *= np.exp(draw.normal(0, 1, (int(after.sum()), 1)))
            again = L.triple_barrier(noisy, rule)
            again = again[usable_at(again, sessions[cut])].reset_index(drop=True)
        pd.testing.assert_frame_equal(again, known, check_exact=True)


def test_the_volatility_is_the_one_known_at_t():
    """A jump at the entry's session changes the barriers of the rows after it, not of the row before it."""
    panel = make_panel(symbols=1, seed=2)[["session", "symbol", "close", "adj_close"]]
    close = panel["adj_close"].to_numpy()[:, None].copy()
    entry = np.ones_like(close)
    rule = LabelSettings(preset="volatility")
    before, _ = L.barriers(close, entry, rule)
    close[101:] *= 1.3
    after, _ = L.barriers(close, entry, rule)
    assert (before[:101] == after[:101])[~np.isnan(before[:101])].all() and after[101, 0] > before[101, 0]


# ---- mode, missing values, errors ---------------------------------------------------------------------------------------

def test_one_mode_a_run():
    panel = make_panel()
    few = panel["symbol"] == "S3"
    patchy = panel.assign(**{c: panel[c].where(~few) for c in ("open", "high", "low")})
    labels = L.triple_barrier(patchy, LabelSettings())
    assert set(labels["touch_source"]) == {"close"} and set(labels["entry_source"]) == {"close"}
    bare = L.triple_barrier(panel[["session", "symbol", "close", "adj_close"]], LabelSettings())
    pd.testing.assert_frame_equal(labels, bare)                        # opens that are not used do not matter
    nearly = panel.copy()
    nearly.loc[nearly.index[100:110], "high"] = np.nan                 # 1 %: still high/low, those windows are absent
    labels, whole = L.triple_barrier(nearly, LabelSettings(horizon=3)), L.triple_barrier(panel, LabelSettings(horizon=3))
    assert set(labels["touch_source"]) == {"high_low"} and 0 < len(whole) - len(labels) < 60
    merged = labels.merge(whole, on=["session", "symbol"])
    assert (merged["label_x"] == merged["label_y"]).all()


def test_splits_and_dividends_do_not_matter():
    """Labels live on the adjusted scale: an unadjusted split in close, open, high and low changes nothing."""
    panel = make_panel()
    split = panel.copy()
    late = (split["session"] > split["session"].iloc[400]) & (split["symbol"] == "S0")
    split.loc[late, list(PRICES)] /= 4
    pd.testing.assert_frame_equal(L.triple_barrier(split, LabelSettings()), L.triple_barrier(panel, LabelSettings()))


def test_a_halted_symbol_has_no_scaled_barrier():
    panel = make_panel(symbols=1)
    panel.loc[100:140, [*PRICES, "adj_close"]] = 10.0
    labels = L.triple_barrier(panel, LabelSettings(preset="volatility", horizon=5))
    assert not labels["session"].isin(panel["session"].iloc[121:140]).any()
    assert np.isfinite(labels[["return_pct", "forward_log_return"]].to_numpy()).all()


def test_bad_input_is_refused():
    panel = make_panel(60)
    with pytest.raises(DataError, match="not sorted"):
        L.triple_barrier(panel[::-1], LabelSettings())
    with pytest.raises(DataError, match="duplicates"):
        L.triple_barrier(pd.concat([panel, panel.tail(1)], ignore_index=True), LabelSettings())
    with pytest.raises(DataError, match="adj_close"):
        L.triple_barrier(panel.drop(columns="adj_close"), LabelSettings())
    with pytest.raises(DataError, match="needs 17 bars"):
        L.run({"market": {"panel": panel}}, Settings(), panel["session"].iloc[30])


def test_run_compares_the_presets_and_leaves_its_input_alone():
    panel = make_panel()
    before, as_of = panel.copy(), panel["session"].iloc[700]
    output = L.run({"market": {"panel": panel}}, Settings(labels=LabelSettings(preset="volatility")), as_of)
    assert panel.equals(before)
    labels, comparison = output.frames["labels"], output.frames["comparison"]
    assert labels["label_known_at"].max() <= as_of and comparison.groupby("preset").size().to_dict() == {"seed": 3, "volatility": 3}
    used = comparison[comparison["preset"] == "volatility"]
    assert used["rows"].sum() == len(labels)
    for code in range(len(CLASSES)):
        assert used["mean_return_pct"].iloc[code] == pytest.approx(labels.loc[labels["label"] == code, "return_pct"].mean())
    assert L.table(output).shape == (6, 4) and L.figure(output).axes
