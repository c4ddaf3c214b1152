"""Bills of materials: the packages and the base of an image, as CycloneDX 1.6 JSON.

They are made from the locks of the image, not from its layers. The same locks, base and name give
the same bytes: there is no time in them, and the serial number follows from the content.

The base of an image that docker builds is one component. Its publisher describes its own files.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.markers import Marker

from scripts.generators.package_licences import licence_expression
from scripts.release.images.debian_packages import DebianPackage
from scripts.release.release_run import ReleaseError

HASH_PROPERTY = "fairlead:lock:sha256"
"""Property of a package: the digest of one file that the lock accepts."""
_PLATFORM = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
_BLOCK = re.compile(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)(?: ; ([^\\\n]+?))? ?\\?\n((?:[ \t].*\n)*)", re.MULTILINE)
_FROM = re.compile(r"^FROM (\S+?):(\S+?)@sha256:([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """A package of a lock file. hashes: SHA-256 of each file of this version that it accepts."""

    name: str
    version: str
    hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageBase:
    """A part of the lowest layer of an image, with the SHA-256 of its manifest or file.

    type: ``oci`` for an image of a registry, ``deb`` for a package of Debian.
    architecture: of a package.
    """

    name: str
    version: str
    digest: str
    type: str = "oci"
    architecture: str = ""

    @property
    def purl(self) -> PackageURL:
        """The package URL. Those of images have the digest as their version."""
        if self.type == "oci":
            return PackageURL("oci", None, self.name, f"sha256:{self.digest}", {"tag": self.version})
        return PackageURL(self.type, "debian", self.name, self.version, {"arch": self.architecture})


def locked_packages(lock: str, python_version: str) -> list[LockedPackage]:
    """Returns the packages of a lock that an image with this Python installs, by name.

    python_version: the full version, such as 3.11.16.
    Raises ReleaseError for a package without a hash.
    """
    environment = {
        **_PLATFORM,
        "python_full_version": python_version,
        "python_version": ".".join(python_version.split(".")[:2]),
    }
    return sorted(_installed(lock, environment), key=lambda package: package.name)


def dockerfile_base(dockerfile: str) -> ImageBase:
    """Returns the base of the last stage of a Dockerfile.

    Raises ReleaseError where that has a tag without a digest.
    """
    stages = [line for line in dockerfile.splitlines() if line.startswith("FROM ")]
    found = _FROM.fullmatch(stages[-1]) if stages else None
    if found is None:
        raise ReleaseError(f"the last FROM has no tag and digest: {stages[-1:]}; add @sha256:… to it")
    return ImageBase(found[1], found[2], found[3])


def debian_base(package: DebianPackage, architecture: str) -> ImageBase:
    return ImageBase(package.name, package.version, package.sha256, "deb", architecture)


def bill_of_materials(
    image: str,
    bases: Sequence[ImageBase],
    packages: Sequence[LockedPackage],
    *,
    kind: ComponentType = ComponentType.CONTAINER,
) -> str:
    """Returns the bill of an image, or of another thing of this kind, as CycloneDX JSON.

    image: its name with the tag.
    """
    name, _, tag = image.rpartition(":")
    root = Component(name=name, version=tag, type=kind, bom_ref=image)
    parts = [*map(_base_component, bases), *map(_package_component, packages)]
    seed = hashlib.sha256(repr((image, list(bases), list(packages))).encode()).hexdigest()
    bom = Bom(components=parts, serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{image}#{seed}"))
    bom.metadata.component = root
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the library's default is the time of the call
    bom.register_dependency(root, parts)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _installed(lock: str, environment: dict[str, str]) -> Iterator[LockedPackage]:
    for name, version, marker, rest in _BLOCK.findall(lock):
        hashes = tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", rest)))
        if not hashes:
            raise ReleaseError(f"{name} {version} has no hash in the lock: run `make lock`")
        if not marker or Marker(marker).evaluate(environment):
            yield LockedPackage(name, version, hashes)


def _base_component(base: ImageBase) -> Component:
    return Component(
        name=base.name,
        version=base.version,
        type=ComponentType.CONTAINER if base.type == "oci" else ComponentType.LIBRARY,
        bom_ref=f"base:{base.name}",
        purl=base.purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=base.digest)],
    )


def _package_component(package: LockedPackage) -> Component:
    purl = PackageURL("pypi", None, package.name, package.version)
    licence = licence_expression(package.name)
    return Component(
        name=package.name,
        version=package.version,
        bom_ref=purl.to_string(),
        purl=purl,
        licenses=[LicenseExpression(licence)] if licence else [],
        properties=[Property(name=HASH_PROPERTY, value=value) for value in package.hashes],
    )
