"""Which recipe knows tomorrow's winners? IC, ICIR, RankIC, net return, IR and drawdown of linear models, forest, XGBoost, LightGBM and the stack without and with replay and archive.

    python benchmarks/cross_section.py                # 20 seeds, lighter models than the default recipe: hours; a stopped run goes on where it was
    python benchmarks/cross_section.py --minutes 30   # as far as it comes in half an hour; shows the seeds that are whole
    python benchmarks/cross_section.py --quick        # 2 seeds, the last 6 years, very light models: about a minute
    python benchmarks/cross_section.py --whole        # the default recipe as it is
    python benchmarks/cross_section.py --md docs/cross-section.md
    python benchmarks/cross_section.py --json
    MLTRADER_MARKET__PROVIDER=parquet MLTRADER_MARKET__PATH=bars.parquet python benchmarks/cross_section.py    # your own panel

Everything is out of sample: the purged yearly walk-forward of the pipeline, the same folds and rows for each recipe, judged from the first fold that the stack can predict. The rows without a plus learn from the recent window alone, without replay;
`+ replay` turns [replay] `errors` on and nothing else, `+ archive` the archive share of [memory] (the shipped recipe). The stack is used in every year, whether it has earned its place or not. Each class model is softened by the temperature of its own
earlier folds; its score is p(buy) - p(sell). The ridge regression predicts the return to the horizon, standardised within its session, as Qlib's linear model does.

IC (Pearson) and RankIC (Spearman) are means over sessions of the correlation of score and entry-to-exit log return of the horizon; ICIR is that mean over its standard deviation, not annualised. The portfolio is the backtest's: at each close the share
`top_share` of symbols with the highest scores above the session's median, bought at the next bar in `horizon` overlapping tranches, costs and slippage as in [backtest], no abstention. Its excess is over the equal-weighted panel at the same exposure, which pays
no costs; IR and drawdown are those of that excess, summed over sessions, as Qlib defines them. `±` is the spread over seeds; an interval (95 %) is of the mean over seeds, by a bootstrap over blocks of whole sessions of twice the horizon.
Differences are paired by session; Holm's adjustment is over all of a table. Nothing here is a bar.

What was fitted is kept in `studies/cross` of the home folder, by code, settings, data and seed (about 25 MB a seed of the packaged panel); delete the folder to be rid of it. LightGBM is put there by pip if it cannot be imported; where that fails its row is
missing, and named as such.
"""
import argparse
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from packaged import inputs_of
from threadpoolctl import threadpool_limits

from mltrader import backtest, boosting, forest, luck, memory, meta, splits
from mltrader.artifacts import ArtifactStore, FoldCache
from mltrader.checks import sample_features
from mltrader.config import NOT_SETTINGS, Settings, home, load_settings
from mltrader.core import (
    PROBABILITIES,
    REGIMES,
    DataError,
    MltraderError,
    OutOfFold,
    digest_arrays,
    digest_json,
    digest_modules,
)
from mltrader.portfolio import SESSIONS_A_YEAR, simulate
from mltrader.replay import Replay
from mltrader.significance import holm, p_above

LEVEL, MIN_NAMES, PENALTY, SEEDS = 0.05, 5, 0.1, 20  # SEEDS: of a whole table; PENALTY: of the linear models, a training row
LIGHT = {"forest": {"n_estimators": 50}, "boosting": {"rounds": 40, "learning_rate": 0.12}}  # as benchmarks/replay.py
QUICK = {"forest": {"n_estimators": 20}, "boosting": {"rounds": 15, "learning_rate": 0.25}}
QUICK_FOLDS = 6
ARMS: dict[str, dict[str, dict[str, Any]]] = {  # what differs from the settings in force
    "none": {"memory": {"mix": "fixed", "archive_share": 0.0}, "replay": {"mode": "off"}},
    "replay": {"memory": {"mix": "fixed", "archive_share": 0.0}, "replay": {"mode": "errors"}},
    "archive": {"replay": {"mode": "off"}},
}
LIGHTGBM = "4.7.0"
SECTIONS = {"labels", "memory", "replay", "splits", "forest", "boosting", "meta", "backtest", "events", "universe", "training"}
MODULES = ("archive", "backtest", "boosting", "checks", "core", "forest", "kernels", "memory", "meta", "portfolio", "replay", "splits", "trees")


@dataclass(frozen=True)
class Row:
    """A line of the table: what predicts, learning from what, and whether it depends on the seed."""

    name: str
    model: str
    arm: str = "none"
    drawn: bool = True
    trial: bool = True


ROWS: tuple[Row, ...] = (
    Row("prior", "prior", drawn=False, trial=False),
    Row("no skill (random)", "random", trial=False),
    Row("volatility logit", "volatility", drawn=False),
    Row("linear (ridge)", "ridge", drawn=False),
    Row("linear (logit)", "logit", drawn=False),
    Row("forest", "forest"),
    Row("XGBoost", "boosting"),
    Row("LightGBM", "lightgbm"),
    Row("stack", "stack"),
    Row("stack + replay", "stack", "replay"),
    Row("stack + archive", "stack", "archive"),
)
BASES, LINEAR, LOGIT, STACK = ("forest", "XGBoost"), "linear (ridge)", "linear (logit)", "stack"


@dataclass(frozen=True)
class Measure:
    """A figure of a session whose mean is compared: its column, a factor (negative: less is better), and the column of weights."""

    column: str
    factor: float = 1.0
    weight: str | None = None


MEASURES = {"IC": Measure("ic"), "RankIC": Measure("rank_ic"), "excess return": Measure("excess", SESSIONS_A_YEAR), "log-loss": Measure("loss", -1.0, "n")}


