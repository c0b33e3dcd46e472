"""Messages go out once, also after trouble; they cost a run little; they hold no secrets and nothing that a reader's program would run."""
import email
import email.policy
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import apprise  # noqa: F401  (so that loading it costs no delivery its time)
import pytest
from aiosmtpd.controller import Controller
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import log, notify
from mltrader import store as db
from mltrader.config import MarketSettings, NotifySettings, RunSettings, Settings, load_settings
from mltrader.core import Clock, ConfigError
from mltrader.notify import Message
from mltrader.store import Store

START = datetime(2024, 1, 2, tzinfo=UTC)
EVIL = "<script>alert(1)</script> & <img src=x onerror=alert(2)>\r\nBcc: someone@example.org\n\x1b[31m @everyone <!channel> \u202e{{7*7}}"


class Hook:
    """A web hook that can be well, answer 500, say nothing, drip its answer, or be gone."""

    def __init__(self) -> None:
        self.mode, self.got, self.server, self.port = "well", [], None, None
        self.up()

    def up(self) -> None:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if hook.mode == "hang":
                    time.sleep(6)
                    return
                if hook.mode == "drip":
                    for _ in range(400):
                        try:
                            self.wfile.write(b"H")
                            time.sleep(0.05)
                        except OSError:
                            return
                if hook.mode == "well":
                    hook.got.append(body)
                self.send_response(200 if hook.mode == "well" else 500)
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port or 0), Handler)
        self.server.daemon_threads, self.port = True, self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Mail:
    """A mail server; `mode` well or refuse."""

    def __init__(self) -> None:
        self.mode, self.got = "well", []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self.controller.start()

    async def handle_DATA(self, server, session, envelope) -> str:
        if self.mode == "refuse":
            return "554 not today"
        self.got.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"


@pytest.fixture
def hook():
    made = Hook()
    yield made
    made.server.shutdown()


@pytest.fixture
def mail():
    made = Mail()
    yield made
    made.controller.stop()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    return tmp_path


def rules(*channels: str, **more) -> Settings:
    return Settings(notify=NotifySettings(**{"channels": channels, "timeout_seconds": 1.0, "deadline_seconds": 2.5, **more}))


def write(store: Store, rule: Settings, *names: str, severity: str = "info", at: datetime = START) -> int:
    with store.write() as conn:
        return sum(notify.notify(conn, Message("event", severity, name, f"body of {name}", name), rule, clock=Clock(at)) for name in names)


def rows(store: Store) -> list[dict]:
    with store.read() as conn:
        return db.messages(conn)


# Delivery, through real sockets


def test_each_trouble_and_then_each_message_once(home, hook, mail, monkeypatch):
    """Down, 500, silent, dripping, and back: the mail arrives at once and once, the hook's copy once it can; nobody hears anything twice."""
    monkeypatch.setenv("MLTRADER_NOTIFY_URL_OPS", f"json://user:passw0rd@127.0.0.1:{hook.port}/hooks/verysecrettoken")
    monkeypatch.setenv("MLTRADER_NOTIFY_URL_MAIL", f"mailto://127.0.0.1:{mail.port}?from=a@example.org&to=b@example.org")
    store, rule, moment = Store(), rules("ops", "mail", timeout_seconds=1.5), START
    assert write(store, rule, "one") == 2
    hook.down()
    said = []
    for mode in ("down", "500", "hang", "drip", "well", "well"):
        if mode == "500":
            hook.up()
        hook.mode = mode
        began = time.monotonic()
        count = notify.deliver(store, rule, Clock(moment))
        took = time.monotonic() - began
        assert took < 5, (mode, took)
        row = rows(store)[0]
        said.append((mode, count["sent"], count["failed"], row["attempts"]))
        assert {"down": "Connection error", "500": "500", "hang": "Connection error", "drip": "no answer within 2.5 s", "well": "None"}[mode] in str(row["last_error"]), row["last_error"]
        assert "passw0rd" not in str(row) and "verysecret" not in str(row)
        moment += timedelta(hours=7)
    assert said == [("down", 1, 1, 1), ("500", 0, 1, 2), ("hang", 0, 1, 3), ("drip", 0, 1, 4), ("well", 1, 0, 5), ("well", 0, 0, 5)]
    assert [m["title"] for m in hook.got] == ["mltrader: one"] and hook.got[0]["type"] == "info"
    assert [m["subject"] for m in mail.got] == ["mltrader: one"] and "body of one" in mail.got[0].get_content()


