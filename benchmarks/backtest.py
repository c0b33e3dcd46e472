"""What a backtest costs: the bookkeeping against bt, the probability of backtest overfitting against purgedcv, in CPU-seconds, and whether they agree.

    python benchmarks/backtest.py            # 26 symbols x 6,000 sessions, 48 configurations; some two minutes
    python benchmarks/backtest.py --quick    # smaller, under a minute
    python benchmarks/backtest.py --json

Both peers are test requirements. bt rebalances to the same weights at the same closes without costs, over a part of the sessions, and its time is scaled (its cost is
the same for each); purgedcv scores the same returns with fewer blocks than ours in full, because its cost grows with the number of halves, and is compared at these. Ratios
are medians of alternating pairs; a bar is missed only if the 90 % interval of the ratio lies below it. Exits with 1 if a bar is missed.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from typing import Any

import numpy as np
import pandas as pd
from features import cpu, interval
from timing import document, line, show


def in_bt(weights: pd.DataFrame, prices: pd.DataFrame) -> np.ndarray:
    """Equity by bt: its own rebalancing, each session to the weights of the session before."""
    import bt

    class Follow(bt.Algo):
        def __call__(self, target) -> bool:
            target.temp["weights"] = late.loc[target.now].to_dict()
            return True

    late = weights.shift().fillna(0.0)
    test = bt.Backtest(bt.Strategy("peer", [Follow(), bt.algos.Rebalance()]), prices, integer_positions=False, commissions=lambda q, p: 0.0)
    test.run()
    return test.strategy.values.loc[prices.index].to_numpy() / 1e6


def against_bt(symbols: int, sessions: int, part: int, pairs: int) -> dict:
    """Ours over all sessions, theirs over `part`; seconds for all."""
    from mltrader.config import BacktestSettings
    from mltrader.portfolio import Bars, simulate

    draw, free = np.random.default_rng(0), BacktestSettings(cost_bps=0, slippage_bps=0, max_weight=1)
    prices = 50 * np.exp(draw.normal(0, 0.015, (sessions, symbols)).cumsum(axis=0))
    weights = draw.dirichlet(np.ones(symbols), sessions) * draw.random((sessions, 1))
    days, names = pd.bdate_range("2000-01-03", periods=sessions), [f"S{i}" for i in range(symbols)]
    frames = [pd.DataFrame(x, days, names).iloc[:part] for x in (weights, prices)]
    found, times = {}, []

    def ours() -> None:
        found["ours"] = simulate(weights, Bars.of(prices), free)["equity"]

    def theirs() -> None:
        found["theirs"] = in_bt(*frames)

    ours(), theirs()
    for _ in range(pairs):
        times.append((statistics.median(cpu(ours) for _ in range(3)), cpu(theirs) * sessions / part))
    return {"ratio": interval([b / a for a, b in times]), "ours": statistics.median(a for a, _ in times), "theirs": statistics.median(b for _, b in times),
            "apart": float(np.abs(found["ours"][:part] - found["theirs"]).max())}


def against_purgedcv(configurations: int, sessions: int, blocks: int, pairs: int) -> dict:
    """PBO of the same returns with the same blocks; and what ours costs with 16."""
    import purgedcv

    from mltrader.luck import backtest_overfitting

    net, found, times = np.random.default_rng(1).normal(0.0002, 0.01, (configurations, sessions)), {}, []

    def ours() -> None:
        found["ours"] = backtest_overfitting(net, blocks).pbo

    def theirs() -> None:
        found["theirs"] = purgedcv.probability_of_backtest_overfitting(net, n_splits=blocks).pbo

    ours(), theirs()
    for _ in range(pairs):
        times.append((statistics.median(cpu(ours) for _ in range(5)), cpu(theirs)))
    return {"ratio": interval([b / a for a, b in times]), "ours": statistics.median(a for a, _ in times), "theirs": statistics.median(b for _, b in times),
            "apart": abs(found["ours"] - found["theirs"]), "full": statistics.median(cpu(backtest_overfitting, net, 16, 28) for _ in range(3))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sessions, part, blocks, pairs = (3000, 100, 10, 5) if options.quick else (6000, 200, 12, 9)
    rows = []

    def row(what: str, value: float, bar: float | None, good: bool, note: str = "", **more: Any) -> None:
        rows.append(line(what, value, bar, good, note, **more))

    engine, chance = against_bt(26, sessions, part, pairs), against_purgedcv(48, sessions, blocks, pairs)
    mid, low, high = engine["ratio"]
    row("times as fast as bt", mid, 100, high >= 100, f"26 x {sessions}; theirs of {part} sessions, scaled", spread=engine["ratio"], ours=engine["ours"], peer=engine["theirs"], unit="CPU-s", against="bt")
    row("largest difference of equity", engine["apart"], 1e-6, engine["apart"] <= 1e-6, "26 stocks rebalanced every session, no costs")
    mid, low, high = chance["ratio"]
    row("times as fast as purgedcv (PBO)", mid, 100, high >= 100,
        f"48 x {sessions}, {blocks} blocks", spread=chance["ratio"], ours=chance["ours"], peer=chance["theirs"], unit="CPU-s", against="purgedcv")
    row("difference of PBO", chance["apart"], 0.0, chance["apart"] == 0.0)
    row("PBO with 16 blocks", chance["full"], 1.0, chance["full"] <= 1.0, "all 12,870 halves", unit="CPU-s")
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pandas", "bt", "purgedcv")}
    if options.json:
        print(json.dumps(document(rows, versions, options.quick), indent=1))
    else:
        print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, " + ", ".join(f"{n} {v}" for n, v in versions.items()))
        show(rows)
    sys.exit(not all(r["ok"] for r in rows))


if __name__ == "__main__":
    main()
