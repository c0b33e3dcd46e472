"""Write docs/reference/: one page a module from its docstrings, every setting, every command, every table of the store (`make docs`).

    python docs/build_reference.py            # write the pages, remove those of modules that are gone
    python docs/build_reference.py --check    # say which pages are not what the code says, and exit with 1

The modules are read, not imported. A page holds no date and no line number, so that a change of the code changes
the lines that are about it, and no others.
"""
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns")
NOTE = "<!-- Written by `make docs` from the code; do not edit. -->"


def title_of(notebook: Path) -> tuple[str, str]:
    """The question in a notebook's title, and the line that answers it."""
    lines = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()
    return lines[0].lstrip("# "), lines[2].lstrip("> ")


def cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *([cell(one) for one in row] for row in rows)))


def entries(lines: list[str]) -> str:
    """The entries of a numpydoc list (`name : type`, with an indented text) as Markdown."""
    found: list[tuple[str, list[str]]] = []
    for line in filter(str.strip, lines):
        if line.startswith(" ") and found:
            found[-1][1].append(line.strip())
        else:
            found.append((line.strip(), []))
    shown = []
    for head, text in found:
        name, colon, kind = head.partition(" : ")
        shown.append(f"- `{name}`" + (f", *{kind}*" if colon else "") + (f": {' '.join(text)}" if text else ""))
    return "\n".join(shown)


def described(doc: str | None) -> list[str]:
    """A numpydoc docstring as Markdown paragraphs: the text, then each section under its name."""
    parts = re.split(r"^(\w+)\n-{3,}\n", cleandoc(doc or ""), flags=re.M)
    shown = [parts[0].strip()]
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        shown.append(f"**{name}**\n\n" + (entries(body.splitlines()) if name in LISTS else body.strip()))
    return [part for part in shown if part]


def signature(name: str, node: ast.FunctionDef, skip_self: bool = False) -> str:
    """A call in one line, or a parameter a line where one is too long."""
    taken = ast.parse(f"def f({ast.unparse(node.args)}): pass").body[0].args
    if skip_self:
        (taken.posonlyargs or taken.args).pop(0)
    arguments, returns = ast.unparse(taken), f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    if len(name) + len(arguments) + len(returns) < 110:
        return f"{name}({arguments}){returns}"
    held = [*taken.posonlyargs, *taken.args]
    defaults = [None] * (len(held) - len(taken.defaults)) + list(taken.defaults)
    pieces = [ast.unparse(ast.arguments([], [a], None, [], [], None, [d] if d is not None else [])) for a, d in zip(held, defaults, strict=True)]
    if taken.vararg or taken.kwonlyargs:
        pieces.append(f"*{ast.unparse(taken.vararg) if taken.vararg else ''}")
    pieces += [ast.unparse(ast.arguments([], [], None, [a], [d], None, [])).removeprefix("*, ") for a, d in zip(taken.kwonlyargs, taken.kw_defaults, strict=True)]
    pieces += [f"**{ast.unparse(taken.kwarg)}"] if taken.kwarg else []
    return f"{name}(\n    " + ",\n    ".join(pieces) + f",\n){returns}"


def decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    return {ast.unparse(one).split("(")[0].split(".")[-1] for one in node.decorator_list}


def of_function(node: ast.FunctionDef, level: str, owner: str = "") -> list[str]:
    """Heading, signature and docstring of a function or method."""
    full, kinds = (f"{owner}.{node.name}" if owner else node.name), decorators(node)
    call = node.name if "property" in kinds else signature(full, node, bool(owner) and "staticmethod" not in kinds)
    shown = f"{full}: {ast.unparse(node.returns)}" if "property" in kinds and node.returns is not None else call
    return [f"{level} {full}", f"```python\n{shown}\n```", *described(ast.get_docstring(node))]


def of_class(node: ast.ClassDef) -> list[str]:
    """Heading, constructor, docstring and public methods of a class."""
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
    init = next((one for one in methods if one.name == "__init__"), None)
    bases = [ast.unparse(one) for one in node.bases]
    if init is not None:
        call = signature(node.name, ast.FunctionDef("f", init.args, [], [], None), True)
    elif "dataclass" in decorators(node) or "NamedTuple" in bases:
        fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign) and not one.target.id.startswith("_")]
        call = f"{node.name}({', '.join(fields)})" if sum(map(len, fields)) < 100 else f"{node.name}(\n    " + ",\n    ".join(fields) + ",\n)"
    else:
        call = f"{node.name}({', '.join(bases)})"
    parts = [f"## {node.name}", f"```python\nclass {call}\n```", *described(ast.get_docstring(node))]
    for one in methods:
        if not one.name.startswith("_") and "model_validator" not in decorators(one) and "setter" not in decorators(one):
            parts += of_function(one, "###", node.name)
    return parts


