"""The supervisor's handle of its reaper process, which ends all children when the supervisor ends.

The reaper sees the supervisor's end by a closed pipe, so SIGKILL is covered. A reaper that ends
early is replaced; the new one gets the whole list of children.
"""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

_REAPER_PROCESS = Path(__file__).with_name("reaper_process.py")


class Reaper:
    """Handle of the reaper process. Open it before the first child, close it after the last.

    fd: the pipe on which children register themselves.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = str(directory) if directory else ""
        self._alive: set[int] = set()
        self._lock = threading.RLock()
        self._closing = False
        self._process, self.fd = self._spawn()

    @property
    def pid(self) -> int:
        return self._process.pid

    def add(self, pid: int) -> None:
        """Adds a process group to the list that a replacement reaper gets.

        The present reaper knows the group already, because the child registers itself.
        """
        with self._lock:
            self._alive.add(pid)

    def remove(self, pid: int) -> None:
        """Removes an ended process group, whose number may be reused."""
        with self._lock:
            self._alive.discard(pid)
            self._send(f"gone {pid}\n")

    def replace_if_dead(self) -> bool:
        """Starts a new reaper when the present one has ended; returns whether it did."""
        with self._lock:
            if self._closing or self._process.poll() is None:
                return False
            os.close(self.fd)
            self._process, self.fd = self._spawn()
            self._send("".join(f"add {pid}\n" for pid in sorted(self._alive)))
            return True

    def close(self) -> None:
        """Lets the reaper end what is left and remove the directory; waits up to 10 s for it."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            os.close(self.fd)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)

    def _spawn(self) -> tuple[subprocess.Popen[bytes], int]:
        read, write = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_REAPER_PROCESS), self._directory],
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read)
        return process, write

    def _send(self, text: str) -> None:
        with contextlib.suppress(OSError):  # dead: replace_if_dead sends all to its successor
            os.write(self.fd, text.encode())
