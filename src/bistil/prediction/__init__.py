"""Use of finished models: `load` makes a predictor, which answers texts, words and whole files."""

from bistil.prediction.loading import load
from bistil.prediction.predictor import Predictor, Wanted

__all__ = ["Predictor", "Wanted", "load"]
