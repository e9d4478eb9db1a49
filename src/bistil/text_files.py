"""Lines of plain, .gz and .zst text files, in batches of bounded size."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from bistil.errors import InputError, MissingExtraError

BATCH_BYTES = 1 << 20
# A line longer than this is cut at a space, so that memory stays bounded on a file without line ends.
LONGEST_LINE = 8 << 20


@contextmanager
def open_text(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a text file for reading bytes, decompressing `.gz` and `.zst` (`.zstd`) by name.

    Yields:
        The stream of text, and the file below it, whose position tells how much is read.

    Raises:
        InputError: the file is missing, cannot be read, or is not of the format that its name says.
        MissingExtraError: a `.zst` file and zstandard is not installed.
    """
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


def line_batches(path: Path, *, progress: Callable[[int], None] | None = None) -> Iterator[list[str]]:
    """Batches of about a megabyte of consecutive lines, without line ends, blank lines included.

    Args:
        progress: called with the number of bytes of the file (compressed as it is) that each batch took.

    Raises:
        InputError: as `open_text`, or a line is not UTF-8 (with its number).
    """
    with open_text(path) as (stream, raw):
        done, rest, first, position = 0, b"", True, 0
        while block := stream.read(BATCH_BYTES):
            if progress is not None:
                progress(raw.tell() - position)
                position = raw.tell()
            if first:
                block, first = block.removeprefix(b"\xef\xbb\xbf"), False
            block = rest + block
            end = block.rfind(b"\n") + 1
            if not end and len(block) >= LONGEST_LINE:
                end = block.rfind(b" ") + 1
            if not end:
                rest = block
                continue
            rest = block[end:]
            lines = _decode(block[:end], path, done)
            done += len(lines)
            yield lines
        if rest:
            yield _decode(rest, path, done)


class _ZstdStream(io.RawIOBase):
    """The frames of a zstd file, one after the other. zstandard's own reader takes a file that is cut off for whole."""

    COMPRESSED_AT_ONCE = 1 << 14

    def __init__(self, raw: BinaryIO, decompressor: Any) -> None:
        self._raw, self._decompressor = raw, decompressor
        self._frame: Any = None
        self._rest, self._text = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            self._rest = self._rest or self._raw.read(self.COMPRESSED_AT_ONCE)
            if not self._rest:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._text = self._frame.decompress(self._rest)
            self._rest = b""
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._text))
        buffer[:size], self._text = self._text[:size], self._text[size:]
        return size


def _decode(block: bytes, path: Path, done: int) -> list[str]:
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
