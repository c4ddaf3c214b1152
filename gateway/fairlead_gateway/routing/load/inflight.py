"""The in-flight load of endpoints: requests that this process sent and that have not finished.

The prefill of requests without a first token counts in seconds, all requests in flight in tokens. A
request leaves when it finishes, fails or its client disconnects, so the sums cannot drift.

Why: engines report their load late, and slowest when it matters. The gateway knows its dispatches
at once.

The sampled load of a large fleet: the exact load of this process, the last known one of others.

With up to `MAX_FULL_SCAN` instances, each decision reads the load of all. With more, it reads its
candidates and one instance in rotation, and uses the last known load of the others. Remembered
values give the mean backlog, the instance to pull KV blocks from and the least busy endpoint. The
cost of a candidate comes from its current load. Without other processes, all of it is exact.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import fsum, nan
from types import MappingProxyType
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, PrefixChain, shared_bytes
from fairlead_gateway.routing.request import RouteRequest

MAX_COMPARED_PROMPTS: Final = 64
"""With more requests in flight, the blocks of their prompts are counted."""
NOTHING_DEFERRED: Final[Mapping[str, float]] = MappingProxyType({})
_IS_COMPILED: Final = not __file__.endswith(".py")
_ERROR_SHARE: Final = 2.0**-104
"""The most that the sum of n errors is off, as a share of n² times the sum: four times u²."""

MAX_FULL_SCAN: Final = 16
MAX_SAMPLES: Final = 5
"""Loads that one decision reads in a large fleet."""


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """A snapshot of the load that this process has in flight on one instance.

    inflight: a request counts once for each answer that the instance computes for it.
    backlog_seconds: prefill of the requests without a first token.
    queued: requests that wait in this process until the instance can start them.
    """

    inflight: int = 0
    waiting: int = 0
    backlog_seconds: float = 0.0
    inflight_tokens: float = 0.0
    queued: int = 0


class EndpointLoad:
    """The running sums of one endpoint. Only the tracker changes them.

    inflight, queued: answers of the requests, since each is a sequence of the engine.
    waiting: requests.
    """

    __slots__ = ("backlog_seconds", "inflight", "inflight_tokens", "instance", "queued", "waiting")

    def __init__(
        self,
        instance: str,
        inflight: int = 0,
        waiting: int = 0,
        backlog_seconds: float = 0.0,
        inflight_tokens: float = 0.0,
        queued: int = 0,
    ) -> None:
        self.instance = instance
        self.inflight = inflight
        self.waiting = waiting
        self.backlog_seconds = backlog_seconds
        self.inflight_tokens = inflight_tokens
        self.queued = queued

    @property
    def sent(self) -> int:
        return self.inflight - self.queued

    def plus(
        self, inflight: int, waiting: int, backlog_seconds: float, inflight_tokens: float, queued: int
    ) -> "EndpointLoad":
        """Returns this load with that of other processes at the same endpoint."""
        return EndpointLoad(
            self.instance,
            self.inflight + inflight,
            self.waiting + waiting,
            self.backlog_seconds + backlog_seconds,
            self.inflight_tokens + inflight_tokens,
            self.queued + queued,
        )

    def tokens_of_others(self, total: "EndpointLoad") -> float:
        """Returns the tokens of other processes that the endpoint has, from the load of all.

        Processes report the tokens of all their requests, and how many of these wait in them. Those
        are taken to be as large as the others.
        """
        inflight = total.inflight - self.inflight
        if total is self or inflight <= 0:
            return 0.0
        sent_share = max(0.0, min(1.0, (total.sent - self.sent) / inflight))
        return max(0.0, sent_share * (total.inflight_tokens - self.inflight_tokens))

    def is_busier_than(self, other: "EndpointLoad") -> bool:
        """Returns whether this endpoint is busier: by backlog, then tokens in flight, then id."""
        if self.backlog_seconds != other.backlog_seconds:
            return self.backlog_seconds > other.backlog_seconds
        if self.inflight_tokens != other.inflight_tokens:
            return self.inflight_tokens > other.inflight_tokens
        return self.instance > other.instance


class InflightRequest:
    """A dispatched request: its weight, and whether it waits for its first token.

    - indexed_share: share of the prompt that the KV-cache index reported as cached; negative
      without index data.
    - matched_share: share of the prompt that should be cached, from all sources.
    """

    __slots__ = (
        "indexed_share",
        "load",
        "matched_share",
        "prefill_seconds",
        "request",
        "sequences",
        "tokens",
        "waiting",
    )

    def __init__(
        self,
        request: RouteRequest,
        load: EndpointLoad,
        prefill_seconds: float,
        tokens: float,
        indexed_share: float = -1.0,
        matched_share: float = 0.0,
    ) -> None:
        self.request = request
        self.sequences: int = request.sequences
        self.load = load
        self.prefill_seconds = prefill_seconds
        self.tokens = tokens
        self.indexed_share = indexed_share
        self.matched_share = matched_share
        self.waiting = True

    @property
    def matched_bytes(self) -> float:
        """Returns the bytes of the prompt that should be cached."""
        return self.matched_share * self.request.prompt_tokens * BYTES_PER_TOKEN


class InflightTracker:
    """All requests in flight of one model, by request id.

    - shared_loads: where sibling workers publish their sums; total loads then include them.
    - load_override: returns an endpoint's whole load, given this process's part.
    """

    def __init__(
        self,
        shared_loads: SharedLoadTable | None = None,
        load_override: Callable[[EndpointLoad], EndpointLoad] | None = None,
    ) -> None:
        self._shared_loads = shared_loads
        self._load_override = load_override
        self._requests: dict[str, InflightRequest] = {}
        self._loads: dict[str, EndpointLoad] = {}
        self._retained: Collection[str] = ()
        self._deferred: Mapping[str, float] = NOTHING_DEFERRED
        self.defers = False
        self._block_counts: dict[str, dict[Hashable, int]] | None = None  # None: with few requests

    def retain(self, instances: Collection[str]) -> None:
        """Keeps the sums of these instances. Others are dropped when their last request
        finishes.
        """
        self._retained = instances
        for departed in [name for name, total in self._loads.items() if not total.inflight and name not in instances]:
            del self._loads[departed]

    def local_load(self, instance: str) -> EndpointLoad:
        """Returns this process's load on an instance: an object that stays current while it is
        retained.
        """
        load = self._loads.get(instance)
        if load is None:
            load = self._loads[instance] = EndpointLoad(instance)
        return load

    def add(
        self,
        request: RouteRequest,
        instance: str,
        *,
        prefill_seconds: float,
        tokens: float,
        indexed_share: float = -1.0,
        matched_share: float = 0.0,
    ) -> None:
        """Adds a request. A retry first removes the earlier attempt of the request."""
        request_id = request.id
        if request_id in self._requests:
            self.remove(request_id)
        load = self.local_load(instance)
        self._requests[request_id] = InflightRequest(
            request, load, prefill_seconds, tokens, indexed_share, matched_share
        )
        load.inflight += request.sequences
        load.waiting += 1
        load.backlog_seconds += prefill_seconds
        load.inflight_tokens += tokens
        if self._shared_loads is not None:
            self._publish(load)
        if self._block_counts is not None:
            _add_blocks(self._block_counts, instance, request.chain.hashes, 1)
        elif len(self._requests) > MAX_COMPARED_PROMPTS:
            self._block_counts = {}
            for inflight in self._requests.values():
                _add_blocks(self._block_counts, inflight.load.instance, inflight.request.chain.hashes, 1)

    def on_queued(self, instance: str, change: int) -> None:
        """Counts answers in flight that wait in this process.

        change: the answers of a request; negative if it does not wait any more.
        """
        load = self._loads.get(instance)
        if load is not None:
            load.queued += change
            if self._shared_loads is not None:
                self._publish(load)

    def get(self, request_id: str) -> InflightRequest | None:
        """Returns the request in flight with this id; None if it is unknown."""
        return self._requests.get(request_id)

    def requests_at(self, instance: str) -> list[InflightRequest]:
        return [inflight for inflight in self._requests.values() if inflight.load.instance == instance]

    def shared_bytes(self, instance: str, chain: PrefixChain) -> int:
        """Returns how many bytes from its start a prompt shares with requests in flight there.

        Why blocks are counted: requests that end together would compare all pairs.
        """
        if self._block_counts is None:
            return max([shared_bytes(chain, other.request.chain) for other in self.requests_at(instance)], default=0)
        counts = self._block_counts.get(instance)
        known = 0 if counts is None else len([*takewhile(counts.__contains__, chain.hashes)])
        return chain.ends[known - 1] if known else 0

    def is_inflight(self, request_id: str) -> bool:
        return request_id in self._requests

    def on_first_token(self, request_id: str) -> None:
        """Ends the request's prefill. Unknown ids are ignored."""
        inflight = self._requests.get(request_id)
        if inflight is not None and inflight.waiting:
            _end_prefill(inflight)
            if self._shared_loads is not None:
                self._publish(inflight.load)

    def remove(self, request_id: str) -> InflightRequest | None:
        """Removes a request that has ended and returns it; None if it is unknown."""
        inflight = self._requests.get(request_id)
        if inflight is None:
            return None
        del self._requests[request_id]
        load = inflight.load
        if inflight.waiting:
            _end_prefill(inflight)
        load.inflight -= inflight.sequences
        load.inflight_tokens = load.inflight_tokens - inflight.tokens if load.inflight else 0.0
        if not load.inflight and load.instance not in self._retained:
            del self._loads[load.instance]
        if self._shared_loads is not None:
            self._publish(load)
        if self._block_counts is not None:
            if len(self._requests) < MAX_COMPARED_PROMPTS // 2:
                self._block_counts = None
            else:
                _add_blocks(self._block_counts, load.instance, inflight.request.chain.hashes, -1)
        return inflight

    def defer(self, seconds: Mapping[str, float]) -> None:
        """Leaves prefill by instance out of total loads, and the loads of other processes with it.

        seconds: prefill that waits behind the request that is placed next; empty ends it.

        Why not those of other processes: they include what waits there behind the request, too, and
        do not say how much.
        """
        self._deferred = seconds
        self.defers = bool(seconds)

    def _undeferred(self, local: EndpointLoad) -> EndpointLoad:
        seconds = self._deferred.get(local.instance)
        if seconds is None:
            return local
        backlog = max(0.0, local.backlog_seconds - seconds)
        return EndpointLoad(local.instance, local.inflight, local.waiting, backlog, local.inflight_tokens, local.queued)

    def total_load(self, local: EndpointLoad) -> EndpointLoad:
        """Returns the current load of an endpoint: with that of sibling workers, or overridden."""
        if self.defers:
            return self._undeferred(local)
        if self._shared_loads is None:
            return local if self._load_override is None else self._load_override(local)
        other = self._shared_loads.sum_other_rows(local.instance)
        if other is None:
            return local
        inflight, waiting, backlog, tokens, queued = other
        return local.plus(inflight, waiting, backlog, tokens, queued)

    def total_loads(self, local: list[EndpointLoad]) -> list[EndpointLoad]:
        """Returns the total load of each endpoint, in their order."""
        return (
            local
            if self._shared_loads is None and self._load_override is None and not self.defers
            else [self.total_load(load) for load in local]
        )

    def busy_instances(self) -> Sequence[str]:
        return tuple([name for name, total in self._loads.items() if total.inflight])

    def republish(self) -> None:
        """Writes the sums of busy instances to the shared table again, after its slots changed."""
        for load in self._loads.values():
            if load.inflight:
                self._publish(load)

    def _publish(self, load: EndpointLoad) -> None:
        assert self._shared_loads is not None
        backlog_seconds, tokens = max(0.0, load.backlog_seconds), max(0.0, load.inflight_tokens)
        self._shared_loads.write(load.instance, load.inflight, load.waiting, backlog_seconds, tokens, load.queued)

    def instance_load(self, instance: str) -> InstanceLoad:
        """Returns this process's load on one instance; zeros if it has none."""
        load = self._loads.get(instance)
        if load is None:
            return InstanceLoad()
        return InstanceLoad(
            load.inflight, load.waiting, max(0.0, load.backlog_seconds), max(0.0, load.inflight_tokens), load.queued
        )


