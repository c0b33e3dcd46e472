"""Does the archive help, and does a new model forget? Forest and boosting, by event, with each way to compose the training set.

    python benchmarks/memory.py            # 5 seeds, lighter models than the default recipe: about an hour; a stopped run goes on where it was
    python benchmarks/memory.py --models forest --threads 1 & python benchmarks/memory.py --models boosting --threads 1   # fills the cache on two cores
    python benchmarks/memory.py --quick    # 1 seed, a small forest, canonical events, three arms, the forward study alone: about a minute
    python benchmarks/memory.py --whole    # the default recipe as it is: some hours
    python benchmarks/memory.py --seeds 2 --arms "share 40 %;coverage" --json

Forward: fitted strictly before each event the data reach: the canonical ones of the settings, and the drawdowns of 12 % or more that they
leave out. Those drawdowns are in the archive, too, each from the session at which its labels had matured, as if they had been captured; the arm
`as shipped` has the canonical events alone. A share is what is asked for; a table says what the archive could give. Leave one out: fitted today, without the event; a diagnostic that looks ahead by design, and what the certificate of
non-forgetting is made of. Retention: yearly refits after 2008 and 2020, judged on rows of the event that the archive did not hold.
All means are in nats; gains are paired by row, seeds averaged; 95 % intervals from blocks of whole sessions (`splits.session_interval`).
Events before which every archive was empty are named and left out. An event is *severe* if the index fell by 15 % or more in it, else *mild*.

Exits with 1 if a bar is missed (held against the first model): over all events the default mix beats `recent only` beyond doubt (not adjusted
for the choice among the mixes); the mix chosen on earlier events alone beats it in a sign test; before severe events the default loses no
more than 0.01 on `share 40 %`; and mild events together are not harmed beyond doubt. With fewer than seven events a bar is not judged.
"""
import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from packaged import inputs_of

from mltrader import archive, boosting, forest, forgetting, memory, regimes, splits
from mltrader import replay as replaying
from mltrader.artifacts import ArtifactStore, FoldCache
from mltrader.checks import sample_features
from mltrader.config import EventDefinition, Settings, home
from mltrader.core import seed_for

RECENT, SEED, FORTY = "recent only", "share 7 %", "share 40 %"
MODULES = {"forest": forest, "boosting": boosting}
ARMS: dict[str, dict[str, Any]] = {  # settings that differ from the default's, by arm
    RECENT: {"memory": {"mix": "fixed", "archive_share": 0.0}},
    SEED: {"memory": {"mix": "fixed", "archive_share": 0.07}, "events": {"aftermath_sessions": 0}},
    FORTY: {"memory": {"mix": "fixed", "archive_share": 0.40}, "events": {"aftermath_sessions": 0}},
    "share 40 %, aftermath": {"memory": {"mix": "fixed", "archive_share": 0.40}, "events": {"aftermath_sessions": 60}},
    "coverage": {"memory": {"mix": "coverage", "archive_share": 0.40}, "events": {"aftermath_sessions": 60}},
    "likeness": {"memory": {"mix": "likeness", "archive_share": 0.40}, "events": {"aftermath_sessions": 60}},
    "all history": {"memory": {"mix": "fixed", "archive_share": 0.0, "window_years": 100.0}},
}
REPLAYED, SHIPPED = "default and replay", "as shipped"
LIGHT = {"forest": {"n_estimators": 80}, "boosting": {"rounds": 60, "learning_rate": 0.1}}
QUICK = {"forest": {"n_estimators": 30}}
DEEP, LEAST = 0.15, 7


def study_events(settings: Settings, made: dict[str, Any]) -> tuple[EventDefinition, ...]:
    """The canonical events, and the drawdowns that none of them overlaps."""
    canonical, spans = settings.events.canonical, []
    for fall in regimes.drawdown_episodes(made["regimes"]["index_path"]).sort_values("start").itertuples():
        if spans and fall.start <= spans[-1][1]:  # one fall after another, before the index was back
            spans[-1][1] = max(fall.end, spans[-1][1])
        else:
            spans.append([fall.start, fall.end])
    fresh = [(start.date(), end.date()) for start, end in spans]
    fresh = [(start, end) for start, end in fresh if all(end < event.start or start > event.end for event in canonical)]
    return (*(EventDefinition(name=f"drawdown_{start:%Y_%m}", start=start, end=end, regime="crash", weight=0.1) for start, end in fresh), *canonical)


