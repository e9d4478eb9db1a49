"""What depends on what, over all fields of all stages of a recipe's plan, as the dataclasses have them."""

import itertools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from bistil.method import plan_recipe, variants_of
from bistil.runs.data import FILES, Labelled, TargetText
from bistil.runs.inputs import Inputs
from bistil.runs.stage import File, Product, Stage
from bistil.settings.recipe import (
    CompareSettings,
    LanguageSettings,
    Phase2Settings,
    Recipe,
    SparseSettings,
    StudentSettings,
    TaskSettings,
)

TEST_FILES = {"en": ["en.test"], "sw": ["sw.test"]}


def recipe(**changes):
    values = {
        "teacher": "teacher",
        "source": "en",
        "target": "sw",
        "text": {"en": ["en.txt"], "sw": ["sw.txt"]},
        "students": [StudentSettings(name="a", reduction=2), StudentSettings(name="b", reduction=3)],
        "task": TaskSettings(kind="token-classification", train=["train"], dev=["dev"], test=TEST_FILES),
        "compare": CompareSettings(self_taught=True, no_target_text=True),
        "language_sfts": {"en": "sft"},
        "language": LanguageSettings(languages=["sw"]),
    }
    return Recipe(**{**values, **changes})


def file(name):
    return File(f"digest of {name}", Path(name))


def inputs(of):
    texts = {language: tuple(map(file, files)) for language, files in of.text.items()}
    digests = {name: f"digest of {name}" for name in ("train", "dev", "en.test", "sw.test")}
    return Inputs(
        teacher=file(of.teacher),
        texts=texts,
        keep=file(of.trim.keep) if of.trim.keep else None,
        labelled=Labelled(task=of.task, source=of.source, digests=digests),
        target_text=TargetText(texts={of.target: texts[of.target]}) if of.phase2.target_text else None,
        sfts={language: file(name) for language, name in of.language_sfts.items()},
        layers={student.name: [2, 4, 6] if student.reduction == 2 else [3, 6] for student in of.students},
        counts={},
    )


def plan(of):
    return plan_recipe(of, inputs(of))


def all_stages(of):
    """Label -> stage, those too that only others stand on."""
    own = plan(of)
    return {own.names[stage.key].label: stage for stage in own.stages()}


def another(value):
    """A value of the same kind that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}?"
    if value is None:
        return 1
    if isinstance(value, Product):
        other = next(f.name for f in fields(value.stage) if not f.metadata.get("cosmetic"))
        return Product(replace(value.stage, **{other: another(getattr(value.stage, other))}), value.part)
    if isinstance(value, Stage) or is_dataclass(value):
        for f in fields(value):
            if f.metadata.get("cosmetic"):
                continue
            own, choices = getattr(value, f.name), f.metadata.get("choices")
            try:
                new = next(one for one in choices() if one != own) if choices else another(own)
                return replace(value, **{f.name: new})
            except Exception:  # a value that the settings refuse
                continue
        raise AssertionError(f"no field of {type(value).__name__} can be changed")
    if isinstance(value, tuple):
        return (*value, another(value[-1])) if value else (1,)
    if isinstance(value, list):
        return [*value, another(value[-1])] if value else [1]
    if isinstance(value, Mapping):
        return {**value, "another": next(iter(value.values()), 1)}
    raise AssertionError(f"{value!r}")


def with_stage(value, old, new):
    """A value in which a stage has been put in another's place, wherever it stands."""
    if isinstance(value, Stage) and value.key == old.key:
        return new
    if isinstance(value, Product):
        return Product(with_stage(value.stage, old, new), value.part)
    if isinstance(value, Mapping):
        return {key: with_stage(one, old, new) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(with_stage(one, old, new) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: with_stage(getattr(value, f.name), old, new) for f in fields(value)})
    return value


def stands_on(stage, other):
    return stage.key == other.key or any(stands_on(one, other) for one in stage.stands_on())


def fields_of_stages():
    for label, stage in all_stages(recipe()).items():
        for f in fields(stage):
            yield pytest.param(label, f.name, id=f"{label}-{f.name}")


@pytest.mark.parametrize(("label", "name"), fields_of_stages())
def test_a_changed_field_changes_what_stands_on_it_and_nothing_else(label, name):
    stages = all_stages(recipe())
    old = stages[label]
    cosmetic = next(f for f in fields(old) if f.name == name).metadata.get("cosmetic")
    new = replace(old, **{name: another(getattr(old, name))})
    assert (new.key == old.key) == bool(cosmetic)
    for other, stage in stages.items():
        changed = with_stage(stage, old, new).key != stage.key
        assert changed == (stands_on(stage, old) and not cosmetic), f"{other}, for {label}.{name}"


