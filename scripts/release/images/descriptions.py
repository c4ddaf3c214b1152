"""Descriptions of an image: its bill of materials and its provenance."""

import platform
from pathlib import Path

from scripts.release.images.bill_of_materials import ImageBase, bill_of_materials, debian_base
from scripts.release.images.components import (
    COMPILED,
    DEV_LOCK,
    ROOT,
    image_packages,
    is_compiled,
    lock_of,
    sources_digest,
)
from scripts.release.images.debian_packages import lock_path, read_lock
from scripts.release.images.oci_images import OciImage, manifest_digest
from scripts.release.provenance import file_material, provenance, source_material


def write_descriptions(image: OciImage, folder: Path, stem: str) -> list[Path]:
    """Writes ``STEM.cdx.json`` and ``STEM.provenance.json`` of an image to ``folder``."""
    bill, statement = folder / f"{stem}.cdx.json", folder / f"{stem}.provenance.json"
    bill.write_text(image_bill(image))
    statement.write_text(image_provenance(image))
    return [bill, statement]


def image_bill(image: OciImage) -> str:
    """Returns the bill of materials of an image: Debian's packages and wheels."""
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
    return provenance(image.name, manifest_digest(image), parameters, materials)
