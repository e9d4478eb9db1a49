"""Options of commands made out of settings: names, help, choices and defaults are those of the dataclasses."""

import functools
import inspect
import logging
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from bistil.errors import InputError, RecipeError
from bistil.runtime.insides import long_names_folded, usage_error, words_given
from bistil.settings.parsing import assigned, plain_value, settled
from bistil.settings.recipe import Recipe
from bistil.settings.schema import MOST_SEED, help_of

logger = logging.getLogger(__name__)

# What several commands take besides settings.
FORCE = typer.Option(False, "--force", help="Replace the output if bistil made it.")
SEED = typer.Option(0, min=0, max=MOST_SEED, help=help_of(Recipe, "seed"))
TRUST = typer.Option(False, "--trust-code", help="Import the code that settings name as package.module:Class.")
JOBS = typer.Option(
    1, min=1, help="At most so many stages side by side, as cores and memory allow; each has its share of the threads."
)
DEVICE = typer.Option(help="PyTorch's device, such as cpu, cuda or mps. Default: a CUDA GPU if there is one.")
TASK_KIND = typer.Option(help="Kind of task. Default: the one that the model's head is for.")
WINDOW = typer.Option(
    help="Tokens per window. Default: as it was exported, else 128, or 384 of a question and its passage.", min=4
)
THREADS = typer.Option(help="CPU threads. Default: as many as PyTorch takes.", min=1)
SET = typer.Option([], "--set", metavar="KEY=VALUE", help="Any key of the settings, such as training.log_steps=5.")

# Options of version 0.1 by command, and what they are now; to go in version 0.3.
RENAMED = {
    "distill": {"--masked-lm": ["--hard-labels"], "--random-start": ["--start", "random"]},
    "finetune": {"--dense": ["--no-sparse"]},
    "trim": {
        "--size": ["--vocabulary-size"],
        "--characters": ["--keep-characters"],
        "--no-characters": ["--no-keep-characters"],
    },
}
# The length of a dense fine-tuning had the name that is now the dense phase's alone.
WITH_DENSE = {"--dense-epochs": ["--epochs"]}


