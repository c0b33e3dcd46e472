"""Bad input: each malformed file or frame is normalised and said so, or refused by row and column; nothing else ever comes out.

`tests/test_market.py` holds some 55 more refused cells, symbols and files. Nothing in the package writes csv or Excel files, so that no cell needs a
prefix against formulas; a symbol such as `CL=F` is data.
"""
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltrader import intake, market, quality
from mltrader.config import Settings
from mltrader.core import DataError

DAYS = quality.sessions("XNYS", "2021-01-04", "2021-03-31")
COLUMNS = ["symbol", "date", "open", "high", "low", "close", "adj_close", "volume"]


def bars(symbol: str = "AAA", n: int = 12, seed: int = 0) -> pd.DataFrame:
    close = np.round(50 * np.exp(np.random.default_rng(seed).normal(0, 0.01, n).cumsum()), 4)
    return pd.DataFrame({"symbol": symbol, "date": DAYS[:n].strftime("%Y-%m-%d"), "open": close, "high": close * 1.01, "low": close * 0.99, "close": close,
                         "adj_close": close * 0.9, "volume": 1000.0})


def text(frame: pd.DataFrame | None = None) -> str:
    return (bars() if frame is None else frame).to_csv(index=False)


def cell(column: str, value: object, at: int = 5) -> bytes:
    frame = bars().astype("object")
    frame.loc[at, column] = value
    return frame.to_csv(index=False).encode()


def table(**changes: object) -> bytes:
    """A Parquet file of good bars with some columns replaced (None: left out)."""
    frame = bars()
    arrays = {name: pa.array(frame[name]) for name in COLUMNS}
    arrays |= changes
    sink = io.BytesIO()
    pq.write_table(pa.table({name: array for name, array in arrays.items() if array is not None}), sink)
    return sink.getvalue()


def judge(path: Path, content: bytes, **options: object) -> market.TaskOutput:
    path.write_bytes(content)
    kind = "parquet" if path.suffix == ".parquet" else "csv"
    return market.run({}, Settings.model_validate({"market": {"provider": kind, "path": str(path), **options}}), None)


