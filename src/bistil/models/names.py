"""Names to folders: paths, hub names, and the teacher that comes with a package."""

import difflib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from bistil.errors import ArtefactError, InputError, first_line
from bistil.pretrained import e5_small_folder
from bistil.runtime.artefacts import read_json
from bistil.runtime.documents import check_names

PACKAGED = "e5-small"
# Multilingual models whose names people type.
NAMES = (
    PACKAGED, "xlm-roberta-base", "xlm-roberta-large", "bert-base-multilingual-cased", "bert-base-multilingual-uncased",
    "distilbert-base-multilingual-cased", "FacebookAI/xlm-roberta-base", "FacebookAI/xlm-roberta-large",
    "google-bert/bert-base-multilingual-cased", "microsoft/mdeberta-v3-base", "jhu-clsp/mmBERT-base",
    "jhu-clsp/mmBERT-small", "intfloat/multilingual-e5-small", "intfloat/multilingual-e5-base",
)  # fmt: skip
# A slip adds or leaves out so many: roberta-base is a model of its own.
MOST_LETTERS_OFF = 2
# What describes a sparse fine-tuning in its folder (`bistil.sparse`).
SFT_CONFIG = "sft_config.json"


# What describes a model and its tokenizer: configurations, vocabularies of every kind, the card.
_DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.spm", "*.jinja", "*.md")


def resolve_model(name: str) -> str:
    """The folder or the hub's name that a model's name means; nothing is downloaded (see `model_folder`).

    `e5-small` becomes the folder of the packaged teacher (decoded on first use), an existing folder stays itself, and
    anything else is taken for a name on the Hugging Face hub.

    Raises:
        InputError: the name is empty, or it is written as a path and there is no such folder.
        ArtefactError: the folder holds no model.
        MissingExtraError: `e5-small` is asked for and its package is not installed.
    """
    if name == PACKAGED:
        return str(e5_small_folder())
    if not name.strip():
        raise InputError("the model's name is empty: give a folder, a hub name, or e5-small")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ArtefactError(f"{name} holds {what_else(folder, name)}")
        return str(folder)
    if folder.is_file():
        raise InputError(f"{name} is a file: name the model's folder, which holds config.json")
    if name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or name.count("/") > 1:
        raise InputError(f"no such folder: {name}{_did_you_mean(name)}")
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.85)
    # The hub gives no new names without an owner, so that one that is nearly a known one is a slip: nobody is asked.
    if near and "/" not in name and name not in NAMES and abs(len(name) - len(near[0])) <= MOST_LETTERS_OFF:
        raise InputError(f"no model {name!r}: did you mean {near[0]}?")
    return name


def _did_you_mean(name: str) -> str:
    """The nearest name of a known model or of a folder beside, for a message; empty: none is near."""
    folder = Path(name).expanduser()
    beside: list[str] = []
    with suppress(OSError):
        beside = [str(folder.parent / one.name) for one in folder.parent.iterdir() if (one / "config.json").is_file()]
    near = difflib.get_close_matches(name, [*NAMES, *beside], n=1, cutoff=0.8)
    return f": did you mean {near[0]}?" if near else ""


def what_else(folder: Path, name: str) -> str:
    """What a folder holds that has no model's configuration."""
    if (folder / SFT_CONFIG).is_file():
        return (
            "a sparse fine-tuning, not a model: merge it into its base first, with `bistil sft merge BASE "
            f"{name} --output FOLDER`"
        )
    if (folder / "adapter_config.json").is_file():
        return "an adapter, not a model: merge it into its base first"
    # A run's folder, phase 1's, or any folder of models.
    for place in ("students/*", "phase1/*", "*"):
        with suppress(OSError):
            for one in sorted(folder.glob(f"{place}/config.json")):
                return f"no model itself, but others: name one of them, such as {one.parent}"
    return "no model: config.json is missing"


def model_folder(name: str, *, weights: bool = True) -> Path:
    """The folder of a model by any name that `resolve_model` takes; a hub name is downloaded to the hub's cache.

    All commands find their models here. What the cache lacks of a model, after an interruption say, is fetched.
    pytorch_model.bin is fetched only where there is no model.safetensors.

    Args:
        weights: false where configuration and tokenizer are enough.

    Raises:
        InputError: there is no such model, or the hub cannot be reached and its cache has not all of the model.
        ArtefactError: the folder holds no model.
    """
    resolved = resolve_model(name)
    if Path(resolved).is_dir():
        return Path(resolved)
    folder = hub_folder(resolved, _DESCRIPTIONS)
    if not (folder / "config.json").is_file():
        raise ArtefactError(f"{name} on the hub holds no model: config.json is missing")
    if not weights:
        return folder
    for single, others in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        folder = hub_folder(resolved, [*_DESCRIPTIONS, others])
        index = folder / f"{single}.index.json"
        shards = _shards(index) if index.is_file() else {single}
        lacking = sorted(file for file in shards if not (folder / file).is_file())
        if not lacking:
            return folder
        if index.is_file():
            break
    raise InputError(
        f"{name} lacks its weights ({lacking[0]}): the hub cannot be reached and its cache has not all of the model, "
        "or the repository holds none that transformers can load"
    )


def _shards(index: Path) -> set[str]:
    """The files that an index of weights names.

    Raises:
        ArtefactError: it is damaged.
        InputError: it names files elsewhere.
    """
    stated = read_json(index)
    names = stated.get("weight_map") if isinstance(stated, dict) else None
    if not isinstance(names, dict):
        raise ArtefactError(f"{index} is damaged: 'weight_map' is no table; fetch or make it again")
    check_names(list(names.values()), where=str(index))
    return set(names.values())


def shards_of(folder: Path) -> set[str]:
    """The files that all indices of weights in a folder name.

    Raises:
        InputError, ArtefactError: as `model_folder`.
    """
    return {name for index in folder.glob("*.index.json") for name in _shards(index)}


def hub_folder(name: str, files: Sequence[str], *, kind: str = "model", revision: str | None = None) -> Path:
    """The folder of a repository of the hub in the hub's cache, completed where the hub can be reached.

    Args:
        files: patterns of the files that are wanted.
        kind: what the name is to name, for messages.

    Raises:
        InputError: there is no such repository, or the hub cannot be reached and the cache has not all of these files.
    """
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError:
        raise InputError(f"no such folder: {name}") from None
    except Exception as error:  # the hub's, the operating system's, or those of the client's HTTP library
        hint = _did_you_mean(name) if kind == "model" and name not in NAMES else ""
        raise InputError(
            f"no {kind} {name!r}: not a folder, and not on the hub or the hub cannot be reached "
            f"({first_line(error)}){hint}"
        ) from error
