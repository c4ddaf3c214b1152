"""The state of the other gateways: which are alive, what each has in flight, what was missed.

Pure: time is an argument. A gateway is one run of one process. Its load counts while it is alive:
every batch says when the next one follows at the latest. A gateway three times as late has nothing
in flight any more. What it had sent stays in the prefix index, since the engines may go on with it.
A skipped number means that a batch was lost, by Redis or by trimming. Loads are sent whole, so the
next batch repairs that.

An estimate of how much of another gateway's load is still where it was reported.

A report is a tenth of a second old. Requests of many seconds are then still there. Shorter ones
have mostly ended, and others have begun anywhere. Using the report unchanged is then worse than
knowing nothing. A conversation's next prompt follows its last answer. So its instance certainly has
less to do than reported, and would be passed over as busy.

So the expected load is used instead of the report. With a mean stay of `r` seconds, a share
exp(−age / r) is still there. The rest counts as spread evenly over interchangeable instances, since
the sum has hardly changed. The stay is that of requests (for counts and tokens), or that until the
first token (for waiting requests and their seconds).

**A constant part does not decay.** A gateway that had at least three requests at an instance in
every report of the last second will have three now. Only what is above that decays.

**The mean stay** is computed from the batches: the time that requests were in flight, divided by
how many ended. That is the maximum-likelihood estimate for stays of which many are not over.
While no request has ended, nothing decays.

Why: in the fleet simulator with requests of 20 ms, three gateways that shared their load found 61 %
of their tokens cached. Without sharing, they found 70 %.
"""

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

from fairlead_gateway.peers.peer_messages import PeerBatch, PeerLoad, SentPrompt

MAX_REMEMBERED_ENDS: Final = 64.0
"""Ends per instance after which earlier observations count half, so that the estimate follows
changes.
"""
_NO_LOAD: Final = (0, 0, 0.0, 0.0, 0)
_NO_LOADS: Final[Mapping[str, PeerLoad]] = MappingProxyType({})
STEADY_SECONDS: Final = 1.0
"""A load present in every report of so long does not decay."""
_PART_SECONDS: Final = STEADY_SECONDS / 4

DISPATCH_BATCH_SECONDS: Final = 0.05
"""Limit: dispatches of the workers are batched this long for other gateways."""
DISPATCH_POLL_SECONDS: Final = 0.05
"""Limit: interval of polls for dispatches of other gateways."""
PEERS: Final = 256
"""Limit: other gateways that are tracked; the load of more is unknown."""

InstanceGroups: TypeAlias = Sequence[Collection[str]]
"""The instances of a model, in groups of interchangeable ones."""
LATE_FACTOR: Final = 3.0
"""A gateway is gone if its next batch is so many times as late as announced."""


class _MeanStay:
    """The total seconds that requests were in flight, and how many ended."""

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
    """The constant load of one gateway and model, by instance.

    Reports are merged into parts of a quarter of `STEADY_SECONDS`: the least counts of each
    instance that all of them name.

    Why: a gateway reports 20 times a second, and may report far more often.
    """

    __slots__ = ("_found", "_last", "_parts")

    def __init__(self) -> None:
        self._parts: deque[tuple[float, dict[str, tuple[int, int, int]]]] = deque()
        self._last: Mapping[str, PeerLoad] = _NO_LOADS
        self._found: tuple[float, Mapping[str, PeerLoad]] | None = None  # the last result, and for when

    def add_report(self, now: float, loads: Mapping[str, PeerLoad]) -> None:
        """Adds a report. The one before was valid until `now`."""
        self._last, self._found = loads, None
        if self._parts and now - self._parts[-1][0] < _PART_SECONDS:
            start, min_loads = self._parts[-1]
            merged = {
                name: (min(inflight, loads[name][0]), min(waiting, loads[name][1]), min(queued, loads[name][4]))
                for name, (inflight, waiting, queued) in min_loads.items()
                if name in loads
            }
            self._parts[-1] = start, merged
        else:
            self._parts.append((now, {name: (load[0], load[1], load[4]) for name, load in loads.items()}))
        while len(self._parts) > 1 and self._parts[1][0] <= now - STEADY_SECONDS:
            self._parts.popleft()

    def loads(self, now: float) -> Mapping[str, PeerLoad]:
        """Returns each instance's least load in the last `STEADY_SECONDS`, or a little longer.

        Empty until there are reports for that long.
        """
        if not self._parts or self._parts[0][0] > now - STEADY_SECONDS:
            return _NO_LOADS
        if self._found is None or self._found[0] != now:
            self._found = now, self._least_loads()
        return self._found[1]

    def _least_loads(self) -> Mapping[str, PeerLoad]:
        found: dict[str, PeerLoad] = {}
        parts = [least for _, least in self._parts]
        for name, load in self._last.items():
            counts = [least.get(name, (0, 0, 0)) for least in parts]
            inflight = min([count[0] for count in counts])
            waiting = min(inflight, *[count[1] for count in counts])
            if inflight and load[0]:
                seconds = load[2] * waiting / load[1] if load[1] else 0.0
                queued = min(inflight, *[count[2] for count in counts])
                found[name] = (inflight, waiting, seconds, load[3] * inflight / load[0], queued)
        return found


