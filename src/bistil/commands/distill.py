"""`bistil distill`: bilingual students out of a multilingual teacher, from plain text (phase 1)."""

from pathlib import Path
from typing import Any

import typer

from bistil.settings.recipe import ObjectiveSettings, Phase1Settings, TrainingSettings, help_of


def register(app: typer.Typer) -> None:
    phase1, objective = Phase1Settings(), ObjectiveSettings()
    training = phase1.training

    @app.command()
    def distill(
        teacher: str = typer.Option(
            ..., "--teacher", "-t", help="The (trimmed) teacher: folder, hub name or e5-small."
        ),
        text: list[str] = typer.Option(
            ..., help="LANGUAGE=FILE, plain, .gz or .zst; repeat for more files and for each language."
        ),
        output: Path = typer.Option(..., "--output", "-o", help="New folder; gets one per student, and phase1.json."),
        reduction: list[int] = typer.Option([], help="A student that keeps every s-th layer; repeat for several."),
        depth: list[int] = typer.Option([], help="A student with this many layers, spread evenly; repeat for several."),
        spread: str = typer.Option("even", help="Where --depth takes its layers from: even, first or last."),
        layers: list[str] = typer.Option([], help="A student of these teacher layers, such as 1,4,8,12."),
        random_start: bool = typer.Option(False, "--random-start", help="Layers start random instead of copied."),
        language_sft: list[str] = typer.Option(
            [], help="LANGUAGE=SFT (folder or hub name) that the teacher wears in that language's batches."
        ),
        force_sfts: bool = typer.Option(False, "--force-sfts", help="Wear SFTs that were made for another base too."),
        force: bool = typer.Option(False, "--force", help="Replace the output folder if bistil made it."),
        probability: list[str] = typer.Option(
            [], help="LANGUAGE=NUMBER: how often a batch is in it, for each language.  [default: equal]"
        ),
        held_out: list[str] = typer.Option(
            [], help="Share of the blocks kept for the held-out loss, alone or as LANGUAGE=SHARE.  [default: 0.05]"
        ),
        held_out_blocks: int | None = typer.Option(
            None, help="Most blocks held out per language; 0: no limit.  [default: 64; paper: no limit]", min=0
        ),
        preset: str = typer.Option("short", help="short: for two CPU cores; paper: the paper's settings."),
        steps: int | None = typer.Option(None, help=help_of(TrainingSettings, "steps")),
        batch_size: int | None = typer.Option(None, help=help_of(TrainingSettings, "batch_size")),
        accumulation: int = typer.Option(training.accumulation, help=help_of(TrainingSettings, "accumulation")),
        block_length: int | None = typer.Option(None, help=help_of(Phase1Settings, "block_length")),
        learning_rate: float | None = typer.Option(None, help=help_of(TrainingSettings, "learning_rate")),
        evaluate_steps: int | None = typer.Option(None, help=help_of(TrainingSettings, "evaluate_steps")),
        patience: int | None = typer.Option(None, help=help_of(TrainingSettings, "patience")),
        precision: str = typer.Option(
            training.precision, help="float32 or bf16: " + help_of(TrainingSettings, "precision")
        ),
        compile: bool = typer.Option(False, "--compile", help=help_of(TrainingSettings, "compile")),
        freeze_embeddings: bool = typer.Option(
            False, "--freeze-embeddings", help=help_of(Phase1Settings, "freeze_embeddings")
        ),
        attention: float = typer.Option(objective.attention, help="Weight: " + help_of(ObjectiveSettings, "attention")),
        hidden: float = typer.Option(objective.hidden, help="Weight: " + help_of(ObjectiveSettings, "hidden")),
        prediction: float = typer.Option(
            objective.prediction, help="Weight: " + help_of(ObjectiveSettings, "prediction")
        ),
        temperature: float = typer.Option(objective.temperature, help=help_of(ObjectiveSettings, "temperature")),
        masked_lm: float = typer.Option(0.0, help="Weight: masked language modelling on 15% of the tokens"),
        cosine: float = typer.Option(objective.cosine, help="Weight: " + help_of(ObjectiveSettings, "cosine")),
        relations: float = typer.Option(objective.relations, help="Weight: " + help_of(ObjectiveSettings, "relations")),
        relation_heads: int = typer.Option(objective.relation_heads, help=help_of(ObjectiveSettings, "relation_heads")),
        logger: list[str] = typer.Option(
            [], help="Extra logger of the Trainer, such as tensorboard or trackio; repeatable."
        ),
        seed: int = typer.Option(0, help="Seed of the order, the held-out blocks and random layers."),
    ) -> None:
        """General bilingual distillation (phase 1): small students that read two languages like their teacher.

        All students learn from one teacher pass. The same command goes on where an earlier one stopped. With
        `torchrun --nproc-per-node N -m bistil distill ...` N processes share every batch.

        Example:
        bistil distill --teacher trimmed --text en=en.txt --text sw=sw.txt --reduction 2 --reduction 3 -o runs/phase1
        """
        from bistil.distillation.general import distill_general
        from bistil.errors import RecipeError
        from bistil.runtime.artefacts import claim, discard_work, work_beside
        from bistil.settings.recipe import StudentSettings, parse
        from bistil.training.loop import processes

        if preset not in PRESETS:
            raise RecipeError(f"--preset {preset!r}: choose one of {', '.join(PRESETS)}")
        if spread not in ("even", "first", "last"):
            raise RecipeError(f"--spread {spread!r}: choose one of even, first, last")
        start: Any = "random" if random_start else "copy"
        where: Any = spread
        students = [
            *(StudentSettings(name=f"lrf{factor}", reduction=factor, start=start) for factor in reduction),
            *(
                StudentSettings(
                    name=f"{'depth' if spread == 'even' else spread}{count}",
                    depth=count,
                    spread=where,
                    start=start,
                )
                for count in depth
            ),
            *(
                StudentSettings(name=f"layers{'-'.join(map(str, one))}", layers=one, start=start)
                for one in map(_numbers, layers)
            ),
        ]
        texts: dict[str, list[Path]] = {}
        for language, file in language_pairs(text, "--text", "FILE"):
            texts.setdefault(language, []).append(Path(file))
        given = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate,
                 "evaluate_steps": evaluate_steps}  # fmt: skip
        how = {
            **PRESETS[preset]["training"],
            **{name: value for name, value in given.items() if value is not None},
            "accumulation": accumulation,
            "patience": patience,
            "precision": precision,
            "compile": compile,
            "loggers": logger,
        }
        shares = [one for one in held_out if "=" not in one]
        blocks = PRESETS[preset]["held_out_blocks"] if held_out_blocks is None else held_out_blocks or None
        settings = parse(
            Phase1Settings,
            {
                "block_length": PRESETS[preset]["block_length"] if block_length is None else block_length,
                "held_out": _number(shares[-1], "--held-out") if shares else phase1.held_out,
                "held_out_shares": _numbers_by_language([one for one in held_out if "=" in one], "--held-out"),
                "held_out_blocks": blocks,
                "probabilities": _numbers_by_language(probability, "--probability"),
                "freeze_embeddings": freeze_embeddings,
                "objective": {
                    "attention": attention, "hidden": hidden, "prediction": prediction, "temperature": temperature,
                    "hard_labels": masked_lm, "cosine": cosine, "relations": relations,
                    "relation_heads": relation_heads,
                },
                "training": how,
            },
            "bistil distill",
        )  # fmt: skip
        sfts = dict(language_pairs(language_sft, "--language-sft", "SFT"))
        work = work_beside(output)
        read: list[str | Path] = [teacher, *(file for files in texts.values() for file in files), *sfts.values()]
        claim(folders=[output], work=work, inputs=read, force=force)
        report = distill_general(
            teacher,
            students or [StudentSettings(name="lrf2", reduction=2, start=start)],
            texts,
            output,
            settings=settings,
            seed=seed,
            work=work,
            force_sfts=force_sfts,
            replace=force,
            language_sfts=sfts,
        )
        if not processes().is_main_process:
            return
        for name, one in report["students"].items():
            losses = one["held_out"]
            change = (
                f"held-out loss {losses['start']['loss']:.4g} -> {losses['end']['loss']:.4g}"
                if losses["end"]
                else "no held-out text"
            )
            typer.echo(f"{output / name}: teacher layers {one['alignment']['layers']}, {change}")
        discard_work(work)


