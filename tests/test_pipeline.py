"""The DAG's description, the layers, and what outdates a task."""
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from mltrader import reports
from mltrader.config import Settings
from mltrader.core import TASKS

# Which modules a module may import: the foundation, plus what is listed. Section by section of the design: layers go down only.
FOUNDATION = {"core", "config", "checks", "figures"}
ALLOWED = {
    "core": set(), "config": {"core"}, "log": set(), "store": {"core", "config"}, "artifacts": {"core"}, "checks": {"core"}, "figures": {"core"},
    "kernels": set(), "quality": set(), "expressions": {"kernels"}, "switching": set(), "luck": set(), "regimes": {"luck", "switching"}, "intake": {"quality"}, "packaged": {"intake"}, "market": {"intake", "packaged", "quality"}, "features": {"kernels", "expressions"}, "vendors": {"artifacts", "intake", "market", "quality"},
    "blocks": {"expressions", "features", "labels"}, "archive": {"store", "artifacts"}, "events": {"archive", "artifacts", "store"}, "memory": {"archive"}, "forgetting": {"memory", "splits"}, "splits": {"memory"}, "replay": {"store"}, "trees": {"kernels"}, "treeshap": {"boosting", "forest", "kernels"}, "tuning": set(), "estimators": set(), "forest": {"estimators", "splits", "replay", "trees", "tuning"}, "boosting": {"estimators", "splits", "forest", "tuning"}, "conformal": set(), "meta": {"splits", "replay", "conformal"},
    "fits": {"artifacts", "blocks", "forest", "memory", "meta", "refits", "tuning"}, "cluster": {"blocks", "boosting", "estimators", "forest", "memory"}, "significance": {"splits"}, "refits": {"archive", "memory", "splits", "forest", "boosting", "meta", "replay", "tuning"},
    "portfolio": {"splits"}, "backtest": {"labels", "luck", "portfolio", "splits"}, "sectors": {"splits", "store"}, "attribution": {"splits", "meta"}, "explain": {"attribution", "estimators", "meta", "store", "treeshap"}, "promotion": {"attribution", "luck", "splits", "significance", "refits", "forgetting", "tuning"},
    "registry": {"store", "artifacts"}, "notify": {"store", "log", "reports"}, "reports": {"store", "artifacts", "registry"}, "watch": set(), "predict": {"store", "artifacts", "registry", "reports", "meta", "splits", "watch"},
    "live": {"store", "artifacts", "features", "intake", "market", "packaged", "predict", "quality", "regimes", "vendors"},
    "compare": {"store", "artifacts", "registry", "reports", "watch", "predict"},
    "orchestrator": {"blocks", "fits", "store", "artifacts", "registry", "reports", "compare", "intake", "market", "predict", "log", "notify", "events"}, "schedule": {"store", "log", "notify"},
    "monitor": {"store", "artifacts", "registry", "reports", "packaged", "vendors", "predict", "orchestrator", "notify"},
    "dashboard": {"store", "artifacts", "log", "quality", "registry", "reports", "orchestrator", "schedule"},
    "safeguards": set(), "brokers": {"safeguards"}, "ledger": {"store", "artifacts", "safeguards"}, "paper": {"store", "artifacts", "notify", "registry", "reports", "safeguards", "brokers", "ledger"},
    "rehearsal": {"store", "artifacts", "reports", "safeguards", "brokers", "ledger", "paper"},
    "timemachine": {"store", "archive", "artifacts", "backtest", "drift", "events", "features", "fits", "labels", "market", "memory", "meta", "monitor", "orchestrator", "portfolio", "predict", "regimes", "registry", "reports", "sectors", "splits"},
    "audit": None, "cli": None,
}
NUMBERS = {path.stem.split("_", 1)[1]: path.stem for path in (ROOT / "nbs").glob("[0-9]*.ipynb")}


