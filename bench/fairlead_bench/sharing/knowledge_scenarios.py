"""The scenarios in which knowledge of engines' caches could win, committed before they were run.

In each, what a gateway remembers of its own requests differs from what the engines hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead_bench.judging_seeds import judging_seeds_of

SEEDS: Final = tuple(judging_seeds_of("knowledge of caches")[:5])


@dataclass(frozen=True, slots=True)
class Disturbance:
    """The causes by which a gateway's memory of its requests differs from the caches.

    reset_every: requests between two engines that restart with an empty cache; 0: none does.
    stated_memory: the KV memory that the fleet states ÷ the real one.
    bypassing_share: of the requests, which go to a random engine past the gateways.
    gateways: each request goes to a random one.
    """

    reset_every: int = 0
    stated_memory: float = 1.0
    bypassing_share: float = 0.0
    gateways: int = 1


@dataclass(frozen=True, slots=True)
class ProcessScenario:
    """One scenario with real gateways, at one severity.

    adapters: LoRA adapters, in turn, of every second session; the others use the base model.
        Engines start with them, and the fleet states each as a model of its own.
    tenants: each session belongs to one of them in turn, and sends its ``cache_salt``; 0: none.
    """

    disturbance: Disturbance = field(default_factory=Disturbance)
    adapters: Sequence[str] = ()
    tenants: int = 0


PROCESS_SCENARIOS: Final[Mapping[str, ProcessScenario]] = {
    "nothing is wrong": ProcessScenario(),
    "engines that restart": ProcessScenario(Disturbance(reset_every=25)),
    "KV memory is stated as twice as much": ProcessScenario(Disturbance(stated_memory=2.0)),
    "requests past the gateway": ProcessScenario(Disturbance(bypassing_share=0.3)),
    "two gateways that share nothing": ProcessScenario(Disturbance(gateways=2)),
    "adapters": ProcessScenario(adapters=("french", "german", "sql")),
    "cache salts": ProcessScenario(tenants=8),
}
"""Scenarios with processes.

A run has 200 requests and four engines, so each engine restarts twice. They run on ``SEEDS``.
"""
