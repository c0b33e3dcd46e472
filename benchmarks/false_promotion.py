"""How often does the loop err? Simulated markets of known truth, walked through month by month by the loop as it is.

    python benchmarks/false_promotion.py --minutes 120                      # goes on where it was: all worlds, 200 seeds of each kind in which errors are counted, 100 breaks, 50 of each kind for power, which cost more (some ten hours on one core)
    python benchmarks/false_promotion.py --worlds iid,garch --seeds 0:50    # a piece of it
    python benchmarks/false_promotion.py --report                           # the tables of what there is, without computing; where there is nothing, of what comes with the repository
    python benchmarks/false_promotion.py --carry 4                          # after a change that is to leave every result alone: four worlds of each kind again; where all are equal, the others go on counting
    python benchmarks/false_promotion.py --quick                            # three worlds of each of two kinds, 6 cycles: under a minute; too few to judge
    python benchmarks/false_promotion.py --json

A *world* is a market of `benchmarks/worlds.py`. The loop (`benchmarks/loop.py`) walks through 24 monthly cycles of it; without a champion each cycle tries the next of twelve recipes, with one every other
cycle refreshes it and the others try the next recipe. Errors, and the bar of each (at most 9 of 200 worlds: one-sided 95 % upper bound at most 8 %):

- false promotion: any promotion in a world in which nothing can be predicted (iid, iid common).
- false call to trade: any cycle that calls its candidate tradable, in worlds whose volatility can be predicted and whose direction cannot (garch, garch drift, bootstrap). Promotions are right there, and
  their number stands beside it: a gate that never promotes passes nothing.
- wrong replacement: in the same worlds, any promotion that replaces the champion by a model whose true expected loss is higher by more than the margin that the gate states ([promotion] margin). The true
  loss is that of the deployed models on a fresh path of the world. Refreshes of the champion's recipe and other recipes are counted apart, too: in a world that stays as it is, a refresh loses so much by the noise of its estimates alone.

Power: share of worlds with a planted relation between a feature and the return (250 names, no costs) in which the loop promotes within 24 cycles, against that of an oracle that knows the relation and is
judged by the rule `beats_prior` alone, on the same rows and with the same spending: bar 80 % of the oracle's. The IC is the oracle's, as attained. For 26 names the same, without a bar; and for the smallest IC once more with smoother models
(*smooth*: bigger leaves, fewer rounds of stumps), which spend less of what there is to learn. Breaks: share of worlds
in which the champion is replaced within 6 cycles after the mean return over a label's horizon has moved by one standard deviation: bar 80 %. The first of these cycles sees hardly any label from after the break, so the same
number of cycles is also counted from the first one whose evidence holds horizon + 2 sessions from after it. How often the champion is replaced in the same cycles without a break stands beside both, with the difference.

*Careless* is the same gate on the same evidence without its budget: every look takes 2.5 %. Where it errs more often than the gate, the difference is what spending is worth; where it does not, the table does not show it.

Each world is a file of its own in `--out` (by default `.mltrader/studies/false_promotion`), in a folder named by the digest of its code and size: results of different code are never merged, but for those that `--carry` has
taken over from earlier code; the tables say how many these are. Seeds change with `STUDY`, which is raised when the code is changed because of what a study found. Exits with 1 if a bar is missed.
"""
import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
import tarfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import timing  # noqa: E402
import worlds  # noqa: E402
from loop import RECIPES, SMALL, STEP, Known, Loop, in_memory, merged, oracle, oracle_looks, true_losses  # noqa: E402
from scipy.stats import beta, binomtest  # noqa: E402

from mltrader.artifacts import publish  # noqa: E402
from mltrader.config import Settings, home  # noqa: E402
from mltrader.core import digest_file, digest_json, digest_modules, seed_for  # noqa: E402

STUDY = 1  # of the seeds
PACKED = ROOT / "benchmarks" / "studies" / "false_promotion.tar.xz"  # what has been computed so far
CYCLES, WORLDS, MOST, RATIO, WITHIN, BREAK = 24, 200, 9, 0.8, 6, 8
MODULES = ("archive", "artifacts", "attribution", "backtest", "boosting", "checks", "config", "conformal", "core", "drift", "estimators", "expressions", "features", "forest", "forgetting", "kernels", "labels", "luck", "memory",
           "meta", "portfolio", "promotion", "refits", "regimes", "registry", "replay", "reports", "significance", "splits", "store", "switching", "trees", "tuning")  # all that a world loads
