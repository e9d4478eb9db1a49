"""Multi-label classification: how files say labels, the loss of independent decisions, the whole command line."""

import itertools
import json

import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import AutoModelForSequenceClassification, pipeline
from transformers.modeling_outputs import SequenceClassifierOutput
from typer.testing import CliRunner

from bistil.cli import app
from bistil.distillation.objectives import prediction_loss
from bistil.errors import ArtefactError, InputError
from bistil.measuring.evaluation import evaluate_folder
from bistil.models.loading import read_config
from bistil.sparse import SparseFineTuning
from bistil.tasks import get_task, kind_of, model_inputs
from bistil.tasks.hub import as_sources
from bistil.tasks.multi_label_classification import LabelledText
from bistil.tasks.reading import Reading

KIND = "multi-label-classification"


@pytest.fixture
def read(tmp_path, capsys):
    """Reads a text as a file; returns the labels of its examples, what was said and the counts."""

    def read(name, text, **how):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        reports = []
        examples = get_task(KIND).read([path], how=Reading(**how), reports=reports)
        return [list(one.labels) for one in examples], capsys.readouterr().err, reports[0].counts

    return read


def jsonl(*labels, **more):
    return "".join(json.dumps({"text": "a b", "labels": one, **more}) + "\n" for one in labels)


# Reading


def test_lists_of_labels(read):
    """An empty list is an example without labels; null and -1 say that nobody knows them."""
    labels, said, counts = read("a.jsonl", jsonl(["x", "y"], [], ["y", " x"], None, -1, [3, 1.0]))
    assert labels == [["x", "y"], [], ["y", "x"], ["3", "1"]]
    assert counts == {"rows": 4, "mended": 0, "without_label": 2, "odd": 0}
    assert "2 without a label left out (the first: line 4: the labels are None" in said
    rows = [json.loads(line) for line in jsonl(["x"], []).splitlines()]
    assert read("a.json", json.dumps(rows)) == ([["x"], []], "", {"rows": 2, "mended": 0, "without_label": 0, "odd": 0})


@pytest.mark.parametrize("mark", ["|", ";", ","])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_labels_in_one_text(mark, name, read):
    cells = [f"x{mark}y", "", f"y{mark} z{mark}", "x"]
    if name == "a.jsonl":
        text = jsonl(*cells)
    else:
        # In .csv files quotes hold commas, line breaks and quotes.
        row = '"one\nline, ""two"""{tab}"{cell}"\n' if name == "a.csv" else "one line{tab}{cell}\n"
        tab = "," if name == "a.csv" else "\t"
        text = f"text{tab}labels\n" + "".join(row.format(tab=tab, cell=cell) for cell in cells)
    labels, said, _ = read(name, text)
    assert labels == [["x", "y"], [], ["y", "z"], ["x"]]
    assert said.count("\n") == 1 and f"labels are separated by {mark!r} (--separator none" in said
    assert "where no label stands, the text has none" in said


def test_what_may_be_split_in_two_ways_is_refused_until_it_is_said(read):
    text = jsonl("arts, crafts|music", "music")
    with pytest.raises(InputError, match=r"labels hold '\|' and ','; say with --separator") as caught:
        read("a.jsonl", text)
    assert "\n" not in str(caught.value)
    assert read("a.jsonl", text, separator="|")[0] == [["arts, crafts", "music"], ["music"]]
    assert read("a.jsonl", text, separator=",")[0] == [["arts", "crafts|music"], ["music"]]
    assert read("a.jsonl", text, separator="none")[0] == [["arts, crafts|music"], ["music"]]
    assert read("a.jsonl", jsonl("a + b", "b"), separator=" + ")[0] == [["a", "b"], ["b"]]
    # What lists hold is never split.
    assert read("a.jsonl", jsonl(["a|b, c"], ["d"])) == (
        [["a|b, c"], ["d"]],
        "",
        {"rows": 2, "mended": 0, "without_label": 0, "odd": 0},
    )


