"""Due times against a walk minute by minute; the scheduler under clocks, crashes and signals that misbehave; units that other programs understand."""
import configparser
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import exchange_calendars as xc
import pytest
from apscheduler.triggers.cron import CronTrigger
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrader import log, schedule
from mltrader import store as db
from mltrader.config import MarketSettings, NotifySettings, ScheduleSettings, Settings
from mltrader.core import Clock, ConfigError, DataError, LeaseError, MltraderError
from mltrader.store import Store

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
NEW_YORK = "America/New_York"


def plan(at: str = "18:00", zone: str = NEW_YORK, calendar: str = "", **more) -> Settings:
    return Settings(schedule=ScheduleSettings(at=at, zone=zone, **more), market=MarketSettings(calendar=calendar), notify=NotifySettings(channels=["ops"]))


def walked(rule: Settings, after: datetime, until: datetime) -> list[datetime]:
    """The definition in words, minute by minute: the first minute of a date that shows the time or a later one, if a session was over since the one before."""
    zone, at = ZoneInfo(rule.schedule.zone), rule.schedule.at
    first: dict[date, datetime] = {}
    moment = after - 5 * DAY
    while moment <= until:
        shown = moment.astimezone(zone)
        if shown.time() >= at:
            first.setdefault(shown.date(), moment)
        moment += MINUTE
    marks = sorted(first.values())[1:]  # the first one may be cut off
    if rule.market.calendar:
        over = [stamp.to_pydatetime() + timedelta(minutes=rule.schedule.settle_minutes) for stamp in xc.get_calendar(rule.market.calendar, start="2019-01-01", end="2026-12-31").closes]
        marks = [mark for before, mark in zip(marks, marks[1:], strict=False) if any(before < moment <= mark for moment in over)]
    return [mark for mark in marks if after < mark <= until]


def transition(zone: str, year: int) -> datetime:
    """A day in the year on which the zone's offset changes; 1 July if there is none."""
    days = [datetime(year, 1, 1, tzinfo=UTC) + k * DAY for k in range(366)]
    offsets = [day.astimezone(ZoneInfo(zone)).utcoffset() for day in days]
    return next((day for day, a, b in zip(days, offsets, offsets[1:], strict=False) if a != b), days[181])


@settings(max_examples=40, deadline=None)
@given(zone=st.sampled_from(sorted(available_timezones())), year=st.integers(2000, 2035), hour=st.integers(0, 23), minute=st.sampled_from((0, 1, 30, 59)))
def test_due_times_are_those_of_a_walk_in_any_zone(zone, year, hour, minute):
    """At an hour's change, wherever there is one: nothing skipped, nothing doubled."""
    rule, start = plan(f"{hour:02d}:{minute:02d}", zone), transition(zone, year) - DAY
    assert schedule.due_between(rule, start, start + 3 * DAY) == walked(rule, start, start + 3 * DAY)


@pytest.mark.parametrize(("at", "zone", "calendar", "around"), [
    ("02:30", NEW_YORK, "", "2024-03-10"), ("01:30", NEW_YORK, "", "2024-11-03"), ("02:00", NEW_YORK, "", "2024-11-03"), ("03:00", NEW_YORK, "", "2024-03-10"),
    ("18:00", NEW_YORK, "XNYS", "2024-03-10"), ("18:00", NEW_YORK, "XNYS", "2024-11-03"), ("18:00", NEW_YORK, "XNYS", "2024-02-29"),
    ("18:00", NEW_YORK, "XNYS", "2024-12-31"), ("15:00", NEW_YORK, "XNYS", "2024-07-03"), ("07:00", "Pacific/Kiritimati", "XNYS", "2024-03-10"),
    ("00:30", "America/Havana", "", "2024-11-03"), ("12:00", "Australia/Lord_Howe", "XNYS", "2024-04-07"), ("12:00", "Pacific/Apia", "", "2011-12-30"),
    ("23:45", "America/St_Johns", "", "2010-11-07"), ("16:30", NEW_YORK, "XNYS", "2024-03-21"), ("09:00", "Asia/Tokyo", "XTKS", "2024-01-01"),
])
def test_named_days(at, zone, calendar, around):
    """Hours skipped and doubled, leap day, year's end, half-days, the other side of the date line, a date that never was."""
    rule, middle = plan(at, zone, calendar), datetime.fromisoformat(around).replace(tzinfo=UTC)
    assert schedule.due_between(rule, middle - 3 * DAY, middle + 4 * DAY) == walked(rule, middle - 3 * DAY, middle + 4 * DAY)


