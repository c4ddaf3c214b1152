"""The kubectl plugin: an archive for every platform with Python, and its krew manifest.

The archive holds the wheel, the lock of what the wheel needs, and a script. At its first call the
script installs both into the user's cache. krew installs the archive by the manifest,
which names its SHA-256.
"""

import gzip
import io
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

from fairlead.distribution import ADDRESSES, WHEEL, RegisteredAddresses
from scripts.generators.image_locks import lock_part
from scripts.release.release_run import ReleaseError, ReleaseRun, sha256_of

LAUNCHER = Path(__file__).with_name("kubectl-fairlead.sh")
PLUGIN = "kubectl-fairlead"


def build_plugin(run: ReleaseRun) -> Iterator[Path]:
    """Writes the archive and the manifest; needs the wheel."""
    archive = run.folder / f"{PLUGIN}-{run.version}.tar.gz"
    archive.write_bytes(plugin_archive(run))
    yield archive
    manifest = run.folder / f"{PLUGIN}-{run.version}.krew.yaml"
    document = krew_manifest(run.version, archive.name, sha256_of(archive), ADDRESSES)
    manifest.write_text(yaml.safe_dump(document, sort_keys=False, width=130))
    yield manifest


def plugin_archive(run: ReleaseRun) -> bytes:
    """Returns the archive. Its members have no times and no owners."""
    wheel = run.folder / WHEEL
    if not wheel.exists():
        raise ReleaseError(f"{wheel} is missing: make the part `wheel` first")
    project = tomllib.loads((run.root / "pyproject.toml").read_text())["project"]
    lock = lock_part((run.root / "requirements" / "dev.txt").read_text(), project["dependencies"])
    launcher = LAUNCHER.read_text().replace("@VERSION@", run.version).replace("@WHEEL@", WHEEL)
    members = {
        PLUGIN: (launcher.encode(), 0o755),
        "LICENSE": ((run.root / "LICENSE").read_bytes(), 0o644),
        WHEEL: (wheel.read_bytes(), 0o644),
        "requirements.txt": (lock.encode(), 0o644),
    }
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, (content, mode) in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def krew_manifest(version: str, archive: str, sha256: str, addresses: RegisteredAddresses) -> dict[str, object]:
    """Returns the plugin's manifest.

    Without a registered address of releases, ``uri`` is the name of the file alone:
    ``kubectl krew install --manifest … --archive …`` does not read it.
    """
    spec: dict[str, object] = {"version": f"v{version}"}
    if home := addresses.site or addresses.repository:
        spec["homepage"] = home
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "fairlead"},
        "spec": spec
        | {
            "shortDescription": "Inspect LLM serving with Fairlead",
            "description": (
                "Shows models, pools and instances, explains routes and replica counts, "
                "checks an installation and follows rollouts."
            ),
            "caveats": "Needs Python 3.11 or later. The first call installs the plugin's packages, with their hashes checked.",
            "platforms": [
                {
                    "selector": {"matchExpressions": [{"key": "os", "operator": "In", "values": ["linux", "darwin"]}]},
                    "uri": f"{addresses.releases}/{archive}" if addresses.releases else archive,
                    "sha256": sha256,
                    "bin": PLUGIN,
                }
            ],
        },
    }
