"""One training loop for all phases."""

from typing import TYPE_CHECKING

from bistil._moved import left_names

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.training")
