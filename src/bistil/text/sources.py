"""Where plain text comes from: files, or lines in memory that are read like a file's."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bistil.errors import InputError
from bistil.runtime.artefacts import file_digest

# A list of strings is looked at so far to see whether they are names of files.
_LOOKED_AT = 10
TEXT_COLUMN = "text"


@dataclass(frozen=True, eq=False)
class TextLines:
    """Text in memory. A string may hold several lines, as a file does.

    Args:
        name: for messages, such as "the text of sw".
        texts: sentences or paragraphs.
    """

    name: str
    texts: Iterable[str]

    def __str__(self) -> str:
        return self.name

    def __iter__(self) -> Iterator[str]:
        """TextLines without their ends.

        Raises:
            InputError: something is no text, or holds half a surrogate pair.
        """
        for number, text in enumerate(self.texts, 1):
            if not isinstance(text, str):
                raise InputError(f"{self.name}, text {number}: a string is expected, not {text!r:.60}")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{self.name}, text {number}: half a surrogate pair at character {error.start}; it is no character"
                ) from error
            for line in text.removesuffix("\n").split("\n"):
                yield line.removesuffix("\r")


TextSource = Path | TextLines
"""A text file, or lines in memory."""


def text_digest(source: TextSource) -> str:
    """SHA-256 of a text: of the file's bytes, or of the lines.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(source, Path):
        return file_digest(source)
    digest = hashlib.sha256()
    for line in source:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def as_texts(texts: Mapping[str, Any]) -> dict[str, list[TextSource]]:
    """Texts as people give them, by language.

    Args:
        texts: per language a file (str or Path), a list of files (Path), a list of texts (str) or of mappings with
            "text", or a `datasets.Dataset` with that column.

    Raises:
        InputError: something else, or a list of strings that are names of files.
    """
    return {language: _as_text(f"the text of {language}", given) for language, given in texts.items()}


def _as_text(name: str, given: Any) -> list[TextSource]:
    if isinstance(given, str | Path):
        return [Path(given)]
    if isinstance(given, TextLines):
        return [given]
    columns = getattr(given, "column_names", None)
    if columns is not None:
        if TEXT_COLUMN not in columns:
            raise InputError(f"{name}: a column {TEXT_COLUMN!r} is expected; found: {', '.join(columns)}")
        return [TextLines(name, given[TEXT_COLUMN])]
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise InputError(f"{name}: give texts, files or a data set, not a {type(given).__name__}")
    items = list(given)
    if items and all(isinstance(one, Path | TextLines) for one in items):
        return items
    if items and all(isinstance(one, Mapping) and TEXT_COLUMN in one for one in items):
        return [TextLines(name, [one[TEXT_COLUMN] for one in items])]
    strings = [one for one in items if isinstance(one, str)]
    if len(strings) < len(items):
        other = next(one for one in items if not isinstance(one, str))
        raise InputError(f"{name}: a list of strings, of paths or of mappings with {TEXT_COLUMN!r}, not {other!r:.60}")
    if strings and all(map(_is_file, strings[:_LOOKED_AT])):
        raise InputError(f"{name}: {strings[0]} is a file; give pathlib.Path({strings[0]!r}), for a string is text")
    return [TextLines(name, strings)]


def _is_file(name: str) -> bool:
    """Whether a string names a file; a sentence is no name, and may be too long for one."""
    try:
        return bool(name.strip()) and len(name) < 1000 and Path(name).is_file()
    except (OSError, ValueError):
        return False
