"""Labelled examples in data sets of the Hugging Face hub, or in a folder of the same layout.

A data set is named like a file: `dataset:NAME[:CONFIG][:SPLIT]`, such as `dataset:masakhane/masakhaner2:swa:test` or
`dataset:my-folder:train`. NAME is a folder (written by `save_to_disk`, or of data files that `load_dataset` reads) or
a name on the hub.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bistil.errors import InputError, first_line
from bistil.runtime.artefacts import file_digest
from bistil.runtime.quiet import quiet_datasets

PREFIX = "dataset:"


def is_dataset(name: str | Path) -> bool:
    """Whether the name of labelled examples is a data set's and not a file's."""
    return str(name).startswith(PREFIX)


def source_of(name: str | Path) -> str:
    """Where labelled examples come from: a file, or a data set's folder or name."""
    return re.split(r"[:\[]", str(name).removeprefix(PREFIX), maxsplit=1)[0] if is_dataset(name) else str(name)


def read_dataset(name: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row numbers from 1 and rows; class labels by their names (None where the data set has none, as in hidden tests).

    Raises:
        InputError: no such data set, configuration or split, or the hub cannot be reached.
    """
    data = _load(str(name))
    for number, row in enumerate(data, 1):
        yield number, {column: _named(data.features[column], value) for column, value in row.items()}


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
