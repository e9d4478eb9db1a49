"""Phase 1: general bilingual distillation (paper, section 3.2)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bistil._moved import left_names
from bistil.distillation.checks import check_general, check_objectives, objectives_of
from bistil.distillation.corpus import Figures, held_out_losses, masked_lm_losses, read_corpus
from bistil.distillation.module import Distiller
from bistil.distillation.outcome import phase1_report, write_students
from bistil.distillation.student import choose_layers, make_student, without_upper_layers
from bistil.models.families import family_of
from bistil.models.masked_lm import load_encoder, supported_config
from bistil.models.names import model_folder
from bistil.models.tokenizers import load_tokenizer
from bistil.runtime.artefacts import claim, open_work
from bistil.runtime.memory import return_memory_if_allowed
from bistil.settings.recipe import Phase1Settings, StudentSettings
from bistil.sparse.wearing import Wardrobe
from bistil.text.schedule import BlockCollator, language_schedule
from bistil.training.loop import planned_steps, processes, train

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.distillation.general")


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
    family = family_of(configuration)
    return_memory_if_allowed(family.width(configuration))
    multilingual = load_encoder(folder)
    has_head = multilingual.get_output_embeddings() is not None
    objectives = objectives_of(students, settings)

    # Student initialisation: every s-th layer of the teacher (section 3.2).
    layers = {student.name: choose_layers(family.depth(configuration), student) for student in students}
    small = {s.name: make_student(multilingual, layers[s.name], start=s.start, seed=seed) for s in students}

    # The teacher wears the language's SFT in batches of that language (section 3.2, teacher language adaptation).
    wardrobe = Wardrobe(multilingual, language_sfts or {}, trimmed=folder, force=force_sfts)
    if not has_head and family.final_norm(multilingual) is None:
        without_upper_layers(multilingual, max(max(one) for one in layers.values()))
    module = Distiller(
        multilingual,
        small,
        objectives=objectives,
        layers=layers,
        wear=wardrobe.wear,
        fast=not settings.training.compile,
    )

    # Every batch is in one language, drawn with equal probability (section 3.2).
    with processes().main_process_first():
        open_work(work)
    corpus = read_corpus(texts, tokenizer, settings, cache=work / "blocks", seed=seed)
    batch_size = settings.training.batch_size
    schedule = language_schedule(
        corpus.blocks,
        corpus.training,
        steps=planned_steps(sum(map(len, corpus.training.values())), settings.training),
        batch_size=batch_size,
        probabilities=settings.probabilities,
        seed=seed,
    )
    mask_tokens = check_objectives(objectives, has_head=has_head)
    collate = BlockCollator(tokenizer=tokenizer, mask_tokens=mask_tokens, seed=seed)
    _freeze(module, collate, schedule[0], embeddings=settings.freeze_embeddings)

    # The students learn from the teacher's attention and hidden states; each keeps its weights of the lowest loss.
    def evaluate(_: nn.Module) -> Figures:
        low_precision = settings.training.precision == "bf16"
        return held_out_losses(module, corpus, collate, batch_size=batch_size, low_precision=low_precision)

    measured = corpus.has_held_out
    start = evaluate(module) if measured else {}
    result = train(
        module,
        schedule,
        collate=collate,
        settings=settings.training,
        folder=work / "training",
        seed=seed,
        evaluate=evaluate if measured else None,
        best_by={prefix: (f"{name}/loss", "min") for name, prefix in module.parts().items()} if measured else None,
        label=label,
    )
    end = evaluate(module) if measured else {}
    wardrobe.wear(None)
    report = phase1_report(students, layers, corpus, result, start=start, end=end)
    if measured and has_head and tokenizer.mask_token_id is not None:
        report["held_out_masked_lm"] = {
            name: masked_lm_losses(model, tokenizer, corpus, batch_size=batch_size)
            for name, model in {"teacher": multilingual, **small}.items()
        }
    if processes().is_main_process:
        write_students(
            output, students, small, tokenizer, settings, report,
            teacher=folder, training=work / "training", replace=replace,
        )  # fmt: skip
    processes().wait_for_everyone()
    return report


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