class ResidenceTimes:
    """Residence times of other gateways' requests at each instance of one model, and to the first
    token.
    """

    __slots__ = ("_stays",)

    def __init__(self) -> None:
        self._stays: dict[str, tuple[_MeanStay, _MeanStay]] = {}

    def observe(
        self, seconds: float, before: Mapping[str, PeerLoad], sent: Iterable[SentPrompt], after: Mapping[str, PeerLoad]
    ) -> None:
        """Learns from two reports of a gateway, `seconds` apart, and the prompts sent
        between them.
        """
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
        """Returns the loads to expect now, given the `loads` reported `age` seconds ago.

        - groups: interchangeable instances; others are left out, since nothing is sent there.
        - steady: the part that does not decay.

        Counts are whole, and at least 1 where there is any load. What was learned about instances
        that are in no group is forgotten.
        """
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
                found[name] = add_load(steady.get(name, _NO_LOAD) if name in loads else _NO_LOAD, expected)
        self._stays = known
        return found


def _subtract(load: PeerLoad, steady: PeerLoad) -> PeerLoad:
    return (
        load[0] - steady[0],
        load[1] - steady[1],
        load[2] - steady[2],
        load[3] - steady[3],
        load[4] - steady[4],
    )


def add_load(first: PeerLoad, second: PeerLoad) -> PeerLoad:
    """Returns the sum of two loads of an instance."""
    return (
        first[0] + second[0],
        first[1] + second[1],
        first[2] + second[2],
        first[3] + second[3],
        first[4] + second[4],
    )


def _remaining_share(stays: Sequence[_MeanStay], age: float) -> float:
    """Returns the share of requests reported `age` seconds ago that are still there."""
    ended = sum([stay.ended for stay in stays])
    seconds = math.fsum([stay.seconds for stay in stays])
    if not ended:
        return 1.0
    return math.exp(-age * ended / seconds) if seconds else 0.0


class _SpreadLoad:
    """Shares of all loads, spread over the instances of a group."""

    __slots__ = ("inflight", "queued", "seconds", "tokens", "waiting")

    def __init__(self, loads: Collection[PeerLoad], gone: float, answered: float) -> None:
        self.inflight = gone * sum([load[0] for load in loads])
        self.waiting = answered * sum([load[1] for load in loads])
        self.seconds = answered * math.fsum([load[2] for load in loads])
        self.tokens = gone * math.fsum([load[3] for load in loads])
        self.queued = answered * sum([load[4] for load in loads])

    def plus(self, load: PeerLoad, stay_share: float, wait_share: float) -> PeerLoad:
        """Returns the rest of an instance's load plus its part of the spread load.

        stay_share, wait_share: shares of the load, and of its waiting part, that are still there.
        """
        inflight = max(1, round(load[0] * stay_share + self.inflight))
        waiting = min(inflight, round(load[1] * wait_share + self.waiting))
        queued = min(inflight, round(load[4] * wait_share + self.queued))
        seconds, tokens = load[2] * wait_share + self.seconds, load[3] * stay_share + self.tokens
        return inflight, waiting, seconds, tokens, queued


@dataclass(slots=True)
class _PeerModelState:
    """The state of one gateway and model."""

    number: int
    received_at: float
    within: float
    loads: Mapping[str, PeerLoad]
    steady: SteadyLoad

    def is_late(self, now: float) -> bool:
        return now - self.received_at > LATE_FACTOR * self.within


