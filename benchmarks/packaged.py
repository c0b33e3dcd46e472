"""What several benchmarks begin with: the outputs of the tasks up to memory on the packaged panel, made without a store or a run."""
from typing import Any

import pandas as pd

from mltrader import archive, features, labels, market, memory, regimes
from mltrader.config import Settings, home


def inputs_of(settings: Settings) -> tuple[dict[str, Any], pd.Timestamp]:
    """Outputs by task (frames and documents; canonical events only), and the last session on which most symbols have a bar.

    Needs the packaged data (`mltrader data sync`).
    """
    made: dict[str, Any] = {"cache": {"folder": home() / "cache"}, "state": {"captured_events": []}}
    output = market.run(made, settings, None)
    made["market"] = output.frames | output.documents
    panel = output.frames["panel"]
    counts = panel.groupby("session").size()
    as_of = counts.index[counts >= 0.8 * panel["symbol"].nunique()].max()
    for name, module in (("features", features), ("regimes", regimes), ("labels", labels), ("archive", archive), ("memory", memory)):
        output = module.run(made, settings, as_of)
        made[name] = output.frames | output.documents
    return made, as_of
