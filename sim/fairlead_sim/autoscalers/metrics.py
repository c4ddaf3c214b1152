"""The metrics of public controllers, derived from an observation.

A public controller is set up with one metric. The choice decides more than the controller does
(docs/concepts/autoscaling-presets.md), so it is a parameter of every preset that has a choice:

- ``kv``: share of an engine's KV cache in use, 0..1 (vLLM ``kv_cache_usage_perc``).
- ``concurrency``: requests an engine runs and queues (vLLM ``num_requests_running`` +
  ``num_requests_waiting``).
- ``waiting``: requests an engine queues.
- ``request-rate``: requests a second as they arrive at the gateway, over the last minute, as a
  Prometheus query has them.

A missing metric stays None. Arrivals and queued requests are those of a model; each pool gets a
share. Pools that prefill (Serve, Prefill) share them by their ready replicas, and decode pools
likewise among themselves. Queued requests wait for a prefill.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import (
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
)

_RATE_WINDOW_SECONDS = 60.0
# Observations come at about the interval: a period is over when this much of it is missing.
_SLACK_SECONDS = 0.5


class Metric(StrEnum):
    """The quantity that a controller compares with its target."""

    KV = "kv"
    CONCURRENCY = "concurrency"
    WAITING = "waiting"
    REQUEST_RATE = "request-rate"


@dataclass(frozen=True, slots=True)
class PoolSample:
    """The inputs of a controller about one pool at one tick.

    queued, request_rate: this pool's share, the rate in requests a second; None when no gateway
        answered.
    """

    now: float
    spec: PoolSpec
    observed: PoolObservation
    queued: float | None
    request_rate: float | None


@dataclass(frozen=True, slots=True)
class ArrivalRate:
    """The arrivals of the last minute.

    seen: (time, seconds since the observation before, requests) of each observation with a gateway.
    """

    last: float | None = None
    seen: tuple[tuple[float, float, float], ...] = ()

    def plus(self, observation: Observation) -> "ArrivalRate":
        """Returns the arrivals with an observation.

        An observation without a gateway adds nothing, and nothing later makes up for it.
        """
        now = observation.now
        kept = tuple(one for one in self.seen if one[0] > now - _RATE_WINDOW_SECONDS)
        if observation.gateway is None or self.last is None or now <= self.last:
            return ArrivalRate(now, kept)
        return ArrivalRate(now, (*kept, (now, now - self.last, observation.gateway.arrivals)))

    def rate(self) -> float | None:
        """Returns the requests a second over the part of the minute that was read; None for no
        part.
        """
        seconds = sum(one[1] for one in self.seen)
        return sum(one[2] for one in self.seen) / seconds if seconds > 0 else None


def replica_metric(metric: Metric, replica: ReplicaMetrics) -> float | None:
    """Returns the value of a replica; None if it has none. No replica has a request rate."""
    if metric is Metric.KV:
        return replica.kv_share
    if metric is Metric.WAITING:
        return replica.waiting
    if metric is Metric.CONCURRENCY and replica.running is not None and replica.waiting is not None:
        return replica.running + replica.waiting
    return None


def pool_metric(metric: Metric, look: PoolSample) -> float | None:
    """Returns the sum over the replicas that serve, or the pool's request rate.

    A metric that counts requests includes those queued in the gateway. The result is None when
    nothing was read, or when ready replicas have no metrics.
    """
    if metric is Metric.REQUEST_RATE:
        return look.request_rate
    values = [
        replica_metric(metric, replica)
        for replica in look.observed.replicas or ()
        if replica.state is not ReplicaState.PENDING
    ]
    known = [value for value in values if value is not None]
    if metric is not Metric.KV and look.queued is not None:
        known.append(look.queued)
    if look.observed.replicas is None and look.observed.ready > 0:
        return None  # queued requests say nothing about running ones
    return sum(known) if known else None


def is_due(last: float | None, now: float, period_seconds: float) -> bool:
    return last is None or now - last >= period_seconds - _SLACK_SECONDS


def pool_samples(model: ModelSpec, observation: Observation, arrivals: ArrivalRate) -> Mapping[str, PoolSample]:
    """Returns a sample of every pool that was observed."""
    rate = arrivals.rate() if observation.gateway is not None else None
    held = None if observation.gateway is None else observation.gateway.held
    result = {}
    for facts in model.pools:
        seen = observation.pools.get(facts.name)
        if seen is None:
            continue
        share = _traffic_share(model, observation, facts)
        result[facts.name] = PoolSample(
            now=observation.now,
            spec=facts,
            observed=seen,
            queued=None if held is None else held * (0.0 if facts.role is Role.DECODE else share),
            request_rate=None if rate is None else rate * share,
        )
    return result


def _traffic_share(model: ModelSpec, observation: Observation, facts: PoolSpec) -> float:
    """Returns the share (0..1) of requests that a pool gets among the pools for the same work."""
    decodes = facts.role is Role.DECODE
    peers = [
        pool.name for pool in model.pools if (pool.role is Role.DECODE) == decodes and pool.name in observation.pools
    ]
    ready = sum(observation.pools[name].ready for name in peers)
    return observation.pools[facts.name].ready / ready if ready else 1.0 / len(peers)
