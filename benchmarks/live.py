"""What a prediction of a session that is not over costs, from the bar's arrival to the champion's word, with history and models at hand.

    python benchmarks/live.py            # nine bars
    python benchmarks/live.py --quick    # three
    python benchmarks/live.py --json

Needs a finished packaged run with a champion (`make run`). The session is the one after the packaged panel's last; its bars are made up: the last ones, moved
by up to 3 %. Each is written to a csv file, read back and judged; then every feature, regime and probability is computed as the batch would, over the whole
history. The bar is 1 CPU-second, the median counts; wall time is shown, and
is as long on an idle machine. What comes before the bar arrives (reading history, loading models) is shown without a bar. There is no
peer: no system that we know recomputes its batch features for a bar that is not final. Exits with 1 if the bar is missed.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from timing import document, show, versions_of
from timing import line as row_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BAR = 1.0


def bar_after(desk, draw: np.random.Generator) -> pd.DataFrame:
    """Rows of a bar that could follow the history, the index and the VIX among them."""
    from mltrader import intake

    last = desk.data.panel.groupby("symbol", observed=True).tail(1)
    last = last[last["session"] == last["session"].max()][["symbol", *intake.NUMBERS]]
    index = desk.data.index.iloc[-1]
    beside = pd.DataFrame([{"symbol": "^GSPC", "close": index["index_close"]}, {"symbol": "^VIX", **{name.removeprefix("vix_"): index[name] for name in intake.VIX}}])
    rows = pd.concat([last, beside], ignore_index=True).astype({"symbol": "str"})
    moved = rows[list(intake.PRICES)].mul(1 + draw.uniform(-0.03, 0.03, len(rows)), axis=0)
    return rows.assign(**moved, date=desk.session)[["symbol", "date", *intake.NUMBERS]].assign(adj_close=lambda frame: frame["adj_close"].fillna(frame["close"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    from mltrader import live, registry
    from mltrader.config import load_settings
    from mltrader.quality import sessions
    from mltrader.store import Store

    store, settings = Store(create=False), load_settings()
    best = registry.champion(store)
    if best is None:
        print("There is no champion: run `make run` first.", file=sys.stderr)
        return 2
    day = sessions(settings.market.calendar, best["as_of"], pd.Timestamp(best["as_of"]) + pd.Timedelta(days=10))[1]
    begin, before = time.perf_counter(), time.process_time()
    desk = live.open_desk(store, settings, session=day)
    opening, draw, wall, cpu = (time.perf_counter() - begin, time.process_time() - before), np.random.default_rng(0), [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range((3 if chosen.quick else 9) + 1):  # the first loads compiled code
            path = Path(folder) / "bars.csv"
            bar_after(desk, draw).to_csv(path, index=False)
            begin, before = time.perf_counter(), time.process_time()
            made = live.say(desk, live.from_file(desk, path))
            wall.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - before)
            assert made.provisional and len(made.frame) > 20 and made.frame["proba_buy"].notna().all()
    symbols, note = len(made.frame), f"{len(desk.data.panel):,} rows of history; most {max(wall[1:]):.2f} s, the first {wall[0]:.2f} s"
    rows = [row_of(f"{symbols} symbols, wall seconds from the bar to the champion's word", statistics.median(wall[1:]), None, True, note, unit="s"),
            row_of(f"{symbols} symbols, CPU-seconds of it", statistics.median(cpu[1:]), BAR, statistics.median(cpu[1:]) <= BAR, f"most {max(cpu[1:]):.2f} s", unit="s"),
            row_of("before the bar arrives: history and models", opening[0], None, True, f"{opening[1]:.2f} CPU-seconds", unit="s")]
    libraries = ("numpy", "pandas", "numba", "xgboost-cpu", "pyarrow")
    if chosen.json:
        print(json.dumps(document(rows, libraries, chosen.quick), indent=1))
    else:
        show(rows)
        print(", ".join(f"{name} {version}" for name, version in versions_of(libraries).items()))
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
