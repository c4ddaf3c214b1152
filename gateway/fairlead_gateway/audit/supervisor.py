"""Audit service: compares each new state of the tenants and of the fleet with the one before.

Audit events of requests to the management API; repeated ones are counted.

Recorded are reads of what tenants did, and all refusals. Reads of the fleet and its statistics show
no tenant, and are not.

A page that is open reads the same every two seconds. The first such read is recorded at once. The
next one after `AUDIT_REPEAT_SECONDS` is recorded with the number of reads between.

Follows the file of management tokens, and records its changes.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from fairlead.audit import Action, AuditEvent, AuditLog, short_digest
from fairlead.audit.record import Value
from fairlead.errors import ManifestError
from fairlead.fleet.model import Model
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.file_watcher import FileWatcher, ToleratedErrors
from fairlead.tenants.model import ApiKey, TenantTable
from fairlead_gateway.audit.tenant_changes import (
    AuthorOf,
    RevokedBy,
    key_expired,
    model_changes,
    models_loaded,
    tenant_changes,
    tenants_loaded,
)
from fairlead_gateway.supervisor.management.access.access_guard import AnsweredRequest
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission, needed_permission
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_gateway.tenants.messages import LIST_ACTOR
from fairlead_gateway.tenants.supervisor.access_service import AccessService

AUDIT_REPEAT_SECONDS: Final = 300.0
"""Limit: equal reads of the management API by the same token are one record in this time, with
their number.
"""
AUDIT_REPEATS: Final = 1_024
"""Limit: different reads that are counted so at once; the next are recorded singly."""

_RECORDED: Final = (Permission.READ, Permission.AUDIT)

EXPIRY_SECONDS: Final = 1.0
_MAX_FIRST_TENANTS: Final = 16
"""More tenants than this after none are a source that was read late, and are one record."""

ACTOR = "token file"
"""The actor of every change; the gateway sees only that the file changed."""


class Access(NamedTuple):
    """One request to the management API.

    actor: name of the management token.
    route: path, with placeholders for names.
    tenant: whose data were read; None: of no single tenant.
    request_id: None for a request that was counted, and one that was refused by its head.
    """

    actor: str
    method: str
    route: str
    status: int
    tenant: str | None = None
    reason: str = ""
    request_id: str | None = None


class _Repeats:
    __slots__ = ("count", "recorded_at")

    def __init__(self, recorded_at: float) -> None:
        self.recorded_at = recorded_at
        self.count = 0


class AccessAudit:
    """The audit of one management port.

    add: takes an event.
    now: returns monotonic seconds.
    """

    def __init__(
        self, add: Callable[[AuditEvent], None], now: Callable[[], float], max_repeats: int = AUDIT_REPEATS
    ) -> None:
        self._add = add
        self._now = now
        self._max_repeats = max_repeats
        self._repeats: dict[tuple[str, str, str, int, str | None], _Repeats] = {}

    def on_request(self, scope: AccessScope, request: AnsweredRequest) -> None:
        """Records a request that the guard of the port has passed or refused."""
        if not _is_denied(request.status) and needed_permission(request.route) not in _RECORDED:
            return
        tenants = scope.tenants or frozenset()
        tenant = next(iter(tenants)) if len(tenants) == 1 else None
        method, route, status, reason, request_id = request
        self.on_access(Access(scope.name, method, route, status, tenant, reason, request_id))

    def on_access(self, access: Access) -> None:
        """Records an access, or counts it if an equal one was recorded a moment ago."""
        key = (access.actor, access.method, access.route, access.status, access.tenant)
        now, repeats = self._now(), self._repeats.get(key)
        if repeats is not None and now - repeats.recorded_at < AUDIT_REPEAT_SECONDS:
            repeats.count += 1
            return
        self._add(_event(access, 0 if repeats is None else repeats.count))
        if repeats is None and len(self._repeats) >= self._max_repeats:
            self._forget_old(now)
            if len(self._repeats) >= self._max_repeats:
                return
        self._repeats[key] = _Repeats(now)

    def _forget_old(self, now: float) -> None:
        seconds = AUDIT_REPEAT_SECONDS
        old = [key for key, repeats in self._repeats.items() if now - repeats.recorded_at >= seconds]
        for key in old:
            repeats = self._repeats.pop(key)
            if repeats.count:
                actor, method, route, status, tenant = key
                self._add(_event(Access(actor, method, route, status, tenant), repeats.count))


def _event(access: Access, repeats: int) -> AuditEvent:
    after: dict[str, int] = {"status": access.status}
    if repeats:
        after["alsoBefore"] = repeats
    return AuditEvent(
        Action.ACCESS_DENIED if _is_denied(access.status) else Action.MANAGEMENT_READ,
        f"{access.method} {access.route}",
        access.actor,
        access.tenant,
        after=after,
        reason=access.reason,
        request_id=access.request_id,
    )


def _is_denied(status: int) -> bool:
    return status in (401, 403)


class AuditService:
    """The audit of the states of one gateway.

    log: gets the events.
    access: takes the requests to the management port.
    """

    def __init__(self, log: AuditLog, clock: Clock) -> None:
        self.log = log
        self.access = AccessAudit(log.add, clock.now)
        self._clock = clock
        self._tenants: TenantTable | None = None
        self._models: Mapping[str, Model] | None = None
        self._expiring: list[tuple[float, str, ApiKey]] = []

    def on_tenants(self, table: TenantTable, author_of: AuthorOf, revoked_by: RevokedBy = lambda _: LIST_ACTOR) -> None:
        """Records what changed in the tenants.

        author_of: returns who changed a tenant last.
        revoked_by: returns who put a digest on a revocation list.
        """
        before, self._tenants = self._tenants, table
        if before is table:
            return
        self.check_expiry()
        self._find_expiring(table)
        if before is None or (not before.tenants and len(table.tenants) > _MAX_FIRST_TENANTS):
            self.log.add(tenants_loaded(table, "fairlead-gateway"))
            return
        for event in tenant_changes(before, table, author_of, revoked_by):
            self.log.add(event)

    def on_access(self, access: AccessService) -> None:
        self.on_tenants(access.table(), access.author_of, access.revoked_by)

    def on_models(self, models: Mapping[str, Model]) -> None:
        """Records what changed in the models."""
        before, self._models = self._models, models
        if before is None:
            self.log.add(models_loaded(models))
            return
        for event in model_changes(before, models):
            self.log.add(event)

    async def run(self) -> None:
        """Records keys that expire, until it is cancelled."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            self.check_expiry()

    def check_expiry(self) -> None:
        """Records the keys that have expired since the last call."""
        now = self._clock.wall()
        while self._expiring and self._expiring[-1][0] <= now:
            _, tenant, key = self._expiring.pop()
            self.log.add(key_expired(tenant, key))

    def _find_expiring(self, table: TenantTable) -> None:
        now = self._clock.wall()
        self._expiring = [
            (key.expires_at, tenant.name, key)
            for tenant in table.tenants.values()
            for key in tenant.keys
            if key.expires_at is not None and key.expires_at > now
        ]
        self._expiring.sort(key=lambda entry: entry[:2], reverse=True)


