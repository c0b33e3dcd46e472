"""What the event triggers find and miss on the packaged years 1990 to 2022, walked forward, and what a check and a capture cost.

    python benchmarks/events.py            # daily checks, drift on every session with a long enough run of high VIX: some minutes
    python benchmarks/events.py --quick    # weekly checks, drift on the session on which each run became long enough: under a minute
    python benchmarks/events.py --json

Drawdown episodes are those of `regimes.drawdown_episodes`: the index 12 % below its highest close of 60 sessions, dated back from the trough to the top. One is recalled if an event's interval
holds the fifth session after the top. An event that overlaps no fall from top to trough is false. The delay is counted from the first session on which the fall was 12 %, the earliest on which anybody could
know that it is an episode; the delay from the top stands beside it, without a bar. NOTE what this can show: the drawdown trigger is the causal reading of the same definition, so that it fires is no surprise; what is measured is the
dating, the merging, the false events and the walk. The triggers alone, and a grid of thresholds, are printed for that reason. All thresholds were chosen by people who knew these years.

The seed's criteria are evaluated exactly where they can hold: on sessions with a run of three closes of the VIX above 40, with the drift score of `20_drift` against the five years before
(no champion), all windows, and the share of the 20 packaged symbols in a crash. No canonical events are known during the walks. Exits with 1 if a bar is missed.
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
from typing import Any

import numpy as np
import pandas as pd
from timing import document
from timing import line as row_of

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
DETECTION_S, CAPTURE_S, DELAY, YEARS = 0.050, 5.0, 5, 10
OFF = 9.0  # a threshold that is never reached


def walk(index: pd.DataFrame, chosen: Any, step: int, confirmed: dict[int, float] | None = None) -> list[dict]:
    """The events that checks on every `step`-th session (and on those in `confirmed`) leave at the end."""
    from mltrader import events

    seen, latest, confirmed = events.watch(index, chosen.events), {}, confirmed or {}
    sessions, horizon = index["session"], chosen.labels.horizon
    canonical = events.canonical_events(chosen.events, sessions, horizon, sessions.iloc[0])
    for at in sorted({*range(0, len(index), step), *confirmed, len(index) - 1}):
        part, covered = seen.iloc[:at + 1], np.ones(at + 1, dtype=bool)
        rows = events.moved([row for row in latest.values() if row["state"] != "matured"], part, covered, horizon)
        held = [rows.get(name, row) for name, row in latest.items()]
        for event in events.new_events(part, canonical, held, chosen.events, sessions.iloc[0], at in confirmed):
            rows[event["event_name"]] = events.first_row({**event, "detected_on": sessions.iloc[at].date(), "drift_score": confirmed.get(at, float("nan"))}, part, covered, horizon)
        latest |= rows
    return list(latest.values())


def spans_of(found: list[dict], sessions: pd.Series) -> pd.DataFrame:
    """Positions of start, trigger, detection and end of events."""
    def at(days: list[Any]) -> np.ndarray:
        return sessions.searchsorted(pd.to_datetime(days).astype("datetime64[us]"))

    ends = [row["end_date"] or sessions.iloc[-1] for row in found]
    return pd.DataFrame({"event": [row["event_name"] for row in found], "start": at([row["start_date"] for row in found]), "fired": at([row["provenance"]["fired_on"] for row in found]),
                         "detected": at([row["detected_on"] for row in found]), "last": at(ends), "trigger": [row["trigger"] for row in found], "vix_peak": [row["vix_peak"] for row in found]})


def judge(spans: pd.DataFrame, falls: pd.DataFrame) -> dict[str, Any]:
    """Recall, delays and false events. `falls` has the positions top, trough and deep (the first session at 12 %)."""
    hits = [spans[(spans["start"] <= top + 5) & (spans["last"] >= top + 5)] for top in falls["top"]]
    delays, from_top = (np.array([hit["detected"].iloc[0] - since if len(hit) else np.nan for hit, since in zip(hits, falls[name], strict=True)], dtype=float) for name in ("deep", "top"))
    false = [not ((row.start <= falls["trough"]) & (row.last >= falls["top"])).any() for row in spans.itertuples()]
    undated = [((spans["detected"] <= top + 5) & (spans["last"] >= top + 5)).any() for top in falls["top"]]
    return {"recalled": int(np.isfinite(delays).sum()), "of": len(falls), "events": len(spans), "false": int(sum(false)), "delay": float(max(delays[np.isfinite(delays)], default=float("nan"))),
            "from_top": float(np.nanmedian(from_top)) if np.isfinite(from_top).any() else float("nan"), "undated": int(sum(undated)), "false_events": spans.loc[false, "event"].tolist(),
            "missed": [i for i, delay in enumerate(delays) if np.isnan(delay)]}


def episodes(index: pd.DataFrame) -> pd.DataFrame:
    """Drawdown episodes by positions."""
    from mltrader import regimes

    sessions, close = index["session"], index["index_close"]
    deep, falls = np.flatnonzero(close / close.rolling(60, min_periods=1).max() - 1 <= -0.12), regimes.drawdown_episodes(index)
    top, trough = (sessions.searchsorted(falls[name]) for name in ("start", "end"))
    return falls.assign(top=top, trough=trough, deep=[deep[deep >= at][0] for at in top])


def quickly(index: pd.DataFrame, falls: pd.DataFrame, **limits: float) -> dict[str, Any]:
    """`judge` of daily checks, read off the whole history at once (the triggers are causal, so it is the same: a test compares)."""
    from mltrader import events
    from mltrader.config import EventSettings

    chosen = EventSettings(**limits)
    found = [crisis for crisis in events.crises(events.watch(index, chosen), chosen) if crisis.trigger != "vix" or chosen.preset == "seed"]
    frame = pd.DataFrame(found, columns=["start", "fired", "last", "trigger"]).assign(event=lambda f: index["session"].iloc[f["start"]].dt.strftime("%Y-%m-%d").to_numpy())
    return judge(frame.assign(detected=frame["fired"]), falls)


def seed_checks(made: dict, index: pd.DataFrame, settings: Any, quick: bool) -> pd.DataFrame:
    """The seed's criteria on the sessions with a long enough run of high VIX: [at, session, drift, crash_share, met]."""
    from mltrader import drift, events

    seen, moods = events.watch(index, settings.events), made["regimes"]["symbol_regimes"]
    long = (seen["vix_run"] >= settings.events.vix_sessions) & (seen["vix_close"] > settings.events.vix)
    places = np.flatnonzero(long & (seen["vix_run"] == settings.events.vix_sessions)) if quick else np.flatnonzero(long)
    crash, rows = (moods["regime"] == "crash").groupby(moods["session"]).mean(), []
    for at in places:
        day = index["session"].iloc[at]
        try:
            score = events.drift_observed(drift.run({**made, "state": {}}, settings, day).documents["drift"])
        except Exception as error:  # a reference that is too short: unknown, and so not met
            print(f"{day.date()}: {error}", file=sys.stderr)
            score = float("nan")
        met = all(c["met"] for c in events.criteria(3.0, score, float(crash.get(day, np.nan)), "", settings.events).values())
        rows.append({"at": int(at), "session": day, "drift": score, "crash_share": float(crash.get(day, np.nan)), "met": met})
    return pd.DataFrame(rows)


