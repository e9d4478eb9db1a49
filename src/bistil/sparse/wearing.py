"""Models that wear language SFTs: per batch, or for good."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bistil.models.families import family_of
from bistil.models.loading import PRETRAINED_WITH, load_model, read_config, task_of
from bistil.models.masked_lm import load_encoder
from bistil.models.names import resolve_model
from bistil.models.tokenizers import load_tokenizer
from bistil.models.writing import write_model
from bistil.runtime.artefacts import claim
from bistil.sparse.artefact import SparseFineTuning
from bistil.tasks import get_task, kind_of
from bistil.vocabulary.trimming import MAP_FILE, Kept


class Wardrobe:
    """Puts the SFT of a batch's language on a model; changes only when the language does.

    Args:
        model: whose own weights are the base.
        sfts: per language the SFT, or its folder or hub name; a language without one goes without.
        kept: what was kept of the model's vocabulary; an SFT of the untrimmed one is trimmed along.
        force: put on SFTs that were made for another base.

    Raises:
        ArtefactError: an SFT that was made for another base, or does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        sfts: Mapping[str, SparseFineTuning | str | Path],
        *,
        kept: Kept | None = None,
        force: bool = False,
    ) -> None:
        self.model = model
        self.sfts = {language: own_sft(sft, model, kept, force=force) for language, sft in sfts.items()}
        self.worn: str | None = None
        for sft in self.sfts.values():
            with sft.applied(model, heads=False):
                pass

    def digests(self) -> dict[str, str]:
        """Of the SFT of each language that has one."""
        return {language: sft.digest() for language, sft in self.sfts.items()}

    def wear(self, language: str | None) -> None:
        """Wear this language's SFT and no other; None: none."""
        wanted = language if language in self.sfts else None
        if wanted == self.worn:
            return
        if self.worn is not None:
            self.sfts[self.worn].revert(self.model)
        if wanted is not None:
            self.sfts[wanted].apply(self.model, heads=False)
        self.worn = wanted


def dressed_copy(
    model: Path,
    sft: str | Path,
    *,
    output: Path,
    trimmed: Path | None = None,
    force_sfts: bool = False,
    replace: bool = False,
) -> Path:
    """Write a model that wears a language SFT for good: what the task teacher starts from (paper, section 3.3).

    Args:
        model: folder of the (trimmed) multilingual model, or of a task model made of it.
        sft: folder or hub name; one of the untrimmed vocabulary is trimmed along.
        output: gets the model with its tokenizer.
        trimmed: folder of the trimmed model, which knows what was trimmed; default: `model`.
        force_sfts: put it on although it was made for another base.
        replace: a folder of ours gives way.

    Raises:
        InputError: `output` may not be written (`runtime.artefacts.claim`).
        ArtefactError: it was made for another base, or does not fit the model.
    """
    claim(folders=[output], inputs=[model, sft], force=replace)
    fine_tuned = not {task_of(name) for name in read_config(model).architectures or ()} <= PRETRAINED_WITH
    multilingual = load_model(model)[0] if fine_tuned else load_encoder(model)
    own_sft(sft, multilingual, kept_in(trimmed or model), force=force_sfts).apply(multilingual, heads=False)
    summary = f"`{model.name}` that wears the language SFT `{Path(sft).name}` for good."
    write_worn(output, multilingual, model, kind="model with a language SFT", summary=summary, replace=replace)
    return output


def exchanged_copy(
    model: Path, task: str | Path, language: str | Path, *, base: Path, output: Path, replace: bool = False
) -> Path:
    """Write a task model for another language: base + the language's SFT + the task's (LT-SFT, section 3.2).

    The task SFT was learnt on top of another language's SFT, which this one takes the place of.

    Args:
        model: folder of the task model that came of learning the task SFT; its head is used.
        task: folder of the task SFT.
        language: folder of the language SFT that is to be worn.
        base: folder of the model that both languages' SFTs were learnt on.
        output: gets the model with its tokenizer.
        replace: a folder of ours gives way.

    Raises:
        InputError: `output` may not be written (`runtime.artefacts.claim`).
        ArtefactError: the language SFT was made for another base, or one of the two does not fit the model.
    """
    claim(folders=[output], inputs=[model, task, language, base], force=replace)
    fine_tuned, _ = load_model(model)
    bare = load_encoder(base)
    own = own_sft(language, bare, None)
    encoder, original = family_of(fine_tuned).encoder(fine_tuned), family_of(bare).encoder(bare).state_dict()
    with torch.no_grad():
        for name, value in encoder.state_dict().items():
            value.copy_(original[name])
    own.apply(fine_tuned, heads=False)
    SparseFineTuning.load(task).apply(fine_tuned)
    summary = f"The task model `{model.name}` that wears the language SFT `{Path(language).name}` for good."
    write_worn(output, fine_tuned, model, kind="task model with a language SFT", summary=summary, replace=replace)
    return output


def write_worn(
    output: Path,
    model: Any,
    source: str | Path,
    *,
    kind: str,
    summary: str,
    made: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Write a model that SFTs were put on for good, with the tokenizer of the one that they were put on.

    Args:
        output: a new folder.
        source: folder or name of the model that wears them.
        kind: for the record.
        summary, made: of the card.
        record: what else it says.

    Raises:
        InputError: `output` may not be written (`runtime.artefacts.claim`).
    """
    head: dict[str, Any] = {}
    if task_of(type(model).__name__) not in PRETRAINED_WITH:
        task = get_task(kind_of(model.config, str(source)))
        head = {"pipeline_tag": task.pipeline_tag, "usage": task.usage}
    write_model(
        output,
        model,
        load_tokenizer(str(source)),
        record={"kind": kind, **(record or {})},
        title=output.name,
        summary=summary,
        languages=[],
        made=made,
        replace=replace,
        parent=resolve_model(str(source)),
        **head,
    )


def kept_in(folder: Path) -> Kept | None:
    """What the model in a folder kept of its vocabulary; None if it was not trimmed.

    Raises:
        ArtefactError: the folder is damaged.
    """
    return Kept.read(folder) if (folder / MAP_FILE).exists() else None


def own_sft(
    given: SparseFineTuning | str | Path, model: nn.Module, kept: Kept | None, *, force: bool = False
) -> SparseFineTuning:
    """An SFT for a model; one of the model before its vocabulary was trimmed is trimmed along.

    Args:
        given: the SFT, or its folder or hub name.
        model: what is to wear it.
        kept: what was kept of the model's vocabulary.
        force: take it although it was made for another base.

    Raises:
        InputError: there is no such SFT.
        ArtefactError: damaged, or made for another base.
    """
    sft = given if isinstance(given, SparseFineTuning) else SparseFineTuning.load(given)
    words = [name for name in sft.deltas if name.endswith(family_of(model).word_embeddings)]
    rows: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if words and sft.deltas[words[0]].shape[0] != rows and kept is not None:
        if not force:
            sft.check_fingerprint(kept.fingerprint)
        vocabulary = sft.deltas[words[0]].shape[0]
        tables = [name for name, delta in sft.deltas.items() if delta.shape[0] == vocabulary]
        tables += [name for name, value in sft.dense.items() if value.shape[:1] == (vocabulary,)]
        return sft.trimmed(kept.ids, tables)
    if not force:
        sft.check_base(model)
    return sft
