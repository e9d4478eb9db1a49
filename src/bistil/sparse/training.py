"""Lottery-ticket sparse fine-tuning: dense phase, choice of K entries, exact rewind, sparse phase.

Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022, section 3.1.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from bistil.errors import ArtefactError, InputError
from bistil.models.loading import labels_of
from bistil.runtime.artefacts import file_digest, json_digest, read_sealed, whole_file, write_sealed
from bistil.settings.recipe import SparseSettings, TrainingSettings, deciding, to_dict
from bistil.sparse.artefact import SparseFineTuning
from bistil.sparse.base import fingerprint
from bistil.sparse.delta import Provenance, SparseDelta
from bistil.sparse.masks import entries_to_keep, largest_movements, parameter_roles
from bistil.sparse.parametrisation import parametrised
from bistil.sparse.sources import BatchLanguage
from bistil.training.checkpoints import FINAL, open_marked
from bistil.training.loop import (
    BestBy,
    Sized,
    TrainingResult,
    check_training,
    first_other,
    processes,
    train,
)
from bistil.training.precision import settle_precision

logger = logging.getLogger(__name__)

MASK, IDENTITY, MASK_DONE = "mask.safetensors", "sparse.json", "mask.json"


def train_sparse(
    module: nn.Module,
    train_data: Sized,
    *,
    model: PreTrainedModel,
    dense_parameters: Collection[str],
    settings: SparseSettings,
    training: TrainingSettings,
    collate: Callable[[list[Any]], dict[str, Any]],
    folder: Path | None,
    seed: int,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    best_by: BestBy | Mapping[str, BestBy] | None = None,
    lengths: Sequence[int] | None = None,
    mask: Mapping[str, Tensor] | None = None,
    sources: Mapping[str, SparseFineTuning] | None = None,
    base_name: str | None = None,
    kind: Literal["task", "language"] = "task",
    inputs: str | None = None,
    label: str = "sparse fine-tuning",
) -> SparseFineTuning:
    """Train an SFT of `model` under any module and loss; afterwards the model wears it (and can take it off).

    The same call goes on after an interruption, at any moment and in either phase, bit-identically on CPU, provided
    that `module` is again in its first state.

    Args:
        module: `forward(**batch)` returns a mapping with "loss"; holds `model`. Parameters outside `model` that
            require gradients are trained densely in both phases, are rewound between them, and are not kept in the SFT.
        train_data: as for `training.loop.train`.
        model: its parameters now are theta_0. Those that do not require gradients are frozen.
        dense_parameters: names in `model` of what is trained and stored whole (heads).
        settings: density or count, lengths of the phases, what is frozen.
        training: everything else of both phases; its steps and epochs are overridden.
        folder: work folder of this run alone; None: nothing is written, and an interrupted run begins anew.
        evaluate, best_by, lengths: as for `training.loop.train`; the mask and the SFT come from the best weights if
            chosen.
        mask: per parameter name, sorted flat indices: skips the dense phase (random masks, biases only).
        sources: per language, an SFT of the same base that the model wears in that language's batches (multi-source
            training, LT-SFT section 5): a batch's "language" says which, as `sources.SourceBatches` makes them.
            Evaluation wears the first one. They are not part of the result.
        inputs: as for `training.loop.train`.
        base_name: how the base is called in `sft_config.json`; default: the model's `name_or_path`.

    Raises:
        InputError: a density or length that cannot be carried out, an unknown parameter name.
        DivergenceError: the loss or a parameter became NaN.
    """
    roles = parameter_roles(
        model,
        dense=dense_parameters,
        freeze_embeddings=settings.freeze_embeddings,
        freeze_layer_norms=settings.freeze_layer_norms,
    )
    was_training = module.training
    named = dict(model.named_parameters(remove_duplicate=False))
    sizes = {name: named[name].numel() for name in roles.maskable}
    total = sum(sizes.values())
    if mask is None:
        count = entries_to_keep(
            total, density=settings.density if settings.count is None else None, count=settings.count
        )
    else:
        _check_mask(mask, sizes)
        count = sum(len(indices) for indices in mask.values())
    base = fingerprint(model)
    training = settle_precision(training, folder and folder / IDENTITY)
    identity = {
        "settings": deciding(settings),
        "training": deciding(training),
        "roles": asdict(roles),
        "base": base,
        "seed": seed,
        "examples": len(train_data),
        "sources": {language: sft.digest() for language, sft in (sources or {}).items()},
        "mask": None if mask is None else json_digest({name: _digest(indices) for name, indices in mask.items()}),
    }
    if folder is not None:
        if processes().is_main_process:
            open_marked(folder / IDENTITY, identity, inputs, precision=training.precision)
        processes().wait_for_everyone()

    def run(phase: str, mask: Mapping[str, Tensor] | None, how: TrainingSettings) -> _Phase:
        """One phase in its own folder; the trained deltas are those of `mask`."""
        with parametrised(model, mask, sources) as (deltas, languages):
            dressed = BatchLanguage(module, languages, first=next(iter(sources))) if sources else module
            result = train(
                dressed,
                train_data,
                collate=collate,
                settings=how,
                folder=None if folder is None else folder / phase,
                seed=seed,
                evaluate=dressed.evaluation(evaluate) if isinstance(dressed, BatchLanguage) else evaluate,
                best_by=best_by,
                lengths=lengths,
                label=f"{label}, {phase} phase",
            )
            return _Phase(result, {name: delta.detach().cpu().clone() for name, delta in deltas.items()})

    dense, sparsely = phases(settings, training)
    with _only_trainable(model, [*roles.maskable, *roles.dense]):
        dense_result = None
        if mask is None:
            mask, dense_result = _dense_phase(
                module, model, roles.maskable, partial(run, "dense", None, dense), count, folder
            )
        # Masked parameters cannot move from here on; heads can.
        heads_0 = _snapshot([named[name] for name in roles.dense])
        none = torch.empty(0, dtype=torch.int64)
        whole_mask = {name: mask.get(name, none) for name in roles.maskable}
        sparse = run("sparse", whole_mask, sparsely)
        if dense_result is not None:
            _compare_phases(dense_result, sparse.result, best_by, label)
        heads = {name: named[name].detach().cpu().clone() for name in roles.dense}
        _restore(heads_0)

    sft = SparseFineTuning(
        {name: SparseDelta(mask[name].cpu(), value, tuple(named[name].shape)) for name, value in sparse.deltas.items()},
        heads,
        Provenance(
            base=base_name or model.name_or_path or None,
            fingerprint=base,
            kind=kind,
            maskable_entries=total,
            roles=asdict(roles),
            phases={
                "settings": to_dict(settings),
                "training": to_dict(training),
                "dense": None if dense_result is None else _length(dense_result),
                "sparse": _length(sparse.result),
            },
            architecture=type(model).__name__,
            labels=labels_of(model.config) if kind == "task" and heads else [],
            problem_type=getattr(model.config, "problem_type", None) if kind == "task" and heads else None,
            seed=seed,
            metrics=dict(sparse.result.best or (sparse.result.history[-1] if sparse.result.history else {})),
        ),
    )
    sft.apply(model)
    module.train(was_training)
    return sft


@dataclass(frozen=True)
class _Phase:
    result: TrainingResult
    deltas: dict[str, Tensor]


def _dense_phase(
    module: nn.Module,
    model: nn.Module,
    maskable: list[str],
    run: Callable[[], _Phase],
    count: int,
    folder: Path | None,
) -> tuple[dict[str, Tensor], TrainingResult]:
    """Train everything, choose the K entries that moved furthest, rewind. A finished mask is taken up at once."""
    if folder is None:
        return _chosen_mask(module, model, maskable, run, count)
    with processes().main_process_first():
        finished = _finished_mask(folder)
    if finished is None:
        mask, finished = _chosen_mask(module, model, maskable, run, count)
        if processes().is_main_process:
            with whole_file(folder / MASK, inner=True) as path:
                save_file(mask, path)
            # Written last: a mask without it is not taken up.
            files = {MASK: file_digest(folder / MASK)}
            write_sealed(folder / MASK_DONE, {"count": count, "result": asdict(finished), "files": files})
            (folder / "dense" / FINAL).unlink(missing_ok=True)
        processes().wait_for_everyone()
    return load_file(folder / MASK), finished


def _chosen_mask(
    module: nn.Module, model: nn.Module, maskable: list[str], run: Callable[[], _Phase], count: int
) -> tuple[dict[str, Tensor], TrainingResult]:
    """The K entries that move furthest when everything is trained; everything is as before then."""
    named = dict(model.named_parameters(remove_duplicate=False))
    theta_0 = _snapshot([p for p in module.parameters() if p.requires_grad])
    result = run().result
    before = {name: theta_0[named[name]] for name in maskable}
    mask = largest_movements(before, {name: named[name].detach() for name in maskable}, count)
    _restore(theta_0)
    return {name: indices.cpu() for name, indices in mask.items()}, result


def _finished_mask(folder: Path) -> TrainingResult | None:
    """The dense phase's result, if the mask is made and is what was written. A damaged mask is made again, and said.

    The weights that it was chosen from are gone by then, so the dense phase has to be done again; and what the sparse
    phase did belongs to the old mask.
    """
    done = folder / MASK_DONE
    if not done.exists():
        return None
    try:
        saved = read_sealed(done)
        damaged = first_other({folder: saved.get("files", {})}) if (folder / MASK).exists() else MASK
        if damaged is None:
            return TrainingResult(**saved["result"])
    except ArtefactError:
        damaged = MASK_DONE
    logger.warning(
        f"{folder / damaged} was damaged or deleted since: the dense phase is done again, and the sparse one after it"
    )
    done.unlink()
    for phase in ("dense", "sparse"):
        shutil.rmtree(folder / phase, ignore_errors=True)
    return None


@contextmanager
def _only_trainable(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside the block these parameters of the model require gradients and its others do not."""
    named = dict(model.named_parameters(remove_duplicate=False))
    chosen = {id(named[name]) for name in names}
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _snapshot(parameters: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    return {parameter: parameter.detach().clone() for parameter in parameters}


def _restore(values: Mapping[nn.Parameter, Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)


def check_sparse(settings: SparseSettings, training: TrainingSettings) -> None:
    """Make sure that a sparse fine-tuning can be carried out, as far as the settings tell.

    Raises:
        InputError: a phase without length, or not exactly one of a density and a count, within what there is.
        RecipeError, MissingExtraError: as `check_training`.
    """
    for phase in phases(settings, training):
        check_training(phase)
    # How many entries the model has is not known here; of a million any sound density keeps some.
    density = settings.density if settings.count is None else None
    entries_to_keep(max(10**6, settings.count or 0), density=density, count=settings.count)


def phases(settings: SparseSettings, training: TrainingSettings) -> tuple[TrainingSettings, TrainingSettings]:
    """The dense and the sparse phase as trainings, each with its length, and the dense one with its rate.

    Raises:
        InputError: a phase without length.
    """
    dense = _with_length(training, settings.dense_steps, settings.dense_epochs, "dense")
    if settings.dense_learning_rate is not None:
        dense = replace(dense, learning_rate=settings.dense_learning_rate)
    return dense, _with_length(training, settings.sparse_steps, settings.sparse_epochs, "sparse")


def _with_length(training: TrainingSettings, steps: int | None, epochs: float | None, phase: str) -> TrainingSettings:
    """The settings of one phase.

    Raises:
        InputError: it has no length.
    """
    if steps is None and epochs is None:
        raise InputError(f"the {phase} phase has no length: give {phase}_steps or {phase}_epochs")
    # Epochs have a default, so steps, which do not, win.
    return replace(training, steps=steps, epochs=None if steps is not None else epochs)


def _compare_phases(
    dense: TrainingResult, sparse: TrainingResult, best_by: BestBy | Mapping[str, BestBy] | None, label: str
) -> None:
    """Say so where the dense phase, which chose the free entries, did not learn what the sparse one did.

    A rate that suits a few entries may be too high for all of them; the sparse phase hides it.
    """
    if not isinstance(best_by, tuple) or best_by[1] != "max" or dense.best is None or sparse.best is None:
        return
    key = best_by[0]
    found, wanted = dense.best[key], sparse.best[key]
    if 2 * found < wanted:
        logger.warning(
            f"{label}: the dense phase came to {key} {found:.4g}, the sparse phase to {wanted:.4g}: "
            "what chose the free entries did not learn; give the dense phase a lower sparse.dense_learning_rate"
        )


def _length(result: TrainingResult) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "tokens": result.tokens,
        "device": result.device,
    }


def _check_mask(mask: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    from bistil.sparse.encoding import check_indices

    for name, indices in mask.items():
        if name not in sizes:
            raise InputError(f"the mask names {name!r}, which is not a maskable parameter of the model")
        check_indices(indices, sizes[name], f"mask, {name}")


def _digest(indices: Tensor) -> str:
    import hashlib

    return hashlib.sha256(indices.cpu().contiguous().numpy().data).hexdigest()