SECTIONS = ("market", "universe", "features", "regimes", "labels", "drift", "events", "memory", "replay", "splits", "forest", "boosting", "tuning", "meta", "backtest", "explain", "promotion", "training")


@dataclass(frozen=True)
class Case:
    """A kind of world and the size of it.

    Attributes
    ----------
    kind : str
        Of `worlds.KINDS`.
    asks : str
        error | power | break.
    symbols, first : int
        Names, and the session number of the first cycle.
    sections : dict
        Settings besides `loop.SMALL`.
    ic : float
    aimed : bool
        Whether a bar is set.
    count : int
        How many are wanted.
    """

    kind: str
    asks: str = "error"
    symbols: int = 16
    first: int = 1042
    sections: dict[str, Any] = field(default_factory=dict)
    ic: float = 0.0
    aimed: bool = True
    count: int = WORLDS

    def spec(self, name: str, seed: int) -> worlds.Spec:
        """What is drawn for a seed."""
        horizon = Settings(**merged(SMALL, self.sections)).labels.horizon
        broken = self.first + STEP * BREAK + STEP // 2 if self.asks == "break" else -1
        return worlds.Spec(self.kind, seed_for("false promotion", STUDY, name, seed), self.symbols, self.first + STEP * CYCLES, 0, self.ic, horizon, broken)


EDGE = {"features": {"names": (worlds.SIGNAL, "volatility_20", "log_return_20")}, "labels": {"horizon": 5, "take_profit": 0.025, "stop_loss": 0.025, "cost_bps": 0.0},
        "backtest": {"cost_bps": 0.0, "slippage_bps": 0.0, "borrow_bps": 0.0}, "memory": {"window_years": 2.0}, "splits": {"first_test_year": 2002},
        "forest": {"n_estimators": 20, "min_samples_leaf": 1000, "max_features": 1.0}, "boosting": {"rounds": 30, "max_depth": 2, "colsample_bytree": 1.0}}
CASES: dict[str, Case] = {
    "iid": Case("iid"), "iid common": Case("iid common"), "garch": Case("garch"), "garch drift": Case("garch drift"), "bootstrap": Case("bootstrap"), "break": Case("break", "break", count=100),
    **{f"edge {ic:.2f}": Case("planted", "power", 250, 782, EDGE, ic, count=50) for ic in (0.03, 0.05, 0.08)},
    **{f"edge {ic:.2f} narrow": Case("planted", "power", 26, 782, merged(EDGE, {"forest": {"min_samples_leaf": 200}}), ic, aimed=False, count=50) for ic in (0.03, 0.05, 0.08)},
    "edge 0.03 smooth": Case("planted", "power", 250, 782, merged(EDGE, {"forest": {"min_samples_leaf": 15_000}, "boosting": {"rounds": 15, "max_depth": 1}}), 0.03, aimed=False, count=50),
}


def code(name: str) -> str:
    """What the results of a case depend on besides the seed: the package's modules, the study's own, the settings (defaults included), the size, and the versions of libraries."""
    own, case = {name: digest_file(ROOT / "benchmarks" / name) for name in ("worlds.py", "loop.py")}, CASES[name]
    return digest_json({"package": digest_modules(*MODULES), **own, "settings": Settings(**merged(SMALL, case.sections)).digest(*SECTIONS), "versions": versions() | {"python": None}, "case": asdict(case) | {"count": 0},
                        "study": STUDY, "cycles": CYCLES})[:12]