# name: (content, words of the message); a fault of a cell names row 7 (the header is row 1) and the symbol
CELLS = {
    "overflow": (cell("close", "1e309"), "close = 'inf'"),
    "minus infinity": (cell("open", "-Infinity"), "open = '-inf'"),
    "thousands": (cell("close", "1,234.5"), "not a number.*close = '1,234.5'"),
    "comma decimals": (cell("low", "1.234,5"), "not a number.*low"),
    "currency": (cell("high", "$51"), "not a number.*high"),
    "percent": (cell("close", "51%"), "not a number.*close"),
    "hexadecimal": (cell("close", "0x33"), "not a number.*close"),
    "underscore": (cell("close", "5_1"), "not a number.*close"),
    "dash": (cell("close", "-"), "not a number.*close"),
    "excel error": (cell("close", "#N/A"), "not a number.*close"),
    "full-width digits": (cell("close", "５１"), "not a number.*close"),
    "unicode minus": (cell("close", "−51"), "not a number.*close"),
    "two numbers": (cell("close", "51 52"), "not a number.*close"),
    "formula": (cell("close", "=1+1"), "not a number.*close"),
    "huge price": (cell("adj_close", "1e308"), "no price.*adj_close"),
    "tiny price": (cell("adj_close", "5e-324"), "no price.*adj_close"),
    "huge volume": (cell("volume", "1e300"), "no volume.*volume"),
    "far future": (cell("date", "9999-12-31"), "a date before 1800 or after 2261"),
    "negative zero": (cell("close", "-0.0"), "above 0.*close"),
    "volume overflow": (cell("volume", "1e400"), "infinite.*volume"),
    "volume text": (cell("volume", "1.2M"), "not a number.*volume"),
    "missing close": (cell("close", ""), "missing.*close"),
    "date without zeros": (cell("date", "2021-1-4"), "not a date.*date"),
    "date without dashes": (cell("date", "20210111"), "not a date.*date"),
    "german date": (cell("date", "11.01.2021"), "not a date.*date"),
    "excel serial": (cell("date", "44207"), "not a date.*date"),
    "epoch": (cell("date", "1610323200"), "not a date.*date"),
    "week date": (cell("date", "2021-W02-1"), "not a date.*date"),
    "leap day": (cell("date", "2021-02-29"), "not a date.*date"),
    "hour 25": (cell("date", "2021-01-11T25:00:00"), "not a date.*date"),
    "year 0": (cell("date", "0000-01-11"), "a date before 1800"),
    "impossible zone": (cell("date", "2021-01-11T00:00:00+99:00"), "date"),
    "path as symbol": (cell("symbol", "../../x"), "symbol is 1 to 32"),
    "root path": (cell("symbol", "/etc/passwd"), "symbol is 1 to 32"),
    "sql": (cell("symbol", "'; DROP TABLE price_data;--"), "symbol is 1 to 32"),
    "hyperlink": (cell("symbol", '=HYPERLINK("http://x","y")'), "symbol is 1 to 32"),
    "script": (cell("symbol", "<script>alert(1)</script>"), "symbol is 1 to 32"),
    "right to left": (cell("symbol", "\u202eAAA"), "u202eAAA.*symbol is 1 to 32"),
    "zero width": (cell("symbol", "AAA\u200b"), "u200b.*symbol is 1 to 32"),
    "cyrillic look-alike": (cell("symbol", "АAA"), "symbol is 1 to 32"),
    "full-width letter": (cell("symbol", "ＡAA"), "symbol is 1 to 32"),
    "emoji": (cell("symbol", "🚀"), "symbol is 1 to 32"),
    "trailing space": (cell("symbol", "AAA "), "symbol is 1 to 32"),
    "long symbol": (cell("symbol", "A" * 5000), "symbol is 1 to 32"),
    "line break": (cell("symbol", "A\nB"), "symbol is 1 to 32"),
    "escape sequence": (cell("symbol", "A\x1b[31m"), "x1b.*symbol is 1 to 32"),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_refused_by_row_and_column(tmp_path, name):
    content, words = CELLS[name]
    with pytest.raises(intake.RefusedData, match=f"(?s)^bars.csv, row 7, symbol .*{words}") as caught:
        judge(tmp_path / "bars.csv", content)
    assert caught.value.exit_code == 4 and 7 in caught.value.faults["row"].tolist()
    said = str(caught.value)
    assert len(said) < 600 and said.isprintable()                    # no message can be blown up, or write to the terminal as it likes


def lines(*rows: str, end: str = "\n") -> bytes:
    return end.join(rows).encode() + end.encode()


PARQUET = {
    "binary symbols": (table(symbol=pa.array([b"AAA"] * 12)), "row 1: column `symbol` holds binary"),
    "missing symbol": (table(symbol=pa.array(["AAA"] * 5 + [None] + ["AAA"] * 6)), r"row 6, symbol \(none\).*symbol is 1 to 32"),
    "missing date": (table(date=pa.array([*pd.to_datetime(bars()["date"])[:5], None, *pd.to_datetime(bars()["date"])[6:]])), "row 6, symbol AAA: not a date"),
    "times as dates": (table(date=pa.array([1] * 12, pa.time32("s"))), "row 1: column `date` holds time32"),
    "nan close": (table(close=pa.array([50.0] * 5 + [np.nan] + [50.0] * 6)), "row 6, symbol AAA.*missing.*close"),
    "inf volume": (table(volume=pa.array([np.inf] * 12)), "row 1, symbol AAA.*infinite.*volume"),
    "close as list": (table(close=pa.array([[1.0]] * 12)), "row 1: column `close` holds list"),
    "text that is no number": (table(close=pa.array(["50"] * 5 + ["fifty"] + ["50"] * 6)), "row 6, symbol AAA.*not a number.*fifty"),
    "no close": (table(close=None), r"row 1: missing column\(s\) \['close'\]"),
    "all null": (table(close=pa.nulls(12)), "row 1, symbol AAA.*missing.*close"),
    "null symbols": (table(symbol=pa.nulls(12)), r"row 1, symbol \(none\).*symbol is 1 to 32"),
    "null dates": (table(date=pa.nulls(12)), "row 1, symbol AAA: not a date"),
    "empty row groups": (table(**{name: pa.array(bars()[name]).slice(0, 0) for name in COLUMNS}), "is empty"),
    "int dates": (table(date=pa.array(range(12))), "row 1: column `date` holds int64"),
}
FILES = {
    "whitespace only": (b" \n\n\t\n", "is empty"),
    "no header": (text().split("\n", 1)[1].encode(), r"row 1: .*(mean the same|missing column)"),
    "tabs": (text().replace(",", "\t").encode(), "Separate columns by commas"),
    "pipes": (text().replace(",", "|").encode(), "Separate columns by commas"),
    "utf-16": (text().encode("utf-16"), "not a csv file.*binary"),
    "utf-16 without mark": (text().encode("utf-16-le"), "not a csv file.*binary"),
    "nul in row 9": (lines("symbol,date,close", *[f"AAA,{day:%Y-%m-%d},5" for day in DAYS[:7]], "AA\0,2021-02-01,5"), r"NUL byte\) \(row 9\)|binary"),
    "nul far down": (lines("symbol,date,close", *["AAA,2021-01-04,5"] * 8000, "AA\0,2021-02-01,5"), r"NUL byte\) \(row 8002\)"),
    "latin-1 far down": (lines("symbol,date,close", *["AAA,2021-01-04,5"] * 80000) + "Ä,2021-02-01,5\n".encode("latin-1"), r"no UTF-8 text \(row 80002\)"),
    "cut in a letter": (lines("symbol,date,close", "AAA,2021-01-04,5") + "Ä".encode()[:1], r"no UTF-8 text \(row 3\)"),
    "unclosed quote": (lines("symbol,date,close", "AAA,2021-01-04,5", 'AAA,2021-01-05,"6', "AAA,2021-01-06,7"), "starting at row 3"),
    "unclosed quote in the header": (lines('symbol,"date,close', "AAA,2021-01-04,5"), "row 1: missing column"),
    "header again": (lines("symbol,date,close", "AAA,2021-01-04,5", "symbol,date,close", "AAA,2021-01-05,6"), "row 3, symbol symbol.*not a number"),
    "only commas": (lines("symbol,date,close", "AAA,2021-01-04,5", ",,"), r"row 3, symbol \(none\)"),
    "comment": (lines("symbol,date,close", "# a comment", "AAA,2021-01-04,5"), "row 2"),
    "beyond the calendar": (cell("date", "2199-12-31", at=11), "symbol AAA, 2199-12-31.*cannot judge 2199-12-31"),
}


@pytest.mark.parametrize(("suffix", "name"), [("csv", name) for name in FILES] + [("parquet", name) for name in PARQUET])
def test_a_file_is_refused_by_row(tmp_path, suffix, name):
    content, words = (FILES if suffix == "csv" else PARQUET)[name]
    with pytest.raises(DataError, match=f"(?s)bars.{suffix}.*{words}") as caught:
        judge(tmp_path / f"bars.{suffix}", content)
    assert caught.value.exit_code == 4


def moved(frame: pd.DataFrame, **values: object) -> bytes:
    return frame.assign(**values).to_csv(index=False).encode()


whole = bars(n=20)
one_high_short = whole.assign(high=whole["low"].where(whole.index == 5, whole["high"]) * np.where(whole.index == 5, 1 - 1e-8, 1), open=whole["low"], close=whole["low"])
# name: (suffix, content, what the list of remarks says: a pattern, or None where nothing was changed in meaning)
NORMALISED = {
    "byte order mark": ("csv", b"\xef\xbb\xbf" + text().encode(), None),
    "crlf": ("csv", text().replace("\n", "\r\n").encode(), None),
    "cr": ("csv", text().replace("\n", "\r").encode(), None),
    "blank lines at the end": ("csv", text().encode() + b"\n\n \n", None),
    "no line end": ("csv", text().rstrip().encode(), None),
    "quoted fields": ("csv", re.sub(r"([^,\n]+)", r'"\1"', text()).encode(), None),
    "names in capitals": ("csv", text().replace("symbol,date", "Ticker, Date ").replace("adj_close", "Adj Close").encode(), None),
    "exponents": ("csv", cell("close", "5.05e1"), None),
    "plus sign": ("csv", cell("volume", "+1000"), None),
    "whole numbers": ("csv", cell("close", "50"), None),
    "columns nobody reads": ("csv", moved(whole, foo="x"), "note.*row 1.*foo.*not read"),
    "no volume, open, high, low": ("csv", whole[["symbol", "date", "close"]].to_csv(index=False).encode(), None),
    "missing volume": ("csv", cell("volume", "N/A"), None),
    "one row": ("csv", text(bars(n=1)).encode(), "note.*fewer than 300 rows"),
    "interleaved symbols": ("csv", pd.concat([bars(), bars("BBB")]).sort_values("date", kind="stable").to_csv(index=False).encode(), None),
    "zone": ("csv", moved(whole, date=whole["date"] + "T00:00:00-05:00"), "repaired.*carry a time zone"),
    "time of day": ("csv", moved(whole, date=whole["date"] + " 16:00:00"), None),
    "weekend bar": ("csv", cell("date", "2021-01-23", at=11), "note.*row 13.*Saturday"),
    "holiday bar": ("csv", cell("date", "2021-01-18", at=9).replace(b"2021-01-19", b"2021-01-20").replace(b"2021-01-20,", b"2021-01-19,", 1), "note.*2021-01-18.*no session"),
    "gap": ("csv", text(whole.drop(index=[4, 5])).encode(), "note.*2 sessions without a bar, 2021-01-08 to 2021-01-11"),
    "price of a billion": ("csv", cell("adj_close", "1e9"), "note.*row 7.*halved or doubled"),
    "close above high": ("csv", cell("close", "99"), "note.*row 7.*close.*outside"),
    "high below low by rounding": ("csv", one_high_short.to_csv(index=False).encode(), "repaired.*row 7.*exchanged"),
    "constant price": ("csv", moved(whole, close=50.0, open=50.0, high=51.0, low=49.0), "note.*20 equal closes"),
    "ticker NA": ("csv", text(bars("NA")).encode(), None),
    "ticker TRUE": ("csv", text(bars("TRUE")).encode(), None),
    "ticker 1E5": ("csv", text(bars("1E5")).encode(), None),
    "ticker CON": ("csv", text(bars("CON")).encode(), None),
    "ticker =F": ("csv", text(bars("=F")).encode(), None),
    "float32": ("parquet", table(close=pa.array(bars()["close"], pa.float32())), None),
    "decimals": ("parquet", table(close=pa.array([f"{c:.4f}" for c in bars()["close"]]).cast(pa.decimal128(12, 4))), None),
    "texts that are numbers": ("parquet", table(close=pa.array([f"{c:.4f}" for c in bars()["close"]])), None),
    "unsigned volume": ("parquet", table(volume=pa.array([1000] * 12, pa.uint32())), None),
    "missing whole volume": ("parquet", table(volume=pa.array([1000] * 11 + [None])), None),
    "null volume": ("parquet", table(volume=pa.nulls(12)), None),
    "dates of days": ("parquet", table(date=pa.array(pd.to_datetime(bars()["date"]).dt.date)), None),
    "nanoseconds": ("parquet", table(date=pa.array(pd.to_datetime(bars()["date"]), pa.timestamp("ns"))), None),
    "seconds": ("parquet", table(date=pa.array(pd.to_datetime(bars()["date"]), pa.timestamp("s"))), None),
    "aware": ("parquet", table(date=pa.array(pd.to_datetime(bars()["date"]).dt.tz_localize("America/New_York"))), "repaired.*carry a time zone"),
    "large texts": ("parquet", table(symbol=pa.array(["AAA"] * 12, pa.large_string()), date=pa.array(bars()["date"], pa.string_view())), None),
    "dictionary with a text twice": ("parquet", table(symbol=pa.DictionaryArray.from_arrays([0, 1] * 6, ["AAA", "AAA"])), None),
    "dictionary of symbols": ("parquet", table(symbol=pa.array(["AAA"] * 12).dictionary_encode()), None),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_a_file_is_normalised_and_says_so(tmp_path, name):
    suffix, content, words = NORMALISED[name]
    output = judge(tmp_path / f"bars.{suffix}", content)
    panel = output.frames["panel"]
    market.check_schema(panel, "panel", name)
    found = output.frames["faults"]
    told = [f"{f.severity}: row {f.row}, {str(f.session)[:10]}, {f.column} = {f.value}: {f.message}" for f in found.itertuples()]
    if words:
        assert any(re.search(words, line) for line in told), told
    else:
        assert not [line for line in told if "fewer than" not in line and "halved" not in line and "outside the bar" not in line], told
        wanted = (bars() if len(panel) in (12, 24) else whole)["close"].astype("float32").astype("float64")
        closes = panel.loc[panel["symbol"] == panel["symbol"].iloc[0], "close"].to_numpy()
        changed = ~np.isclose(closes, wanted, rtol=1e-6)
        assert changed.sum() <= 1                                     # the one cell that the case itself changes


def test_the_table_is_as_long_as_was_asked():
    assert len(CELLS) + len(FILES) + len(PARQUET) + len(NORMALISED) >= 60


def test_rows_after_as_of_do_not_vanish_silently(tmp_path):
    path = tmp_path / "bars.csv"
    path.write_text(text(pd.concat([bars(name, 30 if name in "AB" else 20) for name in "ABCDE"])))
    output = market.run({}, Settings.model_validate({"market": {"provider": "csv", "path": str(path)}}), None)
    told = output.frames["faults"].query("column == 'rows' and symbol == ''")
    assert output.documents["summary"]["as_of"] == f"{DAYS[19]:%Y-%m-%d}" and told["value"].tolist() == ["20"]
    assert told["message"].str.contains("are not used: as of that session they are the future").all()


def test_a_half_day_is_a_session(tmp_path):
    days = quality.sessions("XNYS", "2021-11-15", "2021-12-10")
    frame = bars(n=len(days)).assign(date=days.strftime("%Y-%m-%d"))
    found = judge(tmp_path / "bars.csv", text(frame).encode()).frames
    assert pd.Timestamp("2021-11-26") in days and found["faults"]["column"].tolist() == ["rows"] and found["quality"]["completeness"].tolist() == [1.0]


# ---------------------------------------------------------------- hypothesis: whatever is done to a good file

BASE = text(pd.concat([bars("AAA", 4), bars("BBB", 3, seed=1)])).encode()
PIECES = [b"", b",", b"\n", b"\r\n", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", b"-", b"nan", b"inf", b"1e309", b"0", b"-1", b"TRUE", b"2021-01-05", b"9999-01-01", b"AAA", b" ", b";",
          b"\xd0\x90", b"=1+1", b"<script>", b"1e308", b"0x1", "５".encode(), b"Z", b"T00:00Z", b"\t", b"#", b"adj close"]


def outcome(path: Path) -> None:
    """Either a panel within its contract, whose cells are those of the file, or a `DataError` that names the file; nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)          # pandas announces changes so
        try:
            panel, faults = intake.read_bars(path)
        except DataError as error:
            assert path.name in str(error) and len(str(error)) < 1500
            if isinstance(error, intake.RefusedData):
                assert re.search(r"row \d+, symbol", str(error)) and (error.faults["severity"] == "refused").all() and (error.faults["row"] > 0).all()
            return
    assert set(faults["severity"]) <= {"repaired", "note"}
    assert list(panel.columns) == list(intake.PANEL) and panel[["close", "adj_close"]].notna().all(axis=None)
    assert not ((panel[list(intake.PRICES)] <= 0) | np.isinf(panel[list(intake.PRICES)])).any(axis=None) and not (panel["high"] < panel["low"]).any()
    assert panel["symbol"].str.fullmatch(intake.SYMBOL.pattern).all() and not (panel["volume"] < 0).any()
    keys = pd.MultiIndex.from_frame(panel[["session", "symbol"]])
    assert keys.is_unique and keys.is_monotonic_increasing


@settings(max_examples=1100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(edits=st.lists(st.tuples(st.integers(0, len(BASE)), st.integers(0, 12), st.sampled_from(PIECES)), min_size=1, max_size=3))
def test_mutated_csv_bytes(tmp_path, edits):
    data = BASE
    for at, length, piece in edits:
        data = data[:at] + piece + data[at + length:]
    path = tmp_path / "bars.csv"
    path.write_bytes(data)
    outcome(path)


VALUES = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e308, 5e-324, 1e-9, 50.0]


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(edits=st.lists(st.tuples(st.sampled_from(COLUMNS), st.integers(0, 6), st.sampled_from(VALUES), st.sampled_from(["", "AAA", "BBB", "A B", "\u202eA", None]),
                                st.sampled_from([None, *DAYS[:4], pd.Timestamp("2021-01-09"), pd.Timestamp("1700-01-01"), pd.Timestamp("2200-01-01")])), min_size=1, max_size=3),
       drop=st.sampled_from([(), ("volume",), ("adj_close",), ("close",), ("date", "high")]), zone=st.sampled_from([None, "UTC", "Asia/Tokyo"]), flip=st.booleans())
def test_mutated_parquet_frames(tmp_path, edits, drop, zone, flip):
    frame = pd.concat([bars("AAA", 4), bars("BBB", 3, seed=1)], ignore_index=True)
    frame = frame.assign(date=pd.to_datetime(frame["date"]).dt.tz_localize(zone)).astype({"symbol": "object"})
    for column, at, number, symbol, day in edits:
        if column == "date":
            frame.loc[at, column] = pd.NaT if day is None else pd.Timestamp(day, tz=zone)
        else:
            frame.loc[at, column] = symbol if column == "symbol" else number
    path = tmp_path / "bars.parquet"
    frame.drop(columns=list(drop)).iloc[::-1 if flip else 1].to_parquet(path, index=False)
    outcome(path)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(edits=st.lists(st.tuples(st.sampled_from([*COLUMNS[2:], "session", "symbol"]), st.integers(0, 6), st.sampled_from(VALUES)), min_size=0, max_size=3),
       order=st.permutations(range(7)), repeat=st.booleans())
def test_mutated_frames(edits, order, repeat):
    """`validate` itself: values of a passed frame are those that went in, in the panel's order; the input is not touched."""
    rows = pd.concat([bars("AAA", 4), bars("BBB", 3, seed=1)], ignore_index=True)
    rows = rows.assign(session=pd.to_datetime(rows["date"]).astype("datetime64[us]"), row=np.arange(1, 8)).drop(columns="date").astype({"symbol": "object"})
    for column, at, value in edits:
        rows.loc[at, column] = {"session": pd.NaT if value != value else DAYS[at % 4], "symbol": "X Y" if value == 0 else "CCC"}.get(column, value)
    rows = pd.concat([rows, rows.iloc[[2]].assign(row=8)]) if repeat else rows.iloc[list(order)]
    before = rows.copy()
    try:
        panel, faults = intake.validate(rows, "frame")
    except intake.RefusedData as error:
        assert "frame, row" in str(error)
    else:
        market.check_schema(panel, "panel", "fuzz")
        wanted = rows.sort_values(["session", "symbol"], ignore_index=True)
        if "repaired" not in set(faults["severity"]):
            np.testing.assert_array_equal(panel[list(intake.NUMBERS)].to_numpy(), wanted[list(intake.NUMBERS)].to_numpy())
        assert panel["symbol"].tolist() == wanted["symbol"].tolist()
    pd.testing.assert_frame_equal(rows, before)
