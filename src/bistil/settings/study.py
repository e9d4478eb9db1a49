"""Variants of a student, and studies: groups of languages x students x systems x seeds."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bistil.errors import RecipeError
from bistil.settings.recipe import (
    AdaptSettings,
    Checked,
    FinetuneSettings,
    ObjectiveSettings,
    Phase1Settings,
    Phase2Settings,
    SelectionSettings,
    SparseSettings,
    StudentSettings,
    TaskSettings,
    TrainingSettings,
    TrimSettings,
    load_toml,
    option,
    parse,
    to_dict,
    without_target_text,
)
from bistil.settings.schema import MOST_TEACHERS, PrecisionName, check_language, phase2_of

COMMON = "variants.toml"
"""Beside a study's file, the variants of all studies."""
ALL, EACH = "all", "each"
"""Of groups: the one of every target, and every group of one target."""
SYSTEMS = ("bistil", "lt-sft", "trim-only", "scratch", "monolingual", "distilmbert", "minilmv2", "model2vec")
"""What a system may be; `PRESETS` says how each is made."""


@dataclass(kw_only=True, frozen=True)
class Variant(Checked):
    """How a student (or the teacher itself) is trained; what is not given is the recipe's or the study's."""

    kind: str | None = option(None, "which system this is", cosmetic=True)
    model: Literal["student", "teacher", "static"] = option(
        "student",
        "what is fine-tuned: a student, or the trimmed teacher itself, from labels; static: a classifier over the "
        "teacher's static embeddings",
    )
    language_sfts: bool = option(
        False, "of a teacher: its task SFT is learnt on the source's language SFT, and used on each target's (LT-SFT)"
    )
    exchange: bool = option(
        True, "of language_sfts: the target's takes the place of the source's; false: the source's stays on"
    )
    whole_vocabulary: bool = option(False, "of a teacher: scored with its whole vocabulary")
    teacher: bool = option(True, "teacher-forced; false: self-taught")
    teachers: int | None = option(
        None, "the mean of so many task teachers' logits makes the soft predictions; none: phase2.teachers", least=1,
        most=MOST_TEACHERS,
    )  # fmt: skip
    target_text: bool = option(False, "batches of target text; without them labelled batches take their place")
    equal_steps: bool = option(True, "without target text, as many steps as with it, over more epochs")
    phase1: bool = option(True, "false: copied layers")
    phase1_length: float = option(1.0, "times the steps of phase 1", above=0)
    phase1_learning_rate: float | None = option(None, "another peak learning rate of phase 1", above=0, most=1)
    phase1_group: str | None = option(None, "start from another group's phase 1")
    phase1_languages: Literal["group", "targets"] = option(
        "group", "text of phase 1: source and targets, or targets alone (monolingual distillation)"
    )
    phase1_objective: ObjectiveSettings | None = option(None, "weights of the losses of phase 1")
    task_objective: ObjectiveSettings | None = option(None, "weights of the losses of phase 2")
    start: Literal["copy", "random", "scratch"] | None = option(None, "how students start, instead of their own start")
    epochs: float | None = option(None, "another length of phase 2", above=0)
    target_sentences: int | None = option(None, "another number of target sentences per group", least=1)
    selection: bool = option(
        False, "target text is what is most like the labelled texts, as the study's selection says, and not drawn"
    )
    surest: float | None = option(
        None, "of the inputs made of target text, the share of which the task teacher is surest; none: phase2.surest",
        above=0, most=1,
    )  # fmt: skip
    student_examples: int | None = option(
        None, "another number of labelled examples that the student learns from", least=1
    )
    lines: list[int] = option(factory=list, help="target text is drawn from these lines of its file: [first, end)")
    sparse: SparseSettings | None = option(None, "sparse instead of dense fine-tuning")
    precision: PrecisionName | None = option(None, "number format of the matrix products in both phases")
    average_last: int | None = option(None, "in phase 2, the mean of so many snapshots instead of the best on dev")
    learning_rates: list[float] = option(
        factory=list, help="of the fine-tuning: tried on dev, instead of search.learning_rates; one is taken as it is"
    )
    reference: str | None = option(
        None, "the system or variant that its gaps are to, instead of the study's", cosmetic=True
    )
    groups: list[str] = option(factory=lambda: [ALL], help="for these groups; each: for every group of one target")
    students: list[str] = option(factory=list, help="only these students")
    seeds: list[int] = option(factory=list, help="of the student; none: the study's")

    def __post_init__(self) -> None:
        """Also refuses what would have no effect."""
        super().__post_init__()
        if self.teachers is not None and not (self.teacher and self.model == "student"):
            raise RecipeError(f"teachers is {self.teachers}, but it learns from labels only: leave teachers out")
        if not (self.exchange or self.language_sfts):
            raise RecipeError("exchange is false, but no language SFT is worn: leave exchange out")
        if self.surest is not None and not (self.teacher and self.target_text):
            raise RecipeError(f"surest is {self.surest:g}, but there is no target text: leave surest out")

    def settings(self, phase2: Phase2Settings) -> FinetuneSettings:
        """Phase 2 as this variant has it.

        Raises:
            RecipeError: several teachers, and an objective that does not listen to them.
        """
        own = replace(
            phase2,
            sparse=self.sparse or phase2.sparse,
            training=self._training(phase2.training),
            objective=self.task_objective or phase2.objective,
            # Who learns from labels takes the lengths alone from here.
            teachers=(self.teachers or phase2.teachers) if self.teacher else 1,
            surest=self.surest or phase2.surest,
        )
        if not self.target_text:
            own = (
                without_target_text(own)
                if self.equal_steps
                else replace(own, target_text=0.0, target_sentences=None, surest=1.0)
            )
        return own if self.teacher else FinetuneSettings(sparse=own.sparse, training=own.training)

    def teacher_settings(self, finetune: FinetuneSettings) -> FinetuneSettings:
        """The fine-tuning of a teacher as this variant has it; each phase of a sparse one is as long as a dense one."""
        training, sparse = self._training(finetune.training), self.sparse or finetune.sparse
        if not self.language_sfts:
            return replace(finetune, sparse=sparse, training=training)
        if sparse is None:
            sparse = SparseSettings(
                dense_epochs=training.epochs, sparse_epochs=training.epochs,
                dense_steps=training.steps, sparse_steps=training.steps,
            )  # fmt: skip
        return FinetuneSettings(sparse=sparse, training=replace(training, steps=None, epochs=3.0))

    def _training(self, training: TrainingSettings) -> TrainingSettings:
        given = {name: getattr(self, name) for name in ("epochs", "precision", "average_last")}
        return replace(training, **{name: value for name, value in given.items() if value is not None})

    def phase1_settings(self, phase1: Phase1Settings) -> Phase1Settings:
        """Phase 1 as this variant has it."""
        own: dict[str, Any] = {"precision": self.precision, "learning_rate": self.phase1_learning_rate}
        if self.phase1_length != 1:
            assert phase1.training.steps is not None, "another length is in steps"
            own["steps"] = round(self.phase1_length * phase1.training.steps)
        training = replace(phase1.training, **{name: value for name, value in own.items() if value is not None})
        return replace(phase1, training=training, objective=self.phase1_objective or phase1.objective)

    def student(self, student: StudentSettings) -> StudentSettings:
        """A student as this variant starts it, and as it learns in phase 1."""
        if self.start is not None:
            student = replace(student, start=self.start)
        return student if self.phase1_objective is None else replace(student, objective=None)


