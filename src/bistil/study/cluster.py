"""A study past one machine, on Ray: a task per stage, in a folder that all machines share.

Plan, folder and claims are those of one process: a task is `RunFolder.make` of one stage that nothing is missing for,
so results are the same. When a worker dies, Ray gives its task to another, which goes on in the same folder; all other
stages stay as they are.
"""

import logging
import math
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from bistil.errors import BistilError, InputError, MissingExtraError, first_line
from bistil.runs.board import Board
from bistil.runs.folder import Name, RunFolder, versions
from bistil.runs.stage import Stage
from bistil.runtime.process import cores
from bistil.study.plan import Study

logger = logging.getLogger(__name__)

# Seconds that a machine, and then Ray on it, have to answer; the second is for an idle processor here.
_REACH_SECONDS, _ANSWER_SECONDS = 4.0, 14.0
# So often a stage is given to another worker when the one that had it died.
_RETRIES = 3
LOGS = "jobs"
"""In a study's folder."""
_PROBE = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)"


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what a stage takes of it.

    Args:
        address: HOST:PORT of its head; `auto`: the one that runs on this machine.
        cpus, gpus: of a stage; below one, so many stages share a core or a GPU.

    Raises:
        InputError: no address, or amounts that Ray cannot give.
    """

    address: str
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if self.address != "auto" and not (host and "/" not in host and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(f"--ray {self.address}: give HOST:PORT of the cluster's head, or auto")
        if not 0 < self.cpus < math.inf:
            raise InputError(f"--cpus {self.cpus:g}: a stage takes more than none")
        if not (0 <= self.gpus <= 1 or self.gpus.is_integer()):
            raise InputError(f"--gpus {self.gpus:g}: a share of one GPU, or whole ones")

    def reach(self) -> None:
        """Ask whether a cluster answers, in a process of its own: where something else does, Ray waits long.

        Raises:
            MissingExtraError: Ray is not installed.
            InputError: no cluster answers.
        """
        if find_spec("ray") is None:
            raise MissingExtraError("--ray needs Ray: pip install 'bistil[ray]'")
        remedy = "start one with 'ray start --head', or name another address"
        if self.address != "auto":
            host, _, port = self.address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
            except OSError as error:
                raise InputError(f"no Ray cluster answers at {self.address}: {first_line(error)}; {remedy}") from None
        seconds = _ANSWER_SECONDS * max(1.0, psutil.getloadavg()[0] / cores())
        try:
            asked = subprocess.run(
                [sys.executable, "-c", _PROBE, self.address], capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"no Ray cluster answers at {self.address} within {seconds:.0f} s: {remedy}") from None
        if asked.returncode:
            said = [line for line in asked.stderr.splitlines() if line.strip()] or ["Ray ended without a word"]
            raise InputError(f"no Ray cluster answers at {self.address}: {said[-1].strip()}; {remedy}")

    def connect(self) -> Any:
        """The module `ray`, connected.

        Raises:
            InputError: no machine of the cluster has room for a stage.
        """
        import ray

        ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0.0) >= amount for name, amount in asked.items()) for node in nodes):
            ray.shutdown()
            raise InputError(
                f"no machine of the cluster at {self.address} has {self.cpus:g} CPUs and {self.gpus:g} GPUs for a "
                "stage: ask for less with --cpus and --gpus, or add a machine"
            )
        return ray


def make_on(cluster: Cluster, study: Study, run: RunFolder, board: Board) -> None:
    """Make everything that is on a board; what does not stand on a stage that fails is made all the same.

    Raises:
        InputError: a stage failed, or no machine has room for one.
    """
    ray = cluster.connect()
    try:
        task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=_RETRIES)(_make)
        folder, here = run.folder.absolute(), versions()
        running: dict[Any, Stage[Any]] = {}
        while True:
            for stage in board.ready():
                running[task.remote(folder, stage, _names(study, stage), here)] = stage
            if not running:
                break
            (one, *_), _ = ray.wait([*running], num_returns=1)
            stage = running.pop(one)
            try:
                board.done(stage, wrong := ray.get(one))
                if wrong is None:
                    made = run.take(stage)
                    logger.info(f"{made.name}: done in {made.seconds:.0f} s")
            except ray.exceptions.RayError as error:
                board.done(stage, f"its worker was lost {_RETRIES + 1} times: {first_line(error)}")
    finally:
        ray.shutdown()
    board.check()


def _names(study: Study, stage: Stage[Any]) -> dict[str, Name]:
    """What a stage and those below it are called: they may have to be made again."""
    found: dict[str, Name] = {}
    left: list[Stage[Any]] = [stage]
    while left:
        one = left.pop()
        if one.key in study.names and one.key not in found:
            found[one.key] = study.names[one.key]
        left += one.stands_on()
    return found


def _make(folder: Path, stage: Stage[Any], names: Mapping[str, Name], driver: Mapping[str, str]) -> str | None:
    """A task: make a stage; returns what is wrong, in one line, or nothing."""
    where = socket.gethostname()
    if not (folder / "run.json").is_file():
        return f"{folder} is not there on {where}: the machines of a cluster need a folder that they share"
    other = [name for name, one in versions().items() if driver.get(name) != one]
    if other:
        mine = versions()[other[0]]
        return f"{where} has {other[0]} {mine}, and the study {driver.get(other[0])}: results would differ"
    with _messages_in(folder / LOGS):
        try:
            with RunFolder(folder, identity={"kind": "study"}, names=names, shared=True) as run:
                run.make(stage)
        except BistilError as error:
            return str(error)
        except Exception as error:
            logger.error("a stage ended with an error that is not explained", exc_info=True)
            return f"{type(error).__name__}: {first_line(error)} (more in {LOGS}/{where}.log)"
    return None


@contextmanager
def _messages_in(folder: Path) -> Iterator[None]:
    """What the package says goes to a file of this machine."""
    folder.mkdir(exist_ok=True)
    handler = logging.FileHandler(folder / f"{socket.gethostname()}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
    package = logging.getLogger("bistil")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
