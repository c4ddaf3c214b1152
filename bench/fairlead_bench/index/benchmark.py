"""The indexer, a gateway's reader and Redis: each kind of traffic several times in turn, then ten
million blocks.

Processor time is user and system time of the process, from its CPU clock. The publisher's is not
counted. A run begins when the indexer is connected to all engines and has asked for their replays.
It ends when the reader has every mark and the indexer is idle. So the figures include the snapshots
of instances.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import yaml

from fairlead.runtime.compiled_build import is_compiled
from fairlead_bench.index.event_streams import MODEL
from fairlead_bench.results import NO_GOALS, ResultRow, load_goals, parse_options, write_results
from fairlead_kvstore.blockstore import block_table as blocks
from fairlead_testing.processes import cpu_seconds, memory_bytes, start_ready
from fairlead_testing.redis.valkey import Valkey, running_valkey

REST_SECONDS: Final = 3.0
"""The indexer asks an engine a second after connecting for what it may have missed."""
TIMEOUT_SECONDS: Final = 1_800.0

KINDS: Mapping[str, str] = {
    "prompts": "prompts that fill a cache",
    "eviction": "a full cache, half of them removals",
    "decoding": "32 answers being decoded",
    "alone": "every block a batch of its own",
}
TEN_MILLION = 10_000_000

ROOT: Final = Path(__file__).resolve().parents[3]
_BLOCKS: Final = {"prompts": 1_000_000, "eviction": 600_000, "decoding": 200_000, "alone": 100_000}
_ENGINES: Final = {"prompts": 16, "eviction": 4, "decoding": 4, "alone": 4}
_RATE: Final = 150_000
"""Blocks a second that are published: more than one indexer on one core follows, so that it is
never idle."""


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """Cost of one process in a run: CPU seconds, and the bytes by which it grew."""

    cpu: float
    grew: int


@dataclass(slots=True)
class IndexRun:
    """Result of one run. ``blocks``: stored and removed; ``held``: in the reader at the end;
    ``extra``: further figures."""

    kind: str
    blocks: int
    held: int
    seconds: float
    indexer: ProcessCost
    reader: ProcessCost
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
        yield "reader", self.reader
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


def write_fleet(engines: list[dict[str, str]], file: Path) -> None:
    """Writes a fleet file of these engines."""
    instances = [
        {
            "url": f"http://127.0.0.1:{1_000 + number}",
            "engine": "vllm",
            "kvEvents": one["events"],
            "kvReplay": one["replay"],
        }
        for number, one in enumerate(engines)
    ]
    file.write_text(yaml.safe_dump({"models": [{"name": MODEL.partition("/")[2], "instances": instances}]}))


@contextmanager
def start_indexer(redis: str, fleet: Path) -> Iterator[int]:
    """Starts ``python -m fairlead_kvstore``; yields its pid."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    arguments = ("--fleet", str(fleet), "--redis", redis)
    process, _ = start_ready("fairlead_kvstore", *arguments, log=fleet.parent / "indexer.log", environ=environ)
    with process:
        try:
            yield process.pid
        finally:
            process.terminate()


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

    cold: another reader is started afterwards.
    emptied: Redis is emptied after half of the events. Everything is written in a new epoch then,
        while the other half arrives.
    """
    kind, blocks, engines = traffic.kind, traffic.blocks, traffic.engines
    marks = ",".join(str(traffic.seed + number) for number in range(engines))
    words = (kind, str(blocks), str(engines), str(traffic.rate), str(traffic.seed))
    with (
        tempfile.TemporaryDirectory() as folder,
        running_valkey(Path(folder)) as redis,
        start_child("fairlead_bench.index.event_publisher", *words) as publisher,
    ):
        pid_redis = _pid(redis)
        fleet = Path(folder) / "fleet.yaml"
        write_fleet(publisher.read(), fleet)
        how = (redis.url, str(fleet), marks)
        with (
            start_indexer(redis.url, fleet) as pid,
            start_child("fairlead_bench.index.reader_process", *how) as reader,
        ):
            start = reader.read()
            time.sleep(REST_SECONDS)
            _wait_until_idle(pid)
            before = {
                name: (cpu_seconds(one), memory_bytes(one)) for name, one in (("indexer", pid), ("redis", pid_redis))
            }
            base = reader.query("")
            begun = time.monotonic()
            publisher.send("go")
            if emptied:
                time.sleep(blocks / traffic.rate / 2)
                _empty(redis.url)
            sent = publisher.read()["sent"]
            _wait_until_read(reader, engines)
            seconds = time.monotonic() - begun
            _wait_until_idle(pid)
            after = {
                name: (cpu_seconds(one), memory_bytes(one)) for name, one in (("indexer", pid), ("redis", pid_redis))
            }
            state = reader.query("")
            costs = {
                name: ProcessCost(after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in before
            }
            own = ProcessCost(state["cpu_now"] - base["cpu_now"], state["memory"] - start["before"])
            found = IndexRun(
                kind, sent, state["blocks"], seconds, costs["indexer"], own, costs["redis"], _used(redis.url)
            )
            if cold:
                with start_child("fairlead_bench.index.reader_process", *how) as another:
                    found.extra["cold"] = another.read()
        return found


def _wait_until_read(reader: ChildProcess, marks: int) -> None:
    until = time.monotonic() + TIMEOUT_SECONDS
    while reader.query("")["marks"] < marks:
        if time.monotonic() > until:
            raise RuntimeError(f"the reader did not get everything: {reader.query('')}")
        time.sleep(0.1)


def _wait_until_idle(pid: int) -> None:
    """Returns when the process does little in a second, three seconds in a row."""
    quiet, before = 0, cpu_seconds(pid)
    while quiet < REST_SECONDS:
        time.sleep(1.0)
        now = cpu_seconds(pid)
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


@dataclass(slots=True)
class IndexFigures:
    """Measured figures. ``runs`` are those of ``IndexRun.plain``, by kind; what was not measured is
    missing."""

    runs: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    many: Mapping[str, Any] | None = None


def rows(found: IndexFigures) -> list[ResultRow]:
    return [*_goal_rows(found), *_cost_rows(found)]


def _goal_rows(found: IndexFigures) -> Iterator[ResultRow]:
    wanted = load_goals("index")

    row = wanted.value
    for kind in ("prompts", "eviction", "decoding"):
        yield row(f"blocks per CPU-second of the indexer: {KINDS[kind]}", "/s", _rate(found.runs.get(kind, ())))
    yield row(
        "memory of the indexer per million blocks", "MB", _median_of(found.runs.get("prompts", ()), _indexer_memory)
    )


def _cost_rows(found: IndexFigures) -> Iterator[ResultRow]:
    yield NO_GOALS.value(
        f"blocks per CPU-second of the indexer: {KINDS['alone']}", "/s", _rate(found.runs.get("alone", ()))
    )
    for kind, words in KINDS.items():
        some = found.runs.get(kind, ())
        for name, who in (("reader", "a gateway's"), ("redis", "Redis'")):
            value = _median_of(some, lambda one, name=name: one[name]["cpu"] / one["blocks"] * 1e6)
            yield NO_GOALS.value(f"{who} CPU per million blocks: {words}", "s", value)
    full = found.runs.get("prompts", ())
    memory = _median_of(full, lambda one: _memory_per_block(one, "reader"))
    yield NO_GOALS.value("memory of a gateway's reader per million blocks", "MB", memory)
    yield NO_GOALS.value("a million blocks: a gateway that starts has them", "s", _median_of(full, _cold_million))
    many = found.many or {}
    cold = many.get("cold") or {}
    yield NO_GOALS.value("ten million blocks: a gateway that starts has", "", cold.get("blocks"))
    yield NO_GOALS.value("ten million blocks: a gateway that starts has them", "s", cold.get("seconds"))
    yield NO_GOALS.value("ten million blocks: memory of a gateway that starts", "MB", _megabytes(cold.get("memory")))
    yield NO_GOALS.value(
        "ten million blocks: the indexer grew by", "MB", _megabytes((many.get("indexer") or {}).get("grew"))
    )
    yield NO_GOALS.value("ten million blocks: memory of Redis", "MB", _megabytes(many.get("redis_bytes")))


def _rate(some: Sequence[Mapping[str, Any]]) -> float | None:
    return _median_of(some, lambda one: one["blocks"] / one["indexer"]["cpu"])


def _memory_per_block(one: Mapping[str, Any], name: str) -> float:
    return float(one[name]["grew"] / one["held"])


def _indexer_memory(one: Mapping[str, Any]) -> float:
    return _memory_per_block(one, "indexer")


def _cold_million(one: Mapping[str, Any]) -> float | None:
    cold = one.get("cold")
    return None if cold is None else cold["seconds"] / cold["blocks"] * 1e6


def _median_of(some: Sequence[Mapping[str, Any]], figure: Any) -> float | None:
    values = [value for one in some if (value := figure(one)) is not None]
    return median(values) if values else None


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when every goal holds."""
    options = parse_options(
        "index",
        __doc__,
        arguments,
        rounds=(2, "how often each kind of traffic is measured; medians count"),
        share=(1.0, "of the blocks; below 1 the result settles nothing"),
        seed=7,
        without=(str, "leave a part out: many"),
    )
    found = IndexFigures()
    for _ in range(options.rounds):
        for kind, count in _BLOCKS.items():
            one = _plain(kind, round(count * options.share), _ENGINES[kind], options.seed, cold=kind == "prompts")
            found.runs.setdefault(kind, []).append(one)
    if options.without != "many":
        found.many = _plain("prompts", round(TEN_MILLION * options.share), 16, options.seed, cold=True, emptied=True)
    figures = {"runs": found.runs, "many": found.many}
    more = {"compiled": is_compiled(blocks.__file__), "figures": figures}
    return write_results("index", rows(found), seed=options.seed, file=options.out, more=more)


def _plain(kind: str, blocks: int, engines: int, seed: int, *, cold: bool, emptied: bool = False) -> dict[str, Any]:
    one = run(EventTraffic(kind, blocks, engines, _RATE, seed), cold=cold, emptied=emptied).plain()
    print(f"{kind}: {one['blocks'] / one['indexer']['cpu']:,.0f} blocks per CPU-second of the indexer", file=sys.stderr)
    return one