@dataclass(frozen=True, eq=False)
class Study:
    """What all rows share: samples and folds, what the memory draws from, the market that the portfolio trades on, and where results are kept."""

    settings: Settings
    as_of: pd.Timestamp
    samples: pd.DataFrame
    folds: pd.DataFrame
    memory: memory.HybridMemory
    feature_set: str
    entry: str
    judged: np.ndarray  # rows of `samples`, sorted
    tested: tuple[int, ...]  # their folds
    on: backtest.Arena
    passive: Mapping[str, np.ndarray]
    cache: FoldCache
    digest: str


def study_of(made: Mapping[str, Any], settings: Settings, as_of: pd.Timestamp, cache: FoldCache, last_folds: int | None = None) -> Study:
    """The study on the outputs of the tasks up to the archive, over all yearly folds or the last ones; DataError if they are too few for a stack."""
    known, found, least = made["regimes"], memory.run(made, at_arm(settings, "none", settings.run.seed), as_of).frames, settings.meta.min_folds
    samples, folds = found["samples"], found["folds"] if last_folds is None else found["folds"].tail(last_folds).reset_index(drop=True)
    if len(folds) <= least:
        raise DataError(f"{len(folds)} yearly folds are too few: the stack needs {least} before the first that is judged; give the panel more years, or lower [splits] first_test_year or [meta] min_folds.")
    calendar = known["market_regimes"]["session"]
    calendar = calendar[calendar >= made["features"]["features"]["session"].min()]
    held = memory.HybridMemory(samples, made["archive"]["archive"], settings, calendar, memory.market_state(known["market_regimes"], known["index_path"]))
    tested, session = folds.iloc[least:], samples["session"]
    judged = np.flatnonzero(session.between(tested["test_start"].min(), tested["test_end"].max()))
    panel, index = (made["market"][name][made["market"][name]["session"] <= as_of] for name in ("panel", "index"))
    entry = str(made["labels"]["labels"]["entry_source"].iloc[0])
    on = backtest.HistoricalBacktest(settings.backtest, settings.labels.horizon, entry, settings.labels).arena(samples[["session", "symbol"]].iloc[judged], panel, index)
    version = made["features"]["feature_set"]["version"]
    return Study(settings, as_of, samples, folds, held, version, entry, judged, tuple(int(fold) for fold in tested["fold"]), on, backtest.equal_weight(on, settings.backtest), cache,
                 digest_of(held, folds, on, as_of))


def digest_of(held: memory.HybridMemory, folds: pd.DataFrame, on: backtest.Arena, as_of: pd.Timestamp) -> str:
    """Of all that the rows' figures depend on: data, settings, code."""
    samples, text = held.samples, {name: pd.factorize(held.samples[name], sort=True) for name in ("symbol", "regime", "market_regime")}
    data = {name: samples[name].to_numpy() for name in (*sample_features(samples), "session", "label", "label_known_at", "forward_log_return", "vix")} | {name: codes for name, (codes, _) in text.items()}
    data |= {f"archive {name}": held.archive[name].to_numpy() for name in ("session", "label_known_at", "known_from", "event_weight")} | {f"state {name}": held.state[name].to_numpy() for name in held.state}
    data |= {"close": on.close, "fill": on.fill, "rate": on.bars.rate, "folds": folds["fold"].to_numpy()}
    return digest_json({"data": digest_arrays(data), "names": {name: list(map(str, values)) for name, (_, values) in text.items()}, "as_of": as_of.isoformat(),
                        "settings": held.settings.model_dump(mode="json", include=SECTIONS), "code": digest_modules(*MODULES),
                        "here": [PENALTY, MIN_NAMES, ARMS, *(inspect.getsource(part) for part in COMPUTING)]})


def at_arm(settings: Settings, arm: str, seed: int) -> Settings:
    """The settings with the switches of an arm; the archive's share is the default one where the settings in force switch it off."""
    changed = settings.model_dump(mode="json")
    for section, values in ARMS[arm].items():
        changed[section] |= values
    if arm == "archive" and not changed["memory"]["archive_share"] > 0:
        changed["memory"]["archive_share"] = Settings().memory.archive_share
    changed["run"]["seed"] = seed
    return Settings.model_validate(changed)


# --- Recipes -------------------------------------------------------------------------------------------------------------------------------------------

def scaled(X_train: pd.DataFrame, *frames: pd.DataFrame) -> list[np.ndarray]:
    """Each frame in standard deviations of the training rows, cut off at 3; NaN is the mean."""
    train = X_train.to_numpy(dtype=np.float64)
    centre, spread = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    return [np.nan_to_num(np.clip((frame.to_numpy(dtype=np.float64) - centre) / np.where(spread > 0, spread, 1.0), -3, 3)) for frame in frames]


class LinearLogit:
    """A multinomial logit on all features."""

    def __init__(self, X: pd.DataFrame, y: np.ndarray, rows: pd.DataFrame) -> None:
        from sklearn.linear_model import LogisticRegression

        self.X, self.y, (values,) = X, y, scaled(X, X)
        self.model = LogisticRegression(C=1 / (PENALTY * len(y)), max_iter=500).fit(values, y, rows["weight"].to_numpy(dtype=float))

    def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
        proba = np.zeros((len(X), 3))
        proba[:, self.model.classes_] = self.model.predict_proba(scaled(self.X, X)[0])
        return proba


