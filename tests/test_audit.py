"""The audits find planted leaks by name, say nothing about clean code, and exit with the right code."""
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_cli import call

from mltrader import audit, features, labels, market, memory, regimes
from mltrader.config import Settings
from mltrader.core import ConfigError, DataError

KEYS = ["session", "symbol"]


def simulate(seed=0, n=420, symbols=6, whole=False):
    """A market with a late listing, a company that fails, gaps, a long halt, a VIX with holes; open, high and low if `whole`."""
    draw = np.random.default_rng(seed)
    sessions = pd.bdate_range("2008-01-01", periods=n).as_unit("us")
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
    panel["available_at"] = market.available_at(panel["session"])
    number, own = np.repeat(np.arange(n), symbols), panel["symbol"]
    late, ended = draw.integers(60, 160), draw.integers(n - 120, n - 50)
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


def names_of(found):
    return {(what, name) for what, name in found.faults[["what", "name"]].to_numpy()}


def kinds_of(found, named):
    return {kind for what, name, kinds in found.faults[["what", "name", "kinds"]].to_numpy() if (what, name) in named for kind in kinds.split(", ")}


# ---- planted leaks: each changes one production function -------------------------------------------------------------

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


def in_module(module, name, make):
    """Replace `module.name` by what `make` makes of the honest one."""
    return lambda patch: patch.setattr(module, name, make(getattr(module, name)))


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


FEATURE_LEAKS = {  # the column that is changed, and what it becomes; from the honest table, the panel and the index frame
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
CLEAN = ("log_return_20", "macd", "rank_return_20", "vix_change_5", "index_return_20")


@pytest.fixture(scope="module")
def poisoned():
    """One audit of features of which all of `FEATURE_LEAKS` leak, and `CLEAN` do not."""
    honest = features.compute

    def compute(panel, index, *args, **kwargs):
        table = honest(panel, index, *args, **kwargs)
        worse = {name: change(table, panel, index).astype("float32").to_numpy() for name, change in FEATURE_LEAKS.values()}
        return table.assign(**worse)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "compute", compute)
        patch.setattr(audit, "MOST_CUTOFFS", 1)
        return audit.lookahead(MARKET, RULES, cuts=12, symbols=0, seed=3, names=[name for name, _ in FEATURE_LEAKS.values()] + list(CLEAN))


@pytest.mark.parametrize("leak", FEATURE_LEAKS)
def test_a_leaking_feature_is_named(poisoned, leak):
    row = poisoned.faults.set_index("name").loc[FEATURE_LEAKS[leak][0]]
    assert row["what"] == "feature" and row["cuts"] >= 1 and row["session"] <= row["cut"]
    assert row["symbol"] in set(MARKET["panel"]["symbol"]) and row["value"] != row["value_without_future"]


def test_no_other_feature_is_named(poisoned):
    assert not poisoned.ok and names_of(poisoned) == {("feature", name) for name, _ in FEATURE_LEAKS.values()}


MODULE_LEAKS = {  # where, what is changed, and what must be named
    "centred volatility in regimes": (regimes, "realised_volatility", centred_volatility, {("regime", "level"), ("symbol regime", "regime")}),
    "whole-sample VIX quantile": (regimes, "_above", whole_sample_quantile, {("regime", "level")}),
    "smoothed regimes": (regimes, "combine", smoothed, {("regime", "regime"), ("symbol regime", "regime")}),
    "crash dated back": (regimes, "combine", dated_back, {("regime", "regime"), ("symbol regime", "regime")}),
    "survivorship": (regimes.RegimeLabeler, "symbols", survivors, {("symbol regime", "(row)")}),
    "same-bar fill": (labels, "_ahead", same_bar, {("outcome", "forward_log_return")}),
    "label known at its exit": (labels, "triple_barrier", known_at_exit, {("label", "(row)")}),
    "whole-sample barriers": (labels, "barriers", whole_sample_barriers, {("label", "label")}),
    "features chosen on the future": (features, "select", by_future_correlation, {("selection", "chosen")}),
    "index scaled to its end": (market, "equal_weight", ends_at_100, {("index", "equal_weight")}),
    "back-filled series": (market, "align", back_filled, {("index", "carried_index_close"), ("index", "carried_vix_close")}),
    "immature labels": (memory, "usable_at", immature, {("training set", "(row)")}),
    "uniqueness among all samples": (memory, "training_rows", unique_among_all, {("training set", "weight")}),
}
ORDER = ("feature", "regime", "symbol regime", "label", "outcome", "selection", "index", "training set")
BLIND = {"truncate": {"same-bar fill", "features chosen on the future"},  # what one half of the audit alone would miss
         "corrupt": {"survivorship", "immature labels", "uniqueness among all samples"}}


