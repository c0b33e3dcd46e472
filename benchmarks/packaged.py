"""What several benchmarks begin with: the outputs of the tasks up to memory on the panel that the settings name, made without a store or a run."""
from typing import Any

import pandas as pd

from mltrader import archive, features, labels, market, memory, regimes
from mltrader.config import Settings, home
from mltrader.core import to_session

MODULES = {"features": features, "regimes": regimes, "labels": labels, "archive": archive, "memory": memory}


def inputs_of(settings: Settings, until: str = "memory") -> tuple[dict[str, Any], pd.Timestamp]:
    """Outputs by task, up to the task `until` (frames and documents; canonical events only), and the session that a cycle would run as of.

    Needs the data in the cache (`mltrader data sync`).
    """
    made: dict[str, Any] = {"cache": {"folder": home() / "cache"}, "state": {"captured_events": []}}
    output = market.run(made, settings, None)
    made["market"], as_of = output.frames | output.documents, to_session(output.documents["summary"]["as_of"])
    for name, module in MODULES.items():
        output = module.run(made, settings, as_of)
        made[name] = output.frames | output.documents
        if name == until:
            break
    return made, as_of
