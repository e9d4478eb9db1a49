"""What runs an exported encoder with numpy, safetensors and CTranslate2, and nothing else of this package.

The proof of an export runs this file in a process that can import neither torch nor bistil.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

ENCODER, HEAD = "encoder", "head.safetensors"
"""Names in a folder exported for CTranslate2: the encoder as CTranslate2 has it, and the task's head."""
SCALES = ".scales"
"""Behind the name of a tensor of int8: its scales, one per row."""
FORM = "form"
"""Key of a head's metadata: which of `Head.FORMS` it is. "activation" is that between its first two maps."""
ACTIVATIONS: dict[str, Any] = {"tanh": np.tanh, "relu": lambda values: np.maximum(values, 0)}


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    """Tensors of a file by name, int8 ones multiplied out to float32."""
    with safe_open(file, framework="numpy") as opened:
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it has no iterator
    return {
        name: values.astype(np.float32) * stored[name + SCALES] if name + SCALES in stored else values
        for name, values in stored.items()
        if not name.endswith(SCALES)
    }


class Head:
    """A task's head on an encoder's last states.

    Args:
        file: its tensors, and in the metadata its form.
    """

    def __init__(self, file: Path) -> None:
        self.tensors = tensors_of(file)
        with safe_open(file, framework="numpy") as opened:
            known = opened.metadata()
        self.form, self.activation = known[FORM], known.get("activation")

    def __call__(self, states: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs that the PyTorch model has.

        Args:
            states: (batch, tokens, width) of float32.
            given: the batch, for the parser's words.
        """
        found: dict[str, np.ndarray] = self.FORMS[self.form](self, states, given)
        return found

    def _states(self, states: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The states themselves, of an encoder without a head."""
        del given
        return {"last_hidden_state": states}

    def _tokens(self, states: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Logits (batch, tokens, classes)."""
        del given
        return {"logits": self._mapped("classifier", states)}

    def _first(self, states: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Logits (batch, classes) of the first token, through a pooling map."""
        del given
        pooled = ACTIVATIONS[str(self.activation)](self._mapped("pooler", states[:, 0]))
        return {"logits": self._mapped("classifier", pooled)}

    def _spans(self, states: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Logits (batch, tokens) of an answer's start and end."""
        logits = self._tokens(states, given)["logits"]
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}

    def _parser(self, states: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parser's outputs (`models.parser.ParserOutput`)."""
        starts, ends = given["word_starts"], given["word_ends"]
        positions = np.arange(states.shape[1])
        inside = (positions >= starts[..., None]) & (positions < ends[..., None])
        weights = inside.astype(np.float32)
        words = (weights / np.maximum(weights.sum(-1, keepdims=True), 1)) @ states
        dependents = self._mapped("project_dependents", words)
        heads = self._mapped("project_heads", np.concatenate([states[:, :1], words], axis=1))
        arc = self.tensors["arc_weight"]
        logits = (dependents @ arc[0, :-1] + arc[0, -1]) @ heads.swapaxes(-1, -2)
        padded = np.pad(starts < 0, ((0, 0), (1, 0)))
        logits = np.where(padded[:, None], np.float32(-np.inf), logits)
        weight = {name: self.tensors[name] for name in ("relation_weight", "arc_weight")}
        return {"logits": logits, "dependents": dependents, "heads": heads, **weight}

    def _mapped(self, name: str, values: np.ndarray) -> np.ndarray:
        """A linear map, where the head has one of this name."""
        if f"{name}.weight" not in self.tensors:
            return values
        mapped: np.ndarray = values @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]
        return mapped

    FORMS = {"states": _states, "tokens": _tokens, "first": _first, "spans": _spans, "parser": _parser}  # noqa: RUF012


class Runner:
    """An exported model: encoder and head.

    Args:
        folder: of the exported model.
        threads: CPU threads.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        import ctranslate2

        self.view = ctranslate2.StorageView.from_array
        self.encoder = ctranslate2.Encoder(str(folder / ENCODER), intra_threads=threads, inter_threads=1)
        self.head = Head(folder / HEAD)

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Args:
            given: "input_ids" and "attention_mask" (batch, tokens), and what else the model reads. What is masked
                must stand behind what is not: the engine knows lengths alone.

        Raises:
            ValueError: a mask with holes, or padding in front.
        """
        ids, mask = given["input_ids"], given["attention_mask"]
        lengths = mask.sum(axis=1)
        if not (mask == (np.arange(mask.shape[1]) < lengths[:, None])).all() or not lengths.all():
            raise ValueError("CTranslate2 reads sequences that are padded on the right; this mask is another one")
        types = given.get("token_type_ids")
        said = self.encoder.forward_batch(
            self._view(ids), self._view(lengths), None if types is None or not types.any() else types.tolist()
        )
        return self.head(np.array(said.last_hidden_state), given)

    def _view(self, values: np.ndarray) -> Any:
        return self.view(np.ascontiguousarray(values, dtype=np.int32))
