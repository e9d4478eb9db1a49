"""What phase 1 leaves: its report, and each student as a model folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bistil.distillation.corpus import Corpus, Figures
from bistil.distillation.student import alignment
from bistil.models.complete import Origin
from bistil.models.sentences import SentenceForm
from bistil.models.writing import write_model
from bistil.runtime.artefacts import folder_digest, whole_folder, write_json
from bistil.settings.recipe import Phase1Settings, StudentSettings, to_dict
from bistil.training.loop import TENSORBOARD, TrainingResult

# In the record of students: by it the same call knows them as its own.
CALL = "call"

SENTENCES = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer({folder})
vectors = model.encode(["a sentence of yours", "another one"])"""


def phase1_report(
    students: list[StudentSettings],
    layers: Mapping[str, list[int]],
    corpus: Corpus,
    result: TrainingResult,
    *,
    start: Figures,
    end: Figures,
) -> dict[str, Any]:
    """What `phase1.json` holds: per student layers, alignment, held-out losses at start and end; tokens, rate."""

    def of(figures: Figures, name: str) -> Figures:
        return {key.removeprefix(f"{name}/"): value for key, value in figures.items() if key.startswith(f"{name}/")}

    return {
        "students": {
            student.name: {
                "start": student.start,
                "alignment": alignment(layers[student.name]),
                "held_out": {"start": of(start, student.name), "end": of(end, student.name)},
                "best_step": result.best_parts.get(f"students.{student.name}.", {}).get("step"),
            }
            for student in students
        },
        "steps": result.steps,
        "device": result.device,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(result.tokens / result.seconds, 1) if result.seconds else None,
        "precision": result.precision,
        "blocks": {
            language: {"training": len(part), "held_out": len(corpus.held_out[language])}
            for language, part in corpus.training.items()
        },
        "history": result.history,
    }


def student_made(
    student: StudentSettings,
    settings: Phase1Settings,
    report: Mapping[str, Any],
    *,
    parent: str,
    sentences: SentenceForm | None = None,
) -> Origin:
    """What is known of a student: record and card.

    Args:
        report: see `phase1_report`.
        parent: name of the teacher.
        sentences: how it makes vectors of texts, if it does; the student then does so too.
    """
    own = report["students"][student.name]
    languages = list(report["blocks"])
    record = {
        "kind": "bilingual student (phase 1)",
        "student": to_dict(student),
        "settings": to_dict(settings),
        "metrics": own,
        "masked_lm": report.get("held_out_masked_lm", {}).get(student.name),
        "parents": {"teacher": {"name": Path(parent).name}},
    }
    card: dict[str, Any] = {
        "title": f"{student.name}: a bilingual student ({', '.join(languages)})",
        "summary": "A small encoder of two languages, to be fine-tuned on labels in one and used in the other.",
        "languages": languages,
        "made": [
            f"general bilingual distillation (phase 1) from `{Path(parent).name}`, over {report['tokens']:,} tokens of "
            "text",
            f"teacher layers {own['alignment']['layers']}, {own['start']} start",
        ],
    }
    if sentences is not None:
        card |= {"pipeline_tag": "sentence-similarity", "usage": SENTENCES}
    return Origin(record=record, card=card, facts={} if sentences is None else {"sentences": sentences})


def write_students(
    output: Path,
    students: Mapping[str, Any],
    report: Mapping[str, Any],
    *,
    teacher: Path,
    training: Path,
    replace: bool,
    call: str,
) -> None:
    """Write a folder with every student, `phase1.json` and what was logged, whole or not at all.

    Args:
        students: models by name, with what is known of them (`models.complete`).
        report: see `phase1_report`.
        teacher: the folder that they were distilled from.
        training: the work folder of the training.
        replace: a folder of ours gives way.
        call: digest of all that the students depend on.

    Raises:
        InputError: the folder may not be written (`runtime.artefacts.claim`).
    """
    parents = {"teacher": {"name": teacher.name, "digest": folder_digest(teacher)}}
    with whole_folder(output, replace=replace, record={"kind": "bilingual students (phase 1)", CALL: call}) as whole:
        for name, model in students.items():
            record = {**model.bistil.record, "parents": parents}
            sentences = model.bistil.facts.get("sentences")
            write_model(
                whole / name, model, model.tokenizer, record=record, parent=teacher, sentences=sentences,
                **model.bistil.card,
            )  # fmt: skip
        log, board = training / "train_log.jsonl", training / TENSORBOARD
        if log.exists():
            shutil.copyfile(log, whole / log.name)
        if board.exists():
            shutil.copytree(board, whole / TENSORBOARD)
        write_json(whole / "phase1.json", report)
