"""Under which licences the package and what it needs are installed, as the installed packages say themselves."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bistil.runtime.documents import read_document

__all__ = ["Licence", "Reach", "installed_licences", "reach_of"]

# What only those need who change the package.
DEVELOPMENT = ("dev", "dist", "docs")


class Reach(IntEnum):
    """How far a licence's conditions reach beyond the package itself, from nothing to all that is built on it."""

    PERMISSIVE = 0
    FILE = 1
    """Changed files of it stay under its licence (MPL, LGPL and the like); what uses it is free."""
    UNKNOWN = 2
    """Nothing is said, or something that is not known here."""
    COPYLEFT = 3
    """What is distributed with it comes under its licence (GPL, AGPL)."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """An installed package's licence."""

    name: str
    version: str
    licence: str
    """As the package says: an SPDX expression, a name, or "not stated"."""
    reach: Reach
    wanted_by: tuple[str, ...]
    """"bistil" where all of its users have it, else the extras that bring it."""


# The first that fits, from the farthest reach on: "LGPL" also holds "GPL".
_KNOWN = (
    (Reach.COPYLEFT, r"\bAGPL|\bAffero|(?<!L)(?<!Lesser )\bGPL|(?<!Lesser )GNU General Public|\bSSPL|\bEUPL|\bOSL\b"),
    (Reach.FILE, r"\bMPL|Mozilla Public|\bLGPL|Lesser General|\bEPL\b|\bCDDL"),
    (
        Reach.PERMISSIVE,
        r"\bMIT\b|\bBSD\b|\d-Clause|\b0?BSD|\bApache|\bISC\b|\bPSF|Python Software|\bZlib|\bCC0|\bUnlicense|\bBSL-1"
        r"|\bHPND|\bCNRI|\bPython-2|public domain",
    ),
)


def reach_of(licence: str) -> Reach:
    """How far a licence reaches: of SPDX alternatives (OR) the least, of parts (AND) the most."""

    def part(said: str) -> Reach:
        said = re.sub(r"\bWITH\b.*", "", said)
        return next((reach for reach, known in _KNOWN if re.search(known, said, re.IGNORECASE)), Reach.UNKNOWN)

    parts = re.split(r"\s+AND\s+", licence.replace("(", " ").replace(")", " "))
    return max(min(part(one) for one in re.split(r"\s+OR\s+", every)) for every in parts)


def installed_licences(package: str = "bistil", *, development: bool = False) -> list[Licence]:
    """The licences of a package and of all that it needs and its extras bring, as far as it is installed, by name.

    Args:
        development: the extras for those who change the package, too.

    Raises:
        PackageNotFoundError: the package itself is not installed.
    """
    start = distribution(package)
    extras = [e for e in start.metadata.get_all("Provides-Extra") or [] if development or e not in DEVELOPMENT]
    found: dict[str, Distribution] = {canonicalize_name(package): start}
    wanted: dict[str, list[str]] = {canonicalize_name(package): [package]}
    for by, extra in [(package, ""), *((extra, extra) for extra in extras)]:
        for name, one in _needed(start, extra):
            found[name] = one
            holders = wanted.setdefault(name, [])
            if package not in holders and by not in holders:
                holders.append(by)
    return [
        Licence(
            name=one.metadata["Name"], version=one.version, licence=(said := _said(one)), reach=reach_of(said),
            wanted_by=tuple(wanted[name]),
        )
        for name, one in sorted(found.items())
    ]  # fmt: skip


def _needed(start: Distribution, extra: str) -> Iterator[tuple[str, Distribution]]:
    """What a package needs with an extra, and what that needs; only what is installed."""
    open_: list[tuple[Distribution, str]] = [(start, extra)]
    seen: set[tuple[str, str]] = set()
    while open_:
        one, own = open_.pop()
        for requirement in map(Requirement, one.requires or []):
            of_extra = requirement.marker is not None and "extra" in str(requirement.marker)
            # An extra of the start brings what is its alone; what all have is found without one.
            if one is start and own and not of_extra:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": own}):
                continue
            name = canonicalize_name(requirement.name)
            try:
                other = distribution(requirement.name)
            except PackageNotFoundError:
                continue
            for of in ("", *sorted(requirement.extras)):
                if (name, of) not in seen:
                    seen.add((name, of))
                    open_.append((other, of))
            yield name, other


def _said(one: Distribution) -> str:
    """The SPDX expression, else the short name, else what the classifiers say."""
    [said] = (one.metadata.get_all("License-Expression") or one.metadata.get_all("License") or [""])[:1]
    named = [
        line.rpartition(" :: ")[2]
        for line in one.metadata.get_all("Classifier") or []
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    # Some put a licence's whole text where its name belongs.
    if not said.strip() or "\n" in said or len(said) > 120 or said.strip().upper() == "UNKNOWN":
        said = " AND ".join(named) or _title(one)
    return said.strip() or "not stated"


def _title(one: Distribution) -> str:
    """The first line of the licence's own text, which names it by custom."""
    for file in one.files or []:
        if re.match(r"(LICEN[CS]E|COPYING)\b", file.name, re.IGNORECASE) and ".dist-info" in str(file):
            text = read_document(Path(str(file.locate()))).strip()
            return text.splitlines()[0].strip()[:80] if text else ""
    return ""
