"""Error replay: only errors that could be known, few, capped, forgotten in time, and never from where a model is judged."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import forest, meta, replay, splits
from mltrader import store as db
from mltrader.config import MemorySettings, Settings
from mltrader.core import PROBABILITIES, REGIMES, Clock, ConfigError, DataError
from mltrader.store import Store

HORIZON = 14
DAYS = pd.bdate_range("2010-01-01", "2015-12-31").as_unit("us")
SYMBOLS = ["AAA", "BBB", "CCC"]
WEIGHTS = MemorySettings().regime_weights
FOLDS = splits.walk_forward(DAYS, 2011, DAYS[-1])


def make_samples() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    frame = pd.MultiIndex.from_product([DAYS[: -HORIZON - 2], SYMBOLS], names=["session", "symbol"]).to_frame(index=False)
    at = np.searchsorted(DAYS, frame["session"])
    x = rng.normal(size=(len(frame), 2)).astype("f4")
    frame = frame.assign(
        regime=np.array(REGIMES)[at // 40 % 5], label=rng.integers(0, 3, len(frame)), label_known_at=DAYS[at + HORIZON + 2], vix=20.0
    )
    return frame.assign(a=x[:, 0] + frame["label"].astype("f4"), b=x[:, 1])


SAMPLES = make_samples()
PLAN = pd.concat(
    [
        pd.DataFrame({"fold": k, "row": np.flatnonzero(SAMPLES["label_known_at"] <= c), "weight": np.float32(1), "uniqueness": np.float32(0.1)})
        for k, c in [*FOLDS[["fold", "cutoff"]].itertuples(index=False), (-1, DAYS[-1])]
    ],
    ignore_index=True,
).assign(origin="recent")


def overconfident(X, y, rows, X_test):
    """Deterministic probabilities that vary by row and do not depend on the labels."""
    score = np.column_stack([X_test["a"], X_test["b"], -X_test["a"]]).astype(float) * 2
    scaled = np.exp(score - score.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


PREDICTIONS = splits.out_of_fold(SAMPLES, ["a", "b"], PLAN, FOLDS, overconfident, {"name": "test"})
sessions = st.integers(300, len(DAYS) - 1).map(lambda i: DAYS[i])


def buffer(**kwargs) -> replay.ErrorReplayBuffer:
    return replay.ErrorReplayBuffer(**({"feature_set": "v1"} | kwargs))


def fill(held: replay.ErrorReplayBuffer, as_of) -> replay.ErrorReplayBuffer:
    held.add_batch_errors(PREDICTIONS.known_at(SAMPLES, as_of), SAMPLES, FOLDS, as_of)
    return held


@settings(max_examples=15, deadline=None)
@given(st.lists(sessions, min_size=1, max_size=3), st.integers(1, 400), st.floats(0.2, 6))
def test_the_buffer_is_bounded_keyed_and_forgets(days, size, years):
    held = buffer(max_size=size, max_age_years=years)
    for day in sorted(days):
        fill(held, day)
        errors = held.errors
        assert len(errors) <= size and not errors.duplicated(list(replay.KEYS)).any()
        assert (errors["label_known_at"] <= day).all() and (errors["session"] >= (day - pd.Timedelta(days=365.25 * years)).normalize()).all()
        assert errors["priority"].is_monotonic_decreasing and (errors["true_label"] != errors["predicted_label"]).all()
    # what is held is what a slow look at all of the past finds, however often it was asked before
    past = PREDICTIONS.known_at(SAMPLES, day).frame
    proba, facts = past[list(PROBABILITIES)].to_numpy(), SAMPLES.loc[past["row"]]
    wrong = (proba.argmax(1) != facts["label"]) & (facts["session"] >= (day - pd.Timedelta(days=365.25 * years)).normalize()).to_numpy()
    best = np.sort((proba.max(1) * facts["regime"].map(WEIGHTS))[wrong])[::-1][:size]
    np.testing.assert_allclose(errors["priority"], best)


@settings(max_examples=15, deadline=None)
@given(sessions, st.floats(0.001, 0.2), st.floats(1, 3), st.integers(0, 5))
def test_factors_are_capped_and_hold_the_share(as_of, share, cap, seed):
    known = SAMPLES[SAMPLES["label_known_at"] <= as_of]
    weight = np.random.default_rng(seed).lognormal(0, 1, len(known))
    held = fill(buffer(max_size=300), as_of)
    factor = held.factors(known, weight, as_of, share, cap)
    assert len(factor) == len(known) and (factor >= 1).all() and (factor <= cap).all()
    heavy = factor > 1
    assert (weight * factor)[heavy].sum() <= share * (weight * factor).sum() * (1 + 1e-12)
    assert held.errors["replayed_count"].sum() == heavy.sum()
    assert (replay.reweigh(weight, factor).mean() - 1) < 1e-5


def test_the_share_is_used_up_dearest_first():
    factor, weight = np.array([1.0, 3.0, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), np.ones(10)
    np.testing.assert_array_equal(replay.hold_to_share(factor, weight, 0.25), [1, 3, *[1] * 8])  # 3 / 12
    np.testing.assert_array_equal(replay.hold_to_share(factor, weight, 0.24), np.ones(10))
    np.testing.assert_array_equal(replay.hold_to_share(factor, weight, 0.4), [1, 3, 2, *[1] * 7])  # 5 / 13, with the third 6.5 / 13.5


def test_priority_is_confidence_times_regime_weight_and_the_higher_one_wins():
    held = fill(buffer(max_size=10**5, max_age_years=99), DAYS[-1])
    errors = held.errors
    np.testing.assert_allclose(errors["priority"], errors["confidence"] * errors["regime"].map(WEIGHTS))
    sharper = splits.out_of_fold(SAMPLES, ["a", "b"], PLAN, FOLDS, lambda *a: 0.5 * overconfident(*a) + 0.5 * np.eye(3)[overconfident(*a).argmax(1)], {})
    held.add_batch_errors(sharper.known_at(SAMPLES, DAYS[-1]), SAMPLES, FOLDS, DAYS[-1])
    assert len(held.errors) == len(errors) and (held.errors["confidence"].to_numpy() > 0.5).all()
    before, after = (e.set_index(["session", "symbol"])["priority"].sort_index() for e in (errors, held.errors))
    assert (after >= before).all() and (after > before).any()
    fill(held, DAYS[-1])  # the weaker calls again: nothing changes
    pd.testing.assert_series_equal(held.errors.set_index(["session", "symbol"])["priority"].sort_index(), after)


def test_the_same_calls_make_the_same_buffer():
    one, two = (fill(fill(buffer(max_size=100), DAYS[900]), DAYS[-1]) for _ in range(2))
    pd.testing.assert_frame_equal(one.errors, two.errors, check_exact=True)


# --- planted leaks -----------------------------------------------------------------------------------------------------


def test_predictions_without_proof_are_refused():
    held = buffer()
    for planted in (PREDICTIONS.frame, PREDICTIONS.frame.assign(fold=2011), None):
        with pytest.raises(DataError, match="takes OutOfFold alone"):
            held.add_batch_errors(planted, SAMPLES, FOLDS, DAYS[-1])
    moved = FOLDS.assign(cutoff=FOLDS["cutoff"].where(FOLDS["fold"] != 2013, pd.Timestamp("2013-06-28")))
    for folds in (moved, FOLDS[FOLDS["fold"] != 2012], FOLDS.assign(test_end=FOLDS["test_end"] - pd.Timedelta(days=30))):
        with pytest.raises(DataError, match="not out of fold"):
            held.add_batch_errors(PREDICTIONS.known_at(SAMPLES, DAYS[-1]), SAMPLES, folds, DAYS[-1])
    assert len(held.errors) == 0 and held.as_of is None


@settings(max_examples=20, deadline=None)
@given(sessions)
def test_one_label_of_tomorrow_is_refused(as_of):
    held = buffer()
    tomorrow = DAYS[min(np.searchsorted(DAYS, as_of) + 1, len(DAYS) - 1)]
    late = PREDICTIONS.known_at(SAMPLES, tomorrow)
    if len(late.frame) > len(PREDICTIONS.known_at(SAMPLES, as_of).frame):
        with pytest.raises(DataError, match="no label known at"):
            held.add_batch_errors(late, SAMPLES, FOLDS, as_of)
    assert len(held.errors) == 0


def test_a_label_that_touches_a_held_out_window_is_refused():
    window = ("2013-03-01", "2013-03-28")
    held = buffer(held_out=[window])
    with pytest.raises(DataError, match="held-out window"):
        fill(held, DAYS[-1])
    assert len(held.errors) == 0
    fill(held, "2013-02-28")
    assert (held.errors["label_known_at"] < "2013-03-01").all() and len(held.errors)


def test_a_buffer_cannot_go_back_in_time():
    held = fill(buffer(), "2014-06-30")
    for call in (lambda: fill(held, "2014-06-27"), lambda: held.factors(SAMPLES, np.ones(len(SAMPLES)), "2014-06-27")):
        with pytest.raises(DataError, match="cannot serve 2014-06-27"):
            call()


# --- in training -------------------------------------------------------------------------------------------------------


def inputs(samples=SAMPLES) -> dict:
    return {"memory": {"samples": samples, "plan": PLAN, "folds": FOLDS}, "features": {"feature_set": {"version": "v1"}}, "fold_cache": {}}


def chosen(mode: str) -> Settings:
    return Settings(replay={"mode": mode, "max_size": 200}, forest={"n_estimators": 8}, splits={"min_train_rows": 50}, run={"threads": 1})


def test_training_at_a_cut_off_replays_only_what_was_known_then():
    seen = []

    def watch(cutoff, rows, earlier):
        frame = earlier.frame
        assert (SAMPLES["label_known_at"].to_numpy()[frame["row"]] <= cutoff).all()
        assert (frame["fold"].map(FOLDS.set_index("fold")["cutoff"]) < cutoff).all() or not len(frame)
        seen.append(len(frame))
        return rows

    splits.out_of_fold(SAMPLES, ["a", "b"], PLAN, FOLDS.iloc[::-1], overconfident, {}, reweight=watch)
    assert seen[0] == 0 and all(np.diff(seen) > 0) and len(seen) == len(FOLDS)


def test_a_hook_may_change_weights_alone():
    for spoil in (lambda rows: rows.assign(row=rows["row"] + 1), lambda rows: rows.iloc[1:], lambda rows: rows.assign(extra=1)):
        with pytest.raises(DataError, match="may change the column `weight` alone"):
            splits.out_of_fold(SAMPLES, ["a", "b"], PLAN, FOLDS, overconfident, {}, reweight=lambda cutoff, rows, earlier, spoil=spoil: spoil(rows))
    with pytest.raises(DataError, match="positive and finite"):
        splits.out_of_fold(SAMPLES, ["a", "b"], PLAN, FOLDS, overconfident, {}, reweight=lambda cutoff, rows, earlier: rows.assign(weight=0.0))


def test_the_future_changes_nothing_that_errors_mode_learned():
    """Labels after the third cut-off are replaced; predictions for its test year and those before it stay bit for bit."""
    fold = FOLDS.iloc[2]
    rng = np.random.default_rng(8)
    late = SAMPLES["label_known_at"] > fold["cutoff"]
    other = SAMPLES.assign(label=SAMPLES["label"].where(~late, rng.integers(0, 3, len(SAMPLES))))
    one, two = (forest.run(inputs(s), chosen("errors"), DAYS[-1]).frames for s in (SAMPLES, other))
    a, b = (f["out_of_fold"][f["out_of_fold"]["fold"] <= fold["fold"]] for f in (one, two))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    early = [f["replayed"][f["replayed"]["cutoff"] <= fold["cutoff"]] for f in (one, two)]
    pd.testing.assert_frame_equal(*early, check_exact=True)
    assert len(early[0]) and not one["replayed"].equals(two["replayed"])


@pytest.mark.parametrize("mode", ["errors", "double_ensemble"])
def test_a_mode_changes_the_models_and_off_changes_nothing(mode):
    off = forest.run(inputs(), chosen("off"), DAYS[-1])
    on, again = (forest.run(inputs(), chosen(mode), DAYS[-1]) for _ in range(2))
    assert on.models["model"].content_digest() == again.models["model"].content_digest() != off.models["model"].content_digest()
    assert set(off.frames) == {"out_of_fold", "by_fold"} and ("replayed" in on.frames) == (mode == "errors")
    first = off.frames["out_of_fold"]["fold"] == FOLDS["fold"].min()
    same = (on.frames["out_of_fold"][first] == off.frames["out_of_fold"][first]).all(axis=None)
    assert same == (mode == "errors")  # nothing could be replayed to the first fold
    plain = forest.RandomForestModel(chosen("off").forest, off.documents["recipe"]["seed"], 1)
    rows = PLAN[PLAN["fold"] == -1]
    by_hand = plain.fit(SAMPLES[["a", "b"]].iloc[rows["row"]], SAMPLES["label"].to_numpy()[rows["row"]], rows["weight"], rows["uniqueness"])
    assert by_hand.content_digest() == off.models["model"].content_digest()  # `off` is the model without any of this
    if mode == "errors":
        refit, last = on.frames["replayed"]["cutoff"].max(), FOLDS["cutoff"].max()
        assert refit == DAYS[-1] and (on.frames["replayed"]["cutoff"] == last).any()
        assert on.documents["replay"]["errors"] <= 200


def test_the_store_hears_how_often_an_error_was_replayed():
    made = inputs()
    rows = PREDICTIONS.known_at(SAMPLES, DAYS[-1]).frame["row"]
    made["forest"], made["boosting"] = {}, {}
    plain = meta.errors_for_replay(PREDICTIONS, made, chosen("off"), DAYS[-1])
    made["forest"] = {"replayed": pd.DataFrame({"row": rows})}
    made["boosting"] = {"replayed": pd.DataFrame({"row": rows[::2]})}
    counted = meta.errors_for_replay(PREDICTIONS, made, chosen("errors"), DAYS[-1])
    assert (plain["replayed_count"] == 0).all() and len(plain) == len(counted) == 200
    row = pd.Series(SAMPLES.index, index=pd.MultiIndex.from_frame(SAMPLES[["session", "symbol"]]))
    theirs = row[pd.MultiIndex.from_frame(counted[["session", "symbol"]])].isin(rows[::2]).to_numpy()
    np.testing.assert_array_equal(counted["replayed_count"], 1 + theirs)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(2, 12), st.floats(1.1, 3), st.floats(0.01, 0.2), st.integers(0, 9))
def test_learning_factors_are_capped_and_add_at_most_the_share(n, steps, cap, share, seed):
    rng = np.random.default_rng(seed)
    curve, weight = rng.lognormal(size=(n, steps)), rng.lognormal(size=n)
    factor = replay.learning_factors(curve, weight, cap, share)
    assert (factor >= 1).all() and (factor <= cap + 1e-12).all()
    assert (weight * (factor - 1)).sum() <= share * (weight * factor).sum() * (1 + 1e-9)
    order = rng.permutation(n)
    np.testing.assert_allclose(replay.learning_factors(curve[order], weight[order], cap, share), factor[order])


def test_a_row_that_is_hard_but_learned_weighs_most():
    """Ranks of loss by hand: row 2 falls from worst to middle; row 1 stays bad and gets worse; row 0 is easy."""
    curve = np.array([[1.0, 0.1], [2.0, 3.0], [3.0, 2.0]])
    h = np.array([3 + 2, 1 + 3, 2 + 1]) / 3
    raw = 1 / (0.5 * h + 0.1)
    np.testing.assert_allclose(replay.learning_factors(curve, np.ones(3), share=0.99), raw / raw.min())


# --- the store -----------------------------------------------------------------------------------------------------------


def begin(store: Store, run_id: str, as_of: str) -> None:
    with store.write() as conn:
        db.start_run(conn, run_id, "cycle", "test", 0, {}, "d", Clock())
        db.set_as_of(conn, run_id, pd.Timestamp(as_of).date())


@pytest.fixture
def store(tmp_path) -> Store:
    found = Store(f"sqlite:///{tmp_path}/t.db")
    for run_id, as_of in (("a", "2013-06-28"), ("b", "2014-06-30")):
        begin(found, run_id, as_of)
    return found


def test_the_store_gives_back_what_was_held_to_later_runs_alone(store):
    held = fill(buffer(store=store, max_size=50), "2013-06-28")
    held.get_replay_samples(3)
    assert held.save("a") == held.save("a") == 50  # the second time replaces the first
    for as_of, n in (("2013-06-27", 0), ("2013-06-28", 0), ("2013-07-01", 50), ("2019-01-01", 0)):  # too early, the same session, later, too old
        assert buffer(store=store, max_size=50).load(as_of) == n
    again = buffer(store=store, max_size=50)
    again.load("2013-07-01")
    pd.testing.assert_frame_equal(again.errors, held.errors)
    later = fill(buffer(store=store, max_size=50), "2014-06-30")
    later.save("b")
    both = buffer(store=store, max_size=10**4)
    both.load("2014-07-01")
    keys = pd.concat([held.errors, later.errors]).drop_duplicates(["session", "symbol"])
    oldest = pd.Timestamp("2014-07-01") - pd.Timedelta(days=365.25 * 5)
    assert len(both.errors) == (keys["session"] >= oldest.normalize()).sum() and both.errors["priority"].is_monotonic_decreasing
    assert buffer(store=store, max_size=7).load("2014-07-01") == 7


def test_errors_of_another_feature_set_are_reported_and_not_used(store):
    fill(buffer(store=store, max_size=20), "2013-06-28").save("a")
    other = buffer(store=store, feature_set="v2")
    assert other.load("2014-01-02") == 0
    assert "20 stored errors belong to other feature sets (v1)" in other.get_error_stats()["notes"][0]
    assert "nothing stored is replayed" in other.notes[0]
    assert (other.factors(SAMPLES, np.ones(len(SAMPLES)), "2014-01-02") == 1).all()


def test_stored_errors_in_a_held_out_window_are_left_out(store):
    held = fill(buffer(store=store, max_size=200), "2013-06-28")
    held.save("a")
    window = (held.errors["session"].quantile(0.4), held.errors["session"].quantile(0.6))
    careful = buffer(store=store, max_size=200, held_out=[window])
    careful.load("2013-07-01")
    assert 0 < len(careful.errors) < len(held.errors) and "touch a held-out window" in careful.notes[0]
    assert ((careful.errors["label_known_at"] < window[0].normalize()) | (careful.errors["session"] > window[1])).all()


def test_two_writers_leave_two_whole_buffers(store):
    one, two = fill(buffer(max_size=300), "2013-06-28"), fill(buffer(max_size=300), "2014-06-30")

    def write(job):
        held, run_id = job
        return replay.save_errors(Store(str(store.url)), run_id, held.errors)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, [(one, "a"), (two, "b")] * 6)) == [300] * 12
    with store.read() as conn:
        rows = conn.execute(sa.select(db.error_replay_buffer.c.run_id, sa.func.count()).group_by(db.error_replay_buffer.c.run_id)).all()
    assert dict(map(tuple, rows)) == {"a": 300, "b": 300}


def test_a_failed_write_leaves_the_rows_of_before(store):
    held = fill(buffer(store=store, max_size=30), "2013-06-28")
    held.save("a")
    with pytest.raises(sa.exc.IntegrityError):
        replay.save_errors(store, "a", held.errors.assign(predicted_label=held.errors["true_label"]))
    assert buffer(store=store).load("2013-07-01") == 30


def test_an_older_store_gets_the_columns_and_its_rows_are_not_replayed(tmp_path):
    """A store of version 1, as it was: rows do not say when their labels were known, so they serve no one."""
    url = f"sqlite:///{tmp_path}/old.db"
    old = Store(url)
    new_columns = ("fold", "label_known_at", "added_as_of", "replayed_count")
    with old.write() as conn:
        for name in new_columns:
            conn.exec_driver_sql(f"ALTER TABLE error_replay_buffer DROP COLUMN {name}")
        conn.execute(db.store_facts.update().where(db.store_facts.c.key == "version").values(value="1"))
        conn.exec_driver_sql("INSERT INTO training_runs (id, kind, status, \"trigger\", started_at, promoted, token, as_of) VALUES ('r', 'cycle', 'success', 't', '2013-01-01', 0, 0, '2013-01-02')")
        conn.exec_driver_sql("INSERT INTO error_replay_buffer (run_id, session, symbol, feature_set, true_label, predicted_label, confidence, priority) "
                             "VALUES ('r', '2012-06-01', 'AAA', 'v1', 0, 2, 0.9, 1.8)")
    store = Store(url)
    assert store.version() == len(db.MIGRATIONS)
    with store.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), db.metadata) == []
    assert buffer(store=store).load("2013-07-01") == 0


def test_bad_input_is_one_clear_error():
    for call, words in (
        (lambda: buffer(max_size=0), "max_size"),
        (lambda: buffer(max_age_years=0), "max_age_years"),
        (lambda: buffer(held_out=[("2014-01-01", "2013-01-01")]), "before its start"),
        (lambda: buffer().get_replay_samples(-1), "at least 0"),
        (lambda: replay.hold_to_share(np.ones(3), np.ones(3), 0), "between 0 and 1"),
        (lambda: replay.replay_weights(SAMPLES, buffer().errors, "v1", WEIGHTS, cap=0.9), "at least 1"),
        (lambda: Settings(replay={"share": 0.3}), "less than or equal to 0.2"),
    ):
        with pytest.raises((ConfigError, ValueError), match=words):
            call()
    with pytest.raises(DataError, match="No weight for the regimes"):
        fill(buffer(regime_weights={"crash": 1.0}), DAYS[-1])
