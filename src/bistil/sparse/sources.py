"""Multi-source training: every batch comes from one language, and the model wears that language's SFT in it.

Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022, section 5.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from bistil.errors import InputError

if TYPE_CHECKING:
    from bistil.sparse.parametrisation import Languages


class SourceBatches:
    """Labelled examples of several languages in an order in which every batch is in one language.

    Languages take turns in proportion to their sizes, spread evenly; each one's examples are walked through in
    shuffled epochs. Give the data set's `collate` to the training.

    Args:
        examples: per language, examples (mappings) by index.
        collate: turns a list of examples into a batch.
    """

    def __init__(self, examples: Mapping[str, Sequence[Any]], collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        empty = [language for language, own in examples.items() if not len(own)]
        if empty or not examples:
            raise InputError(f"no examples in {', '.join(empty) or 'any language'}: leave it out or give its files")
        self.languages, self.examples, self._collate = list(examples), examples, collate
        self.starts = np.cumsum([0, *(len(own) for own in examples.values())])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> tuple[str, Any]:
        """Language and example."""
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.languages[place], self.examples[self.languages[place]][index - int(self.starts[place])]

    def training_order(self, *, items: int, batch_size: int, seed: int) -> np.ndarray:
        """(items,) indices, in whole batches of one language."""
        steps = -(-items // batch_size)
        sizes = np.diff(self.starts)
        generator = np.random.default_rng(seed)
        # Each language's batches at even distances over the training, shifted by chance.
        shares = sizes / sizes.sum()
        counts = np.floor(shares * steps).astype(int)
        counts[np.argsort(counts - shares * steps, kind="stable")[: steps - counts.sum()]] += 1
        moments = np.concatenate([(np.arange(n) + generator.random()) / n for n in counts if n])
        of_batch = np.repeat(np.flatnonzero(counts), counts[counts > 0])[np.argsort(moments, kind="stable")]
        order = np.empty((steps, batch_size), dtype=np.int64)
        for place, size in enumerate(sizes):
            rows = of_batch == place
            wanted = int(rows.sum()) * batch_size
            epochs = [generator.permutation(size) for _ in range(-(-wanted // size))]
            if epochs:
                order[rows] = np.concatenate(epochs)[:wanted].reshape(-1, batch_size) + self.starts[place]
        return order.ravel()[:items]

    def collate(self, rows: list[tuple[str, Any]]) -> dict[str, Any]:
        """A batch of one language, with the language under "language"."""
        return {**self._collate([example for _, example in rows]), "language": rows[0][0]}


class BatchLanguage(nn.Module):
    """Makes a batch's language the current one and hands the rest of the batch to the module.

    Args:
        first: the language that evaluation wears.
    """

    def __init__(self, module: nn.Module, languages: "Languages", *, first: str) -> None:
        super().__init__()
        self.module, self.languages, self.first = module, languages, first

    def forward(self, language: str, **batch: Any) -> Any:
        """What the module returns for the batch."""
        self.languages.current = language
        return self.module(**batch)

    def evaluation(
        self, evaluate: Callable[[nn.Module], dict[str, float]] | None
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """The evaluation of the bare module, wearing the first language."""
        if evaluate is None:
            return None

        def in_first_language(_: nn.Module) -> dict[str, float]:
            self.languages.current = self.first
            return evaluate(self.module)

        return in_first_language
