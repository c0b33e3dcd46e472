"""Do the sets keep their promise, in every volatility and after a break? Simulated worlds, against plain split conformal, crepes and mapie.

    python benchmarks/conformal.py            # 3 worlds x 80 runs: some minutes
    python benchmarks/conformal.py --quick    # 3 worlds x 8 runs: under a minute; too few to judge, so the bars are printed and the exit code is 0
    python benchmarks/conformal.py --json

Each run is a market of 20 names over 1,500 sessions whose volatility switches between two states, or follows GARCH(1,1) with heavy tails. The labels are
the project's triple barriers (+10 %, -5 %, 14 sessions), the model is a logit on two volatilities that is fitted again every 250 sessions on known labels. At
a session drawn anew for each run the market breaks: volatility doubles for good (`switching`, `garch`), or it stays and prices begin to rise by 0.4 % a
session (`relation`), which no volatility tells. Sets promise 90 %. Measured on the rows after the first 200 sessions that have predictions:

- coverage by tercile of volatility (terciles of the run, seen from its end), averaged over runs, and its spread: bar 0.04 in each world;
- coverage of the first 60 sessions after the break, averaged over runs: bar 0.85 in each world.

Intervals are normal ones over runs, 95 %. The seeds are 0 to 79; the step was chosen on seeds from 1,000 on. Exits with 1 if a bar is missed.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WORLDS = ("switching", "garch", "relation")
HORIZON, SESSIONS, NAMES, FIRST, REFIT, SKIP, LEVEL = 14, 1500, 20, 300, 250, 200, 0.9
SPREAD_BAR, BREAK_BAR, MIN_RUNS = 0.04, 0.85, 180


def heavy(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Student's t with 5 degrees of freedom, scaled to variance 1."""
    return rng.standard_t(5, size=shape) / np.sqrt(5 / 3)


def switching_volatility(rng: np.random.Generator) -> np.ndarray:
    """Daily volatility of 1.0 % or 2.4 %, with sojourns of 67 and 25 sessions on average."""
    draws, state, states = rng.random(SESSIONS), 0, np.empty(SESSIONS, int)
    for t, u in enumerate(draws):
        state = 1 - state if u > (0.985, 0.96)[state] else state
        states[t] = state
    return np.where(states == 0, 0.010, 0.024)


