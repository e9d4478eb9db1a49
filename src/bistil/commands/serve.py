"""`bistil serve`: a finished model over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from bistil.commands.options import DEVICE, TASK_KIND, THREADS, WINDOW
from bistil.serving.settings import Limits


def register(app: typer.Typer) -> None:
    """Add the command."""
    limits = Limits()

    @app.command()
    def serve(
        model: Annotated[
            str, typer.Argument(help="Folder of a task model or an exported one, or its name on the hub.")
        ],
        teacher: Annotated[
            str | None, typer.Option(help="Another model for the same task, to compare with on the page.")
        ] = None,
        host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8000,
        token_file: Annotated[
            Path | None,
            typer.Option(
                help="Holds the token that requests must bring. Default: the environment's BISTIL_SERVE_TOKEN, or none."
            ),
        ] = None,
        max_body: Annotated[int, typer.Option(help="Bytes of a request.", min=1)] = limits.body,
        max_inputs: Annotated[int, typer.Option(help="Inputs of a request.", min=1)] = limits.inputs,
        max_characters: Annotated[int, typer.Option(help="Characters of an input.", min=1)] = limits.characters,
        queue: Annotated[
            int, typer.Option(help="Requests that may wait; further ones are answered 503.", min=1)
        ] = limits.waiting,
        timeout: Annotated[
            float, typer.Option(help="Seconds in which a client must send a request, and take its answer.", min=0.1)
        ] = limits.seconds,
        stop_timeout: Annotated[
            float, typer.Option(help="Seconds after a signal in which requests in flight are answered.", min=0.1)
        ] = limits.stop,
        batch_size: Annotated[
            int, typer.Option(help="Inputs that are answered together, as far as so many wait.", min=1)
        ] = limits.batch,
        task: Annotated[str | None, TASK_KIND] = None,
        max_length: Annotated[int | None, WINDOW] = None,
        device: Annotated[str | None, DEVICE] = None,
        threads: Annotated[int | None, THREADS] = None,
    ) -> None:
        """Serve a task model over HTTP, with a page to try it on, until Ctrl-C or SIGTERM.

        Example, with a page on port 8000:
        bistil serve runs/demo/students/lrf2 --teacher runs/demo/task-teacher
        """
        from bistil.serving.start import serve as run

        unanswered = run(
            model,
            teacher=teacher,
            host=host,
            port=port,
            token_file=token_file,
            limits=Limits(
                body=max_body,
                inputs=max_inputs,
                characters=max_characters,
                waiting=queue,
                batch=batch_size,
                seconds=timeout,
                stop=stop_timeout,
            ),
            task=task,
            max_length=max_length,
            device=device,
            threads=threads,
        )
        if unanswered:
            typer.echo(f"{unanswered} requests were not answered within {stop_timeout:g} s", err=True)
            raise typer.Exit(1)
