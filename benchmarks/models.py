"""What the base models cost and are worth: ours against scikit-learn's and XGBoost's defaults, on the packaged panel, one thread each.

    python benchmarks/models.py            # 9 test years, 200 trees: about half an hour, nearly all of it scikit-learn's
    python benchmarks/models.py --quick    # 3 test years, 40 trees: a few minutes
    python benchmarks/models.py --early    # also: does early stopping on a purged tail help? all 27 years, two more minutes of CPU
    python benchmarks/models.py --json

Every test year is an alternating pair: both models are fitted on the rows and weights that `memory` planned for the year's cut-off, and predict the year. Time is
CPU-seconds of the fit; a bar is missed only if the 90 % interval of the median ratio (or of the difference in log-loss, by blocks of whole sessions) lies beyond it. The *stage* is everything
that a cycle trains and validates: forest and boosting on five purged folds, both refits, the stack; on 24,000 samples of the packaged panel, its features and as many columns of
noise as make 176, on two threads, in seconds of wall time. Exits with 1 if a bar is missed.
"""
import argparse
import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import xgboost
from packaged import inputs_of
from sklearn.ensemble import RandomForestClassifier
from timing import document, line, show

from mltrader import boosting, forest, meta, splits
from mltrader.boosting import XGBoostModel
from mltrader.checks import sample_features
from mltrader.config import BoostingSettings, ForestSettings, MetaSettings, Settings
from mltrader.core import PROBABILITIES
from mltrader.forest import RandomForestModel

HORIZON, LEVEL = 14, 0.10


def cpu(work: Any) -> tuple[float, Any]:
    """CPU-seconds (user and system, all threads) of one call, and its result."""
    gc.collect()
    before = time.process_time()
    made = work()
    return time.process_time() - before, made


