"""API keys of tenants that a test makes: the key of a tenant is its name.

`measure_key_table` makes the keys of a large installation.

An issuer of bearer tokens with real keys, for tests: its key set, and tokens of any shape.
"""

import base64
import hashlib
import json
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fairlead.tenants.model import ApiKey, Limit, Tenant
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest

TABLE_TENANTS, TABLE_KEYS = 10_000, 5
"""Tenants of a large installation, and keys of each."""
_PEPPER = b"pepper"
_BATCH = 64

ISSUER: Final = "https://login.example.com"
AUDIENCE: Final = "fairlead"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_HASHES: Final = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES: Final = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def keys_of(*tenants: Tenant) -> ApiKeys:
    """Returns accepted keys, one per tenant."""
    keys = ApiKeys(_PEPPER, {})
    keys.update_tenants(
        replace(tenant, keys=(ApiKey(tenant.name, key_digest(tenant.name.encode(), _PEPPER)),)) for tenant in tenants
    )
    return keys


def tenant_document(name: str, pepper: str, **spec: object) -> str:
    """Returns a ModelTenant of a file, with a key that is its name."""
    keys = [{"name": "k", "digest": key_digest(name.encode(), pepper.encode()).hex()}]
    kind = {"apiVersion": "serving.fairlead.io/v1alpha1", "kind": "ModelTenant"}
    return json.dumps({**kind, "metadata": {"name": name}, "spec": {"keys": keys, **spec}}) + "\n"


def authorization(tenant: str) -> str:
    return f"authorization: Bearer {tenant}\r\n"


def table_key(tenant: int, key: int) -> bytes:
    return b"fl_" + hashlib.sha256(b"%d-%d" % (tenant, key)).hexdigest()[:43].encode()


def measure_key_table(pepper: bytes, limits_of: Callable[[int], tuple[Limit, ...]]) -> tuple[ApiKeys, int]:
    """Returns the accepted keys of a large installation, and the bytes that they take.

    Tenants come in batches, decoded as a worker decodes them.

    limits_of: returns the limits of a tenant, by its number.
    """
    keys, decoder = ApiKeys(pepper, {}), msgspec.msgpack.Decoder(list[Tenant])
    batches = [
        msgspec.msgpack.encode(
            [_table_tenant(number, pepper, limits_of(number)) for number in range(at, min(at + _BATCH, TABLE_TENANTS))]
        )
        for at in range(0, TABLE_TENANTS, _BATCH)
    ]
    tracemalloc.start()
    try:
        for batch in batches:
            keys.update_tenants(decoder.decode(batch))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return keys, used


def _table_tenant(number: int, pepper: bytes, limits: tuple[Limit, ...]) -> Tenant:
    own = tuple(ApiKey(f"key-{key}", key_digest(table_key(number, key), pepper)) for key in range(TABLE_KEYS))
    models = frozenset({f"team-{number % 100}/*", "search/embeddings"})
    return Tenant(f"tenant-{number}", models=models, keys=own, limits=limits)


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@dataclass
class SigningKeyPair:
    """A private key that signs with one algorithm."""

    algorithm: str
    key_id: str | None
    private: PrivateKey

    @classmethod
    def create(cls, algorithm: str, key_id: str | None = "k1", *, rsa_bits: int = 2_048) -> "SigningKeyPair":
        """Returns a new key for an algorithm."""
        private: PrivateKey
        if algorithm in _CURVES:
            private = ec.generate_private_key(_CURVES[algorithm])
        elif algorithm == "EdDSA":
            private = ed25519.Ed25519PrivateKey.generate()
        else:
            private = rsa.generate_private_key(65_537, rsa_bits)
        return cls(algorithm, key_id, private)

    def jwk(self) -> dict[str, Any]:
        """Returns the public key as an entry of a key set."""
        found: dict[str, Any] = {"use": "sig", "alg": self.algorithm}
        if self.key_id is not None:
            found["kid"] = self.key_id
        if isinstance(self.private, rsa.RSAPrivateKey):
            numbers = self.private.public_key().public_numbers()
            modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
            return {**found, "kty": "RSA", "n": encode(modulus), "e": encode(numbers.e.to_bytes(3, "big"))}
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            size = (self.private.key_size + 7) // 8
            point = self.private.public_key().public_numbers()
            curve = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[self.algorithm]
            coordinates = {"x": encode(point.x.to_bytes(size, "big")), "y": encode(point.y.to_bytes(size, "big"))}
            return {**found, "kty": "EC", "crv": curve, **coordinates}
        raw = self.private.public_key().public_bytes_raw()
        return {**found, "kty": "OKP", "crv": "Ed25519", "x": encode(raw)}

    def sign(self, signed: bytes) -> bytes:
        """Returns the signature of some bytes, as tokens have it."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            digest = _HASHES[self.algorithm[2:]]
            if self.algorithm.startswith("PS"):
                form = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
                return self.private.sign(signed, form, digest)
            return self.private.sign(signed, padding.PKCS1v15(), digest)
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            size = (self.private.key_size + 7) // 8
            r, s = decode_dss_signature(self.private.sign(signed, ec.ECDSA(_HASHES[self.algorithm[2:]])))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        return self.private.sign(signed)


@dataclass
class TestIssuer:
    """An issuer with some keys. Tokens are signed with the first."""

    __test__ = False

    keys: list[SigningKeyPair]
    issuer: str = ISSUER
    extra_entries: list[dict[str, Any]] = field(default_factory=list)

    def key_set(self) -> bytes:
        return json.dumps({"keys": [*(key.jwk() for key in self.keys), *self.extra_entries]}).encode()

    def token(
        self, now: float, *, header: Mapping[str, Any] | None = None, key: SigningKeyPair | None = None, **claims: Any
    ) -> str:
        """Returns a token that is valid for an hour from ``now``.

        header, claims: change single fields; None removes one.
        """
        key = key or self.keys[0]
        plain = {"alg": key.algorithm, "kid": key.key_id, "typ": "JWT", **(header or {})}
        content = {"iss": self.issuer, "aud": AUDIENCE, "sub": "app", "exp": now + 3_600, "nbf": now, **claims}
        parts = [
            encode(json.dumps({name: value for name, value in part.items() if value is not None}).encode())
            for part in (plain, content)
        ]
        signed = ".".join(parts)
        return f"{signed}.{encode(key.sign(signed.encode()))}"
