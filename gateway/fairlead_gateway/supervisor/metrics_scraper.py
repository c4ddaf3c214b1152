"""Scrapes the engines' own metrics every two seconds, for users of the management port.

Routing does not depend on them: the gateway's own in-flight load is fresher. An engine that does
not answer keeps its last signals, with their age; one that never answered has none. Scrapes are
spread over the interval, so that a large fleet causes no bursts.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fairlead.engines.adapter_protocol import EngineAdapter
from fairlead.engines.credentials import EngineCredentials
from fairlead.engines.registry import engine_adapter
from fairlead.errors import BadInput, Unavailable
from fairlead.fleet.model import Fleet, Instance
from fairlead.fleet.signals import EngineSignals
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.http_client import fetch
from fairlead.runtime.tasks import cancel_and_wait


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

    @property
    def readings(self) -> Mapping[str, SignalReading]:
        """The last signals of each present instance that has answered, by instance id."""
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
            self._task = asyncio.create_task(self._run(), name="scrape engines")

    async def stop(self) -> None:
        """Stops the task. The last readings stay."""
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
                pages.setdefault((instance.url, instance.engine), []).append(instance)
        self._retain({instance.id for group in pages.values() for instance in group})
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
        url = instances[0].url.rstrip("/") + engine.metrics_path
        try:
            page = await fetch(
                url,
                timeout_seconds=self._limits.scrape_timeout_seconds,
                max_bytes=self._limits.scrape_bytes,
                rules=self._credentials.connection_rules(instances[0]),
                headers={"accept": "text/plain", **self._credentials.headers(instances[0].access)},
            )
        except Unavailable as error:
            for instance in instances:
                self._errors[instance.id] = error.message
            return
        now = self._clock.now()
        for instance in instances:
            rank = _rank(instance) if len(instances) > 1 else None
            signals, before = engine.parse_signals(page, rank), self._readings.get(instance.id)
            if before is not None and _has_progressed(before.signals, signals):
                self._progress_times[instance.id] = now
            self._readings[instance.id] = SignalReading(signals, now)
            self._errors.pop(instance.id, None)
        self._changes += 1

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
    """Returns the data-parallel rank, the last part of the id; None if that is no number."""
    last = instance.id.rpartition("/")[2]
    return int(last) if last.isdecimal() else None
