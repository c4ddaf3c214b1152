"""Changes of a tenant's list of keys. Pure: each function returns a new list.

Two entries may have the same name: the key that is replaced, and the one that replaces it. So
limits of this name hold for both.
"""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from fairlead.errors import BadInput
from fairlead.kube.conditions import parse_time
from fairlead.names import closest_matches
from fairlead.units import parse_duration
from fairlead_cli.tenants.store import Entry

SHORT_DIGEST: Final = 12
_MIN_PREFIX: Final = 6
_MAX_KEYS: Final = 64  # as in the schema of a ModelTenant

KEY_PREFIX: Final = "fl_"
_KEY_BYTES: Final = 32
_MAX_LIFETIME_SECONDS: Final = 3_650 * 86_400.0
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d([Tt ].*)?")


@dataclass(frozen=True, slots=True)
class KeyOwner:
    """The tenant whose list is changed, and the program's name in hints."""

    tenant: str
    program: str = "fairlead"


def is_expired(entry: Entry, now: float) -> bool:
    expires_at = parse_time(entry["expiresAt"]) if entry.get("expiresAt") else None
    return expires_at is not None and expires_at <= now


def add_key(entries: Sequence[Entry], new: Entry, now: float, owner: KeyOwner) -> list[Entry]:
    """Returns the list with a new key, without expired ones of its name.

    Raises BadInput if a valid key has the name.
    """
    name = new["name"]
    if any(entry.get("name") == name and not is_expired(entry, now) for entry in entries):
        raise BadInput(
            f"the tenant {owner.tenant} has a key {name}",
            field="NAME",
            hint=f"choose another name, or replace the key: {owner.program} keys rotate {owner.tenant} {name}",
        )
    return _bounded([*(entry for entry in entries if entry.get("name") != name), new], owner)


def rotate_key(
    entries: Sequence[Entry], new: Entry, now: float, overlap_seconds: float, owner: KeyOwner
) -> list[Entry]:
    """Returns the list with a new key and the one that it replaces.

    The old key expires after the overlap, unless it expires earlier. Without an overlap it is
    removed. Expired keys of the name are removed.

    Raises BadInput if no valid key has the name.
    """
    name = new["name"]
    if not any(entry.get("name") == name and not is_expired(entry, now) for entry in entries):
        raise _unknown_key(entries, name, owner)
    changed: list[Entry] = []
    for entry in entries:
        if entry.get("name") != name:
            changed.append(entry)
        elif overlap_seconds > 0 and not is_expired(entry, now):
            changed.append(_expiring_by(entry, now + overlap_seconds))
    return _bounded([*changed, new], owner)


def revoke_key(
    entries: Sequence[Entry], name: str, digest_prefix: str | None, owner: KeyOwner
) -> tuple[list[Entry], list[Entry]]:
    """Returns the list without the keys of a name, and the removed entries.

    digest_prefix: only the key whose digest begins with it; None for all of the name.

    Raises BadInput if there is no such key.
    """
    if digest_prefix is not None and len(digest_prefix) < _MIN_PREFIX:
        raise BadInput(
            f"--digest: {digest_prefix!r} is too short",
            field="--digest",
            hint=f"give at least {_MIN_PREFIX} characters; `{owner.program} keys list {owner.tenant}` shows them",
        )
    prefix = (digest_prefix or "").lower()
    removed = [
        entry
        for entry in entries
        if entry.get("name") == name and str(entry.get("digest", "")).lower().startswith(prefix)
    ]
    if not removed:
        if prefix and any(entry.get("name") == name for entry in entries):
            hint = f"`{owner.program} keys list {owner.tenant}` shows the digests"
            raise BadInput(f"no key {name} has a digest that begins with {prefix}", field="--digest", hint=hint)
        raise _unknown_key(entries, name, owner)
    return [entry for entry in entries if entry not in removed], removed


def short_digest(entry: Entry) -> str:
    return str(entry.get("digest", ""))[:SHORT_DIGEST]


def _bounded(entries: list[Entry], owner: KeyOwner) -> list[Entry]:
    if len(entries) > _MAX_KEYS:
        raise BadInput(
            f"the tenant {owner.tenant} has {_MAX_KEYS} keys, which is the most",
            field="NAME",
            hint=f"first revoke one that is not in use: {owner.program} keys list {owner.tenant}",
        )
    return entries


def _expiring_by(entry: Entry, end: float) -> Entry:
    known = parse_time(entry["expiresAt"]) if entry.get("expiresAt") else None
    return entry if known is not None and known <= end else {**entry, "expiresAt": format_time(end)}


def _unknown_key(entries: Sequence[Entry], name: str, owner: KeyOwner) -> BadInput:
    names = sorted({str(entry.get("name")) for entry in entries})
    near = closest_matches(name, names) or names
    hint = f"keys of {owner.tenant}: {', '.join(near[:5])}" if near else f"{owner.tenant} has no key"
    return BadInput(f"the tenant {owner.tenant} has no valid key {name}", field="NAME", hint=hint)


def create_key() -> str:
    return KEY_PREFIX + secrets.token_hex(_KEY_BYTES)


def key_digest(key: str, pepper: str) -> str:
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest()


def parse_expiry(text: str, now: float, *, field: str) -> float:
    """Returns the seconds since the epoch at which a key expires.

    text: a duration from now such as ``90d``, a date, or a time in ISO 8601. A date means its
    first second in UTC, and a time without a zone is in UTC.

    Raises BadInput naming ``field``.
    """
    if _DATE.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise BadInput(f"{text!r} is not a date", field=field, hint="write it like 2027-01-31") from None
        expires_at = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    else:
        expires_at = now + parse_lifetime(text, field=field)
    if expires_at <= now:
        raise BadInput(f"{field}: {text} is in the past", field=field, hint="give a later time, such as 90d")
    if expires_at - now > _MAX_LIFETIME_SECONDS:
        raise BadInput(f"{field}: {text} is more than ten years away", field=field, hint="leave it out for no expiry")
    return expires_at


def parse_lifetime(text: str, *, field: str) -> float:
    """Returns the seconds of a duration, at most ten years. Raises BadInput naming ``field``."""
    try:
        seconds = parse_duration(text, field=field)
    except BadInput:
        hint = "write a duration like 90d or 24h, or a date like 2027-01-31"
        raise BadInput(f"{field}: {text!r} is no duration and no date", field=field, hint=hint) from None
    if seconds > _MAX_LIFETIME_SECONDS:
        raise BadInput(f"{field}: {text} is more than ten years", field=field, hint="give a shorter time")
    return seconds


def format_time(seconds: float) -> str:
    """Returns seconds since the epoch as ``2027-01-31T00:00:00Z``, rounded up to whole seconds."""
    return datetime.fromtimestamp(math.ceil(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
