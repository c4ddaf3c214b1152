"""Golden decisions of the baseline policies; each table names the source of its rule."""

from collections import Counter
from random import Random
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Instance, Model, ModelRouting, SloTargets
from fairlead_gateway.routing import PRESETS, ModelRouter, RouteRequest, prefix_chain
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.policies import baselines as p
from fairlead_gateway.routing.policies.policy_input import PolicyInput
from fairlead_gateway.routing.policies.registry import POLICIES

PROMPT = 1_000.0


def one(
    id: str,
    inflight: int = 0,
    matched: float = 0.0,
    *,
    backlog: float = 0.0,
    own: float = 1.0,
    tokens: float = 0.0,
    waiting: int = 0,
    held: int = 0,
) -> Candidate:
    candidate = Candidate(EndpointLoad(id, inflight, waiting, backlog, tokens), 10_000, own, matched)
    candidate.cached_bytes = held
    return candidate


def policy_input(options: list[Candidate], name: str = "r") -> PolicyInput:
    return PolicyInput(name, options, prompt_tokens=PROMPT)


def many(*inflight: int, **matched: float) -> list[Candidate]:
    return [one(f"i{at}", count, matched.get(f"i{at}", 0.0)) for at, count in enumerate(inflight)]


AIBRIX: list[tuple[str, list[Candidate], str]] = [
    ("the longest match", many(3, 3, 3, i0=256.0, i1=512.0), "i1"),
    ("of equal matches the fewest requests", many(5, 4, 0, i0=512.0, i1=512.0), "i1"),
    (
        "a shorter match where the longest is over mean + 2 sigma",
        many(9, 0, 0, 0, 0, 0, 0, 0, i0=800.0, i3=128.0),
        "i3",
    ),
    ("nobody matches: the fewest", many(2, 1, 3), "i1"),
    ("only one over the bound matches: the fewest", many(9, 0, 1, 1, 1, 1, 1, 1, i0=800.0), "i1"),
    ("loads 17 apart: the fewest, whatever is cached", many(18, 1, 5, i0=900.0), "i1"),
    ("loads 16 apart are not out of balance", many(17, 1, 9, i2=900.0), "i2"),
]
SGLANG: list[tuple[str, list[Candidate], str]] = [
    ("a match over one half", many(4, 0, 0, i0=501.0), "i0"),
    (
        "exactly one half is no match: who holds least",
        [one("a", 0, 500.0, held=900), one("b", 9, held=100)],
        "b",
    ),
    ("of two matches the longer", many(0, 0, 0, i0=600.0, i1=700.0), "i1"),
    ("loads 33 apart and over 1.1 x: the fewest", many(40, 7, 20, i0=1_000.0), "i1"),
    ("loads 32 apart are in balance", many(39, 7, 20, i0=1_000.0), "i0"),
    ("33 apart but within 1.1 x is in balance", many(400, 367, 380, i0=1_000.0), "i0"),
]
LLMD: list[tuple[str, list[Candidate], str]] = [
    ("a full match outweighs the longest queue", [one("a", matched=PROMPT, waiting=9), one("b")], "a"),
    ("half a match does not", [one("a", matched=500.0, waiting=9), one("b")], "b"),
    ("equal queues count alike, however long", [one("a", matched=10.0, waiting=50), one("b", waiting=50)], "a"),
    ("memory in use weighs two", [one("a", tokens=9_000.0), one("b", tokens=1_000.0)], "b"),
    ("full memory and a full match against neither", [one("a", matched=PROMPT, tokens=10_000.0), one("b")], "a"),
    (
        "full memory and the longest queue are too much for a match",
        [one("a", matched=PROMPT, tokens=10_000.0, waiting=1), one("b")],
        "b",
    ),
    ("more than all memory is all of it", [one("a", matched=PROMPT, tokens=50_000.0), one("b")], "a"),
]
LMETRIC: list[tuple[str, list[Candidate], str]] = [
    ("less prefill", [one("a", own=2.0), one("b", own=1.0)], "b"),
    ("a smaller batch", [one("a", 9, own=1.0), one("b", 1, own=1.0)], "b"),
    ("the product, not the sum", [one("a", 9, own=0.1), one("b", 0, own=0.9)], "b"),
    ("a cached prompt on a busy engine", [one("a", 9, own=0.05), one("b", 0, own=0.9)], "a"),
    ("what waits counts as much as what is ours", [one("a", backlog=2.0, own=0.5), one("b", own=2.0)], "b"),
    ("an idle engine is not free", [one("a", 0, own=5.0), one("b", 1, own=1.0)], "b"),
]
MOONCAKE: list[tuple[str, list[Candidate], str]] = [
    ("the sooner", [one("a", backlog=1.0, own=1.0), one("b", backlog=0.5, own=1.0)], "b"),
    ("a hit behind a queue", [one("a", backlog=0.5, own=0.1), one("b", own=1.0)], "a"),
    ("a queue longer than what the hit saves", [one("a", backlog=1.0, own=0.1), one("b", own=1.0)], "b"),
    ("decoding does not count", [one("a", 100, own=0.9), one("b", own=1.0)], "a"),
    ("nor does memory", [one("a", tokens=10_000.0, own=0.9), one("b", own=1.0)], "a"),
    ("one alone", [one("a", backlog=60.0)], "a"),
]


