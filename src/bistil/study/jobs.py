"""A study's points side by side: processes of the same command, each on points of its own, in one folder."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bistil.errors import InputError
from bistil.runs.forecast import Forecast
from bistil.study.plan import Study
from bistil.study.points import Point

# How often processes are looked at, in seconds.
POLL_SECONDS = 0.5
LOGS = "jobs"
"""In a study's folder."""


@dataclass(frozen=True)
class Job:
    """The points of one system, student and group."""

    name: str
    only: tuple[str, ...]
    """Words of `--only` that say which these are."""

    def words(self, file: Path, output: Path, data: Path | None) -> list[str]:
        """The command line, without the program."""
        where = [str(file), "--output", str(output), *(["--data", str(data)] if data else [])]
        return ["study", *where, "--no-report", *(word for one in self.only for word in ("--only", one))]


def jobs_of(study: Study, points: Iterable[Point]) -> list[Job]:
    """Points as jobs: what shares a search and a phase 1's student is one."""
    found: dict[tuple[str, ...], list[int]] = {}
    whole: dict[tuple[str, ...], list[int]] = {}
    for point in study.points():
        whole.setdefault(_words(study, point), []).append(point.seed)
    for point in points:
        found.setdefault(_words(study, point), []).append(point.seed)
    jobs = []
    for words, seeds in found.items():
        some = () if seeds == whole[words] else tuple(f"seed={seed}" for seed in seeds)
        jobs.append(Job(", ".join((*words, *some)), (*words, *some)))
    return jobs


def _words(study: Study, point: Point) -> tuple[str, ...]:
    student = study.student_of(point)
    return (point.variant, point.group) if student is None else (point.variant, point.group, student.name)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(asked: int, jobs: int, forecast: Forecast) -> tuple[int, str]:
    """How many jobs may run at a time, and what bounds them if that is fewer than asked.

    Args:
        asked: at most so many.
        jobs: there are so many.
        forecast: of all of them; each is taken to need what the largest stage needs.
    """
    room = max(1, int(psutil.virtual_memory().available // max(forecast.memory, 1.0)))
    bounds = {"cores": cores(), "memory": room, "jobs": max(1, jobs)}
    count = min(asked, *bounds.values())
    why = next((f"{name} for {bound}" for name, bound in bounds.items() if bound == count), "")
    return count, "" if count == asked else why


def next_job(left: Sequence[str], running: Iterable[str], pending: Callable[[str], Collection[str]]) -> str:
    """The job that has the least to do in common with those that run: it would wait for that; of equals the first.

    Args:
        left, running: names of jobs.
        pending: per job, what it stands on that is not made yet.
    """
    busy = {key for name in running for key in pending(name)}
    return min(left, key=lambda name: len(busy.intersection(pending(name)))) if busy else left[0]


def run_jobs(
    commands: Mapping[str, Sequence[str]],
    count: int,
    output: Path,
    pending: Callable[[str], Collection[str]] = lambda _: (),
) -> None:
    """Run command lines of bistil, so many at a time; the others go on when one fails.

    Args:
        commands: by the name of the job, words for `bistil`.
        output: the study's folder; what jobs say goes to files there.
        pending: see `next_job`.

    Raises:
        InputError: a job failed; the message says where it says why.
    """
    logs = output / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    # Threads that wait for each other across processes cost more than they give.
    threads = str(max(1, cores() // count))
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    left = list(commands)
    running: dict[subprocess.Popen[bytes], tuple[str, Path]] = {}
    failed: list[tuple[str, Path]] = []
    try:
        while left or running:
            while left and len(running) < count:
                name = next_job(left, [one for one, _ in running.values()], pending)
                left.remove(name)
                number, words = [*commands].index(name) + 1, commands[name]
                log = logs / f"{number}.log"
                with log.open("wb") as stream:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "bistil", *words], stdout=stream, stderr=stream, env=environment
                    )
                running[process] = (name, log)
                print(f"[bistil] job {number} of {len(commands)}: {name} ({log})", file=sys.stderr, flush=True)
            for process, (name, log) in list(running.items()):
                try:
                    code = process.wait(timeout=POLL_SECONDS / len(running))
                except subprocess.TimeoutExpired:
                    continue
                del running[process]
                if code:
                    failed.append((name, log))
                print(f"[bistil] {'failed' if code else 'done'}: {name}", file=sys.stderr, flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    if failed:
        name, log = failed[0]
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise InputError(f"the job {name!r}{others} failed: {_last_line(log)} ({log}); the same command goes on")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def shell_lines(commands: Iterable[Sequence[str]]) -> list[str]:
    """One line per job for a shell."""
    return [shlex.join(["bistil", *words]) for words in commands]


def slurm_script(commands: Iterable[Sequence[str]], *, name: str, memory: float) -> str:
    """A job array for Slurm's sbatch.

    Args:
        name: of the study.
        memory: bytes per job.
    """
    lines = shell_lines(commands)
    gigabytes = max(1, round(memory / 2**30 + 0.5))
    listed = "\n".join(f"  {shlex.quote(line)}" for line in lines)
    return (
        "#!/bin/bash\n"
        f"#SBATCH --job-name={shlex.quote(name)}\n"
        f"#SBATCH --array=0-{len(lines) - 1}\n"
        "#SBATCH --cpus-per-task=2\n"
        f"#SBATCH --mem={gigabytes}G\n"
        f"jobs=(\n{listed}\n)\n"
        'eval "${jobs[$SLURM_ARRAY_TASK_ID]}"'
    )
