"""Does `mltrader audit` find every planted leak, and nothing where there is none?

Each leak of tests/poison.py is planted alone, by patching one production function, and the audit it should turn red is run from scratch; then random draws
of the real features, settings and markets are audited as they are. Prints a table, and the share of false alarms with an exact (Clopper-Pearson) interval.
Bars: every leak is caught, named where it is; no false alarm.

    python benchmarks/leaks.py                 every leak, and a hundred clean draws: about 15 CPU-minutes
    python benchmarks/leaks.py --quick --json  every fourth of the cheap ones, two of whole pipelines, three draws: under a minute
"""
import argparse
import contextlib
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import poison
from timing import document, line

from mltrader import audit, features
from mltrader.config import Settings

TESTS = Path(poison.__file__).parent
CLEAN_DRAWS, QUICK_DRAWS = 100, 3


def exact_interval(k: int, n: int, level: float = 0.05) -> tuple[float, float]:
    """Clopper-Pearson interval of a share."""
    from scipy.stats import beta

    return (float(beta.ppf(level / 2, k, n - k + 1)) if k else 0.0), (float(beta.ppf(1 - level / 2, k + 1, n - k)) if k < n else 1.0)


def looked_for(leak: poison.Leak) -> audit.Findings:
    """The audit that should turn red, run while the leak is planted."""
    with leak.planted():
        if leak.check != "lookahead":
            return audit.pipeline(poison.long_market(), poison.long_settings(), symbols=0, seed=3)
        column = {poison.OF_COLUMNS[leak.name][0]} if leak.name in poison.OF_COLUMNS else set()
        return audit.lookahead(poison.MARKET, poison.RULES, cuts=14, symbols=0, seed=3, names=sorted({*poison.FEW, *poison.READ, "curve_10y_3m", *column}))


def planted(chosen: list[poison.Leak]) -> list[dict[str, Any]]:
    """One row a leak."""
    rows = []
    for leak in chosen:
        began, found = time.process_time(), looked_for(leak)
        named = {(what, name) for what, name in found.faults[["what", "name"]].to_numpy()}
        first = found.faults.iloc[0] if len(found.faults) else None
        rows.append({"leak": leak.name, "fault": leak.fault, "expected": leak.check, "caught": not found.ok and leak.named <= named, "red": not found.ok,
                     "named": "" if first is None else f"{first['what']} {first['name']}", "seconds": time.process_time() - began})
        print(f"  {rows[-1]['leak']:<36} {'caught' if rows[-1]['caught'] else 'MISSED':<7} {rows[-1]['seconds']:5.1f} s  {rows[-1]['named']}", file=sys.stderr)
    return rows


def guarded() -> list[dict[str, Any]]:
    """The traps that are no look-ahead: whether their tests see them refused."""
    import pytest

    rows = []
    for name, (test, guard) in poison.NO_LOOKAHEAD.items():
        began = time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            code = pytest.main(["-c", str(TESTS / "pytest.ini"), "-n", "0", "-q", "-p", "no:cacheprovider", str(TESTS / "test_traps.py"), "-k", test])
        rows.append({"leak": name, "fault": "no look-ahead; planted in tests/test_traps.py", "expected": "refused", "caught": code == 0, "red": code == 0, "named": guard, "seconds": time.process_time() - began})
    return rows


def clean_settings(seed: int, draw: np.random.Generator) -> tuple[dict, Settings, list[str]]:
    """A market, settings and features at random; nothing in them is wrong."""
    frames = poison.simulate(1000 + seed, n=360, whole=bool(seed % 2))
    rules = poison.short_settings(preset=("seed", "volatility")[seed // 2 % 2], horizon=int(draw.integers(5, 20)))
    rules = audit.changed(rules, memory={"window_years": float(draw.uniform(0.4, 2.0)), "archive_share": float(draw.uniform(0, 0.5)), "mix": str(draw.choice(["fixed", "coverage", "likeness"]))})
    names = draw.choice([one.name for one in features.FEATURES], int(draw.integers(5, 40)), replace=False).tolist()
    return frames, rules, names


def clean(seed: int) -> list[str]:
    """What the audits say against one clean draw: nothing, it is to be hoped. Every twentieth is a whole pipeline as well."""
    draw = np.random.default_rng(seed)
    frames, rules, names = clean_settings(seed, draw)
    found = {"lookahead": audit.lookahead(frames, rules, cuts=4, symbols=0, seed=seed, names=names), "recursive": audit.recursive(frames, rules, starts=2, symbols=0, seed=seed, names=names)}
    if seed % 20 == 0:
        mode = ("off", "errors", "double_ensemble")[seed // 20 % 3]
        settings = audit.changed(poison.long_settings(mode=mode), labels={"preset": ("seed", "volatility")[seed // 20 % 2]}, meta={"blend": ("logistic", "nnls")[seed // 40 % 2]})
        market = poison.simulate(seed, n=870, start="2004-06-14", ends=(40, 20), whole=bool(seed // 20 % 2))
        found["pipeline"] = audit.pipeline(market, settings, symbols=0, seed=seed)
    return [f"seed {seed}: {one.verdict}" for one in found.values() if not one.ok]


def main() -> int:
    """Run it; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="some of the leaks, and three clean draws")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    audit.MOST_CUTOFFS = 2
    few = [leak for leak in poison.LEAKS if leak.check == "lookahead"][::4] + [leak for leak in poison.LEAKS if leak.name.startswith(("T3 ", "T12 "))]
    chosen = few if args.quick else list(poison.LEAKS)
    rows, draws = planted(chosen), QUICK_DRAWS if args.quick else CLEAN_DRAWS
    rows += [] if args.quick else guarded()
    alarms = [said for seed in range(1, draws + 1) for said in clean(seed)]
    red = len({said.split(":")[0] for said in alarms})
    missed = [row["leak"] for row in rows if not row["caught"]]
    result = {"leaks": rows, "missed": missed, "clean": draws, "alarms": alarms, "red": red, "interval": exact_interval(red, draws), "python": platform.python_version(),
              "versions": {name: version(name) for name in ("numpy", "pandas", "numba")}}
    if args.json:
        caught = len(rows) - len(missed)
        lines = [line("planted leaks caught", caught, len(rows), not missed, ", ".join(missed), least=True),
                 line("clean draws that turned red", red, 0, not red, f"of {draws}; 95 % interval of the share {result['interval'][0]:.1%} to {result['interval'][1]:.1%}", least=False)]
        print(json.dumps(document(lines, ("numpy", "pandas", "numba"), args.quick, **{name: result[name] for name in ("leaks", "alarms")}), indent=1))
        return bool(missed or red)
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    print(f"\n{'leak':<36} {'fault':<64} {'expected':<10} {'':<7} named")
    for row in rows:
        print(f"{row['leak']:<36} {row['fault']:<64} {row['expected']:<10} {'caught' if row['caught'] else 'MISSED':<7} {row['named']}")
    low, high = result["interval"]
    print(f"\ncaught {len(rows) - len(missed)} of {len(rows)}; clean draws that turned red: {red} of {draws}, 95 % interval {low:.1%} to {high:.1%}")
    print("\n".join(alarms) if alarms else "", end="")
    print("missed: " + (", ".join([*missed, *(["false alarms"] if red else [])]) or "nothing"))
    return bool(missed or red)


if __name__ == "__main__":
    sys.exit(main())