def test_the_walk_can_tell():
    """Red team: the usual short cut, combining date and time and hoping, is told from the definition."""
    naive = datetime(2024, 3, 10, 2, 30, tzinfo=ZoneInfo(NEW_YORK)).astimezone(UTC)
    assert naive not in walked(plan("02:30"), datetime(2024, 3, 9, tzinfo=UTC), datetime(2024, 3, 12, tzinfo=UTC))


@settings(max_examples=12, deadline=None)
@given(start=st.datetimes(datetime(2020, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC)), cuts=st.lists(st.integers(0, 60 * 24 * 40), max_size=8))
def test_a_span_cut_into_pieces_has_the_same_due_times(start, cuts):
    """Half-open intervals: however often one looks, each due time is seen once; and `next_due` walks through the same ones."""
    rule, edges = plan(calendar="XNYS"), sorted({0, 60 * 24 * 40, *cuts})
    whole = schedule.due_between(rule, start, start + 40 * DAY)
    assert [due for a, b in zip(edges, edges[1:], strict=False) for due in schedule.due_between(rule, start + a * MINUTE, start + b * MINUTE)] == whole
    step, seen = start, []
    while len(seen) < len(whole):
        step = schedule.next_due(rule, step)
        seen.append(step)
    assert seen == whole
    sessions = xc.get_calendar("XNYS", start="2019-12-01", end="2026-12-31").closes
    assert len(whole) == sum(start < schedule.wall_time(stamp.date(), rule.schedule.at, ZoneInfo(NEW_YORK)) <= start + 40 * DAY for stamp in sessions.index)


def test_refusals():
    with pytest.raises(ConfigError, match="no calendar of exchange-calendars"):
        schedule.next_due(plan(calendar="XMARS"), datetime(2024, 1, 1, tzinfo=UTC))
    with pytest.raises(DataError, match="knows sessions to"):
        schedule.next_due(plan(calendar="XSHG"), datetime(2029, 6, 1, tzinfo=UTC))  # its holidays are announced a year at a time
    with pytest.raises(ValueError, match="to the minute"):
        ScheduleSettings(at="18:00:30")


# The scheduler under a simulated clock: `ticks` looks at the times given, with jobs that leave runs in a store.


class World:
    """A store, a scheduler and what its jobs did."""

    def __init__(self, folder: Path, rule: Settings, jobs: tuple[str, ...] = ("monitor",)) -> None:
        self.store, self.rule, self.calls, self.now, self.does = Store(f"sqlite:///{folder}/w.db"), rule, [], None, {}
        self.jobs = {name: lambda name=name: self.work(name) for name in jobs}
        self.restart()

    def restart(self) -> None:
        self.scheduler = schedule.Scheduler(self.rule, self.store, self.jobs)

    def work(self, name: str) -> None:
        self.calls.append((name, self.now))
        what = self.does.pop((name, len([c for c in self.calls if c[0] == name])), "success")
        if isinstance(what, Exception):
            raise what
        with self.store.write() as conn:
            run = f"{name}{len(self.calls)}"
            db.start_run(conn, run, name, "scheduled", 1, {}, "d", Clock(self.now))
            db.finish_run(conn, run, what, Clock(self.now))
        if what != "success":
            raise MltraderError(what)

    def tick(self, moment: datetime) -> None:
        self.now = moment
        self.scheduler.clock = Clock(moment)
        self.scheduler.tick()

    def served(self, name: str = "monitor") -> list[datetime]:
        return [moment for call, moment in self.calls if call == name]

    def told(self) -> list[str]:
        with self.store.read() as conn:
            return [row["title"] for row in db.messages(conn)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("at", "start", "zone"), [("02:30", "2024-03-09", NEW_YORK), ("01:30", "2024-11-02", NEW_YORK), ("18:00", "2024-02-28", NEW_YORK),
                                                   ("18:00", "2024-12-31", NEW_YORK), ("07:00", "2024-03-09", "Pacific/Kiritimati")])
def test_each_due_time_is_served_once_whatever_the_clock_does(folder, at, start, zone):
    """R22: through changes of the hour, with the clock set back an hour just after each run, and the process started anew all the time."""
    rule, moment = plan(at, zone), datetime.fromisoformat(start).replace(tzinfo=UTC)
    world, until = World(folder, rule), moment + 3 * DAY
    due, back = walked(rule, moment, until), timedelta(0)
    world.tick(moment)  # what was due the day before
    while moment < until:
        moment += 17 * MINUTE
        world.tick(moment - back)
        if back == timedelta(0) and world.served()[-1] == moment:
            back = timedelta(hours=1)
            world.restart()
        elif world.now >= world.served()[-1] + timedelta(minutes=30):
            back = timedelta(0)
    served = world.served()[1:]
    assert [max(d for d in due if d <= moment) for moment in served] == due and all(moment - d < timedelta(hours=1, minutes=18) for moment, d in zip(served, due, strict=True))