def garch_returns(rng: np.random.Generator, broken: int, beta: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A GARCH(1,1) market and GARCH(1,1) names; their variances are four times as large from `broken` on."""
    shocks, own, a, b, level = heavy(rng, SESSIONS), heavy(rng, SESSIONS, NAMES), 0.08, 0.90, 0.015**2
    market_var, own_var, out = 0.4 * level, np.full(NAMES, 0.6 * level), np.empty((SESSIONS, NAMES))
    for t in range(SESSIONS):
        if t == broken:
            level, market_var, own_var = 4 * level, 4 * market_var, 4 * own_var
        market, each = np.sqrt(market_var) * shocks[t], np.sqrt(own_var) * own[t]
        out[t] = beta * market + scale * each
        market_var = (1 - a - b) * 0.4 * level + a * market**2 + b * market_var
        own_var = (1 - a - b) * 0.6 * level + a * each**2 + b * own_var
    return out


def smoothed_volatility(returns: np.ndarray, half_life: float) -> np.ndarray:
    """Root of the exponentially weighted mean square up to each session, shape (n_sessions, n_names)."""
    return np.sqrt(pd.DataFrame(returns**2).ewm(halflife=half_life, adjust=True).mean().to_numpy())


def world(kind: str, seed: int) -> tuple[pd.DataFrame, int, pd.Timestamp]:
    """Rows for `conformal.track`, the number of the first session after the break, and the last session."""
    from mltrader.labels import first_touch
    from mltrader.meta import apply_logit, fit_logit

    rng = np.random.default_rng([seed, WORLDS.index(kind)])
    broken, scale, beta = int(rng.integers(950, 1200)), np.exp(rng.normal(0, 0.25, NAMES)), rng.uniform(0.6, 1.4, NAMES)
    after = (np.arange(SESSIONS) >= broken)[:, None]
    if kind == "garch":
        returns = garch_returns(rng, broken, beta, scale)
    else:
        volatility = switching_volatility(rng)[:, None] * (np.where(after, 2.0, 1.0) if kind == "switching" else 1.0)
        returns = volatility * (np.sqrt(0.4) * beta * heavy(rng, SESSIONS, 1) + np.sqrt(0.6) * scale * heavy(rng, SESSIONS, NAMES))
        returns = returns + np.where(after, 0.004, 0.0) if kind == "relation" else returns
    close = 100 * np.exp(np.cumsum(returns, axis=0))
    entry = np.r_[close[1:], np.full((1, NAMES), np.nan)]
    label = first_touch({name: close for name in ("open", "high", "low", "close")}, 1.10 * entry, 0.95 * entry, HORIZON, "close", "close")[0]
    last = SESSIONS - HORIZON - 2                                        # the rows after it have no complete label
    seen = np.stack([smoothed_volatility(returns, h) for h in (10, 40)], axis=-1)
    X, proba = np.log(seen), np.full((SESSIONS, NAMES, 3), np.nan)
    for cut in range(FIRST, last, REFIT):
        train, test = slice(60, cut - HORIZON - 2), slice(cut, cut + REFIT)
        centre, spread = X[train].mean(axis=(0, 1)), X[train].std(axis=(0, 1))
        coef = fit_logit(((X[train] - centre) / spread).reshape(-1, 2), label[train].ravel(), 1.0)
        proba[test] = apply_logit(coef, ((X[test] - centre) / spread).reshape(-1, 2)).reshape(-1, NAMES, 3)
    sessions, row = pd.bdate_range("2001-01-01", periods=SESSIONS).as_unit("us"), np.repeat(np.arange(FIRST, last), NAMES)
    frame = pd.DataFrame({"session": sessions[row], "label_known_at": sessions[row + HORIZON + 2], "label": label[FIRST:last].ravel(),
                          "volatility": seen[FIRST:last, :, 0].ravel()})
    return frame.assign(**dict(zip(("proba_sell", "proba_hold", "proba_buy"), proba[FIRST:last].reshape(-1, 3).T, strict=True))), broken, sessions[-1]


def calibration(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose label is known when the measured part begins, and those of the measured part."""
    start = frame["session"].unique()[SKIP]
    return (frame["label_known_at"] <= start).to_numpy(), (frame["session"] >= start).to_numpy()


def split_sets(frame: pd.DataFrame, groups: int) -> np.ndarray:
    """Plain split conformal sets, learned once from the first 200 sessions: bool of shape (n_rows, 3)."""
    from mltrader.conformal import Conformal, Rule, first_thresholds

    learn, _ = calibration(frame)
    proba, volatility = frame.filter(like="proba_").to_numpy(), frame["volatility"].to_numpy()
    bounds = np.quantile(volatility[learn], np.arange(1, groups) / groups)
    blank = Conformal((LEVEL,), bounds, np.full((1, groups), np.nan))
    score = 1 - proba[np.arange(len(frame)), frame["label"]][learn]
    return Conformal((LEVEL,), bounds, first_thresholds(score, blank.groups(volatility[learn]), Rule((LEVEL,), groups=groups))).sets(proba, volatility)[:, 0]


def crepes_sets(frame: pd.DataFrame) -> np.ndarray:
    """The same by tercile, made by crepes."""
    from crepes import ConformalClassifier

    learn, _ = calibration(frame)
    scores, volatility = 1 - frame.filter(like="proba_").to_numpy(), frame["volatility"].to_numpy()
    tercile = np.digitize(volatility, np.quantile(volatility[learn], [1 / 3, 2 / 3]))
    peer = ConformalClassifier().fit(scores[np.arange(len(frame)), frame["label"]][learn], bins=tercile[learn])
    return peer.predict_set(scores, bins=tercile, confidence=LEVEL, smoothing=False).astype(bool)


def mapie_sets(frame: pd.DataFrame) -> np.ndarray:
    """The same without terciles, made by mapie."""
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Said(ClassifierMixin, BaseEstimator):
        def fit(self, X, y=None):
            self.classes_, self.fitted_ = np.arange(3), True
            return self

        def predict_proba(self, X):
            return X

        def predict(self, X):
            return X.argmax(axis=1)

    learn, _ = calibration(frame)
    proba = frame.filter(like="proba_").to_numpy()
    peer = SplitConformalClassifier(Said().fit(proba), confidence_level=LEVEL, conformity_score="lac", prefit=True)
    return peer.conformalize(proba[learn], frame["label"].to_numpy()[learn]).predict_set(proba)[1][:, :, 0].astype(bool)


def measured(frame: pd.DataFrame, sets: np.ndarray, broken: int) -> dict[str, float]:
    """Coverage and size of one run."""
    _, judged = calibration(frame)
    hit = sets[np.arange(len(frame)), frame["label"]][judged]
    volatility, number = frame["volatility"].to_numpy()[judged], pd.factorize(frame["session"])[0][judged] + FIRST
    tercile = np.digitize(volatility, np.quantile(volatility, [1 / 3, 2 / 3]))
    shares = {f"tercile_{g + 1}": float(hit[tercile == g].mean()) for g in range(3)}
    return {"coverage": float(hit.mean()), **shares, "spread": float(np.ptp(list(shares.values()))), "size": float(sets[judged].sum(axis=1).mean()),
            "first_60": float(hit[(number >= broken) & (number < broken + 60)].mean())}


def study(runs: int, offset: int = 0) -> tuple[pd.DataFrame, dict[str, str], float]:
    """One row a (world, run, method), the peers' versions or why they are missing, and the milliseconds of one call of `track`."""
    from mltrader.conformal import Rule, track

    peers, versions = {"crepes": crepes_sets, "mapie": mapie_sets}, {}
    for name in peers:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed: not compared"
    peers = {name: function for name, function in peers.items() if versions[name][0].isdigit()}
    rows, spent = [], 0.0
    for kind in WORLDS:
        for seed in range(offset, offset + runs):
            frame, broken, last = world(kind, seed)
            before = time.process_time()
            found = {"mltrader": track(frame, Rule((LEVEL,)), last).sets[:, 0]}
            spent += time.process_time() - before
            found |= {"split": split_sets(frame, 1), "split by tercile": split_sets(frame, 3)}
            found |= {name: function(frame) for name, function in peers.items()}
            same = {"crepes": "split by tercile", "mapie": "split"}
            rows += [{"world": kind, "seed": seed, "method": name, "same_as_ours": float((sets == found[same[name]]).mean()) if name in same else np.nan,
                      **measured(frame, sets, broken)} for name, sets in found.items()]
    return pd.DataFrame(rows), versions, 1000 * spent / (runs * len(WORLDS))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over runs; the spread is that of the mean coverages, `run_spread` the median of the runs' own."""
    columns = ["coverage", "tercile_1", "tercile_2", "tercile_3", "first_60", "size", "same_as_ours"]
    grouped = rows.groupby(["world", "method"], sort=False)
    table = grouped[columns].mean()
    half = 1.96 * grouped[["coverage", "first_60"]].std() / np.sqrt(grouped.size()).to_numpy()[:, None]
    terciles = table[["tercile_1", "tercile_2", "tercile_3"]]
    return table.assign(spread=terciles.max(axis=1) - terciles.min(axis=1), run_spread=grouped["spread"].median(), coverage_half=half["coverage"],
                        first_60_half=half["first_60"], runs_first_ok=rows.assign(ok=rows["first_60"] >= BREAK_BAR).groupby(["world", "method"], sort=False)["ok"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=80, help="runs of each world")
    parser.add_argument("--offset", type=int, default=0, help="first seed")
    options = parser.parse_args()
    runs = 8 if options.quick else options.runs
    rows, versions, spent = study(runs, options.offset)
    table, enough = summary(rows), runs * len(WORLDS) >= MIN_RUNS
    ours = table.xs("mltrader", level="method")
    bars = [{"world": kind, "what": what, "measured": float(ours.at[kind, name]), "bar": bar,
             "ok": bool(ours.at[kind, name] <= bar if name == "spread" else ours.at[kind, name] >= bar)}
            for kind in WORLDS for what, name, bar in (("spread over volatility terciles", "spread", SPREAD_BAR), ("first 60 sessions after the break", "first_60", BREAK_BAR))]
    versions |= {name: importlib.metadata.version(name) for name in ("numpy", "pandas", "scikit-learn")}
    if options.json:
        print(json.dumps({"bars": bars, "judged": enough, "runs": runs * len(WORLDS), "track_ms": spent, "table": json.loads(table.reset_index().to_json(orient="records")),
                          "python": platform.python_version(), "cpus": os.cpu_count(), "versions": versions}, indent=1))
    else:
        print(f"{runs * len(WORLDS)} runs, promised {LEVEL:.0%}; Python {platform.python_version()}, {os.cpu_count()} CPUs, " + ", ".join(f"{n} {v}" for n, v in versions.items()))
        shown = table.assign(coverage=[f"{a:.3f} ± {b:.3f}" for a, b in zip(table["coverage"], table["coverage_half"], strict=True)],
                             first_60=[f"{a:.3f} ± {b:.3f}" for a, b in zip(table["first_60"], table["first_60_half"], strict=True)])
        with pd.option_context("display.width", 240, "display.max_columns", 30, "display.float_format", "{:.3f}".format):
            print(shown.drop(columns=["coverage_half", "first_60_half"]).to_string())
        for row in bars:
            print(f"{row['world']:10} {row['what']:34} {row['measured']:.3f}   bar {row['bar']:.2f}   {'ok' if row['ok'] else 'MISSED'}")
        print(f"one call of track: {spent:.0f} CPU-ms for about 24,000 rows" + ("" if enough else f"; {runs * len(WORLDS)} runs are too few to judge the bars, which need {MIN_RUNS}"))
    sys.exit(enough and not all(row["ok"] for row in bars))


if __name__ == "__main__":
    main()
