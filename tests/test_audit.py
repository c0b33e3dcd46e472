"""The audits find planted leaks by name, say nothing about clean code, and exit with the right code."""
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from poison import (
    FEW,
    LEAKS,
    MARKET,
    OF_COLUMNS,
    RULES,
    by_symbol,
    first_task,
    long_market,
    long_settings,
    resumed,
    short_settings,
    simulate,
    with_columns,
)
from typer.testing import CliRunner

from mltrader import audit, features
from mltrader.cli import app, audit_app
from mltrader.core import ConfigError, DataError

CLEAN = ("log_return_20", "macd", "rank_return_20", "vix_change_5", "index_return_20")


def names_of(found):
    return {(what, name) for what, name in found.faults[["what", "name"]].to_numpy()}


def kinds_of(found, named):
    return {kind for what, name, kinds in found.faults[["what", "name", "kinds"]].to_numpy() if (what, name) in named for kind in kinds.split(", ")}


def of_check(*checks):
    return [pytest.param(leak, id=leak.name) for leak in LEAKS if leak.check in checks and leak.name not in OF_COLUMNS]


# ---- planted leaks: each changes one production function -------------------------------------------------------------

@pytest.fixture(scope="module")
def poisoned():
    """One audit of features of which all of `OF_COLUMNS` leak, and `CLEAN` do not; benchmarks/leaks.py plants them one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "compute", with_columns(*OF_COLUMNS)(features.compute))
        return audit.lookahead(MARKET, RULES, cuts=9, symbols=0, seed=3, names=[name for name, _ in OF_COLUMNS.values()] + list(CLEAN), only=["feature"])


@pytest.mark.parametrize("leak", OF_COLUMNS)
def test_a_leaking_feature_is_named(poisoned, leak):
    row = poisoned.faults.set_index("name").loc[OF_COLUMNS[leak][0]]
    assert row["what"] == "feature" and row["cuts"] >= 1 and row["session"] <= row["cut"]
    assert row["symbol"] in set(MARKET["panel"]["symbol"]) and row["value"] != row["value_without_future"]


def test_no_other_feature_is_named(poisoned):
    assert not poisoned.ok and names_of(poisoned) == {("feature", name) for name, _ in OF_COLUMNS.values()}


def test_what_half_of_the_audit_would_miss(poisoned):
    kinds = {leak: kinds_of(poisoned, {("feature", name)}) for leak, (name, _) in OF_COLUMNS.items()}
    assert all("truncate" in seen for seen in kinds.values())
    assert {leak for leak, seen in kinds.items() if seen == {"truncate"}} == {"bars left of a symbol"}


BLIND = {"truncate": {"same-bar fill", "features chosen on the future"},  # what one half of the audit alone would miss
         "corrupt": {"survivors among regimes", "uniqueness among all samples"}}


@pytest.mark.parametrize("leak", of_check("lookahead"))
def test_a_leaking_function_is_named(leak, monkeypatch):
    monkeypatch.setattr(audit, "MOST_CUTOFFS", 2)
    whats = {what for what, _ in leak.named}
    rare = "regime" in whats  # regimes change seldom, so a leak shows only at cuts near a change
    with leak.planted():
        found = audit.lookahead(MARKET, RULES, cuts=14 if rare else 6, symbols=0, seed=3, names=(*FEW, "curve_10y_3m"), only=sorted(whats | {"feature"}))
    assert leak.named <= names_of(found) and not found.ok
    assert {what for what, _ in names_of(found)} == whats  # features are clean, unless it is one of them
    kinds = kinds_of(found, leak.named)
    assert ("truncate" not in kinds) == (leak.name in BLIND["truncate"]) and (leak.name not in BLIND["corrupt"] or kinds == {"truncate"})


def test_a_row_published_late_is_a_leak():
    """One symbol's bars arrive the next morning, and its features are dated as if they had not."""
    panel = MARKET["panel"].copy()
    late = panel["symbol"] == "S3"
    panel.loc[late, "available_at"] += pd.Timedelta(days=1)
    found = audit.lookahead({**MARKET, "panel": panel}, RULES, cuts=4, symbols=0, seed=3, names=FEW, only=["feature", "symbol regime"])
    assert {("feature", "(row)"), ("symbol regime", "(row)")} <= names_of(found)
    rows = found.faults[(found.faults["name"] == "(row)") & (found.faults["what"] == "feature")]
    assert rows["symbol"].tolist() == ["S3"] and rows["session"].tolist() == rows["cut"].tolist()