@pytest.mark.parametrize("cell", ["['x', 'y']", '["x", "y"]', "[3 17]", "[]"])
def test_a_list_written_as_text_is_no_label(cell, read):
    quoted = cell.replace('"', '""')
    with pytest.raises(InputError, match=r"line 3: .*a list that is written as text; give JSON lines"):
        read("a.csv", f'text,labels\na b,x\na b,"{quoted}"\n', strict=True)


def test_columns_of_0_and_1(read):
    """The way of GoEmotions and Jigsaw; -1 says that nobody knows."""
    header = "id,text,toxic,insult,threat,very_unclear,rater\n"
    rows = ["7,a b,1,0,1,TRUE,3", "8,c d,0,0,0,FALSE,4", "9,e f,-1,-1,-1,FALSE,4", '10,"g, h",0,1,0,TRUE,2']
    labels, said, counts = read("a.csv", header + "\n".join(rows) + "\n")
    assert labels == [["toxic", "threat"], [], ["insult"]] and counts["without_label"] == 1
    assert "labels are the 3 columns of 0 and 1, toxic, insult, threat (--column label=A,B names others)" in said
    without = read("a.csv", header + "\n".join(rows) + "\n", columns={"ignore": "threat"})[0]
    assert without == [["toxic"], [], ["insult"]]
    named, said, _ = read("a.csv", header + "\n".join(rows) + "\n", columns={"label": "insult, toxic"})
    assert named == [["toxic"], [], ["insult"]]
    assert "columns of 0 and 1" not in said
    # True and false, where there are more of these.
    values = [{"text": "a", "joy": yes, "fear": False, "n": 1} for yes in (True, False)]
    assert read("b.jsonl", "".join(json.dumps(one) + "\n" for one in values), label_map={"joy": "Joy"})[0] == [
        ["Joy"],
        [],
    ]


def test_all_columns_are_labels_of_a_model(tmp_path):
    (tmp_path / "a.csv").write_text("text,joy,fear\na,1,0\nb,0,0\n")
    task = get_task(KIND)
    examples = task.read([tmp_path / "a.csv"])
    assert task.labels(examples) == ["fear", "joy"]
    (tmp_path / "b.csv").write_text("text,joy,rage\na,1,0\nb,0,1\n")
    with pytest.raises(InputError, match=r"b.csv, line 3: the label 'rage' is not among the model's labels"):
        task.check_labels(task.read([tmp_path / "b.csv"]), task.labels(examples))


