"""How benchmarks time and what they say: CPU-seconds of calls in alternating pairs, an interval of their ratio, and one shape of results for all."""
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
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


def line(what: str, measured: float, bar: float | None = None, ok: bool = True, note: str = "", *, unit: str = "", spread: Sequence[float] | None = None,
         ours: float | None = None, peer: float | None = None, against: str = "", least: bool | None = None) -> dict[str, Any]:
    """One result in the shape that the benchmark book reads.

    Parameters
    ----------
    what : str
        What was measured.
    measured : float
        What is held against the bar: the ratio where there is a peer, else our own figure.
    bar : float, optional
        None: shown without one.
    spread : (middle, low, high), optional
        Of the ratio; with it the row is one of a ratio.
    ours, peer : float, optional
        Both sides of the ratio, in `unit`.
    against : str
        The peer's name.
    least : bool, optional
        Whether the bar is the least that will do (as it is for ratios) or the most.
    """
    ratio = spread is not None or bool(against)
    low, high = (float(spread[1]), float(spread[2])) if spread is not None else (None, None)
    return {"what": what, "ours": ours if ratio else float(measured), "peer": peer, "against": against, "ratio": float(measured) if ratio else None, "low": low, "high": high,
            "bar": bar, "least": ratio if least is None else least, "ok": bool(ok), "unit": unit, "note": note, "measured": float(measured)}


def machine() -> dict[str, Any]:
    """What it ran on; `load` is the number of processes that wanted a core in the last minute."""
    model = [x.split(":", 1)[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")] if Path("/proc/cpuinfo").is_file() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else float("nan")
    return {"processor": model[0] if model else platform.processor() or platform.machine(), "cpus": os.cpu_count(), "memory_gb": round(memory, 1), "system": platform.system(),
            "python": platform.python_version(), "load": round(os.getloadavg()[0], 1)}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages; those that are not installed are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def document(rows: list[dict[str, Any]], versions: Mapping[str, str] | Iterable[str], quick: bool, missing: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """What `--json` prints: the rows, peers that are missing and why, versions, the machine, and whatever else the benchmark has to say."""
    known = dict(versions) if isinstance(versions, Mapping) else versions_of(versions)
    return {"rows": rows, "missing": [one for one in missing if one], "versions": known, "machine": machine(), "quick": quick, **more}


def show(rows: list[dict[str, Any]], missing: Sequence[str] = ()) -> None:
    """The rows for people."""
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        bar = "–" if row["bar"] is None else f"{row['bar']:.4g}"
        spread = "" if row["low"] is None else f"[{row['low']:.3g}, {row['high']:.3g}]; "
        both = "" if row["ours"] is None or row["peer"] is None else f"{row['ours']:.3g} against {row['peer']:.3g} {row['unit']}; "
        unit = "" if row["ratio"] is not None else f" {row['unit']}"
        print(f"{row['what']:{width}} {row['measured']:10.4g}{unit:10}   bar {bar:>7}   {'ok' if row['ok'] else 'MISSED':6}  {spread}{both}{row['note']}")
    for one in missing:
        print(f"not measured: {one}")
