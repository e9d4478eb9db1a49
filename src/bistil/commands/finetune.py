"""`bistil finetune`: a task teacher, or a student for a task, with or without that teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from bistil.commands.options import FORCE, SEED, TRUST, Table, pairs, takes
from bistil.errors import InputError
from bistil.settings.recipe import (
    FinetuneSettings,
    Phase2Settings,
    Recipe,
    TaskSettings,
    help_of,
    parse,
    task_preset,
)
from bistil.settings.trust import require_trust

FILES = ("train", "sources", "dev", "test")
WHERE = "bistil finetune"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    @takes(
        data=Table(TaskSettings, without=FILES),
        run=Table(Recipe, only=("language_sfts", "force_sfts")),
        values=Table(Phase2Settings, without=("teacher_forced", "teachers"), assignable=True),
    )
    def finetune(
        model: str = typer.Option(..., "--model", "-m", help="Where to start: a folder, a hub name, or e5-small."),
        train: list[str] = typer.Option(
            ..., help="Labelled files or data sets; LANGUAGE=FILE with --language-sft (repeat for several)."
        ),
        output: Path = typer.Option(..., "--output", "-o", help="New folder for the fine-tuned model."),
        dev: list[str] = typer.Option([], help=help_of(TaskSettings, "dev").split(",")[0]),
        test: list[str] = typer.Option([], help="Test files: what stands in them is not learnt from. Nothing else."),
        teacher: list[Path] = typer.Option(
            [], help="Folder of the task teacher to learn from (phase 2, TF); repeat for the mean of several's logits."
        ),
        text: list[Path] = typer.Option([], help="With --teacher: plain target text to learn from too."),
        sft: Path | None = typer.Option(None, help="Also keep the sparse fine-tuning by itself, in this new folder."),
        seed: int = SEED,
        force: bool = FORCE,
        trust_code: bool = TRUST,
        *,
        data: dict[str, Any],
        run: dict[str, Any],
        values: dict[str, Any],
    ) -> None:
        """Fine-tune a model for a task: the task teacher, or (with --teacher) a student.

        The same command goes on where an earlier one stopped.

        Example, the task teacher:
        bistil finetune --model trimmed --task token-classification --train train.txt --dev dev.txt -o teacher

        Example, a student that learns from it (phase 2):
        bistil finetune --model phase1/lrf2 --teacher teacher --text news.sw.txt
        --task token-classification --train train.txt --dev dev.txt --test test.sw.txt -o student

        Example, several source languages, each batch in one of them and wearing its SFT (multi-source training):
        bistil finetune --model e5-small --task token-classification --train en=train.txt --train sw=train.sw.txt
        --language-sft en=sfts/en --language-sft sw=sfts/sw --dev dev.txt --sft sfts/ner -o tagger
        """
        sfts: dict[str, str] = run.get("language_sfts", {})
        if sfts and teacher:
            raise InputError("language SFTs are worn in sparse fine-tuning from labels: leave out the teacher")
        sources: dict[str, list[str]] = {}
        for language, file in pairs(train, "--train", "LANGUAGE=FILE") if sfts else ():
            sources.setdefault(language, []).append(file)
        task, settings = _settings(
            {
                **data,
                **({"sources": sources} if sources else {"train": train}),
                "dev": dev,
                # Of no language in particular.
                "test": {"": test} if test else {},
            },
            values,
            teacher=bool(teacher),
            text=bool(text),
        )
        require_trust(settings, trust_code=trust_code, where="bistil finetune")
        from bistil.distillation.task import Fitting
        from bistil.distillation.task_data import read_task_data
        from bistil.distillation.task_folders import TaskOutputs, write_task_student, write_task_teacher
        from bistil.models.names import model_folder
        from bistil.runtime.artefacts import claim, work_for
        from bistil.tasks.hub import source_of
        from bistil.text.lines import read_sentences

        with work_for(output) as work:
            labelled = [*(task.train or (file for files in sources.values() for file in files)), *dev, *test]
            read: list[str | Path] = [model, *teacher, *text, *map(source_of, labelled), *sfts.values()]
            claim(folders=[output, sft], work=work, inputs=read, force=force)
            examples = read_task_data(
                task, target_sentences=read_sentences(text) if text else None, sources=sources or None
            )
            how = Fitting(
                data=examples,
                settings=settings,
                max_length=task.max_length,
                seed=seed,
                folder=work,
                label=f"fine-tuning {output.name}",
                languages=list(sources),
            )
            outputs, start = TaskOutputs(model=output, sft=sft, replace=force), model_folder(model)
            if teacher:
                write_task_student(start, teacher, how, outputs)
            else:
                write_task_teacher(start, how, outputs, language_sfts=sfts, force_sfts=run.get("force_sfts", False))


def _settings(
    data: Mapping[str, Any], values: dict[str, Any], *, teacher: bool, text: bool
) -> tuple[TaskSettings, FinetuneSettings]:
    """The settings of the task and of the stage, over the preset's.

    Args:
        data, values: plain values of the task and of the stage.
        teacher, text: whether there is a task teacher, and target text to learn from.

    Raises:
        InputError: settings that nothing would come of, or that the settings classes refuse.
    """
    task = parse(TaskSettings, dict(data), WHERE)
    preset = None if task.preset is None else task_preset(task.preset, task.kind)
    if preset is not None:
        task = parse(TaskSettings, {"max_length": preset.max_length, **data}, WHERE)
    if not teacher:
        for name in Phase2Settings.FROM_TEACHER:
            if values.get(name):
                raise InputError(f"{name} is learnt from through a task teacher: give --teacher too")
        if text:
            raise InputError("--text is learnt from through a teacher: give --teacher too")
    elif not text:
        if values.get("target_text") or values.get("target_sentences"):
            raise InputError("--target-text and --target-sentences need text of the target language: give --text too")
        values = {**values, "target_text": 0.0}
    else:
        # Whoever gives text wants it learnt from, whatever the preset.
        values = {"target_text": 1.0, **values}
    stage: type[FinetuneSettings] = Phase2Settings if teacher else FinetuneSettings
    base = stage() if preset is None else preset.phase2 if teacher else preset.finetune
    if base.sparse is None and set(values.get("sparse") or ()) == {"dense_epochs"}:
        raise InputError(
            f"--dense-epochs is of a sparse fine-tuning, and the preset {task.preset} is dense: give --epochs, or "
            "--sparse-epochs too"
        )
    return task, parse(stage, values, WHERE, base=base)
