"""Folders written whole or not at all, checked against what was written into them; work folders."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bistil.errors import ArtefactError, BistilError, InputError
from bistil.runtime.claims import Output
from bistil.runtime.digests import file_digest, stamp
from bistil.runtime.documents import check_files, check_names
from bistil.runtime.litter import PARTIAL, RETIRED, partial_prefix, remove_litter
from bistil.runtime.ownership import CARD, RECORD, WORK, contents, writer
from bistil.runtime.process import is_first_of_run
from bistil.runtime.whole_files import (
    read_json,
    sync_folder,
    sync_tree,
    without_umask,
    write_json,
)


@contextmanager
def whole_folder(path: Path, *, replace: bool = False, record: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    The folder gets a record, `bistil.json`: the one written in the block, or `record`, with the versions and, under
    "files", relative name and SHA-256 of each file (but the card, which people edit). The record makes it ours.

    Args:
        replace: an existing folder that is ours gives way.
        record: what the record holds, such as "kind".

    Raises:
        InputError: something else is there, or it is ours and `replace` is false.
    """
    remove_litter(path)
    output = Output(path, "folder")
    output.check_free(force=replace)
    with _folder_beside(path) as partial:
        yield partial
        _seal(partial, record or {})
        for child in partial.rglob("*"):
            if child.is_file():
                # safetensors makes files for their owner only.
                child.chmod(without_umask(0o666))
        sync_tree(partial)
        output.check_free(force=replace)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place, whatever is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_litter(path)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=partial_prefix(path), suffix=PARTIAL))
    partial.chmod(without_umask(0o777))
    try:
        yield partial
        # Two renames: whoever looks in between finds no folder, never half of one.
        with _retired(path):
            os.replace(partial, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _retired(path: Path) -> Iterator[None]:
    """Take a folder away in one step, and remove what was in it when the block has ended."""
    if not path.exists():
        yield
        return
    retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=partial_prefix(path), suffix=RETIRED))
    os.replace(path, retired / "old")
    try:
        yield
    except BaseException:
        os.replace(retired / "old", path)
        retired.rmdir()
        raise
    # A call that is killed while it removes leaves something that is not whole, which must not come back.
    os.replace(retired / "old", retired / "gone")
    shutil.rmtree(retired)


def _seal(folder: Path, record: Mapping[str, Any]) -> None:
    """Give a finished folder its record."""
    path = folder / RECORD
    known = {"kind": "folder", **record, **(read_json(path) if path.exists() else {})}
    known["versions"] = {**writer(), **known.get("versions", {})}
    known["files"] = manifest(folder)
    write_json(path, known, inner=True)


def manifest(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256 of all files below a folder; cards (README.md) and its `bistil.json` are left out.

    A product's `bistil.json` holds it under "files"; `check_product` compares.
    """
    return {name: file_digest(folder / name) for name in _names(folder) if name != RECORD}


def stamps(folder: Path) -> dict[str, list[Any]]:
    """Relative name -> `stamp` of all files below a folder; without cards (README.md), which people edit."""
    return {name: stamp(folder / name) for name in _names(folder)}


def _names(folder: Path) -> list[str]:
    """Relative names of the files below a folder, but for cards, which people edit."""
    return [name for name in contents(folder) if Path(name).name != CARD and (folder / name).is_file()]


def check_product(folder: Path) -> None:
    """Make sure that a folder holds what was written into it, if it says what that was (see `manifest`).

    Files beside the written ones do not matter. Each file is read once per process.

    Raises:
        InputError: it holds a pipe or a device, or its record names files elsewhere.
        ArtefactError: a file is missing or is not what was written.
    """
    check_files(folder)
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
    check_names(list(files), where=str(record))
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{folder} is damaged: {name} is missing; make it again")
        if file_digest(path) != digest:
            raise ArtefactError(
                f"{folder} is damaged: {name} is not what was written; make it again (or, if you changed it yourself, "
                f'remove it from "files" in {RECORD})'
            )


CHECKPOINT_MARK = "complete"
"""In a checkpoint's folder: without it the checkpoint does not exist for us."""


def work_beside(output: Path) -> Path:
    """Where a command keeps the work on an output: beside it, so that the same command finds it again."""
    return output.parent / f".{output.name}.work"


def open_work(folder: Path, *, anew: bool = False) -> None:
    """Make a work folder, or take up one that an interrupted call left.

    Args:
        anew: whatever is in it belongs to other work and is removed.

    Raises:
        InputError: something else is there.
    """
    Output(folder, "work").check_free(force=True)
    if not anew and folder.exists() and any(folder.iterdir()):
        return
    # The mark comes with the folder, so that a work folder is never without.
    with _folder_beside(folder) as partial:
        write_json(partial / RECORD, {"kind": WORK, "versions": writer()})


def discard_work(folder: Path) -> None:
    """Remove a work folder and what is in it, if it is there, and what a call that was killed meanwhile left of it.

    Raises:
        InputError: something else is there.
    """
    remove_litter(folder)
    Output(folder, "work").check_free(force=True)
    with _retired(folder):
        pass


@contextmanager
def work_for(output: Path) -> Iterator[Path]:
    """The work folder beside an output, for a command: it stays where the same command can go on from it.

    The first process of a run removes it at the end, and where a call is refused (exit code 2) before there was a first
    checkpoint.
    """
    work = work_beside(output)
    earlier = work.exists()
    try:
        yield work
    except BistilError as error:
        began = earlier or any(work.rglob(CHECKPOINT_MARK))
        if error.exit_code == 2 and not began and work.exists() and is_first_of_run():
            discard_work(work)
        raise
    if is_first_of_run():
        discard_work(work)


def discard_output(path: Path, *, written: Collection[Path] | None = None) -> None:
    """Remove what an earlier call wrote in a folder that is ours, such as a run's, if it is there.

    Args:
        written: the files in there that are ours; None: as the folder's record says.

    Raises:
        InputError: it is a symbolic link, a device, a pipe or a socket, or it holds something that is not ours.
    """
    Output(path, "made", written).check_free(force=True)
    if path.is_dir():
        with _retired(path):
            pass
    else:
        path.unlink(missing_ok=True)
