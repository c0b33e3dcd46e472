"""A world in which everything goes wrong with a paper account, and a witness who knows the caps but none of the code that keeps them.

The witness stands at the broker: it sees each order as it comes in, and the positions, cash and prices that are really there. It imports nothing of `safeguards`.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from typing import Any

import numpy as np
import pandas as pd

from mltrader.brokers import Hours, Market, SimulatedBroker
from mltrader.config import PaperSettings, Settings
from mltrader.core import Clock, VendorError
from mltrader.ledger import MemoryJournal
from mltrader.paper import Desk, Known
from mltrader.safeguards import RULES, Model, Order, order_id

SYMBOLS = ("AAA", "BBB", "CCC", "DDD", "EEE")  # DDD may not be traded, EEE has no volume
SECTORS = {"AAA": "one", "BBB": "one", "CCC": "two", "DDD": "two"}  # EEE has none
PAST, DAYS = 40, pd.bdate_range("2024-01-01", periods=120)
CAPS = PaperSettings(capital=100_000.0, orders_per_minute=3, halted_symbols=("DDD",), max_order=0.10, max_position=0.14, max_sector=0.22, max_gross=0.35, max_turnover=0.20, max_volume_share=0.05,
                     volume_share=0.5, max_daily_loss=0.03, max_drawdown=0.10, min_trade=0.01)
WIDE = CAPS.model_copy(update={"orders_per_minute": 2, "max_order": 1.0, "max_position": 1.0, "max_sector": 1.0, "max_gross": 1.0, "max_turnover": 5.0, "max_daily_loss": 0.9, "max_drawdown": 0.05})  # only money, pace and drawdown bind
SAID = pd.DataFrame({"symbol": list(SYMBOLS), "proba_sell": 0.2, "proba_hold": 0.2, "proba_buy": 0.6, "abstain": False})
GOOD = Model("v1", "champion", True, True)


class Breach(AssertionError):
    """The witness saw what must not happen."""


class Died(BaseException):
    """The process is killed here."""


@dataclass(frozen=True)
class Wish:
    """An order somebody wants; sizes are shares of equity, limits and stops of the last close."""

    symbol: str
    side: str = "buy"
    share: float = 0.05
    kind: str = "open"
    limit: float | None = 1.02
    stop: float | None = None
    again: bool = False  # with an id that was used


@dataclass(frozen=True)
class Turn:
    """What a session brings: returns to the open and from there to the close, symbols without a bar, wishes, and what goes wrong."""

    gaps: Sequence[float] = (0.0,) * 5
    moves: Sequence[float] = (0.0,) * 5
    missing: frozenset[str] = frozenset()
    wishes: Sequence[Wish] = ()
    fault: str | None = None  # of the broker, for orders of `faulty`
    faulty: str = "AAA"
    wait: float = 16.0  # hours to the next open
    model: Model = GOOD
    fresh: bool = True
    dies_at: int = 0  # of so many talks with the broker or the log; 0: not
    halt_at: int = 0  # somebody halts it before so many orders; 0: nobody


@dataclass
class Snapshot:
    """What was really there when the orders of a session came in."""

    session: date
    equity: float
    cash: float
    positions: dict[str, float]
    prices: dict[str, float]
    orders: list[Order] = field(default_factory=list)
    before: int = 0  # of these, before somebody resumed: another decision, and another minute


class Witness(SimulatedBroker):
    """A broker that looks at its own books."""

    def __init__(self, world: "World") -> None:
        super().__init__(world.market, world.caps, faults=lambda order: world.turn.fault if order.symbol == world.turn.faulty else None)
        self.world, self.seen, self.snapshot = world, set(), None

    def check(self, good: bool, what: str, *about: Any) -> None:
        if not good:
            raise Breach(f"{what}: {about}")

    def hours(self) -> Hours:
        now = super().hours().now
        return Hours(now, now + timedelta(hours=self.world.turn.wait))

    def equity(self) -> float:
        return self.book["cash"] + sum(q * self.world.closes[s] for s, q in self.book["positions"].items())

    def submit(self, order: Order) -> None:
        world, turn, caps = self.world, self.world.turn, self.world.caps
        world.talk()
        if turn.fault == "down" and order.symbol == turn.faulty:
            return super().submit(order)  # nothing arrives
        if order.client_order_id in self.seen:
            return super().submit(order)  # refused as a duplicate, which the desk may find out that way
        price = world.closes.get(order.symbol, math.nan)
        self.check(not world.stopped, "sent while halted", order)
        self.check(order.symbol in SYMBOLS and order.symbol != "DDD", "a symbol that is not traded", order)
        self.check(price > 0 and (order.side == "sell" or order.symbol not in turn.missing), "a stale or unknown price", order)
        self.check(0 < order.quantity < math.inf and order.side in ("buy", "sell"), "no order", order)
        self.check(0 <= turn.wait <= 100, "the market is closed", order)
        self.check(order.limit is None or abs(order.limit / price - 1) <= 0.05 + 1e-9, "limit outside the band", order)
        self.check(order.session == world.today, "an order of another session", order)
        self.check(self.snapshot is not None and len(self.snapshot.orders) - self.snapshot.before < caps.orders_per_minute, "too many orders a minute", order)
        self.check(order.symbol not in {one["symbol"] for one in self.book["orders"] if one["status"] == "open"}, "two orders in a symbol", order)
        if order.side == "buy":
            self.check(order.limit is not None, "a buy without a limit", order)
            self.check(turn.model.version is not None and turn.model.verified and turn.model.tradable and turn.fresh, "no model that may trade", order, turn)
            self.check(world.equity_now >= world.equity_before * (1 - caps.max_daily_loss) - 1e-6, "after a daily loss", order)
            self.check(world.equity_now >= world.top * (1 - caps.max_drawdown) - 1e-6, "in a drawdown", order)
            self.check(order.quantity * order.limit >= 0.01 * world.equity_now - 1e-6, "too small", order)
            self.check(abs(price / world.closes_before.get(order.symbol, price) - 1) <= 0.5, "a price that jumped", order)
        super_submit = super().submit
        try:
            super_submit(order)
        except VendorError:
            self._took(order)
            raise
        self._took(order)

    def _took(self, order: Order) -> None:
        self.seen.add(order.client_order_id)
        self.snapshot.orders.append(order)
        self.check(sum(one["id"] == order.client_order_id for one in self.book["orders"]) == 1, "one id, not one order", order)

    def advance(self, session: date) -> None:
        self.world.talk()
        fresh = self.book["session"] != session.isoformat()
        super().advance(session)
        if not fresh:
            return
        if self.snapshot is not None:
            self.after_the_fills(self.snapshot)
        self.snapshot = Snapshot(session, self.equity(), self.book["cash"], dict(self.book["positions"]), dict(self.world.closes))

    def after_the_fills(self, then: Snapshot) -> None:
        """The caps, from the fills and what was held when they were ordered: held at the prices of then, bought at those paid."""
        done = {one["id"]: one for one in self.book["orders"] if one["session"] == then.session.isoformat()}
        bought = {one["symbol"]: one["filled"] * one["average"] for one in done.values() if one["side"] == "buy" and one["filled"] > 0}
        for one in done.values():
            self.check(one["filled"] <= one["quantity"] + 1e-9, "filled more than ordered", one)
            self.check(one["side"] == "sell" or one["filled"] == 0 or one["average"] <= one["limit"] * (1 + 1e-12), "paid more than the limit", one)
        for symbol, shares in self.book["positions"].items():
            self.check(shares >= -1e-9, "short", symbol, shares)
        if not bought:
            return
        limit, caps = then.equity * (1 + 1e-9), self.world.caps
        value = {s: then.positions.get(s, 0.0) * then.prices.get(s, 0.0) + bought.get(s, 0.0) for s in {*then.positions, *bought}}
        self.check(all(v <= caps.max_order * limit for v in bought.values()), "order cap", bought, limit)
        self.check(all(value[s] <= caps.max_position * limit for s in bought), "position cap", value, limit)
        for sector in {SECTORS.get(s) for s in bought}:
            self.check(sum(v for s, v in value.items() if SECTORS.get(s) == sector) <= caps.max_sector * limit, "sector cap", sector, value)
        self.check(sum(value.values()) <= caps.max_gross * limit, "gross cap", value, limit)
        last_buy = max(at for at, one in enumerate(then.orders) if one.side == "buy" and one.symbol in bought)
        sold = sum(one.quantity * then.prices[one.symbol] for one in then.orders[:last_buy] if one.side == "sell" and one.kind != "stop")
        self.check(sum(bought.values()) + sold <= caps.max_turnover * limit, "turnover cap", bought, sold)
        spent = sum(v * (1 + self.costs.cost_bps / 1e4) for v in bought.values())
        self.check(spent <= then.cash + 1e-6, "spent money that was not there", spent, then.cash)
        row = self.world.row_of(then.session)
        for one in done.values():
            column = SYMBOLS.index(one["symbol"])
            usual = np.nanmean(self.world.market.volume[max(0, row - 19):row + 1, column]) if np.isfinite(self.world.market.volume[max(0, row - 19):row + 1, column]).any() else math.nan
            self.check(one["side"] == "sell" or not usual == usual or one["filled"] <= 0.05 * usual + 1e-9, "more than the market bears", one)

    def orders(self, since: date) -> list:
        self.world.talk()
        return super().orders(since)

    def positions(self) -> dict[str, float]:
        self.world.talk()
        return super().positions()


class Diary(MemoryJournal):
    """A log whose writer may be killed before or after a line is written."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self.world = world

    def append(self, events: Sequence, after: int) -> list:
        self.world.talk()
        made = super().append(events, after)
        self.world.talk()
        return made


