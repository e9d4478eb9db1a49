"""A run's folder: which stages are done, in what time and memory, by which versions on which machine.

A stage (`runs.stage`) is found by its key. Its record holds the digest of each file that it wrote; when they are sound
the stage is skipped, when one is another the stage is done again, and what was left of an interrupted one is gone on
with. What a stage leaves lies where the plan says; a plan that only gives it another name moves it there.
"""

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, cast

import psutil
import torch
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from bistil.errors import ArtefactError, InputError
from bistil.measuring.benchmark import machine
from bistil.runs.stage import File, Product, Result, Stage, plain
from bistil.runtime.artefacts import (
    check_plain,
    claim,
    discard_output,
    discard_work,
    is_as_stamped,
    open_work,
    read_sealed,
    stamp,
    stamps,
    write_json,
    write_sealed,
)
from bistil.runtime.ownership import is_run, writer
from bistil.settings.parsing import typed
from bistil.training.processes import processes

T = TypeVar("T")
logger = logging.getLogger(__name__)

# How often memory is sampled and the time spent is put on record, in seconds.
SAMPLE_SECONDS, RECORD_SECONDS = 0.1, 5.0
# Versions of these decide results.
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


@dataclass(frozen=True)
class Name:
    """What a stage is called, and where the parts of its product lie: both may change without its being done again."""

    label: str
    places: Mapping[str, str] = field(default_factory=dict)
    """Per part, a path relative to the run's folder."""


@dataclass(frozen=True)
class Made(Generic[Result]):
    """What a stage came to, whether it was done now or before."""

    name: str
    result: Result
    seconds: float
    peak_memory: int
    skipped: bool
    versions: dict[str, str]
    machine: dict[str, str]


@dataclass(frozen=True)
class State:
    """Where a stage stands before a run."""

    word: Literal["done", "begun", "to do", "again"]
    why: str = ""
    """It is done again."""
    seconds: float = 0.0
    """Spent on it so far."""


def check_run_folder(folder: Path) -> None:
    """Before any work: make sure that a run may be made, or gone on with, in a folder.

    Raises:
        InputError: it is a link or no folder, cannot be written, or holds something else than a run.
    """
    claim(kept=[folder])
    if (folder / "run.json").is_file() and (folder / "stages").is_dir():
        return  # a run, or what is left of one: whose it is, is asked when it is opened
    # A run that was stopped while it wrote its mark has left these.
    begun = (".lock", ".run.json.*.partial")
    if folder.exists() and not is_run(folder) and not all(any(map(one.match, begun)) for one in folder.iterdir()):
        raise InputError(
            f"{folder} already exists: it is not empty and holds no run of bistil; name another output folder"
        )


