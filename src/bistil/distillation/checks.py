"""What phase 1 refuses, found before any weights are loaded."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bistil.distillation.module import check_objective
from bistil.distillation.student import choose_layers, student_config
from bistil.errors import ArtefactError, InputError, RecipeError
from bistil.models.families import check_length, family_of
from bistil.models.masked_lm import has_masked_lm_head, supported_config
from bistil.models.tokenizers import load_tokenizer
from bistil.settings.recipe import ObjectiveSettings, Phase1Settings, StudentSettings
from bistil.text.blocks import check_block_length
from bistil.text.schedule import check_probabilities
from bistil.training.loop import check_training


def check_folder(
    teacher: Path,
    students: Sequence[StudentSettings],
    languages: Sequence[str],
    *,
    settings: Phase1Settings,
    language_sfts: Mapping[str, Any],
    one_language: bool = False,
) -> None:
    """`check_general` of the teacher in a folder; its weights are not read.

    Raises:
        BistilError: as `distillation.general.distill`.
    """
    configuration = supported_config(teacher)
    if check_general(
        configuration, students, languages, settings=settings, language_sfts=language_sfts, one_language=one_language
    ):
        check_mask_token(load_tokenizer(str(teacher)), str(teacher))


def check_general(
    configuration: Any,
    students: Sequence[StudentSettings],
    languages: Sequence[str],
    *,
    settings: Phase1Settings,
    language_sfts: Mapping[str, Any],
    one_language: bool = False,
) -> bool:
    """Find what `distillation.general.distill` would refuse, as far as settings and the teacher's configuration tell.

    Args:
        configuration: of the teacher; trimmed or not makes no difference.
        languages: that there is text of.
        one_language: one is enough.

    Returns:
        Whether tokens are masked.

    Raises:
        BistilError: as `distillation.general.distill`.
    """
    _check_names(students, languages, language_sfts, least=1 if one_language else 2)
    _check_held_out(settings, languages)
    check_training(settings.training)
    check_probabilities(settings.probabilities, languages)
    family = family_of(configuration)
    check_block_length(settings.block_length)
    check_length(configuration, settings.block_length, name="block_length")
    objectives = objectives_of(students, settings)
    for student in students:
        layers = choose_layers(family.depth(configuration), student)
        own = student_config(configuration, layers, student)
        check_objective(student.name, objectives[student.name], own, configuration)
    return check_objectives(objectives, has_head=has_masked_lm_head(configuration))


def check_mask_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make sure that tokens can be masked.

    Raises:
        ArtefactError: the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ArtefactError(f"the tokenizer of {name} has no mask token: hard_labels (masked-LM) need one")


def _check_names(
    students: Sequence[StudentSettings], texts: Collection[str], sfts: Mapping[str, Any], *, least: int
) -> None:
    if len(texts) < least:
        raise InputError(
            f"phase 1 needs text in {'two languages' if least == 2 else 'one language'} or more; given: "
            f"{', '.join(texts) or 'none'} (a model of one language forgets what its labels are learnt in)"
        )
    unknown = set(sfts) - set(texts)
    if unknown:
        raise InputError(f"a language SFT for {', '.join(sorted(unknown))}, but text for {', '.join(texts)} only")
    names = [student.name for student in students]
    for name in names:
        if not name or set(name) & set("./\\") or names.count(name) > 1:
            raise RecipeError(f"student name {name!r}: names must differ and have no dot or slash")
    if not names:
        raise RecipeError("no student is asked for")


def _check_held_out(settings: Phase1Settings, texts: Collection[str]) -> None:
    unknown = set(settings.held_out_shares) - set(texts)
    if unknown:
        raise RecipeError(f"a held-out share for {', '.join(sorted(unknown))}, but text for {', '.join(texts)} only")
    for share in (settings.held_out, *settings.held_out_shares.values()):
        if not 0 <= share < 1:
            raise RecipeError(f"a held-out share must be 0 or more and below 1, not {share:g}")


def objectives_of(students: Sequence[StudentSettings], settings: Phase1Settings) -> dict[str, ObjectiveSettings]:
    """Each student's objective: its own, or that of all."""
    return {student.name: student.objective or settings.objective for student in students}


def check_objectives(objectives: Mapping[str, ObjectiveSettings], *, has_head: bool) -> bool:
    """Whether tokens are masked: in all students' batches or in none, as in a run of each alone.

    Raises:
        RecipeError: a teacher without a masked-LM head cannot give what is asked for, or some students' batches would
            be masked and others' not.
    """
    if not has_head and any(one.prediction or one.hard_labels for one in objectives.values()):
        raise RecipeError(
            "prediction and hard_labels need a teacher with a masked-LM head, which this one lacks: set them to 0"
        )
    masking = {name for name, one in objectives.items() if one.hard_labels}
    if masking and len(masking) < len(objectives):
        raise RecipeError(
            f"hard_labels masks the text for every student of a run, but only {', '.join(sorted(masking))} asks for "
            "it: give it a weight for all students or for none, or distil them in two runs"
        )
    return bool(masking)
