"""Zero-shot transfer on real benchmarks: the paper's comparison for one task and several target languages.

    python benchmarks/transfer.py benchmarks/transfer/ner.toml --data DATA --output runs/ner
    python benchmarks/transfer.py benchmarks/transfer/ner.toml --data DATA --output runs/ner --table

The study's file names languages, budgets, groups and variants (those of all studies are in variants.toml beside it);
the teacher is e5-small. One vocabulary, trimmed to all of the study's languages, serves all models, and one task
teacher serves all targets. A group is the targets that share a student: with one target it is the paper's bilingual
student, with several one student for all of them, distilled on the source and all of them, at the cost of one. A
variant is a way to train a student; variants differ in their number of steps only where they say so. Each result is a
file of its own in OUTPUT/results: the same command goes on where it stopped, and several may run side by side on
different `--group`, `--variant`, `--student` or `--seed` once the parts they share (`--prepare`, with the same
`--group` and `--variant`) are made. `--speed` measures cost per model, on an otherwise idle machine. `--table` prints
what is there, and its last line is one JSON object.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from bistil.distillation.general import distill_general
from bistil.distillation.student import copy_student
from bistil.distillation.task import TaskData, fit_task, read_task_data
from bistil.measuring.benchmark import benchmark
from bistil.measuring.benchmark import cost_record as speed_record
from bistil.measuring.evaluation import score_examples, score_record
from bistil.models.tokenizers import load_tokenizer
from bistil.pretrained import e5_small_folder
from bistil.runtime.artefacts import read_json, whole_folder, write_json
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
from bistil.tasks.metrics import resampled
from bistil.tasks.overlap import without_evaluation_text
from bistil.text.lines import read_sentences
from bistil.vocabulary import trim_vocabulary
from bistil.vocabulary.restoring import restore_vocabulary
from bistil.vocabulary.trimming import kept_ids

COMMON = "variants.toml"
RESAMPLES = 1000


@dataclass(kw_only=True, frozen=True)
class Variant:
    """How a student is trained; what is not given is the study's."""

    teacher: bool = option(True, "teacher-forced; false: self-taught")
    target_text: bool = option(False, "batches of target text; without them labelled batches take their place")
    phase1: bool = option(True, "false: copied layers")
    phase1_length: float = option(1.0, "times the study's steps of phase 1")
    phase1_group: str | None = option(None, "start from another group's phase 1")
    epochs: float | None = option(None, "another length of phase 2")
    target_sentences: int | None = option(None, "another number of target sentences per group")
    lines: list[int] = option(factory=list, help="target text is drawn from these lines of its file: [first, end)")
    sparse: SparseSettings | None = option(None, "sparse instead of dense fine-tuning")
    groups: list[str] = option(factory=lambda: ["all"], help="for these groups")
    students: list[str] = option(factory=list, help="only these students")
    seeds: list[int] = option(factory=list, help="of the student; none: the study's")

    def start(self, group: str) -> tuple[str, float]:
        """Group and length of the phase 1 that students of a group start from."""
        return self.phase1_group or group, self.phase1_length


@dataclass(kw_only=True, frozen=True)
class StudySettings:
    """A study's file."""

    name: str = option(help="of the study")
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