@pytest.mark.parametrize("leak", MODULE_LEAKS)
def test_a_leaking_function_is_named(leak, monkeypatch):
    where, name, make, named = MODULE_LEAKS[leak]
    monkeypatch.setattr(audit, "MOST_CUTOFFS", 2 if where is memory else 1)
    rare = where is regimes  # regimes change seldom, so a leak shows only at cuts near a change
    with monkeypatch.context() as patch:
        patch.setattr(where, name, make(getattr(where, name)))
        found = audit.lookahead(MARKET, RULES, cuts=14 if rare else 6, symbols=0, seed=3, names=FEW)
    assert named <= names_of(found) and not found.ok
    first = min(ORDER.index(what) for what, _ in named)
    assert min(ORDER.index(what) for what, _ in names_of(found)) == first  # beside it only what is made from it
    kinds = kinds_of(found, named)
    assert ("truncate" not in kinds) == (leak in BLIND["truncate"]) and (kinds == {"truncate"}) == (leak in BLIND["corrupt"])


def test_what_half_of_the_audit_would_miss(poisoned):
    kinds = {leak: kinds_of(poisoned, {("feature", name)}) for leak, (name, _) in FEATURE_LEAKS.items()}
    assert all("truncate" in seen for seen in kinds.values())
    assert {leak for leak, seen in kinds.items() if seen == {"truncate"}} == {"bars left of a symbol"}


def test_a_row_published_late_is_a_leak():
    """One symbol's bars arrive the next morning, and its features are dated as if they had not."""
    panel = MARKET["panel"].copy()
    late = panel["symbol"] == "S3"
    panel.loc[late, "available_at"] += pd.Timedelta(days=1)
    found = audit.lookahead({**MARKET, "panel": panel}, RULES, cuts=4, symbols=0, seed=3, names=FEW)
    assert {("feature", "(row)"), ("symbol regime", "(row)")} <= names_of(found)
    rows = found.faults[(found.faults["name"] == "(row)") & (found.faults["what"] == "feature")]
    assert rows["symbol"].tolist() == ["S3"] and rows["session"].tolist() == rows["cut"].tolist()


