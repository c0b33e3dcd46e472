"""Sectors: counts add up, too little is never good, and forty useless cells do not make two good ones."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mltrader import packaged, sectors
from mltrader import store as db
from mltrader.config import Settings
from mltrader.core import CLASSES, REGIMES, Clock, DataError
from mltrader.splits import block_starts, walk_forward
from mltrader.store import Store

ASK = {"horizon": 5, "n_boot": 300, "level": 0.05, "seed": 3}
PRIOR = np.array([0.3, 0.45, 0.25])


def make(skill: dict[str, float], sessions: int = 400, symbols: int = 2, seed: int = 0) -> pd.DataFrame:
    """Predictions that lean towards the truth by `skill` in each sector."""
    rng, days = np.random.default_rng(seed), pd.bdate_range("2015-01-01", periods=sessions).as_unit("us")
    names = [f"{sector}{i}" for sector in skill for i in range(symbols)]
    frame = pd.MultiIndex.from_product([days, names], names=["session", "symbol"]).to_frame(index=False)
    frame["sector"] = frame["symbol"].str[:-1]
    frame["regime"] = rng.choice(REGIMES[:3], len(frame))
    frame["label"] = rng.choice(3, len(frame), p=PRIOR).astype("int8")
    lean = frame["sector"].map(skill).to_numpy(dtype=float)[:, None] * np.eye(3)[frame["label"]]
    noise = rng.normal(0, 0.02, (len(frame), 3))
    proba = PRIOR + lean - lean.mean(axis=1, keepdims=True) + noise - noise.mean(axis=1, keepdims=True)
    for j, name in enumerate(CLASSES):
        frame[f"proba_{name}"], frame[f"prior_{name}"] = proba[:, j], PRIOR[j]
    return frame


FRAME = make({"A": 0.15, "B": 0.0, "C": -0.15})
TABLE = sectors.performance_table(FRAME, 6, ASK)
QUICK = Settings(splits={"bootstrap": 200})


def make_trades(frame: pd.DataFrame = FRAME, seed: int = 1) -> pd.DataFrame:
    taken = frame.sample(frac=0.3, random_state=seed)[["session", "symbol"]].rename(columns={"session": "signal_session"})
    return taken.assign(return_pct=np.random.default_rng(seed).normal(0.2, 5, len(taken)))


INPUTS = {"meta": {"evaluation": FRAME}, "backtest": {"trades": make_trades()}}


def test_counts_and_losses_add_up():
    for level in sectors.LEVELS:
        cells = TABLE[TABLE["level"] == level]
        assert cells["n_rows"].sum() == len(FRAME)
        assert np.average(cells["gain"], weights=cells["n_rows"]) == pytest.approx((TABLE["gain"] * TABLE["n_rows"])[
            TABLE["level"] == "sector"].sum() / len(FRAME))
    inside = FRAME[FRAME["sector"] == "A"]
    cell = TABLE[(TABLE["level"] == "sector") & (TABLE["sector"] == "A")].iloc[0]
    assert cell["log_loss"] == pytest.approx(log_loss(inside["label"], inside[[f"proba_{c}" for c in CLASSES]]), abs=1e-9)
    assert cell["gain"] == pytest.approx(cell["prior_log_loss"] - cell["log_loss"])
    assert cell["majority_accuracy"] == pytest.approx((inside["label"] == 1).mean())


def test_skill_harm_and_nothing_are_told_apart():
    cells = TABLE[TABLE["level"] == "sector"].set_index("sector")["verdict"].to_dict()
    assert cells == {"A": "better", "B": cells["B"], "C": "worse"} and cells["B"] != "better"


@pytest.mark.parametrize("sessions", [20, 59])
def test_insufficient_is_never_better(sessions):
    table = sectors.performance_table(make({"A": 0.25}, sessions), 6, ASK)
    assert (table["gain"] > 0).all() and set(table["verdict"]) == {"insufficient"}


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 200), st.integers(2, 12), st.floats(-0.2, 0.2))
def test_a_verdict_follows_from_interval_and_blocks(sessions, min_blocks, skill):
    table = sectors.performance_table(make({"A": skill, "B": 0.0}, sessions), min_blocks, ASK)
    few = table["n_blocks"] < min_blocks
    assert (table.loc[few, "verdict"] == "insufficient").all()
    rest = table[~few]
    assert ((rest["verdict"] == "better") == (rest["low"] > 0)).all()
    assert ((rest["verdict"] == "worse") == (rest["high"] < 0)).all()
    assert (rest["low"] <= rest["high"]).all()


def test_a_regime_without_rows_is_not_there():
    assert set(TABLE["regime"]) == {*REGIMES[:3], "all"}
    output = sectors.run(INPUTS, QUICK, FRAME["session"].max())
    assert output.documents["summary"]["no_claim"] == ["crash", "recovery"]
    assert not any(row["regime"] in ("crash", "recovery") for row in output.rows["sector_performance"])
    empty = sectors.SectorValidator(output.frames["table"]).get_sector_performance("A", "crash")
    assert (empty["total"], empty["correct"], empty["verdict"]) == (0, 0, "insufficient") and np.isnan(empty["accuracy"])


def test_an_unknown_sector_is_a_group_of_its_own():
    frame = FRAME.copy()
    frame.loc[frame["sector"] == "B", "sector"] = None
    cells = sectors.performance_table(frame, 6, ASK)
    assert cells.loc[cells["level"] == "sector", "sector"].tolist() == ["A", "C", "Unknown"]
    assert cells.loc[cells["level"] == "sector", "n_rows"].sum() == len(frame)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_is_holm(p, level):
    p = np.array(p)
    rejected, order = set(), np.argsort(p, kind="stable")
    for step, i in enumerate(order):                                     # the textbook's step-down
        if p[i] > level / (len(p) - step):
            break
        rejected.add(int(i))
    assert set(np.flatnonzero(p <= sectors.holm_levels(p, level)).tolist()) == rejected


def test_interval_and_verdict_are_the_same_statement():
    rng = np.random.default_rng(0)
    gain, half = rng.normal(0, 0.1, 60), rng.uniform(0.02, 0.2, 60)
    low, high = sectors.adjusted_intervals(gain, gain - half, gain + half, np.full(60, 10**6), 0.05)
    p = 2 * norm.sf(np.abs(gain) / half * norm.ppf(0.975))
    rejected = p <= sectors.holm_levels(p, 0.05)
    assert (((low > 0) | (high < 0)) == rejected).all() and 0 < rejected.sum() < 60
    assert (low <= gain - half + 1e-9).all() and (high >= gain + half - 1e-9).all()             # never narrower


def test_forty_useless_cells_are_not_two_good_ones():
    good = 0
    for seed in range(20):
        frame = make({chr(65 + k): 0.0 for k in range(12)}, sessions=150, symbols=1, seed=seed)
        frame[[f"proba_{c}" for c in CLASSES]] = PRIOR
        tilt = 0.05 * np.random.default_rng(seed).choice([-1, 1], len(frame))
        frame["proba_sell"], frame["proba_buy"] = PRIOR[0] + tilt, PRIOR[2] - tilt
        cells = sectors.performance_table(frame, 6, ASK)
        good += (cells.loc[cells["level"] == "sector", "verdict"] == "better").any()
    assert good <= 3, f"{good} of 20 worlds without skill had a 'better' sector"


def test_rows_are_plain_and_unique():
    notes = {"summary": {"survivorship": "Chosen with hindsight."}}
    output = sectors.run(INPUTS | {"market": notes}, QUICK, FRAME["session"].max())
    rows = pd.DataFrame(output.rows["sector_performance"])
    assert not rows.duplicated(["sector", "regime", "symbol"]).any() and len(rows) == len(output.frames["table"])
    assert not any(isinstance(v, np.generic) for row in output.rows["sector_performance"] for v in row.values())
    assert "hindsight" in sectors.table(output).attrs["caption"] and "hindsight" in sectors.figure(output).get_supxlabel()
    assert sectors.contributions_figure(output).axes and len(sectors.concentration_table(output))


def test_a_sector_beyond_the_eleven_is_kept_and_reported():
    output = sectors.run(INPUTS, QUICK, FRAME["session"].max())
    assert output.documents["summary"]["outside_gics"] == ["A", "B", "C"]
    assert "Not among the eleven GICS sectors: A, B, C." in sectors.table(output).attrs["caption"]
    renamed = FRAME.assign(sector=FRAME["sector"].map({"A": "Energy", "B": "Utilities", "C": None}))
    clean = sectors.run(INPUTS | {"meta": {"evaluation": renamed}}, QUICK, FRAME["session"].max())
    assert clean.documents["summary"]["outside_gics"] == [] and "GICS" not in sectors.table(clean).attrs["caption"]
    assert set(packaged.SECTORS.values()) <= set(sectors.GICS)


def test_one_symbol_has_one_sector():
    with pytest.raises(DataError, match="A0 is in the sectors"):
        sectors.performance_table(FRAME.assign(sector=FRAME["sector"].where(FRAME.index > 0, "B")), 6, ASK)


def store_with(tmp_path, rows):
    store = Store(f"sqlite:///{tmp_path}/t.db")
    with store.write() as conn:
        token = db.take_lease(conn, "test", 60, Clock())
        db.start_run(conn, "first", "cycle", "manual", token, {}, "", Clock())
        db.write_rows(conn, "first", {"sector_performance": rows})
    return store


def test_the_validator_answers_from_the_store_what_it_answers_from_the_table(tmp_path):
    output = sectors.run(INPUTS, QUICK, FRAME["session"].max())
    direct, stored = sectors.SectorValidator(output.frames["table"]), sectors.SectorValidator(store=store_with(tmp_path, output.rows["sector_performance"]))
    pd.testing.assert_series_equal(stored.table.groupby("level").size(), output.frames["table"].groupby("level").size())
    for symbol in ("A0", "C1"):
        assert str(stored.get_symbol_performance(symbol)) == str(direct.get_symbol_performance(symbol))
    for sector, regime in (("A", None), ("B", "normal"), ("C", "crash")):
        assert str(stored.get_sector_performance(sector, regime)) == str(direct.get_sector_performance(sector, regime))
    assert stored.get_weakest_sectors()["sector"].tolist() == direct.get_weakest_sectors()["sector"].tolist()
    assert stored.get_best_symbols(2)["symbol"].tolist() == direct.get_best_symbols(2)["symbol"].tolist()
    with stored._store.write() as conn:  # the last run's rows count, and no mixture
        db.start_run(conn, "second", "cycle", "manual", 1, {}, "", Clock())
        db.write_rows(conn, "second", {"sector_performance": [row for row in output.rows["sector_performance"] if row["sector"] != "B"]})
    with pytest.raises(DataError, match="'B' is not in the table"):
        sectors.SectorValidator(store=stored._store).get_sector_performance("B")


def test_an_empty_store_is_an_error_and_the_validators_store_is_opened_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_DATABASE_URL", f"sqlite:///{tmp_path}/own.db")
    validator = sectors.SectorValidator()
    assert not (tmp_path / "own.db").exists()
    with pytest.raises(DataError, match="No run has written sector_performance"):
        validator.get_weakest_sectors()
    assert (tmp_path / "own.db").exists()


def test_answers_count_what_a_slow_reading_counts():
    validator = sectors.SectorValidator(TABLE)
    gains = sectors.row_gains(FRAME)
    for sector in "ABC":
        answer = validator.get_sector_performance(sector)
        inside = gains[gains["sector"] == sector]
        assert (answer["total"], answer["correct"]) == (len(inside), int(inside["hit"].sum()))
        assert answer["confidence"] == pytest.approx(inside["confidence"].mean())
        assert sum(cell["total"] for cell in answer["by_regime"].values()) == answer["total"]
    best = validator.get_symbol_performance("A1")
    judged = {name: cell["low"] for name, cell in best["by_regime"].items() if cell["verdict"] != "insufficient"}
    assert best["best_regime"] == max(judged, key=judged.get) and best["sector"] == "A"
    assert validator.get_symbol_performance("nobody")["total"] == 0 and validator.get_sector("nobody") == "Unknown"
    few = sectors.SectorValidator(sectors.performance_table(make({"A": 0.2}, 59), 6, ASK))
    assert few.get_symbol_performance("A0")["best_regime"] is None and few.get_weakest_sectors().empty


def make_samples(seed: int = 0, sessions: int = 900) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Three sectors; the feature means the opposite in C. With folds and the plan of all known rows."""
    rng, days = np.random.default_rng(seed), pd.bdate_range("2012-01-02", periods=sessions + 6).as_unit("us")
    frame = pd.MultiIndex.from_product([days[:-6], ["A0", "A1", "B0", "B1", "C0", "C1"]], names=["session", "symbol"]).to_frame(index=False)
    frame["sector"], frame["x"] = frame["symbol"].str[0], rng.normal(size=len(frame)).astype("f4")
    turned = np.where(frame["sector"] == "C", -1, 1)
    frame["x_in_c"] = (frame["x"] * (frame["sector"] == "C")).astype("f4")
    frame["label"] = np.digitize(turned * frame["x"] + rng.normal(0, 2, len(frame)), [-1, 1]).astype("int8")
    frame["label_known_at"] = days[np.searchsorted(days, frame["session"]) + 6]
    folds = walk_forward(days, 2013, days[-1])
    known = [pd.DataFrame({"fold": f.fold, "row": np.flatnonzero(frame["label_known_at"] <= f.cutoff), "weight": np.float32(1)}) for f in folds.itertuples()]
    return frame, pd.concat(known, ignore_index=True), folds


