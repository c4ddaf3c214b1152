"""Access log and tracing of one worker, as its settings want them; while both are off nothing of this is made.

``Observing`` is what a gateway is given. It tells of requests to the log and to the collector, which run in threads of their own that
begin with the first request; it counts what they lose in the telemetry's own counters.
"""

import threading
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.response_writer import ResponseWriter
from fairlead_gateway.telemetry import MetricsRecorder, RequestOutcome
from fairlead_gateway.worker.observability.settings import ObservabilitySettings
from fairlead_gateway.worker.request_context import RequestContext

if TYPE_CHECKING:
    from fairlead_gateway.worker.observability.access_log import AccessLog
    from fairlead_gateway.worker.observability.tracer import Tracer

_CLOSE_SECONDS = 1.0


class RequestObservers:
    """``draw`` gives random numbers of so many bits."""

    def __init__(
        self,
        settings: ObservabilitySettings,
        *,
        clock: Clock,
        limits: Limits,
        instance_id: str,
        draw: Callable[[int], int],
    ) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._closers: list[Callable[[float], None]] = []
        self._warnings: list[Callable[[], str | None]] = []
        self.finish_callbacks: list[Callable[[RequestContext, RequestOutcome], None]] = []
        self.tracer: Tracer | None = None
        self.log: AccessLog | None = None
        if settings.access_log is not None:
            from fairlead_gateway.worker.observability import access_log

            self._counters["access_log_dropped_total"] = 0
            self.log = access_log.AccessLog(
                settings.access_log,
                log_clients=settings.log_clients,
                limits=limits,
                on_dropped=lambda number: self._count("access_log_dropped_total", number),
                wall=clock.wall,
            )
            self.finish_callbacks.append(self.log.on_finished)
            self._closers.append(self.log.close)
            self._warnings.append(self.log.warning)
        if settings.trace_endpoint is not None:
            from fairlead_gateway.worker.observability import otlp_exporter, tracer

            self._counters |= {"spans_exported_total": 0, "spans_dropped_total": 0}
            exporter = otlp_exporter.OtlpExporter(
                settings.trace_endpoint,
                headers=dict(settings.trace_headers),
                instance_id=instance_id,
                limits=limits,
                on_exported=lambda number: self._count("spans_exported_total", number),
                on_dropped=lambda number: self._count("spans_dropped_total", number),
            )
            self.tracer = tracer.Tracer(
                sample_share=settings.trace_share, now=clock.now, draw=draw, export=exporter.export
            )
            self.finish_callbacks.append(self.tracer.on_finished)
            self._closers.append(exporter.close)
            self._warnings.append(exporter.warning)

    def attach_counters(self, telemetry: MetricsRecorder) -> None:
        """Count in there from now on."""
        with self._lock:
            telemetry.process_counters |= self._counters
            self._counters = telemetry.process_counters

    def on_answered_locally(
        self,
        http_request: HttpRequest | None,
        response: ResponseWriter,
        status: int,
        error: str | None,
        context: RequestContext | None = None,
        model_key: str | None = None,
    ) -> None:
        """A request ended without an engine."""
        if self.log is not None:
            self.log.on_answered_locally(
                http_request, response, status, error, context.request.model_key if context is not None else model_key
            )
        if self.tracer is not None and context is not None:
            self.tracer.on_rejected(context, status, error or "")

    def warnings(self) -> list[str]:
        """What is being lost and why, in words."""
        return [found for problem in self._warnings if (found := problem()) is not None]

    def close(self) -> None:
        """Hand over what waits, for a second at most."""
        for close in self._closers:
            close(_CLOSE_SECONDS)

    def _count(self, name: str, number: int) -> None:
        with self._lock:
            self._counters[name] += number


def create_observers(
    settings: ObservabilitySettings, *, clock: Clock, limits: Limits, instance_id: str
) -> RequestObservers | None:
    """What is wanted; None when that is nothing."""
    if settings.access_log is None and settings.trace_endpoint is None:
        return None
    return RequestObservers(settings, clock=clock, limits=limits, instance_id=instance_id, draw=Random().getrandbits)
