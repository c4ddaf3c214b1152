"""Whose fault it was: what becomes of requests, told to the breaker; and how long an engine may be silent.

A refused connection and silence are the engine's at once. A bad answer may also be the request's doing, so it is held
against an engine only when another one then answered the same request, or when no other was asked: a client that sends
what makes every engine fail ejects none of them. Load is nobody's fault.

Silence is judged by the engine's whole voice: one that still sends tokens to others is slow, and waited for; one from which
nobody has heard a byte for several times the predicted time hangs. That is a fault in any case; the request leaves such an
engine only when another one can take it, since an error now is no better than one at the deadline.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_gateway.breaker import Breaker, Standing
from fairlead_gateway.job import Job
from fairlead_gateway.patience import Patience
from fairlead_gateway.retry import Failure, RetryBudget, worth_retrying
from fairlead_gateway.telemetry import Telemetry
from fairlead_gateway.upstream import Peer

_LATE_SECONDS = 1.0
_AT_ONCE = frozenset({"refused", "connect-timeout", "timeout", "gone"})
_GUESSED_TOKEN_SECONDS: Final = 1e-3
_GUESSED_OUTPUT_SECONDS: Final = 0.05


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
        budget: RetryBudget,
    ) -> None:
        self.breaker = breaker
        self._budget = budget
        self._ready = ready
        self._telemetry = telemetry
        self._limits = limits
        self._now = clock.now
        self._leaves = self._elsewhere  # bound once, not for each request
        self._floor_seconds = limits.first_token_floor_seconds
        self._factor = limits.first_token_factor
        self._most_seconds = limits.first_token_seconds

    def failed(self, job: Job, failure: Failure) -> None:
        """An attempt failed before the first byte."""
        if failure.overloaded:
            self.breaker.unknown(failure.where)
        elif failure.why in _AT_ONCE and not _blamed(job, failure.why):
            self._fault(job.ask.key, failure.where, failure.why)

    def answered(self, job: Job, now: float) -> None:
        """An attempt gave an answer that can be passed on: the former ones were the engines' fault."""
        self.breaker.good(job.instance_id, now)
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
        """A stream broke after its first byte, or its continuation before."""
        if not _blamed(job, why):
            self._fault(job.ask.key, instance, why)

    def late(self, job: Job) -> None:
        """The request's own time is over. Its engine is to blame only when it has been silent to everybody for long enough."""
        patience = job.patience
        if patience is not None and not patience.blamed and patience.silence_seconds() > self._long(job):
            self._fault(job.ask.key, patience.instance, "timeout")

    def _long(self, job: Job) -> float:
        predicted = _predicted(job)
        return math.inf if predicted is None else max(_LATE_SECONDS, self._factor * predicted)

    def patience(self, job: Job, peer: Peer) -> Patience:
        """How long the engine that ``job`` goes to now may be silent."""
        until = job.request.received + self._most_seconds
        elsewhere = self._leaves if job.handoff is None else _at_once
        soft = self._soft(job)
        return Patience(peer, soft, until, self._now, elsewhere, job.ask.key, job.instance_id, job.failures)

    def last_patience(self, job: Job, peer: Peer) -> Patience:
        """The same for the engine that continues a stream: there is no other after it, and the stream may be old."""
        soft, until = self._soft(job), self._now() + self._limits.stream_idle_seconds
        return Patience(peer, soft, until, self._now, self._stays, job.ask.key, job.instance_id, job.failures)

    def _soft(self, job: Job) -> float | None:
        predicted = _predicted(job)
        return None if predicted is None else max(self._floor_seconds, self._factor * predicted)

    def _elsewhere(self, patience: Patience) -> bool:
        """Whether a request should leave an engine that has been silent to everybody for long."""
        now = self._now()
        tried = {failure.where for failure in patience.failures}
        others = any(
            one != patience.instance and one not in tried and self.breaker.may_try(one, now)
            for one in self._ready(patience.key)
        )
        again = others and worth_retrying([*patience.failures, Failure("timeout")], self._limits)
        return (again and self._budget.left(now)) or self._stays(patience)

    def _stays(self, patience: Patience) -> bool:
        """The request stays there, and the silence counts already, once."""
        if not patience.blamed:
            patience.blamed = True
            self._fault(patience.key, patience.instance, "timeout")
        return False

    def words(self, instance: str) -> tuple[Standing, str]:
        """An instance's standing and why."""
        return self.breaker.standing(instance, self._now())

    def _blame(self, job: Job, failures: Iterable[Failure]) -> None:
        for failure in failures:
            if failure.why not in _AT_ONCE and not failure.overloaded:
                self._fault(job.ask.key, failure.where, failure.why)

    def _fault(self, key: str, instance: str, why: str) -> None:
        if self.breaker.fault(instance, why, self._now(), self._ready(key)):
            self._telemetry.ejected(key, instance, why)


def _at_once(patience: Patience) -> bool:
    """Whether a hand-off leaves a silent engine: the same request goes again plainly, there or elsewhere."""
    del patience
    return True


def _blamed(job: Job, why: str) -> bool:
    """Whether this silence has been counted already."""
    return why == "timeout" and job.patience is not None and job.patience.blamed and job.patience.silence_seconds() > 0


def _predicted(job: Job) -> float | None:
    """Seconds until this job's engine should have said something; None when nobody can know."""
    first = job.decision.ttft_seconds if job.decision is not None else None
    if first is None:
        first = job.route.prompt_tokens * _GUESSED_TOKEN_SECONDS
    if job.ask.stream:
        return first
    tokens = job.route.max_tokens
    return None if tokens is None else first + tokens * _GUESSED_OUTPUT_SECONDS
