"""Limits of API keys and bearer tokens, and of the keys with which tokens are signed."""

from dataclasses import dataclass

from fairlead.limits.limit_field import limit


@dataclass(frozen=True)
class BearerTokenLimits:
    """Limits of API keys, of bearer tokens (JWT) and of their issuers."""

    bearer_tokens_cached: int = limit(
        10_000, "verified tokens that a worker remembers; then the oldest is verified again"
    )
    jwks_bytes: int = limit(512 * 1024, "a key set (JWKS) of an issuer; real ones have a few kB")
    jwks_keys: int = limit(64, "keys of an issuer's key set; the rest is not used")
    jwks_unknown_key_seconds: float = limit(
        10.0, "shortest interval at which a token with an unknown key makes the gateway read the key set"
    )