# What each part of a recipe decides; everything that stands on these follows.
FIRST = {
    "teacher": {"trim", "restore-vocabulary"},
    "text": {"trim", "phase1", "benchmark"} - {"benchmark"},
    "trim": {"trim"},
    "language_sfts": {"phase1", "task-teacher"},
    "language": {"adapt-sw"},
    "force_sfts": {"phase1", "task-teacher"},
    "students": {"phase1"},
    "phase1": {"phase1"},
    "finetune": {"task-teacher"},
    "phase2": {label for label in all_stages(recipe()) if label.startswith("phase2-")},
    "name": set(),
    "compare": set(),
}


@pytest.mark.parametrize("part", FIRST)
def test_what_a_part_of_a_recipe_decides(part):
    before = all_stages(recipe())
    changed = {
        "teacher": "other",
        "text": {"en": ["en.txt", "more.txt"], "sw": ["sw.txt"]},
        "trim": replace(recipe().trim, threshold=1e-5),
        "language_sfts": {"en": "other sft"},
        "language": LanguageSettings(languages=["sw"], density=0.1),
        "force_sfts": True,
        "students": [*recipe().students, StudentSettings(name="c", reduction=6)],
        "phase1": replace(recipe().phase1, block_length=64),
        "finetune": replace(recipe().finetune, sparse=None),
        "phase2": replace(recipe().phase2, sparse=SparseSettings(density=0.5)),
        "name": "another",
        "compare": CompareSettings(),
    }[part]
    after = all_stages(recipe(**{part: changed}))
    redone = {label for label, stage in after.items() if label in before and stage.key != before[label].key}
    wanted = {
        label
        for label, stage in before.items()
        if label in after and any(stands_on(stage, before[first]) for first in FIRST[part])
    }
    if part == "text":  # the target's text is learnt from in phase 2 too, and all of it stands on trimming anyway
        assert wanted == redone == set(before) - {"evaluate majority class"}
    assert redone == wanted


def test_the_order_of_languages_counts():
    """Batches are drawn by their place, so another order is another phase 1."""
    other = all_stages(recipe(text={"sw": ["sw.txt"], "en": ["en.txt"]}))
    assert other["phase1"].key != all_stages(recipe())["phase1"].key


def test_names_are_cosmetic():
    before, after = (
        plan(recipe()),
        plan(recipe(name="other", students=[replace(one, name=f"{one.name}-new") for one in recipe().students])),
    )
    keys = [[stage.key for stage in one.stages()] for one in (before, after)]
    assert keys[0] == keys[1]
    assert before.names.keys() == after.names.keys()
    places = {before.names[key].places.get("model"): after.names[key].places.get("model") for key in keys[0]}
    assert places["students/a"] == "students/a-new" and places["baselines/b-copied"] == "baselines/b-new-copied"


def test_where_files_lie_is_cosmetic():
    here = all_stages(recipe())
    moved = inputs(recipe())
    texts = {language: tuple(replace(one, path=Path("/elsewhere") / one.path) for one in files)
             for language, files in moved.texts.items()}  # fmt: skip
    moved = replace(moved, texts=texts, teacher=replace(moved.teacher, path=Path("/there")))
    there = plan_recipe(recipe(), moved)
    assert {there.names[stage.key].label: stage.key for stage in there.stages()} == {
        label: stage.key for label, stage in here.items()
    }


def test_every_setting_of_a_task_counts_but_those_that_say_where_files_lie():
    task = recipe().task
    base = Labelled(task=task, source="en", digests={"train": "1", "dev": "2", "en.test": "3", "sw.test": "4"})
    from bistil.runs.stage import plain

    for name, value in {
        "max_length": 64, "label_map": {"B-X": "O"}, "columns": {"words": "1"}, "language": "all", "scheme": "iob2",
    }.items():  # fmt: skip
        assert plain(replace(base, task=replace(task, **{name: value}))) != plain(base), name
    for name, value in {"preset": "paper", "strict": True, "test": {}}.items():
        assert plain(replace(base, task=replace(task, **{name: value}))) == plain(base), name
    known = {f.name for f in fields(TaskSettings)}
    assert set(FILES) - {"sources"} <= known
    assert plain(replace(base, digests={**base.digests, "train": "other"})) != plain(base)
    assert plain(replace(base, digests={**base.digests, "sw.test": "other"})) == plain(base)
    assert plain(replace(base, left_out="some")) != plain(base)


