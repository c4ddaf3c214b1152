"""What is known of the other gateways: who is there, what each has in flight, what was missed. Pure: time is an argument.

A gateway is one run of one process. Its share of the load counts while it is heard: every batch says within how many seconds the next
one comes, and one that is three times as late, by our own monotonic clock, has nothing in flight any more. What it had
sent stays in the mirrors as hints, since the engines may well go on with it. A number that was passed over is a batch that was
lost, by Redis or because it was trimmed before it was read; the loads come whole, so the next one mends that.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from fairlead.limits import Limits
from fairlead_kvstore.exchange.pace import Pace, Steady
from fairlead_kvstore.exchange.records import Batch, Load, Sent

Groups: TypeAlias = Sequence[Collection[str]]
"""The instances of a model; those of one group take one another's place."""
LATE: Final = 3.0
"""A gateway counts as gone when its next batch is this many times as late as it said."""


@dataclass(slots=True)
class _Share:
    """Of one gateway and model."""

    number: int
    at: float
    within: float
    loads: Mapping[str, Load]
    steady: Steady

    def late(self, now: float) -> bool:
        return now - self.at > LATE * self.within


@dataclass(slots=True)
class _Peer:
    at: float
    within: float
    alike: bool
    shares: dict[str, _Share] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heard:
    """One other gateway: its name, seconds since its last word, and whether its hashes mean what ours do."""

    name: str
    age_seconds: float
    alike: bool


class Peers:
    """``secret`` is the print of our own."""

    def __init__(self, secret: bytes, limits: Limits) -> None:
        self._secret = secret
        self._limits = limits
        self._age = limits.sent_seconds_gathered + limits.sent_look_seconds
        self._peers: dict[str, _Peer] = {}
        self._paces: dict[str, Pace] = {}
        self.missed = 0
        self.refused = 0

    def heard(self, model: str, name: str, batch: Batch, now: float, *, live: bool) -> tuple[Sent, ...]:
        """Take over a batch; what was sent, where that means something here. What is not ``live`` was read back from the past:
        it is no sign of life, and its loads are over."""
        alike = batch.secret == self._secret
        if live:
            self._alive(model, name, batch, now, alike)
        return batch.sent if alike else ()

    def _alive(self, model: str, name: str, batch: Batch, now: float, alike: bool) -> None:
        if batch.leaves:
            self._leaves(model, name)
            return
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= self._limits.peers:
                self.refused += 1
                return
            peer = self._peers[name] = _Peer(now, batch.within, alike)
        peer.at, peer.within, peer.alike = now, batch.within, alike
        known = peer.shares.get(model)
        loads: Mapping[str, Load] | None = batch.loads
        if known is not None:
            if batch.number > known.number + 1:
                self.missed += batch.number - known.number - 1
            if loads is None:
                loads = known.loads
            self._pace(model).told(now - known.at, known.loads, batch.sent, loads)
        steady = Steady() if known is None else known.steady
        steady.told(now, loads or {})
        peer.shares[model] = _Share(batch.number, now, batch.within, loads or {}, steady)

    def _leaves(self, model: str, name: str) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.shares.pop(model, None)
            if not peer.shares:
                del self._peers[name]

    def expire(self, now: float) -> None:
        """Whoever is late has nothing in flight; who has been silent for all models is forgotten."""
        for name, peer in list(self._peers.items()):
            for model, share in list(peer.shares.items()):
                if share.late(now):
                    del peer.shares[model]
            if not peer.shares and now - peer.at > LATE * peer.within:
                del self._peers[name]

    def forget(self, model: str) -> None:
        """The model is not followed any more."""
        self._paces.pop(model, None)
        for peer in self._peers.values():
            peer.shares.pop(model, None)

    def loads(self) -> dict[str, Load]:
        """What the others said that they have in flight, by instance; call ``expire`` before."""
        found: dict[str, Load] = {}
        for loads in self._by_model().values():
            found.update(loads)
        return found

    def expected(self, models: Mapping[str, Groups]) -> dict[str, Load]:
        """What of it is probably there now (``pace``); of models that are not named, nothing. Call ``expire`` before."""
        found: dict[str, Load] = {}
        for model, loads in self._by_model().items():
            steady = self._steady(model)
            found.update(self._pace(model).expected(loads, models.get(model, ()), self._age, steady))
        return found

    def _steady(self, model: str) -> dict[str, Load]:
        found: dict[str, Load] = {}
        for peer in self._peers.values():
            share = peer.shares.get(model)
            if share is not None:
                _add(found, share.steady.loads(share.at))
        return found

    def _by_model(self) -> dict[str, dict[str, Load]]:
        models: dict[str, dict[str, Load]] = {}
        for peer in self._peers.values():
            for model, share in peer.shares.items():
                _add(models.setdefault(model, {}), share.loads)
        return models

    def _pace(self, model: str) -> Pace:
        pace = self._paces.get(model)
        if pace is None:
            pace = self._paces[model] = Pace()
        return pace

    def present(self, now: float) -> list[Heard]:
        """The gateways that are heard."""
        return [Heard(name, max(0.0, now - peer.at), peer.alike) for name, peer in sorted(self._peers.items())]

    def __len__(self) -> int:
        return len(self._peers)


def _add(found: dict[str, Load], loads: Mapping[str, Load]) -> None:
    """Count these in, by instance."""
    for instance, load in loads.items():
        known = found.get(instance)
        found[instance] = load if known is None else _both(known, load)


def _both(one: Load, other: Load) -> Load:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]
