"""A study, made: points one after the other, each put on record when it has its scores."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bistil.report.studies import RECORDS
from bistil.report.study_page import PAGE, present
from bistil.runs.folder import RunFolder, check_run_folder
from bistil.runs.forecast import Forecast, Forecaster
from bistil.runs.stage import Stage
from bistil.runtime.artefacts import check_apart
from bistil.runtime.documents import read_document
from bistil.study.board import Board
from bistil.study.cluster import Cluster, make_on
from bistil.study.jobs import LOGS, Job, jobs_of, run_jobs, shell_lines, side_by_side, slurm_script
from bistil.study.plan import PASSING, Study
from bistil.study.points import Only, Point
from bistil.study.records import PointBook, closure

logger = logging.getLogger(__name__)

# Everything that a study writes in its folder.
WRITTEN = ("made", "stages", "work", LOGS, "run.json", ".lock", RECORDS, f".{RECORDS}.lock", PAGE)


def make_points(study: Study, output: Path, points: Iterable[Point], *, text: str = "") -> None:
    """Make, score and record models; each is removed when it has its scores.

    The same call goes on where an earlier one stopped. Several processes may do it with other points of one study.

    Args:
        output: the study's folder.
        points: learning rates are chosen here.
        text: the study's file, for the record.

    Raises:
        BistilError: as the stages.
    """
    wanted = list(points)
    with study.open(output) as run:
        ledger = PointBook(study, run)
        ledger.open(text)
        forecaster = Forecaster(run)
        run.on_made = forecaster.made
        ahead = list(study.stages(wanted, run))
        forecaster.announce(ahead, passing=_passing(study, ahead))
        for point in wanted:
            settled = choose(study, run, point)
            for stage in study.scores(settled):
                run.make(stage)
            ledger.add(settled)
            _drop(study, run, settled)


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
        kept = study.method.fine_tuned_teacher().key
        for product in study.shapes().values():
            if product.stage.key != kept:
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
    kept = study.method.fine_tuned_teacher().key
    return {one.key for one in closure(stages) if one.KIND in PASSING and one.key != kept}


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
        forecast(study, points, output).print()
        return
    assert output is not None
    check_run_folder(output)
    check_apart([output / part for part in WRITTEN], [str(file), *study.read()])
    text = read_document(file)
    todo = jobs_of(study, points)
    make: Callable[[RunFolder, Stage[Any]], Any] = RunFolder.make
    if cluster is not None:
        cluster.reach()
        make = partial(_make_on, study, cluster)
        logger.info(f"plan: {forecast(study, points, output).line()}, on one machine like this")
        with study.open(output) as run:
            PointBook(study, run).open(text)
            make_on(cluster, study, run, Board(study, run, points))
    elif jobs > 1 and len(todo) > 1:
        _side_by_side(study, points, todo, jobs, text, file=file, data=data, output=output)
    else:
        make_points(study, output, points, text=text)
    if report:
        if measured:
            measure_shapes(study, output, make)
        present(output)


def _make_on(study: Study, cluster: Cluster, run: RunFolder, stage: Stage[Any]) -> None:
    make_on(cluster, study, run, Board(study, run, stages=[stage]))


def _side_by_side(
    study: Study, points: Sequence[Point], todo: Sequence[Job], asked: int, text: str, *, file: Path, data: Path | None,
    output: Path,
) -> None:  # fmt: skip
    ahead = forecast(study, points, output)
    logger.info(f"plan: {ahead.line()}")
    count, why = side_by_side(asked, len(todo), ahead)
    if why:
        logger.info(f"{count} side by side: there are {why}")
    with study.open(output) as run:
        PointBook(study, run).open(text)
        needs = {}
        for job in todo:
            own = Only.of(job.only, study.settings)
            needs[job.name] = [*closure(study.stages(study.points(own), run))]

    def pending(name: str) -> set[str]:
        return {stage.key for stage in needs[name] if run.known(stage, whole=False) is None}

    run_jobs({job.name: job.words(file, output, data) for job in todo}, count, output, pending)
