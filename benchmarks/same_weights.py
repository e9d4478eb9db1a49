"""Tiny runs of every stage and task from two versions of the source: are the weights the same after every step?

    python benchmarks/same_weights.py --base COMMIT
    python benchmarks/same_weights.py --base COMMIT --only bert
    python benchmarks/same_weights.py --record    # writes tests/parity/same_losses.json

Recipes and commands are run with the source of COMMIT and with that of the working tree, on one thread each, with the
same inputs. After every optimizer step the digest of all trained parameters and the loss are taken by hooks of torch's
own, and at the end the digest of every weight file; all must be equal, entry by entry. The command line and the recipe
are all that the two versions have to share. The last line is one JSON object.

`--record` runs a few of the cases with the working tree and writes what tests/parity/test_same_losses.py compares with
on any processor: losses after every step, and the structure of the weight files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import models
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerFast

from bistil.measuring.benchmark import machine

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "tests" / "parity" / "same_losses.json"
FAMILIES = ("bert", "xlm-roberta", "deberta-v2", "modernbert")
TASKS = ("token-classification", "sequence-classification", "dependency-parsing", "question-answering")
SUFFIXES = dict(zip(TASKS, ("tags.jsonl", "texts.jsonl", "conllu", "json"), strict=True))
# Run in a process with either version's source: a list of cases, each its folder and its command lines, each case in
# a copy of this process. Per optimizer step the digest of the trained parameters and the last loss are noted.
OBSERVED = """
import hashlib, json, os, sys
import accelerate, datasets, torch, transformers
from torch.optim.optimizer import register_optimizer_step_post_hook
from bistil.cli import main

def watch(log):
    losses, backward = [], torch.Tensor.backward
    def noted(tensor, *args, **kwargs):
        losses.append(float(tensor.detach()))
        return backward(tensor, *args, **kwargs)
    def measures_a_rate(frame):
        named = frame is not None and frame.f_globals["__name__"]
        return bool(named) and (named == "bistil.runs.rates" or measures_a_rate(frame.f_back))
    def note(optimizer, args, kwargs):
        if measures_a_rate(sys._getframe()):
            return
        digests = sorted(
            hashlib.sha256(p.detach().contiguous().numpy().tobytes()).hexdigest()
            for group in optimizer.param_groups for p in group["params"]
        )
        log.write(json.dumps([hashlib.sha256("".join(digests).encode()).hexdigest(), losses[-1]]) + "\\n")
        log.flush()
    torch.Tensor.backward = noted
    register_optimizer_step_post_hook(note)

for output, commands in json.load(open(sys.argv[1])):
    os.makedirs(output)
    if child := os.fork():
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{output} failed")
        continue
    watch(open(f"{output}.steps", "w"))
    for words in commands:
        sys.argv = ["bistil", *words]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    sys.exit()
"""
TRAINING = "batch_size = 4\nlearning_rate = 1e-3\ncheckpoint_steps = 3\nlog_steps = 1\n"
RECIPE = """
teacher = "{inputs}/{family}"
source = "en"
target = "sw"
seed = {seed}
text = {{ en = "{inputs}/en.txt", sw = "{inputs}/sw.txt" }}
[trim]
vocabulary_size = 100
[[students]]
name = "lrf2"
reduction = 2
{other}[phase1]
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
trimmed = {whole}
copied = {whole}
self_taught = {whole}
no_target_text = {whole}
"""
OTHER_STUDENT = """
[[students]]
name = "other"
depth = 2
objective = { attention = 0.0, hidden = 0.5, cosine = 1.0 }
"""
SPARSE = "sparse = { density = 0.1, dense_steps = 2, sparse_steps = 2 }"


@dataclass(frozen=True)
class Seen:
    """What was observed of a case: per optimizer step (digest, loss); per weight file its digest and its structure."""

    steps: list[tuple[str, float]]
    files: dict[str, str]
    structure: dict[str, str]


def main() -> None:
    """Run both versions and compare, or record what the test compares with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--base", help="a commit")
    what.add_argument("--record", action="store_true", help=f"write {RECORDED.relative_to(ROOT)}")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-weights-") as temporary:
        folder = Path(temporary)
        inputs = make_inputs(folder / "inputs")
        if options.record:
            seen = observe(recorded_cases(inputs), ROOT, folder / "here")
            RECORDED.write_text(json.dumps({name: summary(one) for name, one in seen.items()}, indent=1) + "\n")
            return
        cases = {name: commands for name, commands in all_cases(inputs).items() if options.only in name}
        base = folder / "base"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", base, options.base], cwd=ROOT, check=True)
        try:
            before = observe(cases, base, folder / "before")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", base], cwd=ROOT, check=True)
        result = compare(before, observe(cases, ROOT, folder / "after"))
    facts = {"processor": machine()["processor"], "threads": 1}
    print(json.dumps({"base": options.base, **facts, **result}))
    sys.exit(0 if not result["different"] else 1)


