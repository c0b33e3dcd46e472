"""Vendor trouble is normal: every fault on the loopback interface, through the real yfinance and the real requests."""
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chaos import ZONE, Chaos, closed_port
from conftest import ROOT
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mltrader import intake, market, reports, vendors
from mltrader.cli import app
from mltrader.config import Settings, VendorSettings
from mltrader.core import Clock, ConfigError, IntegrityError, MltraderError, VendorError, digest_file
from mltrader.quality import sessions

DAYS = sessions("XNYS", "2023-03-01", "2024-03-08")
TUESDAY, WEDNESDAY, THURSDAY = DAYS[-4:-1]
SYMBOLS = ("AAA", "BBB", "CCC", "DDD")
SERIES = ("VIXCLS", "DGS3MO", "DGS2", "DGS10")
HASTE = {"start": "2023-03-01", "attempts": 3, "timeout_seconds": 0.3, "deadline_seconds": 1.4, "backoff_seconds": 0.02, "breaker_failures": 2, "overlap_sessions": 5}
BOUND = HASTE["attempts"] * HASTE["breaker_failures"]  # data requests that fail before the host is left alone


def bars(symbols=(*SYMBOLS, "^GSPC", "^VIX"), days=DAYS) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    close = np.round(100 * np.exp(rng.normal(0, 0.01, (len(symbols), len(days))).cumsum(axis=1)), 4).ravel()
    return pd.DataFrame({"symbol": np.repeat(symbols, len(days)), "date": np.tile(days, len(symbols)), "open": close, "high": close * 1.01, "low": close * 0.99,
                         "close": close, "adj_close": close * 0.9, "volume": np.floor(rng.uniform(1e5, 1e6, len(close)))})


def series(days=DAYS) -> pd.DataFrame:
    values = {name: np.round(4 + np.arange(len(days)) * 1e-3 + place, 2) for place, name in enumerate(SERIES)}
    frame = pd.DataFrame({"date": days, **values})
    frame.loc[[20, 90], ["DGS3MO", "DGS2", "DGS10"]] = np.nan  # bond holidays
    return frame


def evening(day: pd.Timestamp, at: str = "20:00") -> Clock:
    return Clock(pd.Timestamp(f"{day.date()} {at}", tz=ZONE).tz_convert("UTC").to_pydatetime())


def settings(**sections) -> Settings:
    base = {"market": {"provider": "yfinance"}, "universe": {"symbols": SYMBOLS}, "vendors": HASTE}
    return Settings.model_validate({name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}})


@pytest.fixture
def chaos():
    server = Chaos(bars(), series())
    yield server
    server.close()


def sync(which: str, url: str, cache: Path, day, wanted: Settings | None = None):
    """One sync of one vendor; returns its result (or error), the vendor, and the seconds it took."""
    wanted = wanted or settings()
    patience = vendors.Patience(wanted.vendors)
    clock = day if isinstance(day, Clock) else evening(day)
    if which == "yfinance":
        vendor, symbols = vendors.YFinance(patience, cache / "yfinance", url, clock=clock), market.synced_symbols(wanted)
    else:
        vendor, symbols = vendors.Fred(patience, f"{url}/fredgraph.csv", clock), SERIES
    begin = time.monotonic()
    try:
        found = vendors.sync_vendor(vendor, symbols, cache, wanted, clock)
    except MltraderError as error:
        found = error
    return found, vendor, time.monotonic() - begin


def state(cache: Path, which: str) -> dict[str, str]:
    """Hash of each file of a vendor's folder."""
    return {path.name: digest_file(path) for path in sorted((cache / "vendors" / which).iterdir())}


def whole(cache: Path, which: str) -> dict:
    """The vintage in force, after checking that it is complete and is what its hashes say."""
    manifest = market.current_vintage(cache, which)
    rows = market.read_vintage(cache, which, manifest)
    assert rows.groupby("symbol").size().to_dict() == {symbol: span["rows"] for symbol, span in manifest["symbols"].items()}
    assert not rows.duplicated(["symbol", "session"]).any()
    return manifest


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A cache with Tuesday's vintage of both vendors."""
    server, cache = Chaos(bars(), series()), tmp_path_factory.mktemp("shelf")
    for which in ("yfinance", "fred"):
        done, _, _ = sync(which, server.url, cache, TUESDAY)
        assert done["status"] == "first" and whole(cache, which)["last_session"] == str(TUESDAY.date())
    server.close()
    return cache


