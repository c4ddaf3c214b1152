"""The generated conversation traffic has the shape of the recorded trace."""

import pytest

from fairlead.errors import BadInput
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, ideal_cached_share


def test_equal_seeds_give_equal_traffic_and_others_do_not() -> None:
    assert conversation_traffic(50, seed=3) == conversation_traffic(50, seed=3)
    assert conversation_traffic(50, seed=3) != conversation_traffic(50, seed=4)


def test_every_prompt_starts_with_block_0_and_has_a_block_for_each_512_tokens() -> None:
    for request in conversation_traffic(2_000, seed=1):
        assert request.blocks[0] == 0
        assert len(request.blocks) == -(-request.prompt_tokens // TRACE_BLOCK_TOKENS)
        assert 1 <= request.prompt_tokens <= 20_480
        assert 1 <= request.output_tokens <= 2_000


def test_arrivals_never_go_back() -> None:
    arrivals = [request.arrival for request in conversation_traffic(2_000, seed=1)]
    assert arrivals == sorted(arrivals)


def test_a_session_grows_and_keeps_its_full_blocks_in_front() -> None:
    last: dict[str, tuple[int, ...]] = {}
    kept = turns = 0
    for request in conversation_traffic(3_000, seed=2):
        assert request.session is not None
        if request.session in last:
            turns += 1
            before = last[request.session]
            kept += request.blocks[: len(before) - 1] == before[:-1]
        last[request.session] = request.blocks
    assert turns > 600
    assert kept / turns > 0.7  # the others edit an earlier turn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shape_is_the_recorded_trace_s(seed: int) -> None:
    requests = conversation_traffic(10_091, seed=seed)
    count = len(requests)
    assert sum(item.prompt_tokens for item in requests) / count == pytest.approx(7_100, rel=0.08)
    assert sum(item.output_tokens for item in requests) / count == pytest.approx(336, rel=0.05)
    assert ideal_cached_share(requests) == pytest.approx(0.38, abs=0.03)
    assert count / requests[-1].arrival == pytest.approx(2.85, rel=0.08)


def test_no_request_at_all_is_refused() -> None:
    with pytest.raises(BadInput):
        conversation_traffic(0)
