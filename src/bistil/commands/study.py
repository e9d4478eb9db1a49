"""`bistil study`: systems against each other, over languages and seeds."""

from pathlib import Path

import typer

from bistil.commands.options import JOBS
from bistil.errors import InputError


def register(app: typer.Typer) -> None:
    @app.command()
    def study(
        file: Path = typer.Argument(help="A study in TOML; see docs/studies.md.", metavar="STUDY"),
        output: Path | None = typer.Option(
            None, "--output", "-o", help="Folder for records and the report; needed without --dry-run or --print-jobs."
        ),
        data: Path | None = typer.Option(None, help="What the study's paths are relative to.  [default: its folder]"),
        only: list[str] = typer.Option(
            [], "--only", help="Only this system, group, student or seed (seed=1). Repeatable.", metavar="NAME"
        ),
        dry_run: bool = typer.Option(
            False, "--dry-run", help="Only say what would be done, and what time, memory and disk it will take."
        ),
        jobs: int = JOBS,
        ray: str | None = typer.Option(
            None, help="Make the stages on a Ray cluster: HOST:PORT of its head, or auto.", metavar="ADDRESS"
        ),
        cpus: float = typer.Option(1.0, help="With --ray: cores of a stage; a fraction lets several share one."),
        gpus: float = typer.Option(0.0, help="With --ray: GPUs of a stage; a fraction lets several share one."),
        print_jobs: bool = typer.Option(False, "--print-jobs", help="Only print the jobs as lines for a shell."),
        slurm: bool = typer.Option(False, "--slurm", help="With --print-jobs: as a job array for Slurm."),
        table: bool = typer.Option(
            False, "--table", help="Only print the table of what is on record, and write the report."
        ),
        report: bool = typer.Option(True, help="At the end, measure speed, write study.html and print the table."),
    ) -> None:
        """Compare systems over languages and seeds, from one file: what a paper claims, tested.

        The same command goes on where an earlier one stopped, and redoes what follows from a changed file.

        Example: bistil study benchmarks/studies/ner.toml --data DATA --output runs/ner

        Add --dry-run first. With --jobs 2 two processes share the work; --print-jobs prints lines for other machines,
        which share the folder; --ray makes the stages on a cluster that does (docs/scale.md).
        """
        if slurm and not print_jobs:
            raise InputError("--slurm says how --print-jobs prints: add --print-jobs")
        if table and (dry_run or print_jobs):
            raise InputError("--table is of what is done, --dry-run and --print-jobs of what is to do: leave one out")
        if table and output is None:
            raise InputError("--output is missing: name the study's folder, whose table it is")
        if output is None and not (dry_run or print_jobs):
            raise InputError("--output is missing: name a folder for the study, or add --dry-run")
        if ray is None and (cpus, gpus) != (1.0, 0.0):
            raise InputError("--cpus and --gpus say what a stage of --ray takes: add --ray ADDRESS")
        if ray is not None and jobs > 1:
            raise InputError("--ray and --jobs are two ways to make stages side by side: leave one out")
        if table and output is not None:
            from bistil.report.study_page import present

            present(output)
            return
        from bistil.settings.study import load_study
        from bistil.study.points import Only, points_of

        settings = load_study(file)
        chosen = Only.of(only, settings)
        points = list(points_of(settings, chosen))
        if not points:
            raise InputError(f"--only {' '.join(only)}: no point of the study is all of this; leave one out")
        from bistil.study.cluster import Cluster
        from bistil.study.plan import study_at
        from bistil.study.run import carry_out

        cluster = None if ray is None else Cluster(ray, cpus, gpus)
        if cluster is not None:
            # Workers have another working directory.
            file, data = file.absolute(), data and data.absolute()
            output = output and output.absolute()
        carry_out(
            study_at(file, settings, data),
            points,
            file=file,
            data=data,
            output=output,
            dry_run=dry_run,
            jobs=jobs,
            cluster=cluster,
            print_jobs="slurm" if slurm else "shell" if print_jobs else None,
            report=report,
            measured=not only,
        )
