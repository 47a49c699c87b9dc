"""What Prometheus may read: requests, tokens, times, queue. Labels are route patterns and served names only."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "modelworks"}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **made)
        self.seconds = Histogram("request_seconds", "Time of a request.", ["route"], buckets=SECONDS, **made)
        self.first = Histogram("first_token_seconds", "Time to the first token.", ["model"], buckets=SECONDS, **made)
        self.tokens = Counter("tokens", "Tokens read and written.", ["model", "kind"], **made)
        self.refused = Counter("refused", "Requests turned away.", ["reason"], **made)
        self.cancelled = Counter("cancelled", "Requests whose client went away.", **made)
        self.failed = Counter("failed_steps", "Steps of the compute thread that raised.", **made)
        self.queue = Gauge("queue_depth", "Continuations that wait or run.", **made)
        self.ready = Gauge("ready", "1 while new requests are taken.", **made)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
