"""The fleet, watched in the cluster: informers of models, classes and pods, and a new snapshot a moment after something changed.

While the API server is away, or says no, the last fleet stays in use; ``notes`` say since when, and why.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from fairlead.clock import Clock
from fairlead.cluster_labels import MODEL
from fairlead.fleet import Fleet
from fairlead.kube.client import KubeApi
from fairlead.kube.informer import Informer, Next
from fairlead.kube.resource import ACCELERATOR_CLASSES, MODEL_DEPLOYMENTS, PODS, Manifest, Resource
from fairlead.kubefleet.fleet import Objects, Outcome, Selection, fleet_of, selections
from fairlead.kubefleet.specs import ModelRead, Specs
from fairlead.limits import Limits
from fairlead.tasks import ended

_LOG = logging.getLogger("fairlead.fleet")
_SHOWN = 5
_ROUND_SECONDS = 10


class _Kept:
    """An informer that runs, and what was last logged of it."""

    def __init__(self, informer: Informer, task: "asyncio.Task[None]") -> None:
        self.informer = informer
        self.task = task
        self.logged = ""

    @property
    def known(self) -> bool:
        """It was listed, or cannot be for now."""
        return self.informer.synced or self.informer.problem is not None


class KubeFleetSource:
    """A FleetSource. ``namespaces`` are those whose models are served, all when empty. It closes ``api`` when it is over.

    ``chance`` draws evenly from 0 to 1; ``pause`` waits for seconds.
    """

    def __init__(
        self,
        api: KubeApi,
        clock: Clock,
        chance: Callable[[], float],
        *,
        namespaces: Sequence[str] = (),
        limits: Limits | None = None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._clock = clock
        self._chance = chance
        self._limits = limits or Limits()
        self._pause = pause
        self._news = asyncio.Event()
        self._specs = Specs()
        self._namespaces: tuple[str | None, ...] = tuple(dict.fromkeys(namespaces)) or (None,)
        self._watched: dict[tuple[Resource, str | None], _Kept] = {}
        self._adopting: dict[Selection, _Kept] = {}
        self._problems: tuple[str, ...] = ()
        self._fleet: Fleet | None = None
        self.left_out: Mapping[str, str] = {}

    async def watch(self) -> AsyncIterator[Fleet]:
        """The fleet once models and pods have all been listed, then one more after every change of it."""
        try:
            for namespace in self._namespaces:
                self._watched[MODEL_DEPLOYMENTS, namespace] = self._keep(MODEL_DEPLOYMENTS, namespace)
                self._watched[PODS, namespace] = self._keep(PODS, namespace, MODEL)
            self._watched[ACCELERATOR_CLASSES, None] = self._keep(ACCELERATOR_CLASSES, None)
            while True:
                await self._news.wait()
                self._news.clear()
                fleet = await self._understood()
                if fleet is not None:
                    yield fleet
                await self._pause(self._limits.kube_fleet_seconds)
        finally:
            for kept in (*self._watched.values(), *self._adopting.values()):
                await ended(kept.task)
            await self._api.close()

    def notes(self) -> list[str]:
        """What is wrong, in words: with the way to the cluster first, then with what people wrote there."""
        more = len(self._problems) - _SHOWN
        shown = [*self._problems[:_SHOWN], *([f"and {more} more problems in the cluster"] if more > 0 else [])]
        away = self._away()
        return [away, *shown] if away else shown

    def age_seconds(self) -> float | None:
        """How long ago the API server last said how things are, of what was heard of the longest ago; None before it ever did."""
        ages = [one.informer.age_seconds() for one in self._everything()]
        heard = [age for age in ages if age is not None]
        return max(heard) if heard and len(heard) == len(ages) else None

    def _away(self) -> str | None:
        """Why the fleet may not be how things are; None when it is fresh."""
        for kept in self._everything():
            informer = kept.informer
            age, problem = informer.age_seconds(), informer.problem
            stale = age is not None and age > 2 * self._limits.kube_silent_seconds
            if problem is None and not stale:
                continue
            since = "was never listed" if age is None else f"was last heard of {_about(age)} ago"
            why = f": {problem}" if problem is not None else ""
            return f"the cluster cannot be followed, the last fleet stays: {informer.resource.kind} {since}{why}"
        return None

    def _everything(self) -> list[_Kept]:
        return [*self._watched.values(), *self._adopting.values()]

    # --- what is watched ------------------------------------------------------------------------------------------------

    def _keep(self, resource: Resource, namespace: str | None, labels: str | None = None) -> _Kept:
        told: list[_Kept] = []
        informer = Informer(
            self._api,
            resource,
            self._clock,
            self._chance,
            namespace=namespace,
            labels=labels,
            on_change=lambda _: self._news.set(),
            report=lambda step: self._report(told[0], step),
            limits=self._limits,
            pause=self._pause,
        )
        kept = _Kept(informer, asyncio.ensure_future(self._run(informer)))
        told.append(kept)
        return kept

    async def _run(self, informer: Informer) -> None:
        async def listed() -> None:
            await informer.wait_synced()
            self._news.set()  # also where there was nothing to tell of

        waiting = asyncio.ensure_future(listed())
        try:
            await informer.run()
        finally:
            await ended(waiting)

    def _report(self, kept: _Kept, step: Next) -> None:
        """Each failure is logged once, however often it is tried again."""
        text = f"{kept.informer.resource.plural}: {step.reason}" if kept.informer.problem is not None else ""
        if text and text != kept.logged:
            _LOG.warning("the cluster cannot be followed: %s", text)
        kept.logged = text
        self._news.set()

    async def _adopt(self, models: Sequence[ModelRead]) -> None:
        """Watch the pods that pools select, and no others."""
        wanted = selections(models)
        for gone in self._adopting.keys() - wanted:
            await ended(self._adopting.pop(gone).task)
        for namespace, labels in sorted(wanted - self._adopting.keys()):
            self._adopting[namespace, labels] = self._keep(PODS, namespace, labels)

    # --- what is made of it ---------------------------------------------------------------------------------------------

    async def _understood(self) -> Fleet | None:
        """The next fleet. A defect of ours, met in one object, must not end all following: the last one stays, and a note says so."""
        try:
            return await self._next()
        except Exception as error:  # noqa: BLE001  # it is told
            _LOG.exception("the cluster cannot be understood, the last fleet stays")
            self._problems = (f"the cluster cannot be understood, the last fleet stays: {error!r}",)
            return None

    async def _next(self) -> Fleet | None:
        """The next fleet; None while not everything is known, and when nothing differs."""
        needed = [kept for (resource, _), kept in self._watched.items() if resource is not ACCELERATOR_CLASSES]
        if not all(kept.informer.synced for kept in needed):
            return None
        models = self._specs.models(self._items(MODEL_DEPLOYMENTS))
        await self._adopt(models)
        others = [self._watched[ACCELERATOR_CLASSES, None], *self._adopting.values()]
        if self._fleet is None and not all(kept.known for kept in others):
            return None
        return self._taken(self._made(models))

    def _taken(self, found: Outcome) -> Fleet | None:
        for what in found.left_out.keys() - self.left_out.keys():
            _LOG.debug("not in the fleet: %s: %s", what, found.left_out[what])
        self.left_out = found.left_out
        if found.fleet is self._fleet:
            return None
        self._fleet = found.fleet
        return found.fleet

    def _made(self, models: Sequence[ModelRead]) -> Outcome:
        classes = self._watched[ACCELERATOR_CLASSES, None].informer
        profiles, broken = self._specs.profiles(classes.items.values())
        objects = Objects(
            models=models,
            profiles=profiles,
            pods=self._items(PODS),
            chosen={where: kept.informer.items for where, kept in self._adopting.items() if kept.informer.synced},
        )
        found = fleet_of(objects, self._fleet, self._limits)
        self._problems = (*broken, *found.problems)
        return found

    def _items(self, resource: Resource) -> dict[str, Manifest]:
        return {
            key: one
            for (watched, _), kept in self._watched.items()
            if watched is resource
            for key, one in kept.informer.items.items()
        }


def _about(seconds: float) -> str:
    """Coarse, so that a note is not another one every second."""
    rounded = int(seconds // _ROUND_SECONDS) * _ROUND_SECONDS
    return f"more than {rounded} s" if rounded else "a moment"
