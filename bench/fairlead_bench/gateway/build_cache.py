"""The cache of built and installed programs: outside the tree, under names that hold a hash of what
made them."""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fairlead.runtime.compiled_build import cache_folder


def cache_path() -> Path:
    """Returns Fairlead's cache on this machine."""
    return cache_folder(os.environ)


def content_digest(parts: Iterable[bytes]) -> str:
    """Returns a short digest of all ``parts``."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
