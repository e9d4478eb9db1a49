"""What is read has limits, stated in docs/checks.md and kept before anything is allocated or waited for."""

import gzip
import io
import json
import os
import pickle
import re
import struct
import threading
import tracemalloc
from pathlib import Path

import pytest
import tiny
import torch
import zstandard

import bistil
from bistil.errors import ArtefactError, BistilError, InputError, RecipeError, one_line
from bistil.models.loading import read_config
from bistil.models.tokenizers import read_tokenizer
from bistil.pretrained.packed_file import read_packed_file
from bistil.runtime.artefacts import file_digest, read_json, read_sealed
from bistil.runtime.documents import LONGEST_LINE, MOST_DEPTH, check_names, parse_json, parse_toml
from bistil.settings.recipe import load_recipe, load_toml
from bistil.sparse import SparseFineTuning
from bistil.sparse.artefact import read_legacy
from bistil.tasks import get_task
from bistil.tasks import reading as task_reading
from bistil.tasks.parsing.conllu import heads, read_conllu
from bistil.tasks.reading import RowReport, read_jsonl, read_text
from bistil.text.files import line_batches, require_plain_text
from bistil.text.lines import check_text
from bistil.text.sources import TextLines
from bistil.vocabulary.counting import TokenCounts

CASES = Path(os.environ.get("BISTIL_CASES", Path(__file__).parents[3] / "shared" / "cases")) / "crashes"


def deep(depth, mark="[]"):
    return mark[0] * depth + mark[1] * depth


# JSON and TOML


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (deep(100_000), "deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "deep"),
        (f'{{"a": {deep(MOST_DEPTH + 1)}}}', "deep"),
        (f'{{"a": {"9" * 5_000}}}', "too many digits"),
        (f'{{"a": {"9" * 2_000}}}', "too many digits"),
        ('{"a": "\\ud83d"}', "surrogate"),
        ('{"\\ud83d": 1}', "surrogate"),
        ('{"a": ["b\\u0000"]}', "NUL"),
        ('{"a": NaN}', "NaN"),
        ('{"a": [-Infinity]}', "infinite"),
        ('{"a": 1e999}', "beyond"),
        (b'{"a": "\xff"}', "UTF-8"),
    ],
)
def test_json_beyond_the_limits_is_a_value_error_of_one_line(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_json_within_the_limits_is_what_python_reads():
    for text in (
        deep(MOST_DEPTH),
        '{"a": [1, 2.5, "\\ud83d\\ude00", null], "b": 123456789012345678901234567890}',
        "1e308",
    ):
        assert parse_json(text) == json.loads(text) == parse_json(text, lenient=True)


def test_rows_of_people_may_hold_odd_characters_but_are_not_deep():
    assert parse_json('{"a": "\\ud83d\\u0000"}', lenient=True) == {"a": "\ud83d\0"}
    with pytest.raises(ValueError, match="deep"):
        parse_json(deep(MOST_DEPTH + 1), lenient=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a = {deep(100_000)}", "deep"),
        ("a = " + "{a = " * 5_000 + "1" + "}" * 5_000, "deep"),
        (".".join("a" * 20_000) + " = 1", "deep"),
        (f"[{'.'.join('a' * 20_000)}]", "deep"),
        # In a time that grows with the square this takes minutes.
        (".".join("a" * 200_000) + " = 1", "deep"),
        (f"[ {' . '.join('a' * 200_000)} ]", "deep"),
        (f"a = {'9' * 5_000}", "digits"),
        (f"a = 0x{'f' * 5_000}", "digits"),
        ('a = "\\u0000"', "NUL"),
    ],
)
def test_toml_beyond_the_limits_is_one_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        parse_toml(text)
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_toml(tmp_path / "r.toml")


def test_messages_do_not_steer_the_terminal_and_end():
    message = one_line("a \x1b[31mred\x07 \u202e [/x] \ud83d\n b " + "x" * 10_000)
    assert message.startswith("a \\x1b[31mred\\x07 \\u202e [/x] \\ud83d b xxx") and len(message) < 2_100
    assert one_line("ñandú, 我們, العربية, 👩‍👧") == "ñandú, 我們, العربية, 👩‍👧"


# Pipes and devices


def with_tokenizer(path, link):
    tiny.tokenizer().save_pretrained(path)
    (path / "tokenizer_config.json").unlink()
    link(path / "tokenizer_config.json")
    return read_tokenizer(path, "m")


