"""Publishing: images, chart and bills of materials reach the registry that the chart names."""

import json
from pathlib import Path

import pytest

from fairlead_testing.http.oci_registry import memory_registry
from scripts.release.artefacts import add_chart, add_images
from scripts.release.cli import BILL, publish
from scripts.release.images.layers import OciImage, write_layer
from scripts.release.oci import OciLayout
from scripts.release.release_run import ReleaseError, ReleaseRun

VERSION = "1.2.3"


def release(folder: Path, registry: str | None) -> OciLayout:
    (folder / "root").mkdir(parents=True)
    (folder / "root" / "file").write_text("text")
    layer = write_layer(folder / "root", folder / "layer.tar.gz")
    layout = OciLayout(folder / "dist" / "oci")
    add_images(layout, [OciImage(f"x/sim:{VERSION}", [layer], {}, arch) for arch in ("amd64", "arm64")], VERSION)
    add_chart(layout, VERSION, registry)
    (folder / "dist" / "sbom").mkdir()
    for architecture in ("amd64", "arm64"):
        (folder / "dist" / "sbom" / f"sim-{VERSION}-{architecture}.cdx.json").write_text(f'"{architecture}"')
    return layout


def run(folder: Path, registry: str | None) -> ReleaseRun:
    return ReleaseRun(Path(), folder / "dist", VERSION, registry=registry)


def test_images_and_chart_are_named_by_digest_and_bills_refer_to_images(tmp_path: Path) -> None:
    with memory_registry() as registry:
        prefix = f"{registry.address}/team"
        layout = release(tmp_path, prefix)
        published = list(publish(run(tmp_path, prefix)))
        entries = layout.entries()
        assert published == [f"{prefix}/{name}@{described['digest']}" for name, described in entries.items()]
        images = layout.document(entries[f"sim:{VERSION}"]["digest"])["manifests"]
        referrers = [
            json.loads(data)
            for (repository, name), (data, _) in registry.manifests.items()
            if repository == "team/sim" and name.startswith("sha256:") and b"subject" in data
        ]
        assert {referrer["subject"]["digest"] for referrer in referrers} == {image["digest"] for image in images}
        assert {referrer["artifactType"] for referrer in referrers} == {BILL}
        bills = {registry.blobs["team/sim", referrer["layers"][0]["digest"]] for referrer in referrers}
        assert bills == {b'"amd64"', b'"arm64"'}


@pytest.mark.parametrize(
    ("made_for", "given", "message"),
    [
        ("example.org/team", None, "no registry is given"),
        ("example.org/team", "example.org/other", "is for example.org/team"),
        (None, "example.org/team", "is for no registry"),
    ],
)
def test_a_chart_for_another_registry_is_not_published(
    tmp_path: Path, made_for: str | None, given: str | None, message: str
) -> None:
    release(tmp_path, made_for)
    with pytest.raises(ReleaseError, match=message):
        list(publish(run(tmp_path, given)))


def test_without_a_release_nothing_is_published(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    with pytest.raises(ReleaseError, match="make release"):
        list(publish(run(tmp_path, "example.org/team")))
