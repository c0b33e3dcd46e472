"""Quality: planted faults are found in real bars, real crashes are not mistaken for them, and nothing is known before its time."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltrader import intake, market, packaged, quality
from mltrader.config import Settings, home
from mltrader.core import ConfigError, DataError, IntegrityError

PRICES = ["open", "high", "low", "close", "adj_close"]


@pytest.fixture(scope="session")
def packaged_run() -> market.TaskOutput:
    packaged.sync(home() / "cache")
    return market.run({"cache": {"folder": home() / "cache"}}, Settings(), None)


@pytest.fixture(scope="session")
def panel(packaged_run) -> pd.DataFrame:
    return packaged_run.frames["panel"]


def crowd(symbols: int = 8, n: int = 400, seed: int = 0) -> pd.DataFrame:
    """Synthetic bars with a common market, fat tails and volume."""
    rng, days = np.random.default_rng(seed), quality.sessions("XNYS", "2015-01-02", "2022-12-30")[:n]
    common = rng.standard_t(5, n) * 0.006
    parts = []
    for i in range(symbols):
        close = 40 * np.exp(np.cumsum(common + rng.standard_t(5, n) * 0.01))
        parts.append(pd.DataFrame({"session": days, "symbol": f"S{i}", "open": close, "high": close * 1.01, "low": close * 0.99, "close": close, "adj_close": close,
                                   "volume": 1e6 * np.exp(rng.normal(0, 0.4, n))}))
    return pd.concat(parts).astype({"symbol": "str"}).sort_values(["session", "symbol"], ignore_index=True)


def plant(bars: pd.DataFrame, kind: str, rng: np.random.Generator, per: int) -> tuple[pd.DataFrame, dict]:
    """Plant one fault each into `per` random symbols at random bars; returns the bars and {(symbol, session): what}."""
    bars, planted = bars.reset_index(drop=True), {}
    pool = {"small": quality._SMALL, "large": quality._UP, "reverse": [(m, n) for n, m in quality._UP], "double": [*quality._SMALL, *quality._UP]}.get(kind)
    for symbol in rng.permutation(bars["symbol"].unique())[:per]:
        rows = np.flatnonzero((bars["symbol"] == symbol).to_numpy())
        k = int(rng.integers(70, len(rows) - 2))
        at, past = rows[k], rows[:k]
        if kind == "tick":
            bars.loc[at, ["close", "adj_close"]] *= float(rng.choice([0.1, 10.0, 100.0]))
            planted[symbol, bars["session"][at]] = "bad tick"
            continue
        n, m = pool[int(rng.integers(len(pool)))]
        if kind == "double":
            bars.loc[past, "adj_close"] /= n / m
        else:
            bars.loc[past, PRICES] *= n / m
            bars.loc[past, "volume"] /= n / m
        planted[symbol, bars["session"][at]] = f"{n}:{m} split"
    return bars, planted


# ---------------------------------------------------------------- splits and ticks

def test_real_bars_give_few_false_alarms(panel):
    """26 stocks, 33 years, every crash since 1990: one alarm (a price in eighths that rests for weeks), no bad tick."""
    found = quality.jumps(panel)
    assert found[["symbol", "kind"]].values.tolist() == [["RRC", "split"]] and len(panel) > 190_000
    assert "AAPL" not in found["symbol"].tolist()                     # -52 % on 2000-09-29, on 24 times the volume


def test_the_volume_tells_a_crash_from_a_split(panel):
    apple = panel[panel["symbol"] == "AAPL"]
    blind = quality.jumps(apple.assign(volume=np.nan))
    assert blind[["kind", "session"]].values.tolist() == [["split", pd.Timestamp("2000-09-29")]]
    assert quality.jumps(apple).empty


@pytest.mark.parametrize(("kind", "least"), [("large", 0.9), ("reverse", 0.9), ("double", 0.9), ("tick", 0.97)])
def test_what_is_planted_into_real_bars_is_found(panel, kind, least):
    known, hits, total = {("RRC", pd.Timestamp("1990-04-10"))}, 0, 0
    for seed in range(3):
        bars, planted = plant(panel, kind, np.random.default_rng(seed), 16)
        found = quality.jumps(bars)
        by = {(r.symbol, r.session): r for r in found.itertuples()}
        right = [key for key, what in planted.items() if key in by and (what == by[key].kind or what in by[key].message)]
        hits, total = hits + len(right), total + len(planted)
        assert set(by) - set(planted) <= known                        # nothing else: no echo at the next bar
    assert hits / total >= least, f"{hits} of {total}"


@pytest.mark.parametrize(("kind", "volume", "least", "most"), [("small", True, 0.75, 1), ("small", False, 0, 0), ("large", False, 0.9, 1)])
def test_small_ratios_need_volume(kind, volume, least, most):
    hits = total = 0
    for seed in range(6):
        bars, planted = plant(crowd(seed=seed), kind, np.random.default_rng(seed), 4)
        found = quality.jumps(bars if volume else bars.drop(columns=["volume", "high", "low"]))
        hits, total = hits + sum((s, d) in planted for s, d in zip(found["symbol"], found["session"], strict=True)), total + len(planted)
    assert least <= hits / total <= most, f"{hits} of {total}"


def test_a_split_of_close_alone_is_how_it_should_be():
    bars = crowd()
    past = (bars["symbol"] == "S1") & (bars["session"] < bars["session"].iloc[1600])
    bars.loc[past, ["open", "high", "low", "close"]] *= 2                    # raw prices, and adj_close adjusted
    assert quality.jumps(bars).empty


@pytest.mark.parametrize("seed", range(4))
def test_findings_know_nothing_of_later_bars(seed):
    """Cut at any session: what was found before the last bar is what the whole panel says."""
    rng = np.random.default_rng(seed)
    bars, _ = plant(crowd(seed=seed), "large", rng, 3)
    bars, _ = plant(bars, "tick", rng, 3)
    whole, days = quality.jumps(bars), bars["session"].unique()
    for day in [*rng.choice(days[80:], 6, replace=False), *whole["session"].head(3)]:
        part = quality.jumps(bars[bars["session"] <= day])
        pd.testing.assert_frame_equal(part[part["session"] < day].reset_index(drop=True), whole[whole["session"] < day].reset_index(drop=True))
        runs, later = quality.stale_runs(bars[bars["session"] <= day]), quality.stale_runs(bars)
        assert set(runs["first"]) <= set(later["first"])


def test_the_size_of_a_block_changes_nothing(monkeypatch):
    bars, _ = plant(crowd(), "large", np.random.default_rng(3), 4)
    wanted = quality.examine(bars, quality.sessions("XNYS", "2015-01-02", bars["session"].max()))
    monkeypatch.setattr(quality, "BLOCK", 700)
    assert len(list(quality.blocks(pd.factorize(bars["symbol"])[0]))) > 3
    got = quality.examine(bars, quality.sessions("XNYS", "2015-01-02", bars["session"].max()))
    pd.testing.assert_frame_equal(got.symbols, wanted.symbols)
    pd.testing.assert_frame_equal(got.findings, wanted.findings)


# ---------------------------------------------------------------- completeness, staleness

def test_the_calendar():
    closed = quality.sessions("XNYS", "2001-09-10", "2001-09-18")
    assert [day.day for day in closed] == [10, 17, 18] and str(closed.dtype) == "datetime64[us]" and closed.tz is None
    assert len(quality.sessions("XNYS", "1990-01-01", "2022-12-28")) == 8313
    with pytest.raises(DataError, match="knows sessions to .* cannot judge 2150-01-01"):
        quality.sessions("XNYS", "2020-01-01", "2150-01-01")
    with pytest.raises(ConfigError, match="no calendar"):
        quality.sessions("NYSE!", "2020-01-01", "2020-02-01")


@pytest.mark.parametrize("code, begins", [("XTKS", "1997-01-01"), ("XBOM", "1997-01-01"), ("XSHG", "1990-12-03"), ("XSAU", "2021-01-01")])
def test_a_calendar_that_begins_after_1990_serves_from_its_first_date_on(code, begins):
    month = pd.Timestamp(begins) + pd.Timedelta(days=30)
    for first in (begins, month, "2021-06-01"):
        days = quality.sessions(code, first, "2021-12-30")
        assert days[0] >= pd.Timestamp(first) and days[0] - pd.Timestamp(first) < pd.Timedelta(days=11) and len(days) > 100
    before = pd.Timestamp(begins) - pd.Timedelta(days=1)
    with pytest.raises(DataError, match=rf'{code} begins on {begins} and does not reach back to {before.date()}.*\[market\] calendar; "" there goes without'):
        quality.sessions(code, before, "2021-12-30")


def test_a_calendar_of_which_not_every_year_can_be_computed(monkeypatch):
    """Tel Aviv's, in some versions of exchange-calendars: what can be computed serves, the rest is refused in one sentence."""
    import exchange_calendars as xc

    real = xc.get_calendar

    def broken(name, start=None, **more):
        if name == "XTAE" and (start is None or pd.Timestamp(start) < pd.Timestamp("2026-01-05")):
            raise ValueError(f"Special dates {list(pd.date_range('2006-12-03', periods=900, freq='7D'))} are not sessions.")
        return real("XNYS" if name == "XTAE" else name, start=start, **more)

    monkeypatch.setattr(xc, "get_calendar", broken)
    quality._begins.cache_clear()
    assert len(quality.sessions("XTAE", "2026-02-02", "2026-03-02")) == 20
    with pytest.raises(DataError, match=r"XTAE cannot be computed .* 2015-01-04.*\[market\] calendar") as caught:
        quality.sessions("XTAE", "2015-01-04", "2015-02-01")
    assert len(str(caught.value)) < 400
    quality._begins.cache_clear()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=60, unique=True), min_size=1, max_size=4), st.booleans())
