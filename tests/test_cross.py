"""The cross-section table: its figures against SciPy and pandas, planted skill found, noise and shuffled dates not, a leak seen, a stopped run goes on to the same table."""
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from mltrader import archive, backtest
from mltrader.artifacts import ArtifactStore, FoldCache
from mltrader.config import EventDefinition, Settings
from mltrader.core import DataError, MltraderError
from mltrader.significance import holm

sys.path.append(str(ROOT / "benchmarks"))
import cross_section as bench

HORIZON, PLANTED = 3, 0.15
DAYS = pd.bdate_range("2009-01-05", "2015-12-31", freq="2B").as_unit("us")
SYMBOLS = [f"S{i:02d}" for i in range(12)]
EVENT = EventDefinition(name="fall", start="2010-03-01", end="2010-08-31", regime="crash", weight=0.2)
SETTINGS = Settings.model_validate({
    "labels": {"horizon": HORIZON}, "memory": {"window_years": 2.0}, "splits": {"first_test_year": 2011, "min_train_rows": 100, "bootstrap": 200}, "meta": {"min_folds": 2},
    "training": {"min_samples_for_training": 100}, "events": {"canonical": [EVENT.model_dump(mode="json")], "aftermath_sessions": 0},
    "forest": {"n_estimators": 8, "max_samples": 0.2}, "boosting": {"rounds": 4, "learning_rate": 0.3, "colsample_bytree": 1.0}, "run": {"threads": 1}})
ASK = {"horizon": HORIZON, "n_boot": 200, "level": 0.05, "seed": 1}
FAST = [row for row in bench.ROWS if row.model != "lightgbm"]


def made_up(ic: float, seed: int = 0) -> dict:
    """Outputs of the tasks up to the archive: random walks, and a feature whose correlation with what is earned is `ic`."""
    draw, shape = np.random.default_rng(seed), (len(DAYS), len(SYMBOLS))
    close = 50 * np.exp(draw.normal(0, 0.02, shape).cumsum(axis=0))
    earned = np.full(shape, np.nan)
    earned[:-1 - HORIZON] = np.log(close[1 + HORIZON:] / close[1:-HORIZON])
    size = np.sqrt(HORIZON) * 0.02
    signal = ic * earned / size + np.sqrt(1 - ic**2) * draw.normal(size=shape)
    grid = pd.MultiIndex.from_product([DAYS, SYMBOLS], names=["session", "symbol"]).to_frame(index=False)
    values = {"signal": np.nan_to_num(signal).ravel(), "noise": draw.normal(size=grid.shape[0]), "volatility_20": draw.uniform(0.1, 0.3, grid.shape[0])}
    at = np.searchsorted(DAYS, grid["session"])
    inside = at + HORIZON + 2 < len(DAYS)
    come = earned.ravel()[inside]
    labels = grid[inside].assign(label=(np.digitize(come, [-0.6 * size, 0.6 * size])).astype("int8"), label_end=DAYS[at[inside] + 1 + HORIZON], label_known_at=DAYS[at[inside] + HORIZON + 2],
                                 return_pct=100 * come, forward_log_return=come, entry_source="close").reset_index(drop=True)
    moods = pd.DataFrame({"session": DAYS, "regime": np.where(DAYS.month % 2, "normal", "crash"), "vix": draw.uniform(10, 40, len(DAYS))})
    path = pd.DataFrame({"session": DAYS, "index_close": 100 * np.exp(close.mean(axis=1) / 100)})
    made = {"features": {"features": grid.assign(**{name: x.astype("f4") for name, x in values.items()}), "feature_set": {"version": "v", "names": list(values), "warm_up": 5}},
            "labels": {"labels": labels}, "regimes": {"market_regimes": moods, "symbol_regimes": grid.merge(moods[["session", "regime"]]), "index_path": path}, "state": {},
            "market": {"panel": grid.assign(adj_close=close.ravel(), close=close.ravel()), "index": path, "sectors": pd.DataFrame({"symbol": SYMBOLS, "sector": "Energy"})}}
    made["archive"] = archive.run(made, SETTINGS, DAYS[-1]).frames
    return made


def study_in(folder, made: dict) -> bench.Study:
    return bench.study_of(made, SETTINGS, DAYS[-1], FoldCache(folder / "folds", ArtifactStore(folder / "artifacts")))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return study_in(tmp_path_factory.mktemp("planted"), made_up(PLANTED))


