"""When a certificate ends: the one thing of X.509 that is asked here, read from the DER itself.

RFC 5280: Certificate → tbsCertificate → [0] version?, serialNumber, signature, issuer, validity → notBefore, notAfter. Five steps
over lengths, no cryptography: a package for it would be the command line's largest.
"""

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Final

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s+(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED = 0x30, 0xA0, 0x17, 0x18


def certificate_expiry(pem: bytes) -> float | None:
    """``notAfter`` of the first certificate of a file as Unix time; None when there is none that can be read."""
    found = _PEM.search(pem)
    if found is None:
        return None
    try:
        der = base64.b64decode(b"".join(found[1].split()), validate=True)
        tag, whole, _ = _element(der)
        inner, body, _ = _element(whole)
        if (tag, inner) != (_SEQUENCE, _SEQUENCE):
            return None
        kind, _, rest = _element(body)
        if kind == _VERSION:
            _, _, rest = _element(rest)
        for _ in range(2):  # signature, issuer
            _, _, rest = _element(rest)
        _, validity, _ = _element(rest)
        _, _, after = _element(validity)
        kind, text, _ = _element(after)
        return _time(kind, text.decode("ascii"))
    except (ValueError, IndexError, binascii.Error):
        return None


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content and what follows. Raises ValueError when it does not fit."""
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[2 : 2 + size], "big"), 2 + size
    if start + length > len(der):
        raise ValueError("the DER is cut off")
    return tag, der[start : start + length], der[start + length :]


def _time(kind: int, text: str) -> float | None:
    """UTCTime has two digits of the year, those from 50 on of the last century."""
    if kind == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif kind != _GENERALIZED:
        return None
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
