"""Bearer tokens with real keys: those that are accepted, and hostile ones."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from fairlead_gateway.bearer_tokens.messages import ALGORITHMS, TokenIssuer
from fairlead_gateway.bearer_tokens.supervisor.key_service import parse_key_set
from fairlead_gateway.bearer_tokens.worker.verifier import TokenVerifier
from fairlead_gateway.errors import InvalidApiKey
from fairlead_testing.gateway.tenant_keys import AUDIENCE, ISSUER, SigningKeyPair, TestIssuer, encode

NOW = 1_795_000_000.0
RSA = SigningKeyPair.create("RS256", "rsa")
EC = SigningKeyPair.create("ES256", "ec")
OTHER = SigningKeyPair.create("RS256", "rsa")
LOGIN = TestIssuer([RSA, EC])


class Verifier:
    """A verifier with one issuer, at a time that tests set."""

    def __init__(
        self, issuer: TestIssuer = LOGIN, algorithms: tuple[str, ...] = ALGORITHMS, token_type: str | None = None
    ) -> None:
        self.now = NOW
        self.unknown: list[str] = []
        self.verifier = TokenVerifier(lambda: self.now, self.unknown.append)
        keys = parse_key_set(issuer.key_set(), algorithms)
        self.verifier.update_issuers([TokenIssuer(issuer.issuer, (AUDIENCE, "other"), keys, token_type)])

    def claims(self, token: str) -> dict[str, Any]:
        return self.verifier.verify(token.encode()).claims

    def refusal(self, token: str | bytes) -> str:
        with pytest.raises(InvalidApiKey) as refused:
            self.verifier.verify(token if isinstance(token, bytes) else token.encode("utf-8", "surrogateescape"))
        assert refused.value.status == 401
        return refused.value.message


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier()


# --- accepted


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_verifies_its_own_tokens_and_no_changed_ones(algorithm: str) -> None:
    issuer = TestIssuer([SigningKeyPair.create(algorithm)])
    verifier = Verifier(issuer)
    token = issuer.token(NOW, sub="app")
    assert verifier.claims(token)["sub"] == "app"
    header, claims, signature = token.split(".")
    forged = encode(base64.urlsafe_b64decode(claims + "==").replace(b'"app"', b'"bpp"'))
    assert verifier.refusal(f"{header}.{forged}.{signature}") == "the signature of this bearer token is wrong"
    flipped = bytearray(base64.urlsafe_b64decode(signature + "=="))
    flipped[len(flipped) // 2] ^= 1
    assert "signature" in verifier.refusal(f"{header}.{claims}.{encode(bytes(flipped))}")
    assert "signature" in verifier.refusal(f"{header}.{claims}.{encode(bytes(len(flipped)))}")
    assert "signature" in verifier.refusal(f"{header}.{claims}.{encode(bytes(flipped) + b'0')}")


@pytest.mark.parametrize("kind", ["logout+jwt", "secevent+jwt", "application/LOGOUT+JWT", "dpop+jwt", "JOSE"])
def test_token_of_another_kind_gives_no_access(kind: str, verifier: Verifier) -> None:
    assert "of a type" in verifier.refusal(LOGIN.token(NOW, header={"typ": kind}))


def test_issuer_may_want_access_tokens_alone() -> None:
    for wanted, kinds in ((None, (None, "JWT", "at+jwt", "application/at+JWT")), ("AT+jwt", ("at+jwt",))):
        verifier = Verifier(token_type=wanted)
        for kind in kinds:
            assert verifier.claims(LOGIN.token(NOW, header={"typ": kind}))
    for kind in (None, "JWT", "id+jwt"):
        assert "of a type" in verifier.refusal(LOGIN.token(NOW, header={"typ": kind}))


def test_one_of_several_audiences_is_enough(verifier: Verifier) -> None:
    assert verifier.claims(LOGIN.token(NOW, aud=["x", "other"]))
    assert verifier.claims(LOGIN.token(NOW, aud="other"))


def test_without_a_key_id_the_only_key_of_the_algorithm_verifies() -> None:
    assert Verifier().claims(LOGIN.token(NOW, header={"kid": None}))
    two = TestIssuer([RSA, SigningKeyPair.create("RS256", "second")])
    assert "key that signed" in Verifier(two).refusal(two.token(NOW, header={"kid": None}))


@pytest.mark.parametrize(
    ("moment", "is_valid"), [(NOW - 29, True), (NOW - 31, False), (NOW + 3_629, True), (NOW + 3_631, False)]
)
def test_clocks_may_differ_by_the_leeway(moment: float, is_valid: bool) -> None:
    verifier = Verifier()
    verifier.now = moment
    token = LOGIN.token(NOW)
    if is_valid:
        assert verifier.verifier.verify(token.encode()).refused_from == NOW + 3_630
    else:
        assert verifier.refusal(token) in ("this bearer token is not valid yet", "this bearer token has expired")


# --- hostile: who signed


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", "HS256", "HS512", "RS257", "ES256K", "dir"])
def test_no_other_algorithm_is_accepted(verifier: Verifier, name: str) -> None:
    token = LOGIN.token(NOW, header={"alg": name})
    assert verifier.refusal(token) == "the key that signed this bearer token is unknown"


def test_a_token_without_a_signature_is_refused(verifier: Verifier) -> None:
    header, claims, _ = LOGIN.token(NOW, header={"alg": "none"}).split(".")
    assert verifier.refusal(f"{header}.{claims}.") == "this bearer token is malformed"


@pytest.mark.parametrize("secret", ["jwk", "modulus", "pem"])
def test_the_public_key_is_no_shared_secret(verifier: Verifier, secret: str) -> None:
    """The confusion of algorithms: HMAC with a public key that everyone knows."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = RSA.private.public_key()
    known = {
        "jwk": json.dumps(RSA.jwk()).encode(),
        "modulus": base64.urlsafe_b64decode(RSA.jwk()["n"] + "=="),
        "pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }[secret]
    header, claims, _ = LOGIN.token(NOW, header={"alg": "HS256"}).split(".")
    signature = encode(hmac.new(known, f"{header}.{claims}".encode(), hashlib.sha256).digest())
    assert verifier.refusal(f"{header}.{claims}.{signature}") == "the key that signed this bearer token is unknown"


def test_a_key_serves_no_other_algorithm_than_its_own(verifier: Verifier) -> None:
    other = SigningKeyPair("PS256", "rsa", RSA.private)  # the key set says RS256
    assert "key that signed" in verifier.refusal(LOGIN.token(NOW, key=other))
    assert "key that signed" in verifier.refusal(LOGIN.token(NOW, header={"kid": "ec"}))


def test_an_issuer_may_allow_fewer_algorithms() -> None:
    verifier = Verifier(algorithms=("ES256",))
    assert verifier.claims(LOGIN.token(NOW, key=EC))
    assert "key that signed" in verifier.refusal(LOGIN.token(NOW))


def test_another_key_of_the_same_name_does_not_verify(verifier: Verifier) -> None:
    assert "signature" in verifier.refusal(LOGIN.token(NOW, key=OTHER))


@pytest.mark.parametrize("field", ["jwk", "jku", "x5c", "x5u"])
def test_a_token_cannot_bring_its_own_key(verifier: Verifier, field: str) -> None:
    brought: dict[str, Any] = {"jwk": OTHER.jwk(), "jku": "https://evil.example/keys", "x5u": "https://evil.example"}
    token = LOGIN.token(NOW, header={field: brought.get(field, ["MIIB"])}, key=OTHER)
    assert "signature" in verifier.refusal(token)


@pytest.mark.parametrize(
    "key_id", ["../../../dev/null", "' OR 1=1 --", "rsa\u0000", "RSA", "rsa ", "https://evil.example", "x" * 256]
)
def test_a_key_id_is_only_a_name_of_a_known_key(key_id: str) -> None:
    verifier = Verifier()
    assert "key that signed" in verifier.refusal(LOGIN.token(NOW, header={"kid": key_id}))
    assert verifier.unknown == [ISSUER]


@pytest.mark.parametrize("key_id", [1, ["rsa"], {"rsa": 1}, True, "x" * 257])
def test_a_key_id_of_another_form_is_refused(key_id: Any) -> None:
    verifier = Verifier()
    assert verifier.refusal(LOGIN.token(NOW, header={"kid": key_id})) == "this bearer token is malformed"
    assert verifier.unknown == []


@pytest.mark.parametrize("name", ["https://evil.example", f"{ISSUER}/", ISSUER.upper(), "", None, 1, [ISSUER], {}])
def test_another_issuer_is_not_accepted(verifier: Verifier, name: Any) -> None:
    assert verifier.refusal(LOGIN.token(NOW, iss=name)) == "the issuer of this bearer token is not accepted"


def test_an_issuer_cannot_sign_for_another() -> None:
    verifier = Verifier()
    own = TestIssuer([SigningKeyPair.create("ES256", "own")], "https://second.example")
    issuers = [
        TokenIssuer(issuer.issuer, (AUDIENCE,), parse_key_set(issuer.key_set(), ALGORITHMS)) for issuer in (LOGIN, own)
    ]
    verifier.verifier.update_issuers(issuers)
    assert verifier.claims(own.token(NOW))
    assert "key that signed" in verifier.refusal(own.token(NOW, iss=ISSUER))


# --- hostile: for whom and when


@pytest.mark.parametrize("audience", ["openai", "Fairlead", "", [], ["x"], None, 1, {"fairlead": 1}, ["fairlead", 1]])
def test_another_audience_is_refused(verifier: Verifier, audience: Any) -> None:
    assert "for whom" in (message := verifier.refusal(LOGIN.token(NOW, aud=audience))) or "not meant" in message


@pytest.mark.parametrize("claims", [{"exp": None}, {"exp": NOW - 31}, {"nbf": NOW + 31}, {"exp": 0}, {"exp": -1}])
def test_a_token_at_another_time_is_refused(verifier: Verifier, claims: dict[str, Any]) -> None:
    assert any(word in verifier.refusal(LOGIN.token(NOW, **claims)) for word in ("expire", "valid yet"))


@pytest.mark.parametrize("value", ["9999999999", True, [9], {}, 1e300, 10**30])
@pytest.mark.parametrize("name", ["exp", "nbf"])
def test_a_time_that_is_no_number_is_malformed(verifier: Verifier, name: str, value: Any) -> None:
    assert verifier.refusal(LOGIN.token(NOW, **{name: value})) == "this bearer token is malformed"


# --- hostile: form


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"eyJ",
        b"eyJ.eyJ.eyJ",
        b"eyJhbGciOiJSUzI1NiJ9..eyJh",
        b"eyJhbGciOiJSUzI1NiJ9.e30.c2ln.c2ln",
        b"eyJhbGciOiJSUzI1NiJ9.W10.c2ln",
        b"bnVsbA.bnVsbA.c2ln",
        b"eyJhbGciOiJSUzI1NiJ9.e30=.c2ln",
        b"eyJhbGciOiJSUzI1NiJ9.e30 .c2ln",
        b"eyJhbGciOiJSUzI1NiJ9.\xff\xfe.c2ln",
        b"eyJ" + b"A" * 5 + b".eyJh.c2ln",
    ],
)
def test_a_malformed_token_is_refused(verifier: Verifier, token: bytes) -> None:
    assert verifier.refusal(token) == "this bearer token is malformed"


