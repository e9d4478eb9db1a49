"""The task interface on tiny models of every family: encoding, heads, prediction, what L_pred sees, writing."""

import copy
import itertools
import json

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, pipeline
from typer.testing import CliRunner

from bistil.distillation.module import Distiller
from bistil.distillation.objectives import prediction_loss
from bistil.distillation.teacher_ids import with_teacher_ids
from bistil.errors import ArtefactError, InputError
from bistil.measuring.evaluation import WORTH_A_WARNING, evaluate_folder, measure, unknown_share
from bistil.models.auto import AutoModelForDependencyParsing
from bistil.models.heads import build_head
from bistil.models.parser import word_vectors
from bistil.settings.recipe import ObjectiveSettings
from bistil.tasks import bootstrap, differing_boundaries, get_task, model_inputs, paired_gap
from bistil.tasks.dependency_parsing import ParsedSentence, Parser
from bistil.tasks.metrics import Metrics, ratio
from bistil.tasks.question_answering import QuestionAnswerer, QuestionAnswering
from bistil.tasks.texts import make_pairs
from bistil.tasks.words import Frame, count_words, encode_words, run_of_words, split_words, windows

LENGTH = 32
WORDS = (tiny.ENGLISH + " " + tiny.SWAHILI).split()
CONLL = "".join(f"{word} {'B-PER' if i % 5 == 0 else 'O'}\n" + "\n" * (i % 9 == 8) for i, word in enumerate(WORDS))
LONG = "\n" + "".join(f"{word} {'O' if i % 3 else 'B-LOC'}\n" for i, word in enumerate(WORDS))
TEXTS = "".join(json.dumps({"text": t, "label": str(i % 3)}) + "\n" for i, t in enumerate(tiny.ENGLISH.splitlines()))
PAIRS = "premise\thypothesis\tlabel\n" + "".join(
    f"{a}\t{b}\t{len(a) % 2}\n" for a, b in zip(tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines(), strict=True)
)
QUOTED = "text,label\n" + "".join(
    f'"{a}\n""{b}"", so,",{len(a) % 2}\n'
    for a, b in zip(tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines(), strict=True)
)
EMOTIONS = ("joy", "fear", "anger")
ANY_LABELS = "".join(
    json.dumps({"text": t, "labels": [e for j, e in enumerate(EMOTIONS) if (i >> j) & 1]}) + "\n"
    for i, t in enumerate(tiny.ENGLISH.splitlines())
)
INDICATORS = "id,text,joy,fear,anger\n" + "".join(
    f'{i},"{t}",{i & 1},{i >> 1 & 1},{i >> 2 & 1}\n' for i, t in enumerate(tiny.ENGLISH.splitlines())
)


def _conllu():
    sentences = [*(line.split() for line in tiny.SWAHILI.splitlines()), WORDS]
    blocks = []
    for words in sentences:
        lines = []
        for i, word in enumerate(words, 1):
            head, relation = (
                (0, "root") if i == 2 else (2 if i % 3 else max(i - 1, 1), ("nsubj", "punct", "obl:arg")[i % 3])
            )
            lines.append("\t".join([str(i), word, "_", "NOUN", "_", "_", str(head), relation, "_", "_"]))
        blocks.append("\n".join(lines) + "\n\n")
    return "# first\n" + "".join(blocks)


def _squad():
    context = tiny.ENGLISH.replace("\n", " ")
    answers = ["the mat", "seven sheep", "one hundred degrees", "early in the morning."]
    return json.dumps(
        {
            "data": [
                {
                    "paragraphs": [
                        {
                            "context": context,
                            "qas": [
                                {
                                    "id": f"q{i}",
                                    "question": "What is it?",
                                    "answers": [{"text": answer, "answer_start": context.find(answer)}],
                                }
                                for i, answer in enumerate(answers)
                            ],
                        }
                    ]
                }
            ]
        }
    )


CASES = {
    "ner": ("token-classification", "ner.txt", CONLL + LONG),
    "pos": ("token-classification", "pos.conllu", _conllu()),
    "texts": ("sequence-classification", "texts.jsonl", TEXTS),
    "pairs": ("sequence-classification", "pairs.tsv", PAIRS),
    "quoted": ("sequence-classification", "quoted.csv", QUOTED),
    "labels": ("multi-label-classification", "labels.jsonl", ANY_LABELS),
    "indicators": ("multi-label-classification", "indicators.csv", INDICATORS),
    "trees": ("dependency-parsing", "trees.conllu", _conllu()),
    "questions": ("question-answering", "questions.json", _squad()),
}


