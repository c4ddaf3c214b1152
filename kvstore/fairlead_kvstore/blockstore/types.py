"""Reports on one instance, and its snapshot, as msgspec structs.

Why: compiled modules cannot contain structs, so these are apart from the other modules.
"""

import msgspec

from fairlead_kvstore.events.payloads import EventBatch
from fairlead_kvstore.events.types import (
    BatchesLost,
    ProcessRestarted,
    StreamComplete,
    StreamResumed,
    StreamSuspended,
)

LoadNumber = int | str
"""An engine's number of a load: vLLM counts, SGLang draws a text."""


class EngineSleep(msgspec.Struct, frozen=True, gc=False):
    """The engine fell asleep, which cleared its cache, or woke up."""

    is_asleep: bool


EngineOutcome = (
    EventBatch | BatchesLost | ProcessRestarted | StreamComplete | StreamSuspended | StreamResumed | EngineSleep
)
"""All that changes an instance: a batch or a slice of one, and outcomes of the stream."""


class TableSnapshot(msgspec.Struct, gc=False):
    """The snapshot of a block table, without its rows: their number, including empty ones."""

    rows: int


class AdapterSnapshot(msgspec.Struct, gc=False):
    """The state of ``AdapterLoads``: the newest load of each name in the order of their index, and
    loads before.
    """

    loads: dict[str, LoadNumber] = {}
    earlier: list[tuple[str, LoadNumber]] = []


class InstanceSnapshot(msgspec.Struct, gc=False):
    """The state of one instance without its rows. Times are monotonic seconds of the process that
    took it; ``wall`` plus such a time is Unix time.

    tables: one. Earlier releases have more, for adapters that are not loaded.
    """

    wall: float
    complete: bool
    reason: str
    since: float
    tables: list[TableSnapshot]
    adapters: AdapterSnapshot
    epoch: int = 1
    block_size: int | None = None
    hybrid: bool = False
    evicted_age_seconds: float | None = None
    group: int | None = None
    names_extras: bool = False
    is_reloaded: bool = False
