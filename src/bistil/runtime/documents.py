"""What is read from outside: plain files of a size that fits, and JSON and TOML whose nesting and numbers have limits.

Every reader of this package goes through here before anything is allocated, waited for or parsed; docs/checks.md states
the limits.
"""

import json
import math
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bistil.errors import InputError

MOST_DEPTH = 100
"""Tables and lists within each other, in JSON and TOML."""
MOST_DIGITS = 1_000
"""Of a whole number in TOML and in our own and Hugging Face's JSON."""
MOST_KEY_PARTS = 1_000
"""Of a dotted key in TOML."""
MOST_BYTES = 1 << 30
"""Of a document that is read as a whole: configurations, records, labelled files (unpacked)."""
LONGEST_LINE = 1 << 20
"""Of running text, in bytes: a longer line is cut. Of labelled rows and texts, in characters: a longer one is odd."""
# Half of a surrogate pair as JSON spells it, or any other.
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_file(path: Path, *, most: int | None = MOST_BYTES) -> None:
    """Make sure that something is a plain file (or a link to one) and not too large, without opening it.

    Args:
        most: bytes that it may have; None: any number.

    Raises:
        InputError: it is missing, a folder, a pipe, a device or a socket, or too large.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL character in the name
        raise InputError(f"cannot read {str(path)!r}: {error}") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"cannot read {path}: it is a folder, and a file is expected")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"cannot read {path}: it is a pipe, a device or a socket, and a file is expected")
    if most is not None and found.st_size > most:
        raise InputError(too_large(path, most))


def too_large(path: Path, most: int = MOST_BYTES) -> str:
    """The message for a file, or what is packed in it, that is not read as a whole."""
    return f"{path} has more than {most:,} bytes, which is the most that is read as a whole: cut it into several files"


def check_files(folder: Path) -> None:
    """Make sure that a model's or adapter's folder holds plain files and folders alone: libraries open what they find.

    Raises:
        InputError: a pipe, a device or a socket in there.
    """
    for path in folder.iterdir():
        # A link that leads nowhere, or in a circle, is as if it were not there.
        if path.exists() and not path.is_dir():
            check_file(path, most=None)


def check_names(names: Iterator[Any] | list[Any], *, where: str) -> None:
    """Make sure that names of files out of a file stay in that file's folder.

    Raises:
        InputError: one is no text, is absolute, or leads out of the folder.
    """
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name:
            raise InputError(f"{where}: {name!r:.60} is no name of a file")
        if name.startswith(("/", "\\")) or re.search(r"(^|[/\\])\.\.([/\\]|$)|^[A-Za-z]:", name):
            raise InputError(f"{where} names {name!r:.200}, which is outside of its folder: it is not read")


def read_document(path: Path) -> str:
    """The text of a file that is read as a whole.

    Raises:
        InputError: as `check_file`, or it is not UTF-8.
    """
    check_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it to UTF-8"
        ) from error


def parse_json(text: str | bytes, *, lenient: bool = False) -> Any:
    """A JSON value.

    Args:
        lenient: rows of people's data, in which a text may hold anything: half a surrogate pair, a NUL. Numbers of
            more digits than Python converts are refused in either case.

    Raises:
        ValueError: it is none, or beyond the limits; in one line, without the place.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{error.object[error.start]:02x})") from error
    except RecursionError:
        raise ValueError(_DEEP) from None
    except ValueError:
        raise ValueError(_LONG) from None
    marks = ("[", "{", "\\u") if isinstance(text, str) else (b"[", b"{", b"\\u")
    lists, tables, escapes = (text.count(mark) for mark in marks)  # type: ignore[arg-type]
    if lists + tables > MOST_DEPTH or not lenient:
        _check(value, lenient=lenient, finite=True, escapes=escapes > 0)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML document.

    Raises:
        ValueError: it is none, or beyond the limits; in one line, without the place.
    """
    # Python's reader takes a time that grows with the square of a dotted key's parts.
    if any(_KEY.match(line)[0].count(".") > MOST_KEY_PARTS for line in text.splitlines()):  # type: ignore[index]
        raise ValueError(_DEEP)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError(_DEEP) from None
    except (ValueError, OverflowError) as error:
        raise ValueError(_LONG if "digits" in str(error) else str(error)) from None
    # A setting that is not finite is refused by its name.
    _check(values, lenient=False, finite=False, escapes=True)
    return values


# What may be a key: all up to a sign or a quotation mark.
_KEY = re.compile(r"[^=\"'#]*")
_DEEP = f"tables or lists are more than {MOST_DEPTH} deep within each other"
_LONG = "a number has too many digits"


def _check(value: Any, *, lenient: bool, finite: bool, escapes: bool) -> None:
    """Depth, long numbers and odd characters of a parsed value, level by level."""
    level = [value]
    for depth in range(MOST_DEPTH + 1):
        below: list[Any] = []
        for one in level:
            if depth == MOST_DEPTH and isinstance(one, dict | list):
                raise ValueError(_DEEP)
            if isinstance(one, dict):
                below += one.values()
                if escapes and not lenient:
                    _check_texts(one)
            elif isinstance(one, list):
                below += one
            elif lenient:
                continue
            elif isinstance(one, int) and one.bit_length() > 64 and len(hex(one)) > MOST_DIGITS:
                raise ValueError(_LONG)
            elif finite and isinstance(one, float) and not math.isfinite(one):
                raise ValueError("a number is NaN, infinite or beyond what a computer's numbers hold")
            elif escapes and isinstance(one, str):
                _check_texts((one,))
        if not below:
            return
        level = below


def _check_texts(texts: Any) -> None:
    for text in texts:
        if "\0" in text:
            raise ValueError("a text holds a NUL character")
        if _SURROGATE.search(text):
            raise ValueError("a text holds half of a surrogate pair, which is no character")