class Switch:
    """The file, in memory."""

    mark: int | None = None
    halts = 0

    @property
    def engaged(self) -> bool:
        return self.mark is not None

    def engage(self, reason: str) -> None:
        self.halts += 1
        self.mark = self.halts

    def release(self, mark: int | None) -> None:
        self.mark = None if self.mark == mark else self.mark


class World:
    """An account, a market and what befalls them."""

    def __init__(self, rules: Sequence = RULES, seed: int = 0) -> None:
        self.caps = WIDE if seed % 4 == 3 else CAPS
        draw = np.random.default_rng(seed)
        self.close = 50 * np.cumprod(1 + 0.01 * draw.normal(size=(PAST, 5)), axis=0)
        volume = np.tile([1e6, 2e3, 1e6, 1e6, np.nan], (PAST, 1))
        self.market = Market(DAYS[:PAST].to_numpy().astype("datetime64[D]"), SYMBOLS, self.close.copy(), self.close * 1.001, self.close * 0.999, self.close.copy(), volume, SECTORS, self.opens(PAST))
        self.closes, self.closes_before = dict(zip(SYMBOLS, self.close[-1], strict=True)), {}
        self.turn, self.talks, self.stopped, self.tampered = Turn(), -1, False, False
        self.today = self.market.day(PAST - 1)
        self.equity_before = self.equity_now = self.top = CAPS.capital
        self.rules, self.switch, self.journal = rules, Switch(), Diary(self)
        self.settings = Settings(paper=self.caps)
        self.broker = Witness(self)
        self.broker.advance(self.today)
        self.desk = self.new_desk()

    @staticmethod
    def opens(row: int) -> datetime:
        """When the session of a row opens."""
        return datetime.combine(DAYS[row].date(), clock_time(14, 30), UTC)

    def row_of(self, session: date) -> int:
        return self.market.at(session)

    def talk(self) -> None:
        """Somebody talks with the broker or the log: a moment at which a process may die."""
        if self.talks >= 0:
            self.talks += 1
            if self.turn.dies_at and self.talks == self.turn.dies_at:
                self.talks = -1
                raise Died

    def new_desk(self) -> Desk:
        """A process that knows nothing but the log."""
        return Desk("world", self.broker, self.journal, self.settings, clock=Clock(datetime(2024, 1, 1, 22, tzinfo=UTC)), switch=self.switch, planner=self.plan, rules=self.rules)

    def plan(self, account: str, known: Known, tape: Any, ledger: Any, equity: float, escalated: bool, settings: Settings) -> tuple[list[Order], list]:
        """The wishes as orders: nothing of the real planner."""
        made, old = [], sorted(ledger.orders)
        for at, wish in enumerate(self.turn.wishes, sum(one["session"] == known.session for one in ledger.orders.values())):  # a session that was resumed has had some
            price = self.closes.get(wish.symbol, 50.0)
            name = old[at % len(old)] if wish.again and old else order_id(account, known.session, wish.symbol, wish.side, at)
            shares = wish.share * equity / price
            shares = float(math.floor(shares)) if math.isfinite(shares) and wish.side == "buy" else shares
            made.append(Order(name, known.session, wish.symbol, wish.side, shares, wish.kind, None if wish.limit is None else wish.limit * price, None if wish.stop is None else wish.stop * price, "trim" if wish.share < 0.01 else "entry", 1.0))
        return made, []

    def session(self, turn: Turn) -> dict[str, Any]:
        """The next session, as `turn` has it."""
        row = len(self.market.sessions)
        last, has = self.market.close[-1], np.array([s not in turn.missing for s in SYMBOLS])
        before = np.array([self.closes[s] for s in SYMBOLS])
        opened = before * (1 + np.asarray(turn.gaps))
        close = opened * (1 + np.asarray(turn.moves))
        lines = {"open": opened, "high": np.maximum(opened, close) * 1.001, "low": np.minimum(opened, close) * 0.999, "close": close, "volume": self.market.volume[0]}
        grids = {name: np.vstack([getattr(self.market, name), np.where(has, line, np.nan)]) for name, line in lines.items()}
        assert len(last) == 5
        self.market = Market(DAYS[:row + 1].to_numpy().astype("datetime64[D]"), SYMBOLS, **grids, sectors=SECTORS, after=self.opens(row + 1))
        self.closes_before = dict(self.closes)
        self.closes = {**self.closes, **{s: c for s, c, there in zip(SYMBOLS, close, has, strict=True) if there}}
        self.turn, self.today, self.broker.market = turn, self.market.day(row), self.market
        self.broker.advance(self.today)  # the market does not wait for the desk
        self.equity_before, self.equity_now = self.equity_now, self.broker.equity()
        self.top = max(self.top, self.equity_now)
        return self.mortal_step()

    def mortal_step(self) -> dict[str, Any]:
        """A step in which the process may die, and one of another process then."""
        self.talks = 0
        try:
            return self.step()
        except Died:
            self.desk = self.new_desk()
            return self.step()
        finally:
            self.talks = -1

    def step(self) -> dict[str, Any]:
        try:
            told = self.desk.step(Known(self.today, self.market, SAID, self.today if self.turn.fresh else date(2023, 1, 2), self.turn.model))
        except VendorError:
            return {"state": "no answer"}
        if told["state"] == "HALTED":
            self.stopped = True
        return told

    def restart(self) -> None:
        self.desk = self.new_desk()

    def halt(self, by_file: bool) -> None:
        from mltrader.paper import halt

        if by_file:
            self.switch.engage("file")
        else:
            halt(self.journal, self.switch, "operator", Clock(datetime(2024, 1, 1, tzinfo=UTC)))
        self.stopped = True

    def tamper(self, shares: float) -> None:
        """Positions change, and nobody says why."""
        self.broker.book["positions"]["CCC"] = self.broker.book["positions"].get("CCC", 0.0) + abs(shares)
        self.broker.book["prices"].setdefault("CCC", self.closes["CCC"])
        self.broker.book["days"].setdefault("CCC", str(self.today))
        self.stopped = self.tampered = True

    def resume(self) -> None:
        from mltrader.core import ConfigError
        from mltrader.paper import resume

        self.desk.refresh()
        try:
            resume(self.desk, accept=False)
            assert not self.tampered, "resumed with positions that nobody explained"
        except ConfigError:
            resume(self.desk, accept=True)
        self.stopped = self.tampered = False
        self.top = self.desk.ledger.last_equity()
        assert self.desk.ledger.state == "ACTIVE" and not self.switch.engaged
        if self.desk.ledger.marks and self.desk.ledger.marks[-1][0] == self.today:  # the session is decided once more; what was withdrawn does not count
            still = {one["id"] for one in self.broker.book["orders"] if one["status"] == "open"}
            self.broker.snapshot.orders = [one for one in self.broker.snapshot.orders if one.client_order_id in still]
            self.broker.snapshot.before = len(self.broker.snapshot.orders)
            self.mortal_step()

    def settled(self) -> None:
        """What has to be true at any time."""
        ids = [one["id"] for one in self.broker.book["orders"]]
        assert len(ids) == len(set(ids))
        orders = {one.key for one in self.journal.events if one.kind == "order"}
        assert set(ids) <= orders, "the broker has an order that was not written down first"


