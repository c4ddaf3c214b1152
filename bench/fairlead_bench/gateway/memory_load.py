"""A noisy neighbour: it keeps caches and memory busy, as engines do on a GPU node."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_MEGABYTES = 256
"""More than the last level of any cache."""
_MAX_SECONDS = 3_600


@contextlib.contextmanager
def memory_load(program: Path, *, prefix: Sequence[str] = ()) -> Iterator[None]:
    """Runs the program while the context is open. ``prefix`` is put before its command.

    Raises RuntimeError if the program does not start.
    """
    command = [*prefix, str(program), str(_MEGABYTES), str(_MAX_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the memory load does not start")
            yield
        finally:
            process.kill()
