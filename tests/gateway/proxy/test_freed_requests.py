"""Requests that fail are freed at once: their bodies do not wait for the garbage collector."""

import gc
import json
from collections.abc import Iterator

import pytest

from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.request_context import RequestContext
from fairlead_testing.engines.scripted import EngineCall, Script, responds, well_behaved
from fairlead_testing.gateway.limited_gateway import limited_gateway
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

_TENANTS = [
    Tenant("open", limits=(Limit(LimitUnit.TOKENS, 50_000_000, Window.DAY),)),
    Tenant("spent", limits=(Limit(LimitUnit.TOKENS, 100, Window.DAY),)),
    Tenant("idle", limits=(Limit(LimitUnit.REQUESTS, 0, Window.DAY),)),
]
_CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
_WRONG: dict[str, dict[str, object]] = {
    "right": {},
    "stream": {"stream": True},
    "type": {"n": "x"},
    "range": {"max_tokens": 10**30},
    "model": {"model": "other"},
    "field": {"priority": 1},
}


async def _drops(call: EngineCall) -> None:
    call.writer.close()


async def _garbage(call: EngineCall) -> None:
    await call.respond([], "200 OK")


def _refuses(status: int) -> Script:
    return responds({"error": {"message": "?", "type": "x", "code": status}}, f"{status} Answer")


_ENGINES: dict[str, Script] = {
    "well": well_behaved,
    "drops": _drops,
    "garbage": _garbage,
    **{str(status): _refuses(status) for status in (400, 404, 429, 500, 503)},
}


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _living() -> int:
    return sum(isinstance(tracked, HttpRequest | RequestContext) for tracked in gc.get_objects())


@pytest.mark.parametrize("size", [10, 300_000], ids=["small", "checked-in-a-process"])
@pytest.mark.parametrize("engine", _ENGINES)
async def test_nothing_of_a_failed_request_waits_for_the_garbage_collector(
    engine: str, size: int, without_collector: None
) -> None:
    async with limited_gateway(_ENGINES[engine], _TENANTS) as gateway:
        bodies = [json.dumps(_CHAT | wrong | {"user": "x" * size}).encode() for wrong in _WRONG.values()]
        bodies.append(bodies[0][:-1])
        for tenant in ("open", "spent", "idle"):
            headers = {"authorization": f"Bearer {tenant}", "content-type": "application/json"}
            for body in bodies:
                url = f"{gateway.running.url}/v1/chat/completions"
                await gateway.client.post(url, content=body, headers=headers)
                await wait_until(lambda: not gateway.running.gateway.inflight_count())
        await wait_until(lambda: _living() == 0)
