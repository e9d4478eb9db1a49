"""TextLines of plain, .gz and .zst text files, in batches of bounded size."""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from bistil.errors import InputError, MissingExtraError
from bistil.runtime.documents import LONGEST_LINE, check_file, parse_json
from bistil.text.sources import TextLines, TextSource

BATCH_BYTES = 1 << 20
# So many lines show whether a file is plain text; fewer than the latter are no table.
LINES_LOOKED_AT, CHARACTERS_LOOKED_AT, FEWEST_ROWS = 1000, 1 << 24, 5
CONLLU_LINE, CONLLU_TABS = re.compile(r"[0-9]+(?:[-.][0-9]+)?\t"), 9
# A line of CoNLL columns with tags of spans.
TAGGED_LINE = re.compile(r"\S+(?: \S+)* (?:O|[BIESLUM]-\S+)")


@contextmanager
def open_text(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a text file for reading bytes, decompressing `.gz` and `.zst` (`.zstd`) by name.

    Yields:
        The stream of text, and the file below it, whose position tells how much is read.

    Raises:
        InputError: the file is missing, no plain file, cannot be read, or is not of the format that its name says.
        MissingExtraError: a `.zst` file and zstandard is not installed.
    """
    check_file(path, most=None)
    damaged: tuple[type[Exception], ...] = (gzip.BadGzipFile, zlib.error, EOFError)
    try:
        with path.open("rb") as raw:
            if path.suffix == ".gz":
                with gzip.open(raw) as stream:
                    yield cast(BinaryIO, stream), raw
            elif path.suffix in (".zst", ".zstd"):
                try:
                    import zstandard
                except ImportError as error:
                    raise MissingExtraError(f"{path} needs zstandard: pip install 'bistil[zstd]'") from error
                damaged = (*damaged, zstandard.ZstdError)
                yield cast(BinaryIO, io.BufferedReader(_ZstdStream(raw, zstandard.ZstdDecompressor()))), raw
            else:
                yield raw, raw
    except damaged as error:
        raise InputError(f"{path} is not a whole {path.suffix} file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def line_batches(path: TextSource, *, progress: Callable[[int], None] | None = None) -> Iterator[list[str]]:
    """Batches of about a megabyte of consecutive lines, without line ends, blank lines included.

    Args:
        path: a file, or lines in memory.
        progress: called with the number of bytes of the file (compressed as it is) that each batch took.

    Raises:
        InputError: as `open_text`, or a line is not UTF-8 (with its number).
    """
    if isinstance(path, TextLines):
        yield from _in_memory(path, progress)
        return
    with open_text(path) as (stream, raw):
        position = 0

        def read() -> bytes:
            nonlocal position
            block = stream.read(BATCH_BYTES)
            if progress is not None:
                progress(raw.tell() - position)
                position = raw.tell()
            return block

        yield from batches_read(read, path)


def batches_read(read: Callable[[], bytes], name: str | Path) -> Iterator[list[str]]:
    """Batches of consecutive lines out of what `read` gives, one for each of its blocks that ends a line.

    A line of more than `LONGEST_LINE` bytes is cut, at its last space in there or else between two characters, so that
    time is linear and memory bounded on text without line ends.

    Args:
        read: gives the next bytes; none at the end.
        name: of the text, for messages.

    Raises:
        InputError: a line is not UTF-8 (with its number).
    """
    done, rest, first = 0, b"", True
    while block := read():
        if first:
            block, first = block.removeprefix(b"\xef\xbb\xbf"), False
        block = rest + block
        end = block.rfind(b"\n") + 1
        lines, rest = _decode(block[:end], name, done) if end else [], block[end:]
        done += len(lines)
        while len(rest) > LONGEST_LINE:
            end = _cut(rest)
            lines += _decode(rest[:end], name, done)
            rest = rest[end:]
        if lines:
            yield [piece for line in lines for piece in _pieces(line)]
    if rest:
        yield _pieces(_decode(rest, name, done)[0])


def _cut(line: bytes) -> int:
    """Where a line that is too long is cut: behind a space, or before the first byte of a character."""
    end = line.rfind(b" ", 0, LONGEST_LINE) + 1
    if end:
        return end
    end = LONGEST_LINE
    while end > LONGEST_LINE - 4 and line[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _pieces(line: str) -> list[str]:
    """A line, cut where it has more characters than a line of `LONGEST_LINE` bytes can have."""
    if len(line) <= LONGEST_LINE:
        return [line]
    pieces = []
    while len(line) > LONGEST_LINE:
        end = line.rfind(" ", 0, LONGEST_LINE) + 1 or LONGEST_LINE
        pieces.append(line[:end])
        line = line[end:]
    return [*pieces, line]


def _in_memory(lines: TextLines, progress: Callable[[int], None] | None) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for line in (piece for whole in lines for piece in _pieces(whole)):
        batch.append(line)
        size += len(line) + 1
        if size >= BATCH_BYTES:
            yield batch
            if progress is not None:
                progress(size)
            batch, size = [], 0
    if batch:
        yield batch
        if progress is not None:
            progress(size)


def first_lines(path: TextSource, *, blank: bool = True) -> list[str]:
    """The first 1,000 lines, or as many as come to 16 million characters: lines may be very long.

    Args:
        blank: with lines that hold no text.

    Raises:
        InputError: as `line_batches`.
    """
    lines: list[str] = []
    characters = 0
    for batch in line_batches(path):
        lines += batch if blank else [line for line in batch if line and not line.isspace()]
        characters += sum(map(len, batch))
        if len(lines) >= LINES_LOOKED_AT or characters >= CHARACTERS_LOOKED_AT:
            break
    return lines[:LINES_LOOKED_AT]


def require_plain_text(path: TextSource) -> None:
    """Refuse a file whose lines are rows of something else: JSON, columns between tabs, CoNLL-U; or of another coding.

    The first lines with text are looked at.

    Raises:
        InputError: with what it is and how to get at its text; or the file cannot be read.
    """
    lines = first_lines(path, blank=False)
    if any("\0" in line for line in lines):
        raise InputError(f"{path} holds NUL characters: it is UTF-16 or no text; convert it to UTF-8, as with iconv")
    rows = [line for line in lines if not line.startswith("#")]
    tabs = {line.count("\t") for line in lines}
    if lines and all(map(_is_json_object, lines)):
        what, remedy = "JSON lines", "take the field that holds text, as with jq -r .text"
    elif rows and all(CONLLU_LINE.match(line) and line.count("\t") == CONLLU_TABS for line in rows):
        what, remedy = "CoNLL-U", "take its sentences, as with sed -n 's/^# text = //p'"
    elif len(lines) >= FEWEST_ROWS and len(tabs) == 1 and 0 not in tabs:
        what, remedy = f"{max(tabs) + 1} columns between tabs", "take the column of text, as with cut -f2"
    elif len(lines) >= FEWEST_ROWS and all(map(TAGGED_LINE.fullmatch, lines)):
        what, remedy = "words with a tag each", "give running text, one sentence or paragraph per line"
    else:
        return
    raise InputError(f"{path} holds {what}, and plain text is expected: {remedy}")


def _is_json_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(parse_json(line, lenient=True), dict)
    except ValueError:
        return False


class _ZstdStream(io.RawIOBase):
    """The frames of a zstd file, one after the other. zstandard's own reader takes a file that is cut off for whole."""

    # A block of three bytes can hold 128 kB: so few bytes give 45 MB at most.
    COMPRESSED_AT_ONCE = 1 << 10

    def __init__(self, raw: BinaryIO, decompressor: Any) -> None:
        self._raw, self._decompressor = raw, decompressor
        self._frame: Any = None
        self._rest, self._text = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not len(self._text):
            self._rest = self._rest or self._raw.read(self.COMPRESSED_AT_ONCE)
            if not self._rest:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._text = memoryview(self._frame.decompress(self._rest))
            self._rest = b""
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._text))
        buffer[:size], self._text = self._text[:size], self._text[size:]
        return size


def _decode(block: bytes, path: str | Path, done: int) -> list[str]:
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = done + block.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 (byte 0x{block[error.start]:02x}); convert the file, as with iconv"
        ) from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines] if "\r" in text else lines
