"""The first program of a child: it ties the child's life to the supervisor's, then executes the
actual program.

``python -I -S child_exec.py REAPER_FD SUPERVISOR_PID PROGRAM ARG…``: standard library only, about
10 ms. The child already leads its own session. It registers with the reaper before the program
runs, so that no process exists that nothing would end.
"""

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def die_with_parent() -> None:
    """Makes the Linux kernel kill this process when its parent ends. Elsewhere only the reaper does
    it.
    """
    if sys.platform != "linux":
        return
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return  # a libc without prctl: only the reaper ends this process


def main(arguments: list[str]) -> None:
    """Registers this process with the reaper and executes the program in its place.

    Exits 126 when the supervisor has ended, 127 when the program cannot run.
    """
    reaper_fd, parent, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    die_with_parent()
    if os.getppid() != parent:
        sys.exit(126)
    try:
        os.write(reaper_fd, b"add %d\n" % os.getpid())
    except OSError:
        sys.exit(126)
    os.close(reaper_fd)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", flush=True)
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
