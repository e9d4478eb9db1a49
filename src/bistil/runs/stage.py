"""What a stage is: a small frozen value that holds its real inputs, and whose key is the digest of its fields.

A stage is called with nothing but itself, so what it depends on and what it works on cannot drift apart. Stages hold
the stages that they stand on; two that are equal have the same key, and are made once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast, get_args

from bistil.measuring.shape import EncoderShape
from bistil.runs.cost import Ahead, Cost
from bistil.runtime.artefacts import file_digest, folder_digest, json_digest
from bistil.settings.parsing import decides

Result = TypeVar("Result")
T = TypeVar("T")


def cosmetic(default: Any = None, *, factory: Any = None) -> Any:
    """A field that says what something is called or where it lies: it is no part of the key."""
    metadata = {"cosmetic": True}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata, compare=False)
    return field(default=default, metadata=metadata, compare=False)


def later(default: Any) -> Any:
    """A field that came after others: while it has its default, what was made without it is not made again."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class File:
    """A file or folder that is read, known by its content."""

    digest: str
    path: Path = cosmetic()

    @classmethod
    def at(cls, path: str | Path) -> "File":
        """What lies there now.

        Raises:
            InputError: it is missing or cannot be read.
        """
        path = Path(path)
        return cls(folder_digest(path) if path.is_dir() else file_digest(path), path)


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """The result of a stage that has nothing to report."""


@dataclass(frozen=True)
class Product:
    """A part of what a stage leaves on disk."""

    stage: "Stage[Any]"
    part: str


class Reader(Protocol):
    """Reads what several stages read, once for all of them."""

    def read(self, what: Any, how: Callable[[], T]) -> T:
        """What `how` reads, for a key."""


class Place(Reader, Protocol):
    """Where a stage is made."""

    work: Path
    """For checkpoints and caches; survives an interruption."""
    label: str
    """What the stage is called in progress lines."""

    def path(self, of: Product | File) -> Path:
        """Where an input lies."""

    def output(self, part: str) -> Path:
        """Where a part of the stage's own product is to be written."""

    def common(self, name: str) -> Path | None:
        """A work folder that stages of a run have in common, and that goes with its end; None: there is none."""


class Stage(ABC, Generic[Result]):
    """A step of the method, to be subclassed as a frozen dataclass whose fields are all that it depends on."""

    KIND: ClassVar[str]
    """Begins the names of its record and of its work folder."""
    PARTS: ClassVar[tuple[str, ...]] = ()
    """Names of the parts of what is left on disk, where they do not depend on the fields."""
    VERSION: ClassVar[int] = 1
    """Goes up when the same fields give another result."""
    JOINT: ClassVar[bool] = False
    """Whether all processes of a run do it together; otherwise the first one does it, and the others wait."""
    ALONE: ClassVar[bool] = False
    """Whether it measures this machine: nothing else of the run is made meanwhile."""
    FIRST: ClassVar[bool] = False
    """Whether people want to know its result before anything longer begins: what else may begin waits for it."""

    @abstractmethod
    def make(self, place: Place) -> Result:
        """Do the work: write every part of the product, and return a dataclass of plain values for the record."""

    def parts(self) -> tuple[str, ...]:
        """Names of the parts of what is left on disk."""
        return self.PARTS

    def notices(self, result: Result, place: Place) -> list[str]:
        """What people should know of a result, in lines; every call that makes the stage, or finds it made, says it."""
        del result, place
        return []

    def cost(self, ahead: Ahead) -> Cost:
        """What it will cost to make, before it is made (`runs.forecast`); a stage that says nothing costs nothing.

        Args:
            ahead: knows what the inputs will be like.
        """
        del ahead
        return Cost()

    def model_of(self, part: str) -> "Product | File | None":
        """The model that the model in a part of the product is made of, with its tokenizer; None: it is no model."""
        del part
        return None

    def shape(self, part: str, ahead: Ahead) -> EncoderShape:
        """What the model in a part of the product will be like; by itself, like the model that it is made of."""
        return ahead.shape(self.model_of(part))

    def product(self, part: str) -> Product:
        """A part of the product, as a field of another stage."""
        if part not in self.parts():
            raise ValueError(f"{self.KIND} has no part {part!r}; it has {', '.join(self.parts()) or 'none'}")
        return Product(self, part)

    @cached_property
    def key(self) -> str:
        """SHA-256 of the fields, those of the stages that it stands on included."""
        return json_digest({"stage": self.KIND, "version": self.VERSION, **_plain_fields(self)})

    @property
    def result_type(self) -> type[Result]:
        """The dataclass that `make` returns."""
        base = next(one for one in type(self).__orig_bases__ if get_args(one))  # type: ignore[attr-defined]
        return cast("type[Result]", get_args(base)[0])

    def inputs(self) -> dict[str, Any]:
        """The fields as plain values, for the record."""
        return _plain_fields(self)

    def stands_on(self) -> list["Stage[Any]"]:
        """The stages in the fields, in their order."""
        found: dict[str, Stage[Any]] = {}
        for one in _stages_in([getattr(self, f.name) for f in fields(cast(Any, self))]):
            found.setdefault(one.key, one)
        return list(found.values())


def plain(value: Any) -> Any:
    """A field's value as JSON has it: files by their digests, stages by their keys, cosmetic fields left out."""
    if isinstance(value, Stage):
        return value.key
    if isinstance(value, File):
        return value.digest
    if isinstance(value, Product):
        return f"{value.stage.key}/{value.part}"
    if hasattr(value, "key_values"):
        return plain(value.key_values())
    if is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        # Pairs, for the order of languages decides what is drawn, and digests sort keys.
        return [[str(key), plain(one)] for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{value!r} cannot be a field of a stage")


def _plain_fields(value: Any) -> dict[str, Any]:
    return {f.name: plain(own) for f in fields(value) for own in [getattr(value, f.name)] if decides(f, own)}


def _stages_in(value: Any) -> Iterator[Stage[Any]]:
    if isinstance(value, Stage):
        yield value
    elif isinstance(value, Product):
        yield value.stage
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _stages_in(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _stages_in(one)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _stages_in([getattr(value, f.name) for f in fields(value)])
