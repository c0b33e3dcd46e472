"""What an engine costs, and what a panel larger than memory needs: threads against Dask on the same blocks, fits by workers, and 5,000 symbols of 30 years through files.

    python benchmarks/engine.py            # 480 symbols x 2,520 sessions, some minutes
    python benchmarks/engine.py --quick    # 96 symbols x 2,520 sessions, under a minute
    python benchmarks/engine.py --large    # 5,000 symbols x 7,560 sessions x 173 features as well: some ten minutes, 30 GB of disk in --folder (a temporary one)
    python benchmarks/engine.py --large --symbols 1250   # the same with fewer symbols: the peak hardly moves
    python benchmarks/engine.py --json

Bars are random walks with a fixed seed. Each run works in a process of its own; its CPU-seconds are those of the process and all its children (Dask's workers), its memory the largest sum of resident sets of all of them at one
instant, looked at twenty times a second (pages that several share are counted for each, so the truth is below). Engines are compared on `write_features`: blocks are names of files, so little is sent. The start of the cluster,
which costs imports and compiled code in each worker, is a line of its own, and is not part of the comparison; neither is the first job of each. A cluster takes time even when it has nothing
to do, by the clock; that is a figure of its own too, and taken off both sides. Wall times depend on what else the machine does; the load is printed. Bars: Dask may
cost at most 1.25 times the CPU-seconds of threads on blocks of this size; an empty task at most 30 ms of wall time; the peak of `--large` at most 8 GiB; the fits of both base models by workers with the tasks after them at most
1.5 times the CPU-seconds of the tasks alone, on 24 symbols (the fits are small, so this is a bad case); the mean log-loss of later rows after training through `xgboost.dask` within 0.02 nats of local training on the same rows.
Exits with 1 if a bar is missed.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from timing import document, interval, line, show

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
COUNT = 173  # features of the large panel
SESSIONS = 7560  # 30 years
GIB = 2**30


def write_bars(path: Path, symbols: int, sessions: int, seed: int = 0) -> pd.DataFrame:
    """A file of bars, session by session, a year at a time; returns the index frame."""
    draw, days = np.random.default_rng(seed), pd.bdate_range("1993-01-04", periods=sessions).as_unit("us")
    names, level = pa.array([f"S{i:05d}" for i in range(symbols)]), np.full(symbols, np.log(50.0))
    writer = None
    for start in range(0, sessions, 252):
        part = days[start:start + 252]
        shape = (len(part), symbols)
        steps = draw.standard_t(5, shape) * 0.012 + draw.normal(0, 0.008, (len(part), 1)) - 0.5 * (level - np.log(50.0)) / 2520
        level_ = level + steps.cumsum(axis=0)
        close = np.exp(level_).round(4)
        open_ = np.vstack([np.exp(level)[None], close[:-1]]) * np.exp(draw.normal(0, 0.004, shape))
        columns = {"open": open_, "high": np.maximum(open_, close) * (1 + np.abs(draw.normal(0, 0.005, shape))), "low": np.minimum(open_, close) * (1 - np.abs(draw.normal(0, 0.005, shape))),
                   "close": close, "adj_close": close, "volume": np.exp(draw.normal(13, 0.5, shape)).round()}
        table = pa.table({"date": pa.array(np.repeat(part.to_numpy(), symbols)), "symbol": pa.concat_arrays([names] * len(part)), **{n: pa.array(x.ravel()) for n, x in columns.items()}})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="lz4")
        writer.write_table(table, row_group_size=2**18)
        level = level_[-1]
    writer.close()
    rates = 3 + draw.normal(0, 0.03, (3, sessions)).cumsum(axis=1)
    return pd.DataFrame({"session": days, "index_close": 1000 * np.exp(draw.normal(0, 0.01, sessions).cumsum()), "vix_close": 20 * np.exp(draw.normal(0, 0.1, sessions)),
                         "rate_3m": rates[0], "rate_2y": rates[1], "rate_10y": rates[2]})


def chosen(count: int) -> list[Any]:
    """`count` features: all that compare within a session, and the first of the others."""
    from mltrader import features as F

    across = [f for f in F.FEATURES if f.scope == "session"]
    return [f for f in F.FEATURES if f.scope != "session"][:count - len(across)] + across


def spent() -> float:
    """CPU-seconds of this process and of its children, so far."""
    whole = psutil.Process()
    total = 0.0
    for one in [whole, *whole.children(recursive=True)]:
        try:
            times = one.cpu_times()
            total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def timed(work: Any, *arguments: Any) -> dict[str, Any]:
    """CPU-seconds and wall time of one call, and what it returned."""
    cpu, wall = spent(), time.perf_counter()
    made = work(*arguments)
    return {"wall": time.perf_counter() - wall, "cpu": spent() - cpu, "made": made}


def compare(folder: Path, symbols: int, sessions: int, pairs: int, *sizes: int) -> dict[str, Any]:
    """In a process of its own: the same blocks by threads and by Dask, in turn; and a panel in memory, which has to travel."""
    from mltrader import blocks as B
    from mltrader import features as F

    index, features = write_bars(folder / "bars.parquet", symbols, sessions), chosen(COUNT)
    B.write_blocks(folder / "bars.parquet", folder / "bars")
    panel = pd.concat([B.read_block(path) for path in sorted((folder / "bars").glob("*.parquet"))]).sort_values(["session", "symbol"], ignore_index=True)
    found: dict[str, Any] = {"blocks": -(-symbols // B.SIZE), "threads": {1: [], 2: []}, "dask": {1: [], 2: []}, "memory": []}

    def once(engine: str, workers: int) -> dict[str, Any]:
        os.environ[B.ENGINE] = engine
        shutil.rmtree(folder / engine, ignore_errors=True)
        cost = timed(B.write_features, folder / "bars", index, features, folder / engine, workers, None, sessions // 2)
        return {"cpu": cost["cpu"], "wall": cost["wall"]}

    once("threads", 1)  # compiled code is there
    for workers in sizes:
        started = timed(B._client, "", workers)
        found["start", workers] = {key: started[key] for key in ("cpu", "wall")}
        found["first", workers] = once("dask", workers)  # and in the workers, too
        idle = timed(time.sleep, 3)["cpu"] / 3
        tasks = timed(B.map_blocks, abs, range(250), workers)
        found["task", workers] = {key: 1000 * tasks[key] / 250 for key in ("cpu", "wall")} | {"idle": idle}
        for _ in range(pairs):
            for engine in ("threads", "dask"):
                cost = once(engine, workers)
                found[engine][workers].append({**cost, "cpu": cost["cpu"] - idle * cost["wall"]})
            if workers == 2:
                direct = timed(F.compute, panel, index, features)
                os.environ[B.ENGINE] = "dask"
                sent = timed(B.features_in_blocks, panel, index, features, 2)
                for cost in (direct, sent):
                    cost["cpu"] -= idle * cost["wall"]
                pd.testing.assert_frame_equal(direct.pop("made"), sent.pop("made"), check_exact=True)
                found["memory"].append((sent, direct))
        if workers == sizes[-1]:
            found["training"] = training(folder / "training", *((8, 1512, 2) if pairs < 9 else (24, 5040, 9)), idle)
        client = B._client("", workers)
        client.cluster.close()
        client.close()
    ours, theirs = (B.read_features(folder / name) for name in ("threads", "dask"))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    return {str(key): value for key, value in found.items()}


def panel_of(folder: Path, symbols: int, sessions: int, count: int) -> tuple[Any, Any]:
    """Bars, features and labels as folders; returns what the memory task would leave of them, and the settings."""
    from mltrader import blocks as B
    from mltrader.config import LabelSettings, load_settings
    from mltrader.memory import build_samples, cutoffs, make_plan

    folder.mkdir()
    index, features = write_bars(folder / "bars.parquet", symbols, sessions), chosen(COUNT)[::COUNT // count]
    B.write_blocks(folder / "bars.parquet", folder / "bars", symbols // 4)
    B.write_features(folder / "bars", index, features, folder / "features", 1)
    B.write_labels(folder / "bars", LabelSettings(), folder / "labels", 1)
    values, labels, days = B.read_features(folder / "features"), B.read_labels(folder / "labels"), index["session"]
    own = values[["session", "symbol"]].assign(regime="normal")
    samples = build_samples(values, [f.name for f in features], 252, labels, pd.DataFrame({"session": days, "regime": "normal", "vix": 15.0}), own, pd.DataFrame({"symbol": own["symbol"].unique(), "sector": "Energy"}))
    settings = load_settings(environment={}, memory={"mix": "fixed"}, run={"threads": 2}, training={"min_samples_for_training": 100}, splits={"min_train_rows": 100})
    nothing = labels.iloc[:0][["session", "symbol", "label_known_at"]].assign(event="", event_weight=0.0, known_from=labels["session"].iloc[:0])
    folds = cutoffs(days, int(days.iloc[0].year) + 3, days.iloc[-1])
    plan, _ = make_plan(samples, nothing, folds, days.iloc[-1], settings, days)
    return {"memory": {"samples": samples, "plan": plan, "folds": folds}, "features": {"feature_set": {"version": "benchmark"}}}, settings


def training(folder: Path, symbols: int, sessions: int, pairs: int, idle: float) -> dict[str, Any]:
    """With the cluster that is there: base models by their tasks alone, and after workers; boosting through `xgboost.dask`, and locally on the same rows."""
    from mltrader import blocks as B
    from mltrader import boosting, fits, forest
    from mltrader.artifacts import ArtifactStore, FoldCache

    os.environ[B.ENGINE] = "threads"
    made, settings = panel_of(folder, symbols, sessions, 40)
    as_of, kept = made["memory"]["samples"]["label_known_at"].max(), ArtifactStore(folder / "artifacts")
    entries = {task: {name: kept.put(value).as_dict() for name, value in values.items()} for task, values in made.items()}

    def tasks(cache: Any) -> list[str]:
        return [module.run(made | {"fold_cache": cache}, settings, as_of).models["model"].content_digest() for module in (forest, boosting)]

    def after_workers(number: int) -> tuple[list[str], float, dict[str, int]]:
        place = folder / f"folds{number}"
        source, began = fits.Source.of(kept.folder, place, entries), time.perf_counter()
        said = fits.fit_ahead(source, settings, as_of)
        return tasks(FoldCache(place, ArtifactStore(place / "files"))), time.perf_counter() - began, said

    tasks({})  # compiled code is there
    os.environ[B.ENGINE] = "dask"
    after_workers(0)
    found: dict[str, Any] = {"pairs": []}
    for number in range(1, pairs + 1):
        place = folder / f"alone{number}"
        alone, ours = timed(tasks, FoldCache(place, ArtifactStore(place / "files"))), timed(after_workers, number)
        digests, _, said = ours.pop("made")
        assert digests == alone.pop("made") and said["made"] == said["fits"]
        found["pairs"].append((ours["cpu"] - idle * ours["wall"], alone["cpu"], ours["wall"], alone["wall"]))
    source = fits.Source.of(kept.folder, folder / "folds1", entries)
    again = timed(fits.fit_ahead, source, settings, as_of)
    found["fits"], found["again"] = again["made"]["fits"], (again["cpu"] - idle * again["wall"]) / again["made"]["fits"]
    return found | beyond(folder, settings.boosting, idle)


def beyond(folder: Path, section: Any, idle: float) -> dict[str, Any]:
    """By the engine that is set: boosting from folders through workers, and locally on the same rows with the same weights."""
    from mltrader import blocks as B
    from mltrader import cluster as C
    from mltrader.boosting import XGBoostModel
    from mltrader.splits import log_loss_rows

    section = section.model_copy(update={"max_samples": 1.0})  # the draw of rows is another one in blocks
    labels = B.read_labels(folder / "labels")
    cutoff = labels["session"].quantile(0.7)
    ours = timed(lambda: C.fit_blocks(folder / "features", folder / "labels", section, cutoff, workers=2, force=True))
    model, record = ours["made"]
    names = list(model.feature_names_in_)
    rows = pd.concat([C.known_rows(folder / "labels", own, None, cutoff) for own in B._document(folder / "labels", "labels.json", "")["symbols"]])
    rows["weight"] = np.concatenate([C.by_uniqueness(part) for _, part in rows.groupby(pd.factorize(rows["symbol"])[0], sort=False)])
    values = B.read_features(folder / "features")
    learn, later = rows.merge(values, on=["session", "symbol"]), labels[labels["session"] > rows["label_known_at"].max()].merge(values, on=["session", "symbol"])
    assert len(learn) == record["rows"] == record["learned"] and not record["bit_equal"]
    there = timed(lambda: XGBoostModel(section, 42, 1).fit(learn[names], learn["label"].to_numpy(dtype=np.int64), learn["weight"] / learn["weight"].mean()))
    y, (said, alone) = later["label"].to_numpy(dtype=np.int64), [one.predict_proba(later[names]) for one in (model, there["made"])]
    prior = np.bincount(learn["label"], minlength=3) / len(learn)
    losses = [float(log_loss_rows(y, proba).mean()) for proba in (said, alone, np.tile(prior, (len(y), 1)))]
    return {"losses": losses, "equal": float((said.argmax(1) == alone.argmax(1)).mean()), "cpu": [ours["cpu"] - idle * ours["wall"], there["cpu"]], "wall": [ours["wall"], there["wall"]], "rows": len(learn), "later": len(later),
            "columns": len(names), "workers": record["workers"]}


def large(folder: Path, symbols: int, sessions: int, engine: str) -> dict[str, Any]:
    """In a process of its own: bars file to blocks, features, labels, and pieces read back; a sample is compared with the whole-panel functions."""
    from mltrader import blocks as B
    from mltrader import features as F
    from mltrader.config import LabelSettings

    os.environ[B.ENGINE] = engine
    index, features = pd.read_parquet(folder / "index.parquet"), chosen(COUNT)
    steps = {"bars to blocks": timed(B.write_blocks, folder / "bars.parquet", folder / "bars", B.SIZE, 2)}
    (folder / "bars.parquet").unlink()
    sectors = {f"S{i:05d}": f"sector {i % 11}" for i in range(symbols)}
    steps["features"] = timed(B.write_features, folder / "bars", index, features, folder / "features", 2, sectors)
    steps["labels"] = timed(B.write_labels, folder / "bars", LabelSettings(), folder / "labels", 2)
    names = [f.name for f in features]
    year = steps["a year of all symbols, 20 columns"] = timed(B.read_features, folder / "features", index["session"].iloc[-252], None, None, names[-20:])
    few = steps["50 symbols of all years, all columns"] = timed(B.read_features, folder / "features", None, None, [f"S{i:05d}" for i in range(0, symbols, -(-symbols // 50))])
    panel = pd.concat([B.read_block(folder / "bars" / "0000.parquet")])
    own = [f for f in features if f.scope != "session"]
    some = panel[panel["symbol"].isin(few["made"]["symbol"].unique())].reset_index(drop=True)
    whole = F.compute(some, index, own)
    back = few["made"][few["made"]["symbol"].isin(some["symbol"].unique())].reset_index(drop=True)
    pd.testing.assert_frame_equal(back[whole.columns], whole, check_exact=True)
    ranks = year["made"]["rank_return_20"]
    assert len(year["made"]) == 252 * symbols and ranks.between(0, 1).all() and abs(ranks.mean() - 0.5) < 1e-3
    size = {name: sum(p.stat().st_size for p in (folder / name).rglob("*.parquet")) / 1e9 for name in ("bars", "features", "labels")}
    return {"steps": {name: {"cpu": one["cpu"], "wall": one["wall"]} for name, one in steps.items()}, "gb": size, "rows": symbols * sessions, "features": len(features), "blocks": -(-symbols // B.SIZE)}


def watched(stage: str, *arguments: Any) -> dict[str, Any]:
    """A stage in a process of its own, with the peak of the resident memory of it and its children in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as out, subprocess.Popen([sys.executable, __file__, "--stage", stage, *map(str, arguments)], stdout=out, env=environment, cwd=ROOT) as made:
        tree, peak = psutil.Process(made.pid), 0
        while made.poll() is None:
            try:
                peak = max(peak, sum(one.memory_info().rss for one in [tree, *tree.children(recursive=True)]))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05)
        out.seek(0)
        said = out.read().splitlines()
    if made.returncode or not said:
        sys.exit(f"{stage} failed with {made.returncode}")
    return {**json.loads(said[-1]), "peak": peak}


