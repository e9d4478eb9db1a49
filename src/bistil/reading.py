"""Labelled files: lines with their numbers, columns of a header, renamed and unknown labels."""

import difflib
import gzip
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bistil.errors import InputError


def plain_name(path: Path) -> str:
    """A file's name without `.gz`: its format shows in what is left."""
    return path.name.removesuffix(".gz")


def read_text(path: str | Path) -> str:
    """A whole UTF-8 file, unpacked where its name ends in `.gz`, without a byte order mark.

    Raises:
        InputError: it is missing, unreadable or not UTF-8 (with the line).
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8; convert the file to UTF-8") from error


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends. Only LF and CRLF end a line, whatever else a word holds."""
    text = read_text(path)
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r")


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON-lines file; blank lines are allowed.

    Raises:
        InputError: a line is not a JSON object.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}); one object per line") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}, line {number}: a JSON object is expected, not {line[:40]}")
        yield number, value


def read_table(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a tab-separated file with a header. Quotes are characters like any other.

    Raises:
        InputError: the file is empty, or a row has another number of fields than the header.
    """
    header: list[str] | None = None
    for number, line in read_lines(path):
        fields = line.split("\t")
        if header is None:
            header = fields
            continue
        if not line.strip():
            continue
        if len(fields) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(fields)} tab-separated fields where the header names {len(header)}; "
                "remove tabs and line breaks from the texts"
            )
        yield number, dict(zip(header, fields, strict=True))
    if header is None:
        raise InputError(f"{path} is empty: a header line such as premise<TAB>hypothesis<TAB>label is expected")


def words_only(text: str) -> list[str]:
    """Runs of letters and digits, NFKC and case folded: what counts when two texts are compared.

    Example:
        >>> words_only("Ｎ'Djamena, 5%")
        ['n', 'djamena', '5']
    """
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def require_examples(examples: Sequence[Any], paths: Sequence[str | Path]) -> None:
    """Refuse a set of files without a single example.

    Raises:
        InputError: no files, or nothing in them.
    """
    if not paths:
        raise InputError("no file was given: name at least one labelled file")
    if not examples:
        raise InputError(f"no examples in {', '.join(map(str, paths))}: the files are empty")


def require_known_label(label: str, labels: Sequence[str], where: str) -> None:
    """Refuse a label that is not among the known ones.

    Raises:
        InputError: with the place, the nearest label and what to do.
    """
    if label in labels:
        return
    near = difflib.get_close_matches(label, labels, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    other = near[0] if near else "O" if "O" in labels else labels[0]
    raise InputError(
        f"{where}: the label {label!r} is not among the model's labels ({', '.join(labels)}); {hint}"
        f"rename it with a label map, such as {label}={other}, or add it to the training data"
    )


def renamed(label: str, label_map: Mapping[str, str] | None) -> str:
    """The label under the label map."""
    return label_map.get(label, label) if label_map else label
