"""The dashboard: what it shows, who may ask, that names stay names; at the end in a real browser against a real server."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as some
from xss import PAYLOADS

from mltrader import dashboard, log, registry
from mltrader import store as db
from mltrader.artifacts import ArtifactStore, publish, sealed
from mltrader.config import DashboardSettings, load_settings
from mltrader.core import CLASSES, PROBABILITIES, REGIMES, Clock, ConfigError, IntegrityError, digest_json
from mltrader.store import Store

TOKEN = "correct-horse-battery"
DAY, NOON = date(2022, 12, 28), datetime(2023, 1, 3, 12, tzinfo=UTC)


# --- a home in which everything has a name that is none --------------------------------------------------------------

def some_of(names, count):
    """All names in `count` texts."""
    return [" ".join(names[i::count]) for i in range(count)]


def frames_of(names):
    """Outputs of the tasks that the dashboard reads."""
    days = pd.bdate_range("2022-01-03", periods=60).astype("datetime64[us]")
    wealth = np.exp(np.linspace(0, 0.2, 60)) * (1 + 0.02 * np.sin(np.arange(60)))
    equity = pd.DataFrame({"session": days, **dict.fromkeys(("strategy", "equal_weight", "buy_and_hold", "index"), wealth), "market_regime": ["normal"] * 40 + ["crash"] * 20})
    features = some_of(names, 20)
    importance = pd.DataFrame([{"component": c, "regime": r, "feature": f, "importance": 0.2 - i / 200, "mean_abs_shap": 0.1, "rank": i + 1, "sample_count": 100, "importance_low": 0.01,
                                "importance_high": 0.2, "rank_low": 1, "rank_high": 9} for c in ("forest", "boosting") for r in ("all", *REGIMES) for i, f in enumerate(features)])
    history = pd.concat([importance.assign(model_version=v, name=v, as_of=pd.Timestamp(d)) for v, d in ((names[0], "2021-12-28"), (names[1], "2022-12-28"))], ignore_index=True)
    latest = pd.DataFrame([{"session": pd.Timestamp(DAY), "symbol": s, "class": c, "feature": f, "value": 1.0, "percentile": 93.0, "contribution": 0.1 - i / 50}
                           for s in names for c in CLASSES for i, f in enumerate(features[:3])])
    summary = {"first_session": names[2], "last_session": names[3], "cost_bps": 10.0, "slippage_bps": 5.0, "borrow_bps": 50.0, "index": names[4], "components": {"forest": {"rows": 143366, "first_session": "1999-01-04", "last_session": "2022-12-28"}}, "tradable_edge_ann": -0.02, "low": -0.05, "high": 0.01, "survivorship": names[5]}
    return {
        "market": {"sectors": pd.DataFrame({"symbol": names, "sector": names[::-1]}), "summary": summary},
        "backtest": {"equity": equity, "performance": pd.DataFrame([{"period": n, "portfolio": n, "return_ann": 0.1} for n in names]), "summary": summary},
        "sectors": {"summary": summary},
        "explain": {"importance": importance, "history": history, "latest": latest, "texts": pd.DataFrame({"session": pd.Timestamp(DAY), "symbol": names, "text": [f"BUY 0.61: {n}" for n in names]}),
                    "interactions": pd.DataFrame({"component": "forest", "feature": names, "other": names[::-1], "strength": 0.1, "share": 0.01}), "summary": summary},
    }


def rows_of(names):
    """What the tasks of a run write into the store."""
    probability = dict(zip(PROBABILITIES, (0.2, 0.5, 0.3), strict=True))
    return {
        "model_predictions": [{"session": DAY, "symbol": n, "regime": n, **probability, "prediction": CLASSES[i % 3], "abstain": i % 4 == 0, "role": "candidate"} for i, n in enumerate(names)],
        "sector_performance": [{"sector": n, "regime": r, "symbol": "all", "gain": 0.1 if r == "crash" else -0.1, "gain_low": 0.0, "gain_high": 0.2, "verdict": names[0], "n_rows": 9, "n_sessions": 3}
                               for n in names for r in ("all", *REGIMES)],
        "drift_monitoring": [{"session": DAY, "drift_type": n, "window": 20, "score": None if i % 3 == 2 else 0.3, "p_value": 0.01, "detected": i == 0} for i, n in enumerate(names)],
        "dynamic_events": [{"event_name": n, "state": n, "start_date": DAY, "end_date": DAY, "trained_by": n} for n in names],
    }


def furnish(home, names=PAYLOADS):
    """A store with two promotions, a monitor run, live outcomes, a watch, presses of buttons, and the artifacts behind them; `names` wherever a name can be."""
    names, clock = list(names), Clock(NOON)
    store, files = Store(f"sqlite:///{home}/mltrader.db"), ArtifactStore(home / "artifacts")
    versions = [files.put({"version": number}).as_dict() for number in range(2)]
    texts, outputs = some_of(names, 3), {task: {name: files.put(value).as_dict() for name, value in found.items()} for task, found in frames_of(names).items()}
    for number, version in enumerate(versions):
        run = f"run_{number + 1}"
        day = DAY - timedelta(days=365 * (1 - number))
        with store.write() as conn:
            token = db.take_lease(conn, run, 60, clock)
            db.start_run(conn, run, "cycle", texts[number], token, {}, "d", clock)
            db.set_as_of(conn, run, day)
            if number:
                db.write_rows(conn, run, rows_of(names))
                for task, entries in outputs.items():
                    db.record_task(conn, run, task, "ran", outputs=entries, seconds=1.0)
        rules = [{"rule": n, "scope": n, "status": "passed", "blocks": True, "observed": 0.1, "limit": 0.0, "note": n} for n in names]
        decision = {"verdict": "PROMOTE", "model_version": version["sha256"], "recipe_digest": str(number), "kind": "refresh", "as_of": day, "feature_set": "f", "data_digest": version["sha256"],
                    "trials": number + 1, "look": 1, "alpha": 0.001, "reasons": names}
        registry.register_decision(store, files, run, token, decision, rules, {"components": {"model": version}}, versions[0]["sha256"] if number else None, clock)
        with store.write() as conn:
            db.finish_run(conn, run, "success", clock, verdict="PROMOTE", as_of=day, error_message=texts[2], metrics={"meta.log_loss": 0.76, "meta.prior_log_loss": 0.92, "meta.ic": -0.01})
            db.release_lease(conn, token)
    document = {"run_id": "run_3", "findings": names}
    manifest = {**document, "manifest": digest_json(document)}
    publish(home / "reports" / "run_3" / "manifest.json", sealed(manifest, indent=1))
    with store.write() as conn:
        db.start_run(conn, "run_3", "monitor", texts[2], token + 1, {}, "d", clock)
        db.finish_run(conn, "run_3", "success", clock, as_of=DAY, manifest_digest=manifest["manifest"])
        champion, rival = (versions[i]["sha256"] for i in (1, 0))
        db.add_outcomes(conn, "run_3", [{"model_version": champion, "session": DAY - timedelta(days=7 * (i % 3)), "symbol": n, "label": i % 3, "log_loss": 0.7, "prior_loss": 0.9, "known_at": DAY} for i, n in enumerate(names)])
        for i in range(3):
            db.put_watch(conn, "run_3", {"champion": champion, "rival": rival, "session": DAY + timedelta(days=i), "n_sessions": i, "log_wealth": 0.1 * i, "alarm": False})
        for text in some_of(names, 10):
            db.settle_action(conn, db.add_action(conn, text[:32], {"version": text}, text, clock), "failed", text)
    return store


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("MLTRADER_HOME")
    os.environ["MLTRADER_HOME"] = str(folder)
    furnish(folder)
    for text in some_of(list(PAYLOADS), 10):
        log.event(text, text, level="error")
    yield folder
    os.environ.pop("MLTRADER_HOME")
    if before:
        os.environ["MLTRADER_HOME"] = before


@pytest.fixture()
def source(home):
    return dashboard.Source(load_settings(Path(os.devnull), {"MLTRADER_RUN__REPORTS": str(home / "reports")}), Clock(NOON + timedelta(days=1)), f"sqlite:///{home}/mltrader.db")


def pages(source):
    """Every page, as HTML."""
    return tables(source) | {"champion": dashboard.champion_page(source), "equity": dashboard.equity_page(source), "why": dashboard.why_page(source, "forest", "all")}


def tables(source):
    """Those without a picture, and the explanations of three predictions."""
    said = dashboard.predictions(source)
    made = {"now": dashboard.now_page(source), "gate": dashboard.gate_table(source, "run_2"), "drift": dashboard.drift_page(source), "where": dashboard.where_page(source),
            "actions": dashboard.actions_table(source)}
    return made | {f"explained {i}": dashboard.explanation_html(source, said.loc[i].to_dict()) for i in range(3)}


# --- names stay names ------------------------------------------------------------------------------------------------

TAGS = {"p", "b", "span", "div", "h2", "h3", "ul", "ol", "li", "br", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "img"}
ATTRIBUTES = {"class", "style", "title", "alt", "src"}


def foreign_markup(html):
    """Elements and attributes that are none of ours."""
    found = []
    for tag in BeautifulSoup(html, "html.parser").find_all(True):
        found += [tag.name] if tag.name not in TAGS else []
        found += [f"{tag.name} {name}" for name, value in tag.attrs.items() if name not in ATTRIBUTES or (name == "src" and not value.startswith("data:image/png;base64,"))]
        found += [f"{tag.name} style={tag['style']}" for _ in range("style" in tag.attrs) if re.search(r"url|expression|import|position", tag["style"])]
    return found


def test_no_name_becomes_markup_on_any_page(source, monkeypatch):
    assert len(PAYLOADS) >= 40
    made = pages(source)
    assert {name: found for name, html in made.items() if (found := foreign_markup(html))} == {}
    shown = {name: BeautifulSoup(html, "html.parser").get_text() for name, html in made.items()}
    plain = "<svg onload=window.__xss=1>"  # it is shown, as text
    assert [name for name in ("now", "champion", "gate", "drift", "where", "equity", "why", "actions") if plain not in shown[name]] == []
    monkeypatch.setattr(dashboard, "markup", lambda template, /, **values: dashboard.Markup(template.format(**values)))  # red team: without escaping the same check finds markup on each of them
    monkeypatch.setattr(dashboard, "joined", lambda parts, by="": dashboard.Markup(by.join(map(str, parts))))
    assert [name for name, html in tables(source).items() if not foreign_markup(html)] == []


@given(text=some.text(max_size=80))
def test_any_text_comes_back_as_it_was(text):
    text = f"x{text}x"  # the parser makes one space of nothing but space
    html = dashboard.markup("<td title='{a}'>{a}</td>", a=text)
    cell = BeautifulSoup(html, "html.parser").td
    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    assert foreign_markup(html) == [] and cell.text.replace("\r\n", "\n").replace("\r", "\n") == normal


# --- what it reads ---------------------------------------------------------------------------------------------------

def test_the_handle_cannot_write(home, tmp_path):
    """Refused by the database, also by the file's mode; and no file is made where there is none."""
    reader = Store(f"sqlite:///{home}/mltrader.db", read_only=True)
    for statement in ("DELETE FROM trials", "UPDATE training_runs SET status = 'lost'", "CREATE TABLE t (x)", "PRAGMA query_only = OFF"):
        with reader.engine.connect() as conn:
            if statement.startswith("PRAGMA"):
                conn.exec_driver_sql(statement)
                statement = "DELETE FROM trials"
            with pytest.raises(Exception, match="readonly"):
                conn.exec_driver_sql(statement)
    with pytest.raises(ConfigError, match="reading only"), reader.write():
        pass
    with pytest.raises(ConfigError, match="no store"):
        Store(f"sqlite:///{tmp_path}/sub/none.db", read_only=True)
    assert not list(tmp_path.iterdir())
    odd = db.sa.URL.create("sqlite", database=str(tmp_path / "a b?c#d%41.db"))  # a name that an address of a file has to quote
    assert Store(odd).uuid() == Store(odd, read_only=True).uuid()


