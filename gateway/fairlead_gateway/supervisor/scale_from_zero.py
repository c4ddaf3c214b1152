"""Sends wake hints: requests wait for a model without an instance, and the autoscaler should act.

Without the hint, the autoscaler sees the queue with its next scrape. A hint that did not arrive
becomes a warning, and is sent again while requests wait.
"""

import asyncio

import msgspec

from fairlead.errors import SettingsError, Unavailable
from fairlead.fleet.engine_url import is_http_url
from fairlead.runtime.clock import Clock
from fairlead.runtime.http_client import fetch
from fairlead_gateway.messages import WAKE_HINT_SECONDS

_MAX_RESPONSE_BYTES = 4_096


def check_autoscaler_url(url: str) -> str:
    """Returns the URL without a trailing slash. Raises SettingsError if it is not an HTTP URL."""
    if not is_http_url(url):
        raise SettingsError(
            "FAIRLEAD_AUTOSCALER_URL is not the URL of an autoscaler",
            field="FAIRLEAD_AUTOSCALER_URL",
            hint="write it like http://fairlead-autoscaler:8080",
        )
    return url.rstrip("/")


class ScaleUpNotifier:
    """The sender of hints to the autoscaler.

    url: checked by `check_autoscaler_url`.
    token: the management token, if there is one.
    """

    def __init__(self, url: str, token: str | None, clock: Clock) -> None:
        self._url = f"{url}/wake"
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._clock = clock
        self._notified_at: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._warning: str | None = None

    def notify(self, model: str) -> None:
        """Sends a hint for a model, at most one per `wake_hint_seconds`."""
        now = self._clock.now()
        self._notified_at = {key: at for key, at in self._notified_at.items() if now - at < WAKE_HINT_SECONDS}
        if model not in self._notified_at:
            self._notified_at[model] = now
            task = asyncio.get_running_loop().create_task(self._post(model))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def warnings(self) -> list[str]:
        """Returns a text that says why the last hint did not arrive; empty if it did."""
        return [] if self._warning is None else [self._warning]

    async def close(self) -> None:
        """Cancels hints that are being sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _post(self, model: str) -> None:
        try:
            await fetch(
                self._url,
                timeout_seconds=WAKE_HINT_SECONDS,
                max_bytes=_MAX_RESPONSE_BYTES,
                headers=self._headers,
                json_body=msgspec.json.encode({"model": model}),
            )
        except Unavailable as error:
            self._warning = f"the wake hint for {model} did not reach the autoscaler: {error.message}"
        else:
            self._warning = None
