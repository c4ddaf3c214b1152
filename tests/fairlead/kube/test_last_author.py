"""The author of the last change of an object, by field managers and annotation."""

from typing import Any

import pytest

from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, last_author

EARLY, LATE = "2027-01-15T08:00:00Z", "2027-01-15T09:00:00Z"


def _object(*entries: tuple[str, str | None], status: str | None = None, person: str | None = None) -> dict[str, Any]:
    fields: list[dict[str, Any]] = [{"manager": manager, "time": time} for manager, time in entries]
    if status is not None:
        fields.append({"manager": status, "time": "2028-01-01T00:00:00Z", "subresource": "status"})
    return {"metadata": {"managedFields": fields, "annotations": {CHANGED_BY_ANNOTATION: person}}}


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (_object(("kubectl-edit", EARLY), ("argocd", LATE)), "argocd"),
        (_object(("kubectl-edit", EARLY), status="controller"), "kubectl-edit"),
        (_object(("fairlead-cli", LATE), ("kubectl", EARLY), person="ann@laptop"), "ann@laptop (fairlead-cli)"),
        (_object(("fairlead-cli", EARLY), ("kubectl", LATE), person="ann@laptop"), "kubectl"),
        (_object(("fairlead-cli", LATE), ("kubectl", LATE), person="ann@laptop"), "fairlead-cli or kubectl"),
        (_object(("fairlead-cli", LATE)), "fairlead-cli"),
        (_object(("kubectl", None)), "kubectl"),
        ({"metadata": {}}, "an unknown writer"),
    ],
)
def test_the_latest_writer_is_the_author(manifest: dict[str, Any], expected: str) -> None:
    assert last_author(manifest) == expected