def test_a_damaged_file_is_words_and_no_number(source, home):
    entry = source.outputs("sectors")[1]["sectors"]._entries["summary"]
    path = ArtifactStore(home / "artifacts").path(entry["sha256"])
    good = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(good.replace(b"-0.02", b"+9.99"))
    try:
        with pytest.raises(IntegrityError):
            dashboard.where_page(source)
    finally:
        path.write_bytes(good)
    manifest = home / "reports" / "run_3" / "manifest.json"
    kept = manifest.read_bytes()
    manifest.write_bytes(kept.replace(b"<ScRiPt>", b"<ScRiPT>"))
    try:
        assert "mltrader verify" in dashboard.now_page(source)
    finally:
        manifest.write_bytes(kept)


def test_what_is_shown_is_what_is_stored(source):
    weeks, said = dashboard.matured_weeks(source, [v["id"] for v in source.read(db.known_versions)]), dashboard.predictions(source)
    assert int(weeks["rows"].sum()) == len(PAYLOADS) and np.allclose(weeks["log_loss"], 0.7) and len(weeks) == 3
    assert len(said) == len(PAYLOADS) and said["confidence"].eq(0.5).all() and dict(zip(said["symbol"], said["sector"], strict=True))[PAYLOADS[0]] == PAYLOADS[-1]
    assert dashboard.sessions_since("XNYS", date(2022, 12, 30), date(2023, 1, 4)) == 2 == dashboard.sessions_since("", date(2022, 12, 30), date(2023, 1, 3))
    text, parts = dashboard.explanation(source, PAYLOADS[7], DAY, "buy")
    assert text.endswith(PAYLOADS[7]) and len(parts) == 3 and set(parts["class"]) == {"buy"}
    assert dashboard.explanation(source, "nobody", DAY, "buy")[0] == ""
    state = dashboard.now(source)
    assert state["champion"]["name"] == "production_v2" and state["running"] is None and state["findings"] == list(PAYLOADS)
    with Store(source.url).write() as conn:
        token = db.take_lease(conn, "run_9", 60, source.clock)
        db.start_run(conn, "run_9", "cycle", "test", token, {}, "d", source.clock)
        db.record_task(conn, "run_9", "market", "ran", seconds=1.0)
    try:
        text = BeautifulSoup(dashboard.now_page(source), "html.parser").get_text()
        assert "run_9, 1 of 16 steps done" in text and "Last finished: market" in text
    finally:
        with Store(source.url).write() as conn:
            db.finish_run(conn, "run_9", "failed", source.clock)
            db.release_lease(conn, token)


