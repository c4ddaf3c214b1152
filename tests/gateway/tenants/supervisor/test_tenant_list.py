"""A tenants file, document by document."""

import pytest

from fairlead.errors import ManifestError
from fairlead.limits import Limits
from fairlead.tenants.model import ApiKey, Tenant
from fairlead_gateway.tenants.supervisor.tenant_list import parse_tenant_file

HEAD = "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\n"
DIGEST = "ab" * 32


def document(name: str, more: str = "") -> str:
    return f"---\n{HEAD}metadata: {{name: {name}}}\nspec:\n  keys: [{{name: prod, digest: {DIGEST}}}]\n{more}"


def test_valid_documents_become_tenants() -> None:
    text = f"# tenants\n{document('acme')}{document('zeta', '  weight: 3')}\n---\n# nothing\n"
    keys = (ApiKey("prod", bytes.fromhex(DIGEST)),)
    entries = parse_tenant_file(text, file="tenants.yaml", limits=Limits())
    assert [entry.tenant for entry in entries] == [Tenant("acme", keys=keys), Tenant("zeta", weight=3, keys=keys)]
    assert all(entry.digests == {bytes.fromhex(DIGEST)} for entry in entries)


@pytest.mark.parametrize(
    ("more", "line", "message"),
    [("  weight: none\n", 7, "spec.weight: must be a whole number"), ("  models: ]\n", 7, "not YAML")],
)
def test_broken_document_is_reported_by_its_line_and_leaves_others(more: str, line: int, message: str) -> None:
    broken, good = parse_tenant_file(document("acme", more) + document("zeta"), file="tenants.yaml", limits=Limits())
    assert good.tenant is not None
    assert good.names == {"zeta"}
    assert broken.tenant is None
    assert "acme" in broken.names
    assert broken.digests == {bytes.fromhex(DIGEST)}
    assert broken.problem.startswith(f"tenants.yaml:{line}: ")
    assert message in broken.problem


def test_no_problem_repeats_a_key() -> None:
    text = f"---\n{HEAD}metadata: {{name: acme}}\nspec: {{keys: [{{name: prod, digest: fl_secret}}]}}\n"
    (entry,) = parse_tenant_file(text, file="tenants.yaml", limits=Limits())
    assert "not a digest" in entry.problem
    assert "fl_secret" not in entry.problem


def test_other_objects_are_left_out() -> None:
    model = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: chat}\n"
    (entry,) = parse_tenant_file(model + document("acme"), file="tenants.yaml", limits=Limits())
    assert entry.names == {"acme"}


def test_too_many_tenants_are_an_error() -> None:
    with pytest.raises(ManifestError, match="2 tenants; the limit is 1"):
        parse_tenant_file(document("acme") + document("zeta"), file="t", limits=Limits(tenants=1))
