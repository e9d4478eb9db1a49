"""Names to models: hub names, folders, and the teacher that comes with a package; and the one loader of weights."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.utils import enable_progress_bars
from torch import nn
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers import logging as transformers_logging
from transformers.utils.logging import disable_progress_bar

from bistil.artefacts import check_product, read_json, whole_folder
from bistil.errors import ArtefactError, BistilError, InputError
from bistil.families import base_prefix, head_names
from bistil.tokenizer_files import read_tokenizer, write_tokenizer

PACKAGED = "e5-small"

HeadRule = Literal["whole", "optional", "new"]
"""What a folder must give a model besides its encoder. "whole": its head; "optional": what it lacks of the head is made
anew; "new": all of the head is made anew, whatever the folder has. A pooler counts as head where a head reads it."""

# A run loads and writes dozens of models: transformers' bar for each would drown what the run itself says. Downloads,
# which can take minutes, keep theirs.
disable_progress_bar()
enable_progress_bars()
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
        shards = set(read_json(index).get("weight_map", {}).values()) if index.is_file() else {single}
        lacking = sorted(file for file in shards if not (folder / file).is_file())
        if not lacking:
            return folder
        if index.is_file():
            break
    raise InputError(
        f"{name} lacks its weights ({lacking[0]}): the hub cannot be reached and its cache has not all of the model, "
        "or the repository holds none that transformers can load"
    )


def hub_folder(name: str, files: Sequence[str], *, kind: str = "model", revision: str | None = None) -> Path:
    """The folder of a repository of the hub in the hub's cache, completed where the hub can be reached.

    Args:
        files: patterns of the files that are wanted.
        kind: what the name is to name, for messages.

    Raises:
        InputError: there is no such repository, or the hub cannot be reached and the cache has not all of these files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError:
        raise InputError(f"no such folder: {name}") from None
    except Exception as error:  # the hub's, the operating system's, or those of the client's HTTP library
        raise InputError(
            f"no {kind} {name!r}: not a folder, and not on the hub or the hub cannot be reached ({_first_line(error)})"
        ) from error


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


def read_config(folder: str | Path) -> Any:
    """The configuration of a model in a folder, or of a hub name.

    Raises:
        ArtefactError: config.json is missing or damaged.
    """
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers and its parsers raise anything
        if not (Path(folder) / "config.json").is_file():
            raise ArtefactError(f"{folder} is not a Hugging Face model folder: {_first_line(error)}") from error
        raise ArtefactError(f"the config.json of {folder} cannot be read: {_first_line(error)}") from error


