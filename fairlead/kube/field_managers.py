"""Reads the writers of an object's replica count from `metadata.managedFields`."""

from collections.abc import Iterator
from typing import Any

from fairlead.kube.resources import Manifest, metadata_of


def field_entries(live: Manifest) -> Iterator[dict[str, Any]]:
    """Returns the entries of `metadata.managedFields`, except those for the status."""
    return (entry for entry in metadata_of(live).get("managedFields") or [] if entry.get("subresource") != "status")


def replicas_managers(live: Manifest) -> tuple[str, ...]:
    """Returns the field managers that have written `spec.replicas`, even with the same number.

    Controllers that run a workload write only its status.
    """
    writes = (
        entry for entry in field_entries(live) if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    )
    return tuple(str(entry.get("manager") or "an unknown writer") for entry in writes)
