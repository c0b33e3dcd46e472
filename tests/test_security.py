"""What an attacker, or a careless file, could use: SQL from formatted text, secrets that are written down, packages without a hash, and readers that meet broken files."""
import ast
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT, copy_project
from fuzz import TARGETS, feed

from mltrader.core import MltraderError

PACKAGE = sorted((ROOT / "mltrader").glob("*.py"))

# --- the package's source ---------------------------------------------------------------------------------------------------

SPEAKS = {"text", "execute", "exec_driver_sql", "executemany", "executescript", "scalar", "scalars", "read_sql", "read_sql_query"}
DEFINES = re.compile(r"\s*(ALTER TABLE|CREATE|DROP|PRAGMA|SET|LOCK TABLE|VACUUM|ANALYZE|TRUNCATE)\b")  # no driver binds the names in these; ours come from the schema


def formatted_sql(source: str) -> list[str]:
    """Calls that hand SQL over which was put together from parts: f-strings, `+`, `%`, `format`, `join`, also by way of a variable."""
    tree, found = ast.parse(source), []

    def parts(node: ast.expr) -> ast.expr | None:
        """The expression that puts text together, if `node` is one."""
        if isinstance(node, ast.JoinedStr):
            first = node.values[0] if node.values else None
            defines = isinstance(first, ast.Constant) and DEFINES.match(str(first.value))
            return None if defines or all(isinstance(value, ast.Constant) for value in node.values) else node
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
            return node if any(isinstance(n, ast.JoinedStr) or isinstance(n, ast.Constant) and isinstance(n.value, str) for n in ast.walk(node)) else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "join", "replace"):
            return node if any(isinstance(n, ast.Constant) and isinstance(n.value, str) for n in ast.walk(node.func.value)) else None
        return None

    for scope in [tree, *[n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda))]]:
        made = {target.id for n in ast.walk(scope) if isinstance(n, ast.Assign) and parts(n.value) for target in n.targets if isinstance(target, ast.Name)}
        for call in (n for n in ast.walk(scope) if isinstance(n, ast.Call) and n.args):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in SPEAKS and (parts(call.args[0]) or isinstance(call.args[0], ast.Name) and call.args[0].id in made):
                found.append(f"{call.lineno}: {ast.unparse(call)[:100]}")
    return sorted(set(found))


def test_sql_is_bound():
    speaking = 0
    for path in PACKAGE:
        text = path.read_text(encoding="utf-8")
        speaking += text.count(".execute(")
        if path.stem in ("store", "dashboard"):  # the others speak none (test_pipeline), but plot and format what they like
            assert formatted_sql(text) == [], path.name
    assert speaking > 50


@pytest.mark.parametrize("line", [
    'conn.execute(sa.text(f"SELECT * FROM runs WHERE id = \'{run}\'"))', 'conn.exec_driver_sql("DELETE FROM runs WHERE id = " + run)', 'conn.execute(sa.text("SELECT %s" % run))',
    'conn.execute(sa.text("SELECT {}".format(run)))', 'query = f"SELECT {run}"; conn.exec_driver_sql(query)', 'pd.read_sql("SELECT " + ", ".join(names), conn)', 'sa.text(f" INSERT INTO {table} VALUES (1)")',
])
def test_formatted_sql_would_be_found(line):
    assert formatted_sql(f"def f(conn, run, table, names):\n    {line}\n")


@pytest.mark.parametrize("line", ['conn.execute(sa.text("SELECT 1 WHERE id = :run"), {"run": run})', 'conn.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN x")', 'conn.execute(runs.select())'])
def test_bound_sql_passes(line):
    assert formatted_sql(f"def f(conn, run, table):\n    {line}\n") == []


def test_no_pickle_no_unsafe_yaml_no_shell():
    """By syntax, so that no spelling of an import or a call gets through; `pickletools` only reads opcodes, and executes nothing."""
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path.name
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "eval", "tempfile.mktemp") and not name.endswith(("read_pickle", ".extractall")), (path.name, name)
                assert not [k for k in node.keywords if k.arg in ("shell", "allow_pickle") and not (isinstance(k.value, ast.Constant) and k.value.value is False)], (path.name, name)


def test_bandit_finds_nothing_of_weight():
    done = subprocess.run([sys.executable, "-m", "bandit", "-q", "-r", str(ROOT / "mltrader"), "-f", "json"], capture_output=True, text=True, timeout=120, check=False)
    found = [one for one in json.loads(done.stdout)["results"] if one["issue_severity"] != "LOW"]
    assert found == [], [(one["filename"], one["line_number"], one["test_id"]) for one in found]


def test_an_exception_from_a_security_rule_says_why():
    for path in PACKAGE:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "# noqa: S" in line or "# nosec" in line:
                found = re.search(r"# noqa: S\d+(.*?)(?:  # nosec B\d+)?$", line)
                assert found and len(found[1].strip()) >= 9, f"{path.name}:{number} names no rule, or no reason: {line.strip()}"



