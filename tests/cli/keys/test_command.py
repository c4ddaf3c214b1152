"""``fairlead keys`` and ``fairlead tenants`` on a file."""

import hmac
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest

from fairlead.errors import BadInput
from fairlead_cli.keys.key_entries import (
    KeyOwner,
    add_key,
    create_key,
    format_time,
    key_digest,
    parse_expiry,
    parse_lifetime,
    revoke_key,
    rotate_key,
)
from fairlead_gateway.tenants.worker import api_keys
from fairlead_testing.cli.command_line import run_command_line
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.yaml_documents import load_documents

PEPPER = "p" * 64
FILE = """\
# All teams of the platform.
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelTenant
metadata: {name: acme}
spec:
  tier: Interactive   # a product with users
  weight: 4
  models: [chat/llama-70b, "search/*"]
  limits:
    - {per: Minute, requests: 600, tokens: 400000}
    - {concurrency: 64}
  budget: {usd: "500", per: Month}
---
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelTenant
metadata: {name: research}
spec: {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    return path


def environment(pepper: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    return {**known, "FAIRLEAD_KEY_PEPPER": pepper}


def fairlead(*words: str, code: int = 0, pepper: str = PEPPER) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process."""
    with patch.dict(os.environ, environment(pepper), clear=True):
        done = run_command_line(*words)
    assert done.returncode == code, done.stderr
    return done


def fairlead_process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fairlead_cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(PEPPER))
    assert done.returncode == 0, done.stderr
    return done


def keys_in(file: Path) -> list[dict[str, str]]:
    documents = [document for document in load_documents(file.read_text()) if document]
    return list(documents[0]["spec"].get("keys") or [])


def test_a_key_is_printed_once_and_only_its_digest_is_stored(file: Path) -> None:
    done = fairlead("keys", "create", "acme", "prod", "--file", str(file), "--expires", "2030-01-31")
    assert re.fullmatch(r"fl_[0-9a-f]{64}\n", done.stdout)
    key = done.stdout.strip()
    assert keys_in(file) == [{"name": "prod", "digest": key_digest(key, PEPPER), "expiresAt": "2030-01-31T00:00:00Z"}]
    assert key not in file.read_text()
    assert key not in done.stderr
    listed = fairlead_process("keys", "list", "acme", "--file", str(file), "-o", "json").stdout
    assert key not in listed


def test_comments_and_other_documents_stay(file: Path) -> None:
    fairlead("keys", "create", "acme", "prod", "-f", str(file))
    lines = file.read_text().splitlines()
    assert [
        line for line in lines if "fl_" in line or ("digest" not in line and line != "  keys:")
    ] == FILE.splitlines()


def test_a_rotation_keeps_the_old_key_for_the_overlap(file: Path) -> None:
    old = fairlead("keys", "create", "acme", "prod", "-f", str(file)).stdout.strip()
    done = fairlead("keys", "rotate", "acme", "prod", "-f", str(file), "--overlap", "1h", "-o", "json")
    new = json.loads(done.stdout)
    first, second = keys_in(file)
    assert (first["name"], first["digest"]) == ("prod", key_digest(old, PEPPER))
    assert "expiresAt" in first
    assert second == {"name": "prod", "digest": key_digest(new["key"], PEPPER)}
    assert "the old key prod is valid until" in done.stderr


def test_a_revoked_key_leaves_the_file_and_enters_the_list_of_revoked_keys(file: Path, tmp_path: Path) -> None:
    key = fairlead("keys", "create", "acme", "prod", "-f", str(file)).stdout.strip()
    revoked = tmp_path / "revoked.txt"
    for _ in range(2):
        fairlead("keys", "revoke", "acme", "prod", "-f", str(file), "--revoked", str(revoked))
        assert keys_in(file) == []
        assert revoked.read_text() == key_digest(key, PEPPER) + "\n"
        file.write_text(
            FILE.replace("  weight: 4\n", f'  keys: [{{name: prod, digest: "{key_digest(key, PEPPER)}"}}]\n')
        )


def test_commands_at_the_same_time_lose_no_key(file: Path) -> None:
    names = [f"key-{number}" for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: fairlead_process("keys", "create", "acme", name, "-f", str(file)), names))
    assert sorted(key["name"] for key in keys_in(file)) == names


