"""Labelled data sets of the hub's formats, from folders: the same examples, digests and errors as files have."""

import json

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bistil.errors import InputError
from bistil.measuring.evaluation import measure
from bistil.settings.recipe import load_recipe
from bistil.tasks import get_task
from bistil.tasks.hub import labelled_digest, read_dataset

TAGS = Dataset.from_dict(
    {"id": ["0", "1"], "tokens": [["Paka", "aliketi"], ["Nairobi"]], "ner_tags": [[0, 0], [1]]},
    features=Features(
        {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-LOC"]))}
    ),
)
PAIRS = Dataset.from_dict(
    {"premise": ["a b", "c"], "hypothesis": ["d", "e"], "label": [2, 0]},
    features=Features(
        {
            "premise": Value("string"),
            "hypothesis": Value("string"),
            "label": ClassLabel(names=["entailment", "neutral", "contradiction"]),
        }
    ),
)
QUESTIONS = Dataset.from_dict(
    {
        "id": ["q0", "q1"],
        "question": ["Who sat?", "Where?"],
        "context": ["The cat sat on the mat."] * 2,
        "answers": [{"text": ["The cat"], "answer_start": [0]}, {"text": ["the mat", "mat"], "answer_start": [15, 19]}],
    }
)


def test_tags_from_a_saved_data_set(tmp_path):
    DatasetDict({"train": TAGS, "test": TAGS.select([1])}).save_to_disk(tmp_path / "ner")
    task = get_task("token-classification")
    one, two = task.read([f"dataset:{tmp_path / 'ner'}:train"], label_map={"B-LOC": "B-PLACE"})
    assert (one.words, one.tags) == (["Paka", "aliketi"], ["O", "O"])
    assert (two.tags, two.where) == (["B-PLACE"], f"dataset:{tmp_path / 'ner'}:train, line 2")
    assert len(task.read([f"dataset:{tmp_path / 'ner'}:test"])) == 1
    task.write_predictions(tmp_path / "out.jsonl", [one, two], [["O", "O"], ["O"]])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[1] == {"id": "1", "tokens": ["Nairobi"], "ner_tags": ["O"]}
    assert [e.tags for e in task.read([tmp_path / "out.jsonl"])] == [["O", "O"], ["O"]]


def test_pairs_from_a_folder_of_parquet_files_with_splits_and_slices(tmp_path):
    folder = tmp_path / "nli" / "data"
    folder.mkdir(parents=True)
    PAIRS.to_parquet(folder / "train-00000-of-00001.parquet")
    PAIRS.select([0]).to_parquet(folder / "test-00000-of-00001.parquet")
    task = get_task("sequence-classification")
    found = task.read([f"dataset:{tmp_path / 'nli'}:train"])
    assert [(e.text, e.pair, e.label) for e in found] == [("a b", "d", "contradiction"), ("c", "e", "entailment")]
    assert len(task.read([f"dataset:{tmp_path / 'nli'}:train[:1]"])) == 1
    assert len(task.read([f"dataset:{tmp_path / 'nli'}:default:test"])) == 1
    task.write_predictions(tmp_path / "out.jsonl", found, ["neutral", "neutral"])
    assert [e.label for e in task.read([tmp_path / "out.jsonl"])] == ["neutral", "neutral"]


def test_questions(tmp_path):
    QUESTIONS.save_to_disk(tmp_path / "qa")
    one, two = get_task("question-answering").read([f"dataset:{tmp_path / 'qa'}"])
    assert one.answers == [("The cat", 0)] and two.answers == [("the mat", 15), ("mat", 19)]
    broken = QUESTIONS.map(lambda _: {"answers": {"text": ["dog"], "answer_start": [4]}})
    broken.save_to_disk(tmp_path / "broken")
    with pytest.raises(InputError, match="broken, line 1: question 'q0': the answer 'dog' is not in its context"):
        get_task("question-answering").read([f"dataset:{tmp_path / 'broken'}"])


def test_a_digest_is_that_of_the_content(tmp_path):
    TAGS.save_to_disk(tmp_path / "one")
    DatasetDict({"a": TAGS, "b": TAGS.select([1])}).save_to_disk(tmp_path / "two")
    TAGS.cast_column("ner_tags", List(ClassLabel(names=["O", "B-PER"]))).save_to_disk(tmp_path / "renamed")
    digest = labelled_digest(f"dataset:{tmp_path / 'one'}")
    assert digest == labelled_digest(f"dataset:{tmp_path / 'two'}:a")
    assert digest != labelled_digest(f"dataset:{tmp_path / 'two'}:b")
    assert digest != labelled_digest(f"dataset:{tmp_path / 'renamed'}")


def test_hidden_labels_are_an_error(tmp_path):
    PAIRS.map(lambda _: {"label": -1}).save_to_disk(tmp_path / "hidden")
    with pytest.raises(InputError, match="hidden, line 1: the label is None"):
        get_task("sequence-classification").read([f"dataset:{tmp_path / 'hidden'}"])


def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, capfd):
    DatasetDict({"train": TAGS}).save_to_disk(tmp_path / "ner")
    (tmp_path / "none").mkdir()
    # No network in tests: what the hub's client says without one, at once.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    capfd.readouterr()
    for name, message in (
        (f"dataset:{tmp_path / 'ner'}", "has no split None: write dataset:.*:SPLIT with one of train"),
        (f"dataset:{tmp_path / 'ner'}:dev", "has no split 'dev'"),
        (f"dataset:{tmp_path / 'none'}:train", "cannot load dataset:"),
        ("dataset:nobody/nothing:train", "cannot load dataset:nobody/nothing:train: .*whether the hub can be reached"),
        ("dataset:a:b:c:d", "no data set's name: write dataset:NAME:SPLIT"),
        ("dataset:", "no data set's name"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            list(read_dataset(name))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no column head or heads; found: id, tokens, ner_tags"):
        get_task("dependency-parsing").read([f"dataset:{tmp_path / 'ner'}:train"])
    assert not capfd.readouterr().err


def test_a_recipe_finds_folders_beside_it_and_leaves_hub_names(tmp_path):
    (tmp_path / "ner").mkdir()
    (tmp_path / "recipe.toml").write_text(
        'teacher = "e5-small"\nsource = "en"\ntarget = "sw"\ntext = { en = "en.txt", sw = "sw.txt" }\n'
        '[task]\nkind = "token-classification"\ntrain = ["dataset:ner:train", "train.txt"]\n'
        'dev = "dataset:ner"\ntest = { sw = "dataset:masakhane/masakhaner2:swa:test" }\n'
    )
    task = load_recipe(tmp_path / "recipe.toml").task
    assert task.train == [f"dataset:{tmp_path / 'ner'}:train", str(tmp_path / "train.txt")]
    assert task.dev == [f"dataset:{tmp_path / 'ner'}"]
    assert task.test == {"sw": ["dataset:masakhane/masakhaner2:swa:test"]}


def test_evaluation_takes_a_data_set(tmp_path):
    import tiny

    from bistil.measuring.evaluation import evaluate_folder

    TAGS.save_to_disk(tmp_path / "ner")
    task = get_task("token-classification")
    tiny.model("bert", layers=1).save_pretrained(tmp_path / "encoder")
    tiny.save(task.build_model(tmp_path / "encoder", ["O", "B-LOC"]), tmp_path / "model", "bert")
    name = f"dataset:{tmp_path / 'ner'}"
    record = evaluate_folder(tmp_path / "model", task=task.kind, files=[name], max_length=32, bootstrap_samples=0)
    assert record["files"] == {name: labelled_digest(name)} and record["examples"] == 2
    assert record["score"] == measure(tmp_path / "model", task, task.read([name]), max_length=32).scores["f1"]
