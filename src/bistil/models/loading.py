"""Names to models: hub names, folders, and the teacher that comes with a package; and the one loader of weights."""

import copy
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from bistil.errors import ArtefactError, BistilError, first_line
from bistil.models.exported import engine_of
from bistil.models.families import base_prefix, head_names
from bistil.models.names import shards_of, what_else
from bistil.models.parser import parser_class
from bistil.runtime.artefacts import check_product, read_json
from bistil.runtime.insides import has_class_for
from bistil.runtime.quiet import quiet_transformers

HeadRule = Literal["whole", "optional", "new"]
"""What a folder must give a model besides its encoder. "whole": its head; "optional": what it lacks of the head is made
anew; "new": all of the head is made anew, whatever the folder has. A pooler counts as head where a head reads it."""


def model_class(config: PreTrainedConfig) -> Any:
    """The class that a configuration names under "architectures"; AutoModel where it names none.

    Classes of transformers, and the dependency parsers of this package.

    Raises:
        ArtefactError: there is no such class.
    """
    name = next(iter(config.architectures or []), "AutoModel")
    if name.endswith("ForDependencyParsing"):
        kind: Any = type(config)
        return parser_class(kind)
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
        ArtefactError: config.json is missing or damaged, or the model is defined by code of its own, which is not run.
    """
    file = Path(folder) / "config.json"
    if file.is_file():
        _check_stated(read_json(file), file)
    elif Path(folder).is_dir():
        raise ArtefactError(f"{folder} holds {what_else(Path(folder), str(folder))}")
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_sizes(config, folder)
        return config
    except BistilError:
        raise
    except Exception as error:  # transformers and its parsers raise anything
        if not (Path(folder) / "config.json").is_file():
            raise ArtefactError(f"{folder} is not a Hugging Face model folder: {first_line(error)}") from error
        if "custom code" in str(error):
            raise ArtefactError(
                f"{folder} is defined by code of its own (auto_map in its config.json), which is not run: use a model "
                "of one of transformers' own classes"
            ) from error
        raise ArtefactError(f"the config.json of {folder} cannot be read: {first_line(error)}") from error


# Beyond these a size is a slip of the pen or an attack on memory.
MOST_LAYERS, MOST_LABELS, MOST_SIZE = 1_000, 1_000_000, 2**31
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_SIZES = ("vocab_size", "hidden_size", "dim", "num_attention_heads", "n_heads", "intermediate_size", "hidden_dim")
_ACTIVATIONS = ("hidden_act", "hidden_activation")


def _check_stated(stated: Any, file: Path) -> None:
    """Refuse a config.json whose values are of another kind than transformers takes for granted.

    Raises:
        ArtefactError: with the key.
    """

    def refuse(key: str, expected: str) -> None:
        raise ArtefactError(f"{file}: {key!r} is {stated[key]!r:.60}, and {expected} is expected: {_REMEDY}")

    if not isinstance(stated, dict):
        raise ArtefactError(f"{file} holds no JSON object: {_REMEDY}")
    for key in ("model_type", *_ACTIVATIONS):
        if stated.get(key) is not None and not isinstance(stated[key], str):
            refuse(key, "a name")
    named = stated.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(one, str) for one in named)):
        refuse("architectures", "a list of names")
    for key, kind in (("id2label", str), ("label2id", int)):
        labels = stated.get(key)
        if labels is not None and not (isinstance(labels, dict) and all(type(one) is kind for one in labels.values())):
            refuse(key, "a table of labels")
    if not all(key.isdecimal() for key in stated.get("id2label") or ()):
        refuse("id2label", "a table from numbers to labels")
    # An encoder needs none; a classifier without classes can answer nothing.
    if stated.get("id2label") == {} and any("Classification" in one for one in named or ()):
        refuse("id2label", "a label or more")
    for key, value in stated.items():
        if isinstance(value, int) and abs(value) >= MOST_SIZE:
            refuse(key, "a size that memory holds")
    for key, most in (
        *((key, MOST_LAYERS) for key in _LAYERS),
        ("num_labels", MOST_LABELS),
        ("_num_labels", MOST_LABELS),
    ):
        value = stated.get(key)
        if value is not None and not (type(value) is int and 0 <= value <= most):
            refuse(key, f"a number up to {most:,}")


def _check_sizes(config: PreTrainedConfig, folder: object) -> None:
    """Refuse a configuration that no encoder can be built of.

    Raises:
        ArtefactError: with the key.
    """
    for key in _SIZES:
        value = getattr(config, key, 1)
        if value is not None and not (type(value) is int and value > 0):
            raise ArtefactError(
                f"the config.json of {folder}: {key!r} is {value!r:.60}, and a number above 0 is expected"
            )
    # Of every family, whatever it calls them.
    width, heads = (getattr(config, key, None) for key in ("hidden_size", "num_attention_heads"))
    if width and heads and getattr(config, "head_dim", None) is None and width % heads:
        raise ArtefactError(f"the config.json of {folder}: {heads} attention heads do not share a width of {width}")


def _check_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse, before memory is taken, a configuration that describes far more than the folder's weights hold, and
    indices of weights that lead out of the folder.

    Raises:
        ArtefactError: the folder's files do not fit together.
    """
    shards_of(folder)
    for file in folder.glob("*.safetensors"):
        if (odd := _whole_numbers(file)) is not None:
            raise ArtefactError(f"{file}: {odd!r:.100} holds whole numbers where weights belong; {_REMEDY}")
    stored = sum(
        one.stat().st_size for kind in ("*.safetensors", "*.bin") for one in folder.glob(kind) if one.is_file()
    )
    try:
        with torch.device("meta"), quiet_transformers():
            parameters = sum(one.numel() for one in AutoModel.from_config(config).parameters())
    except Exception as error:  # whatever a class makes of a configuration
        raise ArtefactError(f"no model can be built of the config.json of {folder}: {first_line(error)}") from error
    if stored and parameters > stored + SPARE:
        raise ArtefactError(
            f"the weights of {folder} do not fit its config.json: it describes {parameters:,} parameters, and "
            f"{stored:,} bytes are there; {_REMEDY}"
        )


