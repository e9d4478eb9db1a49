"""Models exported for CTranslate2, whose encoders it runs on the CPU; the task's head runs in numpy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bistil.engines.alone import Runner
from bistil.errors import ArtefactError, MissingExtraError, first_line
from bistil.models.families import position_limit
from bistil.models.loading import labels_of, read_config
from bistil.tasks.batches import Batch


class CTranslate2Engine:
    """Runs an exported model: `tasks.batches.Engine`.

    Args:
        folder: of the exported model.
        threads: CPU threads; None: as many as PyTorch is set to.

    Raises:
        ArtefactError: the encoder or the head cannot be read.
        MissingExtraError: CTranslate2 is not installed.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        config = read_config(folder)
        self.labels, self.positions = labels_of(config), position_limit(config)
        # Per input how many rows its table has: beyond them CTranslate2 reads memory that is not its own.
        self.tables = {"input_ids": int(config.vocab_size)}
        if has_types(config):
            self.tables["token_type_ids"] = int(config.type_vocab_size)
        require_ctranslate2()
        try:
            self.runner = Runner(folder, threads=threads or torch.get_num_threads())
        except Exception as error:  # of no common class
            raise ArtefactError(f"CTranslate2 cannot open {folder}: {first_line(error)}") from error

    def __call__(self, batch: Batch) -> Mapping[str, Any]:
        given = {name: values.cpu().numpy() for name, values in batch.items()}
        if "token_type_ids" not in self.tables:
            given.pop("token_type_ids", None)
        for name, rows in self.tables.items():
            if name in given and not 0 <= given[name].min() <= given[name].max() < rows:
                raise ArtefactError(
                    f"{name} go up to {given[name].max()}, and the model has {rows} of them: its tokenizer is another "
                    "model's"
                )
        return self.runner(given)


def has_types(config: Any) -> bool:
    """Whether a model tells first texts from second ones; a single type is the same as none."""
    return int(getattr(config, "type_vocab_size", 0)) > 1


def require_ctranslate2() -> Any:
    """The module ctranslate2.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ctranslate2
    except ImportError as error:
        raise MissingExtraError("models exported for CTranslate2 need it: pip install 'bistil[ctranslate2]'") from error
    return ctranslate2
