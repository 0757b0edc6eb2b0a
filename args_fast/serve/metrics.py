"""Prometheus metrics, under vLLM's names with our prefix, and what only guided decoding has."""

import time
from collections.abc import Iterator
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from args_fast.engine.capacity import CacheUse
from args_fast.engine.scheduler import Stats

PREFIX = "args_fast:"
# Seconds. vLLM's buckets, so that its dashboards' quantiles mean the same here.
TO_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
BETWEEN_TOKENS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0),
)
ROUTES = frozenset(
    {"/", "/health", "/metrics", "/version", "/tokenize", "/v1/models", "/openapi.json"}
    | {"/v1/chat/completions", "/v1/completions"}
)


class Engine(Protocol):
    """What is read of the engine whenever the metrics are asked for."""

    @property
    def running(self) -> int:
        """Number of requests that decode."""

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their turn."""

    @property
    def cache(self) -> CacheUse:
        """Use of the caches."""

    @property
    def stats(self) -> Stats:
        """Counts of the engine."""


class _EngineState(Collector):
    """Reads the engine at the moment of a scrape."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = [model]

    def collect(self) -> Iterator[Metric]:
        cache, stats = self._engine.cache, self._engine.stats
        gauges = {
            "num_requests_running": ("Requests that decode.", self._engine.running),
            "num_requests_waiting": ("Requests that wait.", self._engine.waiting),
            "kv_cache_usage_perc": (
                "Share of the caches' pages in use, 0 to 1.",
                cache.pages_in_use / cache.pages,
            ),
        }
        counters = {
            "prefix_cache_queries": ("Prompt tokens looked up.", cache.prompt_tokens),
            "prefix_cache_hits": ("Prompt tokens found in filled pages.", cache.shared_tokens),
            "num_preemptions": ("Requests that gave their pages back.", cache.preemptions),
            "draft_tokens": ("Drafted tokens that were verified.", stats.drafted_tokens),
            "accepted_tokens": ("Drafted tokens that were accepted.", stats.accepted_tokens),
        }
        for kind, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, value) in table.items():
                family = kind(PREFIX + name, text, labels=["model_name"])
                family.add_metric(self._model, value)
                yield family


class Metrics:
    """The metrics of one server, in a registry of its own.

    Args:
        engine: read at every scrape.
        model: value of the label ``model_name``.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineState(engine, model))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens.", model)
        self.generation_tokens = self._counter("generation_tokens", "New tokens.", model)
        self.reward_rows = self._counter("reward_rows", "Candidates judged by the reward.", model)
        to_first = "Seconds from a request's arrival to its first token."
        self.to_first = self._histogram("time_to_first_token", to_first, TO_FIRST_TOKEN, model)
        between = "Seconds between two tokens of one answer."
        self.between = self._histogram("inter_token_latency", between, BETWEEN_TOKENS, model)
        whole = "Seconds from a request's arrival to its last token."
        self.whole = self._histogram("e2e_request_latency", whole, WHOLE, model)
        self._finished = Counter(
            PREFIX + "request_success",
            "Answers, by what ended them.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._responses = Counter(
            PREFIX + "http_responses",
            "Responses by route and HTTP status; 499 is a client that has gone.",
            ["route", "status"],
            registry=self._registry,
        )
        self._model = model

    def _counter(self, name: str, text: str, model: str) -> Counter:
        made = Counter(PREFIX + name, text, ["model_name"], registry=self._registry)
        return made.labels(model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], model: str) -> Histogram:
        name = f"{PREFIX}{name}_seconds"
        made = Histogram(name, text, ["model_name"], registry=self._registry, buckets=buckets)
        return made.labels(model)

    def count_finished(self, reason: str) -> None:
        """Count an answer that came to its end."""
        self._finished.labels(self._model, reason).inc()

    def count_response(self, path: str, status: int) -> None:
        """Count a response. Paths that are not a route count as one, however many there are."""
        route = path if path in ROUTES else "other"
        self._responses.labels(route, str(status)).inc()

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


class Stopwatch:
    """Times one answer: from its request's arrival to each of its tokens."""

    def __init__(self, metrics: Metrics, began: float) -> None:
        self._metrics = metrics
        self._began = began
        self._last: float | None = None

    def token(self) -> None:
        """A token has come."""
        now = time.perf_counter()
        if self._last is None:
            self._metrics.to_first.observe(now - self._began)
        else:
            self._metrics.between.observe(now - self._last)
        self._last = now

    def end(self) -> None:
        """The answer is complete."""
        self._metrics.whole.observe(time.perf_counter() - self._began)
