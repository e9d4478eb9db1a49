"""Labelled files: lines with their numbers, rows of a table, what became of odd rows, renamed and unknown labels."""

import csv
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from bistil.errors import InputError
from bistil.runtime.documents import LONGEST_LINE, MOST_BYTES, check_file, parse_json, too_large
from bistil.text.files import BATCH_BYTES, open_text

# Of a file, so many odd rows are left out: whichever is more. Beyond that something else is wrong with it.
ODD_ROWS, ODD_SHARE = 10, 0.01
# Halves of a surrogate pair: JSON escapes can name one alone, which is no character and cannot be encoded.
SURROGATES = re.compile("[\ud800-\udfff]")
# A notice shows so much of the first reason.
SHOWN = 160


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How labelled files are read where they do not say it themselves."""

    label_map: Mapping[str, str] = field(default_factory=dict, metadata={"help": "labels to rename"})
    columns: Mapping[str, str] = field(
        default_factory=dict,
        metadata={"help": "which column is what, such as pair or tags; ignore: columns, separated by commas"},
    )
    language: str | None = field(default=None, metadata={"help": "of a file in several, rows of this one; all: all"})
    scheme: str | None = field(default=None, metadata={"help": "of the tags (`tasks.spans.SCHEMES`); None: by them"})
    separator: str | None = field(
        default=None,
        metadata={"help": "between labels in one text; none, the word: a text is one label; None: by them"},
    )
    strict: bool = field(default=False, metadata={"help": "refuse a file for its first odd row"})
    quiet: bool = field(default=False, metadata={"help": "say nothing of what was mended or left out"})

    @property
    def ignored(self) -> set[str]:
        """The columns that are not used on purpose."""
        return {name.strip() for name in self.columns.get("ignore", "").split(",")} - {""}


class NoLabelError(InputError):
    """A row lacks its label: it is left out and counted, for it is not odd."""


@dataclass
class Tally:
    """How many rows of one kind there were, with the first one's place and reason."""

    count: int = 0
    first: str = ""

    def add(self, reason: str) -> None:
        self.first = self.first or reason
        self.count += 1


@dataclass
class RowReport:
    """What became of one file's rows: mended, left out for a missing label, left out as odd; and what else to say.

    A row is read in `with report.row(key):`. An InputError in there leaves that row out, one beyond the limits, or the
    first one if `strict`, refuses the file.

    Attributes:
        kept: how many rows became examples.
        mended: per key of a row (the line that it begins in, or its number), where and what was done.
        unlabelled, odd: the rows that were left out.
        notices: what else to say about the file.
    """

    file: str
    strict: bool = False
    kept: int = 0
    mended: dict[int, str] = field(default_factory=dict)
    unlabelled: Tally = field(default_factory=Tally)
    odd: Tally = field(default_factory=Tally)
    notices: list[str] = field(default_factory=list)

    @contextmanager
    def row(self, key: int) -> Iterator[None]:
        """Around the reading of one row; what is wrong with it ends here, unless the reading is strict."""
        try:
            yield
        except InputError as error:
            self.mended.pop(key, None)
            self.leave_out(error)

    def leave_out(self, error: InputError) -> None:
        """Count a row that is not read.

        Raises:
            InputError: `error`, if it is odd and the reading strict.
        """
        if isinstance(error, NoLabelError):
            self.unlabelled.add(str(error))
        elif self.strict:
            raise error
        else:
            self.odd.add(str(error))

    def mend(self, key: int, line: int, what: str) -> None:
        """Count a row as mended."""
        self.mended.setdefault(key, f"line {line}: {what}")

    def notice(self, text: str) -> None:
        """Something about the whole file that the user should know; said once."""
        if text not in self.notices:
            self.notices.append(text)

    def finish(self, kept: int) -> None:
        """After the last row, of which `kept` became examples.

        Raises:
            InputError: too many odd rows, or nothing else; with the first one's message.
        """
        self.kept = kept
        rows, odd = kept + self.unlabelled.count + self.odd.count, self.odd.count
        if odd > max(ODD_ROWS, ODD_SHARE * rows) or (odd and not kept):
            more = f", and {odd - 1} more of {rows} rows; correct them, or say how to read the file" if odd > 1 else ""
            raise InputError(self.odd.first + more)

    @property
    def counts(self) -> dict[str, int]:
        """For records."""
        return {
            "rows": self.kept,
            "mended": len(self.mended),
            "without_label": self.unlabelled.count,
            "odd": self.odd.count,
        }

    def line(self) -> str | None:
        """One line for people; None if there is nothing to say."""
        parts = list(self.notices)
        if self.odd.count:
            parts.append(f"{_rows(self.odd.count)} left out ({self._shown(self.odd.count, self.odd.first)})")
        if self.unlabelled.count:
            count = self.unlabelled.count
            parts.append(f"{count:,} without a label left out ({self._shown(count, self.unlabelled.first)})")
        if self.mended:
            count = len(self.mended)
            parts.append(f"{count:,} mended ({self._shown(count, self.mended[min(self.mended)])})")
        return f"{self.file}: {'; '.join(parts)}" if parts else None

    def _shown(self, count: int, first: str) -> str:
        reason = first.removeprefix(f"{self.file}, ")
        shown = reason if len(reason) <= SHOWN else reason[:SHOWN] + " ..."
        return f"the first: {shown}" if count > 1 else shown


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"