def _only(**weights: float) -> ObjectiveSettings:
    """An objective of these terms."""
    return ObjectiveSettings(**{"attention": 0.0, "hidden": 0.0, **weights})  # type: ignore[arg-type]


PRESETS: Mapping[str, Variant] = {
    # Ansell et al. 2023, section 3: one bilingual student per target.
    "bistil": Variant(groups=[EACH]),
    # The undistilled teacher with language and task SFTs (section 4.4).
    "lt-sft": Variant(model="teacher", language_sfts=True, whole_vocabulary=True),
    # The task teacher with the vocabulary that all systems have.
    "trim-only": Variant(model="teacher"),
    # A student's shape, nothing of the teacher: masked language modelling on both languages, then labels (section 4.4).
    "scratch": Variant(groups=[EACH], teacher=False, start="scratch", phase1_objective=_only(hard_labels=1.0)),
    # Phase 1 on text of the target alone.
    "monolingual": Variant(groups=[EACH], phase1_languages="targets"),
    # Sanh et al. 2019, section 3: copied layers, soft predictions, masked LM and cosine, on text of many languages; the
    # weights are those of its code.
    "distilmbert": Variant(
        teacher=False, phase1_group=ALL, phase1_objective=_only(prediction=5.0, hard_labels=2.0, cosine=1.0)
    ),
    # Wang et al. 2021: relations of one layer, random layers, on text of many languages.
    "minilmv2": Variant(teacher=False, phase1_group=ALL, start="random", phase1_objective=_only(relations=1.0)),
    # Tulkens & van Dongen 2024: the teacher's outputs for single tokens, and a classifier; nothing is drawn.
    "model2vec": Variant(model="static", teacher=False, phase1=False, seeds=[0]),
}
"""How each system is made, as far as a study's file does not say otherwise."""


