"""Client for vLLM's sleep mode, an HTTP API enabled by `VLLM_SERVER_DEV_MODE=1`.

An engine first finishes its requests (`mode=wait`). Releases that do not know `mode` abort them, so
callers must drain the engine first.

Waking from level 2 takes three steps in this order: memory for the weights, the weights, memory for
the KV cache. The engine reports that it sleeps until the last step. After a crash in between, a
caller can therefore start again and reach the same state. An engine that wakes without its weights
would return garbage without an error.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Final

from fairlead.errors import Unavailable
from fairlead.runtime.http_client import HttpReply, send

ENGINE_QUERY_SECONDS: Final = 5.0
"""Limit: an engine's reply about its sleep state and its health."""
ENGINE_SLEEP_SECONDS: Final = 120.0
"""Limit: until an idle engine sleeps: weights are moved to the host's memory."""
ENGINE_WAKE_SECONDS: Final = 900.0
"""Limit: an engine that is not awake by then is restarted: weights may be loaded again."""

SLEEP_MODE_FLAG: Final = "--enable-sleep-mode"
DEV_MODE_VARIABLE: Final = ("VLLM_SERVER_DEV_MODE", "1")
_MAX_RESPONSE_BYTES: Final = 65_536

SleepRequester = Callable[[str, str, bytes | None, float], Awaitable[HttpReply]]
"""Sends one HTTP request to an engine: method, URL, body, seconds. Returns whatever is answered.

Raises Unavailable after the seconds.
"""

_HINT: Final = f"start it with {SLEEP_MODE_FLAG} and {'='.join(DEV_MODE_VARIABLE)}"


class SleepRefused(Unavailable):
    """Raised when an engine responds but refuses; mostly, it was started without sleep mode."""


class EngineSleepClient:
    """A client of vLLM's sleep mode (`/sleep`, `/wake_up`, `/is_sleeping`). URLs have no path."""

    def __init__(self, request: SleepRequester) -> None:
        self._request = request

    async def is_sleeping(self, url: str) -> bool:
        """Returns True if the engine sleeps, wholly or in part.

        Raises SleepRefused if the engine does not report it, and Unavailable without a response.
        """
        response = await self._request("GET", f"{url}/is_sleeping", None, ENGINE_QUERY_SECONDS)
        try:
            sleeping = json.loads(response.body)["is_sleeping"] if response.status == 200 else None
        except (ValueError, KeyError, TypeError, RecursionError):
            sleeping = None
        if not isinstance(sleeping, bool):
            raise SleepRefused(f"the engine does not say whether it sleeps ({response.status})", hint=_HINT)
        return sleeping

    async def sleep(self, url: str, level: int) -> None:
        """Puts the engine to sleep and returns when it sleeps.

        Raises SleepRefused if the engine rejects the request or stays awake, and Unavailable if
        there is no response.
        """
        await self._post(f"{url}/sleep?level={level}&mode=wait", None, ENGINE_SLEEP_SECONDS)
        if not await self.is_sleeping(url):
            raise SleepRefused("the engine is awake after the sleep request", hint=_HINT)

    async def wake(self, url: str, level: int) -> None:
        """Wakes the engine and returns when it is awake and healthy.

        level: the level at which the engine sleeps, 1 or 2.
        Raises SleepRefused if the engine rejects a request, and Unavailable if it does not become
        awake and healthy.
        """
        if level == 1:
            await self._post(f"{url}/wake_up", None, ENGINE_WAKE_SECONDS)
        else:
            await self._post(f"{url}/wake_up?tags=weights", None, ENGINE_WAKE_SECONDS)
            await self._post(f"{url}/collective_rpc", b'{"method": "reload_weights"}', ENGINE_WAKE_SECONDS)
            await self._post(f"{url}/wake_up?tags=kv_cache", None, ENGINE_WAKE_SECONDS)
        if await self.is_sleeping(url):
            raise Unavailable("the engine still sleeps after the wake-up request")
        health = await self._request("GET", f"{url}/health", None, ENGINE_QUERY_SECONDS)
        if health.status != 200:
            raise Unavailable(f"the engine is awake but not healthy ({health.status})")

    async def _post(self, url: str, body: bytes | None, seconds: float) -> None:
        response = await self._request("POST", url, body, seconds)
        if response.status != 200:
            path = url.split("://", 1)[-1].partition("/")[2]
            raise SleepRefused(f"the engine answered /{path} with {response.status}", hint=_HINT)


async def send_request(method: str, url: str, body: bytes | None, seconds: float) -> HttpReply:
    """Sends a request and returns the response. Raises Unavailable after `seconds` without one."""
    return await send(method, url, timeout_seconds=seconds, max_bytes=_MAX_RESPONSE_BYTES, json_body=body)


def sleep_client() -> EngineSleepClient:
    return EngineSleepClient(send_request)
