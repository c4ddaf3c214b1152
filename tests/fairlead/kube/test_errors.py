"""Responses of the API server, as the errors that callers distinguish."""

import json

import pytest

from fairlead.errors import Unavailable
from fairlead.kube import errors
from fairlead.kube.errors import ErrorCause, KubeError, error_from_response, error_from_status


def body(code: int, reason: str, **details: object) -> bytes:
    return json.dumps({"kind": "Status", "code": code, "reason": reason, "message": "m", "details": details}).encode()


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "BadRequest", errors.Invalid),
        (401, "Unauthorized", errors.Unauthenticated),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (405, "MethodNotAllowed", errors.Invalid),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Expired", errors.Gone),
        (422, "Invalid", errors.Invalid),
        (429, "TooManyRequests", errors.TooManyRequests),
        (500, "InternalError", errors.Unreachable),
        (504, "Timeout", errors.Unreachable),
    ],
)
def test_every_status_has_its_error(status: int, reason: str, kind: type[KubeError]) -> None:
    error = error_from_response(status, body(status, reason), "GET /x")
    assert type(error) is kind
    assert (error.status, error.reason, str(error)) == (status, reason, "GET /x: m")
    assert isinstance(error, Unavailable) == (status in (429, 500, 504))


def test_causes_name_the_fields() -> None:
    causes = [{"field": "spec.replicas", "reason": "FieldValueInvalid", "message": "must be positive"}, "nonsense"]
    error = error_from_response(422, body(422, "Invalid", causes=causes), "PATCH /x")
    assert error.causes == (ErrorCause("spec.replicas", "FieldValueInvalid", "must be positive"),)


def test_blocked_eviction_is_not_a_retry_request() -> None:
    error = error_from_response(429, body(429, "TooManyRequests", causes=[{"reason": "DisruptionBudget"}]), "POST /x")
    assert type(error) is errors.EvictionBlocked


def test_retry_after_header_takes_precedence_over_the_body() -> None:
    error_body = body(504, "Timeout", retryAfterSeconds=3)
    assert error_from_response(504, error_body, "GET /x").retry_after_seconds == 3.0
    assert error_from_response(504, error_body, "GET /x", 7.0).retry_after_seconds == 7.0
    assert error_from_response(504, body(504, "Timeout"), "GET /x").retry_after_seconds is None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "HTTP 502"),
        (b"<html>\xff bad gateway", "bad gateway"),
        (b"[1]", "[1]"),
        (b'{"details": 3}', "HTTP 502"),
        (b'{"message": "m", "details": {"causes": {"a": 1}}}', "m"),
    ],
)
def test_proxy_error_is_an_error(raw: bytes, words: str) -> None:
    error = error_from_response(502, raw, "GET /x")
    assert type(error) is errors.Unreachable
    assert words in str(error)


def test_error_event_without_code_is_temporary() -> None:
    assert type(error_from_status({}, "watching /x")) is errors.Unreachable
    assert type(error_from_status({"code": 410, "message": "too old"}, "watching /x")) is errors.Gone


@pytest.mark.parametrize(
    ("message", "causes"),
    [
        (".spec.a: field not declared in schema", [("spec.a", "field not declared in schema")]),
        (
            'errors:\n  .spec.a: expected string\n  .b[c="d"].e: no',
            [("spec.a", "expected string"), ('b[c="d"].e', "no")],
        ),
        ("something else", []),
    ],
)
def test_schema_violation_with_status_500_is_permanent(message: str, causes: list[tuple[str, str]]) -> None:
    whole = f"failed to create typed patch object (x/y; apps/v1, Kind=Deployment): {message}"
    error = error_from_status({"code": 500, "message": whole}, "PATCH /x")
    assert type(error) is errors.Invalid
    assert [(cause.field, cause.message) for cause in error.causes] == causes
