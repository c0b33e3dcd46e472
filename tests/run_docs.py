"""Run blocks of the documentation in one process, in the project of the working folder: `python tests/run_docs.py blocks.json` prints what became of each as JSON.

A line that calls mltrader is run in this process, so that NumPy and the rest are imported once; any other goes through bash. Variables set in a block end with it.
"""
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import traceback

ALLOWED = {"cycle": (0, 3)}  # 3: it ran, and the gate did not promote


def call(words: list[str]) -> tuple[int, str]:
    """`mltrader` with these words: exit code and all that it printed."""
    from mltrader.cli import main

    said, sys.argv = io.StringIO(), ["mltrader", *words]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return code, said.getvalue()


def one(command: str) -> tuple[bool, str]:
    """One command of a line: did it end as it should, and what did it say."""
    words = shlex.split(command)
    if words[0] == "export":
        words = words[1:]
    while words and "=" in words[0] and words[0].split("=")[0].isidentifier():
        name, _, value = words.pop(0).partition("=")
        os.environ[name] = value
    if not words:
        return True, ""
    if words[0] == "mltrader":
        code, said = call(words[1:])
        return code in ALLOWED.get(words[1], (0,)), f"exit code {code}\n{said}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    return done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"


def shell(text: str) -> str | None:
    """Run a block of commands; what went wrong, or None."""
    kept = dict(os.environ)
    for line in text.splitlines():
        for command in line.split("#")[0].split("&&"):
            if command.strip():
                before = dict(os.environ)
                fine, said = one(command)
                if not fine:
                    return f"{command.strip()}: {said[-1500:]}"
                if not command.strip().startswith("export"):
                    os.environ.clear(), os.environ.update(before)
    os.environ.clear(), os.environ.update(kept)
    return None


def python(text: str) -> str | None:
    """Run a block of Python; what went wrong, or None."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(text, "block", "exec"), {"__name__": "docs"})
    except BaseException:
        return traceback.format_exc()[-1500:]
    return None


if __name__ == "__main__":
    results = [{"shell": shell, "python": python}[kind](text) for kind, text in json.loads(open(sys.argv[1], encoding="utf-8").read())]
    print(json.dumps(results))