def digest_of(value: Any) -> str:
    from mltrader.core import digest_json

    return digest_json(value)


# --- streams without hypothesis: for planted faults, and to count many -------------------------------------------------

def a_wish(draw: np.random.Generator) -> Wish:
    """Mostly sensible, at times absurd."""
    kind = str(draw.choice(["open", "limit", "stop", "market"], p=[0.8, 0.1, 0.07, 0.03]))
    share = float(draw.choice([0.001, 0.02, 0.06, 0.09, 0.12, 0.3, 5.0, -0.1, 0.0, math.nan, math.inf], p=[0.05, 0.1, 0.2, 0.22, 0.15, 0.15, 0.07, 0.015, 0.015, 0.015, 0.015]))
    limit = [None, 1.0, 1.02, 1.05, 1.3, 0.5, math.nan][int(draw.choice(7, p=[0.02, 0.1, 0.35, 0.4, 0.05, 0.05, 0.03]))]
    return Wish(str(draw.choice([*SYMBOLS, "ZZZ"], p=[0.25, 0.25, 0.2, 0.1, 0.15, 0.05])), str(draw.choice(["buy", "sell", "hold"], p=[0.75, 0.23, 0.02])), share, kind, limit,
                float(draw.choice([0.9, 0.99])) if kind == "stop" else None, bool(draw.random() < 0.05))