def test_pipeline_yaml_is_the_table():
    """`make pipeline` was run: upstream, products, and the import closure of every task."""
    assert (ROOT / "pipeline.yaml").read_text(encoding="utf-8") == reports.pipeline_yaml(ROOT), "run `make pipeline`"


def test_pipeline_lists_every_module_that_a_task_imports():
    tasks = {task["name"]: task for task in yaml.safe_load((ROOT / "pipeline.yaml").read_text())["tasks"]}
    assert tuple(tasks) == TASKS
    for name, task in tasks.items():
        listed = set(task["params"]["resources_"])
        assert set(reports.closure(reports.PIPELINE[name].module, ROOT / "mltrader")) <= listed, name
        assert {"inputs", "lock"} <= listed


def test_what_makes_a_recipe_is_said_once():
    """The gate's task may read exactly the sections that a recipe is made of."""
    from mltrader import splits

    assert reports.RECIPE_SECTIONS == splits.RECIPE_SECTIONS and set(splits.RECIPE_SECTIONS) <= set(reports.PIPELINE["promotion"].sections)


def test_closure_is_what_python_imports():
    """Independent check: what importing a task's module really loads is in the computed closure."""
    for name in ("memory", "meta", "promotion"):
        code = f"import sys, mltrader.{name}; print(*(m.split('.')[1] for m in sys.modules if m.startswith('mltrader.')))"
        loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())
        assert loaded <= set(reports.closure(name, ROOT / "mltrader")), name


@pytest.mark.parametrize("module", sorted(NUMBERS))
def test_layers(module):
    """Exported code imports only from lower numbers, and only what is written down."""
    found = reports.imported_siblings(module, ROOT / "mltrader") - {"_modidx"}
    assert all(NUMBERS[other] < NUMBERS[module] for other in found), found
    allowed = ALLOWED.get(module, set())
    assert allowed is None or found <= FOUNDATION | allowed, found - FOUNDATION - allowed


def test_only_the_store_speaks_sql():
    for path in (ROOT / "mltrader").glob("*.py"):
        if path.stem != "store":
            text = path.read_text(encoding="utf-8")
            assert "sqlalchemy" not in text.replace("SQLAlchemy", "") and "sqlite3" not in text, path.name


def test_only_the_clock_reads_time():
    for path in (ROOT / "mltrader").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in ("datetime.now(", "date.today(", "time.time(", "Timestamp.now(", "Timestamp.today(", "utcnow("):
            assert call not in text or path.stem == "core", f"{path.name}: {call}"


def test_no_pickle_no_unsafe_reader():
    for path in (ROOT / "mltrader").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("import pickle", "joblib", "read_pickle", "yaml.load(", "eval(", "shell=True", "np.load("):
            assert word not in text, f"{path.name}: {word}"


@pytest.mark.parametrize(("section", "change", "outdated"), [
    ("forest", {"n_estimators": 3}, {"forest", "promotion"}),
    ("explain", {"every": 2}, {"explain"}),
    ("promotion", {"level": 0.1}, {"backtest", "sectors", "promotion", "summary"}),
    ("drift", {"permutations": 33}, {"drift"}),
    ("run", {"threads": 1}, set()),
])
def test_a_setting_outdates_exactly_the_tasks_that_read_it(tmp_path, section, change, outdated):
    base = Settings()
    reports.write_inputs(base, None, None, tmp_path)
    changed = base.model_copy(update={section: getattr(base, section).model_copy(update=change)})
    assert set(reports.write_inputs(changed, None, None, tmp_path)) == outdated


def test_a_task_cannot_read_settings_it_did_not_name():
    for task, spec in reports.PIPELINE.items():
        seen = reports.TaskSettings(Settings(), task)
        for section in Settings.model_fields:
            if section in spec.sections or section == "run":
                getattr(seen, section)
            else:
                with pytest.raises(Exception, match="without saying so"):
                    getattr(seen, section)
