"""The addresses that endpoints of Kubernetes objects may have.

An editor of a ModelDeployment names endpoints, and gateways and indexers connect to them. Literal
addresses are checked when the fleet is built. Resolved ones are checked at each new connection: a
name may resolve to another address later. Fleet files belong to the administrator and are not
checked.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Container
from typing import Final

from fairlead.errors import SettingsError
from fairlead.names import DNS_LABEL_PATTERN

Resolver = Callable[[str, int], Awaitable[str]]
"""Returns the address to connect to, for a host and a port. Raises OSError."""

ENDPOINT_SECRETS_FOLDER: Final = "/etc/fairlead/endpoint-secrets"
"""The folder of the Secrets of endpoints in gateways of the chart: `NAMESPACE/SECRET/KEY`."""
_METADATA_SERVICES: Final = frozenset(
    {"100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"}
)
"""Metadata services of clouds that are not link-local."""
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def address_refusal(address: str, model_addresses: Container[str] = ()) -> str:
    """Returns why an endpoint may not have this IP address; empty if it may.

    model_addresses: addresses of pods that Fairlead runs or that other namespaces own, and of
        Services of models, from `canonical_address`.
    """
    try:
        ip = _parse(address)
    except ValueError:
        return "it is not an IP address"
    if ip.is_loopback:
        return "it is a loopback address"
    if ip.is_link_local or str(ip) in _METADATA_SERVICES:
        return "it is a link-local address or a metadata service"
    if ip.is_unspecified or ip.is_multicast or ip in _THIS_NETWORK:
        return "it is not the address of one host"
    if str(ip) in model_addresses:
        return "it is the address of a pod or Service that another model uses"
    return ""


def canonical_address(host: str) -> str | None:
    """Returns an IP address in one spelling; None for a name. IPv4 in IPv6 becomes IPv4."""
    try:
        return str(_parse(host))
    except ValueError:
        return None


class AllNamespaces:
    """A container of every namespace."""

    def __contains__(self, namespace: object) -> bool:
        return True


def parse_endpoint_namespaces(text: str) -> Container[str]:
    """Returns the namespaces that may name endpoints: none, the listed ones, or all for `*`.

    Raises SettingsError for an invalid name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if "*" in names:
        return AllNamespaces()
    for name in names:
        if not DNS_LABEL_PATTERN.fullmatch(name):
            message = f"FAIRLEAD_ENDPOINT_NAMESPACES: {name!r} is not a namespace"
            hint = "write names of namespaces, separated by commas, or *"
            raise SettingsError(message, field="FAIRLEAD_ENDPOINT_NAMESPACES", hint=hint)
    return frozenset(names)


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip
