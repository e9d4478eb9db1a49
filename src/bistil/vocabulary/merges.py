"""Byte-pair encoding (Sennrich et al. 2016, section 3.2): what a token is built from, and merges among kept tokens."""

from functools import cache
from itertools import pairwise
from typing import Any


class MergeTable:
    """The ordered merges of a BPE model.

    Args:
        model: the `model` part of `tokenizer.json`: vocab, merges (pairs, or strings with one space),
            continuing_subword_prefix, end_of_word_suffix, ignore_merges.
    """

    def __init__(self, model: dict[str, Any]) -> None:
        self.vocab: dict[str, int] = model["vocab"]
        self.prefix: str = model.get("continuing_subword_prefix") or ""
        self.suffix: str = model.get("end_of_word_suffix") or ""
        # With ignore_merges a whole word that is a token is looked up, not merged (Llama 3, EuroBERT).
        self.whole_words: bool = bool(model.get("ignore_merges"))
        self.pairs: list[tuple[str, str]] = [
            (left, right)
            for left, right in (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
        ]
        # A pair listed twice counts with its last rank, as in the tokenizers library.
        self.ranks = {pair: rank for rank, pair in enumerate(self.pairs)}
        self.derive = cache(self._derive)

    def result(self, left: str, right: str) -> str:
        """The token that two merged tokens make."""
        return left + right.removeprefix(self.prefix)

    def _derive(self, token: str) -> frozenset[str] | None:
        """All tokens met on the way when merging builds this token, or None if merging does not end in it.

        Whatever stands around a token in running text, the merges inside it are those of the token alone: a merge
        across its border would make it another token. So a vocabulary that holds these tokens and the merges among
        them builds it wherever the full vocabulary did.
        """
        inner = bool(self.prefix) and token.startswith(self.prefix) and len(token) > len(self.prefix)
        bare = token.removeprefix(self.prefix) if inner else token
        last = bool(self.suffix) and bare.endswith(self.suffix) and len(bare) > len(self.suffix)
        bare = bare.removesuffix(self.suffix) if last else bare
        parts = [(self.prefix if inner or i else "") + character for i, character in enumerate(bare)]
        if last:
            parts[-1] += self.suffix
        met = set(parts)
        if not all(part in self.vocab for part in parts):
            return None
        while len(parts) > 1:
            candidates = [(self.ranks.get(pair, -1), i) for i, pair in enumerate(pairwise(parts))]
            rank, at = min((c for c in candidates if c[0] >= 0), default=(-1, -1))
            if rank < 0:
                return None
            parts[at : at + 2] = [self.result(parts[at], parts[at + 1])]
            met.add(parts[at])
        return frozenset(met) if parts == [token] else None

    def closure(self, tokens: set[str]) -> tuple[set[str], set[str]]:
        """Close a set of tokens under what builds them.

        Returns:
            The tokens with all that merging needs on the way to them, and those of them that merging never builds
            even with the full vocabulary.
        """
        closed, unreachable = set(tokens), set()
        for token in tokens:
            met = self.derive(token)
            if met is None:
                unreachable.add(token)
            else:
                closed |= met
        return closed, unreachable

    def within(self, tokens: dict[str, int]) -> list[list[str]]:
        """The merges, in order, whose parts and result are all among `tokens`."""
        return [
            [left, right]
            for left, right in self.pairs
            if left in tokens and right in tokens and self.result(left, right) in tokens
        ]