def least_busy(loads: list[EndpointLoad]) -> EndpointLoad:
    """Returns the least busy of at least one load."""
    least = loads[0]
    for load in loads:
        if least.is_busier_than(load):
            least = load
    return least


def total_backlog_seconds(loads: list[EndpointLoad]) -> float:
    """Returns the sum of the backlogs in seconds, the same for any order of `loads`."""
    if _IS_COMPILED:
        found = compensated_backlog_seconds(loads)
        if found == found:  # not for a NaN
            return found
    first = second = 0.0
    for load in loads:
        seconds = load.backlog_seconds
        if seconds == 0.0:
            continue
        if first == 0.0:
            first = seconds
        elif second == 0.0:
            second = seconds
        else:
            return fsum([load.backlog_seconds for load in loads])
    return first + second  # for two, the sum is as exact as fsum's at a tenth of its cost


def compensated_backlog_seconds(loads: list[EndpointLoad]) -> float:
    """Returns the sum that `fsum` returns, or a NaN where it may be another.

    The rounding errors of the additions are added up, too (Neumaier, 1974). Their sum is off by
    less than `bound`. Unless that could change the result's last bit, the result is exact.

    Why: `fsum` takes an object for each number, which is a third of a decision among 64 instances.
    Interpreted, `fsum` is the faster of both.
    """
    total = error = size = 0.0
    for load in loads:
        seconds = load.backlog_seconds
        after = total + seconds
        part = after - total
        error += (total - (after - part)) + (seconds - part)
        total = after
        size += seconds if seconds > 0.0 else -seconds
    count = float(len(loads))
    found, bound = total + error, size * count * count * _ERROR_SHARE
    part = found - total
    rest = (total - (found - part)) + (error - part)
    return found if found + (rest + bound) == found and found + (rest - bound) == found else nan


