"""How files are read: which columns, what is mended, left out and counted, what is refused."""

import json

import datasets
import pytest
from test_task_reading import ANSWERS, TAGS, TEXTS, TREES, row

from bistil.errors import InputError
from bistil.tasks import get_task
from bistil.tasks.reading import ODD_ROWS, Reading, read_jsonl


@pytest.fixture
def read(tmp_path, capsys):
    """Reads a text as a file; returns the examples, what was said and the counts."""

    def read(kind, name, text, **how):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        reports = []
        examples = get_task(kind).read([path], how=Reading(**how), reports=reports)
        return examples, capsys.readouterr().err, reports[0].counts

    return read


def jsonl(*rows):
    return "".join(json.dumps(one) + "\n" for one in rows)


# Odd rows


def test_a_few_odd_rows_are_left_out_counted_and_named(read):
    rows = [{"text": f"a {i}", "label": "x"} for i in range(20)]
    examples, said, counts = read(TEXTS, "a.jsonl", jsonl(*rows[:3]) + "{\n" + jsonl({"text": 3, "label": "x"}, *rows))
    assert len(examples) == 23
    assert counts == {"rows": 23, "mended": 0, "without_label": 0, "odd": 2}
    assert said.count("\n") == 1 and "a.jsonl: 2 rows left out (the first: line 4: not valid JSON" in said


@pytest.mark.parametrize(
    ("good", "odd", "refused"), [(20, ODD_ROWS, False), (20, 11, True), (2000, 20, False), (1000, 11, True)]
)
def test_beyond_ten_or_one_percent_the_file_is_refused(good, odd, refused, read):
    text = jsonl(*[{"text": "a", "label": "x"}] * good, *[{"text": None, "label": "x"}] * odd)
    if refused:
        with pytest.raises(
            InputError, match=rf"line {good + 1}: 'text' is None.*, and {odd - 1} more of {good + odd} rows"
        ):
            read(TEXTS, "a.jsonl", text)
    else:
        assert read(TEXTS, "a.jsonl", text)[2]["odd"] == odd


def test_strict_reading_refuses_the_first_odd_row(read):
    with pytest.raises(InputError, match="line 2: 'text' is None"):
        read(TEXTS, "a.jsonl", jsonl({"text": "a", "label": "x"}, {"text": None, "label": "x"}), strict=True)


def test_quiet_reading_says_nothing(read):
    text = jsonl({"text": "a", "label": "x"}, {"text": None, "label": "x"})
    assert read(TEXTS, "a.jsonl", text, quiet=True)[1] == ""


def test_lone_surrogates_become_replacement_characters(read):
    text = '{"text": "Bob \\ud83d", "label": "a\\ude00"}\n{"text": "\\ud83d\\ude00", "label": "b"}\n'
    (one, two), said, counts = read(TEXTS, "a.jsonl", text)
    assert (one.text, one.label, two.text) == ("Bob \ufffd", "a\ufffd", "\U0001f600")
    assert counts["mended"] == 1 and "line 1: half a surrogate pair" in said
    (one,), _, counts = read(TAGS, "b.jsonl", '{"tokens": ["\\ud83d"], "labels": ["O"]}\n')
    assert one.words == ["\ufffd"] and counts["mended"] == 1


# Classification


@pytest.mark.parametrize("second", ["hypo", "Hypothesis", "text_pair", "sentence2"])
def test_second_texts_under_their_names(second, read):
    ((example,), said, _) = read(TEXTS, "a.tsv", f"premise\t{second}\tlabel\na b\tc d\tx\n")
    assert (example.text, example.pair) == ("a b", "c d") and not said


def test_a_pair_s_first_text_without_a_second_is_refused_until_it_is_said(read):
    text = "premise\tconclusion\tlabel\na b\tc d\tx\n"
    with pytest.raises(
        InputError, match=r"'conclusion' holds text.*--column pair=conclusion.*--column ignore=conclusion"
    ):
        read(TEXTS, "a.tsv", text)
    assert read(TEXTS, "a.tsv", text, columns={"pair": "conclusion"})[0][0].pair == "c d"
    assert read(TEXTS, "a.tsv", text, columns={"ignore": "conclusion"})[0][0].pair is None
    with pytest.raises(InputError, match="no column 'nothing'; found: premise, conclusion, label"):
        read(TEXTS, "a.tsv", text, columns={"pair": "nothing"})
    with pytest.raises(InputError, match="column tags=label: it may name text, pair, label, ignore"):
        read(TEXTS, "a.tsv", text, columns={"tags": "label"})