def test_completeness_equals_counting_by_hand(kept, weekend):
    days = quality.sessions("XNYS", "2021-01-04", "2021-12-31")[:60]
    odd = [pd.Timestamp("2021-01-09")] if weekend else []
    rows = pd.DataFrame([(day, f"S{i}") for i, places in enumerate(kept) for day in [*days[sorted(places)], *odd]], columns=["session", "symbol"])
    rows = rows.astype({"session": "datetime64[us]", "symbol": "str"}).sort_values(["session", "symbol"], ignore_index=True)
    told, holes = quality.completeness(rows, days), quality.gaps(rows, days)
    assert list(told.columns[:5]) == ["symbol", "expected", "present", "share", "last_present"]
    for i, places in enumerate(kept):
        row, end = told.iloc[i], 59 if 59 - max(places) < quality.ENDED_AFTER else max(places)
        expected = end - min(places) + 1
        assert (row["expected"], row["present"], row["missing"], row["extra"]) == (expected, len(places), expected - len(places), len(odd))
        assert row["last_present"] == (59 in places) and row["share"] == len(places) / expected
        assert holes.loc[(holes["symbol"] == f"S{i}") & (holes["kind"] == "gap"), "value"].sum() == row["missing"]
    assert (holes["kind"] == "no session").sum() == len(odd)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.tuples(st.integers(1, 14), st.booleans()), min_size=1, max_size=8))
