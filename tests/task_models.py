"""Tiny models of every task whose random heads say different things, and what to ask them."""

import numpy as np
import tiny
import torch

import bistil
from bistil.export.folder import export_model
from bistil.tasks import get_task

TEXTS = [*tiny.ENGLISH.splitlines(), *tiny.SWAHILI.splitlines()]
LABELS = {
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "sequence-classification": ["0", "1", "2"],
    "multi-label-classification": ["anger", "joy", "fear"],
    "dependency-parsing": ["root", "nsubj", "punct", "obl"],
    "question-answering": ["start", "end"],
}
TAGS = "token-classification"
LAYERS = 2


def model_in(place, family, kind):
    """A folder with a tiny model of the family whose random head says different things."""
    folder = place / f"{family}-{kind}"
    if not folder.exists():
        if not (place / family).exists():
            tiny.save(tiny.model(family, layers=LAYERS), place / family, family)
        model = get_task(kind).build_model(place / family, LABELS[kind], seed=1)
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith(f"{model.base_model_prefix}."):
                    parameter.normal_(std=0.3)
        tiny.save(model, folder, family)
    return folder


def exported(place, family="bert", kind=TAGS, precision="float32", *, engine, **options):
    """The folder that such a model is exported to."""
    folder = place / f"{family}-{kind}-{precision}"
    if not folder.exists():
        export_model(model_in(place, family, kind), folder, engine=engine, precision=precision, **options)
    return folder


def same_answers(model, folder, kind, engine):
    """What a float32 export answers, which is what the PyTorch model does, with the engine that it was made for."""
    ours, theirs = bistil.load(folder), bistil.load(model)
    assert isinstance(ours.engine, engine)
    found, numbers = without(ours(asked(kind)), "confidence", "confidences")
    expected, their_numbers = without(theirs(asked(kind)), "confidence", "confidences")
    assert found == expected
    np.testing.assert_allclose(numbers, their_numbers, atol=1e-3, rtol=0)
    return found


def asked(kind):
    if kind == "question-answering":
        return [(text.split()[0], " ".join(TEXTS)) for text in TEXTS[:4]]
    # One that takes several windows.
    return [*TEXTS, " ".join(TEXTS)] if kind in (TAGS, "dependency-parsing") else [*TEXTS, (TEXTS[0], TEXTS[1])]


def without(record, *keys):
    """A record without these keys, and the numbers that stood under them."""
    numbers = []

    def plain(value):
        if isinstance(value, dict):
            numbers.extend(value[key] for key in keys if isinstance(value.get(key), int | float | list))
            return {key: plain(one) for key, one in value.items() if key not in keys}
        return [plain(one) for one in value] if isinstance(value, list) else value

    return plain(record), np.concatenate([np.ravel(one) for one in numbers]) if numbers else np.zeros(0)


def tagged(place, folder, name):
    """A labelled file of what a model predicts: it has every point of the score."""
    path = place / name
    rows = bistil.load(folder)([text.split() for text in TEXTS])
    path.write_text(
        "\n".join("".join(f"{w} {t}\n" for w, t in zip(r["tokens"], r["labels"], strict=True)) for r in rows)
    )
    return path


def refused(call, out, *parts):
    """One line with these parts, exit code 2, and nothing written."""
    code, _, said = call
    lines = [line for line in said.splitlines() if not line.startswith("[bistil]")]
    assert code == 2 and len(lines) == 1, said
    assert all(part in lines[0] for part in parts), said
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))
