"""Who of several replicas works: a Lease that one of them holds and renews (coordination.k8s.io/v1).

Clocks of machines differ, so the times written into the lease are for people. Everybody measures by its own monotonic clock how long
the lease has not changed; only then is it free. Whoever holds it counts as leading for less time than that: until ``renew_seconds``
after the moment before it sent its last successful renewal. So two may believe to lead only when a process is stopped between looking
at ``leading`` and the end of a write, against which ownership of fields (server-side apply) protects: both would write the same.

``decide`` and ``record`` are pure; ``Election`` acts.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fairlead.clock import Clock
from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Conflict, NotFound
from fairlead.kube.resource import LEASES, Manifest, metadata_of, micro_time
from fairlead.tasks import ended


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds: others take the lease when it has not changed for ``lease``, a holder stops leading ``renew`` after its last
    renewal, and everybody looks every ``retry``. Raises ValueError unless lease > renew > retry > 0.
    """

    lease_seconds: float = 15.0
    renew_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease_seconds > self.renew_seconds > self.retry_seconds > 0:
            raise ValueError("a lease needs lease_seconds > renew_seconds > retry_seconds > 0")


@dataclass(frozen=True, slots=True)
class Seen:
    """A lease as last read; ``since`` is our clock when it was first seen so."""

    version: str
    holder: str
    lease_seconds: float
    transitions: int
    acquired: str
    since: float


class Act(StrEnum):
    """What to do about the lease."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Step:
    """One decision and its reason."""

    act: Act
    reason: str


def seen(lease: Manifest, before: Seen | None, now: float) -> Seen:
    """What a lease says, with the moment since when it has said so."""
    spec, version = lease.get("spec") or {}, str(metadata_of(lease).get("resourceVersion", ""))
    return Seen(
        version=version,
        holder=str(spec.get("holderIdentity") or ""),
        lease_seconds=float(spec.get("leaseDurationSeconds") or Terms().lease_seconds),
        transitions=int(spec.get("leaseTransitions") or 0),
        acquired=str(spec.get("acquireTime") or ""),
        since=before.since if before is not None and before.version == version else now,
    )


def decide(found: Seen | None, me: str, now: float) -> Step:
    """What to do about a lease that was found so (None: not there). ``me`` is unique for the life of a process."""
    if found is None:
        return Step(Act.CREATE, "there is no lease")
    if found.holder == me:
        return Step(Act.RENEW, "it is ours")
    if not found.holder:
        return Step(Act.TAKE, "it was given back")
    still = now - found.since
    if still >= found.lease_seconds:
        return Step(Act.TAKE, f"{found.holder} has not renewed it for {still:.1f} s")
    return Step(Act.WAIT, f"{found.holder} holds it")


def record(found: Seen | None, me: str, terms: Terms, wall: float) -> Manifest:
    """The ``spec`` that ``me`` writes when it takes or renews the lease at the Unix time ``wall``."""
    ours = found is not None and found.holder == me
    return {
        "holderIdentity": me,
        "leaseDurationSeconds": max(1, round(terms.lease_seconds)),
        "acquireTime": found.acquired if found is not None and ours and found.acquired else micro_time(wall),
        "renewTime": micro_time(wall),
        "leaseTransitions": 0 if found is None else found.transitions + (not ours),
    }


def identity(environment: Mapping[str, str], chance: Callable[[], float]) -> str:
    """A name that no other process ever has: the pod's, with something drawn for each start."""
    host = environment.get("HOSTNAME") or socket.gethostname()
    return f"{host}_{os.getpid()}_{int(chance() * 0xFFFFFFFF):08x}"


