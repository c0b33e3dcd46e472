"""The poison: faults of this trade, each planted by patching one production function, with what has to turn red.

Shared by the tests and by benchmarks/leaks.py. The audits know nothing of this list.
"""
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mltrader import archive, audit, backtest, drift, explain, features, intake, labels, market, memory, meta, promotion, regimes, splits
from mltrader.config import EventDefinition, Settings
from mltrader.core import HOLD, OutOfFold

KEYS = ["session", "symbol"]


# ---- markets ---------------------------------------------------------------------------------------------------------

def simulate(seed=0, n=420, symbols=6, whole=False, start="2008-01-01", ends=(120, 50)):
    """A market with a late listing, a company that fails, gaps, a long halt, a VIX with holes; open, high and low if `whole`."""
    draw = np.random.default_rng(seed)
    sessions = pd.bdate_range(start, periods=n).as_unit("us")
    volatility = 0.012 * np.exp(0.7 * np.sin(np.arange(n) / draw.uniform(30, 60)))
    common = draw.normal(0.0002, 1, n) * volatility
    steps = common[:, None] * draw.uniform(0.5, 1.5, symbols) + draw.standard_t(4, (n, symbols)) * 0.007
    close = 50 * np.exp(np.cumsum(steps, axis=0)).ravel()
    opened = close * np.exp(draw.normal(0, 0.004, close.size))
    spread = np.abs(draw.normal(0, 0.006, (2, close.size))) + 0.001
    panel = pd.DataFrame({
        "session": np.repeat(sessions, symbols), "symbol": [f"S{i}" for i in range(symbols)] * n, "open": opened,
        "high": np.maximum(opened, close) * (1 + spread[0]), "low": np.minimum(opened, close) * (1 - spread[1]),
        "close": close, "adj_close": close * np.repeat(np.linspace(0.8, 1, n), symbols), "volume": np.exp(draw.normal(13, 0.5, close.size))})
    panel["available_at"] = intake.available_at(panel["session"])
    number, own = np.repeat(np.arange(n), symbols), panel["symbol"]
    late, ended = draw.integers(60, 160), draw.integers(n - ends[0], n - ends[1])
    missing = ((own == "S1") & (number < late)) | ((own == "S2") & (number > ended)) | ((own == "S4") & (number % draw.integers(29, 40) < 2))
    halt, length = np.random.default_rng([seed, 1]).integers([n // 2, 17], [n // 2 + 60, 40])  # S5 stops for longer than any label lasts, and comes back
    missing |= (own == "S5") & (number >= halt) & (number < halt + length)
    index = pd.DataFrame({
        "session": sessions, "index_close": 1000 * np.exp(common.cumsum()), "vix_close": 1600 * volatility * np.exp(draw.normal(0, 0.1, n)),
        **{name: level + draw.normal(0, 0.05, n).cumsum() for name, level in (("rate_3m", 2.0), ("rate_2y", 3.0), ("rate_10y", 4.0))}})
    index.loc[draw.choice(np.arange(100, n), n // 6, replace=False), "vix_close"] = np.nan
    if not whole:
        panel = panel.assign(open=np.nan, high=np.nan, low=np.nan, volume=np.nan)
    return {"panel": panel[~missing].reset_index(drop=True), "index": index, "sectors": pd.DataFrame({"symbol": ["S0"], "sector": ["Energy"]})}


def short_settings(**labelled):
    base = Settings()
    return base.model_copy(update={
        "regimes": base.regimes.model_copy(update={"quantile_sessions": 60}), "memory": base.memory.model_copy(update={"window_years": 1.0}),
        "labels": base.labels.model_copy(update=labelled), "run": base.run.model_copy(update={"threads": 1})})


MARKET, RULES = simulate(), short_settings()
FEW = ("log_return_20", "rank_return_20")
SHORT = {"cuts": 6, "symbols": 0, "seed": 3, "names": FEW}  # of an audit of MARKET


def own_event(name: str, start: str, end: str) -> EventDefinition:
    return EventDefinition(name=name, start=start, end=end, regime="crash", weight=0.2)


def long_settings(**replay: Any) -> Settings:
    """For whole pipelines on LONG: few features, a short memory, a crisis that is over and one that is not at the first cut."""
    events = (own_event("early", "2004-08-02", "2004-10-15"), own_event("going_on", "2006-03-01", "2007-02-15"))
    return audit.changed(short_settings(), features={"names": ("log_return_5", "log_return_20", "volatility_20", "rank_return_20", "vix_level")}, memory={"window_years": 0.5},
                         events={"canonical": (), "extra": events}, replay={"mode": "errors", **replay})


def long_market() -> dict[str, pd.DataFrame]:
    """June 2004 to October 2007, with a company that fails in the last window."""
    return simulate(5, n=870, start="2004-06-14", ends=(40, 20))


def resumed(side_by_side: dict[str, audit.World], task: str) -> dict[str, audit.World]:
    """Worlds in which no leak is planted, at the moment when `task` is to begin: what comes before a leak need not be run again. Explanations are not kept."""
    kept = {id(world.cache): {key: value for key, value in world.cache.items() if not (isinstance(value, pd.DataFrame) and "component" in value)} for world in side_by_side.values()}
    early = audit.STAGES[: audit.STAGES.index(task)]
    return {name: replace(world, cache=kept[id(world.cache)], made={one: world.made[one] for one in early}) for name, world in side_by_side.items()}


# ---- what leaks ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Leak:
    """A fault.

    Attributes
    ----------
    name, fault : str
        What it is called, and what is wrong.
    where, attribute : module or class, and the name of its one function that is patched
    make : callable
        From the honest function to the one that leaks.
    check : str
        What has to turn red: `lookahead`, `pipeline` (`mltrader audit`), `refused` (a task does not take it, so that no run gets through: the
        audit of the pipeline says which and why), or `gate` and `drift`, whose verdict it is.
    named : set of (what, name)
        What must be named.
    at : str
        The cut of LONG at which it shows; empty: the first.
    """

    name: str
    fault: str
    where: Any
    attribute: str
    make: Callable[[Any], Any]
    check: str
    named: frozenset[tuple[str, str]]
    at: str = ""

    @contextmanager
    def planted(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.where, self.attribute, self.make(getattr(self.where, self.attribute)))
            yield


def first_task(leak: Leak) -> str:
    """The first task of the pipeline in which the patched function works."""
    module = leak.where.__module__ if isinstance(leak.where, type) else leak.where.__name__
    name = module.rpartition(".")[2]
    return name if name in audit.STAGES else "forest"


def by_symbol(table, name):
    return table.groupby("symbol")[name]
def target_encoded(table, panel, index):
    ahead = np.log(by_symbol(panel, "adj_close").shift(-15) / by_symbol(panel, "adj_close").shift(-1))
    return ahead.groupby(table["streak"].round()).transform("mean")


def zero_phase(table, panel, index):
    forward = by_symbol(table, "volatility_5").transform(lambda x: x.ewm(alpha=0.2).mean())
    return forward[::-1].groupby(table["symbol"][::-1]).transform(lambda x: x.ewm(alpha=0.2).mean())[::-1]


def next_known_vix(table, panel, index):
    known = index.loc[index["vix_close"].notna(), ["session", "vix_close"]]
    return np.log(pd.merge_asof(table[["session"]], known, on="session", direction="forward")["vix_close"])


def todays_rate(table, panel, index):
    rate = (index["rate_10y"] - index["rate_3m"]).set_axis(index["session"])
    return table["session"].map(rate)


def adjusted_by_the_last_price(table, panel, index):
    last = by_symbol(panel, "adj_close").transform("last")
    return np.log(panel["adj_close"] / last)


def centred_volatility(honest):
    return lambda close, n: pd.Series(honest(close, n)).shift(-n // 2).to_numpy()


def whole_sample_quantile(honest):
    def above(bound, strict, vix, realised, least):
        known = ~np.isnan(vix) & ~np.isnan(realised)
        share = np.mean(vix[known] <= bound) if known.any() else 0.5
        level = np.nanquantile(realised, share) if np.isfinite(realised).any() else np.nan
        return np.where(np.isnan(vix), realised > level, vix > bound if strict else vix >= bound)
    return above


def smoothed(honest):
    """As a smoother does: a spell of one session is voted away by the sessions around it."""
    def combine(*args):
        codes = honest(*args)
        between = codes[:-2] == codes[2:]
        codes[1:-1] = np.where(between, codes[:-2], codes[1:-1])
        return codes
    return combine


def dated_back(honest):
    """A crash counts from five sessions before it was seen."""
    def combine(*args):
        codes = honest(*args)
        for _ in range(5):
            codes[:-1] = np.where(codes[1:] == regimes.CRASH, regimes.CRASH, codes[:-1])
        return codes
    return combine


def same_bar(honest):
    """Entry at the close that the decision was made on."""
    return lambda x, k: x if k == 1 else honest(x, k)


def known_at_exit(honest):
    def label(*args):
        table = honest(*args)
        return table.assign(label_known_at=table["label_end"])
    return label


def whole_sample_barriers(honest):
    def barriers(close, entry_price, settings):
        width = 3 * np.nanstd(np.diff(np.log(close), axis=0), axis=0)
        return entry_price * np.exp(width), entry_price * np.exp(-width)
    return barriers


def by_future_correlation(honest):
    def select(panel, index, settings):
        chosen, left_out = honest(panel, index, settings)
        wanted = [f for f in chosen if f.group == "momentum" and f.scope == "symbol"]
        table = features.compute(panel, index, wanted)
        ahead = np.log(by_symbol(panel, "adj_close").shift(-5) / panel["adj_close"])
        size = {f.name: abs(table[f.name].corr(ahead)) for f in wanted}
        drop = set(sorted(size, key=size.get)[: len(size) // 2])
        return [f for f in chosen if f.name not in drop], left_out
    return select


def ends_at_100(honest):
    def equal_weight(panel):
        table = honest(panel)
        return 100 * table / table.iloc[-1]
    return equal_weight


def back_filled(honest):
    def align(frame, calendar, *args):
        table, faults = honest(frame, calendar, *args)
        return frame.reindex(calendar).bfill(), faults
    return align


def immature(honest):
    return lambda frame, as_of: frame["session"] <= as_of


def survivors(honest):
    """Only symbols that still trade at the end."""
    def symbols(self, panel, market_regimes):
        table = honest(self, panel, market_regimes)
        alive = by_symbol(table, "session").transform("max") == table["session"].max()
        return table[alive].reset_index(drop=True)
    return symbols


def unique_among_all(honest):
    """Uniqueness among all samples, those after the cut-off too."""
    def training_rows(samples, *args, **kwargs):
        rows = honest(samples, *args, **kwargs)
        calendar = np.unique(np.concatenate([samples["session"].to_numpy(), samples["label_known_at"].to_numpy()]))
        unique = memory.average_uniqueness(samples["symbol"], samples["session"], samples["label_known_at"], calendar)
        return rows.assign(weight=(rows["weight"] * unique[rows["row"]]).astype("float32"))
    return training_rows



# leaks of single columns: each is planted by patching features.compute
OF_COLUMNS = {  # a column of the features: the column that is changed, and what it becomes; from the honest table, the panel and the index frame
    "negative shift": ("log_return_5", lambda t, p, i: by_symbol(t, "log_return_5").shift(-1)),
    "centred window": ("volatility_60", lambda t, p, i: by_symbol(t, "log_return_1").transform(lambda x: x.rolling(61, center=True).std())),
    "whole-sample scaler": ("mean_gap_50", lambda t, p, i: (t["mean_gap_50"] - t["mean_gap_50"].mean()) / t["mean_gap_50"].std()),
    "whole-sample quantile clip": ("zscore_20", lambda t, p, i: t["zscore_20"].clip(*t["zscore_20"].quantile([0.005, 0.995]))),
    "rank over all history": ("rsi_14", lambda t, p, i: by_symbol(t, "rsi_14").rank(pct=True)),
    "back-filled look-back": ("beta_60", lambda t, p, i: by_symbol(t, "beta_60").bfill()),
    "reversed cumulative": ("drawdown_60", lambda t, p, i: np.log(p["adj_close"] / by_symbol(p[::-1], "adj_close").cummax()[::-1])),
    "target encoding": ("streak", target_encoded),
    "zero-phase filter": ("volatility_5", zero_phase),
    "forward as-of merge": ("vix_level", next_known_vix),
    "rate of the same evening": ("curve_10y_3m", todays_rate),
    "adjusted by the last price": ("log_return_1", adjusted_by_the_last_price),
    "bars left of a symbol": ("up_share_20", lambda t, p, i: by_symbol(t, "session").cumcount(ascending=False)),
    "minimum of the future": ("largest_loss_20", lambda t, p, i: by_symbol(t, "volatility_5").transform(lambda x: x[::-1].rolling(5, min_periods=1).min()[::-1])),
    "session mean of tomorrow": ("dispersion_20", lambda t, p, i: t["session"].map(t.groupby("session")["log_return_5"].mean().shift(-1))),
}


READ = ("log_return_1", "log_return_5", "volatility_5")  # the columns that leaks of other columns read


def with_columns(*names: str):
    """`features.compute` with some of its columns replaced as `OF_COLUMNS` has them."""
    def make(honest):
        def compute(panel, index, *args, **kwargs):
            table = honest(panel, index, *args, **kwargs)
            worse = {column: change(table, panel, index).astype("float32").to_numpy() for column, change in map(OF_COLUMNS.get, names) if column in table}
            return table.assign(**worse)
        return compute
    return make


# ---- leaks of the pipeline -------------------------------------------------------------------------------------------

def regimes_from_labels(honest):
    """The original's proxy: what a trade will earn says in which regime it begins."""
    def symbols(self, panel, market_regimes):
        table = honest(self, panel, market_regimes)
        ahead = panel[KEYS].assign(ahead=by_symbol(panel, "adj_close").shift(-14) / panel["adj_close"] - 1)
        earned = table[KEYS].merge(ahead, how="left", on=KEYS)["ahead"].to_numpy()
        return table.assign(regime=np.select([earned <= -0.05, earned >= 0.10], ["crash", "recovery"], "normal"))
    return symbols


def oversampled(honest):
    """Every row of the rare classes twice, as a balancing step before the split would leave them."""
    def build_samples(*args):
        samples = honest(*args)
        return pd.concat([samples, samples[samples["label"] != HOLD]]).sort_values(KEYS, kind="stable", ignore_index=True)
    return build_samples


def scaled_samples(honest):
    def build_samples(features_, names, *args):
        samples = honest(features_, names, *args)
        return samples.assign(**{name: ((samples[name] - samples[name].mean()) / samples[name].std()).astype("float32") for name in names if name != "volatility_20"})
    return build_samples


def named_symbol(honest):
    def build_samples(features_, names, *args):
        samples = honest(features_, names, *args)
        return samples.assign(log_return_5=pd.factorize(samples["symbol"], sort=True)[0].astype("float32"))
    return build_samples


def unmatured_errors(honest):
    return lambda self, samples, as_of: self


def with_its_own_fold(honest):
    def stack_plan(joined, samples, folds, min_folds):
        known = [folds["fold"] <= fold for fold in folds["fold"]]
        parts = [pd.DataFrame({"fold": fold, "row": joined.loc[joined["fold"].isin(folds["fold"][upto]), "row"], "weight": np.float32(1)})
                 for fold, upto in zip(folds["fold"], known, strict=True) if fold in set(joined["fold"])]
        return pd.concat(parts[1:], ignore_index=True)
    return stack_plan


def open_archive(honest):
    """The archive hands out what it has, whatever the cut-off."""
    def _archive_rows(samples, kept, as_of, settings, recent, seed, state):
        late = kept[kept["label_known_at"] > as_of]
        return late.merge(samples[KEYS].assign(row=samples.index), how="inner", on=KEYS)[["row", "event", "event_weight"]]
    return _archive_rows


def known_at_its_start(honest):
    def event_table(*args):
        table = honest(*args)
        return table.assign(known_from=table["start"])
    return event_table


def tested_too_early(honest):
    """The test window begins 20 sessions before the cut-off: no gap between what is learned and what is judged."""
    def cutoffs(sessions, *args):
        folds, days = honest(sessions, *args), np.unique(np.asarray(sessions, dtype="datetime64[us]"))
        return folds.assign(test_start=days[np.maximum(np.searchsorted(days, folds["test_start"].to_numpy()) - 20, 0)])
    return cutoffs


def a_session_early(honest):
    """A label counts as known a session before its window is over."""
    def triple_barrier(panel, settings):
        table, days = honest(panel, settings), np.unique(panel["session"].to_numpy())
        return table.assign(label_known_at=days[np.searchsorted(days, table["label_known_at"].to_numpy()) - 1])
    return triple_barrier


def tomorrows_vix(honest):
    return lambda vix, realised, settings: honest(np.append(vix[1:], np.nan), realised, settings)


def rates_at_once(honest):
    return lambda index, name, late: honest(index, name, 0)


def on_the_judged_fold(honest):
    """The temperature of a fold is fitted on its own rows."""
    def temperatures(said, samples, folds, tested):
        end = folds.assign(cutoff=folds["test_end"])
        return honest(said, samples, end, tested)
    return temperatures


def terciles_of_all_years(honest):
    def track(rows, rule, as_of):
        bounds = np.nanquantile(rows["volatility"], [1 / 3, 2 / 3])
        found = honest(rows, rule, as_of)
        return replace(found, group=np.where(found.ready, np.searchsorted(bounds, rows["volatility"].to_numpy()), found.group))
    return track


def adapts_at_once(honest):
    """Thresholds move on outcomes that are not known yet."""
    def track(rows, rule, as_of):
        return honest(rows.assign(label_known_at=rows["session"] + pd.Timedelta("1us")), rule, as_of)
    return track


def prior_of_all_years(honest):
    def baselines(samples, plan, tested):
        shares = np.bincount(samples["label"], minlength=3) / len(samples)
        return honest(samples, plan, tested).assign(**dict(zip(("prior_sell", "prior_hold", "prior_buy"), shares, strict=True)))
    return baselines


def key_without_data(honest):
    return lambda arrays: "the same"


def reference_to_the_end(honest):
    def reference_period(sessions, *args):
        return honest(sessions, *args) | {"reference_end": sessions[-1]}
    return reference_period


def still_listed(honest):
    """Only companies that are there at the end."""
    def choose_universe(panel, *args):
        table = honest(panel, *args)
        return table[by_symbol(table, "session").transform("max") == table["session"].max()].reset_index(drop=True)
    return choose_universe


def next_weeks_signals(honest):
    """Positions of a session follow the forecasts made five sessions later."""
    return lambda score, allowed: honest(np.roll(score, -5, axis=0), np.roll(allowed, -5, axis=0))


def reads_later_bars(honest):
    """The gate is told how the candidate did after the decision."""
    def gather(inputs, settings, as_of):
        found, panel = honest(inputs, settings, as_of), inputs["market"]["panel"]
        return replace(found, trials=found.trials + int((panel["session"] > as_of).sum()))
    return gather


def bars_of_tomorrow(honest):
    """Features of a run are computed from all bars there are."""
    return lambda inputs, settings, as_of: honest(inputs, settings, inputs["market"]["panel"]["session"].max())


def explained_by_the_refit(honest):
    """Rows of the past are explained by the model of today."""
    def all_sums(inputs, *args):
        cache, made = dict(inputs["fold_cache"]), {}
        for base in ("forest", "boosting"):
            cache |= dict.fromkeys(inputs[base]["fold_models"].values(), inputs[base]["model"])
            made[base] = inputs[base]
        return honest(inputs | {"fold_cache": cache}, *args)
    return all_sums


def known(*pairs: str) -> frozenset:
    """`what: name` pairs."""
    return frozenset(tuple(pair.split(": ")) for pair in pairs)


def _of_columns() -> list[Leak]:
    return [Leak(name, f"a feature: {name}", features, "compute", with_columns(name), "lookahead", frozenset({("feature", column)}))
            for name, (column, _) in OF_COLUMNS.items()]


LEAKS: tuple[Leak, ...] = (
    # the traps of this trade, T1 to T14 (T7, T8, T10, T13, T14: below)
    Leak("T1 regimes made of labels", "what a trade will earn says in which regime it begins", regimes.RegimeLabeler, "symbols", regimes_from_labels, "lookahead", known("symbol regime: regime")),
    Leak("T2 resampling before the split", "rare classes copied among the samples", memory, "build_samples", oversampled, "refused", known("forest: (refused)")),
    Leak("T3 replay of errors not known", "errors of the judged rows are learned from", OutOfFold, "known_at", unmatured_errors, "refused", known("forest: (refused)")),
    Leak("T4 stack fitted in-sample", "a fold's stack is fitted on the fold itself", meta, "stack_plan", with_its_own_fold, "refused", known("meta: (refused)")),
    Leak("T5 no purge", "training labels reach into the test window", memory, "usable_at", lambda honest: lambda frame, as_of: frame["session"] <= as_of, "refused", known("forest: (refused)")),
    Leak("T6 scaler on all data", "samples standardised over all years", memory, "build_samples", scaled_samples, "pipeline", known("memory samples: log_return_20")),
    Leak("T9 archived event in the test window", "the archive hands out rows that were not known", memory, "_archive_rows", open_archive, "refused", known("forest: (refused)")),
    Leak("T11 the symbol as a feature", "a feature is a code of the symbol", memory, "build_samples", named_symbol, "refused", known("forest: (refused)")),
    Leak("T12 today's members", "only companies that are there at the end", market, "choose_universe", still_listed, "pipeline", known("market panel: (row)")),
    # regimes, labels, series
    Leak("centred volatility in regimes", "a window around the session", regimes, "realised_volatility", centred_volatility, "lookahead", known("regime: level", "symbol regime: regime")),
    Leak("whole-sample VIX quantile", "the stand-in for the VIX is mapped over all years", regimes, "_above", whole_sample_quantile, "lookahead", known("regime: level")),
    Leak("tomorrow's VIX", "the level of a session is that of the next close", regimes, "volatility_level", tomorrows_vix, "lookahead", known("regime: level")),
    Leak("smoothed regimes", "a spell is voted away by the sessions around it", regimes, "combine", smoothed, "lookahead", known("regime: regime", "symbol regime: regime")),
    Leak("crash dated back", "a crash counts from five sessions before it was seen", regimes, "combine", dated_back, "lookahead", known("regime: regime", "symbol regime: regime")),
    Leak("survivors among regimes", "only symbols that still trade at the end", regimes.RegimeLabeler, "symbols", survivors, "lookahead", known("symbol regime: (row)")),
    Leak("same-bar fill", "entry at the close that the decision was made on", labels, "_ahead", same_bar, "lookahead", known("outcome: forward_log_return")),
    Leak("label known at its exit", "a label counts as known when a barrier is hit", labels, "triple_barrier", known_at_exit, "lookahead", known("label: (row)")),
    Leak("horizon off by one", "a label counts as known a session too early", labels, "triple_barrier", a_session_early, "lookahead", known("label: (row)")),
    Leak("whole-sample barriers", "barriers scaled by the volatility of all years", labels, "barriers", whole_sample_barriers, "lookahead", known("label: label")),
    Leak("features chosen on the future", "selected by their correlation with what came", features, "select", by_future_correlation, "lookahead", known("selection: chosen")),
    Leak("rates before they are public", "a par rate counts from the close before its publication", features, "_index_column", rates_at_once, "lookahead", known("feature: curve_10y_3m")),
    Leak("index scaled to its end", "the own index ends at 100", intake, "equal_weight", ends_at_100, "lookahead", known("index: equal_weight")),
    Leak("back-filled series", "gaps are filled with the next value", intake, "align", back_filled, "lookahead", known("index: carried_index_close", "index: carried_vix_close")),
    Leak("uniqueness among all samples", "weights count samples after the cut-off", memory, "training_rows", unique_among_all, "lookahead", known("training set: weight")),
    # folds, models, judgement
    Leak("no gap before the test", "the test window begins before the cut-off", memory, "cutoffs", tested_too_early, "refused", known("forest: (refused)")),
    Leak("event known at its start", "a crisis is remembered before it is over", archive, "event_table", known_at_its_start, "pipeline", known("archive archive: (row)"), "2007-01-05"),
    Leak("calibrated on the judged fold", "the temperature is fitted on the fold it is judged on", meta, "temperatures", on_the_judged_fold, "pipeline", known("meta evaluation: proba_hold")),
    Leak("threshold of all years", "terciles of volatility over all years", meta, "track", terciles_of_all_years, "pipeline", known("meta evaluation: volatility_tercile")),
    Leak("sets adapt at once", "thresholds move on outcomes that are not known yet", meta, "track", adapts_at_once, "pipeline", known("meta evaluation: set_sell")),
    Leak("prior of all years", "the baseline's class shares are those of all years", meta, "baselines", prior_of_all_years, "pipeline", known("meta evaluation: prior_hold")),
    Leak("cache key without the data", "predictions are found again for other data", splits, "digest_arrays", key_without_data, "pipeline", known("forest out_of_fold: (unmoved)")),
    Leak("drift reference with the present", "the reference reaches to the last session", drift, "reference_period", reference_to_the_end, "pipeline", known("drift reference: value")),
    Leak("next week's signals", "positions follow forecasts made five sessions later", backtest, "places", next_weeks_signals, "pipeline", known("backtest equity: strategy")),
    Leak("the gate reads later bars", "evidence from after the decision", promotion, "gather", reads_later_bars, "pipeline", known("promotion: decision")),
    Leak("features of later bars", "a run computes from all bars there are", features, "run", bars_of_tomorrow, "pipeline", known("features: features.session")),
    Leak("explained by today's model", "rows of the past are explained by the refit", explain, "all_sums", explained_by_the_refit, "refused", known("explain: (refused)")),
    *_of_columns(),
)

# traps that are no look-ahead: (the test of test_traps.py that plants it, who says no)
NO_LOOKAHEAD: dict[str, tuple[str, str]] = {
    "T7 accuracy below the majority": ("test_t7", "promotion: REJECT"), "T8 an empty regime as a pass": ("test_t8", "promotion and sectors: INSUFFICIENT"),
    "T10 a fixed cut on dependent rows": ("test_t10", "drift: its null is made of blocks"), "T13 the gate run until it passes": ("test_t13", "promotion: the budget of a reign"),
    "T14 two label maps": ("test_t14", "splits refuse two classes; promotion: REJECT"),
}
