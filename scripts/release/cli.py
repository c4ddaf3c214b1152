"""``make release``: writes the files of a release into ``dist/``.

A part is a function of :class:`ReleaseRun` that writes files and returns them. Parts run in the
order of ``PARTS``. Name some to make only these.

The last parts describe the files that the earlier ones wrote.

``make publish``: pushes images and chart of a release, with their bills of materials, to a
registry.

The bill of materials of an image becomes an artefact that refers to it, which tools find by the
referrers of the image.

Source: the OCI distribution specification, version 1.1, "listing referrers".
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from fairlead import __version__
from fairlead.errors import FairleadError
from fairlead_cli.airgap import read_release
from scripts.release import artefacts
from scripts.release.artefacts import LAYOUT, build_chart, build_images, build_plugin, build_wheel, write_texts
from scripts.release.oci import (
    EMPTY,
    INDEX,
    MANIFEST,
    Descriptor,
    OciLayout,
    Reference,
    RegistryClient,
    descriptor,
    encode,
)
from scripts.release.release_run import ARCHITECTURES, ROOT, Part, ReleaseError, ReleaseRun
from scripts.release.signed_files import sign_release

BILL = "application/vnd.cyclonedx+json"

PARTS: Final[dict[str, Part]] = {
    "wheel": build_wheel,
    "kubectl-plugin": build_plugin,
    "images": build_images,
    "chart": build_chart,
    "texts": write_texts,
    "signatures": sign_release,
}
"""Part → what makes it."""


def publish(run: ReleaseRun) -> Iterator[str]:
    """Pushes everything and yields the name of each artefact, with its digest.

    Raises ReleaseError without a registry, without artefacts, or where the chart is for another
    registry.
    """
    layout = OciLayout(run.folder / LAYOUT)
    entries = layout.entries()
    if not run.registry:
        raise ReleaseError("no registry is given: REGISTRY=HOST/PATH make publish")
    if f"{artefacts.REPOSITORY}:{run.version}" not in entries:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all files were written, 1 when a part failed."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python scripts/release",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="where to (dist)")
    parser.add_argument(
        *("--architecture", "-a"),
        action="append",
        choices=ARCHITECTURES,
        help="of the images (default: all; repeatable)",
    )
    parser.add_argument("--version", default=__version__, help="of images and chart (%(default)s)")
    parser.add_argument(
        *("--registry", "-r"),
        default=os.environ.get("REGISTRY"),
        metavar="PREFIX",
        help="registry of the images, for the chart",
    )
    parser.add_argument(
        "--publish", action="store_true", help="push images and chart to the registry, and make nothing"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    run = ReleaseRun(ROOT, folder, options.version, options.architecture or ARCHITECTURES, options.registry or None)
    try:
        if options.publish:
            for name in publish(run):
                print(name, flush=True)
            return 0
        for name, part in PARTS.items():
            if not options.parts or name in options.parts:
                for path in part(run):
                    print(path.relative_to(folder), flush=True)
    except (ReleaseError, FairleadError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0
