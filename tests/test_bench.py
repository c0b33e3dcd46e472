"""The benchmark book: its page is made from results, names what is missing, and refuses to mix code. Nothing is measured here."""
import json
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(ROOT / "benchmarks"))

import book  # noqa: E402
from timing import document, line  # noqa: E402


def result(name: str, rows: list | None, quick: bool = False, code: str = "abc", error: str | None = None, missing: tuple[str, ...] = (), **more) -> dict:
    """A made-up result as `book.keep` stores it."""
    said = None if rows is None else book.parsed("note\n" + json.dumps(document(rows, {"pandas": "3.0"}, quick, missing, **more)))
    return {"name": name, "quick": quick, "code": code, "script": "s", "at": "2026-01-02T03:04:05+00:00", "seconds": 12.3, "load": [0.5, 1.5], "result": said, "error": error}


def of_pandas(ratio: float, ok: bool) -> dict:
    return line("times as fast as pandas", ratio, 25, ok, "all of it", spread=(ratio, ratio - 1, ratio + 1), ours=2.0, peer=2.0 * ratio, unit="CPU-s", against="pandas")


CURVES = {f"features by {by}": {"by": by, "fixed": "x", "points": [{"size": n, "cpu_s": [n / 100, n / 90], "peak_mb": n, "bytes": None, "copy_gb_s": None} for n in (10, 20)]} for by in ("symbols", "sessions")}
MADE = {
    "features": result("features", [of_pandas(31.4159, True)], missing=("Qlib is not installed",)),
    "storage": result("storage", [line("a sample | alone", 123.4, 100, False, unit="µs"), line("share of equal rows", 0.98, 1.0, False, least=True)], quick=True),
    "scaling": result("scaling", [{**line("features by symbols: exponent", 1.02, 1.15, least=False), "low": 0.98, "high": 1.04}], curves=CURVES),
    "drift": result("drift", None, error="ValueError: no data"),
}


@pytest.fixture
def folder(tmp_path):
    for one in MADE.values():
        book.keep(tmp_path / "results", one)
    return tmp_path


def test_the_page_says_everything(folder):
    found = book.kept(folder / "results")
    assert found == MADE
    book.write(found, folder / "page.md", folder / "img")
    page = (folder / "page.md").read_text()
    assert "**2 of 4 bars are met.**" in page and "31.4 × [30.4, 32.4]" in page and "| pandas, 62.8 CPU-s |" in page and "| ≥ 25 | met |" in page
    assert r"| a sample \| alone | 123 µs |" in page and "| ≤ 100 µs | **missed** |" in page and "| ≥ 1 | **missed** |" in page and "1.02 [0.98, 1.04]" in page
    assert "load of the machine 0.5 to 1.5" in page and "Measured in small sizes (`--quick`) only: Storage." in page and "pandas 3.0" in page
    pictures = sorted(path.name for path in (folder / "img").iterdir())
    assert pictures == sorted(book.PICTURES) and all(f"(img/{name})" in page and (folder / "img" / name).stat().st_size > 5000 for name in pictures)
    assert all(f"## {entry.title}\n" in page for entry in book.BOOK.values())
    without = {name: one for name, one in found.items() if name == "storage"}  # no ratio, no curve: the old pictures go
    book.write(without, folder / "page.md", folder / "img")
    assert not list((folder / "img").iterdir()) and "](img/" not in (folder / "page.md").read_text()


def test_what_is_missing_is_named():
    page = book.page(MADE)
    top = page[page.index("## What is missed"):page.index(f"## {book.BOOK['seed_figures'].title}")]
    assert "- Features: missing: Qlib is not installed" in top and "- Drift: failed" in top and f"- {book.BOOK['labels'].title}: not measured" in top
    assert r"- Storage: a sample \| alone: 123 µs, bar ≤ 100 µs" in top and "- Storage: share of equal rows: 0.98, bar ≥ 1" in top and "pandas" not in top
    assert "**Missing**: Qlib is not installed." in page and "**Missing**: it failed: `ValueError: no data`." in page and "**Missing**: it was not run." in page
    assert book.shortcomings({name: result(name, [of_pandas(30, True)]) for name in book.BOOK}) == []


