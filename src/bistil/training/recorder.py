"""The records of a training run: log, held-out figures, best weights, early stop, and what makes a checkpoint whole."""

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bistil.errors import ArtefactError, DivergenceError
from bistil.runtime.artefacts import file_digest, manifest, read_sealed, whole_file, write_sealed
from bistil.runtime.progress import Progress
from bistil.settings.recipe import TrainingSettings
from bistil.training.checkpoints import BEST, COMPLETE, TrainingResult, save_trained
from bistil.training.processes import processes

BestBy = tuple[str, Literal["min", "max"]]


class Recorder(TrainerCallback):
    """Progress line, train_log.jsonl, evaluation, best weights, early stop and the checkpoint's mark."""

    def __init__(
        self,
        *,
        module: nn.Module,
        settings: TrainingSettings,
        folder: Path,
        evaluate: Callable[[nn.Module], dict[str, float]] | None,
        best_by: BestBy | Mapping[str, BestBy] | None,
        label: str,
        steps: int,
    ) -> None:
        self.module, self.settings, self.folder = module, settings, folder
        self.evaluate, self.steps = evaluate, steps
        self.publish: Callable[[dict[str, float]], None] | None = None
        self.best_by: dict[str, BestBy] = {"": best_by} if isinstance(best_by, tuple) else dict(best_by or {})
        self.progress = Progress(label, total=steps)
        self.best: dict[str, dict[str, float]] = {}
        self.history: list[dict[str, float]] = []
        self.tokens = 0
        self.earlier_seconds = 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def open(self, checkpoint: Path | None) -> None:
        """Take up the records as they were at the checkpoint; later lines belong to work that is lost."""
        self.started = time.monotonic()
        log, main = self.folder / "train_log.jsonl", processes().is_main_process
        if checkpoint is None:
            if main:
                log.unlink(missing_ok=True)
                self._drop_old_best()
            return
        saved = read_sealed(checkpoint / COMPLETE)
        self.tokens, self.earlier_seconds = saved["tokens"], saved["seconds"]
        self.best, self.history = saved["best"], saved["history"]
        if main and log.exists():
            kept = [line for line in log.read_bytes().splitlines(keepends=True) if _step_of(line) <= saved["step"]]
            with whole_file(log, inner=True) as partial:
                partial.write_bytes(b"".join(kept))
        self.progress.start_at(saved["step"])

    def write(self, record: Mapping[str, Any]) -> None:
        with (self.folder / "train_log.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step = state.global_step
        every = self.settings.evaluate_steps
        if self.evaluate is not None and (step == self.steps or (every is not None and step % every == 0)):
            self._evaluate(step, control, main=args.should_save)
        return control

    def _evaluate(self, step: int, control: TrainerControl, *, main: bool) -> None:
        assert self.evaluate is not None
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            figures = self.evaluate(self.module)
        self.module.train(was_training)
        for name, value in figures.items():
            if not math.isfinite(value):
                raise DivergenceError(
                    f"the held-out {name} is {value} at step {step}; the last good checkpoint is kept in "
                    f"{self.folder}: lower the learning rate or check the data"
                )
        self.history.append({"step": step, **figures})
        if main:
            self.write({"step": step, "seconds": round(self.seconds, 3), "tokens": self.tokens, "held_out": figures})
        # Parts of parts (a language's term) are for the log.
        shown = {name: value for name, value in figures.items() if name.count("/") < 2}
        if self.publish is not None:
            # Handing figures to the loggers takes back the wish to log this very step's losses.
            wanted = control.should_log
            self.publish({f"eval_{name}": value for name, value in figures.items()})
            control.should_log = wanted
        if main:
            self.progress.note(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
        at_an_end = [self._keep_best(prefix, main=main) for prefix in self.best_by]
        if at_an_end and all(at_an_end):
            control.should_training_stop = True

    def _keep_best(self, prefix: str, *, main: bool) -> bool:
        """Keep a part's weights if they are its best; returns whether its patience is at an end."""
        key, direction = self.best_by[prefix]
        sign = 1 if direction == "min" else -1
        patience = self.settings.patience
        best = self.best.get(prefix)
        since = 0 if best is None else sum(1 for entry in self.history[:-1] if entry["step"] > best["step"])
        if patience is not None and since >= patience:
            return True
        if best is None or sign * self.history[-1][key] < sign * best[key]:
            self.best[prefix] = dict(self.history[-1])
            if main:
                # Under a name of its own: the file that the last checkpoint counts on stays until the next one.
                save_trained(self.module, self.best_file(prefix), prefix=prefix)
            return False
        return patience is not None and since + 1 >= patience

    def best_file(self, prefix: str) -> Path:
        """Where the best weights of a part are."""
        part = list(self.best_by).index(prefix)
        return self.folder / f"best-{part}-{self.best[prefix]['step']:.0f}.safetensors"

    def _best_files(self) -> set[str]:
        return {self.best_file(prefix).name for prefix in self.best}

    def _drop_old_best(self) -> None:
        """Remove best weights that neither this run nor a kept checkpoint counts on."""
        kept = self._best_files()
        for mark in self.folder.glob(f"checkpoint-*/{COMPLETE}"):
            with suppress(ArtefactError):  # nobody will go on from a damaged one
                kept.update(read_sealed(mark).get("best_files", {}))
        for file in self.folder.glob(BEST):
            if file.name not in kept:
                file.unlink()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        # Every process writes its random state; only then is the checkpoint whole.
        processes().wait_for_everyone()
        if args.should_save:
            checkpoint = self.folder / f"checkpoint-{state.global_step}"
            write_sealed(
                checkpoint / COMPLETE,
                {
                    "step": state.global_step,
                    "tokens": self.tokens,
                    "seconds": self.seconds,
                    "best": self.best,
                    "history": self.history,
                    "files": manifest(checkpoint),
                    "best_files": {name: file_digest(self.folder / name) for name in sorted(self._best_files())},
                },
            )
            self._drop_old_best()
        return control

    def result(self) -> TrainingResult:
        return TrainingResult(
            steps=self.steps,
            seconds=self.seconds,
            tokens=self.tokens,
            best=self.best.get(""),
            best_parts={prefix: best for prefix, best in self.best.items() if prefix},
            history=self.history,
        )


def _step_of(line: bytes) -> float:
    """The step of a line of the log; a line that is damaged or cut short belongs to none."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