def test_after_any_downtime_there_is_one_run_to_catch_up(folder):
    world, monday = World(folder, plan(calendar="XNYS")), datetime(2024, 3, 4, 23, 0, tzinfo=UTC)
    for moment in (monday, monday + 10 * DAY + MINUTE, monday + 10 * DAY + 2 * MINUTE):  # ten days away
        world.tick(moment)
    assert world.served() == [monday, monday + 10 * DAY + MINUTE]
    assert schedule.pending(plan(calendar="XNYS"), monday + 10 * DAY + MINUTE, []) == datetime(2024, 3, 14, 22, tzinfo=UTC)  # the last one missed
    world.tick(datetime(2024, 3, 20, 22, tzinfo=UTC))
    short = plan(calendar="XNYS", misfire_grace_hours=1)
    assert schedule.pending(short, datetime(2024, 3, 21, 23, 30, tzinfo=UTC), []) is None  # late by an hour and a half: left to the next
    assert schedule.pending(short, datetime(2024, 3, 21, 22, 30, tzinfo=UTC), []) == datetime(2024, 3, 21, 22, tzinfo=UTC)


def test_a_run_that_is_killed_is_begun_again_and_a_cycle_that_failed_is_not(folder):
    world, due = World(folder, plan(), ("cycle",)), datetime(2024, 3, 4, 23, tzinfo=UTC)
    world.does = {("cycle", n): "lost" for n in (1, 2, 3)} | {("cycle", 4): "failed"}
    for minutes in [*range(0, 60, 5), *range(60, 24 * 60 + 240, 60)]:
        world.tick(due + minutes * MINUTE)
        world.restart()  # the kill took the scheduler, too
    assert world.served("cycle") == [due, due + 5 * MINUTE, due + 10 * MINUTE, due + DAY]
    assert world.told() == []  # the runs are on record, and tell of themselves


@pytest.mark.parametrize("failures", [1, 2, 3, 4])
def test_a_monitor_that_failed_is_tried_again_after_a_pause(folder, failures):
    """A bar that is late is the usual reason; three attempts, ten and twenty minutes apart, and the cycle is not held up."""
    world, due = World(folder, plan(), ("monitor", "cycle")), datetime(2024, 3, 4, 23, tzinfo=UTC)
    world.does = {("monitor", n): "failed" for n in range(1, failures + 1)}
    for minutes in range(0, 120, 5):
        world.tick(due + minutes * MINUTE)
    assert world.served() == [due, due + 10 * MINUTE, due + 30 * MINUTE][:failures + 1] and world.served("cycle") == [due] and world.told() == []


def test_what_fails_before_a_run_begins_is_told_of_once_and_tried_again(folder):
    world, due = World(folder, plan(), ("monitor", "cycle")), datetime(2024, 3, 4, 23, tzinfo=UTC)
    world.does = {("monitor", n): RuntimeError("no such <b>file</b>") for n in (1, 2, 3)} | {("cycle", 1): LeaseError("busy"), ("cycle", 2): LeaseError("busy")}
    for minutes in [*range(35), *range(40, 23 * 60, 90)]:
        world.tick(due + minutes * MINUTE)
    assert world.served() == [due, due + 10 * MINUTE, due + 30 * MINUTE]
    assert world.served("cycle") == [due, due + MINUTE, due + 2 * MINUTE]  # the lease is asked for every minute
    assert world.told() == ["mltrader: monitor could not start"]
    assert [entry["message"] for entry in log.read_log()].count("cycle waits: busy") == 1


def test_jobs_keep_their_order_and_wait_for_the_lease_together(folder):
    world, due = World(folder, plan(), ("monitor", "cycle")), datetime(2024, 3, 4, 23, tzinfo=UTC)
    world.does = {("monitor", 1): LeaseError("busy"), ("monitor", 2): "failed"}
    for minutes in range(3):
        world.tick(due + minutes * MINUTE)
    assert world.calls == [("monitor", due), ("monitor", due + MINUTE), ("cycle", due + MINUTE)]


def test_a_store_that_cannot_be_read_does_not_end_the_scheduler(folder, monkeypatch):
    world, due = World(folder, plan()), datetime(2024, 3, 4, 23, tzinfo=UTC)
    with monkeypatch.context() as broken:
        broken.setattr(db, "runs", lambda *_, **__: 1 / 0)
        world.tick(due)
        world.tick(due + MINUTE)
    world.tick(due + 2 * MINUTE)
    assert world.served() == [due + 2 * MINUTE] and world.told() == ["mltrader: the schedule is blind"]


