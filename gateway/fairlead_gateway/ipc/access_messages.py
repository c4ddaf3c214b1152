"""Messages about who may call: issuers of bearer tokens with their public keys, and what workers
report of keys.
"""

from typing import Final

import msgspec

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


class AccessReport(msgspec.Struct, tag=True):
    """Worker → supervisor: which keys callers have used since the last report.

    - used_keys: digests of API keys.
    - unknown_key_issuers: issuers of bearer tokens that name a key that is not in their key set.
    """

    used_keys: list[bytes] = []
    unknown_key_issuers: list[str] = []
