"""Moves of running streams between simulated engines: preemptions, and room for long requests.

    python -m fairlead_bench balance [--out out/bench/balance.json] [--requests 6000]
                                     [--seeds 101,102,103]

Eight engines behind one gateway. A moved stream stops, and another engine computes its prompt and
tokens again. Rates and constants were chosen with seeds 1 to 3.

- *Chat*: prompts and answers of the memory rows of `scheduling`, on engines of 120,000 tokens.
- *Reasoning*: answers of 1,000 tokens in the median, some of 16,000, on engines that only decode.
- *Long*: prompts of 12,000 tokens among chats, on engines of 28,672 tokens that are 85 % full.
- *Tiers*: a tenth of the chats goes first, in engines too, at nine tenths of the highest rate.
  Several ways of dispatch are compared.
- *Drain*: an engine leaves after a minute. `decide_move` of the gateway chooses what moves.

Llumnix' rule is that of its code (arXiv 2406.03243), with computation in place of its copies.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import KvPullSource, Model, SloTargets
from fairlead.limits import Limits
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_bench.scheduling import A100, answer_lengths, draw_arrivals
from fairlead_gateway.admission.admission_policy import AdmissionPolicy
from fairlead_gateway.admission.defragmentation import MemoryWait
from fairlead_gateway.proxy.stream_moves import MOVE_INTERVAL_SECONDS, MOVES_AT_ONCE, StreamProgress, decide_move
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind, schedule_events
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.results import quantile, without_warmup
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.admission_gate import AdmissionControlledGateway, RequestClasses
from fairlead_sim.gateways.move_planner import (
    NOTHING_QUEUED,
    InstanceStreams,
    MovePlan,
    RecentMoves,
    StreamMove,
    plan_moves,
)
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway, instances_of
from fairlead_sim.gateways.stream_balance import MOVE_SECONDS, BalancedGateway, BalanceOptions, MoveRule
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest

H100: Final = builtin_profile("h100-llama8b")
L4: Final = builtin_profile("l4-qwen8b")
ENGINES: Final = 8
BLOCK_TOKENS: Final = 16
LONG_TOKENS: Final = 12_000
LONG_INTERVAL_SECONDS: Final = 40.0
_SECRET: Final = b"bench"
_ENDLESS_QUEUE: Final = replace(Limits(), queued_requests=10**9, queued_bytes=10**15, queue_seconds=1e9)

Lengths = Callable[[random.Random], tuple[int, int]]


def no_moves(
    instances: Sequence[InstanceStreams], recent: RecentMoves, queued: MemoryWait = NOTHING_QUEUED
) -> MovePlan:
    del instances, recent, queued
    return MovePlan((), "")


def llumnix_moves(
    instances: Sequence[InstanceStreams], recent: RecentMoves, queued: MemoryWait = NOTHING_QUEUED
) -> MovePlan:
    """Returns moves by freeness: free blocks per request, less what the first queued one needs.

    Engines with fewer than three are sources, and drained ones before all. The worst is paired with
    the best of the others, and so on; each pair moves its shortest stream if it fits.
    """
    del recent, queued
    sources = sorted([instance for instance in instances if freeness(instance) < 3.0], key=freeness)
    others = sorted([instance for instance in instances if freeness(instance) >= 3.0], key=freeness, reverse=True)
    moves: list[StreamMove] = []
    for source, destination in zip(sources, others, strict=False):
        movable = [stream for stream in source.running if stream.is_movable]
        stream = min(movable, key=lambda one: one.tokens, default=None)
        if stream is not None and stream.tokens <= _free_tokens(destination):
            moves.append(StreamMove(stream.id, source.id, destination.id, 0.0, 0.0, "it is the shortest"))
    return MovePlan(moves, "")


def freeness(instance: InstanceStreams) -> float:
    """Returns the free blocks per request; less than any other number for a drained instance."""
    if not instance.is_ready:
        return -math.inf
    first = instance.waiting[0].tokens if instance.waiting else 0.0
    return (_free_tokens(instance) - first) / BLOCK_TOKENS / max(1, len(instance.running) + bool(instance.waiting))


def drain_moves(
    instances: Sequence[InstanceStreams], recent: RecentMoves, queued: MemoryWait = NOTHING_QUEUED
) -> MovePlan:
    """Returns moves away from instances that are drained, as gateway workers make them."""
    del recent, queued
    moves: list[StreamMove] = []
    free = {instance.id: _free_tokens(instance) for instance in instances if instance.is_ready}
    for source in instances if free else ():
        profile, running = source.profile, source.running
        for stream in [] if source.is_ready else running:
            step = profile.step_time(
                computed=len(running), sequences=len(running), resident=int(sum(one.tokens for one in running))
            )
            first, prompt = profile.prefill_time(stream.tokens), int(stream.tokens)
            progress = StreamProgress(prompt, 0, first, step, stream.remaining_tokens, None, stream.moves)
            decision = decide_move(progress)
            if stream.is_movable and decision.moves and len(moves) < MOVES_AT_ONCE:
                to = max(free, key=free.__getitem__)
                free[to] -= stream.tokens
                moves.append(StreamMove(stream.id, source.id, to, 0.0, first, decision.reason))
    return MovePlan(moves, "")


def _free_tokens(instance: InstanceStreams) -> float:
    return instance.kv_tokens - sum(stream.tokens for stream in instance.running)


class HeadroomGateway(SingleGateway):
    """Llumnix' dispatch: to the most free memory per request, with headroom for the high tier.

    An engine with requests of the high tier counts as if half of its memory were used besides.
    """

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        assert self._simulation is not None
        free: dict[str, float] = {}
        for name, core in self._simulation.engine_cores.items():
            sequences = core.sequences()
            used = sum([sequence.prompt_tokens + sequence.generated for sequence in sequences])
            room = core.max_sequence_tokens * (0.5 if any(not sequence.priority for sequence in sequences) else 1.0)
            free[name] = (room - used) / max(1, len(sequences))
        self._choices = {request.id: max(free, key=free.__getitem__)}
        return super().route(request, now)


class LeastPrefillGateway(SingleGateway):
    """A preset that sends the high tier only to engines with the least outstanding prefill.

    Why: a request that arrives shares its steps with the prompts that are there. Of eight engines,
    one is nearly always without a prompt.
    """

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        loads = {endpoint.id: load.backlog_seconds for endpoint, load in self._router.endpoint_loads()}
        most = math.inf if request.tenant != "high" else min(loads.values())
        self._unreachable = frozenset([name for name, seconds in loads.items() if seconds > most])
        return super().route(request, now)


TIER_DISPATCHES: Final[Mapping[str, tuple[str, type[SingleGateway]]]] = {
    "least-request": ("least-request", SingleGateway),
    "dual-hash": ("dual-hash", SingleGateway),
    "dual-hash, least prefill for the high tier": ("dual-hash", LeastPrefillGateway),
    "min-ttft": ("min-ttft", SingleGateway),
    "Llumnix' headroom": ("least-request", HeadroomGateway),
}
"""Presets and gateways by name; the first is that of all other cells."""


@dataclass(frozen=True, slots=True)
class BalanceFleet:
    """The engines of a cell, and how requests get there.

    - only_decodes: prompts are computed elsewhere.
    - has_gate: requests pass admission, behind the default policy; otherwise they go at once where
      fewest are.
    - tiers: the tier of each tenant, which is its priority in engines, too.
    - dispatch: one of `TIER_DISPATCHES`, for requests that do not pass admission.
    - link: over which moves might copy KV; the rules are compared with that price, too.
    """

    profile: EngineProfile
    only_decodes: bool = False
    has_gate: bool = False
    tiers: dict[str, int] | None = None
    events: tuple[FleetEvent, ...] = ()
    dispatch: str = "least-request"
    link: KvPullSource | None = None

    def rules(self) -> Mapping[str, tuple[MoveRule, KvPullSource | None]]:
        """Returns the rules that are compared, each with how moved streams get their KV."""
        moving = {"moves": plan_moves} if self.has_gate else {"moves": plan_moves, "Llumnix' rule": llumnix_moves}
        rules: dict[str, tuple[MoveRule, KvPullSource | None]] = {"none": (no_moves, None)}
        rules |= {name: (rule, None) for name, rule in moving.items()}
        if self.link is not None:
            rules |= {f"{name}, copying KV": (rule, self.link) for name, rule in moving.items()}
        return rules

    def run(
        self,
        requests: Sequence[TraceRequest],
        rule: MoveRule,
        interval_seconds: float = MOVE_SECONDS,
        pull: KvPullSource | None = None,
    ) -> "BalanceRun":
        """Returns the results of one run; ``pull``: see ``rules``."""
        names = [f"sim-{number}/0/0" for number in range(ENGINES)]
        preset, make = TIER_DISPATCHES[self.dispatch]
        model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=5.0), "dual-hash" if self.has_gate else preset)
        router = ModelRouter(secret=_SECRET)
        router.update(model, instances_of(names, self.profile))
        prompts = TracePromptCache(BLOCK_TOKENS, secret=_SECRET, seed=model.key.encode())
        gateway = make(router, prompts.prefix_chain, {}, model, self.profile, never_queues=True)
        if self.has_gate:
            gate = AdmissionPolicy(_ENDLESS_QUEUE, separate_long=True)
            classes = RequestClasses(max_tokens=8_192)
            gateway = AdmissionControlledGateway(router, prompts.prefix_chain, model, self.profile, gate, classes)
        balance = BalanceOptions(rule, interval_seconds, self.tiers or {}, pull=pull)
        front = BalancedGateway(gateway, balance)
        options = FleetOptions(
            names,
            self.profile,
            BLOCK_TOKENS,
            reserve_tokens=0,
            prefilled_elsewhere=self.only_decodes,
            priorities=self.tiers,
            move_pull=pull,
        )
        simulation = FleetSimulation(front, options, prompts=prompts)
        schedule_events(self.events, simulation)
        results = simulation.run(requests)
        first = 0 if self.only_decodes else sum(result.prompt_tokens - result.cached_tokens for result in results)
        total = sum(result.prompt_tokens + result.output_tokens for result in results)
        return BalanceRun(results, (simulation.prefilled_tokens - first) / total, front.moves)


@dataclass(frozen=True, slots=True)
class BalanceRun:
    """The results of one run.

    recomputed_share: tokens computed again, after moves and preemptions, of all tokens.
    """

    results: Sequence[RequestResult]
    recomputed_share: float
    moves: int


def reasoning_lengths(draw: random.Random) -> tuple[int, int]:
    """Returns prompt and answer tokens; the maximum is 16,384 tokens."""
    return answer_lengths(draw)[0], max(1, min(16_384, int(draw.lognormvariate(6.9, 1.2))))


def poisson_arrivals(lengths: Lengths, rate: float, seed: int, count: int) -> list[TraceRequest]:
    draw = random.Random(seed)
    return draw_arrivals(draw, rate, [lengths(draw) for _ in range(count)])


def _p99(values: Iterable[float | None]) -> float:
    return quantile(sorted([value for value in values if value is not None]), 0.99)


def load_rows(
    wanted: Goals, name: str, fleet: BalanceFleet, traffic: Sequence[Sequence[TraceRequest]]
) -> Iterator[ResultRow]:
    """Yields rows on decoding, preemptions and recomputation, without moves and with each rule.

    traffic: of each seed.
    """
    found: dict[str, tuple[float, float, float, float, float]] = {}
    for rule_name, (rule, pull) in fleet.rules().items():
        runs = [fleet.run(requests, rule, pull=pull) for requests in traffic]
        served = [result for run in runs for result in without_warmup(run.results)]
        found[rule_name] = (
            _p99(result.tpot_seconds for result in served),
            _p99(result.ttft_seconds for result in served),
            sum(result.preemptions for result in served) / len(served),
            sum(run.recomputed_share for run in runs) / len(runs),
            sum(run.moves for run in runs) / sum(len(run.results) for run in runs),
        )
    none = found.pop("none")
    yield wanted.value(f"{name}: preemptions per request: none", "share", none[2])
    yield wanted.value(f"{name}: recomputed tokens: none", "share", none[3])
    for rule_name, (tpot, ttft, preempted, recomputed, moved) in found.items():
        yield wanted.ratio(f"{name}: p99 TPOT: {rule_name} ÷ none", "s", tpot, "none", none[0])
        yield wanted.ratio(f"{name}: preemptions: {rule_name} ÷ none", "share", preempted, "none", none[2])
        yield wanted.ratio(f"{name}: p99 TTFT: {rule_name} ÷ none", "s", ttft, "none", none[1])
        yield wanted.value(f"{name}: recomputed tokens: {rule_name}", "share", recomputed)
        yield wanted.value(f"{name}: moves per request: {rule_name}", "share", moved)


def long_rows(wanted: Goals, seeds: Sequence[int], count: int, *, has_gate: bool = False) -> Iterator[ResultRow]:
    """Yields rows of long prompts that come every 40 s into a fragmented fleet."""
    name, fleet = "long, admission" if has_gate else "long", BalanceFleet(L4, has_gate=has_gate)
    alone = fleet.run([TraceRequest("p0", 0.0, LONG_TOKENS, 64, ())], no_moves).results[0].ttft_seconds or 0.0
    traffic = [poisson_arrivals(answer_lengths, 1.95, seed, count) for seed in seeds]
    for rule_name, (rule, _) in fleet.rules().items():
        long: list[float] = []
        chats: list[RequestResult] = []
        recomputed = 0.0
        for requests in traffic:
            long_count = int((requests[-1].arrival - 160.0) / LONG_INTERVAL_SECONDS)
            probes = [
                TraceRequest(f"p{number}", 150.0 + LONG_INTERVAL_SECONDS * number, LONG_TOKENS, 64, ())
                for number in range(long_count)
            ]
            run = fleet.run([*requests, *probes], rule)
            recomputed += run.recomputed_share / len(seeds)
            results = run.results
            long += [result.ttft_seconds or 0.0 for result in results[len(requests) :]]
            chats += without_warmup(results[: len(requests)])
        long.sort()
        for what, value in (("median", quantile(long, 0.5)), ("mean", sum(long) / len(long))):
            metric = f"{name}: {what} TTFT ÷ that of an empty engine: {rule_name}"
            yield wanted.ratio(metric, "s", value, "empty", alone)
        yield wanted.value(f"{name}: recomputed tokens: {rule_name}", "share", recomputed)
        yield wanted.value(f"{name}: p99 TTFT of chats: {rule_name}", "s", _p99(one.ttft_seconds for one in chats))
        yield wanted.value(f"{name}: p99 TPOT of chats: {rule_name}", "s", _p99(one.tpot_seconds for one in chats))


def tier_rows(wanted: Goals, seeds: Sequence[int], count: int) -> Iterator[ResultRow]:
    """Yields rows of the high tier with the low tier and without it, and the price of the low one.

    Without the low tier, requests are dispatched in the same way.
    """
    traffic = []
    for seed in seeds:
        draw = random.Random(seed)
        requests = draw_arrivals(draw, 30.0, [answer_lengths(draw) for _ in range(count)])
        traffic.append([replace(one, tenant="high" if draw.random() < 0.1 else "low") for one in requests])
    for dispatch in TIER_DISPATCHES:
        fleet = BalanceFleet(A100, tiers={"high": 0, "low": 1}, dispatch=dispatch)
        is_usual = dispatch == "least-request"
        rules = fleet.rules() if is_usual else {"moves": (plan_moves, None)}
        name = "tiers" if is_usual else f"tiers, {dispatch}"
        alone = _by_tier(fleet, [[one for one in requests if one.tenant == "high"] for requests in traffic], no_moves)
        for rule_name, (rule, _) in rules.items():
            found = _by_tier(fleet, traffic, rule)
            for what, (value, reference) in {
                "p99 TTFT": (found["high"][0], alone["high"][0]),
                "p99 TPOT": (found["high"][1], alone["high"][1]),
            }.items():
                metric = f"{name}: {what} of the high tier ÷ alone: {rule_name}"
                yield wanted.ratio(metric, "s", value, "alone", reference)
            yield wanted.value(f"{name}: p99 TTFT of the low tier: {rule_name}", "s", found["low"][0])


def _by_tier(
    fleet: BalanceFleet, traffic: Sequence[Sequence[TraceRequest]], rule: MoveRule
) -> dict[str, tuple[float, float]]:
    """Returns p99 of TTFT and TPOT by tenant."""
    served: dict[str, list[RequestResult]] = {}
    for requests in traffic:
        tenants = {one.id: one.tenant or "" for one in requests}
        for result in without_warmup(fleet.run(requests, rule).results):
            served.setdefault(tenants[result.id], []).append(result)
    return {
        tenant: (_p99(one.ttft_seconds for one in results), _p99(one.tpot_seconds for one in results))
        for tenant, results in served.items()
    }


def drain_rows(wanted: Goals, seeds: Sequence[int]) -> Iterator[ResultRow]:
    """Yields rows of an engine that is drained after a minute of chats."""
    event = FleetEvent(60.0, FleetEventKind.DRAIN, "sim-0/0/0")
    fleet = BalanceFleet(A100, events=(event,))
    for rule_name, rule in (("none", no_moves), ("moves", drain_moves)):
        seconds: list[float] = []
        streams: list[int] = []
        moved = failed = 0
        for seed in seeds:
            left = _LeaveTimes(rule)
            run = fleet.run(poisson_arrivals(answer_lengths, 25.0, seed, 2_000), left.plan, MOVE_INTERVAL_SECONDS)
            seconds.append(left.empty_at - event.at)
            streams.append(left.streams)
            moved += run.moves
            failed += sum(result.error is not None for result in run.results)
        yield wanted.value(f"drain: streams at its begin, at least: {rule_name}", "", min(streams))
        yield wanted.value(f"drain: seconds until the engine is empty, at most: {rule_name}", "s", max(seconds))
        yield wanted.value(f"drain: moves: {rule_name}", "", moved)
        yield wanted.value(f"drain: failed streams: {rule_name}", "", failed)


class _LeaveTimes:
    """A rule that notes when the last stream of a drained engine was there."""

    def __init__(self, rule: MoveRule) -> None:
        self._rule = rule
        self._plans = 0
        self.streams = 0
        self.empty_at = 0.0

    def plan(self, instances: Sequence[InstanceStreams], recent: RecentMoves, queued: MemoryWait) -> MovePlan:
        """Returns the rule's plan."""
        self._plans += 1
        left = sum(len(instance.running) for instance in instances if not instance.is_ready)
        if left:
            self.streams = self.streams or left
            self.empty_at = (self._plans + 1) * MOVE_INTERVAL_SECONDS
        return self._rule(instances, recent, queued)


