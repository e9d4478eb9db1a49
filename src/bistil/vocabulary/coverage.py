"""What trimming changes in texts that the vocabulary was not counted on, before anything is learnt with it.

Both tokenizers read the same texts. What comes out are figures, single characters and tokens, and never a text. Labels
are not looked at: of a test set this is the unlabelled side alone.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from bistil.errors import ArtefactError, printable
from bistil.models.tokenizers import definition
from bistil.settings.recipe import TrimSettings
from bistil.vocabulary.counting import counting_tokenizer
from bistil.vocabulary.tokenizer_state import is_byte_level, read_vocabulary

MISSING = "vocabulary-missing"
"""Folder of keep-lists of what files lack that lose by trimming, in a run's folder or a trimmed model's."""
# Of the texts of a file so many are compared, and about so many characters of them, drawn at random: seconds.
MOST_TEXTS, MOST_CHARACTERS = 5_000, 2_000_000
# A file loses noticeably from here on: shares of more tokens, of tokens that become unknown, and of words that change.
# Between what cost nothing where we measured (up to 2.0%, 0.14% and 3.5%) and what cost points (docs/trim.md).
MORE_TOKENS, MORE_UNKNOWN, CHANGED_WORDS = 0.03, 0.005, 0.05
# A corpus that keeps less than this share of its tokens would keep more at a lower threshold.
ALL_COVERED = 0.999
# So many lacking characters are on record, and so many are said in a line.
LISTED_CHARACTERS, SAID_CHARACTERS = 20, 8
# Scripts that put no spaces between words: Thai to Lao, Tibetan, Burmese, Khmer, kana and ideographs.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# What is between two spaces of running text in such a script is longer than this, and than the words of a treebank.
_LONGEST_WORD = 8.0
_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class TextCoverage:
    """A file's texts under a trimmed vocabulary, beside the full one.

    Attributes:
        texts: different texts that were compared; `of` is how many there are.
        unit: "word" (between white space), or "character" in running text of a script without spaces.
        words, changed: units, and those whose tokens are others.
        tokens, trimmed_tokens: number of tokens.
        unknown, trimmed_unknown: of these, unknown ones. Neighbours may be one token.
        missing: characters that are unknown, or spelt in bytes, under the trimmed vocabulary alone: the most frequent
            ones, with their occurrences.
        missing_characters: how many different ones there are.
    """

    texts: int
    of: int
    unit: str
    words: int
    changed: int
    tokens: int
    trimmed_tokens: int
    unknown: int
    trimmed_unknown: int
    missing: dict[str, int] = field(default_factory=dict)
    missing_characters: int = 0

    @property
    def growth(self) -> float:
        """Share of tokens that there are more of."""
        return (self.trimmed_tokens - self.tokens) / max(self.tokens, 1)

    @property
    def fertility(self) -> tuple[float, float]:
        """Tokens per unit, full and trimmed."""
        return self.tokens / max(self.words, 1), self.trimmed_tokens / max(self.words, 1)

    @property
    def unknown_shares(self) -> tuple[float, float]:
        """Share of unknown tokens, full and trimmed."""
        return self.unknown / max(self.tokens, 1), self.trimmed_unknown / max(self.trimmed_tokens, 1)

    @property
    def changed_share(self) -> float:
        """Share of units whose tokens are others."""
        return self.changed / max(self.words, 1)

    @property
    def loses(self) -> bool:
        """Whether it loses noticeably."""
        before, after = self.unknown_shares
        return self.growth > MORE_TOKENS or after - before > MORE_UNKNOWN or self.changed_share > CHANGED_WORDS

    def in_words(self) -> str:
        """The figures, for a line."""
        before, after = self.unknown_shares
        becomes_unknown = after - before >= MORE_UNKNOWN / 10
        said = [f"{abs(self.growth):.1%} {'more' if self.growth >= 0 else 'fewer'} tokens"]
        if becomes_unknown:
            said.append(f"{after:.1%} of them unknown (before: {before:.1%})")
        said.append(f"other ones for {self.changed_share:.1%} of its {self.unit}s")
        shown = [one for one in self.missing if one.isprintable()][:SAID_CHARACTERS]
        if not shown or (self.trimmed_unknown and not becomes_unknown):
            return ", ".join(said)
        others = self.missing_characters - len(shown)
        more = f" and {others:,} more characters" if others else ""
        return f"{', '.join(said)}; it lacks {' '.join(shown)}{more}"


@dataclass(frozen=True, kw_only=True)
class FoundInTexts:
    """What was found in the texts of a file."""

    coverage: TextCoverage
    lacking: list[str]
    """What a keep-list needs so that these texts get all their tokens back: dropped single characters, then tokens."""


class TokenizerPair:
    """Two tokenizers, of which the second has some of the first one's tokens.

    Args:
        full, trimmed: fast tokenizers of transformers; they stay as they are.

    Raises:
        ArtefactError: the second has other tokens.
    """

    def __init__(self, full: Any, trimmed: Any) -> None:
        self.vocabulary = read_vocabulary(definition(full))
        own = read_vocabulary(definition(trimmed))
        self._full, self._trimmed = counting_tokenizer(self.vocabulary), counting_tokenizer(own)
        other = next((token for token in own.ids if token not in self.vocabulary.ids), None)
        if other is not None:
            raise ArtefactError(f"the trimmed vocabulary has the token {other!r}, which the full one lacks")
        self._old = [self.vocabulary.ids.get(token, -1) for token in own.tokens]
        self._kept = {i for i in self._old if i >= 0}
        self._covered = self.vocabulary.covered(self._kept)
        self._byte_level = is_byte_level(self.vocabulary.state)
        self._apart = self.vocabulary.required["space"] | self.vocabulary.required["special"]

    def of(self, texts: Sequence[str], *, of: int | None = None) -> FoundInTexts:
        """Compare what both make of texts.

        Args:
            texts: as a model reads them.
            of: how many there are, if these are some of them.
        """
        sums: Counter[str] = Counter()
        dropped: Counter[int] = Counter()
        missing: Counter[str] = Counter()
        # No id, where the algorithm knows no unknown token.
        unknown = -2 if self.vocabulary.unknown is None else self.vocabulary.unknown
        for start in range(0, len(texts), _AT_ONCE):
            part = list(texts[start : start + _AT_ONCE])
            before = self._full.encode_batch(part, add_special_tokens=False)
            after = self._trimmed.encode_batch(part, add_special_tokens=False)
            for text, old, new in zip(part, before, after, strict=True):
                ids = [self._old[i] for i in new.ids]
                words = text.split()
                sums["words"] += len(words)
                sums["characters"] += sum(map(len, words))
                sums["unspaced"] += len(_UNSPACED.findall(text))
                sums["tokens"] += len(old.ids)
                sums["trimmed"] += len(ids)
                sums["unknown"] += old.ids.count(unknown)
                sums["trimmed unknown"] += ids.count(unknown)
                if ids != old.ids:
                    pieces = list(zip(old.ids, old.offsets, strict=True)), list(zip(ids, new.offsets, strict=True))
                    changed = _marked(len(text), [span for _, span in set(pieces[0]) ^ set(pieces[1])])
                    spans = [match.span() for match in re.finditer(r"\S+", text)]
                    sums["changed words"] += sum(any(changed[first:end]) for first, end in spans)
                    sums["changed characters"] += sum(sum(changed[first:end]) for first, end in spans)
                    dropped.update(i for i in old.ids if i not in self._kept)
                    missing.update(self._missing(text, *pieces))
        unit = "word"
        if 2 * sums["unspaced"] > sums["characters"] > _LONGEST_WORD * sums["words"]:
            unit = "character"
        ordered = sorted(missing, key=lambda one: (-missing[one], one))
        coverage = TextCoverage(
            texts=len(texts),
            of=len(texts) if of is None else of,
            unit=unit,
            words=sums[f"{unit}s"],
            changed=sums[f"changed {unit}s"],
            tokens=sums["tokens"],
            trimmed_tokens=sums["trimmed"],
            unknown=sums["unknown"],
            trimmed_unknown=sums["trimmed unknown"],
            missing={one: missing[one] for one in ordered[:LISTED_CHARACTERS]},
            missing_characters=len(missing),
        )
        return FoundInTexts(coverage=coverage, lacking=self._keep_list(dropped))

    def _missing(self, text: str, before: "_Pieces", after: "_Pieces") -> Iterable[str]:
        """The characters of a text, white space apart, that the trimmed vocabulary alone has no token for."""
        unknown_before = _marked(len(text), [span for i, span in before if i == self.vocabulary.unknown])
        unknown = _marked(len(text), [span for i, span in after if i == self.vocabulary.unknown])
        spelt, spelt_before = self._spelt(after), self._spelt(before)
        for place, one in enumerate(text) if 1 in unknown or spelt else ():
            # An unknown word has known characters too.
            becomes_unknown = unknown[place] and not unknown_before[place] and not self._is_covered(one)
            if not one.isspace() and (becomes_unknown or spelt.get(place, 1) > spelt_before.get(place, 1)):
                yield one

    def _is_covered(self, character: str) -> bool:
        """Whether a character, as the tokenizer reads it, is never unknown."""
        normalizer = self._full.normalizer
        read = character if normalizer is None else normalizer.normalize_str(character)
        return bool(read.strip()) and all(one in self._covered for one in read.strip())

    def _spelt(self, pieces: "_Pieces") -> dict[int, int]:
        """By the place of a character that is spelt in bytes, how many tokens that takes."""
        if self._byte_level:
            # Parts of a character have its place.
            times = Counter(span for i, span in pieces if i not in self._apart)
            return {span[0]: count for span, count in times.items() if count > 1}
        # The bytes of unknown neighbours have one place, that of all of them.
        fallen = [span for i, span in pieces if i in self.vocabulary.required["bytes"]]
        return {place: 2 for span in fallen for place in range(*span)}

    def _keep_list(self, dropped: "Counter[int]") -> list[str]:
        vocabulary = self.vocabulary
        common = [i for i, _ in dropped.most_common()]
        characters: dict[str, None] = {}
        for i in common:
            for one in sorted(vocabulary.characters([i])):
                own = vocabulary.ids.get(one)
                if own is not None and own not in self._kept:
                    characters[one] = None
        tokens = dict.fromkeys(vocabulary.tokens[i] for i in common)
        # Each is a line of a file.
        return [one for one in {**characters, **tokens} if one.strip() and not {"\n", "\r"} & set(one)]


_Pieces = Sequence[tuple[int, tuple[int, int]]]
"""Ids of tokens in the full vocabulary, with their places in a text."""


def _marked(size: int, spans: Iterable[tuple[int, int]]) -> bytearray:
    """Per character of a text 1 where one of the spans is; an empty span counts as the character behind it."""
    marks = bytearray(size + 1)
    for first, end in spans:
        end = max(end, first + 1)
        marks[first:end] = b"\1" * (end - first)
    return marks


def drawn(texts: Iterable[str], *, seed: int) -> tuple[list[str], int]:
    """Some of the texts, as many as are compared, and how many there are; read as a stream.

    Args:
        seed: draws them, where there are more than are compared.
    """
    rng = random.Random(seed)
    chosen: list[str] = []
    count = 0
    for text in texts:
        if count < MOST_TEXTS:
            chosen.append(text)
        elif (place := rng.randrange(count + 1)) < MOST_TEXTS:
            chosen[place] = text
        count += 1
    if sum(map(len, chosen)) > MOST_CHARACTERS:
        rng.shuffle(chosen)
        left, some = MOST_CHARACTERS, []
        for text in chosen:
            if left <= 0:
                break
            some.append(text)
            left -= len(text)
        chosen = some
    return chosen, count


def missing_file(name: str) -> str:
    """What the keep-list for a file's texts is called.

    Example:
        >>> missing_file("test, zho")
        'test-zho.txt'
    """
    # In bytes a character may be four.
    plain = re.sub(r"[^\w.-]+", "-", name.removesuffix(".txt")).strip("-.")[-50:]
    return f"{plain or 'file'}.txt"


def missing_files(files: Mapping[str, TextCoverage]) -> dict[str, str]:
    """What the keep-lists of the files that lose are called, each by a name that no other has.

    Args:
        files: all that were compared.
    """
    losing = [name for name, one in files.items() if one.loses]
    found: dict[str, str] = {}
    taken: set[str] = set()
    # Records have the same files in another order.
    for name in sorted(losing):
        plain = missing_file(name)
        numbered = (f"{plain.removesuffix('.txt')}-{number}.txt" for number in itertools.count(2))
        # Some disks do not tell large letters from small ones.
        found[name] = next(one for one in itertools.chain([plain], numbered) if one.casefold() not in taken)
        taken.add(found[name].casefold())
    return {name: found[name] for name in losing}


def write_missing(found: Mapping[str, FoundInTexts], folder: Path) -> None:
    """Write what files lack that lose into a folder that is there: a keep-list each, one character or token a line."""
    for name, file in missing_files({name: one.coverage for name, one in found.items()}).items():
        text = "".join(f"{one}\n" for one in found[name].lacking)
        (folder / file).write_text(text, encoding="utf-8", newline="\n")


def coverage_table(files: Mapping[str, TextCoverage]) -> Table:
    """The figures of files for a terminal."""
    table = Table(title="what trimming changes")
    for heading in ("file", "texts", "tokens per word", "more tokens", "unknown", "words changed", "lacks"):
        table.add_column(heading, justify="left" if heading in ("file", "lacks") else "right", overflow="fold")
    for name, one in files.items():
        (before, after), (unknown, trimmed) = one.fertility, one.unknown_shares
        shown = [character for character in one.missing if character.isprintable()][:SAID_CHARACTERS]
        table.add_row(
            escape(printable(name)),
            f"{one.texts:,}" + (f" of {one.of:,}" if one.texts < one.of else ""),
            f"{before:.3f} → {after:.3f}",
            f"{one.growth:.2%}",
            f"{unknown:.3%} → {trimmed:.3%}",
            f"{one.changed_share:.2%}",
            escape(" ".join(shown)),
        )
    return table


def loss_line(name: str, coverage: TextCoverage, *, settings: TrimSettings, covered: float = 1.0, keep: str) -> str:
    """What a file loses, and what helps, in one line for people.

    Args:
        name: of the file.
        settings: of the trim.
        covered: share of its language's corpus that is covered.
        keep: where the keep-list is, and how it is given.
    """
    characters = "keep_characters = true, or " if coverage.missing_characters and not settings.keep_characters else ""
    threshold = ", or a lower threshold" if covered < ALL_COVERED and settings.vocabulary_size is None else ""
    return (
        f"{name}: the trimmed vocabulary does not fit it: {coverage.in_words()}. What helps: {characters}trimming on "
        f"more text like it (script, spelling, domain){threshold}, or {keep}"
    )
