"""Requests and answers as pydantic has them: what a model's task reads, and what may be wanted of it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from bistil.prediction.predictor import Predictor, Sentences, Wanted
from bistil.prediction.sentences import SentenceEncoder
from bistil.serving.settings import Limits

MOST_BEST = 100
"""Labels or answers that may be wanted in place of one."""

Reads = Literal["text", "words", "pair", "question"]


class _Strict(BaseModel):
    """No key that is not known, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPair(_Strict):
    """A text, or a pair of texts."""

    text: str
    pair: str | None = None


class Asked(_Strict):
    """A question and the passage that answers it."""

    question: str
    context: str


class Answers(BaseModel):
    """The answer to a request."""

    predictions: list[dict[str, Any]] = Field(description="A record per input, as `bistil predict` writes it.")
    model: str = Field(description="Name of the model.")
    seconds: float = Field(description="That the model took for all inputs that were answered together.")
    together: int = Field(description="Inputs that were answered together, of other requests too.")


class Problem(BaseModel):
    """Why a request is refused."""

    detail: str | list[dict[str, Any]]


class Health(BaseModel):
    """What is served."""

    status: Literal["ok"]
    model: str
    task: str
    reads: Reads
    teacher: str | None
    token: bool = Field(description="Whether requests must bring a token.")
    version: str


_WANTED: dict[str, Any] = {
    "threshold": (
        Annotated[float, Field(ge=0, le=1)] | None,
        Field(None, description="Leave out what the model is less sure of."),
    ),
    "n_best": (Annotated[int, Field(ge=1, le=MOST_BEST)], Field(1, description="So many labels or answers.")),
    "sentences": (
        Sentences | None,
        Field(None, description="Whether a text is one sentence (line) or is split (split)."),
    ),
    "unanswerable": (bool, Field(False, description="A question may have no answer.")),
}


def reads(predictor: Predictor) -> Reads:
    """What a model is asked about."""
    return "text" if isinstance(predictor, SentenceEncoder) else predictor.texts


def request_model(predictor: Predictor, limits: Limits) -> type[BaseModel]:
    """The class of requests to a model."""
    text = Annotated[str, Field(max_length=limits.characters)]
    words = Annotated[
        list[Annotated[str, Field(min_length=1, max_length=limits.characters)]], Field(max_length=limits.characters)
    ]
    kinds: dict[Reads, Any] = {"text": text, "words": text | words, "pair": text | TextPair, "question": Asked}
    # Types that are put together here are values to a type checker.
    fields: dict[str, Any] = {name: one for name, one in _WANTED.items() if name in predictor.takes}
    listed: Any = list[kinds[reads(predictor)]]  # type: ignore[misc]
    fields["inputs"] = (Annotated[listed, Field(min_length=1, max_length=limits.inputs)], ...)
    return create_model("Request", __base__=_Strict, **fields)


def as_given(item: Any) -> Any:
    """An input as a predictor takes it: a text, words, or a tuple of two texts."""
    if isinstance(item, Asked):
        return item.question, item.context
    if isinstance(item, TextPair):
        return item.text if item.pair is None else (item.text, item.pair)
    return item


def wanted_of(request: BaseModel) -> Wanted:
    """What a request wants beyond the likeliest prediction."""
    return Wanted(**{name: getattr(request, name) for name in _WANTED if name in type(request).model_fields})