@pytest.fixture
def loaded(tmp_path):
    """A case's task, examples, tokenizer, features and a model with random head weights."""

    def load(case, family="bert", length=LENGTH, **options):
        kind, name, text = CASES[case]
        (tmp_path / name).write_text(text, encoding="utf-8")
        task = get_task(kind, **options)
        examples = task.read([tmp_path / name])
        labels = task.labels(examples)
        tokenizer = tiny.tokenizer(family)
        folder = tmp_path / family
        tiny.model(family, layers=2).save_pretrained(folder)
        model = task.build_model(folder, labels, seed=1)
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith(model.base_model_prefix):
                    parameter.normal_(std=0.3)
        return task, examples, tokenizer, task.encode(examples, tokenizer, length, labels=labels), model.eval()

    return load


ROUNDS = [
    (case, family)
    for case in CASES
    for family in tiny.FAMILIES
    if case in ("ner", "trees", "labels") or family == "bert"
]


@pytest.mark.parametrize(("case", "family"), [*ROUNDS, ("pairs", "roberta"), ("questions", "deberta-v2")])
def test_round_trip(case, family, loaded, tmp_path):
    """A model saves, loads, predicts every example whatever the batch size, and writes what reads back."""
    task, examples, tokenizer, features, model = loaded(case, family)
    batch = task.collate(tokenizer)(features[:4])
    assert batch["input_ids"].shape[1] % 8 == 0
    loss = model(**model_inputs(model, batch)).loss
    assert torch.isfinite(loss)
    loss.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert not [n for n in unused if "pooler" not in n]

    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = task.build_model(tmp_path / "saved", None).eval()
    one = task.predict(model, tokenizer, examples, features, batch_size=1)
    many = task.predict(again, tokenizer, examples, features, batch_size=7)
    if case == "questions":
        assert [next(a.text for a in answers) for answers in one] == [next(a.text for a in answers) for answers in many]
    else:
        assert one == many
    assert len(one) == len(examples)

    output = tmp_path / f"predictions{CASES[case][1]}"
    record = evaluate_folder(
        tmp_path / "saved",
        task=task.kind,
        files=[tmp_path / CASES[case][1]],
        max_length=LENGTH,
        predictions=output,
        bootstrap_samples=50,
    )
    assert record["score"] == record["scores"][record["metric"]] and record["examples"] == len(examples)
    assert record["interval"][0] <= record["score"] <= record["interval"][1]
    if case == "questions":
        assert json.loads(output.read_text()) == {e.id: a[0].text for e, a in zip(examples, one, strict=True)}
        return
    # Scored against themselves, the written predictions are perfect.
    written = task.read([output])
    assert (
        set(task.score(written, one).scores.values()) <= {0.0, 100.0}
        and task.score(written, one).scores[record["metric"]] == 100.0
    )
    assert [task.text_of(a) for a in written] == [task.text_of(b) for b in examples]


def test_head_comes_from_the_seed_and_the_body_from_the_folder(tmp_path, recwarn):
    tiny.model("bert").save_pretrained(tmp_path)
    task = get_task("sequence-classification")
    one, two, other = (task.build_model(tmp_path, ["a", "b"], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.classifier.weight, two.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    body = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(one.bert.state_dict()[name], body[name]) for name in body)
    assert one.config.id2label == {0: "a", 1: "b"} and one.config.label2id == {"a": 0, "b": 1}
    assert not recwarn.list


def test_head_with_other_labels_and_no_model(tmp_path, capsys):
    tiny.model("bert").save_pretrained(tmp_path / "encoder")
    task = get_task("token-classification")
    task.build_model(tmp_path / "encoder", ["O", "B-X"]).save_pretrained(tmp_path / "tagger")
    new = task.build_model(tmp_path / "tagger", ["O", "B-X", "I-X"], seed=3)
    assert "tagger has a head for labels O, B-X; a new one is made for O, B-X, I-X" in capsys.readouterr().err
    encoder = task.build_model(tmp_path / "encoder", ["O", "B-X", "I-X"], seed=3)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), encoder.parameters(), strict=True))
    with pytest.raises(ArtefactError, match="is not a model folder"):
        evaluate_folder(tmp_path / "none", task="token-classification", files=[_file(tmp_path, "ner.txt", CONLL)])


