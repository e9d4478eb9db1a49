"""One training loop for all phases, on the Trainer of transformers.

What is added to the Trainer: a training order that is drawn beforehand, checkpoints that count only once they are
whole and that hold trained parameters only, the best weights by a held-out figure, a progress line with rate and time
left, `train_log.jsonl`, and a stop at the first loss that is not a number. What training goes on from is checked by
digest first: a damaged checkpoint gives way to the one before it.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from bistil.errors import ArtefactError, DivergenceError, InputError, MissingExtraError, RecipeError
from bistil.runtime.artefacts import (
    file_digest,
    json_digest,
    manifest,
    open_work,
    read_sealed,
    whole_file,
    write_sealed,
)
from bistil.runtime.progress import Progress, say
from bistil.settings.recipe import TrainingSettings, to_dict

# Written into a checkpoint folder after everything else: without it the checkpoint does not exist for us.
COMPLETE = "complete"
# What a finished run leaves: the weights, then the record that counts on them.
FINAL, RESULT = "final.safetensors", "result.json"
BEST = "best-*.safetensors"
# Where TensorBoard's files are in a work folder, unless the environment's TENSORBOARD_LOGGING_DIR says otherwise.
TENSORBOARD = "tensorboard"


BestBy = tuple[str, Literal["min", "max"]]


class Sized(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


@dataclass(kw_only=True)
class TrainingResult:
    """What a training run came to."""

    steps: int
    seconds: float = field(metadata={"help": "wall time of all sessions of this run together, in seconds"})
    tokens: int = field(metadata={"help": "real (unpadded) tokens seen"})
    best: dict[str, float] | None = None
    best_parts: dict[str, dict[str, float]] = field(
        default_factory=dict, metadata={"help": "per part of the module, where each part keeps its own best"}
    )
    history: list[dict[str, float]] = field(default_factory=list)


class Ordered(Dataset[Any]):
    """A data set in its training order: item i is what step i // batch_size sees.

    Args:
        data: any map-style data set.
        order: (items,) indices into `data`.
    """

    def __init__(self, data: Sized, order: np.ndarray) -> None:
        self.data, self.order = data, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        return self.data[int(self.order[index])]


def epoch_order(
    size: int, *, items: int, batch_size: int, seed: int, lengths: Sequence[int] | None = None
) -> np.ndarray:
    """Indices (items,) that walk through shuffled epochs of `size` examples.

    With `lengths`, examples of similar length share a batch (sorted inside windows of 32 batches, batches shuffled),
    which saves padding and changes nothing else.
    """
    generator = np.random.default_rng(seed)
    epochs = []
    for _ in range(math.ceil(items / size)):
        order = generator.permutation(size)
        if lengths is not None:
            window = 32 * batch_size
            known = np.asarray(lengths)
            for start in range(0, size, window):
                part = order[start : start + window]
                order[start : start + window] = part[np.argsort(known[part], kind="stable")]
            whole = size - size % batch_size
            batches = order[:whole].reshape(-1, batch_size)
            order = np.concatenate([batches[generator.permutation(len(batches))].ravel(), order[whole:]])
        epochs.append(order)
    return np.concatenate(epochs)[:items]


def planned_steps(size: int, settings: TrainingSettings) -> int:
    """Number of optimizer steps that the settings mean for a data set of `size` examples.

    Raises:
        RecipeError: neither or both of steps and epochs are given.
    """
    if (settings.steps is None) == (settings.epochs is None):
        raise RecipeError("training needs either steps or epochs, and not both")
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    steps = math.ceil(size * settings.epochs / settings.batch_size)
    if settings.most_steps is not None:
        steps = min(steps, settings.most_steps)
    return max(1, steps, settings.least_steps or 0)


def check_loggers(names: Sequence[str]) -> None:
    """Make sure that extra loggers of the Trainer exist and are installed.

    Raises:
        RecipeError: transformers knows no such logger.
        MissingExtraError: its package is not installed.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise RecipeError(f"unknown logger {name!r}: choose from {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            package = f"'bistil[{name}]'" if name in ("tensorboard", "trackio") else name.replace("_", "-")
            raise MissingExtraError(f"logger {name!r} is not installed: pip install {package}") from error


def check_training(settings: TrainingSettings) -> None:
    """Make sure that a training run can be carried out, before what it needs is made.

    Raises:
        RecipeError: no or two lengths, a batch that cannot be cut, an unknown logger.
        MissingExtraError: a logger that is not installed.
    """
    check_loggers(settings.loggers)
    planned_steps(1, settings)
    _parts(settings)


def _parts(settings: TrainingSettings) -> int:
    """Into how many parts, of all processes, a batch is cut."""
    parts = processes().num_processes * settings.accumulation
    if settings.batch_size % parts:
        raise RecipeError(
            f"batch_size {settings.batch_size} cannot be cut into {parts} equal parts "
            "(processes x accumulation): choose a multiple"
        )
    return parts


def train(
    module: nn.Module,
    train_data: Sized,
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    settings: TrainingSettings,
    folder: Path,
    seed: int,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    best_by: BestBy | Mapping[str, BestBy] | None = None,
    lengths: Sequence[int] | None = None,
    label: str = "training",
) -> TrainingResult:
    """Train the parameters of `module` that require gradients; leaves the trained (best, if chosen) weights in it.

    The same call goes on after an interruption from the newest whole and sound checkpoint in `folder`, bit-identically
    on CPU, and returns at once, with the weights loaded, when the run had finished.

    Args:
        module: `forward(**batch)` returns a mapping with "loss" and scalar terms, which are logged. If it has
            `clip_groups()`, gradients are clipped in each of these lists of parameters on its own.
        train_data: examples; an attribute `ordered = True` says that index order is training order, a method
            `training_order(items=, batch_size=, seed=)` draws it; `epoch_size` says what an epoch is if not all.
        collate: list of examples to batch; a str under "language" is passed through for messages.
        folder: work folder of this run alone, new or left by an earlier call; checkpoints are removed at the end.
        seed: draws the order of the data and dropout.
        evaluate: held-out figures of the module, called every `evaluate_steps` and at the end.
        best_by: key of `evaluate`'s figures that chooses the kept weights; none keeps the last. A mapping from
            prefixes of parameter names lets each part of the module keep its own best and run out of patience on its
            own, as if it had been trained alone.
        lengths: per example, to batch similar lengths together.

    Raises:
        DivergenceError: the loss is NaN or infinite; the last good checkpoint stays.
        InputError: `folder` holds something else than work.
        RecipeError: settings that cannot be carried out.
        MissingExtraError: a logger that is not installed.
    """
    check_loggers(settings.loggers)
    steps = planned_steps(getattr(train_data, "epoch_size", len(train_data)), settings)
    identity = {"settings": to_dict(settings), "seed": seed, "examples": len(train_data), "steps": steps}
    with processes().main_process_first():
        finished = _open_folder(folder, json_digest(identity))
    if finished is not None:
        load_trained(module, folder / FINAL)
        return finished

    data: Any = train_data
    if not getattr(train_data, "ordered", False):
        wanted = {"items": steps * settings.batch_size, "batch_size": settings.batch_size, "seed": seed}
        if hasattr(train_data, "training_order"):
            order = train_data.training_order(**wanted)
        else:
            order = epoch_order(len(train_data), lengths=lengths, **wanted)
        data = Ordered(train_data, order)

    trainer = _Trainer(
        module=module,
        data=data,
        collate=collate,
        arguments=_arguments(settings, folder, steps=steps, seed=seed),
        settings=settings,
        folder=folder,
        evaluate=evaluate,
        best_by=best_by,
        label=label,
        steps=steps,
    )
    with processes().main_process_first():
        checkpoint = newest_checkpoint(folder)
    trainer.recorder.open(checkpoint)
    with trainer.recorder.progress:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    for prefix in trainer.recorder.best:
        load_trained(module, trainer.recorder.best_file(prefix))
    result = trainer.recorder.result()
    if trainer.args.should_save:
        save_trained(module, folder / FINAL)
        write_sealed(folder / RESULT, {**asdict(result), "files": {FINAL: file_digest(folder / FINAL)}})
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        for old in folder.glob(BEST):
            old.unlink()
    trainer.accelerator.wait_for_everyone()
    return result


def save_trained(module: nn.Module, path: Path, *, prefix: str = "") -> None:
    """Write the parameters that require gradients (and whose names begin so) into a work folder, as safetensors."""
    trained = {
        name: p.detach().contiguous()
        for name, p in module.named_parameters()
        if p.requires_grad and name.startswith(prefix)
    }
    with whole_file(path, inner=True) as partial:
        save_file(trained, partial)


def load_trained(module: nn.Module, path: Path) -> None:
    """Copy parameters written by `save_trained` back in place."""
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in load_file(path).items():
            own[name].copy_(value)


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole and sound checkpoint with the highest step, if there is one.

    Newer ones that are damaged are removed, so that none of them passes for one of the two that are kept, and the user
    is told.
    """
    whole = sorted(
        (path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")),
        key=lambda path: int(path.name.rsplit("-", 1)[1]),
    )
    damaged = None
    while whole:
        checkpoint = whole.pop()
        damaged = _damaged_file(checkpoint)
        if damaged is None:
            return checkpoint
        shutil.rmtree(checkpoint)
        instead = f"going on from {whole[-1].name}" if whole else "there is none before it, so training starts anew"
        say(f"{checkpoint} is damaged ({damaged}): {instead}")
    return None


def _damaged_file(checkpoint: Path) -> str | None:
    """The first file that a checkpoint counts on and that is not what was written; none of version 0.1 are known."""
    try:
        saved = read_sealed(checkpoint / COMPLETE)
    except ArtefactError:
        return COMPLETE
    return first_other({checkpoint: saved.get("files", {}), checkpoint.parent: saved.get("best_files", {})})


def first_other(known: Mapping[Path, Mapping[str, str]]) -> str | None:
    """The first of the files, by folder and name, whose digest is another or that is not there."""
    for folder, files in known.items():
        for name, digest in files.items():
            try:
                if file_digest(folder / name) != digest:
                    return name
            except InputError:
                return name
    return None


def _open_folder(folder: Path, identity: str) -> TrainingResult | None:
    """Make the work folder ready; work of other settings is discarded. Returns the result if the run had finished."""
    mark = folder / "identity.json"
    open_work(folder, anew=mark.exists() and read_identity(mark) != identity)
    if not mark.exists():
        write_sealed(mark, {"digest": identity})
    return _finished(folder)


def read_identity(mark: Path) -> str | None:
    """Which training a work folder belongs to; None, and a notice, if its mark is damaged."""
    try:
        return str(read_sealed(mark).get("digest"))
    except ArtefactError:
        say(f"{mark} is damaged, so it is not known what lies beside it: training starts anew")
        return None


def _finished(folder: Path) -> TrainingResult | None:
    """The result of a run that had finished, if its record and its weights are sound."""
    record = folder / RESULT
    if not record.exists():
        return None
    try:
        saved = read_sealed(record)
        # Version 0.1 kept no digest.
        files = saved.pop("files", {})
        damaged = first_other({folder: files}) if (folder / FINAL).exists() else FINAL
        if damaged is None:
            return TrainingResult(**saved)
    except ArtefactError:
        damaged = RESULT
    say(f"{folder / damaged} was damaged or deleted since: trained again")
    record.unlink()
    return None


def processes() -> PartialState:
    """The processes that share this run; without a GPU accelerate must be told that they are on the CPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def _arguments(settings: TrainingSettings, folder: Path, *, steps: int, seed: int) -> TrainingArguments:
    parts = _parts(settings)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size // parts,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=settings.precision == "bf16",
        torch_compile=settings.compile,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        report_to=[name for name in settings.loggers if name != "tensorboard"] or "none",
        project="bistil",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        log_level="error",
    )


