"""Simulated gateways: several that share, late binding among them, and the gate before one."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.admission.admission_policy import AdmissionPolicy
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind, schedule_events
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import ENGINE_LOST, QUEUED, FleetOptions, FleetSimulation
from fairlead_sim.gateways.admission_gate import AdmissionControlledGateway, RequestClasses, TenantClass
from fairlead_sim.gateways.gateway_cluster import (
    NO_SHARING,
    PERFECT_KNOWLEDGE,
    ClusterOptions,
    GatewayCluster,
    GatewayRestart,
    SharingOptions,
)
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, RoutingOptions, SingleGateway, instances_of
from fairlead_sim.workload.generators import agent_sessions
from fairlead_sim.workload.trace_prompts import TracePromptCache, trace_keys
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest
from fairlead_testing.fleet_faults.runner import InvariantChecker
from fairlead_testing.pytest_hooks.nightly import shortened

ENGINES = ("e-0", "e-1", "e-2", "e-3")
SHORT = replace(builtin_profile("tiny-cpu"), kv_tokens=24_000)
LONG = replace(builtin_profile("l4-qwen8b").sped_up(2.0), kv_tokens=40_000)


def gateways(
    number: int,
    knowledge: SharingOptions,
    *,
    profile: EngineProfile = SHORT,
    seed: int = 0,
    by_session: bool = False,
    restart: GatewayRestart | None = None,
) -> GatewayCluster:
    fleet = FleetOptions(ENGINES, profile, 16)
    routing = RoutingOptions(SloTargets(), f"secret {seed}".encode(), seed)
    return GatewayCluster(fleet, routing, ClusterOptions(number, knowledge, by_session, restart))


def served(
    number: int,
    knowledge: SharingOptions,
    *,
    profile: EngineProfile = SHORT,
    sessions: int = 20,
    seed: int = 0,
    **how: Any,
) -> list[RequestResult]:
    front = gateways(number, knowledge, profile=profile, seed=seed, **how)
    simulation = FleetSimulation(front, FleetOptions(ENGINES, profile, 16, publishes_kv_events=knowledge.index))
    return simulation.run_sessions(
        agent_sessions(sessions, seed=seed), concurrency=10, round_trip_seconds=0.01, seed=seed
    )


def cached_tokens_of(simulation: FleetSimulation, request: TraceRequest) -> int:
    keys = trace_keys(request.blocks, request.prompt_tokens, 16)
    return 16 * max(len(core.pool.match(keys, len(keys))) for core in simulation.engine_cores.values())


def cached(runs: Sequence[Sequence[RequestResult]]) -> float:
    every = [request for run in runs for request in run]
    return sum(request.cached_tokens for request in every) / sum(request.prompt_tokens for request in every)


def mean(number: int, knowledge: SharingOptions, seeds: int = shortened(4, 2), **how: Any) -> float:
    return cached([served(number, knowledge, seed=seed, **how) for seed in range(seeds)])


def test_equal_arguments_give_equal_results() -> None:
    knowledge = SharingOptions(index=True)
    assert served(3, knowledge, restart=GatewayRestart(1, 50)) == served(3, knowledge, restart=GatewayRestart(1, 50))


def test_one_gateway_is_the_same_whatever_it_would_tell() -> None:
    assert served(1, SharingOptions()) == served(1, NO_SHARING)


def test_every_request_is_answered_while_a_gateway_is_restarted() -> None:
    for knowledge in (NO_SHARING, SharingOptions(), SharingOptions(index=True), PERFECT_KNOWLEDGE):
        assert all(
            request.error is None and request.finish is not None
            for request in served(3, knowledge, restart=GatewayRestart(0, 40))
        )


def test_stale_loads_do_not_divert_short_requests_from_their_caches() -> None:
    shared, apart = mean(3, SharingOptions(), 4), mean(3, NO_SHARING, 4)
    assert shared > apart - 0.03  # who hears nothing of others keeps to the homes, which serves such traffic best
    assert shared > mean(3, SharingOptions(loads=False), 4) - 0.03
    assert mean(3, SharingOptions(raw_loads=True), 4) < apart - 0.03, "this is no case to tell the difference by"


def test_three_gateways_that_share_find_what_one_finds() -> None:
    single = mean(1, NO_SHARING, profile=LONG, sessions=40)
    shared, apart = (
        mean(3, SharingOptions(), profile=LONG, sessions=40),
        mean(3, NO_SHARING, profile=LONG, sessions=40),
    )
    assert shared > single - 0.02
    assert shared > apart + 0.015


def test_a_restarted_gateway_goes_on_from_what_others_kept() -> None:
    restart = GatewayRestart(0, 100)
    single = mean(1, NO_SHARING, profile=LONG, sessions=40, restart=restart)
    shared = mean(3, SharingOptions(), profile=LONG, sessions=40, restart=restart)
    assert shared > single


def test_evicted_blocks_are_not_expected_in_the_cache() -> None:
    """The gateways overestimate the engines' memory by a factor of twenty."""
    slow = builtin_profile("l4-qwen8b").sped_up(0.1)  # other gateways' prompts count as on their way for half a minute
    wrong, real = replace(slow, kv_tokens=160_000), replace(slow, kv_tokens=8_000)
    believed = {False: 0.0, True: 0.0}
    seeds = shortened([0, 1, 2, 3], [3])
    for seed, knowledge in product(seeds, (SharingOptions(), SharingOptions(index=True))):
        front = gateways(3, knowledge, profile=wrong, seed=seed)
        simulation = FleetSimulation(front, FleetOptions(ENGINES, real, 16, publishes_kv_events=knowledge.index))
        sessions = agent_sessions(40, seed=seed)
        simulation.run_sessions(sessions, concurrency=10, round_trip_seconds=0.01, seed=seed)
        lasts = [session[-1] for session in sessions]
        truth = [cached_tokens_of(simulation, request) for request in lasts]
        believed[knowledge.index] += sum(
            max(0.0, front.believed_cached_tokens(request) - there) for request, there in zip(lasts, truth, strict=True)
        )
    assert believed[False] > 20_000 * len(seeds)
    assert believed[True] < 0.45 * believed[False], believed


