"""Phase 1: general bilingual distillation (paper, section 3.2)."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bistil.distillation.module import Distiller, check_objective
from bistil.distillation.student import alignment, choose_layers, make_student, without_upper_layers
from bistil.errors import ArtefactError, InputError, RecipeError
from bistil.models.families import check_length, family_of
from bistil.models.masked_lm import has_masked_lm_head, load_encoder, masked_lm_loss, supported_config
from bistil.models.names import model_folder
from bistil.models.tokenizers import load_tokenizer
from bistil.models.writing import write_model
from bistil.runtime.artefacts import claim, folder_digest, open_work, whole_folder, write_json
from bistil.runtime.memory import return_memory_if_allowed
from bistil.settings.recipe import ObjectiveSettings, Phase1Settings, StudentSettings, to_dict
from bistil.sparse.wearing import Wardrobe
from bistil.text import IGNORED
from bistil.text.blocks import check_block_length, token_blocks
from bistil.text.schedule import BlockCollator, batches, check_probabilities, language_schedule, split_held_out
from bistil.training.loop import TENSORBOARD, TrainingResult, check_training, planned_steps, processes, train

Figures = dict[str, float]


def distill_general(
    teacher: str | Path,
    students: list[StudentSettings],
    texts: Mapping[str, list[Path]],
    output: Path,
    *,
    settings: Phase1Settings,
    seed: int,
    work: Path,
    language_sfts: Mapping[str, str | Path] | None = None,
    force_sfts: bool = False,
    replace: bool = False,
    label: str = "phase 1",
) -> dict[str, Any]:
    """Distil bilingual students out of a multilingual teacher, from plain text alone.

    All students learn from one teacher pass; each comes out as if it had been distilled alone. The same call goes on
    after an interruption.

    Args:
        teacher: folder or name of the (trimmed) multilingual model, with or without a masked-LM head.
        students: which students to make.
        texts: files per language, two languages or more.
        output: gets one model folder per student, and `phase1.json`.
        settings: objective, data and training.
        seed: of the held-out split, the order of training, random layers and masking.
        work: token blocks and checkpoints; the caller may remove it afterwards.
        language_sfts: per language, the sparse fine-tuning that the teacher wears on that language's batches.
        force_sfts: wear them although they were made for another base.
        replace: an output folder of ours gives way.
        label: of the progress line.

    Returns:
        What `phase1.json` holds: per student layers, alignment, held-out losses at start and end; tokens, rate.

    Raises:
        InputError: fewer than two languages, text that cannot be used, or an output that may not be written
            (`runtime.artefacts.claim`).
        RecipeError: a student that this teacher cannot give, settings that contradict each other.
        ArtefactError: a model or sparse fine-tuning that does not fit.
        MissingExtraError: a logger that is not installed.
        DivergenceError: the loss became NaN or infinite.
    """
    folder = model_folder(str(teacher))
    check_general(folder, students, list(texts), settings=settings, language_sfts=language_sfts or {})
    read = [folder, *(file for files in texts.values() for file in files), *(language_sfts or {}).values()]
    claim(folders=[output], work=work, inputs=read, force=replace)
    tokenizer = load_tokenizer(str(folder))
    configuration = supported_config(folder)
    return_memory_if_allowed(family_of(configuration).width(configuration))
    multilingual = load_encoder(folder)
    has_head = multilingual.get_output_embeddings() is not None
    objectives = {student.name: student.objective or settings.objective for student in students}
    mask_tokens = _check_objectives(objectives, has_head=has_head)
    can_mask = tokenizer.mask_token_id is not None

    # Student initialisation: every s-th layer of the teacher (section 3.2).
    depth = family_of(multilingual).depth(multilingual.config)
    layers = {student.name: choose_layers(depth, student) for student in students}
    small = {s.name: make_student(multilingual, layers[s.name], start=s.start, seed=seed) for s in students}
    held_out_mlm = {"teacher": multilingual, **small} if has_head and can_mask else {}

    # The teacher wears the language's SFT in batches of that language (section 3.2, teacher language adaptation).
    wardrobe = Wardrobe(multilingual, language_sfts or {}, trimmed=folder, force=force_sfts)
    if not has_head and family_of(multilingual).final_norm(multilingual) is None:
        without_upper_layers(multilingual, max(max(one) for one in layers.values()))
    module = Distiller(
        multilingual,
        small,
        objectives=objectives,
        layers=layers,
        wear=wardrobe.wear,
        fast=not settings.training.compile,
    )

    with processes().main_process_first():
        open_work(work)
    # Every batch is in one language, drawn with equal probability (section 3.2).
    blocks, training, held_out = _blocks(texts, tokenizer, settings, work=work, seed=seed)
    steps = _steps(settings, training)
    schedule = language_schedule(
        blocks,
        training,
        steps=steps,
        batch_size=settings.training.batch_size,
        probabilities=settings.probabilities,
        seed=seed,
    )
    collate = BlockCollator(tokenizer=tokenizer, mask_tokens=mask_tokens, seed=seed)
    _freeze(module, collate, schedule[0], embeddings=settings.freeze_embeddings)

    def evaluate(_: nn.Module) -> Figures:
        return _held_out_losses(
            module, blocks, held_out, collate, batch_size=settings.training.batch_size,
            low_precision=settings.training.precision == "bf16",
        )  # fmt: skip

    has_held_out = all(len(part) for part in held_out.values())
    start = evaluate(module) if has_held_out else {}
    result = train(
        module,
        schedule,
        collate=collate,
        settings=settings.training,
        folder=work / "training",
        seed=seed,
        evaluate=evaluate if has_held_out else None,
        best_by={prefix: (f"{name}/loss", "min") for name, prefix in module.parts().items()} if has_held_out else None,
        label=label,
    )
    end = evaluate(module) if has_held_out else {}
    wardrobe.wear(None)
    report = _report(students, layers, start, end, result, held_out=held_out, training=training)
    if held_out_mlm and has_held_out:
        report["held_out_masked_lm"] = {
            name: _masked_lm_losses(model, tokenizer, blocks, held_out, batch_size=settings.training.batch_size)
            for name, model in held_out_mlm.items()
        }
    if processes().is_main_process:
        with whole_folder(output, replace=replace, record={"kind": "bilingual students (phase 1)"}) as whole:
            for student in students:
                _save(small[student.name], tokenizer, whole / student.name, student, settings, report, parent=folder)
            log = work / "training" / "train_log.jsonl"
            if log.exists():
                shutil.copyfile(log, whole / "train_log.jsonl")
            board = work / "training" / TENSORBOARD
            if board.exists():
                shutil.copytree(board, whole / TENSORBOARD)
            write_json(whole / "phase1.json", report)
    processes().wait_for_everyone()
    return report


def check_general(
    teacher: Path,
    students: list[StudentSettings],
    languages: Sequence[str],
    *,
    settings: Phase1Settings,
    language_sfts: Mapping[str, Any],
) -> None:
    """Find what `distill_general` would refuse, as far as settings, configuration and tokenizer tell: no weights.

    Args:
        teacher: a model folder; trimmed or not makes no difference.
        languages: that there is text of.

    Raises:
        BistilError: as `distill_general`.
    """
    _check_names(students, languages, language_sfts)
    _check_held_out(settings, languages)
    check_training(settings.training)
    check_probabilities(settings.probabilities, languages)
    configuration = supported_config(teacher)
    check_block_length(settings.block_length)
    check_length(configuration, settings.block_length, name="block_length")
    objectives = {student.name: student.objective or settings.objective for student in students}
    for student in students:
        choose_layers(family_of(configuration).depth(configuration), student)
        check_objective(student.name, objectives[student.name], configuration, configuration)
    masked = _check_objectives(objectives, has_head=has_masked_lm_head(configuration))
    if masked and load_tokenizer(str(teacher)).mask_token_id is None:
        raise ArtefactError(f"the tokenizer of {teacher} has no mask token: hard_labels (masked-LM) need one")


def _check_names(students: list[StudentSettings], texts: Collection[str], sfts: Mapping[str, Any]) -> None:
    if len(texts) < 2:
        raise InputError(
            f"phase 1 needs text in two languages or more; given: {', '.join(texts) or 'none'} "
            "(a model of one language forgets what its labels are learnt in)"
        )
    unknown = set(sfts) - set(texts)
    if unknown:
        raise InputError(f"a language SFT for {', '.join(sorted(unknown))}, but text for {', '.join(texts)} only")
    names = [student.name for student in students]
    for name in names:
        if not name or set(name) & set("./\\") or names.count(name) > 1:
            raise RecipeError(f"student name {name!r}: names must differ and have no dot or slash")
    if not names:
        raise RecipeError("no student is asked for")


def _check_held_out(settings: Phase1Settings, texts: Collection[str]) -> None:
    unknown = set(settings.held_out_shares) - set(texts)
    if unknown:
        raise RecipeError(f"a held-out share for {', '.join(sorted(unknown))}, but text for {', '.join(texts)} only")
    for share in (settings.held_out, *settings.held_out_shares.values()):
        if not 0 <= share < 1:
            raise RecipeError(f"a held-out share must be 0 or more and below 1, not {share:g}")


def _check_objectives(objectives: Mapping[str, ObjectiveSettings], *, has_head: bool) -> bool:
    """Returns whether tokens are masked: in all students' batches or in none, as in a run of each alone."""
    if not has_head and any(one.prediction or one.hard_labels for one in objectives.values()):
        raise RecipeError(
            "prediction and hard_labels need a teacher with a masked-LM head, which this one lacks: set them to 0"
        )
    masking = {name for name, one in objectives.items() if one.hard_labels}
    if masking and len(masking) < len(objectives):
        raise RecipeError(
            f"hard_labels masks the text for every student of a run, but only {', '.join(sorted(masking))} asks for "
            "it: give it a weight for all students or for none, or distil them in two runs"
        )
    return bool(masking)