@dataclass(kw_only=True, frozen=True)
class SearchSettings(Checked):
    """The same small search for every system: its first seed tries all rates on the source's dev set."""

    learning_rates: list[float] = option(help="peak learning rates of the fine-tuning that are tried")

    def __post_init__(self) -> None:
        """Also refuses rates that are none."""
        super().__post_init__()
        _check_rates(self.learning_rates)


def _check_rates(rates: Iterable[float]) -> None:
    for rate in rates:
        if not 0 < rate < 1:
            raise RecipeError(f"learning_rates has {rate}; a learning rate is between 0 and 1")


HEAD = AdaptSettings(
    steps=300,
    block_length=128,
    training=TrainingSettings(steps=1, batch_size=16, learning_rate=1e-3, evaluate_steps=None),
)
LANGUAGE = AdaptSettings(
    steps=300,
    block_length=128,
    training=TrainingSettings(steps=1, batch_size=16, learning_rate=3e-4, evaluate_steps=None),
)


@dataclass(kw_only=True, frozen=True)
class StudySettings(Checked):
    """A study's file."""

    name: str = option(help="of the study", cosmetic=True)
    teacher: str = option("e5-small", "hub name or folder of the multilingual model; e5-small is the packaged one")
    source: str = option(help="language with labels")
    text: dict[str, list[str]] = option(
        factory=dict, help="per language, files of plain text; a language's default is text/LANGUAGE.txt"
    )
    targets: dict[str, dict[str, str]] = option(help="per language, dev and test files")
    groups: dict[str, list[str]] = option(
        factory=dict, help="targets that share a student; none: all of them, and each by itself"
    )
    reductions: list[int] = option(factory=list, help="students by their layer reduction factors")
    students: list[StudentSettings] = option(factory=list, help="students with more to say than a reduction")
    variants: dict[str, Variant] = option(factory=dict, help="ways to train a student, on top of those of all studies")
    reference: str | None = option(
        None, "the system or variant that gaps are to; none: lt-sft if there is one, else trim-only", cosmetic=True
    )
    task: TaskSettings = option(help="training data")
    trim: TrimSettings = option(factory=TrimSettings, help="the vocabulary of all models")
    phase1: Phase1Settings = option(help="general distillation of a group")
    finetune: FinetuneSettings = option(help="the task teacher")
    phase2: Phase2Settings = option(help="the students")
    head: AdaptSettings = option(factory=lambda: HEAD, help="the masked-LM head of a teacher that has none")
    language: AdaptSettings = option(factory=lambda: LANGUAGE, help="the language SFTs of lt-sft")
    search: SearchSettings | None = option(None, "learning rates to choose from; none: those of finetune and phase2")
    selection: SelectionSettings = option(
        factory=SelectionSettings, help="how variants with selection = true come by their target text"
    )
    seeds: list[int] = option(factory=lambda: [0, 1], help="of the students")
    teacher_seed: int = option(0, "of the task teacher, the same for all students")
    teacher_examples: int | None = option(None, "labelled examples that the teacher learns from; none: all", least=1)
    student_examples: int | None = option(None, "labelled examples that students learn from; none: all", least=1)
    target_sentences: int | None = option(
        None, "target sentences per group, equally many per language; none: all", least=1
    )
    dev_examples: int | None = option(None, "of the source's dev set; none: all", least=1)
    test_examples: int | None = option(None, "of each target's dev and test set; none: all", least=1)
    parallel: bool = option(
        False, "the targets' sets hold the same examples, translated, in one order: they are resampled jointly",
        cosmetic=True,
    )  # fmt: skip
    note: str | None = option(None, "what a reader of the scores must know; stands beside every table", cosmetic=True)

    def __post_init__(self) -> None:
        """Completes groups and students; raises RecipeError for names that nothing has, or that two things have."""
        super().__post_init__()
        if not self.task.dev:
            raise RecipeError("task.dev names no files: the source's dev set chooses learning rates and checkpoints")
        if not self.targets:
            raise RecipeError("targets has no language: add targets.LANGUAGE = { test = FILE }")
        if not self.groups:
            found = {ALL: [*self.targets]} | ({one: [one] for one in self.targets} if len(self.targets) > 1 else {})
            object.__setattr__(self, "groups", found)
        self._check_languages()
        self._check_students()
        self._check_names()
        for name, variant in self.variants.items():
            self._check_variant(name, variant)
        if self.reference is not None:
            require(self.reference, self.variants, "reference", "system or variant")

    @property
    def shapes(self) -> list[StudentSettings]:
        """All students: those of the reductions, and those that are given whole."""
        reduced = [StudentSettings(name=f"lrf{factor}", reduction=factor) for factor in self.reductions]
        return [*reduced, *self.students]

    def groups_of(self, variant: Variant) -> list[str]:
        """The groups that a variant is made for, without `each`; a teacher is one for all targets, or for those of the
        groups that are named."""
        if variant.model != "student":
            return [name for name in variant.groups if name not in (ALL, EACH)] or [self.whole]
        alone = [name for name, targets in self.groups.items() if len(targets) == 1]
        found = [one for name in variant.groups for one in (alone or [self.whole] if name == EACH else [name])]
        return list(dict.fromkeys(found))

    @property
    def whole(self) -> str:
        """The group of all targets, or the first one."""
        return next(
            (name for name, own in self.groups.items() if set(own) == set(self.targets)), next(iter(self.groups))
        )

    def _check_languages(self) -> None:
        for language in (self.source, *self.targets):
            check_language(language, "targets")
        if self.source in self.targets:
            raise RecipeError(f"targets has the source, {self.source!r}: leave it out, its dev set is scored anyway")
        for target, files in self.targets.items():
            if "test" not in files:
                raise RecipeError(f'targets.{target} has no test set: add test = "FILE"')
        for language in self.text:
            require(language, (self.source, *self.targets), "text", "language")
        for name, targets in self.groups.items():
            if not targets:
                raise RecipeError(f"groups.{name} is empty: name targets")
            for target in targets:
                require(target, self.targets, f"groups.{name}", "target")
            if len(set(targets)) < len(targets):
                raise RecipeError(f"groups.{name} is {targets}: name each target once")
        if EACH in self.groups:
            raise RecipeError(f"groups has {EACH!r}, which stands for every group of one target: choose another name")

    def _check_students(self) -> None:
        names = [student.name for student in self.shapes]
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"two students are called {name!r}: give each a name of its own")
        if not names and any(variant.model == "student" for variant in self.variants.values()):
            raise RecipeError("students has none: give reductions = [2], or [[students]]")

    def _check_names(self) -> None:
        """A word of the command line must say which of a study's parts it names."""
        kinds = {
            "system or variant": [*self.variants], "group": [*self.groups],
            "student": [one.name for one in self.shapes],
        }  # fmt: skip
        seen: dict[str, str] = {}
        for kind, names in kinds.items():
            for name in names:
                if name in seen:
                    raise RecipeError(f"a {seen[name]} and a {kind} are both called {name!r}: rename one of them")
                seen[name] = kind

    def _check_variant(self, name: str, variant: Variant) -> None:
        where = f"variants.{name}" if variant.kind is None else f"systems.{name}"
        for group in variant.groups:
            if group != EACH and variant.model == "student":
                require(group, self.groups, f"{where}.groups", "group")
        if variant.reference is not None:
            require(variant.reference, self.variants, f"{where}.reference", "system or variant")
        if variant.phase1_group is not None:
            require(variant.phase1_group, self.groups, f"{where}.phase1_group", "group")
        for student in variant.students:
            require(student, [one.name for one in self.shapes], f"{where}.students", "student")
        _check_rates(variant.learning_rates)
        if variant.model == "static" and self.task.kind != "sequence-classification":
            raise RecipeError(
                f"{where}: static embeddings are of whole texts: they serve sequence-classification, and the task is "
                f"{self.task.kind}"
            )
        if variant.selection and not (variant.target_text and (variant.target_sentences or self.target_sentences)):
            raise RecipeError(
                f"{where}.selection selects target text: add target_text = true, and target_sentences, which says how "
                "much of it"
            )
        sentences = variant.target_sentences or self.target_sentences
        most = max(len(self.groups[group]) for group in self.groups_of(variant))
        if variant.target_text and sentences is not None and sentences < most:
            raise RecipeError(
                f"{where}: target_sentences is {sentences}, shared by up to {most} languages: give one of each at least"
            )
        if variant.kind == "minilmv2":
            self._check_narrow(name, variant)
        for own in self._students_of(variant) if variant.model == "student" else ():
            try:
                variant.settings(phase2_of(own, self.phase2))
            except RecipeError as error:
                raise RecipeError(f"{where}: {error}") from None
        if variant.phase1_length != 1 and self.phase1.training.steps is None:
            raise RecipeError(f"{where}.phase1_length is {variant.phase1_length:g}: give phase1.training.steps")

    def _students_of(self, variant: Variant) -> list[StudentSettings]:
        return [one for one in self.shapes if not variant.students or one.name in variant.students]

    def _check_narrow(self, name: str, variant: Variant) -> None:
        wide = [one.name for one in self._students_of(variant) if one.hidden_size is None]
        if wide:
            raise RecipeError(
                f"systems.{name}: minilmv2's students are narrower than the teacher, and {wide[0]!r} is not: add "
                "[[students]] with hidden_size, and name it in students"
            )


