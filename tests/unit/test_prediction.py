"""Finished models asked about texts, words, rows and streams: the same predictions as `evaluate`, nothing lost."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import SENTENCES
from task_models import LABELS, TAGS, TEXTS
from test_sparse_artefact import random_sft
from test_tasks import CASES, PAIRS
from transformers import AutoModel

import bistil
from bistil.errors import ArtefactError, InputError
from bistil.measuring.evaluation import evaluate_folder
from bistil.prediction import files
from bistil.prediction import inputs as reading
from bistil.prediction.files import predict_file
from bistil.prediction.inputs import Lines, chunks, read_inputs
from bistil.runtime.progress import Progress
from bistil.tasks import KINDS, get_task
from bistil.tasks.question_answering import Answer, QuestionAnswerer, token_f1
from bistil.tasks.texts import encode_texts
from bistil.tasks.words import sentence_places, split_words, word_places

LABELS_OF = "multi-label-classification"
TREES, LABEL, ANSWERS = (
    "dependency-parsing",
    "sequence-classification",
    "question-answering",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder per kind of task, and one with parts of speech, with random heads that say different things."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save(tiny.model("bert", layers=2), folder / "encoder")
    for kind, labels in {**LABELS, "pos": ["NOUN", "VERB", "PUNCT"]}.items():
        model = get_task(kind if kind in KINDS else TAGS).build_model(folder / "encoder", labels, seed=1)
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("bert."):
                    parameter.normal_(std=0.3)
            if kind == LABELS_OF:
                # Each label is on for half of the texts.
                encoded = tiny.tokenizer()(TEXTS, padding=True, return_tensors="pt")
                model.classifier.bias -= model(**encoded).logits.median(0).values
        tiny.save(model, folder / kind)
    return folder


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def predicted(models, kind, source, tmp_path, name="out.jsonl", **options):
    output = tmp_path / name
    predict_file(bistil.load(models / kind), source, output, **{"format": "jsonl", **options})
    return lines_of(output) if options.get("format", "jsonl") == "jsonl" else output.read_text(encoding="utf-8")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# --- the same as evaluate


def tagged(sentences, seed=0):
    """Sentences of (word, tag), and the spans in characters of their words with a space between."""
    draw, blocks, gold = random.Random(seed), [], []
    for words in sentences:
        tags, spans, position = [], [], 0
        for word in words:
            tag = draw.choice(["O", "O", "B-PER", "I-PER", "B-LOC"])
            previous = tags[-1] if tags else "O"
            if tag == "I-PER" and previous not in ("B-PER", "I-PER"):
                tag = "O"
            if tag.startswith("B-"):
                spans.append([tag[2:], position, position + len(word)])
            elif tag == "I-PER":
                spans[-1][2] = position + len(word)
            tags.append(tag)
            position += len(word) + 1
        blocks.append("".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True)))
        gold.append({tuple(span) for span in spans})
    return "\n".join(blocks) + "\n", gold


@pytest.mark.parametrize("form", ["text", "words"])
def test_f1_of_spans_in_running_text_is_that_of_evaluate(models, tmp_path, form):
    """Spans by characters, counted here, against seqeval's way over words; one sentence is longer than a window."""
    split = split_words if form == "text" else str.split
    sentences = [split(text) for text in TEXTS] + [[word for text in TEXTS for word in split(text)]]
    columns, gold = tagged(sentences)
    test = write(tmp_path / "test.conll", columns)
    source = write(tmp_path / "test.txt", "".join(" ".join(words) + "\n" for words in sentences))
    rows = predicted(models, TAGS, source, tmp_path, form=form)
    found = [{(one["type"], one["start"], one["end"]) for one in row["entities"]} for row in rows]
    both = sum(len(a & b) for a, b in zip(found, gold, strict=True))
    f1 = 200 * both / (sum(map(len, found)) + sum(map(len, gold)))
    assert 0 < f1 < 100
    assert evaluate_folder(models / TAGS, files=[test], bootstrap_samples=0)["score"] == pytest.approx(f1)
    for row, words in zip(rows, sentences, strict=True):
        assert row["tokens"] == words and row["splitting"] == ("bistil" if form == "text" else "given")
        assert [row["text"][start:end] for start, end in row["offsets"]] == words
        assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row["entities"])


@pytest.mark.parametrize(
    ("case", "kind", "name"),
    [("ner", TAGS, "ner.conll"), ("pos", "pos", "pos.conllu"), ("trees", TREES, "trees.conllu")],
)
def test_labelled_files_come_back_as_evaluate_writes_them(models, tmp_path, case, kind, name):
    """Byte for byte: given words, comments and other columns stay."""
    text = CASES[case][2]
    if case == "trees":
        text = text.replace("obl:arg", "obl").replace("\tNOUN\t", "\tNOUN\tN\t").replace("\tN\t_\t_\t", "\tN\t_\t")
    source = write(tmp_path / name, text)
    options = {"label_map": {"NOUN": "NOUN"}, "bootstrap_samples": 0}
    evaluate_folder(models / kind, files=[source], predictions=tmp_path / "wanted", **options)
    got = predicted(models, kind, source, tmp_path, format=None)
    assert got == (tmp_path / "wanted").read_text() and got != text


