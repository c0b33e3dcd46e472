"""What an explanation costs: our Shapley values of trees against XGBoost's own C++ and `shap`, in one run, one thread each.

    python benchmarks/explain.py            # 20,000 training rows: some ten minutes
    python benchmarks/explain.py --quick    # fewer training rows and rows to explain, about a minute
    python benchmarks/explain.py --json

Boosting is 100 rounds of 3 trees of depth 6 on 180 features; the forests have 200 trees on 90 features: ours with its default settings, for rows as unique as the packaged ones (0.1) and for
rows that do not overlap (1.0, trees ten times as large), and scikit-learn's of depth 8. 2 % of all values are missing. Bars: values at least 20 times as fast as `pred_contribs`, equal to
1e-5; one row no slower than XGBoost's; interactions at least 100 times as fast as `pred_interactions`, also of one row; forests at least 5 times as fast as `shap.TreeExplainer`; one explanation within 20 ms; importance of
100 rows within 0.2 s, of five regimes with 100 rows each for forest and boosting within 1 s. Explainers are made before the clock starts, ours and theirs; what that costs stands in a column of its own (ours:
reading the trees from the model, taking them apart, and the check against XGBoost on two rows). XGBoost and `shap` are asked for fewer rows where they are slow, and scaled: their time grows with the rows. Ratios are
medians of alternating pairs in CPU-seconds; a bar is missed only if the 90 % interval of the ratio lies below it. Peers that are not installed are named. Exits with 1 if a bar is missed.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from timing import cpu, document, interval
from timing import line as row

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore")
BARS = {"boosting, values": 20.0, "boosting, one row": 1.0, "boosting, interactions": 100.0, "boosting, interactions of one row": 100.0, "forest": 5.0}
LIMITS = {"one explanation": 0.02, "importance, 100 rows": 0.2, "importance by regime": 1.0}
SAME = 1e-5


def world(n: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows with missing values, and three classes that depend on some of the features."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, features)).astype(np.float32)
    y = np.digitize(X[:, :6] @ rng.normal(size=6) * 0.6 + X[:, 6] * X[:, 7] + rng.normal(size=n), [-0.7, 0.7])
    X[rng.random(X.shape) < 0.02] = np.nan
    return X, y


def pairs_of(ours, theirs, pairs: int, scale: float = 1.0, repeats: int = 1) -> dict:
    """Alternating pairs; `scale` is how many times more rows ours explained."""
    times = [(sum(cpu(ours) for _ in range(repeats)) / repeats, scale * sum(cpu(theirs) for _ in range(repeats)) / repeats) for _ in range(pairs)]
    return {"ours": statistics.median(t[0] for t in times), "theirs": statistics.median(t[1] for t in times), "ratio": interval([b / a for a, b in times])}


def boosting(n: int, rows: int, pairs: int) -> list[dict]:
    """Values of many rows and of one, and interactions, against XGBoost."""
    import xgboost

    from mltrader import treeshap

    X, y = world(n, 180)
    model = xgboost.train({"objective": "multi:softprob", "num_class": 3, "max_depth": 6, "max_bin": 64, "learning_rate": 0.1, "min_child_weight": 0, "nthread": 1},
                          xgboost.QuantileDMatrix(X, y, max_bin=64, nthread=1), 100)
    model.set_param({"nthread": 1})
    treeshap.explainer_of(model).interactions(X[:16])
    made = statistics.median(cpu(treeshap.explainer_of, model) for _ in range(5))
    explainer, data = treeshap.explainer_of(model), {size: xgboost.DMatrix(X[:size], nthread=1) for size in (1, rows)}
    leaves = sum("leaf=" in line for tree in model.get_dump() for line in tree.splitlines())

    def said(what: str, size: int) -> np.ndarray:
        return np.moveaxis(model.predict(data[size], strict_shape=True, **{what: True}), 1, -1)

    explainer.values(X[:1]), explainer.values(X[:rows])
    shape = f"{model.num_boosted_rounds() * 3} trees, {leaves:,} leaves, 180 features"
    found = [{"name": "boosting, values", "of": f"{rows} rows, {shape}", **pairs_of(lambda: explainer.values(X[:rows]), lambda: said("pred_contribs", rows), pairs),
              "peer": "xgboost pred_contribs", "difference": float(np.abs(explainer.values(X[:rows]) - said("pred_contribs", rows)[:, :-1]).max()),
              "base": float(np.abs(explainer.base - said("pred_contribs", 1)[0, -1]).max()), "with_nan": float(np.isnan(X[:rows]).any(axis=1).mean())}]
    found.append({"name": "boosting, one row", "of": shape, **pairs_of(lambda: explainer.values(X[:1]), lambda: said("pred_contribs", 1), pairs, repeats=5), "peer": "xgboost pred_contribs"})
    times = [[cpu(explainer.interactions, X[:64]) / 64, cpu(explainer.interactions, X[:1]), cpu(said, "pred_interactions", 1)] for _ in range(pairs)]
    gap = float(np.abs(explainer.interactions(X[:1]) - said("pred_interactions", 1)[:, :-1, :-1]).max())
    for at, name in enumerate(("boosting, interactions", "boosting, interactions of one row")):
        found.append({"name": name, "of": f"a row {'alone' if at else 'of 64'}, {shape}", "ours": statistics.median(t[at] for t in times), "theirs": statistics.median(t[2] for t in times),
                      "ratio": interval([t[2] / t[at] for t in times]), "peer": "xgboost pred_interactions", "difference": gap})
    return [one | {"setup": made} for one in found]


def forests(n: int, rows: int, pairs: int) -> list[dict]:
    """Values of forests against shap."""
    import shap
    from sklearn.ensemble import RandomForestClassifier

    from mltrader import treeshap
    from mltrader.forest import RandomForestModel

    X, y = world(n, 90)
    models = {f"forest, default, uniqueness {u}": RandomForestModel().fit(X, y, uniqueness=np.full(n, u)) for u in (0.1, 1.0)}
    models["forest, scikit-learn, depth 8"] = RandomForestClassifier(200, max_depth=8, n_jobs=1, random_state=0).fit(X, y)
    found = []
    for name, model in models.items():
        theirs = getattr(model, "forest_", model)
        explainer, oracle, some = treeshap.explainer_of(model), shap.TreeExplainer(theirs), 4
        said = oracle.shap_values(X[:some], check_additivity=False)
        line = pairs_of(lambda: explainer.values(X[:rows]), lambda: oracle.shap_values(X[:some], check_additivity=False), pairs, rows / some)  # noqa: B023
        leaves = sum(tree.tree_.n_leaves for tree in theirs.estimators_)
        alone = statistics.median(cpu(explainer.values, X[:1]) for _ in range(9))
        found.append({"name": name, "of": f"{rows} rows (theirs: {some}), 200 trees, {leaves:,} leaves, 90 features", **line, "peer": "shap.TreeExplainer",
                      "difference": float(np.abs(explainer.values(X[:some]) - said).max()), "base": float(np.abs(explainer.base - oracle.expected_value).max()),
                      "setup": cpu(treeshap.explainer_of, model), "setup_theirs": cpu(shap.TreeExplainer, theirs), "alone": alone})
    return found


def importance(explainer, X: np.ndarray, regimes: np.ndarray) -> pd.DataFrame:
    """Mean absolute value of each feature by regime: (regimes, n_features)."""
    size = np.abs(explainer.values(X)).mean(axis=2)
    return pd.DataFrame(size, columns=explainer.names).groupby(regimes).mean()


def tasks(n: int) -> list[dict]:
    """Seconds of what a person waits for, with both models at their default settings."""
    from mltrader import treeshap
    from mltrader.boosting import XGBoostModel
    from mltrader.core import REGIMES
    from mltrader.forest import RandomForestModel

    X, y = world(n, 90)
    models = {"forest": RandomForestModel().fit(X, y, uniqueness=np.full(n, 0.1)), "boosting": XGBoostModel().fit(X, y)}
    explainers = {name: treeshap.explainer_of(model) for name, model in models.items()}
    regimes = np.repeat(REGIMES, 100)

    def timed(work) -> float:
        return statistics.median(cpu(work) for _ in range(9))

    found = []
    for name, explainer in explainers.items():
        found.append({"name": f"one explanation, {name}", "seconds": timed(lambda: explainer.values(X[:1])), "limit": LIMITS["one explanation"]})  # noqa: B023
        found.append({"name": f"importance, 100 rows, {name}", "seconds": timed(lambda: importance(explainer, X[:100], regimes[:100])), "limit": LIMITS["importance, 100 rows"]})  # noqa: B023
        found.append({"name": f"1,000 rows, {name}", "seconds": timed(lambda: explainer.values(X[:1000])), "limit": None})  # noqa: B023
        found.append({"name": f"making the explainer, {name}", "seconds": timed(lambda: treeshap.explainer_of(models[name])), "limit": None})  # noqa: B023
    found.append({"name": f"importance by regime, {len(REGIMES)} x 100 rows, forest and boosting", "seconds": timed(lambda: [importance(e, X[:len(regimes)], regimes) for e in explainers.values()]),
                  "limit": LIMITS["importance by regime"]})
    return found


def others(n: int, rows: int) -> dict:
    """Peers with models of their own, if they are installed: CPU-milliseconds a row."""
    found: dict = {}
    X, y = world(n, 180)
    try:
        import lightgbm

        model = lightgbm.train({"objective": "multiclass", "num_class": 3, "num_leaves": 63, "max_bin": 63, "num_threads": 1, "verbosity": -1}, lightgbm.Dataset(X, y), 100)
        found["lightgbm pred_contrib (its own 300 trees of 63 leaves)"] = 1000 * cpu(lambda: model.predict(X[:rows], pred_contrib=True, num_threads=1)) / rows
    except ImportError:
        found["lightgbm"] = "not installed"
    try:
        found["woodelf"] = f"{importlib.metadata.version('woodelf_explainer')} is installed, but explains one of several classes only: not timed"
    except importlib.metadata.PackageNotFoundError:
        found["woodelf"] = "not installed"
    return found


def rows_of(ratios: list[dict], waits: list[dict]) -> list[dict]:
    """The rows of the benchmark book."""
    rows = [row(f"{one['name']}: times as fast", one["ratio"][0], one["bar"], not one["bar"] or one["ratio"][2] >= one["bar"], one["of"], spread=one["ratio"], ours=1000 * one["ours"], peer=1000 * one["theirs"], unit="ms", against=one["peer"])
            for one in ratios]
    gap = max(one[key] for one in ratios for key in ("difference", "base") if key in one)
    rows.append(row("largest difference from the peers", gap, SAME, gap <= SAME, "values, interactions and base, all of the above"))
    rows += [row(one["name"], 1000 * one["seconds"], one["limit"] and 1000 * one["limit"], not one["limit"] or one["seconds"] <= one["limit"], unit="ms") for one in waits]
    return rows + [row(f"one row alone, {one['name']}", 1000 * one["alone"], 1000 * LIMITS["one explanation"], one["alone"] <= LIMITS["one explanation"], unit="ms") for one in ratios if "alone" in one]


def main() -> None:
    """Print the tables, and leave with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n, rows = (4000, 128) if options.quick else (20_000, 1000)
    ratios = [*boosting(n, rows, 9), *forests(n, min(rows, 256), 9)]
    waits, peers = tasks(n), others(n, min(rows, 100))
    missed = []
    for line in ratios:
        line["bar"] = next((bar for key, bar in BARS.items() if line["name"] == key or key == "forest" and line["name"].startswith("forest")), None)
        if line["bar"] and line["ratio"][2] < line["bar"]:
            missed.append(f"{line['name']}: {line['ratio'][0]:.1f} times as fast, bar {line['bar']:g}")
        missed += [f"{line['name']}: {key} differs by {line[key]:.1e}" for key in ("difference", "base") if line.get(key, 0) > SAME]
        if line.get("alone", 0) > LIMITS["one explanation"]:
            missed.append(f"{line['name']}: one row takes {line['alone'] * 1000:.1f} ms")
    missed += [f"{line['name']}: {line['seconds']:.3f} s, limit {line['limit']}" for line in waits if line["limit"] and line["seconds"] > line["limit"]]
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "scikit-learn", "shap")} | {"xgboost": __import__("xgboost").__version__, "python": platform.python_version()}
    if options.json:
        absent = [f"{name}: {value}" for name, value in peers.items() if isinstance(value, str)]
        print(json.dumps(document(rows_of(ratios, waits), versions, options.quick, absent, ratios=ratios, seconds=waits, peers=peers, missed=missed), indent=1))
        sys.exit(bool(missed))
    print(f"{platform.processor() or platform.machine()}, one thread each; " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    for line in ratios:
        low, high = line["ratio"][1:]
        words = f"{line['name']:<36} {line['ratio'][0]:7.1f} x [{low:.1f}, {high:.1f}]  " + (f"bar {line['bar']:g}  " if line["bar"] else "")
        words += f"ours {line['ours'] * 1000:.1f} ms, {line['peer']} {line['theirs'] * 1000:.0f} ms; {line['of']}"
        for key, text in (("difference", "largest difference"), ("base", "of the base"), ("with_nan", "share of rows with NaN")):
            words += f"; {text} {line[key]:.2g}" if key in line else ""
        words += f"; set-up {line['setup'] * 1000:.0f} ms" + (f", theirs {line['setup_theirs'] * 1000:.0f} ms" if "setup_theirs" in line else "")
        print(words + (f"; one row {line['alone'] * 1000:.1f} ms" if "alone" in line else ""))
    for line in waits:
        print(f"{line['name']:<68} {line['seconds'] * 1000:8.1f} ms" + (f"  limit {line['limit'] * 1000:g} ms" if line["limit"] else ""))
    for name, value in peers.items():
        print(f"{name}: {value if isinstance(value, str) else f'{value:.2f} ms a row'}")
    print("missed: " + "; ".join(missed) if missed else "all bars met")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
