"""Who decides how many replicas a child has: the operator, or whoever wrote its scale subresource."""

from typing import Any

from fairlead.kube.resource import Manifest, metadata_of


def scaled_elsewhere(workload: Manifest, manager: str) -> bool:
    """Whether another field manager owns ``spec.replicas``: an autoscaler, or a person with ``kubectl scale``.

    Then the operator leaves the field out of what it applies; it would take it back otherwise. The API server keeps the
    value, since the other manager owns it. The controllers that run the workload write its status only.
    """
    for entry in metadata_of(workload).get("managedFields") or ():
        if entry.get("manager") == manager and not entry.get("subresource"):
            continue
        fields: Any = entry.get("fieldsV1") or {}
        if "f:replicas" in (fields.get("f:spec") or {}):
            return True
    return False
