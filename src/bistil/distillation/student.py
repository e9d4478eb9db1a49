"""The student: which teacher layers it starts from, and their copy (paper, section 3.2)."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from bistil.errors import RecipeError
from bistil.models.families import Family, family_of, fold_gain
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


def student_config(teacher: Any, layers: list[int], settings: StudentSettings | None = None) -> Any:
    """The student's configuration, out of the teacher's: the layers, the student's widths, dropout 0.

    Raises:
        RecipeError: widths that this teacher cannot give.
    """
    config = family_of(teacher).truncated_config(teacher, layers)
    if settings is not None and settings.narrow:
        config = _narrowed(config, settings)
    for name in list(vars(config)):
        if "dropout" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    # Kept in config.json: phase 2 aligns the same layers.
    config.bistil_teacher_layers = list(layers)
    return config


def _narrowed(config: Any, settings: StudentSettings) -> Any:
    """The configuration with the widths that are given; the others follow the teacher's."""
    family, where = family_of(config), f"student {settings.name!r}"
    widest, most_heads = family.width(config), family.heads(config)
    width = settings.hidden_size or widest
    feed_forward = settings.intermediate_size or max(1, round(family.feed_forward(config) * width / widest))
    heads = settings.attention_heads or most_heads
    given = {"hidden_size": width, "intermediate_size": feed_forward, "attention_heads": heads}
    limits = {"hidden_size": widest, "intermediate_size": family.feed_forward(config), "attention_heads": most_heads}
    for name, value in given.items():
        if value > limits[name]:
            raise RecipeError(f"{where}: {name} is {value}, above the teacher's {limits[name]}")
    if width % heads:
        raise RecipeError(f"{where}: {heads} attention heads do not divide hidden_size {width}: set attention_heads")
    if width // heads > widest // most_heads:
        raise RecipeError(
            f"{where}: {heads} heads of {width // heads} dimensions each, and the teacher's have "
            f"{widest // most_heads}: give at least {-(-width * most_heads // widest)} attention_heads"
        )
    if family.rotary and width // heads % 2:
        raise RecipeError(f"{where}: heads of {width // heads} dimensions; this model type needs an even number")
    shared = getattr(config, "num_key_value_heads", None)
    if shared is not None and heads % max(1, heads * shared // most_heads):
        raise RecipeError(
            f"{where}: {heads} attention heads cannot share keys and values as the teacher's {most_heads} do: choose a "
            f"multiple of {most_heads // shared}"
        )
    return family.narrowed_config(config, width=width, feed_forward=feed_forward, heads=heads)


def make_student(
    teacher: nn.Module, layers: list[int], settings: StudentSettings | None = None, *, seed: int = 0
) -> nn.Module:
    """A model of the teacher's class with the given teacher layers only, in evaluation mode, dropout 0.

    Embeddings, heads and everything else outside the layers are copied. A narrower student gets of every matrix the
    leading rows and columns, of attention the leading heads and of each head its leading dimensions.

    Args:
        teacher: any supported model, with or without a head.
        layers: 1-based teacher layers, ascending.
        settings: the student's widths, and how it starts: "copy" copies the layers, "random" leaves them as the
            architecture initialises them, "scratch" all of the model, embeddings too. None: as wide as the teacher,
            copied.
        seed: of what is random.

    Raises:
        RecipeError: widths that this teacher cannot give.
    """
    config = student_config(teacher.config, layers, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = type(teacher)(config)
    student.to(dtype=next(teacher.parameters()).dtype)
    start = "copy" if settings is None else settings.start
    if start != "scratch":
        _copy(teacher, student, layers, with_layers=start == "copy")
    return student.eval()


def depth_of(teacher: Path) -> int:
    """Number of layers of the model in a folder.

    Raises:
        ArtefactError: its config.json cannot be read, or it is of an unsupported family.
    """
    config = read_config(teacher)
    return family_of(config).depth(config)


def copy_student(
    teacher: Path, layers: list[int], settings: StudentSettings | None = None, *, output: Path, replace: bool = False
) -> None:
    """Write the student that phase 1 starts from: the teacher's layers, copied and not trained.

    Args:
        teacher: folder of the (trimmed) multilingual model.
        layers: 1-based teacher layers, ascending.
        settings: see `make_student`.
        output: gets the student with the teacher's tokenizer.
        replace: a folder of ours gives way.

    Raises:
        InputError: `output` may not be written (`runtime.artefacts.claim`).
    """
    claim(folders=[output], inputs=[teacher], force=replace)
    multilingual, _ = load_model(teacher, AutoModel)
    student: Any = make_student(multilingual, layers, settings)
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
def borrowed(teacher: nn.Module) -> Iterator[None]:
    """Inside the block a model may be frozen, moved, put into evaluation mode and cut (`without_upper_layers`);
    afterwards it is as before. Inside it is in float32, whatever it was loaded in: its outputs are what students learn.
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
    prefix = f"{family.prefix(student)}{family.layers_path}."
    source = dict(teacher.state_dict())
    if with_layers and layers[0] != 1:
        # ModernBERT's first layer has no attention norm; a layer from further up keeps at least its norm's gain.
        theirs = family.layers(teacher)[layers[0] - 1]
        for norm, linear in family.first_layer_lacks:
            with_gain = copy.deepcopy(theirs.get_submodule(linear))
            fold_gain(theirs.get_submodule(norm), theirs.get_submodule(linear), with_gain)
            source |= {f"{prefix}{layers[0] - 1}.{linear}.{k}": v for k, v in with_gain.state_dict().items()}
    cut = _Cut(family, teacher.config, student.config)
    for name, target in student.state_dict().items():
        if not name.startswith(prefix):
            target.copy_(cut(source[name], target))
        elif with_layers:
            index, rest = name[len(prefix) :].split(".", 1)
            target.copy_(cut(source[f"{prefix}{layers[int(index)] - 1}.{rest}"], target, of_layer=rest))


class _Cut:
    """The part of a teacher's tensor that a narrower student takes: what leads along every axis."""

    def __init__(self, family: Family, teacher: Any, student: Any) -> None:
        self._family = family
        self._head_sizes = tuple(family.width(one) // family.heads(one) for one in (teacher, student))

    def __call__(self, theirs: Tensor, ours: Tensor, *, of_layer: str = "") -> Tensor:
        """The part of `theirs` in the shape of `ours`.

        Args:
            of_layer: the parameter's name within its layer; its rows or columns may be several matrices or heads.
        """
        for axis, (before, after) in enumerate(zip(theirs.shape, ours.shape, strict=True)):
            if before == after:
                continue
            stacked, by_head = self._parts(of_layer, axis)
            old, new = self._head_sizes if by_head else (1, 1)
            rows = torch.arange(before, device=theirs.device).view(stacked, -1, old)
            theirs = theirs.index_select(axis, rows[:, : after // stacked // new, :new].flatten())
        return theirs

    def _parts(self, name: str, axis: int) -> tuple[int, bool]:
        """How many matrices lie side by side along an axis, and whether each consists of heads."""
        module = name.rpartition(".")[0]
        joins = module == self._family.attention_output_path
        attends = not joins and f"{module}.".startswith(f"{self._family.self_attention_path}.")
        stacked = self._family.stacked.get(module, 1) if axis == 0 else 1
        return stacked, (attends and axis == 0) or (joins and axis == 1)
