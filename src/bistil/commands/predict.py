"""`bistil predict`: what a finished model says of texts."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from bistil.commands.options import DEVICE, TASK_KIND, THREADS, WINDOW, pairs

logger = logging.getLogger(__name__)

Form = Literal["text", "words", "conll", "conllu", "jsonl", "tsv", "csv"]
Format = Literal["conll", "conllu", "jsonl", "tsv", "csv"]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def predict(
        model: Annotated[str, typer.Argument(help="Folder of a task model, or its name on the hub.")],
        file: Path = typer.Argument(
            Path("-"), help="Texts, one a line (plain, .gz or .zst), or labelled files; -: standard input."
        ),
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="New file. Default: standard output.")
        ] = None,
        record: Annotated[Path | None, typer.Option(help="Also write a record here, as JSON.")] = None,
        input: Annotated[
            Form | None,
            typer.Option(
                help="What the file holds: running text, words between spaces, CoNLL columns, CoNLL-U, rows. Default: "
                "by its name, or text."
            ),
        ] = None,
        format: Annotated[
            Format | None, typer.Option(help="Of the output. Default: the input's own, or the task's.")
        ] = None,
        threshold: Annotated[
            float | None,
            typer.Option(help="Leave out what the model is less sure of: spans, labels, answers (0 to 1)."),
        ] = None,
        n_best: Annotated[int, typer.Option(help="So many labels of a text or answers to a question.")] = 1,
        sentences: Annotated[
            Literal["line", "split"] | None,
            typer.Option(help="Whether a line of text is one sentence or is split. Default: a parser splits."),
        ] = None,
        unanswerable: Annotated[
            bool, typer.Option("--unanswerable", help="A question may have no answer (models of SQuAD 2.0).")
        ] = False,
        column: Annotated[
            list[str],
            typer.Option(metavar="NAME=COLUMN", help="Which column is text, pair, words, tags, question or context."),
        ] = [],  # noqa: B006
        task: Annotated[str | None, TASK_KIND] = None,
        max_length: Annotated[int | None, WINDOW] = None,
        batch_size: Annotated[int, typer.Option(help="Windows per forward pass.", min=1)] = 32,
        device: Annotated[str | None, DEVICE] = None,
        threads: Annotated[int | None, THREADS] = None,
        resume: Annotated[
            bool, typer.Option("--resume/--no-resume", help="Go on where a killed call for this output was.")
        ] = True,
        force: Annotated[
            bool, typer.Option("--force", help="Replace the record of an earlier call, and the predictions it lists.")
        ] = False,
    ) -> None:
        """Say what a task model predicts for texts, words or questions.

        Example, entities with their places in the text:
        bistil predict runs/mine/students/lrf2 news.txt --format jsonl --output news.jsonl
        """
        from bistil.prediction.files import predict_file
        from bistil.prediction.loading import load
        from bistil.prediction.predictor import Wanted

        wanted = Wanted(threshold=threshold, n_best=n_best, sentences=sentences, unanswerable=unanswerable)
        is_typed = str(file) == "-" and sys.stdin is not None and sys.stdin.isatty()
        predictor = load(model, task=task, max_length=max_length, device=device, threads=threads)
        if is_typed:
            logger.info("reading what is typed, line by line; Ctrl-D ends it (bistil predict MODEL FILE reads a file)")
        try:
            result = predict_file(
                predictor,
                None if str(file) == "-" else file,
                output,
                form=input,
                format=format,
                wanted=wanted,
                columns=dict(pairs(column, "--column", "NAME=COLUMN")),
                batch_size=batch_size,
                resume=resume,
                record_file=record,
                replace=force,
            )
        except BrokenPipeError:
            # Who reads has enough, as `head` has: what is still in the buffer goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + 13) from None
        if output is not None:
            count = result["inputs"]
            typer.echo(f"{output}: {count:,} input{'s' * (count != 1)}, {result['seconds']:.1f} s")
