"""``fairlead keys``: creates, lists, rotates and revokes the API keys of tenants.

A new key goes to standard output, alone and once. All else goes to standard error.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fairlead.errors import BadInput, FairleadError, plain_text
from fairlead.kube.conditions import parse_time
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import name_of
from fairlead.names import DNS_LABEL_PATTERN
from fairlead.runtime.clock import SystemClock
from fairlead.tenants.documents import parse_revocations
from fairlead.units import format_duration
from fairlead_cli.console import program_name, terminal_text
from fairlead_cli.exit_codes import OK, UNREACHABLE, ClusterUnreachable, report_failure
from fairlead_cli.formatting import align_columns
from fairlead_cli.keys.key_entries import (
    KeyOwner,
    add_key,
    create_key,
    format_time,
    is_expired,
    key_digest,
    parse_expiry,
    parse_lifetime,
    revoke_key,
    rotate_key,
    short_digest,
)
from fairlead_cli.output import OutputFlag, OutputFormat, format_document, is_document
from fairlead_cli.tenants.budget_use import KeyUses, read_key_uses
from fairlead_cli.tenants.selection import (
    DEFAULT_FLAGS,
    ManageFlag,
    RevokedFlag,
    TenantFlags,
    TenantFlagsParameter,
    TenantSource,
    open_tenants,
)
from fairlead_cli.tenants.store import Entry, KeyEdit, TenantStore, keys_of

_Tenant = Annotated[str, Parameter(help="The name of a ModelTenant.")]
_Key = Annotated[str, Parameter(help="The name of a key of the tenant.")]
_Expires = Annotated[
    str | None,
    Parameter(help="When the key expires: a duration from now such as 90d, or a date. Default: never."),
]

_DAY_SECONDS = 86_400.0


def keys_create(
    tenant: _Tenant,
    name: _Key,
    *,
    expires: _Expires = None,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    output: OutputFlag = "table",
) -> int:
    """Create an API key of a tenant, and print it once.

    Only the key goes to standard output, and only now: the tenant gets its digest alone. Gateways
    accept it within two seconds.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    if not DNS_LABEL_PATTERN.fullmatch(name):
        raise BadInput(
            f"{name!r} cannot be the name of a key",
            field="NAME",
            hint="use at most 63 lower-case letters, digits and hyphens",
        )
    now, owner = SystemClock().wall(), KeyOwner(tenant, program_name())
    return _issue(flags, owner, name, expires, output, lambda new: lambda entries: add_key(entries, new, now, owner))


def keys_rotate(
    tenant: _Tenant,
    name: _Key,
    *,
    overlap: Annotated[str, Parameter(help="How long the old key stays valid, such as 24h; 0s: not at all.")] = "24h",
    expires: _Expires = None,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    output: OutputFlag = "table",
) -> int:
    """Replace an API key by a new one of the same name. The old one stays valid for a while.

    The new key is printed once. Limits of this name hold for both together.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    now, owner = SystemClock().wall(), KeyOwner(tenant, program_name())
    seconds = parse_lifetime(overlap, field="--overlap")

    def edit(new: Entry) -> KeyEdit:
        return lambda entries: rotate_key(entries, new, now, seconds, owner)

    code = _issue(flags, owner, name, expires, output, edit)
    if code == OK:
        end = f"is valid until {format_time(now + seconds)} at the latest" if seconds > 0 else "is no longer valid"
        _note(f"the old key {name} {end}")
    return code


def keys_revoke(
    tenant: _Tenant,
    name: _Key,
    *,
    digest: Annotated[
        str | None, Parameter(help="Only the key whose digest begins so. Default: all keys of the name.")
    ] = None,
    revoked: RevokedFlag = None,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    output: OutputFlag = "table",
) -> int:
    """Revoke the API keys of a name. Gateways refuse them within two seconds.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    removed: list[Entry] = []
    owner = KeyOwner(tenant, program_name())

    def edit(entries: Any) -> list[Entry]:
        remaining, removed[:] = revoke_key(entries, name, digest, owner)
        return remaining

    def run(source: TenantSource) -> int:
        # First the list of revoked keys: it is effective even if the tenants cannot be written.
        revoked_in = _add_to_revocation_list(source.store, name, digest, owner)
        try:
            source.store.edit_keys(tenant, edit)
        except FairleadError:
            if revoked_in is not None:
                _note(f"gateways refuse the key by {revoked_in}; the ModelTenant {tenant} was not changed")
            raise
        for entry in removed:
            _note(f"revoked the key {name} ({short_digest(entry)}) of {tenant}")
        if revoked_in is not None:
            _note(f"added to {revoked_in}, which gateways follow even if the tenants are broken")
        if is_document(output):
            value = {"tenant": tenant, "name": name, "revoked": [entry["digest"] for entry in removed]}
            print(format_document(value, output))
        return OK

    return _run(flags, run, revoked=revoked)


