"""Which tokens to keep (paper, section 3.1: unigram probability in either corpus, and all special tokens)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from bistil._moved import left_names
from bistil.errors import InputError
from bistil.settings.recipe import TrimSettings
from bistil.text.files import line_batches
from bistil.vocabulary.counting import TokenCounts
from bistil.vocabulary.tokenizer_state import Vocabulary

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.vocabulary.selection")


@dataclass(frozen=True, eq=False)
class Selection:
    """The tokens to keep.

    Attributes:
        kept: (new size,) ascending int64 old ids.
        reasons: reason -> number of tokens kept for it and for no reason before it.
        unreachable: kept BPE tokens that no sequence of merges builds, in the full vocabulary either.
        missing_characters: characters of the corpora that lack a kept token of their own (in WordPiece, one at the
            start of a word and one inside); only they can make more unknown tokens than the full vocabulary does.
    """

    kept: np.ndarray
    reasons: dict[str, int]
    unreachable: list[str]
    missing_characters: list[str]


def unigram_probabilities(counts: Iterable[TokenCounts]) -> np.ndarray:
    """Highest unigram probability of each token in any corpus, (vocabulary size,); each corpus sums to 1."""
    highest: np.ndarray = np.max([one.counts / one.total for one in counts], axis=0)
    return highest


def select(
    vocabulary: Vocabulary,
    counts: Mapping[str, TokenCounts],
    settings: TrimSettings,
    *,
    required: Mapping[str, Iterable[int]] | None = None,
) -> Selection:
    """Choose the tokens to keep.

    Args:
        counts: corpus -> counts.
        required: reason -> further ids that must stay, such as those of a keep-list or of the model's config.

    Raises:
        InputError: no token reaches the threshold, or the wanted size is too small for the tokens that must stay.
    """
    probability = unigram_probabilities(counts.values())
    seen = np.flatnonzero(probability)
    always: dict[str, set[int]] = {**vocabulary.required, **{k: set(v) for k, v in (required or {}).items()}}
    characters = vocabulary.characters(seen.tolist())
    if settings.keep_characters:
        always["characters"] = {i for i, character in vocabulary.single_characters() if character in characters}
    must = set().union(*always.values())
    if settings.vocabulary_size is not None:
        chosen = _most_probable(vocabulary, probability, must, settings.vocabulary_size)
    else:
        threshold = settings.threshold if settings.threshold is not None else 0.0
        # The smallest positive float excludes tokens that never occur when the threshold is 0.
        chosen = set(np.flatnonzero(probability >= max(threshold, np.finfo(float).tiny)).tolist())
        if not chosen - vocabulary.required["special"]:
            raise InputError(
                f"threshold {threshold:g} keeps no token: the most frequent one has probability "
                f"{probability.max():.3g}; give a lower threshold"
            )
    closed, unreachable = _close(vocabulary, must | chosen)
    kept = np.array(sorted(closed), dtype=np.int64)
    reasons: dict[str, int] = {}
    counted: set[int] = set()
    for reason, ids in {**always, "probability": chosen, "merges": closed}.items():
        reasons[reason] = len(ids - counted)
        counted |= ids
    missing = [] if vocabulary.required["bytes"] else sorted(characters - vocabulary.covered(closed))
    return Selection(kept, reasons, sorted(unreachable), missing)


def read_keep_list(path: Path, vocabulary: Vocabulary, tokenizer: Tokenizer) -> set[int]:
    """Ids of the tokens that a keep-list names: UTF-8, one token or one word a line.

    A line that is a token keeps it; any line also keeps the tokens that it is encoded to.

    Raises:
        InputError: the file cannot be read, or the vocabulary has no tokens for a line.
    """
    ids: set[int] = set()
    number = 0
    for lines in line_batches(path):
        for line in lines:
            number += 1
            if not line.strip():
                continue
            encoded = set(tokenizer.encode(line, add_special_tokens=False).ids)
            exact = vocabulary.ids.get(line)
            if exact is not None:
                ids.add(exact)
            if vocabulary.unknown not in encoded:
                ids |= encoded
            elif exact is None:
                raise InputError(f"{path}, line {number}: {line!r} is neither a token nor made of known characters")
    return ids


def _close(vocabulary: Vocabulary, ids: set[int]) -> tuple[set[int], set[str]]:
    if vocabulary.merges is None:
        return ids, set()
    ordinary = {vocabulary.tokens[i] for i in ids - vocabulary.required["special"]}
    closed, unreachable = vocabulary.merges.closure(ordinary)
    return ids | {vocabulary.ids[token] for token in closed}, unreachable


def _most_probable(vocabulary: Vocabulary, probability: np.ndarray, must: set[int], size: int) -> set[int]:
    """As many of the most probable tokens as fit into `size` together with what must stay and what builds them."""
    order = [int(i) for i in np.argsort(-probability, kind="stable") if probability[i] > 0]
    least = len(_close(vocabulary, must)[0])
    if least > size:
        raise InputError(f"vocabulary size {size} is too small: {least} tokens must stay (special, single characters)")
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if len(_close(vocabulary, must | set(order[:middle]))[0]) <= size:
            low = middle
        else:
            high = middle - 1
    return set(order[:low])