@pytest.fixture
def stored(shelf, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(shelf / "vendors", tmp_path / "vendors")
    return tmp_path


FAULTS = ("latency", "drip", "header drip", "429", "429 1", "429 3600", "429 date", "500", "503", "truncated", "broken gzip", "broken text", "html", "empty", "changed columns", "hangs up")


SAYS = {"429": "HTTP 429", "429 3600": "asks to come back after 3600 s", "500": "HTTP 500", "html": "web page", "empty": "empty answer", "changed columns": "changed its"}


@pytest.mark.parametrize("which", ["yfinance", "fred"])
@pytest.mark.parametrize("mode", [*FAULTS, "refused", "no such host"])
def test_a_vendor_that_fails_changes_nothing(chaos, stored, which, mode):
    """Exit 5, in bounded time, after a bounded number of requests, with the vintage before untouched."""
    before = state(stored, which)
    chaos.mode = mode
    url = {"refused": f"http://127.0.0.1:{closed_port()}", "no such host": "http://vendor.invalid"}.get(mode, chaos.url)
    error, vendor, seconds = sync(which, url, stored, WEDNESDAY)
    assert isinstance(error, VendorError) and error.exit_code == 5, error
    assert "othing was stored" in str(error) and SAYS.get(mode, "") in str(error), error
    assert len(chaos.data_requests()) <= BOUND and len(chaos.asked) <= 3 * BOUND + 6, chaos.asked
    assert vendor.patience.lost <= HASTE["deadline_seconds"] + 0.5 and seconds < HASTE["deadline_seconds"] + 5
    assert state(stored, which) == before
    whole(stored, which)
    chaos.mode = ""
    again, _, _ = sync(which, chaos.url, stored, WEDNESDAY)  # and the day after all is well
    assert again["status"] == "append" and again["rows_added"] == len(again["symbols"])


@pytest.mark.parametrize("which", ["yfinance", "fred"])
@pytest.mark.parametrize("mode", ["429", "429 1", "503", "500", "truncated", "broken gzip", "broken text", "html", "empty", "hangs up"])
def test_trouble_that_passes_is_survived(chaos, tmp_path, which, mode):
    """The first data requests fail; the sync succeeds, and has waited as long as it was asked to."""
    chaos.mode, chaos.times = mode, 1 if mode == "429 1" else 2
    done, vendor, seconds = sync(which, chaos.url, tmp_path, TUESDAY)
    assert done["status"] == "first", done
    assert whole(tmp_path, which)["last_session"] == str(TUESDAY.date())
    if mode == "429 1":
        assert vendor.patience.lost >= 1.0 and seconds >= 1.0


def test_cookies_that_nobody_needs_do_not_use_up_the_patience(chaos, tmp_path):
    """The hosts for cookies and crumbs are silent, as behind many a proxy; the chart service answers."""
    from yfinance.data import YfData

    YfData()._crumb = None  # another test may have left one in this process
    chaos.silent_cookies = True
    done, vendor, _ = sync("yfinance", chaos.url, tmp_path, TUESDAY)
    assert done["status"] == "first" and 0 < vendor.patience.lost < HASTE["deadline_seconds"] / 2
    assert len(chaos.asked) - len(chaos.data_requests()) <= 3


@pytest.mark.parametrize("change", ["half of the symbols", "yesterday's data", "an unknown symbol", "many empty rows", "no history", "shorter history"])
def test_a_partial_set_is_never_published(chaos, stored, change):
    before, wanted, rows, said = state(stored, "yfinance"), settings(), chaos.bars, "CCC"
    if change == "half of the symbols":
        chaos.bars = rows[~rows["symbol"].isin(["CCC", "DDD"])]
    elif change == "yesterday's data":
        chaos.bars, said = rows[rows["date"] <= TUESDAY], f"no bar of {WEDNESDAY.date()}"
    elif change == "an unknown symbol":
        wanted, said = settings(universe={"symbols": (*SYMBOLS, "NOPE")}), "has no bars of NOPE (No data found, symbol may be delisted)"
    elif change == "many empty rows":
        chaos.bars = rows.assign(close=rows["close"].where((rows["symbol"] != "CCC") | ~rows["date"].isin(DAYS[4::9].append(DAYS[-6:-5]))))
    elif change == "no history":
        chaos.bars = rows[(rows["symbol"] != "CCC") | (rows["date"] == WEDNESDAY)]
    else:
        chaos.bars = rows[(rows["symbol"] != "CCC") | (rows["date"] > "2023-09-01")].copy()
        chaos.bars.loc[chaos.bars["symbol"] == "CCC", list(intake.PRICES)] /= 2
    error, _, _ = sync("yfinance", chaos.url, stored, WEDNESDAY, wanted)
    assert isinstance(error, vendors.Refused) and error.exit_code == 5 and said in str(error), error
    assert state(stored, "yfinance") == before


@pytest.mark.parametrize("mode", ["500", "half"])
def test_degradation_is_marked_and_goes_away(chaos, tmp_path, monkeypatch, mode):
    """The last good vintage stays in force, marked; the market report, the inputs of its task and `status` say so."""
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    cache, wanted = tmp_path / "cache", settings(vendors={"on_failure": "degrade"})
    assert isinstance(sync("yfinance", f"http://127.0.0.1:{closed_port()}", cache, TUESDAY, wanted)[0], VendorError)  # nothing to fall back on
    first, _, _ = sync("yfinance", chaos.url, cache, TUESDAY, wanted)
    reports.write_inputs(wanted, None, None)
    rows, kept = chaos.bars, {name: sha for name, sha in state(cache, "yfinance").items() if name != "current.json"}
    if mode == "half":
        chaos.bars = rows[~rows["symbol"].isin(["CCC", "DDD"])]
    else:
        chaos.mode = mode
    done, _, _ = sync("yfinance", chaos.url, cache, WEDNESDAY, wanted)
    assert done["status"] == "degraded" and done["vintage"] == first["vintage"]
    assert done["degraded"]["since"] == str(TUESDAY.date()) and done["degraded"]["missing"] == (["CCC", "DDD"] if mode == "half" else [])
    assert {name: sha for name, sha in state(cache, "yfinance").items() if name != "current.json"} == kept
    output = market.run({"cache": {"folder": cache}}, wanted)
    assert f"DEGRADED: yfinance is stale since {TUESDAY.date()}" in output.documents["summary"]["degraded"][0]
    assert "DEGRADED" in market.figure(output).finding
    assert market.remarks(output)["message"].str.contains("stale since").any()
    assert reports.vendor_state(wanted)["yfinance"]["degraded"]["since"] == str(TUESDAY.date())
    assert reports.write_inputs(wanted, None, None) == ["market"]
    chaos.bars, chaos.mode = rows, ""
    again, _, _ = sync("yfinance", chaos.url, cache, WEDNESDAY, wanted)
    assert again["status"] == "append" and market.current_vintage(cache, "yfinance")["degraded"] is None
    assert reports.write_inputs(wanted, None, None) == ["market"]
    assert market.run({"cache": {"folder": cache}}, wanted).documents["summary"]["degraded"] == []


def test_the_whole_way(chaos, tmp_path):
    """Sync, run, sync again (only new sessions travel), a split (new vintage, old files byte-identical), run again."""
    wanted = settings(market={"fred": True})
    for which in ("yfinance", "fred"):
        assert sync(which, chaos.url, tmp_path, TUESDAY, wanted)[0]["status"] == "first"
    output = market.run({"cache": {"folder": tmp_path}}, wanted)
    panel, index, summary = output.frames["panel"], output.frames["index"], output.documents["summary"]
    assert list(panel.columns) == list(intake.PANEL) and list(index.columns) == list(intake.INDEX)
    assert summary["as_of"] == summary["declared_end"] == str(TUESDAY.date()) and summary["symbols"] == 4
    assert panel[["session", "symbol"]].equals(panel[["session", "symbol"]].sort_values(["session", "symbol"], ignore_index=True))
    truth = chaos.bars[chaos.bars["symbol"].isin(SYMBOLS) & (chaos.bars["date"] <= TUESDAY)].sort_values(["date", "symbol"])
    assert np.allclose(panel[list(intake.NUMBERS)], truth[list(intake.NUMBERS)], rtol=1e-12)  # the vendor's own adj_close, nothing adjusted
    assert (index["vix_close"] > 0).all() and index[["vix_open", "vix_high", "vix_low"]].isna().all(axis=None)
    assert index["rate_10y"].notna().all() and index["rate_10y"].iloc[20] == index["rate_10y"].iloc[19]  # carried over the bond holiday
    assert summary["vix_source"].startswith("VIX close (FRED") and "yfinance" in summary["index_source"]
    pictures = market.figure(output), market.table(output), market.remarks(output)
    assert all(part is not None for part in pictures)

    files = {name: sha for name, sha in state(tmp_path, "yfinance").items() if name != "current.json"}
    chaos.forget()
    second, vendor, _ = sync("yfinance", chaos.url, tmp_path, WEDNESDAY, wanted)
    assert second["status"] == "append" and {row["rows_added"] for row in second["symbols"]} == {1}
    assert set(chaos.rows.values()) == {HASTE["overlap_sessions"] + 1}  # rows that travelled, per symbol
    assert len(chaos.data_requests()) == len(chaos.rows) == 5  # one request a symbol: the time zones are remembered
    assert vendor.patience.requests == len(chaos.asked)

    chaos.forget()
    nothing, _, _ = sync("yfinance", chaos.url, tmp_path, WEDNESDAY, wanted)
    assert nothing["status"] == "current" and chaos.asked == []  # up to date: nobody is asked

    split = chaos.bars["symbol"] == "BBB"
    chaos.bars.loc[split, list(intake.PRICES)] /= 10
    chaos.bars.loc[split, "volume"] *= 10
    third, _, _ = sync("yfinance", chaos.url, tmp_path, THURSDAY, wanted)
    told = {row["symbol"]: row for row in third["symbols"]}
    assert third["status"] == "revision" and told["BBB"]["revised_from"] == str(DAYS[0].date()) and told["BBB"]["largest_change"] == pytest.approx(0.9)
    assert [s for s, row in told.items() if row["kind"] == "revision"] == ["BBB"] and told["AAA"]["rows_added"] == 1
    assert files.items() <= state(tmp_path, "yfinance").items()  # what the first run used is still there, byte by byte
    later = market.run({"cache": {"folder": tmp_path}}, wanted)
    assert later.documents["summary"]["data_digest"] != summary["data_digest"]
    after = later.frames["panel"].query("symbol == 'BBB'")["close"].to_numpy()
    assert np.allclose(after, chaos.bars.loc[split & (chaos.bars["date"] <= THURSDAY), "close"])
    manifest, chain = whole(tmp_path, "yfinance"), []
    while manifest:
        chain.append(manifest["kind"])
        parent = manifest["parent"]
        manifest = parent and json.loads((tmp_path / "vendors" / "yfinance" / f"{parent}.json").read_bytes())
    assert chain == ["revision", "append", "first"]


def test_the_last_bar_changed_and_a_dividend_are_revisions(chaos, stored):
    last = (chaos.bars["symbol"] == "AAA") & (chaos.bars["date"] == TUESDAY)
    chaos.bars.loc[last, "close"] *= 1.002
    chaos.bars.loc[(chaos.bars["symbol"] == "DDD") & (chaos.bars["date"] < WEDNESDAY), "adj_close"] *= 0.99
    done, _, _ = sync("yfinance", chaos.url, stored, WEDNESDAY)
    told = {row["symbol"]: row for row in done["symbols"] if row["kind"] == "revision"}
    assert {s: (row["revised_from"], row["columns"]) for s, row in told.items()} == {
        "AAA": (str(TUESDAY.date()), "close"), "DDD": (str(DAYS[0].date()), "adj_close")}
    assert [r["symbol"] for r in whole(stored, "yfinance")["revisions"]] == ["AAA", "DDD"]


def test_a_session_that_trades_is_not_stored(chaos, tmp_path):
    done, _, _ = sync("yfinance", chaos.url, tmp_path, evening(WEDNESDAY, "15:30"))
    assert done["last_session"] == str(TUESDAY.date())
    done, _, _ = sync("yfinance", chaos.url, tmp_path, evening(WEDNESDAY, "16:59"))
    assert done["status"] == "current"
    done, _, _ = sync("yfinance", chaos.url, tmp_path, evening(WEDNESDAY, "17:00"))  # 60 minutes after the close
    assert done["last_session"] == str(WEDNESDAY.date())


def test_single_faulty_rows_are_left_out_and_recorded(chaos, tmp_path):
    rows = chaos.bars.copy().reset_index(drop=True)
    rows.loc[5, ["open", "high", "low", "close", "adj_close"]] = np.nan  # AAA: an empty row
    rows.loc[9, "high"] = rows.loc[9, "low"] / 2
    rows.loc[12, "adj_close"] = -1.0
    rows = pd.concat([rows, rows.iloc[[30]], rows.iloc[[40]].assign(date=pd.Timestamp("2023-07-04"))]).sort_values(["symbol", "date"], kind="stable")
    chaos.bars = rows.reset_index(drop=True)
    done, _, _ = sync("yfinance", chaos.url, tmp_path, TUESDAY)
    assert done["status"] == "first", done
    manifest = whole(tmp_path, "yfinance")
    reasons = {(symbol, day): reason for symbol, day, reason in manifest["left_out"]}
    assert {symbol for symbol, _ in reasons} == {"AAA"}
    assert "not a session" in reasons["AAA", "2023-07-04"] and "high is below low" in reasons["AAA", str(DAYS[9].date())]
    assert "above 0" in reasons["AAA", str(DAYS[12].date())]
    assert manifest["symbols"]["AAA"]["rows"] == manifest["symbols"]["BBB"]["rows"] - 3


def test_a_symbol_that_ended_needs_the_users_word(chaos, stored):
    chaos.bars = chaos.bars[chaos.bars["symbol"] != "DDD"]
    error, _, _ = sync("yfinance", chaos.url, stored, WEDNESDAY)
    assert isinstance(error, vendors.Refused) and error.symbols == ["DDD"] and "vendors.ended" in str(error)
    done, _, _ = sync("yfinance", chaos.url, stored, WEDNESDAY, settings(vendors={"ended": ["DDD"]}))
    assert done["status"] == "append" and done["rows_added"] == 5
    assert whole(stored, "yfinance")["symbols"]["DDD"]["last"] == str(TUESDAY.date())  # its history is kept


def test_new_symbols_and_more_history_are_fetched_whole(chaos, tmp_path):
    late = settings(vendors={"start": "2023-09-01"}, universe={"symbols": ("AAA", "BBB")})
    sync("yfinance", chaos.url, tmp_path, TUESDAY, late)
    done, _, _ = sync("yfinance", chaos.url, tmp_path, WEDNESDAY, settings(vendors={"start": "2023-09-01"}, universe={"symbols": ("AAA", "BBB", "CCC")}))
    assert done["status"] == "append" and {row["symbol"]: row["rows_added"] for row in done["symbols"]}["CCC"] > 100
    done, _, _ = sync("yfinance", chaos.url, tmp_path, WEDNESDAY)
    assert {span["first"] for span in whole(tmp_path, "yfinance")["symbols"].values()} == {str(DAYS[0].date())}


@pytest.mark.parametrize(("step", "moment"), [(0, "before"), (1, "before"), (2, "before"), (2, "after")])  # rows, manifest, pointer
@pytest.mark.parametrize("kind", ["first", "append", "revision"])
def test_killed_on_the_way_the_old_vintage_is_in_force(tmp_path, kind, step, moment):
    """Whatever was written when it ended, the pointer names a complete vintage: the old one, or (after the last rename) the new one."""
    cache, rows = tmp_path, bars(("AAA", "BBB"), DAYS[-40:])

    class AtHand:
        name, lag_sessions, prices, patience = "hand", 0, True, vendors.Patience(VendorSettings())

        def bars(self, symbols, start, end):
            return rows[rows["symbol"].isin(symbols) & rows["date"].between(start, end)]

    def go(day):
        return vendors.sync_vendor(AtHand(), ("AAA", "BBB"), cache, settings(), evening(day))

    if kind != "first":
        go(TUESDAY)
    if kind == "revision":
        rows.loc[rows["symbol"] == "AAA", list(intake.PRICES)] /= 3
    before = market.current_vintage(cache, "hand")
    real, count = os.replace, iter(range(9))

    def replace(source, target):
        if next(count) != step:
            return real(source, target)
        if moment == "after":
            real(source, target)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            go(WEDNESDAY)
    after = market.current_vintage(cache, "hand")
    if step == 2 and moment == "after":
        assert after != before and whole(cache, "hand")["last_session"] == str(WEDNESDAY.date())
    else:
        assert after == before
    assert go(WEDNESDAY)["status"] in {"current", kind}
    assert whole(cache, "hand")["last_session"] == str(WEDNESDAY.date())


def test_damage_is_found(stored):
    folder, wanted = stored / "vendors" / "yfinance", settings()
    for pattern in ("*.parquet", "[0-9a-f]*[0-9a-f].json", "current.json"):
        path = next(path for path in sorted(folder.glob(pattern)) if pattern == "current.json" or path.name != "current.json")
        good = path.read_bytes()
        path.write_bytes(good[:-5])
        with pytest.raises(IntegrityError, match="mltrader data sync"):
            market.read_synced(stored, wanted)
        path.write_bytes(good)
    assert len(market.read_synced(stored, wanted).panel) == 4 * (len(DAYS) - 3)
    with pytest.raises(VendorError, match="mltrader data sync"):
        market.read_synced(stored, settings(universe={"symbols": ("AAA", "ZZZ")}))


CHART = Chaos.chart(SimpleNamespace(bars=bars(("AAA",), DAYS[-3:]), rows={}, now=None), "AAA", {"range": "1d"})[1]


@given(st.one_of(st.binary(max_size=60), st.tuples(st.integers(0, len(CHART) - 1), st.binary(max_size=6)).map(lambda t: CHART[:t[0]] + t[1] + CHART[t[0] + len(t[1]):]),
                 st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                     st.sampled_from(["chart", "result", "error", "timestamp", "indicators", "quote", "adjclose"]), inner, max_size=4), max_leaves=12).map(lambda x: json.dumps(x).encode())),
       st.sampled_from([200, 301, 400, 401, 404, 429, 500]))
