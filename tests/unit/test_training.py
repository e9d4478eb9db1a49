"""The training loop: order, checkpoints, resume, best weights, divergence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bistil.errors import DivergenceError, MissingExtraError, RecipeError
from bistil.settings.recipe import TrainingSettings
from bistil.training.identity import inputs_digest
from bistil.training.loop import epoch_order, newest_checkpoint, planned_steps, train
from bistil.training.recorder import snapshot_steps


class Regression(nn.Module):
    """A linear map with dropout, so that a resume must restore the random state too."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 1)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.calls, self.stop_at = 0, stop_at

    def forward(self, *, input_ids: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        guess = self.linear(nn.functional.dropout(input_ids, 0.2, self.training)).squeeze(-1)
        loss = ((guess - target) ** 2).mean()
        return {"loss": loss, "twice": 2 * loss}


DATA = [{"x": torch.randn(4, generator=torch.Generator().manual_seed(i)), "y": float(i % 3)} for i in range(37)]


def collate(rows):
    return {"input_ids": torch.stack([r["x"] for r in rows]), "target": torch.tensor([r["y"] for r in rows])}


def run(module, folder, inputs=None, **changes):
    options = {"steps": 20, "batch_size": 4, "learning_rate": 0.05, "checkpoint_steps": 3, "log_steps": 2}
    settings = TrainingSettings(**{**options, **changes})
    return train(module, DATA, collate=collate, settings=settings, folder=folder, seed=7, inputs=inputs)


def test_an_interrupted_run_ends_bit_identical(tmp_path):
    whole = Regression()
    run(whole, tmp_path / "whole")
    for stop_at in (2, 9, 20):
        folder = tmp_path / f"cut{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            run(Regression(stop_at=stop_at), folder)
        resumed = Regression()
        result = run(resumed, folder)
        assert result.steps == 20
        assert torch.equal(resumed.linear.weight, whole.linear.weight)
        assert torch.equal(resumed.linear.bias, whole.linear.bias)
        steps = [json.loads(line)["step"] for line in (folder / "train_log.jsonl").read_text().splitlines()]
        assert steps == list(range(2, 21, 2))


def test_warm_up_is_given_in_steps_or_as_a_share_of_all(tmp_path):
    rates = {}
    for warmup in (0, 8, 0.4):
        run(Regression(), tmp_path / str(warmup), warmup_steps=warmup)
        lines = (tmp_path / str(warmup) / "train_log.jsonl").read_text().splitlines()
        rates[warmup] = {line["step"]: line["learning_rate"] for line in map(json.loads, lines)}
    assert rates[8] == rates[0.4] != rates[0]
    # The rate logged is that of the step done: 1/8 of the peak per step, from 0, and then down to 0 at step 20.
    assert rates[8][2] == pytest.approx(0.05 / 8) and rates[8][14] == pytest.approx(0.05 * 7 / 12)


def test_a_checkpoint_without_its_mark_is_not_used(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Regression(stop_at=9), tmp_path)
    newest = newest_checkpoint(tmp_path)
    assert newest.name == "checkpoint-6"
    (newest / "complete").unlink()
    (newest / "trained.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path).name == "checkpoint-3"
    whole, resumed = Regression(), Regression()
    run(whole, tmp_path.with_name("whole"))
    run(resumed, tmp_path)
    assert torch.equal(resumed.linear.weight, whole.linear.weight)


def test_a_finished_run_returns_its_weights_without_training(tmp_path):
    first, second = Regression(), Regression()
    run(first, tmp_path)
    run(second, tmp_path)
    assert second.calls == 0
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_other_settings_start_afresh(tmp_path):
    run(Regression(), tmp_path)
    other = Regression()
    run(other, tmp_path, learning_rate=0.01)
    assert other.calls == 20


def test_what_was_learnt_from_other_inputs_is_discarded(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Regression(stop_at=9), tmp_path, inputs="one")
    same = Regression()
    run(same, tmp_path, inputs="one")
    assert 0 < same.calls < 20
    other = Regression()
    run(other, tmp_path, inputs="another")
    assert other.calls == 20


def test_work_of_version_0_1_which_knew_no_inputs_is_gone_on_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Regression(stop_at=9), tmp_path)
    resumed = Regression()
    run(resumed, tmp_path, inputs="one")
    assert 0 < resumed.calls < 20


def example(**changes):
    return {"input_ids": [3, 1, 2], "label": 1, "text": "Nairobi", "array": np.arange(3), **changes}


OTHERS = {
    "weights": ([Regression()], [example()], 5),
    "an id": ([], [example(input_ids=[3, 1, 4])], 5),
    "the order": ([], [example(input_ids=[1, 3, 2])], 5),
    "a label": ([], [example(label=0)], 5),
    "a kind of number": ([], [example(label=1.0)], 5),
    "a text": ([], [example(text="Nairobi.")], 5),
    "an array's kind": ([], [example(array=np.arange(3, dtype=np.int32))], 5),
    "a key": ([], [example(more=None)], 5),
    "a nesting": ([], [example(input_ids=[[3, 1], 2])], 5),
    "one more": ([], [example(), example()], 5),
    "what else": ([], [example()], 6),
}


@pytest.mark.parametrize("case", OTHERS)
def test_all_that_is_learnt_from_counts_as_inputs(case):
    models, data, more = OTHERS[case]
    assert inputs_digest([], [example()], 5) == inputs_digest([], [example()], 5) != inputs_digest(models, data, more)


def test_a_frozen_parameter_counts_as_an_input():
    one, other = Regression(), Regression()
    other.frozen.data[1] = 2
    assert inputs_digest([one], DATA) == inputs_digest([Regression()], DATA) != inputs_digest([other], DATA)


def test_the_best_weights_are_kept_and_patience_stops(tmp_path):
    module, figures = Regression(), iter([3.0, 1.0, 2.0, 5.0, 0.5])
    seen = []

    def evaluate(_):
        seen.append(module.linear.weight.detach().clone())
        return {"error": next(figures)}

    result = train(
        module,
        DATA,
        collate=collate,
        settings=TrainingSettings(steps=10, batch_size=4, evaluate_steps=2, patience=2, learning_rate=0.05),
        folder=tmp_path,
        seed=0,
        evaluate=evaluate,
        best_by=("error", "min"),
    )
    assert len(seen) == 4
    assert result.best == {"step": 4, "error": 1.0}
    assert torch.equal(module.linear.weight, seen[1])
    # Those that were taken, not those that were planned.
    assert result.steps == 8


def averaged(module, folder, **changes):
    """A run that ends with a mean of three; its result, and the weights at each evaluation."""
    seen = []

    def evaluate(own):
        seen.append(own.linear.weight.detach().clone())
        return {"score": float(len(seen))}

    settings = {"steps": 20, "batch_size": 4, "learning_rate": 0.05, "checkpoint_steps": 3, "evaluate_steps": 2}
    result = train(
        module, DATA, collate=collate, settings=TrainingSettings(**settings, average_last=3, **changes), folder=folder,
        seed=7, evaluate=evaluate, best_by=("score", "min"),
    )  # fmt: skip
    return result, seen


def test_the_mean_of_the_last_snapshots_is_what_a_training_ends_with(tmp_path):
    module = Regression()
    result, seen = averaged(module, tmp_path / "run")
    # Evaluated after each second step, and the mean itself at the end: snapshots are those of steps 16, 18 and 20.
    assert len(seen) == 11
    torch.testing.assert_close(module.linear.weight.detach(), torch.stack(seen[7:10]).mean(0), rtol=1e-6, atol=0)
    assert torch.equal(module.linear.weight, seen[10])
    # The first evaluation would have been the best.
    assert result.best == {"step": 20, "score": 11.0}
    assert torch.equal(module.frozen, torch.ones(3))
    in_memory = Regression()
    averaged(in_memory, None)
    assert torch.equal(in_memory.linear.weight, module.linear.weight)


def test_an_interrupted_mean_is_bit_identical(tmp_path):
    whole = Regression()
    averaged(whole, tmp_path / "whole")
    for stops in ((17,), (19,), (20,), (17, 2, 3)):
        folder = tmp_path / "-".join(map(str, stops))
        for stop_at in stops:
            with pytest.raises(KeyboardInterrupt):
                averaged(Regression(stop_at=stop_at), folder)
        resumed = Regression()
        averaged(resumed, folder)
        assert torch.equal(resumed.linear.weight, whole.linear.weight), stops
        assert torch.equal(resumed.linear.bias, whole.linear.bias)
        assert not list(folder.glob("best-*"))


def test_snapshots_are_tenths_of_the_training():
    assert snapshot_steps(100, 3) == [80, 90, 100]
    assert snapshot_steps(100, 10) == list(range(10, 101, 10))
    assert snapshot_steps(4, 10) == [1, 2, 3, 4]  # fewer, of a short training
    assert snapshot_steps(100, None) == []
    with pytest.raises(RecipeError, match="patience may stop"):
        TrainingSettings(steps=4, average_last=3, patience=1, evaluate_steps=2)


def test_a_loss_that_is_not_a_number_stops_with_the_step_named(tmp_path):
    class Diverging(Regression):
        def forward(self, **batch):
            out = super().forward(**batch)
            return {"loss": out["loss"] * (float("nan") if self.calls == 5 else 1.0)}

    with pytest.raises(DivergenceError, match=r"step 5, batch [0-9a-f]{12}"):
        run(Diverging(), tmp_path)
    assert newest_checkpoint(tmp_path).name == "checkpoint-3"


def test_a_held_out_figure_that_is_not_a_number_stops_with_the_step_named(tmp_path):
    with pytest.raises(DivergenceError, match=r"held-out loss is nan at step 4; the last good checkpoint"):
        train(
            Regression(),
            DATA,
            collate=collate,
            settings=TrainingSettings(steps=8, batch_size=4, evaluate_steps=4, checkpoint_steps=3),
            folder=tmp_path,
            seed=0,
            evaluate=lambda _: {"loss": float("nan")},
            best_by=("loss", "min"),
        )
    assert newest_checkpoint(tmp_path).name == "checkpoint-3"


def test_frozen_parameters_are_neither_trained_nor_saved(tmp_path):
    module = Regression()
    run(module, tmp_path)
    assert torch.equal(module.frozen, torch.ones(3))
    from safetensors.torch import load_file

    assert sorted(load_file(tmp_path / "final.safetensors")) == ["linear.bias", "linear.weight"]


def test_epoch_order_sees_every_example_once_per_epoch():
    lengths = np.arange(50) % 11
    for given in (None, lengths):
        order = epoch_order(50, items=150, batch_size=4, seed=1, lengths=given)
        for epoch in order.reshape(3, 50):
            assert sorted(epoch) == list(range(50))
    batches = epoch_order(48, items=48, batch_size=4, seed=1, lengths=np.arange(48)).reshape(-1, 4)
    assert (np.ptp(batches, axis=1) == 3).all()


def test_steps_and_epochs_exclude_each_other():
    assert planned_steps(10, TrainingSettings(epochs=2.0, batch_size=4)) == 5
    for endless in (TrainingSettings(epochs=1e12), TrainingSettings(steps=10**9)):
        with pytest.raises(RecipeError, match=r"steps: at most 100,000,000 can be planned"):
            planned_steps(10, endless)
    with pytest.raises(RecipeError, match="either steps or epochs"):
        planned_steps(10, TrainingSettings())
    with pytest.raises(RecipeError, match="give only one of them"):
        TrainingSettings(steps=1, epochs=1.0)


class TwoParts(nn.Module):
    """Two regressions that share their batches."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Regression(), Regression()

    def forward(self, **batch):
        first, second = self.one(**batch)["loss"], 10 * self.two(**batch)["loss"]
        return {"loss": first + second}

    def clip_groups(self):
        return [list(self.one.linear.parameters()), list(self.two.linear.parameters())]


def test_parts_keep_their_own_best_and_run_out_of_patience_alone(tmp_path):
    module = TwoParts()
    # Part one is best at step 2 and at its end at 6; its 0.1 at step 8 comes too late. Part two is best at step 8.
    figures = iter([(1.0, 9.0), (2.0, 8.0), (3.0, 7.0), (0.1, 6.0), (0.1, 7.0), (0.1, 7.0), (0.0, 0.0)])
    seen = {}

    def evaluate(_):
        seen[2 * len(seen) + 2] = [part.linear.weight.detach().clone() for part in (module.one, module.two)]
        return dict(zip(("one", "two"), next(figures), strict=True))

    result = train(
        module,
        DATA,
        collate=collate,
        settings=TrainingSettings(steps=20, batch_size=4, evaluate_steps=2, patience=2, learning_rate=0.05),
        folder=tmp_path,
        seed=0,
        evaluate=evaluate,
        best_by={"one.": ("one", "min"), "two.": ("two", "min")},
    )
    assert list(seen) == [2, 4, 6, 8, 10, 12]
    assert {prefix: best["step"] for prefix, best in result.best_parts.items()} == {"one.": 2, "two.": 8}
    assert torch.equal(module.one.linear.weight, seen[2][0])
    assert torch.equal(module.two.linear.weight, seen[8][1])
    assert not list(tmp_path.glob("best-*"))


def scalars(folder):
    """tag -> {step: value} of TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_every_figure_of_the_log(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    settings = TrainingSettings(
        steps=8, batch_size=4, log_steps=2, evaluate_steps=4, checkpoint_steps=3, loggers=["tensorboard"]
    )
    options = {
        "collate": collate,
        "settings": settings,
        "folder": tmp_path,
        "seed": 0,
        "evaluate": lambda module: {"size": float(module.linear.weight.abs().sum())},
    }
    with pytest.raises(KeyboardInterrupt):
        train(Regression(stop_at=6), DATA, **options)
    result = train(Regression(), DATA, **options)
    lines = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    found = scalars(tmp_path / "tensorboard")
    for tag, key in (("train/loss", "loss"), ("train/twice", "twice"), ("train/learning_rate", "learning_rate")):
        assert found[tag] == pytest.approx({line["step"]: line[key] for line in lines if key in line}, rel=1e-5)
    assert list(found["train/loss"]) == [2, 4, 6, 8]
    assert found["eval/size"] == pytest.approx({entry["step"]: entry["size"] for entry in result.history})


def test_a_logger_that_is_not_installed_or_unknown_is_one_line(tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    for name, package in (
        ("tensorboard", r"'bistil\[tensorboard\]'"),
        ("trackio", r"'bistil\[trackio\]'"),
        ("wandb", "wandb"),
    ):
        with pytest.raises(MissingExtraError, match=f"logger '{name}' is not installed: pip install {package}$"):
            run(Regression(), tmp_path / "work", loggers=[name])
    with pytest.raises(RecipeError, match=r"unknown logger 'tensorbord': choose from .*tensorboard, trackio"):
        run(Regression(), tmp_path / "work", loggers=["tensorbord"])
    assert not (tmp_path / "work").exists()


# Held-out figures by step: what is best at checkpoint 9 (step 8) is not what is best at checkpoint 12 (step 12).
FIGURES = {2: 9.0, 4: 8.0, 6: 7.0, 8: 2.0, 10: 3.0, 12: 1.0, 14: 4.0, 16: 5.0, 18: 6.0, 20: 7.0}


def chosen(module, folder, figures=FIGURES, **changes):
    """Like `run`, with the best weights kept; leaves them in the module, which says how many steps came before."""

    def evaluate(one):
        # One call of forward per step.
        return {"error": figures[one.calls + one.before]}

    settings = TrainingSettings(
        **{"steps": 20, "batch_size": 4, "learning_rate": 0.05, "checkpoint_steps": 3, "evaluate_steps": 2, **changes}
    )
    return train(
        module, DATA, collate=collate, settings=settings, folder=folder, seed=7, evaluate=evaluate,
        best_by=("error", "min"),
    )  # fmt: skip


def interrupted(folder, figures=FIGURES):
    """A run that was stopped in step 14; its checkpoints are 9 and 12."""
    module = Regression(stop_at=14)
    module.before = 0
    with pytest.raises(KeyboardInterrupt):
        chosen(module, folder, figures)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-9"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = [
    *((f"checkpoint-12/{name}", flip) for name in (
        "trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "complete",
    )),
    ("checkpoint-12/optimizer.pt", cut),
    ("checkpoint-12/complete", cut),
    ("checkpoint-12/trained.safetensors", Path.unlink),
    ("best-0-12.safetensors", flip),
    ("best-0-12.safetensors", Path.unlink),
]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    module = Regression()
    module.before = 0
    result = chosen(module, tmp_path_factory.mktemp("whole") / "run")
    assert result.best["step"] == 12
    return module


@pytest.mark.parametrize(("file", "damage"), DAMAGE, ids=lambda one: getattr(one, "__name__", one))
def test_a_damaged_checkpoint_gives_way_to_the_one_before_bit_identically(tmp_path, capfd, uninterrupted, file, damage):
    interrupted(tmp_path / "run")
    damage(tmp_path / "run" / file)
    module = Regression()
    module.before = 9
    chosen(module, tmp_path / "run")
    name = file.rpartition("/")[2]
    line = f"[bistil] {tmp_path}/run/checkpoint-12 is damaged ({name}): going on from checkpoint-9\n"
    assert line in capfd.readouterr().err
    assert module.calls == 20 - 9
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), uninterrupted.parameters(), strict=True))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/train_log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_without_a_sound_checkpoint_training_starts_anew(tmp_path, capfd, uninterrupted):
    interrupted(tmp_path / "run")
    flip(tmp_path / "run/checkpoint-12/optimizer.pt")
    cut(tmp_path / "run/checkpoint-9/rng_state.pth")
    module = Regression()
    module.before = 0
    chosen(module, tmp_path / "run")
    assert "checkpoint-9 is damaged (rng_state.pth): there is none before it, so training starts anew" in (
        capfd.readouterr().err
    )
    assert module.calls == 20
    assert torch.equal(module.linear.weight, uninterrupted.linear.weight)


