"""Files and folders on disk: written whole or not at all, and identified by their content."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bistil.errors import InputError


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    partial = Path(name)
    # mkstemp makes files for their owner only; an artefact has the permissions of any other new file.
    partial.chmod(0o666 & ~_umask())
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_new(path: Path) -> None:
    """Before long work: make sure that an output folder is still to be made, or empty.

    Raises:
        InputError: it is a file, or a folder with something in it.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} already exists: name another output folder or remove it")


@contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    Args:
        replace: an existing folder gives way; otherwise it is an error.

    Raises:
        InputError: `path` exists, is not an empty folder, and `replace` is false.
    """
    if not replace:
        check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    partial.chmod(0o777 & ~_umask())
    try:
        yield partial
        for child in partial.rglob("*"):
            if child.is_file():
                # safetensors makes files for their owner only.
                child.chmod(0o666 & ~_umask())
                with child.open("rb") as stream:
                    os.fsync(stream.fileno())
        if path.exists():
            # Two renames: whoever looks in between finds no folder, never half of one.
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".retired"))
            os.replace(path, retired / "old")
            os.replace(partial, path)
            shutil.rmtree(retired)
        else:
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented UTF-8 JSON, whole or not at all. NaN and infinity are refused."""
    with whole_file(path) as partial:
        partial.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
