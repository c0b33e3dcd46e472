"""Features: nothing from the future, nothing from the start of history, and the same numbers as slow code."""
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from mltrader import expressions as E
from mltrader import features as F
from mltrader import market, packaged
from mltrader.config import FeatureSettings, Settings, home
from mltrader.core import ConfigError, DataError

KEYS = ["session", "symbol"]


def synthetic(n=900, symbols=6, seed=0):
    """Six symbols with complete bars: one listed late, one with holes; VIX with a gap; rates."""
    draw = np.random.default_rng(seed)
    sessions = pd.bdate_range("2012-01-02", periods=n).as_unit("us")
    volatility = 0.01 * np.exp(0.4 * np.sin(np.arange(n) / 60))
    factor = draw.normal(0.0003, 1, n) * volatility
    steps = factor[:, None] * draw.uniform(0.5, 1.5, symbols) + draw.standard_t(4, (n, symbols)) * 0.008
    steps = steps * np.linspace(0.5, 1.8, symbols)  # calm and wild symbols
    close = 50 * np.exp(np.cumsum(steps, axis=0)).ravel()
    spread = np.abs(draw.normal(0, 0.006, (2, close.size))) + 0.001
    before = np.vstack([np.full((1, symbols), 50.0), close.reshape(n, symbols)[:-1]])
    night = draw.standard_t(3, (n, symbols)) * 0.3 * np.abs(steps).mean() * np.exp(draw.normal(0, 0.1, (n, symbols)).cumsum(axis=0) / 4)
    open_ = (before * np.exp(night)).ravel()
    panel = pd.DataFrame({
        "session": np.repeat(sessions, symbols), "symbol": [f"S{i:0{len(str(symbols - 1))}}" for i in range(symbols)] * n, "open": open_,
        "high": np.maximum(open_, close) * (1 + spread[0]), "low": np.minimum(open_, close) * (1 - spread[1]),
        "close": close, "adj_close": close * np.repeat(np.linspace(0.8, 1, n), symbols),
        "volume": np.exp(draw.normal(13, 0.5, close.size))})
    number = np.repeat(np.arange(n), symbols)
    late, holes = (panel["symbol"] == "S1") & (number < 90), (panel["symbol"] == "S4") & (number % 37 == 5)
    panel = panel[~late & ~holes].reset_index(drop=True)
    rates = draw.normal(0, 0.04, (3, n)).cumsum(axis=1) + np.array([[2.0], [3.0], [4.0]])
    index = pd.DataFrame({
        "session": sessions, "index_close": 1000 * np.exp(factor.cumsum()),
        "vix_close": 100 * volatility * 16 * np.exp(draw.normal(0, 0.1, n)),
        "rate_3m": rates[0], "rate_2y": rates[1], "rate_10y": rates[2]})
    index.loc[[300, 301, 700], "vix_close"] = np.nan
    return panel, index


PANEL, INDEX = synthetic()
NUMBERS = [c for c in PANEL.columns if c not in KEYS]


@pytest.fixture(scope="module")
def values():
    return F.compute(PANEL, INDEX, F.FEATURES)


def cuts(count=25, low=300, seed=1):
    return sorted(np.random.default_rng(seed).choice(np.arange(low, 880), count, replace=False))


def changed(frame, cut, how, draw):
    """`frame` with everything after session number `cut` cut off or corrupted (30 sessions are enough)."""
    last, end = INDEX["session"].iloc[cut], INDEX["session"].iloc[min(cut + 30, len(INDEX) - 1)]
    if how == "cut":
        return frame[frame["session"] <= last].reset_index(drop=True)
    frame = frame[frame["session"] <= end].reset_index(drop=True)
    columns, after = [c for c in frame.columns if c not in KEYS], frame["session"] > last
    noise = {"x1000": 1000.0, "nan": np.nan, "noise": np.exp(draw.normal(0, 1, (int(after.sum()), len(columns))))}[how]
    frame.loc[after, columns] = frame.loc[after, columns] * noise
    return frame


