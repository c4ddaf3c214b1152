"""Chooses the instances that may take a request for a LoRA adapter, and what an engine evicts.

An adapter has homes among the instances of its base: the first m in the rendezvous order of its
name. All gateways compute the same order and need not agree on anything else. At least
two homes leave a choice; an adapter with more requests has more.

Each candidate has a cost in seconds, and the one with the lowest cost is chosen:

- an instance that has the adapter: the work that waits there;
- a home that has not loaded it: that work, the time to load the adapter, and the price of a slot.

The price of a slot is the time of the loads before this one, and the price of what is evicted.

The price of an evicted adapter is its load time, times the chance that it is needed again soon. An
engine evicts the adapter with the lowest rate × load time. With equal slots, that keeps the set of
the highest value: the greedy choice solves this knapsack.

Source: weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005); two homes as in
DualMap (arXiv 2602.06502); adapters on demand as in S-LoRA (arXiv 2311.03285).

The demand of LoRA adapters: how often requests name them, and how long loading them takes.

Chooses the instances that keep an adapter loaded, also while no request names it. Pure.

They are the first homes of the adapter, so all gateways choose alike. An instance with several
slots leaves one to adapters that are loaded on demand.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, log
from typing import Final

import xxhash

from fairlead.units import format_duration

MIN_HOMES: Final = 2
HOMES_PER_FAIR_SHARE: Final = 2.0
"""An adapter with the requests of one instance's fair share has so many homes."""
EVICTION_HORIZON_SECONDS: Final = 10.0
"""An evicted adapter that is needed within this time is a loss."""
_STEP: Final = 2.0**-52

HALF_LIFE_SECONDS: Final = 60.0
"""A request counts half as much after this time."""
FIRST_LOAD_SECONDS: Final = 1.0
"""The load time of an adapter while none has been measured."""
_DECAY: Final = log(2.0) / HALF_LIFE_SECONDS
_LEARNING_SHARE: Final = 0.3


@dataclass(frozen=True, slots=True)
class AdapterCandidate:
    """An instance that may serve an adapter.

    is_warm: it has the adapter.
    backlog_seconds: the prefill that waits there.
    slot_seconds: price of a slot for the adapter: loads that go before, and what is evicted.
    """

    instance_id: str
    is_warm: bool
    backlog_seconds: float
    slot_seconds: float = 0.0

    def cost_seconds(self, load_seconds: float) -> float:
        """Returns the cost of a request here, in seconds."""
        if self.is_warm:
            return self.backlog_seconds
        return self.backlog_seconds + load_seconds + self.slot_seconds


@dataclass(frozen=True, slots=True)
class AdapterPlacement:
    """The instances that may take a request for an adapter. Routing chooses among them.

    rule: `warm`, `cold` (no candidate has it), `spill` (those that have it are too busy) or `none`.
    """

    instances: tuple[str, ...]
    rule: str
    reason: str


class AdapterUse:
    """The adapter of a request: where it may be served, and how long the request waited for it.

    load_seconds: how long the request waited for a load; None until that has ended, and if the
        adapter was loaded already.
    download_seconds: the part of it in which the adapter was downloaded.
    """

    __slots__ = ("download_seconds", "load_seconds", "name", "placement")

    def __init__(self, name: str, placement: AdapterPlacement) -> None:
        self.name = name
        self.placement = placement
        self.load_seconds: float | None = None
        self.download_seconds = 0.0

    def describe(self) -> str:
        """Returns it as the beginning of a sentence."""
        if self.load_seconds is not None and self.download_seconds > 0.0:
            downloaded = format_duration(self.download_seconds)
            rest = format_duration(max(0.0, self.load_seconds - self.download_seconds))
            return f"adapter {self.name} cold, downloaded in {downloaded}, loaded in {rest}"
        if self.load_seconds is not None:
            return f"adapter {self.name} cold, loaded in {format_duration(self.load_seconds)}"
        if self.placement.rule == "warm":
            return f"adapter {self.name} {self.placement.reason}"
        return f"adapter {self.name} cold: {self.placement.reason}"


