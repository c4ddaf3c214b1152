"""Reads from `metadata.managedFields` who wrote an object last, or its replica count."""

from collections.abc import Iterator
from typing import Any, Final

from fairlead.kube.resources import Manifest, metadata_of

CHANGED_BY_ANNOTATION: Final = "fairlead.io/changed-by"
"""The user of the command line that changed an object last, as the command line says."""
CLI_FIELD_MANAGER: Final = "fairlead-cli"
_UNKNOWN: Final = "an unknown writer"


def field_entries(live: Manifest) -> Iterator[dict[str, Any]]:
    return (entry for entry in metadata_of(live).get("managedFields") or [] if entry.get("subresource") != "status")


def replicas_managers(live: Manifest) -> tuple[str, ...]:
    """Returns the field managers that have written `spec.replicas`, even with the same number.

    Controllers that run a workload write only its status.
    """
    writes = (
        entry for entry in field_entries(live) if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    )
    return tuple(str(entry.get("manager") or "an unknown writer") for entry in writes)


def last_author(manifest: Manifest) -> str:
    """Returns the field manager that changed the object last, except its status.

    The annotation counts only for changes of the command line. Field managers are names that
    clients choose: the audit log of the API server has the authenticated users.
    """
    found = field_entries(manifest)
    entries = [(str(entry.get("time") or ""), str(entry.get("manager") or _UNKNOWN)) for entry in found]
    if not entries:
        return _UNKNOWN
    latest = max(time for time, _ in entries)
    managers = sorted({manager for time, manager in entries if time == latest})
    if managers == [CLI_FIELD_MANAGER]:
        annotations = metadata_of(manifest).get("annotations")
        person = annotations.get(CHANGED_BY_ANNOTATION) if isinstance(annotations, dict) else None
        if isinstance(person, str) and person:
            return f"{person} ({CLI_FIELD_MANAGER})"
    return " or ".join(managers)