def short(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a cycle."""
    return {name: found[name] for name in ("kind", "verdict", "careless", "tradable", "edge", "look", "trials", "stops")} | {"as_of": f"{found['as_of']:%Y-%m-%d}", "promoted": bool(found["promoted"])}


_oracles: dict[str, tuple[np.ndarray, float]] = {}
_real: list[tuple[np.ndarray, np.ndarray]] = []


def real() -> tuple[np.ndarray, np.ndarray]:
    """The real returns, read once."""
    if not _real:
        _real.append(worlds.real_returns())
    return _real[0]


def one_world(name: str, seed: int, cycles: int = CYCLES) -> dict[str, Any]:
    """Walk through one world; the result, JSON-ready."""
    case, began = CASES[name], time.process_time()
    spec = case.spec(name, seed)
    source = real() if case.kind == "bootstrap" else None
    world = worlds.draw(spec, source)
    kept, promoted = [], []
    with in_memory() as folder:
        loop = Loop(world, folder, case.sections, trade=case.asks == "error")
        for found in loop.walk(case.first, cycles):
            kept.append(short(found))
            if found["promoted"]:
                promoted.append(found["models"])
                if case.asks == "power":
                    break
        result = {"world": name, "seed": seed, "study": STUDY, "code": code(name), "cycles": kept, "loop_cpu_s": (time.process_time() - began) / len(kept)}
        if case.asks == "power":
            if name not in _oracles:
                _oracles[name] = oracle(case.spec(name, -1), loop.settings({}))
            coef, ic = _oracles[name]
            result |= {"oracle": oracle_looks(loop, coef, case.first, cycles), "ic": ic}
    if case.asks == "error" and len(promoted) > 1:
        fresh = Known(worlds.another_path(world, 2400, real=source), loop.known.settings)
        result["true_losses"] = true_losses(fresh, promoted).tolist()
    return result | {"cpu_s": time.process_time() - began}


# --- what there is, and what it says ---------------------------------------------------------------------------------

def place(root: Path, name: str, digest: str = "") -> Path:
    """The folder of the results of a case, by the digest of its code."""
    return root / f"{name.replace(' ', '_')}-{digest or code(name)}"


def results_in(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder, by seed; a file that is being written is not there."""
    return sorted((json.loads(path.read_bytes()) for path in folder.glob("*.json")), key=lambda one: one["seed"])


def unchanged(root: Path, name: str, folder: Path) -> None:
    """End the study if the code on disk is no longer that of `folder`, which was imported."""
    if place(root, name) != folder:
        sys.exit("The code has changed under the study; start it again.")


def facts(result: Mapping[str, Any]) -> str:
    """What has to come out again to the last digit: a result but for its times and the code that made it."""
    return json.dumps({name: value for name, value in result.items() if name not in ("cpu_s", "loop_cpu_s", "code", "carried")}, sort_keys=True)


def carry(root: Path, name: str, checks: int) -> list[str]:
    """Take over what earlier code has computed of a case, if `checks` of its worlds, spread evenly over the seeds, come out equal with the present code.

    Returns
    -------
    list of str
        What became of the results of each earlier code.

    Notes
    -----
    Meant for a change that is to leave results alone: one that makes the same numbers faster, or touches what is not walked here. A change that shows in a few worlds only can be missed: the more worlds computed again, the less so. The worlds
    computed again count as results of the present code; nothing is written for an earlier code one of whose worlds differs.
    """
    here, said = place(root, name), []
    for there in sorted(folder for folder in root.glob(f"{name.replace(' ', '_')}-*") if folder.is_dir() and folder != here):
        missing = [one for one in results_in(there) if one["study"] == STUDY and not (here / f"{one['seed']:04d}.json").is_file()]
        if not missing:
            continue
        checked = [missing[at] for at in sorted({int(at) for at in np.linspace(0, len(missing) - 1, checks)})]
        again = {}
        for one in checked:
            again[one["seed"]] = one_world(name, one["seed"])
            unchanged(root, name, here)
            if facts(again[one["seed"]]) != facts(one):
                said.append(f"{there.name}: seed {one['seed']} comes out differently with the present code, so that none of its {len(missing)} results is taken over")
                break
        else:
            for one in missing:
                kept = again.get(one["seed"]) or {**one, "carried": [*one.get("carried", []), {"to": code(name), "checked": sorted(again)}]}
                publish(here / f"{one['seed']:04d}.json", json.dumps(kept).encode())
            said.append(f"{there.name}: {len(missing)} results taken over; {len(checked)} of them computed again, all equal")
    return said


def interval(k: int, n: int, level: float = 0.05) -> tuple[float, float]:
    """Exact interval of Clopper and Pearson for a share."""
    return (float(beta.ppf(level / 2, k, n - k + 1)) if k else 0.0), (float(beta.ppf(1 - level / 2, k + 1, n - k)) if k < n else 1.0)


def upper(k: int, n: int) -> float:
    """One-sided 95 % upper bound."""
    return float(beta.ppf(0.95, k + 1, n - k)) if k < n else 1.0


def row(name: str, question: str, k: int, n: int, bar: int | None, promotions: int, worlds_promoted: int, **more: Any) -> dict[str, Any]:
    """A line of the table of errors."""
    low, high = interval(k, n)
    return {"world": name, "question": question, "errors": k, "worlds": n, "low": low, "high": high, "upper": upper(k, n), "bar": bar, "promotions": promotions, "worlds_promoted": worlds_promoted,
            "ok": bar is None or k <= bar, **more}


REPLACED: dict[str, tuple[str, ...]] = {"": ("refresh", "new_recipe"), ", by a refresh": ("refresh",), ", by another recipe": ("new_recipe",)}


def errors(name: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The errors of one kind of world."""
    n, margin = len(found), Settings().promotion.margin
    promotions = [sum(cycle["promoted"] for cycle in one["cycles"]) for one in found]
    counts = {"promotions": sum(promotions), "worlds_promoted": sum(k > 0 for k in promotions)}
    careless = sum(any(cycle["careless"] == "PROMOTE" for cycle in one["cycles"]) for one in found)
    if name.startswith("iid"):
        return [row(name, "any promotion", sum(k > 0 for k in promotions), n, MOST, **counts), row(name, "any promotion, careless gate", careless, n, None, **counts)]
    traded = [[cycle for cycle in one["cycles"] if cycle["tradable"] == "tradable"] for one in found]
    steps = [[(cycle["kind"], after - before) for cycle, before, after in zip(made[1:], losses, losses[1:], strict=False)]
             for one in found for made, losses in [([cycle for cycle in one["cycles"] if cycle["promoted"]], one.get("true_losses", []))]]
    lines = [row(name, "any call to trade", sum(map(bool, traded)), n, MOST, **counts)]
    for words, kinds in REPLACED.items():  # of all the error has its bar; the kinds say where to look
        own = [[step for kind, step in world if kind in kinds] for world in steps]
        every = [step for world in own for step in world]
        lines.append(row(name, f"replaced by one worse by {margin:g}{words}", sum(any(step > margin for step in world) for world in own), n, None if words else MOST, **counts, replaced=len(every),
                         mean_step=float(np.mean(every)) if every else float("nan"), worst_step=max(every, default=float("nan"))))
    return lines


def replaced_within(one: dict[str, Any], start: int) -> bool | None:
    """Whether a champion of before the break is replaced in the cycles from `start` on that count; None if there is none."""
    champion = any(cycle["promoted"] for cycle in one["cycles"][:BREAK + 1])
    return any(cycle["promoted"] for cycle in one["cycles"][start:start + WITHIN]) if champion else None


def first_that_sees() -> int:
    """The first cycle whose evidence holds at least horizon + 2 sessions from after the break: a session's label is known horizon + 2 sessions later."""
    late = Settings(**SMALL).labels.horizon + 2
    return next(number for number in range(BREAK + 1, CYCLES) if STEP * (number - BREAK) - STEP // 2 + 1 - late >= late)


def difference(k: int, n: int, j: int, m: int) -> tuple[float, float, float]:
    """k of n less j of m, with the 95 % interval of Newcombe (1998, Statistics in Medicine 17, method 10)."""
    (p, p_low, p_high), (q, q_low, q_high) = ((k / n, *binomtest(k, n).proportion_ci(method="wilson")) for k, n in ((k, n), (j, m)))
    return p - q, p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def breaks(found: list[dict[str, Any]], calm: list[dict[str, Any]]) -> dict[str, Any]:
    """How often a champion is replaced after a break, and in the same cycles without one: as decided, and from the first cycle that can see the break."""
    def window(start: int) -> dict[str, Any]:
        broken, still = ([answer for one in part if (answer := replaced_within(one, start)) is not None] for part in (found, calm))
        k, n, j, m = sum(broken), len(broken), sum(still), len(still)
        return {"first_cycle": start, "replaced": k, "worlds": n, "share": k / n if n else float("nan"), "interval": interval(k, n) if n else None, "without_break": j, "worlds_without_break": m,
                "difference": difference(k, n, j, m) if n and m else None}

    decided = window(BREAK + 1)
    return {**decided, "seeing": window(first_that_sees()), "no_champion": [one["seed"] for one in found if replaced_within(one, 0) is None],
            "no_champion_without_break": [one["seed"] for one in calm if replaced_within(one, 0) is None], "ok": decided["worlds"] > 0 and decided["share"] >= RATIO}


def power(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Power of the loop beside the oracle's."""
    n, loop, best = len(found), sum(one["cycles"][-1]["promoted"] for one in found), sum(one["oracle"] is not None for one in found)
    stops: dict[str, int] = {}
    for one in found:
        if not one["cycles"][-1]["promoted"]:
            for rule in {rule for cycle in one["cycles"] for rule in cycle["stops"]}:
                stops[rule] = stops.get(rule, 0) + 1
    return {"world": name, "ic": found[0]["ic"], "worlds": n, "loop": loop, "oracle": best, "interval": interval(loop, n), "ratio": loop / best if best else float("nan"), "stops": stops,
            "ok": not CASES[name].aimed or best == 0 or loop >= RATIO * best}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """All tables of the results of one code."""
    by = {name: [one for one in found if one["world"] == name] for name in CASES}
    table = [line for name in CASES if CASES[name].asks == "error" and by[name] for line in errors(name, by[name])]
    predictable = [line for line in table if not line["world"].startswith("iid")]
    made = {"errors": table, "power": [power(name, by[name]) for name in CASES if CASES[name].asks == "power" and by[name]],
            "break": breaks(by["break"], by["garch"]) if by["break"] else None, "missing": {name: case.count - len(by[name]) for name, case in CASES.items() if len(by[name]) < case.count},
            "cpu_s_a_cycle": {name: float(np.median([one["loop_cpu_s"] for one in part])) for name, part in by.items() if part}}
    made["carried"] = {name: sum("carried" in one for one in part) for name, part in by.items() if any("carried" in one for one in part)}
    made["never_promotes"] = bool(predictable) and not any(line["promotions"] for line in predictable)
    made["missed"] = made["never_promotes"] or any(not line["ok"] for line in (*made["errors"], *made["power"], *([made["break"]] if made["break"] else [])))
    return made


def sizes() -> str:
    """The sizes, in words."""
    s = Settings(**SMALL)
    return (f"{CASES['iid'].symbols} names, {CASES['iid'].first} sessions before the first of {CYCLES} cycles, {STEP} sessions apart; {len(s.features.names)} features, forest of {s.forest.n_estimators} trees, "
            f"{s.boosting.rounds} rounds of boosting, {s.splits.bootstrap} replicates; {len(RECIPES)} recipes, label over {s.labels.horizon} sessions. Power: {CASES['edge 0.05'].symbols} names, "
            f"label over {EDGE['labels']['horizon']} sessions, no costs")


def versions() -> dict[str, str]:
    """Of what the results were made with."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in ("numpy", "pandas", "scipy", "xgboost-cpu", "numba")}}


def show(made: dict[str, Any], others: list[str]) -> None:
    """The tables for a terminal."""
    print(f"Study {STUDY}. {sizes()}.\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))
    if others:
        print(f"Results of other code are there, and not merged: {', '.join(others)}.")
    if made["carried"]:
        print(f"Computed by earlier code, whose results on worlds computed again are the same: {', '.join(f'{name} {count}' for name, count in made['carried'].items())}.")
    print(f"\n{'world':14}{'error':50}{'worlds with it':>16}{'share, 95 %':>22}{'upper bound':>13}{'bar':>6}{'promotions':>12}{'in worlds':>11}")
    for line in made["errors"]:
        share = f"{100 * line['errors'] / line['worlds']:.1f} % ({100 * line['low']:.1f}-{100 * line['high']:.1f})"
        print(f"{line['world']:14}{line['question']:50}{line['errors']:>6} of {line['worlds']:<6}{share:>22}{100 * line['upper']:>11.1f} %{line['bar'] if line['bar'] is not None else '–':>6}{line['promotions']:>12}"
              f"{line['worlds_promoted']:>11}" + ("" if line["ok"] else "  MISSED") + (f"   {line['replaced']} replacements" if "replaced" in line else "")
              + (f", mean change of true loss {line['mean_step']:+.4f}, worst {line['worst_step']:+.4f}" if line.get("replaced") else ""))
    if same := careless_alike(made["errors"]):
        print(f"In {same} a gate that takes 2.5 % at every look errs in as few worlds as the gate: these tables do not show what spending is worth.")
    for line in made["power"]:
        (low, high), ratio = line["interval"], f"ratio {line['ratio']:.2f}" if line["oracle"] else "no ratio"
        print(f"power at {line['world']}: IC attained {line['ic']:.3f}; promoted in {line['loop']} of {line['worlds']} ({100 * low:.0f}-{100 * high:.0f} %), the oracle's test in {line['oracle']}; {ratio}"
              + (f", bar {RATIO}" if CASES[line["world"]].aimed else ", no bar") + ("" if line["ok"] else "  MISSED") + (f"; stopped elsewhere by {line['stops']}" if line["stops"] else ""))
    if made["break"]:
        b = made["break"]
        for words, window in (("within", b), ("from the first cycle that sees it on, within", b["seeing"])):
            print(f"break: champion replaced {words} {WITHIN} cycles (from number {window['first_cycle'] + 1}) in {window['replaced']} of {window['worlds']} worlds"
                  + (f", bar {RATIO:.0%}{'' if b['ok'] else '  MISSED'}" if window is b else ", no bar") + f"; without a break in {window['without_break']} of {window['worlds_without_break']}"
                  + ("; difference {:+.0%} ({:+.0%} to {:+.0%}, 95 %)".format(*window["difference"]) if window["difference"] else ""))
        for words, seeds in (("with", b["no_champion"]), ("without", b["no_champion_without_break"])):
            print(f"  worlds {words} a break that had no champion by then, and do not count: {', '.join(map(str, seeds)) or 'none'}")
    print("CPU-s a cycle (median): " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in made["cpu_s_a_cycle"].items()))
    if made["never_promotes"]:
        print("MISSED: the gate has promoted nothing where a promotion is right.")
    if made["missing"]:
        print("Worlds still to come: " + ", ".join(f"{name} {count}" for name, count in made["missing"].items()) + ". Until then a bar that is kept is kept so far.")


def unpack(root: Path) -> None:
    """Put what comes with the repository into a folder of results that is empty."""
    if PACKED.is_file() and not (root.is_dir() and any(root.iterdir())):
        root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(PACKED) as file:
            file.extractall(root, filter="data")


def work(root: Path, names: list[str], seeds: range | None, seconds: float) -> None:
    """Compute what is not there yet, twenty seeds of each kind in turn, until the time is up."""
    began, todo = time.monotonic(), [(seed, name) for name in names for seed in (seeds or range(CASES[name].count))]
    folders = {name: place(root, name) for name in names}
    for seed, name in sorted(todo, key=lambda job: (job[0] // 20, names.index(job[1]), job[0])):
        path = folders[name] / f"{seed:04d}.json"
        if path.is_file():
            continue
        if time.monotonic() - began > seconds:
            print("time is up", file=sys.stderr)
            return
        result = one_world(name, seed)
        unchanged(root, name, folders[name])
        publish(path, json.dumps(result).encode())
        print(f"{name} {seed}: promoted in {[i for i, c in enumerate(result['cycles']) if c['promoted']]}, {result['cpu_s']:.0f} CPU-s", file=sys.stderr, flush=True)


def careless_alike(lines: list[dict[str, Any]]) -> str:
    """The kinds of world in which the careless gate errs in as many worlds as the gate, by name."""
    count = {(line["world"], "careless" in line["question"]): line["errors"] for line in lines if line["question"].startswith("any promotion")}
    return ", ".join(world for world, careless in count if careless and count[world, True] == count[world, False])


def rows_of(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables in the shape of the benchmark book; of a study that is not whole a bar is shown only where it is missed so far."""
    def barred(name: str, bar: float | None, ok: bool) -> float | None:
        return bar if not ok or made["missing"].get(name, 0) == 0 else None

    def earlier(name: str) -> str:
        count = made["carried"].get(name, 0)
        return f" ({count} by earlier code, taken over)" if count else ""

    rows = [timing.line(f"{one['world']}: {one['question']}", one["errors"], barred(one["world"], one["bar"], one["ok"]), one["ok"],
                        f"of {one['worlds']} worlds{earlier(one['world'])}, at most {one['upper']:.1%} (one-sided 95 %); " + (f"{one['replaced']} replacements" if "replaced" in one else f"{one['promotions']} promotions in {one['worlds_promoted']} worlds"), unit="worlds", least=False) for one in made["errors"]]
    rows += [timing.line(f"{one['world']}: power against the oracle's", one["ratio"], barred(one["world"], RATIO if CASES[one["world"]].aimed else None, one["ok"]), one["ok"],
                         f"promoted in {one['loop']} of {one['worlds']} worlds{earlier(one['world'])}, the oracle in {one['oracle']}; IC attained {one['ic']:.3f}", least=True) for one in made["power"] if one["oracle"]]
    if b := made["break"]:
        for words, window, bar in (("in time", b, RATIO), ("in as many cycles that can see it", b["seeing"], None)):
            apart = "; difference {:+.0%} [{:+.0%}, {:+.0%}] (95 %)".format(*window["difference"]) if window["difference"] else ""
            rows.append(timing.line(f"break: champion replaced {words}", window["replaced"] / max(window["worlds"], 1), bar and barred("break", bar, b["ok"]), bar is None or b["ok"],
                                    f"of {window['worlds']} worlds{earlier('break')}, within {WITHIN} cycles; without a break {window['without_break']} of {window['worlds_without_break']}{apart}", least=True))
    return rows


def main() -> None:
    """Compute a piece, and report on what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default=",".join(name for name in CASES if CASES[name].aimed), help="kinds, separated by commas; `all` for those without a bar, too")
    parser.add_argument("--seeds", default="", help="FROM:TO; by default all that are wanted of each kind")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--carry", type=int, default=0, metavar="WORLDS")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    root = options.out or home() / "studies" / "false_promotion"
    names = list(CASES) if options.worlds == "all" else [name.strip() for name in options.worlds.split(",")]
    if unknown := set(names) - set(CASES):
        parser.error(f"--worlds names {sorted(unknown)}; there are {list(CASES)}")
    if options.report or options.carry:
        unpack(root)
    if options.carry:
        print("\n".join(line for name in names for line in carry(root, name, options.carry)) or "There is nothing to take over.", file=sys.stderr)
    if not (options.report or options.carry or options.quick):
        work(root, names, range(*map(int, options.seeds.split(":"))) if options.seeds else None, 60 * options.minutes)
    found = [one_world(name, seed, 6) for name in ("iid", "garch") for seed in range(3)] if options.quick else [one for name in CASES for one in results_in(place(root, name))]
    known = {place(root, name).name for name in CASES}
    others = sorted(path.name for path in root.glob("*") if path.is_dir() and path.name not in known) if root.is_dir() else []
    if not found and options.json:  # no failure: the book says so
        why = f"the study, of which there are results of other code alone ({', '.join(others)})" if others else "the study, which has not been begun"
        print(json.dumps(timing.document([], versions(), options.quick, [why]), indent=1))
        return
    if not found:
        parser.error(f"there are no results of this code in {root}; without --report they are computed")
    made = summary(found)
    if options.json:
        absent = ["worlds still to come, " + ", ".join(f"{name}: {count}" for name, count in made["missing"].items())] if made["missing"] else []
        absent += [f"a ratio for {one['world']}: the oracle itself is sure in none of {one['worlds']} worlds, the loop promoted in {one['loop']}" for one in made["power"] if not one["oracle"]]
        print(json.dumps({"rows": rows_of(made), "machine": timing.machine(), **made, "missing": absent, "study": STUDY, "sizes": sizes(), "versions": versions(), "quick": options.quick, "cpus": os.cpu_count()}, indent=1))
    else:
        show(made, others)
    sys.exit(made["missed"] and not options.quick)


if __name__ == "__main__":
    main()