def _file(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_words_start_behind_a_bare_boundary_marker(tmp_path):
    """In Chinese nine words of ten begin with one, in English only what the vocabulary lacks, punctuation mostly."""
    tokenizer, task = tiny.tokenizer("xlm-roberta"), get_task("token-classification")
    words, marker = ["The", "dog", "sat"], "\u2581"
    ((feature, _),) = encode_words([words], tokenizer, 64)
    assert feature["input_ids"] == tokenizer(words, is_split_into_words=True)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(feature["input_ids"])
    fronts, starts, ends = (feature[key] for key in ("word_fronts", "word_starts", "word_ends"))
    assert [tokens[front] == marker for front in fronts] == [False, True, False]
    assert [start - front for front, start in zip(fronts, starts, strict=True)] == [0, 1, 0]
    assert tokens[starts[1]] == "do" and fronts == [1, *ends[:-1]] and ends[-1] == len(tokens) - 1
    file = _file(tmp_path, "ner.txt", "The O\ndog B-X\nsat O\n")
    (labelled,) = task.encode(task.read([file]), tokenizer, 64, labels=["O", "B-X"])
    # The marker learns the word's label too, for `pipeline` reads words there; the word is read at its text.
    expected = [-100] * len(tokens)
    for word, label in enumerate([0, 1, 0]):
        expected[starts[word]] = expected[fronts[word]] = label
    assert labelled["labels"] == expected
    assert labelled["targets"] == [(start, word) for word, start in enumerate(starts)]
    # A window with room for the marker alone still has the word.
    (short, *_), *_ = list(encode_words([["dog"]], tokenizer, 3))
    assert short["word_starts"] == short["word_fronts"] == [1] and short["word_ends"] == [2]


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_words_are_encoded_as_the_tokenizer_does_and_never_lost(family):
    tokenizer = tiny.tokenizer(family)
    words = ["Paka", "aliketi", "kwenye", "mkeka"]
    ((feature, _),) = encode_words([words], tokenizer, 64)
    assert feature["input_ids"] == tokenizer(words, is_split_into_words=True)["input_ids"]
    odd = ["\x01\x02", "a", "\u200b", "mwezi" * 300, "b"]
    positions = [
        (window.start + i, feature["input_ids"][start])
        for feature, window in encode_words([odd], tokenizer, 16)
        for i, start in enumerate(feature["word_starts"])
        if window.first <= window.start + i < window.last
    ]
    assert [word for word, _ in positions] == [0, 1, 2, 3, 4]
    assert positions[0][1] == tokenizer.unk_token_id or family != "bert"
    frame = Frame.of(tokenizer)
    assert len(frame.before) == len(frame.after) == 1


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(9, 20), st.integers(0, 9))
def test_windows_predict_every_word_once_and_fit(lengths, room, context):
    found = list(windows(lengths, room, min(context, room)))
    assert list(itertools.chain(*(range(w.first, w.last) for w in found))) == list(range(len(lengths)))
    for window in found:
        assert window.start <= window.first < window.last <= window.stop
        assert sum(lengths[window.start : window.stop]) <= room


def test_a_sentence_of_5000_words(loaded, tmp_path):
    """Tagged and parsed whole: no word is lost."""
    words = [f"w{i % 70}" for i in range(5000)]
    path = _file(tmp_path, "long.txt", "".join(f"{word} O\n" for word in words))
    task, _, tokenizer, _, model = loaded("ner")
    examples = task.read([path])
    features = task.encode(examples, tokenizer, LENGTH, labels=["O"])
    assert sum(len(feature["targets"]) for feature in features) == 5000
    (tags,) = task.predict(model, tokenizer, examples, features, batch_size=64)
    assert len(tags) == 5000 and all(tags)


def test_a_sentence_of_5000_words_gets_one_tree(loaded):
    _, _, tokenizer, _, model = loaded("trees", parser_projection=4)
    task = get_task("dependency-parsing")
    example = ParsedSentence(
        file="", line=0, words=["w"] * 5000, heads=[0] * 5000, relations=["dep"] * 5000, source=None
    )
    features = task.encode([example], tokenizer, 128, labels=["dep"])
    (tree,) = task.predict(model, tokenizer, [example], features)
    assert len(tree) == 5000 and sum(head == 0 for head, _ in tree) == 1


@pytest.mark.parametrize("case", ["ner", "trees", "texts", "labels", "questions"])
def test_nothing_to_read_still_gets_a_prediction(case, loaded):
    """Empty examples, and text of control characters only."""
    task, examples, tokenizer, _, model = loaded(case)
    one, values = examples[0], vars(examples[0])
    if case == "ner":
        odd = [{"words": [], "tags": []}, {"words": ["\x01\x02"], "tags": ["O"]}]
    elif case == "trees":
        odd = [{"words": ["\x01\x02"], "heads": [0], "relations": ["root"]}]
    elif case in ("texts", "labels"):
        odd = [{"text": ""}, {"text": "\x01\x02"}, {"text": "", "pair": ""}]
    else:
        odd = [{"text": "", "context": "", "answers": []}, {"text": "\x01", "context": "\x02", "answers": []}]
    odd = [type(one)(**{**values, **changed}) for changed in odd]
    features = task.encode(odd, tokenizer, LENGTH, labels=task.labels(examples))
    predictions = task.predict(model, tokenizer, odd, features)
    assert len(predictions) == len(odd)
    if case == "questions":
        assert predictions == [[], []]
    else:
        task.score(odd, predictions)
        for example, prediction in zip(odd, predictions, strict=True):
            assert case in ("texts", "labels") or len(prediction) == len(example.words)