def check_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make sure that a folder which holds a run holds this one.

    Raises:
        InputError: it holds another.
    """
    mark = folder / "run.json"
    known = _identity(mark) if mark.exists() else identity
    other = [key for key in identity if known.get(key) != identity[key]]
    if other:
        raise InputError(
            f"{folder} holds another run ({other[0]} is {known.get(other[0])!r} there and "
            f"{identity[other[0]]!r} here): name another output folder or remove it"
        )


class RunFolder:
    """The output folder of a run or a study; a context manager.

    Layout: `run.json` (what the run is), `stages/KIND-KEY.json` (finished stages), `work/KIND-KEY/` (checkpoints and
    caches of stages that are under way), beside the products, which lie where they are named or under `made/`.

    Args:
        folder: the output folder; made if it is missing.
        identity: what makes this run this run, such as teacher, languages, task and seed.
        names: per key, what a stage is called and where its product lies.
        shared: several processes may work in the folder; each stage is then done by one of them, for which the others
            wait. Otherwise one process works in it at a time.
        look: only look at what is there: nothing is taken, moved or written, and nothing can be made.
        held: the process that started this one holds the folder, and hands out its stages (`runs.side_by_side`).
        on_made: is told of each stage that was carried out.

    Raises:
        InputError: the folder is a link, or holds something else, or another run, or another process works in it; or
            something foreign is where a product is to be moved.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        names: Mapping[str, Name] | None = None,
        shared: bool = False,
        look: bool = False,
        held: bool = False,
        on_made: Callable[[Stage[Any], Made[Any]], None] | None = None,
    ) -> None:
        self.folder, self.names, self.shared = folder, dict(names or {}), shared
        self.look, self.held, self.on_made = look, held, on_made
        self.results: list[Made[Any]] = []
        self._made: dict[str, Made[Any]] = {}
        self._memory: dict[str, Any] = {}
        self._lock = FileLock(folder / ".lock")
        self._first = processes().is_main_process
        if look or held:
            return
        if self._first:
            self._open(dict(identity))
        processes().wait_for_everyone()

    def _open(self, identity: dict[str, Any]) -> None:
        """Take the folder, and move what lies under other names."""
        folder = self.folder
        check_run_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        check_plain(folder / ".lock")
        try:
            # Those who share a folder may come at the same time: one of them makes it a run's.
            self._lock.acquire(timeout=-1 if self.shared else 0)
        except Timeout:
            raise InputError(f"another process is working in {folder}: wait for it or name another folder") from None
        try:
            self._mark(identity)
            self._move_to_new_names()
        except BaseException:
            self._lock.release()
            raise
        if self.shared:
            self._lock.release()

    def _mark(self, identity: dict[str, Any]) -> None:
        """Say whose run the folder holds, or refuse another's."""
        folder, mark = self.folder, self.folder / "run.json"
        if not mark.exists():
            write_json(mark, {"identity": identity})
            return
        check_same_run(folder, identity)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.held:
            return
        if kind is None and self._first and not self.shared and self.common.is_dir():
            for work in self.common.iterdir():
                if work.suffix == ".lock":
                    work.unlink()
                else:
                    discard_work(work)
            self.common.rmdir()
        self._lock.release()

    @property
    def common(self) -> Path:
        """Work that stages have in common; it is kept for another call when this one is stopped."""
        return self.folder / "work" / "common"

    def make(self, stage: Stage[Result]) -> Made[Result]:
        """Do a stage, or skip it when it was done and its product is what it wrote; first what it stands on.

        Raises:
            InputError: where it writes, or in its work folder, lies something that is not ours.
            BistilError: what the stage itself refuses.
        """
        if stage.key in self._made:
            return self._made[stage.key]
        with self._alone(stage):
            made = self._known_to_all(stage)
            if made is not None:
                if self._first:
                    # A call that was killed between the stage's record and here has left it.
                    discard_work(self._work(stage))
                if not self.held:  # what a worker's stage stands on was said when it was made
                    self._say(f"{made.name}: done before, skipped")
            else:
                for one in stage.stands_on():
                    self.make(one)
                made = self._carry_out(stage) if self._first else self._take_part(stage)
        self._made[stage.key] = made
        self.results.append(made)
        self.tell(stage, made)
        return made

    def take(self, stage: Stage[Result]) -> Made[Result]:
        """What another process has just made of a stage, as if it had been made here."""
        made = self.known(stage, whole=False)
        assert made is not None
        made = replace(made, skipped=False)
        self._made[stage.key] = made
        self.results.append(made)
        if self.on_made is not None:
            self.on_made(stage, made)
        self.tell(stage, made)
        return made

    def tell(self, stage: Stage[Result], made: Made[Result]) -> None:
        """Say what people should know of a stage's result; of a worker's stages says it who hands them out."""
        if self._first and not self.held:
            for line in stage.notices(made.result, _Place(self, stage, self._work(stage), made.name)):
                logger.warning(line)

    def look_again(self) -> None:
        """Others may have made or removed something since: what is there is asked of the disk again."""
        self._made.clear()

    def _known_to_all(self, stage: Stage[Result]) -> Made[Result] | None:
        """`known`, as the first of the processes sees it."""
        if processes().num_processes == 1:
            return self.known(stage)
        made = self.known(stage) if self._first else None
        done: list[Any] = broadcast_object_list([made is not None])
        return made if self._first or not done[0] else self.known(stage, whole=False)

    def known(self, stage: Stage[Result], *, whole: bool = True) -> Made[Result] | None:
        """What a stage came to, if it was done; None if it was not.

        Args:
            whole: what it left must still be as it was written.
        """
        record = self._record(stage.KIND, stage.key)
        if record.get("key") != stage.key or (whole and record.get("dropped")):
            return None
        name = self._name(stage).label
        if whole and (damaged := self._damaged(record)) is not None:
            logger.warning(f"{name}: {damaged} was damaged or deleted since: made again")
            return None
        return self._made_of(stage, record)

    def state(self, stage: Stage[Any]) -> "State":
        """Whether a stage is done, begun, or to be done again and why; nothing is said and nothing is changed."""
        kind, key = stage.KIND, stage.key
        record = _sealed(self._record_file(kind, key))
        if record.get("key") == key and not record.get("dropped"):
            damaged = self._damaged(record)
            if damaged is None:
                return State("done")
            return State("again", f"{damaged} was damaged or deleted")
        begun = _sealed(self._work(stage) / "clock.json")
        if begun.get("digest") == key:
            return State("begun", seconds=float(begun.get("seconds", 0.0)))
        if record.get("key") == key:
            return State("again", "it was removed to save room")
        name, places = self._name(stage), {self._place(Product(stage, part)) for part in stage.parts()}
        for path in sorted((self.folder / "stages").glob(f"{kind}-*.json")):
            other = _sealed(path)
            if other.get("name") == name.label or places & set(other.get("places", {}).values()):
                return State("again", changed(other.get("inputs", {}), stage.inputs()))
        return State("to do")

    def read(self, what: Any, how: Callable[[], T]) -> T:
        """What `how` reads, for a key; read once for all stages."""
        key = str(plain(what))
        if key not in self._memory:
            self._memory[key] = how()
        return cast(T, self._memory[key])

    def _made_of(self, stage: Stage[Result], record: Mapping[str, Any]) -> Made[Result]:
        """What a stage's record says that it came to."""
        return Made(
            self._name(stage).label,
            typed(stage.result_type, record["result"]),
            record["seconds"],
            record["peak_memory_bytes"],
            skipped=True,
            versions=record["versions"],
            machine=record["machine"],
        )

    def drop(self, stage: Stage[Any]) -> None:
        """Remove what a stage left, to save room; its record stays, and it is done again where it is needed again."""
        self._made.pop(stage.key, None)
        if not self._first:
            return
        with self._alone(stage):
            record = self._record(stage.KIND, stage.key)
            if record.get("key") == stage.key and not record.get("dropped"):
                written = [self.folder / name for name in record["files"]]
                self._write_record(record | {"dropped": True, "places": {}, "files": {}})
                for place in record["places"].values():
                    discard_output(self.folder / place, written=written)

    def path(self, of: Product | File) -> Path:
        """Where a product lies, or is to be written, or where a file is."""
        return of.path if isinstance(of, File) else self.folder / self._place(of)

    def label(self, stage: Stage[Any]) -> str:
        """What a stage is called."""
        return self._name(stage).label

    def _name(self, stage: Stage[Any]) -> Name:
        return self.names.get(stage.key) or Name(f"{stage.KIND} {stage.key[:8]}")

    def _place(self, product: Product) -> str:
        stage = product.stage
        return self._name(stage).places.get(product.part) or f"made/{_file_name(stage.KIND, stage.key)}/{product.part}"

    def _alone(self, stage: Stage[Any]) -> Any:
        """With several processes in the folder, only one does a stage."""
        if not ((self.shared or self.held) and self._first):
            return nullcontext()
        (self.folder / "stages").mkdir(exist_ok=True)
        return self.lock_of(stage)

    def lock_of(self, stage: Stage[Any]) -> FileLock:
        """What a process holds while it is at a stage, where several share the folder."""
        return FileLock(self.folder / "stages" / f".{_file_name(stage.KIND, stage.key)}.lock")

    def taken(self, stage: Stage[Any]) -> bool:
        """Whether another process that shares the folder is at a stage now."""
        lock = self.lock_of(stage)
        if not Path(lock.lock_file).exists():
            return False
        try:
            with lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def _carry_out(self, stage: Stage[Result]) -> Made[Result]:
        name = self._name(stage).label
        work = self._work(stage)
        places = {part: self._place(Product(stage, part)) for part in stage.parts()}
        outputs = [self.folder / place for place in places.values()]
        self._make_room(list(places.values()), work=work)
        clock = work / "clock.json"
        earlier = _sealed(clock, name)
        # What belongs to other inputs is removed; going on from it would mix two runs.
        earlier = earlier if earlier.get("digest") == stage.key else {}
        open_work(work, anew=not earlier)
        self._record_file(stage.KIND, stage.key).unlink(missing_ok=True)
        self._say(f"{name}: {'going on' if earlier else 'started'}")
        processes().wait_for_everyone()
        with _metered(clock, stage.key, earlier) as meter:
            result = stage.make(_Place(self, stage, work, name))
        made = Made(
            name, result, round(meter.seconds, 2), meter.peak, skipped=False, versions=versions(), machine=_machine()
        )
        self._write_record(
            {
                "key": stage.key,
                "kind": stage.KIND,
                "name": name,
                "inputs": stage.inputs(),
                "result": asdict(cast(Any, result)),
                "seconds": made.seconds,
                "peak_memory_bytes": made.peak_memory,
                "versions": made.versions,
                "machine": made.machine,
                "places": {part: place for part, place in places.items() if (self.folder / place).exists()},
                "files": self._stamps(outputs),
            }
        )
        if stage.JOINT:
            processes().wait_for_everyone()
        discard_work(work)
        if self.on_made is not None:
            self.on_made(stage, made)
        self._say(f"{name}: done in {made.seconds:.0f} s, peak memory {made.peak_memory / 2**30:.1f} GiB")
        return made

    def _make_room(self, places: list[str], *, work: Path | None = None) -> None:
        """Remove what earlier stages left at some places, with all that was made with it.

        Raises:
            InputError: something there, or in the work folder, is not ours; nothing is removed then.
        """
        replaced = self._records_at(places)
        with_it = [place for record in replaced.values() for place in record["places"].values()]
        gone = [self.folder / place for place in dict.fromkeys([*places, *with_it])]
        # Of runs of version 0.1 it is not known which files a stage wrote.
        written = [self.folder / one for record in replaced.values() for one in record["files"]] or None
        claim(made=gone, written=written, work=work)
        for path in replaced:
            path.unlink()
        for output in gone:
            discard_output(output, written=written)

    def _take_part(self, stage: Stage[Result]) -> Made[Result]:
        """What the other processes do while the first one carries out a stage."""
        processes().wait_for_everyone()
        if stage.JOINT:
            stage.make(_Place(self, stage, self._work(stage), self._name(stage).label))
            processes().wait_for_everyone()
        # A stage of the first process's own may take longer than processes wait for each other.
        while (made := self.known(stage, whole=False)) is None:
            time.sleep(SAMPLE_SECONDS)
        return replace(made, skipped=False)

    def _work(self, stage: Stage[Any]) -> Path:
        return self.folder / "work" / _file_name(stage.KIND, stage.key)

    def _say(self, text: str) -> None:
        if self._first:
            logger.info(text)

    # Records

    def _record_file(self, kind: str, key: str) -> Path:
        return self.folder / "stages" / f"{_file_name(kind, key)}.json"

    def _record(self, kind: str, key: str) -> dict[str, Any]:
        """A stage's record; empty without one."""
        return _sealed(self._record_file(kind, key), kind)

    def _write_record(self, record: Mapping[str, Any]) -> None:
        write_sealed(self._record_file(record["kind"], record["key"]), record)

    def _records_at(self, places: Iterable[str]) -> dict[Path, dict[str, Any]]:
        """The records of what lies at some of the places, whoever put it there."""
        wanted = {place for place in places if (self.folder / place).exists()}
        if not wanted:
            return {}
        found = {path: _sealed(path, path.stem) for path in sorted((self.folder / "stages").glob("*.json"))}
        return {path: one for path, one in found.items() if wanted & set(one.get("places", {}).values())}

    def _damaged(self, record: Mapping[str, Any]) -> str | None:
        """The first file that is not as the stage left it."""
        gone = (place for place in record["places"].values() if not (self.folder / place).exists())
        changed = (name for name, one in record["files"].items() if not is_as_stamped(self.folder / name, one))
        return next(gone, None) or next(changed, None)

    def _stamps(self, outputs: list[Path]) -> dict[str, Any]:
        """Name, relative to the run's folder -> stamp of all files that a stage wrote."""
        found: dict[str, Any] = {}
        for output in outputs:
            if output.is_file():
                found[self._relative(output)] = stamp(output)
            elif output.is_dir():
                found.update({self._relative(output / name): one for name, one in stamps(output).items()})
        return found

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    # Names

    def _move_to_new_names(self) -> None:
        """Move what lies under another name than the plan's. By way of the work folder, for two may change places."""
        moves: list[_Move] = []
        if not any(name.places for name in self.names.values()):
            return
        for path in sorted((self.folder / "stages").glob("*.json")):
            record = _sealed(path, path.stem)
            wanted = self.names[record["key"]].places if record.get("key") in self.names else {}
            for part, place in record.get("places", {}).items():
                if part in wanted and wanted[part] != place and (self.folder / place).exists():
                    moves.append(_Move(record, part, self.folder / "work" / f"moved-{len(moves)}", wanted[part]))
        leaving = {move.record["places"][move.part] for move in moves}
        for move in moves:
            if move.to not in leaving:
                self._make_room([move.to])
        for move in moves:
            self._move(move, self._relative(move.by))
        for move in moves:
            self._move(move, move.to)
            logger.info(f"{self.names[move.record['key']].label}: now in {self.folder / move.to}")

    def _move(self, move: "_Move", to: str) -> None:
        """Move a part of a product, and say so in its record."""
        record, old = move.record, move.record["places"][move.part]
        (self.folder / to).parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.folder / old, self.folder / to)
        record["places"] = record["places"] | {move.part: to}
        record["files"] = {
            (to + name.removeprefix(old) if name == old or name.startswith(f"{old}/") else name): one
            for name, one in record["files"].items()
        }
        self._write_record(record)


