"""What the documentation says works: its commands and Python run, its settings are valid, its links lead somewhere, its reference is what the code says."""
import importlib.util
import json
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, copy_built

from mltrader import registry
from mltrader import store as db
from mltrader.config import Settings
from mltrader.core import Clock
from mltrader.store import Store

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [path for path in PAGES if "reference" not in path.parts]  # by hand


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason` says why it is not run."""

    page: str
    language: str
    text: str
    reason: str | None


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = re.finditer(r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", text, re.M | re.S)
    return [Block(page, one["language"], one["text"], one["reason"]) for one in found]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


BLOCKS = [block for path in WRITTEN for block in blocks_of(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))]


def known_commands() -> dict[str, set[str]]:
    """The words of each command, with its options."""
    from typer.main import get_command

    from mltrader.cli import app

    def walk(command, words):
        for name, inner in command.commands.items():
            if hasattr(inner, "commands"):
                yield from walk(inner, f"{words}{name} ")
            if not hasattr(inner, "commands") or inner.invoke_without_command:
                yield f"{words}{name}", {flag for option in inner.params for flag in (*option.opts, *option.secondary_opts)} | {"--help", "--debug"}

    return dict(walk(get_command(app), ""))


def calls_in(text: str) -> list[str]:
    """What is called as mltrader in a text: lines of blocks, and inline code."""
    lines = [part.split("#")[0].strip() for block in blocks_of("", text) if block.language in ("", "bash") for line in block.text.splitlines() for part in line.split("&&")]
    inline = re.findall(r"`([^`\n]+)`", prose(text))
    return [call for call in (re.sub(r"^(?:\w+=\S+ )+", "", one) for one in (*lines, *inline)) if re.match(r"mltrader [a-z]", call)]


def unknown_calls(text: str) -> list[str]:
    """Calls of commands or options that do not exist."""
    known, bad = known_commands(), []
    for call in calls_in(text):
        words = [word for word in call.split()[1:]]
        name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in known), None)
        group = any(one.startswith(f"{words[0]} ") for one in known) and len(words) == 1
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        if not group and (name is None or not flags <= known[name]):
            bad.append(call)
    return bad


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    titles = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def broken_links(path: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere: no such file, or no such heading."""
    bad = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or anchor and anchor not in anchors(target):
            bad.append(link)
    return bad


@pytest.fixture(scope="module")
def project(built, tmp_path_factory):
    """The project after one run, in which its candidate, a twin of it and the candidate once more have been promoted: by hand, as far as the gate has not."""
    made, clock, holder = copy_built(built, tmp_path_factory.mktemp("docs") / "mltrader"), Clock(), "by hand"
    with Store(f"sqlite:///{made.home / 'mltrader.db'}", create=False).write() as conn:
        twin, token = db.last_judged(conn), db.take_lease(conn, holder, 60, clock)
        for number, name in enumerate((twin["id"], "2" * 64, twin["id"]), 1):
            run, before = f"{holder} {number}", db.alias_target(conn, registry.CHAMPION)
            if number == 1 and before:
                continue
            db.start_run(conn, run, "monitor", holder, token, {}, "d", clock)
            db.add_version(conn, run, name, twin["recipe_digest"], twin["as_of"], twin["feature_set"], twin["manifest"], clock)
            row = {"model_version": name, "trial_id": 1, "trials": 1, "kind": "refresh", "verdict": "PROMOTE", "as_of": twin["as_of"], "promoted_to_production": True}
            db.move_alias(conn, run, registry.CHAMPION, name, before and before["id"], token, twin["as_of"], clock, gate_id=db.add_gate_row(conn, run, row, [], clock))
            db.finish_run(conn, run, "success", clock)
        db.release_lease(conn, token)
    return made


def results_of(project, wanted: list[tuple[str, str]]) -> list[str | None]:
    """What became of blocks, run one after the other in the project."""
    (project.root / "blocks.json").write_text(json.dumps(wanted))
    done = project.call(sys.executable, str(ROOT / "tests" / "run_docs.py"), "blocks.json")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_block_runs(project, capsys):
    """Commands and Python of all pages; what is not run is listed with its reason. The README's commands are run by test_cycle."""
    wanted = [block for block in BLOCKS if block.language in ("bash", "python") and block.reason is None]
    assert len(wanted) >= 20
    kinds = {"bash": "shell", "python": "python"}
    bad = {"shell": "mltrader nonsense", "python": "import no_such_module"}  # red team: what does not work is noticed
    found = results_of(project, [*((kinds[block.language], block.text) for block in wanted), *bad.items()])
    assert all(found[-2:]), found[-2:]
    faults = [f"{block.page}: {fault}" for block, fault in zip(wanted, found, strict=False) if fault]
    assert not faults, "\n".join(faults)
    with capsys.disabled():
        aside = [(block.page, block.reason) for block in BLOCKS if block.reason]
        print("\nnot run:", *(f"  {page}: {reason}" for page, reason in aside), sep="\n")


def test_languages_are_those_that_are_checked():
    assert {block.language for block in BLOCKS} <= {"", "bash", "python", "toml"}
    assert not [block for block in BLOCKS if block.language == "" and "mltrader " in block.text and block.page != "README.md"]  # a command in it would not be run


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_commands_exist(path):
    text = path.read_text(encoding="utf-8")
    assert broken_links(path, text) == []
    assert path.name == "CHANGELOG.md" or unknown_calls(text) == []


def test_what_does_not_exist_is_noticed():
    """Red team: a link to nothing, a heading that is not there, an option and a command that never were."""
    page = ROOT / "docs" / "index.md"
    assert broken_links(page, "[a](nowhere.md) [b](index.md#no-such) [c](index.md#how-to) [d](https://example.org)") == ["nowhere.md", "index.md#no-such"]
    assert unknown_calls("`mltrader status --colour` and `mltrader fly`\n```bash\nX=1 mltrader cycle --now && mltrader status\n```\n") == ["mltrader cycle --now", "mltrader status --colour", "mltrader fly"]
    assert blocks_of("", "<!-- not run: a -->\n```bash\nx\n```\n\n```\ny\n```\n") == [Block("", "bash", "x\n", "a"), Block("", "", "y\n", None)]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda b: b.page)