def test_pages_say_on_what_their_numbers_rest(source):
    text = {name: BeautifulSoup(html, "html.parser").get_text() for name, html in pages(source).items()}
    silent = len(PAYLOADS) // 3
    assert f"1 alarm among {len(PAYLOADS) - silent} checks" in text["drift"] and f"{silent} more could not judge" in text["drift"] and text["drift"].count("insufficient") >= silent
    assert "143,366 rows out of sample, 1999-01-04 to 2022-12-28" in text["why"]
    assert "10 bps of commission and spread a unit traded, one way · 5 bps of slippage on top · 50 bps a year to borrow" in text["equity"] and "+10.0%" in text["equity"]
    assert "neither better nor worse" in text["where"]


def test_who_abstains_makes_no_call_and_what_is_not_measured_is_said(source):
    said = dashboard.predictions(source)
    silent = said["abstains"] == "yes"
    shown = dashboard.as_shown(said)
    assert silent.any() and set(shown.loc[silent, "call"]) == {"abstain"} and not (shown.loc[~silent, "call"] == "abstain").any()
    assert "abstain, most probable" in dashboard.explanation_html(source, said[silent].iloc[0].to_dict())
    text = BeautifulSoup(dashboard.why_page(source, "boosting", "all"), "html.parser").get_text()
    assert "Pairs of features are measured for forest alone" in text and "cycle --force" not in text


