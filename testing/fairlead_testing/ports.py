"""Ports for servers that cannot take port 0, or that must come back on the same port.

They are below the range of ephemeral ports, from which the kernel takes those of outgoing
connections: between choice and use, no connection of another test can take them. Each process that
runs tests has its own share, and goes through it in a random order. So a port is not chosen twice
before its server listens.
"""

import itertools
import os
import random
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PROCESS_VARIABLE = "PYTEST_PROCESS"
"""The environment of each process that runs tests: its number."""
_SHARES = 16
_SPAN = 16_384


def unused_port() -> int:
    """Returns a free loopback port, another one at each call."""
    return next(port for port in _own_share() if _is_free(port))


def unused_ports(count: int) -> list[int]:
    """Returns free loopback ports, all different."""
    return [unused_port() for _ in range(count)]


@cache
def _own_share() -> Iterator[int]:
    """Returns the ports of this process, again and again, in the same random order."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    process = int(os.environ.get(PROCESS_VARIABLE, "0"))
    share = list(range(max(1_024, lowest - _SPAN) + process % _SHARES, lowest, _SHARES))
    random.SystemRandom().shuffle(share)  # tests seed the shared generator
    return itertools.cycle(share)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
