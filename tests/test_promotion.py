"""The promotion gate: every rule at its edge, and every way of passing without evidence."""

from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from mltrader import luck, promotion, significance
from mltrader.config import GATE_RULES, PromotionSettings, Settings, TrainingSettings
from mltrader.core import REGIMES, ConfigError, DataError, TaskOutput, digest_json
from mltrader.promotion import Evidence, Verdict, apply_rules, decide
from mltrader.splits import Interval

PRIOR = np.array([0.3, 0.5, 0.2])
COLUMNS = ["sell", "hold", "buy"]
FAST = Settings(splits={"bootstrap": 200})
NAN = float("nan")


def evaluation(skill: float, seed: int = 0, sessions: int = 700, names: int = 4) -> pd.DataFrame:
    """A model of skill s knows the true probabilities of a share s of the rows and states the prior on the others."""
    rng, n = np.random.default_rng(seed), sessions * names
    sell, buy, known = rng.uniform(-0.25, 0.25, n), rng.uniform(-0.17, 0.17, n), rng.random(n)[:, None]
    truth = PRIOR + np.column_stack([sell, -sell - buy, buy])
    label = (rng.random(n)[:, None] > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2).astype("int8")
    frame = pd.DataFrame({
        "session": np.repeat(pd.bdate_range("2015-01-01", periods=sessions), names),
        "symbol": np.tile([f"S{i}" for i in range(names)], sessions), "label": label,
        "sector": np.tile([f"sector {i % 2}" for i in range(names)], sessions),
        "regime": np.repeat(np.array(["low_volatility", "normal", "high_volatility", "crash"]), n // 4),
    })
    for name, share in (("proba", skill), ("logit", 0.3), ("prior", 0.0)):
        frame[[f"{name}_{c}" for c in COLUMNS]] = np.where(known < share, truth, PRIOR)
    return frame


EVALUATIONS = {skill: evaluation(skill) for skill in (0.0, 0.3, 0.5, 1.0)}
PROBA = [f"proba_{c}" for c in COLUMNS]
OLD = {"id": "old", "recipe_digest": "r1", "as_of": "2019-01-01", "name": "production_v1"}


def evidence(skill: float = 1.0, champion: float | None = None, **changes) -> Evidence:
    first = champion is None
    base = Evidence(
        evaluation=EVALUATIONS[skill], champion_evaluation=None if first else EVALUATIONS[champion],
        candidate={"model_version": "new", "recipe_digest": "r2", "as_of": "2020-01-01",
                   "kind": "first" if first else "new_recipe"},
        champion=None if first else OLD, drift={"score": 0.10, "reference": "champion", "challenger_score": 0.05},
        sectors=None, backtest={}, trials=1, training_rows=5000, refit_shares=np.tile(PRIOR, (2, 1)),
        fold_shares=np.tile(PRIOR, (2, 1)), settings=FAST, horizon=14)
    return replace(base, **changes)


def verdict(rule, proof: Evidence, name: str | None = None) -> Verdict:
    found = rule(proof)
    return found[0] if name is None else next(v for v in found if v.rule == name)


def answer(proof: Evidence) -> str:
    return decide(apply_rules(proof))


# --- decisions on planted truths -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("skill", "champion", "expected"), [
    (1.0, None, "PROMOTE"), (0.5, None, "PROMOTE"), (0.0, None, "REJECT"),
    (1.0, 0.5, "PROMOTE"), (0.5, 1.0, "HOLD"), (0.5, 0.5, "HOLD"), (0.0, 1.0, "REJECT"),
])
def test_planted_skill(skill, champion, expected):
    assert answer(evidence(skill, champion)) == expected


@pytest.mark.parametrize("seed", range(8))
def test_worse_challenger_is_never_promoted_and_better_one_is(seed):
    good, poor = evaluation(1.0, seed, 680), evaluation(0.4, seed, 680)
    worse = evidence(champion=1.0, evaluation=poor, champion_evaluation=good)
    better = evidence(champion=0.5, evaluation=good, champion_evaluation=poor)
    assert answer(worse) != "PROMOTE"
    assert answer(better) == "PROMOTE"


def test_overconfident_model_fails_calibration_whatever_its_rank():
    frame = EVALUATIONS[1.0].copy()
    sharp = frame[PROBA].to_numpy() ** 4
    frame[PROBA] = sharp / sharp.sum(axis=1, keepdims=True)
    assert verdict(promotion.calibrated, evidence(evaluation=frame)).status == "failed"
    assert answer(evidence(evaluation=frame)) == "REJECT"


# --- trap T7: accuracy below the majority class ----------------------------------------------------------------------

def test_t7_accuracy_below_majority_cannot_pass():
    frame = EVALUATIONS[1.0].copy()
    swap = np.arange(len(frame)) % 2 == 0                     # half the rows name the wrong class with confidence
    frame.loc[swap, PROBA] = [0.98, 0.01, 0.01]
    found = verdict(promotion.not_worse_than_majority, evidence(evaluation=frame))
    assert found.observed < 0 and found.status == "failed" and found.blocks
    assert answer(evidence(evaluation=frame)) == "REJECT"


def test_equal_to_majority_passes_at_the_edge():
    found = verdict(promotion.not_worse_than_majority, evidence(0.0))
    assert (found.observed, found.status) == (0.0, "passed")      # names the majority class: at the limit
    assert answer(evidence(0.0)) == "REJECT"                      # and is still no model


# --- trap T8: empty and thin parts -----------------------------------------------------------------------------------

def test_t8_empty_regime_is_never_a_pass():
    found = verdict(promotion.parts, evidence(), "regime:recovery")
    assert (found.status, found.n, found.blocks) == ("insufficient", 0, False)
    assert "no claim" in found.note and np.isnan(found.observed)
    needed = Settings(splits={"bootstrap": 200}, promotion={"required_regimes": ["recovery"]})
    assert answer(evidence(settings=needed)) == "INSUFFICIENT"


def test_thin_regime_is_insufficient_and_blocks_only_if_required():
    frame = EVALUATIONS[1.0].copy()
    last = frame["session"].unique()[-100:]                       # 100 sessions: 3 blocks of 28
    frame["regime"] = np.where(frame["session"].isin(last), "crash", "normal")
    found = verdict(promotion.parts, evidence(evaluation=frame), "regime:crash")
    assert (found.status, found.n_blocks, found.blocks) == ("insufficient", 3, False)
    assert answer(evidence(evaluation=frame)) == "PROMOTE"
    required = Settings(splits={"bootstrap": 200}, promotion={"required_regimes": ["crash"]})
    assert answer(evidence(evaluation=frame, settings=required)) == "INSUFFICIENT"


