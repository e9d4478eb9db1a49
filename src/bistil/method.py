"""The method from end to end: the stages in the paper's order, skipping what is done, resuming what is not.

text S, text T --> trim vocabulary --> copy every s-th layer --> phase 1: general bilingual distillation
labelled S ------> task teacher ------> phase 2: task distillation ------> evaluate on T --> benchmark --> report
"""

import platform
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bistil.distillation.general import check_general, distill_general
from bistil.distillation.student import choose_layers, copy_student, depth_of
from bistil.distillation.task import TaskData, check_fit, fit_task, how_to_read, read_task_data
from bistil.errors import InputError
from bistil.measuring.benchmark import benchmark, folder_bytes, machine
from bistil.measuring.evaluation import measure, score_record
from bistil.models.names import model_folder
from bistil.report.page import write_report
from bistil.report.schema import SCHEMA, CurveRecord, DataRecord, ModelRecord, StageRecord, Summary, save_summary
from bistil.report.table import print_table
from bistil.runs.folder import RunFolder, StageResult, check_run_folder
from bistil.runtime.artefacts import check_apart, check_product, claim, file_digest, folder_digest, write_json
from bistil.settings.recipe import FinetuneSettings, Phase2Settings, Recipe, to_dict, without_target_text
from bistil.sparse import SparseFineTuning
from bistil.sparse.hub import sft_folder
from bistil.sparse.wearing import dressed_copy
from bistil.tasks import Metrics, get_task, paired_gap
from bistil.tasks.hub import labelled_digest, source_of
from bistil.text.lines import check_text, read_sentences
from bistil.vocabulary import kept_ids, trim_vocabulary
from bistil.vocabulary.restoring import restore_vocabulary

MAJORITY = "majority class"
_NOT_LEARNT_FROM = ("preset", "train", "dev", "test", "strict")
# Sentences of the target's test set that latency and FLOPs are measured on.
BENCHMARK_EXAMPLES = 32
# Room on disk that is asked for: the teacher's copies and checkpoints, in sizes of the teacher.
TEACHER_SIZES = 4


@dataclass(kw_only=True)
class Inputs:
    """What a recipe stands on, checked before any work."""

    teacher: Path
    teacher_digest: str
    files: dict[str, str] = field(metadata={"help": "SHA-256 per file"})
    layers: dict[str, list[int]] = field(metadata={"help": "per student, the teacher layers it starts from, 1-based"})
    counts: dict[str, int] = field(metadata={"help": "bytes of text and examples, by name"})
    sfts: dict[str, str] = field(metadata={"help": "per language, the digest of its SFT"})
    left_out: dict[str, str] = field(metadata={"help": "digests of evaluation text that must not be learnt from"})
    notices: list[str] = field(
        default_factory=list, metadata={"help": "what was mended or left out, per labelled file"}
    )

    def lines(self) -> list[str]:
        """The same for people."""
        return [
            f"teacher: {self.teacher}",
            *(f"student {name}: teacher layers {layers}" for name, layers in self.layers.items()),
            *(f"{name}: {count:,}" for name, count in self.counts.items()),
            *self.notices,
        ]

    def of(self, files: Iterable[str]) -> list[str]:
        """Digests of some of the files, in their order."""
        return [self.files[file] for file in files]


@dataclass(frozen=True)
class Candidate:
    """A task model that is evaluated: a line of the final table."""

    name: str
    role: Any
    folder: Path
    digest: str
    measured_as: str = field(metadata={"help": "the candidate of the same shape that stands for its size and speed"})