def test_stale_runs_equal_counting_by_hand(runs):
    close = np.concatenate([[10.0 + i] * n for i, (n, _) in enumerate(runs)])
    volume = np.concatenate([[0.0 if dry else 5.0] * n for n, dry in runs])
    days = quality.sessions("XNYS", "2021-01-04", "2021-12-31")[:len(close)]
    bars = pd.DataFrame({"session": days, "symbol": "A", "close": close, "volume": volume}).astype({"symbol": "str"})
    assert quality.stale_runs(bars)["length"].tolist() == [n for n, dry in runs if n >= (quality.STALE_UNTRADED if dry else quality.STALE)]


# ---------------------------------------------------------------- in the market task

def own(folder: Path, bars: pd.DataFrame, universe: dict | None = None, **options: object) -> market.TaskOutput:
    path = folder / "bars.parquet"
    bars.rename(columns={"session": "date"}).to_parquet(path, index=False)
    return market.run({}, Settings.model_validate({"market": {"provider": "parquet", "path": str(path), **options}, "universe": universe or {}}), None)


def test_the_report_names_every_planted_fault_and_changes_no_bar(tmp_path):
    bars = crowd(7)
    split, planted = plant(bars[bars["symbol"] == "S0"], "large", np.random.default_rng(0), 1)
    tick, ticks = plant(bars[bars["symbol"] == "S1"].reset_index(drop=True), "tick", np.random.default_rng(1), 1)
    bars = pd.concat([split, tick, bars[bars["symbol"] > "S1"]]).sort_values(["session", "symbol"], ignore_index=True)
    days = bars["session"].unique()
    bars = bars[~((bars["symbol"] == "S2") & bars["session"].isin(days[40:60])) & ~((bars["symbol"] == "S3") & (bars["session"] == days[-1]))]
    late = replace_close(bars, "S4", days[100:112])
    output = own(tmp_path, late)
    notes, table, summary = output.frames["faults"], output.frames["quality"].set_index("symbol"), output.documents["summary"]["quality"]
    assert set(notes["severity"]) == {"note"}
    for (symbol, session), what in {**planted, **ticks}.items():
        told = notes[(notes["symbol"] == symbol) & (notes["session"] == session) & (notes["column"] == "adj_close") & (notes["file"] == "panel")]
        assert len(told) == 1 and what.replace("bad tick", "bad tick?") in told["message"].iloc[0]
    assert summary["incomplete"] == ["S2"] and summary["last_session_missing"] == ["S3"] and summary["stale_symbols"] == ["S4"]
    assert (summary["splits"], summary["bad_ticks"], summary["missing"]) == (1, 1, 21)
    assert notes.query("symbol == 'S2' and column == 'completeness'")["message"].str.contains("95.0%.*below 98%").all()
    assert table.at[next(iter(planted))[0], "score"] <= 0.5 < 0.6 <= table.at[next(iter(ticks))[0], "score"] < 1 == table.at["S5", "score"]
    got = output.frames["panel"][["session", "symbol", *PRICES, "volume"]]
    pd.testing.assert_frame_equal(got.reset_index(drop=True), late[got.columns].reset_index(drop=True), check_dtype=False)
    assert "; 1 suspected split, 1 bad tick;" in market.figure(output).finding and len(market.table(output)) == 7
    assert market.table(output)["rows"].tolist() == [f"{rows:,}" for rows in output.frames["quality"]["rows"]]


