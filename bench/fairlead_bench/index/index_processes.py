"""Redis, engines, the indexer and a mirror as separate processes, and the cost of each.

Processor time is user and system time of the process, from its CPU clock. The publisher's is not
counted. A run begins when the indexer is connected to all engines and has asked for their replays.
It ends when the mirror has every mark and the indexer is idle. So the figures include the snapshots
of instances.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from fairlead_bench.index.event_streams import MODEL
from fairlead_testing.redis.valkey import Valkey

REST_SECONDS: Final = 3.0
"""The indexer asks an engine a second after connecting for what it may have missed."""
TIMEOUT_SECONDS: Final = 1_800.0


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """Cost of one process in a run: CPU seconds, and the bytes by which it grew."""

    cpu: float
    grew: int


@dataclass(slots=True)
class IndexRun:
    """Result of one run. ``blocks``: stored and removed; ``held``: in the replica at the end;
    ``extra``: further figures."""

    kind: str
    blocks: int
    held: int
    seconds: float
    indexer: ProcessCost
    mirror: ProcessCost
    redis: ProcessCost
    redis_bytes: int
    extra: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Returns the run for the JSON file."""
        costs = {name: {"cpu": one.cpu, "grew": one.grew} for name, one in self._costs()}
        own = {"kind": self.kind, "blocks": self.blocks, "held": self.held, "seconds": self.seconds}
        return own | costs | {"redis_bytes": self.redis_bytes} | self.extra

    def _costs(self) -> Iterator[tuple[str, ProcessCost]]:
        yield "indexer", self.indexer
        yield "mirror", self.mirror
        yield "redis", self.redis


class ChildProcess:
    """A process that answers a line with a line of JSON."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self) -> Any:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        return json.loads(line)

    def query(self, line: str) -> Any:
        """Sends a line and returns the answer."""
        self.send(line)
        return self.read()

    def send(self, line: str) -> None:
        """Sends a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """Closes its standard input and waits for its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def start_child(*words: str) -> Iterator[ChildProcess]:
    """Starts a process that ends with the block."""
    made = ChildProcess(*words)
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def start_redis() -> Iterator[Valkey]:
    """Starts a new server without a disk."""
    with tempfile.TemporaryDirectory() as folder:
        server = Valkey(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def start_indexer(redis: str, engines: list[dict[str, str]], folder: Path) -> Iterator[int]:
    """Starts ``python -m fairlead_kvstore`` before these engines; yields its pid."""
    instances = [
        {
            "url": f"http://127.0.0.1:{1_000 + number}",
            "engine": "vllm",
            "kvEvents": one["events"],
            "kvReplay": one["replay"],
        }
        for number, one in enumerate(engines)
    ]
    fleet = folder / "fleet.yaml"
    fleet.write_text(yaml.safe_dump({"models": [{"name": MODEL.partition("/")[2], "instances": instances}]}))
    command = [sys.executable, "-m", "fairlead_kvstore", "--fleet", str(fleet), "--redis", redis]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    with (folder / "indexer.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environ)
        assert process.stdout is not None
        try:
            if not process.stdout.readline().startswith("ready "):
                raise RuntimeError((folder / "indexer.log").read_text())
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


@dataclass(frozen=True, slots=True)
class EventTraffic:
    """The events of a run: their kind, blocks in all and per second, and the engines."""

    kind: str
    blocks: int
    engines: int
    rate: int
    seed: int


def run(traffic: EventTraffic, *, cold: bool = False, emptied: bool = False) -> IndexRun:
    """Returns the figures of one kind of traffic.

    cold: another mirror is loaded from Redis afterwards.
    emptied: Redis is emptied after half of the events. Everything is written in a new epoch then,
        while the other half arrives.
    """
    kind, blocks, engines = traffic.kind, traffic.blocks, traffic.engines
    marks = ",".join(str(traffic.seed + number) for number in range(engines))
    words = (kind, str(blocks), str(engines), str(traffic.rate), str(traffic.seed))
    with (
        tempfile.TemporaryDirectory() as folder,
        start_redis() as redis,
        start_child("fairlead_bench.index.event_publisher", *words) as publisher,
    ):
        pid_redis = _pid(redis)
        with (
            start_indexer(redis.url, publisher.read(), Path(folder)) as pid,
            start_child("fairlead_bench.index.mirror_process", redis.url, marks) as mirror,
        ):
            start = mirror.read()
            time.sleep(REST_SECONDS)
            _wait_until_idle(pid)
            before = {name: usage(one) for name, one in (("indexer", pid), ("redis", pid_redis))}
            base = mirror.query("")
            begun = time.monotonic()
            publisher.send("go")
            if emptied:
                time.sleep(blocks / traffic.rate / 2)
                _empty(redis.url)
            sent = publisher.read()["sent"]
            _wait_until_mirrored(mirror, engines)
            seconds = time.monotonic() - begun
            _wait_until_idle(pid)
            after = {name: usage(one) for name, one in (("indexer", pid), ("redis", pid_redis))}
            state = mirror.query("")
            costs = {
                name: ProcessCost(after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in before
            }
            own = ProcessCost(state["cpu_now"] - base["cpu_now"], state["memory"] - start["before"])
            found = IndexRun(
                kind, sent, state["blocks"], seconds, costs["indexer"], own, costs["redis"], _used(redis.url)
            )
            found.extra = {"loads": state["loads"], "mirror_says": state["words"]}
            if cold:
                found.extra["cold"] = _cold(redis.url, marks)
        return found


def usage(pid: int) -> tuple[float, int]:
    """Returns the CPU seconds since its start, and its bytes in memory."""
    cpu = time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    text = Path(f"/proc/{pid}/status").read_text()
    return cpu, int(text.partition("VmRSS:")[2].split()[0]) * 1024


def _cold(url: str, marks: str) -> Any:
    with start_child("fairlead_bench.index.mirror_process", url, marks) as made:
        first = made.read()
        return first | {"held": made.query("census")["held"]}


def _wait_until_mirrored(mirror: ChildProcess, marks: int) -> None:
    until = time.monotonic() + TIMEOUT_SECONDS
    while mirror.query("")["marks"] < marks:
        if time.monotonic() > until:
            raise RuntimeError(f"the mirror did not get everything: {mirror.query('')}")
        time.sleep(0.1)


def _wait_until_idle(pid: int) -> None:
    """Returns when the process does little in a second, three seconds in a row."""
    quiet, before = 0, usage(pid)[0]
    while quiet < REST_SECONDS:
        time.sleep(1.0)
        now = usage(pid)[0]
        quiet = quiet + 1 if now - before < 0.1 else 0
        before = now


def _used(url: str) -> int:
    from redis import Redis

    with Redis.from_url(url) as client:
        return int(client.info("memory")["used_memory"])


def _empty(url: str) -> None:
    from redis import Redis

    with Redis.from_url(url) as client:
        client.flushall()


def _pid(server: Valkey) -> int:
    from redis import Redis

    with Redis.from_url(server.url) as client:
        return int(client.info("server")["process_id"])
