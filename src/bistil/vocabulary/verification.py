"""Proof that trimming changed nothing that it should not: same tokens, same hidden states, same logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from bistil._moved import left_names
from bistil.errors import ArtefactError
from bistil.vocabulary.tokenizer_state import Vocabulary
from bistil.vocabulary.weights import embedding_rows

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.vocabulary.verification")

# Texts that run through both models, tokens of each, and texts at a time. A logit row has one number per token of the
# full vocabulary, so few positions at a time bound the memory: 192 x 250,000 floats are 192 MB.
MODEL_TEXTS, MODEL_TOKENS, AT_A_TIME = 16, 48, 4


@dataclass(frozen=True, eq=False)
class TextCheck:
    """What trimming does to the lines of one corpus.

    Attributes:
        lines, words: size of the checked text; `held_out` says whether it was left out of the counts.
        unchanged: lines with tokens, all of which are known and kept.
        tokens, trimmed_tokens: number of tokens under the full and the trimmed vocabulary.
        unknown, trimmed_unknown: of these, unknown tokens.
        examples: ids (full vocabulary) of some unchanged lines.
        problems: what must not be: an unchanged line with other tokens, an id out of range, ...
    """

    lines: int
    words: int
    held_out: bool
    unchanged: int
    tokens: int
    trimmed_tokens: int
    unknown: int
    trimmed_unknown: int
    examples: list[list[int]]
    problems: list[str]


def check_tokens(
    vocabulary: Vocabulary,
    full: Tokenizer,
    trimmed: Tokenizer,
    kept: np.ndarray,
    lines: Sequence[str],
    *,
    held_out: bool,
) -> TextCheck:
    """Encode lines with both tokenizers and compare.

    A line whose tokens are all kept, the unknown token apart, must get the same tokens with the same offsets. In any
    other line there may be more unknown tokens than before only where a dropped token holds a character that has no
    token of its own.
    """
    covered = vocabulary.covered(kept.tolist())
    is_kept = np.zeros(len(vocabulary), dtype=bool)
    is_kept[kept] = True
    new_unknown = trimmed.token_to_id(vocabulary.tokens[vocabulary.unknown]) if vocabulary.unknown is not None else None
    sums = np.zeros(6, dtype=np.int64)
    examples: list[list[int]] = []
    problems: list[str] = []
    for start in range(0, len(lines), 1000):
        part = list(lines[start : start + 1000])
        before = full.encode_batch(part, add_special_tokens=False)
        after = trimmed.encode_batch(part, add_special_tokens=False)
        for line, old, new in zip(part, before, after, strict=True):
            same = bool(old.ids) and all(is_kept[i] and i != vocabulary.unknown for i in old.ids)
            sums += (
                len(line.split()),
                same,
                len(old.ids),
                len(new.ids),
                old.ids.count(vocabulary.unknown) if vocabulary.unknown is not None else 0,
                new.ids.count(new_unknown) if new_unknown is not None else 0,
            )
            if any(i >= len(kept) for i in new.ids):
                problems.append(f"an id beyond the vocabulary in {line!r}")
            elif same and (old.tokens != new.tokens or kept[new.ids].tolist() != old.ids or old.offsets != new.offsets):
                problems.append(f"other tokens for {line!r}: {old.tokens} became {new.tokens}")
            elif (
                vocabulary.unknown is not None
                and new_unknown is not None
                and new.ids.count(new_unknown) > old.ids.count(vocabulary.unknown)
                and vocabulary.characters(i for i in old.ids if not is_kept[i]) <= covered
            ):
                problems.append(f"more unknown tokens in {line!r}, though all of its characters have tokens")
            elif same and len(examples) < MODEL_TEXTS:
                examples.append(old.ids)
    words, unchanged, tokens, trimmed_tokens, unknown, trimmed_unknown = map(int, sums)
    return TextCheck(
        len(lines),
        words,
        held_out,
        unchanged,
        tokens,
        trimmed_tokens,
        unknown,
        trimmed_unknown,
        examples,
        problems,
    )


def check_special_tokens(full: Any, trimmed: Any, kept: np.ndarray) -> list[str]:
    """Compare the special tokens of two `PreTrainedTokenizerFast`, and what they put around one text and a pair."""
    problems = []
    for role, token in full.special_tokens_map.items():
        if trimmed.special_tokens_map.get(role) != token:
            problems.append(f"{role} is {trimmed.special_tokens_map.get(role)!r} instead of {token!r}")
    if [kept[i] for i in trimmed.all_special_ids] != full.all_special_ids:
        problems.append("special tokens have other ids")
    for texts in (("",), ("", "")):
        before, after = full(*texts), trimmed(*texts)
        if kept[np.array(after["input_ids"], dtype=np.int64)].tolist() != list(before["input_ids"]):
            problems.append("other special tokens around a text")
    return problems


def model_batches(
    checks: Mapping[str, TextCheck], kept: np.ndarray, special: set[int], *, ending: int | None = None
) -> list[Tensor]:
    """Batches of full-vocabulary ids for the model check, each (texts, tokens), cut to equal length.

    Each ends in the token `ending`, if there is one: some heads read there.

    Unchanged lines of every corpus; without any, kept tokens in random order (seed 0).
    """
    texts = [ids for check in checks.values() for ids in check.examples[: -(-MODEL_TEXTS // len(checks))]]
    if not texts:
        ordinary = np.array([i for i in kept if int(i) not in special] or kept)
        texts = np.random.default_rng(0).choice(ordinary, size=(AT_A_TIME, 16)).tolist()
    texts.sort(key=len)
    batches = []
    for start in range(0, len(texts), AT_A_TIME):
        group = texts[start : start + AT_A_TIME]
        length = min(MODEL_TOKENS, *map(len, group))
        last = [] if ending is None else [ending]
        batches.append(torch.tensor([ids[:length] + last for ids in group]))
    return batches


@torch.no_grad()
def outputs(model: PreTrainedModel, batches: Sequence[Tensor], kept: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Hidden states and logits of a model on each batch.

    Args:
        kept: columns to keep of outputs that have one column per token of the model's vocabulary.
    """
    collected = []
    rows = embedding_rows(model)
    for ids in batches:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        result: dict[str, Tensor] = {}
        for name, value in model(**inputs, output_hidden_states=True, return_dict=True).items():
            parts = value if isinstance(value, tuple | list) else (value,)
            for i, tensor in enumerate(parts):
                if isinstance(tensor, Tensor):
                    by_token = kept is not None and "logits" in name and tensor.shape[-1] == rows
                    result[f"{name}[{i}]"] = tensor[..., kept].clone() if by_token else tensor.clone()
        collected.append(result)
    return collected


def compare_outputs(before: Sequence[Mapping[str, Tensor]], after: Sequence[Mapping[str, Tensor]]) -> tuple[int, float]:
    """Number of compared tensors and their largest absolute difference; 0.0 is equality of every bit.

    Raises:
        ArtefactError: the outputs are not of the same kind, or differ by more than rounding does.
    """
    number, largest = 0, 0.0
    for old, new in zip(before, after, strict=True):
        if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
            raise ArtefactError(f"the trimmed model has other outputs: {sorted(new)} instead of {sorted(old)}")
        for name, value in old.items():
            number += 1
            if not torch.equal(value, new[name]):
                difference = float((value.double() - new[name].double()).abs().max())
                # A matrix product of another width may add up in another order; nothing else may differ.
                if not difference <= 16 * torch.finfo(value.dtype).eps * max(1.0, float(value.abs().max())):
                    raise ArtefactError(f"trimming would change the model's outputs: {name} by up to {difference:g}")
                largest = max(largest, difference)
    return number, largest
