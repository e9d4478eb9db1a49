"""What a fast tokenizer's state holds, and the same state with fewer tokens.

A state is the content of `tokenizer.json`. Ids are renumbered without gaps in their old order, so special tokens at
the front stay where they are.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from bistil.errors import ArtefactError, InputError
from bistil.runtime.artefacts import json_digest
from bistil.vocabulary.merges import MergeTable

FAMILIES = ("Unigram", "WordPiece", "BPE")
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one tokenizer state, by id, and which of them its algorithm cannot do without.

    Attributes:
        state: the content of `tokenizer.json`.
        family: `Unigram`, `WordPiece` or `BPE`.
        tokens: id -> token string; "" where an id has no token.
        required: reason -> ids that are never dropped.
        merges: the merge table of a BPE tokenizer.
    """

    state: dict[str, Any]
    family: str
    tokens: list[str]
    required: dict[str, set[int]]
    merges: MergeTable | None = None
    ids: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """SHA-256 of what decides which ids a text gets; padding and truncation do not."""
        return json_digest({k: v for k, v in self.state.items() if k not in ("padding", "truncation")})

    @property
    def unknown(self) -> int | None:
        """Id of the unknown token, or None where the algorithm has none."""
        model = self.state["model"]
        if self.family == "Unigram":
            unknown: int | None = model["unk_id"]
            return unknown
        return self.ids.get(model["unk_token"]) if model["unk_token"] is not None else None

    def single_characters(self) -> list[tuple[int, str]]:
        """(id, character) of every token that stands for one character, inside a word or at its start."""
        added = self.required["special"] | self.required["bytes"]
        return [
            (i, bare) for i, token in enumerate(self.tokens) if i not in added and len(bare := self._bare(token)) == 1
        ]

    def covered(self, kept: Iterable[int]) -> set[str]:
        """Characters that never become unknown under a vocabulary: it has a token for each wherever it stands."""
        inside: set[str] = set()
        start: set[str] = set()
        kept = set(kept)
        prefix = self.state["model"].get("continuing_subword_prefix") or ""
        for i, character in self.single_characters():
            if i in kept:
                (inside if prefix and self.tokens[i].startswith(prefix) else start).add(character)
        return inside & start if prefix else start

    def characters(self, ids: Iterable[int]) -> set[str]:
        """The characters that ordinary tokens among `ids` are made of."""
        added = self.required["special"] | self.required["bytes"]
        return set().union(*(self._bare(self.tokens[i]) for i in ids if i not in added))

    def _bare(self, token: str) -> str:
        model = self.state["model"]
        prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
        if prefix and len(token) > len(prefix):
            token = token.removeprefix(prefix)
        return token.removesuffix(suffix) if len(token) > len(suffix) else token


def read_vocabulary(state: dict[str, Any]) -> Vocabulary:
    """Read a tokenizer state.

    Raises:
        InputError: its algorithm is none of Unigram, WordPiece and BPE.
        ArtefactError: two tokens share an id.
    """
    model = state["model"]
    family = model.get("type")
    if family not in FAMILIES:
        raise InputError(f"cannot trim a {family} tokenizer: only {', '.join(FAMILIES)} are supported")
    ids = {piece: i for i, (piece, _) in enumerate(model["vocab"])} if family == "Unigram" else dict(model["vocab"])
    ids.update({token["content"]: token["id"] for token in state["added_tokens"]})
    tokens = [""] * (max(ids.values()) + 1)
    for token, i in ids.items():
        if tokens[i]:
            raise ArtefactError(f"damaged tokenizer.json: tokens {tokens[i]!r} and {token!r} share the id {i}")
        tokens[i] = token
    vocabulary = Vocabulary(
        state=state,
        family=family,
        tokens=tokens,
        # Spaces reach a sentencepiece-style model as ▁; spelt in bytes they would not be decoded to spaces.
        required={
            "special": _special_ids(state),
            "bytes": _byte_ids(state, ids),
            "space": {ids["▁"]} if "▁" in ids else set(),
            "score": set(),
        },
        merges=MergeTable(model) if family == "BPE" else None,
        ids=ids,
    )
    if vocabulary.unknown is not None:
        vocabulary.required["special"].add(vocabulary.unknown)
    if family == "Unigram":
        # An unknown character costs the lowest score of all pieces minus a constant (tokenizers, `Unigram::from`):
        # without one piece of that score the best segmentation of text with unknown characters would change.
        scores = [score for _, score in model["vocab"]]
        vocabulary.required["score"].add(scores.index(min(scores)))
    return vocabulary


