"""What triple-barrier labels cost: ours against mlfinpy, in CPU-seconds an event, and whether the two agree.

    python benchmarks/labels.py            # 500 symbols x 4,000 sessions against 4,000 events, about two minutes
    python benchmarks/labels.py --quick    # 250 symbols x 2,000 sessions against 1,000 events, under a minute
    python benchmarks/labels.py --json

mlfinpy lives in an environment of its own, because it pins an old numpy (and needs scikit-learn, which it does not ask for):

    uv venv --python 3.11 .mltrader/peers/mlfinpy
    uv pip install --python .mltrader/peers/mlfinpy/bin/python mlfinpy==0.1.2 scikit-learn

or name its Python in `MLTRADER_PEER_MLFINPY`. If it is not there, the line says so. Both label the same closes with the same barriers: theirs is `get_events` and
`get_bins` on one symbol, ours is `labels.triple_barrier` as the labels task calls it, from panel to labelled frame, on all symbols and one thread. Ratios are of
CPU-seconds an event, medians of alternating pairs; a bar is missed only if the 90 % interval of the ratio lies below it. Exits with 1 if a bar is missed.

The definitions coincide where a horizontal barrier is touched, or the trade ends well inside both. They differ in two ways. Ours decides at a close and enters at the
next one, theirs enters at the event's own close: our label of a session is theirs of the session after. And at the vertical barrier `get_bins` looks at the last return once
more, against ln(1 + target): a trade that ends between -target and 1 / (1 + target) - 1 is a stop to it, though the barrier was never touched.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from features import ROOT, cpu, interval, panel_of
from timing import document, line, show

PEER = Path(os.environ.get("MLTRADER_PEER_MLFINPY") or ROOT / ".mltrader" / "peers" / "mlfinpy" / "bin" / "python")
TARGET, HORIZON, BAR = 0.05, 14, 1000.0

SERVER = """
import importlib.metadata, json, sys, time
import numpy as np, pandas as pd
from mlfinpy.labeling import get_bins, get_events
folder, horizon, target = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
prices = np.load(folder + "/close.npy")
days = pd.bdate_range("2005-01-03", periods=len(prices))
print(json.dumps({n: importlib.metadata.version(n) for n in ("mlfinpy", "pandas", "numpy")}), flush=True)
for line in sys.stdin:
    column = int(line)
    close = pd.Series(prices[:, column], index=days)
    events = days[:-horizon]
    ends, width = pd.Series(days[horizon:], index=events), pd.Series(target, index=events)
    before = time.process_time()
    found = get_events(close, events, [1, 1], width, 0.0, 1, vertical_barrier_times=ends, verbose=False)
    bins = get_bins(found, close)
    spent = time.process_time() - before
    np.save(folder + f"/bins{column}.npy", np.column_stack([bins["bin"].to_numpy(float), days.get_indexer(found["t1"]).astype(float)]))
    print(json.dumps({"cpu_s": spent, "events": len(events)}), flush=True)
