"""Folders to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from bistil.errors import InputError, first_line


def upload(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    message: str,
    revision: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload a folder to a repository of models, which is made if it is not there; returns the commit's address.

    Args:
        repository: hub name, "owner/name".
        api: a client of another hub, or with another token.

    Raises:
        InputError: the hub refused, with its reason.
    """
    api = api or HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, revision=revision)
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise InputError(f"cannot push to {repository}: {first_line(error)}") from error
    return str(done.commit_url)
