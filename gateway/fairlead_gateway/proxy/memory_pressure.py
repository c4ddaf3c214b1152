"""Refuses request bodies when memory is short: large ones first, then all of them.

Connections, bodies and responses are limited one by one. Together they can still exceed a small
container. So the process checks its memory four times a second. Above the first threshold, bodies
over 64 KiB get 503 with Retry-After; above the second, all bodies do. Requests in flight go on, and
paths without a body are served. Without a known limit, nothing is refused. The limit is that of
cgroup version 2 or 1; a warning says so where neither can be read.

Above the first threshold, free pages are returned to the system first, at most once a second. A
process with little to do returns them at any share, and without a limit.

Why: connections, bodies and responses are limited one by one. Together they can still exceed a
small container. Large bodies leave free memory between small objects, which stays with the process.
In one of three runs, forty bodies of 8 MiB left 150 MiB that were never returned. 200 clients that
never read left 70 MB in a worker of 43 MB.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from fairlead.errors import SettingsError
from fairlead.limits import Limits
from fairlead.runtime.process_tuning import heap_free_bytes, trim_heap
from fairlead_gateway.errors import Overloaded

MEMORY_FULL_SHARE: Final = 0.95
"""Limit: of the memory limit; above it, every body does."""

MEMORY_HIGH_SHARE: Final = 0.9
"""Limit: of the memory limit; above it, bodies over 64 KiB get 503 with Retry-After."""

LARGE_BODY_BYTES = 64 * 1024
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(B|KiB|MiB|GiB|K|M|G|k|KB|MB|GB)?")
_UNITS = {None: 1, "B": 1, "K": 1 << 10, "k": 1 << 10, "KiB": 1 << 10, "KB": 1_000, "M": 1 << 20, "MiB": 1 << 20, "MB": 10**6,
          "G": 1 << 30, "GiB": 1 << 30, "GB": 10**9}  # fmt: skip
_STATM = Path("/proc/self/statm")
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 60  # version 1 shows a number near 2**63 where there is no limit
_POLLS_PER_RELEASE = 4
"""Releasing takes milliseconds, in which nothing else runs."""
_RELEASE_CHECK_SECONDS = 1.0
_MAX_IDLE_CPU_SHARE = 0.2
_MIN_RELEASED_BYTES = 1 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

MemoryShare = Callable[[], float | None]
"""Returns used memory as a share of the limit; None if it cannot be read."""


class MemoryPressure:
    """The memory check of one process, which limits the bodies that are accepted.

    share: reads the used share of the limit, from `start` to `close`; None without a limit.
    on_pressure: called with whether memory is short.
    """

    def __init__(
        self,
        limits: Limits,
        share: MemoryShare | None,
        on_pressure: Callable[[bool], None],
        release_free: Callable[[], None] = trim_heap,
    ) -> None:
        self._limits = limits
        self._share = share
        self._on_pressure = on_pressure
        self._release_free = release_free
        self._pressure_polls = 0
        self._timer: asyncio.TimerHandle | None = None
        self.used_share: float | None = None
        self.max_body_bytes: int | None = None
        """Size of the largest body that is accepted now; None: no limit beyond the usual one."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Checks now, and then four times a second."""
        self.poll()
        if self._share is not None and not loop.is_closed():
            self._timer = loop.call_later(self._limits.memory_check_seconds, self.start, loop)

    def close(self) -> None:
        """Ends the checks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def poll(self) -> None:
        """Reads the used share and applies the thresholds."""
        used = self._read_share()
        if used is not None and used >= MEMORY_HIGH_SHARE and self._pressure_polls % _POLLS_PER_RELEASE == 0:
            self._release_free()
            used = self._read_share()
        self.used_share = used
        if used is None or used < MEMORY_HIGH_SHARE:
            self._pressure_polls = 0
            self.max_body_bytes = None
        else:
            self._pressure_polls += 1
            self.max_body_bytes = LARGE_BODY_BYTES if used < MEMORY_FULL_SHARE else 0
        self._on_pressure(self.max_body_bytes is not None)

    def _read_share(self) -> float | None:
        return None if self._share is None else self._share()

    def check_body(self, length: int) -> None:
        """Raises Overloaded if a body of `length` bytes is refused now."""
        if self.max_body_bytes is not None and length > self.max_body_bytes:
            refused = "large bodies" if self.max_body_bytes else "all bodies"
            hint = "try again later, or send a shorter body" if self.max_body_bytes else "try again later"
            raise Overloaded(f"memory is short: {refused} are refused for a moment", hint=hint, retry_after=1)

    def warnings(self) -> list[str]:
        """Returns a text about the bodies that are refused now; empty if none are."""
        if self.max_body_bytes is None or self.used_share is None:
            return []
        refused = f"bodies over {self.max_body_bytes // 1024} KiB are" if self.max_body_bytes else "every body is"
        return [f"memory: {100 * self.used_share:.0f} % of the limit is used; {refused} answered 503"]


class IdleRelease:
    """Returns free memory of the heap to the system while the process has little to do.

    After a second with little work, two sizes are compared with those after the last release. These
    are the memory of the process and the free bytes of its heap. If either has grown, there is a
    further release.

    free_bytes: None if the system does not report them; then nothing is done.

    Why not under load: the memory is soon used again, and a release stops all requests for some
    milliseconds. Why both: memory that was in use at the last release may be free now. What was
    released then may have been filled and freed again, and always counts as free.
    """

    def __init__(
        self,
        free_bytes: Callable[[], int | None] = heap_free_bytes,
        resident_bytes: Callable[[], int] | None = None,
        release: Callable[[], None] = trim_heap,
        cpu_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        self._free_bytes = free_bytes
        self._resident_bytes = resident_bytes or partial(_resident_bytes, _STATM)
        self._release = release
        self._cpu_seconds = cpu_seconds
        self._free = self._resident = 0
        self._cpu_before = cpu_seconds()
        self._is_known = self._remember()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Checks once a second, where the system reports free bytes."""
        if self._is_known and not loop.is_closed():
            loop.call_later(_RELEASE_CHECK_SECONDS, self._on_timer, loop)

    def check(self) -> None:
        """Releases free memory, if there may be more and the last second had little work."""
        cpu = self._cpu_seconds()
        is_idle = cpu - self._cpu_before < _MAX_IDLE_CPU_SHARE * _RELEASE_CHECK_SECONDS
        self._cpu_before = cpu
        if not is_idle or not self._is_known:
            return
        grown = self._resident_bytes() - self._resident
        if grown < _MIN_RELEASED_BYTES:
            grown = (self._free_bytes() or 0) - self._free
        if grown >= _MIN_RELEASED_BYTES:
            self._release()
            self._remember()
            self._cpu_before = self._cpu_seconds()

    def _remember(self) -> bool:
        """Keeps what later checks compare with; returns whether the system reports it."""
        free = self._free_bytes()
        if free is None:
            return False
        self._free, self._resident = free, self._resident_bytes()
        return True

    def _on_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self.check()
        self.start(loop)


