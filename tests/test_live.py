"""A vendor's feed that arrives session by session, through the real commands into a real store; and what is said of a session that is not over."""
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chaos import ZONE, Chaos
from conftest import ROOT
from crash import LIGHT
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mltrader import features, live, market, orchestrator, predict, promotion, regimes, registry, vendors
from mltrader import store as db
from mltrader.cli import app
from mltrader.config import Settings, load_settings
from mltrader.core import Clock, ConfigError, DataError, digest_file
from mltrader.quality import sessions
from mltrader.store import Store

SYMBOLS = ("AAA", "BBB", "CCC", "DDD", "EEE", "FFF")
DAYS = sessions("XNYS", "2017-06-01", "2022-11-30")


def feed() -> pd.DataFrame:
    """Bars that never were, in a vendor's shape: six stocks in which volatility comes in spells, an index of them, and a VIX that follows."""
    draw, n = np.random.default_rng(11), len(DAYS)
    spell = 0.008 + 0.012 * (np.sin(np.arange(n) / 40) > 0)
    close = np.vstack([50 * (1 + draw.normal(3e-4, 1, n) * spell).cumprod() for _ in SYMBOLS])
    close = np.round(np.vstack([close, close.mean(axis=0) * 80, 1000 * spell + draw.normal(0, 0.5, n)]), 4)
    reach = np.round(close * draw.uniform(0.001, 0.01, close.shape), 4)
    names = [*SYMBOLS, "^GSPC", "^VIX"]
    return pd.DataFrame({"symbol": np.repeat(names, n), "date": np.tile(DAYS, len(names)), "open": close.ravel(), "high": (close + reach).ravel(), "low": (close - reach).ravel(),
                         "close": close.ravel(), "adj_close": close.ravel(), "volume": np.floor(draw.uniform(1e5, 1e6, close.size))})


def at(moment: str) -> pd.Timestamp:
    return pd.Timestamp(moment, tz=ZONE)


class Desk:
    """A home of its own whose vendor is the loopback server, and commands given at moments of a played clock."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.vendor, self.bars = folder, Chaos(feed(), pd.DataFrame()), feed()
        patch.chdir(ROOT)
        (folder / "own.toml").write_text(_toml({**LIGHT, "drift": {"windows": [20], "permutations": 20}, "market": {"provider": "yfinance"}, "universe": {"symbols": list(SYMBOLS), "start": "2017-06-01"},
                                                "splits": {"first_test_year": 2020, "bootstrap": 200},
                                                "vendors": {"start": "2017-06-01", "attempts": 1, "timeout_seconds": 5.0, "backoff_seconds": 0.0},
                                                "run": {"threads": 1, "retries_data": 0, "reports": str(folder / "reports")}}))
        for name, value in (("HOME", folder), ("SETTINGS", folder / "own.toml")):
            patch.setenv(f"MLTRADER_{name}", str(value))
        real = vendors.vendors_of
        patch.setattr(vendors, "vendors_of", lambda settings, cache, clock=None, **more: real(settings, cache, clock, self.vendor.url, **more))
        patch.setattr(Clock, "now", lambda clock: clock.fixed or self.vendor.now.tz_convert("UTC").to_pydatetime())

    def call(self, moment: str, *command: str) -> SimpleNamespace:
        """A command at a moment of New York; its JSON, exit code and error."""
        self.vendor.now = at(moment)
        done = CliRunner().invoke(app, [*command, "--json"])
        said = json.loads(done.stdout) if done.stdout.strip().startswith(("{", "[")) else None
        return SimpleNamespace(code=getattr(done.exception, "exit_code", done.exit_code), said=said, error=str(done.exception or ""), text=done.output)

    def without(self, symbol: str, day: str) -> None:
        self.vendor.bars = self.bars[~((self.bars["symbol"] == symbol) & (self.bars["date"] == day))]

    def state(self) -> dict[str, str]:
        """Hash of every file of the home, but for logs and the vendor's cookies; of the database its rows."""
        files = {str(path.relative_to(self.folder)): digest_file(path) for path in sorted(self.folder.rglob("*"))
                 if path.is_file() and not {"log", "yfinance", "__pycache__"} & set(path.relative_to(self.folder).parts) and not path.name.startswith("mltrader.db")}
        with Store().read() as conn:
            return files | {table.name: str(conn.execute(table.select()).fetchall()) for table in db.metadata.tables.values()}


