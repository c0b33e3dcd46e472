"""The fourteen traps of this trade, each set on purpose: what guards against it must say so, and the clean version must pass.

A test builds the leaky input, or breaks the guard, and fails if nothing is said. Traps that are planted in a whole pipeline, by patching one production
function, are in poison.py, and test_audit.py sees each of them found: T1 to T6, T9, T11 and T12. Here is what else guards against them, and the traps
that are no look-ahead: what the gate, drift and the labels' one definition say.
"""
import ast

import numpy as np
import pandas as pd
import pytest
import test_drift
import test_memory
import test_replay
from conftest import ROOT
from scipy.stats import norm
from sklearn.model_selection import KFold
from test_promotion import EVALUATIONS, PROBA, answer, evidence, verdict

from mltrader import drift, features, labels, market, memory, meta, packaged, promotion, replay, reports, sectors, splits
from mltrader.config import Settings, home
from mltrader.core import BUY, CLASSES, HOLD, PROBABILITIES, SELL, DataError, OutOfFold
from mltrader.forest import RandomForestModel

KEYS = ["session", "symbol"]
QUICK = Settings(splits={"bootstrap": 200})


def shares(X, y, rows, X_test):
    """A model that knows the class shares alone."""
    return np.tile(np.bincount(y, minlength=3) / len(y), (len(X_test), 1))


# ---- T1: regimes made of labels --------------------------------------------------------------------------------------

def test_t1_no_task_could_make_regimes_of_labels():
    before, todo = set(), ["regimes"]
    while todo:  # all that the task may read, however far up
        todo = [task for name in todo for task in reports.PIPELINE[name].upstream if task not in before]
        before.update(todo)
    assert before == {"market"} and "labels" not in reports.PIPELINE["regimes"].sections
    with pytest.raises(KeyError, match="no output 'labels'"):
        reports.Upstream("market", {"panel": {}}, None)["labels"]


# ---- T2: resampling before the split ---------------------------------------------------------------------------------

def oversampled(samples, draw):
    """Every row of the rare classes three times, as a balancing step before the split would leave them."""
    rare = samples[samples["label"] != HOLD]
    return pd.concat([samples, rare, rare]).sample(frac=1, random_state=draw).sort_values("session", kind="stable", ignore_index=True)


def test_t2_samples_copied_before_the_split_are_refused():
    samples, folds = test_memory.SAMPLES, test_memory.OUTPUT.frames["folds"]
    copied = oversampled(samples, 1)

    def known(frame):
        parts = [pd.DataFrame({"fold": f.fold, "row": np.flatnonzero(frame["label_known_at"] <= f.cutoff), "weight": np.float32(1)}) for f in folds.itertuples()]
        return pd.concat(parts, ignore_index=True)

    splits.out_of_fold(samples, ["a"], known(samples), folds, shares, {})
    with pytest.raises(DataError, match="copied before the split are refused"):
        splits.out_of_fold(copied, ["a"], known(copied), folds, shares, {})
    doubled = known(samples)
    with pytest.raises(DataError, match="a training row is in the plan twice"):
        splits.out_of_fold(samples, ["a"], pd.concat([doubled, doubled.tail(1)]), folds, shares, {})
    labelled = pd.concat([test_memory.INPUTS["labels"]["labels"]] * 2)
    given = test_memory.INPUTS
    with pytest.raises(DataError, match="two samples"):
        memory.build_samples(given["features"]["features"], ["a", "b"], 60, labelled, given["regimes"]["market_regimes"], given["regimes"]["symbol_regimes"], given["market"]["sectors"])


def test_t2_no_splitter_puts_a_copy_on_both_sides_as_a_random_split_does():
    copied = oversampled(test_memory.SAMPLES, 2)
    keys = copied["session"].astype("int64") * 10 + pd.factorize(copied["symbol"])[0]
    events = pd.DataFrame({"event": ["e"], "start": ["2006-05-01"], "end": ["2006-06-30"]}).astype({"start": "datetime64[us]", "end": "datetime64[us]"})

    def shared(cv):
        return sum(len(np.intersect1d(keys[train], keys[test])) for train, test in cv.split(copied))

    assert shared(KFold(5, shuffle=True, random_state=0)) > 1000
    for cv in (splits.PurgedWalkForward(500, 250, expanding=True), splits.CombinatorialPurgedCV(6, 2), splits.LeaveOneEventOut(events)):
        assert shared(cv) == 0


