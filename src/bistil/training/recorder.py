"""The records of a training run: log, held-out figures, best weights, early stop, and what makes a checkpoint whole."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bistil.errors import DivergenceError
from bistil.runtime.process import Stopping, stopped_gently
from bistil.runtime.progress import Progress
from bistil.settings.recipe import TrainingSettings
from bistil.training.checkpoints import TrainingResult, set_trained, trained
from bistil.training.processes import processes
from bistil.training.stores import Best, Store

# Signals that let a training end with a checkpoint.
STOPPED_BY = (signal.SIGTERM, signal.SIGINT)
BestBy = tuple[str, Literal["min", "max"]]


def snapshot_steps(steps: int, count: int | None) -> list[int]:
    """The steps whose weights are averaged: the last one, and those a tenth of the training apart before it.

    Schmidt, Vulić and Glavaš, "Free Lunch: Robust Cross-Lingual Transfer via Model Checkpoint Averaging", ACL 2023
    (arXiv 2305.16834), average checkpoints of one run that are equally far apart, with equal weights.
    """
    return sorted({max(1, round(steps * (10 - back) / 10)) for back in range(count or 0)})


class Recorder(TrainerCallback):
    """Progress line, log, evaluation, best weights, early stop and what a checkpoint holds of them."""

    def __init__(
        self,
        *,
        module: nn.Module,
        settings: TrainingSettings,
        store: Store,
        evaluate: Callable[[nn.Module], dict[str, float]] | None,
        best_by: BestBy | Mapping[str, BestBy] | None,
        label: str,
        steps: int,
    ) -> None:
        self.module, self.settings, self.store = module, settings, store
        self.evaluate, self.steps = evaluate, steps
        self.publish: Callable[[dict[str, float]], None] | None = None
        self.best_by: dict[str, BestBy] = {"": best_by} if isinstance(best_by, tuple) else dict(best_by or {})
        self.progress = Progress(label, total=steps)
        self.best: dict[str, dict[str, float]] = {}
        self.history: list[dict[str, float]] = []
        self.snapshots = snapshot_steps(steps, settings.average_last)
        self.averaged: list[int] = []
        self.tokens = 0
        self.earlier_seconds = 0.0
        self.started = self.saved = time.monotonic()
        self.step = self.saved_step = 0
        self.stopping: Stopping | None = None
        self.is_last = False

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def open(self, checkpoint: Path | None) -> None:
        """Take up the records as they were at the checkpoint; later lines belong to work that is lost."""
        self.started = self.saved = time.monotonic()
        saved = self.store.take_up(checkpoint)
        if saved is not None:
            self.tokens, self.earlier_seconds = saved["tokens"], saved["seconds"]
            self.best, self.history = saved["best"], saved["history"]
            self.averaged = saved.get("averaged", [])
            self.progress.start_at(saved["step"])
            self.step = self.saved_step = saved["step"]

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Within it a signal of the command line lets the step under way end, and a checkpoint be written."""
        if self.store.folder is None:
            yield
            return
        with stopped_gently(self._lost) as self.stopping:
            yield

    def _lost(self) -> str:
        lost = self.step - self.saved_step
        return f"step {self.saved_step} of {self.steps}; {lost} step{'' if lost == 1 else 's'} behind it are lost"

    def _checkpoint_is_due(self) -> bool:
        """Whether so much time has passed since the last one, as the first process sees it, or one is to stop."""
        if self.store.folder is None:
            return False
        due = time.monotonic() - self.saved >= 60 * self.settings.checkpoint_minutes
        asked = None if self.stopping is None else self.stopping.asked
        state = processes()
        if state.num_processes > 1:
            own = [due and state.is_main_process, *(asked == number for number in STOPPED_BY)]
            # A signal may have reached one of them only; all must write the same checkpoint.
            due, *found = reduce(torch.tensor(own, dtype=torch.int64, device=state.device), "sum").tolist()
            asked = next((number for number, count in zip(STOPPED_BY, found, strict=True) if count), None)
            if asked is not None and self.stopping is not None:
                self.stopping.ask(asked)
        self.is_last = asked is not None
        return bool(due) or self.is_last

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        step = state.global_step
        if step in self.snapshots:
            self._add_to_average(step)
        every = self.settings.evaluate_steps
        if self.evaluate is not None and (step == self.steps or (every is not None and step % every == 0)):
            self._evaluate(step, control, main=args.should_save)
        self.step = step
        if self._checkpoint_is_due():
            control.should_save = True
        return control

    def _evaluate(self, step: int, control: TrainerControl, *, main: bool) -> None:
        figures = self._figures(step)
        self.history.append({"step": step, **figures})
        self.store.log({"step": step, "seconds": round(self.seconds, 3), "tokens": self.tokens, "held_out": figures})
        # Parts of parts (a language's term) are for the log.
        shown = {name: value for name, value in figures.items() if name.count("/") < 2}
        if self.publish is not None:
            # Handing figures to the loggers takes back the wish to log this very step's losses.
            wanted = control.should_log
            self.publish({f"eval_{name}": value for name, value in figures.items()})
            control.should_log = wanted
        if main:
            self.progress.note(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
        if self.snapshots:
            return  # nothing is chosen
        at_an_end = [self._keep_best(prefix) for prefix in self.best_by]
        if at_an_end and all(at_an_end):
            control.should_training_stop = True

    def _figures(self, step: int) -> dict[str, float]:
        """Held-out figures of the module as it is."""
        assert self.evaluate is not None
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            figures = self.evaluate(self.module)
        self.module.train(was_training)
        for name, value in figures.items():
            if not math.isfinite(value):
                raise DivergenceError(
                    f"the held-out {name} is {value} at step {step}; {self.store.said}: "
                    "lower the learning rate or check the data"
                )
        return figures

    def _add_to_average(self, step: int) -> None:
        """Add the weights of now to the sum of all snapshots, of which one is kept and not each by itself."""
        values = trained(self.module)
        if self.averaged:
            before = self.store.kept(self._average())
            values = {name: before[name].to(value.device) + value for name, value in values.items()}
        self.averaged.append(step)
        self.store.keep(values, self._average())

    def _average(self) -> Best:
        return Best("average", "", self.averaged[-1])

    def _keep_best(self, prefix: str) -> bool:
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
            self.store.keep(trained(self.module, prefix=prefix), self._best(prefix))
            return False
        return patience is not None and since + 1 >= patience

    def _best(self, prefix: str) -> Best:
        """Which weights of a part are its best."""
        return Best(list(self.best_by).index(prefix), prefix, int(self.best[prefix]["step"]))

    def load_best(self) -> None:
        """Put the mean of the snapshots, or else each part's best weights, into the module, where there are any."""
        if self.averaged:
            values = self.store.kept(self._average())
            set_trained(self.module, {name: value / len(self.averaged) for name, value in values.items()})
            if self.evaluate is not None:
                figures = {"step": self.averaged[-1], **self._figures(self.averaged[-1])}
                self.best = {prefix: dict(figures) for prefix in self.best_by}
                self.store.log({"averaged": self.averaged, "seconds": round(self.seconds, 3), "held_out": figures})
            return
        for prefix in self.best:
            set_trained(self.module, self.store.kept(self._best(prefix)))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        del args
        records = {
            "step": state.global_step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "best": self.best,
            "history": self.history,
            "averaged": self.averaged,
        }
        average = [self._average()] if self.averaged else []
        self.store.complete(records, [*average, *(self._best(prefix) for prefix in self.best)])
        self.saved, self.saved_step = time.monotonic(), state.global_step
        if self.stopping is not None and (self.is_last or processes().num_processes == 1):
            # A launcher ends what is left when one process ends: the mark of the checkpoint comes first.
            processes().wait_for_everyone()
            self.stopping.end_if_asked()
        return control

    def result(self) -> TrainingResult:
        return TrainingResult(
            steps=self.step,
            seconds=self.seconds,
            tokens=self.tokens,
            precision=self.settings.precision,
            best=self.best.get(""),
            best_parts={prefix: best for prefix, best in self.best.items() if prefix},
            history=self.history,
            device=next(self.module.parameters()).device.type,
        )
