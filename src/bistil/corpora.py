"""Text in, token blocks out, per language; and the order in which training sees them.

Lines are tokenized with the tokenizer's special tokens, joined, and cut into blocks without padding (paper, section
3.2). Blocks lie in Arrow files that are memory-mapped and found again by the content of text and tokenizer.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bistil.artefacts import file_digest, json_digest, read_sealed, whole_file, write_sealed
from bistil.errors import ArtefactError, InputError
from bistil.objectives import IGNORED
from bistil.progress import say
from bistil.text_files import line_batches, require_plain_text

# Changes when the same text and tokenizer would give other blocks.
_FORMAT = 1
# A block shorter than this teaches nothing about context.
_SHORTEST = 4
# Below this, starting processes costs more than they save.
_LINES_PER_PROCESS = 20_000
_LINES_AT_ONCE = 10_000


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, plain, .gz or .zst, without line ends; a byte order mark is dropped.

    Raises:
        InputError: missing or unreadable file, or a line that is not UTF-8 (with its number).
        MissingExtraError: a .zst file without the package that reads it.
    """
    for lines in line_batches(path):
        yield from lines


def check_text(path: Path) -> None:
    """Make sure that a text file can be read and holds text.

    Raises:
        InputError: missing, unreadable, not UTF-8 (with the line), without any text, or of labelled rows.
    """
    require_plain_text(path)
    found = False
    for line in read_lines(path):
        found = found or bool(line.strip())
    if not found:
        raise InputError(f"{path} is empty: give a file with text, one sentence or paragraph per line")


def read_sentences(paths: Sequence[Path]) -> list[str]:
    """All lines of the files that hold text, stripped.

    Raises:
        InputError: as `read_lines`, or a file is of labelled rows.
    """
    for path in paths:
        require_plain_text(Path(path))
    return [line.strip() for path in paths for line in read_lines(Path(path)) if line.strip()]


def check_block_length(length: int) -> None:
    """Make sure that blocks can have so many tokens.

    Raises:
        InputError: fewer than 4.
    """
    if length < 4:
        raise InputError(f"block_length is {length}; blocks need at least 4 tokens")