def trim_state(vocabulary: Vocabulary, kept: np.ndarray) -> dict[str, Any]:
    """The tokenizer state with the tokens `kept` only.

    Args:
        kept: (new size,) ascending old ids; the new id of `kept[i]` is `i`.

    Returns:
        A new state; what is not renumbered is shared with the old one.
    """
    new = {int(old): i for i, old in enumerate(kept)}
    state = dict(vocabulary.state)
    model = state["model"] = dict(state["model"])
    if vocabulary.family == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        if model["unk_id"] is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        surviving = sorted((new[i], token) for token, i in model["vocab"].items() if i in new)
        model["vocab"] = {token: i for i, token in surviving}
    if vocabulary.merges is not None:
        model["merges"] = vocabulary.merges.within(model["vocab"])
    state["added_tokens"] = [{**token, "id": new[token["id"]]} for token in state["added_tokens"]]
    if state.get("padding"):
        state["padding"] = {**state["padding"], "pad_id": new[state["padding"]["pad_id"]]}
    if state.get("post_processor"):
        state["post_processor"] = _renumber_post_processor(state["post_processor"], new.__getitem__)
    return state


def _special_ids(state: dict[str, Any]) -> set[int]:
    """Added tokens, and every id that the post-processor or the padding inserts."""
    ids = {token["id"] for token in state["added_tokens"]}
    if state.get("padding"):
        ids.add(state["padding"]["pad_id"])
    if state.get("post_processor"):

        def note(i: int) -> int:
            ids.add(i)
            return i

        _renumber_post_processor(state["post_processor"], note)
    return ids


def _byte_ids(state: dict[str, Any], ids: dict[str, int]) -> set[int]:
    """Tokens that stand for single bytes: byte fallback, and the alphabet of byte-level BPE."""
    found: set[int] = set()
    if state["model"].get("byte_fallback"):
        found |= {i for token, i in ids.items() if _BYTE_FALLBACK.fullmatch(token)}
    if is_byte_level(state):
        found |= {ids[character] for character in pre_tokenizers.ByteLevel.alphabet() if character in ids}
    return found


def is_byte_level(state: dict[str, Any]) -> bool:
    """Whether text reaches the model as bytes written in the 256-character byte-level alphabet."""
    parts = [state.get("pre_tokenizer") or {}, state.get("normalizer") or {}]
    while parts:
        part = parts.pop()
        if part.get("type") == "ByteLevel":
            return True
        parts += part.get("pretokenizers", []) + part.get("normalizers", [])
    return False


def _renumber_post_processor(processor: dict[str, Any], new: Callable[[int], int]) -> dict[str, Any]:
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [_renumber_post_processor(one, new) for one in processor["processors"]]}
    if kind == "TemplateProcessing":
        tokens = {
            name: {**token, "ids": [new(i) for i in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        return {**processor, "special_tokens": tokens}
    if kind in ("BertProcessing", "RobertaProcessing"):
        return {**processor, **{part: [processor[part][0], new(processor[part][1])] for part in ("sep", "cls")}}
    if kind == "ByteLevel":
        return processor
    raise InputError(f"cannot trim a tokenizer with a post-processor of type {kind}: its token ids are not known")