def test_a_token_has_one_spelling(verifier: Verifier) -> None:
    """The last letter of a part may have bits that mean nothing."""
    header, claims, signature = LOGIN.token(NOW, header={"pad": "x"}).split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(signature) % 4
    other = signature[:-1] + alphabet[alphabet.index(signature[-1]) + 1]
    assert base64.urlsafe_b64decode(other + "==") == base64.urlsafe_b64decode(signature + "==")
    assert verifier.refusal(f"{header}.{claims}.{other}") == "this bearer token is malformed"


def test_a_token_that_is_too_long_is_not_read(verifier: Verifier) -> None:
    assert "longer than 16,384 bytes" in verifier.refusal(LOGIN.token(NOW, groups=["g" * 100] * 200))


@pytest.mark.parametrize("depth", [1_500, 3_000])
def test_deep_nesting_is_malformed_and_no_crash(verifier: Verifier, depth: int) -> None:
    deep = encode(b'{"iss":' + b"[" * depth + b"]" * depth + b"}")
    header, _, signature = LOGIN.token(NOW).split(".")
    assert verifier.refusal(f"{header}.{deep}.{signature}") in (
        "this bearer token is malformed",
        "the issuer of this bearer token is not accepted",
    )


@pytest.mark.parametrize("header", [{"cty": "JWT"}, {"crit": ["exp"]}, {"crit": []}, {"zip": "DEF"}])
def test_nested_tokens_and_extensions_are_refused(verifier: Verifier, header: dict[str, Any]) -> None:
    message = verifier.refusal(LOGIN.token(NOW, header=header))
    assert message in (
        "this bearer token holds another token",
        "this bearer token needs an extension that is not supported",
    )


def test_no_message_repeats_the_token(verifier: Verifier) -> None:
    for token in (LOGIN.token(NOW, iss="canary-iss"), LOGIN.token(NOW, header={"kid": "canary-kid"}), "eyJcanary.a.b"):
        assert "canary" not in verifier.refusal(token)
