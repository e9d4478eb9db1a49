"""`bistil init`: a recipe out of one's files."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from bistil.commands.options import pairs
from bistil.errors import InputError, printable
from bistil.settings.recipe import Recipe, help_of
from bistil.settings.schema import TaskSettings


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def init(
        files: list[Path] = typer.Argument(
            help="Plain text of the two languages; labelled files: CoNLL columns, CoNLL-U, JSON lines, tables, SQuAD."
        ),
        output: Annotated[Path, typer.Option("--output", "-o", help="The recipe to write.")] = Path("recipe.toml"),
        source: Annotated[
            str | None, typer.Option(help="The language with labels. Default: that of the training data.")
        ] = None,
        target: Annotated[
            str | None, typer.Option(help="The language that the model is for. Default: the other one.")
        ] = None,
        language: Annotated[
            list[str],
            typer.Option(metavar="FILE=LANGUAGE", help="Whose a file is, if its name does not say it. Repeatable."),
        ] = [],  # noqa: B006
        part: Annotated[
            list[str],
            typer.Option(metavar="FILE=PART", help="What a labelled file is for: train, dev or test. Repeatable."),
        ] = [],  # noqa: B006
        task: Annotated[str | None, typer.Option(help="Kind of task. Default: as the files look.")] = None,
        column: Annotated[
            list[str], typer.Option(metavar="NAME=COLUMN", help=f"{help_of(TaskSettings, 'columns')}. Repeatable.")
        ] = [],  # noqa: B006
        teacher: Annotated[str, typer.Option("--teacher", "-t", help=help_of(Recipe, "teacher"))] = "e5-small",
        budget: Annotated[
            str | None, typer.Option(help="Time that the run may take, such as 45m or 1h30m. Default: as it comes.")
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="Replace a recipe that this command wrote and nobody changed.")
        ] = False,
    ) -> None:
        """Write a recipe out of your files, with what was guessed beside it.

        Languages are read from names such as sw.txt, train.en.jsonl, eng/train.txt; task, columns and tags from what is
        in the files. What cannot be guessed is asked for in one line.

        Example: bistil init english.txt swahili.txt train.en.conll dev.en.conll test.sw.conll
        """
        from bistil.drafting import draft_recipe, write_draft
        from bistil.drafting.draft import Told
        from bistil.runtime.artefacts import claim

        for file in files:
            _require_file(file)
        claim(files=[output], inputs=files, force=force)
        told = Told(
            source=source,
            target=target,
            task=task,
            languages=dict(pairs(language, "--language", "FILE=LANGUAGE")),
            parts=dict(pairs(part, "--part", "FILE=PART")),
            columns=dict(pairs(column, "--column", "NAME=COLUMN")),
        )
        draft = draft_recipe(files, told)
        write_draft(draft, output, teacher=teacher, budget=budget, replace=force)
        for line in draft.lines():
            typer.echo(printable(line))
        typer.echo(f"{output}: {draft.kind or 'phase 1 alone'}, {draft.source} to {draft.target}")
        typer.echo(f"next: bistil run {shlex.quote(str(output))} --check")


def _require_file(path: Path) -> None:
    """Refuse what is likely to be typed in place of a file's name."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the files in it, such as {shlex.quote(str(path))}/*")
    name, sign, value = str(path).partition("=")
    if sign and not path.exists() and Path(name).exists():
        raise InputError(f"there is no file {path}: repeat the option for each, such as --language {name}={value}")
