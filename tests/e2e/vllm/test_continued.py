"""The run of streams that are cut: its statistic, its proxy, and its record."""

import json
from collections import Counter

import httpx
import pytest

from e2e.vllm.engine.cutting_proxy import AFTER_USAGE, CutPlan, CuttingProxy
from e2e.vllm.report import ROOT
from e2e.vllm.scenarios.continued import (
    MIN_P,
    ROUNDS,
    STREAMS,
    TRANSCRIPTS,
    StreamRequest,
    chi_squared_tail,
    homogeneity,
    send,
)
from fairlead_testing.engines.scripted import EngineCall, scripted_engine

RECORD = ROOT / "bench" / "results" / "vllm.json"


@pytest.mark.parametrize(
    ("statistic", "degrees", "tail"), [(3.841, 1, 0.05), (5.991, 2, 0.05), (23.209, 10, 0.01), (21.666, 9, 0.01)]
)
def test_tail_of_chi_squared_is_that_of_tables(statistic: float, degrees: int, tail: float) -> None:
    assert chi_squared_tail(statistic, degrees) == pytest.approx(tail, rel=1e-3)
    assert chi_squared_tail(0, degrees) == pytest.approx(1)


def test_rare_kinds_share_a_cell() -> None:
    cells = homogeneity(Counter(a=12, b=6, c=2, d=3), Counter(a=8, b=6, e=9))
    assert cells == [(12, 10), (8, 10), (6, 6), (6, 6), (5, 7), (9, 7)]


@pytest.mark.sockets
@pytest.mark.parametrize(("cut", "tokens"), [(2, [1, 2]), (AFTER_USAGE, [1, 2, 3])])
async def test_stream_is_cut_where_the_plan_says_and_only_once(cut: int, tokens: list[int]) -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        for token in (1, 2, 3):
            choice = {"delta": {"content": "x"}, "finish_reason": None, "token_ids": [token]}
            await call.event({"choices": [choice]})
        await call.event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}})
        await call.finish()

    plan = CutPlan({"cut-1": [cut]})
    async with scripted_engine(script) as engine:
        proxy = CuttingProxy(engine.url, plan)
        async with httpx.AsyncClient(base_url=await proxy.start()) as client:
            first, second = [await send(client, StreamRequest("/v1/chat/completions", {}), "cut-1") for _ in range(2)]
        await proxy.stop()
    assert (first.tokens, first.error, first.usage is not None) == (tokens, "RemoteProtocolError", cut == AFTER_USAGE)
    assert (second.tokens, second.error) == ([1, 2, 3], "")
    assert plan.made == 1


def test_record_has_no_stream_that_differs_and_one_test_of_samples() -> None:
    parts = json.loads(RECORD.read_text(encoding="utf-8"))["parts"]
    cut, killed = parts["continued"], parts["continued-kills"]
    assert cut["held"]
    assert killed["held"]
    (greedy,) = [check for check in cut["checks"].values() if check.get("transcripts") == TRANSCRIPTS]
    assert greedy["streams"] == greedy["identical"] + greedy["of_engines_that_differ_from_themselves"]
    replayed = parts["continued-replays"]
    assert replayed["held"]
    for check in replayed["checks"].values():
        assert check["streams"] == check.get("identical", check.get("whole")) + check["differ_and_say_so"]
    (samples,) = [check for check in cut["checks"].values() if "chi_squared" in check]
    assert samples["p"] > MIN_P
    (kills,) = killed["checks"].values()
    assert (kills["kills"], kills["streams"]) == (ROUNDS, ROUNDS * STREAMS)