def test_the_mode_of_the_file_stays(file: Path) -> None:
    file.chmod(0o640)
    fairlead("keys", "create", "acme", "prod", "-f", str(file))
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["keys", "create", "acm", "prod"], "has no ModelTenant acm (tenants there: acme)"),
        (["keys", "create", "acme", "Prod!"], "'Prod!' cannot be the name of a key"),
        (["keys", "create", "acme", "prod", "--expires", "soon"], "--expires: 'soon' is no duration"),
        (["keys", "rotate", "acme", "prod"], "has no valid key prod (acme has no key)"),
        (["keys", "revoke", "acme", "prod"], "has no valid key prod"),
        (["tenants", "show", "nobody"], "has no ModelTenant nobody"),
        (["keys", "list", "--context", "c"], "--file names a file, and other options name a cluster"),
    ],
)
def test_wrong_usage_names_the_field_and_the_fix(words: list[str], message: str, file: Path) -> None:
    done = fairlead(*words, "--file", str(file), code=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert file.read_text() == FILE


def test_without_a_pepper_nothing_is_written(file: Path) -> None:
    done = fairlead("keys", "create", "acme", "prod", "-f", str(file), code=2, pepper="")
    assert "FAIRLEAD_KEY_PEPPER is not set" in done.stderr
    assert file.read_text() == FILE


def test_tenants_are_listed_with_and_without_a_verb(file: Path) -> None:
    fairlead("keys", "create", "acme", "prod", "-f", str(file))
    table = fairlead_process("tenants", "-f", str(file)).stdout
    assert table == fairlead("tenants", "list", "-f", str(file)).stdout
    header, acme, research = table.splitlines()
    assert header.split() == ["NAME", "TIER", "WEIGHT", "MODELS", "KEYS", "LIMITS"]
    assert acme.split("   ")[0] == "acme"
    assert "3 limits" in acme
    assert research.split() == ["research", "Standard", "1", "all", "0", "–"]
    plain = json.loads(fairlead("tenants", "-f", str(file), "-o", "json").stdout)
    assert [tenant["name"] for tenant in plain["tenants"]] == ["acme", "research"]


def test_one_tenant_is_shown_with_limits_budget_and_keys(file: Path) -> None:
    fairlead("keys", "create", "acme", "prod", "-f", str(file), "--expires", "90d")
    text = fairlead("tenants", "show", "acme", "-f", str(file)).stdout
    for part in (
        "chat/llama-70b, search/*",
        "600 requests, 400000 tokens per minute",
        "64 concurrency",
        "500 USD per month",
    ):
        assert part in text
    assert re.search(r"acme +prod +[0-9a-f]{12} +in (89|90)d", text)


def test_the_last_use_is_that_of_a_gateway(file: Path) -> None:
    key = fairlead("keys", "create", "acme", "prod", "-f", str(file)).stdout.strip()
    fairlead("keys", "create", "acme", "unused", "-f", str(file))
    use = {"digest": key_digest(key, PEPPER)[:12], "last_used_at": 1_795_000_020.0}
    body = {"started_at": 1_790_000_000.0, "tenants": [{"name": "acme", "keys": [use]}]}
    with CannedServer({"/api/tenants": CannedResponse([json.dumps(body).encode()])}) as gateway:
        manage = ["--manage", gateway.url]
        plain = json.loads(fairlead("keys", "list", "-f", str(file), *manage, "-o", "json").stdout)
        table = fairlead("keys", "list", "-f", str(file), *manage).stdout
    assert [row["lastUsedAt"] for row in plain["keys"]] == ["2026-11-18T11:07:00Z", None]
    assert "never seen by these gateways since 2026-09-21T14:13:20Z" in table


def test_without_a_gateway_the_last_use_is_unknown(file: Path) -> None:
    fairlead("keys", "create", "acme", "prod", "-f", str(file))
    done = fairlead("keys", "list", "-f", str(file), "--manage", "127.0.0.1:1")
    assert "last use unknown" in done.stderr
    assert done.stdout.splitlines()[1].endswith("–")


def test_a_whole_digest_is_revoked_although_the_tenants_are_broken(file: Path, tmp_path: Path) -> None:
    key = fairlead("keys", "create", "acme", "prod", "-f", str(file)).stdout.strip()
    digest, revoked = key_digest(key, PEPPER), tmp_path / "revoked.txt"
    file.write_text(file.read_text() + "  weight: [\n")
    words = ("keys", "revoke", "acme", "prod", "-f", str(file), "--revoked", str(revoked))
    fairlead(*words, code=2)
    assert not revoked.exists(), "the name alone says no digest"
    done = fairlead(*words, "--digest", digest, code=2)
    assert revoked.read_text() == f"{digest}\n"
    assert f"gateways refuse the key by {revoked}; the ModelTenant acme was not changed" in done.stderr


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


def test_a_key_has_256_random_bits_in_a_form_that_scanners_find() -> None:
    keys = {create_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(re.fullmatch(r"fl_[0-9a-f]{64}", key) for key in keys)


def test_the_digest_is_the_one_that_gateways_compute() -> None:
    digest = key_digest("fl_abc", "pepper é")
    assert digest == api_keys.key_digest(b"fl_abc", "pepper é".encode()).hex()
    assert digest == hmac.new("pepper é".encode(), b"fl_abc", "sha256").hexdigest()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", "2027-02-16T10:26:40Z"),
        ("1h30m", "2026-11-18T11:56:40Z"),
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00Z"),
        ("2027-01-31T12:00", "2027-01-31T12:00:00Z"),
    ],
)
def test_an_expiry_is_a_duration_or_a_date_in_utc(text: str, expected: str) -> None:
    assert format_time(parse_expiry(text, NOW, field="--expires")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soon", "'soon' is no duration and no date"),
        ("", "'' is no duration and no date"),
        ("2027-13-01", "'2027-13-01' is not a date"),
        ("2026-01-01", "in the past"),
        ("0s", "in the past"),
        ("5000d", "more than ten years"),
        ("2999-01-01", "more than ten years"),
    ],
)
def test_an_impossible_expiry_names_the_option_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        parse_expiry(text, NOW, field="--expires")
    assert refused.value.field == "--expires"
    assert refused.value.hint


def test_an_overlap_has_a_bound() -> None:
    assert parse_lifetime("0s", field="--overlap") == 0.0
    with pytest.raises(BadInput, match="--overlap"):
        parse_lifetime("100000d", field="--overlap")
