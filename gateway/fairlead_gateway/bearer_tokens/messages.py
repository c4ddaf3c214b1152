"""Messages to workers about issuers of bearer tokens, with their public keys."""

from typing import Final

import msgspec

JWKS_UNKNOWN_KEY_SECONDS: Final = 10.0
"""Limit: shortest interval at which a token with an unknown key makes the gateway read the key set.
"""
BEARER_TOKEN_BYTES: Final = 16_384
"""Limit: a bearer token; those of Kubernetes have about 1 kB."""
ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""The algorithms that may sign a token. All are asymmetric: a key that verifies cannot sign."""


class SigningKey(msgspec.Struct, array_like=True, frozen=True):
    """A public key of an issuer.

    key_id: as tokens name it; None if they do not.
    algorithms: those for which the key may be used.
    numbers: the key's parameters of the JWK: `n` and `e`, or `x` and `y`, in big-endian bytes.
    """

    key_id: str | None
    key_type: str
    curve: str | None
    algorithms: tuple[str, ...]
    numbers: dict[str, bytes]


class TokenIssuer(msgspec.Struct, array_like=True, frozen=True):
    """An issuer whose tokens are accepted if they are meant for one of the audiences.

    token_type: the header `typ` that tokens must have; None: the usual ones.
    """

    issuer: str
    audiences: tuple[str, ...]
    keys: tuple[SigningKey, ...]
    token_type: str | None = None


class TokenIssuerUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: all issuers of bearer tokens, with the keys that are known."""

    issuers: list[TokenIssuer]
