"""Moves of running streams between simulated engines: preemptions, and room for long requests.

    python -m fairlead_bench balance [--out out/bench/balance.json] [--requests 6000]
                                     [--seeds 101,102,103]

Eight engines behind one gateway. A moved stream stops, and another engine computes its prompt and
tokens again. Rates and constants were chosen with seeds 1 to 3.

- *Chat*: prompts and answers of the memory rows of `scheduling`, on engines of 120,000 tokens.
- *Reasoning*: answers of 1,000 tokens in the median, some of 16,000, on engines that only decode.
- *Long*: prompts of 12,000 tokens among chats, on engines of 28,672 tokens that are 85 % full.
- *Tiers*: a tenth of the chats goes first, in engines too, at nine tenths of the highest rate.
- *Drain*: an engine leaves after a minute. `decide_move` of the gateway chooses what moves.

Llumnix' rule is that of its code (arXiv 2406.03243), with computation in place of its copies.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Model, SloTargets
from fairlead.limits import Limits
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_bench.scheduling import A100, answer_lengths, draw_arrivals
from fairlead_gateway.admission.admission_policy import AdmissionPolicy
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
    QueuedRequests,
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
    instances: Sequence[InstanceStreams], recent: RecentMoves, queued: QueuedRequests = NOTHING_QUEUED
) -> MovePlan:
    del instances, recent, queued
    return MovePlan((), "")


def llumnix_moves(
    instances: Sequence[InstanceStreams], recent: RecentMoves, queued: QueuedRequests = NOTHING_QUEUED
) -> MovePlan:
    """Returns moves by freeness: free blocks per request, less what the first queued one needs.

    Engines with fewer than three are sources. The worst is paired with the best of the others, and
    so on; each pair moves its shortest stream if it fits.
    """
    del recent, queued
    ready = [instance for instance in instances if instance.is_ready]
    sources = sorted([instance for instance in ready if freeness(instance) < 3.0], key=freeness)
    others = sorted([instance for instance in ready if freeness(instance) >= 3.0], key=freeness, reverse=True)
    moves: list[StreamMove] = []
    for source, destination in zip(sources, others, strict=False):
        movable = [stream for stream in source.running if stream.is_movable]
        stream = min(movable, key=lambda one: one.tokens, default=None)
        if stream is not None and stream.tokens <= _free_tokens(destination):
            moves.append(StreamMove(stream.id, source.id, destination.id, 0.0, 0.0, "it is the shortest"))
    return MovePlan(moves, "")


def freeness(instance: InstanceStreams) -> float:
    """Returns the free blocks per request."""
    first = instance.waiting[0].tokens if instance.waiting else 0.0
    return (_free_tokens(instance) - first) / BLOCK_TOKENS / max(1, len(instance.running) + bool(instance.waiting))


def drain_moves(
    instances: Sequence[InstanceStreams], recent: RecentMoves, queued: QueuedRequests = NOTHING_QUEUED
) -> MovePlan:
    """Returns moves away from instances that are drained, as gateway workers make them."""
    del recent, queued
    moves: list[StreamMove] = []
    ready = [instance for instance in instances if instance.is_ready]
    for source in instances:
        profile, running = source.profile, source.running
        for stream in [] if source.is_ready else running:
            step = profile.step_time(
                computed=len(running), sequences=len(running), resident=int(sum(one.tokens for one in running))
            )
            first, prompt = profile.prefill_time(stream.tokens), int(stream.tokens)
            progress = StreamProgress(prompt, 0, first, step, stream.remaining_tokens, None, stream.moves)
            decision = decide_move(progress)
            if stream.is_movable and decision.moves and len(moves) < MOVES_AT_ONCE:
                to = max(ready, key=_free_tokens)
                moves.append(StreamMove(stream.id, source.id, to.id, 0.0, first, decision.reason))
    return MovePlan(moves, "")


def _free_tokens(instance: InstanceStreams) -> float:
    return instance.kv_tokens - sum(stream.tokens for stream in instance.running)


@dataclass(frozen=True, slots=True)
class BalanceFleet:
    """The engines of a cell, and how requests get there.

    - only_decodes: prompts are computed elsewhere.
    - has_gate: requests pass admission, behind the default policy; otherwise they go at once where
      fewest are.
    - tiers: the tier of each tenant, which is its priority in engines, too.
    """

    profile: EngineProfile
    only_decodes: bool = False
    has_gate: bool = False
    tiers: dict[str, int] | None = None
    events: tuple[FleetEvent, ...] = ()

    def rules(self) -> Mapping[str, MoveRule]:
        """Returns the rules that are compared."""
        others = {} if self.has_gate else {"Llumnix' rule": llumnix_moves}
        return {"none": no_moves, "moves": plan_moves} | others

    def run(
        self, requests: Sequence[TraceRequest], rule: MoveRule, interval_seconds: float = MOVE_SECONDS
    ) -> "BalanceRun":
        """Returns the results of one run."""
        names = [f"sim-{number}/0/0" for number in range(ENGINES)]
        preset = "dual-hash" if self.has_gate else "least-request"
        model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=5.0), preset)
        router = ModelRouter(secret=_SECRET)
        router.update(model, instances_of(names, self.profile))
        prompts = TracePromptCache(BLOCK_TOKENS, secret=_SECRET, seed=model.key.encode())
        gateway = SingleGateway(router, prompts.prefix_chain, {}, model, self.profile, never_queues=True)
        if self.has_gate:
            gate = AdmissionPolicy(_ENDLESS_QUEUE, separate_long=True)
            classes = RequestClasses(max_tokens=8_192)
            gateway = AdmissionControlledGateway(router, prompts.prefix_chain, model, self.profile, gate, classes)
        balance = BalanceOptions(rule, interval_seconds, self.tiers or {})
        front = BalancedGateway(gateway, self.profile, balance)
        options = FleetOptions(
            names,
            self.profile,
            BLOCK_TOKENS,
            reserve_tokens=0,
            prefilled_elsewhere=self.only_decodes,
            priorities=self.tiers,
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


def _arrivals(lengths: Lengths, rate: float, seed: int, count: int) -> list[TraceRequest]:
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
    for rule_name, rule in fleet.rules().items():
        runs = [fleet.run(requests, rule) for requests in traffic]
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
    traffic = [_arrivals(answer_lengths, 1.95, seed, count) for seed in seeds]
    for rule_name, rule in fleet.rules().items():
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
    """Yields rows of the high tier's TTFT, with the low tier and without it."""
    tiers = {"high": 0, "low": 1}
    fleet = BalanceFleet(A100, tiers=tiers)
    traffic = []
    for seed in seeds:
        draw = random.Random(seed)
        requests = draw_arrivals(draw, 30.0, [answer_lengths(draw) for _ in range(count)])
        traffic.append([replace(one, tenant="high" if draw.random() < 0.1 else "low") for one in requests])

    def high(rule: MoveRule, *, alone: bool) -> float:
        served: list[RequestResult] = []
        for requests in traffic:
            some = [one for one in requests if one.tenant == "high"] if alone else requests
            names = {one.id for one in requests if one.tenant == "high"}
            served += [one for one in without_warmup(fleet.run(some, rule).results) if one.id in names]
        return _p99(one.ttft_seconds for one in served)

    alone = high(no_moves, alone=True)
    for rule_name, rule in fleet.rules().items():
        metric = f"tiers: p99 TTFT of the high tier ÷ alone: {rule_name}"
        yield wanted.ratio(metric, "s", high(rule, alone=False), "alone", alone)


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
            run = fleet.run(_arrivals(answer_lengths, 25.0, seed, 2_000), left.plan, MOVE_INTERVAL_SECONDS)
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

    def plan(self, instances: Sequence[InstanceStreams], recent: RecentMoves, queued: QueuedRequests) -> MovePlan:
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
        traffic = [_arrivals(answer_lengths, rate, seed, count) for seed in seeds]
        rows += load_rows(wanted, f"chat at {rate:g}/s", BalanceFleet(A100), traffic)
    rows += load_rows(wanted, "chat at 32/s, admission", BalanceFleet(A100, has_gate=True), traffic)
    traffic = [_arrivals(reasoning_lengths, 26.0, seed, count) for seed in seeds]
    rows += load_rows(wanted, "reasoning at 26/s", BalanceFleet(H100, only_decodes=True), traffic)
    rows += long_rows(wanted, seeds, count // 4)
    rows += long_rows(wanted, seeds, count // 4, has_gate=True)
    rows += tier_rows(wanted, seeds, count // 2)
    rows += drain_rows(wanted, seeds)
    write_results("balance", rows, seed=seeds[0], file=given.out, more={"seeds": seeds})
    return 0
