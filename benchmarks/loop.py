"""One simulated market, walked through month by month by the loop as it is: features, labels, memory, base models, stack, backtest, gate, ledger and registry are the package's own.

What is left out, because a decision does not depend on it, and a cycle has to cost half a second: notebooks, reports, explanations (their rule blocks nothing), the tables that tasks make for their pages,
and products on disk. What does not depend on the cycle (features, regimes, labels, each of them made from data up to its own session) is computed once a world and cut at `as_of`.
`tests/test_study.py` compares decisions with those of `orchestrator.run_inline` on the same market.
"""
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import worlds

from mltrader import archive, backtest, features, labels, memory, meta, promotion, refits, regimes, registry, reports, splits
from mltrader import store as db
from mltrader.artifacts import ArtifactStore
from mltrader.checks import sample_features
from mltrader.config import Settings
from mltrader.core import CLASSES, PROBABILITIES, Clock, digest_json, seed_for, to_session, usable_at
from mltrader.drift import DriftDetector, between, reference_period
from mltrader.store import Store
from mltrader.tuning import DEFAULT

FEATURES = ("log_return_20", "volatility_5", "volatility_20", "volatility_60", "vix_level")
SMALL: dict[str, Any] = {
    "run": {"threads": 1}, "market": {"calendar": ""}, "features": {"names": FEATURES}, "labels": {"horizon": 5, "take_profit": 0.04, "stop_loss": 0.025},
    "events": {"canonical": (), "vix": 1000.0, "drawdown": 0.99, "volatility": 100.0}, "training": {"min_samples_for_training": 500, "lease_seconds": 1e8},
    "memory": {"window_years": 3.0, "use_regime_target": False, "use_regime_weight": False}, "splits": {"first_test_year": 2003, "min_train_rows": 200, "bootstrap": 200}, "drift": {"reference_years": 3.0},
    "forest": {"n_estimators": 12, "min_samples_leaf": 100, "max_bin": 32}, "boosting": {"rounds": 30, "max_depth": 2, "learning_rate": 0.1, "max_bin": 32, "colsample_bytree": 0.5, "max_samples": 1.0}, "meta": {"min_folds": 1, "path_groups": 4},
    "backtest": {"variant_shares": (0.2, 0.3, 0.5), "variant_holdings": (1.0,)}}
RECIPES: tuple[dict[str, Any], ...] = (  # what somebody might try: each cycle without a champion, and every other one with it, tries the next
    {}, {"forest": {"min_samples_leaf": 50}}, {"memory": {"window_years": 1.5}}, {"boosting": {"learning_rate": 0.2}}, {"forest": {"max_features": 1.0, "min_samples_leaf": 200}},
    {"memory": {"use_regime_target": True, "use_regime_weight": True}}, {"boosting": {"max_depth": 3}}, {"meta": {"blend": "nnls"}}, {"forest": {"n_estimators": 25, "min_samples_leaf": 30}},
    {"memory": {"window_years": 4.0}}, {"boosting": {"rounds": 40}}, {"meta": {"context": "regime"}})
