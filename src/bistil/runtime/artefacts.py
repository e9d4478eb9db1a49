"""Files and folders on disk: written whole or not at all, identified by their content, checked before they are used.

What an output may replace is decided here, in one rule (`claim`), before the work by whoever knows all inputs, and
again at the moment of replacing.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

from bistil.errors import ArtefactError, InputError
from bistil.runtime.ownership import (
    CARD,
    RECORD,
    WORK,
    contents,
    is_our_file,
    is_our_folder,
    is_run,
    is_work_folder,
    not_ours,
    writer,
)

# What the names of temporary files and work folders have beyond the output's name, in bytes.
_ROOM = 24
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


def stamps(folder: Path) -> dict[str, list[Any]]:
    """Relative name -> `stamp` of all files below a folder; without cards (README.md), which people edit."""
    return {name: stamp(folder / name) for name in _names(folder)}


def manifest(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256 of all files below a folder; cards (README.md) and its `bistil.json` are left out.

    A product's `bistil.json` holds it under "files"; `check_product` compares.
    """
    return {name: file_digest(folder / name) for name in _names(folder) if name != RECORD}


def _names(folder: Path) -> list[str]:
    """Relative names of the files below a folder, but for cards, which people edit."""
    return [name for name in contents(folder) if Path(name).name != CARD and (folder / name).is_file()]


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


def claim(
    *,
    folders: Iterable[Path | None] = (),
    files: Iterable[Path | None] = (),
    kept: Iterable[Path | None] = (),
    made: Iterable[Path | None] = (),
    written: Collection[Path] | None = None,
    work: Path | None = None,
    inputs: Iterable[str | Path | None] = (),
    force: bool = False,
    known: Collection[str] = (),
) -> None:
    """Before any work: make sure that all outputs of a call may be written. None in place of a path is no output.

    An output is new (nothing is there, or an empty folder), or it is ours, as its record says, and `force` is given. It
    is never an input, whatever it is called there, nor around an input, nor within an input folder; never a symbolic
    link, a device, a pipe or a socket (folders above it may be links); and never another output of the call.

    Args:
        folders: that are written whole.
        files: that are written whole.
        kept: folders that files are added to, such as caches.
        made: what an earlier call left in a folder of ours, to be removed (`discard_output`); needs no `force`.
        written: the files in `made` that are ours; None: as the folders' records say.
        work: where checkpoints are kept in between: new, or ours from an interrupted call.
        inputs: everything that is read; names that are no local path are passed over.
        force: what is ours gives way.
        known: SHA-256 of files that are ours though they do not say so.

    Raises:
        InputError: an output may not be written, or cannot be: the folder above is none, is not writable, or the name
            is too long.
    """
    outputs = [_Output(path, "folder") for path in folders if path is not None]
    outputs += [_Output(path, "file") for path in files if path is not None]
    outputs += [_Output(path, "kept") for path in kept if path is not None]
    outputs += [_Output(path, "made", written) for path in made if path is not None]
    outputs += [_Output(work, "work")] if work is not None else []
    read = [_Input(str(one)) for one in inputs if one is not None]
    for output in outputs:
        output.check_place()
        for one in read:
            output.check_apart_from(one)
    for output, other in permutations(outputs, 2):
        output.check_beside(other)
    for output in outputs:
        output.check_free(force=force, known=known)


