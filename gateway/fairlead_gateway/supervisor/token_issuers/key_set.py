"""Reads key sets (JWKS, RFC 7517): the public keys that may verify tokens. Pure.

Symmetric keys, keys for encryption, weak keys and unknown curves are left out. So a key set
that holds a shared secret by mistake lets no one sign with it.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead_gateway.ipc.messages import SigningKey

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
_MIN_RSA_BITS: Final = 2_048
_MAX_RSA_BITS: Final = 8_192
_MAX_RSA_EXPONENT_BYTES: Final = 4
_CURVES: Final[Mapping[tuple[str, str], tuple[str, int]]] = {
    ("EC", "P-256"): ("ES256", 32),
    ("EC", "P-384"): ("ES384", 48),
    ("EC", "P-521"): ("ES512", 66),
    ("OKP", "Ed25519"): ("EdDSA", 32),
}
"""Key type and curve → the algorithm, and the bytes of a coordinate."""
_RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_MAX_KEY_ID: Final = 256


def parse_key_set(content: bytes, algorithms: tuple[str, ...], limits: Limits) -> tuple[SigningKey, ...]:
    """Returns the keys of a key set that may verify tokens signed with one of the algorithms.

    Raises BadInput if the content is not a key set, or holds no such key.
    """
    try:
        found: Any = msgspec.json.decode(content)
    except (ValueError, RecursionError):
        raise BadInput("the key set is not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise BadInput("the key set has no list `keys`")
    keys = [key for entry in entries[: limits.jwks_keys] if (key := _signing_key(entry, algorithms)) is not None]
    if not keys:
        raise BadInput(f"none of the {len(entries)} keys can verify tokens of {', '.join(algorithms)}")
    return tuple(keys)


def _signing_key(entry: Any, algorithms: tuple[str, ...]) -> SigningKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    key_id, key_type, curve = entry.get("kid"), entry.get("kty"), entry.get("crv")
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if key_id is not None and (not isinstance(key_id, str) or len(key_id) > _MAX_KEY_ID):
        return None
    if key_type == "RSA":
        possible: tuple[str, ...] = _RSA_ALGORITHMS
        numbers = _rsa_numbers(entry)
    elif isinstance(key_type, str) and isinstance(curve, str) and (key_type, curve) in _CURVES:
        algorithm, size = _CURVES[key_type, curve]
        possible, numbers = (algorithm,), _coordinates(entry, key_type, size)
    else:
        return None
    stated = entry.get("alg")
    usable = tuple(name for name in possible if name in algorithms and stated in (None, name))
    if numbers is None or not usable:
        return None
    return SigningKey(key_id, key_type, curve if key_type != "RSA" else None, usable, numbers)


def _rsa_numbers(entry: Mapping[str, Any]) -> dict[str, bytes] | None:
    modulus, exponent = _decode(entry.get("n")), _decode(entry.get("e"))
    if modulus is None or exponent is None or len(exponent) > _MAX_RSA_EXPONENT_BYTES:
        return None
    bits, public_exponent = int.from_bytes(modulus, "big").bit_length(), int.from_bytes(exponent, "big")
    if not _MIN_RSA_BITS <= bits <= _MAX_RSA_BITS or public_exponent < 3 or public_exponent % 2 == 0:
        return None
    return {"n": modulus, "e": exponent}


def _coordinates(entry: Mapping[str, Any], key_type: str, size: int) -> dict[str, bytes] | None:
    numbers: dict[str, bytes] = {}
    for name in ("x", "y") if key_type == "EC" else ("x",):
        value = _decode(entry.get(name))
        if value is None or len(value) != size:
            return None
        numbers[name] = value
    return numbers


def _decode(text: Any) -> bytes | None:
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        return None
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
