"""Follows the file of management tokens, and records its changes."""

from collections.abc import Mapping
from pathlib import Path

from fairlead.audit import Action, AuditEvent, short_digest
from fairlead.audit.record import Value
from fairlead.errors import ManifestError
from fairlead.limits import Limits
from fairlead.runtime.file_watcher import FileWatcher, ToleratedErrors
from fairlead_gateway.supervisor.audit.audit_service import AuditService
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens

ACTOR = "token file"
"""The actor of every change; the gateway sees only that the file changed."""


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
