"""The command line: one command per stage of the method, each in a module of `bistil.commands`."""

import os
import signal
import sys
from importlib import import_module

import typer

import bistil
from bistil.errors import BistilError

# In the order in which the method uses them; `run` and `demo` do all of it.
COMMANDS = ("demo", "run", "trim", "distill", "finetune", "evaluate", "benchmark", "adapt", "sft")

app = typer.Typer(
    name="bistil",
    help=(
        "Small, fast models for one language out of massively multilingual ones (BiStil).\n\n"
        "Start with `bistil demo --output runs/demo`; for your own language write a recipe and "
        "`bistil run RECIPE.toml --output DIR`."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"bistil {bistil.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
    ),
) -> None:
    del version


for _name in COMMANDS:
    import_module(f"bistil.commands.{_name}").register(app)


def main() -> None:
    """Run the command line; an error that a user can act on becomes one line on stderr and its exit code."""
    own = os.getpid()

    def stop(number: int, _frame: object) -> None:
        # Worker processes inherit this handler and have nothing to say.
        if os.getpid() == own:
            print("bistil: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        app()
    except BistilError as error:
        message = " ".join(str(error).split())
        print(f"bistil: error: {message}", file=sys.stderr)
        sys.exit(error.exit_code)