@pytest.mark.parametrize(("column", "name"), [("regime", "crash"), ("sector", "sector 1")])
def test_one_bad_part_rejects_a_model_that_is_good_on_average(column, name):
    frame = EVALUATIONS[1.0].copy()
    bad = (frame[column] == name).to_numpy()
    frame.loc[bad, PROBA] = [0.35, 0.33, 0.32]                    # calibrated elsewhere, useless here
    found = verdict(promotion.parts, evidence(evaluation=frame), f"{column}:{name}")
    assert (found.status, found.blocks) == ("failed", True)
    assert found.low < found.limit
    assert answer(evidence(evaluation=frame)) == "REJECT"


def test_every_regime_and_sector_is_listed():
    rules = [v.rule for v in promotion.parts(evidence())]
    assert rules == [f"regime:{r}" for r in REGIMES] + ["sector:sector 0", "sector:sector 1"]


def test_empty_evaluation_is_insufficient():
    proof = evidence(evaluation=EVALUATIONS[1.0].iloc[:0])
    assert answer(proof) == "INSUFFICIENT"
    assert not any(v.status == "passed" and v.rule.startswith(("beats", "not_worse", "calibrated", "regime", "sector"))
                   for v in apply_rules(proof))


def test_too_short_evaluation_is_insufficient():
    frame = EVALUATIONS[1.0]
    frame = frame[frame["session"].isin(frame["session"].unique()[:100])]
    assert answer(evidence(evaluation=frame)) == "INSUFFICIENT"


# --- each rule at its edge -------------------------------------------------------------------------------------------

def at(monkeypatch, estimate: float, low: float, high: float, blocks: int = 20) -> None:
    monkeypatch.setattr(promotion, "measure", lambda rows, proof, what: Interval(estimate, low, high, 900, 300, blocks))


@pytest.mark.parametrize(("rule", "estimate", "low", "status"), [
    ("beats_prior", 0.1, 0.0, "failed"), ("beats_prior", 0.1, 1e-9, "failed"), ("beats_prior", 0.1, 0.05, "passed"), ("beats_prior", 0.1, NAN, "failed"),
    ("not_worse_than_logit", 0.0, -0.01, "failed"), ("not_worse_than_logit", 0.0, -0.0099, "passed"),
    ("not_worse_than_logit", NAN, NAN, "failed"),
    ("not_worse_than_majority", 0.0, -0.0099, "passed"), ("not_worse_than_majority", -1e-9, -0.001, "failed"),
    ("not_worse_than_majority", 0.02, -0.01, "failed"),
])
def test_interval_rules_at_their_edge(monkeypatch, rule, estimate, low, status):
    at(monkeypatch, estimate, low, 0.2)
    assert verdict(getattr(promotion, rule), evidence()).status == status


EDGE = t.ppf(0.975, 19) / t.ppf(1 - 0.025 / 24, 19)  # with 20 blocks: the half-width at 95 % that leaves 0 outside at the first look's level


@pytest.mark.parametrize(("estimate", "low", "status"), [
    (0.01, 0.01 * (1 - EDGE) + 1e-9, "passed"), (0.01, 0.01 * (1 - EDGE) - 1e-9, "failed"), (0.0, 0.0, "failed"), (0.01, 1e-9, "failed"), (NAN, NAN, "failed")])
def test_a_new_recipe_must_be_better_at_the_level_of_its_look(monkeypatch, estimate, low, status):
    proof = evidence(1.0, 0.5)
    at(monkeypatch, estimate, low, 0.2)
    found = verdict(promotion.champion, proof)
    assert (found.status, found.blocks) == (status, True)


REFRESH = {"model_version": "new", "recipe_digest": "r1", "as_of": "2020-01-01", "kind": "refresh"}


@pytest.mark.parametrize(("estimate", "low", "status"), [
    (0.001, 0.001 - 0.011 * EDGE + 1e-9, "passed"), (0.001, 0.001 - 0.011 * EDGE - 1e-9, "failed"), (0.0, -0.001, "failed"), (-0.001, -0.002, "failed")])
def test_a_refresh_must_not_be_worse_and_be_better_as_estimated(monkeypatch, estimate, low, status):
    proof = evidence(1.0, 0.5, candidate=REFRESH, ageing=EVALUATIONS[1.0][["session"]].assign(value=0.0), age=63)
    at(monkeypatch, estimate, low, 0.2)
    found = verdict(promotion.champion, proof)
    assert (found.status, found.blocks, found.limit) == (status, True, -0.01) and "63 sessions older" in found.note


def test_a_level_that_is_passed_once_is_not_passed_later_in_the_reign(monkeypatch):
    at(monkeypatch, 0.01, 0.01 * (1 - EDGE) + 1e-9, 0.2)
    statuses = [verdict(promotion.champion, replace(evidence(1.0, 0.5), look=look)).status for look in (1, 24, 25, 100)]
    assert statuses == ["passed", "passed", "failed", "failed"]
    assert promotion.allowed(replace(evidence(), look=48)) == pytest.approx(0.025 / 24 / 4)


def test_settings_changed_in_mid_reign_cannot_spend_more_than_the_promise():
    """Red team: `looks` set to the look at hand, each time, so that each look may take all of its share."""
    total = 0.0
    for look in range(1, 121):
        greedy = Settings(splits={"bootstrap": 200}, promotion={"looks": look if look <= 24 else 1})
        total += promotion.allowed(replace(evidence(), settings=greedy, look=look, spent=total))
        assert total <= (0.025 if look <= 24 else 0.05) + 1e-6


def test_nobody_chooses_the_questions():
    """Red team: a candidate that is catastrophic in the crash quarter leaves that quarter out."""
    bad = EVALUATIONS[1.0].copy()
    crash = (bad["regime"] == "crash").to_numpy()
    bad.loc[crash, PROBA] = [0.9, 0.05, 0.05]
    assert answer(evidence(1.0, 0.5, evaluation=bad)) == "REJECT"
    assert answer(evidence(1.0, 0.5, evaluation=bad[~crash])) == "INSUFFICIENT"
    assert "left the others out" in verdict(promotion.champion, evidence(1.0, 0.5, evaluation=bad[~crash])).note


