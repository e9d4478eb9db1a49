"""How fast this machine is at the passes of `runs.cost`: measured over a few steps, corrected by the stages it made.

A rate belongs to what is run, how, and where: kind, precision, device, width, length of the sequences, processor and
threads. It has two numbers, for a step has two parts: seconds per FLOP of the passes, and seconds per parameter that
the optimizer moves. Both are measured once, with random models of the right shape and two layers, through the modules
that training uses. Each stage that is made afterwards says by what factor it took longer or shorter, and the median of
the last ones is believed.
"""

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from bistil.distillation.module import Distiller
from bistil.distillation.task import SelfTaught
from bistil.errors import ArtefactError, InputError
from bistil.measuring.benchmark import machine
from bistil.measuring.shape import EncoderShape
from bistil.pretrained import cache_folder
from bistil.runs.cost import Passes
from bistil.runtime.artefacts import read_sealed, write_sealed
from bistil.runtime.fast_linear import fast_linear
from bistil.runtime.quiet import quiet_transformers
from bistil.settings.schema import ObjectiveSettings
from bistil.sparse.language import MaskedLanguageModelling
from bistil.tasks.base import PredictionPair
from bistil.text import IGNORED

logger = logging.getLogger(__name__)

# Rates that are kept, and corrections of each: the latest.
MOST_RATES, MOST_FACTORS = 200, 5
# A correction beyond these is of a machine that was suspended or a stage that was resumed, and not of a rate.
LEAST_FACTOR, MOST_FACTOR = 0.2, 5.0
# What a step of the loop costs besides: batches, progress, the Trainer itself.
STEP_SECONDS = 0.004
# Of a measurement: FLOPs of a step at most, tokens of the vocabulary, parameters that the optimizer moves, timed steps.
_FLOPS, _VOCABULARY, _PARAMETERS, _STEPS = 4e10, 512, 4_000_000, 3
TEACHER_LAYERS, STUDENT_LAYERS = 2, 1


def rates_file() -> Path:
    """Where this machine's rates are kept: $BISTIL_RATES, else rates.json in the cache folder."""
    return Path(os.environ.get("BISTIL_RATES") or cache_folder() / "rates.json").expanduser()


@dataclass
class Rate:
    """Seconds per FLOP and per parameter, and the latest corrections."""

    flop: float
    parameter: float
    factors: list[float] = field(default_factory=list)

    @property
    def factor(self) -> float:
        """What the stages that were made say."""
        return median(self.factors) if self.factors else 1.0

    def seconds(self, passes: Passes) -> float:
        """Of some passes."""
        return self.factor * (self.flop * passes.flops + self.parameter * passes.parameters)


class Rates:
    """The rates of this machine, read from a file and kept there.

    Args:
        file: default: `rates_file()`. A damaged one counts as none.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or rates_file()
        self._known = _read(self.file)

    def seconds(self, passes: Passes) -> float:
        """Of some passes; measured now if this machine has not run their like."""
        return self._rate(passes).seconds(passes) if passes.flops or passes.parameters else 0.0

    def of_stage(self, passes: Passes) -> str:
        """The name of a rate, for records."""
        here = machine()
        words = (
            passes.kind, "" if passes.objective is None else "+".join(terms(passes.objective)), passes.precision,
            passes.device, passes.teacher.config.model_type, passes.teacher.width, _bucket(passes.tokens),
            here["processor"], torch.get_num_threads(), torch.__version__,
        )  # fmt: skip
        return ", ".join(str(word) for word in words if word != "")

    def correct(self, passes: Passes, factor: float) -> None:
        """Say that passes took `factor` times what was expected; out of all measure, it is not believed."""
        factor *= self._rate(passes).factor
        if LEAST_FACTOR <= factor <= MOST_FACTOR:
            key = self.of_stage(passes)
            rate = self._known.pop(key)
            rate.factors = [*rate.factors, round(factor, 4)][-MOST_FACTORS:]
            self._known[key] = rate
            self._keep()

    def _rate(self, passes: Passes) -> Rate:
        key = self.of_stage(passes)
        if key not in self._known:
            self._known[key] = measured(passes)
            self._keep()
        return self._known[key]

    def _keep(self) -> None:
        """Write the latest rates. Another process's are taken along; without a place for them they are forgotten."""
        known = {**_read(self.file), **self._known}
        latest = {key: known[key] for key in [*known][-MOST_RATES:]}
        with suppress(OSError, InputError):
            write_sealed(self.file, {"rates": {key: vars(rate) for key, rate in latest.items()}})


def terms(objective: ObjectiveSettings) -> list[str]:
    """The names of what an objective compares."""
    return [*(name for name in objective.WEIGHTS if getattr(objective, name)), *objective.terms]


def _bucket(tokens: float) -> int:
    """Lengths between two powers of two are alike."""
    return int(2 ** round(math.log2(max(tokens, 8))))


def _read(file: Path) -> dict[str, Rate]:
    """The rates in a file; none of a missing or damaged one, nor entries that are none."""
    if not file.is_file():
        return {}
    found = {}
    with suppress(ArtefactError):
        entries = read_sealed(file).get("rates")
        for key, one in entries.items() if isinstance(entries, dict) else ():
            with suppress(TypeError, KeyError, ValueError, AttributeError):
                rate = Rate(float(one["flop"]), float(one["parameter"]), [float(own) for own in one["factors"]])
                if all(0 < value < math.inf for value in (rate.flop, *rate.factors)) and 0 <= rate.parameter < math.inf:
                    found[key] = rate
    return found


