"""Run a model and keep the hidden states and attention maps of chosen layers only.

Hidden state 0 is the embedding output, state i the output of layer i; the last one is the encoder's output (after the
final layer norm of pre-norm families), as in transformers. All layers whose maps are not asked for run fused
scaled-dot-product attention. DeBERTa-v2 cannot: it computes its maps always, and the chosen ones are kept.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from bistil.distillation.aligned_attention import AttentionInputs, aligned_attention, attention_with_map, keeps_maps
from bistil.models.families import family_of
from bistil.runtime.fast_linear import fast_linear
from bistil.runtime.insides import (
    asked_for_map,
    attention_kind,
    plain_attention,
    refuse_other_scores,
    register_attention,
    set_attention_kind,
)

_NAME = "bistil_capture"
Vectors = tuple[Tensor, Tensor, Tensor]


@dataclass
class Captured:
    """What one forward pass left."""

    hidden: dict[int, Tensor] = field(default_factory=dict)
    """Per state asked for: (batch, tokens, width)."""
    attention: dict[int, "Tensor | AttentionInputs"] = field(default_factory=dict)
    """Per layer asked for: (batch, heads, tokens, tokens) probabilities, or what they are made of."""
    attention_losses: dict[int, Tensor] = field(default_factory=dict)
    """Per layer with a target whose loss was computed along with the attention itself: scalar."""
    vectors: dict[int, Vectors] = field(default_factory=dict)
    """Per relation layer: queries, keys, values (batch, tokens, all heads side by side)."""
    last: Tensor | None = None
    """(batch, tokens, width) the encoder's output."""
    logits: Tensor | None = None
    """The head's logits (of question answering: (batch, tokens, 2)), if the head ran."""
    output: Any = None
    """The head's whole output, if the head ran."""


@dataclass
class _Request:
    """What the attention function finds on a module whose map is wanted."""

    capture: "Capture"
    layer: int


