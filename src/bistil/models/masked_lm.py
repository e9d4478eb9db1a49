"""Masked language models: the loss, the head that is there and the head that is made."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from bistil.models.families import family_of
from bistil.models.loading import load_model, read_config
from bistil.models.names import model_folder


def masked_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of masked language modelling.

    Args:
        logits: (rows, vocabulary).
        labels: (rows) token ids.

    Returns:
        Scalar mean over rows; 0 without rows.
    """
    return F.cross_entropy(at_least_float32(logits), labels) if len(labels) else logits.sum() * 0.0


# A token that the text lacks counts as a tenth of an occurrence in a new head's output bias.
UNSEEN = 0.1


def masked_lm_model(name: str, *, seed: int) -> tuple[PreTrainedModel, list[str]]:
    """A model with a masked-LM head whose output embeddings are decoupled from the input embeddings and frozen.

    Args:
        name: any name that `models.names.resolve_model` takes. An encoder without the head gets a new one, drawn from
            `seed`, over its own embeddings.
        seed: of a new head.

    Returns:
        The model, and the names of its densely trained parameters: the output bias, and all of a new head.

    Raises:
        ArtefactError: the model cannot be loaded, or belongs to no supported family.
    """
    folder = model_folder(name)
    family_of(read_config(folder))
    model, missing = load_model(folder, AutoModelForMaskedLM, head="optional", seed=seed)
    prefix = family_of(model).prefix(model)
    output = model.get_output_embeddings()
    # The untying: a frozen copy of the embeddings predicts, so that what the language changes in the input embeddings
    # does not have to serve both ends.
    output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    biases = {id(output.bias)} if getattr(output, "bias", None) is not None else set()
    by_id: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(parameter), []).append(key)
    frozen = id(output.weight)
    dense = [
        keys[0]
        for identity, keys in by_id.items()
        if identity != frozen and not keys[0].startswith(prefix) and (identity in biases or set(keys) <= missing)
    ]
    return model.eval(), dense


@torch.no_grad()
def start_at_frequencies(model: PreTrainedModel, blocks: Any, indices: np.ndarray) -> None:
    """Set a new head's output bias to the log shares of the tokens in the training blocks.

    A head that starts there need not learn first which tokens are frequent: what it learns is what the context says.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is None:
        return
    counts = np.full(len(bias), UNSEEN)
    for start in range(0, len(indices), 1024):
        ids = np.concatenate([np.asarray(row) for row in blocks[indices[start : start + 1024]]["input_ids"]])
        counts += np.bincount(ids, minlength=len(bias))
    bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))


def has_masked_lm_head(configuration: PretrainedConfig) -> bool:
    """Whether the model was saved with a masked-LM head."""
    return any(name.endswith("ForMaskedLM") for name in configuration.architectures or ())


def supported_config(folder: Path) -> PretrainedConfig:
    """The model's configuration, of a supported family."""
    config: PretrainedConfig = read_config(folder)
    family_of(config)
    return config


def load_encoder(folder: Path) -> Any:
    """The model, with its masked-LM head if the folder has one."""
    configuration = supported_config(folder)
    auto = AutoModelForMaskedLM if has_masked_lm_head(configuration) else AutoModel
    # DeBERTa-v2 has no SDPA attention to choose.
    attention = "sdpa" if family_of(configuration).attention_interface else "eager"
    return load_model(folder, auto, attn_implementation=attention)[0]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Sums of squares and softmaxes need float32 at least."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