def test_no_answer_of_yahoo_is_a_traceback(body, status):
    try:
        vendors.check_chart("host", status, {}, body, Clock())
    except vendors.Trouble as trouble:
        assert str(trouble)


@given(st.one_of(st.text(max_size=80), st.lists(st.text("0123456789-.,\"'\n a", max_size=20), max_size=6).map(lambda rows: "observation_date,DGS2,DGS10\n" + "\n".join(rows) + "\n")))
def test_no_file_of_fred_is_a_traceback(text):
    try:
        rows = vendors.read_series("host", text, ["DGS2", "DGS10"])
        assert list(rows.columns) == list(vendors.LONG)
    except vendors.Trouble as trouble:
        assert str(trouble)


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 119), st.sampled_from(intake.NUMBERS), st.floats(2e-3, 3)), max_size=5), st.sets(st.integers(0, 119), max_size=3))
def test_differences_are_found_where_they_are_and_nowhere_else(edits, gone):
    stored, _ = vendors.clean(bars(("AAA", "BBB", "CCC"), DAYS[-40:]), vendors.YFinance(None, Path()), DAYS)
    fresh, touched = stored.copy(), {}
    for at, column, factor in edits:
        fresh.loc[at, column] = stored.loc[at, column] * (1 + factor)
    for at in [*gone, *(at for at, _, _ in edits)]:
        symbol, session = stored.loc[at, "symbol"], stored.loc[at, "session"]
        touched[symbol] = min(session, touched.get(symbol, session))
    told = vendors.differences(stored, fresh.drop(index=list(gone)))
    assert dict(zip(told["symbol"], told["first_session"], strict=True)) == {symbol: str(day.date()) for symbol, day in touched.items()}


