"""Which prefixes want to be held by more instances than hold them: a hint, for people and for whoever copies caches. Pure.

An instance of ``n`` carries one n-th of the prompts, so a prefix that a share ``s`` of all prompts begin with keeps ``s · n``
instances busy, and each of them needs it: those that do not hold it compute it when its prompts come to them. Of its prompts the
share ``1 - holders / (s · n)`` then lands where it is not held, if they are spread as load wants it, and each of these computes its
tokens. That product, tokens a second, is what another home is worth, and by it hints are ordered:

    worth = prompts a second · tokens · (1 - holders / wanted)        wanted = min(n, ⌈s · n⌉)

It is an upper bound: the first prompt that computes a prefix somewhere makes that instance a holder. So a hint that stays for long is
of a prefix that is evicted again and again, or kept together by routing although one holder cannot carry it; one that goes by itself
was a prefix on its way.
"""

import math
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec

from fairlead_kvstore.redis.codec import SCHEMA, decode, encode


class HotPrefix(NamedTuple):
    """A prefix that many prompts begin with: the hash of its text, the share of all prompts, their number a second, its tokens, and
    how many instances hold it."""

    digest: int
    share: float
    per_second: float
    tokens: int
    holders: int


class ReplicationHint(msgspec.Struct, frozen=True):
    """``wanted`` instances should hold the prefix, ``holders`` do. ``worth``: tokens a second that may be computed for lack of it."""

    prefix: str
    share: float
    per_second: float
    tokens: int
    holders: int
    wanted: int
    worth: float
    reason: str


class ReplicationHints(msgspec.Struct, frozen=True):
    """As gateways tell of one model; ``wall`` is Unix seconds."""

    wall: float
    hints: Annotated[list[ReplicationHint], msgspec.Meta(max_length=1_024)]


def replication_hints(hot: Iterable[HotPrefix], ready: int, incomplete: int, max_hints: int) -> list[ReplicationHint]:
    """Of these prefixes, those that want another home among ``ready`` instances, what is worth most first; at most so many.
    ``unknown``: so many of the instances are not known completely, and may hold more than was told."""
    found = []
    for one in hot:
        wanted = min(ready, math.ceil(one.share * ready))
        if one.holders < wanted and one.tokens > 0:
            worth = one.per_second * one.tokens * (1.0 - one.holders / wanted)
            words = f"{one.share:.0%} of the prompts begin with it, the share of {wanted} of {ready} instances"
            words += f"; {one.holders} hold it" if one.holders else "; nobody holds it"
            words += f", {incomplete} are not known completely" if incomplete else ""
            found.append(
                ReplicationHint(
                    f"{one.digest:016x}",
                    one.share,
                    one.per_second,
                    one.tokens,
                    one.holders,
                    wanted,
                    worth,
                    words,
                )
            )
    found.sort(key=lambda hint: (-hint.worth, hint.prefix))
    return found[:max_hints]


def encode_replication_hints(found: list[ReplicationHint], wall: float) -> bytes:
    """As they lie in Redis."""
    return encode(ReplicationHints(wall, found))


def decode_replication_hints(data: bytes | None) -> ReplicationHints | None:
    """None where there are none, or nothing that can be read."""
    return None if data is None or data[:1] != SCHEMA else decode(data, ReplicationHints)