class Command(TyperCommand):
    """A command whose help shows all there is to read, and which takes no word that would have no effect."""

    def get_params(self, ctx: Any) -> Any:
        return _readable(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with long_names_folded():
            super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        # What is left over is refused here, where it can be said what to type.
        ctx.allow_extra_args = True
        try:
            left = super().parse_args(ctx, args)
        except usage_error() as error:
            if getattr(error, "ctx", None) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise
        options = [one for one in words_given(self, ctx, words) if one.param_type_name == "option"]
        if left:
            repeatable = {name for one in self.get_params(ctx) if getattr(one, "multiple", False) for name in one.opts}
            raise usage_error()(_unexpected(left, words, repeatable), ctx)
        for one in options:
            is_yes = one.is_flag and not one.secondary_opts
            if options.count(one) > 1 and not one.multiple and not is_yes:
                names, help = "/".join([*one.opts, *one.secondary_opts]), (one.help or "").partition("  \\[")[0]
                raise usage_error()(f"{names} is given twice, and takes one value ({help}): leave one out", ctx)
        return left


class Group(TyperGroup):
    """The same of a command with commands."""

    def get_params(self, ctx: Any) -> Any:
        return _readable(super().get_params(ctx))


def _readable(parameters: Any) -> Any:
    """Parameters whose help shows no type beside a flag, which takes no value, and is no rich text."""
    for one in parameters:
        if getattr(one, "is_flag", False) and one.metavar is None:
            one.metavar = ""
        if getattr(one, "help", None):
            # A bracket would begin a style; this is done each time that somebody asks for the parameters.
            one.help = re.sub(r"(?<!\\)\[", r"\\[", one.help)
    return parameters


def _unexpected(left: Sequence[str], words: Sequence[str], repeatable: Collection[str]) -> str:
    """That words are left over; behind an option that may be repeated, that it is to be."""
    said = f"unexpected {' '.join(map(repr, left))}"
    before = words[: words.index(left[0]) + 1]
    place = max((place for place, word in enumerate(before) if len(word) > 1 and word.startswith("-")), default=None)
    if place is not None:
        name, sign, value = before[place].partition("=")
        values = [*([value] if sign else []), *before[place + 1 :]]
        if name in repeatable:
            again = " ".join(f"{name} {shlex.quote(one)}" for one in values[:2])
            return f"{said}: {name} takes one value, and is repeated for each: {again}"
    return f"{said}: leave it out, or quote a name that has spaces"


def in_new_words(words: Sequence[str]) -> list[str]:
    """A command line with old options in today's words; a notice says each new name."""
    place = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    quiet = bool({"-q", "--quiet"} & set(words[:place]))
    renamed = RENAMED.get(words[place], {}) if place < len(words) else {}
    if "--dense" in words and "--dense" in renamed:
        renamed = renamed | WITH_DENSE
    new: list[str] = []
    for word in words:
        name, sign, value = word.partition("=")
        if name in renamed and not quiet:
            logger.warning(f"{name} is now {' '.join(renamed[name])}; the old name goes in 0.3")
        *first, last = renamed.get(name, [name])
        new += [*first, f"{last}{sign}{value}"]
    return new


@dataclass(frozen=True)
class Table:
    """Settings whose keys become options.

    Args:
        base: the settings class, or settings whose values are the defaults that are shown.
        only, without: keys, with dots; those of a table stand for all in it.
        each: keys whose options may be repeated, for one item each; their values are lists.
        assignable: whether `--set` changes these settings.
    """

    base: Any
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    assignable: bool = False

    @property
    def settings(self) -> type:
        """The settings class."""
        return self.base if isinstance(self.base, type) else type(self.base)

    def takes(self, path: tuple[str, ...]) -> bool:
        """Whether a key is an option."""
        above = [".".join(path[:i]) for i in range(1, len(path) + 1)]
        return not set(above) & set(self.without) and (not self.only or bool(set(above) & set(self.only)))


@dataclass(frozen=True)
class _Key:
    """A key of settings as an option."""

    path: tuple[str, ...]
    hint: Any
    default: Any
    metadata: Any
    each: bool = False

    @property
    def flag(self) -> str:
        name: str = self.metadata["flag"] or self.path[-1].replace("_", "-")
        return f"--no-{name}" if self.is_table else f"--{name}"

    @property
    def is_table(self) -> bool:
        """Whether it is a table that may be none; the option says that it is."""
        return is_dataclass(settled(self.hint))

    def is_given(self, value: Any) -> bool:
        """Whether a value of the parameter comes from the command line."""
        return bool(value) if self.is_table else value not in (None, [])

    def parameter(self, name: str) -> inspect.Parameter:
        """The parameter of a command's function; None where nothing is given."""
        kind, help = settled(self.hint), self.metadata["help"]
        declared, metavar = [self.flag], None
        annotation: Any = bool | None
        if kind is bool:
            declared = [f"{self.flag}/--no-{self.flag[2:]}"]
        elif self.is_table:
            annotation, help = bool, f"none of this: {help}"
        else:
            repeated = self.each or get_origin(kind) in (list, dict)
            annotation, metavar = (list[str] | None if repeated else str | None), self._metavar(kind)
            help += "; repeatable" if repeated else ""
        if self.default is not MISSING and not self.is_table and self.default not in (None, [], {}):
            shown = str(self.default).lower() if isinstance(self.default, bool) else self.default
            help = f"{help}  [default: {shown}]"
        option = typer.Option(
            ... if self.default is MISSING else False if annotation is bool else None,
            *declared,
            help=help,
            metavar=metavar,
            show_default=False,
            rich_help_panel=f"Options of {self.path[-2]}" if len(self.path) > 1 else None,
        )
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)

    def _metavar(self, kind: Any) -> str:
        choices = self.metadata.get("choices")
        if choices or get_origin(kind) is Literal:
            return f"[{'|'.join(choices() if choices else get_args(kind))}]"
        if get_origin(kind) is dict:
            return str(self.metadata["entry"])
        if get_origin(kind) is list:
            item = get_args(kind)[0].__name__
            return f"<{item},...>" if self.each else f"<{item}>"
        return f"<{kind.__name__}>"

    def value(self, given: Any) -> Any:
        """The plain value for what the command line gave."""
        kind = settled(self.hint)
        if self.is_table:
            return False
        if isinstance(given, bool):
            return given
        if get_origin(kind) is dict:
            item = get_args(kind)[1]
            return {name: plain_value(item, one) for name, one in pairs(given, self.flag, self.metadata["entry"])}
        if self.each or get_origin(kind) is list:
            item = self.hint if self.each else get_args(kind)[0]
            return [plain_value(item, one) for one in given]
        return plain_value(self.hint, given)


