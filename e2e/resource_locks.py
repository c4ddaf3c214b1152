"""File locks on what parallel tests share. A lock ends with the process that holds it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.cluster.artifacts import pinned_versions

INSTALLATION_LOCK = "fairlead"
"""The installation on the cluster. Had alone by tests that install, remove or stop it."""
MEMORY_LOCK = "memory"
"""The memory of the installation's pods, such as decisions. Had alone by tests that replace these
pods while others use the installation."""
SETUP_LOCK = "beginning"
"""Held while a cluster is brought up or Fairlead installed, which is done once for all."""


@contextmanager
def file_lock(what: str, *, alone: bool) -> Iterator[None]:
    """Holds the lock during the block, shared with others or ``alone``."""
    folder = pinned_versions.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"e2e-{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
