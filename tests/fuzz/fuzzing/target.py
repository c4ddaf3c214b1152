"""What a fuzzer is made of; and how cuttings of bytes are drawn from these bytes, so that an input alone repeats a finding."""

import itertools
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

from fairlead_gateway.errors import GatewayError

CANARY = b"canary7c1e"  # in the words of every target: no message of ours may repeat it


def refused(error: GatewayError) -> GatewayError:
    """What a client's bytes may lead to when they are wrong: a 4xx that repeats none of them."""
    assert 400 <= error.status < 500, error
    assert CANARY not in error.body("r") + repr(error.headers).encode(), "a message repeats bytes of the request"
    return error


@dataclass(frozen=True, slots=True)
class Target:
    """``check`` raises when a property does not hold, and else says what kind of answer it saw; ``share`` of all inputs;
    ``grow`` writes proper ones from random numbers."""

    name: str
    what: str
    check: Callable[[bytes], Hashable]
    seeds: Sequence[bytes]
    words: Sequence[bytes]
    pieces: re.Pattern[bytes]
    share: float
    grow: Callable[[Callable[[], float]], bytes] | None = None


def cuttings(data: bytes) -> Iterator[list[bytes]]:
    """Ways of cutting ``data`` that no one else can tell from it: in two, in many, now and then into single bytes."""
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
