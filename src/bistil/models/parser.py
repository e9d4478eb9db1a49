"""The shallow biaffine parser (Glavaš & Vulić 2021, section 2.2) on any supported encoder.

A word's vector is the mean of its subwords' vectors, the first vector stands for the root. With d the width,
arc scores are [dependent; 1] A head with A (d + 1, d), and relation scores [dependent; 1] R_r [head; 1]. There are no
layers between; with a projection size p, dependents and heads are first mapped to p dimensions each
(Dozat & Manning 2017, equations 4-6), which shrinks the relation weights by (d / p)^2.
"""

from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from bistil.runtime.insides import draw_new, encoder_class, zero_new
from bistil.text import IGNORED


@dataclass
class ParserOutput(ModelOutput):
    """What the parser says about a batch; W words in the longest sentence, p the (projected) width.

    Attributes:
        loss: scalar, mean arc loss plus mean relation loss, if gold heads and relations were given.
        logits: (batch, W, W + 1) arc scores of each word for each head, head 0 is the root; -inf at padded words.
        dependents: (batch, W, p) words as dependents.
        heads: (batch, W + 1, p) root and words as heads.
        relation_weight: (relations, p + 1, p + 1).
        arc_weight: (1, p + 1, p).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    dependents: Tensor | None = None
    heads: Tensor | None = None
    relation_weight: Tensor | None = None
    arc_weight: Tensor | None = None


class Biaffine(nn.Module):
    """Weights (outputs, dependent features, head features), zero at the start, so that all arcs begin equal."""

    def __init__(self, outputs: int, dependents: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, dependents, heads))


class Projection(nn.Linear):
    """Maps word vectors to fewer dimensions before the biaffine."""


class DependencyParser(PreTrainedModel):
    """What the parsers of all families share; `parser_class` puts it on a family's base class."""

    def _build(self, config: Any) -> None:
        """Make encoder and head."""
        encoder = encoder_class(type(config))
        # The pooler would never get a gradient; only some families have one.
        pooler = {"add_pooling_layer": False} if "add_pooling_layer" in signature(encoder).parameters else {}
        setattr(self, self.base_model_prefix, encoder(config, **pooler))
        size = getattr(config, "parser_projection", None)
        width = size or config.hidden_size
        self.project_dependents = Projection(config.hidden_size, width) if size else nn.Identity()
        self.project_heads = Projection(config.hidden_size, width) if size else nn.Identity()
        self.arcs = Biaffine(1, width + 1, width)
        self.relations = Biaffine(config.num_labels, width + 1, width + 1)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Biaffine):
            zero_new(module.weight)
        elif isinstance(module, Projection):
            draw_new(module.weight, std=self.config.hidden_size**-0.5)
            zero_new(module.bias)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        word_starts: Tensor | None = None,
        word_ends: Tensor | None = None,
        labels: Tensor | None = None,
        relation_labels: Tensor | None = None,
    ) -> ParserOutput:
        """Score all arcs.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens).
            token_type_ids: (batch, tokens), where the family knows them.
            word_starts: (batch, W) position of each word's first subword with text; -1 at padded words.
            word_ends: (batch, W) position behind its last.
            labels: (batch, W) gold heads, 0 for the root; -100: does not count.
            relation_labels: (batch, W) gold relations; -100: does not count.

        Raises:
            ValueError: the words' positions are missing.
        """
        if word_starts is None or word_ends is None:
            raise ValueError("word_starts and word_ends are needed: encode with the task dependency-parsing")
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        encoder = getattr(self, self.base_model_prefix)
        states = encoder(input_ids=input_ids, attention_mask=attention_mask, **types)[0]
        words = word_vectors(states, word_starts, word_ends)
        dependents = self.project_dependents(words)
        heads = self.project_heads(torch.cat([states[:, :1], words], dim=1))
        arcs = arc_scores(dependents, heads, self.arcs.weight)
        padded = pad(word_starts < 0, (1, 0))
        arcs = arcs.masked_fill(padded.unsqueeze(1), -torch.inf)
        output = ParserOutput(
            logits=arcs,
            dependents=dependents,
            heads=heads,
            relation_weight=self.relations.weight,
            arc_weight=self.arcs.weight,
        )
        if labels is not None and relation_labels is not None:
            relations = relation_scores(dependents, heads, labels.clamp(min=0), self.relations.weight)
            output.loss = _mean_loss(arcs, labels) + _mean_loss(relations, relation_labels)
        return output


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the words that count; 0 if none does."""
    total = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def word_vectors(states: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Means (batch, W, d) of the states (batch, tokens, d) from `starts` to before `ends`, each (batch, W)."""
    positions = torch.arange(states.shape[1], device=states.device)
    inside = (positions >= starts.unsqueeze(-1)) & (positions < ends.unsqueeze(-1))
    weights = inside.to(states.dtype)
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1)) @ states


def arc_scores(dependents: Tensor, heads: Tensor, weight: Tensor) -> Tensor:
    """(..., W, W + 1) scores of dependents (..., W, p) for heads (..., W + 1, p); weight (1, p + 1, p)."""
    return pad(dependents, (0, 1), value=1.0) @ weight[0] @ heads.transpose(-1, -2)


def relation_scores(dependents: Tensor, heads: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """Relation logits at one head per word.

    Args:
        dependents: (batch, W, p).
        heads: (batch, W + 1, p).
        chosen: (batch, W) index of each word's head in `heads`.
        weight: (relations, p + 1, p + 1).

    Returns:
        (batch, W, relations).
    """
    picked = heads.gather(1, chosen.unsqueeze(-1).expand(-1, -1, heads.shape[-1]))
    # Outside of autocast, where losses are computed, words may come in bf16.
    left, right = (pad(one.to(weight.dtype), (0, 1), value=1.0) for one in (dependents, picked))
    return torch.einsum("bwi,rij,bwj->bwr", left, weight, right)


@cache
def parser_class(config_class: type[PreTrainedConfig]) -> type[DependencyParser]:
    """The parser of a family, such as `BertForDependencyParsing`; its folder loads with `AutoModel` as an encoder."""
    encoder = encoder_class(config_class)
    base = next(one for one in encoder.__mro__[1:] if issubclass(one, PreTrainedModel))

    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        self._build(config)

    name = f"{encoder.__name__.removesuffix('Model')}ForDependencyParsing"
    body = {"__init__": __init__, "__module__": __name__, "__doc__": DependencyParser.__doc__}
    return type(name, (DependencyParser, base), body)
