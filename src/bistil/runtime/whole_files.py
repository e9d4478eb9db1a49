"""Files written whole or not at all, and JSON in them, with or without a digest of itself."""

import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bistil.errors import ArtefactError, InputError
from bistil.runtime.claims import Output
from bistil.runtime.digests import file_digest, json_digest
from bistil.runtime.documents import parse_json, read_document
from bistil.runtime.litter import PARTIAL, partial_prefix, remove_litter


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk, as far as the system does that: a rename is not on it by itself."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no such thing
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Let all files below a folder, and their names, reach the disk."""
    for where, _, files in os.walk(folder):
        for name in files:
            with (Path(where) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(where))


@contextmanager
def whole_file(
    path: Path,
    *,
    replace: bool = False,
    inner: bool = False,
    known: Collection[str] = (),
    grown: Path | None = None,
) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    Args:
        replace: a file that is ours gives way.
        inner: the file is one of a folder of ours (a cache, a work folder, a run): any plain file gives way.
        known: SHA-256 of files that are ours though they do not say so.
        grown: a file in a work folder that is yielded in place of a new one, and is left there by an error, so that a
            later call goes on with it.

    Raises:
        InputError: something else is there, or a symbolic link, a device, a pipe or a socket.
    """
    output = Output(path, "inner" if inner else "file")
    output.check_free(force=replace, known=known)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_litter(path)
    if grown is None:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=partial_prefix(path), suffix=PARTIAL)
        os.close(handle)
    partial = grown or Path(name)
    if grown is None:
        # mkstemp makes files for their owner only; an artefact has the permissions of any other new file.
        partial.chmod(without_umask(0o666))
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        output.check_free(force=replace, known=known)
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        if grown is None:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, replace: bool = False, inner: bool = False) -> None:
    """Write a value as indented UTF-8 JSON, whole or not at all. NaN and infinity are refused.

    Args:
        replace, inner: what may give way, see `whole_file`.

    Raises:
        InputError: as `whole_file`.
    """
    with whole_file(path, replace=replace, inner=inner) as partial:
        partial.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    """Read a JSON file: a record or a configuration.

    Raises:
        InputError: the file is missing, no plain file or too large, is not JSON, or is beyond what is parsed
            (`runtime.documents`).
    """
    text = read_document(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest of itself under "seal", whole or not at all, into a folder of ours."""
    # As it will be read: tuples become lists, keys strings.
    plain = json.loads(json.dumps(value, default=str))
    write_json(path, {**plain, "seal": json_digest(plain)}, inner=True)


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


def mark_whole(path: Path) -> None:
    """Say that a file of ours is whole, by its digest beside it; written last, so that a part of it does not count."""
    write_sealed(path.with_suffix(".json"), {"files": {path.name: file_digest(path)}})


def is_marked_whole(path: Path) -> bool:
    """Whether a file is there and is what it was when `mark_whole` was called."""
    mark = path.with_suffix(".json")
    try:
        return path.exists() and mark.exists() and read_sealed(mark)["files"] == {path.name: file_digest(path)}
    except (ArtefactError, KeyError):
        return False


def without_umask(mode: int) -> int:
    """The permissions that a new file or folder gets which asks for `mode`."""
    current = os.umask(0)
    os.umask(current)
    return mode & ~current
