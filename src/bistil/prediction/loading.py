"""A finished model by its name, with what its task needs."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bistil.engines import open_engine
from bistil.errors import InputError
from bistil.models.exported import exported_length
from bistil.models.families import check_length, position_limit
from bistil.models.loading import PRETRAINED_WITH, read_config, task_of
from bistil.models.names import model_folder
from bistil.models.sentences import SentenceForm, sentence_form
from bistil.models.tokenizers import load_tokenizer
from bistil.prediction.predictor import Predictor
from bistil.prediction.sentence_task import KIND, SentenceEmbedding
from bistil.prediction.sentences import SentenceEncoder
from bistil.prediction.texts import Answerer, Classifier, MultiLabelClassifier
from bistil.prediction.words import Tagger, TreeParser
from bistil.tasks import Task, get_task, kind_of
from bistil.tasks.batches import Engine

PREDICTORS: dict[str, type[Predictor]] = {
    "token-classification": Tagger,
    "dependency-parsing": TreeParser,
    "sequence-classification": Classifier,
    "multi-label-classification": MultiLabelClassifier,
    "question-answering": Answerer,
    KIND: SentenceEncoder,
}
"""By the kind of task; one of your own is asked like the one that its class is made of."""

# Tokens per window, as in `evaluate`; a question needs room beside it.
MAX_LENGTH = {"question-answering": 384, KIND: 512}


def load(
    name: str | Path,
    *,
    task: str | None = None,
    max_length: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    scheme: str | None = None,
    sentences: SentenceForm | None = None,
) -> Any:
    """A finished model, ready for use.

    Args:
        name: the model's folder (of transformers, or exported), or its name on the hub.
        task: the kind of task; None: the one that the model's head is for.
        max_length: tokens per window; None: as it was exported, else 128, of a question and its passage 384, or as many
            as the model can read.
        device: of PyTorch; None: a GPU if there is one. An exported model runs on the CPU.
        threads: while the model runs; None: as PyTorch is set, all cores.
        scheme: of a tagger's tags (`tasks.spans.SCHEMES`); None: it shows in them.
        sentences: how an encoder without a head makes vectors of texts; None: as its folder says.

    Returns:
        A `Predictor`, to be called with texts; of an encoder of sentences a `SentenceEncoder`, which has `encode` too.

    Raises:
        InputError: there is no such model or device, or `max_length` exceeds the model's positions.
        ArtefactError: the model is damaged, is none of a task, or is a sparse fine-tuning that has not been merged.
        MissingExtraError: the engine that it was exported for is not installed.

    Example:
        >>> load("runs/mine/students/lrf2")("Rais alizungumza na watu wa Nairobi.")["entities"]  # doctest: +SKIP
    """
    folder = model_folder(str(name))
    config = read_config(folder)
    form = _sentence_form(folder, config, task, sentences)
    own: Task = (
        SentenceEmbedding(form) if form is not None else get_task(task or kind_of(config, str(name)), scheme=scheme)
    )
    length = _length(config, exported_length(folder) or MAX_LENGTH.get(_like(own), 128), max_length)
    tokenizer = load_tokenizer(str(folder))
    engine = open_engine(folder, own, device=device, threads=threads)
    return predictor_of(str(name), own, engine, tokenizer, max_length=length, threads=threads)


def predictor_of(
    name: str,
    task: Task,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    threads: int | None = None,
) -> Predictor:
    """The predictor of a task, for a model that is open; arguments as of `Predictor`.

    Raises:
        InputError: there is none.
    """
    return PREDICTORS[_like(task)](name, task, engine, tokenizer, max_length=max_length, threads=threads)


def _like(task: Task) -> str:
    """The kind of the predictor that a task has: its own, or that of the class that it is made of.

    Raises:
        InputError: there is none.
    """
    kinds = [str(getattr(one, "kind", "")) for one in type(task).__mro__]
    like = next((one for one in kinds if one in PREDICTORS), None)
    if like is None:
        raise InputError(f"models for {task.kind} cannot be asked yet: of use are those for {', '.join(PREDICTORS)}")
    return like


def _sentence_form(folder: Path, config: Any, task: str | None, given: SentenceForm | None) -> SentenceForm | None:
    """How an encoder without a head makes vectors of texts; None: another model, or another task is wanted of it.

    Raises:
        InputError: vectors are asked for, and nothing says how they are made; or the model has a head.
    """
    bare = {task_of(one) for one in config.architectures or ()} <= PRETRAINED_WITH
    if task not in (None, KIND) or not (bare or given or task):
        return None
    if not bare:
        raise InputError(f"{folder} has a head for a task: sentence vectors come from encoders without one")
    found = given or sentence_form(folder)
    if found is None and task == KIND:
        raise InputError(f"{folder} does not say how vectors are made of its states: name the pooling")
    return found


def _length(config: Any, usual: int, wanted: int | None) -> int:
    """Tokens per window.

    Raises:
        InputError: the model has no positions for so many.
    """
    if wanted is None:
        return min(usual, position_limit(config) or usual)
    check_length(config, wanted)
    return wanted