def _toml(sections: dict) -> str:
    return "\n".join(f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in section.items()) for name, section in sections.items())


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Seven sessions around Thanksgiving 2022, as a scheduler would live through them: what each command gave, by its moment."""
    with pytest.MonkeyPatch.context() as patch:
        desk = Desk(tmp_path_factory.mktemp("desk"), patch)
        desk.vendor.now = at("2022-11-18 18:00")
        assert CliRunner().invoke(app, ["data", "sync"]).exit_code == 0
        real = promotion.run
        patch.setattr(promotion, "run", lambda *given: (made := real(*given), replace(made, documents={**made.documents, "decision": {**made.documents["decision"], "verdict": "PROMOTE"}}))[1])
        desk.cycle = desk.call("2022-11-18 18:30", "cycle", "--no-kernels")  # what matters here is what a champion says, not how it came
        desk.days = {}

        def look(moment: str) -> None:
            desk.days[moment] = desk.call(moment, "monitor")

        look("2022-11-21 18:00")                       # a session like any other
        look("2022-11-21 20:00")                       # and again
        desk.without("BBB", "2022-11-22")
        look("2022-11-22 18:00")                       # one bar is late
        desk.vendor.bars = desk.bars
        look("2022-11-23 08:00")                       # and there in the morning
        desk.vendor.mode = "500"
        look("2022-11-23 18:00")                       # the vendor fails
        desk.vendor.mode = ""
        look("2022-11-24 18:00")                       # Thanksgiving: what was missed is fetched
        look("2022-11-25 13:30")                       # a half-day: over, not settled
        look("2022-11-25 14:30")
        revised = (desk.bars["symbol"] == "CCC") & (desk.bars["date"] == "2022-11-22")
        desk.before = float(desk.bars.loc[revised, "close"].iloc[0])
        desk.bars.loc[revised, ["open", "high", "low", "close", "adj_close"]] = desk.before * 1.01
        desk.vendor.bars = desk.bars
        look("2022-11-28 18:00")                       # the vendor corrects last week
        noon = desk.bars.copy()
        today = noon["date"] == "2022-11-29"
        noon.loc[today, ["close", "adj_close"]] = noon.loc[today, "open"] * 1.002
        desk.vendor.bars, desk.noon = noon, noon
        look("2022-11-29 12:00")                       # half a bar
        desk.live = desk.call("2022-11-29 12:00", "predict", "--live")
        desk.vendor.bars = desk.bars
        look("2022-11-29 18:00")
        yield desk
        desk.vendor.close()


def test_the_feed_arrives_session_by_session(desk):
    """Each session is looked at once, after its bar is final; what a vendor does not have is not made up."""
    assert desk.cycle.said["promoted"], desk.cycle.text[-2000:]
    told = {moment: (day.code, day.said["success"], " ".join(day.said["findings"])) for moment, day in desk.days.items()}
    for moment in ("2022-11-21 20:00", "2022-11-25 13:30", "2022-11-29 12:00"):
        assert told[moment][:2] == (0, True) and "Nothing new" in told[moment][2], (moment, told[moment])
    for moment, words in (("2022-11-22 18:00", "no bar of 2022-11-22 for BBB"), ("2022-11-23 18:00", "HTTP 500")):
        assert told[moment][:2] == (5, False) and words in str(desk.days[moment].said["faults"]) and "spoke of" not in told[moment][2], told[moment]
    good = [moment for moment in told if told[moment][1] and "Nothing new" not in told[moment][2]]
    assert good == ["2022-11-21 18:00", "2022-11-23 08:00", "2022-11-24 18:00", "2022-11-25 14:30", "2022-11-28 18:00", "2022-11-29 18:00"]
    assert all(told[moment][0] == 0 and "spoke of 6 symbols" in told[moment][2] for moment in good), told
    assert [moment for moment in told if "revised the history of CCC from 2022-11-22 on" in told[moment][2]] == ["2022-11-28 18:00"]
    with Store().read() as conn:
        rows = pd.DataFrame(conn.execute(db.model_predictions.select()).mappings().all())
    since = sorted({str(day) for day in rows["session"] if str(day) > "2022-11-18"})
    assert since == [str(day.date()) for day in DAYS[DAYS.slice_indexer("2022-11-21", "2022-11-29")]]  # none for the holiday, none twice or early
    assert not rows.duplicated(["model_version", "session", "symbol", "run_id"]).any()


def test_an_old_session_sees_the_old_bar(desk):
    """A correction is a new vintage: what looks back reads what was known then, and the day's own report can be made again."""
    settings, cache = load_settings(), desk.folder / "cache"
    seen = {}
    for day in ("2022-11-18", "2022-11-22", "2022-11-25", "2022-11-28", None):
        panel = market.run({"cache": {"folder": cache}}, settings, None if day is None else pd.Timestamp(day)).frames["panel"]
        found = panel[(panel["symbol"] == "CCC") & (panel["session"] == "2022-11-22")]["close"]
        seen[day] = float(found.iloc[0]) if len(found) else None
    assert seen == {"2022-11-18": None, "2022-11-22": desk.before, "2022-11-25": desk.before, "2022-11-28": pytest.approx(desk.before * 1.01), None: pytest.approx(desk.before * 1.01)}
    kinds, found = [], market.current_vintage(cache, "yfinance")
    while found:
        kinds.append((found["kind"], found["last_session"]))
        found = found["parent"] and json.loads((cache / "vendors" / "yfinance" / f"{found['parent']}.json").read_text())
    assert kinds == [("append", "2022-11-29"), ("revision", "2022-11-28"), ("append", "2022-11-25"), ("append", "2022-11-23"), ("append", "2022-11-22"), ("append", "2022-11-21"), ("first", "2022-11-18")]


