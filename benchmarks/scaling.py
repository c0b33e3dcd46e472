"""How costs grow: features, labels, drift, explanations and the whole cycle, by symbols, sessions, features and rows; time, memory, and the distance from what the memory itself can do.

    python benchmarks/scaling.py            # up to 5,000 symbols: some ten minutes, up to 6 GB
    python benchmarks/scaling.py --quick    # up to 400 symbols, without the cycle: about a minute
    python benchmarks/scaling.py --only features --json

Each point runs in a process of its own, on a made-up panel from a fixed seed, one thread; compiled code and imports are there before the clock starts, and memory is touched before. Time is CPU-seconds, the median of some calls; memory is the highest resident
set beyond what the process held before the call, input excluded and output included. The exponent is the slope of log(time) over log(size) from the second size on (the first one is mostly fixed cost), with a 90 % interval from drawing calls; 1 is linear. The bar is
1.15, on its lower end: a cost that grows faster than the panel would put an end to large ones. Reach of the memory is what a numpy copy of an array far larger than the caches moves (bytes read and written) per CPU-second in the same process;
the ratio says how many times longer the work takes than moving its input and output once would. Exits with 1 if a bar is missed.
"""
import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import document, line, show

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
BAR = 1.15


class Curve(NamedTuple):
    """What grows, over which sizes, and how many calls make a point."""

    topic: str
    by: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    fixed: str  # what does not grow
    calls: int = 5


CURVES = {
    "features by symbols": Curve("features", "symbols", (25, 200, 800, 5000), (25, 100, 400), "800 sessions, all features"),
    "features by sessions": Curve("features", "sessions", (1000, 2000, 4000, 8000), (800, 1600, 3200), "100 symbols, all features"),
    "features by features": Curve("features", "features", (20, 45, 90, 180), (20, 60, 180), "200 symbols x 1,000 sessions"),
    "labels by symbols": Curve("labels", "symbols", (25, 200, 800, 5000), (25, 100, 400), "800 sessions"),
    "labels by sessions": Curve("labels", "sessions", (1000, 2000, 4000, 8000), (800, 1600, 3200), "100 symbols"),
    "drift by symbols": Curve("drift", "symbols", (25, 100, 400, 800), (25, 50, 100), "1,320 sessions x 20 features, fit and compare", 3),
    "drift by features": Curve("drift", "features", (20, 45, 90, 180), (10, 20, 40), "25 symbols x 1,320 sessions, fit and compare", 3),
    "explanations by rows": Curve("explanations", "rows", (25, 200, 800, 5000), (25, 100, 400), "boosting at its defaults, 180 features"),
    "explanations by features": Curve("explanations", "features", (20, 45, 90, 180), (20, 60, 180), "boosting at its defaults, 800 rows"),
    "cycle by symbols": Curve("cycle", "symbols", (25, 100, 400), (), "2,520 sessions, the yardstick's settings of big_cycle.py", 1),
}


def resident(key: str) -> float:
    """A line of /proc/self/status in MB."""
    found = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(found.split()[1]) / 1024


def prepared(topic: str, by: str, size: int) -> tuple[Callable[[], Any], int]:
    """The work of one point, ready to be called, and the bytes that it reads and writes at least."""
    from features import panel_of

    symbols, sessions, count = {"symbols": (size, 800, 180), "sessions": (100, size, 180), "features": (200, 1000, size), "rows": (0, 0, 180)}[by]
    if topic == "features":
        from mltrader import features as F

        chosen = F.FEATURES[:count]
        panel, index, sectors = panel_of(symbols, sessions)
        F.compute(*panel_of(40, 600)[:2], chosen, 1)
        return lambda: F.compute(panel, index, chosen, 1, sectors), len(panel) * (6 * 8 + 4 * len(chosen))
    if topic == "labels":
        from mltrader import labels
        from mltrader.config import LabelSettings

        panel = panel_of(symbols, sessions)[0]
        labels.triple_barrier(panel_of(10, 200)[0], LabelSettings())
        return lambda: labels.triple_barrier(panel, LabelSettings()), len(panel) * (4 * 8 + 4 * 8)
    if topic == "drift":
        import test_drift as worlds

        from mltrader import drift

        symbols, count = (25, size) if by == "features" else (size, 20)
        worlds.SYMBOLS = [f"S{i:04d}" for i in range(symbols)]
        past, now = worlds.split(worlds.autoregressive(0, 0.8, count, 1320, symbols))
        drift.DriftDetector().fit(worlds.split(worlds.autoregressive(0, 0.8, 4, 1320, 4))[0])
        return lambda: drift.DriftDetector().fit(past).compare(now), (len(past) + len(now)) * count * 4
    import xgboost

    from mltrader import treeshap
    from mltrader.config import BoostingSettings

    draw, rows, rule = np.random.default_rng(0), size if by == "rows" else 800, BoostingSettings()
    X = draw.normal(size=(max(rows, 5000), count if by == "rows" else size)).astype(np.float32)
    y = np.digitize(X[:, 0] + X[:, 1] * X[:, 2] + draw.normal(size=len(X)), [-0.7, 0.7])
    model = xgboost.train({"objective": "multi:softprob", "num_class": 3, "max_depth": rule.max_depth, "max_bin": rule.max_bin, "learning_rate": rule.learning_rate, "nthread": 1}, xgboost.QuantileDMatrix(X, y, max_bin=rule.max_bin, nthread=1), rule.rounds)
    explainer = treeshap.explainer_of(model)
    explainer.values(X[:8])
    return lambda: explainer.values(X[:rows]), X[:rows].nbytes * (1 + 3)


