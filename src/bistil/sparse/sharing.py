"""Sharing SFTs on the hub."""

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

from bistil.models.upload import upload
from bistil.sparse.artefact import SparseFineTuning


def push_to_hub(
    sft: SparseFineTuning | Path | str,
    repository: str,
    *,
    private: bool = False,
    message: str = "Sparse fine-tuning",
    api: HfApi | None = None,
) -> str:
    """Upload an SFT with its card; returns the address of the commit.

    Args:
        sft: an SFT, or a folder that holds one; the folder is read and checked first.
        repository: hub name, "owner/name"; made if it does not exist.
        api: a client of another hub, or with another token.

    Raises:
        InputError: the hub refused, with its reason.
        ArtefactError: the folder holds no sound SFT.
    """
    if not isinstance(sft, SparseFineTuning):
        sft = SparseFineTuning.load(sft)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "sft"
        sft.save(folder)
        return upload(folder, repository, private=private, message=message, api=api)
