"""What a model will cost, from its configuration alone: parameters and FLOPs, counted as in `measuring.benchmark`.

The model is built on PyTorch's meta device, which has shapes and no numbers: no weights are read or made.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel

from bistil.measuring.benchmark import count_flops, count_parameters
from bistil.models.families import family_of
from bistil.runtime.quiet import quiet_transformers

# A forward pass costs a + b * tokens + c * tokens^2 FLOPs; so many tokens tell the three.
_LENGTHS = (8, 16, 32)


@dataclass(frozen=True)
class EncoderShape:
    """An encoder that is not there yet.

    Attributes:
        config: of transformers.
        parameters: "total", "embedding", "encoder" and "head", as `count_parameters` gives them.
        coefficients: of the FLOPs of a forward pass: constant, per token, per squared token.
    """

    config: Any
    parameters: dict[str, int]
    coefficients: tuple[float, float, float]

    @classmethod
    def of(cls, config: Any) -> "EncoderShape":
        """The shape of the encoder of a configuration."""
        key = config.to_json_string(use_diff=False)
        if key not in _KNOWN:
            _KNOWN[key] = cls(config, *_counted(config))
        return _KNOWN[key]

    @property
    def width(self) -> int:
        """Hidden size."""
        return family_of(self.config).width(self.config)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return family_of(self.config).depth(self.config)

    @property
    def vocabulary(self) -> int:
        """Rows of the token embedding."""
        return int(self.config.vocab_size)

    def flops(self, tokens: float) -> float:
        """FLOPs of a forward pass over one sequence; a multiply-add is two (`measuring.benchmark.count_flops`)."""
        constant, linear, squared = self.coefficients
        return constant + linear * tokens + squared * tokens**2

    def with_layers(self, layers: list[int]) -> "EncoderShape":
        """The same model with some of its layers (1-based) only."""
        return EncoderShape.of(family_of(self.config).truncated_config(self.config, layers))

    def with_vocabulary(self, size: int) -> "EncoderShape":
        """The same model with a token embedding of so many rows."""
        config = copy.deepcopy(self.config)
        config.vocab_size = size
        # Special tokens keep their places in a trimmed vocabulary's beginning; only the count matters here.
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
            if (getattr(config, name, None) or 0) >= size:
                setattr(config, name, 0)
        return EncoderShape.of(config)


_KNOWN: dict[str, EncoderShape] = {}


def _counted(config: Any) -> tuple[dict[str, int], tuple[float, float, float]]:
    with quiet_transformers(), torch.device("meta"):
        whole = AutoModel.from_config(copy.deepcopy(config)).eval().requires_grad_(False)
    parameters = count_parameters(whole)
    try:
        return parameters, _coefficients([_flops(whole, tokens) for tokens in _LENGTHS])
    except (RuntimeError, NotImplementedError):  # a family that looks at numbers on its way
        return parameters, _from_two_layers(config)


def _from_two_layers(config: Any) -> tuple[float, float, float]:
    """Coefficients from real models of one and two layers and next to no vocabulary: layers cost alike."""
    family, small = family_of(config), copy.deepcopy(config)
    small.vocab_size = max(64, *(getattr(config, f"{name}_token_id", None) or 0 for name in ("pad", "bos", "eos")))
    counts = []
    for layers in ([1], [1, 2]):
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            model = AutoModel.from_config(family.truncated_config(small, layers)).eval().requires_grad_(False)
        counts.append([_flops(model, tokens) for tokens in _LENGTHS])
    depth = family.depth(config)
    return _coefficients([one + (depth - 1) * (two - one) for one, two in zip(*counts, strict=True)])


def _flops(model: Any, tokens: int) -> int:
    device = next(model.parameters()).device
    with quiet_transformers():
        return count_flops(model, [{"input_ids": torch.ones((1, tokens), dtype=torch.long, device=device)}])


def _coefficients(counts: list[int]) -> tuple[float, float, float]:
    """The parabola through the counts at `_LENGTHS`."""
    (x0, x1, x2), (y0, y1, y2) = _LENGTHS, counts
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    squared = (second - first) / (x2 - x0)
    linear = first - squared * (x0 + x1)
    return y0 - linear * x0 - squared * x0**2, linear, squared