def test_a_refresh_that_predicts_worse_than_the_champion_is_none():
    """Red team: what counts as the same recipe is another one (other code, say): its own predictions give it away."""
    fresh = EVALUATIONS[0.5][["session"]].assign(value=0.01 + np.random.default_rng(0).normal(0, 0.1, len(EVALUATIONS[0.5])))
    proof = evidence(0.5, 1.0, candidate=REFRESH, ageing=fresh, age=63)
    assert verdict(promotion.champion, proof).status == "passed" and verdict(promotion.champion, proof, "champion:same recipe").status == "failed"
    assert answer(proof) == "HOLD" and answer(replace(proof, champion_evaluation=EVALUATIONS[0.5])) == "PROMOTE"
    few = replace(proof, ageing=fresh.iloc[:500], champion_evaluation=EVALUATIONS[0.5])
    assert verdict(promotion.champion, few).status == "insufficient"


def test_t13_a_gate_asked_until_it_passes(monkeypatch):
    """Red team: 150 reigns of 24 looks at a challenger that is worth nothing. Each look is seen afresh, which is the worst case."""
    rng, blocks, proof = np.random.default_rng(11), 40, evidence(1.0, 0.5)
    half = t.ppf(0.975, blocks - 1)

    def reigns_with_a_promotion(looks) -> float:
        lost = 0
        for _ in range(150):
            means, errors = rng.normal(0, 1 / np.sqrt(blocks), 24), np.sqrt(rng.chisquare(blocks - 1, 24) / (blocks - 1) / blocks)
            passed = False
            for n in range(24):
                monkeypatch.setattr(promotion, "measure", lambda rows, proof, what, m=means[n], e=errors[n]: Interval(m, m - half * e, m + half * e, 900, 300, blocks))
                passed |= promotion.champion(replace(proof, look=looks(n)))[0].status == "passed"
            lost += passed
        return lost / 150

    monkeypatch.setattr(promotion, "_common", lambda proof: pd.DataFrame())
    assert reigns_with_a_promotion(lambda n: n + 1) <= 0.06       # 0.025 allowed; 9 of 150 would be far outside its sampling error
    monkeypatch.setattr(promotion, "spent", lambda look, alpha, horizon: alpha)
    assert reigns_with_a_promotion(lambda n: 1) > 0.3             # the same gate, if nobody counts


@pytest.mark.parametrize(("blocks", "status"), [(5, "insufficient"), (6, "passed")])
def test_min_blocks_edge(monkeypatch, blocks, status):
    at(monkeypatch, 0.1, 0.08, 0.2, blocks)
    assert verdict(promotion.beats_prior, evidence()).status == status


@pytest.mark.parametrize(("error", "status"), [(0.05, "passed"), (0.0500001, "failed"), (NAN, "failed")])
def test_calibration_edge(monkeypatch, error, status):
    monkeypatch.setattr(promotion, "calibration_error", lambda y, proba: error)
    assert verdict(promotion.calibrated, evidence()).status == status


@pytest.mark.parametrize(("ours", "status"), [(0.12, "passed"), (0.1200001, "failed"), (NAN, "insufficient"), (float("inf"), "insufficient"),
                                              (None, "insufficient"), ("0.1", "insufficient")])
def test_drift_edge(ours, status):
    found = verdict(promotion.drift, evidence(1.0, 0.5, drift={"score": 0.10, "reference": "champion",
                                                              "challenger_score": ours}))
    assert (found.status, found.blocks) == (status, True)


def test_drift_score_against_another_reference_is_not_the_champions():
    proof = evidence(1.0, 0.5, drift={"score": 0.10, "reference": "recent", "challenger_score": 0.05})
    assert verdict(promotion.drift, proof).status == "insufficient"
    assert answer(proof) == "INSUFFICIENT"


def test_another_question_is_no_comparison():
    """Red team: a candidate with labels that are easy to say. On the rows where the two happen to agree it would win."""
    easy = EVALUATIONS[0.5].assign(label=1, proba_sell=0.003, proba_hold=0.994, proba_buy=0.003)
    found = verdict(promotion.champion, replace(evidence(1.0, 0.5), evaluation=easy))
    assert found.status == "insufficient" and found.blocks and "another label" in found.note
    few = replace(evidence(1.0, 0.5), champion_evaluation=EVALUATIONS[0.5].iloc[:900])
    assert verdict(promotion.champion, few).status == "insufficient"


def test_a_champion_of_the_same_session_has_the_challengers_drift():
    """A quant changes a feature and builds again: both learned from the same years, and nothing is missing."""
    same = {**OLD, "as_of": date(2020, 1, 1)}  # the store gives dates, the candidate ISO text
    for drift, status in (({"score": 0.4, "reference": "recent", "challenger_score": 0.4}, "passed"), ({"reference": "recent"}, "insufficient")):
        assert verdict(promotion.drift, replace(evidence(1.0, 0.5, drift=drift), champion=same)).status == status


def test_drift_alone_holds():
    proof = evidence(1.0, 0.5, drift={"score": 0.10, "reference": "champion", "challenger_score": 0.5})
    assert answer(proof) == "HOLD"


@pytest.mark.parametrize(("shift", "status"), [(0.0999, "passed"), (0.1001, "failed"), (NAN, "failed")])
def test_sane_refit_edge(shift, status):
    shares = np.tile(PRIOR, (2, 1))
    moved = shares + np.array([[0, 0, 0], [shift, shift, shift]])
    assert verdict(promotion.sane_refit, evidence(refit_shares=moved)).status == status


def test_swapped_class_coding_of_the_refit_is_caught():
    swapped = np.tile(PRIOR, (2, 1))[:, [1, 0, 2]]
    assert answer(evidence(refit_shares=swapped)) == "REJECT"
    assert answer(evidence(refit_shares=None)) == "INSUFFICIENT"


@pytest.mark.parametrize(("rows", "status"), [(1000, "passed"), (999, "insufficient"), (0, "insufficient")])
def test_enough_samples_edge(rows, status):
    assert verdict(promotion.enough_samples, evidence(training_rows=rows)).status == status
    strict = Settings(training=TrainingSettings(min_samples_for_training=rows + 1))
    assert verdict(promotion.enough_samples, evidence(training_rows=rows, settings=strict)).status == "insufficient"


# --- the champion ----------------------------------------------------------------------------------------------------