def _some(items: list[Any], count: int | None) -> list[Any]:
    """So many of the items, drawn at random, in their order; a smaller draw is part of a larger one."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(items))[:count])
    return [items[i] for i in chosen]


@dataclass
class Study:
    """One task: its settings, files and results."""

    file: Path
    data: Path
    output: Path
    settings: StudySettings = field(init=False)

    def __post_init__(self) -> None:
        own = load_toml(self.file)
        own["variants"] = load_toml(self.file.with_name(COMMON)) | own.get("variants", {})
        self.settings = parse(StudySettings, own, str(self.file))
        self.students = [StudentSettings(name=f"lrf{factor}", reduction=factor) for factor in self.settings.reductions]
        task = self.settings.task
        self.task = replace(task, train=self.located(task.train), dev=self.located(task.dev))

    def located(self, files: list[str]) -> list[str]:
        return [str(self.data / file) for file in files]

    def text(self, language: str) -> list[Path]:
        return [self.data / "text" / f"{language}.txt"]

    @cached_property
    def task_data(self) -> TaskData:
        """Labelled source examples, less those that any target's test set repeats, and the targets' whole test sets."""
        tests = {
            f"{target}/{part}": self.located([file])
            for target, files in self.settings.targets.items()
            for part, file in files.items()
        }
        return read_task_data(replace(self.task, test=tests))

    def learnt_from(self, examples: int | None, sentences: list[str]) -> TaskData:
        """As many of the labelled examples as the budget allows, with target text; tests are scored elsewhere."""
        found = self.task_data
        return replace(
            found,
            train=_some(found.train, examples),
            dev=_some(found.dev, self.settings.dev_examples),
            test={},
            target_sentences=sentences,
        )

    def target_text(self, group: str, variant: Variant) -> list[str]:
        """Equally many sentences of each of the group's languages, none of them in a dev or test set."""
        data, sentences = self.task_data, []
        languages = self.settings.groups[group]
        count = variant.target_sentences or self.settings.target_sentences
        held_out = [
            *data.dev,
            *(one for part, some in data.test.items() if part.split("/")[0] in languages for one in some),
        ]
        for language in languages:
            lines = read_sentences(self.text(language))
            if variant.lines:
                lines = lines[slice(*variant.lines)]
            kept, _ = without_evaluation_text(data.task, lines, held_out)
            sentences += _some(kept, count and count // len(languages))
        return sentences

    # The stages, in the paper's order.

    def trimmed(self) -> Path:
        folder = self.output / "trimmed"
        if not folder.exists():
            languages = (self.settings.source, *self.settings.targets)
            trim_vocabulary(
                e5_small_folder(), {language: self.text(language) for language in languages}, folder, verify=False
            )
        return folder

    def task_teacher(self) -> Path:
        folder = self.output / "teacher"
        if not folder.exists():
            data = self.learnt_from(self.settings.teacher_examples, [])
            self._fit(folder, self.trimmed(), data, self.settings.finetune, self.settings.teacher_seed)
        return folder

    def phase1_steps(self, length: float) -> int:
        steps = self.settings.phase1.training.steps
        assert steps is not None
        return round(length * steps)

    def phase1_folder(self, group: str, length: float) -> Path:
        return self.output / "phase1" / (group if length == 1 else f"{group}-{self.phase1_steps(length)}")

    def phase1(self, group: str, length: float = 1.0) -> Path:
        """Students of a group, distilled on text of the source and its targets, for so many times the study's steps."""
        folder = self.phase1_folder(group, length)
        if not (folder / "phase1.json").exists():
            settings = self.settings.phase1
            settings = replace(settings, training=replace(settings.training, steps=self.phase1_steps(length)))
            work = self.output / "work" / f"phase1-{folder.name}"
            languages = (self.settings.source, *self.settings.groups[group])
            distill_general(
                self.trimmed(), self.students, {language: self.text(language) for language in languages}, folder,
                settings=settings, seed=0, work=work, label=f"{self.settings.name}, phase 1, {folder.name}",
            )  # fmt: skip
            shutil.rmtree(work, ignore_errors=True)
        return folder

    def start(self, group: str, student: StudentSettings, variant: Variant) -> Path:
        if variant.phase1:
            return self.phase1(*variant.start(group)) / student.name
        folder = self.output / "copied" / student.name
        if not folder.exists():
            assert student.reduction is not None
            layers = list(range(student.reduction, 13, student.reduction))
            copy_student(self.trimmed(), layers, output=folder)
        return folder

    def row(self, group: str, student: StudentSettings, name: str, seed: int) -> None:
        """Train and score one student, unless its result is there."""
        variant = self.settings.variants[name]
        words = name.replace(",", "").replace(" ", "-")
        where = f"{group}/{student.name}-{words}-{seed}"
        if (self.output / "results" / f"{where}.json").exists():
            return
        phase2 = self.settings.phase2
        if variant.sparse is not None:
            phase2 = replace(phase2, sparse=variant.sparse)
        if variant.epochs is not None:
            phase2 = replace(phase2, training=replace(phase2.training, epochs=variant.epochs))
        settings: FinetuneSettings = phase2 if variant.target_text else without_target_text(phase2)
        if not variant.teacher:
            settings = FinetuneSettings(sparse=settings.sparse, training=settings.training)
        folder = self.output / "models" / where
        training = self._fit(
            folder,
            self.start(group, student, variant),
            self.learnt_from(
                self.settings.student_examples, self.target_text(group, variant) if variant.target_text else []
            ),
            settings,
            seed,
            self.task_teacher() if variant.teacher else None,
        )
        self.score(where, folder, group=group, student=student.name, variant=name, seed=seed, training=training)
        shutil.rmtree(folder)

    def _fit(
        self, folder: Path, start: Path, data: TaskData, settings: FinetuneSettings, seed: int,
        teacher: Path | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        name = str(folder.relative_to(self.output))
        work = self.output / "work" / name.replace("/", "-")
        figures = fit_task(
            start, data, output=folder, teacher=teacher, settings=settings, max_length=self.task.max_length,
            work=work, seed=seed, label=f"{self.settings.name}, {name}", replace=True,
        )  # fmt: skip
        shutil.rmtree(work, ignore_errors=True)
        return figures

    def score(self, where: str, folder: Path, *, group: str, **about: Any) -> None:
        """Scores on the source's dev set and on the group's dev and test sets, and resampled scores."""
        file = self.output / "results" / f"{where}.json"
        if file.exists():
            return
        data = self.task_data
        targets = self.settings.groups.get(group, list(self.settings.targets))
        parts = {f"{self.settings.source}/dev": _some(data.dev, self.settings.dev_examples)}
        for part, examples in data.test.items():
            if part.split("/")[0] in targets:
                parts[part] = _some(examples, self.settings.test_examples)
        scores = {}
        for part, examples in parts.items():
            metrics, _, _ = score_examples(folder, data.task, examples, max_length=self.task.max_length)
            scores[part] = score_record(metrics, samples=0)
            # All models are resampled alike, so that the gap between two has a paired interval.
            resamples = self._resamples_file(where, part)
            resamples.parent.mkdir(parents=True, exist_ok=True)
            np.save(resamples, resampled(metrics, RESAMPLES))
        write_json(file, {"group": group, **about, "scores": scores})

    def teachers(self) -> None:
        """The task teacher with the trimmed and with the whole vocabulary."""
        trimmed = self.task_teacher()
        about: dict[str, Any] = {"student": "teacher", "seed": self.settings.teacher_seed}
        self.score("teacher/trimmed", trimmed, group="teacher", variant="trim only", **about)
        if not (self.output / "results/teacher/whole.json").exists():
            whole = self.output / "whole"
            kept = kept_ids(self.trimmed())
            restore_vocabulary(trimmed, base=Path(e5_small_folder()), kept=kept, output=whole, replace=True)
            self.score("teacher/whole", whole, group="teacher", variant="undistilled", **about)

    def chosen(self, groups: list[str] | None, variants: list[str] | None) -> Iterator[tuple[str, Variant, str]]:
        """Variants by name, with each of their groups."""
        for name, variant in self.settings.variants.items():
            for group in variant.groups:
                if (not variants or name in variants) and (not groups or group in groups):
                    yield name, variant, group

    def prepare(self, groups: list[str] | None, variants: list[str] | None) -> None:
        """What several rows share."""
        self.teachers()
        starts = {variant.start(group) for _, variant, group in self.chosen(groups, variants) if variant.phase1}
        for group, length in sorted(starts):
            self.phase1(group, length)

    def run(
        self, *, groups: list[str] | None, variants: list[str] | None, students: list[str] | None,
        seeds: list[int] | None,
    ) -> None:  # fmt: skip
        self.teachers()
        for name, variant, group in self.chosen(groups, variants):
            for student in self.students:
                if any(names and student.name not in names for names in (students, variant.students)):
                    continue
                for seed in variant.seeds or self.settings.seeds:
                    if not seeds or seed in seeds:
                        self.row(group, student, name, seed)

    def speed(self) -> None:
        """Cost of every model: parameters, bytes, FLOPs, and speed at batch 1 (weights do not change it)."""
        data, folders = self.task_data, {"undistilled": self.output / "whole", "trim only": self.task_teacher()}
        tokenizer = load_tokenizer(str(self.trimmed()))
        for student in self.students:
            folders[student.name] = self.output / "speed" / student.name
            start = self.start(next(iter(self.settings.groups)), student, Variant())
            with whole_folder(folders[student.name], replace=True) as folder:
                data.task.build_model(start, data.labels).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        texts = [data.task.text_of(example) for example in next(iter(data.test.values()))]
        rows = benchmark(folders, texts=texts, max_length=self.task.max_length, progress=print)
        write_json(self.output / "speed.json", speed_record(rows, texts=next(iter(data.test))), replace=True)

    # The tables.

    def table(self) -> dict[str, Any]:
        """Per group and row: test scores, mean over targets, and the gap to the trimmed teacher with its interval."""
        folder = self.output / "results"
        found = [
            read_json(file) | {"where": str(file.relative_to(folder).with_suffix(""))}
            for file in sorted(folder.glob("*/*.json"))
        ]
        rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for result in found:
            rows.setdefault((result["group"], result["student"], result["variant"]), []).append(result)
        order = ["undistilled", "trim only", *self.settings.variants]

        def place(row: tuple[str, str, str]) -> tuple[bool, str, int]:
            return row[1] != "teacher", row[1], order.index(row[2])

        table = []
        for group, targets in self.settings.groups.items():
            print(f"\n{self.settings.name}: {group}\n")
            print(f"| model | source dev | {' | '.join(targets)} | mean | gap to the teacher | seeds |")
            print("| --- |" + " --- |" * (len(targets) + 4))
            for owner, student, variant in sorted(rows, key=place):
                results = rows[owner, student, variant]
                if owner not in (group, "teacher"):
                    continue
                row = self._row(group, student, variant, results)
                table.append(row)
                cells = [_spread(row["scores"][part]) for part in (f"{self.settings.source}/dev", *row["parts"])]
                gap, (low, high) = row["gap"], row["interval"]
                print(f"| {student}, {variant} | {' | '.join(cells)} | {_spread(row['means'])} | "
                      f"{gap:+.1f} [{low:+.1f}, {high:+.1f}] | {len(results)} |")  # fmt: skip
        speed = self.output / "speed.json"
        phase1 = {file.parent.name: read_json(file) for file in sorted(self.output.glob("phase1/*/phase1.json"))}
        return {
            "study": self.settings.name,
            "metric": found[0]["scores"][f"{self.settings.source}/dev"]["metric"] if found else None,
            "rows": table,
            "phase1": {
                name: {
                    "tokens": score_record["tokens"],
                    "held_out": {student: own["held_out"] for student, own in score_record["students"].items()},
                }
                for name, score_record in phase1.items()
            },
            # Where the models were is nobody's business.
            "speed": [
                {name: value for name, value in row.items() if name != "folder"} for row in read_json(speed)["models"]
            ]
            if speed.exists()
            else [],
        }

    def _row(self, group: str, student: str, variant: str, results: list[dict[str, Any]]) -> dict[str, Any]:
        """One line: mean over seeds; the gap's interval resamples each test set, the same way for both models."""
        parts = [f"{target}/test" for target in self.settings.groups[group]]
        scores = {
            part: [result["scores"][part]["score"] for result in results]
            for part in results[0]["scores"]
            if part.partition("/")[0] in (self.settings.source, *self.settings.groups[group])
        }
        gaps = []
        for part in parts:
            teacher = self._resamples("teacher/trimmed", part)
            own = [self._resamples(result["where"], part) - teacher for result in results]
            gaps.append(np.mean(own, axis=0))
        low, high = np.percentile(np.mean(gaps, axis=0), [2.5, 97.5])
        whole = read_json(self.output / "results/teacher/trimmed.json")["scores"]
        return {
            "group": group,
            "student": student,
            "variant": variant,
            "parts": parts,
            "scores": scores,
            "phase1_tokens": self._phase1_tokens(group, student, variant),
            "means": [mean(result["scores"][part]["score"] for part in parts) for result in results],
            "gap": mean(mean(scores[part]) - whole[part]["score"] for part in parts),
            "interval": [float(low), float(high)],
            "other": {
                part: {name: mean(r["scores"][part]["scores"][name] for r in results) for name in first["scores"]}
                for part, first in results[0]["scores"].items()
                if part in parts
            },
        }

    def _phase1_tokens(self, group: str, student: str, name: str) -> int | None:
        """Tokens that the student saw in phase 1; none for teachers."""
        if student == "teacher":
            return None
        variant = self.settings.variants[name]
        if not variant.phase1:
            return 0
        folder = self.phase1_folder(*variant.start(group))
        return int(read_json(folder / "phase1.json")["tokens"])

    def _resamples(self, where: str, part: str) -> np.ndarray:
        """(RESAMPLES,) scores of a result on resampled examples."""
        return np.load(self._resamples_file(where, part))

    def _resamples_file(self, where: str, part: str) -> Path:
        return self.output / "resamples" / where / f"{part.replace('/', '-')}.npy"


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    for name, kind in (("group", str), ("variant", str), ("student", str), ("seed", int)):
        parser.add_argument(f"--{name}", action="append", type=kind, help="only this one; may be repeated")
    parser.add_argument("--prepare", action="store_true", help="only the task teacher and phase 1")
    parser.add_argument("--speed", action="store_true", help="only measure cost per model")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    study = Study(options.study, options.data, options.output)
    if options.prepare:
        study.prepare(options.group, options.variant)
    elif options.speed:
        study.speed()
    elif not options.table:
        study.run(groups=options.group, variants=options.variant, students=options.student, seeds=options.seed)
    if not (options.prepare or options.speed):
        print(json.dumps(study.table()))


if __name__ == "__main__":
    main()