@pytest.fixture(scope="module")
def found(study):
    return bench.collect(study, FAST, [42], float("inf"))[0]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return study_in(tmp_path_factory.mktemp("noise"), made_up(0.0, 5))


def facts(study):
    return study.samples[["session", "symbol", "forward_log_return"]].iloc[study.judged].reset_index(drop=True)


def interval(frame, column="rank_ic"):
    return bench.splits.session_interval(frame, column, **ASK)


def test_correlations_are_scipys():
    """Also with ties, holes, few names, and a session in which a score does not vary."""
    draw = np.random.default_rng(3)
    frame = pd.DataFrame({"session": np.repeat(DAYS[:60], 9), "score": draw.normal(size=540).round(1), "earned": draw.normal(size=540)})
    frame.loc[draw.random(540) < 0.25, "score"] = np.nan
    frame.loc[frame["session"] == DAYS[7], "score"] = 0.5
    ours = bench.pearson(frame, "score", "earned").set_index("session")["ic"]
    ranked = bench.splits.rank_ic(frame, "score", "earned", bench.MIN_NAMES).set_index("session")["ic"]
    for day, part in frame.dropna().groupby("session"):
        if len(part) < bench.MIN_NAMES or part["score"].nunique() == 1:
            assert np.isnan(ours[day]) and np.isnan(ranked[day])
        else:
            assert ours[day] == pytest.approx(stats.pearsonr(part["score"], part["earned"])[0], abs=1e-12)
            assert ranked[day] == pytest.approx(stats.spearmanr(part["score"], part["earned"])[0], abs=1e-12)
    assert 20 < ours.notna().sum() < 60


def test_figures_of_a_row(study, found):
    """Against pandas and the project's own backtest."""
    frame = found["forest"][0]
    got, excess = bench.measures(frame), frame["excess"].dropna()
    assert got["icir"] == pytest.approx(frame["ic"].mean() / frame["ic"].std()) and got["rank_ic"] == pytest.approx(frame["rank_ic"].mean())
    drawdown = min(excess.iloc[:k].sum() - max(0.0, excess.iloc[:k].cumsum().max()) for k in range(1, len(excess) + 1))
    assert got["max_drawdown"] == pytest.approx(drawdown) and got["ir"] == pytest.approx(excess.mean() / excess.std() * np.sqrt(252))
    assert bench.measures(frame.assign(excess=-0.001))["max_drawdown"] == pytest.approx(-0.001 * len(frame))  # down from the first session on
    score, proba = bench.predict(study, FAST[5], 42)
    keys = study.samples[["session", "symbol", "label"]].iloc[study.judged].reset_index(drop=True)
    evaluation = keys.assign(**dict(zip(("proba_sell", "proba_hold", "proba_buy"), proba.T, strict=True)), abstain=False)
    made = made_up(PLANTED)
    equity = backtest.HistoricalBacktest(SETTINGS.backtest, HORIZON, "close").run_backtest(evaluation, made["market"]["panel"], made["market"]["index"])
    np.testing.assert_allclose(frame["excess"][2:], equity["difference"][2:], atol=1e-12)
    losses = -np.log(np.take_along_axis(proba, keys["label"].to_numpy(dtype=int)[:, None], axis=1))
    assert got["log_loss"] == pytest.approx(losses.mean())
    np.testing.assert_allclose(score, proba[:, 2] - proba[:, 0])


def test_planted_skill_is_found_and_a_leak_is_seen(study, found):
    """The ridge regression gets what was planted; the realised return as a score is a correlation of 1; the same scores on other days are worth nothing."""
    assert interval(found[bench.LINEAR][0], "ic").estimate == pytest.approx(PLANTED, abs=0.03)
    assert interval(found[bench.LINEAR][0]).low > 0 and interval(found["stack"][0]).low > 0
    known = facts(study)
    leak = bench.by_session(study, known["forward_log_return"].to_numpy(), None)
    assert leak["ic"].dropna().min() == pytest.approx(1.0) and leak["rank_ic"].dropna().min() == pytest.approx(1.0) and bench.measures(leak)["ir"] > 5
    days = known["session"].drop_duplicates().to_numpy()
    moved = dict(zip(days, np.random.default_rng(0).permutation(days), strict=True))
    elsewhere = known.assign(session=known["session"].map(moved))
    score = known[["session", "symbol"]].merge(elsewhere, how="left", on=["session", "symbol"])["forward_log_return"].to_numpy()
    shuffled = interval(bench.by_session(study, score, None))
    assert shuffled.low < 0 < shuffled.high


