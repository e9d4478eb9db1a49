"""A study's points as command lines for a shell or a queue: each on points of its own, in one folder."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bistil.study.plan import Study
from bistil.study.points import Point


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