# ---- no false alarms -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(20))
def test_clean_sets_raise_no_alarm(seed, monkeypatch):
    """Real features at random, real regimes and labels, on markets with late listings, failures, gaps and holes."""
    monkeypatch.setattr(audit, "MOST_CUTOFFS", 2)
    frames = simulate(100 + seed, n=360, whole=seed % 2 == 0)
    rules = short_settings(preset=("seed", "volatility")[seed // 2 % 2])
    draw = np.random.default_rng(seed)
    names = draw.choice([f.name for f in features.FEATURES], 25, replace=False).tolist()
    ahead = audit.lookahead(frames, rules, cuts=3, symbols=0, seed=seed, names=names)
    assert ahead.ok, ahead.faults.to_string()
    back = audit.recursive(frames, rules, starts=2, symbols=0, seed=seed, names=names)
    assert back.ok, back.faults.to_string()


# ---- the start of history --------------------------------------------------------------------------------------------

def test_a_warm_up_that_is_too_short_is_named(monkeypatch):
    by_name, honest = {f.name: f for f in features.FEATURES}, features.Feature.warm_up.fget
    declared = {name: by_name[name].warm_up for name in ("rsi_14", "macd")}
    monkeypatch.setattr(features.Feature, "warm_up", property(lambda f: f.min_periods if f.name in declared else honest(f)))
    found = audit.recursive(MARKET, RULES, starts=3, symbols=0, seed=1, names=["rsi_14", "macd", "log_return_5", "volatility_60"])
    assert names_of(found) == {("feature", "rsi_14"), ("feature", "macd")}
    assert (found.faults["needed"] > found.faults["warm_up"]).all() and (found.faults["difference"] > audit.TOLERANCE).all()
    needed = found.measured.set_index("name")["needed"]
    assert by_name["rsi_14"].min_periods < needed["rsi_14"] <= declared["rsi_14"]
    assert needed["log_return_5"] == 5 and needed["volatility_60"] == 60


def test_a_value_counted_from_the_start_is_named(monkeypatch):
    honest = features.compute

    def compute(panel, index, *args, **kwargs):
        table = honest(panel, index, *args, **kwargs)
        return table.assign(zscore_20=np.log(panel["adj_close"] / by_symbol(panel, "adj_close").transform("first")).astype("float32"))

    monkeypatch.setattr(features, "compute", compute)
    assert audit.lookahead(MARKET, RULES, cuts=3, symbols=0, names=["zscore_20"]).ok  # the past is no leak
    found = audit.recursive(MARKET, RULES, starts=2, symbols=0, names=["zscore_20", "log_return_5"])
    assert names_of(found) == {("feature", "zscore_20")}


def test_a_regime_that_remembers_too_long_is_named(monkeypatch):
    monkeypatch.setattr(audit, "regime_warm_up", lambda rule: 3)
    frames = {**MARKET, "index": MARKET["index"].assign(vix_close=18.0)}
    found = audit.recursive(frames, RULES, starts=8, symbols=0, seed=2, names=FEW)
    assert {what for what, _ in names_of(found)} <= {"regime", "symbol regime"} and not found.ok


def test_a_comparison_waits_for_the_youngest_symbol():
    """A rank is settled once all symbols of the session are; one that is listed later brings its whole history."""
    found = audit.recursive(MARKET, RULES, starts=4, symbols=0, names=["rank_momentum_250_20", "rank_return_20"])
    assert found.ok and (found.measured.set_index("name").loc["rank_return_20", ["needed", "warm_up"]] <= 21).all()


# ---- parameters, symbols, cuts, the command line ---------------------------------------------------------------------

def test_a_seed_gives_the_same_audit_again():
    subject = audit.Subject("noise", lambda f: f["index"][["session"]].assign(x=f["index"]["index_close"].shift(-3)), ("session",))
    points = [audit.cut_points(MARKET, 5, seed) for seed in (9, 9, 10)]
    assert points[0].equals(points[1]) and not points[0].equals(points[2])
    pd.testing.assert_frame_equal(*(audit.find_leaks(subject, MARKET, points[0], seed=4) for _ in range(2)))


def test_special_symbols_and_sessions_take_part():
    panel = MARKET["panel"]
    assert {"S1", "S2"} <= set(audit.some_symbols(panel, 3, seed=4)) and len(audit.some_symbols(panel, 3, seed=4)) == 3
    assert audit.some_symbols(panel, 0, 0) == audit.some_symbols(panel, 99, 0) == sorted(panel["symbol"].unique())
    points = audit.cut_points(MARKET, 60, seed=0)
    assert len(points) >= 60 and points.is_monotonic_increasing and points.is_unique and points[-1] < panel["session"].max()
    sessions = pd.DatetimeIndex(np.unique(panel["session"]))
    assert (np.diff(sessions.get_indexer(points)) < 2 * len(sessions) / 60 + 1).all()  # spread over all of history
    positions = sessions.get_indexer(pd.DatetimeIndex([panel.loc[panel["symbol"] == "S1", "session"].min()]))
    assert positions[0] in audit._special_sessions(MARKET, sessions)


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"cuts": 0}, ConfigError, "at least 1"), ({"names": ["moon_phase"]}, ConfigError, "moon_phase"),
    ({"frames": {}}, DataError, "`panel`"), ({"frames": {**MARKET, "index": MARKET["index"].head(0)}}, DataError, "`index`"),
    ({"frames": {**MARKET, "panel": MARKET["panel"].drop(columns="adj_close")}}, DataError, "adj_close"),
    ({"frames": {**MARKET, "panel": MARKET["panel"].head(4)}}, DataError, "a past and a future"),
])
def test_bad_parameters_are_refused_by_name(change, error, words):
    given = {"frames": MARKET, "names": FEW, **change}
    with pytest.raises(error, match=words):
        audit.lookahead(given.pop("frames"), RULES, **given)


