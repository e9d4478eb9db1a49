"""Plain values, as TOML and command lines have them, to settings and back."""

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from bistil.errors import InputError, RecipeError
from bistil.runtime.documents import parse_toml, read_document

Settings = TypeVar("Settings")


def parse(
    settings: type[Settings],
    values: Any,
    where: str,
    *,
    base: Settings | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Build a settings dataclass from plain values, checking names and types.

    Args:
        settings: a dataclass type, such as those of `settings.schema`.
        values: what TOML or JSON gave for it.
        where: how to name the place in messages, such as "recipe.toml: phase1.training".
        base: where keys that are not given come from, instead of the class's own defaults.
        defaults: the same for some keys only.

    Raises:
        RecipeError: unknown key (with the nearest known one), missing key, value of another type or out of range.
    """
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must be a table, not {values!r}")
    hints = get_type_hints(settings)
    known: dict[str, Field[Any]] = {f.name: f for f in fields(settings)}  # type: ignore[arg-type]
    defaults = defaults or {}
    parsed: dict[str, Any] = dict(defaults)
    for name, value in values.items():
        if name not in known:
            raise RecipeError(f"{where}: unknown key {name!r}; {_suggest(name, list(known))}")
        default = defaults[name] if name in defaults else _default(known[name], base)
        said = known[name].metadata
        hint = settled(hints[name]) if value == {} and said.get("empty") else hints[name]
        parsed[name] = _value(hint, value, f"{where}.{name}", base=default, help=said.get("help", ""))
    for group in getattr(settings, "ALTERNATIVES", ()):
        given = [name for name in group if parsed.get(name) is not None]
        if len(given) > 1:
            raise RecipeError(f"{where}: give only one of {' and '.join(map(repr, given))}")
        if given:
            # Whoever says steps does not want the default epochs as well.
            parsed.update({name: None for name in group if name != given[0]})
    for name, one in known.items() if base is None else ():
        if name not in parsed and one.default is MISSING and one.default_factory is MISSING:
            raise RecipeError(f"{where}: {name!r} is missing ({one.metadata.get('help', '')})")
    try:
        made: Any = settings(**parsed) if base is None else replace(base, **parsed)  # type: ignore[type-var]
        # What is written down must have an effect.
        if hasattr(made, "check_given"):
            made.check_given(values)
    except RecipeError as error:  # a value that the settings themselves refuse
        raise RecipeError(f"{where}.{error}") from None
    return cast(Settings, made)


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _default(one: Field[Any], base: Any) -> Any:
    if base is not None:
        return getattr(base, one.name)
    return one.default_factory() if one.default_factory is not MISSING else None


def _value(hint: Any, value: Any, where: str, *, base: Any = None, help: str = "") -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or (value is False and type(None) in arguments):
            return None
        if value == {} and base is None and _may_be_empty(arguments):
            # A table in which nothing is given changes nothing: what is none stays none.
            return None
        return _value(settled(hint), value, where, base=base, help=help)
    if origin is Literal:
        if value not in arguments:
            raise RecipeError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is list:
        # One file or label is as welcome as a list of one.
        items = value if isinstance(value, list) else [value]
        return [_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where} must be a table, not {value!r}")
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return parse(hint, value, where, base=base)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        # A whole number that no float holds is beyond any limit.
        return float(value) if abs(value) < 2**1000 else float("inf") if value > 0 else float("-inf")
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise RecipeError(f"{where} is {value!r}; expected {hint.__name__}{help and f' ({help})'}")
    return value


def _may_be_empty(types_: tuple[Any, ...]) -> bool:
    """Whether the settings class among these types needs no key."""
    settings = next((one for one in types_ if is_dataclass(one)), None)
    return settings is not None and not any(
        one.default is MISSING and one.default_factory is MISSING for one in fields(settings)
    )


def settled(hint: Any) -> Any:
    """A type without its `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(one for one in get_args(hint) if one is not type(None))
    return hint


def plain_value(hint: Any, text: str) -> Any:
    """What a text on the command line stands for: TOML, in which words need no quotes.

    Args:
        hint: the type of the setting, so that text stays text (a language called `no`, a label 1); None: not known.
    """
    kind = settled(hint)
    if get_origin(kind) is list and not text.lstrip().startswith("["):
        items = _toml(f"[{text}]")
        item = get_args(kind)[0]
        return plain_value(item, text) if item is str or not isinstance(items, list) else items
    value = _toml(text)
    if kind is str or get_origin(kind) is Literal:
        return value if isinstance(value, str) or (value is False and kind is not hint) else text
    return value


def _toml(text: str) -> Any:
    """A TOML value; the text itself where it is none."""
    try:
        values = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return values["value"] if len(values) == 1 else text


def assigned(settings: type, values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Plain values of settings after some assignments, such as `phase1.objective.cosine=1` or `students.0.depth=4`.

    Raises:
        RecipeError: no assignment, or an item of a list that there is not. Unknown keys are left to `parse`.
    """
    changed: Any = dict(values)
    for assignment in assignments:
        path, text = _assignment(assignment)
        changed = _replaced(changed, path, plain_value(_hint_at(settings, path), text), settings)
    return cast(dict[str, Any], changed)


def _assignment(text: str) -> tuple[list[str], str]:
    key, sign, value = text.partition("=")
    try:
        tables: Any = parse_toml(f"{key} = 0") if sign and "\n" not in key else None
    except ValueError:
        tables = None
    if not tables:
        raise RecipeError(f"--set {text!r}: write KEY=VALUE, such as phase1.training.steps=300")
    path = []
    while isinstance(tables, dict):
        ((name, tables),) = tables.items()
        path.append(name)
    return path, value.strip()


def _hint_at(hint: Any, path: Sequence[str]) -> Any:
    """The type of a setting within settings; None where there is none."""
    for key in path:
        hint = settled(hint)
        if is_dataclass(hint):
            hint = get_type_hints(hint).get(key)
        else:
            hint = get_args(hint)[-1] if get_origin(hint) in (dict, list) else None
    return hint


def _replaced(old: Any, path: Sequence[str], value: Any, hint: Any, above: str = "") -> Any:
    """Plain values with another one at a path: of a table, with its alternatives gone; of a list, by number."""
    if not path:
        return value
    hint, key = settled(hint), path[0]
    below, where = _hint_at(hint, [key]), f"{above}{key}"
    if get_origin(hint) is list:
        items = list(old) if isinstance(old, list) else [] if old is None else [old]
        if not key.isdecimal() or int(key) > len(items):
            raise RecipeError(f"--set {where}: there are {len(items)} of them, numbered from 0")
        place = int(key)
        new = _replaced(items[place] if place < len(items) else None, path[1:], value, below, f"{where}.")
        return [*items[:place], new, *items[place + 1 :]]
    groups = [group for group in getattr(hint, "ALTERNATIVES", ()) if key in group]
    kept = {k: v for k, v in old.items() if not any(k in group for group in groups)} if isinstance(old, dict) else {}
    new = _replaced(old.get(key) if isinstance(old, dict) else None, path[1:], value, below, f"{where}.")
    return {**kept, key: new}


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        RecipeError: the file is missing, unreadable or not TOML.
    """
    try:
        text = read_document(path)
    except InputError as error:
        raise RecipeError(str(error).replace("cannot read ", "cannot read recipe ", 1)) from error
    try:
        return parse_toml(text)
    except ValueError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values, for JSON."""
    return asdict(settings)


def deciding(settings: Any) -> dict[str, Any]:
    """`to_dict` without what is cosmetic, for digests of what a result depends on."""
    return {
        one.name: deciding(value) if is_dataclass(value) else value
        for one in fields(settings)
        for value in [getattr(settings, one.name)]
        if decides(one, value)
    }


def decides(one: Field[Any], value: Any) -> bool:
    """Whether a result depends on a field's value, or may be another one than before there was the field."""
    return not one.metadata.get("cosmetic") and not (one.metadata.get("later") and value == one.default)


def typed(hint: Any, value: Any) -> Any:
    """Plain values of a record as what a type hint says: dataclasses, and lists, dictionaries and options of them."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return cast(Any, hint)(**{name: typed(hints[name], one) for name, one in value.items() if name in hints})
    if origin in (Union, types.UnionType):
        return None if value is None else typed(next(one for one in arguments if one is not type(None)), value)
    if origin is list:
        return [typed(arguments[0], one) for one in value]
    if origin is dict:
        return {key: typed(arguments[1], one) for key, one in value.items()}
    return value
