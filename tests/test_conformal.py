"""Sets keep their promise by arithmetic, know nothing of the future, and equal a row-by-row account and an independent definition."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import conformal
from mltrader.conformal import UNKNOWN, Conformal, Rule, track
from mltrader.core import PROBABILITIES, DataError

DAYS = pd.bdate_range("2015-01-01", periods=420).as_unit("us")
SMALL = Rule((0.9, 0.6), step=0.07, warm_up=8, window=40, every=5)


def panel(seed: int, n: int = 60, names: int = 5, lag: int = 6, gaps: float = 0.15) -> pd.DataFrame:
    """Rows with gaps, labels that ripen late for some, and unknown volatilities."""
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(n), names)
    kept = rng.random(len(row)) > gaps
    row = row[kept]
    late = rng.integers(0, 4, len(row)) * (rng.random(len(row)) < 0.1)
    volatility = np.exp(rng.normal(0, 0.5, len(row)) + np.sin(row / 9))
    volatility[rng.random(len(row)) < 0.05] = np.nan
    frame = pd.DataFrame({"session": DAYS[row], "label_known_at": DAYS[row + lag + late], "label": rng.integers(0, 3, len(row)), "volatility": volatility})
    return frame.assign(**dict(zip(PROBABILITIES, rng.dirichlet([2, 3, 2], len(row)).T, strict=True)))


def by_hand(frame: pd.DataFrame, rule: Rule, as_of: pd.Timestamp) -> tuple[np.ndarray, np.ndarray]:
    """The same account, one row at a time: sets of each row, thresholds at the end."""
    rows = frame.to_dict("records")
    times = sorted({r["session"] for r in rows} | {r["label_known_at"] for r in rows if r["label_known_at"] <= as_of})
    bounds, q, learned = None, None, []
    counts = {t: sum(r["session"] == t for r in rows) for t in times}
    for r in rows:
        r["p"] = [r[name] for name in PROBABILITIES]
    for i, t in enumerate(times):
        if i >= rule.warm_up and (i - rule.warm_up) % rule.every == 0:
            window = set(times[max(0, i - rule.window):i])
            seen = [r["volatility"] for r in rows if r["session"] in window and not math.isnan(r["volatility"])]
            bounds = [np.quantile(seen, k / rule.groups) for k in range(1, rule.groups)] if seen else bounds

        def group(volatility, bounds=bounds):
            return UNKNOWN if bounds is None or math.isnan(volatility) else sum(volatility >= b for b in bounds)

        new = [r for r in rows if r["label_known_at"] == t]
        learned += new
        if q is not None:
            moves = {key: 0.0 for key in q}
            for r in new:
                if r["q"] is not None:
                    for k, level in enumerate(rule.levels):
                        missed = 1 - r["p"][r["label"]] > r["q"][k]
                        moves[k, r["g"]] += rule.step * rule.groups * (missed - (1 - level)) / counts[r["session"]]
            q = {key: value + moves[key] for key, value in q.items()}
        elif i >= rule.warm_up and len({r["session"] for r in learned}) >= rule.warm_up:
            q = {}
            for g in range(rule.groups):
                own = [r for r in learned if group(r["volatility"]) == g]
                scores = sorted(1 - r["p"][r["label"]] for r in (own if len(own) >= 30 else learned))
                for k, level in enumerate(rule.levels):
                    q[k, g] = scores[min(math.ceil((len(scores) + 1) * level), len(scores)) - 1]
        for r in (r for r in rows if r["session"] == t):
            r["g"] = group(r["volatility"])
            r["q"] = None if q is None or r["g"] == UNKNOWN else [q[k, r["g"]] for k in range(len(rule.levels))]
    sets = np.array([[[r["q"] is None or 1 - p <= r["q"][k] for p in r["p"]] for k in range(len(rule.levels))] for r in rows])
    final = np.array([[np.nan if q is None else q[k, g] for g in range(rule.groups)] for k in range(len(rule.levels))])
    return sets, final


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 4]), st.integers(3, 12))
def test_equals_an_account_row_by_row(seed, groups, lag):
    frame, rule = panel(seed, lag=lag), Rule((0.9, 0.6), step=0.07, groups=groups, warm_up=8, window=40, every=5)
    as_of = frame["session"].iloc[-1] + pd.Timedelta(days=6)
    found, (sets, final) = track(frame, rule, as_of), by_hand(frame, rule, as_of)
    np.testing.assert_array_equal(found.sets, sets)
    np.testing.assert_allclose(found.state.thresholds, final, atol=1e-8)
    assert found.ready.any() and not found.ready.all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(5, 55))
def test_nothing_after_a_session_changes_what_was_said_up_to_it(seed, cut):
    frame, rng = panel(seed), np.random.default_rng(seed)
    at = DAYS[cut]
    after, unknown = (frame["session"] > at).to_numpy(), (frame["label_known_at"] > at).to_numpy()
    changed = frame.assign(label=np.where(unknown, rng.integers(0, 3, len(frame)), frame["label"]),
                           volatility=np.where(after, rng.random(len(frame)), frame["volatility"]))
    noise = dict(zip(PROBABILITIES, rng.dirichlet([1, 1, 1], len(frame)).T, strict=True))
    changed = changed.assign(**{name: np.where(after, values, frame[name]) for name, values in noise.items()})
    before, again = track(frame, SMALL, DAYS[-1]), track(changed, SMALL, DAYS[-1])
    np.testing.assert_array_equal(before.sets[~after], again.sets[~after])
    np.testing.assert_array_equal(before.group[~after], again.group[~after])
    then = [track(f[~after], SMALL, at).state.document() for f in (frame, changed)]
    assert then[0] == then[1]


def test_a_label_used_before_it_is_known_is_caught():
    """Red team: rows enter at their session's next day instead of at `label_known_at`; the property above must break."""
    frame = panel(3)
    at = DAYS[40]
    unknown = ((frame["label_known_at"] > at) & (frame["session"] <= at)).to_numpy()
    changed = frame.assign(label=np.where(unknown, (frame["label"] + 1) % 3, frame["label"]))
    early = [f.assign(label_known_at=DAYS[DAYS.get_indexer(f["session"]) + 1]) for f in (frame, changed)]

    def thresholds_up_to(rows: pd.DataFrame) -> np.ndarray:
        found = track(rows, SMALL, DAYS[-1])
        return found.history[found.times <= at.to_datetime64()]

    np.testing.assert_array_equal(thresholds_up_to(frame), thresholds_up_to(changed))
    assert not np.array_equal(*map(thresholds_up_to, early), equal_nan=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(["random", "least likely", "most likely", "always sell"]), st.floats(0.02, 0.3))
