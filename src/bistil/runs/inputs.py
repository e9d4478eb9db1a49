"""What a recipe stands on, checked before any work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bistil.distillation.checks import check_folder
from bistil.distillation.student import choose_layers, depth_of, student_config
from bistil.distillation.task import check_fit
from bistil.distillation.task_data import TaskData, read_task_data
from bistil.models.families import family_of
from bistil.models.masked_lm import supported_config
from bistil.models.names import model_folder
from bistil.runs.data import HeldOut, Labelled, TargetText, hold_out, sentences_of, sources_of, without_lines
from bistil.runs.stage import File
from bistil.runtime.artefacts import check_product, file_digest, folder_digest, whole_file
from bistil.settings.recipe import Recipe, TaskSettings, phase2_of
from bistil.settings.trust import code_named
from bistil.sparse import SparseFineTuning
from bistil.sparse.hub import sft_folder
from bistil.sparse.language import check_adapt
from bistil.tasks.hub import labelled_digest
from bistil.text.lines import check_text, read_sentences


@dataclass(kw_only=True)
class Inputs:
    """The files and folders of a recipe, by their content."""

    teacher: File
    texts: dict[str, tuple[File, ...]]
    keep: File | None
    labelled: Labelled | None
    target_text: TargetText | None
    sfts: dict[str, File] = field(metadata={"help": "per language, the SFT that the recipe names"})
    layers: dict[str, list[int]] = field(metadata={"help": "per student, the teacher layers it starts from, 1-based"})
    counts: dict[str, int] = field(metadata={"help": "bytes of text and examples, by name"})
    notices: list[str] = field(
        default_factory=list, metadata={"help": "what was mended or left out, per labelled file"}
    )
    code: list[str] = field(default_factory=list, metadata={"help": "package.module:Class that the recipe names"})
    held_out: HeldOut | None = None
    learnt: dict[str, tuple[File, ...]] = field(
        default_factory=dict, metadata={"help": "the texts without what is held out; by itself, the texts"}
    )

    def __post_init__(self) -> None:
        """Fill in what is learnt from."""
        self.learnt = self.learnt or self.texts

    def lines(self) -> list[str]:
        """The same for people."""
        return [
            f"teacher: {self.teacher.path}",
            *(f"code that is imported: {name}" for name in self.code),
            *(f"student {name}: teacher layers {layers}" for name, layers in self.layers.items()),
            *(f"{name}: {count:,}" for name, count in self.counts.items()),
            *self.notices,
        ]


HELD_OUT = "held-out.{}.txt"
"""In a run's folder: lines of the target's text that nothing is learnt from."""


def check_inputs(recipe: Recipe, output: Path | None = None) -> Inputs:
    """Find what is wrong with a recipe's files before any work is done.

    Where there are no labels of the target to score, some lines of its text are held out; what a run's folder holds out
    stays so, whatever labels there are later.

    Args:
        output: the run's folder, there or not.

    Raises:
        BistilError: a missing, empty or malformed file, a label that training lacks, a factor that does not divide.
    """
    counts: dict[str, int] = {}
    texts = text_files(recipe.text)
    for language, files in texts.items():
        counts[f"text.{language}.bytes"] = sum(file.path.stat().st_size for file in files)
    keep = None
    if recipe.trim.keep is not None:
        keep = text_files({"": [recipe.trim.keep]})[""][0]
    learnt, held_out = texts, None
    labelled, target_text, sentences, notices = None, None, None, []
    if recipe.task is not None:
        data = read_task_data(recipe.task, source=recipe.source, sources=sources_of(recipe.task) or None, quiet=True)
        lines = _held_out(recipe, data, texts[recipe.target], output)
        if lines:
            everything = read_sentences([file.path for file in texts[recipe.target]])
            learnt = {**texts, recipe.target: without_lines(texts[recipe.target], everything, lines)}
            counts[f"text.{recipe.target}.held_out"] = len(lines)
        if recipe.phase2.teacher_forced and recipe.phase2.target_text > 0:
            sentences = sentences_of(learnt[recipe.target])
            data = data.with_target_text(sentences, quiet=True)
        notices, left_out = data.notices, data.left_out.digests()
        labelled = Labelled(
            task=recipe.task,
            source=recipe.source,
            digests=labelled_digests(recipe.task),
            left_out=left_out.get("train"),
        )
        if sentences is not None:
            target_text = TargetText(texts={recipe.target: learnt[recipe.target]}, left_out=left_out.get("target"))
        if lines:
            held_out = HeldOut(labelled=labelled, lines=tuple(lines), files=texts[recipe.target], seed=recipe.seed)
        counts.update({f"left out, {name}": count for name, count in data.left_out.counts.items() if count})
        counts.update({f"train.{language or recipe.source}.examples": len(part) for language, part in
                       (data.sources or {"": data.train}).items()})  # fmt: skip
        counts[f"dev.{recipe.source}.examples"] = len(data.dev)
        counts.update({f"test.{language}.examples": len(part) for language, part in data.test.items()})
    sfts = {}
    for language, name in recipe.language_sfts.items():
        SparseFineTuning.load(name)  # a damaged one shows here; its base is compared when it is put on
        sfts[language] = File.at(sft_folder(name))
    teacher = model_folder(recipe.teacher)
    check_product(teacher)
    depth = depth_of(teacher)
    layers = {student.name: choose_layers(depth, student) for student in recipe.students}
    _check_stages(recipe, teacher, sentences)
    return Inputs(
        teacher=File(folder_digest(teacher), teacher),
        texts=texts,
        learnt=learnt,
        held_out=held_out,
        keep=keep,
        labelled=labelled,
        target_text=target_text,
        sfts=sfts,
        layers=layers,
        counts=counts,
        notices=notices,
        code=code_named(recipe),
    )


def _held_out(recipe: Recipe, data: TaskData, files: Sequence[File], output: Path | None) -> list[str]:
    """The lines that the run's folder holds out; else, without labels of the target to score, lines that are drawn."""
    kept = None if output is None else output / HELD_OUT.format(recipe.target)
    if kept is not None and kept.is_file():
        return read_sentences([kept])
    if recipe.target in data.test or not data.task.of_plain_text:
        return []
    return hold_out(data, read_sentences([file.path for file in files]), seed=recipe.seed)


