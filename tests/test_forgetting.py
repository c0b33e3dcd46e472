"""Forward, leave-one-out and retention studies: nothing judged was learned, and the tables say what the losses say."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from mltrader import archive, forgetting, memory
from mltrader.config import EventDefinition, Settings
from mltrader.core import ConfigError, DataError

HORIZON = 10
DAYS = pd.bdate_range("2001-01-01", "2012-12-31").as_unit("us")
SYMBOLS = ["AAA", "BBB", "CCC", "DDD"]
SPANS = [("first", "2002-07-01", "2002-12-31"), ("second", "2006-03-01", "2006-07-31"), ("third", "2011-07-01", "2011-12-30")]
CRISES = [EventDefinition(name=n, start=a, end=b, regime="crash", weight=0.2) for n, a, b in SPANS]


def make():
    """Feature `heat` is high in a crisis, where hot rows are sold; calm rows are a coin."""
    rng = np.random.default_rng(5)
    wild = np.zeros(len(DAYS), bool)
    for _, a, b in SPANS:
        wild |= (DAYS >= a) & (DAYS <= b)
    grid = pd.MultiIndex.from_product([DAYS, SYMBOLS], names=["session", "symbol"]).to_frame(index=False)
    at = np.searchsorted(DAYS, grid["session"])
    heat = rng.normal(size=len(grid)) + 3.0 * wild[at]
    inside = at + HORIZON + 2 < len(DAYS)
    label = np.where(rng.uniform(size=len(grid)) < np.where(heat > 2, 0.9, 0.3), 0, rng.integers(1, 3, len(grid)))
    labels = grid[inside].assign(label=label[inside].astype("int8"), label_end=DAYS[at[inside] + 5], label_known_at=DAYS[at[inside] + HORIZON + 2],
                                 return_pct=0.0, forward_log_return=0.0)
    market = pd.DataFrame({"session": DAYS, "regime": np.where(wild, "crash", "normal"), "vix": 20.0})
    own = grid.merge(market[["session", "regime"]])
    samples = memory.build_samples(grid.assign(heat=heat.astype("f4")), ["heat"], 20, labels, market, own, pd.DataFrame({"symbol": SYMBOLS, "sector": "x"}))
    events = archive.event_table(CRISES, [], market, HORIZON)
    return samples, events, archive.cut(labels, own, events, DAYS[-1])


SAMPLES, EVENTS, ARCHIVE = make()


def arm(name: str, share: float, years: float = 3.0) -> forgetting.Arm:
    chosen = Settings(memory={"window_years": years, "mix": "fixed", "archive_share": share})
    return forgetting.Arm(name, memory.HybridMemory(SAMPLES, ARCHIVE, chosen, DAYS))


ARMS = [arm("recent", 0.0), arm("archive", 0.2)]


class Shares:
    """Class shares of calm and of hot rows; counts its fits, and notes the rows it was given."""

    fits = 0

    def __init__(self, X, y, rows, seed):
        type(self).fits += 1
        hot = X["heat"].to_numpy() > 2
        counts = [np.bincount(y[hot == side], rows["weight"].to_numpy()[hot == side], minlength=3) + 5 * np.bincount(y, minlength=3) / len(y) for side in (False, True)]
        self.table = np.array(counts) / np.sum(counts, axis=1, keepdims=True)

    def predict_proba(self, X):
        return self.table[(X["heat"].to_numpy() > 2).astype(int)]


MODELS = {"shares": Shares}


def test_an_archive_helps_where_the_window_knows_no_crisis():
    found = forgetting.forward(ARMS, EVENTS, MODELS, (0, 1), {}, min_rows=100)
    means = found.groupby(["event", "arm"])["loss"].mean().unstack()
    assert means.loc["third", "archive"] < means.loc["third", "recent"] - 0.03
    assert means.loc["first", "archive"] == means.loc["first", "recent"]
    assert set(found["seed"]) == {0, 1}
    rows = SAMPLES[SAMPLES["session"].between("2011-07-01", "2011-12-30")]
    assert (found["event"] == "third").sum() == 4 * len(rows)  # each row once an arm and seed


def test_a_planted_row_from_the_future_is_refused():
    def planted(cutoff, rows):
        late = SAMPLES.index[(SAMPLES["session"] <= cutoff) & (SAMPLES["label_known_at"] > cutoff)][:1]
        return pd.concat([rows, rows.tail(1).assign(row=late)], ignore_index=True)

    bad = forgetting.Arm("planted", ARMS[0].memory, planted)
    with pytest.raises(DataError, match="after the cut-off"):
        forgetting.forward([bad], EVENTS, MODELS, (0,), {}, min_rows=100)


@pytest.mark.parametrize("years", [3.0, 50.0])
def test_leave_one_out_never_learns_what_touches_the_event(years, monkeypatch):
    arms = [arm("recent", 0.0, years), arm("archive", 0.3, years)]
    found = forgetting.leave_one_out(arms, EVENTS, DAYS[-1], MODELS, (0,), {})
    assert set(found["event"]) == {"first", "second", "third"}
    monkeypatch.setattr(memory, "touches", lambda rows, judged: np.zeros(len(rows), bool))
    with pytest.raises(DataError, match="touch the event"):
        forgetting.leave_one_out(arms, EVENTS, DAYS[-1], MODELS, (0,), {})


def test_retention_judges_on_rows_that_were_not_learned(monkeypatch):
    cutoffs = ["2009-12-31", "2010-12-31"]
    arguments = ("second", "2006-03-01", "2006-07-31", cutoffs, HORIZON, MODELS, (0,), {})
    found = forgetting.retention(ARMS, *arguments)
    inside = SAMPLES[SAMPLES["session"].between("2006-03-01", "2006-07-31")]
    assert len(found) == len(inside) * len(cutoffs) * len(ARMS)
    means = found.groupby("arm")["loss"].mean()
    assert means["archive"] < means["recent"]
    with pytest.raises(ConfigError, match="recent window"):
        forgetting.retention(ARMS, "second", "2006-03-01", "2006-07-31", ["2007-12-31"], HORIZON, MODELS, (0,), {})
    with pytest.raises(ConfigError, match="needs more than"):
        forgetting.retention(ARMS, "second", "2006-03-01", "2006-04-10", cutoffs, HORIZON, MODELS, (0,), {})
    real = forgetting.away_from
    monkeypatch.setattr(forgetting, "away_from", lambda rows, judged: rows if "known_from" in rows else real(rows, judged))
    with pytest.raises(DataError, match="training rows touch the half"):
        forgetting.retention(ARMS, *arguments)


def test_retention_leaves_the_other_half_to_remember():
    learned = []

    def notes(cutoff, rows):
        learned.append(SAMPLES.loc[rows.loc[rows["event"] == "second", "row"], "session"])
        return rows

    one = forgetting.Arm("archive", ARMS[1].memory, notes)
    forgetting.retention([one], "second", "2006-03-01", "2006-07-31", ["2009-12-31"], HORIZON, MODELS, (0,), {})
    inside = DAYS[(DAYS >= "2006-03-01") & (DAYS <= "2006-07-31")]
    assert len(learned) == 2
    for held in learned:
        assert held.nunique() >= len(inside) // 2 - HORIZON - 3  # half of the event, less what a label reaches over


def test_the_cache_spares_the_fits_and_changes_nothing():
    cache: dict = {}
    first = forgetting.leave_one_out(ARMS, EVENTS, DAYS[-1], MODELS, (0,), {}, cache)
    before = Shares.fits
    again = forgetting.leave_one_out(ARMS, EVENTS, DAYS[-1], MODELS, (0,), {}, cache)
    assert Shares.fits == before
    pd.testing.assert_frame_equal(first, again)
    forgetting.leave_one_out(ARMS, EVENTS, DAYS[-1], MODELS, (0,), {"settings": "other"}, cache)
    assert Shares.fits > before


def losses(gap: float = 0.0, seed: int = 0, noise: float = 0.5) -> pd.DataFrame:
    rng, parts = np.random.default_rng(seed), []
    for event, start, end in SPANS:
        days = DAYS[(DAYS >= start) & (DAYS <= end)]
        shock = rng.normal(0, noise, len(days))
        for name, more in (("a", 0.0), ("b", gap)):
            part = pd.DataFrame({"session": np.repeat(days, 4), "symbol": SYMBOLS * len(days), "event": event, "model": "m", "seed": 0, "arm": name})
            own = np.repeat(shock, 4) * (name == "b") + rng.normal(0, 0.1, len(part))
            parts.append(part.assign(loss=1 + more + own, label=rng.integers(0, 3, len(part)), called=rng.integers(0, 3, len(part))))
    frame = pd.concat(parts, ignore_index=True)
    frame["label"] = frame.groupby(["session", "symbol"])["label"].transform("first")
    return frame


def test_gains_are_paired_means_and_each_event_counts_the_same():
    frame = losses(0.2)
    found = forgetting.gains(frame, "a", "b", HORIZON).set_index("event")
    by_event = frame.groupby(["event", "arm"])["loss"].mean().unstack()
    for event, _, _ in SPANS:
        assert found.loc[event, "gain"] == pytest.approx(by_event.loc[event, "b"] - by_event.loc[event, "a"])
    assert found.loc[forgetting.POOLED, "gain"] == pytest.approx((by_event["b"] - by_event["a"]).mean())
    assert (found["low"] <= found["gain"]).all() and (found["gain"] <= found["high"]).all()
    back = forgetting.gains(frame, "b", "a", HORIZON).set_index("event")
    np.testing.assert_allclose(back["gain"], -found["gain"])
    with pytest.raises(ConfigError, match=r"\['c'\]"):
        forgetting.gains(frame, "c", "a", HORIZON)


def test_seeds_are_averaged_and_are_no_sampling_error():
    frame = losses(0.2)
    twice = pd.concat([frame, frame.assign(seed=1)])
    pd.testing.assert_frame_equal(forgetting.gains(frame, "a", "b", HORIZON), forgetting.gains(twice, "a", "b", HORIZON))


def test_balanced_accuracy_equals_sklearn():
    frame = losses()
    found = forgetting.scores(frame).set_index(["event", "arm"])["balanced_accuracy"]
    for key, part in frame.groupby(["event", "arm"]):
        assert found[key] == pytest.approx(balanced_accuracy_score(part["label"], part["called"]))


def test_the_choice_before_an_event_does_not_depend_on_it_or_on_later_ones():
    frame = pd.concat([losses(0.3, 1), losses(0.3, 2).query("arm == 'b'").assign(arm="c", loss=0.5)])
    base = forgetting.chosen_forward(frame, EVENTS, "a", ["a", "b", "c"], min_past=1).set_index("event")
    assert base.loc["first", "arm"] == "a" and base.loc["second", "arm"] == "c"
    spoiled = frame.assign(loss=frame["loss"].where(frame["event"] == "first", frame["loss"] + 9 * (frame["arm"] == "c")))
    again = forgetting.chosen_forward(spoiled, EVENTS, "a", ["a", "b", "c"], min_past=1).set_index("event")
    assert again.loc["second", "arm"] == "c" and again.loc["third", "arm"] != "c"
    assert (base["best_loss"] <= base["loss"]).all()


def test_a_harmful_candidate_is_caught_and_noise_is_not():
    caught = forgetting.certificate(losses(-0.6), "b", "a", "m", HORIZON, min_blocks=3)
    assert caught["verdict"] == "no harm shown"  # better than the champion
    caught = forgetting.certificate(losses(0.6), "b", "a", "m", HORIZON, min_blocks=3)
    assert caught["verdict"] == "harmed" and set(caught["harmed"]) >= {forgetting.POOLED}
    false = sum(forgetting.certificate(losses(0.0, seed), "b", "a", "m", HORIZON, 10**6, 500)["verdict"] == "harmed" for seed in range(20))
    assert false == 0  # nothing has blocks enough: nothing is said
    pooled = [forgetting.certificate(losses(0.0, seed), "b", "a", "m", HORIZON, 8, 500)["verdict"] for seed in range(40)]
    assert pooled.count("harmed") <= 5 and "insufficient" not in pooled


def test_too_few_blocks_are_never_a_pass():
    paper = forgetting.certificate(losses(0.6), "b", "a", "m", HORIZON, min_blocks=1000)
    assert paper["verdict"] == "insufficient" and {line["status"] for line in paper["events"]} == {"insufficient"}
