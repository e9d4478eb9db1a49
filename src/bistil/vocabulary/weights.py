"""A model with fewer rows in its vocabulary: input and output embeddings, output bias, ids in its configuration."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from bistil import models
from bistil.errors import ArtefactError
from bistil.models import model_class, read_config


def load_model(name: str) -> tuple[PreTrainedModel, set[str]]:
    """A checkpoint under the class that its config.json names, in its own number format, in evaluation mode.

    Returns:
        The model, and the names of those of its parameters that the checkpoint lacks (they are random).

    Raises:
        ArtefactError: the class is unknown, or the weights cannot be read, are damaged, or lack more than a head or
            pooler.
    """
    return models.load_model(name, head="optional", dtype="auto")


def blank_model(name: str) -> PreTrainedModel:
    """A checkpoint's model without weights, on the meta device, to measure.

    Raises:
        InputError: as `load_model`.
        ArtefactError: config.json cannot be read.
    """
    config = read_config(name)
    kind = model_class(config)
    with torch.device("meta"):
        model = kind.from_config(config) if kind is AutoModel else kind(config)
    return model.to(config.dtype or torch.float32)


def vocabulary_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything with one row per token: embeddings, output matrix, output bias.

    A tied parameter is listed under each of its names.
    """
    rows = embedding_rows(model)
    output = model.get_output_embeddings()
    found = {id(model.get_input_embeddings().weight)}
    if output is not None:
        found |= {id(parameter) for parameter in output.parameters(recurse=False) if len(parameter) == rows}
        # A prediction head may hold its bias beside the output matrix and not in it.
        base = (
            {id(parameter) for parameter in model.base_model.parameters()} if model.base_model is not model else set()
        )
        found |= {
            id(parameter)
            for name, parameter in model.named_parameters()
            if name.endswith("bias") and parameter.shape == (rows,) and id(parameter) not in base
        }
    return {
        name: parameter for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in found
    }


def embedding_rows(model: PreTrainedModel) -> int:
    """Number of rows of the input embedding matrix."""
    return int(model.get_input_embeddings().weight.shape[0])


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
    """Keep the rows `kept` of everything that has one row per token, in place, and renumber ids in configurations.

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
    # Embedding modules are found before, and renumbered after, their parameters are replaced.
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    named = vocabulary_parameters(model)
    old_parameters = {id(parameter) for parameter in named.values()}
    trimmed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in old_parameters:
                continue
            if id(parameter) not in trimmed:
                trimmed[id(parameter)] = nn.Parameter(parameter.detach()[kept], requires_grad=parameter.requires_grad)
            setattr(module, name, trimmed[id(parameter)])
            if isinstance(module, nn.Linear) and module.out_features == rows:
                module.out_features = size
    for module in embeddings:
        if module.num_embeddings == rows and len(module.weight) == size:
            module.num_embeddings = size
            if module.padding_idx is not None:
                module.padding_idx = new.get(module.padding_idx)
    for config in _configurations(model):
        renumber_config(config, kept.numpy(), tokens)
        if getattr(config, "vocab_size", None) == rows:
            config.vocab_size = size
    return sorted(named)


def _configurations(model: PreTrainedModel) -> list[Any]:
    configs: list[Any] = [model.config]
    for config in configs:
        configs += [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
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
