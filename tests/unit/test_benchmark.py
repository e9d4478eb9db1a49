"""Sizes against counts by hand, speed ratios against models whose order is known, bad input."""

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny
import torch
import typer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from bistil.commands.benchmark import register
from bistil.errors import ArtefactError, InputError
from bistil.measuring import benchmark as bench
from bistil.measuring import energy
from bistil.measuring.benchmark import (
    BenchmarkRow,
    benchmark,
    count_flops,
    count_parameters,
    folder_bytes,
    load_for_inference,
)
from bistil.runtime.artefacts import read_json
from bistil.runtime.ownership import is_our_file
from bistil.settings.parsing import typed
from bistil.tasks.dependency_parsing import DependencyParsing

TEXTS = tiny.ENGLISH.splitlines()


def save(folder: Path, family: str = "bert", head=AutoModel, **options) -> Path:
    tiny.model(family, head=head, **options).save_pretrained(folder)
    tiny.tokenizer(family).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_is_measured(family, tmp_path):
    teacher = save(tmp_path / "teacher", family, AutoModelForSequenceClassification, layers=4)
    student = save(tmp_path / "student", family, layers=2)
    rows = benchmark({"teacher": teacher, "student": student}, texts=TEXTS, rounds=2, batch_size=4)
    assert list(rows) == ["teacher", "student"]
    assert rows["teacher"].architecture.endswith("ForSequenceClassification")
    assert rows["teacher"].head_parameters > 0 and rows["student"].head_parameters == 0
    assert (rows["teacher"].layers, rows["student"].layers) == (4, 2)
    for row in rows.values():
        assert row.parameters == row.embedding_parameters + row.encoder_parameters + row.head_parameters
        assert row.milliseconds_range[0] <= row.milliseconds_range[1]
        assert row.speed_ratio_range[0] <= row.speed_ratio <= row.speed_ratio_range[1]
        assert row.examples == len(TEXTS) and row.rounds == 2
        assert row.examples_per_second > 0 and row.tokenize_milliseconds > 0
    assert rows["teacher"].speed_ratio == 1.0
    # Half the layers of the same shape on the same ids: half the operations of the encoder.
    assert rows["student"].flops < rows["teacher"].flops
    json.dumps(bench.cost_record(rows, texts="tiny"), allow_nan=False)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_parser_is_told_where_words_are(family, tmp_path):
    task, tokenizer = DependencyParsing(parser_projection=8), tiny.tokenizer(family)
    save(tmp_path / "encoder", family)
    parser = task.build_model(tmp_path / "encoder", ["dep", "root"])
    parser.save_pretrained(tmp_path / "parser")
    tokenizer.save_pretrained(tmp_path / "parser")
    # What the task reads, whatever the tokenizer; of a long text as much as fits.
    sentences = ["The cat sat on the mat", "The dog", "The river stayed calm. " * 20, " "]
    features = task.unlabelled(sentences, tokenizer, 32)
    found = bench._word_inputs(sentences, tokenizer, 32)
    for row in range(3):
        feature = next(one for one in features if one["example"] == row)
        for key in ("input_ids", "word_starts", "word_ends"):
            filled = found["attention_mask" if key == "input_ids" else key][row] >= (key == "input_ids")
            assert found[key][row][filled].tolist() == feature[key]
    assert found["word_ends"][3][0] > found["word_starts"][3][0] >= 0
    models = {"encoder": tmp_path / "encoder", "parser": tmp_path / "parser"}
    for texts in (TEXTS, None):
        rows = benchmark(models, texts=texts, examples=4, rounds=1, batch_size=2, max_length=64)
        assert rows["parser"].flops > rows["encoder"].flops and rows["parser"].head_parameters > 0


def test_a_model_of_many_times_the_work_is_slower(tmp_path):
    small = save(tmp_path / "small", layers=1)
    large = save(tmp_path / "large", layers=12, hidden=128)
    rows = benchmark({"large": large, "small": small}, texts=TEXTS, rounds=3, threads=1)
    assert rows["small"].speed_ratio_range[0] > 2
    assert rows["small"].milliseconds < rows["large"].milliseconds
    assert rows["small"].threads == 1


def test_flops_are_those_of_the_matrix_products(tmp_path):
    hidden, layers, length = 32, 3, 11
    model = load_for_inference(save(tmp_path / "m", layers=layers, hidden=hidden))
    ids = torch.full((1, length), 7)
    # Per layer: 4 projections (h*h), 2 of the feed-forward net (h*2h), and scores and mix of the attention (n*h).
    per_token = 2 * (4 * hidden**2 + 2 * 2 * hidden**2 + 2 * length * hidden)
    pooler = 2 * hidden**2
    before = model.config._attn_implementation
    assert count_flops(model, [{"input_ids": ids}]) == layers * length * per_token + pooler
    assert model.config._attn_implementation == before


def test_tied_parameters_count_once(tmp_path):
    model = load_for_inference(save(tmp_path / "m", head=AutoModelForMaskedLM))
    parameters = count_parameters(model)
    vocabulary, hidden = model.config.vocab_size, model.config.hidden_size
    # Of the masked-LM head only the transform (with its layer norm) and the output bias are its own.
    assert parameters["head"] == hidden * hidden + hidden + 2 * hidden + vocabulary
    assert parameters["embedding"] == (vocabulary + 140 + 2) * hidden + 2 * hidden
    assert parameters["total"] == sum(p.numel() for p in model.parameters())


def test_bytes_are_those_on_disk(tmp_path):
    folder = save(tmp_path / "m")
    total, weights = folder_bytes(folder)
    assert weights == (folder / "model.safetensors").stat().st_size
    assert total == sum(p.stat().st_size for p in folder.iterdir())


def test_synthetic_input_has_the_length_asked_for(tmp_path):
    folder = save(tmp_path / "m")
    row = benchmark({"m": folder}, texts=None, examples=3, rounds=1, max_length=24, batch_size=2)["m"]
    assert (row.tokens, row.examples, row.tokenize_milliseconds) == (24, 3, None)
    assert row.examples_per_second > 0


def test_texts_are_cut_to_the_longest_length(tmp_path):
    folder = save(tmp_path / "m")
    row = benchmark({"m": folder}, texts=["", " ".join(TEXTS)], rounds=1, max_length=9)["m"]
    assert (row.tokens, row.examples) == (9, 1)


def test_short_memory_measures_in_pairs_with_the_reference(tmp_path, monkeypatch):
    folders = {name: save(tmp_path / name, layers=1) for name in "abc"}
    together = benchmark(folders, texts=TEXTS, rounds=1)
    # Leave room for about two of the three models.
    need = sum(folder_bytes(folder)[1] for folder in folders.values())
    memory = bench.psutil.virtual_memory()
    monkeypatch.setattr(bench.psutil, "virtual_memory", lambda: memory._replace(available=need))
    assert bench._groups(folders) == [["a", "b"], ["a", "c"]]
    pairs = benchmark(folders, texts=TEXTS, rounds=1)
    assert list(pairs) == list(together) == ["a", "b", "c"]
    assert {row.reference for row in pairs.values()} == {"a"}


def test_peak_memory_of_a_parser(tmp_path):
    save(tmp_path / "encoder")
    DependencyParsing().build_model(tmp_path / "encoder", ["dep", "root"]).save_pretrained(tmp_path / "parser")
    peak = bench.peak_memory(tmp_path / "parser")
    assert peak is not None and 100e6 < peak < 4e9