def test_accuracy_of_labels_is_that_of_evaluate(models, tmp_path):
    rows = [{"text": text, "label": str(i % 3)} for i, text in enumerate(TEXTS)]
    source = write(tmp_path / "texts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    got = predicted(models, LABEL, source, tmp_path)
    right = [row["label"] == found["label"] for row, found in zip(rows, got, strict=True)]
    score = evaluate_folder(models / LABEL, files=[source], bootstrap_samples=0)["score"]
    assert 100 * np.mean(right) == pytest.approx(score) and 0 < score < 100
    pairs = write(tmp_path / "pairs.tsv", PAIRS)
    evaluate_folder(models / LABEL, files=[pairs], predictions=tmp_path / "wanted.tsv", bootstrap_samples=0)
    table = [
        line.split("\t") for line in predicted(models, LABEL, pairs, tmp_path, "pairs.out", format=None).splitlines()
    ]
    assert table[0] == ["premise", "hypothesis", "label", "confidence"]
    assert ["\t".join(row[:3]) for row in table] == (tmp_path / "wanted.tsv").read_text().splitlines()


def test_tables_of_commas_come_back_as_evaluate_writes_them(models, tmp_path):
    """A text with a comma, one with quotes over two lines, a blank line; semicolons, as some spreadsheets write."""
    rows = [[TEXTS[0], "0"], [f"{TEXTS[1]}, na '{TEXTS[2]}'", "1"], [f'"{TEXTS[3]}"\n{TEXTS[4]}', "2"]]
    for name, delimiter in (("a.csv", ","), ("b.csv", ";")):
        with (tmp_path / name).open("w", newline="") as stream:
            csv.writer(stream, delimiter=delimiter).writerows([["text", "label"], *rows[:2], [], *rows[2:]])
        source, wanted = tmp_path / name, tmp_path / f"wanted {name}"
        evaluate_folder(models / LABEL, files=[source], predictions=wanted, bootstrap_samples=0)
        got = predicted(models, LABEL, source, tmp_path, f"out {name}", format=None)
        table = list(csv.reader(io.StringIO(got)))
        assert table[0] == ["text", "label", "confidence"] and [row[0] for row in table[1:]] == [row[0] for row in rows]
        with wanted.open(newline="") as stream:
            assert [row[:2] for row in table] == list(csv.reader(stream))
    records = predicted(models, LABEL, tmp_path / "a.csv", tmp_path, "a.jsonl")
    assert [row["text"] for row in records] == [row[0] for row in rows]
    tabs = predicted(models, LABEL, tmp_path / "a.csv", tmp_path, "a.tsv", format="tsv").splitlines()
    assert len(tabs) == 4 and tabs[3].startswith(" ".join(rows[2][0].split("\n")) + "\t")


def test_labels_of_a_text_are_those_of_evaluate(models, tmp_path):
    text = "text\tlabels\n" + "".join(f"{one}\t{'anger|joy' if i % 2 else 'fear'}\n" for i, one in enumerate(TEXTS))
    source = write(tmp_path / "a.tsv", text)
    evaluate_folder(models / LABELS_OF, files=[source], predictions=tmp_path / "wanted.tsv", bootstrap_samples=0)
    wanted = (tmp_path / "wanted.tsv").read_text().splitlines()
    got = predicted(models, LABELS_OF, source, tmp_path, format=None).splitlines()
    assert [line.rpartition("\t")[0] for line in got] == wanted and got[0].endswith("\tconfidences")
    assert len({line.split("\t")[1] for line in wanted[1:]}) > 1


def test_answers_are_those_of_evaluate(models, tmp_path):
    squad = json.loads(CASES["questions"][2])
    source = write(tmp_path / "squad.json", json.dumps(squad))
    asked = [(item, part["context"]) for one in squad["data"] for part in one["paragraphs"] for item in part["qas"]]
    rows = [{"id": q["id"], "question": q["question"], "context": context} for q, context in asked]
    flat = write(tmp_path / "flat.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    model = bistil.load(models / ANSWERS, max_length=64)
    predict_file(model, flat, tmp_path / "out.jsonl", wanted=bistil.prediction.Wanted(n_best=3))
    found = lines_of(tmp_path / "out.jsonl")
    score = evaluate_folder(models / ANSWERS, files=[source], max_length=64, predictions=tmp_path / "p.json")["score"]
    wanted = json.loads((tmp_path / "p.json").read_text())
    assert {row["id"]: row["answer"] or "" for row in found} == wanted
    f1 = [
        max(token_f1(row["answer"], a["text"]) for a in q["answers"]) for row, (q, _) in zip(found, asked, strict=True)
    ]
    assert 100 * np.mean(f1) == pytest.approx(score)
    for row, (_, context) in zip(found, asked, strict=True):
        assert len(row["best"]) == 3 and row["best"][0]["answer"] == row["answer"]
        assert all(context[one["start"] : one["end"]] == one["answer"] for one in row["best"])
        confidences = [one["confidence"] for one in row["best"]]
        assert confidences == sorted(confidences, reverse=True) and 0 < sum(confidences) <= 1


class Arrays:
    """An engine that gives arrays, as one for exported models would."""

    def __init__(self, engine):
        self.engine, self.labels, self.positions = engine, engine.labels, engine.positions

    def __call__(self, batch):
        return {name: value.numpy(force=True) for name, value in self.engine(batch).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_any_engine_s_arrays_are_decoded_alike(models, kind):
    model = bistil.load(models / kind, max_length=48)
    given = [(text, " ".join(TEXTS)) if kind == ANSWERS else text for text in [*TEXTS[:5], " ".join(TEXTS)]]
    wanted = model(given)
    model.engine = Arrays(model.engine)
    assert model(given) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_confidences_are_probabilities_of_the_model_s_own_logits(models, kind):
    """Against transformers' forward pass on the same text, unpadded."""
    model = bistil.load(models / kind)
    text = "Paka aliketi kwenye mkeka"
    if kind == ANSWERS:
        scores = torch.tensor([one.score for one in QuestionAnswerer(models / kind)("Nani?", text)])
        best = model(("Nani?", text), n_best=100)["best"]
        assert [one["confidence"] for one in best] == pytest.approx(scores.softmax(0).tolist(), abs=1e-4)
        return
    encoded = model.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        if kind == LABEL:
            shares = model.engine.model(**encoded).logits[0].softmax(-1)
            got = model(text, n_best=3)
            assert [one["confidence"] for one in got["best"]] == pytest.approx(
                sorted(shares.tolist(), reverse=True), abs=1e-4
            )
            assert got["confidence"] == got["best"][0]["confidence"]
            return
        if kind == LABELS_OF:
            shares = model.engine.model(**encoded).logits[0].sigmoid().tolist()
            known = dict(zip(LABELS[kind], shares, strict=True))
            got = model(text, threshold=0.0)
            assert got["labels"] == LABELS[kind] and got["confidences"] == pytest.approx(shares, abs=1e-4)
            assert model(text)["labels"] == [label for label, share in known.items() if share > 0.5]
            bound = round(sorted(shares)[1], 4) - 1e-3
            assert model(text, threshold=bound)["labels"] == [label for label, share in known.items() if share > bound]
            return
        firsts = [encoded.word_to_tokens(0, i).start for i in range(4)]
        ends = [encoded.word_to_tokens(0, i).end for i in range(4)]
        if kind == TAGS:
            shares = model.engine.model(**encoded).logits[0, firsts].softmax(-1)
            assert model(text)["confidences"] == pytest.approx(shares.max(-1).values.tolist(), abs=1e-4)
            return
        output = model.engine.model(**encoded, word_starts=torch.tensor([firsts]), word_ends=torch.tensor([ends]))
    arcs = output.logits[0].clone()
    for word in range(4):
        arcs[word, word + 1] = -torch.inf
    heads = arcs.softmax(-1)
    (sentence,) = model(text)["sentences"]
    for word, (head, confidence) in enumerate(zip(sentence["heads"], sentence["confidences"], strict=True)):
        assert 0 <= confidence <= float(heads[word, head]) + 1e-4


# --- the records, thresholds, several sentences


def test_one_input_or_many_text_or_words(models):
    tag = bistil.load(models / TAGS)
    one = tag(TEXTS[0])
    assert tag([TEXTS[0], TEXTS[1].split()]) == [one, tag([TEXTS[1].split()])[0]]
    assert tag([["New York", "ni", "mji"]])[0]["tokens"] == ["New York", "ni", "mji"]
    label = bistil.load(models / LABEL)
    assert label([("a river", "rain"), "a river"])[1] == label("a river")
    assert label(("a river", "rain"))["pair"] == "rain"
    for model, wrong in ((tag, [3]), (tag, [["a", ""]]), (label, [("a", "b", "c")]), (label, [3])):
        with pytest.raises(InputError, match="is expected, not"):
            model(wrong)
    with pytest.raises(InputError, match="a tuple of a question and its passage"):
        bistil.load(models / ANSWERS)("Who?")


def test_a_threshold_leaves_out_what_is_less_sure(models, tmp_path):
    tag = bistil.load(models / TAGS)
    every = [one for row in tag(TEXTS) for one in row["entities"]]
    bound = float(np.median([one["confidence"] for one in every]))
    kept = [one for row in tag(TEXTS, threshold=bound) for one in row["entities"]]
    assert kept == [one for one in every if one["confidence"] >= bound] and 0 < len(kept) < len(every)
    # In columns what is left out is outside; the rest reads back as the same spans.
    source = write(tmp_path / "t.txt", "".join(f"{text}\n" for text in TEXTS))
    wanted = bistil.prediction.Wanted(threshold=bound)
    predict_file(tag, source, tmp_path / "t.conll", wanted=wanted)
    task = get_task(TAGS)
    read = task.read([tmp_path / "t.conll"])
    from bistil.tasks.spans import spans

    assert sum(len(spans(one.tags, "iob2")) for one in read) == len(kept)
    label = bistil.load(models / LABEL)
    assert label(TEXTS[0], threshold=1.0)["label"] is None and label(TEXTS[0], threshold=0.0)["label"] is not None
    answer = bistil.load(models / ANSWERS)
    assert answer(("Who?", TEXTS[0]), threshold=1.0)["answer"] is None


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("pos", {"threshold": 0.5}, "threshold is 0.5, but token-classification has no use for it"),
        (TREES, {"threshold": 0.5}, "has no use for it"),
        (TREES, {"n_best": 2}, "n_best is 2, but dependency-parsing has no use for it"),
        (LABEL, {"sentences": "split"}, "has no use for it"),
        (LABEL, {"unanswerable": True}, "has no use for it"),
        (LABEL, {"threshold": 1.5}, "must be a probability"),
        (LABEL, {"threshold": float("nan")}, "must be a probability"),
        (LABEL, {"n_best": 0}, "must be at least 1"),
        (TREES, {"sentences": "none"}, "choose line or split"),
    ],
)
def test_what_a_task_has_no_use_for_is_refused(models, kind, wanted, message):
    with pytest.raises(InputError, match=message):
        bistil.load(models / kind)(TEXTS[0], **wanted)


def test_a_question_without_an_answer(models):
    answer = bistil.load(models / ANSWERS)
    both = [answer(("Who sat?", TEXTS[0]), unanswerable=one) for one in (False, True)]
    plain = answer.engine
    # The first token wins by far: there is no answer, where there may be none.

    def engine(batch):
        output = dict(plain(batch))
        for name in ("start_logits", "end_logits"):
            output[name] = output[name].clone()
            output[name][:, 0] += 50
        return output

    engine.labels, engine.positions = plain.labels, plain.positions
    answer.engine = engine
    assert answer(("Who sat?", TEXTS[0]))["answer"] == both[0]["answer"]
    none = answer(("Who sat?", TEXTS[0]), unanswerable=True, n_best=2)
    assert none["answer"] is none["start"] is None and none["confidence"] > 0.99
    assert none["best"][1]["answer"] == both[0]["answer"]


def test_sentences_of_a_line(models, tmp_path):
    text = 'Paka amelala. "Je, ameamka?" Hapana!'
    parse = bistil.load(models / TREES)
    assert [one["tokens"] for one in parse(text)["sentences"]] == [
        ["Paka", "amelala", "."],
        ['"', "Je", ",", "ameamka", "?", '"'],
        ["Hapana", "!"],
    ]
    (whole,) = parse(text, sentences="line")["sentences"]
    assert whole["tokens"] == split_words(text) and whole["heads"].count(0) == 1
    assert [text[start:end] for start, end in whole["offsets"]] == whole["tokens"]
    source = write(tmp_path / "t.txt", f"{text}\n\n{TEXTS[0]}\n")
    output = predicted(models, TREES, source, tmp_path, format=None)
    comments = [line for line in output.splitlines() if line.startswith("#")]
    assert comments == [
        "# words = split at spaces and around punctuation and ideographs",
        "# sent_id = 1.1", "# text = Paka amelala.",
        "# sent_id = 1.2", '# text = "Je, ameamka?"',
        "# sent_id = 1.3", "# text = Hapana!",
        "# sent_id = 3", f"# text = {TEXTS[0]}",
    ]  # fmt: skip
    # The text is there again: words, and spaces but where it says that there are none.
    rebuilt = []
    for block in output.strip().split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if not line.startswith("#")]
        rebuilt.append("".join(row[1] + ("" if row[9] == "SpaceAfter=No" else " ") for row in rows).rstrip())
    assert rebuilt == ["Paka amelala.", '"Je, ameamka?"', "Hapana!", TEXTS[0]]
    assert len(get_task(TREES).read([write(tmp_path / "again.conllu", output)])) == 4


