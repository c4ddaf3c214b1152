"""Requests to the management API are recorded; a page that reads all day is not a flood."""

from fairlead.audit import Action, AuditEvent
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.audit.supervisor import Access, AccessAudit
from fairlead_gateway.supervisor.management.access.access_guard import AnsweredRequest
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope


def _read(actor: str = "admin", route: str = "/api/decisions", status: int = 200) -> Access:
    return Access(actor, "GET", route, status, "acme")


def test_equal_reads_are_one_record_in_five_minutes_with_their_number() -> None:
    events: list[AuditEvent] = []
    clock = ManualClock()
    audit = AccessAudit(events.append, clock.now)
    for _ in range(31):
        audit.on_access(_read())
        clock.advance(10.0)
    assert [(event.object, event.actor, dict(event.after)) for event in events] == [
        ("GET /api/decisions", "admin", {"status": 200}),
        ("GET /api/decisions", "admin", {"status": 200, "alsoBefore": 29}),
    ]


def test_other_tokens_routes_and_refusals_are_recorded_apart() -> None:
    events: list[AuditEvent] = []
    audit = AccessAudit(events.append, ManualClock().now)
    for access in (_read(), _read("acme-team"), _read(route="/api/audit"), _read(status=403)):
        audit.on_access(access)
    assert [event.action for event in events] == [Action.MANAGEMENT_READ] * 3 + [Action.ACCESS_DENIED]


def test_what_is_counted_is_bounded_and_loses_no_count() -> None:
    events: list[AuditEvent] = []
    clock = ManualClock()
    audit = AccessAudit(events.append, clock.now, max_repeats=2)
    for number in range(10):
        audit.on_access(_read(f"token-{number}"))
    audit.on_access(_read("token-0"))
    assert len(events) == 10
    clock.advance(301.0)
    audit.on_access(_read("token-10"))
    assert [(event.actor, event.after.get("alsoBefore")) for event in events[10:]] == [
        ("token-10", None),
        ("token-0", 1),
    ]


def test_a_record_names_the_request_that_caused_it() -> None:
    events: list[AuditEvent] = []
    audit = AccessAudit(events.append, ManualClock().now)
    scope = AccessScope("acme-team", frozenset({"acme"}))
    for number in range(2):
        audit.on_request(scope, AnsweredRequest("GET", "/api/usage", 200, "", f"manage-{number}"))
    audit.on_request(scope, AnsweredRequest("GET", "/api/fleet", 403, "it needs the permission Fleet", None))
    assert [(event.request_id, event.tenant, event.reason) for event in events] == [
        ("manage-0", "acme", ""),
        (None, "acme", "it needs the permission Fleet"),
    ]
