"""The LoRA adapters of one engine, as this worker knows them."""

import asyncio
from collections import Counter
from collections.abc import Mapping

from fairlead.adapters.model import LoraAdapter


class ResidentAdapter:
    """An adapter in a slot of an engine.

    source: from which it was loaded.
    is_retiring: its slot is wanted, so no further request gets it.
    """

    __slots__ = ("is_retiring", "name", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.is_retiring = False


class InstanceAdapters:
    """The adapters of one engine.

    residents: by name, those of other workers included; the engine's list decides.
    inflight: by name, requests of this worker that need an adapter; `forget` keeps them.
    is_listed: False after `forget`: the list must be read again.
    lock: held while the engine loads or unloads.
    loads: the loads that requests wait for, by name.
    waiting: by name, requests that wait for a load or have no lease yet.
    refused_until: when adapters that could not be loaded may be tried again, in monotonic seconds.
    refusal_causes: why not, by name.
    """

    __slots__ = (
        "_slot_released",
        "inflight",
        "is_listed",
        "loads",
        "lock",
        "refusal_causes",
        "refused_until",
        "residents",
        "waiting",
    )

    def __init__(self) -> None:
        self.residents: dict[str, ResidentAdapter] = {}
        self.inflight: dict[str, int] = {}
        self.is_listed = False
        self.lock = asyncio.Lock()
        self.loads: dict[str, asyncio.Task[float]] = {}
        self.waiting: Counter[str] = Counter()
        self.refused_until: dict[str, float] = {}
        self.refusal_causes: dict[str, str] = {}
        self._slot_released: asyncio.Future[None] | None = None

    def is_warm(self, adapter: LoraAdapter) -> bool:
        """Returns whether requests may use the adapter here."""
        resident = self.residents.get(adapter.name)
        return resident is not None and resident.source == adapter.source and not resident.is_retiring

    def set_listed(self, sources: Mapping[str, str]) -> None:
        """Takes over the engine's list. Leases on adapters that stay are current still."""
        known = self.residents
        self.residents = {}
        for name, source in sources.items():
            resident = known.get(name)
            if resident is None or resident.source != source:
                resident = ResidentAdapter(name, source)
            self.residents[name] = resident
        self.is_listed = True

    def forget(self) -> None:
        """Forgets what the engine has: it has started again, or others have changed it."""
        self.residents = {}
        self.is_listed = False

    def is_busy(self, resident: ResidentAdapter) -> bool:
        """Returns whether requests need the adapter now."""
        return resident.name in self.inflight or self.waiting[resident.name] > 0

    def add_waiting(self, name: str, count: int) -> None:
        """Counts requests that wait for an adapter; a negative count ends their wait."""
        self.waiting[name] += count
        if self.waiting[name] <= 0:
            del self.waiting[name]
            self.on_release()

    def acquire(self, name: str) -> "AdapterLease | None":
        """Returns a lease on an adapter; None if the engine has it no longer."""
        resident = self.residents.get(name)
        return None if resident is None else AdapterLease(self, resident)

    async def wait_for_release(self) -> None:
        """Waits until a request ends. Only the holder of the lock waits."""
        self._slot_released = asyncio.get_running_loop().create_future()
        try:
            await self._slot_released
        finally:
            self._slot_released = None

    def on_release(self) -> None:
        """Wakes the load that waits for a slot."""
        if self._slot_released is not None and not self._slot_released.done():
            self._slot_released.set_result(None)


class AdapterLease:
    """The lease of one request on an adapter. While it lasts, the adapter is not unloaded."""

    __slots__ = ("_instance", "_is_released", "_resident")

    def __init__(self, instance: InstanceAdapters, resident: ResidentAdapter) -> None:
        self._instance = instance
        self._resident = resident
        self._is_released = False
        instance.inflight[resident.name] = instance.inflight.get(resident.name, 0) + 1

    def is_current(self) -> bool:
        """Returns whether the adapter is still listed here as loaded."""
        return self._instance.residents.get(self._resident.name) is self._resident

    def release(self) -> None:
        """Ends the use. Later calls do nothing."""
        if self._is_released:
            return
        self._is_released = True
        inflight, name = self._instance.inflight, self._resident.name
        inflight[name] -= 1
        if not inflight[name]:
            del inflight[name]
            self._instance.on_release()
