"""`bistil adapt`: a language SFT by masked language modelling."""

from pathlib import Path
from typing import Any

import typer

from bistil.commands.options import FORCE, SEED, Table, takes
from bistil.settings.recipe import AdaptSettings, parse

LENGTHS = tuple(f"training.{name}" for name in AdaptSettings.NO_EFFECT)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    @takes(values=Table(AdaptSettings, without=LENGTHS, assignable=True))
    def adapt(
        model: str = typer.Option(..., "--model", "-m", help="The encoder: a folder, a hub name, or e5-small."),
        language: str = typer.Option(..., "--language", "-l", help="Code of the language, such as sw."),
        text: list[Path] = typer.Option(..., help="Plain text of the language (repeat for several files)."),
        output: Path = typer.Option(..., "--output", "-o", help="New folder for the language SFT."),
        seed: int = SEED,
        force: bool = FORCE,
        *,
        values: dict[str, Any],
    ) -> None:
        """Learn what a language adds to a multilingual encoder, as a sparse fine-tuning.

        The same command goes on where an earlier one stopped. With `torchrun --nproc-per-node N -m bistil adapt ...`
        N processes share every batch.

        Example, an hour on two cores (the default is the paper's length, for a GPU):
        bistil adapt --model e5-small --language rw --text kinyarwanda.txt --steps 500 --output sfts/rw
        """
        settings = parse(AdaptSettings, values, "bistil adapt")
        from bistil.runtime.artefacts import work_for
        from bistil.sparse import language as adaptation
        from bistil.training.loop import processes

        with work_for(output) as work:
            sft = adaptation.adapt(
                model, text, output, language=language, settings=settings, work=work, seed=seed, replace=force
            )
        if not processes().is_main_process:
            return
        size = (output / "sft.safetensors").stat().st_size
        typer.echo(f"{output}: {sft.count:,} entries ({sft.density:.2%}), {size / 1e6:.1f} MB")
        for name, value in sft.provenance.metrics.items():
            if "loss" in name:
                typer.echo(f"{name}: {value:.4f} nats per masked token")
