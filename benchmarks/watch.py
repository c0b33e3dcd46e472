"""Is a champion that is no worse left in peace, and how soon is a worse one found? Simulated reigns of five years, against what one would naively do.

    python benchmarks/watch.py            # 400 worlds a case: about four minutes
    python benchmarks/watch.py --quick    # 60 worlds a case, 8 symbols: under a minute; only a share that is surely above 5 % fails
    python benchmarks/watch.py --json

A world has 26 names and 1,260 sessions. Volatility moves as an AR(1) process with heavy-tailed shocks, common and own; the probabilities of `sell hold buy` are those of reaching -5 % or +10 %
within 14 sessions at that volatility. Labels are drawn by a Gaussian copula over the returns to come: neighbouring sessions overlap by 14 of 15 sessions, names correlate by 0.4. So the true
probabilities are known, and two wrong forecasts can be made *exactly* equally good on every session, given all that is known then.

Cases without a reason to roll back (false-rollback share, exact Clopper-Pearson interval, bar 5 %):
- same: both say the same. twins: both err by noise of their own, equally on every session. noisy champion, noisy rival: one is overconfident, the other too timid, equally on every session.
- insured: the champion expects too much volatility, the rival too little, equally on every session: the champion mostly loses a little and wins much in a crash.
- raw equal: the rival is overconfident and the champion too timid so that they are equal in plain log-loss on every session (the watch compares smoothed losses).
Cases in which it depends on the day: each forecast is right in one of two regimes and wrong in the other, so that the difference drifts in sign and is 0 only in the long run. A rollback counts as false if,
summed up to that day, the champion was expected to lose no more than its rival; all rollbacks are shown beside it, without a bar: whether a champion that *has* been worse for a year is worse, nobody can know.

Cases with a reason: the champion's edge over the prior has faded so far that it is worse than its rival by 0.02, 0.05, 0.08 nats, or entirely; and one that is as good as its rival for a year first.

On the packaged stocks, if a cycle has run here: the out-of-fold predictions of the baselines, or of the stack with half of its log-odds over the prior, as champion against the stack as rival, from every
25th session on which ten years are left.

Peers on the same worlds: a t-test of the daily differences each month at 5 %; the same with a variance that allows for the overlap (Newey-West, 28 lags), and that at 5 % over all 60 looks; Page-Hinkley, its threshold 1.5 times
the largest excursion of the first year; and the h + 2 interleaved e-processes of the literature: averaged at their last settled value, with open bets counted as lost, and with adjusted
running maxima (Choe and Ramdas). Exits with 1 if a bar is missed.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta, norm
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
HORIZON, LIFE, MONTH, YEAR, ALPHA, UPDATE_BAR = 14, 16, 21, 252, 0.05, 0.05
NULLS = ("same", "twins", "noisy champion", "noisy rival", "insured", "raw equal")
DRIFTING = {"regimes of 60, mild": (60, 0.28), "regimes of 120, strong": (120, 0.45)}  # sessions that one lasts on average, error of log-volatility in the wrong one
DELTAS = (0.02, 0.05, 0.08)
METHODS = ("watch", "t-test monthly", "t-test, Newey-West", "the same, Bonferroni", "Page-Hinkley", "interleaved, last value", "interleaved, open lost", "interleaved, adjusted")


def forecast(volatility: np.ndarray) -> np.ndarray:
    """Probabilities (..., 3) of sell, hold, buy at a daily volatility: a touch is 1.7 times as likely as an end beyond the barrier."""
    scale = volatility * np.sqrt(HORIZON)
    sell, buy = np.minimum(1.7 * norm.cdf(-0.05 / scale), 0.62), np.minimum(1.7 * norm.cdf(-0.10 / scale), 0.35)
    return np.stack([sell, 1 - sell - buy, buy], axis=-1)


def smoothed_ar(rng: np.random.Generator, shape: tuple[int, ...], phi: float, df: float) -> np.ndarray:
    """AR(1) over the second axis with Student-t shocks, stationary variance 1."""
    shocks = rng.standard_t(df, shape) / np.sqrt(df / (df - 2)) * np.sqrt(1 - phi**2)
    out = np.empty(shape)
    out[:, 0] = rng.standard_normal(shape[:1] + shape[2:])
    for t in range(1, shape[1]):
        out[:, t] = phi * out[:, t - 1] + shocks[:, t]
    return out


def market(rng: np.random.Generator, paths: int, sessions: int, names: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-volatility (paths, sessions, names), true probabilities, labels."""
    log_vol = np.log(0.018) + 0.35 * smoothed_ar(rng, (paths, sessions, 1), 0.985, 4) + 0.20 * smoothed_ar(rng, (paths, sessions, names), 0.97, 5)
    log_vol = np.clip(log_vol + rng.normal(0, 0.15, (paths, 1, names)), np.log(0.006), np.log(0.09))
    true = forecast(np.exp(log_vol))
    ahead = np.sqrt(0.4) * rng.standard_normal((paths, sessions + HORIZON + 1, 1)) + np.sqrt(0.6) * rng.standard_normal((paths, sessions + HORIZON + 1, names))
    sums = np.cumsum(np.concatenate([np.zeros((paths, 1, names)), ahead], axis=1), axis=1)
    u = norm.cdf((sums[:, HORIZON + 1:HORIZON + 1 + sessions] - sums[:, 1:1 + sessions]) / np.sqrt(HORIZON))  # returns of the sessions s + 2 … s + 15: entry is at s + 1
    return log_vol, true, np.where(u < true[..., 0], 0, np.where(u > 1 - true[..., 2], 2, 1))


