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
languages. Everything is a stage of `bistil.runs`: the same command goes on where it stopped. The last line is one JSON
object.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

import numpy as np
from datasets import concatenate_datasets

from bistil.distillation.task import SelfTaught, head_parameters
from bistil.distillation.task_data import MixedData, TaskData
from bistil.models import load_tokenizer
from bistil.models.masked_lm import masked_lm_model, start_at_frequencies
from bistil.pretrained import e5_small_folder
from bistil.runs.data import Labelled, Sfts, Texts
from bistil.runs.folder import Name, RunFolder
from bistil.runs.inputs import labelled_digests, text_files
from bistil.runs.stage import File, Nothing, Place, Product, Stage
from bistil.runs.stages import Adapt, Dressed, Trim
from bistil.runtime.artefacts import whole_folder
from bistil.settings.recipe import AdaptSettings, SparseSettings, TaskSettings, TrainingSettings, TrimSettings
from bistil.sparse import SourceBatches, SparseFineTuning, baseline_mask, train_sparse
from bistil.sparse.language import MaskedLanguageModelling
from bistil.text.blocks import token_blocks
from bistil.text.schedule import BlockCollator, language_schedule
from bistil.training.loop import train

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


@dataclass(frozen=True, kw_only=True)
class Headed(Stage[Nothing]):
    """A base after a spell of masked language modelling with all parameters, with the head it learnt."""

    KIND: ClassVar[str] = "headed"
    PARTS: ClassVar[tuple[str, ...]] = ("model",)

    base: Product
    texts: Texts
    learnt_on: tuple[str, ...]
    settings: TrainingSettings
    block_length: int

    def make(self, place: Place) -> Nothing:
        folder = str(place.path(self.base))
        model, _ = masked_lm_model(folder, seed=0)
        tokenizer = load_tokenizer(folder)
        blocks = {
            language: token_blocks(
                [file.path for file in files], tokenizer, length=self.block_length, cache=place.work / language
            )
            for language, files in self.texts.items()
        }
        alike = concatenate_datasets([some.select(range(min(map(len, blocks.values())))) for some in blocks.values()])
        start_at_frequencies(model, alike, np.arange(len(alike)))
        chosen = {language: blocks[language] for language in self.learnt_on}
        rows = {language: np.arange(len(some)) for language, some in chosen.items()}
        assert self.settings.steps is not None
        schedule = language_schedule(
            chosen, rows, steps=self.settings.steps, batch_size=self.settings.batch_size, seed=0
        )
        train(
            MaskedLanguageModelling(model), schedule, collate=BlockCollator(tokenizer=tokenizer, mask_tokens=True),
            settings=self.settings, folder=place.work / "training", seed=0, label=place.label,
        )  # fmt: skip
        with whole_folder(place.output("model"), record={"kind": "masked language model"}) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        return Nothing()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The base (or another one) fine-tuned by a method; several sources share the examples, and each wears its SFT."""

    tokens: Product
    """The model whose tokenizer reads the examples."""
    start: Product | Dressed
    labelled: Mapping[str, Labelled]
    method: str
    seed: int
    sources: Sfts = field(default_factory=dict)
    examples: int = EXAMPLES
    epochs: float = EPOCHS
    rate: float
    warmup: float = 0.0

    def data(self, place: Place, language: str) -> TaskData:
        return self.labelled[language].everything(place)

    def build(self, place: Place, folder: Path) -> Any:
        english = self.data(place, "eng")
        return english.task.build_model(folder, english.labels, seed=self.seed)

    def features(self, place: Place, language: str, count: int) -> list[dict[str, Any]]:
        """Encoded training examples, so many drawn once for all seeds.

        Sentences of the test set are left out, the short ones too that `read_task_data` lets stand.
        """
        data, english = self.data(place, language), self.data(place, "eng")
        tests = {data.task.text_of(example) for example in data.test["test"]}
        unseen = [example for example in data.train if data.task.text_of(example) not in tests]
        drawn = np.random.default_rng(0).permutation(len(unseen))[:count]
        tokenizer = load_tokenizer(str(place.path(self.tokens)))
        return data.task.encode([unseen[i] for i in np.sort(drawn)], tokenizer, MAX_LENGTH, labels=english.labels)

    def fit(self, place: Place) -> tuple[Any, SparseFineTuning | None]:
        """The model, and its SFT if it is sparse."""
        start = place.path(self.start) if isinstance(self.start, Product) else self.start.folder(place)
        model, sft = self.build(place, start), None
        collate = self.data(place, "eng").task.collate(load_tokenizer(str(place.path(self.tokens))))
        languages = ["eng", *self.sources]
        parts = {one: self.features(place, one, self.examples // len(languages)) for one in languages}
        worn = {one: SparseFineTuning.load(place.path(sft)) for one, sft in self.sources.items()}
        data: Any = MixedData(parts["eng"], [], ratio=0.0)
        if self.sources:
            data = SourceBatches(parts, collate)
            collate = data.collate
        how = TrainingSettings(
            epochs=self.epochs,
            batch_size=BATCH,
            learning_rate=self.rate,
            checkpoint_steps=100,
            warmup_steps=self.warmup,
        )
        common: dict[str, Any] = {
            "collate": collate, "folder": place.work / "training", "seed": self.seed, "label": place.label,
        }  # fmt: skip
        if self.method.startswith("all"):
            train(SelfTaught(model), data, settings=how, **common)
            return model.eval(), None
        heads = head_parameters(model)
        count = round(DENSITY * sum(p.numel() for n, p in model.named_parameters() if n not in heads))
        mask = None
        if self.method == "random":
            mask = baseline_mask(model, "random", dense=heads, seed=self.seed, count=count)
        elif self.method == "biases":
            mask = baseline_mask(model, "biases", dense=heads)
        long = self.epochs / 2 if self.method == "lt-sft" else self.epochs
        sft = train_sparse(
            SelfTaught(model), data, model=model, dense_parameters=heads, mask=mask, sources=worn or None, training=how,
            settings=SparseSettings(count=count, dense_epochs=self.epochs / 2, sparse_epochs=long), **common,
        )  # fmt: skip
        return model.eval(), sft

    def score(self, place: Place, model: Any, language: str, part: str) -> float:
        """Span F1 in percent."""
        english, data = self.data(place, "eng"), self.data(place, language)
        tokenizer = load_tokenizer(str(place.path(self.tokens)))
        examples = data.dev if part == "dev" else data.test["test"]
        if language == "eng":
            examples = examples[:1000]
        features = data.task.encode(examples, tokenizer, MAX_LENGTH, labels=english.labels)
        return data.task.score(examples, data.task.predict(model, tokenizer, examples, features)).scores["f1"]

    def scores(self, place: Place, model: Any, languages: Iterable[str]) -> dict[str, float]:
        """Of English's dev set, and of dev and test sets."""
        parts = [("eng", "dev"), *((language, part) for language in languages for part in ("dev", "test"))]
        return {f"{language}/{part}": self.score(place, model, language, part) for language, part in parts}