def check_apart(outputs: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """The part of `claim` that no record can settle: no output is an input, holds one or lies in one.

    Raises:
        InputError: one does.
    """
    read = [_Input(str(one)) for one in inputs if one is not None]
    for output in outputs:
        for one in read:
            _Output(output, "made").check_apart_from(one)


def check_plain(path: Path) -> None:
    """Make sure that a file of a folder of ours may be opened for writing: it is a plain file, or not there.

    Raises:
        InputError: it is a symbolic link, a folder, a device, a pipe or a socket.
    """
    _Output(path, "inner").check_free(force=True)


class _Input:
    """Something that is read: a local file or folder, by whatever name, or a name that is none."""

    def __init__(self, name: str) -> None:
        self.name = name
        path = Path(name)
        if name.startswith("~") and _identity(path) is None:
            with suppress(RuntimeError):  # there is no such person
                path = path.expanduser()
        self.identity = _identity(path)
        self.is_folder = self.identity is not None and path.is_dir()
        self.above: set[tuple[int, int]] = set()
        if self.identity is not None:
            # Where it is, and where the name stands that leads there.
            self.above = _above(path.resolve())
            if path.name not in ("", ".."):
                self.above |= _above(path.parent.resolve() / path.name)


def _limits(folder: Path) -> tuple[int, int]:
    """How many bytes a name in a folder, and a path, may have."""
    if sys.platform == "win32":
        return 255, 259
    return os.pathconf(folder, "PC_NAME_MAX"), os.pathconf(folder, "PC_PATH_MAX")


class _Output:
    """A place that is to be written, and the one rule of what may be there.

    Args:
        path: as the user wrote it, for messages.
        kind: "folder" and "file" are replaced as a whole, "kept" is a folder that is added to, "work" a work folder,
            "inner" a file within a folder of ours, "made" whatever an earlier call left in a folder of ours.
        written: the files in there that are ours, where it is known without a record.
    """

    def __init__(
        self,
        path: Path,
        kind: Literal["folder", "file", "kept", "work", "inner", "made"],
        written: Collection[Path] | None = None,
    ) -> None:
        self.path, self.kind, self.written = path, kind, written
        try:
            # Links above are followed, a link itself is not.
            self.place = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
        except (OSError, RuntimeError) as error:
            raise InputError(f"cannot write {path}: {error}") from error
        self.what = "file" if kind in ("file", "inner") else "folder"

    def check_place(self) -> None:
        """The path has a name, and something can be made under it."""
        if self.path.name in ("", "..") and self.kind != "kept":
            raise InputError(f"{self.path} is no name for an output: name a {self.what} to be made")
        parent, missing = self.place.parent, [self.place.name]
        if self.kind == "kept" and self.place.is_dir():
            parent = self.place  # nothing is made beside it
        while not os.path.lexists(parent):
            missing.append(parent.name)
            parent = parent.parent
        if not parent.is_dir():
            raise InputError(f"cannot write {self.path}: {parent} is not a folder; name another output {self.what}")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(
                f"cannot write {self.path}: {parent} is not writable; name another output {self.what} or mend its "
                "permissions"
            )
        name_limit, path_limit = _limits(parent)
        longest = name_limit - _ROOM
        if max(len(os.fsencode(name)) for name in missing) > longest:
            raise InputError(f"cannot write {self.path}: a name there has {longest} bytes at most")
        if len(os.fsencode(self.place)) > path_limit - 2 * _ROOM:
            raise InputError(f"cannot write {self.path}: the path is too long")

    def check_apart_from(self, read: _Input) -> None:
        """It is no input, holds none, and lies in none."""
        identity = _identity(self.place)
        if identity is not None and identity == read.identity:
            raise InputError(f"{self.path} is also an input ({read.name}): name another output {self.what}")
        if identity in read.above and self.kind != "kept":
            raise InputError(f"{self.path} holds an input ({read.name}): name another output {self.what}")
        if read.is_folder and read.identity in _above(self.place):
            raise InputError(f"{self.path} lies in an input ({read.name}): name another output {self.what}")

    def check_beside(self, other: "_Output") -> None:
        """It is not another output, and does not lie in one that is replaced as a whole."""
        if self.place == other.place:
            raise InputError(f"{self.path} is named for two outputs: name another {self.what} for one of them")
        if other.kind in ("folder", "work") and other.place in self.place.parents:
            raise InputError(f"{self.path} lies in another output, {other.path}: name another {self.what} for it")

    def check_free(self, *, force: bool, known: Collection[str] = ()) -> None:
        """What is there may give way: nothing, an empty folder, or what is ours and was named with `force`."""
        try:
            mode = self.place.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; name another output {self.what}") from error
        if stat.S_ISLNK(mode):
            raise InputError(
                f"{self.path} is a symbolic link (to {self.place.readlink()}), and links are not written through: "
                f"name another output {self.what}"
            )
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise InputError(f"{self.path} is a device, pipe or socket: name a {self.what} to be made")
        if self.kind == "made":
            if stat.S_ISDIR(mode):
                self._check_all_ours(recorded=is_our_folder(self.place))
            return
        if stat.S_ISDIR(mode) != (self.what == "folder"):
            there = "folder" if self.what == "file" else "file"
            raise InputError(f"{self.path} already exists and is a {there}: name another output {self.what}")
        if self.kind in ("kept", "inner"):
            return
        try:
            free = self._check_whose(known)
        except OSError as error:
            raise InputError(f"{self.path} already exists and cannot be read: {error.strerror or error}") from error
        if not free and not force:
            raise InputError(
                f"{self.path} already exists: name another output {self.what}, or replace what bistil made there "
                "(--force, replace=True)"
            )

    def _check_whose(self, known: Collection[str]) -> bool:
        """Whether nothing is lost by replacing it; what is not ours is refused."""
        if self.what == "file":
            if is_our_file(self.place) or (known and file_digest(self.place) in known):
                return False
            raise InputError(
                f"{self.path} already exists and bistil did not make it: name another output file or move it away"
            )
        if not any(self.place.iterdir()):
            return True
        if self.kind == "work":
            if is_work_folder(self.place):
                return True
            raise InputError(
                f"{self.path} is where work is kept between calls, and it already exists with something else in it: "
                "move it away or name another output"
            )
        if is_run(self.place):
            raise InputError(f"{self.path} already exists and holds a run of bistil: name another output folder")
        if not is_our_folder(self.place) or is_work_folder(self.place):
            raise InputError(
                f"{self.path} already exists and bistil did not make it: name another output folder or move it away"
            )
        self._check_all_ours()
        return False

    def _check_all_ours(self, *, recorded: bool = True) -> None:
        if self.written is None:
            other = not_ours(self.place, recorded=recorded)
        else:
            ours = {path.resolve() for path in self.written}
            names = (name for name in contents(self.place) if Path(name).name != CARD)
            other = next((name for name in names if self.place / name not in ours), None)
        if other is not None:
            raise InputError(
                f"{self.path} already exists and holds {other}, which bistil did not write there: move it away or name "
                "another output folder"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what a path leads to: the same for every spelling and every hard link."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _above(path: Path) -> set[tuple[int, int]]:
    """Identities of the folders above a path, as far as they exist."""
    return {found for parent in path.parents if (found := _identity(parent)) is not None}


@contextmanager
def whole_file(
    path: Path, *, replace: bool = False, inner: bool = False, known: Collection[str] = ()
) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    Args:
        replace: a file that is ours gives way.
        inner: the file is one of a folder of ours (a cache, a work folder, a run): any plain file gives way.
        known: SHA-256 of files that are ours though they do not say so.

    Raises:
        InputError: something else is there, or a symbolic link, a device, a pipe or a socket.
    """
    output = _Output(path, "inner" if inner else "file")
    output.check_free(force=replace, known=known)
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
        output.check_free(force=replace, known=known)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    output = _Output(path, "folder")
    output.check_free(force=replace)
    with _folder_beside(path) as partial:
        yield partial
        _seal(partial, record or {})
        for child in partial.rglob("*"):
            if child.is_file():
                # safetensors makes files for their owner only.
                child.chmod(0o666 & ~_umask())
                with child.open("rb") as stream:
                    os.fsync(stream.fileno())
        output.check_free(force=replace)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place, whatever is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    partial.chmod(0o777 & ~_umask())
    try:
        yield partial
        # Two renames: whoever looks in between finds no folder, never half of one.
        with _retired(path):
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _retired(path: Path) -> Iterator[None]:
    """Take a folder away in one step, and remove what was in it when the block has ended."""
    if not path.exists():
        yield
        return
    retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".retired"))
    os.replace(path, retired / "old")
    try:
        yield
    except BaseException:
        os.replace(retired / "old", path)
        retired.rmdir()
        raise
    shutil.rmtree(retired)


def _seal(folder: Path, record: Mapping[str, Any]) -> None:
    """Give a finished folder its record."""
    path = folder / RECORD
    known = {"kind": "folder", **record, **(read_json(path) if path.exists() else {})}
    known["versions"] = {**writer(), **known.get("versions", {})}
    known["files"] = manifest(folder)
    write_json(path, known, inner=True)


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
    _Output(folder, "work").check_free(force=True)
    if not anew and folder.exists() and any(folder.iterdir()):
        return
    # The mark comes with the folder, so that a work folder is never without.
    with _folder_beside(folder) as partial:
        write_json(partial / RECORD, {"kind": WORK, "versions": writer()})


def discard_work(folder: Path) -> None:
    """Remove a work folder and what is in it, if it is there.

    Raises:
        InputError: something else is there.
    """
    _Output(folder, "work").check_free(force=True)
    with _retired(folder):
        pass


def discard_output(path: Path, *, written: Collection[Path] | None = None) -> None:
    """Remove what an earlier call wrote in a folder that is ours, such as a run's, if it is there.

    Args:
        written: the files in there that are ours; None: as the folder's record says.

    Raises:
        InputError: it is a symbolic link, a device, a pipe or a socket, or it holds something that is not ours.
    """
    _Output(path, "made", written).check_free(force=True)
    if path.is_dir():
        with _retired(path):
            pass
    else:
        path.unlink(missing_ok=True)


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
