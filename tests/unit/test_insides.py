"""The contracts of `runtime.insides`: what the package relies on inside its libraries, one test each.

A failure means that an installed version no longer does it; the message says what of ours depends on it.
"""

import asyncio
import errno
import inspect
import io
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import tiny
import torch
import typer
from torch import nn
from transformers import Trainer, TrainingArguments

from bistil.distillation.representations import Capture
from bistil.errors import ArtefactError
from bistil.runtime import insides
from bistil.settings.recipe import TrainingSettings
from bistil.training import loop

IDS = torch.arange(5, 29).view(2, 12)


class Linear(nn.Module):
    """A linear map with a loss, as the training loop takes it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(3, 1)
        self.saw: list[int] = []

    def forward(self, **batch):
        self.saw.append(len(batch["input_ids"]))
        return {"loss": self.map(batch["input_ids"]).square().mean()}


def trainer(folder, module, **changes):
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "save_steps": 1, "use_cpu": True, "report_to": "none"}
    arguments = TrainingArguments(
        str(folder), save_strategy="steps", learning_rate=0.1, disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False, **{**options, **changes},
    )  # fmt: skip
    data = [{"input_ids": torch.full((3,), float(i))} for i in range(24)]
    return Trainer(module, arguments, train_dataset=data)


# --- transformers: models


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_encoder_class(family):
    encoder = insides.encoder_class(type(tiny.config(family)))
    assert encoder is type(tiny.model(family)), "parsers (models.parser) are built on what MODEL_MAPPING gives"


def test_new_weights_are_drawn_and_loaded_ones_stay():
    for fill in (insides.zero_new, lambda tensor: insides.draw_new(tensor, std=1.0)):
        loaded, new = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        loaded._is_hf_initialized = True
        fill(loaded), fill(new)
        assert torch.equal(loaded, torch.ones(4)), "a parser's trained head would be drawn anew when it is loaded"
        assert not torch.equal(new, torch.ones(4)), "a parser's new head would stay uninitialised"


ATTENTIVE = [family for family in tiny.FAMILIES if family != "deberta-v2"]


@pytest.mark.parametrize("family", ATTENTIVE)
def test_a_registered_attention_function_is_called_by_name_with_known_options(family):
    seen = []

    def function(module, query, key, value, mask, dropout=0.0, scaling=None, **options):
        seen.append((query.shape, key.shape, scaling, {name for name, given in options.items() if given is not None}))
        return insides.plain_attention(module, query, key, value, mask, dropout=dropout, scaling=scaling, **options)

    insides.register_attention("contract", function)
    model = tiny.model(family, layers=2)
    with torch.inference_mode():
        plain = model(input_ids=IDS)[0]
        before = insides.attention_kind(model)
        insides.set_attention_kind(model, "contract")
        got = model(input_ids=IDS)[0]
        insides.set_attention_kind(model, before)
        assert torch.equal(model(input_ids=IDS)[0], plain) and len(seen) == 2
    assert torch.equal(got, plain), "Capture replaces attention by this name"
    for query, key, scaling, options in seen:
        shared = 2 if family == "eurobert" else 1  # heads that share their keys
        assert query == (2, 4, 12, 8) and key == (2, 4 // shared, 12, 8) and scaling == pytest.approx(8**-0.5), (
            "L_attn needs the scores' parts"
        )
        harmless = {"sliding_window", "deterministic", "is_causal", "position_ids", "output_attentions", "use_cache"}
        assert options <= harmless, f"{options - harmless}: does it change the scores? then add it to CHANGES_SCORES"


def test_auto_classes_say_for_which_configurations_they_have_a_class():
    from transformers import AutoModelForQuestionAnswering

    assert insides.has_class_for(AutoModelForQuestionAnswering, tiny.config("bert"))
    assert not insides.has_class_for(AutoModelForQuestionAnswering, tiny.config("eurobert"))
    assert insides.has_class_for(type(tiny.model("bert", layers=1)), tiny.config("eurobert"))


def test_attention_with_more_than_a_mask_is_refused():
    model = tiny.model("bert", layers=2)
    layer = model.encoder.layer[0].attention.self
    insides.refuse_other_scores(layer, {"position_bias": None, "is_causal": False})
    for name in insides.CHANGES_SCORES:
        with pytest.raises(ArtefactError, match=name):
            insides.refuse_other_scores(layer, {name: torch.ones(1)})
    plain = layer.forward
    layer.forward = lambda *args, **options: plain(*args, **options, position_bias=torch.zeros(1, 1, 12, 12))
    with Capture(model, attention_layers=[2]) as capture:
        capture.run({"input_ids": IDS})  # the first layer is not compared: its bias is added
    with Capture(model, attention_layers=[1]) as capture, pytest.raises(ArtefactError, match="position_bias"):
        capture.run({"input_ids": IDS})


def test_deberta_s_self_attention_gives_its_map_when_asked():
    model = tiny.model("deberta-v2", layers=2)
    module = model.encoder.layer[1].attention.self
    assert "output_attentions" in inspect.signature(module.forward).parameters
    found = []
    handles = [
        module.register_forward_pre_hook(insides.asked_for_map, with_kwargs=True),
        module.register_forward_hook(lambda _m, _a, output: found.append(output[1])),
    ]
    with torch.inference_mode():
        model(input_ids=IDS)
        for handle in handles:
            handle.remove()
        wanted = model(input_ids=IDS, output_attentions=True).attentions[1]
    assert torch.equal(found[0], wanted), "L_attn of DeBERTa-v2 reads the map there"


def test_a_layer_without_a_map_is_named():
    with pytest.raises(ArtefactError, match="Linear gives no attention map"):
        insides.asked_for_map(nn.Linear(2, 2), (torch.ones(2),), {})


# --- transformers: the Trainer


def test_several_gpus_in_one_process_become_one(tmp_path, monkeypatch):
    # As on a machine with two, without torchrun; the device stays the CPU.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    made = TrainingArguments
    monkeypatch.setattr(loop, "TrainingArguments", lambda **options: made(**{**options, "use_cpu": False}))
    assert made(str(tmp_path), per_device_train_batch_size=4).train_batch_size == 8, "if not, the function can go"
    settings = TrainingSettings(steps=2, batch_size=4, checkpoint_steps=5, log_steps=1, learning_rate=0.1)
    data = [{"input_ids": torch.full((3,), float(i))} for i in range(8)]
    module = Linear()
    collate = lambda rows: {"input_ids": torch.stack([row["input_ids"] for row in rows])}  # noqa: E731
    loop.train(module, data, collate=collate, settings=settings, folder=tmp_path / "run", seed=0)
    assert module.saw == [4, 4], "DataParallel would double the batch and mix the languages of batches"


def test_our_clipping_is_called_once_a_step_between_backward_and_step(tmp_path):
    module, calls = Linear(), []
    one = trainer(tmp_path, module)

    def clip():
        calls.append((one.state.global_step, float(module.map.weight.grad.norm())))
        return nn.utils.clip_grad_norm_(module.parameters(), 1e-12)

    before = module.map.weight.detach().clone()
    one.args.optim, one.args.adam_epsilon = "sgd", 1.0
    insides.replace_clipping(one, clip)
    one.train()
    assert [step for step, _ in calls] == [0, 1, 2] and all(norm > 0 for _, norm in calls), (
        "students that share a batch are clipped apart by it; the Trainer would silently clip them together"
    )
    assert torch.allclose(module.map.weight, before, atol=1e-6), "the step must use the clipped gradients"


def test_checkpoints_hold_what_our_functions_write_and_read(tmp_path):
    module, saved, loaded = Linear(), [], []

    def save(folder):
        folder.mkdir(parents=True)
        saved.append(folder)

    one = trainer(tmp_path, module, max_steps=2)
    insides.replace_weights(one, save=save, load=loaded.append)
    one.train()
    wanted = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    assert saved == wanted and not loaded, "checkpoints would hold the frozen teacher, or nothing"
    weights = {path.name for path in wanted[1].iterdir()} & {"model.safetensors", "pytorch_model.bin"}
    assert not weights, "the Trainer must write no weights of its own"
    again = trainer(tmp_path, Linear(), max_steps=3)
    insides.replace_weights(again, save=save, load=loaded.append)
    again.train(resume_from_checkpoint=str(wanted[1]))
    assert loaded == [wanted[1]] and again.state.global_step == 3, "a resumed run would begin with untrained weights"


def test_only_the_process_that_may_write_writes(tmp_path, monkeypatch):
    one, saved = trainer(tmp_path, Linear()), []
    insides.replace_weights(one, save=saved.append, load=saved.append)
    monkeypatch.setattr(TrainingArguments, "should_save", property(lambda _: False))
    one.save_model(str(tmp_path / "out"))
    assert not saved, "several processes would write one file at once"


def test_the_loss_is_scaled_by_the_trainer(tmp_path):
    gradients = []
    for accumulation in (1, 2):
        module = Linear()
        one = trainer(
            tmp_path / str(accumulation), module, max_steps=1, gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=4 // accumulation, train_sampling_strategy="sequential",
        )  # fmt: skip
        assert one.model_accepts_loss_kwargs, "of **batch the Trainer concludes that; if not, the function can go"
        insides.scale_loss_by_trainer(one)

        def clip(module=module):
            gradients.append(module.map.weight.grad.clone())
            return torch.ones(())

        insides.replace_clipping(one, clip)
        one.train()
    assert torch.allclose(*gradients), "accumulation would change the learning rate"


def test_what_the_trainer_lacks_is_named(tmp_path):
    with pytest.raises(ArtefactError, match=r"no Trainer\.nothing"):
        insides._replace(trainer(tmp_path, Linear()), "nothing", 1)


def test_loggers(tmp_path, monkeypatch):
    known = insides.logger_callbacks()
    assert {"tensorboard", "trackio", "wandb"} <= set(known), "TrainingSettings.loggers are checked against it"
    with pytest.raises((ImportError, RuntimeError)):
        known["clearml"]()
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    one = trainer(tmp_path / "run", Linear(), logging_steps=1, max_steps=1)
    one.add_callback(insides.tensorboard_callback(tmp_path / "board"))
    one.train()
    assert list((tmp_path / "board").glob("events*")), "the run's summary copies TensorBoard's files from there"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "wish"))
    assert insides.tensorboard_callback(tmp_path / "board").logging_dir == str(tmp_path / "wish")


# --- bars


def test_bars_of_transformers_obey_and_others_are_left_alone():
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    hub = are_progress_bars_disabled()
    for outer in (False, True):
        with insides.transformers_bars(outer):
            for shown in (True, False):
                with insides.transformers_bars(shown):
                    assert logging.is_progress_bar_enabled() is shown and are_progress_bars_disabled() is hub
                    bar = logging.tqdm(range(2), file=io.StringIO())
                    assert (type(bar).__name__ == "EmptyTqdm") is not shown, "runs would be drowned in bars"
            assert logging.is_progress_bar_enabled() is outer


def test_bars_of_datasets_obey():
    import datasets

    for outer in (False, True):
        with insides.datasets_bars(outer):
            for shown in (True, False):
                with insides.datasets_bars(shown):
                    assert datasets.are_progress_bars_disabled() is not shown
                    assert datasets.utils.tqdm(range(2), file=io.StringIO()).disable is not shown
            assert datasets.are_progress_bars_disabled() is not outer


# --- torch


@pytest.mark.skipif(not insides.has_linear_pointwise(), reason="this torch has no oneDNN")
def test_linear_pointwise():
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(shape, generator=generator) for shape in ((5, 7, 6), (4, 6), (4,)))
    for one in (bias, None):
        wanted = nn.functional.linear(rows, weight, one)
        assert torch.allclose(insides.linear_pointwise(rows, weight, one), wanted, atol=1e-5), "fast_linear calls it"


def test_the_processor_says_what_it_has():
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    wanted = "amx_tile" in flags or "avx512_bf16" in flags
    assert insides.has_bf16_units() == wanted, "precision_here goes by it"


def test_bf16_products_change_nothing_of_bf16_values_and_are_over_after_the_block():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, 40, 40, generator=generator).bfloat16().float() for _ in "ab")
    wanted = one.double() @ other.double()
    with pytest.raises(KeyError), insides.bf16_products():
        torch.testing.assert_close(torch.bmm(one, other).double(), wanted, rtol=1e-5, atol=1e-5)
        raise KeyError
    assert settings.fp32_precision == before, "maps of attention are computed inside it"


def test_the_gradient_through_a_softmax():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 300, generator=generator, requires_grad=True)
    upstream = torch.randn(5, 300, generator=generator)
    probabilities = scores.softmax(-1)
    (wanted,) = torch.autograd.grad(probabilities, scores, upstream)
    torch.testing.assert_close(insides.through_softmax(upstream, probabilities.detach()), wanted)
    low = insides.through_softmax(upstream.bfloat16(), probabilities.detach().bfloat16())
    assert low.dtype == torch.bfloat16, "aligned attention calls it"
    torch.testing.assert_close(low.float(), wanted, rtol=2**-6, atol=1e-4)


def test_an_autograd_function_is_called():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return 2 * x

        @staticmethod
        def backward(_ctx, gradient):
            return 2 * gradient

    x = torch.ones(2, requires_grad=True)
    insides.apply(Double, x).sum().backward()
    assert x.grad.tolist() == [2, 2]


# --- errors


def test_a_wrong_command_line_raises_typer_s_usage_error():
    app = typer.Typer()

    @app.command()
    def command(number: int) -> None:
        del number

    for arguments in (["--none"], [], ["three"]):
        with pytest.raises(insides.usage_error()) as error:
            app(arguments, standalone_mode=False)
        assert error.value.format_message() and hasattr(error.value, "ctx"), "cli.main makes one line of it"
    assert insides.usage_error() is not Exception and not issubclass(OSError, insides.usage_error())


def test_typer_s_parser_says_what_was_given_and_how_often():
    app = typer.Typer()

    @app.command()
    def command(word: str, many: Annotated[list[str], typer.Option()], number: int = 0) -> None:
        del word, number, many

    made = typer.main.get_command(app)
    words = ["a", "--number", "1", "--many", "b", "--number=2"]
    given = insides.words_given(made, typer.Context(made), words)
    assert [one.name for one in given if one.param_type_name == "option"] == ["number", "many", "number"]
    assert [one.multiple for one in given if one.name == "many"] == [True]
    assert len(words) == 6, "the words are left as they were"


def test_long_names_of_options_are_broken_and_not_cut_off():
    from rich.text import Text
    from typer import rich_utils

    before = rich_utils.highlighter, rich_utils.negative_highlighter
    with insides.long_names_folded():
        for highlight in (rich_utils.highlighter, rich_utils.negative_highlighter):
            assert isinstance(highlight("--name"), Text) and highlight("--name").overflow == "fold"
    assert before == (rich_utils.highlighter, rich_utils.negative_highlighter)
    assert before[0]("--name").overflow is None


def test_safetensors_says_what_the_system_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "file").mkdir()
    with pytest.raises(Exception, match="os error") as error:
        save_file({"a": torch.ones(1)}, tmp_path / "file")
    assert insides.system_error_number(error.value) == errno.EISDIR, "cli.main explains a full disk by this number"
    assert insides.system_error_number(ValueError("nothing")) is None


FULL = """
import resource, sys, torch
from bistil.runtime.insides import is_torch_writer_s
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    torch.save({"a": torch.ones(100_000)}, sys.argv[1])
except Exception as error:
    print("torch" if is_torch_writer_s(error) else repr(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file size")
def test_torch_s_writer_is_known_by_its_text(tmp_path):
    ran = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "a.pt")], capture_output=True, text=True)
    assert ran.stdout == "torch\n", f"cli.main takes this for a full disk: {ran.stdout}{ran.stderr[-500:]}"


