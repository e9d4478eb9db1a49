"""Models that wear language SFTs: per batch, or for good."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from bistil.models.families import family_of
from bistil.models.loading import PRETRAINED_WITH, load_model, read_config, task_of
from bistil.models.masked_lm import load_encoder
from bistil.models.tokenizers import load_tokenizer, write_tokenizer
from bistil.models.writing import save_weights
from bistil.runtime.artefacts import claim, whole_folder
from bistil.sparse.artefact import SparseFineTuning
from bistil.vocabulary.trimming import kept_ids, untrimmed_fingerprint


class Wardrobe:
    """Puts the SFT of a batch's language on a model; changes only when the language does.

    Args:
        model: whose own weights are the base.
        folders: SFT (folder or hub name) per language; a language without one goes without.
        trimmed: the model's folder; an SFT of the untrimmed vocabulary is trimmed to the tokens that it kept.
        force: put on SFTs that were made for another base.

    Raises:
        ArtefactError: an SFT that was made for another base, or does not fit the model.
    """

    def __init__(
        self, model: nn.Module, folders: Mapping[str, str | Path], *, trimmed: Path, force: bool = False
    ) -> None:
        self.model = model
        self.sfts = {language: own_sft(path, model, trimmed, force=force) for language, path in folders.items()}
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
    own_sft(sft, multilingual, trimmed or model, force=force_sfts).apply(multilingual, heads=False)
    with whole_folder(output, replace=replace, record={"kind": "model with a language SFT"}) as folder:
        save_weights(multilingual, folder)
        write_tokenizer(load_tokenizer(str(model)), folder)
    return output


def own_sft(path: str | Path, model: nn.Module, trimmed: Path, *, force: bool = False) -> SparseFineTuning:
    """An SFT for a model out of a folder; one of the model before its vocabulary was trimmed is trimmed along.

    Args:
        path: folder or hub name of the SFT.
        model: what is to wear it.
        trimmed: the model's folder, which knows what was trimmed.
        force: take it although it was made for another base.

    Raises:
        InputError: there is no such SFT.
        ArtefactError: damaged, or made for another base.
    """
    sft = SparseFineTuning.load(path)
    words = [name for name in sft.deltas if name.endswith(family_of(model).word_embeddings)]
    rows: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if words and sft.deltas[words[0]].shape[0] != rows and (trimmed / "vocabulary_map.safetensors").exists():
        if not force:
            sft.check_fingerprint(untrimmed_fingerprint(trimmed))
        vocabulary = sft.deltas[words[0]].shape[0]
        tables = [name for name, delta in sft.deltas.items() if delta.shape[0] == vocabulary]
        tables += [name for name, value in sft.dense.items() if value.shape[:1] == (vocabulary,)]
        return sft.trimmed(kept_ids(trimmed), tables)
    if not force:
        sft.check_base(model)
    return sft
