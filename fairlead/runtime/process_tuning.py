"""Operating-system and memory settings for long-running processes."""

import contextlib
import ctypes
import gc
import resource
import socket
import sys
from typing import Final

_M_TRIM_THRESHOLD = -1  # of <malloc.h>
_M_MMAP_THRESHOLD = -3
_MMAP_THRESHOLD_BYTES = 1024 * 1024
_TRIM_THRESHOLD_BYTES = 8 * 1024 * 1024
_PR_GET_DUMPABLE = 3  # of <sys/prctl.h>
_PR_SET_DUMPABLE = 4
KERNEL_UNSENT_BYTES: Final = 128 * 1024
"""Limit: unsent bytes of one client connection that the kernel takes; more wait in the worker,
which sees them.
"""


class _Mallinfo(ctypes.Structure):
    """The struct mallinfo2 of <malloc.h>. `fordblks` are the free bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


def raise_open_file_limit() -> None:
    """Raises the limit of open files to the maximum that the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_open_files() -> int | None:
    """Returns how many descriptors this process may have; None if there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def deny_inspection() -> None:
    """Keeps other processes of the same user from reading this one.

    That holds for memory, environment and descriptors. Only root with the right to trace still can.
    The process also writes no core dump. It is Linux's own switch; other systems are unchanged.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def is_inspectable() -> bool:
    return sys.platform != "linux" or bool(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


def limit_memory(max_bytes: int) -> None:
    """Forbids core dumps and, on Linux, more address space than `max_bytes`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS accepts the limit and does not enforce it
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))


def tune_malloc() -> None:
    """Makes glibc return the memory of large blocks to the system when they are freed.

    Why: by default, glibc raises its size threshold each time a large block is freed, and then
    keeps the memory. Smaller blocks are still reused. The kernel must clear and map fresh pages,
    which costs more for a request of 220 KB than all other work on it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def freeze_heap() -> None:
    """Excludes all current objects from garbage collection and returns free memory to the system.

    Call it once, at the end of the start-up.
    """
    gc.collect()
    gc.freeze()
    trim_heap()


def trim_heap() -> None:
    """Returns unused memory pages of the heap to the system, also those between used ones."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def heap_free_bytes() -> int | None:
    """Returns the free bytes of the heap; None where the C library does not report them.

    Pages that `trim_heap` gave back to the system count too. The call takes microseconds, or some
    milliseconds if free memory is in tens of thousands of pieces.
    """
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None).mallinfo2  # glibc 2.33
    except (AttributeError, OSError):  # another C library
        return None
    function.restype = _Mallinfo
    return int(function().fordblks)


def relax_gc() -> None:
    """Makes garbage collection less frequent, for processes with many objects and few reference
    cycles.
    """
    gc.set_threshold(10_000, 50, 100)  # 10,000 young objects take 4 ms to scan; 50,000 block the loop for 38 ms


def limit_kernel_unsent(listening: socket.socket, max_bytes: int = KERNEL_UNSENT_BYTES) -> None:
    """Bounds the unsent bytes that the kernel takes for each connection of a listening socket.

    Accepted sockets inherit it. The window of bytes in flight still grows as the client reads.

    Why: for a client that never reads, the kernel takes up to 4 MiB, which count against the pod's
    limit. A process sees bytes in its own memory only, so it would take such a client for an idle
    one.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None:
        with contextlib.suppress(OSError):  # some sandboxes do not know the option
            listening.setsockopt(socket.IPPROTO_TCP, option, max_bytes)
