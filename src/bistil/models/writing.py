"""Writing a model: an ordinary Hugging Face folder with its card and record."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil.models.cards import write_model_card
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
    metrics: Mapping[str, str] | None = None,
    pipeline_tag: str | None = None,
    usage: str | None = None,
    replace: bool = False,
) -> None:
    """Write a model as an ordinary Hugging Face folder with its card and `bistil.json`, whole or not at all.

    Args:
        output: a new folder.
        record: what `bistil.json` holds beside versions and files: kind, settings, digests, seed, metrics, parents.
        title, summary, languages, made, metrics, pipeline_tag, usage: of the card, see `models.cards.write_model_card`.
        replace: a folder of ours gives way.

    Raises:
        InputError: `output` may not be written (`runtime.artefacts.claim`).
    """
    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    with whole_folder(output, replace=replace, record={"versions": libraries, **record}) as folder:
        save_weights(model, folder)
        write_tokenizer(tokenizer, folder)
        write_model_card(
            folder,
            title=title,
            summary=summary,
            languages=languages,
            made=made,
            metrics=metrics,
            pipeline_tag=pipeline_tag,
            usage=usage,
        )


def save_weights(model: PreTrainedModel, folder: Path, *, state: dict[str, Any] | None = None) -> None:
    """Write weights and configuration into a folder, without transformers' bars and notices.

    Args:
        state: what to write in place of the model's own state.
    """
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=state)
