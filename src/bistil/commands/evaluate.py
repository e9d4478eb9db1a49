"""`bistil evaluate`: a task model on a labelled file."""

from pathlib import Path
from typing import Annotated

import typer

from bistil.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def evaluate(
        model: Annotated[Path, typer.Option(help="Folder of a task model.")],
        task: Annotated[
            str,
            typer.Option(
                help="sequence-classification, token-classification, dependency-parsing or question-answering."
            ),
        ],
        file: Annotated[list[Path], typer.Option(help="Labelled file; give it again for several.")],
        predictions: Annotated[
            Path | None, typer.Option(help="Write predictions here, in the format of the file.")
        ] = None,
        record: Annotated[Path | None, typer.Option(help="Write all figures here, as JSON.")] = None,
        label_map: Annotated[
            list[str] | None, typer.Option(help="Rename a label on reading, such as B-DATE=O; may be repeated.")
        ] = None,
        max_length: Annotated[int, typer.Option(help="Tokens per window.", min=4)] = 128,
        batch_size: Annotated[int, typer.Option(help="Windows per forward pass.", min=1)] = 32,
        bootstrap: Annotated[int, typer.Option(help="Resamples for the 95% interval; 0: none.", min=0)] = 1000,
        seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
        force: Annotated[
            bool,
            typer.Option("--force", help="Replace the record of an earlier evaluation, and the predictions it lists."),
        ] = False,
    ) -> None:
        """Score a task model on labelled files.

        Example:
        bistil evaluate --model runs/ner-en-sw/students/lrf2 --task token-classification --file test.sw.conll
        """
        from bistil.evaluation import evaluate as run

        result = run(
            model,
            task=task,
            files=file,
            batch_size=batch_size,
            max_length=max_length,
            label_map=parse_label_map(label_map or []),
            bootstrap_samples=bootstrap,
            seed=seed,
            predictions=predictions,
            record_file=record,
            replace=force,
        )
        interval = result.get("interval")
        span = f" (95% interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        typer.echo(f"{result['metric']} {result['score']:.2f}{span}, {result['examples']} examples")
        for name, value in result["scores"].items():
            typer.echo(f"  {name:<24} {value:6.2f}")


def parse_label_map(pairs: list[str]) -> dict[str, str]:
    """`["B-DATE=O"]` as `{"B-DATE": "O"}`.

    Raises:
        InputError: an entry is not OLD=NEW.
    """
    renames = {}
    for pair in pairs:
        old, separator, new = pair.partition("=")
        if not separator or not old or not new:
            raise InputError(f"--label-map {pair!r} is not of the form OLD=NEW, such as B-DATE=O")
        renames[old] = new
    return renames
