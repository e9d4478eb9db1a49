"""Requests to `bistil serve` from many clients at once: errors, latencies, memory; and from start to first answer.

    python benchmarks/serve.py --model deployed                       # 10,000 requests from 32 clients
    python benchmarks/serve.py --model deployed --requests 100000     # and whether memory grows
    python benchmarks/serve.py                                        # a tagger with random weights

Each client keeps one connection and sends a sentence as soon as the last one is answered: as many requests are in
flight as there are clients. No two sentences are alike. An error is any answer but 200, one about another sentence, or
a connection that breaks. "cpu_ms" is the server's processor time per request, "peak_mb" its peak of resident memory
from its start to that number of requests. At the end, under load, the server gets SIGTERM: what is in flight must be
answered, and its exit code be 0.

Server and clients run on the processors that this process may use (taskset), and share them: a latency holds the
clients' own work too. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

WORDS = """
    paka aliketi kwenye mkeka na kutazama mwezi mkulima aliuza kondoo saba sokoni Nairobi mvua ilinyesha usiku kucha
    lakini mto ulibaki mtulivu anasoma kitabu kipya kila wiki rais Samia alizungumza watu kuhusu shule barabara Kenya
    Juma anacheza mpira marafiki zake baada ya kazi treni kwenda pwani Mombasa inaondoka asubuhi mapema
""".split()  # noqa: SIM905  # a page of text
BLOCK = 10_000


def random_model(folder: Path) -> Path:
    """A tagger of 3 layers of width 384 with random weights, and the tokenizer of e5-small."""
    import predict

    predict.random_model(folder / "model")
    return folder / "model"


def status(pid: int, name: str) -> float:
    """Megabytes of a process's memory: VmRSS now, VmHWM at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def processor_seconds(pid: int) -> float:
    """That a process has had."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


class Client:
    """One connection that asks one thing after the other."""

    def __init__(self, port: int, seed: int) -> None:
        self.port, self.draw = port, random.Random(seed)
        self.reader: Any = None
        self.writer: Any = None

    async def ask(self) -> float:
        """Seconds to the answer of a sentence.

        Raises:
            ConnectionError, ValueError: it is no answer to it.
        """
        text = " ".join(self.draw.choices(WORDS, k=self.draw.randint(3, 24))) + "."
        body = json.dumps({"inputs": [text]}).encode()
        lines = ("POST /predict HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(body)}")
        head = "\r\n".join([*lines, "", ""])
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        started = time.perf_counter()
        self.writer.write(head.encode() + body)
        said = await self.reader.readuntil(b"\r\n\r\n")
        size = next(
            int(line.split(b":")[1]) for line in said.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        answer = await self.reader.readexactly(size)
        seconds = time.perf_counter() - started
        if not said.startswith(b"HTTP/1.1 200 ") or json.loads(answer)["predictions"][0]["text"] != text:
            raise ValueError(said[:40].decode())
        return seconds

    def close(self) -> None:
        """Leave."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


async def asked(clients: list[Client], requests: int) -> tuple[list[float], list[str]]:
    """Latencies and errors of so many requests, shared among clients as they are ready."""
    left, seconds, errors = iter(range(requests)), list[float](), list[str]()

    async def work(client: Client) -> None:
        for _ in left:
            try:
                seconds.append(await client.ask())
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                errors.append(f"{type(error).__name__}: {error}")
                client.close()

    await asyncio.gather(*map(work, clients))
    return seconds, errors


async def stopped(server: "subprocess.Popen[str]", clients: list[Client]) -> dict[str, int]:
    """SIGTERM under load: how many of the requests in flight were answered, and the exit code."""
    tasks = [asyncio.ensure_future(client.ask()) for client in clients]
    # Sent, all of them.
    await asyncio.sleep(0.02)
    flying = sum(not task.done() for task in tasks)
    server.send_signal(signal.SIGTERM)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    code = await asyncio.to_thread(server.wait, 60)
    return {
        "in_flight": flying,
        "lost": sum(isinstance(one, BaseException) for one in found),
        "exit_code": code,
    }


def started(command: list[str]) -> "tuple[subprocess.Popen[str], int]":
    """A server, and its port as soon as it is there."""
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if "serving at" in line:
            return server, int(line.split(";")[0].rsplit(":", 1)[1])
    raise SystemExit(f"the server did not start: exit code {server.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: a tagger with random weights")
    parser.add_argument("--requests", type=int, default=BLOCK)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, help="stop after the block of 10,000 in which so many have passed")
    parser.add_argument("--note", default="", help="what else the machine did, for the record")
    parser.add_argument("--record", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = options.model or random_model(Path(place))
        record = measure(model, options)
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def measure(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    launched = time.perf_counter()
    server, port = started([sys.executable, "-m", "bistil", "serve", str(model), "--port", "0"])
    try:
        listening = time.perf_counter() - launched
        first = Client(port, 1)
        asyncio.run(first.ask())
        answered, worked = time.perf_counter() - launched, processor_seconds(server.pid)
        print(f"listening after {listening:.1f} s, first answer after {answered:.1f} s", flush=True)
        result = asyncio.run(load(server, port, options))
    finally:
        server.kill()
    from bistil.measuring.benchmark import machine

    return {
        "model": model.name,
        "clients": options.clients,
        "processors": len(psutil.Process().cpu_affinity()),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "note": options.note,
        "start_seconds": {
            "listening": round(listening, 2),
            "first_answer": round(answered, 2),
            "processor": round(worked, 2),
        },
        **result,
        "machine": machine(),
    }


async def load(server: "subprocess.Popen[str]", port: int, options: argparse.Namespace) -> dict[str, Any]:
    """The requests, in blocks."""
    clients = [Client(port, seed) for seed in range(options.clients)]
    rows, errors, done, begun = list[dict[str, Any]](), list[str](), 0, time.perf_counter()
    while done < options.requests:
        since, worked = time.perf_counter(), processor_seconds(server.pid)
        seconds, wrong = await asked(clients, min(BLOCK, options.requests - done))
        done += len(seconds) + len(wrong)
        errors += wrong
        ordered = sorted(seconds) or [float("nan")]
        rows.append(
            {
                "requests": done,
                "errors": len(wrong),
                "p50_ms": round(1000 * ordered[len(ordered) // 2], 1),
                "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99)], 1),
                "most_ms": round(1000 * ordered[-1], 1),
                "per_second": round(len(seconds) / (time.perf_counter() - since), 1),
                "cpu_ms": round(1000 * (processor_seconds(server.pid) - worked) / max(1, len(seconds)), 2),
                "rss_mb": round(status(server.pid, "VmRSS"), 1),
                "peak_mb": round(status(server.pid, "VmHWM"), 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        if options.minutes is not None and time.perf_counter() - begun > 60 * options.minutes:
            break
    growth = round(rows[-1]["peak_mb"] - rows[0]["peak_mb"], 1)
    stop = await stopped(server, clients)
    return {"requests": done, "errors": errors[:10], "blocks": rows, "peak_growth_mb": growth, "stop": stop}


if __name__ == "__main__":
    main()
