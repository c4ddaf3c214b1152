"""What the management port may see of a gateway: its workers, asked when somebody looks, and what the helper knows itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.clock import Clock
from fairlead.fleet import Fleet
from fairlead.lag import LoopLag
from fairlead_gateway.decision_log import Logged
from fairlead_gateway.learning.pupil import Learned
from fairlead_gateway.telemetry import Load, Telemetry
from fairlead_gateway.telemetry.index import Looks


@dataclass(frozen=True, slots=True)
class Look:
    """The workers at one moment. ``notes`` say what is wrong or degraded, ``standing`` an instance's standing and why; ``lag`` is
    how late the latest of the event loops runs, ``index`` how far models are followed; ``others`` are gateways that are heard and the
    seconds since, None without a Redis; ``learned`` says what an instance's engine costs; ``held`` counts who waits, by model."""

    ready: bool
    notes: list[str]
    loads: Mapping[str, Load]
    standing: Callable[[str], tuple[str, str]] | None
    lag: LoopLag
    index: Looks = field(default_factory=dict)
    others: Sequence[tuple[str, float]] | None = None
    learned: Callable[[str], Learned | None] | None = None
    held: Mapping[str, int] = field(default_factory=dict)


class View(Protocol):
    """Read-only. Workers that do not answer in time are left out, and named in the notes."""

    @property
    def clock(self) -> Clock:
        """The clock that ages are taken with."""
        ...

    @property
    def started(self) -> float:
        """When the gateway started, in monotonic seconds."""
        ...

    def fleet(self) -> Fleet:
        """The snapshot that requests are routed over, with the engines' last signals."""
        ...

    async def look(self) -> Look:
        """How the workers are."""
        ...

    async def counted(self, *, windows: bool) -> Telemetry:
        """The counters of all workers; ``windows``: with what the last minute added."""
        ...

    async def decisions(self, limit: int, model_key: str | None) -> list[Logged]:
        """The last ``limit`` requests, newest first."""
        ...

    async def decision(self, request_id: str) -> Logged | None:
        """Everything known of one request."""
        ...

    async def would(self, path: str, body: bytes, session: str | None) -> list[Logged]:
        """Where that request would go, by each worker that answers. Raises GatewayError as the request would be answered."""
        ...