def test_half_a_bar_is_heard_and_leaves_no_trace(desk):
    """Provisional in what is printed and in JSON; the bar at noon is in no vintage, and the one in the evening is no revision of it."""
    said = desk.live.said
    assert desk.live.code == 0 and said["provisional"] and not said["recorded"] and said["session"] == "2022-11-29" and len(said["predictions"]) == 6, desk.live.text
    assert all(row["provisional"] and row["reason"] == "" for row in said["predictions"])
    bars = market.read_vintage(desk.folder / "cache", "yfinance", market.current_vintage(desk.folder / "cache", "yfinance"))
    stored = bars[bars["session"] == "2022-11-29"].set_index("symbol")["close"]
    final = desk.bars[desk.bars["date"] == "2022-11-29"].set_index("symbol")["close"]
    assert np.allclose(stored, final.reindex(stored.index)) and (stored != desk.noon[desk.noon["date"] == "2022-11-29"].set_index("symbol")["close"].reindex(stored.index)).all()
    desk.vendor.bars = desk.bars
    before = desk.state()
    again = desk.call("2022-11-30 11:00", "predict", "--live", "--symbol", "CCC", "--symbol", "AAA")
    assert again.code == 0 and [row["symbol"] for row in again.said["predictions"]] == ["AAA", "CCC"]
    desk.vendor.now = at("2022-11-30 11:00")
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orchestrator, "keep_predictions", lambda store, settings, made: kept.append(made))
        few = CliRunner().invoke(app, ["predict", "CCC", "--json"])
        assert CliRunner().invoke(app, ["predict", "CCCP"]).exit_code != 0 and len(kept) == 1
    assert [row["symbol"] for row in json.loads(few.stdout)["predictions"]] == ["CCC"] and len(kept[0].frame) == 6, "a session of which one symbol alone were on record would be taken for all of it"
    plain = CliRunner().invoke(app, ["predict", "--live"])
    assert "PROVISIONAL, the bar is not final; not recorded" in plain.stdout
    assert desk.state() == before


@pytest.fixture(scope="module")
def opened(desk):
    """What is at hand on the 29th before its bar, and that session's final bar."""
    made = live.open_desk(Store(), load_settings(), session="2022-11-29")
    rows = desk.bars[desk.bars["date"] == "2022-11-29"].rename(columns={"date": "session"}).reset_index(drop=True)
    return SimpleNamespace(desk=made, bar=rows[list(market.SYNCED)], folder=desk.folder)


def test_features_are_those_of_the_batch(opened):
    """The whole set, bit for bit, and the regimes and probabilities too: with the bar as it was at the close, nothing differs from what the evening computed."""
    settings, session = load_settings(), pd.Timestamp("2022-11-29")
    batch = market.run({"cache": {"folder": opened.folder / "cache"}}, settings, session).frames
    ours = live.extended(opened.desk, live.judge(opened.desk, opened.bar)[0], opened.bar)
    for run, frame in ((features.run, "features"), (regimes.run, "symbol_regimes")):
        there, here = (run({"market": frames}, settings, session).frames[frame] for frames in (batch, ours))
        assert (there.columns == here.columns).all() and len(there) == len(here) > 6000
        pd.testing.assert_frame_equal(there, here, check_exact=True)
    wide = features.run({"market": ours}, settings, session).documents["feature_set"]["names"]
    assert len(wide) >= 150
    with Store().read() as conn:
        rows = pd.DataFrame(conn.execute(db.model_predictions.select()).mappings().all())
    evening = rows[(rows["session"].astype(str) == "2022-11-29")].sort_values("symbol")
    said = live.say(opened.desk, opened.bar).frame.sort_values("symbol")
    for name in ("proba_sell", "proba_hold", "proba_buy"):
        assert np.array_equal(evening[name].to_numpy(), said[name].to_numpy())