STEP = 21  # sessions from one cycle to the next
SPENDING = ("beats_prior", "champion")  # the two rules that spend the reign's budget


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by section, later ones win."""
    out: dict[str, Any] = {}
    for part in parts:
        for section, values in part.items():
            out[section] = {**out.get(section, {}), **values}
    return out


@contextmanager
def not_spending(error: float) -> Iterator[None]:
    """The gate as it must not be: every look takes the error probability `error`, and nobody counts the looks."""
    kept = promotion.allowed
    promotion.allowed = lambda evidence: error
    try:
        yield
    finally:
        promotion.allowed = kept


@dataclass(eq=False)
class Known:
    """What can be said of a market before any model, made by the tasks' own functions: frames by task, and the samples."""

    world: worlds.World
    settings: Settings

    @cached_property
    def made(self) -> dict[str, dict[str, Any]]:
        """Outputs of market, features, regimes, labels and archive over the whole history."""
        world, settings = self.world, self.settings
        end = world.panel["session"].iloc[-1]
        made: dict[str, dict[str, Any]] = {"market": {"panel": world.panel, "index": world.index, "sectors": world.sectors}, "state": {"captured_events": []}}
        chosen, _ = features.select(world.panel, world.index, settings.features)
        made["features"] = {"features": features.compute(world.panel, world.index, chosen, 1, dict(world.sectors.itertuples(index=False, name=None))),
                            "feature_set": {"version": features.version(chosen), "names": [one.name for one in chosen], "warm_up": max(one.warm_up for one in chosen)}}
        made["regimes"] = regimes.run(made, settings, end).frames
        made["labels"] = {"labels": labels.triple_barrier(world.panel, settings.labels)}
        made["archive"] = archive.run(made, settings, end).frames
        return made

    @cached_property
    def samples(self) -> pd.DataFrame:
        """All samples of the history, sorted by (session, symbol)."""
        made = self.made
        found = made["features"]["feature_set"]
        return memory.build_samples(made["features"]["features"], found["names"], found["warm_up"], made["labels"]["labels"], made["regimes"]["market_regimes"], made["regimes"]["symbol_regimes"],
                                    made["market"]["sectors"])

    def until(self, as_of: pd.Timestamp) -> dict[str, dict[str, Any]]:
        """The outputs as a cycle at `as_of` would have made them."""
        made, n = self.made, int(np.searchsorted(self.world.index["session"].to_numpy(), np.datetime64(as_of), side="right"))
        rows, known = n * self.world.spec.symbols, made["labels"]["labels"]
        return {"market": {"panel": self.world.panel.iloc[:rows], "index": self.world.index.iloc[:n], "sectors": self.world.sectors},
                "features": {**made["features"], "features": made["features"]["features"].iloc[:rows]},
                "regimes": {"market_regimes": made["regimes"]["market_regimes"].iloc[:n], "symbol_regimes": made["regimes"]["symbol_regimes"].iloc[:rows],
                            "index_path": made["regimes"]["index_path"].iloc[:n]},
                "labels": {"labels": known.iloc[:int(usable_at(known, as_of).sum())]}, "archive": {"archive": made["archive"]["archive"]}}