def check_inputs(recipe: Recipe) -> Inputs:
    """Find what is wrong with a recipe's files before any work is done.

    Raises:
        BistilError: a missing, empty or malformed file, a label that training lacks, a factor that does not divide.
    """
    counts: dict[str, int] = {}
    files: dict[str, str] = {}
    for language, paths in recipe.text.items():
        for path in paths:
            check_text(Path(path))
            files[path] = file_digest(Path(path))
        counts[f"text.{language}.bytes"] = sum(Path(path).stat().st_size for path in paths)
    if recipe.trim.keep is not None:
        check_text(Path(recipe.trim.keep))
        files[recipe.trim.keep] = file_digest(Path(recipe.trim.keep))
    left_out: dict[str, str] = {}
    notices: list[str] = []
    sentences: list[str] | None = None
    if recipe.task is not None:
        sentences = _target_sentences(recipe)
        data = read_task_data(recipe.task, target_sentences=sentences, source=recipe.source, quiet=True)
        notices = data.notices
        left_out = data.left_out.digests()
        counts.update({f"left out, {name}": count for name, count in data.left_out.counts.items() if count})
        counts[f"train.{recipe.source}.examples"] = len(data.train)
        counts[f"dev.{recipe.source}.examples"] = len(data.dev)
        counts.update({f"test.{language}.examples": len(part) for language, part in data.test.items()})
        for path in [*recipe.task.train, *recipe.task.dev, *(p for part in recipe.task.test.values() for p in part)]:
            files[path] = labelled_digest(path)
    sfts = {}
    for language, name in recipe.language_sfts.items():
        SparseFineTuning.load(name)  # a damaged one shows here; its base is compared when it is put on
        sfts[language] = folder_digest(sft_folder(name))
    teacher = model_folder(recipe.teacher)
    check_product(teacher)
    depth = depth_of(teacher)
    layers = {student.name: choose_layers(depth, student) for student in recipe.students}
    _check_stages(recipe, teacher, sentences)
    return Inputs(
        teacher=teacher,
        teacher_digest=folder_digest(teacher),
        files=files,
        layers=layers,
        counts=counts,
        left_out=left_out,
        sfts=sfts,
        notices=notices,
    )


def _check_stages(recipe: Recipe, teacher: Path, target_sentences: list[str] | None) -> None:
    """Ask every stage what it would refuse after hours."""
    check_general(
        teacher, recipe.students, list(recipe.text), settings=recipe.phase1, language_sfts=recipe.language_sfts
    )
    if recipe.task is not None:
        length = recipe.task.max_length
        check_fit(teacher, recipe.finetune, max_length=length)
        check_fit(
            teacher,
            recipe.phase2,
            max_length=length,
            teacher=recipe.phase2.teacher_forced,
            target_sentences=target_sentences or [],
        )


def _target_sentences(recipe: Recipe) -> list[str] | None:
    """The target's text if phase 2 learns from it."""
    if not (recipe.phase2.teacher_forced and recipe.phase2.target_text > 0):
        return None
    return read_sentences([Path(file) for file in recipe.text[recipe.target]])


def run_recipe(recipe: Recipe, output: Path) -> Summary:
    """Carry out a recipe in an output folder; the same call goes on where an earlier one stopped.

    Leaves `phase1/NAME` (bilingual students), `students/NAME` (their task models), `sfts/NAME`, `summary.json` and
    `report.html` there, and returns the summary (docs/report.md explains it).

    Raises:
        BistilError: bad input, another run's folder, an input where a stage writes, too little disk; nothing is
            overwritten then.
    """
    check_run_folder(output)
    check_apart(_written(recipe, output), _read(recipe))
    inputs = check_inputs(recipe)
    _check_disk(inputs, output)
    identity = {
        "name": recipe.name,
        "teacher": recipe.teacher,
        "source": recipe.source,
        "target": recipe.target,
        "task": recipe.task.kind if recipe.task else None,
        "seed": recipe.seed,
    }
    with RunFolder(output, identity=identity) as run:
        claim(files=[output / "summary.json", output / "report.html"], force=True)
        write_json(output / "recipe.json", to_dict(recipe), inner=True)
        stages = _Stages(recipe, inputs, run)
        # Phase 1: general bilingual distillation (paper, section 3.2).
        trimmed = stages.trim_vocabulary()
        bilingual = stages.distill_general(trimmed)
        if recipe.task is None:
            return stages.summarise(bilingual)
        # Phase 2: task distillation (paper, section 3.3).
        teacher = stages.task_teacher(trimmed)
        models = stages.task_students(teacher, bilingual)
        # Zero-shot: the source's labels were seen, the target's never.
        scores = stages.evaluate(models)
        speeds = stages.benchmark(models)
        return stages.summarise(bilingual, models, scores, speeds)