def tilt(proba: np.ndarray, by: np.ndarray) -> np.ndarray:
    """`proba` with `by` added to its logarithms."""
    raw = proba * np.exp(by)
    return raw / raw.sum(axis=-1, keepdims=True)


def expected(true: np.ndarray, said: np.ndarray, smoothing: float) -> np.ndarray:
    """Expected loss of a session given what is known then: (paths, sessions)."""
    from mltrader.watch import smoothed_losses

    losses = -np.log(np.clip(said, 1e-6, 1)) if smoothing == 0 else smoothed_losses(said, smoothing)
    return (true * losses).sum(axis=-1).mean(axis=-1)


def equalised(true: np.ndarray, champion: np.ndarray, family, smoothing: float, top: float = 3.0) -> np.ndarray:
    """The member of `family` (amplitude of shape (paths, sessions, 1) -> forecasts) that is expected to be as good as the champion on every session."""
    goal = expected(true, champion, smoothing)
    low, high = np.zeros((*goal.shape, 1)), np.full((*goal.shape, 1), top)
    for _ in range(26):
        middle = (low + high) / 2
        worse = (expected(true, family(middle), smoothing) > goal)[..., None]
        low, high = np.where(worse, low, middle), np.where(worse, middle, high)
    return family((low + high) / 2)


def overconfident(true: np.ndarray):
    """Forecasts sharpened by an amplitude."""
    return lambda a: tilt(true, np.log(true) * a[..., None])


def faded(true: np.ndarray, prior: np.ndarray, w) -> np.ndarray:
    """A forecast whose edge over the prior has faded by a share `w`."""
    return tilt(np.ones_like(true), (1 - w) * np.log(true) + w * np.log(prior))


