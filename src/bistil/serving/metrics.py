"""What a server counts, in the form that Prometheus reads."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

from bistil._version import __version__

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters of one server, none of them by what clients send: their number does not grow.

    Args:
        models: name by role: "model" and, where there is one, "teacher".
        task: kind of the models.
    """

    def __init__(self, models: dict[str, str], task: str) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("bistil", "What is served.", registry=registry).info({**models, "task": task, "version": __version__})
        self.requests = Counter(
            "bistil_requests", "Requests, by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "bistil_request_seconds", "From a request's first line to its answer.", ["path"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("bistil_requests_in_flight", "Requests that are being answered.", registry=registry)
        self.waiting = Gauge("bistil_requests_waiting", "Requests that wait for the model.", registry=registry)
        self.inputs = Counter("bistil_inputs", "Inputs that a model answered.", ["model"], registry=registry)
        self.batches = Histogram(
            "bistil_batch_inputs", "Inputs that were answered together.", ["model"], buckets=_INPUTS, registry=registry
        )
        self.model_seconds = Histogram(
            "bistil_model_seconds", "That a model took for what was answered together.", ["model"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip

    def observe_batch(self, role: str, inputs: int, seconds: float) -> None:
        """A model has answered."""
        self.inputs.labels(role).inc(inputs)
        self.batches.labels(role).observe(inputs)
        self.model_seconds.labels(role).observe(seconds)

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        return generate_latest(self.registry)
