"""Objects of the cluster that a source of keys follows with an informer."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.informer import Informer, InformerStep, log_failures_once
from fairlead.kube.resources import Manifest, ObjectSelection
from fairlead.kube.store import ObjectStore
from fairlead.kube.transport.kubeconfig import ClusterConfig, load_config
from fairlead.kube.watch_events import WatchEvent
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing
from fairlead.runtime.tasks import cancel_and_wait

_log: Final = logging.getLogger("fairlead.gateway")


class FollowedObjects:
    """An informer that also reports its first list, and that it failed. It closes `api` when it
    ends.

    trim: returns what is kept of an object.
    on_event: called with each change.
    """

    def __init__(
        self,
        api: KubeApi,
        selection: ObjectSelection,
        pacing: Pacing,
        trim: Callable[[Manifest], Manifest],
        on_event: Callable[[WatchEvent], None],
    ) -> None:
        self._api = api
        self._tasks: list[asyncio.Task[None]] = []
        self._has_failed = False
        self._on_failed: Callable[[], None] = lambda: None
        self._log_failure = log_failures_once(_log, selection.resource, lambda: self._informer.problem)
        self._informer = Informer(
            api, selection, pacing, store=ObjectStore(trim), on_change=on_event, report=self._on_step
        )

    @property
    def is_synced(self) -> bool:
        """Whether the objects were listed once."""
        return self._informer.is_synced

    @property
    def is_loaded(self) -> bool:
        """Whether the objects were listed once, or cannot be listed."""
        return self._informer.is_synced or self._informer.problem is not None

    @property
    def problem(self) -> FairleadError | None:
        """Why the objects cannot be followed now."""
        return self._informer.problem

    async def start(self, on_synced: Callable[[], None], on_failed: Callable[[], None]) -> None:
        """Starts following.

        on_synced: called after the first list.
        on_failed: called after the first failure, from which on the list is not waited for.
        """
        self._on_failed = on_failed
        self._tasks = [asyncio.create_task(self._informer.run()), asyncio.create_task(self._report_sync(on_synced))]

    async def stop(self) -> None:
        """Stops, and closes the client."""
        for task in self._tasks:
            await cancel_and_wait(task)
        await self._api.close()

    async def _report_sync(self, on_synced: Callable[[], None]) -> None:
        await self._informer.wait_synced()
        on_synced()

    def _on_step(self, step: InformerStep) -> None:
        self._log_failure(step)
        if self._informer.problem is not None and not self._has_failed:
            self._has_failed = True
            self._on_failed()


def open_cluster(environ: Mapping[str, str], pacing: Pacing, limits: Limits) -> tuple[KubeApi, ClusterConfig]:
    """Returns a client of the cluster that the environment configures, and its configuration.

    Raises BadInput without one.
    """
    access = load_config(environ, Path(environ.get("HOME", "/")))
    return KubeApi(access, pacing.clock, pacing.chance, agent="fairlead-gateway", limits=limits), access