def test_noise_is_not_taken_for_skill(noise, found):
    rows = [row for row in FAST if row.name in ("no skill (random)", bench.LINEAR, "forest")]
    quiet = bench.collect(noise, rows, [42], float("inf"))[0]
    for frames in quiet.values():
        assert interval(frames[0]).low < 0 < interval(frames[0]).high
    prior = bench.measures(found["prior"][0])
    assert np.isnan(prior["ic"]) and prior["excess_ann"] == pytest.approx(0.0, abs=1e-12) and np.isnan(prior["ir"])  # it has no favourites, and holds nothing


def test_a_switch_changes_what_it_says(study):
    """The archive adds rows of the event once it is over, and nothing else; replay changes weights alone; early folds are fitted once for both."""
    none, held = (bench.plan_of(study, arm, 42) for arm in ("none", "archive"))
    assert (none["origin"] == "recent").all() and held.loc[held["origin"] == "archive", "event"].eq("fall").all()
    pd.testing.assert_frame_equal(held[held["origin"] == "recent"][["fold", "row"]].reset_index(drop=True), none[["fold", "row"]].reset_index(drop=True))
    frames = {arm: bench.walk(study, "forest", arm, 42).frame.set_index("fold")["proba_buy"] for arm in bench.ARMS}
    old = held[held["origin"] == "archive"].groupby("fold").size().reindex(study.folds["fold"], fill_value=0)
    assert 0 < (old > 0).sum() < len(old)
    for fold, rows in old.items():
        assert np.array_equal(frames["archive"][fold], frames["none"][fold]) == (rows == 0)
    assert not np.array_equal(frames["replay"], frames["none"])
    assert bench.at_arm(SETTINGS.model_copy(update={"memory": SETTINGS.memory.model_copy(update={"archive_share": 0.0})}), "archive", 1).memory.archive_share > 0


def test_a_stopped_run_goes_on_to_the_same_table(study, tmp_path, monkeypatch):
    """Stopped in the middle: rows that were done are read, and the table is that of an undisturbed run; what was kept of other data is not taken."""
    rows = [row for row in FAST if row.name in ("prior", "no skill (random)", bench.LINEAR, "stack")]
    whole = bench.collect(study, rows, [42, 43], float("inf"))[0]
    other, calls, real = replace(study, cache=FoldCache(tmp_path / "folds", ArtifactStore(tmp_path / "artifacts"))), [], bench.predict

    def dies(study, row, seed):
        calls.append((row.name, seed))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(study, row, seed)

    def collected(seeds=(42, 43), seconds=float("inf")):
        return bench.collect(other, rows, seeds, seconds)

    monkeypatch.setattr(bench, "predict", dies)
    with pytest.raises(KeyboardInterrupt):
        collected()
    again, seeds = collected()
    assert seeds == 2 and len(calls) == 7 and len(set(calls)) == 6  # only the row in which it stopped was begun twice
    pd.testing.assert_frame_equal(bench.summary_table(again, ASK), bench.summary_table(whole, ASK))
    assert collected()[1] == 2 and len(calls) == 7
    assert collected([44], 0.0) == ({row.name: [] for row in rows}, 0)
    assert bench.digest_of(study.memory, study.folds, study.on, study.as_of) == study.digest != bench.digest_of(study.memory, study.folds.tail(2), study.on, study.as_of)
    bench.unit(replace(other, digest="of other data"), rows[0], 42)
    assert len(calls) == 8


def test_a_claim_needs_an_interval_and_holm():
    lines = [{"what": str(k), "difference": d, "low": low, "high": high, "p": p, "blocks": 9 - k} for k, (d, low, high, p) in enumerate(
        [(0.1, 0.05, 0.15, 0.001), (0.1, 0.01, 0.19, 0.03), (-0.2, -0.3, -0.1, 0.0001), (0.0, -0.1, 0.1, 0.9), (0.1, 0.05, 0.15, 0.0001)])]
    got = bench.judged_by_holm(lines, 6)
    assert got["claim"].tolist() == ["better", "not after Holm", "worse", "none", "insufficient"]
    np.testing.assert_allclose(got["holm"], holm([line["p"] for line in lines[:4]] + [1.0]))
    day = pd.DataFrame({"session": DAYS[:200], "loss": 1.0, "n": 5.0, "ic": np.nan})
    assert bench.compared(day.assign(loss=0.9), day, "log-loss", ASK)["difference"] == pytest.approx(0.1)  # less is better
    assert bench.compared(day, day, "log-loss", ASK)["p"] == 1.0 and bench.compared(day, day, "IC", ASK)["p"] == 1.0