def keep_held_out(inputs: Inputs, target: str, output: Path) -> None:
    """Write what is held out into a run's folder."""
    if inputs.held_out is not None:
        with whole_file(output / HELD_OUT.format(target), replace=True, inner=True) as partial:
            partial.write_text("".join(f"{line}\n" for line in inputs.held_out.lines), encoding="utf-8", newline="\n")


def text_files(texts: Mapping[str, Iterable[str | Path]]) -> dict[str, tuple[File, ...]]:
    """Files of plain text by their content.

    Raises:
        InputError: one is missing, unreadable, empty or no plain text.
    """
    for files in texts.values():
        for file in files:
            check_text(Path(file))
    return {
        language: tuple(File(file_digest(Path(file)), Path(file)) for file in files)
        for language, files in texts.items()
    }


def labelled_files(task: TaskSettings) -> list[str]:
    """Everything labelled that a task reads."""
    trained = [*task.train, *(file for files in sources_of(task).values() for file in files)]
    return [*trained, *task.dev, *(file for part in task.test.values() for file in part)]


def labelled_digests(task: TaskSettings) -> dict[str, str]:
    """SHA-256 of the content of every file and data set that a task names."""
    return {file: labelled_digest(file) for file in labelled_files(task)}


def _check_stages(recipe: Recipe, teacher: Path, target_sentences: list[str] | None) -> None:
    """Ask every stage what it would refuse after hours."""
    worn: dict[str, Any] = dict(recipe.language_sfts)
    if recipe.language is not None:
        check_adapt(str(teacher), recipe.language)
    check_folder(teacher, recipe.students, list(recipe.text), settings=recipe.phase1, language_sfts=worn)
    if recipe.task is not None:
        length, configuration = recipe.task.max_length, supported_config(teacher)
        check_fit(configuration, recipe.finetune, max_length=length)
        for student in recipe.students:
            layers = choose_layers(family_of(configuration).depth(configuration), student)
            check_fit(
                student_config(configuration, layers, student),
                phase2_of(student, recipe.phase2),
                max_length=length,
                teacher=configuration if recipe.phase2.teacher_forced else None,
                target_sentences=target_sentences or [],
            )
