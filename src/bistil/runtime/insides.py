"""What this package takes from the insides of its libraries, each in one function that says what it relies on.

Nothing here is promised by the libraries' documentation; `tests/unit/test_insides.py` has one contract test per
function, which fails where a version of a library no longer does what is relied on. The command line's start reads
this file, so heavy libraries are imported within functions.
"""

import json
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bistil.errors import ArtefactError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

# --- safetensors


def order_metadata(path: Path) -> None:
    """Give the metadata in a safetensors file, which the library writes in random order, the order of their keys.

    The file is the header's length (8 bytes, little-endian), a JSON header with the metadata first, padded with spaces
    to a multiple of 8, and the tensors. The header's length stays.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the header was written in another form"
        file.seek(8)
        file.write(text.ljust(size))


# --- transformers: models


def encoder_class(config_class: "type[PreTrainedConfig]") -> "type[PreTrainedModel]":
    """The encoder class that `AutoModel` builds for a configuration: `MODEL_MAPPING` tells it without building."""
    from transformers import MODEL_MAPPING

    found: type[PreTrainedModel] = MODEL_MAPPING[config_class]  # type: ignore[assignment]  # one class for encoders
    return found


def zero_new(tensor: "Tensor") -> None:
    """Fill with zeros within `_init_weights`, unless the weight was loaded: transformers' own functions know that."""
    from transformers import initialization

    initialization.zeros_(tensor)


def draw_new(tensor: "Tensor", *, std: float) -> None:
    """Draw from a normal distribution within `_init_weights`, unless the weight was loaded."""
    from transformers import initialization

    initialization.normal_(tensor, std=std)


def attention_kind(model: Any) -> str:
    """Which attention function a model runs: the name that its configuration keeps, read at every forward pass."""
    return str(model.config._attn_implementation)


def set_attention_kind(model: Any, name: str) -> None:
    """Let a model run the attention function registered under `name`, from the next forward pass on.

    By hand and not by `set_attn_implementation`, which looks into the source of the class on disk and skips classes
    that are made at run time, such as our parsers.
    """
    model.config._attn_implementation = name


@contextmanager
def with_attention(model: Any, name: str) -> "Iterator[None]":
    """Inside the block a model runs this attention function, where its family goes by the configuration's name."""
    before = attention_kind(model)
    set_attention_kind(model, name)
    try:
        yield
    finally:
        set_attention_kind(model, before)


def register_attention(name: str, function: "Callable[..., tuple[Tensor, None]]") -> None:
    """Add an attention function under a name, with the masks of scaled-dot-product attention.

    It is called with (module, query, key, value, mask, dropout=, scaling=, ...), tensors (batch, heads, tokens, head
    width), and returns (batch, tokens, heads, head width) and None.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


def plain_attention(*args: Any, **kwargs: Any) -> "tuple[Tensor, None]":
    """transformers' own scaled-dot-product attention, called like a registered function."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(*args, **kwargs)


# Arguments of attention functions beyond query, key, value, mask, dropout and scaling that change the probabilities.
CHANGES_SCORES = ("position_bias", "softcap", "s_aux", "head_mask", "cache")


def refuse_other_scores(module: "nn.Module", options: Mapping[str, Any]) -> None:
    """Refuse a layer whose attention is more than softmax(scaling * query key^T + mask).

    Raises:
        ArtefactError: `options` of its attention function ask for a bias, a cap, sinks or a cache.
    """
    for name in CHANGES_SCORES:
        if options.get(name) is not None:
            raise ArtefactError(
                f"{type(module).__name__} gives its attention a {name}, which L_attn and the relations do not know: "
                "choose another model, or set these weights of the objective to 0"
            )


