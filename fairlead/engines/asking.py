"""``sleep.Ask`` by httpx: control traffic to engines, without proxies and redirects."""

import asyncio

import httpx

from fairlead.engines.sleep import Answer, Bedside, Patience
from fairlead.errors import Unavailable
from fairlead.limits import Limits

_MOST_BYTES = 65_536


def bedside(limits: Limits) -> Bedside:
    """Engines over HTTP, with the patience of the limits."""
    return Bedside(ask, Patience(limits.engine_ask_seconds, limits.engine_sleep_seconds, limits.engine_wake_seconds))


async def ask(method: str, url: str, body: bytes | None, seconds: float) -> Answer:
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
                if len(read) > _MOST_BYTES:
                    raise Unavailable(f"its answer is longer than {_MOST_BYTES} bytes")
            return Answer(answer.status_code, bytes(read))
    except TimeoutError:
        raise Unavailable(f"no answer within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise Unavailable(f"it does not answer ({type(error).__name__})") from error
