"""Progress messages with durations, one line a step, on standard error. Standard output is for
scripts."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def print_progress(line: str) -> None:
    """Prints one line of progress."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_step(what: str) -> Iterator[None]:
    """Prints what was done and how many seconds it took, also where it failed."""
    began, outcome = time.monotonic(), "failed after"
    try:
        yield
        outcome = ""
    finally:
        print_progress(f"  {what:<58} {outcome} {time.monotonic() - began:7.1f} s".rstrip())
