"""Language SFTs by masked language modelling: what a language adds to a multilingual encoder.

Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022, section 4.2; the BiStil teacher
wears them in phase 1 (paper, section 3.2).
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace as changed
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from bistil.errors import ArtefactError
from bistil.models.families import check_length, family_of
from bistil.models.masked_lm import masked_lm_loss, masked_lm_model, start_at_frequencies, supported_config
from bistil.models.names import model_folder
from bistil.models.tokenizers import load_tokenizer, write_tokenizer
from bistil.models.writing import save_weights
from bistil.runtime.artefacts import claim, open_work, whole_folder
from bistil.runtime.fast_linear import fast_linear
from bistil.settings.schema import AdaptSettings, SparseSettings
from bistil.sparse import SparseFineTuning, train_sparse
from bistil.sparse.training import check_sparse
from bistil.text import IGNORED
from bistil.text.blocks import token_blocks
from bistil.text.schedule import BlockCollator, language_schedule, split_held_out
from bistil.training.held_out import held_out_means, masked_tokens_of
from bistil.training.identity import inputs_digest
from bistil.training.loop import processes

# Held-out blocks beyond these cost time and tell little more.
MOST_HELD_OUT = 200


def paper_steps(blocks: int, batch_size: int) -> int:
    """Steps of each phase: 200 epochs, but at least 30,000 and at most 100,000 (paper, section 4.3)."""
    return max(30_000, min(100_000, 200 * blocks // batch_size))


class MaskedLanguageModelling(nn.Module):
    """Masked-LM loss of a model whose output layer is computed at masked positions only.

    Args:
        model: of a ...ForMaskedLM class of a supported family.
        fast: linear maps as in `fast_linear`; false under torch.compile.
    """

    def __init__(self, model: PreTrainedModel, *, fast: bool = True) -> None:
        super().__init__()
        self.model, self.family = model, family_of(model)
        self._linear_maps = fast_linear if fast else nullcontext

    def forward(self, input_ids: Tensor, labels: Tensor, language: str = "", **inputs: Tensor) -> dict[str, Tensor]:
        """Mean loss over the masked tokens of the batch.

        Args:
            input_ids: (batch, tokens).
            labels: (batch, tokens), -100 where nothing is to be predicted.
            language: of the batch; only carried along.
        """
        del language
        with self._linear_maps():
            states = self.family.encoder(self.model)(input_ids=input_ids, **inputs).last_hidden_state
            masked = labels != IGNORED
            return {"loss": masked_lm_loss(self.family.masked_lm_logits(self.model, states[masked]), labels[masked])}


def check_adapt(model: str, settings: AdaptSettings) -> None:
    """Find what `adapt` would refuse, as far as settings, configuration and tokenizer tell: no weights.

    Raises:
        BistilError: as `adapt`.
    """
    if load_tokenizer(model).mask_token_id is None:
        raise ArtefactError(f"the tokenizer of {model} has no mask token: masked language modelling needs one")
    check_length(supported_config(model_folder(model)), settings.block_length, name="block_length")
    check_sparse(_phases(settings, steps=1), settings.training)


def _phases(settings: AdaptSettings, *, steps: int) -> SparseSettings:
    """Two phases of so many steps."""
    return SparseSettings(
        density=settings.density,
        dense_steps=steps,
        sparse_steps=steps,
        freeze_embeddings=settings.freeze_embeddings,
        freeze_layer_norms=settings.freeze_layer_norms,
    )


def adapt(
    model: str,
    files: Sequence[Path],
    output: Path,
    *,
    language: str,
    settings: AdaptSettings,
    work: Path,
    seed: int = 0,
    mask: Mapping[str, Tensor] | None = None,
    replace: bool = False,
) -> SparseFineTuning:
    """Learn a language SFT of a model from plain text and write it as a folder.

    The same call goes on after an interruption. The SFT's metrics hold the held-out masked-LM loss in nats per masked
    token, before (the model as it is) and after; where the head is new, "before" is that of its random start.

    Args:
        model: folder or name of the encoder, with or without a masked-LM head.
        files: plain text of the language, plain, .gz or .zst.
        output: gets the SFT.
        language: its code, for the record.
        work: token blocks and checkpoints; the caller may remove it afterwards.
        seed: of the held-out split, the order, masking and a new head.
        mask: instead of a dense phase, as in `train_sparse`; an empty one trains the head alone (a baseline).
        replace: an output folder of ours gives way.

    Raises:
        InputError: unreadable or too little text, or an output that may not be written (`runtime.artefacts.claim`).
        ArtefactError: a model that cannot be used.
        DivergenceError: the loss became NaN or infinite.
    """
    claim(folders=[output], work=work, inputs=[model, *files], force=replace)
    check_adapt(model, settings)
    tokenizer = load_tokenizer(model)
    masked_lm, dense = masked_lm_model(model, seed=seed)
    with processes().main_process_first():
        open_work(work)
        blocks = token_blocks(
            [Path(file) for file in files], tokenizer, length=settings.block_length, cache=work / "blocks"
        )
    training, held_out = split_held_out(len(blocks), settings.held_out, limit=MOST_HELD_OUT, seed=seed)
    if len(dense) > 1:  # a new head; of one that was there only the output bias is trained
        start_at_frequencies(masked_lm, blocks, training)
    batch_size = settings.training.batch_size
    steps = settings.steps or paper_steps(len(training), batch_size)
    schedule = language_schedule(
        {language: blocks}, {language: training}, steps=steps, batch_size=batch_size, seed=seed
    )
    collate = BlockCollator(tokenizer=tokenizer, mask_tokens=True, seed=seed)
    module = MaskedLanguageModelling(masked_lm, fast=not settings.training.compile)

    def evaluate(_: nn.Module) -> dict[str, float]:
        # Masked anew with a seed of its own: the same masks at every evaluation.
        return held_out_means(
            module, blocks, held_out, changed(collate, seed=seed + 1),
            language=language, batch_size=batch_size, weight=masked_tokens_of,
        )  # fmt: skip

    before = evaluate(module) if len(held_out) else {}
    sft = train_sparse(
        module,
        schedule,
        model=masked_lm,
        dense_parameters=dense,
        settings=_phases(settings, steps=steps),
        training=settings.training,
        collate=collate,
        folder=work / "training",
        seed=seed,
        evaluate=evaluate if len(held_out) else None,
        best_by=("loss", "min") if len(held_out) else None,
        mask=mask,
        base_name=model,
        kind="language",
        inputs=inputs_digest([module], schedule),
        label=f"adapting to {language}",
    )
    after = evaluate(module) if len(held_out) else {}
    sft.provenance.metrics = {
        "language": language,
        "steps of each phase": steps,
        "training blocks": len(training),
        "tokens per block": settings.block_length,
        "held-out blocks": len(held_out),
        **{f"held-out masked-LM {name} before": value for name, value in before.items()},
        **{f"held-out masked-LM {name} after": value for name, value in after.items()},
    }
    # Several processes share the training; one writes.
    if processes().is_main_process:
        sft.save(output, replace=replace)
    processes().wait_for_everyone()
    return sft


def add_masked_lm_head(
    model: str,
    files: Sequence[Path],
    output: Path,
    *,
    languages: Sequence[str],
    settings: AdaptSettings,
    work: Path,
    seed: int = 0,
    replace: bool = False,
) -> SparseFineTuning:
    """Give an encoder a masked-LM head: `adapt` trains the head alone, and nothing of the encoder changes.

    The output embeddings are the input embeddings again, so that students do not carry two tables. The same call goes
    on after an interruption.

    Args:
        model: folder or name of the encoder.
        files: plain text of all languages that it is to be used with.
        output: gets the model with its head and its tokenizer.
        languages: their codes, for the record.
        settings: of `adapt`; its density does not matter.
        work: token blocks and checkpoints; the caller may remove it afterwards.
        seed: as for `adapt`.
        replace: an output folder of ours gives way.

    Returns:
        The head, as an SFT without sparse entries.

    Raises:
        BistilError: as `adapt`.
    """
    claim(folders=[output], work=work, inputs=[model, *files], force=replace)
    head = adapt(
        model, files, work / "head", language="+".join(languages), settings=settings, work=work / "training", seed=seed,
        mask={}, replace=True,
    )  # fmt: skip
    whole, _ = masked_lm_model(model, seed=seed)
    head.merge(whole)
    whole.config.tie_word_embeddings = True
    whole.tie_weights()
    if processes().is_main_process:
        with whole_folder(output, replace=replace, record={"kind": "encoder with a new masked-LM head"}) as folder:
            save_weights(whole, folder)
            write_tokenizer(load_tokenizer(model), folder)
    processes().wait_for_everyone()
    return head