def manage_token_watchers(
    path: Path | None, tokens: ManageTokens, audit: AuditService, limits: Limits
) -> list[FileWatcher]:
    """Returns the watcher of the file, if there is one. It replaces the scoped tokens after edits.

    A file that cannot be read keeps the last good tokens. At the start, it leaves none but that of
    the installation.
    """
    if path is None:
        return []
    known: dict[bytes, AccessScope] = {}

    async def load() -> None:
        # Loaded only with such a file, since the parser takes much memory.
        from fairlead_gateway.supervisor.management.access.token_file import load_token_file

        scopes = await load_token_file(path, limits)
        for event in token_changes(known, scopes):
            audit.log.add(event)
        known.clear()
        known.update(scopes)
        tokens.replace(scopes)

    tolerated = ToleratedErrors((ManifestError,), "no scoped management token is known")
    return [FileWatcher("the file of management tokens", [path], load, tolerated=tolerated)]


def token_changes(before: Mapping[bytes, AccessScope], after: Mapping[bytes, AccessScope]) -> list[AuditEvent]:
    """Returns the events of tokens that came, went, or have another scope. Pure."""
    events = []
    for digest in sorted(before.keys() | after.keys()):
        old, new = before.get(digest), after.get(digest)
        if old == new:
            continue
        name = (new or old or AccessScope("")).name
        events.append(
            AuditEvent(
                Action.TOKENS_CHANGED,
                f"ManageToken/{name}",
                ACTOR,
                before={} if old is None else _values(digest, old),
                after={} if new is None else _values(digest, new),
            )
        )
    return events


def _values(digest: bytes, scope: AccessScope) -> dict[str, Value]:
    tenants = "all" if scope.tenants is None else ", ".join(sorted(scope.tenants))
    may = ", ".join(sorted(permission.value for permission in scope.may))
    return {"digest": short_digest(digest), "tenants": tenants, "may": may}
