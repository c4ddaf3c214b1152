"""Key sets of issuers: which keys may verify tokens."""

import json
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_gateway.bearer_tokens.messages import ALGORITHMS
from fairlead_gateway.bearer_tokens.supervisor.key_service import parse_key_set
from fairlead_testing.gateway.tenant_keys import SigningKeyPair, TestIssuer, encode

RSA = SigningKeyPair.create("RS256", "rsa").jwk()
EC = SigningKeyPair.create("ES256", "ec").jwk()


def key_ids(*entries: Any, algorithms: tuple[str, ...] = ALGORITHMS) -> list[str | None]:
    content = json.dumps({"keys": [*entries, EC]}).encode()
    return [key.key_id for key in parse_key_set(content, algorithms)]


def without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


def test_a_key_without_an_algorithm_serves_those_of_its_type() -> None:
    content = json.dumps({"keys": [without(RSA, "alg"), without(EC, "alg")]}).encode()
    rsa, ec = parse_key_set(content, ("RS256", "PS512", "ES256", "ES384"))
    assert rsa.algorithms == ("RS256", "PS512")
    assert ec.algorithms == ("ES256",)


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "secret"},
        {**RSA, "kty": "oct", "k": "c2VjcmV0"},
        {**RSA, "use": "enc"},
        {**RSA, "key_ops": ["encrypt"]},
        {**RSA, "alg": "RSA-OAEP"},
        {**RSA, "alg": "HS256"},
        {**RSA, "kid": 7},
        {**RSA, "kid": "k" * 257},
        {**RSA, "n": encode(b"\xff" * 128)},
        {**RSA, "n": encode(b"\xff" * 2_048)},
        {**RSA, "n": "not base64!"},
        {**RSA, "e": encode(b"\x01")},
        {**RSA, "e": encode(b"\x02")},
        {**RSA, "e": encode(b"\x01" * 9)},
        without(RSA, "n"),
        {**EC, "crv": "secp256k1"},
        {**EC, "crv": "P-384"},
        {**EC, "x": encode(b"\x01" * 31)},
        without(EC, "y"),
        {**EC, "kty": ["EC"]},
        "rsa",
        None,
    ],
)
def test_a_key_that_may_not_verify_is_left_out(entry: Any) -> None:
    assert key_ids(entry) == ["ec"]


def test_only_the_first_keys_count() -> None:
    content = json.dumps({"keys": [{**EC, "kid": str(number)} for number in range(10)]}).encode()
    assert len(parse_key_set(content, ALGORITHMS, max_keys=4)) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no list `keys`"),
        (b'{"keys": {}}', "no list `keys`"),
        (b'{"keys": []}', "none of the 0 keys"),
        (TestIssuer([], extra_entries=[{"kty": "oct", "k": "c2VjcmV0"}]).key_set(), "none of the 1 keys"),
    ],
)
def test_a_set_without_a_key_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_key_set(content, ALGORITHMS)
