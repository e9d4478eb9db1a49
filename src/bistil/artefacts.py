"""Files and folders on disk: written whole or not at all, identified by their content, checked before they are used."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bistil.errors import ArtefactError, InputError

RECORD, CARD = "bistil.json", "README.md"
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
    try:
        key = _identity(path)
        known = _digests.get(key)
        if known is not None:
            return known
        settled = time.time() - key[3] / 1e9 > _SETTLED_SECONDS
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if settled and _identity(path) == key:
            _digests[key] = digest
        return digest
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _identity(path: Path) -> tuple[str, int, int, int]:
    facts = path.stat()
    return str(path.absolute()), facts.st_ino, facts.st_size, facts.st_mtime_ns


def stamp(path: Path) -> list[Any]:
    """[SHA-256, size in bytes, time of change in ns]: what `is_as_stamped` compares a file with later.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    digest = file_digest(path)
    _, _, size, changed = _identity(path)
    return [digest, size, changed]


def is_as_stamped(path: Path, known: Any) -> bool:
    """Whether a file has the content that its stamp says; of the same size and time of change it is not read again."""
    try:
        digest, size, changed = known
        key = _identity(path)
        if key[2] != size:
            return False
        if key[3] == changed:
            _digests[key] = digest
        return file_digest(path) == digest
    except (OSError, InputError, TypeError, ValueError):
        return False


def stamps(folder: Path) -> dict[str, list[Any]]:
    """Relative name -> `stamp` of all files below a folder, sorted; without cards (README.md), which people edit."""
    return {name: stamp(folder / name) for name in _names(folder) if Path(name).name != CARD}


def manifest(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256 of all files below a folder, sorted; its card and its `bistil.json` are left out.

    A product's `bistil.json` holds it under "files"; `check_product` compares.
    """
    return {name: file_digest(folder / name) for name in _names(folder) if name not in (RECORD, CARD)}


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def check_product(folder: Path) -> None:
    """Make sure that a folder holds what was written into it, if it says what that was (see `manifest`).

    Files beside the written ones do not matter. Each file is read once per process.

    Raises:
        ArtefactError: a file is missing or is not what was written.
    """
    record = folder / RECORD
    if not record.is_file():
        return
    try:
        known = read_json(record)
    except InputError as error:
        raise ArtefactError(f"{folder} is damaged: {RECORD} cannot be read; make it again") from error
    files = known.get("files", {}) if isinstance(known, dict) else {}
    if not isinstance(files, dict):
        raise ArtefactError(f'{folder} is damaged: "files" in {RECORD} is no list of files; make it again')
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{folder} is damaged: {name} is missing; make it again")
        if file_digest(path) != digest:
            raise ArtefactError(
                f"{folder} is damaged: {name} is not what was written; make it again (or, if you changed it yourself, "
                f'remove it from "files" in {RECORD})'
            )


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


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest of itself under "seal", whole or not at all."""
    # As it will be read: tuples become lists, keys strings.
    plain = json.loads(json.dumps(value, default=str))
    write_json(path, {**plain, "seal": json_digest(plain)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the seal; an object that never had one is taken as it is.

    Raises:
        ArtefactError: the file is missing, is no JSON object, or was changed since it was written.
    """
    try:
        value = read_json(path)
    except InputError as error:
        raise ArtefactError(str(error)) from error
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} is damaged: it holds no JSON object")
    seal = value.pop("seal", None)
    if seal is not None and seal != json_digest(value):
        raise ArtefactError(f"{path} is damaged: it is not what was written")
    return value


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
