"""A bet against the champion: no stopping rule beats it, pieces add up to the whole, and a store in which it sends back the worse one and nobody else."""
import itertools
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import predict, registry, reports
from mltrader import store as db
from mltrader.artifacts import ArtifactStore
from mltrader.config import LabelSettings, Settings, WatchSettings
from mltrader.core import PROBABILITIES, Clock, ConfigError, DataError, LeaseError
from mltrader.predict import Prediction
from mltrader.store import Store
from mltrader.watch import CHAMPION_COLUMNS, RIVAL_COLUMNS, Purse, advance, compare, from_document, largest_difference, patience_days, to_document

DAYS = pd.bdate_range("2020-01-01", periods=200).as_unit("us")

# --- the statistics ---------------------------------------------------------------------------------------------------------


def best_stopping(value: np.ndarray, n: int) -> float:
    """The highest expected value that any stopping rule reaches which sees each of `n` fair coins at once: `value` is (times, 2**n), by the coins' bits, first coin first."""
    best = value[-1]
    for t in range(len(value) - 2, -1, -1):
        seen = best.reshape(2 ** min(t, n), -1).mean(axis=1)
        best = np.maximum(value[t], np.repeat(seen, 2**n // len(seen)))
    return float(best.mean())


def coins(n: int) -> np.ndarray:
    """All paths of fair coins: (n, 2**n) of -1 and 1."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=n))).T


@pytest.mark.parametrize(("life", "share"), [(1, 0.9), (2, 0.95), (3, 0.5), (4, 1.0)])
def test_no_stopping_rule_expects_more_than_its_stake(life, share):
    """Exact, by enumeration: the rule may see each outcome long before it is booked, and stop before a loss is."""
    n, trail = 10, []
    x = coins(n)
    purse = advance(Purse(*np.ones((3, 2**n))), range(n), np.arange(n) + life, x, n + life, share, life, 1.5, trail=trail)
    value = np.array([np.broadcast_to(free, 2**n) for _, free in trail])
    assert [t for t, _ in trail] == list(range(n + life)) and best_stopping(value, n) <= 1 + 1e-12
    assert np.allclose(purse.peak, value.max(axis=0)) and all((purse.peak >= 1 / alpha).mean() <= alpha for alpha in (0.9, 0.7, 0.5))


def test_the_average_of_interleaved_purses_is_a_trap():
    """The same rule wins against purses that are valued at their last settled bet; so the test above can fail."""
    n, life, x = 10, 3, coins(10)
    value, seen = np.ones((life, 2**n)), []
    for t in range(n + life):
        if t >= life:
            value[t % life] *= 1 + 0.9 * x[t - life]
        seen.append(value.mean(axis=0))
    assert best_stopping(np.array(seen), n) > 1.1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pieces_add_up_to_the_whole(data):
    """Looking on any days, seeing only what was known by then, with gaps and late labels, ends where one look does, also through JSON."""
    n = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sessions = DAYS[np.sort(rng.choice(len(DAYS) - 60, n, replace=False))]
    settled = [DAYS[DAYS.get_loc(s) + k] if k < 30 else pd.NaT for s, k in zip(sessions, rng.integers(1, 34, n), strict=True)]
    x, d, life, share = rng.uniform(-1, 1.5, n), rng.normal(size=n), int(rng.integers(1, 20)), rng.uniform(0.1, 1)
    looks = sorted({*rng.choice(len(DAYS), data.draw(st.integers(0, 12))).tolist(), len(DAYS) - 1})
    whole = advance(Purse(), list(sessions), settled, x, DAYS[-1], share, life, 2.0, d)
    parts, blind = Purse(), data.draw(st.booleans())                                       # whether later outcomes are there, but not to be read
    for day in DAYS[looks]:
        known = [when if when <= day or blind else pd.NaT for when in settled]
        read = [i for i, s in enumerate(sessions) if s <= day and (s in parts.open or parts.last is None or s >= parts.last)]
        parts = advance(parts, [sessions[i] for i in read], [known[i] for i in read], x[read], day, share, life, 2.0, d[read])
        parts = from_document(to_document(parts))
    assert (whole.last, whole.n_sessions, set(whole.open)) == (parts.last, parts.n_sessions, set(parts.open))
    for name in ("free", "equity", "peak", "cumulated"):
        assert getattr(whole, name) == pytest.approx(getattr(parts, name), rel=1e-12, abs=1e-12)
    assert whole.free >= -1e-12 and whole.equity == pytest.approx(whole.free + sum(whole.open.values()))


def forecasts(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Probabilities, some of them 0 or 1."""
    proba = rng.dirichlet([0.5, 0.5, 0.5], rows)
    proba[:: 7] = np.eye(3)[rng.integers(0, 3, len(proba[:: 7]))]
    return proba


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.5), st.floats(0, 0.1))
def test_a_session_is_what_a_slow_loop_says_and_never_loses_more_than_the_stake(seed, smoothing, margin):
    rng = np.random.default_rng(seed)
    rule, as_of, days = WatchSettings(smoothing=smoothing, margin=margin), DAYS[30], 20
    rows = pd.DataFrame([{"session": s, "symbol": name} for s in DAYS[:8] for name in "ABC" if rng.random() < 0.8])
    rows[list(CHAMPION_COLUMNS)], rows[list(RIVAL_COLUMNS)] = forecasts(rng, len(rows)), forecasts(rng, len(rows))
    rows["label"] = np.where(rng.random(len(rows)) < 0.85, rng.integers(0, 3, len(rows)), np.nan)
    rows["known_at"] = pd.Series([DAYS[DAYS.get_loc(s) + int(k)] for s, k in zip(rows["session"], rng.integers(1, 40, len(rows)), strict=True)]).where(rows["label"].notna())
    table = compare(rows.sample(frac=1, random_state=1), rule, days, as_of).set_index("session")
    for session, part in rows.groupby("session"):
        differences, reaches, times = [], [], []
        for row in part.itertuples():
            losses = [[-np.log((1 - smoothing) * getattr(row, f"{who}_{c}") + smoothing / 3) for c in ("sell", "hold", "buy")] for who in ("champion", "rival")]
            gains = [a - b for a, b in zip(*losses, strict=True)]
            assert max(map(abs, gains)) <= largest_difference(smoothing) + 1e-9
            end = session + pd.Timedelta(days=days)
            on_time = row.label == row.label and row.known_at <= min(end, as_of)
            differences.append(gains[int(row.label)] if on_time else min(gains))
            reaches.append(-min(gains))
            times.append(row.known_at if on_time else end)
        found = table.loc[session]
        assert found["reach"] == pytest.approx(np.mean(reaches)) and found["n_symbols"] == len(part)
        if max(times) > as_of:
            assert pd.isna(found["settled_at"]) and np.isnan(found["x"])
        else:
            assert found["settled_at"] == max(times) and found["difference"] == pytest.approx(np.mean(differences)) and found["x"] >= -1
            assert found["x"] == pytest.approx(max((np.mean(differences) - margin) / max(np.mean(reaches) + margin, 0.2), -1))


