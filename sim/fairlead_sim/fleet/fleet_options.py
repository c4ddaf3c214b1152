"""The fleet of a simulation: its engines, and what its router receives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.engine_profile import EngineProfile


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """The engines of one fleet.

    - engine_names: names of the engines at the start, for the router; homes depend on them.
    - profiles: profiles of single engines by name; the others have ``profile``.
    - publishes_kv_events: the router receives what engines store and evict.
    - feedback_delay_seconds: delay of first tokens and ends at the router.
    - reserve_tokens: output tokens that must fit at admission. None: all. 0: none, so that engines
      preempt.
    - is_pooled: one memory for all engines (``experiments.ideal_bound``).
    - keeps_results: False forgets a request when it ends, for simulations of days.
    """

    engine_names: Sequence[str]
    profile: EngineProfile
    block_tokens: int
    profiles: Mapping[str, EngineProfile] = field(default_factory=dict)
    publishes_kv_events: bool = False
    feedback_delay_seconds: float = 0.0
    reserve_tokens: int | None = None
    is_pooled: bool = False
    keeps_results: bool = True
