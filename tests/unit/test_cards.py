"""Model cards are read back by the hub's own parser."""

import ast
import json

import pytest
import tiny
from huggingface_hub import ModelCard
from transformers import AutoModel

from bistil.models.cards import add_to_card, card_metadata, language_codes, write_model_card
from bistil.models.writing import write_model
from bistil.report.cards import write_measured
from bistil.report.schema import summary_from
from bistil.sparse.wearing import dressed_copy, write_worn
from bistil.vocabulary import trim_vocabulary


def test_card_is_read_back_by_the_hub(tmp_path):
    path = write_model_card(
        tmp_path,
        title="Topics in Italian",
        summary="A small model: “Sì”, with a | in it.",
        languages=["en", "it", "en"],
        base_model="intfloat/multilingual-e5-small",
        pipeline_tag="text-classification",
        license="mit",
        tags=["zero-shot-transfer"],
        made=["layers 2, 4 and 6\nof 12", "600 steps"],
        metrics={"accuracy | it": 0.64123, "parameters": 17_300_000, "interval": "60 to 68"},
    )
    assert path == tmp_path / "README.md"
    card = ModelCard.load(path)
    expected = {
        "language": ["en", "it"],
        "library_name": "transformers",
        "base_model": "intfloat/multilingual-e5-small",
        "pipeline_tag": "text-classification",
        "license": "mit",
        "tags": ["bistil", "zero-shot-transfer"],
    }
    assert card.data.to_dict() == expected
    for line in (
        "# Topics in Italian",
        "- layers 2, 4 and 6 of 12",
        r"| accuracy \| it | 0.6412 |",
        "| parameters | 17,300,000 |",
        "| interval | 60 to 68 |",
    ):
        assert line in card.text.splitlines()
    ast.parse(card.text.split("```python")[1].split("```")[0])


@pytest.mark.parametrize("base", [None, "/home/someone/model", "./model", "runs/demo/lrf2", "e5-small", "local/model"])
def test_a_local_base_model_is_not_published(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "model").mkdir(parents=True)
    path = write_model_card(tmp_path, title="m", summary="s", languages=["sw"], base_model=base)
    assert ModelCard.load(path).data.base_model is None
    assert "AutoModel.from_pretrained" in path.read_text(encoding="utf-8")
    assert "license" not in path.read_text(encoding="utf-8")


def test_languages_are_codes():
    assert language_codes(["en", "pt-BR", "zh_Hant", "swa", "Swahili", " EN ", "", "multilingual", "x1"]) == [
        "en", "pt", "zh", "swa",
    ]  # fmt: skip


CARD = """---
license: cc-by-4.0
language: [en, sw]
base_model: owner/base
pipeline_tag: token-classification
---
# m
"""


def saved(folder, card=None):
    tiny.save(tiny.model("bert", layers=1), folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def test_what_a_model_was_made_from_says_licence_and_base(tmp_path):
    parent = saved(tmp_path / "parent", CARD)
    known = {"license": "cc-by-4.0", "language": ["en", "sw"], "base_model": "owner/base"}
    assert card_metadata(parent) == known | {"pipeline_tag": "token-classification"}
    record = {
        "parents": {"teacher": {"name": "/home/me/t", "digest": "ab" * 32}, "none": None},
        "inputs": {"en": ["c" * 64]},
    }
    model, tokenizer = tiny.model("bert", layers=1), tiny.tokenizer("bert")
    write_model(
        tmp_path / "m", model, tokenizer, record=record, title="m", summary="s", languages=[], parent=parent
    )  # fmt: skip
    card = ModelCard.load(tmp_path / "m/README.md")
    assert {key: card.data.to_dict()[key] for key in known} == known
    assert f"| teacher: t | `{'ab' * 32}` |" in card.text and f"| en | `{'c' * 64}` |" in card.text
    size = sum(one.stat().st_size for one in (tmp_path / "m").iterdir() if one.name not in ("README.md", "bistil.json"))
    assert f"| bytes | {size:,} |" in card.text and f"| parameters | {model.num_parameters():,} |" in card.text
    assert "Licence: cc-by-4.0, as of the model that it was made from" in card.text and "unknown" not in card.text
    assert "It is meant for text in en, sw;" in card.text and "It has no head for a task" in card.text


@pytest.mark.parametrize("card", [None, "no metadata", "---\nlicense: [a, b]\nlanguage: 3\n---\n", "---\n: [\n---\n"])
def test_a_licence_that_is_not_known_is_said_so(card, tmp_path):
    parent = saved(tmp_path / "parent", card)
    path = write_model_card(tmp_path, title="m", summary="s", languages=["sw"], parent=parent)
    assert ModelCard.load(path).data.license is None
    assert "**The licence is unknown**" in path.read_text(encoding="utf-8")


def test_every_way_to_a_model_leaves_a_card(tmp_path):
    """A trimmed model, one that wears an SFT, and a merged one."""
    from test_sparse_artefact import random_sft

    base = saved(tmp_path / "base", CARD)
    (tmp_path / "en.txt").write_text(tiny.ENGLISH)
    trim_vocabulary(base, {"en": [tmp_path / "en.txt"]}, tmp_path / "trimmed")
    model = AutoModel.from_pretrained(base)
    sft = random_sft(model, seed=1)
    sft.provenance.kind = "language"
    sft.save(tmp_path / "sft")
    dressed_copy(base, tmp_path / "sft", output=tmp_path / "worn")
    write_worn(tmp_path / "merged", model, base, kind="merged model", summary="s", made=["sft: `sft`"])
    for name in ("trimmed", "worn", "merged"):
        card = ModelCard.load(tmp_path / name / "README.md")
        assert (card.data.license, card.data.base_model) == ("cc-by-4.0", "owner/base")
        assert card.data.language == (["en"] if name == "trimmed" else ["en", "sw"])
        assert "| bytes | " in card.text and str(tmp_path) not in card.text
        record = json.loads((tmp_path / name / "bistil.json").read_text())
        assert "README.md" not in record["files"] and "model.safetensors" in record["files"]


def test_a_run_puts_its_figures_into_the_cards_once(tmp_path):
    from test_report import SUMMARY

    for name in ("students/lrf2", "trimmed"):
        (tmp_path / name).mkdir(parents=True)
        write_model_card(tmp_path / name, title=name, summary="s", languages=["sw"])
    path = tmp_path / "students/lrf2/README.md"
    path.write_text(path.read_text() + "\nWhat somebody added.\n")
    for _ in range(2):
        write_measured(summary_from(SUMMARY), tmp_path, (tmp_path / "trimmed", tmp_path / "nothing"))
    card = path.read_text()
    assert card.count("## Scores and speed") == card.count("## Data of the run") == card.count("## Use and limits") == 1
    assert card.index("## Scores and speed") < card.index("## Use and limits")
    assert "target language it | 68.5" in card and "What somebody added." in card
    assert (
        "| gap to the teacher on the target, points | -1.5" in card
        and "| times as fast as the teacher | 2.00x |" in card
    )
    assert f"| text en | 4,419 | {'ab' * 32} |" in card
    trimmed = (tmp_path / "trimmed/README.md").read_text()
    assert "## Data of the run" in trimmed and "## Scores" not in trimmed
    assert not (tmp_path / "students/lrf3").exists()
    add_to_card(tmp_path / "trimmed", "## Other")
    assert "## Data of the run" not in (tmp_path / "trimmed/README.md").read_text()