REFUSED = {
    "one answer per text": ("text,label\na,0\nb,1\n", {}, "'label' holds 0 and 1 alone: .*sequence-classification"),
    "no labels": ("text,n\na,3\nb,4\n", {}, "no column holds a label .*--column label=NAME"),
    "no such column": ("text,joy\na,1\nb,0\n", {"columns": {"label": "joy,fear"}}, "has no column 'fear'"),
    "not 0 or 1": (
        "text,joy,n\na,1,2\nb,0,1\n",
        {"columns": {"label": "joy,n"}, "strict": True},
        "line 2: 'n' is '2'; 0 or 1 is",
    ),
    "no label anywhere": ("text,labels\na,\nb,\n", {}, "every label is missing .the first: .*no text of the file has"),
    "a number": (jsonl(["x"], 1.5), {"strict": True}, "line 2: the labels are '1.5'; a list or a text is expected"),
    "no name": (jsonl(["x", ""]), {}, "line 1: the labels are .*one of them has no name"),
    "a list in a list": (jsonl(["x", ["y"]]), {}, "line 1: the labels are .*names are expected"),
    "another task's": ("text,labels\na,x\n", {"scheme": "iob2"}, "scheme is 'iob2', but multi-label-classification"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_that_says_where(case, read):
    text, how, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        read("a.jsonl" if text.startswith("{") else "a.csv", text, **how)
    assert ("\n" not in str(caught.value) and "a." in str(caught.value)) or case == "another task's"


def test_labels_that_are_the_same_get_one_name(read):
    labels, said, counts = read("a.jsonl", jsonl(["Joy", "fear"], ["joy", "Joy"], ["Joy", "Joy"]))
    assert labels == [["Joy", "fear"], ["Joy"], ["Joy"]] and "'joy' as 'Joy'" in said
    assert counts["mended"] == 1 and "line 3: a label that is named twice" in said
    assert read("a.jsonl", jsonl(["a", "b"], ["c"]), label_map={"a": "c", "b": "c"})[0] == [["c"], ["c"]]


def test_data_sets_of_lists_and_of_classes(tmp_path):
    """GoEmotions of the hub has a list of classes."""
    names, text = ClassLabel(names=["joy", "fear", "rage"]), ["a", "b", "c"]
    features = Features({"text": Value("string"), "labels": List(names)})
    Dataset.from_dict({"text": text, "labels": [[0, 2], [], [1]]}, features=features).save_to_disk(tmp_path / "classes")
    Dataset.from_dict({"text": text, "labels": [["joy", "rage"], [], ["fear"]]}).save_to_disk(tmp_path / "texts")
    Dataset.from_dict({"text": text, "joy": [1, 0, 0], "fear": [0, 0, 1], "rage": [1, 0, 0]}).save_to_disk(
        tmp_path / "columns"
    )
    task = get_task(KIND)
    in_memory = [
        {"text": "a", "labels": ["joy", "rage"]},
        {"text": "b", "labels": []},
        {"text": "c", "labels": ["fear"]},
    ]
    sources = [f"dataset:{tmp_path / name}" for name in ("classes", "texts", "columns")]
    for source in (*sources, *as_sources("rows", in_memory)):
        examples = task.read([source])
        assert [set(one.labels) for one in examples] == [{"joy", "rage"}, set(), {"fear"}]
        assert task.labels(examples) == ["fear", "joy", "rage"]


FORMATS = {
    "a.jsonl": (jsonl(["x"], []), '{"text": "a b", "labels": ["y", "z"]}\n{"text": "a b", "labels": []}\n'),
    "a.csv": ('text,labels\n"a, b",x;y\nc,\n', 'text,labels\n"a, b",y;z\nc,\n'),
    "b.csv": ('text,labels\n"a, b",x\nc,\n', 'text,labels\n"a, b",y|z\nc,\n'),
    "a.tsv": ("n\ttext\tlabels\n1\ta\tx|y\n2\tc\t\n", "n\ttext\tlabels\n1\ta\ty|z\n2\tc\t\n"),
    "c.csv": ("text,x,y\na,1,0\nc,0,1\n", "text,x,y,z\na,0,1,1\nc,0,0,0\n"),
    "c.jsonl": (
        '{"text": "a", "x": true, "y": false}\n{"text": "c", "x": false, "y": false}\n',
        '{"text": "a", "x": false, "y": true, "z": true}\n{"text": "c", "x": false, "y": false, "z": false}\n',
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_predictions_are_in_the_format_read(name, tmp_path):
    text, expected = FORMATS[name]
    (tmp_path / name).write_text(text)
    task = get_task(KIND)
    predictions = [("y", "z"), ()]
    task.write_predictions(tmp_path / f"out-{name}", task.read([tmp_path / name]), predictions)
    assert (tmp_path / f"out-{name}").read_text() == expected
    assert [tuple(one.labels) for one in task.read([tmp_path / f"out-{name}"])] == predictions


# Decisions


def logits_of(*values):
    return SequenceClassifierOutput(logits=torch.tensor(values, dtype=torch.float64))


def test_the_prediction_loss_is_the_binary_cross_entropy_of_every_decision():
    torch.manual_seed(0)
    student, teacher = (SequenceClassifierOutput(logits=torch.randn(5, 4, dtype=torch.float64)) for _ in range(2))
    (pair,) = get_task(KIND).prediction_pairs(student, teacher, {})
    assert pair.student.shape == pair.teacher.shape == (20, 2) and pair.mask is None and pair.valid is None
    for temperature in (1.0, 2.0):
        wanted = binary_cross_entropy_with_logits(
            student.logits / temperature, (teacher.logits / temperature).sigmoid()
        )
        torch.testing.assert_close(prediction_loss(pair.student, pair.teacher, temperature), wanted)


def test_a_softmax_over_classes_would_not_see_what_differs():
    """Two models whose decisions all differ, but whose logits do by a constant."""
    student, teacher = logits_of([-1.0, -2.0, -3.0]), logits_of([4.0, 3.0, 2.0])
    (pair,), (same,) = (get_task(KIND).prediction_pairs(one, teacher, {}) for one in (student, teacher))
    over_classes = [prediction_loss(one.logits, teacher.logits, 1.0) for one in (student, teacher)]
    assert over_classes[0] == pytest.approx(float(over_classes[1]))
    ours = [prediction_loss(one.student, one.teacher, 1.0) for one in (pair, same)]
    assert ours[0] > ours[1] + 1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_on_labels_is_transformers_own(family, tmp_path):
    tiny.model(family, layers=2).save_pretrained(tmp_path)
    task, labels = get_task(KIND), ["x", "y", "z"]
    model, tokenizer = task.build_model(tmp_path, labels), tiny.tokenizer(family)
    texts = {"pair": None, "fields": {}, "file": "f", "line": 1}
    examples = [LabelledText(text=t, labels=own, **texts) for t, own in (("a cat", ("x", "z")), ("the moon", ()))]
    batch = task.collate(tokenizer)(task.encode(examples, tokenizer, 16, labels=labels))
    assert batch["labels"].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]] and batch["labels"].dtype == torch.float32
    with torch.no_grad():
        output = model(**model_inputs(model, batch))
    signs = 2 * batch["labels"] - 1
    torch.testing.assert_close(output.loss, -logsigmoid(signs * output.logits).mean())
    assert "labels" not in task.collate(tokenizer)(task.unlabelled(["a cat"], tokenizer, 16))


def test_the_baseline_is_the_best_answer_that_never_looks():
    """Against all sets of labels."""
    task = get_task(KIND)
    own = [("a",), ("a", "b"), ("b", "c"), (), ("a",), ("d",)]
    train = [LabelledText(text="", labels=one, pair=None, fields={}, file="f", line=1) for one in own]
    guesses = task.majority(train, train[:3])
    assert len(guesses) == 3 and len(set(guesses)) == 1

    def f1(labels):
        return task.score(train, [labels] * len(train)).scores["micro_f1"]

    best = max(f1(some) for n in range(5) for some in itertools.combinations("abcd", n))
    assert f1(guesses[0]) == pytest.approx(best) and best > f1(())
    assert guesses[0] == ("a", "b"), "no label is on more than half of the texts"


# Models and commands


def test_a_model_of_one_label_per_text_is_no_model_of_several(tmp_path):
    tiny.save(tiny.model("bert", layers=2), tmp_path / "encoder", "bert")
    single, several = get_task("sequence-classification"), get_task(KIND)
    single.build_model(tmp_path / "encoder", ["x", "y"]).save_pretrained(tmp_path / "single")
    several.build_model(tmp_path / "encoder", ["x", "y"]).save_pretrained(tmp_path / "several")
    for kind, folder in (("sequence-classification", "single"), (KIND, "several")):
        assert kind_of(read_config(tmp_path / folder), folder) == kind
    for task, folder in ((several, "single"), (single, "several")):
        with pytest.raises(ArtefactError, match=r"was trained for .*name the task that it was fine-tuned for"):
            task.build_model(tmp_path / folder, None)


@pytest.fixture
def folder(tmp_path):
    """A tiny encoder, English labelled by what its sentences hold, and Swahili text."""
    tiny.save(tiny.model("bert", layers=2, initializer_range=0.2), tmp_path / "model", "bert")
    english, swahili = tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines()
    marks = {"the": "the ", "a": "a ", "and": " and "}

    def rows(lines):
        return [{"text": line, "labels": [name for name, mark in marks.items() if mark in line]} for line in lines]

    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(english)))
    (tmp_path / "sw.txt").write_text("\n".join(swahili))
    lines = [f'"{row["text"]}",{"; ".join(row["labels"])}' for row in rows(english[:6])]
    (tmp_path / "dev.csv").write_text("text,labels\n" + "\n".join(lines) + "\n")
    return tmp_path


