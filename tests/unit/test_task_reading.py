"""Labelled files, good and bad: every problem is one line with file and line number."""

import gzip
import json
import tomllib

import pytest

from bistil.errors import InputError, RecipeError
from bistil.tasks import KINDS, get_task
from bistil.tasks.parsing.conllu import heads, read_conllu, write_sentence
from bistil.tasks.reading import Reading, require_known_labels


def row(number, form, head="0", relation="root", upos="NOUN"):
    return "\t".join([str(number), form, "_", upos, "_", "_", str(head), relation, "_", "_"])


def read(kind, tmp_path, name, text, **options):
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return get_task(kind).read([path], **options)


def squad(context="Nairobi is big.", answer="Nairobi", start=0):
    question = {"id": "q1", "question": "What is big?", "answers": [{"text": answer, "answer_start": start}]}
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [question]}]}]}, indent=1)


TAGS, TREES, TEXTS, ANSWERS = (
    "token-classification",
    "dependency-parsing",
    "sequence-classification",
    "question-answering",
)
BAD = {
    "ragged columns": (TAGS, "a.txt", "The x O\ncat O\n", "line 2: 2 columns where the lines before have 3"),
    "a word without label": (TAGS, "a.txt", "The O\ncat\n", "line 2: a word and its label are expected"),
    "a label without word": (TAGS, "a.txt", "The O\n O\n", "line 2: a word and its label are expected"),
    "empty file": (TAGS, "a.txt", "\n\n", "the files are empty"),
    "not UTF-8": (TAGS, "a.txt", b"The O\n\n\xff O\n", "line 3: not UTF-8"),
    "uneven lists": (TAGS, "a.jsonl", '{"tokens": ["a"], "labels": []}\n', "line 1: 1 tokens and 0 labels"),
    "no lists": (TAGS, "a.jsonl", '{"text": "a", "label": "b"}\n', "line 1: .* is expected; found: text, label"),
    "empty token": (TAGS, "a.jsonl", '{"tokens": [""], "labels": ["O"]}\n', "line 1: 'tokens' must be a list"),
    "untagged word": (TAGS, "a.conllu", row(1, "a", upos="_") + "\n", "line 1: the word has no UPOS"),
    "ten columns": (TREES, "a.conllu", "# x\n" + row(1, "a") + "\n2\tb\n\n", "line 3: 2 tab-separated columns"),
    "cycle": (
        TREES,
        "a.conllu",
        "\n".join([row(1, "a"), row(2, "b", 3), row(3, "c", 2)]) + "\n\n",
        "line 2: the heads form a cycle",
    ),
    "self-loop": (TREES, "a.conllu", "\n".join([row(1, "a"), row(2, "b", 2)]) + "\n", "line 2: the heads form a cycle"),
    "two roots": (TREES, "a.conllu", row(1, "a") + "\n" + row(2, "b") + "\n\n", "line 2: the sentence has 2 roots"),
    "no root": (TREES, "a.conllu", row(1, "a", 2) + "\n" + row(2, "b", 1) + "\n\n", "line 1: the sentence has 0 roots"),
    "head out of range": (TREES, "a.conllu", row(1, "a", 7) + "\n\n", "line 1: head '7' is not a number from 0 to 1"),
    "no head": (TREES, "a.conllu", row(1, "a", "_") + "\n\n", "line 1: head '_' is not a number"),
    "word ids": (TREES, "a.conllu", row(1, "a") + "\n" + row(3, "b", 1) + "\n\n", "line 2: word id 3 where 2"),
    "strange id": (TREES, "a.conllu", row("x", "a") + "\n\n", "line 1: 'x' is no word id"),
    "multiword range": (
        TREES,
        "a.conllu",
        row("1-3", "ab", "_", "_") + "\n" + row(1, "a") + "\n\n",
        "line 1: multiword",
    ),
    "empty sentence": (TREES, "a.conllu", row(1, "a") + "\n\n# text =\n\n", "line 3: a sentence without words"),
    "ragged table": (
        TEXTS,
        "a.tsv",
        "text\tlabel\na\tx\nb\n",
        "line 3: 1 tab-separated fields where the header names 2",
    ),
    "no label column": (TEXTS, "a.tsv", "text\ttopic\na\tx\n", "line 2: no column holds a label"),
    "no text column": (TEXTS, "a.jsonl", '{"label": "x"}\n', r"line 1: no column holds a text"),
    "empty label": (TEXTS, "a.jsonl", '{"text": "a", "label": ""}\n', "line 1: the label is ''"),
    "text is a number": (TEXTS, "a.jsonl", '{"text": 3, "label": "x"}\n', "line 1: 'text' is 3"),
    "broken JSON": (TEXTS, "a.jsonl", '{"text": "a", "label": "x"}\n{"text"\n', "line 2: not valid JSON"),
    "JSON list": (TEXTS, "a.jsonl", "[1]\n", "line 1: a JSON object is expected"),
    "unknown format": (TEXTS, "a.xls", "text,label\n", "unknown format"),
    "header only": (TEXTS, "a.tsv", "text\tlabel\n", "the files are empty"),
    "answer elsewhere": (
        ANSWERS,
        "a.json",
        squad("Nairobi or Nairobi?", start=3),
        "line 9: .*'Nairobi' is not in its context.*stands there 2 times",
    ),
    "answer nowhere": (ANSWERS, "a.json", squad(answer="Rome"), "line 9: .*'Rome' is not in its context.*nowhere"),
    "answer without start": (
        ANSWERS,
        "a.json",
        squad().replace('"answer_start": 0', '"start": 0'),
        "question 'q1' is incomplete: 'answer_start'",
    ),
    "context is no text": (ANSWERS, "a.json", squad().replace('"Nairobi is big."', "3"), "line 9: .*must be texts"),
    "not SQuAD": (ANSWERS, "a.json", '{"rows": []}', "not in SQuAD's format"),
    "no JSON": (ANSWERS, "a.json", "{", "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_where(case, tmp_path):
    kind, name, text, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        read(kind, tmp_path, name, text, how=Reading(strict=True))
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_file_and_no_file(kind, tmp_path):
    task = get_task(kind)
    with pytest.raises(InputError, match="cannot read"):
        task.read([tmp_path / "none.jsonl" if kind != TREES else tmp_path / "none.conllu"])
    with pytest.raises(InputError, match="no file"):
        task.read([])


@pytest.mark.parametrize(
    ("kind", "how", "what"),
    [
        (TEXTS, {"scheme": "iob2"}, "scheme is 'iob2', but sequence-classification has no use for it"),
        (TAGS, {"separator": ";"}, "separator is ';', but token-classification has no use for it"),
        (ANSWERS, {"label_map": {"a": "b"}}, "label_map renames labels, and question-answering has none"),
    ],
)
def test_what_a_task_has_no_use_for(kind, how, what, tmp_path):
    with pytest.raises(InputError, match=what):
        get_task(kind).read([tmp_path / "any.jsonl"], how=Reading(**how))


def test_unknown_kind():
    with pytest.raises(RecipeError, match="token-classification"):
        get_task("tagging")


@pytest.mark.parametrize(
    ("kind", "name", "train", "test", "line", "other"),
    [
        (TAGS, "a.txt", "a B-PER\nb O\n", "a O\n\nb DATE\n", 3, "O"),
        (TAGS, "a.jsonl", '{"tokens": ["a"], "labels": ["O"]}\n', '\n{"tokens": ["a"], "labels": ["X"]}\n', 2, "O"),
        (TEXTS, "a.tsv", "text\tlabel\na\tsports\n", "text\tlabel\na\tsports\nb\tsport\n", 3, "sports"),
        (TREES, "a.conllu", row(1, "a") + "\n\n", "# c\n" + row(1, "a", 0, "wurzel") + "\n\n", 2, "[a-z]+"),
    ],
)
def test_label_that_training_lacks(kind, name, train, test, line, other, tmp_path):
    task = get_task(kind)
    labels = task.labels(read(kind, tmp_path, name, train))
    # What a label map names is wanted, whether the inventory of relations has it or not.
    examples = read(kind, tmp_path, name, test, label_map={"-": "wurzel"})
    with pytest.raises(InputError, match=f"line {line}: the label .* label map, such as [^ ]+={other}, or"):
        task.check_labels(examples, labels)


def test_label_map_renames_on_reading(tmp_path):
    (example,) = read(TAGS, tmp_path, "a.txt", "June B-DATE\n5 I-DATE\n", label_map={"B-DATE": "O", "I-DATE": "O"})
    assert example.tags == ["O", "O"]


def test_columns_without_final_newline_with_windows_line_ends_and_odd_words(tmp_path):
    text = "-DOCSTART- -X- O\n\na\u2028b x O\r\n\u0085 x B-PER\r\n\r\n\r\n\x01 x I-PER"
    one, two = read(TAGS, tmp_path, "a.txt", text)
    assert one.words == ["a\u2028b", "\u0085"] and one.tags == ["O", "B-PER"] and one.lines == [3, 4]
    assert two.words == ["\x01"] and two.line == 7


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_texts_and_pairs(name, tmp_path):
    text = '{"text": "a", "label": 1}\n\n{"premise": "b", "hypothesis": "", "label": "x", "more": 2}'
    one, two = read(TEXTS, tmp_path, name, text)
    assert (one.text, one.pair, one.label) == ("a", None, "1")
    assert (two.text, two.pair, two.label, two.line) == ("b", "", "x", 3)


def test_published_table_layouts(tmp_path):
    xnli = 'language\tgold_label\tsentence1\tsentence2\nsw\tneutral\t"a\tb\n'
    (example,) = read(TEXTS, tmp_path, "a.tsv", xnli)
    assert (example.text, example.pair, example.label) == ('"a', "b", "neutral")


CONLLU = "\n".join(
    [
        "# sent_id = 1",
        "# text = vámonos al mar",
        "1-2\tvámonos\t" + "\t".join("_" * 8),
        row(1, "vamos", 0, "root", "VERB"),
        row(2, "nos", 1, "obj", "PRON").removesuffix("_\t_") + "1:obj\tX=1",
        "2.1\tempty\t" + "\t".join("_" * 8),
        "3-4\tal\t" + "\t".join("_" * 8),
        row(3, "a", 5, "case", "ADP"),
        row(4, "el", 5, "det", "DET"),
        row(5, "mar", 1, "obl:arg"),
        "",
        "",
    ]
)


def test_conllu_keeps_every_line(tmp_path):
    (tmp_path / "a.conllu").write_text(CONLLU, encoding="utf-8")
    (sentence,) = read_conllu(tmp_path / "a.conllu")
    assert sentence.column(1) == ["vamos", "nos", "a", "el", "mar"]
    assert heads(sentence) == [0, 1, 5, 5, 1]
    assert write_sentence(sentence, columns={}) == CONLLU
    written = write_sentence(sentence, columns={6: ["5", "1", "5", "5", "0"]})
    assert "1\tvamos\t_\tVERB\t_\t_\t5\troot\t_\t_" in written and "1-2\tvámonos" in written
    assert "1:obj" not in written, "the enhanced graph of the old tree must not stand beside the new one"


def test_conllu_without_final_newline(tmp_path):
    examples = read(TREES, tmp_path, "a.conllu", CONLLU.rstrip("\n"))
    assert examples[0].relations[-1] == "obl" and len(examples) == 1


def test_an_empty_sentence_and_words_of_control_characters_are_examples(tmp_path):
    """They get predictions like all others; an empty line of columns only ends a sentence."""
    rows = '{"tokens": [], "labels": []}\n{"tokens": ["\\u0001"], "labels": ["O"]}\n'
    empty, control = read(TAGS, tmp_path, "a.jsonl", rows)
    assert empty.words == [] and control.words == ["\x01"]
    (text,) = read(TEXTS, tmp_path, "b.jsonl", '{"text": "", "label": "x"}\n')
    assert text.text == ""
    assert [e.words for e in read(TAGS, tmp_path, "c.txt", "\n\na O\n\n \t\nb O")] == [["a"], ["b"]]


def test_squad(tmp_path):
    (question,) = read(ANSWERS, tmp_path, "a.json", squad())
    assert question.answers == [("Nairobi", 0)] and question.id == "q1" and question.line == 9


def test_all_unknown_labels_are_named_with_a_label_map_to_paste():
    found = [
        ("B-PER", "a.txt, line 1"),
        ("B-DATE", "a.txt, line 2"),
        ("I-DATE", "a.txt, line 3"),
        ("B-DATE", "b.txt, line 9"),
    ]
    with pytest.raises(InputError) as error:
        require_known_labels(found, ["O", "B-PER"])
    said = str(error.value)
    assert said.startswith("a.txt, line 2: 2 labels are not among the model's (O, B-PER): 'B-DATE', 'I-DATE'; ")
    pasted = tomllib.loads(said[said.index("label_map = ") : said.index("}") + 1])
    assert pasted["label_map"].keys() == {"B-DATE", "I-DATE"} and {*pasted["label_map"].values()} <= {"O", "B-PER"}
    require_known_labels(found[:1], ["O", "B-PER"])
