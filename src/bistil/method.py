"""The method from end to end: its stages as values, in the paper's order, and the run that makes them.

text S, text T --> trim vocabulary --> copy every s-th layer --> phase 1: general bilingual distillation
labelled S ------> task teacher ------> phase 2: task distillation ------> evaluate on T --> benchmark --> report
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from bistil.errors import InputError
from bistil.measuring.benchmark import folder_bytes
from bistil.report.cards import write_measured
from bistil.report.page import write_report
from bistil.report.schema import Summary, save_summary
from bistil.report.table import print_table
from bistil.runs.board import Board
from bistil.runs.budget import LENGTHS, Fixed, Groups, fix_lengths, keep_lengths
from bistil.runs.data import Exam, HeldOut, Labelled, LabelledTexts, Sfts, TargetText, Texts, sources_of
from bistil.runs.folder import Name, RunFolder, check_run_folder, check_same_run
from bistil.runs.forecast import Forecast, Forecaster, free_disk
from bistil.runs.inputs import HELD_OUT, Inputs, check_inputs, keep_held_out, labelled_files
from bistil.runs.side_by_side import check_jobs, make_side_by_side, threads_of
from bistil.runs.stage import File, Product, Stage
from bistil.runs.stages import (
    Adapt,
    Agree,
    Benchmark,
    Copied,
    Cover,
    Distil,
    Dressed,
    Evaluate,
    Exchange,
    FineTune,
    Guess,
    Headed,
    Restore,
    Select,
    Trim,
    Wear,
)
from bistil.runs.summary import Candidate, Role, shown_predictions, summarise
from bistil.runtime.artefacts import check_apart, claim, write_json
from bistil.runtime.quiet import kept_threads
from bistil.settings.recipe import (
    TASK_TEACHERS,
    TRIMMED_TEACHER,
    AdaptSettings,
    FinetuneSettings,
    LanguageSettings,
    Phase1Settings,
    Phase2Settings,
    Recipe,
    SelectionSettings,
    StudentSettings,
    TrimSettings,
    phase2_of,
    to_dict,
    with_rate,
)
from bistil.settings.study import Variant
from bistil.tasks.hub import source_of
from bistil.training.processes import processes
from bistil.vocabulary.coverage import MISSING

MAJORITY = "majority class"
# Room on disk that is asked for: the teacher's copies and checkpoints, in sizes of the teacher.
TEACHER_SIZES = 4


@dataclass(frozen=True, kw_only=True)
class Method:
    """The method for one multilingual teacher, one source language and any targets: every stage of it as a value.

    A recipe has one group of languages and one seed; a study has several. What two of its points share is the same
    value, so it is made once.
    """

    teacher: File
    texts: Texts
    """Of all languages: the vocabulary is trimmed to them."""
    source: str
    students: tuple[StudentSettings, ...]
    layers: tuple[tuple[int, ...], ...]
    """Per student, the teacher layers that it starts from, 1-based."""
    trim: TrimSettings = field(default_factory=TrimSettings)
    keep: File | None = None
    verify: bool = True
    phase1: Phase1Settings
    finetune: FinetuneSettings
    phase2: Phase2Settings
    labelled: Labelled | None = None
    """What the task teacher learns from."""
    labelled_for_students: Labelled | None = None
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    """How target text is selected, for variants that want it so."""
    sfts: Mapping[str, File] = field(default_factory=dict)
    """Language SFTs that are there."""
    adapt: AdaptSettings | None = None
    adapted: tuple[str, ...] = ()
    """Languages whose SFT is learnt by the run."""
    force_sfts: bool = False
    head: AdaptSettings | None = None
    """How a masked-LM head is learnt where one is needed; none: the teacher has one, or it is not made."""
    seed: int = 0
    """Of trimming's draws, language SFTs and phase 1."""
    teacher_seed: int | None = None
    """Of the task teacher; none: the same."""

    # 3.1: vocabulary reduction.

    def trimmed(self) -> Trim:
        """The teacher with the tokens that the languages use."""
        settings = replace(self.trim, keep=None)
        return Trim(teacher=self.teacher, texts=self.texts, settings=settings, keep=self.keep, verify=self.verify)

    def coverage(self, held_out: HeldOut | None = None) -> Cover | None:
        """Whether the trimmed vocabulary fits the labelled files, and text held out; None without a task."""
        if self.labelled is None:
            return None
        texts = LabelledTexts(labelled=self.labelled)
        return Cover(trim=self.trimmed(), labelled=texts, held_out=held_out, seed=self.seed)

    # 3.2: general bilingual distillation, by a teacher that wears the SFT of each batch's language.

    def language_sfts(self) -> Sfts:
        """Per language, the SFT that is given or learnt."""
        learnt = {language: self.language_sft(language).product("sft") for language in self.adapted}
        return {**self.sfts, **learnt}

    def language_sft(self, language: str) -> Adapt:
        """What a language adds to the trimmed teacher."""
        assert self.adapt is not None
        return Adapt(
            model=self.masked_lm(), language=language, text=self.texts[language], settings=self.adapt, seed=self.seed
        )

    def masked_lm(self) -> Product:
        """The trimmed teacher with a masked-LM head: its own, or one that is made."""
        trimmed = self.trimmed().product("model")
        if self.head is None:
            return trimmed
        return Headed(model=trimmed, texts=self.texts, settings=self.head, seed=self.seed).product("model")

    def bilingual(
        self,
        languages: tuple[str, ...],
        settings: Phase1Settings | None = None,
        students: tuple[StudentSettings, ...] | None = None,
    ) -> Distil:
        """All students (or some) of a group of languages, from one pass of the trimmed teacher per batch."""
        students, settings = students or self.students, settings or self.phase1
        objectives = [student.objective or settings.objective for student in students]
        with_head = any(one.prediction or one.hard_labels for one in objectives)
        return Distil(
            teacher=self.masked_lm() if with_head else self.trimmed().product("model"),
            students=students,
            texts={language: self.texts[language] for language in languages},
            settings=settings,
            sfts={language: sft for language, sft in self.language_sfts().items() if language in languages},
            force_sfts=self.force_sfts,
            seed=self.seed,
        )

    # 3.3: task distillation.

    def fine_tuned_teacher(
        self,
        settings: FinetuneSettings | None = None,
        seed: int | None = None,
        sfts: Mapping[str, File | Product] | None = None,
    ) -> FineTune:
        """The trimmed teacher fine-tuned on labels, wearing the source language's SFT if there is one.

        With labels in several languages it wears in each batch the SFT of its language, and none at the end.

        Args:
            settings, seed: others than those of the students' teacher.
            sfts: others than those of phase 1.
        """
        assert self.labelled is not None
        model, sfts = self.trimmed().product("model"), self.language_sfts() if sfts is None else sfts
        settings, seed = settings or self.finetune, self.of_teacher if seed is None else seed
        sources = sources_of(self.labelled.task) if settings.sparse else {}
        worn = {language: sfts[language] for language in sources if language in sfts} if len(sources) > 1 else {}
        start: Product | Dressed = model
        if self.source in sfts and not worn:
            start = Dressed(model=model, sft=sfts[self.source], force=self.force_sfts)
        return FineTune(
            start=start,
            labelled=self.labelled,
            settings=settings,
            sfts=worn,
            force_sfts=self.force_sfts and bool(worn),
            seed=seed,
            languages=tuple(self.texts),
        )

    @property
    def of_teacher(self) -> int:
        """The task teacher's seed."""
        return self.seed if self.teacher_seed is None else self.teacher_seed

    def lt_sft(self, settings: FinetuneSettings, seed: int) -> FineTune:
        """The trimmed teacher with the source's language SFT, and a task SFT on top (LT-SFT, section 3.2)."""
        sft = self.language_sft(self.source).product("sft")
        return self.fine_tuned_teacher(settings, seed, {self.source: sft})

    def exchanged(self, learnt: FineTune, language: str) -> Product:
        """What `lt_sft` gave, with another language's SFT in place of the source's."""
        return Exchange(
            model=learnt.product("model"),
            task=learnt.product("sft"),
            language=self.language_sft(language).product("sft"),
            base=self.trimmed().product("model"),
        ).product("model")

    def restored(self, model: Product) -> Product:
        """A task model of the trimmed teacher with its whole vocabulary."""
        return Restore(model=model, trimmed=self.trimmed().product("model"), base=self.teacher).product("model")

    def fine_tuned_teachers(self, count: int) -> list[FineTune]:
        """So many teachers, fine-tuned alike from consecutive seeds; the first is `fine_tuned_teacher`."""
        return [self.fine_tuned_teacher(seed=self.of_teacher + number) for number in range(count)]

    def task_teacher(self, fine_tuned: FineTune | None = None) -> Product:
        """The teacher of phase 2: it wears the source language's SFT for good.

        Args:
            fine_tuned: one of `fine_tuned_teachers`; none: the first.
        """
        fine_tuned = fine_tuned or self.fine_tuned_teacher()
        model = fine_tuned.product("model")
        if self.source not in fine_tuned.sfts:
            return model
        return Wear(model=model, trimmed=self.trimmed().product("model"), sft=fine_tuned.sfts[self.source]).product(
            "model"
        )

    def undistilled(self) -> Restore:
        """The same task teacher with its whole vocabulary: what the students are compared with."""
        return Restore(model=self.task_teacher(), trimmed=self.trimmed().product("model"), base=self.teacher)

    def like_task(self, text: TargetText, count: int) -> TargetText:
        """Target text that is most like the labelled texts: so many lines, equally many per language."""
        assert self.labelled is not None
        found = {}
        for language, files in text.texts.items():
            found[language] = Select(
                model=self.trimmed().product("model"),
                labelled=self.labelled,
                source_text=self.texts[self.source],
                text=replace(text, texts={language: files}, count=None),
                count=count // len(text.texts),
                settings=self.selection,
            ).product("text")
        return replace(text, count=count, selected=found)

    def copied(self, number: int) -> Copied:
        """A student that is not distilled."""
        # Its loss has no say in what is copied.
        own = replace(self.students[number], objective=None, start="copy")
        return Copied(model=self.trimmed().product("model"), layers=self.layers[number], student=own)

    def student(
        self,
        number: int,
        variant: Variant,
        *,
        languages: tuple[str, ...],
        text: TargetText | None,
        seed: int,
        distilled: Product | None = None,
        learning_rate: float | None = None,
    ) -> FineTune:
        """A student fine-tuned on the source's labels, by the task teacher and on its targets' text as a variant says.

        Args:
            number: of the student.
            languages: of its phase 1.
            text: plain text of its targets.
            distilled: what it starts from; none: what the phase 1 of all students leaves.
            learning_rate: another than the settings'.
        """
        labelled = self.labelled_for_students or self.labelled
        assert labelled is not None
        if variant.student_examples is not None:
            labelled = replace(labelled, train_examples=variant.student_examples)
        start: Product | Copied = self.copied(number)
        if variant.phase1:
            everyone = self.bilingual(languages, variant.phase1_settings(self.phase1))
            start = distilled or everyone.product(str(number))
        settings = with_rate(variant.settings(phase2_of(self.students[number], self.phase2)), learning_rate)
        if not (variant.teacher and variant.target_text):
            text = None
        if text is not None and variant.selection:
            assert isinstance(settings, Phase2Settings)
            count = text.count or settings.target_sentences
            assert count is not None
            text = self.like_task(text, count)
        fine_tuned = self.fine_tuned_teachers(settings.teachers) if isinstance(settings, Phase2Settings) else []
        teachers = tuple(map(self.task_teacher, fine_tuned))
        return FineTune(
            start=start,
            labelled=labelled,
            settings=settings,
            teacher=next(iter(teachers), None),
            other_teachers=teachers[1:],
            target_text=text,
            seed=seed,
            languages=languages,
            beside=self.layers,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe's run: its stages as values, and what they are called."""

    method: Method
    pair: tuple[str, str]
    """Source and target."""
    candidates: list[Candidate]
    """The task models, in the order of the table."""
    exam: Exam | None
    held_out: HeldOut | None
    majority: bool
    names: dict[str, Name]

    def coverage(self) -> Cover | None:
        """Whether the trimmed vocabulary fits the recipe's files; None without a task."""
        return self.method.coverage(self.held_out)

    def bilingual(self) -> Distil:
        """Phase 1 of the recipe's languages."""
        return self.method.bilingual(tuple(self.method.texts))

    def scores(self) -> dict[str, Evaluate | Guess]:
        """Per candidate, and for the majority class, the stage that scores it on every test language."""
        if self.exam is None:
            return {}
        found: dict[str, Evaluate | Guess] = {
            one.name: Evaluate(model=one.model, exam=self.exam, device=self.method.phase2.training.device)
            for one in self.candidates
        }
        if self.majority and self.method.labelled is not None:
            found[MAJORITY] = Guess(labelled=self.method.labelled, exam=self.exam)
        return found

    def agreements(self) -> dict[str, Agree]:
        """Without labels of the target, per candidate what says how far it agrees with the teacher on text held out.

        The trimmed teacher is always among them: what it lacks to a whole agreement is trimming's, not a student's.
        """
        if self.held_out is None or self.exam is None or self.pair[1] in self.exam.parts:
            return {}
        teacher, *others = self.candidates
        models = {TRIMMED_TEACHER: self.method.task_teacher(), **{one.name: one.model for one in others}}
        device = self.method.phase2.training.device
        return {
            name: Agree(model=model, reference=teacher.model, text=self.held_out, device=device)
            for name, model in models.items()
        }

    def costs(self) -> Benchmark:
        """Size and speed of every shape, measured on real target text."""
        models = tuple(one.model for one in self.candidates if one.name == one.measured_as)
        target = self.pair[1]
        if self.exam is not None and target in self.exam.parts:
            return Benchmark(models=models, text=replace(self.exam, parts=(target,)))
        return Benchmark(models=models, text=self.method.texts[target])

    def selections(self) -> list[Stage[Any]]:
        """What selects the target text of students."""
        texts = [one.model.stage.target_text for one in self.candidates if isinstance(one.model.stage, FineTune)]
        found = [product.stage for text in texts if text is not None for product in (text.selected or {}).values()]
        return list({stage.key: stage for stage in found}.values())

    def task_teachers(self) -> list[FineTune]:
        """What the students learn from: the fine-tuned teacher, or several."""
        return self.method.fine_tuned_teachers(self.method.phase2.teachers)

    def groups(self) -> Groups:
        """All stages, by the table of the recipe that says how long their trainings are."""
        found: dict[str, list[Stage[Any]]] = {"language": [*map(self.method.language_sft, self.method.adapted)]}
        found["phase1"] = [self.bilingual()]
        if self.candidates:
            found["finetune"] = [*self.task_teachers()]
            found["phase2"] = [one.model.stage for one in self.candidates if one.role not in ("teacher", "trimmed")]
        known = {stage.key for stages in found.values() for stage in stages}
        return {**found, "": [stage for stage in self.stages() if stage.key not in known]}

    def stages(self) -> Iterator[Stage[Any]]:
        """All stages, in the order of the run."""
        yield self.method.trimmed()
        if (cover := self.coverage()) is not None:
            yield cover
        yield from map(self.method.language_sft, self.method.adapted)
        yield self.bilingual()
        if self.candidates:
            for fine_tuned in self.task_teachers():
                yield fine_tuned
                yield self.method.task_teacher(fine_tuned).stage
            yield from self.selections()
            yield from (one.model.stage for one in self.candidates)
            yield from self.scores().values()
            yield from self.agreements().values()
            yield self.costs()


def plan_recipe(recipe: Recipe, inputs: Inputs) -> Plan:
    """The stages of a recipe; nothing is done."""
    method = Method(
        teacher=inputs.teacher,
        texts=inputs.learnt,
        source=recipe.source,
        students=tuple(recipe.students),
        layers=tuple(tuple(inputs.layers[student.name]) for student in recipe.students),
        trim=recipe.trim,
        keep=inputs.keep,
        phase1=recipe.phase1,
        finetune=recipe.finetune,
        phase2=recipe.phase2,
        selection=recipe.selection or SelectionSettings(),
        labelled=inputs.labelled,
        sfts=inputs.sfts,
        adapt=_adapt_settings(recipe.language) if recipe.language else None,
        adapted=adapted_languages(recipe),
        force_sfts=recipe.force_sfts,
        seed=recipe.seed,
    )
    candidates = list(_candidates(recipe, inputs, method)) if inputs.labelled is not None else []
    exam = Exam(labelled=inputs.labelled, parts=tuple(recipe.task.test)) if recipe.task and inputs.labelled else None
    plan = Plan(
        method=method,
        pair=(recipe.source, recipe.target),
        candidates=candidates,
        exam=exam,
        held_out=inputs.held_out,
        majority=recipe.compare.majority,
        names={},
    )
    for key, name in _names(plan):
        # Two names for one value (copies of the same layers, say): it is made once, under the first.
        plan.names.setdefault(key, name)
    return plan


def adapted_languages(recipe: Recipe) -> tuple[str, ...]:
    """The languages whose SFTs the run learns itself."""
    if recipe.language is None:
        return ()
    return tuple(recipe.language.languages or [one for one in recipe.text if one not in recipe.language_sfts])


def _adapt_settings(settings: LanguageSettings) -> AdaptSettings:
    """What is the same for all languages: learning one more changes no other."""
    return AdaptSettings(**{f.name: getattr(settings, f.name) for f in fields(AdaptSettings)})


def variants_of(recipe: Recipe) -> dict[str, Variant]:
    """What becomes of every student of a recipe, by what is added to its name."""
    phase2, compare = recipe.phase2, recipe.compare
    forced = phase2.teacher_forced
    own = Variant(
        teacher=forced, target_text=forced and phase2.target_text > 0, equal_steps=False,
        selection=recipe.selection is not None,
    )  # fmt: skip
    found = {"": own}
    if compare.self_taught and forced:
        found["self-taught"] = replace(own, teacher=False, target_text=False)
    if compare.no_target_text and own.target_text:
        found["no target text"] = replace(own, target_text=False, equal_steps=True)
    if compare.copied:
        found["copied"] = replace(own, phase1=False)
    return found


def _candidates(recipe: Recipe, inputs: Inputs, method: Method) -> Iterator[Candidate]:
    """The models of the table: the teacher, and every student in all variants."""
    yield Candidate("teacher", "teacher", method.undistilled().product("model"), "teacher", "teacher")
    if recipe.compare.trimmed:
        trimmed = method.task_teacher()
        yield Candidate(TRIMMED_TEACHER, "trimmed", trimmed, "task-teacher", TRIMMED_TEACHER)
    for number, student in enumerate(recipe.students):
        for suffix, variant in variants_of(recipe).items():
            stage = method.student(
                number, variant, languages=tuple(recipe.text), text=inputs.target_text, seed=recipe.seed
            )
            role: Role = "student" if not suffix else "copied" if suffix == "copied" else "baseline"
            name = f"{student.name}-{suffix.replace(' ', '-')}" if suffix else student.name
            place = f"{'baselines' if suffix else 'students'}/{name}"
            shown = f"{student.name}, {suffix}" if suffix else student.name
            yield Candidate(shown, role, stage.product("model"), place, student.name)


def _names(plan: Plan) -> Iterator[tuple[str, Name]]:
    """What the stages of a run are called, and where their products lie."""
    method = plan.method
    yield method.trimmed().key, Name("trim", {"model": "trimmed"})
    if (cover := plan.coverage()) is not None:
        yield cover.key, Name("coverage", {"missing": MISSING})
    for language in method.adapted:
        yield method.language_sft(language).key, Name(f"adapt-{language}", {"sft": f"sfts/language-{language}"})
    places = {str(number): f"phase1/{student.name}" for number, student in enumerate(method.students)}
    yield plan.bilingual().key, Name("phase1", {**places, "record": "phase1/record"})
    if not plan.candidates:
        return
    teachers = plan.task_teachers()
    for fine_tuned, folder, label in zip(
        teachers, TASK_TEACHERS, numbered("task-teacher", len(teachers)), strict=False
    ):
        worn = method.task_teacher(fine_tuned).stage
        place, sft = {"model": folder}, {"sft": f"sfts/{folder}"}
        yield fine_tuned.key, Name(label, sft if worn.key != fine_tuned.key else place | sft)
        if worn.key != fine_tuned.key:
            yield worn.key, Name(f"dress-{label}", place)
    for stage in plan.selections():
        yield stage.key, Name("select", {"text": "selected-text"})
    for one in plan.candidates:
        if isinstance(one.model.stage, Restore):
            yield one.model.stage.key, Name("restore-vocabulary", {"model": one.place})
        elif one.role != "trimmed":
            name = one.place.partition("/")[2]
            yield one.model.stage.key, Name(f"phase2-{name}", {"model": one.place, "sft": f"sfts/{name}"})
    for name, score in plan.scores().items():
        yield score.key, Name(f"evaluate {name}")
    for name, agree in plan.agreements().items():
        yield agree.key, Name(f"agree {name}")
    yield plan.costs().key, Name("benchmark")


def numbered(name: str, count: int) -> list[str]:
    """What so many task teachers are called: the first as if it were the only one."""
    return [name, *(f"{name} {number} of {count}" for number in range(2, count + 1))]


def run_recipe(recipe: Recipe, output: Path, *, jobs: int = 1) -> Summary:
    """Carry out a recipe in an output folder; the same call goes on where an earlier one stopped.

    Leaves `phase1/NAME` (bilingual students), `students/NAME` (their task models), `sfts/NAME`, `summary.json` and
    `report.html` there, and returns the summary (docs/report.md explains it). Several processes may call it together
    (torchrun): they share every training, and the first of them does everything else.

    Args:
        jobs: so many stages at a time, each a process with its share of the threads (`runs.side_by_side`): phase 1
            beside the task teacher, students beside each other.

    Raises:
        BistilError: bad input, another run's folder, an input where a stage writes, too little disk; nothing is
            overwritten then.
    """
    first = processes().is_main_process
    check_jobs(jobs)
    if first:
        check_output(recipe, output)
    inputs = check_inputs(recipe, output)
    if first:
        _check_disk(inputs, output)
    fixed = _fixed_lengths(recipe, inputs, output)
    if fixed is not None:
        recipe = fixed.applied(recipe)
    plan = plan_recipe(recipe, inputs)
    with RunFolder(output, identity=_identity(recipe), names=plan.names) as run:
        if first:
            claim(files=[output / "summary.json", output / "report.html"], force=True)
            write_json(output / "recipe.json", to_dict(recipe), inner=True)
            if fixed is not None:
                keep_lengths(fixed, output)
            keep_held_out(inputs, recipe.target, output)
            forecaster = Forecaster(run)
            run.on_made = forecaster.made
            with kept_threads(threads_of(jobs)):
                expected = forecaster.announce(plan.stages(), jobs=jobs)
            if jobs > 1:
                make_side_by_side(Board(run, plan.stages()), jobs, expected)
        for stage in plan.stages():
            run.make(stage)
        summary = summarise(recipe, inputs, plan, run)
        shown = shown_predictions(recipe, plan, run)
    if first:
        save_summary(output / "summary.json", summary, replace=True)
        write_measured(summary, output, (output / "trimmed", *sorted((output / "phase1").glob("*"))))
    if first and summary.models:
        write_report(summary, output / "report.html", shown=shown, replace=True)
        print_table(summary)
    return summary


def check_output(recipe: Recipe, output: Path) -> None:
    """Before any work: make sure that a recipe's run may be made, or gone on with, in a folder. Nothing is written.

    Raises:
        InputError: it holds something else or another run, cannot be written, or an input is where a stage writes.
    """
    check_run_folder(output)
    check_apart(_written(recipe, output), _read(recipe))
    check_same_run(output, _identity(recipe))


def forecast_recipe(
    recipe: Recipe, output: Path | None = None, *, inputs: Inputs | None = None, jobs: int = 1
) -> Forecast:
    """What a recipe's run will take: steps, time, memory and disk per stage, and what an output folder has already.

    Nothing is written but this machine's rates; a rate that it does not know is measured, in seconds.

    Args:
        output: the run's folder, there or not.
        inputs: of the recipe, if they were checked.
        jobs: so many stages at a time.

    Raises:
        BistilError: as `check_inputs`; or the recipe's budget is too small.
    """
    inputs = inputs or check_inputs(recipe, output)
    fixed = _fixed_lengths(recipe, inputs, output)
    plan = plan_recipe(recipe if fixed is None else fixed.applied(recipe), inputs)
    look = None
    if output is not None and (output / "stages").is_dir():
        look = RunFolder(output, identity={}, names=plan.names, look=True)
        cover = plan.coverage()
        if cover is not None and (made := look.known(cover)) is not None:
            look.tell(cover, made)
    with kept_threads(threads_of(jobs)):
        return Forecaster(look, names=plan.names).forecast(plan.stages())


def _fixed_lengths(recipe: Recipe, inputs: Inputs, output: Path | None) -> Fixed | None:
    """What the recipe's budget comes to, in all processes alike; None without a budget."""
    if recipe.budget is None:
        return None
    found: list[Any] = [None]
    if processes().is_main_process:
        found = [fix_lengths(recipe, lambda one: plan_recipe(one, inputs).groups(), output)]
    if processes().num_processes > 1:
        broadcast_object_list(found)
    fixed: Fixed = found[0]
    return fixed


def _identity(recipe: Recipe) -> dict[str, object]:
    """What makes a run this run: another teacher, pair, task or seed in its folder is a mistake."""
    return {
        "teacher": recipe.teacher,
        "source": recipe.source,
        "target": recipe.target,
        "task": recipe.task.kind if recipe.task else None,
        "seed": recipe.seed,
    }


def _read(recipe: Recipe) -> list[str]:
    """Names of everything that a run reads."""
    return [
        recipe.teacher,
        *(file for files in recipe.text.values() for file in files),
        *([recipe.trim.keep] if recipe.trim.keep else []),
        *(map(source_of, labelled_files(recipe.task)) if recipe.task else []),
        *recipe.language_sfts.values(),
    ]


def _written(recipe: Recipe, output: Path) -> list[Path]:
    """Everything that the stages of a run write or remove in its folder, in whatever variant."""
    variants = ("", "-self-taught", "-no-target-text", "-copied")
    names = [f"{student.name}{variant}" for student in recipe.students for variant in variants]
    teachers = TASK_TEACHERS[: recipe.phase2.teachers]
    parts = ["trimmed", "phase1", "teacher", "work", "stages", "made"]
    parts += [f"{folder}{name}" for folder in ("", "sfts/") for name in teachers]
    parts.append(MISSING)
    parts += [f"{kind}/{name}" for kind in ("students", "baselines", "sfts") for name in names]
    parts += [f"sfts/language-{language}" for language in recipe.text]
    parts.append("selected-text")
    parts.append(HELD_OUT.format(recipe.target))
    return [
        output / part for part in [*parts, "run.json", "recipe.json", LENGTHS, "summary.json", "report.html", ".lock"]
    ]


def _check_disk(inputs: Inputs, output: Path) -> None:
    """Make sure that the run will fit on the disk.

    Raises:
        InputError: less room than the teacher's copies and checkpoints need.
    """
    free, needed = free_disk(output), TEACHER_SIZES * folder_bytes(inputs.teacher.path)[0]
    if free < needed and not (output / "run.json").exists():
        raise InputError(
            f"the disk of {output} has {free / 2**30:.1f} GiB free and the run needs about {needed / 2**30:.1f}: make "
            "room or name an output folder on another disk"
        )
