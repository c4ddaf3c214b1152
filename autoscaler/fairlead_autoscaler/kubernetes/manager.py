"""The autoscaler's parts in a cluster, put together around the process that both ways to run share.

Every replica looks and decides, so that each is warm; the one that holds the Lease writes. One that
loses it goes on looking and waits for its turn. While the API server is away nothing is decided,
and engines and gateways go on as they are.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fairlead.engines.sleep_mode import sleep_client
from fairlead.kube.client import KubeApi
from fairlead.kube.events.event import EventDraft
from fairlead.kube.events.recorder import EventRecorder
from fairlead.kube.leader_election import LeaderElector
from fairlead.kube.resources import Manifest
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_autoscaler.kubernetes.scale_writer import ScaleWriter
from fairlead_autoscaler.kubernetes.sleep_controller import SleepController
from fairlead_autoscaler.kubernetes.status_writer import StatusWriter
from fairlead_autoscaler.kubernetes.target import KubernetesTarget
from fairlead_autoscaler.service import AutoscalerService, ServiceConfig

LEASE_NAME: Final = "fairlead-autoscaler"
EVENT_SOURCE: Final = "fairlead.io/autoscaler"
_LOG: Final = logging.getLogger("fairlead.autoscaler")


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """``me`` is a name that no other process ever has; ``namespaces`` are those whose models are
    scaled, all when empty.
    """

    access: ClusterConfig
    identity: str
    namespaces: Sequence[str] = ()
    lease_namespace: str | None = None


class Manager:
    """One process in a cluster. ``plan`` says where it listens, and the rest that is no matter of
    the cluster. ``chance`` draws evenly from 0 to 1."""

    def __init__(
        self,
        cluster: KubernetesConfig,
        make_config: Callable[[KubernetesTarget, ScaleWriter], ServiceConfig],
        clock: Clock,
        random: Callable[[], float],
        *,
        announce: Callable[[str], None],
        limits: Limits,
    ) -> None:
        self._api = KubeApi(cluster.access, clock, random, agent="fairlead-autoscaler", limits=limits)
        self._target = KubernetesTarget(
            self._api,
            clock,
            random,
            namespaces=cluster.namespaces,
            interval_seconds=limits.autoscaler_tick_seconds,
            sleep_status=lambda: self._sleep_controller.status(),
        )
        where = cluster.lease_namespace or cluster.access.namespace
        self._election = LeaderElector(self._api, where, LEASE_NAME, cluster.identity, clock, random)
        self._recorder = EventRecorder(self._api, EVENT_SOURCE, cluster.identity, clock, limits=limits)
        scaler = ScaleWriter(self._api, self._target)
        self._sleep_controller = SleepController(
            self._target,
            sleep_client(limits),
            scaler.write_sleep_mark,
            lambda: self._process.control_loop.gateways,
            clock,
            limits,
            desired_asleep=scaler.desired_asleep,
            is_leader=lambda: self._election.is_leading,
        )
        given = make_config(self._target, scaler)
        self._status_writer = StatusWriter(
            self._api,
            self._target,
            clock,
            self._record_event,
            leads=lambda: self._election.is_leading,
            frozen=given.is_frozen,
        )
        self._process = AutoscalerService(
            replace(
                given,
                is_leader=lambda: self._election.is_leading,
                on_tick=self._status_writer.on_record,
                notes=self._sleep_problems,
            ),
            clock,
            announce=announce,
            limits=limits,
        )

    def stop(self) -> None:
        """End, and give the lease back."""
        self._process.stop()

    async def run(self) -> None:
        """Until ``stop``. Raises OSError when the port is taken."""
        following = asyncio.ensure_future(self._target.run())
        leading = asyncio.ensure_future(self._hold_leadership())
        telling = asyncio.ensure_future(self._status_writer.run())
        recording = asyncio.ensure_future(self._recorder.run())
        serving = asyncio.ensure_future(self._process.run())
        nursing = asyncio.ensure_future(self._sleep_controller.run())
        parts = {following, leading, telling, recording, serving, nursing}
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            for one in (serving, nursing, telling, recording, following, leading):
                await cancel_and_wait(one)
            await self._recorder.flush()
            await self._election.release()
            await self._api.close()

    def _sleep_problems(self) -> list[str]:
        return [f"{pod}: {why}" for pod, why in sorted(self._sleep_controller.problems.items())]

    async def _hold_leadership(self) -> None:
        while True:
            await self._election.acquire()
            _LOG.info("leading: %s", self._election.reason)
            _LOG.warning("not leading any more: %s", await self._election.hold())

    def _record_event(self, model: Manifest, happening: EventDraft) -> None:
        self._recorder.record(model, happening.type, happening.reason, happening.action, happening.note)
