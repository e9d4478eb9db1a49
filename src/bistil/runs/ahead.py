"""What stages will work on, seen before they are made: configurations, and samples of text and of examples.

No weights are read. A model that is there is asked by its configuration; one that is not is what the stage says that
will make it. Token counts come from some hundred lines or examples, tokenized as training will.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from math import log
from pathlib import Path
from typing import Any, TypeVar

from bistil.distillation.task_data import MixedData, TaskData, some
from bistil.measuring.benchmark import folder_bytes
from bistil.measuring.shape import EncoderShape
from bistil.models.families import position_limit
from bistil.models.loading import read_config
from bistil.models.tokenizers import load_tokenizer
from bistil.runs.cost import LessonFigures, ScoredFigures, TextFigures
from bistil.runs.data import Exam, Labelled, TargetText
from bistil.runs.folder import RunFolder
from bistil.runs.stage import File, Product, plain
from bistil.runtime.quiet import kept_levels, quiet_transformers
from bistil.settings.schema import TrainingSettings, TrimSettings
from bistil.tasks.batches import Feature, padded
from bistil.text.blocks import tokenizing_processes
from bistil.text.files import line_batches
from bistil.training.precision import settle_precision
from bistil.training.processes import training_device

T = TypeVar("T")

# Of each text file so many bytes are read; of labelled examples 32 batches, within bounds; of a set that is scored so
# many.
_TEXT_BYTES, _LEAST_EXAMPLES, _MOST_EXAMPLES, _SCORED = 400_000, 256, 1024, 256
# Batches of a stretch of training whose lengths are looked at.
_BATCHES = 96
# Compressed text is so much larger than its file, and a tokenizer's files have so many bytes per token.
_COMPRESSED, _BYTES_PER_TOKEN = 3.5, 90.0


class SharedReader:
    """Reads once what several stages read (`runs.stage.Reader`)."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def read(self, what: Any, how: Callable[[], T]) -> T:
        key = str(plain(what))
        if key not in self._known:
            self._known[key] = how()
        found: T = self._known[key]
        return found


