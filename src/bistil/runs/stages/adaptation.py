"""Language adaptation of the teacher (paper, section 3.2; Ansell et al. 2022, section 4.2)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bistil.runs.cost import Ahead, Cost, Passes, held, loading
from bistil.runs.data import Texts, paths, text_paths
from bistil.runs.stage import File, Place, Product, Stage
from bistil.runs.stages.work import activations, training_of
from bistil.settings.recipe import AdaptSettings
from bistil.sparse.language import MOST_HELD_OUT, adapt, add_masked_lm_head, paper_steps


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What a language SFT came to: its metrics, held-out losses in nats per masked token among them."""

    metrics: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Adapt(Stage[Adapted]):
    """Learn a language SFT of a model by masked language modelling. Leaves "sft"."""

    KIND: ClassVar[str] = "adapt"
    JOINT: ClassVar[bool] = True
    PARTS: ClassVar[tuple[str, ...]] = ("sft",)

    model: Product
    language: str
    text: tuple[File, ...]
    settings: AdaptSettings
    head_only: bool = False
    """A baseline: the language changes nothing of the model, and only a new head is trained."""
    seed: int

    def make(self, place: Place) -> Adapted:
        sft = adapt(
            str(place.path(self.model)),
            text_paths(self.text, place),
            place.output("sft"),
            language=self.language,
            settings=self.settings,
            work=place.work / "training",
            seed=self.seed,
            mask={} if self.head_only else None,
        )
        return Adapted(metrics=sft.provenance.metrics)

    def cost(self, ahead: Ahead) -> Cost:
        shape, text, training = ahead.shape(self.model), ahead.text(self.text, self.model), self.settings.training
        length = self.settings.block_length
        blocks = int(text.tokens // length)
        out = min(MOST_HELD_OUT, round(blocks * self.settings.held_out))
        steps = self.settings.steps or paper_steps(max(1, blocks - out), training.batch_size)
        # The output layer sees the masked tokens only: 15% of a block.
        forward = shape.flops(length) + 0.15 * length * 2.0 * shape.width * shape.vocabulary
        precision, device = ahead.settled(training)
        shared: dict[str, Any] = {"teacher": shape, "students": (shape,), "tokens": length, "device": device}
        step = Passes(
            kind="language", flops=3 * training.batch_size * forward, precision=precision,
            sequences=training.batch_size, **shared,
        )  # fmt: skip
        look = Passes(kind="score", flops=out * forward, sequences=training.batch_size, **shared) if out else None
        phases = [
            training_of(steps, step, look, training, parameters=shape.parameters["total"], share=share)
            for share in ([self.settings.density] if self.head_only else [None, self.settings.density])
        ]
        sparse = self.settings.density * shape.parameters["total"]
        return Cost(
            trainings=phases,
            passes=[] if look is None else [look, look],
            seconds=text.seconds + loading(ahead, self.model),
            memory=held(shape.parameters["total"], trained=True)
            + 4 * shape.parameters["total"]
            + activations([shape], training.batch_size, length),
            disk=8.0 * sparse,
            work=2 * phases[0].checkpoint_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Headed(Stage[Adapted]):
    """A masked-LM head for an encoder that has none, learnt on text of several languages. Leaves "model"."""

    KIND: ClassVar[str] = "masked-lm-head"
    JOINT: ClassVar[bool] = True
    PARTS: ClassVar[tuple[str, ...]] = ("model",)

    model: Product
    texts: Texts
    settings: AdaptSettings
    seed: int

    def make(self, place: Place) -> Adapted:
        head = add_masked_lm_head(
            str(place.path(self.model)),
            [path for own in paths(self.texts, place).values() for path in own],
            place.output("model"),
            languages=[*self.texts],
            settings=self.settings,
            work=place.work / "head",
            seed=self.seed,
        )
        return Adapted(metrics=head.provenance.metrics)

    def model_of(self, part: str) -> Product:
        del part
        return self.model

    def cost(self, ahead: Ahead) -> Cost:
        files = tuple(file for own in self.texts.values() for file in own)
        alone = Adapt(
            model=self.model, language="", text=files, settings=self.settings, head_only=True, seed=self.seed
        )  # fmt: skip
        return replace(alone.cost(ahead), disk=ahead.weights(self.model))
