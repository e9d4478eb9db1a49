"""A model with fewer tokens: embeddings, output matrix and bias, other entries per token, ids in its configuration."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from bistil._moved import left_names
from bistil.errors import ArtefactError, first_line
from bistil.models import loading
from bistil.models.loading import model_class, read_config

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.vocabulary.weights")


def load_checkpoint(name: str) -> tuple[PreTrainedModel, set[str]]:
    """A checkpoint under the class that its config.json names, in its own number format, in evaluation mode.

    Returns:
        The model, and the names of those of its parameters that the checkpoint lacks (they are random).

    Raises:
        ArtefactError: the class is unknown, or the weights cannot be read, are damaged, or lack more than a head or
            pooler.
    """
    return loading.load_model(name, head="optional", dtype="auto")


def blank_model(name: str) -> PreTrainedModel:
    """A checkpoint's model without weights, on the meta device, to measure.

    Raises:
        InputError: as `load_model`.
        ArtefactError: config.json cannot be read.
    """
    config = read_config(name)
    kind = model_class(config)
    try:
        with torch.device("meta"):
            made: Any = kind.from_config(config) if kind is AutoModel else kind(config)
    except Exception as error:  # whatever a class makes of a configuration
        raise ArtefactError(f"no model can be built of the config.json of {name}: {first_line(error)}") from error
    model: PreTrainedModel = made.to(config.dtype or torch.float32)
    return model


def vocabulary_axes(model: PreTrainedModel) -> dict[str, int]:
    """Name -> axis of every parameter and saved buffer with one entry per token along an axis.

    These are what grows when the class is built for one token more: embeddings, output matrix, output bias, and what a
    class has besides, such as the `final_logits_bias` (1, rows) of BART and its kin. Sizes that happen to be the
    vocabulary's, of positions or labels, do not grow.

    Raises:
        ArtefactError: the class cannot be built from its configuration alone.
    """
    rows = embedding_rows(model)
    config = deepcopy(model.config)
    _resize_config(config, rows, rows + 1)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initialising what is empty
            larger = {name: value.shape for name, value in type(model)(config).state_dict().items()}
    except Exception as error:  # whatever a class makes of a configuration
        reason = " ".join(str(error).split())
        raise ArtefactError(f"{type(model).__name__} cannot be built for another vocabulary: {reason}") from error
    found = {}
    for name, value in model.state_dict().items():
        grown = [axis for axis, (old, new) in enumerate(zip(value.shape, larger[name], strict=True)) if old != new]
        if len(grown) > 1 or (grown and value.shape[grown[0]] != rows):
            raise ArtefactError(f"{name} of {type(model).__name__} depends on the vocabulary in an unknown way")
        if grown:
            found[name] = grown[0]
    return found


def vocabulary_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything with one entry per token; a tied parameter is listed under each of its names."""
    axes = vocabulary_axes(model)
    return {name: value for name, value in model.named_parameters(remove_duplicate=False) if name in axes}


def embedding_rows(model: PreTrainedModel) -> int:
    """Number of rows of the input embedding matrix."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def check_rows(name: str, rows: int, tokens: int) -> None:
    """Refuse a model whose tokenizer has ids beyond its embedding matrix. Spare rows are usual and are dropped.

    Raises:
        ArtefactError: there are fewer rows than tokens.
    """
    if rows < tokens:
        raise ArtefactError(
            f"{name} has {rows} embedding rows but its tokenizer has {tokens} tokens: the tokenizer is not its own"
        )


def fixed_ids(model: PreTrainedModel, tokens: int) -> set[int]:
    """Ids that must survive: those which the configurations name, and those in front of a padding id that shifts
    positions (RoBERTa counts positions from the padding id plus one, so that id must not change)."""
    found: set[int] = set()

    def note(i: int) -> int:
        if 0 <= i < tokens:
            found.add(i)
        return i

    for config in _configurations(model):
        _renumber_config(config, note)
    embedding = model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not embedding and module.padding_idx is not None:
            found |= set(range(module.padding_idx))
    return found


def trim_model(model: PreTrainedModel, kept: torch.Tensor, tokens: int) -> list[str]:
    """Keep the entries `kept` of everything that has one per token, in place, and renumber ids in configurations.

    Ties between parameters and number formats stay as they are. An id that the tokenizer has no token for becomes
    None.

    Args:
        kept: (new size,) ascending old ids.
        tokens: size of the old vocabulary.

    Returns:
        Names of the trimmed parameters, tied names included.
    """
    rows, size = embedding_rows(model), len(kept)
    new = {int(old): i for i, old in enumerate(kept)}
    axes = vocabulary_axes(model)
    # Embedding modules are found before, and renumbered after, their parameters are replaced.
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    trimmed: dict[int, torch.Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, axis in axes.items():
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, last)
        if id(old) not in trimmed:
            cut = old.detach().index_select(axis, kept)
            trimmed[id(old)] = nn.Parameter(cut, requires_grad=old.requires_grad) if name in parameters else cut
        setattr(module, last, trimmed[id(old)])
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    for module in embeddings:
        if module.num_embeddings == rows and len(module.weight) == size:
            module.num_embeddings = size
            if module.padding_idx is not None:
                module.padding_idx = new.get(module.padding_idx)
    for config in _configurations(model):
        renumber_config(config, kept.numpy(), tokens)
    _resize_config(model.config, rows, size)
    return sorted(name for name in axes if name in parameters)


def check_shapes(folder: Path, model: PreTrainedModel) -> None:
    """Make sure that the class of a written model expects what was written.

    Raises:
        ArtefactError: it does not.
    """
    expected = blank_model(str(folder)).state_dict()
    for name, value in model.state_dict().items():
        if name in expected and expected[name].shape != value.shape:
            raise ArtefactError(
                f"{type(model).__name__} cannot be trimmed: its {name} would be {tuple(value.shape)}, but the class "
                f"expects {tuple(expected[name].shape)}"
            )


def _resize_config(config: PreTrainedConfig, rows: int, size: int) -> None:
    """Name another size of the vocabulary wherever a configuration, or one inside it, names the old one."""
    for one in _nested(config):
        for key in ("vocab_size", "decoder_vocab_size"):
            if getattr(one, key, None) == rows:
                setattr(one, key, size)


def _nested(config: PreTrainedConfig) -> list[Any]:
    configs: list[Any] = [config]
    for one in configs:
        configs += [value for value in vars(one).values() if isinstance(value, PreTrainedConfig)]
    return configs


def _configurations(model: PreTrainedModel) -> list[Any]:
    configs = _nested(model.config)
    generation = getattr(model, "generation_config", None)
    return [*configs, generation] if generation is not None else configs


_TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")


def renumber_config(config: Any, kept: np.ndarray, tokens: int) -> None:
    """Give every token id of a model or generation configuration its new number, in place."""
    new = {int(old): i for i, old in enumerate(kept)}
    _renumber_config(config, lambda i: new.get(i) if i < tokens else None)


def _renumber_config(config: Any, new: Callable[[int], int | None]) -> None:
    """Renumber every token id of a model or generation configuration in place."""

    def renumbered(value: Any) -> Any:
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int):
            return value if value < 0 else new(value)
        if isinstance(value, list | tuple):
            mapped = [renumbered(one) for one in value]
            return [one for one in mapped if one is not None]
        return value

    for key, value in list(vars(config).items()):
        if key.endswith(("_token_id", "_token_ids")) or key in _TOKEN_LISTS:
            changed = renumbered(value)
            if changed != value:
                setattr(config, key, changed)
