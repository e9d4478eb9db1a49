"""What models are asked about: running text, words that are split already, rows; read line by line."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import regex  # type: ignore[import-untyped]

from bistil.errors import InputError
from bistil.runtime.documents import parse_json
from bistil.tasks.conll import Line, around_tags, block_of, find_layout, raw_blocks
from bistil.tasks.parsing.conllu import FORM, read_conllu
from bistil.tasks.reading import Reading, comma_separated, different_names, plain_name, without_surrogates
from bistil.tasks.rows import LOOKED_AT, column_of, columns_of
from bistil.tasks.texts import FIRST, SECOND
from bistil.tasks.words import WORDS
from bistil.text.files import BATCH_BYTES, batches_read, line_batches, require_plain_text

Form = Literal["text", "words", "conll", "conllu", "jsonl", "tsv", "csv"]
"""Of a file's inputs: a line of running text each, words between spaces, CoNLL columns, CoNLL-U, rows."""

# Where inputs of a name's ending are not text.
FORM_OF = {
    ".conllu": "conllu",
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio"), "conll"),
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
}
Place = tuple[int, int]
"""Start and end in characters of the text."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """What is asked about.

    Attributes:
        where: for messages, such as "a.txt, line 3".
        line: in which it begins, from 1.
        text: running text, or the words with a space between where there was none.
        second: of a pair of texts; the passage of a question.
        words: where they are given: their places in the text. None: they are not split yet.
        source: what it takes to write it back in its form: a sentence of CoNLL-U, what stands around each word's tag
            in CoNLL columns, a row. None: nothing.
    """

    where: str
    line: int
    text: str
    second: str | None = None
    words: list[Place] | None = field(default=None, repr=False)
    source: Any = field(default=None, repr=False)


def of_words(words: Sequence[str], *, where: str = "", line: int = 0, source: Any = None) -> Input:
    """Words that are split already, as an input."""
    ends = list(accumulate((len(word) + 1 for word in words), initial=0))[1:]
    places = [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]
    return Input(where=where, line=line, text=" ".join(words), words=places, source=source)


class Lines:
    """Lines of a file, or of standard input as they come, with their numbers from 1.

    Args:
        path: plain, .gz or .zst; None: standard input.

    Attributes:
        name: for messages.
        drained: whether the last line that came was the last one that is there now.
        bytes: how many of the file (compressed as it is) were read.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.name = path, "standard input" if path is None else str(path)
        self.drained, self.bytes = False, 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        number = 0
        for batch in self._batches():
            for i, line in enumerate(batch, 1):
                number += 1
                self.drained = i == len(batch)
                yield number, line

    def _batches(self) -> Iterator[list[str]]:
        if self.path is not None:
            return line_batches(self.path, progress=self._count)
        return batches_read(self._read, self.name)

    def _read(self) -> bytes:
        # What is there, however little: somebody may be waiting for the answer.
        stream: Any = sys.stdin.buffer
        block: bytes = stream.read1(BATCH_BYTES)
        self._count(len(block))
        return block

    def _count(self, size: int) -> None:
        self.bytes += size


def form_of(path: Path | None, forms: Sequence[Form]) -> Form:
    """The form of a file by its name; running text where that says nothing, or nothing that a task has a use for."""
    if path is None:
        return "text"
    name = plain_name(path).removesuffix(".zst").removesuffix(".zstd")
    return next((form for form in forms if form == FORM_OF.get(Path(name).suffix)), "text")


def check_form(path: Path) -> None:
    """Make sure that a file that is taken for running text without being called so is none of labelled rows.

    Raises:
        InputError: it is.
    """
    if form_of(path, ("csv",)) == "csv":
        raise InputError(
            f"{path} is a table by its name (.csv), and plain text is expected: take its column of text; or say what "
            "it is with --input"
        )
    try:
        require_plain_text(path)
    except InputError as error:
        if "plain text is expected" not in str(error):
            raise
        raise InputError(f"{error}; or say what it is with --input") from error


def read_inputs(
    lines: Lines, form: Form, *, texts: Literal["words", "pair", "question"], columns: Mapping[str, str]
) -> Iterator[Input]:
    """The inputs of a file, one after the other.

    Args:
        texts: what a task reads: words, a text or a pair of texts, or a question and its passage.
        columns: which column is what (`Reading.columns`), where the names do not say it.

    Raises:
        InputError: a line is not what it must be, with its number.
    """
    if form in ("text", "words"):
        return _plain(lines, form, texts)
    if form == "conllu":
        return (
            of_words(sentence.column(FORM), where=sentence.where(0), line=sentence.line, source=sentence)
            for sentence in read_conllu(lines.name, lines=lines)
        )
    if form == "conll":
        return _conll(lines, columns)
    rows = _objects(lines) if form == "jsonl" else _table(lines, "tab" if form == "tsv" else "comma")
    return (_of_row(row, line, f"{lines.name}, line {line}", texts, columns) for line, row in rows)


