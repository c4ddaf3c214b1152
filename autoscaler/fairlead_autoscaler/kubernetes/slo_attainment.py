"""SLO attainment: the share of recent requests that met each latency target. Pure.

Gateways judge each request against each target separately, so the share that meets all of them is
only known to be at most the lowest. A request whose client disconnected before the first token
missed the TTFT target.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fairlead_autoscaler.core import Observation

WINDOW_SECONDS: Final = 300.0
MIN_REQUESTS: Final = 20.0
"""The fewest requests of a share. With fewer, one slow request would change it by five points or
more.
"""


@dataclass(frozen=True, slots=True)
class SLOSample:
    """The judged requests of one target at one tick, and those that met it."""

    at: float
    objective: str
    within: float
    judged: float


@dataclass(frozen=True, slots=True)
class SLOAttainment:
    """The samples of one model over the window."""

    samples: tuple[SLOSample, ...] = ()

    def judged(self) -> float:
        return max((judged for _, judged in self._sums().values()), default=0.0)

    def shares(self) -> dict[str, float]:
        """Returns, by latency target, the share (0..1) of requests that met it. Targets with too
        few requests are left out.
        """
        return {name: within / judged for name, (within, judged) in self._sums().items() if judged >= MIN_REQUESTS}

    def _sums(self) -> dict[str, tuple[float, float]]:
        sums: dict[str, tuple[float, float]] = {}
        for sample in self.samples:
            within, judged = sums.get(sample.objective, (0.0, 0.0))
            sums[sample.objective] = within + sample.within, judged + sample.judged
        return sums


def add_observation(before: SLOAttainment, observation: Observation) -> SLOAttainment:
    """Returns the attainment with the requests of one tick, and without samples older than the
    window.
    """
    kept = [sample for sample in before.samples if 0.0 <= observation.now - sample.at < WINDOW_SECONDS]
    replicas = [replica for pool in observation.pools.values() for replica in pool.replicas or ()]
    abandoned = 0.0 if observation.gateway is None else max(0.0, observation.gateway.abandoned)
    ttft = _sum_counts([replica.ttft_counts for replica in replicas])
    itl = _sum_counts([replica.itl_counts for replica in replicas])
    if ttft is not None:
        kept.append(SLOSample(observation.now, "ttft", ttft[0], ttft[1] + abandoned))
    if itl is not None:
        kept.append(SLOSample(observation.now, "itl", *itl))
    return SLOAttainment(tuple(sample for sample in kept if sample.judged > 0))


def _sum_counts(counts: Iterable[tuple[float, ...] | None]) -> tuple[float, float] | None:
    """Returns the requests within the first bound, and all requests; None if no replica reports
    any.
    """
    known = [histogram for histogram in counts if histogram is not None and len(histogram) > 1]
    if not known:
        return None
    return sum(histogram[0] for histogram in known), sum(sum(histogram) for histogram in known)
