"""Numbers as people read them. A value that does not exist is an empty cell."""

from collections.abc import Sequence
from statistics import mean, stdev


def millions(value: int | None) -> str:
    """Count in millions: 117.7."""
    return "" if value is None else f"{value / 1e6:.1f}" if value >= 1e5 else f"{value / 1e6:.3f}"


def megabytes(value: int | None) -> str:
    """Bytes in megabytes (10^6)."""
    return "" if value is None else f"{value / 1e6:.0f}" if value >= 1e7 else f"{value / 1e6:.1f}"


def giga(value: int | None) -> str:
    """Operations in 10^9."""
    return "" if value is None else f"{value / 1e9:.2f}" if value >= 1e7 else f"{value / 1e9:.4f}"


def milliseconds_text(value: float | None) -> str:
    """Milliseconds with three significant digits or so."""
    return "" if value is None else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def score_text(value: float | None) -> str:
    """Score in percent: 71.2."""
    return "" if value is None else f"{100 * value:.1f}"


def interval_text(interval: Sequence[float] | None) -> str:
    """Score interval in percent: [66.0 76.1]."""
    return "" if interval is None else f"[{100 * interval[0]:.1f} {100 * interval[1]:.1f}]"


def points(value: float | None) -> str:
    """Difference of two scores in points, with its sign: -1.3."""
    if value is None:
        return ""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def spread_text(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and standard deviation of values that are in percent or points, of one value itself: 71.2 ± 0.8."""
    if not values:
        return ""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def times(value: float | None) -> str:
    """Ratio: 2.03x."""
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def duration(seconds: float | None) -> str:
    """Wall time: 4 min 05 s."""
    if seconds is None:
        return ""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