class LightGBM:
    """LightGBM with the settings of [boosting], as it calls them, on rows drawn as `boosting` draws them."""

    def __init__(self, X: pd.DataFrame, y: np.ndarray, rows: pd.DataFrame, settings: Settings, seed: int) -> None:
        import lightgbm

        drawn, weight = boosting.every_so_many(len(y), settings.boosting.max_samples, seed), rows["weight"].to_numpy(dtype=float)
        weight = weight[drawn] * weight.sum() / weight[drawn].sum()
        data = lightgbm.Dataset(X.to_numpy()[drawn], y[drawn], weight=weight, params={"max_bin": settings.boosting.max_bin, "verbosity": -1})
        least = min(settings.boosting.min_child_weight, 0.01 * weight.sum())
        self.booster = lightgbm.train(lightgbm_parameters(settings, seed) | {"min_sum_hessian_in_leaf": least}, data, settings.boosting.rounds)

    def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
        return self.booster.predict(X.to_numpy(), num_threads=1)


def lightgbm_parameters(settings: Settings, seed: int) -> dict[str, Any]:
    """Depth, shrinkage, shares and penalty of [boosting], as LightGBM calls them."""
    s = settings.boosting
    return {"objective": "multiclass", "num_class": 3, "max_depth": s.max_depth, "num_leaves": 2**s.max_depth, "learning_rate": s.learning_rate, "max_bin": s.max_bin, "bagging_fraction": s.subsample,
            "bagging_freq": 1, "feature_fraction": s.colsample_bytree, "lambda_l2": s.reg_lambda, "seed": seed % 2**31, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1}


def fit_of(model: str, settings: Settings) -> tuple[Callable[..., Any], dict[str, Any]]:
    """How a class model is fitted, `(X, y, rows, threads)`, and its recipe for the cache."""
    if model in ("forest", "boosting"):
        module = {"forest": forest, "boosting": boosting}[model]
        return module.fitter(getattr(settings, model), settings), {"study": "cross section", **module.component_recipe(settings)}
    if model == "lightgbm":
        import lightgbm

        own = {"rounds": settings.boosting.rounds, "max_samples": settings.boosting.max_samples, "min_child_weight": settings.boosting.min_child_weight, "version": lightgbm.__version__}
        return lambda X, y, rows, threads: LightGBM(X, y, rows, settings, settings.run.seed), {"study": model, **lightgbm_parameters(settings, settings.run.seed), **own}
    version = importlib.metadata.version("scikit-learn")
    return lambda X, y, rows, threads: LinearLogit(X, y, rows), {"study": model, "penalty": PENALTY, "solver": "lbfgs", "version": version}


@lru_cache(maxsize=3)
def plan_of(study: Study, arm: str, seed: int) -> pd.DataFrame:
    """Training rows of every fold, as the memory task plans them."""
    held, settings = study.memory, at_arm(study.settings, arm, seed)
    return memory.make_plan(study.samples, held.archive, study.folds, study.as_of, settings, held.calendar, held.state)[0]


@lru_cache(maxsize=8)
def walk(study: Study, model: str, arm: str, seed: int) -> OutOfFold:
    """A class model, fitted and judged fold by fold; folds with the same training rows and weights are fitted once."""
    settings, samples, plan = at_arm(study.settings, arm, seed), study.samples, plan_of(study, "archive" if arm == "archive" else "none", seed)
    fit, recipe = fit_of(model, settings)
    reweigh = Replay(settings, samples, study.folds, study.feature_set) if settings.replay.mode == "errors" else None

    def fit_predict(X: pd.DataFrame, y: np.ndarray, rows: pd.DataFrame, X_test: pd.DataFrame) -> np.ndarray:
        return fit(X, y, rows, 1).predict_proba(X_test)

    return splits.out_of_fold(samples, sample_features(samples), plan, study.folds, fit_predict, recipe, study.cache, settings.splits.min_train_rows, settings.run.threads, reweigh)


def softened(study: Study, frame: pd.DataFrame) -> np.ndarray:
    """Probabilities for the judged rows, each fold at the temperature of the folds before it."""
    made = meta.calibrated(frame, meta.temperatures(frame, study.samples, study.folds, study.tested))
    if not np.array_equal(made["row"], study.judged):
        raise DataError(f"{len(made)} rows were predicted, not the {len(study.judged)} that all recipes are judged on.")
    return made[list(PROBABILITIES)].to_numpy()


def stacked(study: Study, arm: str, seed: int) -> np.ndarray:
    """The stack of forest and boosting in every judged fold."""
    bases = {base: walk(study, base, arm, seed) for base in meta.BASES}
    return softened(study, meta.stack_out_of_fold(bases, study.samples, study.folds, study.settings.meta).frame)


def ridge(study: Study) -> np.ndarray:
    """Scores of a ridge regression on the return to the horizon, standardised within its session."""
    samples, plan, names = study.samples, plan_of(study, "none", study.settings.run.seed), sample_features(study.samples)
    session, score = samples["session"].to_numpy(), np.full(len(samples), np.nan)
    for fold in study.folds[study.folds["fold"].isin(study.tested)].itertuples():
        rows = plan[plan["fold"] == fold.fold]
        train, test = rows["row"].to_numpy(), np.flatnonzero((session >= fold.test_start) & (session <= fold.test_end))
        splits.check_fold(samples, train, test, fold.fold, fold.cutoff)
        earned = samples["forward_log_return"].iloc[train]
        by_session = earned.groupby(session[train])
        target = ((earned - by_session.transform("mean")) / by_session.transform("std")).to_numpy()
        kept, weight = np.isfinite(target), rows["weight"].to_numpy(dtype=float)
        learned, judged = scaled(samples[names].iloc[train], samples[names].iloc[train[kept]], samples[names].iloc[test])
        heavy = learned * weight[kept, None]
        score[test] = judged @ np.linalg.solve(heavy.T @ learned + PENALTY * kept.sum() * np.eye(len(names)), heavy.T @ target[kept])
    return score[study.judged]


