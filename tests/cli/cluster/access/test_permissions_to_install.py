"""The permissions that `check --pre` reviews, compared with the objects of the chart."""

from pathlib import Path

from fairlead_cli.cluster.access.permissions import permissions_to_install
from fairlead_testing.yaml_documents import load_documents

ROOT = Path(__file__).resolve().parents[4]
PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}
TEST_POD = "Pod"
"""`helm test` creates it, after the installation."""


def test_user_needs_to_create_every_kind_of_the_default_chart() -> None:
    text = (ROOT / "tests" / "charts" / "golden" / "defaults.yaml").read_text(encoding="utf-8")
    kinds = {document["kind"] for document in load_documents(text) if document} - {TEST_POD}
    expected = {PLURALS.get(kind, f"{kind.lower()}s") for kind in kinds}
    reviewed = {permission.resource for permission in permissions_to_install("fairlead", exists=True)}
    assert expected <= reviewed
    assert reviewed - expected == {"customresourcedefinitions"}, "helm takes them from the folder crds"
