"""The state of the other gateways: which are alive, what each has in flight, what was missed.

Pure: time is an argument. A gateway is one run of one process. Its load counts while it is alive:
every batch says when the next one follows at the latest. A gateway three times as late has nothing
in flight any more. What it had sent stays in the prefix index, since the engines may go on with it.
A skipped number means that a batch was lost, by Redis or by trimming. Loads are sent whole, so the
next batch repairs that.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from fairlead.limits import Limits
from fairlead_gateway.supervisor.peers.load_decay import ResidenceTimes, SteadyLoad, add_load
from fairlead_gateway.supervisor.peers.peer_messages import PeerBatch, PeerLoad, SentPrompt

DISPATCH_BATCH_SECONDS: Final = 0.05
"""Limit: dispatches of the workers are batched this long for other gateways."""
DISPATCH_POLL_SECONDS: Final = 0.05
"""Limit: interval of polls for dispatches of other gateways."""

InstanceGroups: TypeAlias = Sequence[Collection[str]]
"""The instances of a model, in groups of interchangeable ones."""
LATE_FACTOR: Final = 3.0
"""A gateway is gone if its next batch is so many times as late as announced."""


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

    def __init__(self, secret_fingerprint: bytes, limits: Limits) -> None:
        self._secret_fingerprint = secret_fingerprint
        self._limits = limits
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
        if batch.leaves:
            self._remove_model(model, name)
            return
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= self._limits.peers:
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
        """Returns the loads that are probably there now (`load_decay`). Call `expire` before."""
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
