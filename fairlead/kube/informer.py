"""Informers: up-to-date local copies of all objects of a kind.

An informer lists once, then watches and continues after every end. Most ends mean nothing: the API
server ends each watch after some minutes, disconnects slow readers, and restarts. After these, the
watch continues from the last version. If that version has expired (410), the informer lists again
after a random delay, since all informers get this error at the same moment. The API server sends a
bookmark every minute, so a silent watch is a broken connection.

`step_after_watch` and `step_after_list` decide the next step. They are pure and give a reason.

Only the API server changes the copy. While it is away, the last state stays, with its age.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, Gone, KubeError, TooManyRequests, Unauthenticated, Unreachable
from fairlead.kube.resources import Manifest, ObjectSelection, metadata_of
from fairlead.kube.store import ObjectStore
from fairlead.kube.transport.retry import KUBE_RETRY_AFTER_SECONDS, backoff_seconds
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing
from fairlead.runtime.tasks import cancel_and_wait

KUBE_WATCH_SECONDS: Final = 300.0
"""Limit: requested duration of a watch, at random up to twice as long."""
KUBE_WATCH_SILENCE_SECONDS: Final = 90.0
"""Limit: a watch without event or bookmark (one a minute) for this long is frozen, and replaced."""
KUBE_RELIST_SPREAD_SECONDS: Final = 2.0
"""Limit: random delay of informers that must list again."""
KUBE_MAX_RESUMES: Final = 3
"""Limit: consecutive watches that a responding API server refuses, until it is listed again."""

_REFUSED_LISTS = 5
"""Refused lists, one after the other, after which a namespace counts as refused. One may be chance:
the API server learns of new rights with a delay.
"""


class InformerAction(StrEnum):
    """The next action of an informer."""

    RESUME = "resume"
    RELIST = "relist"


@dataclass(frozen=True, slots=True)
class InformerStep:
    """The next action, the pause before it, and the reason."""

    action: InformerAction
    pause_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class WatchEnd:
    """The end of a watch: an error, a timeout without events, or a clean end.

    received: at least one event or bookmark arrived.
    """

    error: FairleadError | None = None
    silent: bool = False
    received: bool = False


def step_after_watch(end: WatchEnd, failures: int, chance: float, limits: Limits) -> InformerStep:
    """Returns the step after the end of a watch.

    failures: consecutive watches that received nothing, including this one.
    chance: random number from 0 to 1.
    """
    error = end.error
    if end.silent:
        if failures > 1:  # a cluster restored from a backup is behind our version, and silent until it reaches it
            return InformerStep(InformerAction.RELIST, chance * KUBE_RELIST_SPREAD_SECONDS, "watches stay silent")
        return InformerStep(InformerAction.RESUME, 0.0, f"no event for {KUBE_WATCH_SILENCE_SECONDS:g} s")
    pause = backoff_seconds(failures, chance, limits) if failures else 0.0
    if error is None:
        return InformerStep(InformerAction.RESUME, pause, "the API server ended the watch")
    if isinstance(error, Gone):
        return InformerStep(
            InformerAction.RELIST,
            pause + chance * KUBE_RELIST_SPREAD_SECONDS,
            "the API server no longer has our version",
        )
    if not isinstance(error, Unreachable):
        return InformerStep(InformerAction.RELIST, pause, f"the API server does not allow this watch: {error}")
    overloaded = isinstance(error, TooManyRequests)  # listing would increase the load
    if error.status and not overloaded and failures >= KUBE_MAX_RESUMES:
        return InformerStep(InformerAction.RELIST, pause, f"refused {failures} times: {error}")
    return InformerStep(InformerAction.RESUME, pause + _retry_after_seconds(error), str(error))


def step_after_list(error: FairleadError, failures: int, chance: float, limits: Limits) -> InformerStep:
    """Returns the step after a failed list: list again, after a pause.

    failures: consecutive failed lists, including this one.
    """
    pause = backoff_seconds(failures, chance, limits)
    return InformerStep(InformerAction.RELIST, pause + _retry_after_seconds(error), str(error))


def _retry_after_seconds(error: FairleadError) -> float:
    seconds = error.retry_after_seconds if isinstance(error, KubeError) else None
    return min(seconds or 0.0, KUBE_RETRY_AFTER_SECONDS)


class Informer:
    """A local copy (`items`) of the selected objects, which calls `on_change` for every difference.

    `items` is already updated when `on_change` is called. An exception of `on_change` ends `run`.
    Bookmarks are not reported.

    store: keeps the objects; by default it drops `metadata.managedFields`.
    report: called with each step.
    on_synced: called after the first list; set before `run`.
    warn: called with each failure once, however often it is retried; set before `run`. Why: an
        informer without permission retries for ever.
    """

    def __init__(
        self,
        api: KubeApi,
        selection: ObjectSelection,
        pacing: Pacing,
        *,
        store: ObjectStore | None = None,
        on_change: Callable[[WatchEvent], None] | None = None,
        report: Callable[[InformerStep], None] | None = None,
    ) -> None:
        self.resource = selection.resource
        self.problem: FairleadError | None = None
        self.list_count = 0
        self.watch_count = 0
        self._api = api
        self._selection = selection
        self._clock, self._chance, self._pause = pacing.clock, pacing.chance, pacing.pause
        self._on_change = on_change
        self.on_synced: Callable[[], None] = lambda: None
        self.warn: Callable[[str], object] = lambda _: None
        self._report = report
        self._last_warning = ""
        self._task: asyncio.Task[None] | None = None
        self._limits = api.limits
        self._store = store or ObjectStore()
        self.items: Mapping[str, Manifest] = MappingProxyType(self._store.items)
        self._version = ""
        self._contact_at: float | None = None
        self._received = False
        self._synced = asyncio.Event()
        self._known = asyncio.Event()
        self._refused_lists = 0

    @property
    def is_synced(self) -> bool:
        return self._synced.is_set()

    @property
    def namespace(self) -> str | None:
        """The namespace of the selected objects; None for those of all namespaces."""
        return self._selection.namespace

    @property
    def is_refused(self) -> bool:
        """True if the API server refused several lists in this one namespace.

        Why: the administrator of a namespace can take our rights there. Other namespaces go on.
        """
        return self._refused_lists >= _REFUSED_LISTS

    async def wait_known(self) -> None:
        """Waits until all selected objects have been listed, or lists of this namespace are
        refused.
        """
        await self._known.wait()

    def age_seconds(self) -> float | None:
        """Returns the age of the last contact with the API server; None before the first.

        Bookmarks count as contact.
        """
        return None if self._contact_at is None else self._clock.now() - self._contact_at

    @property
    def is_usable(self) -> bool:
        """True if all selected objects have been listed, or lists of this namespace are refused."""
        return self.is_synced or self.is_refused

    @property
    def is_known(self) -> bool:
        """True if all selected objects have been listed, or cannot be for now."""
        return self.is_synced or self.problem is not None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self.run())

    async def stop(self) -> None:
        await cancel_and_wait(self._task)

    async def run(self) -> None:
        """Keeps the copy up to date until cancelled.

        Failures do not end it: `problem` is the current one, and `report` gets every step.
        """
        list_failures = silent_watches = 0
        while True:
            try:
                if not self._version:
                    await self._list()
            except FairleadError as error:
                list_failures += 1
                self.problem = error
                self._count_refusal(error)
                await self._report_and_pause(step_after_list(error, list_failures, self._chance(), self._limits))
                continue
            list_failures = 0
            end = await self._watch()
            silent_watches = 0 if end.received else silent_watches + 1
            self.problem = end.error
            await self._report_and_pause(step_after_watch(end, silent_watches, self._chance(), self._limits))

    async def _report_and_pause(self, then: InformerStep) -> None:
        failure = then.reason if self.problem is not None else ""
        if failure and failure != self._last_warning:
            self.warn(failure)
        self._last_warning = failure
        if self._report is not None:
            self._report(then)
        if then.action is InformerAction.RELIST:
            self._version = ""
        if then.pause_seconds > 0:
            await self._pause(then.pause_seconds)

    async def _list(self) -> None:
        self.list_count += 1
        wanted = self._selection
        listing = await self._api.list(
            wanted.resource, wanted.namespace, wanted.labels, fields=wanted.fields, trim=self._store.trim
        )
        for event in self._store.replace(listing.items):
            self._notify(event)
        self._version = listing.resource_version
        self._mark_contact()
        self._refused_lists = 0
        is_first = not self.is_synced
        self._synced.set()
        self._known.set()
        if is_first:
            self.on_synced()

    def _count_refusal(self, error: FairleadError) -> None:
        is_refusal = isinstance(error, Forbidden) and not isinstance(error, Unauthenticated)
        self._refused_lists = self._refused_lists + 1 if is_refusal and self.namespace is not None else 0
        if self.is_refused:
            self._known.set()

    async def _watch(self) -> WatchEnd:
        """Runs one watch until it ends, or receives nothing for `kube_watch_silence_seconds`."""
        self.watch_count += 1
        self._received = False
        opened_at = self._clock.now()
        reader = asyncio.ensure_future(self._read())
        try:
            while not reader.done():
                heard_at = self._contact_at if self._received and self._contact_at is not None else opened_at
                left = heard_at + KUBE_WATCH_SILENCE_SECONDS - self._clock.now()
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
        longest = KUBE_WATCH_SECONDS * (1.0 + self._chance())
        watch = self._api.watch(
            self._selection,
            resource_version=self._version,
            seconds=longest,
            on_opened=self._on_opened,
            find_known=self._store.find_known,
        )
        async with aclosing(watch) as changes:
            async for event in changes:
                self._received = True
                self._mark_contact()
                if event.type is not WatchEventType.BOOKMARK:
                    for difference in self._store.apply(event):
                        self._notify(difference)
                self._version = str(metadata_of(event.object).get("resourceVersion") or self._version)

    def _on_opened(self) -> None:
        self.problem = None

    def _mark_contact(self) -> None:
        self._contact_at = self._clock.now()
        self.problem = None

    def _notify(self, event: WatchEvent) -> None:
        if self._on_change is not None:
            self._on_change(event)
