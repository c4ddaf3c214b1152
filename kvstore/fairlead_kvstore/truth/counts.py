"""What a slice met that was not as expected."""

import msgspec


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
