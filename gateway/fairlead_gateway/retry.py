"""When a request may be tried on another engine: never more than a share of the traffic, so that retries cannot feed a fire.

The share is charged for engines that answered badly, are full or too slow: asking another one then is more work for a fleet
that may have too much already. An engine that refused the connection, or went in the middle, costs the others nothing
that they would not have had anyway, so that retry is free: a dying engine under a burst loses no request.

Also never for an answer that the client caused (4xx), never after the first byte, and never on a third engine when two have
broken off on the same request: one request that kills engines must not take the fleet with it.
"""

from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.errors import EngineFailed, EngineSilent, GatewayError, Overloaded

_WINDOW_SECONDS: Final = 10
_ALWAYS: Final = 3
_DEATHS: Final = 2
DIED = ("reset", "cut")
"""How it is called when an engine breaks off."""


class Failure(Exception):
    """Raised when one engine failed a request before its first byte; ``why`` is one word of a closed list.

    ``died``: the engine had the request and broke off. ``final``: no other engine would do better. ``sent``: the request
    reached the engine. ``where``: the instance's id.
    """

    def __init__(
        self, why: str, *, died: bool = False, final: bool = False, overloaded: bool = False, sent: bool = True
    ) -> None:
        super().__init__(why)
        self.why = why
        self.died = died
        self.final = final
        self.overloaded = overloaded
        self.sent = sent
        self.where = ""

    @property
    def free(self) -> bool:
        """Trying elsewhere is not charged to the budget."""
        return self.died or not self.sent or self.why == "gone"


class RetryBudget:
    """Counts requests and retries of the last ten seconds, second by second."""

    def __init__(self, limits: Limits) -> None:
        self._share: float = limits.retry_share
        self._second = 0
        self._requests = [0] * _WINDOW_SECONDS
        self._retries = [0] * _WINDOW_SECONDS

    def request(self, now: float) -> None:
        """A request has come."""
        self._roll(now)
        at, requests = self._second % _WINDOW_SECONDS, self._requests
        requests[at] = requests[at] + 1

    def left(self, now: float) -> bool:
        """May there be one more retry?"""
        self._roll(now)
        return sum(self._retries) < max(_ALWAYS, self._share * sum(self._requests))

    def take(self, now: float) -> bool:
        """The same; if so, it is counted."""
        if not self.left(now):
            return False
        self._retries[self._second % _WINDOW_SECONDS] += 1
        return True

    def _roll(self, now: float) -> None:
        second = int(now)
        if second == self._second:
            return
        for passed in range(max(self._second + 1, second - _WINDOW_SECONDS + 1), second + 1):
            self._requests[passed % _WINDOW_SECONDS] = 0
            self._retries[passed % _WINDOW_SECONDS] = 0
        self._second = max(self._second, second)


def worth_retrying(failures: list[Failure], limits: Limits) -> bool:
    """Whether another engine may be asked for the request that met ``failures``, as far as the request goes."""
    # Refusals take no time; attempts that do are counted.
    if failures[-1].final or sum(failure.why != "refused" for failure in failures) >= limits.attempts:
        return False
    return sum(failure.died for failure in failures) < _DEATHS


def as_error(failures: list[Failure], seconds: int = 1) -> GatewayError:
    """What the client is told when no engine answered; ``seconds`` until one that is full should have room."""
    tried = f"{len(failures)} engine{'s' if len(failures) > 1 else ''} tried, last: {failures[-1].why}"
    if sum(failure.died for failure in failures) >= _DEATHS:
        return EngineFailed(
            f"two engines broke off on this request ({tried})",
            code="engines_broke_off",
            hint="do not send it again unchanged",
            fields=(("x-should-retry", "false"),),
        )
    if all(failure.overloaded for failure in failures):
        return Overloaded(
            f"the engines are full ({tried})", hint="try again later", fields=(("retry-after", str(seconds)),)
        )
    if failures[-1].why == "timeout":
        return EngineSilent(f"the engine did not answer in time ({tried})")
    return EngineFailed(f"no engine answered ({tried})", hint="try again", fields=(("retry-after", "1"),))