READERS = {
    "text": lambda path: list(line_batches(path)),
    "text, checked": check_text,
    "labelled": read_text,
    "labelled .gz": read_text,
    "CoNLL": lambda path: get_task("token-classification").read([path]),
    "CoNLL-U": lambda path: get_task("dependency-parsing").read([path]),
    "SQuAD": lambda path: get_task("question-answering").read([path]),
    "JSON": read_json,
    "sealed": read_sealed,
    "TOML": load_toml,
    "digest": file_digest,
    "counts": TokenCounts.load,
    "legacy": read_legacy,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "nothing", "circle"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path, name, what):
    path = tmp_path / ("a.json.gz" if name.endswith(".gz") else "a.json" if name == "SQuAD" else "a.conllu")
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "circle":
        path.symlink_to(path.name)
    caught = []

    def read():
        try:
            READERS[name](path)
        except BistilError as error:
            caught.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and len(caught) == 1 and "\n" not in caught[0]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "special_tokens_map.json"])
def test_a_model_s_folder_with_a_pipe_in_it_is_refused(tmp_path, command_line, name):
    tiny.save(tiny.masked_lm(layers=2), tmp_path / "m")
    (tmp_path / "m" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "m" / name)
    code, _, said = command_line("benchmark", "--model", tmp_path / "m", "--examples", "1", "--rounds", "1")
    assert code == 2 and f"{name}: it is a pipe" in said and "Traceback" not in said


# Running text