# Presets of the whole phase; `paper` is section 3.2 and appendix of the paper, for a GPU and hours. The paper holds 5%
# of the text out and looks at it every 1,000 steps; of high-resource languages 1%, every 5,000 steps.
PRESETS: dict[str, dict[str, Any]] = {
    "short": {
        "block_length": 128,
        "held_out_blocks": 64,
        "training": {"steps": 600, "batch_size": 16, "learning_rate": 5e-4, "evaluate_steps": 200},
    },
    "paper": {
        "block_length": 256,
        "held_out_blocks": None,
        "training": {"steps": 200_000, "batch_size": 8, "learning_rate": 1e-4, "evaluate_steps": 1000,
                     "checkpoint_steps": 1000, "max_grad_norm": 1.0},
    },
}  # fmt: skip


def language_pairs(values: list[str], option: str, what: str) -> list[tuple[str, str]]:
    """`["sw=a.txt"]` as `[("sw", "a.txt")]`.

    Raises:
        InputError: an entry is not LANGUAGE=WHAT.
    """
    from bistil.errors import InputError

    pairs = []
    for value in values:
        language, sign, rest = value.partition("=")
        if not (language and sign and rest):
            raise InputError(f"{option} {value!r}: write LANGUAGE={what}, such as sw=swahili.txt")
        pairs.append((language, rest))
    return pairs


def _numbers(value: str) -> list[int]:
    from bistil.errors import InputError

    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        raise InputError(f"--layers {value!r}: write numbers with commas, such as 1,4,8,12") from error


def _numbers_by_language(values: list[str], option: str) -> dict[str, float]:
    return {
        language: _number(value, f"{option} {language}") for language, value in language_pairs(values, option, "NUMBER")
    }


def _number(value: str, option: str) -> float:
    from bistil.errors import InputError

    try:
        return float(value)
    except ValueError as error:
        raise InputError(f"{option} {value!r}: write a number, such as 0.05") from error
