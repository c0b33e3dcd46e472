"""Does looking again at past errors help? Forest and boosting with [replay] off, `errors` and `double_ensemble`, walked forward through all years.

    python benchmarks/replay.py            # 27 test years, 3 seeds, lighter models than the default recipe: about 1,000 CPU-seconds
    python benchmarks/replay.py --quick    # the last 6 test years, 1 seed, very light models: about a minute
    python benchmarks/replay.py --whole    # the default recipe as it is, 1 seed: about an hour
    python benchmarks/replay.py --json

A *confident error* is a wrong call with a probability of at least 0.6. A row is *like a buffered error* if, of all rows of its test year, it is
among the tenth that lie nearest to an error which the buffer of the arm `off` held at the year's cut-off (all features, standardised on the
training rows). A *repeat error* is a row like a buffered error that is called confidently, wrongly, and as that error was called. All
arms are judged on the same rows; values are averaged over seeds, differences are paired with `off`, and their 95 % intervals come from a
bootstrap over blocks of whole sessions (`splits.session_interval`). The target is 30 % fewer repeat errors without a rise of the
log-loss. A null result is no failure: the exit code is 1 only if the default mode is one that the figures speak against.
"""
import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from packaged import inputs_of

from mltrader import boosting, forest, replay, splits
from mltrader.checks import sample_features
from mltrader.config import Settings
from mltrader.core import PROBABILITIES

MODES = ("off", "errors", "double_ensemble")
COMPONENTS = {"forest": forest, "boosting": boosting}
CONFIDENT, NEAR = 0.6, 0.1
LEVEL, TARGET = 0.05, -0.30
LIGHT = {"forest": {"n_estimators": 50}, "boosting": {"rounds": 40, "learning_rate": 0.12}}
QUICK = {"forest": {"n_estimators": 30}, "boosting": {"rounds": 15, "learning_rate": 0.25}, "splits": {"first_test_year": 2017}}


_INPUTS: dict[str, Any] = {}


def _open(document: dict[str, Any]) -> None:
    _INPUTS["inputs"], _INPUTS["as_of"] = inputs_of(Settings.model_validate(document))


def fit(job: tuple[str, str, int, dict[str, Any]]) -> tuple[str, str, int, pd.DataFrame, float]:
    """All folds of one component in one mode, by the code of its task."""
    component, mode, seed, document = job
    settings = Settings.model_validate(document | {"replay": document.get("replay", {}) | {"mode": mode}, "run": {"seed": seed, "threads": 1}})
    began = time.process_time()
    output = COMPONENTS[component].run(_INPUTS["inputs"], settings, _INPUTS["as_of"])
    return component, mode, seed, output.frames["out_of_fold"], time.process_time() - began


def like_errors(off: pd.DataFrame, settings: Settings, inputs: dict[str, Any]) -> pd.DataFrame:
    """Rows like an error that the buffer held at their year's cut-off: [row, called], `called` being how that error was called."""
    samples, plan, folds = (inputs["memory"][name] for name in ("samples", "plan", "folds"))
    names, keys = sample_features(samples), pd.MultiIndex.from_frame(samples[["session", "symbol"]])
    X = samples[names].to_numpy(dtype="float32")
    proved = splits.reopen(off, {}, samples, plan, folds)
    rules = settings.replay
    held = replay.ErrorReplayBuffer(None, rules.max_size, "bench", regime_weights=settings.memory.regime_weights, max_age_years=rules.max_age_years)
    parts = []
    for fold in folds.itertuples():
        held.add_batch_errors(proved.known_at(samples, fold.cutoff), samples, folds, fold.cutoff)
        if not len(held.errors):
            continue
        test = off.loc[off["fold"] == fold.fold, "row"].to_numpy()
        errors = keys.get_indexer(pd.MultiIndex.from_frame(held.errors[["session", "symbol"]]))
        nearest, distance = replay.nearest_error(X[plan.loc[plan["fold"] == fold.fold, "row"]], X[errors], X[test])
        near = distance <= np.quantile(distance, NEAR)
        parts.append(pd.DataFrame({"row": test[near], "called": held.errors["predicted_label"].to_numpy()[nearest[near]]}))
    return pd.concat(parts, ignore_index=True)


