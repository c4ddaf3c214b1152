"""The reaper process: kills all listed process groups and removes the run directory when its input
ends.

``python -I -S reaper_process.py DIRECTORY`` reads ``add PID`` and ``gone PID`` lines on stdin. End
of file means that the supervisor has ended, even by SIGKILL. Works on Linux and macOS; standard
library only. It runs in a session of its own and ignores the terminal's signals.
"""

import os
import shutil
import signal
import sys
from typing import BinaryIO


def read_live_groups(stream: BinaryIO) -> set[int]:
    """Returns the process groups that are alive when the stream ends."""
    alive: set[int] = set()
    for line in stream:
        action, _, number = line.strip().partition(b" ")
        if number.isdigit() and int(number) > 1:
            (alive.add if action == b"add" else alive.discard)(int(number))
    return alive


def main(directory: str) -> None:
    """Waits for the end of the supervisor, then kills its process groups and removes the directory.

    directory: empty for none.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    for group in read_live_groups(sys.stdin.buffer):
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue  # ended by itself meanwhile
    if directory:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
