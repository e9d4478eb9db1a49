"""A run's folder: which stages are done, for which inputs, in what time and memory.

A stage is a function of its inputs. Its record carries a digest of them and of each file that it wrote; when they are
the same the stage is skipped, when one is another the stage is done again, and what was left of an interrupted one is
gone on with.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from bistil.errors import ArtefactError, InputError
from bistil.runtime.artefacts import (
    check_plain,
    claim,
    discard_output,
    discard_work,
    is_as_stamped,
    json_digest,
    open_work,
    read_sealed,
    stamp,
    stamps,
    write_json,
    write_sealed,
)
from bistil.runtime.ownership import is_run
from bistil.runtime.progress import say

fcntl: Any = None
with suppress(ImportError):  # there is none on Windows
    fcntl = import_module("fcntl")

# How often memory is sampled and the time spent is put on record, in seconds.
SAMPLE_SECONDS, RECORD_SECONDS = 0.1, 5.0


@dataclass(frozen=True)
class StageResult:
    """What a stage came to, whether it ran now or before."""

    name: str
    digest: str
    figures: dict[str, Any]
    seconds: float
    peak_memory: int
    skipped: bool


def check_run_folder(folder: Path) -> None:
    """Before any work: make sure that a run may be made, or gone on with, in a folder.

    Raises:
        InputError: it is a link or no folder, cannot be written, or holds something else than a run.
    """
    claim(kept=[folder])
    if (folder / "run.json").is_file() and (folder / "stages").is_dir():
        return  # a run, or what is left of one: whose it is, is asked when it is opened
    # A run that was stopped while it wrote its mark has left that.
    if folder.exists() and not is_run(folder) and any(not one.match(".run.json.*.partial") for one in folder.iterdir()):
        raise InputError(
            f"{folder} already exists: it is not empty and holds no run of bistil; name another output folder"
        )


class RunFolder:
    """The output folder of one run; a context manager, for one process works in it at a time.

    Layout: `run.json` (what the run is), `stages/NAME.json` (finished stages), `work/NAME/` (checkpoints and caches of
    stages that are under way), beside the results themselves.

    Args:
        folder: the output folder; made if it is missing.
        identity: what makes this run this run, such as teacher, languages, task and seed.

    Raises:
        InputError: the folder is a link, or holds something else, or another run, or another process works in it.
    """

    def __init__(self, folder: Path, *, identity: dict[str, Any]) -> None:
        self.folder = folder
        mark = folder / "run.json"
        check_run_folder(folder)
        if mark.exists():
            known = _identity(mark)
            other = [key for key in identity if known.get(key) != identity[key]]
            if other:
                raise InputError(
                    f"{folder} holds another run ({other[0]} is {known.get(other[0])!r} there and "
                    f"{identity[other[0]]!r} here): name another output folder or remove it"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(mark, {"identity": identity})
        check_plain(folder / ".lock")
        self._lock = (folder / ".lock").open("a")
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InputError(f"another process is working in {folder}: wait for it or name another folder") from error
        self.results: list[StageResult] = []

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.close()

    def stage(
        self, name: str, inputs: dict[str, Any], outputs: list[Path], action: Callable[[Path], dict[str, Any]]
    ) -> StageResult:
        """Do a stage, or skip it when it was done with the same inputs and its outputs are what it wrote.

        Args:
            name: also the name of the stage's record and work folder.
            inputs: plain values that decide the result: settings, and digests of files and of earlier stages.
            outputs: what the stage writes; removed before it is done again.
            action: gets the work folder and returns plain figures for the record.

        Raises:
            InputError: an output or the work folder holds something that is not ours.
        """
        digest = json_digest({"stage": name, **inputs})
        record = self.folder / "stages" / f"{name}.json"
        known = _known(record, name)
        damaged = None
        if known.get("digest") == digest:
            damaged = self._damaged(known, outputs)
            if damaged is None:
                result = StageResult(
                    name, digest, known["figures"], known["seconds"], known["peak_memory_bytes"], skipped=True
                )
                self.results.append(result)
                say(f"{name}: done before, skipped")
                return result
        work = self.folder / "work" / name
        # Of runs of version 0.1 it is not known which files a stage wrote.
        written = [self.folder / one for one in known["files"]] if "files" in known else None
        claim(made=outputs, written=written, work=work)
        if damaged is not None:
            say(f"{name}: {damaged} was damaged or deleted since: made again")
        clock = work / "clock.json"
        earlier = _known(clock, name)
        # What belongs to other inputs is removed; going on from it would mix two runs.
        earlier = earlier if earlier.get("digest") == digest else {}
        open_work(work, anew=not earlier)
        record.unlink(missing_ok=True)
        for path in outputs:
            discard_output(path, written=written)
        say(f"{name}: {'going on' if earlier else 'started'}")
        with _metered(clock, digest, earlier) as meter:
            figures = action(work)
        write_sealed(
            record,
            {
                "digest": digest,
                "figures": figures,
                "seconds": round(meter.seconds, 2),
                "peak_memory_bytes": meter.peak,
                "inputs": inputs,
                "files": self._stamps(outputs),
            },
        )
        discard_work(work)
        result = StageResult(name, digest, figures, round(meter.seconds, 2), meter.peak, skipped=False)
        self.results.append(result)
        say(f"{name}: done in {meter.seconds:.0f} s, peak memory {meter.peak / 2**30:.1f} GiB")
        return result

    def _stamps(self, outputs: list[Path]) -> dict[str, Any]:
        """Name, relative to the run's folder -> stamp of all files that a stage wrote."""
        found: dict[str, Any] = {}
        for output in outputs:
            if output.is_file():
                found[self._name(output)] = stamp(output)
            elif output.is_dir():
                found.update({self._name(output / name): one for name, one in stamps(output).items()})
        return found

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def _damaged(self, known: dict[str, Any], outputs: list[Path]) -> str | None:
        """The first file that is not as the stage left it. Of runs of version 0.1 only the outputs' names are known."""
        gone = (self._name(path) for path in outputs if not path.exists())
        changed = (n for n, one in known.get("files", {}).items() if not is_as_stamped(self.folder / n, one))
        return next(gone, None) or next(changed, None)


