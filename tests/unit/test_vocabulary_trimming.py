"""Whole models, trimmed: same outputs for every family and head, ids, number formats, SFTs, bad input."""

import json

import numpy as np
import pytest
import tiny
import torch
import transformers
import typer
from safetensors.torch import load_file
from tokenizer_families import corpus, of_class
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    MT5Config,
    MT5EncoderModel,
    MT5ForConditionalGeneration,
)
from typer.testing import CliRunner

from bistil.cli import main
from bistil.commands import trim as command
from bistil.errors import ArtefactError, InputError
from bistil.settings.recipe import TrimSettings
from bistil.sparse import Provenance, SparseDelta, SparseFineTuning, fingerprint
from bistil.vocabulary import kept_ids, trim_vocabulary, trimming

COARSE = TrimSettings(threshold=0.004)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "eng.txt").write_text(tiny.ENGLISH, encoding="utf-8")
    (tmp_path / "swa.txt").write_text("\n".join(tiny.SWAHILI.splitlines()[:4]), encoding="utf-8")
    return {"eng": [tmp_path / "eng.txt"], "swa": [tmp_path / "swa.txt"]}


def saved(folder, model, family="bert"):
    tiny.save(model, folder, family)
    return folder


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("head", [AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification])
def test_kept_tokens_give_the_same_outputs(family, head, texts, tmp_path):
    full = tiny.model(family, head=head, layers=2)
    folder = saved(tmp_path / "full", full, family)
    report = trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE)
    small = head.from_pretrained(tmp_path / "small").eval()
    kept = kept_ids(tmp_path / "small")
    assert type(small) is type(full)
    assert report.before.tokens > report.after.tokens == len(kept) == small.config.vocab_size
    assert report.after.parameters == sum(p.numel() for p in small.parameters())
    ids = torch.randint(len(kept), (3, 9), generator=torch.Generator().manual_seed(0))
    ids[1, 6:] = small.config.pad_token_id
    mask = (ids != small.config.pad_token_id).long()
    with torch.no_grad():
        before = full(input_ids=kept[ids], attention_mask=mask, output_hidden_states=True)
        after = small(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    for old, new in zip(before.hidden_states, after.hidden_states, strict=True):
        assert torch.equal(old, new)
    if head is not AutoModel:
        logits = before.logits[..., kept] if head is AutoModelForMaskedLM else before.logits
        assert torch.equal(logits, after.logits)
    assert report.verified is None or report.verified["largest_difference"] == 0.0


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_report_and_files(family, texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.masked_lm(family, layers=1), family)
    report = trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE)
    stored = json.loads((tmp_path / "small" / "trim_report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    assert sum(report.kept.values()) == report.after.tokens
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    full = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == report.after.tokens
    for name, paths in texts.items():
        lines = paths[0].read_text().splitlines()
        one = report.corpora[name]
        words = sum(len(line.split()) for line in lines)
        assert one.words == words
        assert one.fertility == sum(len(full.tokenize(line)) for line in lines) / words
        assert one.trimmed_fertility == sum(len(tokenizer.tokenize(line)) for line in lines) / words
        dropped = [t for line in lines for t in full.tokenize(line) if t not in tokenizer.get_vocab()]
        assert one.coverage == pytest.approx(1 - len(dropped) / one.tokens)
        assert {t: dropped.count(t) for t, _ in one.top_dropped} == dict(one.top_dropped)
        assert not one.held_out
        assert one.unknown == one.trimmed_unknown == 0
    assert (tmp_path / "small" / "bistil.json").exists()
    assert (tmp_path / "small" / "README.md").read_text().startswith("---")
    assert all(table.row_count for table in report.tables())


def test_untied_output_and_number_format_stay(texts, tmp_path):
    model = tiny.masked_lm("bert", layers=1, tie_word_embeddings=False).to(torch.bfloat16)
    folder = saved(tmp_path / "full", model)
    report = trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE)
    old, new = load_file(folder / "model.safetensors"), load_file(tmp_path / "small" / "model.safetensors")
    kept = kept_ids(tmp_path / "small")
    assert old.keys() == new.keys()
    assert not torch.equal(old["cls.predictions.decoder.weight"], old["bert.embeddings.word_embeddings.weight"])
    for name, value in new.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, old[name][kept] if name in report.parameters else old[name]), name
    assert report.before.bytes == 2 * report.before.parameters


