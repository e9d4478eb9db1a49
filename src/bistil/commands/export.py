"""`bistil export`: a finished model as a few megabytes that run without PyTorch."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer

from bistil.commands.options import FORCE, TASK_KIND, WINDOW, Table, takes
from bistil.errors import InputError
from bistil.settings.recipe import TaskSettings, parse

READING = ("label_map", "columns", "language", "scheme", "separator", "strict")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    @takes(values=Table(TaskSettings, only=READING))
    def export(
        model: Annotated[str, typer.Argument(help="Folder of a task model, or its name on the hub.")],
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="New folder for the exported model.")
        ] = None,
        web: Annotated[
            Path | None,
            typer.Option(
                help="New folder with a page that runs the model in the browser; MODEL may be exported already."
            ),
        ] = None,
        web_libraries: Annotated[
            Path | None,
            typer.Option(help="With --web: node_modules folder with onnxruntime-web. Default: npm fetches it once."),
        ] = None,
        engine: Annotated[
            Literal["onnxruntime", "ctranslate2"],
            typer.Option(help="That will run it. ctranslate2: BERT, RoBERTa, XLM-R and DistilBERT."),
        ] = "onnxruntime",
        precision: Annotated[Literal["int8", "float32"], typer.Option(help="Of the matrices.")] = "int8",
        labelled: Annotated[
            list[Path],
            typer.Option(help="Labelled file that int8 must keep the score on, not one of training; repeatable."),
        ] = [],  # noqa: B006
        text: Annotated[
            Path | None, typer.Option(help="Without labelled files: plain lines to compare predictions on.")
        ] = None,
        most_loss: Annotated[float, typer.Option(help="Points of the task's score that int8 may lose.", min=0)] = 0.5,
        embeddings: Annotated[
            Literal["auto", "int8", "int4", "float32"],
            typer.Option(help="Of the token table. auto: 4 bits where the score on labelled files allows, else 8."),
        ] = "auto",
        task: Annotated[str | None, TASK_KIND] = None,
        max_length: Annotated[int | None, WINDOW] = None,
        pooling: Annotated[
            Literal["mean", "first"] | None,
            typer.Option(help="Of an encoder without a head: one vector per text. Default: as its folder says."),
        ] = None,
        prefix: Annotated[str, typer.Option(help="With --pooling: in front of every text.")] = "",
        normalise: Annotated[bool, typer.Option(help="With --pooling: vectors of length 1.")] = True,
        force: bool = FORCE,
        *,
        values: dict[str, Any],
    ) -> None:
        """Write a task model for onnxruntime or CTranslate2, or as a page, after it has proven that nothing was lost.

        Example:
        bistil export runs/mine/students/lrf2 --labelled dev.sw.conll --output deployed
        """
        from bistil.export.folder import export_model
        from bistil.export.libraries import browser_library
        from bistil.export.web import check_page, write_page
        from bistil.models.exported import engine_of
        from bistil.models.sentences import SentenceForm
        from bistil.runtime.artefacts import claim
        from bistil.tasks.reading import Reading

        if output is None and web is None:
            raise InputError("nothing would be written: give --output for an exported model, --web for a page, or both")
        if web is None and web_libraries is not None:
            raise InputError("--web-libraries is for the page: give --web too, or leave it out")
        if web is not None:
            if engine != "onnxruntime":
                raise InputError("the page runs onnxruntime: leave --engine out, or export to --output alone")
            # All that a page may be refused for comes before the work.
            claim(folders=[output, web], inputs=[model, text, web_libraries, *labelled], force=force)
            check_page(model, task=task)
            browser_library(web_libraries)
            if output is None and engine_of(model) is not None:
                _say_page(web, write_page(Path(model), web, libraries=web_libraries, replace=force))
                return
        # Of the settings only how files are read counts; "train" must name something.
        wanted = {**values, "kind": task or "token-classification", "train": list(map(str, labelled)) or ["none"]}
        settings = parse(TaskSettings, wanted, "bistil export")
        how = {name: getattr(settings, name) for name in ("columns", "language", "scheme", "separator", "strict")}
        with ExitStack() as stack:
            folder = output or Path(stack.enter_context(TemporaryDirectory())) / "exported"
            record = export_model(
                model,
                folder,
                engine=engine,
                precision=precision,
                embeddings=embeddings,
                labelled=labelled,
                text=text,
                most_loss=most_loss,
                task=task,
                max_length=max_length,
                label_map=settings.label_map,
                how=Reading(**how),
                sentences=None if pooling is None else SentenceForm(pooling, prefix, normalise),
                replace=force,
            )
            if output is not None:
                _say_export(output, record)
            if web is not None:
                page = write_page(folder, web, libraries=web_libraries, replace=force)
                if output is None:
                    _say_proof(record)
                _say_page(web, page)


def _say_export(output: Path, record: dict[str, Any]) -> None:
    typer.echo(f"{output}: {_megabytes(output)}, {record['precision']}, embeddings {record['embeddings']}")
    _say_proof(record)


def _say_proof(record: dict[str, Any]) -> None:
    from bistil.export.folder import statements

    score = record["proof"].get("score")
    if score is not None:
        low, high = score["loss_interval"]
        typer.echo(
            f"{score['metric']} {score['score']:.2f}, of the PyTorch model {score['float32_score']:.2f}: "
            f"{score['loss']:.2f} points lost (95% interval {low:.2f} to {high:.2f})"
        )
    if record["kept_in_float32"]:
        typer.echo(f"in float32: {', '.join(record['kept_in_float32'])}")
    for line in statements(record):
        typer.echo(line)


def _say_page(web: Path, record: dict[str, Any]) -> None:
    texts = record["tokens"]["texts"]
    compared = f"the page's tokens are Python's on {texts} texts" if texts else "the page's tokens were not compared"
    typer.echo(f"{web}: a page of {_megabytes(web)}; {compared}; python -m http.server -d {web} serves it")


def _megabytes(folder: Path) -> str:
    return f"{sum(one.stat().st_size for one in folder.rglob('*') if one.is_file()) / 1e6:.1f} MB"
