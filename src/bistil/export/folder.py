"""`export_model`: from a model's folder to the folder of an exported one, with what was proven about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bistil.errors import ArtefactError, InputError
from bistil.export.choice import Chosen, Scorer
from bistil.export.formats import FORMATS, Format
from bistil.export.proof import TOLERANCE, Windows, batches_of, cases_of, prove
from bistil.export.quantise import Embeddings, Precision
from bistil.models.cards import add_to_card, measured_in_card, write_model_card
from bistil.models.exported import KIND, engine_of
from bistil.models.names import model_folder
from bistil.models.sentences import SentenceForm, form_values
from bistil.models.tokenizers import PROBE, write_tokenizer
from bistil.prediction.inputs import Input, Lines, read_inputs
from bistil.prediction.loading import load
from bistil.prediction.predictor import Predictor, Wanted
from bistil.prediction.sentence_task import SentenceEmbedding
from bistil.runtime.artefacts import RECORD, claim, json_digest, manifest, whole_folder, write_json
from bistil.runtime.insides import has_vnni
from bistil.runtime.progress import say
from bistil.tasks.batches import Batch, TorchEngine
from bistil.tasks.hub import source_of
from bistil.tasks.reading import Reading

# What the hub calls files for an engine, where it is not the engine's name.
ENGINE_TAGS = {"onnxruntime": "onnx"}
# So many lines or examples are enough to compare outputs on, and texts to compare tokens on.
LINES, TEXTS = 500, 100
BUILT_IN = "sentences of bistil's own"
USAGE = """import bistil

model = bistil.load({folder})
print(model("a sentence of yours"))"""

ENCODING = """import bistil

vectors = bistil.load({folder}).encode(["a sentence of yours", "another one"])
print(vectors @ vectors.T)"""


@dataclass(frozen=True)
class Material:
    """What an export is measured on.

    Attributes:
        windows: for comparing outputs.
        inputs: for comparing predictions; none with labelled examples.
        examples: labelled ones; none: no score is measured.
        name: of the files.
    """

    windows: Windows
    inputs: Sequence[Input]
    examples: Sequence[Any]
    name: str


def export_model(
    model: str | Path,
    output: Path,
    *,
    engine: str = "onnxruntime",
    precision: Precision = "int8",
    embeddings: Embeddings = "auto",
    labelled: Sequence[str | Path] = (),
    text: Path | None = None,
    most_loss: float = 0.5,
    task: str | None = None,
    max_length: int | None = None,
    label_map: Mapping[str, str] | None = None,
    how: Reading | None = None,
    sentences: SentenceForm | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Write a task model as a folder that runs without PyTorch, after it has proven itself.

    The float32 model must give the PyTorch model's outputs to `export.proof.TOLERANCE`, in a fresh process that has
    no PyTorch. An int8 model must keep the task's score on `labelled`; for onnxruntime, products whose quantisation
    costs most stay in float32 where that is needed. Without labelled files the score is not known, and the record says
    so.

    Args:
        model: folder of a task model, or its name on the hub.
        output: a new folder.
        engine: what will run it: one of `export.formats.FORMATS`.
        precision: of the matrices: int8, or float32.
        embeddings: of the token table; "auto": for onnxruntime with labelled files 4 bits where the score allows and
            else 8, without them 8; for CTranslate2 8; in a float32 model as it is.
        labelled: files or data sets (`tasks.hub`) that the score is measured on; held-out ones, for they choose.
        text: plain lines to compare outputs on, where there are no labelled files.
        most_loss: points of the task's score that int8 may lose.
        task: the kind of task; None: the one that the model's head is for.
        max_length: tokens per window; None: as `load`.
        label_map: labels to rename on reading.
        how: what the labelled files do not say themselves.
        sentences: of an encoder without a head, how it makes vectors of texts; None: as its folder says.
        replace: a folder of ours gives way.

    Returns:
        The record of the folder: "engine", "task", "precision", "embeddings", "kept_in_float32", "proof", "bytes" and
        "parents".

    Raises:
        InputError: an argument is not what it must be, `output` may not be written, or int8 loses more than it may.
        ArtefactError: the model is none of a task, is damaged, is exported already, or cannot be exported faithfully.
        MissingExtraError: the engine, or what writes its files, is not installed.
    """
    claim(folders=[output], inputs=[model, text, *map(source_of, labelled)], force=replace)
    _check(engine, precision, embeddings, labelled, text, most_loss)
    kind = FORMATS[engine]
    kind.require()
    if engine_of(model) is not None:
        raise ArtefactError(f"{model} is exported already: name the folder that it was exported from")
    how = how or Reading()
    predictor: Predictor = load(
        model, task=task, max_length=max_length, device="cpu", scheme=how.scheme, sentences=sentences
    )
    examples = predictor.task.read([*labelled], label_map=label_map, how=how) if labelled else []
    # A record and a card are for others, whom our folders tell nothing.
    names = [str(one) if str(one).startswith("dataset:") else Path(one).name for one in labelled]
    material = _material(predictor, examples, ", ".join(names), text)
    with whole_folder(output, replace=replace) as folder:
        with TemporaryDirectory(dir=folder) as work:
            record = _export(
                kind(predictor, folder, Path(work)), predictor, folder, material, precision, embeddings, most_loss
            )
        source = model_folder(str(model))
        parent = {"name": source.name, "digest": json_digest(manifest(source))}
        record |= {"parents": {"model": parent}, "bytes": _bytes(folder)}
        _write_card(folder, output.name, source, record, predictor)
        write_json(folder / RECORD, record, inner=True)
    return record


