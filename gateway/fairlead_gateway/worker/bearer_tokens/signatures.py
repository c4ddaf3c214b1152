"""Verifies the signatures of bearer tokens with the public keys of their issuers (RFC 7518).

The algorithm decides how a signature is verified only if the key is for it. A key never serves
another algorithm than those that its type allows, so no token turns a public key into a secret.
"""

from collections.abc import Callable, Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from fairlead_gateway.ipc.access_messages import SigningKey

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