def cases(*tables: tuple[str, list[tuple[str, list[Candidate], str]]]) -> Any:
    return [
        pytest.param(name, all_, chosen, id=f"{name}: {what}") for name, table in tables for what, all_, chosen in table
    ]


@pytest.mark.parametrize(
    ("rule", "all_", "chosen"),
    cases(
        ("prefix-cache", AIBRIX), ("cache-aware", SGLANG), ("llm-d", LLMD), ("lmetric", LMETRIC), ("min-ttft", MOONCAKE)
    ),
)
def test_golden_decisions(rule: str, all_: list[Candidate], chosen: str) -> None:
    for name in ("one request", "another"):
        for order in (all_, all_[::-1]):
            decision = POLICIES[rule](policy_input(order, name))
            assert (decision.chosen, decision.rule) == (chosen, rule)
            assert {item.id for item in decision.rejected} == {item.id for item in all_} - {chosen}
            assert decision.reason


@pytest.mark.parametrize("rule", ["prefix-cache", "cache-aware", "llm-d", "lmetric", "min-ttft", "preble"])
def test_equal_instances_get_equal_shares(rule: str) -> None:
    seen = Counter(POLICIES[rule](policy_input(many(2, 2, 2, 2), f"r{number}")).chosen for number in range(4_000))
    assert min(seen.values()) > 850


def test_of_two_drawn_the_one_with_fewer_requests() -> None:
    """Mitzenmacher's rule: the fullest of four would have to be drawn twice, which cannot be."""
    seen = Counter(p.power_of_two(policy_input(many(0, 1, 2, 3), f"r{number}")).chosen for number in range(6_000))
    assert seen["i3"] == 0
    assert [seen[f"i{at}"] / 6_000 for at in range(3)] == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=0.02)
    assert p.power_of_two(policy_input(many(7))).chosen == "i0"


def test_chwbl_skips_instances_with_a_quarter_more_than_their_share() -> None:
    """KubeAI: load, not load + 1, is compared with 1.25 x (total + 1) / n."""
    assert p.overloaded_ids(many(0, 0, 0, 0)) == frozenset()
    assert p.overloaded_ids(many(5, 5, 5, 5)) == frozenset()
    assert p.overloaded_ids(many(6, 4, 5, 5)) == frozenset()  # 6 <= 6.56
    assert p.overloaded_ids(many(7, 4, 4, 5)) == frozenset({"i0"})
    passed: list[frozenset[str]] = []

    def ring(full: frozenset[str]) -> str | None:
        passed.append(full)
        return None if len(passed) > 1 else "i2"

    assert p.chwbl(PolicyInput("r", many(7, 4, 4, 5), first_on_ring=ring)).chosen == "i2"
    assert p.chwbl(PolicyInput("r", many(7, 4, 3, 5), first_on_ring=ring)).chosen == "i2"
    assert passed == [frozenset({"i0"})] * 2


def make_router(name: str, count: int = 8) -> ModelRouter:
    router = ModelRouter(secret=b"secret")
    profile = builtin_profile("h100-llama8b")
    instances = [Instance(f"pod-{at}", "default", "m", "main", "", profile=profile) for at in range(count)]
    router.update(Model("default", "m", SloTargets(ttft_seconds=5.0), ModelRouting(name)), instances)
    return router


def prompt(name: str, session: int) -> RouteRequest:
    text = Random(session).randbytes(8_192)
    return RouteRequest(name, prefix_chain(text, secret=b"secret", seed=b"m"), len(text) / 4)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_serves_through_the_router_past_those_that_failed(name: str) -> None:
    router = make_router(name)
    for number in range(60):
        request = prompt(f"r{number}", number % 9)
        decision = router.choose_instance(request, 0.0, excluded=frozenset({"pod-0", "pod-1"}))
        assert decision.chosen not in (None, "pod-0", "pod-1")
        router.on_dispatch(request, decision.chosen or "", 0.0)
        if number % 3:
            router.on_first_token(request.id, 0.0)
            router.on_finish(request.id, 0.0, output_tokens=5)
    assert make_router(name, 1).choose_instance(prompt("alone", 1), 0.0).chosen == "pod-0"
    assert make_router(name, 0).choose_instance(prompt("nobody", 1), 0.0).chosen is None


@pytest.mark.parametrize("name", ["prefix-cache", "cache-aware", "llm-d", "lmetric", "min-ttft", "chwbl", "preble"])
def test_prefix_presets_return_to_cached_prefixes(name: str) -> None:
    router = make_router(name)
    for session in range(12):
        first = prompt(f"{session}-0", session)
        at = router.choose_instance(first, 0.0).chosen
        assert at is not None
        router.on_dispatch(first, at, 0.0)
        router.on_first_token(first.id, 1.0)
        router.on_finish(first.id, 2.0)
        assert router.choose_instance(prompt(f"{session}-1", session), 3.0).chosen == at


def test_every_preset_but_the_default_has_a_policy() -> None:
    assert {*POLICIES, "dual-hash"} == set(PRESETS)
