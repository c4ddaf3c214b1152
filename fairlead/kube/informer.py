"""A copy of all objects of a kind, kept fresh: list once, watch from there, go on after every end.

A watch ends for many reasons that mean nothing: the API server ends each after some minutes, cuts off readers that fall behind, is
restarted. All of these go on from the last version that was heard of. Only when that is forgotten (410) is everything listed again,
spread by chance, since all others were told so at the same moment. A watch that breaks without an end is noticed because the API
server sends a bookmark every minute. What happens next is ``after_watch`` and ``after_list``, pure functions with a reason.

The copy changes only by what the API server said: while it is away, the last state stays, with its age.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Gone, KubeError, TooManyRequests, Unreachable
from fairlead.kube.resources import Manifest, Resource, metadata_of
from fairlead.kube.store import ObjectStore, drop_managed_fields
from fairlead.kube.transport.retry import backoff_seconds
from fairlead.kube.watch_events import KnownObjectFinder, WatchEvent, WatchEventType
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait


class InformerAction(StrEnum):
    """How it goes on."""

    RESUME = "resume"
    RELIST = "relist"


@dataclass(frozen=True, slots=True)
class InformerStep:
    """What to do after ``pause_seconds``, and why."""

    action: InformerAction
    pause_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class WatchEnd:
    """How a watch ended: by an error, by silence, or cleanly. ``heard``: it had told something, if only a bookmark."""

    error: FairleadError | None = None
    silent: bool = False
    received: bool = False


def step_after_watch(end: WatchEnd, failures: int, chance: float, limits: Limits) -> InformerStep:
    """How to go on after a watch. ``failures``: ends in a row, this one included, that had told nothing; ``chance`` from 0 to 1."""
    error = end.error
    if end.silent:
        if failures > 1:  # a cluster put back from a backup is behind our version, and silent until it gets there
            return InformerStep(
                InformerAction.RELIST, chance * limits.kube_relist_spread_seconds, "watches stay silent"
            )
        return InformerStep(
            InformerAction.RESUME, 0.0, f"nothing was heard for {limits.kube_watch_silence_seconds:g} s"
        )
    pause = backoff_seconds(failures, chance, limits) if failures else 0.0
    if error is None:
        return InformerStep(InformerAction.RESUME, pause, "the API server ended the watch")
    if isinstance(error, Gone):
        return InformerStep(
            InformerAction.RELIST,
            pause + chance * limits.kube_relist_spread_seconds,
            "the API server forgot our version",
        )
    if not isinstance(error, Unreachable):
        return InformerStep(InformerAction.RELIST, pause, f"it may not be watched so: {error}")
    overloaded = isinstance(error, TooManyRequests)  # listing would make that worse
    if error.status and not overloaded and failures >= limits.kube_max_resumes:
        return InformerStep(InformerAction.RELIST, pause, f"refused {failures} times: {error}")
    return InformerStep(InformerAction.RESUME, pause + _retry_after_seconds(error, limits), str(error))


def step_after_list(error: FairleadError, failures: int, chance: float, limits: Limits) -> InformerStep:
    """When to list again after it failed ``failures`` times in a row."""
    pause = backoff_seconds(failures, chance, limits)
    return InformerStep(InformerAction.RELIST, pause + _retry_after_seconds(error, limits), str(error))


def _retry_after_seconds(error: FairleadError, limits: Limits) -> float:
    seconds = error.retry_after_seconds if isinstance(error, KubeError) else None
    return min(seconds or 0.0, limits.kube_retry_after_seconds)


class Informer:
    """Keeps ``items`` like the objects of ``resource``, and calls ``on_change`` for every difference, in order.

    ``items`` has changed when ``on_change`` is called; what it raises ends ``run``. Bookmarks are not told.
    ``trim`` says what is kept and told of an object; all but ``metadata.managedFields``, if not told otherwise. ``known`` finds
    objects that somebody else keeps in the very version that a watch tells of; they are shared. ``chance`` draws evenly from 0 to 1.
    """

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        clock: Clock,
        chance: Callable[[], float],
        *,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
        trim: Callable[[Manifest], Manifest] = drop_managed_fields,
        find_known: KnownObjectFinder | None = None,
        on_change: Callable[[WatchEvent], None] | None = None,
        report: Callable[[InformerStep], None] | None = None,
        limits: Limits | None = None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.resource = resource
        self.problem: FairleadError | None = None
        self.list_count = 0
        self.watch_count = 0
        self._api = api
        self._clock = clock
        self._chance = chance
        self._namespace, self._labels, self._fields = namespace, labels, fields
        self._on_change = on_change
        self._report = report
        self._limits = limits or Limits()
        self._pause = pause
        self._find_known = find_known
        self._store = ObjectStore(trim)
        self.items: Mapping[str, Manifest] = MappingProxyType(self._store.items)
        self._version = ""
        self._contact_at: float | None = None
        self._received = False
        self._synced = asyncio.Event()

    @property
    def is_synced(self) -> bool:
        """Has everything been listed once?"""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return once everything has been listed."""
        await self._synced.wait()

    def age_seconds(self) -> float | None:
        """How long ago the API server last said how things are, if only by a bookmark; None before it ever did."""
        return None if self._contact_at is None else self._clock.now() - self._contact_at

    async def run(self) -> None:
        """Keep the copy until cancelled. Failures are no end: ``problem`` holds the present one, ``report`` is told of each step."""
        unlisted = untold = 0
        while True:
            try:
                if not self._version:
                    await self._list()
            except FairleadError as error:
                unlisted += 1
                self.problem = error
                await self._report_and_pause(step_after_list(error, unlisted, self._chance(), self._limits))
                continue
            unlisted = 0
            end = await self._watch()
            untold = 0 if end.received else untold + 1
            self.problem = end.error
            await self._report_and_pause(step_after_watch(end, untold, self._chance(), self._limits))

    async def _report_and_pause(self, then: InformerStep) -> None:
        if self._report is not None:
            self._report(then)
        if then.action is InformerAction.RELIST:
            self._version = ""
        if then.pause_seconds > 0:
            await self._pause(then.pause_seconds)

    async def _list(self) -> None:
        self.list_count += 1
        found = await self._api.list(self.resource, self._namespace, self._labels, fields=self._fields)
        for change in self._store.replace(found.items):
            self._notify(change)
        self._version = found.resource_version
        self._mark_contact()
        self._synced.set()

    async def _watch(self) -> WatchEnd:
        """One watch, until it ends or nothing is heard of it for too long."""
        self.watch_count += 1
        self._received = False
        opened_at = self._clock.now()
        reader = asyncio.ensure_future(self._read())
        try:
            while not reader.done():
                heard_at = self._contact_at if self._received and self._contact_at is not None else opened_at
                left = heard_at + self._limits.kube_watch_silence_seconds - self._clock.now()
                if left <= 0:
                    return WatchEnd(silent=True, received=self._received)
                timer = asyncio.ensure_future(self._pause(left))
                try:
                    await asyncio.wait({reader, timer}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await cancel_and_wait(timer)
        finally:
            await cancel_and_wait(reader)
        try:
            reader.result()
        except FairleadError as error:
            return WatchEnd(error, received=self._received)
        return WatchEnd(received=self._received)

    async def _read(self) -> None:
        longest = self._limits.kube_watch_seconds * (1.0 + self._chance())
        watch = self._api.watch(
            self.resource,
            self._namespace,
            self._labels,
            fields=self._fields,
            resource_version=self._version,
            seconds=longest,
            on_opened=self._on_opened,
            find_known=self._find_known,
        )
        async with aclosing(watch) as changes:
            async for change in changes:
                self._received = True
                self._mark_contact()
                if change.type is not WatchEventType.BOOKMARK:
                    for real in self._store.apply(change):
                        self._notify(real)
                self._version = str(metadata_of(change.object).get("resourceVersion") or self._version)

    def _on_opened(self) -> None:
        """It is watched again: what went wrong before is over, though nothing has been heard yet."""
        self.problem = None

    def _mark_contact(self) -> None:
        self._contact_at = self._clock.now()
        self.problem = None

    def _notify(self, change: WatchEvent) -> None:
        if self._on_change is not None:
            self._on_change(change)


def log_failures_once(
    log: logging.Logger, resource: Resource, problem: Callable[[], FairleadError | None]
) -> Callable[[InformerStep], None]:
    """A ``report`` that logs each failure of an informer once, however often it is tried again: what may not be listed is waited for
    without end. ``problem`` is the informer's."""
    said = ""

    def report(step: InformerStep) -> None:
        nonlocal said
        text = step.reason if problem() is not None else ""
        if text and text != said:
            log.warning("%s cannot be followed: %s", resource.plural, text)
        said = text

    return report
