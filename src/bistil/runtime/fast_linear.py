"""Linear maps through oneDNN where PyTorch's default matrix library is slow.

PyTorch multiplies float32 matrices with MKL, which on x86 processors of other makers than Intel reaches less than half
of the rate that oneDNN, also inside PyTorch, reaches at the same precision (docs/performance.md has the figures).
PyTorch offers no switch for it, so `fast_linear` sends the linear maps of a forward pass, and their backward passes,
to the operator that torch.compile uses for them.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bistil.runtime.insides import apply, has_linear_pointwise, linear_pointwise

# Below this many rows the product is too small to gain.
_ROWS = 32


@cache
def is_wanted() -> bool:
    """Whether oneDNN serves linear maps: on x86 processors not made by Intel; BISTIL_ONEDNN=1 or 0 overrides.

    A rule and not a measurement, because the same machine must choose alike each time: the two libraries round
    differently, and a resumed run is to end bit-identical.
    """
    if not has_linear_pointwise():
        return False
    override = os.environ.get("BISTIL_ONEDNN")
    if override in ("0", "1"):
        return override == "1"
    if not torch.backends.mkl.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@contextmanager
def fast_linear() -> Iterator[None]:
    """Inside the block, float32 `torch.nn.functional.linear` on a CPU runs on oneDNN where that is wanted."""
    if not is_wanted() or torch.compiler.is_compiling():
        yield
        return
    with _LinearMode():
        yield


class _LinearMode(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    suits = (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and input.numel() >= _ROWS * input.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )
    if not suits:
        return F.linear(input, weight, bias)
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        result: Tensor = apply(_Linear, input, weight, bias)
        return result
    return linear_pointwise(input, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return linear_pointwise(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_input = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_input = linear_pointwise(rows, weight.t(), None).view(input.shape)
        if ctx.needs_input_grad[1]:
            for_weight = linear_pointwise(rows.t(), input.reshape(-1, input.shape[-1]).t(), None)
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(0)
        return for_input, for_weight, for_bias
