"""Places requests for LoRA adapters, and loads adapters while their requests wait.

The gateway itself loads them, through the engine's own API. What an engine has loaded is what it
lists; this worker keeps a copy. Other workers and gateways load and unload there, too. So a copy
may be wrong, and then the engine answers 404: the list is read again, and the request is repeated.

One load at a time runs in an engine. It goes on if the client that it was started for disconnects,
since others may wait for it.

The LoRA adapters of one engine, as this worker knows them.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Final

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead_gateway.adapters.placement import (
    AdapterCandidate,
    AdapterDemand,
    AdapterPlacement,
    AdapterUse,
    KeptAdapter,
    ResidentValue,
    choose_eviction,
    choose_keepers,
    home_count,
    place_adapter,
    rank_homes,
    slot_seconds,
)
from fairlead_gateway.adapters.worker.engine_commands import DownloaderClient, EngineCommands, refusal_words
from fairlead_gateway.resilience.worker.retry import ADAPTER_LOAD, ADAPTER_SLOTS, AttemptFailure
from fairlead_gateway.router_registry import RoleRouters
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed

ADAPTER_PAUSE_SECONDS: Final = 10.0
"""Limit: an adapter that an engine refused to load is not loaded there again."""

ADAPTER_DOWNLOAD_SECONDS: Final = 600.0
"""Limit: a download of a LoRA adapter in an engine's pod; it goes on, and another engine is
tried.
"""

ADAPTER_LIST_SECONDS: Final = 2.0
"""Limit: an engine's list of its LoRA adapters; then another engine is tried."""

_MAX_TRIES: Final = 4
"""Other workers may take a slot that was just freed; so often it is tried again.

A load that the engine refuses so often, with the same adapters in it each time, has failed.
"""
_MAX_CACHED_ORDERS: Final = 16_384
_NO_ADAPTERS: Final[Mapping[str, LoraAdapter]] = {}
_NO_INSTANCES: Final[Mapping[str, Instance]] = {}
_NOTHING_KEPT: Final[frozenset[str]] = frozenset()
_NOT_FOUND: Final = "status-404"
"""The engine does not find the source of the adapter."""
_FIRST_PAUSE_SECONDS: Final = 0.25
_UNREACHABLE: Final = frozenset({"refused", "connect-timeout", "reset", "cut"})


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
        self.residents = {}
        self.is_listed = False

    def is_busy(self, resident: ResidentAdapter) -> bool:
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


_log = logging.getLogger("fairlead.gateway")


class _ModelAdapters:
    """The adapters of one model, with their homes and what they are worth."""

    __slots__ = ("adapters", "demand", "homes", "kept", "slots", "weights")

    def __init__(self) -> None:
        self.demand = AdapterDemand()
        self.adapters: Mapping[str, LoraAdapter] = _NO_ADAPTERS
        self.slots = 0
        self.weights: dict[str, float] = {}
        self.homes: dict[str, tuple[str, ...]] = {}
        self.kept: Mapping[str, frozenset[str]] = {}

    def update(self, model: Model, ready: Mapping[str, Instance], secret: bytes) -> None:
        """Takes over the model's adapters and ready instances."""
        self.adapters = {adapter.name: adapter for adapter in model.adapters}
        self.slots = model.adapter_slots
        self.demand.retain(frozenset(self.adapters))
        weights = {name: instance.weight for name, instance in ready.items()}
        if weights != self.weights:
            self.weights, self.homes = weights, {}
        kept = [adapter for adapter in model.adapters if adapter.replicas]
        homes = {adapter.name: self.ranked_homes(model.key, adapter.name, secret) for adapter in kept}
        self.kept = choose_keepers(
            (KeptAdapter(adapter.name, adapter.replicas, homes[adapter.name]) for adapter in kept), self.slots
        )

    def ranked_homes(self, key: str, name: str, secret: bytes) -> tuple[str, ...]:
        """Returns the instances in the order in which they are homes of an adapter.

        key: of the base.
        """
        order = self.homes.get(name)
        if order is None:
            if len(self.homes) >= _MAX_CACHED_ORDERS:
                self.homes.clear()
            order = self.homes[name] = rank_homes(f"{key}\0{name}", self.weights, secret)
        return order


