"""``fairlead keys``: from the options to the exit code.

A new key goes to standard output, alone and once. All else goes to standard error.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairlead.errors import BadInput, FairleadError, plain_text
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import name_of
from fairlead.names import DNS_LABEL_PATTERN
from fairlead.runtime.clock import SystemClock
from fairlead.tenants.documents import parse_revocations
from fairlead_cli.console import program_name, terminal_text
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.exit_codes import OK, UNREACHABLE, report_failure
from fairlead_cli.keys.api_key import create_key, format_time, key_digest, parse_expiry, parse_lifetime
from fairlead_cli.keys.key_entries import KeyOwner, add_key, revoke_key, rotate_key, short_digest
from fairlead_cli.keys.text_output import ListedKey, render_keys
from fairlead_cli.output import OutputFormat, format_document, is_document
from fairlead_cli.tenants.key_use import read_key_uses
from fairlead_cli.tenants.selection import TenantsOptions, TenantsPlace, open_tenants
from fairlead_cli.tenants.store import Entry, KeyEdit, TenantStore, keys_of


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """Options of the verbs that change keys."""

    tenant: str
    name: str
    output: OutputFormat = "table"
    expires: str | None = None
    overlap: str = "24h"
    digest: str | None = None


def run_create(where: TenantsOptions, asked: KeyOptions) -> int:
    """Creates a key, prints it and returns the exit code. Raises BadInput and KubeError."""
    _check_name(asked.name)
    now = SystemClock().wall()
    expires_at = None if asked.expires is None else parse_expiry(asked.expires, now, field="--expires")
    owner = KeyOwner(asked.tenant, program_name())
    return _issue(where, asked, expires_at, lambda new: lambda entries: add_key(entries, new, now, owner))


def run_rotate(where: TenantsOptions, asked: KeyOptions) -> int:
    """Replaces a key, prints the new one and returns the exit code.

    Raises BadInput and KubeError.
    """
    now = SystemClock().wall()
    expires_at = None if asked.expires is None else parse_expiry(asked.expires, now, field="--expires")
    overlap = parse_lifetime(asked.overlap, field="--overlap")
    owner = KeyOwner(asked.tenant, program_name())
    code = _issue(where, asked, expires_at, lambda new: lambda entries: rotate_key(entries, new, now, overlap, owner))
    if code == OK:
        end = f"is valid until {format_time(now + overlap)} at the latest" if overlap > 0 else "is no longer valid"
        _note(f"the old key {asked.name} {end}")
    return code


def run_revoke(where: TenantsOptions, asked: KeyOptions) -> int:
    """Removes keys and returns the exit code. Raises BadInput and KubeError."""
    removed: list[Entry] = []
    owner = KeyOwner(asked.tenant, program_name())

    def edit(entries: Any) -> list[Entry]:
        remaining, removed[:] = revoke_key(entries, asked.name, asked.digest, owner)
        return remaining

    def run(place: TenantsPlace) -> int:
        # First the list of revoked keys: it is effective even if the tenants cannot be written.
        revoked_in = _add_to_revocation_list(place.store, asked, owner)
        try:
            place.store.edit_keys(asked.tenant, edit)
        except FairleadError:
            if revoked_in is not None:
                _note(f"gateways refuse the key by {revoked_in}; the ModelTenant {asked.tenant} was not changed")
            raise
        for entry in removed:
            _note(f"revoked the key {asked.name} ({short_digest(entry)}) of {asked.tenant}")
        if revoked_in is not None:
            _note(f"added to {revoked_in}, which gateways follow even if the tenants are broken")
        if is_document(asked.output):
            value = {"tenant": asked.tenant, "name": asked.name, "revoked": [entry["digest"] for entry in removed]}
            print(format_document(value, asked.output))
        return OK

    return _run("keys revoke", where, run)


def _add_to_revocation_list(store: TenantStore, asked: KeyOptions, owner: KeyOwner) -> str | None:
    """Adds the digests of a tenant's keys to the list of revoked keys, and returns where it is.

    A whole digest is added without a look at the tenant, which may be unreadable. In a cluster, a
    list that cannot be written is a note: the ModelTenant is changed nevertheless.
    """
    try:
        _, listed = revoke_key(keys_of(store.tenant(asked.tenant)), asked.name, asked.digest, owner)
    except FairleadError:
        if not parse_revocations(asked.digest or "")[0]:
            raise
        listed = [{"name": asked.name, "digest": asked.digest}]
    try:
        return store.add_revoked(listed)
    except KubeError as error:
        _note(f"the list of revoked keys was not changed: {error.message}")
        return None


def run_list(where: TenantsOptions, tenant: str | None, output: OutputFormat) -> int:
    """Prints keys and returns the exit code. Raises BadInput and KubeError."""

    def run(place: TenantsPlace) -> int:
        tenants = place.store.tenants() if tenant is None else [place.store.tenant(tenant)]
        keys = [ListedKey(name_of(found), entry) for found in tenants for entry in keys_of(found)]
        uses = read_key_uses(place)
        for problem in uses.problems:
            _note(f"last use unknown: {problem}")
        if is_document(output):
            print(format_document({"keys": [key.to_plain(uses) for key in keys]}, output))
        else:
            print(terminal_text(render_keys(keys, uses, SystemClock().wall(), is_wide=output == "wide")))
        return OK

    return _run("keys list", where, run)


def _issue(
    where: TenantsOptions, asked: KeyOptions, expires_at: float | None, edit_with: Callable[[Entry], KeyEdit]
) -> int:
    """Draws a key, stores its digest by an edit with its entry, and prints it."""

    def run(place: TenantsPlace) -> int:
        key = create_key()
        entry: Entry = {"name": asked.name, "digest": key_digest(key, place.store.pepper())}
        if expires_at is not None:
            entry["expiresAt"] = format_time(expires_at)
        place.store.edit_keys(asked.tenant, edit_with(entry))
        if is_document(asked.output):
            print(format_document({"tenant": asked.tenant, "key": key, **entry}, asked.output))
        else:
            print(key)
        end = f", valid until {entry['expiresAt']}" if expires_at is not None else ""
        _note(f"stored the digest {short_digest(entry)} of the key {asked.name} of {asked.tenant}{end}")
        _note("the key is shown only here: give it to the tenant over a safe channel")
        return OK

    return _run("keys", where, run)


def _run(verb: str, where: TenantsOptions, run: Callable[[TenantsPlace], int]) -> int:
    try:
        with open_tenants(where) as place:
            return run(place)
    except ClusterUnreachable as error:
        return report_failure(verb, error, UNREACHABLE)


def _check_name(name: str) -> None:
    if not DNS_LABEL_PATTERN.fullmatch(name):
        raise BadInput(
            f"{name!r} cannot be the name of a key",
            field="NAME",
            hint="use at most 63 lower-case letters, digits and hyphens",
        )


def _note(text: str) -> None:
    print(plain_text(text), file=sys.stderr)
