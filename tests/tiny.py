"""Tiny models of real architectures with random weights, and tokenizers trained on a page of text. Offline, fast."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    EuroBertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

FAMILIES = ("bert", "xlm-roberta", "roberta", "deberta-v2", "distilbert", "modernbert", "eurobert")

ENGLISH = """The cat sat on the mat and looked at the moon.
A farmer sold seven sheep at the market in Nairobi.
Rain fell all night, but the river stayed calm.
She reads a new book every week and writes letters to her friends.
Water boils at one hundred degrees.
The president spoke to the people about schools and roads.
My brother plays football with his friends after work.
Small models are fast, and large models are slow.
We cooked rice and beans for twelve guests.
The train to the coast leaves early in the morning."""

SWAHILI = """Paka aliketi kwenye mkeka na kutazama mwezi.
Mkulima aliuza kondoo saba sokoni Nairobi.
Mvua ilinyesha usiku kucha, lakini mto ulibaki mtulivu.
Anasoma kitabu kipya kila wiki na kuandika barua kwa marafiki zake.
Maji huchemka kwa nyuzi mia moja.
Rais alizungumza na watu kuhusu shule na barabara.
Kaka yangu anacheza mpira na marafiki zake baada ya kazi.
Miundo midogo ni ya haraka, na miundo mikubwa ni ya polepole.
Tulipika wali na maharage kwa wageni kumi na wawili.
Treni ya kwenda pwani inaondoka asubuhi na mapema."""


@cache
def _recorded() -> dict[str, Any]:
    """What tokenizers' trainers made of both texts, 300 tokens each: they break ties by chance, so it is kept."""
    return json.loads((Path(__file__).parent / "recorded" / "tokenizers.json").read_text(encoding="utf-8"))


def tokenizer(family: str = "bert") -> PreTrainedTokenizerFast:
    """A fast tokenizer of the kind that the family uses: WordPiece for BERT and DistilBERT, Unigram elsewhere."""
    if family in ("bert", "distilbert"):
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(_recorded()["WordPiece"])),
            unk_token="[UNK]",
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(_recorded()["Unigram"])),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )


def config(
    family: str = "bert", *, layers: int = 6, hidden: int = 32, heads: int = 4, vocab: int | None = None, **extra
):
    """A configuration of the family with `layers` layers of width `hidden`, dropout 0."""
    vocab = vocab or len(tokenizer(family))
    shared = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 140,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if family == "bert":
        return BertConfig(**shared, pad_token_id=0, **extra)
    if family == "xlm-roberta":
        return XLMRobertaConfig(**shared, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1, **extra)
    if family == "roberta":
        return RobertaConfig(**shared, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1, **extra)
    if family == "deberta-v2":
        return DebertaV2Config(
            **shared,
            pad_token_id=1,
            type_vocab_size=0,
            relative_attention=True,
            max_relative_positions=-1,
            position_buckets=16,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            **extra,
        )
    if family == "distilbert":
        return DistilBertConfig(
            vocab_size=vocab,
            dim=hidden,
            n_layers=layers,
            n_heads=heads,
            hidden_dim=2 * hidden,
            max_position_embeddings=140,
            dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=0,
            **extra,
        )
    if family == "modernbert":
        return ModernBertConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=2 * hidden,
            max_position_embeddings=140,
            local_attention=8,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            cls_token_id=0,
            sep_token_id=2,
            **extra,
        )
    if family == "eurobert":
        return EuroBertConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            intermediate_size=2 * hidden,
            max_position_embeddings=140,
            attention_dropout=0.0,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            mask_token_id=4,
            tie_word_embeddings=True,
            **extra,
        )
    raise ValueError(family)


def model(family: str = "bert", *, seed: int = 0, head=AutoModel, **options):
    """A randomly initialised model of the family under an AutoModel class, in evaluation mode."""
    torch.manual_seed(seed)
    return head.from_config(config(family, **options)).eval()


def masked_lm(family: str = "bert", **options):
    """Like `model`, with the masked-language-modelling head."""
    return model(family, head=AutoModelForMaskedLM, **options)


def save(model, folder, family: str = "bert") -> None:
    """Write a model with the family's tokenizer."""
    model.save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)


def renumbered(family: str = "bert", *, keep: int = 0):
    """The family's tokenizer with its vocabulary in reverse order behind the first `keep` tokens.

    Returns:
        The tokenizer, and `old` (vocabulary,): the plain tokenizer's id of each of its tokens.
    """
    plain = tokenizer(family)
    state = json.loads(plain.backend_tokenizer.to_str())
    size = len(plain)
    old = [*range(keep), *reversed(range(keep, size))]
    new = {before: after for after, before in enumerate(old)}
    if isinstance(state["model"]["vocab"], dict):
        state["model"]["vocab"] = {token: new[i] for token, i in state["model"]["vocab"].items()}
    else:
        state["model"]["vocab"] = [state["model"]["vocab"][i] for i in old]
        state["model"]["unk_id"] = new[state["model"]["unk_id"]]
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    for special in state["post_processor"]["special_tokens"].values():
        special["ids"] = [new[i] for i in special["ids"]]
    names = {name: str(token) for name, token in plain.special_tokens_map.items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names), old