# ---- the pipeline ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def rehearsed():
    """The worlds of both cuts without a leak: those of the first have run to the verdict, those of the other as far as the archive needs."""
    given, _ = audit._audited(long_market(), 0, 3, ())
    given, rules = audit.rehearsal(given, long_settings())
    points, full = audit.rehearsal_cuts(given, rules, 0, 3), audit.World(given, rules, given["panel"]["session"].max())
    first, turn = (audit.worlds(full, cut, 3) for cut in points)
    found, compared = audit.first_difference(first, points[0])
    for task in audit.STAGES[: audit.STAGES.index("archive")]:
        for world in turn.values():
            audit._made(world, task)
    return dict(zip(points, (first, turn), strict=True)), found, compared


def test_a_clean_pipeline_is_the_same_in_every_world(rehearsed):
    made, found, compared = rehearsed
    assert found == [] and {"memory plan", "forest out_of_fold", "forest replayed", "boosting out_of_fold", "meta evaluation", "backtest equity", "explain sessions"} <= set(compared)
    first = next(iter(made.values()))
    assert all(set(world.made) == set(audit.STAGES) for world in first.values())
    assert first["short"].made["promotion"].documents["decision"]["verdict"] and len(first["full"].made["meta"].frames["evaluation"]) > 500


def test_every_frame_of_a_pipeline_is_compared_or_excused(rehearsed):
    """A frame that has sessions or folds has a past: it is compared, or `OF_TODAY` says why not, and nothing there is out of date."""
    made, _, compared = rehearsed
    dated = {f"{task} {name}" for task, output in next(iter(made.values()))["full"].made.items() for name, frame in output.frames.items() if set(audit.TIMES) & set(frame)}
    assert dated == set(compared) | set(audit.OF_TODAY) & dated and set(audit.OF_TODAY) - dated <= {"explain history"}


@pytest.mark.parametrize("leak", of_check("pipeline", "refused"))
def test_a_leak_of_the_pipeline_is_named(leak, rehearsed):
    made, faults = rehearsed[0], []
    with leak.planted():
        for cut, side_by_side in made.items():
            if leak.at in ("", str(cut.date())):
                faults = audit.first_difference(resumed(side_by_side, first_task(leak)), cut)[0]
                break
    assert leak.named <= {(fault["what"], fault["name"]) for fault in faults}, faults
    said = [fault["value"] for fault in faults if fault["name"] == "(refused)"]
    assert bool(said) == (leak.check == "refused") and all(len(text) > 20 for text in said)


def test_the_audit_of_the_pipeline_tells_what_it_found(monkeypatch):
    leak = next(leak for leak in LEAKS if leak.name == "T12 today's members")
    with leak.planted():
        found = audit.pipeline(long_market(), long_settings(), symbols=0, seed=3)
    assert not found.ok and names_of(found) == {("market panel", "(row)")} and found.verdict.startswith("1 leak(s) in the pipeline") and len(found.points) == 1
    with pytest.raises(DataError, match="two whole years of predictions"):
        audit.pipeline(MARKET, RULES, symbols=0)
    with pytest.raises(ConfigError, match="`cuts`=-1"):
        audit.pipeline(MARKET, RULES, cuts=-1)


# ---- no false alarms -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(2))
def test_clean_sets_raise_no_alarm(seed, monkeypatch):
    """Real features at random, real regimes and labels, on markets with late listings, failures, gaps and holes; benchmarks/leaks.py takes a hundred."""
    monkeypatch.setattr(audit, "MOST_CUTOFFS", 2)
    frames = simulate(100 + seed, n=360, whole=seed % 2 == 0)
    rules = short_settings(preset=("seed", "volatility")[seed])
    names = np.random.default_rng(seed).choice([f.name for f in features.FEATURES], 25, replace=False).tolist()
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
    assert audit.lookahead(MARKET, RULES, cuts=3, symbols=0, names=["zscore_20"], only=["feature"]).ok  # the past is no leak
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


# ---- features of one's own -------------------------------------------------------------------------------------------

def notebook(folder, *cells, name="mine.ipynb"):
    """A notebook with these code cells, after one of prose."""
    made = [{"cell_type": "markdown", "metadata": {}, "source": "# Mine"}]
    made += [{"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": text.splitlines(keepends=True)} for text in cells]
    path = folder / name
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": made}))
    return path


GAP = """\
WARM_UP = 19


def features(panel, index):
    price = np.log(panel["adj_close"])
    mean = price.groupby(panel["symbol"]).transform(lambda x: x.rolling(20).mean())
    return pd.DataFrame({"gap": price - mean})"""