def _add_to_revocation_list(store: TenantStore, name: str, digest: str | None, owner: KeyOwner) -> str | None:
    """Adds the digests of a tenant's keys to the list of revoked keys, and returns where it is.

    A whole digest is added without a look at the tenant, which may be unreadable. In a cluster, a
    list that cannot be written is a note: the ModelTenant is changed nevertheless.
    """
    try:
        _, listed = revoke_key(keys_of(store.tenant(owner.tenant)), name, digest, owner)
    except FairleadError:
        if not parse_revocations(digest or "")[0]:
            raise
        listed = [{"name": name, "digest": digest}]
    try:
        return store.add_revoked(listed)
    except KubeError as error:
        _note(f"the list of revoked keys was not changed: {error.message}")
        return None


def keys_list(
    tenant: Annotated[str | None, Parameter(help="Only the keys of this ModelTenant.")] = None,
    *,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    manage: ManageFlag = None,
    output: OutputFlag = "table",
) -> int:
    """Show API keys with their digests, expiry and last use.

    The last use is the latest that any gateway counted since it started, to the minute.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """

    def run(source: TenantSource) -> int:
        tenants = source.store.tenants() if tenant is None else [source.store.tenant(tenant)]
        keys = [ListedKey(name_of(found), entry) for found in tenants for entry in keys_of(found)]
        uses = read_key_uses(source)
        for problem in uses.problems:
            _note(f"last use unknown: {problem}")
        if is_document(output):
            print(format_document({"keys": [key.to_plain(uses) for key in keys]}, output))
        else:
            print(terminal_text(render_keys(keys, uses, SystemClock().wall(), is_wide=output == "wide")))
        return OK

    return _run(flags, run, manage=manage, finds_stack=True)


def _issue(
    flags: TenantFlags,
    owner: KeyOwner,
    name: str,
    expires: str | None,
    output: OutputFormat,
    edit_with: Callable[[Entry], KeyEdit],
) -> int:
    """Draws a key, stores its digest by an edit with its entry, and prints it."""
    expires_at = None if expires is None else parse_expiry(expires, SystemClock().wall(), field="--expires")

    def run(source: TenantSource) -> int:
        key = create_key()
        entry: Entry = {"name": name, "digest": key_digest(key, source.store.pepper())}
        if expires_at is not None:
            entry["expiresAt"] = format_time(expires_at)
        source.store.edit_keys(owner.tenant, edit_with(entry))
        if is_document(output):
            print(format_document({"tenant": owner.tenant, "key": key, **entry}, output))
        else:
            print(key)
        end = f", valid until {entry['expiresAt']}" if expires_at is not None else ""
        _note(f"stored the digest {short_digest(entry)} of the key {name} of {owner.tenant}{end}")
        _note("the key is shown only here: give it to the tenant over a safe channel")
        return OK

    return _run(flags, run)


def _run(
    flags: TenantFlags,
    run: Callable[[TenantSource], int],
    *,
    revoked: Path | None = None,
    manage: str | None = None,
    finds_stack: bool = False,
) -> int:
    try:
        with open_tenants(flags, revoked=revoked, manage=manage, finds_stack=finds_stack) as source:
            return run(source)
    except ClusterUnreachable as error:
        return report_failure(error, UNREACHABLE)


def _note(text: str) -> None:
    print(plain_text(text), file=sys.stderr)


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key of a tenant in a list."""

    tenant: str
    entry: Entry

    def to_plain(self, uses: KeyUses) -> dict[str, Any]:
        """Returns the key as a value for JSON; null where something is unknown."""
        digest = str(self.entry.get("digest", ""))
        used_at = uses.time_of(digest)
        return {
            "tenant": self.tenant,
            "name": self.entry.get("name"),
            "digest": digest,
            "expiresAt": self.entry.get("expiresAt"),
            "lastUsedAt": None if used_at is None else format_time(used_at),
            "usesCountedSince": None if uses.started_at is None else format_time(uses.started_at),
        }


def render_keys(keys: Sequence[ListedKey], uses: KeyUses, now: float, *, is_wide: bool) -> str:
    """Returns a table of keys. ``is_wide``: with whole digests."""
    if not keys:
        return "no API keys"
    rows = [("TENANT", "NAME", "DIGEST", "EXPIRES", "LAST USED")]
    rows += [
        (
            key.tenant,
            str(key.entry.get("name")),
            str(key.entry.get("digest")) if is_wide else short_digest(key.entry),
            describe_expiry(key.entry, now),
            uses.describe(str(key.entry.get("digest", "")), now),
        )
        for key in keys
    ]
    return align_columns(rows)


def describe_expiry(entry: Entry, now: float) -> str:
    """Returns when a key expires, for people."""
    if not entry.get("expiresAt"):
        return "never"
    if is_expired(entry, now):
        return "expired"
    expires_at = parse_time(entry["expiresAt"])
    if expires_at is None:
        return str(entry["expiresAt"])
    left = expires_at - now
    return f"in {int(left // _DAY_SECONDS)}d" if left >= 2 * _DAY_SECONDS else f"in {format_duration(left)}"
