"""The seam between plant and core: observations for a core, and what chooses the sizes of pools."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fairlead_bench.outside_plant.engine import EngineCounters, Role
from fairlead_bench.outside_plant.profiles import STARTUP_P50, STARTUP_P90
from fairlead_bench.outside_plant.replica_pool import Replica, ReplicaPool
from fairlead_bench.outside_plant.scenario import (
    GAP_EDGES,
    INTERVAL_SECONDS,
    MAX_REPLICAS,
    TTFT_EDGES,
    MetricFault,
    PoolSetup,
    Scenario,
)
from fairlead_sim.seams import autoscaler

RESCUE_SECONDS = 330.0
"""Length of the help after a sudden change: the longest start, and half a minute."""

_SMOOTHING_SECONDS = 60.0
_STABLE_LOOKS = 60
_USUAL_BATCH = 16


class Controller(Protocol):
    """Chooses the desired replicas of each pool."""

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, int]:
        """Returns desired replicas by pool; a pool that is missing stays as it is."""


ControllerFactory = Callable[[Scenario], Controller]
"""Makes the controller of a run."""


def core_info(scenario: Scenario) -> Mapping[str, Any]:
    """Returns the ``info`` of the autoscaler seam."""
    return {
        "slo": {"ttft": scenario.ttft, "itl": scenario.gap},
        "timeout": scenario.patience,
        "interval": INTERVAL_SECONDS,
        "ttft_le": TTFT_EDGES,
        "itl_le": GAP_EDGES,
        "pools": {setup.name: _pool_info(setup) for setup in scenario.pools},
    }


def _pool_info(setup: PoolSetup) -> Mapping[str, Any]:
    return {
        "role": setup.role.value,
        "cost": 1.0,
        "min": setup.minimum,
        "max": setup.maximum,
        "max_num_seqs": setup.profile.max_seqs,
        "kv_tokens": setup.profile.kv_tokens,
        "startup_p50": STARTUP_P50,
        "startup_p90": STARTUP_P90,
        "profile": setup.profile.described(),
    }


def pool_observation(pool: ReplicaPool, now: float, fault: MetricFault | None) -> dict[str, Any]:
    """Returns a pool as a core sees it, and starts new counters."""
    replicas = [_replica_observation(replica, now, fault) for replica in pool.replicas]
    pending = [now - replica.ordered_at for replica in pool.replicas if replica.state == "pending"]
    return {
        "desired": pool.desired,
        "ready": pool.count("ready"),
        "pending": len(pending),
        "draining": pool.count("draining"),
        "pending_age": pending,
        "replicas": None if fault is MetricFault.MISSING else replicas,
    }


def _replica_observation(replica: Replica, now: float, fault: MetricFault | None) -> dict[str, Any]:
    engine = replica.engine
    engine.synchronize(now)
    counters = engine.take_counters()
    if fault is not None:
        counters = EngineCounters(len(counters.ttft_histogram), len(counters.gap_histogram))
    is_blank = fault is MetricFault.ZERO_ALL
    return {
        "id": replica.number,
        "state": replica.state,
        "age": now - replica.ordered_at,
        "startup_s": None if replica.state == "pending" else replica.startup,
        "running": 0 if is_blank else engine.running,
        "waiting": 0 if is_blank else len(engine.waiting),
        "kv": 0.0 if is_blank else engine.kv_share(now),
        "d_prompt": counters.prompt,
        "d_gen": counters.generated,
        "d_gen_time": counters.generated_seconds,
        "d_finished": counters.finished,
        "d_first": counters.first,
        "d_ttft_sum": counters.ttft_sum,
        "ttft_hist": counters.ttft_histogram,
        "itl_hist": counters.gap_histogram,
    }


class GatewayCounters:
    """Counts of the gateway since the last look."""

    def __init__(self) -> None:
        self.arrivals = self.prompt_tokens = self.abandoned = 0

    def observation(self, held: int, fault: MetricFault | None) -> dict[str, int] | None:
        """Returns the ``gateway`` of an observation, and resets the counts."""
        seen = {
            "d_arrivals": self.arrivals,
            "d_prompt": self.prompt_tokens,
            "held": held,
            "d_abandoned": self.abandoned,
        }
        self.arrivals = self.prompt_tokens = self.abandoned = 0
        if fault is MetricFault.MISSING:
            return None
        return seen if fault is None else dict.fromkeys(seen, 0)


def core_controller(scenario: Scenario, settings: Mapping[str, Any]) -> Controller:
    """Returns Fairlead's core as an outside tool gets it."""
    controller: Controller = autoscaler(core_info(scenario), **settings)
    return controller


class RescuedReplay:
    """A recorded run that orders the whole maximum at the first look after each sudden change.

    Why: what is late even so, no start ordered at that look could have served.
    """

    def __init__(self, scenario: Scenario, desired: Sequence[tuple[int, ...]]) -> None:
        self._scenario, self._desired = scenario, desired
        self._looks = 0

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, int]:
        """Returns the recorded sizes, or the maximum soon after a sudden change."""
        now = observation["t"]
        sizes = self._desired[min(self._looks, len(self._desired) - 1)]
        self._looks += 1
        is_rescue = any(shock < now <= shock + RESCUE_SECONDS for shock in self._scenario.shocks)
        names = [setup.name for setup in self._scenario.pools]
        return {name: MAX_REPLICAS if is_rescue else size for name, size in zip(names, sizes, strict=True)}


class WorkRule:
    """A plain rule for comparison: the work that arrives, divided by a target load of a replica.

    Work is seconds of an engine: prompt tokens as they arrive, and generated tokens at a batch of
    16. It is smoothed over a minute; the most of the last five minutes counts. Requests that the
    gateway holds ask for a replica per 20. Without metrics a pool stays as it is.
    """

    def __init__(self, scenario: Scenario, target: float) -> None:
        self._setups = scenario.pools
        self._target = target
        self._smoothed: dict[str, float] = {}
        self._wanted: dict[str, deque[int]] = {setup.name: deque(maxlen=_STABLE_LOOKS) for setup in scenario.pools}

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, int]:
        """Returns the sizes by the work that arrives."""
        gateway = observation["gateway"]
        if gateway is None:
            return {}
        desired = {}
        generated = sum(
            replica["d_gen"] for pool in observation["pools"].values() for replica in pool["replicas"] or ()
        )
        for setup in self._setups:
            profile = setup.profile
            work = 0.0
            if setup.role is not Role.DECODE:
                work += gateway["d_prompt"] * (profile.per_prompt_token + profile.base / profile.chunk)
            if setup.role is not Role.PREFILL:
                work += generated * (profile.base / _USUAL_BATCH + profile.per_seq)
            load = work / INTERVAL_SECONDS
            before = self._smoothed.get(setup.name, load)
            smoothed = before + (load - before) * INTERVAL_SECONDS / _SMOOTHING_SECONDS
            self._smoothed[setup.name] = smoothed
            wanted = self._wanted[setup.name]
            wanted.append(math.ceil(smoothed / self._target - 0.02) + math.ceil(gateway["held"] / 20))
            desired[setup.name] = max(wanted)
        return desired