def test_without_champion_comparisons_do_not_apply():
    table = {v.rule: v for v in apply_rules(evidence())}
    for rule in ("champion", "drift"):
        assert (table[rule].status, table[rule].applies, table[rule].blocks) == ("not applicable", False, False)


def test_champion_present_and_evidence_missing_blocks():
    proof = evidence(1.0, 0.5, champion_evaluation=None)
    found = verdict(promotion.champion, proof)
    assert (found.status, found.blocks) == ("insufficient", True)
    assert answer(proof) == "INSUFFICIENT"


def test_no_common_rows_with_the_champion_is_insufficient():
    elsewhere = EVALUATIONS[0.5].assign(symbol="elsewhere " + EVALUATIONS[0.5]["symbol"])
    assert answer(evidence(1.0, 0.5, champion_evaluation=elsewhere)) == "INSUFFICIENT"


def test_rows_with_another_label_are_not_compared():
    other = EVALUATIONS[0.5].assign(label=(EVALUATIONS[0.5]["label"] + 1) % 3)
    assert verdict(promotion.champion, evidence(1.0, 0.5, champion_evaluation=other)).n == 0


def test_identical_candidate_is_held():
    candidate = {"model_version": "old", "recipe_digest": "r1", "as_of": "2019-01-01", "kind": "identical"}
    proof = evidence(1.0, 1.0, candidate=candidate)
    assert answer(proof) == "HOLD"
    assert "is the champion" in verdict(promotion.champion, proof).note


def test_refresh_is_not_judged_recipe_against_recipe():
    found = verdict(promotion.champion, evidence(1.0, 0.5, candidate=REFRESH))  # a far better evaluation, and no fits as old as the champion
    assert (found.status, found.blocks) == ("insufficient", True) and "as old as the champion" in found.note
    assert answer(evidence(1.0, 0.5, candidate=REFRESH)) == "INSUFFICIENT"


@pytest.mark.parametrize("claimed", ["first", "identical", "refresh", "anything"])
def test_candidate_cannot_choose_its_kind(claimed):
    candidate = {"model_version": "new", "recipe_digest": "r2", "as_of": "2020-01-01", "kind": claimed}
    assert answer(evidence(1.0, 0.5, candidate=candidate)) == "HOLD"       # a new recipe: the claim fails
    if claimed != "first":
        assert answer(evidence(1.0, candidate=candidate)) != "PROMOTE"     # and without a champion


def test_kind_of():
    assert promotion.kind_of("m", "r", None) == "first"
    assert promotion.kind_of("old", "r1", OLD) == "identical"
    assert promotion.kind_of("m", "r1", OLD) == "refresh"
    assert promotion.kind_of("m", "r", OLD) == "new_recipe"


# --- refusals --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("trials", [0, -1, None, NAN, "3"])
def test_no_decision_without_a_trial(trials):
    with pytest.raises(DataError, match="trials; it counts this candidate"):
        evidence(trials=trials)
    with pytest.raises(DataError, match="looks; it counts this candidate"):
        evidence(look=trials)


def test_duplicate_rows_are_refused():
    frame = pd.concat([EVALUATIONS[1.0], EVALUATIONS[1.0].iloc[:1]])
    with pytest.raises(DataError, match="S0 on 2015-01-01 twice"):
        evidence(evaluation=frame)
    with pytest.raises(DataError, match="champion's evaluation"):
        evidence(1.0, 0.5, champion_evaluation=frame)


def test_missing_column_and_unlabelled_rows_are_refused():
    with pytest.raises(DataError, match="logit_sell"):
        evidence(evaluation=EVALUATIONS[1.0].drop(columns="logit_sell"))
    unlabelled = EVALUATIONS[1.0].assign(label=EVALUATIONS[1.0]["label"].astype(float).where(lambda x: x.index != 3))
    with pytest.raises(DataError, match="only labelled rows"):
        answer(evidence(evaluation=unlabelled))


def test_a_verdict_cannot_contradict_itself():
    with pytest.raises(ConfigError, match="missing metric"):
        Verdict("x", "all", NAN, 0.0, NAN, NAN, 1, 1, True, "passed", True, "")
    with pytest.raises(ConfigError, match="contradicts"):
        Verdict("x", "all", 1.0, 0.0, NAN, NAN, 1, 1, True, "not applicable", True, "")


# --- fail closed -----------------------------------------------------------------------------------------------------

def test_rules_that_do_not_apply_never_pass():
    for v in apply_rules(evidence()):
        if v.rule in ("memory", "replay", "several", "attribution"):
            assert (v.status, v.blocks) == ("not applicable", False)


@pytest.fixture(scope="module")
def good_verdicts() -> list[Verdict]:
    assert "attribution" in promotion.chosen_rules(FAST.promotion)
    return apply_rules(evidence(1.0, 0.5))


def distances(**changes) -> pd.DataFrame:
    row = {"regime": "all", "distance": 0.4, "low": 0.3, "high": 0.5, "n_rows": 900, "n_sessions": 600, "n_blocks": 10} | changes
    return pd.DataFrame([row, {**row, "regime": "crash", "n_blocks": 2}])


@pytest.mark.parametrize(("changes", "status"), [
    ({}, "failed"), ({"low": 0.25}, "passed"), ({"low": 0.2500001}, "failed"), ({"low": 0.0, "distance": 0.9, "high": 1.0}, "passed"),
    ({"low": NAN, "high": NAN}, "failed"), ({"n_blocks": 5}, "insufficient"), ({"distance": NAN, "low": NAN, "high": NAN}, "failed"),
])
def test_other_reasons_are_named_and_never_block(good_verdicts, changes, status):
    """The rule reads its frame at the edge of its limit; whatever it says, the decision is that of the other rules."""
    proof = evidence(1.0, 0.5, attribution=distances(**changes))
    whole, crash = promotion.attribution(proof)
    assert (whole.status, whole.rule, crash.rule, crash.status) == (status, "attribution", "attribution:crash", "insufficient")
    assert not whole.blocks and not crash.blocks and decide([*good_verdicts, whole, crash]) == decide(good_verdicts) == "PROMOTE"
    named = " ".join(promotion.reasons([*good_verdicts, whole, crash], "PROMOTE"))
    assert ("other reasons than the champion" in named) == (status == "failed")