def test_the_page_says_what_a_reader_needs(study, found):
    text = "Survivorship: made up."
    report = bench.report_of(study, {"survivorship": text}, found, 2, 20, FAST, ["LightGBM, which is not there"], ["--seeds", "20"])
    said = bench.page(report)
    for words in (text, "8 trials", "2 of 20 seeds", "**Missing:** LightGBM, which is not there", "python benchmarks/cross_section.py --seeds 20", "stack + archive − stack"):
        assert words in said, words
    assert all(f"| {row.name} |" in said for row in FAST)
    verdict = said.splitlines()[2]
    assert bench.LINEAR in verdict.split("by itself")[0].split("Excess return")[0] and "no skill" not in verdict.split("Excess return")[0]  # skill that was planted is in the answer
    lines = bench.lines_of(report)
    assert {"what", "ours", "peer", "ratio", "low", "high", "bar", "ok", "unit"} <= set(lines[0]) and len(lines) == len(report["differences"])
    line, table = next(line for line in lines if line["what"] == "RankIC: stack + archive − stack"), report["table"].set_index("row")["rank_ic"]
    assert line["ours"] == line["measured"] == pytest.approx(table["stack + archive"] - table["stack"]) and line["low"] <= line["ours"] <= line["high"], "an interval stands beside what it is of"
    assert "95% interval" in line["note"] and f"stack + archive {table['stack + archive']:.4f}" in line["note"]
    assert set(report["groups"]["group"]) == {"regime normal", "regime crash"}  # the event is over before the first judged session


def test_sessions_on_which_both_are_one_model_are_no_evidence(study, found):
    """Before the event was over and outside the window, the archive changes nothing: those sessions are not counted."""
    middle, held = {name: bench.mean_of(frames) for name, frames in found.items()}, bench.plan_of(study, "archive", 42)
    first = int(held.loc[(held["origin"] == "archive") & held["fold"].isin(study.folds["fold"]), "fold"].min())
    begins = study.folds.set_index("fold")["test_start"]
    late = dict(middle)
    late["stack + archive"] = middle["stack"].where(middle["stack"]["session"] < begins[study.tested[-1]], middle["stack"].assign(loss=middle["stack"]["loss"] + 0.1))  # as if the archive came in with the last fold alone
    lines = bench.by_group(study, late, ASK).set_index(["what", "group", "measure"])
    replay, archived = (lines.loc[f"stack + {name} − stack"] for name in ("replay", "archive"))
    assert set(archived["since"]) == {f"{begins[study.tested[-1]]:%Y-%m-%d}"} and (archived["sessions"] < replay["sessions"]).all() and (archived["blocks"] < replay["blocks"]).all()
    assert archived.xs("log-loss", level="measure")["difference"].to_numpy() == pytest.approx(-0.1), "not diluted by sessions on which nothing was different"
    real = bench.by_group(study, middle, ASK).set_index("what")["since"]["stack + archive − stack"].iloc[0]
    assert real == f"{max(begins[first], study.samples['session'].iloc[study.judged[0]]):%Y-%m-%d}"
    assert bench.by_group(study, {**middle, "stack + archive": middle["stack"], "stack + replay": middle["stack"]}, ASK).empty


def test_what_cannot_be_done_is_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="yearly folds are too few"):
        bench.study_of(made_up(0.0), SETTINGS.model_copy(update={"meta": SETTINGS.meta.model_copy(update={"min_folds": 9})}), DAYS[-1], None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench.subprocess, "run", lambda *a, **k: bench.subprocess.CompletedProcess(a, 1, "", "no network\n"))
    assert "no network" in bench.lightgbm_missing(tmp_path)
    monkeypatch.setattr(bench, "inputs_of", lambda settings, until: (_ for _ in ()).throw(MltraderError("no data; run `mltrader data sync`")))
    monkeypatch.setattr(sys, "argv", ["cross_section.py", "--quick"])
    with pytest.raises(SystemExit, match="mltrader data sync"):
        bench.main()
