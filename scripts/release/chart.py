"""The chart as an OCI artefact, with the digests of the images inside.

The digests stand in a file of the chart, not in its values. Why: ``helm upgrade --reuse-values``
would keep those of the release before.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.release.oci.documents import CHART_CONFIG, CHART_CONTENT, MANIFEST, Descriptor, descriptor, encode
from scripts.release.oci.layout import OciLayout

CHART = Path(__file__).resolve().parents[2] / "charts" / "fairlead"
RELEASE_FILE = "files/release.yaml"
REPOSITORY = "charts/fairlead"
"""Repository of the chart, below the prefix of the images."""


def package_chart(version: str, digests: Mapping[str, str], registry: str | None) -> bytes:
    """Returns the chart as helm packages it, with the same bytes each time.

    version: of the chart and of the images.
    digests: component → digest of its image.
    registry: prefix of the images' names; None leaves it to the values.
    """
    head = chart_metadata(version)
    pinned: dict[str, Any] = {"images": dict(sorted(digests.items()))} | ({"registry": registry} if registry else {})
    files = {
        path.relative_to(CHART).as_posix(): path.read_bytes() for path in sorted(CHART.rglob("*")) if path.is_file()
    }
    files["Chart.yaml"] = yaml.safe_dump(head, sort_keys=False).encode()
    files[RELEASE_FILE] = b"# Written by the release of this chart.\n" + yaml.safe_dump(pinned).encode()
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("Chart.yaml", *sorted(files.keys() - {"Chart.yaml"})):
            entry = tarfile.TarInfo(f"{head['name']}/{name}")
            entry.size, entry.mode = len(files[name]), 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    zipped = io.BytesIO()
    with gzip.GzipFile(fileobj=zipped, mode="wb", compresslevel=9, filename="", mtime=0) as file:
        file.write(tarred.getvalue())
    return zipped.getvalue()


def chart_metadata(version: str) -> dict[str, Any]:
    """Returns Chart.yaml of a release."""
    head: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return head | {"version": version, "appVersion": version}


def add_chart(layout: OciLayout, version: str, package: bytes) -> Descriptor:
    """Stores a packaged chart as helm pushes it; returns the descriptor of its manifest."""
    head = chart_metadata(version)
    layout.add(encode(head), CHART_CONFIG)
    layout.add(package, CHART_CONTENT)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(encode(head), CHART_CONFIG),
        "layers": [descriptor(package, CHART_CONTENT)],
        "annotations": {
            "org.opencontainers.image.title": head["name"],
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.description": head["description"],
        },
    }
    return layout.add(encode(manifest), MANIFEST)
