"""One training loop for all phases, on the Trainer of transformers.

What is added to the Trainer: a training order that is drawn beforehand, checkpoints that count only once they are
whole and that hold trained parameters only, the best weights by a held-out figure, a progress line with rate and time
left, `train_log.jsonl`, and a stop at the first loss that is not a number. What training goes on from is checked by
digest first: a damaged checkpoint gives way to the one before it.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from bistil.errors import DivergenceError, MissingExtraError, RecipeError
from bistil.runtime.insides import (
    logger_callbacks,
    one_device,
    replace_clipping,
    replace_weights,
    scale_loss_by_trainer,
    tensorboard_callback,
)
from bistil.runtime.quiet import kept_environment, quiet_transformers
from bistil.settings.recipe import TrainingSettings, deciding
from bistil.training.checkpoints import (
    IDENTITY,
    TrainingResult,
    first_other,
    load_trained,
    newest_checkpoint,
    read_identity,
    save_trained,
)
from bistil.training.order import Ordered, Sized, epoch_order
from bistil.training.precision import settle_precision
from bistil.training.processes import processes, training_device
from bistil.training.recorder import BestBy, Recorder
from bistil.training.stores import store_in

__all__ = [
    "TENSORBOARD",
    "BestBy",
    "Ordered",
    "Sized",
    "TrainingResult",
    "check_loggers",
    "check_training",
    "epoch_order",
    "first_other",
    "load_trained",
    "newest_checkpoint",
    "planned_steps",
    "processes",
    "read_identity",
    "save_trained",
    "train",
]

# Where TensorBoard's files are in a work folder, unless the environment's TENSORBOARD_LOGGING_DIR says otherwise.
TENSORBOARD = "tensorboard"
# The order of training is drawn beforehand, for so many steps at most: 500 times the paper's longest.
MOST_STEPS = 10**8
# The trained parameters in a checkpoint.
WEIGHTS = "trained.safetensors"


def planned_steps(size: int, settings: TrainingSettings) -> int:
    """Number of optimizer steps that the settings mean for a data set of `size` examples.

    Raises:
        RecipeError: neither or both of steps and epochs are given, or they mean more steps than any training takes.
    """
    if (settings.steps is None) == (settings.epochs is None):
        raise RecipeError("training needs either steps or epochs, and not both")
    if settings.steps is not None:
        return _no_more_than_any(settings.steps, f"steps is {settings.steps}")
    assert settings.epochs is not None
    steps = math.ceil(size * settings.epochs / settings.batch_size)
    if settings.most_steps is not None:
        steps = min(steps, settings.most_steps)
    return _no_more_than_any(max(1, steps, settings.least_steps or 0), f"epochs is {settings.epochs:g}")


def _no_more_than_any(steps: int, said: str) -> int:
    if steps > MOST_STEPS:
        raise RecipeError(f"{said}, which means {steps:,} steps: at most {MOST_STEPS:,} can be planned")
    return steps


def check_loggers(names: Sequence[str]) -> None:
    """Make sure that extra loggers of the Trainer exist and are installed.

    Raises:
        RecipeError: transformers knows no such logger.
        MissingExtraError: its package is not installed.
    """
    known = logger_callbacks()
    for name in names:
        if name not in known:
            raise RecipeError(f"unknown logger {name!r}: choose from {', '.join(sorted(known))}")
        try:
            known[name]()
        except (ImportError, RuntimeError) as error:
            package = f"'bistil[{name}]'" if name in ("tensorboard", "trackio") else name.replace("_", "-")
            raise MissingExtraError(f"logger {name!r} is not installed: pip install {package}") from error


def check_training(settings: TrainingSettings) -> None:
    """Make sure that a training run can be carried out, before what it needs is made.

    Raises:
        RecipeError: no or two lengths, a batch that cannot be cut, an unknown logger.
        InputError: the device is not there.
        MissingExtraError: a logger that is not installed.
    """
    check_loggers(settings.loggers)
    training_device(settings.device)
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
    return int(parts)


def train(
    module: nn.Module,
    train_data: Sized,
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    settings: TrainingSettings,
    folder: Path | None,
    seed: int,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    best_by: BestBy | Mapping[str, BestBy] | None = None,
    lengths: Sequence[int] | None = None,
    inputs: str | None = None,
    label: str = "training",
) -> TrainingResult:
    """Train the parameters of `module` that require gradients; leaves the trained (best, if chosen) weights in it.

    The same call goes on after an interruption from the newest whole and sound checkpoint in `folder`, bit-identically
    on CPU, and returns at once, with the weights loaded, when the run had finished.

    Args:
        module: `forward(**batch)` returns a mapping with "loss" and scalar terms, which are logged. If it has
            `clip_groups()`, gradients are clipped in each of these lists of parameters on its own; if it has
            `prepare(device, low_precision=)`, that is called once the run is known to have work left.
        train_data: examples; an attribute `ordered = True` says that index order is training order, a method
            `training_order(items=, batch_size=, seed=)` draws it; `epoch_size` says what an epoch is if not all.
        collate: list of examples to batch; a str under "language" is passed through for messages.
        folder: work folder of this run alone, new or left by an earlier call; checkpoints are removed at the end. None:
            nothing is written, and an interrupted run begins anew.
        seed: draws the order of the data and dropout.
        evaluate: held-out figures of the module, called every `evaluate_steps` and at the end.
        best_by: key of `evaluate`'s figures that chooses the kept weights; none keeps the last. A mapping from
            prefixes of parameter names lets each part of the module keep its own best and run out of patience on its
            own, as if it had been trained alone.
        lengths: per example, to batch similar lengths together.
        inputs: digest of what it starts and learns from (`training.identity`): what another call left in `folder` is
            discarded. None: calls are told apart by settings, seed, and numbers of examples and steps.

    Raises:
        DivergenceError: the loss is NaN or infinite; the last good checkpoint stays.
        InputError: `folder` holds something else than work, or the device is not there.
        RecipeError: settings that cannot be carried out.
        MissingExtraError: a logger that is not installed.
    """
    check_loggers(settings.loggers)
    training_device(settings.device)
    if folder is None and "tensorboard" in settings.loggers:
        raise RecipeError("the logger tensorboard writes files: give a folder, or leave it out")
    settings = settle_precision(settings, folder and folder / IDENTITY)
    steps = planned_steps(getattr(train_data, "epoch_size", len(train_data)), settings)
    store = store_in(folder)
    identity = {"settings": deciding(settings), "seed": seed, "examples": len(train_data), "steps": steps}
    finished = store.finished(module, identity, inputs)
    if finished is not None:
        return finished

    data: Any = train_data
    if not getattr(train_data, "ordered", False):
        wanted = {"items": steps * settings.batch_size, "batch_size": settings.batch_size, "seed": seed}
        if hasattr(train_data, "training_order"):
            order = train_data.training_order(**wanted)
        else:
            order = epoch_order(len(train_data), lengths=lengths, **wanted)
        data = Ordered(train_data, order)

    with quiet_transformers(), kept_environment():
        recorder = Recorder(
            module=module,
            settings=settings,
            store=store,
            evaluate=evaluate,
            best_by=best_by,
            label=label,
            steps=steps,
        )
        trainer = _Trainer(recorder, data, collate, _arguments(settings, folder, steps=steps, seed=seed))
        checkpoint = store.checkpoint()
        recorder.open(checkpoint)
        if hasattr(module, "prepare"):
            prepared: Any = module
            prepared.prepare(trainer.args.device, low_precision=settings.precision == "bf16")
        with recorder.progress, recorder.stoppable():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # The first process kept the best weights, and removes them when all have read them.
    trainer.accelerator.wait_for_everyone()
    recorder.load_best()
    trainer.accelerator.wait_for_everyone()
    result = recorder.result()
    if trainer.args.should_save:
        store.finish(module, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _arguments(settings: TrainingSettings, folder: Path | None, *, steps: int, seed: int) -> TrainingArguments:
    parts, device = _parts(settings), training_device(settings.device)
    arguments = TrainingArguments(
        # The Trainer makes sure that this folder is there.
        output_dir=os.curdir if folder is None else str(folder),
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
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="sequential",
        save_strategy="no" if folder is None else "steps",
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
        dataloader_pin_memory=device == "cuda",
        ddp_find_unused_parameters=False,
        log_level="error",
    )
    one_device(arguments)
    return arguments


class _Trainer(Trainer):
    """transformers' Trainer with this module's order, checkpoints and records."""

    def __init__(
        self,
        recorder: Recorder,
        data: Sized,
        collate: Callable[[list[Any]], dict[str, Any]],
        arguments: TrainingArguments,
    ) -> None:
        self.recorder = recorder
        module, settings, folder = recorder.module, recorder.settings, recorder.store.folder
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
            assert folder is not None
            self.add_callback(tensorboard_callback(folder / TENSORBOARD))
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        scale_loss_by_trainer(self)
        replace_weights(
            self,
            save=lambda folder: save_trained(module, folder / WEIGHTS),
            load=lambda folder: load_trained(module, folder / WEIGHTS),
        )
        if hasattr(module, "clip_groups"):
            grouped: Any = module
            replace_clipping(self, lambda: self._clipped(grouped.clip_groups()))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        del num_items_in_batch
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not torch.isfinite(loss.detach()):
            raise DivergenceError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}{_describe(inputs)}; "
                f"{self.recorder.store.said}: lower the learning rate or check this batch"
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
            record = {"step": self.state.global_step, "seconds": round(self.recorder.seconds, 3)}
            self.recorder.store.log({**record, "tokens": self.recorder.tokens, **logs})
        super().log(logs, start_time)

    def _clipped(self, groups: Sequence[list[nn.Parameter]]) -> torch.Tensor:
        """Clip each group on its own: students that share a batch are separate trainings, and one's large gradient
        must not shrink another's."""
        norm: torch.Tensor = torch.stack(
            [nn.utils.clip_grad_norm_(group, self.args.max_grad_norm) for group in groups]
        ).norm()
        return norm


def _describe(inputs: Mapping[str, Any]) -> str:
    """Language and digest of a batch, to find it again."""
    language = f", language {inputs['language']}" if isinstance(inputs.get("language"), str) else ""
    ids = inputs.get("input_ids")
    digest = f", batch {sha256(ids.cpu().numpy().tobytes()).hexdigest()[:12]}" if ids is not None else ""
    return language + digest
