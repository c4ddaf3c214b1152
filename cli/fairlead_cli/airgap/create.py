"""``fairlead airgap create``: writes the archive of a release, from files or from a registry."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fairlead.errors import BadInput
from fairlead_cli.airgap.archive import CHART, ReleasedChart, read_chart, write_archive
from fairlead_cli.oci.documents import Descriptor
from fairlead_cli.oci.layout import LayoutError, OciLayout
from fairlead_cli.oci.reference import Reference, parse_prefix
from fairlead_cli.oci.registry import RegistryClient
from fairlead_cli.oci.transfer import pull


def create_archive(
    source: str, out: Path | None, images: Sequence[str], *, plain_http: bool, report: Callable[[str], None]
) -> Path:
    """Writes an archive and returns its path.

    source: folder of a release, or the name of its chart in a registry.
    out: the file; None for one in this folder, named by the version.
    images: names of further images, such as those of engines.
    report: takes a line for each artefact.
    """
    with tempfile.TemporaryDirectory(dir=out.parent if out else None) as work, RegistryClient(plain_http) as client:
        folder = Path(source)
        if folder.is_dir():
            layout = _copied(_release_layout(folder), OciLayout(Path(work)))
            chart = read_chart(layout)
        else:
            layout = OciLayout(Path(work))
            chart = _pulled(client, Reference.parse(source), layout, report)
        entries = layout.entries()
        for name in images:
            reference = Reference.parse(name)
            report(f"pulling {reference}")
            tag = reference.tag or reference.digest.removeprefix("sha256:")[:12] or "latest"
            entries[f"{reference.repository}:{tag}"] = pull(client, reference, layout)
        layout.set_entries(entries)
        target = out or Path(f"fairlead-{chart.version}-airgap.tar")
        write_archive(layout, target)
    return target


def _release_layout(folder: Path) -> OciLayout:
    """The layout in the folder of a release, or the folder itself."""
    found = next((path for path in (folder / "oci", folder) if (path / "index.json").is_file()), None)
    if found is None:
        raise BadInput(f"{folder} has no images and chart", hint="`make release` writes them to dist/.")
    return OciLayout(found)


def _copied(source: OciLayout, target: OciLayout) -> OciLayout:
    """A layout with the same artefacts, to which others can be added."""
    try:
        source.verify()
        for described in source.entries().values():
            for part in source.closure(described):
                target.add_file(source.path(part["digest"]), part["digest"])
    except LayoutError as error:
        raise BadInput(f"{source.folder} is incomplete: {error}") from error
    target.set_entries(source.entries())
    return target


def _pulled(
    client: RegistryClient, reference: Reference, layout: OciLayout, report: Callable[[str], None]
) -> ReleasedChart:
    """Pulls a chart and the images whose digests it has."""
    report(f"pulling {reference}")
    version = reference.tag or "0"
    layout.set_entries({f"{CHART}:{version}": pull(client, reference, layout)})
    chart = read_chart(layout)
    if not chart.images:
        raise BadInput(f"{reference} names no digests of images", hint="Name the chart of a release.")
    version = chart.metadata_version
    entries: dict[str, Descriptor] = {f"{CHART}:{version}": chart.descriptor}
    prefix = chart.registry or _prefix_of(reference)
    host, path = parse_prefix(prefix)
    for component, digest in chart.images.items():
        image = Reference(host, f"{path}/{component}" if path else component, digest=digest)
        report(f"pulling {image}")
        entries[f"{component}:{version}"] = pull(client, image, layout)
    layout.set_entries(entries)
    return read_chart(layout)


def _prefix_of(chart: Reference) -> str:
    """The prefix of a chart and of its images."""
    return f"{chart.host}/{chart.repository.removesuffix(CHART).rstrip('/')}".rstrip("/")
