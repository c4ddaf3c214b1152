"""Changes of a tenant's list of keys."""

import pytest

from fairlead.errors import BadInput
from fairlead_cli.keys.key_entries import KeyOwner, add_key, revoke_key, rotate_key

NOW = 1_794_997_600.0  # 2026-11-18T10:26:40Z
ACME = KeyOwner("acme")
OLD = {"name": "prod", "digest": "a" * 64}
CI = {"name": "ci", "digest": "b" * 64, "expiresAt": "2030-01-01T00:00:00Z"}
NEW = {"name": "prod", "digest": "c" * 64}
EXPIRED = {"name": "prod", "digest": "d" * 64, "expiresAt": "2026-01-01T00:00:00Z"}


def test_a_new_key_comes_last_and_replaces_expired_ones_of_its_name() -> None:
    assert add_key([CI, EXPIRED], NEW, NOW, ACME) == [CI, NEW]


def test_a_second_valid_key_of_a_name_is_refused_with_the_way_to_replace_it() -> None:
    with pytest.raises(BadInput, match="keys rotate acme prod"):
        add_key([OLD], NEW, NOW, ACME)


def test_a_rotation_lets_the_old_key_expire_after_the_overlap() -> None:
    assert rotate_key([OLD, CI, EXPIRED], NEW, NOW, 3_600.0, ACME) == [
        {**OLD, "expiresAt": "2026-11-18T11:26:40Z"},
        CI,
        NEW,
    ]


def test_a_rotation_never_prolongs_the_old_key() -> None:
    soon = {**OLD, "expiresAt": "2026-11-18T10:30:00Z"}
    assert rotate_key([soon], NEW, NOW, 86_400.0, ACME) == [soon, NEW]


def test_a_second_rotation_leaves_the_end_of_the_first_as_it_is() -> None:
    first = rotate_key([OLD], NEW, NOW, 3_600.0, ACME)
    newest = {"name": "prod", "digest": "e" * 64}
    second = rotate_key(first, newest, NOW + 60.0, 3_600.0, ACME)
    assert [entry.get("expiresAt") for entry in second] == ["2026-11-18T11:26:40Z", "2026-11-18T11:27:40Z", None]


def test_a_rotation_without_an_overlap_removes_the_old_key() -> None:
    assert rotate_key([OLD, CI], NEW, NOW, 0.0, ACME) == [CI, NEW]


def test_a_key_with_an_expired_name_cannot_be_rotated() -> None:
    with pytest.raises(BadInput, match="has no valid key prod"):
        rotate_key([EXPIRED, CI], NEW, NOW, 60.0, ACME)


def test_a_name_is_revoked_with_all_its_keys_or_one_by_its_digest() -> None:
    both = [OLD, CI, NEW]
    assert revoke_key(both, "prod", None, ACME) == ([CI], [OLD, NEW])
    assert revoke_key(both, "prod", "AAAAAA", ACME) == ([CI, NEW], [OLD])


def test_a_tenant_has_at_most_64_keys() -> None:
    many = [{"name": f"key-{number}", "digest": f"{number:064}"} for number in range(64)]
    with pytest.raises(BadInput, match="64 keys"):
        add_key(many, NEW, NOW, ACME)
    with pytest.raises(BadInput, match="64 keys"):
        rotate_key(many, {"name": "key-1", "digest": "f" * 64}, NOW, 60.0, ACME)
    assert len(rotate_key(many, {"name": "key-1", "digest": "f" * 64}, NOW, 0.0, ACME)) == 64


@pytest.mark.parametrize(
    ("name", "digest", "message", "field"),
    [
        ("prd", None, "keys of acme: prod", "NAME"),
        ("prod", "ffffff", "no key prod has a digest", "--digest"),
        ("prod", "a", "too short", "--digest"),
    ],
)
def test_an_unknown_key_is_named(name: str, digest: str | None, message: str, field: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        revoke_key([OLD, CI], name, digest, ACME)
    assert refused.value.field == field
