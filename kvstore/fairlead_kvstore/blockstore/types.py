"""Counters, state, reports and snapshot of one instance, as msgspec structs.

Why: compiled modules cannot contain structs, so these are apart from the other modules.
"""

import msgspec

from fairlead_kvstore.blockstore.completeness import CompletenessMark, with_doubt
from fairlead_kvstore.events.payloads import EventBatch
from fairlead_kvstore.events.types import (
    BatchesLost,
    ProcessRestarted,
    StreamComplete,
    StreamResumed,
    StreamSuspended,
)


class EventCounters(msgspec.Struct):
    """Counters of an instance's KV events since it was attached. Unexpected events only count here.

    orphans, linked: blocks that came before their parent, and those whose parent came later.
    unknown_events, refused_events: events left out, see ``EventBatch``.
    dropped: blocks evicted from the store for lack of memory.
    """

    orphans: int = 0
    linked: int = 0
    unknown_events: int = 0
    refused_events: int = 0
    dropped: int = 0


class InstanceState(msgspec.Struct, frozen=True):
    """The state of one instance for status and metrics. ``since`` is a monotonic time in seconds.

    evicted_age_seconds: smoothed idle time of the blocks that the engine evicts.
    """

    instance: str
    model_key: str
    epoch: int
    complete: bool
    reason: str
    since: float
    blocks: int
    orphans: int
    bytes: int
    block_size: int | None
    hybrid: bool
    evicted_age_seconds: float | None
    counts: EventCounters


class AdapterSource(msgspec.Struct, frozen=True, gc=False):
    """The source of an adapter (``root`` in the engine's ``/v1/models``), a path or a URL.

    It is reported when ``unsourced_adapters`` names the adapter, and when it changes, but not
    during a replay.
    """

    name: str
    source: str


class EngineSleep(msgspec.Struct, frozen=True, gc=False):
    """The engine fell asleep, which cleared its cache, or woke up."""

    is_asleep: bool


FleetReport = AdapterSource | EngineSleep
"""Knowledge of an engine that its events do not contain."""

EngineOutcome = (
    EventBatch | BatchesLost | ProcessRestarted | StreamComplete | StreamSuspended | StreamResumed | FleetReport
)
"""All that changes an instance: a batch or a slice of one, and outcomes of the stream."""

LoadNumber = int | str


class TableSnapshot(msgspec.Struct, gc=False):
    """The snapshot of one block table, without its rows.

    rows: the number of rows, including empty ones.
    content, name: the adapter generation that the table belongs to; 0 for the main table.
    """

    rows: int
    content: int = 0
    name: str = ""


class AdapterSnapshot(
    msgspec.Struct, gc=False, rename={"sources": "places", "unconfirmed": "maybe", "has_forgotten": "forgot"}
):
    """The state of ``LoraGenerations`` without its rows. Names are in the order of their index."""

    names: list[str] = []
    contents: list[tuple[str, LoadNumber, int]] = []
    current: dict[str, int] = {}
    newest: dict[str, LoadNumber] = {}
    sources: list[tuple[int, str, str]] = []
    unconfirmed: list[tuple[int, str, str]] = []
    ordinal: int = 0
    has_forgotten: bool = False


class InstanceSnapshot(msgspec.Struct, gc=False):
    """The state of one instance without its rows. Times are monotonic seconds of the process that
    took it; ``wall`` plus such a time is Unix time.
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
    doubt: str = ""

    def completeness(self) -> CompletenessMark:
        """Returns the completeness mark with the doubt applied."""
        return with_doubt((self.complete, self.reason, self.since), self.doubt)
