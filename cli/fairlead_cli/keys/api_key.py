"""New API keys, their digests, and the times until which they are valid."""

import hashlib
import hmac
import math
import re
import secrets
from datetime import UTC, datetime
from typing import Final

from fairlead.errors import BadInput
from fairlead.units import parse_duration

KEY_PREFIX: Final = "fl_"
_KEY_BYTES: Final = 32
_MAX_LIFETIME_SECONDS: Final = 3_650 * 86_400.0
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d([Tt ].*)?")


def create_key() -> str:
    """Returns a new key: ``fl_`` and 256 random bits in hexadecimal."""
    return KEY_PREFIX + secrets.token_hex(_KEY_BYTES)


def key_digest(key: str, pepper: str) -> str:
    """Returns the HMAC-SHA-256 of a key under the pepper, in hexadecimal."""
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
