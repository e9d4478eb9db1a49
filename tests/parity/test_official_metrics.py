"""Scores against independent implementations: seqeval, scikit-learn, udtools, and torchmetrics' SQuAD."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

from bistil.tasks import get_task
from bistil.tasks.parsing.conllu import DEPREL, HEAD
from bistil.tasks.parsing.conllu import write_sentence as conllu_text
from bistil.tasks.question_answering import Answer

DATA = Path(os.environ.get("BISTIL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def data(*names):
    """Parameters for real files: each skips where it is absent."""
    return [
        pytest.param(
            DATA / name,
            id=name,
            marks=[pytest.mark.real_data, pytest.mark.skipif(not (DATA / name).exists(), reason=f"no {DATA / name}")],
        )
        for name in names
    ]


def noisy(tags, labels, generator, share=0.2):
    return [generator.choice(labels) if generator.random() < share else tag for tag in tags]


def check_spans(examples, predictions):
    gold = [example.tags for example in examples]
    scores = get_task("token-classification").score(examples, predictions).scores
    assert scores["f1"] == pytest.approx(100 * f1_score(gold, predictions), abs=1e-10)
    assert scores["precision"] == pytest.approx(100 * precision_score(gold, predictions), abs=1e-10)
    assert scores["recall"] == pytest.approx(100 * recall_score(gold, predictions), abs=1e-10)
    report = classification_report(gold, predictions, output_dict=True, zero_division=0)
    types = [name for name in report if not name.endswith(" avg")]
    assert types
    for name in types:
        assert scores[f"f1/{name}"] == pytest.approx(100 * report[name]["f1-score"], abs=1e-10)


def test_span_f1_on_tags_of_every_scheme(tmp_path):
    """Random tags, ill-formed sequences included."""
    generator = random.Random(0)
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-ORG"]
    lines = ["" if generator.random() < 0.1 else f"w{i} {generator.choice(labels)}" for i in range(3000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    examples = get_task("token-classification").read([tmp_path / "a.txt"])
    check_spans(examples, [noisy(example.tags, labels, generator, 0.5) for example in examples])


@pytest.mark.parametrize("path", data("ner/swa/test.txt", "ner/eng/dev.txt"))
def test_span_f1_on_real_files(path):
    generator = random.Random(1)
    task = get_task("token-classification")
    examples = task.read([path], label_map={"B-DATE": "O", "I-DATE": "O"})
    labels = task.labels(examples)
    check_spans(examples, [noisy(example.tags, labels, generator) for example in examples])


def test_accuracy_and_macro_f1(tmp_path):
    from sklearn.metrics import accuracy_score
    from sklearn.metrics import f1_score as macro

    generator = random.Random(2)
    rows = [f"t\t{generator.choice('abc')}" for _ in range(500)]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "\n".join(rows))
    task = get_task("sequence-classification")
    examples = task.read([tmp_path / "a.tsv"])
    gold = [example.label for example in examples]
    predictions = noisy(gold, list("abcd"), generator)
    scores = task.score(examples, predictions).scores
    assert scores["accuracy"] == pytest.approx(100 * accuracy_score(gold, predictions), abs=1e-10)
    assert scores["macro_f1"] == pytest.approx(100 * macro(gold, predictions, average="macro"), abs=1e-10)


def test_scores_of_several_labels_per_text(tmp_path):
    """scikit-learn's multi-label F1 and subset accuracy, macro over the classes that occur as gold or predicted."""
    from sklearn.metrics import accuracy_score
    from sklearn.metrics import f1_score as f1
    from sklearn.preprocessing import MultiLabelBinarizer

    generator = random.Random(5)
    classes = list("abcdefg")

    def drawn(names):
        return sorted(generator.sample(names, generator.randrange(4)))

    # "f" is never gold, "g" neither gold nor predicted: of that one there is no F1, and no score counts it.
    rows = [{"text": "t", "labels": drawn(classes[:5])} for _ in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = get_task("multi-label-classification")
    examples = task.read([tmp_path / "a.jsonl"])
    predictions = [one.labels if generator.random() < 0.5 else tuple(drawn(classes[:6])) for one in examples]
    binary = MultiLabelBinarizer(classes=classes[:6])
    gold, found = binary.fit_transform([one.labels for one in examples]), binary.transform(predictions)
    metrics = task.score(examples, predictions, labels=classes)
    expected = {
        "micro_f1": f1(gold, found, average="micro", zero_division=0),
        "macro_f1": f1(gold, found, average="macro", zero_division=0),
        "exact_match": accuracy_score(gold, found),
    }
    assert metrics.primary == task.metric(classes) == "micro_f1"
    assert metrics.scores == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-10)
    # The counters add up: any resample is scored as scikit-learn scores it.
    chosen = np.random.default_rng(0).integers(len(examples), size=len(examples))
    again = metrics.formula(metrics.counts[chosen].sum(axis=0))
    assert again["micro_f1"] == pytest.approx(100 * f1(gold[chosen], found[chosen], average="micro"), abs=1e-10)
    empty = next(one for one in examples if not one.labels)
    assert task.score([empty], [()]).scores == {"micro_f1": 0.0, "macro_f1": 0.0, "exact_match": 100.0}


def ud_scores(gold, system):
    """The official UD evaluation of one file against another."""
    from udtools.udeval import evaluate, load_conllu

    with gold.open(encoding="utf-8") as one, system.open(encoding="utf-8") as two:
        return evaluate(load_conllu(one, gold, {}), load_conllu(two, system, {}))


