"""Names to models: hub names, folders, and the teacher that comes with a package."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.utils import enable_progress_bars
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from bistil.artefacts import whole_folder
from bistil.errors import ArtefactError, InputError

PACKAGED = "e5-small"

# A run loads and writes dozens of models: transformers' bar for each would drown what the run itself says. Downloads,
# which can take minutes, keep theirs.
disable_progress_bar()
enable_progress_bars()
_VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spm.model",
    "spiece.model",
    "tokenizer.model",
)


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes for a model's name.

    `e5-small` becomes the folder of the packaged teacher (decoded on first use), an existing folder stays itself, and
    anything else is taken for a name on the Hugging Face hub.

    Raises:
        InputError: the name is empty, or it is written as a path and there is no such folder.
        ArtefactError: the folder holds no model.
        MissingExtraError: `e5-small` is asked for and its package is not installed.
    """
    if name == PACKAGED:
        from bistil.pretrained import e5_small_folder

        return str(e5_small_folder())
    if not name.strip():
        raise InputError("the model's name is empty: give a folder, a hub name, or e5-small")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ArtefactError(f"{name} holds no model: config.json is missing")
        return str(folder)
    if folder.is_file():
        raise InputError(f"{name} is a file: name the model's folder, which holds config.json")
    if name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or name.count("/") > 1:
        raise InputError(f"no such folder: {name}")
    return name


def model_folder(name: str) -> Path:
    """The folder of a model by any name that `resolve_model` takes; a hub name is downloaded to the hub's cache.

    Raises:
        InputError: there is no such model, or the hub cannot be reached and the model is not in its cache.
        ArtefactError: the folder holds no model.
    """
    resolved = resolve_model(name)
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.md"]
    try:
        folder = Path(snapshot_download(resolved, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"no model {name!r}: not a folder, and not on the hub or the hub cannot be reached ({_first_line(error)})"
        ) from error
    if not (folder / "config.json").is_file():
        raise ArtefactError(f"{name} on the hub holds no model: config.json is missing")
    return folder


def model_class(config: PreTrainedConfig) -> Any:
    """The class that a configuration names under "architectures"; AutoModel where it names none.

    Classes of transformers, and the dependency parsers of this package.

    Raises:
        ArtefactError: there is no such class.
    """
    name = next(iter(config.architectures or []), "AutoModel")
    if name.endswith("ForDependencyParsing"):
        from bistil.parsing.model import parser_class

        return parser_class(config.__class__)
    found = getattr(transformers, name, None)
    # Names come from files: transformers has functions and modules beside its model classes.
    if not (isinstance(found, type) and (issubclass(found, PreTrainedModel) or name == "AutoModel")):
        raise ArtefactError(
            f"{name} is not a model class of transformers: only its own classes (and bistil's parsers) can be loaded"
        )
    return found


def write_model(
    output: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    record: Mapping[str, Any],
    title: str,
    summary: str,
    languages: Sequence[str],
    made: Sequence[str] = (),
    metrics: Mapping[str, str] | None = None,
    pipeline_tag: str | None = None,
    replace: bool = False,
) -> None:
    """Write a model as an ordinary Hugging Face folder with its card and `bistil.json`, whole or not at all.

    Args:
        output: a new folder.
        record: what `bistil.json` holds beside versions and files: kind, settings, digests, seed, metrics, parents.
        title, summary, languages, made, metrics, pipeline_tag: of the card, see `cards.write_model_card`.
        replace: a folder of ours gives way.

    Raises:
        InputError: `output` may not be written (`artefacts.claim`).
    """
    from bistil.cards import write_model_card

    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    with whole_folder(output, replace=replace, record={"versions": libraries, **record}) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_model_card(
            folder,
            title=title,
            summary=summary,
            languages=languages,
            made=made,
            metrics=metrics,
            pipeline_tag=pipeline_tag,
        )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model, by any name that `resolve_model` takes.

    Raises:
        InputError: there is no such model, or the hub cannot be reached and the model is not in its cache.
        ArtefactError: the tokenizer's files are damaged, or it has no fast form (no tokenizer.json).
    """
    resolved = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved)
    except OSError as error:
        if Path(resolved).is_dir():
            raise ArtefactError(f"{name} has no tokenizer: {_first_line(error)}") from error
        raise InputError(
            f"no model {name!r}: not a folder, and not on the hub or the hub cannot be reached ({_first_line(error)})"
        ) from error
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
        raise ArtefactError(f"the tokenizer of {name} cannot be read: {_first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ArtefactError(f"{name} has a slow tokenizer only; save it with a tokenizer.json (AutoTokenizer, fast)")
    # Without any of its files transformers makes up an empty vocabulary instead of an error.
    if Path(resolved).is_dir() and not any((Path(resolved) / file).is_file() for file in _VOCABULARY_FILES):
        raise ArtefactError(f"{name} has no tokenizer: tokenizer.json is missing")
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
