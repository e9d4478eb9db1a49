"""Sentences of words as subwords: every word gets at least one token, long sentences become overlapping windows.

A model reads the words of a sentence as it reads running text: what the tokenizer makes of the words with a space
between them is shared out among the words.
"""

import itertools
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import regex  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.tasks.batches import Feature
from bistil.tasks.boundaries import boundaries

# Columns of words in data sets.
WORDS = ("tokens", "words")
# A word is an ideograph or hiragana (so Unicode's word boundaries, UAX #29), a run of other letters, marks and digits
# with inner apostrophes or hyphens, or another visible character. No language's rules are built in: katakana and other
# scripts without spaces stay whole up to punctuation.
ALONE = r"[\p{L}&&[\p{Script=Han}\p{Script=Hiragana}]]"
WORD = regex.compile(
    rf"{ALONE}\p{{M}}*"
    rf"|[[\p{{L}}\p{{N}}]--{ALONE}](?:[[\p{{L}}\p{{M}}\p{{N}}\p{{Cf}}]--{ALONE}]|['’\-](?=[\p{{L}}\p{{N}}]))*"
    r"|\S",
    regex.V1,
)
# Closing marks behind the last mark of a sentence, and what must follow.
SENTENCE_END = regex.compile(
    r"(?:[\uFF01\uFF0E\uFF1F\uFF61\u3002]+[\p{Pe}\p{Pf}\"']*"
    r"|[\p{Sentence_Terminal}\u2026]+[\p{Pe}\p{Pf}\"']*(?=\s)(?!\s+[\p{Ps}\p{Pi}\"']*\p{Ll}))",
    regex.V1,
)
# Sentences that are encoded at once.
AT_ONCE = 1000
# Whole texts as they are.
PLAIN: dict[str, Any] = {
    "add_special_tokens": False,
    "padding": False,
    "truncation": False,
    "return_offsets_mapping": True,
    "return_attention_mask": False,
    "return_token_type_ids": False,
    "verbose": False,
}
# Where a special token stands: in no word.
NOWHERE = (-1, -1, -1)
# What stands where the words were taken out.
PLACEHOLDERS = {"_", "[WORD]"}
LANGUAGE_PREFIX = regex.compile(r"[a-z]{2,3}(?:-[a-z]+)*:(?=.)")
SPACED = regex.compile(rf"{ALONE}\p{{M}}*|[\S--{ALONE}]+", regex.V1)


def split_words(sentence: str) -> list[str]:
    """Split plain text at spaces and around punctuation and ideographs, the same way for all languages.

    Example:
        >>> split_words("N'Djamena ni mji (mkuu) wa Chad.")
        ["N'Djamena", 'ni', 'mji', '(', 'mkuu', ')', 'wa', 'Chad', '.']
        >>> split_words("我喜欢猫。")
        ['我', '喜', '欢', '猫', '。']
    """
    return [sentence[start:end] for start, end in word_places(sentence)]


def word_places(text: str) -> list[tuple[int, int]]:
    """Start and end, in characters, of the words of `split_words`."""
    return [match.span() for match in WORD.finditer(text)]


def sentence_places(text: str) -> list[tuple[int, int]]:
    """Start and end, in characters, of the sentences in running text, without the space around them.

    A sentence ends behind a mark that Unicode calls sentence-terminal, or an ellipsis, and what closes after it
    (quotes, brackets), where a space follows; not where the next word begins with a small letter. Behind full-width
    and half-width marks no space is needed. An abbreviation in front of a capital letter ends a sentence too.

    Example:
        >>> text = 'Paka amelala. "Je, ameamka?" Hapana!'
        >>> [text[start:end] for start, end in sentence_places(text)]
        ['Paka amelala.', '"Je, ameamka?"', 'Hapana!']
    """
    cuts = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    found = []
    for start, end in itertools.pairwise(cuts):
        own = text[start:end]
        if own.strip():
            found.append((start + len(own) - len(own.lstrip()), end - len(own) + len(own.rstrip())))
    return found


def count_words(text: str) -> int:
    """Words between spaces; each ideograph or hiragana is one."""
    return len(SPACED.findall(text))


