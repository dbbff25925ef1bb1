"""What the server counts, in the format of Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rtdetrv4.serving.refusals import CLIENT_GONE
from rtdetrv4.serving.service import Service

LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
ROUTES = frozenset({"/", "/predict", "/models", "/health", "/ready", "/metrics", "/openapi.json"})
"""Those that are told apart: a client can ask for any number of others."""


class Metrics:
    """Counts requests and batches.

    Args:
        service: whose batches to count.
    """

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "rtdetrv4_requests", "Requests, by route and status.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "rtdetrv4_request_seconds",
            "Time from the head of a request to the end of its answer.",
            ["route"],
            buckets=LATENCIES_S,
            registry=self._registry,
        )
        self._images = Counter(
            "rtdetrv4_images",
            "Images, or tiles of them, that the network computed.",
            ["model"],
            registry=self._registry,
        )
        self._batches = Histogram(
            "rtdetrv4_batch_images",
            "Images, or tiles of them, per run of the network.",
            ["model"],
            buckets=BATCHES,
            registry=self._registry,
        )
        self._runs = Histogram(
            "rtdetrv4_run_seconds",
            "Time of a run of the network.",
            ["model"],
            buckets=LATENCIES_S,
            registry=self._registry,
        )
        waiting = Gauge(
            "rtdetrv4_queue_images", "Images, or tiles, that wait for the network.", ["model"], registry=self._registry
        )
        taken = Gauge(
            "rtdetrv4_taken_images", "Images on their way through a model.", ["model"], registry=self._registry
        )
        for name, model in service.models.items():
            waiting.labels(name).set_function(lambda batcher=model.batcher: batcher.num_waiting)
            taken.labels(name).set_function(lambda batcher=model.batcher: batcher.num_reserved)
        service.observe(self._count_batch)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        route = path if path in ROUTES else "other"
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def _count_batch(self, model: str, count: int, seconds: float) -> None:
        self._images.labels(model).inc(count)
        self._batches.labels(model).observe(count)
        self._runs.labels(model).observe(seconds)


class Counting:
    """Counts the requests of an application.

    Args:
        app: what answers.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, in the terms of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), CLIENT_GONE

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            self._metrics.count_request(scope["path"], status, time.monotonic() - start)
