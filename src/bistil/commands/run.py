"""`bistil run`: the whole method from a recipe."""

from pathlib import Path
from typing import Any

import typer

from bistil.commands.options import JOBS, TRUST, Table, takes
from bistil.errors import InputError, printable
from bistil.settings.recipe import TrainingSettings, load_recipe, on_device, parse


def register(app: typer.Typer) -> None:
    @app.command()
    @takes(values=Table(TrainingSettings, only=("device",)))
    def run(
        recipe: Path = typer.Argument(help="A recipe in TOML; see recipes/ and docs/recipe.md."),
        output: Path | None = typer.Option(
            None, "--output", "-o", help="Folder for the models, records and the report; needed without --check."
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

        Add --check to see first whether the recipe and its files are sound, and what time, memory and disk the run will
        take; with --output also what is done there already, and what would be done again and why.

        Example, with changes: bistil run r.toml --set phase1.objective.cosine=1 --set students.0.reduction=3 -o runs/r
        """
        if seed is not None:
            assignments = [*assignments, f"seed={seed}"]
        resolved = load_recipe(recipe, assignments=assignments, trust_code=trust_code)
        if values:
            resolved = on_device(resolved, parse(TrainingSettings, values, "bistil run").device)
        from bistil.method import forecast_recipe, run_recipe
        from bistil.runs.inputs import check_inputs

        if check:
            inputs = check_inputs(resolved)
            for line in inputs.lines():
                typer.echo(printable(line))
            typer.echo()
            forecast_recipe(resolved, output, inputs=inputs, jobs=jobs).print(jobs)
            return
        if output is None:
            raise InputError("--output is missing: name a folder for the run, or add --check to check the recipe only")
        run_recipe(resolved, output, jobs=jobs)
