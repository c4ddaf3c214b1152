"""Changes of the keys in a YAML text: what is changed, and what stays byte by byte."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput, ManifestError
from fairlead_cli.tenants.file_store import replace_keys
from fairlead_testing.yaml_documents import load_documents

A, B, C = ({"name": name, "digest": name * 64} for name in "abc")
HEAD = "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\nmetadata: {name: acme}\n"
BLOCK = f"""{HEAD}spec:
  weight: 4  # share
  keys:  # of the team
    # the first
    - name: a  # its name
      digest: "{"a" * 64}"
    # the second
    - {{name: b, digest: "{"b" * 64}"}}  # of CI
    # the end
  tier: Batch
"""


def replaced(text: str, *entries: dict[str, Any]) -> str:
    return replace_keys(text, "acme", entries, file="t.yaml")


def _by_digest(entry: dict[str, Any]) -> str:
    return str(entry["digest"])


def keys_of(text: str) -> list[dict[str, Any]]:
    (document,) = load_documents(text)
    return list(document["spec"].get("keys") or [])


def test_a_new_key_is_a_line_after_the_last_one() -> None:
    lines = replaced(BLOCK, A, B, C).splitlines()
    assert lines.pop(11) == f'    - {{name: c, digest: "{"c" * 64}"}}'
    assert lines == BLOCK.splitlines()


def test_a_removed_key_takes_its_lines_with_it() -> None:
    assert replaced(BLOCK, B) == BLOCK.replace(f'    - name: a  # its name\n      digest: "{"a" * 64}"\n', "")
    assert replaced(BLOCK, A) == BLOCK.replace(f'    - {{name: b, digest: "{"b" * 64}"}}  # of CI\n', "")


def test_a_changed_key_changes_alone() -> None:
    changed = replaced(BLOCK, A, {**B, "expiresAt": "2027-01-01T00:00:00Z"})
    assert changed == BLOCK.replace(f'"{"b" * 64}"', f'"{"b" * 64}", expiresAt: "2027-01-01T00:00:00Z"')


def test_without_keys_the_list_is_empty() -> None:
    assert "  keys: []  # of the team\n    # the end\n  tier: Batch\n" in replaced(BLOCK)


@pytest.mark.parametrize(
    "spec",
    [
        "spec: {}\n",
        "spec:\n  weight: 4\n",
        "spec:\n  weight: 4",
        "spec:\n  keys:\n  weight: 4\n",
        "spec:\n  keys:   # none yet\n",
        "spec:\n  keys: []  # none yet\n",
        "spec:\n  keys: null\n  weight: 4\n",
        f'spec: {{keys: [{{name: a, digest: "{"a" * 64}"}}], weight: 4}}\n',
        f'spec:\n  keys: [{{name: a, digest: "{"a" * 64}"}},\n    {{name: b, digest: "{"b" * 64}"}}]\n',
        f'spec:\n  keys:\n  - name: a\n    digest: "{"a" * 64}"\n  # end\n\n\n',
        f'spec:\r\n  keys:\r\n  - name: a\r\n    digest: "{"a" * 64}"\r\n  weight: 4\r\n',
    ],
)
@pytest.mark.parametrize("entries", [(A,), (C,), (A, B, C), ()])
def test_every_way_to_write_the_list_can_be_changed(spec: str, entries: tuple[dict[str, Any], ...]) -> None:
    changed = replaced(HEAD + spec, *entries)
    assert sorted(keys_of(changed), key=_by_digest) == sorted(entries, key=_by_digest)
    for comment in ("# none yet", "# end"):
        assert (comment in spec) == (comment in changed)


def test_a_json_file_stays_json() -> None:
    tenant = {"kind": "ModelTenant", "metadata": {"name": "acme"}, "spec": {"weight": 2}}
    first = replaced(json.dumps(tenant, indent=2), A)
    assert json.loads(first)["spec"] == {"weight": 2, "keys": [A]}
    assert json.loads(replaced(first, A, B))["spec"]["keys"] == [A, B]


def test_only_the_document_of_the_tenant_changes() -> None:
    other = BLOCK.replace("name: acme", "name: other")
    text = f"{other}---\n{BLOCK}---\n{other.replace('other', 'third')}"
    before, own, after = replaced(text, A).split("---\n")
    assert (before, after) == (other, other.replace("other", "third"))
    assert keys_of(own) == [A]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (HEAD, "write `spec: {}` first"),
        (f"{HEAD}spec:\n", "write `spec: {{}}` first"),
        (BLOCK.replace("acme", "other"), "has no ModelTenant acme"),
        (f"x-keys: &k [{{name: a, digest: d}}]\n{HEAD}spec:\n  keys: *k\n", "without an anchor"),
        (f"x-key: &k {{name: a, digest: d}}\n{HEAD}spec:\n  keys: [*k]\n", "without an anchor"),
        (f"x-key: &k {{name: a, digest: d}}\n{HEAD}spec:\n  keys:\n  - *k\n", "without an anchor"),
    ],
)
def test_a_text_that_cannot_be_changed_is_refused_with_the_fix(text: str, error: str) -> None:
    with pytest.raises(BadInput) as refused:
        replaced(text, C)
    assert error.replace("{{}}", "{}") in str(refused.value)


def test_a_file_that_is_not_yaml_is_refused_with_its_line() -> None:
    with pytest.raises(ManifestError, match=r"t\.yaml:[12]"):
        replaced("kind: [", C)


@pytest.mark.property
@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True),
    st.lists(st.sampled_from("abcdefgh"), unique=True),
    st.booleans(),
)
def test_any_list_becomes_any_other(old: list[str], new: list[str], is_flow: bool) -> None:
    entries = [{"name": name, "digest": name * 64} for name in old]
    wanted = [{"name": name, "digest": name * 64} for name in new]
    spec = yaml.safe_dump({"keys": entries, "weight": 3}, default_flow_style=is_flow, width=60)
    listed = "spec:\n" + "".join(f"  {line}\n" for line in spec.splitlines())
    assert sorted(keys_of(replaced(HEAD + listed, *wanted)), key=_by_digest) == sorted(wanted, key=_by_digest)
