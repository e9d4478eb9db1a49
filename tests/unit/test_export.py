"""Exported models: PyTorch's outputs and predictions without PyTorch; fused, quantised, refused where it costs."""

import json
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from task_models import LABELS, LAYERS, TAGS, TEXTS, model_in, refused, same_answers, tagged, without
from task_models import exported as export

import bistil
from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.measuring.evaluation import evaluate_folder
from bistil.models.cards import write_model_card
from bistil.models.loading import load_model
from bistil.prediction.predictor import Wanted
from bistil.report.cards import write_measured
from bistil.report.schema import summary_from
from bistil.runtime.artefacts import RECORD

onnx = pytest.importorskip("onnx", reason="pip install 'bistil[export]'")
pytest.importorskip("onnxruntime", reason="pip install 'bistil[export]'")

from bistil.engines.onnx import CONSTANTS, GRAPH, OnnxEngine, open_session  # noqa: E402
from bistil.export import folder as export_folder  # noqa: E402
from bistil.export.folder import export_model  # noqa: E402
from bistil.export.proof import TOLERANCE, Windows, batches_of, prove  # noqa: E402
from bistil.export.quantise import in_blocks, products, quantise, replace_table, smooth, standardised, tables  # noqa: E402

FAMILIES = ("bert", "xlm-roberta", "deberta-v2", "modernbert", "distilbert")
CASES = [(family, TAGS) for family in FAMILIES] + [("bert", kind) for kind in LABELS if kind != TAGS]
CASES += [("xlm-roberta", "dependency-parsing"), ("deberta-v2", "dependency-parsing")]
CASES += [("modernbert", "question-answering"), ("distilbert", "sequence-classification")]
# Families whose attention onnxruntime has an operator for.
FUSED = {"bert", "xlm-roberta", "distilbert"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


exported = partial(export, engine="onnxruntime")


# --- the same as PyTorch


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_float32_graph_says_what_pytorch_says(place, family, kind):
    found = same_answers(model_in(place, family, kind), exported(place, family, kind), kind, OnnxEngine)
    # Not the same of every input; the answers are all of one passage.
    if kind != "question-answering":
        assert len({json.dumps(without(one, "text", "tokens", "offsets")[0]) for one in found}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_pytorch_s_for_any_shape_and_mask(place, family):
    """Against the model itself: random tokens, lengths up to the positions, padding on either side and holes."""
    engine = OnnxEngine(exported(place, family), threads=1)
    model = load_model(model_in(place, family, TAGS))[0]
    generator = torch.Generator().manual_seed(0)
    for rows, tokens in ((1, 1), (1, 7), (2, 16), (5, 33), (3, 138)):
        ids = torch.randint(5, len(tiny.tokenizer(family)), (rows, tokens), generator=generator)
        left, right, holes = (torch.ones_like(ids) for _ in range(3))
        left[1:, : tokens // 3], right[1:, tokens // 2 :] = 0, 0
        holes[:, 1:] = torch.rand((rows, tokens - 1), generator=generator) > 0.3
        for mask in (torch.ones_like(ids), left, right, holes):
            with torch.inference_mode():
                expected = model(input_ids=ids, attention_mask=mask).logits
            found = torch.as_tensor(engine({"input_ids": ids, "attention_mask": mask})["logits"])
            assert (found - expected)[mask == 1].abs().max() <= TOLERANCE


def test_scores_are_those_of_pytorch(place, command_line, tmp_path):
    model, folder = model_in(place, "bert", TAGS), exported(place)
    other = tagged(place, model_in(place, "distilbert", TAGS), "other.conll")
    figures = [evaluate_folder(one, files=[other], bootstrap_samples=0) for one in (model, folder)]
    assert 0 < figures[0]["score"] < 100
    assert figures[0]["scores"] == pytest.approx(figures[1]["scores"])
    code, out, _ = command_line("evaluate", "--model", folder, "--file", other, "--predictions", tmp_path / "a.conll")
    assert code == 0 and f"{figures[0]['score']:.2f}" in out
    assert command_line("predict", folder, other, "--output", tmp_path / "b.conll")[0] == 0
    assert command_line("predict", model, other, "--output", tmp_path / "c.conll")[0] == 0
    assert len({(tmp_path / f"{name}.conll").read_text() for name in "abc"}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_operators_stand_in_the_graph(place, family):
    nodes = onnx.load(exported(place, family) / GRAPH).graph.node
    found = [node.op_type for node in nodes]
    # Without the sums in front of them, which onnxruntime would take together with them, and be slower.
    assert found.count("LayerNormalization") >= 2 * LAYERS
    norms = {node.input[0] for node in nodes if node.op_type == "LayerNormalization"}
    assert not [node for node in nodes if node.op_type == "Add" and node.output[0] in norms]
    assert found.count("Attention") == (LAYERS if family in FUSED else 0)
    assert found.count("BiasGelu") == (0 if family == "modernbert" else LAYERS)


def test_a_parser_s_weights_are_kept_once(place):
    """They are outputs of the model, the same for every input."""
    folder = exported(place, "bert", "dependency-parsing")
    small = exported(place, "bert", "dependency-parsing", "int8")
    model = load_model(model_in(place, "bert", "dependency-parsing"))[0]
    outputs = [one.name for one in onnx.load(folder / GRAPH).graph.output]
    assert outputs == ["logits", "dependents", "heads"]
    weight = model.relations.weight.detach().numpy()
    assert (OnnxEngine(folder).constants["relation_weight"] == weight).all()
    close = OnnxEngine(small).constants["relation_weight"]
    assert 0 < np.abs(close - weight).max() <= np.abs(weight).max() / 127
    assert (small / CONSTANTS).stat().st_size < 0.4 * (folder / CONSTANTS).stat().st_size


# --- proofs


def test_the_record_and_the_card_say_what_was_proven(place):
    record = json.loads((exported(place) / RECORD).read_text())
    assert record["kind"] == "exported model" and record["engine"] == "onnxruntime"
    proof = record["proof"]["float32"]
    assert 0 <= proof["largest_difference"] <= TOLERANCE
    assert proof["batches"] == 8 and proof["tokens"][0] < proof["tokens"][1] and proof["texts"] > 0
    assert set(record["files"]) == {"config.json", GRAPH, "tokenizer.json", "tokenizer_config.json"}
    card = (exported(place, precision="int8") / "README.md").read_text()
    assert "library_name: bistil" in card and "not measured" in card and "VNNI" in card and "bistil.load" in card
    parameters = load_model(model_in(place, "bert", TAGS))[0].num_parameters()
    assert f"| parameters | {parameters:,} |" in card and "## Before its export" not in card


def test_the_card_says_what_a_run_measured_before(place, tmp_path):
    """Scores with intervals, gap, speed and digests of the data, under a heading that says what they are of."""
    from test_report import SUMMARY

    shutil.copytree(model_in(place, "bert", TAGS), tmp_path / "students/lrf2")
    write_model_card(tmp_path / "students/lrf2", title="lrf2", summary="s", languages=["en", "it"], license="mit")
    write_measured(summary_from(SUMMARY), tmp_path)
    export_model(tmp_path / "students/lrf2", tmp_path / "out", precision="float32")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.language == ["en", "it"] and card.data.license == "mit"
    before = card.text.partition("## Before its export\n\nOf `lrf2` in PyTorch, by the run that made it:\n\n")[2]
    before, _, after = before.partition("## Use and limits")
    assert before.startswith("### Scores and speed\n") and "\n### Data of the run\n" in before and after
    for line in ("target language it | 68.5", "gap to the teacher on the target, points | -1.5", "| text en | 4,419 |"):
        assert line in before
    assert "2.00x" in before and card.text.index("## Measured") < card.text.index("## Before its export")


def test_the_record_lists_the_files_that_are_there_and_tells_no_folder(place, tmp_path, command_line):
    (tmp_path / "lines.txt").write_text("Paka aliketi kwenye mkeka.\n" * 4)
    model, output = model_in(place, "bert", TAGS), tmp_path / "deployed"
    line = ("export", model, "--precision", "float32", "--text", tmp_path / "lines.txt", "--output", output)
    assert command_line(*line, "--max-length", "24")[0] == 0
    # It reads as many tokens as were proved, unless it is asked for others.
    assert bistil.load(output).max_length == 24 and bistil.load(output, max_length=30).max_length == 30
    record = json.loads((output / RECORD).read_text())
    assert (
        set(record["bytes"]) == set(record["files"]) == {path.name for path in output.iterdir()} - {RECORD, "README.md"}
    )
    assert str(tmp_path) not in json.dumps(record) + (output / "README.md").read_text()


def test_the_proof_s_process_has_no_torch_and_no_bistil():
    script = Path(export_folder.__file__).with_name("fresh.py")
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['alone'](); import {}"
    for name, blocked in (("torch", True), ("transformers", True), ("bistil", True), ("numpy", False)):
        ran = subprocess.run([sys.executable, "-I", "-c", code.format(name), script], capture_output=True, text=True)
        assert (ran.returncode != 0) == blocked, ran.stderr
        assert not blocked or "ModuleNotFoundError" in ran.stderr


def cases_and_windows(place):
    predictor = bistil.load(model_in(place, "bert", TAGS))
    examples = [one for text in TEXTS for one, _ in predictor.examples(predictor.asked(text), Wanted())]
    features = predictor.task.encode(examples, predictor.tokenizer, 128, labels=predictor.labels)
    cases = []
    for batch in batches_of(predictor, features):
        case = {f"in.{name}": values.numpy() for name, values in batch.items()}
        cases.append({**case, "out.logits": predictor.engine(batch)["logits"].numpy().copy()})
    return predictor, cases, Windows(features, TEXTS[:3], "x")


def test_a_proof_can_fail(place, tmp_path):
    folder = exported(place)
    predictor, cases, windows = cases_and_windows(place)
    assert len({case["in.input_ids"].shape for case in cases}) > 3
    # What is masked counts too here: with the same tokens it is the same.
    assert prove(folder, cases, windows, predictor.tokenizer)["largest_difference"] <= TOLERANCE
    cases[2]["out.logits"][0, 1, 1] += 0.01
    assert prove(folder, cases, windows, predictor.tokenizer)["largest_difference"] == pytest.approx(0.01, abs=1e-4)
    cases[2]["out.logits"] = cases[2]["out.logits"][:, :-1]
    assert prove(folder, cases, windows, predictor.tokenizer)["largest_difference"] == np.inf
    with pytest.raises(ArtefactError, match="gives other tokens"):
        prove(folder, cases, windows, tiny.renumbered("bert", keep=5)[0])
    with pytest.raises(ArtefactError, match="does not run in a process of its own"):
        prove(tmp_path, cases, windows, predictor.tokenizer)


def test_another_graph_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(export_folder, "TOLERANCE", 0.0)
    with pytest.raises(ArtefactError, match="other outputs in onnxruntime than in PyTorch, by up to"):
        export_model(model_in(place, "bert", TAGS), tmp_path / "out", precision="float32")
    assert not list(tmp_path.iterdir())


# --- int8


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_smaller_and_says_nearly_the_same(place, family):
    folder, whole = exported(place, family, precision="int8"), exported(place, family)
    model = onnx.load(folder / GRAPH)
    weights, exact = (
        {one.name: onnx.numpy_helper.to_array(one) for one in graph.graph.initializer}
        for graph in (model, onnx.load(whole / GRAPH))
    )
    assert sum(one.nbytes for one in weights.values()) < 0.4 * sum(one.nbytes for one in exact.values())
    narrow = [values for values in weights.values() if values.dtype == np.int8 and values.ndim == 2]
    assert len(narrow) >= 4 * LAYERS
    # Two products of 8 by 7 bits fit in 16 bits: what processors without VNNI add them in.
    assert max(np.abs(values.astype(int)).max() for values in narrow) <= 64
    assert {"MatMulInteger", "GatherBlockQuantized"} < {node.op_type for node in model.graph.node}
    record = json.loads((folder / RECORD).read_text())
    assert record["embeddings"] == "int8" and not record["kept_in_float32"]
    # No labelled file: how often it says the same is known, the score is not.
    agreed = record["proof"]["agreement"]
    assert agreed["same_predictions"] <= agreed["inputs"] and "score" not in record["proof"]
    batch = {"input_ids": torch.arange(5, 45).view(2, 20), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    close, exact = (OnnxEngine(one)(batch)["logits"] for one in (folder, whole))
    assert 0 < np.abs(close - exact).mean() < 0.1 * np.abs(exact).mean()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [16, 48, 200])
def test_blocks_are_read_by_the_engine_as_they_were_made(tmp_path, bits, width):
    """The operator's result is the definition's, worked out number by number, and near the table."""
    draws = np.random.default_rng(0)
    table = draws.normal(size=(37, width)).astype(np.float32)
    # As in real tables: a column that is large everywhere; and one that is the same everywhere.
    table[:, 3] += 50
    table[:, 4] = 2
    even, deviations, means = standardised(table)
    assert np.abs(even.mean(0)).max() < 1e-4 and np.delete(even.std(0), 4) == pytest.approx(1, abs=1e-4)
    data, scales, block = in_blocks(even, bits=bits)
    expected = np.empty_like(table)
    for row in range(37):
        for column in range(width):
            stored = int(data[row, column]) if bits == 8 else int(data[row, column // 2]) >> 4 * (column % 2) & 15
            expected[row, column] = (stored - (1 << bits - 1)) * float(scales[row, column // block])
    expected = expected * deviations + means
    # A step, or two where the end of a range is cut.
    assert (np.abs(expected - table) <= 2 * deviations * np.abs(even).max() / (8 if bits == 4 else 127)).all()
    assert expected[:, 4] == pytest.approx(table[:, 4])

    helper = onnx.helper
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", "m"])
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n", "m", width])
    look_up = helper.make_node("Gather", ["table", "ids"], ["out"], name="look up")
    graph = helper.make_graph([look_up], "g", [ids], [out], [onnx.numpy_helper.from_array(table, "table")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    replace_table(model, "table", bits=bits)
    onnx.save(model, tmp_path / "g.onnx")
    asked_for = draws.integers(0, 37, (3, 11))
    (found,) = open_session(tmp_path / "g.onnx", threads=1).run(None, {"ids": asked_for})
    assert found == pytest.approx(expected[asked_for], rel=1e-3, abs=2e-3)


def test_four_bits_lose_less_than_plain_rounding():
    table = np.random.default_rng(0).normal(size=(64, 384)).astype(np.float32)
    data, scales, block = in_blocks(table, bits=4)
    numbers = np.stack([data & 15, data >> 4], -1).reshape(64, -1, block).astype(np.float32) - 8
    error = np.square((numbers * scales[..., None].astype(np.float32)).reshape(64, -1) - table).sum()
    blocks = table.reshape(64, -1, block)
    step = np.abs(blocks).max(-1, keepdims=True) / 7
    plain = np.square(np.rint(blocks / step) * step - blocks).sum()
    assert error < 0.9 * plain


def test_columns_that_are_large_everywhere_cost_less_once_smoothed(tmp_path):
    """The same float32 outputs, and an int8 graph that is nearer to them."""
    draws = np.random.default_rng(0)
    helper, arrays = onnx.helper, onnx.numpy_helper
    matrix = draws.normal(size=(64, 48)).astype(np.float32)
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", "t", w]) for n, w in (("x", 64), ("y", 48))]
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([product], "g", value[:1], value[1:], [arrays.from_array(matrix, "w")])
    plain, even, *small = (tmp_path / f"{name}.onnx" for name in ("plain", "even", "int8", "int8 even"))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), plain)
    given = draws.normal(size=(4, 2, 9, 64)).astype(np.float32)
    given[..., 5] *= 40
    smooth(plain, even, [{"in.x": one} for one in given[:3]])
    exact = given[3] @ matrix

    def off(file):
        return np.abs(open_session(file, threads=1).run(None, {"x": given[3]})[0] - exact).mean()

    assert off(even) < 1e-4 * np.abs(exact).mean()
    for source, target in zip((plain, even), small, strict=True):
        quantise(source, target, embeddings="float32")
    assert 0 < off(small[1]) < 0.5 * off(small[0])


def test_tables_and_products_of_a_graph(place):
    model = onnx.load(exported(place) / GRAPH)
    sizes = [one.numbers for one in tables(model)]
    # Words, positions; the two token types are not worth it.
    assert sizes == [len(tiny.tokenizer()) * 32, 140 * 32]
    # Query, key and value in one, the output, two of the feed-forward part; the head.
    assert sorted(products(model).values()) == sorted([*[32 * 96, 32 * 32, 32 * 64, 64 * 32] * LAYERS, 32 * 5])


def test_the_score_chooses_what_is_quantised(place, tmp_path):
    """The labelled file is what the model itself says: what is quantised can only lose."""
    sharp = load_model(model_in(place, "bert", TAGS))[0]
    with torch.no_grad():
        for parameter in sharp.bert.encoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    tiny.save(sharp, place / "sharp")
    model = place / "sharp"
    gold = tagged(place, model, "gold.conll")
    options = {"labelled": [gold], "precision": "int8"}
    free = export_model(model, tmp_path / "free", most_loss=100, **options)
    assert free["embeddings"] == "int4" and not free["kept_in_float32"]
    score = free["proof"]["score"]
    assert score["float32_score"] == 100 and score["loss"] == pytest.approx(100 - score["score"])
    assert score["loss"] > 0 and score["loss_interval"][0] <= score["loss"] <= score["loss_interval"][1]
    assert evaluate_folder(tmp_path / "free", files=[gold], bootstrap_samples=0)["score"] == score["score"]

    kept = export_model(model, tmp_path / "kept", embeddings="float32", most_loss=0, **options)
    every = products(onnx.load(exported(place) / GRAPH))
    assert 0 < len(kept["kept_in_float32"]) <= len(every) and set(kept["kept_in_float32"]) <= set(every)
    assert kept["proof"]["score"]["loss"] <= 0
    left = products(onnx.load(tmp_path / "kept" / GRAPH))
    assert set(left) == set(kept["kept_in_float32"])
    assert (tmp_path / "kept" / "README.md").read_text().count(kept["kept_in_float32"][0]) == 1

    with pytest.raises(InputError, match=r"int8 loses .* points of f1 on .*gold.conll, and may lose 0:"):
        export_model(model, tmp_path / "refused", embeddings="int4", most_loss=0, **options)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["free", "kept"]


# --- bad input


def test_what_cannot_be_exported_is_one_line(place, command_line, tmp_path):
    model, out = model_in(place, "bert", TAGS), tmp_path / "out"
    text = tmp_path / "text.txt"
    text.write_text(tiny.ENGLISH)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    sft, code = tmp_path / "sft", tmp_path / "code"
    sft.mkdir()
    (sft / "sft_config.json").write_text("{}")
    code.mkdir()
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}}
    (code / "config.json").write_text(json.dumps(config))
    for given, said in (
        ([sft], "merge it into its base first"),
        ([code], "code of its own"),
        ([tmp_path / "none"], "no such folder"),
        ([place / "bert"], "fine-tune it first"),
        ([exported(place)], "is exported already"),
        ([model, "--precision", "float32", "--embeddings", "int4"], "but precision is float32"),
        ([model, "--text", empty], "no text to compare"),
        ([model, "--text", text, "--labelled", text], "leave text out"),
        ([model, "--labelled", text], "text.txt"),
        ([model, "--labelled", tmp_path / "absent.conll"], "absent.conll"),
        ([model, "--max-length", "1000"], "positions"),
    ):
        refused(command_line("export", *given, "-o", out), out, said)


def test_a_missing_engine_says_its_install_line(place, command_line, tmp_path, monkeypatch):
    folder = exported(place)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bistil\[onnx\]'"):
        bistil.load(folder)
    out = tmp_path / "out"
    refused(command_line("export", model_in(place, "bert", TAGS), "-o", out), out, "pip install 'bistil[export]'")
    code, _, said = command_line("benchmark", "-m", folder, "-o", out)
    assert code == 2 and said.splitlines()[-1].endswith("need onnxruntime: pip install 'bistil[onnx]'")
    assert not out.exists()


def test_an_exported_folder_is_for_use_alone(place, tmp_path, command_line):
    folder = exported(place)
    with pytest.raises(ArtefactError, match="exported for onnxruntime"):
        load_model(folder)
    with pytest.raises(InputError, match="runs on the CPU"):
        bistil.load(folder, device="cuda")
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    record = json.loads((other / RECORD).read_text())
    (other / RECORD).write_text(json.dumps({**record, "engine": "abacus"}))
    with pytest.raises(ArtefactError, match="'abacus', which this version does not know"):
        bistil.load(other)
    (other / RECORD).write_text(json.dumps(record))
    (other / GRAPH).write_bytes((folder / GRAPH).read_bytes()[:1000])
    with pytest.raises(ArtefactError, match=f"{GRAPH} is not what was written"):
        bistil.load(other)
    code, _, said = command_line("sft", "merge", folder, folder, "-o", tmp_path / "merged")
    assert code == 2 and said.count("\n") == 1


def test_an_exported_model_answers_empty_and_long_lines(place):
    """An empty line, and one of 5,000 words: windows, and a tag for each word, as of the model itself."""
    long = " ".join(f"w{i % 70}" for i in range(5_000))
    own, theirs = bistil.load(exported(place)), bistil.load(model_in(place, "bert", TAGS))
    lines = ["", " \t", long, tiny.SWAHILI.splitlines()[0]]
    found, expected = own(lines), theirs(lines)
    assert [len(one["tokens"]) for one in found] == [len(one["tokens"]) for one in expected]
    assert [len(one["tokens"]) for one in found][:3] == [0, 0, 5_000]
    assert [one["labels"] for one in found] == [one["labels"] for one in expected]


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes cannot be limited there")
def test_a_full_disk_is_one_line(place, command_line, tmp_path):
    out = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        call = command_line("export", model_in(place, "bert", TAGS), "-o", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(call, out, "cannot write", "make room")


def test_the_command_says_what_it_did(place, command_line, tmp_path):
    model, out = model_in(place, "bert", TAGS), tmp_path / "out"
    gold = tagged(place, model, "gold.conll")
    code, said, _ = command_line("export", model, "-o", out, "--labelled", gold, "--most-loss", "100")
    assert code == 0 and "points lost (95% interval" in said and "VNNI" in said and "MB, int8" in said
    text = tmp_path / "text.txt"
    text.write_text(tiny.ENGLISH)
    code, said, _ = command_line("export", model, "-o", out, "--text", text, "--force")
    assert code == 0 and "the score in int8 was not measured" in said and "of 10 inputs" in said