def test_predictions_of_tables_and_of_mixed_files(tmp_path):
    """Tables of the same columns are one table again; whatever else comes together is written as JSON lines."""
    task = get_task("sequence-classification")
    one = _file(tmp_path, "one.tsv", "text\tlabel\na\tx\n")
    two = _file(tmp_path, "two.tsv", "id\ttext\tlabel\n7\tb\tx\n")
    three = _file(tmp_path, "three.jsonl", '{"text": "c", "label": "x", "n": 1}\n')
    for paths, expected in (
        ([one, one], "text\tlabel\na\ty\na\ty\n"),
        ([one, two], '{"text": "a", "label": "y"}\n{"id": "7", "text": "b", "label": "y"}\n'),
        ([one, three], '{"text": "a", "label": "y"}\n{"text": "c", "label": "y", "n": 1}\n'),
    ):
        examples = task.read(paths)
        out = tmp_path / f"out-{'-'.join(path.name for path in paths)}"
        task.write_predictions(out, examples, ["y"] * len(examples))
        assert out.read_text() == expected


def test_questions_of_one_id_are_not_written_over_each_other(loaded, tmp_path):
    task, examples, *_ = loaded("questions")
    with pytest.raises(InputError, match=r"question 'q0' stands in .*questions.json, line 1 too"):
        task.write_predictions(tmp_path / "out.json", [*examples, copy.copy(examples[0])], [[]] * 5)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_a_teacher_with_other_ids_gives_the_same_losses(case, family, loaded):
    """A teacher whose vocabulary is in another order reads the same text: every loss stays as it is."""
    task, examples, tokenizer, features, student = loaded(case, family)
    teacher = loaded(case, family)[4]
    renumbered, old = tiny.renumbered(family, keep=0 if family == "bert" else 5)
    theirs = task.encode(examples, renumbered, LENGTH, labels=task.labels(examples))
    text = tiny.SWAHILI.splitlines()
    objective = ObjectiveSettings(attention=1.0, hidden=1.0, prediction=1.0)
    of_text = [task.unlabelled(text, one, LENGTH, seed=1) for one in (tokenizer, renumbered)]
    for ours, others in ((features, theirs), of_text):
        both, differing = with_teacher_ids(ours, others)
        assert not differing and len(both) == len(ours)
        plain, mixed = task.collate(tokenizer)(ours[:4]), task.collate(tokenizer, teacher=renumbered)(both[:4])
        assert not torch.equal(mixed["input_ids"], mixed["teacher_input_ids"])
        losses = []
        for batch, model in ((plain, teacher), (mixed, _renumbered_copy(teacher, old, renumbered.pad_token_id))):
            module = Distiller(
                model, {"s": student}, objectives={"s": objective}, prediction_pairs=task.prediction_pairs
            )
            with torch.no_grad():
                losses.append(module(**batch))
            module.close()
        assert losses[0].keys() == losses[1].keys()
        for name, value in losses[0].items():
            torch.testing.assert_close(losses[1][name], value, rtol=0, atol=0)


def _renumbered_copy(model, old, pad):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight[old])
    other.config.pad_token_id = pad
    return other


def test_no_room_for_words():
    with pytest.raises(InputError, match="max_length 2"):
        list(encode_words([["a"]], tiny.tokenizer(), 2))


def test_length_beyond_the_positions(loaded, tmp_path):
    *_, model = loaded("ner")
    tiny.save(model, tmp_path / "saved")
    with pytest.raises(InputError, match="max_length is 141, but the model has 140 positions"):
        evaluate_folder(tmp_path / "saved", task="token-classification", files=[tmp_path / "ner.txt"], max_length=141)


def test_label_stands_at_first_subwords_only(loaded):
    task, examples, tokenizer, features, _ = loaded("ner", length=128)
    feature = features[0]
    labels = [label for label in feature["labels"] if label != -100]
    assert [task.labels(examples)[label] for label in labels] == examples[0].tags
    word_ids = tokenizer(examples[0].words, is_split_into_words=True).word_ids()
    first = [i for i, w in enumerate(word_ids) if w is not None and w != word_ids[i - 1]]
    assert [i for i, label in enumerate(feature["labels"]) if label != -100] == first


def test_split_words_is_language_neutral():
    assert split_words("N'Djamena ni mji (mkuu) wa Chad, 3.5%") == [
        *("N'Djamena", "ni", "mji", "(", "mkuu", ")", "wa", "Chad", ",", "3", ".", "5", "%"),
    ]
    assert split_words("हिन्दी में।") == ["हिन्दी", "में", "।"]
    assert split_words("我喜欢abc猫2020年。") == ["我", "喜", "欢", "abc", "猫", "2020", "年", "。"]
    assert split_words("今日はコーヒーを3杯。") == ["今", "日", "は", "コーヒー", "を", "3", "杯", "。"]
    assert split_words("한국어 문장") == ["한국어", "문장"]
    assert split_words(" \t") == []


