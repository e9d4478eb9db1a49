"""Trimmed tokenizers against the full ones and against plain algorithms, for random vocabularies and odd text."""

import json
import math
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import SENTENCES
from tokenizer_families import FAMILIES, SPECIAL, build
from tokenizers import Tokenizer

from bistil.models.tokenizers import to_json
from bistil.vocabulary.tokenizer_state import read_vocabulary, trim_state

ODD = [
    "👩‍👩‍👧‍👦 🇰🇪 👍🏽 ☃️",
    "e\u0301 \u0301 a\u0300\u0316\u0301 \u200dx",
    "zero\u200bwidth\u200cjoin\u200der\ufeff \u00ad soft",
    "a" * 300 + " " + "ab" * 150,
    "\x00\x01\x07 bell \x1b[0m \x7f \x85 line\r\n\ttab  two   spaces ",
    "<s> [user] </s><mask> <unk> <0x41>",
    "\u202eright to left\u202c \U0010ffff \ufffd \ue000",
    "",
    "   ",
]
TEXTS = [*SENTENCES.values(), *ODD]

words = st.sampled_from([word for text in TEXTS for word in text.split(" ")])
lines = st.one_of(
    st.sampled_from(TEXTS),
    st.lists(words, max_size=8).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
relaxed = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), derandomize=True)


def unpadded(state):
    return Tokenizer.from_str(to_json({**state, "padding": None, "truncation": None}))


def trimmed(family, seed, share):
    """A random trimmed vocabulary: (full vocabulary, full tokenizer, trimmed tokenizer, kept ids)."""
    vocabulary = read_vocabulary(json.loads(build(family)))
    random = np.random.default_rng(seed)
    kept = set(np.flatnonzero(random.random(len(vocabulary)) < share).tolist()).union(*vocabulary.required.values())
    if vocabulary.merges is not None:
        closed, _ = vocabulary.merges.closure({vocabulary.tokens[i] for i in kept - vocabulary.required["special"]})
        kept |= {vocabulary.ids[token] for token in closed}
    kept = np.array(sorted(kept))
    state = trim_state(vocabulary, kept)
    return vocabulary, unpadded(vocabulary.state), unpadded(state), kept, state


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_changes_no_byte(family):
    vocabulary = read_vocabulary(json.loads(build(family)))
    state = trim_state(vocabulary, np.arange(len(vocabulary)))
    assert Tokenizer.from_str(to_json(state)).to_str() == build(family)
    full, same = Tokenizer.from_str(build(family)), Tokenizer.from_str(to_json(state))
    for text in TEXTS:
        before, after = full.encode(text, "pair"), same.encode(text, "pair")
        assert (before.ids, before.tokens, before.offsets) == (after.ids, after.tokens, after.offsets)