# ---- T3: replay rows from where the model is judged ------------------------------------------------------------------

def test_t3_rows_of_the_test_window_cannot_be_replayed():
    samples, plan, folds = test_replay.SAMPLES, test_replay.PLAN, test_replay.FOLDS
    fold = folds.iloc[1]
    tested = samples.index[samples["session"].between(fold["test_start"], fold["test_end"])][:5]

    def from_the_test(cutoff, rows, earlier):
        return pd.concat([rows, rows.head(5).assign(row=tested)]) if cutoff == fold["cutoff"] else rows

    with pytest.raises(DataError, match="may change the column `weight` alone"):
        splits.out_of_fold(samples, ["a", "b"], plan, folds, shares, {}, reweight=from_the_test)
    planned = pd.concat([plan, pd.DataFrame({"fold": fold["fold"], "row": tested, "weight": np.float32(3), "uniqueness": np.float32(0.1)})])
    with pytest.raises(DataError, match=f"Fold {fold['fold']}: training row {tested[0]} "):
        splits.out_of_fold(samples, ["a", "b"], planned, folds, shares, {})
    held = replay.ErrorReplayBuffer(feature_set="v1", held_out=[(fold["test_start"], fold["test_end"])])
    with pytest.raises(DataError, match="held-out window"):
        held.add_batch_errors(test_replay.PREDICTIONS.known_at(samples, fold["test_end"]), samples, folds, fold["test_end"])


# ---- T4: a stack fitted in-sample ------------------------------------------------------------------------------------

def test_t4_a_stack_takes_no_in_sample_predictions(monkeypatch):
    samples, plan, folds = test_replay.SAMPLES, test_replay.PLAN, test_replay.FOLDS
    bases = {base: test_replay.PREDICTIONS for base in meta.BASES}
    learned = plan.loc[plan["fold"] == folds["fold"].iloc[-1], "row"].to_numpy()
    said = test_replay.overconfident(None, None, None, samples.loc[learned, ["a", "b"]])  # a model's answers for its own training rows
    inside = pd.DataFrame({"row": learned, "fold": int(folds["fold"].iloc[-1]), **dict(zip(PROBABILITIES, said.T, strict=True))})
    meta.MetaLearner().fit(bases, samples, test_replay.DAYS[-1])
    with pytest.raises(DataError, match="OutOfFold alone"):
        meta.MetaLearner().fit({base: inside for base in meta.BASES}, samples, test_replay.DAYS[-1])
    with pytest.raises(DataError, match=r"made by splits\.out_of_fold"):
        OutOfFold(inside, {})
    with pytest.raises(DataError, match="outside the test window"):
        splits.reopen(inside, {}, samples, plan, folds)
    with pytest.raises(DataError, match="at or before the cut-off"):
        splits.out_of_fold(samples, ["a", "b"], plan, folds.assign(test_start=folds["test_start"] - pd.Timedelta(days=400)), shares, {})
    honest = meta.stack_out_of_fold(bases, samples, folds, Settings().meta)
    assert len(honest.frame)

    def with_its_own_fold(joined, samples, folds, *args):
        return pd.concat([pd.DataFrame({"fold": fold, "row": joined["row"], "weight": np.float32(1)}) for fold in folds["fold"].iloc[-2:]])

    monkeypatch.setattr(meta, "stack_plan", with_its_own_fold)
    with pytest.raises(DataError, match="training row"):
        meta.stack_out_of_fold(bases, samples, folds, Settings().meta)


# ---- T6: something fitted on all data --------------------------------------------------------------------------------

