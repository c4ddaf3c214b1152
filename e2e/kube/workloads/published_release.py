"""Builds of Fairlead, published to a registry as a release is."""

from dataclasses import dataclass
from pathlib import Path

from scripts.release.artefacts import LAYOUT, build_chart, build_images, image_digests
from scripts.release.chart import REPOSITORY
from scripts.release.images.oci_images import machine_architecture
from scripts.release.oci.layout import OciLayout
from scripts.release.publish import publish
from scripts.release.release_run import ROOT, ReleaseRun


@dataclass(frozen=True, slots=True)
class PublishedRelease:
    """A build in a registry.

    prefix: registry and path of its artefacts.
    chart_digest: of the chart's manifest.
    images: component → digest.
    """

    version: str
    prefix: str
    chart_digest: str
    images: dict[str, str]

    @property
    def chart(self) -> str:
        """Returns the chart's address, by digest."""
        return f"oci://{self.prefix}/{REPOSITORY}@{self.chart_digest}"

    @property
    def helm_words(self) -> tuple[str, ...]:
        """Returns how helm gets the chart from a registry of this machine."""
        return (self.chart, "--plain-http")


def publish_build(folder: Path, prefix: str, version: str) -> PublishedRelease:
    """Builds images of this machine's architecture and the chart from the working tree, and
    publishes them."""
    folder.mkdir(parents=True, exist_ok=True)
    run = ReleaseRun(ROOT, folder, version, (machine_architecture(),), prefix)
    for _ in (*build_images(run), *build_chart(run), *publish(run)):
        pass
    entries = OciLayout(folder / LAYOUT).entries()
    return PublishedRelease(
        version, prefix, entries[f"{REPOSITORY}:{version}"]["digest"], image_digests(entries, version)
    )