"""


class Peer:
    """mlfinpy in a process of its own that labels a symbol when asked."""

    def __init__(self, folder: str) -> None:
        self.process = subprocess.Popen([str(PEER), "-c", SERVER, folder, str(HORIZON), str(TARGET)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.versions = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError((self.process.stderr.read().strip().splitlines() or ["no answer"])[-1])
        return json.loads(line)

    def label(self, column: int) -> dict:
        self.process.stdin.write(f"{column}\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def agreement(close: np.ndarray, ours: np.ndarray, folder: str, column: int) -> dict[str, float]:
    """Shares of equal labels and equal times of the exit, for events of one symbol; `ours` [label, exit] by session, -1 without one."""
    theirs = np.load(f"{folder}/bins{column}.npy")
    entry = np.arange(1, len(theirs))                                                      # theirs enters here, ours decided a session before
    label, leave = ours[entry - 1, 0], ours[entry - 1, 1]
    known = label >= 0
    label, leave, bins, until = label[known], leave[known], theirs[entry[known], 0], theirs[entry[known], 1]
    last = close[until.astype(int)] / close[entry[known]] - 1
    twice = (leave == entry[known] + HORIZON) & (last > -TARGET) & (last < 1 / (1 + TARGET) - 1)  # a stop to get_bins alone
    return {"events": len(label), "same": float(np.mean(label - 1 == bins)), "same where alike": float(np.mean((label - 1 == bins)[~twice])),
            "same exit": float(np.mean(leave == until)), "differ by definition": float(np.mean(twice))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from mltrader import labels
    from mltrader.config import LabelSettings

    symbols, sessions, events, pairs = (250, 2000, 1000, 5) if options.quick else (500, 4000, 4000, 9)
    panel = panel_of(symbols, sessions)[0].assign(adj_close=lambda f: f["close"], open=np.nan, high=np.nan, low=np.nan)   # closes alone, as theirs
    settings = LabelSettings(take_profit=TARGET, stop_loss=TARGET, horizon=HORIZON, cost_bps=0)
    wide = panel["close"].to_numpy().reshape(sessions, symbols)
    frame, rows, missing = labels.triple_barrier(panel, settings), [], None
    touch = LabelSettings(take_profit=TARGET, stop_loss=TARGET, horizon=HORIZON)

    def row(what: str, value: float, bar: float | None, good: bool, note: str = "", **more: Any) -> None:
        rows.append(line(what, value, bar, good, note, **more))

    own = statistics.median(cpu(labels.triple_barrier, panel, settings) for _ in range(3)) / len(frame)
    row("rows per CPU-s, closes alone", 1e-3 / own, None, True, f"{symbols} x {sessions}, 1 thread, horizon {HORIZON}", unit="thousand")
    full = panel_of(symbols, sessions)[0]
    row("rows per CPU-s, open, high and low", 1e-3 * len(frame) / cpu(labels.triple_barrier, full, touch), None, True, "touch by high and low, entry at the open", unit="thousand")
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pandas")}
    if PEER.is_file():
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/close.npy", wide[:events + HORIZON])
            try:
                peer = Peer(folder)
                peer.label(0)                                                              # imports and caches are warm
                days = panel["session"].unique()
                ratios, theirs, places = [], [], np.searchsorted(days, frame["label_end"].to_numpy())
                for pair in range(pairs):
                    said = peer.label(pair % symbols)
                    theirs.append(said["cpu_s"] / said["events"])
                    ratios.append(theirs[-1] / (cpu(labels.triple_barrier, panel, settings) / len(frame)))
                peer.close()
                mid, low, high = interval(ratios)
                row("times as fast as mlfinpy, an event", mid, BAR, high >= BAR,
                    f"{pairs} pairs", spread=(mid, low, high), ours=1e6 * own, peer=1e6 * statistics.median(theirs), unit="µs an event", against="mlfinpy")
                found = []
                for column in range(min(pairs, symbols)):
                    mine = np.full((sessions, 2), -1.0)
                    inside = (frame["symbol"] == f"S{column:04d}").to_numpy()
                    at = np.searchsorted(days, frame["session"].to_numpy()[inside])
                    mine[at] = np.column_stack([frame["label"].to_numpy()[inside], places[inside]])
                    found.append(agreement(wide[:, column], mine, folder, column))
                total = sum(f["events"] for f in found)
                means = {name: sum(f[name] * f["events"] for f in found) / total for name in found[0]}
                row("share of equal labels where alike", means["same where alike"], 1.0, means["same where alike"] == 1.0,
                    f"{total:,} events of {len(found)} symbols; {means['differ by definition']:.2%} differ by definition (all: {means['same']:.4f})", least=True)
                row("share of equal exits", means["same exit"], 1.0, means["same exit"] == 1.0, "the session at which the trade ends", least=True)
                versions = {**versions, "mlfinpy": peer.versions["mlfinpy"], "its pandas": peer.versions["pandas"], "its numpy": peer.versions["numpy"]}
            except RuntimeError as error:
                missing = f"mlfinpy failed: {error}"
    else:
        missing = f"mlfinpy is not installed: there is no {PEER}; the docstring says how to make it"

    if options.json:
        print(json.dumps(document(rows, versions, options.quick, [missing]), indent=1))
    else:
        print(f"{symbols} symbols x {sessions} sessions; Python {platform.python_version()}, {os.cpu_count()} CPUs, " + ", ".join(f"{n} {v}" for n, v in versions.items()))
        show(rows, [missing] if missing else [])
    sys.exit(not all(r["ok"] for r in rows))


if __name__ == "__main__":
    main()
