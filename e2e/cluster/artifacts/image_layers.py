"""Contents of image layers: an interpreter with its libraries, the locked dependencies of a
component, the component.

The interpreter is the one that runs this module; the environment's compiled wheels are for it. It
moves to ``/usr/local``, where the official Python images have theirs. Its shared libraries are
those that the dynamic linker finds on this machine.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Collection
from pathlib import Path

from e2e.cluster.artifacts.pinned_versions import ROOT
from e2e.cluster.progress import ClusterError

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE = Path(f"usr/local/lib/python{VERSION}/site-packages")
_LIBRARIES = Path("usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu")
_COMMANDS = (
    "dash",
    "cat",
    "ls",
    "sleep",
    "echo",
    "date",
    "env",
    "id",
    "kill",
    "mkdir",
    "rm",
    "cp",
    "touch",
    "head",
    "tail",
    "wc",
)
_ALWAYS = ("libgcc_s.so.1", "libstdc++.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1")
"""Opened by name at run time, or wanted by compiled wheels and programs; the official images have
them."""
_WITHOUT = (
    *(
        "__pycache__",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "tkinter",
        "turtledemo",
        "config-*",
        "*-packages",
    ),
    *("_tkinter.*", "_test*", "_ctypes_test*", "xx*"),
)
_USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nfairlead:x:65532:65532::/tmp:/bin/sh\n"
_GROUPS = "root:x:0:\nnogroup:x:65534:\nfairlead:x:65532:\n"


def copy_interpreter(root: Path) -> None:
    """The first layer: interpreter, standard library, a shell and a few commands."""
    for folder in (
        "usr/bin",
        "usr/local/bin",
        "etc/ssl/certs",
        "proc",
        "sys",
        "dev",
        "run",
        "var",
        "tmp",
        "root",
        str(_LIBRARIES),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "lib", "sbin"):
        (root / link).symlink_to("usr/bin" if link == "sbin" else f"usr/{link}")
    for command in _COMMANDS:
        if found := shutil.which(command):
            shutil.copy(found, root / "usr/bin" / command)
    (root / "usr/bin/sh").symlink_to("dash")
    program = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    shutil.copy(program, root / f"usr/local/bin/python{VERSION}")
    for link in ("python3", "python"):
        (root / "usr/local/bin" / link).symlink_to(f"python{VERSION}")
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    shutil.copytree(library, root / SITE.parent, ignore=shutil.ignore_patterns(*_WITHOUT), symlinks=True)
    (root / SITE).mkdir()
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        shutil.copy(authorities, root / "etc/ssl/certs")
    (root / "etc/passwd").write_text(_USERS)
    (root / "etc/group").write_text(_GROUPS)
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    for name in _ALWAYS:
        shutil.copy(Path("/") / _LIBRARIES / name, root / _LIBRARIES)
    wanted, loaders = _wanted(root)
    for name, place in wanted.items():
        shutil.copy(place, root / _LIBRARIES / name)
    for loader in loaders:  # its path is part of every program: /lib64/… on x86-64, /lib/… on arm64
        (root / "usr" / loader.parent.name).mkdir(exist_ok=True)
        shutil.copy(loader, root / "usr" / loader.parent.name / loader.name)
        if not (root / loader.parent.name).exists():
            (root / loader.parent.name).symlink_to(f"usr/{loader.parent.name}")
    if shutil.which("strip"):  # interpreters built from source carry 20 MB of symbols
        stripped = [path for path in root.rglob("*.so*") if path.is_file() and not path.is_symlink()]
        subprocess.run(["strip", "--strip-unneeded", *map(str, stripped)], check=True, capture_output=True)
    _compile(root)


def copy_dependencies(root: Path, requirements: Path, base: Collection[str]) -> None:
    """The second: what ``requirements`` names, as it is installed here; libraries that neither the
    wheels nor ``base`` have."""
    (root / SITE).mkdir(parents=True)
    for name, versions in locked_requirements(requirements).items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another interpreter or system: its line has a marker
        if found.version not in versions:
            raise ClusterError(
                f"{name} {found.version} is installed, {requirements.name} wants another: run `make env`"
            )
        for file in found.files or ():
            inside = Path(os.path.normpath(file))
            if ".." not in inside.parts and "__pycache__" not in inside.parts and inside.parts[0] != "bin":
                target = root / SITE / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(found.locate_file(file)), target)
    more = {name: place for name, place in _wanted(root)[0].items() if name not in base}
    for name, place in more.items():
        (root / _LIBRARIES).mkdir(parents=True, exist_ok=True)
        shutil.copy(place, root / _LIBRARIES / name)
    _compile(root)


def copy_component(root: Path, compiled: Path | None) -> None:
    """The third: our own wheel, over it the compiled data plane where there is one."""
    site = root / SITE
    site.mkdir(parents=True)
    made = root / "made"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(made.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    shutil.rmtree(made)
    if compiled is not None:
        shutil.copytree(compiled, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "complete"))
    _compile(root)


def locked_requirements(requirements: Path) -> dict[str, set[str]]:
    """Name → versions of a lock file: several where they differ by a marker."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", requirements.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def _wanted(root: Path) -> tuple[dict[str, Path], set[Path]]:
    """Shared libraries that what lies below ``root`` wants and does not have, name → place here;
    and the loaders it names."""
    objects = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and _is_elf(path)]
    told = subprocess.run(["ldd", *map(str, objects)], check=False, capture_output=True, text=True).stdout
    inside = {path.name for path in objects}
    pairs = [(name, Path(place)) for name, place in re.findall(r"^\s+(\S+) => (/\S+)", told, re.MULTILINE)]
    outside = {name: place for name, place in pairs if name not in inside and not place.is_relative_to(root)}
    return outside, {Path(found) for found in re.findall(r"^\s+(/\S+) \(0x", told, re.MULTILINE)}


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _compile(root: Path) -> None:
    """Writes byte code without source times.

    Why: no process may write to the layer later, and layers have no times.
    """
    mode = ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", *mode, str(root / SITE.parent)], check=False, capture_output=True
    )