@pytest.mark.parametrize(
    ("text", "words", "most", "runs"),
    [
        ("Paka (mkuu) amelala.", 3, 2, {"Paka (mkuu)", "(mkuu) amelala."}),
        ("我喜欢，猫。", 6, 5, {"我喜欢，猫", "喜欢，猫。"}),
        ("moja", 1, 4, {"moja"}),
        (" ", 0, 4, {""}),
    ],
)
def test_runs_of_words_are_stretches_of_the_text(text, words, most, runs):
    generator = np.random.default_rng(0)
    assert count_words(text) == words
    assert {run_of_words(text, most, generator) for _ in range(50)} == runs


def test_pairs_made_of_text_without_spaces_hold_half_a_sentence():
    sentences = ["我喜欢猫和狗", "今天天气很好我们去公园"]
    (_, following), (second, half) = make_pairs(sentences, seed=0)
    assert following == sentences[1]
    assert half in second
    assert len(half) == len(second) // 2


@pytest.mark.parametrize("case", CASES)
def test_unlabelled_text_is_encoded_like_the_task(case, loaded):
    task, _, tokenizer, _features, model = loaded(case)
    made = task.unlabelled(tiny.SWAHILI.splitlines(), tokenizer, LENGTH, pairs=case == "pairs", seed=1)
    assert made == task.unlabelled(tiny.SWAHILI.splitlines(), tokenizer, LENGTH, pairs=case == "pairs", seed=1)
    assert {feature["example"] for feature in made} == set(range(10))
    assert max(len(feature["input_ids"]) for feature in made) <= LENGTH
    batch = task.collate(tokenizer)(made)
    assert not {"labels", "start_positions", "relation_labels"} & set(batch)
    output = model(**model_inputs(model, batch))
    assert output.loss is None
    for pair in task.prediction_pairs(output, output, batch):
        assert pair.student.shape == pair.teacher.shape and pair.student.ndim == 2
        if pair.mask is not None:
            assert pair.mask.any()
    separators = [feature["input_ids"].count(tokenizer.sep_token_id) for feature in made]
    assert set(separators) == ({2} if case in ("pairs", "questions") else {1})


@pytest.mark.parametrize("case", CASES)
def test_prediction_loss_does_not_see_padding(case, loaded):
    """L_pred of a batch equals the mean over its examples alone, weighted by what counts in each."""
    task, _, tokenizer, features, student = loaded(case)
    teacher = loaded(case)[4]
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.3)
    features = sorted(features, key=lambda feature: len(feature["input_ids"]))
    features = [features[0], features[-1]]

    def losses(chosen):
        batch = task.collate(tokenizer)(chosen)
        inputs = model_inputs(student, batch)
        with torch.no_grad():
            pairs = task.prediction_pairs(student(**inputs), teacher(**inputs), batch)
        found = []
        for pair in pairs:
            rows = torch.ones(len(pair.student), dtype=torch.bool) if pair.mask is None else pair.mask
            sides = pair.student, pair.teacher
            if pair.valid is not None:
                sides = tuple(side.masked_fill(~pair.valid, -1e30) for side in sides)
            found.append((prediction_loss(*sides, 2.0, rows), rows.sum()))
        return found

    for together, *alone in zip(losses(features), *(losses([feature]) for feature in features), strict=True):
        mean = sum(loss * rows for loss, rows in alone) / sum(rows for _, rows in alone)
        assert together[0] > 0
        torch.testing.assert_close(together[0], mean, rtol=1e-4, atol=1e-5)


def test_boundaries_differ_between_tokenizers():
    task = get_task("sequence-classification")
    sentences = ["mwezi", "a"]
    one = task.unlabelled(sentences, tiny.tokenizer("bert"), 32)
    other = task.unlabelled(sentences, tiny.tokenizer("xlm-roberta"), 32)
    assert differing_boundaries(one, one) == set()
    assert 0 in differing_boundaries(one, other)
    tagging = get_task("token-classification")
    one = tagging.unlabelled(["mwezi " * 60, "a"], tiny.tokenizer("bert"), 32)
    other = tagging.unlabelled(["mwezi " * 60, "a"], tiny.tokenizer("xlm-roberta"), 32)
    assert differing_boundaries(one, one) == set() and 0 in differing_boundaries(one, other)


def test_word_vectors_are_means_of_subwords():
    states = torch.randn(2, 5, 3)
    vectors = word_vectors(states, torch.tensor([[1, 3], [1, -1]]), torch.tensor([[3, 4], [5, -1]]))
    torch.testing.assert_close(vectors[0, 0], states[0, 1:3].mean(0))
    torch.testing.assert_close(vectors[0, 1], states[0, 3])
    torch.testing.assert_close(vectors[1, 0], states[1, 1:5].mean(0))
    assert not vectors[1, 1].any()


