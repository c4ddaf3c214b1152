"""Follows the addresses of the gateways that own idempotency keys together.

`--gateway-addresses` names them: addresses, or DNS names that resolve to all gateways that serve,
such as that of a headless Service.

Why not Redis, where gateways find each other for everything else: requests with API keys and
prompts go to these addresses. A process that can write to Redis must not choose them.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final

from fairlead.errors import SettingsError
from fairlead.limits import Limits
from fairlead.runtime.cli_options import parse_address
from fairlead.runtime.clock import Clock
from fairlead_gateway.idempotency.messages import GatewayList

GATEWAY_RESOLVE_SECONDS: Final = 2.0
"""Limit: interval at which the names of gateways are resolved, and how long that may take."""
GATEWAY_LEAVING_SECONDS: Final = 30.0
"""Limit: a gateway that left the list is asked for answers for this long, while it still accepts
connections. Later, its address may belong to another pod.
"""
_WARNING_SECONDS: Final = 60.0  # so long may a name be unknown, since no gateway is ready yet


class GatewayAddresses:
    """The addresses of all gateways.

    names: hosts and ports from `parse_gateway_addresses`.
    public: the socket of the public port, whose number the own address has.
    on_changed: called with each new list.
    """

    def __init__(
        self,
        names: Sequence[tuple[str, int]],
        public: socket.socket,
        clock: Clock,
        limits: Limits,
        on_changed: Callable[[GatewayList], object],
    ) -> None:
        self._names = names
        self._family = public.family
        self._port: int = public.getsockname()[1]
        self._now = clock.now
        self._window_seconds: float = limits.idempotency_window_seconds
        self._on_changed = on_changed
        self._found: dict[tuple[str, int], list[str]] = {}
        self._errors: dict[str, tuple[float, str]] = {}
        self._left_at: dict[str, float] = {}
        self.list = GatewayList()

    async def run(self) -> None:
        """Resolves the names again and again."""
        while self._names:
            await asyncio.sleep(GATEWAY_RESOLVE_SECONDS)
            await self.refresh()

    async def refresh(self) -> None:
        """Resolves all names once. What cannot be resolved stays as it was."""
        for host, port in self._names:
            try:
                async with asyncio.timeout(GATEWAY_RESOLVE_SECONDS):
                    self._found[host, port] = await self._resolve(host, port)
                self._errors.pop(host, None)
            except (OSError, TimeoutError) as error:
                since, _ = self._errors.get(host, (self._now(), ""))
                self._errors[host] = since, str(error) or "no answer in time"
        self._update(sorted({address for found in self._found.values() for address in found}))

    async def _resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        rows = await loop.getaddrinfo(host, port, family=self._family, type=socket.SOCK_STREAM)
        return [_join(str(row[4][0]), port) for row in rows]

    def _update(self, present: list[str]) -> None:
        now, own = self._now(), self.list.own
        for address in present:
            if self._is_own(address):
                own = address
            self._left_at.pop(address, None)
        for address in self.list.present:
            if address not in present and address != own:
                self._left_at[address] = now
        self._left_at = {name: at for name, at in self._left_at.items() if now - at < self._window_seconds}
        leaving = [name for name, at in self._left_at.items() if now - at < GATEWAY_LEAVING_SECONDS]
        current = GatewayList(own, present, leaving, [name for name in self._left_at if name not in leaving])
        if current != self.list:
            self.list = current
            self._on_changed(current)

    def _is_own(self, address: str) -> bool:
        """Whether an address is this gateway's: one of this machine or pod, with its port.

        The system sends from an address of its own, so only to such an address from itself.
        """
        host, _, port = address.rpartition(":")
        if int(port) != self._port:
            return False
        with socket.socket(self._family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host.strip("[]"), self._port))  # sends nothing
            except OSError:
                return False
            return _join(probe.getsockname()[0], self._port) == address

    def warnings(self) -> list[str]:
        """Returns one text for each name that has been unknown for a while."""
        oldest = self._now() - _WARNING_SECONDS
        return [
            f"idempotency keys may not meet at all gateways: {host} cannot be resolved: {error}"
            for host, (since, error) in self._errors.items()
            if since <= oldest
        ]


def parse_gateway_addresses(text: str | None) -> list[tuple[str, int]]:
    """Returns hosts and ports of `HOST:PORT,HOST:PORT`. Raises SettingsError."""
    option, example = "--gateway-addresses", "fairlead-gateway-manage.fairlead.svc:8080"
    found = [parse_address(part.strip(), option, example) for part in (text or "").split(",") if part.strip()]
    if text is not None and not all(host and port for host, port in found):
        raise SettingsError(f"{option} must be HOST:PORT", field=option, hint=f"write it like {example}")
    return found


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