def test_the_gates_word_on_trading_is_on_the_first_pages(source, monkeypatch):
    monkeypatch.setattr(dashboard.reports, "tradable_of", lambda store, version: {"verdict": "refuted", "edge_ann": -0.046, "low": -0.08, "high": -0.015})
    for make in (dashboard.now_page, dashboard.champion_page):
        assert "refuted, -4.6 % a year [-8.0, -1.5]" in BeautifulSoup(make(source), "html.parser").get_text()


def test_an_empty_home_says_what_to_run(tmp_path):
    nothing = dashboard.Source(load_settings(Path(os.devnull), {}), url=f"sqlite:///{tmp_path}/none.db")
    for make in (dashboard.now_page, dashboard.champion_page, dashboard.drift_page, dashboard.where_page, dashboard.equity_page, lambda s: dashboard.why_page(s, "forest", "all"), dashboard.actions_table):
        assert "mltrader cycle" in make(nothing) or "Nothing was asked for" in make(nothing)
    Store(nothing.url)
    for make in (dashboard.now_page, dashboard.champion_page, dashboard.drift_page, dashboard.where_page, dashboard.equity_page):
        assert "<code>mltrader " in make(nothing)


# --- who may ask -----------------------------------------------------------------------------------------------------

@given(host=some.text(min_size=1, max_size=30), rest=some.sampled_from(["", ":5006", ".evil.example", "@127.0.0.1:5006"]))
def test_only_known_hosts(host, rest):
    hosts = dashboard.known_hosts(DashboardSettings(), 5006)
    refused = dashboard.refusal(hosts, "GET", "/", "", {"Host": host + rest})
    assert (refused is None) == ((host + rest).lower() in {"127.0.0.1:5006", "localhost:5006", "[::1]:5006"})


def test_an_ipv6_name_is_no_port_and_no_path_is_quoted():
    def server(host):
        return SimpleNamespace(address="::", port=5006, source=SimpleNamespace(settings=SimpleNamespace(dashboard=DashboardSettings(hosts=(host,)))))

    names = dashboard.known_hosts(DashboardSettings(hosts=("2001:db8::1", "[2001:db8::2]:8443", "trader.example", "trader.example:81")), 5006)
    assert names - dashboard.known_hosts(DashboardSettings(), 5006) == {"[2001:db8::1]", "[2001:db8::1]:5006", "[2001:db8::2]:8443", "trader.example", "trader.example:5006", "trader.example:81"}
    assert [dashboard.address_of(server(host)) for host in ("trader.example", "trader.example:81", "2001:db8::1")] == ["http://trader.example:5006/", "http://trader.example:81/", "http://[2001:db8::1]:5006/"]
    assert [dashboard.refusal(names, "GET", f"/static/js/{path}", "", {"Host": "trader.example"}) is None for path in ("bokeh.min.js", "%00", "%2e%2e/x", "é")] == [True] + [False] * 3


def test_others_need_a_token_to_look():
    for rule in ({"address": "192.0.2.1"}, {"address": "0.0.0.0"}, {"hosts": ["trader.example"]}):
        with pytest.raises(ConfigError, match="no token is set"):
            dashboard.open_server(load_settings(Path(os.devnull), {}, dashboard=rule))
    assert [dashboard.needs_token_to_view(DashboardSettings(address=a)) for a in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "0.0.0.0", "10.0.0.1", "evil.example")] == [False] * 4 + [True] * 3


def test_the_token_is_no_setting_and_in_no_log(home):
    environment = {"MLTRADER_DASHBOARD_TOKEN": TOKEN}
    assert TOKEN not in load_settings(Path(os.devnull), environment).model_dump_json() and log.scrub(f"said {TOKEN}", environment) == "said ***"