def test_what_is_known_later_changes_nothing():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"session": DAYS[:30], "symbol": "A", "label": rng.integers(0, 3, 30).astype(float), "known_at": DAYS[16:46]})
    rows[list(CHAMPION_COLUMNS)], rows[list(RIVAL_COLUMNS)] = forecasts(rng, 30), forecasts(rng, 30)
    other = rows.assign(label=rows["label"].where(rows["known_at"] <= DAYS[25], 2 - rows["label"]))
    pd.testing.assert_frame_equal(compare(rows, WatchSettings(), 48, DAYS[25]), compare(other, WatchSettings(), 48, DAYS[25]))


def simulated(edge: float, paths: int = 200, n: int = 700, life: int = 6) -> float:
    """Share of paths that alarm: heavy tails, neighbours overlap."""
    rng = np.random.default_rng(5)
    shocks = rng.standard_t(3, (n + life, paths)) * np.exp(0.5 * rng.standard_normal((n + life, 1)))
    x = np.clip(edge + 0.15 * sum(shocks[k:k + n] for k in range(1, life)) / np.sqrt(life), -1, 1)
    return float((advance(Purse(*np.ones((3, paths))), range(n), np.arange(n) + life, x, n + life, 0.95, life, 20.0).peak >= 20).mean())


def test_alarms_are_rare_without_a_reason_and_common_with_one():
    assert simulated(-0.05) <= simulated(0.0) <= 0.05 and simulated(0.1) >= 0.9