@pytest.mark.parametrize("family", FAMILIES)
@relaxed
@given(text=lines, seed=st.integers(0, 5), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_text_of_kept_tokens_is_encoded_as_before(family, text, seed, share):
    vocabulary, full, small, kept, _ = trimmed(family, seed, share)
    before, after = full.encode(text), small.encode(text)
    assert all(0 <= i < len(kept) for i in after.ids)
    if set(before.ids) <= set(kept.tolist()) and vocabulary.unknown not in before.ids:
        assert kept[after.ids].tolist() == before.ids
        assert after.tokens == before.tokens
        assert after.offsets == before.offsets


@pytest.mark.parametrize("family", FAMILIES)
@relaxed
@given(text=lines, seed=st.integers(0, 5), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_other_text_keeps_its_offsets_and_decodes_as_before(family, text, seed, share):
    vocabulary, full, small, _, _ = trimmed(family, seed, share)
    before, after = full.encode(text), small.encode(text)
    assert all(0 <= start <= end <= len(text) for start, end in after.offsets)
    # What the text itself spells as <unk> counts as unknown too, in both.
    name = "<unk>" if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown]
    unknown_before, unknown_after = (
        one.token_to_id(name) in encoding.ids for one, encoding in ((full, before), (small, after))
    )
    if not unknown_before and not unknown_after:
        # Control characters and accents that the normalizer strips or composes may belong to no token; a token that
        # spans one covers it.
        stripped = {
            at
            for at, c in enumerate(text)
            if unicodedata.category(c) == "Mn" or (full.normalizer and not full.normalizer.normalize_str(c))
        }
        assert positions(after) - stripped == positions(before) - stripped
        for skip in (True, False):
            decoded = small.decode(after.ids, skip_special_tokens=skip)
            assert decoded == full.decode(before.ids, skip_special_tokens=skip)
    if vocabulary.required["bytes"]:
        assert unknown_before or not unknown_after


def positions(encoding):
    return {at for start, end in encoding.offsets for at in range(start, end)}


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_text_occurs_in_these_tests(family):
    """The conditions of the tests above are met often enough to mean something.

    Trainers break ties by the order of a hash table, which is another in every process: over all the shares of the
    tests above, both outcomes are common whatever that order.
    """
    same = []
    for share in (0.1, 0.5, 0.9):
        _, full, _, kept, _ = trimmed(family, 0, share)
        same += [set(full.encode(word).ids) <= set(kept.tolist()) for text in TEXTS for word in text.split()]
    assert 0.1 < np.mean(same) < 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_trimming_twice_is_trimming_once(family):
    _, _, _, _, state = trimmed(family, 1, 0.5)
    again = read_vocabulary(json.loads(Tokenizer.from_str(to_json(state)).to_str()))
    assert trim_state(again, np.arange(len(again))) == again.state
    once = Tokenizer.from_str(to_json(state)).to_str()
    assert Tokenizer.from_str(to_json(again.state)).to_str() == once


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_padding_and_pairs_after_save_and_reload(family, tmp_path):
    _, _, _, _, state = trimmed(family, 2, 0.3)
    Tokenizer.from_str(to_json(state)).save(str(tmp_path / "tokenizer.json"))
    full, small = Tokenizer.from_str(build(family)), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [small.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    assert small.id_to_token(small.token_to_id("[user]")) == "[user]"
    before, after = full.encode_batch([("", "x"), ("[user]", "")]), small.encode_batch([("", "x"), ("[user]", "")])
    for old, new in zip(before, after, strict=True):
        added = {*SPECIAL, "[user]"} - {"<pad>"}  # padding follows the longest text, which may be longer now
        assert [token for token in new.tokens if token in added] == [token for token in old.tokens if token in added]
        for token, i in zip(new.tokens, new.ids, strict=True):
            assert i == small.token_to_id(token if small.token_to_id(token) is not None else "<unk>")
    assert small.padding["pad_id"] == small.token_to_id("<pad>")
    assert small.truncation["max_length"] == 64


@pytest.mark.parametrize("family", FAMILIES)
def test_invalid_surrogates_are_refused_as_before(family):
    _, full, small, _, _ = trimmed(family, 0, 0.5)
    for text in ("\ud800", "a\udfffb"):
        with pytest.raises(Exception) as before:
            full.encode(text)
        with pytest.raises(type(before.value)):
            small.encode(text)


def pieces(tokenizer, text):
    """What reaches the model: normalised, pre-tokenized words."""
    text = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] if tokenizer.pre_tokenizer else [text]


def without_specials(text):
    return not any(token in text for token in [*SPECIAL, "[user]"])


@relaxed
@given(text=lines.filter(without_specials), seed=st.integers(0, 5), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_unigram_is_the_best_segmentation_under_the_kept_scores(text, seed, share):
    _, _, small, _, state = trimmed("unigram", seed, share)
    scores = dict(map(tuple, state["model"]["vocab"]))
    unknown = min(scores.values()) - 10.0  # sentencepiece's penalty; for each unknown character
    for word in pieces(small, text):
        got = sum(scores.get(token, unknown * len(token)) for _, token, _ in map(as_tuple, small.model.tokenize(word)))
        assert got == pytest.approx(best_score(word, scores, unknown), abs=1e-6)


def as_tuple(token):
    return token.id, token.value, token.offsets


def best_score(word, scores, unknown):
    """The highest sum of scores of any segmentation, over all of them (independent of the library)."""
    best = [0.0] + [-math.inf] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end):
            piece = word[start:end]
            if piece in scores:
                best[end] = max(best[end], best[start] + scores[piece])
        if word[end - 1] not in scores:
            best[end] = max(best[end], best[end - 1] + unknown)
    return best[-1]


@pytest.mark.parametrize("family", ["wordpiece", "wordpiece-uncased"])
@relaxed
@given(text=lines.filter(without_specials), seed=st.integers(0, 5), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_wordpiece_is_greedy_longest_match(family, text, seed, share):
    _, _, small, _, state = trimmed(family, seed, share)
    vocab = state["model"]["vocab"]
    expected = [token for word in pieces(small, text) for token in longest_match(word, vocab)]
    assert small.encode(text, add_special_tokens=False).tokens == expected


def longest_match(word, vocab):
    if len(word) > 100:
        return ["<unk>"]
    tokens, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        found = next((t for end in ends if (t := ("##" if start else "") + word[start:end]) in vocab), None)
        if found is None:
            return ["<unk>"]
        tokens.append(found)
        start += len(found) - (2 if start else 0)
    return tokens


@pytest.mark.parametrize("family", ["byte-bpe", "sentencepiece-bpe", "whole-word-bpe"])
@relaxed
@given(text=lines.filter(without_specials), seed=st.integers(0, 5), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_bpe_is_plain_merging_with_the_kept_merges(family, text, seed, share):
    _, _, small, _, state = trimmed(family, seed, share)
    model = state["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    expected = []
    for word in pieces(small, text):
        if model.get("ignore_merges") and word in model["vocab"]:
            expected.append(word)
            continue
        parts = [
            part
            for character in word
            for part in (
                [character]
                if character in model["vocab"] or not model.get("byte_fallback")
                else [f"<0x{byte:02X}>" for byte in character.encode()]
            )
        ]
        expected += merge(parts, ranks)
    assert small.encode(text, add_special_tokens=False).tokens == expected


def merge(parts, ranks):
    """Apply the merge of lowest rank, leftmost first, until there is none (Sennrich et al. 2016, algorithm 1)."""
    while True:
        candidates = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not candidates:
            return parts
        _, at = min(candidates)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]


@pytest.mark.parametrize("family", ["byte-bpe", "sentencepiece-bpe", "whole-word-bpe"])
def test_every_kept_bpe_token_is_still_built(family):
    vocabulary, _, _, kept, state = trimmed(family, 3, 0.2)
    small = read_vocabulary(state)
    ordinary = {vocabulary.tokens[i] for i in kept} - {vocabulary.tokens[i] for i in vocabulary.required["special"]}
    ordinary -= {vocabulary.tokens[i] for i in vocabulary.required["bytes"]}
    before = {token for token in ordinary if vocabulary.merges.derive(token) is None}
    after = {token for token in ordinary if small.merges.derive(token) is None}
    assert after == before
    if family == "whole-word-bpe":
        assert before <= {"Ġpresident", "Ġuniversity", "Ġbarabara"}
    else:
        assert not before


def test_the_lowest_unigram_score_stays():
    """Without it an unknown character would become cheaper, and text with one could be cut up in another way."""
    vocabulary = read_vocabulary(json.loads(build("unigram")))
    scores = [score for _, score in vocabulary.state["model"]["vocab"]]
    assert {scores[i] for i in vocabulary.required["score"]} == {min(scores)}