def arms_of(names: Sequence[str], settings: Settings, made: dict[str, Any], as_of: pd.Timestamp) -> list[forgetting.Arm]:
    """Each arm over the same samples, with the archive that its settings cut."""
    known, frames, built = made["regimes"]["market_regimes"], made["memory"], []
    state = memory.market_state(known, made["regimes"]["index_path"])
    for name in names:
        changed = settings.model_dump(mode="json")
        for section, values in ARMS.get(name, {}).items():
            changed[section] |= values
        if name == SHIPPED:
            changed["events"]["canonical"] = Settings().model_dump(mode="json")["events"]["canonical"]
        own = Settings.model_validate(changed)
        table = archive.event_table(own.events.canonical, [], known, own.labels.horizon, own.events.aftermath_sessions)
        held = archive.cut(made["labels"]["labels"], made["regimes"]["symbol_regimes"], table, as_of)
        built.append(forgetting.Arm(name, memory.HybridMemory(frames["samples"], held, own, known["session"], state)))
    return built


def models_of(settings: Settings, names: Sequence[str]) -> dict[str, forgetting.Model]:
    """The base models as the tasks fit them, with the seed of the study."""
    def fit_forest(X: pd.DataFrame, y: np.ndarray, rows: pd.DataFrame, seed: int) -> Any:
        return forest.RandomForestModel(settings.forest, seed_for("forest", seed), settings.run.threads).fit(X, y, rows["weight"], rows["uniqueness"])

    def fit_boosting(X: pd.DataFrame, y: np.ndarray, rows: pd.DataFrame, seed: int) -> Any:
        return boosting.XGBoostModel(settings.boosting, seed_for("boosting", seed), settings.run.threads).fit(X, y, rows["weight"])

    return {name: model for name, model in (("forest", fit_forest), ("boosting", fit_boosting)) if name in names}


def replayed(arm: forgetting.Arm, made: dict[str, Any], name: str, model: forgetting.Model, recipe: Mapping[str, Any], cache: Any) -> forgetting.Arm:
    """`arm`, with the errors that the model `name` made out of fold before each cut-off, without replay, replayed."""
    samples, folds, settings = arm.memory.samples, made["memory"]["folds"], arm.memory.settings
    plan = pd.concat([arm.rows(fold.cutoff).assign(fold=fold.fold) for fold in folds.itertuples()], ignore_index=True)
    seen = splits.out_of_fold(samples, sample_features(samples), plan, folds, lambda X, y, rows, X_test: model(X, y, rows, 0).predict_proba(X_test),
                              {**recipe, "model": name, "seed": 0}, cache, settings.splits.min_train_rows)
    on = settings.model_copy(update={"replay": settings.replay.model_copy(update={"mode": "errors"})})
    buffer = replaying.Replay(on, samples, folds, made["features"]["feature_set"]["version"])
    return replace(arm, name=REPLAYED, reweigh=lambda cutoff, rows: buffer(cutoff, rows, seen.known_at(samples, cutoff)))


def depths(windows: pd.DataFrame, path: pd.DataFrame) -> pd.Series:
    """How far the index fell in each event, from its highest close since the start; by event."""
    close = path.set_index("session")["index_close"]
    spans = {row.event: close[row.start : row.end] for row in windows.itertuples()}
    return pd.Series({name: float(1 - (span / span.cummax()).min()) for name, span in spans.items()})


def by_depth(found: pd.DataFrame, arms: Sequence[str], depth: pd.Series, horizon: int) -> pd.DataFrame:
    """Gain of each arm over `recent only`, over severe and over mild events."""
    deep, lines = found["event"].map(depth) >= DEEP, []
    for group, part in (("severe", found[deep]), ("mild", found[~deep])):
        for arm in arms if len(part) else ():
            gained = forgetting.gains(part, arm, RECENT, horizon)
            gained = gained[gained["event"] == forgetting.POOLED].drop(columns="event")
            lines.append(gained.assign(group=f"{group} ({part['event'].nunique()})", arm=arm))
    columns = ["model", "group", "arm", "gain", "low", "high", "loss", "loss_over", "n_blocks"]
    return pd.concat(lines, ignore_index=True)[columns].sort_values(["model", "group"], ascending=[True, False], kind="stable")


