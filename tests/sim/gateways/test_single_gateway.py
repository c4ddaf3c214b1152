"""The fleet simulator: the production router on a virtual clock."""

from collections import Counter
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import SloTargets
from fairlead_gateway.routing import prefix_chain
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions, simulate
from fairlead_sim.workload.trace_prompts import trace_chain, trace_keys
from fairlead_sim.workload.traces import BUNDLED_TRACE, TraceRequest, at_rate, read_mooncake, spread_ties

FLAT = EngineProfile("flat", 1e-3, weights_seconds=0.01, kv_tokens=512 * 40, step_tokens=2_048)


def chats(conversations: int, turns: int, gap: float = 1.0) -> list[TraceRequest]:
    """Returns conversations that each grow by one block of 512 tokens a turn, in turn order."""
    return [
        TraceRequest(
            id=f"{chat}.{turn}",
            arrival=turn * gap * conversations + chat * gap,
            prompt_tokens=512 * (turn + 3) + 10,
            output_tokens=20,
            blocks=(*(chat * 1_000 + block for block in range(turn + 3)), chat * 1_000 + 500 + turn),
            session=f"chat-{chat}",
        )
        for turn in range(turns)
        for chat in range(conversations)
    ]


def run(requests: list[TraceRequest], name: str = "dual-hash", **changes: Any) -> list[RequestResult]:
    engines = changes.pop("engines", 4)
    names = changes.pop("instance_ids", None) or [f"sim-{index}/0/0" for index in range(engines)]
    fleet = FleetOptions(names, **{"profile": FLAT, "block_tokens": 512, **changes})
    return simulate(requests, fleet, RoutingOptions(SloTargets(ttft_seconds=5.0), b"test", preset=name))


def test_every_request_is_served_once_and_in_the_order_given() -> None:
    requests = chats(6, 5)
    served = run(requests)
    assert [item.id for item in served] == [request.id for request in requests]
    assert all(item.error is None and item.output_tokens == 20 and len(item.token_gaps) == 19 for item in served)


def test_times_of_one_request_are_those_of_the_profile() -> None:
    (served,) = run([TraceRequest("a", 3.0, 1_000, 3, (1, 2))])
    assert served.ttft_seconds == pytest.approx(1.0)
    assert list(served.token_gaps) == pytest.approx([0.01, 0.01])
    assert served.tpot_seconds == pytest.approx(0.01)
    assert served.finish == pytest.approx(3.0 + 1.02)


def test_a_request_that_arrives_during_a_step_waits_for_its_end() -> None:
    first = TraceRequest("a", 0.0, 1_000, 1, (1, 2))
    second = TraceRequest("b", 0.4, 100, 1, (3,))
    served = run([first, second], engines=1)
    assert served[1].ttft_seconds == pytest.approx(0.6 + 0.1)


def test_the_same_arguments_give_the_same_answer() -> None:
    assert run(chats(6, 5)) == run(chats(6, 5))


def test_round_robin_takes_turns_and_dual_hash_follows_the_conversation() -> None:
    requests = chats(7, 6)
    turns, homes = run(requests, "round-robin"), run(requests, "dual-hash")
    assert [item.instance for item in turns[:5]] == ["sim-0/0/0", "sim-1/0/0", "sim-2/0/0", "sim-3/0/0", "sim-0/0/0"]
    assert sum(item.cached_tokens for item in homes) > 2 * sum(item.cached_tokens for item in turns)


def test_least_request_keeps_the_counts_even() -> None:
    requests = [TraceRequest(str(number), 0.0, 600, 50, (number, number + 100)) for number in range(12)]
    counts = Counter(item.instance for item in run(requests, "least-request"))
    assert sorted(counts.values()) == [3, 3, 3, 3]


def test_smaller_engine_blocks_find_at_least_as_much() -> None:
    requests = chats(3, 6)
    coarse, fine = run(requests), run(requests, block_tokens=16)
    assert all(b.cached_tokens >= a.cached_tokens for a, b in zip(coarse, fine, strict=True))


def test_a_request_that_no_engine_can_hold_is_an_error_and_the_rest_is_served() -> None:
    giant = TraceRequest("giant", 0.0, 512 * 50, 5, tuple(range(50)))
    served = run([giant, TraceRequest("a", 1.0, 100, 5, (1,))])
    assert served[0].error is not None
    assert (served[0].ttft_seconds, served[0].finish, served[0].output_tokens) == (None, None, 0)
    assert served[1].error is None


def test_the_instances_may_be_named() -> None:
    served = run(chats(2, 2), engines=2, instance_ids=["pool-0/8000/0", "pool-1/8001/0"])
    assert {item.instance for item in served} <= {"pool-0/8000/0", "pool-1/8001/0"}


@pytest.mark.parametrize(
    "changes", [{"engines": 0}, {"block_tokens": 100}, {"name": "best"}, {"instance_ids": ["a", "a", "b", "c"]}]
)
def test_wrong_arguments_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        run(chats(1, 1), **changes)


def test_two_requests_may_not_have_one_id() -> None:
    with pytest.raises(BadInput):
        run([*chats(1, 1), *chats(1, 1)])


def test_a_traces_chain_has_the_shape_that_the_gateway_finds_in_text() -> None:
    text = prefix_chain(b"x" * 4 * 5_000, secret=b"s", seed=b"m")
    blocks = trace_chain(range(10), 5_000, secret=b"s", seed=b"m")
    assert blocks.ends == text.ends


def test_traces_that_begin_alike_share_chains_and_keys_that_far() -> None:
    chain = trace_chain((1, 2, 3), 1_536, secret=b"s", seed=b"m")
    two = trace_chain((1, 2, 9), 1_536, secret=b"s", seed=b"m")
    alike = [a == b for a, b in zip(chain.hashes, two.hashes, strict=True)]
    assert alike == [end <= 4_096 for end in chain.ends]
    assert [
        a == b for a, b in zip(trace_keys((1, 2, 3), 1_536, 256), trace_keys((1, 2, 9), 1_536, 256), strict=True)
    ] == [
        *[True] * 4,
        *[False] * 2,
    ]


@pytest.mark.nightly
def test_the_first_thousand_of_the_conversation_trace_reward_dual_hashing() -> None:
    """The demo's goal: 2 × the cached tokens, p90 TTFT 0.5 × round-robin, 0.7 × least-request."""
    requests = at_rate(spread_ties(read_mooncake(BUNDLED_TRACE)), 6.5)
    runs = {
        name: run(requests, name, profile=builtin_profile("910b4"), engines=8)
        for name in ("dual-hash", "round-robin", "least-request")
    }
    cached = {name: sum(item.cached_tokens for item in served) for name, served in runs.items()}
    slow = {
        name: sorted(item.ttft_seconds for item in served if item.ttft_seconds is not None)[900]
        for name, served in runs.items()
    }
    assert all(item.error is None for served in runs.values() for item in served)
    assert cached["dual-hash"] >= 2.0 * cached["round-robin"]
    assert slow["dual-hash"] <= 0.5 * slow["round-robin"]
    assert slow["dual-hash"] <= 0.7 * slow["least-request"]