@pytest.mark.parametrize("text", ["ab", "é", "我", "a b", "👩", "\0"])
def test_text_without_an_end_is_cut_and_nothing_is_lost(tmp_path, text):
    whole = text * (5 * LONGEST_LINE // len(text.encode()))
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    lines = [line for batch in line_batches(tmp_path / "a.txt") for line in batch]
    assert "".join(lines) == whole
    assert 5 <= len(lines) <= 7 and max(len(line.encode()) for line in lines) <= LONGEST_LINE
    in_memory = [line for batch in line_batches(TextLines("a", [whole])) for line in batch]
    assert "".join(in_memory) == whole and max(map(len, in_memory)) <= LONGEST_LINE


def test_lines_around_a_long_one_stay_whole(tmp_path):
    (tmp_path / "a.txt").write_text("first\n" + "x" * 3_000_000 + "\nlast\r\n\nend", encoding="utf-8")
    lines = [line for batch in line_batches(tmp_path / "a.txt") for line in batch]
    assert (lines[0], lines[-3:], len(lines)) == ("first", ["last", "", "end"], 7)


def test_a_byte_that_is_no_text_is_named_with_its_line_behind_long_ones(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 2_500_000 + b"\nab\xff\n")
    with pytest.raises(InputError, match=r"not UTF-8 \(byte 0xff\)"):
        list(line_batches(tmp_path / "a.txt"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_of_zeros_is_read_in_bounded_memory(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    zeros = bytes(200_000_000)
    path.write_bytes(gzip.compress(zeros, 1) if suffix == ".gz" else zstandard.compress(zeros))
    del zeros
    tracemalloc.start()
    try:
        assert sum(len(line) for batch in line_batches(path) for line in batch) == 200_000_000
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()


def test_a_text_without_a_line_end_is_looked_at_in_bounded_memory(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for _ in range(100):
            file.write("kwamkekana" * 100_000)
    tracemalloc.start()
    try:
        require_plain_text(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


# Labelled files


def test_a_labelled_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.conll"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(InputError, match="which is the most that is read as a whole"):
        read_text(path)


def test_so_is_what_is_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(task_reading, "MOST_BYTES", 5_000_000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bytes(100_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="the most that is read as a whole"):
            read_text(tmp_path / "a.jsonl.gz")
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


PACKED = gzip.compress(b'{"text": "a b", "label": "x"}\n' * 40, mtime=0)


@pytest.mark.parametrize(
    "damaged",
    [PACKED[:-9], PACKED[:-4], PACKED[:10], PACKED[:5], PACKED[:-8] + bytes(4) + PACKED[-4:], b"plain text\n",
     PACKED[:12] + b"\xff" * 20 + PACKED[32:], PACKED[:2] + b"\7" + PACKED[3:], PACKED + b"xyz"],
)  # fmt: skip
def test_a_damaged_labelled_archive_is_one_line(tmp_path, damaged):
    (tmp_path / "a.jsonl.gz").write_bytes(damaged)
    with pytest.raises(InputError, match=re.escape("a.jsonl.gz is not a whole .gz file")):
        get_task("sequence-classification").read([tmp_path / "a.jsonl.gz"])


def test_a_row_too_long_or_too_deep_is_odd(tmp_path):
    rows = ['{"text": "a", "label": "x"}'] * 20
    rows[3] = json.dumps({"text": "a" * (LONGEST_LINE + 1), "label": "x"})
    rows[5] = '{"text": ' + deep(50_000) + "}"
    rows[7] = '{"text": ' + "9" * 5_000 + "}"
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    report = RowReport("a.jsonl")
    assert len(list(read_jsonl(tmp_path / "a.jsonl", report))) == 17 and report.odd.count == 3


def test_numbers_of_conllu_are_compared_whatever_their_length(tmp_path):
    for row in (f"{'1' * 5_000}\ta\t_\tX\t_\t_\t0\troot\t_\t_", f"1-{'2' * 5_000}\ta\t_\tX\t_\t_\t0\troot\t_\t_"):
        (tmp_path / "a.conllu").write_text(row + "\n\n")
        with pytest.raises(InputError, match="line 1"):
            list(read_conllu(tmp_path / "a.conllu"))
    (tmp_path / "a.conllu").write_text(f"1\ta\t_\tX\t_\t_\t{'1' * 5_000}\troot\t_\t_\n\n")
    (sentence,) = read_conllu(tmp_path / "a.conllu")
    with pytest.raises(InputError, match="is not a number from 0 to 1"):
        heads(sentence)


# Models


def config_of(tmp_path, **changes):
    tiny.config().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"architectures": 3}, "architectures"), ({"architectures": [[]]}, "architectures"),
        ({"model_type": []}, "model_type"), ({"hidden_act": 3}, "hidden_act"), ({"num_labels": 10**9}, "num_labels"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"), ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"), ({"num_attention_heads": 5}, "attention heads"),
        ({"vocab_size": 10**12}, "vocab_size"), ({"vocab_size": "300"}, "config.json"),
        ({"id2label": {}, "architectures": ["BertForTokenClassification"]}, "id2label"),
        ({"id2label": {"x": "a"}}, "id2label"), ({"id2label": {"0": ["a"]}}, "id2label"),
        ({"label2id": {"a": "0"}}, "label2id"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_kind_is_refused_with_its_key(tmp_path, changes, key):
    config_of(tmp_path, **changes)
    with pytest.raises(ArtefactError, match=key) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[10**9], "x", None])
def test_a_tokenizer_with_far_too_large_ids_is_refused(tmp_path, ids):
    tiny.tokenizer().save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["model"]["vocab"]["zz"] = ids[0] if isinstance(ids, list) else ids
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ArtefactError, match=r"ids up to|cannot be read"):
        read_tokenizer(tmp_path, "m")


def test_a_tokenizer_without_its_unknown_token_is_refused(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(state | {"model": state["model"] | {"vocab": {}}, "added_tokens": []})
    )
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_tokenizer(tmp_path, "m")


# Published sparse fine-tunings

QUERY = {"size": torch.Size([4, 4]), "index_steps": [3], "values": torch.ones(1)}


def saved(value):
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" * 9, b"JK\x03\x04", b"", b"\x80\x02" + b"]" * 100_000 + b".", b"\x80\x02}.", pickle.dumps([1]),
        saved([1]), saved({"diffs": torch.ones(3)}), saved({"diffs": {3: QUERY}}), saved({"diffs": {"a": 1}}),
        saved({"diffs": {"a": {**QUERY, "values": [1.0]}}}), saved({"diffs": {"a": {**QUERY, "index_steps": None}}}),
        saved({"diffs": {"a": {**QUERY, "index_steps": [2**64]}}}),
        saved({"diffs": {"a": {**QUERY, "size": [2**62, 9]}}}),
        saved({"diffs": {"a": {**QUERY, "values": torch.ones(1, dtype=torch.complex64)}}}),
        saved({"diffs": {"a": {**QUERY, "values": torch.ones(1).to_sparse()}}}),
        saved({"diffs": {"a": {**QUERY, "values": torch.ones(1, device="meta")}}}),
        saved({"diffs": {"a": {**QUERY, "values": torch.full((1,), float("nan"))}}}),
        saved({"diffs": {"a": torch.ones(3, 3).to_sparse()}}), saved({"diffs": {"a": QUERY}, "abs": [1]}),
        saved({"diffs": {"a": QUERY}, "abs": {3: torch.ones(1)}}),
        saved({"diffs": {"a": QUERY}, "abs": {"b": torch.ones(2).to_sparse()}}),
        saved({"diffs": {"a": QUERY}, "block_sparses": torch.ones(3)}),
    ],
    ids=range(23),
)  # fmt: skip
def test_a_damaged_or_odd_published_file_is_one_line(tmp_path, content):
    (tmp_path / "pytorch_diff.bin").write_bytes(content)
    with pytest.raises(ArtefactError) as caught:
        SparseFineTuning.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_published_file_with_a_rebuild_of_wrong_arguments_is_one_line(tmp_path):
    """As a changed byte of the archive makes it: torch's unpickler calls it and passes the error on."""
    good = saved({"diffs": {"a": QUERY}, "abs": {}, "block_sparses": {}})
    (tmp_path / "pytorch_diff.bin").write_bytes(good.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"))
    with pytest.raises(ArtefactError):
        SparseFineTuning.load(tmp_path)


def test_token_counts_that_lack_a_fact_are_refused(tmp_path):
    header = {
        "__metadata__": {"bistil_counts": json.dumps({"lines": 1, "words": 1, "characters": 1, "sources": []})},
        "counts": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "a.counts").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(ArtefactError, match="holds no token counts"):
        TokenCounts.load(tmp_path / "a.counts")


# Names of files in files


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "..", "C:\\x", "..\\x", "\\x", "", 3, None, "a\0b"]
)
def test_names_that_lead_out_of_a_folder_are_refused(name):
    with pytest.raises(InputError):
        check_names([name], where="index.json")


