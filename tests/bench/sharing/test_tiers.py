"""The benchmark of KV tiers: its shape, its arms, and that equal arguments give equal figures."""

from dataclasses import replace

import pytest

from fairlead_bench.sharing.tiers import (
    ARMS,
    BLIND_ARM,
    ENGINES,
    GPU_ARM,
    NO_SHARING_ARM,
    PRICED_ARM,
    WORKING_SET,
    Outcome,
    measure,
    profile,
    rows,
    traffic,
)
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS


def test_schemas_fit_three_times_into_all_gpus_and_prompts_have_85_tokens_per_token() -> None:
    engine = profile()
    requests = traffic(4_000, engine, 1)
    schemas = {block for request in requests for block in request.blocks[:-1]}
    held = ENGINES * engine.kv_tokens
    assert len(schemas) * TRACE_BLOCK_TOKENS / held == pytest.approx(WORKING_SET, rel=0.05)
    prompt_tokens = sum(request.prompt_tokens for request in requests)
    assert prompt_tokens / sum(request.output_tokens for request in requests) == pytest.approx(85, rel=0.15)


def test_tiers_recompute_less_than_gpu_memory_and_equal_arguments_give_equal_figures() -> None:
    found = {arm: measure((arm, 1), 300) for arm in (NO_SHARING_ARM, GPU_ARM, BLIND_ARM, PRICED_ARM)}
    shares = [outcome.cached_share for outcome in found.values()]
    assert shares[0] < shares[1] < shares[2]
    assert found[PRICED_ARM].ttft_seconds < found[NO_SHARING_ARM].ttft_seconds
    assert measure((PRICED_ARM, 1), 300) == found[PRICED_ARM]


def test_rows_compare_with_no_sharing_and_prices_with_none() -> None:
    plain = Outcome(100.0, 1.0, 10.0, 2.0, 4.0, 0.1)
    found = {arm: [plain, plain] for arm in ARMS}
    found[PRICED_ARM] = [replace(plain, tokens_per_second=200.0, latency_seconds=2.0, ttft_seconds=1.0)] * 2
    made, intervals = rows(found)
    values = {row.metric: (row.value, row.holds) for row in made}
    assert values["peak throughput: tiers with prices ÷ no sharing"] == (2.0, True)
    assert values["mean latency: tiers with prices ÷ no sharing"] == (pytest.approx(0.2), True)
    assert values["mean TTFT: tiers with prices ÷ tiers without prices"] == (0.5, True)
    assert (
        values["mean TTFT: disk at 50% of computing, with prices ÷ disk at 50% of computing, without prices"][1]
        is False
    )
    assert len(intervals) == len(made)
