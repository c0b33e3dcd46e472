"""What ten million bars cost: reading, validating and judging them, against the bar of 2 GB.

    python benchmarks/market.py            # 2,500 symbols x 4,000 sessions, Parquet and csv, some minutes
    python benchmarks/market.py --quick    # a twentieth of it, under a minute; the bar in proportion, plus what does not shrink
    python benchmarks/market.py --json

Each stage runs in a process of its own; memory is that process's highest resident set (`ru_maxrss`). Exits with 1 if a bar is missed.
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from timing import document
from timing import line as row_of

ROOT = Path(__file__).resolve().parents[1]
FIXED_GB = 0.2  # in `--quick`: libraries that are loaded on the way, and blocks of rows that are as large as in the full run
STAGES = {
    "start": "Python with pandas", "parquet": "read and validate, Parquet", "quality": "read, validate, judge, Parquet",
    "run": "whole market task, Parquet", "by_symbol": "the same, one symbol after the other", "csv": "read and validate, csv", "csv_run": "whole market task, csv",
}


def generate(folder: Path, symbols: int, sessions: int) -> None:
    """Random walks with whole bars, in order of session, 100 sessions at a time; the same bars as csv, and in order of symbol."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mltrader import quality

    days = quality.sessions("XNYS", "2005-01-03", "2025-12-31")[:sessions]
    names = np.array([f"S{i:04d}" for i in range(symbols)])
    rng, level, writer = np.random.default_rng(0), np.full(symbols, np.log(50.0)), None
    with (folder / "bars.csv").open("w") as text:
        for low in range(0, sessions, 100):
            part = days[low:low + 100]
            steps = np.cumsum(rng.normal(0, 0.02, (len(part), symbols)), axis=0) + level
            level = steps[-1]
            close = np.round(np.exp(steps).ravel(), 4)
            rows = pd.DataFrame({
                "symbol": pd.Categorical.from_codes(np.tile(np.arange(symbols), len(part)), names), "date": np.repeat(part, symbols),
                "open": close, "high": np.round(close * 1.01, 4), "low": np.round(close * 0.99, 4), "close": close, "adj_close": close,
                "volume": np.floor(1e6 * np.exp(rng.normal(0, 0.4, len(close)))),
            })
            table = pa.Table.from_pandas(rows, preserve_index=False)
            writer = writer or pq.ParquetWriter(folder / "bars.parquet", table.schema)
            writer.write_table(table)
            rows.assign(date=rows["date"].dt.strftime("%Y-%m-%d")).to_csv(text, index=False, header=low == 0)
    writer.close()
    table = pq.read_table(folder / "bars.parquet")
    order = np.argsort(table.column("symbol").combine_chunks().indices.to_numpy(), kind="stable")
    pq.write_table(table.take(pa.array(order)), folder / "bars_by_symbol.parquet")


def stage(name: str, folder: Path) -> dict[str, float]:
    """Do one stage in this process; what it took."""
    from mltrader import intake, market, quality
    from mltrader.config import Settings

    began, before = time.perf_counter(), time.process_time()
    file = "bars.csv" if name.startswith("csv") else "bars_by_symbol.parquet" if name == "by_symbol" else "bars.parquet"
    path, rows = folder / file, 0
    if name in ("parquet", "quality", "csv"):
        panel, _ = intake.read_bars(path)
        rows = len(panel)
        if name == "quality":
            quality.examine(panel, quality.sessions("XNYS", panel["session"].iloc[0], panel["session"].iloc[-1]))
    elif name != "start":
        kind = "csv" if name == "csv_run" else "parquet"
        rows = len(market.run({}, Settings.model_validate({"market": {"provider": kind, "path": str(path)}}), None).frames["panel"])
    return {"rows": rows, "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - before,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stage", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(stage(options.stage[0], Path(options.stage[1]))))
        return
    symbols, sessions = (500, 1000) if options.quick else (2500, 4000)
    share = symbols * sessions / 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); from pathlib import Path; import market; "
                        f"market.generate(Path({folder!r}), {symbols}, {sessions})"], check=True, cwd=ROOT)
        sizes = {name: os.path.getsize(Path(folder) / name) / 1e6 for name in ("bars.parquet", "bars.csv")}
        found = {}
        for name in STAGES:
            done = subprocess.run([sys.executable, __file__, "--stage", name, folder], capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                sys.exit(f"{STAGES[name]} failed:\n{done.stderr[-2000:]}")
            found[name] = json.loads(done.stdout)
    base = found["start"]["peak_gb"]
    limit = base + FIXED_GB + (2.0 - base) * share if options.quick else 2.0
    rows = [{"what": STAGES[name], "peak_gb": round(r["peak_gb"], 2), "bar_gb": round(limit, 2), "cpu_s": round(r["cpu_s"], 1), "wall_s": round(r["wall_s"], 1),
             "rows": r["rows"], "ok": name == "start" or r["peak_gb"] <= limit} for name, r in found.items()]
    if options.json:
        size = f"{symbols:,} x {sessions:,}"
        told = [row_of(f"{r['what']}: peak memory", r["peak_gb"], r["bar_gb"] if r["what"] != STAGES["start"] else None, r["ok"], f"{size}; {r['cpu_s']} CPU-s, wall {r['wall_s']} s", unit="GB") for r in rows]
        print(json.dumps(document(told, ("pandas", "pyarrow", "pandera"), options.quick, stages=rows, megabytes=sizes), indent=1))
    else:
        print(f"{symbols:,} symbols x {sessions:,} sessions = {symbols * sessions:,} bars ({', '.join(f'{n} {s:.0f} MB' for n, s in sizes.items())}); "
              f"Python {platform.python_version()}, pandas {pd.__version__}, {os.cpu_count()} CPUs")
        for row in rows:
            print(f"{row['what']:34} peak {row['peak_gb']:5.2f} GB   bar {row['bar_gb']:5.2f}   {row['cpu_s']:6.1f} CPU-s   {row['wall_s']:6.1f} s   {'ok' if row['ok'] else 'MISSED'}")
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
