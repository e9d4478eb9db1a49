"""How often each token occurs in a text: counted once per file, kept on disk, merged by addition."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from bistil.errors import ArtefactError, InputError
from bistil.models.tokenizers import to_json
from bistil.runtime.artefacts import json_digest, whole_file
from bistil.runtime.documents import parse_json
from bistil.text.files import line_batches, require_plain_text
from bistil.text.sources import TextSource, text_digest
from bistil.vocabulary.tokenizer_state import Vocabulary

logger = logging.getLogger(__name__)

# Lines on which the result is checked are not counted: of the lines after the first 1,000 every 50th, 2,000 at most.
# A shorter text is counted whole.
COUNTED_FIRST, HELD_OUT_EVERY, HELD_OUT_LINES = 1_000, 50, 2_000
COUNTS_SUFFIX = ".counts"
# Changes when the same text and tokenizer would give other counts.
_FORMAT = 2


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """Occurrences of each token in some text.

    Attributes:
        counts: (vocabulary size,) int64; special tokens that a model adds around a text are not counted.
        lines, words, characters: size of the text; a word is what stands between white space.
        tokenizer: digest of the tokenizer that counted.
        sources: SHA-256 of each counted text.
    """

    counts: np.ndarray
    lines: int
    words: int
    characters: int
    tokenizer: str
    sources: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of tokens."""
        return int(self.counts.sum())

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        """Counts of both texts together.

        Raises:
            InputError: they were counted with different tokenizers.
        """
        if self.tokenizer != other.tokenizer:
            raise InputError("counts of two different tokenizers cannot be merged: count again with one tokenizer")
        return TokenCounts(
            self.counts + other.counts,
            self.lines + other.lines,
            self.words + other.words,
            self.characters + other.characters,
            self.tokenizer,
            self.sources + other.sources,
        )

    def save(self, path: Path, *, replace: bool = False) -> None:
        """Write the counts as one safetensors file, with a digest of all that is in it.

        Args:
            replace: earlier counts give way.

        Raises:
            InputError: something else is there, or counts and `replace` is false.
        """
        facts = {key: value for key, value in asdict(self).items() if key != "counts"}
        facts["digest"] = _digest(self.counts, facts)
        with whole_file(path, replace=replace) as partial:
            save_file({"counts": self.counts}, partial, metadata={"bistil_counts": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> "TokenCounts":
        """Read what `save` wrote. Files of version 0.1, without a digest, are read too.

        Raises:
            InputError: the file is missing.
            ArtefactError: the file is damaged or holds something else.
        """
        if not path.is_file():
            raise InputError(f"cannot read {path}: no such file")
        try:
            with safe_open(path, framework="numpy") as stored:
                facts = parse_json(stored.metadata()["bistil_counts"])
                counts = stored.get_tensor("counts")
            digest = facts.pop("digest", None)
            if digest is not None and digest != _digest(counts, facts):
                raise ValueError("not what was written")
            return cls(counts, **{**facts, "sources": tuple(facts["sources"])})
        except Exception as error:  # a damaged file makes its reader raise anything
            raise ArtefactError(f"{path} holds no token counts or is damaged; remove it and count again") from error


def _digest(counts: np.ndarray, facts: dict[str, Any]) -> str:
    return json_digest([hashlib.sha256(np.ascontiguousarray(counts).data).hexdigest(), facts])


def counting_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a state without padding and truncation."""
    return Tokenizer.from_str(to_json({**vocabulary.state, "padding": None, "truncation": None}))


def count_file(
    vocabulary: Vocabulary,
    path: TextSource,
    *,
    tokenizer: Tokenizer | None = None,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenCounts:
    """Count the tokens of one text file, or read the counts of one that was counted before.

    The file streams through in batches; memory does not grow with it. The tokenizers library encodes a batch on all
    cores (unless TOKENIZERS_PARALLELISM=false) while the ids of batches before are summed up.

    Args:
        path: text, one sentence or paragraph a line, plain or .gz or .zst, or in memory; or a `.counts` file.
        tokenizer: that of `counting_tokenizer(vocabulary)`, to build it once for several files.
        cache: folder of finished counts, named after the content of the file and the tokenizer.
        progress: called with the number of bytes of the file that each batch took.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or holds no text or labelled rows, or its counts are another
            tokenizer's.
    """
    if is_counts(path):
        counted = TokenCounts.load(path)
        if counted.tokenizer != vocabulary.digest:
            raise InputError(f"{path} was counted with another tokenizer: count the text again")
        return counted
    digest = text_digest(path)
    name = json_digest([_FORMAT, digest, vocabulary.digest, COUNTED_FIRST, HELD_OUT_EVERY, HELD_OUT_LINES])[:32]
    kept = cache / f"{name}{COUNTS_SUFFIX}" if cache is not None else None
    known = _kept_counts(kept) if kept is not None and kept.is_file() else None
    if known is not None:
        if progress is not None and isinstance(path, Path):
            progress(path.stat().st_size)
        return known
    require_plain_text(path)
    tokenizer = tokenizer or counting_tokenizer(vocabulary)
    sizes = np.zeros(3, dtype=np.int64)
    counts = np.zeros(len(vocabulary), dtype=np.int64)

    def encode(lines: list[str]) -> list[Sequence[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(lines, add_special_tokens=False)]

    # One worker takes the ids out of its encodings, on one core, while the other encodes.
    with ThreadPoolExecutor(max_workers=2) as workers:
        pending: deque[Future[list[Sequence[int]]]] = deque()
        for lines in _counted_lines(path, progress):
            pending.append(workers.submit(encode, lines))
            sizes += (len(lines), sum(len(line.split()) for line in lines), sum(map(len, lines)))
            if len(pending) > 2:
                counts += _occurrences(pending.popleft().result(), len(vocabulary))
        for batch in pending:
            counts += _occurrences(batch.result(), len(vocabulary))
    if not counts.any():
        raise InputError(f"{path} holds no text: give a file with at least one line that is not blank")
    lines_, words, characters = map(int, sizes)
    counted = TokenCounts(counts, lines_, words, characters, vocabulary.digest, (digest,))
    if kept is not None:
        counted.save(kept, replace=True)
    return counted


def is_counts(source: TextSource) -> TypeGuard[Path]:
    """Whether a text is given as counts of earlier."""
    return isinstance(source, Path) and source.suffix == COUNTS_SUFFIX


def _kept_counts(kept: Path) -> TokenCounts | None:
    """Counts out of the cache; None, and a notice, if they are damaged."""
    try:
        return TokenCounts.load(kept)
    except ArtefactError:
        logger.warning(f"{kept} is damaged: its text is counted again")
        return None


def held_out_lines(path: TextSource) -> tuple[list[str], bool]:
    """Lines of a text file on which to check a trimmed vocabulary.

    Returns:
        The lines, and whether they were left out of the counts; a text too short for that gives its counted lines.
        A file of counts gives none.
    """
    if is_counts(path):
        return [], True
    first: list[str] = []
    held: list[str] = []
    done = 0
    for lines in line_batches(path):
        if len(first) < COUNTED_FIRST:
            first += lines[: COUNTED_FIRST - len(first)]
        held += lines[_held_out(done, len(lines))]
        done += len(lines)
        if done >= COUNTED_FIRST + HELD_OUT_EVERY * HELD_OUT_LINES:
            break
    held, first = ([stripped for line in lines if (stripped := line.strip())] for lines in (held, first))
    return (held, True) if held else (first, False)


def _held_out(done: int, size: int) -> slice:
    """Which lines of a batch are held out, when `done` lines of the file came before it."""
    start = COUNTED_FIRST + HELD_OUT_EVERY - 1
    if done > start:
        start += -(-(done - start) // HELD_OUT_EVERY) * HELD_OUT_EVERY
    stop = COUNTED_FIRST + HELD_OUT_EVERY * HELD_OUT_LINES
    return slice(min(start - done, size), max(min(stop - done, size), 0), HELD_OUT_EVERY)


def _counted_lines(path: TextSource, progress: Callable[[int], None] | None) -> Iterator[list[str]]:
    done = 0
    for lines in line_batches(path, progress=progress):
        out = _held_out(done, len(lines))
        done += len(lines)
        del lines[out]
        # As training reads them.
        yield [stripped for line in lines if (stripped := line.strip())]


def _occurrences(ids: list[Sequence[int]], size: int) -> np.ndarray:
    return np.bincount(np.fromiter(chain.from_iterable(ids), dtype=np.int64), minlength=size)