def test_t6_a_model_is_given_the_features_as_they_were_computed(monkeypatch):
    """Between the features and a fit nothing is scaled or chosen: what a fold sees is, bit for bit, what the features' task wrote."""
    def seen():
        made, rows = memory.run(test_memory.INPUTS, test_memory.SETTINGS, test_memory.DAYS[-1]).frames, []

        def spy(X, y, plan, X_test):
            rows.append(pd.concat([X, X_test])["a"].to_numpy())
            return shares(X, y, plan, X_test)

        made_of = splits.out_of_fold(made["samples"], ["a"], made["plan"], made["folds"].tail(1), spy, {})
        train = made["plan"].loc[made["plan"]["fold"] == made["folds"]["fold"].iloc[-1], "row"].to_numpy()
        keys = made["samples"].loc[np.concatenate([train, made_of.frame["row"]]), KEYS]
        written = keys.merge(test_memory.INPUTS["features"]["features"], how="left", on=KEYS)["a"].to_numpy()
        return rows[0], written

    np.testing.assert_array_equal(*seen())
    honest = memory.build_samples

    def scaled(*args, **kwargs):
        samples = honest(*args, **kwargs)
        return samples.assign(a=((samples["a"] - samples["a"].mean()) / samples["a"].std()).astype("float32"))

    monkeypatch.setattr(memory, "build_samples", scaled)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(*seen())


def test_t6_the_baselines_scales_are_those_of_the_training_rows():
    """The logit baseline standardises; other tested rows, however extreme, change no prediction, and a scale of all rows would."""
    rng = np.random.default_rng(4)
    X, y, tested = rng.normal(size=(600, 2)), rng.integers(0, 3, 600), rng.normal(size=(40, 2))
    extreme = np.vstack([tested, np.full((400, 2), 50.0)])
    alone, crowd = meta.fit_predict_baseline(X, y, tested), meta.fit_predict_baseline(X, y, extreme)[:40]
    np.testing.assert_array_equal(alone, crowd)
    everything = np.vstack([X, extreme])
    leaky = meta.fit_predict_baseline((X - everything.mean(0)) / everything.std(0) * [1, 3], y, (tested - X.mean(0)) / X.std(0))
    assert np.abs(leaky - alone).max() > 1e-3  # the comparison would notice


# ---- T7: an accuracy below the majority's ----------------------------------------------------------------------------

def test_t7_an_accuracy_above_the_old_floor_and_below_the_majority_does_not_pass():
    """Four rows of five are `hold`: 70 % right passes the original's floor of 65 % and is worse than saying `hold` always."""
    rng, frame = np.random.default_rng(7), EVALUATIONS[1.0].copy()
    frame["label"] = rng.choice([SELL, HOLD, BUY], len(frame), p=[0.1, 0.8, 0.1])
    for name in ("prior", "logit"):
        frame[[f"{name}_{c}" for c in CLASSES]] = [0.1, 0.8, 0.1]
    wrong = rng.random(len(frame)) < 0.125  # hold is mistaken for buy
    frame[PROBA] = np.where((wrong & (frame["label"] == HOLD).to_numpy())[:, None], [0.05, 0.25, 0.70], [0.1, 0.8, 0.1])
    hit = (frame[PROBA].to_numpy().argmax(axis=1) == frame["label"]).mean()
    assert 0.65 < hit < 0.75 < (frame["label"] == HOLD).mean()
    assert verdict(promotion.not_worse_than_majority, evidence(evaluation=frame)).status == "failed"
    assert answer(evidence(evaluation=frame)) == "REJECT"
    assert answer(evidence()) == "PROMOTE"
    table = sectors.performance_table(frame, 6, {"horizon": 14, "n_boot": 200, "level": 0.05, "seed": 1})
    assert (table["accuracy"] < table["majority_accuracy"])[table["level"] == "sector"].all() and "better" not in set(table["verdict"])


# ---- T8: an empty regime ---------------------------------------------------------------------------------------------

