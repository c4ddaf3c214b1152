"""Verifies bearer tokens: that an accepted issuer has signed them, for this gateway, for now.

Takes a bearer token (JWS in compact form, RFC 7515) apart. Nothing in it is trusted yet.

Of the header, only algorithm, key id and type are read. Fields that name keys or addresses (`jwk`,
`jku`, `x5c`, `x5u`) are ignored: keys come from the issuers' key sets alone.

Verifies the signatures of bearer tokens with the public keys of their issuers (RFC 7518).

The algorithm decides how a signature is verified only if the key is for it. A key never serves
another algorithm than those that its type allows, so no token turns a public key into a secret.
"""

import base64
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from fairlead_gateway.bearer_tokens.messages import BEARER_TOKEN_BYTES, SigningKey, TokenIssuer
from fairlead_gateway.errors import InvalidApiKey

BEARER_TOKEN_LEEWAY_SECONDS: Final = 30.0
"""Limit: clocks of issuers and gateways may differ by this much."""

SignatureCheck = Callable[[bytes, bytes], bool]
"""Returns whether a signature of some bytes is right: (signature, signed bytes)."""
_HASHES: Final[Mapping[str, type[hashes.HashAlgorithm]]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: Final[Mapping[str, type[ec.EllipticCurve]]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
}

_COMPACT: Final = re.compile(rb"[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+")
_MAX_KEY_ID: Final = 256
MALFORMED: Final = "this bearer token is malformed"

_NO_KEY: Final = "the key that signed this bearer token is unknown"
_MAX_TIME: Final = 1e12
_ANY_CALLER_TYPE: Final = frozenset({"", "jwt", "at+jwt"})
"""Types of tokens that show who calls; others end sessions, for example."""


def signature_checks(key: SigningKey) -> dict[str, SignatureCheck]:
    """Returns a check for each algorithm of a key. Raises ValueError for impossible numbers."""
    numbers = {name: int.from_bytes(value, "big") for name, value in key.numbers.items()}
    if key.key_type == "RSA":
        public = rsa.RSAPublicNumbers(numbers["e"], numbers["n"]).public_key()
        return {algorithm: _rsa_check(public, algorithm) for algorithm in key.algorithms}
    if key.key_type == "EC":
        curve = _CURVES[key.curve or ""]()
        point = ec.EllipticCurvePublicNumbers(numbers["x"], numbers["y"], curve).public_key()
        return {algorithm: _ecdsa_check(point, algorithm) for algorithm in key.algorithms}
    edwards = ed25519.Ed25519PublicKey.from_public_bytes(key.numbers["x"])
    return dict.fromkeys(key.algorithms, _edwards_check(edwards))


def _rsa_check(public: rsa.RSAPublicKey, algorithm: str) -> SignatureCheck:
    digest = _HASHES[algorithm[2:]]()
    form: padding.AsymmetricPadding = padding.PKCS1v15()
    if algorithm.startswith("PS"):
        form = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)

    def check(signature: bytes, signed: bytes) -> bool:
        try:
            public.verify(signature, signed, form, digest)
        except InvalidSignature:
            return False
        return True

    return check


def _ecdsa_check(public: ec.EllipticCurvePublicKey, algorithm: str) -> SignatureCheck:
    scheme = ec.ECDSA(_HASHES[algorithm[2:]]())
    size = (public.curve.key_size + 7) // 8

    def check(signature: bytes, signed: bytes) -> bool:
        if len(signature) != 2 * size:
            return False
        r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
        if not r or not s:
            return False
        try:
            public.verify(encode_dss_signature(r, s), signed, scheme)
        except InvalidSignature:
            return False
        return True

    return check


def _edwards_check(public: ed25519.Ed25519PublicKey) -> SignatureCheck:
    def check(signature: bytes, signed: bytes) -> bool:
        try:
            public.verify(signature, signed)
        except InvalidSignature:
            return False
        return True

    return check


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


_log = logging.getLogger("fairlead.gateway")


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """The claims of a token, and when it is refused from, in seconds since the epoch."""

    issuer: str
    claims: dict[str, Any]
    refused_from: float