def test_nothing_to_compare_is_no_pass():
    frames = {**MARKET, "panel": MARKET["panel"].head(30).reset_index(drop=True), "index": MARKET["index"].head(8)}
    found = audit.recursive(frames, RULES, starts=1, symbols=0, names=["volatility_250"])
    assert not found.ok and found.verdict.startswith("INSUFFICIENT") and "feature volatility_250" in found.unchecked
    found = audit.recursive(MARKET, RULES, starts=1, symbols=0, names=["gap", "log_return_5"])  # a panel without opens
    assert found.ok and "feature gap" in found.unchecked and "No claim on 1" in found.verdict


@pytest.fixture(scope="module")
def own_panel(tmp_path_factory):
    """A user's file."""
    path = tmp_path_factory.mktemp("audit") / "bars.csv"
    rows = MARKET["panel"].rename(columns={"session": "date"})
    rows[["symbol", "date", "open", "high", "low", "close", "adj_close", "volume"]].sort_values(["symbol", "date"]).to_csv(path, index=False)
    return {"MLTRADER_MARKET__PROVIDER": "csv", "MLTRADER_MARKET__PATH": str(path), "MLTRADER_SETTINGS": str(ROOT / "tests" / "smoke.toml"),
            "MLTRADER_UNIVERSE__SYMBOLS": "S0,S1,S2,S3,S4,S5", "MLTRADER_UNIVERSE__START": "2000-01-01"}


def test_commands_have_help_with_an_example():
    from mltrader.cli import audit_app

    assert all("Example: mltrader audit" in command.callback.__doc__ for command in audit_app.registered_commands)


def test_command_line(own_panel, tmp_path):
    done = call("audit", "lookahead", "--cuts", "2", "--symbols", "3", "--seed", "5", "--json", MLTRADER_HOME=str(tmp_path), **own_panel)
    assert done.returncode == 0 and "look-ahead: feature" in done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"] and said["faults"] == [] and said["checked"]["feature"] > 50
    done = call("audit", "recursive", "--starts", "1", "--symbols", "3", MLTRADER_HOME=str(tmp_path), **own_panel)
    assert done.returncode == 0 and done.stdout.startswith("Warm-up is long enough") and len(done.stdout.strip().splitlines()) == 1, done.stderr


def test_command_line_fails_on_a_leak(own_panel, tmp_path):
    code = ("import sys; sys.argv = ['mltrader', 'audit', 'lookahead', '--cuts', '2', '--symbols', '3']\n"
            "from mltrader import features\nhonest = features.compute\n"
            "def leaky(*a, **k):\n    t = honest(*a, **k)\n    return t.assign(rsi_14=t['rsi_14'].iloc[::-1].cummax())\n"
            "features.compute = leaky\nfrom mltrader.cli import main; main()")
    done = call(code=code, MLTRADER_HOME=str(tmp_path), **own_panel)
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert lines[0].startswith("1 leak(s)") and "feature rsi_14" in lines[0] and lines[2].startswith("feature  rsi_14")