def test_a_wrong_token_keeps_nobody_else_waiting():
    door = dashboard.Doorman(dashboard.token_of({"MLTRADER_DASHBOARD_TOKEN": f"{TOKEN} "}), Clock(NOON))
    assert [door.admit("\ud800", "192.0.2.1") for _ in range(6)] == ["wrong"] * 5 + ["wait"]  # a form can send half a character
    assert [door.admit(said, "127.0.0.1") for said in (TOKEN, f"{TOKEN} ")] == ["right"] * 2 and door.admit(TOKEN, "192.0.2.1") == "wait"
    assert door.knows("\ud800") is False
    door.clock = Clock(NOON + timedelta(minutes=2))
    assert door.admit(TOKEN, "192.0.2.1") == "right" and not door.wrong


def test_presses_are_recorded_before_and_after(source, monkeypatch):
    """Wrong tokens, a missing one, a run in progress, a version that never was, a child that fails: nothing begins, and each is on record."""
    operator = dashboard.Operator(source, dashboard.Doorman(TOKEN, source.clock))
    seen = []

    def begun(*words, **kwargs):
        row = source.read(db.actions, 1)[0]
        seen.append((row["action"], row["outcome"], words[0], kwargs))
        raise OSError(8, "no such program")

    monkeypatch.setattr(dashboard.subprocess, "Popen", begun)
    monkeypatch.setenv("MLTRADER_DASHBOARD_TOKEN", TOKEN)
    assert [operator.unlock(said, "here")[0] for said in ("wrong", TOKEN)] == [False, True]
    assert operator.press("cycle", {}, "here", False) == "Enter the token first." and seen == []
    assert "nothing to roll back to named '--help'" in operator.press("rollback", {"version": "--help"}, "here", True) and seen == []
    with Store(source.url).write() as conn:
        token = db.take_lease(conn, "run_busy", 60, source.clock)
    assert "run_busy is in progress" in operator.press("cycle", {}, "here", True) and seen == []
    with Store(source.url).write() as conn:
        db.release_lease(conn, token)
    assert "could not be started" in operator.press("rollback", {"version": "production_v1"}, "here", True)
    (action, outcome, words, kwargs), = seen
    assert (action, outcome) == ("rollback", "started") and words[-2:] == ["--json", "production_v1"] and not kwargs.get("shell") and "MLTRADER_DASHBOARD_TOKEN" not in kwargs["env"]
    assert [(row["action"], row["outcome"]) for row in source.read(db.actions, 6)] == [
        ("rollback", "failed"), ("cycle", "refused"), ("rollback", "refused"), ("cycle", "refused"), ("unlock", "done"), ("unlock", "refused")]
    assert [operator.unlock("x", "here")[1][:8] for _ in range(6)][-1] == "Too many" and TOKEN not in json.dumps([row["message"] for row in source.read(db.actions, 50)])
    nobody = dashboard.Operator(source, dashboard.Doorman(None, source.clock))
    assert nobody.press("cycle", {}, "here", True) == "Enter the token first."


def test_a_press_is_credited_with_its_own_run(source):
    with Store(source.url).write() as conn:
        token = db.take_lease(conn, "run_mine", 60, source.clock)
        db.start_run(conn, "run_mine", "rollback", "test", token, {}, "d", source.clock)
        db.finish_run(conn, "run_mine", "success", source.clock)
        db.release_lease(conn, token)
    assert dashboard.run_of(source, os.getpid()) == "run_mine" and dashboard.run_of(source, 1) is None


