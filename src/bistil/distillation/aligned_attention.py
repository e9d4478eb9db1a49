"""Attention and its distillation loss in one pass that never holds a whole attention map.

The plain way stores two (batch, heads, tokens, tokens) maps per aligned layer. Here a layer's attention output and its
L_attn come from queries and keys of student and teacher, one slice of the batch at a time; the backward pass computes
the maps again. It costs 3 more of the 9 small matrix products and saves all the maps.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bistil.runtime.insides import apply


class AttentionInputs(NamedTuple):
    """What a layer's attention probabilities are made of: softmax(scaling * query key^T + mask)."""

    query: Tensor
    """(batch, heads, tokens, head width)"""
    key: Tensor
    """(batch, heads, tokens, head width)"""
    mask: Tensor | None
    """(batch or 1, 1, tokens or 1, tokens), boolean (true: may be attended to) or added to the scores; None: all may"""
    scaling: float

    def slice(self, part: slice) -> "AttentionInputs":
        """The same for some of the batch."""
        mask = self.mask[part] if self.mask is not None and self.mask.shape[0] > 1 else self.mask
        return AttentionInputs(self.query[part], self.key[part], mask, self.scaling)

    def probabilities(self) -> Tensor:
        """(batch, heads, tokens, tokens), float32 or wider; every row sums to 1."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        scores = torch.matmul(self.query * self.scaling, self.key.transpose(-1, -2)).to(dtype)
        if self.mask is not None:
            if self.mask.dtype == torch.bool:
                scores = scores.masked_fill(~self.mask, torch.finfo(dtype).min)
            else:
                scores = scores + self.mask
        return scores.softmax(-1)


class _AlignedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        teacher: AttentionInputs,
        real: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        student = AttentionInputs(query, key, mask, scaling)
        output = torch.empty_like(query)
        dtype = torch.promote_types(query.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=query.device)
        for part in _slices(query):
            ours = student.slice(part).probabilities()
            torch.matmul(ours.to(value.dtype), value[part], out=output[part])
            difference = ours.sub_(teacher.slice(part).probabilities())
            total += _weigh(difference, real, part).square_().sum()
        norm = _norm(query, real)
        ctx.save_for_backward(query, key, value, mask, teacher.query, teacher.key, teacher.mask, real)
        ctx.scaling, ctx.teacher_scaling, ctx.norm = scaling, teacher.scaling, norm
        return output, total / norm

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, teacher_query, teacher_key, teacher_mask, real = ctx.saved_tensors
        student = AttentionInputs(query, key, mask, ctx.scaling)
        teacher = AttentionInputs(teacher_query, teacher_key, teacher_mask, ctx.teacher_scaling)
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        factor = 2 * loss_gradient / ctx.norm
        for part in _slices(query):
            ours = student.slice(part).probabilities()
            low = ours.to(query.dtype)
            upstream = output_gradient[part]
            torch.matmul(low.transpose(-1, -2), upstream, out=gradients[2][part])
            # d loss / d probabilities, from the layer's output and from L_attn
            slope = torch.matmul(upstream, value[part].transpose(-1, -2)).to(ours.dtype)
            difference = teacher.slice(part).probabilities().neg_().add_(ours)
            slope.addcmul_(_weigh(difference, real, part), factor.to(slope.dtype))
            # through the softmax: P * (slope - sum_j slope_j P_j)
            slope.sub_((slope * ours).sum(-1, keepdim=True)).mul_(ours).mul_(ctx.scaling)
            slope = slope.to(query.dtype)
            torch.matmul(slope, key[part], out=gradients[0][part])
            torch.matmul(slope.transpose(-1, -2), query[part], out=gradients[1][part])
        return *gradients, None, None, None, None


def aligned_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    scaling: float,
    teacher: AttentionInputs,
    real: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention of the student together with `objectives.attention_loss` against the teacher.

    Args:
        query, key, value: (batch, heads, tokens, head width) of the student.
        mask, scaling: as in `AttentionInputs`, of the student.
        teacher: the aligned teacher layer's; no gradient flows into it. Head widths may differ, head counts may not.
        real: (batch, tokens) real tokens, or None.

    Returns:
        (batch, heads, tokens, head width) attention output, and the scalar loss in float32 or wider.

    Raises:
        ValueError: batch, heads or tokens differ between student and teacher.
    """
    if query.shape[:3] != teacher.query.shape[:3]:
        raise ValueError(
            f"attention: student (batch, heads, tokens) {tuple(query.shape[:3])}, "
            f"teacher {tuple(teacher.query.shape[:3])} must be equal"
        )
    found: tuple[Tensor, Tensor] = apply(_AlignedAttention, query, key, value, mask, scaling, teacher, real)
    return found


def _slices(query: Tensor) -> list[slice]:
    """Parts of the batch whose maps fit a fast memory: about the second-level caches of a CPU, 256 MB of a GPU."""
    batch, heads, tokens, _ = query.shape
    budget = 2**20 if query.device.type == "cpu" else 2**26
    step = max(1, budget // (heads * tokens * tokens))
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def _norm(query: Tensor, real: Tensor | None) -> Tensor | float:
    batch, heads, tokens, _ = query.shape
    if real is None:
        return float(batch * heads * tokens * tokens)
    return (heads * real.float().sum(1).square().sum()).clamp_min(1)


def _weigh(difference: Tensor, real: Tensor | None, part: slice) -> Tensor:
    """Zero, in place, the pairs that touch padding."""
    if real is None:
        return difference
    rows = real[part].to(difference.dtype)
    return difference.mul_(rows[:, None, :, None]).mul_(rows[:, None, None, :])
