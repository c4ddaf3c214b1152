"""The state of one client request, from parsing to the access log."""

from collections.abc import Callable
from typing import Final

from fairlead.tenants.model import Tenant
from fairlead_gateway.adapters.placement import AdapterUse
from fairlead_gateway.admission.admission_policy import AdmissionRequest, Admitted
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.disaggregation.worker.kv_connectors import Handoff, HandoffState
from fairlead_gateway.http.listener import HttpRequest, ResponseWriter
from fairlead_gateway.limits.worker.limit_plan import LeasedLimit, Reservation
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.resilience.worker.retry import AttemptFailure, StallTimeout
from fairlead_gateway.routing.request import NO_INSTANCES, RouteRequest
from fairlead_gateway.telemetry.decision_log import DecisionRecord, RequestOutcome
from fairlead_gateway.telemetry.handoff_record import HandoffRecord
from fairlead_gateway.telemetry.worker.trace_record import TraceRecord
from fairlead_gateway.tenants.worker.tenant_policy import NO_TENANT, TenantPolicy
from fairlead_gateway.upstream.engine_address import EngineAddress
from fairlead_gateway.upstream.response import EngineResponse
from fairlead_gateway.upstream.stream_comments import SseKeepAlive
from fairlead_gateway.upstream.usage import Usage

_MAX_CONTEXT: Final = 1 << 21
"""Tokens that a request may have besides those that are seen, such as a conversation by its id."""
_MAX_PER_ESTIMATE: Final = 16
_MIN_OUTPUT: Final = 1_024
"""An engine may pass a limit of output by a little, but not by 16 times as much and more."""


class RequestContext:
    """The state of one client request in a worker.

    id: the gateway's own; unique, and unknown to other clients
    caller: the tenant's name, under which the request is counted
    tenant, key_name: whose request it is, and the API key; None if no key is required
    policy: of the tenant; set by the gateway
    http_request, request, route_request: the request as received, parsed, and as routing sees it
    admission_request: the input of the admission policy; None if the policy was not needed
    full_instances: instances without room for the request
    admitted: how the request left the admission queue; None if it did not wait
    counted_at: the instance whose load includes the request already, since it waited for a slot
    address, choice: of the current attempt; None before the first
    failures: the attempts that failed before the first byte
    earlier_attempts, earlier_failures: of the models whose fallback this one is
    handoff: set if the model has prefill instances
    reservation: of the tenant's limits; None if none applies, or until the request may start
    refused_by: the limit that refused the request
    result: the response; complete when it has ended
    deadline: monotonic seconds; None without one
    fingerprint: the body's fingerprint, set when the body itself is released
    error_event: the engine's own, if it was kept back and no other engine continues the stream
    is_handed_over: a `RelayedStream` ends the request, not its task
    adapter_use: where the request's adapter is; None for a request without one
    keep_alive: sends the head and comments while a stream is silent; None without a stream
    """

    __slots__ = (
        "adapter_use",
        "address",
        "admission_request",
        "admitted",
        "caller",
        "choice",
        "counted_at",
        "deadline",
        "earlier_attempts",
        "earlier_failures",
        "error_event",
        "failures",
        "fingerprint",
        "full_instances",
        "handoff",
        "http_request",
        "id",
        "is_handed_over",
        "keep_alive",
        "key_name",
        "policy",
        "refused_by",
        "request",
        "reservation",
        "response",
        "result",
        "route_request",
        "stall_timeout",
        "tenant",
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
        caller = http_request.caller
        self.caller: CallerKey = ANONYMOUS if caller is None else caller.name
        self.tenant: Tenant | None = None if caller is None else caller.tenant
        self.key_name: str | None = None if caller is None else caller.key
        self.policy: TenantPolicy = NO_TENANT
        self.request = request
        self.route_request = route_request
        self.admission_request: AdmissionRequest | None = None
        self.full_instances: frozenset[str] = NO_INSTANCES
        self.admitted: Admitted | None = None
        self.counted_at: str = ""
        self.address: EngineAddress | None = None
        self.choice: DecisionRecord | None = None
        self.failures: list[AttemptFailure] = []
        self.earlier_attempts: int = 0
        self.earlier_failures: list[AttemptFailure] = []
        self.stall_timeout: StallTimeout | None = None
        self.handoff: HandoffState | None = None
        self.reservation: Reservation | None = None
        self.refused_by: LeasedLimit | None = None
        self.result = RequestOutcome(id, request.model_key, http_request.received_wall)
        self.deadline: float | None = None
        self.trace: TraceRecord | None = None
        self.fingerprint: bytes | None = None
        self.is_handed_over = False
        self.error_event = b""
        self.adapter_use: AdapterUse | None = None
        self.keep_alive: SseKeepAlive | None = None

    def follow(self, previous: "RequestContext") -> None:
        """Continues the records of the request at the model before, which has not answered it."""
        self.keep_alive, previous.keep_alive = previous.keep_alive, None
        self.earlier_attempts = previous.earlier_attempts if previous.choice is None else previous.choice.attempt
        self.earlier_failures = [*previous.earlier_failures, *previous.failures]
        self.trace = previous.trace

    def start_comments(self, engine_response: EngineResponse) -> None:
        if self.keep_alive is not None and engine_response.is_stream:
            self.keep_alive.start(engine_response)

    def stop_comments(self) -> None:
        """Ends what is sent into a silent stream. May be called twice."""
        keep_alive, self.keep_alive = self.keep_alive, None
        if keep_alive is not None:
            keep_alive.stop()

    @property
    def transfer(self) -> Handoff | None:
        """The KV transfer of the next attempt; None without one."""
        return None if self.handoff is None else self.handoff.transfer

    @property
    def handoff_record(self) -> HandoffRecord | None:
        """The record of the prefill; None without prefill instances."""
        return None if self.handoff is None else self.handoff.record

    def record_usage(self, usage: Usage | None) -> None:
        """Stores the engine's token counts. Those that the request cannot have count as missing.

        usage: None if the engine reported none.
        """
        result, route = self.result, self.route_request
        result.prompt_tokens = result.output_tokens = result.cached_tokens = None
        if usage is None:
            return
        prompt, output = usage.prompt_tokens, usage.completion_tokens
        if prompt is not None and (
            prompt <= _MAX_CONTEXT or prompt <= _MAX_CONTEXT + _MAX_PER_ESTIMATE * route.prompt_tokens
        ):
            result.prompt_tokens, result.cached_tokens = prompt, usage.cached_tokens
        if output is not None and output > _MIN_OUTPUT:
            most = _MAX_CONTEXT if route.max_tokens is None else _MAX_PER_ESTIMATE * (route.max_tokens + _MIN_OUTPUT)
            output = output if output <= most * route.sequences else None
        result.output_tokens = output

    def body_fingerprint(self, fingerprint: Callable[[bytes], bytes]) -> bytes:
        return fingerprint(self.request.body) if self.fingerprint is None else self.fingerprint
