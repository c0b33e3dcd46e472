"""What reports show: nothing that a name brings along runs, pages can be made again without breaking the chain, and two runs differ in what they differ in."""
import base64
import os
import re
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner
from xss import FACTS, MARK, PAYLOADS, watched

from mltrader import compare, figures, orchestrator, predict, reports
from mltrader import store as db
from mltrader.artifacts import ArtifactStore
from mltrader.cli import app
from mltrader.config import Settings
from mltrader.core import TASKS, Clock, ConfigError, IntegrityError, TaskOutput
from mltrader.store import Store

CLOCK = Clock(datetime(2024, 1, 2, tzinfo=UTC))
GROUPS = tuple(" ".join(PAYLOADS[i::3]) for i in range(3))  # many in a field: pages stay few
DAYS = pd.bdate_range("2020-01-01", periods=40)


def html_output(text: str):
    return new_output("display_data", data={"text/html": text, "text/plain": "x"})


def notebook(path: Path, *outputs, title: str = "# Is it so?", before: str = "Because.") -> Path:
    """An executed notebook whose run section shows `outputs`."""
    cells = [new_markdown_cell(title), new_markdown_cell(before), new_markdown_cell("## Run"), new_code_cell("answer()  # what was found", outputs=list(outputs)),
             *[new_markdown_cell(f"## {name}\n\ntext") for name in (compare.CHANGED, compare.CHAMPIONS, compare.WATCHED)]]
    nbformat.write(new_notebook(cells=cells), path)
    return path


# --- names that would rather be scripts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None and "CI" not in os.environ:
        pytest.skip("not run: Chromium is missing; `apt-get install chromium` brings it")
    assert path, "Chromium is missing"
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
        yield found
        found.close()


def evil_outputs() -> list:
    """Every kind of output with every payload: frames as pandas writes them, styled ones that pandas does not escape, captions, text, Markdown, pictures, an error."""
    frame = pd.DataFrame({"sector": PAYLOADS, "event": PAYLOADS}, index=pd.Index(PAYLOADS, name=PAYLOADS[0])).rename(columns={"event": PAYLOADS[14]})
    picture, ax = figures.new(height=1.0)
    ax.set_title("x")
    data = figures.png(picture)
    pictures = [new_output("display_data", data={"image/png": base64.b64encode(data).decode()}, metadata={"image/png": {"alt": name, "title_share": 0.02}}) for name in GROUPS]
    raw = "<table class=\"dataframe\"><thead><tr><th></th><th>x</th></tr></thead><tbody>" + "".join(f"<tr><th>{name}</th><td>{name}</td></tr>" for name in PAYLOADS) + "</tbody></table>"
    return [html_output(frame.to_html()), html_output(figures.Captioned(frame, " ".join(PAYLOADS))._repr_html_()), html_output(raw), html_output(frame.style.set_caption(PAYLOADS[0]).to_html()),
            *[html_output(name) for name in (*PAYLOADS, *GROUPS)], *[new_output("display_data", data={"text/markdown": name}) for name in PAYLOADS], *pictures,
            *[new_output("stream", name="stdout", text=name) for name in GROUPS], *[new_output("display_data", data={"text/plain": name, "application/javascript": MARK}) for name in GROUPS],
            *[new_output("error", ename=name, evalue=name, traceback=[name]) for name in GROUPS]]


def record(run_id: str, name: str, **more) -> dict:
    """A manifest in which everything that is text is `name`."""
    tasks = {"market": {"status": "ran", "digest": name, "source_run_id": name, "entries": None, "metrics": {name: 1.0}}, "features": {"status": "failed", "digest": None, "metrics": {name: 2.0}}}
    return {"run_id": run_id, "kind": "cycle", "status": name, "trigger": name, "verdict": name, "as_of": name, "error": name, "findings": [name], "started_at": name, "minutes": 1.0, "tasks": tasks,
            "files": {"market.html": "x", "summary.html": "x"}, "settings": {name: {name: name}}, "code": {name: name}, "libraries": {name: name}, "data": {name: name}, "results": "r" * 64,
            "previous": {"run_id": name, "manifest": name}, **more}


