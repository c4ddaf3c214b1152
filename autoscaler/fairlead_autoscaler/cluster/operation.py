"""The autoscaler's parts in a cluster, put together around the process that both ways to run share.

Every replica looks and decides, so that each is warm; the one that holds the Lease writes. One that loses it goes on looking and
waits for its turn. While the API server is away nothing is decided, and engines and gateways go on as they are.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fairlead.clock import Clock
from fairlead.engines.asking import bedside
from fairlead.kube.access import Access
from fairlead.kube.client import KubeApi
from fairlead.kube.events import Recorder
from fairlead.kube.lease import Election
from fairlead.kube.news import News
from fairlead.kube.resource import Manifest
from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead_autoscaler.cluster.nursing import Nursing
from fairlead_autoscaler.cluster.scaler import KubeScaler
from fairlead_autoscaler.cluster.telling import Telling
from fairlead_autoscaler.cluster.world import KubeWorld
from fairlead_autoscaler.process import Plan, Process

LEASE: Final = "fairlead-autoscaler"
CONTROLLER: Final = "fairlead.io/autoscaler"
_LOG: Final = logging.getLogger("fairlead.autoscaler")


@dataclass(frozen=True, slots=True)
class Cluster:
    """``me`` is a name that no other process ever has; ``namespaces`` are those whose models are scaled, all when empty."""

    access: Access
    me: str
    namespaces: Sequence[str] = ()
    lease_namespace: str | None = None


class Operation:
    """One process in a cluster. ``plan`` says where it listens, and the rest that is no matter of the cluster. ``chance`` draws
    evenly from 0 to 1."""

    def __init__(
        self,
        cluster: Cluster,
        plan: Callable[[KubeWorld, KubeScaler], Plan],
        clock: Clock,
        chance: Callable[[], float],
        *,
        announce: Callable[[str], None],
        limits: Limits,
    ) -> None:
        self._api = KubeApi(cluster.access, clock, chance, agent="fairlead-autoscaler", limits=limits)
        self._world = KubeWorld(
            self._api,
            clock,
            chance,
            namespaces=cluster.namespaces,
            interval_seconds=limits.autoscaler_tick_seconds,
            nursed=lambda: self._nursing.told(),
        )
        where = cluster.lease_namespace or cluster.access.namespace
        self._election = Election(self._api, where, LEASE, cluster.me, clock, chance)
        self._recorder = Recorder(self._api, CONTROLLER, cluster.me, clock, limits=limits)
        scaler = KubeScaler(self._api, self._world)
        self._nursing = Nursing(
            self._world,
            bedside(limits),
            scaler.note,
            lambda: self._process.loop.readings,
            clock,
            limits,
            wished=scaler.wished,
            leads=lambda: self._election.leading,
        )
        given = plan(self._world, scaler)
        self._telling = Telling(
            self._api, self._world, clock, self._tell, leads=lambda: self._election.leading, frozen=given.frozen
        )
        self._process = Process(
            replace(given, leads=lambda: self._election.leading, told=self._telling.keep, notes=self._notes),
            clock,
            announce=announce,
            limits=limits,
        )

    def stop(self) -> None:
        """End, and give the lease back."""
        self._process.stop()

    async def run(self) -> None:
        """Until ``stop``. Raises OSError when the port is taken."""
        following = asyncio.ensure_future(self._world.run())
        leading = asyncio.ensure_future(self._lead())
        telling = asyncio.ensure_future(self._telling.run())
        recording = asyncio.ensure_future(self._recorder.run())
        serving = asyncio.ensure_future(self._process.run())
        nursing = asyncio.ensure_future(self._nursing.run())
        parts = {following, leading, telling, recording, serving, nursing}
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            for one in (serving, nursing, telling, recording, following, leading):
                await ended(one)
            await self._recorder.flush()
            await self._election.release()
            await self._api.close()

    def _notes(self) -> list[str]:
        return [f"{pod}: {why}" for pod, why in sorted(self._nursing.problems.items())]

    async def _lead(self) -> None:
        while True:
            await self._election.acquire()
            _LOG.info("leading: %s", self._election.reason)
            _LOG.warning("not leading any more: %s", await self._election.hold())

    def _tell(self, model: Manifest, happening: News) -> None:
        self._recorder.record(model, happening.type, happening.reason, happening.action, happening.note)
