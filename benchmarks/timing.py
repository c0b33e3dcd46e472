"""How benchmarks time: CPU-seconds of calls in alternating pairs, and an interval of their ratio."""
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def cpu(work: Callable[..., Any], *arguments: Any) -> float:
    """CPU-seconds (user and system, all threads) of one call."""
    before = time.process_time()
    work(*arguments)
    return time.process_time() - before


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median of ratios, and a bootstrap 90 % interval of it."""
    medians = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    return statistics.median(ratios), *np.quantile(medians, [0.05, 0.95])
