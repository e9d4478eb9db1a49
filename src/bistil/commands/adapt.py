"""`bistil adapt`: a language SFT by masked language modelling."""

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def adapt(
        model: str = typer.Option(..., "--model", "-m", help="The encoder: a folder, a hub name, or e5-small."),
        language: str = typer.Option(..., "--language", "-l", help="Code of the language, such as sw."),
        text: list[Path] = typer.Option(..., help="Plain text of the language (repeat for several files)."),
        output: Path = typer.Option(..., "--output", "-o", help="New folder for the language SFT."),
        density: float = typer.Option(0.04, help="Share of the entries that the language may change."),
        steps: int | None = typer.Option(None, help="Steps of each of the two phases; default: 30,000 to 100,000."),
        batch_size: int = typer.Option(8, help="Blocks per step."),
        block_length: int = typer.Option(256, help="Tokens per block."),
        learning_rate: float = typer.Option(5e-5, help="Peak learning rate; decays linearly to 0."),
        evaluate_steps: int = typer.Option(1000, help="Steps between held-out losses."),
        checkpoint_steps: int = typer.Option(200, help="Steps between checkpoints."),
        freeze_embeddings: bool = typer.Option(False, "--freeze-embeddings", help="Leave the input embeddings alone."),
        precision: str = typer.Option("float32", help="float32 or bf16 matrix products."),
        seed: int = typer.Option(0, help="Seed of the order, masking and a new head."),
        force: bool = typer.Option(False, "--force", help="Replace the output folder if bistil made it."),
    ) -> None:
        """Learn what a language adds to a multilingual encoder, as a sparse fine-tuning.

        The same command goes on where an earlier one stopped. With `torchrun --nproc-per-node N -m bistil adapt ...`
        N processes share every batch.

        Example, an hour on two cores (the default is the paper's length, for a GPU):
        bistil adapt --model e5-small --language rw --text kinyarwanda.txt --steps 500 --output sfts/rw
        """
        from bistil.runtime.artefacts import discard_work, work_beside
        from bistil.settings.recipe import TrainingSettings, parse
        from bistil.sparse import language as adaptation
        from bistil.training.loop import processes

        training = parse(
            TrainingSettings,
            {
                "steps": 1,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "evaluate_steps": evaluate_steps,
                "checkpoint_steps": checkpoint_steps,
                "precision": precision,
            },
            "bistil adapt",
        )
        work = work_beside(output)
        sft = adaptation.adapt(
            model,
            text,
            output,
            language=language,
            settings=adaptation.AdaptSettings(
                density=density,
                steps=steps,
                block_length=block_length,
                freeze_embeddings=freeze_embeddings,
                training=training,
            ),
            work=work,
            seed=seed,
            replace=force,
        )
        if not processes().is_main_process:
            return
        discard_work(work)
        size = (output / "sft.safetensors").stat().st_size
        typer.echo(f"{output}: {sft.count:,} entries ({sft.density:.2%}), {size / 1e6:.1f} MB")
        for name, value in sft.provenance.metrics.items():
            if "loss" in name:
                typer.echo(f"{name}: {value:.4f} nats per masked token")
