"""Encoders of sentences: how they make one vector of a text, as the files of SentenceTransformers say it."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bistil.errors import ArtefactError, InputError
from bistil.models.exported import exported_record
from bistil.runtime.artefacts import RECORD, read_json, write_json

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "first"]
MODULES, POOLING, PROMPTS = "modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"
# What SentenceTransformers calls them: in its files until version 5, and since.
_FLAGS: dict[Pooling, str] = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}
_MODES: dict[str, Pooling] = {"mean": "mean", "cls": "first"}
_OTHERS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens",
           "pooling_mode_lasttoken")  # fmt: skip


@dataclass(frozen=True)
class SentenceForm:
    """How an encoder makes one vector of a text.

    Attributes:
        pooling: the mean of the last layer's states over all tokens, the prefix's and special ones too; or the first.
        prefix: stands in front of every text.
        normalise: to length 1.
    """

    pooling: Pooling = "mean"
    prefix: str = ""
    normalise: bool = True

    def __post_init__(self) -> None:
        """Refuse values of another kind.

        Raises:
            InputError: one is.
        """
        if self.pooling not in get_args(Pooling):
            raise InputError(f"pooling is {self.pooling!r}; choose {' or '.join(get_args(Pooling))}")
        if not isinstance(self.prefix, str) or not isinstance(self.normalise, bool):
            raise InputError(
                f"prefix is {self.prefix!r:.60} and normalise {self.normalise!r:.60}: a text and a boolean"
            )

    def pooled(self, states: np.ndarray) -> np.ndarray:
        """The vector (width,) of a text's last states (tokens, width)."""
        vector: np.ndarray = states.mean(axis=0) if self.pooling == "mean" else states[0]
        return vector / max(float(np.linalg.norm(vector)), 1e-12) if self.normalise else vector


E5 = SentenceForm("mean", "query: ", True)
"""Of the packaged teacher (Wang et al. 2024, section 2): both sides of symmetric tasks begin with "query: "."""


def sentence_form(folder: Path) -> SentenceForm | None:
    """How the encoder in a folder makes vectors of texts; None: nothing says that it does.

    Raises:
        ArtefactError: it is made in another way than by `SentenceForm`, or its files cannot be read.
    """
    exported = exported_record(folder)
    if exported is not None and "sentences" not in exported:
        return None
    if exported is None and not (folder / MODULES).is_file():
        return E5 if (folder / RECORD).is_file() and _is_e5(read_json(folder / RECORD)) else None
    try:
        if exported is not None:
            return SentenceForm(**exported["sentences"])
        kinds = [str(one["type"]).rpartition(".")[2] for one in read_json(folder / MODULES)]
        if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
            raise ArtefactError(f"{folder} makes sentence vectors by {', '.join(kinds)}, which is not known here")
        prompts = read_json(folder / PROMPTS) if (folder / PROMPTS).is_file() else {}
        name = prompts.get("default_prompt_name")
        prefix = "" if name is None else str(prompts["prompts"][name])
        return SentenceForm(_pooling(read_json(folder / POOLING), folder), prefix, kinds[2:] == ["Normalize"])
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(
            f"{folder} says how it makes sentence vectors, but not as SentenceTransformers does: fetch or make it again"
        ) from error


def known_form(folder: Path) -> SentenceForm | None:
    """`sentence_form`; None, with a notice, where vectors are made in a way that is not known here."""
    try:
        return sentence_form(folder)
    except ArtefactError as error:
        logger.warning(f"{error}; what is made of it describes no sentence vectors")
        return None


def form_of_model(model: Any) -> SentenceForm | None:
    """`known_form` of a model in memory: what it brings (`models.complete`), or what its folder says."""
    known = getattr(model, "bistil", None)
    if known is not None and "sentences" in known.facts:
        found: SentenceForm | None = known.facts["sentences"]
        return found
    name = str(getattr(model, "name_or_path", ""))
    return known_form(Path(name)) if name and (Path(name) / "config.json").is_file() else None


def write_sentence_form(folder: Path, form: SentenceForm, *, width: int, length: int | None) -> None:
    """Write the files by which `SentenceTransformer(folder)` loads an encoder's folder, which stays what it was.

    Args:
        width: of the vectors.
        length: in tokens, of the longest text; None: any.
    """
    kinds = ["Transformer", "Pooling", *(["Normalize"] if form.normalise else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    write_json(folder / MODULES, modules, inner=True)
    (folder / POOLING).parent.mkdir(exist_ok=True)
    flags = {flag: pooling == form.pooling for pooling, flag in _FLAGS.items()} | dict.fromkeys(_OTHERS[:2], False)
    write_json(folder / POOLING, {"word_embedding_dimension": width, **flags}, inner=True)
    prompts: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    if form.prefix:
        name = form.prefix.strip(" :") or "default"
        prompts |= {"prompts": {name: form.prefix}, "default_prompt_name": name}
    write_json(folder / PROMPTS, prompts, inner=True)
    write_json(folder / LENGTH, {"max_seq_length": length, "do_lower_case": False}, inner=True)


def form_values(form: SentenceForm) -> dict[str, Any]:
    """For records: what `SentenceForm` is made of."""
    return asdict(form)


def _is_e5(record: Any) -> bool:
    return isinstance(record, dict) and (record.get("kind"), record.get("name")) == ("pretrained", "e5-small")


def _pooling(stated: Mapping[str, Any], folder: Path) -> Pooling:
    mode = stated.get("pooling_mode")
    if isinstance(mode, str):
        found = [_MODES[mode]] if mode in _MODES else []
    else:
        found = [own for own, flag in _FLAGS.items() if stated.get(flag)]
    if len(found) != 1 or any(stated.get(flag) for flag in _OTHERS):
        raise ArtefactError(f"{folder} pools its states in a way that is not known here: mean and first token are")
    return found[0]