def without_surrogates(value: Any) -> Any:
    """A JSON value whose strings, keys too, have U+FFFD for each lone surrogate; the same object if none has one."""
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value) if SURROGATES.search(value) else value
    if isinstance(value, list):
        items = [without_surrogates(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        pairs = [(without_surrogates(key), without_surrogates(item)) for key, item in value.items()]
        same = all(key is k and item is i for (key, item), (k, i) in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    return value


def plain_name(path: Path) -> str:
    """A file's name without `.gz`: its format shows in what is left."""
    return path.name.removesuffix(".gz")


def read_text(path: str | Path) -> str:
    """A whole UTF-8 file, unpacked where its name ends in `.gz`, without a byte order mark.

    Raises:
        InputError: it is missing, no plain file, unreadable, damaged, too large (unpacked too) or not UTF-8 (with the
            line).
    """
    path = Path(path)
    check_file(path)
    blocks, size = [], 0
    with open_text(path) as (stream, _):
        while block := stream.read(BATCH_BYTES):
            blocks.append(block)
            size += len(block)
            if size > MOST_BYTES:
                raise InputError(too_large(path))
    data = b"".join(blocks)
    del blocks
    if b"\0" in data[:1000]:
        raise InputError(f"{path} holds NUL characters: it is UTF-16 or no text; convert it to UTF-8, as with iconv")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8; convert the file to UTF-8") from error


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends. Only LF and CRLF end a line, whatever else a word holds."""
    text = read_text(path)
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r")


def read_jsonl(path: str | Path, report: RowReport | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON-lines file; blank lines are allowed, lone surrogates become U+FFFD.

    Raises:
        InputError: a line is not a JSON object (with a report, such lines are odd rows).
    """
    report = report or RowReport(str(path), strict=True)
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = _object(line, where)
        except InputError as error:
            report.leave_out(error)
            continue
        yield number, mended_text(value, number, number, report) if "\\u" in line else value


def mended_text(value: Any, key: int, line: int, report: RowReport) -> Any:
    """`without_surrogates`, counted."""
    cleaned = without_surrogates(value)
    if cleaned is not value:
        report.mend(key, line, "half a surrogate pair is no character: U+FFFD is in its place")
    return cleaned


def require_short(text: str, where: str) -> None:
    """Refuse a row, or a text in one, that no example can be made of.

    Raises:
        InputError: it has more than `LONGEST_LINE` characters.
    """
    if len(text) > LONGEST_LINE:
        raise InputError(f"{where}: {len(text):,} characters, and {LONGEST_LINE:,} are the most: cut it up")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        require_short(line, where)
        value = parse_json(line, lenient=True)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); one object per line") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is expected, not {line[:40]}")
    return value


def read_table(path: str | Path, report: RowReport | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a table with a header: comma-separated (`.csv`, quotes as in RFC 4180), else by tabs.

    In tab-separated files quotes are characters like any other.

    Raises:
        InputError: the file is empty, or a row has another number of fields than the header (with a report: odd rows).
    """
    report = report or RowReport(str(path), strict=True)
    commas = plain_name(Path(path)).endswith(".csv")
    rows = (
        comma_separated(io.StringIO(read_text(path), newline=""), path)
        if commas
        else ((number, line.split("\t")) for number, line in numbered_lines(path))
    )
    header: list[str] | None = None
    for number, fields in rows:
        if header is None:
            header = different_names([name.strip() for name in fields])
            continue
        if not any(one.strip() for one in fields):
            continue
        if len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        else:
            separated = "comma" if commas else "tab"
            report.leave_out(
                InputError(
                    f"{path}, line {number}: {len(fields)} {separated}-separated fields where the header names "
                    f"{len(header)}; remove {separated}s and line breaks from the texts"
                )
            )
    if header is None:
        raise InputError(f"{path} is empty: a header line such as premise<TAB>hypothesis<TAB>label is expected")


def different_names(names: Sequence[str]) -> list[str]:
    """Names of columns, a repeated one with its number, so that none hides another."""
    return [f"{name}.{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]


def comma_separated(lines: Iterable[str], name: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line that each begins in; some spreadsheets write semicolons for commas.

    Args:
        lines: with their ends, the header first; a field in quotes may go over several.
        name: of the file, for messages.

    Raises:
        InputError: they are no such rows.
    """
    every = iter(lines)
    header = next(every, "")
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.reader(chain([header], every), delimiter=delimiter)
    number = 1
    try:
        for fields in reader:
            yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}, line {number}: not comma-separated values ({error})") from error


def words_only(text: str) -> list[str]:
    """Runs of letters and digits, NFKC and case folded: what counts when two texts are compared.

    Example:
        >>> words_only("Ｎ'Djamena, 5%")
        ['n', 'djamena', '5']
    """
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def require_known_label(label: str, labels: Sequence[str], where: str) -> None:
    """Refuse a label that is not among the known ones.

    Raises:
        InputError: with the place, the nearest label and what to do.
    """
    require_known_labels([(label, where)], labels)


def require_known_labels(found: Iterable[tuple[str, str]], labels: Sequence[str]) -> None:
    """Refuse labels that are not among the known ones, all at once.

    Args:
        found: labels with their places.

    Raises:
        InputError: with the first one's place, the nearest labels, and a label map to paste.
    """
    known = set(labels)
    unknown: dict[str, str] = {}
    for label, where in found:
        if label not in known:
            unknown.setdefault(label, where)
    if not unknown:
        return
    near = {label: next(iter(difflib.get_close_matches(label, labels, n=1)), None) for label in unknown}
    named = {label: one or ("O" if "O" in known else labels[0]) for label, one in near.items()}
    first, where = next(iter(unknown.items()))
    if len(unknown) == 1:
        hint = f"did you mean {near[first]!r}? " if near[first] else ""
        raise InputError(
            f"{where}: the label {first!r} is not among the model's labels ({', '.join(labels)}); {hint}"
            f"rename it with a label map, such as {first}={named[first]}, or add it to the training data"
        )
    pasted = ", ".join(f"{json.dumps(old, ensure_ascii=False)} = {json.dumps(new, ensure_ascii=False)}"
                       for old, new in named.items())  # fmt: skip
    raise InputError(
        f"{where}: {len(unknown)} labels are not among the model's ({', '.join(labels)}): "
        f"{', '.join(map(repr, unknown))}; rename them, as a recipe does with label_map = {{ {pasted} }} and a command "
        "with --label-map OLD=NEW for each, or add them to the training data"
    )


def renamed(label: str, label_map: Mapping[str, str] | None) -> str:
    """The label under the label map."""
    return label_map.get(label, label) if label_map else label
