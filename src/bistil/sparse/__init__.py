"""Sparse fine-tunings (LT-SFT): train, keep, compose, share.

`train_sparse` trains one, `SparseFineTuning` is the artefact.
"""

from bistil.sparse.artefact import SparseFineTuning, read_legacy
from bistil.sparse.base import fingerprint
from bistil.sparse.composition import Comparison, compare, compose
from bistil.sparse.delta import Provenance, SparseDelta
from bistil.sparse.legacy import write_legacy
from bistil.sparse.masks import baseline_mask
from bistil.sparse.peft import read_shira, write_shira
from bistil.sparse.sharing import push_to_hub
from bistil.sparse.sources import SourceBatches
from bistil.sparse.training import train_sparse

__all__ = [
    "Comparison",
    "Provenance",
    "SourceBatches",
    "SparseDelta",
    "SparseFineTuning",
    "baseline_mask",
    "compare",
    "compose",
    "fingerprint",
    "push_to_hub",
    "read_legacy",
    "read_shira",
    "train_sparse",
    "write_legacy",
    "write_shira",
]