def module_page(name: str, notebook: Path) -> str:
    """The public classes and functions of one module."""
    tree = ast.parse((ROOT / "mltrader" / f"{name}.py").read_text(encoding="utf-8"))
    question, answer = title_of(notebook)
    parts = [f"# mltrader.{name}", NOTE, f"**{question}** {answer} Source and explanation: [`nbs/{notebook.name}`](../../../nbs/{notebook.name})."]
    if name == "cli":
        return "\n\n".join([*parts, "Its functions are the commands: [commands](../commands.md)."]) + "\n"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            parts += of_function(node, "##")
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if name == "config" and node.name.endswith(("Settings", "Definition")) and node.name != "Settings":
                continue
            parts += of_class(node)
    if name == "config":
        parts.append("The sections and their keys: [settings](../settings.md).")
    return "\n\n".join(parts) + "\n"


def setting_classes() -> tuple[dict[str, ast.ClassDef], dict[int, str]]:
    """The classes of 01_config by name, and each line's comment."""
    source = (ROOT / "mltrader" / "config.py").read_text(encoding="utf-8")
    comments = {t.start[0]: t.string[1:].strip() for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}, comments


LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "a multiple of", "min_length": "at least so many:", "pattern": "matches"}


def setting_row(key: str, node: ast.AnnAssign, comments: dict[int, str], section: str) -> list[str]:
    """One key: its name, type, default, limits and meaning."""
    kind, value, limits = ast.unparse(node.annotation), node.value, []
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        limits = [f"{LIMITS[k.arg]} {ast.unparse(k.value)}" for k in value.keywords if k.arg in LIMITS]
        value = value.args[0] if value.args else None
    kind = re.sub(r"Annotated\[(\w+), Field\((.*?)\)\]", r"\1", kind).replace("Literal[", "one of [")
    default = "required" if value is None else f"`{ast.unparse(value)}`"
    found = [comments[line] for line in range(node.lineno, node.end_lineno + 1) if line in comments]
    if not found:
        raise SystemExit(f"[{section}] {key} has no meaning: write a comment behind it in nbs/01_config.ipynb, with its unit.")
    return [f"`{key}`", f"`{kind}`", default, ", ".join(limits) or "", found[0]]


def sections() -> Iterator[tuple[str, ast.ClassDef]]:
    """The sections of the settings, in order."""
    classes, _ = setting_classes()
    for node in classes["Settings"].body:
        if isinstance(node, ast.AnnAssign):
            yield node.target.id, classes[ast.unparse(node.annotation)]


