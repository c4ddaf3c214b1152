"""The admission gate in front of simulated engines: two objectives, and a lost engine."""

import random
from dataclasses import replace

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.admission.policy import AdmissionPolicy
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import (
    ENGINE_LOST,
    FleetEvent,
    FleetEventKind,
    FleetOptions,
    FleetSimulation,
    schedule_events,
)
from fairlead_sim.gateways.admission_gate import AdmissionControlledGateway, RequestClasses, TenantClass
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway, instances_of
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest
from fairlead_testing.pytest_hooks.nightly import shortened

H100 = builtin_profile("h100-llama8b")
NAMES = [f"sim-{number}/0/0" for number in range(8)]


def objective(request: TraceRequest) -> float:
    return 0.25 if request.prompt_tokens <= 2_000 else 4.0


def traffic(load: float, requests: int = shortened(2_000, 1_200)) -> list[TraceRequest]:
    draw = random.Random(7)
    sizes = [draw.randint(200, 2_000) if draw.random() < 0.88 else draw.randint(8_000, 16_000) for _ in range(requests)]
    rate, at, made = load * len(NAMES) * requests / sum(H100.prefill_time(size) for size in sizes), 0.0, []
    for number, size in enumerate(sizes):
        at += draw.expovariate(rate)
        blocks = tuple(range(number * 64, number * 64 + size // TRACE_BLOCK_TOKENS))
        made.append(TraceRequest(f"r{number}", at, size, 16, blocks, tenant="ab"[number % 2]))
    return made


def served(
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
    for request, one in zip(requests, ones, strict=True):
        assert one.ttft_seconds is not None
        kept[objective(request) > 1.0].append(one.ttft_seconds <= objective(request))
    return sum(kept[0]) / len(kept[0]), sum(kept[1]) / len(kept[1])


def test_only_with_the_gate_both_classes_keep_their_objectives() -> None:
    requests, plenty = traffic(0.85), replace(Limits(), queue_seconds=1e6)
    assert min(shares(requests, served(requests, gated=False))) < 0.85
    assert min(shares(requests, served(requests, gated=True, limits=plenty))) >= 0.9


def test_held_requests_survive_the_loss_of_an_engine() -> None:
    requests = traffic(0.9, 600)
    loss = (FleetEvent(requests[300].arrival, FleetEventKind.LOSE, NAMES[0]),)
    ones = served(requests, gated=True, limits=Limits(), script=loss)
    cut = [one for one in ones if one.error is not None]
    assert all(one.error == ENGINE_LOST for one in cut)
    assert len(cut) < 20


def test_in_overload_the_sheddable_tier_is_refused_and_the_other_is_served() -> None:
    requests = traffic(1.5)
    ones = served(requests, gated=True)
    refused = [
        request.tenant for request, one in zip(requests, ones, strict=True) if one.error in ("shed", "shed-late")
    ]
    assert len(refused) > 100
    assert set(refused) == {"b"}
    dear = [(r, one) for r, one in zip(requests, ones, strict=True) if r.tenant == "a"]
    kept = sum(one.ttft_seconds is not None and one.ttft_seconds <= objective(r) for r, one in dear)
    assert kept >= 0.9 * len(dear)
