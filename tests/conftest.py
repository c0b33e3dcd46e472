"""Shared by all tests: the repository, and a copy of the project in which whole cycles run."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEEP_OUT = {".venv", ".mltrader", ".git", "__pycache__", "_proc", ".pytest_cache", ".ruff_cache", ".hypothesis"}


class Project:
    """A copy of the project with a home of its own, on the small real panel of `smoke.toml`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.home = folder / ".mltrader"

    def environment(self, **extra: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLTRADER_", "PLOOMBER_", "PYTEST_"))}
        return {**clean, "PYTHONPATH": str(self.root), "MLTRADER_SETTINGS": str(self.root / "tests" / "smoke.toml"), "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}", **extra}

    def call(self, *command: str, timeout: float = 500, **extra: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=self.root, env=self.environment(**extra), capture_output=True, text=True, timeout=timeout)

    def fresh_home(self, name: str) -> Path:
        """Another home folder that shares the downloaded data."""
        home = self.root / name
        home.mkdir()
        (home / "cache").symlink_to(self.home / "cache")
        return home


def copy_project(folder: Path) -> Project:
    """Copy what git would track (and the data cache), link the environment."""
    shutil.copytree(ROOT, folder, ignore=lambda path, names: [n for n in names if n in KEEP_OUT or n.startswith("run_") or n.endswith(".egg-info")], dirs_exist_ok=True)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    from mltrader import market
    from mltrader.config import home

    market.sync(home() / "cache")  # already there after `make test`; fetched if pytest is called by hand
    (folder / ".mltrader").mkdir(exist_ok=True)
    shutil.copytree(home() / "cache", folder / ".mltrader" / "cache", symlinks=True)
    return Project(folder)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
