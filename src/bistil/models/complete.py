"""Models in memory that bring their tokenizer, card and record, and write them along."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import HfApi
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bistil.errors import InputError
from bistil.models.loading import ModelSource
from bistil.models.tokenizers import load_tokenizer, require_fast
from bistil.models.upload import upload
from bistil.models.writing import write_model


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of a model that was made here."""

    record: Mapping[str, Any]
    """What `bistil.json` holds: kind, settings, seed, metrics, parents."""
    card: Mapping[str, Any] = field(repr=False)
    """Arguments of `models.cards.write_model_card`."""
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What else is known, as objects: the report, the sparse fine-tuning that the model wears, ..."""


if TYPE_CHECKING:

    class CompleteModel(PreTrainedModel):
        """A model that `complete` gave; it is of its own class, this one says for type checkers what it has besides."""

        tokenizer: PreTrainedTokenizerFast
        bistil: Origin
else:
    CompleteModel = PreTrainedModel


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, origin: Origin) -> CompleteModel:
    """The same model, which then has `model.tokenizer` and `model.bistil` (`Origin`).

    Its `save_pretrained` writes tokenizer, card and `bistil.json` along, whole or not at all, into a folder that is
    new, empty or ours; its `push_to_hub` uploads that folder. It stays a model of its class.
    """
    own: Any = model.eval()
    own.tokenizer, own.bistil = tokenizer, origin
    # On the object and not in a subclass: the class's name is what config.json says.
    own.save_pretrained = MethodType(_save, own)
    own.push_to_hub = MethodType(_push, own)
    return cast(CompleteModel, model)


def tokenizer_of(model: ModelSource, given: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer that is given, or else the one that the model brings, or the one in its folder.

    Raises:
        InputError: there is none, or it is not a fast one.
        ArtefactError: the folder has none.
    """
    if given is None and isinstance(model, str | Path):
        return load_tokenizer(str(model))
    tokenizer = given if given is not None else getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise InputError(f"the {type(model).__name__} brings no tokenizer: give tokenizer=")
    return require_fast(tokenizer)


def _save(self: Any, save_directory: str | os.PathLike[str], **options: Any) -> None:
    """Write an ordinary Hugging Face folder: weights, configuration, tokenizer, card, `bistil.json`.

    Args:
        options: as for `PreTrainedModel.save_pretrained`.

    Raises:
        InputError: something is there that is not ours.
    """
    write_model(
        Path(save_directory),
        self,
        self.tokenizer,
        record=self.bistil.record,
        replace=True,
        options=options,
        sentences=self.bistil.facts.get("sentences"),
        **self.bistil.card,
    )


def _push(
    self: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes to the Hugging Face hub (`models.upload.upload`)."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        self.save_pretrained(folder)
        message = commit_message or f"{type(self).__name__}, made with bistil"
        return upload(folder, repo_id, private=private, message=message, revision=revision, api=HfApi(token=token))
