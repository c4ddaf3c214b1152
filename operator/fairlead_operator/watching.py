"""What the operator hears: models, their children, pods and accelerators by informers, and all models listed now and then.

Children and pods are watched by label. An ``Informer`` tells deletions after every gap. The list finds what a watch of models that
is frozen has missed before that is noticed, and it shows that the API server answers.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fairlead.clock import Clock
from fairlead.errors import FairleadError
from fairlead.kube.cache import without_owners
from fairlead.kube.changes import Change
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, NotFound
from fairlead.kube.informer import Informer, Next
from fairlead.kube.resource import (
    ACCELERATOR_CLASSES,
    MODEL_DEPLOYMENTS,
    PODS,
    SERVICES,
    Manifest,
    Resource,
)
from fairlead_operator.marks import CHILDREN
from fairlead_operator.observe import ALWAYS, OPTIONAL, Shelf, compact
from fairlead_operator.pulse import Pulse
from fairlead_operator.seam import Cluster

_UNWRITTEN = (PODS, ACCELERATOR_CLASSES)
"""Whose events tell nothing that we know already, since we write none of them."""
_OWNERLESS = (PODS, MODEL_DEPLOYMENTS)
"""Of which it does not matter who set which field."""
_LOG = logging.getLogger("fairlead.operator")


class Watching:
    """Keeps ``shelf`` as the cluster is, and calls ``add`` with the key of each model that something happened to.

    ``namespaces``: those watched, all when empty. ``chance`` draws evenly from 0 to 1; ``pause`` waits for seconds.
    """

    def __init__(
        self,
        api: KubeApi,
        shelf: Shelf,
        add: Callable[[str], None],
        clock: Clock,
        chance: Callable[[], float],
        *,
        namespaces: tuple[str, ...] = (),
        resync_seconds: float = 60.0,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.cluster = Cluster()
        self._api = api
        self._shelf = shelf
        self._add = add
        self._clock = clock
        self._chance = chance
        self._places: tuple[str | None, ...] = namespaces or (None,)
        self._resync_seconds = resync_seconds
        self._pause = pause
        self._informers: list[Informer] = []
        self._answered_at: float | None = None

    async def begin(self) -> None:
        """See what the cluster knows, and list the models for the first time; tried until the API server answers."""
        while True:
            try:
                if not await self._api.serves(MODEL_DEPLOYMENTS):
                    raise FairleadError("the cluster does not know ModelDeployments", hint="apply Fairlead's CRDs")
                await self._discover()
                await self._list_models()
                return
            except FairleadError as error:
                _LOG.warning("waiting: %s", error)
            await self._pause(2.0 + self._chance())

    async def run(self) -> None:
        """Watch until cancelled; begin first."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run())
            group.create_task(self._resync())

    async def synced(self) -> None:
        """Return once every kind has been listed."""
        for informer in self._informers:
            await informer.wait_synced()

    def pulse(self, leading: bool) -> Pulse:
        """How well the cluster is heard."""
        now = self._clock.now()
        ages: dict[str, float | None] = {}
        for one in self._informers:
            age, before = one.age_seconds(), ages.get(one.resource.plural, 0.0)
            ages[one.resource.plural] = None if age is None or before is None else max(age, before)
        return Pulse(
            leading=leading,
            synced=bool(self._informers) and all(one.synced for one in self._informers),
            watches=ages,
            answered=None if self._answered_at is None else now - self._answered_at,
        )

    def _told(self, change: Change) -> None:
        for key in self._shelf.take(change):
            self._add(key)

    async def _discover(self) -> None:
        optional = [one for one in OPTIONAL if await self._api.serves(one)]
        served = frozenset((one.api_version, one.kind) for one in optional)
        self.cluster = Cluster(served, ipv6_first(await self._entrance(), self._api.access.server))
        kinds: list[tuple[Resource, str | None]] = [(one, CHILDREN) for one in (*ALWAYS, *optional, PODS)]
        self._informers = [self._informer(kind, labels, place) for kind, labels in kinds for place in self._places]
        self._informers += [self._informer(MODEL_DEPLOYMENTS, None, place) for place in self._places]
        self._informers.append(self._informer(ACCELERATOR_CLASSES, None, None))

    async def _entrance(self) -> Manifest | None:
        """The API server's own Service; None where we may not read it."""
        try:
            return await self._api.get(SERVICES, "default", "kubernetes")
        except (Forbidden, NotFound):
            return None

    def _informer(self, kind: Resource, labels: str | None, place: str | None) -> Informer:
        said = ""

        def report(step: Next) -> None:
            """Each failure is logged once, however often it is tried again: an operator that may not list a kind waits for ever."""
            nonlocal said
            text = step.reason if made.problem is not None else ""
            if text and text != said:
                _LOG.warning("%s cannot be followed: %s", kind.plural, text)
            said = text

        made = Informer(
            self._api,
            kind,
            self._clock,
            self._chance,
            namespace=place,
            labels=labels,
            trim=without_owners if kind in _OWNERLESS else compact,
            known=None if kind in _UNWRITTEN else self._shelf.same,
            on_change=self._told,
            report=report,
        )
        return made

    async def _resync(self) -> None:
        while True:
            await self._pause(self._resync_seconds * (0.9 + 0.2 * self._chance()))
            try:
                await self._list_models()
            except FairleadError as error:
                _LOG.warning("models could not be listed: %s", error)

    async def _list_models(self) -> None:
        listed = [one for place in self._places for one in (await self._api.list(MODEL_DEPLOYMENTS, place)).items]
        self._answered_at = self._clock.now()
        for key in self._shelf.replace_models(listed):
            self._add(key)


def ipv6_first(entrance: Manifest | None, server: str) -> bool:
    """Do pods have IPv6 addresses, only or first? The API server's Service has the family that the cluster puts first.

    Without it the API server's address tells, which within the cluster is that Service's.
    """
    if entrance is None:
        return ":" in (urlsplit(server).hostname or "")
    return list((entrance.get("spec") or {}).get("ipFamilies") or [])[:1] == ["IPv6"]