def bars(found: pd.DataFrame, picked: pd.DataFrame, default: str, groups: pd.DataFrame, horizon: int) -> list[dict[str, Any]]:
    """The bars, a line each, on the losses of the first model: met, missed, or not judged."""
    model, lines = found["model"].iloc[0], []

    def add(bar: str, measured: str, judged: bool, met: bool) -> None:
        lines.append({"bar": bar, "measured": measured, "status": "not judged" if not judged else "met" if met else "MISSED"})

    found, picked, groups = (frame[frame["model"] == model] for frame in (found, picked, groups))
    many = found["event"].nunique() >= LEAST
    pooled = forgetting.gains(found, default, RECENT, horizon).set_index("event").loc[forgetting.POOLED]
    add(f"`{default}` beats `{RECENT}` over all events", words(pooled), many and np.isfinite(pooled["low"]), pooled["low"] > 0)
    better, worse = wins(picked)
    p = forgetting.sign_test(better, worse)
    add(f"the mix chosen on earlier events beats `{RECENT}`", f"{better} better, {worse} worse, p = {p:.3f}", better + worse >= LEAST, p <= 0.05)
    of = groups.set_index([groups["group"].str.split().str[0], "arm"])
    if {("severe", FORTY), ("severe", default)} <= set(of.index):
        ours, theirs = of.loc[("severe", default), "gain"], of.loc[("severe", FORTY), "gain"]
        add(f"severe events: gain at least that of `{FORTY}` less 0.01", f"{ours:+.3f} against {theirs:+.3f}", True, ours >= theirs - 0.01)
    if ("mild", default) in of.index:
        mild = of.loc[("mild", default)]
        add("mild events are not harmed beyond doubt", words(mild), np.isfinite(mild["high"]), mild["high"] >= 0)
    return lines


def wins(picked: pd.DataFrame) -> tuple[int, int]:
    """Events before which the chosen mix was better and worse than `recent only`; equal where that was chosen."""
    return int((picked["loss"] < picked["default_loss"]).sum()), int((picked["loss"] > picked["default_loss"]).sum())


def words(line: Any) -> str:
    """A gain with its interval."""
    return f"{line['gain']:+.3f} [{line['low']:+.3f}, {line['high']:+.3f}]"


def reached(arms: Sequence[forgetting.Arm], windows: pd.DataFrame) -> pd.DataFrame:
    """Archive rows over all training rows before each event, in %, by arm."""
    folds, plans = forgetting.forward_plan([arm for arm in arms if arm.reweigh is None], windows, 500)
    name = folds.set_index("fold")["event"]
    shares = {arm: 100 * (plan["origin"] == "archive").groupby(plan["fold"].map(name), sort=False).mean() for arm, plan in plans.items()}
    return pd.DataFrame(shares).rename_axis("event").round(0).reset_index()


def show(title: str, frame: pd.DataFrame) -> None:
    print(f"\n{title}\n{frame.to_string(index=False, float_format=lambda x: f'{x:.3f}')}")


