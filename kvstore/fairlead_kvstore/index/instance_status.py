"""The status of the instances that an indexer reads, published about once a second.

Why: an instance's header is written with its blocks (``writer.py``), perhaps minutes apart. Its
status and its block size are therefore in one small field next to the headers. Without the
block size no prompt can be looked up.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
import xxhash

STATUSES_FIELD: Final = b"n"


class InstanceStatus(msgspec.Struct, frozen=True):
    """The status of one instance as its indexer reads it. None means unknown.

    events, replay: the ZMQ addresses of its KV events and of its replay endpoint.
    trouble: why it is not read; empty when it is.
    following: the number of the next batch.
    lag_seconds: age of the last batch when it was read, by the engine's and the indexer's clocks.
    """

    url: str
    block_size: int | None = None
    events: str | None = None
    replay: str | None = None
    connected: bool = False
    replaying: bool = False
    trouble: str = ""
    blocks: int = 0
    orphans: int = 0
    following: int | None = None
    lag_seconds: float | None = None
    evicted_age_seconds: float | None = None


class InstanceStatuses(msgspec.Struct, frozen=True):
    """The statuses of all instances of a model as of ``wall`` (Unix seconds).

    mark: the fingerprint of the installation's secret.
    """

    epoch: int
    wall: float
    mark: int
    instances: Mapping[str, InstanceStatus]


def secret_fingerprint(secret: bytes) -> int:
    """Returns a number that identifies an installation's secret and reveals no more of it than a
    block hash.

    Hashes under another secret match nothing, silently. A reader of blocks compares the
    fingerprints first.
    """
    return xxhash.xxh3_64_intdigest(secret + b"\0the secret of this index\0")
