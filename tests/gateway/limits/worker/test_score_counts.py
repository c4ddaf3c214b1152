"""The tokens of rankings, scores and classes count in limits, as reported or as estimated."""

from typing import Any

import pytest

from fairlead.fleet.model import TokenPrice
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.dialects.passed_on import POOLING, SCORES
from fairlead_testing.engines.scripted import responds
from fairlead_testing.gateway.limited_gateway import LimitedGateway, limited_gateway

pytestmark = pytest.mark.simulated

TOKENS = Limit(LimitUnit.TOKENS, 100_000, Window.DAY)
COST = Limit(LimitUnit.COST, 10**15, Window.MONTH)
QUERY = "what is the capital of france "
RANK = {"query": QUERY, "documents": ["paris is the capital of france"] * 3}
BODIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), RANK),
    **{key: {"text_1": QUERY, "text_2": ["paris", "berlin"]} for key in ("/score", "/v1/score")},
    **{key: {"input": [QUERY, "paris"]} for key in ("/classify", "/v1/classify")},
    "/v1/pooling": {"input": QUERY},
}
USAGES: list[tuple[dict[str, Any] | None, int]] = [
    ({"prompt_tokens": 62, "total_tokens": 62}, 62),
    ({"total_tokens": 62}, 62),
    ({"total_tokens": 62.0, "search_units": 1}, 62),
    ({"prompt_tokens": 62, "total_tokens": 62, "completion_tokens": 0, "prompt_tokens_details": None}, 62),
    ({"input_tokens": 62, "output_tokens": 0}, 62),
    ({"prompt_tokens": 0, "total_tokens": 0}, 0),
]
UNKNOWN: list[object] = [
    {"results": []},
    {"results": [], "usage": None},
    {"usage": {}},
    {"usage": {"total_tokens": -4}},
    {"usage": {"total_tokens": "many"}},
    [{"index": 0, "score": 0.5}],
    {"scores": [[0.1]], "usage": 5},
]


def tenant(*limits: Limit, **more: Any) -> Tenant:
    return Tenant("acme", limits=limits, may_use_other_paths=False, **more)


async def post(gateway: LimitedGateway, path: str, body: dict[str, Any]) -> int:
    headers = {"authorization": "Bearer acme"}
    answer = await gateway.client.post(f"{gateway.running.url}{path}", json={"model": "tiny", **body}, headers=headers)
    return answer.status_code


def test_each_path_of_scores_is_tried_here() -> None:
    assert set(BODIES) == {*SCORES.paths, *POOLING.paths}


@pytest.mark.parametrize("path", BODIES)
async def test_scores_count_what_the_engine_reports(path: str) -> None:
    for usage, expected in USAGES:
        price = TokenPrice(input=1_000, cached_input=10, output=2_000)
        async with limited_gateway(
            responds({"id": "x", "usage": usage}), [tenant(TOKENS, COST)], price=price
        ) as gateway:
            assert await post(gateway, path, BODIES[path]) == 200
            assert gateway.used("acme", TOKENS.id) == expected
            assert gateway.used("acme", COST.id) == expected * 1_000
            assert gateway.busy("acme", TOKENS.id) == 0


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("enforcement", Enforcement)
async def test_scores_without_counts_pay_as_estimated(path: str, enforcement: Enforcement) -> None:
    for body in UNKNOWN:
        async with limited_gateway(responds(body), [tenant(TOKENS, enforcement=enforcement)]) as gateway:
            assert await post(gateway, path, BODIES[path]) == 200
            assert gateway.used("acme", TOKENS.id) >= len(QUERY) // 5


async def test_usage_of_a_document_does_not_hide_the_engines() -> None:
    document = {"text": "x" * 70_000, "usage": {"total_tokens": 1, "prompt_tokens": 1}}
    for results in ([document], [document] * 20):
        found = {"usage": {"total_tokens": 900}, "results": results}
        async with limited_gateway(responds(found), [tenant(TOKENS)]) as gateway:
            assert await post(gateway, "/v1/rerank", RANK) == 200
            assert gateway.used("acme", TOKENS.id) == 900


async def test_the_query_is_estimated_again_for_each_document() -> None:
    used = []
    for documents in (1, 50):
        async with limited_gateway(responds({}), [tenant(TOKENS)]) as gateway:
            assert await post(gateway, "/v1/rerank", {"query": "w " * 1_000, "documents": ["a"] * documents}) == 200
            used.append(gateway.used("acme", TOKENS.id))
    assert used[1] > 40 * used[0]


@pytest.mark.parametrize("padding", [0, 300_000], ids=["in the worker", "in the checking process"])
async def test_strict_limits_reserve_the_query_and_a_margin_for_each_document(padding: int) -> None:
    body = {"query": "w" * 100, "documents": ["d" * 10] * 20, "x": "y" * padding}
    least = 20 * (100 + 10)
    reserved = []

    async def script(call: Any) -> None:
        reserved.append(gateway.busy("acme", TOKENS.id))
        await call.respond({"usage": {"total_tokens": least}})

    limit = Limit(LimitUnit.TOKENS, 1_000_000, Window.DAY)
    tenants = [Tenant("acme", limits=(limit,), enforcement=Enforcement.STRICT)]
    async with limited_gateway(script, tenants) as gateway:
        assert await post(gateway, "/v1/rerank", body) == 200
        assert gateway.used("acme", limit.id) == least
    assert least + 20 * 200 < reserved[0] < least + 20 * 400 + padding


async def test_a_ranking_beyond_the_limit_is_refused_before_it_starts() -> None:
    limit = Limit(LimitUnit.TOKENS, 1_000, Window.DAY)
    async with limited_gateway(responds({"usage": {"total_tokens": 5}}), [tenant(limit)]) as gateway:
        assert await post(gateway, "/v1/rerank", {"query": "w " * 2_000, "documents": ["a", "b"]}) == 429
        assert gateway.calls == []
