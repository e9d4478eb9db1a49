"""Models and their folders: names, families, tokenizers, loading, heads, writing, cards."""

from typing import TYPE_CHECKING

from bistil._moved import left_names
from bistil.models.families import Family, family_of
from bistil.models.loading import load_model, read_config
from bistil.models.names import model_folder, resolve_model
from bistil.models.tokenizers import load_tokenizer
from bistil.models.writing import write_model

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.models")

__all__ = [
    "Family",
    "family_of",
    "load_model",
    "load_tokenizer",
    "model_folder",
    "read_config",
    "resolve_model",
    "write_model",
]
