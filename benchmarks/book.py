"""The benchmark book: runs the benchmarks, keeps what each says, and writes docs/benchmarks.md with its pictures from that, so that any reader can make the page again.

    python benchmarks/book.py                    # whatever has no result for this code yet: some hours at first; a stopped run goes on where it was
    python benchmarks/book.py --quick            # every benchmark in its small size: about ten minutes on an idle machine
    python benchmarks/book.py --only features labels --again features
    python benchmarks/book.py --page             # nothing is run: the page from the results that are there
    python benchmarks/book.py --peers            # first installs the peers that cannot live beside our packages, each in an environment of its own
    python benchmarks/book.py --list

Each benchmark runs as `python benchmarks/NAME.py --json` in a process of its own, one after the other, and what it says is kept in `.mltrader/bench/` with the digests of the code and of the script. It is not run again while both are the same
(`--again` does). A result of the present code is preferred to others, and a full one to a quick one, which the page marks. A benchmark that fails, is not there, or lacks a peer is a line of the page that says so. Results of different code are never put on one page: that is refused.
Exits with 1 if a bar is missed or a benchmark failed, after the page is written.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGE, IMAGES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "img"
QUICK_LIMIT_S, LIMIT_S = 1800, 6 * 3600  # after which a benchmark counts as failed


class Entry(NamedTuple):
    """A section of the book; `full` are options of the full run, for studies of many hours."""

    title: str
    words: str
    full: tuple[str, ...] = ()


BOOK: dict[str, Entry] = {  # by script, in the order of the page
    "seed_figures": Entry("Against the original's own figures", "What the original system said of itself, each figure measured with ours on the packaged panel. Its best end counts where it stated a range. A ratio is a ratio of waiting times: "
                          "how much of theirs was spent on a vendor's network is not known."),
    "features": Entry("Features", "Technical features of a whole panel. pandas computes the same formulas symbol by symbol, TA-Lib the indicators that both have, Qlib all 158 formulas of its Alpha158; values are compared as well as times."),
    "labels": Entry("Labels", "Triple-barrier labels. mlfinpy's `get_events` and `get_bins` do the same for one symbol at a time; where the two definitions agree, the labels have to."),
    "regimes": Entry("Regimes", "Jump model and filtered HMM, refitted twice a year on what was known. jumpmodels fits the same penalty at the same refits."),
    "models": Entry("Models", "Forest and boosting with our settings against scikit-learn's and XGBoost's defaults, on the packaged panel, year by year. Part of the gain comes from settings that fit overlapping labels (fewer rows a tree), so "
                    "log-loss is compared too; the row *all rows and columns* compares the engines alone."),
    "explain": Entry("Explanations (SHAP)", "Exact Shapley values of trees. XGBoost's own C++ and `shap.TreeExplainer` give the same numbers, which is checked in the run."),
    "drift": Entry("Drift", "Distances of 180 features between 100,000 and 5,000 rows. scipy's tests give the same distances; frouros and evidently do related work with more around it. How often the detector alarms without drift is measured, not assumed."),
    "events": Entry("Rare events", "What the event detector found in the packaged index since 1990, what a check costs, and what a capture costs. The thresholds were chosen by people who knew these years."),
    "archive": Entry("Archive", "From bars to stored samples of all rare events. The peer is a loop over symbols and events in pandas, measured on a part and multiplied."),
    "storage": Entry("Storage", "Writing and reading through the real store. SQLAlchemy's ORM adds one row at a time (as the original did) or in bulk; pandas writes with `to_sql`. A file of many samples is what ours is made for; a single sample alone is the worst case, and shown."),
    "backtest": Entry("Backtest", "Bookkeeping of a portfolio against bt, probability of backtest overfitting against purgedcv: the same equity and the same probability."),
    "market": Entry("Reading bars", "Ten million bars read, validated and judged, by peak memory."),
    "paper": Entry("Paper trading", "Random streams of orders, faults, deaths and people before a witness who knows the caps and none of the code that keeps them; kills at every commit of a step; the cost of a step."),
    "predict": Entry("Predictions", "One session through the whole path of `mltrader predict`, files verified by hash each time."),
    "live": Entry("A session that is not over", "From the bar's arrival to the champion's word, by the batch's own code over the whole history (`mltrader predict --live`)."),
    "cycle": Entry("Full cycle, with notebooks", "A whole build of the packaged panel, every task executed as a notebook; a build that has nothing to do; the start of the command line."),
    "big_cycle": Entry("Full cycle, without kernels, on a large panel", "All tasks in one process on 500 made-up symbols and ten years, nothing reused. The yardstick's settings are those of a system of the original's size (24,000 training rows, five folds); "
                       "the default settings train on up to 200,000 rows and explain every session, and have no bar."),
    "timemachine": Entry("Time machine", "The whole loop replayed through history under a simulated clock: what a year of it costs."),
    "false_promotion": Entry("Error rate of the loop", "How often the gate lets in what it should not, in worlds of which the truth is known, and how often it lets in what it should. The study takes some ten hours and is run by itself; here is what it has so far.", ("--report",)),
    "leaks": Entry("Planted leaks", "Pipelines into which a leak was put, and clean ones: what the audit says of each."),
    "cross_section": Entry("Cross-section", "Models in Qlib's terms, on the packaged panel: the seeds that are whole.", ("--minutes", "60")),
    "engine": Entry("Engines, and panels larger than memory", "The same blocks by threads and by Dask, with equal bits, and a panel of 5,000 symbols and 30 years through files: what it costs, and how much memory all processes hold at most.", ("--large",)),
    "scaling": Entry("Scaling", "How time and memory grow, one thread, and how far each is from what the memory itself could do. An exponent of 1 is linear."),
}
LEFT_OUT: dict[str, str] = {  # by script: why it has no section
    "book": "is the book", "timing": "is what benchmarks share", "packaged": "is what benchmarks share", "alpha158": "is Qlib's formulas, read by features.py",
    "blends": "compares blends on a finished run; it has no bar and no clock", "chaos": "tries faults for an hour; it counts faults, not seconds", "fuzz": "feeds broken files to every reader; it counts faults, not seconds", "unattended": "lives through half a year in forty minutes; it needs libfaketime",
    "conformal": "is a study of coverage: docs/explanation/silence.md", "dashboard": "needs Chromium and an idle machine: its bar is on wall time", "memory": "is a study of what is remembered, an hour long: docs/explanation/memory.md",
    "replay": "is a study of past errors: docs/explanation/memory.md", "sectors": "is a study of transfer between sectors", "worlds": "is the markets of false_promotion.py", "loop": "is the loop of false_promotion.py", "watch": "is a study of false and late rollbacks: docs/explanation/watch.md",
}
PEERS: dict[str, tuple[str, ...]] = {  # environment, where benchmarks look for it: what goes into it
    ".venv-qlib": ("pyqlib==0.9.7",), ".venv-drift": ("frouros", "evidently"), ".mltrader/peers/mlfinpy": ("mlfinpy==0.1.2", "scikit-learn")}


class MixedCode(SystemExit):
    """Results of different code were to be put on one page."""


def results_folder() -> Path:
    """Where results are kept."""
    from mltrader.config import home

    return home() / "bench"


def code_digest() -> str:
    """Of the package and the lock file."""
    from mltrader.core import digest_json
    from mltrader.reports import code_digests

    return digest_json(code_digests(ROOT))[:16]


def script_digest(name: str, root: Path = ROOT) -> str:
    """Of a benchmark and of what it imports from benchmarks/ and tests/."""
    from mltrader.core import digest_json

    found: dict[str, str] = {}
    waiting = [root / "benchmarks" / f"{name}.py"]
    while waiting:
        path = waiting.pop()
        if str(path) in found or not path.is_file():
            continue
        found[str(path)] = path.read_text(encoding="utf-8")
        names = re.findall(r"^\s*(?:from|import) (\w+)", found[str(path)], re.M)
        waiting += [folder / f"{one}.py" for one in names for folder in (root / "benchmarks", root / "tests")]
    return digest_json({Path(path).name: text for path, text in sorted(found.items())})[:16]


def common(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all the fields of `timing.line`.

    Raises
    ------
    ValueError
        If it does not say what was measured, or whether it is well.
    """
    if "what" not in row or "ok" not in row:
        raise ValueError(f"a row lacks `what` or `ok`: {json.dumps(row)[:120]}")
    blank = {"ours": None, "peer": None, "against": "", "ratio": None, "low": None, "high": None, "bar": None, "unit": "", "note": ""}
    made = {**blank, **row, "ok": bool(row["ok"])}
    if isinstance(made["peer"], str):
        made["against"], made["peer"] = made["peer"], None
    if made.get("measured") is None:
        made["measured"] = made["ratio"] if made["ratio"] is not None else made["ours"]
    made.setdefault("least", made["ratio"] is not None)
    return made