LINES = """\
from mltrader.features import PRICE, Feature, lag, volatility

FEATURES = [Feature("calm_move", "mine", "move by volatility", (PRICE - lag(PRICE, 10)) / volatility(20))]"""
IMPORTS = "import numpy as np\nimport pandas as pd"
QUICK = {"cuts": 4, "starts": 2, "symbols": 0, "seed": 1}


def audited(path):
    return audit.audit_own(audit.read_own(path), MARKET, RULES, **QUICK)


@pytest.mark.parametrize("cells", [(IMPORTS, GAP), (LINES,), (IMPORTS, GAP, LINES.replace("FEATURES", "# and\nFEATURES")),
                                   ("%matplotlib inline\n!ls\n" + IMPORTS, GAP.replace("WARM_UP = 19\n", ""))])
def test_clean_features_of_ones_own_pass(tmp_path, cells):
    found = audited(notebook(tmp_path, *cells))
    assert all(one.ok for one in found.values()), [one.verdict for one in found.values()]
    needed = found["recursive"].measured.set_index("name")["needed"]
    assert needed.get("gap", 19) == 19 and needed.get("calm_move", 20) == 20


@pytest.mark.parametrize(("change", "audit_name", "kind"), [
    (("rolling(20)", "rolling(21, center=True)"), "lookahead", "truncate"),
    (('price - mean}', 'price / price.max()}'), "lookahead", "x1000"),
    (('price - mean}', 'panel["session"].map(index.set_index("session")["rate_10y"])}'), "lookahead", "truncate"),
    (('price - mean}', 'panel["symbol"].str[1:].astype(float)}'), "lookahead", "symbol"),
    (('price - mean}', 'panel.groupby("symbol")["adj_close"].transform("cumprod") ** 0 + panel.groupby("symbol").cumcount()}'), "recursive", ""),
    (("rolling(20)", "rolling(60)"), "recursive", ""),
])
def test_a_leak_in_features_of_ones_own_is_named(tmp_path, change, audit_name, kind):
    found = audited(notebook(tmp_path, IMPORTS, GAP.replace(*change)))
    assert [name for name, one in found.items() if not one.ok] == [audit_name]
    row = found[audit_name].faults.iloc[0]
    assert row["what"] == "own feature" and row["name"] == "gap" and kind in row.get("kinds", "")


@pytest.mark.parametrize(("cells", "words"), [
    ((IMPORTS, "x = 1\ny = x / 0"), r"mine.ipynb, cell 2, line 2 \(`y = x / 0`\): ZeroDivisionError"),
    ((IMPORTS, "def features(:\n    pass"), r"mine.ipynb, cell 2, line 1: SyntaxError"),
    ((IMPORTS,), "neither FEATURES nor a function features"), (("from mltrader import features",), "neither FEATURES"),
    (("FEATURES = [1, 2]",), "its FEATURES is no list of"), ((LINES, "WARM_UP = -1"), "WARM_UP=-1"), ((LINES, "FEATURES = FEATURES * 2"), "twice"),
    (("#| export\n" + IMPORTS, GAP), "in the cells that are run"),
])
def test_a_notebook_without_the_contract_is_refused_by_cell(tmp_path, cells, words):
    with pytest.raises(ConfigError, match=words):
        audit.read_own(notebook(tmp_path, *cells))


@pytest.mark.parametrize(("returned", "words"), [
    ('panel["volum"]', r"features\(\) fails on .*mine.ipynb, cell 2, line 7 .*KeyError: 'volum'"), ("3", "returns a int, not a DataFrame"), ('pd.DataFrame({"a": [1.0]})', "returns 1 rows"),
    ('panel[["symbol"]].assign(a=1.0)', "none that is taken"), ('panel[["session"]].rename(columns={"session": "a"})', "are no numbers"), ('panel[["session", "symbol"]]', "at least one"),
    ('pd.concat([panel[["session", "symbol", "close"]]] * 2)', "twice"), ('pd.DataFrame({"a": np.random.default_rng().normal(size=len(panel))})', "fix the seed"),
])
def test_a_function_that_returns_something_else_is_refused(tmp_path, returned, words):
    with pytest.raises(DataError, match=words):
        audited(notebook(tmp_path, IMPORTS, GAP.replace('pd.DataFrame({"gap": price - mean})', returned)))


def test_a_function_that_fails_without_the_future_is_a_fault(tmp_path):
    found = audited(notebook(tmp_path, IMPORTS, GAP.replace("    price", '    assert panel["session"].max() >= pd.Timestamp("2009-08-10")\n    price', 1)))
    assert found["lookahead"].faults["name"].tolist() == ["(error)"] and "AssertionError" in found["lookahead"].faults["value"].iloc[0] + found["lookahead"].faults["value_without_future"].iloc[0]


