"""Numbers for Prometheus. Those of the engine are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ivl.engine.answer import Timings
from ivl.engine.engine import EngineState

FIRST_TOKEN_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
TOTAL_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300)
TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)

GAUGES = {
    "num_running": ("ivl_sequences_running", "Sequences in the batch."),
    "num_waiting": ("ivl_sequences_waiting", "Sequences in the queue."),
    "num_blocks": ("ivl_kv_blocks", "Blocks of the key/value cache."),
    "num_used_blocks": ("ivl_kv_blocks_used", "Blocks that sequences refer to."),
    "num_findable_blocks": ("ivl_kv_blocks_findable", "Blocks that can be shared."),
    "kv_bytes": ("ivl_kv_bytes", "Memory of the key/value cache."),
    "tile_bytes": ("ivl_tile_bytes", "Tiles of requests that run or wait."),
    "vision_cache_bytes": ("ivl_vision_cache_bytes", "Features of tiles that are kept."),
}
COUNTERS = {
    "num_steps": ("ivl_steps", "Steps of the batch."),
    "num_prompt_tokens": ("ivl_prompt_tokens", "Tokens of prompts that were read."),
    "num_cached_tokens": ("ivl_cached_tokens", "Tokens of prompts that were in the cache."),
    "num_answer_tokens": ("ivl_answer_tokens", "Tokens that were written."),
    "num_guessed_tokens": ("ivl_guessed_tokens", "Tokens that were guessed ahead."),
    "num_kept_tokens": ("ivl_kept_tokens", "Guessed tokens that stayed."),
    "num_encoded_tiles": ("ivl_tiles_encoded", "Tiles that the vision tower encoded."),
    "num_known_tiles": ("ivl_tiles_known", "Tiles that were known by their content."),
    "num_preempted": ("ivl_sequences_preempted", "Sequences that gave way to others."),
    "num_evicted_blocks": ("ivl_kv_blocks_evicted", "Blocks whose content was dropped."),
    "busy_s": ("ivl_busy_seconds", "Time that the engine computed."),
}


class Metrics:
    """A registry of its own, so that several servers can live in one process."""

    def __init__(self, states: Callable[[], Mapping[str, EngineState]]) -> None:
        """`states`: of every loaded model, by name."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ivl_http_requests",
            "Requests, by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.first_token_s = self._histogram("first_token", "To the first token.", FIRST_TOKEN_S)
        self.total_s = self._histogram("answer", "To the end of an answer.", TOTAL_S)
        self.token_s = self._histogram("token", "Between two tokens, the mean.", TOKEN_S)
        self.registry.register(_EngineCollector(states))

    def observe(self, model: str, timings: Timings) -> None:
        """An answer has ended."""
        if timings.num_answer_tokens:
            self.first_token_s.labels(model).observe(timings.first_token_s)
            steps = timings.num_answer_tokens - 1
            if steps:
                self.token_s.labels(model).observe(timings.decode_s / steps)
        self.total_s.labels(model).observe(timings.total_s)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"ivl_{name}_seconds", about, ["model"], buckets=buckets, registry=self.registry
        )


class _EngineCollector(Collector):
    def __init__(self, states: Callable[[], Mapping[str, EngineState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        states = self._states()
        for kinds, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for field, (name, about) in kinds.items():
                metric = family(name, about, labels=["model"])
                for model, state in states.items():
                    metric.add_metric([model], float(getattr(state, field)))
                yield metric

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # nothing is computed when the registry is made