def compare(before: Mapping[str, Seen], after: Mapping[str, Seen]) -> dict[str, object]:
    """How many steps and files were compared, and the cases that differ; one line is printed for each case."""
    different: list[str] = []
    for name, ours in after.items():
        theirs = before[name]
        print(f"{name}: {len(ours.steps)} steps, {len(ours.files)} files: {'same' if ours == theirs else 'DIFFERENT'}")
        if ours != theirs:
            files = sorted(one for one in ours.files | theirs.files if ours.files.get(one) != theirs.files.get(one))
            pairs = zip(ours.steps, theirs.steps, strict=False)
            first = next((number for number, pair in enumerate(pairs) if len(set(pair)) > 1), None)
            print(f"  first step that differs: {first} of {len(theirs.steps)}; files: {', '.join(files)}")
            different.append(name)
    return {
        "cases": len(after),
        "steps": sum(len(one.steps) for one in after.values()),
        "weight_files": sum(len(one.files) for one in after.values()),
        "different": different,
    }


def summary(seen: Seen) -> dict[str, object]:
    """What must be the same on every processor: losses (up to rounding) and the structure of the weight files."""
    return {"losses": [round(loss, 7) for _, loss in seen.steps], "files": seen.structure}


def all_cases(inputs: Path) -> dict[str, list[list[str]]]:
    """Name -> command lines: every family, task and stage, sparse and dense, and the commands that no recipe calls.

    How a family computes and what a task compares do not depend on each other: each is met dense and sparse, in pairs.
    """
    cases = {}
    for family, dense, sparse in zip(FAMILIES, TASKS, (*TASKS[1:], TASKS[0]), strict=True):
        for task, how in ((dense, "dense"), (sparse, "sparse")):
            name = f"{family}-{task}-{how}"
            recipe = write_recipe(inputs, name, family, task, sparse=how == "sparse")
            cases[name] = [["run", recipe, "--output", "OUT/run"]]
        cases[f"{family}-language-sfts"] = _with_language_sfts(inputs, family)
        cases[f"{family}-masked-lm"] = [
            _distill(inputs, f"{family}-lm", "--relations", "0.5", "--relation-heads", "4"),
            ["run", _masked_lm_recipe(inputs, family), "--output", "OUT/run"],
        ]
    return cases


def _masked_lm_recipe(inputs: Path, family: str) -> str:
    """A recipe without a task whose students also learn from the teacher's masked-LM head and from the text itself."""
    path = inputs / f"{family}-masked-lm.toml"
    text = path.with_name(f"{family}-whole.toml")
    write_recipe(inputs, text.stem, f"{family}-lm", TASKS[0], sparse=False, whole=False)
    phase1 = text.read_text(encoding="utf-8").partition("[task]")[0]
    objective = "[phase1.objective]\nprediction = 0.5\nhard_labels = 0.5\ncosine = 0.1\n"
    path.write_text(phase1.replace("[phase1.training]", f"{objective}[phase1.training]"), encoding="utf-8")
    return str(path)


def recorded_cases(inputs: Path, *, seed: int = 0) -> dict[str, list[list[str]]]:
    """Each family and each task once, dense and sparse, masked-LM terms and language SFTs: seconds."""
    cases = {}
    for family, task in zip(FAMILIES, TASKS, strict=True):
        name = f"{family}-{task}"
        sparse = family in ("xlm-roberta", "modernbert")
        recipe = write_recipe(inputs, name, family, task, sparse=sparse, whole=False, seed=seed)
        cases[name] = [["run", recipe, "--output", "OUT/run"]]
    masked_lm = ("--relations", "0.5", "--relation-heads", "4", "--seed", str(seed))
    cases["bert-masked-lm"] = [_distill(inputs, "bert-lm", *masked_lm)]
    cases["bert-language-sfts"] = _with_language_sfts(inputs, "bert")
    return cases


def _distill(inputs: Path, teacher: str, *more: str, output: str = "OUT/students") -> list[str]:
    return [
        "distill", "--teacher", f"{inputs}/{teacher}", "--text", f"en={inputs}/en.txt", "--text",
        f"sw={inputs}/sw.txt", "--reduction", "3", "--steps", "3", "--batch-size", "2", "--block-length", "16",
        *more, "--output", output,
    ]  # fmt: skip


def _with_language_sfts(inputs: Path, family: str) -> list[list[str]]:
    """Two languages' SFTs, a teacher that wears them in phase 1, and a task learnt in both languages."""
    worn = [f"{code}=OUT/sfts/{code}" for code in ("en", "sw")]
    adapted = [
        [
            "adapt", "--model", f"{inputs}/{family}", "--language", code, "--text", f"{inputs}/{code}.txt",
            "--steps", "2", "--batch-size", "2", "--block-length", "16", "--output", f"OUT/sfts/{code}",
        ]
        for code in ("en", "sw")
    ]  # fmt: skip
    sfts = [word for one in worn for word in ("--language-sft", one)]
    finetuned = [
        "finetune", "--model", f"{inputs}/{family}", "--task", "token-classification", *sfts,
        "--train", f"en={inputs}/train.tags.jsonl", "--train", f"sw={inputs}/train.sw.tags.jsonl",
        "--dev", f"{inputs}/train.tags.jsonl", "--dense-epochs", "1", "--sparse-epochs", "1", "--density", "0.1",
        "--batch-size", "4", "--learning-rate", "1e-3", "--max-length", "64", "--sft", "OUT/task-sft",
        "--output", "OUT/tagger",
    ]  # fmt: skip
    return [*adapted, _distill(inputs, family, *sfts), finetuned]


