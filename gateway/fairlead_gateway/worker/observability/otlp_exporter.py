"""Finished spans to a collector: OTLP over HTTP in its JSON encoding, in batches, from a thread.

A collector that is away, slow or full costs spans and nothing else: what waits is bounded, each batch is tried a few times with
growing pauses, and what is lost is counted. Why this is written here and not taken from the SDK: docs/decisions/0017.
"""

import http.client
import random
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

import fairlead
from fairlead.limits import Limits
from fairlead_gateway.worker.observability.background_writer import BackgroundWriter
from fairlead_gateway.worker.observability.tracer import AttributeValue, Span

_TRACES_PATH: Final = "/v1/traces"
_MAX_TRIES: Final = 4
_FIRST_PAUSE_SECONDS: Final = 0.5
_RETRYABLE_STATUSES: Final = frozenset({429, 502, 503, 504})
_STATUS_ERROR: Final = 2
_MAX_RESPONSE_BYTES: Final = 65_536


class ExportRejected(Exception):
    """Raised when the collector does not take a batch and would not take it later."""


class OtlpExporter:
    """``endpoint`` is the collector's base URL (``/v1/traces`` follows) and ``headers`` what it wants to be shown. ``exported`` and
    ``lost`` are told numbers of spans, from a thread."""

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str],
        instance_id: str,
        limits: Limits,
        on_exported: Callable[[int], None],
        on_dropped: Callable[[int], None],
    ) -> None:
        self._post = _CollectorClient(endpoint, headers, limits.span_export_seconds)
        self._on_exported = on_exported
        self._stopping = threading.Event()
        self._resource = {
            "attributes": _attributes_json(
                {
                    "service.name": "fairlead-gateway",
                    "service.version": fairlead.__version__,
                    "service.instance.id": instance_id,
                }
            )
        }
        self._writer: BackgroundWriter[Span] = BackgroundWriter(
            "spans",
            self._send,
            max_waiting=limits.spans_pending,
            on_dropped=on_dropped,
            max_batch=limits.span_batch,
            gather_seconds=limits.span_batch_seconds,
            stopping=self._stopping,
        )

    def export(self, spans: list[Span]) -> None:
        """Send them some time soon."""
        self._writer.offer(*spans)

    def warning(self) -> str | None:
        """Why spans are being lost, in words."""
        return self._writer.warning

    def close(self, seconds: float) -> None:
        """Send what waits, for at most ``seconds``."""
        self._writer.close(seconds)

    def _send(self, batch: list[Span]) -> None:
        """In the thread. Raises when the batch is lost."""
        body = msgspec.json.encode(export_request(batch, self._resource))
        for tried in range(_MAX_TRIES):
            try:
                if self._post(body):
                    self._on_exported(len(batch))
                    return
            except (OSError, http.client.HTTPException):
                pass
            pause = _FIRST_PAUSE_SECONDS * 2**tried * random.uniform(0.8, 1.2)
            if tried + 1 == _MAX_TRIES or self._stopping.wait(pause):
                break
        raise ConnectionError("the collector took no spans")


class _CollectorClient:
    """One kept connection; used by one thread."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], seconds: float) -> None:
        parts = urlsplit(endpoint)
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") + _TRACES_PATH
        self._headers = {
            "content-type": "application/json",
            "user-agent": f"fairlead/{fairlead.__version__}",
            **headers,
        }
        self._seconds = seconds
        self._connection: http.client.HTTPConnection | None = None

    def __call__(self, body: bytes) -> bool:
        """Whether it was taken; False when it may be later. Raises Refused, OSError and HTTPException."""
        try:
            connection = self._connection = self._connection or self._connect()
            connection.request("POST", self._path, body, self._headers)
            answer = connection.getresponse()
            answer.read(_MAX_RESPONSE_BYTES)
        except (OSError, http.client.HTTPException):
            self._disconnect()
            raise
        if not answer.isclosed():
            self._disconnect()  # more than anybody needs to say
        if answer.status in _RETRYABLE_STATUSES:
            return False
        if answer.status >= 300:
            raise ExportRejected(f"the collector answers {answer.status}")
        return True

    def _connect(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._seconds, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def export_request(spans: list[Span], resource: Mapping[str, Any]) -> dict[str, Any]:
    """An ``ExportTraceServiceRequest`` as JSON: 64-bit integers are text, ids hexadecimal, as OTLP has it."""
    scope = {"name": "fairlead.gateway", "version": fairlead.__version__}
    return {
        "resourceSpans": [
            {"resource": resource, "scopeSpans": [{"scope": scope, "spans": [_span_json(span) for span in spans]}]}
        ]
    }


def _span_json(span: Span) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": _nanoseconds(span.started_at),
        "endTimeUnixNano": _nanoseconds(max(span.started_at, span.ended_at)),
        "attributes": _attributes_json(span.attributes),
        "status": {} if span.error is None else {"code": _STATUS_ERROR, "message": span.error},
    }
    if span.parent_id:
        shown["parentSpanId"] = span.parent_id
    if span.state:
        shown["traceState"] = span.state
    return shown


def _nanoseconds(seconds: float) -> str:
    return str(int(seconds * 1e9))


def _attributes_json(values: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value_json(value)} for key, value in values.items()]


def _value_json(value: AttributeValue) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value}