def _whole_numbers(file: Path) -> str | None:
    """The first weight or bias that is stored as integers: read as they are they would pass for numbers."""
    try:
        with safe_open(file, framework="pt") as stored:
            for name in list(stored.keys()):  # it is no mapping
                # Positions and masks, which old files hold too, are whole numbers.
                if name.endswith(("weight", "bias")) and stored.get_slice(name).get_dtype() in _WHOLE:
                    return str(name)
    except (SafetensorError, OSError):  # whoever loads it says what is wrong
        pass
    return None


_WHOLE = frozenset({"BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"})
SPARE = 2**27
"""So many parameters may be made anew: 0.5 GB."""

PRETRAINED_WITH = frozenset({"", "masked-lm", "pre-training"})
"""What `task_of` says of models without a head for a task."""


def task_of(class_name: str) -> str:
    """What a model class is for: "token-classification" of `BertForTokenClassification`, "" of `BertModel`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", class_name.partition("For")[2]).lower()


def labels_of(config: PreTrainedConfig) -> list[str]:
    """The names of a model's classes, in the order of their logits."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


ModelSource = str | Path | PreTrainedModel
"""A model's folder or hub name, or a model in memory."""


def source_name(source: ModelSource) -> str:
    """What a model is called in messages and records."""
    if not isinstance(source, PreTrainedModel):
        return str(source)
    return str(source.name_or_path or type(source).__name__)


def config_of(source: ModelSource) -> Any:
    """The configuration of a model, to be changed at will; it names the model's class.

    Raises:
        ArtefactError: config.json is missing or damaged.
    """
    if not isinstance(source, PreTrainedModel):
        return read_config(source)
    config = copy.deepcopy(source.config)
    config.architectures = [type(source).__name__]
    return config


def load_model(
    folder: ModelSource,
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
        folder: of a model, or a hub name; or a model in memory, whose weights are copied.
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
    if isinstance(folder, str | Path) and Path(folder).is_dir():
        check_product(Path(folder))
        engine = engine_of(folder)
        if engine is not None:
            raise ArtefactError(
                f"{folder} is a model exported for {engine}: `bistil predict` and `bistil evaluate` run it; for all "
                "else name the folder that it was exported from"
            )
        _check_weights(Path(folder), read_config(folder))
    config = config_of(folder) if config is None else config
    named = {task_of(name) for name in config.architectures or ()}
    kind = model_class(config) if auto_class is None else auto_class
    if not has_class_for(kind, config):
        raise ArtefactError(
            f"{source_name(folder)} has no head for {task_of(kind.__name__)}: transformers has none for "
            f"{config.model_type} models"
        )
    given: Any = folder
    own_name = str(folder.name_or_path or "") if isinstance(folder, PreTrainedModel) else str(folder)
    if isinstance(folder, PreTrainedModel):
        weights = {name: value.detach().clone() for name, value in folder.state_dict().items()}
        given, folder, options = None, source_name(folder), {**options, "state_dict": weights}
        if hasattr(kind, "from_config"):
            # An Auto class looks for files; the class that it would choose takes weights.
            with torch.device("meta"):
                kind = type(kind.from_config(config))
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
            model, report = kind.from_pretrained(given, **options)
        except BistilError:
            raise
        except Exception as error:  # a damaged file makes readers raise anything
            raise ArtefactError(f"cannot load {folder} as {kind.__name__}: {first_line(error)}") from error
        wanted = task_of(type(model).__name__)
        if head == "whole" and auto_class is not None and wanted and named and wanted not in named:
            raise _no_head(folder, wanted)
        made = _check_loaded(folder, model, report, head=head, named=named)
        if head == "new" and (found := head_names(model, model.state_dict()) - made):
            prefix = base_prefix(model)
            kept = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
            torch.manual_seed(seed)
            model = type(model).from_pretrained(
                None, config=config, dtype=dtype, state_dict={n: v for n, v in kept.items() if n not in made}
            )
            model.name_or_path = model.config.name_or_path = own_name
            made |= {name for name in found if not name.startswith(prefix)}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not _is_finite(parameter.detach()):
            raise ArtefactError(f"{folder} is damaged: {name} has values that are NaN or infinite; {_REMEDY}")
    if given is None:
        model.name_or_path = model.config.name_or_path = own_name
    return model.eval(), made


_REMEDY = "fetch or make it again"


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
    if task not in PRETRAINED_WITH:
        remedy = "fine-tune it first, with `bistil finetune`"
    return ArtefactError(f"{folder} has no head for {task}: {remedy}")
