"""What it costs to archive the rare events, from bars to stored samples, against the bars of 5 and 20 seconds and a loop over symbols and events.

    python benchmarks/archive.py            # packaged panel; 500 symbols x 4,000 sessions; the loop on some of them: some minutes
    python benchmarks/archive.py --quick    # packaged panel; 100 symbols x 2,000 sessions, the bar in proportion, plus 2 s that do not shrink: under a minute
    python benchmarks/archive.py --json

Each panel is archived in a process of its own, several times, each time into a new folder and database. The bars are held against CPU-seconds (all threads, median),
which depend less on what else the machine does; wall seconds stand beside them. Bars in memory are where the clock starts; features, regimes, labels, cut, Parquet files on disk (each with fsync) and the manifest's transaction are inside.
Compiled code is loaded by one call on a small panel before (its cost has a line of its own). Memory is the process's highest resident set. The peer does the same
for one symbol and one event at a time: 600 bars before the event, the symbol's own features by pandas, labels by a loop over bars, a file; measured on some pairs of
symbol and event and multiplied by their number. Exits with 1 if a bar is missed.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from timing import document, line, show

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
FIXED_S = 2.0  # in `--quick`: what does not shrink with the panel, such as opening a database and waiting for the disk
LOOK_BACK = 600  # bars that the loop reads before an event: no feature needs more


def synthetic(symbols: int, sessions: int) -> tuple[dict, pd.Timestamp]:
    """Random walks with whole bars on the exchange's sessions up to 2023, so that the later canonical events lie inside."""
    from features import panel_of

    from mltrader import quality

    panel, index, sectors = panel_of(symbols, sessions)
    days = pd.DatetimeIndex(quality.sessions("XNYS", "2000-01-03", "2023-12-29"))[-sessions:].as_unit("us")
    panel["session"], index["session"] = np.repeat(days, symbols), days
    panel["source"], panel["available_at"] = "synthetic", panel["session"].dt.tz_localize("UTC")
    return {"panel": panel, "index": index, "sectors": pd.DataFrame(list(sectors.items()), columns=["symbol", "sector"], dtype="str")}, days[-1]


def packaged() -> tuple[dict, pd.Timestamp]:
    """The packaged panel as its task delivers it, from the cache."""
    from mltrader import market
    from mltrader.config import Settings, home

    output = market.run({"cache": {"folder": home() / "cache"}}, Settings(), None)
    return output.frames, pd.Timestamp(output.documents["summary"]["as_of"])


