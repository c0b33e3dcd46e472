"""Which blend, does it need the regime, and is the temperature worth having? Forward, on the base models' predictions of the last run.

    python benchmarks/blends.py            # all years: about a minute
    python benchmarks/blends.py --quick    # the last eight years that were tested
    python benchmarks/blends.py --json

Needs a finished run (`make run`). Each variant of the stack is fitted at every yearly cut-off on what was known then, whether it earns its place or not, and
judged on the year after. Shown: its mean log-loss, and the paired difference to the default (logistic, no context, with temperature), with a 95 % interval over
blocks of whole sessions. Our logit is timed against scikit-learn's on the largest of those fits, in alternating pairs of CPU-seconds. Nothing here is a bar.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from timing import cpu

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
VARIANTS = {"logistic": {}, "logistic, regime": {"context": "regime"}, "nnls": {"blend": "nnls"}, "nnls, regime": {"blend": "nnls", "context": "regime"}}


def compare(task, quick: bool) -> list[dict]:
    """One row a variant and base model, as said and at its temperature."""
    from mltrader import meta, splits
    from mltrader.config import MetaSettings
    from mltrader.core import PROBABILITIES

    samples, plan, folds = (task.inputs["memory"][name] for name in ("samples", "plan", "folds"))
    bases = {base: splits.reopen(task.inputs[base]["out_of_fold"], task.inputs[base]["recipe"], samples, plan, folds) for base in meta.BASES}
    joined, said = meta.with_regimes(meta.join_bases(bases), samples), {}
    for name, choice in VARIANTS.items():
        said[name] = meta.stack_out_of_fold(bases, samples, folds, MetaSettings(**choice)).frame
    tested = sorted(said["logistic"]["fold"].unique())[-8 if quick else 0:]
    said |= {base: meta.forecasts(base, joined, None) for base in meta.BASES}
    losses = {}
    for name, frame in said.items():
        for heat, words in ((meta.temperatures(frame, samples, folds, tested), ""), (dict.fromkeys(tested, 1.0), ", no temperature")):
            made = meta.calibrated(frame, heat)
            losses[name + words] = splits.log_loss_rows(samples["label"].to_numpy()[made["row"]], made[list(PROBABILITIES)])
    rows, session = [], samples["session"].to_numpy()[made["row"]]
    for name, loss in losses.items():
        found = splits.session_interval(pd.DataFrame({"session": session, "more": loss - losses["logistic"]}), "more", task.settings.labels.horizon, 1000, 0.05, 1)
        rows.append({"model": name, "log_loss": float(loss.mean()), "more": found.estimate, "low": found.low, "high": found.high, "n_rows": found.n_rows})
    return rows


def speed(task, pairs: int) -> dict:
    """Our logit against scikit-learn's, on all rows of the last fit."""
    from sklearn.linear_model import LogisticRegression

    from mltrader import meta, splits

    samples, plan, folds = (task.inputs["memory"][name] for name in ("samples", "plan", "folds"))
    bases = {base: splits.reopen(task.inputs[base]["out_of_fold"], task.inputs[base]["recipe"], samples, plan, folds) for base in meta.BASES}
    joined = meta.with_regimes(meta.join_bases(bases), samples)
    X, y = meta.Said.of(joined[list(meta.INPUTS)].to_numpy(), joined["regime_code"].to_numpy()).odds, samples["label"].to_numpy()[joined["row"]].astype(int)
    peer = LogisticRegression(solver="newton-cholesky", tol=1e-8, max_iter=100)
    times = [(cpu(meta.fit_logit, X, y, 1.0), cpu(peer.fit, X, y)) for _ in range(pairs + 1)][1:]
    gap = np.abs(meta.apply_logit(meta.fit_logit(X, y, 1.0), X) - peer.predict_proba(X)).max()
    return {"rows": len(y), "ours_s": statistics.median(a for a, _ in times), "theirs_s": statistics.median(b for _, b in times),
            "ratio": statistics.median(b / a for a, b in times), "largest_gap": float(gap)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from mltrader.core import MltraderError
    from mltrader.reports import open_task

    try:
        task = open_task("meta")
        rows, timed = compare(task, options.quick), speed(task, 3 if options.quick else 9)
    except MltraderError as error:
        sys.exit(str(error))
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pandas", "scikit-learn", "scipy")}
    if options.json:
        print(json.dumps({"rows": rows, "speed": timed, "quick": options.quick, "python": platform.python_version(), "cpus": os.cpu_count(), "versions": versions}, indent=1))
        return
    print(f"{rows[0]['n_rows']:,} rows; Python {platform.python_version()}, {os.cpu_count()} CPUs, " + ", ".join(f"{n} {v}" for n, v in versions.items()))
    for row in rows:
        print(f"{row['model']:34} log-loss {row['log_loss']:.4f}   {row['more']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] a row more than the default")
    print(f"fit_logit on {timed['rows']:,} rows: {timed['ratio']:.1f} times as fast as scikit-learn ({timed['ours_s']:.3f} against {timed['theirs_s']:.3f} CPU-s), "
          f"probabilities equal to {timed['largest_gap']:.0e}")


if __name__ == "__main__":
    main()
