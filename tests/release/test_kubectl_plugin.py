"""The kubectl plugin: its archive, its krew manifest, and the script in it."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from fairlead import __version__
from fairlead.distribution import WHEEL, RegisteredAddresses
from fairlead_testing.yaml_documents import load_document
from scripts.release import artefacts
from scripts.release.artefacts import build_plugin, krew_manifest, plugin_archive
from scripts.release.release_run import ROOT, ReleaseError, ReleaseRun, sha256_of


@pytest.fixture
def run(tmp_path: Path) -> ReleaseRun:
    """A release whose wheel is any bytes."""
    (tmp_path / WHEEL).write_bytes(b"wheel")
    return ReleaseRun(ROOT, tmp_path)


def test_the_manifest_names_the_archive_by_its_checksum(run: ReleaseRun) -> None:
    archive, manifest = build_plugin(run)
    document = load_document(manifest.read_text())
    assert document["metadata"]["name"] == "fairlead"
    assert document["spec"]["version"] == f"v{__version__}"
    (platform,) = document["spec"]["platforms"]
    assert (platform["sha256"], platform["uri"]) == (sha256_of(archive), archive.name)
    with tarfile.open(archive) as tar:
        assert platform["bin"] in tar.getnames()


def test_addresses_stand_in_the_manifest_once_they_are_registered() -> None:
    without = krew_manifest("1.0", "a.tar.gz", "00", RegisteredAddresses())
    assert "://" not in str(without)
    addresses = RegisteredAddresses(site="https://docs.example", releases="https://files.example/v1")
    spec = krew_manifest("1.0", "a.tar.gz", "00", addresses)["spec"]
    assert spec["homepage"] == "https://docs.example"  # type: ignore[index]
    assert spec["platforms"][0]["uri"] == "https://files.example/v1/a.tar.gz"  # type: ignore[index]


def test_the_archive_is_the_same_each_time_and_locks_what_it_installs(run: ReleaseRun) -> None:
    content = plugin_archive(run)
    assert content == plugin_archive(run)
    path = run.folder / "a.tar.gz"
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        modes = {member.name: member.mode for member in tar}
        lock = tar.extractfile("requirements.txt").read().decode()  # type: ignore[union-attr]
    assert modes == {"kubectl-fairlead": 0o755, "LICENSE": 0o644, WHEEL: 0o644, "requirements.txt": 0o644}
    assert "\nhttpx==" in lock
    assert "pytest" not in lock
    assert "kopf" not in lock


def test_the_archive_needs_the_wheel(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="make the part `wheel` first"):
        plugin_archive(ReleaseRun(ROOT, tmp_path))


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FAIRLEAD_PYTHON": str(old)}
    done = subprocess.run(
        ["sh", str(artefacts.LAUNCHER), "version"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or later" in done.stderr
    assert not (tmp_path / ".cache").exists()