@pytest.mark.parametrize(("name", "text"), [("none.ipynb", None), ("mine.py", "x = 1"), ("empty.ipynb", "{}")])
def test_what_is_no_notebook_is_refused_before_anything_is_started(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        audit.in_own_process(tmp_path / name, MARKET, RULES)


# ---- the command line ------------------------------------------------------------------------------------------------

@pytest.fixture
def panel_of_ones_own(tmp_path, monkeypatch):
    """A user's file."""
    path = tmp_path / "bars.csv"
    rows = MARKET["panel"].rename(columns={"session": "date"})
    rows[["symbol", "date", "open", "high", "low", "close", "adj_close", "volume"]].sort_values(["symbol", "date"]).to_csv(path, index=False)
    for name, value in {"MARKET__PROVIDER": "csv", "MARKET__PATH": path, "SETTINGS": ROOT / "tests" / "smoke.toml", "UNIVERSE__SYMBOLS": "S0,S1,S2,S3,S4,S5",
                        "UNIVERSE__START": "2000-01-01", "HOME": tmp_path}.items():
        monkeypatch.setenv(f"MLTRADER_{name}", str(value))


def ask(*arguments):
    return CliRunner().invoke(app, ["audit", *arguments])


def test_commands_have_help_with_an_example():
    assert all("Example: mltrader audit" in command.callback.__doc__ for command in (*audit_app.registered_commands, audit_app.registered_callback))


def test_command_line(panel_of_ones_own, monkeypatch):
    done = ask("lookahead", "--cuts", "1", "--symbols", "3", "--seed", "5", "--json")
    assert done.exit_code == 0 and "look-ahead: feature" in done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"] and said["faults"] == [] and said["checked"]["feature"] > 50
    done = ask("recursive", "--starts", "1", "--symbols", "3")
    assert done.exit_code == 0 and done.stdout.startswith("Warm-up is long enough") and len(done.stdout.strip().splitlines()) == 1, done.stderr
    done = ask("pipeline")
    assert isinstance(done.exception, DataError) and "two whole years of predictions" in str(done.exception)
    assert isinstance(ask("--quick", "lookahead").exception, ConfigError)
    honest = features.compute
    monkeypatch.setattr(features, "compute", lambda *a, **k: (table := honest(*a, **k)).assign(rsi_14=table["rsi_14"].iloc[::-1].cummax()))
    done = ask("lookahead", "--cuts", "1", "--symbols", "3")
    lines = done.stdout.strip().splitlines()
    assert done.exit_code == 1 and lines[0].startswith("1 leak(s)") and "feature rsi_14" in lines[0] and lines[2].startswith("feature  rsi_14")


def test_everything_at_once(panel_of_ones_own, monkeypatch):
    """Without a name all three are run, and one that fails decides."""
    made = {name: audit.Findings(pd.DataFrame(columns=list(audit.FAULT)), {"feature": 1}, (), (), f"{name} is clean") for name in ("lookahead", "recursive", "pipeline")}
    for name in made:
        monkeypatch.setattr(audit, name, lambda *a, name=name, **k: made[name])
    done = ask("--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["ok"] and set(json.loads(done.stdout)["audits"]) == set(made)
    made["pipeline"] = audit.Findings(pd.DataFrame([{"what": "memory plan", "name": "weight"}], columns=list(audit.FAULT)), {"feature": 1}, (), (), "1 leak(s)")
    done = ask("--quick")
    assert done.exit_code == 1 and "1 leak(s)" in done.stdout and "lookahead is clean" in done.stdout


def test_own_features_by_command(panel_of_ones_own, tmp_path, monkeypatch, capfd):
    """In a process of its own: what it prints, and what it changes, stays out of the answer; a process that ends early is told."""
    noisy = notebook(tmp_path, IMPORTS + "\nprint('so much to say')\nimport mltrader.features\nmltrader.features.FEATURES = ()", GAP)
    done = ask("--own", str(noisy), "--quick", "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 0 and said["ok"] and said["audits"]["lookahead"]["checked"] == {"own feature": 1}
    assert "so much to say" in capfd.readouterr().err and len(features.FEATURES) > 50
    (tmp_path / "leaving").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "leaving").chmod(0o755)
    monkeypatch.setattr(audit.sys, "executable", str(tmp_path / "leaving"))
    with pytest.raises(ConfigError, match=r"mine.ipynb ended its process \(code 3\)"):
        audit.in_own_process(noisy, MARKET, RULES)
