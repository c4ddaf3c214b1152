"""How many requests of the last minutes attained each objective, added up from look to look. Pure.

Gateways judge each request against each objective by itself, so the share that attains all of them
is known only to be at most the lowest. A client that gave up before its first token has not had it
in time.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fairlead_autoscaler.core import Observation

WINDOW_SECONDS: Final = 300.0
MIN_REQUESTS: Final = 20.0
"""Of fewer no share is told: one slow request would be five points and more."""


@dataclass(frozen=True, slots=True)
class SLOSample:
    """Of one objective at one moment: how many were judged, and were within."""

    at: float
    objective: str
    within: float
    judged: float


@dataclass(frozen=True, slots=True)
class SLOAttainment:
    """The last minutes of one model."""

    samples: tuple[SLOSample, ...] = ()

    def judged(self) -> float:
        """The requests judged by the objective by which most were."""
        return max((judged for _, judged in self._sums().values()), default=0.0)

    def shares(self) -> dict[str, float]:
        """Of each objective the share that was within it, 0..1; those with too few requests are
        left out.
        """
        return {name: within / judged for name, (within, judged) in self._sums().items() if judged >= MIN_REQUESTS}

    def _sums(self) -> dict[str, tuple[float, float]]:
        found: dict[str, tuple[float, float]] = {}
        for part in self.samples:
            within, judged = found.get(part.objective, (0.0, 0.0))
            found[part.objective] = within + part.within, judged + part.judged
        return found


def add_observation(before: SLOAttainment, observation: Observation) -> SLOAttainment:
    """``before`` with what was counted since the last look."""
    kept = [one for one in before.samples if 0.0 <= observation.now - one.at < WINDOW_SECONDS]
    replicas = [one for pool in observation.pools.values() for one in pool.replicas or ()]
    gone = 0.0 if observation.gateway is None else max(0.0, observation.gateway.abandoned)
    ttft = _sum_counts([one.ttft_counts for one in replicas])
    itl = _sum_counts([one.itl_counts for one in replicas])
    if ttft is not None:
        kept.append(SLOSample(observation.now, "ttft", ttft[0], ttft[1] + gone))
    if itl is not None:
        kept.append(SLOSample(observation.now, "itl", *itl))
    return SLOAttainment(tuple(one for one in kept if one.judged > 0))


def _sum_counts(counts: Iterable[tuple[float, ...] | None]) -> tuple[float, float] | None:
    """How many were within the first bound, and how many there were; None where nobody could
    tell.
    """
    known = [one for one in counts if one is not None and len(one) > 1]
    if not known:
        return None
    return sum(one[0] for one in known), sum(sum(one) for one in known)
