"""What features cost: ours against pandas, TA-Lib and Qlib, in CPU-seconds and memory, against their bars.

    python benchmarks/features.py            # 500 symbols x 4,000 sessions, a few minutes
    python benchmarks/features.py --quick    # 100 symbols x 2,000 sessions, under a minute
    python benchmarks/features.py --json

Memory is touched before each timed call: a virtual machine may have to fetch pages from its host that it has given back, which can cost more than the work, and is not the work (the line on
memory never used before shows it). Qlib lives in an environment of its own, because it pins much: `python -m venv .venv-qlib && .venv-qlib/bin/pip install pyqlib==0.9.7`. If it is not
there, the line says so. It is timed without its start and without the writing of its files, in one process (`kernels=1`), with its caches off and emptied before each call, on fewer symbols than
ours (its cost is the same for each); all 158 formulas of Alpha158, none left out, the rolling quantiles among them. The bar is for the same formulas; the rate of our own
features, other and on average longer formulas, is printed beside it without one, since values of different formulas cannot be set against each other. Ratios are medians of alternating pairs on the same data; a bar is missed only if the 90 % interval of the ratio lies below it. Exits with 1
if a bar is missed.
"""
import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from timing import document, interval, line, show

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
QLIB = ROOT / ".venv-qlib" / "bin" / "python"