class _Recorder(TrainerCallback):
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
        log = self.folder / "train_log.jsonl"
        if checkpoint is None:
            log.unlink(missing_ok=True)
            self._drop_old_best()
            return
        saved = read_sealed(checkpoint / COMPLETE)
        self.tokens, self.earlier_seconds = saved["tokens"], saved["seconds"]
        self.best, self.history = saved["best"], saved["history"]
        if log.exists():
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


class _Trainer(Trainer):
    """transformers' Trainer with this module's order, checkpoints and records."""

    def __init__(
        self,
        *,
        module: nn.Module,
        data: Sized,
        collate: Callable[[list[Any]], dict[str, Any]],
        arguments: TrainingArguments,
        settings: TrainingSettings,
        folder: Path,
        evaluate: Callable[[nn.Module], dict[str, float]] | None,
        best_by: BestBy | Mapping[str, BestBy] | None,
        label: str,
        steps: int,
    ) -> None:
        self.recorder = _Recorder(
            module=module,
            settings=settings,
            folder=folder,
            evaluate=evaluate,
            best_by=best_by,
            label=label,
            steps=steps,
        )
        self.bare = module
        self._terms: dict[str, torch.Tensor] = {}
        self._term_count = 0
        super().__init__(
            model=module,
            args=arguments,
            train_dataset=data,
            data_collator=collate,
            callbacks=[self.recorder],
        )
        if settings.loggers:
            self.recorder.publish = super().log
        if "tensorboard" in settings.loggers:
            board: Any = TensorBoardCallback()
            board.logging_dir = board.logging_dir or str(folder / TENSORBOARD)
            self.add_callback(board)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # Our forward takes **batch, which the Trainer would read as "scales its loss for accumulation itself".
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        del num_items_in_batch
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not torch.isfinite(loss.detach()):
            raise DivergenceError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}{_describe(inputs)}; the last good "
                f"checkpoint is kept in {self.recorder.folder}: lower the learning rate or check this batch"
            )
        for name, value in outputs.items():
            if name != "loss" and torch.is_tensor(value) and value.ndim == 0:
                known = self._terms.get(name)
                self._terms[name] = value.detach() if known is None else known + value.detach()
        self._term_count += 1
        mask = inputs.get("attention_mask")
        seen = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        self.recorder.tokens += seen * self.args.world_size
        step = self.state.global_step + 1
        if self.args.should_save:
            self.recorder.progress.advance_to(step, tokens=self.recorder.tokens, loss=float(loss.detach()))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            terms = {
                name: float(reduce(value.float(), "mean")) / self._term_count for name, value in self._terms.items()
            }
            self._terms, self._term_count = {}, 0
            logs = {**logs, **terms}
            if self.args.should_save:
                record = {"step": self.state.global_step, "seconds": round(self.recorder.seconds, 3)}
                self.recorder.write({**record, "tokens": self.recorder.tokens, **logs})
        super().log(logs, start_time)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        groups = getattr(self.bare, "clip_groups", None)
        if groups is None:
            return super()._clip_grad_norm(model)
        # Students that share a batch are separate trainings: one's large gradient must not shrink another's.
        norms = [torch.nn.utils.clip_grad_norm_(group, self.args.max_grad_norm) for group in groups()]
        return torch.stack(norms).norm()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        del state_dict
        save_trained(self.bare, Path(output_dir or self.args.output_dir) / "trained.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del model
        load_trained(self.bare, Path(resume_from_checkpoint) / "trained.safetensors")


def _describe(inputs: Mapping[str, Any]) -> str:
    """Language and digest of a batch, to find it again."""
    language = f", language {inputs['language']}" if isinstance(inputs.get("language"), str) else ""
    ids = inputs.get("input_ids")
    digest = f", batch {sha256(ids.cpu().numpy().tobytes()).hexdigest()[:12]}" if ids is not None else ""
    return language + digest


logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