def test_a_provisional_prediction_is_refused_by_the_record(opened):
    with pytest.raises(ConfigError, match="provisional"):
        predict.record(Store(), "run", 1, live.say(opened.desk, opened.bar))


def spoilt(bar: pd.DataFrame, symbol: str, **values: float) -> pd.DataFrame:
    return bar.assign(**{name: bar[name].where(bar["symbol"] != symbol, value) for name, value in values.items()})


def test_what_cannot_be_trusted_is_abstained_from(opened):
    """A bar that is missing, without a price, or the size of a split away: silence on that symbol, with the reason; the others are heard as if it were not there."""
    bar = opened.bar
    price = float(bar.loc[bar["symbol"] == "DDD", "close"].iloc[0])
    cases = {"no bar": bar[bar["symbol"] != "DDD"], "no price": spoilt(bar, "DDD", close=np.nan, adj_close=np.nan), "a split or an error": spoilt(bar, "DDD", close=price / 2, adj_close=price / 2)}
    heard = []
    for words, rows in cases.items():
        frame = live.say(opened.desk, rows).frame.set_index("symbol")
        assert frame.at["DDD", "abstain"] and words in frame.at["DDD", "reason"] and np.isnan(frame.at["DDD", "proba_buy"]) and frame["provisional"].all()
        heard.append(frame.drop("DDD")["proba_buy"])
    assert heard[0].equals(heard[1]) and heard[0].equals(heard[2]) and len(heard[0]) == 5


@pytest.mark.parametrize(("change", "words"), [
    (lambda bar: bar[bar["symbol"].isin(["AAA", "^GSPC", "^VIX"])], "1 of 6 symbols have a usable bar"),
    (lambda bar: bar[bar["symbol"] != "^VIX"], r"no \^VIX"),
    (lambda bar: spoilt(bar, "^VIX", close=np.nan), r"no \^VIX"),
    (lambda bar: bar[bar["symbol"] != "^GSPC"], r"no \^GSPC"),
    (lambda bar: spoilt(bar, "^GSPC", close=40.0), "an error, or another index"),
])
def test_a_bar_that_is_not_whole_is_one_clear_error(opened, change, words):
    with pytest.raises(DataError, match=words):
        live.say(opened.desk, change(opened.bar))


def test_what_is_asked_at_the_wrong_time_or_of_the_wrong_day(desk, opened, tmp_path):
    def of(day: str, name: str = "bars.csv") -> str:
        opened.bar.rename(columns={"session": "date"}).assign(date=day).to_csv(tmp_path / name, index=False)
        return str(tmp_path / name)

    night = desk.call("2022-11-29 20:00", "predict", "--live")
    assert night.code == 4 and "No session of XNYS is under way" in night.error and "2022-11-30 14:30 UTC" in night.error
    yesterday = desk.call("2022-11-30 11:00", "predict", "--live", "--bars", of("2022-11-29"))
    assert yesterday.code == 4 and "a bar of 2022-11-29, but 2022-11-30 is looked at" in yesterday.error
    assert desk.call("2022-11-30 11:00", "predict", "--live", "--bars", of("2022-11-30")).code == 0
    stale = desk.call("2022-12-01 11:00", "predict", "--live", "--bars", of("2022-12-01"))
    assert stale.code == 4 and "1 session up to 2022-11-30 are missing" in stale.error and "data sync" in stale.error
    replay = desk.call("2022-12-01 11:00", "predict", "--live", "--as-of", "2022-11-29", "--bars", of("2022-11-29"))
    assert replay.code == 0 and replay.said["provisional"] and replay.said["session"] == "2022-11-29"
    desk.vendor.mode = "500"
    try:
        assert desk.call("2022-11-30 11:00", "predict", "--live").code == 5
    finally:
        desk.vendor.mode = ""
    opened.bar.rename(columns={"session": "date"}).assign(date="2022-11-30", close=np.nan).to_csv(tmp_path / "nan.csv", index=False)
    broken = desk.call("2022-11-30 11:00", "predict", "--live", "--bars", str(tmp_path / "nan.csv"))
    assert broken.code == 4 and "nan.csv, row 2, symbol AAA" in broken.error and "the price is missing" in broken.error
    assert desk.call("2022-11-30 11:00", "predict", "--bars", "x.csv").error.startswith("--bars is for --live")


