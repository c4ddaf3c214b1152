"""Lifetime, idle time and reuse gap of KV blocks, measured from the steps of a core.

A block counts as used when it is stored and when an admitted prompt finds it.

Why: it costs a dictionary entry per resident block, so it is measured only on request.
"""

from collections.abc import Mapping
from typing import Any

from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared
from fairlead_sim.engine.prometheus_exposition import HistogramSeries
from fairlead_sim.engine.sequence import EngineStep


class BlockLifetimes:
    """The observer that feeds the three ``kv_block_*`` histograms of one rank."""

    def __init__(self, rank: int, members: Mapping[str, Mapping[str, Any]], block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._lifetime: HistogramSeries = members["vllm:kv_block_lifetime_seconds"][str(rank)]
        self._idle: HistogramSeries = members["vllm:kv_block_idle_before_evict_seconds"][str(rank)]
        self._reuse: HistogramSeries = members["vllm:kv_block_reuse_gap_seconds"][str(rank)]
        self._stored_at: dict[int, float] = {}
        self._used_at: dict[int, float] = {}

    def observe_step(self, step: EngineStep, ended_at: float) -> None:
        """Counts the events and the first tokens of one step."""
        for event in step.events:
            match event:
                case BlocksStored(keys):
                    for key in keys:
                        self._stored_at.setdefault(key, ended_at)
                        self._used_at[key] = ended_at
                case BlockEvicted(key) if key in self._stored_at:
                    self._lifetime.observe(ended_at - self._stored_at.pop(key))
                    self._idle.observe(ended_at - self._used_at.pop(key))
                case CacheCleared():
                    self._stored_at.clear()
                    self._used_at.clear()
        for sequence in step.first_tokens:
            for key in sequence.keys[: sequence.cached_tokens // self._block_tokens]:
                if key in self._used_at:
                    self._reuse.observe(ended_at - self._used_at[key])
                    self._used_at[key] = ended_at