class FakeTime:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


@pytest.mark.parametrize("takes", [0.0, 3.0, 10.0, 19.9, 1e9])
def test_the_worst_case_with_the_default_settings(tmp_path, monkeypatch, takes):
    """200 symbols, each request failing after `takes` seconds of a faked clock, both vendors in one sync: at most 120 s."""
    import requests
    from curl_cffi import requests as curl

    fake, calls, clock, wanted = FakeTime(), [], evening(TUESDAY), settings(vendors=VendorSettings(start="2023-03-01").model_dump())
    wanted = wanted.model_copy(update={"vendors": VendorSettings(start="2023-03-01")})

    def curl_request(self, method, url, timeout=None, **_):
        calls.append(url)
        fake.sleep(min(takes, timeout))
        raise curl.exceptions.Timeout("timed out", 28)

    def get(url, timeout=None, **_):
        calls.append(url)
        fake.sleep(min(takes, timeout))
        raise requests.ConnectionError("no")

    monkeypatch.setattr(curl.Session, "request", curl_request)
    monkeypatch.setattr(requests, "get", get)
    yahoo = vendors.YFinance(vendors.Patience(wanted.vendors, fake.now, fake.sleep), tmp_path / "yfinance", clock=clock)
    fred = vendors.Fred(vendors.Patience(wanted.vendors, fake.now, fake.sleep), clock=clock)
    names = tuple(f"S{n}" for n in range(200))
    with pytest.raises(VendorError) as caught:
        vendors.sync_all([(yahoo, names), (fred, SERIES)], tmp_path, wanted, clock)
    assert "Yahoo fails" in str(caught.value) and "FRED fails" in str(caught.value)
    assert fake.at <= 2 * wanted.vendors.deadline_seconds + 1e-6 <= 120
    assert len([url for url in calls if "/v8/" in url]) <= 12 and len([url for url in calls if "fredgraph" in url]) <= 4
    assert len(calls) <= 40, calls


