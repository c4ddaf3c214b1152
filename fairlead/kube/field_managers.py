"""Who sets the number of instances of a workload: read from ``metadata.managedFields``, as the API server keeps them."""

from collections.abc import Iterator
from typing import Any

from fairlead.kube.resources import Manifest, metadata_of


def field_entries(live: Manifest) -> Iterator[dict[str, Any]]:
    """Every manager's fields, but for those about the status."""
    return (one for one in metadata_of(live).get("managedFields") or [] if one.get("subresource") != "status")


def replicas_managers(live: Manifest) -> tuple[str, ...]:
    """Who has written ``spec.replicas``, be it the same number, by the names of the field managers. Controllers that run a workload
    write its status only."""
    writes = (one for one in field_entries(live) if "f:replicas" in ((one.get("fieldsV1") or {}).get("f:spec") or {}))
    return tuple(str(one.get("manager") or "somebody") for one in writes)