def parsed(text: str) -> dict[str, Any]:
    """The JSON document that a benchmark printed, its rows in the common shape.

    Raises
    ------
    ValueError
        If there is none, or it has no rows.
    """
    begin = text.find("{")
    document = json.loads(text[begin:]) if begin >= 0 else None
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
        raise ValueError("it printed no JSON with a list of `rows`")
    missing = document.get("missing") or []
    return {**document, "rows": [common(row) for row in document["rows"]], "missing": [missing] if isinstance(missing, str) else list(missing)}


def run_one(name: str, quick: bool) -> dict[str, Any]:
    """Run a benchmark; what is kept of it, also if it failed."""
    began, load = time.perf_counter(), os.getloadavg()[0]
    made: dict[str, Any] = {"name": name, "quick": quick, "code": code_digest(), "script": script_digest(name), "at": datetime.now(UTC).isoformat(timespec="seconds"), "result": None, "error": None}
    try:
        done = subprocess.run([sys.executable, str(BENCHMARKS / f"{name}.py"), "--json", *(("--quick",) if quick else BOOK[name].full)], cwd=ROOT, capture_output=True, text=True, timeout=QUICK_LIMIT_S if quick else LIMIT_S)
        try:
            made["result"] = parsed(done.stdout)
        except ValueError as error:
            made["error"] = (done.stderr.strip().splitlines() or [str(error)])[-1][:300]
    except subprocess.TimeoutExpired as error:
        made["error"] = f"not finished within {error.timeout:.0f} s"
    return made | {"seconds": round(time.perf_counter() - began, 1), "load": [round(load, 1), round(os.getloadavg()[0], 1)]}


