"""Writing a model: an ordinary Hugging Face folder with its card and record."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil.models.cards import write_model_card
from bistil.models.families import family_of, position_limit
from bistil.models.sentences import SentenceForm, write_sentence_form
from bistil.models.tokenizers import write_tokenizer
from bistil.runtime.artefacts import whole_folder
from bistil.runtime.quiet import quiet_transformers


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
    metrics: Mapping[str, str | int | float] | None = None,
    pipeline_tag: str | None = None,
    usage: str | None = None,
    replace: bool = False,
    base_model: str | None = None,
    tags: Sequence[str] = (),
    sentences: SentenceForm | None = None,
    options: Mapping[str, Any] | None = None,
    parent: str | Path | None = None,
) -> None:
    """Write a model as an ordinary Hugging Face folder with its card and `bistil.json`, whole or not at all.

    Args:
        output: a new folder.
        record: what `bistil.json` holds beside versions and files: kind, settings, digests, seed, metrics, parents.
        title, summary, languages, made, metrics, pipeline_tag, usage, base_model, tags, parent: of the card, see
            `models.cards.write_model_card`.
        replace: a folder of ours gives way.
        sentences: how it makes vectors of texts: the folder is one of SentenceTransformers too.
        options: for `PreTrainedModel.save_pretrained`.

    Raises:
        InputError: `output` may not be written (`runtime.artefacts.claim`).
    """
    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    with whole_folder(output, replace=replace, record={"versions": libraries, **record}) as folder:
        save_weights(model, folder, **options or {})
        write_tokenizer(tokenizer, folder)
        if sentences is not None:
            write_sentence_form(
                folder, sentences, width=family_of(model).width(model.config), length=position_limit(model.config)
            )
        write_model_card(
            folder,
            title=title,
            summary=summary,
            languages=languages,
            made=made,
            metrics=metrics,
            pipeline_tag=pipeline_tag,
            usage=usage,
            base_model=base_model,
            tags=[*tags, *(["sentence-transformers"] if sentences else [])],
            parent=parent,
            record=record,
            parameters=model.num_parameters(),
        )


def save_weights(model: PreTrainedModel, folder: Path, *, state: dict[str, Any] | None = None, **options: Any) -> None:
    """Write weights and configuration into a folder, without transformers' bars and notices.

    Args:
        state: what to write in place of the model's own state.
        options: for `PreTrainedModel.save_pretrained`.
    """
    with quiet_transformers():
        # That of the class: a model may have one of its own that writes more (`models.complete`).
        type(model).save_pretrained(model, folder, state_dict=state, **options)
