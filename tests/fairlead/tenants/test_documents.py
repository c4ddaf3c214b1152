"""The tenants that documents define together, also while one is broken."""

from dataclasses import replace

import pytest

from fairlead.tenants.documents import (
    TenantDocument,
    digests_in,
    merge_documents,
    merge_sources,
    parse_revocations,
    retain_keys,
    suspended_in,
)
from fairlead.tenants.model import ApiKey, Tenant


def digest(number: int) -> bytes:
    return bytes([number]) * 32


def tenant(name: str, *numbers: int) -> Tenant:
    return Tenant(name, keys=tuple(ApiKey(f"key-{number}", digest(number)) for number in numbers))


def good(owner: Tenant) -> TenantDocument:
    return TenantDocument(frozenset({owner.name}), frozenset(key.digest for key in owner.keys), owner)


def broken(*names: str, digests: tuple[int, ...] = (), problem: str = "broken") -> TenantDocument:
    return TenantDocument(frozenset(names), frozenset(map(digest, digests)), problem=problem)


ACME, ZETA = tenant("acme", 1, 2), tenant("zeta", 3)
BOTH = {"acme": ACME, "zeta": ZETA}


def test_each_document_defines_its_tenant() -> None:
    assert merge_documents([good(ACME), good(ZETA)], {}) == (BOTH, [])


def test_tenant_without_a_document_is_gone() -> None:
    assert merge_documents([good(ZETA)], BOTH) == ({"zeta": ZETA}, [])


def test_broken_document_keeps_its_tenant_and_changes_no_other() -> None:
    newer = replace(ZETA, weight=7)
    tenants, problems = merge_documents([broken("acme", digests=(1, 2)), good(newer)], BOTH)
    assert tenants == {"acme": ACME, "zeta": newer}
    assert problems == ["broken"]


def test_broken_document_revokes_keys_whose_digests_it_lost() -> None:
    tenants, _ = merge_documents([broken("acme", digests=(2, 9)), good(ZETA)], BOTH)
    assert tenants == {"acme": tenant("acme", 2), "zeta": ZETA}


def test_broken_document_of_an_unknown_tenant_adds_none() -> None:
    assert merge_documents([broken("new", digests=(9,))], BOTH)[0] == {}


def test_unreadable_document_keeps_each_tenant_that_it_may_be_about() -> None:
    tenants, _ = merge_documents([broken("acme", "prod", "zeta", digests=(1,)), good(ZETA)], BOTH)
    assert tenants == {"acme": tenant("acme", 1), "zeta": ZETA}


def test_second_document_of_a_tenant_does_not_count() -> None:
    tenants, problems = merge_documents([good(ACME), good(tenant("acme", 5))], {})
    assert tenants == {"acme": ACME}
    assert problems == ["the tenant acme is given twice; the first one counts"]


def test_first_source_with_a_tenant_counts() -> None:
    tenants, problems = merge_sources([{"acme": ACME}, {"acme": tenant("acme", 5), "zeta": ZETA}])
    assert tenants == BOTH
    assert problems == ["the tenant acme is given by two sources; the first one counts"]


def test_digest_of_two_tenants_identifies_the_first() -> None:
    tenants, problems = merge_sources([{"beta": tenant("beta", 1, 5), "acme": ACME}])
    assert tenants == {"acme": ACME, "beta": tenant("beta", 5)}
    assert problems == ["beta: the key key-1 is already one of acme, and stays there"]


def test_keys_that_a_text_lost_are_dropped() -> None:
    text = f"keys: [{{digest: {digest(1).hex().upper()}}}, {{digest: '{digest(3).hex()}'}}] # {'0' * 63} {'0' * 65}"
    assert digests_in(text) == {digest(1), digest(3)}
    assert retain_keys(BOTH, digests_in(text)) == {"acme": tenant("acme", 1), "zeta": ZETA}


def test_each_line_of_a_revocation_list_counts_by_itself() -> None:
    text = (
        f"\n# those of the old pipeline\n{digest(1).hex()}  # ci\nfl_secret\n  {digest(2).hex().upper()}\n{'0' * 63}\n"
    )
    assert parse_revocations(text) == ({digest(1), digest(2)}, [4, 6])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("metadata: {name: acme}\nspec: {suspended: true}\n", {"acme"}),
        ("metadata:\n  name: 'acme'\nspec:\n  suspended: true # for now\n", {"acme"}),
        ('{"metadata": {"name": "acme"}, "spec": {"keys": [{"name": "k"}], "suspended": true}}', {"acme"}),
        ("metadata: {name: a}\n---\nmetadata: {name: b}\nspec: {suspended: true}\n--- \nmetadata: {name: c}", {"b"}),
        ("metadata: {name: acme}\nspec: {suspended: false}\n# suspended: true\n", set()),
        ("metadata: {name: acme}\nspec: {weight: 1} # suspended: true\n", set()),
        ("metadata: {name: acme}\nspec: {suspended: trueish}\n", set()),
        ("items: [{metadata: {name: a}, spec: {suspended: true}}, {metadata: {name: b}}]", set()),
        ("metadata: {labels: {a: b}, name: acme}\nspec: {suspended: true}\n", set()),
    ],
)
def test_suspended_tenants_are_found_where_they_are_plain(text: str, names: set[str]) -> None:
    assert suspended_in(text) == names
