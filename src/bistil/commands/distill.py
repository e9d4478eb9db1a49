"""`bistil distill`: bilingual students out of a multilingual teacher, from plain text (phase 1)."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from bistil.commands.options import FORCE, SEED, TRUST, Table, pairs, takes
from bistil.errors import RecipeError
from bistil.settings.recipe import Phase1Settings, PresetName, Recipe, StudentSettings, parse, phase1_preset
from bistil.settings.trust import require_trust

logger = logging.getLogger(__name__)

SHAPES = ("reduction", "depth", "layers")
# Of every student that the command makes.
FOR_ALL = ("start", "hidden_size", "intermediate_size", "attention_heads")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    @takes(
        shape=Table(StudentSettings, only=(*SHAPES, "spread", *FOR_ALL), each=SHAPES),
        run=Table(Recipe, only=("language_sfts", "force_sfts")),
        values=Table(phase1_preset("short"), assignable=True),
    )
    def distill(
        teacher: str = typer.Option(
            ..., "--teacher", "-t", help="The (trimmed) teacher: folder, hub name or e5-small."
        ),
        text: list[str] = typer.Option(
            ..., help="LANGUAGE=FILE, plain, .gz or .zst; repeat for more files and for each language."
        ),
        output: Path = typer.Option(..., "--output", "-o", help="New folder; gets one per student, and phase1.json."),
        preset: PresetName = typer.Option("short", help="short: for two CPU cores; paper: the paper's settings."),
        seed: int = SEED,
        force: bool = FORCE,
        trust_code: bool = TRUST,
        *,
        shape: dict[str, Any],
        run: dict[str, Any],
        values: dict[str, Any],
    ) -> None:
        """General bilingual distillation (phase 1): small students that read two languages like their teacher.

        All students learn from one teacher pass. The same command goes on where an earlier one stopped, and
        leaves what it finished as it is. With
        `torchrun --nproc-per-node N -m bistil distill ...` N processes share every batch.

        Example:
        bistil distill --teacher trimmed --text en=en.txt --text sw=sw.txt --reduction 2 --reduction 3 -o runs/phase1
        """
        settings = parse(Phase1Settings, values, "bistil distill", base=phase1_preset(preset))
        require_trust(settings, trust_code=trust_code, where="bistil distill")
        students = list(_students(shape))
        sfts: dict[str, str] = run.get("language_sfts", {})
        texts: dict[str, list[Path]] = {}
        for language, file in pairs(text, "--text", "LANGUAGE=FILE"):
            texts.setdefault(language, []).append(Path(file))
        from bistil.distillation.general import distill_general, students_made_before
        from bistil.runtime.artefacts import claim, work_for
        from bistil.training.loop import processes

        asked: dict[str, Any] = {"settings": settings, "seed": seed, "language_sfts": sfts}
        report = None if force else students_made_before(teacher, students, texts, output, **asked)
        if report is not None:
            logger.info(f"{output} is done: the same call made it (--force makes it again)")
        else:
            with work_for(output) as work:
                read: list[str | Path] = [teacher, *(one for files in texts.values() for one in files), *sfts.values()]
                claim(folders=[output], work=work, inputs=read, force=force)
                report = distill_general(
                    teacher,
                    students,
                    texts,
                    output,
                    work=work,
                    force_sfts=run.get("force_sfts", False),
                    replace=force,
                    **asked,
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


def _students(shape: Mapping[str, Any]) -> Iterator[StudentSettings]:
    """A student for each reduction, depth and list of layers; without any the paper's, of half the layers."""
    spread = shape.get("spread", "even")
    if spread != "even" and "depth" not in shape:
        raise RecipeError(f"--spread {spread} is a depth's: give --depth too")
    given = [(name, one) for name in SHAPES for one in shape.get(name, [])]
    for name, one in given or [("reduction", 2)]:
        called = {
            "reduction": f"lrf{one}",
            "depth": f"{'depth' if spread == 'even' else spread}{one}",
            "layers": f"layers{'-'.join(map(str, one))}" if isinstance(one, list) else "layers",
        }
        wide = f"-{shape['hidden_size']}" if "hidden_size" in shape else ""
        values = {"name": called[name] + wide, name: one, **{key: shape[key] for key in FOR_ALL if key in shape}}
        if name == "depth":
            values["spread"] = spread
        yield parse(StudentSettings, values, f"bistil distill --{name}")
