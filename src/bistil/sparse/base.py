"""The model below an SFT: the fingerprint that tells one base from another, whatever the model wears."""

from typing import TYPE_CHECKING

from torch import nn

from bistil._moved import left_names
from bistil.models.fingerprint import encoder_digest
from bistil.sparse.ledger import undressed

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.sparse.base")


def fingerprint(model: nn.Module) -> str:
    """`models.fingerprint.encoder_digest` of the model without the SFTs that it wears, which are put back on."""
    with undressed(model):
        return encoder_digest(model)
