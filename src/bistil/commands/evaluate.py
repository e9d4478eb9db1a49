"""`bistil evaluate`: a task model on a labelled file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bistil.commands.options import DEVICE, TASK_KIND, Table, takes
from bistil.errors import printable
from bistil.settings.recipe import TaskSettings, parse

READING = ("max_length", "label_map", "columns", "language", "scheme", "separator", "strict")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    @takes(values=Table(TaskSettings, only=READING))
    def evaluate(
        model: Annotated[Path, typer.Option(help="Folder of a task model.")],
        file: Annotated[list[Path], typer.Option(help="Labelled file; give it again for several.")],
        task: Annotated[str | None, TASK_KIND] = None,
        predictions: Annotated[
            Path | None, typer.Option(help="Write predictions here, in the format of the file.")
        ] = None,
        record: Annotated[Path | None, typer.Option(help="Write all figures here, as JSON.")] = None,
        batch_size: Annotated[int, typer.Option(help="Windows per forward pass.", min=1)] = 32,
        bootstrap: Annotated[int, typer.Option(help="Resamples for the 95% interval; 0: none.", min=0)] = 1000,
        seed: Annotated[int, typer.Option(help="Seed of the resamples.", min=0)] = 0,
        device: Annotated[str | None, DEVICE] = None,
        force: Annotated[
            bool,
            typer.Option("--force", help="Replace the record of an earlier evaluation, and the predictions it lists."),
        ] = False,
        *,
        values: dict[str, Any],
    ) -> None:
        """Score a task model on labelled files.

        Example:
        bistil evaluate --model runs/ner-en-sw/students/lrf2 --file test.sw.conll
        """
        if task is None:
            from bistil.models.loading import read_config
            from bistil.tasks import kind_of

            task = kind_of(read_config(model), str(model))
        # Nothing is learnt: of the settings only how files are read counts.
        settings = parse(TaskSettings, {**values, "kind": task, "train": list(map(str, file))}, "bistil evaluate")
        from bistil.measuring.evaluation import evaluate_folder as run
        from bistil.tasks.reading import Reading

        how = {name: getattr(settings, name) for name in ("columns", "language", "scheme", "separator", "strict")}

        result = run(
            model,
            task=settings.kind,
            files=file,
            batch_size=batch_size,
            max_length=settings.max_length,
            label_map=settings.label_map,
            how=Reading(**how),
            bootstrap_samples=bootstrap,
            seed=seed,
            predictions=predictions,
            record_file=record,
            replace=force,
            device=device,
        )
        interval = result.get("interval")
        span = f" (95% interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        typer.echo(f"{result['metric']} {result['score']:.2f}{span}, {result['examples']} examples")
        for name, value in result["scores"].items():
            typer.echo(f"  {printable(name):<24} {value:6.2f}")
