"""``make publish``: pushes images and chart of a release, with their bills of materials, to a
registry.

The bill of materials of an image becomes an artefact that refers to it, which tools find by the
referrers of the image.

Source: the OCI distribution specification, version 1.1, "listing referrers".
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fairlead_cli.airgap import read_release
from scripts.release import chart
from scripts.release.artefacts import LAYOUT
from scripts.release.oci.documents import EMPTY, INDEX, MANIFEST, Descriptor, descriptor, encode
from scripts.release.oci.layout import OciLayout
from scripts.release.oci.registry import Reference, RegistryClient
from scripts.release.release_run import ReleaseError, ReleaseRun

BILL = "application/vnd.cyclonedx+json"


def publish(run: ReleaseRun) -> Iterator[str]:
    """Pushes everything and yields the name of each artefact, with its digest.

    Raises ReleaseError without a registry, without artefacts, or where the chart is for another
    registry.
    """
    layout = OciLayout(run.folder / LAYOUT)
    entries = layout.entries()
    if not run.registry:
        raise ReleaseError("no registry is given: REGISTRY=HOST/PATH make publish")
    if f"{chart.REPOSITORY}:{run.version}" not in entries:
        raise ReleaseError(
            f"{run.folder} has no release {run.version}: run `make release` with the same REGISTRY first"
        )
    written, _ = read_release(run.folder / f"fairlead-{run.version}.tgz")
    if written != run.registry:
        raise ReleaseError(
            f"the chart in {run.folder} is for {written or 'no registry'}: run `REGISTRY={run.registry} make release` first"
        )
    with RegistryClient() as client:
        for name, described in client.push_entries(layout, run.registry).items():
            yield f"{run.registry}/{name}@{described['digest']}"
            if described["mediaType"] == INDEX:
                _push_bills(client, layout, run, name, described)


def _push_bills(client: RegistryClient, layout: OciLayout, run: ReleaseRun, name: str, index: Descriptor) -> None:
    component = name.rpartition(":")[0]
    repository = Reference.below(run.registry or "", component)
    for image in layout.document(index["digest"])["manifests"]:
        architecture = image["platform"]["architecture"]
        file = run.folder / "sbom" / f"{component}-{run.version}-{architecture}.cdx.json"
        _push_referrer(client, repository, {key: image[key] for key in ("mediaType", "digest", "size")}, file)


def _push_referrer(client: RegistryClient, repository: Reference, subject: Descriptor, file: Path) -> None:
    """Pushes a file as an artefact that refers to a manifest."""
    empty = file.with_name("empty.json")
    empty.write_bytes(b"{}")
    try:
        for path in (file, empty):
            client.push_blob(replace(repository, version=descriptor(path.read_bytes(), BILL)["digest"]), path)
    finally:
        empty.unlink()
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": BILL,
            "config": descriptor(b"{}", EMPTY) | {"data": "e30="},
            "layers": [descriptor(file.read_bytes(), BILL)],
            "subject": subject,
        }
    )
    digest = descriptor(manifest, MANIFEST)["digest"]
    client.push_manifest(replace(repository, version=digest), manifest, MANIFEST)