def test_a_vintage_outdates_the_market_task(chaos, tmp_path, monkeypatch):
    monkeypatch.setenv("MLTRADER_HOME", str(tmp_path))
    wanted = settings(market={"fred": True})
    reports.write_inputs(wanted, None, None)
    for which, day, outdated in (("yfinance", TUESDAY, ["market"]), ("fred", TUESDAY, ["market"]), ("yfinance", TUESDAY, []), ("yfinance", WEDNESDAY, ["market"])):
        sync(which, chaos.url, tmp_path / "cache", day, wanted)
        assert reports.write_inputs(wanted, None, None) == outdated
    patient = wanted.model_copy(update={"vendors": VendorSettings(attempts=5)})
    assert reports.write_inputs(patient, None, None) == []  # patience is no input of any task


def test_what_is_over_by_a_calendar_that_begins_after_1990():
    """Tokyo's begins in 1997: its sessions open and close by its own hours."""
    for moment, over, today in (("2024-07-02 05:00", "2024-07-01", "2024-07-02"), ("2024-07-02 07:30", "2024-07-02", None)):
        assert str(vendors.last_closed("XTKS", pd.Timestamp(moment, tz="UTC"), 60).date()) == over
        now, _ = vendors.under_way("XTKS", pd.Timestamp(moment, tz="UTC"), 60)
        assert (now if now is None else str(now.date())) == today


