"""What the indexer says of the instances that it reads, about once a second: who they are, and how well it hears them.

An instance's header is written when its blocks are (``writer.py``), which may be minutes apart. What is looked at by people, and the
size of an engine's blocks, without which nobody can ask for a prompt, is therefore in one small field beside them. None is what is
not known.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
import xxhash

STATUSES_FIELD: Final = b"n"


class InstanceStatus(msgspec.Struct, frozen=True):
    """One instance. ``events`` and ``replay`` are its ZMQ addresses, ``following`` the number of the batch that comes next,
    ``lag_seconds`` how old the last batch was when it was read, by the engine's clock and ours.
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
    """All instances of a model as of ``wall``, Unix seconds. ``mark``: see ``secret_mark``."""

    epoch: int
    wall: float
    mark: int
    instances: Mapping[str, InstanceStatus]


def secret_fingerprint(secret: bytes) -> int:
    """Something that is the same for the same secret of an installation, and tells no more of it than a block's hash does.

    Hashes under another secret match nothing, silently: who looks for blocks compares this first.
    """
    return xxhash.xxh3_64_intdigest(secret + b"\0the secret of this index\0")
