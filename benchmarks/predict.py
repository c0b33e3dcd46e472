"""What a prediction costs: one session of 26 and of 800 symbols, after imports, through the whole path of `mltrader predict`.

    python benchmarks/predict.py            # nine calls each
    python benchmarks/predict.py --quick    # three calls each
    python benchmarks/predict.py --json

Needs a finished packaged run (`make run`). The champion's own files are read by hash, verified and parsed in every call, and the last session is
predicted. For 800 symbols the last month's features of the packaged symbols are repeated under other names and stored as a cycle would have
stored them. The bars are wall seconds, as a user waits: 1 s for 26 symbols, 3 s for 800; the median counts. Exits with 1 if a bar is missed.
"""
import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from timing import document
from timing import line as row_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BARS = {26: 1.0, 800: 3.0}


def repeated(frame: pd.DataFrame, symbols: int) -> pd.DataFrame:
    """The frame with its symbols under `symbols` names."""
    copies = -(-symbols // frame["symbol"].nunique())
    whole = pd.concat([frame.assign(symbol=frame["symbol"] + (f".{k}" if k else "")) for k in range(copies)], ignore_index=True)
    kept = sorted(whole["symbol"].unique())[:symbols]
    return whole[whole["symbol"].isin(kept)].sort_values(["session", "symbol"], ignore_index=True)


def products(folder: Path, symbols: int) -> dict:
    """Entries of the products of a cycle over so many symbols, in an artifact store of their own."""
    from mltrader import reports
    from mltrader.artifacts import ArtifactStore
    from mltrader.config import home

    files, entries = ArtifactStore(folder), {}
    for task, names in (("features", ("latest", "feature_set")), ("regimes", ("latest",))):
        known = reports.read_outputs(reports.products_folder() / task / "outputs.json")["entries"]
        read = reports.Upstream(task, known, ArtifactStore(home() / "artifacts"))
        entries[task] = {name: files.put(repeated(read[name], symbols) if name == "latest" else read[name]).as_dict() for name in names}
    return entries


def timed(symbols: int, calls: int, folder: Path) -> dict:
    """Wall and CPU seconds of a prediction, read from disk each time."""
    from mltrader import predict, reports
    from mltrader.artifacts import ArtifactStore
    from mltrader.store import Store

    entries, store, files = products(folder, symbols), Store(create=False), ArtifactStore(folder)
    wall, cpu = [], []
    for _ in range(calls + 1):  # the first call loads compiled code
        inputs = {task: reports.Upstream(task, known, files) for task, known in entries.items()}
        begin, before = time.perf_counter(), time.process_time()
        made = predict.predict(store, inputs=inputs, name="champion")
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - before)
        assert len(made.frame) == symbols, (len(made.frame), symbols)
    return {"symbols": symbols, "seconds": statistics.median(wall[1:]), "most": max(wall[1:]), "cpu_seconds": statistics.median(cpu[1:]), "first_call": wall[0], "bar": BARS[symbols]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    begin = time.perf_counter()
    import mltrader.predict  # noqa: F401

    imports = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        rows = [timed(symbols, 3 if chosen.quick else 9, Path(folder)) for symbols in BARS]
    result = {"imports_seconds": imports, "rows": rows, "python": platform.python_version(),
              "libraries": {name: importlib.metadata.version(name) for name in ("numpy", "pandas", "xgboost-cpu", "pyarrow")}}
    if chosen.json:
        told = [row_of(f"{r['symbols']} symbols, wall", r["seconds"], r["bar"], r["seconds"] <= r["bar"], f"{r['cpu_seconds']:.2f} CPU-s; most {r['most']:.2f} s, first call {r['first_call']:.2f} s", unit="s") for r in rows]
        print(json.dumps(document([*told, row_of("imports", imports, unit="s")], result["libraries"], chosen.quick, predictions=rows), indent=1))
    else:
        print(f"imports {imports:.2f} s; Python {result['python']}, {', '.join(f'{k} {v}' for k, v in result['libraries'].items())}")
        print(pd.DataFrame(rows).round(3).to_string(index=False))
    return int(any(row["seconds"] > row["bar"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
