"""A fuzz target: the addresses that endpoints of Kubernetes objects may have.

The second reader asks the C library what a text means, and judges the bytes of the address. No text
that is permitted may reach a forbidden address.
"""

import re
import socket
from collections.abc import Hashable
from ipaddress import ip_address

from fuzzing.target import Target

from fairlead.errors import BadInput
from fairlead.fleet.endpoint_address import address_refusal, canonical_address
from fairlead.fleet.engine_url import normalize_engine_url

POD_ADDRESSES = frozenset({"10.0.0.1", "fd00::9"})
_MAPPED = bytes(10) + b"\xff\xff"
_NAT64 = b"\x00\x64\xff\x9b" + bytes(8)
_METADATA = {bytes((100, 100, 100, 200)), socket.inet_pton(socket.AF_INET6, "fd00:ec2::254")}
_PODS = {bytes((10, 0, 0, 1)), socket.inet_pton(socket.AF_INET6, "fd00::9")}
_PORT = 80


def check(data: bytes) -> Hashable:
    """Checks the verdict on a text as an address, and as the host of a URL."""
    text = data.decode("utf-8", "replace")
    refusal, canonical = address_refusal(text, POD_ADDRESSES), canonical_address(text)
    packed = second(text)
    if packed is not None:
        assert (refusal != "") == is_forbidden(packed), f"{refusal or 'permitted'}"
        assert canonical is not None
        assert ip_address(canonical).packed == unwrapped(packed), "another address"
    assert (canonical is None) == (refusal == "it is not an IP address")
    if canonical is not None:
        assert canonical_address(canonical) == canonical, "two spellings"
        assert address_refusal(canonical, POD_ADDRESSES) == refusal
    return refusal, canonical is None, packed is None, as_host(text)


def second(text: str) -> bytes | None:
    """Returns the bytes of an address in its usual spelling; None for anything else."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
    return None


def unwrapped(packed: bytes) -> bytes:
    """Returns an IPv4 address without the IPv6 address around it."""
    return packed[12:] if packed[:12] in (_MAPPED, _NAT64) else packed


def is_forbidden(packed: bytes) -> bool:
    """Returns whether endpoints may not have the address."""
    address = unwrapped(packed)
    if address in _METADATA or address in _PODS:
        return True
    if len(address) == 4:
        return address[0] in (0, 127) or address[0] & 0xF0 == 0xE0 or address[:2] == b"\xa9\xfe"
    is_link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
    return address[0] == 0xFF or is_link_local or address in (bytes(16), bytes(15) + b"\x01")


def as_host(text: str) -> str:
    """Checks the text as the host of an endpoint's URL; returns the kind of the result.

    Literal hosts are judged when the fleet is built, names when they are resolved. What the C
    library takes for an address without a name server must be judged in one of the two ways.
    """
    try:
        url = normalize_engine_url(f"http://{text}")
    except BadInput:
        return "no URL"
    assert normalize_engine_url(url) == url
    host = url.removeprefix("http://").rpartition(":")[0].strip("[]")
    literal = canonical_address(host)
    try:
        resolved = socket.getaddrinfo(host, _PORT, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return "a name"
    reached = {str(address[0]) for *_, address in resolved}
    if literal is not None and not address_refusal(literal, POD_ADDRESSES):
        assert not any(address_refusal(address, POD_ADDRESSES) for address in reached), "a permitted text reaches more"
    return "a literal" if literal is not None else "numbers"


WORDS = [
    b"127.0.0.1", b"::1", b"::ffff:", b"64:ff9b::", b"169.254.169.254", b"fe80::", b"%eth0", b"%25lo", b"10.0.0.1", b"fd00::9",
    b"fd00:ec2::254", b"100.100.100.200", b"0x7f", b"0177", b"2130706433", b"[", b"]", b":", b".", b"::", b"0", b"ff02::1",
    b"224.0.0.1", b"localhost", b"\xef\xbc\x91", b"\xd9\xa1", b":80", b"/", b"@", b"#", b"?", b" ", b"\0", b"vllm.example", b"1e2",
    b"7f00:1", b"0.0.0.0", b"255.255.255.255", b"fec0::1", b"2002:7f00:1::", b"-1", b"00",
]  # fmt: skip
PIECES = re.compile(rb"[0-9a-fA-F]+|[.:]+|.", re.DOTALL)
SEEDS = [
    b"10.0.0.2", b"127.0.0.1", b"::1", b"::ffff:127.0.0.1", b"64:ff9b::7f00:1", b"fe80::1%eth0", b"[fd00::9]", b"fd00::7",
    b"vllm.example", b"169.254.169.254", b"0.1.2.3", b"::", b"ff02::1", b"127.1", b"2130706433", b"[::ffff:10.0.0.1]:8000",
    b"10.0.0.2:8000", b"100.100.100.200",
]  # fmt: skip
ADDRESS = Target("address", "addresses of endpoints", check, SEEDS, WORDS, PIECES, 0.02)
