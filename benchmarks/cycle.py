"""What a cycle costs: full build, no-op build, start-up of the command line, against their bars.

    python benchmarks/cycle.py            # the packaged panel, a few minutes
    python benchmarks/cycle.py --quick    # six stocks, about a minute
    python benchmarks/cycle.py --json

Memory is the sum over the process tree (proportional set size, so that shared pages count once), sampled five times a second. Exits with 1 if a bar is missed.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from timing import document, line, show

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def measure(command: list[str], env: dict[str, str]) -> dict[str, float]:
    """Wall seconds, CPU seconds of the tree, peak memory in GB."""
    peak, stop = [0.0], threading.Event()
    began, before = time.perf_counter(), os.times()
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def watch() -> None:
        root = psutil.Process(child.pid)
        while not stop.wait(0.2):
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total / 1e9)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _, errors = child.communicate()
    stop.set()
    watcher.join()
    after = os.times()
    if child.returncode not in (0, 3):
        sys.exit(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
    return {"wall_s": time.perf_counter() - began, "cpu_s": after.children_user + after.children_system - before.children_user - before.children_system, "peak_gb": peak[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "cache").symlink_to(ROOT / ".mltrader" / "cache")
        env = {**os.environ, "MLTRADER_HOME": str(home), "MLTRADER_RUN__REPORTS": str(home / "reports")}
        if options.quick:
            env["MLTRADER_SETTINGS"] = str(ROOT / "tests" / "smoke.toml")
        build = [str(BIN / "ploomber"), "build", "--env--home", str(home)]
        full = measure(build, env)
        noop = [measure(build, env) for _ in range(3)]
        start = {name: [measure([str(BIN / "mltrader"), name], env) for _ in range(9)] for name in ("--help", "status")}
    found = [("full build, wall", full["wall_s"], 300, "s"), ("full build, CPU", full["cpu_s"], None, "CPU-s"), ("full build, peak memory", full["peak_gb"], 3.0, "GB"),
             ("no-op build, CPU", statistics.median(r["cpu_s"] for r in noop), 15, "CPU-s"), ("no-op build, wall", statistics.median(r["wall_s"] for r in noop), None, "s"),
             *[(f"mltrader {n}, CPU", statistics.median(r["cpu_s"] for r in runs), 1.0, "CPU-s") for n, runs in start.items()],
             *[(f"mltrader {n}, wall", statistics.median(r["wall_s"] for r in runs), None, "s") for n, runs in start.items()]]
    panel = "six stocks" if options.quick else "packaged panel"
    rows = [line(what, value, bar, bar is None or value <= bar, panel if "build" in what else "", unit=unit) for what, value, bar, unit in found]
    if options.json:
        print(json.dumps(document(rows, ("ploomber", "papermill", "typer"), options.quick), indent=1))
    else:
        print(f"{'quick (six stocks)' if options.quick else 'packaged panel'}; Python {platform.python_version()}, {os.cpu_count()} CPUs")
        show(rows)
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
