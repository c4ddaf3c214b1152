"""The images that a cluster is given: Fairlead's components as a release builds them, from the
working tree, and what the cluster cannot run without.

Names need a domain: a bare one is looked up under a public registry's.
"""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.artifacts.go_builds import build
from fairlead import __version__
from scripts.release.images.bill_of_materials import bill_of_materials, dockerfile_base
from scripts.release.images.components import (
    COMMAND_LINE,
    COMPONENTS,
    PREFIX,
    ROOT,
    ImageBuild,
    image_config,
    image_packages,
    write_descriptions,
)
from scripts.release.images.layers import OciImage, layer_store, write_archive

PAUSE = f"{PREFIX}/pause:{pinned_versions.KUBERNETES}"
LWS = f"{PREFIX}/lws:{pinned_versions.LWS}"
NEXT = "next"
"""A second tag of everything: what tests upgrade to. The same layers, so it costs nothing."""


def write_set(tag: str | None = None) -> list[OciImage]:
    """Returns the images that a cluster gets: under ``tag`` alone, or under the version and
    ``NEXT``. No pod runs the command line."""
    made = [image for image in ImageBuild(tag=tag or __version__).images() if image.component != COMMAND_LINE]
    return made if tag else [*made, *(replace(one, name=f"{one.name.rpartition(':')[0]}:{NEXT}") for one in made)]


def pause() -> OciImage:
    """Returns the image that holds the namespaces of each pod."""
    with layer_store() as store:
        layer = store.layer("pause", pinned_versions.digest("kubernetes"), _compile_pause)
        return OciImage(PAUSE, [layer], image_config("/pause"))


def lws() -> OciImage:
    """The controller of LeaderWorkerSets, which was compiled before."""
    program = pinned_versions.binaries("lws") / "lws"
    with layer_store() as store:
        layer = store.layer("lws", pinned_versions.digest("lws"), lambda root: _copy(program, root / "manager"))
        return OciImage(LWS, [layer], image_config("/manager"))


def write(folder: Path, tag: str | None = None) -> list[Path]:
    """Writes an archive per image to ``folder``, for those who load images by themselves (kind).
    Our own have ``tag``, or the version.

    Each of our own images gets a bill of materials (``.cdx.json``) and a provenance statement
    (``.provenance.json``) in the same folder. Returns the archives.
    """
    build("kind")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for image in [*write_set(tag or __version__), lws()]:
        target = folder / f"{image.name.removeprefix(f'{PREFIX}/').replace(':', '-')}.tar"
        write_archive(target, [image])
        made.append(target)
        if image.name != LWS:
            write_descriptions(image, folder, target.stem)
    return made


def write_bills(folder: Path) -> list[Path]:
    """Writes a bill of materials per component to ``folder``, for images that docker builds.

    It reads the Dockerfiles and the locks alone. Returns the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for component in COMPONENTS:
        base = dockerfile_base((ROOT / component / "Dockerfile").read_text())
        target = folder / f"{component}-{__version__}.cdx.json"
        packages = image_packages(component, base.version.partition("-")[0])
        target.write_text(bill_of_materials(f"{PREFIX}/{component}:{__version__}", [base], packages))
        made.append(target)
    return made


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
