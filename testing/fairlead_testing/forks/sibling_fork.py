"""Forks that are children of this process's parent: the kernel's `CLONE_PARENT`."""

import ctypes
import platform
import signal
import sys

_CLONE_CALLS = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT = 0x8000
_CLONE_CHILD_CLEARTID = 0x200000
_CLONE_CHILD_SETTID = 0x1000000
_PR_GET_TID_ADDRESS = 40


def can_clone() -> bool:
    """Returns True if this system can make a fork the child of another process."""
    return sys.platform == "linux" and platform.machine() in _CLONE_CALLS and bool(_thread_id_address())


def clone_sibling() -> int:
    """Forks like `os.fork`, but the child's parent is this process's parent.

    Returns the child's process id, and 0 in the child.
    """
    call = ctypes.PyDLL(None, use_errno=True).syscall
    address = ctypes.c_void_p(_thread_id_address())
    flags = ctypes.c_long(_CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD)
    number, null = ctypes.c_long(_CLONE_CALLS[platform.machine()]), ctypes.c_void_p(0)
    before, in_parent, in_child = (
        ctypes.pythonapi.PyOS_BeforeFork,
        ctypes.pythonapi.PyOS_AfterFork_Parent,
        ctypes.pythonapi.PyOS_AfterFork_Child,
    )
    before()
    pid = int(
        call(number, flags, null, null, address, address)
    )  # the two architectures differ in the order of the last
    if pid == 0:
        in_child()
        return 0
    in_parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return pid


def _thread_id_address() -> int:
    """Returns where the C library keeps the main thread's id; 0 if that is unknown.

    The kernel writes the id of a fork there.
    """
    address = ctypes.c_void_p()
    failed = ctypes.CDLL(None).prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0)
    return 0 if failed else address.value or 0