# --- through a store --------------------------------------------------------------------------------------------------------

LABELS = LabelSettings(horizon=1)
CLOCK = Clock(datetime(2024, 1, 2, tzinfo=UTC))
NAMES = [f"S{i:02d}" for i in range(12)]


class World:
    """A store with promotions, a market whose labels live three sessions, and two forecasts of it."""

    def __init__(self, folder, n: int = 90) -> None:
        self.store, self.files = Store(f"sqlite:///{folder}/t.db"), ArtifactStore(folder / "artifacts")
        with self.store.write() as conn:
            self.token = db.take_lease(conn, "m", 10**6, CLOCK)
        rng = np.random.default_rng(4)
        self.run = SimpleNamespace(run_id="m", token=self.token)
        frame = pd.MultiIndex.from_product([DAYS[:n], NAMES], names=["session", "symbol"]).to_frame(index=False)
        true = rng.dirichlet([4, 4, 3], len(frame))
        frame["label"] = (rng.random(len(frame))[:, None] > true.cumsum(axis=1)).sum(axis=1).clip(0, 2)
        frame["label_known_at"] = DAYS[DAYS.searchsorted(frame["session"]) + LABELS.horizon + 2]
        self.labels, self.true = frame, true

    def start(self, run_id: str, kind: str = "monitor") -> None:
        with self.store.write() as conn:
            db.start_run(conn, run_id, kind, "test", self.token, {}, "d", CLOCK)

    def promote(self, version: str, day: pd.Timestamp, seen: str | None, horizon: int = 1, **manifest) -> str:
        """A version that learned until `day`, promoted on it."""
        run_id = f"promote {version} {day.date()}"
        self.start(run_id, "cycle")
        fits = {"components": {}, "recipe": {"settings": {"labels": LABELS.model_copy(update={"horizon": horizon}).model_dump(mode="json")}}, **manifest}
        decision = {"verdict": "PROMOTE", "model_version": version, "recipe_digest": f"recipe {version}", "kind": "refresh", "as_of": day.date(), "data_digest": "data", "feature_set": "fs",
                    "trials": 1, "look": 1, "alpha": 0.01}
        return registry.register_decision(self.store, self.files, run_id, self.token, decision, [], fits, seen, CLOCK)

    def said(self, version: str, day: pd.Timestamp, edge: float) -> Prediction:
        """The true probabilities with a share `edge` of their knowledge."""
        now = (self.labels["session"] == day).to_numpy()
        proba = edge * self.true[now] + (1 - edge) * np.array([4, 4, 3]) / 11
        frame = self.labels.loc[now, ["session", "symbol"]].assign(regime="normal", prediction="hold", abstain=False, **dict(zip(PROBABILITIES, proba.T, strict=True)))
        return Prediction(frame.reset_index(drop=True), version, version, False)

    def monitor(self, days: pd.DatetimeIndex, champion: float, rival: float | None) -> dict:
        """One job over some days at once: record, resolve, look."""
        day, run = days[-1], SimpleNamespace(run_id=f"m {days[-1].date()}", token=self.token)
        self.start(run.run_id)
        said = [pd.concat([self.said(version, d, edge).frame for d in days], ignore_index=True) for version, edge in (("v2", champion), ("v1", rival)) if edge is not None]
        predict.record(self.store, run.run_id, self.token, *[Prediction(frame, version, version, False) for frame, version in zip(said, ("v2", "v1"), strict=False)])
        predict.resolve(self.store, run.run_id, self.token, self.labels, day, LABELS)
        return predict.watch(self.store, run, day, Settings())


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.start("m")
    made.promote("v1", DAYS[0], None)
    return made