def _add_blocks(counts: dict[str, dict[Hashable, int]], instance: str, hashes: Sequence[Hashable], change: int) -> None:
    """Counts a request that has these blocks, or with -1 one that ended."""
    known = counts.setdefault(instance, {})
    for digest in hashes:
        count = known.get(digest, 0) + change
        if count:
            known[digest] = count
        else:
            del known[digest]
    if not known:
        del counts[instance]


def _end_prefill(inflight: InflightRequest) -> None:
    """Removes the request's prefill from the backlog."""
    inflight.waiting = False
    load = inflight.load
    load.waiting -= 1
    load.backlog_seconds = load.backlog_seconds - inflight.prefill_seconds if load.waiting else 0.0


class SampledLoads:
    """The loads of one model's endpoints: exact in a small fleet, partly remembered in a
    large one.
    """

    def __init__(self, inflight: InflightTracker) -> None:
        self._inflight = inflight
        self._other_loads: dict[str, EndpointLoad] = {}
        self._next_sample = 0
        self._samples = 0
        self._is_large = False

    def retain(self, instances: Collection[str]) -> None:
        self._other_loads = {name: beside for name, beside in self._other_loads.items() if name in instances}

    def begin_decision(self, instances: int) -> None:
        """Starts a decision among `instances` instances, which sets whether the fleet counts as
        large.
        """
        self._is_large = instances > MAX_FULL_SCAN and not self._inflight.defers
        self._samples = 0

    def measure(self, local: EndpointLoad) -> EndpointLoad:
        """Returns the current load of an endpoint."""
        total = self._inflight.total_load(local)
        if self._is_large:
            self._samples += 1
            if total is not local:
                self._remember(local, total)
        return total

    def estimate(self, local: EndpointLoad) -> EndpointLoad:
        """Returns the load of an endpoint. In a large fleet, the part of other processes is the
        last known one.
        """
        if not self._is_large:
            return self._inflight.total_load(local)
        other = self._other_loads.get(local.instance)
        if other is None:
            return local
        return local.plus(other.inflight, other.waiting, other.backlog_seconds, other.inflight_tokens, other.queued)

    def summarize(self, local: list[EndpointLoad]) -> tuple[float, EndpointLoad]:
        """Returns the mean backlog in seconds and the least busy load. In a large fleet, both are
        estimates.
        """
        if not self._is_large:
            loads = self._inflight.total_loads(local)
        elif self._other_loads:
            loads = [self.estimate(load) for load in local]
        else:
            loads = local
        return total_backlog_seconds(loads) / len(loads), least_busy(loads)

    def end_decision(self, local: list[EndpointLoad]) -> None:
        """In a large fleet, reads one more load in rotation, unless `MAX_SAMPLES` were read."""
        if self._is_large and self._samples < MAX_SAMPLES:
            self._next_sample = (self._next_sample + 1) % len(local)
            self.measure(local[self._next_sample])

    def _remember(self, local: EndpointLoad, total: EndpointLoad) -> None:
        self._other_loads[local.instance] = EndpointLoad(
            local.instance,
            max(0, total.inflight - local.inflight),
            max(0, total.waiting - local.waiting),
            max(0.0, total.backlog_seconds - local.backlog_seconds),
            max(0.0, total.inflight_tokens - local.inflight_tokens),
            max(0, total.queued - local.queued),
        )