def predict(study: Study, row: Row, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Score, and probabilities if it has any, of the judged rows."""
    if row.model == "ridge":
        return ridge(study), None
    if row.model == "random":
        return np.random.default_rng(seed).random(len(study.judged)), None
    if row.model in ("prior", "volatility"):
        fold = pd.Series(study.folds["fold"].to_numpy(), index=pd.DatetimeIndex(study.folds["test_start"]))
        tested = pd.DataFrame({"row": study.judged, "fold": fold.reindex(study.samples["session"].iloc[study.judged], method="ffill").to_numpy()})
        simple = meta.baselines(study.samples, plan_of(study, "none", study.settings.run.seed), tested)
        proba = simple.filter(like={"prior": "prior_", "volatility": "logit_"}[row.model]).to_numpy()
    else:
        proba = stacked(study, row.arm, seed) if row.model == "stack" else softened(study, walk(study, row.model, row.arm, seed).frame)
    return proba[:, 2] - proba[:, 0], proba


# --- What a session shows ------------------------------------------------------------------------------------------------------------------------------

def pearson(frame: pd.DataFrame, score: str, target: str, min_names: int = MIN_NAMES) -> pd.DataFrame:
    """Pearson correlation within each session: [session, ic]; NaN with fewer than `min_names` pairs, or where one of the two does not vary."""
    code, sessions = pd.factorize(frame["session"], sort=True)
    both = (frame[score].notna() & frame[target].notna()).to_numpy()
    code, values = code[both], frame.loc[both, [score, target]].to_numpy(dtype=float)
    n = np.bincount(code, minlength=len(sessions))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.column_stack([np.bincount(code, column, minlength=len(sessions)) / n for column in values.T])
        a, b = (values - means[code]).T
        ab, aa, bb = (np.bincount(code, product, minlength=len(sessions)) for product in (a * b, a * a, b * b))
        moves = (aa > 1e-20) & (bb > 1e-20)
        return pd.DataFrame({"session": sessions, "ic": np.where(moves & (n >= min_names), ab / np.sqrt(aa * bb), np.nan)})


def traded(study: Study, keys: pd.DataFrame, score: np.ndarray) -> pd.DataFrame:
    """The portfolio of the scores by session: [session, net, excess, turnover]; excess is NaN before the first trade."""
    on, settings = study.on, study.settings
    matrix = np.full(on.close.shape, np.nan)
    matrix[np.searchsorted(on.sessions, keys["session"]), np.searchsorted(on.symbols, keys["symbol"])] = score
    target = backtest.targets(matrix, np.isfinite(matrix), settings.backtest.top_share)
    path = simulate(backtest.tranches(target, settings.labels.horizon), on.bars, settings.backtest)
    excess = path["net"] - backtest.matched(path, study.passive, on.bars.rate)
    return pd.DataFrame({"session": on.sessions, "net": path["net"], "excess": np.where(np.arange(len(excess)) < 2, np.nan, excess), "turnover": path["turnover"]})


def by_session(study: Study, score: np.ndarray, proba: np.ndarray | None) -> pd.DataFrame:
    """Everything the tables are made of: [session, net, excess, turnover, ic, rank_ic, loss, n], one row a session from the first judged one on."""
    facts = study.samples[["session", "symbol", "label", "forward_log_return"]].iloc[study.judged].reset_index(drop=True).assign(score=score)
    facts["loss"] = np.nan if proba is None else splits.log_loss_rows(facts["label"], proba)
    ranked = splits.rank_ic(facts, "score", "forward_log_return", MIN_NAMES).rename(columns={"ic": "rank_ic"})[["session", "rank_ic"]]
    losses = facts.groupby("session", as_index=False).agg(loss=("loss", "mean"), n=("loss", "size"))
    frame = traded(study, facts, score)
    for part in (pearson(facts, "score", "forward_log_return"), ranked, losses):
        frame = frame.merge(part, how="left", on="session")
    return frame.assign(n=frame["n"].fillna(0).astype(float))


def unit(study: Study, row: Row, seed: int) -> pd.DataFrame:
    """`by_session` of a row and seed, from the cache if it is there."""
    key = digest_json({"cross section": row.name, "model": row.model, "arm": row.arm, "seed": seed, "study": study.digest})
    if key not in study.cache:
        study.cache[key] = by_session(study, *predict(study, row, seed))
    return study.cache[key]


def collect(study: Study, rows: Sequence[Row], seeds: Sequence[int], seconds: float, say: Callable[[str], None] = lambda text: None) -> tuple[dict[str, list[pd.DataFrame]], int]:
    """Sessions of each row, a frame a seed, of the seeds that are whole, and how many those are; stops after `seconds`."""
    began, found = time.perf_counter(), {row.name: [] for row in rows}
    for number, seed in enumerate(seeds):
        parts = {}
        for row in rows:
            if time.perf_counter() - began > seconds:
                return found, number
            if row.drawn or number == 0:
                before = time.process_time()
                parts[row.name] = unit(study, row, seed)
                say(f"seed {seed}, {row.name}: {time.process_time() - before:.1f} CPU-s")
        for name, frame in parts.items():
            found[name].append(frame)
    return found, len(seeds)


COMPUTING = (scaled, LinearLogit, LightGBM, lightgbm_parameters, fit_of, plan_of, walk, softened, stacked, ridge, predict, pearson, traded, by_session)  # whose text is part of the key of what is kept


# --- Tables --------------------------------------------------------------------------------------------------------------------------------------------

def measures(frame: pd.DataFrame) -> dict[str, float]:
    """A row's figures from its sessions."""
    def ratio(values: pd.Series) -> float:
        return float(values.mean() / values.std()) if values.std() > 1e-12 else float("nan")

    excess = frame["excess"].dropna()
    path = np.r_[0.0, excess.cumsum()]
    return {"ic": float(frame["ic"].mean()), "icir": ratio(frame["ic"]), "rank_ic": float(frame["rank_ic"].mean()), "rank_icir": ratio(frame["rank_ic"]),
            "log_loss": float(np.average(frame["loss"].fillna(0), weights=frame["n"])) if frame["loss"].notna().any() else float("nan"),
            "excess_ann": float(excess.mean() * SESSIONS_A_YEAR), "ir": ratio(excess) * np.sqrt(SESSIONS_A_YEAR), "max_drawdown": float((path - np.maximum.accumulate(path)).min()),
            "net_ann": float(frame["net"].mean() * SESSIONS_A_YEAR), "turnover_ann": float(frame["turnover"].mean() * SESSIONS_A_YEAR)}


def mean_of(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean over seeds, session by session."""
    return sum((frame.drop(columns="session") for frame in frames[1:]), frames[0].drop(columns="session")).div(len(frames)).assign(session=frames[0]["session"])


def summary_table(found: Mapping[str, Sequence[pd.DataFrame]], ask: Mapping[str, Any]) -> pd.DataFrame:
    """One line a row: means over seeds, `_sd` their spread (NaN for one seed), `_low` and `_high` the interval of IC, RankIC and excess."""
    lines = []
    for name, frames in found.items():
        each, middle = pd.DataFrame([measures(frame) for frame in frames]), mean_of(frames)
        line = {"row": name, "seeds": len(frames), **each.mean(), **each.std().add_suffix("_sd")}
        for column, measure in (("ic", "IC"), ("rank_ic", "RankIC"), ("excess_ann", "excess return")):
            got = splits.session_interval(middle, MEASURES[measure].column, **ask)
            line |= {f"{column}_low": got.low * MEASURES[measure].factor, f"{column}_high": got.high * MEASURES[measure].factor, "sessions": got.n_sessions, "blocks": got.n_blocks}
        lines.append(line)
    return pd.DataFrame(lines)


def compared(a: pd.DataFrame, b: pd.DataFrame, measure: str, ask: Mapping[str, Any]) -> dict[str, Any]:
    """How much better `a` is than `b`, paired by session: difference, interval, two-sided p-value, blocks."""
    what = MEASURES[measure]
    gap = pd.DataFrame({"session": a["session"], "gap": (a[what.column] - b[what.column]) * what.factor, "n": a["n"]})
    got = splits.session_interval(gap, "gap", **ask, weight=what.weight)
    other = replace(got, estimate=-got.estimate, low=-got.high, high=-got.low)
    same = not gap["gap"].fillna(0).any()  # the two have said the same: nothing to doubt
    return {"measure": measure, "difference": got.estimate, "low": got.low, "high": got.high, "p": 1.0 if same else min(1.0, 2 * min(p_above(got, 0.0, LEVEL), p_above(other, 0.0, LEVEL))), "blocks": got.n_blocks}


def judged_by_holm(lines: list[dict[str, Any]], min_blocks: int) -> pd.DataFrame:
    """The lines with Holm's p-values over all of them, and what may be claimed; nothing on fewer than `min_blocks` blocks."""
    frame = pd.DataFrame(lines)
    enough = frame["blocks"] >= min_blocks
    frame["holm"] = holm(frame["p"].where(enough, 1.0).to_numpy())
    outside = (frame["low"] > 0) | (frame["high"] < 0)
    sign = np.where(frame["difference"] > 0, "better", "worse")
    frame["claim"] = np.where(~enough, "insufficient", np.where(outside & (frame["holm"] <= LEVEL), sign, np.where(outside, "not after Holm", "none")))
    return frame


def pairs_of(middle: Mapping[str, pd.DataFrame], measure: str) -> list[tuple[str, str, str]]:
    """What is compared in a measure: name, row, row."""
    def level(name: str) -> float:
        return measures(middle[name])[{"IC": "ic", "RankIC": "rank_ic", "excess return": "excess_ann", "log-loss": "log_loss"}[measure]] * np.sign(MEASURES[measure].factor)

    best = max(BASES, key=level)
    line = LOGIT if measure == "log-loss" else LINEAR
    named = [("stack − best base", STACK, best), ("stack + replay − stack", "stack + replay", STACK), ("stack + archive − stack", "stack + archive", STACK), ("stack − volatility logit", STACK, "volatility logit")]
    return [(f"{what} ({b})" if "best" in what else what, a, b) for what, a, b in named] + [(f"{a} − {line}", a, line) for a in (*BASES, "LightGBM", STACK, "stack + replay", "stack + archive") if a in middle]


def differences(study: Study, middle: Mapping[str, pd.DataFrame], ask: Mapping[str, Any]) -> pd.DataFrame:
    """Every difference that matters, in every measure that both rows have."""
    return judged_by_holm([{"what": what, "ours": a, "peer": b, **compared(middle[a], middle[b], measure, ask)} for measure in MEASURES for what, a, b in pairs_of(middle, measure)],
                          study.settings.promotion.min_blocks)


def levels(study: Study, middle: Mapping[str, pd.DataFrame], ask: Mapping[str, Any]) -> pd.DataFrame:
    """RankIC and excess return of each row against 0."""
    return judged_by_holm([{"what": name, **compared(frame, frame.assign(rank_ic=0.0, excess=0.0), measure, ask)} for measure in ("RankIC", "excess return") for name, frame in middle.items()],
                          study.settings.promotion.min_blocks)


def groups_of(study: Study) -> dict[str, np.ndarray]:
    """Sessions of each market regime, and of all crises of the settings together."""
    regime = study.samples.drop_duplicates("session").set_index("session")["market_regime"].reindex(study.on.sessions)
    events, days = study.settings.events.named, regime.index
    inside = [np.asarray((days >= pd.Timestamp(event.start)) & (days <= pd.Timestamp(event.end)) & regime.notna()) for event in events]
    reached = [days_of for days_of in inside if days_of.any()]
    found = {f"regime {name.replace('_', ' ')}": (regime == name).to_numpy() for name in REGIMES}
    found |= {f"{len(reached)} crises (of {len(events)})": np.any(reached, axis=0)} if reached else {}
    return {name: inside for name, inside in found.items() if inside.any()}


def once_apart(a: pd.DataFrame, b: pd.DataFrame) -> np.ndarray:
    """Sessions from the first on which two rows said different things: those before, on which both are one model, are no evidence about a difference."""
    return np.logical_or.accumulate(((a["loss"] != b["loss"]) & a["loss"].notna()).to_numpy())


def by_group(study: Study, middle: Mapping[str, pd.DataFrame], ask: Mapping[str, Any]) -> pd.DataFrame:
    """What replay and archive change, by regime and in the crises, from the first session on which they change anything."""
    groups, stack, lines = groups_of(study), middle[STACK], []
    for name in ("stack + replay", "stack + archive"):
        apart = once_apart(middle[name], stack)
        for group, inside in groups.items():
            rows = inside & apart
            if rows.any():
                lines += [{"what": f"{name} − {STACK}", "group": group, "since": f"{stack['session'][apart].min():%Y-%m-%d}", "sessions": int(rows.sum()), **compared(middle[name][rows], stack[rows], measure, ask)}
                          for measure in ("log-loss", "RankIC")]
    return judged_by_holm(lines, study.settings.promotion.min_blocks) if lines else pd.DataFrame(columns=["what", "group", "since"])


# --- The page ------------------------------------------------------------------------------------------------------------------------------------------

def spread(line: Mapping[str, Any], column: str, style: str, times: float = 1.0) -> str:
    """Mean and spread over seeds, and the interval where there is one."""
    def said(value: float) -> str:
        return f"{times * value:{style}}"

    if np.isnan(line[column]):
        return "–"
    text = said(line[column]) + ("" if np.isnan(line[f"{column}_sd"]) else f" ± {said(line[f'{column}_sd']).lstrip('+')}")
    low, high = line.get(f"{column}_low", np.nan), line.get(f"{column}_high", np.nan)
    return text if np.isnan(low) else f"{text} [{said(low)}, {said(high)}]"


def markdown(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table, its first column to the left."""
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (header, ["---", *["---:"] * (len(header) - 1)], *lines))


def gap_cells(line: Mapping[str, Any]) -> list[str]:
    """Difference with interval, Holm's p-value and the claim, in the unit of the measure."""
    times, style, unit_ = (100, "+.2f", " %") if line["measure"] == "excess return" else (1, "+.4f", "")
    interval = "" if np.isnan(line["low"]) else f" [{times * line['low']:{style}}, {times * line['high']:{style}}]"
    return [f"{times * line['difference']:{style}}{unit_}{interval}", f"{line['holm']:.3f}", line["claim"]]


def finding(report: Mapping[str, Any]) -> str:
    """The answer in words."""
    gaps, said = report["differences"], []
    for measure, times, style in (("RankIC", 1, "+.4f"), ("excess return", 100, "+.1f")):
        lines = report["levels"][report["levels"]["measure"] == measure]
        sure, alone = ([f"{r.what} ({times * r.difference:{style}})" for r in lines[lines["claim"].isin(claims)].itertuples()] for claims in (("better", "worse"), ("not after Holm",)))
        said.append(f"{measure[0].upper()}{measure[1:]}{' (% a year)' if times > 1 else ''} differs from 0 after Holm's adjustment over all rows for {', '.join(sure) or 'no row'}{'; by itself also for ' + ', '.join(alone) if alone else ''}.")
    kept = gaps[gaps["claim"].isin(("better", "worse"))]
    groups = [f"{claim} in {measure}: {', '.join(part['what'])}" for (claim, measure), part in kept.groupby(["claim", "measure"], sort=False)]
    return " ".join([*said, f"Of {len(gaps)} paired differences {len(kept)} survive Holm's adjustment{' (' + '; '.join(groups) + ')' if groups else ''}."])


def page(report: Mapping[str, Any]) -> str:
    """The whole report in Markdown."""
    facts, table = report["facts"], report["table"]
    shown = [[r["row"], r["seeds"] if r["drawn"] else "no draw", spread(r, "ic", "+.4f"), spread(r, "icir", "+.3f"), spread(r, "rank_ic", "+.4f"), spread(r, "rank_icir", "+.3f"), spread(r, "net_ann", ".1f", 100), spread(r, "excess_ann", "+.1f", 100), spread(r, "ir", "+.2f"),
              spread(r, "max_drawdown", ".0f", 100), spread(r, "log_loss", ".4f"), f"{r['turnover_ann']:.0f}"] for r in table.to_dict("records")]
    gaps = [[r["measure"], r["what"], *gap_cells(r)] for r in report["differences"].to_dict("records")]
    since = "; ".join(dict.fromkeys(f"{r.what} from {r.since} on" for r in report["groups"].itertuples()))
    groups = [[r["group"], r["what"], r["measure"], r["sessions"], r["blocks"], *gap_cells(r)] for r in report["groups"].to_dict("records")]
    missing = "".join(f"\n\n**Missing:** {one}" for one in report["missing"])
    return f"""# Cross-section: which recipe knows tomorrow's winners?

> {finding(report)}

{facts['symbols']} symbols, judged from {facts['first']} to {facts['last']}: {facts['rows']:,} rows, {facts['sessions']:,} sessions ({facts['blocks']} blocks of {facts['block_sessions']}), {facts['folds']} yearly folds, {facts['features']} features, {facts['seeds']} of {facts['wanted']} seeds.
{facts['survivorship']}
{facts['trials']} trials: so many recipes were scored on these years for this table (seeds and folds are none); the best IR of so many without skill is expected to be {facts['luck_ir']:+.2f}.{missing}

## The table

{markdown(["row", "seeds", "IC", "ICIR", "RankIC", "RankICIR", "net return, % a year", "excess, % a year", "IR", "MDD, %", "log-loss", "turnover a year"], shown)}

`±` is the standard deviation over seeds (spread, not sampling error); brackets are 95 % intervals of the mean over seeds, by a bootstrap over blocks of {facts['block_sessions']} whole sessions. IC and RankIC: mean over sessions of Pearson's and Spearman's
correlation of p(buy) − p(sell) with the log return from entry to the {facts['horizon']}-session exit; ICIR: that mean over its standard deviation, not annualised. Net return: of a long portfolio of the {facts['top_share']:.0%} of symbols with the highest scores
(above the session's median), bought at the next {facts['entry']} in {facts['horizon']} overlapping tranches, after {facts['cost_bps']:g} + {facts['slippage_bps']:g} bps one way for cost and slippage; excess: less the equal-weighted panel
at the same exposure, which pays no costs. Excess, IR and MDD are of that difference, summed over sessions as Qlib does. The prior scores all symbols alike: it has no IC and holds nothing. The log-loss of random scores and of the ridge regression does not exist.

Rows without a plus learn from the last {facts['window_years']:g} years alone. `+ replay` turns replay of past errors on and nothing else; `+ archive` adds archived crises up to {facts['archive_share']:.0%} of the training rows and nothing else{facts['archive_from']}. The stack is used in
every year, whether it has earned its place or not; class models are softened by the temperature of their own earlier folds.

## Differences

{markdown(["measure", "difference", "gain, 95 % interval", "Holm's p", "claim"], gaps)}

Positive is better (log-loss: nats gained). Paired by session; Holm's adjustment over all {len(gaps)} lines. The best base is the better of forest and XGBoost in that measure, chosen with hindsight. A claim needs an interval without 0 and an adjusted p-value of at most {LEVEL}.

## Replay and archive by regime, and in the crises

{markdown(["sessions of", "difference", "measure", "sessions", "blocks", "gain, 95 % interval", "Holm's p", "claim"], groups)}

Counted from the first session on which the two say different things: {since or 'they never do'}. Holm's adjustment over all {len(groups)} lines; insufficient: fewer than {facts['min_blocks']} blocks. Market regime as known at the close. Crises are the events of the settings, all together; an event is in the archive only once it is over and its labels are known.

## How it was made

{facts['models']}. {', '.join(f"{name} {version}" for name, version in facts['versions'].items())}; {facts['machine']}. Made by

<!-- not run: hours of computing -->
```bash
{facts['command']}
```

On your own bars: the same command with `MLTRADER_MARKET__PROVIDER=parquet MLTRADER_MARKET__PATH=bars.parquet` before it. A run that was stopped goes on where it was; `--minutes` bounds it.
Why a better model is not yet a tradable one: [tradable](explanation/tradable.md).
"""


def facts_of(study: Study, summary: Mapping[str, Any], seeds: int, wanted: int, rows: Sequence[Row], table: pd.DataFrame, arguments: Sequence[str]) -> dict[str, Any]:
    """Sizes, settings, versions and the command."""
    s, days = study.settings, study.samples["session"].iloc[study.judged]
    trials, years = sum(row.trial for row in rows), table["sessions"].max() / SESSIONS_A_YEAR
    plan = plan_of(study, "archive", s.run.seed)
    filled = plan.loc[(plan["origin"] == "archive") & plan["fold"].isin(study.tested), "fold"]
    since = "" if filled.empty or filled.min() == study.tested[0] else f" (before the fold of {filled.min()} no archived row was older than the window, and both are the same)"
    environment = [f"{name}={shlex.quote(value)}" for name, value in sorted(os.environ.items()) if name.startswith("MLTRADER_") and "__" in name and name not in NOT_SETTINGS and "URL" not in name]
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pandas", "scikit-learn", "scipy", "xgboost-cpu")} | {name: importlib.metadata.version(name) for name in {row.model for row in rows} & {"lightgbm"}}
    b = s.boosting
    return {
        "symbols": len(study.on.symbols), "rows": len(study.judged), "first": f"{days.min():%Y-%m-%d}", "last": f"{days.max():%Y-%m-%d}", "sessions": int(table["sessions"].max()), "blocks": int(table["blocks"].max()),
        "block_sessions": 2 * s.labels.horizon, "min_blocks": s.promotion.min_blocks, "folds": len(study.tested), "features": len(sample_features(study.samples)), "seeds": seeds, "wanted": wanted, "survivorship": summary.get("survivorship", ""),
        "trials": trials, "luck_ir": luck.expected_maximum(trials, float(np.sqrt(1 / years))), "horizon": s.labels.horizon, "top_share": s.backtest.top_share, "cost_bps": s.backtest.cost_bps, "slippage_bps": s.backtest.slippage_bps,
        "entry": study.entry, "window_years": s.memory.window_years, "archive_share": at_arm(s, "archive", 0).memory.archive_share, "archive_from": since,
        "models": f"Forest of {s.forest.n_estimators} trees; XGBoost and LightGBM of {b.rounds} rounds, depth {b.max_depth}, learning rate {b.learning_rate:g}, on {b.max_samples:.0%} of the training rows; linear models with a ridge penalty of {PENALTY:g} a training row on standardised features; label {s.labels.preset}",
        "versions": {"Python": platform.python_version(), **versions}, "machine": f"{os.cpu_count()} CPUs, {s.run.threads} threads",
        "command": " ".join([*environment, "python benchmarks/cross_section.py", *map(shlex.quote, arguments)]),
    }


def lightgbm_missing(folder: Path) -> str | None:
    """None if LightGBM can be imported, after it was put into a folder of its own if need be; else why not."""
    sys.path.append(str(folder))
    if importlib.util.find_spec("lightgbm") is None:
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), f"lightgbm=={LIGHTGBM}"], capture_output=True, text=True, check=False)
        importlib.invalidate_caches()
        if done.returncode or importlib.util.find_spec("lightgbm") is None:
            return f"LightGBM {LIGHTGBM}, which could not be installed: {(done.stderr or 'no reason given').strip().splitlines()[-1]}"
    return None


