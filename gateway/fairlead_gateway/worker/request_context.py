"""One request on its way through the rooms, with everything that has become known of it."""

from collections.abc import Callable
from typing import Final

from fairlead.decision import Decision
from fairlead.fleet.model import Instance
from fairlead_gateway.admission.policy import AdmissionRequest, Admitted
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.response_writer import ResponseWriter
from fairlead_gateway.routing import ModelRouter, RouteRequest
from fairlead_gateway.telemetry.handoff_record import HandoffRecord
from fairlead_gateway.worker.disaggregation.kv_connectors import Handoff
from fairlead_gateway.worker.observability.trace_record import TraceRecord
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.proxy.continuation import SentText
from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.resilience.stall_timeout import StallTimeout
from fairlead_gateway.worker.upstream.usage import Usage

_NO_IDS: Final[frozenset[str]] = frozenset()


class RequestContext:
    """Filled from left to right: ``ask`` by model, ``route`` by prompt, the rest by route and forward. ``fingerprint`` is what the
    body is known by in quarantine; from then on the body may have been let go. ``asked`` is what it asked of the gate before engines,
    ``avoid`` the engines that had no room for it, ``release`` how it was let go where it was held. ``judged`` is the first choice of
    an engine, made before it is known who computes the prompt; whoever takes it makes it None. ``assigned`` is the engine at which
    it counts already, since it waited until that could begin."""

    __slots__ = (
        "admission_request",
        "admitted",
        "attempt_number",
        "cached_tokens",
        "client_disconnected",
        "counted_at",
        "deadline",
        "decision",
        "dispatched_at",
        "error",
        "event_count",
        "failures",
        "fingerprint",
        "first_at",
        "full_instances",
        "handoff",
        "handoff_record",
        "http_request",
        "id",
        "instance",
        "instance_id",
        "kv_transferred",
        "last_at",
        "output_tokens",
        "preselected",
        "prompt_tokens",
        "request",
        "response",
        "route_request",
        "router",
        "sent_text",
        "stall_timeout",
        "status",
        "trace",
    )

    def __init__(
        self,
        http_request: HttpRequest,
        response: ResponseWriter,
        id: str,
        request: ModelRequest,
        route_request: RouteRequest,
    ) -> None:
        self.http_request = http_request
        self.response = response
        self.id = id
        self.request = request
        self.route_request = route_request
        self.router: ModelRouter | None = None
        self.instance: Instance | None = None
        self.instance_id: str = ""  # the instance's, empty without one
        self.decision: Decision | None = None
        self.attempt_number: int = 0
        self.preselected: Decision | None = None
        self.failures: list[AttemptFailure] = []
        self.dispatched_at: float | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.event_count: int = 0
        self.status: int = 0
        self.error: str | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.client_disconnected: bool = False
        self.deadline: float | None = None
        self.stall_timeout: StallTimeout | None = None
        self.sent_text: SentText | None = None
        self.handoff: Handoff | None = None
        self.handoff_record: HandoffRecord | None = None
        self.kv_transferred: bool = False
        self.trace: TraceRecord | None = None
        self.fingerprint: bytes | None = None
        self.admission_request: AdmissionRequest | None = None
        self.counted_at: str = ""
        self.full_instances: frozenset[str] = _NO_IDS
        self.admitted: Admitted | None = None

    def body_fingerprint(self, fingerprint: Callable[[bytes], bytes]) -> bytes:
        """The fingerprint of the body, whether or not that is still here."""
        return fingerprint(self.request.body) if self.fingerprint is None else self.fingerprint

    def record_usage(self, usage: Usage | None) -> None:
        """Take what the engine counted, once: every look into a message costs more than it says. None: it did not tell."""
        if usage is None:
            self.prompt_tokens = self.output_tokens = self.cached_tokens = None
        else:
            self.prompt_tokens, self.output_tokens = usage.prompt_tokens, usage.completion_tokens
            self.cached_tokens = usage.cached_tokens
