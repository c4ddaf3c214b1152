"""Accelerator selection: each request shape goes to the kind where it is comparatively cheap."""

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, Model, Role, SloTargets
from fairlead_gateway.routing import ModelRouter, RouteRequest, prefix_chain
from fairlead_gateway.routing.accelerator_selection import AcceleratorKind
from fairlead_gateway.routing.hash_ring import HomeRings
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.single_gateway import SingleGateway
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest

L4 = EngineProfile("L4", 2.2e-4, 7e-9, 6.7e-2, 3e-3, 2e-5, 5.5e-7, 0.0, 31_000, 256, 2_048)
H100 = EngineProfile("H100", 2.7e-5, 9e-10, 6e-3, 3e-3, 2e-5, 4.9e-8, 0.0, 415_000, 256, 8_192)
"""Rooflines of an 8B model (bench/mix/throughput_tables.py)."""
OBJECTIVES = SloTargets(target=0.99, ttft_seconds=3.0, ttft_per_kilo_token_seconds=0.5, itl_seconds=0.12)
MODEL = Model("default", "m", OBJECTIVES)


def instances(small: int = 4, large: int = 1, role: Role = Role.SERVE, profile: EngineProfile = L4) -> list[Instance]:
    pools = [("large", H100)] * large + [("small", profile)] * small
    return [
        Instance(f"{pool}-{n}", "default", "m", pool, f"http://127.0.0.1:{n}", role=role, profile=each)
        for n, (pool, each) in enumerate(pools)
    ]


def make_router(ones: list[Instance] | None = None) -> ModelRouter:
    router = ModelRouter(secret=b"secret")
    router.update(MODEL, instances() if ones is None else ones)
    return router


def prompt(name: str, tokens: int, seed: object = None) -> RouteRequest:
    text = Random(f"{name if seed is None else seed}").randbytes(4 * tokens)
    return RouteRequest(name, prefix_chain(text, secret=b"secret", seed=b"m"), float(tokens))


def send(router: ModelRouter, request: RouteRequest, *, ends: bool = True) -> str:
    """Decided and dispatched, and with ``ends`` answered at once."""
    decision = router.choose_instance(request, 0.0)
    assert decision.chosen is not None
    router.on_dispatch(request, decision.chosen, 0.0)
    if ends:
        router.on_first_token(request.id, 0.0)
        router.on_finish(request.id, 0.0, output_tokens=200)
    return decision.chosen.partition("-")[0]


def filled(router: ModelRouter) -> None:
    """So much on the large one that it is not calm, and not full."""
    for number in range(80):
        request = prompt(f"there-{number}", 300)
        router.on_dispatch(request, "large-0", 0.0)
        router.on_first_token(request.id, 0.0)


def kind(profile: EngineProfile, role: Role = Role.SERVE) -> AcceleratorKind:
    homes = HomeRings({}, secret=b"s")
    return AcceleratorKind(profile.name, profile, [], homes, role is not Role.DECODE, role is not Role.PREFILL)


def test_long_prompts_go_to_the_large_kind_and_short_ones_to_the_small_one() -> None:
    router = make_router()
    filled(router)
    went: dict[int, Counter[str]] = {120: Counter(), 6_000: Counter()}
    for number in range(900):
        tokens = 6_000 if number % 5 == 0 else 120
        pool = send(router, prompt(f"r{number}", tokens))
        went[tokens][pool] += number >= 600
    assert went[6_000]["large"] >= 58  # of 60
    assert went[120]["small"] >= 180  # of 240
    decision = router.preview(prompt("asked", 6_000), 0.0)
    assert "; on large (" in decision.reason
    assert "as dear on small" in decision.reason
    assert decision.inputs["small/work_seconds"].value > 10 * decision.inputs["large/work_seconds"].value


