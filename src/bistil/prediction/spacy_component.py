"""A component of spaCy pipelines, `nlp.add_pipe("bistil", config={"model": FOLDER})`: spaCy's tokens are the words.

Entities, tags, trees and categories go where spaCy's own components put them. `pip install 'bistil[spacy]'`.
"""

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np

from bistil.errors import InputError
from bistil.prediction.inputs import Input
from bistil.prediction.loading import load
from bistil.prediction.predictor import Said, Wanted
from bistil.prediction.texts import Classifier
from bistil.prediction.words import Tagger, TreeParser
from bistil.tasks.token_classification import UPOS_TAGS
from bistil.tasks.words import sentence_places


class SpacyComponent:
    """Writes what a model says into a `Doc`.

    Args:
        model: folder or hub name of a tagger, a parser or a classifier.
        threshold: entities that the model is less sure of are left out.
        batch_size: windows per forward pass.
        options: for `load`.

    Raises:
        InputError: the model answers questions, of which a `Doc` has none; or as `load`.
    """

    def __init__(self, model: str, *, threshold: float | None = None, batch_size: int = 32, **options: Any) -> None:
        self.predictor, self.batch_size = load(model, **options), batch_size
        if not isinstance(self.predictor, Tagger | TreeParser | Classifier):
            raise InputError(f"{model} is for {self.predictor.task.kind}, which no Doc has a place for")
        self.wanted = Wanted(threshold=threshold)
        self.predictor.check_wanted(self.wanted)

    def __call__(self, doc: Any) -> Any:
        return next(self.pipe([doc]))

    def pipe(self, stream: Iterable[Any], *, batch_size: int = 128) -> Iterator[Any]:
        """Docs of a stream, so many at once."""
        docs = iter(stream)
        while batch := list(islice(docs, batch_size)):
            parts = [self._parts(doc) for doc in batch]
            asked = [one for own in parts for one, _ in own]
            said = iter(self.predictor.said(asked, self.wanted, batch_size=self.batch_size))
            for doc, own in zip(batch, parts, strict=True):
                self._write(doc, [(places, next(said)) for _, places in own])
                yield doc

    def _parts(self, doc: Any) -> list[tuple[Input, list[int]]]:
        """What is asked about a doc, and which tokens each part has; tokens of space are no words."""
        if isinstance(self.predictor, Classifier):
            return [(Input(where="the doc", line=0, text=doc.text), [])]
        tokens = [token for token in doc if not token.is_space]
        if doc.has_annotation("SENT_START"):
            ends = [sentence[-1].idx + 1 for sentence in doc.sents]
        elif isinstance(self.predictor, TreeParser):
            ends = [end for _, end in sentence_places(doc.text)]
        else:
            ends = []
        groups: list[list[Any]] = [[] for _ in range(len(ends) + 1)]
        for token, group in zip(tokens, np.searchsorted(ends, [token.idx for token in tokens], "right"), strict=True):
            groups[group].append(token)
        return [
            (
                Input(
                    where="the doc",
                    line=0,
                    text=doc.text,
                    words=[(token.idx, token.idx + len(token)) for token in group],
                ),
                [token.i for token in group],
            )
            for group in groups
            if group
        ]

    def _write(self, doc: Any, parts: Sequence[tuple[list[int], list[Said]]]) -> None:
        predictor = self.predictor
        if isinstance(predictor, Classifier):
            for _, said in parts:
                for one in said:
                    doc.cats |= {
                        label: float(share)
                        for label, share in zip(predictor.labels, one.prediction.confidence, strict=True)
                    }
        elif isinstance(predictor, TreeParser):
            _set_tree(doc, [(tokens, said[0].prediction.value) for tokens, said in parts])
        elif isinstance(predictor, Tagger) and predictor.scheme is not None:
            from spacy.tokens import Span

            doc.set_ents(
                [
                    Span(doc, tokens[first], tokens[last] + 1, label=kind)
                    for tokens, said in parts
                    for kind, first, last, _ in predictor.spans(said[0].prediction, self.wanted)
                ]
            )
        else:
            place = "pos_" if set(predictor.labels) <= set(UPOS_TAGS) else "tag_"
            for tokens, said in parts:
                for token, tag in zip(tokens, said[0].prediction.value, strict=True):
                    setattr(doc[token], place, tag)


def _set_tree(doc: Any, sentences: Sequence[tuple[list[int], Sequence[tuple[int, str]]]]) -> None:
    """Heads and relations of a doc. As spaCy has it, the root hangs on itself, and space on the word before it."""
    from spacy.attrs import DEP, HEAD

    heads, relations = np.arange(len(doc)), [""] * len(doc)
    words = {token for tokens, _ in sentences for token in tokens}
    for token in range(len(doc)):
        if token not in words and words:
            heads[token] = next((one for one in range(token - 1, -1, -1) if one in words), min(words))
            relations[token] = "dep"
    for tokens, tree in sentences:
        for token, (head, relation) in zip(tokens, tree, strict=True):
            heads[token] = tokens[head - 1] if head else token
            relations[token] = relation if head else "ROOT"
    offsets = (heads - np.arange(len(doc))).astype(np.int64).view(np.uint64)
    names = np.array([doc.vocab.strings.add(relation) for relation in relations], dtype=np.uint64)
    if len(doc):
        doc.from_array([HEAD, DEP], np.stack([offsets, names], axis=1))


def make_component(
    nlp: Any,
    name: str,
    model: str,
    threshold: float | None,
    batch_size: int,
    max_length: int | None,
    device: str | None,
    threads: int | None,
) -> SpacyComponent:
    """What `nlp.add_pipe("bistil", config={...})` makes; see `SpacyComponent`."""
    del nlp, name
    return SpacyComponent(
        model, threshold=threshold, batch_size=batch_size, max_length=max_length, device=device, threads=threads
    )


if find_spec("spacy") is not None:
    from spacy.language import Language

    Language.factory(
        "bistil",
        default_config={"threshold": None, "batch_size": 32, "max_length": None, "device": None, "threads": None},
        func=make_component,
    )
