"""Reports to the supervisor which keys callers use, some seconds after the first use.

Why: a request sets one flag, and most set none. A timer runs only after a use.
"""

import asyncio

from fairlead.limits import Limits
from fairlead_gateway.ipc.channel import Channel
from fairlead_gateway.ipc.messages import AccessReport, ToWorker
from fairlead_gateway.worker.api_keys import ApiKeys


class AccessReporter:
    """The reporter of the uses of API keys."""

    def __init__(
        self, api_keys: ApiKeys, channel: Channel[ToWorker], loop: asyncio.AbstractEventLoop, limits: Limits
    ) -> None:
        self._api_keys = api_keys
        self._channel = channel
        self._loop = loop
        self._limits = limits
        api_keys.on_first_use = self._on_first_use

    def report_unknown_key(self, issuer: str) -> None:
        """Reports a bearer token whose key is not in the key set of its issuer."""
        self._channel.send(AccessReport(unknown_key_issuers=[issuer]))

    def flush(self) -> None:
        """Reports all uses since the last report."""
        used = self._api_keys.take_used_keys()
        if used:
            self._channel.send(AccessReport(used_keys=used))

    def _on_first_use(self) -> None:
        self._loop.call_later(self._limits.key_use_seconds, self.flush)
