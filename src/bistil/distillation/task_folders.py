"""Phase 2 from folders into folders: what `distillation.task` makes in memory is read before and written after."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bistil.distillation.task import Fitting, fit_from_labels, fit_from_teacher, parents_of
from bistil.models.complete import CompleteModel
from bistil.models.tokenizers import load_tokenizer
from bistil.models.writing import write_model
from bistil.runtime.artefacts import claim, folder_digest, whole_folder
from bistil.sparse import SparseFineTuning
from bistil.sparse.delta import RECORD
from bistil.sparse.wearing import kept_in
from bistil.training.loop import processes


@dataclass(frozen=True, kw_only=True)
class TaskOutputs:
    """Where a fine-tuning is written."""

    model: Path
    """Gets the fine-tuned model, an ordinary folder."""
    sft: Path | None = None
    """Gets the sparse fine-tuning by itself, if it is sparse."""
    replace: bool = False
    """Folders of ours give way."""


def write_task_teacher(
    start: str | Path,
    how: Fitting,
    outputs: TaskOutputs,
    *,
    language_sfts: Mapping[str, str | Path] | None = None,
    force_sfts: bool = False,
) -> dict[str, Any]:
    """`fit_from_labels` from a folder into folders; the same call goes on after an interruption. One process writes.

    Args:
        start: the model's folder.
        language_sfts: as for `fit_from_labels`, as folders or hub names.
        force_sfts: wear them although they were made for another base.

    Returns:
        The figures of `fit_from_labels`.

    Raises:
        BistilError: as `fit_from_labels`; a language SFT was made for another base, or an output may not be written
            (`runtime.artefacts.claim`).
    """
    _claim(how, outputs, [start, *(language_sfts or {}).values()])
    model = fit_from_labels(
        start, load_tokenizer(str(start)), how, language_sfts=language_sfts, kept=kept_in(Path(start)),
        force_sfts=force_sfts,
    )  # fmt: skip
    return _write(model, outputs, parents_of(Path(start), []))


def write_task_student(
    start: str | Path, teacher: str | Path | Sequence[str | Path], how: Fitting, outputs: TaskOutputs
) -> dict[str, Any]:
    """`fit_from_teacher` from folders into folders; the same call goes on after an interruption. One process writes.

    Args:
        start: folder of the student that phase 1 made.
        teacher: folder of the task teacher, or of each of several that stand as one (`fit_from_teacher`).

    Returns:
        The figures of `fit_from_teacher`.

    Raises:
        BistilError: as `fit_from_teacher`, or an output may not be written (`runtime.artefacts.claim`).
    """
    teachers = [teacher] if isinstance(teacher, str | Path) else list(teacher)
    _claim(how, outputs, [start, *teachers])
    own, *theirs = (load_tokenizer(str(folder)) for folder in (start, *teachers))
    model = fit_from_teacher(start, own, how, teachers=teachers, teacher_tokenizers=theirs)
    return _write(model, outputs, parents_of(Path(start), list(map(Path, teachers))))


def _claim(how: Fitting, outputs: TaskOutputs, read: Sequence[str | Path]) -> None:
    claim(folders=[outputs.model, outputs.sft], work=how.folder, inputs=read, force=outputs.replace)


def _write(model: CompleteModel, outputs: TaskOutputs, parents: Mapping[str, Path | None]) -> dict[str, Any]:
    """Write a model that `_learn` made, in one process of several; returns its figures."""
    made = model.bistil
    figures: dict[str, Any] = made.facts["figures"]
    if processes().is_main_process:
        record = {**made.record, "parents": {
            name: None if path is None else {"name": path.name, "digest": folder_digest(path)}
            for name, path in parents.items()
        }}  # fmt: skip
        # Both at the end: of an interrupted call there is either none or, but for an instant, both.
        with ExitStack() as both:
            sft: SparseFineTuning | None = made.facts["sft"]
            if sft is not None and outputs.sft is not None:
                sft.write_into(both.enter_context(whole_folder(outputs.sft, replace=outputs.replace, record=RECORD)))
            card = {**made.card, "title": outputs.model.name}
            write_model(
                outputs.model, model, model.tokenizer, record=record, replace=outputs.replace, parent=parents["start"],
                **card,
            )  # fmt: skip
    processes().wait_for_everyone()
    return figures