def interval(ratios: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median and its 90 % bootstrap interval."""
    values = np.array(ratios)
    draws = np.median(values[np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))], axis=1)
    return float(np.median(values)), *map(float, np.quantile(draws, [0.05, 0.95]))


def year(inputs: dict[str, Any], fold: int) -> dict[str, Any]:
    """Training and test rows of one fold."""
    memory = inputs["memory"]
    samples, rows, at = memory["samples"], memory["plan"][memory["plan"]["fold"] == fold], memory["folds"].set_index("fold").loc[fold]
    names = sample_features(samples)
    test = samples[samples["session"].between(at["test_start"], at["test_end"])]
    train = samples.iloc[rows["row"].to_numpy()]
    return {"X": train[names].astype("float32").reset_index(drop=True), "y": train["label"].to_numpy(np.int64), "weight": rows["weight"].to_numpy(float),
            "uniqueness": rows["uniqueness"].to_numpy(), "X_test": test[names].astype("float32").reset_index(drop=True), "test": test[["session", "label"]]}


def pairs(inputs: dict[str, Any], years: list[int], ours: Any, theirs: Any) -> tuple[list[float], list[float], list[float], pd.DataFrame]:
    """CPU-seconds of each, their ratios, and every test row's two losses; who comes first alternates."""
    spent, parts = {"ours": [], "theirs": []}, []
    for turn, fold in enumerate(years):
        data, loss = year(inputs, fold), {}
        for who in ("ours", "theirs")[:: 1 if turn % 2 else -1]:
            seconds, proba = cpu(lambda who=who, data=data: {"ours": ours, "theirs": theirs}[who](data))
            spent[who].append(seconds)
            loss[who] = splits.log_loss_rows(data["test"]["label"], proba(data["X_test"]))
        parts.append(data["test"][["session"]].assign(**loss, gain=loss["theirs"] - loss["ours"]))
    return spent["ours"], spent["theirs"], [t / o for o, t in zip(spent["ours"], spent["theirs"], strict=True)], pd.concat(parts)


def our_forest(settings: ForestSettings) -> Any:
    def fit(d: dict[str, Any]) -> Any:
        return RandomForestModel(settings, 1).fit(d["X"], d["y"], d["weight"], d["uniqueness"]).predict_proba
    return fit


def their_forest(n_estimators: int) -> Any:
    def fit(d: dict[str, Any]) -> Any:
        model = RandomForestClassifier(n_estimators, random_state=1).fit(d["X"].to_numpy(), d["y"], d["weight"])
        return lambda X: model.predict_proba(X.to_numpy())
    return fit


def our_boosting(settings: BoostingSettings) -> Any:
    def fit(d: dict[str, Any]) -> Any:
        return XGBoostModel(settings, 1).fit(d["X"], d["y"], d["weight"]).predict_proba
    return fit


def their_boosting(settings: BoostingSettings) -> Any:
    """XGBoost as it comes, at our rounds, depth and learning rate."""
    def fit(d: dict[str, Any]) -> Any:
        data = xgboost.DMatrix(d["X"].to_numpy(), d["y"], weight=d["weight"], nthread=1)
        chosen = {"objective": "multi:softprob", "num_class": 3, "max_depth": settings.max_depth, "learning_rate": settings.learning_rate, "nthread": 1, "seed": 1}
        booster = xgboost.train(chosen, data, settings.rounds)
        return lambda X: booster.inplace_predict(X.to_numpy())
    return fit


def stage_inputs(inputs: dict[str, Any], n: int = 24_000, n_features: int = 176, n_folds: int = 5) -> tuple[dict[str, Any], pd.Timestamp]:
    """`n` samples drawn from the panel, in five folds that each train on at least four fifths of them."""
    rng, samples = np.random.default_rng(0), inputs["memory"]["samples"]
    part = samples.iloc[np.sort(rng.permutation(len(samples))[:n])].sort_values(["session", "symbol"], ignore_index=True)
    more = n_features - len(sample_features(part))
    part = pd.concat([part, pd.DataFrame(rng.normal(size=(n, more)).astype("float32"), columns=[f"noise_{k}" for k in range(more)])], axis=1)
    days = np.unique(part["session"])
    edges = part["session"].to_numpy()[np.linspace(0.82 * n, n - 1, n_folds + 1).astype(int)]
    folds = pd.DataFrame([{"fold": k, "cutoff": days[days < a][-1], "test_start": a, "test_end": days[days < b][-1] if k < n_folds - 1 else b}
                          for k, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True))])
    rows = {k: np.flatnonzero(part["label_known_at"] <= c) for k, c in [*folds[["fold", "cutoff"]].itertuples(index=False), (-1, days[-1])]}
    plan = pd.concat([pd.DataFrame({"fold": k, "row": r, "weight": np.float32(1), "uniqueness": np.float32(0.07), "origin": "recent"}) for k, r in rows.items()], ignore_index=True)
    return {"memory": {"samples": part, "plan": plan, "folds": folds}, "fold_cache": {}}, pd.Timestamp(days[-1])


def stage(inputs: dict[str, Any], as_of: pd.Timestamp) -> dict[str, float]:
    """Wall seconds of the forest, boosting (both with refits) and the stack."""
    settings, memory, spent, bases = Settings(run={"threads": 2}), inputs["memory"], {}, {}
    for name, module in (("forest", forest), ("boosting", boosting)):
        began = time.perf_counter()
        output = module.run(inputs, settings, as_of)
        spent[name] = time.perf_counter() - began
        bases[name] = splits.reopen(output.frames["out_of_fold"], output.documents["recipe"], memory["samples"], memory["plan"], memory["folds"])
    began = time.perf_counter()
    meta.stack_out_of_fold(bases, memory["samples"], memory["folds"], settings.meta)
    meta.MetaLearner(MetaSettings()).fit(bases, memory["samples"], as_of)
    return spent | {"stack": time.perf_counter() - began}