def test_without_a_stored_explanation_the_rule_does_not_know():
    assert "no champion" in verdict(promotion.attribution, evidence(attribution=distances())).note
    for missing in (None, distances()[:0]):
        found = verdict(promotion.attribution, evidence(1.0, 0.5, attribution=missing))
        assert "not stored" in found.note and found.status == "insufficient" and not found.blocks
    sums = pd.DataFrame({"session": pd.bdate_range("2015-01-01", periods=600), "regime": "normal", "n_rows": 5, "a": 2.0, "b": 1.0})
    given_inputs = {"champion": {"explanation": sums}, "explain": {"sessions": sums.assign(a=1.0)}}
    found = promotion.explained_otherwise(given_inputs, FAST)
    assert found["distance"].tolist() == pytest.approx([1 / 6, 1 / 6]) and promotion.explained_otherwise({"champion": {}}, FAST) is None


@pytest.mark.parametrize("missing", promotion.REQUIRED)
def test_a_required_rule_that_is_absent_is_missing_evidence(missing):
    table = [v for v in apply_rules(evidence(1.0, 0.5)) if v.rule != missing]
    assert decide(table) != "PROMOTE"


def test_nothing_decides_nothing():
    assert decide([]) == "INSUFFICIENT"


@pytest.mark.parametrize("rule", [r for r in promotion.REQUIRED if r not in promotion.COMPARISONS])
def test_required_rule_may_not_declare_itself_not_applicable(rule):
    table = [promotion.not_applicable(rule, "") if v.rule == rule else v for v in apply_rules(evidence())]
    assert decide(table) == "INSUFFICIENT"


HOLES = st.sampled_from([np.nan, np.inf, -np.inf, -0.1, 1.5])
CELLS = st.sampled_from([f"{m}_{c}" for m in ("proba", "prior", "logit") for c in COLUMNS])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(columns=st.lists(CELLS, min_size=1, max_size=4, unique=True), row=st.integers(0, 2799), hole=HOLES)
def test_one_hole_anywhere_is_never_promoted(columns, row, hole):
    frame = EVALUATIONS[1.0].copy()
    frame.loc[row, columns] = hole
    table = apply_rules(evidence(evaluation=frame))
    assert decide(table) == "REJECT"
    for v in table:
        if v.status == "passed":
            assert np.isfinite([v.observed, v.limit]).all()


def test_a_hole_in_the_champions_predictions_is_no_gain():
    frame = EVALUATIONS[0.5].copy()
    frame.loc[7, "proba_hold"] = np.nan
    proof = evidence(1.0, 0.5, champion_evaluation=frame)
    assert verdict(promotion.champion, proof).status == "failed"
    assert answer(proof) == "HOLD"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_blocking_verdict_without_a_number_never_promotes(data):
    table = []
    for name in promotion.REQUIRED:
        observed = data.draw(st.sampled_from([0.1, NAN]))
        status = data.draw(st.sampled_from(["passed", "failed", "insufficient"] if observed == observed
                                           else ["failed", "insufficient"]))
        table.append(Verdict(name, "all", observed, 0.0, NAN, NAN, 9, 9, True, status, True, ""))
    found = decide(table)
    assert (found == "PROMOTE") == all(v.status == "passed" for v in table)
    if found == "HOLD":
        assert {v.rule for v in table if v.status == "failed"} <= set(promotion.COMPARISONS)
    if any(v.status == "failed" and v.rule not in promotion.COMPARISONS for v in table):
        assert found == "REJECT"


# --- Holm ------------------------------------------------------------------------------------------------------------

def holm_by_the_book(p: list[float], level: float) -> list[bool]:
    """Step down: reject the smallest p while it is at most level / (number of hypotheses left)."""
    rejected, left = [False] * len(p), list(range(len(p)))
    while left:
        best = min(left, key=lambda i: p[i])
        if p[best] > level / len(left):
            break
        rejected[best] = True
        left.remove(best)
    return rejected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=16), st.sampled_from([0.01, 0.025, 0.05, 0.2]))
def test_holm_against_the_book(p, level):
    adjusted = significance.holm(p)
    near = np.abs(adjusted - level) < 1e-12
    assert [bool(x) for x in adjusted <= level] == holm_by_the_book(p, level) or near.any()
    assert (adjusted >= np.array(p) - 1e-15).all() and (adjusted <= 1).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-0.1, 0.1), st.floats(0.001, 0.1)), min_size=1, max_size=16))
def test_bounds_agree_with_adjusted_p(pairs):
    found = [Interval(e, e - w, e + w, 1, 1, 9) for e, w in pairs]
    adjusted, low = significance.holm_bounds(found, -0.02, 0.05)
    clear = (np.abs(low + 0.02) > 1e-9) & (np.abs(adjusted - 0.025) > 1e-9)
    assert ((low > -0.02) == (adjusted <= 0.025))[clear].all()


def test_holm_bounds_with_nothing_certain_and_undefined_parts():
    adjusted, low = significance.holm_bounds([Interval(e, e, e, 1, 1, 9) for e in (NAN, 0.1)], -0.02, 0.05)
    assert adjusted.tolist() == [1.0, 0.0] and np.isnan(low[0]) and low[1] == pytest.approx(0.1)
    assert significance.holm_bounds([], -0.02, 0.05)[0].size == 0


# --- parts against the champion, memory, replay, several, profiles ---------------------------------------------------

def worse_in(column: str, name: str) -> pd.DataFrame:
    frame = EVALUATIONS[1.0].copy()
    frame.loc[(frame[column] == name).to_numpy(), PROBA] = PRIOR      # knows nothing there, and is still no worse than the prior
    return frame


@pytest.mark.parametrize(("column", "name"), [("regime", "crash"), ("sector", "sector 1")])
def test_a_part_that_got_worse_than_the_champion_stops_a_better_average(column, name):
    old = EVALUATIONS[0.0].copy()
    old.loc[(old[column] == name).to_numpy(), PROBA] = EVALUATIONS[1.0].loc[(old[column] == name).to_numpy(), PROBA]  # knows this part, and nothing else
    proof = evidence(1.0, 0.5, evaluation=worse_in(column, name), champion_evaluation=old)
    found = verdict(promotion.not_worse_in_parts, proof, f"champion:{column}:{name}")
    assert (found.status, found.blocks) == ("failed", True) and found.high < 0 and np.isnan(found.p)  # `p` is of a limit to be passed
    assert verdict(promotion.parts, proof, f"{column}:{name}").status == "passed"  # the prior alone would not have noticed
    assert answer(proof) == "HOLD"
    fine = verdict(promotion.not_worse_in_parts, evidence(1.0, 0.5), f"champion:{column}:{name}")
    assert fine.status == "passed" and fine.low > 0


