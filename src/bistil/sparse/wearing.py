"""Models that wear language SFTs: per batch, or for good."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from bistil.models.families import family_of
from bistil.models.loading import PRETRAINED_WITH, load_model, read_config, task_of
from bistil.models.masked_lm import load_encoder
from bistil.models.tokenizers import load_tokenizer, write_tokenizer
from bistil.models.writing import save_weights
from bistil.runtime.artefacts import claim, whole_folder
from bistil.sparse.artefact import SparseFineTuning
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
    with whole_folder(output, replace=replace, record={"kind": "model with a language SFT"}) as folder:
        save_weights(multilingual, folder)
        write_tokenizer(load_tokenizer(str(model)), folder)
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
    with whole_folder(output, replace=replace, record={"kind": "task model with a language SFT"}) as folder:
        save_weights(fine_tuned, folder)
        write_tokenizer(load_tokenizer(str(model)), folder)
    return output


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
