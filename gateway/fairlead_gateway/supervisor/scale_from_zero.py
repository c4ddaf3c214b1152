"""Tells the autoscaler at once that requests wait for a model that has no engine; without it they would wait for its next look.

It is a hint and no more. One that does not arrive is said, and given again while requests wait; the autoscaler sees them anyway.
"""

import asyncio
from urllib.parse import urlsplit

import msgspec

from fairlead.errors import SettingsError, Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.http_client import fetch

_MAX_RESPONSE_BYTES = 4_096


def check_autoscaler_url(url: str) -> str:
    """The setting, without a slash at its end. Raises SettingsError."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query
    except ValueError:
        right = False
    if not right:
        raise SettingsError(
            "FAIRLEAD_AUTOSCALER_URL is not the URL of an autoscaler",
            field="FAIRLEAD_AUTOSCALER_URL",
            hint="write it like http://fairlead-autoscaler:9092",
        )
    return url.rstrip("/")


class ScaleUpNotifier:
    """``url`` is the autoscaler's, ``token`` the management token."""

    def __init__(self, url: str, token: str | None, clock: Clock, limits: Limits) -> None:
        self._url = f"{url}/wake"
        self._auth_header = b"" if token is None else b"authorization: Bearer " + token.encode() + b"\r\n"
        self._clock = clock
        self._limits = limits
        self._notified_at: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._warning: str | None = None

    def notify(self, model: str) -> None:
        """A worker holds requests of a model; of several that say so, the first is enough."""
        now = self._clock.now()
        self._notified_at = {
            key: at for key, at in self._notified_at.items() if now - at < self._limits.wake_hint_seconds
        }
        if model not in self._notified_at:
            self._notified_at[model] = now
            task = asyncio.get_running_loop().create_task(self._post(model))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def warnings(self) -> list[str]:
        """What is wrong, in words."""
        return [] if self._warning is None else [self._warning]

    async def close(self) -> None:
        """Tell nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _post(self, model: str) -> None:
        limits = self._limits
        try:
            await fetch(
                self._url,
                timeout_seconds=limits.wake_hint_seconds,
                max_bytes=_MAX_RESPONSE_BYTES,
                extra_headers=self._auth_header,
                json_body=msgspec.json.encode({"model": model}),
            )
        except Unavailable as error:
            self._warning = f"the autoscaler was not told that requests of {model} wait: {error.message}"
        else:
            self._warning = None