def difference_of(name: str, other: str) -> dict:
    frames = [pd.DataFrame({"component": name, "regime": "all", "feature": [name, other], "rank": rank}) for rank in ([1, 2], [2, 1])]
    return {"runs": [name, other], "head": [{"what": "verdict", "before": name, "after": other}], "data": [{"what": w, "before": name, "after": other} for w in ("provider", "data_digest")],
            "settings": compare.settings_difference({name: {name: name}}, {name: {name: other}}), "features": {"added": [name], "removed": [other], "before": 1, "after": 1},
            "metrics": [{"metric": name, "before": 1.0, "after": 2.0, "difference": 1.0}], "rules": compare.rule_difference([{"rule": name, "scope": other, "status": name, "observed": 1.0}], []),
            "importance": compare.importance_difference(*frames), "code": [name], "libraries": [name], "data_files": [name], "results": [name], "unknown": [{"run": name, "what": [other]}]}


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> dict[str, list[str]]:
    """Each type of page, with every payload in each of its fields."""
    folder, everything = tmp_path_factory.mktemp("evil"), " ".join(PAYLOADS)
    source = notebook(folder / "n.ipynb", *evil_outputs(), title=f"# {everything}", before="\n\n".join(PAYLOADS))
    made: dict = {"task": reports.notebook_page(source, everything, everything, everything, everything, list(GROUPS)), "failed": reports.notebook_page(source, "market", everything, "failed", everything)}
    manifests = [reports.seal_manifest(record(name, name)) for name in GROUPS]
    made["run"] = [reports.run_index(m) for m in manifests]
    for i, manifest in enumerate(manifests):
        (folder / f"run{i}").mkdir()
        (folder / f"run{i}" / "manifest.json").write_bytes(reports.canonical_json(reports.seal_manifest({**manifest, "kind": "monitor" if i % 3 == 0 else "cycle"})))
    rows = [{"id": name, "kind": kind, "status": "lost", "trigger": name, "verdict": name, "as_of": None, "error_message": name, "started_at": CLOCK.now(), "token": i} for i, name in enumerate(GROUPS)
            for kind in ("cycle", "monitor")]
    made["all runs"] = reports.all_runs_index(folder, rows)
    store, files = Store(f"sqlite:///{folder}/t.db"), ArtifactStore(folder / "artifacts")
    pairs = list(zip(GROUPS, GROUPS[1:] + GROUPS[:1], strict=True))
    made["compare"] = [compare.compare_page(record(a, a), record(b, b), difference_of(a, b), files, b) for a, b in pairs]
    overview = {"verdict": everything, "words": everything, "reasons": PAYLOADS, "tradable": {"statement": everything}, "headline": {}, "drift_score": 0.1, "drift_p": None, "symbols": 26, "rows": 1, "n_features": 9,
                "trials": 1, "as_of": everything, "label": everything, "horizon": 14, "provider": everything, "survivorship": everything}
    moves = [{"name": name, "kind": name, "as_of": date(2024, 1, 2), "before": name, "moved_at": CLOCK.now(), "run_id": name, "model_version": str(i)} for i, name in enumerate(GROUPS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "moves_until", lambda *_: moves)
        patch.setattr(compare, "last_before", lambda *_: PAYLOADS[0])
        patch.setattr(compare, "recorded", lambda *_: record("a", PAYLOADS[1]))
        patch.setattr(compare, "difference", lambda *_: difference_of(everything, PAYLOADS[2]))
        patch.setattr(predict, "watch_history", lambda *_: pd.DataFrame({"session": DAYS[:2], "n_sessions": 1, "log_wealth": 0.0, "equity": 1.0, "alarm": False, "cumulated": 0.0, "alpha": 0.05, "words": everything}))
        parts = compare.summary_parts(store, folder, record("r", everything, as_of="2024-02-01"), 9, files)
        patch.setattr(compare, "champions_part", lambda *_: 1 / 0)
        assert "could not be made: ZeroDivisionError" in compare.summary_parts(store, folder, record("r", everything, as_of="2024-02-01"), 9, files)[compare.CHAMPIONS]
    source = notebook(folder / "s.ipynb", html_output(orchestrator.verdict_html(TaskOutput(documents={"overview": overview}))))
    made["summary"] = reports.notebook_page(source, "summary", everything, "ran", everything, TASKS, parts)
    assert [part for part in parts.values() if part.startswith("<p class=failed>")] == []
    return {kind: pages if isinstance(pages, list) else [pages] for kind, pages in made.items()}


@pytest.fixture(scope="module")
def tab(browser):
    """One tab for all pages, with the list of what happened in it."""
    with watched(browser) as found:
        yield found


def look(tab, text: str, path: Path | None = None) -> tuple[dict, list[str]]:
    shown, happened = tab
    happened.clear()
    if path is None:
        shown.goto("about:blank")
        shown.set_content(text)
    else:
        path.write_text(text, encoding="utf-8")
        shown.goto(path.as_uri())
    shown.wait_for_timeout(30)
    return shown.evaluate(FACTS), happened


def test_the_payloads_run_where_nothing_is_escaped(browser):
    """The control: shown raw, most payloads leave a mark, ask for something, or are seen; so silence means something."""
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 40
    seen = 0
    with watched(browser) as (tab, happened):
        for name in PAYLOADS:
            happened.clear()
            tab.set_content(f"<body><p>{name}</p></body>", wait_until="commit")
            facts = tab.evaluate(FACTS)
            seen += bool(facts["ran"] or facts["bad"] or happened)
    assert seen >= 50, seen


@pytest.mark.parametrize("kind", ["task", "failed", "run", "all runs", "compare", "summary"])
def test_no_payload_runs_on_any_page(tab, evil, tmp_path, kind):
    """With the page's policy, and without it: the escaping alone has to hold."""
    for text in evil[kind]:
        free = re.sub(r"<meta http-equiv=Content-Security-Policy[^>]*>", "", text)
        assert text.count("<meta http-equiv=Content-Security-Policy") == 1 and "default-src 'none'" in text and "Content-Security" not in free.split("<body>")[0]
        for shown, path in ((text, tmp_path / "page.html"), (free, None)):
            facts, happened = look(tab, shown, path)
            assert facts == {"ran": 0, "bad": []} and happened == [], (kind, path, facts, happened[:5])


def test_what_was_escaped_is_still_there(tab, evil):
    """A name is shown, not dropped: the reader sees what the data said."""
    for kind in ("task", "all runs", "compare", "summary"):
        tab[0].set_content(evil[kind][0])
        assert "<script>window.__xss=1</script>" in tab[0].evaluate("document.body.textContent"), kind


def test_pages_fit_a_narrow_screen_and_a_dark_one(browser, tmp_path):
    """Nothing runs off the page: a wide table scrolls in its own border; the picture of a dark page is dark."""
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 30)).round(2), columns=[f"column_{i}" for i in range(30)])
    picture, ax = figures.new()
    ax.set_title("The finding, 3 of 4")
    data, about = picture._repr_png_()
    text = reports.notebook_page(notebook(tmp_path / "n.ipynb", html_output(wide.to_html()), new_output("display_data", data={"image/png": base64.b64encode(data).decode()}, metadata={"image/png": about})),
                                 "toy", "run_1", "ran")
    assert text.index("The finding, 3 of 4</figcaption>") < text.index("<img")
    for width, scheme in ((1300, "light"), (700, "dark")):
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.set_content(text)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.querySelectorAll('.table')].some(e => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX === 'auto')")
        assert ("invert" in tab.evaluate("getComputedStyle(document.querySelector('.picture img')).filter")) == (scheme == "dark")
        ink, paper = tab.evaluate("(s => [s.color, s.backgroundColor].map(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)))(getComputedStyle(document.body))")
        assert abs(ink - paper) > 450 and (ink > paper) == (scheme == "dark")
        tab.close()