def test_the_worst_regime_has_a_floor():
    frame = worse_in("regime", "crash")
    frame.loc[(frame["regime"] == "crash").to_numpy(), PROBA] = [0.34, 0.46, 0.20]  # a little worse than the prior there
    found = verdict(promotion.worst_regime, evidence(evaluation=frame))
    assert (found.status, found.scope, found.blocks) == ("failed", "crash", True) and found.observed < 0
    assert answer(evidence(evaluation=frame)) == "REJECT"
    low = Settings(splits={"bootstrap": 200}, promotion={"regime_floor": -0.02})
    assert verdict(promotion.worst_regime, evidence(evaluation=frame, settings=low)).status == "passed"
    holed = EVALUATIONS[1.0].copy()
    holed.loc[(holed["regime"] == "crash").to_numpy().nonzero()[0][:1], "proba_buy"] = NAN
    assert verdict(promotion.worst_regime, evidence(evaluation=holed)).status == "failed"


def without(skill: float, seed: int = 3, sessions: int = 200) -> pd.DataFrame:
    """Predictions for two events of which neither recipe has learned: a long one and one of a single block."""
    frame = evaluation(skill, seed, sessions)
    days = frame["session"].unique()
    return frame.assign(event=np.where(frame["session"].isin(days[:170]), "long", "short"))[["event", "session", "symbol", "label", *PROBA]]


def test_forgetting_stops_a_better_average():
    forgets = evidence(1.0, 0.5, without_event=without(0.0), champion_without_event=without(1.0))
    table = {v.rule: v for v in promotion.memory(forgets)}
    assert (table["memory"].status, table["memory:long"].status, table["memory:short"].status) == ("failed", "failed", "insufficient")
    assert not table["memory:short"].blocks and table["memory:long"].high < 0
    assert answer(forgets) == "HOLD"
    knows = replace(forgets, without_event=without(1.0), champion_without_event=without(0.0))
    assert {v.status for v in promotion.memory(knows)} == {"passed", "insufficient"} and answer(knows) == "PROMOTE"


def test_memory_without_evidence_is_no_pass_and_no_bar():
    for proof in (evidence(1.0, 0.5), evidence(1.0, 0.5, without_event=without(1.0)), evidence(1.0, 0.5, without_event=without(1.0), champion_without_event=without(1.0).iloc[:0])):
        found = verdict(promotion.memory, proof)
        assert (found.status, found.blocks) == ("insufficient", False)
    assert verdict(promotion.memory, evidence(1.0, 0.5, candidate=REFRESH)).status == "not applicable"
    other = without(1.0).assign(label=lambda f: 2 - f["label"])  # another question
    assert verdict(promotion.memory, evidence(1.0, 0.5, without_event=without(1.0), champion_without_event=other[other["label"] != without(1.0)["label"]])).status == "insufficient"


@pytest.mark.parametrize(("gain", "expected"), [(-0.05, "failed"), (0.0, "passed"), (0.05, "passed"), (NAN, "failed")])
def test_replay_may_not_cost_more_than_the_margin(gain, expected):
    on = Settings(splits={"bootstrap": 200}, replay={"mode": "errors"})
    rows = EVALUATIONS[1.0][["session"]].assign(value=gain)
    assert verdict(promotion.replay, evidence(settings=on, without_replay=rows)).status == expected
    missing = verdict(promotion.replay, evidence(settings=on))
    assert (missing.status, missing.blocks) == ("insufficient", True)


def test_the_best_of_many_worthless_candidates_is_not_better():
    rng, days = np.random.default_rng(2), EVALUATIONS[1.0]["session"].unique()
    benchmark = rng.normal(1.0, 0.1, len(days))
    many = pd.DataFrame({f"c{k}": benchmark + rng.normal(0, 0.05, len(days)) for k in range(10)} | {"benchmark": benchmark}, index=days)
    noise = verdict(promotion.several, evidence(challengers={"forest": many}))
    assert (noise.rule, noise.status, noise.blocks) == ("several:forest", "failed", True) and noise.p > 0.05
    good = many.assign(c3=many["c3"] - 0.03)
    found = verdict(promotion.several, evidence(challengers={"forest": good}))
    assert found.status == "passed" and found.note.endswith("shown to be better: c3")
    assert verdict(promotion.several, evidence(challengers={"forest": good.iloc[:100]})).status == "insufficient"
    assert verdict(promotion.several, evidence(challengers={"forest": good.iloc[:20]})).status == "insufficient"  # too few for any test: a verdict, no crash
    grid = Settings(splits={"bootstrap": 200}, tuning={"forest": [{"min_samples_leaf": 50}]})
    missing = verdict(promotion.several, evidence(settings=grid))
    assert (missing.status, missing.blocks) == ("insufficient", True) and "missing" in missing.note
    against = evidence(1.0, 0.5, challengers={"forest": many})
    assert verdict(promotion.several, against).rule == "champion:several:forest" and answer(against) == "HOLD"  # not better than the champion: no fault of its own
    assert verdict(promotion.several, evidence(1.0, 0.5, candidate=REFRESH, challengers={"forest": many})).status == "not applicable"


SEED = Settings(splits={"bootstrap": 200}, promotion={"profile": "seed"}, replay={"mode": "errors"})


def seed_proof(**changes) -> Evidence:
    right = EVALUATIONS[1.0].copy()
    right[PROBA] = np.eye(3)[right["label"]] * 0.97 + 0.01
    table = pd.DataFrame({"level": ["sector"], "accuracy": [0.9]})
    return evidence(settings=SEED, **{"evaluation": right, "sectors": table, "without_replay": right[["session"]].assign(value=0.01), **changes})