def judge(found: dict[tuple[str, str, int], pd.DataFrame], seeds: list[int], settings: Settings, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """One line a component and mode."""
    samples = inputs["memory"]["samples"]
    y, lines = samples["label"].to_numpy(), []
    for component in COMPONENTS:
        measured: dict[str, list[pd.DataFrame]] = {mode: [] for mode in MODES}
        for seed in seeds:
            like = like_errors(found[component, "off", seed], settings, inputs).set_index("row")["called"]
            for mode in MODES:
                frame = found[component, mode, seed]
                rows, proba = frame["row"].to_numpy(), frame[list(PROBABILITIES)].to_numpy()
                called = proba.argmax(axis=1)
                error = ((called != y[rows]) & (proba.max(axis=1) >= CONFIDENT)).astype(float)
                theirs = like.reindex(rows)
                repeat = np.where(theirs.notna(), error * (called == theirs.to_numpy()), np.nan)
                measured[mode].append(pd.DataFrame({"repeat": repeat, "error": error, "loss": splits.log_loss_rows(y[rows], proba)}, index=rows))
        mean = {mode: sum(parts[1:], parts[0]) / len(parts) for mode, parts in measured.items()}  # a row counts if it is like an error for every seed
        for mode in MODES:
            line: dict[str, Any] = {"component": component, "mode": mode, "seeds": len(seeds), "rows": len(mean[mode]), "like_errors": int(mean[mode]["repeat"].notna().sum())}
            for what in ("repeat", "error", "loss"):
                base = float(mean["off"][what].mean())
                gap = (mean[mode][what] - mean["off"][what]).rename("gap").to_frame().assign(session=samples["session"].to_numpy()[mean[mode].index])
                interval = splits.session_interval(gap, "gap", settings.labels.horizon, settings.splits.bootstrap, LEVEL, 1)
                scale = 1.0 if what == "loss" else base
                by_seed = [(a[what].mean() - b[what].mean()) / scale for a, b in zip(measured[mode], measured["off"], strict=True)]
                line |= {what: float(mean[mode][what].mean()), f"{what}_gap": interval.estimate / scale, f"{what}_low": interval.low / scale,
                         f"{what}_high": interval.high / scale, f"{what}_seed_spread": float(np.std(by_seed)), "blocks": interval.n_blocks}
            line["target"] = bool(line["repeat_high"] < 0 and line["repeat_gap"] <= TARGET and line["loss_high"] <= 0) if mode != "off" else None
            lines.append(line)
    return lines


def words(line: dict[str, Any]) -> str:
    """What a line shows, in words."""
    if line["mode"] == "off":
        return "base line"
    repeat = "fewer" if line["repeat_high"] < 0 else "more" if line["repeat_low"] > 0 else "no clear change in"
    loss = "lower" if line["loss_high"] < 0 else "higher" if line["loss_low"] > 0 else "not clearly different"
    return f"{repeat} repeat errors, log-loss {loss}: target {'met' if line['target'] else 'not met'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    document: dict[str, Any] = QUICK if options.quick else {} if options.whole else LIGHT
    seeds = [42, 43, 44][: 1 if options.quick or options.whole else 3]
    settings, began = Settings.model_validate(document), time.perf_counter()
    jobs = [(component, mode, seed, document) for mode in reversed(MODES) for component in ("boosting", "forest") for seed in seeds]
    found, cost = {}, {}
    with ProcessPoolExecutor(2, initializer=_open, initargs=(document,)) as pool:
        for component, mode, seed, frame, seconds in pool.map(fit, jobs):
            found[component, mode, seed], cost[component, mode, seed] = frame, seconds
            print(f"{component} {mode} {seed}: {seconds:.0f} CPU-s", file=sys.stderr)
    inputs, _ = inputs_of(settings)
    lines = judge(found, seeds, settings, inputs)
    for line in lines:
        line["cpu_s"] = round(float(np.mean([cost[line["component"], line["mode"], seed] for seed in seeds])), 1)
    default = [line for line in lines if line["mode"] == Settings().replay.mode]
    spoken_against = any(line["mode"] != "off" and not line["target"] for line in default)
    years = sorted(found["forest", "off", seeds[0]]["fold"].unique())
    if options.json:
        print(json.dumps({"rows": lines, "quick": options.quick, "first_year": int(years[0]), "last_year": int(years[-1]), "confident": CONFIDENT, "near": NEAR,
                          "wall_s": time.perf_counter() - began}, indent=1))
    else:
        print(f"Out of sample {years[0]} to {years[-1]}, {len(seeds)} seed(s), {lines[0]['blocks']} blocks of sessions. Survivors only: the packaged panel holds "
              f"today's large companies. {'Default recipe' if options.whole else 'Lighter models than the default recipe'}.")
        print(f"{'component':9} {'mode':15} {'repeat errors':>13} {'change, 95 %':>26} {'confident errors':>16} {'change, 95 %':>26} {'log-loss':>8} {'difference, 95 %':>30} {'CPU-s':>6}")
        for r in lines:
            def change(what: str, scale: float = 100, r: dict[str, Any] = r) -> str:
                return f"{scale * r[what + '_gap']:+.1f} % [{scale * r[what + '_low']:+.1f}, {scale * r[what + '_high']:+.1f}]" if r["mode"] != "off" else ""
            loss = f"{r['loss_gap']:+.5f} [{r['loss_low']:+.5f}, {r['loss_high']:+.5f}]" if r["mode"] != "off" else ""
            print(f"{r['component']:9} {r['mode']:15} {r['repeat']:13.2%} {change('repeat'):>26} {r['error']:16.2%} {change('error'):>26} {r['loss']:8.4f} {loss:>30} {r['cpu_s']:6.0f}  {words(r)}")
        print(f"{time.perf_counter() - began:.0f} s")
    sys.exit(spoken_against)


if __name__ == "__main__":
    main()
