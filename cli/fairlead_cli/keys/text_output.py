"""The table of keys, and the same values for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.units import format_duration
from fairlead_cli.cluster.timestamps import parse_time
from fairlead_cli.formatting import align_columns
from fairlead_cli.keys.api_key import format_time
from fairlead_cli.keys.key_entries import is_expired, short_digest
from fairlead_cli.tenants.key_use import KeyUses
from fairlead_cli.tenants.store import Entry

_DAY_SECONDS = 86_400.0


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
