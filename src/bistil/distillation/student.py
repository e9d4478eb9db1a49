"""The student: which teacher layers it starts from, and their copy (paper, section 3.2)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from bistil.errors import RecipeError
from bistil.models.families import family_of, fold_gain
from bistil.models.loading import load_model, read_config
from bistil.models.tokenizers import load_tokenizer, write_tokenizer
from bistil.models.writing import save_weights
from bistil.runtime.artefacts import claim, whole_folder
from bistil.settings.recipe import StudentSettings


def choose_layers(teacher_depth: int, settings: StudentSettings) -> list[int]:
    """The teacher layers (1-based, ascending) that the student's layers are copied from and aligned with.

    `reduction` s keeps the layers whose index is a multiple of s (the paper's choice); `layers` names them;
    `depth` spreads any number of layers evenly, which is the paper's choice where the depth divides, or takes the
    first or last ones, as `spread` says.

    Raises:
        RecipeError: not exactly one of the three is given, a factor does not divide, a layer does not exist.
    """
    given = [name for name in ("reduction", "layers", "depth") if getattr(settings, name) is not None]
    where = f"student {settings.name!r}"
    if len(given) != 1:
        raise RecipeError(f"{where}: give one of reduction, layers, depth; given: {', '.join(given) or 'none'}")
    if settings.reduction is not None:
        factor = settings.reduction
        if factor < 1 or teacher_depth % factor:
            divisors = [d for d in range(1, teacher_depth + 1) if teacher_depth % d == 0]
            raise RecipeError(
                f"{where}: reduction {factor} does not divide the teacher's {teacher_depth} layers; "
                f"divisors are {', '.join(map(str, divisors))} (or give depth, which may be any number)"
            )
        return list(range(factor, teacher_depth + 1, factor))
    if settings.layers is not None:
        layers = settings.layers
        if not layers or sorted(set(layers)) != layers or layers[0] < 1 or layers[-1] > teacher_depth:
            raise RecipeError(f"{where}: layers {layers} must ascend, without repeats, within 1 to {teacher_depth}")
        return list(layers)
    depth = settings.depth
    assert depth is not None
    if not 1 <= depth <= teacher_depth:
        raise RecipeError(f"{where}: depth {depth} must be within 1 and the teacher's {teacher_depth} layers")
    if settings.spread == "first":
        return list(range(1, depth + 1))
    if settings.spread == "last":
        return list(range(teacher_depth - depth + 1, teacher_depth + 1))
    return [math.ceil(i * teacher_depth / depth) for i in range(1, depth + 1)]


def make_student(teacher: nn.Module, layers: list[int], *, start: str = "copy", seed: int = 0) -> nn.Module:
    """A model of the teacher's class with the given teacher layers only, in evaluation mode, dropout 0.

    Embeddings, heads and everything else outside the layers are copied.

    Args:
        teacher: any supported model, with or without a head.
        layers: 1-based teacher layers, ascending.
        start: "copy" copies the layers; "random" leaves them as the architecture initialises them.
        seed: of the random layers.
    """
    family = family_of(teacher)
    config = family.truncated_config(teacher.config, layers)
    for name in list(vars(config)):
        if "dropout" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    # Kept in config.json: phase 2 aligns the same layers.
    config.bistil_teacher_layers = list(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = type(teacher)(config)
    student.to(dtype=next(teacher.parameters()).dtype)
    _copy(teacher, student, layers, with_layers=start == "copy")
    return student.eval()


def depth_of(teacher: Path) -> int:
    """Number of layers of the model in a folder.

    Raises:
        ArtefactError: its config.json cannot be read, or it is of an unsupported family.
    """
    config = read_config(teacher)
    return family_of(config).depth(config)


def copy_student(teacher: Path, layers: list[int], *, output: Path, replace: bool = False) -> None:
    """Write the student that phase 1 starts from: the teacher's layers, copied and not trained.

    Args:
        teacher: folder of the (trimmed) multilingual model.
        layers: 1-based teacher layers, ascending.
        output: gets the student with the teacher's tokenizer.
        replace: a folder of ours gives way.

    Raises:
        InputError: `output` may not be written (`runtime.artefacts.claim`).
    """
    claim(folders=[output], inputs=[teacher], force=replace)
    multilingual, _ = load_model(teacher, AutoModel)
    student: Any = make_student(multilingual, layers)
    record = {"kind": "copied student", "layers": list(layers)}
    with whole_folder(output, replace=replace, record=record) as folder:
        save_weights(student, folder)
        write_tokenizer(load_tokenizer(str(teacher)), folder)


def without_upper_layers(model: nn.Module, depth: int) -> nn.Module:
    """The same model cut after `depth` layers, in place: what lies above need not be computed or stored."""
    family = family_of(model)
    path, _, name = family.layers_path.rpartition(".")
    setattr(family.encoder(model).get_submodule(path), name, family.layers(model)[:depth])
    # In place: the attention modules look at this very object.
    config: Any = model.config
    setattr(config, family.depth_field, depth)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    return model


@contextmanager
def borrowed(teacher: nn.Module, *, depth: int | None = None) -> Iterator[None]:
    """Inside the block a model may be frozen, moved and put into evaluation mode; afterwards it is as before.

    Inside it is in float32, whatever it was loaded in: its outputs are what students learn.

    Args:
        depth: cut it after so many layers inside the block; None: it stays whole.
    """
    family, config = family_of(teacher), vars(teacher.config)
    before = {key: config[key] for key in (family.depth_field, "layer_types") if key in config}
    path, _, name = family.layers_path.rpartition(".")
    holder, layers = family.encoder(teacher).get_submodule(path), family.layers(teacher)
    training = {module: module.training for module in teacher.modules()}
    parameters = [(p, p.requires_grad, p.dtype, p.device) for p in teacher.parameters()]
    buffers = [(module, key, b) for module in teacher.modules() for key, b in module.named_buffers(recurse=False)]
    try:
        teacher.float()
        if depth is not None:
            without_upper_layers(teacher, depth)
        yield
    finally:
        setattr(holder, name, layers)
        config.update(before)
        for module, was_training in training.items():
            module.training = was_training
        for parameter, required, dtype, device in parameters:
            parameter.data = parameter.data.to(device=device, dtype=dtype)
            parameter.requires_grad_(required)
        for module, key, value in buffers:
            setattr(module, key, value)


def alignment(layers: list[int]) -> dict[str, Any]:
    """Which representation of the student is compared with which of the teacher, for the record.

    Pairs are [student, teacher]; hidden state 0 is the embedding output, state i the output of layer i.
    """
    pairs = [[i, layer] for i, layer in enumerate(layers, start=1)]
    return {"layers": list(layers), "attention": pairs, "hidden": [[0, 0], *pairs]}


@torch.no_grad()
def _copy(teacher: nn.Module, student: nn.Module, layers: list[int], *, with_layers: bool) -> None:
    family = family_of(teacher)
    source = teacher.state_dict()
    prefix = f"{family.prefix(student)}{family.layers_path}."
    for name, target in student.state_dict().items():
        if name.startswith(prefix):
            if not with_layers:
                continue
            index, rest = name[len(prefix) :].split(".", 1)
            name = f"{prefix}{layers[int(index)] - 1}.{rest}"
        target.copy_(source[name])
    if with_layers and layers[0] != 1:
        # ModernBERT's first layer has no attention norm; a layer from further up keeps at least its norm's gain.
        ours, theirs = family.layers(student)[0], family.layers(teacher)[layers[0] - 1]
        for norm, linear in family.first_layer_lacks:
            fold_gain(theirs.get_submodule(norm), theirs.get_submodule(linear), ours.get_submodule(linear))
