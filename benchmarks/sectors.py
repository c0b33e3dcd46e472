"""Does knowledge carry over to a sector that the model never saw? Each sector left out in turn, on the packaged panel.

    python benchmarks/sectors.py            # boosting, lighter than the default recipe, every yearly fold: about seven minutes of one core
    python benchmarks/sectors.py --quick    # fewer rounds, folds from 2015 on: a minute and a half of one core
    python benchmarks/sectors.py --json

Every fold of the walk-forward is fitted once on all its rows and once without each sector; both are judged on that sector's rows of the test
year. `transfer` is the gain over the class shares of the model that never saw the sector, `lost` how much better the model was that had it; in
nats, with 95 % intervals from blocks of whole sessions, Holm's over the sectors (`sectors.leave_one_sector_out`). There is no bar: a study.
"""
import argparse
import json
import platform
import time
from typing import Any

import numpy as np
import pandas as pd
import xgboost
from packaged import inputs_of

from mltrader import sectors
from mltrader.boosting import XGBoostModel, component_recipe
from mltrader.checks import sample_features
from mltrader.config import Settings
from mltrader.core import seed_for

LIGHT = {"boosting": {"rounds": 40, "learning_rate": 0.12}}
QUICK = {"boosting": {"rounds": 15, "learning_rate": 0.25}, "splits": {"first_test_year": 2015}}


def study(settings: Settings, made: dict[str, Any]) -> pd.DataFrame:
    """The table of `leave_one_sector_out` for boosting."""

    def fit_predict(X: pd.DataFrame, y: np.ndarray, rows: pd.DataFrame, X_test: pd.DataFrame) -> np.ndarray:
        return XGBoostModel(settings.boosting, seed, 1).fit(X, y, rows["weight"]).predict_proba(X_test)

    recipe = component_recipe(settings)
    seed = recipe["seed"]
    ask = {"horizon": settings.labels.horizon, "n_boot": settings.splits.bootstrap, "level": settings.promotion.level, "seed": seed_for("sectors", settings.run.seed)}
    return sectors.leave_one_sector_out(made["samples"], sample_features(made["samples"]), made["plan"], made["folds"], fit_predict, recipe,
                                        settings.promotion.min_blocks, ask, min_train_rows=settings.splits.min_train_rows)


def interval(row: pd.Series, name: str) -> str:
    return f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings, began, cpu = Settings.model_validate(QUICK if options.quick else LIGHT), time.perf_counter(), time.process_time()
    made = inputs_of(settings)[0]["memory"]
    table = study(settings, made)
    cost = {"wall_s": round(time.perf_counter() - began, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    if options.json:
        print(json.dumps({"rows": table.to_dict("records"), "quick": options.quick, "python": platform.python_version(), "xgboost": xgboost.__version__, **cost}, indent=1))
        return
    years = made["folds"]["fold"]
    print(f"Python {platform.python_version()}, xgboost {xgboost.__version__}. Out of sample {years.min()} to {years.max()}, {settings.boosting.rounds} rounds. "
          "Survivors only: the packaged panel holds today's large companies.")
    print(f"{'sector':23} {'symbols':>7} {'rows':>7} {'blocks':>6} {'left out':>8} {'gain':>6}  {'transfer, 95 % (Holm)':26} {'':14} {'lost, 95 % (Holm)':26}")
    for _, r in table.iterrows():
        print(f"{r['sector']:23} {r['n_symbols']:7} {r['n_rows']:7,} {r['n_blocks']:6} {r['train_share']:8.1%} {r['gain']:+6.3f}  {interval(r, 'transfer'):26} "
              f"{r['transfer_verdict']:14} {interval(r, 'lost'):26} {r['lost_verdict']}")
    kept = np.average(table["transfer"], weights=table["n_rows"]) / np.average(table["gain"], weights=table["n_rows"])
    print(f"Over all rows a model that never saw the sector keeps {kept:.0%} of the gain. {cost['cpu_s']:.0f} CPU-s, {cost['wall_s']:.0f} s.")


if __name__ == "__main__":
    main()