@given(st.text(max_size=80) | st.sampled_from([*SENTENCES.values()]))
@settings(deadline=None, max_examples=300)
def test_words_and_sentences_cover_the_text(text):
    places = word_places(text)
    assert [text[start:end] for start, end in places] == split_words(text)
    for found in (places, sentence_places(text)):
        assert all(start < end for start, end in found)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))
        covered = {i for start, end in found for i in range(start, end)}
        assert all(i in covered or character.isspace() for i, character in enumerate(text))


def test_a_text_that_is_cut_brings_no_warning_of_what_it_would_do_uncut():
    tokenizer = tiny.tokenizer("bert")
    tokenizer.model_max_length = 8
    feature = encode_texts([(TEXTS[0] * 20, None)], tokenizer, 8)[0]
    assert feature["truncated"] and len(feature["input_ids"]) == 8
    # What it has warned of, or would have.
    assert not tokenizer.deprecation_warnings


@pytest.mark.parametrize("kind", KINDS)
def test_odd_lines_get_a_right_answer(models, tmp_path, kind):
    """Empty, blank, of one character, of control characters, of 5,000 words: one record a line, in order."""
    texts = [TEXTS[0], "", " \t ", "x", "\u200b", " ".join(f"w{i % 70}" for i in range(5000)), TEXTS[1]]
    lines = [f"Who?\t{text}" if kind == ANSWERS and text.strip() else text for text in texts]
    source = write(tmp_path / "odd.txt", "\n".join(lines))
    rows = predicted(models, kind, source, tmp_path, form="text")
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        if kind in (TAGS, TREES):
            parts = [row] if kind == TAGS else row["sentences"]
            assert [token for part in parts for token in part["tokens"]] == split_words(text)
            assert row["text"] == text
        else:
            said = row[{LABEL: "label", LABELS_OF: "labels", ANSWERS: "answer"}[kind]]
            assert text.strip() or not said
        if kind in (LABEL, LABELS_OF):
            assert row.get("truncated", False) == (len(text) > 5000)
    alone = bistil.load(models / kind)([("Who?", text) if kind == ANSWERS else text for text in TEXTS[:2]])
    for got, wanted in zip((rows[0], rows[-1]), alone, strict=True):
        for key in {"labels", "label", "answer", "offsets"} & wanted.keys():
            assert got[key] == wanted[key]