@dataclass(eq=False)
class Loop:
    """The walk through one market.

    Parameters
    ----------
    world : World
    folder : Path
        For the store and the artifacts.
    sections : mapping
        Settings besides `SMALL`.
    trade : bool
        Whether each cycle also asks if its candidate can be traded on.
    careless : float
        Error probability that the careless gate takes at every look; the default is the whole budget of a reign, 0.5 asks for the estimate alone.
    """

    world: worlds.World
    folder: Path
    sections: Mapping[str, Any] = field(default_factory=dict)
    trade: bool = True
    careless: float = 0.025

    def __post_init__(self) -> None:
        self.base = merged(SMALL, self.sections)
        self.known = Known(self.world, Settings(**self.base))
        self.store, self.artifacts = Store(f"sqlite:///{self.folder / 'store.db'}"), ArtifactStore(self.folder / "artifacts")
        self.cache: dict[str, Any] = {}
        self.detectors: dict[tuple[Any, Any], DriftDetector] = {}
        self.plans: dict[str, pd.DataFrame] = {}
        self.token = 0

    def settings(self, recipe: Mapping[str, Any]) -> Settings:
        """The settings of a cycle that tries `recipe`."""
        return Settings(**merged(self.base, recipe))

    # what the tasks between labels and gate make of it

    def remember(self, inputs: Mapping[str, Mapping[str, Any]], settings: Settings, as_of: pd.Timestamp) -> dict[str, Any]:
        """Samples, folds and plan, as the task memory makes them; the rows of past cut-offs are kept."""
        whole, calendar = self.known.samples, inputs["regimes"]["market_regimes"]["session"]
        samples = whole.iloc[:int(usable_at(whole, as_of).sum())]
        folds, parts = memory.cutoffs(calendar, settings.splits.first_test_year, as_of), []
        state = memory.market_state(inputs["regimes"]["market_regimes"], inputs["regimes"]["index_path"]) if settings.memory.mix != "fixed" else None
        for fold, cutoff in [*folds[["fold", "cutoff"]].itertuples(index=False, name=None), (memory.REFIT, to_session(as_of))]:
            key = digest_json([settings.memory.model_dump(mode="json"), cutoff])
            if key not in self.plans:
                self.plans[key] = memory.training_rows(samples, inputs["archive"]["archive"], cutoff, settings, calendar=calendar, state=state)
            if fold == memory.REFIT or len(self.plans[key]) >= settings.splits.min_train_rows:
                parts.append(self.plans[key].assign(fold=int(fold)))
        plan = pd.concat(parts, ignore_index=True)[["fold", "row", "weight", "uniqueness", "origin", "event"]]
        plan = plan.astype({"fold": "int64", "row": "int64", "origin": "str", "event": "str"})
        return {"samples": samples, "folds": folds[folds["fold"].isin(plan["fold"])].reset_index(drop=True), "plan": plan}

    def predict(self, base: str, inputs: Mapping[str, Mapping[str, Any]], settings: Settings) -> dict[str, Any]:
        """Out-of-fold predictions of a base model, its refit, and the model of the last fold, by the calls of its task."""
        samples, plan, folds = (inputs["memory"][name] for name in ("samples", "plan", "folds"))
        names, kept, (fit, recipe) = sample_features(samples), {}, refits.fit_of(base, DEFAULT, settings)

        def fit_predict(X: pd.DataFrame, y: np.ndarray, rows: pd.DataFrame, X_test: pd.DataFrame, model: Any = None) -> tuple[np.ndarray, Any]:
            model = fit(X, y, rows, 1) if model is None else model
            return model.predict_proba(X_test), model

        made = splits.out_of_fold(samples, names, plan, folds, fit_predict, recipe, self.cache, settings.splits.min_train_rows, 1, None, kept)
        rows = plan[plan["fold"] == memory.REFIT]
        at = rows["row"].to_numpy()
        model = fit(samples[names].iloc[at].astype("float32").reset_index(drop=True), samples["label"].to_numpy(dtype=np.int64)[at], splits.learned_from(rows, samples), 1)
        return {"oof": made, "out_of_fold": made.frame, "recipe": made.recipe, "model": model, "last_fold": self.cache[kept[int(made.frame["fold"].max())]]}

    def stack(self, inputs: Mapping[str, Mapping[str, Any]], settings: Settings, as_of: pd.Timestamp) -> dict[str, Any]:
        """Evaluation frame and model, by the calls of the task meta."""
        samples, plan, folds = (inputs["memory"][name] for name in ("samples", "plan", "folds"))
        bases = {base: inputs[base]["oof"] for base in meta.BASES}
        raw, joined = meta.stack_out_of_fold(bases, samples, folds, settings.meta, self.cache), meta.with_regimes(meta.join_bases(bases), samples)
        earned = meta.places(joined, samples, folds, sorted(raw.frame["fold"].unique()), settings.meta, self.cache)
        chosen = meta.chosen_forecasts(joined, raw, samples, folds, earned)
        evaluation, tracked = meta.evaluate(samples, plan, joined, chosen, meta.rule_of(settings.meta), as_of)
        return {"evaluation": evaluation, "model": meta.MetaLearner(settings.meta).fit(bases, samples, as_of, raw, tracked.state, self.cache)}

    def detector(self, rows: pd.DataFrame, period: Mapping[str, Any], settings: Settings) -> DriftDetector:
        """The detector of a reference period."""
        key = period["reference_start"], period["reference_end"]
        if key not in self.detectors:
            self.detectors[key] = DriftDetector(settings.drift).fit(between(rows, *key))
        return self.detectors[key]

    def drift(self, inputs: Mapping[str, Mapping[str, Any]], settings: Settings, as_of: pd.Timestamp) -> dict[str, Any]:
        """The scores that the gate reads: of the longest window, against the champion's years and against the challenger's."""
        state, rows = reports.decisions_before("drift", self.store, as_of)["champion"], inputs["features"]["features"]
        if state is None:
            return {"score": float("nan"), "reference": "recent", "challenger_score": float("nan")}
        sessions, found = inputs["market"]["index"]["session"].to_numpy(), []
        for champion in (state, None):
            period = reference_period(sessions, settings.drift, champion)
            reference = self.detector(rows, period, settings).reference_
            score = reference.score(reference.measure(between(rows, period["current_start"], period["current_end"]))[0][..., 0])
            found.append((float(score[reference.null.windows.index(max(settings.drift.windows))]), period["reference"]))
        return {"score": found[0][0], "reference": found[0][1], "challenger_score": found[1][0]}

    # the gate, and what becomes of it

    def begin(self, number: int, as_of: pd.Timestamp, settings: Settings) -> SimpleNamespace:
        """A run of its own for the cycle, with a clock that shows its day."""
        clock, run_id = Clock(datetime(as_of.year, as_of.month, as_of.day, 22, tzinfo=UTC)), f"cycle_{number:03d}"
        with self.store.write() as conn:
            self.token = self.token or db.take_lease(conn, "study", 1e9, clock)
            db.start_run(conn, run_id, "cycle", "study", self.token, {}, settings.digest(), clock)
            db.set_as_of(conn, run_id, as_of.date())
        return SimpleNamespace(id=run_id, clock=clock)

    def candidate(self, run_id: str, settings: Settings, as_of: pd.Timestamp) -> tuple[promotion.Evidence, dict[str, Any], dict[str, Any]]:
        """The candidate of a cycle: its evidence, its models, and the stored evaluation frame."""
        inputs: dict[str, Any] = {**self.known.until(as_of), "fold_cache": self.cache, "sectors": {"table": None}, "state": {"captured_events": []}}
        inputs["drift"], inputs["memory"] = {"drift": self.drift(inputs, settings, as_of)}, self.remember(inputs, settings, as_of)
        inputs |= {base: self.predict(base, inputs, settings) for base in meta.BASES}
        inputs["meta"] = self.stack(inputs, settings, as_of)
        evaluation = self.artifacts.put(inputs["meta"]["evaluation"]).as_dict()
        inputs |= reports.live_champion(self.store, self.artifacts, run_id, evaluation["content_digest"])
        inputs["backtest"] = {"summary": trading(inputs, settings) if self.trade else {}}
        return promotion.gather(inputs, settings, as_of), {name: inputs[name]["model"] for name in ("forest", "boosting", "meta")}, evaluation

    def cycle(self, number: int, as_of: pd.Timestamp, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """One cycle: candidate, evidence, verdicts, decision; recorded, and carried out."""
        settings = self.settings(recipe)
        run = self.begin(number, as_of, settings)
        evidence, models, evaluation = self.candidate(run.id, settings, as_of)
        verdicts = promotion.apply_rules(evidence)
        required = promotion.required_rules(settings.promotion)
        verdict = promotion.decide(verdicts, required)
        with not_spending(self.careless):
            again = [one for rule in SPENDING for one in promotion.RULES[rule](evidence) if ":" not in one.rule]
        careless = promotion.decide([one for one in verdicts if one.rule not in SPENDING] + again, required)
        answer = promotion.tradable(evidence.backtest, settings.promotion, evidence.trials)
        decision = {**evidence.candidate, "verdict": verdict, "reasons": promotion.reasons(verdicts, verdict), "trials": evidence.trials, "look": evidence.look, "alpha": promotion.allowed(evidence),
                    "data_digest": evaluation["content_digest"], "feature_set": self.known.made["features"]["feature_set"]["version"], **promotion.accuracies(evidence)}
        name = registry.register_decision(self.store, self.artifacts, run.id, self.token, decision, reports.verdict_rows(promotion.verdict_frame(verdicts)),
                                          self.manifest(models, evaluation, settings, as_of), (evidence.champion or {}).get("id"), run.clock)
        with self.store.write() as conn:
            db.finish_run(conn, run.id, "success", run.clock)
        return {"as_of": as_of, "kind": evidence.candidate["kind"], "verdict": verdict, "careless": careless, "promoted": name, "tradable": answer["verdict"], "edge": answer["edge_ann"],
                "look": evidence.look, "trials": evidence.trials, "alpha": decision["alpha"], "verdicts": verdicts, "models": models, "evidence": evidence,
                "stops": sorted({one.rule.split(":")[0] for one in verdicts if one.blocks and one.status != "passed"})}

    def manifest(self, models: Mapping[str, Any], evaluation: Mapping[str, Any], settings: Settings, as_of: pd.Timestamp) -> dict[str, Any]:
        """What a version carries of what later decisions read."""
        start = (to_session(as_of) - timedelta(days=365.25 * settings.memory.window_years)).normalize()
        return {"components": {name: self.artifacts.put(model).as_dict() for name, model in models.items()}, "evaluation": dict(evaluation),
                "reference": {"reference_start": start.date().isoformat(), "reference_end": as_of.date().isoformat()}}

    def walk(self, first: int, cycles: int, recipes: tuple[Mapping[str, Any], ...] = RECIPES, refreshing: bool = True) -> Iterator[dict[str, Any]]:
        """`cycles` cycles, the first at the session number `first`. Without a champion each tries the next recipe; with one, every other refreshes it, if `refreshing`."""
        sessions, mine, tried = self.world.index["session"], None, 0
        for number in range(cycles):
            refresh = refreshing and mine is not None and number % 2 == 1
            recipe = mine if refresh else recipes[tried % len(recipes)]
            tried += not refresh
            found = self.cycle(number, to_session(sessions.iloc[first + STEP * number]), recipe)
            mine = recipe if found["promoted"] else mine
            yield found | {"recipe": recipe}


class ForestLoop(Loop):
    """The same loop with a candidate that costs a quarter: the forest by itself, without boosting, stack, refits, drift and backtest. For the version in `make test`; new recipes only."""

    def candidate(self, run_id: str, settings: Settings, as_of: pd.Timestamp) -> tuple[promotion.Evidence, dict[str, Any], dict[str, Any]]:
        inputs: dict[str, Any] = self.known.until(as_of)
        inputs["memory"] = made = self.remember(inputs, settings, as_of)
        own, samples = self.predict("forest", inputs, settings), made["samples"]
        rows = own["out_of_fold"]["row"].to_numpy()
        frame = pd.concat([samples[["session", "symbol", "sector", "regime", "label"]].iloc[rows].reset_index(drop=True), own["out_of_fold"][list(PROBABILITIES)],
                           meta.baselines(samples, made["plan"], own["out_of_fold"][["row", "fold"]])], axis=1)
        entry = self.artifacts.put(frame).as_dict()
        known = reports.live_champion(self.store, self.artifacts, run_id, entry["content_digest"])
        version, recipe_digest = own["model"].content_digest(), digest_json(splits.recipe(settings, self.known.made["features"]["feature_set"]["version"]))
        candidate = {"model_version": version, "recipe_digest": recipe_digest, "as_of": f"{as_of:%Y-%m-%d}", "kind": promotion.kind_of(version, recipe_digest, known["champion"]["record"])}
        shares = [promotion.class_shares(samples, own["out_of_fold"], [own[name]]) for name in ("model", "last_fold")]
        drift = {"score": 0.0, "reference": "champion", "challenger_score": 0.0}
        return promotion.Evidence(frame, known["champion"]["evaluation"], candidate, known["champion"]["record"], drift, None, {}, known["ledger"]["trials"],
                                  int((made["plan"]["fold"] == memory.REFIT).sum()), *shares, settings, settings.labels.horizon, known["ledger"]["look"], known["ledger"]["spent"]), {"forest": own["model"]}, entry


def trading(inputs: Mapping[str, Mapping[str, Any]], settings: Settings) -> dict[str, Any]:
    """What `promotion.tradable` reads of the backtest's summary, by the calls of the task backtest."""
    evaluation, horizon = inputs["meta"]["evaluation"], settings.labels.horizon
    past, engine = (evaluation, inputs["market"]["panel"], inputs["market"]["index"]), backtest.HistoricalBacktest(settings.backtest, horizon, "close", settings.labels)
    ask = {"horizon": horizon, "n_boot": settings.splits.bootstrap, "level": settings.promotion.level, "seed": seed_for("backtest", settings.run.seed)}
    equity, kin = engine.run_backtest(*past), backtest.family(engine, *past)
    inside = backtest.periods(evaluation, equity)["all_years"]
    luck = backtest.odds("edge", equity["difference"].to_numpy()[inside], kin.edge[:, inside], 1, ask)
    over = backtest.overfitting(kin.edge[:, inside], int(kin.variants["holding"].max()), settings.backtest.pbo_blocks)
    return {**backtest.edge(equity, inside, ask), "edge_sharpe": luck["sharpe"], "edge_sharpe_error": luck["sharpe_error"], "spread_ann": luck["spread_ann"], "track_record_years": luck["track_record_years"],
            "pbo": float("nan") if over is None else over.pbo}


def true_losses(known: Known, versions: list[Mapping[str, Any]], every: int = 5) -> np.ndarray:
    """Mean log-loss (nats a row) of deployed models on another path of their world, each `every`-th session of it: shape (n_versions,)."""
    samples = known.samples
    days = np.unique(samples["session"].to_numpy())[::every]
    rows = samples[samples["session"].isin(days)].reset_index(drop=True)
    X, y = rows[known.made["features"]["feature_set"]["names"]].astype("float32"), rows["label"].to_numpy()
    found = []
    for models in versions:
        said = pd.DataFrame(np.concatenate([models[base].predict_proba(X) for base in meta.BASES], axis=1), columns=list(meta.INPUTS))
        found.append(float(splits.log_loss_rows(y, models["meta"].predict_proba(said, rows["regime"])).mean()))
    return np.array(found)


def oracle(spec: worlds.Spec, settings: Settings, sessions: int = 4000) -> tuple[np.ndarray, float]:
    """What somebody knows who knows the planted relation: coefficients of the logit of the classes on the signal and its square, and the signal's rank IC.

    From a long path of its own, so that no error of estimation is left in it.
    """
    world = worlds.another_path(worlds.draw(spec), sessions)
    found = labels.triple_barrier(world.panel, settings.labels)
    row = np.searchsorted(world.index["session"].to_numpy(), found["session"].to_numpy())
    z = world.signal[row, found["symbol"].str[1:].astype(int).to_numpy()]
    keep = np.isfinite(z)
    frame = found[keep].assign(z=z[keep])
    ic = splits.rank_ic(frame, "z", "forward_log_return")["ic"].mean()
    return meta.fit_logit(np.column_stack([z[keep], z[keep] ** 2]), frame["label"].to_numpy(np.int64), 1e9), float(ic)


def oracle_looks(loop: Loop, coef: np.ndarray, first: int, cycles: int) -> int | None:
    """The first of the looks at which the oracle's probabilities pass the rule `beats_prior` under the same spending; None if none does.

    Judged on the rows, and against the prior, that the loop's own first candidate would have: the class shares of the recent rows of each fold.
    """
    settings, sessions = loop.settings({}), loop.world.index["session"]
    for number in range(cycles):
        as_of = to_session(sessions.iloc[first + STEP * number])
        inputs = loop.known.until(as_of)
        made = loop.remember(inputs, settings, as_of)
        evidence = oracle_evidence(loop, made, coef, settings, number + 1)
        if promotion.beats_prior(evidence)[0].status == "passed":
            return number
    return None


def oracle_evidence(loop: Loop, made: Mapping[str, Any], coef: np.ndarray, settings: Settings, look: int) -> promotion.Evidence:
    """Evidence in which the candidate says what the oracle knows."""
    samples, plan, folds = (made[name] for name in ("samples", "plan", "folds"))
    tested = folds.iloc[settings.meta.min_folds:]
    parts = []
    for fold in tested.itertuples():
        rows = np.flatnonzero((samples["session"] >= fold.test_start) & (samples["session"] <= fold.test_end))
        train = plan.loc[(plan["fold"] == fold.fold) & (plan["origin"] == "recent"), "row"].to_numpy()
        shares = np.bincount(samples["label"].to_numpy()[train], minlength=len(CLASSES)) / len(train)
        parts.append(samples[["session", "symbol", "sector", "regime", "label"]].iloc[rows].assign(**{f"{model}_{name}": shares[k] for model in ("prior", "logit") for k, name in enumerate(CLASSES)}))
    frame = pd.concat(parts, ignore_index=True)
    row = np.searchsorted(loop.world.index["session"].to_numpy(), frame["session"].to_numpy())
    z = loop.world.signal[row, frame["symbol"].str[1:].astype(int).to_numpy()]
    frame = frame.assign(**dict(zip(PROBABILITIES, meta.apply_logit(coef, np.column_stack([z, z**2])).T, strict=True)))
    return promotion.Evidence(frame, None, {"model_version": "oracle", "recipe_digest": "oracle", "as_of": "", "kind": "first"}, None, {}, None, {}, 1, len(samples), None, None, settings,
                              settings.labels.horizon, look=look, spent=(look - 1) * settings.promotion.level / 2 / settings.promotion.looks)


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is one, else a temporary one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)
