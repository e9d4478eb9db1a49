"""Small tokenizers of every family that can be trimmed, trained on one sentence in each of many scripts."""

import json
from functools import cache

import tiny
import transformers
from scripts import SENTENCES
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    DebertaV2Tokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

FAMILIES = (
    "wordpiece",
    "wordpiece-uncased",
    "unigram",
    "unigram-bytes",
    "byte-bpe",
    "sentencepiece-bpe",
    "whole-word-bpe",
)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def corpus() -> list[str]:
    """Sentences in English, Swahili and over 30 scripts."""
    return [*SENTENCES.values(), *tiny.ENGLISH.splitlines(), *tiny.SWAHILI.splitlines()]


@cache
def build(family: str) -> str:
    """The JSON of a tokenizer of the family."""
    tokenizer = _UNTRAINED[family]()
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.post_processor = template
    if family == "byte-bpe":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    if family == "whole-word-bpe":
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    # An added token that no model knows of, as fine-tuned models have them.
    tokenizer.add_tokens(["[user]"])
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    tokenizer.enable_truncation(64)
    return tokenizer.to_str()


def _wordpiece(*, lowercase: bool = False) -> Tokenizer:
    """As mBERT's; lower case strips accents too."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=1500, special_tokens=SPECIAL))
    return tokenizer


def _unigram(*, byte_fallback: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=1200, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(corpus(), trainer)
    if byte_fallback:
        state = json.loads(tokenizer.to_str())
        state["model"]["byte_fallback"] = True
        state["model"]["vocab"] += [[f"<0x{byte:02X}>", -30.0] for byte in range(256)]
        tokenizer = Tokenizer.from_str(json.dumps(state))
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    return tokenizer


def _byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def _sentencepiece_bpe() -> Tokenizer:
    """As Gemma's: spaces become ▁, the whole text is one sequence of merges, unknown characters fall to bytes."""
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=1700, special_tokens=special, limit_alphabet=300)
    trained.train_from_iterator(corpus(), trainer)

    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    state["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _whole_word_bpe() -> Tokenizer:
    """As Llama 3's: a word that is a token is looked up before merging, and some such words no merges build."""

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    state = json.loads(tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    for word in ("Ġpresident", "Ġuniversity", "Ġbarabara"):
        state["model"]["vocab"].setdefault(word, len(state["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(state))


_UNTRAINED = {
    "wordpiece": _wordpiece,
    "wordpiece-uncased": lambda: _wordpiece(lowercase=True),
    "unigram": _unigram,
    "unigram-bytes": lambda: _unigram(byte_fallback=True),
    "byte-bpe": _byte_bpe,
    "sentencepiece-bpe": _sentencepiece_bpe,
    "whole-word-bpe": _whole_word_bpe,
}


def of_class(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one of transformers' own classes, which build themselves from vocabulary and merges."""
    model = {family: json.loads(build(family))["model"] for family in ("unigram", "byte-bpe", "sentencepiece-bpe")}
    pieces = [(piece, score) for piece, score in model["unigram"]["vocab"] if piece not in SPECIAL]
    merges = {family: [tuple(pair) for pair in one["merges"]] for family, one in model.items() if "merges" in one}
    if name in ("BertTokenizer", "DistilBertTokenizer", "BertTokenizer uncased"):
        lowercase = name.endswith("uncased")
        words = json.loads(build("wordpiece-uncased" if lowercase else "wordpiece"))["model"]["vocab"]
        renamed = dict(zip(SPECIAL, ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"), strict=True))
        vocab = {renamed.get(token, token): i for token, i in words.items()}
        return getattr(transformers, name.split()[0])(vocab=vocab, do_lower_case=lowercase)
    if name == "XLMRobertaTokenizer":
        return XLMRobertaTokenizer(vocab=[(token, 0.0) for token in SPECIAL[:4]] + pieces)
    if name == "DebertaV2Tokenizer":
        return DebertaV2Tokenizer(vocab=[(token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")] + pieces)
    if name == "T5Tokenizer":
        return T5Tokenizer(vocab=[(token, 0.0) for token in ("<pad>", "</s>", "<unk>")] + pieces)
    if name == "RobertaTokenizer":
        return RobertaTokenizer(vocab=model["byte-bpe"]["vocab"], merges=merges["byte-bpe"])
    if name == "GemmaTokenizer":
        renamed = dict(zip(SPECIAL, ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), strict=True))
        vocab = {renamed.get(token, token): i for token, i in model["sentencepiece-bpe"]["vocab"].items()}
        return GemmaTokenizer(vocab=vocab, merges=merges["sentencepiece-bpe"])
    # EuroBERT's and ModernBERT's: the plain fast class around a tokenizer.json.
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(build(name)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )
