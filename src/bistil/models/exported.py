"""Folders of exported models: how they are told from those of transformers."""

from pathlib import Path
from typing import Any

from bistil.runtime.artefacts import RECORD, read_json

KIND = "exported model"
"""What `bistil.json` of an exported model says under "kind"."""


def engine_of(folder: str | Path) -> str | None:
    """The name of the engine that the model in a folder was exported for; None: it is a model of transformers."""
    record = exported_record(folder)
    return None if record is None else str(record.get("engine"))


def exported_record(folder: str | Path) -> dict[str, Any] | None:
    """The record of an exported model; None where a folder holds none.

    Raises:
        InputError: the record cannot be read.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    record = read_json(path)
    return record if isinstance(record, dict) and record.get("kind") == KIND else None


def exported_length(folder: str | Path) -> int | None:
    """Tokens per window that a model was exported and proved with; None where a folder holds none, or does not say.

    Raises:
        InputError: the record cannot be read.
    """
    length = (exported_record(folder) or {}).get("max_length")
    return length if type(length) is int and length > 0 else None