def test_a_question_beside_the_text_makes_a_pair_of_them(read):
    text = "question\tsentence\tlabel\nWho is it?\tIt is me.\tx\n"
    with pytest.raises(InputError, match=r"read from 'sentence', but 'question'.*text=question --column pair=sentence"):
        read(TEXTS, "a.tsv", text)
    ((example,), *_) = read(TEXTS, "a.tsv", text, columns={"text": "question", "pair": "sentence"})
    assert (example.text, example.pair) == ("Who is it?", "It is me.")
    assert read(TEXTS, "a.tsv", text, columns={"ignore": "question"})[0][0].pair is None


def test_other_columns_of_text_are_named(read):
    header, values = "text\ttitle\tid\ttext_parse\tlabel\tgold_label", "a b\tc d\t7\t( a b )\tx\ty"
    ((example,), said, _) = read(TEXTS, "a.tsv", f"{header}\n{values}\n")
    assert example.text == "a b" and "text in 'title' is not used" in said and "text_parse" not in said
    assert "labels are read from 'label', not from 'gold_label'" in said


def test_rows_of_one_language_are_chosen(read):
    text = "language\tsentence1\tsentence2\tgold_label\nsw\ta\tb\tneutral\nde\tc\td\tneutral\nde\te\tf\tneutral\n"
    with pytest.raises(InputError, match=r"names 2 languages \(de, sw\): say which with --language"):
        read(TEXTS, "a.tsv", text)
    examples, said, _ = read(TEXTS, "a.tsv", text, language="de")
    assert [e.text for e in examples] == ["c", "e"] and "of 3 rows the 2 in de are read" in said
    assert len(read(TEXTS, "a.tsv", text, language="de-DE")[0]) == 2
    assert len(read(TEXTS, "a.tsv", text, language="all")[0]) == 3
    with pytest.raises(InputError, match="none is 'fr'"):
        read(TEXTS, "a.tsv", text, language="fr")
    tagged = jsonl({"tokens": ["a"], "tags": ["O"], "lang": "sw"}, {"tokens": ["b"], "tags": ["O"], "lang": "en"})
    assert [e.words for e in read(TAGS, "a.jsonl", tagged, language="en")[0]] == [["b"]]


def test_texts_in_all_languages_are_refused_in_one_line(read):
    with pytest.raises(InputError, match=r"'premise' holds texts of several languages \(de, sw\).*configuration"):
        read(TEXTS, "a.jsonl", jsonl({"premise": {"de": "a", "sw": "b"}, "hypothesis": "c", "label": 1}))


@pytest.mark.parametrize("label", ["-", "", None, -1])
def test_rows_without_a_label_are_left_out_and_counted(label, read):
    rows = [{"text": "a", "label": value} for value in (0, label, 1, 2)]
    examples, said, counts = read(TEXTS, "a.jsonl", jsonl(*rows))
    assert [e.label for e in examples] == ["0", "1", "2"] and counts["without_label"] == 1
    assert "1 without a label left out (line 2" in said
    with pytest.raises(InputError, match=r"every label is missing .the first: .*line 1: the label is"):
        read(TEXTS, "a.jsonl", jsonl(rows[1], rows[1]))


def test_what_the_label_map_or_its_opposite_names_is_a_class(read):
    rows = [{"text": "a", "label": value} for value in ("-", "+")]
    assert {e.label for e in read(TEXTS, "a.jsonl", jsonl(*rows))[0]} == {"-", "+"}
    rows = [{"text": "a", "label": value} for value in (-1, 0, 1)]
    examples, said, _ = read(TEXTS, "a.jsonl", jsonl(*rows))
    assert len(examples) == 3 and "-1 is a class" in said
    rows = [{"text": "a", "label": value} for value in ("-", "x")]
    assert [e.label for e in read(TEXTS, "a.jsonl", jsonl(*rows), label_map={"-": "none"})[0]] == ["none", "x"]