def test_a_worse_champion_is_sent_back_and_the_watch_ends(world):
    world.promote("v2", DAYS[2], "v1")
    looks = []
    for first in range(2, 85, 4):
        looks.append(world.monitor(DAYS[first:first + 4], 0.0, 1.0))
        if looks[-1]["alarm"]:
            break
    day = DAYS[first + 3]
    assert looks[-1]["alarm"] and 5 < len(looks) <= 21 and "ALARM: production_v2 was worse than production_v1" in looks[-1]["words"]
    assert all(look["log_wealth"] < np.log(20) for look in looks[:-1]) and (looks[-1]["champion"], looks[-1]["rival"]) == ("v2", "v1")
    history = predict.watch_history(world.store, "v2", "v1")
    assert len(history) == len(looks) and history["alarm"].sum() == 1 and history["cumulated"].iloc[-1] > 0
    world.start("back", "rollback")
    assert registry.rollback(world.store, world.files, "back", world.token, day, CLOCK) == "production_v1"
    after = predict.watch(world.store, world.run, day, Settings())
    assert (after["champion"], after["rival"], after["alarm"]) == ("v1", None, False) and "came back by a rollback" in after["words"]
    world.promote("v2", DAYS[85], "v1")                                                    # and a new promotion, be it of the same version, is watched anew
    anew = predict.watch(world.store, world.run, DAYS[86], Settings())
    assert (anew["rival"], anew["n_sessions"], anew["log_wealth"], anew["alarm"]) == ("v1", 0, 0.0, False)


def test_an_equal_champion_stays_and_looks_add_up(world):
    """Both know half of the truth; a look every week ends where one look at all does, and a second look changes nothing."""
    world.promote("v2", DAYS[2], "v1")
    for first in range(2, 82, 5):
        last = world.monitor(DAYS[first:first + 5], 0.45, 0.5)
    assert not last["alarm"] and last["n_sessions"] == 77
    again = predict.watch(world.store, world.run, DAYS[81], Settings())
    with world.store.write() as conn:
        conn.execute(db.live_watch.delete())
    once = predict.watch(world.store, world.run, DAYS[81], Settings())
    assert again == last and once["log_wealth"] == pytest.approx(last["log_wealth"], rel=1e-12) and once["words"] == last["words"]


def test_only_rows_that_both_predicted_count(world):
    world.promote("v2", DAYS[2], "v1")
    for day in DAYS[2:8]:
        world.monitor(DAYS[[DAYS.get_loc(day)]], 0.0, None if day == DAYS[4] else 1.0)
    rows = predict.paired_rows(world.store, "v2", "v1", DAYS[0].date(), DAYS[7].date())
    assert set(rows["session"]) == {*DAYS[2:8]} - {DAYS[4]} and (rows.groupby("session").size() == len(NAMES)).all()
    assert np.allclose(rows[list(RIVAL_COLUMNS)], world.true[world.labels["session"].isin(rows["session"])]) and (rows["known_at"].notna() == (rows["session"] <= DAYS[4])).all()


def test_who_has_no_rival(world):
    assert predict.rival_of(world.store, DAYS[0] - pd.Timedelta(days=1))[2].startswith("There is no champion")
    assert predict.rival_of(world.store, DAYS[1])[1:] == (None, "production_v1 replaced nobody: there is no rival.")
    world.promote("v2", DAYS[2], "v1")
    assert predict.rival_of(world.store, DAYS[1])[1] is None                              # the past is asked as it was
    assert predict.rival_of(world.store, DAYS[2])[1]["id"] == "v1"
    world.promote("v3", DAYS[5], "v2", horizon=2)
    assert "other settings of [labels]" in predict.rival_of(world.store, DAYS[5])[2]
    assert predict.watch(world.store, world.run, DAYS[5], Settings())["alarm"] is False


