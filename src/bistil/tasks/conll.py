"""CoNLL columns: which lines are comments, which column holds the words and which the tags."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bistil.errors import InputError
from bistil.tasks.parsing.conllu import COLUMNS as CONLLU_COLUMNS
from bistil.tasks.reading import Reading, RowReport, numbered_lines
from bistil.tasks.spans import OUTSIDE, fits, marks_spans

# `# sent_id = 3`, `# text = ...`, `# id=7`: never a word.
KEY_AND_VALUE = re.compile(r"#\s*[\w.:-]+\s+=|#\s*[\w.:-]+=\s|#\s+[\w.:-]+=")
# Multiword tokens (1-2) and empty nodes (1.1) of CoNLL-U.
NOT_A_WORD = re.compile(r"[0-9]+[-.][0-9]+")
# Values of a column that nobody filled in.
UNFILLED = {"_", "-"}


@dataclass(frozen=True)
class Line:
    """A line of a sentence, split into columns."""

    number: int
    columns: list[str]
    separator: str


@dataclass(frozen=True)
class Block:
    """A sentence: the comment lines in front of it and its words' lines."""

    comments: list[str]
    lines: list[Line]


@dataclass(frozen=True)
class Layout:
    """Which column is what, from 0. `numbered`: the first one counts the words; `conllu`: it is a CoNLL-U file.

    `known` holds the tags that are in use.
    """

    width: int
    words: int
    tags: int
    numbered: bool = False
    conllu: bool = False
    known: frozenset[str] = frozenset()


def read_blocks(path: Path, how: Reading, report: RowReport) -> tuple[list[Block], Layout | None]:
    """The file's sentences and its layout (None for a file without any).

    Comments stand in front of a sentence and begin with `#`. `# key = value` is one; another line is, unless it has as
    many columns as the lines that begin otherwise and a tag that they have, or one of their scheme.

    Raises:
        InputError: the file cannot be read, or it is not plain which columns hold words and tags.
    """
    raw = list(raw_blocks(numbered_lines(path)))
    layout = find_layout(raw, path, how)
    if layout is None:
        return [], None
    blocks = [block for one in raw if (block := block_of(one, layout)) is not None]
    if (layout.words, layout.tags) != (0, layout.width - 1) and not layout.conllu:
        others = [str(i + 1) for i in range(layout.words + 1, layout.width) if i != layout.tags]
        unused = f"; not read: {', '.join(others)}" if others else ""
        report.notice(f"words are column {layout.words + 1}, tags column {layout.tags + 1} of {layout.width}{unused}")
    return blocks, layout


def find_layout(raw: Sequence[Sequence[Line]], path: Path, how: Reading, *, labelled: bool = True) -> Layout | None:
    """The layout of a file by (the first of) its sentences; None: there are none.

    Args:
        raw: of `raw_blocks`.
        labelled: whether there must be tags; without, a file of words alone gets them in a second column.

    Raises:
        InputError: it is not plain which columns hold words and tags.
    """
    # Lines that may be comments say nothing of the layout.
    sure = [[line for i, line in enumerate(block) if not _may_be_comment(block, i)] for block in raw]
    sure = [block for block in sure if block]
    if not sure:
        sure = [[line for line in block if not _is_key_and_value(line)] for block in raw]
        sure = [block for block in sure if block]
    if not sure:
        return None
    layout = _layout(sure, path, how, labelled=labelled)
    lines = (line for block in sure for line in block)
    tags = frozenset(line.columns[layout.tags] for line in lines if layout.tags < len(line.columns) == layout.width)
    return replace(layout, known=tags)


def block_of(raw: Sequence[Line], layout: Layout) -> Block | None:
    """The comments and words of a sentence of `raw_blocks`; None: it has no words."""
    first = 0
    while first < len(raw) and _may_be_comment(raw, first) and not _is_word(raw[first], layout):
        first += 1
    words = [line for line in raw[first:] if not _is_key_and_value(line)]
    if layout.numbered:
        words = [line for line in words if not NOT_A_WORD.fullmatch(line.columns[0])]
    return Block([line.separator.join(line.columns) for line in raw[:first]], words) if words else None


def around_tags(block: Block, layout: Layout) -> list[tuple[str, str]]:
    """What stands before and after each word's tag; comments are before the first one."""
    sides = []
    for line in block.lines:
        before, after = line.columns[: layout.tags], line.columns[layout.tags + 1 :]
        sides.append(("".join(one + line.separator for one in before), "".join(line.separator + one for one in after)))
    comments = "".join(comment + "\n" for comment in block.comments)
    sides[0] = (comments + sides[0][0], sides[0][1])
    return sides


def raw_blocks(lines: Iterable[tuple[int, str]]) -> Iterator[list[Line]]:
    """Sentences with their comments, split at empty lines and at `-DOCSTART-`, which is left out.

    Args:
        lines: with their numbers from 1.
    """
    block: list[Line] = []
    for number, line in lines:
        if line.strip(" \t") == "" or line.startswith("-DOCSTART-"):
            if block:
                yield block
                block = []
            continue
        separator = "\t" if "\t" in line else " "
        block.append(Line(number, line.rstrip(" \t").split(separator), separator))
    if block:
        yield block