def test_t8_a_regime_without_rows_is_no_pass_anywhere():
    """No row in `recovery`, and a few perfect ones in `crash`: neither is a pass."""
    frame = EVALUATIONS[1.0].copy()
    days = np.sort(frame["session"].unique())
    few = frame["session"].isin(days[-40:])
    frame["regime"] = np.where(few, "crash", "normal")
    frame.loc[few, PROBA] = 0.9 * np.eye(3)[frame.loc[few, "label"]] + 0.1 / 3
    for regime, n in (("recovery", 0), ("crash", 160)):
        found = verdict(promotion.parts, evidence(evaluation=frame), f"regime:{regime}")
        assert (found.status, found.n) == ("insufficient", n)
        asked = Settings(splits={"bootstrap": 200}, promotion={"required_regimes": [regime]})
        assert answer(evidence(evaluation=frame, settings=asked)) == "INSUFFICIENT"
    trades = pd.DataFrame({"signal_session": days[:1], "symbol": ["S0"], "return_pct": [1.0]})
    output = sectors.run({"meta": {"evaluation": frame}, "backtest": {"trades": trades}}, QUICK, days[-1])
    validator = sectors.SectorValidator(output.frames["table"])
    assert "recovery" in output.documents["summary"]["no_claim"]
    for regime, total in (("recovery", 0), ("crash", 80)):
        told = validator.get_sector_performance("sector 0", regime)
        assert (told["verdict"], told["total"]) == ("insufficient", total)
    assert set(output.frames["table"].loc[output.frames["table"]["regime"] == "crash", "verdict"]) == {"insufficient"}


# ---- T10: a fixed distance on dependent rows -------------------------------------------------------------------------

def test_t10_a_fixed_distance_cries_wolf_on_dependent_rows_and_the_detector_does_not(monkeypatch):
    """Series without drift, rows dependent in time and across symbols: a fixed cut of 0.15 alarms nearly always."""
    def alarms(detected):
        return sum(detected(test_drift.autoregressive(seed)) for seed in range(100, 115))

    def detector(frame):
        return bool(test_drift.compare(frame)[1]["detected"].any())

    assert alarms(detector) <= 2

    def no_null(cells, first, inside, *rest):
        found = honest(cells, first, inside, *rest)
        return np.zeros_like(found) if inside.all() else found

    honest = drift.window_distances  # of the reference's own windows, too: without those, a distance is taken at its face value
    monkeypatch.setattr(drift, "window_distances", no_null)
    assert alarms(detector) >= 13


# ---- T11: the symbol as a feature ------------------------------------------------------------------------------------

@pytest.mark.parametrize("tag", [
    lambda symbol: pd.util.hash_array(symbol.to_numpy(dtype=object)) % 1000 / 1000.0,
    lambda symbol: pd.factorize(symbol)[0],
    lambda symbol: np.where(symbol == "AAA", np.nan, 1.0),
], ids=["hash", "code", "missing for one"])
def test_t11_a_feature_that_names_the_symbol_is_refused(tag):
    samples, made = test_memory.SAMPLES, test_memory.OUTPUT.frames
    splits.out_of_fold(samples, ["a", "b"], made["plan"], made["folds"], shares, {})
    with pytest.raises(DataError, match="The feature `symbol_hash` never changes within a symbol and differs between symbols"):
        splits.out_of_fold(samples.assign(symbol_hash=np.asarray(tag(samples["symbol"]), dtype="float32")), ["a", "symbol_hash"], made["plan"], made["folds"], shares, {})


def by_pattern(X, y, rows, X_test):
    """A model of the pattern of missing values alone: class shares of the training rows with the same pattern, drawn to the shares of all."""
    def pattern(mask):
        bits = np.packbits(mask.to_numpy() > 0, axis=1).astype("u8")
        return pd.util.hash_array(bits @ (np.arange(1, 1 + bits.shape[1], dtype="u8") * np.uint64(2654435761)))

    seen, asked, prior = pattern(X), pattern(X_test), np.bincount(y, minlength=3) / len(y)
    table = pd.crosstab(seen, y).reindex(columns=range(3), fill_value=0) + 50 * prior
    found = table.div(table.sum(axis=1), axis=0).reindex(asked)
    return found.fillna(dict(enumerate(prior))).to_numpy()


@pytest.fixture(scope="module")
def bars():
    """The packaged panel."""
    packaged.sync(home() / "cache")
    return market.run({"cache": {"folder": home() / "cache"}}, Settings())


