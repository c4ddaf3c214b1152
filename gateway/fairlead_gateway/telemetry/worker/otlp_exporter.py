"""Exports spans to a collector: OTLP over HTTP with JSON, in batches, from a thread.

A collector that is away, slow or full costs only spans. The queue is bounded. Each batch is tried a
few times with growing pauses. What is lost is counted.

Why not the SDK: see docs/decisions/0017.
"""

import asyncio
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

import fairlead
from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead.runtime.http_client import send
from fairlead_gateway.telemetry.worker.background_writer import BackgroundWriter, QueueBounds
from fairlead_gateway.telemetry.worker.tracer import AttributeValue, Span

SPAN_EXPORT_SECONDS: Final = 5.0
"""Limit: the collector's response to one batch."""

SPAN_BATCH: Final = 500
"""Limit: spans sent to the collector at once."""

_TRACES_PATH: Final = "/v1/traces"
_MAX_TRIES: Final = 4
_FIRST_PAUSE_SECONDS: Final = 0.5
_RETRYABLE_STATUSES: Final = frozenset({429, 502, 503, 504})
_STATUS_ERROR: Final = 2
_MAX_RESPONSE_BYTES: Final = 65_536


class ExportRejected(Exception):
    """Raised when the collector rejects a batch that it would reject again."""


class OtlpExporter:
    """The exporter of the spans of one worker.

    endpoint: the collector's base URL, without `/v1/traces`.
    headers: sent with every batch.
    on_exported, on_dropped: called with numbers of spans, from a thread.
    """

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
        self._url = endpoint.rstrip("/") + _TRACES_PATH
        self._headers = {"user-agent": f"fairlead/{fairlead.__version__}", **headers}
        self._timeout_seconds = SPAN_EXPORT_SECONDS
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
        self.writer: BackgroundWriter[Span] = BackgroundWriter(
            "spans",
            self._send,
            QueueBounds(limits.spans_pending, SPAN_BATCH, limits.span_batch_seconds),
            on_dropped=on_dropped,
            stopping=self._stopping,
        )

    def export(self, spans: list[Span]) -> None:
        self.writer.offer(*spans)

    def _send(self, batch: list[Span]) -> None:
        """Sends a batch, in the thread. Raises ConnectionError or ExportRejected if it is lost."""
        body = msgspec.json.encode(export_request(batch, self._resource))
        for attempt in range(_MAX_TRIES):
            try:
                if self._post(body):
                    self._on_exported(len(batch))
                    return
            except Unavailable:
                pass
            pause = _FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.8, 1.2)
            if attempt + 1 == _MAX_TRIES or self._stopping.wait(pause):
                break
        raise ConnectionError("the collector accepted no spans")

    def _post(self, body: bytes) -> bool:
        """Posts a batch; returns False if the collector may accept it later.

        Raises ExportRejected, and Unavailable if there is no response.
        """
        response = asyncio.run(
            send(
                "POST",
                self._url,
                timeout_seconds=self._timeout_seconds,
                max_bytes=_MAX_RESPONSE_BYTES,
                headers=self._headers,
                json_body=body,
            )
        )
        if response.status in _RETRYABLE_STATUSES:
            return False
        if response.status >= 300:
            raise ExportRejected(f"the collector answers {response.status}")
        return True


def export_request(spans: list[Span], resource: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an `ExportTraceServiceRequest` for JSON: 64-bit integers are text, ids
    hexadecimal.
    """
    scope = {"name": "fairlead.gateway", "version": fairlead.__version__}
    return {
        "resourceSpans": [
            {"resource": resource, "scopeSpans": [{"scope": scope, "spans": [_span_json(span) for span in spans]}]}
        ]
    }


def _span_json(span: Span) -> dict[str, Any]:
    encoded: dict[str, Any] = {
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
        encoded["parentSpanId"] = span.parent_id
    if span.state:
        encoded["traceState"] = span.state
    return encoded


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
