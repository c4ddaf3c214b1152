"""Audit events of two states of the tenants. Pure.

Keys appear with the first digits of their digests.

Audit events of two states of the fleet's models. Pure.

Instances are no part of them: they come and go by the autoscaler, which records its own actions.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from fairlead.audit import Action, AuditEvent, short_digest
from fairlead.audit.record import SHORT_DIGEST_CHARS, Value
from fairlead.fleet.model import Model
from fairlead.tenants.model import ApiKey, Limit, Tenant, TenantTable, TokenSubject
from fairlead_gateway.tenants.messages import LIST_ACTOR

AuthorOf = Callable[[str], str]
"""Returns who changed a tenant last, by its name."""
RevokedBy = Callable[[bytes], str]
"""Returns who put the digest of a key on a revocation list."""
_MAX_MODELS: Final = 16
_RECORDED_APART: Final = frozenset({"name", "keys", "subjects", "limits", "models"})

ACTOR = "fleet"
"""The actor of every change; the gateway sees only that a model changed."""


def tenants_loaded(table: TenantTable, actor: str) -> AuditEvent:
    """Returns the event of the first state after a start, with a fingerprint to compare by."""
    digest = sha256()
    for name in sorted(table.tenants):
        digest.update(repr(_canonical(table.tenants[name])).encode())
    digest.update(b"".join(sorted(table.revoked)))
    values: dict[str, Value] = {
        "tenants": len(table.tenants),
        "keys": sum(len(tenant.keys) for tenant in table.tenants.values()),
        "revoked": len(table.revoked),
        "fingerprint": digest.hexdigest()[:SHORT_DIGEST_CHARS],
    }
    return AuditEvent(Action.TENANTS_LOADED, "TenantTable/all", actor, after=values, reason="the gateway started")


def tenant_changes(
    before: TenantTable, after: TenantTable, author_of: AuthorOf, revoked_by: RevokedBy = lambda _: LIST_ACTOR
) -> list[AuditEvent]:
    """Returns what changed between two states, tenant by tenant."""
    events: list[AuditEvent] = []
    for name in sorted(before.tenants.keys() | after.tenants.keys()):
        old, new = before.tenants.get(name), after.tenants.get(name)
        if old is new or old == new:
            continue
        actor = author_of(name)
        if old is None:
            assert new is not None
            events.append(AuditEvent(Action.TENANT_ADDED, _tenant(name), actor, name, after=_policy_values(new)))
            old = Tenant(name)
        elif new is None:
            events.append(AuditEvent(Action.TENANT_REMOVED, _tenant(name), actor, name, _policy_values(old)))
            new = Tenant(name)
        else:
            events += _policy_changes(old, new, actor)
        events += _limit_changes(old, new, actor)
        events += _key_changes(old, new, actor)
        events += _subject_changes(old, new, actor)
    return events + _revocations(before, after, revoked_by)


def key_expired(tenant: str, key: ApiKey) -> AuditEvent:
    """Returns the event of a key whose time is over."""
    values = _key_values(key)
    return AuditEvent(
        Action.KEY_EXPIRED,
        _key(tenant, key.name),
        "fairlead-gateway",
        tenant,
        values,
        reason="the time of the key is over",
    )


def _policy_changes(old: Tenant, new: Tenant, actor: str) -> Iterable[AuditEvent]:
    changed = _differences(_policy_values(old), _policy_values(new))
    if changed is not None:
        yield AuditEvent(Action.TENANT_CHANGED, _tenant(new.name), actor, new.name, *changed)


def _limit_changes(old: Tenant, new: Tenant, actor: str) -> Iterable[AuditEvent]:
    changed = _differences(_limit_values(old.limits), _limit_values(new.limits))
    if changed is not None:
        yield AuditEvent(Action.LIMITS_CHANGED, _tenant(new.name), actor, new.name, *changed)


def _key_changes(old: Tenant, new: Tenant, actor: str) -> Iterable[AuditEvent]:
    """Yields the events of keys. A name whose digests are all replaced is a rotation."""
    before, after = _keys_by_name(old), _keys_by_name(new)
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name, {}), after.get(name, {})
        gone, come = [key for digest, key in was.items() if digest not in now], []
        for digest, key in now.items():
            if digest not in was:
                come.append(key)
            elif was[digest] != key:
                values = _differences(_key_values(was[digest]), _key_values(key))
                if values is not None:
                    yield AuditEvent(Action.KEY_CHANGED, _key(new.name, name), actor, new.name, *values)
        while gone and come:
            replaced, by = _key_values(gone.pop(0)), _key_values(come.pop(0))
            yield AuditEvent(Action.KEY_ROTATED, _key(new.name, name), actor, new.name, replaced, by)
        for key in come:
            yield AuditEvent(Action.KEY_CREATED, _key(new.name, name), actor, new.name, after=_key_values(key))
        for key in gone:
            yield AuditEvent(Action.KEY_REVOKED, _key(new.name, name), actor, new.name, _key_values(key))


def _subject_changes(old: Tenant, new: Tenant, actor: str) -> Iterable[AuditEvent]:
    for subject in new.subjects:
        if subject not in old.subjects:
            values = _subject_values(subject)
            yield AuditEvent(Action.SUBJECT_ADDED, _tenant(new.name), actor, new.name, after=values)
    for subject in old.subjects:
        if subject not in new.subjects:
            yield AuditEvent(Action.SUBJECT_REMOVED, _tenant(new.name), actor, new.name, _subject_values(subject))


def _revocations(before: TenantTable, after: TenantTable, revoked_by: RevokedBy) -> list[AuditEvent]:
    """Returns the events of keys that the revocation list refuses now."""
    added = after.revoked - before.revoked
    if not added:
        return []
    owners = {
        key.digest: (tenant.name, key)
        for table in (before, after)
        for tenant in table.tenants.values()
        for key in tenant.keys
        if key.digest in added
    }
    events = []
    for digest in sorted(added):
        tenant, key = owners.get(digest, (None, None))
        name = "ApiKey/unknown" if tenant is None or key is None else _key(tenant, key.name)
        values: dict[str, Value] = {"digest": short_digest(digest)}
        reason = "it is on the revocation list"
        events.append(AuditEvent(Action.KEY_REVOKED, name, revoked_by(digest), tenant, values, reason=reason))
    return events


def _keys_by_name(tenant: Tenant) -> dict[str, dict[bytes, ApiKey]]:
    found: dict[str, dict[bytes, ApiKey]] = {}
    for key in tenant.keys:
        found.setdefault(key.name, {})[key.digest] = key
    return found


def _policy_values(tenant: Tenant) -> dict[str, Value]:
    models = None if tenant.models is None else sorted(tenant.models)
    shown = "all" if models is None else ", ".join(models[:_MAX_MODELS])
    if models is not None and len(models) > _MAX_MODELS:
        shown += f" and {len(models) - _MAX_MODELS} more ({sha256(repr(models).encode()).hexdigest()[:8]})"
    values: dict[str, Value] = {"models": shown}
    for field in fields(tenant):  # so that no new field is forgotten
        if field.name not in _RECORDED_APART:
            value = getattr(tenant, field.name)
            values[field.name] = value if value is None or isinstance(value, (int, float)) else str(value)
    return values


def _limit_values(limits: Iterable[Limit]) -> dict[str, Value]:
    return {limit.id: f"{limit.amount} (soft)" if limit.is_soft else limit.amount for limit in limits}


def _key_values(key: ApiKey) -> dict[str, Value]:
    expires = None if key.expires_at is None else _format_time(key.expires_at)
    return {"digest": short_digest(key.digest), "expiresAt": expires}


def _subject_values(subject: TokenSubject) -> dict[str, Value]:
    return {"issuer": subject.issuer, "claim": subject.claim, "value": subject.value}


def _differences(
    before: Mapping[str, Value], after: Mapping[str, Value]
) -> tuple[dict[str, Value], dict[str, Value]] | None:
    """Returns the values that differ, before and after; None if all are equal."""
    names = [
        name for name in {**before, **after} if name not in before or name not in after or before[name] != after[name]
    ]
    if not names:
        return None
    return (
        {name: before[name] for name in names if name in before},
        {name: after[name] for name in names if name in after},
    )


def _canonical(tenant: Tenant) -> tuple[object, ...]:
    """Returns a tenant as values whose text does not depend on the order of sets."""
    keys = sorted((key.name, key.digest, key.expires_at or 0.0) for key in tenant.keys)
    limits = sorted(_limit_values(tenant.limits).items(), key=str)
    subjects = sorted((subject.issuer, subject.claim, subject.value) for subject in tenant.subjects)
    models = None if tenant.models is None else sorted(tenant.models)
    return tenant.name, sorted(_policy_values(tenant).items()), models, keys, limits, subjects


def _tenant(name: str) -> str:
    return f"ModelTenant/{name}"


def _key(tenant: str, name: str) -> str:
    return f"ApiKey/{tenant}/{name}"


def _format_time(seconds: float) -> str:
    """Returns a time in UTC; far ones, which no calendar has, as a number."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def models_loaded(models: Mapping[str, Model]) -> AuditEvent:
    values: dict[str, Value] = {"models": len(models)}
    return AuditEvent(Action.MODELS_LOADED, "Fleet/models", ACTOR, after=values, reason="the gateway started")


