"""The only place that knows where a model family keeps its layers, embeddings, attention and heads.

A path such as "encoder.layer" is relative to the encoder, the model that `AutoModel` builds; under a task head the
same encoder hangs on the attribute that the head's class names (`base_model_prefix`). A new family is a module of this
package, called like its model type, that calls `register`; one's own is registered from anywhere.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch
from torch import Tensor, nn

from bistil.errors import ArtefactError, InputError


@dataclass(frozen=True)
class PlainLayer:
    """Where a layer of BERT's first kind keeps its parts: attention, then two linear maps, each with the sum and a
    layer norm behind it; and absolute positions, added to the embeddings."""

    attention_norm: str = "attention.output.LayerNorm"
    feed_forward_in: str = "intermediate.dense"
    feed_forward_out: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    activation_field: str = "hidden_act"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Paths and habits of one model type of transformers."""

    model_type: str
    layers_path: str = "encoder.layer"
    embeddings_path: str = "embeddings"
    word_embeddings: str = "embeddings.word_embeddings.weight"
    depth_field: str = "num_hidden_layers"
    width_field: str = "hidden_size"
    heads_field: str = "num_attention_heads"
    feed_forward_field: str = "intermediate_size"
    self_attention_path: str = "attention.self"
    attention_output_path: str = "attention.output.dense"
    """The linear map that joins the heads again."""
    stacked: Mapping[str, int] = field(default_factory=dict)
    """Linear maps of a layer that are several in one, side by side in the rows of one matrix: how many."""
    rotary: bool = False
    """Whether positions turn pairs of a head's dimensions."""
    projections: tuple[str, str, str] | None = ("query", "key", "value")
    """Query, key and value projections below the self-attention; None where one matrix makes all three."""
    attention_interface: bool = True
    """Whether attention goes through transformers' `AttentionInterface`; otherwise maps are always computed."""
    final_norm_path: str | None = None
    """A layer norm between the last layer and the encoder's output (pre-norm families)."""
    plain_layer: PlainLayer | None = None
    """The parts of a layer, where it is a plain one; None: it has more to it."""
    first_layer_lacks: tuple[tuple[str, str], ...] = ()
    """(norm, linear) of every layer but the first; a first layer copied from elsewhere takes the norm's gain into the
    linear map's columns."""

    def encoder(self, model: nn.Module) -> nn.Module:
        """The model without its task head; the model itself if it has none."""
        return getattr(model, str(model.base_model_prefix), model)

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The encoder's Transformer layers, first to last."""
        layers = self.encoder(model).get_submodule(self.layers_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def embeddings(self, model: nn.Module) -> nn.Module:
        """The module whose output is H_0, (batch, tokens, width)."""
        return self.encoder(model).get_submodule(self.embeddings_path)

    def self_attention(self, layer: nn.Module) -> nn.Module:
        """The module of one layer that computes attention probabilities."""
        return layer.get_submodule(self.self_attention_path)

    def final_norm(self, model: nn.Module) -> nn.Module | None:
        """The layer norm after the last layer, where the family has one."""
        return self.encoder(model).get_submodule(self.final_norm_path) if self.final_norm_path else None

    def prefix(self, model: nn.Module) -> str:
        """What precedes the encoder's parameter names in this model: "bert." under a head, "" without one."""
        encoder = self.encoder(model)
        return "" if encoder is model else f"{model.base_model_prefix}."

    def embedding_parameters(self, model: nn.Module) -> set[str]:
        """Names of all parameters of the embedding layer (words, positions, token types, their layer norm)."""
        prefix = f"{self.prefix(model)}{self.embeddings_path}."
        return {name for name, _ in model.named_parameters() if name.startswith(prefix)}

    def depth(self, config: Any) -> int:
        """Number of Transformer layers."""
        return int(getattr(config, self.depth_field))

    def width(self, config: Any) -> int:
        """Hidden size."""
        return int(getattr(config, self.width_field))

    def heads(self, config: Any) -> int:
        """Number of attention heads."""
        return int(getattr(config, self.heads_field))

    def feed_forward(self, config: Any) -> int:
        """Width of the feed-forward layers."""
        return int(getattr(config, self.feed_forward_field))

    def truncated_config(self, config: Any, layers: list[int]) -> Any:
        """A copy of the configuration with the given teacher layers (1-based), in this order.

        Layer types (ModernBERT's local and global attention) follow the layers that are copied.
        """
        config = copy.deepcopy(config)
        types = getattr(config, "layer_types", None)
        setattr(config, self.depth_field, len(layers))
        if types:
            config.layer_types = [types[layer - 1] for layer in layers]
        return config

    def narrowed_config(self, config: Any, *, width: int, feed_forward: int, heads: int) -> Any:
        """A copy of the configuration with other widths; heads that share keys and values go on sharing as many."""
        before, own_heads = self.width(config), self.heads(config)
        config = copy.deepcopy(config)
        for name in ("embedding_size", "pooler_hidden_size"):
            if getattr(config, name, None) == before:
                setattr(config, name, width)
        shared = getattr(config, "num_key_value_heads", None)
        if shared is not None:
            config.num_key_value_heads = max(1, heads * shared // own_heads)
        if getattr(config, "head_dim", None) is not None:
            config.head_dim = width // heads
        setattr(config, self.width_field, width)
        setattr(config, self.feed_forward_field, feed_forward)
        setattr(config, self.heads_field, heads)
        return config

    def masked_lm_logits(self, model: nn.Module, states: Tensor) -> Tensor:
        """Apply the masked-language-modelling head to chosen states.

        Args:
            model: of the family's ...ForMaskedLM class.
            states: (..., width) outputs of the encoder.

        Returns:
            (..., vocabulary) logits.
        """
        head: Any = model
        logits: Tensor
        if hasattr(head, "cls"):
            logits = head.cls(states)
        elif hasattr(head, "lm_predictions"):
            logits = head.lm_predictions(states, head.get_input_embeddings())
        elif hasattr(head, "lm_head"):
            logits = head.lm_head(states)
        elif self.model_type == "distilbert":
            logits = head.vocab_projector(head.vocab_layer_norm(head.activation(head.vocab_transform(states))))
        else:
            logits = head.decoder(head.head(states))
        return logits


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known, or take the place of one with its model type; returns it."""
    _FAMILIES[family.model_type] = family
    return family


for _family in (
    Family(model_type="bert", plain_layer=PlainLayer()),
    Family(model_type="roberta", plain_layer=PlainLayer()),
    Family(model_type="xlm-roberta", plain_layer=PlainLayer()),
    Family(
        model_type="deberta-v2",
        projections=("query_proj", "key_proj", "value_proj"),
        attention_interface=False,
    ),
    Family(
        model_type="distilbert",
        layers_path="transformer.layer",
        depth_field="n_layers",
        width_field="dim",
        heads_field="n_heads",
        feed_forward_field="hidden_dim",
        self_attention_path="attention",
        attention_output_path="attention.out_lin",
        projections=("q_lin", "k_lin", "v_lin"),
        plain_layer=PlainLayer("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm", "activation"),
    ),
    Family(
        model_type="modernbert",
        layers_path="layers",
        word_embeddings="embeddings.tok_embeddings.weight",
        self_attention_path="attn",
        attention_output_path="attn.Wo",
        stacked={"attn.Wqkv": 3, "mlp.Wi": 2},
        rotary=True,
        projections=None,
        final_norm_path="final_norm",
        first_layer_lacks=(("attn_norm", "attn.Wqkv"),),
    ),
):
    register(_family)


def supported() -> list[str]:
    """Model types that are known, those of this package's modules among them."""
    return sorted({*_FAMILIES, *(module.name.replace("_", "-") for module in iter_modules(__path__))})


def family_of(model_or_config: Any) -> Family:
    """The family of a model or of its configuration.

    A module of this package that is called like a model type registers that family when it is first asked for.

    Raises:
        ArtefactError: a model type that is not supported.
    """
    config = getattr(model_or_config, "config", model_or_config)
    model_type = getattr(config, "model_type", None)
    if model_type not in _FAMILIES and model_type in supported():
        import_module(f"{__name__}.{model_type.replace('-', '_')}")
    if model_type not in _FAMILIES:
        raise ArtefactError(f"model type {model_type!r} is not supported; supported are {', '.join(supported())}")
    return _FAMILIES[model_type]


def base_prefix(model: nn.Module) -> str:
    """ "bert." for a model of any family that holds its encoder as `.bert`, "" for a bare encoder."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def head_names(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of a model's parameter names that a task brings: outside the encoder, and the encoder's pooler."""
    prefix = base_prefix(model)
    return {name for name in names if not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")}


@torch.no_grad()
def fold_gain(norm: Any, linear: Any, target: Any) -> None:
    """Write into `target` the linear map with the layer norm's gain (and bias) taken into it.

    All three are modules: a LayerNorm and two Linear of one shape.
    linear(gain * x + bias) = (weight * gain) x + (weight @ bias + linear's bias).
    """
    target.weight.copy_(linear.weight * norm.weight)
    if target.bias is not None:
        target.bias.copy_(linear.bias)
        if norm.bias is not None:
            target.bias.add_(linear.weight @ norm.bias)


def position_limit(config: Any) -> int | None:
    """The longest input in tokens that the model's position embeddings allow; None: no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or limit <= 0 or not getattr(config, "position_biased_input", True):
        return None
    # RoBERTa and its kin count positions from behind the padding id.
    offset = (
        config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl") else 0
    )
    return int(limit) - offset


def check_length(config: Any, length: int, *, name: str = "max_length") -> None:
    """Refuse windows that are longer than the model's position embeddings.

    Args:
        name: how the setting is called in the message.

    Raises:
        InputError: with the longest length that works.
    """
    check_positions(position_limit(config), length, name=name)


def check_positions(limit: int | None, length: int, *, name: str = "max_length") -> None:
    """`check_length` where the limit is known (None: no limit)."""
    if limit is not None and length > limit:
        raise InputError(f"{name} is {length}, but the model has {limit} positions: choose at most that")