def test_sessions_that_stay_at_a_gateway_need_less_sharing() -> None:
    assert mean(3, NO_SHARING, by_session=True) > mean(3, NO_SHARING) - 0.02
    runs = [served(3, SharingOptions(), by_session=True, seed=seed) for seed in range(2)]
    assert all(request.error is None for run in runs for request in run)


def test_no_gateways_cannot_answer() -> None:
    with pytest.raises(BadInput, match="0 gateways"):
        served(0, NO_SHARING)


LATE_BINDING_ENGINES = ("e-0", "e-1")
PROFILE = builtin_profile("l4-qwen8b")
AT = 1.0


def crowd(count: int) -> list[TraceRequest]:
    """Returns prompts of half a second each that share nothing and arrive at once."""
    tokens = int(0.5 / PROFILE.prefill_token_seconds)
    return [TraceRequest(f"r{number}", 0.0, tokens, 4, (1000 * number,), None) for number in range(count)]


class Fleet:
    """Gateways in front of two engines, with checked invariants and an event at ``AT`` seconds."""

    def __init__(
        self,
        gateways: int,
        rule: str = "dual-hash",
        happens: Callable[["Fleet", float], None] | None = None,
        choices: Mapping[str, str] | None = None,
    ) -> None:
        fleet = FleetOptions(LATE_BINDING_ENGINES, PROFILE, 16, publishes_kv_events=True)
        routing = RoutingOptions(SloTargets(), b"secret", preset=rule, choices=choices or {})
        self.front = GatewayCluster(fleet, routing, ClusterOptions(gateways, SharingOptions(index=True)))
        self.guard = InvariantChecker(
            self.front,
            LATE_BINDING_ENGINES,
            counts=self._counts,
            queues_requests=True,
            reachable=lambda request, live: [name for name in live if name not in self.front.unreachable_for(request)],
            last_arrival=0.0,
        )
        self.simulation = FleetSimulation(self.guard, fleet)
        self.waiting: list[str] = []
        self.at_engines: Counter[str] = Counter()
        self.simulation.schedule(AT, self._sample)
        if happens is not None:
            self.simulation.schedule(AT, partial(happens, self))

    def serve(self, count: int) -> list[RequestResult]:
        served = self.simulation.run(crowd(count))
        self.guard.check_end()
        assert self.guard.violations == []
        return served

    def _counts(self) -> list[tuple[str, int, int, float, float]]:
        return [
            (name, load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
            for loads in self.front.loads()
            for name, load in loads.items()
        ]

    def _sample(self, now: float) -> None:
        for flight in self.simulation.all_requests():
            if flight.instance == QUEUED:
                self.waiting.append(flight.request.id)
            elif flight.first_token_at is None:
                self.at_engines[flight.instance or ""] += 1


def whole(served: Sequence[RequestResult]) -> list[RequestResult]:
    return [request for request in served if request.error is None]


def test_each_gateway_sends_what_an_engine_can_begin_and_holds_the_rest() -> None:
    single, three, at_once = Fleet(1), Fleet(3), Fleet(3, "round-robin")
    for fleet in (single, three, at_once):
        assert len(whole(fleet.serve(24))) == 24
    assert single.at_engines == {"e-0": 1, "e-1": 1}
    assert three.at_engines == {"e-0": 3, "e-1": 3}, "one of each: nobody counts what others keep"
    assert len(single.waiting) > len(three.waiting) > 10
    assert at_once.waiting == []


def test_replayed_choices_are_kept_and_held_by_their_gateways() -> None:
    fleet = Fleet(3, choices={request.id: "e-0" for request in crowd(24)})
    served = fleet.serve(24)
    assert {request.instance for request in served} == {"e-0"}
    assert fleet.at_engines == {"e-0": 3}


def test_dualmap_holds_as_live_gateways_hold_it_and_moves_nothing() -> None:
    fleet = Fleet(3, "dualmap")
    served = whole(fleet.serve(24))
    assert len(served) == 24
    assert fleet.waiting
    assert all(request.retries == 0 for request in served)


def lose(fleet: Fleet, now: float) -> None:
    fleet.simulation.lose_engine("e-0", now)


def drain(fleet: Fleet, now: float) -> None:
    fleet.simulation.cordon_engine("e-0", now)


def cut_off(fleet: Fleet, now: float) -> None:
    fleet.front.set_unreachable(0, frozenset({"e-0"}), now)


def kill(fleet: Fleet, now: float) -> None:
    fleet.front.kill_gateway(0, now)


@pytest.mark.parametrize("happens", [lose, drain, cut_off, kill])
@pytest.mark.parametrize("gateways", [1, 3])
def test_held_requests_are_answered_once_under_all_events(
    happens: Callable[[Fleet, float], None], gateways: int
) -> None:
    fleet = Fleet(gateways, happens=happens)
    served = fleet.serve(30)
    kept = [request for request in served if request.id in fleet.waiting]
    assert len(kept) > 10
    assert whole(kept) == kept, "who had not begun is answered"
    assert all(request.error in (None, ENGINE_LOST) for request in served)
    assert sum(request.retries for request in kept) > 0
    if happens in (lose, drain):
        assert all(request.instance == "e-1" for request in kept)


def test_a_request_is_rerouted_by_the_gateway_that_holds_it() -> None:
    of: dict[str, tuple[int, int]] = {}

    def note(fleet: Fleet, now: float) -> None:
        before = {request: id(its) for request, its in fleet.front._gateway_of.items()}
        fleet.simulation.cordon_engine("e-0", now)
        after = {request: id(its) for request, its in fleet.front._gateway_of.items()}
        of.update({request: (before[request], after[request]) for request in before})

    served = Fleet(3, happens=note).serve(30)
    again = [request.id for request in served if request.retries]
    assert len({of[request_id][0] for request_id in again}) == 3
    assert all(of[request_id][0] == of[request_id][1] for request_id in again)


def test_a_killed_gateway_sends_nothing_any_more() -> None:
    sent: list[str] = []

    def end(fleet: Fleet, now: float) -> None:
        send, dying = fleet.simulation.send_queued_request, frozenset(fleet.waiting)

        def record_send(request_id: str, instance: str, now: float) -> None:
            sent.append(request_id)
            send(request_id, instance, now)

        fleet.simulation.send_queued_request = record_send  # type: ignore[method-assign]
        fleet.front.kill_gateway(0, now)
        assert not dying & set(sent), "the new one chooses, and sends what can begin as it arrives"

    served = Fleet(1, happens=end).serve(12)
    assert {request.error for request in served if request.retries} == {None}
    assert sent, "the new one keeps what cannot begin"


H100 = builtin_profile("h100-llama8b")
NAMES = [f"sim-{number}/0/0" for number in range(8)]


def objective(request: TraceRequest) -> float:
    return 0.25 if request.prompt_tokens <= 2_000 else 4.0


def traffic(load: float, requests: int = shortened(2_000, 1_200)) -> list[TraceRequest]:
    draw = random.Random(7)
    sizes = [draw.randint(200, 2_000) if draw.random() < 0.88 else draw.randint(8_000, 16_000) for _ in range(requests)]
    rate, at, trace = load * len(NAMES) * requests / sum(H100.prefill_time(size) for size in sizes), 0.0, []
    for number, size in enumerate(sizes):
        at += draw.expovariate(rate)
        blocks = tuple(range(number * 64, number * 64 + size // TRACE_BLOCK_TOKENS))
        trace.append(TraceRequest(f"r{number}", at, size, 16, blocks, tenant="ab"[number % 2]))
    return trace


def served_with_gate(
    requests: list[TraceRequest], *, gated: bool, limits: Limits | None = None, script: tuple[FleetEvent, ...] = ()
) -> list[RequestResult]:
    model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=4.0))
    router = ModelRouter(secret=b"secret")
    router.update(model, instances_of(NAMES, H100))
    prompts = TracePromptCache(TRACE_BLOCK_TOKENS, secret=b"secret", seed=model.key.encode())
    front: SingleGateway = SingleGateway(router, prompts.prefix_chain, {}, model, H100, never_queues=True)
    if gated:
        tenants = {"a": TenantClass(), "b": TenantClass(tier=1, sheddable=True)} if limits is None else {}
        gate = AdmissionPolicy(limits or Limits())
        classes = RequestClasses(objective, tenants)
        front = AdmissionControlledGateway(router, prompts.prefix_chain, model, H100, gate, classes)
    course = FleetSimulation(front, FleetOptions(NAMES, H100, TRACE_BLOCK_TOKENS), prompts=prompts)
    schedule_events(script, course)
    return course.run(requests)


def shares(requests: list[TraceRequest], ones: list[RequestResult]) -> tuple[float, float]:
    kept: tuple[list[bool], list[bool]] = ([], [])
    for request, reply in zip(requests, ones, strict=True):
        assert reply.ttft_seconds is not None
        kept[objective(request) > 1.0].append(reply.ttft_seconds <= objective(request))
    return sum(kept[0]) / len(kept[0]), sum(kept[1]) / len(kept[1])


def test_only_with_the_gate_both_classes_keep_their_objectives() -> None:
    requests, plenty = traffic(0.85), replace(Limits(), queue_seconds=1e6)
    assert min(shares(requests, served_with_gate(requests, gated=False))) < 0.85
    assert min(shares(requests, served_with_gate(requests, gated=True, limits=plenty))) >= 0.9


@pytest.mark.nightly
def test_the_gate_plans_memory_so_that_an_engine_hardly_preempts() -> None:
    """The engine admits by the prompt alone, and clients allow 8,192 tokens."""
    profile = replace(builtin_profile("a100-qwen7b"), kv_tokens=120_000)
    ample = replace(Limits(), queued_requests=10**9, queued_bytes=10**15, queue_seconds=1e9)
    model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=4.0))
    served: dict[bool, list[RequestResult]] = {False: [], True: []}
    for seed, gated in product((11, 12, 13), served):
        router = ModelRouter(secret=b"bench")
        router.update(model, instances_of(NAMES[:1], profile))
        prompts = TracePromptCache(16, secret=b"bench", seed=model.key.encode())
        front: SingleGateway = SingleGateway(router, prompts.prefix_chain, {}, model, profile, never_queues=True)
        if gated:
            gate, classes = AdmissionPolicy(ample, separate_long=True), RequestClasses(max_tokens=8_192)
            front = AdmissionControlledGateway(router, prompts.prefix_chain, model, profile, gate, classes)
        fleet = FleetOptions(NAMES[:1], profile, 16, reserve_tokens=0)
        served[gated] += FleetSimulation(front, fleet, prompts=prompts).run(chats(3.5, seed))[300:]
    without, planned = [sum(reply.preemptions for reply in replies) for replies in served.values()]
    assert planned <= min(0.25 * without, 0.005 * len(served[True]))
    good = [
        sum((reply.ttft_seconds or 9.0) <= 5.0 and (reply.tpot_seconds or 0.0) <= 0.1 for reply in replies)
        for replies in served.values()
    ]
    assert good[1] >= 0.99 * good[0]


