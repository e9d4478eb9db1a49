"""A task model as an ONNX graph in which onnxruntime's fused operators stand: attention, skip connections, GELU.

The graph is traced with plain attention by PyTorch's TorchScript exporter: of graphs made from fused attention, or by
the newer exporter, onnxruntime's optimizer finds no attention, and they take a third more time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bistil.errors import ArtefactError, MissingExtraError, first_line
from bistil.export.proof import Interface
from bistil.models.families import family_of
from bistil.runtime.insides import fused_bert_graph, traced_onnx, with_attention
from bistil.tasks.batches import TARGETS, Batch, model_inputs

# A graph of more bytes needs files beside it, which no part of this package writes.
MOST_BYTES = 2_000_000_000
OPSET = 17


@dataclass(frozen=True)
class Graph(Interface):
    """A graph on disk and what goes in and out.

    Attributes:
        file: the ONNX file.
        constants: outputs of the model that are the same for every input; they are not in the graph.
    """

    file: Path
    constants: dict[str, Tensor]


class _Positional(nn.Module):
    """A model whose inputs and outputs are tuples, as the exporter wants them."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, list(inputs), list(outputs)
        # Left out, token types are expanded from a buffer in ten operations; one type for all is a constant row.
        takes = "token_type_ids" in signature(model.forward).parameters
        self.alone = takes and "token_type_ids" not in self.inputs

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        constant = {"token_type_ids": torch.zeros(1, 1, dtype=torch.int64)} if self.alone else {}
        found = self.model(**dict(zip(self.inputs, given, strict=True)), **constant)
        return tuple(found[name] for name in self.outputs)


def require_onnx() -> None:
    """Make sure that what writes and optimises graphs is there.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("export needs onnx and onnxruntime: pip install 'bistil[export]'") from error
    del onnx, onnxruntime


def make_graph(model: PreTrainedModel, batches: tuple[Batch, Batch], file: Path) -> Graph:
    """Write a task model as a float32 graph with fused operators.

    Args:
        model: in float32 on the CPU; it is as before afterwards.
        batches: two of them that differ in every size: sequences, tokens and, for a parser, words. The first is
            traced; what differs between them is of any size in the graph.
        file: a new file; what the exporter wrote before fusion is removed.

    Raises:
        ArtefactError: the model cannot be traced, or is too large for one file.
    """
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    if size > MOST_BYTES:
        raise ArtefactError(f"the model has {size / 1e9:.1f} GB of weights, an ONNX file at most 2: trim it first")
    first, second = (
        {name: values for name, values in model_inputs(model, batch).items() if name not in TARGETS}
        for batch in batches
    )
    with with_attention(model, "eager"), torch.inference_mode():
        found, other = model(**first), model(**second)
        own = {parameter.data_ptr() for parameter in model.parameters()}
        constants = {name: found[name].detach().clone() for name in found if found[name].data_ptr() in own}
        names = [name for name in found if name not in constants]
        dimensions = _dimensions(first, second)
        axes = {
            name: [
                dimensions.get((left, right), "classes" if left == right else f"{name}_{axis}")
                for axis, (left, right) in enumerate(zip(found[name].shape, other[name].shape, strict=True))
            ]
            for name in names
        }
        sizes = {name: _dynamic([dimensions[pair] for pair in _sizes(first, second, name)]) for name in first}
        sizes |= {name: _dynamic(own_axes) for name, own_axes in axes.items()}
        traced = file.with_name(f"traced-{file.name}")
        wrapper = _Positional(model, [*first], names).eval()
        try:
            traced_onnx(wrapper, tuple(first.values()), traced, names=([*first], names), axes=sizes, opset=OPSET)
        except OSError:
            raise
        except Exception as error:  # the exporter's, of many kinds
            raise ArtefactError(f"{type(model).__name__} cannot be traced as a graph: {first_line(error)}") from error
    family = family_of(model)
    fused_bert_graph(traced, file, heads=family.heads(model.config), width=family.width(model.config))
    traced.unlink()
    return Graph([*first], axes, file, constants)


def _sizes(first: Mapping[str, Tensor], second: Mapping[str, Tensor], name: str) -> list[tuple[int, int]]:
    return list(zip(first[name].shape, second[name].shape, strict=True))


def _dimensions(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[tuple[int, int], str]:
    """Names of dimensions by their sizes in two batches."""
    rows, tokens = _sizes(first, second, "input_ids")
    names = {rows: "batch", tokens: "tokens"}
    for name in first.keys() & {"word_starts"}:
        words = _sizes(first, second, name)[1]
        names |= {words: "words", (words[0] + 1, words[1] + 1): "words_and_root"}
    return names


def _dynamic(names: Sequence[str]) -> dict[int, str]:
    return {axis: name for axis, name in enumerate(names) if name != "classes"}
