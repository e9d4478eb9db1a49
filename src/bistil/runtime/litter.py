"""What processes that were killed left in the making beside an output, and how it is known to be that."""

import os
import platform
import re
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from bistil.runtime.digests import json_digest

PARTIAL, RETIRED = ".partial", ".retired"


def partial_prefix(path: Path) -> str:
    """How the names of temporary files and folders beside an output begin: they say which process they are of."""
    return f".{path.name}.{_machine()}-{os.getpid()}-"


@cache
def _machine() -> str:
    """Four characters of this machine's name: processes of others cannot be looked at."""
    return json_digest(platform.node())[:4]


def remove_litter(path: Path) -> None:
    """Remove what processes of this machine that were killed left in the making beside an output."""
    own = re.compile(rf"\.{re.escape(path.name)}\.{_machine()}-(\d+)-\w+({PARTIAL}|{RETIRED})")
    with suppress(OSError):
        for old in list(path.parent.iterdir()):
            left = own.fullmatch(old.name)
            if left is None or _is_alive(int(left[1])):
                continue
            # Between the two renames of a replacement the old folder is the only one.
            if left[2] == RETIRED and not path.exists() and (old / "old").exists():
                os.replace(old / "old", path)
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    return process == os.getpid() or psutil.pid_exists(process)