def asked_for_map(
    module: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a DeBERTa-v2 self-attention, with its probabilities asked for.

    Its forward pass has a parameter `output_attentions` and then returns (states, probabilities); the layer gives it
    by position. This is a forward pre-hook with keyword arguments.
    """
    taken = signature(module.forward)
    if "output_attentions" not in taken.parameters:
        raise ArtefactError(f"{type(module).__name__} gives no attention map in this version of transformers")
    bound = taken.bind(*args, **kwargs)
    bound.arguments["output_attentions"] = True
    return bound.args, bound.kwargs


def has_class_for(auto_class: Any, config: Any) -> bool:
    """Whether an Auto class of transformers has a class for a configuration; true of what is no Auto class.

    Auto classes keep a mapping from configurations to classes in `_model_mapping`.
    """
    mapping = getattr(auto_class, "_model_mapping", None)
    return mapping is None or type(config) in mapping


# --- transformers: the Trainer


def one_device(arguments: "TrainingArguments") -> None:
    """Let a process use one GPU although it sees several.

    The Trainer wraps the module in `DataParallel` if `n_gpu`, a property that gives `_n_gpu`, is above 1, and
    multiplies the batch by it. Several GPUs are used by one process each, under torchrun.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def replace_clipping(trainer: "Trainer", clip: "Callable[[], Tensor]") -> None:
    """Let the Trainer call `clip`, which returns the norm before clipping, in place of its clipping of all gradients.

    `_clip_grad_norm(model)` is what it calls between backward pass and optimizer step where `max_grad_norm` is above 0.
    """
    _replace(trainer, "_clip_grad_norm", lambda _model: clip())


def replace_weights(trainer: "Trainer", *, save: Callable[[Path], None], load: Callable[[Path], None]) -> None:
    """Let the Trainer write and read a module's weights in checkpoint folders by these two functions.

    `_save(output_dir, state_dict=None)` and `_load_from_checkpoint(folder, model=None)` are what it calls for them, and
    for nothing else: optimizer, schedule and random states are its own. The folder need not be there yet when `save`
    is called, and must be afterwards. transformers 5.20 calls `_save` in the writing process alone, 5.23 in all:
    only the one whose arguments say `should_save` writes.
    """

    def save_into(output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict
        if trainer.args.should_save:
            save(Path(output_dir or str(trainer.args.output_dir)))

    def load_from(resume_from_checkpoint: str, model: Any = None) -> None:
        del model
        load(Path(resume_from_checkpoint))

    _replace(trainer, "_save", save_into)
    _replace(trainer, "_load_from_checkpoint", load_from)


def scale_loss_by_trainer(trainer: "Trainer") -> None:
    """Say that the module does not divide its loss by the accumulation steps itself.

    The Trainer reads `model_accepts_loss_kwargs`, which it set from the module's forward taking `**batch`.
    """
    _replace(trainer, "model_accepts_loss_kwargs", False)


def _replace(trainer: "Trainer", name: str, value: Any) -> None:
    """Set an attribute that the Trainer must have."""
    if not hasattr(trainer, name):
        raise ArtefactError(f"this version of transformers has no Trainer.{name}: install one that bistil was made for")
    setattr(trainer, name, value)


def logger_callbacks() -> "Mapping[str, Callable[[], TrainerCallback]]":
    """The loggers that `report_to` of TrainingArguments may name; a call makes one, or says that it is not installed.

    Calling raises ImportError or RuntimeError where the logger's package is missing.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known: Mapping[str, Callable[[], TrainerCallback]] = INTEGRATION_TO_CALLBACK
    return known


def tensorboard_callback(folder: Path) -> "TrainerCallback":
    """A TensorBoard logger that writes into `folder`, unless TENSORBOARD_LOGGING_DIR says otherwise.

    `logging_dir` is that variable's value or None, and is read when training begins.
    """
    board: Any = logger_callbacks()["tensorboard"]()
    board.logging_dir = board.logging_dir or str(folder)
    callback: TrainerCallback = board
    return callback


# --- progress bars of transformers and datasets


def transformers_bars(shown: bool) -> Any:
    """A context in which transformers draws its own progress bars or not; downloads keep theirs.

    `transformers.utils.logging._tqdm_active` decides each time. The public functions beside it would switch the
    bars of huggingface_hub too, for all groups, and could not switch them back as they were.
    """
    return _value_of("transformers.utils.logging", "_tqdm_active", shown)


def datasets_bars(shown: bool) -> Any:
    """A context in which datasets draws progress bars or not.

    `_hf_datasets_progress_bars_disabled` decides each time. The public functions warn, and do nothing, where the
    environment has a wish of its own.
    """
    return _value_of("datasets.utils.tqdm", "_hf_datasets_progress_bars_disabled", not shown)


@contextmanager
def _value_of(module_name: str, name: str, value: bool) -> Iterator[None]:
    # By import_module: datasets.utils has a class of the same name as its module tqdm.
    module = import_module(module_name)
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


# --- torch


@cache
def has_linear_pointwise() -> bool:
    """Whether torch has oneDNN and the operator that `linear_pointwise` calls."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear_pointwise(input: "Tensor", weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    """input (..., k) times weight (n, k) transposed, plus bias (n,), by oneDNN: what torch.compile calls on CPUs."""
    import torch

    result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return result


def has_bf16_units() -> bool:
    """Whether the processor says that it has AMX tiles or AVX512-BF16: `torch.cpu._is_...` ask it, on x86 alone."""
    import torch

    asked = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(ask is not None and ask() for ask in asked)


def has_vnni() -> bool | None:
    """Whether the processor multiplies bytes in one step (AVX512-VNNI or AVX-VNNI): `torch.cpu` tells; None: no x86."""
    import torch

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    ask = getattr(torch.cpu, "_is_vnni_supported", None)
    return ask is not None and bool(ask())


@contextmanager
def bf16_products() -> Iterator[None]:
    """Inside the block oneDNN may multiply float32 matrices on a CPU as bf16 ones, summed up in float32.

    For matrices that hold bf16 values nothing is lost. `torch.backends.mkldnn.matmul.fp32_precision` is of the whole
    process; oneDNN heeds it where the processor has AMX, and serves batched products as float32 ones elsewhere.
    """
    import torch

    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def through_softmax(gradient: "Tensor", probabilities: "Tensor") -> "Tensor":
    """The gradient of a softmax's input from that of its output, over the last dimension; sums are float32 in bf16.

    `torch._softmax_backward_data` is what the backward pass of `torch.softmax` calls.
    """
    import torch

    result: Tensor = torch._softmax_backward_data(gradient, probabilities, -1, gradient.dtype)
    return result


def apply(function: "type[torch.autograd.Function]", *arguments: Any) -> Any:
    """Call an autograd function; torch gives `Function.apply` no types."""
    return function.apply(*arguments)


# --- ONNX


def traced_onnx(
    module: "nn.Module",
    inputs: "tuple[Tensor, ...]",
    file: Path,
    *,
    names: tuple[list[str], list[str]],
    axes: Mapping[str, Mapping[int, str]],
    opset: int,
) -> None:
    """Write a module as an ONNX graph with PyTorch's TorchScript exporter, `dynamo=False` of `torch.onnx.export`.

    It is deprecated, and says so; the newer one's graphs have no attention that `fused_bert_graph` finds.

    Args:
        names: of the inputs and of the outputs.
        axes: name -> axis -> name of a dimension that may be of any size.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            str(file),
            dynamo=False,
            input_names=names[0],
            output_names=names[1],
            dynamic_axes={name: dict(sizes) for name, sizes in axes.items()},
            opset_version=opset,
        )


def fused_bert_graph(source: Path, target: Path, *, heads: int, width: int) -> None:
    """Put onnxruntime's fused operators into a traced encoder: `onnxruntime.transformers.optimizer`.

    Embeddings stay look-ups of their own, for a quantised table has an operator of its own. Attention gets the mask as
    it is: by default the optimizer makes lengths of it, which would be wrong for masks that are not padding on the
    right. Layer norms are one operator, but without the sum before them: on CPUs SkipLayerNormalization takes four
    times as long as its parts (67 and 17 microseconds for 32 x 384 numbers). That sum is written `Sum`, for of an `Add`
    onnxruntime makes the slow operator when it opens a graph.

    Args:
        heads, width: of the encoder's attention.
    """
    with _quiet_onnx():
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        options = FusionOptions("bert")
        options.enable_embed_layer_norm = False
        options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = False
        options.use_raw_attention_mask(True)
        fused = optimize_model(
            str(source), "bert", num_heads=heads, hidden_size=width, optimization_options=options, opt_level=0
        )
        norms = {node.input[0] for node in fused.model.graph.node if node.op_type == "LayerNormalization"}
        for node in fused.model.graph.node:
            if node.op_type == "Add" and node.output[0] in norms:
                node.op_type = "Sum"
        fused.save_model_to_file(str(target))


def int8_products(source: Path, target: Path, *, kept: Collection[str]) -> None:
    """Let the products of a graph with constant matrices be of int8: `onnxruntime.quantization.quantize_dynamic`.

    Weights are signed, of one scale per column and of 7 bits (`reduce_range`): so sums of two products with 8-bit
    activations fit in 16 bits, in which x86 processors without VNNI add them. Types that fused operators do not tell
    are float32 (`DefaultTensorType`).

    Args:
        kept: names of nodes that stay in float32.
    """
    with _quiet_onnx():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(kept),
            extra_options={"DefaultTensorType": 1},
        )


