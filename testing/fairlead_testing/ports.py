"""Ports for servers that cannot take port 0, or that must come back on the same port.

They are below the range of ephemeral ports, from which the kernel takes those of outgoing
connections: between choice and use, no connection of another test can take them. Each process of
xdist has its own share, so that no other test chooses them either.
"""

import os
import random
import socket
from pathlib import Path

_SHARES = 16
_SPAN = 16_384


def unused_port() -> int:
    """Returns a free loopback port."""
    return unused_ports(1)[0]


def unused_ports(count: int) -> list[int]:
    """Returns free loopback ports, all different."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    share = range(max(1_024, lowest - _SPAN) + int(worker) % _SHARES, lowest, _SHARES)
    draw = random.SystemRandom()  # tests seed the shared generator
    found: set[int] = set()
    while len(found) < count:
        port = draw.choice(share)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.add(port)
    return list(found)
