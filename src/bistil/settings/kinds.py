"""The kinds of task, by name alone: settings and help know them before anything of a task is imported.

In the package a kind is a module of `bistil.tasks` that is called like it, such as token_classification for
"token-classification"; whatever else is in that room has a name of one word. `bistil.tasks.register_task` makes known
what is elsewhere.
"""

from functools import cache
from importlib.util import find_spec
from pkgutil import iter_modules

ROOM = "bistil.tasks"
# Kinds of tasks that are no modules of the room.
_ELSEWHERE: set[str] = set()


@cache
def own_kinds() -> tuple[str, ...]:
    """The kinds of this package, sorted."""
    room = find_spec(ROOM)
    places = room.submodule_search_locations if room else None
    return tuple(sorted(one.name.replace("_", "-") for one in iter_modules(places) if "_" in one.name))


def task_kinds() -> list[str]:
    """All kinds that a recipe may name, sorted: those of this package and those that were made known."""
    return sorted({*own_kinds(), *_ELSEWHERE})


def module_of(kind: str) -> str | None:
    """The module of one of this package's kinds; None of others."""
    return f"{ROOM}.{kind.replace('-', '_')}" if kind in own_kinds() else None


def add_kind(kind: str) -> None:
    """Make a kind known that is elsewhere (`bistil.tasks.register_task` does)."""
    _ELSEWHERE.add(kind)