def logit(X, y, rows, X_test):
    return LogisticRegression().fit(X, y).predict_proba(X_test)


def test_leaving_a_sector_out_equals_a_slow_reading():
    samples, plan, folds = make_samples(sessions=500)
    table = sectors.leave_one_sector_out(samples, ["x", "x_in_c"], plan, folds, logit, {}, 2, ASK).set_index("sector")
    for name in "ABC":
        with_it, without, prior = [], [], []
        for fold in folds.itertuples():
            train = plan.loc[plan["fold"] == fold.fold, "row"].to_numpy()
            test = samples[(samples["session"] >= fold.test_start) & (samples["session"] <= fold.test_end) & (samples["sector"] == name)]
            y, others = samples["label"].to_numpy()[test.index], train[samples["sector"].to_numpy()[train] != name]
            for rows, losses in ((train, with_it), (others, without)):
                proba = logit(samples.loc[rows, ["x", "x_in_c"]], samples.loc[rows, "label"], None, test[["x", "x_in_c"]])
                losses.append(-np.log(proba[np.arange(len(y)), y]))
            prior.append(-np.log((np.bincount(samples.loc[train, "label"], minlength=3) / len(train))[y]))
        seen, unseen, base = (np.concatenate(part).mean() for part in (with_it, without, prior))
        expected = {"gain": base - seen, "transfer": base - unseen, "lost": unseen - seen}
        assert {key: table.at[name, key] for key in expected} == pytest.approx(expected, abs=1e-6)  # probabilities are float32
    assert table["train_share"].sum() == pytest.approx(1)