def takes(**tables: Table) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command's function an option for each key of some settings.

    Args:
        tables: by the name of the function's parameter that gets the plain values of what was given, for `parse`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.name not in tables]
        keys = {f"{table}__{'__'.join(key.path)}": (table, key) for table, one in tables.items() for key in _keys(one)}
        made = [key.parameter(name) for name, (_, key) in keys.items()]
        assignable = any(one.assignable for one in tables.values())
        if assignable:
            made.append(
                inspect.Parameter("assignments", inspect.Parameter.KEYWORD_ONLY, default=SET, annotation=list[str])
            )

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values: dict[str, dict[str, Any]] = {table: {} for table in tables}
            # What `--set` changes is called by its key, as it was typed.
            flags = {"kind": "--task"}
            for name, (table, key) in keys.items():
                if (one := given.pop(name)) not in (None, []) and not (
                    one is False and is_dataclass(settled(key.hint))
                ):
                    _put(values[table], key, key.value(one))
                    flags[".".join(key.path)] = key.flag
            assignments = given.pop("assignments") if assignable else []
            for table, one in tables.items():
                if one.assignable:
                    values[table] = assigned(one.settings, values[table], assignments)
            try:
                command(**given, **values)
            except RecipeError as error:
                raise RecipeError(_of_option(str(error), command.__name__, flags)) from error

        run.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*own, *made)}
        return run

    return decorate


def _of_option(message: str, command: str, flags: Mapping[str, str]) -> str:
    """What settings say of a key, of the option that gave it."""
    found = re.match(rf"bistil {command}(?: --\w+)?\.([\w.]+)", message)
    flag = found and flags.get(found[1])
    return f"{flag}{message[found.end() :]}" if found and flag else message


def _keys(table: Table) -> Iterator[_Key]:
    """The keys of a table and of the tables within; of two with one name the outer one."""
    seen: set[str] = set()
    for key in _all_keys(table.base, ()):
        if table.takes(key.path) and key.flag not in seen:
            seen.add(key.flag)
            yield _Key(key.path, key.hint, key.default, key.metadata, ".".join(key.path) in table.each)


def _all_keys(base: Any, path: tuple[str, ...]) -> Iterator[_Key]:
    hints = get_type_hints(base if isinstance(base, type) else type(base))
    for one in fields(base):
        hint, default = hints[one.name], getattr(base, one.name, one.default)
        if isinstance(base, type) and one.default_factory is not MISSING:
            default = one.default_factory()
        inner = settled(hint)
        if not is_dataclass(inner):
            # A list of tables or lists is no option.
            items = get_args(inner)[0] if get_origin(inner) is list else None
            if not (is_dataclass(items) or get_origin(items) is list):
                yield _Key((*path, one.name), hint, default, one.metadata)
            continue
        if inner is not hint:
            yield _Key((*path, one.name), hint, default, one.metadata)
        yield from _all_keys(default if is_dataclass(default) else inner, (*path, one.name))


def _put(values: dict[str, Any], key: _Key, value: Any) -> None:
    for name in key.path[:-1]:
        inner: Any = values.setdefault(name, {})
        if inner is False:
            raise InputError(f"--no-{name} and {key.flag} exclude each other: leave one out")
        values = inner
    values[key.path[-1]] = value


def pairs(values: list[str], flag: str, form: str) -> list[tuple[str, str]]:
    """`["sw=a.txt"]` as `[("sw", "a.txt")]`.

    Args:
        flag: the option's name, for messages.
        form: such as LANGUAGE=FILE.

    Raises:
        InputError: an entry is not of this form, or one that is no file is given twice.
    """
    found: list[tuple[str, str]] = []
    for value in values:
        name, sign, rest = value.partition("=")
        if not (name and sign and rest):
            raise InputError(f"{flag} {value!r}: write {form}, such as {_EXAMPLES.get(form, 'sw=swahili.txt')}")
        if not form.endswith("=FILE") and name in dict(found):
            raise InputError(f"{flag} {name}= is given twice: {dict(found)[name]} and {rest}")
        found.append((name, rest))
    return found


_EXAMPLES = {
    "LANGUAGE=NUMBER": "sw=0.5",
    "LANGUAGE=SHARE": "sw=0.05",
    "LANGUAGE=SFT": "sw=sfts/sw",
    "OLD=NEW": "B-DATE=O",
    "NAME=COLUMN": "tags=3",
    "FILE=LANGUAGE": "news.txt=sw",
    "FILE=PART": "news.tsv=test",
}