@dataclass(slots=True)
class _PeerEntry:
    received_at: float
    within: float
    shares_secret: bool
    models: dict[str, _PeerModelState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """Another gateway.

    - age_seconds: since its last message.
    - shares_secret: its prefix hashes are comparable with this gateway's.
    """

    name: str
    age_seconds: float
    shares_secret: bool


class PeerState:
    """The state of the other gateways, as their batches report it."""

    def __init__(self, secret_fingerprint: bytes, max_peers: int = PEERS) -> None:
        self._secret_fingerprint = secret_fingerprint
        self._max_peers = max_peers
        self._report_age = DISPATCH_BATCH_SECONDS + DISPATCH_POLL_SECONDS
        self._peers: dict[str, _PeerEntry] = {}
        self._residence_times: dict[str, ResidenceTimes] = {}
        self.missed_batches = 0
        self.rejected_peers = 0

    def apply_batch(
        self, model: str, name: str, batch: PeerBatch, now: float, *, is_live: bool
    ) -> tuple[SentPrompt, ...]:
        """Applies a batch; returns its prompts, or none if their hashes are not comparable.

        is_live: False for an old batch, whose loads no longer count.
        """
        shares_secret = batch.secret == self._secret_fingerprint
        if is_live:
            self._apply_live(model, name, batch, now, shares_secret)
        return batch.sent if shares_secret else ()

    def _apply_live(self, model: str, name: str, batch: PeerBatch, now: float, shares_secret: bool) -> None:
        """Applies what a peer reports now. A batch without loads leaves those that are known."""
        if batch.leaves:
            self._remove_model(model, name)
            return
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= self._max_peers:
                self.rejected_peers += 1
                return
            peer = self._peers[name] = _PeerEntry(now, batch.within, shares_secret)
        peer.received_at, peer.within, peer.shares_secret = now, batch.within, shares_secret
        known = peer.models.get(model)
        loads: Mapping[str, PeerLoad] | None = batch.peer_loads()
        if known is not None:
            if batch.number > known.number + 1:
                self.missed_batches += batch.number - known.number - 1
            if loads is None:
                loads = known.loads
            self._residence(model).observe(now - known.received_at, known.loads, batch.sent, loads)
        steady = SteadyLoad() if known is None else known.steady
        steady.add_report(now, loads or {})
        peer.models[model] = _PeerModelState(batch.number, now, batch.within, loads or {}, steady)

    def _remove_model(self, model: str, name: str) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.models.pop(model, None)
            if not peer.models:
                del self._peers[name]

    def expire(self, now: float) -> None:
        """Drops the loads of late gateways, and gateways that are late for all models."""
        for name, peer in list(self._peers.items()):
            for model, share in list(peer.models.items()):
                if share.is_late(now):
                    del peer.models[model]
            if not peer.models and now - peer.received_at > LATE_FACTOR * peer.within:
                del self._peers[name]

    def forget_model(self, model: str) -> None:
        """Forgets a model that is no longer followed."""
        self._residence_times.pop(model, None)
        for peer in self._peers.values():
            peer.models.pop(model, None)

    def reported_loads(self) -> dict[str, PeerLoad]:
        """Returns the loads that other gateways reported, by instance. Call `expire` before."""
        reported: dict[str, PeerLoad] = {}
        for loads in self._loads_by_model().values():
            reported.update(loads)
        return reported

    def expected_loads(self, models: Mapping[str, InstanceGroups]) -> dict[str, PeerLoad]:
        """Returns the loads that are probably there now. Call `expire` before."""
        expected: dict[str, PeerLoad] = {}
        for model, loads in self._loads_by_model().items():
            steady = self._steady_loads(model)
            expected.update(
                self._residence(model).expected_loads(loads, models.get(model, ()), self._report_age, steady)
            )
        return expected

    def _steady_loads(self, model: str) -> dict[str, PeerLoad]:
        found: dict[str, PeerLoad] = {}
        for peer in self._peers.values():
            share = peer.models.get(model)
            if share is not None:
                _add_loads(found, share.steady.loads(share.received_at))
        return found

    def _loads_by_model(self) -> dict[str, dict[str, PeerLoad]]:
        models: dict[str, dict[str, PeerLoad]] = {}
        for peer in self._peers.values():
            for model, share in peer.models.items():
                _add_loads(models.setdefault(model, {}), share.loads)
        return models

    def _residence(self, model: str) -> ResidenceTimes:
        pace = self._residence_times.get(model)
        if pace is None:
            pace = self._residence_times[model] = ResidenceTimes()
        return pace

    def known_peers(self, now: float) -> list[KnownPeer]:
        """Returns the other gateways."""
        return [
            KnownPeer(name, max(0.0, now - peer.received_at), peer.shares_secret)
            for name, peer in sorted(self._peers.items())
        ]

    def __len__(self) -> int:
        return len(self._peers)


def _add_loads(totals: dict[str, PeerLoad], loads: Mapping[str, PeerLoad]) -> None:
    for instance, load in loads.items():
        known = totals.get(instance)
        totals[instance] = load if known is None else add_load(known, load)