def run_large(folder: Path, symbols: int, sessions: int, engine: str) -> list[dict[str, Any]]:
    """Lines about a large panel in `folder`, which is left empty."""
    needed = symbols * sessions * (COUNT * 4 * 1.1 + 300)
    if (free := shutil.disk_usage(folder).free) < needed:
        sys.exit(f"{folder} has {free / 1e9:.0f} GB free, {symbols} symbols need {needed / 1e9:.0f}; name another --folder, or fewer --symbols.")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        place = Path(place)
        write_bars(place / "bars.parquet", symbols, sessions).to_parquet(place / "index.parquet")
        found = watched("large", place, symbols, sessions, engine)
    text = f"{symbols:,} symbols x {sessions:,} sessions x {found['features']} features ({engine})"
    lines = [line(f"{text}: peak memory of all processes", found["peak"] / GIB, 8.0, found["peak"] <= 8 * GIB, f"{found['rows'] / 1e6:.1f} M rows, {found['rows'] * found['features'] * 4 / GIB:.1f} GiB of values, on disk "
                  + ", ".join(f"{name} {gb:.1f} GB" for name, gb in found["gb"].items()), unit="GiB", least=False)]
    return lines + [line(f"  {name}", one["cpu"], note=f"{one['wall']:.1f} s of wall time", unit="CPU-s") for name, one in found["steps"].items()]