@dataclass(frozen=True, kw_only=True)
class F1:
    """Span F1 in percent by "LANGUAGE/PART": of the model, and with the target's SFT put on."""

    without: dict[str, float]
    language_sft: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scores(Stage[F1]):
    """Fine-tune and score; then with each target's SFT put on, in the share that its dev set chooses."""

    KIND: ClassVar[str] = "scores"

    how: Fit
    languages: tuple[str, ...]
    beside: Sfts = field(default_factory=dict)

    def make(self, place: Place) -> F1:
        model, _ = self.how.fit(place)
        found = F1(without=self.how.scores(place, model, self.languages))
        for language, folder in self.beside.items():
            whole, dev = SparseFineTuning.load(place.path(folder)), {}

            def score(part: str, share: float, whole: Any = whole, language: str = language) -> float:
                with whole.scaled(share).applied(model, heads=False):
                    return self.how.score(place, model, language, part)

            dev = {share: score("dev", share) for share in SHARES}
            found.language_sft.update({f"{language}/dev at {share:g}": value for share, value in dev.items()})
            found.language_sft[f"{language}/test at 1"] = score("test", 1.0)
            found.language_sft[f"{language}/test, chosen"] = score("test", max(dev, key=lambda share: dev[share]))
        return found


@dataclass(frozen=True, kw_only=True)
class WornScores(Stage[F1]):
    """LT-SFT learnt on the base that wears English's SFT; then that SFT stays, or the target's takes its place."""

    KIND: ClassVar[str] = "worn"

    how: Fit
    base: Product
    english: Product
    targets: Sfts

    def make(self, place: Place) -> F1:
        _, task = self.how.fit(place)
        assert task is not None
        model = self.how.build(place, place.path(self.base))
        english = SparseFineTuning.load(place.path(self.english))
        with task.applied(model):
            with english.applied(model, heads=False):
                found = F1(without=self.how.scores(place, model, self.targets))
            for language, folder in self.targets.items():
                own = SparseFineTuning.load(place.path(folder))
                for share in SHARES[1:]:
                    # Half and half: the source's SFT gives way in part.
                    mine, rest = own.scaled(share), english.scaled(1 - share)
                    with mine.applied(model, heads=False), rest.applied(model, heads=False):
                        for part in ("dev", "test"):
                            value = self.how.score(place, model, language, part)
                            found.language_sft[f"{language}/{part} at {share:g}"] = value
        return found