def main(arguments: list[str]) -> int:
    """Measures, writes and prints. A goal that does not hold stays in the table."""
    given = parse_options("balance", "Moves of running streams.", arguments, requests=6_000, seeds=[101, 102, 103])
    seeds, count, wanted = given.seeds, given.requests, load_goals("balance")
    rows: list[ResultRow] = []
    for rate in (30.0, 32.0):
        traffic = [poisson_arrivals(answer_lengths, rate, seed, count) for seed in seeds]
        rows += load_rows(wanted, f"chat at {rate:g}/s", BalanceFleet(A100), traffic)
    rows += load_rows(wanted, "chat at 32/s, admission", BalanceFleet(A100, has_gate=True), traffic)
    traffic = [poisson_arrivals(reasoning_lengths, 26.0, seed, count) for seed in seeds]
    rows += load_rows(wanted, "reasoning at 26/s", BalanceFleet(H100, only_decodes=True), traffic)
    rows += long_rows(wanted, seeds, count // 4)
    rows += long_rows(wanted, seeds, count // 4, has_gate=True)
    rows += tier_rows(wanted, seeds, count // 2)
    rows += drain_rows(wanted, seeds)
    write_results("balance", rows, seed=seeds[0], file=given.out, more={"seeds": seeds})
    return 0