def test_a_sentence_too_long_for_a_parser_is_one_line(models, monkeypatch):
    from bistil.prediction import words

    monkeypatch.setattr(words, "LONGEST_SENTENCE", 20)
    with pytest.raises(InputError, match=r"the words: a sentence of 21 words; a parser takes 20: split it"):
        bistil.load(models / TREES)([["neno"] * 21])


# --- forms and formats


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_forms_by_name(models, tmp_path, packed):
    """The same words in every form give the same tags."""
    words = [text.split() for text in TEXTS[:4]]
    contents = {
        "a.conll": "".join("".join(f"{word}\n" for word in own) + "\n" for own in words),
        "a.conllu": "".join(
            "".join("\t".join([str(i), word, *["_"] * 8]) + "\n" for i, word in enumerate(own, 1)) + "\n"
            for own in words
        ),
        "a.jsonl": "".join(json.dumps({"id": i, "words": own}) + "\n" for i, own in enumerate(words)),
    }
    wanted = [row["labels"] for row in bistil.load(models / TAGS)(words)]
    for name, text in contents.items():
        path = tmp_path / f"{name}{packed}"
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
        rows = predicted(models, TAGS, path, tmp_path, f"{name}.out")
        assert [row["labels"] for row in rows] == wanted, name
        assert all(row["splitting"] == "given" for row in rows)
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    # Words alone get a second column.
    output = predicted(models, TAGS, tmp_path / f"a.conll{packed}", tmp_path, "b.out", format=None)
    assert output.splitlines()[0] == f"{words[0][0]} {wanted[0][0]}"


