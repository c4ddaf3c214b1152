"""When a request may be tried on another engine: never more than a share of the traffic, so that
retries cannot feed a fire.

The share is charged for engines that answered badly, are full or too slow: asking another one then
is more work for a fleet that may have too much already. An engine that refused the connection, or
went in the middle, costs the others nothing that they would not have had anyway, so that retry is
free: a dying engine under a burst loses no request.

Also never for an answer that the client caused (4xx), never after the first byte, and never on a
third engine when two have broken off on the same request: one request that kills engines must not
take the fleet with it.
"""

from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.errors import EngineFailed, EngineTimeout, GatewayError, Overloaded

_WINDOW_SECONDS: Final = 10
_MIN_RETRIES: Final = 3
_MAX_CRASHES: Final = 2
CRASH_CAUSES = ("reset", "cut")
"""How it is called when an engine breaks off."""


class AttemptFailure(Exception):
    """Raised when one engine failed a request before its first byte; ``why`` is one word of a
    closed list.

    ``died``: the engine had the request and broke off. ``final``: no other engine would do better.
        ``sent``: the request
    reached the engine. ``where``: the instance's id.
    """

    def __init__(
        self,
        cause: str,
        *,
        crashed: bool = False,
        is_final: bool = False,
        is_overload: bool = False,
        was_sent: bool = True,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.crashed = crashed
        self.is_final = is_final
        self.is_overload = is_overload
        self.was_sent = was_sent
        self.instance_id = ""

    @property
    def is_exempt_from_budget(self) -> bool:
        """Trying elsewhere is not charged to the budget."""
        return self.crashed or not self.was_sent or self.cause == "gone"


class RetryBudget:
    """Counts requests and retries of the last ten seconds, second by second."""

    def __init__(self, limits: Limits) -> None:
        self._share: float = limits.retry_share
        self._second = 0
        self._requests = [0] * _WINDOW_SECONDS
        self._retries = [0] * _WINDOW_SECONDS

    def on_request(self, now: float) -> None:
        """A request has come."""
        self._advance(now)
        at, requests = self._second % _WINDOW_SECONDS, self._requests
        requests[at] = requests[at] + 1

    def has_left(self, now: float) -> bool:
        """May there be one more retry?"""
        self._advance(now)
        return sum(self._retries) < max(_MIN_RETRIES, self._share * sum(self._requests))

    def take(self, now: float) -> bool:
        """The same; if so, it is counted."""
        if not self.has_left(now):
            return False
        self._retries[self._second % _WINDOW_SECONDS] += 1
        return True

    def _advance(self, now: float) -> None:
        second = int(now)
        if second == self._second:
            return
        for passed in range(max(self._second + 1, second - _WINDOW_SECONDS + 1), second + 1):
            self._requests[passed % _WINDOW_SECONDS] = 0
            self._retries[passed % _WINDOW_SECONDS] = 0
        self._second = max(self._second, second)


def should_retry(failures: list[AttemptFailure], limits: Limits) -> bool:
    """Whether another engine may be asked for the request that met ``failures``, as far as the
    request goes.
    """
    # Refusals take no time; attempts that do are counted.
    if failures[-1].is_final or sum(failure.cause != "refused" for failure in failures) >= limits.max_attempts:
        return False
    return sum(failure.crashed for failure in failures) < _MAX_CRASHES


def to_client_error(failures: list[AttemptFailure], retry_after_seconds: int = 1) -> GatewayError:
    """What the client is told when no engine answered; ``seconds`` until one that is full should
    have room.
    """
    tried = f"{len(failures)} engine{'s' if len(failures) > 1 else ''} tried, last: {failures[-1].cause}"
    if sum(failure.crashed for failure in failures) >= _MAX_CRASHES:
        return EngineFailed(
            f"two engines broke off on this request ({tried})",
            code="engines_broke_off",
            hint="do not send it again unchanged",
            headers=(("x-should-retry", "false"),),
        )
    if all(failure.is_overload for failure in failures):
        return Overloaded(
            f"the engines are full ({tried})",
            hint="try again later",
            headers=(("retry-after", str(retry_after_seconds)),),
        )
    if failures[-1].cause == "timeout":
        return EngineTimeout(f"the engine did not answer in time ({tried})")
    return EngineFailed(f"no engine answered ({tried})", hint="try again", headers=(("retry-after", "1"),))
