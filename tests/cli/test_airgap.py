"""``fairlead airgap images``: the images of a release, as its chart names them."""

import io
import tarfile
from pathlib import Path

import pytest
import yaml

from fairlead_testing.cli.command_line import run_command_line, run_program

DIGESTS = {"gateway": f"sha256:{'a' * 64}", "operator": f"sha256:{'b' * 64}"}


def chart(folder: Path, release: object) -> str:
    """Writes a packaged chart with this `files/release.yaml`."""
    path, data = folder / "fairlead-1.2.3.tgz", yaml.safe_dump(release).encode()
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("fairlead/files/release.yaml")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize(
    ("options", "registry"), [((), "example.org/team"), (("--registry", "oci://other.example/x/"), "other.example/x")]
)
def test_each_image_has_a_line(tmp_path: Path, options: tuple[str, ...], registry: str) -> None:
    path = chart(tmp_path, {"registry": "example.org/team", "images": DIGESTS})
    lines = [f"{name} {digest} {registry}/{name}@{digest}" for name, digest in DIGESTS.items()]
    assert run_program("airgap", "images", path, *options).stdout.splitlines() == lines


@pytest.mark.parametrize("release", [{}, [], "text", {"images": ["gateway"]}, {"images": DIGESTS}])
def test_a_chart_that_names_no_images_or_no_registry_is_refused(tmp_path: Path, release: object) -> None:
    done = run_command_line("airgap", "images", chart(tmp_path, release))
    assert done.returncode == 2
    assert "fairlead-1.2.3.tgz" in done.stderr


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no chart")
    done = run_command_line("airgap", "images", str(tmp_path / "file"))
    assert done.returncode == 2
    assert "helm pull" in done.stderr