def leaks(features, values, cut_points, hows=("cut", "x1000", "nan", "noise")):
    """Names of the features of which some value at or before a cut changes with what comes after it."""
    names, found, draw = [f.name for f in features], set(), np.random.default_rng(5)
    bits = values[names].to_numpy().view(np.uint32)
    for number, cut in enumerate(cut_points):
        how = hows[number % len(hows)]
        again = F.compute(changed(PANEL, cut, how, draw), changed(INDEX, cut, how, draw), features)
        rows = int((values["session"] <= INDEX["session"].iloc[cut]).sum())
        assert again[KEYS].iloc[:rows].equals(values[KEYS].iloc[:rows])
        differ = (again[names].to_numpy()[:rows].view(np.uint32) != bits[:rows]).any(axis=0)
        found |= set(np.array(names)[differ])
    return found


def planted(name, function, *args):
    return F.Feature(name, "planted", "a leak", E.apply(function, *args))


def future_of(x):
    return np.concatenate([x[1:], np.full_like(x[:1], np.nan)])


def pooled_rank(values, starts, codes, out):
    """Ranks over all sessions at once, where ranks within one are meant."""
    out[:] = pd.Series(values).rank(pct=True).to_numpy()


LEAKS = {
    "shift": planted("shift", future_of, F.PRICE),
    "centred_window": planted("centred_window", lambda x: pd.DataFrame(x).rolling(5, center=True).mean().to_numpy(), F.PRICE),
    "whole_sample_zscore": planted("whole_sample_zscore", lambda x: (x - np.nanmean(x, axis=0)) / np.nanstd(x, axis=0), F.PRICE),
    "backfill": planted("backfill", lambda x: pd.DataFrame(x).bfill().to_numpy(), F.returns(60)),
    "last_price": planted("last_price", lambda x: x / np.nanmax(x, axis=0), F.CLOSE),
    "market_reversed": planted("market_reversed", lambda x: x / x[-1], F.INDEX),
    "pooled_rank": F.Feature("pooled_rank", "planted", "a leak", F.within_session(pooled_rank, F.returns(5))),
}


@pytest.mark.parametrize("seed", [1, 2])
def test_no_feature_knows_the_future(values, seed):
    """60 cuts; each is cut off, multiplied by 1000, blanked or replaced by noise in turn. Bit for bit."""
    assert leaks(F.FEATURES, values, cuts(30, seed=seed)) == set()


@pytest.mark.parametrize("name", LEAKS)
def test_planted_leaks_are_seen(name, monkeypatch):
    leak = LEAKS[name]
    monkeypatch.setitem(F.SESSION, "pooled_rank", pooled_rank)
    clean = [F.FEATURES[0], F.FEATURES[-1]]
    cut_points = cuts(4, seed=7) if name != "backfill" else [20, 30, 40, 50]  # inside the look-back
    assert leaks([leak, *clean], F.compute(PANEL, INDEX, [leak, *clean]), cut_points) == {name}


def test_start_of_history_is_forgotten_after_warm_up(values):
    """History begins at three other points; after `warm_up` bars the values agree to 1e-6."""
    warm_up = np.array([f.warm_up for f in F.FEATURES])
    names = [f.name for f in F.FEATURES]
    for start in (95, 151, 233):
        first = INDEX["session"].iloc[start]
        panel = PANEL[PANEL["session"] >= first].reset_index(drop=True)
        again = F.compute(panel, INDEX[INDEX["session"] >= first].reset_index(drop=True), F.FEATURES)
        full = values[values["session"] >= first].reset_index(drop=True)
        # holes of S4 (24 in 900) delay its own bars, and those of VIX its own values, against the sessions
        bar = np.minimum(panel.groupby("symbol").cumcount().to_numpy(), panel.groupby("symbol").cumcount().to_numpy() - 26)
        settled = bar[:, None] >= warm_up[None, :]
        a, b = again[names].to_numpy()[settled], full[names].to_numpy()[settled]
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        assert settled.any(axis=0).all()
    assert warm_up.max() <= 600


def test_too_short_a_warm_up_is_seen(values):
    slow = F.Feature("slow", "planted", "ema with alpha 1/200", E.node("recursion", [F.PRICE], (1 / 200, 2, 1), 1, 60))
    assert slow.warm_up == 61
    full = F.compute(PANEL, INDEX, [slow])
    panel = PANEL[PANEL["session"] >= INDEX["session"].iloc[95]].reset_index(drop=True)
    again, rest = F.compute(panel, INDEX, [slow])["slow"], full["slow"].iloc[len(PANEL) - len(panel):].to_numpy()
    assert np.abs(again.to_numpy() - rest)[2000:].max() > 1e-6


