"""The scenarios that judge the index with real gateways: requests, endless cache, rows, a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from fairlead_bench.sharing.gateway_processes import SETTINGS
from fairlead_bench.sharing.knowledge_processes import (
    Knowledge,
    KnowledgeRun,
    compare,
    endless_cached_tokens,
    measure,
    rows,
    scenario_sessions,
)
from fairlead_bench.sharing.knowledge_scenarios import PROCESS_SCENARIOS, Disturbance, ProcessScenario

RUN = KnowledgeRun(100_000, 80_000, 4_000, 0.2, 0.4, 200, 0, 0.002, 50, 0)


def test_half_of_the_sessions_use_an_adapter_and_each_has_a_salt() -> None:
    adapted = scenario_sessions(PROCESS_SCENARIOS["adapters"], 12, 1)
    models = [{body["model"] for body in session} for session in adapted]
    assert models == 2 * [{"tiny"}, {"french"}, {"tiny"}, {"german"}, {"tiny"}, {"sql"}]
    salted = scenario_sessions(PROCESS_SCENARIOS["cache salts"], 9, 1)
    assert [session[-1]["cache_salt"] for session in salted][-2:] == ["tenant 7", "tenant 0"]
    assert {body["max_tokens"] for session in salted for body in session} == {1}


def test_an_endless_cache_has_whole_blocks_of_one_model_and_salt() -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": " abc" * 60}]}  # 67 tokens with the template
    other = {"model": "tiny", "messages": [{"role": "user", "content": " abc" * 28 + " def" * 32}]}
    assert endless_cached_tokens([body]) == 0
    assert endless_cached_tokens([body, body]) == 64
    assert endless_cached_tokens([body, other]) == endless_cached_tokens([other, body]) == 16
    assert endless_cached_tokens([body, body | {"cache_salt": "a"}, body | {"model": "french"}]) == 0


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": " abc" * 57}]}  # 64 tokens with the template
    longer = {"model": "tiny", "messages": [*body["messages"], {"role": "assistant", "content": " abc"}]}
    assert endless_cached_tokens([body, body]) == 48
    assert endless_cached_tokens([body, longer]) == 64


def test_rows_compare_the_arms_and_pair_them_by_seed() -> None:
    none = [RUN, replace(RUN, p90_seconds=0.8, recomputed_tokens=20_000)]
    index = [replace(run, p90_seconds=run.p90_seconds / 2, cpu_seconds=0.003) for run in none]
    index[1] = replace(index[1], recomputed_tokens=5_000, failures=1)
    made, verdicts = rows({"adapters": {Knowledge.NONE: none, Knowledge.INDEX: index}})
    assert {row.metric: row.value for row in made} == pytest.approx(
        {
            "adapters: p90 TTFT: index ÷ no index": 0.5,
            "adapters: recomputed tokens: index ÷ no index": 0.5,
            "adapters: gateways' processor time: index ÷ no index": 1.5,
            "requests that failed": 1.0,
        }
    )
    assert [verdict["verdict"] for verdict in verdicts] == ["wins", "neutral", "loses"]


def test_hardly_any_recomputed_tokens_give_no_ratio() -> None:
    arms = {
        arm: [replace(RUN, recomputed_tokens=tokens)] for arm, tokens in ((Knowledge.NONE, 0), (Knowledge.INDEX, 900))
    }
    made, _ = rows({"nothing is wrong": arms})
    assert made[1].value == 1.0


@pytest.mark.nightly
@pytest.mark.timeout(300)
async def test_all_causes_together_fail_no_request(tmp_path: Path) -> None:
    disturbance = Disturbance(reset_every=5, stated_memory=2.0, bypassing_share=0.3, gateways=2)
    scenario = ProcessScenario(disturbance, ("french",), tenants=2)
    setting = replace(SETTINGS["agents"], speed=10.0, sessions=6)
    run = await measure(scenario, Knowledge.INDEX, 1, tmp_path, setting)
    assert (run.requests, run.failures) == (30, 0)
    assert 0 < run.cached_tokens < run.prompt_tokens
    assert run.recomputed_tokens > 0
    assert run.cpu_seconds > 0.0
    assert run.linked_blocks > 0


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([0.8, 0.82, 0.79, 0.81, 0.8], "wins"),
        ([0.5, 1.4, 0.6, 1.3, 0.7], "neutral"),
        ([0.95, 0.96, 0.95, 0.94, 0.95], "neutral"),
        ([1.0, 1.01, 1.02, 1.0, 1.01], "neutral"),
        ([1.05, 1.06, 1.05, 1.04, 1.05], "loses"),
    ],
)
def test_a_verdict_needs_its_interval(ratios: list[float], verdict: str) -> None:
    assert compare(ratios).verdict == verdict
