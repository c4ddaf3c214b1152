"""Programs of Debian that draw pictures and test completions: a browser and two shells.

They are locked in ``requirements/debian/programs.lock``, downloaded into the cache and unpacked
there; nothing is installed. They need Linux on x86-64 with glibc 2.36 or newer.

``python -m scripts.debian_programs`` locks the newest versions.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.release.images.debian_packages import fetch, read_lock, write_lock
from scripts.release.images.layers import build_lock, cache_folder
from scripts.release.release_run import ReleaseError, progress_step

LOCK = "programs"
COMMAND = "python -m scripts.debian_programs"
_BROWSER_LIBRARIES = (
    *("libasound2", "libasyncns0", "libatk1.0-0", "libatspi2.0-0", "libblkid1", "libbrotli1", "libbsd0", "libcap2"),
    *("libdav1d6", "libdbus-1-3", "libdouble-conversion3", "libdrm2", "libexpat1", "libffi8", "libflac12"),
    *("libfontconfig1", "libfreetype6", "libgbm1", "libgcrypt20", "libglib2.0-0", "libgpg-error0", "libgraphite2-3"),
    *("libharfbuzz-subset0", "libharfbuzz0b", "libjpeg62-turbo", "liblcms2-2", "liblz4-1", "liblzma5", "libmd0"),
    *("libminizip1", "libmount1", "libmp3lame0", "libmpg123-0", "libnspr4", "libnss3", "libogg0", "libopenh264-7"),
    *("libopenjp2-7", "libopus0", "libpcre2-8-0", "libpng16-16", "libpulse0", "libselinux1", "libsndfile1"),
    *("libstdc++6", "libgcc-s1", "libsystemd0", "libudev1", "libvorbis0a", "libvorbisenc2", "libwayland-server0"),
    *("libx11-6", "libx11-xcb1", "libxau6", "libxcb1", "libxcomposite1", "libxdamage1", "libxdmcp6", "libxext6"),
    *("libxfixes3", "libxi6", "libxkbcommon0", "libxnvctrl0", "libxrandr2", "libxrender1", "libzstd1", "zlib1g"),
)
PROGRAMS = {
    "chromium-headless-shell": (
        *("chromium-common", "chromium-headless-shell", "fonts-dejavu-core", "fonts-liberation2"),
        *_BROWSER_LIBRARIES,
    ),
    "fish": ("fish", "fish-common", "libgcc-s1", "libpcre2-32-0", "libstdc++6", "libtinfo6"),
    "zsh": ("libcap2", "libtinfo6", "zsh", "zsh-common"),
}
"""Program → its packages, with those of its libraries; the C library is the machine's."""
_PATHS = {"chromium-headless-shell": "usr/lib/chromium/chromium-headless-shell", "zsh": "bin/zsh"}
_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")


@dataclass(frozen=True, slots=True)
class DebianProgram:
    """An unpacked program. root: the folder of its files, as they would be below ``/``."""

    root: Path
    path: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": os.pathsep.join(str(self.root / folder) for folder in _LIBRARY_FOLDERS)}


def debian_program(name: str) -> DebianProgram:
    """Returns a program of ``PROGRAMS``, downloaded and unpacked the first time.

    Raises ReleaseError when it cannot be.
    """
    locked = [package for package in read_lock(LOCK) if package.name in PROGRAMS[name]]
    digest = hashlib.sha256("\n".join(package.sha256 for package in locked).encode()).hexdigest()[:16]
    root = cache_folder() / f"debian-{name}-{digest}"
    with build_lock(f"debian-{name}"):
        if not root.exists():
            with progress_step(f"{name} from Debian"), tempfile.TemporaryDirectory(dir=cache_folder()) as work:
                partial = Path(work) / "root"
                partial.mkdir()
                for package in locked:
                    _unpack(fetch(package, cache_folder() / "debian", COMMAND), partial)
                # fish looks for its files below the parent of its program's folder.
                (partial / "usr/etc").symlink_to("../etc")
                shutil.move(partial, root)
    return DebianProgram(root, root / _PATHS.get(name, f"usr/bin/{name}"))


def _unpack(package: Path, root: Path) -> None:
    done = subprocess.run(["dpkg-deb", "-x", package, root], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{package.name} cannot be unpacked: {done.stderr[-2_000:]}")


if __name__ == "__main__":
    with progress_step("Debian programs"):
        write_lock(LOCK, "amd64", sorted({package for names in PROGRAMS.values() for package in names}), COMMAND)
