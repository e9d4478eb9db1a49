"""The command line: one command per stage of the method, each in a module of `bistil.commands`."""

import sys
import traceback
from importlib import import_module

import typer

from bistil._version import __version__
from bistil.commands.options import Command, Group, in_new_words
from bistil.errors import BistilError, InputError, one_line
from bistil.runtime.insides import usage_error
from bistil.runtime.process import end_if_stopped, hide_messages, is_verbose, prepare_process, show_all_messages
from bistil.runtime.refused import system_refusal

# In the order in which the method uses them; `run` and `demo` do all of it.
COMMANDS = (
    "demo", "init", "run", "study", "trim", "distill", "finetune", "evaluate", "predict", "serve", "export",
    "benchmark", "push", "adapt", "sft", "licences",
)  # fmt: skip

app = typer.Typer(
    name="bistil",
    help=(
        "Small, fast models for one language out of massively multilingual ones (BiStil).\n\n"
        "Start with `bistil demo --output runs/demo`; for your own language write a recipe with "
        "`bistil init FILE...`, then `bistil run recipe.toml`."
    ),
    cls=Group,
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
        False, "--version", "-V", help="Print the version and stop.", callback=_print_version, is_eager=True
    ),
    quiet: bool = typer.Option(
        False, "--quiet", "-q", help="Print results and errors alone: no messages, no progress."
    ),
    verbose: bool = typer.Option(
        False, "--verbose", "-v", help="Print more: what libraries say, and where in the code an error comes from."
    ),
) -> None:
    del version
    if quiet and verbose:
        raise InputError("--quiet and --verbose exclude each other: leave one out")
    if quiet:
        hide_messages()
    if verbose:
        show_all_messages()


for _name in COMMANDS:
    import_module(f"bistil.commands.{_name}").register(app)
for _one in (app, *(_group.typer_instance for _group in app.registered_groups)):
    for _command in _one.registered_commands if _one is not None else ():
        _command.cls = Command


def main() -> None:
    """Run the command line; an error that a user can act on becomes one line on stderr and its exit code."""
    prepare_process()
    try:
        # Typer's own handling draws a box of several lines around an error.
        sys.exit(app(in_new_words(sys.argv[1:]), prog_name="bistil", standalone_mode=False) or 0)
    except BistilError as error:
        end_if_stopped(error)
        _fail(str(error), error.exit_code)
    except usage_error() as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "bistil")
        # Without arguments the help has been printed.
        if type(error).__name__ != "NoArgsIsHelpError":
            message = error.format_message().removesuffix(".")  # type: ignore[attr-defined]
            _fail(f"{message} See {command} --help" if message[-1:] == "?" else f"{message}: see {command} --help", 2)
        sys.exit(2)
    except Exception as error:
        end_if_stopped(error)
        refused = system_refusal(error)
        if refused is None:
            raise
        _fail(refused, 2)


def _fail(message: str, code: int) -> None:
    if is_verbose():
        traceback.print_exc()
    print(f"bistil: error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