class Capture:
    """Keeps chosen representations of every `run` of a model; hooks stay on the model until `close`.

    Args:
        model: of a supported family, with or without a task head.
        hidden_layers: which hidden states, 0 to depth.
        attention_layers: which layers' attention maps, 1 to depth.
        relation_layers: layers whose queries, keys and values are kept.
        fast: run linear maps as `fast_linear` does; false under torch.compile, which chooses for itself.
        final_norm: whether state `depth` is the encoder's output; false: the last layer's, before the final norm.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden_layers: Collection[int] = (),
        attention_layers: Collection[int] = (),
        relation_layers: Collection[int] = (),
        fast: bool = True,
        final_norm: bool = True,
    ) -> None:
        self.model = model
        self._linear_maps: Callable[[], AbstractContextManager[None]] = fast_linear if fast else nullcontext
        self.family = family_of(model)
        self.encoder: Any = self.family.encoder(model)
        layers = self.family.layers(model)
        self._now: Captured | None = None
        self._targets: Mapping[int, AttentionInputs] = {}
        self._real: Tensor | None = None
        self._hidden, self._attention = set(hidden_layers), set(attention_layers)
        self._relations = set(relation_layers)
        self._end = len(layers) if final_norm else None
        self._handles: list[Any] = []
        self._modules: list[nn.Module] = []
        for index, layer in enumerate(layers, start=1):
            if index - 1 in self._hidden:
                self._handles.append(layer.register_forward_pre_hook(self._keep_input(index - 1), with_kwargs=True))
            if index == len(layers) and index in self._hidden and not final_norm:
                self._handles.append(layer.register_forward_hook(self._keep_output(index)))
            self._attend(self.family.self_attention(layer), index)
        self._implementation = self._switch_on()

    def run(
        self,
        batch: Mapping[str, Tensor],
        *,
        head: bool = False,
        targets: Mapping[int, AttentionInputs] | None = None,
    ) -> Captured:
        """One forward pass.

        Args:
            batch: keyword arguments of the model, such as input_ids and attention_mask, each (batch, tokens).
            head: run the whole model with its head; otherwise the encoder alone.
            targets: per layer, an aligned teacher layer's attention inputs; this layer's L_attn is then computed
                together with the attention and appears in `attention_losses`.
        """
        captured = Captured()
        self._now, self._targets = captured, targets or {}
        self._real = batch.get("attention_mask") if targets else None
        last: list[Tensor] = []
        handle = None
        try:
            with self._linear_maps():
                if head:
                    handle = self.encoder.register_forward_hook(lambda _m, _a, output: last.append(output[0]))
                    captured.output = self.model(**batch)
                    captured.logits = _logits(captured.output)
                    captured.last = last[0]
                else:
                    captured.last = self.encoder(**batch)[0]
        finally:
            self._now, self._targets, self._real = None, {}, None
            if handle is not None:
                handle.remove()
        if self._end in self._hidden:
            captured.hidden[self._end] = captured.last
        return captured

    def close(self) -> None:
        """Take the hooks off and give the model its own attention back."""
        for handle in self._handles:
            handle.remove()
        for module in self._modules:
            del module._bistil_request
        self._handles, self._modules = [], []
        if self._implementation is not None:
            set_attention_kind(self.encoder, self._implementation)
            self._implementation = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _switch_on(self) -> str | None:
        if not self.family.attention_interface or not (self._attention or self._relations):
            return None
        before = attention_kind(self.encoder)
        set_attention_kind(self.encoder, _NAME)
        return before if before != _NAME else "sdpa"

    def _keep_input(self, state: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._now is not None:
                self._now.hidden[state] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _keep_output(self, state: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if self._now is not None:
                self._now.hidden[state] = output[0] if isinstance(output, tuple) else output

        return hook

    def _attend(self, module: Any, layer: int) -> None:
        """Mark a self-attention whose inside is wanted."""
        if self.family.attention_interface:
            if layer in self._attention or layer in self._relations:
                module._bistil_request = _Request(self, layer)
                self._modules.append(module)
            return
        if layer in self._attention:
            # DeBERTa-v2 throws its map away unless asked; ask this layer only.
            self._handles.append(module.register_forward_pre_hook(asked_for_map, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._keep_map(layer)))
        if layer in self._relations:
            assert self.family.projections is not None
            for place, name in enumerate(self.family.projections):
                self._handles.append(module.get_submodule(name).register_forward_hook(self._keep_vector(layer, place)))

    def _keep_map(self, layer: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            if self._now is not None:
                self._now.attention[layer] = output[1]

        return hook

    def _keep_vector(self, layer: int, place: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            if self._now is None:
                return
            known = self._now.vectors.get(layer, (None, None, None))
            # The same projection then maps relative positions, which are not wanted: the first call counts.
            if known[place] is None:
                self._now.vectors[layer] = (*known[:place], output, *known[place + 1 :])

        return hook

    def attention_of(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        dropout: float,
    ) -> Tensor | None:
        """Keep what is wanted of one layer; its output (batch, tokens, heads, head width) if that was made too."""
        now = self._now
        if now is None:
            return None
        # Rotary positions leave queries and keys in float32 where autocast makes all else bf16.
        query, key = (one.to(value.dtype) for one in (query, key))
        if layer in self._relations:
            query_vectors, key_vectors, value_vectors = (
                tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)
            )
            now.vectors[layer] = (query_vectors, key_vectors, value_vectors)
        if layer not in self._attention:
            return None
        target = self._targets.get(layer)
        if target is None and keeps_maps(query) and not (dropout or torch.is_grad_enabled()):
            output, now.attention[layer] = attention_with_map(query, key, value, mask=mask, scaling=scaling)
            return output.transpose(1, 2).contiguous()
        if target is None or dropout:
            now.attention[layer] = AttentionInputs(query, key, mask, scaling)
            return None
        output, loss = aligned_attention(query, key, value, mask=mask, scaling=scaling, teacher=target, real=self._real)
        now.attention_losses[layer] = loss
        return output.transpose(1, 2).contiguous()


def probabilities(attention: "Tensor | AttentionInputs") -> Tensor:
    """The attention map itself, (batch, heads, tokens, tokens)."""
    return attention if isinstance(attention, Tensor) else attention.probabilities()


def _capturing_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers' AttentionInterface: SDPA, and what a `Capture` wants besides."""
    request = getattr(module, "_bistil_request", None)
    if request is not None:
        refuse_other_scores(module, options)
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        # Where heads share keys and values in groups, each head is compared with its own copy.
        groups = query.shape[1] // key.shape[1]
        keys, values = (one if groups == 1 else one.repeat_interleave(groups, dim=1) for one in (key, value))
        output = request.capture.attention_of(request.layer, query, keys, values, attention_mask, scale, dropout)
        if output is not None:
            return output, None
    return plain_attention(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)


register_attention(_NAME, _capturing_attention)


def _logits(output: Any) -> Tensor | None:
    if getattr(output, "start_logits", None) is not None:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return getattr(output, "logits", None)
