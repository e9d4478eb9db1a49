"""Whether a folder of pages asks a browser for anything that is not in it. Links that a reader follows are no asset."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

# Attributes whose address a browser fetches by itself.
FETCHED = {"src", "srcset", "poster", "data", "background"}
# Kinds of <link> that fetch nothing.
NAMES_ONLY = {"index", "search", "next", "prev", "canonical", "author", "license", "alternate"}
ELSEWHERE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)


class _Assets(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.found += [value for name, value in given.items() if name in FETCHED]
        self.found += list(_of_style(given.get("style", "")))
        if tag == "link" and not NAMES_ONLY.intersection(given.get("rel", "").split()):
            self.found.append(given.get("href", ""))
        if tag in ("use", "image"):
            self.found += [value for name, value in given.items() if name in ("href", "xlink:href")]
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._style:
            self.found += _of_style(data)


def _of_style(style: str) -> Iterator[str]:
    for match in re.finditer(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", style):
        yield match[1] or match[2]


def outside(folder: Path) -> list[str]:
    """What the pages and style sheets in a folder fetch from elsewhere, each with its file."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".svg"):
            parser = _Assets()
            parser.feed(path.read_text(encoding="utf-8"))
            assets = parser.found
        elif path.suffix == ".css":
            assets = list(_of_style(path.read_text(encoding="utf-8")))
        else:
            continue
        found += [f"{path.relative_to(folder)}: {one}" for one in assets if ELSEWHERE.match(one)]
    return found