def test_the_promise_is_arithmetic(seed, adversary, step):
    """Over all that has become known, a group's misses less its allowance are what its threshold moved, which is bounded by the delay."""
    frame = panel(seed, n=300, gaps=0.05)
    proba = frame[list(PROBABILITIES)].to_numpy()
    labels = {"random": frame["label"], "least likely": proba.argmin(axis=1), "most likely": proba.argmax(axis=1), "always sell": 0}
    frame = frame.assign(label=labels[adversary])
    rule = Rule((0.9,), step=step, warm_up=8, every=5, window=40)
    found = track(frame, rule, DAYS[-1])
    share = 1 / frame.groupby("session")["label"].transform("size").to_numpy()
    missed = ~found.sets[np.arange(len(frame)), 0, frame["label"].to_numpy()]
    started = found.history[np.isfinite(found.history[:, 0, 0]).argmax(), 0]
    for g in range(3):
        mine = found.ready & (found.group == g)
        excess = ((missed[mine] - 0.1) * share[mine]).sum()
        np.testing.assert_allclose(step * 3 * excess, found.state.thresholds[0, g] - started[g], atol=1e-6)
        assert -1 - 3 * step * 12 < found.state.thresholds[0, g] < 1 + 3 * step * 12    # at 0 all sets miss, at 1 none: it turns once labels ripen