def test_parser_scores_are_the_biaffine_of_the_paper(loaded):
    """Arc and relation scores against loops over words; padding is no head."""
    task, _, tokenizer, features, model = loaded("trees")
    batch = task.collate(tokenizer)(features[:3])
    with torch.no_grad():
        output = model(**model_inputs(model, batch))
        states = model.bert(batch["input_ids"], batch["attention_mask"])[0]
    one = torch.ones(1)
    for row, feature in enumerate(features[:3]):
        spans = list(zip(feature["word_starts"], feature["word_ends"], strict=True))
        words = [states[row, a:b].mean(0) for a, b in spans]
        candidates = [states[row, 0], *words]
        assert torch.isinf(output.logits[row, :, len(candidates) :]).all()
        for i, dependent in enumerate(words):
            for j, head in enumerate(candidates):
                score = torch.cat([dependent, one]) @ model.arcs.weight[0] @ head
                torch.testing.assert_close(output.logits[row, i, j], score, rtol=1e-4, atol=1e-4)
    # The loss by hand: cross-entropy of gold heads and of relations at gold heads, means over words.
    arcs, relations, counted = 0.0, 0.0, 0
    for row, feature in enumerate(features[:3]):
        for i, (head, relation) in enumerate(zip(feature["labels"], feature["relation_labels"], strict=True)):
            if head == -100:
                continue
            left = torch.cat([output.dependents[row, i], one])
            right = torch.cat([output.heads[row, head], one])
            scores = torch.stack([left @ weight @ right for weight in model.relations.weight])
            arcs -= output.logits[row, i].log_softmax(-1)[head]
            relations -= scores.log_softmax(-1)[relation]
            counted += 1
    torch.testing.assert_close(output.loss, (arcs + relations) / counted, rtol=1e-4, atol=1e-4)


def test_parser_of_long_sentences_sees_all_arcs(loaded, tmp_path):
    """A sentence over several windows gets one tree; with one window the result is the plain one."""
    task, examples, tokenizer, features, model = loaded("trees")
    predictions = task.predict(model, tokenizer, examples, features)
    assert len(features) > len(examples)
    for example, tree in zip(examples, predictions, strict=True):
        assert len(tree) == len(example.words)
        assert [relation == "root" for _, relation in tree] == [head == 0 for head, _ in tree]
        assert sum(head == 0 for head, _ in tree) == 1
    model.save_pretrained(tmp_path / "parser")
    tokenizer.save_pretrained(tmp_path / "parser")
    parser = Parser(tmp_path / "parser", max_length=LENGTH)
    assert parser([example.words for example in examples]) == predictions
    assert parser([[], ["a"]]) == [[], [(0, "root")]]


def test_parser_folder_is_an_encoder_for_everybody_else(loaded, tmp_path):
    *_, model = loaded("trees", parser_projection=8)
    assert model.relations.weight.shape == (37, 9, 9)
    model.save_pretrained(tmp_path / "parser")
    encoder = build_head(AutoModel, tmp_path / "parser", None, seed=0)
    want = model.bert.state_dict()
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in want.items())
    again = AutoModelForDependencyParsing.from_pretrained(str(tmp_path / "parser"))
    assert again.config.parser_projection == 8
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_projection_shrinks_the_head(loaded):
    full, small = loaded("trees")[4], loaded("trees", parser_projection=4)[4]
    count = [sum(p.numel() for n, p in m.named_parameters() if not n.startswith("bert.")) for m in (full, small)]
    width = 32
    assert count[0] == (width + 1) * width + 37 * (width + 1) ** 2
    assert count[1] == 2 * (width * 4 + 4) + 5 * 4 + 37 * 25


@pytest.mark.parametrize("projection", [None, 16])
def test_parser_learns_from_its_zero_start(projection, tmp_path):
    """A fresh head and encoder fit a few trees."""
    blocks = _conllu().split("\n\n")[:4]
    task = get_task("dependency-parsing", parser_projection=projection)
    examples = task.read([_file(tmp_path, "few.conllu", "\n\n".join(blocks))])
    tiny.model("bert", layers=1).save_pretrained(tmp_path / "encoder")
    labels = task.labels(examples)
    model = task.build_model(tmp_path / "encoder", labels)
    features = task.encode(examples, tiny.tokenizer(), 64, labels=labels)
    batch = task.collate(tiny.tokenizer())(features)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    scores = task.score(examples, task.predict(model, tiny.tokenizer(), examples, features)).scores
    assert scores["las"] > 90, scores