def _check(
    engine: str,
    precision: Precision,
    embeddings: Embeddings,
    labelled: Sequence[str | Path],
    text: Path | None,
    most_loss: float,
) -> None:
    """Refuse what does not go together."""
    if engine not in FORMATS:
        raise InputError(f"engine is {engine!r}; choose {' or '.join(FORMATS)}")
    if precision == "float32" and embeddings not in ("auto", "float32"):
        raise InputError(f"embeddings is {embeddings}, but precision is float32: leave one of them out")
    known = FORMATS[engine].EMBEDDINGS
    if precision == "int8" and embeddings not in known:
        raise InputError(f"embeddings is {embeddings}, but for {engine} it is one of {', '.join(known)}")
    if not most_loss >= 0:
        raise InputError(f"most_loss is {most_loss}; it must be 0 or more points of the score")
    if labelled and text is not None:
        raise InputError("labelled files and plain text are given: labelled files are enough, leave text out")


def _material(predictor: Predictor, examples: Sequence[Any], name: str, text: Path | None) -> Material:
    """Labelled examples, or the lines of a text, or sentences of our own.

    Raises:
        InputError: there is nothing to read.
    """
    task, inputs = predictor.task, list[Input]()
    texts = [task.text_of(one) for one in examples[:TEXTS]]
    chosen = examples[:LINES]
    if not examples:
        if text is None:
            name, inputs = BUILT_IN, [predictor.asked(_question(predictor, i)) for i in range(len(PROBE))]
        else:
            name, read = text.name, read_inputs(Lines(text), "text", texts=predictor.texts, columns={})
            inputs = list(islice((one for one in read if one.text.strip()), LINES))
        texts = [one.text for one in inputs[:TEXTS]]
        chosen = [one for given in inputs for one, _ in predictor.examples(given, Wanted())]
    features = task.encode(chosen, predictor.tokenizer, predictor.max_length, labels=predictor.labels)
    if not features:
        raise InputError(f"{text or name} has no text to compare outputs on")
    return Material(Windows(features, texts, name), inputs, examples, name)


def _question(predictor: Predictor, number: int) -> str | tuple[str, str]:
    """One of our own sentences; to what answers questions, a part of another one, with all of them as the passage."""
    if predictor.texts != "question":
        return PROBE[number]
    return PROBE[number][:40], " ".join(PROBE)


def _traced_on(predictor: Predictor) -> tuple[Batch, Batch]:
    """Two batches that differ in every size."""
    collate = predictor.task.collate(predictor.tokenizer, positions=predictor.engine.positions)
    found = []
    for rows, text in ((2, "The cat sat."), (3, " ".join(PROBE))):
        asked = predictor.asked(("Who?", text) if predictor.texts == "question" else text)
        examples = [one for one, _ in predictor.examples(asked, Wanted())]
        longest = max(
            predictor.task.encode(examples, predictor.tokenizer, predictor.max_length, labels=predictor.labels),
            key=lambda feature: len(feature["input_ids"]),
        )
        found.append(collate([longest] * rows))
    return found[0], found[1]


