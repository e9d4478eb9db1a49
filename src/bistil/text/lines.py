"""Lines of text files: running text, one sentence or paragraph each."""

from collections.abc import Iterator, Sequence

from bistil.errors import InputError
from bistil.text.files import line_batches, require_plain_text
from bistil.text.sources import TextSource


def read_lines(path: TextSource) -> Iterator[str]:
    """Lines of a text file, plain, .gz or .zst, or of text in memory, without line ends; a byte order mark is dropped.

    Raises:
        InputError: missing or unreadable file, or a line that is not UTF-8 (with its number).
        MissingExtraError: a .zst file without the package that reads it.
    """
    for lines in line_batches(path):
        yield from lines


def check_text(path: TextSource) -> None:
    """Make sure that a text file can be read and holds text.

    Raises:
        InputError: missing, unreadable, not UTF-8 (with the line), without any text, or of labelled rows.
    """
    require_plain_text(path)
    found = False
    for line in read_lines(path):
        found = found or bool(line.strip())
    if not found:
        raise InputError(f"{path} is empty: give a file with text, one sentence or paragraph per line")


def read_sentences(paths: Sequence[TextSource]) -> list[str]:
    """All lines of the files that hold text, stripped.

    Raises:
        InputError: as `read_lines`, or a file is of labelled rows.
    """
    for path in paths:
        require_plain_text(path)
    return [line.strip() for path in paths for line in read_lines(path) if line.strip()]