def test_answers_are_found_in_any_window(loaded):
    """A model that points to the gold answer's tokens gets every question right."""
    # Windows that overlap by more tokens than the longest answer has, whichever way the tokenizer cuts it.
    task, examples, tokenizer, features, model = loaded("questions", length=64)
    assert len(features) > 2 * len(examples)
    with_answer = [f for f in features if f["start_positions"] > 0]
    assert {f["example"] for f in with_answer} == set(range(len(examples)))

    class Oracle(type(model)):
        def forward(self, input_ids):
            starts = torch.zeros(input_ids.shape)
            ends = torch.zeros(input_ids.shape)
            for row, ids in enumerate(input_ids.tolist()):
                feature = next(f for f in features if f["input_ids"] == ids[: len(f["input_ids"])])
                starts[row, feature["start_positions"]] = 9 * (feature["start_positions"] > 0)
                ends[row, feature["end_positions"]] = 9 * (feature["end_positions"] > 0)
            return {"start_logits": starts, "end_logits": ends}

    # Questions must differ for the oracle to tell windows apart.
    examples = [type(e)(**{**vars(e), "text": f"{'abcd'[i]}?"}) for i, e in enumerate(examples)]
    features = task.encode(examples, tokenizer, 64)
    model.__class__ = Oracle
    predictions = task.predict(model, tokenizer, examples, features, batch_size=3)
    assert task.score(examples, predictions).scores == {"f1": 100.0, "exact_match": 100.0}
    assert all(len(answers) > 1 and answers[0].score > answers[1].score for answers in predictions)
    for example, answers in zip(examples, predictions, strict=True):
        assert all(example.context[a.start : a.start + len(a.text)] == a.text for a in answers)