def token_blocks(
    files: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    cache: Path,
    processes: int | None = None,
) -> datasets.Dataset:
    """The files' text as blocks of token ids, memory-mapped.

    Args:
        files: of one language.
        tokenizer: a fast one.
        length: tokens per block. Text too short for two blocks becomes two shorter ones; otherwise the remainder
            below one block is dropped.
        cache: folder in which blocks are kept, by the content they come from.
        processes: that tokenize; default: as many as there are cores, fewer for little text.

    Returns:
        A data set with the column "input_ids", (length,) int32 each.

    Raises:
        InputError: an unreadable or empty file, or too little text.
    """
    check_block_length(length)
    key = json_digest([_FORMAT, [file_digest(Path(f)) for f in files], _tokenizer_digest(tokenizer), length])
    target = cache / f"blocks-{key[:32]}.arrow"
    if not _is_sound(target):
        for file in files:
            check_text(Path(file))
        lines = cache / f"lines-{key[:32]}.arrow"
        try:
            count = _write_lines(files, lines)
            most = processes or os.cpu_count() or 1
            _write_blocks(
                _tokenized(lines, tokenizer, processes=max(1, min(most, count // _LINES_PER_PROCESS)), cache=cache),
                target,
                length=length,
                where=", ".join(map(str, files)),
            )
            # Written last: blocks without it are not used.
            write_sealed(_seal(target), {"sha256": file_digest(target)})
        finally:
            lines.unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(target)).with_format("numpy")


def split_held_out(size: int, share: float, *, limit: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and held-out blocks of one language.

    Returns:
        (training,), (held_out,) ascending, disjoint, together 0 to size - 1. With a share above 0 at least one and at
        most `limit` blocks (None: any number) are held out, and never all.
    """
    count = min(size if limit is None else limit, max(1, round(size * share)), size - 1) if share > 0 else 0
    order = np.random.default_rng([seed, size]).permutation(size)
    return np.sort(order[count:]), np.sort(order[:count])


@dataclass(frozen=True, kw_only=True)
class LanguageSchedule:
    """Blocks in the order of training; every batch is in one language, drawn with the given probabilities.

    Index i belongs to optimizer step i // batch_size, however many processes or accumulated parts share the batch.
    Each language's blocks are walked through in shuffled epochs of its own.
    """

    blocks: Mapping[str, Any]
    """Per language, blocks by index, each with "input_ids"."""
    indices: Mapping[str, np.ndarray]
    """Per language, which of its blocks are for training."""
    languages: list[str]
    of_batch: np.ndarray
    """(steps,) position in `languages`."""
    order: np.ndarray
    """(steps * batch_size,) block numbers."""
    batch_size: int
    ordered: bool = True

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One block: "input_ids" (tokens,), "language", and "position", the index itself."""
        language = self.languages[self.of_batch[index // self.batch_size]]
        ids = self.blocks[language][int(self.order[index])]["input_ids"]
        return {"input_ids": ids, "language": language, "position": index}


def check_probabilities(probabilities: Mapping[str, float] | None, languages: Sequence[str]) -> dict[str, float]:
    """The languages' shares of the batches: those given, or equal ones.

    Raises:
        InputError: a probability is missing, negative, or of a language without text.
    """
    given = dict(probabilities or dict.fromkeys(languages, 1.0))
    if set(given) != set(languages) or min(given.values()) < 0 or sum(given.values()) <= 0:
        raise InputError(
            f"probabilities are given for {', '.join(given)}; give a number of 0 or more for each language with text: "
            f"{', '.join(languages)}"
        )
    return given


def language_schedule(
    blocks: Mapping[str, Any],
    indices: Mapping[str, np.ndarray],
    *,
    steps: int,
    batch_size: int,
    probabilities: Mapping[str, float] | None = None,
    seed: int,
) -> LanguageSchedule:
    """Draw the order of training (paper, section 3.2: S or T with probability 1/2, per batch).

    Args:
        blocks, indices: as in `LanguageSchedule`.
        probabilities: per language, any positive numbers; default: equal.

    Raises:
        InputError: a probability is missing, negative, or of a language without text.
    """
    languages = list(blocks)
    given = check_probabilities(probabilities, languages)
    generator = np.random.default_rng(seed)
    weights = np.array([given[language] for language in languages])
    of_batch = generator.choice(len(languages), size=steps, p=weights / weights.sum()).astype(np.int16)
    order = np.empty((steps, batch_size), dtype=np.int64)
    for place, language in enumerate(languages):
        rows = of_batch == place
        wanted, known = int(rows.sum()) * batch_size, indices[language]
        epochs = [generator.permutation(known) for _ in range(math.ceil(wanted / len(known)))]
        if epochs:
            order[rows] = np.concatenate(epochs)[:wanted].reshape(-1, batch_size)
    return LanguageSchedule(
        blocks=blocks,
        indices=indices,
        languages=languages,
        of_batch=of_batch,
        order=order.ravel(),
        batch_size=batch_size,
    )


@dataclass(frozen=True, kw_only=True)
class BlockCollator:
    """Stacks blocks of one language; pads only where lengths differ, and masks tokens if asked.

    With `mask_tokens`, 15% of a block's tokens, none of them special, are to be predicted: of these 80% become the mask
    token, 10% a random one, 10% stay (Devlin et al. 2019, section 3.1). Blocks of one length have equally many, so that
    parts of a batch weigh alike in its mean. The draw depends on the seed and the block's position in training alone,
    so that any number of processes masks alike.
    """

    tokenizer: PreTrainedTokenizerBase
    mask_tokens: bool = False
    seed: int = 0

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Batch with "input_ids" and, where needed, "attention_mask" and "labels", (batch, tokens); "language"."""
        rows = [np.asarray(example["input_ids"], dtype=np.int64) for example in examples]
        longest = max(map(len, rows))
        batch: dict[str, Any] = {"language": examples[0]["language"]}
        ids = np.full((len(rows), longest), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
        if self.mask_tokens:
            labels = np.full_like(ids, IGNORED)
            for place, (row, example) in enumerate(zip(rows, examples, strict=True)):
                ids[place, : len(row)], labels[place, : len(row)] = self._mask(row, example["position"])
            batch["labels"] = torch.from_numpy(labels)
        batch["input_ids"] = torch.from_numpy(ids)
        if any(len(row) < longest for row in rows):
            lengths = np.array([len(row) for row in rows])
            batch["attention_mask"] = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64))
        return batch

    def _mask(self, row: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng([self.seed, position])
        ordinary = np.flatnonzero(~np.isin(row, self.tokenizer.all_special_ids))
        chosen = np.zeros(len(row), dtype=bool)
        chosen[generator.permutation(ordinary)[: max(1, round(0.15 * len(row)))]] = True
        labels = np.where(chosen, row, IGNORED)
        kind = generator.random(len(row))
        masked = np.where(chosen & (kind < 0.8), self.tokenizer.mask_token_id, row)
        random = generator.integers(0, len(self.tokenizer), len(row))
        return np.where(chosen & (kind >= 0.9), random, masked), labels


def batches(
    blocks: Any, indices: np.ndarray, collate: BlockCollator, *, language: str, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of chosen blocks of one language, in order; for held-out losses."""
    for start in range(0, len(indices), batch_size):
        yield collate(
            [
                {"input_ids": blocks[int(i)]["input_ids"], "language": language, "position": int(i)}
                for i in indices[start : start + batch_size]
            ]
        )


def _seal(blocks: Path) -> Path:
    """Where the digest of a file of blocks is."""
    return blocks.with_suffix(".json")


def _is_sound(blocks: Path) -> bool:
    """Whether blocks are there and are what was written; damaged ones are removed, and the user is told."""
    seal = _seal(blocks)
    if not (blocks.exists() and seal.exists()):
        return False
    try:
        if read_sealed(seal).get("sha256") == file_digest(blocks):
            return True
    except ArtefactError:
        pass
    say(f"{blocks} is damaged: the text is tokenized again")
    seal.unlink()
    blocks.unlink()
    return False


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    backend: Any = tokenizer
    return sha256(backend.backend_tokenizer.to_str().encode()).hexdigest()


def _write_lines(files: Sequence[Path], target: Path) -> int:
    """All lines with text as one Arrow file; returns how many."""
    schema = pa.schema([("text", pa.large_string())])
    count = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(target, inner=True) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as out,
    ):
        part: list[str] = []

        def flush() -> None:
            out.write_batch(pa.record_batch([pa.array(part, pa.large_string())], schema=schema))
            part.clear()

        for file in files:
            for line in read_lines(Path(file)):
                if line.strip():
                    part.append(line.strip())
                    count += 1
                if len(part) == _LINES_AT_ONCE:
                    flush()
        if part:
            flush()
    return count


def _tokenized(lines: Path, tokenizer: PreTrainedTokenizerBase, *, processes: int, cache: Path) -> Iterator[np.ndarray]:
    """Token ids of all lines, in order, in pieces of any length."""

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer(batch["text"], truncation=False, return_attention_mask=False, return_token_type_ids=False)
        return {"input_ids": found["input_ids"]}

    text = datasets.Dataset.from_file(str(lines))
    if processes == 1:
        for start in range(0, len(text), _LINES_AT_ONCE):
            ids = encode(text[start : start + _LINES_AT_ONCE])["input_ids"]
            yield np.fromiter((token for line in ids for token in line), dtype=np.int32)
        return
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    tokens = cache / f"{lines.stem}-tokens.arrow"
    # What a killed process left is not gone on with.
    _remove_all(cache, f"{lines.stem}-tokens*.arrow")
    # Rust threads and forked processes do not mix; each process uses one thread.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        encoded = text.map(
            encode,
            batched=True,
            num_proc=processes,
            remove_columns=["text"],
            features=features,
            cache_file_name=str(tokens),
            load_from_cache_file=False,
            desc="tokenizing",
        )
        for chunk in encoded.data.column("input_ids").chunks:
            yield chunk.flatten().to_numpy(zero_copy_only=True).astype(np.int32, copy=False)
    finally:
        datasets.enable_progress_bars()
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
        _remove_all(cache, f"{lines.stem}-tokens*.arrow")


def _remove_all(folder: Path, pattern: str) -> None:
    for file in folder.glob(pattern):
        file.unlink()


def _write_blocks(pieces: Iterator[np.ndarray], target: Path, *, length: int, where: str) -> None:
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    written = 0
    rest = np.empty(0, dtype=np.int32)
    with (
        whole_file(target, inner=True) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as out,
    ):

        def write(blocks: np.ndarray) -> None:
            nonlocal written
            offsets = np.arange(len(blocks) + 1, dtype=np.int32) * blocks.shape[1]
            out.write_batch(pa.record_batch([pa.ListArray.from_arrays(offsets, blocks.ravel())], schema=schema))
            written += len(blocks)

        for piece in pieces:
            rest = np.concatenate([rest, piece])
            # Until there are two blocks, all is kept: so little text is cut in two.
            if written or len(rest) >= 2 * length:
                whole = len(rest) // length * length
                write(rest[:whole].reshape(-1, length))
                rest = rest[whole:]
        if not written:
            short = len(rest) // 2
            if short < _SHORTEST:
                raise InputError(f"{where}: only {len(rest)} tokens of text; at least {2 * _SHORTEST} are needed")
            write(rest[: 2 * short].reshape(2, short))
