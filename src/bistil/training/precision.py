"""The precision of a training run: it is settled once, when the run begins, and kept wherever the run goes on."""

from dataclasses import replace
from pathlib import Path

from bistil.errors import ArtefactError
from bistil.runtime.artefacts import read_sealed
from bistil.runtime.precision import Precision, precision_here
from bistil.settings.recipe import TrainingSettings
from bistil.training.processes import training_device


def settle_precision(settings: TrainingSettings, mark: Path | None) -> TrainingSettings:
    """The settings with `precision = "auto"` settled: as the work with this mark began, else as the device has it.

    Work that began in bf16 goes on in bf16 on a processor that is slow at it: another precision would round otherwise,
    and what was done would be lost.

    Args:
        mark: the file by which a work folder says which run it belongs to; None: there is no work folder.
    """
    if settings.precision != "auto":
        return settings
    return replace(settings, precision=_begun(mark) or precision_here(training_device(settings.device)))


def _begun(mark: Path | None) -> Precision | None:
    if mark is None or not mark.is_file():
        return None
    try:
        found = str(read_sealed(mark).get("precision"))
    except ArtefactError:  # who opens the folder says so
        return None
    known: dict[str, Precision] = {"float32": "float32", "bf16": "bf16"}
    return known.get(found)
