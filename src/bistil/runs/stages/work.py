"""What costs of stages are made of: trainings, passes over a set, and what a training step holds in memory."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bistil.distillation.terms import terms_of
from bistil.measuring.shape import EncoderShape
from bistil.models.families import family_of
from bistil.runs.cost import Passes, ScoredFigures, Training, evaluations
from bistil.settings.recipe import ObjectiveSettings, TrainingSettings

# What a mask costs per parameter, in units of a dense optimizer's work; and of a layer what is kept for the backward
# pass: values per token, in widths and in widths of the feed-forward map, and attention maps.
MASKED = 0.6
KEPT_WIDTHS, KEPT_FEED_FORWARDS, KEPT_MAPS = 10.0, 3.0, 2.0


def head_flops(objective: ObjectiveSettings, student: EncoderShape, teacher: EncoderShape) -> float:
    """FLOPs per token of the masked-LM heads in a training step: both models' at every token, the student's again to
    save memory and twice backwards; or the student's at the masked tokens."""
    ours, theirs = (2.0 * one.width * one.vocabulary for one in (student, teacher))
    return bool(objective.prediction) * (theirs + 4 * ours) + bool(objective.hard_labels) * 0.15 * 3 * ours


def is_taught(objective: ObjectiveSettings) -> bool:
    return any(term.TAUGHT for term, _ in terms_of(objective))


def training_of(
    steps: int, step: Passes, look: Passes | None, settings: TrainingSettings, *, parameters: float,
    share: float | None = None,
) -> Training:  # fmt: skip
    """A training loop.

    Args:
        step: but for its optimizer.
        look: an evaluation.
        parameters: that are trained; under a mask, of the model.
        share: of them that a mask leaves free; None: no mask.
    """
    # Under a mask every parameter is still copied and gets its gradient; moments exist for the free ones only.
    moved = parameters if share is None else parameters * (MASKED + share)
    return Training(
        steps=steps,
        step=replace(step, parameters=moved),
        evaluation=look,
        evaluations=0 if look is None else evaluations(steps, settings.evaluate_steps),
        checkpoints=steps // settings.checkpoint_steps,
        # Weights and two moments.
        checkpoint_bytes=12 * parameters * (1.0 if share is None else share),
    )


def scoring(shape: EncoderShape, figures: ScoredFigures, device: str) -> Passes:
    """A pass over a set, in batches; always in float32."""
    lengths = figures.lengths
    return Passes(
        kind="score", teacher=shape, sequences=32, tokens=float(np.mean(lengths)), device=device,
        flops=figures.features * float(np.mean([shape.flops(length) for length in lengths])),
    )  # fmt: skip


def activations(shapes: Sequence[EncoderShape], sequences: int, tokens: float) -> float:
    """Bytes that a training step keeps for its backward pass, largest student by largest: they run one by one.

    Counted per layer in values of float32: what linear maps, norms and activations keep, and the attention maps.
    """
    most = 0.0
    for shape in shapes:
        config, family = shape.config, family_of(shape.config)
        per_token = KEPT_WIDTHS * shape.width + KEPT_FEED_FORWARDS * family.feed_forward(config)
        per_token += KEPT_MAPS * family.heads(config) * tokens
        most += 4.0 * sequences * tokens * per_token * shape.depth
    return most