def write_recipe(
    inputs: Path, name: str, family: str, task: str, *, sparse: bool, whole: bool = True, seed: int = 0
) -> str:
    """A recipe of the smallest run through every stage; not `whole`: with one student and nothing beside it."""
    path = inputs / f"{name}.toml"
    path.write_text(
        RECIPE.format(
            inputs=inputs,
            family=family,
            task=task,
            seed=seed,
            suffix=SUFFIXES[task],
            finetune=SPARSE if sparse else "sparse = false",
            phase2=SPARSE if sparse else "sparse = false\ntarget_text = 0.5",
            length="" if sparse else "steps = 3\n",
            whole=str(whole).lower(),
            other=OTHER_STUDENT if whole else "",
            training=TRAINING,
        ),
        encoding="utf-8",
    )
    return str(path)


def observe(cases: Mapping[str, list[list[str]]], tree: Path, output: Path) -> dict[str, Seen]:
    """Run cases with the source of a tree, below the folder `output`."""
    output.mkdir(parents=True)
    plan = output / "plan.json"
    plan.write_text(
        json.dumps(
            [
                (str(output / name), [[word.replace("OUT", str(output / name)) for word in line] for line in lines])
                for name, lines in cases.items()
            ]
        )
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "BISTIL_PRECISION": "float32",
    }
    command = [sys.executable, "-c", OBSERVED, str(plan)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed with the source of {tree}:\n{done.stderr[-2000:]}")
    return {name: _seen(output / name) for name in cases}


def _seen(folder: Path) -> Seen:
    steps = [tuple(json.loads(line)) for line in folder.with_name(f"{folder.name}.steps").read_text().splitlines()]
    files = sorted(folder.rglob("*.safetensors"))
    names = {path: path.relative_to(folder).as_posix() for path in files}
    return Seen(
        steps,
        {names[path]: tensors_digest(path) for path in files},
        {names[path]: structure_digest(path) for path in files},
    )


def tensors_digest(path: Path) -> str:
    """SHA-256 over names, formats, shapes and bytes of a file's tensors; its metadata comes in any order."""
    digest = sha256()
    with safe_open(path, framework="pt") as stored:
        for name in sorted(stored.keys()):
            tensor = stored.get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def structure_digest(path: Path) -> str:
    """How many tensors a file has, and a digest of their names and shapes.

    How many entries of a parameter are free in a sparse fine-tuning hangs on the last bit; their names have to do.
    """
    with safe_open(path, framework="pt") as stored:
        lines = [
            name
            if name.startswith(("gaps/", "indices/", "deltas/"))
            else f"{name} {stored.get_slice(name).get_shape()}"
            for name in sorted(stored.keys())
        ]
    return f"{len(lines)} tensors {sha256(','.join(lines).encode()).hexdigest()[:16]}"


def make_inputs(folder: Path) -> Path:
    """Tiny teachers of every family, text of two languages and a labelled file per task; returns the folder."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny  # type: ignore[import-not-found]

    folder.mkdir()
    english, swahili = tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines()
    for family in FAMILIES:
        tokenizer = counted_vocabulary(tiny.tokenizer(family), [*english, *swahili])
        for name, head in ((family, AutoModel), (f"{family}-lm", AutoModelForMaskedLM)):
            tiny.model(family, head=head, vocab=len(tokenizer)).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    (folder / "en.txt").write_text("\n".join(english * 8), encoding="utf-8")
    (folder / "sw.txt").write_text("\n".join(swahili * 8), encoding="utf-8")
    for part, sentences in (("train", english), ("train.sw", swahili), ("test", swahili[:3])):
        for task, text in labelled(sentences).items():
            (folder / f"{part}.{task}").write_text(text, encoding="utf-8")
    return folder


def counted_vocabulary(tokenizer: PreTrainedTokenizerFast, sentences: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer with characters and short words as its vocabulary: trainers of tokenizers break ties by chance."""
    backend = tokenizer.backend_tokenizer
    words = [word for one in sentences for word, _ in backend.pre_tokenizer.pre_tokenize_str(one)]
    special = sorted(tokenizer.all_special_tokens, key=tokenizer.convert_tokens_to_ids)
    letters = sorted(set("".join(words)))
    short = [word for word, _ in sorted(Counter(words).items()) if 1 < len(word) < 8]
    if isinstance(backend.model, models.WordPiece):
        tokens = [*special, *letters, *(f"##{letter}" for letter in letters), *short]
        backend.model = models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token=tokenizer.unk_token)
    else:
        scores = [*((token, 0.0) for token in special), *((token, -5.0) for token in letters)]
        scores += [(token, -6.0) for token in short]
        backend.model = models.Unigram(scores, unk_id=tokenizer.unk_token_id)
    return tokenizer


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
