"""Target text like the task's: lines whose sentence vectors are nearest to those of the labelled texts.

Each labelled text in its turn takes the line that is nearest to it (neighbours in a space of vectors select data
in Gururangan et al. 2020, section 5.2), so that what is chosen is as varied as the labelled texts are. The vectors of a
language lie around a point of their own. So the labelled texts are seen from the mean of plain text of their language,
and the lines from the mean of theirs: what is left is what sets the task's texts apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bistil.distillation.task_data import some
from bistil.models.sentences import SentenceForm, sentence_form
from bistil.prediction.loading import load
from bistil.prediction.sentence_task import KIND
from bistil.runs.cost import Ahead, Cost, Passes, held, loading
from bistil.runs.data import SELECTED, Labelled, TargetText, sentences_of
from bistil.runs.stage import File, Place, Product, Stage
from bistil.runtime.artefacts import is_marked_whole, mark_whole, whole_file, whole_folder
from bistil.runtime.progress import Progress
from bistil.settings.recipe import SelectionSettings

# Tokens of a line that its vector is made of, lines per file of vectors, and the side of a matrix of cosines.
MAX_LENGTH, PART_LINES, ROWS = 128, 2048, 4096
# How many more neighbours of a text are looked at than it would take if no two texts had one in common.
SPARE_NEIGHBOURS = 8


def vectors_of(folder: Path, texts: Sequence[str], *, work: Path, label: str, device: str | None = None) -> np.ndarray:
    """Vectors (texts, width) of float32, of length 1, by an encoder; an interrupted call goes on where it was.

    Args:
        folder: of an encoder; one that does not say how it makes vectors gives the mean of its last states.
        work: a folder of this call's own.
        label: of the progress line.
        device: of PyTorch; None: a CUDA GPU if there is one, else the CPU.

    Raises:
        ArtefactError: the folder holds no model with a tokenizer.
    """
    encoder = load(folder, task=KIND, sentences=sentence_form(folder) or SentenceForm(), device=device)
    encoder.max_length = min(encoder.max_length, MAX_LENGTH)
    work.mkdir(parents=True, exist_ok=True)
    found = []
    with Progress(label, total=len(texts)) as progress:
        for start in range(0, len(texts), PART_LINES):
            path = work / f"{start:09}.npy"
            if not is_marked_whole(path):
                made = encoder.encode(texts[start : start + PART_LINES])
                with whole_file(path, replace=True, inner=True) as partial, partial.open("wb") as out:
                    np.save(out, made)
                mark_whole(path)
            found.append(np.load(path, allow_pickle=False))
            progress.advance_to(min(start + PART_LINES, len(texts)), tokens=0)
    return np.concatenate(found)


def apart(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Vectors (n, width) as they are seen from the mean of others (m, width), of length 1 again."""
    seen = vectors - others.mean(axis=0)
    norms = np.linalg.norm(seen, axis=1, keepdims=True)
    found: np.ndarray = seen / np.maximum(norms, 1e-12)
    return found


