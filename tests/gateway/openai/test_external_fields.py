"""Callers of an API that others run use one model there, and nothing else of the account."""

import json
from typing import Any

import pytest

from fairlead.fleet.model import EXTERNAL_API, Fleet, RequestPolicy, UnknownFields
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import fleet_of, running_gateway
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
}
FUNCTION = {"type": "function", "function": {"name": "f"}}
SPENDING: list[tuple[str, object]] = [
    *[(name, ["dearer"]) for name in ("models", "fallbacks", "plugins", "transforms", "mcp_servers")],
    *[(name, {"a": 1}) for name in ("provider", "web_search_options", "container", "conversation")],
    *[("route", "fallback"), ("preset", "x"), ("previous_response_id", "r"), ("store", True), ("background", True)],
    *[("service_tier", tier) for tier in ("priority", "flex", {})],
    *[("tools", [FUNCTION, {"type": kind}]) for kind in ("mcp", "web_search", "web_search_20250305", "file_search")],
    *[("tools", {"type": "mcp"}), ("tools", [{"type": 5}])],
]
HARMLESS: list[tuple[str, object]] = [
    *[("store", False), ("store", None), ("background", False), ("service_tier", "auto"), ("models", None)],
    *[("tools", [FUNCTION, {"type": "custom", "name": "c"}, {"name": "n"}]), ("tools", [])],
]


def external(url: str, unknown: UnknownFields = UnknownFields.PASS, **policy: Any) -> Fleet:
    return fleet_of([url], requests=RequestPolicy(frozenset({EXTERNAL_API}), unknown, **policy))


@pytest.mark.parametrize("filler", ["", "x" * 300_000], ids=["small", "large"])
@pytest.mark.parametrize("path", PATHS)
async def test_fields_that_spend_the_account_are_refused(path: str, filler: str) -> None:
    body = {"model": "tiny", **PATHS[path], "user": filler[:100], "metadata": {"a": filler}}
    async with scripted_engine() as engine, running_gateway(external(engine.url)) as running:
        for name, value in SPENDING[:: 4 if filler else 1]:
            answer = await request(running.url, {**body, name: value}, path=path)
            assert (answer.status, answer.error["param"].partition("[")[0]) == (400, name), (name, value, answer.body)
        assert engine.calls == []
        for name, value in HARMLESS:
            if path != "/v1/chat/completions" or name != "tools":
                assert (await request(running.url, {**body, name: value}, path=path)).status == 200, (name, value)


async def test_an_account_field_that_the_model_allows_passes_as_do_all_at_own_engines() -> None:
    body = {"model": "tiny", **PATHS["/v1/chat/completions"], "service_tier": "priority"}
    async with scripted_engine() as engine:
        fleets = (
            external(engine.url, allowed_fields=frozenset({"service_tier"})),
            fleet_of([engine.url], requests=RequestPolicy(frozenset({"vllm"}))),
        )
        for fleet in fleets:
            async with running_gateway(fleet) as running:
                assert (await request(running.url, body)).status == 200


async def test_paths_whose_tokens_are_not_counted_are_closed() -> None:
    closed = ("/v1/images/generations", "/v1/audio/speech", "/v1/moderations", "/v1/tokenize", "/v1/rerank")
    async with scripted_engine() as engine:
        async with running_gateway(external(engine.url)) as running:
            for path in (*closed, "/tokenize", "/rerank", "/v2/rerank", "/v1/score", "/classify", "/v1/files"):
                answer = await request(running.url, {"model": "tiny", "input": "hi", "query": "q"}, path=path)
                assert (answer.status, answer.error["code"]) == (404, "unknown_url"), path
            for path, fields in (
                {**PATHS, "/v1/embeddings": {"input": "a"}, "/v1/completions": {"prompt": "a"}}
            ).items():
                assert (await request(running.url, {"model": "tiny", **fields}, path=path)).status == 200, path
        async with running_gateway(external(engine.url, allowed_paths=frozenset({"/v1/rerank"}))) as running:
            assert (await request(running.url, {"model": "tiny", "query": "q"}, path="/v1/rerank")).status == 200


async def test_unknown_fields_do_not_reach_a_provider_by_default() -> None:
    policy = UnknownFields.default_of(frozenset({EXTERNAL_API}))
    assert policy is UnknownFields.REFUSE
    assert UnknownFields.default_of(frozenset({"vllm"})) is UnknownFields.PASS
    async with scripted_engine() as engine, running_gateway(external(engine.url, policy)) as running:
        body = {"model": "tiny", **PATHS["/v1/chat/completions"]}
        assert (await request(running.url, {**body, "transform": 1})).error["param"] == "transform"
        assert (await request(running.url, {**body, "session_id": "s", "seed": 1})).status == 200
        assert json.loads(engine.calls[0].body) == {**body, "seed": 1}
