"""Folders to the Hugging Face hub: what of them belongs there, and the way."""

import hashlib
import json
import ntpath
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from bistil.errors import InputError, first_line
from bistil.models.loading import read_config
from bistil.runtime.artefacts import RECORD, read_json
from bistil.runtime.ownership import contents, is_work_folder

# What a training leaves beside a model, and what belongs to this machine alone.
_LEFT_OUT = (
    "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json", "training_args.bin",
    "train_log.jsonl",
    "events.out.tfevents*", "*.partial", "*.retired", "*.work", "*.lock", "*.tmp", "*.log", "*.py", "*.pyc",
)  # fmt: skip
_LEFT_OUT_FOLDERS = ("checkpoint-*", "tensorboard", "runs", "__pycache__", "*.partial", "*.retired", "*.work")
# Records, whose paths are cut to their last names wherever they stand; in what libraries read, only where the model
# came from: a label or a token may look like a path.
_RECORDS = (RECORD, "trim_report.json", "phase1.json", "sft_config.json")
_CONFIGURATIONS = ("config.json", "tokenizer_config.json", "adapter_config.json")
# Of an owner or a repository, as the hub allows it.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_ORIGINS = ("_name_or_path", "name_or_path", "base_model_name_or_path")


@dataclass(frozen=True)
class Shipment:
    """What of a folder would be uploaded.

    Attributes:
        folder: where it is.
        files: relative names, with the bytes as they are uploaded where these are not the file's own.
        left_out: relative names of all else.
    """

    folder: Path
    files: dict[str, bytes | None]
    left_out: list[str]

    def size(self, name: str) -> int:
        """Bytes of one of the files."""
        own = self.files[name]
        return (self.folder / name).stat().st_size if own is None else len(own)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(map(self.size, self.files))


def shipment(folder: Path) -> Shipment:
    """What of a folder belongs onto the hub, and how: nothing is changed in the folder.

    Left out are hidden files, links, work folders, checkpoints, states of optimizers, logs and code. Absolute paths in
    records and configurations are cut to their last names, and the list of files in `bistil.json` is of what is
    uploaded, so that the folder is whole where it is downloaded.

    Raises:
        InputError: nothing is left.
        ArtefactError: the model is defined by code of its own.
    """
    _check_without_code(folder)
    kept: dict[str, bytes | None] = {}
    left: list[str] = []
    for name in contents(folder):
        if _belongs(folder, PurePosixPath(name)):
            kept[name] = _without_paths(folder / name)
        else:
            left.append(name)
    for name in [one for one in kept if PurePosixPath(one).name == RECORD]:
        kept[name] = _resealed(folder, name, kept)
    if not kept:
        raise InputError(f"{folder} holds nothing to push")
    return Shipment(folder, kept, left)


def _check_without_code(folder: Path) -> None:
    """Refuse a model that needs code of its own: Python files stay here, so nobody could load what was uploaded."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else None
    # A folder may name code beside a type that transformers knows; only reading it tells.
    if isinstance(config, dict) and config.get("auto_map"):
        read_config(folder)


def check_repository(repository: str) -> None:
    """Refuse what cannot be the name of a repository, without a network.

    Raises:
        InputError: it is not "owner/name".
    """
    if not re.fullmatch(f"{_NAME}/{_NAME}", repository) or re.search(r"--|\.\.", repository):
        raise InputError(
            f"cannot push to {repository!r}: write OWNER/NAME of letters and digits, with '-', '_' or '.' within"
        )


def upload(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    message: str,
    revision: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload what belongs there of a folder to a repository of models, which is made if it is not there.

    Args:
        repository: hub name, "owner/name".
        private: of a repository that is made.
        api: a client of another hub, or with another token.

    Returns:
        The commit's address.

    Raises:
        InputError: the hub refused, with its reason, or cannot be reached.
    """
    check_repository(repository)
    sent = shipment(folder)
    api = api or HfApi()
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name if own is None else own)
        for name, own in sent.files.items()
    ]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message=message, revision=revision)
    except Exception as error:  # the hub's, the operating system's, or those of the client's HTTP library
        raise InputError(
            f"cannot push to {repository}: the hub refused or cannot be reached ({first_line(error)})"
        ) from error
    return str(done.commit_url)


def _belongs(folder: Path, name: PurePosixPath) -> bool:
    path = folder / name
    if path.is_symlink() or not path.is_file() or any(part.startswith(".") for part in name.parts):
        return False
    above = [folder / one for one in name.parents if one.parts]
    if any(fnmatch(part, one) for part in name.parts[:-1] for one in _LEFT_OUT_FOLDERS) or any(
        is_work_folder(one) for one in above
    ):
        return False
    return not any(fnmatch(name.name, one) for one in _LEFT_OUT)


def _without_paths(file: Path) -> bytes | None:
    """The bytes of a record or a configuration without absolute paths; None: it has none, or is no such file."""
    if file.name not in (*_RECORDS, *_CONFIGURATIONS):
        return None
    value = read_json(file)
    if file.name in _RECORDS:
        bare = _bare(value)
    elif isinstance(value, dict):
        bare = value | {key: _bare(value[key]) for key in _ORIGINS if key in value}
    else:
        return None
    return None if bare == value else _json_bytes(bare)


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {_bare(key): _bare(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_bare(one) for one in value]
    if not isinstance(value, str):
        return value
    for flavour in (posixpath, ntpath):
        whole = value.rstrip("/\\")
        if (flavour.isabs(whole) or whole.startswith("~")) and flavour.basename(whole) != whole.lstrip("/\\"):
            return flavour.basename(whole)
    return value


def _resealed(folder: Path, name: str, kept: dict[str, bytes | None]) -> bytes | None:
    """A record whose list of files is of those that are uploaded; None: it is as it was."""
    own = kept[name]
    record = read_json(folder / name) if own is None else json.loads(own)
    listed = record.get("files") if isinstance(record, dict) else None
    if not isinstance(listed, dict):
        return own
    beside = PurePosixPath(name).parent
    new = dict(_digests(folder, beside, listed, kept))
    return own if new == listed else _json_bytes({**record, "files": new})


def _digests(
    folder: Path, beside: PurePosixPath, listed: dict[str, Any], kept: dict[str, bytes | None]
) -> Iterator[tuple[str, str]]:
    for file, digest in listed.items():
        place = (beside / file).as_posix()
        if place not in kept:
            continue
        sent = kept[place]
        # The record of a folder within may itself have changed.
        if PurePosixPath(place).name == RECORD and "/" in file:
            sent = _resealed(folder, place, kept)
        yield file, digest if sent is None else hashlib.sha256(sent).hexdigest()


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