def _export(
    wanted: Format,
    predictor: Predictor,
    folder: Path,
    material: Material,
    precision: Precision,
    embeddings: Embeddings,
    most_loss: float,
) -> dict[str, Any]:
    """Write model, configuration and tokenizer, and prove them; returns the record so far."""
    assert isinstance(predictor.engine, TorchEngine)
    model = predictor.engine.model
    model.config.save_pretrained(folder)
    write_tokenizer(predictor.tokenizer, folder)
    interface = wanted.write(_traced_on(predictor))
    cases = cases_of(interface, predictor, batches_of(predictor, material.windows.features, holes=wanted.HOLES))
    proof: dict[str, Any] = {"float32": prove(folder, cases, material.windows, predictor.tokenizer)}
    largest = proof["float32"]["largest_difference"]
    if not largest <= TOLERANCE:
        raise ArtefactError(
            f"{predictor.name} gives other outputs in {wanted.ENGINE} than in PyTorch, by up to {largest:.3g} where "
            f"{TOLERANCE:g} is allowed: {type(model).__name__} cannot be exported faithfully"
        )
    say(f"float32: outputs as PyTorch's to {largest:.1e}, in a process of its own without PyTorch")
    chosen = Chosen("float32", [], {})
    scorer = Scorer(predictor, material.examples, material.name, most_loss) if material.examples else None
    if precision == "int8":
        chosen = wanted.quantise(cases, embeddings, scorer, material.inputs)
        proof["int8"] = prove(folder, cases, material.windows, predictor.tokenizer)
    elif scorer is not None:
        chosen = Chosen("float32", [], scorer.figures(wanted.open()))
    proof["agreement" if scorer is None else "score"] = chosen.figures or None
    packages = (*wanted.PACKAGES, "torch", "transformers", "tokenizers")
    return {
        "kind": KIND,
        "engine": wanted.ENGINE,
        "task": predictor.task.kind,
        "precision": precision,
        "embeddings": chosen.embeddings,
        "kept_in_float32": chosen.kept,
        "max_length": predictor.max_length,
        **({"sentences": form_values(task.form)} if isinstance(task := predictor.task, SentenceEmbedding) else {}),
        "proof": {name: value for name, value in proof.items() if value is not None},
        "vnni": has_vnni(),
        "versions": {name: version(name) for name in packages},
    }


def _bytes(folder: Path) -> dict[str, int]:
    """Of each file; the card and the record, which come last, are small."""
    files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    return {one.relative_to(folder).as_posix(): one.stat().st_size for one in files}


def _write_card(folder: Path, title: str, source: Path, record: Mapping[str, Any], predictor: Predictor) -> None:
    """The card, with what was proven and what was not."""
    assert isinstance(predictor.engine, TorchEngine)
    proof, kept, engine = record["proof"], record["kept_in_float32"], record["engine"]
    exact = proof["float32"]
    made = [
        f"exported for {engine} from `{source.name}`: {record['precision']}, embeddings {record['embeddings']}",
        f"float32: outputs as PyTorch's to {exact['largest_difference']:.1e} on {exact['windows']}, "
        f"{exact['batches']} batches of {exact['tokens'][0]} to {exact['tokens'][1]} tokens",
        *([f"in float32 for the score's sake: {', '.join(kept)}"] if kept else []),
        *statements(record),
    ]
    score = proof.get("score")
    metrics = {} if score is None else {
        f"{score['metric']} on {_names_of(score['file'])}": score["score"],
        "of the PyTorch model": score["float32_score"],
        "points lost": score["loss"],
        "points lost, 95% interval": " to ".join(f"{value:.2f}" for value in score["loss_interval"]),
    }  # fmt: skip
    write_model_card(
        folder,
        title=title,
        summary=f"A model for {record['task']} that runs without PyTorch: `{FORMATS[engine].MAIN}` for {engine}.",
        languages=[],
        parent=source,
        record=record,
        library="bistil",
        tags=[ENGINE_TAGS.get(engine, engine)],
        pipeline_tag=predictor.task.pipeline_tag,
        made=made,
        metrics=metrics,
        parameters=predictor.engine.model.num_parameters(),
        usage=USAGE if "sentences" not in record else ENCODING,
    )
    measured = measured_in_card(source).replace("\n## ", "\n### ").removeprefix("## ")
    if measured:
        before = f"## Before its export\n\nOf `{source.name}` in PyTorch, by the run that made it:\n\n### {measured}"
        add_to_card(folder, before)


def statements(record: Mapping[str, Any]) -> list[str]:
    """What must be said of an exported model beside its figures."""
    if record["precision"] != "int8":
        return []
    found = []
    if "score" not in record["proof"]:
        found.append(_agreed(record["proof"]["agreement"]))
    here = {True: "with VNNI", False: "without VNNI", None: "that is no x86"}[record["vnni"]]
    found.append(f"measured on a processor {here}; {FORMATS[record['engine']].WEIGHTS}")
    return found


def _names_of(files: str) -> str:
    """The names of files, without the folders that they are in on this machine."""
    return ", ".join(Path(one).name for one in files.split(", "))


def _agreed(same: Mapping[str, Any]) -> str:
    if "cosine" in same:
        return (
            f"cosine of the int8 vectors of {same['inputs']} texts with the PyTorch model's: {same['cosine']:.4f} in "
            f"the mean, {same['least_cosine']:.4f} at least"
        )
    return (
        f"the score in int8 was not measured, for no labelled file was given; on {same['same_predictions']} of "
        f"{same['inputs']} inputs it predicts what the PyTorch model predicts"
    )
