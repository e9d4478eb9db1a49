"""The command line: one command per stage of the method, each in a module of `bistil.commands`."""

import sys
from importlib import import_module

import typer

from bistil._version import __version__
from bistil.commands.options import in_new_words
from bistil.errors import BistilError, one_line
from bistil.runtime.insides import usage_error
from bistil.runtime.process import prepare_process
from bistil.runtime.refused import system_refusal

# In the order in which the method uses them; `run` and `demo` do all of it.
COMMANDS = (
    "demo", "init", "run", "study", "trim", "distill", "finetune", "evaluate", "predict", "export", "benchmark", "push",
    "adapt", "sft", "licences",
)  # fmt: skip

app = typer.Typer(
    name="bistil",
    help=(
        "Small, fast models for one language out of massively multilingual ones (BiStil).\n\n"
        "Start with `bistil demo --output runs/demo`; for your own language write a recipe with "
        "`bistil init FILE...`, then `bistil run recipe.toml`."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"bistil {__version__}")
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
    prepare_process()
    try:
        # Typer's own handling draws a box of several lines around an error.
        sys.exit(app(in_new_words(sys.argv[1:]), prog_name="bistil", standalone_mode=False) or 0)
    except BistilError as error:
        _fail(str(error), error.exit_code)
    except usage_error() as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "bistil")
        # Without arguments the help has been printed.
        if type(error).__name__ != "NoArgsIsHelpError":
            _fail(f"{error.format_message().removesuffix('.')}: see {command} --help", 2)  # type: ignore[attr-defined]
        sys.exit(2)
    except Exception as error:
        refused = system_refusal(error)
        if refused is None:
            raise
        _fail(refused, 2)


def _fail(message: str, code: int) -> None:
    print(f"bistil: error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
