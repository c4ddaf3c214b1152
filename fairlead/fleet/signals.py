"""Engine signals: one reading of an engine's metrics, in the same form for every kind of engine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSignals:
    """A reading of an engine's metrics. A value that the engine does not report is None, never
    zero.

    kv_usage: share (0..1) of KV blocks in use by running requests.
    *_total: counters since the engine started.
    """

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_queries_total: float | None = None
    prefix_hits_total: float | None = None
    preemptions_total: float | None = None
    sleeping: bool | None = None