def keep(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a result to its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}{'.quick' if result['quick'] else ''}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(path)


def kept(folder: Path, code: str = "") -> dict[str, dict[str, Any]]:
    """The results in a folder by benchmark; those of `code` first, then those that did not fail, then full ones."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        before = found.get(result["name"])
        if result["name"] in BOOK and (before is None or _rank(result, code) > _rank(before, code)):
            found[result["name"]] = result
    return found


def _rank(result: Mapping[str, Any], code: str) -> tuple[bool, bool, bool]:
    return result["code"] == code, result["error"] is None, not result["quick"]


def is_current(result: Mapping[str, Any] | None, name: str, code: str) -> bool:
    """Whether a result is of this code and this script, and not a failure."""
    return result is not None and result["error"] is None and (result["code"], result["script"]) == (code, script_digest(name))


def install_peers() -> None:
    """Environments of the peers, where there are none yet; one that cannot be made is said, and its rows will name it as missing."""
    uv = str(Path(sys.executable).with_name("uv"))
    for folder, packages in PEERS.items():
        target = ROOT / folder
        if (target / "bin" / "python").is_file():
            continue
        for command in ([uv, "venv", "--quiet", "--python", sys.executable, str(target)], [uv, "pip", "install", "--quiet", "--python", str(target / "bin" / "python"), *packages]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{folder}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
                break


# --- the page ---------------------------------------------------------------------------------------------------------

def number(value: float | None, unit: str = "") -> str:
    """A figure with three digits that count."""
    if value is None:
        return "–"
    size = abs(value)
    if unit in ("s", "CPU-s") and 0 < size < 1e-3:
        return number(1e6 * value, unit.replace("s", "µs"))
    text = f"{value:,.0f}" if size >= 100 else f"{value:.3g}" if size >= 1e-3 or size == 0 else f"{value:.1e}"
    return f"{text} {unit}".strip()


def plain(text: str) -> str:
    """A text for a table: no line breaks, no strokes, and no folders of the machine that it was measured on."""
    return re.sub(r"(?<!\w)\(?(?:/[\w.+-]+){2,}/?\)?", "…", str(text)).replace("|", "\\|").replace("\n", " ").replace("`", "'").strip()


def cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row: what, ours, the peer, the ratio with its interval, the bar, and whether it is met."""
    ratio = "" if row["ratio"] is None else f"{number(row['ratio'])} ×" + ("" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]")
    ours = number(row["ours"], row["unit"]) if row["ours"] is not None else ""
    if row["ratio"] is None and row["low"] is not None:
        ours += f" [{number(row['low'])}, {number(row['high'])}]"
    peer = ", ".join(part for part in (row["against"], number(row["peer"], row["unit"]) if row["peer"] is not None else "") if part)
    bar = "" if row["bar"] is None else f"{'≥' if row['least'] else '≤'} {number(row['bar'], '' if row['least'] else row['unit'])}"
    met = "" if row["bar"] is None else "met" if row["ok"] else "**missed**"
    return [plain(cell) for cell in (row["what"], ours, peer, ratio, bar, met, row["note"])]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A Markdown table of rows."""
    return ["| what | ours | peer | ratio [90 %] | bar | | remarks |", "|---|---|---|---|---|---|---|", *("| " + " | ".join(cells(row)) + " |" for row in rows)]


def section(name: str, result: Mapping[str, Any] | None) -> list[str]:
    """The section of a benchmark."""
    entry = BOOK[name]
    lines = [f"## {entry.title}", "", entry.words, ""]
    if result is None:
        there = (BENCHMARKS / f"{name}.py").is_file()
        return [*lines, f"**Missing**: {'it was not run' if there else 'there is no `benchmarks/' + name + '.py` in this version'}.", ""]
    if result["error"] is not None:
        return [*lines, f"**Missing**: it failed: `{plain(result['error'])}`.", ""]
    document = result["result"]
    lines += [*table(document["rows"]), ""]
    lines += [f"**Missing**: {plain(one).rstrip('.')}.\n" for one in document["missing"]]
    versions = ", ".join(f"{k} {v}" for k, v in (document.get("versions") or {}).items() if isinstance(v, str))
    size = "**small sizes (`--quick`)**" if result["quick"] else "full sizes"
    return [*lines, f"<sub>`{' '.join(['python', f'benchmarks/{name}.py', *(('--quick',) if result['quick'] else entry.full)])}`: {size}; {result['at'][:16].replace('T', ' ')} UTC, {result['seconds']:,.0f} s, load {result['load'][0]} to {result['load'][1]}"
            f"{'; ' + versions if versions else ''}</sub>", ""]


def shortcomings(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Bars that are missed, benchmarks that failed or were not run, peers that are missing: a line each."""
    lines = []
    for name, entry in BOOK.items():
        result = results.get(name)
        if result is None:
            lines.append(f"- {entry.title}: not measured")
        elif result["error"] is not None:
            lines.append(f"- {entry.title}: failed")
        else:
            lines += [f"- {entry.title}: {plain(row['what'])}: {number(row['measured'], '' if row['ratio'] is not None and row['least'] else row['unit'])}, bar {cells(row)[4]}" for row in result["result"]["rows"] if not row["ok"]]
            lines += [f"- {entry.title}: missing: {plain(one)}" for one in result["result"]["missing"]]
    return lines


