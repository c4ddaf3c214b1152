"""Wheels in layers: packages without commands, in the folder of the images' Python."""

import zipfile
from pathlib import Path

import pytest

from scripts.release.images.bill_of_materials import LockedPackage
from scripts.release.images.components import SITE, check_c_library, read_member, unpack, wheel_of
from scripts.release.release_run import ReleaseError


def wheel(folder: Path, *names: str, file: str = "some_thing-1.0-py3-none-any.whl") -> Path:
    with zipfile.ZipFile(folder / file, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return folder / file


def test_packages_of_a_wheel_are_unpacked_and_its_commands_are_not(tmp_path: Path) -> None:
    path = wheel(
        tmp_path,
        *("some_thing/__init__.py", "some_thing-1.0.dist-info/METADATA"),
        *("some_thing-1.0.data/scripts/run", "some_thing-1.0.data/platlib/native.so"),
    )
    unpack(path, tmp_path / "root")
    files = {
        str(path.relative_to(tmp_path / "root" / SITE)) for path in (tmp_path / "root").rglob("*") if path.is_file()
    }
    assert files == {"some_thing/__init__.py", "some_thing-1.0.dist-info/METADATA", "native.so"}


def test_a_wheel_cannot_write_outside_the_root(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="outside"):
        unpack(wheel(tmp_path, "../outside"), tmp_path / "root")


def test_a_package_is_found_among_wheels_by_its_plain_name(tmp_path: Path) -> None:
    path = wheel(tmp_path, "program")
    assert wheel_of(LockedPackage("some-thing", "1.0", ()), tmp_path) == path
    assert read_member(path, "program") == b"program"
    with pytest.raises(ReleaseError, match="no file"):
        read_member(path, "other")
    with pytest.raises(ReleaseError, match="no wheel"):
        wheel_of(LockedPackage("some-thing", "1.1", ()), tmp_path)


def test_a_module_for_a_newer_c_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.so").write_bytes(b"\x7fELF GLIBC_2.17\0GLIBC_2.36\0")
    check_c_library(tmp_path / "old.so")
    (tmp_path / "new.so").write_bytes(b"\x7fELF GLIBC_2.17\0GLIBC_2.38\0")
    with pytest.raises(ReleaseError, match=r"new\.so wants glibc 2\.38"):
        check_c_library(tmp_path / "new.so")