def a_turn(draw: np.random.Generator) -> Turn:
    """A session in which something may go wrong."""
    size = float(draw.choice([0.005, 0.03, 0.15]))
    jump = np.where(draw.random(5) < 0.04, draw.choice([-0.6, 0.9], 5), 0.0)
    model = [GOOD, Model(), Model("v1", "c", False, True), Model("v1", "c", True, False)][int(draw.choice(4, p=[0.82, 0.06, 0.06, 0.06]))]
    fault = [None, "reject", "partial", "down", "deaf"][int(draw.choice(5, p=[0.7, 0.08, 0.08, 0.07, 0.07]))]
    return Turn(tuple(np.clip(size * draw.normal(size=5), -0.5, 1)), tuple(np.clip(size * draw.normal(size=5) + jump, -0.7, 1)),
                frozenset(s for s in SYMBOLS if draw.random() < 0.08), [a_wish(draw) for _ in range(int(draw.integers(0, 7)))], fault, str(draw.choice(SYMBOLS)),
                float(draw.choice([16.0, 64.0, 99.0, 150.0, -3.0], p=[0.7, 0.15, 0.05, 0.05, 0.05])), model, bool(draw.random() < 0.92), int(draw.choice([0, 0, 0, draw.integers(1, 40)])))


def stream(seed: int, turns: int = 12, rules: Sequence = RULES) -> World:
    """One random stream; raises `Breach` if the witness sees one."""
    draw, world = np.random.default_rng(seed), World(rules, seed)
    for _ in range(turns):
        chance = draw.random()
        if chance < 0.04:
            world.halt(bool(draw.integers(2)))
        elif chance < 0.07:
            world.tamper(float(draw.choice([-5.0, 3.0])))
        elif world.desk.ledger.state != "ACTIVE" and chance < 0.6:
            world.resume()
        elif chance < 0.65:
            world.restart()
        world.session(a_turn(draw))
        world.settled()
    return world
