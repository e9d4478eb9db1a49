"""Model cards are read back by the hub's own parser."""

import ast

import pytest
from huggingface_hub import ModelCard

from bistil.models.cards import write_model_card


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
