"""Qlib's Alpha158 in the language of `08_expressions`, all 158 formulas, for a comparison of like with like.

Names and formulas as in `qlib.contrib.data.loader.Alpha158DL`; windows of 5, 10, 20, 30 and 60 bars.
"""
from mltrader.expressions import (
    Node,
    above,
    absolute,
    age_of_highest,
    column,
    corr,
    highest,
    lag,
    log,
    lowest,
    maximum,
    mean,
    minimum,
    percentile,
    quantile,
    slope,
    std,
    total,
    var,
)

OPEN, HIGH, LOW, CLOSE, VOLUME, VWAP = (column(name) for name in ("open", "high", "low", "close", "volume", "vwap"))
SMALL = 1e-12


def bars() -> dict[str, Node]:
    """The features of one bar."""
    span, top, bottom = HIGH - LOW + SMALL, HIGH - maximum(OPEN, CLOSE), minimum(OPEN, CLOSE) - LOW
    shift = 2 * CLOSE - HIGH - LOW
    return {"KMID": (CLOSE - OPEN) / OPEN, "KLEN": (HIGH - LOW) / OPEN, "KMID2": (CLOSE - OPEN) / span, "KUP": top / OPEN, "KUP2": top / span,
            "KLOW": bottom / OPEN, "KLOW2": bottom / span, "KSFT": shift / OPEN, "KSFT2": shift / span,
            "OPEN0": OPEN / CLOSE, "HIGH0": HIGH / CLOSE, "LOW0": LOW / CLOSE, "VWAP0": VWAP / CLOSE}


def windows(n: int) -> dict[str, Node]:
    """The features over the last `n` bars."""
    line, change, traded = slope(CLOSE, n), CLOSE - lag(CLOSE, 1), VOLUME - lag(VOLUME, 1)
    top, bottom = highest(HIGH, n), lowest(LOW, n)
    up, down = above(CLOSE, lag(CLOSE, 1)), above(lag(CLOSE, 1), CLOSE)
    weight = absolute(CLOSE / lag(CLOSE, 1) - 1) * VOLUME
    when_high, when_low = n - age_of_highest(HIGH, n) * (n - 1), n - age_of_highest(-LOW, n) * (n - 1)

    def shares(x: Node) -> tuple[Node, Node, Node]:
        rise, fall, both = total(maximum(x, 0), n), total(maximum(-x, 0), n), total(absolute(x), n) + SMALL
        return rise / both, fall / both, (rise - fall) / both

    return {f"{name}{n}": node for name, node in zip(
        ("ROC MA STD BETA RSQR RESI MAX MIN QTLU QTLD RANK RSV IMAX IMIN IMXD CORR CORD CNTP CNTN CNTD SUMP SUMN SUMD VMA VSTD WVMA VSUMP VSUMN VSUMD").split(), (
            lag(CLOSE, n) / CLOSE, mean(CLOSE, n) / CLOSE, std(CLOSE, n) / CLOSE, line / CLOSE, line * line * (n * (n + 1) / 12) / var(CLOSE, n),
            (CLOSE - mean(CLOSE, n) - line * ((n - 1) / 2)) / CLOSE, top / CLOSE, bottom / CLOSE, quantile(CLOSE, n, 0.8) / CLOSE, quantile(CLOSE, n, 0.2) / CLOSE, (percentile(CLOSE, n) * (n - 1) + 1) / n,
            (CLOSE - bottom) / (top - bottom + SMALL), when_high / n, when_low / n, (when_high - when_low) / n,
            corr(CLOSE, log(VOLUME + 1), n), corr(CLOSE / lag(CLOSE, 1), log(VOLUME / lag(VOLUME, 1) + 1), n),
            mean(up, n), mean(down, n), mean(up, n) - mean(down, n), *shares(change),
            mean(VOLUME, n) / (VOLUME + SMALL), std(VOLUME, n) / (VOLUME + SMALL), std(weight, n) / (mean(weight, n) + SMALL), *shares(traded),
        ), strict=True)}


def features() -> dict[str, Node]:
    """All 158, by Qlib's names."""
    return bars() | {name: node for n in (5, 10, 20, 30, 60) for name, node in windows(n).items()}
