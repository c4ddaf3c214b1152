"""Debian packages of the images: their list, their lock, and the files that the lock names.

A lock has a line per package: name, version, SHA-256, size in bytes, path below a mirror's root. It
names no host. Files come from the mirrors that this machine's package manager uses, and the hash of
each is checked. ``FAIRLEAD_DEBIAN_MIRRORS`` names other roots, separated by spaces.

The lowest layer of the images: a root file system from locked Debian packages.

Packages are unpacked, not installed: no script of a package runs. What scripts would do is done
here: the folders of ``/usr`` under their short names, users, the bundle of certificates.
Licences stay; documentation, translations and what needs a library that is not there go.
"""

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from scripts.release.release_run import ARCHITECTURES, ReleaseError, progress_step

ROOT = Path(__file__).resolve().parents[3]
RELEASE = "bookworm"
PACKAGES = (
    *("base-files", "ca-certificates", "media-types", "tzdata"),
    *("dash", "coreutils", "libacl1", "libattr1", "libgmp10", "libselinux1", "libpcre2-8-0"),
    *("libc6", "gcc-12-base", "libgcc-s1", "libstdc++6"),
    *("python3.11", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
    *("zlib1g", "libbz2-1.0", "liblzma5", "libssl3", "libexpat1", "libffi8", "libuuid1", "libcrypt1"),
)
"""The packages of an image: Python with its libraries, and a shell with the usual commands.

Why: with their dependencies, package managers, debconf, Kerberos, readline and curses would come,
which no process of Fairlead loads.
"""
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRRORS = "FAIRLEAD_DEBIAN_MIRRORS"
_LINE = re.compile(r"^(\S+) (\S+) ([0-9a-f]{64}) (\d+) (\S+)$", re.MULTILINE)

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


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package of a lock. path: of its file, below the root of a mirror."""

    name: str
    version: str
    sha256: str
    size: int
    path: str

    def line(self) -> str:
        return f"{self.name} {self.version} {self.sha256} {self.size} {self.path}"


def lock_path(name: str) -> Path:
    return ROOT / "requirements" / "debian" / f"{name}.lock"


def read_lock(name: str) -> list[DebianPackage]:
    """Returns the packages of a lock, in its order."""
    text = lock_path(name).read_text()
    return [
        DebianPackage(name, version, digest, int(size), path)
        for name, version, digest, size, path in _LINE.findall(text)
    ]


def write_lock(
    name: str, architecture: str, packages: Iterable[str] = PACKAGES, command: str = "make lock-images"
) -> None:
    """Finds the newest versions of the packages and writes the lock. command: renews it.

    apt checks the signatures of the mirrors' lists; it works in a folder of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        apt = _PrivateApt(Path(folder), architecture)
        apt.update()
        found = apt.packages(packages)
    head = f"# Debian {RELEASE}, {architecture}: written by `{command}`. Do not edit.\n"
    head += "# name version sha256 bytes path\n"
    lines = "".join(f"{package.line()}\n" for package in sorted(found, key=lambda package: package.name))
    lock_path(name).write_text(head + lines)


def fetch(package: DebianPackage, folder: Path, command: str = "make lock-images") -> Path:
    """Returns the file of a package in ``folder``, downloaded where it is not there.

    command: renews the lock.

    Raises ReleaseError where no mirror has these bytes.
    """
    target = folder / f"{package.sha256[:16]}-{Path(package.path).name}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    for mirror in mirrors():
        data = _download(f"{mirror.rstrip('/')}/{package.path}")
        if data is not None and hashlib.sha256(data).hexdigest() == package.sha256:
            partial = target.with_name(f"{target.name}.{os.getpid()}")
            partial.write_bytes(data)
            partial.replace(target)
            return target
    raise ReleaseError(
        f"no mirror has {package.path} with the hash of the lock. Debian replaces a version when a newer one comes: "
        f"run `{command}`, or name a mirror with snapshots in {_MIRRORS}"
    )


def mirrors() -> list[str]:
    """Returns the roots of this machine's Debian mirrors.

    Raises ReleaseError where there are none.
    """
    if given := os.environ.get(_MIRRORS, "").split():
        return given
    found = dict.fromkeys(mirror for mirror, _, origin in _apt_targets() if origin == "Debian")
    if not found:
        raise ReleaseError(f"apt names no Debian mirror on this machine: run `apt-get update`, or set {_MIRRORS}")
    return list(found)


def _apt_targets() -> Iterator[tuple[str, str, str]]:
    """Yields root, suite and origin of the package lists that apt has."""
    if shutil.which("apt-get") is None:
        return
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(ORIGIN)", "Created-By: Packages"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        mirror, suite, origin = line.split(" ", 2)
        yield mirror, suite, origin


def _download(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, TimeoutError):
        return None


class _PrivateApt:
    """apt with lists, cache and status below ``folder``, for one architecture."""

    def __init__(self, folder: Path, architecture: str) -> None:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text("".join(f"{line}\n" for line in self._sources()))
        options = {
            "Dir::State": folder / "state",
            "Dir::Cache": folder / "cache",
            "Dir::State::status": folder / "status",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
        }
        self._options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

    def update(self) -> None:
        self._run("apt-get", "update", "-qq")

    def packages(self, names: Iterable[str]) -> list[DebianPackage]:
        """Returns the newest version of each of these packages."""
        shown = self._run("apt-cache", "show", "--no-all-versions", *names)
        stanzas = [dict(re.findall(r"^(\w[\w-]*): (.*)$", part, re.MULTILINE)) for part in shown.split("\n\n")]
        return [
            DebianPackage(
                stanza["Package"], stanza["Version"], stanza["SHA256"], int(stanza["Size"]), stanza["Filename"]
            )
            for stanza in stanzas
            if stanza
        ]

    def _run(self, *command: str) -> str:
        words = [command[0], *self._options, *command[1:]]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReleaseError(f"{' '.join(command)} failed:\n{done.stderr[-2_000:]}")
        return done.stdout

    @staticmethod
    def _sources() -> Sequence[str]:
        """The machine's mirrors of this release, its updates and its security updates."""
        targets = [target for target in _apt_targets() if target[2] == "Debian" and target[1].startswith(RELEASE)]
        if not targets:
            raise ReleaseError(f"apt has no lists of Debian {RELEASE}: lock the packages on such a machine")
        return [f"deb [signed-by={_KEYRING}] {mirror} {suite} main" for mirror, suite, _ in dict.fromkeys(targets)]


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


if __name__ == "__main__":
    for name in ARCHITECTURES:
        with progress_step(f"Debian packages for {name}"):
            write_lock(name, name)
