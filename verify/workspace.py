"""One small sound thing of every kind that bistil reads, in one folder, made in seconds and offline."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

ROWS = {
    "token-classification": "\n\n".join("Anna B-PER\nsings O\nin O\nNairobi B-LOC" for _ in range(6)) + "\n",
    "dependency-parsing": "\n".join(
        "1\tWe\t_\tPRON\t_\t_\t2\tnsubj\t_\t_\n2\tsing\t_\tVERB\t_\t_\t0\troot\t_\t_\n" for _ in range(6)
    ),
}
TEXTS = [{"text": f"We sang {i} songs.", "label": "ab"[i % 2]} for i in range(12)]
TAGGED = [{"tokens": ["Anna", "sings"], "labels": ["B-PER", "O"]} for _ in range(6)]
SEVERAL = [{"text": f"We sang {i} songs.", "labels": ["a", "b"][: i % 3]} for i in range(12)]
PASSAGE = "We cooked rice and beans for twelve guests."
SQUAD = {
    "data": [
        {
            "title": "",
            "paragraphs": [
                {
                    "context": PASSAGE,
                    "qas": [
                        {"id": f"q{i}", "question": "What?", "answers": [{"text": "rice", "answer_start": 10}]}
                        for i in range(6)
                    ],
                }
            ],
        }
    ]
}
RECIPE = """
name = "tiny"
teacher = "m"
source = "en"
target = "sw"
seed = 0

[text]
en = ["en.txt"]
sw = ["sw.txt"]

[trim]
vocabulary_size = 200

[[students]]
name = "lrf2"
reduction = 2

[phase1]
block_length = 16
held_out = 0.2

[phase1.training]
steps = 2
batch_size = 2
evaluate_steps = 2
checkpoint_steps = 1
"""
TASK = """
[task]
kind = "sequence-classification"
train = ["c.jsonl"]
dev = ["dev.jsonl"]
test = {sw = ["test.jsonl"]}
max_length = 32
"""
TASK_RECIPE = (
    TASK
    + """
[finetune]
sparse = false
training = {steps = 1, batch_size = 2}

[phase2]
sparse = false
target_text = 0
training = {steps = 1, batch_size = 2}
"""
)
HEADS = {
    "t": ("AutoModelForTokenClassification", ["O", "B-PER", "I-PER", "B-LOC"]),
    "c": ("AutoModelForSequenceClassification", ["a", "b"]),
    "q": ("AutoModelForQuestionAnswering", None),
}


def make(folder: Path) -> None:
    """Models (m: masked LM, t, c, q: tasks, u: of transformers alone), an SFT (s), a published one (l), a SHiRA adapter
    (a), token counts, texts and labelled files of every form, a recipe."""
    import tiny
    import torch
    import transformers

    from bistil.models.families import family_of
    from bistil.models.loading import load_model
    from bistil.runtime.insides import transformers_bars
    from bistil.sparse import Provenance, SparseDelta, SparseFineTuning, write_legacy, write_shira
    from bistil.sparse.legacy import LEGACY_FILE
    from bistil.vocabulary.counting import count_file
    from bistil.vocabulary.tokenizer_state import read_vocabulary

    texts(folder)
    with transformers_bars(False):
        tiny.save(tiny.masked_lm("bert", layers=2), folder / "m")
        tiny.save(tiny.masked_lm("xlm-roberta", layers=2), folder / "x", "xlm-roberta")
        for name, (head, labels) in HEADS.items():
            named: dict[str, Any] = {"id2label": dict(enumerate(labels))} if labels else {}
            tiny.save(tiny.model("bert", head=getattr(transformers, head), layers=2, **named), folder / name)
        for kind, name in (("gpt2", "GPT2Config"), ("t5", "T5Config")):
            config = getattr(transformers, name)(
                vocab_size=300,
                n_embd=32,
                n_layer=2,
                n_head=2,
                d_model=32,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_heads=2,
                bos_token_id=2,
                eos_token_id=3,
                pad_token_id=0,
                decoder_start_token_id=0,
            )
            transformers.AutoModel.from_config(config).save_pretrained(folder / kind)
            tiny.tokenizer().save_pretrained(folder / kind)
    model = load_model(folder / "m")[0]
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert family_of(model)
    delta = SparseDelta(torch.tensor([3, 40]), torch.tensor([0.5, -1.0]), tuple(model.get_parameter(name).shape))
    sft = SparseFineTuning({name: delta}, {}, Provenance(kind="language"))
    sft.save(folder / "s")
    (folder / "s" / "bistil.json").unlink()
    (folder / "l").mkdir()
    write_legacy(sft, folder / "l" / LEGACY_FILE)
    write_shira(sft, model, folder / "a")
    (folder / "a" / "bistil.json").unlink()
    vocabulary = read_vocabulary(json.loads(tiny.tokenizer().backend_tokenizer.to_str()))
    for language in ("en", "sw"):
        count_file(vocabulary, folder / f"{language}.txt").save(folder / f"{language}.counts")


def texts(folder: Path) -> None:
    """Texts and labelled files."""
    import tiny

    for name, text in (("en", tiny.ENGLISH), ("sw", tiny.SWAHILI)):
        (folder / f"{name}.txt").write_text("\n".join([text] * 4) + "\n", encoding="utf-8")
    (folder / "ner.conll").write_text(ROWS["token-classification"])
    (folder / "ud.conllu").write_text(ROWS["dependency-parsing"])
    (folder / "squad.json").write_text(json.dumps(SQUAD))
    others = {name: [row | {"text": row["text"].replace("songs", name)} for row in TEXTS] for name in ("dev", "test")}
    for name, rows in {"c": TEXTS, "t": TAGGED, "multi": SEVERAL, **others}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "c.json").write_text(json.dumps(TEXTS))
    for name, between in (("c.tsv", "\t"), ("c.csv", ",")):
        lines = [f"text{between}label", *(between.join(row.values()) for row in TEXTS)]
        (folder / name).write_text("\n".join(lines) + "\n")
    for name in ("c.jsonl", "ner.conll", "ud.conllu", "squad.json", "c.csv", "en.txt"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), mtime=0))
    (folder / "r.toml").write_text(RECIPE)
    (folder / "rt.toml").write_text(RECIPE + TASK_RECIPE)