def _identity(mark: Path) -> dict[str, Any]:
    try:
        identity = read_sealed(mark).get("identity")
    except ArtefactError:
        identity = None
    if not isinstance(identity, dict):
        raise InputError(
            f"{mark} is damaged, so it is not known whose run this folder holds: name another output folder"
        )
    return identity


def _known(record: Path, name: str) -> dict[str, Any]:
    """What a stage's record says; nothing if there is none or it is damaged, which is said."""
    if not record.exists():
        return {}
    try:
        return read_sealed(record)
    except ArtefactError:
        say(f"{name}: {record} is damaged and does not count")
        return {}


class _Meter:
    """Wall time and peak resident memory of this process, put on record while it runs."""

    def __init__(self, clock: Path, digest: str, earlier: dict[str, Any]) -> None:
        self.clock, self.digest = clock, digest
        self.before, self.peak = float(earlier.get("seconds", 0.0)), int(earlier.get("peak_memory_bytes", 0))
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def _put(self) -> None:
        spent = {"digest": self.digest, "seconds": self.seconds, "peak_memory_bytes": self.peak}
        write_sealed(self.clock, spent)

    def _watch(self) -> None:
        process, last = psutil.Process(), 0.0
        while True:
            self.peak = max(self.peak, process.memory_info().rss)
            if time.monotonic() - last >= RECORD_SECONDS:
                self._put()
                last = time.monotonic()
            if self._stop.wait(SAMPLE_SECONDS):
                return


@contextmanager
def _metered(clock: Path, digest: str, earlier: dict[str, Any]) -> Iterator[_Meter]:
    meter = _Meter(clock, digest, earlier)
    meter._put()
    meter._thread.start()
    try:
        yield meter
    finally:
        meter._stop.set()
        meter._thread.join()
