"""`bistil run`: the whole method from a recipe."""

import logging
import re
import shlex
from pathlib import Path
from typing import Any

import typer

from bistil.commands.options import JOBS, TRUST, Table, takes
from bistil.errors import printable
from bistil.runtime.process import is_first_of_run
from bistil.settings.recipe import UNNAMED_RUN, Recipe, TrainingSettings, load_recipe, on_device, parse

logger = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    @app.command()
    @takes(values=Table(TrainingSettings, only=("device",)))
    def run(
        recipe: Path = typer.Argument(help="A recipe in TOML; see recipes/ and docs/recipe.md."),
        output: Path | None = typer.Option(
            None,
            "--output",
            "-o",
            help="Folder for the models, records and the report.  [default: runs/NAME, after the recipe]",
            show_default=False,
        ),
        seed: int | None = typer.Option(None, help="Another seed than the recipe's."),
        assignments: list[str] = typer.Option(
            [], "--set", metavar="KEY=VALUE", help="Change a key of the recipe; lists by number from 0. Repeatable."
        ),
        check: bool = typer.Option(
            False, "--check", help="Only check the recipe and its files, and say what the run will take."
        ),
        jobs: int = JOBS,
        trust_code: bool = TRUST,
        *,
        values: dict[str, Any],
    ) -> None:
        """Make small bilingual models as a recipe says, from the teacher to the report.

        The same command goes on where an earlier one stopped, and skips what is done.

        Example: bistil run recipes/ner-en-sw.toml --output runs/ner-en-sw

        Add --check to see first whether the recipe and its files are sound, what time, memory and disk the run will
        take, what of the folder is done already, and what would be done again and why.

        Example, with changes: bistil run r.toml --set phase1.objective.cosine=1 --set students.0.reduction=3 -o runs/r
        """
        if seed is not None:
            assignments = [*assignments, f"seed={seed}"]
        resolved = load_recipe(recipe, assignments=assignments, trust_code=trust_code)
        if values:
            resolved = on_device(resolved, parse(TrainingSettings, values, "bistil run").device)
        folder = output or _folder_for(resolved, recipe)
        where = f"the run's folder is {folder}" + ("" if output else "; --output names another")
        from bistil.method import check_output, forecast_recipe, run_recipe
        from bistil.runs.inputs import check_inputs

        if check:
            check_output(resolved, folder)
            inputs = check_inputs(resolved, folder)
            for line in (*inputs.lines(), where):
                typer.echo(printable(line))
            typer.echo()
            ahead = forecast_recipe(resolved, folder, inputs=inputs, jobs=jobs)
            ahead.print(jobs)
            typer.echo(printable(ahead.verdict(folder, jobs)))
            return
        if output is None:
            logger.info(where)
        run_recipe(resolved, folder, jobs=jobs)
        say_what_next(folder, resolved.students[0].name, task=resolved.task is not None)


def _folder_for(recipe: Recipe, file: Path) -> Path:
    """`runs/NAME` in the working folder, after the recipe's name, or its file's where it has none."""
    name = recipe.name if recipe.name != UNNAMED_RUN else file.stem
    return Path("runs") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or UNNAMED_RUN)


def say_what_next(output: Path, student: str, *, task: bool = True) -> None:
    """At the end of a run: where the report is, and what to type.

    Args:
        student: one of the run's, by its name.
        task: whether the run had one.
    """
    if not is_first_of_run():
        return
    if (output / "report.html").is_file():
        typer.echo(f"report: {output / 'report.html'}")
    if task:
        typer.echo(f"next: bistil predict {shlex.quote(str(output / 'students' / student))} FILE")
    else:
        model = shlex.quote(str(output / "phase1" / student))
        typer.echo(f"next: bistil finetune --model {model} --task KIND --train FILE --output DIR")
