"""Routing with missing signals, and decisions that say so (docs/concepts/routing.md)."""

from random import Random

import pytest

from fairlead.decision import Decision
from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Instance, Model, SloTargets
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.policies.dual_hash import NON_HOME_PRICE_UNINFORMED, choose
from fairlead_sim.seams import router as seam

PROFILE = builtin_profile("h100-llama8b")
TOKENS = 8_192


def make_router(count: int = 8, ttft: float = 5.0) -> ModelRouter:
    router = ModelRouter(secret=b"secret")
    instances = [Instance(f"pod-{at}", "default", "m", "main", "", profile=PROFILE) for at in range(count)]
    router.update(Model("default", "m", SloTargets(ttft_seconds=ttft)), instances)
    return router


def make_request(number: int) -> RouteRequest:
    draw, blocks = Random(number), TOKENS // 512
    hashes = tuple(draw.getrandbits(64) for _ in range(blocks))
    return RouteRequest(f"r{number}", PrefixChain(hashes, tuple(range(2_048, 2_048 * (blocks + 1), 2_048)), 0), TOKENS)


def send(router: ModelRouter, request: RouteRequest) -> Decision:
    decision = router.choose_instance(request, 0.0)
    assert decision.chosen is not None
    router.on_dispatch(request, decision.chosen, 0.0)
    return decision


def ended(router: ModelRouter, request: RouteRequest, cached: int) -> None:
    router.on_first_token(request.id, 0.0)
    router.on_finish(request.id, 0.0, prompt_tokens=TOKENS, cached_tokens=cached, output_tokens=1)


def test_without_a_problem_there_is_no_warning() -> None:
    router = make_router()
    for number in range(200):
        reason = send(router, make_request(number)).reason
        assert "told" not in reason
        assert "no candidate" not in reason
        ended(router, make_request(number), 0)


def test_without_an_index_unforeseen_cache_hits_keep_prompts_at_home() -> None:
    router = make_router()
    for number in range(300):
        send(router, make_request(number))
        ended(router, make_request(number), TOKENS // 4)  # other gateways sent it there
    quiet = router.choose_instance(make_request(900), 0.0)
    assert quiet.inputs["mean/unforeseen_share"].value == pytest.approx(0.249, abs=0.001)
    assert quiet.inputs["mean/non_home_price"].value == NON_HOME_PRICE_UNINFORMED
    assert quiet.reason.startswith("a home")
    assert "reported" not in quiet.reason
    homes = router.homes(make_request(901))
    for number in range(1_000, 1_012):  # both homes are busier than all others
        for home in homes:
            router.on_dispatch(make_request(number + 100 * homes.index(home)), home, 0.0)
    assert send(router, make_request(901)).chosen in homes
    seeing = make_router()
    for number in range(1_000, 1_012):
        for home in homes:
            seeing.on_dispatch(make_request(number + 100 * homes.index(home)), home, 0.0)
    assert send(seeing, make_request(901)).chosen not in homes


def test_one_instance_is_taken_whatever_its_load_and_the_rule_says_so() -> None:
    router = make_router(1)
    for number in range(200):
        decision = send(router, make_request(number))
        assert (decision.rule, decision.reason) == ("only-one", "the only instance that can take it")


@pytest.mark.parametrize(("ttft", "decides"), [(5.0, "cost_seconds"), (0.5, "predicted_ttft_seconds")])
def test_under_overload_prices_decide_up_to_three_objectives(ttft: float, decides: str) -> None:
    """Every instance has about 8 s of work. The reason says that none meets the objective."""
    router = make_router(ttft=ttft)
    for number in range(200):
        router.on_dispatch(make_request(number), f"pod-{number % 8}", 0.0)
    decision = send(router, make_request(200))
    assert decision.rule == "slo-spill"
    assert decision.reason.startswith("no candidate meets")
    scored = {name: signal.value or 0.0 for name, signal in decision.inputs.items() if name.endswith(f"/{decides}")}
    assert scored[f"{decision.chosen}/{decides}"] == min(scored.values())


def test_a_sooner_but_dearer_candidate_is_rejected_for_its_cost() -> None:
    def candidate(name: str, backlog: float, own: float) -> Candidate:
        return Candidate(EndpointLoad(name, 1, 0, backlog), 10_000, own, 0.0, is_home=True)

    both = [candidate("cached", 7.0, 0.1), candidate("sooner", 5.5, 1.0)]
    decision = choose(both, mean_backlog_seconds=1.0, objective_seconds=5.0)
    assert decision.chosen == "cached"
    assert [item.why for item in decision.rejected] == ["costs 22.5s against 8.7s"]


@pytest.mark.parametrize("name", ["dual-hash", "dualmap", "least-request"])
def test_missing_counters_are_replaced_by_own_dispatches(name: str) -> None:
    ids = [f"e{at}" for at in range(8)]
    blind, seeing = (
        seam({"n": 8, "live": ids, "block_tokens": 512, "ttft_slo": 5.0}, preset=name, seed=1) for _ in range(2)
    )
    sent = dict.fromkeys(ids, 0)
    for number in range(300):
        request = {"id": number, "arrival": 0.0, "prompt_tokens": 2_048, "blocks": (number % 9, number, -number, 7)}
        chosen = blind.pick(request, [{"id": name, "up": True} for name in ids], 0.0)
        assert chosen == seeing.pick(request, [{"id": name, "up": True, "inflight": sent[name]} for name in ids], 0.0)
        sent[chosen] += 1
