"""A study, made: points one after the other, each put on record when it has its scores."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bistil.report.studies import RECORDS
from bistil.report.study_page import PAGE, present
from bistil.runs.board import Board
from bistil.runs.folder import RunFolder, check_run_folder
from bistil.runs.forecast import Forecast, Forecaster
from bistil.runs.side_by_side import check_jobs, make_side_by_side, threads_of
from bistil.runs.stage import Stage
from bistil.runtime.artefacts import check_apart
from bistil.runtime.documents import read_document
from bistil.runtime.quiet import kept_threads
from bistil.study.board import StudyBoard
from bistil.study.cluster import LOGS, Cluster, make_on
from bistil.study.jobs import jobs_of, shell_lines, slurm_script
from bistil.study.plan import PASSING, Study
from bistil.study.points import Point
from bistil.study.records import PointBook, closure

logger = logging.getLogger(__name__)

# Everything that a study writes in its folder.
WRITTEN = ("made", "stages", "work", LOGS, "run.json", ".lock", RECORDS, f".{RECORDS}.lock", PAGE)


def make_points(study: Study, output: Path, points: Iterable[Point], *, text: str = "", jobs: int = 1) -> None:
    """Make, score and record models; each is removed when it has its scores.

    The same call goes on where an earlier one stopped. Several processes may do it in
    one folder, with the same points or with others: each takes those that no other is at.

    Args:
        output: the study's folder.
        points: learning rates are chosen here.
        text: the study's file, for the record.
        jobs: so many stages at a time (`runs.side_by_side`).

    Raises:
        BistilError: as the stages.
    """
    wanted = list(points)
    check_jobs(jobs)
    with study.open(output) as run:
        ledger = PointBook(study, run)
        ledger.open(text)
        forecaster = Forecaster(run)
        run.on_made = forecaster.made
        ahead = list(study.stages(wanted, run))
        if jobs > 1:
            with kept_threads(threads_of(jobs)):
                expected = forecaster.announce(ahead, passing=_passing(study, ahead), jobs=jobs)
            make_side_by_side(StudyBoard(study, run, wanted), jobs, expected)
            return
        forecaster.announce(ahead, passing=_passing(study, ahead))
        for stage in ahead:
            if stage.FIRST:
                run.make(stage)
        while wanted:
            # What others who share the folder are at, is left to them until nothing else is left.
            free = (number for number, point in enumerate(wanted) if not _taken(study, run, point))
            settled = choose(study, run, wanted.pop(next(free, 0)))
            for stage in study.scores(settled):
                run.make(stage)
            ledger.add(settled)
            _drop(study, run, settled)


def _taken(study: Study, run: RunFolder, point: Point) -> bool:
    """Whether another process is at something that a point takes."""
    return any(run.taken(stage) for stage in closure(study.stages([point], run)))


def choose(study: Study, run: RunFolder, point: Point) -> Point:
    """The point with its learning rate: the best on dev, tried if that was not done yet; what lost is removed."""
    found = study.chosen(run, point)
    if found is None:
        for _, stage in study.trials(point).values():
            run.make(stage)
        found = study.chosen(run, point)
        assert found is not None
    for loser in study.losers(found):
        _drop(study, run, loser)
    return found


def _drop(study: Study, run: RunFolder, point: Point) -> None:
    """Remove a point's models."""
    for stage in study.passing(point).values():
        run.drop(stage)


def measure_shapes(study: Study, output: Path, make: Callable[[RunFolder, Stage[Any]], Any] = RunFolder.make) -> None:
    """Measure size and speed of all shapes, on an otherwise idle machine, and put them on record.

    Args:
        make: makes a stage; by itself, in this process.
    """
    with study.open(output) as run:
        make(run, study.speed())
        PointBook(study, run).add_speed()
        for product in study.shapes().values():
            if product.stage.key not in study.lasting:
                run.drop(product.stage)


def forecast(study: Study, points: Sequence[Point], output: Path | None = None) -> Forecast:
    """What it will take to make, score and measure points: steps, time, memory and disk per stage.

    Args:
        output: the study's folder, there or not: what it has is not done again.
    """
    run = study.open(output, look=True) if output is not None and (output / "stages").is_dir() else None
    stages = list(study.stages(points, run))
    return Forecaster(run, names=study.names).forecast(stages).without_lasting(_passing(study, stages))


def _passing(study: Study, stages: Iterable[Stage[Any]]) -> set[str]:
    """Keys of stages whose products go when they are scored."""
    return {one.key for one in closure(stages) if one.KIND in PASSING and one.key not in study.lasting}


def carry_out(
    study: Study,
    points: Sequence[Point],
    *,
    file: Path,
    data: Path | None,
    output: Path | None,
    dry_run: bool = False,
    jobs: int = 1,
    cluster: Cluster | None = None,
    print_jobs: Literal["shell", "slurm"] | None = None,
    report: bool = True,
    measured: bool = True,
) -> None:
    """What `bistil study` does with its options.

    Args:
        file: the study's file.
        data: what its paths are relative to, if that is not its folder.
        cluster: makes the stages, instead of processes on this machine.
        measured: whether size and speed are measured for the report.

    Raises:
        BistilError: as the stages; or a job failed.
    """
    if print_jobs is not None:
        words = [one.words(file, output or Path("OUTPUT"), data) for one in jobs_of(study, points)]
        if print_jobs == "shell":
            print("\n".join(shell_lines(words)))
        else:
            print(slurm_script(words, name=study.settings.name, memory=forecast(study, points, output).memory))
        return
    if dry_run:
        print(f"{len(points)} models of {len({point.variant for point in points})} systems")
        with kept_threads(threads_of(jobs)):
            forecast(study, points, output).print(jobs)
        return
    assert output is not None
    check_run_folder(output)
    check_apart([output / part for part in WRITTEN], [str(file), *study.read()])
    text = read_document(file)
    make: Callable[[RunFolder, Stage[Any]], Any] = RunFolder.make
    if cluster is not None:
        cluster.reach()
        make = partial(_make_on, cluster, study)
        logger.info(f"plan: {forecast(study, points, output).line()}, on one machine like this")
        with study.open(output) as run:
            PointBook(study, run).open(text)
            make_on(cluster, study, run, StudyBoard(study, run, points))
    else:
        make_points(study, output, points, text=text, jobs=jobs)
    if report:
        if measured:
            measure_shapes(study, output, make)
        present(output)


def _make_on(cluster: Cluster, study: Study, run: RunFolder, stage: Stage[Any]) -> None:
    make_on(cluster, study, run, Board(run, [stage]))