def nearest_in_turn(asked: np.ndarray, offered: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """So many rows of `offered`: each row of `asked` in its turn takes the nearest one that is still free.

    Args:
        asked, offered: (n, width) and (m, width), of length 1.
        count: at most m.

    Returns:
        (count,) their numbers, in ascending order, and the mean of the cosines by which they were taken.
    """
    count = min(count, len(offered))
    neighbours = min(len(offered), SPARE_NEIGHBOURS * -(-count // len(asked)))
    cosines, rows = _neighbours(torch.from_numpy(asked), torch.from_numpy(offered), neighbours)
    taken: dict[int, float] = {}
    places = [0] * len(asked)
    waiting = [*range(len(asked))]
    while waiting and len(taken) < count:
        still = []
        for one in waiting:
            while places[one] < neighbours and int(rows[one, places[one]]) in taken:
                places[one] += 1
            if places[one] == neighbours or len(taken) == count:
                continue
            taken[int(rows[one, places[one]])] = float(cosines[one, places[one]])
            still.append(one)
        waiting = still
    if len(taken) < count:
        # All have taken what was near to them: what is left comes by its nearest text.
        best, _ = _neighbours(torch.from_numpy(offered), torch.from_numpy(asked), 1)
        for one in np.argsort(-best[:, 0], kind="stable"):
            if len(taken) == count:
                break
            taken.setdefault(int(one), float(best[one, 0]))
    return np.sort(np.fromiter(taken, dtype=np.int64, count=len(taken))), float(np.mean([*taken.values()]))


def _neighbours(asked: torch.Tensor, offered: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of `asked` (n, width) its so many nearest of `offered`: cosines and numbers, (n, count) each.

    The matrix of all cosines is never there as a whole.
    """
    found = [_neighbours_of(asked[start : start + ROWS], offered, count) for start in range(0, len(asked), ROWS)]
    return np.concatenate([cosines for cosines, _ in found]), np.concatenate([rows for _, rows in found])


def _neighbours_of(asked: torch.Tensor, offered: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    best, rows = torch.empty((len(asked), 0)), torch.empty((len(asked), 0), dtype=torch.int64)
    for start in range(0, len(offered), ROWS):
        cosines = asked @ offered[start : start + ROWS].T
        near, places = cosines.topk(min(count, cosines.shape[1]), dim=1)
        best, rows = torch.cat([best, near], dim=1), torch.cat([rows, places + start], dim=1)
        best, places = best.topk(min(count, best.shape[1]), dim=1)
        rows = rows.gather(1, places)
    return best.numpy(), rows.numpy()


def select_lines(
    encode: Callable[[str, Sequence[str]], np.ndarray],
    *,
    like: Sequence[str],
    beside: Sequence[str],
    lines: Sequence[str],
    count: int,
) -> tuple[list[str], float, float]:
    """The lines most like some texts of another language, in their order.

    Args:
        encode: what the texts are, and they: vectors of length 1.
        like: the texts.
        beside: plain text of their language.
        lines: what is chosen from.
        count: how many are.

    Returns:
        The chosen lines; the mean of their cosines with the text that took them; and of each line that was drawn at
        random instead, the mean cosine with its nearest text.
    """
    asked = apart(encode("labelled texts", like), encode("text beside them", beside))
    found = encode("lines", lines)
    offered = apart(found, found)
    chosen, cosine = nearest_in_turn(asked, offered, count)
    drawn, _ = _neighbours(torch.from_numpy(offered), torch.from_numpy(asked), 1)
    return [lines[i] for i in chosen], cosine, float(drawn.mean())


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What a selection came to: lines, of how many, and cosines with the nearest labelled text."""

    lines: int
    candidates: int
    cosine: float
    """Of the selected lines, with the text that took each: the mean."""
    cosine_of_candidates: float
    """Of all candidates, with the nearest text of each."""
    left_out: int
    """Lines that stand in a dev or test set."""


@dataclass(frozen=True, kw_only=True)
class Select(Stage[Selected]):
    """Lines of a language's text that are most like the task's labelled texts, by the trimmed teacher's vectors.

    Leaves "text".
    """

    KIND: ClassVar[str] = "select"
    VERSION: ClassVar[int] = 2
    PARTS: ClassVar[tuple[str, ...]] = ("text",)

    model: Product
    labelled: Labelled
    source_text: tuple[File, ...]
    """Plain text of the labelled texts' language."""
    text: TargetText
    """Of one language: what is selected from."""
    count: int
    settings: SelectionSettings

    def make(self, place: Place) -> Selected:
        data = self.labelled.everything(place)
        lines, left_out = self.text.sentences(data)
        candidates = some(lines, self.settings.candidates)
        # Of those alone that are learnt from: a study of few labels knows no others.
        learnt = self.labelled.to_learn_from(place).train
        like = [text for example in some(learnt, self.settings.examples) for text in data.task.texts_of(example)]

        def encode(what: str, texts: Sequence[str]) -> np.ndarray:
            work = place.work / what.replace(" ", "-")
            return vectors_of(place.path(self.model), texts, work=work, label=f"{place.label}: {what}")

        chosen, cosine, of_all = select_lines(
            encode,
            like=like,
            beside=some(sentences_of(self.source_text), self.settings.examples),
            lines=candidates,
            count=self.count,
        )
        with whole_folder(place.output("text"), record={"kind": "selected text"}) as folder:
            (folder / SELECTED).write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8", newline="\n")
        return Selected(
            lines=len(chosen), candidates=len(candidates), cosine=cosine, cosine_of_candidates=of_all,
            left_out=len(left_out),
        )  # fmt: skip

    def cost(self, ahead: Ahead) -> Cost:
        shape = ahead.shape(self.model)
        files = [file for own in self.text.texts.values() for file in own]
        text, beside = ahead.text(files, self.model), ahead.text(self.source_text, self.model)
        lines = min(self.settings.candidates, text.lines)
        others = min(self.settings.examples, beside.lines)
        tokens = text.tokens / max(text.lines, 1.0)
        other_tokens = beside.tokens / max(beside.lines, 1.0)
        passes = Passes(
            kind="score", teacher=shape, sequences=32, tokens=tokens,
            flops=lines * shape.flops(tokens) + (others + self.settings.examples) * shape.flops(other_tokens),
        )  # fmt: skip
        return Cost(
            passes=[passes],
            seconds=text.seconds + beside.seconds + loading(ahead, self.model),
            memory=held(shape.parameters["total"], trained=False) + 8.0 * shape.width * lines,
            work=4.0 * shape.width * lines,
        )
