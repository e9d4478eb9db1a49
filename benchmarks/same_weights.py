"""Tiny runs of every stage and task from two versions of the source: are the weights the same after every step?

    python benchmarks/same_weights.py --base COMMIT
    python benchmarks/same_weights.py --base COMMIT --only bert

Recipes and commands are run with the source of COMMIT and with that of the working tree, on one thread each, with the
same inputs. After every optimizer step the digest of all trained parameters is taken by a hook of torch's own, and at
the end that of every weight file; both lists must be equal, entry by entry. The command line and the recipe are all
that the two versions have to share. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("bert", "xlm-roberta", "deberta-v2", "modernbert")
TASKS = ("token-classification", "sequence-classification", "dependency-parsing", "question-answering")
SUFFIXES = dict(zip(TASKS, ("tags.jsonl", "texts.jsonl", "conllu", "json"), strict=True))
# Run in a process of its own with either version's source: notes the digest of the trained parameters after each step.
OBSERVED = """
import hashlib, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
log = open(sys.argv.pop(1), "w")
def note(optimizer, args, kwargs):
    digests = sorted(
        hashlib.sha256(p.detach().contiguous().numpy().tobytes()).hexdigest()
        for group in optimizer.param_groups for p in group["params"]
    )
    log.write(hashlib.sha256("".join(digests).encode()).hexdigest() + "\\n")
    log.flush()
register_optimizer_step_post_hook(note)
from bistil.cli import main
main()
"""
TRAINING = "batch_size = 4\nlearning_rate = 1e-3\ncheckpoint_steps = 3\nlog_steps = 1\n"
RECIPE = """
teacher = "{inputs}/{family}"
source = "en"
target = "sw"
text = {{ en = "{inputs}/en.txt", sw = "{inputs}/sw.txt" }}
[trim]
vocabulary_size = 200
[[students]]
name = "lrf2"
reduction = 2
[[students]]
name = "other"
depth = 3
objective = {{ attention = 0.0, hidden = 0.5, cosine = 1.0 }}
[phase1]
block_length = 16
held_out_blocks = 2
[phase1.training]
steps = 4
evaluate_steps = 2
{training}
[task]
kind = "{task}"
train = "{inputs}/train.{suffix}"
dev = "{inputs}/train.{suffix}"
test = {{ sw = "{inputs}/test.{suffix}" }}
max_length = 64
[finetune]
{finetune}
[finetune.training]
{length}{training}
[phase2]
{phase2}
[phase2.training]
{length}{training}
[compare]
copied = true
self_taught = true
"""
SPARSE = "sparse = { density = 0.1, dense_steps = 2, sparse_steps = 2 }"


def main() -> None:
    """Run both versions and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="a commit")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-weights-") as temporary:
        folder = Path(temporary)
        inputs = folder / "inputs"
        make_inputs(inputs)
        base = folder / "base"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", base, options.base], cwd=ROOT, check=True)
        try:
            result = compare({"base": base, "here": ROOT}, inputs, folder, only=options.only)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", base], cwd=ROOT, check=True)
    print(json.dumps({"base": options.base, **result}))
    sys.exit(0 if not result["different"] else 1)


def compare(trees: dict[str, Path], inputs: Path, folder: Path, *, only: str) -> dict[str, object]:
    """Run each case with each tree; returns how many steps and files were compared, and the cases that differ."""
    steps = files = 0
    different: list[str] = []
    cases = {name: words for name, words in all_cases(inputs).items() if only in name}
    for name, words in cases.items():
        seen = {side: observe(words, tree, folder / side / name) for side, tree in trees.items()}
        (our_steps, our_files), (their_steps, their_files) = seen["here"], seen["base"]
        same = our_steps == their_steps and our_files == their_files
        steps, files = steps + len(our_steps), files + len(our_files)
        print(f"{name}: {len(our_steps)} steps, {len(our_files)} weight files: {'same' if same else 'DIFFERENT'}")
        if not same:
            unlike = sorted(file for file in our_files | their_files if our_files.get(file) != their_files.get(file))
            first = next(
                (i for i, pair in enumerate(zip(our_steps, their_steps, strict=False)) if len(set(pair)) > 1), None
            )
            print(f"  first step that differs: {first} of {len(their_steps)}; files: {', '.join(unlike)}")
            different.append(name)
    return {"cases": len(cases), "steps": steps, "weight_files": files, "different": different}