def test_what_the_checkpoint_lacks_is_not_made_up(texts, tmp_path):
    """A checkpoint without a pooler loads with a random one; the trimmed one lacks it as well."""
    folder = saved(tmp_path / "full", tiny.model("bert", layers=1))
    state = load_file(folder / "model.safetensors")
    from safetensors.torch import save_file

    bare = {key: value for key, value in state.items() if not key.startswith("pooler")}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE)
    assert load_file(tmp_path / "small" / "model.safetensors").keys() == bare.keys()


def test_ids_in_configurations(texts, tmp_path):
    """An encoder-decoder with untied output: config.json and generation_config.json follow the tokenizer."""
    tokenizer = tiny.tokenizer("xlm-roberta")
    far = tokenizer.convert_tokens_to_ids(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[-1])
    config = MT5Config(
        vocab_size=len(tokenizer) + 7,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=far,
        tie_word_embeddings=False,
        dropout_rate=0.0,
    )
    torch.manual_seed(0)
    model = MT5ForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [far, far - 1]
    model.generation_config.forced_eos_token_id = 2
    folder = saved(tmp_path / "full", model, "xlm-roberta")
    report = trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE)
    small = AutoConfig.from_pretrained(tmp_path / "small")
    kept = kept_ids(tmp_path / "small").tolist()
    assert report.spare_rows == 7
    assert kept[small.decoder_start_token_id] == far
    assert (small.pad_token_id, small.eos_token_id) == (1, 2)
    generation = json.loads((tmp_path / "small" / "generation_config.json").read_text())
    assert [kept[i] for i in generation["suppress_tokens"]] == [far, far - 1]
    assert kept[generation["decoder_start_token_id"]] == far
    assert report.verified["largest_difference"] == 0.0
    assert {name.rsplit(".", 1)[0] for name in report.parameters} >= {"shared", "lm_head"}
    encoder = MT5EncoderModel.from_pretrained(tmp_path / "small")
    assert encoder.get_input_embeddings().weight.shape[0] == len(kept)


def test_positions_that_count_from_the_padding_id_do_not_move():
    """RoBERTa's positions start after the padding id: the tokens before it stay, even if nothing else needs them."""
    from bistil.vocabulary.weights import fixed_ids

    model = tiny.model("xlm-roberta", layers=1)
    model.embeddings.position_embeddings.padding_idx = 9
    assert set(range(9)) <= fixed_ids(model, 100)
    assert not set(range(3, 9)) & fixed_ids(tiny.model("bert", layers=1), 100)


