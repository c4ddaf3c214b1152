"""What is told of an object in an event, before it is written: a value that pure functions make."""

from dataclasses import dataclass

from fairlead.kube.events.aggregator import EventType


@dataclass(frozen=True, slots=True)
class EventDraft:
    """One sentence. ``reason`` and ``action`` are CamelCase words."""

    type: EventType
    reason: str
    action: str
    note: str
