"""What training leaves on disk, each file checked by digest before it is gone on from.

A checkpoint counts only once it is whole, and holds trained parameters only. A damaged one gives way to the one
before it.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bistil.errors import ArtefactError, InputError
from bistil.runtime.artefacts import file_digest, json_digest, open_work, read_sealed, whole_file, write_sealed
from bistil.runtime.whole_folders import CHECKPOINT_MARK

logger = logging.getLogger(__name__)

# Written into a checkpoint folder after everything else: without it the checkpoint does not exist for us.
COMPLETE = CHECKPOINT_MARK
# Says which training a work folder belongs to.
IDENTITY = "identity.json"
# What a finished run leaves: the weights, then the record that counts on them.
FINAL, RESULT = "final.safetensors", "result.json"
BEST = "best-*.safetensors"


@dataclass(kw_only=True)
class TrainingResult:
    """What a training run came to."""

    steps: int = field(metadata={"help": "optimizer steps that were taken: fewer than planned where patience ended"})
    seconds: float = field(metadata={"help": "wall time of all sessions of this run together, in seconds"})
    tokens: int = field(metadata={"help": "real (unpadded) tokens seen"})
    precision: str = "float32"
    best: dict[str, float] | None = None
    best_parts: dict[str, dict[str, float]] = field(
        default_factory=dict, metadata={"help": "per part of the module, where each part keeps its own best"}
    )
    history: list[dict[str, float]] = field(default_factory=list)
    device: str = field(default="", metadata={"help": "kind of the device that it ended on"})


def trained(module: nn.Module, *, prefix: str = "") -> dict[str, Tensor]:
    """The parameters that require gradients, and whose names begin so, by name."""
    return {
        name: p.detach().contiguous()
        for name, p in module.named_parameters()
        if p.requires_grad and name.startswith(prefix)
    }


def set_trained(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy parameters that `trained` gave back in place."""
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def save_trained(module: nn.Module, path: Path, *, prefix: str = "") -> None:
    """Write the parameters of `trained` into a work folder, as safetensors."""
    save_values(trained(module, prefix=prefix), path)


def save_values(values: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name into a work folder, as safetensors."""
    with whole_file(path, inner=True) as partial:
        save_file(dict(values), partial)


def load_trained(module: nn.Module, path: Path) -> None:
    """Copy parameters written by `save_trained` back in place."""
    set_trained(module, load_file(path))


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole and sound checkpoint with the highest step, if there is one.

    Newer ones that are damaged are removed, so that none of them passes for one of the two that are kept, and the user
    is told.
    """
    whole = sorted(
        (path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")),
        key=lambda path: int(path.name.rsplit("-", 1)[1]),
    )
    damaged = None
    while whole:
        checkpoint = whole.pop()
        damaged = _damaged_file(checkpoint)
        if damaged is None:
            return checkpoint
        shutil.rmtree(checkpoint)
        instead = f"going on from {whole[-1].name}" if whole else "there is none before it, so training starts anew"
        logger.warning(f"{checkpoint} is damaged ({damaged}): {instead}")
    return None


def _damaged_file(checkpoint: Path) -> str | None:
    """The first file that a checkpoint counts on and that is not what was written; none of version 0.1 are known."""
    try:
        saved = read_sealed(checkpoint / COMPLETE)
    except ArtefactError:
        return COMPLETE
    return first_other({checkpoint: saved.get("files", {}), checkpoint.parent: saved.get("best_files", {})})


def first_other(known: Mapping[Path, Mapping[str, str]]) -> str | None:
    """The first of the files, by folder and name, whose digest is another or that is not there."""
    for folder, files in known.items():
        for name, digest in files.items():
            try:
                if file_digest(folder / name) != digest:
                    return name
            except InputError:
                return name
    return None


def open_marked(mark: Path, identity: Mapping[str, Any], inputs: str | None, *, precision: str) -> None:
    """Make a work folder ready, with a mark in it that says whose work it is; work of another call is discarded.

    Args:
        identity: settings, seed and numbers: what versions before 0.2 went by, whose work is still gone on with.
        inputs: digest of what is learnt from (`training.identity`); None: the identity is all.
        precision: which the run has (`training.precision`).

    Raises:
        InputError: the folder holds something else than work.
    """
    older = json_digest(identity)
    own = older if inputs is None else json_digest({**identity, "inputs": inputs})
    open_work(mark.parent, anew=mark.exists() and read_identity(mark) not in (own, older))
    if not mark.exists():
        write_sealed(mark, {"digest": own, "precision": precision})


def read_identity(mark: Path) -> str | None:
    """Which training a work folder belongs to; None, and a notice, if its mark is damaged."""
    try:
        return str(read_sealed(mark).get("digest"))
    except ArtefactError:
        logger.warning(f"{mark} is damaged, so it is not known what lies beside it: training starts anew")
        return None


def finished_result(folder: Path) -> TrainingResult | None:
    """The result of a run that had finished, if its record and its weights are sound."""
    record = folder / RESULT
    if not record.exists():
        return None
    try:
        saved = read_sealed(record)
        # Version 0.1 kept no digest.
        files = saved.pop("files", {})
        damaged = first_other({folder: files}) if (folder / FINAL).exists() else FINAL
        if damaged is None:
            return TrainingResult(**saved)
    except ArtefactError:
        damaged = RESULT
    logger.warning(f"{folder / damaged} was damaged or deleted since: trained again")
    record.unlink()
    return None
