"""What any number of language pairs costs: FLOPs of a study's stages divided by rates that are on record.

    python benchmarks/scale.py benchmarks/studies/sweep.toml --data DATA

The study is planned twice, with its first target alone and with all of them, and nothing is made: what another target
adds is the cost of a pair, and all else (the task teacher, loading the multilingual one) is shared and counted once.
Rates are those of benchmarks/records: this processor, one thread, bf16. A GPU was never run: its figures are a
published peak rate times a share that is assumed. `--paper` gives every pair the paper's lengths, `--run DIR` compares
with what a finished run of the study took. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bistil.measuring.shape import EncoderShape
from bistil.models.loading import read_config
from bistil.runs.cost import Passes
from bistil.runs.forecast import Forecast, Forecaster
from bistil.runs.rates import Rates
from bistil.runtime.artefacts import read_sealed
from bistil.settings.study import StudySettings, load_study
from bistil.study import Study, study_at

RECORDS = Path(__file__).parent / "records"
PAIRS = (1, 100, 2000)
# NVIDIA's data sheet of the H100 SXM, bf16 without sparsity; and the share that small models are assumed to reach.
CPU = "one thread"
GPU, GPU_PEAK, GPU_SHARE = "one H100", 989e12, 0.10
# Section 4: phase 1 of 200,000 steps of 8 x 256 tokens; ten epochs over the labels.
PAPER_STEPS, PAPER_BATCH, PAPER_LENGTH, PAPER_EPOCHS = 200_000, 8, 256, 10.0


class Recorded(Rates):
    """Rates of one kind of machine, instead of this one's.

    Args:
        flops: per second, by kind of pass.
    """

    def __init__(self, flops: Mapping[str, float]) -> None:
        super().__init__(Path("no rates"))
        self.flops = flops

    def seconds(self, passes: Passes) -> float:
        return passes.flops / self.flops[passes.kind]


def processor() -> dict[str, float]:
    """FLOP/s of one thread by kind of pass, out of the records of steps."""
    low, full = (_record(f"phase1_step-cpu-one-thread-zen4-{name}")["demo"] for name in ("bf16", "float32"))
    task = _record("task_step-cpu-one-thread-zen4")
    whole = EncoderShape.of(_e5_small())
    forward = task["rows"] * whole.flops(64)
    half = task["rows"] * whole.with_layers([*range(1, whole.depth + 1, 2)]).flops(64)
    trained = low["step_gflop"] * 1e9 / low["seconds"]["ours"]
    # Scores are float32.
    scored = full["step_gflop"] * 1e9 / full["seconds"]["ours"]
    return {
        "phase1": trained,
        "language": trained,
        "labels": 3 * forward / task["demo-64"]["teacher"]["seconds"]["bf16"],
        "phase2": (forward + 3 * half) / task["demo-64"]["student"]["seconds"]["bf16"],
        "score": scored,
        "single": scored,
    }


def _record(name: str) -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text())


def _e5_small() -> Any:
    from bistil.pretrained import e5_small_folder

    return read_config(e5_small_folder())


@dataclass(frozen=True)
class Work:
    """What some stages take: FLOPs, seconds, and bytes that stay on disk."""

    flops: float
    seconds: float
    disk: float

    @classmethod
    def of(cls, forecast: Forecast) -> "Work":
        """All of a plan."""
        return cls(sum(one.flops for one in forecast.stages), forecast.seconds, forecast.disk)

    def plus(self, times: float, other: "Work") -> "Work":
        """This, and so many times the other."""
        return Work(
            *(mine + times * theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        )


def planned(study: Study, machines: Mapping[str, Rates]) -> dict[str, Work]:
    """What a study's points take, by machine."""
    forecaster, stages, found = Forecaster(names=study.names), [*study.stages(study.points())], {}
    for name, rates in machines.items():
        forecaster.rates = rates
        found[name] = Work.of(forecaster.forecast(stages))
    return found


def shared_and_pair(one: Work, everything: Work, targets: int) -> tuple[Work, Work]:
    """What is done once for all pairs, and what each pair takes.

    Args:
        one: of the first target alone.
        everything: of so many targets.
    """
    pair = Work(0.0, 0.0, 0.0).plus(1 / (targets - 1), everything.plus(-1, one))
    return one.plus(-1, pair), pair


def at_length(settings: StudySettings) -> StudySettings:
    """The paper's lengths, and all labels."""
    phase1, finetune, phase2 = settings.phase1, settings.finetune, settings.phase2
    text = replace(phase1.training, steps=PAPER_STEPS, batch_size=PAPER_BATCH, evaluate_steps=None)
    return replace(
        settings,
        phase1=replace(phase1, block_length=PAPER_LENGTH, training=text),
        finetune=replace(finetune, training=replace(finetune.training, epochs=PAPER_EPOCHS)),
        phase2=replace(phase2, training=replace(phase2.training, epochs=PAPER_EPOCHS)),
        dev_examples=None,
        teacher_examples=None,
        student_examples=None,
        test_examples=None,
    )


def took(folder: Path) -> dict[str, float]:
    """Seconds of a finished run's stages, by kind."""
    found: dict[str, float] = {}
    for file in sorted((folder / "stages").glob("*.json")):
        record = read_sealed(file)
        found[record["kind"]] = found.get(record["kind"], 0.0) + record["seconds"]
    return found


def _said(seconds: float) -> str:
    hours = seconds / 3600
    return f"{seconds / 60:.1f} min" if hours < 1 else f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.0f} days"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="with two targets or more")
    parser.add_argument("--data", type=Path, help="what its paths are relative to; default: its folder")
    parser.add_argument("--paper", action="store_true", help="the paper's lengths")
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS, help="so many language pairs")
    parser.add_argument("--run", type=Path, help="a finished run of the study")
    options = parser.parse_args()
    settings, data = load_study(options.study), options.data or options.study.parent
    if options.paper:
        settings = at_length(settings)
    flops = {CPU: processor(), GPU: dict.fromkeys(processor(), GPU_PEAK * GPU_SHARE)}
    machines = {name: Recorded(rates) for name, rates in flops.items()}
    targets = [*settings.targets]
    alone = replace(settings, targets={targets[0]: settings.targets[targets[0]]}, groups={})
    one, everything = (planned(study_at(options.study, own, data), machines) for own in (alone, settings))
    found: dict[str, Any] = {"study": settings.name, "paper's lengths": options.paper, "flop_per_second": flops}
    print("| pairs | FLOP | " + " | ".join(machines) + " | disk |\n| --- | --- |" + " --- |" * (len(machines) + 1))
    works = {name: shared_and_pair(one[name], everything[name], len(targets)) for name in machines}
    for count in options.pairs:
        each = {name: shared.plus(count, pair) for name, (shared, pair) in works.items()}
        times = " | ".join(_said(work.seconds) for work in each.values())
        print(f"| {count:,} | {each[CPU].flops:.2e} | {times} | {each[CPU].disk / 1e9:,.1f} GB |")
        found[str(count)] = {name: vars(work) for name, work in each.items()}
    found["estimate"] = vars(everything[CPU])
    print(f"\nthe study itself: {everything[CPU].seconds:.0f} s")
    if options.run:
        found["took"] = took(options.run)
        print(f"taken: {sum(found['took'].values()):.0f} s")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
