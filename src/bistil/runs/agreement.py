"""What a finished model says of text without labels, as examples that others are scored on: agreement, not accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bistil.engines import open_engine
from bistil.models.tokenizers import load_tokenizer
from bistil.prediction.loading import predictor_of
from bistil.prediction.predictor import Wanted
from bistil.tasks.base import Task
from bistil.tasks.texts import make_pairs


def answered_lines(
    folder: Path,
    task: Task,
    lines: Sequence[str],
    *,
    max_length: int = 128,
    pairs: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> tuple[list[Any], list[Any]]:
    """Examples out of plain text, labelled by a task model, and its predictions; read as `bistil predict` reads text.

    Args:
        folder: of the model.
        task: one whose `of_plain_text` is true.
        lines: of text, one input each.
        pairs: make pairs of them (`tasks.texts.make_pairs`), drawn by the seed.
        device: of PyTorch; default: a CUDA GPU if there is one, else the CPU.

    Raises:
        ArtefactError: the folder holds no task model with a tokenizer.
    """
    engine, tokenizer = open_engine(folder, task, device=device), load_tokenizer(str(folder))
    predictor = predictor_of(str(folder), task, engine, tokenizer, max_length=max_length)
    given: Sequence[Any] = make_pairs(lines, seed=seed) if pairs else lines
    said = predictor.said([predictor.asked(one) for one in given], Wanted())
    both = [(task.answered(one.example, one.prediction.value), one.prediction.value) for own in said for one in own]
    return [example for example, _ in both], [value for _, value in both]