def test_t11_missing_values_do_not_name_the_symbol(bars):
    """Packaged panel: a model on the pattern of missing values alone is no better than the class shares, but would be if every feature were let in."""
    as_of, index = pd.Timestamp(bars.documents["summary"]["as_of"]), bars.frames["index"]
    panel = bars.frames["panel"]
    panel = panel[(panel["session"] >= "2005") & (panel["session"] <= as_of)].reset_index(drop=True)
    outcome = labels.triple_barrier(panel, Settings().labels)
    chosen = features.select(panel, index, Settings().features)[0]
    every = features.select(panel, index, Settings(features={"min_input_share": 1e-4}).features)[0]
    names = {"default": [f.name for f in chosen[::6]], "every": [f.name for f in every if f.name not in {g.name for g in chosen}][::5]}
    table = features.compute(panel, index, [f for f in every if f.name in names["default"] + names["every"]])
    table = table[table.groupby("symbol").cumcount() >= max(f.warm_up for f in chosen)]
    rows = table.merge(outcome[[*KEYS, "label", "label_known_at"]], on=KEYS)
    folds = splits.walk_forward(rows["session"], 2010, as_of)
    known = [np.flatnonzero((rows["label_known_at"] <= f.cutoff) & (rows["session"] > f.cutoff - pd.Timedelta(days=1826))) for f in folds.itertuples()]
    plan = pd.concat([pd.DataFrame({"fold": fold, "row": row, "weight": np.float32(1)}) for fold, row in zip(folds["fold"], known, strict=True)])

    def gain(columns):
        masks = rows[[*KEYS, "label", "label_known_at"]].join(rows[columns].isna().astype("f4"))
        losses = [splits.log_loss_rows(rows["label"].to_numpy()[made.frame["row"]], made.frame[list(PROBABILITIES)])
                  for made in (splits.out_of_fold(masks, columns, plan, folds, model, {}) for model in (shares, by_pattern))]
        tested = np.flatnonzero(rows["session"] >= folds["test_start"].min())
        return splits.session_interval(rows.iloc[tested][["session"]].assign(gain=losses[0] - losses[1]), "gain", 14, 300, 0.05, 1)

    assert gain(names["default"]).low <= 0 and gain(names["default"]).estimate < 0.001
    assert gain(names["default"] + names["every"]).low > 0


# ---- T12: today's members --------------------------------------------------------------------------------------------

def test_t12_a_symbol_takes_part_while_it_is_a_member(monkeypatch):
    """With the membership setting a row exists only within a spell; with today's members in place of the list, rows from before would be there."""
    sessions = pd.bdate_range("2010-01-01", "2014-12-31").as_unit("us")
    panel = pd.MultiIndex.from_product([sessions, ["NEW", "OLD", "STAY"]], names=KEYS).to_frame(index=False)
    spells = pd.DataFrame({"symbol": ["NEW", "OLD", "STAY"], "start": pd.to_datetime(["2013-01-01", "2000-01-01", "2000-01-01"]),
                           "end": pd.to_datetime([None, "2011-06-01", None])}).astype({"start": "datetime64[us]", "end": "datetime64[us]"})
    asked = Settings(universe={"members_of": "sp500"})

    def spans(members):
        kept, _ = market._membership(panel, members, asked)
        return {symbol: (part["session"].min().year, part["session"].max().year) for symbol, part in kept.groupby("symbol")}

    assert spans(spells) == {"NEW": (2013, 2014), "OLD": (2010, 2011), "STAY": (2010, 2014)}
    todays = spells[spells["end"].isna()].assign(start=pd.Timestamp("1990-01-01").as_unit("us"))
    assert spans(todays) == {"NEW": (2010, 2014), "STAY": (2010, 2014)}  # the trap: the failed one is gone, the riser was always there
    told = market.coverage(panel, spells)
    survivors_only = market.coverage(panel[panel["symbol"] != "OLD"], spells)
    assert (survivors_only["present"] < survivors_only["members"]).any() and not (told["present"] < told["members"]).any()  # and a panel of them is measured


def test_t12_the_note_on_survivorship_cannot_get_lost(bars):
    assert "all survived" in bars.documents["summary"]["survivorship"] and "Measured: of the" in bars.documents["summary"]["survivorship"]
    trades = pd.DataFrame({"signal_session": EVALUATIONS[1.0]["session"].head(1), "symbol": ["S0"], "return_pct": [1.0]})
    given = {"meta": {"evaluation": EVALUATIONS[1.0]}, "backtest": {"trades": trades}}
    for summary in ({"survivorship": ""}, {}):  # a market task that says nothing
        output = sectors.run({**given, "market": {"summary": summary}}, QUICK, EVALUATIONS[1.0]["session"].max())
        assert "those that failed are missing" in sectors.table(output).attrs["caption"]
        assert "those that failed are missing" in sectors.figure(output).get_supxlabel().replace("\n", " ")
    output = sectors.run({**given, "market": bars.documents}, QUICK, EVALUATIONS[1.0]["session"].max())
    assert "all survived" in sectors.table(output).attrs["caption"]


