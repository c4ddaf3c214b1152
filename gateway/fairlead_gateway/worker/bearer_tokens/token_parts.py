"""Takes a bearer token (JWS in compact form, RFC 7515) apart. Nothing in it is trusted yet.

Of the header, only algorithm, key id and type are read. Fields that name keys or addresses (`jwk`,
`jku`, `x5c`, `x5u`) are ignored: keys come from the issuers' key sets alone.
"""

import base64
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fairlead_gateway.errors import InvalidApiKey

_COMPACT: Final = re.compile(rb"[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+")
_MAX_KEY_ID: Final = 256
MALFORMED: Final = "this bearer token is malformed"


class _Header(msgspec.Struct):
    """The protected header. `crit` and `cty` are there only in tokens that are refused."""

    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: Any = None
    cty: str | None = None
    zip: Any = None


@dataclass(frozen=True, slots=True)
class TokenParts:
    """A token whose signature was not verified.

    type: in lower case and without `application/`; empty without one.
    signed: the bytes that the signature covers.
    claims: unverified.
    """

    algorithm: str
    key_id: str | None
    type: str
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def is_compact_token(key: bytes) -> bool:
    """Returns whether a key has the form of a bearer token: three parts, of which the first is the
    beginning of a JSON object.
    """
    return key.startswith(b"eyJ") and key.count(b".") == 2


def split_token(token: bytes, max_bytes: int) -> TokenParts:
    """Returns the parts of a token. Raises InvalidApiKey if it is malformed, too long or nested."""
    if len(token) > max_bytes:
        raise InvalidApiKey(f"this bearer token is longer than {max_bytes:,} bytes")
    if not _COMPACT.fullmatch(token):
        raise InvalidApiKey(MALFORMED)
    signed, _, signature = token.rpartition(b".")
    header_text, _, claims_text = signed.partition(b".")
    try:
        header = msgspec.json.decode(_decode(header_text), type=_Header)
        claims = msgspec.json.decode(_decode(claims_text), type=dict[str, Any])
        signature_bytes = _decode(signature)
    except (ValueError, RecursionError):
        raise InvalidApiKey(MALFORMED) from None
    if header.crit is not None or header.zip is not None:
        raise InvalidApiKey("this bearer token needs an extension that is not supported")
    if header.cty is not None:
        raise InvalidApiKey("this bearer token holds another token", hint="send the inner token")
    if header.kid is not None and len(header.kid) > _MAX_KEY_ID:
        raise InvalidApiKey(MALFORMED)
    kind = (header.typ or "").lower().removeprefix("application/")
    return TokenParts(header.alg, header.kid, kind, claims, signed, signature_bytes)


def _decode(text: bytes) -> bytes:
    """Returns the bytes of base64url without padding. Raises ValueError for other forms.

    Why the second step: some texts differ in bits that no byte has, and mean the same token.
    """
    raw = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != text:
        raise ValueError("not in canonical form")
    return raw
