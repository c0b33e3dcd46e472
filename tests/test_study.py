"""The study of the loop's errors: its markets are what they say, its cycle decides as the real one does, and a small version of it."""
import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import false_promotion as study
import loop
import worlds
from loop import Known, Loop, merged

from mltrader import promotion, registry
from mltrader import store as db
from mltrader.config import Settings
from mltrader.core import to_session
from mltrader.orchestrator import run_inline
from mltrader.store import Store

SEEDS, CYCLES = 20, 12
TINY = {"labels": {"horizon": 5, "take_profit": 0.05, "stop_loss": 0.03}, "splits": {"first_test_year": 2002}, "meta": {"min_folds": 1},
        "forest": {"n_estimators": 6, "min_samples_leaf": 60}, "boosting": {"rounds": 6}, "backtest": {"variant_shares": (0.3, 0.5)}}
NAMES, FIRST = 4, 782


def spec(kind: str, seed: int, **more) -> worlds.Spec:
    return worlds.Spec(kind, seed, **{"symbols": NAMES, "sessions": FIRST + loop.STEP * CYCLES, "horizon": 5, **more})


# --- the markets -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [kind for kind in worlds.KINDS if kind != "bootstrap"])
def test_a_world_is_a_function_of_its_spec(kind):
    one, again, other, longer = (worlds.draw(spec(kind, seed, sessions=300, path=path)) for seed, path in ((1, 0), (1, 0), (2, 0), (1, 1)))
    assert one.panel.equals(again.panel) and one.index.equals(again.index)
    assert not np.allclose(one.returns, other.returns) and not np.allclose(one.returns, longer.returns)
