"""Audit service: compares each new state of the tenants and of the fleet with the one before."""

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from fairlead.audit import AuditLog
from fairlead.fleet.model import Model
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.tenants.model import ApiKey, TenantTable
from fairlead_gateway.supervisor.audit.access_audit import AccessAudit
from fairlead_gateway.supervisor.audit.model_changes import model_changes, models_loaded
from fairlead_gateway.supervisor.audit.tenant_changes import (
    LIST_ACTOR,
    AuthorOf,
    RevokedBy,
    key_expired,
    tenant_changes,
    tenants_loaded,
)

EXPIRY_SECONDS: Final = 1.0
_MAX_FIRST_TENANTS: Final = 16
"""More tenants than this after none are a source that was read late, and are one record."""


class AccessTables(Protocol):
    """The tenants of all sources, and who changed them last."""

    def table(self) -> TenantTable: ...

    def author_of(self, name: str) -> str: ...

    def revoked_by(self, digest: bytes) -> str: ...


class AuditService:
    """The audit of the states of one gateway.

    log: gets the events.
    access: takes the requests to the management port.
    """

    def __init__(self, log: AuditLog, clock: Clock, limits: Limits) -> None:
        self.log = log
        self.access = AccessAudit(log.add, clock.now, limits)
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

    def on_access(self, access: AccessTables) -> None:
        """Records what changed in the tenants of all sources."""
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
