"""`bistil finetune`: what its options and presets come to, and that it goes through the same path as a recipe."""

import json

import pytest
import tiny
from typer.testing import CliRunner

from bistil.cli import app
from bistil.errors import BistilError, InputError, RecipeError
from bistil.recipe import FinetuneSettings, task_preset, to_dict

TAGS = "token-classification"


@pytest.fixture
def folder(tmp_path):
    tiny.model("bert", layers=2).save_pretrained(tmp_path / "model")
    tiny.tokenizer("bert").save_pretrained(tmp_path / "model")

    def conll(lines):
        return "\n\n".join("\n".join(f"{w} {'B-X' if w[0].isupper() else 'O'}" for w in line.split()) for line in lines)

    english, swahili = tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines()
    (tmp_path / "train.txt").write_text(conll(english) + "\n", encoding="utf-8")
    (tmp_path / "dev.txt").write_text(conll(english[:2]) + "\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text(conll([english[9], *swahili[:3]]).replace("B-X", "B-Y"), encoding="utf-8")
    (tmp_path / "sw.txt").write_text("\n".join(swahili), encoding="utf-8")
    return tmp_path


def finetune(folder, output, *options):
    command = ["finetune", "-m", folder / "model", "--task", TAGS, "--train", folder / "train.txt", "-o", output]
    result = CliRunner().invoke(app, list(map(str, [*command, *options])), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads((output / "bistil.json").read_text()), result


def test_teacher_and_student_with_evaluation_text_kept_out(folder):
    options = ["--dev", folder / "dev.txt", "--test", folder / "test.txt", "--label-map", "B-Y=B-X"]
    options += ["--dense-epochs", "1", "--sparse-epochs", "1", "--learning-rate", "1e-3", "--batch-size", "4"]
    record, _ = finetune(folder, folder / "teacher", *options)
    assert record["metrics"]["left_out"] == {"train_in_test": 1, "target_text_in_evaluation": 0}
    assert record["metrics"]["examples"] == 9
    options += ["--teacher", folder / "teacher", "--text", folder / "sw.txt", "--target-sentences", "5"]
    record, result = finetune(folder, folder / "student", *options)
    assert record["metrics"]["left_out"] == {"train_in_test": 1, "target_text_in_evaluation": 3}
    assert record["metrics"]["target_text"] == 5
    assert record["settings"]["target_text"] == 1.0
    assert "3 of 10 lines of target text are left out" in result.stderr
    assert set(record["metrics"]["dev"]) >= {"f1"}


def test_without_preset_the_defaults_are_those_of_a_recipe(folder):
    record, _ = finetune(folder, folder / "teacher", "--dense", "--dense-epochs", "0.2")
    default = to_dict(FinetuneSettings())
    assert record["settings"]["sparse"] is None
    assert record["settings"]["training"] == {**default["training"], "epochs": 0.2}


def test_a_preset_and_what_is_given_beside_it(folder):
    record, _ = finetune(
        folder, folder / "teacher", "--preset", "paper", "--dense-epochs", "0.2", "--sparse-epochs", "0.2",
        "--batch-size", "5", "--max-length", "64",
    )  # fmt: skip
    preset = to_dict(task_preset("paper", TAGS).finetune)
    assert record["settings"]["training"] == {**preset["training"], "batch_size": 5}
    assert record["settings"]["sparse"] == {**preset["sparse"], "dense_epochs": 0.2, "sparse_epochs": 0.2}
    assert record["metrics"]["examples"] == 10
    with pytest.raises(InputError, match="max_length is 256, but the model has 140 positions"):
        finetune(folder, folder / "other", "--preset", "paper")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--preset", "papr"], RecipeError, "'papr'; it must be one of 'paper', 'short'"),
        (["--text", "sw.txt"], InputError, "give --teacher too"),
        (["--target-sentences", "5"], InputError, "give --text too"),
        (["--target-text", "0.5"], InputError, "give --text too"),
        (["--label-map", "B-Y"], InputError, "OLD=NEW"),
        (["--task", "tagging"], RecipeError, "'tagging'; it must be one of"),
    ],
)
def test_mistakes_are_one_line(folder, options, error, message):
    with pytest.raises(error, match=message) as caught:
        finetune(folder, folder / "out", *options)
    assert "\n" not in str(caught.value) and isinstance(caught.value, BistilError)
    assert not (folder / "out").exists()