TICKERS = ["000001", "600519", "7203", "NaN", "None", "True", "inf", "1.0", "0.12345678901", "1e5"]


@pytest.mark.parametrize("title", ["symbol", "name", "event", "run", "version", "feature", "sector", "code with a leading zero"])
def test_a_name_of_digits_or_words_stays_itself(title):
    """Tickers of Shenzhen, Shanghai and Tokyo are digits, and one may read NaN; numbers beside them are made readable."""
    frame = pd.DataFrame({"kind": "k", title: TICKERS, "rows": 143366, "missing": [None] * 9 + [1.0]})
    for html in (frame.to_html(), frame.set_index("kind").to_html(), frame.set_index(title).to_html()):
        shown = reports.readable_tables(html)
        assert [name for name in TICKERS if f">{name}</t" not in shown] == [], title
        assert shown.count(">143,366</td>") == 10 and shown.count(">–</td>") == 9


@pytest.mark.parametrize("name", [r"a $\mathdefault{b}\frac$ c", r"$\mathdefault{10^{77}}$", "$x$", r"\mathdefault $ and $\frac$"])
def test_a_name_is_no_formula_wherever_it_is_drawn(name):
    """In a title, a legend, the labels of categories and of ticks set by hand; the labels of a logarithmic axis stay formulas."""
    picture, (ax, other) = figures.new(1, 2, height=1.5, width=5)
    ax.barh([name], [1000.0], label=name)
    ax.set(xscale="log", title=name, xlabel=name)
    ax.legend()
    other.set_xticks([0.0, 1.0], [name, "b"])
    figures.png(picture)
    texts = [text for text in picture.findobj(Text) if "$" in text.get_text()]
    named = [text.get_parse_math() for text in texts if text.get_text() == name]
    assert len(named) >= 5 and not any(named)
    assert all(text.get_parse_math() for text in ax.get_xticklabels()) and "\\mathdefault" in ax.get_xticklabels()[-1].get_text()