def chats(rate: float, seed: int, requests: int = 2_000) -> list[TraceRequest]:
    """Chats of which 15 % reason at length."""
    draw, at, sizes = random.Random(seed), 0.0, []
    for _ in range(requests):
        prompt = min(8_000, max(16, int(draw.lognormvariate(6.6, 0.9))))
        output = draw.lognormvariate(7.6, 0.5) if draw.random() < 0.15 else draw.lognormvariate(5.0, 0.9)
        sizes.append((prompt, max(1, min(8_192, int(output)))))
    trace = []
    for number, (prompt, output) in enumerate(sizes):
        at += draw.expovariate(rate)
        trace.append(TraceRequest(f"r{number}", at, prompt, output, ()))
    return trace


def test_held_requests_survive_the_loss_of_an_engine() -> None:
    requests = traffic(0.9, 600)
    loss = (FleetEvent(requests[300].arrival, FleetEventKind.LOSE, NAMES[0]),)
    ones = served_with_gate(requests, gated=True, limits=Limits(), script=loss)
    cut = [reply for reply in ones if reply.error is not None]
    assert all(reply.error == ENGINE_LOST for reply in cut)
    assert len(cut) < 20


def test_in_overload_the_sheddable_tier_is_refused_and_the_other_is_served() -> None:
    requests = traffic(1.5)
    ones = served_with_gate(requests, gated=True)
    refused = [
        request.tenant for request, reply in zip(requests, ones, strict=True) if reply.error in ("shed", "shed-late")
    ]
    assert len(refused) > 100
    assert set(refused) == {"b"}
    dear = [(r, reply) for r, reply in zip(requests, ones, strict=True) if r.tenant == "a"]
    kept = sum(reply.ttft_seconds is not None and reply.ttft_seconds <= objective(r) for r, reply in dear)
    assert kept >= 0.9 * len(dear)


