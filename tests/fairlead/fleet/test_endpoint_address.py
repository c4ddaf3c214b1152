"""Addresses of endpoints, literal and resolved."""

import pytest

from fairlead.fleet.endpoint_address import address_refusal, canonical_address

PODS = frozenset({"10.0.0.1", "fd00::9"})
LOOPBACK = "it is a loopback address"
LINK_LOCAL = "it is a link-local address or a metadata service"
NO_HOST = "it is not the address of one host"
POD = "it is the address of a pod or Service that another model uses"


@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        ("10.0.0.2", ""),
        ("192.0.2.7", ""),
        ("fd00::7", ""),
        ("127.0.0.1", LOOPBACK),
        ("127.8.8.8", LOOPBACK),
        ("::1", LOOPBACK),
        ("::ffff:127.0.0.1", LOOPBACK),
        ("64:ff9b::7f00:1", LOOPBACK),
        ("169.254.169.254", LINK_LOCAL),
        ("fe80::1%eth0", LINK_LOCAL),
        ("100.100.100.200", LINK_LOCAL),
        ("fd00:ec2::254", LINK_LOCAL),
        ("168.63.129.16", LINK_LOCAL),
        ("192.0.0.192", LINK_LOCAL),
        ("fd20:ce::254", LINK_LOCAL),
        ("0.0.0.0", NO_HOST),
        ("0.1.2.3", NO_HOST),
        ("::", NO_HOST),
        ("224.0.0.1", NO_HOST),
        ("10.0.0.1", POD),
        ("::ffff:10.0.0.1", POD),
        ("[fd00::9]", POD),
        ("vllm.example", "it is not an IP address"),
    ],
)
def test_address_of_an_endpoint_is_judged(address: str, refusal: str) -> None:
    assert address_refusal(address, PODS) == refusal


def test_addresses_have_one_spelling_and_names_none() -> None:
    assert canonical_address("[FD00:0::9]") == "fd00::9"
    assert canonical_address("::ffff:10.0.0.1") == "10.0.0.1"
    assert canonical_address("localhost") is None