def panel_of(symbols: int, sessions: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Random walks with a common factor and whole bars; the index frame; sectors."""
    draw = np.random.default_rng(seed)
    shape = (sessions, symbols)
    steps = draw.standard_t(5, shape) * 0.012 + draw.normal(0, 0.008, (sessions, 1))
    close = 50 * np.exp(steps.cumsum(axis=0))
    open_ = np.vstack([close[:1], close[:-1]]) * np.exp(draw.normal(0, 0.004, shape))
    columns = {"open": open_, "high": np.maximum(open_, close) * (1 + np.abs(draw.normal(0, 0.005, shape))),
               "low": np.minimum(open_, close) * (1 - np.abs(draw.normal(0, 0.005, shape))), "close": close, "adj_close": close * 0.97,
               "volume": np.exp(draw.normal(13, 0.5, shape))}
    days = pd.bdate_range("2005-01-03", periods=sessions).as_unit("us")
    names = [f"S{i:04d}" for i in range(symbols)]
    panel = pd.DataFrame({"session": np.repeat(days, symbols), "symbol": np.tile(names, sessions), **{n: x.ravel() for n, x in columns.items()}})
    rates = 3 + draw.normal(0, 0.03, (3, sessions)).cumsum(axis=1)
    index = pd.DataFrame({"session": days, "index_close": 1000 * np.exp(draw.normal(0, 0.01, sessions).cumsum()),
                          "vix_close": 20 * np.exp(draw.normal(0, 0.1, sessions)), "rate_3m": rates[0], "rate_2y": rates[1], "rate_10y": rates[2]})
    return panel, index, {name: f"sector {i % 11}" for i, name in enumerate(names)}


def cpu(work, *arguments, touch: int = 0) -> float:
    """CPU-seconds (user and system, all threads) of one call, with `touch` bytes of memory at hand."""
    gc.collect()
    if touch:
        np.empty(touch, np.uint8).fill(1)
    before = time.process_time()
    work(*arguments)
    return time.process_time() - before


def resident(key: str) -> float:
    """A line of /proc/self/status in MB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1024


def memory(symbols: int, sessions: int, threads: int) -> None:
    """In a process of its own: peak memory beyond input and output, in MB."""
    from mltrader import features as F

    F.compute(*panel_of(40, 600)[:2], F.FEATURES, threads)  # compiled code and imports are there before
    panel, index, sectors = panel_of(symbols, sessions)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    frame = F.compute(panel, index, F.FEATURES, threads, sectors)
    names = frame.columns[2:]
    print(resident("VmHWM") - before - len(names) * len(frame) * 4 / 2**20)


def against_pandas(symbols: int, sessions: int, pairs: int, some: int) -> dict:
    """The same features: ours for all symbols on one thread, pandas for `some` of them one by one, scaled (its cost is the same for each); equal to 1e-5."""
    import slow_features

    from mltrader import features as F

    panel, index, _ = panel_of(symbols, sessions)
    own = [f for f in F.FEATURES if f.scope == "symbol"]
    bars = [part.merge(index, on="session").reset_index(drop=True) for _, part in panel[panel["symbol"].isin(sorted(panel["symbol"].unique())[:some])].groupby("symbol")]
    results = {}

    def ours() -> None:
        results["ours"] = F.compute(panel, index, own)

    def theirs() -> None:
        results["theirs"] = [slow_features.features([f.expression for f in own], one) for one in bars]

    ratios, times = [], {"ours": [], "theirs": []}
    for _ in range(pairs):
        times["theirs"].append(cpu(theirs) * symbols / some)
        results.pop("ours", None)
        times["ours"].append(cpu(ours, touch=len(panel) * len(own) * 4))
        ratios.append(times["theirs"][-1] / times["ours"][-1])
    worst, slack = 0.0, np.array([f.warm_up for f in own])
    for symbol, expected in zip(sorted(panel["symbol"].unique())[:some], results["theirs"], strict=True):
        a = results["ours"].loc[results["ours"]["symbol"] == symbol].iloc[:, 2:].to_numpy(np.float64)
        b = expected.to_numpy()
        settled = (np.arange(len(a))[:, None] >= slack) & ~np.isnan(b) & np.isfinite(b)
        scale = np.maximum(np.abs(b), np.nanstd(b, axis=0))
        worst = max(worst, float((np.abs(a - b) / scale)[settled].max()))
    return {"ratio": interval(ratios), "ours": statistics.median(times["ours"]), "theirs": statistics.median(times["theirs"]), "features": len(own), "difference": worst}


def against_talib(symbols: int, sessions: int, pairs: int) -> dict:
    """The indicators both have: ours in blocks, TA-Lib symbol by symbol on contiguous arrays, one thread each."""
    from test_expressions import INDICATORS

    from mltrader import expressions as E
    from mltrader import features as F

    panel, _, _ = panel_of(symbols, sessions)
    names = ("open", "high", "low", "close", "volume")
    wide = {name: panel[name].to_numpy().reshape(sessions, symbols) for name in names}
    blocks = [{("adj_close" if n == "adj" else n, 0): np.ascontiguousarray(wide["close" if n == "adj" else n][:, b:b + F.BLOCK]) for n in (*names, "adj")}
              for b in range(0, symbols, F.BLOCK)]
    series = [[np.ascontiguousarray(wide[name][:, s]) for name in names] for s in range(symbols)]
    work = E.plan(tuple(ours for _, ours, _ in INDICATORS))
    target = np.empty((len(INDICATORS), sessions, F.BLOCK))

    def ours() -> None:
        for block in blocks:
            E.evaluate(work, block, lambda i, values: np.copyto(target[i, :, : values.shape[1]], values))

    def theirs() -> None:
        for arrays in series:
            for _, _, call in INDICATORS:
                call(*arrays)

    ours(), theirs()
    times = [(cpu(ours), cpu(theirs)) for _ in range(pairs)]
    return {"ratio": interval([b / a for a, b in times]), "ours": statistics.median(a for a, _ in times), "theirs": statistics.median(b for _, b in times), "indicators": len(INDICATORS)}


QLIB_SCRIPT = """
import json, sys, time
from pathlib import Path
import numpy as np, pandas as pd
source, folder = sys.argv[1], Path(sys.argv[2])
panel = pd.read_parquet(source)
days = sorted(panel["session"].unique())
(folder / "calendars").mkdir(parents=True); (folder / "instruments").mkdir()
(folder / "calendars" / "day.txt").write_text("\\n".join(str(pd.Timestamp(d).date()) for d in days) + "\\n")
(folder / "instruments" / "all.txt").write_text("".join(f"{s}\\t{pd.Timestamp(days[0]).date()}\\t{pd.Timestamp(days[-1]).date()}\\n" for s in panel["symbol"].unique()))
for symbol, part in panel.groupby("symbol"):
    home = folder / "features" / symbol.lower()
    home.mkdir(parents=True)
    part = part.assign(vwap=(part["high"] + part["low"] + part["close"]) / 3)
    for name in ("open", "high", "low", "close", "volume", "vwap"):
        np.concatenate([[0.0], part[name].to_numpy()]).astype("<f4").tofile(home / f"{name}.day.bin")
import qlib
from qlib.data import D
from qlib.contrib.data.loader import Alpha158DL
qlib.init(provider_uri=str(folder), region="us", kernels=1, joblib_backend="sequential", expression_cache=None, dataset_cache=None)
fields, names = Alpha158DL.get_feature_config({"kbar": {}, "price": {"windows": [0], "feature": ["OPEN", "HIGH", "LOW", "VWAP"]}, "rolling": {}})
symbols = list(panel["symbol"].unique())
print(json.dumps({"fields": len(fields), "version": qlib.__version__}), flush=True)
for line in sys.stdin:  # one line, one computation
    qlib.data.cache.H.clear()
    before = time.process_time()
    frame = D.features(symbols, fields, freq="day")
    print(json.dumps({"values": int(frame.size), "cpu_s": time.process_time() - before}), flush=True)
frame.columns = names
frame.to_parquet(folder / "alpha.parquet")
"""


def against_qlib(symbols: int, sessions: int, pairs: int, some: int) -> dict | None:
    """All formulas of Alpha158: ours for all symbols on one thread, Qlib for `some`, in turn; then our own features, too. None if Qlib is not installed."""
    import alpha158

    from mltrader import expressions as E
    from mltrader import features as F
    from mltrader import kernels

    if not QLIB.is_file():
        return None
    panel, index, sectors = panel_of(symbols, sessions)
    panel = panel.assign(vwap=(panel["high"] + panel["low"] + panel["close"]) / 3)
    nodes = alpha158.features()
    layout, work = F.Layout.of(panel), E.plan(tuple(nodes.values()))
    sources = {(name, 0): panel[name].to_numpy() for name in ("open", "high", "low", "close", "volume", "vwap")}
    results = {}

    def ours() -> None:
        out = results["out"] = np.empty((len(nodes), len(panel)), np.float32)
        for low in range(0, symbols, F.BLOCK):
            rows, block = layout.rows(low, min(low + F.BLOCK, symbols)), {}
            for key, values in sources.items():
                block[key] = np.empty(rows.shape)
                kernels.pack(values, rows, block[key])
            E.evaluate(work, block, lambda i, values, rows=rows: kernels.unpack(values, rows, out[i]))

    rates: dict[str, list[float]] = {"alpha": [], "own": [], "qlib": []}
    with tempfile.TemporaryDirectory() as folder:
        first = panel[panel["symbol"].isin(sorted(panel["symbol"].unique())[:some])]
        first.to_parquet(f"{folder}/panel.parquet")
        with (open(f"{folder}/log", "w+") as log,
              subprocess.Popen([str(QLIB), "-c", QLIB_SCRIPT, f"{folder}/panel.parquet", f"{folder}/qlib"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as peer):

            def asked(line: str = "") -> dict:
                """The next answer of Qlib's process; `line` asks for a computation."""
                if line:
                    print(line, file=peer.stdin, flush=True)
                return json.loads(peer.stdout.readline())

            try:
                found = asked()
                for _ in range(pairs):
                    answer = asked("go")
                    rates["qlib"].append(answer["values"] / answer["cpu_s"])
                    results.clear()
                    rates["alpha"].append(len(panel) * len(nodes) / cpu(ours, touch=len(panel) * len(nodes) * 4))
                    alpha = results["out"][:, layout.rows(0, 1)[:, 0]]
                    results.clear()
                    size = len(panel) * len(F.FEATURES)
                    rates["own"].append(size / cpu(F.compute, panel, index, F.FEATURES, 1, sectors, touch=size * 4))
                peer.stdin.close()
                peer.wait()
                theirs = pd.read_parquet(f"{folder}/qlib/alpha.parquet").loc["S0000"]
            except (OSError, ValueError):
                peer.kill()
                log.seek(0)
                return {"error": (log.read().strip().splitlines() or ["Qlib failed"])[-1]}
    own = pd.DataFrame(alpha.T, columns=list(nodes))[theirs.columns].to_numpy(np.float64)[60:]
    theirs = theirs.to_numpy(np.float64)[60:]
    apart = np.abs(own - theirs) / np.maximum(np.abs(theirs), np.nanstd(theirs, axis=0))
    ratios = {name: interval([a / b for a, b in zip(rates[name], rates["qlib"], strict=True)]) for name in ("alpha", "own")}
    return {"ratios": ratios, "rates": {name: statistics.median(r) / 1e6 for name, r in rates.items()}, "difference": float(np.nanquantile(apart, 0.999)), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(*options.memory)
        return
    from mltrader import features as F

    symbols, sessions, pairs = (100, 2000, 3) if options.quick else (500, 4000, 9)
    count = len(F.FEATURES)
    panel, index, sectors = panel_of(symbols, sessions)
    first = cpu(F.compute, *panel_of(40, 600)[:2], F.FEATURES)
    fresh = cpu(F.compute, panel, index, F.FEATURES, 2, sectors)
    size = len(panel) * count * 4
    whole = {threads: statistics.median(cpu(F.compute, panel, index, F.FEATURES, threads, sectors, touch=size) for _ in range(3)) for threads in (1, 2)}
    began = time.perf_counter()
    F.compute(panel, index, F.FEATURES, 2, sectors)
    wall = time.perf_counter() - began
    sizes = [symbols // 10, symbols // 4, symbols]
    panels = [panel_of(s, sessions)[:2] for s in sizes]
    rounds = [[cpu(F.compute, *one, F.FEATURES, 1, touch=len(one[0]) * count * 4) for one in panels] for _ in range(pairs)]
    costs = np.median(rounds, axis=0)
    exponent = interval([float(np.polyfit(np.log(sizes), np.log(each), 1)[0]) for each in rounds])
    del panel, panels
    gc.collect()
    extra = float(subprocess.run([sys.executable, __file__, "--memory", str(symbols), str(sessions), "2"], capture_output=True, text=True, check=True).stdout)
    slow = against_pandas(symbols, sessions, pairs, 5 if options.quick else 10)
    talib = against_talib(symbols, sessions, pairs * 3 if options.quick else pairs)
    qlib = against_qlib(symbols, sessions, pairs, 5 if options.quick else 20)

    rows = []

    def row(what: str, value: float, bar: float | None, good: bool, note: str = "", **more: Any) -> None:
        rows.append(line(what, value, bar, good, note, **more))

    scale = symbols * sessions / 2e6
    per = 168 / count / scale
    row("168 features, 2 M rows, 1 thread", whole[1] * per, 4.0, whole[1] * per <= 4, f"{count} features, {symbols} x {sessions}: {whole[1]:.2f} CPU-s", unit="CPU-s")
    row("168 features, 2 M rows, 2 threads", whole[2] * per, 4.0, whole[2] * per <= 4, f"wall {wall:.2f} s; into memory never used before {fresh:.2f} CPU-s", unit="CPU-s")
    row("memory beyond the output", extra, 100, extra <= 100, "2 threads, peak of a process of its own", unit="MB")
    mid, low, high = exponent
    row("exponent of cost in rows", mid, 1.1, low <= 1.1, f"[{low:.2f}, {high:.2f}]; " + ", ".join(f"{s}: {c:.2f} CPU-s" for s, c in zip(sizes, costs, strict=True)))
    mid, low, high = slow["ratio"]
    row("times as fast as pandas", mid, 25, high >= 25, f"{slow['features']} features; pandas on some symbols, scaled", spread=slow["ratio"], ours=slow["ours"], peer=slow["theirs"], unit="CPU-s", against="pandas")
    row("largest difference from pandas", slow["difference"], 1e-5, slow["difference"] <= 1e-5, "after warm-up, relative to the larger of the value and the feature's spread")
    mid, low, high = talib["ratio"]
    row("times as fast as TA-Lib", mid, 1.2, high >= 1.2, f"{talib['indicators']} indicators", spread=talib["ratio"], ours=talib["ours"], peer=talib["theirs"], unit="CPU-s", against="TA-Lib")
    if qlib and "ratios" in qlib:
        rates = qlib["rates"]
        for name, what, note, bar in (("alpha", "the same formulas", f"all {qlib['fields']} formulas", 50), ("own", "our features", f"our {count} features", None)):
            mid, low, high = qlib["ratios"][name]
            row(f"times Qlib's values per CPU-s, {what}", mid, bar, bar is None or high >= bar,
                f"{note} against Alpha158; Qlib {qlib['version']}", spread=qlib["ratios"][name], ours=rates[name], peer=rates["qlib"], unit="M values per CPU-s", against="Qlib")
        row("largest difference from Qlib", qlib["difference"], 1e-3, qlib["difference"] <= 1e-3, "99.9 % quantile; Qlib reads float32")
    missing = None if qlib and "ratios" in qlib else (qlib or {}).get("error", f"Qlib is not installed in {QLIB.parent.parent.name}; the docstring says how")

    versions = {name: importlib.metadata.version(name) for name in ("numba", "numpy", "pandas", "ta-lib")}
    if options.json:
        print(json.dumps(document(rows, versions, options.quick, [missing]), indent=1))
    else:
        print(f"{symbols} symbols x {sessions} sessions x {count} features; Python {platform.python_version()}, {os.cpu_count()} CPUs, " + ", ".join(f"{n} {v}" for n, v in versions.items()))
        print(f"first call, compiling or loading compiled code: {first:.1f} CPU-s")
        show(rows, [missing] if missing else [])
    sys.exit(not all(r["ok"] for r in rows))


if __name__ == "__main__":
    main()
