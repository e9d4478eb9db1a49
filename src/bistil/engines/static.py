"""Classifiers over static embeddings, run by numpy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bistil.models.loading import labels_of, read_config
from bistil.models.static import StaticClassifier
from bistil.tasks.batches import Batch


class StaticEngine:
    """Runs a classifier over static embeddings: `tasks.batches.Engine`.

    Args:
        folder: of the model.
        threads: not used; numpy has its own.

    Raises:
        ArtefactError: it cannot be read.
    """

    positions = None

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        del threads
        self.labels = labels_of(read_config(folder))
        self.classifier = StaticClassifier.load(folder, classes=len(self.labels))

    def __call__(self, batch: Batch) -> Mapping[str, Any]:
        ids, mask = (batch[name].cpu().numpy() for name in ("input_ids", "attention_mask"))
        return {"logits": self.classifier.logits(ids, mask)}
