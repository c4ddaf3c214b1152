"""Hints for hot prefixes that more instances should have cached, for operators and for cache
replication. Pure.

Each of ``n`` instances serves one n-th of the prompts. A prefix that a share ``s`` of all prompts
begin with therefore keeps ``s · n`` instances busy. Each of them needs the prefix: one that does
not have it cached computes it when such a prompt arrives. With evenly spread prompts, the share
``1 - holders / (s · n)`` of them arrives where the prefix is not cached. Each of these computes the
prefix. The product in tokens a second is the worth of another copy, and orders the hints:

    worth = prompts a second · tokens · (1 - holders / wanted)        wanted = min(n, ⌈s · n⌉)

It is an upper bound: the first prompt that computes a prefix makes that instance a holder. A
lasting hint is therefore about a prefix that is evicted repeatedly, or that routing keeps together
although one holder cannot serve it. A short hint was a prefix that was just spreading.
"""

import math
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec

from fairlead_kvstore.redis.codec import SCHEMA, decode, encode


class HotPrefix(NamedTuple):
    """A prefix that many prompts begin with.

    digest: hash of the text of the prefix.
    share: share of all prompts that begin with it (0 to 1).
    per_second: prompts per second that begin with it.
    tokens: length of the prefix.
    holders: number of instances that have it cached.
    """

    digest: int
    share: float
    per_second: float
    tokens: int
    holders: int


class ReplicationHint(msgspec.Struct, frozen=True):
    """A prefix that ``wanted`` instances should have cached and ``holders`` have.

    worth: tokens per second that instances may compute because they do not have it cached.
    """

    prefix: str
    share: float
    per_second: float
    tokens: int
    holders: int
    wanted: int
    worth: float
    reason: str


class ReplicationHints(msgspec.Struct, frozen=True):
    """The hints of one model, as gateways report them. ``wall`` is Unix seconds."""

    wall: float
    hints: Annotated[list[ReplicationHint], msgspec.Meta(max_length=1_024)]


def replication_hints(hot: Iterable[HotPrefix], ready: int, incomplete: int, max_hints: int) -> list[ReplicationHint]:
    """Returns at most ``max_hints`` hints for prefixes that need another copy, most worth first.

    ready: number of ready instances.
    incomplete: number of instances that may have more blocks than are known.
    """
    found = []
    for prefix in hot:
        wanted = min(ready, math.ceil(prefix.share * ready))
        if prefix.holders < wanted and prefix.tokens > 0:
            worth = prefix.per_second * prefix.tokens * (1.0 - prefix.holders / wanted)
            reason = f"{prefix.share:.0%} of the prompts begin with it, the share of {wanted} of {ready} instances"
            reason += f"; {prefix.holders} have it cached" if prefix.holders else "; no instance has it cached"
            reason += f", {incomplete} are incomplete" if incomplete else ""
            found.append(
                ReplicationHint(
                    f"{prefix.digest:016x}",
                    prefix.share,
                    prefix.per_second,
                    prefix.tokens,
                    prefix.holders,
                    wanted,
                    worth,
                    reason,
                )
            )
    found.sort(key=lambda hint: (-hint.worth, hint.prefix))
    return found[:max_hints]


def encode_replication_hints(found: list[ReplicationHint], wall: float) -> bytes:
    """Returns the hints as they are stored in Redis."""
    return encode(ReplicationHints(wall, found))


def decode_replication_hints(data: bytes | None) -> ReplicationHints | None:
    """Returns the hints; None where there are none, or they cannot be read."""
    return None if data is None or data[:1] != SCHEMA else decode(data, ReplicationHints)
