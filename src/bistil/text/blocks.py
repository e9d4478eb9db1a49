"""Text in, token blocks out, per language; and the order in which training sees them.

Lines are tokenized with the tokenizer's special tokens, joined, and cut into blocks without padding (paper, section
3.2). Blocks lie in Arrow files that are memory-mapped and found again by the content of text and tokenizer.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.runtime.artefacts import is_marked_whole, json_digest, mark_whole, whole_file
from bistil.runtime.process import cores
from bistil.runtime.quiet import kept_environment, shown_datasets_bars
from bistil.text.lines import check_text, read_lines
from bistil.text.sources import TextSource, text_digest

logger = logging.getLogger(__name__)

# Changes when the same text and tokenizer would give other blocks, or their mark is another.
_FORMAT = 2
# A block shorter than this teaches nothing about context.
_SHORTEST = 4
# Below this, starting processes costs more than they save.
_LINES_PER_PROCESS = 20_000
_LINES_AT_ONCE = 10_000


def check_block_length(length: int) -> None:
    """Make sure that blocks can have so many tokens.

    Raises:
        InputError: fewer than 4.
    """
    if length < 4:
        raise InputError(f"block_length is {length}; blocks need at least 4 tokens")


def token_blocks(
    files: Sequence[TextSource],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    cache: Path | None,
    processes: int | None = None,
) -> datasets.Dataset:
    """The files' text as blocks of token ids, memory-mapped.

    Args:
        files: of one language; files, or text in memory.
        tokenizer: a fast one.
        length: tokens per block. Text too short for two blocks becomes two shorter ones; otherwise the remainder
            below one block is dropped.
        cache: folder in which blocks are kept, by the content they come from; None: they are kept in memory.
        processes: that tokenize; default: `tokenizing_processes`.

    Returns:
        A data set with the column "input_ids", (length,) int32 each; memory-mapped where there is a cache.

    Raises:
        InputError: an unreadable or empty file, or too little text.
    """
    check_block_length(length)
    where = ", ".join(map(str, files))
    if cache is None:
        for file in files:
            check_text(file)
        sink = pa.BufferOutputStream()
        _write_blocks(_tokenized_here(_batches(files), tokenizer), sink, length=length, where=where)
        return datasets.Dataset.from_buffer(sink.getvalue()).with_format("numpy")
    key = json_digest([_FORMAT, [text_digest(file) for file in files], _tokenizer_digest(tokenizer), length])
    target = cache / f"blocks-{key[:32]}.arrow"
    if not is_marked_whole(target):
        if target.exists() and target.with_suffix(".json").exists():
            logger.warning(f"{target} is damaged: the text is tokenized again")
        for file in files:
            check_text(file)
        lines = cache / f"lines-{key[:32]}.arrow"
        try:
            count = _write_lines(files, lines)
            pieces = _tokenized(lines, tokenizer, processes=tokenizing_processes(count, processes), cache=cache)
            with whole_file(target, inner=True) as partial, pa.OSFile(str(partial), "wb") as file_sink:
                _write_blocks(pieces, file_sink, length=length, where=where)
            # Written last: blocks without it are not used.
            mark_whole(target)
        finally:
            lines.unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(target)).with_format("numpy")


def tokenizing_processes(lines: int, most: int | None = None) -> int:
    """Processes that so many lines are worth, one for 20,000 of them.

    Args:
        lines: of text.
        most: at most so many; default: as many as this process has cores and threads, which are a share of the
            machine's where stages are made side by side.
    """
    return max(1, min(most or min(cores(), torch.get_num_threads()), lines // _LINES_PER_PROCESS))


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    backend: Any = tokenizer
    return sha256(backend.backend_tokenizer.to_str().encode()).hexdigest()


def _batches(files: Sequence[TextSource]) -> Iterator[list[str]]:
    """All lines with text, stripped, some thousands at a time."""
    lines = (line.strip() for file in files for line in read_lines(file))
    return batched((line for line in lines if line), _LINES_AT_ONCE)


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of so many items; the last may have fewer. (itertools has it from Python 3.12 on.)"""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _write_lines(files: Sequence[TextSource], target: Path) -> int:
    """All lines with text as one Arrow file; returns how many."""
    schema = pa.schema([("text", pa.large_string())])
    count = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(target, inner=True) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as out,
    ):
        for part in _batches(files):
            out.write_batch(pa.record_batch([pa.array(part, pa.large_string())], schema=schema))
            count += len(part)
    return count


def _encode(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Any:
    """Token ids per line."""
    return tokenizer(
        list(lines), truncation=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]


def _tokenized_here(parts: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Token ids of all lines, in order, in pieces of any length; in this process."""
    for part in parts:
        yield np.fromiter((token for line in _encode(part, tokenizer) for token in line), dtype=np.int32)


def _tokenized(lines: Path, tokenizer: PreTrainedTokenizerBase, *, processes: int, cache: Path) -> Iterator[np.ndarray]:
    """Token ids of all lines, in order, in pieces of any length."""

    text = datasets.Dataset.from_file(str(lines))
    if processes == 1:
        starts = range(0, len(text), _LINES_AT_ONCE)
        yield from _tokenized_here((text[start : start + _LINES_AT_ONCE]["text"] for start in starts), tokenizer)
        return

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": _encode(batch["text"], tokenizer)}

    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    tokens = cache / f"{lines.stem}-tokens.arrow"
    # What a killed process left is not gone on with.
    _remove_all(cache, f"{lines.stem}-tokens*.arrow")
    try:
        # Rust threads and forked processes do not mix; each process uses one thread.
        with kept_environment(TOKENIZERS_PARALLELISM="false"), shown_datasets_bars():
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
        _remove_all(cache, f"{lines.stem}-tokens*.arrow")


def _remove_all(folder: Path, pattern: str) -> None:
    for file in folder.glob(pattern):
        file.unlink()


def _write_blocks(pieces: Iterator[np.ndarray], sink: Any, *, length: int, where: str) -> None:
    """Cut tokens into blocks and write these into an Arrow stream."""
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    written = 0
    rest = np.empty(0, dtype=np.int32)
    with pa.ipc.new_stream(sink, schema) as out:

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
