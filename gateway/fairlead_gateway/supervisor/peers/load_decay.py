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

from fairlead_gateway.supervisor.peers.peer_messages import PeerLoad, SentPrompt

MAX_REMEMBERED_ENDS: Final = 64.0
"""Ends at one instance; at so many what was seen counts half, so that the estimate follows what requests are like now."""
_NO_LOAD: Final = (0, 0, 0.0, 0.0)
_NO_LOADS: Final[Mapping[str, PeerLoad]] = MappingProxyType({})
STEADY_SECONDS: Final = 1.0
"""What was there at every telling of so long does not fade."""


class _MeanStay:
    """``seconds`` that requests were seen to stay, and how many ``ended``."""

    __slots__ = ("ended", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.ended = 0.0

    def add(self, seconds: float, ended: int) -> None:
        self.seconds += seconds
        self.ended += max(0, ended)
        if self.ended > MAX_REMEMBERED_ENDS:
            self.seconds /= 2
            self.ended /= 2


class SteadyLoad:
    """Of one gateway and model: what it had at each instance all the time."""

    __slots__ = ("_reports",)

    def __init__(self) -> None:
        self._reports: deque[tuple[float, Mapping[str, PeerLoad]]] = deque()

    def add_report(self, now: float, loads: Mapping[str, PeerLoad]) -> None:
        """It has ``loads`` from ``now`` on, and had what it told before until then."""
        self._reports.append((now, loads))
        while len(self._reports) > 1 and self._reports[1][0] <= now - STEADY_SECONDS:
            self._reports.popleft()

    def loads(self, now: float) -> Mapping[str, PeerLoad]:
        """The least of each instance; nothing of one that was heard of for a shorter time."""
        if not self._reports or self._reports[0][0] > now - STEADY_SECONDS:
            return _NO_LOADS
        found: dict[str, PeerLoad] = {}
        for name, load in self._reports[-1][1].items():
            inflight = min(told.get(name, _NO_LOAD)[0] for _, told in self._reports)
            waiting = min(inflight, *(told.get(name, _NO_LOAD)[1] for _, told in self._reports))
            if inflight and load[0]:
                seconds = load[2] * waiting / load[1] if load[1] else 0.0
                found[name] = (inflight, waiting, seconds, load[3] * inflight / load[0])
        return found


class ResidenceTimes:
    """Of one model, all other gateways together: how long requests stay at each instance, and how long until their first token."""

    __slots__ = ("_stays",)

    def __init__(self) -> None:
        self._stays: dict[str, tuple[_MeanStay, _MeanStay]] = {}

    def observe(
        self, seconds: float, before: Mapping[str, PeerLoad], sent: Iterable[SentPrompt], after: Mapping[str, PeerLoad]
    ) -> None:
        """A gateway had ``before`` in flight for so many seconds, sent these prompts, and has ``after`` in flight now."""
        dispatched = Counter([item[0] for item in sent])
        for name in {*before, *dispatched, *after}:
            stays = self._stays.get(name)
            if stays is None:
                stays = self._stays[name] = (_MeanStay(), _MeanStay())
            then, now = before.get(name, _NO_LOAD), after.get(name, _NO_LOAD)
            stays[0].add(then[0] * seconds, then[0] + dispatched[name] - now[0])
            stays[1].add(then[1] * seconds, then[1] + dispatched[name] - now[1])

    def expected_loads(
        self,
        loads: Mapping[str, PeerLoad],
        groups: Iterable[Collection[str]],
        age: float,
        steady: Mapping[str, PeerLoad] = _NO_LOADS,
    ) -> Mapping[str, PeerLoad]:
        """What is to be expected of ``loads`` that were said ``age`` seconds ago, of which ``steady`` was there all the time. The
        instances of a group take one another's place; what is in none of them is left out, since nothing is sent there. Counts
        are whole, and at least 1 where anything is."""
        found: dict[str, PeerLoad] = {}
        known: dict[str, tuple[_MeanStay, _MeanStay]] = {}
        for group in groups:
            moving = {name: _subtract(loads[name], steady.get(name, _NO_LOAD)) for name in group if name in loads}
            present = [load for load in moving.values() if load[0]]
            stays_here = {name: self._stays[name] for name in group if name in self._stays}
            known.update(stays_here)
            found.update({name: loads[name] for name in moving})
            if not present:
                continue
            stay_share = _remaining_share([stay for stay, _ in stays_here.values()], age)
            wait_share = _remaining_share([stay for _, stay in stays_here.values()], age)
            spread = _SpreadLoad(present, (1.0 - stay_share) / len(group), (1.0 - wait_share) / len(group))
            for name in group if stay_share < 1.0 or wait_share < 1.0 else [name for name in group if name in loads]:
                expected = spread.plus(moving.get(name, _NO_LOAD), stay_share, wait_share)
                found[name] = _add(steady.get(name, _NO_LOAD) if name in loads else _NO_LOAD, expected)
        self._stays = known
        return found


def _subtract(load: PeerLoad, steady: PeerLoad) -> PeerLoad:
    return load[0] - steady[0], load[1] - steady[1], load[2] - steady[2], load[3] - steady[3]


def _add(first: PeerLoad, second: PeerLoad) -> PeerLoad:
    return first[0] + second[0], first[1] + second[1], first[2] + second[2], first[3] + second[3]


def _remaining_share(stays: Sequence[_MeanStay], age: float) -> float:
    """The share of those seen ``age`` seconds ago that are still there."""
    ended = sum([stay.ended for stay in stays])
    seconds = math.fsum([stay.seconds for stay in stays])
    if not ended:
        return 1.0
    return math.exp(-age * ended / seconds) if seconds else 0.0


class _SpreadLoad:
    """Such shares of all loads."""

    __slots__ = ("inflight", "seconds", "tokens", "waiting")

    def __init__(self, loads: Collection[PeerLoad], gone: float, answered: float) -> None:
        self.inflight = gone * sum([load[0] for load in loads])
        self.waiting = answered * sum([load[1] for load in loads])
        self.seconds = answered * math.fsum([load[2] for load in loads])
        self.tokens = gone * math.fsum([load[3] for load in loads])

    def plus(self, load: PeerLoad, stay_share: float, wait_share: float) -> PeerLoad:
        """What is left of one, and what may have come there."""
        inflight = max(1, round(load[0] * stay_share + self.inflight))
        waiting = min(inflight, round(load[1] * wait_share + self.waiting))
        return inflight, waiting, load[2] * wait_share + self.seconds, load[3] * stay_share + self.tokens
