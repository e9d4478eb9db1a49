"""What a task is learnt from: labelled files and target text, without what is evaluated on; batches of both."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from bistil.errors import InputError
from bistil.settings.recipe import TaskSettings
from bistil.tasks import Task, get_task
from bistil.tasks.base import Example
from bistil.tasks.batches import Feature
from bistil.tasks.hub import Source
from bistil.tasks.overlap import LeftOut, without_evaluation_text, without_test_examples
from bistil.tasks.reading import Reading, RowReport
from bistil.training.loop import epoch_order

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TaskData:
    """What a task is learnt from and tested on; plain text of the target language if phase 2 uses some."""

    task: Task
    labels: list[str]
    train: list[Example]
    dev: list[Example]
    test: dict[str, list[Example]]
    target_sentences: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    sources: dict[str, list[Example]] = field(default_factory=dict)
    """`train` per language, where it is in several."""
    read: dict[str, dict[str, int]] = field(default_factory=dict)
    """Per file, how many rows are used, mended, without a label and odd (`RowReport.counts`)."""
    notices: list[str] = field(default_factory=list)
    """What was said about the files."""

    @property
    def metric(self) -> str:
        """The figure that chooses a checkpoint."""
        return self.task.metric(self.labels)

    def with_target_text(self, sentences: list[str], *, quiet: bool = False) -> "TaskData":
        """The same data with target text, of which what stands in a dev or test set is left out.

        Raises:
            InputError: nothing is left to learn from.
        """
        kept, seen = unseen_target_text(self, sentences, quiet=quiet)
        return replace(self, target_sentences=kept, left_out=replace(self.left_out, target=seen))


def read_task_data(
    settings: TaskSettings,
    *,
    target_sentences: list[str] | None = None,
    sources: Mapping[str, list[str]] | None = None,
    source: str | None = None,
    quiet: bool = False,
) -> TaskData:
    """Read a task's files; every problem of theirs shows here, before any training.

    Evaluation text is kept out of what is learnt from: training examples that stand in a test set, and target sentences
    that stand in a dev or test set, are left out (`tasks.overlap` says when texts are the same). `left_out` has them,
    and one line each on standard error says how many.

    Args:
        target_sentences: plain text of the target language.
        sources: per language, the training files, where they are in several; `settings.train` is then not looked at.
        source: language of the training and dev files, where `settings.language` and `sources` do not say it. Of
            test files it is their own.
        quiet: say nothing of what is mended or left out; it is in `notices`.

    Raises:
        InputError: an unreadable, empty or malformed file, a label in dev or test that training lacks, or nothing is
            left to learn from.
    """
    task = get_task(settings.kind, parser_projection=settings.parser_projection, scheme=settings.scheme)
    own_language = settings.language or source
    return gather(
        task,
        sources or {"": settings.train},
        dev=settings.dev,
        test=settings.test,
        how=lambda language: how_to_read(settings, language=language or own_language, quiet=quiet),
        target_sentences=target_sentences,
        quiet=quiet,
    )


def gather(
    task: Task,
    train: Mapping[str, Sequence[str | Source]],
    *,
    dev: Sequence[str | Source] = (),
    test: Mapping[str, Sequence[str | Source]] | None = None,
    how: Callable[[str | None], Reading],
    target_sentences: list[str] | None = None,
    quiet: bool = False,
) -> TaskData:
    """What a task is learnt from, out of files, data sets and rows in memory (see `read_task_data`).

    Args:
        train: per language; the language is "" where there is one.
        test: per language.
        how: the rows of a language are read; None: of the training data's.

    Raises:
        InputError: as `read_task_data`.
    """
    reports: list[RowReport] = []

    def read(files: Sequence[str | Source], language: str | None) -> list[Example]:
        return task.read(files, how=how(language), reports=reports)

    parts = {language: read(own, language or None) for language, own in train.items()}
    examples = [example for part in parts.values() for example in part]
    labels = task.labels(examples)

    def held_out(files: Sequence[str | Source], language: str | None) -> list[Example]:
        examples = read(files, language) if files else []
        task.check_labels(examples, labels)
        return examples

    chosen_by = held_out(dev, None)
    tests = {language: held_out(files, language or None) for language, files in (test or {}).items()}
    tested = [example for part in tests.values() for example in part]
    train_examples, repeats = without_test_examples(task, examples, tested)
    if not train_examples:
        named = ", ".join(str(file) for own in train.values() for file in own)
        raise InputError(f"every example of {named} stands in a test set: give other training data")
    if repeats and not quiet:
        logger.warning(
            f"{len(repeats):,} of {len(examples):,} training examples are left out, for they stand in a test set "
            f"(the first: {repeats[0].where})"
        )
    gone = {id(example) for example in repeats}
    kept = {language: [one for one in part if id(one) not in gone] for language, part in parts.items()}
    data = TaskData(
        task=task,
        labels=labels,
        train=train_examples,
        sources=kept if set(kept) != {""} else {},
        dev=chosen_by,
        test=tests,
        left_out=LeftOut(train=[example.where for example in repeats]),
        read={report.file: report.counts for report in reports},
        notices=[line for report in reports if (line := report.line()) is not None],
    )
    return data.with_target_text(target_sentences, quiet=quiet) if target_sentences else data


def unseen_target_text(data: TaskData, sentences: list[str], *, quiet: bool = False) -> tuple[list[str], list[str]]:
    """Target text without the sentences that stand in a dev or test set, and those.

    Raises:
        InputError: nothing is left to learn from.
    """
    tested = [example for part in data.test.values() for example in part]
    kept, seen = without_evaluation_text(data.task, sentences, [*data.dev, *tested])
    if sentences and not kept:
        raise InputError("every line of the target language's text stands in a dev or test set: give other text")
    if seen and not quiet:
        logger.warning(
            f"{len(seen):,} of {len(sentences):,} lines of target text are left out, for they stand in a dev or test "
            f"set (the first: {seen[0][:60]!r})"
        )
    return kept, seen


def some(items: list[T], count: int | None, *, seed: int = 0) -> list[T]:
    """So many of the items, drawn at random, in their order; of one seed, a smaller draw is part of a larger one."""
    if count is None or count >= len(items):
        return items
    chosen = np.sort(np.random.default_rng(seed).permutation(len(items))[:count])
    return [items[i] for i in chosen]


def how_to_read(settings: TaskSettings, *, language: str | None = None, quiet: bool = False) -> Reading:
    """How the task's files are read.

    Args:
        language: of the files; None: that of the settings.
    """
    return Reading(
        label_map=settings.label_map,
        columns=settings.columns,
        language=language or settings.language,
        scheme=settings.scheme,
        separator=settings.separator,
        strict=settings.strict,
        quiet=quiet,
    )


class MixedData:
    """Labelled source features and unlabelled target features, drawn in whole batches of one kind.

    Args:
        labelled: features of labelled source examples.
        unlabelled: features of target text.
        ratio: batches of target text per labelled batch; 0 without target text.
    """

    def __init__(self, labelled: list[Feature], unlabelled: list[Feature], *, ratio: float) -> None:
        self.features = [*labelled, *unlabelled]
        self.labelled, self.ratio = len(labelled), ratio if unlabelled else 0.0

    @property
    def epoch_size(self) -> int:
        """Examples seen while every labelled one is seen once."""
        return round(self.labelled * (1 + self.ratio))

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Feature:
        return self.features[index]

    def training_order(self, *, items: int, batch_size: int, seed: int) -> np.ndarray:
        """(items,) indices: batches of the two kinds spread evenly, similar lengths together."""
        steps = -(-items // batch_size)
        lengths = [len(feature["input_ids"]) for feature in self.features]
        # A batch is of target text where the running count of those passes a whole number.
        passed = np.floor(np.arange(steps + 1) * (self.ratio / (1 + self.ratio)) + 1e-9)
        of_target = np.diff(passed) > 0
        order = np.empty((steps, batch_size), dtype=np.int64)
        for kind, (first, end) in enumerate(((0, self.labelled), (self.labelled, len(self.features)))):
            chosen = of_target == bool(kind)
            if chosen.any():
                drawn = epoch_order(
                    end - first,
                    items=int(chosen.sum()) * batch_size,
                    batch_size=batch_size,
                    seed=seed + kind,
                    lengths=lengths[first:end],
                )
                order[chosen] = drawn.reshape(-1, batch_size) + first
        return order.ravel()[:items]