def test_what_carries_over_and_what_does_not_is_told_apart():
    samples, plan, folds = make_samples()
    table = sectors.leave_one_sector_out(samples, ["x", "x_in_c"], plan, folds, logit, {}, 6, ASK).set_index("sector")
    assert table["transfer_verdict"].to_dict() == {"A": "carries over", "B": "carries over", "C": "misleads"}
    assert table["lost_verdict"]["C"] == "own rows help" and "own rows help" not in set(table["lost_verdict"][["A", "B"]])
    few = sectors.leave_one_sector_out(samples, ["x", "x_in_c"], plan, folds, logit, {}, 10**3, ASK)
    assert set(few["transfer_verdict"]) == set(few["lost_verdict"]) == {"insufficient"}


def test_the_left_out_sector_is_in_no_training_set():
    """Each model sees a marker of its training rows: the fits without a sector have none of its rows, and all of the others'."""
    samples, plan, folds = make_samples(sessions=500)
    samples["mark"] = (samples["sector"].map({"A": 0, "B": 1, "C": 2}) + 1e-3 * samples["x"]).astype("f4")  # alone it would be refused as a name tag
    seen = []

    def spy(X, y, rows, X_test):
        seen.append(frozenset(X["mark"].round()))
        return np.full((len(X_test), 3), 1 / 3)

    sectors.leave_one_sector_out(samples, ["mark"], plan, folds, spy, {}, 2, ASK)
    assert {marks: seen.count(marks) for marks in set(seen)} == {frozenset(s): len(folds) for s in ((0, 1, 2), (1, 2), (0, 2), (0, 1))}


