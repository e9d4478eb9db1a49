"""Sparse fine-tuning killed at random moments, or shared by two processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from forking import fork, share
from safetensors.torch import load_file, save_file

TESTS = Path(__file__).parents[1]
# The package that is tested here is tested there.
PATH = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
KILLS = 8


def fine_tune(folder: Path, out: str) -> None:
    """A small task SFT through both phases, saved with the model that wears it."""
    sys.path.insert(0, str(TESTS / "unit"))
    from test_sparse_training import run

    from bistil.settings.recipe import SparseSettings, TrainingSettings
    from bistil.training.loop import processes

    training = TrainingSettings(
        epochs=1, batch_size=4, learning_rate=5e-3, weight_decay=0.1, checkpoint_steps=2, log_steps=1
    )
    settings = SparseSettings(density=0.05, dense_steps=8, sparse_steps=12)
    module, sft = run(folder / f"work-{out}", settings=settings, training=training)
    if processes().is_main_process:
        sft.save(folder / out, replace=True)  # a kill may fall between the last write and the end
        save_file({name: p.detach().cpu() for name, p in module.model.named_parameters()}, folder / f"{out}.worn")


def adapt_language(folder: Path) -> None:
    """A small language SFT."""
    from bistil.settings.recipe import TrainingSettings
    from bistil.sparse.language import AdaptSettings, adapt

    training = TrainingSettings(steps=1, batch_size=4, learning_rate=5e-2)
    settings = AdaptSettings(density=0.1, steps=8, block_length=24, held_out=0.2, training=training)
    adapt(
        str(folder / "model"), [folder / "sw.txt"], folder / "language", language="sw", settings=settings,
        work=folder / "work-language",
    )  # fmt: skip


def kill_again_and_again(folder: Path) -> None:
    """One whole run, then others that are killed at random moments, `KILLS` times in all, and gone on with.

    A run that comes to its end is kept and the next one begins anew, so that the number of kills does not depend on the
    machine's speed.
    """
    import bistil.sparse  # noqa: F401  (children inherit the imports)

    started = time.monotonic()
    child = fork(folder / "log.txt", partial(fine_tune, folder, "whole"))
    assert os.waitpid(child, 0)[1] == 0, (folder / "log.txt").read_text()[-3000:]
    longest = 0.6 * (time.monotonic() - started)
    generator = random.Random(0)
    kills, finished = 0, []
    while kills < KILLS or not finished:
        name = f"cut-{len(finished)}"
        child = fork(folder / "log.txt", partial(fine_tune, folder, name))
        if kills < KILLS:
            time.sleep(generator.uniform(0.1, 1.0) * longest)
            done, status = os.waitpid(child, os.WNOHANG)
            if done == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                continue
            # The first run pays for warming up; later ones are quicker than it said.
            longest *= 0.7
        else:
            status = os.waitpid(child, 0)[1]
        assert status == 0, (folder / "log.txt").read_text()[-3000:]
        finished.append(name)
    print(json.dumps({"kills": kills, "finished": finished}))


def alone_and_together(folder: Path) -> None:
    """A run of one process, then what two do."""
    import bistil.sparse.language  # noqa: F401  (children inherit the imports)

    log = folder / "log.txt"
    alone = share(log, partial(fine_tune, folder, "one"), 1)
    together = share(log, partial(fine_tune, folder, "two")) + share(log, partial(adapt_language, folder))
    assert not any(alone + together), log.read_text()[-4000:]


def launch(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_the_sft_is_bit_identical(tmp_path):
    report = json.loads(launch(__file__, "kill", str(tmp_path)).splitlines()[-1])
    assert report["kills"] == KILLS
    for name in report["finished"]:
        assert (tmp_path / name / "sft.safetensors").read_bytes() == (tmp_path / "whole/sft.safetensors").read_bytes()
        assert (tmp_path / f"{name}.worn").read_bytes() == (tmp_path / "whole.worn").read_bytes()


@pytest.mark.timeout(600)
def test_two_processes_leave_frozen_entries_alone_and_agree_with_one(tmp_path):
    import tiny

    tiny.masked_lm(layers=2).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI * 4, encoding="utf-8")
    launch(__file__, "share", str(tmp_path))
    sys.path.insert(0, str(TESTS / "unit"))
    from test_sparse_training import HEADS, tagger

    from bistil.sparse import SparseFineTuning, compare

    one, two = (SparseFineTuning.load(tmp_path / out) for out in ("one", "two"))
    together, _ = compare(one, two)
    # Sums over processes round differently, so entries near the threshold may change places.
    assert together.overlap > 0.97 and together.cosine > 0.99
    worn = load_file(tmp_path / "two.worn")
    for name, parameter in tagger().model.named_parameters():
        if name in HEADS:
            continue
        frozen = torch.ones(parameter.numel(), dtype=torch.bool)
        frozen[two.deltas[name].indices if name in two.deltas else []] = False
        before, after = parameter.detach().flatten().view(torch.int32), worn[name].flatten().view(torch.int32)
        assert torch.equal(before[frozen], after[frozen]), name
    # A language SFT by the same two processes: one of them wrote it.
    language = SparseFineTuning.load(tmp_path / "language").provenance
    assert language.metrics["held-out masked-LM loss after"] < language.metrics["held-out masked-LM loss before"]
    assert not list(tmp_path.glob(".language*"))


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    {"kill": kill_again_and_again, "share": alone_and_together}[what](where)