# --- pages made again ------------------------------------------------------------------------------------------------------------


class Past:
    """A home with a store and finished cycles, each with a market and a summary page."""

    def __init__(self, folder: Path) -> None:
        self.store, self.files, self.folder = Store(f"sqlite:///{folder}/mltrader.db"), ArtifactStore(folder / "artifacts"), folder / "reports"
        self.ids: list[str] = []

    def run(self, run_id: str, gain: float, verdict: str = "HOLD", status: str = "success", **sections) -> dict:
        with self.store.write() as conn:
            token = db.take_lease(conn, run_id, 3600, CLOCK)
            db.start_run(conn, run_id, "cycle", "manual", token, Settings(**sections).model_dump(mode="json"), "d", CLOCK)
        (self.folder / run_id).mkdir(parents=True)
        made = notebook(self.folder.parent / f"{run_id}.ipynb", html_output(f"<p class=finding>{verdict}</p>"))
        entries = {"importance": self.files.put(pd.DataFrame({"component": "boosting", "regime": "all", "feature": ["heat", "rain"], "rank": [1, 2] if gain < 0.12 else [2, 1]})).as_dict()}
        equity = {"equity": self.files.put(pd.DataFrame({"session": DAYS, "strategy": (1 + gain / 100) ** np.arange(40)})).as_dict()}
        tasks = {"market": {"status": "ran", "source_run_id": None, "digest": "a", "entries": None, "metrics": {"rows": 10.0}, "seconds": 1.0},
                 "explain": {"status": "ran", "source_run_id": None, "digest": str(gain), "entries": entries, "metrics": {}},
                 "backtest": {"status": "ran", "source_run_id": None, "digest": str(gain), "entries": equity, "metrics": {"sharpe": gain}},
                 "promotion": {"status": "ran", "source_run_id": None, "digest": str(gain), "entries": None, "metrics": {"gain_over_prior": gain}},
                 "summary": {"status": "ran", "source_run_id": None, "digest": "s", "entries": None, "metrics": {}}}
        header = {"run_id": run_id, "kind": "cycle", "status": status, "trigger": "manual", "as_of": "2020-02-25", "error": None, "verdict": verdict, "started_at": CLOCK.now(), "minutes": 1.0, "findings": []}
        with self.store.read() as conn:
            rows, decisions = db.runs(conn), db.rows_digest(conn, run_id)
        before = next((r for r in rows if r["manifest_digest"]), None)
        manifest = reports.leave_reports(self.folder, header, tasks, {"market": made, "summary": made}, before and {"run_id": before["id"], "manifest": before["manifest_digest"]}, Settings(**sections),
                                         Path("."), decisions, lambda draft: compare.summary_parts(self.store, self.folder, draft, token, self.files), rows)
        with self.store.write() as conn:
            db.finish_run(conn, run_id, status, CLOCK, verdict=verdict, manifest_digest=manifest["manifest"], metrics={f"{t}.{n}": v for t, i in tasks.items() for n, v in i["metrics"].items()})
            db.release_lease(conn, token)
        return manifest

    def lose(self, run_id: str) -> None:
        with self.store.write() as conn:
            token = db.take_lease(conn, run_id, 3600, CLOCK)
            db.start_run(conn, run_id, "cycle", "drift", token, {}, "d", CLOCK)
            db.finish_run(conn, run_id, "lost", CLOCK, error_message="The process ended without a word.")
            db.release_lease(conn, token)