@dataclass(frozen=True, slots=True)
class ResidentValue:
    """An adapter in an engine's slot, and what it is worth.

    is_busy: requests for it are in flight.
    is_declared: the model still has it.
    is_kept: the engine keeps it loaded, so it is not evicted.
    """

    name: str
    rate: float
    load_seconds: float
    is_busy: bool = False
    is_declared: bool = True
    is_kept: bool = False

    @property
    def value(self) -> float:
        """Seconds of loading that it saves per second; below 0 if the model has it no longer."""
        return self.rate * self.load_seconds if self.is_declared else -1.0


@dataclass(frozen=True, slots=True)
class Eviction:
    """The adapter to unload.

    name: None if none can be.
    must_wait: requests for it are in flight, so its slot is free when they have ended.
    """

    name: str | None
    must_wait: bool
    reason: str


def home_count(share: float, instances: int) -> int:
    """Returns how many homes an adapter has.

    share: of the model's adapter requests, from 0 to 1.
    """
    return min(instances, max(MIN_HOMES, ceil(HOMES_PER_FAIR_SHARE * share * instances)))


def rank_homes(key: str, weights: Mapping[str, float], secret: bytes) -> tuple[str, ...]:
    """Returns the instances in the order in which they are homes of an adapter.

    key: of the adapter, with that of its base.
    weights: of the ready instances, by id.
    """
    seed = xxhash.xxh3_64_intdigest(secret + b"|adapter|" + key.encode())

    def score(instance_id: str) -> float:
        drawn = xxhash.xxh3_64_intdigest(instance_id.encode(), seed)
        return -weights[instance_id] / log(((drawn >> 12) + 0.5) * _STEP)

    return tuple(sorted(sorted(weights), key=score, reverse=True))


def place_adapter(candidates: Sequence[AdapterCandidate], load_seconds: float) -> AdapterPlacement:
    """Returns the instances that may take a request for an adapter.

    candidates: its homes in their order, and others that have it.
    load_seconds: the expected time to load it.
    """
    warm = [candidate for candidate in candidates if candidate.is_warm]
    cold = [candidate for candidate in candidates if not candidate.is_warm]
    cheapest = min(cold, key=lambda candidate: candidate.cost_seconds(load_seconds), default=None)
    cold_seconds = inf if cheapest is None else cheapest.cost_seconds(load_seconds)
    near = [candidate.instance_id for candidate in warm if candidate.backlog_seconds <= cold_seconds]
    if near:
        return AdapterPlacement(tuple(near), "warm", f"loaded at {len(near)} of {len(candidates)}")
    if cheapest is None:
        return AdapterPlacement((), "none", "no instance is left for the adapter")
    took = format_duration(load_seconds)
    if warm:
        waited = format_duration(min(candidate.backlog_seconds for candidate in warm))
        reason = f"where it is loaded, {waited} of work wait; loading takes about {took}"
        return AdapterPlacement((cheapest.instance_id,), "spill", reason)
    return AdapterPlacement((cheapest.instance_id,), "cold", f"loading takes about {took}")


def choose_eviction(residents: Iterable[ResidentValue]) -> Eviction:
    """Returns the resident with the lowest value; an idle one before those with requests."""
    victim = _next_to_evict(residents)
    if victim is None:
        return Eviction(None, False, "no slot holds an adapter that may go")
    if not victim.is_declared:
        return Eviction(victim.name, victim.is_busy, "the model has it no longer")
    why = f"{victim.rate:.3g} requests/s × {format_duration(victim.load_seconds)} to load it again is least"
    return Eviction(victim.name, victim.is_busy, why)


