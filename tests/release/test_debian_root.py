"""Debian packages: locks that name no host, files checked by hash, and a root without what packages
would do on a machine."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.release.images import debian_packages
from scripts.release.images.debian_packages import PACKAGES, DebianPackage, fetch, lock_path, read_lock, unpack_root
from scripts.release.release_run import ARCHITECTURES, ReleaseError


def archive(files: Mapping[str, str], links: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(text), 7
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


def deb(folder: Path, name: str, files: Mapping[str, str], **links: str) -> tuple[DebianPackage, Path]:
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": archive({"./control": f"Package: {name}\n"}, {}),
        "data.tar.xz": archive(files, links),
    }
    data = b"!<arch>\n"
    for member, content in members.items():
        data += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        data += b"\n" * (len(content) % 2)
    path = folder / f"{name}.deb"
    path.write_bytes(data)
    return DebianPackage(name, "1", hashlib.sha256(data).hexdigest(), len(data), f"pool/{name}.deb"), path


CERTIFICATES = {"./usr/share/ca-certificates/mozilla/b.crt": "B\n", "./usr/share/ca-certificates/mozilla/a.crt": "A"}


def test_a_root_has_its_folders_merged_and_no_documentation(tmp_path: Path) -> None:
    given = [
        deb(tmp_path, "ca", CERTIFICATES),
        deb(
            tmp_path,
            "tool",
            {
                "./bin/tool": "run",
                "./usr/share/man/man1/tool.1": "x",
                "./usr/share/doc/tool/copyright": "free",
                "./usr/share/doc/tool/NEWS": "x",
                "./usr/lib/python3.11/lib-dynload/_sqlite3.so": "x",
            },
        ),
    ]
    root = tmp_path / "root"
    unpack_root(root, given)
    assert (root / "usr/bin/tool").read_text() == "run"
    assert (root / "bin").is_symlink()
    assert (root / "usr/share/doc/tool/copyright").exists()
    for gone in ("usr/share/man/man1/tool.1", "usr/share/doc/tool/NEWS", "usr/lib/python3.11/lib-dynload/_sqlite3.so"):
        assert not (root / gone).exists()
    assert (root / "etc/ssl/certs/ca-certificates.crt").read_text() == "A\nB\n"
    assert (root / "var/lib/dpkg/status.d/tool").read_text() == "Package: tool\n"


def test_a_package_cannot_write_outside_the_root(tmp_path: Path) -> None:
    given = [deb(tmp_path, "bad", {"../outside": "x"})]
    with pytest.raises(ReleaseError, match="outside"):
        unpack_root(tmp_path / "root", given)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_lock_has_every_package_with_its_hash_and_no_host(architecture: str) -> None:
    locked = read_lock(architecture)
    assert {package.name for package in locked} == set(PACKAGES)
    assert [package.name for package in locked] == sorted(PACKAGES)
    assert "://" not in lock_path(architecture).read_text()
    for package in locked:
        assert package.path.startswith("pool/")
        assert package.path.endswith((f"_{architecture}.deb", "_all.deb"))


def test_architectures_have_the_same_versions() -> None:
    versions = [
        {package.name: package.version for package in read_lock(architecture)} for architecture in ARCHITECTURES
    ]
    assert versions[0] == versions[1]


def test_a_file_is_taken_only_with_the_hash_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, path = deb(tmp_path, "tool", {"./bin/tool": "run"})
    served = {f"http://one/{package.path}": b"other", f"http://two/{package.path}": path.read_bytes()}
    monkeypatch.setenv("FAIRLEAD_DEBIAN_MIRRORS", "http://one http://two/")
    monkeypatch.setattr(debian_packages, "_download", served.get)
    fetched = fetch(package, tmp_path / "cache")
    assert fetched.read_bytes() == path.read_bytes()
    served.clear()
    assert fetch(package, tmp_path / "cache") == fetched
    with pytest.raises(ReleaseError, match="lock-images"):
        fetch(package, tmp_path / "empty")
