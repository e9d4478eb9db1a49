"""Hub names wherever a path does."""

from pathlib import Path
from typing import TYPE_CHECKING

from bistil._moved import left_names
from bistil.errors import ArtefactError, InputError
from bistil.models.names import hub_folder
from bistil.sparse.delta import CONFIG, TENSORS
from bistil.sparse.legacy import LEGACY_FILE

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.sparse.hub")


def sft_folder(name: str, *, revision: str | None = None) -> Path:
    """The folder of an SFT: a local folder as it is, a hub name downloaded into the hub's cache.

    Raises:
        InputError: neither a folder nor a name that the hub (or its cache, offline) knows.
        ArtefactError: the repository holds no SFT.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{name} is a file: name the folder that holds {TENSORS}")
    cached = hub_folder(name, [TENSORS, CONFIG, LEGACY_FILE, "README.md"], kind="sparse fine-tuning", revision=revision)
    if not (cached / TENSORS).exists() and not (cached / LEGACY_FILE).exists():
        raise ArtefactError(f"the hub's {name} holds neither {TENSORS} nor {LEGACY_FILE}: no sparse fine-tuning")
    return cached
