"""Patient knowledge distillation (Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", eq. 7).

The states of the first token in aligned layers, brought to length 1: direction counts, length does not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bistil.distillation.terms import Compared, Needs, Side, Term
from bistil.models.masked_lm import at_least_float32


class Patient(Term):
    """Mean over aligned layers of the squared distance between the first tokens' directions."""

    NAME = "patient"
    KEEPABLE = True

    def needs(self, layers: Sequence[int]) -> Needs:
        return Needs(hidden=frozenset(layer for layer in layers if layer > 0))

    def check(self, student: Side, teacher: Side) -> str | None:
        if student.width == teacher.width:
            return None
        return f"width {student.width}, teacher {teacher.width}: the term patient needs equal widths; leave it out"

    def loss(self, compared: Compared) -> Tensor | None:
        distances = []
        for ours, layer in compared.pairs:
            if ours > 0:
                states = compared.got.hidden[ours][:, 0], compared.target.hidden[layer][:, 0]
                student, teacher = (F.normalize(at_least_float32(one), dim=-1) for one in states)
                distances.append((student - teacher).square().sum(-1).mean())
        return torch.stack(distances).mean()