def test_a_fleet_of_two_kinds_keeps_the_objectives_of_more() -> None:
    """Short chat and a fifth of long documents on eight small engines and a large one."""

    def attained_share(apart: bool) -> float:
        draw, at, block, requests = Random(3), 0.0, 0, []
        for number in range(1_500):
            at += draw.expovariate(14.0)
            tokens, answer = (6_000, 250) if draw.random() < 0.2 else (150, 160)
            blocks = tuple(range(block, block := block - -tokens // 512))
            requests.append(TraceRequest(f"r{number}", at, tokens, answer, blocks))
        ones = instances(8)
        router = ModelRouter(secret=b"secret")
        plain = [Instance(pod.id, "default", "m", "one", pod.url, profile=pod.profile) for pod in ones]
        router.update(MODEL, ones if apart else plain)
        prompts = TracePromptCache(128, secret=b"secret", seed=b"m")
        profiles = {instance.id: instance.profile for instance in ones if instance.profile is not None}
        course = FleetSimulation(
            SingleGateway(router, prompts.prefix_chain, {}, MODEL, L4),
            FleetOptions(list(profiles), L4, 128, profiles),
            prompts=prompts,
        )
        served = course.run(requests)[150:]
        good = 0
        for outcome in served:
            limit = OBJECTIVES.ttft_limit_seconds(outcome.prompt_tokens)
            assert limit is not None
            first = outcome.ttft_seconds is not None and outcome.ttft_seconds <= limit
            good += first and (outcome.tpot_seconds or 0.0) <= 0.12
        return good / len(served)

    together, apart = attained_share(False), attained_share(True)
    assert apart >= 0.99
    assert together < apart - 0.02


def test_pools_that_are_alike_are_one_kind_and_decided_as_if_they_were_one_pool() -> None:
    twins = instances(3, 3, profile=H100)
    one_pool = [Instance(twin.id, "default", "m", "main", twin.url, profile=H100) for twin in twins]
    router, plain = make_router(twins), make_router(one_pool)
    for number in range(40):
        request = prompt(f"r{number}", 500 + 40 * number)
        decisions = [each.choose_instance(request, 0.0) for each in (router, plain)]
        assert decisions[0] == decisions[1]
        assert "; on " not in decisions[0].reason
        for each in (router, plain):
            each.on_dispatch(request, decisions[0].chosen or "", 0.0)


def test_while_the_large_kind_is_calm_everything_goes_there() -> None:
    router = make_router()
    reasons = set()
    for number in range(200):
        request = prompt(f"r{number}", 120)
        reasons.add(router.preview(request, 0.0).reason.rpartition(": ")[2])
        assert send(router, request) == "large"
    assert "faster, and lightly loaded" in reasons


def test_if_a_kind_misses_the_objective_the_next_one_is_tried() -> None:
    router = make_router()
    filled(router)
    for number in range(200):
        send(router, prompt(f"early-{number}", 6_000 if number % 5 == 0 else 120))
    for number in range(40):
        router.on_dispatch(prompt(f"before-{number}", 6_000), "large-0", 0.0)
    assert (router.choose_instance(prompt("long", 4_000), 0.0).chosen or "").startswith("small")


def test_if_no_kind_meets_the_objective_all_are_compared_together() -> None:
    router = make_router()
    for instance in instances():
        for number in range(200):
            router.on_dispatch(prompt(f"{instance.id}/{number}", 3_000), instance.id, 0.0)
    decision = router.choose_instance(prompt("late", 120), 0.0)
    assert decision.rule == "slo-spill"
    assert "no kind of accelerator has an instance that meets the objective" in decision.reason


@pytest.mark.parametrize("place", ["small-1", "large-0"])
def test_a_conversation_stays_on_the_kind_that_has_its_prefix(place: str) -> None:
    text = Random(1).randbytes(4 * 3_000)
    first, again = (
        RouteRequest(name, prefix_chain(given, secret=b"secret", seed=b"m"), len(given) / 4, 20.0)
        for name, given in (("first", text), ("again", text + b"x" * 400))
    )
    router = make_router()
    filled(router)
    router.on_dispatch(first, place, 0.0)
    router.on_first_token("first", 0.0)
    decision = router.choose_instance(again, 0.0)
    assert (decision.chosen or "").partition("-")[0] == place.partition("-")[0]
    assert decision.matched_tokens == pytest.approx(3_000, rel=0.1)


def test_a_preview_changes_nothing() -> None:
    router, other = make_router(), make_router()
    for number in range(100):
        request = prompt(f"r{number}", 120 + 60 * (number % 7) ** 3)
        for _ in range(3):
            router.preview(prompt(f"asked-{number}", 5_000), 0.0)
        decisions = [each.choose_instance(request, 0.0) for each in (router, other)]
        assert decisions[0] == decisions[1]
        assert decisions[0].inputs == decisions[1].inputs
        for each in (router, other):
            each.on_dispatch(request, decisions[0].chosen or "", 0.0)


def test_a_retry_goes_elsewhere_and_is_charged_once() -> None:
    router = make_router()
    request = prompt("r", 120)
    chosen = router.choose_instance(request, 0.0).chosen or ""
    router.on_dispatch(request, chosen, 0.0)
    before = router.preview(prompt("asked", 500), 0.0).inputs
    assert router.choose_instance(request, 0.0, excluded=frozenset({chosen})).chosen not in (None, chosen)
    assert router.preview(prompt("asked", 500), 0.0).inputs == before


def test_prices_outlive_instances_that_come_and_go() -> None:
    router = make_router()
    filled(router)
    for number in range(300):
        send(router, prompt(f"early-{number}", 6_000 if number % 5 == 0 else 120))

    def prices() -> dict[str, float]:
        inputs = router.preview(prompt("asked", 3_000), 0.0).inputs
        return {name: signal.value or 0.0 for name, signal in inputs.items() if name.endswith("/price")}

    before = prices()
    router.update(MODEL, instances(6))
    assert prices() == pytest.approx(before)


def test_what_cannot_be_served_within_the_objectives_is_no_choice() -> None:
    small = kind(L4)
    assert small.work_seconds(40_000.0, 0.0, 100.0, None, None) == math.inf, "more than its memory"
    assert small.work_seconds(20_000.0, 0.0, 100.0, 3.0, None) == math.inf, "its first token is late"
    assert small.work_seconds(100.0, 0.0, 100.0, 3.0, 0.05) == math.inf, "a step is longer than the objective"
    assert small.work_seconds(100.0, 0.0, 1.0, 3.0, 0.05) < math.inf, "one token has no gap"
    tight = Model("default", "m", SloTargets(ttft_seconds=3.0, itl_seconds=0.05))
    router = ModelRouter(secret=b"secret")
    router.update(tight, instances())
    filled(router)
    assert {send(router, prompt(f"r{number}", 120)) for number in range(100)} == {"large"}
    assert "no other kind can serve it" in router.preview(prompt("asked", 120), 0.0).reason


def test_a_price_stays_a_number_where_a_kind_can_serve_nothing_for_long() -> None:
    router = ModelRouter(secret=b"secret")
    router.update(Model("default", "m", SloTargets(ttft_seconds=3.0, itl_seconds=0.05)), instances())
    filled(router)
    for number in range(3_000):
        assert send(router, prompt(f"r{number}", 30)) == "large"
    assert (router.preview(prompt("asked", 120), 0.0).inputs["large/price"].value or 0.0) <= math.exp(8.0) * 1.01
    router.update(MODEL, instances())
    pools = [send(router, prompt(f"again-{number}", 6_000 if number % 5 == 0 else 120)) for number in range(1_500)]
    assert 90 <= pools[-500:].count("large") < 400, "and comes back"


def test_a_role_takes_only_its_part_of_the_work() -> None:
    whole, prefill, decode = (
        kind(H100, role).work_seconds(2_000.0, 0.0, 200.0, None, 0.12)
        for role in (Role.SERVE, Role.PREFILL, Role.DECODE)
    )
    assert whole == pytest.approx(prefill + decode)
    assert prefill == H100.prefill_time(2_000.0)


@given(
    st.floats(16.0, 30_000.0),
    st.floats(1.0, 2_000.0),
    st.floats(0.0, 0.9),
    st.sampled_from([None, 0.05, 0.12, 0.5]),
    st.sampled_from([L4, H100]),
)
def test_work_is_less_with_more_cached_and_more_with_longer_answers(
    tokens: float, output: float, cached: float, itl: float | None, profile: EngineProfile
) -> None:
    accelerator = kind(profile)
    whole = accelerator.work_seconds(tokens, 0.0, output, None, itl)
    assert 0.0 < accelerator.work_seconds(tokens, cached * tokens, output, None, itl) <= whole * (1 + 1e-9)
    assert accelerator.work_seconds(tokens, 0.0, 2.0 * output, None, itl) >= whole * (1 - 1e-9)