def memory_share_reader(limit: str | None, *, statm: Path = _STATM, cgroup: Path = _CGROUP) -> MemoryShare | None:
    """Returns a reader of the used share; None if no limit is known.

    limit: the limit of this process, such as `512MiB`; None: the limit of the container.
    Raises SettingsError if `limit` is not a size.
    """
    if limit is not None:
        limit_bytes = parse_memory_limit(limit)
        return lambda: _process_share(statm, limit_bytes)
    for files in _cgroup_files(cgroup):
        text = _read_text(files.limit)
        if text is not None:
            found = int(text) if text.isdigit() else 0
            return partial(_container_share, files, found) if 0 < found < _UNLIMITED_BYTES else None
    return None


def unreadable_limit_warning(limit: str | None, *, cgroup: Path = _CGROUP) -> str | None:
    """Returns a text if the container's limit may exist and cannot be read; else None.

    limit: the configured limit of this process; None: the limit of the container.
    """
    if limit is not None or sys.platform != "linux" or (cgroup / "cgroup.controllers").exists():
        return None
    if any(_read_text(files.limit) is not None for files in _cgroup_files(cgroup)):
        return None
    return (
        f"memory: no limit can be read from {cgroup}, so no body is refused when memory is short; "
        "set FAIRLEAD_MEMORY_LIMIT"
    )


class _CgroupFiles(NamedTuple):
    """The files of a cgroup version.

    inactive_file: the start of the line in `stat` with the file cache that can be freed.
    """

    limit: Path
    used: Path
    stat: Path
    inactive_file: bytes


def _cgroup_files(cgroup: Path) -> tuple[_CgroupFiles, _CgroupFiles]:
    """Returns the files of version 2, then those of version 1."""
    memory = cgroup / "memory"
    return (
        _CgroupFiles(cgroup / "memory.max", cgroup / "memory.current", cgroup / "memory.stat", b"inactive_file "),
        _CgroupFiles(
            *(memory / "memory.limit_in_bytes", memory / "memory.usage_in_bytes", memory / "memory.stat"),
            b"total_inactive_file ",
        ),
    )


def _read_text(file: Path) -> str | None:
    """Returns the stripped text of a file; None if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return None


def parse_memory_limit(text: str) -> int:
    """Returns the bytes of a size such as `512MiB`. Raises SettingsError."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2]]) if match is not None else 0
    if size <= 0:
        name = "FAIRLEAD_MEMORY_LIMIT"
        raise SettingsError(f"{name} is not a size", field=name, hint="write it like 800MiB or 2GiB")
    return size


def _resident_bytes(statm: Path) -> int:
    return int(statm.read_bytes().split()[1]) * _PAGE_BYTES


def _process_share(statm: Path, limit_bytes: int) -> float | None:
    try:
        return _resident_bytes(statm) / limit_bytes
    except (OSError, ValueError, IndexError):
        return None


def _container_share(files: _CgroupFiles, limit_bytes: int) -> float | None:
    """Returns the share of the limit that all processes of the container use, without file caches.

    None if the kernel does not report it.
    """
    try:
        used, start = int(files.used.read_bytes()), files.inactive_file
        for line in files.stat.read_bytes().splitlines():
            if line.startswith(start):
                used -= int(line[len(start) :])
                break
    except (OSError, ValueError):
        return None
    return max(0, used) / limit_bytes