def test_minus_one_of_a_data_set_is_no_label(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}).save_to_disk(tmp_path / "d")
    assert [e.label for e in get_task(TEXTS).read([f"dataset:{tmp_path / 'd'}"])] == ["0", "1"]


@pytest.mark.parametrize(
    ("given", "read_as"),
    [
        (["1", "1.0", "0"], ["1", "1", "0"]),
        ([1, 1.0, 0], ["1", "1", "0"]),
        ([True, False, True], ["true", "false", "true"]),
        (["entailment", "contradictory", "neutral"], ["entailment", "contradiction", "neutral"]),
        (["ENTAILMENT", "CONTRADICTORY", "NEUTRAL"], ["ENTAILMENT", "CONTRADICTION", "NEUTRAL"]),
        (["sport ", "sport", "Sport", "news"], ["sport", "sport", "sport", "news"]),
        (["1.5", "1.0"], ["1.5", "1.0"]),
    ],
)
def test_one_label_has_one_name(given, read_as, read):
    rows = [{"text": "a", "label": value} for value in given]
    assert [e.label for e in read(TEXTS, "a.jsonl", jsonl(*rows))[0]] == read_as


def test_comma_separated_values(read):
    text = 'id,text,label\n1,"a, ""b""\nc",x\n2,d,y\n3,e\n'
    examples, said, _ = read(TEXTS, "a.csv", text)
    assert [(e.text, e.label, e.line) for e in examples] == [('a, "b"\nc', "x", 2), ("d", "y", 4)]
    assert "line 5: 2 comma-separated fields where the header names 3" in said
    assert read(TEXTS, "b.csv", "text;label\na,b;x\n")[0][0].text == "a,b"


def test_a_json_list_is_rows_too(read):
    assert len(read(TEXTS, "a.json", json.dumps([{"text": "a", "label": "x"}] * 3, indent=1))[0]) == 3


# Tagging


COMMENTED = [
    ("# id 1\tdomain=train\nAnna _ _ B-PER\nsings _ _ O\n\n", ["Anna", "sings"], ["B-PER", "O"]),
    (
        "# sent_id = a\n# text = Anna sings\n1\tAnna\tB-PER\t-\tx\n2\tsings\tO\t-\tx\n",
        ["Anna", "sings"],
        ["B-PER", "O"],
    ),
    ("# O\nAnna B-PER\n", ["#", "Anna"], ["O", "B-PER"]),
    ("#1 O\nAnna B-PER\n", ["#1", "Anna"], ["O", "B-PER"]),
    ("# newdoc\nAnna B-PER\n# O\n", ["Anna", "#"], ["B-PER", "O"]),
    ("0 Anna B-PER\n1 sings O\n", ["Anna", "sings"], ["B-PER", "O"]),
    ("#\tsource\n1\tAnna\tB-PER\tO\n2\tsings\tO\tO\n", ["Anna", "sings"], ["B-PER", "O"]),
    ("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n", ["EU", "rejects"], ["B-ORG", "O"]),
    ("en:EU B-ORG\nen:: O\n", ["EU", ":"], ["B-ORG", "O"]),
]


@pytest.mark.parametrize(("text", "words", "tags"), COMMENTED)
def test_words_and_tags_of_published_columns(text, words, tags, read, tmp_path):
    ((example,), *_) = read(TAGS, "a.txt", text)
    assert (example.words, example.tags) == (words, tags)
    task = get_task(TAGS)
    task.write_predictions(tmp_path / "b.txt", [example], [tags])
    assert (tmp_path / "b.txt").read_text().rstrip("\n") == text.rstrip("\n")


