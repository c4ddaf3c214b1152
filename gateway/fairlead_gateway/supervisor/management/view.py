"""What the management port may see of a gateway: its workers, asked when somebody looks, and what the helper knows itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.fleet.model import Fleet
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.supervisor.profiling.profile_estimator import LearnedProfile
from fairlead_gateway.telemetry import LoadView, MetricsRecorder
from fairlead_gateway.telemetry.decision_log import LoggedRequest
from fairlead_gateway.telemetry.status_types import IndexStatus


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """The workers at one moment. ``notes`` say what is wrong or degraded, ``standing`` an instance's standing and why; ``lag`` is
    how late the latest of the event loops runs, ``index`` how far models are followed; ``others`` are gateways that are heard and the
    seconds since, None without a Redis; ``learned`` says what an instance's engine costs; ``held`` counts who waits, by model."""

    ready: bool
    warnings: list[str]
    loads: Mapping[str, LoadView]
    health_of: Callable[[str], tuple[str, str]] | None
    lag: LoopLag
    index: IndexStatus = field(default_factory=dict)
    peers: Sequence[tuple[str, float]] | None = None
    learned_profile: Callable[[str], LearnedProfile | None] | None = None
    queued: Mapping[str, int] = field(default_factory=dict)


class GatewayView(Protocol):
    """Read-only. Workers that do not answer in time are left out, and named in the notes."""

    @property
    def clock(self) -> Clock:
        """The clock that ages are taken with."""
        ...

    @property
    def started_at(self) -> float:
        """When the gateway started, in monotonic seconds."""
        ...

    def fleet(self) -> Fleet:
        """The snapshot that requests are routed over, with the engines' last signals."""
        ...

    async def status(self) -> GatewayStatus:
        """How the workers are."""
        ...

    async def counters(self, *, windows: bool) -> MetricsRecorder:
        """The counters of all workers; ``windows``: with what the last minute added."""
        ...

    async def decisions(self, limit: int, model_key: str | None) -> list[LoggedRequest]:
        """The last ``limit`` requests, newest first."""
        ...

    async def decision(self, request_id: str) -> LoggedRequest | None:
        """Everything known of one request."""
        ...

    async def preview_route(self, path: str, body: bytes, session: str | None) -> list[LoggedRequest]:
        """Where that request would go, by each worker that answers. Raises GatewayError as the request would be answered."""
        ...