def run(*words):
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_from_the_teacher_to_scores_on_the_command_line(folder):
    common = ["--task", KIND, "--train", folder / "train.jsonl", "--dev", folder / "dev.csv", "--batch-size", "5"]
    common += ["--learning-rate", "1e-2", "--max-length", "32"]
    sparse = ["--dense-epochs", "20", "--sparse-epochs", "20", "--density", "0.3", "--sft", folder / "sft"]
    run("finetune", "-m", folder / "model", *common, *sparse, "-o", folder / "teacher")
    dense = ["--no-sparse", "--epochs", "20", "--teacher", folder / "teacher", "--text", folder / "sw.txt"]
    run("finetune", "-m", folder / "model", *common, *dense, "-o", folder / "student")

    record = json.loads((folder / "student/bistil.json").read_text())
    assert record["task"] == KIND and record["metrics"]["target_text"] == 10
    assert set(record["metrics"]["dev"]) >= {"micro_f1", "macro_f1", "exact_match"}
    assert json.loads((folder / "sft/sft_config.json").read_text())["problem_type"] == "multi_label_classification"
    model = AutoModelForSequenceClassification.from_pretrained(folder / "student")
    assert model.config.problem_type == "multi_label_classification"
    assert sorted(model.config.id2label.values()) == ["a", "and", "the"]

    # A model that learns: far above the answer that never looks.
    task = get_task(KIND)
    examples = task.read([folder / "train.jsonl"])
    blind = task.score(examples, task.majority(examples, examples)).scores["micro_f1"]
    for name in ("teacher", "student"):
        assert (
            evaluate_folder(folder / name, task=KIND, files=[folder / "train.jsonl"], max_length=32)["score"]
            > blind + 10
        )

    command = ["evaluate", "--model", folder / "student", "--task", KIND, "--file", folder / "dev.csv"]
    told = run(*command, "--separator", ";", "--predictions", folder / "out.csv", "--record", folder / "out.json")
    scored = json.loads((folder / "out.json").read_text())
    assert told.stdout.startswith(f"micro_f1 {scored['score']:.2f}") and scored["settings"]["separator"] == ";"
    written = task.read([folder / "out.csv"], how=Reading(separator=";"))
    examples = task.read([folder / "dev.csv"], how=Reading(separator=";"))
    again = task.score(examples, [one.labels for one in written]).scores
    assert again == pytest.approx(scored["scores"])

    # Plain transformers comes to the same decisions, and a merge of the SFT to the same model.
    classify = pipeline("text-classification", model=str(folder / "student"), top_k=None, device="cpu")
    for one, scores in zip(written, classify([one.text for one in written]), strict=True):
        assert {score["label"] for score in scores if score["score"] > 0.5} == set(one.labels)
    run("sft", "merge", folder / "model", folder / "sft", "--output", folder / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(folder / "merged")
    assert merged.config.problem_type == "multi_label_classification"
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher").state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in merged.state_dict().items())
    assert SparseFineTuning.load(folder / "sft").provenance.labels == ["a", "and", "the"]


def test_a_teacher_with_other_labels_is_refused(folder):
    (folder / "other.jsonl").write_text(jsonl(["the"], ["a", "no"]))
    short = ["--no-sparse", "--steps", "1", "--max-length", "32"]
    run(
        "finetune",
        "-m",
        folder / "model",
        "--task",
        KIND,
        "--train",
        folder / "other.jsonl",
        *short,
        "-o",
        folder / "t",
    )
    with pytest.raises(ArtefactError, match="has other labels than the training data"):
        run(
            "finetune", "-m", folder / "model", "--task", KIND, "--train", folder / "train.jsonl", *short,
            "--teacher", folder / "t", "-o", folder / "s",
        )  # fmt: skip
    assert not (folder / "s").exists()
