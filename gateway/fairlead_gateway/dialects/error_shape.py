"""Error objects and error events, in the form that the clients of a dialect know."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fairlead_gateway.errors import GatewayError, error_body

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_FAILED: Final = "response.failed"
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """The form of errors.

    is_anthropic: as Anthropic defines them; else as OpenAI does. `code` and `param` stay in both.
    has_named_events: events of streams have names.
    is_numbered: events have a `sequence_number`. A broken stream ends with `response.failed`, which
        Codex shows, and then `error`. Its fields are also at its top. It has the object `error`
        too, on which SDKs raise an exception. If nothing came before, `error` is first: SDKs know
        no response that fails before it is created.

    Source: platform.openai.com/docs/api-reference/responses-streaming/error.
    """

    is_anthropic: bool = False
    has_named_events: bool = False
    is_numbered: bool = False

    def body(self, status: int, body: bytes) -> bytes:
        """Returns an error object of an engine or of the gateway, in this form."""
        if not self.is_anthropic:
            return body
        decoded = _decode(body)
        fields = decoded["error"]
        if decoded.get("type") == "error" and isinstance(fields.get("type"), str):
            return body
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        error = {"type": kind} | fields | {"type": kind}
        return _encode({"type": "error"} | decoded | {"type": "error", "error": error})

    def event(
        self, message: str, code: str, request_id: str, *, sequence_number: int = 0, response_id: str = ""
    ) -> bytes:
        """Returns an error as the last event of a broken stream.

        Where events have names, two line breaks come first. They end an event of which only a part
        was sent.

        sequence_number: of the event in its stream.
        response_id: of the response, which SDKs compare with that of its first event; empty if no
            event had one.
        """
        body = error_body(message, GatewayError.error_type, None, code, request_id)
        return self._event(500, body, sequence_number, response_id)

    def only_event(self, status: int, body: bytes) -> bytes:
        return self._event(status, body, None)

    def _event(self, status: int, body: bytes, sequence_number: int | None, response_id: str = "") -> bytes:
        fields = _decode(body)["error"]
        message, code = str(fields.get("message", "")), fields.get("code")
        body = self.body(status, body)
        if not self.has_named_events:
            return b"data: " + body + b"\n\n"
        if not self.is_numbered:
            return b"\n\nevent: error\ndata: " + body + b"\n\n"
        error = {"code": "server_error", "message": message}
        known = {"id": response_id} if response_id else {}
        response = {**known, "object": "response", "status": "failed", "error": error}
        numbers = (1, 0) if sequence_number is None else (sequence_number, sequence_number + 1)
        failed = {"type": _FAILED, "sequence_number": numbers[0], "response": response}
        flat = {"code": code, "message": message, "param": None, "sequence_number": numbers[1]}
        body = _encode({"type": "error", **flat, **_decode(body)})
        events = [
            b"event: %b\ndata: %b\n\n" % (_FAILED.encode(), _encode(failed)),
            b"event: error\ndata: %b\n\n" % body,
        ]
        return b"\n\n" + b"".join(reversed(events) if sequence_number is None else events)


OPENAI_ERRORS: Final[ErrorShape] = ErrorShape()
ANTHROPIC_ERRORS: Final[ErrorShape] = ErrorShape(is_anthropic=True, has_named_events=True)
RESPONSES_ERRORS: Final[ErrorShape] = ErrorShape(has_named_events=True, is_numbered=True)
