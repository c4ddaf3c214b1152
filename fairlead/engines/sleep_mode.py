"""Putting an engine to sleep and waking it, by vLLM's HTTP interface (its sleep mode, behind ``VLLM_SERVER_DEV_MODE=1``).

An engine that was told to sleep first ends what it has (``mode=wait``; releases that do not know the word take the switch and abort,
so whoever calls has drained it before). Waking from level 2 takes three steps in this order: memory for the weights, the weights,
memory for the cache. Until the last one the engine itself says that it sleeps, so that whoever finds it half awake after a crash
begins anew and ends at the same place. An engine that was woken without its weights would answer nonsense and not say so.
"""

import json
from dataclasses import dataclass
from typing import Final, Protocol

from fairlead.errors import Unavailable

SLEEP_CAPABLE_KINDS: Final = ("vllm", "sim")
"""SGLang can release and resume its memory, but does not say whether it has: who takes over could not know."""
SLEEP_MODE_FLAG: Final = "--enable-sleep-mode"
DEV_MODE_VARIABLE: Final = ("VLLM_SERVER_DEV_MODE", "1")


class SleepRefused(Unavailable):
    """It answers, and does not do it: it was not started for it."""


@dataclass(frozen=True, slots=True)
class SleepResponse:
    """Status and body of an answer."""

    status: int
    body: bytes = b""


class SleepRequester(Protocol):
    """One HTTP request to an engine."""

    async def __call__(self, method: str, url: str, body: bytes | None, seconds: float) -> SleepResponse:
        """Its answer, whatever the status. Raises Unavailable when there is none within ``seconds``."""
        ...


@dataclass(frozen=True, slots=True)
class SleepTimeouts:
    """Seconds to wait for an answer: to a question, to "sleep" and to "wake up"."""

    query_seconds: float
    sleep_seconds: float
    wake_seconds: float


class EngineSleepClient:
    """Engines as one who puts them to sleep reaches them; ``url`` is an engine's address without a path."""

    def __init__(self, request: SleepRequester, timeouts: SleepTimeouts) -> None:
        self._request = request
        self._timeouts = timeouts

    async def is_sleeping(self, url: str) -> bool:
        """Does it say that it sleeps, or is not awake altogether? Raises Unwilling when it does not say, Unavailable
        when it does not answer."""
        answer = await self._request("GET", f"{url}/is_sleeping", None, self._timeouts.query_seconds)
        try:
            found = json.loads(answer.body)["is_sleeping"] if answer.status == 200 else None
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, bool):
            raise SleepRefused(f"it does not say whether it sleeps ({answer.status})", hint=_HINT)
        return found

    async def sleep(self, url: str, level: int) -> None:
        """Asleep when this returns. Raises Unwilling when it answers and is not, Unavailable when it does not answer."""
        await self._post(f"{url}/sleep?level={level}&mode=wait", None, self._timeouts.sleep_seconds)
        if not await self.is_sleeping(url):
            raise SleepRefused("it was told to sleep and is awake", hint=_HINT)

    async def wake(self, url: str, level: int) -> None:
        """Awake and healthy when this returns. Raises Unavailable when it is not."""
        seconds = self._timeouts.wake_seconds
        if level == 1:
            await self._post(f"{url}/wake_up", None, seconds)
        else:
            await self._post(f"{url}/wake_up?tags=weights", None, seconds)
            await self._post(f"{url}/collective_rpc", b'{"method": "reload_weights"}', seconds)
            await self._post(f"{url}/wake_up?tags=kv_cache", None, seconds)
        if await self.is_sleeping(url):
            raise Unavailable("it was woken and sleeps")
        health = await self._request("GET", f"{url}/health", None, self._timeouts.query_seconds)
        if health.status != 200:
            raise Unavailable(f"it is awake and not well ({health.status})")

    async def _post(self, url: str, body: bytes | None, seconds: float) -> None:
        answer = await self._request("POST", url, body, seconds)
        if answer.status != 200:
            path = url.split("://", 1)[-1].partition("/")[2]
            raise SleepRefused(f"it answers /{path} with {answer.status}", hint=_HINT)


_HINT: Final = f"start it with {SLEEP_MODE_FLAG} and {'='.join(DEV_MODE_VARIABLE)}"
