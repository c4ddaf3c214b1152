"""Ejections of healthy engines that one caller, or the gateway itself, causes.

The gateway and its engines run in this process, over real sockets.
"""

import re
from collections.abc import Awaitable, Callable, Iterator

from fairlead.limits import Limits
from fairlead_testing.engines.scripted import EngineCall, Script, well_behaved
from fairlead_testing.gateway.running_gateway import RunningGateway, gateway_before
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.processes import no_descriptors
from fairlead_testing.pytest_hooks.coroutine_tests import run_async

_ENGINES = 6
_REQUESTS = 60
_EJECTIONS = re.compile(r"^fairlead_gateway_instance_ejections_total\{[^}]*\} (\S+)$", re.MULTILINE)
_LIMITS = Limits(ejection_seconds=600.0)  # no ejection is over before the run


async def _fail_on_poison(call: EngineCall) -> None:
    if b"poison" in call.body:
        await call.respond({"error": {"message": "broken", "code": 500}}, "500 Internal Server Error")
    else:
        await well_behaved(call)


def ejections_by_poison_request() -> int:
    """Returns how many engines one caller ejects with a request that every engine fails.

    Half of the requests are the same one, the others differ.
    """
    texts = ["poison" if number % 2 else f"poison {number} " * 300 for number in range(_REQUESTS)]
    return _run(_fail_on_poison, lambda running: _send_all(running, texts, 502))


def ejections_without_descriptors() -> int:
    """Returns how many engines a gateway ejects that can open no connection to them (EMFILE)."""
    return _run(well_behaved, _send_without_descriptors)


def _run(script: Script, use: Callable[[RunningGateway], Awaitable[None]]) -> int:
    async def main() -> int:
        async with gateway_before([script] * _ENGINES, _LIMITS) as running:
            await use(running)
            return sum(_ejections(running))

    return run_async(main())


def _ejections(running: RunningGateway) -> Iterator[int]:
    """Yields the ejections of each instance since the start."""
    gateway = running.gateway
    page = gateway.telemetry.render(gateway.stack.routers.fleet, running.loads(), gateway.runtime.now()).decode()
    yield from (int(float(value)) for value in _EJECTIONS.findall(page))


async def _send_without_descriptors(running: RunningGateway) -> None:
    client = await RawConnection.connect(running.url)
    with no_descriptors():
        await _send_over(client, [f"{number} " * 300 for number in range(_REQUESTS)], 503)
    await client.close()


async def _send_all(running: RunningGateway, texts: list[str], status: int) -> None:
    client = await RawConnection.connect(running.url)
    await _send_over(client, texts, status)
    await client.close()


async def _send_over(client: RawConnection, texts: list[str], status: int) -> None:
    """Sends a chat for each text. Raises AssertionError for an answer of another status."""
    for text in texts:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
        await client.send(post_request(body, close=False))
        answer = await client.read_response()
        assert answer.status == status, answer.status
