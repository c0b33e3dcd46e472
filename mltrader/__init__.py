"""mltrader: trains, judges, deploys and watches trading models by itself."""

__version__ = "0.1.0"

_API = {"runs": "reports", "load_product": "reports", "champion": "registry"}


def __getattr__(name: str):
    """The read API for past runs: `mltrader.runs()`, `mltrader.load_product(run, task)`, `mltrader.champion()`."""
    if name not in _API:
        raise AttributeError(f"module 'mltrader' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"mltrader.{_API[name]}"), name)