# Measuring


def measured(passes: Passes) -> Rate:
    """The rate of passes by a few real steps of random models of their shape, cut to two layers (a second or two)."""
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        step, flops = _trial(passes)
        seconds = _timed(step, passes)
        parameter = _optimizer_seconds(passes.device) if passes.parameters else 0.0
    return Rate(seconds / flops, parameter)


def _trial(passes: Passes) -> tuple[Callable[[], None], float]:
    """A step to be timed, and its FLOPs."""
    teacher = _cut(passes.teacher, TEACHER_LAYERS)
    student = _cut(passes.teacher, STUDENT_LAYERS) if passes.kind in ("phase1", "phase2") else teacher
    tokens = max(2, round(passes.tokens))
    backward = passes.kind not in ("score", "single")
    count = max(1, len(passes.students)) if passes.kind == "phase1" else 1
    per_sequence = (3 if backward else 1) * count * student.flops(tokens)
    if passes.kind in ("phase1", "phase2"):
        per_sequence += teacher.flops(tokens)
    sequences = max(1, min(round(passes.sequences), int(_FLOPS / per_sequence)))
    module = _module(passes, teacher, student, count).to(passes.device).train(backward)
    # Ids at the beginning are special, and padding inside would shift positions.
    rows = teacher.vocabulary
    ids = torch.randint(min(5, rows - 1), rows, (sequences, tokens), device=passes.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if passes.kind == "labels":
        batch["labels"] = torch.zeros(sequences, dtype=torch.long, device=passes.device)
    if passes.kind == "language":
        batch["labels"] = torch.where(torch.rand(ids.shape, device=ids.device) < 0.15, ids, IGNORED)
        batch["labels"][:, 0] = ids[:, 0]

    def train_step() -> None:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=passes.precision == "bf16"):
            loss = module(**batch)["loss"]
        loss.backward()
        module.zero_grad(set_to_none=True)

    def look() -> None:
        low = torch.autocast(ids.device.type, torch.bfloat16, enabled=passes.precision == "bf16")
        with torch.inference_mode(), fast_linear(), low:
            module(**batch)

    return train_step if backward else look, sequences * per_sequence


def _module(passes: Passes, teacher: EncoderShape, student: EncoderShape, count: int) -> nn.Module:
    """What training calls: the modules of phase 1, phase 2 and fine-tuning, or the bare model."""
    if passes.kind == "phase1":
        students = {str(i): AutoModel.from_config(student.config) for i in range(count)}
        layers = {name: [teacher.depth] for name in students}
        objectives = dict.fromkeys(students, _trial_objective(passes.objective, head=False))
        return Distiller(AutoModel.from_config(teacher.config), students, objectives=objectives, layers=layers)
    if passes.kind == "phase2":
        models = [AutoModelForSequenceClassification.from_config(one.config) for one in (teacher, student)]
        objective = _trial_objective(passes.objective, head=True)
        return Distiller(
            models[0], {"student": models[1]}, objectives={"student": objective}, layers={"student": [teacher.depth]},
            prediction_pairs=lambda own, theirs, _: [PredictionPair(own.logits, theirs.logits)],
        )  # fmt: skip
    if passes.kind == "labels":
        return SelfTaught(AutoModelForSequenceClassification.from_config(student.config))
    if passes.kind == "language":
        return MaskedLanguageModelling(AutoModelForMaskedLM.from_config(student.config))
    return AutoModel.from_config(teacher.config).eval()  # type: ignore[no-any-return]


def _trial_objective(objective: ObjectiveSettings, *, head: bool) -> ObjectiveSettings:
    """What of an objective random models can be compared by: no labels, no pairs of layers, no terms of one's own."""
    names = ("attention", "hidden", "relations", "cosine", *(("prediction",) if head else ()))
    weights = {name: getattr(objective, name) for name in names}
    weights = weights if any(weights.values()) else weights | {"hidden": 1.0}
    return ObjectiveSettings(**{"prediction": 0.0, **weights}, relation_heads=objective.relation_heads)


def _cut(shape: EncoderShape, layers: int) -> EncoderShape:
    """A model of the same shape but for fewer layers and a small vocabulary."""
    depth = min(layers, shape.depth)
    return shape.with_layers([*range(1, depth + 1)]).with_vocabulary(min(_VOCABULARY, shape.vocabulary))


def _timed(step: Callable[[], None], passes: Passes) -> float:
    """Median seconds of a few calls after a first one that does not count."""
    step()
    return median(_seconds(step, passes.device) for _ in range(_STEPS))


def _seconds(step: Callable[[], None], device: str) -> float:
    """Seconds of a call. Where other work kept this process from its core meanwhile, those that it had: that work will
    not be there for ever, and where it is, the stages that are made say so."""
    _wait(device)
    start, began = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    wall, own = time.perf_counter() - start, time.process_time() - began
    return min(wall, own) if device == "cpu" and own > 0 else wall


def _optimizer_seconds(device: str) -> float:
    """Seconds that clipping and AdamW take per parameter."""
    weight = nn.Parameter(torch.zeros(_PARAMETERS, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=1e-3, fused=True)

    def step() -> None:
        nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()

    step()
    return median(_seconds(step, device) for _ in range(_STEPS)) / _PARAMETERS


def _wait(device: str) -> None:
    """Work on an accelerator is handed over and not waited for."""
    if device != "cpu":
        torch.accelerator.synchronize()