def test_mathml_that_grows_is_not_looked_at():
    from mltrader.reports import _is_plain

    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><math><mi>&b;</mi></math>'
    assert not _is_plain(laughs) and _is_plain("<math><mi>x</mi></math>") and not _is_plain("<math><script>x</script></math>")


# --- packages ---------------------------------------------------------------------------------------------------------------

LOCKED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)(.*(?:\n    .*)*)", re.M)


def test_every_locked_package_has_its_hashes():
    text = (ROOT / "requirements.lock").read_text()
    found = LOCKED.findall(text)
    assert len(found) > 100 and len(found) == len([line for line in text.splitlines() if line and not line.startswith(("#", " "))])
    assert [name for name, _, rest in found if not re.search(r"--hash=sha256:[0-9a-f]{64}", rest)] == []


def test_the_bill_of_materials_names_every_locked_package(tmp_path):
    done = subprocess.run(["make", "-C", str(ROOT), "sbom", f"SBOM={tmp_path / 'sbom.json'}"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "sbom.json").read_text())
    assert made["bomFormat"] == "CycloneDX"
    told = {(one["name"].lower().replace("_", "-"), one["version"]) for one in made["components"]}
    assert {(name.lower().replace("_", "-"), version) for name, version, _ in LOCKED.findall((ROOT / "requirements.lock").read_text())} == told


# --- secrets ----------------------------------------------------------------------------------------------------------------

CANARY = {"APCA_API_SECRET_KEY": "canary-broker-0001", "FRED_API_KEY": "canary-vendor-0002", "MLTRADER_DASHBOARD_TOKEN": "canary-dash-0003-long-enough", "AWS_SECRET_ACCESS_KEY": 'canary"quoted-0004',
          "MLTRADER_NOTIFY_URL_OPS": "json://me:canary-pass-0005@127.0.0.1:9/canary-path-0006", "DASK_STORE": "s3://id:canary-store-0007@127.0.0.1:9/b"}
WORDS = [word for value in CANARY.values() for word in re.findall(r'canary[\w"-]*\d{4}', value)]


def leaks(folder: Path) -> list[str]:
    """Files under `folder` (and the rows of a database there) in which a planted secret stands, as it is or as JSON writes it."""
    forms = [form.encode() for word in WORDS for form in (word, json.dumps(word)[1:-1])]
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink() and any(form in path.read_bytes() for form in forms)]


CHAIN = """
import json, sys
class Gone:  # as where it is not installed
    def find_spec(self, name, *_):
        if name.split(".")[0] == "ploomber": raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
import papermill
from mltrader.config import load_settings
from mltrader.core import Clock
from mltrader.orchestrator import open_run
from mltrader.store import Store
with open_run("cycle", "papermill", Store(), load_settings(), Clock()):
    for notebook, given in json.loads(sys.argv[1]):
        papermill.execute_notebook(f"nbs/{notebook}.ipynb", given["product"]["nb"], given, kernel_name="python3", progress_bar=False)
try:
    import ploomber
except ModuleNotFoundError:
    print("without ploomber")
"""


