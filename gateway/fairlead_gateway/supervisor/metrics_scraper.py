"""Scrapes the engines' own metrics every two seconds, for users of the management port.

Routing does not depend on them: the gateway's own in-flight load is fresher. An engine that does
not answer keeps its last signals, with their age; one that never answered has none. Scrapes are
spread over the interval, so that a large fleet causes no bursts.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from fairlead.engines.adapter_protocol import EngineAdapter
from fairlead.engines.credentials import EngineCredentials
from fairlead.engines.registry import engine_adapter
from fairlead.errors import BadInput, Unavailable
from fairlead.fleet.model import Fleet, Instance
from fairlead.fleet.signals import EngineSignals
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.http_client import fetch
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects

_log = logging.getLogger("fairlead.gateway")

_PAGE_BYTES: Final = 1024 * 1024
_PAGE_BYTES_OF_RANK: Final = 64 * 1024
_LONG_PAGE_BYTES: Final = 128 * 1024
_MAX_PAGES_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SignalReading:
    """One engine's signals and when they arrived (monotonic seconds of the gateway's clock)."""

    signals: EngineSignals
    received_at: float


class MetricsScraper:
    """The scraper of every instance of the present fleet; `readings` and `errors` are by instance
    id.
    """

    def __init__(
        self,
        fleet: Callable[[], Fleet],
        clock: Clock,
        limits: Limits | None = None,
        credentials: EngineCredentials | None = None,
    ) -> None:
        self._credentials = credentials or EngineCredentials({}, clock.now)
        self._fleet = fleet
        self._clock = clock
        self._limits = limits or Limits()
        self._adapters: dict[str, EngineAdapter | None] = {}
        self._readings: dict[str, SignalReading] = {}
        self._errors: dict[str, str] = {}
        self._progress_times: dict[str, float] = {}
        self._with_signals_cache: tuple[Fleet, int, Fleet] | None = None
        self._changes = 0
        self._task: asyncio.Task[None] | None = None
        self.memory = PageMemory(self._limits.scrape_bytes)
        self._parsing = asyncio.Lock()
        self.on_reading: Callable[[str, EngineSignals, float], None] = lambda _, __, ___: None
        """Called with the instance, its signals, and when they arrived."""

    @property
    def readings(self) -> Mapping[str, SignalReading]:
        return MappingProxyType(self._readings)

    @property
    def progress_times(self) -> Mapping[str, float]:
        """When each instance was last seen to have computed more tokens, in monotonic seconds."""
        return MappingProxyType(self._progress_times)

    @property
    def errors(self) -> Mapping[str, str]:
        """Reasons of failed scrapes, by instance. Instances whose last scrape succeeded are
        absent.
        """
        return MappingProxyType(self._errors)

    def start(self) -> None:
        """Starts the task on the running loop."""
        if self._task is None:
            work = run_despite_defects(self._run, _log, "metrics of engines")
            self._task = asyncio.create_task(work, name="scrape engines")

    async def stop(self) -> None:
        task, self._task = self._task, None
        await cancel_and_wait(task)

    def with_signals(self, fleet: Fleet) -> Fleet:
        """Returns the fleet with the last signals of every instance."""
        known = self._with_signals_cache
        if known is None or known[0] is not fleet or known[1] != self._changes:
            instances = {key: tuple(map(self._instance_with_signals, group)) for key, group in fleet.instances.items()}
            known = self._with_signals_cache = (fleet, self._changes, replace(fleet, instances=instances))
        return known[2]

    async def scrape_once(self, spread_seconds: float = 0.0) -> None:
        """Scrapes every engine once; the starts are spread evenly over `spread_seconds`."""
        fleet = self._fleet()
        pages: dict[tuple[str, str], list[Instance]] = {}
        for instances in fleet.instances.values():
            for instance in instances:
                if not instance.leaves_cluster:  # an API that others run has no metrics for us
                    pages.setdefault((instance.url, instance.engine), []).append(instance)
        self._retain({instance.id for group in pages.values() for instance in group})
        self.memory.share_by(len({group[0].namespace for group in pages.values()}))
        pause = spread_seconds / max(1, len(pages))
        async with asyncio.TaskGroup() as tasks:
            for group in pages.values():
                tasks.create_task(self._scrape(group))
                await asyncio.sleep(pause)

    async def _run(self) -> None:
        while True:
            started = self._clock.now()
            await self.scrape_once(self._limits.scrape_seconds)
            await asyncio.sleep(max(0.0, started + self._limits.scrape_seconds - self._clock.now()))

    async def _scrape(self, instances: list[Instance]) -> None:
        """Scrapes the metrics page that these instances, the ranks of one engine, share."""
        engine = self._adapter(instances[0].engine)
        if engine is None:
            for instance in instances:
                self._errors[instance.id] = f"the metrics of engine type {instance.engine} cannot be read"
            return
        received = self.memory.open_page(instances[0].namespace)
        try:
            page = await self._fetch(engine, instances, received)
            await self._parse(engine, instances, page)
        except (BadInput, Unavailable) as error:
            for instance in instances:
                self._errors[instance.id] = error.message
        except Exception as defect:  # noqa: BLE001  # it is logged; other engines are read
            _log.exception("a defect interrupted the reading of the metrics of %s", instances[0].id)
            for instance in instances:
                self._errors[instance.id] = f"a defect of the gateway: {type(defect).__name__}"
        finally:
            received.close()

    async def _fetch(self, engine: EngineAdapter, instances: list[Instance], received: "PageBytes") -> bytes:
        """Returns the page. Raises Unavailable."""
        instance, limits = instances[0], self._limits
        return await fetch(
            instance.url.rstrip("/") + engine.metrics_path,
            timeout_seconds=limits.scrape_timeout_seconds,
            max_bytes=min(limits.scrape_bytes, _PAGE_BYTES + _PAGE_BYTES_OF_RANK * len(instances)),
            rules=replace(self._credentials.connection_rules(instance), on_received=received.add),
            headers={"accept": "text/plain", **self._credentials.headers(instance.access)},
        )

    async def _parse(self, engine: EngineAdapter, instances: list[Instance], page: bytes) -> None:
        """Stores the signals of a page. Pages that take long are parsed one by one, so that the
        process does other work between them.
        """
        async with self._parsing:
            now = self._clock.now()
            ranks = {instance.id: _rank(instance) for instance in instances} if len(instances) > 1 else {}
            by_rank: dict[int | None, EngineSignals] = dict(
                engine.parse_rank_signals(page, {rank for rank in ranks.values() if rank is not None}).items()
            )
            if not ranks or None in ranks.values():
                by_rank[None] = engine.parse_signals(page)
            for instance in instances:
                signals = by_rank[ranks.get(instance.id)]
                before = self._readings.get(instance.id)
                if before is not None and _has_progressed(before.signals, signals):
                    self._progress_times[instance.id] = now
                self._readings[instance.id] = SignalReading(signals, now)
                self.on_reading(instance.id, signals, now)
                self._errors.pop(instance.id, None)
            self._changes += 1
            if len(page) > _LONG_PAGE_BYTES:
                await asyncio.sleep(0)

    def _adapter(self, kind: str) -> EngineAdapter | None:
        if kind not in self._adapters:
            try:
                self._adapters[kind] = engine_adapter(kind)
            except BadInput:
                self._adapters[kind] = None
        return self._adapters[kind]

    def _retain(self, present: set[str]) -> None:
        for absent in self._readings.keys() - present:
            del self._readings[absent]
        for absent in self._errors.keys() - present:
            del self._errors[absent]
        for absent in self._progress_times.keys() - present:
            del self._progress_times[absent]

    def _instance_with_signals(self, instance: Instance) -> Instance:
        reading = self._readings.get(instance.id)
        if reading is None:
            return instance
        return replace(instance, signals=reading.signals, received_at=reading.received_at)


class PageMemory:
    """The bytes of pages that have arrived and are not parsed yet, by namespace: a bound
    for all, shared by namespace.

    page_bytes: the longest page. A namespace may always have two of them.

    Why: hundreds of engines of one namespace can send large pages slowly at the same time. They
    would fill the memory of the gateway.
    """

    def __init__(self, page_bytes: int) -> None:
        self._min_share_bytes = 2 * page_bytes
        self.max_bytes = _MAX_PAGES_BYTES
        self._share_bytes = max(self.max_bytes, self._min_share_bytes)
        self._used_bytes: dict[str, int] = {}

    @property
    def used_bytes(self) -> int:
        """The bytes of all namespaces."""
        return sum(self._used_bytes.values())

    def share_by(self, namespace_count: int) -> None:
        self._share_bytes = max(self.max_bytes // max(1, namespace_count), self._min_share_bytes)

    def open_page(self, namespace: str) -> "PageBytes":
        return PageBytes(self, namespace)

    def add(self, namespace: str, size: int) -> bool:
        """Adds bytes of a namespace. Returns whether they are within its share."""
        used = self._used_bytes.get(namespace, 0) + size
        if used:
            self._used_bytes[namespace] = used
        else:
            self._used_bytes.pop(namespace, None)
        return used <= self._share_bytes


class PageBytes:
    """The count of the bytes of one page."""

    def __init__(self, memory: PageMemory, namespace: str) -> None:
        self._memory = memory
        self._namespace = namespace
        self._size = 0

    def add(self, size: int) -> None:
        """Counts bytes that have arrived. Raises Unavailable beyond the namespace's share."""
        self._size += size
        if not self._memory.add(self._namespace, size):
            raise Unavailable("the metrics pages of its namespace are too long for the gateway's memory")

    def close(self) -> None:
        self._memory.add(self._namespace, -self._size)
        self._size = 0


def _has_progressed(before: EngineSignals, after: EngineSignals) -> bool:
    """Whether an engine has computed tokens between two readings; a restart sets its
    counters to zero.
    """
    pairs = (
        (before.prompt_tokens_total, after.prompt_tokens_total),
        (before.generation_tokens_total, after.generation_tokens_total),
    )
    return any(earlier is not None and later is not None and later > earlier for earlier, later in pairs)


def _rank(instance: Instance) -> int | None:
    last = instance.id.rpartition("/")[2]
    return int(last) if last.isdecimal() else None
