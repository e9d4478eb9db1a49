"""How sure a task teacher is of inputs without labels, and the share of them of which it is surest."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bistil.distillation.module import inputs_of, teacher_inputs
from bistil.runtime.fast_linear import fast_linear
from bistil.runtime.progress import Progress
from bistil.tasks.base import PredictionPair
from bistil.tasks.batches import TOKEN_AXIS, Feature

logger = logging.getLogger(__name__)


def sureness(pairs: Sequence[PredictionPair]) -> float:
    """The probability of a teacher's choice for one input, as the geometric mean over all that it decides of it.

    Args:
        pairs: what L_pred compares of the input; the teacher's side is read.
    """
    chosen = []
    for pair in pairs:
        logits = pair.teacher.float()
        if pair.valid is not None:
            logits = logits.masked_fill(~pair.valid, -torch.inf)
        best = logits.log_softmax(dim=-1).amax(dim=-1)
        chosen.append(best if pair.mask is None else best[pair.mask])
    return float(torch.cat(chosen).mean().exp())


def surest(
    features: list[Feature],
    share: float,
    *,
    teacher: nn.Module,
    collate: Callable[[list[Feature]], dict[str, Any]],
    prediction_pairs: Callable[[Any, Any, Mapping[str, Tensor]], list[PredictionPair]],
    device: str,
    low_precision: bool,
    label: str,
) -> list[Feature]:
    """The share of features of which a task teacher is surest, in their order; at least one.

    Args:
        device, low_precision: where the teacher runs, and whether its matrix products are in bf16.
        label: of the progress line.
    """
    teacher.eval().to(device)
    found = np.empty(len(features))
    tokens = 0
    with Progress(f"{label}: how sure the teacher is", total=len(features)) as progress, torch.no_grad(), fast_linear():
        for i, feature in enumerate(features):
            batch = {name: value.to(device) for name, value in teacher_inputs(collate([feature])).items()}
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low_precision):
                output = teacher(**inputs_of(teacher, batch, head=True))
            found[i] = sureness(prediction_pairs(output, output, batch))
            tokens += TOKEN_AXIS.of_feature(feature)
            progress.advance_to(i + 1, tokens=tokens)
    count = max(1, round(share * len(features)))
    order = np.argsort(-found, kind="stable")[:count]
    logger.info(
        f"{label}: {count:,} of {len(features):,} inputs made of target text, at least {found[order[-1]]:.3f} sure"
    )
    return [features[i] for i in np.sort(order)]
