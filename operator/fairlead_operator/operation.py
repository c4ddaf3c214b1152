"""The operator's parts, put together: one that waits for the lease, and then watches, reconciles and tells."""

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from fairlead.clock import Clock
from fairlead.errors import FairleadError
from fairlead.kube.access import Access
from fairlead.kube.client import KubeApi
from fairlead.kube.events import Recorder
from fairlead.kube.lease import Election
from fairlead.kube.news import News
from fairlead.kube.resource import Manifest
from fairlead.tasks import ended
from fairlead_operator import liveness, pulse
from fairlead_operator.leading import LEASE, while_leading
from fairlead_operator.observe import Shelf
from fairlead_operator.queue import WorkQueue
from fairlead_operator.reconcile import Reconciler
from fairlead_operator.rendering import renderer
from fairlead_operator.settings import Options
from fairlead_operator.watching import Kopf, Watching

CONTROLLER = "fairlead.io/operator"
_LOG = logging.getLogger("fairlead.operator")


class Operation:
    """One process of the operator. ``chance`` draws evenly from 0 to 1."""

    def __init__(
        self,
        access: Access,
        options: Options,
        clock: Clock,
        chance: Callable[[], float],
        me: str,
        lease_namespace: str | None = None,
    ) -> None:
        self.stopped = False
        self._access = access
        self._options = options
        self._clock = clock
        self._me = me
        self._api = KubeApi(access, clock, chance, agent="fairlead-operator")
        self._stop = asyncio.Event()
        self._shelf = Shelf()
        self._queue = WorkQueue(clock, chance)
        self._recorder = Recorder(self._api, CONTROLLER, self._me, clock)
        self._watching = Watching(
            self._api,
            self._shelf,
            self._queue.add,
            clock,
            chance,
            namespaces=options.namespaces,
            resync_seconds=options.resync_seconds,
        )
        self._kopf = Kopf(self._watching, access, clock, me, options.namespaces)
        self._reconciler = Reconciler(
            self._api,
            self._shelf,
            renderer(options.installation, options.peers),
            clock,
            cluster=lambda: self._watching.cluster,
            stale=lambda: pulse.stale(self._pulse()),
            tell=self._tell,
            capacity_grace_seconds=options.capacity_grace_seconds,
            echoed=self._queue.echo,
        )
        where = lease_namespace or access.namespace
        self._election = Election(self._api, where, LEASE, self._me, clock, chance, terms=options.terms)

    def stop(self) -> None:
        """Finish what is being written, give the lease back, and end."""
        self.stopped = True
        self._stop.set()

    async def run(self, host: str, port: int) -> str:
        """Until ``stop`` or the loss of the lease; the reason. Raises OSError when the port is taken."""
        app = liveness.application(liveness.Metrics(self._figures, self._pulse), self._pulse)
        runner = web.AppRunner(app, access_log=None)  # probes ask every few seconds
        await runner.setup()
        try:
            await web.TCPSite(runner, host or None, port).start()
            return await while_leading(self._election, self._stop, self._work, lambda line: _LOG.info("%s", line))
        finally:
            await runner.cleanup()
            await self._api.close()

    async def _work(self) -> None:
        """What the leader does, until it fails or is cancelled."""
        await self._watching.begin()
        watching = asyncio.ensure_future(self._watching.run())
        telling = asyncio.ensure_future(self._recorder.run())
        hearing = asyncio.ensure_future(self._kopf.run())
        serving = asyncio.ensure_future(self._serve())
        parts = {watching, telling, hearing, serving}
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            await ended(serving)  # nothing is written after this
            await ended(telling)
            await self._recorder.flush()
            await ended(watching)
            await ended(hearing)

    async def _serve(self) -> None:
        """Reconcile, once everything is known: before, every child would seem to be missing."""
        await self._watching.synced()
        for key in self._shelf.models:
            self._queue.add(key)
        await self._queue.serve(self._reconcile, self._options.hands, self._failed)

    async def _reconcile(self, key: str) -> float | None:
        if not self._election.leading:
            return 1.0  # the lease has run out under us; whoever has it now does the work
        return await self._reconciler.reconcile(key)

    def _failed(self, key: str, error: Exception, pause: float) -> None:
        self._reconciler.counts.failures += 1
        unforeseen = None if isinstance(error, FairleadError) else error
        _LOG.warning("%s: %s; again in %.1f s", key, error, pause, exc_info=unforeseen)

    def _tell(self, model: Manifest, happening: News) -> None:
        self._recorder.record(model, happening.type, happening.reason, happening.action, happening.note)

    def _pulse(self) -> pulse.Pulse:
        return self._watching.pulse(self._election.leading)

    def _figures(self) -> liveness.Figures:
        work, counts = self._queue.work, self._reconciler.counts
        return liveness.Figures(
            gauges={
                "leading": ("1 while this replica leads", float(self._election.leading)),
                "synced": ("1 once this replica, leading, has listed every kind", float(self._pulse().synced)),
                "models": ("ModelDeployments that are known", float(len(self._shelf.models))),
                "queue_waiting": ("models with news that wait for a hand", float(work.waiting)),
                "queue_running": ("models that are worked on", float(work.running)),
                "queue_later": ("models that are looked at again at a set time", float(work.later)),
            },
            counters={
                "reconciles": ("looks at a model", float(counts.reconciles)),
                "reconcile_failures": ("looks that failed and were put off", float(counts.failures)),
                "applied": ("children applied", float(counts.applied)),
                "pruned": ("children deleted", float(counts.pruned)),
                "statuses": ("statuses written", float(counts.statuses)),
                "events_dropped": ("events that were never written", float(self._recorder.dropped)),
            },
            models=tuple(self._shelf.models.values()),
        )