def test_outcomes_are_written_once_when_they_are_known(world):
    world.promote("v2", DAYS[2], "v1")
    world.promote("v3", DAYS[2], "v2", horizon=2)                                          # other labels: not to be resolved by these
    for number, day in enumerate(DAYS[2:6]):
        candidate = world.said("v2", DAYS[1], 0.5)                                         # what a cycle says of its own last session is nobody's live record
        for run, parts in ((f"r{number}", ((world.said("v2", day, 0.5), "champion"), (world.said("v1", day, 1.0), "rival"))),
                           (f"q{number}", ((world.said("v3", day, 1.0), "champion"), (candidate, "candidate")))):
            world.start(run)
            with world.store.write() as conn:
                rows = [row for one, role in parts
                        for row in one.frame.assign(session=one.frame["session"].dt.date, model_version=one.version, role=role).to_dict("records")]
                db.write_rows(conn, run, {"model_predictions": rows})
                db.set_as_of(conn, run, day.date())
    done = predict.resolve(world.store, "m", world.token, world.labels, DAYS[6], LABELS)
    assert done == {"resolved": 2 * 2 * len(NAMES), "waiting": 2 * 2 * len(NAMES), "other_labels": 4 * len(NAMES)}
    assert predict.resolve(world.store, "m", world.token, world.labels, DAYS[6], LABELS)["resolved"] == 0
    with world.store.read() as conn:
        kept = pd.DataFrame(db.outcomes(conn, ["v2"], DAYS[0].date()))
    now = world.labels["session"].isin(DAYS[2:4]).to_numpy()
    proba = 0.5 * world.true[now] + 0.5 * np.array([4, 4, 3]) / 11
    assert np.allclose(kept["log_loss"], -np.log(proba[np.arange(len(kept)), world.labels.loc[now, "label"]])) and (kept["known_at"] <= DAYS[6].date()).all()
    assert kept.loc[kept["session"] == DAYS[2].date(), "prior_loss"].isna().all()          # on the third day no label was known
    known = world.labels.loc[world.labels["label_known_at"] <= DAYS[3], "label"].value_counts(normalize=True).reindex(range(3), fill_value=0)
    late = kept[kept["session"] == DAYS[3].date()]
    assert np.allclose(late["prior_loss"], -np.log(np.clip(known.to_numpy()[late["label"]], 1e-6, 1)))
    with pytest.raises(DataError, match="S00 on 2020-01-03 twice"):
        predict.resolve(world.store, "m", world.token, pd.concat([world.labels, world.labels]), DAYS[8], LABELS)
    with pytest.raises(LeaseError, match="taken over"):
        predict.resolve(world.store, "m", world.token - 1, world.labels, DAYS[8], LABELS)


def live(world, version: str) -> dict[str, pd.DataFrame]:
    """As the drift task of the ninth day is given them."""
    with world.store.read() as conn:
        return {name: reports.session_frame(rows, reports.LIVE_COLUMNS[name]) for name, rows in reports.live_rows(conn, version, DAYS[8].date()).items()}


def test_live_rows_are_what_earlier_runs_wrote(world):
    world.promote("v2", DAYS[2], "v1")
    for day in DAYS[2:9]:
        world.monitor(DAYS[[DAYS.get_loc(day)]], 0.5, 1.0)
    found = live(world, "v2")
    assert found["predictions"]["session"].max() == DAYS[7] and found["outcomes"]["known_at"].max() == DAYS[7]
    assert list(found["predictions"]) == ["session", "symbol", *PROBABILITIES] and found["outcomes"]["session"].nunique() == 3
    none = live(world, "nobody")
    assert all(frame.empty and frame["session"].dtype == "datetime64[us]" for frame in none.values())


def test_hindsight_of_the_rival_is_refused_too(world):
    world.promote("v2", DAYS[2], "v1")
    late = replace(world.said("v1", DAYS[3], 1.0), in_hindsight=True)
    with pytest.raises(ConfigError, match="v1 has learned from"):
        predict.record(world.store, "m", world.token, world.said("v2", DAYS[3], 1.0), late)
    with world.store.read() as conn:
        assert db.count_rows(conn, "m")["model_predictions"] == 0


def test_patience_outlives_any_label():
    for horizon in (1, 5, 14, 60):
        days = patience_days(horizon, WatchSettings())
        assert all(DAYS[i] + pd.Timedelta(days=days) > DAYS[i + horizon + 2] for i in range(100))
