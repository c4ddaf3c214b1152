"""What a process that serves or indexes asks of the system at its start."""

import contextlib
import ctypes
import gc
import resource
import sys

_M_TRIM_THRESHOLD = -1  # of <malloc.h>
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 1024 * 1024
_TRIM_THRESHOLD_BYTES = 8 * 1024 * 1024


def raise_open_file_limit() -> None:
    """A connection is a file, an engine that is read a handful; take as many as the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_malloc() -> None:
    """Keep glibc from holding on to the memory of large bodies: it raises the size from which blocks are given back to
    the system whenever one is freed. Smaller ones are used again: a block that the system gives has to be cleared and entered
    page by page, which costs a request of 220 KB more than everything else that is done for it."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def freeze_heap() -> None:
    """The start is over: what is there now stays, and the collector need not look at it again. What importing left free goes back."""
    gc.collect()
    gc.freeze()
    trim_heap()


def trim_heap() -> None:
    """Whole pages that nobody uses any more go back to the system, those between used ones too, which else stay."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def relax_gc() -> None:
    """For a process that makes and drops many objects and hardly any cycles."""
    gc.set_threshold(10_000, 50, 100)  # 10,000 young objects take 4 ms to look through; 50,000 held up the loop for 38