def test_blocks_threads_and_symbols_do_not_matter(values):
    for block, threads in ((1, 1), (2, 2), (5, 1), (100, 2)):
        pd.testing.assert_frame_equal(F.compute(PANEL, INDEX, F.FEATURES, threads, block=block), values, check_exact=True)
    own = [f for f in F.FEATURES if f.scope != "session"]
    alone = F.compute(PANEL[PANEL["symbol"] == "S2"].reset_index(drop=True), INDEX, own)
    same = values[values["symbol"] == "S2"].reset_index(drop=True)[alone.columns]
    pd.testing.assert_frame_equal(alone, same, check_exact=True)


def test_values_begin_at_min_periods_and_are_float32(values):
    own = [f for f in F.FEATURES if f.scope != "session"]  # comparisons wait for the symbols listed late
    first = values.loc[values["symbol"] == "S0", [f.name for f in own]]
    begin = (~np.isnan(first.to_numpy())).argmax(axis=0) + 1
    assert dict(zip(first.columns, begin.tolist(), strict=True)) == {f.name: f.min_periods for f in own}
    assert set(first.dtypes) == {np.dtype("float32")} and not np.isinf(first.to_numpy()).any()
    assert list(values.columns) == KEYS + [f.name for f in F.FEATURES]
    assert values[KEYS].equals(PANEL[KEYS])


def test_inputs_are_left_alone():
    panel, index = PANEL.copy(), INDEX.copy()
    F.compute(panel, index, F.FEATURES[:60])
    pd.testing.assert_frame_equal(panel, PANEL)
    pd.testing.assert_frame_equal(index, INDEX)


@pytest.mark.parametrize("column", ["open", "high", "low", "volume", "index_close", "vix_close", "rate_3m", "rate_2y", "rate_10y"])
def test_missing_inputs_are_missing_values_in_exactly_those_features(values, column):
    panel = PANEL.assign(**{column: np.nan}) if column in PANEL else PANEL
    index = INDEX.assign(**{column: np.nan}) if column in INDEX else INDEX
    again = F.compute(panel, index, F.FEATURES)
    touched = {f.name for f in F.FEATURES if column in f.inputs}
    assert touched
    for name in again.columns[2:]:
        if name in touched:
            assert again[name].isna().all(), name
        else:
            assert again[name].equals(values[name]), name


def test_scale_free(values):
    """Prices, index and volume in another currency change nothing."""
    panel = PANEL.assign(**{c: PANEL[c] * 8 for c in ("open", "high", "low", "close", "adj_close", "volume")})
    again = F.compute(panel, INDEX.assign(index_close=INDEX["index_close"] * 4), F.FEATURES)
    np.testing.assert_allclose(again.drop(columns=KEYS), values.drop(columns=KEYS), rtol=1e-5, atol=1e-6)


def test_rates_are_read_one_session_late(values):
    last = PANEL["session"].iloc[-1]
    index = INDEX.copy()
    index.loc[index["session"] == last, ["rate_3m", "rate_2y", "rate_10y"]] += 1
    again = F.compute(PANEL, index, F.FEATURES)
    pd.testing.assert_frame_equal(again, values, check_exact=True)


# ---- independent, slow implementations ------------------------------------------------------------------------------

def slow_rsi(close, n):
    up = down = None
    out = [np.nan]
    for before, now in zip(close[:-1], close[1:], strict=True):
        gain, loss = max(now - before, 0.0), max(before - now, 0.0)
        up, down = (gain, loss) if up is None else (up + (gain - up) / n, down + (loss - down) / n)
        out.append(up / (up + down) if up + down > 0 else np.nan)
    return pd.Series([np.nan] * n + out[n:])


