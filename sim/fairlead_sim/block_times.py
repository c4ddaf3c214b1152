"""How long KV blocks live, lie idle and wait for their next use, read from a core's steps.

A block is used when it is stored and when an admitted prompt finds it. It costs a dictionary entry per resident block, so
it is measured only where asked for.
"""

from collections.abc import Mapping
from typing import Any

from fairlead_sim.blocks import Cleared, Removed, Stored
from fairlead_sim.exposition import Histogram
from fairlead_sim.sequence import Step


class BlockTimes:
    """Feeds the three ``kv_block_*`` histograms of one rank."""

    def __init__(self, rank: int, members: Mapping[str, Mapping[str, Any]], block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._lifetime: Histogram = members["vllm:kv_block_lifetime_seconds"][str(rank)]
        self._idle: Histogram = members["vllm:kv_block_idle_before_evict_seconds"][str(rank)]
        self._reuse: Histogram = members["vllm:kv_block_reuse_gap_seconds"][str(rank)]
        self._stored: dict[int, float] = {}
        self._used: dict[int, float] = {}

    def step(self, step: Step, ended: float) -> None:
        """Read one step's events and first tokens."""
        for event in step.events:
            match event:
                case Stored(keys):
                    for key in keys:
                        self._stored.setdefault(key, ended)
                        self._used[key] = ended
                case Removed(key) if key in self._stored:
                    self._lifetime.observe(ended - self._stored.pop(key))
                    self._idle.observe(ended - self._used.pop(key))
                case Cleared():
                    self._stored.clear()
                    self._used.clear()
        for sequence in step.first:
            for key in sequence.keys[: sequence.cached_tokens // self._block_tokens]:
                if key in self._used:
                    self._reuse.observe(ended - self._used[key])
                    self._used[key] = ended
