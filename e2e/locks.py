"""What tests beside one another share, and who may have it for himself: locks that end with their holder, however that ends."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cluster import pins

FAIRLEAD = "fairlead"
"""The installation on the cluster. Had alone by tests that install, remove or stop it."""
BEGINNING = "beginning"
"""Held while a cluster is brought up or Fairlead installed, which is done once for all."""


@contextmanager
def held(what: str, *, alone: bool) -> Iterator[None]:
    """Have it for as long as the block lasts: with others who do not want it alone, or ``alone``."""
    folder = pins.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"e2e-{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
