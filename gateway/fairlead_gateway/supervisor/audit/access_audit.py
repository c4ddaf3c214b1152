"""Audit events of requests to the management API; repeated ones are counted.

Recorded are reads of what tenants did, and all refusals. Reads of the fleet and its statistics show
no tenant, and are not.

A page that is open reads the same every two seconds. The first such read is recorded at once. The
next one after `audit_repeat_seconds` is recorded with the number of reads between.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from fairlead.audit import Action, AuditEvent
from fairlead.limits import Limits
from fairlead_gateway.supervisor.management.access.access_guard import AnsweredRequest
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission, needed_permission

AUDIT_REPEAT_SECONDS: Final = 300.0
"""Limit: equal reads of the management API by the same token are one record in this time, with
their number.
"""

_RECORDED: Final = (Permission.READ, Permission.AUDIT)


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

    def __init__(self, add: Callable[[AuditEvent], None], now: Callable[[], float], limits: Limits) -> None:
        self._add = add
        self._now = now
        self._limits = limits
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
        if repeats is None and len(self._repeats) >= self._limits.audit_repeats:
            self._forget_old(now)
            if len(self._repeats) >= self._limits.audit_repeats:
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
