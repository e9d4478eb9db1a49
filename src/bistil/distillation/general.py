"""Phase 1: general bilingual distillation (paper, section 3.2)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil._moved import left_names
from bistil.distillation.checks import check_folder, check_general, check_mask_token, objectives_of
from bistil.distillation.corpus import Figures, held_out_losses, masked_lm_losses, read_corpus
from bistil.distillation.module import Distiller
from bistil.distillation.outcome import CALL, phase1_report, student_made, write_students
from bistil.distillation.student import borrowed, choose_layers, make_student, without_upper_layers
from bistil.models.complete import CompleteModel, Origin, complete, tokenizer_of
from bistil.models.families import family_of
from bistil.models.masked_lm import load_encoder
from bistil.models.names import model_folder
from bistil.models.sentences import form_of_model, known_form
from bistil.models.tokenizers import load_tokenizer
from bistil.runtime.artefacts import (
    RECORD,
    check_product,
    claim,
    file_digest,
    folder_digest,
    json_digest,
    open_work,
    read_json,
)
from bistil.runtime.memory import return_memory_if_allowed
from bistil.settings.parsing import deciding
from bistil.settings.presets import phase1_preset
from bistil.settings.schema import Phase1Settings, PresetName, StudentSettings
from bistil.sparse import SparseFineTuning
from bistil.sparse.hub import sft_folder
from bistil.sparse.wearing import Wardrobe, kept_in
from bistil.text.schedule import BlockCollator, language_schedule
from bistil.text.sources import as_texts
from bistil.training.checkpoints import IDENTITY
from bistil.training.identity import inputs_digest
from bistil.training.loop import planned_steps, processes, train
from bistil.training.precision import settle_precision
from bistil.vocabulary.trimming import Kept

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.distillation.general")


class Students(dict[str, CompleteModel]):
    """Bilingual students by name; each brings its tokenizer and record (`models.complete`).

    Attributes:
        report: what `phase1.json` holds: per student layers, alignment, held-out losses at start and end; tokens, rate.
    """

    report: dict[str, Any]


def distill(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Mapping[str, Any],
    *,
    students: Sequence[StudentSettings],
    settings: Phase1Settings | PresetName | None = None,
    language_sfts: Mapping[str, SparseFineTuning | str | Path] | None = None,
    force_sfts: bool = False,
    one_language: bool = False,
    seed: int = 0,
    folder: Path | None = None,
    label: str = "phase 1",
) -> Students:
    """Distil bilingual students out of a multilingual teacher, from plain text alone (paper, section 3.2).

    All students learn from one teacher pass; each comes out as if it had been distilled alone.

    Args:
        teacher: the (trimmed) multilingual model, with or without a masked-LM head; it stays as it is.
        tokenizer: its fast tokenizer; None: the one that it brings.
        texts: per language, two or more, texts, files or a data set (`text.sources.as_texts`).
        students: which students to make.
        settings: objective, data and training, or a preset ("paper", "short"); default: the paper's.
        language_sfts: per language, the sparse fine-tuning (or its folder) that the teacher wears on that language's
            batches.
        force_sfts: wear them although they were made for another base.
        one_language: text of one language is enough; otherwise it is refused, for such a student forgets the language
            that its labels are learnt in.
        seed: of the held-out split, the order of training, random layers and masking.
        folder: work folder: token blocks and checkpoints, from which the same call goes on after an interruption. None:
            everything is in memory.
        label: of the progress line.

    Raises:
        InputError: fewer than two languages, or text that cannot be used.
        RecipeError: a student that this teacher cannot give, settings that contradict each other.
        ArtefactError: a teacher or sparse fine-tuning that does not fit.
        MissingExtraError: a logger that is not installed.
        DivergenceError: the loss became NaN or infinite.
    """
    if not isinstance(settings, Phase1Settings):
        settings = Phase1Settings() if settings is None else phase1_preset(settings)
    fast, sources, students = tokenizer_of(teacher, tokenizer), as_texts(texts), list(students)
    mask_tokens = check_general(
        teacher.config, students, list(texts), settings=settings, language_sfts=language_sfts or {},
        one_language=one_language,
    )  # fmt: skip
    if mask_tokens:
        check_mask_token(fast, "the teacher")
    family, batch_size = family_of(teacher), settings.training.batch_size
    has_head = teacher.get_output_embeddings() is not None

    training = settle_precision(settings.training, folder and folder / "training" / IDENTITY)
    return_memory_if_allowed(family.width(teacher.config), training.precision)
    # Whatever ends the block, the teacher takes off what it wears and gets its own attention back.
    with borrowed(teacher), ExitStack() as undone:
        # Student initialisation: every s-th layer of the teacher (section 3.2).
        layers = {student.name: choose_layers(family.depth(teacher.config), student) for student in students}
        small: dict[str, Any] = {
            student.name: make_student(teacher, layers[student.name], student, seed=seed) for student in students
        }

        # The teacher wears the language's SFT in batches of that language (section 3.2, teacher language adaptation).
        wardrobe = Wardrobe(teacher, language_sfts or {}, kept=Kept.of(teacher), force=force_sfts)
        undone.callback(wardrobe.wear, None)
        if not language_sfts and not has_head and family.final_norm(teacher) is None:
            # What no student learns from need not be computed.
            without_upper_layers(teacher, max(max(one) for one in layers.values()))
        objectives = objectives_of(students, settings)
        fast_maps = not settings.training.compile
        module = Distiller(teacher, small, objectives=objectives, layers=layers, wear=wardrobe.wear, fast=fast_maps)
        undone.callback(module.close)

        # Every batch is in one language, drawn with equal probability (section 3.2).
        if folder is not None:
            with processes().main_process_first():
                open_work(folder)
        corpus = read_corpus(sources, fast, settings, cache=folder and folder / "blocks", seed=seed)
        schedule = language_schedule(
            corpus.blocks,
            corpus.training,
            steps=planned_steps(sum(map(len, corpus.training.values())), settings.training),
            batch_size=batch_size,
            probabilities=settings.probabilities,
            seed=seed,
        )
        collate = BlockCollator(tokenizer=fast, mask_tokens=mask_tokens, seed=seed)
        _freeze(module, collate, schedule[0], embeddings=settings.freeze_embeddings)

        # The students learn from the teacher's attention and hidden states; each keeps its weights of the lowest loss.
        def evaluate(_: nn.Module) -> Figures:
            low_precision = training.precision == "bf16"
            return held_out_losses(module, corpus, collate, batch_size=batch_size, low_precision=low_precision)

        measured = corpus.has_held_out
        start = evaluate(module) if measured else {}
        result = train(
            module,
            schedule,
            collate=collate,
            settings=training,
            folder=folder and folder / "training",
            seed=seed,
            evaluate=evaluate if measured else None,
            best_by={prefix: (f"{name}/loss", "min") for name, prefix in module.parts().items()} if measured else None,
            inputs=None if folder is None else inputs_digest([teacher, module], schedule, wardrobe.digests()),
            label=label,
        )
        end = evaluate(module) if measured else {}
        wardrobe.wear(None)
        report = phase1_report(students, layers, corpus, result, start=start, end=end)
        if measured and has_head and fast.mask_token_id is not None:
            report["held_out_masked_lm"] = {
                name: masked_lm_losses(model, fast, corpus, batch_size=batch_size)
                for name, model in {"teacher": teacher, **small}.items()
            }
    found = Students()
    found.report = report
    for one in students:
        made = student_made(
            one,
            settings,
            report,
            parent=teacher.name_or_path or type(teacher).__name__,
            sentences=form_of_model(teacher),
        )
        found[one.name] = complete(small[one.name], fast, made)
    return found


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
    one_language: bool = False,
    replace: bool = False,
    label: str = "phase 1",
) -> dict[str, Any]:
    """`distill` from a folder into a folder. The same call goes on after an interruption.

    Args:
        teacher: folder or name of the (trimmed) multilingual model, with or without a masked-LM head.
        students, settings, seed, language_sfts, force_sfts, one_language, label: as for `distill`.
        texts: files per language, two languages or more.
        output: gets one model folder per student, and `phase1.json`.
        work: token blocks and checkpoints; the caller may remove it afterwards.
        replace: an output folder of ours gives way.

    Returns:
        What `phase1.json` holds (`Students.report`).

    Raises:
        BistilError: as `distill`; or an output that may not be written (`runtime.artefacts.claim`).
    """
    folder = model_folder(str(teacher))
    check_folder(
        folder, students, list(texts), settings=settings, language_sfts=language_sfts or {}, one_language=one_language
    )
    read = [folder, *(file for files in texts.values() for file in files), *(language_sfts or {}).values()]
    claim(folders=[output], work=work, inputs=read, force=replace)
    # What the folder knows of the model comes with it, as with a model that `trim` gave.
    origin = Origin(record={}, card={}, facts={"kept": kept_in(folder), "sentences": known_form(folder)})
    found = distill(
        complete(load_encoder(folder), load_tokenizer(str(folder)), origin),
        None,
        {language: [Path(file) for file in files] for language, files in texts.items()},
        students=students,
        settings=settings,
        language_sfts=language_sfts,
        force_sfts=force_sfts,
        one_language=one_language,
        seed=seed,
        folder=work,
        label=label,
    )
    if processes().is_main_process:
        call = _digest_of_call(folder, students, texts, settings, seed, language_sfts or {})
        write_students(
            output, found, found.report, teacher=folder, training=work / "training", replace=replace, call=call
        )
    processes().wait_for_everyone()
    return found.report


def students_made_before(
    teacher: str | Path,
    students: list[StudentSettings],
    texts: Mapping[str, list[Path]],
    output: Path,
    *,
    settings: Phase1Settings,
    seed: int,
    language_sfts: Mapping[str, str | Path] | None = None,
) -> dict[str, Any] | None:
    """What `distill_general` returned, if `output` is whole and holds what the same call made; None: it is not of it.

    Raises:
        ArtefactError: it is of the same call, but a file in it is missing or another one.
        BistilError: an input cannot be read.
    """
    record = output / RECORD
    stated = read_json(record) if record.is_file() else None
    if not isinstance(stated, dict) or CALL not in stated:
        return None
    if stated[CALL] != _digest_of_call(
        model_folder(str(teacher)), students, texts, settings, seed, language_sfts or {}
    ):
        return None
    check_product(output)
    report: dict[str, Any] = read_json(output / "phase1.json")
    return report


def _digest_of_call(
    teacher: Path,
    students: Sequence[StudentSettings],
    texts: Mapping[str, list[Path]],
    settings: Phase1Settings,
    seed: int,
    sfts: Mapping[str, str | Path],
) -> str:
    """SHA-256 of all that students depend on, files by their content."""
    return json_digest(
        {
            "teacher": folder_digest(teacher),
            "students": {student.name: deciding(student) for student in students},
            "texts": {language: [file_digest(Path(file)) for file in files] for language, files in texts.items()},
            "settings": deciding(settings),
            "seed": seed,
            "sfts": {language: folder_digest(sft_folder(str(sft))) for language, sft in sfts.items()},
        }
    )


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
