"""CoNLL-U: read with every line kept, checked, and written back with other tags or trees.

Format: https://universaldependencies.org/format.html
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from bistil.errors import InputError
from bistil.tasks.reading import RowReport, numbered_lines

ID, FORM, UPOS, HEAD, DEPREL, DEPS = 0, 1, 3, 6, 7, 8
COLUMNS = 10
_MOST_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence of a CoNLL-U file.

    Attributes:
        rows: all lines with columns, multiword tokens (1-2) and empty nodes (1.1) included, 10 columns each.
        lines: 1-based line number of each row.
        words: indices into `rows` of the syntactic words, in order.
    """

    file: str
    line: int
    comments: list[str]
    rows: list[list[str]]
    lines: list[int]
    words: list[int] = field(repr=False)

    def column(self, number: int) -> list[str]:
        """One column of the syntactic words."""
        return [self.rows[i][number] for i in self.words]

    def where(self, word: int) -> str:
        """The place of a word (from 0) for messages."""
        return f"{self.file}, line {self.lines[self.words[word]]}"


def read_conllu(
    path: str | Path, report: RowReport | None = None, *, lines: Iterable[tuple[int, str]] | None = None
) -> Iterator[Sentence]:
    """The sentences of a CoNLL-U file (`.gz` allowed; the last empty line may be missing).

    Args:
        report: gets the sentences that are left out; None: the first odd one is refused.
        lines: the file's, with their numbers from 1; None: they are read.

    Raises:
        InputError: a line has not 10 columns, word ids do not count 1, 2, 3 ..., a multiword token's range is not
            that of the words after it, or comments are followed by no word.
    """
    report = report or RowReport(str(path), strict=True)
    block: list[tuple[int, str]] = []
    # The line after the last closes the last sentence, whether the file ends in an empty line or not.
    for number, line in chain(numbered_lines(path) if lines is None else lines, [(0, "")]):
        if line.strip(" \t"):
            block.append((number, line))
        elif block:
            with report.row(block[0][0]):
                yield _block(path, block)
            block = []


def _block(path: str | Path, block: list[tuple[int, str]]) -> Sentence:
    """The sentence of consecutive lines with their numbers."""
    comments: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    for number, line in block:
        if line.startswith("#") and not rows:
            comments.append(line)
            continue
        columns = line.split("\t")
        if len(columns) != COLUMNS:
            raise InputError(f"{path}, line {number}: {len(columns)} tab-separated columns; CoNLL-U has {COLUMNS}")
        rows.append(columns)
        lines.append(number)
    return _sentence(path, block[0][0], comments, rows, lines)


def _sentence(path: str | Path, start: int, comments: list[str], rows: list[list[str]], lines: list[int]) -> Sentence:
    words: list[int] = []
    for i, row in enumerate(rows):
        where = f"{path}, line {lines[i]}"
        if not row[FORM]:
            raise InputError(f"{where}: the form is empty; write _ for an unknown one")
        if re.fullmatch(r"[0-9]+", row[ID]):
            if _number(row[ID]) != len(words) + 1:
                raise InputError(f"{where}: word id {row[ID]} where {len(words) + 1} is expected")
            words.append(i)
        elif span := re.fullmatch(r"([0-9]+)-([0-9]+)", row[ID]):
            if _number(span[1]) != len(words) + 1 or _number(span[2]) < _number(span[1]):
                raise InputError(f"{where}: multiword token {row[ID]} does not start at the next word {len(words) + 1}")
        elif not re.fullmatch(r"[0-9]+\.[0-9]+", row[ID]):
            raise InputError(f"{where}: {row[ID]!r} is no word id (1), multiword token (1-2) or empty node (1.1)")
    if not words:
        raise InputError(f"{path}, line {start}: a sentence without words; remove its comment lines or add its words")
    for i, row in enumerate(rows):
        if "-" in row[ID] and _number(row[ID].split("-")[1]) > len(words):
            raise InputError(f"{path}, line {lines[i]}: multiword token {row[ID]} ends behind word {len(words)}")
    return Sentence(file=str(path), line=start, comments=comments, rows=rows, lines=lines, words=words)


def _number(digits: str) -> int:
    """A number of CoNLL-U; one of more digits than any sentence has words stands for all that are too large."""
    return int(digits) if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS


def heads(sentence: Sentence) -> list[int]:
    """(words,) heads of a sentence's basic tree, 0 for the root.

    Raises:
        InputError: a head is no word id, there is not exactly one root, or a cycle; with the line.
    """
    found = []
    for i, value in enumerate(sentence.column(HEAD)):
        if not re.fullmatch(r"[0-9]+", value) or _number(value) > len(sentence.words):
            raise InputError(
                f"{sentence.where(i)}: head {value[:40]!r} is not a number from 0 to {len(sentence.words)}"
            )
        found.append(int(value))
    roots = [i for i, head in enumerate(found) if head == 0]
    if len(roots) != 1:
        place = sentence.where(roots[1]) if roots else sentence.where(0)
        raise InputError(f"{place}: the sentence has {len(roots)} roots (head 0); exactly one is allowed")
    settled: set[int] = set()
    for i in range(len(found)):
        path, word = set[int](), i
        while word not in settled and found[word] != 0:
            if word in path:
                raise InputError(
                    f"{sentence.where(word)}: the heads form a cycle through word {word + 1}; correct them"
                )
            path.add(word)
            word = found[word] - 1
        settled.update(path)
    return found


def write_sentence(sentence: Sentence, *, columns: Mapping[int, Sequence[str]]) -> str:
    """The sentence as CoNLL-U text, with whole columns of the syntactic words replaced.

    Comments, multiword tokens and empty nodes stay. With new heads, DEPS of the words becomes `_`, as it held the
    enhanced graph of the old tree.
    """
    rows = [list(row) for row in sentence.rows]
    for number, values in columns.items():
        for i, value in zip(sentence.words, values, strict=True):
            rows[i][number] = value
            if number == HEAD:
                rows[i][DEPS] = "_"
    return "\n".join([*sentence.comments, *("\t".join(row) for row in rows)]) + "\n\n"