def replace_close(bars: pd.DataFrame, symbol: str, days: np.ndarray) -> pd.DataFrame:
    rows = (bars["symbol"] == symbol) & bars["session"].isin(days)
    value = bars.loc[rows, "close"].iloc[0]
    return bars.assign(**{name: bars[name].where(~rows, value) for name in ("open", "high", "low", "close", "adj_close")})


def test_more_findings_than_are_listed_are_counted(tmp_path, monkeypatch):
    for module in (intake, market):
        monkeypatch.setattr(module, "MAX_FAULTS", 5)
    bars = crowd(1, 300)
    bars = bars[(bars.index % 10 > 0) | (bars.index == 0)]            # 29 gaps
    notes = own(tmp_path, bars).frames["faults"].query("column == 'session'")
    assert len(notes) == 6 and notes.iloc[-1][["symbol", "value"]].tolist() == ["", "24"] and "not listed" in notes["message"].iloc[-1]


def test_without_a_calendar_the_panel_is_its_own(tmp_path):
    days = pd.date_range("2021-01-01", periods=60)
    bars = crowd(2, 60).assign(session=np.repeat(days, 2))
    assert own(tmp_path, bars, calendar="").documents["summary"]["quality"]["extra"] == 0
    noted = own(tmp_path, bars).documents["summary"]["quality"]
    assert noted["extra"] == 2 * (60 - len(quality.sessions("XNYS", days[0], days[-1])))


def test_completeness_is_measured_to_the_declared_end():
    """The packaged panel is history: in 2023, twenty of its stocks are not late."""
    packaged.sync(home() / "cache")
    output = market.run({"cache": {"folder": home() / "cache"}}, Settings(), pd.Timestamp("2023-05-15"))
    found = output.documents["summary"]["quality"]
    assert found["missing"] == found["extra"] == 0 and found["last_session_missing"] == [] and found["completeness"] == 1


def test_a_provider_that_breaks_the_contract_is_named(tmp_path, monkeypatch):
    read = market.read_files

    def broken(change):
        def provider(config):
            data = read(config)
            return replace(data, panel=change(data.panel))
        return provider

    for change, words in ((lambda p: p.assign(close=p["close"].where(p.index != 5, -1.0)), "column close, row 6, symbol S1: a price must be a finite"),
                          (lambda p: p.iloc[::-1].reset_index(drop=True), "sorted by session and symbol"),
                          (lambda p: p.assign(session=p["session"].dt.as_unit("ns")), "column session: the type must be"),
                          (lambda p: p.drop(columns="volume"), "column volume: column_in_dataframe")):
        monkeypatch.setattr(market, "read_files", broken(change))
        with pytest.raises(DataError, match=f"provider parquet.*{words}"):
            own(tmp_path, crowd(2, 60))


# ---------------------------------------------------------------- who was a member when

def test_survivorship_is_measured(packaged_run):
    covered = packaged_run.frames["membership"]
    row = covered[covered["session"] == "2008-12-31"].iloc[0]
    assert (row["members"], row["present"], row["missing"]) == (482, 23, 459)
    assert "of the 482 known members of the S&P 500 on 2008-12-31 the panel has 23" in packaged_run.documents["summary"]["survivorship"]
    assert len(covered) == 33 and (covered["present"] + covered["missing"] == covered["members"]).all()


