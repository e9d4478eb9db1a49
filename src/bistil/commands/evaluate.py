"""`bistil evaluate`: a task model on a labelled file."""

from pathlib import Path
from typing import Annotated

import typer

from bistil.errors import InputError
from bistil.settings.recipe import TaskSettings, help_of


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
        column: Annotated[
            list[str] | None, typer.Option(help="NAME=COLUMN: " + help_of(TaskSettings, "columns") + "; repeatable.")
        ] = None,
        language: Annotated[
            str | None, typer.Option(help="Rows of this language in files that are in several; all: all rows.")
        ] = None,
        scheme: Annotated[str | None, typer.Option(help=help_of(TaskSettings, "scheme"))] = None,
        strict: Annotated[bool, typer.Option("--strict", help=help_of(TaskSettings, "strict"))] = False,
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
        from bistil.measuring.evaluation import evaluate as run
        from bistil.tasks.reading import Reading

        result = run(
            model,
            task=task,
            files=file,
            batch_size=batch_size,
            max_length=max_length,
            label_map=parse_label_map(label_map or []),
            how=Reading(columns=parse_columns(column or []), language=language, scheme=scheme, strict=strict),
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


def parse_columns(pairs: list[str]) -> dict[str, str]:
    """`["pair=hypo", "ignore=a", "ignore=b"]` as `{"pair": "hypo", "ignore": "a,b"}`.

    Raises:
        InputError: an entry is not NAME=COLUMN, or one name is given twice.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        name, separator, column = pair.partition("=")
        if not separator or not name or not column:
            raise InputError(f"--column {pair!r} is not of the form NAME=COLUMN, such as pair=hypothesis or tags=3")
        if name in columns and name != "ignore":
            raise InputError(f"--column {name}= is given twice: {columns[name]} and {column}")
        columns[name] = f"{columns[name]},{column}" if name in columns else column
    return columns