def run_of_words(text: str, most: int, generator: np.random.Generator) -> str:
    """A random stretch of at most so many words of the text, as `count_words` counts them.

    Unlike what `split_words` returns, it is text as it was written.
    """
    spans = [match.span() for match in SPACED.finditer(text)]
    if not spans:
        return ""
    first = int(generator.integers(max(1, len(spans) - most + 1)))
    return text[spans[first][0] : spans[min(first + most, len(spans)) - 1][1]]


def check_words(sentences: Sequence[Sequence[str]], path: object) -> None:
    """Refuse a file whose words were taken out, as for reasons of licence: only placeholders are left.

    Raises:
        InputError: ten words or more that are all the same, or all `_` or `[WORD]`.
    """
    different = {word for words in sentences for word in words}
    words = sum(map(len, sentences))
    if different and (different <= PLACEHOLDERS or (len(different) == 1 and words >= 10)):
        raise InputError(
            f"{path}: every word is {min(different)!r}: the words of this data set are not in the file; put them in, "
            "as its authors describe"
        )


def without_language_prefix(sentences: Sequence[Sequence[str]]) -> list[list[str]] | None:
    """Words without the language code in front of each (`en:Paris`, as in WikiANN); None: not all have the same one.

    Example:
        >>> without_language_prefix([["en:A", "en:cat"], ["en::"]])
        [['A', 'cat'], [':']]
    """
    words = [word for sentence in sentences for word in sentence]
    prefixes = {match[0] if (match := LANGUAGE_PREFIX.match(word)) else "" for word in words}
    if len(words) < 2 or len(prefixes) != 1 or "" in prefixes:
        return None
    size = len(prefixes.pop())
    return [[word[size:] for word in sentence] for sentence in sentences]


@dataclass(frozen=True)
class Frame:
    """The special tokens that the tokenizer puts around one sequence."""

    before: list[int]
    after: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Frame":
        """Read them off an encoded text: they belong to no sequence."""
        # A vocabulary may know nothing of "a"; of one of its own tokens it does.
        for text in ("a", *tokenizer.get_vocab()):
            encoded = tokenizer(text)
            inside = [i for i, sequence in enumerate(encoded.sequence_ids()) if sequence is not None]
            if inside:
                ids = encoded["input_ids"]
                return cls(ids[: inside[0]], ids[inside[-1] + 1 :])
        return cls(tokenizer("")["input_ids"], [])


@dataclass(frozen=True)
class Window:
    """Words `start` to `stop` of a sentence are seen; `first` to `last` of them are this window's to predict."""

    start: int
    stop: int
    first: int
    last: int


def windows(lengths: Sequence[int], room: int, context: int) -> Iterator[Window]:
    """Cut a sentence into windows that together predict every word exactly once.

    Args:
        lengths: (words,) subwords of each word, each between 1 and `room`.
        room: subwords that fit into a window.
        context: up to this many subwords on either side are seen and left to the neighbour window.
    """
    position = 0
    while position < len(lengths):
        start, spare = position, min(context, room - lengths[position])
        while start > 0 and lengths[start - 1] <= spare:
            start -= 1
            spare -= lengths[start]
        stop, used = position, sum(lengths[start:position])
        while stop < len(lengths) and used + lengths[stop] <= room:
            used += lengths[stop]
            stop += 1
        last, spare = stop, context
        while stop < len(lengths) and last - 1 > position and lengths[last - 1] <= spare:
            last -= 1
            spare -= lengths[last]
        yield Window(start, stop, position, last)
        position = last


