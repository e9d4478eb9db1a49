"""Settings that go together, as in the TOML files beside this module; what is given explicitly wins."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from bistil.settings.parsing import load_toml, parse
from bistil.settings.schema import (
    FinetuneSettings,
    Kind,
    Phase1Settings,
    Phase2Settings,
    PresetName,
    SparseSettings,
    TrainingSettings,
)

Stage = TypeVar("Stage", bound=FinetuneSettings)
# A task without a table of its own is learnt like this one.
LIKE_OTHERS = "sequence-classification"


@dataclass(kw_only=True, frozen=True)
class TaskPreset:
    """Settings of one task that go together; what a recipe or a command line gives explicitly wins."""

    max_length: int
    finetune: FinetuneSettings
    phase2: Phase2Settings


@cache
def _values(name: PresetName) -> dict[str, Any]:
    return load_toml(Path(__file__).with_name(f"{name}.toml"))


def phase1_preset(name: PresetName) -> Phase1Settings:
    """The settings of a preset for phase 1."""
    return parse(Phase1Settings, _values(name)["phase1"], f"preset {name}: phase1")


def task_preset(name: PresetName, kind: Kind) -> TaskPreset:
    """The settings of a preset for a task: `paper` (sparse, no target text) or `short` (dense, with target text).

    A task that the preset does not name is learnt as texts are classified.
    """
    values = _values(name)
    own = values["task"].get(kind, values["task"][LIKE_OTHERS])
    finetune = _merged(values["finetune"], own["finetune"])
    phase2 = _merged(finetune, values["phase2"])
    return TaskPreset(
        max_length=own["max_length"],
        finetune=_stage(FinetuneSettings, finetune),
        phase2=_stage(Phase2Settings, phase2),
    )


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables as one, table by table; the second wins."""
    both = old.keys() & new.keys()
    return {
        **old,
        **{key: _merged(old[key], one) if key in both and isinstance(one, dict) else one for key, one in new.items()},
    }


def _stage(settings: type[Stage], values: Mapping[str, Any]) -> Stage:
    # Class by class: epochs of a sparse fine-tuning are there for those who make it dense.
    sparse, training, others = values["sparse"], values["training"], dict(values)
    others["sparse"] = parse(SparseSettings, sparse, "preset: sparse") if sparse else None
    others["training"] = parse(TrainingSettings, training, "preset: training")
    return settings(**others)


# The bounds of the `short` preset's lengths, which are those of every task's teacher.
_SHORT = _values("short")["finetune"]["training"]
SHORT_LEAST_STEPS, SHORT_MOST_STEPS = _SHORT["least_steps"], _SHORT["most_steps"]
