"""Sparse fine-tunings (LT-SFT): train, keep, compose, share.

`train_sparse` trains one, `SparseFineTuning` is the artefact.
"""

from bistil.sparse.artefact import Provenance, SparseDelta, SparseFineTuning
from bistil.sparse.base import fingerprint
from bistil.sparse.training import train_sparse

__all__ = ["Provenance", "SparseDelta", "SparseFineTuning", "fingerprint", "train_sparse"]
