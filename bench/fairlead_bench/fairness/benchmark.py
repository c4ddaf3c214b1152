"""A flooding tenant and steady ones before three gateways, and attacks on the caches of tenants.

    python -m fairlead_bench fairness [--out out/bench/fairness.json] [--seconds 14] [--seeds 1,2]

The engines are simulated (h100-llama8b); the gateways run their own cores in simulated time. The
steady tenants send an eighth of what the engines can compute each, the flood twice as much as all
engines. *Without fairness* is the default preset with its late binding, and no tenants.

Gaps of service are measured from the fifth second, when caches are warm, to the last arrival. After
it, requests wait at some engines only.

Gateways of a simulated cluster that serve tenants fairly, and share what they served.

Each gateway runs the cores of a live one: router, count of service, bounds of a queue, free
sequences, and exchange with peers. A request waits for its chosen engine. There, the tenants with
credit go first, and of their requests the first in the preset's order. Memory is not planned.

One flooding tenant and three steady ones, all with the same kind of prompts.

A prompt begins with one of its tenant's texts, six blocks long, and goes on with three of its own.

The service of two tenants while both waited, in tokens: uncached input + 2 · output.

Source: VTC (arXiv 2401.00588), whose bound is on the difference of service over any window in which
two tenants wait all the time.
"""

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from statistics import fmean
from typing import Final

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead.limits import Limits
from fairlead_bench.fairness import cache_timing
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.admission.admission_policy import MIN_BACKLOG_SECONDS, POLL_SECONDS
from fairlead_gateway.admission.fair_share import SAVED_SECONDS, FairShare, decode_seconds
from fairlead_gateway.admission.kv_capacity import MAX_WAITING_STEP_SHARE, EngineLoad
from fairlead_gateway.admission.request_queue import (
    QUANTUM_SECONDS,
    TIER_WEIGHTS,
    CallerBounds,
    CallerClass,
    has_credit,
    waits_behind,
)
from fairlead_gateway.peers.peer_messages import PeerBatch
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import QUEUED, FleetOptions, FleetSimulation
from fairlead_sim.gateways.admission_gate import TenantClass
from fairlead_sim.gateways.gateway_cluster import ClusterOptions, GatewayCluster, SimulatedGateway
from fairlead_sim.gateways.late_binding import Dispatcher
from fairlead_sim.gateways.single_gateway import MODEL, RoutingOptions
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

TTFT_SECONDS = 5.0
_LIMITS = Limits()
_Entry = tuple[tuple[float, float, str], int, str]


class FairCluster(GatewayCluster):
    """Several gateways that serve tenants fairly.

    classes: tier and weight by tenant.
    shares: they tell one another what they served.
    waits: time, tenant and change of the number of its requests that wait.
    dispatches: time, tenant and request.
    on_end: called with each request that has ended, and the time.
    """

    def __init__(
        self,
        fleet: FleetOptions,
        routing: RoutingOptions,
        options: ClusterOptions,
        *,
        classes: Mapping[str, TenantClass],
        shares: bool = True,
    ) -> None:
        self.classes = classes
        self.shares = shares
        self.waits: list[tuple[float, str, int]] = []
        self.dispatches: list[tuple[float, str, str]] = []
        self.on_end: Callable[[TraceRequest, float], None] = lambda *_: None
        super().__init__(fleet, routing, options)

    def _start_gateway(self) -> SimulatedGateway:
        self._started += 1
        return FairGateway(self, f"gateway {self._started}")

    def refuse(self, request: str, now: float) -> None:
        """Ends a request that made room for another one."""
        self._gateway_of.pop(request, None)
        self._simulation().refuse(request, "the queue is full", now)


class _Assigned:
    """A request that waits for its engine, or that was sent without a first token."""

    __slots__ = ("decode_seconds", "instance", "prefill_seconds", "request", "tenant", "weight")

    def __init__(self, request: TraceRequest, instance: str, prefill_seconds: float, weight: float) -> None:
        self.request = request
        self.tenant = request.tenant or ""
        self.instance = instance
        self.prefill_seconds = prefill_seconds
        self.weight = weight
        self.decode_seconds = 0.0


