"""Code that settings name: it is imported only where the user says that it may be."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from bistil.errors import RecipeError
from bistil.settings.schema import ObjectiveSettings


def code_named(settings: Any) -> list[str]:
    """All "package.module:Class" that objectives within some settings name, in their order."""
    return list(dict.fromkeys(name for objective in _objectives(settings) for name in objective.terms if ":" in name))


def require_trust(settings: Any, *, trust_code: bool, where: str) -> None:
    """Refuse settings that name code, unless it is trusted.

    Raises:
        RecipeError: with what would be imported.
    """
    named = code_named(settings)
    if named and not trust_code:
        raise RecipeError(
            f"{where} names code, {', '.join(named)}, which would be imported: look at it, and add --trust-code "
            "(trust_code=True in Python)"
        )


def _objectives(settings: Any) -> Iterator[ObjectiveSettings]:
    if isinstance(settings, ObjectiveSettings):
        yield settings
    elif is_dataclass(settings):
        for one in fields(settings):
            yield from _objectives(getattr(settings, one.name))
    elif isinstance(settings, list):
        for item in settings:
            yield from _objectives(item)
