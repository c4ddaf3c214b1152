"""Each error of the gateway has the form of the dialect that the client speaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fairlead.fleet.model import TokenPrice
from fairlead.limits import Limits
from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window
from fairlead_testing.engines.scripted import Script, hang_up, responds, scripted_engine, silent, usage
from fairlead_testing.gateway.limited_gateway import limited_gateway
from fairlead_testing.gateway.running_gateway import fleet_of, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawResponse, get_request, post_request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated
_TURN = [{"role": "user", "content": "hi"}]
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _TURN, "max_tokens": 9},
    "/v1/completions": {"prompt": "hi", "max_tokens": 9},
    "/v1/messages": {"messages": _TURN, "max_tokens": 9},
    "/v1/responses": {"input": "hi", "max_output_tokens": 9},
}
BODIES = GENERATING | {
    "/v1/messages/count_tokens": {"messages": _TURN},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "q", "documents": ["a"]},
    "/v1/chat/completions/batch": {"messages": [_TURN]},
    "/v1/pooling": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/v1/detokenize": {"tokens": [1]},
}
ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    502: "api_error",
    503: "overloaded_error",
}
OPENAI = {429: {"rate_limit_error", "insufficient_quota"}, 502: {"server_error"}, 503: {"server_error"}}
ALL = pytest.mark.parametrize("path", BODIES)
ANSWER = {
    **usage(7, 0, 5),
    "id": "x",
    "type": "message",
    "object": "x",
    "choices": [{"index": 0, "message": {"content": "a"}, "text": "a"}],
    "content": [],
    "output": [],
}


def posted(path: str, tenant: str = "acme", **fields: object) -> bytes:
    """A request in the dialect of a path."""
    return post_request({"model": "tiny", **BODIES[path], **fields}, path=path, more=authorization(tenant))


def check_error(answer: RawResponse, path: str, status: int, code: str, *, waits: bool | None = False) -> None:
    """Checks an error of a path.

    waits: it says after how many seconds to come back; None: it may.
    """
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.fields["content-type"] == "application/json"
    if path.startswith("/v1/messages"):
        assert answer.json["type"] == "error"
        assert answer.error["type"] == ANTHROPIC[status]
    else:
        assert set(answer.json) == {"error", "request_id"}
        assert answer.error["type"] in OPENAI.get(status, {"invalid_request_error"})
    if waits is not None:
        assert ("retry-after" in answer.fields) == waits
    assert int(answer.fields.get("retry-after", "1")) > 0


@ALL
async def test_errors_before_an_instance_is_chosen(path: str) -> None:
    keys = keys_of(Tenant("acme"), Tenant("stopped", is_suspended=True))
    too_long = post_request(b" " * 999, path=path, more=authorization("acme"))
    cases = [
        (post_request({"model": "tiny", **BODIES[path]}, path=path), 401, "invalid_api_key"),
        (posted(path, "unknown"), 401, "invalid_api_key"),
        (posted(path, "stopped"), 403, "tenant_suspended"),
        (posted(path, model="other"), 404, "model_not_found"),
        (post_request(b"{", path=path, more=authorization("acme")), 400, "invalid_json"),
        (posted(path, model=7), 400, "invalid_type"),
        (too_long, 413, "body_too_large"),
        (get_request(path, more=authorization("acme")), 405, "method_not_allowed"),
    ]
    async with running_gateway(fleet_of([]), Limits(body_bytes=500), api_keys=keys) as running:
        for data, status, code in cases:
            (answer,) = await send(running.url, data)
            check_error(answer, path, status, code)
        (answer,) = await send(running.url, posted(path))
        check_error(answer, path, 503, "no_ready_instance", waits=True)


@ALL
@pytest.mark.parametrize(
    ("script", "code"),
    [
        (hang_up, "engines_broke_off"),
        (responds({"error": {"message": "no", "code": 500}}, "500 Internal Server Error"), "engine_failed"),
    ],
)
async def test_an_engine_that_fails_is_a_502(path: str, script: Script, code: str) -> None:
    async with before(script) as url:
        (answer,) = await send(url, posted(path))
        check_error(answer, path, 502, code, waits=None)


@ALL
async def test_the_end_of_a_drain_is_a_503(path: str) -> None:
    async with scripted_engine(silent) as engine, running_gateway(fleet_of([engine.url])) as running:
        waiting = asyncio.create_task(send(running.url, posted(path)))
        await wait_until(lambda: len(engine.calls) == 1)
        running.gateway.drain()
        running.gateway.end_drain()
        (answer,) = await waiting
        check_error(answer, path, 503, "gateway_draining", waits=True)


@ALL
async def test_a_limit_of_requests_is_a_429(path: str) -> None:
    await check_limit(path, Limit(LimitUnit.REQUESTS, 1, Window.DAY), "rate_limit_exceeded")


@pytest.mark.parametrize("path", GENERATING)
async def test_a_budget_that_is_spent_is_a_429(path: str) -> None:
    await check_limit(path, Limit(LimitUnit.COST, 20, Window.MONTH), "insufficient_quota")


async def check_limit(path: str, limit: Limit, code: str) -> None:
    """Checks that the first of two requests uses a limit up."""
    tenants, price = [Tenant("acme", limits=(limit,))], TokenPrice(1, 1, 1)
    async with limited_gateway(responds(ANSWER), tenants, price=price) as found:
        (first,) = await send(found.running.url, posted(path))
        (second,) = await send(found.running.url, posted(path))
        assert first.status == 200
        check_error(second, path, 429, code, waits=True)


@asynccontextmanager
async def before(script: Script) -> AsyncIterator[str]:
    """Runs a gateway before two engines; yields its URL."""
    async with (
        scripted_engine(script) as first,
        scripted_engine(script) as second,
        running_gateway(fleet_of([first.url, second.url])) as running,
    ):
        yield running.url