class FairGateway(SimulatedGateway):
    """One gateway of the cluster."""

    def __init__(self, cluster: FairCluster, name: str) -> None:
        super().__init__(cluster, name)
        self._fair_cluster = cluster
        profile = self._profile = cluster.fleet.profile
        self._dispatcher = Dispatcher(
            self.router, profile, cluster.send_queued_request, cluster.schedule, never_queues=True
        )
        self._room_seconds = max(
            MAX_WAITING_STEP_SHARE * profile.prefill_time(profile.step_tokens), MIN_BACKLOG_SECONDS
        )
        self._fair_share = FairShare(reports=True)
        self._bounds = CallerBounds(_LIMITS.queued_requests, 0)
        self._requests: dict[str, _Assigned] = {}
        self._queues: dict[str, dict[str, list[_Entry]]] = {engine: {} for engine in cluster.fleet.engine_names}
        self._sent_seconds = dict.fromkeys(cluster.fleet.engine_names, 0.0)
        self._waiting: set[str] = set()
        self._numbers = count()
        self._has_timer = False

    def route(self, request: TraceRequest, chain: PrefixChain, now: float) -> tuple[str | None, str]:
        """Chooses an engine, and sends the request or queues it for the engine."""
        tenant = request.tenant or ""
        its = self._fair_cluster.classes.get(tenant, TenantClass())
        weight = its.weight * TIER_WEIGHTS[its.tier]
        caller_class = CallerClass(its.tier, weight)
        if self._bounds.requests >= _LIMITS.queued_requests:
            if self._bounds.has_most(tenant, caller_class):
                return None, "the queue is full"
            self._displace(self._bounds.newest_of_largest(), now)
        route_request = RouteRequest(request.id, chain, request.prompt_tokens, request.output_tokens, request.session)
        decision = self.router.choose_instance(route_request, now, deferred=self._deferred(tenant, weight))
        chosen = decision.chosen
        if chosen is None:
            return None, decision.reason
        endpoint = self.router.endpoint(chosen)
        before = 0.0 if endpoint is None else endpoint.load.backlog_seconds
        self._dispatcher.dispatch(route_request, chosen, now)
        prefill_seconds = 0.0 if endpoint is None else endpoint.load.backlog_seconds - before
        assigned = self._requests[request.id] = _Assigned(request, chosen, prefill_seconds, weight)
        assigned.decode_seconds = decode_seconds(self._profile, request.prompt_tokens, request.output_tokens, 1)
        self.router.on_queued(chosen, 1)
        goes_ahead = not self._queues[chosen] or self._fair_share.has_small_share(tenant)
        if goes_ahead and self._has_room(chosen) and self._has_sequence(chosen, tenant):
            self._on_sent(assigned, now)
            return chosen, ""
        if not self._bounds.requests_of(tenant):
            self._fair_share.on_join(tenant, weight)
        self._bounds.add(request.id, tenant, 0, caller_class)
        self._waiting.add(request.id)
        heap = self._queues[chosen].setdefault(tenant, [])
        heapq.heappush(heap, (self.router.queue_sort_key(request.id), next(self._numbers), request.id))
        self._fair_cluster.waits.append((now, tenant, 1))
        self._start_timer(now)
        return QUEUED, ""

    def on_first_token(self, request: str, now: float) -> None:
        super().on_first_token(request, now)
        assigned = self._requests[request]
        self._sent_seconds[assigned.instance] -= assigned.prefill_seconds
        self._release(assigned.instance, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        super().on_finished(sequence, now)
        assigned = self._requests.pop(sequence.id)
        seconds = decode_seconds(self._profile, sequence.prompt_tokens, sequence.generated, 1)
        self._fair_share.settle(assigned.tenant, seconds - assigned.decode_seconds, assigned.weight)
        self._release(assigned.instance, now)
        self._fair_cluster.on_end(assigned.request, now)

    def _publish(self, now: float) -> None:
        if self._fair_cluster.shares:
            self.outbox.add_service(MODEL, self._fair_share.take_unreported())
        super()._publish(now)

    def receive(self, name: str, batch: PeerBatch, now: float, *, live: bool) -> None:
        super().receive(name, batch, now, live=live)
        if live and batch.service:
            self._fair_share.add_reported(batch.service)

    def _has_room(self, instance: str) -> bool:
        return self._sent_seconds[instance] <= 0.0 or self._sent_seconds[instance] < self._room_seconds

    def _has_sequence(self, instance: str, tenant: str) -> bool:
        endpoint = self.router.endpoint(instance)
        if endpoint is None:
            return True
        local = endpoint.load
        total = self.router.total_load(local)
        engine = EngineLoad(instance, 0.0, 0.0, other_tokens=local.tokens_of_others(total))
        engine.limit_sequences(self._profile.max_sequences, total.sent)
        return engine.has_free_sequence(small_share=self._fair_share.has_small_share(tenant))

    def _start_timer(self, now: float) -> None:
        """Arms a check of all queues, since requests of other gateways end unseen."""
        if not self._has_timer:
            self._has_timer = True
            self._fair_cluster.schedule(now + POLL_SECONDS, self._on_timer)

    def _on_timer(self, now: float) -> None:
        self._has_timer = False
        for instance in self._queues:
            self._release(instance, now)
        if self._waiting:
            self._start_timer(now)

    def _release(self, instance: str, now: float) -> None:
        queues = self._queues[instance]
        while queues and self._has_room(instance):
            entry, tenant = self._next(queues)
            if entry[2] in self._waiting and not self._has_sequence(instance, tenant):
                return
            heapq.heappop(queues[tenant])
            if not queues[tenant]:
                del queues[tenant]
            name = entry[2]
            if name not in self._waiting:
                continue
            assigned = self._requests[name]
            self._leave(name, assigned, now)
            self._on_sent(assigned, now)
            self._cluster.send_queued_request(name, instance, now)

    def _next(self, queues: dict[str, list[_Entry]]) -> tuple[_Entry, str]:
        """Returns the next request of an engine, which may have been displaced, and its tenant."""
        served = self._fair_share.served_seconds
        classes = self._fair_cluster.classes
        least = min(map(served, queues))
        near = []
        for tenant in queues:
            its = classes.get(tenant, TenantClass())
            if has_credit(served(tenant), least, its.weight * TIER_WEIGHTS[its.tier]):
                near.append(tenant)
        tenant = min(near, key=lambda name: queues[name][0])
        return queues[tenant][0], tenant

    def _leave(self, name: str, assigned: _Assigned, now: float) -> None:
        self._waiting.discard(name)
        self._bounds.remove(name, assigned.tenant)
        if not self._bounds.requests_of(assigned.tenant):
            self._fair_share.on_leave(assigned.tenant)
        self._fair_cluster.waits.append((now, assigned.tenant, -1))

    def _on_sent(self, assigned: _Assigned, now: float) -> None:
        self.router.on_queued(assigned.instance, -1)
        self._sent_seconds[assigned.instance] += assigned.prefill_seconds
        self._fair_share.charge(assigned.tenant, assigned.prefill_seconds + assigned.decode_seconds, assigned.weight)
        self._fair_cluster.dispatches.append((now, assigned.tenant, assigned.request.id))

    def _deferred(self, tenant: str, weight: float) -> dict[str, float]:
        """Returns the prefill that waits behind a tenant's next request, by engine."""
        share, classes = self._fair_share, self._fair_cluster.classes
        least = share.seconds_at_join(tenant, weight)
        behind: list[str] = []
        for other in {name for queues in self._queues.values() for name in queues} - {tenant}:
            its = classes.get(other, TenantClass())
            if waits_behind(share.served_seconds(other), least, its.weight * TIER_WEIGHTS[its.tier]):
                behind.append(other)
        return {engine: self._queued_seconds(engine, behind) for engine in self._queues} if behind else {}

    def _queued_seconds(self, engine: str, tenants: Sequence[str]) -> float:
        queues = self._queues[engine]
        waiting = [name for tenant in tenants for _, _, name in queues.get(tenant, ()) if name in self._waiting]
        return sum(self._requests[name].prefill_seconds for name in waiting)

    def _displace(self, name: str, now: float) -> None:
        assigned = self._requests.pop(name)
        self._leave(name, assigned, now)
        self.router.on_queued(assigned.instance, -1)
        self._dispatcher.on_abandoned(name, now)
        self._fair_cluster.refuse(name, now)


STEADY: Final = ("steady-1", "steady-2", "steady-3")
FLOOD: Final = "flood"
TEXTS: Final = 30
SHARED_BLOCKS: Final = 6
OWN_BLOCKS: Final = 2
OUTPUT_TOKENS: Final = (20, 120)


def request_seconds(profile: EngineProfile) -> float:
    """Returns the mean engine time of a request whose shared text is cached."""
    shared, own = SHARED_BLOCKS * TRACE_BLOCK_TOKENS, OWN_BLOCKS * TRACE_BLOCK_TOKENS
    answer = sum(OUTPUT_TOKENS) / 2
    return profile.prefill_time(shared + own, shared) + decode_seconds(profile, shared + own, answer, 1)


def tenant_requests(rates: Mapping[str, float], seconds: float, seed: int) -> list[TraceRequest]:
    """Returns Poisson arrivals of each tenant at its rate a second, in order of arrival.

    The requests of a tenant are the same whatever others send.
    """
    made: list[TraceRequest] = []
    for tenant, rate in rates.items():
        made += _requests_of(tenant, rate, seconds, random.Random(f"{seed} {tenant}"))
    return sorted(made, key=_arrival)


def _requests_of(tenant: str, rate: float, seconds: float, draw: random.Random) -> Sequence[TraceRequest]:
    blocks = count(draw.getrandbits(62))
    texts = [tuple(next(blocks) for _ in range(SHARED_BLOCKS)) for _ in range(TEXTS)]
    made: list[TraceRequest] = []
    at = draw.expovariate(rate)
    while at < seconds:
        own = tuple(next(blocks) for _ in range(OWN_BLOCKS))
        prompt = draw.choice(texts) + own
        tokens = len(prompt) * TRACE_BLOCK_TOKENS
        output = draw.randint(*OUTPUT_TOKENS)
        made.append(TraceRequest(f"{tenant}/{len(made)}", at, tokens, output, prompt, None, tenant))
        at += draw.expovariate(rate)
    return made


def _arrival(request: TraceRequest) -> float:
    return request.arrival


OUTPUT_WEIGHT: Final = 2.0


def waiting_windows(waits: Sequence[tuple[float, str, int]], tenants: Sequence[str]) -> list[tuple[float, float]]:
    """Returns the windows in which each of the tenants has a request in some queue."""
    waiting = dict.fromkeys(tenants, 0)
    windows: list[tuple[float, float]] = []
    began: float | None = None
    for at, tenant, change in waits:
        if tenant in waiting:
            waiting[tenant] += change
        if all(waiting.values()):
            began = at if began is None else began
        elif began is not None:
            windows.append((began, at))
            began = None
    return windows


def largest_gap(
    served: Sequence[tuple[float, str, float]],
    windows: Sequence[tuple[float, float]],
    weights: Mapping[str, float],
) -> float:
    """Returns the largest difference of service, divided by weight, over any part of a window.

    served: time, tenant and tokens, in order of time.
    weights: of the two tenants.
    """
    first = next(iter(weights))
    largest = 0.0
    for begin, end in windows:
        balance = low = high = 0.0
        for at, tenant, tokens in served:
            if at < begin or at > end or tenant not in weights:
                continue
            balance += tokens / weights[tenant] * (1 if tenant == first else -1)
            largest = max(largest, balance - low, high - balance)
            low, high = min(low, balance), max(high, balance)
    return largest


PROFILE = builtin_profile("h100-llama8b")
ENGINES, GATEWAYS = 8, 3
BLOCK_TOKENS = 64
STEADY_SHARE, FLOOD_SHARE = 0.125, 2.0
SECONDS = 14.0
_WARM_UP_SECONDS = 5.0
_SHARING_SECONDS = 0.15
"""The longest time until service of one gateway counts in another: 50 ms, and two polls of it."""
_NAME = "fairness"


@dataclass(frozen=True, slots=True)
class TenantRun:
    """The results of one run: by tenant, and the gaps of service."""

    ttft_seconds: Mapping[str, Sequence[float]]
    tokens_per_second: float
    cached_share: float
    served: Mapping[str, float] = field(default_factory=dict)
    gap_tokens: float = 0.0
    refused: Mapping[str, int] = field(default_factory=dict)


def capacity() -> float:
    """Returns the requests a second that all engines can serve."""
    return ENGINES / request_seconds(PROFILE)


def rates(*, flood: float = FLOOD_SHARE, steady: float = STEADY_SHARE) -> dict[str, float]:
    """Returns the requests a second by tenant; shares are of the capacity."""
    found = {tenant: steady * capacity() for tenant in STEADY if steady}
    return found | ({FLOOD: flood * capacity()} if flood else {})


def simulate(
    requests: Sequence[TraceRequest],
    seconds: float,
    classes: Mapping[str, TenantClass] | None,
    *,
    shares: bool = True,
    compared: tuple[str, str] | None = None,
) -> TenantRun:
    """Returns the results of one run.

    classes: tier and weight by tenant; None: without fairness.
    compared: the tenants whose gap of service is measured.
    """
    fleet = FleetOptions([f"e-{number}" for number in range(ENGINES)], PROFILE, BLOCK_TOKENS)
    routing = RoutingOptions(SloTargets(ttft_seconds=TTFT_SECONDS), b"bench")
    options = ClusterOptions(gateways=GATEWAYS)
    cluster: GatewayCluster
    if classes is None:
        cluster = GatewayCluster(fleet, routing, options)
    else:
        cluster = FairCluster(fleet, routing, options, classes=classes, shares=shares)
    results = FleetSimulation(cluster, fleet).run(requests)
    gap = 0.0
    if compared is not None and isinstance(cluster, FairCluster):
        weights = {tenant: (classes or {}).get(tenant, TenantClass()).weight for tenant in compared}
        costs = {result.id: _cost(result) for result in results}
        dispatches = [(at, tenant, costs[name]) for at, tenant, name in cluster.dispatches]
        windows = waiting_windows(cluster.waits, compared)
        steady = [(max(begin, _WARM_UP_SECONDS), min(end, seconds)) for begin, end in windows]
        gap = largest_gap(dispatches, steady, weights)
    return _run(requests, results, seconds, gap)


def _cost(result: RequestResult) -> float:
    return result.prompt_tokens - result.cached_tokens + OUTPUT_WEIGHT * result.output_tokens


def _run(requests: Sequence[TraceRequest], results: Sequence[RequestResult], seconds: float, gap: float) -> TenantRun:
    tenant_of = {request.id: request.tenant or "" for request in requests}
    ttft: dict[str, list[float]] = {}
    served: dict[str, float] = {}
    refused: dict[str, int] = {}
    tokens = prompt = cached = 0.0
    for result in results:
        tenant = tenant_of[result.id]
        if result.ttft_seconds is None:
            refused[tenant] = refused.get(tenant, 0) + (result.arrival >= _WARM_UP_SECONDS)
            continue
        first_at = result.arrival + result.ttft_seconds
        if result.arrival >= _WARM_UP_SECONDS:
            ttft.setdefault(tenant, []).append(result.ttft_seconds)
        if _WARM_UP_SECONDS <= first_at <= seconds:
            prompt += result.prompt_tokens
            cached += result.cached_tokens
            tokens += result.prompt_tokens + OUTPUT_WEIGHT * result.output_tokens
            served[tenant] = served.get(tenant, 0.0) + _cost(result)
    return TenantRun(ttft, tokens / (seconds - _WARM_UP_SECONDS), cached / prompt, served, gap, refused)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that is at least as large as this share of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def gap_bound() -> float:
    """Returns the bound on the gap of service, in tokens.

    Two requests of the largest cost, a quantum, what a tenant may save, and what the other gateways
    serve until their reports arrive.
    """
    largest = (SHARED_BLOCKS + OWN_BLOCKS) * TRACE_BLOCK_TOKENS + OUTPUT_WEIGHT * max(OUTPUT_TOKENS)
    mean = OWN_BLOCKS * TRACE_BLOCK_TOKENS + OUTPUT_WEIGHT * sum(OUTPUT_TOKENS) / 2
    per_second = mean / request_seconds(PROFILE)
    lease = ENGINES * per_second * _SHARING_SECONDS / GATEWAYS
    return 2 * largest + (QUANTUM_SECONDS + SAVED_SECONDS) * per_second + GATEWAYS * lease


_ALL = dict.fromkeys((FLOOD, *STEADY), TenantClass())
_FIRST = {FLOOD: TenantClass(tier=1), **dict.fromkeys(STEADY, TenantClass(tier=0))}
_TWO_FLOODS = {"flood": TenantClass(weight=1.0), "steady-1": TenantClass(weight=1.0)}
_WEIGHTED = {"flood": TenantClass(weight=1.0), "steady-1": TenantClass(weight=3.0)}


def simulate_seed(seconds: float, seed: int) -> dict[str, TenantRun]:
    """Returns all runs of one seed, by name."""
    mixed = tenant_requests(rates(), seconds, seed)
    alone = tenant_requests(rates(flood=0.0), seconds, seed)
    floods = tenant_requests({"flood": 2.0 * capacity(), "steady-1": 1.2 * capacity()}, seconds, seed)
    pair = ("flood", "steady-1")
    return {
        "fair": simulate(mixed, seconds, _ALL),
        "fair, not shared": simulate(mixed, seconds, _ALL, shares=False),
        "steady ones Interactive": simulate(mixed, seconds, _FIRST),
        "without fairness": simulate(mixed, seconds, None),
        "alone": simulate(alone, seconds, _ALL),
        "two floods": simulate(floods, seconds, _TWO_FLOODS, compared=pair),
        "two floods, not shared": simulate(floods, seconds, _TWO_FLOODS, shares=False, compared=pair),
        "two floods, weights 1 and 3": simulate(floods, seconds, _WEIGHTED, compared=pair),
    }


def steady_p99(run: TenantRun) -> float:
    """Returns the p99 TTFT of the steady tenant that fares worst."""
    return max(percentile(run.ttft_seconds[tenant], 0.99) for tenant in STEADY)


def rows(found: Sequence[Mapping[str, TenantRun]], goals: Goals) -> list[ResultRow]:
    """Returns the rows of all seeds; means over seeds, except gaps, which are the largest."""

    def mean(name: str, value: str) -> float:
        return fmean([getattr(runs[name], value) for runs in found])

    def p99(name: str) -> float:
        return fmean([steady_p99(runs[name]) for runs in found])

    made: list[ResultRow] = []
    for name in ("fair", "steady ones Interactive", "fair, not shared", "without fairness"):
        metric = f"p99 TTFT of the steady tenants: {name} ÷ alone"
        made.append(goals.ratio(metric, "s", p99(name), "alone", p99("alone")))
    for value, unit, title in (
        ("tokens_per_second", "tokens/s", "throughput"),
        ("cached_share", "share", "cached share of prompts"),
    ):
        for name in ("fair", "steady ones Interactive"):
            metric, versus = f"{title}: {name} ÷ without fairness", "without fairness"
            made.append(goals.ratio(metric, unit, mean(name, value), versus, mean(versus, value)))
    bound = gap_bound()
    for name in ("two floods", "two floods, weights 1 and 3", "two floods, not shared"):
        metric = f"service gap: {name} ÷ bound"
        gap = max(runs[name].gap_tokens for runs in found)
        made.append(goals.ratio(metric, "tokens", gap, "bound", bound))
    shares = [runs["two floods, weights 1 and 3"].served for runs in found]
    metric = "service: weight 3 ÷ weight 1"
    heavy, light = (sum(served[tenant] for served in shares) for tenant in ("steady-1", "flood"))
    made.append(goals.ratio(metric, "tokens", heavy, "three times as much", 3 * light))
    metric = "refused requests of the steady tenants: fair"
    refused = sum(runs["fair"].refused.get(tenant, 0) for runs in found for tenant in STEADY)
    made.append(goals.value(metric, "requests", refused))
    return made


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(
        _NAME, "Fairness between tenants, and isolation of their caches.", arguments, seconds=SECONDS, seeds=[1, 2]
    )
    goals = load_goals(_NAME)
    with ProcessPoolExecutor(max_workers=2) as pool:
        found = list(pool.map(partial(simulate_seed, given.seconds), given.seeds))
    write_results(_NAME, rows(found, goals) + cache_timing.rows(goals), seed=given.seeds[0], file=given.out)
    return 0
