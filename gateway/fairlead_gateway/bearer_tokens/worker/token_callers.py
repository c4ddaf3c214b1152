"""The callers of bearer tokens: which tenant has a subject that a token's claims match.

A verified token is remembered by its SHA-256 until it expires, so that later requests with it cost
one lookup.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from fairlead.tenants.model import Tenant
from fairlead_gateway.bearer_tokens.messages import JWKS_UNKNOWN_KEY_SECONDS, TokenIssuer
from fairlead_gateway.bearer_tokens.worker.verifier import TokenVerifier, VerifiedToken
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.errors import InvalidApiKey

BEARER_TOKENS_CACHED: Final = 10_000
"""Limit: verified tokens that a worker remembers; then the oldest is verified again."""
BEARER_TOKEN_CLAIM_VALUES: Final = 1_000
"""Limit: values of a claim that is a list, such as groups."""


class TokenCallers:
    """The callers of all bearer tokens.

    tenants: returns all tenants.
    wall: returns the time in seconds since the epoch.
    report_unknown_key: called with the issuer of a token whose key is unknown, at most once per
        interval and issuer.
    """

    def __init__(
        self,
        tenants: Callable[[], Iterable[Tenant]],
        wall: Callable[[], float],
        report_unknown_key: Callable[[str], None],
        max_cached: int = BEARER_TOKENS_CACHED,
    ) -> None:
        self._tenants = tenants
        self._wall = wall
        self._report_unknown_key = report_unknown_key
        self._max_cached = max_cached
        self._verifier = TokenVerifier(wall, self._on_unknown_key)
        self._reported_at: dict[str, float] = {}
        self._callers: dict[str, dict[str, dict[str, Caller | None]]] | None = None
        self._cache: dict[bytes, Caller] = {}

    def update_issuers(self, issuers: Sequence[TokenIssuer]) -> None:
        self._verifier.update_issuers(issuers)
        self._cache.clear()

    def on_tenants_changed(self) -> None:
        """Reads the tenants again at the next token.

        Why not now: at the start of a gateway, 10,000 tenants come in 160 messages.
        """
        self._callers = None
        self._cache.clear()

    def _subjects(self) -> dict[str, dict[str, dict[str, Caller | None]]]:
        """Returns the callers by issuer, claim and value.

        A subject that two tenants have identifies neither.
        """
        if self._callers is not None:
            return self._callers
        callers: dict[str, dict[str, dict[str, Caller | None]]] = {}
        for tenant in self._tenants():
            for subject in tenant.subjects:
                values = callers.setdefault(subject.issuer, {}).setdefault(subject.claim, {})
                caller = Caller(tenant, f"{subject.claim}:{subject.value}")
                known = values.get(subject.value, caller)
                values[subject.value] = caller if known is not None and known.name == caller.name else None
        self._callers = callers
        return callers

    def caller(self, token: bytes) -> Caller:
        """Returns the caller of a token, who expires with the token.

        Raises InvalidApiKey if the token is refused, or identifies no tenant or several.
        """
        digest = hashlib.sha256(token).digest()
        found = self._cache.get(digest)
        if found is not None and self._wall() < found.expires_at:
            return found
        verified = self._verifier.verify(token)
        matched = self._match(verified)
        caller = Caller(matched.tenant, matched.key, verified.refused_from)
        if digest not in self._cache and len(self._cache) >= self._max_cached:
            del self._cache[next(iter(self._cache))]
        self._cache[digest] = caller
        return caller

    def _match(self, verified: VerifiedToken) -> Caller:
        """Returns the caller whose subject the claims match.

        Raises InvalidApiKey if there is none, or if the claims match subjects of several tenants.
        """
        matched: Caller | None = None
        for claim, callers in self._subjects().get(verified.issuer, {}).items():
            for value in _values(verified.claims.get(claim), BEARER_TOKEN_CLAIM_VALUES):
                if value not in callers:
                    continue
                caller = callers[value]
                if caller is None or (matched is not None and matched.name != caller.name):
                    raise InvalidApiKey("this bearer token identifies several tenants")
                matched = matched or caller
        if matched is None:
            raise InvalidApiKey(
                "this bearer token identifies no tenant", hint="a ModelTenant lists it in spec.subjects"
            )
        return matched

    def _on_unknown_key(self, issuer: str) -> None:
        now = self._wall()
        reported_at = self._reported_at.get(issuer)
        if reported_at is None or not 0.0 <= now - reported_at < JWKS_UNKNOWN_KEY_SECONDS:
            self._reported_at[issuer] = now
            self._report_unknown_key(issuer)


def _values(value: Any, max_values: int) -> Sequence[str]:
    """Returns the texts of a claim: one, or those of a list."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return [item for item in value[:max_values] if isinstance(item, str)]
    return ()
