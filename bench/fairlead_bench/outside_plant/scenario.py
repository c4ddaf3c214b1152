"""Scenarios: pools, requests, latency targets, and what goes wrong."""

from dataclasses import dataclass
from enum import Enum

from fairlead_bench.outside_plant.engine import Role
from fairlead_bench.outside_plant.profiles import EngineProfile
from fairlead_bench.outside_plant.requests import RequestList

INTERVAL_SECONDS = 5.0
MAX_REPLICAS = 60
TTFT_EDGES = [0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 400.0]
GAP_EDGES = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.18, 0.2, 0.25, 0.3, 0.5, 1.0, 2.0]


class MetricFault(Enum):
    """A fault of the metrics during a window."""

    MISSING = "missing"
    ZERO_COUNTERS = "zero counters"
    ZERO_ALL = "zero counters and gauges"


@dataclass(frozen=True, slots=True)
class MetricWindow:
    """A time with faulty metrics, in seconds."""

    start: float
    end: float
    fault: MetricFault


@dataclass(frozen=True, slots=True)
class Crash:
    """The end of one ready replica. ``draw`` chooses it, uniform in 0 to 1."""

    time: float
    draw: float


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A time in which one replica, the oldest, takes ``factor`` times as long for each step."""

    start: float
    end: float
    factor: float


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """One pool: its engines and the bounds of its size."""

    name: str
    role: Role
    profile: EngineProfile
    initial: int
    minimum: int = 1
    maximum: int = MAX_REPLICAS


@dataclass(frozen=True, slots=True)
class Scenario:
    """One family with one seed.

    patience: seconds that a client waits for its first token
    shocks: times of sudden changes that no look before them could have shown
    block_seconds: between two changes of the offline optimum's schedule
    transfer_per_token: seconds to move a token's memory from prefill to decode
    """

    family: str
    seed: int
    seconds: float
    requests: RequestList
    pools: tuple[PoolSetup, ...]
    ttft: float
    gap: float
    patience: float = 60.0
    shocks: tuple[float, ...] = ()
    crashes: tuple[Crash, ...] = ()
    slowdowns: tuple[Slowdown, ...] = ()
    windows: tuple[MetricWindow, ...] = ()
    transfer_per_token: float = 2e-6
    block_seconds: float = 120.0