def wide(found: pd.DataFrame, what: str = "loss") -> pd.DataFrame:
    """Scores by event and arm, and the mean over events."""
    table = forgetting.scores(found).pivot_table(index=["model", "event"], columns="arm", values=what, sort=False)
    mean = table.groupby("model", sort=False).mean()
    mean.index = pd.MultiIndex.from_product([mean.index, ["mean over events"]], names=table.index.names)
    return pd.concat([table, mean])[list(dict.fromkeys(found["arm"]))].reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", default="", help="names, separated by semicolons; all without it")
    parser.add_argument("--models", default="forest,boosting")
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--threads", type=int, default=Settings().run.threads)
    parser.add_argument("--figure", type=Path, help="where to write the picture of the forward gains (PNG)")
    options = parser.parse_args()
    began, settings = time.perf_counter(), Settings()
    default = default_arm(settings)
    names = [RECENT, *(options.arms.split(";") if options.arms else [FORTY] if options.quick else [*ARMS, SHIPPED]), default]
    kinds = ["forest"] if options.quick else options.models.split(",")
    if unknown := [one for one in names if one not in (*ARMS, SHIPPED)] + [one for one in kinds if one not in MODULES]:
        parser.error(f"unknown {unknown}; the arms are {[*ARMS, SHIPPED]}, the models {[*MODULES]}")
    names = list(dict.fromkeys(names))
    if not options.whole:
        settings = Settings.model_validate(QUICK if options.quick else LIGHT)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"threads": options.threads})})
    seeds = tuple(range(1 if options.quick else options.seeds))
    made, as_of = inputs_of(settings)
    events = settings.events.canonical if options.quick else study_events(settings, made)
    settings = settings.model_copy(update={"events": settings.events.model_copy(update={"canonical": events})})
    arms, models = arms_of(names, settings, made, as_of), models_of(settings, kinds)
    recipe = {"study": "memory", "models": {name: {k: v for k, v in MODULES[name].component_recipe(settings).items() if k != "seed"} for name in kinds}}
    cache = FoldCache(home() / "folds", ArtifactStore(home() / "folds" / "files"))
    windows = archive.event_table(events, [], made["regimes"]["market_regimes"], settings.labels.horizon).sort_values("start", ignore_index=True)
    base, per_model = next(arm for arm in arms if arm.name == default), {name: list(arms) for name in models}
    if not (options.quick or options.arms):
        for name, model in models.items():
            per_model[name].append(replayed(base, made, name, model, recipe, cache))
    horizon = settings.labels.horizon

    def study(run: Callable[..., pd.DataFrame], chosen: Callable[[forgetting.Arm], Any], *args: Any) -> pd.DataFrame:
        parts = [run([arm for arm in map(chosen, per_model[name]) if arm is not None], *args, {name: model}, seeds, recipe, cache) for name, model in models.items()]
        return pd.concat(parts, ignore_index=True)

    everywhere = study(forgetting.forward, lambda arm: arm, windows)
    found, untouched = where_it_matters(everywhere, [arm.name for arm in arms if arm.name != "all history"])
    groups = by_depth(found, [name for name in names if name != RECENT], depths(windows, made["regimes"]["index_path"]), horizon)
    candidates = [arm.name for arm in arms if arm.name not in ("all history", SHIPPED)]
    picked = forgetting.chosen_forward(found, windows, RECENT, candidates)
    report: dict[str, Any] = {
        "default": default, "seeds": len(seeds), "events": int(found["event"].nunique()), "left_out": untouched, "trials": len(candidates), "python": platform.python_version(),
        "models": {name: settings.model_dump(mode="json")[name] for name in kinds}, "reached": reached(arms, windows[~windows["event"].isin(untouched)]), "loss": wide(found),
        "balanced_accuracy": wide(found, "balanced_accuracy"), "gains": forgetting.gains(found, default, RECENT, horizon),
        "over_forty": forgetting.gains(found, default, FORTY, horizon) if FORTY in names and FORTY != default else pd.DataFrame(), "groups": groups, "chosen": picked,
        "bars": pd.DataFrame(bars(found, picked, default, groups, horizon)),
    }
    if SHIPPED in names:
        report["shipped"] = forgetting.gains(found[found["event"].isin(with_rows(report["reached"], SHIPPED))], SHIPPED, RECENT, horizon)
    if REPLAYED in set(found["arm"]):
        report["replay"] = forgetting.gains(found, REPLAYED, default, horizon)
    if not (options.quick or options.forward_only):
        report |= looking_back(study, default, windows, as_of, models, horizon)
    report["seconds"] = round(time.perf_counter() - began)
    if options.figure:
        shown = [name for name in (SEED, FORTY, default) if name in names]
        forgetting.figure(found, shown, RECENT, horizon).savefig(options.figure, dpi=150, bbox_inches="tight")
    if options.json:
        print(json.dumps({key: value.to_dict("records") if isinstance(value, pd.DataFrame) else value for key, value in report.items()}, default=str, indent=1))
    else:
        tell(report)
    sys.exit(1 if (report["bars"]["status"] == "MISSED").any() else 0)


