"""Words as a model reads them: the tokens of the running text, shared out among the words; for every tokenizer."""

import json
import logging
import string

import numpy as np
import pytest
import tiny
import tokenizer_families as families
from scripts import SENTENCES
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast, pipeline

from bistil.distillation.teacher_ids import with_teacher_ids
from bistil.tasks import get_task
from bistil.tasks.question_answering import Question
from bistil.tasks.words import Frame, encode_words, split_words

CLASSES = (
    "BertTokenizer",
    "DistilBertTokenizer",
    "BertTokenizer uncased",
    "XLMRobertaTokenizer",
    "DebertaV2Tokenizer",
    "T5Tokenizer",
    "RobertaTokenizer",
    "GemmaTokenizer",
    *families.FAMILIES,
)
TEXTS = [*SENTENCES.values(), *tiny.ENGLISH.splitlines(), *tiny.SWAHILI.splitlines()]
ODD = [
    ["do", "n't", "2,000", "x" * 200, "😀👍🏽", "e\u0301", "ﬁne", "<s>", "a\u200bb"],
    ["New York", "is", "far"],
    ["Ça", "…", "«", "été", "»", "!"],
]


def bare(tokenizer):
    """The backend anew, without padding and truncation."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps({**state, "padding": None, "truncation": None}))


def pieces(words, tokenizer):
    """The pieces of each word in one window."""
    ((feature, _),) = encode_words([words], tokenizer, 4000)
    tokens = tokenizer.convert_ids_to_tokens(feature["input_ids"])
    return [tokens[a:b] for a, b in zip(feature["word_fronts"], feature["word_ends"], strict=True)]


@pytest.mark.parametrize("name", CLASSES)
def test_a_task_reads_the_running_text(name):
    tokenizer = families.of_class(name)
    sentences = [*map(split_words, TEXTS), *(text.split() for text in TEXTS), *ODD]
    found = list(encode_words(sentences, tokenizer, 4000))
    assert len(found) == len(sentences)
    backend = bare(tokenizer)
    for words, (feature, window) in zip(sentences, found, strict=True):
        # Words of which the tokenizer makes nothing, of format characters only, are unknown.
        nothing = [i for i, word in enumerate(words) if not backend.encode(word, add_special_tokens=False).ids]
        added = [feature["word_fronts"][i] for i in nothing]
        assert all(feature["input_ids"][at] == tokenizer.unk_token_id for at in added)
        assert [i for at, i in enumerate(feature["input_ids"]) if at not in added] == backend.encode(
            " ".join(words)
        ).ids
        assert not nothing or not {*"".join(words[i] for i in nothing)} & {*string.printable}
        assert (window.start, window.first, window.last, window.stop) == (0, 0, len(words), len(words))
        # Every token but the special ones around the text is of one word, in order, and every word has one.
        fronts, starts, ends = (feature[key] for key in ("word_fronts", "word_starts", "word_ends"))
        assert fronts[1:] == ends[:-1] and all(a <= b < c for a, b, c in zip(fronts, starts, ends, strict=True))
        frame = Frame.of(tokenizer)
        assert fronts[0] == len(frame.before) and ends[-1] == len(feature["input_ids"]) - len(frame.after)


@pytest.mark.parametrize("name", CLASSES)
def test_special_tokens_around_a_text(name):
    tokenizer = families.of_class(name)
    backend, frame = bare(tokenizer), Frame.of(tokenizer)
    for text in ("The dog", "ni"):
        assert [*frame.before, *backend.encode(text, add_special_tokens=False).ids, *frame.after] == backend.encode(
            text
        ).ids


def vocabulary(model, pre_tokenizer):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


def test_pieces_by_hand():
    """One small vocabulary per algorithm; what each word's pieces must be is plain to see."""
    words = ["ab", "b", "ac"]
    wordpiece = models.WordPiece({"?": 0, "a": 1, "ab": 2, "b": 3, "##c": 4}, unk_token="?")
    assert pieces(words, vocabulary(wordpiece, pre_tokenizers.BertPreTokenizer())) == [["ab"], ["b"], ["a", "##c"]]
    unigram = models.Unigram([("?", 0.0), ("▁", -3.0), ("▁ab", -1.0), ("b", -2.0), ("▁a", -2.0), ("c", -2.0)], 0)
    assert pieces(words, vocabulary(unigram, pre_tokenizers.Metaspace())) == [["▁ab"], ["▁", "b"], ["▁a", "c"]]
    merges = [("a", "b"), ("Ġ", "b"), ("Ġ", "a")]
    known = {token: i for i, token in enumerate(["?", "a", "b", "c", "Ġ", *map("".join, merges)])}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert pieces(words, vocabulary(models.BPE(known, merges), byte_level)) == [["ab"], ["Ġb"], ["Ġa", "c"]]
    # As Gemma's: no pre-tokenizer, so that the whole text is one sequence; without a marker at its start.
    merges = [("a", "b"), ("▁", "a")]
    known = {token: i for i, token in enumerate(["?", "a", "b", "c", "▁", *map("".join, merges)])}
    marks = pre_tokenizers.Split(Regex("never"), "isolated")
    gemma = vocabulary(models.BPE(known, merges, unk_token="?"), marks)
    gemma.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    assert pieces(words, gemma) == [["ab"], ["▁", "b"], ["▁a", "c"]]


