"""Errors that a user can act on.

    BistilError                 anything we explain in one line; the command line exits with `exit_code`
    ├── InputError              a file, a label or an argument is not what it must be
    │   └── RecipeError         a recipe has an unknown key, a wrong type or an impossible value
    ├── ArtefactError           a model folder, a sparse fine-tuning or a record is damaged or of another kind
    ├── MissingExtraError       an optional dependency is not installed
    └── DivergenceError         training met a loss that is not a number (exit code 1: the input was fine)

Messages say what is wrong, where, and what to do, in one line.
"""

import re


class BistilError(Exception):
    """Base of all errors that `bistil` raises on purpose; printed without a traceback."""

    exit_code = 2

    def __str__(self) -> str:
        # Names and values that come from files may hold anything.
        return one_line(super().__str__())


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


_LONGEST_MESSAGE = 2_000
# Control characters, half surrogate pairs, and characters that turn the direction of what follows.
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text as it may be shown on a terminal: what would steer the terminal is spelt as an escape, such as \\x1b."""
    return _NOT_SHOWN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(message: str) -> str:
    """A message as one printable line that is not too long: names and values in it come from files."""
    line = printable(" ".join(message.split()))
    if len(line) <= _LONGEST_MESSAGE:
        return line
    return f"{line[: _LONGEST_MESSAGE - 500]} ... {line[-500:]}"
