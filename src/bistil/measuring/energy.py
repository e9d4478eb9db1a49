"""What a piece of work takes of the processor: its time, and the energy where the machine counts it.

The counters are those of Linux's powercap (RAPL: Intel's and AMD's processors), of whole packages: all cores and all
that runs on them. Where none can be read there is no figure: none is estimated.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_MICRO = 1e-6


@dataclass
class Used:
    """What a block has used, once it has ended.

    Attributes:
        cpu_seconds: of all threads of this process.
        joules: of all packages; None: no counter can be read.
    """

    cpu_seconds: float = 0.0
    joules: float | None = None


def counters(root: Path = POWERCAP) -> list[Path]:
    """The folders of the packages' counters that this process may read; on most systems root alone may."""
    # Zones within a package have a second colon in their names; counting them too would count twice.
    zones = [one for one in sorted(root.glob("*rapl:*")) if one.name.count(":") == 1]
    return [
        one for one in zones if _text(one / "name").startswith("package") and _number(one / "energy_uj") is not None
    ]


@contextmanager
def metered(zones: list[Path]) -> Iterator[Used]:
    """Measure a block.

    Args:
        zones: `counters`.
    """
    used, before = Used(), [_number(one / "energy_uj") for one in zones]
    start = time.process_time()
    yield used
    used.cpu_seconds = time.process_time() - start
    spent = [_spent(zone, first) for zone, first in zip(zones, before, strict=True)]
    known = [one for one in spent if one is not None]
    used.joules = sum(known) if known and len(known) == len(spent) else None


def _spent(zone: Path, before: int | None) -> float | None:
    after, most = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
    if before is None or after is None:
        return None
    if after < before:  # the counter began again at 0
        if most is None:
            return None
        after += most
    return (after - before) * _MICRO


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None