def test_no_answer_is_predicted_where_its_score_is_highest(loaded):
    """BERT's rule for SQuAD 2.0: the lowest score of the first token over the windows against the best span's."""
    task, examples, tokenizer, _, model = loaded("questions")
    asked = [*examples, *(type(one)(**{**vars(one), "answers": []}) for one in examples)]
    features = task.encode(asked, tokenizer, LENGTH)
    spans = QuestionAnswering(unanswerable=False).predict(model, tokenizer, asked, features)
    none = [[] for _ in asked]
    for feature in features:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([feature["input_ids"]]))
        none[feature["example"]].append(float(output.start_logits[0, 0] + output.end_logits[0, 0]))
    assert min(map(len, none)) > 1

    class Leaning(type(model)):
        def forward(self, input_ids, attention_mask=None, token_type_ids=None):
            output = super().forward(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            output.start_logits[:, 0] += gain
            return output

    model.__class__ = Leaning
    seen = set()
    # Enough to turn some questions, all and none.
    turning = np.median([best[0].score - min(own) for best, own in zip(spans, none, strict=True)]) + 1e-3
    for gain in (-100.0, float(turning), 100.0):
        predictions = task.predict(model, tokenizer, asked, features)
        for best, own, answers in zip(spans, none, predictions, strict=True):
            unanswered = min(own) + gain > best[0].score
            assert (answers[0].text == "") == unanswered
            assert answers[unanswered].text == best[0].text
            seen.add(unanswered)
        # A set in which every question has an answer is not of SQuAD 2.0.
        assert all(
            answers[0].text for answers in task.predict(model, tokenizer, examples, features[: len(features) // 2])
        )
    assert seen == {True, False}


def test_question_longer_than_a_window(loaded):
    task, examples, tokenizer, _, model = loaded("questions")
    long = [type(examples[0])(**{**vars(examples[0]), "text": "What is it? " * 100})]
    features = task.encode(long, tokenizer, LENGTH)
    assert max(len(f["input_ids"]) for f in features) <= LENGTH
    assert any(f["start_positions"] for f in features)
    assert task.predict(model, tokenizer, long, features)[0][0].text


@pytest.mark.parametrize(("case", "name"), [("ner", "token-classification"), ("texts", "text-classification")])
def test_transformers_pipeline_gives_the_same(case, name, loaded, tmp_path):
    task, examples, tokenizer, features, model = loaded(case, length=128)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    pipe = pipeline(name, model=str(tmp_path / "saved"), tokenizer=str(tmp_path / "saved"), device=-1)
    ours = task.predict(model, tokenizer, examples[:5], [f for f in features if f["example"] < 5])
    if case == "texts":
        assert [pipe(e.text)[0]["label"] for e in examples[:5]] == ours
        return
    for example, tags in zip(examples[:5], ours, strict=True):
        found = pipe(example.words, is_split_into_words=True, ignore_labels=[])[0]
        starts = np.cumsum([0, *(len(word) + 1 for word in example.words)])[:-1]
        by_start = {token["start"]: token["entity"] for token in found}
        assert [by_start[start] for start in starts] == tags


def test_answering_questions_from_a_folder(loaded, tmp_path):
    """transformers 5 has no pipeline for question answering; ours agrees with the plain model on a short passage."""
    _, _, tokenizer, _, model = loaded("questions")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    question, context = "What is calm?", "Rain fell all night, but the river stayed calm."
    best, second, *_ = QuestionAnswerer(tmp_path / "saved", max_length=128)(question, context)
    assert best.score >= second.score and context[best.start : best.start + len(best.text)] == best.text
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        output = model(**encoded)
    side = encoded.sequence_ids(0)
    spans = [(i, j) for i in range(len(side)) for j in range(i, len(side)) if side[i] == side[j] == 1]
    scores = [float(output.start_logits[0, i] + output.end_logits[0, j]) for i, j in spans]
    i, j = spans[int(np.argmax(scores))]
    assert best.text == context[offsets[i][0] : offsets[j][1]].strip()
    assert best.score == pytest.approx(max(scores), rel=1e-4)


def test_majority_baselines(tmp_path):
    for case, (kind, name, text) in CASES.items():
        task = get_task(kind)
        examples = task.read([_file(tmp_path, name, text)])
        scores = task.score(examples, task.majority(examples, examples)).scores
        if case == "ner":
            assert scores["f1"] == 0 and 60 < scores["accuracy"] < 90
        if case == "texts":
            assert scores["accuracy"] == 40.0
        assert all(0 <= value <= 100 for value in scores.values())


def test_bootstrap_is_exact_and_seeded():
    """The vectorised resamples against resampling in a loop, and the interval against the normal approximation."""
    hits = (np.arange(400) % 4 > 0).astype(float)
    counts = np.stack([np.ones(400), hits], axis=1)
    metrics = Metrics("accuracy", counts, lambda s: {"accuracy": ratio(s[..., 1], s[..., 0])})
    low, high = bootstrap(metrics, 2000, seed=3)
    assert bootstrap(metrics, 2000, seed=3) == (low, high) != bootstrap(metrics, 2000, seed=4)
    half = 1.96 * 100 * np.sqrt(0.75 * 0.25 / 400)
    assert abs(low - (75 - half)) < 0.6 and abs(high - (75 + half)) < 0.6
    generator = np.random.default_rng(3)
    times = generator.multinomial(400, np.full(400, 1 / 400), size=100)
    slow = [100 * np.repeat(hits, row).mean() for row in times]
    expected = np.percentile(slow, [2.5, 97.5])
    np.testing.assert_allclose(bootstrap(metrics, 100, seed=3), expected)


def test_paired_gap_is_tighter_than_two_intervals():
    generator = np.random.default_rng(0)
    hits = generator.random(300) < 0.7
    worse = hits & (generator.random(300) < 0.97)

    def metrics(right):
        counts = np.stack([np.ones(300), right], axis=1).astype(float)
        return Metrics("accuracy", counts, lambda s: {"accuracy": ratio(s[..., 1], s[..., 0])})

    gap, low, high = paired_gap(metrics(worse), metrics(hits))
    assert gap == pytest.approx(100 * (worse.mean() - hits.mean()))
    assert low <= gap <= high <= 0
    assert high - low < np.subtract(*bootstrap(metrics(hits))[::-1])
    assert paired_gap(metrics(hits), metrics(hits)) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="300 examples against 5"):
        paired_gap(metrics(hits), Metrics("accuracy", np.ones((5, 2)), lambda s: {"accuracy": s[..., 0]}))


def test_text_that_the_vocabulary_does_not_know_is_named(loaded, tmp_path, capsys):
    task, examples, tokenizer, features, model = loaded("ner")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    unknown = unknown_share(features, tokenizer)
    ids = [token for feature in features for token in feature["input_ids"]]
    assert unknown == ids.count(tokenizer.unk_token_id) / len(ids) < WORTH_A_WARNING
    measure(tmp_path / "saved", task, examples, max_length=32)
    assert "unknown" not in capsys.readouterr().err
    other = task.read([_file(tmp_path, "other.txt", "The O\n這 O\n")])
    measure(tmp_path / "saved", task, other, max_length=32)
    (line,) = capsys.readouterr().err.splitlines()
    assert "other.txt are unknown to the model's vocabulary" in line and "25.0% of the tokens" in line


def test_command_line(loaded, tmp_path):
    from bistil.cli import app

    task, _examples, tokenizer, _, model = loaded("ner")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    # The task is that of the model's head.
    command = ["evaluate", "--model", str(tmp_path / "saved"), "--file", str(tmp_path / "ner.txt")]
    options = ["--record", str(tmp_path / "record.json"), "--max-length", "32", "--bootstrap", "20"]
    result = CliRunner().invoke(app, [*command, *options, "--label-map", "B-LOC=O"], catch_exceptions=False)
    assert result.exit_code == 0 and result.output.startswith("f1 ")
    record = json.loads((tmp_path / "record.json").read_text())
    mapped = task.read([tmp_path / "ner.txt"], label_map={"B-LOC": "O"})
    assert record["score"] == measure(tmp_path / "saved", task, mapped, max_length=32).scores["f1"]
    with pytest.raises(InputError, match="OLD=NEW"):
        CliRunner().invoke(app, [*command, "--label-map", "B-LOC"], catch_exceptions=False)
