"""Engines with slots for LoRA adapters, on a virtual clock.

An engine computes one prompt after another, and answers in parallel. Meanwhile it loads one adapter
at a time. A request waits for its adapter, then for the prompts before it. It keeps the adapter's
slot until its answer has ended.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AdapterTraffic:
    """Poisson arrivals with Zipf popularity; times in seconds.

    load_seconds: median of the adapters' load times, which are lognormal.
    """

    adapters: int = 1_000
    zipf: float = 1.0
    rate: float = 60.0
    seconds: float = 600.0
    prefill_seconds: float = 0.1
    decode_seconds: float = 2.0
    load_seconds: float = 0.4
    load_spread: float = 0.6


@dataclass(slots=True)
class AdapterRequest:
    """A request. ``first_at``: when its first token came; None until then."""

    adapter: int
    at: float
    prefill_seconds: float
    decode_seconds: float
    engine: int = -1
    first_at: float | None = None


@dataclass(slots=True)
class Slot:
    """A loaded adapter."""

    inflight: int = 0
    used_at: float = 0.0


@dataclass(slots=True)
class SlottedEngine:
    """One engine.

    waiting: requests by the adapter that they wait for; the first adapter is loaded next.
    busy_until: when its prompts so far are computed.
    """

    slots: dict[int, Slot] = field(default_factory=dict)
    waiting: dict[int, deque[AdapterRequest]] = field(default_factory=dict)
    loading: int | None = None
    busy_until: float = 0.0
    inflight: int = 0


class PlacementRule(Protocol):
    """A rule that is compared."""

    def place(self, request: AdapterRequest, engines: Sequence[SlottedEngine], now: float) -> int:
        """Returns the number of the engine that gets the request."""
        ...

    def evict(self, engine: SlottedEngine, now: float) -> int | None:
        """Returns the adapter to unload, which has no requests; None if there is none."""
        ...


def draw_requests(traffic: AdapterTraffic, seed: int) -> tuple[list[AdapterRequest], list[float]]:
    """Returns the requests of a run, and the load time of each adapter."""
    draw = random.Random(seed)
    loads = [traffic.load_seconds * draw.lognormvariate(0.0, traffic.load_spread) for _ in range(traffic.adapters)]
    weights = list(accumulate(1.0 / (rank + 1) ** traffic.zipf for rank in range(traffic.adapters)))
    names = list(range(traffic.adapters))
    draw.shuffle(names)
    requests, at = [], draw.expovariate(traffic.rate)
    while at < traffic.seconds:
        (adapter,) = draw.choices(names, cum_weights=weights)
        prefill = traffic.prefill_seconds * draw.uniform(0.5, 1.5)
        requests.append(AdapterRequest(adapter, at, prefill, draw.expovariate(1.0 / traffic.decode_seconds)))
        at += draw.expovariate(traffic.rate)
    return requests, loads


class AdapterFleet:
    """A fleet of engines, and the rule that places requests."""

    def __init__(self, engines: int, slots: int, loads: Sequence[float], rule: PlacementRule) -> None:
        self.engines = [SlottedEngine() for _ in range(engines)]
        self.loads_done = 0
        self._slots = slots
        self._loads = loads
        self._rule = rule
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = count()

    def run(self, requests: Sequence[AdapterRequest]) -> None:
        """Serves all requests; each has its first token then."""
        for request in requests:
            self._run_until(request.at)
            self._arrive(request, request.at)
        self._run_until(float("inf"))

    def _run_until(self, at: float) -> None:
        while self._events and self._events[0][0] <= at:
            now, _, happen = heapq.heappop(self._events)
            happen(now)

    def _schedule(self, at: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._number), happen))

    def _arrive(self, request: AdapterRequest, now: float) -> None:
        request.engine = self._rule.place(request, self.engines, now)
        engine = self.engines[request.engine]
        engine.inflight += 1
        if request.adapter in engine.slots:
            self._start(engine, request, now)
        else:
            engine.waiting.setdefault(request.adapter, deque()).append(request)
            self._load_next(engine, now)

    def _start(self, engine: SlottedEngine, request: AdapterRequest, now: float) -> None:
        slot = engine.slots[request.adapter]
        slot.inflight, slot.used_at = slot.inflight + 1, now
        engine.busy_until = max(engine.busy_until, now) + request.prefill_seconds
        request.first_at = engine.busy_until

        def end(at: float) -> None:
            slot.inflight -= 1
            engine.inflight -= 1
            if not slot.inflight:
                self._load_next(engine, at)

        self._schedule(engine.busy_until + request.decode_seconds, end)

    def _load_next(self, engine: SlottedEngine, now: float) -> None:
        if engine.loading is not None or not engine.waiting:
            return
        if len(engine.slots) >= self._slots:
            victim = self._rule.evict(engine, now)
            if victim is None:
                return
            del engine.slots[victim]
        adapter = engine.loading = next(iter(engine.waiting))

        def loaded(at: float) -> None:
            engine.loading = None
            engine.slots[adapter] = Slot(used_at=at)
            self.loads_done += 1
            for request in engine.waiting.pop(adapter):
                self._start(engine, request, at)
            self._load_next(engine, at)

        self._schedule(now + self._loads[adapter], loaded)
