"""Labelled examples that are no files: in memory, in data sets of the Hugging Face hub, in folders of that layout.

A data set is named like a file: `dataset:NAME[:CONFIG][:SPLIT]`, such as `dataset:masakhane/masakhaner2:swa:test` or
`dataset:my-folder:train`. NAME is a folder (written by `save_to_disk`, or of data files that `load_dataset` reads) or
a name on the hub.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from bistil.errors import InputError, first_line
from bistil.runtime.artefacts import file_digest
from bistil.runtime.quiet import quiet_datasets

PREFIX = "dataset:"


@dataclass(frozen=True, eq=False)
class Rows:
    """Labelled examples in memory, read like the rows of a data set.

    Args:
        name: for messages, such as "the training data".
        rows: mappings from column to value, or a `datasets.Dataset`.
    """

    name: str
    rows: Any

    def __str__(self) -> str:
        return self.name


Source = Path | Rows
"""Where labelled examples come from: a file, a data set by its name (written like a path), or memory."""


def as_sources(name: str, given: Any) -> list[Source]:
    """Labelled examples as people give them.

    Args:
        name: for messages.
        given: rows (a list of mappings, or a `datasets.Dataset`), a file or a data set's name, or a list of such names.

    Raises:
        InputError: something else.
    """
    if isinstance(given, str | Path):
        return [Path(given)]
    if isinstance(given, Rows) or hasattr(given, "features"):
        return [given if isinstance(given, Rows) else Rows(name, given)]
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise InputError(f"{name}: give a list of rows, a data set or files, not a {type(given).__name__}")
    items = list(given)
    if items and all(isinstance(one, str | Path | Rows) for one in items):
        return [one if isinstance(one, Rows) else Path(one) for one in items]
    return [Rows(name, items)]


def is_dataset(name: str | Source) -> bool:
    """Whether labelled examples are rows of a data set, and not a file."""
    return isinstance(name, Rows) or str(name).startswith(PREFIX)


def is_file(source: Source) -> TypeGuard[Path]:
    """Whether labelled examples are in a file."""
    return not is_dataset(source)


def source_of(name: str | Path) -> str:
    """Where labelled examples come from: a file, or a data set's folder or name."""
    return re.split(r"[:\[]", str(name).removeprefix(PREFIX), maxsplit=1)[0] if is_dataset(name) else str(name)


def read_dataset(name: str | Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row numbers from 1 and rows; class labels by their names (None where the data set has none, as in hidden tests).

    Raises:
        InputError: no such data set, configuration or split, the hub cannot be reached, or a row is no mapping.
    """
    data = name.rows if isinstance(name, Rows) else _load(str(name))
    features = getattr(data, "features", {})
    for number, row in enumerate(data, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}, row {number}: a mapping from column to value is expected, not {row!r:.60}")
        yield number, {column: _named(features.get(column), value) for column, value in row.items()}


def labelled_digest(name: str | Path) -> str:
    """SHA-256 of labelled examples: of a file's bytes, or of a data set's columns and rows, wherever they are cached.

    Raises:
        InputError: as `read_dataset`, or the file cannot be read.
    """
    if not is_dataset(name):
        return file_digest(Path(name))
    digest = hashlib.sha256()
    for _, row in read_dataset(name):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _load(name: str) -> Any:
    parts = re.fullmatch(r"([^:\[]+)(?::([^:\[]+))??(?::([^:\[]+(?:\[[^]]*\])?))?", name.removeprefix(PREFIX))
    if parts is None:
        raise InputError(f"{name} is no data set's name: write dataset:NAME:SPLIT or dataset:NAME:CONFIG:SPLIT")
    source, config, split = parts.groups()
    import datasets

    try:
        with quiet_datasets():
            if (Path(source) / "state.json").is_file() or (Path(source) / "dataset_dict.json").is_file():
                found = datasets.load_from_disk(source)
                if isinstance(found, datasets.DatasetDict) and split in found:
                    found = found[split]
            else:
                found = datasets.load_dataset(source, config, split=split)
    except Exception as error:  # whatever a builder meets: network, files, names
        said = first_line(error)
        raise InputError(
            f"cannot load {name}: {said}; check the name, CONFIG and SPLIT, and whether the hub can be reached"
        ) from error
    if not isinstance(found, datasets.Dataset):
        splits = ", ".join(map(str, found))
        raise InputError(f"{name} has no split {split!r}: write {PREFIX}{source}:SPLIT with one of {splits}")
    return found


def _named(feature: Any, value: Any) -> Any:
    """A value with class indices replaced by the classes' names, at any depth."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _named(feature[key], one) for key, one in value.items()}
    if isinstance(feature, datasets.List | datasets.LargeList) and isinstance(value, list):
        return [_named(feature.feature, one) for one in value]
    return value
