"""The lowest layer of the images: a root file system from locked Debian packages.

Packages are unpacked, not installed: no script of a package runs. What scripts would do is done
here: the folders of ``/usr`` under their short names, users, the bundle of certificates.
Licences stay; documentation, translations and what needs a library that is not there go.
"""

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from scripts.release.images.debian_packages import DebianPackage
from scripts.release.release_run import ReleaseError

_MERGED = ("bin", "lib", "lib64", "sbin")
_FOLDERS = ("dev", "etc/ssl/certs", "proc", "root", "run", "sys", "tmp", "usr/local/bin", "var/lib/dpkg/status.d")
_WITHOUT = (
    *("usr/share/doc/*/[!c]*", "usr/share/doc/*/changelog*", "usr/share/doc/*/contents", "usr/share/doc-base/*"),
    *("usr/share/man/*", "usr/share/locale/*", "usr/share/lintian/*", "usr/share/info/*", "usr/share/bug/*"),
    *("usr/share/menu/*", "usr/share/applications/*", "usr/share/pixmaps/*", "usr/share/binfmts/*"),
    *("usr/share/gcc/*", "usr/share/gdb/*", "usr/share/python3/*", "usr/lib/*/gconv/*", "etc/default/*"),
    *("usr/share/zoneinfo/right/*", "usr/share/base-files/*", "usr/share/common-licenses.d/*", "etc/update-motd.d/*"),
    *("usr/lib/python3.11/test/*", "usr/lib/python3.11/unittest/test/*", "usr/lib/python3.11/pydoc_data/*"),
    *("usr/lib/python3.11/lib2to3/*", "usr/lib/python3.11/__pycache__/*", "usr/lib/python3.11/*/__pycache__/*"),
    *(
        f"usr/lib/python3.11/lib-dynload/{name}.*"
        for name in ("nis", "_dbm", "_gdbm", "readline", "_curses", "_curses_panel", "_sqlite3", "_xx*", "_test*")
    ),
)
"""Paths that are left out."""
_USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nfairlead:x:65532:65532::/tmp:/bin/sh\n"
_GROUPS = "root:x:0:\nnogroup:x:65534:\nfairlead:x:65532:\n"
_ARMAGS = b"!<arch>\n"
_HEADER_BYTES = 60


def unpack_root(root: Path, packages: Sequence[tuple[DebianPackage, Path]]) -> None:
    """Fills ``root`` from these packages and their files."""
    for folder in (*_FOLDERS, *(f"usr/{name}" for name in _MERGED)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in _MERGED:
        (root / name).symlink_to(f"usr/{name}")
    for package, file in packages:
        _unpack(root, package, file)
    _configure(root)


def _configure(root: Path) -> None:
    """Does what the packages' scripts do on a machine."""
    for name in ("sh", "python3", "python"):
        target = "dash" if name == "sh" else "python3.11"
        (root / "usr/bin" / name).unlink(missing_ok=True)
        (root / "usr/bin" / name).symlink_to(target)
    authorities = sorted((root / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    if not authorities:
        raise ReleaseError("the package ca-certificates has no certificates")
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.write_text("".join(f"{path.read_text().rstrip()}\n" for path in authorities))
    ssl = root / "usr/lib/ssl"
    ssl.mkdir(exist_ok=True)
    for name, target in (("certs", "/etc/ssl/certs"), ("cert.pem", "/etc/ssl/certs/ca-certificates.crt")):
        (ssl / name).unlink(missing_ok=True)
        (ssl / name).symlink_to(target)
    (root / "etc/passwd").write_text(_USERS)
    (root / "etc/group").write_text(_GROUPS)
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")


def _unpack(root: Path, package: DebianPackage, file: Path) -> None:
    members = dict(_members(file.read_bytes()))
    data = next((content for name, content in members.items() if name.startswith("data.tar")), None)
    control = next((content for name, content in members.items() if name.startswith("control.tar")), None)
    if data is None or control is None:
        raise ReleaseError(f"{file.name} is no Debian package")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for entry in tar:
            _write(root, tar, entry)
    with tarfile.open(fileobj=io.BytesIO(control)) as tar:
        about = tar.extractfile("./control")
        text = about.read().decode() if about else ""
    # Scanners read the versions of images without a package manager from here.
    (root / "var/lib/dpkg/status.d" / package.name).write_text(text)


def _write(root: Path, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    name = _place(entry.name)
    if name is None or any(fnmatch(name, pattern) for pattern in _WITHOUT):
        return
    target = root / name
    if entry.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if entry.issym():
        target.symlink_to(entry.linkname)
    elif entry.islnk():
        linked = _place(entry.linkname)
        if linked is None or not (root / linked).exists():
            raise ReleaseError(f"{entry.name} is a link to {entry.linkname}, which is not there")
        target.write_bytes((root / linked).read_bytes())
        target.chmod(0o755 if entry.mode & 0o100 else 0o644)
    elif entry.isfile():
        content = tar.extractfile(entry)
        target.write_bytes(content.read() if content else b"")
        target.chmod(0o755 if entry.mode & 0o100 else 0o644)


def _place(name: str) -> str | None:
    """Returns the path of an entry below the root, with the folders of ``/usr`` merged; None for
    the root itself.

    Raises ReleaseError for a path that leads out of the root.
    """
    parts = PurePosixPath(name).parts
    if ".." in parts:
        raise ReleaseError(f"a package has a file with the path {name}")
    parts = tuple(part for part in parts if part not in ("/", "."))
    if not parts:
        return None
    return (
        "/".join(("usr", *parts) if parts[0] in _MERGED and len(parts) > 1 else parts) if parts != ("lib64",) else None
    )


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each member of an ``ar`` archive."""
    if not archive.startswith(_ARMAGS):
        raise ReleaseError("a file of a mirror is no Debian package")
    place = len(_ARMAGS)
    while place + _HEADER_BYTES <= len(archive):
        header = archive[place : place + _HEADER_BYTES]
        size = int(re.sub(rb"\D.*", b"", header[48:58]))
        place += _HEADER_BYTES
        yield header[:16].decode().strip().rstrip("/"), archive[place : place + size]
        place += size + size % 2