def test_a_stale_sentencepiece_file_is_left_out(texts, tmp_path):
    import sentencepiece

    (tmp_path / "text").write_text(tiny.ENGLISH + "\n" + tiny.SWAHILI, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "sp"), vocab_size=150, minloglevel=2
    )
    folder = saved(tmp_path / "full", tiny.masked_lm("xlm-roberta", layers=1), "xlm-roberta")
    (tmp_path / "sp.model").rename(folder / "sentencepiece.bpe.model")
    (folder / "vocab.txt").write_text("stale")
    trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE)
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert not names & {"sentencepiece.bpe.model", "vocab.txt"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert len(tokenizer) == len(kept_ids(tmp_path / "small"))


ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NAMED = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
DEBERTA = {
    "relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
REAL = {
    # model as published: (tokenizer class or fast tokenizer, model class, configuration, spare rows)
    "mBERT": ("BertTokenizer", "BertForMaskedLM", ENCODER, 0),
    "mBERT, uncased": ("BertTokenizer uncased", "BertForMaskedLM", ENCODER, 0),
    "DistilmBERT": ("DistilBertTokenizer", "DistilBertForMaskedLM",
                    {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, 0),
    "XLM-R": ("XLMRobertaTokenizer", "XLMRobertaForMaskedLM", {**ENCODER, **NAMED}, 0),
    "mDeBERTa": ("DebertaV2Tokenizer", "DebertaV2ForMaskedLM", {**ENCODER, **DEBERTA}, 30),
    "mT5's encoder": ("T5Tokenizer", "MT5EncoderModel", T5, 20),
    "T5's encoder": ("T5Tokenizer", "T5EncoderModel", T5, 20),
    "RoBERTa": ("RobertaTokenizer", "RobertaForMaskedLM", {**ENCODER, **NAMED}, 0),
    "ModernBERT": ("byte-bpe", "ModernBertForMaskedLM",
                   {**ENCODER, **NAMED, "cls_token_id": 0, "sep_token_id": 2}, 8),
    "mmBERT": ("GemmaTokenizer", "ModernBertForMaskedLM",
               {**ENCODER, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "cls_token_id": 2,
                "sep_token_id": 1}, 0),
    "EuroBERT": ("whole-word-bpe", "EuroBertForMaskedLM",
                 {**ENCODER, **NAMED, "mask_token_id": 4, "num_key_value_heads": 4}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_every_tokenizer_class_with_its_model(name, tmp_path):
    """Trimmed to half of the text, in all its scripts: what is kept is encoded as before, under the same class."""
    kind, model_class, config, spare = REAL[name]
    tokenizer, folder = of_class(kind), tmp_path / "full"
    torch.manual_seed(0)
    model = getattr(transformers, model_class)
    model(model.config_class(vocab_size=len(tokenizer) + spare, **config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lines = corpus()
    (tmp_path / "half.txt").write_text("\n".join(lines[::2]), encoding="utf-8")
    report = trim_vocabulary(folder, {"half": [tmp_path / "half.txt"]}, tmp_path / "small")
    full, small = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path / "small")
    assert type(small) is type(full) and report.tokenizer_class == type(full).__name__
    assert report.after.tokens == len(small) < report.before.tokens == len(full)
    assert (report.spare_rows, report.verified["largest_difference"]) == (spare, 0.0)
    kept = kept_ids(tmp_path / "small")
    special = " ".join(full.all_special_tokens[-3:])
    unchanged = 0
    for line in [*lines, special]:
        before, after = full(line).input_ids, small(line).input_ids
        assert max(after) < len(kept)
        if set(before) <= set(kept.tolist()) and full.unk_token_id not in before[1:-1]:
            unchanged += 1
            assert kept[torch.tensor(after)].tolist() == before
            assert small.decode(after) == full.decode(before)
    assert len(lines) // 4 < unchanged < len(lines)
    loaded = model.from_pretrained(tmp_path / "small")
    assert loaded.get_input_embeddings().weight.shape[0] == len(kept) == loaded.config.vocab_size
    for role in ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"):
        if config.get(role) is not None:
            assert kept[getattr(loaded.config, role)] == config[role]


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_trimming_again_changes_nothing(family, texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.masked_lm(family, layers=1), family)
    trim_vocabulary(folder, texts, tmp_path / "once", settings=COARSE)
    again = trim_vocabulary(tmp_path / "once", texts, tmp_path / "twice", settings=COARSE)
    assert again.before == again.after
    for name in ("model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name
    # Another threshold or another text is another trim.
    coarser = trim_vocabulary(tmp_path / "once", texts, tmp_path / "less", settings=TrimSettings(threshold=0.02))
    assert coarser.after.tokens < again.after.tokens


def test_trimming_a_trimmed_model_to_all_it_has_changes_nothing(texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.masked_lm("xlm-roberta", layers=1), "xlm-roberta")
    trim_vocabulary(folder, texts, tmp_path / "once", settings=COARSE)
    words = tmp_path / "all.txt"
    words.write_text("\n".join(AutoTokenizer.from_pretrained(tmp_path / "once").get_vocab()), encoding="utf-8")
    trim_vocabulary(tmp_path / "once", texts, tmp_path / "twice", settings=COARSE, keep=words)
    for name in ("model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name


def test_sentence_transformers_modules_come_along(texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.model("bert", layers=1))
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE, verify=False)
    assert (tmp_path / "small" / "1_Pooling" / "config.json").exists()


def test_verification_notices_a_changed_model_and_writes_nothing(texts, tmp_path, monkeypatch):
    folder = saved(tmp_path / "full", tiny.masked_lm("bert", layers=1))
    original = trimming.weights.trim_model

    def damaging(model, kept, tokens):
        names = original(model, kept, tokens)
        model.get_input_embeddings().weight.data[5:, ::2] += 0.5
        return names

    monkeypatch.setattr(trimming.weights, "trim_model", damaging)
    settings = TrimSettings(threshold=0.0)
    with pytest.raises(ArtefactError, match="change the model's outputs"):
        trim_vocabulary(folder, texts, tmp_path / "small", settings=settings)
    assert {path.name for path in tmp_path.iterdir()} == {"full", "eng.txt", "swa.txt"}


def test_verification_notices_a_changed_tokenizer(texts, tmp_path, monkeypatch):
    folder = saved(tmp_path / "full", tiny.masked_lm("xlm-roberta", layers=1), "xlm-roberta")
    original = trimming.trim_state

    def damaging(vocabulary, kept):
        state = original(vocabulary, kept)
        state["model"]["vocab"] = [[piece, -20.0 + i % 7] for i, (piece, _) in enumerate(state["model"]["vocab"])]
        return state

    monkeypatch.setattr(trimming, "trim_state", damaging)
    with pytest.raises(ArtefactError, match="change the tokenizer"):
        trim_vocabulary(folder, texts, tmp_path / "small", settings=TrimSettings(threshold=0.0))
    assert not (tmp_path / "small").exists()


# Bad input


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.model("bert", layers=1, vocab=250))
    with pytest.raises(ArtefactError, match="250 embedding rows but its tokenizer has 300 tokens"):
        trim_vocabulary(folder, texts, tmp_path / "small")


def test_an_output_that_exists_is_left_alone(texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.model("bert", layers=1))
    small = tmp_path / "small"
    small.mkdir()
    (small / "mine").write_text("x")
    for replace in (False, True):
        with pytest.raises(InputError, match="already exists"):
            trim_vocabulary(folder, texts, small, replace=replace)
    assert (small / "mine").read_text() == "x"
    (small / "mine").unlink()
    trim_vocabulary(folder, texts, small)
    before = (small / "trim_report.json").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        trim_vocabulary(folder, texts, small, settings=COARSE)
    assert (small / "trim_report.json").read_bytes() == before
    trim_vocabulary(folder, texts, small, replace=True, settings=COARSE)
    assert (small / "trim_report.json").read_bytes() != before


def test_a_slow_tokenizer(texts, tmp_path):
    folder = tmp_path / "full"
    tiny.model("bert", layers=1).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic"})
    )
    with pytest.raises((ArtefactError, InputError), match="slow tokenizer") as error:
        trim_vocabulary(folder, texts, tmp_path / "small")
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_kind(texts, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "full"
    tiny.model("bert", layers=1).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    with pytest.raises(InputError, match="cannot trim a WordLevel tokenizer"):
        trim_vocabulary(folder, texts, tmp_path / "small")


# Command line


@pytest.fixture
def run():
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)

    def invoke(*arguments):
        return CliRunner().invoke(app, ["trim", *map(str, arguments)])

    return invoke


def test_command_trims_a_model_and_its_sfts(run, texts, tmp_path):
    full = tiny.masked_lm("bert", layers=1)
    folder = saved(tmp_path / "full", full)
    name = "bert.embeddings.word_embeddings.weight"
    rows, width = full.get_input_embeddings().weight.shape
    deltas = {
        name: SparseDelta(torch.arange(0, rows * width, 3), torch.randn(-(-rows * width // 3)), (rows, width)),
        "bert.encoder.layer.0.output.dense.bias": SparseDelta(torch.tensor([1]), torch.ones(1), (width,)),
    }
    sft = SparseFineTuning(deltas, {}, Provenance(fingerprint=fingerprint(full)))
    sft.save(tmp_path / "my-sft")
    done = run(
        "--model", folder, "--text", f"eng={texts['eng'][0]}", "--text", texts["swa"][0], "--output",
        tmp_path / "small", "--threshold", 0.004, "--counts", tmp_path / "counts", "--sft", tmp_path / "my-sft",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "equal in every bit" in " ".join(done.output.split())
    assert len(list((tmp_path / "counts").iterdir())) == 2
    small = AutoModelForMaskedLM.from_pretrained(tmp_path / "small")
    kept = kept_ids(tmp_path / "small")
    sft.apply(full)
    SparseFineTuning.load(tmp_path / "small" / "sft" / "my-sft", base=small).apply(small)
    assert torch.equal(full.get_input_embeddings().weight[kept], small.get_input_embeddings().weight)
    wearing = dict(small.named_parameters())
    for key, value in full.named_parameters():
        if value.shape == wearing[key].shape:
            assert torch.equal(value, wearing[key]), key


def test_dry_run_shows_and_draws_the_sizes_that_trimming_gives(run, texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.masked_lm("xlm-roberta", layers=1), "xlm-roberta")
    rows, full = trimming.plan(folder, texts, thresholds=(1e-6, 0.004, 0.01))
    for row in rows:
        settings = TrimSettings(threshold=row.threshold)
        report = trim_vocabulary(folder, texts, tmp_path / f"{row.threshold}", settings=settings, verify=False)
        assert report.after == row.size
        assert report.before == full
        assert {name: one.coverage for name, one in report.corpora.items()} == pytest.approx(row.coverage)
    done = run("--model", folder, "--text", texts["eng"][0], "--dry-run", "--plot", tmp_path / "sizes.svg")
    assert done.exit_code == 0, done.output
    assert "1e-06" in done.output
    drawing = (tmp_path / "sizes.svg").read_text()
    assert "<svg" in drawing
    # Both axes' curves are named.
    assert "<!-- parameters -->" in drawing and drawing.count(", covered -->") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "nowhere.txt", "--output", "x"), "nowhere.txt: no such file"),
        (("--output", "x", "--threshold", "2"), "threshold is 2.0; it must be at least 0 and at most 1"),
        (("--output", "x", "--threshold", "0.1", "--vocabulary-size", "9"), "give only one of"),
        (("--output", "x", "--set", "vocabulary_sise=9"), "did you mean 'vocabulary_size'"),
        ((), "--output is missing"),
        (("--output", "x", "--plot", "a.svg"), "--dry-run"),
    ],
)
def test_bad_options(run, texts, arguments, message, tmp_path):
    folder = saved(tmp_path / "full", tiny.model("bert", layers=1))
    done = run("--model", folder, "--text", texts["eng"][0], *arguments)
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "slow", "--text", "eng.txt"), "slow has a slow tokenizer only"),
        (("--model", "rows", "--text", "eng.txt"), "rows has 250 embedding rows but its tokenizer has 300 tokens"),
        (("--model", "full", "--text", "latin.txt"), "latin.txt, line 1: not UTF-8 (byte 0xef)"),
        (("--model", "full", "--text", "empty.txt"), "empty.txt holds no text"),
        (("--model", "full", "--text", "eng.txt", "--threshold", "0.9"), "threshold 0.9 keeps no token"),
    ],
)
@pytest.mark.usefixtures("texts")
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    model = tiny.model("bert", layers=1)
    saved(tmp_path / "full", model)
    saved(tmp_path / "rows", tiny.model("bert", layers=1, vocab=250))
    model.save_pretrained(tmp_path / "slow")
    (tmp_path / "slow" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    slow = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic"}
    (tmp_path / "slow" / "tokenizer_config.json").write_text(json.dumps(slow))
    (tmp_path / "latin.txt").write_bytes("naïve\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bistil", "trim", *arguments, "--output", "small"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    assert said.err.startswith("bistil: error: ") and said.err.count("\n") == 1 and message in said.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_full_and_trimmed_ids_map_both_ways(texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.model("bert", layers=1))
    trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE, verify=False)
    kept = kept_ids(tmp_path / "small")
    full, small = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path / "small")
    assert kept.dtype == torch.int64
    assert np.all(np.diff(kept.numpy()) > 0)
    assert small.convert_ids_to_tokens(range(len(kept))) == full.convert_ids_to_tokens(kept.tolist())
    with pytest.raises(ArtefactError, match="no trimmed model"):
        kept_ids(folder)


# Classes with more per token than embeddings, and sizes that happen to be the vocabulary's

ROWS = len(tiny.tokenizer("xlm-roberta"))
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": ROWS,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
ONE_LAYER = {**ENCODER, "num_hidden_layers": 1, "pad_token_id": 1}
CLASSES = {
    "MBartForConditionalGeneration": SEQ2SEQ,
    "BartForSequenceClassification": SEQ2SEQ,
    "PegasusForConditionalGeneration": SEQ2SEQ,
    "MarianMTModel": {**SEQ2SEQ, "decoder_vocab_size": ROWS},
    "T5ForConditionalGeneration": {**T5, "num_layers": 1, "decoder_start_token_id": 1},
    "ModernBertForMaskedLM": {**ONE_LAYER, **NAMED, "cls_token_id": 0, "sep_token_id": 2, "tie_word_embeddings": False},
    "DebertaV2ForMaskedLM": {**ONE_LAYER, **DEBERTA, "legacy": False},
    "MobileBertForMaskedLM": {**ONE_LAYER, "embedding_size": 16, "intra_bottleneck_size": 16},
    "AlbertForMaskedLM": {**ONE_LAYER, "embedding_size": 16, **NAMED},
    "ElectraForMaskedLM": {**ONE_LAYER, "embedding_size": 16},
    "FNetForMaskedLM": {**ONE_LAYER, **NAMED},
    "LukeForMaskedLM": {**ONE_LAYER, **NAMED, "entity_vocab_size": ROWS, "entity_emb_size": 16},
    "BertForMaskedLM": {**ONE_LAYER, "max_position_embeddings": ROWS},
    "RobertaForMaskedLM": {**ONE_LAYER, **NAMED, "max_position_embeddings": ROWS},
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_keeps_its_entries_of_kept_tokens(name, texts, tmp_path):
    """Against a plain rule: what has other shapes in the trimmed model is the full one's entries of kept tokens."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(vocab_size=ROWS, **CLASSES[name]))
    full = model.state_dict()
    for key, value in full.items():
        if key.endswith("bias"):
            value.normal_()
    folder = saved(tmp_path / "full", model, "xlm-roberta")
    for verify in (True, False):
        report = trim_vocabulary(folder, texts, tmp_path / f"{verify}", settings=COARSE, verify=verify)
        small, loading = kind.from_pretrained(tmp_path / f"{verify}", output_loading_info=True)
        assert not any(loading.values())
        kept = kept_ids(tmp_path / f"{verify}")
        changed = set()
        for key, value in small.state_dict().items():
            axes = [i for i, (a, b) in enumerate(zip(full[key].shape, value.shape, strict=True)) if a != b]
            assert len(axes) <= 1 and torch.equal(value, full[key].index_select(axes[0], kept) if axes else full[key])
            changed |= {key} if axes else set()
        assert {key for key, _ in model.named_parameters(remove_duplicate=False)} & changed == set(report.parameters)
        assert not any("position" in key or "entity" in key for key in changed)
        assert ("final_logits_bias" in changed) == ("final_logits_bias" in full)
        assert (report.verified is not None) == verify and (report.not_verified is None) == verify
    assert small.config.vocab_size == len(kept)


def test_a_class_that_does_not_load_what_was_cut_is_refused_before_anything_is_written(texts, tmp_path, monkeypatch):
    folder = saved(tmp_path / "full", tiny.masked_lm("bert", layers=1))
    original = trimming.weights.vocabulary_axes
    monkeypatch.setattr(
        trimming.weights, "vocabulary_axes", lambda model: {k: v for k, v in original(model).items() if "bias" not in k}
    )
    with pytest.raises(ArtefactError, match=r"cannot be trimmed: its .*bias would be") as error:
        trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE, verify=False)
    assert "\n" not in str(error.value) and not (tmp_path / "small").exists()


def test_a_fine_tuned_model_gets_its_vocabulary_back_with_the_buffers(texts, tmp_path):
    from bistil.vocabulary.restoring import restore_vocabulary

    model = transformers.MBartForConditionalGeneration(transformers.MBartConfig(vocab_size=ROWS, **SEQ2SEQ))
    model.final_logits_bias.normal_()
    folder = saved(tmp_path / "full", model, "xlm-roberta")
    trim_vocabulary(folder, texts, tmp_path / "small", settings=COARSE)
    kept = kept_ids(tmp_path / "small")
    tuned = transformers.MBartForConditionalGeneration.from_pretrained(tmp_path / "small")
    tuned.final_logits_bias += 1
    tuned.save_pretrained(tmp_path / "tuned")
    restore_vocabulary(tmp_path / "tuned", base=folder, kept=kept, output=tmp_path / "whole")
    whole = transformers.MBartForConditionalGeneration.from_pretrained(tmp_path / "whole")
    expected = model.final_logits_bias.clone()
    expected[:, kept] += 1
    assert torch.equal(whole.final_logits_bias, expected)
    assert torch.equal(whole.model.shared.weight, model.model.shared.weight)


# What is proven, and what is not


def test_nothing_compared_is_not_verified(run, texts, tmp_path):
    folder = saved(tmp_path / "full", tiny.masked_lm("bert", layers=1))
    (tmp_path / "runes.txt").write_text("the ᚠᚢᚦ ᚨᚱᚲ\nᚷᚹᚺ on\n", encoding="utf-8")
    done = run("--model", folder, "--text", tmp_path / "runes.txt", "--output", tmp_path / "a")
    said = " ".join(done.output.split())
    assert done.exit_code == 0, said
    assert "not verified: none of the 2 checked lines" in said and said.count("verified:") == 1
    report = trim_vocabulary(
        folder, {"en": texts["eng"], "runes": [tmp_path / "runes.txt"]}, tmp_path / "b", counts=tmp_path / "counts"
    )
    assert report.verified["unchanged_lines"] == report.corpora["en"].unchanged_lines > 0
    assert report.corpora["runes"].unchanged_lines == 0
    # Counts alone hold no text to compare on.
    counts = list((tmp_path / "counts").iterdir())
    report = trim_vocabulary(folder, {"en": counts}, tmp_path / "c")
    assert report.verified is None and "only counts" in report.not_verified
    assert json.loads((tmp_path / "c" / "trim_report.json").read_text())["verified"] is None


def test_text_that_the_tokenizer_does_not_know_is_named(texts, tmp_path, capsys):
    folder = saved(tmp_path / "full", tiny.masked_lm("bert", layers=1))
    trim_vocabulary(folder, texts, tmp_path / "a", settings=COARSE)
    assert "unknown" not in capsys.readouterr().err
    (tmp_path / "runes.txt").write_text("ᚠᚢᚦ ᚨᚱᚲ the\n", encoding="utf-8")
    trim_vocabulary(folder, {**texts, "run": [tmp_path / "runes.txt"]}, tmp_path / "b", settings=COARSE)
    said = capsys.readouterr().err
    assert "run: 67% of its tokens are unknown" in said and said.count("\n") == 1
    trimming.plan(folder, {"run": [tmp_path / "runes.txt"]})
    assert "67%" in capsys.readouterr().err


def test_trimming_follows_the_file_where_the_class_does_not(texts, tmp_path):
    """Counted, kept and written with the tokenizer of tokenizer.json, which a wrong class would overrule."""
    folder = saved(tmp_path / "full", tiny.masked_lm("xlm-roberta", layers=1), "xlm-roberta")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "BertTokenizer"}))
    report = trim_vocabulary(folder, texts, tmp_path / "small", settings=TrimSettings(threshold=0.0))
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    small, kept = AutoTokenizer.from_pretrained(tmp_path / "small"), kept_ids(tmp_path / "small")
    for line in texts["eng"][0].read_text(encoding="utf-8").splitlines():
        assert kept[torch.tensor(small(line)["input_ids"])].tolist() == file.encode(line).ids
    assert (
        report.verified["unchanged_lines"] == report.corpora["eng"].checked_lines + report.corpora["swa"].checked_lines
    )