class Election:
    """One candidate, ``me``, for the lease ``namespace/name``: ``acquire``, then ``hold``; ``release`` when going."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        me: str,
        clock: Clock,
        chance: Callable[[], float],
        *,
        terms: Terms | None = None,
        manager: str = "fairlead",
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.reason = "it has not begun"
        self._api = api
        self._namespace, self._name, self._me = namespace, name, me
        self._clock = clock
        self._chance = chance
        self._terms = terms or Terms()
        self._manager = manager
        self._pause = pause
        self._seen: Seen | None = None
        self._until: float | None = None

    @property
    def leading(self) -> bool:
        """May we act now? Look before each write: a process that was stopped for a while hears the truth here."""
        return self._until is not None and self._clock.now() < self._until

    @property
    def holder(self) -> str:
        """Who held the lease when it was last read; empty for nobody."""
        return self._seen.holder if self._seen is not None else ""

    async def acquire(self) -> None:
        """Return once the lease is ours. Failures of the API server are waited out; ``reason`` says what it waits for."""
        while True:
            await self._within(self._terms.renew_seconds)
            if self.leading:
                return
            await self._pause(self._terms.retry_seconds * (1.0 + 0.2 * self._chance()))

    async def hold(self) -> str:
        """Renew the lease; returns when it is lost, with the reason. Whatever leads must then stop at once."""
        while (left := self._left()) > 0:
            await self._pause(min(self._terms.retry_seconds, left))
            if (left := self._left()) > 0:
                await self._within(left)
        self._until = None
        return self.reason

    async def release(self) -> None:
        """Give the lease back, so that the next one need not wait. Failures are ignored: then it runs out."""
        held, self._until = self._until is not None, None
        if not held or self._seen is None:
            return
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micro_time(self._clock.wall())}
        try:
            await self._write(self._seen, spec)
        except FairleadError as error:
            self.reason = f"it could not be given back: {error}"

    def _left(self) -> float:
        return self._until - self._clock.now() if self._until is not None else 0.0

    async def _within(self, seconds: float) -> None:
        """One attempt, given up after ``seconds``: an API server that is silent must not keep us believing."""
        attempt, timer = asyncio.ensure_future(self._attempt()), asyncio.ensure_future(self._pause(seconds))
        try:
            await asyncio.wait({attempt, timer}, return_when=asyncio.FIRST_COMPLETED)
            if attempt.done():
                attempt.result()
            else:
                self.reason = f"the API server did not answer within {seconds:.1f} s"
        finally:
            await ended(attempt)
            await ended(timer)

    async def _attempt(self) -> None:
        """Look, decide, write. A leader writes without looking: the version it knows tells whether somebody else did."""
        began = self._clock.now()
        try:
            if self._seen is None or self._seen.holder != self._me:
                await self._look()
            step = decide(self._seen, self._me, self._clock.now())
            self.reason = step.reason
            if step.act is Act.WAIT:
                self._until = None
                return
            lease = await self._write(self._seen, record(self._seen, self._me, self._terms, self._clock.wall()))
            self._seen = seen(lease, self._seen, self._clock.now())
            self._until = began + self._terms.renew_seconds
        except Conflict:
            await self._beaten()
        except NotFound:  # somebody deleted it
            self._seen = None
            self.reason = "the lease is gone"
        except FairleadError as error:
            self.reason = str(error)

    async def _look(self) -> None:
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
        except NotFound:
            self._seen = None
        else:
            self._seen = seen(lease, self._seen, self._clock.now())

    async def _beaten(self) -> None:
        """Somebody wrote before us; perhaps we did, and the answer was lost. Read it; the next attempt decides."""
        try:
            await self._look()
        except FairleadError as error:
            self.reason = str(error)
            return
        if self._seen is not None and self._seen.holder != self._me:
            self._until = None
            self.reason = f"{self._seen.holder or 'nobody'} holds it"

    async def _write(self, found: Seen | None, spec: Manifest) -> Manifest:
        if found is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            lease = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
            return await self._api.create(lease, self._manager)
        patch = {"metadata": {"resourceVersion": found.version}, "spec": spec}
        return await self._api.patch_merge(LEASES, self._namespace, self._name, patch, self._manager)