def archive_once(market: dict, as_of: pd.Timestamp, folder: Path) -> dict[str, float]:
    """From bars to stored samples; seconds of each step."""
    from mltrader import archive, features, labels, regimes
    from mltrader.config import Settings
    from mltrader.store import Store

    settings, marks, inputs, wall = Settings(), [time.process_time()], {"market": market}, time.perf_counter()
    store = Store(f"sqlite:///{folder}/t.db")
    held = archive.RareEventArchive(store, folder / "artifacts")

    def mark() -> None:
        marks.append(time.process_time())

    chosen, _ = features.select(market["panel"], market["index"], settings.features)
    sectors = dict(zip(market["sectors"]["symbol"], market["sectors"]["sector"], strict=True))
    inputs["features"] = {"features": features.compute(market["panel"], market["index"], chosen, settings.run.threads, sectors), "feature_set": {
        "version": features.version(chosen), "names": [f.name for f in chosen], "warm_up": max(f.warm_up for f in chosen)}}
    mark()
    inputs["regimes"] = regimes.run(inputs, settings, as_of).frames
    mark()
    inputs["labels"] = {"labels": labels.triple_barrier(market["panel"], settings.labels)}
    mark()
    regime, label = inputs["regimes"], inputs["labels"]["labels"]
    events = archive.event_table(settings.events.named, [], regime["market_regimes"], settings.labels.horizon, settings.events.aftermath_sessions)
    cut = archive.cut(label, regime["symbol_regimes"], events, as_of)
    alone = time.process_time() - marks[-1]
    marks[-1] += alone  # the cut by itself is done again inside `update`
    added = held.update(inputs, settings, as_of)
    mark()
    wall = time.perf_counter() - wall
    again = held.update(inputs, settings, as_of)
    mark()
    assert added and not again and held.verify() == []
    step = dict(zip(("features", "regimes", "labels", "update", "again"), np.diff(marks), strict=True))
    step["labels"] -= alone
    rows = len(held.load(as_of))
    assert rows <= len(cut)
    return {**step, "wall": wall, "cut": alone, "total": sum(step[k] for k in ("features", "regimes", "labels", "update")), "events": len(added), "rows": rows,
            "features_n": len(inputs["features"]["feature_set"]["names"]), "megabytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6}


def stage(name: str, symbols: int, sessions: int, times: int) -> dict:
    """One panel in this process."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        small, last = synthetic(8, 1500)
        archive_once(small, last, Path(folder))
    warm = time.process_time() - began
    market, as_of = packaged() if name == "packaged" else synthetic(symbols, sessions)
    found = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            found.append(archive_once(market, as_of, Path(folder)))
    middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
    return {**middle, "low": min(f["total"] for f in found), "high": max(f["total"] for f in found), "warm": warm, "bars": len(market["panel"]),
            "symbols": int(market["panel"]["symbol"].nunique()), "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def peer(symbols: int, sessions: int, pairs: int) -> dict[str, float]:
    """A loop over symbols and events on some pairs, the way the original did it; checked against ours row by row."""
    import slow_features
    from test_labels import slow_labels

    from mltrader import archive, features, labels, regimes
    from mltrader.config import Settings

    market, as_of = synthetic(symbols, sessions)
    settings, panel, index = Settings(), market["panel"], market["index"]
    moods = regimes.run({"market": market}, settings, as_of).frames
    events = archive.event_table(settings.events.named, [], moods["market_regimes"], settings.labels.horizon, settings.events.aftermath_sessions)
    days = index["session"].to_numpy()
    inside = [e for e in events.to_dict("records") if e["known_from"] <= as_of and np.searchsorted(days, e["start"].to_datetime64()) >= LOOK_BACK]
    own = [f for f in features.select(panel, index, settings.features)[0] if f.scope == "symbol"]
    ours = labels.triple_barrier(panel, settings.labels).set_index(["symbol", "session"])
    entry, touch = ours["entry_source"].iloc[0], ours["touch_source"].iloc[0]
    every = [(event, symbol) for event in inside for symbol in sorted(panel["symbol"].unique())]
    spent, rows = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for number in np.linspace(0, len(every) - 1, pairs).astype(int):
            event, symbol = every[number]
            began = time.process_time()
            first, last = np.searchsorted(days, event["start"].to_datetime64()), np.searchsorted(days, event["known_from"].to_datetime64())
            bars = panel[(panel["symbol"] == symbol) & (panel["session"] >= days[first - LOOK_BACK]) & (panel["session"] <= days[last])]
            bars = bars.merge(index, on="session").reset_index(drop=True)
            values = slow_features.features([f.expression for f in own], bars)
            earned = slow_labels(bars[bars["session"] >= event["start"]], settings.labels, touch, entry)
            frame = pd.concat([bars[["session", "symbol"]], values], axis=1).merge(earned, on=["session", "symbol"])
            frame = frame[frame["session"].between(event["start"], event["end"]) & (frame["label_known_at"] <= as_of)]
            frame = frame.merge(moods["symbol_regimes"][moods["symbol_regimes"]["symbol"] == symbol], on=["session", "symbol"])
            frame.columns = frame.columns.map(str)
            frame.to_parquet(Path(folder) / f"{number}.parquet")
            spent += time.process_time() - began
            rows += len(frame)
            same = ours.loc[symbol].loc[frame["session"], ["label", "label_known_at"]].reset_index(drop=True)
            assert (same["label"] == frame["label"]).all() and (same["label_known_at"] == frame["label_known_at"]).all()
    return {"pairs": pairs, "of": len(every), "seconds": spent, "rows": rows, "features_n": len(own), "total": spent / pairs * len(every)}


def call(*arguments: str) -> dict:
    """This script in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stage", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--peer", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(stage(options.stage[0], *map(int, options.stage[1:]))))
        return
    if options.peer:
        print(json.dumps(peer(*options.peer)))
        return
    symbols, sessions, times, pairs = (100, 2000, 3, 4) if options.quick else (500, 4000, 3, 14)
    size = symbols * sessions
    own = call("--stage", "packaged", "0", "0", str(3 if options.quick else 5))
    large = call("--stage", "synthetic", str(symbols), str(sessions), str(times))
    loop = call("--peer", str(symbols), str(sessions), str(pairs))
    bar = 20.0 * size / 2e6 + (FIXED_S if options.quick else 0.0)
    ratio = loop["total"] / large["total"]

    def steps(found: dict) -> str:
        return ", ".join(f"{name} {found[name]:.2f}" for name in ("features", "regimes", "labels", "update")) + f" s; range [{found['low']:.1f}, {found['high']:.1f}]; wall {found['wall']:.1f}"

    def of(name: str, found: dict, limit: float) -> list[dict]:
        """The rows of one panel."""
        size = f"{found['bars']:,} bars of {found['symbols']} symbols; features alone are {found['bars'] * found['features_n'] * 4 / 1e9:.1f} GB"
        return [line(f"{name}, {found['events']:.0f} events known", found["total"], limit, found["total"] <= limit, steps(found), unit="CPU-s"),
                line(f"{name}: the cut alone", found["cut"], note=f"{found['rows']:,.0f} samples x {found['features_n']:.0f} features", unit="CPU-s"),
                line(f"{name}: again, nothing new", found["again"], note=f"{found['megabytes']:.1f} MB stored", unit="CPU-s"), line(f"{name}: peak memory", found["peak_gb"], note=size, unit="GB")]

    rows = [*of("packaged panel", own, 5.0), *of(f"{symbols} x {sessions}", large, bar),
            line("times as fast as a loop in pandas", ratio, ours=large["total"], peer=loop["total"], unit="CPU-s", against="pandas, symbol by symbol and event by event",
                 note=f"{loop['pairs']} of {loop['of']} pairs took {loop['seconds']:.1f} CPU-s, the rest is extrapolated; its {loop['features_n']} features are one symbol's own")]
    versions = {name: importlib.metadata.version(name) for name in ("numba", "numpy", "pandas", "pyarrow")}
    if options.json:
        print(json.dumps(document(rows, versions, options.quick), indent=1))
    else:
        print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, " + ", ".join(f"{n} {v}" for n, v in versions.items()))
        print(f"before the clock: loading or compiling code and a panel of 8 symbols, {own['warm']:.1f} s; events end in 2023, the packaged data in 2022")
        show(rows)
    sys.exit(not all(r["ok"] for r in rows))


if __name__ == "__main__":
    main()