def test_settings_are_valid(block):
    Settings.model_validate(tomllib.loads(block.text))


def test_everything_is_mentioned():
    """Each notebook in the docs; each command and each section of the settings in a page written by hand."""
    everywhere, by_hand = ("\n".join(path.read_text(encoding="utf-8") for path in paths) for paths in (PAGES, WRITTEN))
    assert [path.stem for path in (ROOT / "nbs").glob("*.ipynb") if path.name not in everywhere] == []
    said = {" ".join(call.split()[1:]) for path in WRITTEN if path.name != "CHANGELOG.md" for call in calls_in(path.read_text(encoding="utf-8"))}
    assert [name for name in known_commands() if name != "setup" and not any(f"{one} ".startswith(f"{name} ") for one in said)] == []
    assert [name for name in Settings.model_fields if f"[{name}]" not in by_hand] == []


def reference():
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says(tmp_path):
    """`make docs` would change nothing; a page that was edited, lost or left over is noticed."""
    made = reference()
    pages = made.pages()
    made.pages = lambda: pages
    folder = ROOT / "docs" / "reference"
    assert made.differences(folder) == [], "run `make docs`"
    copy = shutil.copytree(folder, tmp_path / "reference")
    (copy / "settings.md").write_text("other")
    (copy / "api" / "splits.md").unlink()
    (copy / "api" / "gone.md").write_text("")
    assert made.differences(copy) == ["api/gone.md", "api/splits.md", "settings.md"]


def test_a_setting_without_meaning_is_refused():
    """Red team: a new key without a comment."""
    made = reference()
    classes, _ = made.setting_classes()
    made.setting_classes = lambda: (classes, {})
    with pytest.raises(SystemExit, match="has no meaning"):
        made.settings_page()

def test_decisions_are_listed():
    index = (ROOT / "docs" / "adr" / "index.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs" / "adr").glob("0*.md") if path.name not in index] == []


def test_every_change_says_whether_results_changed():
    entries = re.split(r"^- ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    assert len(entries) > 30
    assert [entry[:60] for entry in entries if not re.search(r"\*Results changed: (yes \(|no\b|to be filled in)", entry)] == []
