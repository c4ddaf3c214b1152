"""The supervisor's handle of its guard process (watchman.py): whatever ends us, nothing of ours stays.

The guard learns of the supervisor's end by the closing of a pipe, so SIGKILL is no exception; a guard that dies itself is
replaced and told everything anew.
"""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

_REAPER_PROCESS = Path(__file__).with_name("watchman.py")


class Reaper:
    """Open it before the first child, close it after the last. ``fd`` is where children register themselves."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = str(directory) if directory else ""
        self._alive: set[int] = set()
        self._lock = threading.RLock()
        self._closing = False
        self._process, self.fd = self._spawn()

    @property
    def pid(self) -> int:
        """The guard process itself, for those who look at the process list."""
        return self._process.pid

    def add(self, pid: int) -> None:
        """``pid`` lives; its leash has said so already, this is for a guard that comes later."""
        with self._lock:
            self._alive.add(pid)

    def remove(self, pid: int) -> None:
        """``pid`` has ended and its number may mean somebody else from now on."""
        with self._lock:
            self._alive.discard(pid)
            self._send(f"gone {pid}\n")

    def replace_if_dead(self) -> bool:
        """Hire a new guard when the present one has ended; True when that was so."""
        with self._lock:
            if self._closing or self._process.poll() is None:
                return False
            os.close(self.fd)
            self._process, self.fd = self._spawn()
            self._send("".join(f"add {pid}\n" for pid in sorted(self._alive)))
            return True

    def close(self) -> None:
        """End of the stack: the guard ends what is left, removes the directory and goes; waits for that."""
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
        with contextlib.suppress(OSError):  # dead: the next replace_if_dead tells its successor
            os.write(self.fd, text.encode())
