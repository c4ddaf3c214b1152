"""The status of an object as it is applied. Pure."""

from collections.abc import Mapping
from typing import Any

from fairlead.fleet.client_names import GrantedNames
from fairlead.kube.resources import Manifest, key_of, metadata_of, name_of


def has_changed(manifest: Manifest, status: Mapping[str, Any]) -> bool:
    """Returns True if writing `status` would change something."""
    previous = manifest.get("status") or {}
    names = status.keys() | previous.keys()
    return any((previous.get(name) or None) != (status.get(name) or None) for name in names)


def status_manifest(manifest: Manifest, status: Mapping[str, Any]) -> Manifest:
    """Returns what is applied to write the status."""
    known = metadata_of(manifest)
    metadata = {name: known[name] for name in ("name", "namespace", "uid") if name in known}
    return {
        "apiVersion": manifest["apiVersion"],
        "kind": manifest["kind"],
        "metadata": metadata,
        "status": dict(status),
    }


def name_fields(manifest: Manifest, names: GrantedNames, generation: int) -> dict[str, Any]:
    """Returns the part of a status on the names of a route or an adapter.

    generation: of the spec that it describes.
    """
    name = name_of(manifest)
    return {
        "observedGeneration": generation,
        "clientName": name if names.has_own_name else key_of(manifest),
        "servedNames": list(names.served_names),
    }