def test_the_bound_holds_for_many_channels_and_many_messages(home, hook, mail, monkeypatch):
    """Five channels that hang and one that is well: all within one deadline; and of twenty messages before a dead channel one is tried."""
    hook.mode = "hang"
    names = [f"c{k}" for k in range(5)]
    for name in names:
        monkeypatch.setenv(f"MLTRADER_NOTIFY_URL_{name.upper()}", f"json://127.0.0.1:{hook.port}/{name}")
    monkeypatch.setenv("MLTRADER_NOTIFY_URL_MAIL", f"mailto://127.0.0.1:{mail.port}?from=a@example.org&to=b@example.org")
    store, rule = Store(), rules(*names, "mail", timeout_seconds=5, deadline_seconds=2)
    write(store, rule, *[f"m{k}" for k in range(20)])
    began = time.monotonic()
    count = notify.deliver(store, rule, Clock(START))
    assert time.monotonic() - began < 5 and count == {"sent": 1, "failed": 5}
    of = {name: [r for r in rows(store) if r["channel"] == name] for name in [*names, "mail"]}
    assert all([r["attempts"] for r in of[name]] == [1] + [0] * 19 and "no answer within 2 s" in of[name][0]["last_error"] for name in names)
    notify.deliver(store, rule, Clock(START))  # those not tried are due at once
    assert sum(r["attempts"] for r in rows(store) if r["channel"] == "c0") == 2