# ---- T13: the gate run again until it passes --------------------------------------------------------------------------

def test_t13_looking_again_and_again_does_not_buy_a_promotion(monkeypatch):
    """Twelve thousand worthless challengers in reigns of 24 looks: few reigns let one in; with a gate that counts no look, most do."""
    draw = np.random.default_rng(13).normal(size=(500, 24))

    def let_in():
        spent, limit = 0.0, []
        for look in range(1, 25):
            limit.append(promotion.allowed(evidence(look=look, spent=spent)))
            spent += limit[-1]
        return float((draw > norm.isf(limit)).any(axis=1).mean())

    assert let_in() <= 0.025 + 3 * np.sqrt(0.025 / 500)
    monkeypatch.setattr(promotion, "allowed", lambda proof: proof.settings.promotion.level / 2)
    assert let_in() > 0.4
    for count in ({"look": 0}, {"trials": 0}):
        with pytest.raises(DataError, match="at least 1: no decision"):
            evidence(**count)


# ---- T14: two label maps ---------------------------------------------------------------------------------------------

def test_t14_the_classes_are_written_down_once():
    """No module but core spells out a list of the three classes, in any order or case."""
    found = []
    for path in sorted((ROOT / "mltrader").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Tuple, ast.List, ast.Dict)):
                items = node.keys if isinstance(node, ast.Dict) else node.elts
                words = [str(item.value).lower() for item in items if isinstance(item, ast.Constant)]
                if sorted(words) == sorted(CLASSES):
                    found.append((path.stem, tuple(words)))
    assert found == [("core", CLASSES)] and (SELL, HOLD, BUY) == (0, 1, 2)


def test_t14_a_two_class_model_is_refused():
    samples, made = test_replay.SAMPLES, (test_replay.PLAN, test_replay.FOLDS)
    with pytest.raises(DataError, match=r"predictions have shape \(\d+, 2\)"):
        splits.out_of_fold(samples, ["a", "b"], *made, lambda X, y, rows, Z: np.full((len(Z), 2), 0.5), {})
    with pytest.raises(DataError, match=r"labels need \(3, 3\)"):
        splits.log_loss_rows([0, 1, 1], np.full((3, 2), 0.5))
    for wrong in ([0, 1, 3], [-1, 0, 1], ["sell", "hold", "buy"]):
        X = pd.DataFrame({"x": np.arange(3.0)})
        with pytest.raises((DataError, ValueError), match=r"0,? 1,? (or|and|,)?\s?2|label"):
            RandomForestModel().fit(X, np.array(wrong))


def test_t14_a_model_that_learned_another_coding_does_not_pass(monkeypatch):
    """Trained with buy = 0 and sell = 2, judged with sell = 0 and buy = 2: worse than the prior, by the gate and by sector."""
    frame = EVALUATIONS[1.0].copy()
    frame[PROBA] = frame[PROBA].to_numpy()[:, ::-1]
    assert answer(evidence(evaluation=frame)) == "REJECT" and answer(evidence()) == "PROMOTE"
    table = sectors.performance_table(frame, 6, {"horizon": 14, "n_boot": 200, "level": 0.05, "seed": 1})
    assert set(table.loc[table["level"] == "sector", "verdict"]) == {"worse"}
    X, y, rows = pd.DataFrame({"x": [1.0, 2.0]}), np.array([0, 1]), pd.DataFrame({"weight": [1.0, 1.0]})
    keys = [splits.fold_key(splits.recipe(Settings(), "v1"), "2020-01-02", X, y, rows, X)]
    monkeypatch.setattr(splits, "CLASSES", CLASSES[::-1])
    keys.append(splits.fold_key(splits.recipe(Settings(), "v1"), "2020-01-02", X, y, rows, X))
    assert keys[0] != keys[1]  # and its predictions are not found in the cache under another's name