def random_tree(size, generator):
    order = list(range(1, size + 1))
    generator.shuffle(order)
    heads = [0] * (size + 1)
    for i, word in enumerate(order):
        heads[word] = 0 if i == 0 else order[generator.randrange(i)]
    return heads[1:]


@pytest.mark.parametrize(
    "path", data("ud/Manx-Cadhan/test.conllu", "ud/Buryat-BDT/train.conllu", "ud/Arabic-PUD/test.conllu")
)
def test_attachment_scores_on_real_files(path, tmp_path):
    """UAS, LAS and UPOS of noisy trees by the official UD evaluation, reading back the files we write."""
    generator = random.Random(3)
    task = get_task("dependency-parsing")
    examples = task.read([path])[:400]
    relations = task.labels(examples)
    predictions = []
    for example in examples:
        # Words below the root move together or stay: what comes out is a tree.
        heads = random_tree(len(example.words), generator) if generator.random() < 0.5 else example.heads
        labels = noisy(example.relations, relations, generator)
        predictions.append(list(zip(heads, labels, strict=True)))
    task.write_predictions(tmp_path / "system.conllu", examples, predictions)
    gold = tmp_path / "gold.conllu"
    gold.write_text("".join(conllu_text(example.source, columns={}) for example in examples), encoding="utf-8")
    scores = task.score(examples, predictions).scores
    want = ud_scores(gold, tmp_path / "system.conllu")
    assert want["Words"].f1 == 1
    assert 5 < scores["las"] < scores["uas"] < 95
    assert scores["uas"] == pytest.approx(100 * want["UAS"].f1, abs=1e-10)
    assert scores["las"] == pytest.approx(100 * want["LAS"].f1, abs=1e-10)

    tagging = get_task("token-classification")
    tagged = tagging.read([gold])
    tags = [noisy(example.tags, tagging.labels(tagged), generator) for example in tagged]
    tagging.write_predictions(tmp_path / "tagged.conllu", tagged, tags)
    want = ud_scores(gold, tmp_path / "tagged.conllu")
    assert tagging.score(tagged, tags).scores["accuracy"] == pytest.approx(100 * want["UPOS"].f1, abs=1e-10)


@pytest.mark.parametrize("path", data("ud/Manx-Cadhan/test.conllu"))
def test_scores_without_punctuation(path):
    """Dropping the words with gold relation punct by hand."""
    task = get_task("dependency-parsing")
    examples = task.read([path])[:200]
    predictions = [[(head if i % 4 else 0, "obj") for i, head in enumerate(e.heads)] for e in examples]
    pairs = [
        (h == head, h == head and r == "obj")
        for example, tree in zip(examples, predictions, strict=True)
        for h, r, (head, _) in zip(example.heads, example.relations, tree, strict=True)
        if r != "punct"
    ]
    scores = task.score(examples, predictions).scores
    assert scores["uas_without_punctuation"] == pytest.approx(100 * np.mean([a for a, _ in pairs]))
    assert scores["las_without_punctuation"] == pytest.approx(100 * np.mean([b for _, b in pairs]))


@pytest.mark.parametrize("path", data("ud/Upper_Sorbian-UFAL/test.conllu", "ud/Arabic-PUD/test.conllu"))
def test_conllu_files_come_back_byte_for_byte(path):
    task = get_task("dependency-parsing")
    text = "".join(conllu_text(example.source, columns={}) for example in task.read([path]))
    assert text == path.read_text(encoding="utf-8")
    example = task.read([path])[0]
    columns = {HEAD: example.source.column(HEAD), DEPREL: example.source.column(DEPREL)}
    assert len(conllu_text(example.source, columns=columns).splitlines()) == len(
        conllu_text(example.source, columns={}).splitlines()
    )


@pytest.mark.parametrize("path", data("qa/xquad/xquad.en.json", "qa/xquad/xquad.zh.json", "qa/xquad/xquad.ar.json"))
def test_squad_scores_on_real_files(path):
    from torchmetrics.functional.text.squad import squad

    generator = random.Random(4)
    task = get_task("question-answering")
    examples = task.read([path])
    predictions = []
    for example in examples:
        words = example.context.split()
        start = generator.randrange(len(words))
        made = " ".join(words[start : start + 3])
        gold = example.answers[0][0]
        text = generator.choice([gold, gold.upper() + "!", f"the {gold}", f"{gold} {made}", made, gold[1:], ""])
        predictions.append([Answer(text, 0, 1.0)])
    scores = task.score(examples, predictions).scores
    want = squad(
        [{"prediction_text": p[0].text, "id": e.id} for e, p in zip(examples, predictions, strict=True)],
        [
            {"answers": {"text": [t for t, _ in e.answers], "answer_start": [s for _, s in e.answers]}, "id": e.id}
            for e in examples
        ],
    )
    assert 10 < scores["exact_match"] < scores["f1"] < 90
    # torchmetrics sums in float32.
    assert scores["exact_match"] == pytest.approx(float(want["exact_match"]), abs=1e-4)
    assert scores["f1"] == pytest.approx(float(want["f1"]), abs=1e-4)


@pytest.mark.parametrize("path", data("nli/americasnli/dev/quy.tsv", "nli/english/xnli_en_dev.tsv"))
def test_inference_tables_are_read_whole(path):
    examples = get_task("sequence-classification").read([path])
    assert len(examples) == path.read_text(encoding="utf-8").count("\n") - 1
    assert all(example.pair for example in examples)
    assert {example.label for example in examples} == {"entailment", "neutral", "contradiction"}
