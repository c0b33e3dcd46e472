"""What a walk through history costs: the main arm with an empty fold cache and with a full one, against its bars (60 and 30 minutes); and whether the notebooks decide the same.

    python benchmarks/timemachine.py                  # 1995 to 2022 on the packaged panel, twice: hours on a busy machine
    python benchmarks/timemachine.py --quick          # a year and a half of six stocks, about a minute
    python benchmarks/timemachine.py --folder F       # where the walks live (by default in bench/timemachine of the home folder, by code and settings): a walk that was stopped goes on from there
    python benchmarks/timemachine.py --kernels 10     # make every tenth cycle again through the notebooks; 0: none. By default every 28th, and none with --quick
    python benchmarks/timemachine.py --json

The walks need nothing but time, so that the minutes are wall minutes of an otherwise idle machine; CPU minutes stand beside them. Both walks must decide the same. Exits with 1 if a bar is missed or
something differs.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from timing import document, line, show  # noqa: E402

BARS = {"cold": 60.0, "warm": 30.0}


def own_folder(base: Path, settings: Any, start: str) -> Path:
    """Where walks of this code, with these settings and from this day on live: times of other code are never added to them."""
    from mltrader.core import digest_json
    from mltrader.reports import code_digests

    return base / "bench" / "timemachine" / digest_json([code_digests(ROOT), settings.digest(), start])[:16]


def walked(base: Path, folder: Path, name: str, start: str, end: str, settings: Any) -> dict[str, Any]:
    """Minutes of a walk in a home of its own, which shares artifacts and folds with the other."""
    from mltrader import timemachine as machine

    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    for shared in ("cache", "artifacts", "folds"):
        source = base / "cache" if shared == "cache" else folder / "shared" / shared
        source.mkdir(parents=True, exist_ok=True)
        if not (home / shared).exists():
            (home / shared).symlink_to(source.resolve(), target_is_directory=True)
    os.environ["MLTRADER_HOME"] = str(home)
    began, cpu = time.perf_counter(), time.process_time()
    for step in machine.walk(machine.ARMS["main"], start, end, settings):
        if text := machine.line(step):
            print(f"{name}: {text}", file=sys.stderr, flush=True)
    walk = machine.journey("main", settings)
    steps = machine.steps_of(machine.arm_folder("main"))
    return {"name": name, "minutes": steps["seconds"].sum() / 60, "now_minutes": (time.perf_counter() - began) / 60, "now_cpu_minutes": (time.process_time() - cpu) / 60,
            "cycles": int(steps["cycle_seconds"].notna().sum()), "evenings": len(steps), "cycle_seconds": float(steps["cycle_seconds"].median()),
            "decisions": walk.decisions.drop(columns="why").astype(str).to_dict("records"), "verdict": machine.verdict(walk)}


def to_repeat(gates: list[dict[str, Any]], every: int) -> list[dict[str, Any]]:
    """Every so many-th cycle, and the first promotion and the first refusal."""
    firsts = [next((at for at, row in enumerate(gates) if (row["verdict"] == "PROMOTE") is promoted), None) for promoted in (True, False)]
    return [gates[at] for at in sorted({*range(every - 1, len(gates), every), *firsts} - {None})]


def notebooks(folder: Path, every: int) -> list[dict[str, Any]]:
    """Cycles of the first walk made again through the notebooks."""
    from mltrader import timemachine as machine
    from mltrader.store import Store, gate_history

    os.environ["MLTRADER_HOME"] = str(folder / "cold")
    with Store(f"sqlite:///{machine.arm_folder('main') / 'mltrader.db'}", read_only=True).read() as conn:
        gates = gate_history(conn)
    found = []
    for row in to_repeat(gates, every):
        again = machine.reproduce(machine.ARMS["main"], row["run_id"], kernels=True)
        found.append({"session": f"{row['as_of']}", "verdict": row["verdict"], "compared": len(again), "different": again.loc[~again["equal"], "what"].tolist()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--start", default="1995-01-01")
    parser.add_argument("--end", default="2022-12-31")
    parser.add_argument("--kernels", type=int)
    options = parser.parse_args()
    if options.quick:
        os.environ["MLTRADER_SETTINGS"] = str(ROOT / "tests" / "smoke.toml")
        options.start, options.end = "2020-01-01", "2021-06-30"
    from mltrader.config import home, load_settings

    base, settings = home(), load_settings()
    every = options.kernels if options.kernels is not None else 0 if options.quick else 28
    folder = options.folder or (Path(tempfile.mkdtemp()) if options.quick else own_folder(base, settings, options.start))
    walks = [walked(base, folder, name, options.start, options.end, settings) for name in BARS]
    same = walks[0].pop("decisions") == walks[1].pop("decisions")
    again = notebooks(folder, every) if every else []
    rows = [line(f"main arm, {walk['name']} fold cache", walk["minutes"], None if options.quick else BARS[walk["name"]], options.quick or walk["minutes"] <= BARS[walk["name"]],
                 f"{walk['evenings']} evenings, {walk['cycles']} cycles (median {walk['cycle_seconds']:.1f} s); {walk['now_cpu_minutes']:.1f} CPU minutes in this call", unit="min") for walk in walks]
    rows.append(line("both walks decide the same", float(same), 1.0, same, least=True))
    if again:
        equal = sum(not one["different"] for one in again)
        rows.append(line(f"of {len(again)} cycles, equal through the notebooks", equal, len(again), equal == len(again), "; ".join(f"{one['session']} {one['verdict']}" for one in again), least=True))
    if options.json:
        print(json.dumps(document(rows, ("numpy", "pandas", "xgboost-cpu"), options.quick, walks=walks, notebooks=again), indent=1, default=str))
    else:
        print(f"{'quick: six stocks' if options.quick else 'packaged panel'}, {options.start} to {options.end}; in {folder}")
        show(rows)
        for one in again:
            print(f"  {one['session']} {one['verdict']}: {one['compared']} results, {', '.join(one['different']) or 'all equal'}")
        print(walks[0]["verdict"])
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
