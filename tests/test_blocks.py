"""One map over blocks: equal bits by threads, by Dask and for the whole; a worker that is killed changes nothing; what cannot work is refused."""
import functools
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from distributed import WorkerPlugin
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import blocks as B
from mltrader import boosting, fits, forest, orchestrator, reports
from mltrader import cluster as C
from mltrader import features as F
from mltrader.artifacts import ArtifactStore, FoldCache, publish, sealed
from mltrader.boosting import XGBoostModel
from mltrader.checks import InputError
from mltrader.config import LabelSettings, load_settings
from mltrader.core import Clock, ConfigError, DataError, IntegrityError, MltraderError
from mltrader.drift import Reference
from mltrader.forest import RandomForestModel
from mltrader.labels import triple_barrier
from mltrader.memory import build_samples, cutoffs, make_plan
from mltrader.splits import log_loss_rows
from mltrader.treeshap import explainer_of


def made(symbols: int, sessions: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """A panel with holes, late starts, early ends and a symbol that comes back; an index frame; sectors of most symbols."""
    draw, days = np.random.default_rng(seed), pd.bdate_range("2012-01-02", periods=sessions).as_unit("us")
    close = 50 * np.exp(draw.normal(0, 0.02, (sessions, symbols)).cumsum(axis=0))
    high, low = close * (1 + draw.random(close.shape) * 0.02), close * (1 - draw.random(close.shape) * 0.02)
    names = [f"S{i:02d}" for i in range(symbols)]
    panel = pd.DataFrame({"session": np.repeat(days, symbols), "symbol": np.tile(names, sessions), "open": (0.5 * (high + low)).ravel(), "high": high.ravel(), "low": low.ravel(), "close": close.ravel(),
                          "adj_close": (close * 0.98).ravel(), "volume": np.exp(draw.normal(13, 0.5, close.size))})
    there = draw.random(close.shape) > 0.02
    there[:, 0] = True
    there[: sessions // 2, 1], there[sessions // 3:, 2], there[sessions // 3:sessions // 2, 3] = False, False, False
    panel.loc[panel["symbol"] == "S04", ["open", "high", "low"]] = np.nan
    index = pd.DataFrame({"session": days, "index_close": 1000 * np.exp(draw.normal(0, 0.01, sessions).cumsum()), "vix_close": 20 * np.exp(draw.normal(0, 0.1, sessions)),
                          **{f"rate_{t}": 3 + draw.normal(0, 0.03, sessions).cumsum() for t in ("3m", "2y", "10y")}})
    return panel[there.ravel()].reset_index(drop=True), index, {name: f"sector {i % 4}" for i, name in enumerate(names[:-2])}


PANEL, INDEX, SECTORS = made(60, 330)
same = functools.partial(pd.testing.assert_frame_equal, check_exact=True)


@pytest.fixture(scope="module")
def whole():
    return F.compute(PANEL, INDEX, F.FEATURES, 1, SECTORS)


@pytest.fixture(scope="module")
def model(whole):
    """A small booster, as bytes, and the rows that it is asked about."""
    rows = whole.iloc[-2053:]  # blocks of 512, and a rest of 5
    X = rows[[f.name for f in F.MOMENTUM]].reset_index(drop=True)
    fitted = XGBoostModel(settings=load_settings(environment={}, boosting={"rounds": 4, "max_depth": 3}).boosting, seed=1)
    fitted.fit(X, np.arange(len(X)) % 3, np.ones(len(X)))
    return fitted.to_bytes(), X


def everything(whole, model, folder, threads):
    """All that runs by blocks, with the engine that is set."""
    frame = whole[["session", "symbol", *(f.name for f in F.MOMENTUM)]]
    reference = B.reference_in_blocks(Reference.of, frame, (5, 20), threads, size=10)
    B.write_blocks(PANEL, folder / "bars", 16, threads)
    B.write_features(folder / "bars", INDEX, F.FEATURES, folder / "features", threads, SECTORS, window=100)
    B.write_labels(folder / "bars", LabelSettings(), folder / "labels", threads)
    return {"features": B.features_in_blocks(PANEL, INDEX, F.FEATURES, threads, SECTORS, size=13), "labels": B.labels_in_blocks(PANEL, LabelSettings(), threads, size=7),
            "explained": B.explain_in_blocks(explainer_of, XGBoostModel.from_bytes, *model, threads, rows=512), "reference": reference, "drift": B.drift_in_blocks(reference, frame, 3, threads, size=7),
            "features on disk": B.read_features(folder / "features"), "labels on disk": B.read_labels(folder / "labels")}


def agree(found, whole, model):
    """Each result is what the whole-panel function gives, to the last bit."""
    labels = triple_barrier(PANEL, LabelSettings())
    for kind, expected in (("features", whole), ("labels", labels)):
        same(found[kind], expected)
        same(found[f"{kind} on disk"], expected)
    np.testing.assert_array_equal(found["explained"], explainer_of(XGBoostModel.from_bytes(model[0])).values(model[1]))
    frame = whole[["session", "symbol", *(f.name for f in F.MOMENTUM)]]
    reference = Reference.of(frame, (5, 20))
    for name in ("edges", "counts", "low", "median", "high", "psi_limit", "peaks"):
        np.testing.assert_array_equal(getattr(found["reference"], name), getattr(reference, name), err_msg=name)
    np.testing.assert_array_equal(found["reference"].null.values, reference.null.values)
    assert found["reference"].features == reference.features and len(reference.null.values) > 3
    np.testing.assert_array_equal(found["drift"], reference.measure(frame, 3))


def test_threads_give_the_bits_of_the_whole(whole, model, tmp_path):
    agree(everything(whole, model, tmp_path, 2), whole, model)


@pytest.fixture(scope="module")
def cluster():
    """The local cluster of two workers that all tests here share."""
    client = B._client("", 2)
    yield client
    B._client.cache_clear()
    client.cluster.close()
    client.close()


@pytest.fixture
def dask(cluster, monkeypatch):
    monkeypatch.setenv(B.ENGINE, "dask")
    monkeypatch.delenv(B.ADDRESS, raising=False)
    return cluster


def test_dask_gives_the_bits_of_the_whole(dask, whole, model, tmp_path):
    agree(everything(whole, model, tmp_path, 2), whole, model)


def test_the_cluster_is_on_this_machine_alone_and_encrypted(dask):
    me = psutil.Process()
    listens = [c.laddr.ip for p in (me, *me.children(recursive=True)) for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listens and set(listens) <= {"127.0.0.1", "::1"}
    assert dask.scheduler_info()["address"].startswith("tls://127.0.0.1") and all(n == 1 for n in dask.nthreads().values())


def slow(part):
    """Says in a file's name which process has begun it; from block 4 on, none ends before a worker has been killed."""
    number, folder = part
    (folder / f"{number}.{os.getpid()}").touch()
    while number >= 4 and not (folder / "killed").exists():
        time.sleep(0.01)
    return number * number


def test_a_killed_worker_changes_nothing(dask, tmp_path):
    """One of two workers is killed with blocks in its hands: each block is answered, some were begun twice."""
    killed = []

    def parts():
        for number in range(14):
            if number == 6:  # three are handed out to a worker at a time, and one worker may still be on its way: blocks 4 and 5 are under way
                while not (begun := list(tmp_path.glob("[4-9].*"))):
                    time.sleep(0.01)
                killed.append(int(begun[-1].suffix[1:]))
                os.kill(killed[0], signal.SIGKILL)
                (tmp_path / "killed").touch()
            yield number, tmp_path

    assert B.map_blocks(slow, parts(), 2) == [k * k for k in range(14)]
    begun = [path.stem for path in tmp_path.glob("*.*")]
    assert killed and len(begun) > len(set(begun)) == 14
    assert not psutil.pid_exists(killed[0]) or psutil.Process(killed[0]).status() == psutil.STATUS_ZOMBIE


def refuse(number):
    raise DataError(f"block {number} is bad")


def test_an_error_of_a_block_is_passed_on(dask):
    with pytest.raises(DataError, match="block 0 is bad"):
        B.map_blocks(refuse, range(5), 2)


@pytest.mark.parametrize("engine", ["threads", "dask"])
def test_a_closure_is_refused_by_both_engines(engine, monkeypatch):
    monkeypatch.setenv(B.ENGINE, engine)
    out = []
    with pytest.raises(ConfigError, match="top of a module"):
        B.map_blocks(lambda k: out.append(k), range(3))


def test_engines_that_are_not_there(monkeypatch):
    monkeypatch.setenv(B.ENGINE, "ray")
    with pytest.raises(ConfigError, match="'ray' is no engine"):
        B.map_blocks(abs, [1])
    assert load_settings(environment={B.ENGINE: "dask"})  # no setting, and not refused as one
    monkeypatch.setattr(B, "WAIT", "0.3s")
    monkeypatch.setenv(B.ENGINE, "dask")
    monkeypatch.setenv(B.ADDRESS, "tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no Dask scheduler .* answers at DASK_SCHEDULER_ADDRESS='tcp://127.0.0.1:9'"):
        B.map_blocks(abs, [1])
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(ConfigError, match="pip install"):
        B._client("", 9)


def test_a_worker_with_other_code_is_refused(dask, monkeypatch):
    """The cluster answers for its code; ours has changed since."""
    B._refuse_other_code(dask.run(B._code))
    monkeypatch.setattr(B, "_code", lambda: "changed")
    with pytest.raises(ConfigError, match="another mltrader"):
        B._refuse_other_code({"tcp://a": "as before"})
    with pytest.raises(ConfigError, match="No module named"):
        B._refuse_other_code({"tcp://a": ModuleNotFoundError("No module named 'mltrader'")})


# ------------------------------------------------------------------------------------------------------------------------------------------------ fits
SMALL_FITS = {"memory": {"mix": "fixed"}, "forest": {"n_estimators": 6, "min_samples_leaf": 20}, "boosting": {"rounds": 6}, "tuning": {"boosting": [{"max_depth": 2}], "min_folds": 1},
              "run": {"threads": 2}, "splits": {"min_train_rows": 100}, "training": {"min_samples_for_training": 100}}


@pytest.fixture(scope="module")
def history():
    """What the memory task leaves, of three symbols and six years: inputs of the base models' tasks, and the last session."""
    draw, days, names = np.random.default_rng(5), pd.bdate_range("2001-01-01", "2006-12-29").as_unit("us"), [f"S{i}" for i in range(3)]
    grid = pd.MultiIndex.from_product([days, names], names=["session", "symbol"]).to_frame(index=False).astype({"symbol": "str"})
    x, at = draw.normal(size=(len(grid), 4)).astype("f4"), np.searchsorted(days, grid["session"])
    inside = at + 16 < len(days)
    label = np.where(draw.uniform(size=len(grid)) < np.where(x[:, 0] > 0.5, 0.8, 0.2), 0, draw.integers(1, 3, len(grid)))
    truth = grid[inside].assign(label=label[inside].astype("int8"), label_end=days[at[inside] + 10], label_known_at=days[at[inside] + 16], return_pct=0.0, forward_log_return=0.0)
    market = pd.DataFrame({"session": days, "regime": "normal", "vix": 15.0})
    columns = list("abcd")
    samples = build_samples(pd.concat([grid, pd.DataFrame(x, columns=columns)], axis=1), columns, 20, truth, market, grid.assign(regime="normal"), pd.DataFrame({"symbol": names, "sector": "Energy"}))
    folds = cutoffs(days, 2004, days[-1])
    none = truth.iloc[:0].assign(event="", event_weight=0.0, known_from=truth["session"].iloc[:0])
    plan, _ = make_plan(samples, none, folds, days[-1], load_settings(environment={}, **SMALL_FITS), days)
    return {"memory": {"samples": samples, "plan": plan, "folds": folds}, "features": {"feature_set": {"version": "example"}}, "market": {}}, days[-1]


def a_run(history, folder, **more):
    """A run whose tasks before the base models are done."""
    inputs, as_of = history
    kept = ArtifactStore(folder / "artifacts")
    for task, values in inputs.items():
        entries = {name: kept.put(value).as_dict() for name, value in values.items()}
        document = {"task": task, "as_of": f"{as_of:%Y-%m-%d}", "entries": entries, "metrics": {}}
        publish(folder / "products" / task / "outputs.json", sealed(document | {"digest": reports.result_digest(document)}))
    return orchestrator.Run("run_x", 1, "cycle", "test", None, load_settings(environment={}, **{**SMALL_FITS, **more}), Clock(), None, products=folder / "products")


def fitted_by_the_task(monkeypatch, history, task, settings, cache):
    """What the task gives with a cache, and how many models it fitted itself."""
    count, kind = [], {forest: RandomForestModel, boosting: XGBoostModel}[task]
    with monkeypatch.context() as patch:
        patch.setattr(kind, "fit", lambda self, *a, real=kind.fit, **k: count.append(1) or real(self, *a, **k))
        made = task.run(history[0] | {"fold_cache": cache}, settings, history[1])
    return made, len(count)


def equal_outputs(a, b):
    assert {name: model.content_digest() for name, model in a.models.items()} == {name: model.content_digest() for name, model in b.models.items()}
    assert a.documents == b.documents and a.metrics == b.metrics and a.rows == b.rows
    for name in a.frames:
        same(a.frames[name], b.frames[name])


class Slowly(WorkerPlugin):
    """In each worker, also one that is started again: a fit says so in a file, and takes its time."""

    name = "slowly"

    def __init__(self, folder):
        self.folder = folder

    def setup(self, worker):
        self.real = fits.fit_of
        fits.fit_of = self.fit_of

    def teardown(self, worker):
        fits.fit_of = self.real

    def fit_of(self, base, variant, settings):
        fit, recipe = self.real(base, variant, settings)

        def slow_fit(*arguments):
            (self.folder / f"{base} {variant} {len(arguments[0])}.{os.getpid()}").touch()
            time.sleep(0.2)
            return fit(*arguments)

        return slow_fit, recipe


def test_fits_of_workers_are_those_of_the_task_also_if_one_is_killed(dask, history, tmp_path, monkeypatch):
    """Both base models ahead of their tasks, one of two workers killed in a fit: equal outputs, and nothing is left for the tasks but the refit of the candidate that was chosen."""
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    run, notes = a_run(history, tmp_path), tmp_path / "notes"
    notes.mkdir()
    dask.register_plugin(Slowly(notes))

    def kill():
        while not (begun := list(notes.iterdir())):
            time.sleep(0.005)
        os.kill(int(begun[-1].suffix[1:]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert orchestrator.fit_ahead(run, "market") is None
    assert orchestrator.fit_ahead(run, "forest") == {"fits": 4, "made": 4} and orchestrator.fit_ahead(run, "boosting") == {"fits": 6, "made": 6}
    killer.join()
    dask.unregister_worker_plugin("slowly")
    begun = [path.stem for path in notes.iterdir() if path.stem.startswith("forest")]
    assert len(begun) > len(set(begun)) == 4  # one was begun twice
    cache = FoldCache(tmp_path / "folds", ArtifactStore(tmp_path / "folds" / "files"))
    for task, left in ((forest, 0), (boosting, 1)):
        alone, all_fits = fitted_by_the_task(monkeypatch, history, task, run.settings, {})
        found, fits = fitted_by_the_task(monkeypatch, history, task, run.settings, cache)
        equal_outputs(found, alone)
        assert (fits, all_fits) == (left, 4 if task is forest else 7)
    assert orchestrator.fit_ahead(run, "boosting") == {"fits": 6, "made": 0}


def test_a_damaged_or_planted_fit_is_noticed(history, tmp_path, monkeypatch):
    """Red team: a byte of one prediction, and one of one model; predictions of another year under a year's name."""
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    monkeypatch.setenv(B.ENGINE, "threads")
    run = a_run(history, tmp_path)
    assert orchestrator.fit_ahead(run, "forest") is None  # threads: the task does it
    entries = {task: reports.read_outputs(run.products / task / "outputs.json")["entries"] for task in history[0]}
    source = fits.Source.of(tmp_path / "artifacts", tmp_path / "folds", entries)
    assert fits.fit_ahead(source, run.settings, history[1], ("forest",)) == {"fits": 4, "made": 4}
    cache = FoldCache(tmp_path / "folds", ArtifactStore(tmp_path / "folds" / "files"))
    index = {key: json.loads((tmp_path / "folds" / f"{key}.json").read_bytes()) for key in cache}
    frames, models = ([key for key in index if index[key]["kind"] == kind] for kind in ("frame", "forest"))
    assert len(frames) == 3 and len(models) == 4
    alone, _ = fitted_by_the_task(monkeypatch, history, forest, run.settings, {})
    for planted in (lambda: (tmp_path / "folds" / f"{frames[0]}.json").write_bytes((tmp_path / "folds" / f"{frames[1]}.json").read_bytes()),
                    lambda: damage(cache.artifacts.path(index[frames[2]]["sha256"])), lambda: damage(cache.artifacts.path(index[models[3]]["sha256"]))):
        planted()
        found, made = fitted_by_the_task(monkeypatch, history, forest, run.settings, cache)
        equal_outputs(found, alone)
        assert made <= 1


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_years_that_learn_from_errors_are_one_piece_of_work(history, tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    run = a_run(history, tmp_path, replay={"mode": "errors"})
    entries = {task: reports.read_outputs(run.products / task / "outputs.json")["entries"] for task in history[0]}
    source = fits.Source.of(tmp_path / "artifacts", tmp_path / "folds", entries)
    assert len(fits.work_of("boosting", (2004, 2005, 2006), run.settings)) == 2
    assert fits.fit_ahead(source, run.settings, history[1], ("boosting",)) == {"fits": 6, "made": 6}
    cache = FoldCache(tmp_path / "folds", ArtifactStore(tmp_path / "folds" / "files"))
    alone, _ = fitted_by_the_task(monkeypatch, history, boosting, run.settings, {})
    found, made = fitted_by_the_task(monkeypatch, history, boosting, run.settings, cache)
    equal_outputs(found, alone)
    assert made == 1 and len(alone.frames["replayed"])


def test_a_task_is_fitted_ahead_before_it_runs(history, tmp_path, monkeypatch):
    run, said = a_run(history, tmp_path), []
    monkeypatch.setattr(orchestrator, "fit_ahead", lambda run, name: said.append(name))
    monkeypatch.setattr(reports, "open_task", lambda *a, **k: said.append("opened") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        orchestrator.run_task(run, "forest")
    assert said == ["forest", "opened"]


# ------------------------------------------------------------------------------------------------------------------------------------------- xgboost.dask
LEARN = load_settings(environment={}, boosting={"rounds": 12, "max_samples": 1.0, "learning_rate": 0.3, "colsample_bytree": 0.5}).boosting


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Features and labels of `PANEL` as folders, a cut-off, and the rows that were known by then."""
    place, some = tmp_path_factory.mktemp("panel"), [*F.MOMENTUM, *[f for f in F.FEATURES if f.scope == "session"][:2]]
    B.write_blocks(PANEL, place / "bars", 16)
    B.write_features(place / "bars", INDEX, some, place / "features", window=100)
    B.write_labels(place / "bars", LabelSettings(), place / "labels")
    cutoff = INDEX["session"][280]
    labels = B.read_labels(place / "labels")
    known = labels[labels["label_known_at"] <= cutoff].merge(B.read_features(place / "features"), on=["session", "symbol"])
    return place / "features", place / "labels", cutoff, known, [f.name for f in some]


def test_training_on_workers_comes_near_local_training_and_says_that_it_is_not_equal(dask, folders):
    features, labels, cutoff, known, names = folders
    model, record = C.fit_blocks(features, labels, LEARN, cutoff, weigh=ones, workers=2, force=True)
    X, y = known[names], known["label"].to_numpy(dtype=np.int64)
    assert record["bit_equal"] is False and record["rows"] == record["learned"] == len(known) and record["workers"] == 2 and record["blocks"] == 4
    assert {"xgboost", "dask", "distributed"} <= set(record["libraries"])
    local = XGBoostModel(LEARN, 42).fit(X, y, np.ones(len(X)))
    said, alone = model.predict_proba(X), local.predict_proba(X)
    losses = [log_loss_rows(y, proba).mean() for proba in (said, alone)]
    prior = log_loss_rows(y, np.tile(np.bincount(y, minlength=3) / len(y), (len(y), 1))).mean()
    assert abs(losses[0] - losses[1]) < 0.02 < prior - max(losses)  # less than what either has learned
    assert (said.argmax(1) == alone.argmax(1)).mean() > 0.8
    again = XGBoostModel.from_bytes(model.to_bytes())
    assert C.record_of(again) == record and C.record_of(local) is None and list(again.feature_names_in_) == names
    np.testing.assert_array_equal(again.predict_proba(X), said)
    assert again.content_digest() == model.content_digest() != local.content_digest()


def ones(rows):
    return np.ones(len(rows))


def test_what_comes_later_is_not_learned_from(folders, tmp_path):
    """Red team: labels that were known after the cut-off are absurd, and nobody notices, because nobody looks."""
    features, labels, cutoff, known, names = folders
    planted = tmp_path / "labels"
    shutil.copytree(labels, planted)
    for path in planted.glob("*.parquet"):
        frame = pd.read_parquet(path)
        late = frame["label_known_at"] > cutoff
        assert late.any()
        frame.assign(label=frame["label"].mask(late, 77)).to_parquet(path, index=False)
    own = json.loads((labels / "labels.json").read_text())["symbols"][1]
    part = (own, None, cutoff, C.by_uniqueness, names, 1.0, 1.0, 0)
    for ours, theirs in zip(C._learned((features, planted, *part)), C._learned((features, labels, *part)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match="77|label"):
        C._learned((features, planted, own, None, INDEX["session"].iloc[-1], *part[3:]))


def test_training_on_workers_is_refused_where_it_is_not_needed_or_cannot_be(folders, tmp_path, monkeypatch):
    features, labels, cutoff, known, names = folders
    with pytest.raises(ConfigError, match="MLTRADER_ENGINE=dask"):
        C.fit_blocks(features, labels, LEARN, cutoff)
    monkeypatch.setattr(C, "engine", lambda: "dask")  # blocks are counted by threads
    with pytest.raises(ConfigError, match=rf"{len(known):,} rows of {len(names)} features .* `force=True`"):
        C.fit_blocks(features, labels, LEARN, cutoff)
    with pytest.raises(ConfigError, match="early_stopping"):
        C.fit_blocks(features, labels, LEARN.model_copy(update={"early_stopping": 5}), cutoff)
    with pytest.raises(DataError, match="no label .* was known at 2012-01-04"):
        C.fit_blocks(features, labels, LEARN, "2012-01-04")
    B.write_labels(features.parent / "bars", LabelSettings(), tmp_path / "labels")
    document = json.loads((tmp_path / "labels" / "labels.json").read_text())
    (tmp_path / "labels" / "labels.json").write_text(json.dumps(document | {"symbols": document["symbols"][::-1]}))
    with pytest.raises(DataError, match="have other blocks"):
        C.fit_blocks(features, tmp_path / "labels", LEARN, cutoff)


def fatal_at(which, number):
    """Block number `which` ends its process."""
    if number == which:
        os._exit(1)
    return number


def test_a_block_that_kills_every_worker_is_named(dask):
    """Last of those with a cluster: it is worth nothing afterwards."""
    dask.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    with pytest.raises(MltraderError, match="block 1 has brought down 1 worker"):
        B.map_blocks(functools.partial(fatal_at, 1), range(3), 2)


SMALL, SMALL_INDEX, _ = made(9, 90, 3)


@settings(max_examples=12, deadline=None)
@given(size=st.integers(1, 10), rows=st.integers(1, len(SMALL)), preset=st.sampled_from(["seed", "volatility"]), columns=st.sampled_from([(), ("open",), ("high", "low"), ("open", "high", "low")]))
def test_blocks_of_any_size_label_alike(size, rows, preset, columns):
    panel, rule = SMALL.iloc[:rows].drop(columns=list(columns)), LabelSettings(preset=preset, horizon=5)
    same(B.labels_in_blocks(panel, rule, size=size), triple_barrier(panel, rule))


def test_the_choice_of_touch_is_that_of_the_whole():
    """Red team: a symbol without high and low, alone in its block, would choose the close by itself."""
    rule = LabelSettings(horizon=5, min_input_share=0.8)
    assert set(triple_barrier(SMALL, rule)["touch_source"]) == {"high_low"}
    alone = SMALL[SMALL["symbol"] == "S04"].reset_index(drop=True)
    assert set(triple_barrier(alone, rule)["touch_source"]) == {"close"}
    same(B.labels_in_blocks(SMALL, rule, size=1), triple_barrier(SMALL, rule))


def test_a_window_is_read_without_the_rest(tmp_path, monkeypatch):
    """Sessions, symbols and columns are chosen in the files; a folder that is not whole, or is mixed up, is refused."""
    some = [f for f in F.FEATURES if f.scope == "session"][:3] + list(F.MOMENTUM[:3])
    whole = F.compute(SMALL, SMALL_INDEX, some)
    SMALL.sample(frac=1, random_state=1).rename(columns={"session": "date"}).to_csv(tmp_path / "bars.csv", index=False)
    said = B.write_blocks(tmp_path / "bars.csv", tmp_path / "bars", 4)
    assert said["rows"] == len(SMALL) and [len(one) for one in said["blocks"]] == [4, 4, 1]
    B.write_features(tmp_path / "bars", SMALL_INDEX, some, tmp_path / "out", window=25)
    days, names = whole["session"].unique(), [some[0].name, some[4].name]
    part = B.read_features(tmp_path / "out", days[30], days[40], ["S01", "S08"], names)
    keep = whole["session"].between(days[30], days[40]) & whole["symbol"].isin(["S01", "S08"])
    same(part, whole.loc[keep, ["session", "symbol", *names]].reset_index(drop=True))
    assert pq.ParquetFile(tmp_path / "out" / "symbols" / "0000.parquet").num_row_groups == 4
    opened, real = [], B.ds.dataset
    monkeypatch.setattr(B.ds, "dataset", lambda files: opened.append([path.name for path in files]) or real(files))
    B.read_features(tmp_path / "out", symbols=["S08"], columns=[some[4].name])
    assert opened == [["0002.parquet"]]


def test_bad_folders_and_bars_are_refused(tmp_path):
    bars = SMALL.iloc[:60]
    B.write_blocks(bars, tmp_path / "bars", 4)
    with pytest.raises(ConfigError, match="is not empty"):
        B.write_blocks(bars, tmp_path / "bars")
    for change, words in (({"session": None}, "lack the session in row 7"), ({"symbol": None}, "lack the symbol in row 7"), ({"close": "high"}, "not a date or a number")):
        bad = bars.astype({name: object for name in change})
        bad.iloc[7, bad.columns.get_loc(next(iter(change)))] = next(iter(change.values()))
        bad = bad.astype({name: str for name in change if change[name]})
        with pytest.raises(DataError, match=words):
            B.write_blocks(bad, tmp_path / "bad")
    with pytest.raises(DataError, match=r"S00 has the session 2012-01-02 2 times"):
        B.write_blocks(pd.concat([bars, bars.iloc[:1]]), tmp_path / "twice")
    with pytest.raises(DataError, match="lack the column"):
        B.write_blocks(bars.drop(columns="adj_close"), tmp_path / "none")
    with pytest.raises(DataError, match="has to exist"):
        B.write_blocks(tmp_path / "nothing.parquet", tmp_path / "none")
    with pytest.raises(DataError, match="no readable features.json"):
        B.read_features(tmp_path / "bars")
    (tmp_path / "bars" / "blocks.json").unlink()  # as if writing had been killed
    with pytest.raises(DataError, match="writing it did not end"):
        B.write_labels(tmp_path / "bars", LabelSettings(), tmp_path / "labels")


def test_files_that_do_not_belong_together_are_noticed(tmp_path):
    some = [f for f in F.FEATURES if f.scope == "session"][:1] + list(F.MOMENTUM[:1])
    B.write_blocks(SMALL, tmp_path / "bars", 4)
    B.write_features(tmp_path / "bars", SMALL_INDEX, some, tmp_path / "out")
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "out" / "bases").exists()
    assert json.loads((tmp_path / "out" / "features.json").read_text())["version"] == F.version(some)
    path = tmp_path / "out" / "symbols" / "0001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(IntegrityError, match="same rows"):
        B.read_features(tmp_path / "out")
