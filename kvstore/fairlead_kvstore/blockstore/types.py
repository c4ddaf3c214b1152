"""One slice as status and metrics show it."""

import msgspec

from fairlead_kvstore.blockstore.completeness import CompletenessMark, with_doubt
from fairlead_kvstore.blockstore.storage_tiers import StorageTier


class EventCounters(msgspec.Struct):
    """What was not as expected, since the instance was attached. None of it is an error; all of it is shown."""

    stored: int = 0
    removed: int = 0
    unknown: int = 0
    unnamed: int = 0
    orphans: int = 0
    linked: int = 0
    saturated: int = 0
    other_groups: int = 0
    before_clear: int = 0
    clears: int = 0
    unknown_events: int = 0
    refused_events: int = 0
    dropped: int = 0


class InstanceState(msgspec.Struct, frozen=True):
    """One slice as status and metrics show it. Seconds are monotonic times (``since``) and durations."""

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
    vague: tuple[StorageTier, ...]
    evicted_age_seconds: float | None
    counts: EventCounters


LoadNumber = int | str


class TableSnapshot(msgspec.Struct, gc=False):
    """One table of rows; ``content`` and ``name`` say which adapter's, 0 for the main one. ``leads``: see ``Blocks.leads``."""

    rows: int
    leads: list[int] = []
    content: int = 0
    name: str = ""


class AdapterSnapshot(msgspec.Struct, gc=False):
    """See ``adapters.py``. Names are in the order of their index."""

    names: list[str] = []
    contents: list[tuple[str, LoadNumber, int]] = []
    current: dict[str, int] = {}
    newest: dict[str, LoadNumber] = {}
    places: list[tuple[int, str, str]] = []
    maybe: list[tuple[int, str, str]] = []
    ordinal: int = 0
    forgot: bool = False


class InstanceSnapshot(msgspec.Struct, gc=False):
    """What is known of one instance beside its rows. Seconds are monotonic; add ``wall`` to get Unix time."""

    wall: float
    complete: bool
    reason: str
    since: float
    tables: list[TableSnapshot]
    adapters: AdapterSnapshot
    vague: list[int] = []
    epoch: int = 1
    block_size: int | None = None
    hybrid: bool = False
    evicted_age_seconds: float | None = None
    group: int | None = None
    names_extras: bool = False
    awaited_until: float | None = None
    last_clear: float | None = None
    doubt: str = ""

    def completeness(self) -> CompletenessMark:
        """How sure it is, the doubt included."""
        return with_doubt((self.complete, self.reason, self.since), self.doubt)
