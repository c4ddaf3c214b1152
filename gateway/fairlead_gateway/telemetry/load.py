"""What metrics and the management API read of other rooms: the ledger's load of one instance, and what went to Redis."""

from typing import Protocol


class LoadView(Protocol):
    """The router's ``InstanceLoad`` fits."""

    @property
    def inflight(self) -> int:
        """Requests sent there and not ended."""
        ...

    @property
    def waiting(self) -> int:
        """Of those, the ones without a first token."""
        ...

    @property
    def backlog_seconds(self) -> float:
        """Engine time of work already sent there."""
        ...

    @property
    def inflight_tokens(self) -> float:
        """Tokens those requests hold."""
        ...


class PublishStats(Protocol):
    """What this gateway told the others through Redis (``kvstore``'s ``Decisions`` fits)."""

    @property
    def connected(self) -> bool:
        """Whether Redis answers."""
        ...

    @property
    def published(self) -> int:
        """Decisions told."""
        ...

    @property
    def dropped(self) -> int:
        """Decisions that waited too long for a Redis that was away."""
        ...

    @property
    def refused(self) -> int:
        """Decisions that Redis would not take."""
        ...