class _VerifyingIssuer:
    """An issuer with its keys, ready to verify.

    checks: by key id and algorithm. Keys without an id have None.
    types: of tokens that are accepted.
    """

    __slots__ = ("audiences", "checks", "types")

    def __init__(self, issuer: TokenIssuer) -> None:
        self.audiences = frozenset(issuer.audiences)
        self.types = _ANY_CALLER_TYPE if issuer.token_type is None else frozenset({issuer.token_type.lower()})
        self.checks: dict[tuple[str | None, str], list[SignatureCheck]] = {}
        for key in issuer.keys:
            try:
                found = signature_checks(key)
            except (ValueError, KeyError) as error:
                _log.warning("a key of the token issuer %s cannot be used: %s", issuer.issuer, type(error).__name__)
                continue
            for algorithm, check in found.items():
                self.checks.setdefault((key.key_id, algorithm), []).append(check)

    def checks_of(self, parts: TokenParts) -> Sequence[SignatureCheck]:
        """Returns the checks of the key that a token names.

        A token without a key id is checked with the issuer's only key for its algorithm.
        """
        if parts.key_id is not None:
            return self.checks.get((parts.key_id, parts.algorithm), ())
        fitting = [
            check for (_, algorithm), found in self.checks.items() if algorithm == parts.algorithm for check in found
        ]
        return fitting if len(fitting) == 1 else ()

    def has_key(self, key_id: str | None) -> bool:
        return any(known == key_id for known, _ in self.checks)


class TokenVerifier:
    """The verifier of bearer tokens.

    wall: returns the time in seconds since the epoch.
    on_unknown_key: called with the issuer of a token whose key is not in its key set.
    """

    def __init__(self, wall: Callable[[], float], on_unknown_key: Callable[[str], None]) -> None:
        self._wall = wall
        self._on_unknown_key = on_unknown_key
        self._issuers: dict[str, _VerifyingIssuer] = {}

    def update_issuers(self, issuers: Sequence[TokenIssuer]) -> None:
        self._issuers = {issuer.issuer: _VerifyingIssuer(issuer) for issuer in issuers}

    def verify(self, token: bytes) -> VerifiedToken:
        """Returns the claims of a token. Raises InvalidApiKey with the reason if it is refused.

        No reason repeats a part of the token.
        """
        parts = split_token(token, BEARER_TOKEN_BYTES)
        name = parts.claims.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None or not isinstance(name, str):
            raise InvalidApiKey("the issuer of this bearer token is not accepted")
        checks = issuer.checks_of(parts)
        if not checks:
            if not issuer.has_key(parts.key_id):
                self._on_unknown_key(name)
            raise InvalidApiKey(_NO_KEY)
        if not any(check(parts.signature, parts.signed) for check in checks):
            raise InvalidApiKey("the signature of this bearer token is wrong")
        if parts.type not in issuer.types:
            raise InvalidApiKey("this bearer token is of a type that gives no access", hint="send an access token")
        refused_from = self._check_times(parts.claims)
        self._check_audience(parts.claims.get("aud"), issuer)
        return VerifiedToken(name, parts.claims, refused_from)

    def _check_times(self, claims: dict[str, Any]) -> float:
        """Returns the time from which a token is refused. Raises InvalidApiKey if that is now."""
        now, leeway = self._wall(), BEARER_TOKEN_LEEWAY_SECONDS
        expires_at = _time(claims, "exp")
        if expires_at is None:
            raise InvalidApiKey("this bearer token does not say when it expires", hint="it needs the claim exp")
        if now >= expires_at + leeway:
            raise InvalidApiKey("this bearer token has expired")
        not_before = _time(claims, "nbf")
        if not_before is not None and now < not_before - leeway:
            raise InvalidApiKey("this bearer token is not valid yet")
        return expires_at + leeway

    def _check_audience(self, audience: Any, issuer: _VerifyingIssuer) -> None:
        values = [audience] if isinstance(audience, str) else audience
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InvalidApiKey("this bearer token does not say for whom it is", hint="it needs the claim aud")
        if issuer.audiences.isdisjoint(values):
            raise InvalidApiKey("this bearer token is not meant for this gateway: its audience is another")


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Returns a time of the claims, or None. Raises InvalidApiKey for other values."""
    value = claims.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or abs(value) > _MAX_TIME
    ):
        raise InvalidApiKey(MALFORMED)
    return float(value)