def model_changes(before: Mapping[str, Model], after: Mapping[str, Model]) -> list[AuditEvent]:
    """Returns the models that came, went, or are reached or paid for differently."""
    if before is after:
        return []
    events = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old is new or old == new:
            continue
        name = f"Model/{key}"
        if old is None:
            assert new is not None
            events.append(AuditEvent(Action.MODEL_ADDED, name, ACTOR, after=_values(new)))
        elif new is None:
            events.append(AuditEvent(Action.MODEL_REMOVED, name, ACTOR, before=_values(old)))
        elif (was := _values(old)) != (now := _values(new)):
            changed = [field for field in was if was[field] != now[field]]
            events.append(
                AuditEvent(
                    Action.MODEL_CHANGED,
                    name,
                    ACTOR,
                    before={field: was[field] for field in changed},
                    after={field: now[field] for field in changed},
                )
            )
    return events


def _values(model: Model) -> dict[str, Value]:
    price = model.price
    policy = model.requests
    return {
        "preset": model.routing.preset,
        "maxAttempts": model.routing.max_attempts,
        "resume": model.routing.resume.value,
        "servedNames": ", ".join(sorted(model.served_names)),
        "contextLength": model.context_length,
        "bareName": not model.shadowed,
        "wakes": model.wakes,
        "unknownFields": policy.unknown_fields.value,
        "allowedFields": ", ".join(sorted(policy.allowed_fields)),
        "allowedPaths": ", ".join(sorted(policy.allowed_paths)),
        "allowedHeaders": ", ".join(sorted(policy.allowed_headers)),
        "price": None if price is None else f"{price.input}/{price.cached_input}/{price.output}",
    }