@pytest.mark.parametrize("text", ["cannot import (/home/me/.venv/lib/x.py)", "no file /opt/data/bars.parquet there"])
def test_a_page_names_no_folder_of_the_machine(text):
    page = book.page({"drift": result("drift", None, error=text), "storage": result("storage", [line("a", 1, note=text)], missing=(text,))})
    assert "/home/me" not in page and "/opt/data" not in page and page.count("…") == 4
    assert book.plain("26 x 6,000; open/high/low, 3/4 of µs/row") == "26 x 6,000; open/high/low, 3/4 of µs/row"


def test_results_of_different_code_are_refused(folder):
    book.keep(folder / "results", result("labels", [of_pandas(30, True)], code="other"))
    with pytest.raises(book.MixedCode, match="abc: .*features.*; other: labels|other: labels.*; abc"):
        book.write(book.kept(folder / "results"), folder / "page.md", folder / "img")
    assert not (folder / "page.md").exists()
    with pytest.raises(book.MixedCode, match="no results yet"):
        book.page({})


def test_a_full_result_wins_unless_it_failed(folder):
    book.keep(folder / "results", result("storage", [of_pandas(40, True)]))
    book.keep(folder / "results", result("features", None, error="x"))
    book.keep(folder / "results", result("features", [of_pandas(20, False)], quick=True))
    found = book.kept(folder / "results")
    assert not found["storage"]["quick"] and found["features"]["quick"] and found["features"]["error"] is None


def test_a_result_of_the_present_code_comes_first(tmp_path):
    """An old full result does not hide the quick one of today, which would leave the benchmark out of the page."""
    book.keep(tmp_path, result("labels", [of_pandas(30, True)], code="old"))
    book.keep(tmp_path, result("labels", [of_pandas(20, True)], quick=True, code="new"))
    assert book.kept(tmp_path, "new")["labels"]["code"] == "new" and book.kept(tmp_path)["labels"]["code"] == "old"
    book.keep(tmp_path, result("labels", [of_pandas(25, True)], code="new"))
    assert not book.kept(tmp_path, "new")["labels"]["quick"]
    book.keep(tmp_path, result("labels", None, code="new", error="x"))
    assert book.kept(tmp_path, "new")["labels"]["quick"], "a small size that was measured before a full one that failed"


def test_walks_go_on_in_a_folder_of_their_code_and_cycles_are_repeated_in_turn(tmp_path, monkeypatch):
    import timemachine as bench  # of benchmarks/

    from mltrader import reports
    from mltrader.config import Settings

    gates = [{"at": at, "verdict": "PROMOTE" if at in (4, 7) else "HOLD"} for at in range(10)]
    assert [row["at"] for row in bench.to_repeat(gates, 3)] == [0, 2, 4, 5, 8]  # each third, and the first refusal and promotion
    assert [row["at"] for row in bench.to_repeat(gates[:3], 28)] == [0] and bench.to_repeat([], 28) == []
    places = [bench.own_folder(tmp_path, settings, start) for settings, start in ((Settings(), "1995"), (Settings(), "1995"), (Settings(), "1996"), (Settings(run={"seed": 1}), "1995"))]
    monkeypatch.setattr(reports, "code_digests", lambda root: {"x": "edited"})
    places.append(bench.own_folder(tmp_path, Settings(), "1995"))
    assert places[0] == places[1] and len(set(places)) == 4 and all(place.parent == tmp_path / "bench" / "timemachine" for place in places)


def test_rows_of_others_are_read():
    made = book.common({"what": "IC", "ours": 0.01, "peer": "Qlib", "ratio": 2.0, "low": None, "high": None, "bar": None, "ok": 1, "unit": ""})
    assert made["against"] == "Qlib" and made["peer"] is None and made["measured"] == 2.0 and made["least"] and book.cells(made)[2] == "Qlib"
    with pytest.raises(ValueError, match="lacks `what` or `ok`"):
        book.parsed(json.dumps({"rows": [{"what": "x"}]}))
    with pytest.raises(ValueError, match="no JSON with a list of `rows`"):
        book.parsed(json.dumps({"rows": {}}))


