"""Which entries stay free: maskable parameters, and the K entries that moved furthest (LT-SFT, section 3.1).

Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bistil.errors import DivergenceError, InputError
from bistil.models.families import base_prefix

# Entries handled at a time: bounds the extra memory of a choice among hundreds of millions.
CHUNK = 1 << 22


@dataclass(kw_only=True, frozen=True)
class ParameterRoles:
    """What happens to each parameter of a model, by name.

    Tied parameters stand once: under their name in the encoder, so that the SFT fits it under other heads, else under
    their first.
    """

    maskable: list[str]
    dense: list[str]
    frozen: list[str]


def parameter_roles(
    model: nn.Module,
    *,
    dense: Collection[str] = (),
    freeze_embeddings: bool = False,
    freeze_layer_norms: bool = False,
) -> ParameterRoles:
    """Sort a model's parameters into maskable ones, densely trained ones and frozen ones.

    Args:
        model: parameters that do not require gradients count as frozen, whatever else is said.
        dense: names of parameters that are trained whole and stored whole (model heads). A name may be any of a tied
            parameter's names.
        freeze_embeddings: the input embeddings (`get_input_embeddings`) are frozen.
        freeze_layer_norms: the parameters of modules whose class name ends in LayerNorm or RMSNorm are frozen.

    Raises:
        InputError: `dense` names a parameter that the model does not have.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    unknown = sorted(set(dense) - named.keys())
    if unknown:
        raise InputError(f"{type(model).__name__} has no parameter {unknown[0]!r} to train densely")
    whole = {id(named[name]) for name in dense}
    held = {id(p) for p in named.values() if not p.requires_grad}
    if freeze_embeddings:
        held |= {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    if freeze_layer_norms:
        norms = [m for m in model.modules() if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))]
        held |= {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    roles = ParameterRoles(maskable=[], dense=[], frozen=[])
    prefix = base_prefix(model)
    names: dict[int, str] = {}
    for name, parameter in named.items():
        known = names.get(id(parameter))
        if known is None or (name.startswith(prefix) and not known.startswith(prefix)):
            names[id(parameter)] = name
    for parameter in model.parameters():
        name = names[id(parameter)]
        if id(parameter) in held:
            roles.frozen.append(name)
        elif id(parameter) in whole:
            roles.dense.append(name)
        else:
            roles.maskable.append(name)
    return roles


def entries_to_keep(total: int, *, density: float | None, count: int | None) -> int:
    """K: a count, or a density of `total` maskable entries, rounded.

    Raises:
        InputError: neither or both are given, or K is not within 1..total.
    """
    if (density is None) == (count is None):
        raise InputError("sparse fine-tuning needs either a density or a count of entries, and not both")
    kept = count if count is not None else round(total * density)  # type: ignore[operator]
    if not 1 <= kept <= total:
        what = f"count {count}" if count is not None else f"density {density}"
        raise InputError(f"{what} means {kept} of {total} maskable entries: choose at least 1 and at most all")
    return kept


def _movement_bits(before: Tensor, after: Tensor, start: int) -> Tensor:
    """|after - before| of one chunk as int32 bit patterns, which order as the (non-negative) float32 numbers do."""
    stop = min(start + CHUNK, before.numel())
    moved = (after.reshape(-1)[start:stop].float() - before.reshape(-1)[start:stop].float()).abs_()
    return moved.view(torch.int32)


def largest_movements(before: Mapping[str, Tensor], after: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The `count` entries with the largest |theta_1 - theta_0| over all parameters together.

    Exact selection in two counting passes over the float32 bit patterns (upper, then lower 16 bits), a chunk at a
    time, so that no buffer of the model's size is needed. Among equal movements at the threshold the first in
    parameter order, then in flat order, are kept: the choice is deterministic.

    Args:
        before: theta_0 per parameter, any shapes.
        after: theta_1, same names and shapes.
        count: K, at least 1 and at most the number of entries.

    Returns:
        Per parameter, in the order of `before`: sorted flat row-major indices, int64, (entries kept,).

    Raises:
        DivergenceError: a movement is NaN.
    """
    device = next(iter(after.values())).device
    chunks = [(name, start) for name, value in before.items() for start in range(0, value.numel(), CHUNK)]
    upper = torch.zeros(1 << 16, dtype=torch.int64, device=device)
    for name, start in chunks:
        bits = _movement_bits(before[name].to(device), after[name], start)
        upper += torch.bincount(bits >> 16, minlength=1 << 16)
    # Bit patterns above infinity's are NaN.
    if bool(upper[0x7F81:].any()) or _has_nan(before, after, chunks, upper):
        raise DivergenceError("a parameter became NaN in the dense phase: lower the learning rate")
    bucket, above = _bucket_of(upper, count)
    lower = torch.zeros(1 << 16, dtype=torch.int64, device=device)
    for name, start in chunks:
        bits = _movement_bits(before[name].to(device), after[name], start)
        lower += torch.bincount(bits[(bits >> 16) == bucket] & 0xFFFF, minlength=1 << 16)
    low, above_low = _bucket_of(lower, count - above)
    threshold = (bucket << 16) | low
    ties = count - above - above_low

    kept: dict[str, list[Tensor]] = {name: [] for name in before}
    for name, start in chunks:
        bits = _movement_bits(before[name].to(device), after[name], start)
        places = torch.nonzero(bits >= threshold).flatten()
        equal = bits[places] == threshold
        taken = ~equal | (equal.cumsum(0) <= ties)
        ties -= int((equal & taken).sum())
        kept[name].append(places[taken] + start)
    return {name: torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64) for name, parts in kept.items()}


def _has_nan(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], chunks: list[tuple[str, int]], upper: Tensor
) -> bool:
    """Whether infinity's own bucket holds NaN; looked at only when that bucket is not empty."""
    if not int(upper[0x7F80]):
        return False
    return any(
        bool((_movement_bits(before[name].to(upper.device), after[name], start) > 0x7F800000).any())
        for name, start in chunks
    )


def _bucket_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bucket in which the count-th largest value lies, and how many values lie in higher buckets."""
    from_top = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, torch.tensor(count, device=from_top.device)))
    above = int(from_top[place - 1]) if place else 0
    return len(histogram) - 1 - place, above


def random_entries(sizes: Mapping[str, int], count: int, *, seed: int) -> dict[str, Tensor]:
    """`count` entries drawn uniformly without replacement over all parameters together: the baseline mask.

    Args:
        sizes: entries per parameter.

    Returns:
        Per parameter: sorted flat indices, int64.
    """
    total = sum(sizes.values())
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(total, dtype=torch.bool)
    # Drawing with repetition until enough are distinct needs no permutation of hundreds of millions.
    missing = count
    if count > total // 2:
        order = torch.randperm(total, generator=generator)
        chosen[order[:count]] = True
        missing = 0
    while missing:
        chosen[torch.randint(total, (missing,), generator=generator)] = True
        missing = count - int(chosen.sum())
    parts = torch.split(chosen, list(sizes.values()))
    return {name: torch.nonzero(part).flatten() for name, part in zip(sizes, parts, strict=True)}


def baseline_mask(
    model: nn.Module,
    kind: Literal["random", "biases"],
    *,
    dense: Collection[str] = (),
    count: int | None = None,
    seed: int = 0,
    freeze_embeddings: bool = False,
    freeze_layer_norms: bool = False,
) -> dict[str, Tensor]:
    """A mask to compare LT-SFT with, for `train_sparse(mask=...)`, which then has no dense phase.

    Args:
        kind: "random" draws `count` of the maskable entries; "biases" frees all bias vectors and nothing else (BitFit,
            Ben Zaken et al. 2022).
        dense, freeze_embeddings, freeze_layer_norms: as in `parameter_roles`.
        count: entries of a random mask, such as an SFT's `count`.
        seed: of a random mask.

    Raises:
        InputError: a random mask without a possible count.
    """
    roles = parameter_roles(
        model, dense=dense, freeze_embeddings=freeze_embeddings, freeze_layer_norms=freeze_layer_norms
    )
    named = dict(model.named_parameters(remove_duplicate=False))
    sizes = {name: named[name].numel() for name in roles.maskable}
    if kind == "biases":
        return {name: torch.arange(size) for name, size in sizes.items() if name.endswith("bias")}
    return random_entries(sizes, entries_to_keep(sum(sizes.values()), density=None, count=count), seed=seed)
