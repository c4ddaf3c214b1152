"""The file of management tokens: what it may say, and what its errors never repeat."""

import asyncio
from pathlib import Path

import pytest

from fairlead.audit import Action, AuditLog
from fairlead.audit.reader import AuditQuery
from fairlead.errors import ManifestError
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.audit.supervisor import AuditService, manage_token_watchers, token_changes
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_gateway.supervisor.management.access.token_file import parse_token_file

DIGEST, OTHER = "ab" * 32, "cd" * 32
GOOD = f"tokens: [{{name: acme-team, digest: '{DIGEST}', tenants: [acme, beta], may: [Read, Audit]}}]"
SCOPE = AccessScope("acme-team", frozenset({"acme", "beta"}), frozenset({Permission.READ, Permission.AUDIT}))


def _parse(text: str) -> dict[bytes, AccessScope]:
    return dict(parse_token_file(text, file="tokens.yaml", limits=Limits(manage_tokens=2)))


def _error(text: str) -> str:
    with pytest.raises(ManifestError) as caught:
        _parse(text)
    return str(caught.value)


def test_a_token_has_tenants_and_permissions() -> None:
    assert _parse(GOOD) == {bytes.fromhex(DIGEST): SCOPE}
    assert _parse(GOOD.replace("[acme, beta]", "all"))[bytes.fromhex(DIGEST)].tenants is None
    assert _parse("tokens:") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "begin with `tokens:`"),
        (GOOD.replace("tenants: [acme, beta], ", ""), "tokens[0].tenants"),
        (GOOD.replace("[acme, beta]", "[]"), "tokens[0].tenants"),
        (GOOD.replace("[acme, beta]", "everybody"), "tokens[0].tenants"),
        (GOOD.replace("[Read, Audit]", "[Write]"), "write one or more of Read, Audit, Fleet, Preview"),
        (GOOD.replace("[Read, Audit]", "[]"), "tokens[0].may"),
        (GOOD.replace("acme-team", "a b"), "this cannot name a token"),
        (GOOD.replace("[acme, beta]", "['\u0430cme']"), "this cannot name a tenant"),  # a Cyrillic letter
        (GOOD.replace("acme-team", "installation"), "choose another name"),
        (GOOD.replace("may:", "can:"), "tokens[0]"),
        (GOOD + "\n---\n" + GOOD, "2 YAML documents"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_field(text: str, expected: str) -> None:
    assert expected in _error(text)


def test_a_token_in_place_of_its_digest_is_not_repeated() -> None:
    text = _error(GOOD.replace(DIGEST, "fl_secret-token"))
    assert "fl_secret" not in text
    assert "never the token" in text


def test_digests_are_unique_and_tokens_are_limited() -> None:
    row = f"{{name: a, digest: '{DIGEST}', tenants: all, may: [Read]}}"
    assert "already given" in _error(f"tokens: [{row}, {row}]")
    rows = ", ".join(row.replace(DIGEST, f"{number:064x}") for number in range(3))
    assert "the limit is 2" in _error(f"tokens: [{rows}]")


def test_an_edit_replaces_the_tokens_and_a_broken_one_keeps_them(tmp_path: Path) -> None:
    path, clock = tmp_path / "tokens.yaml", ManualClock()
    audit = AuditService(AuditLog("gateway", "gw-1", clock), clock)
    tokens = ManageTokens(None, b"pepper")
    [watcher] = manage_token_watchers(path, tokens, audit, Limits())

    async def edit(text: str) -> None:
        path.write_text(text)
        await watcher._reload()

    asyncio.run(edit(GOOD))
    assert tokens._by_digest == {bytes.fromhex(DIGEST): SCOPE}
    asyncio.run(edit("tokens: ["))
    assert watcher.problem is not None
    assert tokens._by_digest == {bytes.fromhex(DIGEST): SCOPE}
    asyncio.run(edit("tokens: []"))
    assert tokens._by_digest == {}
    records = audit.log.recent(AuditQuery(), 10)
    assert [(record.action, record.object, record.before, record.after) for record in records] == [
        (Action.TOKENS_CHANGED, "ManageToken/acme-team", _shown(), {}),
        (Action.TOKENS_CHANGED, "ManageToken/acme-team", {}, _shown()),
    ]


def test_a_token_with_another_scope_is_recorded_with_both() -> None:
    digest = bytes.fromhex(OTHER)
    [event] = token_changes({digest: SCOPE}, {digest: AccessScope("acme-team", None, SCOPE.may)})
    assert (event.before["tenants"], event.after["tenants"]) == ("acme, beta", "all")


def _shown() -> dict[str, str]:
    return {"digest": DIGEST[:8], "tenants": "acme, beta", "may": "Audit, Read"}
