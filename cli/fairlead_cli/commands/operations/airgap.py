"""``fairlead airgap``: chart, images and CRDs as one file, for clusters without internet."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

PlainHttpFlag = Annotated[
    bool, Parameter(negative=(), help="Reach registries without TLS. Those of this machine are without TLS anyway.")
]


def airgap_create(
    source: Annotated[
        str,
        Parameter(help="The chart of a release in a registry (oci://HOST/PATH:VERSION), or a folder with its files."),
    ],
    *,
    out: Annotated[Path | None, Parameter(help="The file. Default: fairlead-VERSION-airgap.tar, here.")] = None,
    image: Annotated[
        list[str] | None, Parameter(help="An image to add, such as that of an engine. May be repeated.")
    ] = None,
    plain_http: PlainHttpFlag = False,
) -> int:
    """Write an archive with the chart, the images and the CRDs of a release.

    It holds all architectures of the images, and the checksum of each file. Images of engines are
    added with `--image`, since a cluster needs only those of the engines that it runs.

    Registries ask for the credentials of `docker login` or `helm registry login`.

    Exits 0 when it was written, 2 when it could not be.
    """
    from fairlead_cli.airgap.create import create_archive

    print(create_archive(source, out, image or (), plain_http=plain_http, report=print))
    return 0


def airgap_load(
    archive: Annotated[Path, Parameter(help="The file of `fairlead airgap create`.")],
    *,
    registry: Annotated[str, Parameter(help="Registry, and the path below which everything goes: HOST[:PORT][/PATH].")],
    key: Annotated[
        Path | None, Parameter(help="Public key that ARCHIVE.sig must be made with. Default: no signature is checked.")
    ] = None,
    plain_http: PlainHttpFlag = False,
) -> int:
    """Push the content of an archive into a registry, and print the command that installs it.

    Nothing is pushed unless the archive is complete and undamaged, and with `--key` signed by its
    owner. What the registry has already is not sent again.

    Exits 0 when everything is in the registry, 2 when not.
    """
    from fairlead_cli.airgap.load import load_archive

    load_archive(archive, registry, plain_http=plain_http, report=print, key=key)
    return 0
