"""The way back: a fine-tuned trimmed model with its base's whole vocabulary."""

from pathlib import Path

import torch

from bistil.errors import ArtefactError
from bistil.models.cards import card_metadata
from bistil.models.loading import load_model, model_class, read_config
from bistil.models.tokenizers import load_tokenizer
from bistil.models.writing import write_model
from bistil.runtime.artefacts import claim

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
        InputError: `output` may not be written (`runtime.artefacts.claim`).
        ArtefactError: the two models do not fit each other.
    """
    claim(folders=[output], inputs=[model, base], force=replace)
    config, wanted = read_config(model), read_config(base)
    kind = model_class(config)
    tuned = load_model(model, kind)[0].state_dict()
    # A head of the base's own, such as a masked-LM head, keeps what it has of the tokens that were dropped.
    same_head = kind is model_class(wanted) and wanted.id2label == config.id2label
    for name in HEAD_VALUES:
        if hasattr(config, name):
            setattr(wanted, name, getattr(config, name))
    whole, _ = load_model(base, kind, head="optional" if same_head else "new", config=wanted)
    with torch.no_grad():
        for name, parameter in whole.state_dict().items():
            value = tuned[name]
            sizes = list(zip(value.shape, parameter.shape, strict=False))
            trimmed = [d for d, (ours, theirs) in enumerate(sizes) if ours != theirs]
            if parameter.shape == value.shape:
                parameter.copy_(value)
            elif value.dim() == parameter.dim() and [value.shape[d] for d in trimmed] == [len(kept)]:
                parameter.index_copy_(trimmed[0], kept, value)
            else:
                shapes = f"{tuple(value.shape)} against {tuple(parameter.shape)} in {base}"
                raise ArtefactError(f"{model} was not made from this base: {name} is {shapes}")
    write_model(
        output,
        whole,
        load_tokenizer(str(base)),
        record={"kind": "task model with its whole vocabulary"},
        title=output.name,
        summary=f"The task model `{Path(model).name}` with all tokens of `{Path(base).name}` again.",
        languages=[],
        pipeline_tag=card_metadata(model).get("pipeline_tag"),
        replace=replace,
        parent=base,
    )