def report_of(study: Study, summary: Mapping[str, Any], found: Mapping[str, list[pd.DataFrame]], seeds: int, wanted: int, rows: Sequence[Row], missing: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """All tables."""
    ask = {"horizon": study.settings.labels.horizon, "n_boot": study.settings.splits.bootstrap, "level": LEVEL, "seed": study.settings.run.seed}
    middle = {name: mean_of(frames) for name, frames in found.items()}
    table = summary_table(found, ask)
    table["drawn"] = table["row"].map({row.name: row.drawn for row in rows})
    return {"facts": facts_of(study, summary, seeds, wanted, rows, table, arguments), "missing": list(missing), "table": table, "levels": levels(study, middle, ask), "differences": differences(study, middle, ask), "groups": by_group(study, middle, ask)}


def lines_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The differences in the shape that all benchmarks share; `low` and `high` are the interval of the difference, and both rows' own figures are in the note."""
    levels = report["table"].set_index("row")
    column = {"IC": "ic", "RankIC": "rank_ic", "excess return": "excess_ann", "log-loss": "log_loss"}

    def note(r: Mapping[str, Any]) -> str:
        ours, peer = (levels.at[r[name], column[r["measure"]]] for name in ("ours", "peer"))
        return f"difference with its {1 - LEVEL:.0%} interval, more is better; {r['ours']} {ours:.4f}, {r['peer']} {peer:.4f}; Holm's p {r['holm']:.3f}; claim: {r['claim']}"

    return [{"what": f"{r['measure']}: {r['what']}", "ours": r["difference"], "peer": None, "against": "", "ratio": None, "low": r["low"], "high": r["high"], "bar": None, "least": True, "ok": True,
             "unit": {"excess return": "a year", "log-loss": "nats"}.get(r["measure"], ""), "note": note(r), "measured": r["difference"]} for r in report["differences"].to_dict("records")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, help="20 without it; 2 with --quick")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further fit after so long")
    parser.add_argument("--md", type=Path, help="where to write the report as a page")
    options = parser.parse_args()
    wanted = options.seeds or (2 if options.quick else SEEDS)
    threadpool_limits(1, user_api="blas")  # folds are what runs at the same time
    warnings.filterwarnings("ignore", "Mean of empty slice|Degrees of freedom")  # a feature whose inputs the panel lacks
    began, settings = time.perf_counter(), load_settings()
    if not options.whole:
        changed = settings.model_dump(mode="json")
        for section, values in (QUICK if options.quick else LIGHT).items():
            changed[section] |= values
        settings = Settings.model_validate(changed)
    why = lightgbm_missing(home() / "studies" / "cross" / f"lightgbm-{LIGHTGBM}")
    rows = [row for row in ROWS if row.model != "lightgbm" or why is None]
    try:
        (made, as_of), kept = inputs_of(settings, "archive"), home() / "studies" / "cross"
        summary = made["market"]["summary"]
        study = study_of(made, settings, as_of, FoldCache(kept / "folds", ArtifactStore(kept / "artifacts")), QUICK_FOLDS if options.quick else None)
        del made
        seeds = [settings.run.seed + number for number in range(wanted)]
        found, whole = collect(study, rows, seeds, 60 * options.minutes, lambda text: print(text, file=sys.stderr, flush=True))
    except MltraderError as error:
        sys.exit(str(error))
    if not whole:
        sys.exit("No seed is whole yet; what was fitted is kept, and the same command goes on from there.")
    report = report_of(study, summary, found, whole, max(wanted, SEEDS), rows, [why] if why else [], sys.argv[1:])
    text = page(report)
    if options.md:
        options.md.write_text(text, encoding="utf-8")
    if options.json:
        raw = {name: report[name].astype(object).where(report[name].notna(), None).to_dict("records") for name in ("table", "levels", "differences", "groups")}
        print(json.dumps({"rows": lines_of(report), "missing": report["missing"], "quick": options.quick, "versions": report["facts"]["versions"], "facts": report["facts"], **raw, "wall_s": time.perf_counter() - began}, indent=1, default=str))
    else:
        print(text)


if __name__ == "__main__":
    main()