@dataclass
class Studies:
    """The stages of all four studies."""

    data: Path
    adapt_steps: int

    @cached_property
    def texts(self) -> Texts:
        return text_files({language: [self.data / f"text/{language}.txt"] for language in LANGUAGES})

    @cached_property
    def base(self) -> Product:
        teacher = File.at(Path(e5_small_folder()))
        return Trim(teacher=teacher, texts=self.texts, settings=TrimSettings(), verify=False).product("model")

    @cached_property
    def headed(self) -> Product:
        return Headed(
            base=self.base, texts=self.texts, learnt_on=HEADED_ON, settings=HEADED, block_length=BLOCK_LENGTH
        ).product("model")

    @cached_property
    def labelled(self) -> dict[str, Labelled]:
        """Per language, its train, dev and test sets."""
        found = {}
        for language in LANGUAGES:
            files = {part: str(self.data / f"ner/{language}/{part}.txt") for part in ("train", "dev", "test")}
            task = TaskSettings(
                kind="token-classification", train=[files["train"]], dev=[files["dev"]],
                test={"test": [files["test"]]}, label_map=LABEL_MAP,
            )  # fmt: skip
            found[language] = Labelled(task=task, source=language, digests=labelled_digests(task))
        return found

    def sft(self, language: str, *, density: float = min(LANGUAGE_SFTS), **options: bool) -> Adapt:
        """A language's SFT of the base; `headed`: of the base with a head; `head_only`: only a new head is trained."""
        headed = options.get("headed", False)
        training = TrainingSettings(
            steps=1, batch_size=8, learning_rate=LANGUAGE_SFTS[density], checkpoint_steps=50, evaluate_steps=None
        )
        settings = AdaptSettings(
            density=density, steps=HEADED_SFT_STEPS if headed else self.adapt_steps, block_length=BLOCK_LENGTH,
            held_out=0.02, training=training,
        )  # fmt: skip
        return Adapt(
            model=self.headed if headed else self.base, language=language, text=self.texts[language],
            settings=settings, head_only=options.get("head_only", False), seed=0,
        )  # fmt: skip

    def sfts(self, languages: Iterable[str], **options: Any) -> dict[str, Product]:
        return {language: self.sft(language, **options).product("sft") for language in languages}

    def fit(self, method: str, seed: int, start: Product | Dressed | None = None, sources: Sfts | None = None) -> Fit:
        return Fit(
            tokens=self.base, start=start or self.base, labelled=self.labelled, method=method, seed=seed,
            sources=sources or {}, rate=RATES[method], warmup=WARMUP.get(method, 0.0), examples=EXAMPLES, epochs=EPOCHS,
        )  # fmt: skip

    def language_rows(self) -> Iterator[tuple[str, Adapt]]:
        """What a language SFT does to the masked-LM loss, against the new head alone."""
        for language in ADAPTED:
            yield f"{language}-head", self.sft(language, head_only=True)
            for density in LANGUAGE_SFTS:
                yield f"{language}-{density}", self.sft(language, density=density)
            yield f"{language}-headed", self.sft(language, headed=True)

    def rows(self, seeds: list[int]) -> Iterator[tuple[str, int, Stage[F1]]]:
        """Row, seed and stage of everything that is scored."""
        for seed in seeds:
            yield (
                "sources: " + "-".join(ADAPTED),
                seed,
                Scores(how=self.fit("lt-sft long", seed, sources=self.sfts(ADAPTED)), languages=THIRD),
            )
            for density, targets in ((min(LANGUAGE_SFTS), ADAPTED), (max(LANGUAGE_SFTS), ADAPTED[1:])):
                if density == min(LANGUAGE_SFTS) or seed == seeds[0]:
                    english = self.sft("eng", density=density).product("sft")
                    yield f"worn: lt-sft long, {density:.0%}", seed, WornScores(
                        how=self.fit("lt-sft long", seed, start=Dressed(model=self.base, sft=english)),
                        base=self.base, english=english, targets=self.sfts(targets, density=density),
                    )  # fmt: skip
            yield "headed: lt-sft long", seed, Scores(
                how=self.fit("lt-sft long", seed, start=self.headed), languages=(*ADAPTED, *THIRD),
                beside=self.sfts(ADAPTED, headed=True),
            )  # fmt: skip
            for method in RATES:
                sparse = method.startswith("lt-sft")
                yield f"methods: {method}", seed, Scores(
                    how=self.fit(method, seed), languages=(*ADAPTED, *THIRD) if sparse else ADAPTED,
                    beside=self.sfts(ADAPTED) if sparse else {},
                )  # fmt: skip

    def names(self, seeds: list[int]) -> dict[str, Name]:
        """What stages are called in progress lines."""
        names = {stage.key: Name(f"language SFT {name}") for name, stage in self.language_rows()}
        return names | {stage.key: Name(f"{row}, seed {seed}") for row, seed, stage in self.rows(seeds)}

    def table(self, run: RunFolder, seeds: list[int]) -> dict[str, Any]:
        """All results: mean, standard deviation and number of seeds."""
        found: dict[str, dict[str, list[float]]] = {}
        for row, _, stage in self.rows(seeds):
            made = run.known(stage, whole=False)
            for dress, scores in asdict(made.result).items() if made else ():
                for part, score in scores.items():
                    key = part if dress == "without" else f"{part}, language SFT"
                    found.setdefault(row, {}).setdefault(key, []).append(score)
        for row, parts in found.items():
            print(f"\n{row}")
            for part, values in sorted(parts.items()):
                spread = stdev(values) if len(values) > 1 else 0.0
                print(f"  {part:<28} {mean(values):5.1f} ± {spread:.1f}  ({len(values)} seeds)")
        language = {}
        for name, adapted in self.language_rows():
            if (known := run.known(adapted, whole=False)) is not None:
                language[name] = known.result.metrics
                print(f"\n{name}: { {key: round(value, 3) for key, value in language[name].items() if 'loss' in key} }")
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
    studies, seeds = Studies(options.data, options.adapt_steps), options.seed or [0, 1, 2]
    names = studies.names(seeds)
    with RunFolder(options.output, identity={"kind": "sparse study"}, names=names, shared=True) as run:
        if not options.table:
            for _, adapted in studies.language_rows():
                run.make(adapted)
            for _, _, stage in studies.rows(seeds):
                run.make(stage)
        print(json.dumps(studies.table(run, seeds)))


if __name__ == "__main__":
    main()