@pytest.fixture
def past(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    monkeypatch.setenv("MLTRADER_RUN__REPORTS", str(tmp_path / "reports"))
    made = Past(tmp_path)
    made.run("r1", 0.1)
    made.lose("r2")
    made.run("r3", 0.15, "PROMOTE", labels={"horizon": 10})
    return made


def test_a_summary_says_what_changed_and_the_index_what_was_lost(past):
    first, third = ((past.folder / run / "summary.html").read_text() for run in ("r1", "r3"))
    assert "This is the first cycle on record" in first
    for words in ("Against r1", "The verdict went from HOLD to PROMOTE.", "1 setting changed: [labels] horizon.", "+0.100 → +0.150", "href='../r1/summary.html'", "There has been no champion yet."):
        assert words in third, words
    index = (past.folder / "index.html").read_text()
    assert index.index("./r3/index.html") < index.index(">r2<") < index.index("./r1/index.html") and "without a word" in index and index.count("<svg") == 2


NO_MANIFESTS = (b"", b"{", b"{}", b"[]", b"[1]", b"null", b"\xff", b'{"seal": ""}', b'{"run_id": "x", "status": "success", "tasks": {}}', b'{"run_id": "x", "status": "success", "trigger": "t", "tasks": {}, "manifest": "m"}',
                *(reports.canonical_json(reports.seal_manifest({"run_id": "x", "status": "success", "trigger": "t", "tasks": tasks})) for tasks in (None, [1], {"market": None})), b'{"run_id": "\\ud800", "tasks": {}}')


def test_other_files_named_like_a_manifest_cost_no_run_its_end(past):
    """Whatever lies in a folder beside the runs: the next run ends, the index names the folder, and `verify` says of a run's own what it is."""
    for i, data in enumerate(NO_MANIFESTS):
        (past.folder / f"old{i}").mkdir()
        (past.folder / f"old{i}" / "manifest.json").write_bytes(data)
    past.run("r4", 0.2)
    index = (past.folder / "index.html").read_text()
    assert f"{len(NO_MANIFESTS)} unreadable" in index and all(f"./old{i}/index.html" in index for i in range(len(NO_MANIFESTS)))
    assert [r["run_id"] for r in reports.run_records(past.folder) if r["status"] != "unreadable"] == ["r4", "r3", "r1"]
    for data in NO_MANIFESTS:
        (past.folder / "r4" / "manifest.json").write_bytes(data)
        assert reports.verify_run(past.store, "r4", past.folder, past.files), data
        with pytest.raises(IntegrityError, match="manifest.json"):
            compare.rebuild(past.store, past.folder, "r4", past.files)
        assert compare.recorded(past.store, past.folder, "r4")["verdict"] == "HOLD"


def test_pages_are_made_again_as_they_were_and_the_chain_holds(past):
    past.run("r4", 0.2)  # what comes later does not change what r3's page says
    page = past.folder / "r3" / "summary.html"
    good = page.read_bytes()
    assert compare.rebuild(past.store, past.folder, "r3", past.files)["written"] == []
    page.write_bytes(b"spoilt")
    (past.folder / "r3" / "market.html").unlink()
    assert reports.verify_run(past.store, "r3", past.folder, past.files)
    assert compare.rebuild(past.store, past.folder, "r3", past.files, dry_run=True)["written"] == ["market.html", "summary.html"] and page.read_bytes() == b"spoilt"
    said = CliRunner().invoke(app, ["report", "r3"])
    assert said.exit_code == 0 and str(page) in said.output and page.read_bytes() == good
    assert [reports.verify_run(past.store, run, past.folder, past.files) for run in ("r1", "r3", "r4")] == [[], [], []]


def test_a_page_is_repaired_whatever_became_of_the_others(past, tmp_path):
    """The summary would come out otherwise without the reports of the run before: it is whole, so it is left alone. If it is damaged too, it is named, and the other page is repaired all the same."""
    page, summary = (past.folder / "r3" / name for name in ("market.html", "summary.html"))
    good = page.read_bytes(), summary.read_bytes()
    shutil.rmtree(past.folder / "r1")
    page.unlink()
    assert compare.rebuild(past.store, past.folder, "r3", past.files)["written"] == ["market.html"] and (page.read_bytes(), summary.read_bytes()) == good
    page.write_bytes(b"spoilt")
    summary.write_bytes(b"spoilt")
    said = CliRunner().invoke(app, ["report", "r3"]).exception
    assert isinstance(said, IntegrityError) and said.exit_code == 1 and "summary.html would not become what the manifest signs" in str(said) and "Written: market.html." in str(said)
    assert (page.read_bytes(), summary.read_bytes()) == (good[0], b"spoilt")
    made = compare.rebuild(past.store, past.folder, "r3", past.files, tmp_path / "beside")
    assert made["differing"] == ["summary.html"] and "Not known of r1: bars, features, code, libraries, data files." in Path(made["page"]).read_text()


def test_another_version_leaves_whole_pages_alone(past, monkeypatch, tmp_path):
    before = {p.name: p.read_bytes() for p in (past.folder / "r3").iterdir()}
    monkeypatch.setattr(reports, "PAGE_STYLE", "body{color:red}")
    made = compare.rebuild(past.store, past.folder, "r3", past.files, tmp_path / "beside")
    assert made["differing"] == ["market.html", "summary.html"] and "color:red" in Path(made["page"]).read_text()
    assert compare.rebuild(past.store, past.folder, "r3", past.files)["written"] == ["index.html"]  # the one page that nothing signs
    assert {p.name: p.read_bytes() for p in (past.folder / "r3").iterdir() if p.name != "index.html"} == {name: data for name, data in before.items() if name != "index.html"}


def test_a_page_is_not_made_of_a_notebook_that_was_changed(past):
    path, page = (past.folder / "r3" / f"market.{kind}" for kind in ("ipynb", "html"))
    path.write_text(path.read_text().replace("Because", "Whatever"))
    assert compare.rebuild(past.store, past.folder, "r3", past.files)["written"] == []  # its page is whole
    page.unlink()
    with pytest.raises(IntegrityError, match="market.ipynb is changed"):
        compare.rebuild(past.store, past.folder, "r3", past.files)
    assert not page.exists()
    with pytest.raises(ConfigError, match=r"r2 \(lost\) has no manifest"):
        compare.rebuild(past.store, past.folder, "r2", past.files)
    manifest = past.folder / "r3" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"PROMOTE"', '"HOLD"'))
    with pytest.raises(IntegrityError, match="seal does not fit"):
        compare.rebuild(past.store, past.folder, "r3", past.files)


def test_a_file_is_no_folder_to_write_into(past, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for words in (["report", "r3"], ["report", "--compare", "r1", "r3"]):
        for to in ("taken", "taken/deeper"):
            said = CliRunner().invoke(app, [*words, "--to", str(tmp_path / to)]).exception
            assert isinstance(said, ConfigError) and "is no folder" in str(said)
    assert (tmp_path / "taken").read_text() == "mine"


# --- two runs ---------------------------------------------------------------------------------------------------------------------


def test_compare_prints_and_writes_what_differs(past):
    said = CliRunner().invoke(app, ["report", "--compare", "r1", "r3"])
    assert said.exit_code == 0 and "The verdict went from HOLD to PROMOTE." in said.output and "promotion.gain_over_prior" in said.output
    page = (past.folder / "compare_r1_r3.html").read_text()
    assert "After costs, 1 became 1.04 and 1.06" in page and "Ranks of the leading features" in page and "[labels] horizon" in page
    unknown = CliRunner().invoke(app, ["report", "--compare", "r1", "r9"])
    assert isinstance(unknown.exception, ConfigError) and "r3, r2, r1" in str(unknown.exception)
    assert CliRunner().invoke(app, ["report", "--compare", "r1"]).exit_code == 2
    shutil.rmtree(past.folder / "r1")  # its reports were removed: the store still knows the run
    found = compare.difference(compare.recorded(past.store, past.folder, "r1"), compare.recorded(past.store, past.folder, "r3"), past.store, past.files)
    assert found["code"] is None and found["settings"] == [{"setting": "[labels] horizon", "before": 14, "after": 10}]


def side(run_id: str, kind: str = "cycle", known: bool = True, **more) -> dict:
    parts = dict.fromkeys(("code", "libraries", "data"), {} if known else None)
    return {"run_id": run_id, "kind": kind, "status": "success", "verdict": None, "as_of": None, "trigger": "manual", "settings": {}, "tasks": {}, **parts, **more}


def test_a_comparison_says_what_it_does_not_know_and_compares_no_gate_with_none(past, monkeypatch):
    entries = {"market": {"entries": {"summary": past.files.put({"data_digest": "d"}).as_dict()}}, "features": {"entries": {"feature_set": past.files.put({"names": ["heat"]}).as_dict()}}}
    said = lambda *pair: compare.sentences(compare.difference(*pair, past.store, past.files))  # noqa: E731
    assert said(side("a", tasks=entries), side("b", tasks=entries)) == ["Nothing: the same settings, bars, features, code, libraries, data files and results."]
    assert said(side("a", tasks=entries), side("b", tasks=entries, known=False)) == ["Nothing that is known: the same settings, bars, features and results.", "Not known of b: code, libraries, data files."]
    assert said(side("a", tasks=entries), side("b"))[-1] == "Not known of b: bars, features." and not [text for text in said(side("a", tasks=entries), side("b")) if "others" in text]
    rules = {"a": [{"rule": f"rule {i}", "scope": "all", "status": "passed", "observed": 1.0} for i in range(27)]}
    monkeypatch.setattr(compare, "gate_of", lambda record, store: rules.get(record["run_id"], []))
    assert said(side("a", tasks=entries, verdict="PROMOTE"), side("b", "monitor", tasks=entries)) == ["Runs of two kinds: cycle and monitor. They do not do the same tasks.", "The gate judged a only."]
    rules["b"] = [*rules["a"][:-1], {**rules["a"][-1], "status": "failed"}]
    assert said(side("a", tasks=entries, verdict="PROMOTE"), side("b", tasks=entries, verdict="HOLD")) == ["The verdict went from PROMOTE to HOLD.", "1 rule of the gate came out otherwise: rule 26 (passed → failed)."]


numbers = st.dictionaries(st.sampled_from("abcd"), st.floats(-5, 5), max_size=4)
sections = st.dictionaries(st.sampled_from(["labels", "run"]), st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2), max_size=3), max_size=2)


