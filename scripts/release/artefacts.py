"""Parts of a release that a registry serves: images and chart as one OCI layout.

- ``oci/``: every image with an index of its architectures, and the chart.
- ``fairlead-VERSION.tgz``: the chart, for installations from a file.
- ``sbom/``: bill of materials and provenance of each image and architecture.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scripts.release import chart
from scripts.release.images.components import ImageBuild
from scripts.release.images.descriptions import write_descriptions
from scripts.release.images.oci_images import OciImage, distinct_layers, image_documents, index_document
from scripts.release.oci.documents import CONFIG, INDEX, MANIFEST, Descriptor
from scripts.release.oci.layout import OciLayout
from scripts.release.progress import progress_step
from scripts.release.release_run import ReleaseError, ReleaseRun

LAYOUT = "oci"
"""Folder of the layout in a release. The names of its blobs are their checksums."""


def build_images(run: ReleaseRun) -> Iterator[Path]:
    """Writes the images of all architectures to the layout, and what describes them."""
    images: list[OciImage] = []
    for architecture in run.architectures:
        with progress_step(f"images for {architecture}, in all"):
            images += ImageBuild(tag=run.version).images(architecture)
    layout = OciLayout(run.folder / LAYOUT)
    with progress_step("layout"):
        add_images(layout, images, run.version)
    yield layout.folder / "index.json"
    folder = run.folder / "sbom"
    folder.mkdir(exist_ok=True)
    for image in images:
        yield from write_descriptions(image, folder, f"{image.component}-{run.version}-{image.architecture}")


def build_chart(run: ReleaseRun) -> Iterator[Path]:
    """Writes the chart with the digests of the images to the layout, and as a file.

    Raises ReleaseError where the images of this version are not in the layout.
    """
    layout = OciLayout(run.folder / LAYOUT)
    yield add_chart(layout, run.version, run.registry)
    yield layout.folder / "index.json"


def add_images(layout: OciLayout, images: Sequence[OciImage], version: str) -> None:
    """Makes a layout hold these images under one version, and nothing else."""
    for layer in distinct_layers(images):
        layout.add_file(layer.path, f"sha256:{layer.digest}")
    entries: dict[str, Descriptor] = {}
    for component in sorted({image.component for image in images}):
        made = [image for image in images if image.component == component]
        for image in made:
            config, manifest = image_documents(image)
            layout.add(config, CONFIG)
            layout.add(manifest, MANIFEST)
        notes = {"org.opencontainers.image.title": f"fairlead {component}"}
        notes |= {"org.opencontainers.image.version": version}
        entries[f"{component}:{version}"] = layout.add(index_document(made, notes), INDEX)
    layout.set_entries(entries)
    layout.prune()


def add_chart(layout: OciLayout, version: str, registry: str | None) -> Path:
    """Adds the chart to a layout that has the images of this version; returns the packaged file,
    which is in the same folder.

    registry: prefix of the images' names; None leaves it to the values.
    """
    entries = layout.entries()
    digests = image_digests(entries, version)
    packaged = chart.package_chart(version, digests, registry)
    file = layout.folder.parent / f"fairlead-{version}.tgz"
    file.write_bytes(packaged)
    name = f"{chart.REPOSITORY}:{version}"
    layout.set_entries({**entries, name: chart.add_chart(layout, version, packaged)})
    layout.prune()
    return file


def image_digests(entries: Mapping[str, Descriptor], version: str) -> dict[str, str]:
    """Returns component → digest of its image in a layout. Raises ReleaseError where there is
    none."""
    found = {
        name.removesuffix(f":{version}"): described["digest"]
        for name, described in entries.items()
        if name.endswith(f":{version}") and not name.startswith(f"{chart.REPOSITORY}:")
    }
    if not found:
        raise ReleaseError(f"there are no images of version {version}: make the part `images` first")
    return found
