"""Rules that close a port to web pages of other sites. Pure.

Why: a page of another site can make a browser send requests to a port. By DNS rebinding (its own
name resolves to our address) it can even read the answers. The management port, the autoscaler's
port, and the client port of a gateway without keys use the same rules. So do all ports on loopback
that ask for no key: simulated engines, and those with probes and metrics.
"""

import hmac
import ipaddress
from asyncio import BaseTransport
from collections.abc import Callable, Collection, Iterable
from typing import Final

FOREIGN_PAGE_MESSAGE: Final = "this port asks for no key, so it answers no page of another site"
_PRIVATE_SUFFIXES: Final = (".localhost", ".svc", ".cluster.local", ".internal")


def normalize_host_names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower().rstrip(".") for name in names)


def is_trusted_host(host: str, names: Collection[str] = ()) -> bool:
    """Returns whether no foreign page can make a browser send this Host header.

    Trusted are addresses, names without a dot, names that no public DNS serves, and listed names.

    names: further names under which clients reach the port, as of `normalize_host_names`.
    """
    name = _host_name(host)
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE_SUFFIXES) or name in names
    return True


def is_foreign_origin(origin: str | None, host: str) -> bool:
    """Returns whether the Origin header names another site than the Host header. None: no."""
    return origin is not None and origin.partition("://")[2] != host


def is_foreign_fetch(site: str | None, mode: str | None) -> bool:
    """Returns whether a script of another site sent the request; following a link is allowed.

    site, mode: `Sec-Fetch-Site` and `Sec-Fetch-Mode`; None without these headers.
    """
    return site == "cross-site" and mode != "navigate"


def is_foreign_page(header: Callable[[str], str | None]) -> bool:
    """Returns whether a page of another site may have sent the request with these headers.

    header: returns the value of a header by its name in lower case; None without it.
    """
    host = header("host")
    if host is None:
        return False  # HTTP/1.0, which no browser speaks
    return (
        not is_trusted_host(host)
        or is_foreign_origin(header("origin"), host)
        or is_foreign_fetch(header("sec-fetch-site"), header("sec-fetch-mode"))
    )


def is_loopback_socket(transport: BaseTransport | None) -> bool:
    """Returns whether a connection has ended on the loopback interface."""
    address = None if transport is None else transport.get_extra_info("sockname")
    try:
        return isinstance(address, tuple) and ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return False


def is_authorized(authorization: bytes, token: bytes) -> bool:
    """Returns whether the Authorization header is the bearer token; any bytes are allowed."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token)


def _host_name(host: str) -> str | None:
    """Returns the host in lower case without port and brackets; None if it is not valid."""
    text = host.strip().lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        port = port.removeprefix(":") if bracket else "?"
    else:
        name, _, port = text.partition(":")
    if not name or (port and not port.isdecimal()):
        return None
    return name.rstrip(".")
