"""The study of the loop's errors: its markets are what they say, its cycle decides as the real one does, and a small version of it."""
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import loop
import worlds
from loop import Loop, merged

from mltrader import reports
from mltrader import store as db
from mltrader.config import Settings
from mltrader.orchestrator import run_inline
from mltrader.store import Store

TINY = {"features": {"names": ("volatility_5", "volatility_20", "vix_level")}, "splits": {"first_test_year": 2002}, "forest": {"n_estimators": 5}, "boosting": {"rounds": 8}, "backtest": {"variant_shares": (0.3, 0.5)}}
NAMES, FIRST = 8, 782


def spec(kind: str, seed: int, cycles: int, **more) -> worlds.Spec:
    return worlds.Spec(kind, seed, **{"symbols": NAMES, "sessions": FIRST + loop.STEP * cycles, "horizon": 5, **more})


# --- the cycle decides as the real one does --------------------------------------------------------------------------

def files_of(world: worlds.World, folder) -> dict[str, dict]:
    """The market as a user's files, and the settings that name them."""
    bars = world.panel[["symbol", "session", "open", "high", "low", "close", "adj_close", "volume"]].rename(columns={"session": "date"})
    index = world.index.rename(columns={"session": "date"})
    for name, frame in (("bars.parquet", bars), ("index.csv", index[["date", "index_close"]].rename(columns={"index_close": "close"})),
                        ("vix.csv", index[["date", *(f"vix_{part}" for part in ("open", "high", "low", "close"))]].rename(columns=lambda one: one.removeprefix("vix_"))), ("sectors.csv", world.sectors)):
        frame.to_parquet(folder / name) if name.endswith("parquet") else frame.to_csv(folder / name, index=False)
    return {"market": {"provider": "parquet", "path": str(folder / "bars.parquet"), "index_path": str(folder / "index.csv"), "vix_path": str(folder / "vix.csv"), "sectors_path": str(folder / "sectors.csv")}}


def test_its_cycle_decides_as_the_real_one(tmp_path, monkeypatch):
    """The same three months through every task, product and record of the package, and through the study's short cut."""
    world = worlds.draw(spec("garch", 3, 4))
    easy = {"promotion": {"margin": 0.1, "regime_margin": 0.2, "max_calibration_error": 0.2}}
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path / "home"))
    (tmp_path / "short").mkdir()
    short = Loop(world, tmp_path / "short", merged(TINY, easy))
    files, kinds = files_of(world, tmp_path), []
    for found in short.walk(FIRST, 3):
        settings = Settings(**merged(short.base, found["recipe"], files, {"run": {"as_of": found["as_of"].date(), "reports": str(tmp_path / "reports")}}))
        made = run_inline(settings=settings)
        decision = reports.load_product(made["run_id"], "promotion", Store())["decision"]
        with Store().read() as conn:
            gate = db.gate_row(conn, made["run_id"])
        ours = {"verdict": found["verdict"], "kind": found["kind"], "look": found["look"], "alpha": found["alpha"], "trials": found["trials"], "model_version": found["evidence"].candidate["model_version"]}
        assert {name: decision[name] for name in ours} == ours
        assert decision["tradable"]["verdict"] == found["tradable"] and decision["tradable"]["edge_ann"] == pytest.approx(found["edge"], abs=1e-9)
        rules = {one.rule: (one.status, one.observed, one.low) for one in found["verdicts"] if not one.rule.startswith("attribution")}
        theirs = {one["rule"]: (one["status"], *(np.nan if one[name] is None else one[name] for name in ("observed", "low"))) for one in gate["rules"] if not one["rule"].startswith("attribution")}
        assert {rule: status for rule, (status, *_) in theirs.items()} == {rule: status for rule, (status, *_) in rules.items()}
        for rule, (_, *numbers) in rules.items():
            np.testing.assert_allclose(theirs[rule][1:], numbers, atol=1e-9, err_msg=rule)
        kinds.append(found["kind"])
    assert kinds == ["first", "refresh", "new_recipe"]
