"""``sleep.Ask`` by httpx: control traffic to engines, without proxies and redirects."""

import asyncio

import httpx

from fairlead.engines.sleep_mode import EngineSleepClient, SleepResponse, SleepTimeouts
from fairlead.errors import Unavailable
from fairlead.limits import Limits

_MAX_RESPONSE_BYTES = 65_536


def sleep_client(limits: Limits) -> EngineSleepClient:
    """Engines over HTTP, with the patience of the limits."""
    return EngineSleepClient(
        send_request,
        SleepTimeouts(limits.engine_query_seconds, limits.engine_sleep_seconds, limits.engine_wake_seconds),
    )


async def send_request(method: str, url: str, body: bytes | None, seconds: float) -> SleepResponse:
    """One request on a connection of its own. Raises Unavailable when there is no answer within ``seconds``."""
    headers = {} if body is None else {"content-type": "application/json"}
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=seconds, trust_env=False) as client,
            client.stream(method, url, content=body, headers=headers) as answer,
        ):
            read = bytearray()
            async for part in answer.aiter_bytes():
                read += part
                if len(read) > _MAX_RESPONSE_BYTES:
                    raise Unavailable(f"its answer is longer than {_MAX_RESPONSE_BYTES} bytes")
            return SleepResponse(answer.status_code, bytes(read))
    except TimeoutError:
        raise Unavailable(f"no answer within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise Unavailable(f"it does not answer ({type(error).__name__})") from error