def require(name: str, known: Iterable[str], where: str, what: str) -> None:
    """Make sure that a name is known.

    Raises:
        RecipeError: it is not; the message names the nearest one.
    """
    names = [str(one) for one in known]
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names) or 'none'}"
    raise RecipeError(f"{where}: no {what} is called {name!r}; {hint}")


def load_study(file: Path) -> StudySettings:
    """Read a study's file, with the variants of all studies that lie beside it.

    `[systems.NAME]` and `[variants.NAME]` are one thing: what a `kind` presets, and what the file says otherwise; a
    system must have a kind.

    Raises:
        RecipeError: unreadable file, unknown key, wrong type, a name that nothing or that two things have.
    """
    own = load_toml(file)
    if "target" in own:
        raise RecipeError(f"{file} is a recipe, not a study: `bistil run` takes it")
    common = file.with_name(COMMON)
    tables = {"systems": own.pop("systems", {}), "variants": own.pop("variants", {})}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise RecipeError(f"{file}.{name} must be a table, not {table!r}")
    for name in tables["systems"]:
        if name in tables["variants"]:
            raise RecipeError(f"{file}: a system and a variant are both called {name!r}: rename one of them")
    of_all = load_toml(common) if common.exists() and common != file else {}
    found = {name: _made(values, f"{file}.systems.{name}", preset=True) for name, values in tables["systems"].items()}
    for name, values in (of_all | tables["variants"]).items():
        where = f"{file if name in tables['variants'] else common}.variants.{name}"
        found[name] = _made(values, where, preset=isinstance(values, dict) and "kind" in values)
    own["variants"] = {name: _given(variant) for name, variant in found.items()}
    return parse(StudySettings, own, str(file))


def _made(values: Any, where: str, *, preset: bool) -> Variant:
    """A system or variant of a study's file."""
    if not preset or not isinstance(values, dict):
        return parse(Variant, values, where)
    kind = values.get("kind")
    if not isinstance(kind, str):
        raise RecipeError(f"{where}: 'kind' is missing; it is one of {', '.join(SYSTEMS)}")
    require(kind, SYSTEMS, f"{where}.kind", "system")
    return parse(Variant, values, where, base=PRESETS[kind])


def _given(variant: Variant) -> dict[str, Any]:
    """A variant as a file would have it."""
    return {name: value for name, value in to_dict(variant).items() if value is not None}