class _Stages:
    """The stages of one run: each names its inputs and outputs, and calls the room that does the work."""

    def __init__(self, recipe: Recipe, inputs: Inputs, run: RunFolder) -> None:
        self.recipe, self.inputs, self.run = recipe, inputs, run
        self.output = run.folder

    @cached_property
    def data(self) -> TaskData:
        """The task's examples; read when the first stage needs them."""
        assert self.recipe.task is not None
        return read_task_data(
            self.recipe.task, target_sentences=_target_sentences(self.recipe), source=self.recipe.source
        )

    def _texts(self) -> dict[str, list[Path]]:
        return {language: [Path(file) for file in files] for language, files in self.recipe.text.items()}

    def _task_inputs(self, settings: FinetuneSettings) -> dict[str, Any]:
        """What every fine-tuning depends on."""
        task = self.recipe.task
        assert task is not None
        kinds = ("train", "target") if isinstance(settings, Phase2Settings) and settings.target_text else ("train",)
        return {
            "train": self.inputs.of(task.train),
            "dev": self.inputs.of(task.dev),
            "target_text": self.inputs.of(self.recipe.text[self.recipe.target]),
            # A preset shows in the settings; what is learnt does not depend on its name.
            "task": {key: value for key, value in to_dict(task).items() if key not in _NOT_LEARNT_FROM},
            "settings": to_dict(settings),
            "seed": self.recipe.seed,
            # All that a test file changes here is what it keeps out.
            **{f"left_out_{kind}": digest for kind, digest in self.inputs.left_out.items() if kind in kinds},
        }

    def trim_vocabulary(self) -> StageResult:
        """Keep the tokens that the two languages use."""

        recipe, output = self.recipe, self.output / "trimmed"

        def action(work: Path) -> dict[str, Any]:
            report = trim_vocabulary(
                self.inputs.teacher,
                self._texts(),
                output,
                settings=recipe.trim,
                keep=Path(recipe.trim.keep) if recipe.trim.keep else None,
                counts=work / "counts",
            )
            return report.to_dict()

        texts = {language: self.inputs.of(files) for language, files in recipe.text.items()}
        settings = {**to_dict(recipe.trim), "keep": self.inputs.files.get(recipe.trim.keep or "")}
        needs = {"teacher": self.inputs.teacher_digest, "text": texts, "settings": settings}
        return self.run.stage("trim", needs, [output], action)

    def distill_general(self, trimmed: StageResult) -> StageResult:
        """All students from one pass of the trimmed teacher per batch."""

        recipe, output = self.recipe, self.output / "phase1"

        def action(work: Path) -> dict[str, Any]:
            return distill_general(
                self.output / "trimmed",
                recipe.students,
                self._texts(),
                output,
                settings=recipe.phase1,
                seed=recipe.seed,
                language_sfts=recipe.language_sfts or None,
                force_sfts=recipe.force_sfts,
                work=work,
            )

        needs = {
            "trimmed": trimmed.digest,
            "students": [to_dict(student) for student in recipe.students],
            "language_sfts": self.inputs.sfts,
            "settings": to_dict(recipe.phase1),
            "seed": recipe.seed,
        }
        return self.run.stage("phase1", needs, [output], action)

    def task_teacher(self, trimmed: StageResult) -> StageResult:
        """Fine-tune the trimmed teacher; the undistilled teacher is the same with its whole vocabulary."""

        recipe = self.recipe
        assert recipe.task is not None
        output, whole, sft = (self.output / name for name in ("task-teacher", "teacher", "sfts/task-teacher"))
        max_length = recipe.task.max_length

        def action(work: Path) -> dict[str, Any]:
            start = self.output / "trimmed"
            if recipe.source in recipe.language_sfts:
                # The task teacher is the multilingual model wearing the source language's SFT (section 3.3).
                start = dressed_copy(
                    start,
                    recipe.language_sfts[recipe.source],
                    output=work / "dressed",
                    force_sfts=recipe.force_sfts,
                    replace=True,
                )
            figures = fit_task(
                start,
                self.data,
                output=output,
                sft_output=sft,
                settings=recipe.finetune,
                max_length=max_length,
                work=work / "training",
                seed=recipe.seed,
                label="task teacher",
                languages=[recipe.source, recipe.target],
            )
            kept = kept_ids(self.output / "trimmed")
            restore_vocabulary(output, base=self.inputs.teacher, kept=kept, output=whole)
            return figures

        needs = {
            "start": trimmed.digest,
            "language_sft": self.inputs.sfts.get(recipe.source),
            **self._task_inputs(recipe.finetune),
        }
        return self.run.stage(
            "task-teacher", needs, [output, whole, *([sft] if recipe.finetune.sparse else [])], action
        )

    def task_students(self, teacher: StageResult, bilingual: StageResult) -> list[Candidate]:
        """Phase 2 for every student, and for what it is compared with."""
        recipe, output = self.recipe, self.output
        models = [Candidate("teacher", "teacher", output / "teacher", teacher.digest, "teacher")]
        if recipe.compare.trimmed:
            trimmed = Candidate(
                "teacher, trimmed", "trimmed", output / "task-teacher", teacher.digest, "teacher, trimmed"
            )
            models.append(trimmed)
        forced = teacher if recipe.phase2.teacher_forced else None
        for student in recipe.students:
            models.append(self._fit(student.name, "", forced, bilingual))
            if recipe.compare.self_taught and forced:
                models.append(self._fit(student.name, "self-taught", None, bilingual))
            if recipe.compare.no_target_text and forced and recipe.phase2.target_text:
                models.append(self._fit(student.name, "no target text", forced, bilingual))
            if recipe.compare.copied:
                models.append(self._fit(student.name, "copied", forced, bilingual))
        return models

    def _fit(self, student: str, variant: str, teacher: StageResult | None, bilingual: StageResult) -> Candidate:
        """Phase 2 of one student, or of a variant of it.

        "copied" skips phase 1, "self-taught" has no task teacher, "no target text" learns from labelled batches only,
        in as many steps: an epoch is one over the labels, so it takes more of them.
        """
        recipe = self.recipe
        assert recipe.task is not None
        max_length = recipe.task.max_length
        name = f"{student}-{variant.replace(' ', '-')}" if variant else student
        start = Path("copied" if variant == "copied" else "phase1") / student
        output = self.output / ("baselines" if variant else "students") / name
        sft = self.output / "sfts" / name
        settings: FinetuneSettings = recipe.phase2
        if teacher is None:
            settings = FinetuneSettings(sparse=settings.sparse, training=settings.training)
        elif variant == "no target text":
            settings = without_target_text(recipe.phase2)

        def action(work: Path) -> dict[str, Any]:
            begin = self.output / start
            if variant == "copied":
                begin = work / start
                copy_student(self.output / "trimmed", self.inputs.layers[student], output=begin, replace=True)
            return fit_task(
                begin,
                self.data,
                output=output,
                sft_output=sft,
                teacher=self.output / "task-teacher" if teacher else None,
                settings=settings,
                max_length=max_length,
                work=work / "training",
                seed=recipe.seed,
                label=f"phase 2, {name}",
                languages=[recipe.source, recipe.target],
            )

        needs = {
            "start": [bilingual.digest, start.as_posix()],
            "teacher": teacher.digest if teacher else None,
            **self._task_inputs(settings),
        }
        stage = self.run.stage(f"phase2-{name}", needs, [output, *([sft] if settings.sparse else [])], action)
        role = {"": "student", "copied": "copied"}.get(variant, "baseline")
        return Candidate(f"{student}, {variant}" if variant else student, role, output, stage.digest, student)

    def evaluate(self, models: list[Candidate]) -> StageResult:
        """Score every model on every test language; until here, test sets only say what must not be learnt from."""

        recipe = self.recipe
        assert recipe.task is not None
        max_length = recipe.task.max_length

        def action(_work: Path) -> dict[str, Any]:
            data = self.data
            metrics: dict[str, dict[str, Metrics]] = {}
            for language, examples in data.test.items():
                found = {m.name: measure(m.folder, data.task, examples, max_length=max_length) for m in models}
                if recipe.compare.majority:
                    baseline = data.task.majority(data.train, examples)
                    found[MAJORITY] = data.task.score(examples, baseline, labels=data.labels)
                metrics[language] = found
            reference = models[0].name
            return {
                "metric": data.metric,
                "scores": {
                    name: {language: score_record(found[name]) for language, found in metrics.items()}
                    for name in [*(m.name for m in models), *([MAJORITY] if recipe.compare.majority else [])]
                },
                "gaps": {
                    name: paired_gap(one, metrics[recipe.target][reference])
                    for name, one in metrics.get(recipe.target, {}).items()
                    if name != reference
                },
            }

        tests = {language: self.inputs.of(files) for language, files in recipe.task.test.items()}
        needs = {
            "models": {m.name: m.digest for m in models},
            "tests": tests,
            "reading": asdict(how_to_read(recipe.task)),
            "max_length": max_length,
            **({} if recipe.compare.majority else {"majority": False}),
        }
        return self.run.stage("evaluate", needs, [], action)

    def benchmark(self, models: list[Candidate]) -> StageResult:
        """Size and speed of all models in turn, on real target text."""

        def action(_work: Path) -> dict[str, Any]:
            measured = {m.name: m.folder for m in models if m.name == m.measured_as}
            rows = benchmark(measured, texts=self._benchmark_texts(), examples=BENCHMARK_EXAMPLES)
            return {name: asdict(row) for name, row in rows.items()}

        recipe = self.recipe
        measured_on = (recipe.task.test if recipe.task else {}).get(recipe.target) or recipe.text[recipe.target]
        needs = {"models": {m.name: m.digest for m in models}, "texts": self.inputs.of(measured_on)}
        return self.run.stage("benchmark", needs, [], action)

    def summarise(
        self,
        bilingual: StageResult,
        models: list[Candidate] | None = None,
        scores: StageResult | None = None,
        speeds: StageResult | None = None,
    ) -> Summary:
        """Put the records together: `summary.json`, `report.html` and the table on the terminal."""
        recipe = self.recipe
        records = [self._record(model, scores, speeds) for model in models or []]
        if scores is not None and MAJORITY in scores.figures["scores"]:
            records.append(self._record(Candidate(MAJORITY, "baseline", Path(), "", ""), scores, None))
        summary = Summary(
            schema=SCHEMA,
            name=recipe.name,
            task=recipe.task.kind if recipe.task else "",
            pipeline_tag=get_task(recipe.task.kind).pipeline_tag if recipe.task else None,
            seed=recipe.seed,
            source=recipe.source,
            target=recipe.target,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine={name: str(value) for name, value in machine().items()},
            models=records,
            stages=[
                StageRecord(name=s.name, seconds=s.seconds, peak_memory_bytes=s.peak_memory, skipped=s.skipped)
                for s in self.run.results
            ],
            phase1=_curves(bilingual.figures),
            data=self._data_records(),
        )
        save_summary(self.output / "summary.json", summary, replace=True)
        if records:
            write_report(summary, self.output / "report.html", replace=True)
            print_table(summary)
        return summary

    def _record(self, model: Candidate, scores: StageResult | None, speeds: StageResult | None) -> ModelRecord:
        """One line of the table."""
        recipe = self.recipe
        source = scores.figures["scores"][model.name].get(recipe.source, {}) if scores else {}
        target = scores.figures["scores"][model.name].get(recipe.target, {}) if scores else {}
        behind = scores.figures["gaps"].get(model.name) if scores else None
        # A baseline's copy of a student has that student's shape, so that student's size and speed are its own.
        size = speeds.figures.get(model.measured_as, {}) if speeds else {}
        return ModelRecord(
            name=model.name,
            role=model.role,
            folder=str(model.folder.relative_to(self.output)) if model.digest else None,
            metric=scores.figures["metric"] if scores else "",
            source_score=_share(source.get("score")),
            source_interval=_interval(source),
            target_score=_share(target.get("score")),
            target_interval=_interval(target),
            gap_to_teacher=behind[0] / 100 if behind else None,
            gap_interval=[behind[1] / 100, behind[2] / 100] if behind else None,
            parameters=size.get("parameters"),
            bytes=size.get("bytes"),
            vocabulary=size.get("vocabulary"),
            layers=size.get("layers"),
            milliseconds=size.get("milliseconds"),
            speed_ratio=size.get("speed_ratio"),
            speed_ratio_range=size.get("speed_ratio_range"),
            flops=size.get("flops"),
        )

    def _data_records(self) -> dict[str, DataRecord]:
        """What was read, by file name."""
        recipe, counts = self.recipe, self.inputs.counts
        records = {}
        groups: list[tuple[str, str, list[str]]] = [
            ("text", language, files) for language, files in recipe.text.items()
        ]
        if recipe.task is not None:
            groups += [("train", recipe.source, recipe.task.train), ("dev", recipe.source, recipe.task.dev)]
            groups += [("test", language, files) for language, files in recipe.task.test.items()]
        for kind, language, files in groups:
            for number, file in enumerate(files):
                name = f"{kind}, {language}" + (f", {number + 1}" if len(files) > 1 else "")
                examples = counts.get(f"{kind}.{language}.examples") if len(files) == 1 else None
                records[name] = DataRecord(language=language, examples=examples, sha256=self.inputs.files[file])
        return records

    def _benchmark_texts(self) -> list[str]:
        """The first sentences of the target's test set, or of its text."""
        examples = self.data.test.get(self.recipe.target, [])
        return [self.data.task.text_of(example) for example in examples[:BENCHMARK_EXAMPLES]] or read_sentences(
            self._texts()[self.recipe.target]
        )


