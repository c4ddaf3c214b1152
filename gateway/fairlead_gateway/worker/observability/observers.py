"""Access log and tracing of one worker, as its settings want them; while both are off nothing of this is made.

``Observing`` is what a gateway is given. It tells of requests to the log and to the collector, which run in threads of their own that
begin with the first request; it counts what they lose in the telemetry's own counters.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fairlead.errors import SettingsError
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.settings import GatewaySettings
from fairlead_gateway.http.connection import HttpRequest
from fairlead_gateway.http.response_writer import ResponseWriter
from fairlead_gateway.telemetry import MetricsRecorder, RequestOutcome
from fairlead_gateway.worker.request_context import RequestContext

if TYPE_CHECKING:
    from fairlead_gateway.worker.observability.access_log import AccessLog
    from fairlead_gateway.worker.observability.tracer import Tracer

_CLOSE_SECONDS = 1.0
_TRUE_WORDS, _FALSE_WORDS = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class ObservabilitySettings:
    """The settings, checked. ``access_log`` None: no log; ``endpoint`` None: no tracing."""

    access_log: str | None = None
    log_clients: bool = True
    trace_endpoint: str | None = None
    trace_headers: tuple[tuple[str, str], ...] = ()
    trace_share: float = 0.0


def parse_observability_settings(settings: GatewaySettings) -> ObservabilitySettings:
    """What the settings ask for. Raises SettingsError."""
    log = _access_log_target(settings.access_log)
    endpoint = _check_endpoint(settings.trace_endpoint) if settings.trace_endpoint else None
    share = _sample_share(settings.trace_sample)
    if share > 0 and endpoint is None:
        raise SettingsError(
            "FAIRLEAD_TRACE_SAMPLE is set and there is nowhere to send spans to",
            field="FAIRLEAD_TRACE_ENDPOINT",
            hint="set it to the collector's address, such as http://otel-collector:4318",
        )
    return ObservabilitySettings(
        access_log=log,
        log_clients=_parse_bool(settings.access_log_clients, "FAIRLEAD_ACCESS_LOG_CLIENTS"),
        trace_endpoint=endpoint,
        trace_headers=tuple(_parse_headers(settings.trace_headers).items()),
        trace_share=share,
    )


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


def _access_log_target(text: str | None) -> str | None:
    """Where lines go. A folder that is not there is said now; whatever happens later costs lines only."""
    if text is None or text.lower() in _FALSE_WORDS:
        return None
    if text.lower() in _TRUE_WORDS:
        return "1"
    if text != "-" and not Path(text).absolute().parent.is_dir():
        raise SettingsError(
            "FAIRLEAD_ACCESS_LOG lies in a folder that does not exist",
            field="FAIRLEAD_ACCESS_LOG",
            hint="make the folder, or write - for standard output, 1 for standard error",
        )
    return text


def _sample_share(text: str | None) -> float:
    try:
        share = float(text or "0")
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise SettingsError(
            "FAIRLEAD_TRACE_SAMPLE is not a number from 0 to 1",
            field="FAIRLEAD_TRACE_SAMPLE",
            hint="0.01 records one request in a hundred",
        )
    return share


def _parse_bool(text: str | None, field: str) -> bool:
    if text is None or text.lower() in _TRUE_WORDS:
        return True
    if text.lower() in _FALSE_WORDS:
        return False
    raise SettingsError(f"{field} is neither 1 nor 0", field=field, hint="write 1 or 0")


def _check_endpoint(text: str) -> str:
    """The setting, checked. Raises SettingsError."""
    try:
        parts = urlsplit(text)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query
    except ValueError:
        right = False
    if not right:
        raise SettingsError(
            "FAIRLEAD_TRACE_ENDPOINT is not a URL of a collector",
            field="FAIRLEAD_TRACE_ENDPOINT",
            hint="write it like http://otel-collector:4318; /v1/traces is added",
        )
    return text


def _parse_headers(text: str | None) -> dict[str, str]:
    """``name=value,name=value``. Raises SettingsError without repeating a value."""
    found: dict[str, str] = {}
    for part in (text or "").split(","):
        name, equals, value = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or not name.replace("-", "").isalnum() or not value.isascii() or not value.isprintable():
            raise SettingsError(
                "FAIRLEAD_TRACE_HEADERS is malformed",
                field="FAIRLEAD_TRACE_HEADERS",
                hint="write name=value, several with commas between them",
            )
        found[name.strip().lower()] = value.strip()
    return found
