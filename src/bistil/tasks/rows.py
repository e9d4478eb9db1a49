"""Rows of labelled files and data sets: of the wanted language, and which of their columns are used."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from bistil.errors import InputError
from bistil.runtime.documents import parse_json
from bistil.tasks.hub import Source, is_dataset, is_file, read_dataset
from bistil.tasks.reading import (
    Reading,
    RowReport,
    mended_text,
    numbered_lines,
    plain_name,
    read_jsonl,
    read_table,
    read_text,
)
from bistil.tasks.words import count_words

Row = dict[str, Any]

# So many rows are looked at to learn what a column holds.
LOOKED_AT = 1000
LANGUAGE = ("language", "lang")
# Another form of a text that is used: parses and tokens (SNLI, MultiNLI, XNLI).
COMPANIONS = ("_parse", "_tokenized", "_tokens", "_lemmas", "_pos")


def is_table(path: Source) -> TypeGuard[Path]:
    """Whether the file's name is that of a table with a header."""
    return is_file(path) and plain_name(path).endswith((".tsv", ".txt", ".csv"))


def is_json(path: Source) -> TypeGuard[Path]:
    """Whether the file's name is that of JSON lines."""
    return is_file(path) and plain_name(path).endswith((".jsonl", ".json"))


def read_rows(path: Source, how: Reading, report: RowReport) -> list[tuple[int, Row]]:
    """Line numbers and rows of JSON lines (or one JSON list), a table or a data set, those of the wanted language.

    Raises:
        InputError: the file cannot be read, or is in several languages and none or another one is wanted.
    """
    return of_language(list(_rows(path, report)), path, how, report)


def of_language(rows: list[tuple[int, Row]], path: Source, how: Reading, report: RowReport) -> list[tuple[int, Row]]:
    """Those of the rows that are in the wanted language, if a column `language` or `lang` names several.

    Codes are compared without case; `sw` takes `sw-KE` and `swh_Latn` takes `swh` where nothing fits better.

    Raises:
        InputError: several languages, and none is asked for or there.
    """
    column = next((name for name in LANGUAGE if any(isinstance(row.get(name), str) for _, row in rows)), None)
    if column is None or column in how.ignored or how.language == "all":
        return rows
    counts = Counter(str(row.get(column)) for _, row in rows)
    if len(counts) < 2:
        return rows
    wanted = _nearest_language(how.language, counts)
    if not wanted:
        said = (
            "say which with --language" if how.language is None else f"none is {how.language!r}; choose with --language"
        )
        raise InputError(
            f"{path}: the column {column!r} names {len(counts)} languages ({listed(sorted(counts))}): {said} "
            f"(all: all of them; --column ignore={column}: it names no languages)"
        )
    kept = [(line, row) for line, row in rows if str(row.get(column)) in wanted]
    lines = {line for line, _ in kept}
    report.mended = {line: what for line, what in report.mended.items() if line in lines}
    report.notice(f"of {len(rows):,} rows the {len(kept):,} in {', '.join(wanted)} are read")
    return kept


def _nearest_language(wanted: str | None, known: Collection[str]) -> list[str]:
    if wanted is None:
        return []

    def base(code: str) -> str:
        return code.replace("_", "-").casefold().split("-")[0]

    exact = [code for code in known if code.casefold() == wanted.casefold()]
    return exact or sorted(code for code in known if base(code) == base(wanted))


def _rows(path: Source, report: RowReport) -> Iterable[tuple[int, Row]]:
    if is_dataset(path):
        return read_dataset(path)
    if is_json(path):
        return _json_list(path, report) if _starts_with(path, "[") else read_jsonl(path, report)
    if is_table(path):
        return read_table(path, report)
    raise InputError(
        f"{path}: unknown format; give .jsonl, .tsv or .csv with a header (also .gz), or dataset:NAME:SPLIT"
    )


def _starts_with(path: Path, mark: str) -> bool:
    first = next((line for _, line in numbered_lines(path) if line.strip()), "")
    return first.strip() == mark or (first.lstrip().startswith(mark + "{"))


def _json_list(path: Path, report: RowReport) -> Iterator[tuple[int, Row]]:
    """The objects of one JSON list; they count as lines."""
    try:
        values = parse_json(read_text(path), lenient=True)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield number, mended_text(value, number, number, report)
        else:
            report.leave_out(InputError(f"{path}, line {number}: a JSON object is expected, not {str(value)[:40]}"))


def column_of(row: Mapping[str, Any], names: Sequence[str], *, ignored: Collection[str] = ()) -> str | None:
    """The row's column that has the first of these names, whatever the case."""
    known = {name.casefold(): name for name in row if name not in ignored}
    return next((known[name] for name in names if name in known), None)


def columns_of(row: Mapping[str, Any], names: Sequence[str], *, ignored: Collection[str] = ()) -> list[str]:
    """All columns that have one of these names, in the order of the names."""
    known = {name.casefold(): name for name in row if name not in ignored}
    return [known[name] for name in names if name in known]


def check_named(rows: Sequence[tuple[int, Row]], path: Source, how: Reading) -> None:
    """Make sure that the columns that the user names are there.

    Raises:
        InputError: one is in no row.
    """
    if not rows:
        return
    known = dict.fromkeys(name for _, row in rows[:LOOKED_AT] for name in row)
    named = [*(column for name, column in how.columns.items() if name != "ignore"), *sorted(how.ignored)]
    for column in named:
        if column not in known:
            header = "; a table's first line names its columns" if is_table(path) else ""
            raise InputError(f"{path} has no column {column!r}; found: {', '.join(known)}{header}")


def text_columns(rows: Sequence[tuple[int, Row]]) -> list[str]:
    """Columns that hold text: in at least half of the first rows a string of two words or more."""
    looked_at = [row for _, row in rows[:LOOKED_AT]]
    counts: Counter[str] = Counter()
    for row in looked_at:
        counts.update(name for name, value in row.items() if isinstance(value, str) and count_words(value) >= 2)
    return [name for name, count in counts.items() if 2 * count >= len(looked_at)]


def is_companion(name: str) -> bool:
    """Whether a column is known to hold another form of a text that is used."""
    return name.casefold().endswith(COMPANIONS)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Some of the names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
