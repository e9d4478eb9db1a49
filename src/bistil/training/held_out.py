"""Held-out losses: what a module gives on blocks of text that it does not learn from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from bistil.text import IGNORED
from bistil.text.schedule import BlockCollator, batches
from bistil.training.loop import processes


def blocks_of(batch: dict[str, Any]) -> int:
    """Blocks in a batch: the weight of what is a mean over blocks."""
    return len(batch["input_ids"])


def masked_tokens_of(batch: dict[str, Any]) -> int:
    """Tokens of a batch that are to be predicted: the weight of a masked-LM loss."""
    return int((batch["labels"] != IGNORED).sum())


@torch.no_grad()
def held_out_means(
    module: nn.Module,
    blocks: Any,
    indices: np.ndarray,
    collate: BlockCollator,
    *,
    language: str,
    batch_size: int,
    weight: Callable[[dict[str, Any]], int],
    low_precision: bool = False,
) -> dict[str, float]:
    """Weighted mean over chosen blocks of every scalar that a module gives, in evaluation mode.

    Several processes share the batches; each gets all figures.

    Args:
        blocks, indices: token blocks of one language, and which of them are held out.
        weight: how much a batch counts.
        low_precision: matrix products in bf16.
    """
    state, device = processes(), next(module.parameters()).device
    was_training = module.training
    module.eval()
    sums: dict[str, Tensor] = {}
    total = 0
    for number, batch in enumerate(batches(blocks, indices, collate, language=language, batch_size=batch_size)):
        counted = weight(batch)
        total += counted
        own = number % state.num_processes == state.process_index
        # The first batch tells every process the names; it counts once.
        if own or number == 0:
            with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
                means = module(**{k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()})
            for name, value in means.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.float() * (counted * own)
    module.train(was_training)
    return {name: float(reduce(value, "sum")) / max(total, 1) for name, value in sums.items()}