def test_ten_columns_that_count_words_are_conllu(read):
    ((example,), said, _) = read(TAGS, "a.conll", row(1, "Paka", 2, "nsubj") + "\n" + row(2, "amelala", 0, upos="VERB"))
    assert (example.words, example.tags) == (["Paka", "amelala"], ["NOUN", "VERB"]) and "CoNLL-U" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\tAnna\tB-NP\tB-PER\n2\tsings\tB-VP\tO\n", "columns 3, 4 hold tags of spans.*--column tags=3"),
        ("Anna B-PER NNP\nsings O VBZ\n", "column 2 looks more like them .B-PER, O.; .*--column tags=2"),
        ("O what\nB-GENRE comedy\n", "--column words=2 --column tags=1"),
        ("doc 0 Anna B-PER\ndoc 1 sings O\n", "column 2 counts the words.*--column words=3 --column tags=4"),
        ("Anna B-PER _\nsings O _\n", "column 2 looks more like them"),
        ("Anna NNP _\nsings VBZ _\n", "column 3 holds no tags, only '_'"),
        ("_ B-PER\n_ O\n", "every word is '_': the words of this data set are not in the file"),
        ("x B-PER\n" * 10, "every word is 'x'"),
    ],
)
def test_columns_that_are_not_plain_are_refused_with_the_remedy(text, message, read):
    with pytest.raises(InputError, match=message):
        read(TAGS, "a.txt", text)


def test_columns_that_are_said(read):
    text = "1\tAnna\tB-PER\tO\n2\tsings\tO\tO\n"
    ((example,), said, _) = read(TAGS, "a.tsv", text, columns={"tags": "3"})
    assert (example.words, example.tags) == (["Anna", "sings"], ["B-PER", "O"])
    assert "words are column 2, tags column 3 of 4" in said
    with pytest.raises(InputError, match="tags=5: a column's number from 1 to 4"):
        read(TAGS, "a.tsv", text, columns={"tags": "5"})
    ((example,), *_) = read(
        TAGS, "a.conllu", row(1, "a").replace("\t_\tNOUN\t_", "\t_\tNOUN\tNN"), columns={"tags": "5"}
    )
    assert example.tags == ["NN"] and get_task(TAGS).labels([example]) == ["NN"]


def test_numbers_are_tags_that_the_label_map_names(read):
    rows = jsonl({"tokens": ["Anna", "sings"], "ner_tags": [1, 0], "pos_tags": [3, 4]})
    ((example,), said, _) = read(TAGS, "a.jsonl", rows)
    assert example.tags == ["1", "0"] and "label map, such as 1=B-PER" in said
    assert "tags are read from 'ner_tags', not from 'pos_tags'" in said
    ((example,), said, _) = read(TAGS, "a.jsonl", rows, label_map={"1": "B-PER", "0": "O"})
    assert example.tags == ["B-PER", "O"] and "numbers of classes" not in said
    ((example,), *_) = read(TAGS, "a.jsonl", rows, columns={"tags": "pos_tags"})
    assert example.tags == ["3", "4"]


@pytest.mark.parametrize("tag", [None, -1, -100, "_"])
def test_sentences_without_a_tag_are_left_out(tag, read):
    rows = jsonl({"tokens": ["a", "b"], "tags": [0, tag]}, {"tokens": ["c"], "tags": [1]})
    examples, _, counts = read(TAGS, "a.jsonl", rows)
    assert [e.words for e in examples] == [["c"]] and counts["without_label"] == 1


def test_slips_of_the_tags_are_mended_or_left_out(read):
    text = "Anna B-PER\nsings o\n\n" + "a O\n\n" * 30 + "b BPER\n\nBob B-PER\n"
    examples, said, counts = read(TAGS, "a.txt", text)
    assert get_task(TAGS).labels(examples) == ["O", "B-PER"]
    assert (counts["mended"], counts["odd"]) == (1, 1) and "the tag 'BPER' is neither O nor" in said


def test_bare_types_are_named(read):
    examples, said, _ = read(TAGS, "a.txt", "Anna person\nKarenina person\nsings O\n")
    assert "neighbours of one type are one span" in said
    assert get_task(TAGS).score(examples, [["person", "O", "O"]]).scores["f1"] == 0