def settings_page() -> str:
    """Every key of mltrader.toml."""
    classes, comments = setting_classes()
    columns = ["key", "type", "default", "limits", "meaning and unit"]
    parts = ["# Settings", NOTE, "A key is set in `mltrader.toml`, or by the environment variable `MLTRADER_SECTION__KEY`, which wins. A list in a variable is written with commas. An unknown key or a value "
             "beyond its limits is refused before anything runs. `mltrader config show` prints what is in force, `mltrader config diff RUN` what has changed since a run.",
             "Where things are is no setting of a run, and is told by variables alone: `MLTRADER_HOME` (the folder of all state, `.mltrader`), `MLTRADER_SETTINGS` (another TOML file), "
             "`MLTRADER_DATABASE_URL` (another database), `MLTRADER_ARTIFACTS` (another place for models and other payloads: a folder, or `s3://bucket/prefix`), `MLTRADER_NOTIFY_URL_<CHANNEL>` (the address of a channel), `MLTRADER_DASHBOARD_TOKEN` (the dashboard's token)."]
    for section, node in sections():
        parts += [f"## [{section}]", ast.get_docstring(node) or ""]
        parts.append(table(columns, [setting_row(one.target.id, one, comments, section) for one in node.body if isinstance(one, ast.AnnAssign)]))
        if section == "events":
            inner = classes["EventDefinition"]
            parts += ["An event, `[[events.extra]]`:", table(columns, [setting_row(one.target.id, one, comments, "events") for one in inner.body if isinstance(one, ast.AnnAssign)])]
    return "\n\n".join(parts) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that is not hidden, with its words, in the order of the help."""
    from typer.main import get_command

    from mltrader.cli import app

    def walk(command: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name, one in command.commands.items():
            if hasattr(one, "commands"):
                if one.invoke_without_command:
                    yield f"{words} {name}", one
                yield from walk(one, f"{words} {name}")
            elif not one.hidden:
                yield f"{words} {name}", one

    yield from walk(get_command(app), "mltrader")


def options_of(command: Any) -> Iterator[list[str]]:
    """Each argument and option: how it is written, what it may be, its default, what it does."""
    for one in command.params:
        if getattr(one, "hidden", False) or one.name == "help":
            continue
        flag = getattr(one, "is_flag", False)
        written = one.name.upper() if one.param_type_name == "argument" else ", ".join([*one.opts, *one.secondary_opts])
        low, annotation = getattr(one, "min", None), one.type_descriptor.annotation
        kind = "" if flag else {"str": "text", "int": "integer", "float": "number"}.get(annotation.__name__, annotation.__name__) + (f", at least {low}" if low is not None else "")
        default = "" if flag and not one.secondary_opts or one.default is None or callable(one.default) else f"`{str(one.default).lower() if flag else one.default}`"
        yield [f"`{written}`", kind, default or ("required" if one.required else ""), one.help or ""]


def commands_page() -> str:
    """Every command of the command line."""
    parts = ["# Commands", NOTE, "Answers go to stdout, progress and errors to stderr. `--json` prints for machines, `--dry-run` says what would be done and does nothing, `--debug` (anywhere) shows where an "
             "unexpected error came from. Exit codes: 0 done · 1 unexpected, or a check failed · 2 wrong usage or settings · 3 it ran, and the answer is no: the gate did not promote, a paper account is HALTED · 4 data are not valid · 5 a vendor or channel "
             "was not reached · 75 another run holds the lease · 130 interrupted."]
    for words, command in commands():
        text, _, example = (command.help or "").partition(" Example: ")
        arguments = "".join(f" {one.name.upper()}" if one.required else f" [{one.name.upper()}]" for one in command.params if one.param_type_name == "argument")
        parts += [f"## {words}", text, f"```\n{words}{arguments} [OPTIONS]\n```"]
        if rows := list(options_of(command)):
            parts.append(table(["argument or option", "type", "default", "what it does"], rows))
        parts += [f"Example: `{example.strip()}`"] if example else []
    return "\n\n".join(parts) + "\n"


def written_by() -> dict[str, tuple[str, str]]:
    """Who writes a table and what one row is, from the list in 02_store."""
    text = "".join("".join(one["source"]) + "\n" for one in json.loads((ROOT / "nbs" / "02_store.ipynb").read_text(encoding="utf-8"))["cells"] if one["cell_type"] == "markdown")
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| (.+?) \|$", text, re.M)
    return {name: (by, row) for names, by, row in rows for name in re.findall(r"`(\w+)`", names)}


def tables_page() -> str:
    """Every table of the store with its columns."""
    from mltrader.store import SEED_TABLES, metadata

    known = written_by()
    parts = ["# Tables of the store", NOTE, "SQLite in `.mltrader/mltrader.db`, or the database in `MLTRADER_DATABASE_URL`. Dates are sessions, times are UTC, a missing number is NULL. Payloads (features, samples, models) "
             "are files in `.mltrader/artifacts`; rows hold their hashes. Only `02_store` speaks SQL; read with its functions, or with any SQL client."]
    for name, one in metadata.tables.items():
        by, row = known.get(name, ("", ""))
        said = ". ".join(part for part in (f"One row is {row}" if row else "", f"Written by {by}" if by else "", "" if name in SEED_TABLES else "Guards the others") if part)
        rows = [[f"`{column.name}`", str(column.type).lower(), "" if column.nullable else "not null",
                 ", ".join([*(["primary key"] if column.primary_key else []), *(f"→ `{key.target_fullname}`" for key in sorted(column.foreign_keys, key=lambda k: k.target_fullname))])] for column in one.columns]
        parts += [f"## {name}", f"{said}." if said else "", table(["column", "type", "", "key"], rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def modules() -> list[tuple[str, Path]]:
    """Each module with its notebook, in reading order."""
    return [(path.stem.split("_", 1)[1], path) for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))]


def pages() -> dict[str, str]:
    """Every page of the reference by its path in docs/reference."""
    listed = [[f"[`{name}`](api/{name}.md)", f"[{path.stem}](../../nbs/{path.name})", title_of(path)[0]] for name, path in modules()]
    index = ["# Reference", NOTE, "Written by `make docs` from docstrings, settings, commands and tables as they are in the code; a test says if it is out of date.",
             "- [Settings](settings.md): every key of `mltrader.toml`\n- [Commands](commands.md): the command line\n- [Tables](tables.md): the store",
             table(["module", "notebook", "the question it answers"], listed)]
    found = {"index.md": "\n\n".join(index) + "\n", "settings.md": settings_page(), "commands.md": commands_page(), "tables.md": tables_page()}
    return found | {f"api/{name}.md": module_page(name, path) for name, path in modules()}


def differences(folder: Path) -> list[str]:
    """Pages that are not what the code says: changed, missing, or of something that is gone."""
    wanted, held = pages(), {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.md")}
    return sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))


def main() -> None:
    folder = ROOT / "docs" / "reference"
    if "--check" in sys.argv:
        found = differences(folder)
        sys.exit(f"Out of date, run `make docs`: {', '.join(found)}" if found else 0)
    wanted = pages()
    for name in (changed := differences(folder)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        if name in wanted:
            (folder / name).write_text(wanted[name], encoding="utf-8")
    print(f"docs/reference: {len(changed)} of {len(wanted)} pages written")


if __name__ == "__main__":
    main()
