"""The expiry of an X.509 certificate, read from its DER encoding.

RFC 5280: Certificate → tbsCertificate → [0] version?, serialNumber, signature, issuer, validity →
notBefore, notAfter.

Why: five steps over lengths need no cryptography package, which would be the largest dependency of
the command line.
"""

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Final

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s+(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED = 0x30, 0xA0, 0x17, 0x18


def certificate_expiry(pem: bytes) -> float | None:
    """Returns ``notAfter`` of the first certificate of a PEM file as Unix time; None when none is
    readable.
    """
    match = _PEM.search(pem)
    if match is None:
        return None
    try:
        der = base64.b64decode(b"".join(match[1].split()), validate=True)
        tag, whole, _ = _element(der)
        inner, body, _ = _element(whole)
        if (tag, inner) != (_SEQUENCE, _SEQUENCE):
            return None
        tag_, _, remaining = _element(body)
        if tag_ == _VERSION:
            _, _, remaining = _element(remaining)
        for _ in range(2):  # signature, issuer
            _, _, remaining = _element(remaining)
        _, validity, _ = _element(remaining)
        _, _, not_after = _element(validity)
        tag_, text, _ = _element(not_after)
        return _time(tag_, text.decode("ascii"))
    except (ValueError, IndexError, binascii.Error):
        return None


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Returns tag, content and remaining bytes. Raises ValueError when the DER is cut off."""
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[2 : 2 + size], "big"), 2 + size
    if start + length > len(der):
        raise ValueError("the DER is cut off")
    return tag, der[start : start + length], der[start + length :]


def _time(kind: int, text: str) -> float | None:
    """Returns a time of DER tag ``kind`` as Unix time; None for an unknown tag. Raises ValueError
    for an invalid time.

    A UTCTime has a two-digit year: 50 to 99 are 1950 to 1999.
    """
    if kind == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif kind != _GENERALIZED:
        return None
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