def test_leaving_a_sector_out_refuses_what_it_cannot_judge():
    samples, plan, folds = make_samples(sessions=500)
    with pytest.raises(DataError, match="All samples are in the sector"):
        sectors.leave_one_sector_out(samples.assign(sector="A"), ["x"], plan, folds, logit, {}, 2, ASK)
    with pytest.raises(DataError, match="No fold can be fitted"):
        sectors.leave_one_sector_out(samples, ["x"], plan, folds, logit, {}, 2, ASK, min_train_rows=10**6)
    leak = pd.concat([plan, pd.DataFrame({"fold": [2013], "row": [len(samples) - 1], "weight": [np.float32(1)]})])
    with pytest.raises(DataError, match="training row"):
        sectors.leave_one_sector_out(samples, ["x"], leak, folds, logit, {}, 2, ASK)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 7), st.floats(-20, 20)), min_size=1, max_size=200))
def test_concentration_equals_a_slow_count(deals):
    trades = pd.DataFrame(deals, columns=["day", "k", "return_pct"])
    trades = trades.assign(signal_session=pd.bdate_range("2020-01-01", periods=41)[trades["day"]], symbol="S" + trades["k"].astype(str))
    sectors_of = {f"S{k}": "Energy" if k < 3 else "Utilities" for k in range(7)}  # S7 has none
    facts = sectors.concentration(trades, sectors_of, {"horizon": 2, "n_boot": 50, "level": 0.1, "seed": 0})
    profit = {s: sum(r for _, k, r in deals if f"S{k}" == s) / 100 for s in {f"S{k}" for _, k, _ in deals}}
    gains = {s: max(p, 0) for s, p in profit.items()}
    total = sum(gains.values())
    assert facts["profit"] == pytest.approx(sum(profit.values())) and facts["names"] == len(profit)
    assert facts["without_top"] == pytest.approx(sum(sorted(profit.values())[:-3]))
    assert facts["equal_share"] == min(3 / len(profit), 1) and facts["losers"] == sum(p < 0 for p in profit.values())
    if not total > 0:
        assert np.isnan(facts["top_share"]) and np.isnan(facts["effective_names"]) and np.isnan(facts["top_sector_share"])
        return
    assert facts["top_share"] == pytest.approx(sum(sorted(gains.values())[-3:]) / total)
    if total < 1e-9:  # the squares of smaller gains are 0
        return
    assert facts["effective_names"] == pytest.approx(total**2 / sum(g**2 for g in gains.values()))
    assert 1 - 1e-9 <= facts["effective_names"] <= len(profit) + 1e-9
    of = {name: sum(g for s, g in gains.items() if sectors_of.get(s, "Unknown") == name) / total for name in ("Energy", "Utilities", "Unknown")}
    assert facts["top_sector_share"] == pytest.approx(max(of.values())) and facts["top_sector_share"] == pytest.approx(of[facts["top_sector"]])
    assert np.isnan(facts["low"]) or 0 <= facts["low"] <= facts["high"] <= 1 + 1e-9


