"""The command line is quick to start, says one line, and ends with the right code."""
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


def call(*arguments: str, code: str | None = None, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-c", "from mltrader.cli import main; main()", *arguments]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLTRADER_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**clean, **env})


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["history"], ["champion"], ["config", "show"]])
def test_light_commands_load_nothing_heavy(arguments, tmp_path):
    code = (f"import sys; sys.argv = ['mltrader', *{arguments!r}]\nfrom mltrader.cli import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            "print('LOADED', *sorted({'ploomber', 'shap', 'matplotlib', 'numba', 'pandas', 'sklearn', 'xgboost'} & set(sys.modules)))")
    done = call(code=code, MLTRADER_HOME=str(tmp_path))
    assert done.stdout.strip().splitlines()[-1] == "LOADED", done.stdout + done.stderr


@pytest.mark.parametrize(("arguments", "env", "code", "words"), [
    (["cycle", "--as-of", "someday"], {}, 2, "YYYY-MM-DD"),
    (["status"], {"MLTRADER_LABELS__HORIZON": "soon"}, None, None),
    (["config", "show"], {"MLTRADER_LABELS__HORIZON": "soon"}, 2, "labels.horizon"),
    (["config", "show"], {"MLTRADER_LABELS__HORIZN": "5"}, 2, "labels.horizn"),
    (["config", "show"], {"MLTRADER_SETTINGS": "absent.toml"}, 2, "absent.toml"),
    (["data", "check"], {"MLTRADER_MARKET__PROVIDER": "csv", "MLTRADER_MARKET__PATH": "absent.csv"}, 4, "absent.csv"),
    (["data", "check"], {}, 5, "mltrader data sync"),
    (["history"], {}, 2, "make run"),
    (["nonsense"], {}, 2, "nonsense"),
    (["status", "--json"], {"MLTRADER_DATABASE_URL": "foo"}, 2, "MLTRADER_DATABASE_URL is no SQLAlchemy URL"),
    (["config", "show"], {"MLTRADER_PROMOTION__RULES": "beats_pior,calibrated"}, 2, "`rules` names ['beats_pior']"),
    (["timemachine", "--start", "foo", "--dry-run"], {}, 2, "foo"),
    (["timemachine", "--start", "2010", "--end", "2005", "--dry-run"], {}, 2, "--end 2005 lies before --start 2010"),
    (["timemachine", "--dry-run"], {}, 5, "mltrader data sync"),
])
def test_exit_codes_and_one_line(tmp_path, arguments, env, code, words):
    done = call(*arguments, MLTRADER_HOME=str(tmp_path), **env)
    if code is not None:
        assert done.returncode == code, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr
    assert "Traceback" not in done.stderr


def test_every_command_has_help_with_an_example():
    from mltrader.cli import app, config_app, data_app, store_app

    for typer_app in (app, config_app, data_app, store_app):
        for command in typer_app.registered_commands:
            if not command.hidden:
                assert "Example: mltrader" in command.callback.__doc__, command.callback.__name__


def test_dry_runs_change_nothing(tmp_path):
    for arguments in (["cycle", "--dry-run"], ["data", "sync", "--dry-run"], ["store", "migrate", "--dry-run"]):
        assert call(*arguments, MLTRADER_HOME=str(tmp_path)).returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("env", "code", "words"), [
    ({"MLTRADER_SEED": "1"}, 2, "MLTRADER_SECTION__KEY"),
    ({"MLTRADER_REGIMES__VIX_LOW": "90"}, 2, "must rise"),
    ({"MLTRADER_MEMORY__TARGET_CLIP": "5,0.2"}, 2, "target_clip"),
    ({"MLTRADER_LABELS__TAKE_PROFIT": "inf"}, 2, "labels.take_profit"),
    ({"MLTRADER_DRIFT__WINDOWS": "0,-5"}, 2, "drift.windows"),
    ({"MLTRADER_FOREST__MAX_FEATURES": "foo"}, 2, "forest.max_features"),
    ({"MLTRADER_MARKET__PATH": "bars.csv"}, 2, "MLTRADER_MARKET__PROVIDER"),
    ({"MLTRADER_FOREST__MAX_FEATURES": "0.5"}, 0, ""),
])
def test_settings_that_cannot_be_meant_are_refused_at_once(tmp_path, env, code, words):
    done = call("config", "show", MLTRADER_HOME=str(tmp_path), **env)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("command", [["status"], ["history"], ["verify"], ["cycle", "--no-kernels"], ["doctor"]])
