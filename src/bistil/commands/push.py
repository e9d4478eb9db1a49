"""`bistil push`: a model onto the Hugging Face hub."""

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def push(
        model: str = typer.Argument(
            ..., help="Folder of any model: trimmed, a student, a task model, merged, exported."
        ),
        repository: str = typer.Argument(..., help="Hub name, OWNER/NAME; made if it does not exist."),
        private: bool = typer.Option(False, "--private", help="Make a new repository private."),
        dry_run: bool = typer.Option(False, "--dry-run", help="Only list what would be uploaded; needs no network."),
        message: str = typer.Option("A model made with bistil", help="Of the commit."),
    ) -> None:
        """Share a model on the Hugging Face hub, with its card and record, without what belongs to this machine.

        Example: bistil push runs/demo/students/lrf2 my-name/e5-small-en-sw --private --dry-run
        """
        from pathlib import Path

        from bistil.errors import InputError, printable
        from bistil.models.names import SFT_CONFIG, resolve_model
        from bistil.models.upload import check_repository, shipment, upload
        from bistil.runtime.artefacts import check_product

        check_repository(repository)
        if (Path(model) / SFT_CONFIG).is_file() and not (Path(model) / "config.json").is_file():
            raise InputError(f"{model} holds a sparse fine-tuning: `bistil sft push {model} {repository}` shares it")
        folder = Path(resolve_model(model))
        if not folder.is_dir():
            raise InputError(f"no such folder: {model}")
        check_product(folder)
        if not dry_run:
            typer.echo(upload(folder, repository, private=private or None, message=message))
            return
        sent = shipment(folder)
        for name, own in sent.files.items():
            note = "" if own is None else "  (without this machine's paths)"
            typer.echo(f"{sent.size(name):>13,}  {printable(name)}{note}")
        typer.echo(f"{sent.bytes:>13,}  bytes in {len(sent.files)} files")
        if sent.left_out:
            typer.echo(f"left out: {printable(', '.join(sent.left_out))}")
        kind = "private" if private else "public, or as it is if it exists"
        typer.echo(f"would go to {repository} ({kind}); nothing was uploaded")