def test_the_best_weights_of_both_kept_checkpoints_are_kept(tmp_path):
    interrupted(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-0-12.safetensors", "best-0-8.safetensors"]


def test_a_sound_checkpoint_is_not_touched(tmp_path, capfd):
    interrupted(tmp_path)
    assert newest_checkpoint(tmp_path).name == "checkpoint-12"
    assert "damaged" not in capfd.readouterr().err
    # One of version 0.1 has no digests.
    mark = tmp_path / "checkpoint-12/complete"
    saved = json.loads(mark.read_text())
    mark.write_text(json.dumps({key: saved[key] for key in ("step", "tokens", "seconds", "best", "history")}))
    assert newest_checkpoint(tmp_path).name == "checkpoint-12"


@pytest.mark.parametrize(
    ("file", "damage"),
    [("final.safetensors", flip), ("final.safetensors", Path.unlink), ("result.json", cut), ("result.json", flip)],
)
def test_a_finished_run_whose_weights_are_damaged_is_done_again(tmp_path, capfd, uninterrupted, file, damage):
    first, again = Regression(), Regression()
    first.before = again.before = 0
    chosen(first, tmp_path)
    damage(tmp_path / file)
    chosen(again, tmp_path)
    assert f"{tmp_path / file} was damaged or deleted since: trained again" in capfd.readouterr().err
    assert again.calls == 20
    assert torch.equal(again.linear.weight, uninterrupted.linear.weight)


def test_other_damaged_records_of_a_run_are_no_traceback(tmp_path, capfd, uninterrupted):
    interrupted(tmp_path)
    log = tmp_path / "train_log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"\xff{]\n" + b"[]\n" + b"[" * 100_000 + b"\n" + b"".join(lines) + b'{"step": 3')
    module = Regression()
    module.before = 12
    chosen(module, tmp_path)
    assert torch.equal(module.linear.weight, uninterrupted.linear.weight)
    assert log.read_bytes().startswith(b"".join(line for line in lines if json.loads(line)["step"] <= 12))
    cut(tmp_path / "identity.json")
    again = Regression()
    again.before = 0
    chosen(again, tmp_path)
    assert "identity.json is damaged, so it is not known what lies beside it: training starts anew" in (
        capfd.readouterr().err
    )
    assert torch.equal(again.linear.weight, uninterrupted.linear.weight)
