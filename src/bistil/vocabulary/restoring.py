"""The way back: a fine-tuned trimmed model with its base's whole vocabulary."""

from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel

from bistil.artefacts import whole_folder
from bistil.errors import ArtefactError
from bistil.models import load_tokenizer
from bistil.tasks.base import quiet_transformers


def restore_vocabulary(model: Path, *, base: Path, kept: torch.Tensor, output: Path) -> None:
    """Write the model that fine-tuning `base` would have given on the text that fine-tuning `model` saw.

    Tokens outside the trimmed vocabulary do not occur in the training text, so their embeddings get no gradient: they
    are the base's. Everything else is the fine-tuned model's.

    Args:
        model: folder of a fine-tuned model on the trimmed vocabulary.
        base: folder of the untrimmed model.
        kept: (trimmed vocabulary,) int64, new id -> old id.
        output: folder to write; one that exists gives way.

    Raises:
        ArtefactError: the two models do not fit each other.
    """
    config = AutoConfig.from_pretrained(model)
    model_class = getattr(transformers, (config.architectures or [""])[0], AutoModel)
    with quiet_transformers():
        tuned = model_class.from_pretrained(model).state_dict()
        labels = {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
        whole = model_class.from_pretrained(base, **labels).float().eval()
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
    with whole_folder(output, replace=True) as folder:
        whole.save_pretrained(folder)
        load_tokenizer(str(base)).save_pretrained(folder)