def test_a_token_over_several_words():
    """A word whose text is all in another word's token would get none: then each word is encoded alone."""
    merges = [("a", "▁"), ("a▁", "b")]
    known = {token: i for i, token in enumerate(["?", "a", "b", "c", "▁", *map("".join, merges)])}
    tokenizer = vocabulary(models.BPE(known, merges, unk_token="?"), pre_tokenizers.Split(Regex("never"), "isolated"))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    assert tokenizer.tokenize("a b c") == ["a▁b", "▁", "c"]
    assert pieces(["a", "b", "c"], tokenizer) == [["a"], ["b"], ["c"]]
    # With a token left for each word the running text stays.
    assert pieces(["ca", "bc"], tokenizer) == [["c", "a▁b"], ["c"]]


@pytest.mark.parametrize("name", ["wordpiece", "byte-bpe", "XLMRobertaTokenizer"])
def test_words_without_text_and_windows(name):
    tokenizer = families.of_class(name)
    words = ["\x01\x02", "mwezi", "\u200b", "mwezi" * 300, "na"]
    seen = []
    for feature, window in encode_words([words, [], ["na"]], tokenizer, 16):
        assert len(feature["input_ids"]) <= 16
        assert all(
            a <= b < c for a, b, c in zip(*(feature[f"word_{k}"] for k in ("fronts", "starts", "ends")), strict=True)
        )
        seen += [(feature["example"], word) for word in range(window.first, window.last)]
    assert seen == [*((0, word) for word in range(5)), (2, 0)]
    if name == "wordpiece":
        ((feature, _),) = encode_words([["na", "\x01\x02", "na"]], tokenizer, 16)
        assert feature["input_ids"][feature["word_starts"][1]] == tokenizer.unk_token_id


def test_long_sentences_are_encoded_without_a_warning(caplog):
    tokenizer = families.of_class("byte-bpe")
    tokenizer.model_max_length = 8
    with caplog.at_level(logging.WARNING, logger="transformers"):
        logging.getLogger("transformers").addHandler(caplog.handler)
        assert len(list(encode_words([["mwezi"] * 50], tokenizer, 64))) > 1
    assert not caplog.records


def test_teacher_and_student_must_see_the_same_pieces():
    """Also where pieces are parts of one character, whose places in the text are the same."""
    task, words = get_task("token-classification"), ["na 你", "na"]
    merges = [("ä", "½"), ("½", "ł")]
    known = {token: i for i, token in enumerate(["?", *map(chr, range(97, 123)), *"ä½łĠ", *map("".join, merges)])}

    def made(of):
        return vocabulary(models.BPE(known, of), pre_tokenizers.ByteLevel(add_prefix_space=False))

    first, second = made(merges[:1]), made(merges[1:])
    assert first.tokenize("你") == ["ä½", "ł"] and second.tokenize("你") == ["ä", "½ł"]
    sides = [task.unlabelled(words, tokenizer, 32) for tokenizer in (first, first, second)]
    assert with_teacher_ids(sides[0], sides[1])[1] == set()
    assert with_teacher_ids(sides[0], sides[2])[1] == {0}
    # Other ids for the same pieces are no difference.
    plain = tiny.tokenizer("xlm-roberta")
    other, _ = tiny.renumbered("xlm-roberta")
    sides = [task.unlabelled(tiny.SWAHILI.splitlines(), tokenizer, 64) for tokenizer in (plain, other)]
    assert with_teacher_ids(*sides)[1] == set()
    assert [one["input_ids"] for one in sides[0]] != [one["input_ids"] for one in sides[1]]


@pytest.mark.parametrize("name", ["wordpiece-uncased", "XLMRobertaTokenizer", "RobertaTokenizer"])
def test_a_long_question_is_cut_and_stays_as_it_was_written(name):
    """Decoded and encoded again it would be another text: lower-cased, with other spaces."""
    tokenizer = families.of_class(name)
    text = "Où  est LE  Marché ﷺ? " * 12
    question = Question(file="", line=0, id="1", text=text, context="Paka aliketi. " * 30, answers=[])
    features = get_task("question-answering").encode([question], tokenizer, 48)
    backend = bare(tokenizer)
    whole = backend.encode(text, add_special_tokens=False).ids
    for feature in features:
        assert len(feature["input_ids"]) <= 48 and any(feature["offsets"])
        read = feature["input_ids"][len(Frame.of(tokenizer).before) :]
        assert read[:8] == whole[:8]
    generator = np.random.default_rng(0)
    for _ in range(20):
        cut = text[: int(generator.integers(len(text)))]
        kept = get_task("question-answering").encode(
            [Question(file="", line=0, id="1", text=cut, context="Paka.", answers=[])], tokenizer, 48
        )
        assert all(len(feature["input_ids"]) <= 48 for feature in kept)


@pytest.mark.parametrize("name", ["byte-bpe", "GemmaTokenizer", "wordpiece", "XLMRobertaTokenizer"])
def test_the_pipeline_reads_the_same_tokens_in_running_text(name):
    tokenizer, words = families.of_class(name), ["Rais", "alizungumza", "na", "watu", "wa", "Nairobi", "."]
    config = tiny.config("bert", layers=1, vocab=max(tokenizer.get_vocab().values()) + 1)
    model = AutoModelForTokenClassification.from_config(config).eval()
    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[], device=-1)
    ((feature, _),) = encode_words([words], tokenizer, 64)
    frame = Frame.of(tokenizer)
    own = feature["input_ids"][len(frame.before) : len(feature["input_ids"]) - len(frame.after)]
    assert [token["word"] for token in tagger(" ".join(words))] == tokenizer.convert_ids_to_tokens(own)
