"""The text of phase 1: token blocks to learn from, and losses on those that are held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil.distillation.module import Distiller
from bistil.settings.recipe import Phase1Settings
from bistil.sparse.language import MaskedLanguageModelling
from bistil.text.blocks import token_blocks
from bistil.text.schedule import BlockCollator, split_held_out
from bistil.text.sources import TextSource
from bistil.training.held_out import blocks_of, held_out_means, masked_tokens_of
from bistil.training.loop import processes

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Per language: token blocks, and indices of those that are learnt from and of those that are held out."""

    blocks: dict[str, Any]
    training: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]

    @property
    def has_held_out(self) -> bool:
        """Whether there are held-out blocks of every language."""
        return all(map(len, self.held_out.values()))


def read_corpus(
    texts: Mapping[str, Sequence[TextSource]],
    tokenizer: PreTrainedTokenizerBase,
    settings: Phase1Settings,
    *,
    cache: Path | None,
    seed: int,
) -> Corpus:
    """Token blocks of every language's texts, split into blocks to learn from and held-out ones.

    Args:
        cache: folder of the token blocks; None: they are in memory.
        seed: of the split.

    Raises:
        InputError: text that cannot be read, or too little of it.
    """
    with processes().main_process_first():
        blocks = {
            language: token_blocks(files, tokenizer, length=settings.block_length, cache=cache)
            for language, files in texts.items()
        }
    parts = {
        language: split_held_out(
            len(part),
            settings.held_out_shares.get(language, settings.held_out),
            limit=settings.held_out_blocks,
            seed=seed,
        )
        for language, part in blocks.items()
    }
    training, held_out = ({language: part[side] for language, part in parts.items()} for side in (0, 1))
    return Corpus(blocks=blocks, training=training, held_out=held_out)


def held_out_losses(
    module: Distiller, corpus: Corpus, collate: BlockCollator, *, batch_size: int, low_precision: bool
) -> Figures:
    """Per student and language every unweighted term and the weighted loss; "NAME/loss" is the mean over languages."""
    figures: Figures = {}
    for language, indices in corpus.held_out.items():
        means = held_out_means(
            module, corpus.blocks[language], indices, collate,
            language=language, batch_size=batch_size, weight=blocks_of, low_precision=low_precision,
        )  # fmt: skip
        for student, term in (name.split("/") for name in means if name != "loss"):
            figures[f"{student}/{language}/{term}"] = means[f"{student}/{term}"]
    for student in module.students:
        figures[f"{student}/loss"] = float(np.mean([figures[f"{student}/{code}/loss"] for code in corpus.held_out]))
    return figures


def masked_lm_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, *, batch_size: int
) -> Figures:
    """Cross-entropy per masked token (nats) on held-out blocks, per language; the masks are the same for all models."""
    module, collate = MaskedLanguageModelling(model).eval(), BlockCollator(tokenizer=tokenizer, mask_tokens=True)
    return {
        language: held_out_means(
            module, corpus.blocks[language], indices, collate,
            language=language, batch_size=batch_size, weight=masked_tokens_of,
        )["loss"]
        for language, indices in corpus.held_out.items()
    }  # fmt: skip