def test_the_first_press_of_an_empty_home_is_on_record(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    empty = dashboard.Source(load_settings(Path(os.devnull), {}), Clock(NOON), f"sqlite:///{tmp_path}/new/store.db")
    operator = dashboard.Operator(empty, dashboard.Doorman(TOKEN, empty.clock))

    def begun(*_, **__):
        assert empty.read(db.actions, 1)[0]["action"] == "cycle"  # before it begins
        raise OSError(8, "no such program")

    monkeypatch.setattr(dashboard.subprocess, "Popen", begun)
    assert not operator.unlock("wrong", "here")[0] and "token first" in operator.press("cycle", {}, "here", False) and not empty.exists  # nothing is made for a stranger
    assert operator.unlock(TOKEN, "here")[0] and "could not be started" in operator.press("cycle", {}, "here", True)
    assert [(row["action"], row["outcome"]) for row in empty.read(db.actions)] == [("cycle", "failed"), ("unlock", "done")]


def test_a_broken_and_a_busy_store_are_words(source, tmp_path, monkeypatch):
    """Nothing that cannot be recorded is done; every page says why it is empty."""
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    monkeypatch.setattr(dashboard.subprocess, "Popen", lambda *_, **__: pytest.fail("begun"))
    (tmp_path / "mltrader.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    broken = dashboard.Source(source.settings, source.clock, f"sqlite:///{tmp_path}/mltrader.db")
    operator = dashboard.Operator(broken, dashboard.Doorman(TOKEN, source.clock))
    page = dashboard.Page(broken, operator)
    for at in range(len(dashboard.TABS)):
        page.show(at)
        assert "cannot be used" in page.panes[at].objects[0].object, dashboard.TABS[at]
    answers = [operator.unlock("wrong", "here"), operator.unlock(TOKEN, "here"), (False, operator.press("cycle", {}, "here", True))]
    assert all("cannot be used" in text and not right for right, text in answers)
    dashboard.settle(broken, 1, "done", "the child of a store that broke meanwhile", None)
    monkeypatch.setattr(dashboard, "BUSY_SECONDS", 0.05)
    operator, writer = dashboard.Operator(source, dashboard.Doorman(TOKEN, source.clock)), Store(source.url)
    with writer.write():
        began = time.monotonic()
        assert "another process is busy" in operator.unlock(TOKEN, "here")[1] and "another process is busy" in operator.press("cycle", {}, "here", True)
        assert time.monotonic() - began < 10
    assert operator.unlock(TOKEN, "here")[0]


def test_help_does_not_wait_for_panel_and_a_missing_one_is_named(monkeypatch):
    code = "import sys; sys.argv = ['mltrader', '--help']\nfrom mltrader.cli import main\ntry: main()\nexcept SystemExit: pass\nassert not {'panel', 'bokeh', 'tornado'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    monkeypatch.setitem(sys.modules, "panel", None)
    with pytest.raises(ConfigError, match=re.escape('pip install "mltrader[dashboard]"')):
        dashboard.panel_library()


# --- end to end ------------------------------------------------------------------------------------------------------

@contextmanager
def served(home, *options, **more):
    """The dashboard in a process of its own; yields it and its address."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLTRADER_")} | {
        "MLTRADER_HOME": str(home), "MLTRADER_RUN__REPORTS": str(home / "reports"), "MLTRADER_DASHBOARD_TOKEN": TOKEN, "MLTRADER_DASHBOARD__REFRESH_SECONDS": "0.5", "PYTHONPATH": str(ROOT), "MLTRADER_SETTINGS": str(home / "mltrader.toml"), **more}
    (home / "mltrader.toml").touch()
    process = subprocess.Popen([sys.executable, "-c", "from mltrader.cli import main; main()", "dashboard", "--port", "0", *options], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert "http://" in line, line + process.stderr.read()
        yield process, re.search(r"http://\S+", line)[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def running(home):
    """One dashboard for all tests that need one; that it ends when it is told to is seen at the end."""
    with served(home) as (process, url):
        yield process, url
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(10) == 0
        print(f"ended {time.monotonic() - began:.2f} s after SIGTERM")


def asked(url, path="/", method="GET", body="", **headers):
    """A raw request; returns the whole answer."""
    port = int(url.rsplit(":", 1)[1].strip("/"))
    headers = {"Host": f"127.0.0.1:{port}", "Connection": "close", **({"Content-Length": str(len(body)), "Content-Type": "application/x-www-form-urlencoded"} if body else {}),
               **{name.replace("_", "-"): value for name, value in headers.items()}}
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall(f"{method} {path} HTTP/1.1\r\n".encode() + "".join(f"{n}: {v}\r\n" for n, v in headers.items()).encode() + b"\r\n" + body.encode())
        got = b""
        while (part := wire.recv(65536)) and not ("Upgrade" in headers and b"\r\n\r\n" in got + part):  # who asks for a websocket is not hung up on
            got += part
        return (got + part).decode(errors="replace")


def status(answer):
    return int(answer.split()[1])


def test_the_server_refuses_what_is_foreign(running):
    """Real sockets: where it listens, what it answers to whom."""
    process, url = running
    listening = [c.laddr for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening] == ["127.0.0.1"]
    mine, upgrade = url.rstrip("/"), {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Key": "x3JJHMbDL1EzLkh9GBhXDw==", "Sec_WebSocket_Version": "13"}
    good = asked(url)
    assert status(good) == 200 and "script-src 'self' 'nonce-" in good and "unsafe-eval" not in good and "X-Frame-Options: DENY" in good and "nosniff" in good
    other = asked(url, Host=f"[::1]:{mine.rsplit(':', 1)[1]}")  # what a browser says that came over IPv6
    assert status(other) == 200 and "ws://" not in other.split("\r\n\r\n")[0]
    foreign = [asked(url, Host="evil.example"), asked(url, Host="evil.example", path="/static/js/bokeh.min.js"), asked(url, Origin="http://evil.example"), asked(url, "/ws", **upgrade),
               asked(url, "/ws", Origin="http://evil.example", **upgrade), asked(url, "/ws", Origin=mine, Host="evil.example", **upgrade), asked(url, "/login", "POST", "token=x")]
    assert [status(answer) for answer in foreign] == [403] * 7
    assert [status(asked(url, path)) for path in ("/autoload.js", "/metadata", "/components/mltrader/x", "/admin", "/rest/session_info", "/?bokeh-session-id=a", "/static/../../etc/passwd")] == [404] * 7
    assert status(asked(url, "/", "POST", "x", Origin=mine)) == 405
    assert status(asked(url, "/login", "POST", "token=x", Origin=mine)) == 404  # nobody needs it here
    odd = [asked(url, Content_Length="abc"), asked(url, Content_Length="1, 2"), asked(url, Content_Length="9" * 5000)]
    assert [status(answer) for answer in odd] == [400] * 3
    with socket.create_connection(("127.0.0.1", int(mine.rsplit(":", 1)[1])), timeout=10) as wire:  # one that never ends is not listened to
        wire.sendall(f"GET / HTTP/1.1\r\nHost: {mine[7:]}\r\nTransfer-Encoding: chunked\r\n\r\n4e20\r\n".encode() + b"x" * 20_000)
        assert status(wire.recv(100).decode()) == 400


def test_others_look_only_with_the_token(source):
    """The guard before an application of one page, on a real socket."""
    import asyncio
    import threading

    from tornado.web import Application, RequestHandler

    class Secret(RequestHandler):
        def get(self):
            self.finish("the page")

    operator, started = dashboard.Operator(source, dashboard.Doorman(TOKEN, source.clock)), {}

    async def run():
        application = Application([("/.*", Secret)])
        dashboard.guard(application, frozenset({"trader.example"}), operator, True)
        server = application.listen(0, "127.0.0.1")
        started.update(port=next(iter(server._sockets.values())).getsockname()[1], loop=asyncio.get_running_loop(), end=asyncio.Event())
        ready.set()
        await started["end"].wait()
        server.stop()

    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(10)
    url, mine = f"http://127.0.0.1:{started['port']}/", {"Origin": "http://trader.example", "Host": "trader.example"}
    try:
        assert "Token" in asked(url, **mine) and "the page" not in asked(url, **mine)
        assert [status(asked(url, path, **mine)) for path in ("/static/js/bokeh.min.js", "/ws")] == [403, 403]
        assert status(asked(url, "/login", "POST", "token=wrong", **mine)) == 403
        answer = asked(url, "/login", "POST", f"token={TOKEN}", **mine)
        cookie = re.search(r"Set-Cookie: (mltrader_viewer=[^;]+)(.*)", answer)
        assert status(answer) == 303 and "HttpOnly" in cookie[2] and "SameSite=Strict" in cookie[2]
        assert "the page" in asked(url, Cookie=cookie[1], **mine) and "the page" not in asked(url, Cookie="mltrader_viewer=guess", **mine)
    finally:
        started["loop"].call_soon_threadsafe(started["end"].set)
        thread.join(10)
    assert [(row["action"], row["outcome"]) for row in source.read(db.actions, 2)] == [("view", "done"), ("view", "refused")]


DEEP = """() => { const bad = [], walk = (root) => { for (const e of root.querySelectorAll('*')) {
    for (const a of e.attributes) if (/^on/i.test(a.name) || /__xss|outside\\.invalid/.test(a.value) && !['title', 'alt', 'value', 'aria-label'].includes(a.name)) bad.push(e.tagName + ' ' + a.name);
    if (['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'BASE', 'META', 'LINK'].includes(e.tagName) && /__xss|outside/.test(e.outerHTML)) bad.push(e.tagName);
    if (e.shadowRoot) walk(e.shadowRoot); } };
  walk(document); return {ran: window.__xss === undefined ? 0 : 1, bad}; }"""


def test_chromium_opens_every_page_and_presses_the_buttons(home, running):
    """One server, one browser, without the content policy: it must not be what keeps the names from running. Then a page with it."""
    from playwright.sync_api import expect, sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None and "CI" not in os.environ:
        pytest.skip("not run: Chromium is missing; `apt-get install chromium` brings it")
    assert path, "Chromium is missing"
    store = Store(f"sqlite:///{home}/mltrader.db")

    def last(count=1):
        with store.read() as conn:
            return db.actions(conn, count)

    process, url = running
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
        problems, outside = [], []

        def opened(bypass):
            tab = browser.new_context(bypass_csp=bypass, viewport={"width": 1300, "height": 1000}).new_page()
            tab.set_default_timeout(10_000)
            tab.on("request", lambda r: outside.append(r.url) if not r.url.startswith((url, "data:", f"blob:{url}", url.replace("http", "ws"))) else None)
            tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
            tab.on("pageerror", lambda e: problems.append(str(e)))
            tab.on("dialog", lambda d: (problems.append("dialog"), d.dismiss()))
            tab.goto(url)
            tab.get_by_role("heading", name="Runs").wait_for()
            return tab

        opened(False).close()  # warm
        began, spent = time.monotonic(), sum(psutil.Process(process.pid).cpu_times()[:2])
        strict = opened(False)
        print(f"first page, warm: {time.monotonic() - began:.2f} s wall, {sum(psutil.Process(process.pid).cpu_times()[:2]) - spent:.2f} s CPU of the server")
        strict.close()
        tab = opened(True)

        # the log's tail, as it is written
        environment = os.environ.get("MLTRADER_HOME")
        os.environ["MLTRADER_HOME"] = str(home)
        log.event("market", "a line that came later")
        os.environ["MLTRADER_HOME"] = environment
        expect(tab.locator("pre.log")).to_contain_text("a line that came later")

        shows = {"Champion": "production_v2 is champion", "Why": "leans most on", "Drift & events": "among", "Predictions": "abstentions", "Where it works": "sector-regime cells", "Equity": "Edge over",
                 "Operate": "is recorded"}
        for name, words in shows.items():
            tab.locator(".bk-tab", has_text=name).click()
            tab.get_by_text(words).first.wait_for()
            assert tab.evaluate(DEEP) == {"ran": 0, "bad": []}, name

        # a narrow window in the dark: tables scroll inside the page, pictures are not white
        tab.set_viewport_size({"width": 800, "height": 900})
        tab.emulate_media(color_scheme="dark")
        for name in ("Champion", "Equity"):
            tab.locator(".bk-tab", has_text=name).click()
            expect(tab.locator(".picture img").first).to_have_css("filter", "invert(1) hue-rotate(180deg)")
            tab.get_by_text(shows[name]).first.wait_for()
            assert tab.evaluate("document.documentElement.scrollWidth") <= 800 and tab.locator("table.dataframe").count() == tab.locator(".table > table.dataframe").count() > 0, name
        tab.set_viewport_size({"width": 1300, "height": 1000})

        # a row, found by a filter, and why
        tab.locator(".bk-tab", has_text="Predictions").click()
        tab.get_by_label("Symbol contains").fill("onstart")
        tab.get_by_label("Symbol contains").press("Enter")
        wanted = next(p for p in PAYLOADS if "onstart" in p)
        expect(tab.locator(".tabulator-row")).to_have_count(1)
        tab.locator(".tabulator-row [tabulator-field=symbol]").first.click()
        expect(tab.locator("h3")).to_contain_text(wanted)
        expect(tab.get_by_text("BUY 0.61")).to_contain_text(wanted)
        tab.get_by_label("Symbol contains").fill("")
        tab.get_by_label("Symbol contains").press("Enter")
        tab.get_by_label("Class").select_option("sell")
        expect(tab.locator(".tabulator-row").nth(5)).to_contain_text("sell")
        tab.locator(".tabulator-col[tabulator-field=symbol]").click()  # sorted: the row that is clicked is the row that is explained
        row = tab.locator(".tabulator-row").nth(4)
        symbol = row.locator("[tabulator-field=symbol]").text_content()
        row.locator("[tabulator-field=symbol]").click()
        expect(tab.locator("h3")).to_contain_text(symbol.strip()[:12])
        assert tab.evaluate(DEEP) == {"ran": 0, "bad": []}

        # the buttons: grey, a wrong token, the right one
        tab.locator(".bk-tab", has_text="Operate").click()
        cycle, back = tab.get_by_role("button", name="Run cycle"), tab.get_by_role("button", name="Roll back …")
        expect(cycle).to_be_disabled()
        for said, words in (("wrong-wrong-wrong-wrong", "That is not the token"), (TOKEN, "The buttons are open")):
            tab.get_by_label("Token").fill(said)
            tab.get_by_role("button", name="Unlock").click()
            tab.get_by_text(words).first.wait_for()
            assert last()[0]["outcome"] == ("refused" if "wrong" in said else "done")
        expect(back).to_be_enabled()

        # a rollback asks first, and is on record
        back.click()
        tab.get_by_text("Make production_v1 the champion again?").first.wait_for()
        assert last()[0]["action"] == "unlock"
        tab.get_by_role("button", name="Yes, roll back").click()
        tab.get_by_text("The rollback has begun").first.wait_for()
        cycle.click()
        tab.get_by_text("is still going on").first.wait_for()
        tab.get_by_text("production_v1 is the champion").first.wait_for(timeout=20_000)
        refused, done = last(2)
        assert (refused["outcome"], done["outcome"], done["parameters"]) == ("refused", "done", {"version": "production_v1"}) and done["run_id"]
        assert registry.champion(store)["name"] == "production_v1"

        # a cycle: begun as its own process, which finds that somebody has spoilt the settings meanwhile
        (home / "mltrader.toml").write_text("[run")
        cycle.click()
        tab.get_by_text("The cycle has begun").first.wait_for()
        assert (last()[0]["action"], last()[0]["outcome"]) == ("cycle", "started")
        deadline = time.monotonic() + 60
        while last()[0]["outcome"] == "started" and time.monotonic() < deadline:
            time.sleep(0.3)
        assert last()[0]["outcome"] == "failed" and "is not valid TOML" in last()[0]["message"]
        tab.get_by_text("is not valid TOML").first.wait_for()
        assert process.poll() is None and tab.evaluate(DEEP) == {"ran": 0, "bad": []}
        browser.close()
    assert problems == [] and outside == []