@pytest.mark.parametrize(("name", "given"), [("", 0.0), ("adj_close", 0.01), ("adjclose", 0.01)])
def test_a_file_without_adjusted_closes_is_read_on_the_scale_of_the_history(tmp_path, name, given):
    """The price has not moved since yesterday, and neither has the adjusted one; a file that has the column is taken at its word."""
    days = pd.DatetimeIndex(["2022-11-28", "2022-11-29"]).as_unit("us")
    panel = pd.DataFrame({"session": days[:1].repeat(2), "symbol": ["AAA", "BBB"], "close": [50.0, 80.0]}).assign(adj_close=lambda rows: 0.85 * rows["close"])
    bars = panel[["symbol", "close"]].assign(date="2022-11-29", volume=1000.0)
    (bars.assign(**{name: panel["adj_close"] * (1 + given)}) if name else bars).to_csv(tmp_path / "today.csv", index=False)
    desk = SimpleNamespace(session=days[1], settings=Settings(), data=SimpleNamespace(panel=panel, index=pd.DataFrame({"session": days[:1]})))
    rows = live.from_file(desk, tmp_path / "today.csv")
    assert rows["adj_close"].isna().all() == (not name)
    kept, reasons = live.judge(desk, rows)
    assert not reasons and np.allclose(kept["adj_close"] / panel["adj_close"] - 1, given) and np.allclose(kept["close"], panel["close"])


def test_a_batch_that_saw_a_provisional_bar_would_be_found(desk, opened, tmp_path):
    """The check has teeth: a sync that takes half a bar for a whole one stores it, and the comparison above sees that."""
    cache = tmp_path / "cache"
    shutil.copytree(desk.folder / "cache" / "vendors", cache / "vendors")
    hasty = load_settings(vendors={"settle_minutes": 0})
    desk.vendor.now, desk.vendor.bars = at("2022-11-30 16:00"), desk.bars.assign(close=desk.bars["close"].where(desk.bars["date"] != "2022-11-30", desk.bars["open"]))
    clock = Clock(desk.vendor.now.tz_convert("UTC").to_pydatetime())
    try:
        for settings, last in ((load_settings(), "2022-11-29"), (hasty, "2022-11-30")):
            vendor, symbols = vendors.vendors_of(settings, cache, clock)[0]
            assert vendors.sync_vendor(vendor, symbols, cache, settings, clock)["last_session"] == last
    finally:
        desk.vendor.bars = desk.bars


NEW_YORK = sessions("XNYS", "2015-01-01", "2024-12-31")
HALF_DAYS = {"2015-11-27", "2015-12-24", "2016-11-25", "2017-07-03", "2017-11-24", "2018-07-03", "2018-11-23", "2018-12-24", "2019-07-03", "2019-11-29", "2019-12-24", "2020-11-27",
             "2020-12-24", "2021-11-26", "2022-11-25", "2023-07-03", "2023-11-24", "2024-07-03", "2024-11-29", "2024-12-24"}


@hypothesis_settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, len(NEW_YORK) - 2), st.integers(-16 * 60, 16 * 60), st.sampled_from([0, 15, 60, 240]))
def test_final_is_close_and_settlement_by_the_clock_on_the_wall(number, minutes, settle):
    """Against the exchange's own hours in local time, written down here: winter and summer time, half-days and holidays, ten years."""
    day = NEW_YORK[number]
    now = (day + pd.Timedelta(hours=16)).tz_localize(ZONE) + pd.Timedelta(minutes=minutes)

    def hours(session: pd.Timestamp) -> tuple[pd.Timestamp, pd.Timestamp]:
        close = "13:00" if str(session.date()) in HALF_DAYS else "16:00"
        return at(f"{session.date()} 09:30"), at(f"{session.date()} {close}")

    near = [hours(session) for session in NEW_YORK[max(number - 3, 0):number + 2]]
    over = [opening for opening, close in near if close + pd.Timedelta(minutes=settle) <= now]
    begun = [opening for opening, _ in near if opening <= now]
    if over:
        final = vendors.last_closed("XNYS", now.tz_convert("UTC"), settle)
        assert final.date() == over[-1].date()
        today, following = vendors.under_way("XNYS", now.tz_convert("UTC"), settle)
        assert (today and today.date()) == (begun[-1].date() if begun[-1] != over[-1] else None)
        assert following == next((opening for opening, _ in near if opening > now), following)


def test_there_is_a_champion_and_it_is_the_same_all_along(desk):
    assert registry.champion(Store())["name"] == "production_v1"