def test_profile_seed_has_its_five_thresholds_and_fails_closed():
    assert promotion.chosen_rules(SEED.promotion) == ("seed_thresholds", "champion", "sane_refit", "enough_samples")
    required = promotion.required_rules(SEED.promotion)
    def decided(proof):
        return decide(apply_rules(proof), required)
    assert decided(seed_proof()) == "PROMOTE"
    assert decided(seed_proof(drift={"score": 0.20})) == "REJECT"
    assert decided(seed_proof(drift={})) == "INSUFFICIENT"
    assert decided(seed_proof(without_replay=None)) == "INSUFFICIENT"
    assert decided(seed_proof(sectors=pd.DataFrame({"level": ["sector"], "accuracy": [0.55]}))) == "REJECT"
    assert decided(seed_proof(evaluation=EVALUATIONS[1.0])) == "REJECT"       # 65 % is more than the truth allows
    no_crash = seed_proof().evaluation.assign(regime="normal")
    assert decided(seed_proof(evaluation=no_crash)) == "INSUFFICIENT"
    held = replace(seed_proof(), champion_evaluation=seed_proof().evaluation, champion=OLD, candidate={"model_version": "new", "recipe_digest": "r2", "as_of": "2020-01-01", "kind": "new_recipe"})
    assert decided(held) == "HOLD"                                            # thresholds passed, and no better than the champion


def test_rules_are_chosen_by_name_and_the_champion_is_always_asked():
    few = PromotionSettings(rules=("calibrated",))
    assert promotion.chosen_rules(few) == ("calibrated", "beats_prior", "champion", "sane_refit", "enough_samples")
    assert set(promotion.required_rules(few)) == {"calibrated", "beats_prior", "champion", "sane_refit", "enough_samples"}
    with pytest.raises(ValueError, match="`rules` names \\['no_such_rule'\\]; there are"):      # long before anything is trained
        PromotionSettings(rules=("no_such_rule",))
    assert tuple(promotion.RULES) == GATE_RULES
    nothing = PromotionSettings(rules=("enough_samples",))
    assert decide(apply_rules(evidence(0.0, settings=Settings(splits={"bootstrap": 200}, promotion=nothing))), promotion.required_rules(nothing)) == "REJECT"
    worse = evidence(0.5, 1.0, settings=Settings(splits={"bootstrap": 200}, promotion=few))
    assert decide(apply_rules(worse), promotion.required_rules(few)) == "HOLD"


# --- tradable, and the whole run -------------------------------------------------------------------------------------

EDGE_SHOWN = {"tradable_edge_ann": 0.5, "low": 0.4, "high": 0.6, "n_blocks": 100}
ALL_SHOWN = {**EDGE_SHOWN, "edge_sharpe": 1.0, "edge_sharpe_error": 0.4, "spread_ann": 0.3, "pbo": 0.2, "track_record_years": 5.0}


@pytest.mark.parametrize("document", [
    {}, {"tradable_edge_ann": NAN, "low": NAN, "high": NAN}, EDGE_SHOWN, {"tradable_edge_ann": 0.5}, {**ALL_SHOWN, "tradable_edge_ann": None},
    *({**ALL_SHOWN, name: value} for name in ("edge_sharpe", "edge_sharpe_error", "spread_ann", "pbo", "track_record_years", "n_blocks") for value in (NAN, None, float("inf"))),
    {**ALL_SHOWN, "edge_sharpe": 0.65}, {**ALL_SHOWN, "edge_sharpe_error": 0.0}, {**ALL_SHOWN, "pbo": 0.2001}, {**ALL_SHOWN, "low": 0.15}])
def test_whatever_is_missing_or_fails_is_not_tradable(document):
    found = promotion.tradable(document)
    assert found["verdict"] == "not shown" and "not tradable" in found["statement"]
    assert {one["status"] for one in found["criteria"]} & {"missing", "failed"}


def test_the_ledger_deflates_what_the_backtest_counted_once(monkeypatch):
    """The same numbers as the module of luck gives for the series itself, with the ledger's count."""
    rng = np.random.default_rng(4)
    net = rng.normal(0.0008, 0.01, 1500)
    track, year = luck.Track.of(net, 28), np.sqrt(252)
    said = {**ALL_SHOWN, "edge_sharpe": track.ratio * year, "edge_sharpe_error": track.error * year, "spread_ann": 0.02 * year, "track_record_years": len(net) / 252}
    for trials in (1, 7, 200):
        sharpe, years = promotion.deflate(said, trials, 0.05)
        assert sharpe == pytest.approx(luck.deflated_sharpe(net, trials, 0.02, 28))
        assert years == pytest.approx(track.sessions_needed(luck.expected_maximum(trials, 0.02)) / 252)
    assert promotion.tradable(ALL_SHOWN)["verdict"] == "tradable" and promotion.tradable(ALL_SHOWN, trials=100)["verdict"] == "not shown"


def test_tradable_and_refuted():
    assert promotion.tradable(ALL_SHOWN)["verdict"] == "tradable"
    assert promotion.tradable({**ALL_SHOWN, "tradable_edge_ann": -0.5, "low": -0.6, "high": -0.4})["verdict"] == "refuted"


def test_the_edge_and_its_bound_say_their_unit_and_level():
    """The interval is at 95 %, the bound that decides at the level of one look: two numbers of the same thing."""
    answer = promotion.tradable({**ALL_SHOWN, "tradable_edge_ann": -0.046, "low": -0.08, "high": -0.015})
    assert "is -4.6% a year [-8.0%, -1.5% at 95%], below zero; not passed: lower bound of the edge at 99.9%, one-sided" in answer["statement"]
    shown = promotion.trading(TaskOutput(documents={"decision": {"tradable": answer}}))
    assert shown.iloc[0].tolist() == ["lower bound of the edge at 99.9%, one-sided", f"{answer['bound']:.1%} a year", "0.0% a year", "failed"] and answer["bound"] < -0.08
    assert promotion.trading(TaskOutput(documents={"decision": {"tradable": promotion.tradable({})}}))["observed"].tolist() == [""] * 4


class Fixed:
    feature_names_in_ = np.array(["f"])

    def __init__(self, name, proba=PRIOR):
        self.name, self.proba = name, proba

    def content_digest(self):
        return digest_json(self.name)

    def predict_proba(self, X):
        return np.tile(self.proba, (len(X), 1))


