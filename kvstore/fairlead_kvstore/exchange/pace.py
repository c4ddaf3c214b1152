"""How much of another gateway's load is still where it was said to be.

What a gateway has in flight is known to the others a tenth of a second later. Requests that take many seconds are then where they
were. Of requests that take less, most have ended, others have begun, and these may be anywhere. To go by what was said is then
worse than to know nothing: a conversation's next prompt comes just after its last answer, so that the one instance that
certainly has less to do than was said is the one that holds the conversation, and it is passed over for being busy. (Measured in the
fleet simulator, requests of 20 ms: three gateways that shared their load found 61 % of their tokens cached, without it 70 %.)

So a load is told on as what is to be expected of it. With a mean stay of ``r`` seconds, a share exp(−age / r) is still there; the
rest counts as spread evenly over the instances that can take its place, since the sum has hardly changed: how busy the fleet is
decides what a recomputation costs. The stay is that of the requests (for those in flight and their tokens) or that until the first
token (for those that wait and their seconds).

**What an instance had all the time** for the last second does not fade: a gateway that had at least three requests there at every
telling will have three there now, whether these are the same (streams of minutes beside questions of milliseconds) or others.
Only what is above that comes and goes.

**The mean stay** needs nothing but the batches themselves: the time that requests were seen in flight, divided by how many ended in
it. That is the estimate of greatest likelihood for stays of which many are not over yet; nothing is over: nothing fades.
"""

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from fairlead_kvstore.exchange.records import Load, Sent

REMEMBERED: Final = 64.0
"""Ends at one instance; at so many what was seen counts half, so that the estimate follows what requests are like now."""
_NOTHING: Final = (0, 0, 0.0, 0.0)
_NONE: Final[Mapping[str, Load]] = MappingProxyType({})
STEADY_SECONDS: Final = 1.0
"""What was there at every telling of so long does not fade."""


class _Stay:
    """``seconds`` that requests were seen to stay, and how many ``ended``."""

    __slots__ = ("ended", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.ended = 0.0

    def seen(self, seconds: float, ended: int) -> None:
        self.seconds += seconds
        self.ended += max(0, ended)
        if self.ended > REMEMBERED:
            self.seconds /= 2
            self.ended /= 2


class Steady:
    """Of one gateway and model: what it had at each instance all the time."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: deque[tuple[float, Mapping[str, Load]]] = deque()

    def told(self, now: float, loads: Mapping[str, Load]) -> None:
        """It has ``loads`` from ``now`` on, and had what it told before until then."""
        self._told.append((now, loads))
        while len(self._told) > 1 and self._told[1][0] <= now - STEADY_SECONDS:
            self._told.popleft()

    def loads(self, now: float) -> Mapping[str, Load]:
        """The least of each instance; nothing of one that was heard of for a shorter time."""
        if not self._told or self._told[0][0] > now - STEADY_SECONDS:
            return _NONE
        found: dict[str, Load] = {}
        for name, load in self._told[-1][1].items():
            flying = min(told.get(name, _NOTHING)[0] for _, told in self._told)
            waiting = min(flying, *(told.get(name, _NOTHING)[1] for _, told in self._told))
            if flying and load[0]:
                seconds = load[2] * waiting / load[1] if load[1] else 0.0
                found[name] = (flying, waiting, seconds, load[3] * flying / load[0])
        return found


class Pace:
    """Of one model, all other gateways together: how long requests stay at each instance, and how long until their first token."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[str, tuple[_Stay, _Stay]] = {}

    def told(self, seconds: float, before: Mapping[str, Load], sent: Iterable[Sent], after: Mapping[str, Load]) -> None:
        """A gateway had ``before`` in flight for so many seconds, sent these prompts, and has ``after`` in flight now."""
        begun = Counter([item[0] for item in sent])
        for name in {*before, *begun, *after}:
            seen = self._seen.get(name)
            if seen is None:
                seen = self._seen[name] = (_Stay(), _Stay())
            then, now = before.get(name, _NOTHING), after.get(name, _NOTHING)
            seen[0].seen(then[0] * seconds, then[0] + begun[name] - now[0])
            seen[1].seen(then[1] * seconds, then[1] + begun[name] - now[1])

    def expected(
        self,
        loads: Mapping[str, Load],
        groups: Iterable[Collection[str]],
        age: float,
        steady: Mapping[str, Load] = _NONE,
    ) -> Mapping[str, Load]:
        """What is to be expected of ``loads`` that were said ``age`` seconds ago, of which ``steady`` was there all the time. The
        instances of a group take one another's place; what is in none of them is left out, since nothing is sent there. Counts
        are whole, and at least 1 where anything is."""
        found: dict[str, Load] = {}
        known: dict[str, tuple[_Stay, _Stay]] = {}
        for group in groups:
            moving = {name: _less(loads[name], steady.get(name, _NOTHING)) for name in group if name in loads}
            here = [load for load in moving.values() if load[0]]
            seen = {name: self._seen[name] for name in group if name in self._seen}
            known.update(seen)
            found.update({name: loads[name] for name in moving})
            if not here:
                continue
            stays = _left([stay for stay, _ in seen.values()], age)
            waits = _left([stay for _, stay in seen.values()], age)
            anywhere = _Sum(here, (1.0 - stays) / len(group), (1.0 - waits) / len(group))
            for name in group if stays < 1.0 or waits < 1.0 else [name for name in group if name in loads]:
                came = anywhere.and_of(moving.get(name, _NOTHING), stays, waits)
                found[name] = _plus(steady.get(name, _NOTHING) if name in loads else _NOTHING, came)
        self._seen = known
        return found


def _less(load: Load, steady: Load) -> Load:
    return load[0] - steady[0], load[1] - steady[1], load[2] - steady[2], load[3] - steady[3]


def _plus(one: Load, other: Load) -> Load:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def _left(stays: Sequence[_Stay], age: float) -> float:
    """The share of those seen ``age`` seconds ago that are still there."""
    ended = sum([stay.ended for stay in stays])
    seconds = math.fsum([stay.seconds for stay in stays])
    if not ended:
        return 1.0
    return math.exp(-age * ended / seconds) if seconds else 0.0


class _Sum:
    """Such shares of all loads."""

    __slots__ = ("flying", "seconds", "tokens", "waiting")

    def __init__(self, loads: Collection[Load], gone: float, answered: float) -> None:
        self.flying = gone * sum([load[0] for load in loads])
        self.waiting = answered * sum([load[1] for load in loads])
        self.seconds = answered * math.fsum([load[2] for load in loads])
        self.tokens = gone * math.fsum([load[3] for load in loads])

    def and_of(self, load: Load, stays: float, waits: float) -> Load:
        """What is left of one, and what may have come there."""
        flying = max(1, round(load[0] * stays + self.flying))
        waiting = min(flying, round(load[1] * waits + self.waiting))
        return flying, waiting, load[2] * waits + self.seconds, load[3] * stays + self.tokens
