"""Lengths of time as people write them."""

import re

from bistil.errors import RecipeError

_UNITS = {"h": 3600, "m": 60, "s": 1}
_WRITTEN = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def seconds_of(text: str) -> float:
    """Seconds of a duration such as 45m, 2h, 90s or 1h30m.

    Raises:
        RecipeError: it is no duration, or none at all.
    """
    written = _WRITTEN.fullmatch(text.replace(" ", ""))
    parts = written.groups() if written else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, _UNITS.values(), strict=False) if part)
    if not seconds:
        raise RecipeError(f"budget is {text!r}; give a duration such as 45m, 2h, 90s or 1h30m")
    return seconds


def rough_duration(seconds: float) -> str:
    """A duration for people, no finer than it is known: 40 s, 12 min, 1 h 30 min, 3 d 4 h."""
    if seconds < 89.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} d {rest} h" if rest else f"{days} d"
