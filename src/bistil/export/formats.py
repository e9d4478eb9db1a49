"""What a folder is exported as, per engine: how float32 and int8 are written into it, behind one interface."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from safetensors.numpy import save_file

from bistil.engines.ctranslate2 import CTranslate2Engine, has_types, require_ctranslate2
from bistil.engines.onnx import CONSTANTS, GRAPH, OnnxEngine
from bistil.errors import InputError, MissingExtraError
from bistil.export.choice import Chosen, Scorer, Sensitivity, agreement, by_score, refusal
from bistil.export.encoder import OTHER, check_encoder, write_encoder, write_head
from bistil.export.graph import Graph, make_graph, require_onnx
from bistil.export.proof import Interface
from bistil.export.quantise import Embeddings, in_rows, quantise, smooth
from bistil.prediction.inputs import Input
from bistil.prediction.predictor import Predictor
from bistil.tasks.batches import Batch, Engine, TorchEngine

# Ends the names of outputs that are the same for every input.
CONSTANT = "_weight"


class Format(ABC):
    """A model that is being exported for an engine.

    Args:
        predictor: with the PyTorch model as its engine.
        folder: that the files go into.
        work: for what is needed on the way.

    Attributes:
        ENGINE: its name, as records say it.
        MAIN: the file or folder that it opens, for cards.
        PACKAGES: whose versions are recorded.
        HOLES: whether it knows masks that are not padding on the right.
        EMBEDDINGS: ways to keep the token table beside int8 matrices.
        WEIGHTS: what must be said of int8 on other processors.
    """

    ENGINE: ClassVar[str]
    MAIN: ClassVar[str]
    PACKAGES: ClassVar[tuple[str, ...]]
    HOLES: ClassVar[bool]
    EMBEDDINGS: ClassVar[tuple[Embeddings, ...]]
    WEIGHTS: ClassVar[str]

    def __init__(self, predictor: Predictor, folder: Path, work: Path) -> None:
        assert isinstance(predictor.engine, TorchEngine)
        self.predictor, self.folder, self.work = predictor, folder, work
        self.model = predictor.engine.model

    @staticmethod
    @abstractmethod
    def require() -> None:
        """Make sure that all is installed.

        Raises:
            MissingExtraError: with the line that installs it.
        """

    @abstractmethod
    def write(self, batches: tuple[Batch, Batch]) -> Interface:
        """Write the model in float32, and say what goes in and out.

        Args:
            batches: two that differ in every size.

        Raises:
            ArtefactError: the engine cannot run such a model.
        """

    @abstractmethod
    def open(self) -> Engine:
        """What was written last."""

    @abstractmethod
    def quantise(
        self,
        cases: Sequence[Mapping[str, np.ndarray]],
        embeddings: Embeddings,
        scorer: Scorer | None,
        inputs: Sequence[Input],
    ) -> Chosen:
        """Write the model in int8 in its place.

        Args:
            cases: as `proof.cases_of`.
            scorer: of labelled examples; None: there are none.
            inputs: for comparing predictions, where there are none.

        Raises:
            InputError: it loses more of the score than it may.
        """


class OnnxFormat(Format):
    """A graph for onnxruntime."""

    ENGINE, MAIN = "onnxruntime", GRAPH
    PACKAGES = ("onnx", "onnxruntime")
    HOLES = True
    EMBEDDINGS: ClassVar[tuple[Embeddings, ...]] = ("auto", "int8", "int4", "float32")
    WEIGHTS = (
        "int8 weights have 7 bits, so that an x86 processor without VNNI adds without overflow and loses nothing of "
        "the score, but it multiplies int8 more slowly"
    )
    graph: Graph

    @staticmethod
    def require() -> None:
        require_onnx()

    def write(self, batches: tuple[Batch, Batch]) -> Graph:
        self.graph = make_graph(self.model, batches, self.work / "float32.onnx")
        shutil.copyfile(self.graph.file, self.folder / GRAPH)
        self._write_constants(int8=False)
        return self.graph

    def open(self) -> OnnxEngine:
        return OnnxEngine(self.folder)

    def quantise(
        self,
        cases: Sequence[Mapping[str, np.ndarray]],
        embeddings: Embeddings,
        scorer: Scorer | None,
        inputs: Sequence[Input],
    ) -> Chosen:
        def opened(file: Path) -> OnnxEngine:
            # The engine opens a folder: the rest of it is there already.
            if file != self.folder / GRAPH:
                shutil.move(file, self.folder / GRAPH)
            return self.open()

        self._write_constants(int8=True)
        target, even = self.work / "int8.onnx", self.work / "smooth.onnx"
        smooth(self.graph.file, even, cases)
        if scorer is not None:
            return by_score(even, target, scorer, embeddings, Sensitivity(cases), opened=opened)
        own: Embeddings = "int8" if embeddings == "auto" else embeddings
        quantise(even, target, embeddings=own)
        return Chosen(own, [], agreement(self.predictor, opened(target), inputs))

    def _write_constants(self, *, int8: bool) -> None:
        """Write what the graph does not give because it is always the same; in int8 with a scale per row."""
        constants = {name: tensor.float().numpy() for name, tensor in self.graph.constants.items()}
        if constants:
            save_file(dict(in_rows(constants, int8=int8)), self.folder / CONSTANTS)


class CTranslate2Format(Format):
    """An encoder for CTranslate2, with its head for numpy. It is int8 as a whole or not at all."""

    ENGINE, MAIN = "ctranslate2", "encoder/model.bin"
    PACKAGES = ("ctranslate2",)
    HOLES = False
    EMBEDDINGS: ClassVar[tuple[Embeddings, ...]] = ("auto", "int8")
    WEIGHTS = (
        "int8 weights have 8 bits, which an x86 processor without VNNI may add with overflow: what becomes of the "
        "score there was not measured, so evaluate it there before it is used"
    )

    def __init__(self, predictor: Predictor, folder: Path, work: Path) -> None:
        super().__init__(predictor, folder, work)
        check_encoder(self.model)

    @staticmethod
    def require() -> None:
        try:
            require_ctranslate2()
        except MissingExtraError as error:
            raise MissingExtraError("this export needs CTranslate2: pip install 'bistil[ctranslate2]'") from error

    def write(self, batches: tuple[Batch, Batch]) -> Interface:
        self._write(int8=False)
        inputs = [one for one in batches[0] if one != "token_type_ids" or has_types(self.model.config)]
        per_token = check_encoder(self.model)[2] in ("states", "tokens", "spans")
        axes = ["batch", "tokens"] if per_token else ["batch"]
        return Interface(inputs, {name: axes for name in self.open()(batches[0]) if not name.endswith(CONSTANT)})

    def open(self) -> CTranslate2Engine:
        return CTranslate2Engine(self.folder)

    def quantise(
        self,
        cases: Sequence[Mapping[str, np.ndarray]],
        embeddings: Embeddings,
        scorer: Scorer | None,
        inputs: Sequence[Input],
    ) -> Chosen:
        del cases, embeddings
        self._write(int8=True)
        if scorer is None:
            return Chosen("int8", [], agreement(self.predictor, self.open(), inputs))
        found = Chosen("int8", [], scorer.figures(self.open()))
        if found.figures["loss"] > scorer.most_loss:
            raise InputError(f"{refusal(found.figures)}; or {OTHER}, which keeps what costs most in float32")
        return found

    def _write(self, *, int8: bool) -> None:
        write_encoder(self.model, self.folder, int8=int8)
        write_head(self.model, self.folder, int8=int8)


FORMATS: dict[str, type[Format]] = {"onnxruntime": OnnxFormat, "ctranslate2": CTranslate2Format}
"""By the engine's name."""