def where_it_matters(found: pd.DataFrame, arms: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Losses on events before which some archive had rows, and the names of the other events."""
    per_run = found[found["arm"].isin(arms)].groupby(["event", "model", "seed", "arm"], sort=False)["loss"].sum().unstack("arm")
    same = (per_run.max(axis=1) - per_run.min(axis=1)).groupby("event", sort=False).max() == 0
    return found[~found["event"].map(same)], same.index[same].tolist()


def default_arm(settings: Settings) -> str:
    """The arm that the settings describe."""
    for name, changed in ARMS.items():
        if all(getattr(getattr(settings, section), key) == value for section, values in changed.items() for key, value in values.items()):
            return name
    raise SystemExit("The default settings are none of the arms; add them to ARMS.")


def with_rows(shares: pd.DataFrame, arm: str) -> list[str]:
    """Events before which the arm's archive had rows."""
    return shares.loc[shares[arm] > 0, "event"].tolist()


def looking_back(study: Callable[..., pd.DataFrame], default: str, windows: pd.DataFrame, as_of: pd.Timestamp, models: Mapping[str, Any], horizon: int) -> dict[str, Any]:
    """Leave one out with its certificates, and retention."""
    def these(arm: forgetting.Arm) -> forgetting.Arm | None:
        return arm if arm.name in (RECENT, SEED, default, REPLAYED) else None

    def fewer(arm: forgetting.Arm) -> forgetting.Arm | None:
        return arm if arm.name in (RECENT, default, REPLAYED) else None

    def short(arm: forgetting.Arm) -> forgetting.Arm | None:
        return replace(arm, memory=replace(arm.memory, settings=_short_window(arm.memory.settings))) if fewer(arm) else None

    without = study(forgetting.leave_one_out, these, windows, as_of)
    papers = [forgetting.certificate(without, default, other, model, horizon) for model in models for other in (RECENT, SEED) if other in set(without["arm"])]
    yearly, monthly = [f"{year}-12-31" for year in range(2014, 2020)], [f"{year}-{month:02d}-28" for year, months in ((2021, (11, 12)), (2022, (2, 4, 6, 8))) for month in months]
    after = {"2008": study(forgetting.retention, fewer, "2008_financial_crisis", "2008-09-01", "2009-03-31", yearly, horizon),
             "2020": study(forgetting.retention, short, "2020_covid", "2020-02-20", "2020-06-30", monthly, horizon)}
    lines = [forgetting.gains(found, arm, RECENT, horizon).query("event != @forgetting.POOLED").assign(after=name, arm=arm)
             for name, found in after.items() for arm in (default, REPLAYED) if arm in set(found["arm"])]
    years = {name: found.groupby(["model", "cutoff", "arm"], sort=False)["loss"].mean().unstack("arm").reset_index() for name, found in after.items()}
    return {"leave_one_out": wide(without), "certificates": papers, "retention": pd.concat(lines, ignore_index=True), **{f"after_{name}": table for name, table in years.items()}}


def _short_window(settings: Settings) -> Settings:
    return settings.model_copy(update={"memory": settings.memory.model_copy(update={"window_years": 1.0})})


def tell(report: Mapping[str, Any]) -> None:
    """Print the report."""
    print(f"{report['events']} events, {report['seeds']} seeds, {report['trials']} candidate mixes (trials); {report['seconds']} s; Python {report['python']}")
    print("Models: " + "; ".join(f"{name} {values}" for name, values in report["models"].items()))
    if report["left_out"]:
        print("Left out, as nothing was archived before them: " + ", ".join(report["left_out"]))
    print("Survivors of today only: whoever failed in 2008 is not in the packaged panel.")
    show("Archive rows in the training set before each event (%)", report["reached"])
    show("Log-loss on events, fitted strictly before each (nats)", report["loss"])
    show("Balanced accuracy on the same rows", report["balanced_accuracy"])
    show(f"Gain of `{report['default']}` over `{RECENT}`", report["gains"])
    if len(report["over_forty"]):
        show(f"Gain of `{report['default']}` over `{FORTY}`", report["over_forty"])
    show(f"Gain over `{RECENT}` in severe events (index down {DEEP:.0%} or more) and in mild ones; each event counts the same", report["groups"])
    show("The mix chosen on earlier events alone, and what it lost", report["chosen"])
    for model, part in report["chosen"].groupby("model", sort=False):
        better, worse = wins(part)
        print(f"  {model}: better than `{RECENT}` before {better} events, worse before {worse}, the same before {len(part) - better - worse}; sign test p = {forgetting.sign_test(better, worse):.3g}"
              + ("" if better + worse >= LEAST else f" (fewer than {LEAST} events: no test)"))
    if "shipped" in report:
        show(f"Gain of `{SHIPPED}` (canonical events alone, where it had rows) over `{RECENT}`", report["shipped"])
    if "replay" in report:
        show(f"Gain of `{REPLAYED}` over `{report['default']}`", report["replay"])
    if "certificates" in report:
        show("Leave one out: fitted today without the event (nats; a diagnostic)", report["leave_one_out"])
        for paper in report["certificates"]:
            print(f"\nCertificate, {paper['model']}: `{paper['candidate']}` against `{paper['champion']}`: {paper['verdict']}" + (f" ({', '.join(paper['harmed'])})" if paper["harmed"] else ""))
            print(pd.DataFrame(paper["events"])[["event", "gain", "low", "high", "n_blocks", "status"]].to_string(index=False, float_format=lambda x: f"{x:.3f}"))
        show(f"Retention: gain over `{RECENT}` of the refits after the event, on the half of it that was not learned", report["retention"])
        for name in ("2008", "2020"):
            show(f"Log-loss on {name} by refit", report[f"after_{name}"])
    print()
    for line in report["bars"].itertuples():
        print(f"{line.status:10s}  {line.bar}: {line.measured}")


if __name__ == "__main__":
    main()
