"""Every notebook runs as nbdev_test runs it, reads as a chapter, and equals the module it exports."""
import io
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT
from nbdev.test import test_nb as run_notebook  # renamed: pytest would collect a name test_*
from pyflakes import api as pyflakes
from pyflakes.reporter import Reporter

from mltrader import log, reports

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = [path for path in NOTEBOOKS if path.stem[0].isdigit()]
TASKS = {spec.notebook for spec in reports.PIPELINE.values()}


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    """Also its examples leave nothing in the log of the home: a build executes them too."""
    monkeypatch.chdir(ROOT)
    own, append, written = log.log_file(), log._append, []
    monkeypatch.setattr(log, "_append", lambda file, line: written.append(line) if file == own else append(file, line))
    ok, _ = run_notebook(path, basepath=ROOT)
    assert ok and written == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_notebook_is_a_chapter(path):
    first, code = cells(path)[0], [c for c in cells(path) if c["cell_type"] == "code"]
    assert re.match(r"# .+\?\n\n> \S", source(first)), "the title asks a question, a quoted line answers it"
    assert any(source(c).startswith("# ## What this does not do") or "## What this does not do" in source(c) for c in cells(path))
    exports = [source(c) for c in code if re.match(r"#\|\s*export", source(c))]
    checks = [source(c) for c in code if re.search(r"^\s*(assert |test_\w+\()", source(c), re.M)]
    assert len(checks) >= 3
    assert max(len(text.splitlines()) for text in exports) <= 110
    assert not any("import *" in text for text in exports)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_examples_are_tagged_and_every_name_is_known(path):
    """Examples carry the tag that keeps them out of reports; papermill's kernel knows no `display`, so a check as strict as Ploomber's passes."""
    for cell in cells(path):
        if source(cell).strip() == "## Run":
            break
        assert cell["cell_type"] != "code" or source(cell).startswith("#|") or "example" in tags(cell), source(cell)[:80]
    said = io.StringIO()
    pyflakes.check("\n".join(source(c) for c in cells(path) if c["cell_type"] == "code"), path.stem, Reporter(said, said))
    assert [line for line in said.getvalue().splitlines() if "redefinition of unused" not in line] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    assert set(json.loads(path.read_text(encoding="utf-8"))["metadata"]) == {"kernelspec"}  # as JupyterLab saves it here
    for cell in cells(path):
        assert set(cell["metadata"]) <= {"tags"}
        assert "injected-parameters" not in tags(cell)
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem in TASKS], ids=lambda p: p.stem)
def test_run_section(path):
    """One parameters cell, after all exports; each later cell is skipped by nbdev_test; the package is imported, not the notebook's own names."""
    found = cells(path)
    at = [i for i, c in enumerate(found) if "parameters" in tags(c)]
    assert len(at) == 1
    assert not any(re.match(r"#\|\s*export", source(c)) for c in found[at[0]:])
    later = [c for c in found[at[0] + 1:] if c["cell_type"] == "code"]
    assert later and all(source(c).startswith("#| eval: false") for c in later)
    assert "from mltrader" in source(later[0]) and "open_task(" in source(later[0])
    assert source(found[at[0]]).split() == "upstream = None product = None resources_ = None".split()


def test_modules_equal_notebooks():
    assert reports.stale_modules(ROOT) == []


def test_an_edited_notebook_is_noticed(tmp_path):
    """Red team: change one export cell and do not export."""
    (tmp_path / "nbs").mkdir()
    (tmp_path / "mltrader").mkdir()
    (tmp_path / "mltrader" / "labels.py").write_text((ROOT / "mltrader" / "labels.py").read_text())
    notebook = json.loads((ROOT / "nbs" / "13_labels.ipynb").read_text())
    cell = next(c for c in notebook["cells"] if source(c).startswith("#| export") and "def " in source(c))
    cell["source"] = [*cell["source"], "\n\nEDITED = 1"]
    (tmp_path / "nbs" / "13_labels.ipynb").write_text(json.dumps(notebook))
    assert reports.stale_modules(tmp_path) == ["labels"]