class Foresight:
    """`runs.cost.Ahead` for a run's folder.

    Args:
        run: whose products are looked at where they are made; None: nothing is made.
    """

    def __init__(self, run: RunFolder | None = None) -> None:
        self._run = run
        self._reader = SharedReader() if run is None else run
        # What is read here for a run is read for good, and what is left out of it is said once; else nothing is.
        self._quiet = run is None or run.look
        self._known: dict[Any, Any] = {}

    def forget(self) -> None:
        """Let go of tokenizers and samples."""
        self._known.clear()

    # Models

    def shape(self, of: Any) -> EncoderShape:
        """What a model is, or will be, like."""
        if isinstance(of, File):
            return EncoderShape.of(read_config(of.path))
        if not isinstance(of, Product):
            found: EncoderShape = of.shape(self)
            return found
        folder = self._folder(of)
        if folder is not None:
            return EncoderShape.of(read_config(folder))
        return self._once(("shape", of.stage.key, of.part), lambda: of.stage.shape(of.part, self))

    def weights(self, of: Any) -> float:
        """Bytes of a model's folder."""
        if isinstance(of, File):
            return self._once(("weights", str(of.path)), lambda: float(folder_bytes(of.path)[0]))
        shape = self.shape(of)
        return 4.0 * shape.parameters["total"] + _BYTES_PER_TOKEN * shape.vocabulary

    def _folder(self, of: Product) -> Path | None:
        """Where a product lies, if it is there."""
        path = None if self._run is None else self._run.path(of)
        return path if path is not None and (path / "config.json").is_file() and self._is_made(of) else None

    def _is_made(self, of: Product) -> bool:
        return self._run is not None and self._run.known(of.stage, whole=False) is not None

    def _tokenizer(self, of: Any) -> Any:
        """The tokenizer that a model has, or the nearest one that is there: trimming leaves the same tokens."""
        if isinstance(of, File):
            return self._once(("tokenizer", str(of.path)), lambda: load_tokenizer(str(of.path)))
        if not isinstance(of, Product):
            return self._tokenizer(of.model)
        folder = self._folder(of)
        if folder is not None:
            return self._once(("tokenizer", str(folder)), lambda: load_tokenizer(str(folder)))
        return self._tokenizer(of.stage.model_of(of.part))

    def settled(self, training: TrainingSettings) -> tuple[str, str]:
        """Precision and device of a training that begins here."""
        return settle_precision(training, None).precision, training_device(training.device)

    # Text

    def text(self, files: Sequence[File], model: Any) -> TextFigures:
        """What there is to tokenize, by a sample of each file."""
        tokenizer = self._tokenizer(model)

        def sampled() -> TextFigures:
            parts = [_figures(file.path, tokenizer) for file in files]
            lines, seconds = sum(one.lines for one in parts), sum(one.seconds for one in parts)
            return TextFigures(
                bytes=sum(one.bytes for one in parts),
                tokens=sum(one.tokens for one in parts),
                lines=lines,
                seconds=seconds / tokenizing_processes(int(lines)),
            )

        return self._once(("text", *(file.digest for file in files), id(tokenizer)), sampled)

    def vocabulary(
        self, texts: Mapping[str, Sequence[File]], settings: TrimSettings, keep: File | None, model: Any
    ) -> int:
        """Tokens that will be kept: those of the samples above the threshold, and as many more as longer texts hold.

        The number of different tokens grows with a power of a text's length (Heaps' law), which two samples tell.
        """
        full = self.shape(model).vocabulary
        if settings.vocabulary_size is not None:
            return min(settings.vocabulary_size, full)
        tokenizer = self._tokenizer(model)

        def counted() -> int:
            kept: set[int] = set(tokenizer.all_special_ids)
            growth = 1.0
            for files in texts.values():
                lines = [line for file in files for line in _first_lines(file.path)]
                ids = [token for line in _encoded(lines, tokenizer) for token in line]
                counts = Counter(ids)
                threshold = settings.threshold or 0.0
                own = {token for token, count in counts.items() if count >= threshold * len(ids)}
                kept |= own
                # Beyond the threshold's reciprocal, what is seen once is no longer probable enough.
                whole = min(self.text(files, model).tokens, 1 / threshold if threshold else float("inf"))
                half = len(set(ids[: len(ids) // 2]))
                power = _log_ratio(len(counts), half, 2)
                growth = max(growth, max(1.0, whole / max(len(ids), 1)) ** power)
            size = len(kept) * growth
            if keep is not None:
                words = {token for line in _encoded(_first_lines(keep.path), tokenizer) for token in line}
                size += len(words - kept)
            return min(full, round(size))

        keys = [file.digest for files in texts.values() for file in files]
        return self._once(("vocabulary", *keys, settings.threshold, keep and keep.digest), counted)

    # Labelled examples

    def lesson(
        self, labelled: Labelled, text: TargetText | None, model: Any, *, ratio: float, batch_size: int,
        sentences: int | None,
    ) -> LessonFigures:  # fmt: skip
        """What a task will be learnt from: samples of it, encoded and put into batches as training does."""
        tokenizer, positions = self._tokenizer(model), position_limit(self.shape(model).config)

        def sampled() -> LessonFigures:
            data = labelled.to_learn_from(self._reader, text if ratio else None)
            size, task = max(_LEAST_EXAMPLES, min(_MOST_EXAMPLES, 32 * batch_size)), data.task
            length = labelled.task.max_length
            start = time.perf_counter()
            chosen = some(data.train, size)
            features = task.encode(chosen, tokenizer, length, labels=data.labels)
            count = _scaled(len(features), len(chosen), len(data.train))
            seconds = _scaled(time.perf_counter() - start, len(chosen), len(data.train))
            unlabelled: list[Feature] = []
            others = 0.0
            if data.target_sentences and ratio:
                whole = some(data.target_sentences, sentences)
                lines = some(whole, size)
                start = time.perf_counter()
                pairs = any(getattr(example, "pair", None) is not None for example in chosen)
                unlabelled = task.unlabelled(lines, tokenizer, length, pairs=pairs, seed=0)
                others = _scaled(len(unlabelled), len(lines), len(whole))
                seconds += _scaled(time.perf_counter() - start, len(lines), len(whole))
            batches = MixedData(features, unlabelled, ratio=ratio)
            order = batches.training_order(items=_BATCHES * batch_size, batch_size=batch_size, seed=0)
            tokens = [len(batches[int(i)]["input_ids"]) for i in order]
            dev = self._set(data, data.dev, tokenizer, length) if data.dev else None
            return LessonFigures(
                labelled=round(count),
                unlabelled=round(others),
                lengths=[padded(max(tokens[i : i + batch_size]), positions) for i in range(0, len(tokens), batch_size)],
                dev=dev,
                seconds=seconds + (dev.seconds if dev else 0.0),
            )

        key = ("lesson", str(plain((labelled, text, ratio, batch_size, sentences))), id(tokenizer))
        return self._once(key, sampled)

    def scored(self, exam: Exam, model: Any) -> Sequence[ScoredFigures]:
        """What a model will be scored on, part by part."""
        tokenizer = self._tokenizer(model)

        def sampled() -> list[ScoredFigures]:
            data = exam.labelled.everything(self._reader)
            length = exam.labelled.task.max_length
            return [self._set(data, own, tokenizer, length) for own in exam.sets(self._reader).values()]

        return self._once(("scored", str(plain(exam)), id(tokenizer)), sampled)

    def _set(self, data: TaskData, examples: list[Any], tokenizer: Any, length: int) -> ScoredFigures:
        chosen = some(examples, _SCORED)
        start = time.perf_counter()
        features = data.task.encode(chosen, tokenizer, length, labels=data.labels)
        seconds = time.perf_counter() - start
        # Sorted, as they are run: neighbours in length share a batch.
        lengths = sorted((padded(len(feature["input_ids"])) for feature in features), reverse=True)
        return ScoredFigures(
            features=_scaled(len(features), len(chosen), len(examples)),
            lengths=lengths,
            seconds=_scaled(seconds, len(chosen), len(examples)),
        )

    def _once(self, key: Any, how: Callable[[], T]) -> T:
        if key not in self._known:
            hushed = kept_levels("bistil.distillation", "bistil.tasks", level=logging.ERROR)
            with hushed if self._quiet else nullcontext():
                self._known[key] = how()
        found: T = self._known[key]
        return found


def _first_lines(path: Path) -> list[str]:
    """The lines at a text's beginning, as many as make a sample."""
    found: list[str] = []
    size = 0
    for lines in line_batches(path):
        for line in lines:
            if line.strip():
                found.append(line.strip())
                size += len(line.encode()) + 1
            if size >= _TEXT_BYTES:
                return found
    return found


def _encoded(lines: Sequence[str], tokenizer: Any) -> list[list[int]]:
    # A line may be longer than the model reads: it is counted, and no model sees it.
    with quiet_transformers():
        found = tokenizer(list(lines), return_attention_mask=False, return_token_type_ids=False)
    ids: list[list[int]] = found["input_ids"]
    return ids


def _figures(path: Path, tokenizer: Any) -> TextFigures:
    lines = _first_lines(path)
    start = time.perf_counter()
    tokens = sum(map(len, _encoded(lines, tokenizer)))
    seconds = time.perf_counter() - start
    read = sum(len(line.encode()) + 1 for line in lines)
    size = path.stat().st_size * (_COMPRESSED if path.suffix in (".gz", ".zst") else 1.0)
    factor = max(1.0, size / read) if read >= _TEXT_BYTES else 1.0
    return TextFigures(bytes=read * factor, tokens=tokens * factor, lines=len(lines) * factor, seconds=seconds * factor)


def _scaled(amount: float, chosen: int, of: int) -> float:
    """What a sample's amount means for all."""
    return amount * of / max(chosen, 1)


def _log_ratio(whole: int, part: int, times: float) -> float:
    """The power by which something grew from `part` to `whole` when the text grew so many times."""
    return min(1.0, max(0.0, log(max(whole, 1) / max(part, 1)) / log(times)))