def test_fred_beside_a_file(chaos, tmp_path):
    """A csv panel with `market.fred`: VIX and rates come from FRED, unless a file is named."""
    sync("fred", chaos.url, tmp_path, TUESDAY)
    path = tmp_path / "bars.csv"
    bars(SYMBOLS).to_csv(path, index=False)
    wanted = Settings.model_validate({"market": {"provider": "csv", "path": str(path), "fred": True}})
    index = market.run({"cache": {"folder": tmp_path}}, wanted).frames["index"]
    known = index["session"] <= TUESDAY
    assert index.loc[known, ["vix_close", "rate_3m", "rate_2y", "rate_10y"]].notna().all(axis=None) and index.loc[~known, "vix_close"].isna().all()
    assert index["rate_10y"].median() == pytest.approx(series()["DGS10"].median(), abs=0.01)  # percent, as it came
    series()[["date"]].assign(close=20.0).to_csv(tmp_path / "vix.csv", index=False)
    own = Settings.model_validate({"market": {**wanted.market.model_dump(), "vix_path": str(tmp_path / "vix.csv")}})
    assert (market.run({"cache": {"folder": tmp_path}}, own).frames["index"]["vix_close"] == 20).all()
    with pytest.raises(VendorError, match="mltrader data sync"):
        market.run({"cache": {"folder": tmp_path / "elsewhere"}}, wanted)