@pytest.mark.parametrize("chunk", [1024, 1])
def test_a_table_has_the_columns_of_the_first_row(models, tmp_path, monkeypatch, chunk):
    """Rows of JSON may have them in another order, or lack some."""
    monkeypatch.setattr(reading, "CHUNK", chunk)
    rows = [{"text": "a", "n": 1, "label": "x"}, {"n": 2, "label": "x", "text": "b"}, {"text": "c"}]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    header, *lines = predicted(models, LABEL, source, tmp_path, "a.tsv", format="tsv").splitlines()
    assert header == "text\tn\tlabel\tconfidence"
    assert [line.split("\t")[:2] for line in lines] == [["a", "1"], ["b", "2"], ["c", ""]]
    labels = bistil.load(models / LABEL).labels
    assert all(line.split("\t")[2] in labels and float(line.split("\t")[3]) for line in lines)
    asked = [{"question": "Who?", "context": "Juma.", "id": 1}, {"context": "Rais.", "question": "Who?", "more": 2}]
    source = write(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in asked))
    header, *lines = predicted(models, ANSWERS, source, tmp_path, "b.tsv", format="tsv").splitlines()
    assert header.startswith("id\tquestion\t") and [line.split("\t")[:2] for line in lines] == [
        ["1", "Who?"], ["", "Who?"]
    ]  # fmt: skip