@settings(max_examples=50, deadline=None)
@given(numbers, numbers, sections, sections)
def test_a_difference_seen_from_the_other_side_is_the_opposite(a, b, old, new):
    sides = [{"tasks": {"t": {"metrics": metrics}}} for metrics in (a, b)]
    there, back = ({row["metric"]: row for row in compare.metric_difference(*pair)} for pair in (sides, sides[::-1]))
    assert there.keys() == back.keys() == {f"t.{name}" for name in a | b}
    assert all(row["difference"] is None if back[name]["difference"] is None else row["difference"] == -back[name]["difference"] for name, row in there.items())
    turned = [{"setting": row["setting"], "before": row["after"], "after": row["before"]} for row in compare.settings_difference(new, old)]
    assert compare.settings_difference(old, new) == turned and compare.settings_difference(old, old) == []


def test_hundreds_of_daily_checks_are_grouped_by_month(tmp_path):
    rows = [{"id": f"m{day:%Y%m%d}", "kind": "monitor", "status": "failed", "trigger": "t", "verdict": None, "as_of": day.date(), "error_message": "x", "started_at": day, "token": i}
            for i, day in enumerate(pd.bdate_range("2023-01-02", periods=400))]
    assert "Walks and accounts" not in reports.all_runs_index(tmp_path, rows)
    for name in ("timemachine/index.html", "paper/account_main/index.html"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("a page")
    page = reports.all_runs_index(tmp_path, rows)
    assert all(link in page for link in ("<a href='timemachine/index.html'>timemachine</a>", "<a href='paper/account_main/index.html'>paper: account main</a>"))
    assert page.count("<details") == 19 and page.count("<details open") == 1 and "2024-07: 10 runs" in page and page.index("2024-07:") < page.index("2023-01:")
    assert len(page) < 200_000