def slow(bars):
    """A few features of one symbol in plain pandas; `bars` has adj_close and index_close."""
    c, log = bars["adj_close"], np.log(bars["adj_close"])
    r, m = log.diff(), np.log(bars["index_close"]).diff()
    rolled = r.rolling(60)
    window = np.arange(120)
    factor = c / bars["close"]
    h, lo, o = bars["high"] * factor, bars["low"] * factor, bars["open"] * factor
    true_range = pd.concat([h - lo, (h - c.shift()).abs(), (lo - c.shift()).abs()], axis=1).max(axis=1).where(c.shift().notna())
    return {
        "log_return_20": log - log.shift(20), "momentum_250_20": log.shift(20) - log.shift(250),
        "rsi_14": slow_rsi(c.tolist(), 14), "volatility_60": rolled.std() * math.sqrt(252),
        "mean_gap_200": log - log.rolling(200).mean(), "drawdown_250": np.log(c / c.rolling(250).max()),
        "channel_20": (c - c.rolling(20).min()) / (c.rolling(20).max() - c.rolling(20).min()),
        "slope_120": 120 * log.rolling(120).apply(lambda y: np.polyfit(window, y, 1)[0], raw=True),
        "trend_fit_120": log.rolling(120).apply(lambda y: np.corrcoef(window, y)[0, 1] ** 2, raw=True),
        "skewness_60": rolled.apply(lambda x: ((x - x.mean()) ** 3).mean() / x.std() ** 3, raw=True),
        "kurtosis_60": rolled.apply(lambda x: ((x - x.mean()) ** 4).mean() / x.var() ** 2 - 3, raw=True),
        "autocorrelation_5_120": r.rolling(120).corr(r.shift(5)), "beta_60": rolled.cov(m) / m.rolling(60).var(),
        "index_correlation_60": rolled.corr(m), "high_age_60": c.rolling(60).apply(lambda x: x[::-1].argmax() / 59, raw=True),
        "low_age_60": c.rolling(60).apply(lambda x: x[::-1].argmin() / 59, raw=True),
        "zscore_20": (log - log.rolling(20).mean()) / log.rolling(20).std(),
        "efficiency_60": (log - log.shift(60)).abs() / r.abs().rolling(60).sum(),
        "variance_ratio_5_60": (log - log.shift(5)).rolling(60).var() / (5 * rolled.var()),
        "downside_share_60": (r.clip(upper=0) ** 2).rolling(60).sum() / (r**2).rolling(60).sum(),
        "volatility_percentile_250": r.rolling(20).std().rolling(250).apply(lambda x: (x[:-1] < x[-1]).mean(), raw=True),
        "atr_14": true_range.ewm(alpha=1 / 14, adjust=False, min_periods=14).mean() / c,
        "parkinson_20": np.sqrt((252 / (4 * math.log(2))) * (np.log(h / lo) ** 2).rolling(20).mean()),
        "gap": np.log(o / c.shift()), "relative_volume_20": bars["volume"] / bars["volume"].rolling(20).mean(),
    }