def check_one_code(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The digest of the code that all results are of.

    Raises
    ------
    MixedCode
        If there are several, or no result at all.
    """
    by: dict[str, list[str]] = {}
    for name, result in results.items():
        by.setdefault(result["code"], []).append(name)
    if not by:
        raise MixedCode("There are no results yet; `make bench` (or `python benchmarks/book.py --quick`) makes some.")
    if len(by) > 1:
        named = "; ".join(f"{code}: {', '.join(names)}" for code, names in by.items())
        raise MixedCode(f"The results are of different code ({named}), and one page must not mix them. Run `python benchmarks/book.py` again: it measures anew what is out of date.")
    return next(iter(by))


def page(results: Mapping[str, Mapping[str, Any]], images: Sequence[str] = ()) -> str:
    """docs/benchmarks.md.

    Raises
    ------
    MixedCode
        If the results are of different code, or there are none.
    """
    code = check_one_code(results)
    good = [result for result in results.values() if result["error"] is None]
    rows = [row for result in good for row in result["result"]["rows"] if row["bar"] is not None]
    machines = [result["result"]["machine"] for result in good if result["result"].get("machine")]
    first, last = (pick(result["at"] for result in results.values())[:10] for pick in (min, max))
    loads = [load for result in results.values() for load in result["load"]]
    said = [f"{m['processor']}, {m['cpus']} cores, {m['memory_gb']} GB, {m['system']}, Python {m['python']}" for m in machines]
    small = [BOOK[name].title for name, result in results.items() if result["quick"]]
    lines = ["# Benchmarks", "", "<!-- Written by `make bench` (benchmarks/book.py) from measured results; do not edit. -->", "",
             "What mltrader costs, against what others cost for the same work in the same run. Every figure on this page was written by the program that measured it:", "",
             "<!-- not run: takes hours -->", "```bash", "make bench", "```", "",
             f"**{sum(row['ok'] for row in rows)} of {len(rows)} bars are met.** {' '.join(dict.fromkeys(said))}; {first if first == last else f'{first} to {last}'}; load of the machine {min(loads)} to {max(loads)} (processes that wanted a core; "
             f"other work ran beside the measurements wherever it is above the number of cores used). Code {code}.", "",
             "**How to read it.** Times are CPU-seconds of all threads unless wall time is said, because the machine may have other things to do. *Ours* and *peer* are medians; the *ratio* is the median over alternating pairs of the two, with the 90 % "
             "interval of that median where one was drawn: how many times more the peer costs. A *bar* is what was promised before it was measured; one of a ratio counts as missed only if the whole interval lies beyond it. Ratios carry over to other machines better than "
             "seconds do. Where a peer does less or more than ours, the section says so.", ""]
    if small:
        lines += [f"Measured in small sizes (`--quick`) only: {', '.join(small)}.", ""]
    lines += [f"![{alt}](img/{name})\n" for name, alt in images]
    lines += ["## What is missed or missing", "", *(shortcomings(results) or ["Nothing."]), ""]
    for name in BOOK:
        lines += section(name, results.get(name))
    lines += ["## Left out", "", "Programs of `benchmarks/` without a section here, and why.", "", *(f"- `{name}.py` {reason}" for name, reason in LEFT_OUT.items() if (BENCHMARKS / f"{name}.py").is_file()), ""]
    return "\n".join(lines)


# --- pictures ---------------------------------------------------------------------------------------------------------

def ratios_figure(results: Mapping[str, Mapping[str, Any]]) -> Any:
    """All ratios against peers that ran beside ours, on one logarithmic axis, with intervals and bars; None if there are none. What is to be small, such as the price of another engine, is in the tables alone."""
    from mltrader import figures

    chosen = [(BOOK[name].title, row) for name in BOOK if name != "seed_figures" and (r := results.get(name)) and r["error"] is None
              for row in r["result"]["rows"] if row["ratio"] is not None and row["ratio"] > 0 and row["least"] and not row["against"].startswith("ours")]
    if not chosen:
        return None
    shape, ax = figures.new(height=0.3 * len(chosen) + 1.1, width=10.5)
    places = range(len(chosen))[::-1]
    for y, (_, row) in zip(places, chosen, strict=True):
        color = figures.STATUS_COLORS["passed" if row["ok"] else "failed"]
        if row["low"] is not None and row["low"] > 0:
            ax.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2.2)
        ax.plot(row["ratio"], y, "o", color=color, markersize=4.5)
        if row["bar"] and row["least"]:
            ax.plot(row["bar"], y, "|", color=figures.INK, markersize=11)
    ax.axvline(1, color=figures.MUTED, linewidth=1)
    ax.set(xscale="log", xlabel="CPU time of the peer over ours (log scale); |: the bar", ylim=(-0.7, len(chosen) - 0.3))
    ax.set_yticks(list(places), [fill(f"{title}: {_named(row)}", 62) for title, row in chosen], fontsize=7.5)
    slower = sum(row["ratio"] < 1 for _, row in chosen)
    ax.set_title(f"{len(chosen) - slower} of {len(chosen)} ratios favour ours")
    return shape


def _named(row: Mapping[str, Any]) -> str:
    """What was measured, and against whom if it does not say so."""
    return row["what"].replace("`", "") + (f" ({row['against']})" if row["against"] and row["against"].lower() not in row["what"].lower() else "")


def scaling_figure(results: Mapping[str, Mapping[str, Any]]) -> Any:
    """Time and memory over size, a panel a topic; None without curves."""
    import numpy as np
    from matplotlib.ticker import LogLocator, NullFormatter

    from mltrader import figures

    result = results.get("scaling")
    curves = (result["result"].get("curves") or {}) if result and result["error"] is None else {}
    if not curves:
        return None
    topics = list(dict.fromkeys(name.split(" by ")[0] for name in curves))
    shape, axes = figures.new(2, len(topics), height=2.9, width=3.0 * len(topics) + 0.6, squeeze=False)
    for column, topic in enumerate(topics):
        for color, curve in zip(figures.PALETTE, (c for n, c in curves.items() if n.split(" by ")[0] == topic), strict=False):
            points = curve["points"]
            sizes = [p["size"] for p in points]
            axes[0, column].plot(sizes, [np.median(p["cpu_s"]) for p in points], "o-", color=color, markersize=3.5, label=f"by {curve['by']}")
            axes[1, column].plot(sizes, [max(p["peak_mb"], 1) for p in points], "o-", color=color, markersize=3.5)
        axes[0, column].set(xscale="log", yscale="log", ylabel="CPU-seconds" if column == 0 else "")
        axes[1, column].set(xscale="log", yscale="log", ylabel="peak memory, MB" if column == 0 else "", xlabel="size")
        for ax in axes[:, column]:
            for axis, subs in ((ax.xaxis, (1, 3)), (ax.yaxis, (1, 2, 5))):
                axis.set_major_locator(LogLocator(subs=subs))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
        axes[0, column].set_title(topic)
        axes[0, column].legend()
    rows = [row for row in result["result"]["rows"] if row["what"].endswith("exponent")]
    steepest = max(rows, key=lambda row: row["ours"])
    figures.headline(shape, f"Costs grow with exponents of {min(row['ours'] for row in rows):.2f} to {steepest['ours']:.2f}; the steepest is {steepest['what'].removesuffix(': exponent')}")
    return shape


PICTURES = {"bench_ratios.png": (ratios_figure, "Ratios of CPU time, ours against peers"), "bench_scaling.png": (scaling_figure, "Time and memory by size")}


def write(results: Mapping[str, Mapping[str, Any]], target: Path = PAGE, images: Path = IMAGES) -> None:
    """The page and its pictures."""
    from mltrader import figures

    check_one_code(results)
    images.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, (draw, words) in PICTURES.items():
        (images / name).unlink(missing_ok=True)
        shape = draw(results)
        if shape is not None:
            (images / name).write_bytes(figures.png(shape))
            drawn.append((name, words))
    target.write_text(page(results, drawn), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, for what has no full result")
    parser.add_argument("--only", nargs="+", choices=list(BOOK), default=list(BOOK), metavar="NAME", help="run these alone; the page shows all results")
    parser.add_argument("--again", nargs="+", choices=list(BOOK), default=[], metavar="NAME", help="run these although there is a result")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    parser.add_argument("--peers", action="store_true", help="install peers that need an environment of their own")
    parser.add_argument("--list", action="store_true", help="what is in the book, and how old each result is")
    parser.add_argument("--results", type=Path, help="folder of results; default: bench/ in the home of mltrader")
    options = parser.parse_args()
    folder, code = options.results or results_folder(), code_digest()
    results = kept(folder, code)
    if options.list:
        for name, entry in BOOK.items():
            state = "no result" if name not in results else "current" if is_current(results[name], name, code) else "failed" if results[name]["error"] else "of other code"
            print(f"{name:16} {entry.title:48} {state}{' (quick)' if name in results and results[name]['quick'] else ''}")
        return 0
    if options.peers:
        install_peers()
    for name in () if options.page else options.only:
        current = is_current(results.get(name), name, code) and (options.quick or not results[name]["quick"])
        if not (BENCHMARKS / f"{name}.py").is_file() or (current and name not in options.again):
            continue
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        made = run_one(name, options.quick)
        keep(folder, made)
        rows = made["result"]["rows"] if made["result"] else []
        print(f"{made['seconds']:.0f} s, " + (made["error"] or f"{sum(not row['ok'] for row in rows)} bars missed"), file=sys.stderr, flush=True)
    results = kept(folder, code)
    if not options.page:  # what other code has left behind is not shown beside what was measured now
        results = {name: result for name, result in results.items() if result["code"] == code}
    write(results)
    print(f"{PAGE.relative_to(ROOT)}: {len(results)} of {len(BOOK)} benchmarks", file=sys.stderr)
    return int(any(result["error"] is not None or not all(row["ok"] for row in result["result"]["rows"]) for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
