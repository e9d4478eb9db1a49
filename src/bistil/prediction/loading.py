"""A finished model by its name, with what its task needs."""

from pathlib import Path
from typing import Any

from bistil.engines import open_engine
from bistil.errors import InputError
from bistil.models.families import check_length, position_limit
from bistil.models.loading import read_config
from bistil.models.names import model_folder
from bistil.models.tokenizers import load_tokenizer
from bistil.prediction.predictor import Predictor
from bistil.prediction.texts import Answerer, Classifier, MultiLabelClassifier
from bistil.prediction.words import Tagger, TreeParser
from bistil.tasks import get_task, kind_of

PREDICTORS: dict[str, type[Predictor]] = {
    "token-classification": Tagger,
    "dependency-parsing": TreeParser,
    "sequence-classification": Classifier,
    "multi-label-classification": MultiLabelClassifier,
    "question-answering": Answerer,
}
"""By the kind of task; one of your own is asked like the one that its class is made of."""

# Tokens per window, as in `evaluate`; a question needs room beside it.
MAX_LENGTH = {"question-answering": 384}


def load(
    name: str | Path,
    *,
    task: str | None = None,
    max_length: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    scheme: str | None = None,
) -> Predictor:
    """A finished model, ready for use.

    Args:
        name: the model's folder (of transformers, or exported), or its name on the hub.
        task: the kind of task; None: the one that the model's head is for.
        max_length: tokens per window; None: 128, of a question and its passage 384, or as many as the model can read.
        device: of PyTorch; None: a GPU if there is one. An exported model runs on the CPU.
        threads: while the model runs; None: as PyTorch is set, all cores.
        scheme: of a tagger's tags (`tasks.spans.SCHEMES`); None: it shows in them.

    Raises:
        InputError: there is no such model or device, or `max_length` exceeds the model's positions.
        ArtefactError: the model is damaged, is none of a task, or is a sparse fine-tuning that has not been merged.
        MissingExtraError: the engine that it was exported for is not installed.

    Example:
        >>> load("runs/demo/students/lrf2")("Rais alizungumza na watu wa Nairobi.")["entities"]  # doctest: +SKIP
    """
    folder = model_folder(str(name))
    config = read_config(folder)
    kind = task or kind_of(config, str(name))
    own = get_task(kind, scheme=scheme)
    kinds = [str(getattr(one, "kind", "")) for one in type(own).__mro__]
    like = next((one for one in kinds if one in PREDICTORS), None)
    if like is None:
        raise InputError(f"models for {kind} cannot be asked yet: of use are those for {', '.join(PREDICTORS)}")
    length = _length(config, MAX_LENGTH.get(like, 128), max_length)
    tokenizer = load_tokenizer(str(folder))
    engine = open_engine(folder, own, device=device, threads=threads)
    return PREDICTORS[like](str(name), own, engine, tokenizer, max_length=length, threads=threads)


def _length(config: Any, usual: int, wanted: int | None) -> int:
    """Tokens per window.

    Raises:
        InputError: the model has no positions for so many.
    """
    if wanted is None:
        return min(usual, position_limit(config) or usual)
    check_length(config, wanted)
    return wanted
