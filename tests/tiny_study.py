"""A study of every system with a tiny teacher, and its data."""

import tiny

# Two steps of everything.
LENGTHS = """
[phase1]
block_length = 16
held_out_blocks = 2
[phase1.training]
steps = 2
batch_size = 4
[finetune]
sparse = false
[finetune.training]
steps = 2
batch_size = 4
[phase2]
target_text = 1.0
sparse = false
[phase2.training]
steps = 2
batch_size = 4
"""
STUDY = """
name = "tiny"
teacher = "teacher"
source = "en"
reductions = [2]
seeds = [0]
dev_examples = 4
reference = "LTSFT"

[[students]]
name = "narrow"
reduction = 3
hidden_size = 16

[task]
kind = "token-classification"
train = ["en.conll"]
dev = ["en.conll"]
max_length = 32

[targets]
sw = { dev = "sw.conll", test = "sw.conll" }
ha = { test = "sw.conll" }

[systems.LTSFT]
kind = "lt-sft"
seeds = [0, 1]

[systems."trim only"]
kind = "trim-only"

[systems.TF]
kind = "bistil"
students = ["lrf2"]

[systems.ST]
kind = "bistil"
teacher = false
students = ["lrf2"]
groups = ["all"]
learning_rates = [1e-3]

[systems.SCRATCH]
kind = "scratch"
students = ["lrf2"]
groups = ["sw"]

[systems.monolingual]
kind = "monolingual"
students = ["lrf2"]
groups = ["sw"]

[systems."DistilmBERT-style"]
kind = "distilmbert"
students = ["lrf2"]

[systems."MiniLMv2-style"]
kind = "minilmv2"
students = ["narrow"]
phase1_objective = { attention = 0, hidden = 0, relations = 1, relation_heads = 4 }

[search]
learning_rates = [1e-3, 5e-3]

[head]
steps = 2
block_length = 16
[head.training]
batch_size = 4

[language]
steps = 2
block_length = 16
density = 0.1
[language.training]
batch_size = 4
"""
STUDY += LENGTHS


def write_study(folder, text=STUDY):
    """The study with its teacher, text and labelled files; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.model("bert", layers=6).save_pretrained(folder / "teacher")
    tiny.tokenizer("bert").save_pretrained(folder / "teacher")
    (folder / "text").mkdir()
    for language, lines in (("en", tiny.ENGLISH), ("sw", tiny.SWAHILI), ("ha", tiny.SWAHILI)):
        (folder / f"text/{language}.txt").write_text(lines * 3)
        sentences = [
            "\n".join(f"{word} {'B-PER' if word[0].isupper() else 'O'}" for word in line.split())
            for line in lines.splitlines()
        ]
        (folder / f"{language}.conll").write_text("\n\n".join(sentences) + "\n")
    file = folder / "study.toml"
    file.write_text(text)
    return file