def canonical_table(index: pd.DataFrame, settings: Any, found: dict[str, pd.DataFrame], checks: pd.DataFrame) -> list[dict]:
    """Which of the famous events each preset found, and what the seed's criteria saw during them."""
    from mltrader import events

    seen, sessions, rows = events.watch(index, settings.events), index["session"], []
    for event in settings.events.canonical:
        first, last = sessions.searchsorted(pd.Timestamp(event.start)), sessions.searchsorted(pd.Timestamp(event.end), side="right") - 1
        row: dict[str, Any] = {"event": event.name}
        if first >= len(index):
            rows.append(row | {"extended": "after the data", "seed": "after the data", "vix_run": None, "drift": None, "crash_share": None})
            continue
        for name, spans in found.items():
            hits = spans[(spans["start"] <= last) & (spans["last"] >= first)]
            row[name] = ", ".join(f"{hit.event} ({hit.detected - first:+d} sessions)" for hit in hits.itertuples()) or "not found"
        inside = checks[checks["at"].between(first, last)]
        rows.append(row | {"vix_run": int(seen["vix_run"].iloc[first:last + 1].max()), "drift": float(inside["drift"].max()) if len(inside) else None,
                           "crash_share": float(inside["crash_share"].max()) if len(inside) else None})
    return rows


