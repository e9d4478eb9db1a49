"""`bistil finetune`: a task teacher, or a student for a task, with or without that teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bistil.settings.recipe import Phase2Settings, SparseSettings, TaskSettings, TrainingSettings, help_of

if TYPE_CHECKING:
    from bistil.settings.recipe import FinetuneSettings


def register(app: typer.Typer) -> None:
    @app.command()
    def finetune(
        model: str = typer.Option(..., "--model", "-m", help="Where to start: a folder, a hub name, or e5-small."),
        task: str = typer.Option(
            ...,
            help="Which task: token-classification, dependency-parsing, sequence-classification, question-answering.",
        ),
        train: list[str] = typer.Option(
            ..., help=help_of(TaskSettings, "train") + "; LANGUAGE=FILE with --language-sft (repeat for several)"
        ),
        output: Path = typer.Option(..., "--output", "-o", help="New folder for the fine-tuned model."),
        dev: list[str] = typer.Option([], help=help_of(TaskSettings, "dev")),
        test: list[str] = typer.Option([], help="Test files: what stands in them is not learnt from. Nothing else."),
        teacher: Path | None = typer.Option(None, help="Folder of the task teacher to learn from (phase 2, TF)."),
        text: list[Path] = typer.Option([], help="With --teacher: plain target text to learn from too."),
        target_text: float | None = typer.Option(
            None, help="With --text: " + help_of(Phase2Settings, "target_text").split(";")[0] + " (1 if not given)"
        ),
        target_sentences: int | None = typer.Option(
            None, help="With --text: " + help_of(Phase2Settings, "target_sentences")
        ),
        sft: Path | None = typer.Option(None, help="Also keep the sparse fine-tuning by itself, in this new folder."),
        preset: str | None = typer.Option(
            None, help="paper: the paper's settings for this task; short: for two CPU cores. Options given win."
        ),
        language_sft: list[str] = typer.Option(
            [], help="LANGUAGE=SFT (folder or hub name) that the model wears in that language's batches; repeatable."
        ),
        force_sfts: bool = typer.Option(False, "--force-sfts", help="Wear SFTs that were made for another base too."),
        force: bool = typer.Option(False, "--force", help="Replace the output folders if bistil made them."),
        dense: bool = typer.Option(False, "--dense", help="Train all parameters instead of a sparse fine-tuning."),
        density: float | None = typer.Option(None, help=help_of(SparseSettings, "density")),
        dense_epochs: float | None = typer.Option(
            None, help=help_of(SparseSettings, "dense_epochs") + "; with --dense, of the whole training"
        ),
        sparse_epochs: float | None = typer.Option(None, help=help_of(SparseSettings, "sparse_epochs")),
        learning_rate: float | None = typer.Option(None, help=help_of(TrainingSettings, "learning_rate")),
        batch_size: int | None = typer.Option(None, help=help_of(TrainingSettings, "batch_size")),
        evaluate_steps: int | None = typer.Option(None, help=help_of(TrainingSettings, "evaluate_steps")),
        max_length: int | None = typer.Option(None, help=help_of(TaskSettings, "max_length")),
        label_map: list[str] = typer.Option([], help="Rename a label on reading, such as B-DATE=O; may be repeated."),
        column: list[str] = typer.Option([], help="NAME=COLUMN: " + help_of(TaskSettings, "columns") + "; repeatable."),
        language: str | None = typer.Option(
            None, help="Rows of this language in files that are in several; all: all rows."
        ),
        scheme: str | None = typer.Option(None, help=help_of(TaskSettings, "scheme")),
        strict: bool = typer.Option(False, "--strict", help=help_of(TaskSettings, "strict")),
        parser_projection: int | None = typer.Option(None, help=help_of(TaskSettings, "parser_projection")),
        seed: int = typer.Option(0, help="Seed of the head, the order and dropout."),
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
        from dataclasses import replace

        from bistil.commands.distill import language_pairs
        from bistil.commands.evaluate import parse_columns, parse_label_map
        from bistil.distillation.task import fit_task, read_task_data
        from bistil.errors import InputError
        from bistil.models.names import model_folder
        from bistil.runtime.artefacts import claim, discard_work, work_beside
        from bistil.settings.recipe import FinetuneSettings, parse, task_preset
        from bistil.tasks.hub import source_of
        from bistil.text.lines import read_sentences
        from bistil.training.loop import processes

        work = work_beside(output)
        sfts = dict(language_pairs(language_sft, "--language-sft", "SFT"))
        if text and teacher is None:
            raise InputError("--text is learnt from through a teacher: give --teacher too")
        if not text and (target_text or target_sentences):
            raise InputError("--target-text and --target-sentences need text of the target language: give --text too")
        sources: dict[str, list[str]] = {}
        if language_sft:
            for language, file in language_pairs(train, "--train", "FILE"):
                sources.setdefault(language, []).append(file)
            train = [file for files in sources.values() for file in files]
        read = [model, teacher, *text, *map(source_of, [*train, *dev, *test]), *sfts.values()]
        claim(folders=[output, sft], work=work, inputs=read, force=force)
        where = "bistil finetune"
        data_settings = parse(
            TaskSettings,
            {
                "kind": task, "train": train, "dev": dev, "test": {"": test} if test else {}, "preset": preset,
                "label_map": parse_label_map(label_map), "parser_projection": parser_projection,
                "columns": parse_columns(column), "language": language, "scheme": scheme, "strict": strict,
            },
            where,
        )  # fmt: skip
        how: FinetuneSettings = FinetuneSettings()
        student: FinetuneSettings = Phase2Settings()
        if data_settings.preset is not None:
            chosen = task_preset(data_settings.preset, data_settings.kind)
            how, student = chosen.finetune, chosen.phase2
            data_settings = replace(data_settings, max_length=chosen.max_length)
        if max_length is not None:
            data_settings = replace(data_settings, max_length=max_length)
        base = student if teacher is not None else how
        given = _given(
            base,
            dense=dense,
            sparse={"density": density, "dense_epochs": dense_epochs, "sparse_epochs": sparse_epochs},
            training={"learning_rate": learning_rate, "batch_size": batch_size, "evaluate_steps": evaluate_steps},
        )
        if teacher is not None:
            ratio = 0.0 if not text else target_text if target_text is not None else 1.0
            given |= {"target_text": ratio, "target_sentences": target_sentences}
        settings = parse(type(base), given, where, base=base)
        data = read_task_data(
            data_settings, target_sentences=read_sentences(text) if text else None, sources=sources or None
        )
        fit_task(
            model_folder(model),
            data,
            output=output,
            sft_output=sft,
            teacher=teacher,
            settings=settings,
            max_length=data_settings.max_length,
            work=work,
            seed=seed,
            label=f"fine-tuning {output.name}",
            languages=list(sources),
            language_sfts=sfts,
            force_sfts=force_sfts,
            replace=force,
        )
        if not processes().is_main_process:
            return
        discard_work(work)


def _given(
    base: "FinetuneSettings", *, dense: bool, sparse: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """The options that were given, as tables of settings over `base`.

    In a dense fine-tuning, asked for or the preset's, --dense-epochs is the length of the whole training.

    Raises:
        InputError: --dense beside options of a sparse fine-tuning.
    """
    from bistil.errors import InputError

    sparse, training = ({k: v for k, v in table.items() if v is not None} for table in (sparse, training))
    only_sparse = sparse.keys() - {"dense_epochs"}
    if dense and only_sparse:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(only_sparse))
        raise InputError(f"--dense and {named} exclude each other: a dense fine-tuning has no mask")
    if dense or (base.sparse is None and not only_sparse):
        length = {"epochs": sparse["dense_epochs"]} if sparse else {}
        return {"sparse": False, "training": {**training, **length}}
    return {"sparse": sparse, "training": training}
