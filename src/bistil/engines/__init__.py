"""What runs a finished model: PyTorch, or the engine that it was exported for, behind one interface.

The interface is `tasks.batches.Engine`; which one a folder is for stands in its record.
"""

from pathlib import Path
from typing import Any

from torch import nn

from bistil.engines.ctranslate2 import CTranslate2Engine
from bistil.engines.onnx import OnnxEngine
from bistil.engines.static import StaticEngine
from bistil.errors import ArtefactError, InputError, first_line
from bistil.models.exported import engine_of
from bistil.models.static import ENGINE as STATIC
from bistil.runtime.artefacts import check_product
from bistil.runtime.devices import device_for
from bistil.tasks import Task
from bistil.tasks.batches import Engine, TorchEngine

EXPORTED: dict[str, Any] = {"onnxruntime": OnnxEngine, "ctranslate2": CTranslate2Engine, STATIC: StaticEngine}
"""Engines of exported folders by name: called with the folder and the number of threads."""


def open_engine(folder: Path, task: Task, *, device: str | None = None, threads: int | None = None) -> Engine:
    """The model in a folder, ready to run.

    Args:
        folder: of a model of transformers, or of an exported one.
        task: whose head the model has.
        device: of PyTorch; None: a GPU if there is one. An exported model runs on the CPU.
        threads: of an exported model; None: as many as PyTorch is set to.

    Raises:
        InputError: there is no such device, or none for an exported model.
        ArtefactError: the folder is damaged, or holds no model for the task.
        MissingExtraError: the engine of an exported model is not installed.
    """
    name = engine_of(folder)
    if name is None:
        model = task.build_model(folder, None)
        place = device_for(device)
        try:
            nn.Module.to(model, place)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"the model cannot be put on the device {place!r}: {first_line(error)}") from error
        return TorchEngine(model)
    if device not in (None, "auto", "cpu"):
        raise InputError(
            f"device is {device!r}, but {folder} is an exported model, which runs on the CPU: leave it out"
        )
    return open_exported(folder, threads=threads)


def open_exported(folder: Path, *, threads: int | None = None) -> Engine:
    """An exported model, ready to run, whatever it is for.

    Args:
        threads: None: as many as PyTorch is set to.

    Raises:
        ArtefactError: the folder is damaged, or holds no exported model.
        MissingExtraError: its engine is not installed.
    """
    name = engine_of(folder)
    if name not in EXPORTED:
        raise ArtefactError(
            f"{folder} was exported for the engine {name!r}, which this version does not know (it knows "
            f"{', '.join(EXPORTED)}): export it again, or use a newer bistil"
        )
    check_product(folder)
    engine: Engine = EXPORTED[name](folder, threads=threads)
    return engine