def test_upos_outside_the_universal_tags(read):
    text = row(1, "a") + "\n\n" + row(1, "b", upos="XYZ") + "\n\n"
    examples, said, _ = read(TAGS, "a.conllu", text)
    assert len(examples) == 1 and "'XYZ' is none of the 17 universal tags" in said
    assert read(TAGS, "a.conllu", text, label_map={"XYZ": "X"})[0][1].tags == ["X"]


# Parsing


def test_bad_trees_are_left_out(read):
    good, bad = row(1, "a"), row(1, "b", 0, "wurzel")
    examples, said, counts = read(
        TREES, "a.conllu", "\n\n".join([good, row(1, "b", 7), bad, row(1, "_"), row("x", "c"), good])
    )
    assert len(examples) == 2 and counts["odd"] == 4 and "4 rows left out" in said
    assert read(TREES, "a.conllu", bad, label_map={"wurzel": "root"})[0][0].relations == ["root"]
    task = get_task(TREES)
    assert task.majority(examples, examples) == [[(0, "root")]] * 2
    with pytest.raises(InputError, match="every word is '_'"):
        read(TREES, "a.conllu", row(1, "_"))
    assert read(TREES, "a.conllu", good + "\n\n" + row(1, "b", "_", "_"))[2]["without_label"] == 1


# Questions


def squad(*answers, context="Nairobi is big. Nairobi is old.", **more):
    items = [{"id": f"q{i}", "question": "What?", "answers": one, **more} for i, one in enumerate(answers)]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": items}]}]})


def answer(text, start):
    return [{"text": text, "answer_start": start}]


def test_answers_that_stand_elsewhere_are_moved_if_that_is_certain(read):
    text = squad(answer("big", 3), answer("old", None), answer("Nairobi", 3), answer("Rome", 0), answer("Nairobi", 16))
    examples, said, counts = read(ANSWERS, "a.json", text)
    assert [(e.id, e.answers) for e in examples] == [
        ("q0", [("big", 11)]),
        ("q1", [("old", 27)]),
        ("q4", [("Nairobi", 16)]),
    ]
    assert (counts["mended"], counts["odd"]) == (2, 2)
    assert "question 'q0': the answer 'big' stands at 11, not at 3" in said
    moved = squad(answer("Paka", 8), context="Paka \U0001f600 Paka")
    assert read(ANSWERS, "b.json", moved)[0][0].answers == [("Paka", 7)], "counted in UTF-16"


def test_flat_rows_of_questions(read):
    flat = {
        "id": "1",
        "question": "What?",
        "context": "Nairobi is big.",
        "answers": {"text": ["big"], "answer_start": [11]},
    }
    for name, text in (
        ("a.jsonl", jsonl(flat)),
        ("a.json", jsonl(flat, flat)),
        ("b.json", json.dumps({"data": [flat]})),
    ):
        assert read(ANSWERS, name, text)[0][0].answers == [("big", 11)]


def test_questions_without_an_answer(read):
    examples, said, _ = read(ANSWERS, "a.json", squad(answer("big", 11), [], answer("", None)))
    assert [e.answers for e in examples] == [[("big", 11)], [], []] and "2 of 3 questions have no answer" in said
    with pytest.raises(InputError, match="no question has an answer, nor says that it has none"):
        read(ANSWERS, "a.json", squad([], []))
    assert len(read(ANSWERS, "a.json", squad([], [], is_impossible=True))[0]) == 2
    _, _, counts = read(ANSWERS, "a.json", squad(answer("big", 11), None))
    assert counts["without_label"] == 1
    task = get_task(ANSWERS)
    assert task.majority(examples[1:], examples)[0][0].text == ""


def test_a_surrogate_in_squad_json(read):
    (one, two), _, counts = read(ANSWERS, "a.json", squad(answer("big", 2), answer("big", 2), context="\ud83d big"))
    assert one.context == "\ufffd big" and two.answers == [("big", 2)] and counts["mended"] == 2


def test_json_lines_alone_are_strict(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n{\n")
    with pytest.raises(InputError, match="line 2: not valid JSON"):
        list(read_jsonl(tmp_path / "a.jsonl"))


def test_utf16_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("Anna B-PER\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="UTF-16"):
        get_task(TAGS).read([tmp_path / "a.txt"])
