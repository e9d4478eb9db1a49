"""Linear maps at the rate that the processor has: float32 through oneDNN, bf16 without casting what is cast already.

PyTorch multiplies float32 matrices with MKL, which on some x86 processors of other makers than Intel reaches less than
half of the rate that oneDNN, also inside PyTorch, reaches at the same precision (docs/performance.md has the figures).
PyTorch offers no switch for it, so `fast_linear` sends the linear maps of a forward pass, and their backward passes,
to the operator that torch.compile uses for them.

Under autocast to bf16 on a CPU the same maps multiply bf16 matrices. What autocast casts anew in every map is cast
once: a frozen model's weights until they change, an input that query, key and value share until the next one. The
gradients of weights and biases come out in float32, as the weights are. Attention that has a backward pass stays in
float32: PyTorch's is slow in bf16 there.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from bistil.runtime.insides import apply, has_linear_pointwise, linear_pointwise

# Below this many rows the product is too small to gain.
_ROWS = 32
# Calling functions of our own costs a few microseconds per operation of a model, 5% of a pass over 32 tokens. With
# AVX-512 MKL is within a few percent of oneDNN, so that this is more than a short input gains.
_ROWS_WITH_AVX512 = 256


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


@cache
def _gains_from() -> int:
    """Rows of an input from which float32 maps on oneDNN gain more than it costs to send them there."""
    return _ROWS_WITH_AVX512 if torch.backends.cpu.get_cpu_capability() == "AVX512" else _ROWS


@contextmanager
def fast_linear(*, rows: int | None = None) -> Iterator[None]:
    """Inside the block, `torch.nn.functional.linear` on a CPU runs in bf16 under autocast to bf16; else, where that is
    wanted, float32 maps run on oneDNN.

    Args:
        rows: tokens of the batch that the block runs; one too small to gain runs as it is. None: not known.
    """
    bf16 = in_bf16("cpu")
    gains = is_wanted() and (rows is None or rows >= _gains_from())
    if torch.compiler.is_compiling() or not (bf16 or gains):
        yield
        return
    own: dict[Any, Callable[..., Any]] = {F.linear: _linear}
    if bf16:
        own = {F.linear: _Bf16Maps(), F.scaled_dot_product_attention: _attention}
    with _OwnFunctions(own):
        yield


def in_bf16(device: str) -> bool:
    """Whether matrix products on this type of device are autocast to bf16 now."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


class _OwnFunctions(TorchFunctionMode):
    """Calls functions of our own in the place of torch's."""

    def __init__(self, own: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._own = own

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._own.get(func, func)(*args, **(kwargs or {}))


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


# Up to so many rows a frozen weight's bf16 copy is kept. Casting it costs as much as multiplying 50 rows by it (of AMX:
# 200), and all copies of a teacher are a twentieth of a phase-1 step's memory.
_FEW_ROWS = 1024
# bf16 copies of frozen weights, with the version of the weight and the address that they were made from.
_COPIES: Any = WeakTensorKeyDictionary()


class _Bf16Maps:
    """Linear maps of one forward pass in bf16."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        known = (torch.float32, torch.bfloat16)
        if input.device.type != "cpu" or input.dtype not in known or weight.dtype not in known:
            return F.linear(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            low = self._input(input)
            keep = input.numel() <= _FEW_ROWS * input.shape[-1]
            low_weight = _bf16_of(weight, keep=keep)
            if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
                result: Tensor = apply(_Bf16Linear, input, weight, bias, low, low_weight)
                return result
            return F.linear(low, low_weight, None if bias is None else _bf16_of(bias))

    def _input(self, input: Tensor) -> Tensor:
        """The input in bf16; the same tensor for each of the maps in a row that share an input."""
        if input.dtype == torch.bfloat16:
            return input.detach()
        if self._last is None or self._last[0] is not input:
            self._last = (input, input.detach().to(torch.bfloat16))
        return self._last[1]


def _bf16_of(weight: Tensor, *, keep: bool = False) -> Tensor:
    """A weight in bf16; a frozen one's copy can be kept until the weight changes.

    One that is trained is cast each time: PyTorch's fused optimizers change weights without counting it as a change.
    """
    if weight.dtype == torch.bfloat16:
        return weight.detach()
    if not keep or weight.requires_grad or not weight.is_leaf or weight.is_inference():
        _COPIES.pop(weight, None)
        return weight.detach().to(torch.bfloat16)
    state = (weight._version, weight.data_ptr())
    known = _COPIES.get(weight)
    if known is None or known[0] != state:
        # Not an inference tensor, which could not be used in training afterwards.
        with torch.inference_mode(False):
            known = _COPIES[weight] = (state, weight.detach().to(torch.bfloat16))
    copy: Tensor = known[1]
    return copy


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Scaled dot-product attention; in float32 where there is a backward pass.

    That of PyTorch's fused attention takes five times as long in bf16 on a CPU, and its forward pass is no slower in
    float32.
    """
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    if not learns or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        output = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask, **options)
    return output.to(value.dtype)


class _Bf16Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, low: Tensor, low_weight: Tensor
    ) -> Tensor:
        ctx.save_for_backward(low, low_weight)
        ctx.dtypes = input.dtype, weight.dtype, None if bias is None else bias.dtype
        return F.linear(low, low_weight, None if bias is None else bias.to(torch.bfloat16))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        low, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_input = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_input = torch.mm(rows, weight).view(low.shape).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            for_weight = torch.mm(rows.t(), low.reshape(-1, low.shape[-1])).to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(0).to(ctx.dtypes[2])
        return for_input, for_weight, for_bias, None, None
