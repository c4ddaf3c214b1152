"""Traffic of tenants over HTTP: the same requests to the gateways of any product.

The engine is one server, before which all gateways stand. Of each request it knows how long the
answer is, which no gateway can know before.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from fairlead_bench.quota.accuracy import AdmittedRequests
from fairlead_bench.quota.tenant_traffic import WINDOW_SECONDS, TenantRequest, TrafficCase, tenant_requests
from fairlead_testing.engines.scripted import EngineCall, ScriptedEngine, scripted_engine, usage

MODEL = "tiny"
REPLICAS = 2
_NUMBER = re.compile(rb"request ([0-9]+) ")
_AT_ONCE = TenantRequest(0.0, 0, 300, 70, 10, None)
"""The answer of a chat without a number, which takes no time."""
_WORDS = "what a long day it was for all of us and none knew how it would end "


@dataclass(frozen=True, slots=True)
class NumberedRequest:
    """A request of a tenant; the engine finds its answer by the number in its prompt."""

    number: int
    tenant: str
    request: TenantRequest

    def body(self) -> dict[str, object]:
        """Returns the chat. No two prompts begin alike, so that nothing is cached."""
        text = f"request {self.number} {_WORDS * (self.request.prompt_bytes // len(_WORDS) + 1)}"
        body: dict[str, object] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text[: max(20, self.request.prompt_bytes)]}],
        }
        return body if self.request.max_tokens is None else {**body, "max_tokens": self.request.max_tokens}


def numbered_requests(cases: Mapping[str, TrafficCase], seconds: float, seed: int) -> list[NumberedRequest]:
    """Returns the requests of all tenants in the order of their times."""
    found = [
        (tenant, request)
        for tenant, case in cases.items()
        for request in tenant_requests(case, seconds, REPLICAS, seed)
    ]
    found.sort(key=lambda one: one[1].at)
    return [NumberedRequest(number, tenant, request) for number, (tenant, request) in enumerate(found)]


@asynccontextmanager
async def answering_engine(requests: Sequence[NumberedRequest]) -> AsyncIterator[ScriptedEngine]:
    """Runs an engine that answers each request with its own length, after its own time."""

    async def script(call: EngineCall) -> None:
        found = _NUMBER.search(call.body)
        if not call.path.endswith("/chat/completions"):  # a probe of a gateway
            await call.respond({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
            return
        request = _AT_ONCE if found is None else requests[int(found[1])].request
        if found is not None:
            await asyncio.sleep(request.seconds)
        message = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
        counted = usage(request.prompt_tokens, 0, request.output_tokens)["usage"]
        counted["total_tokens"] = request.tokens
        head = {"id": "x", "object": "chat.completion", "created": int(time.time()), "model": MODEL}
        await call.respond({**head, "choices": [message], "usage": counted})

    async with scripted_engine(script) as engine:
        yield engine


async def send_all(
    requests: Sequence[NumberedRequest], urls: Sequence[str], keys: Mapping[str, str]
) -> dict[str, AdmittedRequests]:
    """Sends all requests at their times, from the next minute on; returns what each tenant got."""
    found = {tenant: AdmittedRequests() for tenant in keys}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def send(one: NumberedRequest) -> None:
            sent_at = time.time()
            headers = {"authorization": f"Bearer {keys[one.tenant]}"}
            url = f"{urls[one.request.replica]}/v1/chat/completions"
            try:
                answer = await client.post(url, json=one.body(), headers=headers)
            except httpx.HTTPError:
                found[one.tenant].failed += 1
                return
            if answer.status_code == 200:
                found[one.tenant].admitted.append((sent_at, time.time(), one.request.tokens))
            elif answer.status_code == 429:
                found[one.tenant].refused += 1
            else:
                found[one.tenant].failed += 1

        first = (time.time() // WINDOW_SECONDS + 1) * WINDOW_SECONDS
        tasks = []
        for one in requests:
            await asyncio.sleep(max(0.0, first + one.request.at - time.time()))
            tasks.append(asyncio.create_task(send(one)))
        await asyncio.gather(*tasks)
    return found


def calendar_starts(requests: Mapping[str, AdmittedRequests]) -> list[float]:
    """Returns the beginnings of all minutes in which a request was admitted."""
    times = [at for found in requests.values() for at, _, _ in found.admitted]
    first, last = (int(at // WINDOW_SECONDS) for at in (min(times), max(times)))
    return [number * WINDOW_SECONDS for number in range(first, last + 1)]