@dataclass(frozen=True)
class _Move:
    record: dict[str, Any]
    part: str
    by: Path
    to: str


class _Place:
    """Where a stage is made (`runs.stage.Place`)."""

    def __init__(self, run: RunFolder, stage: Stage[Any], work: Path, label: str) -> None:
        self._run, self._stage, self.work, self.label = run, stage, work, label

    def path(self, of: Product | File) -> Path:
        return self._run.path(of)

    def output(self, part: str) -> Path:
        return self._run.path(self._stage.product(part))

    def common(self, name: str) -> Path | None:
        return None if self._run.shared else self._run.common / name

    def read(self, what: Any, how: Callable[[], T]) -> T:
        return self._run.read(what, how)


def changed(before: Any, now: Any, name: str = "") -> str:
    """The first field in which two stages' inputs differ, for people; of stages and files only that they do."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *before]):
            if before.get(key) != now.get(key):
                return changed(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    short = [value is None or isinstance(value, (bool, int, float)) or len(str(value)) < 40 for value in (before, now)]
    if all(short) and not isinstance(before, (list, Mapping)) and not isinstance(now, (list, Mapping)):
        return f"{name} was {before} and is {now}"
    return f"{name} is another"


def _file_name(kind: str, key: str) -> str:
    return f"{kind}-{key[:16]}"


def _machine() -> dict[str, str]:
    return {name: str(value) for name, value in (machine() | {"threads": torch.get_num_threads()}).items()}


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide results."""
    return {"python": platform.python_version(), **writer(), **{name: version(name) for name in LIBRARIES}}


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


def _sealed(record: Path, name: str | None = None) -> dict[str, Any]:
    """What a stage's record or clock says; nothing if there is none or it is damaged, which is said of a `name`."""
    if not record.exists():
        return {}
    try:
        return read_sealed(record)
    except ArtefactError:
        if name is not None:
            logger.warning(f"{name}: {record} is damaged and does not count")
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
