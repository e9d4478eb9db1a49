"""Zero-shot transfer on real benchmarks: the paper's comparison for one task and several target languages.

    python benchmarks/transfer.py benchmarks/transfer/ner.toml --data DATA --output runs/ner
    python benchmarks/transfer.py benchmarks/transfer/ner.toml --data DATA --output runs/ner --table

The study's file names languages, budgets and variants; the teacher is e5-small. One vocabulary, trimmed to all of the
study's languages, serves all models, so that one task teacher per seed serves all targets. Phase 1 is bilingual: one
run per target, all students from one teacher pass. Every row of a target trains for the same number of steps. Each
result is a file of its own in OUTPUT/results: the same command goes on where it stopped, and `--only` restricts it to
some targets. `--table` prints what is there, and its last line is one JSON object.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from bistil.artefacts import read_json, write_json
from bistil.corpora import read_sentences
from bistil.distillation.general import distill_general
from bistil.distillation.task import TaskData, fit_task, read_task_data
from bistil.evaluation import record, score_examples
from bistil.pipeline import without_target_text
from bistil.pretrained import e5_small_folder
from bistil.recipe import (
    FinetuneSettings,
    Phase1Settings,
    Phase2Settings,
    StudentSettings,
    TaskSettings,
    load_toml,
    parse,
)
from bistil.student import copy_student
from bistil.vocabulary import trim_vocabulary

# How each row of the table is trained; `target`: batches of unlabelled target text per labelled batch.
VARIANTS = {
    "self-taught": {"teacher": False, "target": False, "phase1": True},
    "teacher-forced": {"teacher": True, "target": False, "phase1": True},
    "teacher-forced, target text": {"teacher": True, "target": True, "phase1": True},
    "copied, teacher-forced": {"teacher": True, "target": False, "phase1": False},
}


class Study:
    """One task: its files, settings and results."""

    def __init__(self, file: Path, data: Path, output: Path) -> None:
        self.settings, self.data, self.output = load_toml(file), data, output
        where = str(file)
        self.source = self.settings["source"]
        self.targets = self.settings["targets"]
        self.phase1 = parse(Phase1Settings, self.settings["phase1"], f"{where}: phase1")
        self.finetune = parse(FinetuneSettings, self.settings["finetune"], f"{where}: finetune")
        self.phase2 = parse(Phase2Settings, self.settings["phase2"], f"{where}: phase2")
        self.task_table = parse(TaskSettings, self.located(self.settings["task"]), f"{where}: task")
        self.students = [
            StudentSettings(name=f"lrf{factor}", reduction=factor) for factor in self.settings["reductions"]
        ]
        self._read: dict[str, TaskData] = {}

    def located(self, task: dict) -> dict:
        """The task's table with whole paths."""
        return {
            key: [str(self.data / file) for file in value] if key in ("train", "dev") else value
            for key, value in task.items()
        }

    def texts(self, *languages: str) -> dict[str, list[Path]]:
        """Plain text per language."""
        return {language: [self.data / "text" / f"{language}.txt"] for language in languages}

    def task_data(self, *targets: str) -> TaskData:
        """Labelled source examples, less those that a test set repeats; the targets' test sets and the first's text."""
        name = "+".join(targets)
        if name not in self._read:
            tests = {
                f"{target}/{part}": [str(self.data / self.targets[target][part])]
                for target in targets
                for part in ("dev", "test")
                if part in self.targets[target]
            }
            sentences = read_sentences(self.texts(targets[0])[targets[0]])
            found = read_task_data(replace(self.task_table, test=tests), target_sentences=sentences)
            found.dev = found.dev[: self.settings.get("dev_examples")]
            self._read[name] = found
        return self._read[name]

    def less_data(self, target: str) -> TaskData:
        """What the students learn from: as many labelled examples and target sentences as the study's budget allows."""
        found = self.task_data(target)
        generator = np.random.default_rng(0)

        def some(items: list, name: str) -> list:
            count = min(self.settings.get(name, len(items)), len(items))
            return [items[i] for i in np.sort(generator.choice(len(items), count, replace=False))]

        return replace(
            found,
            train=some(found.train, "student_examples"),
            target_sentences=some(found.target_sentences, "target_sentences"),
        )

    # The stages, in the paper's order.

    def trimmed(self) -> Path:
        folder = self.output / "trimmed"
        if not folder.exists():
            trim_vocabulary(e5_small_folder(), self.texts(self.source, *self.targets), folder, verify=False)
        return folder

    def students_of(self, target: str) -> Path:
        """Phase 1 of the pair, and the copies that the students start from."""
        folder = self.output / "phase1" / target
        if not (folder / "phase1.json").exists():
            distill_general(
                self.trimmed(),
                self.students,
                self.texts(self.source, target),
                folder,
                settings=self.phase1,
                seed=0,
                work=self.output / "work" / f"phase1-{target}",
                label=f"phase 1, {target}",
            )
            shutil.rmtree(self.output / "work" / f"phase1-{target}", ignore_errors=True)
        return folder

    def copies(self) -> Path:
        folder = self.output / "copied"
        for student in self.students:
            if not (folder / student.name).exists():
                layers = list(range(student.reduction, 13, student.reduction))
                copy_student(self.trimmed(), layers, output=folder / student.name)
        return folder

    def fit(
        self,
        name: str,
        start: Path,
        target: str | None,
        settings: FinetuneSettings,
        seed: int,
        teacher: Path | None = None,
    ) -> Path:
        """A fine-tuned model; without a target it is the task teacher, which learns from all labelled examples."""
        folder = self.output / "models" / name
        if not folder.exists():
            work = self.output / "work" / name.replace("/", "-")
            figures = fit_task(
                start,
                self.less_data(target) if target else self.task_data(*self.targets),
                output=folder,
                teacher=teacher,
                settings=settings,
                max_length=self.task_table.max_length,
                work=work,
                seed=seed,
                label=name,
            )
            write_json(self.output / "models" / f"{name}.figures.json", figures)
            shutil.rmtree(work, ignore_errors=True)
        return folder

    def task_teacher(self, seed: int) -> Path:
        return self.fit(f"teacher-{seed}", self.trimmed(), None, self.finetune, seed)

    def row(self, target: str, student: str, variant: str, seed: int) -> None:
        """Train and score one row, unless its result is there."""
        name = f"{target}/{student}-{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
        if (self.output / "results" / f"{name}.json").exists():
            return
        how = VARIANTS[variant]
        start = (self.students_of(target) if how["phase1"] else self.copies()) / student
        # Without target text labelled batches take its place: the same number of steps.
        settings = self.phase2 if how["target"] else without_target_text(self.phase2)
        if not how["teacher"]:
            settings = FinetuneSettings(sparse=settings.sparse, training=settings.training)
        teacher = self.task_teacher(seed) if how["teacher"] else None
        folder = self.fit(name, start, target, settings, seed, teacher)
        self.score(name, folder, target, student, variant, seed)
        shutil.rmtree(folder)

    def score(self, name: str, folder: Path, target: str, student: str, variant: str, seed: int) -> None:
        """Every figure of one model: the source's dev set, and the target's dev and test sets."""
        file = self.output / "results" / f"{name}.json"
        if file.exists():
            return
        data = self.task_data(target)
        figures = {}
        for part, examples in {f"{self.source}/dev": data.dev, **data.test}.items():
            metrics, _, _ = score_examples(folder, data.task, examples, max_length=self.task_table.max_length)
            figures[part] = record(metrics)
        trained = read_json(self.output / "models" / f"{folder.relative_to(self.output / 'models')}.figures.json")
        write_json(
            file,
            {"target": target, "student": student, "variant": variant, "seed": seed, "scores": figures,
             "training": trained},
        )  # fmt: skip

    def run(self, only: list[str], variants: list[str], seeds: list[int]) -> None:
        for seed in seeds:
            for target in only:
                teacher = self.task_teacher(seed)
                self.score(f"{target}/teacher-{seed}", teacher, target, "teacher", "trimmed", seed)
                for student in self.students:
                    for variant in variants:
                        self.row(target, student.name, variant, seed)

    def table(self) -> None:
        """Mean over seeds per row and target, the gap to the teacher of the same seed, and the last line as JSON."""
        results = [read_json(file) for file in sorted(self.output.glob("results/*/*.json"))]
        rows: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
        teachers = {(r["target"], r["seed"]): r for r in results if r["student"] == "teacher"}
        for result in results:
            part = f"{result['target']}/test"
            score = result["scores"][part]["score"]
            gap = score - teachers[result["target"], result["seed"]]["scores"][part]["score"]
            key = (result["student"], result["variant"])
            rows.setdefault(key, {}).setdefault(result["target"], []).append((score, gap))
        print(f"| model | {' | '.join(self.targets)} | mean gap | seeds |")
        print("| --- |" + " --- |" * (len(self.targets) + 2))
        for (student, variant), found in sorted(rows.items(), key=lambda item: (item[0][0] != "teacher", item[0])):
            cells = [f"{mean(s for s, _ in found[t]):.1f}" if t in found else "" for t in self.targets]
            gaps = mean(mean(g for _, g in values) for values in found.values())
            seeds = "/".join(str(len(found.get(t, []))) for t in self.targets)
            print(f"| {student}, {variant} | {' | '.join(cells)} | {gaps:+.1f} | {seeds} |")
        print(json.dumps({"study": self.settings["name"], "results": len(results)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a target; default: all")
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="default: those of the study")
    parser.add_argument("--seed", action="append", type=int, help="default: those of the study")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    study = Study(options.study, options.data, options.output)
    if options.table:
        study.table()
        return
    study.run(
        options.only or list(study.targets),
        options.variant or study.settings["variants"],
        options.seed or study.settings["seeds"],
    )


if __name__ == "__main__":
    main()
