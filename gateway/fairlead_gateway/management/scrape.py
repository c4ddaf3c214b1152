"""What the engines say of themselves, asked every two seconds: for people, for the autoscaler, for learning profiles.

Routing does not depend on it: the gateway's own ledger knows sooner. An engine that does not answer keeps its last signals,
whose age then grows in plain sight; one that never answered has none. Pages are asked one after another over the interval,
so that a large fleet is a steady trickle and not a burst.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from fairlead.clock import Clock
from fairlead.engines import EngineAdapter, adapter
from fairlead.errors import BadInput, Unavailable
from fairlead.fleet import Fleet, Instance
from fairlead.limits import Limits
from fairlead.signals import EngineSignals
from fairlead.tasks import ended
from fairlead_gateway.management.fetch import get
from fairlead_gateway.reach import Reach


@dataclass(frozen=True, slots=True)
class Reading:
    """One engine's signals and when they arrived (monotonic seconds of the gateway's clock)."""

    signals: EngineSignals
    received_at: float


class Scraper:
    """Asks every instance of the present fleet; ``readings`` and ``problems`` are by instance id."""

    def __init__(
        self,
        fleet: Callable[[], Fleet],
        clock: Clock,
        limits: Limits | None = None,
        reach: Reach | None = None,
    ) -> None:
        self._reach = reach or Reach({}, clock.now)
        self._fleet = fleet
        self._clock = clock
        self._limits = limits or Limits()
        self._adapters: dict[str, EngineAdapter | None] = {}
        self._readings: dict[str, Reading] = {}
        self._problems: dict[str, str] = {}
        self._merged: tuple[Fleet, int, Fleet] | None = None
        self._changes = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def readings(self) -> Mapping[str, Reading]:
        """The last signals of every instance that ever answered."""
        return MappingProxyType(self._readings)

    @property
    def problems(self) -> Mapping[str, str]:
        """Why the last question to an instance brought nothing, in words."""
        return MappingProxyType(self._problems)

    def start(self) -> None:
        """Begin on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="scrape engines")

    async def stop(self) -> None:
        """Stop asking; the last readings stay."""
        task, self._task = self._task, None
        await ended(task)

    def merge(self, fleet: Fleet) -> Fleet:
        """The fleet with every instance's last signals in it."""
        known = self._merged
        if known is None or known[0] is not fleet or known[1] != self._changes:
            instances = {key: tuple(map(self._with_signals, group)) for key, group in fleet.instances.items()}
            known = self._merged = (fleet, self._changes, replace(fleet, instances=instances))
        return known[2]

    async def round(self, spread_seconds: float = 0.0) -> None:
        """Ask every engine once, starting the questions evenly over ``spread_seconds``."""
        fleet = self._fleet()
        pages: dict[tuple[str, str], list[Instance]] = {}
        for instances in fleet.instances.values():
            for instance in instances:
                pages.setdefault((instance.url, instance.engine), []).append(instance)
        self._forget({item.id for group in pages.values() for item in group})
        pause = spread_seconds / max(1, len(pages))
        async with asyncio.TaskGroup() as tasks:
            for group in pages.values():
                tasks.create_task(self._ask(group))
                await asyncio.sleep(pause)

    async def _run(self) -> None:
        while True:
            started = self._clock.now()
            await self.round(self._limits.scrape_seconds)
            await asyncio.sleep(max(0.0, started + self._limits.scrape_seconds - self._clock.now()))

    async def _ask(self, instances: list[Instance]) -> None:
        """``instances`` share one page: the ranks of one engine."""
        engine = self._adapter(instances[0].engine)
        if engine is None:
            for instance in instances:
                self._problems[instance.id] = f"signals of engine kind {instance.engine} cannot be read"
            return
        url = instances[0].url.rstrip("/") + engine.metrics_path
        try:
            page = await get(
                url,
                deadline_seconds=self._limits.scrape_deadline_seconds,
                most_bytes=self._limits.scrape_bytes,
                trust=partial(self._reach.context, instances[0].access),
                more=self._reach.authorization(instances[0].access),
            )
        except Unavailable as error:
            for instance in instances:
                self._problems[instance.id] = error.message
            return
        now = self._clock.now()
        for instance in instances:
            rank = _rank(instance) if len(instances) > 1 else None
            self._readings[instance.id] = Reading(engine.signals(page, rank), now)
            self._problems.pop(instance.id, None)
        self._changes += 1

    def _adapter(self, kind: str) -> EngineAdapter | None:
        if kind not in self._adapters:
            try:
                self._adapters[kind] = adapter(kind)
            except BadInput:
                self._adapters[kind] = None
        return self._adapters[kind]

    def _forget(self, present: set[str]) -> None:
        for gone in self._readings.keys() - present:
            del self._readings[gone]
        for gone in self._problems.keys() - present:
            del self._problems[gone]

    def _with_signals(self, instance: Instance) -> Instance:
        reading = self._readings.get(instance.id)
        if reading is None:
            return instance
        return replace(instance, signals=reading.signals, received_at=reading.received_at)


def _rank(instance: Instance) -> int | None:
    """The data-parallel rank: the last part of the id."""
    last = instance.id.rpartition("/")[2]
    return int(last) if last.isdecimal() else None
