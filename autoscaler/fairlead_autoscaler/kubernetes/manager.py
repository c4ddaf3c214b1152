"""Manager: all parts of the autoscaler in a cluster, as one process.

Every replica of the autoscaler observes and decides, so that all have learned; the one that holds
the Lease writes. A replica that loses it goes on observing, and waits for the Lease. While the API
server is unavailable nothing is decided, and engines and gateways continue as they are.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fairlead.engines.sleep_mode import sleep_client
from fairlead.kube.client import KubeApi
from fairlead.kube.events.event import EventDraft
from fairlead.kube.events.recorder import EventRecorder
from fairlead.kube.leader_client import LeaderKubeApi
from fairlead.kube.leader_election import LeaderElector, LeaseCandidate
from fairlead.kube.resources import Manifest
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock, Pacing
from fairlead.runtime.tasks import end_with_first
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
    """The connection to a cluster.

    identity: unique among all processes.
    namespaces: of the models that are scaled; empty: all.
    installation: the id of ours; empty for none.
    """

    access: ClusterConfig
    identity: str
    namespaces: Sequence[str] = ()
    lease_namespace: str | None = None
    installation: str = ""


class Manager:
    """The process of the autoscaler in a cluster.

    make_config: returns the options that are not about the cluster.
    random: returns a uniform random number from 0 to 1.
    """

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
        self._api = LeaderKubeApi(cluster.access, clock, random, agent="fairlead-autoscaler", limits=limits)
        self._lease_api = KubeApi(cluster.access, clock, random, agent="fairlead-autoscaler", limits=limits)
        self._target = KubernetesTarget(
            self._api,
            clock,
            random,
            namespaces=cluster.namespaces,
            interval_seconds=limits.autoscaler_tick_seconds,
            sleep_status=lambda: self._sleep_controller.status(),
        )
        self._target.installation = cluster.installation
        candidate = LeaseCandidate(cluster.lease_namespace or cluster.access.namespace, LEASE_NAME, cluster.identity)
        self._election = LeaderElector(self._lease_api, candidate, Pacing(clock, random))
        self._api.restrict_writes(lambda: self._election.is_leading)
        self._recorder = EventRecorder(self._api, EVENT_SOURCE, cluster.identity, clock)
        scaler = ScaleWriter(self._api, self._target)
        self._sleep_controller = SleepController(
            self._target,
            sleep_client(),
            scaler,
            lambda: self._process.control_loop.gateways,
            clock,
            is_leader=lambda: self._election.is_leading,
        )
        config = make_config(self._target, scaler)
        self._status_writer = StatusWriter(
            self._api,
            self._target,
            clock,
            self._record_event,
            is_leader=lambda: self._election.is_leading,
            is_frozen=config.is_frozen,
        )
        self._process = AutoscalerService(
            replace(
                config,
                is_leader=lambda: self._election.is_leading,
                on_tick=self._status_writer.on_record,
                notes=self._problems,
            ),
            clock,
            announce=announce,
            limits=limits,
        )

    def stop(self) -> None:
        self._process.stop()

    async def run(self) -> None:
        """Runs until `stop`. Raises OSError if the port is in use, and the error of a part that
        fails.
        """
        try:
            done = await end_with_first(
                self._process.run(),
                self._sleep_controller.run(),
                self._status_writer.run(),
                self._recorder.run(),
                self._target.run(),
                self._hold_leadership(),
            )
            for task in done:
                task.result()
        finally:
            await self._recorder.flush()
            await self._election.release()
            await self._api.close()
            await self._lease_api.close()

    def _problems(self) -> list[str]:
        sleep = [f"{pod}: {problem}" for pod, problem in sorted(self._sleep_controller.problems.items())]
        return [*self._target.notes(), *sleep]

    async def _hold_leadership(self) -> None:
        while True:
            await self._election.acquire()
            _LOG.info("leading: %s", self._election.reason)
            _LOG.warning("no longer leading: %s", await self._election.hold())

    def _record_event(self, model: Manifest, draft: EventDraft) -> None:
        self._recorder.record(model, draft.type, draft.reason, draft.action, draft.note)
