"""What a file, a folder or a value is, by its content: SHA-256, and stamps that spare a second reading."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from bistil.errors import InputError
from bistil.runtime.documents import check_file

# A file that was written this short a while ago may change again without a new time of change: file systems count time
# in steps of some milliseconds.
_SETTLED_SECONDS = 0.1

# (path, inode, size, time of change in ns) -> SHA-256: a file is hashed once per process.
_digests: dict[tuple[str, int, int, int], str] = {}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex; of a file that did not change since, the one of before.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    check_file(path, most=None)
    try:
        key = _facts(path)
        known = _digests.get(key)
        if known is not None:
            return known
        settled = time.time() - key[3] / 1e9 > _SETTLED_SECONDS
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if settled and _facts(path) == key:
            _digests[key] = digest
        return digest
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _facts(path: Path) -> tuple[str, int, int, int]:
    facts = path.stat()
    return str(path.absolute()), facts.st_ino, facts.st_size, facts.st_mtime_ns


def stamp(path: Path) -> list[Any]:
    """[SHA-256, size in bytes, time of change in ns]: what `is_as_stamped` compares a file with later.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    digest = file_digest(path)
    _, _, size, changed = _facts(path)
    return [digest, size, changed]


def is_as_stamped(path: Path, known: Any) -> bool:
    """Whether a file has the content that its stamp says; of the same size and time of change it is not read again."""
    try:
        digest, size, changed = known
        key = _facts(path)
        if key[2] != size:
            return False
        if key[3] == changed:
            _digests[key] = digest
        return bool(file_digest(path) == digest)
    except (OSError, InputError, TypeError, ValueError):
        return False


def folder_digest(folder: Path) -> str:
    """SHA-256 over the relative names and contents of all files below a folder, as hex."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(file_digest(path).encode() + b"\n")
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value in canonical form, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