CHILD = """
import sys, time
from mltrader import schedule
from mltrader.config import ScheduleSettings, MarketSettings, Settings
from mltrader.store import Store
def busy():
    print("busy", flush=True)
    while True: time.sleep(0.05)
def bad():
    print("bad", flush=True)
    raise RuntimeError("on purpose")
def child():
    import subprocess
    schedule.sys.executable = sys.argv[2]
    print("child", flush=True)
    schedule.command_job("monitor")()
def idle():
    print("idle", flush=True)
jobs = {"monitor": {"busy": busy, "bad": bad, "child": child}[sys.argv[1]], "cycle": idle}
schedule.run_forever(schedule.Scheduler(Settings(market=MarketSettings(calendar="")), Store(), jobs), beat=0.1)
print("left", flush=True)
"""


def started(folder: Path, what: str, *more: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD, what, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "MLTRADER_HOME": str(folder), "PYTHONPATH": str(ROOT)})


def test_sigterm_ends_it_cleanly_within_ten_seconds(tmp_path):
    """Idle, inside a function, and while a child process works, which is passed the signal; a job that raises ends nothing."""
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\ntrap 'echo stopped > {tmp_path}/stopped; exit 130' TERM\necho up > {tmp_path}/up\nwhile :; do sleep 0.1; done\n")
    slow.chmod(0o755)
    running = {what: started(tmp_path / what, what, str(slow)) for what in ("busy", "bad", "child")}
    assert all(process.stdout.readline().strip() == what for what, process in running.items())
    assert running["bad"].stdout.readline().strip() == "idle"  # the job behind the bad one; then it waits
    with pytest.raises(LeaseError, match="Another scheduler works on"), schedule._only_one(tmp_path / "busy" / "schedule.lock"):
        pass
    until = time.monotonic() + 20
    while not (tmp_path / "up").exists() and time.monotonic() < until:
        time.sleep(0.05)
    began = time.monotonic()
    for process in running.values():
        process.send_signal(signal.SIGTERM)
    for what, process in running.items():
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out.splitlines()[-1]) == (0, "left"), (what, out, err)
    assert time.monotonic() - began < 10 and (tmp_path / "stopped").read_text() == "stopped\n"
    assert '"The scheduler ends"' in (tmp_path / "busy" / "log" / "mltrader.jsonl").read_text()


@pytest.mark.parametrize(("code", "kind"), [(0, None), (3, None), (75, LeaseError), (5, MltraderError), (-9, MltraderError)])
def test_a_command_as_a_job(tmp_path, monkeypatch, code, kind):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\n" + (f"exit {code}\n" if code >= 0 else "kill -9 $$\n"))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    job = schedule.command_job("cycle", "--if-due")
    if kind is None:
        job()
    else:
        with pytest.raises(kind) as found:
            job()
        assert type(found.value) is kind


# Units


NOW = datetime(2024, 3, 6, tzinfo=UTC)


