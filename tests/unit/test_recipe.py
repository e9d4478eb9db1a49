"""Recipes: what is right is read, what is wrong is named."""

import pytest

from bistil.errors import RecipeError
from bistil.recipe import Phase1Settings, Recipe, SparseSettings, TrainingSettings, load_recipe, parse

MINIMAL = """
teacher = "e5-small"
source = "en"
target = "it"
[text]
en = "english.txt"
it = ["a.txt", "b.txt.gz"]
"""


def written(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_a_minimal_recipe_has_defaults_and_absolute_paths(tmp_path):
    recipe = load_recipe(written(tmp_path, MINIMAL))
    assert recipe.text == {
        "en": [str(tmp_path / "english.txt")],
        "it": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")],
    }
    assert recipe.students[0].reduction == 2
    assert recipe.trim.threshold == 1e-6


def test_a_partial_table_keeps_the_stage_s_other_defaults():
    default = Phase1Settings().training
    got = parse(Recipe, {
        "teacher": "x", "source": "en", "target": "it", "text": {}, "phase1": {"training": {"steps": 7}},
    }, "r").phase1.training  # fmt: skip
    assert got.steps == 7
    assert got.learning_rate == default.learning_rate == 5e-4


def test_an_alternative_replaces_the_default_one():
    assert parse(SparseSettings, {"count": 10}, "r").density is None
    assert parse(TrainingSettings, {"steps": 3}, "r", base=TrainingSettings(epochs=2.0)).epochs is None
    with pytest.raises(RecipeError, match="only one of 'steps' and 'epochs'"):
        parse(TrainingSettings, {"steps": 3, "epochs": 1}, "r")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[text]", "[textt]"), r"unknown key 'textt'; did you mean 'text'\?"),
        (("source", "sorce"), r"unknown key 'sorce'; did you mean 'source'\?"),
        (('target = "it"', 'target = "en"'), "bilingual student needs two languages"),
        (('it = ["a.txt", "b.txt.gz"]', ""), "text has no files for it"),
        (('en = "english.txt"', "en = 3"), r"text.en\[0\] is 3; expected str"),
        (('teacher = "e5-small"', ""), "'teacher' is missing"),
        (('teacher = "e5-small"', "teacher = "), "not valid TOML"),
        (("[text]", "[phase1.training]\nsteps = true\n[text]"), r"phase1.training.steps is True; expected int"),
        (("[text]", '[phase1.training]\nprecision = "fp8"\n[text]'), "must be one of 'float32', 'bf16'"),
        (("[text]", '[[students]]\nname = "a"\n[[students]]\nname = "a"\n[text]'), "name of its own"),
        (("[text]", "phase1 = 3\n[text]"), "phase1 must be a table"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, MINIMAL.replace(*change)))


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(tmp_path / "none.toml")
