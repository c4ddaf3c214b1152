"""Verifies bearer tokens: that an accepted issuer has signed them, for this gateway, for now."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.limits import Limits
from fairlead_gateway.errors import InvalidApiKey
from fairlead_gateway.ipc.access_messages import TokenIssuer
from fairlead_gateway.worker.bearer_tokens.signatures import SignatureCheck, signature_checks
from fairlead_gateway.worker.bearer_tokens.token_parts import MALFORMED, TokenParts, split_token

_log = logging.getLogger("fairlead.gateway")
_NO_KEY: Final = "the key that signed this bearer token is unknown"
_MAX_TIME: Final = 1e12
_ANY_CALLER_TYPE: Final = frozenset({"", "jwt", "at+jwt"})
"""Types of tokens that show who calls; others end sessions, for example."""


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
        """Returns whether a key has this id, for whatever algorithm."""
        return any(known == key_id for known, _ in self.checks)


class TokenVerifier:
    """The verifier of bearer tokens.

    wall: returns the time in seconds since the epoch.
    on_unknown_key: called with the issuer of a token whose key is not in its key set.
    """

    def __init__(self, wall: Callable[[], float], on_unknown_key: Callable[[str], None], limits: Limits) -> None:
        self._wall = wall
        self._on_unknown_key = on_unknown_key
        self._limits = limits
        self._issuers: dict[str, _VerifyingIssuer] = {}

    def update_issuers(self, issuers: Sequence[TokenIssuer]) -> None:
        """Replaces all issuers and their keys."""
        self._issuers = {issuer.issuer: _VerifyingIssuer(issuer) for issuer in issuers}

    def verify(self, token: bytes) -> VerifiedToken:
        """Returns the claims of a token. Raises InvalidApiKey with the reason if it is refused.

        No reason repeats a part of the token.
        """
        parts = split_token(token, self._limits.bearer_token_bytes)
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
        now, leeway = self._wall(), self._limits.bearer_token_leeway_seconds
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