def test_other_names_are_not():
    check_names(["a", "a/b.safetensors", "..a/b..", "a...b"], where="index.json")


# What parses or reads by itself, and why it may: all else goes through `bistil.runtime.documents`.
PARSING = re.compile(
    r"(json\.loads?|yaml\.load|torch\.load|np\.load|pickle\.loads?|\.read_text|\.read_bytes)\(|tomllib"
)
OWN = {
    "runtime/documents.py": "the guard",
    "runtime/whole_files.py": "what is about to be written",
    "runtime/insides.py": "what was just written",
    "runtime/ownership.py": "plain files up to a size",
    "runtime/fast_linear.py": "/proc",
    "measuring/benchmark.py": "/proc",
    "measuring/energy.py": "/sys",
    "models/upload.py": "what is about to be sent",
    "export/proof.py": "what our child says",
    "export/web.py": "what our child says",
    "export/fresh.py": "what our parent wrote",
    "demo/run.py": "the package's recipe",
    "serving/app.py": "the package's page",
    "demo/data.py": "YAML of a text that went through; what is there, compared",
    "training/stores.py": "lines of a file that went through",
    "report/studies.py": "lines of a file that went through; what is about to be written",
    "prediction/files.py": "what is about to be written",
    "sparse/legacy.py": "torch's reader of tensors alone",
    "runs/stages/selection.py": "arrays without objects whose digest is on record",
    "distillation/teacher_ids.py": "what a library says",
    "models/tokenizers.py": "what a library says",
    "vocabulary/trimming.py": "what a library says",
}


def test_what_is_read_goes_through_the_guard():
    package = Path(bistil.__file__).parent
    by_itself = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if PARSING.search(path.read_text())
    }
    assert by_itself == set(OWN)


# Inputs that fuzzing found

FUZZED = {
    "conllu": lambda path: [heads(one) for one in read_conllu(path)],
    "counts": TokenCounts.load,
    "legacy": read_legacy,
    "squad": lambda path: get_task("question-answering").read([path]),
    "packed": lambda path: [
        (f := read_packed_file(path)).tensor(name, f.directory[name][1]) for name in read_packed_file(path).directory
    ],
}


@pytest.mark.parametrize("skipped", [0, 1], ids=["whole", "without its first byte"])
@pytest.mark.parametrize(
    "case", sorted(CASES.iterdir()) if CASES.is_dir() else [None], ids=lambda case: case and case.name
)
def test_inputs_that_fuzzing_found_are_read_or_refused(tmp_path, case, skipped):
    if case is None:
        pytest.skip(f"needs the inputs in {CASES} (BISTIL_CASES)")
    kind = case.name.partition("-")[0]
    path = tmp_path / {"conllu": "a.conllu", "squad": "a.json", "counts": "a.counts"}.get(kind, "a.bin")
    path.write_bytes(case.read_bytes()[skipped:])
    try:
        FUZZED[kind](path)
    except BistilError as error:
        assert "\n" not in str(error)


def test_what_fuzzing_put_into_a_message_stays_one_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label,lang\na,b,"x\ny"\na,c,z\n')
    with pytest.raises(BistilError, match=r"names 2 languages \(x y, z\)"):
        get_task("sequence-classification").read([path])
    path = tmp_path / "pytorch_diff.bin"
    torch.save({"diffs": {"a\r\nb": {"index_steps": 3}}, "abs": {}}, path)
    with pytest.raises(BistilError, match="a b"):
        read_legacy(path)


def test_a_name_that_is_too_long_for_a_folder_is_none(tmp_path):
    (tmp_path / "r.toml").write_text(
        f'name = "a"\nsource = "en"\ntarget = "sw"\nteacher = "{"9" * 5_000}"\n[text]\nen = "e.txt"\nsw = "s.txt"\n'
    )
    assert load_recipe(tmp_path / "r.toml").teacher == "9" * 5_000