def costs(made: dict, as_of: pd.Timestamp, settings: Any) -> dict[str, list[float]]:
    """CPU-seconds of a check and of a capture (cut, file, row), several of each."""
    from mltrader import events
    from mltrader.store import Store

    inputs, spent = {**made, "drift": {"drift": {"by_window": {"20": 0.1}}}, "state": {"captured_events": [], "watched_since": None}}, {"check": [], "capture": []}
    for number in range(10):
        began = time.process_time()
        events.run(inputs, settings, as_of)
        spent["check"] += [time.process_time() - began] if number else []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            updater = events.DynamicArchiveUpdater(Store(f"sqlite:///{folder}/t.db"), settings, lambda start, end: (made, as_of), Path(folder) / "artifacts")
            began = time.process_time()
            samples = updater.capture_event("dynamic_20080812", "2008-08-12", "2009-05-18", 80.86, 0.4, {"crash": 0.8})
            added = updater.merge_into_archive("dynamic_20080812", samples)
            spent["capture"].append(time.process_time() - began)
            assert added == len(samples) > 1000 and updater.merge_into_archive("dynamic_20080812", samples) == 0
    return spent


def shaken(index: pd.DataFrame, spans: pd.DataFrame) -> dict[str, int]:
    """Episodes of realised volatility above 30 % (21 sessions; joined if fewer than 20 sessions lie between), and how many begin within an event."""
    from mltrader import events
    from mltrader.config import EventSettings

    _, volatility = events.index_moves(index["index_close"].to_numpy(), EventSettings())
    first, _ = events.stretches(volatility > 0.30, np.ones(len(index), dtype=bool))
    return {"of": len(first), "recalled": int(sum(((spans["start"] <= at) & (spans["last"] >= at)).any() for at in first))}