def run_compare(symbols: int, sessions: int, pairs: int, *sizes: int) -> list[dict[str, Any]]:
    """Lines about engines."""
    with tempfile.TemporaryDirectory() as place:
        found = watched("compare", place, symbols, sessions, pairs, *sizes)
    lines = []
    for workers in sizes:
        start, task, first = (found[str((key, workers))] for key in ("start", "task", "first"))
        lines += [line(f"start of a local cluster, {workers} worker(s)", start["cpu"], note=f"{start['wall']:.1f} s of wall time; the first job costs {first['cpu']:.1f} CPU-s, imports and compiled code of the workers among them", unit="CPU-s"),
                  line(f"an empty task, {workers} worker(s)", task["wall"], 30.0, task["wall"] <= 30, f"wall time; {task['cpu']:.1f} ms of CPU; a cluster that waits takes {task['idle']:.2f} CPU-s a second", unit="ms", least=False)]
        pairs_ = list(zip(found["threads"][str(workers)], found["dask"][str(workers)], strict=True))
        ratio = interval([b["cpu"] / a["cpu"] for a, b in pairs_])
        cost = [statistics.median(one[k]["cpu"] for one in pairs_) for k in (0, 1)]
        wall = [statistics.median(one[k]["wall"] for one in pairs_) for k in (0, 1)]
        lines.append(line(f"write_features, {found['blocks']} blocks: Dask over threads, {workers} at a time", ratio[0], 1.25, ratio[1] <= 1.25, f"equal bits; wall {wall[1]:.2f} against {wall[0]:.2f} s", unit="CPU-s", spread=ratio,
                          ours=cost[1], peer=cost[0], against="threads", least=False))
    there = interval([a["cpu"] / b["cpu"] for a, b in found["memory"]])
    cost = [statistics.median(one[k]["cpu"] for one in found["memory"]) for k in (0, 1)]
    lines.append(line("features of a panel in memory, sent to 2 workers and back, over the whole at once", there[0], note="equal bits; why tasks that have their panel in memory use threads", unit="CPU-s", spread=there, ours=cost[0], peer=cost[1],
                      against="features.compute", least=False))
    lines += lines_of_training(found["training"])
    for engine in ("threads", "dask") if len(sizes) > 1 else ():
        speed = interval([a["wall"] / b["wall"] for a, b in zip(found[engine]["1"], found[engine]["2"], strict=True)])
        lines.append(line(f"wall time of 1 over 2 at a time, {engine}", speed[0], note=f"[{speed[1]:.2f}, {speed[2]:.2f}]; says something on an idle machine only"))
    return lines