class AdapterLoader:
    """The stage that finds a place for each adapter, and loads it there."""

    def __init__(
        self,
        runtime: WorkerRuntime,
        routers: RoleRouters,
        telemetry: MetricsRecorder,
        pool: ConnectionPool,
        hop_id: str,
    ) -> None:
        limits = runtime.limits
        self._telemetry = telemetry
        self._loop = runtime.loop
        self._now = runtime.now
        self._routers = routers
        self._max_wait_seconds: float = limits.adapter_wait_seconds
        self._pause_seconds: float = ADAPTER_PAUSE_SECONDS
        self._commands = EngineCommands(
            pool, hop_id, list_seconds=ADAPTER_LIST_SECONDS, load_seconds=limits.adapter_load_seconds
        )
        self.downloaders = DownloaderClient(pool, hop_id, ADAPTER_DOWNLOAD_SECONDS)
        self._models: dict[str, _ModelAdapters] = {}
        self._instances: dict[str, InstanceAdapters] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Takes over the adapters of a fleet; engines that are not ready are forgotten."""
        ready: set[str] = set()
        models: dict[str, _ModelAdapters] = {}
        for key, model in fleet.models.items():
            if model.adapters or key in self._models:
                instances = self._routers.ready_instances(key)
                found = models[key] = self._models.get(key) or _ModelAdapters()
                found.update(model, instances, self._routers.secret)
                ready.update(instances)
        self._models = models
        for key, found in models.items():
            self._load_kept(key, found)
        for name in self._instances.keys() - ready:
            for task in self._instances.pop(name).loads.values():
                task.cancel()

    def loaded(self) -> dict[str, list[str]]:
        return {name: list(found.residents) for name, found in self._instances.items() if found.residents}

    def close(self) -> None:
        """Cancels all loads."""
        for instance in self._instances.values():
            for task in instance.loads.values():
                task.cancel()

    # Placement.

    def place(self, key: str, adapter: LoraAdapter, excluded: frozenset[str], *, counts: bool = False) -> AdapterUse:
        """Returns the use of an adapter by a request, with the instances that may take it.

        key: of its base.
        counts: the request counts for the adapter's rate.
        """
        model, router = self._models.get(key), self._routers.router(key)
        if model is None or router is None:
            return AdapterUse(adapter.name, AdapterPlacement((), "none", "the model has left the fleet"))
        now = self._now()
        if counts:
            model.demand.on_request(adapter.name, now)
            self._telemetry.record_adapter_request(key, adapter.name)
        order = model.ranked_homes(key, adapter.name, self._routers.secret)
        count = home_count(model.demand.share(adapter.name, now), len(order))
        candidates: list[AdapterCandidate] = []
        for instance_id in order:
            endpoint = router.endpoint(instance_id)
            if instance_id in excluded or endpoint is None:
                continue
            is_warm = self._instance(instance_id).is_warm(adapter)
            if len(candidates) >= count and not is_warm:
                continue
            backlog = router.total_load(endpoint.load).backlog_seconds
            slot = 0.0 if is_warm else self._slot_seconds(model, adapter, instance_id, now)
            candidates.append(AdapterCandidate(instance_id, is_warm, backlog, slot))
        return AdapterUse(adapter.name, place_adapter(candidates, model.demand.load_seconds(adapter.name)))

    def restrict(self, key: str, use: AdapterUse) -> frozenset[str]:
        return frozenset(self._routers.ready_instances(key)).difference(use.placement.instances)

    def _instance(self, instance_id: str) -> InstanceAdapters:
        found = self._instances.get(instance_id)
        if found is None:
            found = self._instances[instance_id] = InstanceAdapters()
        return found

    def _slot_seconds(self, model: _ModelAdapters, adapter: LoraAdapter, instance_id: str, now: float) -> float:
        """Returns the price of a slot: the loads before this one, and what is evicted for it."""
        found, demand = self._instance(instance_id), model.demand
        if adapter.name in found.loads:
            return 0.0
        queued = [demand.load_seconds(name) for name in found.loads]
        return slot_seconds(self._values(model, instance_id, found, now), queued, model.slots)

    def _values(
        self, model: _ModelAdapters, instance_id: str, found: InstanceAdapters, now: float
    ) -> list[ResidentValue]:
        demand, kept = model.demand, model.kept.get(instance_id, _NOTHING_KEPT)
        return [
            ResidentValue(
                name,
                demand.rate(name, now),
                demand.load_seconds(name),
                found.is_busy(resident),
                name in model.adapters,
                name in kept,
            )
            for name, resident in found.residents.items()
        ]

    # Loads.

    async def acquire(self, key: str, adapter: LoraAdapter, instance: Instance, use: AdapterUse) -> AdapterLease:
        """Returns a lease on an adapter at an instance; loads the adapter first if necessary.

        Raises AttemptFailure if the instance cannot.
        """
        found, started_at = self._instance(instance.id), self._now()
        for _ in range(_MAX_TRIES):
            lease = found.acquire(adapter.name) if found.is_warm(adapter) else None
            if lease is not None:
                return lease
            if found.refused_until.get(adapter.name, 0.0) > self._now():
                raise AttemptFailure(found.refusal_causes.get(adapter.name, ADAPTER_LOAD), was_sent=False)
            load = self._start_load(key, adapter, instance, found)
            found.add_waiting(adapter.name, 1)
            try:
                use.download_seconds = max(use.download_seconds, await self._wait_for_load(load, found))
                use.load_seconds = self._now() - started_at
                lease = found.acquire(adapter.name) if found.is_warm(adapter) else None
            finally:
                found.add_waiting(adapter.name, -1)
            if lease is not None:
                return lease
        raise AttemptFailure(ADAPTER_SLOTS, was_sent=False)

    def on_missing(self, instance_id: str, lease: AdapterLease | None) -> None:
        """Records that an engine lacks an adapter that it was believed to have.

        lease: of the request that got 404; a lease from before the last list is ignored.
        """
        if lease is not None and lease.is_current():
            self._instance(instance_id).forget()

    def _load_kept(self, key: str, model: _ModelAdapters) -> None:
        """Starts to load the adapters that instances keep and are not known to have.

        A load that fails is started again by the next change of the fleet, or by a request.
        """
        instances = self._routers.ready_instances(key) if model.kept else _NO_INSTANCES
        for instance_id, names in model.kept.items():
            instance, found = instances.get(instance_id), self._instance(instance_id)
            for name in sorted(names):
                adapter = model.adapters[name]
                if instance is not None and not found.is_warm(adapter):
                    self._start_load(key, adapter, instance, found)

    def _start_load(
        self, key: str, adapter: LoraAdapter, instance: Instance, found: InstanceAdapters
    ) -> "asyncio.Task[float]":
        """Returns the running load of an adapter at an instance; starts it if there is none."""
        load = found.loads.get(adapter.name)
        if load is None:
            load = found.loads[adapter.name] = self._loop.create_task(self._load(key, adapter, instance, found))
            load.add_done_callback(partial(self._end_load, key, found, adapter.name))
        return load

    async def _wait_for_load(self, load: "asyncio.Task[float]", found: InstanceAdapters) -> float:
        """Waits for a load, which goes on if the wait is cancelled. Raises AttemptFailure.

        Returns the seconds of its download.
        """
        try:
            return await asyncio.shield(load)
        except EngineCallFailed as failure:
            if not failure.is_final:
                found.forget()
            cause = failure.cause if failure.cause in _UNREACHABLE else ADAPTER_LOAD
            raise AttemptFailure(cause, was_sent=False) from None
        except asyncio.CancelledError:
            if load.cancelled():  # the instance has left the fleet, not the client
                raise AttemptFailure(ADAPTER_LOAD, was_sent=False) from None
            raise

    async def _load(self, key: str, adapter: LoraAdapter, instance: Instance, found: InstanceAdapters) -> float:
        """Loads an adapter, in a task of its own; lets it be downloaded before that, if necessary.

        Returns the seconds of the download. Raises EngineCallFailed and AttemptFailure.

        Why the lock is taken later: other loads of the engine need not wait for a download.
        """
        try:
            download_seconds = await self.downloaders.fetch(instance, adapter)
        except AttemptFailure as failure:
            self._refuse(adapter, found, failure.cause)
            raise
        async with found.lock:
            model = self._models.get(key)
            deadline = self._now() + self._max_wait_seconds
            refusals, refused_beside = 0, _NOTHING_KEPT
            while model is not None:
                if not found.is_listed:
                    found.set_listed(await self._commands.list_loaded(instance))
                if found.is_warm(adapter):
                    return download_seconds
                await self._free_slot(key, model, adapter, instance, found)
                started_at = self._now()
                try:
                    await self._commands.load(instance, adapter)
                except EngineCallFailed as failure:
                    if not failure.is_final:
                        raise
                    found.is_listed = False
                    is_same = refused_beside == found.residents.keys()
                    refusals, refused_beside = refusals + 1 if is_same else 1, frozenset(found.residents)
                    if failure.cause == _NOT_FOUND or refusals >= _MAX_TRIES or started_at >= deadline:
                        _log.warning(
                            "%s does not load the adapter %s: %s", instance.id, adapter.name, refusal_words(failure)
                        )
                        break
                    # Others load there now, or have loaded this very adapter.
                    pause = min(_FIRST_PAUSE_SECONDS, model.demand.load_seconds(adapter.name))
                    await asyncio.sleep(pause * 2.0 ** (refusals - 1))
                    continue
                found.residents[adapter.name] = ResidentAdapter(adapter.name, adapter.source)
                seconds = self._now() - started_at
                model.demand.on_loaded(adapter.name, seconds)
                self._telemetry.record_adapter_load(key, adapter.name, seconds)
                return download_seconds
            self._refuse(adapter, found, ADAPTER_LOAD)
            raise AttemptFailure(ADAPTER_LOAD, was_sent=False)

    def _refuse(self, adapter: LoraAdapter, found: InstanceAdapters, cause: str) -> None:
        found.refused_until[adapter.name] = self._now() + self._pause_seconds
        found.refusal_causes[adapter.name] = cause

    def _end_load(self, key: str, found: InstanceAdapters, name: str, load: "asyncio.Task[float]") -> None:
        found.loads.pop(name, None)
        # All that waited for it may have left, and its exception is to be read.
        if not load.cancelled() and load.exception() is not None:
            self._telemetry.record_adapter_load_failure(key, name)

    async def _free_slot(
        self, key: str, model: _ModelAdapters, adapter: LoraAdapter, instance: Instance, found: InstanceAdapters
    ) -> None:
        """Unloads an adapter if no slot is free, or if it has the same name and another source.

        Raises AttemptFailure if no slot gets free in time.
        """
        deadline = self._now() + self._max_wait_seconds
        while adapter.name in found.residents or len(found.residents) >= model.slots:
            name = adapter.name
            if name not in found.residents:
                victim = choose_eviction(self._values(model, instance.id, found, self._now())).name
                if victim is None:
                    raise AttemptFailure(ADAPTER_SLOTS, was_sent=False)  # the engine keeps all of them
                name = victim
            resident = found.residents[name]
            # Those that wait for this load do not keep an older source of the adapter.
            if name in found.inflight if name == adapter.name else found.is_busy(resident):
                await _wait_for_release(found, resident, deadline - self._now())
                continue
            try:
                await self._commands.unload(instance, name)
            except EngineCallFailed as failure:
                if not failure.is_final:  # else another worker has unloaded it
                    raise
            found.residents.pop(name, None)
            if name != adapter.name:
                self._telemetry.record_adapter_eviction(key, name)


async def _wait_for_release(found: InstanceAdapters, resident: ResidentAdapter, seconds: float) -> None:
    """Waits until an adapter has no requests in flight. New requests do not get `resident`.

    Raises AttemptFailure after `seconds`.
    """
    resident.is_retiring = True
    try:
        async with asyncio.timeout(seconds):
            await found.wait_for_release()
    except TimeoutError:
        raise AttemptFailure(ADAPTER_SLOTS, was_sent=False) from None
    finally:
        resident.is_retiring = False
