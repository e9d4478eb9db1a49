"""Fine-tuning for a task from folders into folders, with or without a task teacher; a student to make."""

from bistil.distillation.task import Fitting
from bistil.distillation.task_folders import TaskOutputs, write_task_student, write_task_teacher
from bistil.settings.recipe import StudentSettings

RANDOM = StudentSettings(depth=2, start="random")
"""Layers that start at random; any layers will do."""


def fit(start, data, output, *, work, teacher=None, sft=None, replace=False, language_sfts=None, **how):
    """The figures of a fine-tuning that is written to `output` (and `sft`)."""
    fitting, outputs = Fitting(data=data, folder=work, **how), TaskOutputs(model=output, sft=sft, replace=replace)
    if teacher is not None:
        return write_task_student(start, teacher, fitting, outputs)
    return write_task_teacher(start, fitting, outputs, language_sfts=language_sfts)
