"""Connects a worker's gateway to its access log and its traces.

Both write in threads of their own, which start with the first request. What they lose is counted.
With both off, nothing of this package is loaded.
"""

import threading
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.http.listener import HttpRequest, ResponseWriter
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.worker.settings import ObservabilitySettings

if TYPE_CHECKING:
    from fairlead_gateway.telemetry.worker.access_log import AccessLog
    from fairlead_gateway.telemetry.worker.background_writer import BackgroundWriter
    from fairlead_gateway.telemetry.worker.tracer import Tracer

_CLOSE_SECONDS = 1.0
_LOST_LINES = "access_log_dropped_total"
_SENT_SPANS, _LOST_SPANS = "spans_exported_total", "spans_dropped_total"


class RequestObservers:
    """The access log and the tracer of one worker.

    draw_bits: returns a random number of that many bits.
    """

    def __init__(
        self,
        settings: ObservabilitySettings,
        *,
        clock: Clock,
        limits: Limits,
        instance_id: str,
        draw_bits: Callable[[int], int],
    ) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._writers: list[BackgroundWriter[Any]] = []
        self.finish_callbacks: list[Callable[[RequestContext], None]] = []
        self.tracer: Tracer | None = None
        self.log: AccessLog | None = None
        if settings.access_log is not None:
            from fairlead_gateway.telemetry.worker import access_log

            self._counters[_LOST_LINES] = 0
            self.log = access_log.AccessLog(
                settings.access_log,
                log_clients=settings.log_clients,
                limits=limits,
                on_dropped=lambda count: self._count(_LOST_LINES, count),
                wall=clock.wall,
            )
            self.finish_callbacks.append(self.log.on_finished)
            self._writers.append(self.log.writer)
        if settings.trace_endpoint is not None:
            from fairlead_gateway.telemetry.worker import otlp_exporter, tracer

            self._counters |= {_SENT_SPANS: 0, _LOST_SPANS: 0}
            exporter = otlp_exporter.OtlpExporter(
                settings.trace_endpoint,
                headers=dict(settings.trace_headers),
                instance_id=instance_id,
                limits=limits,
                on_exported=lambda count: self._count(_SENT_SPANS, count),
                on_dropped=lambda count: self._count(_LOST_SPANS, count),
            )
            self.tracer = tracer.Tracer(
                sample_share=settings.trace_share, now=clock.now, draw_bits=draw_bits, export=exporter.export
            )
            self.finish_callbacks.append(self.tracer.on_finished)
            self._writers.append(exporter.writer)

    def attach_counters(self, telemetry: MetricsRecorder) -> None:
        """Moves the counts of lines and spans into the telemetry's process counters.

        Later lines and spans are counted there.
        """
        with self._lock:
            telemetry.non_model_counters |= self._counters
            self._counters = telemetry.non_model_counters

    def on_answered_locally(
        self,
        http_request: HttpRequest | None,
        response: ResponseWriter,
        status: int,
        error: str | None,
        context: RequestContext | None = None,
        model_key: str | None = None,
    ) -> None:
        """Reports a request that ended without an engine."""
        if self.log is not None:
            self.log.on_answered_locally(
                http_request, response, status, error, context.request.model_key if context is not None else model_key
            )
        if self.tracer is not None and context is not None:
            self.tracer.on_rejected(context, status, error or "")

    def warnings(self) -> list[str]:
        return [writer.warning for writer in self._writers if writer.warning is not None]

    def close(self) -> None:
        for writer in self._writers:
            writer.close(_CLOSE_SECONDS)

    def _count(self, name: str, count: int) -> None:
        with self._lock:
            self._counters[name] += count


def create_observers(
    settings: ObservabilitySettings, *, clock: Clock, limits: Limits, instance_id: str
) -> RequestObservers | None:
    """Returns the observers that the settings ask for; None if they ask for none."""
    if settings.access_log is None and settings.trace_endpoint is None:
        return None
    draw_bits = Random().getrandbits
    return RequestObservers(settings, clock=clock, limits=limits, instance_id=instance_id, draw_bits=draw_bits)
