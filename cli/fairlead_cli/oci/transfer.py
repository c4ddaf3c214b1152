"""Copies of artefacts between layouts and registries."""

from collections.abc import Mapping

from fairlead_cli.oci.documents import MANIFESTS, Descriptor, references
from fairlead_cli.oci.layout import MAX_NESTING, OciLayout
from fairlead_cli.oci.reference import Reference, parse_prefix
from fairlead_cli.oci.registry import RegistryClient, RegistryError


def pull(client: RegistryClient, source: Reference, layout: OciLayout, depth: int = 0) -> Descriptor:
    """Copies an artefact with all that it consists of to a layout; returns its descriptor.

    depth: how many indexes led to it.
    """
    if depth > MAX_NESTING:
        raise RegistryError(f"{source} is nested deeper than {MAX_NESTING} levels")
    data, media_type = client.manifest(source)
    if media_type not in MANIFESTS:
        raise RegistryError(f"{source} is of the type {media_type}, which is no OCI artefact")
    described = layout.add(data, media_type)
    try:
        parts = list(references(layout.document(described["digest"])))
    except ValueError as error:
        raise RegistryError(f"{source}: {error}") from error
    for part in parts:
        place = source.with_version(digest=part["digest"])
        if layout.path(part["digest"]).exists():
            continue
        if part["mediaType"] in MANIFESTS:
            pull(client, place, layout, depth + 1)
        elif isinstance(size := part.get("size"), int):
            client.pull_blob(place, layout.path(part["digest"]), size)
        else:
            raise RegistryError(f"{source} does not say how large {part['digest']} is")
    return described


def push_entries(client: RegistryClient, layout: OciLayout, prefix: str) -> Mapping[str, Descriptor]:
    """Copies all artefacts of a layout to a registry, each under its name below ``prefix``; returns
    name → descriptor."""
    host, path = parse_prefix(prefix)
    entries = layout.entries()
    pushed: dict[str, str] = {}
    for name, described in entries.items():
        repository, _, tag = name.rpartition(":")
        target = Reference(host, f"{path}/{repository}" if path else repository)
        for part in layout.closure(described):
            _push_part(client, layout, target.with_version(digest=part["digest"]), part, pushed)
        client.push_manifest(target.with_version(tag=tag), layout.read(described["digest"]), described["mediaType"])
    return entries


def _push_part(
    client: RegistryClient, layout: OciLayout, target: Reference, part: Descriptor, pushed: dict[str, str]
) -> None:
    """Copies a blob or a manifest. pushed: digest → repository that has the blob."""
    if part["mediaType"] in MANIFESTS:
        client.push_manifest(target, layout.read(part["digest"]), part["mediaType"])
    elif not client.has_blob(target):
        client.push_blob(target, layout.path(part["digest"]), pushed.get(part["digest"], ""))
    pushed.setdefault(part["digest"], target.repository)
