"""The mock engine as a running program: its ports, the pace of its streams, its counters."""

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol


class CountedEngines(Protocol):
    """Engines at these ports that count what they served, since their start."""

    @property
    def ports(self) -> tuple[int, ...]:
        """Each is one engine to a gateway."""

    def stats(self) -> dict[str, int]:
        """Counters of all of them together; ``open`` is the number of streams at this moment."""


class MockEngine:
    """A context manager. ``prefix`` is put before the command, for example ``taskset -c 0``."""

    def __init__(self, program: Path, *, ports: int, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, str(program), str(ports)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._ports = tuple(int(word) for word in self._read_line().split()[1:])

    @property
    def ports(self) -> tuple[int, ...]:
        """Each is one engine to a gateway."""
        return self._ports

    def set_pace(self, interval_seconds: float) -> None:
        """Sets the time between the events of a stream; 0 for as fast as possible."""
        self._query(f"interval {round(interval_seconds * 1e6)}")

    def stats(self) -> dict[str, int]:
        """Counters since the start; ``open`` is the number of streams at this moment."""
        found: dict[str, int] = json.loads(self._query("stats"))
        return found

    def __enter__(self) -> "MockEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _query(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read_line()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the mock engine has died")
        return line.strip()


class EngineGroup:
    """Several engine processes that a gateway takes for one fleet."""

    def __init__(self, engines: Sequence[MockEngine]) -> None:
        self._engines = engines

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of all processes."""
        return tuple([port for engine in self._engines for port in engine.ports])

    def stats(self) -> dict[str, int]:
        """Counters of all of them together; ``open`` is the number of streams at this moment."""
        total: Counter[str] = Counter()
        for engine in self._engines:
            total.update(engine.stats())
        return dict(total)
