"""`bistil demo`: the main job on a teacher and text that install from a package registry."""

from pathlib import Path

import typer

from bistil.commands.run import say_what_next


def register(app: typer.Typer) -> None:
    @app.command()
    def demo(
        output: Path | None = typer.Option(
            None, "--output", "-o", show_default=False,
            help="Folder for everything it makes.  [default: runs/demo, or runs/demo-full]",
        ),
        seed: int = typer.Option(0, help="Seed of everything that is drawn."),
        jobs: int | None = typer.Option(
            None, min=1, help="Stages side by side, at most.  [default: 2, or 1 on a single core]", show_default=False
        ),
        full: bool = typer.Option(
            False, "--full", help="The method whole: two students, sparse fine-tuning, longer trainings."
        ),
    ) -> None:  # fmt: skip
        """Make a real small model out of a real multilingual one: topic classification, English to Italian.

        Takes about six minutes on two CPU cores, and with --full about a quarter of an hour. The same command goes on
        where an earlier one stopped.

        Example: bistil demo --output runs/demo
        """
        from bistil.demo.run import run_demo

        output = output or Path("runs/demo-full" if full else "runs/demo")
        run_demo(output, seed=seed, jobs=jobs, full=full)
        say_what_next(output, "lrf2")
