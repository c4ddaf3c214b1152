"""``fairlead airgap``: carries a release to a cluster without internet."""

import tarfile
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from fairlead.errors import BadInput

_RELEASE_FILE: Final = "fairlead/files/release.yaml"
_MAX_RELEASE_BYTES: Final = 64 << 10


def airgap_images(
    chart: Annotated[Path, Parameter(help="The chart of a release, as `helm pull` writes it.")],
    *,
    registry: Annotated[
        str | None, Parameter(help="Registry and path that have the images. Default: those that the chart names.")
    ] = None,
) -> int:
    """Print the images that a release consists of: component, digest and address, in a line each.

    `oras copy` takes the addresses. Images of engines are not among them, since a cluster needs
    only those of the engines that it runs.

    Exits 0 when they were printed, 2 when the chart is none of a release.
    """
    written, images = read_release(chart)
    prefix = registry or written
    if not prefix:
        raise BadInput(f"{chart} names no registry", field="--registry", hint="Name the one that has the images.")
    for component, digest in images.items():
        print(component, digest, f"{prefix.removeprefix('oci://').rstrip('/')}/{component}@{digest}")
    return 0


def read_release(chart: Path) -> tuple[str, dict[str, str]]:
    """Returns what the packaged chart of a release names: the registry of its images, empty where
    it names none, and component → digest.

    Raises BadInput for another file.
    """
    import yaml

    try:
        with tarfile.open(chart, "r:gz") as tar:
            member = tar.extractfile(_RELEASE_FILE)
            found = yaml.safe_load(member.read(_MAX_RELEASE_BYTES) if member else b"")
        images = {str(name): str(digest) for name, digest in found["images"].items()}
        return str(found.get("registry", "")), images
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        tarfile.TarError,
        yaml.YAMLError,
    ) as error:
        hint = "Get it with `helm pull oci://REGISTRY/charts/fairlead`, or from the folder of `make release`."
        raise BadInput(f"{chart} is no chart of a release: {error}", field="chart", hint=hint) from error