def encode_words(
    sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[tuple[Feature, Window]]:
    """Encode sentences that are split into words.

    The tokens are those of the running text `" ".join(words)`; the space before a word is part of it. Only where a
    token spans several words and leaves one without any are the words of that sentence encoded one by one. A word
    without any subword, such as one of control characters only, becomes the unknown token; a word that does not fit
    into a window keeps its first subwords. A quarter of a window is context on either side of a cut.

    A word whose first piece the vocabulary lacks with a boundary marker begins with the bare marker of a SentencePiece
    or byte-level tokenizer ("▁", "Ġ"), which stands for no text of it. It is part of the word, and the word starts
    behind it: in English bare markers stand before punctuation, in Chinese before nine words of ten, so that a model
    that reads words there takes the latter for the former.

    Yields:
        A feature with "input_ids", "attention_mask", "example" (index of the sentence), "word_fronts" (positions of
        the first tokens of the window's words), "word_starts" (of their first subwords with text; the first token
        where none has any), "word_ends" (behind the last ones), "boundaries"; and its window. A sentence without words
        yields nothing.

    Raises:
        InputError: `max_length` leaves no room for a word.
    """
    frame = Frame.of(tokenizer)
    room = max_length - len(frame.before) - len(frame.after)
    if room < 1:
        raise InputError(f"max_length {max_length} leaves no room for words beside the special tokens")

    @cache
    def marker(token: int) -> bool:
        text: str = tokenizer.convert_tokens_to_string([str(tokenizer.convert_ids_to_tokens(token))])
        return not text.strip()

    for index, subwords in enumerate(_subwords(sentences, tokenizer, room)):
        lengths = [len(ids) for ids, _ in subwords]
        for window in windows(lengths, room, room // 4):
            ids, offsets, fronts, starts, ends = list(frame.before), [], [], [], []
            for number in range(window.start, window.stop):
                own = subwords[number][0]
                fronts.append(len(ids))
                starts.append(len(ids) + next((i for i, token in enumerate(own) if not marker(token)), 0))
                ids += own
                ends.append(len(ids))
                offsets += [(number, *place) for place in subwords[number][1]]
            ids += frame.after
            feature = {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "example": index,
                "word_fronts": fronts,
                "word_starts": starts,
                "word_ends": ends,
                "boundaries": boundaries([NOWHERE] * len(frame.before) + offsets + [NOWHERE] * len(frame.after)),
            }
            yield feature, window


Subwords = list[tuple[list[int], list[tuple[int, int]]]]
"""Of each word the ids of its subwords and, of each of these, where it ends (in characters of the word; 0: before them)
and a number that tells apart pieces of the same characters (0: there are no others)."""


def _subwords(sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, room: int) -> Iterator[Subwords]:
    """The subwords of the words of each sentence, between 1 and `room` of each."""
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id

    @cache
    def identity(token: int) -> int:
        return zlib.crc32(str(tokenizer.convert_ids_to_tokens(token)).encode()) >> 1

    for first in range(0, len(sentences), AT_ONCE):
        part = sentences[first : first + AT_ONCE]
        encoded = tokenizer([" ".join(words) for words in part], **PLAIN)
        for words, ids, offsets in zip(part, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            shared = _shared_out(words, ids, offsets, identity)
            found = _one_by_one(words, tokenizer, identity) if shared is None else shared
            yield [(own[:room], places[:room]) if own else ([unknown], [(0, 0)]) for own, places in found]


def _shared_out(
    words: Sequence[str], ids: Sequence[int], offsets: Sequence[tuple[int, int]], identity: Callable[[int], int]
) -> Subwords | None:
    """The tokens of the running text, shared out among its words; None where a word's text is all in others' tokens.

    A token belongs to the first word that ends behind the token's start, so that the space between two words, and a
    bare boundary marker, go to the second one.
    """
    found: Subwords = [([], []) for _ in words]
    if not words:
        return found
    ends = [end - 1 for end in accumulate(len(word) + 1 for word in words)]
    reach = [0] * len(words)
    # In byte-level vocabularies the pieces of one character lie at the same place.
    before, after = [(0, 0), *offsets][:-1], [*offsets, (ends[-1], ends[-1])][1:]
    for token, (start, end), (_, last), (following, _) in zip(ids, offsets, before, after, strict=True):
        word = min(bisect_right(ends, start), len(words) - 1)
        found[word][0].append(token)
        place = max(end - ends[word] + len(words[word]), 0)
        found[word][1].append((place, identity(token) if last > start or following < end else 0))
        reach[word] = max(reach[word], end)
    furthest = 0
    for word, (own, _) in enumerate(found):
        if not own and furthest > ends[word] - len(words[word]):
            return None
        furthest = max(furthest, reach[word])
    return found


def _one_by_one(words: Sequence[str], tokenizer: PreTrainedTokenizerBase, identity: Callable[[int], int]) -> Subwords:
    """The tokens of each word alone."""
    encoded = tokenizer([*words], **PLAIN)
    return [
        (ids, [(end, identity(token)) for token, (_, end) in zip(ids, offsets, strict=True)])
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