def all_cases(inputs: Path) -> dict[str, list[str]]:
    """Name -> words of the command line; every family with one task, and one family with every task."""
    cases = {}
    for number, family in enumerate(FAMILIES):
        for task in TASKS if family == "bert" else TASKS[number : number + 1]:
            for sparse in (False, True):
                name = f"{family}-{task}-{'sparse' if sparse else 'dense'}"
                cases[name] = ["run", str(write_recipe(inputs, name, family, task, sparse=sparse)), "--output", "OUT"]
    for family in FAMILIES:
        cases[f"{family}-adapt"] = [
            "adapt", "--model", f"{inputs}/{family}", "--language", "sw", "--text", f"{inputs}/sw.txt",
            "--steps", "2", "--batch-size", "2", "--block-length", "16", "--output", "OUT",
        ]  # fmt: skip
        cases[f"{family}-distill-masked-lm"] = [
            "distill", "--teacher", f"{inputs}/{family}-lm", "--text", f"en={inputs}/en.txt", "--text",
            f"sw={inputs}/sw.txt", "--reduction", "3", "--steps", "3", "--batch-size", "2", "--block-length", "16",
            "--relations", "0.5", "--relation-heads", "4", "--output", "OUT",
        ]  # fmt: skip
    return cases


def write_recipe(inputs: Path, name: str, family: str, task: str, *, sparse: bool) -> Path:
    """A recipe of the smallest run that passes through every stage."""
    path = inputs / f"{name}.toml"
    path.write_text(
        RECIPE.format(
            inputs=inputs,
            family=family,
            task=task,
            suffix=SUFFIXES[task],
            finetune=SPARSE if sparse else "sparse = false",
            phase2=SPARSE if sparse else "sparse = false\ntarget_text = 0.5",
            length="" if sparse else "steps = 3\n",
            training=TRAINING,
        ),
        encoding="utf-8",
    )
    return path


def observe(words: list[str], tree: Path, output: Path) -> tuple[list[str], dict[str, str]]:
    """Digests after every step, and per weight file below the output."""
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_suffix(".steps")
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", OBSERVED, str(log), *(str(output) if word == "OUT" else word for word in words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed with the source of {tree}:\n{done.stderr[-2000:]}")
    files = {path.relative_to(output).as_posix(): tensors_digest(path) for path in output.rglob("*.safetensors")}
    return log.read_text().splitlines(), files


def tensors_digest(path: Path) -> str:
    """SHA-256 over names, formats, shapes and bytes of a file's tensors; its metadata comes in any order."""
    digest = sha256()
    with safe_open(path, framework="pt") as stored:
        for name in sorted(stored.keys()):
            tensor = stored.get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_inputs(folder: Path) -> None:
    """Tiny teachers of every family, text of two languages and a labelled file per task."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny  # type: ignore[import-not-found]

    folder.mkdir()
    for family in FAMILIES:
        for name, model in ((family, tiny.model(family)), (f"{family}-lm", tiny.masked_lm(family))):
            model.save_pretrained(folder / name)
            tiny.tokenizer(family).save_pretrained(folder / name)
    english, swahili = tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines()
    (folder / "en.txt").write_text("\n".join(english * 8), encoding="utf-8")
    (folder / "sw.txt").write_text("\n".join(swahili * 8), encoding="utf-8")
    for part, sentences in (("train", english), ("test", swahili[:3])):
        for task, text in labelled(sentences).items():
            (folder / f"{part}.{task}").write_text(text, encoding="utf-8")


def labelled(sentences: list[str]) -> dict[str, str]:
    """Per task's file suffix, the sentences with labels that anything can learn."""
    tags = [{"tokens": s.split(), "labels": ["B-X" if w[0].isupper() else "O" for w in s.split()]} for s in sentences]
    texts = [{"text": sentence, "label": str(len(sentence) % 2)} for sentence in sentences]
    trees = [
        "".join(
            f"{i}\t{word}\t_\tX\t_\t_\t{i - 1}\t{'root' if i == 1 else 'dep'}\t_\t_\n"
            for i, word in enumerate(sentence.split(), 1)
        )
        for sentence in sentences
    ]
    paragraphs = []
    for number, sentence in enumerate(sentences):
        word = sentence.split()[1]
        answers = [{"text": word, "answer_start": sentence.index(word)}]
        paragraphs.append({"context": sentence, "qas": [{"id": str(number), "question": "Who?", "answers": answers}]})
    return {
        SUFFIXES["token-classification"]: "\n".join(map(json.dumps, tags)),
        SUFFIXES["sequence-classification"]: "\n".join(map(json.dumps, texts)),
        SUFFIXES["dependency-parsing"]: "\n".join(trees) + "\n",
        SUFFIXES["question-answering"]: json.dumps({"data": [{"paragraphs": paragraphs}]}),
    }


if __name__ == "__main__":
    main()
