"""Sectors: counts add up, too little is never good, and forty useless cells do not make two good ones."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import log_loss

from mltrader import sectors
from mltrader.config import Settings
from mltrader.core import CLASSES, REGIMES, DataError

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
    output = sectors.run({"meta": {"evaluation": FRAME}}, Settings(splits={"bootstrap": 200}), FRAME["session"].max())
    assert output.documents["summary"]["no_claim"] == ["crash", "recovery"]
    assert not any(row["regime"] in ("crash", "recovery") for row in output.rows["sector_performance"])
    assert len(sectors.SectorValidator(output.frames["table"]).get_sector_performance("A", "crash")) == 0


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


def test_rows_are_plain_unique_and_without_symbols():
    output = sectors.run({"meta": {"evaluation": FRAME}, "market": {"summary": {"survivorship": "Chosen with hindsight."}}},
                         Settings(splits={"bootstrap": 200}), FRAME["session"].max())
    rows = pd.DataFrame(output.rows["sector_performance"])
    assert not rows.duplicated(["sector", "regime"]).any() and "symbol" not in rows
    assert not any(isinstance(v, np.generic) for row in output.rows["sector_performance"] for v in row.values())
    assert sectors.table(output).attrs["caption"] == "Chosen with hindsight."
    assert "hindsight" in sectors.figure(output).get_supxlabel()


def test_order_of_rows_does_not_count_and_inputs_stay():
    before, mixed = FRAME.copy(), FRAME.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(sectors.performance_table(mixed, 6, ASK), TABLE)
    pd.testing.assert_frame_equal(FRAME, before)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="after 2015-02-02"):
        sectors.run({"meta": {"evaluation": FRAME}}, Settings(), pd.Timestamp("2015-02-02"))
    with pytest.raises(DataError, match="is empty"):
        sectors.run({"meta": {"evaluation": FRAME.iloc[:0]}}, Settings(), pd.Timestamp("2020-01-01"))
    with pytest.raises(DataError, match="prior_hold"):
        sectors.performance_table(FRAME.drop(columns="prior_hold"), 6, ASK)
