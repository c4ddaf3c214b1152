"""Limits of API keys and bearer tokens, and of the keys with which tokens are signed."""

from dataclasses import dataclass

from fairlead.limits.limit_field import limit


@dataclass(frozen=True)
class BearerTokenLimits:
    """Limits of API keys, of bearer tokens (JWT) and of their issuers."""

    key_use_seconds: float = limit(10.0, "from the first use of API keys until a worker reports them")
    token_issuers: int = limit(16, "issuers of bearer tokens of one gateway")
    bearer_token_bytes: int = limit(16_384, "a bearer token; those of Kubernetes have about 1 kB")
    bearer_tokens_cached: int = limit(
        10_000, "verified tokens that a worker remembers; then the oldest is verified again"
    )
    bearer_token_claim_values: int = limit(1_000, "values of a claim that is a list, such as groups")
    bearer_token_leeway_seconds: float = limit(30.0, "clocks of issuers and gateways may differ by this much")
    jwks_bytes: int = limit(512 * 1024, "a key set (JWKS) of an issuer; real ones have a few kB")
    jwks_keys: int = limit(64, "keys of an issuer's key set; the rest is not used")
    jwks_timeout_seconds: float = limit(5.0, "an issuer's response with its key set")
    jwks_refresh_seconds: float = limit(300.0, "interval at which key sets are read again; files: 2 s")
    jwks_unknown_key_seconds: float = limit(
        10.0, "shortest interval at which a token with an unknown key makes the gateway read the key set"
    )
    jwks_stale_seconds: float = limit(900.0, "a key set that is older gets a warning; it stays in use")
