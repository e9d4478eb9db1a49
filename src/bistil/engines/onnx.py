"""Models exported as ONNX graphs, run by onnxruntime on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from bistil.engines.alone import tensors_of
from bistil.errors import ArtefactError, MissingExtraError, first_line
from bistil.models.families import position_limit
from bistil.models.loading import labels_of, read_config
from bistil.tasks.batches import Batch

GRAPH, CONSTANTS = "model.onnx", "constants.safetensors"
"""Names in an exported folder: the graph, and outputs that are the same for every input (a parser's weights)."""


class OnnxEngine:
    """Runs an exported model: `tasks.batches.Engine`.

    Args:
        folder: of the exported model.
        threads: CPU threads; None: as many as PyTorch is set to.

    Raises:
        ArtefactError: the graph cannot be read.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        config = read_config(folder)
        self.labels, self.positions = labels_of(config), position_limit(config)
        self.session = open_session(folder / GRAPH, threads=threads or torch.get_num_threads())
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.constants = _constants(folder / CONSTANTS)

    def __call__(self, batch: Batch) -> Mapping[str, Any]:
        # What a tokenizer does not give of its own accord (token types of first texts) is 0.
        absent = np.zeros_like(batch["input_ids"].numpy())
        given = {name: batch[name].cpu().numpy() if name in batch else absent for name in self.inputs}
        return {**dict(zip(self.outputs, self.session.run(None, given), strict=True)), **self.constants}


def require_onnxruntime() -> Any:
    """The module onnxruntime.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("exported models need onnxruntime: pip install 'bistil[onnx]'") from error
    return onnxruntime


def open_session(graph: Path, *, threads: int) -> Any:
    """A session of onnxruntime on the CPU.

    Raises:
        ArtefactError: the graph is missing or cannot be read.
        MissingExtraError: onnxruntime is not installed.
    """
    runtime = require_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Errors are raised as well; what else it says is for its authors.
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of no common class
        raise ArtefactError(f"onnxruntime cannot open {graph}: {first_line(error)}") from error


def _constants(path: Path) -> dict[str, np.ndarray]:
    """Tensors of the file by name; none where there is no file."""
    try:
        return tensors_of(path) if path.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path} cannot be read: {first_line(error)}") from error