def test_units_for_systemd(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path / "a home 100%"))
    monkeypatch.setenv("MLTRADER_NOTIFY_URL_OPS", "json://canary-canary/")
    units = schedule.systemd_units(plan("07:15", "Pacific/Kiritimati", "XNYS"), NOW, ["main", "Alpaca.2"])
    assert [name for name in units if "paper" in name] == ["mltrader-paper-main.service", "mltrader-paper-Alpaca.2.service"]
    assert ' paper start --account Alpaca.2 --follow\n' in units["mltrader-paper-Alpaca.2.service"] and "live-orders" not in str(units)
    read = configparser.ConfigParser(interpolation=None, strict=False)
    read.optionxform = str
    read.read_string(units["mltrader-monitor.timer"])
    assert read["Timer"]["OnCalendar"] == "Tue..Sun *-*-* 07:15:00 Pacific/Kiritimati".replace("Tue", "Wed") and read["Timer"]["Persistent"] == "true"
    assert "canary" not in str(units) and 'Environment="MLTRADER_HOME=' + f'{tmp_path}/a home 100%%"' in units["mltrader-cycle.service"]
    assert "OnSuccess=mltrader-cycle.service" in units["mltrader-monitor.service"] and units["mltrader-cycle.service"].count("OnSuccess") == 0
    if shutil.which("systemd-analyze"):
        for name, text in units.items():
            (tmp_path / name).write_text(text)
        paths = [str(tmp_path / name) for name in units]
        said = subprocess.run(["systemd-analyze", "--user", "verify", *paths], capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
        assert not [line for line in said.stderr.splitlines() if "mltrader-" in line], said.stderr
        (tmp_path / "mltrader-cycle.service").write_text(units["mltrader-cycle.service"].replace("Type=oneshot", "Typo=oneshot"))
        said = subprocess.run(["systemd-analyze", "--user", "verify", *paths], capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
        assert "Typo" in said.stderr  # it would have said so


def test_lines_for_cron_are_understood_and_do_the_work(tmp_path, monkeypatch):
    """An independent reader of crontabs sees our due times, but for holidays; and the shell runs both commands, in order, with the secrets, from an awkward path."""
    odd = tmp_path / "it's 100% odd"
    program, secrets = odd / "bin" / "mltrader", tmp_path / ".config" / "mltrader.env"
    for path in (program, secrets):
        path.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$* $MLTRADER_NOTIFY_URL_OPS $MLTRADER_HOME" >> "{tmp_path}/said"\nexit 5\n')
    program.chmod(0o755)
    secrets.write_text("MLTRADER_NOTIFY_URL_OPS='json://somewhere'\n")
    monkeypatch.setenv("MLTRADER_HOME", str(odd / "home"))
    monkeypatch.setattr(sys, "executable", str(odd / "bin" / "python"))
    rule = plan(calendar="XNYS")
    *_, zone, line, again = schedule.cron_lines(rule, NOW, ["main"]).splitlines()
    fields, command = line.split(maxsplit=5)[:5], line.split(maxsplit=5)[5]
    trigger, moment, fired = CronTrigger.from_crontab(" ".join([*fields[:4], "mon-fri" if fields[4] == "1-5" else "?"]), timezone=zone.removeprefix("CRON_TZ=")), NOW, []
    while (moment := trigger.get_next_fire_time(moment, moment + MINUTE)) < NOW + 20 * DAY:
        fired.append(moment.astimezone(UTC))
    assert fired == schedule.due_between(rule, NOW, NOW + 20 * DAY)
    assert "%" not in command.replace(r"\%", "")  # cron would take it for a line's end
    done = subprocess.run(["/bin/sh", "-c", command.replace(r"\%", "%")], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert (tmp_path / "said").read_text().splitlines() == [f"{words} json://somewhere {odd}/home" for words in ("monitor --trigger scheduled", "cycle --if-due", "paper start --account main")], done
    assert done.stdout + done.stderr == ""
    subprocess.run(["/bin/sh", "-c", again.split(maxsplit=5)[5].replace(r"\%", "%")], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, check=False)
    assert again.startswith("*/15 * * * * ") and (tmp_path / "said").read_text().splitlines()[3] == f"notify deliver json://somewhere {odd}/home"


def test_settings_of_this_shell_alone_are_written_into_units_and_lines_and_secrets_are_not(monkeypatch):
    for name, text in {"MLTRADER_MARKET__PROVIDER": "parquet", "MLTRADER_MARKET__PATH": "my bars.parquet", "MLTRADER_NOTIFY_URL_OPS": "json://somewhere", "MLTRADER_VENDORS__ODD": "https://me:password@host"}.items():
        monkeypatch.setenv(name, text)
    for text in (*[text for name, text in schedule.systemd_units(plan(), NOW, ["main"]).items() if name.endswith("service")], schedule.cron_lines(plan(), NOW)):
        assert "MLTRADER_MARKET__PROVIDER=parquet" in text and "my bars.parquet" in text and "somewhere" not in text and "password" not in text
    monkeypatch.setenv("MLTRADER_BOOSTING__PARAMS", '{"depth": 3}')
    with pytest.raises(ConfigError, match="MLTRADER_BOOSTING__PARAMS.*write it into mltrader.toml"):
        schedule.systemd_units(plan(), NOW)


def test_a_market_that_never_closes_has_a_valid_line_of_cron():
    line = schedule.cron_lines(plan(calendar=""), NOW).splitlines()[3]
    assert line.split()[4] == "1-7", "Sunday is 7: a range must not go down"


def test_a_path_that_no_unit_can_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path) + '/a"b')
    with pytest.raises(ConfigError, match="cannot be written into a unit"):
        schedule.systemd_units(plan(), NOW)


def test_settings_name_what_is_wrong():
    assert schedule.wall_time(date(2024, 3, 10), clock_time(2, 30), ZoneInfo(NEW_YORK)) == datetime(2024, 3, 10, 7, tzinfo=UTC)
    with pytest.raises(ValueError, match="no IANA time zone"):
        ScheduleSettings(zone="../etc/passwd")
