"""The parts of a fuzz target.

The cuts of an input are drawn from its bytes, so that the input alone repeats a finding.
"""

import itertools
import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from fairlead_gateway.errors import GatewayError

CANARY = b"canary7c1e"  # a word of every target, which no message may repeat


def refused(error: GatewayError) -> GatewayError:
    """Checks that an error is a 4xx that repeats none of the client's bytes; returns it."""
    assert 400 <= error.status < 500, error
    assert CANARY not in error.body("r") + repr(error.headers).encode(), "a message repeats bytes of the request"
    return error


@dataclass(frozen=True, slots=True)
class Target:
    """One fuzzed reader of bytes.

    check: returns the kind of the result; raises if a property does not hold.
    share: of all inputs.
    grow: writes a well-formed input from random numbers.
    """

    name: str
    what: str
    check: Callable[[bytes], Hashable]
    seeds: Sequence[bytes]
    words: Sequence[bytes]
    pieces: re.Pattern[bytes]
    share: float
    grow: Callable[[Callable[[], float]], bytes] | None = None


def cuttings(data: bytes) -> Iterator[list[bytes]]:
    """Yields cuts of ``data``: in two, in many, and for some inputs into single bytes."""
    size = len(data)
    pick = crc32(data)
    at = pick % (size + 1)
    yield [part for part in (data[:at], data[at:]) if part]
    step = 1 + (pick >> 8) % 61
    begin = (pick >> 16) % step
    edges = [0, *range(begin or step, size, step), size]
    yield [data[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]
    if not pick % 16:
        yield [data[n : n + 1] for n in range(size)]


def decode_distinct(data: bytes) -> Any:
    """Returns JSON, as all readers understand it; None if it is none, or has a name twice."""
    try:
        return _DECODER.decode(data.decode())
    except (ValueError, RecursionError):
        return None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_constant=int)
