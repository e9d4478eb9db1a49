"""Taggers and parsers: running text is split into words, words that are given stay."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bistil.errors import InputError
from bistil.prediction.inputs import Form, Input, Place, of_words
from bistil.prediction.predictor import SPLITTING, Format, Predictor, Said, Sentences, Wanted, sure
from bistil.tasks.base import Decoded
from bistil.tasks.dependency_parsing import unparsed
from bistil.tasks.parsing.conllu import COLUMNS, FORM, ID, UPOS, Sentence
from bistil.tasks.spans import OUTSIDE, spans
from bistil.tasks.token_classification import TaggedSentence, TokenClassification
from bistil.tasks.words import sentence_places, word_places

MISC = 9
# A parser's scores of one sentence grow with the square of its words: so many need 1.5 GB.
LONGEST_SENTENCE = 10_000


class OfWords(Predictor):
    """What taggers and parsers share."""

    texts = "words"
    sentences: Sentences
    """Whether a line of running text is one sentence, unless it is asked for otherwise."""

    def asked(self, given: Any) -> Input:
        if isinstance(given, str):
            return Input(where="the text", line=0, text=given)
        if isinstance(given, Sequence) and all(isinstance(word, str) and word for word in given):
            return of_words(given, where="the words")
        raise InputError(f"a text, or a list of a sentence's words, is expected, not {given!r:.60}")

    @abstractmethod
    def unlabelled(self, words: list[str], one: Input) -> Any:
        """An example of these words."""

    def examples(self, one: Input, wanted: Wanted) -> list[tuple[Any, list[Place]]]:
        if one.words is not None:
            sentences = [one.words]
        elif (wanted.sentences or self.sentences) == "line":
            sentences = [word_places(one.text)]
        else:
            sentences = [
                [(start + begin, end + begin) for start, end in word_places(one.text[begin:stop])]
                for begin, stop in sentence_places(one.text)
            ]
        return [
            (self.unlabelled([one.text[start:end] for start, end in places], one), places)
            for places in sentences
            if places
        ]

    def splitting(self, form: Form) -> str:
        return "bistil" if form == "text" else "given"

    def native(
        self, inputs: Sequence[Input], said: Sequence[Sequence[Said]], wanted: Wanted, *, format: Format, first: bool
    ) -> Iterator[str]:
        for one, own in zip(inputs, said, strict=True):
            for number, sentence in enumerate(own, 1):
                source: Any = one.source
                if format == "conllu" and not isinstance(source, Sentence):
                    source = _conllu(one, sentence.places, _comments(one, own, number, first=first))
                if format == "conll" and not isinstance(source, list):
                    source = [(f"{_flat(one.text[start:end])}\t", "") for start, end in sentence.places]
                    front = "".join(f"{line}\n" for line in _comments(one, own, number, first=first))
                    source[0] = (front + source[0][0], "")
                first = False
                yield from self.task.predicted(
                    [replace(sentence.example, source=source)], [self.kept(sentence.prediction, wanted)]
                )

    def kept(self, prediction: Decoded, wanted: Wanted) -> Any:
        """What is written of a prediction."""
        del wanted
        return prediction.value


class Tagger(OfWords):
    """Tags of words, and the spans that they mark."""

    forms = ("text", "words", "conll", "conllu", "jsonl")
    formats = ("conll", "conllu", "jsonl")
    sentences = "line"
    task: TokenClassification

    @property
    def scheme(self) -> str | None:
        """By which the tags mark spans; None: they mark none."""
        return self.task.span_scheme(self.labels)

    @property
    def takes(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"sentences", *(("threshold",) if self.scheme else ())})

    def unlabelled(self, words: list[str], one: Input) -> TaggedSentence:
        tags = [self.labels[0]] * len(words)
        return TaggedSentence(
            file=one.where, line=one.line, words=words, tags=tags, lines=[one.line] * len(words), source=[], column=UPOS
        )

    def spans(self, prediction: Decoded, wanted: Wanted) -> list[tuple[str, int, int, float]]:
        """(type, first word, last word, confidence) of the spans, in their order. Confidences are means over words."""
        if self.scheme is None:
            return []
        found = sorted(spans(prediction.value, self.scheme), key=lambda span: span[1])
        sure_of = [
            (kind, first, last, sure(prediction.confidence[first : last + 1].mean())) for kind, first, last in found
        ]
        return [span for span in sure_of if span[3] >= (wanted.threshold or 0)]

    def kept(self, prediction: Decoded, wanted: Wanted) -> list[str]:
        """The tags; those of spans below the threshold are outside."""
        tags: list[str] = prediction.value
        if wanted.threshold is None:
            return tags
        inside = {i for _, first, last, _ in self.spans(prediction, wanted) for i in range(first, last + 1)}
        return [tag if i in inside else OUTSIDE for i, tag in enumerate(tags)]

    def record(self, one: Input, said: Sequence[Said], wanted: Wanted) -> dict[str, Any]:
        tokens, labels, confidences = list[str](), list[str](), list[float]()
        offsets, entities = list[Place](), list[dict[str, Any]]()
        for sentence in said:
            tokens += sentence.example.words
            labels += self.kept(sentence.prediction, wanted)
            confidences += map(sure, sentence.prediction.confidence)
            offsets += sentence.places
            for kind, first, last, confidence in self.spans(sentence.prediction, wanted):
                start, end = sentence.places[first][0], sentence.places[last][1]
                entities.append(
                    {"type": kind, "text": one.text[start:end], "start": start, "end": end, "confidence": confidence}
                )
        return {
            **_row(one),
            "splitting": "given" if one.words is not None else "bistil",
            "tokens": tokens,
            "labels": labels,
            "confidences": confidences,
            "offsets": offsets,
            **({} if self.scheme is None else {"entities": entities}),
        }


class TreeParser(OfWords):
    """Trees of sentences."""

    forms = ("text", "words", "conll", "conllu", "jsonl")
    formats = ("conllu", "jsonl")
    sentences = "split"
    takes = frozenset({"sentences"})

    def unlabelled(self, words: list[str], one: Input) -> Any:
        if len(words) > LONGEST_SENTENCE:
            raise InputError(
                f"{one.where}: a sentence of {len(words):,} words; a parser takes {LONGEST_SENTENCE:,}: split it"
            )
        return unparsed(words, relation=self.labels[0])

    def record(self, one: Input, said: Sequence[Said], wanted: Wanted) -> dict[str, Any]:
        del wanted
        return {
            **_row(one),
            "splitting": "given" if one.words is not None else "bistil",
            "sentences": [
                {
                    "tokens": sentence.example.words,
                    "heads": [head for head, _ in sentence.prediction.value],
                    "relations": [relation for _, relation in sentence.prediction.value],
                    "confidences": [sure(head * relation) for head, relation in sentence.prediction.confidence],
                    "offsets": sentence.places,
                }
                for sentence in said
            ],
        }


def _row(one: Input) -> dict[str, Any]:
    """What a record begins with: the row that was read, or the text."""
    row = dict(one.source) if isinstance(one.source, dict) else {}
    return {**row, "text": one.text}


def _flat(text: str) -> str:
    """A text without what would end a line or a column."""
    return " ".join(text.split()) if any(mark in text for mark in "\t\r\n") else text


def _comments(one: Input, said: Sequence[Said], number: int, *, first: bool) -> list[str]:
    """The lines in front of a sentence: whose words they are, once; and where it stands."""
    split = one.words is None
    places = said[number - 1].places
    known = [f"# words = {SPLITTING['bistil' if split else 'given']}"] if first else []
    identity = f"{one.line}.{number}" if len(said) > 1 else str(one.line)
    return [*known, f"# sent_id = {identity}", f"# text = {_flat(one.text[places[0][0] : places[-1][1]])}"]


def _conllu(one: Input, places: Sequence[Place], comments: list[str]) -> Sentence:
    """The words of a sentence as CoNLL-U in which nothing is known yet."""
    rows = []
    for number, (start, end) in enumerate(places, 1):
        row = ["_"] * COLUMNS
        row[ID], row[FORM] = str(number), _flat(one.text[start:end])
        # At the end of a line is as good as a space.
        if one.words is None and one.text[end : end + 1].strip():
            row[MISC] = "SpaceAfter=No"
        rows.append(row)
    return Sentence(
        file=one.where,
        line=one.line,
        comments=comments,
        rows=rows,
        lines=[one.line] * len(rows),
        words=list(range(len(rows))),
    )
