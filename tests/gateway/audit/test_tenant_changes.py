"""Audit events of changed tenants: without a key, with who did it."""

from dataclasses import replace
from typing import Any

from fairlead.audit import Action, AuditLog
from fairlead.audit.reader import AuditQuery
from fairlead.audit.record import encode_record
from fairlead.runtime.clock import ManualClock
from fairlead.tenants.model import ApiKey, Limit, LimitUnit, Tenant, TenantTable, Tier, TokenSubject, Window
from fairlead_gateway.audit.supervisor import AuditService
from fairlead_gateway.audit.tenant_changes import tenant_changes, tenants_loaded
from fairlead_gateway.tenants.messages import LIST_ACTOR

PROD, CI, NEW = (bytes([number]) * 32 for number in (1, 2, 3))
ACME = Tenant(
    "acme",
    keys=(ApiKey("prod", PROD), ApiKey("ci", CI)),
    limits=(Limit(LimitUnit.REQUESTS, 600, Window.MINUTE),),
    models=frozenset({"chat/llama-70b"}),
)


def _changes(before: Tenant | None, after: Tenant | None, **revoked: Any) -> list[tuple[Any, ...]]:
    def table(tenant: Tenant | None, version: int) -> TenantTable:
        return TenantTable(version, {} if tenant is None else {tenant.name: tenant}, **(revoked if version else {}))

    events = tenant_changes(table(before, 0), table(after, 1), lambda name: f"kubectl for {name}")
    assert {event.actor for event in events} <= {"kubectl for acme", LIST_ACTOR}
    assert {event.tenant for event in events} <= {"acme"}
    return [(event.action, event.object, dict(event.before), dict(event.after)) for event in events]


def test_a_new_tenant_comes_with_its_limits_and_its_keys() -> None:
    changes = _changes(None, ACME)
    assert [(action, name) for action, name, _, _ in changes] == [
        (Action.TENANT_ADDED, "ModelTenant/acme"),
        (Action.LIMITS_CHANGED, "ModelTenant/acme"),
        (Action.KEY_CREATED, "ApiKey/acme/ci"),
        (Action.KEY_CREATED, "ApiKey/acme/prod"),
    ]
    assert changes[0][3]["models"] == "chat/llama-70b"
    assert changes[3][3] == {"digest": "01010101", "expiresAt": None}


def test_a_tenant_that_goes_revokes_its_keys() -> None:
    assert [(action, name) for action, name, _, _ in _changes(ACME, None)] == [
        (Action.TENANT_REMOVED, "ModelTenant/acme"),
        (Action.LIMITS_CHANGED, "ModelTenant/acme"),
        (Action.KEY_REVOKED, "ApiKey/acme/ci"),
        (Action.KEY_REVOKED, "ApiKey/acme/prod"),
    ]


def test_only_what_differs_is_recorded() -> None:
    limits = (Limit(LimitUnit.REQUESTS, 900, Window.MINUTE), Limit(LimitUnit.CONCURRENCY, 8))
    after = replace(ACME, tier=Tier.BATCH, models=None, limits=limits)
    assert _changes(ACME, ACME) == []
    assert _changes(ACME, after) == [
        (
            Action.TENANT_CHANGED,
            "ModelTenant/acme",
            {"models": "chat/llama-70b", "tier": "Standard"},
            {"models": "all", "tier": "Batch"},
        ),
        (
            Action.LIMITS_CHANGED,
            "ModelTenant/acme",
            {"requests|Minute|*|*": 600},
            {"requests|Minute|*|*": 900, "concurrency|-|*|*": 8},
        ),
    ]


def test_a_key_is_rotated_by_name_and_its_old_one_may_live_on() -> None:
    rotated = replace(ACME, keys=(ApiKey("prod", NEW), ApiKey("ci", CI)))
    assert _changes(ACME, rotated) == [
        (
            Action.KEY_ROTATED,
            "ApiKey/acme/prod",
            {"digest": "01010101", "expiresAt": None},
            {"digest": "03030303", "expiresAt": None},
        )
    ]
    overlap = replace(ACME, keys=(ApiKey("prod", PROD, 1_800_000_000.0), ApiKey("prod", NEW), ApiKey("ci", CI)))
    assert _changes(ACME, overlap) == [
        (Action.KEY_CHANGED, "ApiKey/acme/prod", {"expiresAt": None}, {"expiresAt": "2027-01-15T08:00:00Z"}),
        (Action.KEY_CREATED, "ApiKey/acme/prod", {}, {"digest": "03030303", "expiresAt": None}),
    ]


def test_the_revocation_list_is_recorded_with_the_owner_of_the_key() -> None:
    changes = _changes(ACME, ACME, revoked=frozenset({CI}))
    assert changes == [(Action.KEY_REVOKED, "ApiKey/acme/ci", {"digest": "02020202"}, {})]
    unknown = tenant_changes(TenantTable(), TenantTable(revoked=frozenset({NEW})), lambda _: "kubectl")
    assert [(event.object, event.actor, event.tenant) for event in unknown] == [
        ("ApiKey/unknown", "revocation list", None)
    ]
    tables = (TenantTable(0, {"acme": ACME}), TenantTable(1, {"acme": ACME}, revoked=frozenset({CI})))
    (event,) = tenant_changes(*tables, lambda _: "argocd", lambda digest: f"ann, {digest[:1].hex()}")
    assert (event.actor, event.tenant) == ("ann, 02", "acme")


def test_subjects_are_recorded() -> None:
    subject = TokenSubject("https://issuer.example", "sub", "app")
    assert _changes(ACME, replace(ACME, subjects=(subject,)))[0][0] is Action.SUBJECT_ADDED
    assert _changes(replace(ACME, subjects=(subject,)), ACME)[0][0] is Action.SUBJECT_REMOVED


def test_fingerprints_of_equal_tables_are_equal_whatever_their_order() -> None:
    other = replace(ACME, keys=tuple(reversed(ACME.keys)), models=frozenset(["chat/llama-70b"]))
    table, same = TenantTable(1, {"acme": ACME}), TenantTable(7, {"acme": other})
    changed = TenantTable(1, {"acme": replace(ACME, weight=2)})
    prints = [tenants_loaded(tenants, "x").after["fingerprint"] for tenants in (table, same, changed)]
    assert prints[0] == prints[1] != prints[2]


def test_keys_expire_once_and_no_record_holds_a_digest() -> None:
    clock = ManualClock(wall=1_800_000_000.0)
    service = AuditService(AuditLog("gateway", "gw-1", clock), clock)
    dying = replace(ACME, keys=(ApiKey("prod", PROD, clock.wall() + 10.0), ApiKey("old", NEW, clock.wall() - 1.0)))
    service.on_tenants(TenantTable(1, {"acme": dying}), lambda _: "kubectl")
    for _ in range(4):
        clock.advance(5.0)
        service.check_expiry()
    service.on_tenants(TenantTable(2, {"acme": ACME}), lambda _: "kubectl")
    records = service.log.recent(AuditQuery(), 100)
    expired = [(record.object, record.time) for record in records if record.action == Action.KEY_EXPIRED]
    assert expired == [("ApiKey/acme/prod", "2027-01-15T08:00:10.000000Z")]
    lines = b"".join(encode_record(record) for record in records)
    assert PROD.hex()[:9].encode() not in lines