def test_the_interval_of_concentration_equals_a_slow_bootstrap():
    trades, ask = make_trades(), {"horizon": 5, "n_boot": 100, "level": 0.1, "seed": 4}
    facts = sectors.concentration(trades, {}, ask)
    by_day = [group.groupby("symbol")["return_pct"].sum() for _, group in trades.groupby("signal_session")]
    shares = []
    for starts in block_starts(len(by_day), 10, 100, 4):
        drawn = pd.concat([by_day[(s + i) % len(by_day)] for s in starts for i in range(10)]).groupby(level=0).sum().clip(lower=0)
        shares.append(drawn.nlargest(3).sum() / drawn.sum())
    assert (facts["low"], facts["high"]) == pytest.approx(tuple(np.quantile(shares, [0.05, 0.95])))


def test_a_backtest_without_trades_has_no_profit_to_share():
    output = sectors.run(INPUTS | {"backtest": {"trades": make_trades().head(0)}}, QUICK, FRAME["session"].max())
    assert output.documents["summary"]["concentration"] == {} and output.frames["contributions"].empty
    assert "No trade" in sectors.contributions_figure(output).axes[0].get_title("left") and sectors.concentration_table(output).empty


def test_order_of_rows_does_not_count_and_inputs_stay():
    before, mixed = FRAME.copy(), FRAME.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(sectors.performance_table(mixed, 6, ASK), TABLE)
    pd.testing.assert_frame_equal(FRAME, before)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="after 2015-02-02"):
        sectors.run(INPUTS, Settings(), pd.Timestamp("2015-02-02"))
    with pytest.raises(DataError, match="is empty"):
        sectors.run(INPUTS | {"meta": {"evaluation": FRAME.iloc[:0]}}, Settings(), pd.Timestamp("2020-01-01"))
    with pytest.raises(DataError, match="prior_hold"):
        sectors.performance_table(FRAME.drop(columns="prior_hold"), 6, ASK)