def pair(case: str, rng: np.random.Generator, log_vol: np.ndarray, true: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of champion and rival in a case without a reason to roll back."""
    paths, sessions, names = log_vol.shape

    def noise() -> np.ndarray:
        return smoothed_ar(rng, (paths, sessions, names * 3), 0.9, 5).reshape(true.shape)

    if case == "same":
        champion = tilt(true, 0.3 * noise())
        return champion, champion
    if case == "twins":
        other = noise()
        champion = tilt(true, 0.4 * noise())
        return champion, equalised(true, champion, lambda a: tilt(true, a[..., None] * other), smoothing)
    if case in ("noisy rival", "raw equal"):
        champion = tilt(true, -0.5 * np.log(true))
        return champion, equalised(true, champion, overconfident(true), 0 if case == "raw equal" else smoothing)
    if case == "noisy champion":
        rival = tilt(true, -0.5 * np.log(true))
        return equalised(true, rival, overconfident(true), smoothing), rival
    if case == "insured":
        champion = forecast(np.exp(log_vol + 0.35))
        return champion, equalised(true, champion, lambda a: forecast(np.exp(log_vol - a)), smoothing, 1.5)
    length, error = DRIFTING[case]
    stays = np.cumsum(rng.random((paths, sessions)) < 1 / length, axis=1) + rng.integers(0, 2, (paths, 1))
    first = (stays % 2 == 0)[..., None, None]
    wrong = forecast(np.exp(log_vol + error))
    return np.where(first, true, wrong), np.where(first, wrong, true)


def compared(champion: np.ndarray, rival: np.ndarray, label: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Difference and reach of each session: shapes (sessions, paths)."""
    from mltrader.watch import smoothed_losses

    gain = smoothed_losses(champion, smoothing) - smoothed_losses(rival, smoothing)
    return np.take_along_axis(gain, label[..., None], axis=-1)[..., 0].mean(axis=-1).T, -gain.min(axis=-1).mean(axis=-1).T


def first_time(high: np.ndarray) -> np.ndarray:
    """Session of the first True in each column of (sessions, paths); infinite without one."""
    return np.where(high.any(axis=0), high.argmax(axis=0), np.inf)


def by_watch(x: np.ndarray, share: float) -> np.ndarray:
    """Sessions since the promotion at which the watch alarms."""
    from mltrader.watch import Purse, advance

    trail: list = []
    advance(Purse(*np.ones((3, x.shape[1]))), range(len(x)), np.arange(len(x)) + LIFE, x, len(x) - 1, share, LIFE, 1 / ALPHA, trail=trail)
    return first_time(np.array([free for _, free in trail]) >= 1 / ALPHA)


def by_interleaved(x: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """The average of LIFE purses with one bet each, in three readings."""
    n, paths = x.shape
    value, best = np.ones((LIFE, paths)), np.ones((LIFE, paths))
    readings: dict[str, list] = {name: [] for name in METHODS[5:]}
    for t in range(n):
        k = t % LIFE
        if t >= LIFE:
            value[k] *= 1 + share * x[t - LIFE]
            best = np.maximum(best, value)
        count = min(t + 1, LIFE)
        readings[METHODS[5]].append(value.mean(axis=0))
        readings[METHODS[6]].append((value[:count] * (1 - share)).sum(axis=0) / LIFE + (LIFE - count) / LIFE)
        readings[METHODS[7]].append((np.sqrt(best) - 1).mean(axis=0))
    return {name: first_time(np.array(values) >= 1 / ALPHA) for name, values in readings.items()}


def by_t_test(d: np.ndarray, lags: int, level: float = ALPHA) -> np.ndarray:
    """One-sided t-test of all known differences at the end of each month, from the third month on."""
    out = np.full(d.shape[1], np.inf)
    for t in range(3 * MONTH, len(d), MONTH):
        seen = d[:t - LIFE]
        n, centred = len(seen), seen - seen.mean(axis=0)
        variance = (centred**2).mean(axis=0)
        for k in range(1, min(lags, n - 1) + 1):
            variance = variance + 2 * (1 - k / (lags + 1)) * (centred[k:] * centred[:-k]).sum(axis=0) / n
        z = np.divide(seen.mean(axis=0), np.sqrt(np.maximum(variance, 0) / n), out=np.zeros(d.shape[1]), where=variance > 0)
        out = np.where((z > student.ppf(1 - level, n - 1)) & np.isinf(out), t, out)
    return out


def by_page_hinkley(d: np.ndarray, slack: float = 0.005) -> np.ndarray:
    """Page-Hinkley on what is known; alarms above 1.5 times the highest value of the first year."""
    known = np.concatenate([np.zeros((LIFE, d.shape[1])), d[:-LIFE]])
    mean = np.cumsum(known, axis=0) / np.arange(1, len(d) + 1)[:, None]
    walk = np.cumsum(known - mean - slack, axis=0)
    excess = walk - np.minimum.accumulate(walk, axis=0)
    high = excess > 1.5 * np.maximum(excess[:YEAR].max(axis=0), 1e-9)
    high[:YEAR] = False
    return first_time(high)


def all_methods(d: np.ndarray, reach: np.ndarray, share: float, least: float) -> dict[str, np.ndarray]:
    """First alarm of each method on each path."""
    x = np.maximum(d / np.maximum(reach, least), -1.0)
    return {METHODS[0]: by_watch(x, share), METHODS[1]: by_t_test(d, 0), METHODS[2]: by_t_test(d, 2 * HORIZON),
            METHODS[3]: by_t_test(d, 2 * HORIZON, ALPHA / (len(d) // MONTH)), METHODS[4]: by_page_hinkley(d), **by_interleaved(x, 0.8)}


def fading(names: int, smoothing: float) -> dict[str, float]:
    """The share by which the edge must fade for the champion to be worse by each of DELTAS nats (plain log-loss), on worlds of their own; and what it may lose at all."""
    log_vol, true, _ = market(np.random.default_rng(999), 20, 1000, names)
    prior = true.mean(axis=(0, 1, 2))
    best = expected(true, true, 0).mean()
    edge = float(expected(true, np.broadcast_to(prior, true.shape), 0).mean() - best)
    shares = {}
    for delta in DELTAS:
        low, high = 0.0, 1.0
        for _ in range(20):
            w = (low + high) / 2
            low, high = (low, w) if expected(true, faded(true, prior, w), 0).mean() - best > delta else (w, high)
        shares[f"worse by {delta:.2f}"] = w
    return shares | {"edge lost": 1.0, "one good year, then edge lost": 1.0, "edge": edge}


def study(worlds: int, names: int, sessions: int, chunk: int, say) -> dict:
    """First alarms by case and method, with means of the difference."""
    from mltrader.config import WatchSettings

    rule = WatchSettings()
    fade = fading(names, rule.smoothing)
    edge = fade.pop("edge")
    found: dict[str, dict[str, list]] = {case: {} for case in (*NULLS, *DRIFTING, *(f"{case}: false" for case in DRIFTING), *fade)}
    facts: dict[str, list] = {case: [] for case in found if not case.endswith("false")}
    for start in range(0, worlds, chunk):
        count = min(chunk, worlds - start)
        log_vol, true, label = market(np.random.default_rng([start, 1]), count, sessions, names)
        prior = true.mean(axis=(0, 1, 2))
        for number, case in enumerate(facts):
            if case in NULLS or case in DRIFTING:
                champion, rival = pair(case, np.random.default_rng([start, 2, number]), log_vol, true, rule.smoothing)
            else:
                champion, rival = faded(true, prior, fade[case]), true
                if case.startswith("one good year"):
                    champion = np.concatenate([tilt(true[:, :YEAR], 0.02 * np.log(true[:, :YEAR])), champion[:, YEAR:]], axis=1)
            d, reach = compared(champion, rival, label, rule.smoothing)
            facts[case].append((d.mean(), d.std(), float(pd.DataFrame(d).kurt().mean()) if d.std() > 0 else 0.0, reach.mean(),
                                float((d / np.maximum(reach, 1e-12)).mean()) if d.std() > 0 else 0.0))
            due = np.cumsum(expected(true, champion, rule.smoothing) - expected(true, rival, rule.smoothing), axis=1) if case in DRIFTING else None
            for method, times in all_methods(d, reach, rule.stake, rule.least_reach).items():
                found[case].setdefault(method, []).extend(times.tolist())
                if due is not None:
                    at = due[np.arange(count), np.where(np.isfinite(times), times, 0).astype(int)]
                    found[f"{case}: false"].setdefault(method, []).extend(np.where(at <= 0, times, np.inf).tolist())
        say(f"{start + count} of {worlds} worlds")
    return {"found": found, "facts": {case: np.mean(rows, axis=0).tolist() for case, rows in facts.items()}, "edge": edge, "fade": fade}


def exact_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson."""
    a = (1 - level) / 2
    return float(beta.ppf(a, hits, n - hits + 1)) if hits else 0.0, float(beta.ppf(1 - a, hits + 1, n - hits)) if hits < n else 1.0


def median_delay(times: np.ndarray) -> float:
    """Median of sessions to the alarm, infinite if fewer than half alarm."""
    return float(np.median(times))


def filled_store(folder: str, symbols: int, sessions: int) -> tuple:
    """A store after some years of watching every day: predictions of two versions, their outcomes, and the state of yesterday."""
    from mltrader import predict, registry
    from mltrader import store as db
    from mltrader.artifacts import ArtifactStore
    from mltrader.config import Settings
    from mltrader.core import Clock
    from mltrader.store import Store

    store, clock, rng, rule = Store(f"sqlite:///{folder}/t.db"), Clock(), np.random.default_rng(0), Settings()
    days, names = pd.bdate_range("2018-01-01", periods=sessions + 40), [f"S{i:04d}" for i in range(symbols)]
    manifest = {"components": {}, "recipe": {"settings": {"labels": rule.labels.model_dump(mode="json")}}}
    with store.write() as conn:
        token = db.take_lease(conn, "m", 10**6, clock)
        for name in ("a", "b", "m"):
            db.start_run(conn, name, "cycle", "test", token, {}, "d", clock)
        db.set_as_of(conn, "m", days[0].date())
    for run, version, seen in (("a", "v1", None), ("b", "v2", "v1")):
        decision = {"verdict": "PROMOTE", "model_version": version, "recipe_digest": run, "kind": "refresh", "as_of": days[0].date(), "data_digest": "d", "feature_set": "f", "trials": 1, "look": 1, "alpha": 0.01}
        registry.register_decision(store, ArtifactStore(Path(folder)), run, token, decision, [], manifest, seen, clock)
    keys = pd.MultiIndex.from_product([days[:sessions], names], names=["session", "symbol"]).to_frame(index=False)
    position = np.repeat(np.arange(sessions), symbols)
    labels = keys.assign(label=rng.integers(0, 3, len(keys)), label_known_at=days[position + LIFE])
    rows = []
    for version, role in (("v2", "champion"), ("v1", "rival")):
        said = keys.assign(model_version=version, role=role, session=keys["session"].dt.date, **dict(zip(("proba_sell", "proba_hold", "proba_buy"), rng.dirichlet([4, 5, 3], len(keys)).T, strict=True)))
        rows += said.to_dict("records")
    with store.write() as conn:
        db.write_rows(conn, "m", {"model_predictions": rows})
    run = type("Run", (), {"run_id": "m", "token": token})
    predict.resolve(store, "m", token, labels, days[sessions - 2], rule.labels)
    predict.watch(store, run, days[sessions - 2], rule)
    return store, run, labels, days[sessions - 1], rule


def speed(symbols: int) -> dict[str, float]:
    """Seconds of one update after five years of daily looks: what it takes to resolve the labels of a day, and the watch, database included."""
    from mltrader import predict
    from mltrader import store as db

    times: dict[str, list[float]] = {"resolve": [], "watch": []}
    with tempfile.TemporaryDirectory() as folder:
        store, run, labels, day, rule = filled_store(folder, symbols, 5 * YEAR)
        for _ in range(9):
            began = time.process_time()
            predict.resolve(store, run.run_id, run.token, labels, day, rule.labels)
            middle = time.process_time()
            predict.watch(store, run, day, rule)
            times["resolve"].append(middle - began)
            times["watch"].append(time.process_time() - middle)
            with store.write() as conn:  # as it was before
                conn.execute(db.prediction_outcomes.delete().where(db.prediction_outcomes.c.known_at == day.date()))
                conn.execute(db.live_watch.delete().where(db.live_watch.c.session == day.date()))
    return {name: statistics.median(values) for name, values in times.items()}


def on_the_packaged_stocks() -> dict[str, list[float]] | str:
    """Sessions to the alarm from each start, by who is champion; or why there are none."""
    from mltrader.config import WatchSettings
    from mltrader.core import MltraderError
    from mltrader.reports import open_task
    from mltrader.watch import smoothed_losses

    try:
        frame = open_task("promotion").inputs["meta"]["evaluation"]
    except MltraderError as error:
        return str(error)
    rule, found = WatchSettings(), {}
    said = {name: frame[[f"{name}_{c}" for c in ("sell", "hold", "buy")]].to_numpy(dtype=float) for name in ("proba", "prior", "logit")}
    said["stack, half its edge"] = tilt(np.ones_like(said["prior"]), 0.5 * np.log(said["prior"]) + 0.5 * np.log(np.clip(said["proba"], 1e-6, 1)))
    rival = smoothed_losses(said["proba"], rule.smoothing)
    for name in ("prior", "stack, half its edge", "logit"):
        gain = smoothed_losses(said[name], rule.smoothing) - rival
        rows = pd.DataFrame({"session": frame["session"], "d": gain[np.arange(len(gain)), frame["label"]], "reach": -gain.min(axis=1)})
        days = rows.groupby("session").mean()
        x = np.maximum(days["d"] / np.maximum(days["reach"], rule.least_reach), -1).to_numpy()
        starts = np.arange(0, len(x) - 2520, 25)
        found[name] = by_watch(np.stack([x[k:k + 2520] for k in starts], axis=1), rule.stake).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    worlds, names, chunk = (60, 8, 20) if options.quick else (400, 26, 10)
    sessions = 5 * YEAR
    began = time.process_time()
    made = study(worlds, names, sessions, chunk, lambda text: print(text, file=sys.stderr))
    found, rows, missed = made["found"], [], False
    for case, methods in found.items():
        for method, times in methods.items():
            values = np.array(times)
            hits = int(np.isfinite(values).sum())
            low, high = exact_interval(hits, worlds)
            barred = (case in NULLS or case.endswith("false")) and method == "watch"
            ok = not barred or (low <= ALPHA if options.quick else hits / worlds <= ALPHA)
            missed |= not ok
            late = values - YEAR if case.startswith("one good") else values
            rows.append({"case": case, "method": method, "worlds": worlds, "alarms": hits, "share": hits / worlds, "low": low, "high": high, "median_sessions": median_delay(late), "ok": ok})
    quickness = speed(26)
    missed |= quickness["watch"] > UPDATE_BAR
    real = on_the_packaged_stocks()
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "pandas")}
    try:
        versions["river"] = importlib.metadata.version("river")
    except importlib.metadata.PackageNotFoundError:
        versions["river"] = "not installed; Page-Hinkley is our own"
    if options.json:
        print(json.dumps({"rows": rows, "facts": made["facts"], "edge": made["edge"], "fade": made["fade"], "update_s": quickness, "packaged": real, "quick": options.quick, "versions": versions,
                          "python": platform.python_version(), "cpus": os.cpu_count()}, indent=1))
    else:
        report(rows, made, quickness, real, versions, worlds, names, sessions, time.process_time() - began)
    sys.exit(missed)


def report(rows: list[dict], made: dict, quickness: dict, real: dict | str, versions: dict, worlds: int, names: int, sessions: int, cpu: float) -> None:
    """Tables for a terminal."""
    print(f"{worlds} worlds a case, {names} names, {sessions} sessions; a perfect forecast beats the prior by {made['edge']:.3f} nats; {cpu:.0f} CPU-s; " + ", ".join(f"{n} {v}" for n, v in versions.items()))
    print("\nDifferences (champion minus rival, smoothed, nats):   mean     sd   kurtosis   reach   mean share of the reach")
    for case, (mean, sd, kurt, reach, x) in made["facts"].items():
        print(f"  {case:48}{mean:+9.4f}{sd:8.4f}{kurt:9.1f}{reach:9.3f}{x:+10.3f}")
    for title, wanted in (("Rolled back without a reason within five years, % (95 % interval); bar for the watch: 5", True), ("Worse champions: median sessions to the alarm (share found within five years, %)", False)):
        print(f"\n{title}")
        print(" " * 32 + "".join(f"{m:>26}" for m in METHODS))
        for case in made["found"]:
            if (case in NULLS or case.split(":")[0] in DRIFTING) != wanted:
                continue
            cells = []
            for r in (r for r in rows if r["case"] == case):
                cells.append(f"{100 * r['share']:.1f} ({100 * r['low']:.1f}-{100 * r['high']:.1f})" + ("" if r["ok"] else " MISSED") if wanted else
                             (f"{r['median_sessions']:.0f}" if np.isfinite(r["median_sessions"]) else "–") + f" ({100 * r['share']:.0f})")
            print(f"{case:32}" + "".join(f"{c:>26}" for c in cells))
    print("\nPackaged stocks, champion against the stack: median sessions to the alarm (share found within ten years, %)")
    print(f"  not measured: {real}" if isinstance(real, str) else
          "\n".join(f"  {name:24}{np.median(t):6.0f} ({100 * np.isfinite(t).mean():.0f}; {len(t)} starts)" for name, t in real.items()))
    print(f"\nOne update after five years, 26 symbols, database included, CPU: watch {1000 * quickness['watch']:.1f} ms, bar {1000 * UPDATE_BAR:.0f} ms"
          f"{'' if quickness['watch'] <= UPDATE_BAR else '  MISSED'}; resolving the labels of a day {1000 * quickness['resolve']:.1f} ms")


if __name__ == "__main__":
    main()
