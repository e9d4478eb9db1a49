"""What an output may replace: one rule, `claim`.

It is asked before the work by whoever knows all inputs, and again at the moment of replacing.
"""

import os
import stat
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import Literal

from bistil.errors import InputError
from bistil.runtime.digests import file_digest
from bistil.runtime.litter import remove_litter
from bistil.runtime.ownership import CARD, contents, is_our_file, is_our_folder, is_run, is_work_folder, not_ours

# What the names of temporary files and work folders have beyond the output's name, in bytes.
_ROOM = 40


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
    outputs = [Output(path, "folder") for path in folders if path is not None]
    outputs += [Output(path, "file") for path in files if path is not None]
    outputs += [Output(path, "kept") for path in kept if path is not None]
    outputs += [Output(path, "made", written) for path in made if path is not None]
    outputs += [Output(work, "work")] if work is not None else []
    read = [_Input(str(one)) for one in inputs if one is not None]
    for output in outputs:
        remove_litter(output.place)
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
            Output(output, "made").check_apart_from(one)


def check_plain(path: Path) -> None:
    """Make sure that a file of a folder of ours may be opened for writing: it is a plain file, or not there.

    Raises:
        InputError: it is a symbolic link, a folder, a device, a pipe or a socket.
    """
    Output(path, "inner").check_free(force=True)


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


class Output:
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

    def check_beside(self, other: "Output") -> None:
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


def _limits(folder: Path) -> tuple[int, int]:
    """How many bytes a name in a folder, and a path, may have."""
    if sys.platform == "win32":
        return 255, 259
    return os.pathconf(folder, "PC_NAME_MAX"), os.pathconf(folder, "PC_PATH_MAX")
