"""Addresses and ports of this machine: parsing, and finding free ones."""

import errno
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from fairlead.errors import BadInput
from fairlead_cli.exit_codes import PortInUse

MAX_PORT_ATTEMPTS = 500


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port of a listener; an IPv6 host has no brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{Address(host, self.port)}"


def parse_address(text: str, *, flag: str) -> Address:
    """Parses ``127.0.0.1:8000``, ``[::1]:8000``, ``:8000`` or ``8000``; port 0 means any free port.

    Raises BadInput with the flag.
    """
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
    """Returns the URL of a service from a URL, ``host:port``, ``:port`` or ``port``. Raises
    BadInput with the flag.
    """
    if "://" not in text:
        text = parse_address(text, flag=flag).url if text.lstrip(":").isdecimal() else f"http://{text}"
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise BadInput(f"{flag}: {text!r} is not a URL", field=flag, hint="write it like http://127.0.0.1:8000")
    return text.rstrip("/")


def claim_port(address: Address, *, flag: str) -> Address:
    """Returns the address, with a free port in place of port 0, after checking that it can be
    bound.

    Raises PortInUse when the port is taken, BadInput when this machine cannot listen there.
    """
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
                raise PortInUse(f"{flag}: {address} is already in use", field=flag, hint=hint) from None
            reason = error.strerror or str(error)
            raise BadInput(f"{flag}: cannot listen on {address}: {reason}", field=flag) from None
        return Address(address.host, probe.getsockname()[1])


def is_port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now; connections in TIME_WAIT do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def find_free_ports(sizes: list[int], host: str = "127.0.0.1") -> list[tuple[int, ...]]:
    """Returns one group of consecutive free ports per size. No port is in two groups.

    Raises BadInput when the system has no such ports.
    """
    used: set[int] = set()
    groups = []
    for size in sizes:
        groups.append(_consecutive_ports(size, host, used) if size else ())
        used.update(groups[-1])
    return groups


def _consecutive_ports(size: int, host: str, used: set[int]) -> tuple[int, ...]:
    """Returns ``size`` consecutive free ports that are not in ``used``; the system proposes the
    first.
    """
    for _ in range(MAX_PORT_ATTEMPTS):
        first = claim_port(Address(host, 0), flag="--engines-per-process").port
        ports = range(first, first + size)
        if ports[-1] <= 65_535 and used.isdisjoint(ports) and all(is_port_free(port, host) for port in ports):
            return tuple(ports)
    hint = "give a smaller number, or end other programs that use many ports"
    raise BadInput(f"found no {size} free ports in a row on {host}", field="--engines-per-process", hint=hint)
