"""Does any stream of orders break a cap, does any kill lose or repeat an order, and what does a step of the paper desk cost?

    python benchmarks/paper.py                 # 10,000 streams, every commit of a step, about a quarter of an hour on one core
    python benchmarks/paper.py --quick         # 300 streams and a few kills, under a minute
    python benchmarks/paper.py --streams 2000
    python benchmarks/paper.py --json

A *stream* is an account of `tests/paper_world.py` over 12 sessions: random orders, sensible and absurd; markets that jump, gap and stand still; a broker that refuses, fills a part, does not
answer, or takes an order and does not say so; processes that die between two lines; people who halt, resume and tamper. A *breach* is whatever the witness at the broker objects to: it sees the
orders, the positions, the cash and the prices that are really there, and uses none of the safeguards' code. That it sees a missing safeguard is tested in `tests/test_paper.py`.

Half of the streams are drawn by hypothesis as a state machine, half by a plain generator with its own mixture. There is no peer: what other systems guarantee is in their documents, and
was not measured. Exits with 1 if there is a breach, if the account after a kill is not that of a process that was not killed, or if a session of 500 symbols takes more than a second.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import paper_world as pw  # noqa: E402
import test_paper as checks  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402
from timing import document, line, show  # noqa: E402

from mltrader.brokers import Market, SimulatedBroker, evening  # noqa: E402
from mltrader.config import Settings  # noqa: E402
from mltrader.core import Clock  # noqa: E402
from mltrader.ledger import MemoryJournal  # noqa: E402
from mltrader.paper import Desk, Known  # noqa: E402


def plain_streams(count: int) -> tuple[list[str], Counter[str]]:
    """Breaches, and what happened in the streams."""
    breaches, seen = [], Counter()
    for seed in range(1000, 1000 + count):
        try:
            world = pw.stream(seed)
        except AssertionError as error:  # a Breach is one
            breaches.append(f"stream {seed}: {str(error)[:200]}")
            continue
        seen.update(one.kind for one in world.journal.events)
        seen.update(f"rule {one.details['rule']}" for one in world.journal.events if one.kind == "ruling")
    return breaches, seen


def drawn_streams(count: int) -> list[str]:
    """Breaches of streams that hypothesis draws, and shrinks if there is one."""
    try:
        run_state_machine_as_test(checks.Streams, settings=settings(max_examples=count, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True))
    except AssertionError as error:
        return [str(error)[:300]]
    return []


def kills(most: int) -> tuple[int, list[str]]:
    """Steps that were killed, and accounts that were not as they should be afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        assert checks.child(whole, None) == 0
        expected, commits = checks.outcome(whole), int((whole / "commits").read_text())
        tried = [(number, side) for number in range(3, commits + 1) for side in ("before", "after")]
        killed, wrong = 0, []
        for number, side in tried[::max(1, len(tried) // most)]:
            home = Path(folder) / f"{side}{number}"
            home.mkdir()
            killed += checks.child(home, f"commit:{side}#{number}") == -9
            if checks.child(home, None) != 0 or checks.outcome(home) != expected:
                wrong.append(f"commit:{side}#{number}")
        return killed, wrong


def step_seconds(symbols: int, sessions: int) -> list[float]:
    """CPU-seconds of a step, by session, where everything is bought."""
    draw = np.random.default_rng(0)
    days = pd.bdate_range("2020-01-01", periods=300 + sessions).to_numpy().astype("datetime64[D]")
    grid = 50 * np.exp((0.012 * draw.normal(size=(len(days), symbols))).cumsum(axis=0))
    names = tuple(f"S{number:04d}" for number in range(symbols))
    market = Market(days, names, grid, grid * 1.01, grid * 0.99, grid, np.full(grid.shape, 1e8), {name: f"sector {at % 11}" for at, name in enumerate(names)})
    rule = Settings(paper={"capital": 1e8, "orders_per_minute": 10_000, "min_trade": 1e-4, "volatility_target": 1.0, "max_turnover": 2.0, "kelly": 8e-5})
    journal, broker, spent = MemoryJournal(), SimulatedBroker(market, rule.paper, rule.backtest), []
    for row in range(300, 300 + sessions):
        day = market.day(row)
        said = pd.DataFrame({"symbol": names, "proba_sell": 0.2, "proba_hold": 0.2, "proba_buy": 0.4 + 0.2 * draw.random(symbols), "abstain": False})
        began = time.process_time()
        Desk("bench", broker, journal, rule, clock=Clock(evening(day))).step(Known(day, market, said, day, pw.GOOD))  # a process that begins by reading its log
        spent.append(time.process_time() - began)
    assert sum(one.kind == "fill" for one in journal.events) > symbols
    return spent


def main() -> int:
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--json", action="store_true")
    ask.add_argument("--streams", type=int, default=None)
    given = ask.parse_args()
    count = given.streams or (300 if given.quick else 10_000)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.process_time()
    breaches, seen = plain_streams(count // 2)
    breaches += drawn_streams(count - count // 2)
    spent = time.process_time() - began
    killed, wrong = kills(6 if given.quick else 10_000)
    steps = step_seconds(500, 5 if given.quick else 20)
    rules = sum(name.startswith("rule ") for name in seen)
    rows: list[dict[str, Any]] = [
        line("breaches of a cap, orders sent while halted, ids used twice", len(breaches), 0, not breaches, f"{count:,} streams, {spent / count * 1000:.0f} ms each; {seen['fill']:,} fills, {rules} safeguards fired, "
             f"{seen['state']:,} changes of state in the half without hypothesis", least=False),
        line("accounts that differ after kill -9", len(wrong), 0, not wrong and killed > 0, f"{killed} kills", least=False),
        line("a step of 500 symbols, its log read anew", statistics.median(steps), 1.0, statistics.median(steps) <= 1.0, f"median of {len(steps)}, the longest {max(steps):.2f}", unit="CPU s", least=False),
    ]
    for text in [*breaches[:10], *wrong[:10]]:
        print(text, file=sys.stderr)
    if given.json:
        print(json.dumps(document(rows, ("numpy", "pandas", "hypothesis", "SQLAlchemy"), given.quick), indent=1))
    else:
        show(rows)
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