def lines_of_training(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines about fits on workers."""
    ratio = interval([ours / alone for ours, alone, *_ in found["pairs"]])
    ours, alone, *walls = (statistics.median(one[k] for one in found["pairs"]) for k in range(4))
    (said, local, prior), cost, wall = found["losses"], found["cpu"], found["wall"]
    return [line(f"{found['fits']} fits of both base models by 2 workers and the tasks after them, over the tasks alone", ratio[0], 1.5, ratio[1] <= 1.5, f"equal bits; wall {walls[0]:.1f} against {walls[1]:.1f} s by 2 threads",
                 unit="CPU-s", spread=ratio, ours=ours, peer=alone, against="threads", least=False),
            line("  a fit that is in the cache already, handed to a worker", 1000 * found["again"], unit="CPU-ms"),
            line(f"xgboost.dask, {found['workers']} workers, {found['rows']:,} rows x {found['columns']} features: log-loss of {found['later']:,} later rows minus that of local training", said - local, 0.02, abs(said - local) <= 0.02,
                 f"NOT bit-equal: {found['equal']:.1%} of argmax agree; {said:.4f} and {local:.4f}, class shares {prior:.4f}", unit="nats", least=False),
            line("  its CPU-seconds over those of local training", cost[0] / cost[1], note=f"reading the blocks included; wall {wall[0]:.1f} against {wall[1]:.1f} s", unit="CPU-s", ours=cost[0], peer=cost[1], against="XGBoostModel.fit", least=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--only-large", action="store_true")
    parser.add_argument("--symbols", type=int, default=5000)
    parser.add_argument("--engine", choices=("threads", "dask"), default="threads", help="of the large panel")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage, place, *rest = options.stage
        work = {"compare": lambda: compare(Path(place), *map(int, rest)), "large": lambda: large(Path(place), int(rest[0]), int(rest[1]), rest[2])}[stage]
        print(json.dumps(work()))
        return
    lines, missing = [], []
    if not options.only_large:
        try:
            import distributed  # noqa: F401

            lines += run_compare(*((96, 2520, 3, 2) if options.quick else (480, 2520, 9, 1, 2)))
        except ImportError:
            missing.append("dask: pip install 'dask[distributed]'")
    if options.large or options.only_large:
        lines += run_large(options.folder, options.symbols, SESSIONS, options.engine)
    elif options.quick:
        lines += run_large(options.folder, 96, 1260, "threads")
    if options.json:
        print(json.dumps(document(lines, ("dask", "distributed", "pyarrow", "pandas", "numpy", "numba", "xgboost", "xgboost-cpu"), options.quick, missing), indent=1))
    else:
        show(lines, missing)
    sys.exit(any(not one["ok"] for one in lines))


if __name__ == "__main__":
    main()
