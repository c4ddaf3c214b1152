"""What an engine said of itself, in one shape for every engine kind. Missing is None, never zero."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSignals:
    """One reading of an engine's metrics; an engine that does not tell a value leaves it None.

    ``kv_usage`` is 0..1 of the blocks that running requests hold. The ``*_total`` values count since the engine
    started.
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