def report(found: dict[str, Any], quick: bool) -> None:
    """Everything, for people."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("numpy", "pandas", "sqlalchemy")))
    print(f"packaged index, {found['span']}; checks {'every 5th session' if quick else 'daily'}; the thresholds were chosen by people who knew these years\n")
    for line in found["bars"]:
        print(f"{line['what']:62} {line['measured']:8.3g}   bar {line['bar']:<6g} {'ok' if line['ok'] else 'MISSED':6} {line['note']}")
    print(f"\nvolatility episodes that begin within an event (no bar): {found['shaken']['recalled']} of {found['shaken']['of']}; false events: {', '.join(found['walked']['false_events']) or 'none'}")
    print("\nTriggers and thresholds, daily (recalled of all, events, false, latest detection after 12 % [sessions], recalled without dating back)")
    for name, line in {**found["alone"], **found["grid"]}.items():
        print(f"  {name:44} {line['recalled']:3}/{line['of']}  events {line['events']:3}  false {line['false']:3}  delay {line['delay']:5.0f}  undated {line['undated']:3}")
    print("\nThe famous events (sessions from their first day; largest figures that the seed's criteria saw)")
    print(pd.DataFrame(found["canonical"]).to_string(index=False))
    print(f"\nseed: {found['seed']['checks']} sessions had a long enough run of high VIX, all four criteria held on {found['seed']['met']}; events: {', '.join(found['seed']['events']) or 'none'}; "
          f"recalled {found['seed']['recalled']} of {found['seed']['of']} drawdowns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from packaged import inputs_of

    from mltrader.config import Settings

    both = {name: Settings(events={"preset": name, "canonical": ()}) for name in ("extended", "seed")}
    made, as_of = inputs_of(Settings())
    index = made["market"]["index"].query("session <= @as_of").reset_index(drop=True)
    falls, sessions, step = episodes(index), index["session"], 5 if options.quick else 1
    extended = spans_of(walk(index, both["extended"], step), sessions)
    blind = spans_of(walk(index.assign(vix_close=np.nan), both["extended"], step), sessions)
    checks = seed_checks(made, index, both["seed"], options.quick)
    seed = spans_of(walk(index, both["seed"], step, dict(checks.loc[checks["met"], ["at", "drift"]].itertuples(index=False, name=None))), sessions)
    walked, unseen, seen = (judge(spans, falls) for spans in (extended, blind, seed))
    spent, years = costs(made, as_of, both["extended"]), len(index) / 252
    alone = {"drawdown alone": {"volatility": OFF}, "volatility alone": {"drawdown": 0.99}, "VIX alone (the seed's first criterion)": {"preset": "seed"}}
    grid = {f"drawdown {a:.0%}, volatility {'off' if b == OFF else f'{b:.0%}'}": {"drawdown": a, "volatility": b} for a in (0.08, 0.10, 0.11, 0.12, 0.13, 0.15) for b in (0.25, 0.30, 0.35, 0.40, OFF)}
    late = DELAY + step - 1
    lines = [("drawdown episodes recalled", walked["recalled"], len(falls) - 1, walked["recalled"] >= len(falls) - 1, f"of {len(falls)}; {walked['events']} events, median detection {walked['from_top']:.0f} sessions after the top"),
             ("  without a VIX", unseen["recalled"], len(falls) - 1, unseen["recalled"] >= len(falls) - 1, f"{unseen['events']} events, {unseen['false']} false"),
             ("latest detection, sessions after the fall was 12 %", walked["delay"], late, walked["delay"] <= late, "a weekly check adds up to 4" if options.quick else ""),
             ("false events in ten years", walked["false"] / years * YEARS, 1, walked["false"] / years * YEARS <= 1, f"{walked['false']} in {years:.0f} years"),
             ("a check, CPU-s (median)", statistics.median(spent["check"]), DETECTION_S, statistics.median(spent["check"]) <= DETECTION_S, f"[{min(spent['check']):.3f}, {max(spent['check']):.3f}]"),
             ("capture and merge of 2008, CPU-s (median)", statistics.median(spent["capture"]), CAPTURE_S, statistics.median(spent["capture"]) <= CAPTURE_S, f"[{min(spent['capture']):.2f}, {max(spent['capture']):.2f}]; the original: 2 to 5 minutes")]
    found = {"span": f"{sessions.iloc[0].date()} to {as_of.date()}", "bars": [dict(zip(("what", "measured", "bar", "ok", "note"), line, strict=True)) for line in lines], "walked": walked,
             "shaken": shaken(index, extended), "alone": {name: quickly(index, falls, **limits) for name, limits in alone.items()}, "grid": {name: quickly(index, falls, **limits) for name, limits in grid.items()},
             "canonical": canonical_table(index, Settings(), {"extended": extended, "seed": seed}, checks),
             "seed": {**seen, "checks": len(checks), "met": int(checks["met"].sum()), "events": seed["event"].tolist()}}
    least, units = ("recalled", "  without"), {"a check": "CPU-s", "capture": "CPU-s", "latest": "sessions"}
    rows = [row_of(one["what"].strip(), one["measured"], one["bar"], one["ok"], one["note"], least=any(word in one["what"] for word in least), unit=next((u for word, u in units.items() if one["what"].startswith(word)), ""))
            for one in found["bars"]]
    print(json.dumps(document(rows, ("numpy", "pandas", "sqlalchemy"), options.quick, **found), indent=1, default=str)) if options.json else report(found, options.quick)
    sys.exit(not all(line["ok"] for line in found["bars"]))


if __name__ == "__main__":
    main()