def early_stopping(inputs: dict[str, Any], as_of: pd.Timestamp) -> splits.Interval:
    """Gain in log-loss over all years of finding the number of rounds on a purged tail, over the setting (nats; positive: better)."""
    found = {}
    for name, more in (("off", {}), ("on", {"rounds": 2 * BoostingSettings().rounds, "early_stopping": 20})):
        frame = boosting.run({**inputs, "fold_cache": {}}, Settings(run={"threads": 2}, boosting=more), as_of).frames["out_of_fold"]
        found[name] = splits.log_loss_rows(inputs["memory"]["samples"]["label"].to_numpy()[frame["row"]], frame[list(PROBABILITIES)])
    session = inputs["memory"]["samples"]["session"].to_numpy()[frame["row"]]
    return splits.session_interval(pd.DataFrame({"session": session, "gain": found["off"] - found["on"]}), "gain", HORIZON, 2000, 0.05, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--quick", "--early", "--json"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    inputs, as_of = inputs_of(Settings())
    years, trees = ([2004, 2012, 2020], 40) if options.quick else (list(range(1998, 2023, 3)), 200)
    trained, rows = ForestSettings(n_estimators=trees), []
    RandomForestModel(ForestSettings(n_estimators=1)).fit(*(year(inputs, 2000)[k] for k in ("X", "y")))  # compiled code is loaded

    def row(what: str, value: float, bar: float | None, good: bool, note: str, **more: Any) -> None:
        rows.append(line(what, value, bar, good, note, **more))

    def compare(name: str, peer: str, least: float, ours: Any, theirs: Any, margin: float) -> None:
        mine, yours, ratios, losses = pairs(inputs, years, ours, theirs)
        mid, low, high = interval(ratios)
        row(f"{name}: times as fast as {peer}", mid, least, high >= least, f"{len(years)} years", spread=(mid, low, high), ours=float(np.median(mine)), peer=float(np.median(yours)), unit="CPU-s a fit", against=peer)
        gain = splits.session_interval(losses, "gain", HORIZON, 2000, LEVEL, 0)
        limit = -margin * losses["theirs"].mean()
        row(f"{name}: log-loss below {peer}'s", gain.estimate, limit, gain.high >= limit if margin else gain.high > 0,
            f"[{gain.low:.4f}, {gain.high:.4f}]; {losses['ours'].mean():.4f} against {losses['theirs'].mean():.4f}", unit="nats", least=True)

    compare("forest", "scikit-learn", 8.0, our_forest(trained), their_forest(trees), 0.0)
    compare("boosting", "XGBoost", 2.0, our_boosting(BoostingSettings()), their_boosting(BoostingSettings()), 0.01)
    compare("boosting, all rows and columns", "XGBoost", 1.0, our_boosting(BoostingSettings(max_samples=1.0, colsample_bytree=1.0, subsample=1.0, min_child_weight=1.0, reg_lambda=1.0)),
            their_boosting(BoostingSettings()), 0.01)
    prepared = stage_inputs(inputs)
    used, spent = cpu(lambda: stage(*prepared))
    parts = ", ".join(f"{k} {v:.1f}" for k, v in spent.items())
    row("training stage, wall, 2 threads", sum(spent.values()), 45.0, sum(spent.values()) <= 45, f"{parts}; {used:.1f} CPU-s; 24,000 x 176, 5 folds, 2 refits", unit="s")
    if options.early:
        gain = early_stopping(inputs, as_of)
        row("early stopping: gain in log-loss", gain.estimate, None, True, f"95 % [{gain.low:.4f}, {gain.high:.4f}]; off by default unless the interval lies above 0")

    versions = {name: importlib.metadata.version(name) for name in ("scikit-learn", "xgboost-cpu", "numba", "numpy")}
    if options.json:
        print(json.dumps(document(rows, versions, options.quick), indent=1))
    else:
        print(f"packaged panel, test years {years}, {trees} trees; Python {platform.python_version()}, {os.cpu_count()} CPUs, " + ", ".join(f"{n} {v}" for n, v in versions.items()))
        show(rows)
    sys.exit(not all(r["ok"] for r in rows))


if __name__ == "__main__":
    main()
