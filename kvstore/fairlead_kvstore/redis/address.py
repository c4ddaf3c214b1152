"""Redis addresses from URLs: one server, the master that sentinels report, or a cluster. Pure.

``redis://`` and ``unix://`` are as in every Redis client. The others have no common form; these are
Fairlead's:

- ``redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/0``: the sentinels, and the name by
  which they know the master. User, password and database are the master's;
  ``?sentinel_username=&sentinel_password=`` are the sentinels' own.
- ``redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT``: some nodes of a cluster, which report the
  others.

``rediss`` in place of ``redis`` means TLS. ``?ssl_ca_certs=FILE`` names the certificate authority,
where it is not one of the system's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from fairlead.errors import BadInput

SINGLE, SENTINEL, CLUSTER = "one", "sentinel", "cluster"
_SCHEMES: Final[Mapping[str, str]] = {
    "redis": SINGLE,
    "rediss": SINGLE,
    "unix": SINGLE,
    "redis+sentinel": SENTINEL,
    "rediss+sentinel": SENTINEL,
    "redis+cluster": CLUSTER,
    "rediss+cluster": CLUSTER,
}
_PORTS: Final[Mapping[str, int]] = {SENTINEL: 26_379, CLUSTER: 6_379}
_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    SENTINEL: frozenset({"ssl_ca_certs", "sentinel_username", "sentinel_password"}),
    CLUSTER: frozenset({"ssl_ca_certs"}),
}
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)(?::(\d{1,5}))?")
_HINT: Final = (
    "write it as redis://host:port/0, unix:///path, redis+sentinel://host:26379,host:26379/SERVICE/0 or "
    "redis+cluster://host:6379,host:6379"
)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of one Redis: a server, a master behind sentinels, or a cluster.

    description: text without user and password.
    hosts: (name, port) of sentinels or nodes; empty for one server, whose ``url`` the client reads.
    service: the name by which sentinels know the master.
    options: those of the URL, after its question mark.
    """

    kind: str
    url: str
    description: str
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


def parse_redis_url(url: str) -> RedisAddress:
    """Returns the address in a URL. Raises BadInput with a message that never contains a
    password.
    """
    scheme, parted, rest = url.partition("://")
    kind = _SCHEMES.get(scheme)
    if not parted or kind is None:
        raise _invalid_url(f"the scheme {scheme!r} is not supported" if parted else "it is not a URL")
    if kind == SINGLE:
        return RedisAddress(SINGLE, url, _describe_url(url))
    if "#" in rest:
        raise _invalid_url("a Redis URL must have no fragment (#...)")
    found, _, query = rest.partition("?")
    authority, _, path = found.partition("/")
    user, at, hosts = authority.rpartition("@")
    name, colon, password = user.partition(":")
    options = _parse_options(kind, query, tls=scheme.startswith("rediss"))
    addresses = tuple(_parse_host(host_text, _PORTS[kind]) for host_text in hosts.split(","))
    host_list = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)
    service, database = _parse_service(path) if kind == SENTINEL else _parse_cluster_path(path)
    return RedisAddress(
        kind,
        url,
        f"{service} by sentinels {host_list}" if kind == SENTINEL else f"cluster {host_list}",
        addresses,
        service,
        database,
        (unquote(name) or None) if at else None,
        unquote(password) if colon else None,
        scheme.startswith("rediss"),
        options,
    )


def _describe_url(url: str) -> str:
    """Returns host and port, or the path, of a URL of one server."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    return parts.netloc.rpartition("@")[2] or "redis"


def _parse_host(text: str, port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None or (found[2] and not 0 < int(found[2]) < 65_536):
        raise _invalid_url(f"{text!r} is not a host with a port" if text else "a host is missing")
    return found[1].strip("[]"), int(found[2] or port)


def _parse_service(path: str) -> tuple[str, int]:
    name, _, number = path.partition("/")
    if not name:
        raise _invalid_url("the name by which sentinels know the master is missing")
    if number and not (number.isascii() and number.isdecimal() and len(number) < 5):
        raise _invalid_url(f"{number!r} is not a database number")
    return unquote(name), int(number or 0)


def _parse_cluster_path(path: str) -> tuple[str, int]:
    if path not in ("", "0"):
        raise _invalid_url("the path must be empty or 0, since a cluster has one database")
    return "", 0


def _parse_options(kind: str, query: str, *, tls: bool) -> dict[str, str]:
    found = dict(parse_qsl(query, keep_blank_values=True))
    for name in found:
        if name not in _OPTIONS[kind]:
            raise _invalid_url(f"{name!r} is not an option of this URL")
    if "ssl_ca_certs" in found and not tls:
        raise _invalid_url("ssl_ca_certs is for TLS: write rediss in place of redis")
    return found


def _invalid_url(why: str) -> BadInput:
    return BadInput(why, field="redis", hint=_HINT)
