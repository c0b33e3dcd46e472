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
from mltrader.core import CLASSES, PROBABILITIES, ConfigError, IntegrityError, VendorError
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


# --- object storage --------------------------------------------------------------------------------------------------

@pytest.fixture
def shared(bucket, tmp_path, monkeypatch):
    """Two machines with homes of their own, and one place for artifacts."""
    monkeypatch.setenv("MLTRADER_ARTIFACTS", f"s3://payloads/{tmp_path.name}")
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("MLTRADER_HOME", str(tmp_path / name))
        made.append(ArtifactStore(tmp_path / name / "artifacts"))
    return made


def test_what_one_machine_puts_another_reads(shared, bucket, monkeypatch):
    (one, two), frame = shared, a_frame()
    entry, model = one.put(frame), one.put(VALUES["boosting"]())
    pd.testing.assert_frame_equal(two.get(entry), frame)
    assert two.get(model).content_digest() == model.content_digest and two.verify(entry.sha256) is None
    asked = []
    monkeypatch.setattr(artifacts.Objects, "_ask", lambda *arguments: asked.append(arguments))
    pd.testing.assert_frame_equal(two.get(entry), frame)  # from the copy
    assert not asked and two.path(entry.sha256).read_bytes() == one.path(entry.sha256).read_bytes()


def test_what_is_spoiled_there_is_found_and_never_copied(shared, bucket):
    """Bytes of an object change, with and without its length; a machine without a copy does not open it, one with a copy finds out when it verifies, and the next put mends it."""
    (one, two), frame = shared, a_frame()
    entry = one.put(frame)
    key = one.objects.address(entry.sha256).removeprefix("s3://payloads/")
    good = bucket.get_object(Bucket="payloads", Key=key)["Body"].read()
    for bad in (good[:-1] + b"!", good[:-1], b""):
        bucket.put_object(Bucket="payloads", Key=key, Body=bad)
        for read in (two.get, lambda e: two.read(e.sha256)):
            with pytest.raises(IntegrityError, match="was changed"):
                read(entry)
        assert not two.path(entry.sha256).exists()
        assert "was changed" in one.verify(entry.sha256) and (one.verify(entry.sha256, thorough=False) is None) == (len(bad) == len(good))
    assert one.put(frame) == entry and two.verify(entry.sha256) is None
    two.get(entry)
    two.path(entry.sha256).write_bytes(b"torn")  # a damaged copy is fetched again
    pd.testing.assert_frame_equal(two.get(entry), frame)


def test_an_upload_that_is_cut_off_leaves_no_object(shared, bucket, monkeypatch):
    """Most parts of a large object went, its end did not: nothing is under its name, nobody takes it for whole, and the next put sends all of it."""
    one, two = shared
    data = os.urandom(12_000_000)
    sha256 = artifacts.digest_bytes(data)
    key = one.objects.address(sha256).removeprefix("s3://payloads/")
    upload = bucket.create_multipart_upload(Bucket="payloads", Key=key)["UploadId"]
    bucket.upload_part(Bucket="payloads", Key=key, UploadId=upload, PartNumber=1, Body=data[:6_000_000])
    assert "is missing" in one.verify(sha256) and "is missing" in two.verify(sha256, thorough=False)
    monkeypatch.setattr(artifacts, "encode", lambda value: (value, "", "document", None))
    assert one.put(data).sha256 == sha256 and two.read(sha256) == data


def test_storage_that_does_not_answer_is_not_a_damaged_artifact(shared, bucket, tmp_path, monkeypatch):
    """Nothing is taken for damaged, or thrown away, because a server is down; a copy still serves. Who may not write is told so, with the address."""
    one, two = shared
    entry = one.put(a_frame())
    monkeypatch.setenv("MLTRADER_ARTIFACTS", "s3://nowhere/at/all")
    with pytest.raises(VendorError, match=r"s3://nowhere/at/all/.* was not kept: .* does the bucket exist"):
        ArtifactStore(tmp_path / "two" / "artifacts").put({"a": 1})
    monkeypatch.setattr(two.objects, "_files", (type("Down", (), {"cat_file": lambda *_: (_ for _ in ()).throw(ConnectionError("no route")), "info": lambda *_: (_ for _ in ()).throw(ConnectionError("no route"))})(), "payloads"))
    for ask in (lambda: two.verify(entry.sha256), lambda: two.get(entry), lambda: two.put(a_frame())):
        with pytest.raises(VendorError, match="cannot be reached: ConnectionError: no route"):
            ask()
    pd.testing.assert_frame_equal(one.get(entry), a_frame())


def test_only_the_homes_own_folder_is_elsewhere(shared, bucket, tmp_path):
    """Folds, and what a caller names, stay where they are; a place that is neither folder nor object storage is refused."""
    assert ArtifactStore(tmp_path / "folds").objects is None and ArtifactStore(tmp_path / "folds").folder == tmp_path / "folds"
    assert shared[0].objects.url == f"s3://payloads/{tmp_path.name}"
    for url, words in (("sftp://host/x", "mount anything else"), ("gs://bucket/x", "mltrader\\[s3\\]")):
        with pytest.raises(ConfigError, match=words):
            ArtifactStore(url).put({"a": 1})


def test_a_shared_folder_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_ARTIFACTS", str(tmp_path / "shared"))
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("MLTRADER_HOME", str(tmp_path / name))
        made.append(ArtifactStore(tmp_path / name / "artifacts"))
    assert [(one.folder, one.objects) for one in made] == [(tmp_path / "shared", None)] * 2
    pd.testing.assert_frame_equal(made[1].get(made[0].put(a_frame())), a_frame())
