"""What the management port may see of a gateway. The gateway's own object fits; so does a made-up one in a test."""

from collections.abc import Mapping
from typing import Protocol

from fairlead.clock import Clock
from fairlead.fleet import Fleet
from fairlead.lag import LoopLag
from fairlead_gateway.decision_log import DecisionLog
from fairlead_gateway.telemetry import Load, Telemetry


class View(Protocol):
    """Read-only; every call is answered from memory at once."""

    @property
    def telemetry(self) -> Telemetry:
        """The counters."""
        ...

    @property
    def decisions(self) -> DecisionLog:
        """The last decisions."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock that ages are taken with."""
        ...

    @property
    def lag(self) -> LoopLag:
        """How late the gateway's event loop runs."""
        ...

    def fleet(self) -> Fleet:
        """The present snapshot, with the engines' last signals."""
        ...

    def loads(self) -> Mapping[str, Load]:
        """The gateway's own ledger by instance id."""
        ...

    def ready(self) -> tuple[bool, list[str]]:
        """Whether requests are answered, and what is wrong or degraded, in words."""
        ...