def test_a_table_that_is_gone_on_with_has_the_columns_of_the_first_row(models, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 1)
    source = write(tmp_path / "a.jsonl", '{"text": "a", "n": 1}\n{"n": 2, "text": "b"}\n{"n": 3, "text": "c"}\n')
    with monkeypatch.context() as stopped:
        add = files._Growing.add
        stopped.setattr(files._Growing, "add", lambda sink, text: add(sink, text) if sink.chunks < 1 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predicted(models, LABEL, source, tmp_path, "a.tsv", format="tsv")
    text = predicted(models, LABEL, source, tmp_path, "a.tsv", format="tsv")
    assert [line.split("\t")[:2] for line in text.splitlines()] == [["text", "n"], ["a", "1"], ["b", "2"], ["c", "3"]]


def test_repeated_columns_are_read_as_for_evaluate(models, tmp_path):
    """The second one hides the first no more."""
    source = write(tmp_path / "a.tsv", f"text\ttext\n{TEXTS[0]}\t{TEXTS[1]}\n")
    (row,) = predicted(models, LABEL, source, tmp_path)
    assert (row["text"], row["text.2"]) == (TEXTS[0], TEXTS[1])
    assert row["confidence"] == bistil.load(models / LABEL)(TEXTS[0])["confidence"]


def test_running_text_in_rows(models, tmp_path):
    source = write(tmp_path / "a.jsonl", json.dumps({"n": 7, "text": TEXTS[0]}) + "\n")
    (row,) = predicted(models, TAGS, source, tmp_path)
    assert row["n"] == 7 and row["splitting"] == "bistil" and row["tokens"] == split_words(TEXTS[0])
    source = write(tmp_path / "b.jsonl", json.dumps({"body": TEXTS[0], "text": "x"}) + "\n")
    (row,) = predicted(models, LABEL, source, tmp_path, "b.out", columns={"text": "body"})
    assert row["confidence"] == bistil.load(models / LABEL)(TEXTS[0])["confidence"]


def test_layouts_of_columns_are_found_as_for_evaluate(models, tmp_path):
    """Numbered words, comments, a token that is a hash, and tags that are not filled in."""
    text = "# sent_id = 1\n1\tRais\tO\n2\t#\tO\n3\tJuma\tB-PER\n\n1\tMoja\tO\n"
    (tmp_path / "x").mkdir()
    got = predicted(models, TAGS, write(tmp_path / "a.conll", text), tmp_path, format=None)
    evaluate_folder(models / TAGS, files=[tmp_path / "a.conll"], predictions=tmp_path / "wanted", bootstrap_samples=0)
    assert got == (tmp_path / "wanted").read_text()
    rows = predicted(models, TAGS, write(tmp_path / "b.conll", "Rais _\nJuma _\n"), tmp_path, "b.out")
    assert rows[0]["tokens"] == ["Rais", "Juma"]


@pytest.mark.parametrize(
    ("kind", "name", "text", "options", "message"),
    [
        (TAGS, "a.txt", '{"text": "a"}\n' * 6, {}, "holds JSON lines, and plain text is expected.*--input"),
        (TAGS, "a.txt", "a O\n" * 6, {}, "holds words with a tag each.*--input"),
        (TAGS, "a.jsonl", "{\n", {}, r"a\.jsonl, line 1: not valid JSON"),
        (TAGS, "a.jsonl", "[1]\n", {}, r"line 1: a JSON object is expected"),
        (TAGS, "a.jsonl", '{"x": 1}\n', {}, r"no column holds a text .*found: x"),
        (TAGS, "a.jsonl", '{"tokens": [1]}\n', {}, "'tokens' must be a list of non-empty strings"),
        (LABEL, "a.jsonl", '{"text": 3}\n', {}, "a text is expected in 'text'; it is 3"),
        (LABEL, "a.tsv", "text\tlabel\na\tb\tc\n", {}, "line 2: 3 tab-separated fields where the header names 2"),
        (LABEL, "a.csv", "text,label\na,b,c\n", {}, "line 2: 3 comma-separated fields where the header names 2"),
        (LABEL, "a.csv", f'text\n"{"a" * 200_000}"\n', {}, "line 2: not comma-separated values"),
        (TAGS, "a.csv", "text\nx\n", {}, r"a\.csv is a table by its name .*--input"),
        (LABEL, "a.json", '[{"text": "a"}]', {}, r"a\.json, line 1: a JSON object is expected"),
        (LABEL, "a.json", "[\n", {}, r"a\.json, line 1: .*one object per line"),
        (
            LABEL,
            "a.jsonl",
            '{"text": "a"}\n{"text": "a", "n": 1}\n',
            {"format": "tsv"},
            "line 2: the first row has no 'n'",
        ),
        (LABEL, "a.txt", "x\n", {"form": "conll"}, "reads no conll: choose with --input among text, jsonl, tsv, csv"),
        (LABEL, "a.txt", "x\n", {"format": "conllu"}, "writes no conllu: choose with --format among jsonl, tsv, csv"),
        (ANSWERS, "a.txt", "Who?\n", {}, "line 1: a question, a tab and its passage are expected"),
        (ANSWERS, "a.jsonl", '{"question": "Who?"}\n', {}, "a text is expected in 'context'; found: question"),
        (TREES, "a.conllu", "1\ta\n", {}, r"a\.conllu, line 1: 2 tab-separated columns; CoNLL-U has 10"),
        (TAGS, "a.conll", "a O\nb O\nc\n", {}, "line 3: 1 columns where 2 are expected"),
        (TAGS, "a.txt", b"a\n\xff\n", {}, "line 2: not UTF-8"),
        (TAGS, "a.txt.gz", b"no gzip", {}, "is not a whole .gz file"),
    ],
)
def test_bad_inputs_are_one_line_and_leave_nothing(models, tmp_path, kind, name, text, options, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        predict_file(bistil.load(models / kind), tmp_path / name, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


# --- what is no model


def test_what_is_no_model_is_one_line(models, tmp_path, command_line):
    base = AutoModel.from_pretrained(models / "encoder")
    random_sft(base, seed=1).save(tmp_path / "sft")
    shutil.copytree(models / TAGS, tmp_path / "code")
    config = json.loads((tmp_path / "code/config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}}
    (tmp_path / "code/config.json").write_text(json.dumps(config))
    (tmp_path / "code/mine.py").write_text("raise SystemExit('was run')")
    shutil.copytree(models / TAGS, tmp_path / "bare")
    (tmp_path / "bare/model.safetensors").unlink()
    source = write(tmp_path / "a.txt", "a\n")
    for model, message in {
        tmp_path / "sft": "holds a sparse fine-tuning, not a model: merge it into its base first",
        tmp_path / "code": "is defined by code of its own",
        tmp_path / "bare": "cannot load",
        models / "encoder": "is an encoder without a head, not for a task",
        tmp_path / "none": "no such folder",
        source: "is a file",
    }.items():
        code, out, said = command_line("predict", model, source, "--output", tmp_path / "out")
        assert code == 2 and not out and said.count("\n") == 1 and message in said, said
    code, out, said = command_line("predict", models / TAGS, tmp_path / "none.txt")
    assert code == 2 and not out and f"cannot read {tmp_path}/none.txt" in said and said.count("\n") == 1
    for option, message in {
        "--device=cuda:9": "device is 'cuda:9'",
        "--device=nonsense": "device is 'nonsense'",
        "--max-length=141": "has 140 positions",
        "--task=nonsense": "there is no task",
        "--task=question-answering": "has no head for question-answering",
        "--threads=0": "Invalid value for '--threads'",
    }.items():
        code, out, said = command_line("predict", models / TAGS, source, option)
        assert code == 2 and not out and message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_transformers_own_classes_are_used_where_a_folder_has_code_too(models, tmp_path):
    """As many folders of the hub have: the configuration's type is one that transformers knows."""
    shutil.copytree(models / TAGS, tmp_path / "code")
    config = json.loads((tmp_path / "code/config.json").read_text())
    (tmp_path / "code/config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "mine.MyConfig"}}))
    (tmp_path / "code/mine.py").write_text("raise SystemExit('was run')")
    assert bistil.load(tmp_path / "code")(TEXTS[0]) == bistil.load(models / TAGS)(TEXTS[0])


# --- streams, and what is resumed


def test_the_command_writes_a_stream_or_a_file_with_its_record(models, tmp_path, command_line, monkeypatch):
    source = write(tmp_path / "t.txt", "".join(f"{text}\n" for text in TEXTS))
    code, out, said = command_line("predict", models / TAGS, source, "--format", "jsonl")
    assert code == 0 and len(out.splitlines()) == len(TEXTS)
    assert "words are split at spaces and around punctuation and ideographs" in said
    arguments = [
        "predict",
        models / TAGS,
        source,
        "--format",
        "jsonl",
        "-o",
        tmp_path / "o",
        "--record",
        tmp_path / "r",
    ]
    code, shown, _ = command_line(*arguments)
    assert (
        code == 0 and shown.startswith(f"{tmp_path / 'o'}: {len(TEXTS)} inputs") and (tmp_path / "o").read_text() == out
    )
    record = json.loads((tmp_path / "r").read_text())
    assert record["inputs"] == len(TEXTS) and record["splitting"] == "bistil" and record["task"] == TAGS
    assert record["digest"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert command_line(*arguments)[0] == 2
    assert command_line(*arguments, "--force")[0] == 0
    for more in (["-"], ["-o", tmp_path / "p"]):
        with source.open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            code, shown, _ = command_line("predict", models / TAGS, *more, "--format", "jsonl")
        assert code == 0 and (shown == out or "-o" in more)
    assert (tmp_path / "p").read_text() == out
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("is_typed", [True, False])
def test_who_types_is_told_how_to_end(models, command_line, monkeypatch, is_typed):
    typed = io.TextIOWrapper(io.BytesIO(f"{TEXTS[0]}\n".encode()))
    typed.isatty = lambda: is_typed
    monkeypatch.setattr(sys, "stdin", typed)
    code, out, said = command_line("predict", models / TAGS, "--format", "jsonl")
    assert code == 0 and json.loads(out)["text"] == TEXTS[0]
    assert ("Ctrl-D ends it" in said) == is_typed


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_lines_are_answered_as_they_come_until_nobody_listens(models):
    """The second line is written after the first was answered; then the reader goes away."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "bistil", "predict", str(models / TAGS), "--format", "jsonl"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        for text in TEXTS[:3]:
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text
        process.stdout.close()
        process.stdin.write(f"{TEXTS[3]}\n".encode())
        process.stdin.close()
        said = process.stderr.read().decode()
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE and "Traceback" not in said, said


def numbered(path, count=300):
    """Lines that are all different."""
    return write(path, "".join(f"{i} {TEXTS[i % len(TEXTS)]}\n" for i in range(count)))


def child(action):
    """Run `action` in a child process; returns the signal or exit code that ended it."""
    number = os.fork()
    if number:
        status = os.waitpid(number, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    try:
        action()
        os._exit(0)
    except BaseException:
        os._exit(1)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


# Where the call is killed: each is a place in the writing of a chunk or of the whole.
POINTS = (
    "in the model",
    "half a chunk written",
    "before the journal",
    "in the journal",
    "after the journal",
    "before the end",
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("after", [0, 3])
def test_killed_and_resumed_no_line_is_lost_or_doubled(models, tmp_path, monkeypatch, point, after):
    monkeypatch.setattr(reading, "CHUNK", 50)
    source, output = numbered(tmp_path / "in.txt"), tmp_path / "out.jsonl"
    model = bistil.load(models / TAGS)
    predict_file(model, source, tmp_path / "whole.jsonl", format="jsonl")
    add, calls = files._Growing.add, []

    def adding(self, text):
        """The chunk in which the kill comes."""
        calls.append(1)
        if len(calls) <= after:
            add(self, text)
            return
        if point == "half a chunk written":
            self.stream.write(text[: len(text) // 2])
            self.stream.flush()
            die()
        if point == "before the journal":
            files.write_sealed = die
        if point == "in the journal":
            os.replace = die
        add(self, text)
        if point == "after the journal":
            die()

    def killed():
        if point == "in the model":
            said = model.said
            model.said = lambda inputs, *a, **o: die() if inputs[0].line > 50 * after else said(inputs, *a, **o)
        elif point == "before the end":
            # The last chunk is written, and nothing has taken the output's place.
            Progress.__exit__ = lambda *_: setattr(os, "replace", die)
        else:
            files._Growing.add = adding
        predict_file(model, source, output, format="jsonl")

    assert child(killed) == -signal.SIGKILL
    assert not output.exists() and (tmp_path / ".out.jsonl.work").is_dir()
    predict_file(model, source, output, format="jsonl")
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [row["tokens"][0] for row in lines_of(output)] == [str(i) for i in range(300)]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_when_all_is_written(models, tmp_path):
    """What is left beside the whole output does no harm to a later call for it."""
    source, output = numbered(tmp_path / "in.txt"), tmp_path / "out.jsonl"
    model = bistil.load(models / TAGS)

    def killed():
        files.discard_work = die
        predict_file(model, source, output, format="jsonl")

    assert child(killed) == -signal.SIGKILL
    whole = output.read_bytes()
    assert len(lines_of(output)) == 300
    output.unlink()
    predict_file(model, source, output, format="jsonl")
    assert output.read_bytes() == whole and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_was_done_is_not_done_again(models, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 50)
    source, output = numbered(tmp_path / "in.txt"), tmp_path / "out.jsonl"
    model = bistil.load(models / TAGS)
    asked = []
    said = model.said

    def counted(inputs, *arguments, **options):
        asked.append(len(inputs))
        if len(asked) == 5:
            die()
        return said(inputs, *arguments, **options)

    model.said = counted
    assert child(lambda: predict_file(model, source, output, format="jsonl")) == -signal.SIGKILL
    predict_file(model, source, output, format="jsonl")
    assert asked == [50, 50]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_another_call_left_is_not_gone_on_with(models, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 50)
    source, output = numbered(tmp_path / "in.txt"), tmp_path / "out.jsonl"
    model, other = bistil.load(models / TAGS), bistil.load(models / "pos")

    def begun():
        said = model.said
        model.said = lambda inputs, *a, **o: said(inputs, *a, **o) if inputs[0].line < 100 else die()
        predict_file(model, source, output, format="jsonl")

    assert child(begun) == -signal.SIGKILL
    work = tmp_path / ".out.jsonl.work"
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    changed = numbered(tmp_path / "changed.txt", 301)
    for arguments, message in (
        ((model, changed, output), "for another input"),
        ((other, source, output), "for another model"),
    ):
        with pytest.raises(InputError, match=f"holds the beginning of out.jsonl {message}: --no-resume starts anew"):
            predict_file(*arguments, format="jsonl")
    with pytest.raises(InputError, match="for another settings"):
        predict_file(model, source, output, format="jsonl", batch_size=4)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before
    (work / "predictions").write_bytes(b"x")
    with pytest.raises(InputError, match="for a file that was changed since"):
        predict_file(model, source, output, format="jsonl")
    (work / "journal.json").write_text("{}x")
    with pytest.raises(ArtefactError, match="journal"):
        predict_file(model, source, output, format="jsonl")
    predict_file(model, source, output, format="jsonl", resume=False)
    assert len(lines_of(output)) == 300 and not work.exists()
    # Work of another command for an output of that name stays.
    (tmp_path / ".b.work").mkdir()
    write(tmp_path / ".b.work/bistil.json", json.dumps({"kind": "work", "versions": {"bistil": "0.2.0"}}))
    write(tmp_path / ".b.work/checkpoint", "hours")
    with pytest.raises(InputError, match="holds the work of another command"):
        predict_file(model, source, tmp_path / "b")
    assert (tmp_path / ".b.work/checkpoint").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_input_that_changed_far_behind_its_beginning_is_another(models, tmp_path, monkeypatch):
    """It has the same size, and the same first megabytes."""
    monkeypatch.setattr(reading, "CHUNK", 50)
    source, output = numbered(tmp_path / "in.txt", 60), tmp_path / "out.jsonl"
    with source.open("a") as stream:
        stream.write("a" * (1 << 22))
    model = bistil.load(models / TAGS)

    def begun():
        said = model.said
        model.said = lambda inputs, *a, **o: said(inputs, *a, **o) if inputs[0].line == 1 else die()
        predict_file(model, source, output, format="jsonl")

    assert child(begun) == -signal.SIGKILL
    with source.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"b")
    with pytest.raises(InputError, match="for another input: --no-resume starts anew"):
        predict_file(model, source, output, format="jsonl")


def test_one_call_at_a_time(models, tmp_path):
    from filelock import FileLock

    from bistil.runtime.artefacts import open_work

    source = numbered(tmp_path / "in.txt", 10)
    open_work(tmp_path / ".out.work")
    with (
        FileLock(tmp_path / ".out.work/lock"),
        pytest.raises(InputError, match="another call is writing the same output"),
    ):
        predict_file(bistil.load(models / TAGS), source, tmp_path / "out")
    predict_file(bistil.load(models / TAGS), source, tmp_path / "out")


def test_a_full_disk_is_one_line_and_gone_on_with(models, tmp_path, command_line, monkeypatch):
    import resource

    monkeypatch.setattr(reading, "CHUNK", 50)
    source, output = numbered(tmp_path / "in.txt"), tmp_path / "out.jsonl"
    arguments = ["predict", models / TAGS, source, "--format", "jsonl", "--output", output]
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, limits[1]))
    try:
        code, _, said = command_line(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2 and "make room, and the same command goes on" in said.splitlines()[-1] and not output.exists()
    code, _, said = command_line(*arguments)
    assert code == 0 and "is gone on with" in said
    assert [row["tokens"][0] for row in lines_of(output)] == [str(i) for i in range(300)]


@pytest.mark.parametrize("form", ["text", "conll", "jsonl"])
def test_a_file_is_never_in_memory_as_a_whole(tmp_path, form):
    """However many lines there are, and where one is long; none is lost."""
    lines = [f"w{i}" if i != 700 else "long " * 200_000 for i in range(5000)]
    text = {
        "text": "".join(f"{line}\n" for line in lines),
        "conll": "".join("".join(f"{word}\n" for word in line.split()) + "\n" for line in lines),
        "jsonl": "".join(json.dumps({"text": line}) + "\n" for line in lines),
    }[form]
    source = Lines(write(tmp_path / "a", text))
    found = list(chunks(read_inputs(source, form, texts="words", columns={}), source))
    assert [one.text.split()[0] for chunk in found for one in chunk] == [line.split()[0] for line in lines]
    assert max(map(len, found)) <= 1024 and len(found) > 4
    assert all(sum(len(one.text) for one in chunk[:-1]) < reading.CHUNK_CHARACTERS for chunk in found)


def test_an_answer_of_the_task_s_own_type_is_still_what_predict_gives(models):
    task = get_task(ANSWERS)
    model = task.build_model(models / ANSWERS, None)
    from bistil.tasks.question_answering import Question

    asked = [Question(file="", line=0, id="", text="Who?", context=TEXTS[0], answers=[("cat", 4)])]
    tokenizer = tiny.tokenizer()
    (answers,) = task.predict(model, tokenizer, asked, task.encode(asked, tokenizer, 64))
    assert answers and all(isinstance(one, Answer) for one in answers)