def test_a_channel_that_drips_does_not_keep_a_process_from_ending(home, hook):
    """The thread that waits for it is left behind; the run's process ends all the same."""
    hook.mode = "drip"
    code = ("from mltrader import notify; from mltrader.config import NotifySettings\n"
            "print([error for _, error in notify.attempt({'ops': [{'id': 1, 'title': 't', 'body': 'b', 'severity': 'info'}]}, NotifySettings(timeout_seconds=1, deadline_seconds=1.5))])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=12,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "MLTRADER_NOTIFY_URL_OPS": f"json://127.0.0.1:{hook.port}/"})
    assert done.stdout == "['no answer within 1.5 s']\n" and done.stderr == ""


def test_a_slack_like_payload_and_a_mail_in_html_are_harmless(home, hook, mail, monkeypatch):
    monkeypatch.setenv("MLTRADER_NOTIFY_URL_CHAT", f"mmost://127.0.0.1:{hook.port}/3ccdd113474722377935511fc85d3dd4")
    monkeypatch.setenv("MLTRADER_NOTIFY_URL_MAIL", f"mailto://127.0.0.1:{mail.port}?from=a@example.org&to=b@example.org&format=html")
    store, rule = Store(), rules("chat", "mail", timeout_seconds=5, deadline_seconds=20)
    run = {"id": "r1", "kind": "cycle", "status": "failed", "trigger": EVIL, "as_of": None, "error_message": EVIL}
    event = {"event_name": EVIL, "state": EVIL, "before": EVIL, "start_date": None, "end_date": None, "vix_peak": None}
    with store.write() as conn:
        for message in notify.messages_of(run, {"verdict": "HOLD", "notes": EVIL}, [{"kind": "rollback", "name": EVIL, "before": EVIL}], events=[event]):
            notify.notify(conn, message, rule, clock=Clock(START))
    assert notify.deliver(store, rule, Clock(START)) == {"sent": 8, "failed": 0}
    for sent in mail.got:
        source = sent.get_body(("html",)).get_content()
        assert "<script" not in source and "<img" not in source and "&lt;script&gt;" in source
        assert "\n" not in sent["subject"] and sent["bcc"] is None and sent["to"] == "b@example.org"
    assert notify.plain(EVIL).replace("\u200b", "").isprintable()
    for text in [m["text"] for m in hook.got] + [str(m["subject"]) for m in mail.got]:
        assert "@everyone" not in text and "<!channel" not in text and "\x1b" not in text and "\u202e" not in text
    assert any("{{7*7}}" in m["text"] for m in hook.got) and all("github" not in json.dumps(m) for m in hook.got)  # nothing is evaluated, nothing fetched from elsewhere


def test_a_message_for_testing_goes_past_the_outbox(home, hook, monkeypatch):
    monkeypatch.setenv("MLTRADER_NOTIFY_URL_OPS", f"json://127.0.0.1:{hook.port}/")
    found = notify.send_test(rules("ops", "ghost"))
    assert found["ops"] is None and found["ghost"] == "MLTRADER_NOTIFY_URL_GHOST is not set in this process's environment"
    assert hook.got[0]["message"] == "Channel ops works."
    with pytest.raises(ConfigError, match="There is no channel"):
        notify.send_test(rules())


# The outbox


@contextmanager
def outlet(answers):
    """`notify.send` replaced by a script: True, False, or an exception that takes the process with it."""
    heard, real = [], notify.send

    def send(channel: str, title: str, *_: object) -> str | None:
        answer = answers(channel, title)
        if answer is not False:
            heard.append((channel, title))
        return None if answer is True else "no"

    notify.send = send
    try:
        yield heard
    finally:
        notify.send = real


class Killed(BaseException):
    """The process dies here."""


@settings(max_examples=20, deadline=None)
@given(plan=st.lists(st.tuples(st.sampled_from(("write", "deliver", "deliver", "kill")), st.booleans(), st.booleans()), min_size=3, max_size=12))
def test_nothing_is_lost_and_only_a_death_says_it_twice(plan):
    """Any order of writing, delivering to channels that are up or down, and dying between sending and checking off."""
    store, rule, moment, written, deaths = Store("sqlite://"), rules("a", "b"), START, [], 0
    up = {"a": True, "b": True}
    with outlet(lambda channel, _: up[channel]) as heard:
        for step, (what, up["a"], up["b"]) in enumerate([*plan, *[("deliver", True, True)] * 8]):
            moment += timedelta(hours=7)
            if what == "write":
                write(store, rule, f"m{step}", at=moment)
                written.append(f"m{step}")
            elif what == "deliver":
                notify.deliver(store, rule, Clock(moment))
            else:
                real, before = db.settle_message, len(heard)

                def dying(*_: object, **__: object) -> None:
                    raise Killed

                db.settle_message = dying
                try:
                    notify.deliver(store, rule, Clock(moment))
                except Killed:
                    pass
                finally:
                    db.settle_message = real
                time.sleep(0.02)  # the other channel's thread may still be sending
                deaths += len(heard) - before
    expected = {(channel, f"mltrader: {name}") for channel in "ab" for name in written}
    assert set(heard) == expected and len(heard) <= len(expected) + deaths
    assert all(row["sent_at"] for row in rows(store))


def test_written_with_the_event_or_not_at_all(home):
    """The transaction that fails takes its message with it; one that is repeated says it once; who wants only grave news gets no other."""
    store, rule = Store(), rules("ops", "phone", severity={"phone": "critical"})
    with pytest.raises(RuntimeError), store.write() as conn:
        notify.notify(conn, Message("event", "info", "t", "b", "k"), rule)
        raise RuntimeError("the event did not happen")
    assert rows(store) == []
    assert [write(store, rule, "k", severity=s) for s in ("info", "warning", "critical")] == [1, 0, 1]
    assert [(r["channel"], r["severity"]) for r in rows(store)] == [("ops", "info"), ("phone", "critical")]
    with pytest.raises(Exception, match="FOREIGN KEY"), store.write() as conn:  # another fault is not taken for a repetition
        notify.notify(conn, Message("event", "info", "t", "b", "new"), rule, run_id="nobody")


def test_two_who_deliver_do_not_send_the_same(home):
    store, rule = Store(), rules("ops")
    write(store, rule, *[f"m{k}" for k in range(10)])
    with outlet(lambda *_: time.sleep(0.01) or True) as heard:
        both = [threading.Thread(target=notify.deliver, args=(Store(), rule, Clock(START))) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert len(heard) == len(set(heard)) == 10


def test_waits_grow_to_a_bound_and_end(home):
    store, rule, moment = Store(), rules("ops", backoff_seconds=60, backoff_max_hours=1, keep_days=2), START
    write(store, rule, "m")
    waits = []
    with outlet(lambda *_: False):
        while rows(store)[0]["next_attempt_at"]:
            notify.deliver(store, rule, Clock(moment))
            if due := rows(store)[0]["next_attempt_at"]:
                waits.append((due - moment).total_seconds() / 60)
                moment = due
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60] and waits[-1] == 60 and timedelta(days=2) <= moment - START < timedelta(days=2, hours=2)
    assert rows(store)[0]["last_error"] == "given up after 2 days: no"
    write(store, rule, "late")
    notify.deliver(store, rule, Clock(START + timedelta(days=30)))  # written long ago and never tried: it is tried
    assert rows(store)[1]["attempts"] == 1


def test_a_poisoned_message_does_not_stop_those_behind_it(home):
    store, rule = Store(), rules("ops")
    write(store, rule, "poison", "fine", "too")
    with outlet(lambda _, title: "poison" not in title) as heard:
        assert notify.deliver(store, rule, Clock(START)) == {"sent": 0, "failed": 1} and heard == []  # then the channel is left alone
        notify.deliver(store, rule, Clock(START))
    assert [title for _, title in heard] == ["mltrader: fine", "mltrader: too"]


def test_a_store_that_fails_does_not_fail_the_run(home, monkeypatch):
    store, rule = Store(), rules("ops")
    write(store, rule, "m")
    monkeypatch.setattr(db, "claim_message", lambda *_: 1 / 0)
    assert notify.deliver(store, rule, Clock(START)) == {"sent": 0, "failed": 0}
    assert "could not be delivered" in log.read_log()[-1]["message"]


# What a run tells


def run_row(conn, run_id: str, kind: str, status: str = "success", error: str | None = None, at: datetime = START) -> None:
    db.start_run(conn, run_id, kind, "scheduled", 1, {}, "d", Clock(at))
    db.set_as_of(conn, run_id, date(2024, 1, 2))
    db.finish_run(conn, run_id, status, Clock(at), error_message=error)


def judged(conn, run_id: str, verdict: str, version: str, expected: str | None) -> None:
    db.add_version(conn, run_id, version, "recipe", date(2024, 1, 2), "fs", {}, Clock(START))
    trial = db.record_trial(conn, run_id, f"recipe{version}", date(2024, 1, 2), "data", 0.1)
    promote = verdict == "PROMOTE"
    gate = db.add_gate_row(conn, run_id, {"model_version": version, "trial_id": trial, "trials": 1, "look": 1, "alpha": 0.01, "kind": "first", "verdict": verdict, "as_of": date(2024, 1, 2),
                                          "promoted_to_production": promote, "notes": f"because of {run_id}"}, [], Clock(START))
    if promote:
        db.move_alias(conn, run_id, "champion", version, expected, 1, date(2024, 1, 2), Clock(START), gate_id=gate)


def test_a_run_tells_what_its_rows_say_and_says_it_once(home):
    """Every kind; told from the store alone, so that a run that was killed after its promotion tells of both."""
    store, rule = Store(), rules("ops")
    drift = {"session": date(2024, 1, 2), "drift_type": "feature", "window": 20, "score": 0.4, "p_value": 0.01, "detected": True, "details": None}
    event = {"event_name": "crisis", "start_date": date(2024, 1, 1), "end_date": None, "vix_peak": 44.0, "state": "open"}
    with store.write() as conn:
        def told(run_id: str) -> list[tuple[str, str]]:
            before = len(db.messages(conn))
            notify.announce_run(conn, run_id, rule, Clock(START))
            new = db.messages(conn)[before:]
            assert notify.announce_run(conn, run_id, rule, Clock(START)) == 0
            return [(m["kind"], m["severity"]) for m in new]

        run_row(conn, "c1", "cycle")
        judged(conn, "c1", "PROMOTE", "v1", None)
        assert told("c1") == [("promotion", "info")]
        run_row(conn, "c2", "cycle")
        judged(conn, "c2", "HOLD", "v2", "v1")
        assert told("c2") == [("rejection", "info")] and "Why: because of c2" in db.messages(conn)[-1]["body"]
        run_row(conn, "c3", "cycle", "lost", "killed")
        judged(conn, "c3", "PROMOTE", "v3", "v1")
        assert told("c3") == [("promotion", "info"), ("lost", "critical")]
        run_row(conn, "c4", "cycle")
        assert told("c4") == []  # nothing had changed
        run_row(conn, "c5", "cycle", "failed", "features: no memory")
        run_row(conn, "c6", "cycle", "interrupted", "features: Interrupted.")
        assert told("c5") + told("c6") == [("failure", "critical"), ("failure", "warning")]
        for number, (detected, state) in enumerate([(True, "open"), (True, "open"), (False, "closed"), (True, "closed")]):
            run_row(conn, f"m{number}", "monitor")
            db.write_rows(conn, f"m{number}", {"drift_monitoring": [{**drift, "detected": detected}], "dynamic_events": [{**event, "state": state}]})
            new, event_news = [("drift", "warning")], [("event", "warning" if state == "open" else "info")]
            assert told(f"m{number}") == (new if number in (0, 3) else []) + (event_news if number in (0, 2) else []), number
        run_row(conn, "m9", "monitor")
        first = db.promotions(conn, "champion")[0]
        db.move_alias(conn, "m9", "champion", "v1", "v3", 1, date(2024, 1, 2), Clock(START), rollback_to=first["id"])
        conn.execute(db.live_watch.insert().values(run_id="m9", champion="v3", rival="v1", session=date(2024, 1, 2), n_sessions=37, log_wealth=5.0, alarm=True))
        assert told("m9") == [("rollback", "critical")]
        last = db.messages(conn)[-1]
        assert last["title"] == "mltrader: rolled back to production_v1" and "after 37 sessions" in last["body"] and "in place of production_v2" in last["body"]


def test_the_report_is_named_where_it_is(home):
    store, rule = Store(), Settings(run=RunSettings(reports=str(home / "reports")), notify=NotifySettings(channels=["ops"]))
    page = home / "reports" / "c1" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("")
    with store.write() as conn:
        run_row(conn, "c1", "cycle", "failed", "market: no file")
        notify.announce_run(conn, "c1", rule, Clock(START))
        assert f"\nReport: {page}" in db.messages(conn)[0]["body"]


# Secrets


CANARIES = {"MLTRADER_NOTIFY_URL_WELL": "json://canaryuser:canarypass@127.0.0.1:{port}/canarypath?+X-Token=canaryhead", "MLTRADER_NOTIFY_URL_BAD": "slack://canarybot@canarytokenA/canaryB",
            "MLTRADER_NOTIFY_URL_DEAD": "json://canaryuser:canarypass@127.0.0.1:9/canarypath", "MLTRADER_NOTIFY_URL_ODD": "canarynosuch://canaryhost/canarypath",
            "MLTRADER_NOTIFY_URL_HOST": "jsons://canaryhost.invalid/canary%2Fpath", "MLTRADER_NOTIFY_URL_SMTP": "mailto://canaryuser:canary%21pass@127.0.0.1:{mail}?from=a@example.org&to=b@example.org"}


def test_no_secret_anywhere(home, hook, mail, monkeypatch, capfd):
    """T35: after a run that failed, with channels that work and channels that fail in every way, no file of the home folder, the database, the
    reports and the output holds a piece of an address. Apprise repeats them in its errors, which is shown first."""
    from mltrader.orchestrator import CycleError, run_inline

    for name, url in CANARIES.items():
        monkeypatch.setenv(name, url.format(port=hook.port, mail=mail.port))
    channels = [name.removeprefix("MLTRADER_NOTIFY_URL_").lower() for name in CANARIES]
    rule = Settings(run=RunSettings(reports=str(home / "reports")), market=MarketSettings(provider="csv", path=str(home / "missing.csv")),
                    notify=NotifySettings(channels=channels, timeout_seconds=1.5, deadline_seconds=6))
    store = Store()
    with pytest.raises(CycleError) as failed:
        run_inline(settings=rule, store=store)
    monkeypatch.setattr(log, "secrets", lambda *_: ())
    raw = {channel: notify.send(channel, "t", "b", seconds=1.5) for channel in channels}
    assert raw["well"] is None and "canary" in raw["odd"] + raw["bad"]  # without scrubbing it would be seen
    monkeypatch.undo()
    monkeypatch.setenv("MLTRADER_HOME", str(home))
    for name, url in CANARIES.items():
        monkeypatch.setenv(name, url.format(port=hook.port, mail=mail.port))
    with store.write() as conn:
        assert notify.announce_run(conn, failed.value.run_id, rule) == 0  # the run has told of itself
        notify.notify(conn, Message("failure", "critical", "t", f"the database said: {os.environ['MLTRADER_NOTIFY_URL_BAD']} canary!pass", "x"), rule)
    count = notify.deliver(store, rule)
    assert count == {"sent": 1, "failed": 5}
    log.event("test", f"an error repeats {os.environ['MLTRADER_NOTIFY_URL_HOST']}", where={"url": os.environ["MLTRADER_NOTIFY_URL_DEAD"]})
    store.engine.dispose()
    out = capfd.readouterr()
    files = [path for path in home.rglob("*") if path.is_file()]
    assert {"mltrader.db", "mltrader.jsonl", "index.html", "manifest.json"} <= {path.name for path in files}
    assert [path for path in files if b"canary" in path.read_bytes().lower()] == [] and "canary" not in (out.out + out.err).lower()
    assert [m["title"] for m in hook.got] == ["mltrader: cycle failed", "t", "mltrader: t"]  # the channel that works was reached


def test_an_address_in_the_settings_is_refused_and_not_repeated(tmp_path):
    for text in ('[notify]\nchannels = ["slack://canary/canary"]\n', '[notify]\nurl = "slack://canary"\n', 'notify = "slack://canary"\n', '[notify.severity]\n"slack://canary" = "info"\n'):
        (tmp_path / "t.toml").write_text(text)
        with pytest.raises(ConfigError) as refused:
            load_settings(tmp_path / "t.toml", {})
        said = str(refused.value)
        assert "notify" in said and ("canary" not in said or "severity" in text), said
    with pytest.raises(ConfigError) as refused:
        load_settings(None, {"MLTRADER_NOTIFY_URLS": "slack://canary"})
    assert "canary" not in str(refused.value)
    assert load_settings(None, {"MLTRADER_NOTIFY__CHANNELS": "ops, mail", "MLTRADER_NOTIFY_URL_OPS": "slack://canary"}).notify.channels == ("ops", "mail")


@settings(max_examples=25, deadline=None)
@given(password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=20), token=st.from_regex(r"[A-Za-z0-9]{6,20}", fullmatch=True))
def test_whatever_the_password_it_is_found_in_either_spelling(password, token):
    from urllib.parse import quote

    known = {"MLTRADER_NOTIFY_URL_X": f"mailtos://me:{quote(password, safe='')}@mail.example.org/{token}?key={token}"}
    text = log.scrub(f"login <{password}> or <{quote(password, safe='')}> at /{token}/", known)
    assert password not in text.replace("login", "").replace("***", "") or password in "<> or <> at //"
    assert token not in text


