"""Addresses as people write them, and ports on this machine: is one free, which ones are."""

import errno
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from fairlead.errors import BadInput
from fairlead_cli.errors import PortInUse

MAX_PORT_ATTEMPTS = 500


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens; an IPv6 host without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Can only this machine reach it?"""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        """The URL for a client on this machine: a wildcard host is reached over loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{Address(host, self.port)}"


def parse_address(text: str, *, flag: str) -> Address:
    """``127.0.0.1:8000``, ``[::1]:8000``, ``:8000`` or ``8000``; port 0 = any free one. Raises BadInput naming the flag."""
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = "", text
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not port.isdecimal() or int(port) > 65_535 or (":" in host and not bracketed):
        hint = "write it like 127.0.0.1:8000 or [::1]:8000"
        raise BadInput(f"{flag}: {text!r} is not an address", field=flag, hint=hint)
    return Address("127.0.0.1" if host in ("", "localhost") else host, int(port))


def service_url(text: str, *, flag: str) -> str:
    """The URL of something that listens: ``http://host:port`` as it is, ``host:port``, ``:port`` and ``port`` completed.

    Raises BadInput naming the flag.
    """
    if "://" not in text:
        text = parse_address(text, flag=flag).url if text.lstrip(":").isdecimal() else f"http://{text}"
    try:
        parts = urlsplit(text)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise BadInput(f"{flag}: {text!r} is not a URL", field=flag, hint="write it like http://127.0.0.1:8000")
    return text.rstrip("/")


def claim_port(address: Address, *, flag: str) -> Address:
    """The address with its port filled in (0 = a free one). Raises PortBusy when it is taken, BadInput when it is not ours."""
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        raise BadInput(f"{flag}: {address.host!r} is not an IP address", field=flag) from None
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                hint = f"stop what listens there, or choose another port; {flag} :0 takes a free one"
                raise PortInUse(f"{flag}: {address} is in use already", field=flag, hint=hint) from None
            what = error.strerror or str(error)
            raise BadInput(f"{flag}: cannot listen on {address}: {what}", field=flag) from None
        return Address(address.host, probe.getsockname()[1])


def is_port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Could a server listen there now? Connections of a former server that still time out do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def find_free_ports(groups: list[int], host: str = "127.0.0.1") -> list[tuple[int, ...]]:
    """For each size in ``groups`` that many neighbouring ports, all free just now and all different."""
    taken: set[int] = set()
    found = []
    for size in groups:
        found.append(_consecutive_ports(size, host, taken))
        taken.update(found[-1])
    return found


def _consecutive_ports(size: int, host: str, taken: set[int]) -> tuple[int, ...]:
    """Ports beside one that the system proposes. Those of connections that are over but time out are free to listen on."""
    for _ in range(MAX_PORT_ATTEMPTS):
        first = claim_port(Address(host, 0), flag="--engines-per-process").port
        ports = range(first, first + size)
        if ports[-1] <= 65_535 and taken.isdisjoint(ports) and all(is_port_free(port, host) for port in ports):
            return tuple(ports)
    hint = "give a smaller number, or end other programs that use many ports"
    raise BadInput(f"found no {size} free ports in a row on {host}", field="--engines-per-process", hint=hint)
