"""Nothing on disk is parsed before its hash fits, and nothing is half-written."""
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import artifacts
from mltrader.artifacts import ArtifactStore, FoldCache, publish
from mltrader.boosting import XGBoostModel
from mltrader.config import BoostingSettings, ForestSettings
from mltrader.core import CLASSES, PROBABILITIES, ConfigError, IntegrityError
from mltrader.forest import RandomForestModel


def rows(n: int = 200) -> tuple[pd.DataFrame, np.ndarray]:
    draw = np.random.default_rng(0)
    X = pd.DataFrame(draw.normal(size=(n, 3)), columns=["a", "b", "c"]).astype("float32")
    return X, draw.integers(0, len(CLASSES), n)


def a_frame() -> pd.DataFrame:
    return pd.DataFrame({"session": pd.to_datetime(["2020-01-02", "2020-01-03"]), "symbol": ["NA", "TRUE"], "x": [1.5, np.nan]})


VALUES = {
    "frame": a_frame,
    "document": lambda: {"a": [1, None, "ä"]},
    "forest": lambda: RandomForestModel(ForestSettings(n_estimators=3), 1).fit(*rows()),
    "boosting": lambda: XGBoostModel(BoostingSettings(rounds=3), 1).fit(*rows()),
}


@pytest.fixture(scope="module", params=sorted(VALUES))
def stored(request, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp(request.param))
    value = VALUES[request.param]()
    return store, value, store.put(value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_found_before_parsing(stored, data):
    store, _, entry = stored
    path = store.path(entry.sha256)
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    path.write_bytes({"flip": good[:at] + bytes([good[at] ^ 1]) + good[at + 1:], "cut": good[:at], "grow": good + b"\0"}[bad])
    opened, real = [], artifacts.decode
    artifacts.decode = lambda *arguments: opened.append(1) or real(*arguments)
    try:
        with pytest.raises(IntegrityError, match="was changed"):
            store.get(entry)
    finally:
        artifacts.decode = real
        path.write_bytes(good)
    assert not opened and store.verify(entry.sha256) is None


def test_what_was_put_comes_back(stored):
    store, value, entry = stored
    again = store.get(entry)
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(again, value, check_dtype=False)
    elif isinstance(value, dict):
        assert again == value
    else:
        assert again.content_digest() == value.content_digest() == entry.content_digest
        np.testing.assert_array_equal(again.predict_proba(rows()[0]), value.predict_proba(rows()[0]))
    assert store.put(value).content_digest == entry.content_digest


def test_a_damaged_file_is_replaced_by_the_next_put(stored):
    store, value, _ = stored
    if hasattr(value, "content_digest"):
        return  # a model's bytes may differ, so its next put is another file
    entry = store.put(value)
    store.path(entry.sha256).write_bytes(b"damaged")
    assert store.verify(entry.sha256) and store.put(value) == entry and store.verify(entry.sha256) is None


def test_a_failing_write_leaves_the_last_good_file(tmp_path, monkeypatch):
    """The disk fills up while the file is flushed: the old one is whole, and nothing is left lying about."""
    path = tmp_path / "a.json"
    publish(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        publish(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_is_not_ours_is_refused(tmp_path):
    store = ArtifactStore(tmp_path)
    for name in ("../../etc/passwd", "A" * 64, "0" * 63):
        with pytest.raises(IntegrityError, match="not a SHA-256"):
            store.read(name)
    with pytest.raises(IntegrityError, match="missing"):
        store.read("0" * 64)
    with pytest.raises(IntegrityError, match="not readable here"):
        store.get({**store.put({"a": 1}).as_dict(), "kind": "pickle"})
    with pytest.raises(ConfigError, match="Cannot store a set"):
        store.put({1})


def test_a_fold_whose_file_is_damaged_counts_as_absent(tmp_path):
    store = ArtifactStore(tmp_path / "artifacts")
    cache = FoldCache(tmp_path / "folds", store)
    frame = pd.DataFrame({name: [0.2, 0.3] for name in PROBABILITIES})
    cache["k"] = frame
    pd.testing.assert_frame_equal(cache["k"], frame)
    assert list(cache) == ["k"]
    store.path(store.put(frame).sha256).write_bytes(b"damaged")
    assert "k" not in cache
    cache["k"] = frame
    pd.testing.assert_frame_equal(cache["k"], frame)
