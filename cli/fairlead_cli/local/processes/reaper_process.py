"""The guard process: reads a pipe that only the supervisor holds open, and cleans up when it closes.

``python -I -S watchman.py DIRECTORY`` reads ``add PID`` and ``gone PID`` lines on stdin. End of file means that the supervisor
has ended, in whatever way, SIGKILL included: every process group still on the list is killed and DIRECTORY removed.
Works alike on Linux and macOS; standard library only. It sits in a session of its own and ignores the terminal's signals.
"""

import os
import shutil
import signal
import sys
from typing import BinaryIO


def read_live_groups(stream: BinaryIO) -> set[int]:
    """The process groups that are alive when the stream ends."""
    alive: set[int] = set()
    for line in stream:
        word, _, number = line.strip().partition(b" ")
        if number.isdigit() and int(number) > 1:
            (alive.add if word == b"add" else alive.discard)(int(number))
    return alive


def main(directory: str) -> None:
    """Wait for the end of the supervisor, then leave nothing of it."""
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
