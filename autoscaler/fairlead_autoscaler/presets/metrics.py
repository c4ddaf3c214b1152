"""What a public controller would have measured, out of what our shell sees: one look at one pool,
and the metrics to choose from.

Public controllers are set up with one metric. Which one decides more than the controller does
(docs/guides/autoscaling-presets.md), so it is a knob of every preset that has a choice:

- ``kv``: share of an engine's KV cache in use, 0..1 (vLLM ``kv_cache_usage_perc``).
- ``concurrency``: requests an engine runs and queues (vLLM ``num_requests_running`` +
  ``num_requests_waiting``).
- ``waiting``: requests it queues alone.
- ``request-rate``: requests a second as they arrive at the gateway, over the last minute, as a
  Prometheus query has them.

Missing stays None. A pool's share of what arrives and of what the gateway holds: pools that prefill
(Serve, Prefill) share it by their ready replicas, decode pools likewise among themselves; what is
held waits for a prefill.
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
# Looks come at about the interval: a controller's period is over when this much of it is missing.
_SLACK_SECONDS = 0.5


class Metric(StrEnum):
    """What a controller compares with its target."""

    KV = "kv"
    CONCURRENCY = "concurrency"
    WAITING = "waiting"
    REQUEST_RATE = "request-rate"


@dataclass(frozen=True, slots=True)
class PoolSample:
    """One look at one pool. ``held`` requests and ``request_rate`` (a second) are this pool's
    share; None: no gateway answered.
    """

    now: float
    spec: PoolSpec
    observed: PoolObservation
    queued: float | None
    request_rate: float | None


@dataclass(frozen=True, slots=True)
class ArrivalRate:
    """Requests that arrived, by look: (seconds since the look before, requests); the last minute of
    those that were read.
    """

    last: float | None = None
    seen: tuple[tuple[float, float, float], ...] = ()

    def plus(self, observation: Observation) -> "ArrivalRate":
        """With one more look. A look without a gateway adds nothing; what it missed is not made
        up.
        """
        now = observation.now
        kept = tuple(one for one in self.seen if one[0] > now - _RATE_WINDOW_SECONDS)
        if observation.gateway is None or self.last is None or now <= self.last:
            return ArrivalRate(now, kept)
        return ArrivalRate(now, (*kept, (now, now - self.last, observation.gateway.arrivals)))

    def rate(self) -> float | None:
        """Requests a second over what was read of the last minute; None where nothing was."""
        seconds = sum(one[1] for one in self.seen)
        return sum(one[2] for one in self.seen) / seconds if seconds > 0 else None


def replica_metric(metric: Metric, replica: ReplicaMetrics) -> float | None:
    """A replica's own value; None where it has none. Request rates are the gateway's, no replica
    has one.
    """
    if metric is Metric.KV:
        return replica.kv_share
    if metric is Metric.WAITING:
        return replica.waiting
    if metric is Metric.CONCURRENCY and replica.running is not None and replica.waiting is not None:
        return replica.running + replica.waiting
    return None


def pool_metric(metric: Metric, look: PoolSample) -> float | None:
    """The sum over the replicas that serve, with what the gateway holds for them where the metric
    counts requests; None where no replica and no gateway could be read."""
    if metric is Metric.REQUEST_RATE:
        return look.request_rate
    values = [
        replica_metric(metric, one) for one in look.observed.replicas or () if one.state is not ReplicaState.PENDING
    ]
    known = [value for value in values if value is not None]
    if metric is not Metric.KV and look.queued is not None:
        known.append(look.queued)
    if look.observed.replicas is None and look.observed.ready > 0:
        return None  # what is held says nothing of what runs
    return sum(known) if known else None


def is_due(last: float | None, now: float, period_seconds: float) -> bool:
    """Whether a controller that acts every ``period_seconds`` acts at this look."""
    return last is None or now - last >= period_seconds - _SLACK_SECONDS


def pool_samples(model: ModelSpec, observation: Observation, arrivals: ArrivalRate) -> Mapping[str, PoolSample]:
    """One look at every pool that was seen."""
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
    """What part of the requests comes to this pool, among those that do the same."""
    decodes = facts.role is Role.DECODE
    peers = [one.name for one in model.pools if (one.role is Role.DECODE) == decodes and one.name in observation.pools]
    ready = sum(observation.pools[name].ready for name in peers)
    return observation.pools[facts.name].ready / ready if ready else 1.0 / len(peers)
