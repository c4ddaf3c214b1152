"""Bearer tokens identify tenants by their claims, and are remembered until they expire."""

from collections.abc import Sequence
from typing import Any

import pytest

from fairlead.tenants.model import Tenant, TokenSubject
from fairlead_gateway.bearer_tokens.messages import ALGORITHMS, JWKS_UNKNOWN_KEY_SECONDS, TokenIssuer
from fairlead_gateway.bearer_tokens.supervisor.key_service import parse_key_set
from fairlead_gateway.bearer_tokens.worker.token_callers import TokenCallers
from fairlead_gateway.errors import InvalidApiKey
from fairlead_testing.gateway.tenant_keys import AUDIENCE, ISSUER, SigningKeyPair, TestIssuer

NOW = 1_795_000_000.0
KEY = SigningKeyPair.create("ES256")
LOGIN = TestIssuer([KEY])
ISSUERS = [TokenIssuer(ISSUER, (AUDIENCE,), parse_key_set(LOGIN.key_set(), ALGORITHMS))]


def tenant(name: str, **subjects: str) -> Tenant:
    return Tenant(name, subjects=tuple(TokenSubject(ISSUER, claim, value) for claim, value in subjects.items()))


class Callers:
    """The callers of tokens, at a time that tests set."""

    def __init__(self, *tenants: Tenant) -> None:
        self.now = NOW
        self.reported: list[str] = []
        self.tenants: Sequence[Tenant] = tenants
        self.callers = TokenCallers(lambda: self.tenants, lambda: self.now, self.reported.append, 3)
        self.callers.update_issuers(ISSUERS)

    def name(self, token: str) -> str:
        return self.callers.caller(token.encode()).name

    def refusal(self, token: str) -> str:
        with pytest.raises(InvalidApiKey) as refused:
            self.callers.caller(token.encode())
        return refused.value.message


def test_the_claims_choose_the_tenant() -> None:
    callers = Callers(tenant("acme", sub="app"), tenant("research", groups="research", sub="other"))
    assert callers.name(LOGIN.token(NOW)) == "acme"
    assert callers.name(LOGIN.token(NOW, sub="x", groups=["a", "research"])) == "research"
    caller = callers.callers.caller(LOGIN.token(NOW).encode())
    assert (caller.key, caller.expires_at) == ("sub:app", NOW + 3_630)


@pytest.mark.parametrize("claims", [{"sub": "App"}, {"sub": None}, {"sub": 1}, {"sub": ["x"]}, {"sub": {"app": 1}}])
def test_other_claims_identify_no_tenant(claims: dict[str, Any]) -> None:
    assert (
        Callers(tenant("acme", sub="app")).refusal(LOGIN.token(NOW, **claims))
        == "this bearer token identifies no tenant"
    )


def test_a_subject_of_another_issuer_does_not_count() -> None:
    other = Tenant("acme", subjects=(TokenSubject("https://second.example", "sub", "app"),))
    assert Callers(other).refusal(LOGIN.token(NOW)) == "this bearer token identifies no tenant"


def test_a_token_of_two_tenants_is_refused() -> None:
    two = Callers(tenant("acme", sub="app"), tenant("research", groups="research"))
    assert two.refusal(LOGIN.token(NOW, groups=["research"])) == "this bearer token identifies several tenants"
    same = Callers(tenant("acme", sub="app"), tenant("research", sub="app"))
    assert same.refusal(LOGIN.token(NOW)) == "this bearer token identifies several tenants"


def test_a_remembered_token_ends_when_it_expires() -> None:
    callers = Callers(tenant("acme", sub="app"))
    token = LOGIN.token(NOW)
    assert callers.callers.caller(token.encode()) is callers.callers.caller(token.encode())
    callers.now = NOW + 3_631
    assert callers.refusal(token) == "this bearer token has expired"


def test_a_tenant_that_loses_its_subject_loses_remembered_tokens() -> None:
    callers = Callers(tenant("acme", sub="app"))
    token = LOGIN.token(NOW)
    assert callers.name(token) == "acme"
    callers.tenants = [tenant("acme")]
    callers.callers.on_tenants_changed()
    assert callers.refusal(token) == "this bearer token identifies no tenant"


def test_a_withdrawn_key_ends_remembered_tokens() -> None:
    callers = Callers(tenant("acme", sub="app"))
    token = LOGIN.token(NOW)
    assert callers.name(token) == "acme"
    new = TestIssuer([SigningKeyPair.create("ES256", "k2")])
    callers.callers.update_issuers([TokenIssuer(ISSUER, (AUDIENCE,), parse_key_set(new.key_set(), ALGORITHMS))])
    assert callers.refusal(token) == "the key that signed this bearer token is unknown"
    assert callers.reported == [ISSUER]


def test_unknown_keys_are_reported_at_most_once_per_interval() -> None:
    callers = Callers(tenant("acme", sub="app"))
    for number in range(5):
        callers.refusal(LOGIN.token(NOW, header={"kid": f"unknown-{number}"}))
    assert callers.reported == [ISSUER]
    callers.now += JWKS_UNKNOWN_KEY_SECONDS
    callers.refusal(LOGIN.token(NOW, header={"kid": "unknown"}))
    assert callers.reported == [ISSUER, ISSUER]


def test_remembered_tokens_are_bounded_and_refused_ones_are_not_remembered() -> None:
    callers = Callers(tenant("acme", sub="app"))
    first = LOGIN.token(NOW, jti="first")
    remembered = callers.callers.caller(first.encode())
    for number in range(3):
        callers.name(LOGIN.token(NOW, jti=f"token-{number}"))
        callers.refusal(LOGIN.token(NOW, sub=f"stranger-{number}"))
    assert callers.callers.caller(first.encode()) is not remembered