def reach(megabytes: int = 256) -> float:
    """GB that a copy reads and writes per CPU-second, the best of some."""
    source, target = (np.ones(megabytes * 2**17) for _ in range(2))
    spent = []
    for _ in range(7):
        before = time.process_time()
        np.copyto(target, source)
        spent.append(time.process_time() - before)
    return 2 * source.nbytes / min(spent) / 1e9


def point(topic: str, by: str, size: int, calls: int) -> dict[str, Any]:
    """One point in this process."""
    if topic == "cycle":
        import big_cycle

        found = big_cycle.stage("yardstick", size, 2520)
        return {"size": size, "cpu_s": [found["cpu_s"]], "peak_mb": found["peak_gb"] * 1000, "bytes": None, "copy_gb_s": None}
    work, moved = prepared(topic, by, size)
    copied = reach()
    gc.collect()
    peak = Path("/proc/self/clear_refs")
    if peak.is_file():
        peak.write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    work()
    used, spent = resident("VmHWM") - before, []
    for _ in range(calls):
        gc.collect()
        np.empty(min(moved, 2**31), np.uint8).fill(1)  # pages that the host has taken back are fetched before the clock starts
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return {"size": size, "cpu_s": spent, "peak_mb": used, "bytes": moved, "copy_gb_s": copied}


def exponent(points: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Slope of log(time) over log(size) from the second size on, with a 90 % interval from drawing calls."""
    late = points[1:] if len(points) > 2 else points
    draw, sizes = np.random.default_rng(0), np.log([p["size"] for p in late])
    slopes = [np.polyfit(sizes, np.log([draw.choice(p["cpu_s"]) for p in late]), 1)[0] for _ in range(1000)]
    middle = np.polyfit(sizes, np.log([np.median(p["cpu_s"]) for p in late]), 1)[0]
    return float(middle), *map(float, np.quantile(slopes, [0.05, 0.95]))


def measured(name: str, quick: bool) -> dict[str, Any] | None:
    """A curve, a process a point; None if `--quick` leaves it out."""
    curve, points = CURVES[name], []
    for size in curve.quick if quick else curve.sizes:
        done = subprocess.run([sys.executable, __file__, "--point", curve.topic, curve.by, str(size), str(curve.calls)], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            return {"error": f"{size} {curve.by}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}", "points": points}
        points.append(json.loads(done.stdout.splitlines()[-1]))
    return {"points": points} if points else None


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The line of a curve."""
    points, curve = found["points"], CURVES[name]
    middle, low, high = exponent(points)
    text = ", ".join(f"{p['size']:,}: {np.median(p['cpu_s']):.3g} s {p['peak_mb']:,.0f} MB" for p in points)
    last = points[-1]
    if last["bytes"]:
        text += f"; {np.median(last['cpu_s']) * last['copy_gb_s'] * 1e9 / last['bytes']:.0f} times the time of moving input and output once ({last['copy_gb_s']:.1f} GB a second)"
    made = line(f"{name}: exponent", middle, BAR, low <= BAR, f"{curve.fixed}; {text}", least=False)
    return made | {"low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=sorted({curve.topic for curve in CURVES.values()}))
    parser.add_argument("--point", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        topic, by, size, calls = options.point
        print(json.dumps(point(topic, by, int(size), int(calls))))
        return
    rows, curves, missing = [], {}, []
    for name, curve in CURVES.items():
        if options.only and curve.topic != options.only:
            continue
        found = measured(name, options.quick)
        if found is None:
            missing.append(f"{name}: not with --quick")
            continue
        if "error" in found:
            missing.append(f"{name}: {found['error']}")
        if len(found["points"]) > 1:
            curves[name] = {"by": curve.by, "fixed": curve.fixed, "points": found["points"]}
            rows.append(row(name, found))
    if options.json:
        print(json.dumps(document(rows, ("numpy", "pandas", "numba", "xgboost-cpu"), options.quick, missing, curves=curves), indent=1))
    else:
        show(rows, missing)
    sys.exit(not all(r["ok"] for r in rows))


if __name__ == "__main__":
    main()
