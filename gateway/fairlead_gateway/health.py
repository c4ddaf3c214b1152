"""Whose fault it was: what becomes of requests, told to the breaker; and how long an engine may be silent.

A refused connection and silence are the engine's at once. A bad answer may also be the request's doing, so it is held
against an engine only when another one then answered the same request, or when no other was asked: a client that sends
what makes every engine fail ejects none of them. Load is nobody's fault.

Silence is judged by the engine's whole voice: one that still sends tokens to others is slow, and waited for; one from which
nobody has heard a byte for several times the predicted time hangs.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_gateway.breaker import Breaker, Standing
from fairlead_gateway.job import Job
from fairlead_gateway.patience import Patience
from fairlead_gateway.retry import Failure
from fairlead_gateway.telemetry import Telemetry
from fairlead_gateway.upstream import Peer

_LATE_SECONDS = 1.0
_AT_ONCE = frozenset({"refused", "connect-timeout", "timeout"})
_GUESSED_TOKEN_SECONDS = 1e-3
_GUESSED_OUTPUT_SECONDS = 0.05


class Health:
    """The breaker, and what the request's way tells it. ``ready`` gives the ids of a model's ready instances."""

    def __init__(
        self,
        breaker: Breaker,
        *,
        ready: Callable[[str], Mapping[str, object]],
        telemetry: Telemetry,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self.breaker = breaker
        self._ready = ready
        self._telemetry = telemetry
        self._clock = clock
        self._limits = limits

    def failed(self, job: Job, failure: Failure) -> None:
        """An attempt failed before the first byte."""
        if failure.overloaded:
            self.breaker.unknown(failure.where)
        elif failure.why in _AT_ONCE:
            self._fault(job, failure.where, failure.why)

    def answered(self, job: Job, instance: str) -> None:
        """An attempt gave an answer that can be passed on: the former ones were the engines' fault."""
        self.breaker.good(instance, self._clock.now())
        if job.failures:
            self._blame(job, job.failures)

    def gave_up(self, job: Job) -> None:
        """No engine answered. Where several answered badly, it may be the request."""
        bad = [failure for failure in job.failures if failure.why not in _AT_ONCE and not failure.overloaded]
        if len(bad) == 1:
            self._blame(job, bad)
        for failure in bad:
            self.breaker.unknown(failure.where)

    def broke(self, job: Job, instance: str, why: str) -> None:
        """A stream broke after its first byte."""
        self._fault(job, instance, why)

    def late(self, job: Job) -> None:
        """The request's own time is over. Its engine is to blame only when it has been silent to everybody for long enough."""
        patience, instance = job.patience, job.instance
        if patience is not None and instance is not None and patience.silence_seconds() > self._long(job):
            self._fault(job, instance.id, "timeout")

    def _long(self, job: Job) -> float:
        predicted = _predicted(job)
        return math.inf if predicted is None else max(_LATE_SECONDS, self._limits.first_token_factor * predicted)

    def patience(self, job: Job, peer: Peer) -> Patience:
        """How long the engine that ``job`` goes to now may be silent."""
        limits = self._limits
        predicted = _predicted(job)
        soft = None
        if predicted is not None:
            soft = max(limits.first_token_floor_seconds, limits.first_token_factor * predicted)
        return Patience(peer, soft, job.request.received + limits.first_token_seconds, self._clock)

    def words(self, instance: str) -> tuple[Standing, str]:
        """An instance's standing and why."""
        return self.breaker.standing(instance, self._clock.now())

    def _blame(self, job: Job, failures: Iterable[Failure]) -> None:
        for failure in failures:
            if failure.why not in _AT_ONCE and not failure.overloaded:
                self._fault(job, failure.where, failure.why)

    def _fault(self, job: Job, instance: str, why: str) -> None:
        if self.breaker.fault(instance, why, self._clock.now(), self._ready(job.ask.key)):
            self._telemetry.ejected(job.ask.key, instance, why)


def _predicted(job: Job) -> float | None:
    """Seconds until this job's engine should have said something; None when nobody can know."""
    first = job.decision.ttft_seconds if job.decision is not None else None
    if first is None:
        first = job.route.prompt_tokens * _GUESSED_TOKEN_SECONDS
    if job.ask.stream:
        return first
    tokens = job.ask.max_tokens
    return None if tokens is None else first + tokens * _GUESSED_OUTPUT_SECONDS