def _plain(lines: Lines, form: Form, texts: str) -> Iterator[Input]:
    for number, line in lines:
        where = f"{lines.name}, line {number}"
        if form == "words":
            places = [match.span() for match in regex.finditer(r"\S+", line)]
            yield Input(where=where, line=number, text=line, words=places)
        elif texts == "question" and line.strip():
            question, tab, passage = line.partition("\t")
            if not tab:
                raise InputError(
                    f"{where}: a question, a tab and its passage are expected (or JSON lines with question and context)"
                )
            yield Input(where=where, line=number, text=question, second=passage)
        else:
            yield Input(where=where, line=number, text=line)


def _conll(lines: Lines, columns: Mapping[str, str]) -> Iterator[Input]:
    """Sentences of CoNLL columns; the first 1,000, or what is there by now, show the layout."""
    blocks, first = raw_blocks(lines), list[list[Line]]()
    for block in blocks:
        first.append(block)
        if len(first) >= LOOKED_AT or lines.drained:
            break
    layout = find_layout(first, Path(lines.name), Reading(columns=columns), labelled=False)
    for raw in chain(first, blocks):
        block_found = None if layout is None else block_of(raw, layout)
        if layout is None or block_found is None:
            continue
        for line in block_found.lines:
            if len(line.columns) != layout.width or not line.columns[layout.words]:
                raise InputError(
                    f"{lines.name}, line {line.number}: {len(line.columns)} columns where {layout.width} are expected, "
                    f"the word in column {layout.words + 1}; correct the line, or say with --input what the file holds"
                )
        start = block_found.lines[0].number
        words = [line.columns[layout.words] for line in block_found.lines]
        source = around_tags(block_found, layout)
        yield of_words(words, where=f"{lines.name}, line {start}", line=start, source=source)


def _objects(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{lines.name}, line {number}"
        try:
            value = without_surrogates(parse_json(line, lenient=True))
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON ({error}); one object per line") from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: a JSON object is expected, not {line[:40]}")
        yield number, value


def _table(lines: Lines, separator: Literal["tab", "comma"]) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = (
        ((number, line.split("\t")) for number, line in lines)
        if separator == "tab"
        else comma_separated((f"{line}\n" for _, line in lines), lines.name)
    )
    header: list[str] | None = None
    for number, fields in rows:
        if header is None:
            header = different_names([name.strip() for name in fields])
        elif len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        elif any(one.strip() for one in fields):
            raise InputError(
                f"{lines.name}, line {number}: {len(fields)} {separator}-separated fields where the header names "
                f"{len(header)}"
            )


def _of_row(row: dict[str, Any], line: int, where: str, texts: str, columns: Mapping[str, str]) -> Input:
    if texts == "question":
        question, passage = (_text(row, columns.get(name, name), where) for name in ("question", "context"))
        return Input(where=where, line=line, text=question, second=passage, source=row)
    if texts == "words":
        key = columns.get("words") or next(iter(columns_of(row, WORDS)), None)
        words = row.get(key) if key is not None else None
        if key is not None and (not isinstance(words, list) or not all(isinstance(one, str) and one for one in words)):
            raise InputError(f"{where}: {key!r} must be a list of non-empty strings")
        if isinstance(words, list):
            return of_words(words, where=where, line=line, source=row)
    first = columns.get("text") or column_of(row, FIRST)
    second = columns.get("pair") or column_of(row, SECOND)
    if first is None:
        raise InputError(
            f"{where}: no column holds a text ({', '.join(FIRST)}); found: {', '.join(row)}; name it with --column "
            "text=NAME"
        )
    pair = _text(row, second, where) if second is not None and texts == "pair" else None
    return Input(where=where, line=line, text=_text(row, first, where), second=pair, source=row)


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    if not isinstance(row.get(column), str):
        there = f"it is {row[column]!r:.40}" if column in row else f"found: {', '.join(row)}"
        raise InputError(f"{where}: a text is expected in {column!r}; {there}; name another with --column")
    text: str = row[column]
    return text


CHUNK, CHUNK_CHARACTERS = 1024, 1 << 18
"""So many inputs at most, of about so many characters, are in memory at once."""


def chunks(inputs: Iterable[Input], lines: Lines) -> Iterator[list[Input]]:
    """The inputs in groups, the same ones each time a file is read; of standard input what is there."""
    chunk, characters = list[Input](), 0
    for one in inputs:
        chunk.append(one)
        characters += len(one.text) + len(one.second or "")
        if len(chunk) >= CHUNK or characters >= CHUNK_CHARACTERS or lines.drained:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