def test_an_engine_that_restarts_has_an_empty_cache_and_loses_no_request() -> None:
    front = gateways(1, SharingOptions(index=True), profile=LONG)
    simulation = FleetSimulation(front, FleetOptions(ENGINES, LONG, 16, publishes_kv_events=True))
    for at in (1.0, 5.0, 9.0):
        simulation.schedule(at, partial(reset_all, simulation))
    sessions = agent_sessions(8, seed=1)
    reset = simulation.run_sessions(sessions, concurrency=4, round_trip_seconds=0.01, seed=1)
    kept = served(1, SharingOptions(index=True), profile=LONG, sessions=8, seed=1)
    assert [result.error for result in reset] == [None] * len(reset)
    assert all(result.output_tokens == 8 for result in reset)
    assert sum(result.cached_tokens for result in reset) < sum(result.cached_tokens for result in kept)
    assert all(later > earlier for result in reset for earlier, later in pairwise(result.token_times))


def reset_all(simulation: FleetSimulation, now: float) -> None:
    for name in ENGINES:
        simulation.reset_engine(name, now)


def test_gateways_take_the_stated_memory_for_the_engines_memory() -> None:
    stated = replace(SHORT, kv_tokens=SHORT.kv_tokens * 2)
    fleet = FleetOptions(ENGINES, SHORT, 16)
    routing = RoutingOptions(SloTargets(), b"secret", 0)
    front = GatewayCluster(fleet, routing, ClusterOptions(1, NO_SHARING, stated_profile=stated))
    assert front.stated_profile.kv_tokens == 2 * fleet.profile.kv_tokens
    assert GatewayCluster(fleet, routing, ClusterOptions(1, NO_SHARING)).stated_profile is fleet.profile