# The log


def test_the_log_is_bounded_and_many_may_write(home, monkeypatch):
    """No line is broken or lost to a file that is being renamed; no more than `KEEP` old files stay, none much over the limit."""
    monkeypatch.setattr(log, "MAX_BYTES", 40_000)
    monkeypatch.setattr(log, "_told", False)
    writers = [threading.Thread(target=lambda k=k: [log.event("step", f"{k}:{n}" + "x" * 200, run_id="r") for n in range(100)]) for k in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(log.read_log("r")) == 400 and not log._told  # 130 kB: nothing has been dropped yet
    for n in range(1500):
        log.event("step", f"{n}" + "x" * 200, run_id="s")
    log._rotate(log.log_file())  # another process has just done so
    files = list((home / "log").glob("*.jsonl"))
    assert len(files) in (log.KEEP, log.KEEP + 1) and all(path.stat().st_size < 41_000 for path in files)
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert log.read_log()[-1]["message"].startswith("1499") and len(lines) == len(log.read_log("s"))
    assert all(set(line) == {"time", "level", "run_id", "step", "message"} for line in lines)


def test_no_line_is_missed_or_told_twice_when_the_log_is_renamed_under_its_reader(home, monkeypatch):
    monkeypatch.setattr(log, "MAX_BYTES", 2_000)
    for n in range(20):
        log.event("step", f"{n}" + "x" * 200, run_id="r")
    before, fstat = log.read_log("r"), os.fstat

    def renamed(number):
        monkeypatch.setattr(log.os, "fstat", fstat)
        monkeypatch.setattr(log, "MAX_BYTES", 0)
        log._rotate(log.log_file())
        return fstat(number)

    monkeypatch.setattr(log.os, "fstat", renamed)
    assert log.read_log("r") == before and len(before) == 20 and not log.log_file().exists()


def test_no_writer_stumbles_over_a_log_that_another_one_renames(home, monkeypatch, capsys):
    monkeypatch.setattr(log, "MAX_BYTES", 600)  # every third line or so renames the log
    monkeypatch.setattr(log, "_told", False)
    writers = [threading.Thread(target=lambda: [log.event("step", "x" * 200, run_id="r") for _ in range(500)]) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert capsys.readouterr().err == "" and not log._told


def test_a_log_that_cannot_be_written_is_said_once_and_fails_nothing(home, monkeypatch, capsys):
    monkeypatch.setattr(log, "_told", False)
    monkeypatch.setattr(log.os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    log.event("a", "b")
    log.event("a", "c", bad=object())
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_odd_values_are_logged_all_the_same(home, monkeypatch):
    monkeypatch.setenv("MLTRADER_RUN_ID", "r7")
    log.event("s", "lone \ud800 surrogate \n new line", value=float("nan"), when=START, many=["x"] * 9000)
    entry = log.read_log("r7")[0]
    assert entry["left_out"] == ["many", "value", "when"] and len(log.log_file().read_text().splitlines()) == 1


@pytest.mark.parametrize("token", ['pässwörter"quote-1234', "back\\slash\\word", "Ключ-к-замку", "87654321"])
def test_a_secret_is_found_in_fields_however_json_would_write_it(tmp_path, monkeypatch, token):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    monkeypatch.setenv(log.DASHBOARD_TOKEN, token)
    log.event("s", f"asked with {token}", run_id="r8", url=f"/?token={token}", deep={token: [1, {"x": f"<{token}>"}]}, number=87654321, rows=26)
    assert json.dumps(token)[1:-1] not in log.log_file().read_text() and token not in log.log_file().read_text()
    entry = log.read_log("r8")[0]
    assert entry["message"] == "asked with ***" and entry["url"] == "/?token=***" and entry["deep"] == {"***": [1, {"x": "<***>"}]} and entry["rows"] == 26
    assert entry["number"] == ("***" if token.isdigit() else 87654321)
    log.event(f"task {token}", "x", run_id=f"run {token}")  # where it happened is no place to hide
    assert log.read_log()[-1]["step"] == "task ***" and log.read_log()[-1]["run_id"] == "run ***" and token not in log.log_file().read_text()
