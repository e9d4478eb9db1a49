"""Attention and its distillation loss in one pass that never holds a whole attention map in float32.

The plain way stores two (batch, heads, tokens, tokens) maps per aligned layer. Here a layer's attention output and its
L_attn come from queries and keys of student and teacher, one slice of the batch at a time; the backward pass computes
the maps again. It costs 3 more of the 9 small matrix products and saves all the maps.

In bf16 on a CPU a map is as cheap to keep as it is dear to compute, so maps are computed once and kept in bf16: the
teacher's from its own forward pass, the student's from its. Scores and softmax are float32 there too: scores rounded
to bf16 would add about as much noise to the gradient of L_attn as queries and keys in bf16 do.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bistil.runtime.insides import apply, bf16_products, through_softmax


class AttentionInputs(NamedTuple):
    """What a layer's attention probabilities are made of: softmax(scaling * query key^T + mask)."""

    query: Tensor
    """(batch, heads, tokens, head width)"""
    key: Tensor
    """(batch, heads, tokens, head width)"""
    mask: Tensor | None
    """(batch or 1, 1, tokens or 1, tokens), boolean (true: may be attended to) or added to the scores; None: all may"""
    scaling: float
    map: Tensor | None = None
    """(batch, heads, tokens, tokens) the probabilities in the precision of the query, where they were kept."""

    def slice(self, part: slice) -> "AttentionInputs":
        """The same for some of the batch."""
        mask = self.mask[part] if self.mask is not None and self.mask.shape[0] > 1 else self.mask
        kept = None if self.map is None else self.map[part]
        return AttentionInputs(self.query[part], self.key[part], mask, self.scaling, kept)

    def probabilities(self) -> Tensor:
        """(batch, heads, tokens, tokens), float32 or wider; every row sums to 1."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        if self.map is not None:
            return self.map.to(dtype)
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
        ctx.save_for_backward(query, key, value, mask, teacher.query, teacher.key, teacher.mask, teacher.map, real)
        ctx.scaling, ctx.teacher_scaling, ctx.norm = scaling, teacher.scaling, norm
        return output, total / norm

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, teacher_query, teacher_key, teacher_mask, teacher_map, real = ctx.saved_tensors
        student = AttentionInputs(query, key, mask, ctx.scaling)
        teacher = AttentionInputs(teacher_query, teacher_key, teacher_mask, ctx.teacher_scaling, teacher_map)
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


class _Maps:
    """Attention maps of a bf16 model on a CPU, a slice of the batch at a time; scores and softmax in float32.

    Buffers are used again for every slice: fresh memory costs as much as what is computed in it.
    """

    def __init__(self, query: Tensor) -> None:
        self.parts = _slices(query)
        _, heads, tokens, _ = query.shape
        rows = (self.parts[0].stop if self.parts else 0) * heads
        self._scores, self._probabilities = (query.new_empty((rows, tokens, tokens), dtype=torch.float32) for _ in "sp")

    def of(self, inputs: AttentionInputs) -> Tensor:
        """(slice x heads, tokens, tokens) probabilities of a slice, in a buffer that the next call overwrites."""
        query, key = (_rows(one).float() for one in (inputs.query, inputs.key))
        scores, found = self._scores[: len(query)], self._probabilities[: len(query)]
        with bf16_products():
            torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=inputs.scaling, out=scores)
        if inputs.mask is not None:
            whole = scores.view(inputs.query.shape[:2] + scores.shape[1:])
            if inputs.mask.dtype == torch.bool:
                whole.masked_fill_(~inputs.mask, torch.finfo(scores.dtype).min)
            else:
                whole.add_(inputs.mask)
        return torch.softmax(scores, -1, out=found)


def _rows(tensor: Tensor) -> Tensor:
    """(batch, heads, tokens, width) as (batch x heads, tokens, width)."""
    return tensor.reshape(-1, *tensor.shape[2:])


def keeps_maps(query: Tensor) -> bool:
    """Whether attention maps of this model are kept: those of bf16 models on a CPU."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and not torch.compiler.is_compiling()


@torch.no_grad()
def attention_with_map(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, scaling: float
) -> tuple[Tensor, AttentionInputs]:
    """Scaled dot-product attention of a model that is not trained, with its map.

    Args:
        query, key, value: (batch, heads, tokens, head width), of a model whose maps are kept (`keeps_maps`).
        mask, scaling: as in `AttentionInputs`.

    Returns:
        (batch, heads, tokens, head width) output, and what the map was made of, with the map.
    """
    batch, heads, tokens, _ = query.shape
    kept = query.new_empty((batch, heads, tokens, tokens))
    inputs, maps, output = AttentionInputs(query, key, mask, scaling), _Maps(query), torch.empty_like(query)
    for part in maps.parts:
        kept[part] = maps.of(inputs.slice(part)).view(kept[part].shape)
        torch.matmul(kept[part], value[part], out=output[part])
    return output, inputs._replace(map=kept)


class _AlignedWithMaps(torch.autograd.Function):
    """As `_AlignedAttention`, for a bf16 model on a CPU: the backward pass reads the maps that were kept."""

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
        batch, heads, tokens, _ = query.shape
        student, maps, output = AttentionInputs(query, key, mask, scaling), _Maps(query), torch.empty_like(query)
        kept = query.new_empty((batch, heads, tokens, tokens))
        total = torch.zeros((), device=query.device)
        for part in maps.parts:
            ours = maps.of(student.slice(part)).view(kept[part].shape)
            kept[part] = ours
            torch.matmul(kept[part], value[part], out=output[part])
            difference = _weigh(ours.sub_(_map_of(teacher.slice(part))), real, part)
            total += torch.linalg.vector_norm(difference).square_()
        norm = _norm(query, real)
        ctx.save_for_backward(query, key, value, kept, real, teacher.query, teacher.key, teacher.mask, teacher.map)
        ctx.scaling, ctx.teacher_scaling, ctx.norm = scaling, teacher.scaling, norm
        return output, total / norm

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, kept, real, teacher_query, teacher_key, teacher_mask, teacher_map = ctx.saved_tensors
        teacher = AttentionInputs(teacher_query, teacher_key, teacher_mask, ctx.teacher_scaling, teacher_map)
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        factor = float(2 * loss_gradient / ctx.norm)
        for part in _slices(query):
            ours, upstream = kept[part], output_gradient[part]
            torch.matmul(ours.transpose(-1, -2), upstream, out=gradients[2][part])
            # d loss / d probabilities, from the layer's output and from L_attn; then through the softmax
            slope = torch.matmul(upstream, value[part].transpose(-1, -2))
            slope.add_(_weigh(ours - _map_of(teacher.slice(part)), real, part), alpha=factor)
            slope = through_softmax(slope, ours)
            for gradient, product in (
                (gradients[0], torch.matmul(slope, key[part])),
                (gradients[1], torch.matmul(slope.transpose(-1, -2), query[part])),
            ):
                torch.mul(product, ctx.scaling, out=gradient[part])
        return *gradients, None, None, None, None


def _map_of(inputs: AttentionInputs) -> Tensor:
    """The probabilities as they were kept, or else in float32."""
    return inputs.probabilities() if inputs.map is None else inputs.map


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
    function = _AlignedWithMaps if keeps_maps(query) else _AlignedAttention
    found: tuple[Tensor, Tensor] = apply(function, query, key, value, mask, scaling, teacher, real)
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
