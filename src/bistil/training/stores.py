"""Where a training run keeps what it may need again: in a work folder, from which it goes on, or in memory alone."""

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn

from bistil.errors import ArtefactError
from bistil.runtime.artefacts import (
    file_digest,
    manifest,
    read_sealed,
    sync_tree,
    whole_file,
    write_sealed,
)
from bistil.runtime.documents import check_file, parse_json
from bistil.training.checkpoints import (
    BEST,
    COMPLETE,
    FINAL,
    IDENTITY,
    RESULT,
    TrainingResult,
    finished_result,
    load_trained,
    newest_checkpoint,
    open_marked,
    save_trained,
    save_values,
)
from bistil.training.processes import processes


class Best(NamedTuple):
    """Which weights are a part's best; or the sum of all snapshots up to a step."""

    part: int | Literal["average"]
    prefix: str
    """Of the names of the part's parameters."""
    step: int


class Store(ABC):
    """What a training run asks of the place where it keeps its best weights, its log and its checkpoints."""

    folder: Path | None
    """Where checkpoints are written; None: there are none."""

    @abstractmethod
    def finished(self, module: nn.Module, identity: Mapping[str, Any], inputs: str | None) -> TrainingResult | None:
        """Begin; the result of a run of this identity that had finished, its weights in the module, or None."""

    @abstractmethod
    def checkpoint(self) -> Path | None:
        """What there is to go on from."""

    @abstractmethod
    def take_up(self, checkpoint: Path | None) -> Mapping[str, Any] | None:
        """The recorder's records as they were at the checkpoint; later ones are dropped. None: a run that begins."""

    @abstractmethod
    def log(self, record: Mapping[str, Any]) -> None:
        """Keep a line of the log."""

    @abstractmethod
    def keep(self, values: Mapping[str, Tensor], best: Best) -> None:
        """Keep the weights of a part, which are its best."""

    @abstractmethod
    def kept(self, best: Best) -> Mapping[str, Tensor]:
        """A part's best weights."""

    @abstractmethod
    def complete(self, records: Mapping[str, Any], kept: Collection[Best]) -> None:
        """Declare the checkpoint of this step whole, with the recorder's records and the best weights up to it."""

    @abstractmethod
    def finish(self, module: nn.Module, result: TrainingResult) -> None:
        """End: what a later call needs stays, all else goes. In one process of several."""

    @property
    def said(self) -> str:
        """Where the last good state is, for messages."""
        return (
            f"the last good checkpoint is kept in {self.folder}" if self.folder else "no folder was given to go on in"
        )


class Memory(Store):
    """Keeps the best weights only: nothing is written, and nothing is left of an interrupted run."""

    folder = None

    def __init__(self) -> None:
        self._best: dict[int | str, dict[str, Tensor]] = {}

    def finished(self, module: nn.Module, identity: Mapping[str, Any], inputs: str | None) -> None:
        del module, identity, inputs

    def checkpoint(self) -> None:
        pass

    def take_up(self, checkpoint: Path | None) -> None:
        pass

    def log(self, record: Mapping[str, Any]) -> None:
        pass

    def keep(self, values: Mapping[str, Tensor], best: Best) -> None:
        self._best[best.part] = {name: value.clone() for name, value in values.items()}

    def kept(self, best: Best) -> Mapping[str, Tensor]:
        return self._best[best.part]

    def complete(self, records: Mapping[str, Any], kept: Collection[Best]) -> None:
        pass

    def finish(self, module: nn.Module, result: TrainingResult) -> None:
        del module, result
        self._best.clear()


class WorkFolder(Store):
    """Keeps everything in a folder; the same run goes on there after an interruption. One process of several writes.

    Args:
        folder: of this run alone, new or left by an earlier call.
    """

    LOG = "train_log.jsonl"

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder

    def finished(self, module: nn.Module, identity: Mapping[str, Any], inputs: str | None) -> TrainingResult | None:
        with processes().main_process_first():
            open_marked(self.folder / IDENTITY, identity, inputs, precision=identity["settings"]["precision"])
            found = finished_result(self.folder)
        if found is not None:
            load_trained(module, self.folder / FINAL)
        return found

    def checkpoint(self) -> Path | None:
        with processes().main_process_first():
            return newest_checkpoint(self.folder)

    def take_up(self, checkpoint: Path | None) -> Mapping[str, Any] | None:
        log, main = self.folder / self.LOG, processes().is_main_process
        if checkpoint is None:
            if main:
                log.unlink(missing_ok=True)
                self._drop_old_best(())
            return None
        saved = read_sealed(checkpoint / COMPLETE)
        if main and log.exists():
            check_file(log)
            kept = [line for line in log.read_bytes().splitlines(keepends=True) if _step_of(line) <= saved["step"]]
            with whole_file(log, inner=True) as partial:
                partial.write_bytes(b"".join(kept))
        return saved

    def log(self, record: Mapping[str, Any]) -> None:
        if processes().is_main_process:
            with (self.folder / self.LOG).open("a") as stream:
                stream.write(json.dumps(record) + "\n")

    def keep(self, values: Mapping[str, Tensor], best: Best) -> None:
        # Under a name of its own: the file that the last checkpoint counts on stays until the next one.
        if processes().is_main_process:
            save_values(values, self._best_file(best))

    def kept(self, best: Best) -> Mapping[str, Tensor]:
        return load_file(self._best_file(best))

    def complete(self, records: Mapping[str, Any], kept: Collection[Best]) -> None:
        # Every process writes its random state; only then is the checkpoint whole.
        processes().wait_for_everyone()
        if not processes().is_main_process:
            return
        checkpoint = self.folder / f"checkpoint-{records['step']}"
        # All of it is on the disk before the mark that says so.
        sync_tree(checkpoint)
        files = sorted(self._best_file(best).name for best in kept)
        write_sealed(
            checkpoint / COMPLETE,
            {
                **records,
                "files": manifest(checkpoint),
                "best_files": {name: file_digest(self.folder / name) for name in files},
            },
        )
        self._drop_old_best(files)

    def finish(self, module: nn.Module, result: TrainingResult) -> None:
        save_trained(module, self.folder / FINAL)
        write_sealed(self.folder / RESULT, {**asdict(result), "files": {FINAL: file_digest(self.folder / FINAL)}})
        for old in self.folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        for old in self.folder.glob(BEST):
            old.unlink()

    def _best_file(self, best: Best) -> Path:
        return self.folder / f"best-{best.part}-{best.step}.safetensors"

    def _drop_old_best(self, files: Collection[str]) -> None:
        """Remove best weights that neither this run nor a kept checkpoint counts on."""
        kept = set(files)
        for mark in self.folder.glob(f"checkpoint-*/{COMPLETE}"):
            with suppress(ArtefactError):  # nobody will go on from a damaged one
                kept.update(read_sealed(mark).get("best_files", {}))
        for file in self.folder.glob(BEST):
            if file.name not in kept:
                file.unlink()


def store_in(folder: Path | None) -> Store:
    """A store in a work folder; in memory without one."""
    return Memory() if folder is None else WorkFolder(folder)


def _step_of(line: bytes) -> float:
    """The step of a line of the log; a line that is damaged or cut short belongs to none."""
    try:
        return float(parse_json(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
