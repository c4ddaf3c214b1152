"""Runs in a child just before its real program: ties the child's life to the supervisor's, then becomes the program.

``python -I -S leash.py GUARD_FD SUPERVISOR_PID PROGRAM ARG…`` — standard library only, no site packages: it costs about 10 ms.
The child is the leader of its own session already. It tells the guard its pid *before* the program runs, so that there
is no moment in which a process exists that nobody would end.
"""

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def die_with_parent() -> None:
    """Linux: have the kernel kill this process when its parent dies, however that happens. Elsewhere the guard does it."""
    if sys.platform != "linux":
        return
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return  # a libc without prctl: the guard alone must do


def main(arguments: list[str]) -> None:
    """Tie, register, exec. Exits 126 when the supervisor is gone already, 127 when the program cannot be run."""
    guard, parent, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    die_with_parent()
    if os.getppid() != parent:
        sys.exit(126)
    try:
        os.write(guard, b"add %d\n" % os.getpid())
    except OSError:
        sys.exit(126)
    os.close(guard)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", flush=True)
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