def test_without_the_extra_it_is_one_line(tmp_path, monkeypatch):
    import importlib

    def no_module(name, *_):
        raise ImportError(f"No module named {name}", name=name)

    monkeypatch.setattr(importlib, "import_module", no_module)
    with pytest.raises(ConfigError, match=r"pip install 'mltrader\[data\]'"):
        vendors.YFinance(vendors.Patience(VendorSettings()), tmp_path).bars(["AAA"], TUESDAY, WEDNESDAY)


def test_status_says_what_is_in_force(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mltrader.store import Store

    for name, value in {"MLTRADER_HOME": str(tmp_path), "MLTRADER_MARKET__PROVIDER": "yfinance", "MLTRADER_UNIVERSE__SYMBOLS": "AAA"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    Store()
    assert "run `mltrader data sync`" in CliRunner().invoke(app, ["status"]).stdout
    vendors.point(tmp_path / "cache" / "vendors" / "yfinance", "a" * 64, Clock(), {"since": "2024-03-01", "at": "", "reason": "", "missing": []})
    assert "vintage aaaaaaaaaaaa; yfinance DEGRADED, stale since 2024-03-01" in CliRunner().invoke(app, ["status"]).stdout


def test_what_yfinance_only_prints_is_said(chaos, tmp_path, monkeypatch, capfd):
    """An error inside yfinance (here: its own cache) gives an empty table and a line in its log; the refusal quotes it, and nothing is printed."""
    from yfinance.base import TickerBase

    def broken(self, timeout):
        raise OSError("unable to open database file")

    monkeypatch.setattr(TickerBase, "_get_ticker_tz", broken)
    error, _, _ = sync("yfinance", chaos.url, tmp_path, TUESDAY)
    assert isinstance(error, vendors.Refused) and "has no bars of AAA" in str(error) and "unable to open database file" in str(error)
    assert capfd.readouterr().err == ""


class TestCommand:
    """`mltrader data sync` for a vendor, against the loopback server."""

    @pytest.fixture
    def call(self, chaos, tmp_path, monkeypatch):
        from typer.testing import CliRunner

        monkeypatch.chdir(ROOT)
        environment = {"MLTRADER_HOME": str(tmp_path), "MLTRADER_MARKET__PROVIDER": "yfinance", "MLTRADER_MARKET__FRED": "true",
                       "MLTRADER_UNIVERSE__SYMBOLS": ",".join(SYMBOLS), **{f"MLTRADER_VENDORS__{key.upper()}": str(value) for key, value in HASTE.items()}}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        real = vendors.vendors_of

        def here(settings, cache, clock=None, **options):
            return real(settings, cache, None, chaos.url, f"{chaos.url}/fredgraph.csv", **options)

        def go(*arguments, day=TUESDAY):
            monkeypatch.setattr(vendors, "vendors_of", here)
            monkeypatch.setattr(Clock, "now", lambda self: self.fixed or evening(day).fixed)
            return CliRunner().invoke(app, ["data", "sync", *arguments])
        return go

    def test_says_what_it_did(self, call, chaos, tmp_path):
        dry = call("--dry-run")
        assert dry.exit_code == 0 and "would fetch 5 of 5 series" in dry.stdout and chaos.asked == [] and not (tmp_path / "cache").exists()
        first = call("--json")
        value = json.loads(first.stdout)
        assert [r["status"] for r in value["results"]] == ["first", "first"] and "5 of 5 symbols" in first.stderr
        split = chaos.bars["symbol"] == "BBB"
        chaos.bars.loc[split, list(intake.PRICES)] /= 2
        dry = json.loads(call("--dry-run", "--json", day=WEDNESDAY).stdout)
        assert dry["plan"]["yfinance"]["AAA"] == str(DAYS[-8].date())  # five stored sessions again
        second = call(day=WEDNESDAY)
        assert second.exit_code == 0 and "yfinance: revision" in second.stdout and "BBB: history revised by the vendor from 2023-03-01" in second.stdout
        assert "AAA: 1 rows added" in second.stdout and "by up to 50.00%" in second.stdout

    def test_ends_with_5_and_says_what_to_do(self, call, chaos, monkeypatch, capsys):
        chaos.mode = "500"
        from mltrader import cli

        done = call()
        assert isinstance(done.exception, VendorError) and done.exception.exit_code == 5  # `main` turns it into one line and the code
        monkeypatch.setattr("sys.argv", ["mltrader", "data", "sync"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert ended.value.code == 5 and said.out == "" and said.err.count("\n") == 1 and said.err.startswith("mltrader: Yahoo fails")
        assert "run `mltrader data sync` again later" in said.err and "FRED fails" in said.err
