"""Sparse fine-tunings on real data: what a language SFT, the choice of entries and several sources are worth.

    python benchmarks/sparse_transfer.py --data DATA --output runs/sparse            # all studies
    python benchmarks/sparse_transfer.py --data DATA --output runs/sparse --table

1. language: masked-LM loss with language SFTs of two densities; zero-shot NER when the task is learnt on the bare base
   and the target's SFT is put on afterwards, and when the task is learnt wearing the source's SFT and the target's
   takes its place (`worn`), which is LT-SFT's way.
2. methods: LT-SFT (8%) against all parameters, a random mask of the same size, and biases only. LT-SFT's two phases are
   once as long together as the other methods' training ("lt-sft"), and once its sparse phase is ("lt-sft long").
3. headed: as 1., but from a base that has learnt masked language modelling first, head and all, on four languages that
   the teacher knows or nearly knows; a language SFT starts from that head and is put on beside the task's.
4. sources: English and two African languages as sources against English alone, tested on a third language.

Named entities: English CoNLL-2003 to MasakhaNER (PER, ORG, LOC), teacher e5-small with its vocabulary trimmed to the
languages. Each result is a file of its own in OUTPUT/results: the same command goes on where it stopped. The last line
is one JSON object.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from datasets import concatenate_datasets

from bistil.distillation.task import MixedData, SelfTaught, TaskData, head_parameters, read_task_data
from bistil.models.masked_lm import masked_lm_model, start_at_frequencies
from bistil.models.tokenizers import load_tokenizer
from bistil.pretrained import e5_small_folder
from bistil.runtime.artefacts import read_json, whole_folder, write_json
from bistil.settings.recipe import SparseSettings, TaskSettings, TrainingSettings
from bistil.sparse import SourceBatches, SparseFineTuning, baseline_mask, train_sparse
from bistil.sparse.language import AdaptSettings, MaskedLanguageModelling, adapt
from bistil.sparse.wearing import dressed_copy
from bistil.text.blocks import token_blocks
from bistil.text.schedule import BlockCollator, language_schedule
from bistil.training.loop import train
from bistil.vocabulary import trim_vocabulary

ADAPTED = ("swa", "kin")
THIRD = ("hau", "lug", "pcm")
LANGUAGES = ("eng", *ADAPTED, *THIRD)
LABEL_MAP = {f"{place}-{name}": "O" for place in "BI" for name in ("MISC", "DATE")}
DENSITY = 0.08
# Language SFTs: the paper's density, and one for short training, each with its peak learning rate.
LANGUAGE_SFTS = {0.04: 3e-4, 0.3: 5e-4}
EXAMPLES, BATCH, MAX_LENGTH = 4500, 16, 128
EPOCHS = 2.0
# Peak learning rates, not tuned per method: the same for all but the one with few free entries; all parameters also
# with half of it, and with warm-up, for at the whole of it from the start one seed of three does not learn.
RATES = {
    "lt-sft": 3e-4,
    "lt-sft long": 3e-4,
    "all": 3e-4,
    "all, half rate": 1.5e-4,
    "all, warm-up": 3e-4,
    "random": 3e-4,
    "biases": 3e-3,
}
WARMUP = {"all, warm-up": 0.1}
# A base with a masked-LM head: equally many lines of each language, all parameters free.
HEADED_ON = ("eng", "swa", "hau", "pcm")
HEADED = TrainingSettings(steps=250, batch_size=8, learning_rate=2e-4, warmup_steps=50, checkpoint_steps=50)
HEADED_SFT_STEPS = 150
BLOCK_LENGTH = 256
# A language SFT may be worn in part; its target's dev set chooses the share.
SHARES = (0.25, 0.5, 1.0)


class Studies:
    """The base, the data and the results of all studies."""

    def __init__(self, data: Path, output: Path, *, adapt_steps: int) -> None:
        self.data_folder, self.output, self.adapt_steps = data, output, adapt_steps
        self._read: dict[str, TaskData] = {}

    def base(self) -> Path:
        folder = self.output / "base"
        if not folder.exists():
            texts = {language: [self.data_folder / f"text/{language}.txt"] for language in LANGUAGES}
            trim_vocabulary(e5_small_folder(), texts, folder, verify=False)
        return folder

    def headed(self) -> Path:
        """The base after a spell of masked language modelling with all parameters, with the head it learnt."""
        folder = self.output / "headed"
        if not folder.exists():
            work = self.output / "work/headed"
            model, _ = masked_lm_model(str(self.base()), seed=0)
            tokenizer = load_tokenizer(str(self.base()))
            blocks = {
                language: token_blocks(
                    [self.data_folder / f"text/{language}.txt"], tokenizer, length=BLOCK_LENGTH, cache=work / language
                )
                for language in LANGUAGES
            }
            alike = concatenate_datasets(
                [some.select(range(min(map(len, blocks.values())))) for some in blocks.values()]
            )
            start_at_frequencies(model, alike, np.arange(len(alike)))
            chosen = {language: blocks[language] for language in HEADED_ON}
            rows = {language: np.arange(len(some)) for language, some in chosen.items()}
            assert HEADED.steps is not None
            schedule = language_schedule(chosen, rows, steps=HEADED.steps, batch_size=HEADED.batch_size, seed=0)
            train(
                MaskedLanguageModelling(model), schedule, collate=BlockCollator(tokenizer=tokenizer, mask_tokens=True),
                settings=HEADED, folder=work / "training", seed=0, label="masked language modelling",
            )  # fmt: skip
            with whole_folder(folder) as part:
                model.save_pretrained(part)
                tokenizer.save_pretrained(part)
            shutil.rmtree(work)
        return folder

    def data(self, language: str) -> TaskData:
        """Labelled examples of a language: its train, dev and test sets."""
        if language not in self._read:
            files = {part: str(self.data_folder / f"ner/{language}/{part}.txt") for part in ("train", "dev", "test")}
            settings = TaskSettings(
                kind="token-classification",
                train=[files["train"]],
                dev=[files["dev"]],
                test={"test": [files["test"]]},
                label_map=LABEL_MAP,
            )
            self._read[language] = read_task_data(settings)
        return self._read[language]

    def features(self, language: str, count: int) -> list[dict[str, Any]]:
        """Encoded training examples, so many drawn once for all seeds.

        Sentences of the test set are left out, the short ones too that `read_task_data` lets stand.
        """
        data, english = self.data(language), self.data("eng")
        tests = {data.task.text_of(example) for example in data.test["test"]}
        unseen = [example for example in data.train if data.task.text_of(example) not in tests]
        drawn = np.random.default_rng(0).permutation(len(unseen))[:count]
        examples = [unseen[i] for i in np.sort(drawn)]
        return data.task.encode(examples, load_tokenizer(str(self.base())), MAX_LENGTH, labels=english.labels)

    def once(self, name: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The named result, made if it is not there."""
        file = self.output / "results" / f"{name}.json"
        if not file.exists():
            write_json(file, action())
        record: dict[str, Any] = read_json(file)
        return record

    # Fine-tuning for the task.

    def fit(
        self, method: str, seed: int, sources: Iterable[str] = (), base: Path | None = None
    ) -> tuple[Any, SparseFineTuning | None]:
        """The base (or another one) fine-tuned by a method, and its SFT if it is sparse.

        Several sources share the examples, and each wears its SFT.
        """
        english = self.data("eng")
        tokenizer = load_tokenizer(str(self.base()))
        model = english.task.build_model(base or self.base(), english.labels, seed=seed)
        sft = None
        collate = english.task.collate(tokenizer)
        languages = ["eng", *sources]
        share = EXAMPLES // len(languages)
        parts = {language: self.features(language, share) for language in languages}
        worn = {}
        data: Any = MixedData(parts["eng"], [], ratio=0.0)
        if sources:
            data = SourceBatches(parts, collate)
            collate = data.collate
            worn = {language: self.language_sft(language) for language in sources}
        module = SelfTaught(model)
        name = f"{method}-{'-'.join(languages)}-{seed}" + (f"-{base.name}" if base else "")
        folder = self.output / "work" / name
        how = TrainingSettings(
            epochs=EPOCHS,
            batch_size=BATCH,
            learning_rate=RATES[method],
            checkpoint_steps=100,
            warmup_steps=WARMUP.get(method, 0.0),
        )
        if method.startswith("all"):
            train(module, data, collate=collate, settings=how, folder=folder, seed=seed, label=name)
        else:
            heads = head_parameters(model)
            count = round(DENSITY * sum(p.numel() for n, p in model.named_parameters() if n not in heads))
            mask = None
            if method == "random":
                mask = baseline_mask(model, "random", dense=heads, seed=seed, count=count)
            elif method == "biases":
                mask = baseline_mask(model, "biases", dense=heads)
            sft = train_sparse(
                module, data, model=model, dense_parameters=heads, mask=mask, sources=worn or None,
                settings=SparseSettings(count=count, dense_epochs=EPOCHS / 2,
                                        sparse_epochs=EPOCHS / 2 if method == "lt-sft" else EPOCHS),
                training=how, collate=collate, folder=folder, seed=seed, label=name,
            )  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        return model.eval(), sft

    def score(self, model: Any, language: str, part: str) -> float:
        """Span F1 in percent."""
        english, data = self.data("eng"), self.data(language)
        tokenizer = load_tokenizer(str(self.base()))
        examples = data.dev if part == "dev" else data.test["test"]
        if language == "eng":
            examples = examples[:1000]
        features = data.task.encode(examples, tokenizer, MAX_LENGTH, labels=english.labels)
        return data.task.score(examples, data.task.predict(model, tokenizer, examples, features)).scores["f1"]

    def scores(self, model: Any, languages: Iterable[str]) -> dict[str, float]:
        parts = [("eng", "dev"), *((language, part) for language in languages for part in ("dev", "test"))]
        return {f"{language}/{part}": self.score(model, language, part) for language, part in parts}

    # The studies.

    def _sft_folder(self, name: str, density: float) -> Path:
        return self.output / f"sfts-{density}" / name

    def language_sft(
        self, language: str, *, head_only: bool = False, headed: bool = False, density: float = min(LANGUAGE_SFTS)
    ) -> SparseFineTuning:
        kind = "-head" if head_only else "-headed" if headed else ""
        folder = self._sft_folder(language + kind, density)
        work = self.output / "work" / f"{folder.parent.name}-{folder.name}"
        if not folder.exists():
            adapt(
                str(self.headed() if headed else self.base()),
                [self.data_folder / f"text/{language}.txt"],
                folder,
                language=language,
                settings=AdaptSettings(
                    density=density,
                    steps=HEADED_SFT_STEPS if headed else self.adapt_steps,
                    block_length=BLOCK_LENGTH,
                    held_out=0.02,
                    training=TrainingSettings(
                        steps=1,
                        batch_size=8,
                        learning_rate=LANGUAGE_SFTS[density],
                        checkpoint_steps=50,
                        evaluate_steps=None,
                    ),
                ),
                work=work,
                mask={} if head_only else None,
            )
            shutil.rmtree(work, ignore_errors=True)
        return SparseFineTuning.load(folder)

    def languages(self) -> None:
        """What a language SFT does to the masked-LM loss, against the new head alone."""
        for language in ADAPTED:
            head = self.language_sft(language, head_only=True)
            self.once(f"language/{language}-head", partial(dict, head.provenance.metrics))
            for density in LANGUAGE_SFTS:
                sft = self.language_sft(language, density=density)
                self.once(f"language/{language}-{density}", partial(dict, sft.provenance.metrics))

    def worn(self, density: float, seeds: Iterable[int], languages: Iterable[str] = ADAPTED) -> None:
        """LT-SFT learnt on the base that wears English's SFT; then that SFT stays, or the target's takes its place."""
        for seed in seeds:
            self.once(f"worn/lt-sft long, {density:.0%}-{seed}", partial(self._worn, density, seed, tuple(languages)))

    def _worn(self, density: float, seed: int, languages: tuple[str, ...]) -> dict[str, Any]:
        english = self.language_sft("eng", density=density)
        base = self.output / f"base-eng-{density}"
        if not base.exists():
            dressed_copy(self.base(), self._sft_folder("eng", density), output=base)
        _, task = self.fit("lt-sft long", seed, base=base)
        assert task is not None
        model = self.data("eng").task.build_model(self.base(), self.data("eng").labels, seed=seed)
        found: dict[str, Any] = {"without": {}, "language SFT": {}}
        with task.applied(model):
            with english.applied(model, heads=False):
                found["without"] = self.scores(model, languages)
            for language in languages:
                for share in SHARES[1:]:
                    sft = self.language_sft(language, density=density).scaled(share)
                    rest = english.scaled(1 - share)
                    # Half and half: the source's SFT gives way in part.
                    with sft.applied(model, heads=False), rest.applied(model, heads=False):
                        for part in ("dev", "test"):
                            found["language SFT"][f"{language}/{part} at {share:g}"] = self.score(model, language, part)
        return found

    def _with_and_without(self, method: str, seed: int, *, headed: bool = False) -> dict[str, Any]:
        model, _ = self.fit(method, seed, base=self.headed() if headed else None)
        found: dict[str, Any] = {"without": self.scores(model, (*ADAPTED, *THIRD)), "language SFT": {}}
        for language in ADAPTED:
            whole, dev = self.language_sft(language, headed=headed), {}
            for share in SHARES:
                with whole.scaled(share).applied(model, heads=False):
                    dev[share] = self.score(model, language, "dev")
            best = max(dev, key=lambda share: dev[share])
            with whole.scaled(best).applied(model, heads=False):
                test = self.score(model, language, "test")
            with whole.applied(model, heads=False):
                test_whole = self.score(model, language, "test")
            found["language SFT"] |= {f"{language}/dev at {share:g}": score for share, score in dev.items()}
            found["language SFT"] |= {f"{language}/test at 1": test_whole, f"{language}/test, chosen": test}
        return found

    def methods(self, methods: Iterable[str], seeds: Iterable[int]) -> None:
        """LT-SFT, with and without the target's SFT beside it, and what it is compared with."""
        for seed in seeds:
            for method in methods:
                self.once(f"methods/{method}-{seed}", partial(self._scored, method, seed))

    def _scored(self, method: str, seed: int) -> dict[str, Any]:
        if method.startswith("lt-sft"):
            return self._with_and_without(method, seed)
        return {"without": self.scores(self.fit(method, seed)[0], ADAPTED)}

    def headed_sfts(self, seeds: Iterable[int]) -> None:
        """Language SFTs of the base that has a masked-LM head, beside the task's."""
        for language in ADAPTED:
            sft = self.language_sft(language, headed=True)
            self.once(f"language/{language}-headed", partial(dict, sft.provenance.metrics))
        for seed in seeds:
            self.once(f"headed/lt-sft long-{seed}", partial(self._with_and_without, "lt-sft long", seed, headed=True))

    def sources(self, seeds: Iterable[int]) -> None:
        """Three languages as sources, tested on what none of them is."""
        for seed in seeds:
            self.once(f"sources/{'-'.join(ADAPTED)}-{seed}", partial(self._several_sources, seed))

    def _several_sources(self, seed: int) -> dict[str, Any]:
        return {"without": self.scores(self.fit("lt-sft long", seed, ADAPTED)[0], THIRD)}

    def table(self) -> dict[str, Any]:
        """All results: mean, standard deviation and number of seeds."""
        found: dict[str, dict[str, list[float]]] = {}
        for file in [file for part in ("methods", "worn", "headed", "sources")
                     for file in sorted(self.output.glob(f"results/{part}/*.json"))]:  # fmt: skip
            row = f"{file.parent.name}: {file.stem.rsplit('-', 1)[0]}"
            for dress, scores in read_json(file).items():
                for part, score in scores.items():
                    key = part if dress == "without" else f"{part}, {dress}"
                    found.setdefault(row, {}).setdefault(key, []).append(score)
        for row, parts in found.items():
            print(f"\n{row}")
            for part, values in sorted(parts.items()):
                spread = stdev(values) if len(values) > 1 else 0.0
                print(f"  {part:<28} {mean(values):5.1f} ± {spread:.1f}  ({len(values)} seeds)")
        language = {file.stem: read_json(file) for file in sorted(self.output.glob("results/language/*.json"))}
        for name, metrics in language.items():
            losses = {key: round(value, 3) for key, value in metrics.items() if "loss" in key}
            print(f"\n{name}: {losses}")
        return {"scores": found, "language": language}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, action="append", help="default: 0, 1, 2")
    parser.add_argument(
        "--adapt-steps", type=int, default=100, help="of each phase of a language SFT, 2,048 tokens each"
    )
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    studies = Studies(options.data, options.output, adapt_steps=options.adapt_steps)
    if not options.table:
        seeds = options.seed or [0, 1, 2]
        studies.languages()
        studies.methods(("all", "random", "lt-sft long"), seeds[:2])
        studies.sources(seeds[:2])
        studies.worn(min(LANGUAGE_SFTS), seeds)
        studies.worn(max(LANGUAGE_SFTS), seeds[:1], ADAPTED[1:])
        studies.headed_sfts(seeds)
        studies.methods(("lt-sft", "all", "all, half rate", "all, warm-up", "random", "lt-sft long", "biases"), seeds)
    print(json.dumps(studies.table()))


if __name__ == "__main__":
    main()
