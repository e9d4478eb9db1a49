"""What is in a file: running text, or labelled rows, and of which task."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from bistil.errors import InputError
from bistil.tasks import get_task
from bistil.tasks.conll import raw_blocks
from bistil.tasks.multi_label_classification import SEPARATORS
from bistil.tasks.parsing.conllu import HEAD, read_conllu
from bistil.tasks.reading import Reading, RowReport, plain_name
from bistil.tasks.rows import Row, columns_of, is_companion, read_rows, text_columns
from bistil.tasks.spans import marks_spans
from bistil.tasks.texts import FIRST, LABEL
from bistil.tasks.words import WORDS
from bistil.text.files import LINES_LOOKED_AT, first_lines
from bistil.text.lines import read_lines

Form = Literal["text", "columns", "conllu", "json", "table"]
NAMES: dict[Form, str] = {
    "text": "plain text",
    "columns": "CoNLL columns",
    "conllu": "CoNLL-U",
    "json": "JSON",
    "table": "a table",
}

TAGGING, PARSING, QUESTIONS = "token-classification", "dependency-parsing", "question-answering"
ONE_LABEL, SEVERAL_LABELS = "sequence-classification", "multi-label-classification"

# So much of a file's lines has the same number of columns, if it is of columns.
_SAME_WIDTH = 0.95


def look_of(path: Path) -> Form:
    """What a file looks like, by its name or else its first lines.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    lines = _first_lines(path)
    name = plain_name(path).casefold()
    if name.endswith(".conllu"):
        return "conllu"
    if name.endswith((".json", ".jsonl")):
        return "json"
    if name.endswith(".csv"):
        return "table"
    if _in_columns(lines):
        return "columns"
    tabs = {line.count("\t") for line in lines if line.strip()}
    if len(tabs) == 1 and tabs != {0}:
        return "table"
    return "table" if name.endswith(".tsv") else "text"


def kinds_of(path: Path, form: Form, how: Reading) -> list[str]:
    """The tasks that a labelled file may be of, the likeliest first.

    Raises:
        InputError: it cannot be read, or its columns are of no task.
    """
    if form == "columns":
        return [TAGGING]
    if form == "conllu":
        sentences = read_conllu(path, RowReport(str(path)))
        trees = any(head != "_" for sentence in sentences for head in sentence.column(HEAD))
        return [PARSING, TAGGING] if trees else [TAGGING]
    if form == "json" and any('"paragraphs"' in line for line in _first_lines(path)):
        return [QUESTIONS]
    rows = _rows(path, how)
    names = {name: None for _, row in rows[:LINES_LOOKED_AT] for name in row}
    if columns_of(names, WORDS) and any(isinstance(row.get(name), list) for _, row in rows for name in WORDS):
        return [TAGGING]
    if {"question", "context"} <= {name.casefold() for name in names}:
        return [QUESTIONS]
    return _kinds_of_texts(path, [row for _, row in rows], how)


def texts_of_file(path: Path) -> Iterator[str]:
    """The texts of a file: lines of plain text, as a stream, or the different ones that a task reads in labelled rows.

    Raises:
        InputError: it cannot be read, or its columns are of no task.
    """
    form, how = look_of(path), Reading(language="all", quiet=True)
    if form == "text":
        yield from (stripped for line in read_lines(path) if (stripped := line.strip()))
        return
    kind = kinds_of(path, form, how)[0]
    if kind == ONE_LABEL:
        how = replace(how, columns=columns_for_texts(path, how))
    task = get_task(kind)
    examples = task.read([str(path)], how=how)
    yield from dict.fromkeys(text for example in examples for text in task.texts_of(example))


def columns_for_texts(path: Path, how: Reading) -> dict[str, str]:
    """Which columns of a file hold text and label, where their names do not say it.

    Raises:
        InputError: several may be, or none.
    """
    rows = _rows(path, how)
    first, found = rows[0][1], dict[str, str]()
    texts = [name for name in text_columns(rows) if not is_companion(name) and name not in how.ignored]
    if "text" not in how.columns and not columns_of(first, FIRST):
        texts = [name for name in texts if name.casefold() not in LABEL]
        if len(texts) != 1:
            raise _unknown(path, "text", texts, first)
        found["text"] = texts[0]
    if "label" not in how.columns and not columns_of(first, LABEL):
        labels = [name for name in first if name not in (*texts, *found.values()) and _repeats(name, rows)]
        if len(labels) != 1:
            raise _unknown(path, "label", labels, first)
        found["label"] = labels[0]
    return found


def _rows(path: Path, how: Reading) -> list[tuple[int, Row]]:
    """The rows of a file, in all languages; there are some."""
    rows = read_rows(path, replace(how, language="all"), RowReport(str(path)))
    if not rows:
        raise InputError(f"{path} has no rows: give labelled ones, or leave the file out")
    return rows


def _unknown(path: Path, what: str, found: Sequence[str], row: Mapping[str, object]) -> InputError:
    may = f"{', '.join(found)} may" if found else "no column seems to"
    return InputError(
        f"{path}: {may} hold the {what} (columns: {', '.join(row)}); say which with --column {what}=NAME, or give the "
        "table a header"
    )


def _repeats(name: str, rows: Sequence[tuple[int, Row]]) -> bool:
    """Whether a column has few values, each of them often."""
    values = Counter(str(row.get(name)) for _, row in rows)
    return 2 <= len(values) <= max(2, len(rows) // 2)


def _kinds_of_texts(path: Path, rows: Sequence[Row], how: Reading) -> list[str]:
    named = how.columns.get("label", "")
    if "," in named and named not in rows[0]:
        return [SEVERAL_LABELS]
    column = next((name for row in rows for name in ([named] if named else columns_of(row, LABEL))), None)
    if column is None:
        try:
            get_task(SEVERAL_LABELS).read([str(path)], how=replace(how, language="all", quiet=True))
        except InputError:
            return [ONE_LABEL]
        return [SEVERAL_LABELS]
    values = [row.get(column) for row in rows]
    if any(isinstance(value, list) for value in values):
        return [SEVERAL_LABELS]
    texts = Counter(value for value in values if isinstance(value, str))
    for mark in SEPARATORS:
        parts = {part.strip() for text in texts for part in text.split(mark)}
        # Labels that are joined in many ways are fewer than the ways.
        if mark in "".join(texts) and len(parts) < len(texts):
            return [SEVERAL_LABELS, ONE_LABEL]
    return [ONE_LABEL]


def _first_lines(path: Path) -> list[str]:
    lines = first_lines(path)
    if not any(line.strip() for line in lines):
        raise InputError(f"{path} is empty: give text, one sentence or paragraph per line, or labelled rows")
    return lines


def _in_columns(lines: Sequence[str]) -> bool:
    """Whether lines are words with their tags, sentences apart by empty lines."""
    blocks = list(raw_blocks(enumerate(lines, 1)))
    rows = [line.columns for block in blocks for line in block if not line.columns[0].startswith("#")]
    widths = Counter(map(len, rows))
    if not rows:
        return False
    width, count = widths.most_common(1)[0]
    if width < 2 or count < _SAME_WIDTH * len(rows):
        return False
    if marks_spans(Counter(row[-1] for row in rows)):
        return True
    return 1 < len(blocks) < 0.7 * len(rows)
