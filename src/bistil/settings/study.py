"""Variants of a student, and studies: groups of languages x students x variants x seeds."""

from dataclasses import dataclass, replace
from pathlib import Path

from bistil.settings.recipe import (
    FinetuneSettings,
    Phase1Settings,
    Phase2Settings,
    SparseSettings,
    StudentSettings,
    TaskSettings,
    load_toml,
    option,
    parse,
    without_target_text,
)
from bistil.settings.schema import PrecisionName

COMMON = "variants.toml"
"""Beside a study's file, the variants of all studies."""


@dataclass(kw_only=True, frozen=True)
class Variant:
    """How a student is trained; what is not given is the recipe's or the study's."""

    teacher: bool = option(True, "teacher-forced; false: self-taught")
    target_text: bool = option(False, "batches of target text; without them labelled batches take their place")
    equal_steps: bool = option(True, "without target text, as many steps as with it, over more epochs")
    phase1: bool = option(True, "false: copied layers")
    phase1_length: float = option(1.0, "times the steps of phase 1")
    phase1_group: str | None = option(None, "start from another group's phase 1")
    epochs: float | None = option(None, "another length of phase 2")
    target_sentences: int | None = option(None, "another number of target sentences per group")
    lines: list[int] = option(factory=list, help="target text is drawn from these lines of its file: [first, end)")
    sparse: SparseSettings | None = option(None, "sparse instead of dense fine-tuning")
    precision: PrecisionName | None = option(None, "number format of the matrix products in both phases")
    average_last: int | None = option(None, "in phase 2, the mean of so many snapshots instead of the best on dev")
    groups: list[str] = option(factory=lambda: ["all"], help="for these groups")
    students: list[str] = option(factory=list, help="only these students")
    seeds: list[int] = option(factory=list, help="of the student; none: the study's")

    def settings(self, phase2: Phase2Settings) -> FinetuneSettings:
        """Phase 2 as this variant has it."""
        own = phase2
        if self.sparse is not None:
            own = replace(own, sparse=self.sparse)
        if self.epochs is not None:
            own = replace(own, training=replace(own.training, epochs=self.epochs))
        if self.precision is not None:
            own = replace(own, training=replace(own.training, precision=self.precision))
        if self.average_last is not None:
            own = replace(own, training=replace(own.training, average_last=self.average_last))
        if not self.target_text:
            own = without_target_text(own) if self.equal_steps else replace(own, target_text=0.0, target_sentences=None)
        return own if self.teacher else FinetuneSettings(sparse=own.sparse, training=own.training)

    def phase1_settings(self, phase1: Phase1Settings) -> Phase1Settings:
        """Phase 1 as this variant has it."""
        if self.precision is not None:
            phase1 = replace(phase1, training=replace(phase1.training, precision=self.precision))
        if self.phase1_length == 1:
            return phase1
        assert phase1.training.steps is not None, "another length is in steps"
        steps = round(self.phase1_length * phase1.training.steps)
        return replace(phase1, training=replace(phase1.training, steps=steps))


@dataclass(kw_only=True, frozen=True)
class StudySettings:
    """A study's file."""

    name: str = option(help="of the study", cosmetic=True)
    source: str = option(help="language with labels")
    targets: dict[str, dict[str, str]] = option(help="per language, dev and test files")
    groups: dict[str, list[str]] = option(help="targets that share a student")
    reductions: list[int] = option(help="the students: layer reduction factors")
    variants: dict[str, Variant] = option(help="ways to train a student, on top of those of all studies")
    task: TaskSettings = option(help="training data")
    phase1: Phase1Settings = option(help="general distillation of a group")
    finetune: FinetuneSettings = option(help="the task teacher")
    phase2: Phase2Settings = option(help="the students")
    seeds: list[int] = option(factory=lambda: [0, 1], help="of the students")
    teacher_seed: int = option(0, "of the task teacher, the same for all students")
    teacher_examples: int | None = option(None, "labelled examples that the teacher learns from; none: all")
    student_examples: int | None = option(None, "labelled examples that students learn from; none: all")
    target_sentences: int | None = option(None, "target sentences per group, equally many per language; none: all")
    dev_examples: int | None = option(None, "of the source's dev set; none: all")
    test_examples: int | None = option(None, "of each target's dev and test set; none: all")

    @property
    def students(self) -> list[StudentSettings]:
        """One per reduction."""
        return [StudentSettings(name=f"lrf{factor}", reduction=factor) for factor in self.reductions]


def load_study(file: Path) -> StudySettings:
    """Read a study's file, with the variants of all studies that lie beside it.

    Raises:
        RecipeError: unreadable file, unknown key, wrong type.
    """
    own = load_toml(file)
    common = file.with_name(COMMON)
    own["variants"] = (load_toml(common) if common.exists() else {}) | own.get("variants", {})
    return parse(StudySettings, own, str(file))
