"""Time and memory of one phase-1 step against a step done the official way, as ratios from one run.

    python benchmarks/phase1_step.py            # both sizes, on the CPU, in the precision that a training has here
    python benchmarks/phase1_step.py --precision float32 --sizes demo --record benchmarks/records/NAME.json
    python benchmarks/phase1_step.py --clock cpu   # one thread, processor time: holds on a machine with other work
    python benchmarks/phase1_step.py --device cuda # on a GPU, whose memory is then what is measured

The baseline does what the official implementation does at every step: teacher and student with masked-LM head, all
attention maps and hidden states of all layers of both in eager attention, plain AdamW, in float32 (or
--baseline-precision). Ours is the step that training runs, `Distiller` and fused AdamW, in --precision; "auto" is what
a recipe's default means here. Both clip gradients. Each runs in a process of its own, and the two take turns step by
step, so that whatever else the machine does hits both; medians are over steps. Peak memory is the process's highest
resident set, or what the GPU had allocated. The matrix rate is measured in between, at the step's own shapes and in our
precision, with the two libraries inside PyTorch.

The last line is one JSON object: per size throughput_ratio (baseline time / our time), memory_ratio (ours / baseline)
and gemm_share (FLOPs of the step / our time / the better library's rate).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

Size = dict[str, int]
Clock = Callable[[], float]
SIZES: dict[str, Size] = {
    "mbert": {"hidden": 768, "heads": 12, "vocabulary": 31_000, "layers": 12, "batch": 8, "tokens": 256},
    "demo": {"hidden": 384, "heads": 12, "vocabulary": 24_000, "layers": 12, "batch": 8, "tokens": 256},
    "tiny": {"hidden": 32, "heads": 4, "vocabulary": 500, "layers": 4, "batch": 2, "tokens": 32},
}

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def step_flops(size: Size) -> int:
    """FLOPs that a lean step needs: the teacher's forward pass, the student's forward and backward passes."""
    rows, width = size["batch"] * size["tokens"], size["hidden"]
    layer = 24 * rows * width**2 + 4 * rows * size["tokens"] * width
    return layer * (size["layers"] + 3 * size["layers"] // 2)


def models(size: Size, kind: str = "BertForMaskedLM") -> tuple[Any, Any]:
    """A teacher with random weights, of a transformers class of that name, and its student at reduction 2."""
    import torch
    import transformers

    from bistil.distillation.student import make_student

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=size["vocabulary"],
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=4 * size["hidden"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    teacher = getattr(transformers, kind)(config).eval().requires_grad_(False)
    student = make_student(teacher, list(range(2, size["layers"] + 1, 2)))
    return teacher, student.requires_grad_(True).train()


def batch(size: Size, device: str) -> dict[str, Any]:
    import torch

    ids = torch.randint(5, size["vocabulary"], (size["batch"], size["tokens"]), device=device)
    return {"input_ids": ids}


def official_step(size: Size, *, device: str, precision: str) -> Callable[[], float]:
    """The baseline's step as a function."""
    import torch
    from torch.nn import functional as F

    teacher, student = models(size)
    for model in (teacher, student):
        model.to(device).set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, foreach=False, fused=False)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            inputs = {**batch(size, device), "output_hidden_states": True, "output_attentions": True}
            with torch.no_grad():
                theirs = teacher(**inputs)
            ours = student(**inputs)
            count = len(ours.attentions)
            attention: Any = (
                sum(F.mse_loss(ours.attentions[i], theirs.attentions[2 * i + 1]) for i in range(count)) / count
            )
            hidden = sum(F.mse_loss(ours.hidden_states[i], theirs.hidden_states[2 * i]) for i in range(count + 1))
            loss = attention + hidden / (count + 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def our_step(size: Size, *, device: str, precision: str, freed: bool = True) -> Callable[[], float]:
    """The step that `bistil.training.loop.train` carries out on a `Distiller`, as a function.

    Args:
        freed: the process lets training return memory, as the command line does.
    """
    from bistil.runtime.memory import return_freed_memory

    if freed:
        return_freed_memory(size["hidden"], precision)
    import torch

    from bistil.distillation.module import Distiller
    from bistil.settings.recipe import ObjectiveSettings

    teacher, student = models(size)
    module = Distiller(teacher, {"s": student}, objectives={"s": ObjectiveSettings()}).to(device).train()
    # As `distill_general`: what gets no gradient (the head) is not trained.
    module(**{name: value[:1, :8] for name, value in batch(size, device).items()})["loss"].backward()
    trained = [p for p in module.parameters() if p.grad is not None]
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = module(**batch(size, device))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def matrix_rates(size: Size, *, precision: str, clock: Clock) -> dict[str, float]:
    """FLOP/s of MKL and oneDNN over the step's linear maps: forward, and both backward products."""
    import torch

    rows, width = size["batch"] * size["tokens"], size["hidden"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    onednn = torch.ops.mkldnn._linear_pointwise
    seconds, flops = {"mkl": 0.0, "onednn": 0.0}, 0
    for inside, outside, times in ((width, width, 4), (width, 4 * width, 1), (4 * width, width, 1)):
        x, w, g = (torch.randn(shape, dtype=dtype) for shape in ((rows, inside), (outside, inside), (rows, outside)))
        # A step does two teacher passes and one student pass forward per student layer, one pass backward.
        for a, b, passes in ((x, w, 3), (g, w.t(), 1), (g.t(), x.t(), 1)):
            flops += 2 * rows * inside * outside * times * passes
            for name, product in (
                ("mkl", torch.nn.functional.linear),
                ("onednn", lambda a, b: onednn(a, b, None, "none", [], "")),
            ):
                took = []
                for _ in range(4):
                    start = clock()
                    product(a, b)
                    took.append(clock() - start)
                seconds[name] += statistics.median(took[1:]) * times * passes
    return {name: flops / value for name, value in seconds.items()}


def peak_memory(device: str = "cpu") -> int:
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        raise SystemExit("memory is measured on Linux and macOS")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(kind: str, size: Size, precision: str, clock: Clock, device: str) -> None:
    """A process that does one thing per line on standard input and answers with one line of JSON."""
    if clock is time.process_time:
        import torch

        torch.set_num_threads(1)
    if kind == "rates":
        act = None
    else:
        steps: dict[str, Callable[..., Callable[[], float]]]
        steps = {"official": official_step, "ours": our_step, "notebook": partial(our_step, freed=False)}
        act = steps[kind](size, device=device, precision=precision)
        act()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        if act is None:
            print(json.dumps(matrix_rates(size, precision=precision, clock=clock)), flush=True)
            continue
        start = clock()
        loss = act()  # a number, so a GPU has done its work
        answer = {"seconds": clock() - start, "memory": peak_memory(device), "loss": loss}
        print(json.dumps(answer), flush=True)


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """Its standard input and output."""
    assert process.stdin and process.stdout
    return process.stdin, process.stdout


def ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    """One more step, or measurement."""
    questions, answers = pipes(process)
    questions.write("go\n")
    questions.flush()
    answer: dict[str, Any] = json.loads(answers.readline())
    return answer


def compare(
    name: str, *, steps: int, precisions: dict[str, str], clock: str, device: str, notebook: bool
) -> dict[str, Any]:
    """The steps in turns.

    Args:
        precisions: of "official" and "ours".
        notebook: our step too as it is where nobody set the allocator.
    """
    size = SIZES[name]
    processes = {}
    kinds = ["official", "ours", *(["notebook"] if notebook else [])]
    # The libraries whose rate is measured are the CPU's.
    for kind in (*kinds, "rates") if device == "cpu" else kinds:
        command = [
            sys.executable,
            __file__,
            "--work",
            kind,
            "--sizes",
            name,
            "--precision",
            precisions.get(kind, precisions["ours"]),
            "--device",
            device,
            "--clock",
            clock,
        ]
        processes[kind] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert json.loads(pipes(processes[kind])[1].readline())["ready"]
    answers: dict[str, list[dict[str, Any]]] = {kind: [] for kind in processes}
    for number in range(steps):
        for kind in kinds:
            answers[kind].append(ask(processes[kind]))
        if number % 2 == 0 and "rates" in processes:
            answers["rates"].append(ask(processes["rates"]))
    for process in processes.values():
        pipes(process)[0].close()
        process.wait()
    seconds = {kind: statistics.median(a["seconds"] for a in answers[kind]) for kind in kinds}
    memory = {kind: max(a["memory"] for a in answers[kind]) for kind in kinds}
    measured = answers.get("rates", [])
    rates = {kind: statistics.median(a[kind] for a in measured) for kind in ("mkl", "onednn") if measured}
    tokens = size["batch"] * size["tokens"]
    result = {
        "throughput_ratio": round(seconds["official"] / seconds["ours"], 2),
        "memory_ratio": round(memory["ours"] / memory["official"], 2),
        "gemm_share": round(step_flops(size) / seconds["ours"] / max(rates.values()), 3) if rates else None,
        "seconds": {kind: round(value, 3) for kind, value in seconds.items()},
        "memory_gib": {kind: round(value / 2**30, 2) for kind, value in memory.items()},
        "tokens_per_second": {kind: round(tokens / value) for kind, value in seconds.items()},
        "step_gflop": round(step_flops(size) / 1e9),
        "gflop_per_second": {kind: round(value / 1e9) for kind, value in rates.items()},
        "steps": steps,
    }
    if notebook:
        result["notebook"] = {
            "throughput_to_ours": round(seconds["ours"] / seconds["notebook"], 2),
            "memory_to_ours": round(memory["notebook"] / memory["ours"], 2),
        }
        print(f"{name}, in a notebook: {result['notebook']}", flush=True)
    print(
        f"{name}: official {seconds['official']:.2f} s {memory['official'] / 2**30:.2f} GiB, "
        f"ours {seconds['ours']:.2f} s {memory['ours'] / 2**30:.2f} GiB; "
        f"{result['throughput_ratio']} times the throughput, {result['memory_ratio']} times the memory; "
        f"matrix rates {result['gflop_per_second']} GFLOP/s, share {result['gemm_share']}",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["mbert", "demo"], choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bf16"], help="of our step")
    parser.add_argument("--baseline-precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: processor time of one thread")
    parser.add_argument(
        "--notebook", action="store_true", help="our step too where nobody called let_training_return_memory"
    )
    parser.add_argument("--record", type=Path, help="also write the JSON here")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, SIZES[options.sizes[0]], options.precision, CLOCKS[options.clock], options.device)
        return
    import torch

    from bistil.measuring.benchmark import machine
    from bistil.runtime.precision import precision_here

    ours = precision_here(options.device) if options.precision == "auto" else options.precision
    precisions = {"official": options.baseline_precision, "ours": ours}
    results = {
        "precision": precisions,
        "device": options.device,
        "threads": 1 if options.clock == "cpu" else torch.get_num_threads(),
        "clock": options.clock,
        "machine": machine(),
        "torch": torch.__version__,
        **{
            name: compare(
                name,
                steps=options.steps,
                precisions=precisions,
                clock=options.clock,
                device=options.device,
                notebook=options.notebook,
            )
            for name in options.sizes
        },
    }
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