def task_of(class_name: str) -> str:
    """What a model class is for: "token-classification" of `BertForTokenClassification`, "" of `BertModel`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", class_name.partition("For")[2]).lower()


def load_model(
    folder: str | Path,
    auto_class: Any = None,
    *,
    head: HeadRule = "whole",
    config: Any = None,
    seed: int = 0,
    dtype: Any = torch.float32,
    **options: Any,
) -> tuple[Any, set[str]]:
    """A model with the weights of a folder, in evaluation mode: the only way in which weights are loaded.

    Nothing is used that is damaged: the folder's files are those that were written (where it says what was written),
    all tensors are there, of the configuration's shapes and number, and finite.

    Args:
        folder: of a model, or a hub name.
        auto_class: such as `AutoModelForTokenClassification`; default: the class that the configuration names.
        head: which parameters outside the encoder may be made anew.
        config: instead of the folder's own.
        seed: of what is made anew.
        dtype: number format; "auto" keeps the file's.
        options: for `from_pretrained`.

    Returns:
        The model, and the names of its parameters that were made anew.

    Raises:
        ArtefactError: the folder holds no such model, or a damaged one.
    """
    if Path(folder).is_dir():
        check_product(Path(folder))
    config = read_config(folder) if config is None else config
    named = {task_of(name) for name in config.architectures or ()}
    kind = model_class(config) if auto_class is None else auto_class
    options = {
        "config": config,
        "dtype": dtype,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
        **options,
    }
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, report = kind.from_pretrained(folder, **options)
        except BistilError:
            raise
        except Exception as error:  # a damaged file makes readers raise anything
            raise ArtefactError(f"cannot load {folder} as {kind.__name__}: {_first_line(error)}") from error
        wanted = task_of(type(model).__name__)
        if head == "whole" and auto_class is not None and wanted and named and wanted not in named:
            raise _no_head(folder, wanted)
        made = _check_loaded(folder, model, report, head=head, named=named)
        if head == "new" and (given := head_names(model, model.state_dict()) - made):
            prefix = base_prefix(model)
            kept = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
            torch.manual_seed(seed)
            model = type(model).from_pretrained(
                None, config=config, dtype=dtype, state_dict={n: v for n, v in kept.items() if n not in made}
            )
            model.name_or_path = model.config.name_or_path = str(folder)
            made |= {name for name in given if not name.startswith(prefix)}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not _is_finite(parameter.detach()):
            raise ArtefactError(f"{folder} is damaged: {name} has values that are NaN or infinite; {_REMEDY}")
    return model.eval(), made


_REMEDY = "fetch or make it again"
_FINE_TUNED = ("token-classification", "sequence-classification", "question-answering", "dependency-parsing")


def _check_loaded(
    folder: str | Path, model: nn.Module, report: Mapping[str, Any], *, head: HeadRule, named: Collection[str]
) -> set[str]:
    """Refuse what may not be missing, not fit or be too much; returns the names of what was made anew."""
    names = list(model.state_dict())
    heads = head_names(model, names)
    missing, misfits = set(report["missing_keys"]), {name: shapes for name, *shapes in report["mismatched_keys"]}
    bare = not base_prefix(model)
    may_lack = heads if head != "whole" or bare else set()
    for name, (found, expected) in misfits.items():
        if head != "new" or name not in heads:
            raise ArtefactError(
                f"the weights of {folder} do not fit its config.json: {name} is {tuple(found)}, it should be "
                f"{tuple(expected)}; {_REMEDY}"
            )
    # In the model's order; what is under another name than the model's own is no parameter of it.
    lost = [name for name in names if name in missing and name not in may_lack]
    wanted = task_of(type(model).__name__)
    if lost and set(lost) <= heads and wanted not in named:
        raise _no_head(folder, wanted)
    if lost:
        more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
        raise ArtefactError(f"{folder} is damaged: its weights lack the tensor {lost[0]}{more}; {_REMEDY}")
    _check_depth(folder, model, report["unexpected_keys"])
    return missing | set(misfits)


def _check_depth(folder: str | Path, model: nn.Module, unexpected: Collection[str]) -> None:
    """Refuse weights of layers that the configuration does not have."""
    if not unexpected:
        return
    own = base_prefix(model)
    known = re.escape(getattr(model, "base_model_prefix", ""))
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not path.startswith(own):
            continue
        layer = re.compile(rf"(?:{known}\.)?{re.escape(path.removeprefix(own))}\.(\d+)\.")
        found = [int(match[1]) for key in unexpected if (match := layer.match(key))]
        if found:
            raise ArtefactError(
                f"{folder}: its config.json has {len(module)} layers, its weights {max(found) + 1}; {_REMEDY}"
            )


def _is_finite(values: torch.Tensor) -> bool:
    """Whether all values of a tensor are numbers. Their sum is none if one of them is none, and is quickly made."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _no_head(folder: str | Path, task: str) -> ArtefactError:
    remedy = "fetch the whole model, or name its encoder's class in config.json"
    if task in _FINE_TUNED:
        remedy = "fine-tune it first, with `bistil finetune`"
    return ArtefactError(f"{folder} has no head for {task}: {remedy}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the report of newly initialised weights: `load_model` says itself what may be new."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


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
    task: str | None = None,
    replace: bool = False,
) -> None:
    """Write a model as an ordinary Hugging Face folder with its card and `bistil.json`, whole or not at all.

    Args:
        output: a new folder.
        record: what `bistil.json` holds beside versions and files: kind, settings, digests, seed, metrics, parents.
        title, summary, languages, made, metrics, pipeline_tag, task: of the card, see `cards.write_model_card`.
        replace: a folder of ours gives way.

    Raises:
        InputError: `output` may not be written (`artefacts.claim`).
    """
    from bistil.cards import write_model_card

    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    with whole_folder(output, replace=replace, record={"versions": libraries, **record}) as folder:
        model.save_pretrained(folder)
        write_tokenizer(tokenizer, folder)
        write_model_card(
            folder,
            title=title,
            summary=summary,
            languages=languages,
            made=made,
            metrics=metrics,
            pipeline_tag=pipeline_tag,
            task=task,
        )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model, by any name that `resolve_model` takes, as its tokenizer.json says.

    Raises:
        InputError: there is no such model, or the hub cannot be reached and the model is not in its cache.
        ArtefactError: the tokenizer's files are damaged, or it has no fast form.
        MissingExtraError: there is a SentencePiece model only, and a package that reads it is missing.
    """
    folder = model_folder(name, weights=False)
    check_product(folder)
    return read_tokenizer(folder, name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
