"""The order in which training sees token blocks, and the batches made of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.text import IGNORED

# Blocks that are read at a time.
_TOGETHER = 4096


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

    def digest(self) -> str:
        """SHA-256 of all blocks that are trained on, each once, and of their order."""
        whole = sha256(self.of_batch.tobytes() + self.order.tobytes())
        for place, language in enumerate(self.languages):
            own = np.unique(self.order.reshape(-1, self.batch_size)[self.of_batch == place])
            whole.update(f"{language} {len(own)}".encode())
            for start in range(0, len(own), _TOGETHER):
                for ids in self.blocks[language][own[start : start + _TOGETHER].tolist()]["input_ids"]:
                    whole.update(np.asarray(ids, np.int32).tobytes())
        return whole.hexdigest()


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
