"""`bistil finetune`: a task teacher, or a student for a task, with or without that teacher."""

from pathlib import Path

import typer

from bistil.recipe import Phase2Settings, SparseSettings, TaskSettings, TrainingSettings, help_of


def register(app: typer.Typer) -> None:
    sparse, training = SparseSettings(), TrainingSettings()

    @app.command()
    def finetune(
        model: str = typer.Option(..., "--model", "-m", help="Where to start: a folder, a hub name, or e5-small."),
        task: str = typer.Option(..., help="; ".join(["Which task", "such as sequence-classification"])),
        train: list[Path] = typer.Option(..., help=help_of(TaskSettings, "train") + " (repeat for several)"),
        output: Path = typer.Option(..., "--output", "-o", help="Folder for the fine-tuned model; must not exist."),
        dev: list[Path] = typer.Option([], help=help_of(TaskSettings, "dev")),
        teacher: Path | None = typer.Option(None, help="Folder of the task teacher to learn from (phase 2, TF)."),
        text: list[Path] = typer.Option([], help="With --teacher: plain target text to learn from too."),
        sft: Path | None = typer.Option(None, help="Also keep the sparse fine-tuning by itself in this folder."),
        dense: bool = typer.Option(False, "--dense", help="Train all parameters instead of a sparse fine-tuning."),
        density: float = typer.Option(sparse.density, help=help_of(SparseSettings, "density")),
        dense_epochs: float = typer.Option(sparse.dense_epochs, help=help_of(SparseSettings, "dense_epochs")),
        sparse_epochs: float = typer.Option(sparse.sparse_epochs, help=help_of(SparseSettings, "sparse_epochs")),
        learning_rate: float = typer.Option(training.learning_rate, help=help_of(TrainingSettings, "learning_rate")),
        batch_size: int = typer.Option(training.batch_size, help=help_of(TrainingSettings, "batch_size")),
        max_length: int = typer.Option(128, help=help_of(TaskSettings, "max_length")),
        seed: int = typer.Option(0, help="Seed of the head, the order and dropout."),
    ) -> None:
        """Fine-tune a model for a task: the task teacher, or (with --teacher) a student.

        The same command goes on where an earlier one stopped.

        Example, the task teacher:
        bistil finetune --model trimmed --task token-classification --train train.txt --dev dev.txt -o teacher

        Example, a student that learns from it (phase 2):
        bistil finetune --model phase1/lrf2 --teacher teacher --text news.sw.txt
        --task token-classification --train train.txt --dev dev.txt -o student
        """
        import shutil

        from bistil.corpora import read_sentences
        from bistil.distillation.task import fit_task, read_task_data
        from bistil.errors import InputError
        from bistil.models import model_folder
        from bistil.recipe import FinetuneSettings, parse

        if output.exists():
            raise InputError(f"{output} already exists: name another output folder or remove it")
        if text and teacher is None:
            raise InputError("--text is learnt from through a teacher: give --teacher too")
        settings = parse(
            TaskSettings,
            {"kind": task, "train": [str(p) for p in train], "dev": [str(p) for p in dev], "max_length": max_length},
            "bistil finetune",
        )
        run = TrainingSettings(
            epochs=dense_epochs, learning_rate=learning_rate, batch_size=batch_size, checkpoint_steps=100
        )
        masked = None if dense else SparseSettings(
            density=density, dense_epochs=dense_epochs, sparse_epochs=sparse_epochs
        )  # fmt: skip
        how: FinetuneSettings = FinetuneSettings(sparse=masked, training=run)
        if teacher is not None:
            how = Phase2Settings(sparse=masked, training=run, target_text=1.0 if text else 0.0)
        data = read_task_data(settings, target_sentences=read_sentences(text))
        # Beside the output, so that the same command finds it again.
        work = output.with_name(f".{output.name}.work")
        fit_task(
            model_folder(model),
            data,
            output=output,
            sft_output=sft,
            teacher=teacher,
            settings=how,
            max_length=max_length,
            work=work,
            seed=seed,
            label=f"fine-tuning {output.name}",
        )
        shutil.rmtree(work, ignore_errors=True)
