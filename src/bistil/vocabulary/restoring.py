"""The way back: a fine-tuned trimmed model with its base's whole vocabulary."""

from pathlib import Path

import torch
from transformers import AutoConfig

from bistil.artefacts import claim, whole_folder
from bistil.errors import ArtefactError
from bistil.models import load_tokenizer, model_class
from bistil.tasks.base import quiet_transformers

# What a task's head puts into a configuration.
HEAD_VALUES = ("id2label", "label2id", "problem_type", "parser_projection")


def restore_vocabulary(model: Path, *, base: Path, kept: torch.Tensor, output: Path, replace: bool = False) -> None:
    """Write the model that fine-tuning `base` would have given on the text that fine-tuning `model` saw.

    Tokens outside the trimmed vocabulary do not occur in the training text, so their embeddings get no gradient: they
    are the base's. Everything else is the fine-tuned model's.

    Args:
        model: folder of a fine-tuned model on the trimmed vocabulary.
        base: folder of the untrimmed model.
        kept: (trimmed vocabulary,) int64, new id -> old id.
        output: folder to write.
        replace: a folder of ours gives way.

    Raises:
        InputError: `output` may not be written (`artefacts.claim`).
        ArtefactError: the two models do not fit each other.
    """
    claim(folders=[output], inputs=[model, base], force=replace)
    config = AutoConfig.from_pretrained(model)
    kind = model_class(config)
    with quiet_transformers():
        tuned = kind.from_pretrained(model).state_dict()
        wanted = AutoConfig.from_pretrained(base)
        for name in HEAD_VALUES:
            if hasattr(config, name):
                setattr(wanted, name, getattr(config, name))
        whole = kind.from_pretrained(base, config=wanted).float().eval()
    with torch.no_grad():
        for name, parameter in whole.state_dict().items():
            value = tuned[name]
            if parameter.shape == value.shape:
                parameter.copy_(value)
            elif len(value) == len(kept) and parameter.shape[1:] == value.shape[1:]:
                parameter[kept] = value
            else:
                shapes = f"{tuple(value.shape)} against {tuple(parameter.shape)} in {base}"
                raise ArtefactError(f"{model} was not made from this base: {name} is {shapes}")
    with whole_folder(output, replace=replace, record={"kind": "task model with its whole vocabulary"}) as folder:
        whole.save_pretrained(folder)
        load_tokenizer(str(base)).save_pretrained(folder)
