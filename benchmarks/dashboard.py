"""How long the dashboard's first page takes, warm, against its bar of 2 seconds; and every other page.

    python benchmarks/dashboard.py            # 9 openings
    python benchmarks/dashboard.py --quick    # 5 openings, under a minute
    python benchmarks/dashboard.py --json

One server and one headless Chromium, on a store with a run whose frames have the size of a small panel. Warm: server and browser have shown the page once; each opening is a browser tab of its
own, with the scripts in its cache. `wall` runs from asking for the address until the list of runs can be read, `server` and `browser` are CPU-seconds of their processes meanwhile. Other pages: from the
click to their first words. The bar is on wall time, which only a machine with nothing else to do can show: the load is printed. Exits with 1 if the median lies above it, with 2 if Chromium is missing.
"""
import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
BAR = 2.0
PAGES = {"Champion": "is champion since", "Why": "leans most on", "Drift & events": "among", "Predictions": "abstentions", "Where it works": "sector-regime cells", "Equity": "Edge over"}


def spent(server: psutil.Process) -> dict[str, dict[int, float]]:
    """CPU-seconds of the server and of all other processes that this one began (driver and browser), by process."""
    seconds: dict[str, dict[int, float]] = {"server": {}, "browser": {}}
    for process in psutil.Process().children(recursive=True):
        try:
            seconds["server" if process.pid == server.pid else "browser"][process.pid] = sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure(openings: int, browser_path: str) -> dict[str, dict[str, float]]:
    """Seconds by what was measured."""
    from playwright.sync_api import sync_playwright
    from test_dashboard import furnish, served

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLTRADER_HOME"] = folder
        furnish(Path(folder), [f"name_{number}" for number in range(60)])
        with served(Path(folder)) as (process, url), sync_playwright() as play:
            server, browser = psutil.Process(process.pid), play.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
            context = browser.new_context(viewport={"width": 1300, "height": 1000})
            for number in range(openings + 1):
                tab, before, began = context.new_page(), spent(server), time.monotonic()
                tab.goto(url)
                tab.get_by_role("heading", name="Runs").wait_for()
                if number:  # the first one warms
                    found.setdefault("first page, wall", []).append(time.monotonic() - began)
                    used = {who: sum(value - before[who].get(pid, 0.0) for pid, value in processes.items()) for who, processes in spent(server).items()}
                    for who, value in {**used, "CPU": sum(used.values())}.items():
                        found.setdefault(f"first page, {who}", []).append(value)
                for name, words in PAGES.items() if number else ():
                    began = time.monotonic()
                    tab.locator(".bk-tab", has_text=name).click()
                    tab.get_by_text(words).first.wait_for()
                    found.setdefault(f"{name}, wall", []).append(time.monotonic() - began)
                tab.close()
            browser.close()
    return {name: spread(values) for name, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        print("Chromium is missing; `apt-get install chromium` brings it.", file=sys.stderr)
        return 2
    found = measure(5 if options.quick else 9, path)
    passed = found["first page, wall"]["median"] <= BAR
    versions = {name: version(name) for name in ("panel", "bokeh", "playwright")}
    if options.json:
        print(json.dumps({"seconds": found, "bar": BAR, "passed": passed, "versions": versions, "load": os.getloadavg()[0]}))
    else:
        for name, row in found.items():
            print(f"{name:24} {row['median']:6.2f} s  [{row['low']:.2f}, {row['high']:.2f}]{'' if name != 'first page, wall' else f'  bar {BAR} s: ' + ('passed' if passed else 'MISSED')}")
        print(", ".join(f"{name} {number}" for name, number in versions.items()) + f"; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
