"""A recipe of a whole run on a tiny teacher, and the files that it names."""

import json
from pathlib import Path

import tiny

RECIPE = """
name = "tiny"
teacher = "teacher"
source = "en"
target = "sw"

[text]
en = "en.txt"
sw = "sw.txt"

[[students]]
name = "lrf2"
reduction = 2

[[students]]
name = "lrf3"
reduction = 3

[phase1]
block_length = 16

[phase1.training]
steps = 12
batch_size = 4
learning_rate = 1e-3
evaluate_steps = 6
checkpoint_steps = 4

[task]
kind = "sequence-classification"
train = "train.jsonl"
dev = "dev.jsonl"
test = { en = "test.en.jsonl", sw = "test.sw.jsonl" }
max_length = 32

[finetune.sparse]
dense_epochs = 3
sparse_epochs = 3

[finetune.training]
batch_size = 4
learning_rate = 5e-3
checkpoint_steps = 4

[phase2]
target_text = 0.5

[phase2.sparse]
dense_epochs = 2
sparse_epochs = 2

[phase2.training]
batch_size = 4
learning_rate = 5e-3
checkpoint_steps = 4

[compare]
no_target_text = true
"""

# A run of two steps each, without a set to choose or to score by.
_TWO_STEPS = "steps = 2\nbatch_size = 4\ncheckpoint_steps = 2\nlearning_rate = 1e-2\n"
SHORT_RECIPE = f"""
name = "tiny"
teacher = "teacher"
source = "en"
target = "sw"
text = {{ en = "en.txt", sw = "sw.txt" }}

[phase1]
block_length = 16
[phase1.training]
{_TWO_STEPS}
[task]
kind = "sequence-classification"
train = "train.jsonl"
max_length = 32

[finetune]
sparse = false
[finetune.training]
{_TWO_STEPS}
[phase2]
sparse = false
[phase2.training]
{_TWO_STEPS}
[compare]
copied = false
majority = false
"""


def labelled(lines: list[str]) -> str:
    """A task that tiny models can learn: is there an animal or a thing that moves?"""
    return "".join(json.dumps({"text": text, "label": f"even{i % 2}"}) + "\n" for i, text in enumerate(lines))


def write_recipe(folder: Path) -> None:
    """Write recipe.toml and everything that it reads into a folder."""
    teacher = tiny.model("bert", layers=6, initializer_range=0.2)
    teacher.save_pretrained(folder / "teacher")
    tiny.tokenizer("bert").save_pretrained(folder / "teacher")
    english, swahili = tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines()
    (folder / "en.txt").write_text("\n".join(english * 6) + "\n")
    (folder / "sw.txt").write_text("\n".join(swahili * 6) + "\n")
    (folder / "train.jsonl").write_text(labelled(english[:8]))
    (folder / "dev.jsonl").write_text(labelled(english[6:8]))
    (folder / "test.en.jsonl").write_text(labelled(english[8:]))
    (folder / "test.sw.jsonl").write_text(labelled(swahili[:4]))
    (folder / "recipe.toml").write_text(RECIPE)