def _share(percent: float | None) -> float | None:
    """Scores are in percent in the tasks, 0 to 1 in records."""
    return None if percent is None else percent / 100


def _interval(score: dict[str, Any]) -> list[float] | None:
    interval = score.get("interval")
    return [value / 100 for value in interval] if interval else None


def _curves(figures: dict[str, Any]) -> dict[str, CurveRecord]:
    """Held-out loss over steps per student, out of phase 1's figures; step 0 is the copied start."""
    curves = {}
    for name, student in figures["students"].items():
        start = {key: value for key, value in student["held_out"]["start"].items() if key.endswith("/loss")}
        points = [{"step": 0, **{f"{name}/{key}": value for key, value in start.items()}}, *figures["history"]]
        if start:
            curves[name] = CurveRecord(
                steps=[int(point["step"]) for point in points],
                losses={key.removesuffix("/loss"): [point[f"{name}/{key}"] for point in points] for key in start},
            )
    return curves


def _read(recipe: Recipe) -> list[str]:
    """Names of everything that a run reads."""
    task = recipe.task
    labelled = [*task.train, *task.dev, *(file for part in task.test.values() for file in part)] if task else []
    return [
        recipe.teacher,
        *(file for files in recipe.text.values() for file in files),
        *([recipe.trim.keep] if recipe.trim.keep else []),
        *map(source_of, labelled),
        *recipe.language_sfts.values(),
    ]


def _written(recipe: Recipe, output: Path) -> list[Path]:
    """Everything that the stages of a run write or remove in its folder, in whatever variant."""
    variants = ("", "-self-taught", "-no-target-text", "-copied")
    names = [f"{student.name}{variant}" for student in recipe.students for variant in variants]
    parts = ["trimmed", "phase1", "task-teacher", "teacher", "sfts/task-teacher", "work", "stages"]
    parts += [f"{kind}/{name}" for kind in ("students", "baselines", "sfts") for name in names]
    return [output / part for part in [*parts, "run.json", "recipe.json", "summary.json", "report.html", ".lock"]]


def _check_disk(inputs: Inputs, output: Path) -> None:
    """Make sure that the run will fit on the disk.

    Raises:
        InputError: less room than the teacher's copies and checkpoints need.
    """
    place = output.absolute()
    while not place.exists():
        place = place.parent
    free, needed = shutil.disk_usage(place).free, TEACHER_SIZES * folder_bytes(inputs.teacher)[0]
    if free < needed and not (output / "run.json").exists():
        raise InputError(
            f"{place} has {free / 2**30:.1f} GiB free and the run needs about {needed / 2**30:.1f}: make room or name "
            "an output folder on another disk"
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide results."""
    names = ("bistil", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