def _blocks(
    texts: Mapping[str, list[Path]],
    tokenizer: PreTrainedTokenizerBase,
    settings: Phase1Settings,
    *,
    work: Path,
    seed: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Per language: blocks, indices of the training blocks, indices of the held-out blocks."""
    with processes().main_process_first():
        blocks = {
            language: token_blocks(files, tokenizer, length=settings.block_length, cache=work / "blocks")
            for language, files in texts.items()
        }
    training, held_out = {}, {}
    for language, part in blocks.items():
        share = settings.held_out_shares.get(language, settings.held_out)
        training[language], held_out[language] = split_held_out(
            len(part), share, limit=settings.held_out_blocks, seed=seed
        )
    return blocks, training, held_out


def _steps(settings: Phase1Settings, training: Mapping[str, np.ndarray]) -> int:
    return planned_steps(sum(map(len, training.values())), settings.training)


def _freeze(
    module: Distiller,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    example: dict[str, Any],
    *,
    embeddings: bool,
) -> None:
    """Take parameters out of training that get no gradient: poolers, unused heads, embeddings if asked.

    They cost optimizer memory, and several processes wait for gradients that never come.
    """
    if embeddings:
        for student in module.students.values():
            named = dict(student.named_parameters())
            for name in family_of(student).embedding_parameters(student):
                named[name].requires_grad_(False)
    short = {**example, "input_ids": example["input_ids"][:16]}
    module(**collate([short]))["loss"].backward()
    for parameter in module.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None


@torch.no_grad()
def _held_out_losses(
    module: Distiller,
    blocks: Mapping[str, Any],
    held_out: Mapping[str, np.ndarray],
    collate: BlockCollator,
    *,
    batch_size: int,
    low_precision: bool,
) -> Figures:
    """Per student and language every unweighted term and the weighted loss; "NAME/loss" is the mean over languages.

    Several processes share the batches; each gets all figures.
    """
    state = processes()
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    figures: Figures = {}
    for language, indices in held_out.items():
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(
            batches(blocks[language], indices, collate, language=language, batch_size=batch_size)
        ):
            if number % state.num_processes != state.process_index and number > 0:
                continue
            # The first batch tells every process the names; it counts once.
            share = float(number % state.num_processes == state.process_index) * len(batch["input_ids"])
            with torch.autocast(device.type, torch.bfloat16) if low_precision else nullcontext():
                terms = module(**{k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()})
            for name, value in terms.items():
                if name != "loss":
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + value.float() * share
        for name, value in sums.items():
            student, term = name.split("/")
            figures[f"{student}/{language}/{term}"] = float(reduce(value, "sum")) / len(indices)
    for student in module.students:
        figures[f"{student}/loss"] = float(np.mean([figures[f"{student}/{language}/loss"] for language in held_out]))
    module.train(was_training)
    return figures


@torch.no_grad()
def _masked_lm_losses(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Mapping[str, Any],
    held_out: Mapping[str, np.ndarray],
    *,
    batch_size: int,
) -> Figures:
    """Cross-entropy per masked token (nats) on held-out blocks, per language; the masks are the same for all models."""
    family = family_of(model)
    collate = BlockCollator(tokenizer=tokenizer, mask_tokens=True)
    device = next(model.parameters()).device
    losses: Figures = {}
    for language, indices in held_out.items():
        total, count = 0.0, 0
        for batch in batches(blocks[language], indices, collate, language=language, batch_size=batch_size):
            ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
            mask = batch.get("attention_mask")
            states = family.encoder(model)(input_ids=ids, attention_mask=None if mask is None else mask.to(device))[0]
            chosen = labels != IGNORED
            logits = family.masked_lm_logits(model, states[chosen])
            total += float(masked_lm_loss(logits, labels[chosen])) * int(chosen.sum())
            count += int(chosen.sum())
        losses[language] = total / max(count, 1)
    return losses


def _report(
    students: list[StudentSettings],
    layers: Mapping[str, list[int]],
    start: Figures,
    end: Figures,
    result: TrainingResult,
    *,
    held_out: Mapping[str, np.ndarray],
    training: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    def of(figures: Figures, name: str) -> Figures:
        return {key.removeprefix(f"{name}/"): value for key, value in figures.items() if key.startswith(f"{name}/")}

    return {
        "students": {
            student.name: {
                "start": student.start,
                "alignment": alignment(layers[student.name]),
                "held_out": {"start": of(start, student.name), "end": of(end, student.name)},
                "best_step": result.best_parts.get(f"students.{student.name}.", {}).get("step"),
            }
            for student in students
        },
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(result.tokens / result.seconds, 1) if result.seconds else None,
        "blocks": {
            language: {"training": len(training[language]), "held_out": len(held_out[language])}
            for language in training
        },
        "history": result.history,
    }


def _save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    student: StudentSettings,
    settings: Phase1Settings,
    report: Mapping[str, Any],
    *,
    parent: Path,
) -> None:
    """A plain Hugging Face folder with the teacher's tokenizer, a card and the record."""
    own = report["students"][student.name]
    languages = list(report["blocks"])
    write_model(
        target,
        model,
        tokenizer,
        record={
            "kind": "bilingual student (phase 1)",
            "student": to_dict(student),
            "settings": to_dict(settings),
            "metrics": own,
            "masked_lm": report.get("held_out_masked_lm", {}).get(student.name),
            "parents": {"teacher": {"name": parent.name, "digest": folder_digest(parent)}},
        },
        title=f"{student.name}: a bilingual student ({', '.join(languages)})",
        summary="A small encoder of two languages, to be fine-tuned on labels in one and used in the other.",
        languages=languages,
        made=[
            f"general bilingual distillation (phase 1) from `{parent.name}`, over {report['tokens']:,} tokens of text",
            f"teacher layers {own['alignment']['layers']}, {own['start']} start",
        ],
    )