def eviction_seconds(residents: Iterable[ResidentValue], slots: int) -> float:
    """Returns the reload time that one more adapter is expected to cost, by an eviction."""
    listed = list(residents)
    if len(listed) < slots:
        return 0.0
    victim = _next_to_evict(listed)
    if victim is None:
        return inf
    if not victim.is_declared:
        return 0.0
    again = min(1.0, victim.rate * EVICTION_HORIZON_SECONDS)
    wait = EVICTION_HORIZON_SECONDS if victim.is_busy else 0.0
    return victim.load_seconds * again + wait


def slot_seconds(residents: Iterable[ResidentValue], queued: Sequence[float], slots: int) -> float:
    """Returns the price of a slot: the loads before this one, and what is evicted for it.

    queued: load times of the adapters that the engine loads first.
    """
    return sum(queued) + eviction_seconds(residents, slots - len(queued))


def _next_to_evict(residents: Iterable[ResidentValue]) -> ResidentValue | None:
    others = (resident for resident in residents if not resident.is_kept)
    return min(others, key=lambda resident: (resident.is_busy, resident.value, resident.name), default=None)


class _DecayingCount:
    """A decaying count of requests, as of `at`."""

    __slots__ = ("at", "value")

    def __init__(self, now: float) -> None:
        self.value = 0.0
        self.at = now

    def value_at(self, now: float) -> float:
        return float(self.value * 2.0 ** (-max(0.0, now - self.at) / HALF_LIFE_SECONDS))


class AdapterDemand:
    """The request rates and load times of the adapters of one model."""

    def __init__(self) -> None:
        self._counts: dict[str, _DecayingCount] = {}
        self._total = _DecayingCount(0.0)
        self._load_seconds: dict[str, float] = {}
        self._mean_load_seconds = 0.0

    def on_request(self, name: str, now: float) -> None:
        """Counts a request for an adapter."""
        count = self._counts.get(name)
        if count is None:
            count = self._counts[name] = _DecayingCount(now)
        for counted in (count, self._total):
            counted.value, counted.at = counted.value_at(now) + 1.0, now

    def rate(self, name: str, now: float) -> float:
        count = self._counts.get(name)
        return 0.0 if count is None else count.value_at(now) * _DECAY

    def share(self, name: str, now: float) -> float:
        total, count = self._total.value_at(now), self._counts.get(name)
        return 0.0 if count is None or total <= 0.0 else min(1.0, count.value_at(now) / total)

    def on_loaded(self, name: str, seconds: float) -> None:
        self._load_seconds[name] = _smoothed(self._load_seconds.get(name, 0.0), seconds)
        self._mean_load_seconds = _smoothed(self._mean_load_seconds, seconds)

    def load_seconds(self, name: str) -> float:
        return self._load_seconds.get(name) or self._mean_load_seconds or FIRST_LOAD_SECONDS

    def retain(self, names: frozenset[str]) -> None:
        """Forgets adapters that the model has no longer."""
        for known in (self._counts, self._load_seconds):
            for name in known.keys() - names:
                del known[name]


def _smoothed(known: float, seconds: float) -> float:
    return seconds if known == 0.0 else known + _LEARNING_SHARE * (seconds - known)


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """An adapter with a fixed number of replicas.

    homes: the instances in the order in which they are its homes.
    """

    name: str
    replicas: int
    homes: tuple[str, ...]


def choose_keepers(adapters: Iterable[KeptAdapter], slots: int) -> Mapping[str, frozenset[str]]:
    """Returns the names of the adapters that each instance keeps, by its id.

    An adapter gets fewer replicas if there are fewer instances, or if other adapters of an earlier
    name fill their slots.

    slots: adapters that one instance holds at a time.
    """
    kept: dict[str, set[str]] = {}
    for adapter in sorted(adapters, key=lambda adapter: adapter.name):
        missing = adapter.replicas
        for instance_id in adapter.homes:
            names = kept.setdefault(instance_id, set())
            if missing > 0 and len(names) < max(1, slots - 1):
                names.add(adapter.name)
                missing -= 1
    return {instance_id: frozenset(names) for instance_id, names in kept.items() if names}