@pytest.mark.parametrize("symbol", ["S1", "S4"])
def test_same_as_plain_pandas(values, symbol):
    bars = PANEL[PANEL["symbol"] == symbol].merge(INDEX, on="session").reset_index(drop=True)
    own = values[values["symbol"] == symbol].reset_index(drop=True)
    for name, expected in slow(bars).items():
        np.testing.assert_allclose(own[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)


def test_cross_section_by_hand(values):
    at = values[values["session"] == INDEX["session"].iloc[400]].set_index("symbol")
    rank = (at["log_return_20"].rank() - 0.5) / len(at)
    np.testing.assert_allclose(at["rank_return_20"], rank, rtol=1e-6)
    np.testing.assert_allclose(at["dispersion_20"], at["log_return_20"].std(ddof=0), rtol=1e-5)
    np.testing.assert_allclose(at["breadth_50"], (at["mean_gap_50"] > 0).mean(), rtol=1e-6)


def test_sector_relative_by_hand(values):
    sectors = {"S0": "A", "S1": "A", "S2": "A", "S3": "B", "S4": "B"}  # S5 is unknown: a sector of its own
    again = F.compute(PANEL, INDEX, F.FEATURES, sectors=sectors)
    at = again[again["session"] == INDEX["session"].iloc[600]].set_index("symbol")
    x = at["log_return_5"]
    expected = {"S0": x["S0"] - (x["S1"] + x["S2"] + 2 * x.mean()) / 4, "S3": x["S3"] - (x["S4"] + 2 * x.mean()) / 3, "S5": x["S5"] - x.mean()}
    for symbol, value in expected.items():
        np.testing.assert_allclose(at.loc[symbol, "sector_relative_5"], value, rtol=1e-5)
    changed = [name for name in again.columns[2:] if not again[name].equals(values[name])]
    assert set(changed) == {"sector_relative_5", "sector_relative_60"}


def test_two_names_for_one_expression_both_have_values(values):
    twin = dataclasses.replace(F.FEATURES[0], name="twin")
    again = F.compute(PANEL, INDEX, [F.FEATURES[0], twin, F.FEATURES[4]])
    assert again["twin"].equals(again[F.FEATURES[0].name]) and again[F.FEATURES[4].name].equals(values[F.FEATURES[4].name])


# ---- selection, version, run ----------------------------------------------------------------------------------------

def test_halted_symbol_gives_nan_not_infinity():
    panel = PANEL.copy()
    flat = (panel["symbol"] == "S2") & (panel["session"] > INDEX["session"].iloc[500])
    panel.loc[flat, ["open", "high", "low", "close", "adj_close"]] = 10.0
    panel.loc[flat, "volume"] = 0.0
    again = F.compute(panel, INDEX, F.FEATURES)
    assert not np.isinf(again.drop(columns=KEYS).to_numpy()).any()
    assert (again.loc[flat, "volatility_20"].iloc[30:] == 0).all()
    assert again.loc[flat, "rsi_5"].iloc[-1] >= 0 or np.isnan(again.loc[flat, "rsi_5"].iloc[-1])


def test_selection_says_why():
    bare = PANEL.assign(open=np.nan, high=np.nan, low=np.nan, volume=np.nan)
    chosen, left_out = F.select(bare, INDEX.assign(vix_close=np.nan), FeatureSettings())
    reasons = {entry["name"]: entry["reason"] for entry in left_out}
    assert len(chosen) >= 110 and "vix_close known in 0.0% of rows" in reasons["vix_level"]
    assert {f.name for f in F.FEATURES} == {f.name for f in chosen} | set(reasons)
    whole, none_left = F.select(PANEL, INDEX, FeatureSettings())
    assert len(whole) == len(F.FEATURES) and none_left == []  # whole bars turn everything on
    few = PANEL[PANEL["symbol"].isin(["S0", "S2"])]
    assert not any(f.scope == "session" for f in F.select(few, INDEX, FeatureSettings())[0])
    only, _ = F.select(bare, INDEX, FeatureSettings(groups=("price_pattern",), exclude=("gap",)))
    assert [f.name for f in only] == [f.name for f in F.PATTERN if f.name != "gap"]
    named, left_out = F.select(bare, INDEX, FeatureSettings(groups=("macro",), names=("gap", "rsi_14")))
    assert {f.name for f in named} == {f.name for f in F.MACRO} | {"gap", "rsi_14"} and len(left_out) == len(F.FEATURES) - len(named)
    for wrong in (FeatureSettings(groups=("momentun",)), FeatureSettings(exclude=("rsi_15",)), FeatureSettings(names=("rsi_15",))):
        with pytest.raises(ConfigError, match="momentun|rsi_15"):
            F.select(PANEL, INDEX, wrong)


def test_a_base_need_not_be_chosen(values):
    rank = [f for f in F.FEATURES if f.name == "rank_return_20"]
    alone = F.compute(PANEL, INDEX, rank)
    assert list(alone.columns) == [*KEYS, "rank_return_20"]
    assert alone["rank_return_20"].equals(values["rank_return_20"])


def test_version_changes_with_every_part_of_a_definition():
    one = F.FEATURES[0]
    others = [dataclasses.replace(one, **change) for change in (
        {"name": "x"}, {"formula": "x"}, {"expression": F.returns(3)}, {"expression": F.CLOSE}, {"source": "x"}, {"group": "x"})]
    versions = {F.version([f]) for f in [one, *others]} | {F.version(F.FEATURES[:2]), F.version(F.FEATURES[:2][::-1])}
    assert len(versions) == 9


def test_bad_panels_are_refused():
    for bad in (PANEL[::-1].reset_index(drop=True), pd.concat([PANEL[:20], PANEL[19:40]], ignore_index=True)):
        with pytest.raises(DataError, match="not sorted"):
            F.compute(bad, INDEX, F.FEATURES[:1])
    with pytest.raises(DataError, match="adj_close"):
        F.compute(PANEL.drop(columns="adj_close"), INDEX, F.FEATURES[:1])


def test_run_reads_nothing_after_as_of():
    as_of = INDEX["session"].iloc[640]
    output = F.run({"market": {"panel": PANEL, "index": INDEX}}, Settings(), as_of)
    frame, document = output.frames["features"], output.documents["feature_set"]
    assert frame["session"].max() == as_of and list(frame.columns[2:]) == document["names"]
    assert len(document["definitions"]) == len(document["names"]) and document["warm_up"] <= 600
    assert sum(row["n_rows"] for row in output.rows["feature_store"]) == len(frame)
    later = F.run({"market": {"panel": PANEL, "index": INDEX}}, Settings(), INDEX["session"].iloc[-1]).frames["features"]
    pd.testing.assert_frame_equal(later[later["session"] <= as_of], frame, check_exact=True)
    assert F.table(output).shape[0] >= 7 and F.figure(output).axes


def test_the_whole_set_is_distinct():
    """24 simulated stocks with whole bars: no two features are one, most have no near twin, none is constant."""
    assert len(F.TECHNICAL) >= 173 and len({f.name for f in F.FEATURES}) == len(F.FEATURES)
    panel, index = synthetic(1500, 24, seed=4)
    frame = F.compute(panel, index, F.FEATURES, sectors={f"S{i:02}": "ABC"[i % 3] for i in range(24)})
    frame = frame[frame.groupby("symbol").cumcount() >= max(f.warm_up for f in F.FEATURES)]
    for features in (F.FEATURES, F.TECHNICAL):
        names = [f.name for f in features]
        nearest = F.nearest(F.rank_correlation(frame, names))
        assert nearest.max() <= 0.99, nearest.nlargest(4)
        assert (nearest > 0.95).mean() <= 0.40
    values = frame[[f.name for f in F.FEATURES]].to_numpy(np.float64)
    assert (np.nanstd(values, axis=0) > 1e-4).all() and not np.isinf(values).any()


def test_twins_are_seen():
    panel, index = synthetic(800, 6, seed=4)
    twin = F.Feature("percent", "planted", "log_return_5 in percent", E.maximum(F.returns(5) * 100, -1e9))
    frame = F.compute(panel, index, [*F.MOMENTUM, twin])
    assert F.nearest(F.rank_correlation(frame, [*(f.name for f in F.MOMENTUM), "percent"]))["percent"] > 0.99


# ---- the packaged panel ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real():
    packaged.sync(home() / "cache")
    output = market.run({"cache": {"folder": str(home() / "cache")}}, Settings())
    return output, F.run({"market": output.frames}, Settings(), output.documents["summary"]["as_of"])


def test_packaged_features_are_distinct_and_alive(real):
    output = real[1]
    names, frame = output.documents["feature_set"]["names"], output.frames["features"]
    assert len(names) >= 120 and frame["symbol"].nunique() >= 20
    nearest = F.nearest(F.rank_correlation(frame, names))
    assert nearest.max() <= 0.99, nearest.nlargest(4)
    assert (nearest > 0.95).mean() <= 0.40
    values = frame[names].to_numpy()
    assert not np.isinf(values).any() and (np.nanstd(values.astype(float), axis=0) > 1e-4).all()
    assert (~np.isnan(values)).mean(axis=0).min() > 0.9
    assert {f["group"] for f in output.documents["feature_set"]["definitions"]} == set(F.GROUPS) - {"volume", "price_pattern"}
    assert set(output.frames["missing"]["features_missing"]) == {0}  # what symbols lack was left out for all


def test_packaged_missing_values_do_not_name_symbols(real):
    """After its warm-up a symbol's pattern of missing values is the same as any other's: only what the market lacks."""
    names, frame = real[1].documents["feature_set"]["names"], real[1].frames["features"]
    settled = frame[frame.groupby("symbol").cumcount() >= real[1].documents["feature_set"]["warm_up"]]
    missing = settled[names].isna().groupby(settled["symbol"]).mean()
    assert missing.to_numpy().max() < 0.03


def test_packaged_features_do_not_know_the_future(real):
    panel, index = (real[0].frames[name] for name in ("panel", "index"))
    full, chosen = real[1].frames["features"], [f for f in F.FEATURES if f.name in real[1].documents["feature_set"]["names"]]
    keep = panel["symbol"].isin(sorted(panel["symbol"].unique())[:6])
    small = panel[keep & (panel["session"] < "1996")].reset_index(drop=True)
    before = F.compute(small, index[index["session"] < "1996"], chosen)
    for cut in ("1992-03-02", "1994-11-15"):
        past = F.compute(small[small["session"] <= cut], index[index["session"] <= cut], chosen)
        pd.testing.assert_frame_equal(past, before[before["session"] <= cut], check_exact=True)
    assert len(full) == len(panel)