def inputs(skill: float = 1.0, **changes) -> dict:
    oof = pd.DataFrame({"row": range(9), "fold": 2017})
    base = {"model": Fixed("refit"), "last_fold": Fixed("fold"), "out_of_fold": oof}
    table = pd.DataFrame({"level": ["sector", "sector", "regime"], "accuracy": [0.5, 0.4, 0.1]})
    ic = {"scope": "all", "model": "stack", "metric": "ic", "value": 0.01, "low": -0.01, "high": 0.03}
    metrics, plan = pd.DataFrame([ic]), pd.DataFrame({"fold": [-1] * 2000 + [2017] * 9})
    return {
        "features": {"feature_set": {"version": "v1"}}, "drift": {"drift": {"score": 0.1, "reference": "recent"}},
        "memory": {"samples": pd.DataFrame({"f": np.zeros(9)}), "plan": plan},
        "forest": base, "boosting": base, "meta": {"evaluation": EVALUATIONS[skill], "model": Fixed("meta")},
        "sectors": {"table": table}, "backtest": {"summary": {}, "metrics": metrics},
        "champion": {"record": None, "evaluation": None}, "ledger": {"trials": 1, "look": 1}, **changes}


AS_OF = pd.Timestamp("2017-12-29")


def test_run_end_to_end():
    before = EVALUATIONS[1.0].copy()
    output = promotion.run(inputs(), FAST, AS_OF)
    decision = output.documents["decision"]
    assert (decision["verdict"], decision["kind"]) == ("PROMOTE", "first")
    assert (decision["champion"], decision["trials"]) == (None, 1)
    assert decision["min_sector_accuracy"] == 0.4 and decision["headline"]["ic_high"] == 0.03
    frame = EVALUATIONS[1.0]
    hit = frame[PROBA].to_numpy().argmax(axis=1) == frame["label"]
    assert decision["overall_accuracy"] == pytest.approx(hit.mean())
    assert decision["crash_accuracy"] == pytest.approx(hit[frame["regime"] == "crash"].mean())
    assert not output.frames["verdicts"].duplicated(["rule", "scope"]).any()
    assert set(output.metrics) >= {"gain_over_prior", "gain_over_logit", "ic", "crash_accuracy", "drift_score"}
    pd.testing.assert_frame_equal(EVALUATIONS[1.0], before)
    again = promotion.run(inputs(), FAST, AS_OF)
    pd.testing.assert_frame_equal(again.frames["verdicts"], output.frames["verdicts"])
    assert digest_json(again.documents) == digest_json(output.documents)
    assert promotion.figure(output).axes and len(promotion.table(output)) == len(output.frames["verdicts"])


@pytest.mark.parametrize("chosen", [{}, {"profile": "seed"}, {"rules": ["calibrated"]}])
@pytest.mark.parametrize("holed", [False, True])
def test_every_verdict_can_be_shown(chosen, holed):
    """The decision is on record before it is drawn: whatever it is, picture and tables must not fail."""
    frame = EVALUATIONS[1.0].copy()
    frame.loc[frame.index[::7] if holed else [], "proba_buy"] = NAN
    rules = Settings(splits={"bootstrap": 200}, promotion=chosen)
    output = promotion.run(inputs(meta={"evaluation": frame, "model": Fixed("meta")}), rules, AS_OF)
    assert promotion.figure(output).axes and len(promotion.table(output)) and len(promotion.trading(output)) == 4
    assert output.documents["decision"]["gate"] == rules.promotion.model_dump(mode="json")
    again = TaskOutput(frames={"verdicts": output.frames["verdicts"].iloc[:0]}, documents=output.documents)
    assert promotion.figure(again) and len(promotion.crises(TaskOutput(frames={"without_event": without(1.0)}))) == 2


def test_a_champion_score_of_infinity_lets_nothing_pass():
    proof = evidence(1.0, 0.5, drift={"score": float("inf"), "reference": "champion", "challenger_score": 0.9})
    assert verdict(promotion.drift, proof).status == "insufficient"


def test_a_sector_that_is_missing_is_a_part_of_its_own():
    frame = EVALUATIONS[1.0].astype({"sector": object})
    frame.loc[::4, "sector"] = None
    assert verdict(promotion.parts, evidence(evaluation=frame), "sector:Unknown").n == len(frame) // 4


def test_run_knows_the_champion_itself():
    version = promotion.run(inputs(), FAST, AS_OF).documents["decision"]["model_version"]
    record = {"id": version, "recipe_digest": "any", "as_of": "2017-12-29", "name": "production_v1"}
    champion = {"record": record, "evaluation": EVALUATIONS[1.0]}
    drift = {"drift": {"score": 0.1, "reference": "champion", "challenger_score": 0.1}}
    decision = promotion.run(inputs(champion=champion, drift=drift), FAST, AS_OF).documents["decision"]
    assert (decision["verdict"], decision["kind"], decision["champion"]) == ("HOLD", "identical", "production_v1")


def test_same_settings_are_a_refresh_and_others_a_new_recipe():
    digest = promotion.run(inputs(), FAST, AS_OF).documents["decision"]["recipe_digest"]
    record = {"id": "other", "recipe_digest": digest, "as_of": "2016-12-30", "name": "production_v1"}
    found = inputs(champion={"record": record, "evaluation": EVALUATIONS[0.5]})
    assert promotion.run(found, FAST, AS_OF).documents["decision"]["kind"] == "refresh"
    changed = Settings(splits={"bootstrap": 200}, forest={"n_estimators": 50})
    assert promotion.run(found, changed, AS_OF).documents["decision"]["kind"] == "new_recipe"
    for remembered in ({"aftermath_sessions": 5}, {"extra": [{"name": "mine", "start": "2010-05-03", "end": "2010-06-30", "regime": "crash", "weight": 0.1}]}):
        other = Settings(splits={"bootstrap": 200}, events=remembered)  # what is remembered reaches a training row
        assert promotion.run(found, other, AS_OF).documents["decision"]["kind"] == "new_recipe"
    limits_only = Settings(splits={"bootstrap": 200}, promotion=PromotionSettings(margin=0.02))
    assert promotion.run(found, limits_only, AS_OF).documents["decision"]["kind"] == "refresh"


def test_run_refuses_an_uncounted_candidate():
    with pytest.raises(DataError, match="trials"):
        promotion.run(inputs(ledger={"trials": 0, "look": 1}), FAST, AS_OF)


def test_missing_numbers_are_nan_not_none():
    plain = inputs(sectors={"table": None}, backtest={"summary": {}})
    plain["meta"] = {"evaluation": EVALUATIONS[1.0].assign(regime="normal"), "model": Fixed("meta")}
    decision = promotion.run(plain, FAST, AS_OF).documents["decision"]
    for value in (decision["crash_accuracy"], decision["min_sector_accuracy"], decision["headline"]["ic"]):
        assert isinstance(value, float) and np.isnan(value)