@pytest.mark.parametrize("content", [b"no database", b""])
def test_a_damaged_database_is_one_line(tmp_path, command, content):
    (tmp_path / "mltrader.db").write_bytes(content)
    done = call(*command, MLTRADER_HOME=str(tmp_path), MLTRADER_RUN__REPORTS=str(tmp_path / "reports"), MLTRADER_RUN__RETRIES_DATA="0")
    assert "Traceback" not in done.stderr + done.stdout and done.stderr.count("\n") <= 2, done.stderr
    if content and command != ["doctor"]:
        assert done.returncode == 1 and "mltrader.db" in done.stderr


@pytest.mark.parametrize(("env", "code"), [
    ({"MLTRADER_DATABASE_URL": "foo"}, 2), ({"MLTRADER_DATABASE_URL": "oracle://x/y"}, 2), ({"MLTRADER_RUN__REPORTS": "/dev/null"}, 2), ({"MLTRADER_HOME": "/dev/null"}, 1),
])
def test_places_that_do_not_exist_are_one_line(tmp_path, env, code):
    done = call("cycle", "--no-kernels", **{"MLTRADER_HOME": str(tmp_path), **env})
    assert done.returncode == code and "Traceback" not in done.stderr and done.stderr.startswith("mltrader: "), done.stderr


def home_with_bars(folder):
    """A home that has the packaged bars and nothing else."""
    from mltrader import packaged
    from mltrader.config import home

    packaged.sync(home() / "cache")
    (folder / "cache").symlink_to(home() / "cache")
    return {"MLTRADER_HOME": str(folder)}


@pytest.mark.parametrize("module", ["mltrader", "mltrader.cli"])
def test_the_package_is_a_command(module):
    from mltrader import __version__

    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, f"mltrader {__version__}")


def test_help_shows_brackets_and_the_options_of_every_command():
    assert "[paper] live_orders" in " ".join(call("paper", "start", "--help").stdout.split())
    assert {"--version", "--debug"} <= set(call("--help").stdout.split())


@pytest.mark.parametrize(("env", "words"), [
    ({}, None), ({"MLTRADER_MARKET__CALENDAR": "XXXX"}, "XXXX"), ({"MLTRADER_UNIVERSE__SYMBOLS": "NOPE"}, "NOPE"),
    ({"MLTRADER_UNIVERSE__START": "2090-01-01"}, "universe"), ({"MLTRADER_RUN__AS_OF": "2099-01-01"}, "last session")])
def test_doctor_judges_what_a_cycle_begins_with_and_makes_nothing(tmp_path, env, words):
    done = call("doctor", "--json", **home_with_bars(tmp_path), **env)
    found = {row["check"]: row for row in json.loads(done.stdout)}
    assert found["store"]["detail"] == "none yet" and [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert found["market data"]["ok"] == (words is None), found["market data"]
    assert (words or "remarks") in found["market data"]["detail"]


def test_the_plan_of_a_cycle_says_what_would_happen(tmp_path):
    env = home_with_bars(tmp_path)
    assert call("cycle", "--dry-run", **env).stdout == "Would run a cycle (due: never trained). Nothing was run.\n"
    assert json.loads(call("cycle", "--dry-run", "--as-of", "2020-03-29", "--json", **env).stdout)["as_of"] == "2020-03-27"
    assert call("cycle", "--dry-run", "--as-of", "2099-01-01", **env).returncode == 2
    wrong = call("cycle", "--dry-run", **env, MLTRADER_DATABASE_URL="postgresql+psycopg2://me@host/none")  # no address is not the same as no store yet
    assert wrong.returncode == 2 and "psycopg" in wrong.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_faults_of_one_kind_are_one_line(tmp_path):
    """A systematic fault is told once, with its first and last row; --json lists each."""
    rows = [f"AAA,2020-{1 + i // 28:02d}-{1 + i % 28:02d},{-1.0 - i}" for i in range(200)] + ["BBB,2020-01-01,5", "BBB,someday,5"]
    (tmp_path / "bars.csv").write_text("symbol,date,close\n" + "\n".join(rows) + "\n")
    done, whole = (call("data", "check", str(tmp_path / "bars.csv"), *more, MLTRADER_HOME=str(tmp_path)) for more in ((), ("--json",)))
    assert done.returncode == 4 and len(done.stdout.splitlines()) < 8 and "2 … 201" in done.stdout and "not a date" in done.stdout, done.stdout
    assert "199 more rows" in done.stdout and len(json.loads(whole.stdout)["faults"]) == 201
    (tmp_path / "wide.csv").write_text("date,AAA,BBB\n2020-01-02,1,2\n")
    assert "melt a wide table" in call("data", "check", str(tmp_path / "wide.csv"), MLTRADER_HOME=str(tmp_path)).stderr