def test_peak_memory_is_that_of_a_whole_process(tmp_path):
    peak = bench.peak_memory(save(tmp_path / "m", layers=1))
    # A process that has imported PyTorch takes at least 100 MB, and the tiny model adds next to nothing.
    assert peak is not None and 100e6 < peak < 4e9


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A tagger, and the same exported in int8."""
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from bistil.export.folder import export_model

    folder = tmp_path_factory.mktemp("both")
    save(folder / "tagger", "xlm-roberta", AutoModelForTokenClassification, layers=2)
    export_model(folder / "tagger", folder / "exported")
    return {"tagger": folder / "tagger", "exported": folder / "exported"}


def test_exported_models_stand_beside_those_of_transformers(both, monkeypatch):
    spent = iter(range(1000))
    monkeypatch.setattr(bench, "counters", lambda: [Path("zone")])
    monkeypatch.setattr(energy, "_spent", lambda *_: float(next(spent)))
    rows = benchmark(both, texts=None, examples=4, rounds=2, max_length=16, lengths=[8, 16], batch_size=[2, 4])
    theirs, own = rows["tagger"], rows["exported"]
    assert (theirs.engine, theirs.precision) == ("pytorch", "float32")
    assert (own.engine, own.precision) == ("onnxruntime", "int8") and own.bytes < theirs.bytes
    # The shape is the same, so is all that is counted.
    for name in ("architecture", "parameters", "embedding_parameters", "head_parameters", "flops", "vocabulary"):
        assert getattr(own, name) == getattr(theirs, name)
    assert own.flops_of_128_tokens == theirs.flops_of_128_tokens > theirs.flops
    for row in rows.values():
        assert [one.tokens for one in row.latencies] == [8, 16]
        assert all(one.p95 >= one.milliseconds > 0 for one in row.latencies)
        # What was measured once is the same figure twice.
        assert row.latencies[1].milliseconds == row.milliseconds
        best = max(row.throughputs, key=lambda one: one.examples_per_second)
        assert [one.batch_size for one in row.throughputs] == [2, 4]
        assert (row.batch_size, row.examples_per_second) == (best.batch_size, best.examples_per_second)
        assert row.cpu_milliseconds > 0
    # Two rounds of two models in turn, the other one first in the second round; four examples.
    assert (theirs.joules, own.joules) == ((0 + 3) / 2 / 4, (1 + 2) / 2 / 4)
    record = json.loads(json.dumps(bench.cost_record(rows, texts="none")))
    assert [typed(BenchmarkRow, one) for one in record["models"]] == list(rows.values())


def test_records_of_earlier_versions_are_read(tmp_path):
    row = benchmark({"m": save(tmp_path / "m", layers=1)}, texts=TEXTS, examples=2, rounds=1)["m"]
    added = {"engine", "precision", "flops_of_128_tokens", "latencies", "throughputs", "cpu_milliseconds", "joules"}
    earlier = {key: value for key, value in asdict(row).items() if key not in added | {"unloaded_memory_bytes"}}
    read = typed(BenchmarkRow, earlier)
    assert (read.milliseconds, read.engine, read.latencies) == (row.milliseconds, "pytorch", [])


def test_memory_is_known_with_and_without_the_model(both):
    for folder in both.values():
        before, peak = bench._memory(folder)
        assert 50e6 < before < peak < 4e9


def test_energy_is_that_of_whole_packages(tmp_path):
    def zone(name, kind, micro, most="1000000000"):
        (tmp_path / name).mkdir()
        for file, text in (("name", kind), ("energy_uj", str(micro)), ("max_energy_range_uj", most)):
            (tmp_path / name / file).write_text(text + "\n")

    assert energy.counters(tmp_path) == [] and energy.counters(tmp_path / "nothing") == []
    zone("intel-rapl:0", "package-0", 999_000_000)
    zone("intel-rapl:0:0", "core", 5)
    zone("intel-rapl:1", "package-1", 10)
    zone("intel-rapl:2", "psys", 7)
    zones = energy.counters(tmp_path)
    assert [one.name for one in zones] == ["intel-rapl:0", "intel-rapl:1"]
    with energy.metered(zones) as used:
        (tmp_path / "intel-rapl:0/energy_uj").write_text("1000000")  # began again: 2 joules
        (tmp_path / "intel-rapl:1/energy_uj").write_text("500010")
        (tmp_path / "intel-rapl:0:0/energy_uj").write_text("900000000")
    assert used.joules == pytest.approx(2.5) and used.cpu_seconds >= 0
    with energy.metered(zones) as used:
        (tmp_path / "intel-rapl:1/energy_uj").unlink()
    assert used.joules is None
    with energy.metered([]) as used:
        sum(range(1000))
    assert used.joules is None


def test_what_a_processor_has(monkeypatch):
    text = "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu avx2 avx512_vnni amx_int8\n"
    monkeypatch.setattr(bench.Path, "read_text", lambda *_, **__: text)
    assert bench.processor_flags() == ["avx2", "avx512_vnni", "amx_int8"]
    monkeypatch.setattr(bench.Path, "read_text", lambda *_, **__: "nothing")
    assert bench.processor_flags() is None


def test_bad_input_is_one_line(tmp_path):
    folder = save(tmp_path / "m", layers=1)
    with pytest.raises(InputError, match="at least one model"):
        benchmark({}, texts=TEXTS)
    with pytest.raises(InputError, match="all lines are empty"):
        benchmark({"m": folder}, texts=["", "  "])
    with pytest.raises(InputError, match="rounds is 0"):
        benchmark({"m": folder}, texts=TEXTS, rounds=0)
    with pytest.raises(InputError, match="batch_size is 1"):
        benchmark({"m": folder}, texts=TEXTS, batch_size=[8, 1])
    with pytest.raises(InputError, match="lengths is 0"):
        benchmark({"m": folder}, texts=TEXTS, lengths=[0])
    with pytest.raises(InputError, match="lengths"):
        benchmark({"m": folder}, texts=TEXTS, lengths=[100_000])
    with pytest.raises(InputError, match="max_length is 100000, but the model has"):
        benchmark({"m": folder}, texts=TEXTS, max_length=100_000)
    decoding = T5Config(vocab_size=80, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(decoding).save_pretrained(tmp_path / "t5")
    tiny.tokenizer("bert").save_pretrained(tmp_path / "t5")
    with pytest.raises(ArtefactError, match="a t5 model, which has a decoder: only encoders are run"):
        benchmark({"t5": tmp_path / "t5"}, texts=TEXTS)
    with pytest.raises(InputError, match="threads is 0"):
        benchmark({"m": folder}, texts=TEXTS, threads=0)
    with pytest.raises(ArtefactError, match="not a Hugging Face model folder"):
        benchmark({"m": tmp_path / "nothing"}, texts=TEXTS)
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace("BertModel", "BertForTelepathy"), encoding="utf-8"
    )
    with pytest.raises(ArtefactError, match="BertForTelepathy"):
        benchmark({"m": folder}, texts=TEXTS)


def test_what_is_no_model_is_one_line(both, tmp_path, command_line, monkeypatch):
    sft, code = tmp_path / "sft", tmp_path / "code"
    sft.mkdir()
    (sft / "sft_config.json").write_text("{}")
    code.mkdir()
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}}
    (code / "config.json").write_text(json.dumps(own))
    (code / "mine.py").write_text("raise SystemExit('was run')")
    for folder, said in ((sft, "merge it into its base first"), (code, "code of its own")):
        for command in (("benchmark", "-m"), ("evaluate", "--file", sft / "sft_config.json", "--model"), ("predict",)):
            status, out, error = command_line(*command, folder)
            lines = [one for one in error.splitlines() if not one.startswith(("[bistil]", "benchmark:"))]
            assert (status, out, len(lines)) == (2, "", 1) and said in lines[0], error
    record, plot = tmp_path / "record.json", tmp_path / "plot.svg"
    arguments = ["--rounds", "1", "--examples", "1", "--max-length", "8", "--length", "0", "-o", record, "--plot", plot]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", None)
        status, _, error = command_line("benchmark", "-m", both["exported"], *arguments)
        assert status == 2 and "pip install 'bistil[onnx]'" in error and not list(tmp_path.glob("*.json"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status, _, error = command_line("benchmark", "-m", both["exported"], *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = error.splitlines()[-1]
    assert status == 2 and "cannot write" in last and "make room" in last and not list(tmp_path.glob("*.json"))


def test_empty_lines_are_left_out_and_long_ones_cut(both):
    texts = ["", " ".join(f"w{i % 70}" for i in range(5_000)), "   "]
    for row in benchmark(both, texts=texts, rounds=1, max_length=64).values():
        assert (row.examples, row.tokens) == (1, 64)


def test_the_command_prints_a_table_and_leaves_a_record(tmp_path):
    large, small = save(tmp_path / "large", layers=4), save(tmp_path / "small", layers=2)
    text = tmp_path / "text.txt"
    text.write_text(tiny.SWAHILI, encoding="utf-8")
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    arguments = ["benchmark", "--model", f"big={large}", "--model", str(small), "--rounds", "1", "--examples", "10"]
    outputs = ["--output", str(tmp_path / "record.json"), "--plot", str(tmp_path / "costs.svg")]
    measured = ["--text", str(text), "--length", "8", "--batch-size", "2", "--batch-size", "5"]
    done = CliRunner().invoke(app, [*arguments, *measured, *outputs])
    assert done.exit_code == 0, done.output
    record = read_json(tmp_path / "record.json")
    assert [(m["name"], m["layers"], m["examples"]) for m in record["models"]] == [("big", 4, 10), ("small", 2, 10)]
    assert record["texts"] == str(text) and record["machine"]["torch"] == torch.__version__
    lines = done.stdout.splitlines()
    assert any(line.startswith("big ") for line in lines) and any(line.startswith("small ") for line in lines)
    assert "instructions: " in done.stdout and is_our_file(tmp_path / "costs.svg")
    drawn = (tmp_path / "costs.svg").read_text(encoding="utf-8")
    assert "big: " in drawn and "small: " in drawn and "ms at batch 1, 8 tokens" in drawn
    refused = CliRunner().invoke(app, [*arguments, "--plot", str(tmp_path / "costs.gif")])
    assert isinstance(refused.exception, InputError) and ".svg, .png or .pdf" in str(refused.exception)
    twice = CliRunner().invoke(app, ["benchmark", "--model", str(small), "--model", str(small)])
    assert isinstance(twice.exception, InputError) and "two models are called 'small'" in str(twice.exception)
