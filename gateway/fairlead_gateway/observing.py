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

from fairlead.clock import Clock
from fairlead.errors import SettingsError
from fairlead.limits import Limits
from fairlead.settings import GatewaySettings
from fairlead_gateway.job import Job
from fairlead_gateway.listen import Request
from fairlead_gateway.reply import Reply
from fairlead_gateway.telemetry import Outcome, Telemetry

if TYPE_CHECKING:
    from fairlead_gateway.access_log import AccessLog
    from fairlead_gateway.spans import Tracer

_LAST_SECONDS = 1.0
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings, checked. ``access_log`` None: no log; ``endpoint`` None: no tracing."""

    access_log: str | None = None
    clients: bool = True
    endpoint: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    share: float = 0.0


def wanted(settings: GatewaySettings) -> Wanted:
    """What the settings ask for. Raises SettingsError."""
    log = _log(settings.access_log)
    endpoint = _endpoint(settings.trace_endpoint) if settings.trace_endpoint else None
    share = _share(settings.trace_sample)
    if share > 0 and endpoint is None:
        raise SettingsError(
            "FAIRLEAD_TRACE_SAMPLE is set and there is nowhere to send spans to",
            field="FAIRLEAD_TRACE_ENDPOINT",
            hint="set it to the collector's address, such as http://otel-collector:4318",
        )
    return Wanted(
        access_log=log,
        clients=_yes(settings.access_log_clients, "FAIRLEAD_ACCESS_LOG_CLIENTS"),
        endpoint=endpoint,
        headers=tuple(_headers(settings.trace_headers).items()),
        share=share,
    )


class Observing:
    """``draw`` gives random numbers of so many bits."""

    def __init__(
        self,
        what: Wanted,
        *,
        clock: Clock,
        limits: Limits,
        instance_id: str,
        draw: Callable[[int], int],
    ) -> None:
        self._lock = threading.Lock()
        self._own: dict[str, int] = {}
        self._closers: list[Callable[[float], None]] = []
        self._problems: list[Callable[[], str | None]] = []
        self.observers: list[Callable[[Job, Outcome], None]] = []
        self.tracer: Tracer | None = None
        self.log: AccessLog | None = None
        if what.access_log is not None:
            from fairlead_gateway import access_log

            self._own["access_log_dropped_total"] = 0
            self.log = access_log.AccessLog(
                what.access_log,
                clients=what.clients,
                limits=limits,
                lost=lambda number: self._count("access_log_dropped_total", number),
                wall=clock.wall,
            )
            self.observers.append(self.log.ended)
            self._closers.append(self.log.close)
            self._problems.append(self.log.problem)
        if what.endpoint is not None:
            from fairlead_gateway import otlp, spans

            self._own |= {"spans_exported_total": 0, "spans_dropped_total": 0}
            exporter = otlp.Exporter(
                what.endpoint,
                headers=dict(what.headers),
                instance_id=instance_id,
                limits=limits,
                exported=lambda number: self._count("spans_exported_total", number),
                lost=lambda number: self._count("spans_dropped_total", number),
            )
            self.tracer = spans.Tracer(share=what.share, now=clock.now, draw=draw, export=exporter.export)
            self.observers.append(self.tracer.ended)
            self._closers.append(exporter.close)
            self._problems.append(exporter.problem)

    def attach(self, telemetry: Telemetry) -> None:
        """Count in there from now on."""
        with self._lock:
            telemetry.own |= self._own
            self._own = telemetry.own

    def answered(
        self,
        request: Request | None,
        reply: Reply,
        status: int,
        error: str | None,
        job: Job | None = None,
        model_key: str | None = None,
    ) -> None:
        """A request ended without an engine."""
        if self.log is not None:
            self.log.answered(request, reply, status, error, job.ask.key if job is not None else model_key)
        if self.tracer is not None and job is not None:
            self.tracer.refused(job, status, error or "")

    def problems(self) -> list[str]:
        """What is being lost and why, in words."""
        return [found for problem in self._problems if (found := problem()) is not None]

    def close(self) -> None:
        """Hand over what waits, for a second at most."""
        for close in self._closers:
            close(_LAST_SECONDS)

    def _count(self, name: str, number: int) -> None:
        with self._lock:
            self._own[name] += number


def observing(what: Wanted, *, clock: Clock, limits: Limits, instance_id: str) -> Observing | None:
    """What is wanted; None when that is nothing."""
    if what.access_log is None and what.endpoint is None:
        return None
    return Observing(what, clock=clock, limits=limits, instance_id=instance_id, draw=Random().getrandbits)


def _log(text: str | None) -> str | None:
    """Where lines go. A folder that is not there is said now; whatever happens later costs lines only."""
    if text is None or text.lower() in _NO:
        return None
    if text.lower() in _YES:
        return "1"
    if text != "-" and not Path(text).absolute().parent.is_dir():
        raise SettingsError(
            "FAIRLEAD_ACCESS_LOG lies in a folder that does not exist",
            field="FAIRLEAD_ACCESS_LOG",
            hint="make the folder, or write - for standard output, 1 for standard error",
        )
    return text


def _share(text: str | None) -> float:
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


def _yes(text: str | None, field: str) -> bool:
    if text is None or text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise SettingsError(f"{field} is neither 1 nor 0", field=field, hint="write 1 or 0")


def _endpoint(text: str) -> str:
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


def _headers(text: str | None) -> dict[str, str]:
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