def test_plain_papermill_runs_the_notebooks(tmp_path):
    """Two tasks in a row, by papermill alone, with ploomber not importable here or in the kernels: what the first stores the second reads."""
    from mltrader import packaged
    from mltrader.config import home

    packaged.sync(home() / "cache")
    (tmp_path / "cache").symlink_to(home().resolve() / "cache")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "ploomber.py").write_text("raise ModuleNotFoundError('No module named ploomber', name='ploomber')\n")
    paths, jobs = {}, []
    for task, notebook, upstream in (("market", "10_market", ()), ("regimes", "12_regimes", ("market",))):
        paths[task] = {"nb": str(tmp_path / f"{task}.ipynb"), "out": str(tmp_path / "products" / task / "outputs.json")}
        jobs.append((notebook, {"product": paths[task], "upstream": {name: paths[name] for name in upstream} or None, "resources_": {}}))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLTRADER_", "PLOOMBER_", "PYTEST_", "IN_TEST"))}
    more = {"PYTHONPATH": f"{tmp_path / 'gone'}:{ROOT}", "MLTRADER_HOME": str(tmp_path), "MLTRADER_SETTINGS": str(ROOT / "tests" / "smoke.toml"), "MLTRADER_RUN__REPORTS": str(tmp_path / "reports")}
    done = subprocess.run([sys.executable, "-c", CHAIN, json.dumps(jobs)], env={**clean, **more}, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "without ploomber" in done.stdout, done.stderr[-2000:]
    assert {"market_regimes", "symbol_regimes"} <= set(json.loads(Path(paths["regimes"]["out"]).read_text())["entries"])


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A home in which things went wrong that quote secrets: a task that fails with an address in its error, a monitor, messages, a database that refuses."""
    made = copy_project(tmp_path_factory.mktemp("canary") / "p")
    made.sabotage("10_market", "import os", "print('asked with', os.environ['FRED_API_KEY'])",
                  "raise ValueError(' '.join(os.environ[name] for name in ('APCA_API_SECRET_KEY', 'FRED_API_KEY', 'AWS_SECRET_ACCESS_KEY', 'MLTRADER_NOTIFY_URL_OPS', 'DASK_STORE')))")
    more = {**CANARY, "MLTRADER_NOTIFY__CHANNELS": "ops", "MLTRADER_HOME": str(made.home)}
    said = []
    lost = {"MLTRADER_MARKET__PROVIDER": "csv", "MLTRADER_MARKET__PATH": "nowhere.csv"}  # it fails at once
    for command, extra in ((("ploomber", "build"), {}), (("mltrader", "monitor", "--no-fetch", "--trigger", "canary-vendor-0002"), lost), (("mltrader", "notify", "outbox"), {})):
        done = made.call(*command, **more, **extra)
        said.append((command, done.stdout + done.stderr))
    refused = made.call("mltrader", "status", **{**more, "MLTRADER_DATABASE_URL": "postgresql+psycopg://me:canary-base-0008@127.0.0.1:9/x"})
    said.append((("mltrader", "status"), refused.stdout + refused.stderr))
    return made, said


def test_no_secret_is_written_or_shown(watched):
    made, said = watched
    assert "task `market` failed: ValueError: *** *** *** *** ***" in said[0][1] and "FAILED" in said[1][1] and "postgresql+psycopg://me:***@" in said[-1][1]  # it did go wrong
    shown = [(command, word) for command, text in said for word in [*WORDS, "canary-base-0008"] if word in text or json.dumps(word)[1:-1] in text]
    assert shown == []
    found = [path for path in leaks(made.root) if not path.startswith(("nbs/", "tests/"))]  # the notebook's source has the names of variables, not their values
    assert found == [] and leaks(made.root / "reports") == []
    failed = list((made.root / "reports").rglob("market.FAILED.ipynb"))
    assert failed and "asked with ***" in failed[0].read_text() and "ValueError" in failed[0].with_suffix(".html").read_text()


def test_the_canary_sings(watched, monkeypatch):
    """The search finds what is there: without scrubbing the same notebook would show them."""
    from mltrader import log

    made, _ = watched
    raw = made.root / "planted.ipynb"
    raw.write_text(json.dumps({"cells": [{"outputs": [f"asked with {CANARY['FRED_API_KEY']} and {CANARY['AWS_SECRET_ACCESS_KEY']}"]}]}))
    assert leaks(made.root / "nbs") == [] and "planted.ipynb" in leaks(made.root)
    for name, value in CANARY.items():
        monkeypatch.setenv(name, value)
    log.scrub_file(raw)
    assert "planted.ipynb" not in leaks(made.root) and "asked with *** and ***" in raw.read_text()
    raw.unlink()


# --- foreign files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_foreign_file_is_read_or_refused(name, tmp_path):
    """Each reader meets broken files: it reads them, or says in the package's own words why not; it writes nothing beside its folder. `benchmarks/fuzz.py` goes on for longer."""
    tried, faults = feed(name, tmp_path, seconds=float(os.environ.get("FUZZ_SECONDS", 0.25)), seed=9)
    assert faults == [] and tried >= 5, faults[:3]


def test_a_reader_that_breaks_would_be_found(tmp_path, monkeypatch):
    def broken(path: Path) -> None:
        if b"\0" in path.read_bytes():
            raise KeyError("a traceback")
        raise MltraderError("as it should be")

    monkeypatch.setitem(TARGETS, "broken", (TARGETS["bars csv"][0], broken))
    tried, faults = feed("broken", tmp_path, seconds=1.0, seed=9)
    assert faults and "KeyError" in faults[0] and tried > 5


def odd_wheel() -> bytes:
    """A wheel whose member says that it is a patch."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("demo/data/a.csv", "AAA,1\n")
    data = bytearray(made.getvalue())
    data[6] |= 0x20
    data[data.index(b"PK\x01\x02") + 8] |= 0x20
    return bytes(data)


def misspelt_database(folder: Path) -> bytes:
    """A SQLite file with a table that no text can name."""
    with closing(sqlite3.connect(folder / "made.db")) as made:
        made.execute("CREATE TABLE abcd (x)")
        made.commit()
    return (folder / "made.db").read_bytes().replace(b"CREATE TABLE abcd", b"CREATE\xff\xfe\xffBLE abcd")


@pytest.mark.parametrize("name", ["bars csv", "rates", "sectors", "vintage", "wheel", "database"])
def test_what_fuzzing_has_found_is_refused(name, tmp_path):
    nothing = b"\xef\xbb\xbf"  # a mark of UTF-8, and no text
    empty = json.dumps({"vendor": "yfinance", "kind": "first", "parent": None, "start": "2021-01-04", "last_session": "2021-01-13", "symbols": {"AAA": {"first": "2021-01-04", "last": "2021-01-13", "rows": 8}}, "revisions": [], "files": []}).encode()
    content = {"vintage": lambda: empty, "wheel": odd_wheel, "database": lambda: misspelt_database(tmp_path)}.get(name, lambda: nothing)()
    path = tmp_path / "found" / {"vintage": "x.json", "wheel": "x.whl", "database": "x.db"}.get(name, "x.csv")
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(MltraderError):
        TARGETS[name][1](path)