def test_a_row_weighs_as_its_session_not_as_itself():
    """One straggler that ripens alone moves a threshold by a fifth of what its whole session would."""
    frame = panel(1, gaps=0.0).assign(label=0, proba_sell=0.01, proba_hold=0.5, proba_buy=0.49)
    rule = Rule((0.9,), step=0.05, groups=1, warm_up=8)
    frame["volatility"] = 1.0
    frame.loc[frame.index[-1], "label_known_at"] = DAYS[90]
    found = track(frame, rule, DAYS[-1])
    assert found.times[-1] == DAYS[90].to_datetime64()
    moved = found.history[-1, 0, 0] - found.history[-2, 0, 0]
    missed = not found.sets[-1, 0, 0]
    assert moved == pytest.approx(0.05 * (missed - 0.1) / 5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(30, 200), st.sampled_from([0.5, 0.8, 0.9]))
def test_first_thresholds_cover_a_new_row(seed, n, level):
    """The definition of split conformal: at least ceil((n + 1) level) scores are not above the threshold, and one step lower there are fewer."""
    score = np.random.default_rng(seed).random(n)
    found = conformal.first_thresholds(score, np.zeros(n, int), Rule((level,), groups=1))[0, 0]
    needed = min(math.ceil((n + 1) * level), n)
    assert (score <= found).sum() >= needed > (score < found).sum()


def test_what_is_deployed_makes_the_sets_that_were_issued():
    frame = panel(5, n=200)
    last = frame["session"].iloc[-1]
    found = track(frame, SMALL, last)
    today = (frame["session"] == last).to_numpy()
    revived = Conformal.from_document(found.state.document())
    np.testing.assert_array_equal(revived.sets(frame.loc[today, list(PROBABILITIES)], frame.loc[today, "volatility"]), found.sets[today])
    blind = revived.sets(np.array([[1.0, 0.0, 0.0]]), [np.nan])
    assert blind.all() and (revived.groups([np.nan]) == UNKNOWN).all()


@pytest.mark.parametrize(("change", "words"), [
    ({"proba_buy": np.inf}, "NaN or infinite"), ({"label": 7}, "none of 0, 1, 2"), ({"label_known_at": DAYS[0]}, "not after its session")])
def test_bad_rows_are_named(change, words):
    with pytest.raises(DataError, match=words):
        track(panel(2).assign(**change), SMALL, DAYS[-1])


def test_a_label_that_is_not_known_yet_is_never_read():
    frame = panel(2)
    as_of = frame["session"].iloc[-1]
    unknown = frame["label_known_at"] > as_of
    broken = frame.assign(label=frame["label"].where(~unknown, 99))
    assert track(broken, SMALL, as_of).state.document() == track(frame, SMALL, as_of).state.document()


def test_the_benchmark_sees_what_it_is_for(monkeypatch):
    """A world keeps its promise in every tercile; sets that lose a class where volatility is high miss the bars."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("conformal", None)
    import conformal as bench

    frame, broken, last = bench.world("garch", 5000)
    sets = track(frame, Rule((bench.LEVEL,)), last).sets[:, 0]
    good = bench.measured(frame, sets, broken)
    assert good["spread"] < 0.06 and good["first_60"] > 0.8 and abs(good["coverage"] - 0.9) < 0.02
    wild = (frame["volatility"] > frame["volatility"].quantile(2 / 3)).to_numpy()
    lost = sets.copy()
    lost[wild, 0] = False
    bad = bench.measured(frame, lost, broken)
    assert bad["spread"] > bench.SPREAD_BAR and bad["first_60"] < bench.BREAK_BAR
