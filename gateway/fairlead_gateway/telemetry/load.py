"""What the gateway's own ledger says of one instance, as far as metrics and the management API read it."""

from typing import Protocol


class Load(Protocol):
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
