"""The list of gateways, from names that are resolved again and again."""

import asyncio
import socket

import pytest

from fairlead.errors import SettingsError
from fairlead.limits import Limits
from fairlead_gateway.idempotency.messages import GatewayList
from fairlead_gateway.idempotency.supervisor.gateway_addresses import (
    GATEWAY_LEAVING_SECONDS,
    GatewayAddresses,
    parse_gateway_addresses,
)
from fairlead_testing.simulated.event_loop import running_clock

pytestmark = pytest.mark.simulated


class _Names:
    """A name server with one name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._resolve, raising=False)

    async def _resolve(self, host: str, port: int, *, family: int, type: int) -> list[tuple[object, ...]]:
        assert (host, family, type) == ("gateways", socket.AF_INET, socket.SOCK_STREAM)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, type, 6, "", (address, port)) for address in self.addresses]


async def test_the_list_has_its_own_address_and_remembers_what_left(monkeypatch: pytest.MonkeyPatch) -> None:
    names = _Names(monkeypatch)
    lists: list[GatewayList] = []
    with socket.create_server(("127.0.0.1", 0)) as public:
        port = public.getsockname()[1]
        own, other = f"127.0.0.1:{port}", f"10.0.0.2:{port}"
        found = GatewayAddresses([("gateways", port)], public, running_clock(), Limits(), lists.append)
        await found.refresh()
        assert lists == []
        names.addresses = ["127.0.0.1", "10.0.0.2"]
        await found.refresh()
        await found.refresh()
        assert lists == [GatewayList(own, [other, own])]
        names.addresses = ["127.0.0.1"]
        await found.refresh()
        assert lists[-1] == GatewayList(own, [own], leaving=[other])
        await asyncio.sleep(GATEWAY_LEAVING_SECONDS)
        await found.refresh()
        assert lists[-1] == GatewayList(own, [own], lost=[other])
        names.addresses = []
        await asyncio.sleep(Limits().idempotency_window_seconds)
        await found.refresh()
        assert lists[-1] == GatewayList(own, [own])
        names.addresses = ["10.0.0.2"]
        await found.refresh()
        assert lists[-1] == GatewayList(own, [other])


async def test_a_name_that_stays_unknown_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    names = _Names(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as public:
        found = GatewayAddresses([("gateways", 8080)], public, running_clock(), Limits(), lambda _: None)
        await found.refresh()
        assert found.warnings() == []
        await asyncio.sleep(60.0)
        await found.refresh()
        assert "gateways cannot be resolved" in found.warnings()[0]
        names.addresses = ["10.0.0.2"]
        await found.refresh()
        assert found.warnings() == []


def test_addresses_are_hosts_with_ports() -> None:
    assert parse_gateway_addresses(None) == []
    assert parse_gateway_addresses("a.svc:8080, [fd00::1]:80") == [("a.svc", 8080), ("fd00::1", 80)]
    for text in ("a.svc", ":8080", "a:0", "a:x"):
        with pytest.raises(SettingsError, match="--gateway-addresses"):
            parse_gateway_addresses(text)
