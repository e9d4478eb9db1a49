"""What tells one encoder from another, and one parameter in it, whatever head it is under."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from bistil.errors import ArtefactError
from bistil.models.families import base_prefix


def resolve_names(model: nn.Module, names: Iterable[str], *, what: str) -> dict[str, str]:
    """Map an SFT's parameter names to a model's, across heads: "bert.x", in a bare encoder, is "x", and vice versa.

    Names of heads (and of the pooler) that the model does not have are left out: a language SFT made with a
    masked-LM head may be worn by a tagger.

    Args:
        what: how to name the SFT in messages.

    Returns:
        {SFT's name: model's name}.

    Raises:
        ArtefactError: a parameter of the encoder is not there: an SFT of another architecture.
    """
    names = list(names)
    family = getattr(model, "base_model_prefix", "")
    long = f"{family}." if family else ""
    own = base_prefix(model)
    known = dict(model.named_parameters(remove_duplicate=False))
    made_with_head = bool(long) and any(name.startswith(long) for name in names)
    found: dict[str, str] = {}
    for name in names:
        in_encoder = name.startswith(long) if made_with_head else True
        short = name.removeprefix(long) if made_with_head else name
        candidates = [own + short, name] if in_encoder else [name]
        match = next((candidate for candidate in candidates if candidate in known), None)
        if match is not None:
            found[name] = match
        elif in_encoder and not short.startswith("pooler."):
            raise ArtefactError(
                f"{what} has a parameter {name!r} that {type(model).__name__} lacks: it belongs to another architecture"
            )
    if names and not found:
        raise ArtefactError(
            f"{what} touches no parameter of {type(model).__name__} (such as {names[0]!r}): another architecture"
        )
    return found


def encoder_digest(model: nn.Module) -> str:
    """Digest of the encoder's parameters: SHA-256 over sorted names, shapes, number formats and all their bytes.

    All bytes count, because two checkpoints of one training run agree in everything else; hashing runs at memory-like
    speed. Half formats are widened to float32 first, which loses nothing, so that a checkpoint is the same base in
    whichever of the two it was loaded. Heads, the pooler and output embeddings are left out, so that one base is the
    same under every head.
    """
    prefix = base_prefix(model)
    encoder = {
        name.removeprefix(prefix): parameter
        # With all names: in some classes a tied embedding stands first under the output layer's.
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith("pooler.")
    }
    names = sorted(encoder)
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        digests = pool.map(lambda name: tensor_digest(name, _widened(encoder[name])), names)
        whole = hashlib.sha256()
        for digest in digests:
            whole.update(digest)
    return whole.hexdigest()


def _widened(value: Tensor) -> Tensor:
    return value.detach().float() if value.dtype in (torch.float16, torch.bfloat16) else value


def module_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters, those of heads included, with their names."""
    whole = hashlib.sha256()
    for name, value in sorted(module.named_parameters(remove_duplicate=False)):
        whole.update(tensor_digest(name, value))
    return whole.hexdigest()


def tensor_digest(name: str, value: Tensor) -> bytes:
    """SHA-256 over a name, a shape, a number format and all bytes."""
    digest = hashlib.sha256(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