def test_variants_of_a_recipe():
    forced = variants_of(recipe())
    assert list(forced) == ["", "self-taught", "no target text", "copied"]
    settings = {name: one.settings(recipe().phase2) for name, one in forced.items()}
    assert settings[""] == settings["copied"] == recipe().phase2
    assert not isinstance(settings["self-taught"], Phase2Settings)
    assert settings["self-taught"].training == recipe().phase2.training
    assert settings["no target text"].target_text == 0
    assert settings["no target text"].sparse.dense_epochs == 2 * recipe().phase2.sparse.dense_epochs
    own = Phase2Settings(teacher_forced=False)
    taught = variants_of(recipe(phase2=own, compare=CompareSettings()))
    assert list(taught) == ["", "copied"]
    assert taught[""].settings(own).training == own.training


def test_two_names_for_one_value_are_made_once():
    twins = [StudentSettings(name=name, reduction=2) for name in ("a", "b")]
    own = plan(recipe(students=twins, compare=CompareSettings()))
    copied = [one for one in own.candidates if one.role == "copied"]
    assert len(copied) == 2 and copied[0].model.stage.key == copied[1].model.stage.key
    assert own.names[copied[1].model.stage.key].places["model"] == "baselines/a-copied"
    students = [one for one in own.candidates if one.role == "student"]
    assert len({one.model.stage.key for one in students}) == 2
    assert len(list(itertools.chain(own.scores()))) == 7


def test_a_teacher_that_learns_from_several_languages_wears_their_sfts_and_then_the_source_s():
    task = TaskSettings(kind="token-classification", sources={"en": ["train"], "sw": ["dev"]}, dev=["dev"])
    several = recipe(task=task, compare=CompareSettings())
    stages = all_stages(several)
    fine_tuned, worn = stages["task-teacher"], stages["dress-task-teacher"]
    assert list(fine_tuned.sfts) == ["en", "sw"] and isinstance(fine_tuned.start, Product)
    assert fine_tuned.sfts["sw"] == Product(stages["adapt-sw"], "sft")
    assert worn.sft == fine_tuned.sfts["en"] and worn.model == fine_tuned.product("model")
    assert stages["phase2-a"].teacher == worn.product("model")
    assert plan(several).names[worn.key].places == {"model": "task-teacher"}
    # Dense: all labels together, learnt by a model that wears the source's SFT.
    dense = all_stages(replace(several, finetune=replace(several.finetune, sparse=None)))
    assert not dense["task-teacher"].sfts and dense["task-teacher"].start.sft == file("sft")
    assert "dress-task-teacher" not in dense


def test_more_teachers_are_the_first_ones_twins_and_change_what_they_teach_alone():
    one, two = (recipe(phase2=replace(recipe().phase2, teachers=count)) for count in (1, 2))
    before, after = all_stages(one), all_stages(two)
    assert before == all_stages(recipe()) and after.keys() - before.keys() == {"task-teacher 2 of 2"}
    first, second = after["task-teacher"], after["task-teacher 2 of 2"]
    assert second == replace(first, seed=first.seed + 1)
    assert plan(two).names[second.key].places == {"model": "task-teacher-2", "sft": "sfts/task-teacher-2"}
    taught = {label for label, stage in after.items() if stands_on(stage, second)} - {"task-teacher 2 of 2"}
    assert {label for label in before if after[label].key != before[label].key} == taught
    assert {"phase2-a", "phase2-b-copied", "phase2-a-no-target-text", "evaluate b"} <= taught
    assert not {"phase2-a-self-taught", "restore-vocabulary", "evaluate teacher", "phase1"} & taught
    # Each wears the source's SFT for good.
    task = TaskSettings(kind="token-classification", sources={"en": ["train"], "sw": ["dev"]}, dev=["dev"])
    stages = all_stages(replace(two, task=task, compare=CompareSettings()))
    worn = [stages[f"dress-task-teacher{ending}"].product("model") for ending in ("", " 2 of 2")]
    assert (stages["phase2-a"].teacher, stages["phase2-a"].other_teachers) == (worn[0], (worn[1],))
