"""A loopback server that plays Yahoo's chart service and FRED's csv file, and everything that goes wrong with them."""
import gzip
import json
import socket
import threading
import time
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pandas as pd

ZONE = "America/New_York"


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Chaos:
    """The server; `mode` is the fault to play, `times` how many data requests it hits (then all is well).

    Parameters
    ----------
    bars : DataFrame
        `symbol date open high low close adj_close volume`: what "Yahoo" has. Change it to change what it says.
    series : DataFrame
        `date` and one column per series: what "FRED" has.
    """

    def __init__(self, bars: pd.DataFrame, series: pd.DataFrame) -> None:
        self.bars, self.series = bars, series
        self.mode, self.times, self.latency = "", 10**9, 0.6
        self.silent_cookies = False  # the hosts for cookies never answer
        self.now: pd.Timestamp | None = None  # in New York; later bars do not exist yet, and today's has the time of its last trade (None: all is there)
        self.asked: list[str] = []  # every request
        self.rows: dict[str, int] = {}  # rows sent, by symbol
        chaos = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

            def do_GET(self) -> None:
                try:
                    chaos.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up, as it should

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def data_requests(self) -> list[str]:
        """The requests for data, without those for cookies."""
        return [path for path in self.asked if "/v8/finance/chart/" in path or "fredgraph" in path]

    def forget(self) -> None:
        self.asked, self.rows = [], {}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request, with the fault of the hour."""
        self.asked.append(handler.path)
        place = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(place.query).items()}
        if place.path.startswith("/v8/finance/chart/"):
            status, body = self.chart(unquote(place.path.rsplit("/", 1)[1]), query)
        elif place.path.startswith("/fredgraph"):
            status, body = self.fred(query)
        elif self.silent_cookies:
            return time.sleep(self.latency)
        else:
            return self.send(handler, 200 if "getcrumb" in place.path else 404, b"crumb" if "getcrumb" in place.path else b"")
        if self.times <= 0 or not self.mode:
            return self.send(handler, status, body)
        self.times -= 1
        return self.fault(handler, status, body)

    def fault(self, handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        """`body`, spoilt."""
        mode = self.mode
        if mode == "latency":
            time.sleep(self.latency)
            self.send(handler, status, body)
        elif mode == "drip":
            self.head(handler, 200, {"Content-Length": str(len(body) + 10_000)})
            for at in range(200):
                handler.wfile.write(body[at:at + 1] or b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        elif mode == "header drip":
            handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
            for at in range(100):
                handler.wfile.write(f"X-{at}: y\r\n".encode())
                handler.wfile.flush()
                time.sleep(0.05)
        elif mode.startswith("429"):
            wait = mode.removeprefix("429").strip()
            if wait == "date":
                wait = format_datetime(pd.Timestamp.now("UTC").to_pydatetime(), usegmt=True)
            self.send(handler, 429, b"Too Many Requests", **({"Retry-After": wait} if wait else {}))
        elif mode in ("500", "503"):
            self.send(handler, int(mode), b"<html>try later</html>")
        elif mode == "truncated":
            self.head(handler, 200, {"Content-Length": str(len(body))})
            handler.wfile.write(body[:len(body) // 2])
        elif mode == "broken gzip":
            self.send(handler, 200, gzip.compress(body)[:-20] + b"\0" * 12, **{"Content-Encoding": "gzip"})
        elif mode == "broken text":
            self.send(handler, 200, body[:len(body) // 2])
        elif mode == "html":
            self.send(handler, 200, b"<!DOCTYPE html><html><body>Please prove that you are human</body></html>")
        elif mode == "empty":
            self.send(handler, 200, b"")
        elif mode == "changed columns":
            self.send(handler, 200, body.replace(b'"adjclose"', b'"adjusted"').replace(b"DGS10", b"DGS10_NEW"))
        elif mode == "hangs up":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            raise AssertionError(mode)

    def head(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    def send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        self.head(handler, status, {"Content-Length": str(len(body)), **headers})
        handler.wfile.write(body)

    def chart(self, symbol: str, query: dict[str, str]) -> tuple[int, bytes]:
        """Yahoo's JSON for one symbol."""
        rows = self.bars[self.bars["symbol"] == symbol]
        if rows.empty:
            error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
            return 404, json.dumps({"chart": {"result": None, "error": error}}).encode()
        opens = (pd.DatetimeIndex(rows["date"]) + pd.Timedelta("9h30min")).tz_localize(ZONE)
        if self.now is not None:
            there = opens <= self.now
            rows, opens = rows[there], opens[there]
            opens = opens.where(opens.normalize() < self.now.normalize(), min(self.now, self.now.normalize() + pd.Timedelta("16h")))
        stamps = opens.as_unit("s").asi8
        if "period1" in query:
            inside = (stamps >= int(query["period1"])) & (stamps < int(query["period2"]))
        else:
            inside = np.arange(len(stamps)) == len(stamps) - 1
        rows, stamps = rows[inside], stamps[inside]
        if "period1" in query:
            self.rows[symbol] = self.rows.get(symbol, 0) + len(rows)

        def listed(name: str) -> list:
            return [None if pd.isna(x) else float(x) for x in rows[name]]

        meta = {"currency": "USD", "symbol": symbol, "exchangeTimezoneName": ZONE, "timezone": "EST", "gmtoffset": -18000, "instrumentType": "EQUITY",
                "dataGranularity": "1d", "priceHint": 2, "validRanges": ["1d", "max"]}
        result: dict = {"meta": meta, "indicators": {"quote": [{}], "adjclose": [{}]}}
        if len(rows):
            quote = {name: listed(name) for name in ("open", "high", "low", "close", "volume")}
            result |= {"timestamp": stamps.tolist(), "indicators": {"quote": [quote], "adjclose": [{"adjclose": listed("adj_close")}]}}
        return 200, json.dumps({"chart": {"result": [result], "error": None}}).encode()

    def fred(self, query: dict[str, str]) -> tuple[int, bytes]:
        """FRED's csv: a dot where there is no value."""
        rows = self.series[self.series["date"].between(query["cosd"], query["coed"])]
        frame = rows.rename(columns={"date": "observation_date"})[["observation_date", *query["id"].split(",")]]
        return 200, frame.to_csv(index=False, na_rep=".", date_format="%Y-%m-%d").encode()
