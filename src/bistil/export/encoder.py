"""A task model as CTranslate2 has it: its encoder in CTranslate2's own file, and the head in one for numpy."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from bistil.engines.alone import ENCODER, FORM, HEAD
from bistil.engines.ctranslate2 import has_types, require_ctranslate2
from bistil.errors import ArtefactError
from bistil.export.quantise import in_rows
from bistil.models.families import Family, PlainLayer, family_of, position_limit
from bistil.models.loading import task_of

# What transformers calls an activation -> what CTranslate2 does.
ACTIVATIONS = {
    "gelu": "GELU",
    "gelu_new": "GELUTanh",
    "gelu_fast": "GELUTanh",
    "gelu_pytorch_tanh": "GELUTanh",
    "quick_gelu": "GELUSigmoid",
    "relu": "RELU",
    "silu": "SWISH",
    "swish": "SWISH",
}
OTHER = "export it for onnxruntime (--engine onnxruntime)"
FORMS = {
    "": "states",
    "token-classification": "tokens",
    "sequence-classification": "first",
    "question-answering": "spans",
    "dependency-parsing": "parser",
}
"""What a model class is for -> the form of its head (`engines.alone.Head`)."""
# Smaller tensors of a head are not worth a scale per row.
LEAST_TENSOR = 1 << 18


def check_encoder(model: PreTrainedModel) -> tuple[Family, PlainLayer, str]:
    """A model's family, its layers' parts and its head's form.

    Raises:
        ArtefactError: CTranslate2 cannot run such an encoder, or the head is of a kind that is not known here.
    """
    family, name = family_of(model), type(model).__name__
    layer = family.plain_layer
    if layer is None:
        raise ArtefactError(f"CTranslate2 has no encoder of the kind of {family.model_type}: {OTHER}")
    activation = getattr(model.config, layer.activation_field)
    if activation not in ACTIVATIONS:
        raise ArtefactError(f"CTranslate2 has no activation {activation!r}: {OTHER}")
    form = FORMS.get(task_of(name))
    if form is None:
        raise ArtefactError(f"the head of {name} is none that runs beside CTranslate2: {OTHER}")
    return family, layer, form


def write_encoder(model: PreTrainedModel, folder: Path, *, int8: bool) -> None:
    """Write the folder `ENCODER` with a model's encoder.

    Matrices in int8 have a scale per row, and activations get one per token while the model runs.

    Args:
        model: one that `check_encoder` knows.
        folder: of the exported model.
    """
    require_ctranslate2()
    from ctranslate2 import specs

    family, layer, _ = check_encoder(model)
    config: Any = model.config
    embeddings: Any = family.embeddings(model)
    types = has_types(config)
    encoder = specs.TransformerEncoderSpec(
        family.depth(config),
        family.heads(config),
        pre_norm=False,
        activation=specs.Activation[ACTIVATIONS[getattr(config, layer.activation_field)]],
        num_source_embeddings=2 if types else 1,
        embeddings_merge=specs.EmbeddingsMerge.ADD,
        layernorm_embedding=True,
    )
    encoder.scale_embeddings = False
    # The kin of RoBERTa have rows for positions in front that no token has.
    positions = _array(embeddings.position_embeddings.weight)[-int(position_limit(config) or 0) :]
    encoder.embeddings[0].weight = _array(embeddings.word_embeddings.weight)
    known: Any = getattr(embeddings, "token_type_embeddings", None)
    if types:
        encoder.embeddings[1].weight = _array(known.weight)
    elif known is not None:
        # One type is the same of all tokens: as good as a part of their positions.
        positions = positions + _array(known.weight)[0]
    encoder.position_encodings.encodings = positions
    _norm(encoder.layernorm_embedding, embeddings.LayerNorm)
    for to, one in zip(encoder.layer, family.layers(model), strict=True):
        attention = family.self_attention(one)
        assert family.projections is not None
        _linear(to.self_attention.linear[0], *(attention.get_submodule(name) for name in family.projections))
        _linear(to.self_attention.linear[1], one.get_submodule(family.attention_output_path))
        _norm(to.self_attention.layer_norm, one.get_submodule(layer.attention_norm))
        _linear(to.ffn.linear_0, one.get_submodule(layer.feed_forward_in))
        _linear(to.ffn.linear_1, one.get_submodule(layer.feed_forward_out))
        _norm(to.ffn.layer_norm, one.get_submodule(layer.output_norm))
    spec = specs.TransformerEncoderModelSpec(encoder)
    spec.config.layer_norm_epsilon = embeddings.LayerNorm.eps
    spec.register_vocabulary(list(map(str, range(config.vocab_size))))
    spec.validate()
    spec.optimize("int8" if int8 else "float32")
    place = folder / ENCODER
    place.mkdir(exist_ok=True)
    spec.save(str(place))
    # Tokens come as numbers, from the tokenizer beside it; CTranslate2 wants a list of them all the same.
    (place / "vocabulary.json").write_text('["<unk>"]\n', encoding="utf-8")


def write_head(model: Any, folder: Path, *, int8: bool) -> None:
    """Write `HEAD`: the head's tensors and, in the metadata, its form. In int8 large ones have a scale per row."""
    form = check_encoder(model)[2]
    activation: dict[str, str] = {}
    maps: dict[str, Any] = {}
    if form == "parser":
        maps = {name: getattr(model, name) for name in ("project_dependents", "project_heads")}
    elif form == "spans":
        maps = {"classifier": model.qa_outputs}
    elif form == "tokens":
        maps = {"classifier": model.classifier}
    elif form == "first":
        pooler, classifier, name = _pooled(model)
        maps, activation = {"pooler": pooler, "classifier": classifier}, {"activation": name}
    tensors = {f"{name}.{part}": _array(value) for name, one in maps.items() for part, value in one.named_parameters()}
    if form == "parser":
        tensors |= {"arc_weight": _array(model.arcs.weight), "relation_weight": _array(model.relations.weight)}
    save_file(dict(in_rows(tensors, int8=int8, least=LEAST_TENSOR)), folder / HEAD, metadata={FORM: form, **activation})


def _pooled(model: Any) -> tuple[nn.Module, nn.Module, Literal["tanh", "relu"]]:
    """What makes a text's class out of its first token's state: two linear maps, and what stands between them."""
    if hasattr(model, "pre_classifier"):
        return model.pre_classifier, model.classifier, "relu"
    if hasattr(model.classifier, "out_proj"):
        return model.classifier.dense, model.classifier.out_proj, "tanh"
    encoder: Any = family_of(model).encoder(model)
    return encoder.pooler.dense, model.classifier, "tanh"


def _array(tensor: Tensor) -> np.ndarray:
    """A copy of float32: CTranslate2 quantises in place."""
    return np.array(tensor.detach().float().numpy(), order="C")


def _norm(to: Any, norm: Any) -> None:
    to.gamma, to.beta = _array(norm.weight), _array(norm.bias)


def _linear(to: Any, *linears: Any) -> None:
    """Linear maps side by side in the rows of one matrix."""
    to.weight = np.concatenate([_array(one.weight) for one in linears])
    to.bias = np.concatenate([_array(one.bias) for one in linears])
