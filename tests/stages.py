"""Every module imported and a tiny trim, phase 1 and fine-tuning by functions, for tests in processes of their own."""

from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import tiny


def import_all() -> list[str]:
    """Import every module of the package; returns their names."""
    import bistil

    names = [module.name for module in walk_packages(bistil.__path__, "bistil.") if module.name != "bistil.__main__"]
    for name in names:
        import_module(name)
    return names


def run_stages(folder: Path, *, processes: int = 1) -> None:
    """Trim a tiny teacher, distil a student and fine-tune it, in an empty folder.

    Args:
        processes: that tokenize a text, beside.
    """
    from fitting import fit

    from bistil import distill_general, trim_vocabulary
    from bistil.distillation.task import read_task_data
    from bistil.models.tokenizers import load_tokenizer
    from bistil.runtime.insides import transformers_bars
    from bistil.settings.recipe import (
        FinetuneSettings,
        Phase1Settings,
        StudentSettings,
        TaskSettings,
        TrainingSettings,
        TrimSettings,
    )
    from bistil.text import blocks

    texts = {"en": [folder / "en.txt"], "sw": [folder / "sw.txt"]}
    texts["en"][0].write_text(tiny.ENGLISH, encoding="utf-8")
    texts["sw"][0].write_text(tiny.SWAHILI, encoding="utf-8")
    with transformers_bars(False):
        tiny.masked_lm("bert", layers=2).save_pretrained(folder / "base")
    tiny.tokenizer("bert").save_pretrained(folder / "base")
    trim_vocabulary(folder / "base", texts, folder / "trimmed", settings=TrimSettings(vocabulary_size=200))
    if processes > 1:
        blocks._LINES_PER_PROCESS = 5
        tokenizer = load_tokenizer(str(folder / "trimmed"))
        blocks.token_blocks(texts["en"], tokenizer, length=16, cache=folder / "blocks", processes=processes)
        blocks._LINES_PER_PROCESS = 20_000
    training = TrainingSettings(steps=2, batch_size=2, checkpoint_steps=1, log_steps=1, learning_rate=1e-3)
    distill_general(
        folder / "trimmed", [StudentSettings(name="lrf2", reduction=2)], texts, folder / "students",
        settings=Phase1Settings(block_length=16, training=training), seed=0, work=folder / "work",
    )  # fmt: skip
    (folder / "train.jsonl").write_text(
        '{"text": "Rain fell.", "label": "a"}\n{"text": "We sang.", "label": "b"}\n' * 4
    )
    (folder / "dev.jsonl").write_text('{"text": "It rained.", "label": "a"}\n{"text": "They sang.", "label": "b"}\n')
    files = {name: [str(folder / f"{name}.jsonl")] for name in ("train", "dev")}
    data = read_task_data(TaskSettings(kind="sequence-classification", **files, test={}))
    fit(
        folder / "students" / "lrf2", data, folder / "tuned",
        settings=FinetuneSettings(training=training, sparse=None), max_length=32, work=folder / "fit", label="fit",
    )  # fmt: skip