class Endpoint:
    """A ready instance with what decisions need.

    - full_step_seconds: prefill time of a full step.
    - cache_bit: bits of all that the instance can use of a prompt, in prefix matches.
    - index_bit: the bits for what the KV-cache index reports; 0 if it reports nothing.
    - is_full: prompts that gateways sent there fill its KV memory. Of GPU memory, only what they
      left counts then, also where the index still reports other blocks.
    - gpu_bit, cpu_bit, local_bit: bits of what is in GPU memory; or also in CPU memory; or also on
      its disk. ``cache_bit`` adds the store that all engines reach.
    - has_slow_tiers: whether a match may lie in slower memory than the GPU's.
    """

    __slots__ = (
        "cache_bit",
        "cpu_bit",
        "full_step_seconds",
        "gpu_bit",
        "has_slow_tiers",
        "id",
        "index_bit",
        "is_full",
        "kv_tokens",
        "load",
        "local_bit",
        "profile",
        "pull",
    )

    def __init__(
        self,
        id: str,
        profile: EngineProfile,
        load: EndpointLoad,
        pull: KvPullSource | None,
    ) -> None:
        self.pull = pull
        self.id = id
        self.profile = profile
        self.kv_tokens = profile.kv_tokens
        self.full_step_seconds: float = profile.prefill_time(profile.step_tokens)
        self.load = load
        self.cache_bit = self.index_bit = self.gpu_bit = self.cpu_bit = self.local_bit = 0
        self.has_slow_tiers = self.is_full = False

    def set_bits(self, own: int, gpu: int, cpu: int, disk: int, store: int) -> bool:
        """Sets the bits of what was sent to the instance, and of what the index reports by tier.

        Returns whether they changed.
        """
        # What leaves the GPU's memory goes to slower memory, where there is any.
        self.gpu_bit = own if self.is_full and gpu and not cpu | disk else own | gpu
        self.cpu_bit = self.gpu_bit | cpu
        self.index_bit = gpu | cpu | disk
        before, self.local_bit = self.local_bit, self.cpu_bit | disk
        cache_bit, self.cache_bit = self.cache_bit, self.local_bit | store
        self.has_slow_tiers = self.cache_bit != self.gpu_bit
        return before != self.local_bit or cache_bit != self.cache_bit