def test_a_benchmark_is_run_once_for_its_code(tmp_path, monkeypatch):
    """In a folder of its own: what it prints is kept, a failure too; a change of the script, or of what it imports, asks for a new run."""
    home = tmp_path / "benchmarks"
    home.mkdir()
    (home / "part.py").write_text("ROWS = [{'what': 'a', 'ours': 1, 'ok': False, 'bar': 0}]\n")
    (home / "labels.py").write_text("import json, sys\nfrom part import ROWS\nprint(json.dumps({'rows': ROWS, 'quick': '--quick' in sys.argv}))\nsys.exit(1)\n")
    (home / "drift.py").write_text("raise SystemExit('no peer, no data')\n")
    script_digest = book.script_digest
    monkeypatch.setattr(book, "BENCHMARKS", home)
    monkeypatch.setattr(book, "code_digest", lambda: "abc")
    monkeypatch.setattr(book, "script_digest", lambda name: script_digest(name, tmp_path))
    made = book.run_one("labels", True)
    assert made["error"] is None and made["result"]["quick"] and made["result"]["rows"][0]["ok"] is False and book.is_current(made, "labels", "abc")
    assert not book.is_current(made, "labels", "other") and not book.is_current(None, "labels", "abc")
    (home / "part.py").write_text("ROWS = []\n")
    assert not book.is_current(made, "labels", "abc")
    failed = book.run_one("drift", False)
    assert failed["error"] == "no peer, no data" and not book.is_current(failed, "drift", "abc")


@settings(max_examples=200, deadline=None)
@given(value=st.floats(1e-9, 1e12) | st.floats(-1e12, -1e-9) | st.just(0.0))
def test_figures_keep_three_digits(value):
    assert float(book.number(value).replace(",", "")) == pytest.approx(value, rel=0.051 if abs(value) < 1e-3 else 0.0051)
    assert book.number(6.4e-6, "CPU-s") == "6.4 CPU-µs" and book.number(None, "s") == "–" and book.number(0.0, "s") == "0 s"


def test_every_benchmark_is_in_the_book_or_left_out_for_a_reason():
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert there - set(book.BOOK) - set(book.LEFT_OUT) == set() == set(book.BOOK) & set(book.LEFT_OUT)
    assert all(len(reason) > 10 for reason in book.LEFT_OUT.values())
    assert "bench: run      ## " in (ROOT / "Makefile").read_text() and "docs/benchmarks.md" not in (ROOT / ".gitignore").read_text()


HELP = """
import contextlib, importlib, io, sys
for name in sys.argv[1:]:
    module, text = importlib.import_module(name), io.StringIO()
    sys.argv = [name, "--help"]
    try:
        with contextlib.redirect_stdout(text):
            module.main()
    except SystemExit as done:
        assert not done.code, (name, done.code)
    else:
        raise AssertionError(f"{name} --help goes on")
    assert "--json" in text.getvalue() and ("--quick" in text.getvalue()), name
    assert (module.__doc__ or "").count("python benchmarks/" + name + ".py") >= 2, name
"""


def test_benchmarks_answer_help():
    names = [name for name in book.BOOK if (ROOT / "benchmarks" / f"{name}.py").is_file()]
    done = subprocess.run([sys.executable, "-c", HELP, *names], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_notebook_shows_the_same(folder, monkeypatch):
    """Its cells run on made-up results; it is kept without outputs."""
    cells = [cell for cell in json.loads((ROOT / "benchmarks" / "book.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(ROOT / "benchmarks")
    monkeypatch.setattr(book, "results_folder", lambda: folder / "results")
    shown: list = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    scope: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), scope)  # noqa: S102
    words = [one.data for one in shown if hasattr(one, "data")]
    assert any("31.4 ×" in text for text in words) and sum(hasattr(one, "axes") for one in shown) == 2 and len(words) == 1 + len(book.BOOK)