def test_symbols_take_part_while_they_are_members(packaged_run):
    output = market.run({"cache": {"folder": home() / "cache"}}, Settings.model_validate({"universe": {"members_of": "sp500"}}), None)
    panel, notes = output.frames["panel"], output.frames["faults"]
    spans = panel.groupby("symbol")["session"].agg(["min", "max"])
    assert str(spans.at["META", "min"].date()) == "2013-12-23" and str(spans.at["RRC", "max"].date()) == "2018-06-15"
    amd = panel.loc[panel["symbol"] == "AMD", "session"]
    assert not amd.between("2013-09-20", "2017-03-17").any() and amd.between("2013-09-19", "2017-03-20").sum() == 2
    told = notes[notes["file"] == "members of sp500"]
    assert told["symbol"].is_unique and {"META", "AMD", "RRC"} <= set(told["symbol"]) and len(panel) + told["value"].astype(int).sum() == len(packaged_run.frames["panel"])
    assert output.documents["summary"]["quality"]["missing"] == 0      # out of the index is no gap in the data
    early = market.run({"cache": {"folder": home() / "cache"}}, Settings.model_validate({"universe": {"members_of": "sp500"}}), pd.Timestamp("2012-06-29"))
    assert "META" not in set(early.frames["panel"]["symbol"])
    pd.testing.assert_frame_equal(early.frames["panel"], panel[panel["session"] <= "2012-06-29"].reset_index(drop=True))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 50), st.integers(0, 30), st.booleans()), min_size=0, max_size=8))
def test_membership_equals_looking_it_up(drawn):
    origin = pd.Timestamp("2021-01-01")
    spells = pd.DataFrame([(s, origin + pd.Timedelta(days=a), pd.NaT if still else origin + pd.Timedelta(days=a + n)) for s, a, n, still in drawn], columns=["symbol", "start", "end"])
    spells = spells.astype({"symbol": "str", "start": "datetime64[us]", "end": "datetime64[us]"}).sort_values(["symbol", "start"], ignore_index=True)
    rows = pd.DataFrame([(origin + pd.Timedelta(days=d), s) for d in range(0, 60, 3) for s in "ABD"], columns=["session", "symbol"]).astype({"symbol": "str", "session": "datetime64[us]"})
    wanted = [any(s == r.symbol and a <= r.session and (pd.isna(e) or r.session < e) for s, a, e in spells.itertuples(index=False)) for r in rows.itertuples()]
    assert market.is_member(rows, spells).tolist() == wanted


def test_a_file_of_members_is_never_unpickled(tmp_path, monkeypatch):
    """A pickle that would run a command when loaded is refused by its hash; read without the check, nothing of it runs either."""
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    file = tmp_path / "index-constitution-1.0.1" / "sp500.pkl"
    file.parent.mkdir()
    file.write_bytes(evil)
    with pytest.raises(IntegrityError, match="SHA-256"):
        packaged.members(tmp_path)
    monkeypatch.setattr(packaged, "read_member", lambda cache, name: b"\x80\x04]\x94." + evil)
    with pytest.raises(IntegrityError, match="layout"):
        packaged.members(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_members_of_an_index_none_of_whose_members_is_there(tmp_path):
    with pytest.raises(ConfigError, match="leaves no row"):
        own(tmp_path, crowd(2, 60), {"members_of": "sp500"})


# ---------------------------------------------------------------- the command line

def call(*arguments: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLTRADER_", "IN_TEST"))}
    return subprocess.run([str(Path(sys.executable).parent / "mltrader"), *arguments], capture_output=True, text=True, cwd=ROOT, env=clean, timeout=120)


def test_data_check_of_a_file(tmp_path):
    bars, planted = plant(crowd(3, 200), "large", np.random.default_rng(0), 1)
    (symbol, session), what = next(iter(planted.items()))
    good = tmp_path / "good.csv"
    bars.rename(columns={"session": "date"}).assign(foo=1).to_csv(good, index=False)
    said = call("data", "check", str(good))
    assert said.returncode == 0 and said.stderr == "" and "\x1b" not in said.stdout
    assert f"unadjusted {what}" in said.stdout and "foo" in said.stdout and f"{session:%Y-%m-%d}" in said.stdout
    value = json.loads(call("data", "check", str(good), "--json").stdout)
    assert value["refused"] is None and value["summary"]["quality"]["splits"] == 1 and {row["symbol"] for row in value["quality"]} == {"S0", "S1", "S2"}
    bad = tmp_path / "bad.csv"
    bad.write_text(good.read_text().replace(",S1,", ",S\x1b[31m1,", 1).replace(",S2,", ",=1+1(),", 1))
    said = call("data", "check", str(bad), "--json")
    value = json.loads(said.stdout)
    assert said.returncode == 4 and {row["row"] for row in value["faults"]} == {3, 4} and "bad.csv, row 3" in value["refused"]
    text = call("data", "check", str(bad))
    assert text.returncode == 4 and "\x1b" not in text.stdout + text.stderr and text.stdout.count("refused") == 2
    assert call("data", "check", str(tmp_path / "absent.csv")).returncode == 4
