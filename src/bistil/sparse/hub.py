"""Hub names wherever a path does, and sharing."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from bistil.errors import ArtefactError, InputError
from bistil.models import hub_folder
from bistil.sparse.artefact import CONFIG, TENSORS, SparseFineTuning
from bistil.sparse.legacy import LEGACY_FILE


def sft_folder(name: str, *, revision: str | None = None) -> Path:
    """The folder of an SFT: a local folder as it is, a hub name downloaded into the hub's cache.

    Raises:
        InputError: neither a folder nor a name that the hub (or its cache, offline) knows.
        ArtefactError: the repository holds no SFT.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{name} is a file: name the folder that holds {TENSORS}")
    cached = hub_folder(name, [TENSORS, CONFIG, LEGACY_FILE, "README.md"], kind="sparse fine-tuning", revision=revision)
    if not (cached / TENSORS).exists() and not (cached / LEGACY_FILE).exists():
        raise ArtefactError(f"the hub's {name} holds neither {TENSORS} nor {LEGACY_FILE}: no sparse fine-tuning")
    return cached


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
    from tempfile import TemporaryDirectory

    api = api or HfApi()
    if not isinstance(sft, SparseFineTuning):
        sft = SparseFineTuning.load(sft)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "sft"
        sft.save(folder)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except (HFValidationError, HfHubHTTPError, OSError) as error:
            raise InputError(f"cannot push to {repository}: {str(error).strip().splitlines()[0]}") from error
    return str(done.commit_url)
