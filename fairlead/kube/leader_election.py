"""Leader election among replicas with a Lease (coordination.k8s.io/v1).

Clocks of machines differ, so the times in the lease are only for people. Each candidate measures
with its monotonic clock how long the lease has not changed, and only then takes it. The holder
stops leading earlier than that: `renew_seconds` after it sent its last successful renewal. A leader
that was suspended must not write on: `leader_client` checks `is_leading` right before it sends a
write. Two processes can write at once only if one is suspended between that and the socket.

`decide` and `lease_spec` are pure; `LeaderElector` acts.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Conflict, NotFound
from fairlead.kube.resources import LEASES, Manifest, format_micro_time, metadata_of
from fairlead.runtime.clock import Pacing
from fairlead.runtime.tasks import end_with_first

_FIELD_MANAGER = "fairlead"


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Election timing in seconds.

    lease_seconds: other candidates take a lease that has not changed for this long.
    renew_seconds: a holder stops leading this long after its last renewal.
    retry_seconds: interval between attempts to take or renew the lease.

    Raises ValueError unless lease > renew > retry > 0.
    """

    lease_seconds: float = 15.0
    renew_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease_seconds > self.renew_seconds > self.retry_seconds > 0:
            raise ValueError("a lease needs lease_seconds > renew_seconds > retry_seconds > 0")


@dataclass(frozen=True, slots=True)
class ObservedLease:
    """A lease as last read. `observed_at`: monotonic seconds when this version was first read."""

    version: str
    holder: str
    lease_seconds: float
    transitions: int
    acquired: str
    observed_at: float


