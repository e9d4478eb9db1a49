"""Errors that a user can act on.

    BistilError                 anything we explain in one line; the command line exits with `exit_code`
    ├── InputError              a file, a label or an argument is not what it must be
    │   └── RecipeError         a recipe has an unknown key, a wrong type or an impossible value
    ├── ArtefactError           a model folder, a sparse fine-tuning or a record is damaged or of another kind
    ├── MissingExtraError       an optional dependency is not installed
    └── DivergenceError         training met a loss that is not a number (exit code 1: the input was fine)

Messages say what is wrong, where, and what to do, in one line.
"""


class BistilError(Exception):
    """Base of all errors that `bistil` raises on purpose; printed without a traceback."""

    exit_code = 2


class InputError(BistilError):
    """A file, a label or an argument is not what it must be."""


class RecipeError(InputError):
    """A recipe has an unknown key, a value of the wrong type or an impossible combination."""


class ArtefactError(BistilError):
    """Something on disk that `bistil` or Hugging Face wrote is damaged, incomplete or of another kind."""


class MissingExtraError(BistilError):
    """An optional dependency is missing; the message carries the command that installs it."""


class DivergenceError(BistilError):
    """The training loss became NaN or infinite; the last good checkpoint is kept."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing: for messages of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
