"""The distillation losses: pure functions of tensors.

Padding: `mask` is (batch, tokens), true at real tokens. Hidden losses average over real positions, attention losses
over pairs of real positions; without padding they are the plain means of the paper. None means no padding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from bistil.models.masked_lm import at_least_float32


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """MSE of the attention probabilities of one aligned layer pair (paper, section 3.2, L_attn).

    Args:
        student, teacher: (batch, heads, tokens, tokens) probabilities after softmax.
        mask: (batch, tokens) real tokens, or None.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: the shapes differ (another number of heads: use `relation_loss`).
    """
    _same_shape(student, teacher, "attention probabilities")
    squared = _squared_difference(student, teacher)
    if mask is None:
        return squared.mean()
    real = mask.to(squared.dtype)
    pairs = torch.einsum("bhij,bi,bj->", squared, real, real)
    return pairs / (student.shape[1] * real.sum(1).square().sum()).clamp_min(1)


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """MSE of the hidden states of one aligned pair (paper, section 3.2, L_hidden).

    Args:
        student, teacher: (batch, tokens, width).
        mask: (batch, tokens) real tokens, or None.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(student, teacher, "hidden states")
    if mask is not None:
        real = mask.bool()
        student, teacher = student[real], teacher[real]
        if not len(student):
            return student.sum() * 0.0
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher))


def prediction_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0, rows: Tensor | None = None) -> Tensor:
    """Soft cross-entropy of the student's against the teacher's predictions (paper, section 3.3, L_pred).

    -sum_c softmax(teacher / temperature)_c log_softmax(student / temperature)_c, averaged over the rows and not
    rescaled by the squared temperature.

    Args:
        student, teacher: (..., classes) logits.
        temperature: divides both sides' logits.
        rows: (...) true where a prediction counts, or None for all.

    Returns:
        Scalar, float32 or wider; 0 where no row counts.
    """
    _same_shape(student, teacher, "logits")
    if rows is not None:
        student, teacher = student[rows.bool()], teacher[rows.bool()]
    student, teacher = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    if not len(student):
        return student.sum() * 0.0
    soft_targets = F.softmax(at_least_float32(teacher) / temperature, dim=-1)
    return F.cross_entropy(at_least_float32(student) / temperature, soft_targets)


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - cosine of the last hidden states, averaged over real tokens (Sanh et al. 2019, section 3).

    Args:
        student, teacher: (batch, tokens, width).
        mask: (batch, tokens) real tokens, or None.
    """
    _same_shape(student, teacher, "hidden states")
    distance = 1 - F.cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=-1)
    if mask is None:
        return distance.mean()
    real = mask.to(distance.dtype)
    return (distance * real).sum() / real.sum().clamp_min(1)


def relation_loss(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """MiniLMv2 self-attention relation distillation of one kind of vectors (Wang et al. 2021, eqs. 1 to 5).

    Vectors (queries, keys or values, all attention heads side by side) are split anew into `heads` relation heads;
    R = softmax(A A^T / sqrt(d_r)) and the loss is KL(R_teacher || R_student), averaged over relation heads and real
    tokens. Student and teacher may differ in width and in attention heads.

    Args:
        student: (batch, tokens, student width).
        teacher: (batch, tokens, teacher width).
        heads: number of relation heads; divides both widths.
        mask: (batch, tokens) real tokens, or None; padding is neither a query nor a key.

    Raises:
        ValueError: `heads` does not divide a width.
    """
    log_student = _log_relations(student, heads, mask)
    log_teacher = _log_relations(teacher, heads, mask)
    # Masked keys are -inf on both sides; 0 * (-inf - -inf) must count as 0.
    difference = (log_teacher - log_student).masked_fill(log_teacher == -torch.inf, 0.0)
    divergence = (log_teacher.exp() * difference).sum(-1)
    if mask is None:
        return divergence.mean()
    real = mask.to(divergence.dtype)
    return torch.einsum("bhi,bi->", divergence, real) / (heads * real.sum()).clamp_min(1)


def _log_relations(vectors: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    batch, tokens, width = vectors.shape
    if width % heads:
        raise ValueError(f"{heads} relation heads do not divide the width {width}")
    vectors = at_least_float32(vectors).view(batch, tokens, heads, width // heads).transpose(1, 2)
    scores = vectors @ vectors.transpose(-1, -2) / (width // heads) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.bool()[:, None, None, :], -torch.inf)
    logarithms: Tensor = scores.log_softmax(-1)
    return logarithms


def _squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher), reduction="none")


def _same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"{what}: student {tuple(student.shape)}, teacher {tuple(teacher.shape)} must be equal")