class LeaseAction(StrEnum):
    """The action of a candidate on the lease in one attempt."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class LeaseStep:
    """The next action on the lease, and the reason."""

    action: LeaseAction
    reason: str


def observe_lease(lease: Manifest, previous: ObservedLease | None, now: float) -> ObservedLease:
    """Returns the lease as read, with the time when this version was first observed."""
    spec, version = lease.get("spec") or {}, str(metadata_of(lease).get("resourceVersion", ""))
    return ObservedLease(
        version=version,
        holder=str(spec.get("holderIdentity") or ""),
        lease_seconds=float(spec.get("leaseDurationSeconds") or LeaseTiming().lease_seconds),
        transitions=int(spec.get("leaseTransitions") or 0),
        acquired=str(spec.get("acquireTime") or ""),
        observed_at=previous.observed_at if previous is not None and previous.version == version else now,
    )


def decide(lease: ObservedLease | None, identity: str, now: float) -> LeaseStep:
    """Returns the action for an observed lease (None: it does not exist).

    identity: unique for the life of a process.
    """
    if lease is None:
        return LeaseStep(LeaseAction.CREATE, "there is no lease")
    if lease.holder == identity:
        return LeaseStep(LeaseAction.RENEW, "it is ours")
    if not lease.holder:
        return LeaseStep(LeaseAction.TAKE, "it was given back")
    unchanged_seconds = now - lease.observed_at
    if unchanged_seconds >= lease.lease_seconds:
        return LeaseStep(LeaseAction.TAKE, f"{lease.holder} has not renewed it for {unchanged_seconds:.1f} s")
    return LeaseStep(LeaseAction.WAIT, f"{lease.holder} holds it")


def lease_spec(lease: ObservedLease | None, identity: str, timing: LeaseTiming, wall: float) -> Manifest:
    """Returns the `spec` that `identity` writes when it takes or renews the lease.

    wall: Unix seconds.
    """
    is_ours = lease is not None and lease.holder == identity
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": max(1, round(timing.lease_seconds)),
        "acquireTime": lease.acquired if lease is not None and is_ours and lease.acquired else format_micro_time(wall),
        "renewTime": format_micro_time(wall),
        "leaseTransitions": 0 if lease is None else lease.transitions + (not is_ours),
    }


def candidate_identity(environment: Mapping[str, str], chance: Callable[[], float]) -> str:
    host = environment.get("HOSTNAME") or socket.gethostname()
    return f"{host}_{os.getpid()}_{int(chance() * 0xFFFFFFFF):08x}"


@dataclass(frozen=True, slots=True)
class LeaseCandidate:
    """A Lease by namespace and name, and the identity of one of its candidates."""

    namespace: str
    name: str
    identity: str


class LeaderElector:
    """One candidate for a lease: call `acquire`, then `hold`; `release` at the end."""

    def __init__(
        self,
        api: KubeApi,
        candidate: LeaseCandidate,
        pacing: Pacing,
        timing: LeaseTiming | None = None,
    ) -> None:
        self.reason = "it has not begun"
        self._api = api
        self._namespace, self._name, self._identity = candidate.namespace, candidate.name, candidate.identity
        self._clock, self._chance, self._pause = pacing.clock, pacing.chance, pacing.pause
        self._timing = timing or LeaseTiming()
        self._lease: ObservedLease | None = None
        self._leads_until: float | None = None

    @property
    def is_leading(self) -> bool:
        """True while this process may act as the leader.

        Check it before each write: a process that was suspended may have lost the lease meanwhile.
        """
        return self._leads_until is not None and self._clock.now() < self._leads_until

    @property
    def holder(self) -> str:
        """The last observed holder of the lease; empty if it had none."""
        return self._lease.holder if self._lease is not None else ""

    async def acquire(self) -> None:
        """Tries to take the lease until this process holds it. `reason` says what it waits for."""
        while True:
            await self._attempt_within(self._timing.renew_seconds)
            if self.is_leading:
                return
            await self._pause(self._timing.retry_seconds * (1.0 + 0.2 * self._chance()))

    async def hold(self) -> str:
        """Renews the lease until it is lost, and returns the reason.

        The leader's work must then stop immediately. An attempt gets half of the time at most, so
        that one connection without responses does not cost the lease: the next one is new.
        """
        while (left := self._seconds_left()) > 0:
            await self._pause(min(self._timing.retry_seconds, left))
            if (left := self._seconds_left()) > 0:
                await self._attempt_within(min(left, self._timing.renew_seconds / 2))
        self._leads_until = None
        return self.reason

    async def release(self) -> None:
        """Gives the lease back, so that the next holder need not wait.

        Failures are ignored: the lease expires.
        """
        was_leading, self._leads_until = self._leads_until is not None, None
        if not was_leading or self._lease is None:
            return
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": format_micro_time(self._clock.wall())}
        try:
            await self._write_lease(self._lease, spec)
        except FairleadError as error:
            self.reason = f"it could not be given back: {error}"

    def _seconds_left(self) -> float:
        return self._leads_until - self._clock.now() if self._leads_until is not None else 0.0

    async def _attempt_within(self, seconds: float) -> None:
        """Runs one attempt, and cancels it after `seconds`.

        Why: an API server that does not respond must not prolong the leadership.
        """
        attempt = asyncio.ensure_future(self._attempt())
        if attempt in await end_with_first(attempt, self._pause(seconds)):
            attempt.result()
        else:
            self.reason = f"the API server did not answer within {seconds:.1f} s"

    async def _attempt(self) -> None:
        """Makes one attempt to take or renew the lease: reads it, decides, and writes it.

        A leader does not read it first: the version in its write detects other writers.
        """
        started_at = self._clock.now()
        try:
            if self._lease is None or self._lease.holder != self._identity:
                await self._read_lease()
            step = decide(self._lease, self._identity, self._clock.now())
            self.reason = step.reason
            if step.action is LeaseAction.WAIT:
                self._leads_until = None
                return
            lease = await self._write_lease(
                self._lease, lease_spec(self._lease, self._identity, self._timing, self._clock.wall())
            )
            self._lease = observe_lease(lease, self._lease, self._clock.now())
            self._leads_until = started_at + self._timing.renew_seconds
        except Conflict:
            await self._on_conflict()
        except NotFound:  # it was deleted
            self._lease = None
            self.reason = "the lease is gone"
        except FairleadError as error:
            self.reason = str(error)

    async def _read_lease(self) -> None:
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
        except NotFound:
            self._lease = None
        else:
            self._lease = observe_lease(lease, self._lease, self._clock.now())

    async def _on_conflict(self) -> None:
        """Reads the lease after a write conflict, so that the next attempt can decide.

        The conflict may be with an earlier write of this process.
        """
        try:
            await self._read_lease()
        except FairleadError as error:
            self.reason = str(error)
            return
        if self._lease is not None and self._lease.holder != self._identity:
            self._leads_until = None
            self.reason = f"{self._lease.holder or 'no replica'} holds it"

    async def _write_lease(self, lease: ObservedLease | None, spec: Manifest) -> Manifest:
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            manifest = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
            return await self._api.create(manifest, _FIELD_MANAGER)
        patch = {"metadata": {"resourceVersion": lease.version}, "spec": spec}
        return await self._api.patch_merge(LEASES, self._namespace, self._name, patch, _FIELD_MANAGER)