def _is_key_and_value(line: Line) -> bool:
    return KEY_AND_VALUE.match(line.separator.join(line.columns)) is not None


def _may_be_comment(block: Sequence[Line], place: int) -> bool:
    """Whether the line and all before it in the sentence begin with `#`."""
    return all(line.columns[0].startswith("#") for line in block[: place + 1])


def _is_word(line: Line, layout: Layout) -> bool:
    if _is_key_and_value(line) or len(line.columns) != layout.width:
        return False
    if layout.tags == layout.width:
        return True
    tag = line.columns[layout.tags]
    return tag in layout.known or (fits(tag) and any(map(fits, layout.known)))


def _layout(blocks: Sequence[Sequence[Line]], path: Path, how: Reading, *, labelled: bool) -> Layout:
    widths = Counter(len(line.columns) for block in blocks for line in block)
    width = max(widths, key=lambda one: (widths[one], one))
    whole = [[line.columns for line in block] for block in blocks]
    whole = [rows for rows in whole if all(len(row) == width for row in rows)]
    named = {name: _number(path, name, how.columns[name], width) for name in ("words", "tags") if name in how.columns}
    if width < 2:
        # Without a tag every line is odd, and says so.
        return Layout(width, 0, 0 if labelled else 1)
    # In sentences of one word, a "1" in front of another column and the tag counts too.
    numbered = _counts_words([[row[0] for row in rows] for rows in whole], least=1 if width > 2 else 2)
    if numbered and width == CONLLU_COLUMNS and not named:
        return Layout(width, 1, 3, numbered=True, conllu=True)
    words = named.get("words", 1 if numbered else 0)
    columns = [[row[i] for rows in whole for row in rows] for i in range(width)]
    if "tags" in named:
        tags = named["tags"]
    else:
        for i in range(1, width - 1):
            if "words" not in named and not numbered and _counts_words([[row[i] for row in rows] for rows in whole]):
                raise InputError(
                    f"{path}: column {i + 1} counts the words, so the first is none; say which they are, such as "
                    f"--column words={i + 2} --column tags={width}"
                )
        tags = _tag_column(columns, words, path, numbered=numbered)
    if tags == words:
        raise InputError(f"{path}: words and tags cannot both be column {words + 1}; say which with --column")
    if labelled and columns[tags] and set(columns[tags]) <= UNFILLED:
        raise InputError(
            f"{path}: column {tags + 1} holds no tags, only {columns[tags][0]!r}; say which does, such as "
            "--column tags=2"
        )
    return Layout(width, words, tags, numbered=numbered)


def _types(tags: Iterable[str]) -> set[str]:
    """Types of the spans that tags mark."""
    return {tag[2:] for tag in tags if tag != OUTSIDE}


def _number(path: Path, name: str, column: str, width: int) -> int:
    if not column.isdecimal() or not 1 <= int(column) <= width:
        raise InputError(f"{path}: {name}={column}: a column's number from 1 to {width} is expected")
    return int(column) - 1


def _counts_words(sentences: Sequence[Sequence[str]], *, least: int = 2) -> bool:
    """Whether a column counts 1, 2, 3 ... or 0, 1, 2 ... in every sentence, one of which has `least` words."""
    longest = 0
    for values in sentences:
        numbers = [value for value in values if not NOT_A_WORD.fullmatch(value)]
        if numbers not in ([str(i) for i in range(1, len(numbers) + 1)], [str(i) for i in range(len(numbers))]):
            return False
        longest = max(longest, len(numbers))
    return longest >= least


def _tag_column(columns: Sequence[Sequence[str]], words: int, path: Path, *, numbered: bool) -> int:
    """The column of tags: the last one, unless others look more like it.

    Raises:
        InputError: it is not plain which.
    """
    last = len(columns) - 1
    counts = [Counter(values) for values in columns]
    marked = [i for i in range(len(columns)) if i != words and marks_spans(counts[i])]
    empty = [i for i in range(len(columns)) if i > words and set(counts[i]) == {OUTSIDE}]
    if numbered:
        # CoNLL-2003's columns are told apart by their places; where words are numbered, anything may follow.
        found = sorted({*marked, *empty})
        if (
            len(found) == 2
            and found[1] == found[0] + 1 == words + 2
            and _types(counts[found[1]]) <= _types(counts[found[0]])
        ):
            # A layer of nested spans of the same types stands behind the outer one (GermEval).
            return found[0]
        if len(found) > 1:
            raise InputError(
                f"{path}: the columns {', '.join(str(i + 1) for i in found)} hold tags of spans; say which is meant, "
                f"such as --column tags={found[0] + 1}"
            )
        return found[0] if found else last
    if last in marked:
        return last
    found = marked or ([0] if words == 0 and marks_spans(counts[0]) else [])
    if not found:
        return last
    hint = f"--column words={last + 1} --column tags=1" if found == [0] else f"--column tags={found[0] + 1}"
    raise InputError(
        f"{path}: tags are read from the last column, but column {found[0] + 1} looks more like them "
        f"({', '.join(sorted(set(columns[found[0]]))[:5])}); say which is meant, such as {hint} "
        f"(or --column tags={last + 1})"
    )
