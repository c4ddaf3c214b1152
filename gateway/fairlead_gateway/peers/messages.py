"""Messages to workers about what sibling workers and other gateways did."""

from typing import Final

import msgspec

SIBLING_DECISIONS_PENDING: Final = 4_096
"""Limit: decisions in that batch; the oldest are dropped."""


class Dispatch(msgspec.Struct, array_like=True):
    """A prompt that counts at an instance.

    - hashes: of its blocks, 64-bit in native order.
    - tail: hash of its end.
    - session_hash: hash of its session; 0: none.
    - size: bytes of its text, for the KV-cache index; 0: the model's instances report no cache.
    """

    model: str
    instance: str
    hashes: bytes
    tail: int
    session_hash: int = 0
    size: int = 0


class PeerUpdates(msgspec.Struct, tag=True, omit_defaults=True):
    """Supervisor → worker: what sibling workers and other gateways did.

    - crashes: (fingerprint, instance, sent at, crashed at).
    - cleared: bodies that were answered after all, as (fingerprint, answered at).
    - service: engine seconds divided by weight, by model and tenant.
    """

    dispatches: list[Dispatch] = []
    crashes: list[tuple[bytes, str, float, float]] = []
    cleared: list[tuple[bytes, float]] = []
    service: dict[str, dict[str, float]] = {}