# --- ONNX


def test_onnxruntime_s_optimizer_finds_attention_in_what_the_old_exporter_traces(tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install 'bistil[export]'")
    pytest.importorskip("onnxruntime", reason="pip install 'bistil[export]'")
    import logging

    class Positional(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = tiny.model("bert", layers=2)

        def forward(self, ids, mask):
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    module, path = Positional().eval(), list(sys.path)
    root, levels = logging.getLogger(), (logging.getLogger().level, list(logging.getLogger().handlers))
    traced, fused, small = (tmp_path / f"{name}.onnx" for name in ("traced", "fused", "small"))
    axes = {name: {0: "batch", 1: "tokens"} for name in ("ids", "mask", "out")}
    before = insides.attention_kind(module.model)
    with insides.with_attention(module.model, "eager"), torch.inference_mode():
        insides.traced_onnx(
            module, (IDS, torch.ones_like(IDS)), traced, names=(["ids", "mask"], ["out"]), axes=axes, opset=17
        )
    assert insides.attention_kind(module.model) == before
    insides.fused_bert_graph(traced, fused, heads=4, width=32)
    found = [node.op_type for node in onnx.load(fused).graph.node]
    assert [found.count(name) for name in ("Attention", "BiasGelu", "Softmax")] == [2, 2, 0], "export is slow without"
    assert found.count("LayerNormalization") == found.count("Sum") == 5, "sums that are not taken into slow operators"
    insides.int8_products(fused, small, kept=["Attention_0"])
    found = [node.op_type for node in onnx.load(small).graph.node]
    assert [found.count(name) for name in ("Attention", "QAttention")] == [1, 1], "export keeps products by their names"
    assert sys.path == path and (root.level, root.handlers) == levels


def test_a_processor_says_whether_it_has_vnni():
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "flags" not in flags.read_text():
        pytest.skip("the processor's flags are not in /proc/cpuinfo")
    words = set(flags.read_text().split())
    assert insides.has_vnni() == bool(words & {"avx512_vnni", "avx_vnni"}), "exported models say it"


# --- uvicorn


def test_uvicorn_s_protocol_shows_when_a_request_is_whole_and_when_it_is_answered():
    uvicorn = pytest.importorskip("uvicorn")
    from uvicorn.server import ServerState

    async def app(_, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    class Transport(asyncio.Transport):
        written, cut = b"", False

        def write(self, data):
            self.written += data

        def get_write_buffer_size(self):
            return 1

        def is_closing(self):
            return self.cut

        def abort(self):
            self.cut = True

        def resume_reading(self):
            pass

        def close(self):
            self.cut = True

    async def talk():
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
        made = insides.patient_protocol(60)(config=config, server_state=ServerState(), app_state={})
        made.connection_made(Transport())
        timed = [made._late is not None]
        for part in (b"POST / HTTP/1.1\r\nHost: x\r\n", b"Content-Length: 2\r\n\r\n", b"a", b"b"):
            made.data_received(part)
            timed.append(made._late is not None)
        assert timed == [True] * 4 + [False], "slow clients are cut, others are not"
        while not made.transport.written.endswith(b"\r\n\r\n"):
            await asyncio.sleep(0.001)
        assert made._stuck is not None, "who does not take an answer is cut"
        made._cut_if_stuck()
        assert made.transport.cut
        made.connection_lost(None)
        made._unset_keepalive_if_required()
        assert made._late is made._stuck is None

    asyncio.run(talk())


# --- numpy, PEFT


def test_numpy_scalars_are_pickled_with_one_function():
    names = {f"{module}.scalar" for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
    text = pickle.dumps(np.int64(3), protocol=2).decode("latin1")
    assert any(name.replace(".scalar", "\nscalar") in text for name in names), "published SFT files hold such scalars"
    made = insides.numpy_scalar_maker()(np.dtype(np.int64), np.int64(3).tobytes())
    assert made == 3 and isinstance(made, np.int64)


def test_shira_s_keys_are_peft_s(tmp_path):
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file

    config = peft.ShiraConfig(r=1, target_modules=["query"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's own calls
        peft.get_peft_model(tiny.model("bert", layers=1), config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    module = "encoder.layer.0.attention.self.query"
    assert set(stored) == set(insides.shira_keys(module)), "sparse.peft writes and reads these names"
    values, places = (stored[key] for key in insides.shira_keys(module))
    assert values.shape == (64,) and places.shape == (2, 64)
    assert [insides.shira_module(key) for key in insides.shira_keys(module)] == [module, None]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SHIRA"
