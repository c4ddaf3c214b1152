"""Locked wheels of an architecture, and layers from them.

pip chooses and downloads the wheels, by hash, also for another architecture than this machine's.
They are unpacked here, so that no file depends on the pip that installs it.
"""

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from scripts.release.images.bill_of_materials import LockedPackage
from scripts.release.progress import progress_step
from scripts.release.release_run import ReleaseError

PYTHON = "3.11"
SITE = Path(f"usr/local/lib/python{PYTHON}/dist-packages")
"""Folder of packages that are not Debian's, on the path of Debian's interpreter."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBC = range(36, 16, -1)
"""Minor versions of glibc 2 whose wheels run on the images' Debian, the newest first."""


def download(packages: Sequence[LockedPackage], architecture: str, folder: Path) -> None:
    """Downloads the wheels of these packages into ``folder``.

    Raises ReleaseError where one has no wheel for the architecture.
    """
    lines = [
        f"{one.name}=={one.version} {' '.join(f'--hash=sha256:{value}' for value in one.hashes)}" for one in packages
    ]
    folder.mkdir(parents=True)
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(lines) + "\n")
    machine = MACHINES[architecture]
    platforms = [*(f"manylinux_2_{minor}_{machine}" for minor in _GLIBC), f"manylinux2014_{machine}"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--implementation", "cp", "--python-version", PYTHON, "--disable-pip-version-check"]
    command += [word for abi in ("cp311", "abi3", "none") for word in ("--abi", abi)]
    command += [word for name in platforms for word in ("--platform", name)]
    with progress_step(f"{len(packages)} wheels for {architecture}"):
        done = subprocess.run(
            [*command, "-d", str(folder), "-r", str(requirements)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise ReleaseError(f"pip cannot download the locked wheels for {architecture}:\n{done.stderr[-2_000:]}")
    requirements.unlink()


def wheel_of(package: LockedPackage, folder: Path) -> Path:
    """Returns the wheel of a package among downloaded ones.

    Raises ReleaseError where it is not there.
    """
    wanted = (_normal(package.name), package.version)
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        if (_normal(name), version.replace("_", "-")) == wanted:
            return path
    raise ReleaseError(f"{folder} has no wheel of {package.name} {package.version}")


def unpack(wheel: Path, root: Path) -> None:
    """Unpacks the packages of a wheel below ``root``; commands are left out."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            place = _place(entry.filename)
            if place is None or entry.is_dir():
                continue
            target = root / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))
            target.chmod(0o755 if entry.external_attr >> 16 & 0o100 else 0o644)


def read_member(wheel: Path, name: str) -> bytes:
    """Returns the file of this name in a wheel, in whatever folder it lies.

    Raises ReleaseError where it is not there.
    """
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            if PurePosixPath(entry).name == name:
                return archive.read(entry)
    raise ReleaseError(f"{wheel.name} has no file {name}")


def compile_bytecode(root: Path, folder: str | Path) -> None:
    """Writes byte code of the Python files below a folder of ``root``, without source times.

    Why: no process may write to the layer later, and layers have no times.
    Raises ReleaseError where this Python writes byte code of another version.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON:
        raise ReleaseError(
            f"images have Python {PYTHON}, whose byte code this one cannot write: use PYTHON=python{PYTHON}"
        )
    mode = ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    command = [sys.executable, "-m", "compileall", "-q", *mode, str(root / folder)]
    # Sets in byte code are in the order of their hashes.
    subprocess.run(command, check=False, capture_output=True, env={"PYTHONHASHSEED": "0"})


def check_c_library(program: Path) -> None:
    """Checks that a compiled file loads with the images' C library.

    Raises ReleaseError where it was made on a machine with a newer one and uses what that added.
    """
    newest = max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", program.read_bytes())), default=0)
    if newest > _GLIBC.start:
        raise ReleaseError(
            f"{program.name} wants glibc 2.{newest}, and the images have 2.{_GLIBC.start}: "
            "build the release on a system with an older C library, or set FAIRLEAD_COMPILED=0"
        )


def _place(name: str) -> Path | None:
    """Returns where a file of a wheel goes below the root; None for what no image needs."""
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute():
        raise ReleaseError(f"a wheel has a file with the path {name}")
    if not parts[0].endswith(".data"):
        return SITE.joinpath(*parts)
    if parts[1] in ("purelib", "platlib"):
        return SITE.joinpath(*parts[2:])
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