PRODUCTS = ("MatMul", "Gemm", "Attention")
"""Operators whose constant matrices `int8_products` quantises."""


@contextmanager
def _quiet_onnx() -> Iterator[None]:
    """onnxruntime's tools tell the root logger, which gets a handler for good where it has none; they look for their
    own modules in `sys.path`, which is put back."""
    root, path = logging.getLogger(), list(sys.path)
    level, handler = root.level, logging.NullHandler()
    root.addHandler(handler)
    root.setLevel(logging.CRITICAL)
    try:
        import onnxruntime.transformers as tools

        sys.path[:] = [*path, str(Path(tools.__file__).parent)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = path
        root.setLevel(level)
        root.removeHandler(handler)


# --- uvicorn


def patient_protocol(seconds: float) -> type[Any]:
    """A protocol for uvicorn's `http` whose patience with a client ends: its own waits for a request without end.

    From a connection's first moment, or the first byte of a further request, its headers must have come after
    `seconds`, its body one second after as many more (the application, which counts them too, answers first); what is
    written must be taken in as much. The connection is cut then. Of uvicorn's `H11Protocol` this relies on `conn`,
    h11's connection, whose `their_state` is "done" once a request has come as a whole, on `transport`, and on being
    told by `on_response_complete`.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class PatientProtocol(H11Protocol):
        _late: Any = None
        _stuck: Any = None
        _in_body = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._late = self.loop.call_later(seconds, self._cut)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            state = self.conn.their_state
            if state not in (h11.IDLE, h11.SEND_BODY):
                self._late, self._in_body = _stopped(self._late), False
            elif self._late is None or (state is h11.SEND_BODY) != self._in_body:
                self._in_body = state is h11.SEND_BODY
                _stopped(self._late)
                self._late = self.loop.call_later(seconds + self._in_body, self._cut)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # Less than a buffer that is full may wait for a client that takes nothing.
            if self._stuck is None and self.transport.get_write_buffer_size():
                self._stuck = self.loop.call_later(seconds, self._cut_if_stuck)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stuck is None:
                self._stuck = self.loop.call_later(seconds, self._cut_if_stuck)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stuck = _stopped(self._stuck)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._late, self._stuck = _stopped(self._late), _stopped(self._stuck)

        def _cut_if_stuck(self) -> None:
            self._stuck = None
            if self.transport.get_write_buffer_size():
                self._cut()

        def _cut(self) -> None:
            self.transport.abort()

    return PatientProtocol


def _stopped(timer: Any) -> Any:
    """None, in the place of a timer that is of no use any more."""
    if timer is not None:
        timer.cancel()
    return None


# --- texts and classes of errors


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """A library in Rust that panics, which only a damaged file makes it do, raises RuntimeError and prints nothing.

    pyo3's PanicException is no Exception, so that no handler of errors sees it; its hook writes to the process's own
    standard error.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        kept = None
    with Path(os.devnull).open("wb") as nowhere:
        if kept is not None:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise RuntimeError(str(error)) from None
        finally:
            if kept is not None:
                os.dup2(kept, 2)
                os.close(kept)


def usage_error() -> type[Exception]:
    """What Typer raises for a wrong command line: the parent of its `BadParameter`, which it does not export."""
    import typer

    return typer.BadParameter.__mro__[1]


def words_given(command: Any, context: Any, words: Sequence[str]) -> list[Any]:
    """The parameters of a command that its words give, once per time that they do: the order of Typer's parser."""
    _, _, given = command.make_parser(context).parse_args(args=list(words))
    return list(given)


@contextmanager
def long_names_folded() -> Iterator[None]:
    """Within it Typer's help breaks the name of an option that is too long for its column; it cuts it off.

    The help is made of what two highlighters of `typer.rich_utils` give, texts of rich.
    """
    from typer import rich_utils

    def folded(highlight: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def made(text: Any) -> Any:
            shown = highlight(text)
            shown.overflow = "fold"
            return shown

        return made

    names = ("highlighter", "negative_highlighter")
    before = {name: getattr(rich_utils, name) for name in names}
    for name, highlight in before.items():
        setattr(rich_utils, name, folded(highlight))
    try:
        yield
    finally:
        for name, highlight in before.items():
            setattr(rich_utils, name, highlight)


def system_error_number(error: Exception) -> int | None:
    """The operating system's number of an error that safetensors put into words: "(os error 28)"."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def is_torch_writer_s(error: Exception) -> bool:
    """Whether torch could not write a file whole; it does not say why. Its message names the source file."""
    return "inline_container.cc" in str(error)


# --- numpy, PEFT


def numpy_scalar_maker() -> Any:
    """The function that pickles of numpy scalars call: what `__reduce__` of one gives."""
    import numpy as np

    return np.int64(0).__reduce__()[0]


# What PEFT puts in front of the base model's names.
PEFT_PREFIX = "base_model.model."


def shira_keys(module: str) -> tuple[str, str]:
    """Names of a module's deltas (entries,) and places (2, entries) in a SHiRA adapter's file, as PEFT saves it."""
    return f"{PEFT_PREFIX}{module}.shira_weight", f"{PEFT_PREFIX}{module}.shira_indices"


def shira_module(key: str) -> str | None:
    """The module whose deltas a SHiRA adapter's file holds under this name; None for all other names."""
    module = key.removeprefix(PEFT_PREFIX).removesuffix(".shira_weight")
    return module if key == shira_keys(module)[0] else None
