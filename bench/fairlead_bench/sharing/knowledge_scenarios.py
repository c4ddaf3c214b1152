"""The scenarios in which knowledge of engines' caches could win, committed before they were run.

In each, what a gateway remembers of its own requests differs from what the engines hold. Every
scenario is run at each severity, with each working set and load, on ``SEEDS``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead_bench.judging_seeds import judging_seeds_of

SEEDS: Final = tuple(judging_seeds_of("knowledge of caches")[:5])
WORKING_SETS: Final = (1.0, 2.0, 4.0)
"""The different tokens of the traffic ÷ the tokens that all engines hold together."""
LOADS: Final = (0.5, 0.8)
"""Shares of the full load, in requests per second; for agents, in sessions at a time.

Full load: the gateway without an index, undisturbed, still answers 90 % of the requests within
``OBJECTIVE_SECONDS``.
"""
OBJECTIVE_SECONDS: Final = 2.0
ENGINES: Final = 8
PULL_LATENCY_SECONDS: Final = 0.01
PROFILE: Final = "h100-llama8b"
REQUESTS: Final = 3_000
WARM_UP_SHARE: Final = 0.1
"""Share of the requests that fill the caches and do not count."""

AGENT_TURNS: Final = 43
AGENT_INSTRUCTION_TOKENS: Final = 8_192
AGENT_QUESTION_TOKENS: Final = 600
AGENT_ANSWER_TOKENS: Final = 120


@dataclass(frozen=True, slots=True)
class Disturbance:
    """The causes by which a gateway's memory of its requests differs from the caches.

    reset_every: requests between two engines that restart with an empty cache; 0: none does.
    stated_memory: the KV memory that the fleet states ÷ the real one.
    bypassing_share: of the requests, which go to a random engine past the gateways.
    gateways: each request goes to a random one.
    is_shared: gateways have a Redis: prompts and loads of the others.
    restart_every: requests between two gateways that are restarted, in turn; 0: none is.
    agent_pause_seconds: the traffic is sessions of agents, with this mean pause before each turn;
        0: conversations in an open loop.
    cpu_memory: KV memory on the CPU of each engine ÷ that of its GPU.
    disk_memory: the same for a disk of each engine, whose loads take ``load_price``; then those
        from CPU memory take ``cpu_price``.
    store_memory: of one store that all engines reach ÷ the KV memory of all GPUs.
    load_price: the time to load a token from there ÷ the time to compute it.
    pull_price: the same for a token out of another engine's cache; 0: engines copy none.
    """

    reset_every: int = 0
    stated_memory: float = 1.0
    bypassing_share: float = 0.0
    gateways: int = 1
    is_shared: bool = False
    restart_every: int = 0
    agent_pause_seconds: float = 0.0
    cpu_memory: float = 0.0
    cpu_price: float = 0.0
    disk_memory: float = 0.0
    store_memory: float = 0.0
    load_price: float = 0.0
    pull_price: float = 0.0


SCENARIOS: Final[Mapping[str, Mapping[str, Disturbance]]] = {
    "nothing is wrong": {"one gateway": Disturbance()},
    "engines that restart": {
        f"one every {requests} requests": Disturbance(reset_every=requests) for requests in (800, 200, 50)
    },
    "KV memory is stated wrongly": {
        "half of it": Disturbance(stated_memory=0.5),
        "twice as much": Disturbance(stated_memory=2.0),
    },
    "requests past the gateway": {
        f"{share:.0%} of them": Disturbance(bypassing_share=share) for share in (0.1, 0.3, 0.5)
    },
    "gateways that share nothing": {f"{gateways} gateways": Disturbance(gateways=gateways) for gateways in (2, 3, 4)},
    "a gateway that is restarted": {
        f"every {requests} requests": Disturbance(restart_every=requests) for requests in (1_000, 300, 100)
    },
    "gateways with a Redis, restarted in turn": {
        f"every {requests} requests": Disturbance(gateways=3, is_shared=True, restart_every=requests)
        for requests in (1_000, 300, 100)
    },
    "CPU memory of four times the GPU's": {
        f"loads at {price:.0%} of computing": Disturbance(cpu_memory=4.0, load_price=price)
        for price in (0.05, 0.2, 0.5)
    },
    "a disk of 16 times the GPU's behind CPU memory of twice": {
        f"loads at {price:.0%} of computing": Disturbance(
            cpu_memory=2.0, cpu_price=0.05, disk_memory=16.0, load_price=price
        )
        for price in (0.2, 0.5, 0.8)
    },
    "a store that all engines reach": {
        f"loads at {price:.0%} of computing": Disturbance(store_memory=4.0, load_price=price)
        for price in (0.05, 0.2, 0.5)
    },
    "KV out of another engine's cache": {
        f"copies at {price:.0%} of computing": Disturbance(pull_price=price) for price in (0.05, 0.2, 0.5)
    },
    "agents with 43 turns": {
        f"pauses of {pause:g} s": Disturbance(agent_pause_seconds=pause) for pause in (2.0, 10.0, 60.0)
    },
}
"""Kinds of disturbance, each by severity."""


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
"""Some scenarios of the simulator with processes, and causes that it does not have.

A run has 200 requests and four engines, so each engine restarts twice. They run on ``SEEDS``.
"""
